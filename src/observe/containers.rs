//! What engines say of the containers that candidates seem to belong to, and of those behind forwarders. An engine is asked
//! only where a candidate raises the question, by id; a user's engine only about what that user's namespaces made.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    engine::{self, Answer, Engine, NoAnswer, Question, Which},
    host::Host,
    ident::{ContainerId, EngineKind, EngineRef, Manager, Pid, UnitName, UnitRef},
    observe::{processes, units},
    snapshot::{ClaimKind, Containers, Process, Publishers, Seen, Sockets, system_name},
};

/// Which engines may be asked, and for how long altogether.
#[derive(Debug, Clone)]
pub struct Engines {
    /// Which.
    pub which: Which,
    /// Deadline of all questions of one look.
    pub timeout: Duration,
    /// Whether a container's name is worth running `podman` for: where it tells whose a port is.
    pub by_name: bool,
}

impl Engines {
    /// None may be asked.
    pub fn none() -> Self {
        let which = Which { docker: false, docker_socket: None, podman: false };
        Self { which, timeout: Duration::ZERO, by_name: false }
    }
}

/// What is asked of one engine.
#[derive(Debug, Default)]
struct Wanted {
    ids: BTreeSet<ContainerId>,
    /// All of its containers: for a forwarder, or a process whose container has no name in its control group.
    all: bool,
    /// Somebody's life may hang on the answer; else it is asked for the container's name alone.
    is_in_doubt: bool,
}

/// Reads what namespaces and roots say of the candidates' containers.
pub fn read_enclosures(
    host: &Host,
    processes: &mut BTreeMap<Pid, Process>,
    candidates: &BTreeSet<Pid>,
    sockets: Option<&Sockets>,
) {
    let ourselves = Pid(std::process::id());
    let our_mounts = processes::read_mount_namespace(host, ourselves);
    let mut next: Vec<Pid> = candidates
        .iter()
        .filter(|pid| {
            let Some(process) = processes.get(pid) else { return false };
            let is_enclosed = process.has_claim() || process.is_in_nested_namespace();
            // Without either, a container of the host's pids shows by its mounts alone. Who may not read where they are
            // may not read the executable either (PTRACE_MODE_READ_FSCREDS of proc(5)), without which nobody is convicted.
            let has_own_mounts = || match processes::read_mount_namespace(host, **pid) {
                Seen::Denied => false,
                mounts @ (Seen::Known(_) | Seen::Gone | Seen::Unreadable(_)) => {
                    mounts != our_mounts
                }
            };
            is_enclosed || is_forwarder(process, sockets) || has_own_mounts()
        })
        .copied()
        .collect();
    let bases = OnceCell::new();
    while let Some(pid) = next.pop() {
        let Some(process) = processes.get_mut(&pid).filter(|p| p.enclosure.is_none()) else {
            continue;
        };
        let mut enclosure = processes::read_enclosure(host, pid);
        // A service's private mounts stand on the same root as everybody's: ours, or PID 1's where we look from a container
        // with the host's pids.
        let base = |pid| processes::read_enclosure(host, pid).layer;
        let bases = bases.get_or_init(|| [ourselves, Pid::INIT].map(base));
        if bases.iter().any(|base| base.known().is_some() && enclosure.layer == *base) {
            enclosure.layer = Seen::Known(None);
        }
        let is_within = matches!(enclosure.layer, Seen::Known(Some(_)));
        process.enclosure = Some(enclosure);
        // Who supervises it is the first above it that is not in there too.
        if is_within && process.parent > Pid::INIT {
            next.push(process.parent);
        }
    }
}

/// The first processes of the pid namespaces into which candidates were sent from outside (`docker exec`).
pub fn first_processes<'a>(
    host: &Host,
    processes: &BTreeMap<Pid, Process>,
    candidates: &BTreeSet<Pid>,
    pids: &impl Fn() -> &'a [Pid],
) -> BTreeSet<Pid> {
    let candidates = candidates.iter().filter_map(|pid| processes.get(pid));
    let namespaces: BTreeSet<u64> = candidates
        .filter(|process| process.is_in_nested_namespace() && is_sent_in(process, processes))
        .filter_map(|process| process.enclosure.as_ref()?.pid_namespace.known().copied())
        .collect();
    if namespaces.is_empty() {
        return BTreeSet::new();
    }
    let is_theirs = |pid: &&Pid| {
        let namespace = processes::read_pid_namespace(host, **pid);
        namespace.known().is_some_and(|number| namespaces.contains(number))
    };
    let read = |pid: &Pid| processes::read(host, *pid, Seen::Gone);
    let is_first = |pid: &&Pid| read(pid).known().is_some_and(Process::is_first_in_its_namespace);
    pids().iter().filter(is_theirs).filter(is_first).copied().collect()
}

/// Who else is in the containers of candidates that have the host's pids: without a pid namespace of their own, what binds
/// them together is their mounts (`podman exec --pid host` joins those too).
pub fn read_fellows<'a>(
    host: &Host,
    processes: &mut BTreeMap<Pid, Process>,
    candidates: &BTreeSet<Pid>,
    pids: &impl Fn() -> &'a [Pid],
) -> BTreeSet<Pid> {
    let has_host_pids = |pid: &&Pid| {
        processes.get(pid).is_some_and(|process| {
            let enclosure = process.enclosure.as_ref();
            let has_layer = enclosure.is_some_and(|e| matches!(e.layer, Seen::Known(Some(_))));
            !process.is_in_nested_namespace() && (process.has_claim() || has_layer)
        })
    };
    let wanted: Vec<Pid> = candidates.iter().filter(has_host_pids).copied().collect();
    let mut all = BTreeSet::new();
    if wanted.is_empty() {
        return all;
    }
    let mounts = |pid: Pid| processes::read_mount_namespace(host, pid);
    let ours = mounts(Pid(std::process::id()));
    let mounts_of: Vec<(Pid, Seen<PathBuf>)> =
        pids().iter().map(|&pid| (pid, mounts(pid))).collect();
    for pid in wanted {
        let own = mounts(pid);
        // Who only stands in a container's control group shares the host's mounts with everybody.
        let fellows = own.as_ref().map(|own| {
            let is_ours = ours.known() == Some(own);
            let shares = |(other, mounts): &&(Pid, Seen<PathBuf>)| {
                *other != pid && !is_ours && mounts.known() == Some(own)
            };
            mounts_of.iter().filter(shares).map(|(other, _)| *other).collect::<BTreeSet<Pid>>()
        });
        all.extend(fellows.known().into_iter().flatten());
        if let Some(enclosure) = processes.get_mut(&pid).and_then(|p| p.enclosure.as_mut()) {
            enclosure.fellows = fellows;
        }
    }
    all
}

/// None of its parents is the first process of its pid namespace.
fn is_sent_in(process: &Process, processes: &BTreeMap<Pid, Process>) -> bool {
    let mut next = Some(process);
    for _ in 0..=processes.len() {
        match next.filter(|process| process.is_in_nested_namespace()) {
            Some(process) if process.is_first_in_its_namespace() => return false,
            Some(process) => next = processes.get(&process.parent),
            None => return true,
        }
    }
    true
}

/// Holds a port that is asked about and may do so for a container.
fn is_forwarder(process: &Process, sockets: Option<&Sockets>) -> bool {
    let holds = sockets.is_some_and(|s| s.holdings.iter().any(|h| h.pid == process.key.pid));
    holds && process.forwards_for().is_some()
}

/// Asks the engines that the candidates point to.
pub fn observe(
    host: &Host,
    engines: &Engines,
    processes: &BTreeMap<Pid, Process>,
    candidates: &BTreeSet<Pid>,
    sockets: Option<&Sockets>,
) -> Containers {
    let mut containers = Containers::default();
    let mut wanted: BTreeMap<EngineRef, Wanted> = BTreeMap::new();
    for process in candidates.iter().filter_map(|pid| processes.get(pid)) {
        let is_forwarder = is_forwarder(process, sockets);
        for (engine, id) in asked_about(process, is_forwarder) {
            let wanted = wanted.entry(engine).or_default();
            wanted.is_in_doubt |= is_forwarder || !is_looked_after(process, processes);
            match id {
                Some(id) => drop(wanted.ids.insert(id)),
                None => wanted.all = true,
            }
        }
    }
    if wanted.is_empty() {
        return containers;
    }
    let owners: BTreeSet<u32> = wanted.keys().map(|engine| engine.owner).collect();
    let mut places = engine::places(host, &engines.which, &owners);
    places.retain(|place| {
        wanted.get(&place.name).is_some_and(|wanted| {
            // For a name alone nobody's podman is run: it would leave what it always leaves (its pause process, folders).
            wanted.is_in_doubt
                || engines.by_name
                || place.name.kind == EngineKind::Docker
                || place.look().is_ok()
        })
    });
    let end = Instant::now() + engines.timeout;
    let questions = places.iter().filter_map(|place| {
        let wanted = wanted.get(&place.name)?;
        let about = Question::about(place.clone(), wanted.ids.iter().cloned());
        Some(Question { list: wanted.all, store: wanted.all, ..about })
    });
    let mut questions: Vec<Question> = questions.collect();
    questions.retain(|question| match is_not_to_be_asked(host, &question.engine) {
        Some(why) => {
            take(&mut containers, vec![question.left_unasked(&why)]);
            false
        }
        None => true,
    });
    places.retain(|place| questions.iter().any(|q| q.engine.name == place.name));
    let answers = engine::ask(&questions, engines.timeout);
    let more = more_questions(&places, &answers);
    take(&mut containers, answers);
    if !more.is_empty() {
        take(&mut containers, engine::ask(&more, end.saturating_duration_since(Instant::now())));
    }
    let pids: BTreeSet<Pid> = containers.known().filter_map(|c| c.main_pid).collect();
    let namespaces = pids.into_iter().map(|pid| (pid, processes::read_pid_namespace(host, pid)));
    containers.namespaces = namespaces.collect();
    containers
}

/// What root's engines publish now, by engine; none of an engine that is not there, not up or asleep: it has no port beyond
/// what sockets and rules show. Where Podman is not asked, so is it with Podman anyway: its ports are its forwarders' and
/// its rules', while dockerd keeps a list of its own in memory (libnetwork/portallocator).
pub fn publishers(host: &Host, engines: &Engines, kinds: &[EngineKind]) -> Publishers {
    let mut published = Publishers::new();
    let mut questions = Vec::new();
    for place in engine::places(host, &engines.which, &BTreeSet::from([0])) {
        let name = place.name;
        if !kinds.contains(&name.kind) {
            continue;
        }
        if place.is_forbidden() {
            published.insert(name, Seen::Denied);
            continue;
        }
        let is_up = name.kind != EngineKind::Docker || !place.is_usual() || runs(host);
        match if is_up { Seen::Known(false) } else { is_asleep(host, name) } {
            Seen::Known(true) => {}
            Seen::Known(false) | Seen::Gone => {
                questions.push(Question { running: true, ..Question::about(place, []) });
            }
            Seen::Denied => drop(published.insert(name, Seen::Unreadable(SLEEPS.to_owned()))),
            Seen::Unreadable(why) => {
                published.insert(name, Seen::Unreadable(format!("{SLEEPS} ({why})")));
            }
        }
    }
    for answer in engine::ask(&questions, engines.timeout) {
        let is_down = matches!(answer.version, Err(NoAnswer::Absent | NoAnswer::Refused));
        published.extend(answer.running.filter(|_| !is_down).map(|seen| (answer.engine, seen)));
    }
    published
}

/// Why a Docker is not asked.
const SLEEPS: &str = "whether it sleeps is not known, and asking might start it";

/// Somebody outside its container looks after it, at first sight: the judge's word on it will need no engine.
fn is_looked_after(process: &Process, processes: &BTreeMap<Pid, Process>) -> bool {
    let depth = |process: &Process| process.namespace_pids.known().map(Vec::len);
    let claim = |process: &Process| process.cgroup.known().map(|c| c.claim.clone());
    let is_outside = |above: &Process| match depth(process) {
        Some(own @ 2..) => depth(above).is_some_and(|above| above < own),
        Some(_) | None => claim(above) != claim(process),
    };
    let mut above = processes.get(&process.parent);
    for _ in 0..=processes.len() {
        match above {
            Some(above) if is_outside(above) => {
                let unit = above.cgroup.known().and_then(|c| c.unit.as_ref());
                let is_manager = unit.is_some_and(|u| u.name.0 == "init.scope");
                return above.key.pid != Pid::INIT && !is_manager;
            }
            Some(inside) => above = processes.get(&inside.parent),
            None => return false,
        }
    }
    false
}

/// Which engine may know a process's container, by which id; without an id, all of the engine's.
fn asked_about(process: &Process, is_forwarder: bool) -> Vec<(EngineRef, Option<ContainerId>)> {
    let Some(enclosure) = &process.enclosure else { return Vec::new() };
    let Some(&owner) = enclosure.owner.known() else { return Vec::new() };
    let both = [EngineKind::Docker, EngineKind::Podman];
    let of = |kinds: &[EngineKind], owner, id: Option<&ContainerId>| {
        kinds.iter().map(|&kind| (EngineRef { kind, owner }, id.cloned())).collect()
    };
    if is_forwarder {
        let kinds = process.forwards_for().unwrap_or_default();
        // A user's forwarder may stand outside that user's namespaces.
        let user = process.uid.known().copied().unwrap_or_default();
        return of(kinds, if owner == 0 { user } else { owner }, None);
    }
    match process.cgroup.known().and_then(|c| c.claim.as_ref()) {
        Some(claim) => match claim.kind {
            ClaimKind::Docker => of(&[EngineKind::Docker], owner, Some(&claim.id)),
            ClaimKind::Podman => of(&[EngineKind::Podman], owner, Some(&claim.id)),
            ClaimKind::Other => of(&both, owner, Some(&claim.id)),
            // None of these has an engine that we could ask.
            ClaimKind::Cri | ClaimKind::Lxc | ClaimKind::Nspawn => Vec::new(),
        },
        // A root in no overlay is in no engine's store: a sandbox, which no engine knows.
        None if matches!(enclosure.layer, Seen::Known(Some(_))) => of(&both, owner, None),
        None => Vec::new(),
    }
}

/// What the first answers leave open: each container of a list, and whose store it is where an id is not known.
fn more_questions(places: &[Engine], answers: &[Answer]) -> Vec<Question> {
    let mut more = Vec::new();
    for (place, answer) in places.iter().zip(answers) {
        let listed = answer.all.as_ref().and_then(Seen::known).into_iter().flatten();
        let ids = listed.filter(|id| !answer.containers.contains_key(id)).cloned();
        let about = Question::about(place.clone(), ids);
        let is_unknown = answer.containers.values().any(|seen| *seen == Seen::Gone);
        let question = Question { store: is_unknown && answer.store.is_none(), ..about };
        if question.store || !question.ids.is_empty() {
            more.push(question);
        }
    }
    more
}

/// Whether systemd listens in the engine's stead and would start it for us. A dockerd without live-restore ends, when it
/// starts, the containers that outlived it [tried, Docker 20.10]: asking would end what it asks about.
pub fn is_asleep(host: &Host, engine: EngineRef) -> Seen<bool> {
    match crate::observe::has_systemd(host, &BTreeMap::new()) {
        Seen::Known(true) => {}
        // Where its `/run` is out of sight, it may listen for the engine all the same.
        unseen @ (Seen::Known(_) | Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => {
            return unseen;
        }
    }
    let manager = manager(engine);
    let unit =
        |suffix: &str| UnitRef { manager, name: UnitName(format!("{}.{suffix}", engine.kind)) };
    let (socket, service) = (unit("socket"), unit("service"));
    let questions = units::Questions {
        units: [socket.clone(), service.clone()].into(),
        ..units::Questions::default()
    };
    let mut answers = units::observe(host, &questions).units;
    let mut is_dead = |unit: &UnitRef| match answers.remove(unit) {
        Some(Seen::Known(unit)) => Seen::Known(unit.is_dead()),
        Some(Seen::Gone) | None => Seen::Known(true),
        Some(Seen::Denied) => Seen::Denied,
        Some(Seen::Unreadable(why)) => Seen::Unreadable(why),
    };
    match (is_dead(&socket), is_dead(&service)) {
        (Seen::Known(socket), Seen::Known(service)) => Seen::Known(!socket && service),
        (Seen::Known(_), unseen) | (unseen, _) => unseen,
    }
}

/// Whose unit an engine is.
fn manager(engine: EngineRef) -> Manager {
    if engine.owner == 0 { Manager::System } else { Manager::User(engine.owner) }
}

/// Why this engine is not asked. Podman does no harm when it is started, as a command or by its socket.
fn is_not_to_be_asked(host: &Host, engine: &Engine) -> Option<String> {
    let owner = engine.name.owner;
    // Without that folder the user has neither a socket nor a manager who could listen at one.
    let is_up_or_absent =
        if owner == 0 { runs(host) } else { !host.path(format!("run/user/{owner}")).exists() };
    if engine.name.kind != EngineKind::Docker || !engine.is_usual() || is_up_or_absent {
        return None;
    }
    let wakes = "asking it would start it, and it might end what it finds";
    match is_asleep(host, engine.name) {
        Seen::Known(false) | Seen::Gone => None,
        Seen::Known(true) => Some(format!("it sleeps; {wakes}: start it first")),
        Seen::Denied => Some(format!("whether it sleeps is not known; {wakes}")),
        Seen::Unreadable(why) => Some(format!("whether it sleeps is not known ({why}); {wakes}")),
    }
}

/// Root's dockerd is up, by its own pidfile: cheaper than to ask systemd. A stale one may name anybody.
fn runs(host: &Host) -> bool {
    let pid = host.read_text("run/docker.pid");
    let Some(pid) = pid.known().and_then(|text| text.trim().parse().ok()).map(Pid) else {
        return false;
    };
    let process = processes::read(host, pid, Seen::Gone);
    process.known().is_some_and(|process| {
        let name = process.exe.known().and_then(|exe| system_name(exe));
        name == Some("dockerd") && process.uid == Seen::Known(0) && !process.is_dead()
    })
}

fn take(containers: &mut Containers, answers: Vec<Answer>) {
    for answer in answers {
        let engine = answer.engine;
        // A user's engine that is not there has no word in it; root's was not asked (`engine::places`).
        if engine.owner != 0 && answer.version == Err(NoAnswer::Absent) {
            continue;
        }
        let said = answer.containers.into_iter().map(|(id, seen)| ((engine, id), seen));
        containers.said.extend(said);
        containers.listed.extend(answer.all.map(|seen| (engine, seen.map(|_| ()))));
        containers.stores.extend(answer.store.map(|seen| (engine, seen)));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    const DOCKER: EngineKind = EngineKind::Docker;

    /// Why a user's Docker is not asked, on a host with these folders where root's dockerd is up.
    fn why_not(folders: &[&str]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["run/systemd/system", "proc/77"].iter().chain(folders) {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("run/docker.pid"), "77").unwrap();
        let stat = format!("77 (dockerd) S 1 77 77 0 -1{}\n", " 1".repeat(44));
        fs::write(folder.path().join("proc/77/stat"), stat).unwrap();
        fs::write(folder.path().join("proc/77/status"), "Uid:\t0\t0\t0\t0\n").unwrap();
        let exe = folder.path().join("proc/77/exe");
        let host = Host::fixture(folder.path());
        let roots = engine::at(&host, DOCKER, "run/docker.sock");
        // A stale pid is anybody's by now.
        symlink("/home/alice/dockerd", &exe).unwrap();
        assert!(is_not_to_be_asked(&host, &roots).is_some());
        fs::remove_file(&exe).unwrap();
        symlink("/usr/bin/dockerd", &exe).unwrap();
        assert_eq!(is_not_to_be_asked(&host, &roots), None);
        is_not_to_be_asked(&host, &engine::of_user(&host, DOCKER, 1000))
    }

    #[test]
    fn roots_docker_says_nothing_about_whether_a_users_sleeps() {
        let why = why_not(&["run/user/1000"]).unwrap();
        assert!(why.contains("whether it sleeps is not known"), "{why}");
        assert_eq!(why_not(&[]), None);
    }

    #[test]
    fn an_engine_that_a_user_does_not_have_has_no_word_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::fixture(folder.path());
        let question = |owner| Question {
            list: true,
            ..Question::about(engine::of_user(&host, DOCKER, owner), [])
        };
        let mut containers = Containers::default();
        take(&mut containers, engine::ask(&[question(1000)], Duration::from_secs(1)));
        assert!(containers.listed.is_empty());
        take(&mut containers, vec![question(1000).left_unasked("it sleeps")]);
        assert_eq!(containers.listed.len(), 1);
    }
}
