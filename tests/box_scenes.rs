//! Real scenes in a box with a real systemd, logind, sshd and real logins (CASES 45–53 and their kin).
//!
//! All scenes are planted in one box; then `scan`, then `reap`, once each. What is true of a scene is written where it
//! is planted and comes from how it was planted, never from the verdict table.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{collections::BTreeMap, fmt::Write as _, sync::LazyLock, time::Duration};

use support::{DEADLINE, Login, Report, Stat, Terminal, TestBox, skip, wait_until};

/// What is true of a planted process.
struct Scene {
    name: &'static str,
    pid: u32,
    before: Stat,
    /// `spare`, `orphan`, `suspect`, `foreign`, `undecided`; none where the report does not speak of it.
    verdict: Option<&'static str>,
    /// How its title goes on, as far as that is given.
    title: &'static str,
    /// Whether it is there after `reap`.
    survives: bool,
}

/// Scenes under construction: each server gets a port and a service of its own.
struct Stage {
    test_box: TestBox,
    config: String,
    next_port: u16,
    scenes: Vec<Scene>,
    /// Those who stay logged in.
    present: Vec<Login>,
}

const PLANT: &str = "/build/examples/plant";

impl Stage {
    /// Declares a service and returns the command that plants its server. `runs_in` as in the settings, or empty.
    fn server(&mut self, name: &str, runs_in: &str) -> String {
        let port = self.next_port;
        self.next_port += 1;
        let declared =
            if runs_in.is_empty() { String::new() } else { format!("runs_in: {runs_in}, ") };
        writeln!(
            self.config,
            "  {name}: {{ {declared}ports: [{port}], patterns: ['{name}\\.py --config'] }}"
        )
        .unwrap();
        let disguise = format!("python3 -u /app/{name}.py --config /etc/{name}.yaml");
        format!("{PLANT} --as '{disguise}' --listen {port} --ready /run/planted/{name}")
    }

    /// Writes down what is true of a planted process, once it is in place.
    fn truth(
        &mut self,
        name: &'static str,
        verdict: Option<&'static str>,
        title: &'static str,
        survives: bool,
    ) {
        let pid = self.test_box.planted(name);
        let before = self.test_box.stat(pid).unwrap_or_else(|| panic!("'{name}' lives"));
        self.scenes.push(Scene { name, pid, before, verdict, title, survives });
    }

    fn spared(&mut self, name: &'static str, title: &'static str) {
        self.truth(name, Some("spare"), title, true);
    }

    fn orphan(&mut self, name: &'static str, title: &'static str) {
        self.truth(name, Some("orphan"), title, false);
    }

    fn suspect(&mut self, name: &'static str) {
        self.truth(name, Some("suspect"), "", true);
    }

    fn stat(&self, name: &str) -> Stat {
        self.test_box.stat(self.test_box.planted(name)).unwrap_or_else(|| panic!("'{name}' lives"))
    }

    /// Asserts that the parent of a planted process is the box's first process.
    fn is_reparented(&self, name: &str) {
        wait_until(DEADLINE, &format!("'{name}' has lost its parent"), || {
            self.stat(name).parent == 1
        });
    }
}

const EXPLAINED: [&str; 3] = ["tmux-pane", "unit-helper", "lingering-nohup"];

/// The box after the play: what was planted, what was said, who was left.
struct Played {
    stage: Stage,
    /// While the owner of `logged-in-then-out` was still there.
    early: Report,
    scan: Report,
    /// What `explain` says to a person of each of those that are spared for another's sake.
    explained: BTreeMap<&'static str, String>,
    reap: Report,
    survivors: Vec<u32>,
}

/// Or why there is none.
static PLAYED: LazyLock<Result<Played, String>> = LazyLock::new(play);

/// The play; none is said as a skip.
fn played() -> Option<&'static Played> {
    PLAYED.as_ref().map_err(|reason| skip(reason)).ok()
}

fn play() -> Result<Played, String> {
    let test_box = TestBox::boot("scenes")?;
    let config = "defaults: { min_age: 1s, grace: 2s, respawn_watch: 1s }\nservices:\n".to_owned();
    let mut stage =
        Stage { test_box, config, next_port: 21001, scenes: Vec::new(), present: Vec::new() };

    terminals(&mut stage);
    let owner = logouts(&mut stage);
    group_of_a_dead_script(&mut stage);
    units(&mut stage);
    leftovers_of_units(&mut stage);
    managers_of_others(&mut stage);
    workers(&mut stage);

    stage.test_box.write("/etc/scenes.yaml", &stage.config);
    for scene in &stage.scenes {
        stage.test_box.wait_for_age(scene.pid, Duration::from_millis(1100));
    }
    let report = |verb: &str| stage.test_box.portreeve(&[verb, "--config", "/etc/scenes.yaml"]);

    let early = report("scan");
    owner.leaves();
    stage.test_box.wait_for_logout(stage.test_box.planted("logged-in-then-out"));
    let scan = report("scan");
    let explain = |name: &'static str| {
        let pid = stage.test_box.planted(name);
        let command = format!("/build/portreeve explain pid:{pid} --config /etc/scenes.yaml");
        (name, stage.test_box.sh(&command))
    };
    let explained = EXPLAINED.map(explain).into();
    let reap = report("reap");
    let lives = |scene: &&Scene| {
        stage.test_box.stat(scene.pid).is_some_and(|now| now.start == scene.before.start)
    };
    let survivors = stage.scenes.iter().filter(lives).map(|scene| scene.pid).collect();
    Ok(Played { stage, early, scan, explained, reap, survivors })
}

/// 45, 47: somebody works there.
fn terminals(stage: &mut Stage) {
    // In the foreground of a live ssh terminal, of a service that is declared to run elsewhere.
    let server = stage.server("terminal-foreground", "container");
    let mut login = stage.test_box.login("alice", Terminal::Yes);
    login.types(&server);
    stage.spared("terminal-foreground", "session");
    assert_ne!(stage.stat("terminal-foreground").terminal, 0);
    stage.present.push(login);

    // The same with `&`.
    let server = stage.server("terminal-background", "container");
    let mut login = stage.test_box.login("alice", Terminal::Yes);
    login.types(&format!("{server} &"));
    stage.spared("terminal-background", "session");
    stage.present.push(login);

    // In a pane of tmux, whose owner has logged out: the pane is still a terminal.
    let server = stage.server("tmux-pane", "container");
    let mut login = stage.test_box.login("alice", Terminal::Yes);
    login.types(&format!("tmux new-session -d \"{server}\""));
    stage.spared("tmux-pane", "session");
    login.leaves();
    stage.test_box.wait_for_logout(stage.test_box.planted("tmux-pane"));
    assert_ne!(stage.stat("tmux-pane").terminal, 0);
}

/// 46: left behind by a login. Returns the one who has yet to log out.
fn logouts(stage: &mut Stage) -> Login {
    // Nobody declared where this one runs: it may be meant so.
    let server = stage.server("nohup-undeclared", "");
    let mut login = stage.test_box.login("alice", Terminal::Yes);
    login.types(&format!("nohup {server} >/dev/null 2>&1 </dev/null &"));
    stage.suspect("nohup-undeclared");
    login.leaves();
    stage.is_reparented("nohup-undeclared");
    stage.test_box.wait_for_logout(stage.test_box.planted("nohup-undeclared"));

    // This one's service runs in a container, and here it sits without one.
    let server = stage.server("nohup-declared", "container");
    let mut login = stage.test_box.login("alice", Terminal::Yes);
    login.types(&format!("nohup {server} >/dev/null 2>&1 </dev/null &"));
    stage.orphan("nohup-declared", "not where nohup-declared runs");
    login.leaves();
    stage.is_reparented("nohup-declared");
    stage.test_box.wait_for_logout(stage.test_box.planted("nohup-declared"));

    // bob lingers: what he leaves running when he logs out, he has the right to leave.
    let server = stage.server("lingering-nohup", "container");
    let mut login = stage.test_box.login("bob", Terminal::No);
    login.types(&format!("nohup {server} >/dev/null 2>&1 </dev/null &"));
    stage.truth("lingering-nohup", Some("suspect"), "", true);
    login.leaves();
    stage.is_reparented("lingering-nohup");
    stage.test_box.wait_for_logout(stage.test_box.planted("lingering-nohup"));

    // Without a terminal and without a parent, but its owner is still logged in; then he logs out.
    let server = stage.server("logged-in-then-out", "container");
    let mut login = stage.test_box.login("alice", Terminal::No);
    login.types(&format!("(setsid {server} >/dev/null 2>&1 </dev/null &)"));
    stage.orphan("logged-in-then-out", "not where logged-in-then-out runs");
    stage.is_reparented("logged-in-then-out");
    assert_eq!(stage.stat("logged-in-then-out").terminal, 0);
    login
}

/// 51: a script without job control started server, postgres and sleep in one process group and died.
fn group_of_a_dead_script(stage: &mut Stage) {
    let server = stage.server("in-a-dead-scripts-group", "container");
    let script = format!(
        "{server} &\n\
         {PLANT} --as 'postgres: checkpointer' --listen 5432 --ready /run/planted/groups-postgres &\n\
         sleep 1000 & echo $! > /run/planted/groups-sleep\n\
         echo $$ > /run/planted/start-all; wait\n"
    );
    stage.test_box.write("/app/start-all.sh", &script);
    let mut login = stage.test_box.login("alice", Terminal::No);
    login.types("nohup sh /app/start-all.sh >/dev/null 2>&1 </dev/null &");
    let leader = stage.test_box.planted("start-all");
    stage.orphan("in-a-dead-scripts-group", "not where in-a-dead-scripts-group runs");
    stage.truth("groups-postgres", Some("foreign"), "", true);
    stage.truth("groups-sleep", None, "", true);
    stage.test_box.sh(&format!("kill -KILL {leader}"));
    login.leaves();
    stage.is_reparented("in-a-dead-scripts-group");
    stage.test_box.wait_for_logout(stage.test_box.planted("in-a-dead-scripts-group"));
    let groups = ["in-a-dead-scripts-group", "groups-postgres", "groups-sleep"]
        .map(|name| stage.stat(name).group);
    assert!(groups.iter().all(|group| *group == groups[0]), "one process group: {groups:?}");
}

/// 48, 49, 50: units that are alive.
fn units(stage: &mut Stage) {
    // Type=forking without PIDFile=: with two processes systemd cannot tell which is the main one.
    let one = stage.server("forking-one", "container");
    let two = stage.server("forking-two", "container");
    let daemons = [one, two]
        .map(|command| command.replace(PLANT, &format!("{PLANT} --daemonise")))
        .join("; ");
    stage.test_box.unit(
        "forking.service",
        &format!("[Service]\nType=forking\nExecStart=/bin/sh -c \"{daemons}\"\n"),
    );
    stage.test_box.sh("systemctl start forking");
    stage.spared("forking-one", "in forking.service");
    stage.spared("forking-two", "in forking.service");
    assert_eq!(stage.test_box.sh("systemctl show --property=MainPID --value forking"), "0");

    // A unit's main process, a child of it, and a helper that its script daemonised.
    let main = stage.server("unit-main", "container");
    let child = stage.server("unit-child", "container");
    let helper =
        stage.server("unit-helper", "container").replace(PLANT, &format!("{PLANT} --daemonise"));
    let child = child.trim_start_matches(PLANT);
    stage.test_box.write("/app/serve.sh", &format!("{helper}\nexec {main} --child {child}\n"));
    stage.test_box.unit("serve.service", "[Service]\nExecStart=/bin/sh /app/serve.sh\n");
    stage.test_box.sh("systemctl start serve");
    stage.spared("unit-main", "managed by serve.service");
    stage.spared("unit-child", "managed by serve.service");
    stage.spared("unit-helper", "in serve.service");
    stage.is_reparented("unit-helper");

    // A CI runner's unit: jobs belong to others, so systemd keeps its hands off them (KillMode=process).
    let server = stage.server("runner-leftover", "container");
    stage.test_box.write("/app/runner.sh", &format!("(setsid {server} &)\nexec sleep infinity\n"));
    stage
        .test_box
        .unit("runner.service", "[Service]\nExecStart=/bin/sh /app/runner.sh\nKillMode=process\n");
    stage.test_box.sh("systemctl start runner");
    stage.spared("runner-leftover", "in runner.service");
    stage.is_reparented("runner-leftover");
}

/// 53 and kin: units that are gone, or were started anew.
fn leftovers_of_units(stage: &mut Stage) {
    // A deploy that leaves a server running on purpose: the unit is inactive, KillMode=process.
    let server = stage.server("deployed", "");
    let ready = "until [ -e /run/planted/deployed ]; do sleep 0.02; done";
    stage.test_box.write("/app/deploy.sh", &format!("setsid {server} &\n{ready}\n"));
    stage.test_box.unit(
        "deploy.service",
        "[Service]\nType=oneshot\nExecStart=/bin/sh /app/deploy.sh\nKillMode=process\n",
    );
    stage.test_box.sh("systemctl start deploy");
    stage.suspect("deployed");
    assert_eq!(stage.test_box.sh("systemctl is-active deploy || true"), "inactive");
    assert!(stage.test_box.cgroup(stage.test_box.planted("deployed")).ends_with("/deploy.service"));

    // A server of the unit's earlier run, in the way of the present one.
    let server = stage.server("earlier-run", "{ unit: again.service }");
    stage.test_box.write(
        "/app/again.sh",
        &format!(
            "[ -e /run/again ] || (touch /run/again; setsid {server} &)\nexec sleep infinity\n"
        ),
    );
    stage
        .test_box
        .unit("again.service", "[Service]\nExecStart=/bin/sh /app/again.sh\nKillMode=process\n");
    stage.test_box.sh("systemctl start again");
    stage.orphan("earlier-run", "an earlier run of again.service");
    stage.test_box.sh("systemctl restart again");
    stage.is_reparented("earlier-run");

    // systemd ended the unit, and yet something is in its control group.
    let server = stage.server("survived-unit", "").replace(PLANT, &format!("{PLANT} --daemonise"));
    stage.test_box.unit("ended.service", "[Service]\nExecStart=/bin/sleep infinity\n");
    stage.test_box.sh("systemctl start ended; systemctl stop ended");
    stage.test_box.sh(&server);
    let pid = stage.test_box.planted("survived-unit");
    stage.test_box.sh(&format!(
        "g=/sys/fs/cgroup/system.slice/ended.service; mkdir $g; echo {pid} > $g/cgroup.procs"
    ));
    stage.orphan("survived-unit", "survived ended.service");
    stage.is_reparented("survived-unit");

    // In the control group of a unit that systemd does not know: whose it is, nobody can say.
    let server =
        stage.server("unknown-unit", "container").replace(PLANT, &format!("{PLANT} --daemonise"));
    stage.test_box.sh(&server);
    let pid = stage.test_box.planted("unknown-unit");
    stage.test_box.sh(&format!(
        "g=/sys/fs/cgroup/system.slice/nobodys.service; mkdir $g; echo {pid} > $g/cgroup.procs"
    ));
    stage.truth("unknown-unit", Some("undecided"), "", true);
}

/// cron, and the manager of a user who lingers.
fn managers_of_others(stage: &mut Stage) {
    let running = stage.server("cron-job", "container");
    let left = stage.server("cron-leftover", "container");
    stage.test_box.write(
        "/app/job.sh",
        &format!("(setsid {left} >/dev/null 2>&1 </dev/null &)\n{running}\n"),
    );
    stage.test_box.write("/etc/cron.d/scenes", "@reboot alice sh /app/job.sh\n");
    stage.test_box.sh("rm -f /run/crond.reboot; systemctl restart cron");
    stage.spared("cron-job", "managed by cron.service");
    stage.spared("cron-leftover", "in cron.service");
    stage.is_reparented("cron-leftover");

    let server = stage.server("users-unit", "container");
    stage.test_box.write("/app/users-unit.sh", &format!("exec {server}\n"));
    stage.test_box.sh("runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 \
         systemd-run --user --quiet --unit=bobs sh /app/users-unit.sh");
    stage.spared("users-unit", "managed by bobs.service");
}

/// 52: an inference server was SIGKILLed in a live terminal, its worker still sits there.
fn workers(stage: &mut Stage) {
    let mut login = stage.test_box.login("alice", Terminal::Yes);
    login.types(&format!(
        "{PLANT} --as 'python3 -m vllm serve some/model' --ready /run/planted/server \
         --child --title VLLM::EngineCore --ready /run/planted/worker"
    ));
    let server = stage.test_box.planted("server");
    stage.orphan("worker", "worker without its server");
    stage.test_box.sh(&format!("kill -KILL {server}"));
    stage.is_reparented("worker");
    assert_ne!(stage.stat("worker").terminal, 0);
    stage.present.push(login);

    // Its sister's server lives.
    let mut login = stage.test_box.login("alice", Terminal::Yes);
    login.types(&format!(
        "{PLANT} --as 'python3 -m vllm serve other/model' \
         --child --title VLLM::EngineCore --ready /run/planted/served-worker"
    ));
    stage.spared("served-worker", "session");
    stage.present.push(login);
}

/// Asserts that these scenes were judged and treated as they were planted.
fn as_planted(names: &[&str]) {
    let Some(played) = played() else { return };
    for name in names {
        let scene =
            played.stage.scenes.iter().find(|scene| scene.name == *name).expect("a planted scene");
        let said = played.scan.process(scene.pid);
        assert_eq!(said["verdict"].as_str(), scene.verdict, "verdict on '{name}': {said:#}");
        let title = said["title"].as_str().unwrap_or_default();
        assert!(title.contains(scene.title), "title of '{name}': {title}");
        assert_eq!(
            played.survivors.contains(&scene.pid),
            scene.survives,
            "'{name}' is alive after reap: {said:#}"
        );
    }
}

#[test]
fn a_server_in_a_live_terminal_is_spared() {
    as_planted(&["terminal-foreground", "terminal-background"]);
}

#[test]
fn a_tmux_pane_is_spared_after_its_owner_logged_out() {
    as_planted(&["tmux-pane"]);
}

#[test]
fn a_nohup_server_after_logout_is_only_suspect_where_nothing_is_declared() {
    as_planted(&["nohup-undeclared"]);
}

#[test]
fn a_nohup_server_after_logout_is_an_orphan_where_its_service_runs_in_a_container() {
    as_planted(&["nohup-declared"]);
}

#[test]
fn a_server_is_spared_while_its_owner_is_logged_in_and_an_orphan_after() {
    as_planted(&["logged-in-then-out"]);
    if let Some(played) = played() {
        let said = played.early.process(played.stage.test_box.planted("logged-in-then-out"));
        assert_eq!(said["verdict"], "spare", "{said:#}");
    }
}

#[test]
fn a_lingering_users_leftover_is_never_convicted() {
    as_planted(&["lingering-nohup"]);
}

#[test]
fn only_the_convicted_one_of_a_dead_scripts_group_is_ended() {
    as_planted(&["in-a-dead-scripts-group", "groups-postgres", "groups-sleep"]);
}

#[test]
fn a_forking_unit_without_a_main_process_is_spared() {
    as_planted(&["forking-one", "forking-two"]);
}

#[test]
fn a_live_units_main_process_its_child_and_its_daemonised_helper_are_spared() {
    as_planted(&["unit-main", "unit-child", "unit-helper"]);
}

#[test]
fn a_ci_jobs_leftover_is_spared_while_the_runners_unit_lives() {
    as_planted(&["runner-leftover"]);
}

#[test]
fn what_a_oneshot_deploy_left_running_on_purpose_is_only_suspect() {
    as_planted(&["deployed"]);
}

#[test]
fn a_server_of_the_units_earlier_run_is_an_orphan() {
    as_planted(&["earlier-run"]);
}

#[test]
fn what_survived_the_end_of_its_unit_is_an_orphan() {
    as_planted(&["survived-unit"]);
}

#[test]
fn a_process_in_a_unit_that_systemd_does_not_know_is_undecided() {
    as_planted(&["unknown-unit"]);
}

#[test]
fn what_cron_runs_and_what_its_jobs_leave_is_spared() {
    as_planted(&["cron-job", "cron-leftover"]);
}

#[test]
fn a_unit_of_a_users_own_manager_is_spared() {
    as_planted(&["users-unit"]);
}

#[test]
fn a_worker_whose_server_was_killed_is_an_orphan_even_in_a_live_terminal() {
    as_planted(&["worker"]);
}

#[test]
fn a_worker_whose_server_lives_is_spared() {
    as_planted(&["served-worker"]);
}

/// Asserts that these words stand in the explanation of a scene, in this order, wherever its lines were broken.
fn is_explained_by(name: &str, parts: &[&str]) {
    let Some(played) = played() else { return };
    let text = &played.explained[name];
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = words.as_str();
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { panic!("{part} in:\n{text}") };
        rest = behind;
    }
}

#[test]
fn a_tmux_pane_is_explained_by_its_terminal_and_the_session_that_is_closing() {
    is_explained_by(
        "tmux-pane",
        &[
            "alice (uid 1000)",
            "(closing)",
            "why it has terminal pts/",
            "though login session",
            "is closing",
            "next 'loginctl session-status",
        ],
    );
}

#[test]
fn a_units_helper_is_explained_by_what_its_unit_does_not_claim() {
    is_explained_by(
        "unit-helper",
        &[
            "adopted by pid 1 (its parent is gone)",
            "which is active (running) and has another main process, pid",
            "no portreeve flag ends it",
            "near misses",
            "12 no",
            "13 no",
        ],
    );
}

#[test]
fn a_lingering_users_leftover_is_explained_by_the_lingering() {
    is_explained_by(
        "lingering-nohup",
        &[
            "bob (uid 1001)",
            "suspect (--also abandoned ends it)",
            "its user (uid 1001) lingers",
            "lingers bob (uid 1001): yes",
            "near misses",
            "16 no its user's processes may not outlive the logout",
            "if uid 1001 did not linger: orphan: not where lingering-nohup runs, row 16",
            "to end it anyway: portreeve reap --port",
        ],
    );
}

#[test]
fn no_orphan_is_named_that_was_not_planted_as_one() {
    let Some(played) = played() else { return };
    for process in played.scan.json["processes"].as_array().expect("processes") {
        if process["verdict"] == "orphan" {
            let known = played.stage.scenes.iter().any(|s| !s.survives && process["pid"] == s.pid);
            assert!(known, "an orphan that nobody planted: {process:#}");
        }
    }
}

#[test]
fn scan_and_reap_say_by_their_exit_code_that_something_remains() {
    let Some(played) = played() else { return };
    // After reap the suspects, the stranger on postgres's port and the undecided one remain: 1 outranks 2.
    assert_eq!((played.scan.code, played.reap.code), (1, 1));
}
