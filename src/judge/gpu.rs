//! What a guarded GPU is: free, held, or short of memory that no process explains.

use std::collections::BTreeSet;

use crate::{
    config::settings::{GpuNeed, Settings},
    ident::{GpuName, Pid, ServiceName},
    snapshot::{
        Gpu, GpuHolding, GpuMemory, GpuUse, GpuVendor, Gpus, Process, Seen, Snapshot, gibibytes,
        system_name,
    },
};

use super::verdict::{Unknown, Verdict};

/// A guarded GPU and its service by the settings: several may share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuGuard {
    /// Which, as it is named there.
    pub name: GpuName,
    /// Its service; none for a GPU that only the command line names.
    pub service: Option<ServiceName>,
    /// How much of its memory the service needs.
    pub need: GpuNeed,
}

/// The judge's word on one guarded GPU.
#[derive(Debug, Clone)]
pub struct GpuVerdict {
    /// `GPU 0`, `GPU 0 part 1`.
    pub label: String,
    /// What was seen of it; none where it was not found.
    pub gpu: Option<Gpu>,
    /// Its services by the settings.
    pub services: Vec<ServiceName>,
    /// How much of its memory must be free: the largest need of theirs.
    pub need: GpuNeed,
    /// What it is.
    pub state: GpuState,
    /// Why more may hold it, or a part of it, than are seen; none = all are seen.
    pub may_miss: Option<String>,
    /// One sentence for the person who reads it.
    pub sentence: String,
    /// What to do, where there is something to do.
    pub next_step: Option<String>,
}

impl GpuVerdict {
    /// A service's need goes before that of the command line, which names none.
    fn add(&mut self, gpu: &Gpu, guard: &GpuGuard) {
        let bytes = |need: GpuNeed| need.bytes_of(total(gpu));
        let is_first = self.services.is_empty() && guard.service.is_some();
        let is_more = bytes(guard.need) > bytes(self.need);
        if is_first || (is_more && guard.service.is_some()) {
            self.need = guard.need;
        }
        self.services.extend(guard.service.clone());
    }

    /// Who holds it.
    pub fn holders(&self) -> &[Pid] {
        match &self.state {
            GpuState::Held(holders) => holders,
            GpuState::Free | GpuState::Residual | GpuState::Absent | GpuState::Unknown(_) => &[],
        }
    }

    /// Whether more memory alone could make it free, or shared.
    pub fn is_short(&self) -> bool {
        let may_be = matches!(self.state, GpuState::Held(_) | GpuState::Residual);
        may_be && self.gpu.as_ref().is_some_and(|gpu| has_enough(gpu, self.need) == Ok(false))
    }
}

/// States of a guarded GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuState {
    /// Nobody computes on it, and enough of its memory is free.
    Free,
    /// These processes compute on it, infrastructure left out.
    Held(Vec<Pid>),
    /// Too little of its memory is free, and nobody computes on it.
    Residual,
    /// This host has no such GPU.
    Absent,
    /// Who holds it, or how much is free, is not known.
    Unknown(Unknown),
}

/// Executables that open GPUs for the machine's own sake: they hold none, and nothing ends them.
pub(super) const INFRASTRUCTURE: [&str; 19] = [
    "nvidia-persistenced",
    "nvidia-powerd",
    "nv-hostengine",
    "nv-fabricmanager",
    "dcgm-exporter",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-smi",
    "nvtop",
    "amd-smi",
    "rocm-smi",
    "intel_gpu_top",
    "Xorg",
    "Xwayland",
    "gnome-shell",
    "kwin_wayland",
    "kwin_x11",
    "sway",
    "weston",
];

/// Whether a process is surely one of them.
pub fn is_infrastructure(process: &Process) -> bool {
    let name = process.exe.known().and_then(|exe| system_name(exe));
    name.is_some_and(|name| INFRASTRUCTURE.contains(&name))
}

/// The GPUs that a name means: a GPU that is split, not its parts, unless a part is named.
pub fn named<'a>(gpus: &'a Gpus, name: &GpuName) -> Vec<&'a Gpu> {
    let is_meant = |gpu: &&Gpu| match name {
        GpuName::All => gpu.part.is_none() && !gpu.is_integrated,
        GpuName::Index(index) => gpu.part.is_none() && gpu.index == *index,
        GpuName::Uuid(uuid) => gpu.uuid.as_ref() == Some(uuid),
        GpuName::Bus(bus) => gpu.part.is_none() && gpu.bus.as_ref() == Some(bus),
    };
    gpus.all.iter().filter(is_meant).collect()
}

/// Who computes on a GPU, or on a part of it where it is split. Infrastructure does not.
pub fn holders<'a>(snapshot: &'a Snapshot, gpu: &'a Gpu) -> impl Iterator<Item = &'a GpuHolding> {
    users(snapshot, gpu).filter(|holding| {
        let process = snapshot.processes.get(&holding.pid);
        holding.kind != GpuUse::Graphics && !process.is_some_and(is_infrastructure)
    })
}

/// Whoever has it open for more than to look.
fn users<'a>(snapshot: &'a Snapshot, gpu: &'a Gpu) -> impl Iterator<Item = &'a GpuHolding> {
    with_parts(snapshot, gpu).flat_map(|gpu| &gpu.holdings)
}

/// The GPU, and its parts where it is split.
fn with_parts<'a>(snapshot: &'a Snapshot, gpu: &'a Gpu) -> impl Iterator<Item = &'a Gpu> {
    let all = snapshot.gpus.iter().flat_map(|gpus| &gpus.all);
    all.filter(|one| {
        let is_same = (one.vendor, one.index) == (gpu.vendor, gpu.index);
        is_same && (one.part == gpu.part || (gpu.part.is_none() && gpu.is_split))
    })
}

/// Why more may hold it than are seen.
fn may_miss<'a>(snapshot: &'a Snapshot, gpu: &'a Gpu) -> Option<&'a String> {
    with_parts(snapshot, gpu).find_map(|gpu| gpu.may_miss.as_ref())
}

/// Judges every GPU that the guards name; `verdicts` name its holders. A GPU that the command line names is its services',
/// whose guards are the `others`.
pub fn judge(
    snapshot: &Snapshot,
    guards: &[&GpuGuard],
    others: &[&GpuGuard],
    verdicts: &[Verdict],
) -> Vec<GpuVerdict> {
    let Some(gpus) = &snapshot.gpus else { return Vec::new() };
    let mut judged: Vec<GpuVerdict> = Vec::new();
    for guard in guards {
        let found = named(gpus, &guard.name);
        if found.is_empty() {
            add_not_found(&mut judged, gpus, guard);
        }
        for gpu in found {
            match judged.iter_mut().find(|verdict| verdict.gpu.as_ref() == Some(gpu)) {
                Some(verdict) => verdict.add(gpu, guard),
                None => judged.push(GpuVerdict {
                    label: gpu.label(),
                    gpu: Some(gpu.clone()),
                    services: guard.service.iter().cloned().collect(),
                    need: guard.need,
                    state: GpuState::Free,
                    may_miss: may_miss(snapshot, gpu).cloned(),
                    sentence: String::new(),
                    next_step: None,
                }),
            }
        }
    }
    for verdict in &mut judged {
        if let Some(gpu) = verdict.gpu.clone() {
            let is_its = |guard: &&&GpuGuard| named(gpus, &guard.name).contains(&&gpu);
            if guards.iter().filter(is_its).any(|guard| guard.service.is_none()) {
                others.iter().filter(is_its).for_each(|guard| verdict.add(&gpu, guard));
            }
            verdict.state = state(snapshot, &gpu, verdict);
            (verdict.sentence, verdict.next_step) = words(snapshot, gpus, &gpu, verdict, verdicts);
        }
    }
    judged
}

fn total(gpu: &Gpu) -> u64 {
    // Of the same order as real ones, where the GPU's own is not known.
    let memory = gpu.memory.known().copied().flatten();
    memory.map_or(64 << 30, |memory| memory.total_bytes)
}

/// Several services may name the same GPU that is not found.
fn add_not_found(judged: &mut Vec<GpuVerdict>, gpus: &Gpus, guard: &GpuGuard) {
    let Some(verdict) = not_found(gpus, guard) else { return };
    match judged.iter_mut().find(|other| other.gpu.is_none() && other.label == verdict.label) {
        Some(other) => other.services.extend(verdict.services),
        None => judged.push(verdict),
    }
}

/// Why a GPU of this name may be there, though none is seen to have it.
pub fn may_be_there(gpus: &Gpus, name: &GpuName) -> Option<String> {
    let without = |what: &str, lacks: fn(&Gpu) -> bool| {
        let nameless = gpus.all.iter().find(|gpu| lacks(gpu))?;
        Some(format!("the {what} of {} could not be read", nameless.label()))
    };
    let by_name = || match name {
        GpuName::All | GpuName::Index(_) => None,
        GpuName::Uuid(uuid) if uuid.starts_with("MIG-") => {
            // Which parts a GPU has is told by who tells its holders.
            gpus.all.iter().find_map(|gpu| gpu.may_miss.clone())
        }
        GpuName::Uuid(_) => {
            without("UUID", |gpu| gpu.vendor == GpuVendor::Nvidia && gpu.uuid.is_none())
        }
        GpuName::Bus(_) => without("PCI address", |gpu| gpu.bus.is_none()),
    };
    gpus.may_miss.clone().or_else(by_name)
}

/// A name that fits no GPU: none of that name is there, or it may be there unseen. That `all` are none is no finding.
fn not_found(gpus: &Gpus, guard: &GpuGuard) -> Option<GpuVerdict> {
    let (label, what) = match &guard.name {
        GpuName::All => ("GPUs".to_owned(), "which GPUs this host has".to_owned()),
        name @ (GpuName::Index(_) | GpuName::Bus(_)) => {
            (format!("GPU {name}"), format!("whether this host has GPU {name}"))
        }
        GpuName::Uuid(uuid) => (uuid.clone(), format!("whether this host has {uuid}")),
    };
    let (state, sentence, next_step) = match may_be_there(gpus, &guard.name) {
        Some(why) => {
            let remedy = gpus.trouble.iter().find_map(|trouble| trouble.remedy.clone());
            let unknown = Unknown { fact: what, why, remedy: remedy.clone() };
            (GpuState::Unknown(unknown.clone()), format!("not known: {unknown}"), remedy)
        }
        None if guard.name == GpuName::All => return None,
        None => {
            let there: Vec<String> = gpus.all.iter().map(described).collect();
            let next = match there.as_slice() {
                [] => "no GPU was found at all; 'portreeve doctor' says where it was looked for"
                    .to_owned(),
                there => format!("mend 'gpus:'; there are {}", there.join(", ")),
            };
            (GpuState::Absent, "this host has no such GPU".to_owned(), Some(next))
        }
    };
    let services = guard.service.iter().cloned().collect();
    Some(GpuVerdict {
        label,
        gpu: None,
        services,
        need: guard.need,
        state,
        may_miss: None,
        sentence,
        next_step,
    })
}

/// `GPU 0 (NVIDIA H200, GPU-…)`.
fn described(gpu: &Gpu) -> String {
    let name = gpu.uuid.as_ref().or(gpu.bus.as_ref());
    let known: Vec<&str> =
        [Some(gpu.name.as_str()).filter(|n| !n.is_empty()), name.map(String::as_str)]
            .into_iter()
            .flatten()
            .collect();
    if known.is_empty() { gpu.label() } else { format!("{} ({})", gpu.label(), known.join(", ")) }
}

fn state(snapshot: &Snapshot, gpu: &Gpu, verdict: &GpuVerdict) -> GpuState {
    let holders: BTreeSet<Pid> = holders(snapshot, gpu).map(|holding| holding.pid).collect();
    if !holders.is_empty() {
        return GpuState::Held(holders.into_iter().collect());
    }
    if let Some(why) = &verdict.may_miss {
        return GpuState::Unknown(Unknown {
            fact: format!("who holds {}", gpu.label()),
            why: why.clone(),
            remedy: None,
        });
    }
    match has_enough(gpu, verdict.need) {
        Ok(true) => GpuState::Free,
        Ok(false) => GpuState::Residual,
        Err(unknown) => GpuState::Unknown(unknown),
    }
}

/// Whether enough of its memory is free. Where the driver counts none, as far as memory goes.
pub(super) fn has_enough(gpu: &Gpu, need: GpuNeed) -> Result<bool, Unknown> {
    let unknown = |why: &str| Unknown {
        fact: format!("how much memory of {} is free", gpu.label()),
        why: why.to_owned(),
        remedy: None,
    };
    match &gpu.memory {
        Seen::Known(Some(memory)) => Ok(memory.free_bytes >= need.bytes_of(memory.total_bytes)),
        Seen::Known(None) => Ok(true),
        Seen::Gone => Err(unknown("the GPU is gone")),
        Seen::Denied => Err(unknown("permission denied")),
        Seen::Unreadable(why) => Err(unknown(why)),
    }
}

/// The sentence and the next step.
fn words(
    snapshot: &Snapshot,
    gpus: &Gpus,
    gpu: &Gpu,
    verdict: &GpuVerdict,
    verdicts: &[Verdict],
) -> (String, Option<String>) {
    let memory = match &gpu.memory {
        Seen::Known(Some(memory)) => free_of(*memory),
        Seen::Known(None) => "the driver does not count its memory".to_owned(),
        Seen::Gone | Seen::Denied | Seen::Unreadable(_) => "free memory not known".to_owned(),
    };
    let (sentence, next_step) = match &verdict.state {
        GpuState::Free | GpuState::Absent => (format!("nobody computes on it; {memory}"), None),
        GpuState::Held(pids) => {
            let named: Vec<String> =
                pids.iter().map(|pid| holder(snapshot, gpu, *pid, verdicts)).collect();
            let others = verdict.may_miss.as_ref();
            let others = others.map(|why| format!("; more may hold it: {why}")).unwrap_or_default();
            (format!("held by {}; {memory}{others}", named.join(", ")), None)
        }
        GpuState::Residual => residual(snapshot, gpu, verdict.need, &memory),
        GpuState::Unknown(unknown) => {
            let remedy = gpus.trouble.iter().find_map(|trouble| trouble.remedy.clone());
            (format!("not known: {unknown}"), unknown.remedy.clone().or(remedy))
        }
    };
    // A driver that hangs or fails is a finding of its own, though another way led to the answer.
    let is_asked = |source| source == gpu.source;
    let trouble: Vec<String> = gpus
        .trouble
        .iter()
        .filter(|trouble| trouble.source.tells_of(gpu.vendor) && !is_asked(trouble.source))
        .map(|trouble| format!("{} {}", trouble.source, trouble.why))
        .collect();
    if trouble.is_empty() {
        return (sentence, next_step);
    }
    (format!("{sentence}; told by {}, since {}", gpu.source, trouble.join(", and ")), next_step)
}

fn free_of(memory: GpuMemory) -> String {
    format!("{} of {} free", gibibytes(memory.free_bytes), gibibytes(memory.total_bytes))
}

/// `pid 4242 (orphan: worker without its server), 40.1 GiB`.
fn holder(snapshot: &Snapshot, gpu: &Gpu, pid: Pid, verdicts: &[Verdict]) -> String {
    let verdict = verdicts.iter().find(|verdict| verdict.key().pid == pid);
    let what = match (verdict, snapshot.processes.get(&pid)) {
        (Some(verdict), _) => format!("pid {pid} ({})", verdict.title()),
        (None, Some(process)) => format!("pid {pid} ({})", process.name),
        (None, None) => format!("pid {pid}"),
    };
    let holdings = || holders(snapshot, gpu).filter(|holding| holding.pid == pid);
    let memory = holdings().filter_map(|holding| holding.memory_bytes).max();
    let by_mps = if holdings().any(|h| h.kind == GpuUse::Mps) { " through MPS" } else { "" };
    match memory {
        Some(bytes) => format!("{what}{by_mps}, {}", gibibytes(bytes)),
        None => format!("{what}{by_mps}"),
    }
}

/// Memory that is taken, and nobody computes there: the driver's, what draws, or what is just being given back.
fn residual(
    snapshot: &Snapshot,
    gpu: &Gpu,
    need: GpuNeed,
    memory: &str,
) -> (String, Option<String>) {
    let users: Vec<String> = users(snapshot, gpu)
        .filter(|holding| holding.memory_bytes.is_some_and(|bytes| bytes > 0))
        .map(|holding| {
            let name = snapshot.processes.get(&holding.pid).map(|process| process.name.as_str());
            let bytes = gibibytes(holding.memory_bytes.unwrap_or_default());
            format!("{} (pid {}), {bytes}", name.unwrap_or("a process"), holding.pid)
        })
        .collect();
    let total = gpu.memory.known().copied().flatten().map_or(0, |memory| memory.total_bytes);
    let needed = gibibytes(need.bytes_of(total));
    if need.bytes_of(total) > total {
        let next = format!("no such amount ({needed}) fits on it: mend 'gpu_free:'");
        return (format!("{memory}, and {needed} are asked for"), Some(next));
    }
    if users.is_empty() {
        return (
            format!("{memory}, {needed} needed: the rest is taken, and no process has it"),
            Some(format!(
                "if something has just ended, ask again in some seconds; if it stays, only the driver can free it: {}",
                reset(gpu)
            )),
        );
    }
    let next =
        "they only draw, or serve the GPU itself: lower 'gpu_free:', or stop them".to_owned();
    (
        format!("{memory}, {needed} needed; nobody computes on it, but {}", users.join(", ")),
        Some(next),
    )
}

fn reset(gpu: &Gpu) -> String {
    match gpu.vendor {
        GpuVendor::Nvidia => {
            format!("stop what uses it, then 'nvidia-smi --gpu-reset -i {}', or reboot", gpu.index)
        }
        GpuVendor::Amd | GpuVendor::Intel => "stop what uses it and reboot".to_owned(),
    }
}

/// The GPUs that services in scope and the command line name.
pub fn guards(settings: &Settings, is_in_scope: impl Fn(&ServiceName) -> bool) -> Vec<GpuGuard> {
    let services = settings.services.iter().filter(|service| is_in_scope(&service.name));
    services
        .flat_map(|service| {
            service.gpus.iter().map(|name| GpuGuard {
                name: name.clone(),
                service: Some(service.name.clone()),
                need: service.gpu_free,
            })
        })
        .collect()
}
