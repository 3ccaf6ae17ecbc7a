//! The README's comparison: what portreeve, `fuser -k`, killport and the rule "its cgroup names a container: spare" do in the same
//! scenes, each in a box of its own with real engines. benches/killport builds the killport that is asked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]
#![allow(clippy::print_stdout, reason = "what became of each scene is worth reading")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use support::{
    DEADLINE, TestBox,
    engines::{Container, Engine, Kind},
    skip, wait_until,
};

const PORT: u16 = 8091;
const CONFIG: &str = "\
defaults: { min_age: 1s, grace: 1s, respawn_watch: 1s }
services:
  aidb: { runs_in: container, ports: [8091], patterns: ['aidb\\.py --config'] }
";
/// Kills whoever holds the port, but for those whose control group names a container.
const RULE: &str = "
for pid in $(fuser 8091/tcp 2>/dev/null); do
    grep -qE '[0-9a-f]{64}' \"/proc/$pid/cgroup\" || kill -KILL \"$pid\"
done";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    Portreeve,
    Fuser,
    Killport,
    Rule,
}

const ALL: [Means; 4] = [Means::Portreeve, Means::Fuser, Means::Killport, Means::Rule];

/// What became of a scene.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Effect {
    /// The server that was there before.
    server_lives: bool,
    /// Whether anybody answers on the port.
    answers: bool,
    /// What the engine says of the container.
    engine_says: String,
    /// Whether what supervised the server, its shim or its conmon, is still its parent.
    is_supervised: bool,
}

fn effect(server_lives: bool, answers: bool, engine_says: &str, is_supervised: bool) -> Effect {
    Effect { server_lives, answers, engine_says: engine_says.to_owned(), is_supervised }
}

/// A server in a container, and what was done to it before anybody is asked to free its port.
struct Scene {
    kind: Kind,
    /// Its port is published; else it has the host's network.
    is_published: bool,
    options: &'static [&'static str],
    prepare: fn(&Engine<'_>, &Container),
}

impl Scene {
    /// The scene in a box of its own, and what became of it by these means; none where there is no box or no such program.
    fn play(&self, name: &str, means: Means, expected: &Effect) -> Option<()> {
        let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
        let script = match means {
            Means::Portreeve => "/build/portreeve reap --config /etc/scene.yaml || true".to_owned(),
            Means::Fuser => format!("fuser -k {PORT}/tcp || true"),
            Means::Killport => {
                fs::copy(killport()?, test_box.inside("/usr/local/bin/killport")).unwrap();
                format!("/usr/local/bin/killport {PORT}")
            }
            Means::Rule => RULE.to_owned(),
        };
        test_box.write("/etc/scene.yaml", CONFIG);
        let engine = Engine::start(&test_box, self.kind);
        let publish = format!("{PORT}:{PORT}");
        let network =
            if self.is_published { ["--publish", &publish] } else { ["--network", "host"] };
        let port = PORT.to_string();
        let plant = ["--as", "python3 -u /app/aidb.py --config /etc/aidb.yaml", "--listen", &port];
        let container = engine.contain("aidb", &[&network, self.options].concat(), &plant);
        wait_until(DEADLINE, "the port answers", || answers(&test_box));
        (self.prepare)(&engine, &container);
        test_box.wait_for_age(container.pid, Duration::from_millis(1100));
        let start = test_box.stat(container.pid).expect("a living server").start;

        let said = test_box.sh(&script);
        let look = || {
            let server = test_box.stat(container.pid).filter(|stat| stat.start == start);
            Effect {
                server_lives: server.is_some(),
                answers: answers(&test_box),
                engine_says: engine.status("aidb"),
                is_supervised: server.is_some_and(|s| s.parent == u64::from(container.monitor)),
            }
        };
        let mut last = look();
        let began = Instant::now();
        while last != *expected {
            let what = format!("{means:?}: {last:?}, not {expected:?}\n{said}");
            assert!(began.elapsed() < DEADLINE, "{what}");
            last = look();
        }
        println!("{name}: {means:?}: {last:?}");
        Some(())
    }

    /// What each of [`ALL`] makes of it.
    fn compare(&self, name: &str, expected: [Effect; 4]) {
        for (means, expected) in ALL.into_iter().zip(expected) {
            let name = format!("{name}-{means:?}").to_lowercase();
            let _ = self.play(&name, means, &expected);
        }
    }
}

fn answers(test_box: &TestBox) -> bool {
    test_box.run(&["bash", "-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{PORT}")]).status.success()
}

/// Where killport lies, or a skip.
fn killport() -> Option<PathBuf> {
    let build =
        Path::new(env!("CARGO_BIN_EXE_portreeve")).ancestors().nth(2).expect("a build folder");
    let path = build.join("tools/bin/killport");
    let runs = Command::new(&path).arg("--version").output().is_ok_and(|run| run.status.success());
    if !runs {
        skip("no killport beside the build; 'benches/killport' puts it there");
    }
    runs.then_some(path)
}

fn nothing(_: &Engine<'_>, _: &Container) {}

/// Its engine dies and comes back without knowing of it; the container restarts for ever on the port of its earlier run.
fn crash_loop(engine: &Engine<'_>, container: &Container) {
    engine.abandon(&[container]);
    engine.forget();
    engine.start_daemon();
    wait_until(DEADLINE, "the container was restarted twice", || {
        engine.inspect("aidb")["RestartCount"].as_u64() >= Some(2)
    });
}

fn kill_conmon(engine: &Engine<'_>, container: &Container) {
    engine.kill_monitor(container);
}

fn kill_conmon_and_forget(engine: &Engine<'_>, container: &Container) {
    engine.kill_monitor(container);
    engine.forget();
}

#[test]
fn in_a_crash_loop_all_but_the_rule_end_the_earlier_run() {
    let scene = Scene {
        kind: Kind::DockerCgroupfs,
        is_published: false,
        options: &["--restart", "always"],
        prepare: crash_loop,
    };
    let comes_up = effect(false, true, "running", false);
    let goes_on = effect(true, true, "restarting", false);
    scene.compare("loop", [comes_up.clone(), comes_up.clone(), comes_up, goes_on]);
}

#[test]
fn a_living_rootless_container_is_spared_by_portreeve_alone() {
    let scene =
        Scene { kind: Kind::PodmanOfAlice, is_published: false, options: &[], prepare: nothing };
    let spared = effect(true, true, "running", true);
    let killed = effect(false, false, "exited", false);
    scene.compare("rootless", [spared, killed.clone(), killed.clone(), killed]);
}

#[test]
fn a_container_without_its_conmon_is_reported_by_portreeve_and_killed_by_all_others() {
    let scene = Scene {
        kind: Kind::PodmanOfAlice,
        is_published: false,
        options: &[],
        prepare: kill_conmon,
    };
    let reported = effect(true, true, "running", false);
    let killed = effect(false, false, "running", false);
    scene.compare("unsupervised", [reported, killed.clone(), killed.clone(), killed]);
}

#[test]
fn what_podman_has_forgotten_is_ended_by_all() {
    let scene = Scene {
        kind: Kind::PodmanOfAlice,
        is_published: false,
        options: &[],
        prepare: kill_conmon_and_forget,
    };
    let ended = effect(false, false, "created", false);
    scene.compare("forgotten", [ended.clone(), ended.clone(), ended.clone(), ended]);
}

#[test]
fn behind_docker_proxy_portreeve_alone_leaves_a_container_that_can_be_reached() {
    let scene =
        Scene { kind: Kind::DockerCgroupfs, is_published: true, options: &[], prepare: nothing };
    let spared = effect(true, true, "running", true);
    let cut_off = effect(true, false, "running", true);
    let stopped = effect(false, false, "exited", false);
    scene.compare("docker-proxy", [spared, cut_off.clone(), stopped, cut_off]);
}

#[test]
fn behind_conmon_fuser_and_killport_make_an_orphan() {
    let scene = Scene { kind: Kind::Podman, is_published: true, options: &[], prepare: nothing };
    let spared = effect(true, true, "running", true);
    let orphaned = effect(true, true, "running", false);
    scene.compare("conmon", [spared.clone(), orphaned.clone(), orphaned, spared]);
}

#[test]
fn behind_rootlessport_portreeve_alone_leaves_a_container_that_can_be_reached() {
    let scene =
        Scene { kind: Kind::PodmanOfAlice, is_published: true, options: &[], prepare: nothing };
    let spared = effect(true, true, "running", true);
    let cut_off = effect(true, false, "running", true);
    scene.compare("rootlessport", [spared, cut_off.clone(), cut_off.clone(), cut_off]);
}
