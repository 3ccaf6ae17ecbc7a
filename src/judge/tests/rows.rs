//! Each row of the table: it decides, it does not where a condition fails, and what it needs to know.

use std::time::Duration;

use super::scene::{Blindness, Fact, SERVER, Scene, claim, system, terminal};
use crate::{
    config::settings::RunsIn,
    ident::{Manager, Pid, ProcessKey, UnitRef},
    snapshot::{ClaimKind, KillMode, Owner, Process, Seen, Unit},
};

fn row(number: u8, title: &str) -> (u8, String) {
    (number, title.to_owned())
}

// ---- row 1

#[test]
fn row_1_protects_the_machine_itself_and_our_own_line() {
    let protected = |scene: Scene, pid| {
        assert_eq!(scene.says(pid), row(1, "spare: protected"));
    };
    protected(Scene::new().listens(1, 8091), 1);
    protected(Scene::mess().edit(7, |p| p.is_kernel_thread = true), 7);
    protected(Scene::new().process(900, 1, SERVER).listens(900, 8091), 900);
    protected(Scene::new().process(901, 1, SERVER).listens(901, 8091), 901);
    for exe in [
        "/usr/sbin/sshd",
        "/usr/lib/systemd/systemd-logind",
        "/usr/bin/containerd-shim-runc-v2",
        "/usr/sbin/sshd (deleted)",
        "/nix/store/abc-conmon-2.1/bin/.podman-wrapped",
    ] {
        protected(Scene::mess().exe(7, exe), 7);
    }
}

#[test]
fn row_1_goes_by_the_executables_folder_not_by_its_name() {
    for exe in ["/home/alice/bin/sshd", "/usr/bin/python3-sshd", "/tmp/systemd-logind"] {
        assert_eq!(Scene::mess().exe(7, exe).says(7), row(16, "orphan: not where aidb runs"));
    }
}

#[test]
fn row_1_obeys_rules_for_executables_and_units() {
    let by_exe = Scene::mess().exe(7, "/srv/keep/server");
    assert_eq!(by_exe.says(7), row(1, "spare: protected"));
    assert_eq!(by_exe.verdict(7).reason, "a 'protect:' rule names it");
    let of_unit = |name: &str| Scene::mess().inside(7, &system(name)).says(7).0;
    assert_eq!(of_unit("keep-this.service"), 1);
    assert_ne!(of_unit("lose-this.service"), 1);
}

#[test]
fn row_1_convicts_nobody_whose_executable_or_unit_is_not_known() {
    Scene::mess().needs(
        7,
        &[
            (Fact::Exe(7), "the executable of pid 7"),
            (Fact::Ancestors, "what portreeve was started from"),
            (Fact::Cgroup(7), "the control group of pid 7"),
        ],
    );
}

// ---- rows 3 and 6

/// A container's process below its shim.
fn container() -> Scene {
    Scene::new()
        .process(50, 1, "containerd-shim")
        .process(7, 50, SERVER)
        .contained(7, &[7, 1])
        .listens(7, 8091)
}

#[test]
fn row_3_spares_whoever_descends_from_a_living_process_outside_the_container() {
    assert_eq!(container().says(7), row(3, "spare: live container"));
    // a child of the container's own first process
    let deep = container().process(8, 7, SERVER).contained(8, &[8, 2]).listens(8, 8791);
    assert_eq!(deep.says(8), row(3, "spare: live container"));
    // told by the pid namespace alone, and by the claim alone (--pid host)
    let unclaimed = container().cgroup(7, |c| c.claim = None);
    assert_eq!(unclaimed.says(7), row(3, "spare: live container"));
    let host_pids = container().edit(7, |p| p.namespace_pids = Seen::Known(vec![7]));
    assert_eq!(host_pids.says(7), row(3, "spare: live container"));
    assert!(!container().ask(|t| t.also.abandoned = true).convicts(7));
}

#[test]
fn row_3_spares_a_container_inside_a_container() {
    let nested = container()
        .process(60, 7, "dockerd")
        .contained(60, &[60, 2])
        .process(61, 60, "web.py")
        .contained(61, &[61, 3, 1]);
    assert_eq!(nested.says(61), row(3, "spare: live container"));
}

#[test]
fn row_6_leaves_what_nothing_supervises_to_the_engine() {
    let alone = || container().edit(7, |p| p.parent = Pid::INIT);
    let undecided = |scene: Scene| {
        assert_eq!(scene.says(7), row(6, "undecided"));
        assert!(scene.verdict(7).reason.contains("whether"), "{}", scene.verdict(7).reason);
    };
    undecided(alone());
    undecided(alone().cgroup(7, |c| c.claim = None));
    undecided(alone().edit(7, |p| p.namespace_pids = Seen::Known(vec![7])));
    for kind in [ClaimKind::Podman, ClaimKind::Cri, ClaimKind::Lxc, ClaimKind::Nspawn] {
        undecided(alone().cgroup(7, |c| c.claim.as_mut().unwrap().kind = kind));
    }
    // a worker or a receipt says nothing against it either
    undecided(alone().process(7, 1, "VLLM::EngineCore").contained(7, &[7, 1]));
    undecided(alone().receipt(7, |_| ()));
    assert!(!alone().ask(|t| t.also.abandoned = true).convicts(7));
}

#[test]
fn row_6_takes_a_users_manager_for_no_supervisor() {
    let manager = UnitRef { manager: Manager::User(1000), name: "init.scope".into() };
    let scene = container()
        .process(40, 1, "/lib/systemd/systemd --user")
        .inside(40, &manager)
        .unit(&system("user@1000.service"), |u| u.main_pid = Some(Pid(40)))
        .edit(7, |p| p.parent = Pid(40));
    assert_eq!(scene.says(7), row(6, "undecided"));
    // another process in that scope is a process like any other
    let other = scene.edit_unit(&system("user@1000.service"), |u| u.main_pid = Some(Pid(41)));
    assert_eq!(other.says(7), row(3, "spare: live container"));
}

#[test]
fn rows_3_and_6_name_the_fact_that_they_lack() {
    let free = Scene::mess();
    free.needs(
        7,
        &[
            (Fact::Cgroup(7), "the control group of pid 7"),
            (Fact::NamespacePids(7), "the pid namespace of pid 7"),
        ],
    );
    let host_pids = container().edit(7, |p| p.namespace_pids = Seen::Known(vec![7]));
    for (scene, fact, name) in [
        (container(), Fact::NamespacePids(50), "the pid namespace of pid 50"),
        (container(), Fact::Cgroup(50), "the control group of pid 50"),
        (container(), Fact::Process(50), "the parent of pid 7"),
        (container(), Fact::Parent(7), "the parent of pid 7"),
        (host_pids, Fact::Cgroup(50), "the control group of pid 50"),
    ] {
        let blinded = scene.without(&fact, Blindness::Denied);
        let verdict = blinded.verdict(7);
        assert_eq!(verdict.title(), "undecided", "{fact:?}");
        assert!(verdict.reason.contains(name), "{fact:?}: {}", verdict.reason);
    }
}

#[test]
fn a_ring_of_parents_that_were_read_at_two_moments_is_undecided() {
    let ring = container().edit(50, |p| p.parent = Pid(7)).contained(50, &[50, 2]);
    assert_eq!(ring.says(7).1, "undecided");
}

// ---- row 7

#[test]
fn row_7_judges_no_forwarder_before_its_container() {
    for exe in ["/usr/bin/docker-proxy", "/usr/bin/conmon", "/usr/libexec/podman/rootlessport"] {
        let scene = Scene::mess().exe(7, exe);
        assert_eq!(scene.says(7), row(7, "undecided"), "{exe}");
        assert!(!scene.ask(|t| t.also.abandoned = true).convicts(7));
    }
    assert_eq!(Scene::mess().exe(7, "/home/alice/docker-proxy").says(7).0, 16);
}

#[test]
fn a_forwarder_that_holds_no_guarded_port_is_a_part_of_its_engine() {
    let scene = Scene::new().process(7, 1, "VLLM::pasta").exe(7, "/usr/bin/pasta");
    assert_eq!(scene.says(7), row(1, "spare: protected"));
}

// ---- rows 2 and 8

#[test]
fn row_8_convicts_by_a_receipt_whose_owner_is_gone() {
    let ours = Scene::new().process(50, 1, "sh").process(7, 50, "web.py");
    let ours = ours.receipt(7, |_| ());
    assert_eq!(ours.says(7), row(8, "orphan: ours"));
    assert!(ours.convicts(7));
    ours.needs(
        7,
        &[
            (Fact::Boot, "the boot id"),
            (Fact::Exe(7), "the executable of pid 7"),
            (Fact::Uid(7), "the user of pid 7"),
            (Fact::OwnerAlive(0), "whether portreeve-model-llama.service lives"),
        ],
    );
    let owned = ours.see(|s| s.receipts[0].is_owner_alive = Seen::Known(true));
    assert_eq!(owned.says(7).0, 19);
}

#[test]
fn row_2_drops_a_receipt_of_another_boot_process_program_or_user() {
    let key = |start_ticks, pidfd_inode| ProcessKey { pid: Pid(7), start_ticks, pidfd_inode };
    let base = || Scene::new().process(50, 1, "sh").process(7, 50, "web.py");
    let dropped = |scene: Scene| assert_eq!(scene.says(7).0, 19);
    dropped(base().receipt(7, |r| r.boot_id = "another".to_owned()));
    dropped(base().receipt(7, |r| r.key = key(999, None)));
    dropped(base().receipt(7, |r| r.exe = Some("/usr/bin/other".into())));
    dropped(base().receipt(7, |r| r.uid = Some(0)));
    let with_inode = || base().edit(7, |p| p.key.pidfd_inode = Some(5));
    dropped(with_inode().receipt(7, |r| r.key.pidfd_inode = Some(6)));
    // the same inode settles it, whatever the program is by now
    let replaced = with_inode().receipt(7, |r| r.exe = Some("/usr/bin/other".into()));
    assert_eq!(replaced.says(7).0, 8);
    // and without one, whether it fits is unknown where that was not seen when it was written
    for unseen in [base().receipt(7, |r| r.exe = None), base().receipt(7, |r| r.uid = None)] {
        assert_eq!(unseen.says(7), row(8, "undecided"));
    }
    // an upgrade replaces the file below a server that runs
    let upgraded = base().receipt(7, |_| ()).exe(7, "/usr/bin/python3.13 (deleted)");
    assert_eq!(upgraded.says(7).0, 8);
}

#[test]
fn row_8_takes_a_users_word_for_processes_of_their_own_alone() {
    let by = |writer| {
        let scene = Scene::new().process(50, 1, "sh").process(7, 50, "web.py");
        scene.edit(7, |p| p.key.pidfd_inode = Some(5)).receipt(7, |r| r.writer = writer)
    };
    assert_eq!(by(1000).says(7), row(8, "orphan: ours"));
    assert_eq!(by(1001).says(7).0, 19);
    by(1000).needs(7, &[(Fact::Uid(7), "the user of pid 7")]);
}

#[test]
fn row_8_leaves_containers_to_their_rows_whatever_a_receipt_says() {
    let mimics = container().receipt(7, |_| ());
    assert_eq!(mimics.says(7), row(3, "spare: live container"));
    let alone = mimics.edit(7, |p| p.parent = Pid::INIT);
    assert_eq!(alone.says(7), row(6, "undecided"));
    // one that is seen in no container is not convicted by a container's receipt
    let owner = || Owner::Container("vllm-model-llama".to_owned());
    let scene = Scene::new().process(50, 1, "sh").process(7, 50, "web.py");
    assert_eq!(scene.receipt(7, |r| r.owner = owner()).says(7).0, 19);
}

#[test]
fn of_two_receipts_for_one_process_the_one_whose_owner_lives_counts() {
    let scene = Scene::new().process(50, 1, "sh").process(7, 50, "web.py").receipt(7, |_| ());
    let other = scene.receipt(7, |r| r.is_owner_alive = Seen::Known(true));
    assert_eq!(other.says(7).0, 19);
    // what is left of a process that had its id before is no second one
    let old = Scene::new().process(50, 1, "sh").process(7, 50, "web.py");
    let old = old.receipt(7, |r| {
        (r.key.start_ticks, r.is_owner_alive) = (5, Seen::Known(true));
    });
    assert_eq!(old.receipt(7, |_| ()).says(7).0, 8);
}

#[test]
fn a_receipts_process_belongs_to_the_service_of_its_model() {
    let ours = Scene::new().process(50, 1, "sh").process(7, 50, "nothing known");
    let ours = ours.receipt(7, |r| r.model = "web".into()).see(|s| s.matching = [Pid(7)].into());
    let services = |scene: &Scene| -> Vec<String> {
        scene.verdict(7).services.iter().map(ToString::to_string).collect()
    };
    assert_eq!(services(&ours), ["web"]);
    let named = ours.clone().ask(|t| t.named_services.push("web".into()));
    assert!(named.convicts(7));
    // one that is left of another process says nothing
    let dropped = ours.see(|s| s.receipts[0].boot_id = "another".to_owned());
    assert!(!dropped.is_candidate(7));
    assert_eq!(services(&dropped.listens(7, 8091)), ["aidb"]);
}

// ---- row 9

fn worker() -> Scene {
    Scene::new().process(7, 1, "VLLM::EngineCore")
}

#[test]
fn row_9_convicts_a_worker_whose_server_is_gone_even_with_a_terminal() {
    assert_eq!(worker().says(7), row(9, "orphan: worker without its server"));
    let in_terminal = worker().edit(7, |p| p.terminal = terminal());
    assert_eq!(in_terminal.says(7).0, 9);
    assert!(in_terminal.in_session(7, "active", "running").convicts(7));
}

#[test]
fn row_9_spares_a_worker_whose_server_lives_or_that_its_unit_owns() {
    let server = worker().process(6, 1, "vllm serve").edit(7, |p| p.parent = Pid(6));
    assert_eq!(server.says(7), row(19, "spare: its parent lives"));
    let unit = system("vllm.service");
    for edit in [(|u| u.main_pid = Some(Pid(7))) as fn(&mut Unit), |u| u.control_pid = Some(Pid(7))]
    {
        let main = worker().inside(7, &unit).unit(&unit, edit);
        assert_eq!(main.says(7).0, 12);
    }
    // below a main process that has a worker's title itself
    let below = worker().process(6, 1, "VLLM::EngineCore").edit(7, |p| p.parent = Pid(6));
    let below = below.inside(6, &unit).inside(7, &unit);
    let below = below.unit(&unit, |u| u.main_pid = Some(Pid(6)));
    assert_eq!((below.says(6).0, below.says(7).0), (12, 12));
    // in the unit, but neither: its server is gone all the same
    let other = worker().inside(7, &unit).unit(&unit, |u| u.main_pid = Some(Pid(70)));
    assert_eq!(other.says(7).0, 9);
    assert_eq!(worker().process(7, 1, "OTHER::EngineCore").listens(7, 3001).says(7).0, 18);
}

#[test]
fn row_9_needs_the_title_the_parent_and_the_unit() {
    let unit = system("vllm.service");
    let scene = worker().inside(7, &unit).unit(&unit, |_| ());
    scene.needs(
        7,
        &[
            (Fact::CommandLine(7), "the command line of pid 7"),
            (Fact::CommandLine(1), "the command line of pid 1"),
            (Fact::Process(1), "the parent of pid 7"),
            (Fact::Parent(7), "the parent of pid 7"),
            (Fact::Unit(unit), "the state of vllm.service"),
        ],
    );
    worker().does_not_need(7, &[Fact::Sockets, Fact::Linger(1000), Fact::Boot]);
}

// ---- row 10

#[test]
fn row_10_spares_a_terminal_an_open_session_and_what_is_traced() {
    let session = |scene: Scene| {
        assert_eq!(scene.says(7), row(10, "spare: session"));
        assert!(!scene.clone().ask(|t| t.also.abandoned = true).convicts(7));
        assert!(scene.ask(|t| t.also.session = true).convicts(7));
    };
    session(Scene::mess().edit(7, |p| p.terminal = terminal()));
    session(Scene::mess().in_session(7, "active", "running"));
    session(Scene::mess().in_session(7, "online", "running"));
    session(Scene::mess().edit(7, |p| p.tracer = Seen::Known(Some(Pid(50)))));
    Scene::mess().needs(7, &[(Fact::Tracer(7), "the tracer of pid 7")]);
}

#[test]
fn row_1_protects_the_keepers_of_terminals_from_every_flag() {
    for exe in ["/usr/bin/tmux", "/usr/bin/screen", "/home/alice/.cargo/bin/zellij"] {
        let scene = Scene::mess().exe(7, exe);
        assert_eq!(scene.says(7), row(1, "spare: protected"), "{exe}");
        assert!(!scene.ask(|t| (t.also.session, t.also.abandoned) = (true, true)).convicts(7));
    }
}

#[test]
fn row_10_spares_no_closed_session() {
    for (state, sub_state) in [("closing", "running"), ("active", "abandoned")] {
        let scene = Scene::mess().in_session(7, state, sub_state);
        assert_eq!(scene.says(7), row(16, "orphan: not where aidb runs"), "{state} {sub_state}");
    }
}

#[test]
fn row_10_takes_no_silence_for_a_logout() {
    let scope = system("session-3.scope");
    for (state, sub_state) in [("active", "running"), ("closing", "running")] {
        Scene::mess().in_session(7, state, sub_state).needs(
            7,
            &[
                (Fact::SessionState("3".to_owned()), "the state of session 3"),
                (Fact::Unit(scope.clone()), "the state of session-3.scope"),
            ],
        );
    }
    let unasked = Scene::mess().in_session(7, "active", "running").see(|s| s.sessions.clear());
    assert_eq!(unasked.says(7).1, "undecided");
    let unloaded = Scene::mess().in_session(7, "closing", "running");
    assert_eq!(unloaded.edit_unit(&scope, |u| u.is_loaded = false).says(7).1, "undecided");
}

#[test]
fn a_terminal_needs_no_manager_to_speak_for_it() {
    let scene = Scene::mess().edit(7, |p| p.terminal = terminal());
    let scene = scene.in_session(7, "active", "running");
    let scope = Fact::Unit(system("session-3.scope"));
    scene.does_not_need(7, &[Fact::SessionState("3".to_owned()), scope]);
}

// ---- rows 11 and 12

fn in_unit(edit: impl FnOnce(&mut Unit)) -> Scene {
    let unit = system("a.service");
    Scene::mess().inside(7, &unit).unit(&unit, edit)
}

#[test]
fn row_12_spares_the_units_processes_and_their_descendants() {
    let managed = row(12, "spare: managed by a.service");
    assert_eq!(in_unit(|u| u.main_pid = Some(Pid(7))).says(7), managed);
    assert_eq!(in_unit(|u| u.control_pid = Some(Pid(7))).says(7), managed);
    let main = in_unit(|u| u.main_pid = Some(Pid(5))).process(5, 1, "sh").process(6, 5, "sh");
    assert_eq!(main.edit(7, |p| p.parent = Pid(6)).says(7), managed);
    for state in ["activating", "deactivating", "reloading"] {
        let scene = in_unit(|u| (u.main_pid, u.active_state) = (Some(Pid(7)), state.to_owned()));
        assert_eq!(scene.says(7), managed, "{state}");
    }
}

#[test]
fn row_12_asks_the_users_manager_about_its_own_units() {
    let unit = UnitRef { manager: Manager::User(1000), name: "a.service".into() };
    let scene = Scene::mess().inside(7, &unit).unit(&unit, |u| u.main_pid = Some(Pid(7)));
    assert_eq!(scene.says(7), row(12, "spare: managed by a.service of user 1000"));
    // the system's unit of the same name is another one
    let other = scene.see(|s| s.units.clear()).unit(&system("a.service"), |_| ());
    assert_eq!(other.says(7).1, "undecided");
}

#[test]
fn row_11_decides_nothing_about_a_unit_that_its_manager_does_not_describe() {
    for edit in [(|_| ()) as fn(&mut Unit), |u| u.active_state = "failed".to_owned()] {
        in_unit(edit).needs(7, &[(Fact::Unit(system("a.service")), "the state of a.service")]);
    }
    let unloaded = in_unit(|u| (u.is_loaded, u.active_state) = (false, "inactive".to_owned()));
    assert_eq!(unloaded.says(7).1, "undecided");
    assert_eq!(in_unit(|_| ()).see(|s| s.units.clear()).says(7).1, "undecided");
}

#[test]
fn a_silent_manager_leaves_him_spared_whose_parent_lives() {
    let unit = system("a.service");
    let scene = Scene::new().process(6, 1, "sh").process(7, 6, "web.py").inside(7, &unit);
    assert_eq!(scene.says(7), row(19, "spare: its parent lives"));
}

// ---- row 13

fn survivor() -> Scene {
    in_unit(|u| u.active_state = "failed".to_owned())
}

#[test]
fn row_13_convicts_what_outlived_a_unit_that_ends_all_its_processes() {
    let survived = row(13, "orphan: survived a.service");
    assert_eq!(survivor().says(7), survived);
    assert!(survivor().convicts(7));
    let mixed = survivor().edit_unit(&system("a.service"), |u| u.kill_mode = Some(KillMode::Mixed));
    assert_eq!(mixed.says(7), survived);
    // no pattern is asked for
    let postgres = Scene::new().process(7, 1, "postgres").listens(7, 3001);
    let postgres = postgres.inside(7, &system("a.service"));
    let postgres = postgres.unit(&system("a.service"), |u| u.active_state = "inactive".to_owned());
    assert_eq!(postgres.says(7), survived);
}

#[test]
fn row_13_convicts_nobody_where_one_condition_fails() {
    let spared = |edit: fn(&mut Unit)| {
        let scene = survivor().edit_unit(&system("a.service"), edit);
        assert!(!scene.convicts(7), "{:?}", scene.says(7));
    };
    spared(|u| u.active_state = "active".to_owned());
    spared(|u| u.active_state = "deactivating".to_owned());
    spared(|u| u.kill_mode = Some(KillMode::Process));
    spared(|u| u.kill_mode = Some(KillMode::None));
    spared(|u| u.kill_mode = Some(KillMode::Other("new".to_owned())));
    spared(|u| u.kill_mode = None);
    spared(|u| u.sends_sigkill = false);
    spared(|u| u.is_delegated = true);
    let child = survivor().process(6, 1, "sh").edit(7, |p| p.parent = Pid(6));
    assert_eq!(child.says(7), row(15, "spare: in a.service"));
    let scope = system("a.scope");
    let in_scope = Scene::mess().inside(7, &scope);
    let in_scope = in_scope.unit(&scope, |u| u.active_state = "failed".to_owned());
    assert!(!in_scope.convicts(7));
}

#[test]
fn row_13_needs_the_unit_and_the_parent() {
    survivor().needs(
        7,
        &[
            (Fact::Unit(system("a.service")), "the state of a.service"),
            (Fact::Process(1), "the parent of pid 7"),
            (Fact::Parent(7), "the parent of pid 7"),
            (Fact::CommandLine(1), "the command line of pid 1"),
        ],
    );
}

// ---- row 14

fn invocation(id: char) -> impl FnOnce(&mut Process) {
    move |p| p.invocation_id = Some(Seen::Known(Some(id.to_string().repeat(32))))
}

/// A process that holds db's port in db.service, begun 10 s after boot; the present run began after 5000 s.
fn earlier() -> Scene {
    let unit = system("db.service");
    let scene = Scene::new().process(7, 1, "anything").listens(7, 5432);
    scene.inside(7, &unit).unit(&unit, |_| ()).edit(7, invocation('a'))
}

#[test]
fn row_14_convicts_an_earlier_run_in_the_unit_that_the_service_declares() {
    let earlier_run = row(14, "orphan: an earlier run of db.service");
    assert_eq!(earlier().says(7), earlier_run);
    assert!(earlier().convicts(7));
    let by_pattern = earlier().process(8, 1, "postgres -D /x").inside(8, &system("db.service"));
    assert_eq!(by_pattern.edit(8, invocation('a')).says(8), earlier_run);
    let dead = earlier().edit_unit(&system("db.service"), |u| {
        u.active_state = "inactive".to_owned();
        u.kill_mode = Some(KillMode::Process);
    });
    assert_eq!(dead.edit(7, |p| p.invocation_id = None).says(7), earlier_run);
}

#[test]
fn row_14_convicts_nobody_where_one_condition_fails() {
    let db = system("db.service");
    let in_db = row(15, "spare: in db.service");
    assert_eq!(earlier().edit(7, invocation('b')).says(7), in_db);
    assert_eq!(earlier().edit(7, |p| p.invocation_id = Some(Seen::Known(None))).says(7), in_db);
    assert_eq!(earlier().edit_unit(&db, |u| u.invocation_id = None).says(7), in_db);
    assert_eq!(earlier().edit(7, |p| p.key.start_ticks = 600_000).says(7), in_db);
    let child = earlier().process(6, 1, "sh").edit(7, |p| p.parent = Pid(6));
    assert_eq!(child.says(7), in_db);
    let main = earlier().edit_unit(&db, |u| u.main_pid = Some(Pid(7)));
    assert_eq!(main.says(7), row(12, "spare: managed by db.service"));
    // another unit, a user's unit of that name, and a service that declares none
    let other = system("other.service");
    assert_eq!(earlier().inside(7, &other).unit(&other, |_| ()).says(7).0, 15);
    let users = UnitRef { manager: Manager::User(1000), name: "db.service".into() };
    assert_eq!(earlier().inside(7, &users).unit(&users, |_| ()).says(7).0, 15);
    assert_eq!(earlier().set(|s| s.services[1].runs_in = None).says(7), in_db);
}

#[test]
fn row_14_needs_the_times_the_runs_the_parent_and_the_unit() {
    let db = system("db.service");
    earlier().needs(
        7,
        &[
            (Fact::InvocationId(7), "INVOCATION_ID of pid 7"),
            (Fact::Now, "when db.service or pid 7 began"),
            (Fact::Process(1), "the parent of pid 7"),
            (Fact::Unit(db.clone()), "the state of db.service"),
        ],
    );
    let timeless = earlier().edit_unit(&db, |u| u.started = None);
    assert_eq!(timeless.says(7), row(14, "undecided"));
    let unasked = earlier().edit(7, |p| p.invocation_id = None);
    assert_eq!(unasked.says(7), row(14, "undecided"));
}

// ---- row 15

#[test]
fn row_15_spares_whatever_else_a_unit_contains() {
    let inside = row(15, "spare: in a.service");
    // a forking unit without a main process, a double-forked helper, a CI job's leftover
    assert_eq!(in_unit(|_| ()).says(7), inside);
    assert_eq!(in_unit(|u| u.main_pid = Some(Pid(70))).says(7), inside);
    let runner = in_unit(|u| (u.kill_mode, u.main_pid) = (Some(KillMode::Process), Some(Pid(70))));
    assert_eq!(runner.says(7), inside);
    assert!(!runner.ask(|t| t.also.abandoned = true).convicts(7));
    let scope = system("run-1.scope");
    assert_eq!(Scene::mess().inside(7, &scope).unit(&scope, |_| ()).says(7).0, 15);
}

#[test]
fn row_15_leaves_to_suspicion_what_a_dead_unit_left_on_purpose() {
    let left = |edit: fn(&mut Unit)| survivor().edit_unit(&system("a.service"), edit);
    for scene in [
        left(|u| u.kill_mode = Some(KillMode::Process)),
        left(|u| u.is_delegated = true),
        left(|u| u.sends_sigkill = false),
    ] {
        assert_eq!(scene.says(7), row(17, "suspect"));
        assert!(!scene.convicts(7));
    }
    // without a pattern it is the unit's business
    let no_pattern = left(|u| u.kill_mode = Some(KillMode::Process)).process(7, 1, "postgres");
    assert_eq!(no_pattern.inside(7, &system("a.service")).says(7).0, 15);
}

#[test]
fn row_15_needs_the_unit_only_where_somebody_might_be_convicted() {
    in_unit(|_| ()).needs(7, &[(Fact::Unit(system("a.service")), "the state of a.service")]);
    let child = Scene::new().process(6, 1, "sh").process(7, 6, "web.py");
    let unit = system("a.service");
    let scene = child.inside(7, &unit).unit(&unit, |_| ());
    let blinded = scene.without(&Fact::Unit(unit), Blindness::Denied);
    assert_eq!(blinded.says(7), row(19, "spare: its parent lives"));
}

// ---- row 16

#[test]
fn row_16_convicts_the_founding_mess() {
    assert_eq!(Scene::mess().says(7), row(16, "orphan: not where aidb runs"));
    let verdict = Scene::mess().verdict(7);
    assert!(verdict.is_convicted);
    assert_eq!(
        verdict.reason,
        "declared to run in a container, runs outside; parent gone, in no session, uid 1000 does not linger"
    );
    assert_eq!(verdict.ports, ["8091".parse().unwrap()]);
    let portless = Scene::new().process(7, 1, "python3 discovery_daemon.py");
    assert_eq!(portless.says(7), row(16, "orphan: not where aidb runs"));
    let in_unit = Scene::new().process(7, 1, "postgres -D /x").listens(7, 5432);
    assert_eq!(in_unit.says(7), row(16, "orphan: not where db runs"));
}

#[test]
fn row_16_convicts_nobody_where_one_condition_fails() {
    let suspect = row(17, "suspect");
    // no port of the service, another service's port, a port without a pattern
    assert_eq!(Scene::new().process(7, 1, SERVER).says(7), suspect);
    assert_eq!(Scene::new().process(7, 1, SERVER).listens(7, 3001).says(7), suspect);
    assert_eq!(Scene::new().process(7, 1, "other").listens(7, 8091).says(7), row(18, "foreign"));
    // nothing declared
    assert_eq!(Scene::new().process(7, 1, "web.py").listens(7, 3001).says(7), suspect);
    // a living parent
    let child = Scene::mess().process(6, 1, "sh").edit(7, |p| p.parent = Pid(6));
    assert_eq!(child.says(7), row(18, "foreign"));
    // in a unit, in an open session, and a user who lingers
    assert_eq!(in_unit(|_| ()).says(7).0, 15);
    assert_eq!(Scene::mess().in_session(7, "active", "running").says(7).0, 10);
    let lingers = Scene::mess().see(|s| drop(s.lingering.insert(1000, Seen::Known(true))));
    assert_eq!(lingers.says(7), suspect);
}

#[test]
fn row_16_needs_all_that_might_speak_for_the_process() {
    Scene::mess().needs(
        7,
        &[
            (Fact::CommandLine(7), "the command line of pid 7"),
            (Fact::CommandLine(1), "the command line of pid 1"),
            (Fact::Sockets, "the sockets on the guarded ports"),
            (Fact::Cgroup(7), "the control group of pid 7"),
            (Fact::NamespacePids(7), "the pid namespace of pid 7"),
            (Fact::Exe(7), "the executable of pid 7"),
            (Fact::Uid(7), "the user of pid 7"),
            (Fact::Process(1), "the parent of pid 7"),
            (Fact::Parent(7), "the parent of pid 7"),
            (Fact::Linger(1000), "whether uid 1000 lingers"),
            (Fact::Now, "the age of pid 7"),
        ],
    );
    Scene::mess().does_not_need(7, &[Fact::Boot, Fact::EphemeralPorts, Fact::Session(7)]);
    assert_eq!(Scene::mess().see(|s| s.lingering.clear()).says(7).1, "undecided");
}

#[test]
fn without_systemd_neither_units_nor_lingering_speak() {
    let unit = system("a.service");
    let scene = Scene::mess().inside(7, &unit).see(|s| {
        s.has_systemd = Seen::Known(false);
        s.lingering.clear();
    });
    assert_eq!(scene.says(7), row(16, "orphan: not where aidb runs"));
    let in_terminal = scene.edit(7, |p| p.terminal = terminal());
    assert_eq!(in_terminal.says(7), row(10, "spare: session"));
}

// ---- rows 17, 18, 19

#[test]
fn row_17_suspects_and_ends_suspects_only_when_asked() {
    let suspect = Scene::new().process(7, 1, "web.py").listens(7, 3001);
    assert_eq!(suspect.says(7), row(17, "suspect"));
    assert!(!suspect.convicts(7));
    assert!(suspect.clone().ask(|t| t.also.abandoned = true).convicts(7));
    let child = suspect.clone().process(6, 1, "sh").edit(7, |p| p.parent = Pid(6));
    assert_eq!(child.says(7), row(18, "foreign"));
    suspect.needs(
        7,
        &[
            (Fact::CommandLine(7), "the command line of pid 7"),
            (Fact::Process(1), "the parent of pid 7"),
        ],
    );
}

#[test]
fn row_18_reports_a_foreign_holder() {
    let foreign = Scene::new().process(6, 1, "sh").process(7, 6, "nc -l").listens(7, 8091);
    assert_eq!(foreign.says(7), row(18, "foreign"));
    assert!(!foreign.convicts(7));
    foreign.needs(7, &[(Fact::CommandLine(7), "the command line of pid 7")]);
}

#[test]
fn row_19_spares_who_only_looks_like_a_service_and_has_a_parent() {
    let child = Scene::new().process(6, 1, "sh").process(7, 6, SERVER);
    assert_eq!(child.says(7), row(19, "spare: its parent lives"));
    assert!(child.verdict(7).reason.contains("(pid 6) lives"));
    child.needs(
        7,
        &[(Fact::Process(6), "the parent of pid 7"), (Fact::Parent(7), "the parent of pid 7")],
    );
    child.does_not_need(7, &[Fact::Exe(7), Fact::Uid(7), Fact::Linger(1000)]);
}

#[test]
fn a_declared_container_is_named_where_it_has_a_name() {
    let scene = Scene::mess().set(|s| {
        s.services[0].runs_in = Some(RunsIn::Container(Some("local-ai-aidb".to_owned())));
    });
    assert!(scene.verdict(7).reason.contains("container local-ai-aidb"));
    assert_eq!(claim().id.short().len(), 12);
    assert_eq!(Scene::mess().verdict(7).grace, Duration::from_secs(5));
}
