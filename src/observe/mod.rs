//! Host → snapshot, reading only what the question needs. Changes nothing.

pub mod bind;
pub mod cgroup;
pub mod containers;
pub mod dbus;
pub mod diag;
pub mod gpus;
pub mod holders;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod listeners;
pub mod nat;
mod netlink;
pub mod processes;
mod reader;
pub mod receipts;
pub mod settling;
pub mod units;
pub mod users;
pub mod watch;
mod wire;

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    sync::Arc,
};

use crate::{
    host::{Host, seen},
    ident::{Endpoint, EngineKind, Manager, Pid, UnitName, UnitRef},
    snapshot::{
        Beyond, Clock, CommandLine, Containers, GpuHolding, Gpus, Process, Publishers, Receipt,
        Seen, Share, Sight, Snapshot, Socket, SocketState, Sockets,
    },
};

pub use containers::Engines;
pub use holders::Reach;

/// Says whether a command line matters; called for every process of the host.
pub type Nominate = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// What is to be known.
#[derive(Clone)]
pub struct Question {
    /// The guarded ports.
    pub endpoints: Vec<Endpoint>,
    /// Which command lines matter; none = no process is looked for by its command line.
    pub nominate: Option<Nominate>,
    /// Units in which services are declared to run: asked for, and their invocations compared.
    pub declared_units: BTreeSet<UnitName>,
    /// How far holders are looked for.
    pub reach: Reach,
    /// Processes that are asked about whatever they hold or match.
    pub pids: BTreeSet<Pid>,
    /// What is written down of processes that we started; whether their owners live is asked.
    pub receipts: Vec<Receipt>,
    /// Container engines that may be asked.
    pub engines: Engines,
    /// What was seen of GPUs just now: their holders are candidates, too.
    pub gpus: Option<Gpus>,
    /// Whether to look beyond sockets.
    pub beyond: Ask,
}

/// Whether rules and engines are asked for ports on which no socket is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Ask {
    /// Neither.
    #[default]
    No,
    /// Both.
    Anew,
    /// The rules. Of the engines, this answer of a moment ago counts, unless a rule asks for its owner.
    Kept(Publishers),
}

/// A holder that exits between two reads leaves facts of two moments; the look is taken again.
const LOOKS: usize = 3;

/// One look at the host.
pub fn observe(host: &Host, question: &Question) -> Snapshot {
    let mut looks = 1;
    loop {
        let (mut snapshot, is_torn) = look(host, question);
        if !is_torn {
            return snapshot;
        }
        if looks == LOOKS {
            if let Seen::Known(sockets) = &mut snapshot.sockets {
                settle(sockets, &sockets_of(host, question));
            }
            return snapshot;
        }
        looks += 1;
    }
}

/// The ports alone: what listens on them, and whether the kernel gives them to clients. No process is looked at, and nothing
/// that is silent, connected or lingers: for whoever binds them as well.
pub fn ports(host: &Host, endpoints: &[Endpoint]) -> Snapshot {
    let unasked = "it was not asked about";
    let clock = Clock {
        boot_id: Seen::Unreadable(unasked.to_owned()),
        now_ticks: Seen::Unreadable(unasked.to_owned()),
        ticks_per_second: ticks_per_second(host),
    };
    Snapshot {
        clock,
        ourselves: Vec::new(),
        misses_ancestors: false,
        has_systemd: Seen::Unreadable(unasked.to_owned()),
        sight: Sight { may_see_all: false, is_first_pid_namespace: false, is_proc_hidden: false },
        ephemeral_ports: ephemeral_ports(host),
        reserved_ports: reserved_ports(host),
        sockets: listeners::observe_listening(host, endpoints),
        matching: BTreeSet::new(),
        processes: BTreeMap::new(),
        unread: Vec::new(),
        units: BTreeMap::new(),
        sessions: BTreeMap::new(),
        lingering: BTreeMap::new(),
        containers: Containers::default(),
        beyond: None,
        receipts: Vec::new(),
        gpus: None,
    }
}

/// Whether this `/proc` numbers processes as the kernel does for us: a pid in it is the pid of a pidfd.
pub fn is_proc_ours(host: &Host) -> bool {
    let own = std::fs::read_link(host.path("proc/self"));
    !host.is_live()
        || own.is_ok_and(|own| own.as_os_str() == std::process::id().to_string().as_str())
}

/// The sockets on the endpoints asked about, without their holders.
fn sockets_of(host: &Host, question: &Question) -> Seen<Sockets> {
    listeners::observe(host, &question.endpoints, question.reach)
}

fn look(host: &Host, question: &Question) -> (Snapshot, bool) {
    let mut sockets = sockets_of(host, question);
    // Listing thousands of processes costs more than all else about a port whose creator explains its holder.
    let listing = OnceCell::new();
    let pids = || listing.get_or_init(|| list(host)).as_deref().unwrap_or_default();
    if !is_proc_ours(host) {
        let why = "'/proc' belongs to another pid namespace than this run: mount its own";
        let _ = listing.set(Err(why));
    }
    if let Seen::Known(sockets) = &mut sockets {
        holders::observe(host, sockets, question.reach, &pids);
    }
    let mut command_lines = match &question.nominate {
        Some(nominate) => {
            let nominate = Arc::clone(nominate);
            processes::read_command_lines(host, pids(), move |text| nominate(text))
        }
        None => BTreeMap::new(),
    };
    let mut unread = Vec::new();
    if let Some(Err(why)) = listing.get() {
        unread.push((Pid::OUTSIDE, (*why).to_owned()));
    }
    for (pid, seen) in &command_lines {
        match seen {
            Seen::Known(_) | Seen::Gone => {}
            Seen::Denied => unread.push((*pid, "permission denied".to_owned())),
            Seen::Unreadable(why) => unread.push((*pid, why.clone())),
        }
    }
    // A line that did not matter was not kept.
    command_lines.retain(|_, seen| seen.known().is_none_or(|line| !line.text.is_empty()));
    let mut matching: BTreeSet<Pid> = command_lines
        .iter()
        .filter(|(_, seen)| seen.known().is_some())
        .map(|(&pid, _)| pid)
        .collect();
    matching.extend(&question.pids);
    let holding: BTreeSet<Pid> =
        sockets.known().map(|s| s.holdings.iter().map(|h| h.pid).collect()).unwrap_or_default();
    let on_gpus: BTreeSet<Pid> = holdings(question.gpus.as_ref()).map(|h| h.pid).collect();
    let candidates: BTreeSet<Pid> = matching.union(&holding).chain(&on_gpus).copied().collect();
    let known = ourselves(host);
    let misses_ancestors = known.is_none();
    let ourselves = known.unwrap_or_else(|| vec![Pid(std::process::id())]);
    let (mut processes, blurred) =
        with_relatives(host, &candidates, &ourselves, command_lines, question);
    let of_sockets = sockets.known();
    containers::read_enclosures(host, &mut processes, &candidates, of_sockets);
    let firsts = containers::first_processes(host, &processes, &candidates, &pids);
    let fellows = containers::read_fellows(host, &mut processes, &candidates, &pids);
    let more: BTreeSet<Pid> = firsts.union(&fellows).copied().collect();
    add(&mut processes, with_relatives(host, &more, &[], BTreeMap::new(), question).0);
    containers::read_enclosures(host, &mut processes, &more, of_sockets);
    let mut containers =
        containers::observe(host, &question.engines, &processes, &candidates, of_sockets);
    // What a forwarder stands for is judged by its container's own process.
    let behind: BTreeSet<Pid> = containers.namespaces.keys().copied().collect();
    add(&mut processes, with_relatives(host, &behind, &[], BTreeMap::new(), question).0);
    let sight = sight(host);
    forget_ended(host, &mut containers, &processes, sight);
    let mut is_torn = holding.iter().any(|pid| !processes.contains_key(pid));
    if let Seen::Known(sockets) = &mut sockets {
        forget_vanished(sockets, &processes, &blurred);
        // To eyes that see everything, a server's socket without a holder was closed between two reads.
        let sees_all = sight.may_see_all && sight.is_first_pid_namespace;
        is_torn |= sees_all && sockets.all.iter().any(|s| is_unheld(sockets, s));
    }
    let beyond = beyond(host, question, &sockets, || sight);
    let has_systemd = has_systemd(host, &processes);
    let mut receipts = receipts::about(&question.receipts, &processes);
    let answers = if has_systemd == Seen::Known(true) {
        let mut asked = questions(&processes, &candidates, question);
        asked.units.extend(receipts::owners(&receipts, &processes));
        units::observe(host, &asked)
    } else {
        units::Answers::default()
    };
    receipts::with_owners(&mut receipts, &answers.units);
    // Where `/proc` hides processes, who is not in it may be there all the same.
    let is_there = |pid: Pid| {
        sight.is_proc_hidden || processes.contains_key(&pid) || blurred.contains_key(&pid)
    };
    let gpus = question.gpus.clone().map(|gpus| without_ended(gpus, is_there));
    let snapshot = Snapshot {
        clock: clock(host),
        ourselves,
        misses_ancestors,
        has_systemd,
        sight,
        ephemeral_ports: ephemeral_ports(host),
        reserved_ports: reserved_ports(host),
        sockets,
        matching: matching.into_iter().filter(|pid| processes.contains_key(pid)).collect(),
        processes,
        unread: unread.into_iter().chain(blurred).collect(),
        units: answers.units,
        sessions: answers.sessions,
        lingering: answers.lingering,
        containers,
        beyond,
        receipts,
        gpus,
    };
    (snapshot, is_torn)
}

/// Between two runs of a container its main process may be gone as soon as its namespace was read.
fn forget_ended(
    host: &Host,
    containers: &mut Containers,
    processes: &BTreeMap<Pid, Process>,
    sight: Sight,
) {
    for (pid, namespace) in &mut containers.namespaces {
        let is_gone = || match processes::read_stat(host, *pid) {
            Seen::Gone => true,
            Seen::Known(stat) => stat.state == 'Z',
            Seen::Denied | Seen::Unreadable(_) => false,
        };
        if !processes.contains_key(pid) && namespace.known().is_some() && is_gone() {
            *namespace = Seen::Gone;
        }
        if *namespace == Seen::Gone && sight.is_proc_hidden {
            *namespace = Seen::Denied;
        }
    }
}

fn holdings(gpus: Option<&Gpus>) -> impl Iterator<Item = &GpuHolding> {
    gpus.into_iter().flat_map(|gpus| &gpus.all).flat_map(|gpu| &gpu.holdings)
}

/// Who has ended since holds no GPU, though its memory may still be taken for a while.
fn without_ended(mut gpus: Gpus, is_there: impl Fn(Pid) -> bool) -> Gpus {
    for gpu in &mut gpus.all {
        gpu.holdings.retain(|holding| is_there(holding.pid));
    }
    gpus
}

/// What may have the ports that no server has: later than the sockets, so that a container that came between is not missed.
pub fn beyond(
    host: &Host,
    question: &Question,
    sockets: &Seen<Sockets>,
    sight: impl Fn() -> Sight,
) -> Option<Beyond> {
    if question.beyond == Ask::No || !host.is_live() {
        return None;
    }
    let is_served = |endpoint: &Endpoint| {
        let all = sockets.known().map(|sockets| sockets.all.as_slice()).unwrap_or_default();
        all.iter().any(|socket| listeners::is_server(socket) && socket.is_on(endpoint))
    };
    let open: Vec<Endpoint> =
        question.endpoints.iter().filter(|endpoint| !is_served(endpoint)).copied().collect();
    let detours = nat::observe(host, &open);
    let has_owner = detours.known().is_some_and(|all| all.iter().any(|d| d.share != Share::Some));
    let publishers = match &question.beyond {
        Ask::Kept(publishers) if !has_owner => publishers.clone(),
        Ask::No | Ask::Anew | Ask::Kept(_) => {
            let both = [EngineKind::Docker, EngineKind::Podman];
            let kinds = if has_owner { &both[..] } else { &both[..1] };
            containers::publishers(host, &question.engines, kinds)
        }
    };
    let pids = publishers.values().filter_map(Seen::known).flatten().filter_map(|c| c.main_pid);
    let is_gone = |pid: &Pid| match processes::read_stat(host, *pid) {
        Seen::Gone => !sight().is_proc_hidden,
        Seen::Known(stat) => stat.state == 'Z',
        Seen::Denied | Seen::Unreadable(_) => false,
    };
    let gone = pids.filter(is_gone).collect();
    Some(Beyond { detours, publishers, gone })
}

/// Adds those that were not read before.
fn add(processes: &mut BTreeMap<Pid, Process>, more: BTreeMap<Pid, Process>) {
    for (pid, process) in more {
        processes.entry(pid).or_insert(process);
    }
}

/// Every process; else why not.
fn list(host: &Host) -> Result<Vec<Pid>, &'static str> {
    match host.pids() {
        Seen::Known(pids) => Ok(pids),
        Seen::Gone | Seen::Denied | Seen::Unreadable(_) => Err("'/proc' cannot be listed"),
    }
}

/// sd_booted(3). A missing `/run/systemd/system` is no proof where systemd's own marks are seen: in a container
/// with the host's pids, `/run` is the container's.
pub fn has_systemd(host: &Host, processes: &BTreeMap<Pid, Process>) -> Seen<bool> {
    let booted = seen(fs::metadata(host.path("run/systemd/system")).map(|about| about.is_dir()));
    if booted == Seen::Known(true) {
        return booted;
    }
    let is_marked = processes.values().any(|p| p.cgroup.known().is_some_and(|c| c.unit.is_some()));
    let init = processes::read_stat(host, Pid::INIT);
    if is_marked || init.known().is_some_and(|stat| stat.comm == "systemd") {
        return Seen::Unreadable(
            "systemd's marks are seen, but its /run is not this one".to_owned(),
        );
    }
    match (booted, init) {
        (Seen::Known(_) | Seen::Gone, Seen::Known(_) | Seen::Gone) => Seen::Known(false),
        (Seen::Unreadable(why), _) | (_, Seen::Unreadable(why)) => Seen::Unreadable(why),
        (Seen::Denied, _) | (_, Seen::Denied) => Seen::Denied,
    }
}

fn is_unheld(sockets: &Sockets, socket: &Socket) -> bool {
    matches!(socket.state, SocketState::Listening | SocketState::Bound)
        && !sockets.holdings.iter().any(|h| h.inode == socket.inode)
}

/// Where ports change hands faster than we look: a socket without a holder that a fresh dump no longer shows
/// was closed between two reads and is nobody's; one that is new there has a holder whom we have missed.
fn settle(sockets: &mut Sockets, fresh: &Seen<Sockets>) {
    let Some(fresh) = fresh.known() else {
        sockets.refused += 1;
        return;
    };
    let is_in = |all: &[Socket], one: &Socket| {
        all.iter().any(|s| (s.inode, s.cookie) == (one.inode, one.cookie))
    };
    let closed: Vec<Socket> = sockets
        .all
        .iter()
        .filter(|s| is_unheld(sockets, s) && !is_in(&fresh.all, s))
        .cloned()
        .collect();
    let new: Vec<Socket> = fresh.all.iter().filter(|s| !is_in(&sockets.all, s)).cloned().collect();
    sockets.all.retain(|s| !is_in(&closed, s));
    let missed = new.iter().filter(|s| is_unheld(sockets, s)).count();
    sockets.refused += u32::try_from(missed).unwrap_or(u32::MAX);
    sockets.all.extend(new);
}

fn forget_vanished(
    sockets: &mut Sockets,
    processes: &BTreeMap<Pid, Process>,
    blurred: &BTreeMap<Pid, String>,
) {
    sockets.holdings.retain(|h| processes.contains_key(&h.pid) || blurred.contains_key(&h.pid));
}

/// The candidates, their ancestors, and the leaders of their sessions and groups; beside them, ourselves and our
/// ancestors. The dead are left out. Then the candidates that are there and could not be read.
fn with_relatives(
    host: &Host,
    candidates: &BTreeSet<Pid>,
    ourselves: &[Pid],
    mut command_lines: BTreeMap<Pid, Seen<CommandLine>>,
    question: &Question,
) -> (BTreeMap<Pid, Process>, BTreeMap<Pid, String>) {
    let mut blurred = BTreeMap::new();
    let mut processes: BTreeMap<Pid, Process> = BTreeMap::new();
    let mut next = candidates.clone();
    if !candidates.is_empty() {
        next.extend(ourselves);
    }
    let mut asked: BTreeSet<Pid> = BTreeSet::new();
    while !next.is_empty() {
        let mut relatives = BTreeSet::new();
        for pid in std::mem::take(&mut next) {
            asked.insert(pid);
            let why = match processes::read(host, pid, Seen::Gone) {
                Seen::Known(process) => {
                    relatives.insert(process.parent);
                    if candidates.contains(&pid) {
                        relatives.extend([process.group, process.session]);
                    }
                    processes.insert(pid, process);
                    continue;
                }
                Seen::Gone => continue,
                Seen::Denied => "permission denied".to_owned(),
                Seen::Unreadable(why) => why,
            };
            if candidates.contains(&pid) {
                blurred.insert(pid, why);
            }
        }
        relatives.remove(&Pid::OUTSIDE);
        next = relatives.difference(&asked).copied().collect();
    }
    processes.retain(|_, process| !process.is_dead());
    let unread: Vec<Pid> =
        processes.keys().filter(|pid| !command_lines.contains_key(pid)).copied().collect();
    command_lines.extend(processes::read_command_lines(host, &unread, |_| true));
    for (pid, process) in &mut processes {
        process.command_line = command_lines.remove(pid).unwrap_or(Seen::Gone);
    }
    if !question.declared_units.is_empty() {
        let live: Vec<Pid> =
            candidates.iter().filter(|pid| processes.contains_key(pid)).copied().collect();
        for (pid, id) in processes::read_invocation_ids(host, &live) {
            if let Some(process) = processes.get_mut(&pid) {
                process.invocation_id = Some(id);
            }
        }
    }
    (processes, blurred)
}

/// What systemd and logind must be asked: nothing about a process that a container claims.
fn questions(
    processes: &BTreeMap<Pid, Process>,
    candidates: &BTreeSet<Pid>,
    question: &Question,
) -> units::Questions {
    let mut asked = units::Questions::default();
    let free = candidates.iter().filter_map(|pid| processes.get(pid)).filter(|p| {
        p.cgroup.known().is_none_or(|c| c.claim.is_none())
            && p.namespace_pids.known().is_none_or(|pids| pids.len() <= 1)
            && !p.is_kernel_thread
    });
    let mut has_candidate = false;
    for process in free {
        has_candidate = true;
        let cgroup = process.cgroup.known();
        asked.units.extend(cgroup.and_then(|c| c.unit.clone()));
        let session = cgroup.and_then(|c| c.session.clone());
        if session.is_some() || cgroup.is_none_or(|c| c.unit.is_none()) {
            asked.users.extend(process.uid.known());
            asked.users.extend(cgroup.and_then(|c| c.session_user));
        }
        asked.sessions.extend(session);
        // Its parent, or a fellow's parent further up, may be a user's manager: a reaper if systemd says so.
        let mut above = process.parent;
        for _ in 0..processes.len() {
            let Some(parent) = processes.get(&above) else { break };
            let unit = parent.cgroup.known().and_then(|c| c.unit.as_ref());
            if let Some(UnitRef { manager: Manager::User(uid), name }) = unit
                && name.0 == "init.scope"
            {
                let name = UnitName(format!("user@{uid}.service"));
                asked.units.insert(UnitRef { manager: Manager::System, name });
            }
            above = parent.parent;
        }
    }
    if has_candidate {
        let declared = question.declared_units.iter().cloned();
        asked.units.extend(declared.map(|name| UnitRef { manager: Manager::System, name }));
    }
    asked
}

/// Ourselves, then our ancestors as far up as our pid namespace goes; none where one of them could not be read.
pub fn ourselves(host: &Host) -> Option<Vec<Pid>> {
    let mut chain = Vec::new();
    let mut next = Pid(std::process::id());
    while host.is_live() && next != Pid::OUTSIDE && !chain.contains(&next) {
        chain.push(next);
        let stat = processes::read_stat(host, next);
        next = Pid(u32::try_from(stat.known()?.ppid).unwrap_or_default());
    }
    Some(chain)
}

/// Time, as the kernel counts it.
pub fn clock(host: &Host) -> Clock {
    let ticks_per_second = ticks_per_second(host);
    // Start times count from boot, suspended time included, as /proc/uptime does (proc_uptime(5)).
    let now_ticks = host.read_text("proc/uptime").parse(|text| ticks(&text, ticks_per_second));
    let boot_id = host.read_text("proc/sys/kernel/random/boot_id").map(|t| t.trim().to_owned());
    Clock { boot_id, now_ticks, ticks_per_second }
}

/// The first number of `/proc/uptime`, in ticks. A file system in user space may stand there (lxcfs).
fn ticks(uptime: &str, ticks_per_second: u64) -> Option<u64> {
    let (seconds, hundredths) = uptime.split_whitespace().next()?.split_once('.')?;
    let (seconds, hundredths) = (seconds.parse::<u64>().ok()?, hundredths.parse::<u64>().ok()?);
    let hundredths = hundredths.checked_mul(ticks_per_second)? / 100;
    seconds.checked_mul(ticks_per_second)?.checked_add(hundredths)
}

fn ticks_per_second(host: &Host) -> u64 {
    if host.is_live() { rustix::param::clock_ticks_per_second() } else { 100 }
}

/// Bits of linux/capability.h, as far as anything here asks for them.
pub mod capabilities {
    /// CAP_DAC_OVERRIDE.
    pub const DAC_OVERRIDE: u64 = 1 << 1;
    /// CAP_DAC_READ_SEARCH.
    pub const DAC_READ_SEARCH: u64 = 1 << 2;
    /// CAP_KILL.
    pub const KILL: u64 = 1 << 5;
    /// CAP_SYS_PTRACE.
    pub const SYS_PTRACE: u64 = 1 << 19;
}

/// Our effective capabilities, as [`capabilities`] numbers them.
pub fn effective_capabilities(host: &Host) -> Seen<u64> {
    host.read_text("proc/self/status").parse(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    })
}

/// Whether this is the machine's first user namespace: capabilities of a nested one say nothing about processes
/// outside it.
pub fn is_first_user_namespace(host: &Host) -> bool {
    match host.read_text("proc/self/uid_map") {
        Seen::Known(map) => map.split_whitespace().eq(["0", "0", "4294967295"]),
        Seen::Gone => true, // a kernel without user namespaces
        Seen::Denied | Seen::Unreadable(_) => false,
    }
}

/// What we may look at.
pub fn sight(host: &Host) -> Sight {
    use capabilities::{DAC_OVERRIDE, DAC_READ_SEARCH, SYS_PTRACE};
    /// Inode of the first pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
    const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
    let effective = effective_capabilities(host).known().copied().unwrap_or_default();
    let may_trace = effective & SYS_PTRACE != 0;
    let may_search = effective & (DAC_OVERRIDE | DAC_READ_SEARCH) != 0;
    let namespace = std::fs::read_link(host.path("proc/self/ns/pid"));
    let mounts = host.read_text("proc/self/mountinfo");
    let is_hiding = |text: &String| {
        let proc_mounts =
            text.lines().filter(|l| l.split(' ').nth(4) == Some("/proc") && l.contains(" - proc "));
        let options = proc_mounts.flat_map(|l| l.split([',', ' ']));
        options
            .filter_map(|o| o.strip_prefix("hidepid="))
            .any(|value| !matches!(value, "0" | "off"))
    };
    let is_hidden = match &mounts {
        Seen::Known(text) => is_hiding(text),
        Seen::Gone => false,
        // It may be: who is not listed is then not known to be gone.
        Seen::Denied | Seen::Unreadable(_) => true,
    };
    Sight {
        may_see_all: may_trace && may_search && is_first_user_namespace(host),
        is_first_pid_namespace: namespace.is_ok_and(|n| n.as_os_str() == FIRST_PID_NAMESPACE),
        is_proc_hidden: is_hidden && !may_trace,
    }
}

/// The range that outgoing connections take their local ports from, both ends in it.
pub fn ephemeral_ports(host: &Host) -> Seen<(u16, u16)> {
    host.read_text("proc/sys/net/ipv4/ip_local_port_range").parse(|text| {
        let mut numbers = text.split_whitespace().map(|n| n.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    })
}

/// Ports that are kept out of it, as the kernel writes them: `8080,9148-9155`.
pub fn reserved_ports(host: &Host) -> Seen<String> {
    /// Every second port has some 190 KB.
    const MOST_BYTES: usize = 256 << 10;
    let read = || {
        let path = host.path("proc/sys/net/ipv4/ip_local_reserved_ports");
        // In one read: the kernel answers every further one as if the list ended there (`proc_do_large_bitmap`,
        // kernel/sysctl.c). It clears as much memory as we ask for, which for the longest list takes 70 µs.
        let mut bytes = Vec::new();
        for room in [4096, MOST_BYTES] {
            bytes.resize(room, 0);
            let length = fs::File::open(&path)?.read(&mut bytes)?;
            bytes.truncate(length);
            if length < room {
                break;
            }
        }
        Ok(bytes)
    };
    let whole = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).ok().filter(|text| text.len() < MOST_BYTES)?;
        Some(text.trim().to_owned())
    };
    seen(read()).parse(whole)
}

/// Whether something listens on each of these endpoints: a dump, without holders.
pub fn are_all_taken(host: &Host, endpoints: &[Endpoint]) -> bool {
    let sockets = listeners::observe(host, endpoints, Reach::Narrow);
    sockets.known().is_some_and(|sockets| {
        endpoints.iter().all(|endpoint| {
            let mut on = sockets.all.iter().filter(|s| s.is_on(endpoint));
            on.any(|s| s.state == SocketState::Listening)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::{Port, Proto};
    use crate::snapshot::Holding;

    fn socket(inode: u64) -> Socket {
        Socket {
            proto: Proto::Tcp,
            address: [127, 0, 0, 1].into(),
            port: Port::new(8091).unwrap(),
            state: SocketState::Listening,
            inode,
            cookie: Some(inode + 1000),
            uid: 0,
            creator_cgroup: None,
            v6only: None,
        }
    }

    fn sockets(inodes: &[u64]) -> Sockets {
        Sockets { all: inodes.iter().map(|&i| socket(i)).collect(), ..Sockets::default() }
    }

    fn inodes(sockets: &Sockets) -> Vec<u64> {
        sockets.all.iter().map(|s| s.inode).collect()
    }

    #[test]
    fn a_socket_that_was_closed_while_its_holder_was_looked_for_is_nobodys() {
        let mut seen = sockets(&[1, 2]);
        settle(&mut seen, &Seen::Known(sockets(&[2])));
        assert_eq!((inodes(&seen), seen.refused), (vec![2], 0));
    }

    #[test]
    fn a_socket_that_came_meanwhile_is_held_by_somebody_whom_we_missed() {
        let mut seen = sockets(&[1]);
        settle(&mut seen, &Seen::Known(sockets(&[3])));
        assert_eq!((inodes(&seen), seen.refused), (vec![3], 1));
        let mut reused = sockets(&[1]);
        let mut fresh = sockets(&[1]);
        fresh.all[0].cookie = Some(7);
        settle(&mut reused, &Seen::Known(fresh));
        assert_eq!((reused.all[0].cookie, reused.refused), (Some(7), 1));
    }

    #[test]
    fn a_held_socket_stays_though_it_was_closed_and_nothing_is_free_where_no_dump_answers() {
        let mut held = sockets(&[1]);
        held.holdings.push(Holding { inode: 1, pid: Pid(7), link: None });
        settle(&mut held, &Seen::Known(sockets(&[])));
        assert_eq!(inodes(&held), [1]);
        let mut unknown = sockets(&[1]);
        settle(&mut unknown, &Seen::Denied);
        assert_eq!((inodes(&unknown), unknown.refused), (vec![1], 1));
    }
}
