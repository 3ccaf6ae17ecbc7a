//! The guards around every row: age, fellows, `--also`, reapers, one service's pattern on another's port.

use std::time::Duration;

use super::super::Ended;
use super::scene::{Blindness, Fact, NOW, SERVER, Scene, system, terminal};
use crate::{
    config::settings::{ForeignHolder, UnreadModels},
    ident::{Manager, Pid, UnitRef},
    judge::verdict::Finding,
    snapshot::{CommandLine, Seen, SocketState},
};

// ---- age

fn young() -> Scene {
    Scene::mess().edit(7, |p| p.key.start_ticks = NOW - 999)
}

#[test]
fn a_process_younger_than_min_age_is_undecided() {
    assert_eq!(young().says(7).1, "undecided");
    let verdict = young().verdict(7);
    assert!(verdict.reason.starts_with("too young to judge"), "{}", verdict.reason);
    assert!(young().edit(7, |p| p.key.start_ticks = NOW - 1000).convicts(7));
    let suspect = Scene::new().process(7, 1, "web.py").edit(7, |p| p.key.start_ticks = NOW - 999);
    assert_eq!(suspect.says(7).1, "undecided");
    assert!(young().set(|s| s.defaults.min_age = Duration::ZERO).convicts(7));
}

#[test]
fn no_flag_ends_the_young() {
    let all = |scene: Scene| {
        scene.named_port("8091").ask(|t| {
            (t.also.abandoned, t.also.session, t.also.foreign) = (true, true, true);
        })
    };
    let in_terminal = young().edit(7, |p| p.terminal = terminal());
    assert!(!all(in_terminal).convicts(7));
    let foreign = young().process(6, 1, "sh").edit(7, |p| p.parent = Pid(6));
    assert!(!all(foreign).convicts(7));
}

#[test]
fn a_server_speaks_for_the_young_children_that_share_its_port() {
    let forked = |holders: &[u32]| {
        Scene::new()
            .process(6, 1, SERVER)
            .process(7, 6, SERVER)
            .edit(7, |p| (p.session, p.key.start_ticks) = (Pid(6), NOW - 10))
            .socket(holders, "0.0.0.0:8091", SocketState::Listening)
    };
    assert!(forked(&[6, 7]).convicts(7));
    assert!(!forked(&[7]).convicts(7), "its server holds no port");
    let idle = forked(&[6]).ask(|t| t.also.abandoned = true);
    assert_eq!(idle.says(7).1, "undecided", "it holds none itself");
    let other_session = forked(&[6, 7]).edit(7, |p| p.session = Pid(7));
    assert!(!other_session.convicts(7));
}

#[test]
fn what_the_ended_left_behind_is_as_old_as_they_were() {
    let ended = |session, at_ticks| {
        let ended = Ended { session: Pid(session), at_ticks };
        young().edit(7, |p| p.session = Pid(5)).ask(|t| t.ended.push(ended))
    };
    assert!(ended(5, NOW).convicts(7));
    assert!(!ended(6, NOW).convicts(7), "another session");
    assert!(!ended(5, NOW - 999).convicts(7), "begun after the end");
    let outside = ended(0, NOW).edit(7, |p| p.session = Pid::OUTSIDE);
    assert!(!outside.convicts(7), "0 names no session");
}

#[test]
fn what_was_started_after_the_run_began_is_not_ended() {
    let run = |began| Scene::mess().ask(|t| t.began_ticks = Some(began));
    assert!(run(1001).convicts(7));
    assert!(!run(1000).convicts(7));
}

// ---- whose a port is

fn unread(scene: Scene) -> Scene {
    let unread = UnreadModels { why: "it is damaged".to_owned(), remedy: None };
    scene.set(|s| s.unread_models = Some(unread))
}

#[test]
fn while_the_registry_is_not_read_a_port_proves_nobody_to_be_the_services_own() {
    assert_eq!(Scene::mess().says(7).0, 16);
    let verdict = unread(Scene::mess()).verdict(7);
    assert_eq!(verdict.title(), "undecided");
    assert!(verdict.reason.contains("which models are registered: it is damaged"), "{verdict:?}");
    let portless = Scene::new().process(7, 1, "python3 discovery_daemon.py");
    assert!(portless.convicts(7) && unread(portless).convicts(7), "its pattern alone speaks");
    let survivor = || {
        Scene::new()
            .process(7, 1, "redis-server")
            .inside(7, &system("db.service"))
            .unit(&system("db.service"), |u| {
                u.active_state = "inactive".to_owned();
                u.is_delegated = true;
            })
            .socket(&[7], "0.0.0.0:5432", SocketState::Listening)
    };
    assert!(survivor().convicts(7));
    assert!(!unread(survivor()).convicts(7));
}

#[test]
fn while_the_registry_is_not_read_no_stranger_is_ended_on_the_settings_word_alone() {
    let stranger = || {
        Scene::new()
            .process(6, 1, "sh")
            .process(7, 6, "nginx")
            .socket(&[7], "0.0.0.0:47334", SocketState::Listening)
            .set(|s| s.services.iter_mut().for_each(|s| s.foreign_holder = ForeignHolder::Reap))
    };
    assert!(stranger().convicts(7));
    assert!(!unread(stranger()).convicts(7));
    let named = unread(stranger()).named_port("47334").ask(|t| t.also.foreign = true);
    assert!(named.convicts(7), "whose port it is does not matter to who names it");
}

/// With its descriptors unread, it might hold the port of a service that nobody asked about.
#[test]
fn whose_descriptors_were_not_read_is_not_ended_in_the_name_of_one_of_two_services() {
    let asked = |scene: Scene| {
        scene.ask(|t| {
            t.named_services.push("hybrid".into());
            t.also.abandoned = true;
        })
    };
    // The founding mess: by its command line of either service, by its port of the other.
    let scene = asked(Scene::mess());
    assert!(!scene.is_candidate(7));
    assert_eq!(scene.obeys_the_law(), Ok(()));
    let unread = asked(Scene::mess()).without(&Fact::Descriptors(7), Blindness::Denied);
    let verdict = unread.verdict(7);
    assert_eq!(verdict.title(), "undecided");
    assert!(verdict.reason.contains("which ports pid 7 holds"), "{verdict:?}");
    // Where nothing has a guarded port, it surely holds none.
    let nothing = asked(Scene::new().process(7, 1, SERVER));
    assert!(nothing.without(&Fact::Descriptors(7), Blindness::Denied).convicts(7));
}

#[test]
fn while_the_registry_is_not_read_a_named_service_does_not_surely_have_its_port() {
    let asked = |scene: Scene| scene.ask(|t| t.named_services.push("aidb".into()));
    assert!(asked(Scene::mess()).convicts(7));
    assert_eq!(asked(unread(Scene::mess())).says(7).1, "undecided");
}

// ---- fellows

fn pair(parent_line: &str) -> Scene {
    Scene::new()
        .process(6, 1, parent_line)
        .process(7, 6, SERVER)
        .edit(7, |p| p.session = Pid(6))
        .socket(&[6, 7], "0.0.0.0:8091", SocketState::Listening)
}

#[test]
fn a_servers_children_go_with_it_and_each_is_convicted_by_itself() {
    let scene = pair(SERVER);
    assert_eq!((scene.says(6).0, scene.says(7).0), (16, 16));
    // the same parent, another program: the child has a parent that lives
    assert_eq!(pair("sh start.sh").says(7).1, "foreign");
    assert_eq!(pair("web.py").says(7).1, "foreign");
}

#[test]
fn nobody_is_a_fellow_across_a_session_a_unit_or_a_user() {
    let unit = system("a.service");
    for other in [
        pair(SERVER).edit(7, |p| p.session = Pid(7)),
        pair(SERVER).edit(6, |p| p.uid = Seen::Known(0)),
        pair(SERVER).inside(6, &unit).unit(&unit, |_| ()),
        pair(SERVER).cgroup(6, |c| c.path = "/elsewhere".to_owned()),
    ] {
        assert_eq!(other.says(7).1, "foreign");
    }
}

#[test]
fn who_is_a_fellow_must_be_known() {
    let scene = pair(SERVER);
    scene.needs(
        7,
        &[
            (Fact::CommandLine(6), "the command line of pid 6"),
            (Fact::Uid(6), "the user of pid 6"),
            (Fact::Cgroup(6), "the control group of pid 6"),
            (Fact::Session(6), "the session of pid 7"),
            (Fact::Process(6), "the parent of pid 7"),
        ],
    );
    // and the doubt must not make a foreign holder of it
    let reaped = scene.named_port("8091").ask(|t| t.also.foreign = true);
    assert!(!reaped.without(&Fact::Uid(6), super::scene::Blindness::Denied).convicts(7));
}

#[test]
fn a_dead_scripts_group_is_judged_member_by_member() {
    let member =
        |scene: Scene, pid: u32| scene.edit(pid, |p| (p.session, p.group) = (Pid(5), Pid(5)));
    let scene = Scene::mess().process(8, 1, "postgres").process(9, 1, "sleep").listens(8, 5432);
    let scene = member(member(member(scene, 7), 8), 9);
    let judgement = scene.judge();
    let convicted: Vec<u32> = judgement.convicted().map(|v| v.key().pid.0).collect();
    assert_eq!(convicted, [7]);
    assert_eq!(scene.says(8).1, "foreign");
    assert!(!judgement.verdicts.iter().any(|v| v.key().pid == Pid(9)));
}

// ---- reapers

#[test]
fn a_users_manager_is_a_reaper_if_systemd_says_so() {
    let manager = UnitRef { manager: Manager::User(1000), name: "init.scope".into() };
    let user = system("user@1000.service");
    let scene = Scene::mess()
        .process(40, 1, "/lib/systemd/systemd --user")
        .inside(40, &manager)
        .unit(&user, |u| u.main_pid = Some(Pid(40)))
        .edit(7, |p| p.parent = Pid(40));
    assert_eq!(scene.says(7).0, 16);
    scene.needs(
        7,
        &[
            (Fact::Unit(user.clone()), "the state of user@1000.service"),
            (Fact::Cgroup(40), "the control group of pid 40"),
        ],
    );
    let other = scene.clone().edit_unit(&user, |u| u.main_pid = Some(Pid(41)));
    assert_eq!(other.says(7).1, "foreign");
    let elsewhere = scene.inside(40, &system("a.service"));
    assert_eq!(elsewhere.says(7).1, "foreign");
}

#[test]
fn a_subreaper_is_a_parent_like_any_other() {
    let scene = Scene::mess().process(6, 1, "tini -s").edit(7, |p| p.parent = Pid(6));
    assert_eq!(scene.says(7).1, "foreign");
}

#[test]
fn a_first_process_that_is_the_server_itself_is_no_reaper() {
    let scene = Scene::mess().process(1, 0, SERVER);
    assert_eq!(scene.says(7).1, "foreign");
}

#[test]
fn a_parent_outside_our_pid_namespace_is_unknown_and_not_gone() {
    let scene = Scene::mess().edit(7, |p| p.parent = Pid::OUTSIDE);
    assert_eq!(scene.says(7).1, "undecided");
    assert!(scene.verdict(7).reason.contains("outside our pid namespace"));
}

// ---- --also and foreign_holder

#[test]
fn each_kind_of_also_ends_its_own_kind_only() {
    let session = Scene::mess().edit(7, |p| p.terminal = terminal());
    let suspect = Scene::new().process(7, 1, "web.py").listens(7, 3001);
    let foreign = Scene::new().process(7, 1, "nc").listens(7, 8091).named_port("8091");
    let managed = system("a.service");
    let spared = Scene::mess().inside(7, &managed).unit(&managed, |u| u.main_pid = Some(Pid(7)));
    for (scene, kind) in [(session, "session"), (suspect, "abandoned"), (foreign, "foreign")] {
        for also in ["session", "abandoned", "foreign", ""] {
            let asked = scene.clone().ask(|t| {
                t.also.session = also == "session";
                t.also.abandoned = also == "abandoned";
                t.also.foreign = also == "foreign";
            });
            assert_eq!(asked.convicts(7), kind == also, "{kind}, --also {also}");
        }
    }
    let all = |t: &mut super::super::Terms| {
        (t.also.session, t.also.abandoned, t.also.foreign) = (true, true, true);
    };
    assert!(!spared.named_port("8091").ask(all).convicts(7));
    let undecided = Scene::mess().edit(7, |p| p.exe = Seen::Denied);
    assert!(!undecided.named_port("8091").ask(all).convicts(7));
}

#[test]
fn foreign_holders_are_ended_on_named_ports_only() {
    let foreign = Scene::new().process(7, 1, "nc").listens(7, 8091);
    let foreign = foreign.ask(|t| t.also.foreign = true);
    assert!(!foreign.convicts(7));
    assert!(!foreign.clone().named_port("8092").convicts(7));
    assert!(foreign.clone().named_port("8091").convicts(7));
    assert!(foreign.named_port("127.0.0.1:8091").convicts(7));
}

#[test]
fn a_service_may_have_its_foreign_holders_ended() {
    let squatter = |number| Scene::new().process(7, 1, "nc").listens(7, number);
    let reaping = |scene: Scene| {
        scene.set(|s| s.services[3].foreign_holder = ForeignHolder::Reap) // mindsdb
    };
    assert!(reaping(squatter(47334)).convicts(7));
    assert!(!reaping(squatter(5432)).convicts(7));
    // what only looks like that service, on another's port, is another's foreign holder
    let web = Scene::new().process(6, 1, "sh").process(7, 6, "web.py").listens(7, 5432);
    let web = web.set(|s| s.services[4].foreign_holder = ForeignHolder::Reap);
    assert_eq!(web.says(7).1, "foreign");
    assert!(!web.convicts(7));
    // and nobody in a session or a unit is foreign
    let in_terminal = reaping(squatter(47334)).edit(7, |p| p.terminal = terminal());
    assert!(!in_terminal.convicts(7));
}

#[test]
fn a_session_that_stands_only_because_another_fact_is_missing_is_not_ended() {
    let kept = Scene::new().process(7, 1, SERVER).exe(7, "/srv/keep/server");
    let kept = kept.edit(7, |p| p.terminal = terminal());
    let kept = kept.ask(|t| t.also.session = true);
    let blinded = kept.without(&Fact::Exe(7), super::scene::Blindness::Denied);
    assert!(matches!(blinded.verdict(7).finding, Finding::Spare(_)));
    assert!(!blinded.convicts(7));
}

// ---- services and ports

#[test]
fn a_shared_pattern_goes_to_the_service_whose_port_is_held() {
    let scene = Scene::new().process(7, 1, SERVER).listens(7, 8092).set(|s| {
        s.services[2].grace = Duration::from_secs(30); // hybrid
    });
    assert_eq!(scene.says(7), (16, "orphan: not where hybrid runs".to_owned()));
    let verdict = scene.verdict(7);
    assert_eq!(verdict.services.first().unwrap().0, "hybrid");
    assert_eq!(verdict.grace, Duration::from_secs(30));
}

#[test]
fn one_process_on_the_ports_of_two_services_has_one_verdict() {
    let scene = Scene::mess().listens(7, 8092).listens(7, 3001);
    let judgement = scene.judge();
    assert_eq!(judgement.verdicts.len(), 1);
    let ports: Vec<String> = judgement.verdicts[0].ports.iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["8091/tcp", "8092/tcp", "3001/tcp"]);
    assert_eq!(scene.says(7).0, 16);
}

#[test]
fn a_holder_that_is_gone_has_no_verdict() {
    let scene = Scene::mess().without(&Fact::Process(7), Blindness::Gone);
    assert!(scene.judge().verdicts.is_empty());
    assert_ne!(scene.port("8091").sentence, "nothing has it");
}

#[test]
fn a_service_that_is_named_brings_no_process_on_the_port_of_another_that_shares_its_pattern() {
    let named = |service: &str| {
        Scene::mess().ask(|t| {
            t.named_services.push(service.into());
            t.also.abandoned = true;
        })
    };
    assert!(named("aidb").convicts(7));
    assert!(!named("hybrid").is_candidate(7));
    // without a port it may be either's
    let portless =
        Scene::new().process(7, 1, SERVER).ask(|t| t.named_services.push("hybrid".into()));
    assert!(portless.is_candidate(7));
    // and only ports of the named service are reported
    let ports = named("hybrid").judge().ports;
    assert!(ports.iter().all(|p| p.service == Some("hybrid".into())) && !ports.is_empty());
}

#[test]
fn an_editor_in_a_terminal_is_not_what_also_session_means() {
    let editor = Scene::new().process(6, 1, "bash").process(7, 6, "vim server.py --config x");
    let editor = editor.edit(7, |p| p.terminal = terminal()).ask(|t| t.also.session = true);
    assert_eq!(editor.says(7).1, "spare: session");
    assert!(!editor.convicts(7));
    assert!(editor.listens(7, 8091).convicts(7));
    let daemon = Scene::new().process(7, 1, "python3 discovery_daemon.py");
    let daemon = daemon.edit(7, |p| p.terminal = terminal()).ask(|t| t.also.session = true);
    assert!(daemon.convicts(7));
}

#[test]
fn where_systemd_may_run_unseen_nobody_is_convicted_for_being_in_no_unit() {
    let unit = system("aidb.service");
    let scene = Scene::mess().inside(7, &unit).unit(&unit, |u| u.main_pid = Some(Pid(7)));
    scene.needs(7, &[(Fact::HasSystemd, "whether systemd runs here")]);
    // in no unit, and its manager was not asked about the user
    let bare = Scene::mess().see(|s| s.lingering.clear());
    bare.needs(7, &[(Fact::HasSystemd, "whether systemd runs here")]);
}

#[test]
fn pid_1_of_a_container_may_be_the_server_itself() {
    let inside = Scene::mess().see(|s| {
        s.sight.is_first_pid_namespace = false;
        s.has_systemd = Seen::Known(false);
    });
    assert!(inside.convicts(7), "a guest's init is a reaper (LXC, WSL)");
    for server in ["/sbin/docker-init -- python3 web", "bash", "/usr/bin/supervisord"] {
        let inside = inside.clone().edit(1, |p| {
            let text = server.as_bytes().to_vec();
            p.command_line = Seen::Known(CommandLine { text, is_cut: false });
        });
        assert_eq!(inside.says(7).1, "undecided", "{server}");
        assert!(!inside.convicts(7));
    }
    // a box with a systemd of its own is a machine like another
    let a_box = Scene::mess().see(|s| s.sight.is_first_pid_namespace = false);
    assert!(a_box.convicts(7));
}

#[test]
fn a_session_lingers_with_the_user_whose_it_is_whoever_the_process_has_become() {
    let scene = || Scene::mess().in_session(7, "closing", "running");
    assert!(scene().convicts(7));
    let of_lingering = scene().cgroup(7, |c| c.session_user = Some(77));
    let of_lingering = of_lingering.see(|s| {
        s.lingering.insert(77, Seen::Known(true));
    });
    assert!(!of_lingering.convicts(7));
}

#[test]
fn a_command_line_that_goes_on_behind_its_cut_convicts_nobody_by_what_it_lacks() {
    let foreign = Scene::new().process(7, 1, "nc -l").listens(7, 8091);
    let foreign = foreign.named_port("8091").ask(|t| t.also.foreign = true);
    assert!(foreign.convicts(7));
    let cut = foreign.without(&Fact::CutLine(7), Blindness::Gone);
    assert_eq!(cut.says(7).1, "undecided");
}

/// Found by the property in `law`: what the process itself is was not read, so who its fellows are is not known.
#[test]
fn a_process_whose_own_command_line_was_not_read_may_be_a_fellow_of_its_parent() {
    let scene = Scene::new()
        .process(6, 1, "VLLM::APIServer")
        .process(7, 6, "VLLM::EngineCore")
        .edit(7, |p| (p.session, p.terminal) = (Pid(6), terminal()))
        .ask(|t| t.also.session = true)
        .edit(6, |p| p.parent = Pid::OUTSIDE);
    assert_eq!(scene.says(7).1, "undecided");
    assert!(!scene.without(&Fact::CommandLine(7), super::scene::Blindness::Denied).convicts(7));
}

#[test]
fn a_process_that_may_be_on_another_services_port_is_not_taken_for_the_named_one() {
    let worker = Scene::new().process(7, 1, "VLLM::EngineCore").listens(7, 8092);
    let scene = worker.named_port("8091");
    assert!(!scene.is_candidate(7));
    let blinded = scene.without(&Fact::Sockets, super::scene::Blindness::Denied);
    assert_eq!(blinded.says(7).1, "undecided");
    assert!(!blinded.convicts(7));
    // a receipt does not widen the question either
    let ours = Scene::new().process(7, 1, "web.py").receipt(7, |_| ()).named_port("8091");
    assert!(!ours.is_candidate(7));
    for fact in [Fact::CommandLine(7), Fact::CutLine(7)] {
        assert!(!ours.clone().without(&fact, super::scene::Blindness::Denied).convicts(7));
    }
}
