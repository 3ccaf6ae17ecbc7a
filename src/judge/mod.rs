//! Facts → verdicts. Pure: no I/O, no clock, no logging.

pub mod case;
pub mod container;
pub mod explain;
pub mod gate;
pub mod gpu;
pub mod orphan;
pub mod port;
pub mod receipt;
pub mod truth;
pub mod verdict;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::settings::{ForeignHolder, Settings},
    ident::{Endpoint, EngineKind, GpuName, Pid, ProcessKey, ServiceName},
    snapshot::{Process, Snapshot, SocketState},
};

use case::{Case, Guard, Held, HeldGpu};
use gpu::{GpuGuard, GpuVerdict};
use port::PortVerdict;
use truth::{Truth, fact};
use verdict::{ContainerRef, Finding, Row, Seal, Spare, Unknown, Verdict};

/// Which gentle verdicts the caller wants ended as well, `--also`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one per flag")]
pub struct Also {
    /// Suspects.
    pub abandoned: bool,
    /// Processes in a session.
    pub session: bool,
    /// Foreign holders of the ports that the command line names.
    pub foreign: bool,
    /// Containers that run without a supervisor: stopped by their engine.
    pub unsupervised: bool,
}

/// What the caller asked for.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// The guarded ports that were looked at: a process that holds a port of another service is not the one that
    /// is meant, though it matches a pattern.
    pub guards: Vec<Guard>,
    /// The guarded GPUs that were looked at.
    pub gpus: Vec<GpuGuard>,
    /// Services that the command line names.
    pub named_services: Vec<ServiceName>,
    /// Ports that the command line names.
    pub named_ports: Vec<Endpoint>,
    /// GPUs that the command line names.
    pub named_gpus: Vec<GpuName>,
    /// What is ended beside orphans.
    pub also: Also,
    /// When this run began, if it ends processes: what was started since was brought back by somebody, and
    /// ending it again would not help.
    pub began_ticks: Option<u64>,
    /// Processes that this run has ended.
    pub ended: Vec<Ended>,
}

impl Terms {
    /// Whether the command line narrows the question to less than the settings.
    fn is_narrow(&self) -> bool {
        !self.named_services.is_empty()
            || !self.named_ports.is_empty()
            || !self.named_gpus.is_empty()
    }

    /// Whether this port is one of those that the question is about.
    pub(crate) fn is_asked_about(&self, guard: &Guard) -> bool {
        !self.is_narrow()
            || guard.service.as_ref().is_some_and(|name| self.named_services.contains(name))
            || self.named_ports.contains(&guard.endpoint)
    }

    fn is_gpu_asked_about(&self, guard: &GpuGuard) -> bool {
        !self.is_narrow()
            || guard.service.as_ref().is_some_and(|name| self.named_services.contains(name))
            || self.named_gpus.contains(&guard.name)
    }

    /// A process of the question: by a port or GPU that it asks about, else by a pattern or a receipt of a service that it
    /// names, where no port of another service is held.
    fn concerns(&self, case: &Case<'_>) -> Truth {
        let is_named = |name: &ServiceName| self.named_services.contains(name);
        let is_meant = || {
            case.by_command_line(|| case.matched.iter().any(|(s, _)| is_named(&s.name)))
                .or(|| case.service_by_receipt().is_some_and(|s| is_named(&s.name)).into())
                .or(|| !case.by_command_line(|| !case.matched.is_empty()))
        };
        Truth::from(!self.is_narrow())
            .or(|| case.held.gpus.iter().any(|held| self.is_gpu_asked_about(held.guard)).into())
            .or(|| case.holds(|guard| self.named_ports.contains(&guard.endpoint)))
            .or(|| case.holds_ports_of(is_named))
            .or(|| (!case.holds(|_| true)).and(is_meant))
    }
}

/// A process that this run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its session.
    pub session: Pid,
    /// When it was gone, in ticks since boot.
    pub at_ticks: u64,
}

/// All verdicts of one look.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// One per guard.
    pub ports: Vec<PortVerdict>,
    /// One per guarded GPU.
    pub gpus: Vec<GpuVerdict>,
    /// One per candidate.
    pub verdicts: Vec<Verdict>,
    /// What could not be seen beyond them.
    pub unknowns: Vec<Unknown>,
}

/// Judges every candidate and every guarded port.
pub fn judge(snapshot: &Snapshot, settings: &Settings, terms: &Terms) -> Judgement {
    let verdicts: Vec<Verdict> = candidates(snapshot, terms)
        .into_iter()
        .filter_map(|(pid, held)| {
            let process = snapshot.processes.get(&pid)?;
            let case = Case::new(snapshot, settings, process, held);
            let is_asked_about = terms.concerns(&case).and(|| !is_named_by_mistake(&case));
            (is_asked_about != Truth::No).then(|| verdict_on(&case, terms, is_asked_about))
        })
        .collect();
    let guards = terms.guards.iter().filter(|guard| terms.is_asked_about(guard));
    let ports = guards.map(|guard| port::judge(snapshot, guard, &verdicts)).collect();
    let (guards, others): (Vec<&GpuGuard>, Vec<&GpuGuard>) =
        terms.gpus.iter().partition(|guard| terms.is_gpu_asked_about(guard));
    let gpus = gpu::judge(snapshot, &guards, &others, &verdicts);
    let unknowns = unknowns(snapshot, settings, &verdicts);
    Judgement { ports, gpus, verdicts, unknowns }
}

/// Nothing but a receipt leads to it, and that turns out to be about another process.
fn is_named_by_mistake(case: &Case<'_>) -> Truth {
    let Some(receipt) = case.receipt else { return Truth::No };
    (!case.is_of(receipt))
        .and(|| (!case.has_pattern()).and(|| !case.holds(|_| true)))
        .and(|| case.held.gpus.is_empty().into())
}

/// Every process that a port, a GPU, a pattern, a receipt or the question itself nominates.
fn candidates<'a>(snapshot: &'a Snapshot, terms: &'a Terms) -> BTreeMap<Pid, Held<'a>> {
    let unread = unread_sockets(snapshot);
    let mut holds: BTreeMap<Pid, Held<'_>> = BTreeMap::new();
    for &pid in &snapshot.matching {
        holds.entry(pid).or_default();
    }
    for guard in &terms.guards {
        for (pid, is_on) in holders_of(snapshot, guard) {
            let held = holds.entry(pid).or_default();
            match is_on {
                Truth::Yes if !held.ports.contains(&guard) => held.ports.push(guard),
                Truth::Yes | Truth::No => {}
                Truth::Unknown(unknown) => held.unsure = Some(unknown),
            }
        }
    }
    for guard in terms.gpus.iter().filter(|guard| terms.is_gpu_asked_about(guard)) {
        let gpus = snapshot.gpus.iter().flat_map(|gpus| gpu::named(gpus, &guard.name));
        for gpu in gpus {
            for holding in gpu::holders(snapshot, gpu) {
                let memory_bytes = holding.memory_bytes;
                let held = HeldGpu { gpu, guard, memory_bytes };
                holds.entry(holding.pid).or_default().gpus.push(held);
            }
        }
    }
    for (pid, held) in &mut holds {
        let own = || unread_descriptors(snapshot, terms, *pid);
        held.unsure = held.unsure.take().or_else(|| unread.clone()).or_else(own);
    }
    holds
}

/// What keeps us from knowing what this process holds, where there is something to hold.
fn unread_descriptors(snapshot: &Snapshot, terms: &Terms, pid: Pid) -> Option<Unknown> {
    let sockets = snapshot.sockets.known()?;
    let is_taken = |guard: &Guard| {
        let mut servers = sockets
            .all
            .iter()
            .filter(|socket| matches!(socket.state, SocketState::Listening | SocketState::Bound));
        servers.any(|socket| port::is_on(socket, &guard.endpoint) != Truth::No)
    };
    (sockets.unread.contains(&pid) && terms.guards.iter().any(is_taken)).then(|| Unknown {
        fact: format!("which ports pid {pid} holds"),
        why: "its descriptors could not be read".to_owned(),
        remedy: Some("run it as root, or once more, if it is".to_owned()),
    })
}

/// Who holds a guarded port as a server, or may: who only has a connection is no candidate.
fn holders_of<'a>(
    snapshot: &'a Snapshot,
    guard: &'a Guard,
) -> impl Iterator<Item = (Pid, Truth)> + 'a {
    let sockets = snapshot.sockets.known().map(|s| s.all.as_slice()).unwrap_or_default();
    sockets.iter().flat_map(move |socket| {
        let is_server = match socket.state {
            SocketState::Listening | SocketState::Bound => Truth::Yes,
            // Whose end of a connection this is, a client's or a server's, nothing tells for sure.
            SocketState::Connected(_) | SocketState::Lingering => Truth::No,
        };
        let is_held = is_server.and(|| port::is_on(socket, &guard.endpoint));
        let holders = snapshot.holders(socket.inode).filter({
            let is_held = is_held.clone();
            move |_| is_held != Truth::No
        });
        holders.map(move |pid| (pid, is_held.clone()))
    })
}

/// What keeps us from knowing who holds what.
fn unread_sockets(snapshot: &Snapshot) -> Option<Unknown> {
    let name = || "the sockets on the guarded ports".to_owned();
    match fact(&snapshot.sockets, name, |_| Truth::Yes) {
        Truth::Unknown(unknown) => Some(unknown),
        Truth::Yes | Truth::No => None,
    }
}

fn verdict_on(case: &Case<'_>, terms: &Terms, is_asked_about: Truth) -> Verdict {
    let decision = orphan::decide(case);
    let (mut finding, mut reason) = (decision.finding, decision.reason);
    let youth = youth(case, terms);
    if let (Finding::Orphan(_) | Finding::Suspect | Finding::Unsupervised(_), Some(unknown)) =
        (&finding, youth.clone())
    {
        reason = format!("too young to judge: {}", unknown.why);
        finding = Finding::Undecided(unknown);
    }
    let is_sure = is_asked_about == Truth::Yes;
    let may_be_ended = match &finding {
        Finding::Orphan(_) | Finding::Suspect | Finding::Foreign | Finding::Unsupervised(_) => true,
        Finding::Spare(_) | Finding::Undecided(_) => false,
    };
    if let (true, Truth::Unknown(unknown)) = (may_be_ended, is_asked_about) {
        reason = format!("it may be another service's, which was not asked about: {unknown}");
        finding = Finding::Undecided(unknown);
    }
    let is_wanted = match &finding {
        Finding::Orphan(_) => true,
        Finding::Suspect => terms.also.abandoned,
        // Somebody's session: only for what is surely meant, not for an editor that has the file open.
        Finding::Spare(Spare::Session(_)) => {
            let is_meant = case.held.ports.iter().any(|guard| terms.is_asked_about(guard))
                || case.matched.iter().any(|(_, p)| p.is_portless);
            terms.also.session && decision.is_certain && is_meant
        }
        Finding::Unsupervised(_) => terms.also.unsupervised,
        Finding::Spare(_) | Finding::Undecided(_) => false,
        Finding::Foreign => {
            let is_named = |g: &&Guard| terms.named_ports.contains(&g.endpoint);
            (terms.also.foreign && case.held.ports.iter().any(is_named))
                || (case.are_owners_known() == Truth::Yes
                    && case.services_by_port().any(|s| s.foreign_holder == ForeignHolder::Reap))
        }
    };
    Verdict {
        process: case.process.clone(),
        next_step: next_step(&finding, case),
        finding,
        row: decision.row,
        services: case.services().iter().map(|s| s.name.clone()).collect(),
        ports: case.held.ports.iter().map(|g| g.endpoint).collect(),
        gpus: case.gpu_shares(),
        reason,
        evidence: evidence(case),
        grace: grace(case),
        is_convicted: is_wanted && is_sure && youth.is_none(),
        seal: Seal,
    }
}

/// Why the process is too young to be convicted. A server's age speaks for the children that share its port,
/// and what the ended forked before they went is as old as they were.
fn youth(case: &Case<'_>, terms: &Terms) -> Option<Unknown> {
    let unknown = |why: String, remedy: Option<String>| {
        let fact = format!("the age of pid {}", case.process.key.pid);
        Some(Unknown { fact, why, remedy })
    };
    let min_age = case.settings.defaults.min_age;
    let Some(age) = case.snapshot.clock.age(case.oldest_start()) else {
        return unknown("the clock could not be read".to_owned(), None);
    };
    if is_heir(case, terms) {
        return None;
    }
    if terms.began_ticks.is_some_and(|began| case.process.key.start_ticks >= began) {
        return unknown("it was started after this run began".to_owned(), None);
    }
    if age < min_age {
        let left = min_age.saturating_sub(age);
        return unknown(
            format!("it is {} old, and min_age is {}", seconds(age), seconds(min_age)),
            Some(format!("run again in {}", seconds(left))),
        );
    }
    None
}

/// Forked by a process that this run has ended, before its end: of its session, and taken by a reaper since.
/// What a living launcher starts anew has that launcher for its parent.
fn is_heir(case: &Case<'_>, terms: &Terms) -> bool {
    let process = case.process;
    let inherits = |e: &Ended| e.session == process.session && process.key.start_ticks < e.at_ticks;
    process.session != Pid::OUTSIDE
        && terms.ended.iter().any(inherits)
        && case.is_parent_reaper() == Truth::Yes
}

fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 || time.as_secs() >= 10 {
        format!("{} s", time.as_secs())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

fn grace(case: &Case<'_>) -> Duration {
    case.worker
        .map(|w| w.grace)
        .or_else(|| case.services().first().map(|s| s.grace))
        .unwrap_or(case.settings.defaults.grace)
}

fn evidence(case: &Case<'_>) -> Vec<String> {
    let process = case.process;
    let mut evidence = Vec::new();
    if let Some(age) = case.age() {
        evidence.push(format!("it is {} old", seconds(age)));
    }
    let is_gone = |leader: Pid| {
        leader != Pid::OUTSIDE
            && leader != process.key.pid
            && !case.snapshot.processes.contains_key(&leader)
    };
    if is_gone(process.session) {
        evidence.push(format!("the leader of its session (pid {}) is dead", process.session));
    } else if is_gone(process.group) {
        evidence.push(format!("the leader of its process group (pid {}) is dead", process.group));
    }
    if process.is_root_deleted {
        evidence.push("its root directory was deleted".to_owned());
    }
    if let Some(sockets) = case.snapshot.sockets.known() {
        let holds = |inode: u64| case.snapshot.holders(inode).any(|pid| pid == process.key.pid);
        if sockets.creator_gone.iter().any(|&inode| holds(inode)) {
            evidence.push("the control group that created its socket is gone".to_owned());
        }
    }
    evidence
}

/// What a command line names to mean this process, the narrowest first: a port that it holds, a GPU, a service, all.
fn targets(case: &Case<'_>) -> Vec<Target> {
    let ports = case.held.ports.iter().map(|guard| Target::Port(guard.endpoint));
    let gpus = case.held.gpus.iter().map(|held| Target::Gpu(held.gpu.command_name()));
    let services = case.services().into_iter().map(|service| Target::Service(service.name.clone()));
    ports.chain(gpus).chain(services).chain([Target::All]).collect()
}

/// What the words of a command line mean.
#[derive(Debug, Clone)]
enum Target {
    Port(Endpoint),
    Gpu(GpuName),
    Service(ServiceName),
    All,
}

/// The `reap` of a target, with what else it is to end.
fn command(target: &Target, also: Option<&str>) -> String {
    let target = match target {
        Target::Port(endpoint) => format!(" --port {}", endpoint.short()),
        Target::Gpu(name) => format!(" --gpu {name}"),
        Target::Service(name) => format!(" {name}"),
        Target::All => String::new(),
    };
    let also = also.map(|kind| format!(" --also {kind}")).unwrap_or_default();
    format!("portreeve reap{target}{also}")
}

fn next_step(finding: &Finding, case: &Case<'_>) -> Option<String> {
    let pid = case.process.key.pid;
    let service = case.services().first().copied();
    let target = targets(case).into_iter().next().unwrap_or(Target::All);
    let by = |kind| command(&target, Some(kind));
    match finding {
        Finding::Suspect => Some(match service {
            Some(service) if service.runs_in.is_none() => format!(
                "declare where it runs ('runs_in:' of {}), or '{}'",
                service.name,
                by("abandoned")
            ),
            Some(_) | None => format!("'{}' ends it", by("abandoned")),
        }),
        Finding::Foreign => Some(match case.held.ports.first() {
            Some(_) => format!("stop it where it was started, or '{}'", by("foreign")),
            None => format!("stop pid {pid} where it was started"),
        }),
        Finding::Undecided(unknown) => unknown.remedy.clone(),
        Finding::Unsupervised(container) => {
            let ContainerRef { engine, name, .. } = container;
            let mend = match engine.kind {
                EngineKind::Docker => format!("'docker restart {name}' brings its monitor back"),
                // Podman 4.3 cannot start again what lost its conmon [tried].
                EngineKind::Podman => format!("'podman rm -f {name}' and make it anew"),
            };
            let whose = match engine.owner {
                0 => String::new(),
                uid => format!("as uid {uid}: "),
            };
            Some(format!("{whose}{mend}; or '{}' stops it", by("unsupervised")))
        }
        // `portreeve reap` ends an orphan; the report says so once, at its end.
        Finding::Orphan(_) | Finding::Spare(_) => None,
    }
}

/// What bears on more than one verdict; the remedy stands here once.
fn unknowns(snapshot: &Snapshot, settings: &Settings, verdicts: &[Verdict]) -> Vec<Unknown> {
    let mut unknowns: Vec<Unknown> = settings.unread_models.iter().map(Unknown::from).collect();
    let as_root = Some("run it as root: 'sudo portreeve scan'".to_owned());
    let rights = || as_root.clone().filter(|_| !snapshot.sight.may_see_all);
    if let Some(unknown) = unread_sockets(snapshot) {
        unknowns.push(Unknown { remedy: rights(), ..unknown });
    }
    if snapshot.sight.is_proc_hidden {
        unknowns.push(Unknown {
            fact: "the processes of other users".to_owned(),
            why: "/proc is mounted with hidepid, and this run lacks CAP_SYS_PTRACE".to_owned(),
            remedy: as_root.clone(),
        });
    }
    if let Some((pid, why)) = snapshot.unread.first() {
        let fact = match snapshot.unread.len() {
            1 if *pid == Pid::OUTSIDE => "the processes of this host".to_owned(),
            1 => format!("process {pid}"),
            n => format!("{n} processes, pid {pid} among them"),
        };
        unknowns.push(Unknown { fact, why: why.clone(), remedy: rights() });
    }
    let refused = snapshot.sockets.known().map_or(0, |s| s.refused);
    let is_blind =
        refused > 0 || verdicts.iter().any(|v| matches!(v.finding, Finding::Undecided(_)));
    if is_blind && !snapshot.sight.may_see_all && !snapshot.sight.is_proc_hidden {
        let whose = match refused {
            0 => "some facts about other users' processes".to_owned(),
            n => format!("the descriptors of {n} processes"),
        };
        unknowns.push(Unknown {
            fact: whose,
            why: "this run lacks CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH".to_owned(),
            remedy: as_root,
        });
    }
    unknowns
}

impl Judgement {
    /// Which processes `reap` would end, by key and row: what a second look must find again.
    pub fn convicted(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts.iter().filter(|v| v.is_convicted)
    }

    /// The verdict on this very process by this very row.
    pub fn confirms(&self, key: ProcessKey, row: Row) -> bool {
        self.convicted().any(|v| v.key().is_same(&key) && v.row == row)
    }
}

/// How a process is named to a person: its command line, or its name where that is empty or unread.
pub fn display_name(process: &Process) -> String {
    match process.command_line.known() {
        Some(line) if !line.text.is_empty() => String::from_utf8_lossy(&line.text).into_owned(),
        Some(_) | None => format!("[{}]", process.name),
    }
}

#[cfg(test)]
mod tests;
