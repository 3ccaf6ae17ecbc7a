//! The reasons name the fact that decided, with its value; the next step and what would have changed it.

use super::{
    super::explain::{Explanation, explain},
    scene::{DOCKER, SERVER, Scene, system, terminal},
};
use crate::{
    ident::{Pid, ServiceName},
    judge::Also,
    snapshot::{ContainerState, KillMode, Seen, Unit},
};

fn of(scene: &Scene, pid: u32) -> Explanation {
    explain(&scene.snapshot, &scene.settings, &scene.terms, Pid(pid)).unwrap()
}

#[track_caller]
fn because(scene: &Scene, row: u8, reason: &str) {
    let verdict = scene.verdict(7);
    assert_eq!((verdict.row.0, verdict.reason.as_str()), (row, reason));
}

fn in_unit(edit: impl FnOnce(&mut Unit)) -> Scene {
    let unit = system("a.service");
    Scene::mess().inside(7, &unit).unit(&unit, edit)
}

fn dead(unit: &mut Unit) {
    (unit.active_state, unit.sub_state) = ("failed".to_owned(), "failed".to_owned());
}

fn lingering() -> Scene {
    Scene::mess().see(|s| drop(s.lingering.insert(1000, Seen::Known(true))))
}

#[test]
fn a_session_is_named_with_its_terminal_or_its_state() {
    let at_terminal = |scene: Scene| scene.edit(7, |p| p.terminal = terminal());
    because(&at_terminal(Scene::mess()), 10, "it has terminal pts/3");
    let scene = at_terminal(Scene::mess().in_session(7, "closing", "running"));
    because(&scene, 10, "it has terminal pts/3, though login session 3 is closing");
    let scene = at_terminal(Scene::mess().in_session(7, "active", "abandoned"));
    because(&scene, 10, "it has terminal pts/3, though login session 3 is over");
    let scene = at_terminal(Scene::mess().in_session(7, "active", "running"));
    because(&scene, 10, "it has terminal pts/3 in login session 3");
    let scene = Scene::mess().in_session(7, "online", "running");
    because(&scene, 10, "it runs in login session 3, which is online");
    let scene =
        Scene::mess().process(50, 1, "gdb").edit(7, |p| p.tracer = Seen::Known(Some(Pid(50))));
    because(&scene, 10, "pid 50 (python3) traces it: somebody looks into it");
}

#[test]
fn a_managed_process_is_named_with_the_main_process_and_the_units_state() {
    let active = "a.service, which is active (running)";
    let main = in_unit(|u| u.main_pid = Some(Pid(7)));
    because(&main, 12, &format!("it is the main process of {active}"));
    let control = in_unit(|u| (u.main_pid, u.control_pid) = (Some(Pid(70)), Some(Pid(7))));
    because(&control, 12, &format!("it is the control process of {active}"));
    let child = in_unit(|u| u.main_pid = Some(Pid(5))).process(5, 1, "sh").process(6, 5, "sh");
    let child = child.edit(7, |p| p.parent = Pid(6));
    because(&child, 12, &format!("it descends from pid 5, the main process of {active}"));
}

#[test]
fn whatever_else_is_in_a_unit_is_told_why_the_unit_neither_manages_nor_ended_it() {
    let active = "it runs in a.service, which is active (running)";
    because(&in_unit(|_| ()), 15, &format!("{active} and names no main process"));
    let runner = in_unit(|u| (u.kill_mode, u.main_pid) = (Some(KillMode::Process), Some(Pid(70))));
    because(
        &runner,
        15,
        &format!(
            "{active} and has another main process, pid 70; KillMode=process leaves this one alone when the unit stops"
        ),
    );
    let failed = "it runs in a.service, which is failed (failed)";
    let of_parent = in_unit(dead).process(6, 1, "sh").edit(7, |p| p.parent = Pid(6));
    because(&of_parent, 15, &format!("{failed}, and its parent, pid 6 (python3), lives"));
    let delegated = in_unit(|u| {
        dead(u);
        u.is_delegated = true;
    });
    let no_pattern = delegated.process(7, 1, "nc").inside(7, &system("a.service"));
    because(
        &no_pattern,
        15,
        &format!("{failed}; Delegate=yes leaves its processes alone when it stops"),
    );
}

#[test]
fn what_outlived_a_unit_is_told_the_units_state_and_what_should_have_ended_it() {
    because(
        &in_unit(dead),
        13,
        "it outlived a.service, which is failed (failed); KillMode=control-group should have ended it",
    );
    let db = system("db.service");
    let earlier = Scene::new().process(7, 1, "postgres -D /x").listens(7, 5432).inside(7, &db);
    let earlier = earlier.unit(&db, |u| {
        dead(u);
        u.kill_mode = Some(KillMode::Process);
    });
    because(&earlier, 14, "it outlived db.service, which is failed (failed)");
}

#[test]
fn a_worker_is_told_who_adopted_it_and_a_container_what_its_engine_says() {
    let worker = Scene::new().process(7, 1, "VLLM::EngineCore");
    because(
        &worker,
        9,
        "it is a vllm worker, and the server that started it is gone: pid 1 (python3) adopted it",
    );
    let alone = Scene::mess().contained(7, &[7, 1]).enclosed(7, 9);
    let paused = alone.docker_says(ContainerState::Paused, Some(7)).main_process(7, Seen::Known(9));
    because(
        &paused,
        4,
        &format!(
            "{DOCKER} says 'paused' of container aidb, but its monitor is gone: nothing supervises it"
        ),
    );
}

#[test]
fn a_suspect_is_told_what_kept_it_from_being_an_orphan() {
    let looks = |name: &str| format!("its parent is gone and it looks like {name}, but");
    because(
        &lingering(),
        17,
        &format!(
            "{} its user (uid 1000) lingers: it may be meant to outlive the logout",
            looks("aidb")
        ),
    );
    let undeclared = Scene::new().process(7, 1, "web.py").listens(7, 3001);
    because(&undeclared, 17, &format!("{} nothing declares where web runs", looks("web")));
    let portless = Scene::new().process(7, 1, SERVER);
    because(
        &portless,
        17,
        &format!("{} it holds none of aidb's ports (8091, 8791)", looks("aidb")),
    );
    let left = in_unit(|u| {
        dead(u);
        u.kill_mode = Some(KillMode::Process);
    });
    because(
        &left,
        17,
        &format!(
            "{} it runs in a.service, which is failed (failed), and KillMode=process leaves such processes alone",
            looks("aidb")
        ),
    );
}

#[test]
fn a_misplaced_process_is_told_its_session_and_the_users_who_do_not_linger() {
    let scene = Scene::mess()
        .in_session(7, "closing", "running")
        .cgroup(7, |c| c.session_user = Some(1001))
        .see(|s| drop(s.lingering.insert(1001, Seen::Known(false))));
    because(
        &scene,
        16,
        "declared to run in a container, runs outside; parent gone, session 3 over, \
         uid 1000 and uid 1001 do not linger",
    );
    let without_systemd = Scene::mess().see(|s| s.has_systemd = Seen::Known(false));
    because(
        &without_systemd,
        16,
        "declared to run in a container, runs outside; parent gone, no terminal",
    );
}

#[test]
fn there_is_always_a_next_step_and_it_holds_the_one_command_that_ends_the_process() {
    for (scene, next, ending) in [
        (Scene::mess(), "'portreeve reap --port 8091' ends it", Some("portreeve reap --port 8091")),
        (
            lingering().in_session(7, "closing", "running"),
            "'loginctl session-status 3' shows its session; 'portreeve reap --port 8091 --also abandoned' ends it",
            Some("portreeve reap --port 8091 --also abandoned"),
        ),
        (
            Scene::new().process(7, 1, SERVER),
            "'systemctl status 7' shows where it belongs; 'portreeve reap aidb --also abandoned' ends it",
            Some("portreeve reap aidb --also abandoned"),
        ),
        (
            Scene::new().process(7, 1, "VLLM::EngineCore"),
            "'portreeve reap' ends it",
            Some("portreeve reap"),
        ),
        (
            Scene::mess().in_session(7, "active", "running"),
            "'loginctl session-status 3' shows its session; 'portreeve reap --port 8091 --also session' ends it",
            Some("portreeve reap --port 8091 --also session"),
        ),
        (
            in_unit(|_| ()),
            "'systemctl status a.service' shows its unit; no portreeve flag ends it: 'systemctl stop a.service' does",
            None,
        ),
        (
            in_unit(|u| u.kill_mode = Some(crate::snapshot::KillMode::Process)),
            "'systemctl status a.service' shows its unit; no portreeve flag ends it, nor does 'systemctl stop' (KillMode=process): ask whose it is, then 'kill 7'",
            None,
        ),
        (
            in_unit(|u| u.main_pid = Some(Pid(7))),
            "'systemctl status a.service' shows its unit; no portreeve flag ends it: 'systemctl stop a.service' does",
            None,
        ),
        (
            Scene::mess().exe(7, "/usr/sbin/sshd"),
            "'systemctl status 7' shows where it belongs; no portreeve flag ends it",
            None,
        ),
        (
            Scene::new().process(6, 1, "sh").process(7, 6, "nc -l").listens(7, 8091),
            "stop it where it was started, or 'portreeve reap --port 8091 --also foreign'",
            Some("portreeve reap --port 8091 --also foreign"),
        ),
        (
            Scene::mess().edit(7, |p| p.uid = Seen::Denied),
            "'portreeve doctor' says what this run may not see; 'systemctl status 7' shows where it belongs",
            None,
        ),
    ] {
        let said = of(&scene, 7);
        assert_eq!((said.next.as_str(), said.ending.as_deref()), (next, ending));
    }
}

#[test]
fn the_command_that_is_said_to_end_it_does() {
    for (scene, named) in [(lingering(), None), (Scene::new().process(7, 1, SERVER), Some("aidb"))]
    {
        assert!(of(&scene, 7).ending.is_some());
        let asked = scene.ask(|t| {
            t.also = Also { abandoned: true, ..Also::default() };
            t.named_services.extend(named.map(ServiceName::from));
        });
        assert!(asked.convicts(7));
    }
}

fn changes(scene: &Scene) -> Vec<(String, String, u8)> {
    of(scene, 7).changes.into_iter().map(|c| (c.what, c.title, c.row.0)).collect()
}

#[track_caller]
fn changes_to(scene: &Scene, what: &str, title: &str, row: u8) {
    let changes = changes(scene);
    let expected = (what.to_owned(), title.to_owned(), row);
    assert!(changes.contains(&expected), "{expected:?} in {changes:#?}");
}

#[test]
fn a_fact_that_spares_it_is_changed_alone_and_judged_anew() {
    changes_to(&lingering(), "uid 1000 did not linger", "orphan: not where aidb runs", 16);
    let at_terminal = Scene::mess().edit(7, |p| p.terminal = terminal());
    changes_to(&at_terminal, "terminal pts/3 were gone", "orphan: not where aidb runs", 16);
    let in_session = Scene::mess().in_session(7, "active", "running");
    changes_to(&in_session, "login session 3 were closing", "orphan: not where aidb runs", 16);
    let child = Scene::mess().process(6, 1, "sh").edit(7, |p| p.parent = Pid(6));
    changes_to(&child, "its parent, pid 6 (python3), were gone", "orphan: not where aidb runs", 16);
    let main = in_unit(|u| u.main_pid = Some(Pid(7)));
    changes_to(&main, "a.service were inactive (dead)", "orphan: survived a.service", 13);
    // two facts speak for it: neither alone changes anything to its harm
    let both = lingering().edit(7, |p| p.terminal = terminal());
    let said = changes(&both);
    assert!(!said.iter().any(|(_, title, _)| title.starts_with("orphan")), "{said:?}");
}

#[test]
fn a_change_that_would_leave_it_undecided_and_a_flag_are_no_answer() {
    let helper = in_unit(|u| u.kill_mode = Some(KillMode::Process));
    for scene in [helper, lingering(), Scene::mess()] {
        for (what, title, _) in changes(&scene) {
            assert!(title != "undecided" && !what.contains("--also"), "{what}: {title}");
        }
    }
}

#[test]
fn a_near_miss_failed_by_one_condition_and_is_no_row_about_others() {
    let misses = |scene: &Scene| -> Vec<(u8, &'static str, String)> {
        let rows = of(scene, 7).rows;
        let before = rows.iter().take_while(|r| !r.decided);
        before.filter_map(|r| Some((r.row.0, r.near_miss()?, r.title.clone()))).collect()
    };
    let said = misses(&lingering());
    let lingers = "its user's processes may not outlive the logout (lingering is off)";
    assert_eq!(said, [(16, lingers, "orphan: not where aidb runs".to_owned())]);
    let said = misses(&in_unit(|u| u.main_pid = Some(Pid(70))));
    assert_eq!(said.iter().map(|(row, ..)| *row).collect::<Vec<_>>(), [12, 13]);
    // its only condition failed, or the first, which says what the row is about
    assert_eq!(misses(&Scene::mess()), []);
}
