//! Whether a service may start on its ports; no fact that could not be read ever opens one.

use super::super::{
    gate::{Answer, Binds, Passage, judge},
    verdict::Unknown,
};
use super::scene::{BLINDNESSES, DOCKER, ID, Scene, port, system};
use crate::judge::gate::Accepts;
use crate::{
    config::settings::RunsIn,
    ident::{EngineKind, EngineRef, Pid, ProcessKey, Proto},
    snapshot::{
        Beyond, Bind, ContainerState, Detour, Passed, Published, Publisher, RuleNumber, RulePlace,
        Seen, Share, SocketState,
    },
};

/// The answer for this port, with and without `--allow-ours`; every port of the scene can be bound but as `bind` says. The
/// law holds on the way.
fn answers(scene: &Scene, endpoint: &str, bind: &Seen<Bind>) -> [Answer; 2] {
    [Accepts::Nobody, Accepts::Ours].map(|accepts| {
        let binds: Binds =
            scene.terms.guards.iter().map(|guard| (guard.endpoint, bind.clone())).collect();
        let all = |scene: &Scene| {
            let (snapshot, settings, terms) = (&scene.snapshot, &scene.settings, &scene.terms);
            judge(snapshot, settings, terms, &scene.judge(), &binds, &[], accepts)
        };
        let sighted = all(scene);
        let is_open = |passage: &Passage| matches!(passage.answer, Answer::Open(_));
        for (fact, blindness) in
            scene.facts().into_iter().flat_map(|fact| BLINDNESSES.map(|b| (fact.clone(), b)))
        {
            let blinded = all(&scene.clone().without(&fact, blindness));
            for (before, after) in sighted.iter().zip(&blinded) {
                let endpoint = before.port.endpoint;
                assert!(
                    is_open(before) || !is_open(after),
                    "{fact:?} {blindness:?} opens {endpoint}"
                );
            }
        }
        let endpoint = endpoint.parse().unwrap();
        sighted.into_iter().find(|passage| passage.port.endpoint == endpoint).unwrap().answer
    })
}

/// The same in a word: `open`, `blocked` or `unknown`.
fn words(scene: &Scene, endpoint: &str) -> [&'static str; 2] {
    answers(scene, endpoint, &Seen::Known(Bind::Bound)).map(|answer| word(&answer))
}

fn word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Open(_) => "open",
        Answer::Blocked(_) => "blocked",
        Answer::Unknown(_) => "unknown",
    }
}

fn by_bind(scene: &Scene, endpoint: &str, bind: Bind) -> Answer {
    let [answer, _] = answers(scene, endpoint, &Seen::Known(bind));
    answer
}

fn title(answer: &Answer) -> &'static str {
    match answer {
        Answer::Open(advice) => advice.first().map_or("", |advice| advice.title),
        Answer::Blocked(block) => block.why.title,
        Answer::Unknown(_) => "unknown",
    }
}

fn lingering() -> Scene {
    Scene::new().socket(&[], "0.0.0.0:8091", SocketState::Lingering)
}

#[test]
fn a_port_without_sockets_is_as_open_as_its_bind() {
    let scene = Scene::new();
    assert_eq!(by_bind(&scene, "8091", Bind::Bound), Answer::Open(Vec::new()));
    for (bind, wanted) in [
        (Bind::Busy, "busy"),
        (Bind::NoSuchAddress, "no such address"),
        (Bind::NoSuchFamily, "no such family"),
    ] {
        let answer = by_bind(&scene, "8091", bind);
        assert_eq!((word(&answer), title(&answer)), ("blocked", wanted));
    }
    for bind in [Seen::Denied, Seen::Gone, Seen::Unreadable("no".to_owned())] {
        let [answer, _] = answers(&scene, "8091", &bind);
        assert_eq!(word(&answer), "unknown", "{bind:?}");
    }
    let (snapshot, settings, terms) = (&scene.snapshot, &scene.settings, &scene.terms);
    let untried =
        judge(snapshot, settings, terms, &scene.judge(), &Binds::new(), &[], Accepts::Nobody);
    assert!(untried.iter().all(|port| matches!(port.answer, Answer::Unknown(Unknown { .. }))));
}

#[test]
fn closed_connections_that_linger_block_only_who_does_not_reuse() {
    assert_eq!(title(&by_bind(&lingering(), "8091", Bind::BoundReusing)), "lingering");
    assert_eq!(word(&by_bind(&lingering(), "8091", Bind::BoundReusing)), "open");
    let plain = lingering().set(|s| s.services.iter_mut().for_each(|s| s.reuse_addr = false));
    let answer = by_bind(&plain, "8091", Bind::Busy);
    assert_eq!((word(&answer), title(&answer)), ("blocked", "lingering"));
    // Left by a server that did not set it.
    let answer = by_bind(&lingering(), "8091", Bind::Busy);
    assert_eq!((word(&answer), title(&answer)), ("blocked", "lingering"));
}

#[test]
fn a_bind_that_reuses_proves_nothing_where_a_silent_socket_would_not_be_seen() {
    let blind = lingering().edit_sockets(|s| s.sees_bound = false);
    assert_eq!(word(&by_bind(&blind, "8091", Bind::BoundReusing)), "unknown");
    assert_eq!(word(&by_bind(&blind, "8091", Bind::Bound)), "open");
}

#[test]
fn a_holder_blocks_though_the_bind_would_succeed_and_its_next_step_is_named() {
    let scene = Scene::mess();
    let Answer::Blocked(block) = by_bind(&scene, "8091", Bind::Bound) else {
        panic!("not blocked")
    };
    assert_eq!(block.by[0].pid, Pid(7));
    assert_eq!(block.by[0].next_step.as_deref(), Some("'portreeve reap --port 8091' ends it"));
    for state in [SocketState::Bound, SocketState::Connected("10.0.0.1:443".parse().unwrap())] {
        let scene = Scene::new().process(7, 1, "x").socket(&[7], "0.0.0.0:8091", state);
        assert_eq!(words(&scene, "8091"), ["blocked"; 2], "{state:?}");
    }
}

#[test]
fn a_port_that_the_kernel_may_give_away_is_open_with_a_warning_until_it_is_reserved() {
    let answer = by_bind(&Scene::new(), "47334", Bind::Bound);
    assert_eq!((word(&answer), title(&answer)), ("open", "could be taken"));
    let reserved = Scene::new().see(|s| s.reserved_ports = Seen::Known("47000-48000".to_owned()));
    assert_eq!(by_bind(&reserved, "47334", Bind::Bound), Answer::Open(Vec::new()));
}

/// The service `db`, whose unit is declared, running in it.
fn db() -> Scene {
    let unit = system("db.service");
    Scene::new()
        .process(7, 1, "postgres -D /data")
        .inside(7, &unit)
        .unit(&unit, |u| u.main_pid = Some(Pid(7)))
        .listens(7, 5432)
}

#[test]
fn the_service_itself_in_its_declared_unit_is_accepted_where_that_is_wished() {
    assert_eq!(words(&db(), "5432"), ["blocked", "open"]);
    // Another unit's process, and one of this unit's on another service's port.
    let other = system("other.service");
    let elsewhere = db().inside(7, &other).unit(&other, |u| u.main_pid = Some(Pid(7)));
    assert_eq!(words(&elsewhere, "5432"), ["blocked"; 2]);
    assert_eq!(words(&db().listens(7, 8091), "8091"), ["blocked"; 2]);
    // A stranger shares the port.
    let shared = db().process(8, 1, "thief").listens(8, 5432);
    assert_eq!(words(&shared, "5432"), ["blocked"; 2]);
}

#[test]
fn what_is_left_of_an_earlier_run_of_its_unit_is_not_the_service() {
    let unit = system("db.service");
    let left = db().edit_unit(&unit, |u| {
        (u.active_state, u.sub_state, u.main_pid) =
            ("failed".to_owned(), "failed".to_owned(), None);
    });
    assert_eq!(left.verdict(7).title(), "orphan: survived db.service");
    assert_eq!(words(&left, "5432"), ["blocked"; 2]);
}

#[test]
fn the_service_itself_in_its_named_container_is_accepted_and_no_namesake_of_another_user() {
    let named = |name: &str| {
        let name = Some(name.to_owned());
        Scene::new()
            .set(|s| s.services[0].runs_in = Some(RunsIn::Container(name)))
            .process(6, 1, "containerd-shim")
            .exe(6, "/usr/bin/containerd-shim")
            .process(7, 6, "python3 server.py --config x")
            .contained(7, &[7, 1])
            .enclosed(7, 44)
            .docker_says(ContainerState::Running, Some(7))
            .listens(7, 8091)
    };
    assert_eq!(named("aidb").verdict(7).title(), "spare: live container");
    assert_eq!(words(&named("aidb"), "8091"), ["blocked", "open"]);
    assert_eq!(words(&named("other"), "8091"), ["blocked"; 2]);
    let theirs = named("aidb").edit_container(|c| {
        c.engine = EngineRef { kind: EngineKind::Podman, owner: 1000 };
    });
    assert_eq!(words(&theirs, "8091"), ["blocked"; 2]);
}

#[test]
fn who_is_in_the_gates_own_unit_is_accepted_but_not_for_a_shared_login() {
    let unit = system("my-web.service");
    let beside = Scene::new()
        .process(900, 1, "portreeve gate web")
        .inside(900, &unit)
        .process(7, 1, "web")
        .inside(7, &unit)
        .unit(&unit, |u| u.main_pid = Some(Pid(7)))
        .listens(7, 3001);
    assert_eq!(words(&beside, "3001"), ["blocked", "open"]);
    // Somebody else who has bound the port, too, will share it.
    let shared = beside.process(8, 1, "thief").edit(8, |p| p.session = Pid(8)).socket(
        &[8],
        "0.0.0.0:3001",
        SocketState::Bound,
    );
    assert_eq!(words(&shared, "3001"), ["blocked"; 2]);
    let said = shared.port("3001").sentence;
    assert!(said.starts_with("held by 2 unrelated processes: "), "{said}");
    let login = Scene::new()
        .process(900, 1, "portreeve gate web")
        .in_session(900, "active", "running")
        .process(7, 1, "web")
        .in_session(7, "active", "running")
        .listens(7, 3001);
    assert!(login.verdict(7).title().starts_with("spare: "), "{}", login.verdict(7).title());
    assert_eq!(words(&login, "3001"), ["blocked"; 2]);
}

#[test]
fn who_is_in_the_unit_of_its_model_is_the_service_itself() {
    let unit = system("portreeve-model-web.service");
    let held = |name: &str| {
        let scene = Scene::new().process(7, 1, "web").inside(7, &unit);
        let scene = scene.unit(&unit, |u| u.main_pid = Some(Pid(7))).listens(7, 3001);
        scene.set(|s| s.services.iter_mut().for_each(|s| s.own_unit = Some(name.into())))
    };
    assert_eq!(words(&held("portreeve-model-web.service"), "3001"), ["blocked", "open"]);
    assert_eq!(words(&held("portreeve-model-other.service"), "3001"), ["blocked"; 2]);
}

#[test]
fn who_may_not_be_seen_is_unknown() {
    let hidden = Scene::new()
        .socket(&[], "0.0.0.0:8091", SocketState::Listening)
        .see(|s| s.sight.may_see_all = false);
    assert_eq!(words(&hidden, "8091"), ["unknown"; 2]);
}

/// A gate of pid 50 below a shell that found port 8091 free at tick 5000 and became a command.
fn passed() -> Passed {
    Passed {
        endpoint: "8091".parse().unwrap(),
        at_ticks: 5000,
        gate: ProcessKey { pid: Pid(50), start_ticks: 4990, pidfd_inode: None },
        became_command: true,
        ancestors: Some(vec![Pid(40), Pid(1)]),
        unit_path: None,
    }
}

/// What is said of pid 7, which holds the port.
fn since(scene: &Scene, passed: Passed) -> Option<String> {
    let (snapshot, settings, terms) = (&scene.snapshot, &scene.settings, &scene.terms);
    let passed = [passed];
    let all =
        judge(snapshot, settings, terms, &scene.judge(), &Binds::new(), &passed, Accepts::Nobody);
    let port = all.into_iter().find(|p| p.port.endpoint == passed[0].endpoint).unwrap();
    let Answer::Blocked(block) = port.answer else { panic!("{port:?}") };
    let [blocker] = block.by.as_slice() else { panic!("{block:?}") };
    blocker.since.clone()
}

fn is_thief(said: Option<&str>) -> bool {
    said.is_some_and(|said| said.ends_with("the thief"))
}

/// Pid 7 holds the port, started at this tick below this parent; pids 40 and 60 are shells from before, 70 came since. No
/// service says where it runs.
fn taken(parent: u32, start_ticks: u64) -> Scene {
    let scene = Scene::new()
        .set(|s| s.services.iter_mut().for_each(|s| s.runs_in = None))
        .process(40, 1, "bash")
        .process(60, 1, "bash")
        .process(70, 60, "sh")
        .edit(70, |p| p.key.start_ticks = 6000)
        .process(7, parent, "server")
        .edit(7, |p| p.key.start_ticks = start_ticks)
        .listens(7, 8091);
    [40, 60, 70, 7]
        .into_iter()
        .fold(scene, |scene, pid| scene.edit(pid, |p| p.namespace_pids = Seen::Known(vec![pid])))
}

#[test]
fn who_took_the_port_since_a_gate_is_a_thief_only_where_the_gate_surely_did_not_start_it() {
    // Started by somebody who was there before and did not stand above the gate; or there itself.
    assert!(is_thief(since(&taken(60, 6000), passed()).as_deref()));
    assert!(is_thief(since(&taken(70, 6000), passed()).as_deref()));
    assert!(is_thief(since(&taken(1, 3000), passed()).as_deref()));
    let said = since(&taken(60, 6000), passed()).unwrap();
    assert!(said.contains("free 9950 s ago for its command, pid 50"), "{said}");
    // The gate's own shell may have got the command's child, and whoever stands above a gate may be the service.
    for parent in [40, 1] {
        let said = since(&taken(parent, 6000), passed());
        assert!(said.is_some() && !is_thief(said.as_deref()), "{said:?}");
    }
    let no_command = || Passed { became_command: false, ..passed() };
    assert!(!is_thief(since(&taken(60, 6000), no_command()).as_deref()));
    let in_unit = Passed { unit_path: Some("/system.slice/web.service".into()), ..no_command() };
    assert!(is_thief(since(&taken(60, 6000), in_unit).as_deref()));
}

#[test]
fn the_started_command_and_what_descends_from_it_took_nothing() {
    let command =
        |scene: Scene| scene.process(50, 40, "web").edit(50, |p| p.key.start_ticks = 4990);
    assert_eq!(since(&command(taken(50, 6000)), passed()), None);
    let itself = Passed {
        gate: ProcessKey { pid: Pid(7), start_ticks: 4990, pidfd_inode: None },
        ..passed()
    };
    assert_eq!(since(&taken(40, 4990), itself), None);
    let unit = "/system.slice/web.service";
    let inside = taken(1, 6000).cgroup(7, |cgroup| cgroup.path = unit.to_owned());
    let passed_in_unit = Passed { unit_path: Some(unit.to_owned()), ..passed() };
    assert_eq!(since(&inside, passed_in_unit), None);
}

#[test]
fn what_is_not_known_makes_nobody_a_thief() {
    assert!(!is_thief(since(&taken(60, 6000), Passed { ancestors: None, ..passed() }).as_deref()));
    let line_broken = taken(70, 6000).see(|s| drop(s.processes.remove(&Pid(70))));
    assert!(!is_thief(since(&line_broken, passed()).as_deref()));
    let blurred = [
        taken(60, 6000).edit(7, |p| p.cgroup = Seen::Denied),
        taken(60, 6000).edit(7, |p| p.namespace_pids = Seen::Denied),
        // An engine's child, whoever asked for it.
        taken(60, 6000).contained(7, &[7, 1]),
    ];
    for scene in blurred {
        let said = since(&scene, passed());
        assert!(said.is_some() && !is_thief(said.as_deref()), "{said:?}");
    }
    assert_eq!(since(&taken(60, 6000).see(|s| s.clock.now_ticks = Seen::Gone), passed()), None);
}

#[test]
fn who_does_not_run_where_the_ports_service_is_declared_to_is_a_thief_whoever_started_it() {
    let runs_in = |scene: Scene, place: RunsIn| {
        scene.set(|s| s.services.iter_mut().for_each(|s| s.runs_in = Some(place.clone())))
    };
    let in_unit = |scene: Scene| runs_in(scene, RunsIn::Unit("web.service".into()));
    let thief = in_unit(taken(1, 6000)).inside(7, &system("thief.service"));
    assert!(is_thief(since(&thief, passed()).as_deref()));
    let itself = in_unit(taken(1, 6000)).inside(7, &system("web.service"));
    assert!(!is_thief(since(&itself, passed()).as_deref()));
    let blurred = in_unit(taken(1, 6000)).edit(7, |p| p.cgroup = Seen::Denied);
    assert!(!is_thief(since(&blurred, passed()).as_deref()));
    let container = |scene| runs_in(scene, RunsIn::Container(Some("web".into())));
    assert!(is_thief(since(&container(taken(1, 6000)), passed()).as_deref()));
    let another = container(taken(1, 6000)).contained(7, &[7, 1]);
    assert!(!is_thief(since(&another, passed()).as_deref()));
}

const PODMAN: EngineRef = EngineRef { kind: EngineKind::Podman, owner: 0 };

/// Rules and engines were asked about, and nothing came of it.
fn nothing_beyond() -> Scene {
    let publishers = [(DOCKER, Seen::Known(Vec::new()))].into();
    let beyond = Beyond { detours: Seen::Known(Vec::new()), publishers, gone: [].into() };
    Scene::new().see(|s| s.beyond = Some(beyond))
}

fn edit(scene: Scene, edit: impl FnOnce(&mut Beyond)) -> Scene {
    scene.see(|s| edit(s.beyond.as_mut().unwrap()))
}

/// A container of this name that runs, and publishes this port.
fn publishes(scene: Scene, engine: EngineRef, name: &str, number: u16) -> Scene {
    let own = Published {
        address: None,
        port: port(number),
        proto: Proto::Tcp,
        container_port: port(80),
    };
    let (name, published) = (name.to_owned(), vec![own]);
    let container = Publisher { engine, id: ID.into(), name, main_pid: Some(Pid(77)), published };
    edit(scene, |b| drop(b.publishers.insert(engine, Seen::Known(vec![container]))))
}

/// A rule of the handle that takes such a share of this port's packets.
fn detour(scene: Scene, endpoint: &str, handle: u64, share: Share) -> Scene {
    let (table, chain) = ("nat".to_owned(), "DNAT".to_owned());
    let place = RulePlace { family: "ip", table, chain, number: RuleNumber::Handle(handle) };
    let endpoint = endpoint.parse().unwrap();
    let to = Some("10.88.0.2:80".to_owned());
    let detour = Detour { endpoint, place, share, to, comment: None };
    edit(scene, |b| {
        let mut all = b.detours.known().cloned().unwrap_or_default();
        all.push(detour);
        b.detours = Seen::Known(all);
    })
}

fn next_step(answer: &Answer) -> String {
    match answer {
        Answer::Blocked(block) => block.why.next_step.clone().unwrap_or_default(),
        Answer::Unknown(unknown) => unknown.remedy.clone().unwrap_or_default(),
        Answer::Open(advice) => format!("{advice:?}"),
    }
}

#[test]
fn a_port_that_an_engine_alone_counts_as_taken_is_blocked_and_its_containers_own_service_passes() {
    let taken = publishes(nothing_beyond(), DOCKER, "aidb", 8091);
    assert_eq!(words(&taken, "8091"), ["blocked"; 2]);
    assert_eq!(words(&taken, "8092"), ["open"; 2]);
    let answer = by_bind(&taken, "8091", Bind::Bound);
    assert_eq!(title(&answer), "allocated in the engine only");
    assert!(next_step(&answer).contains("'docker restart aidb'"), "{answer:?}");
    let runs_in = Some(RunsIn::Container(Some("aidb".to_owned())));
    let declared = taken.clone().set(|s| s.services[0].runs_in = runs_in);
    assert_eq!(words(&declared, "8091"), ["blocked", "open"]);
    // Whatever lingers on it.
    let lingers = taken.socket(&[], "0.0.0.0:8091", SocketState::Lingering);
    assert_eq!(words(&lingers, "8091"), ["blocked"; 2]);
}

#[test]
fn podman_holds_a_port_by_its_rules_alone() {
    let lost = publishes(nothing_beyond(), PODMAN, "aidb", 8091);
    assert_eq!(words(&lost, "8091"), ["open"; 2]);
    let ruled = detour(lost, "8091", 7, Share::All);
    let answer = by_bind(&ruled, "8091", Bind::Bound);
    assert_eq!(title(&answer), "published by a rule alone");
    let dead = edit(ruled, |b| b.gone = [Pid(77)].into());
    let answer = by_bind(&dead, "8091", Bind::Bound);
    assert_eq!(title(&answer), "a rule takes its packets");
    assert!(next_step(&answer).contains("'podman rm -f aidb'"), "{answer:?}");
}

#[test]
fn a_rule_without_a_container_is_named_with_its_removal_and_one_of_an_unknown_container_without() {
    let left = detour(nothing_beyond(), "8091", 7, Share::Unclear);
    let left = detour(left, "8091", 9, Share::All);
    let answer = by_bind(&left, "8091", Bind::Bound);
    assert_eq!((word(&answer), title(&answer)), ("blocked", "a rule takes its packets"));
    let both = "'nft delete rule ip nat DNAT handle 7; nft delete rule ip nat DNAT handle 9'";
    assert!(next_step(&answer).starts_with(both), "{answer:?}");
    let silent = Seen::Unreadable("it did not answer".to_owned());
    let unknown = edit(left, |b| drop(b.publishers.insert(PODMAN, silent)));
    let answer = by_bind(&unknown, "8091", Bind::Bound);
    assert_eq!(word(&answer), "blocked");
    assert!(!next_step(&answer).contains("delete"), "{answer:?}");
}

#[test]
fn a_name_that_a_shell_would_not_take_as_it_stands_is_in_no_command() {
    let odd = edit(detour(nothing_beyond(), "8091", 7, Share::All), |b| {
        if let Seen::Known(all) = &mut b.detours {
            all[0].place.chain = "a; reboot".to_owned();
        }
    });
    let answer = by_bind(&odd, "8091", Bind::Bound);
    assert!(!next_step(&answer).contains("nft delete"), "{answer:?}");
}

#[test]
fn a_rule_that_takes_some_packets_leaves_the_port_open_with_a_word_of_it() {
    let some = detour(nothing_beyond(), "8091", 7, Share::Some);
    let answer = by_bind(&some, "8091", Bind::Bound);
    assert_eq!((word(&answer), title(&answer)), ("open", "a rule takes some packets"));
}

#[test]
fn an_engine_that_was_asked_in_vain_and_rules_that_could_not_be_read_open_nothing() {
    for unseen in [Seen::Gone, Seen::Denied, Seen::Unreadable("late".to_owned())] {
        let silent = edit(nothing_beyond(), |b| drop(b.publishers.insert(DOCKER, unseen.clone())));
        assert_eq!(words(&silent, "8091"), ["unknown"; 2], "{unseen:?}");
        let next = next_step(&by_bind(&silent, "8091", Bind::Bound));
        assert!(next.contains("docker: off"), "{next}");
    }
    for unseen in [Seen::Gone, Seen::Unreadable("it changed".to_owned())] {
        let unread = edit(nothing_beyond(), |b| b.detours = unseen);
        assert_eq!(words(&unread, "8091"), ["unknown"; 2]);
    }
    // The one exception: whoever has no right to see rules is told so once.
    let denied = edit(nothing_beyond(), |b| b.detours = Seen::Denied);
    assert_eq!(words(&denied, "8091"), ["open"; 2]);
    assert!(super::super::gate::unseen(&denied.snapshot).is_some());
    assert_eq!(super::super::gate::unseen(&nothing_beyond().snapshot), None);
}
