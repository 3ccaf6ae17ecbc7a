//! Every fact in words, each with where it was read.

use std::fmt::Debug;

use schemars::JsonSchema;
use serde::Serialize;

use super::super::title_of;
use crate::{
    ident::{ContainerId, Pid},
    judge::{explain::Explanation, gpu::GpuVerdict, verdict::Verdict},
    pipeline::Explained,
    snapshot::{
        Container, Containers, Enclosure, Gpu, GpuHolding, GpuUse, Process, Seen, Snapshot,
        gibibytes,
    },
};

/// One fact in words, and where it was read.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Fact {
    /// What it is about.
    pub(super) name: &'static str,
    /// What was seen, or why it was not.
    pub(super) value: String,
    /// The kernel file, the manager, or the settings that it comes from.
    pub(super) source: String,
    #[serde(skip)]
    #[schemars(skip)]
    pub(super) rank: Rank,
}

/// Where a person reads a fact, who does not ask for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// In the first lines, or it goes without saying.
    Told,
    /// On a line of its own.
    Shown,
    /// It says that something is not so: among the others of its kind, in these words.
    Absent(&'static str),
}

fn seen<T>(seen: &Seen<T>, show: impl FnOnce(&T) -> String) -> String {
    match seen {
        Seen::Known(value) => show(value),
        Seen::Gone => "not known: it was gone when it was read".to_owned(),
        Seen::Denied => "not known: permission denied".to_owned(),
        Seen::Unreadable(why) => format!("not known: {why}"),
    }
}

fn shown(value: impl Debug) -> String {
    format!("{value:?}")
}

pub(super) fn of_pid(snapshot: &Snapshot, pid: Pid) -> String {
    match (pid, snapshot.processes.get(&pid)) {
        (Pid::OUTSIDE, _) => "outside our pid namespace".to_owned(),
        (_, Some(process)) => format!("pid {pid} ({})", process.name),
        (_, None) => format!("pid {pid}, which is gone"),
    }
}

/// `alice (uid 1000)`. A container's users are not this host's, whatever their numbers.
pub(super) fn user(explained: &Explained, process: &Process, uid: u32) -> String {
    let has_layer = |e: &Enclosure| e.layer.known().is_some_and(Option::is_some);
    let is_contained = process.has_claim()
        || process.is_in_nested_namespace()
        || process.enclosure.as_ref().is_some_and(has_layer);
    match explained.users.get(&uid).filter(|_| !is_contained) {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Every fact about one process, in the order in which the table asks for them.
pub(super) fn facts(explained: &Explained, explanation: &Explanation) -> Vec<Fact> {
    let Explanation { verdict, receipt, .. } = explanation;
    let snapshot = &explained.snapshot;
    let process = &verdict.process;
    let pid = process.key.pid;
    let file = |name: &str| format!("/proc/{pid}/{name}");
    let mut facts = Vec::new();
    let mut add = |rank, name, value: String, source: String| {
        facts.push(Fact { name, value, source, rank });
    };
    let absent = |is_absent, words| if is_absent { Rank::Absent(words) } else { Rank::Shown };
    let line = String::from_utf8_lossy(&title_of(process)).into_owned();
    add(Rank::Told, "command line", line, file("cmdline"));
    add(
        Rank::Shown,
        "executable",
        seen(&process.exe, |exe| exe.display().to_string()),
        file("exe"),
    );
    let name = seen(&process.uid, |uid| user(explained, process, *uid));
    add(Rank::Told, "user", name, file("status"));
    let age = snapshot.clock.age(process.key.start_ticks);
    let age = age.map_or("not known".to_owned(), |age| format!("{} s", age.as_secs()));
    add(Rank::Told, "age", age, format!("{}, /proc/uptime", file("stat")));
    add(Rank::Told, "parent", of_pid(snapshot, process.parent), file("stat"));
    for (name, leader) in [("session leader", process.session), ("group leader", process.group)] {
        let rank = if leader == pid { Rank::Told } else { Rank::Shown };
        add(rank, name, of_pid(snapshot, leader), file("stat"));
    }
    let terminal = process.terminal.map_or("none".to_owned(), |terminal| terminal.to_string());
    let rank = absent(process.terminal.is_none(), "terminal");
    add(rank, "terminal", terminal, file("stat"));
    let tracer = seen(&process.tracer, |tracer| {
        tracer.map_or("nobody".to_owned(), |tracer| of_pid(snapshot, tracer))
    });
    let rank = absent(process.tracer == Seen::Known(None), "tracer");
    add(rank, "traced by", tracer, file("status"));
    let namespaces = seen(&process.namespace_pids, |pids| match pids.as_slice() {
        [_] => "that of the observer".to_owned(),
        pids => format!("one of its own; its pids from here inwards: {}", shown(pids)),
    });
    let is_ours = process.namespace_pids.known().is_some_and(|pids| pids.len() == 1);
    let rank = absent(is_ours, "pid namespace of its own");
    add(rank, "pid namespace", namespaces, file("status"));
    if process.is_root_deleted {
        add(Rank::Shown, "root directory", "deleted".to_owned(), file("root"));
    }
    add(Rank::Shown, "control group", seen(&process.cgroup, |c| c.path.clone()), file("cgroup"));
    add_container(snapshot, verdict, &mut add);
    add_membership(explained, process, &mut add);
    if let Some(id) = &process.invocation_id {
        let id = seen(id, |id| id.clone().unwrap_or_else(|| "none".to_owned()));
        add(Rank::Shown, "invocation id", id, file("environ"));
    }
    if let Some(receipt) = receipt {
        let source = "the registry of models".to_owned();
        add(Rank::Shown, "receipt", receipt.clone(), source);
    }
    add_sockets(snapshot, process, &mut add);
    for share in &verdict.gpus {
        add(Rank::Shown, "computes on", share.to_string(), "the GPU's driver".to_owned());
    }
    let services: Vec<&str> = verdict.services.iter().map(|s| s.0.as_str()).collect();
    let services = if services.is_empty() { "none".to_owned() } else { services.join(", ") };
    let source = "the settings: its patterns and ports".to_owned();
    add(Rank::Told, "services", services, source);
    facts
}

/// What was seen of a GPU, and of its parts where it is split.
pub(super) fn gpu_facts(verdict: &GpuVerdict, snapshot: &Snapshot) -> Vec<Fact> {
    let Some(gpu) = &verdict.gpu else { return Vec::new() };
    let source = gpu.source.to_string();
    let mut facts = Vec::new();
    let mut add = |name, value: String| {
        facts.push(Fact { name, value, source: source.clone(), rank: Rank::Shown });
    };
    let maker = format!("{} {}", gpu.vendor, gpu.name.trim_start_matches("NVIDIA "));
    add("what", maker.trim_end().to_owned());
    for (name, value) in [("uuid", &gpu.uuid), ("bus", &gpu.bus)] {
        if let Some(value) = value {
            add(name, value.clone());
        }
    }
    if gpu.is_split {
        add("split", "into parts by MIG, which have the processes and the memory".to_owned());
    }
    let memory = match &gpu.memory {
        Seen::Known(Some(memory)) => {
            let needed = gibibytes(verdict.need.bytes_of(memory.total_bytes));
            format!("{}, {needed} needed", memory_of(gpu))
        }
        Seen::Known(None) | Seen::Gone | Seen::Denied | Seen::Unreadable(_) => memory_of(gpu),
    };
    add("memory", memory);
    for holding in &gpu.holdings {
        add("used by", used_by(holding));
    }
    let all = snapshot.gpus.iter().flat_map(|gpus| &gpus.all).filter(|_| gpu.is_split);
    for part in all.filter(|part| part.index == gpu.index && part.part.is_some()) {
        let uuid = part.uuid.as_deref().unwrap_or("without a UUID");
        add("part", format!("{} ({uuid}): {}", part.label(), memory_of(part)));
        for holding in &part.holdings {
            add("used by", format!("{}, on {}", used_by(holding), part.label()));
        }
    }
    if let Some(why) = &verdict.may_miss {
        add("may be missing", format!("holders: {why}"));
    }
    facts
}

fn memory_of(gpu: &Gpu) -> String {
    seen(&gpu.memory, |memory| match memory {
        Some(memory) => {
            format!("{} free of {}", gibibytes(memory.free_bytes), gibibytes(memory.total_bytes))
        }
        None => "the driver does not count it".to_owned(),
    })
}

fn used_by(GpuHolding { pid, kind, memory_bytes }: &GpuHolding) -> String {
    let how = match kind {
        GpuUse::Compute => "computes",
        GpuUse::Mps => "computes through MPS",
        GpuUse::Graphics => "draws",
    };
    let memory = memory_bytes.map_or("memory not counted".to_owned(), gibibytes);
    format!("pid {pid} {how}, {memory}")
}

/// What namespaces and mounts say of its container, and what the engines say that were asked.
fn add_container(
    snapshot: &Snapshot,
    verdict: &Verdict,
    add: &mut impl FnMut(Rank, &'static str, String, String),
) {
    let process = &verdict.process;
    let Some(enclosure) = &process.enclosure else { return };
    let file = |name: &str| format!("/proc/{}/{name}", process.key.pid);
    let layer = seen(&enclosure.layer, |layer| match layer {
        Some(path) => path.display().to_string(),
        None => "in no overlay but the host's own".to_owned(),
    });
    // A unit's private mounts are a mount namespace too, and no container.
    let has_layer = enclosure.layer.known().is_some_and(Option::is_some);
    let is_contained = process.has_claim() || process.is_in_nested_namespace() || has_layer;
    let rank = if is_contained { Rank::Shown } else { Rank::Told };
    add(rank, "root directory", layer, file("mountinfo"));
    let number = seen(&enclosure.pid_namespace, ToString::to_string);
    add(Rank::Told, "number of its pid namespace", number, file("ns/pid"));
    let owner = seen(&enclosure.owner, |uid| format!("uid {uid}"));
    add(rank, "made by", owner, file("ns/user"));
    let claim = process.cgroup.known().and_then(|c| c.claim.as_ref());
    let is_its = |id: &ContainerId, said: &Seen<Container>| {
        let has_root =
            |c: &Container| c.upper_dir.is_some() && enclosure.layer.known() == Some(&c.upper_dir);
        let publishes = |c: &Container| {
            c.published.iter().any(|p| verdict.ports.iter().any(|e| e.port == p.port))
        };
        claim.is_some_and(|claim| claim.id == *id)
            || said.known().is_some_and(|c| has_root(c) || publishes(c))
    };
    for ((engine, id), said) in &snapshot.containers.said {
        if is_its(id, said) {
            let words = match said {
                Seen::Gone => format!("{engine} does not know {}", id.short()),
                said @ (Seen::Known(_) | Seen::Denied | Seen::Unreadable(_)) => {
                    seen(said, |c| container(c, &snapshot.containers))
                }
            };
            add(Rank::Shown, "container", words, format!("{engine} inspect {}", id.short()));
        }
    }
    for (engine, listed) in &snapshot.containers.listed {
        if !matches!(listed, Seen::Known(())) {
            let why = seen(listed, |()| String::new());
            add(Rank::Shown, "containers", why, format!("{engine} ps --all"));
        }
    }
    for (engine, store) in &snapshot.containers.stores {
        let store = seen(store, |s| format!("{} ({})", s.root.display(), s.driver));
        add(Rank::Shown, "store", store, format!("{engine} info"));
    }
}

/// One container in words.
fn container(container: &Container, containers: &Containers) -> String {
    let Container { name, state, restarts, restart_policy, health, .. } = container;
    let main = match container.main_pid {
        None => "no main process".to_owned(),
        Some(pid) => match containers.namespaces.get(&pid) {
            Some(Seen::Gone) => format!("main process {pid}, which is gone"),
            Some(Seen::Known(number)) => format!("main process {pid} in pid namespace {number}"),
            Some(Seen::Denied | Seen::Unreadable(_)) | None => format!("main process {pid}"),
        },
    };
    let policy = restart_policy.as_ref().map(|p| format!(" by policy '{p}'")).unwrap_or_default();
    let restarted = match restarts {
        0 => String::new(),
        times => format!(", restarted {times} times{policy}"),
    };
    let health = health.as_ref().map(|health| format!(", {health}")).unwrap_or_default();
    format!("{name}: {state}, {main}{restarted}{health}")
}

/// What its control group says that it is a member of, and what the managers say of that.
fn add_membership(
    explained: &Explained,
    process: &Process,
    add: &mut impl FnMut(Rank, &'static str, String, String),
) {
    let snapshot = &explained.snapshot;
    let Some(cgroup) = process.cgroup.known() else { return };
    let file = format!("/proc/{}/cgroup", process.key.pid);
    let claim = cgroup.claim.as_ref();
    let rank = if claim.is_some() { Rank::Shown } else { Rank::Absent("container claim") };
    let claim =
        claim.map_or("none".to_owned(), |c| format!("{:?} container {}", c.kind, c.id.short()));
    add(rank, "container claim", claim, file.clone());
    let unit = cgroup.unit.as_ref();
    add(Rank::Told, "unit", unit.map_or("none".to_owned(), ToString::to_string), file);
    if let Some((unit, state)) = unit.and_then(|u| Some((u, snapshot.units.get(u)?))) {
        let state = seen(state, |unit| {
            let main =
                unit.main_pid.map_or("no main pid".to_owned(), |pid| format!("main pid {pid}"));
            let mode = unit.kill_mode.as_ref().map(|mode| format!(", KillMode={mode}"));
            let delegated = if unit.is_delegated { ", Delegate=yes" } else { "" };
            let mode = mode.unwrap_or_default();
            format!("{}, {main}{mode}{delegated}", unit.state())
        });
        add(Rank::Shown, "unit's state", state, format!("systemd: {unit}"));
    }
    if let Some(id) = &cgroup.session {
        let state = snapshot.sessions.get(id).map(|s| seen(s, Clone::clone)).unwrap_or_default();
        add(Rank::Told, "login session", format!("{id}, {state}"), "logind".to_owned());
    }
    let own = process.uid.known().copied();
    let users = own.into_iter().chain(cgroup.session_user.filter(|uid| Some(*uid) != own));
    let lingers: Vec<String> = users
        .filter_map(|uid| {
            let lingers = seen(snapshot.lingering.get(&uid)?, |yes| yes_or_no(*yes).to_owned());
            Some(format!("{}: {lingers}", user(explained, process, uid)))
        })
        .collect();
    if !lingers.is_empty() {
        add(Rank::Shown, "lingers", lingers.join("; "), "logind".to_owned());
    }
}

fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn add_sockets(
    snapshot: &Snapshot,
    process: &Process,
    add: &mut impl FnMut(Rank, &'static str, String, String),
) {
    let Some(sockets) = snapshot.sockets.known() else {
        let why = seen(&snapshot.sockets, |_| String::new());
        return add(Rank::Shown, "sockets", why, "socket diagnostics".to_owned());
    };
    for holding in sockets.holdings.iter().filter(|h| h.pid == process.key.pid) {
        for socket in sockets.all.iter().filter(|s| s.inode == holding.inode) {
            let is_left = sockets.creator_gone.contains(&socket.inode);
            let creator = if is_left { ", made in a control group that is gone" } else { "" };
            let state = shown(socket.state).to_lowercase();
            let value = format!(
                "{}/{} on {}, {state}, inode {}{creator}",
                socket.port, socket.proto, socket.address, socket.inode
            );
            let source = match &holding.link {
                Some(link) => format!("socket diagnostics, /proc/{link}"),
                None => "socket diagnostics, io_uring's fdinfo".to_owned(),
            };
            add(Rank::Shown, "socket", value, source);
        }
    }
}
