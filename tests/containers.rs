//! Containers of real engines in a box, and what dead engines and monitors leave of them (CASES 8–14, 22, 42–44).
//!
//! What is true of a server is written where its scene is made, and follows from how it was made: who was killed, what was
//! lost, who lives on. Each service is declared to run in a container, so that a row that is missed ends it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    DEADLINE, Report, Stat, TestBox,
    engines::{Container, Engine, Kind, kill, signal},
    skip, wait_until,
};

/// `engines.timeout` of the settings.
const ENGINES_TIMEOUT: Duration = Duration::from_secs(3);
const HOST_NETWORK: [&str; 2] = ["--network", "host"];
const CONFIG: [&str; 2] = ["--config", "/etc/scenes.yaml"];

/// A box in which these services are guarded, or a skip.
fn test_box(name: &str, services: &[(&str, u16)]) -> Option<TestBox> {
    let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
    let mut settings = "defaults: { min_age: 1s, grace: 1s, respawn_watch: 1s }\n\
                        engines: { timeout: 3s }\nservices:\n"
        .to_owned();
    for (name, port) in services {
        writeln!(
            settings,
            "  {name}: {{ runs_in: container, ports: [{port}], patterns: ['{name}\\.py --config'] }}"
        )
        .unwrap();
    }
    test_box.write("/etc/scenes.yaml", &settings);
    Some(test_box)
}

/// A planted server that answers on its port.
#[derive(Debug, Clone)]
struct Server {
    pid: u32,
    port: u16,
    start: u64,
}

impl Server {
    /// Waits until it answers and is old enough to be judged.
    fn at(test_box: &TestBox, pid: u32, port: u16) -> Self {
        wait_until(DEADLINE, &format!("port {port} answers"), || answers(test_box, port));
        test_box.wait_for_age(pid, Duration::from_millis(1100));
        Self { pid, port, start: test_box.stat(pid).expect("a living server").start }
    }

    fn lives(&self, test_box: &TestBox) -> bool {
        test_box.stat(self.pid).is_some_and(|stat: Stat| stat.start == self.start)
    }

    /// It is what it was, and serves.
    fn assert_serves(&self, test_box: &TestBox) {
        assert!(self.lives(test_box), "pid {} is gone", self.pid);
        assert!(answers(test_box, self.port), "port {} does not answer", self.port);
    }
}

/// Whether somebody takes a connection there.
fn answers(test_box: &TestBox, port: u16) -> bool {
    test_box.run(&["bash", "-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")]).status.success()
}

/// The command line of a service's server, as its pattern wants it.
fn disguise(name: &str) -> String {
    format!("python3 -u /app/{name}.py --config /etc/{name}.yaml")
}

/// Runs the server of a service in a container of its name, on the host's network.
fn contain(engine: &Engine<'_>, name: &str, port: u16, options: &[&str]) -> (Container, Server) {
    let options = [&HOST_NETWORK, options].concat();
    let plant = ["--as", &disguise(name), "--listen", &port.to_string()];
    let container = engine.contain(name, &options, &plant);
    let server = Server::at(engine.test_box, container.pid, port);
    (container, server)
}

/// The same on a network of its own, its port published.
fn publish(engine: &Engine<'_>, name: &str, port: u16, options: &[&str]) -> (Container, Server) {
    let publish = format!("{port}:8091");
    let options = [&["--publish", &publish], options].concat();
    let plant = ["--as", &disguise(name), "--listen", "8091"];
    let container = engine.contain(name, &options, &plant);
    let server = Server::at(engine.test_box, container.pid, port);
    (container, server)
}

/// What is to be said of a server: title, row, and whether it serves.
type Expected<'a> = (&'a Server, &'a str, u8);

fn assert_said(said: &Value, title: &str, row: u8) {
    assert_eq!((said["title"].as_str(), &said["row"]), (Some(title), &row.into()), "{said:#}");
}

/// Scans and explains: both say what is true of each server, and leave it as it was.
fn look(test_box: &TestBox, code: i32, expected: &[Expected<'_>]) -> Report {
    let served: Vec<bool> =
        expected.iter().map(|(server, ..)| answers(test_box, server.port)).collect();
    let report = test_box.portreeve(&[&["scan"], &CONFIG[..]].concat());
    for (server, title, row) in expected {
        assert_said(report.process(server.pid), title, *row);
        let subject = format!("pid:{}", server.pid);
        let why = test_box.portreeve(&[&["explain", &subject], &CONFIG[..]].concat());
        assert_said(&why.json["processes"][0], title, *row);
    }
    assert_eq!(report.code, code, "{:#}", report.json);
    for ((server, ..), served) in expected.iter().zip(served) {
        assert!(server.lives(test_box), "pid {} is gone", server.pid);
        assert_eq!(answers(test_box, server.port), served, "port {}", server.port);
    }
    report
}

/// Who holds a port, by a report.
fn holders(report: &Report, port: u16) -> Vec<u32> {
    let held = report.port(&format!("{port}/tcp"))["holders"].as_array().expect("holders");
    held.iter().map(|pid| pid.as_u64().unwrap().try_into().unwrap()).collect()
}

/// Reaps: whoever is to be ended is, and nobody else is touched.
fn reap(test_box: &TestBox, arguments: &[&str], ended: &[&Server], left: &[&Server]) -> Report {
    let report = test_box.portreeve(&[&["reap"], arguments, &CONFIG[..]].concat());
    let processes = report.json["processes"].as_array().expect("processes");
    let touched = processes.iter().filter(|process| !process["outcome"].is_null());
    let touched: Vec<_> = touched.map(|process| process["pid"].as_u64()).collect();
    let mut wanted: Vec<_> = ended.iter().map(|server| Some(u64::from(server.pid))).collect();
    wanted.sort_unstable();
    let mut sorted = touched;
    sorted.sort_unstable();
    assert_eq!(sorted, wanted, "{:#}", report.json);
    for server in ended {
        assert!(!server.lives(test_box), "pid {} lives", server.pid);
    }
    for server in left {
        server.assert_serves(test_box);
    }
    report
}

/// Cases 42 and 9: the container restarts for ever on the port of its own earlier run.
#[test]
fn the_earlier_run_of_a_crash_looping_container_is_ended_and_the_container_comes_up() {
    let Some(test_box) = test_box("loop", &[("aidb", 8091)]) else { return };
    let engine = Engine::start(&test_box, Kind::DockerCgroupfs);
    let (container, survivor) = contain(&engine, "aidb", 8091, &["--restart", "always"]);
    look(&test_box, 0, &[(&survivor, "spare: live container", 3)]);
    engine.abandon(&[&container]);
    engine.forget();
    engine.start_daemon();
    wait_until(DEADLINE, "the container was restarted three times", || {
        engine.inspect("aidb")["RestartCount"].as_u64() >= Some(3)
    });
    assert_eq!(test_box.cgroup(survivor.pid), format!("/docker/{}", container.id));
    let log = engine.run(&["logs", "aidb"]);
    assert!(String::from_utf8_lossy(&log.stderr).contains("AddrInUse"), "{log:?}");

    let report = look(&test_box, 1, &[(&survivor, "orphan: left behind by container aidb", 5)]);
    let reason = report.process(survivor.pid)["reason"].as_str().unwrap();
    let because =
        format!("times because pid {}, left by its earlier run, holds 8091:", survivor.pid);
    assert!(reason.starts_with("aidb restarted ") && reason.contains(&because), "{reason}");
    reap(&test_box, &[], &[&survivor], &[]);
    wait_until(DEADLINE, "the container serves", || {
        engine.status("aidb") == "running" && answers(&test_box, 8091)
    });
    let now = engine.container("aidb");
    assert_eq!(now.id, container.id);
    assert_ne!(now.pid, survivor.pid);
    let server = Server::at(&test_box, now.pid, 8091);
    look(&test_box, 0, &[(&server, "spare: live container", 3)]);
    reap(&test_box, &[], &[], &[&server]);
}

/// Where each run has a network of its own, the next one comes up beside what is left. Its control group names no container:
/// systemd still has the scope of that name.
#[test]
fn two_runs_of_one_container_are_told_apart() {
    let Some(test_box) = test_box("two-runs", &[("aidb", 8091)]) else { return };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    let (container, survivor) = publish(&engine, "aidb", 8091, &["--restart", "always"]);
    engine.abandon(&[&container]);
    engine.forget();
    engine.start_daemon();
    wait_until(DEADLINE, "the container runs anew", || {
        engine.inspect("aidb")["State"]["Pid"].as_u64().is_some_and(|pid| pid != 0)
    });
    let anew = engine.container("aidb");
    assert_eq!(anew.id, container.id);
    assert_ne!(anew.pid, survivor.pid);
    let server = Server::at(&test_box, anew.pid, 8091);
    assert!(test_box.cgroup(survivor.pid).contains(&container.id));
    assert!(!test_box.cgroup(server.pid).contains(&container.id));

    let left = (&survivor, "orphan: left behind by container aidb", 5);
    look(&test_box, 1, &[left, (&server, "spare: live container", 3)]);
    kill(&test_box, &engine.daemons()[1..]);
    engine.kill_monitor(&anew);
    look(&test_box, 1, &[left, (&server, "unsupervised: container aidb", 4)]);
    reap(&test_box, &["--also", "abandoned"], &[&survivor], &[&server]);
}

/// The same under Podman, which waits for nothing between two runs: most looks find another one running.
#[test]
fn the_earlier_run_of_a_crash_looping_podman_container_is_ended_at_whatever_moment_one_looks() {
    let Some(test_box) = test_box("podman-loop", &[("aidb", 8091)]) else { return };
    let engine = Engine::start(&test_box, Kind::PodmanOfBob);
    // Each run lives for a while before it finds its port taken.
    let server = format!("sleep 0.5; exec plant --as '{}' --listen 8091", disguise("aidb"));
    let run = ["run", "--detach", "--name", "aidb", "--restart", "always", "--network", "host"];
    engine.must(&[&run[..], &["plant", "sh", "-c", &server]].concat());
    let container = engine.container("aidb");
    let survivor = Server::at(&test_box, container.pid, 8091);
    engine.abandon(&[&container]);
    engine.forget();
    // Podman ends what its runtime still knows.
    test_box.sh("rm -r /run/user/$(id -u bob)/runc");
    engine.must(&["start", "aidb"]);
    wait_until(DEADLINE, "the container was restarted three times", || {
        engine.inspect("aidb")["RestartCount"].as_u64() >= Some(3)
    });
    for _ in 0..5 {
        look(&test_box, 1, &[(&survivor, "orphan: left behind by container aidb", 5)]);
    }
    reap(&test_box, &[], &[&survivor], &[]);
    wait_until(DEADLINE, "the container serves", || {
        engine.status("aidb") == "running" && answers(&test_box, 8091)
    });
    let now = engine.container("aidb");
    assert_eq!(now.id, container.id);
    let server = Server::at(&test_box, now.pid, 8091);
    look(&test_box, 0, &[(&server, "spare: live container", 3)]);
}

/// Cases 8, 11, 43 and 44, for the Podman of root, of a user with a manager and of one without.
#[test]
fn a_container_whose_conmon_died_is_unsupervised_until_podman_forgets_it() {
    let services = [
        ("root", 8301_u16),
        ("root-removed", 8302),
        ("bob", 8303),
        ("bob-removed", 8304),
        ("alice", 8305),
        ("alice-removed", 8306),
    ];
    let Some(test_box) = test_box("conmon", &services) else { return };
    let kinds = [Kind::Podman, Kind::PodmanOfBob, Kind::PodmanOfAlice];
    let engines = kinds.map(|kind| Engine::start(&test_box, kind));
    let of_each = || engines.iter().flat_map(|engine| [engine, engine]).zip(services);
    let containers: Vec<(Container, Server)> =
        of_each().map(|(engine, (name, port))| contain(engine, name, port, &[])).collect();
    let servers: Vec<&Server> = containers.iter().map(|(_, server)| server).collect();
    let alice = &containers[4].0;
    let cgroup = test_box.cgroup(alice.pid);
    assert!(!cgroup.contains(&alice.id), "{cgroup}");

    let all_are = |title: &'static str, row| -> Vec<(&Server, String, u8)> {
        let titles = services.map(|(name, _)| title.replace("NAME", name));
        servers.iter().copied().zip(titles).map(|(server, title)| (server, title, row)).collect()
    };
    let look_for = |code, expected: &[(&Server, String, u8)]| {
        let expected: Vec<Expected<'_>> =
            expected.iter().map(|(server, title, row)| (*server, title.as_str(), *row)).collect();
        look(&test_box, code, &expected)
    };
    look_for(0, &all_are("spare: live container", 3));

    for ((engine, _), (container, _)) in of_each().zip(&containers) {
        engine.kill_monitor(container);
    }
    for (engine, (name, _)) in of_each() {
        assert_eq!(engine.status(name), "running", "{name}");
    }
    look_for(1, &all_are("unsupervised: container NAME", 4));
    reap(&test_box, &["--also", "abandoned"], &[], &servers);

    for engine in &engines {
        engine.forget();
    }
    for (engine, (name, _)) in of_each().filter(|(_, (name, _))| name.ends_with("-removed")) {
        // It may say that something of it is busy, and has forgotten it nevertheless.
        engine.run(&["rm", "--force", name]);
        assert_eq!(engine.status(name), "", "{name}");
    }
    let mut expected = all_are("orphan: left behind by container NAME", 5);
    for (index, (container, _)) in containers.iter().enumerate().filter(|(at, _)| at % 2 == 1) {
        // Its engine knows no name of it any more, and without a control group nothing tells its id.
        let name = if index == 5 { "that was removed" } else { &container.id[..12] };
        expected[index].1 = format!("orphan: left behind by container {name}");
    }
    look_for(1, &expected);
    reap(&test_box, &[], &servers, &[]);
}

/// Case 9: dockerd, containerd and the shims are killed; later the engine is back.
#[test]
fn what_a_dead_docker_left_is_undecided_until_docker_is_back() {
    let Some(test_box) = test_box("dead", &[("aidb", 8091), ("removed", 8092)]) else { return };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    let (one, aidb) = contain(&engine, "aidb", 8091, &[]);
    let (other, removed) = contain(&engine, "removed", 8092, &[]);
    engine.abandon(&[&one, &other]);
    let report = look(&test_box, 2, &[(&aidb, "undecided", 6), (&removed, "undecided", 6)]);
    let reason = report.process(aidb.pid)["reason"].as_str().unwrap();
    assert!(reason.contains("gave no answer"), "{reason}");
    let report = reap(&test_box, &["--also", "abandoned"], &[], &[&aidb, &removed]);
    assert_eq!(report.code, 2);

    engine.forget();
    engine.start_daemon();
    engine.wait_for_status("aidb", "exited");
    engine.must(&["rm", "--force", "removed"]);
    let unknown = format!("orphan: left behind by container {}", &other.id[..12]);
    let known = "orphan: left behind by container aidb";
    look(&test_box, 1, &[(&aidb, known, 5), (&removed, &unknown, 5)]);
    reap(&test_box, &[], &[&aidb, &removed], &[]);
    assert_eq!(engine.status("aidb"), "exited");
}

/// Cases 12 and 13: who holds a published port is no culprit.
#[test]
fn a_forwarder_is_spared_with_its_container_and_a_dead_one_hurts_nobody() {
    let services = [("docker", 8201), ("root", 8202), ("bob", 8203), ("alice", 8204)];
    let Some(test_box) = test_box("forwarders", &services) else { return };
    let kinds = [
        (Kind::DockerCgroupfs, "docker-proxy"),
        (Kind::Podman, "conmon"),
        (Kind::PodmanOfBob, "rootlessport"),
        (Kind::PodmanOfAlice, "rootlessport"),
    ];
    let mut servers = Vec::new();
    let mut engines = Vec::new();
    for ((kind, _), (name, port)) in kinds.into_iter().zip(services) {
        let engine = Engine::start(&test_box, kind);
        servers.push(publish(&engine, name, port, &[]).1);
        engines.push(engine);
    }
    let expected: Vec<Expected<'_>> =
        servers.iter().map(|server| (server, "spare: live container", 3)).collect();
    let report = look(&test_box, 0, &expected);
    let servers: Vec<&Server> = servers.iter().collect();
    for ((_, forwarder), (name, port)) in kinds.into_iter().zip(services) {
        let holders = holders(&report, port);
        assert!(!holders.is_empty(), "{name}");
        for pid in holders {
            let said = report.process(pid);
            assert_said(said, &format!("spare: forwards to container {name}"), 7);
            // From Podman 5 on, pasta takes the place of rootlessport.
            let exe = said["exe"].as_str().unwrap();
            assert!(exe.ends_with(forwarder) || exe.contains("pasta"), "{exe}");
        }
        let port = port.to_string();
        let flags = ["--port", &port, "--also", "foreign", "--also", "abandoned"];
        assert_eq!(reap(&test_box, &flags, &[], &servers).code, 0);
    }

    kill(&test_box, &holders(&report, 8201));
    assert!(test_box.can_bind(8201));
    let report = look(&test_box, 0, &expected);
    assert_eq!(report.port("8201/tcp")["holders"], serde_json::json!([]));
    reap(&test_box, &["--also", "abandoned"], &[], &servers[1..]);
    assert!(servers[0].lives(&test_box));
    assert_eq!(engines[0].status("docker"), "running");
}

/// Cases 22 and 38: whatever a live container's processes look like, and whoever's it is.
#[test]
fn a_live_containers_processes_are_spared_whatever_they_look_like() {
    let kinds = [
        (Kind::SecondDocker, "/system.slice/docker-ID.scope"),
        (Kind::DockerSystemd, "/system.slice/docker-ID.scope"),
        (Kind::Podman, "/machine.slice/libpod-ID.scope"),
        (Kind::PodmanOfBob, "user@1001.service/user.slice/libpod-ID.scope"),
        (Kind::PodmanOfAlice, "/init.scope"),
    ];
    let names = ["second", "first", "root", "bob", "alice"];
    let services: Vec<_> = names.into_iter().zip(8101_u16..).collect();
    let Some(test_box) = test_box("live", &services) else { return };
    let mut servers = Vec::new();
    for ((kind, cgroup), (name, port)) in kinds.into_iter().zip(services) {
        let engine = Engine::start(&test_box, kind);
        let (container, server) = contain(&engine, name, port, &[]);
        let seen = test_box.cgroup(container.pid);
        assert!(seen.ends_with(&cgroup.replace("ID", &container.id)), "{kind:?}: {seen}");
        servers.push(server);
    }
    let all: Vec<&Server> = servers.iter().collect();
    let expected: Vec<Expected<'_>> =
        servers.iter().map(|server| (server, "spare: live container", 3)).collect();
    look(&test_box, 0, &expected);
    for server in &servers {
        let port = server.port.to_string();
        let flags =
            ["--port", &port, "--also", "foreign", "--also", "session", "--also", "abandoned"];
        assert_eq!(reap(&test_box, &flags, &[], &all).code, 0);
    }
}

/// The pid of the only process of this command line in the box.
fn pid_of(test_box: &TestBox, command_line: &str) -> u32 {
    let mut found = None;
    wait_until(DEADLINE, &format!("'{command_line}' runs"), || {
        let output = test_box.run(&["pgrep", "--full", "--exact", command_line]);
        found = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        found.is_some()
    });
    found.expect("just seen")
}

/// In a container there are more than its first process: what was sent in, what daemonised, what has the host's pids.
#[test]
fn not_only_the_first_process_of_a_live_container_is_spared() {
    let names = ["first", "host-pids", "sent-in", "daemon", "host-daemon"];
    let services: Vec<_> = names.into_iter().zip(8401_u16..).collect();
    let Some(test_box) = test_box("many", &services) else { return };
    for kind in [Kind::DockerSystemd, Kind::Podman, Kind::PodmanOfAlice] {
        let engine = Engine::start(&test_box, kind);
        let (first, one) = contain(&engine, "first", 8401, &[]);
        let (host_pids, other) = contain(&engine, "host-pids", 8402, &["--pid", "host"]);
        let send = |container: &str, name: &str, port: u16, option: &[&str]| {
            let port_text = port.to_string();
            let plant = ["--as", &disguise(name), "--listen", &port_text];
            engine.must(&[&["exec", "--detach", container, "plant"], option, &plant].concat());
            Server::at(&test_box, pid_of(&test_box, &disguise(name)), port)
        };
        let sent_in = send("first", "sent-in", 8403, &[]);
        let daemon = send("first", "daemon", 8404, &["--daemonise"]);
        assert_eq!(test_box.stat(daemon.pid).unwrap().parent, u64::from(first.pid));
        let host_daemon = send("host-pids", "host-daemon", 8405, &["--daemonise"]);

        let servers = [&one, &other, &sent_in, &daemon, &host_daemon];
        let all_live = servers.map(|server| (server, "spare: live container", 3));
        look(&test_box, 0, &all_live);
        reap(&test_box, &["--also", "abandoned"], &[], &servers);
        if kind == Kind::DockerSystemd {
            kill(&test_box, &servers.map(|server| server.pid)[1..]);
            engine.must(&["rm", "--force", "first", "host-pids"]);
            continue;
        }
        // What Podman sends in has a conmon of its own. The container's lives on, whatever becomes of that one and of what
        // Podman knows.
        for (sent, container) in [(&sent_in, &first), (&host_daemon, &host_pids)] {
            let of_sent = test_box.stat(sent.pid).unwrap().parent.try_into().unwrap();
            assert_ne!(of_sent, container.monitor);
            kill(&test_box, &[of_sent]);
        }
        look(&test_box, 0, &all_live);
        engine.forget();
        assert_eq!(engine.status("first"), "created");
        look(&test_box, 0, &all_live);
        reap(&test_box, &["--also", "abandoned"], &[], &servers);

        engine.kill_monitor(&first);
        engine.kill_monitor(&host_pids);
        let left = "orphan: left behind by container first";
        let expected = [
            (&one, left, 5),
            (&other, "orphan: left behind by container host-pids", 5),
            (&sent_in, left, 5),
            (&daemon, left, 5),
            (&host_daemon, "orphan: left behind by container host-pids", 5),
        ];
        look(&test_box, 1, &expected);
        kill(&test_box, &[one.pid, other.pid, host_daemon.pid]);
    }
}

/// Who listens at a Unix socket of the box.
fn listener(test_box: &TestBox, socket: &str) -> u32 {
    let said = test_box.sh(&format!("ss -Hxlp src {socket}"));
    let pid = said.split("pid=").nth(1).expect("a listener").split(',').next();
    pid.and_then(|pid| pid.parse().ok()).expect("a pid")
}

/// Cases 10 and 8: an engine that takes the question and does not answer, and paused containers.
#[test]
fn a_frozen_engine_decides_nothing_and_a_paused_container_is_alive() {
    let services = [
        ("docker", 8501),
        ("docker-paused", 8502),
        ("root", 8503),
        ("root-paused", 8504),
        ("published", 8505),
    ];
    let Some(test_box) = test_box("frozen", &services) else { return };
    let docker = Engine::start(&test_box, Kind::DockerSystemd);
    let podman = Engine::start(&test_box, Kind::Podman);
    podman.serve();
    let all = services.map(|(name, port)| match name {
        "published" => publish(&docker, name, port, &[]),
        _ if name.starts_with("docker") => contain(&docker, name, port, &[]),
        _ => contain(&podman, name, port, &[]),
    });
    docker.must(&["pause", "docker-paused"]);
    podman.must(&["pause", "root-paused"]);
    let servers = all.each_ref().map(|(_, server)| server);
    let report = look(&test_box, 0, &servers.map(|server| (server, "spare: live container", 3)));
    let forwarders = holders(&report, 8505);
    let are_forwarders_said = |report: &Report, title: &str| {
        for pid in &forwarders {
            assert_said(report.process(*pid), title, 7);
        }
    };
    are_forwarders_said(&report, "spare: forwards to container published");

    let daemons = docker.daemons();
    // containerd would clean up behind a shim that dies. (Were it frozen, Docker would not even tell its version.)
    kill(&test_box, &daemons[1..]);
    for (container, _) in &all {
        docker.kill_monitor(container);
    }
    let titles = services.map(|(name, _)| format!("unsupervised: container {name}"));
    let unsupervised: Vec<Expected<'_>> = servers
        .into_iter()
        .zip(&titles)
        .map(|(server, title)| (server, title.as_str(), 4))
        .collect();
    let report = look(&test_box, 1, &unsupervised);
    are_forwarders_said(&report, "unsupervised: container published");
    let flags = ["--port", "8505", "--also", "foreign", "--also", "abandoned"];
    reap(&test_box, &flags, &[], &servers);

    let frozen = [daemons[0], listener(&test_box, &podman.socket)];
    signal(&test_box, "STOP", &frozen);
    let start = Instant::now();
    let report = test_box.portreeve(&[&["scan"], &CONFIG[..]].concat());
    let elapsed = start.elapsed();
    assert!(elapsed < 2 * ENGINES_TIMEOUT, "{elapsed:?}");
    assert_eq!(report.code, 2);
    for server in servers {
        assert_said(report.process(server.pid), "undecided", 6);
        let reason = report.process(server.pid)["reason"].as_str().unwrap();
        assert!(reason.contains("did not answer in time"), "{reason}");
    }
    are_forwarders_said(&report, "undecided");
    reap(&test_box, &flags, &[], &servers);
    reap(&test_box, &["--also", "abandoned"], &[], &servers);
    signal(&test_box, "CONT", &frozen);
    look(&test_box, 1, &unsupervised);
}

/// The first engine knows nothing of the second's containers: no proof that these are gone.
#[test]
fn what_lies_in_another_dockers_store_is_not_judged_by_this_one() {
    let Some(test_box) = test_box("two", &[("left", 8601), ("live", 8602)]) else { return };
    // Were the first there before, the second would use its containerd.
    let second = Engine::start(&test_box, Kind::SecondDocker);
    let first = Engine::start(&test_box, Kind::DockerSystemd);
    let (container, left) = contain(&second, "left", 8601, &[]);
    let (_, live) = contain(&second, "live", 8602, &[]);
    second.abandon(&[&container]);
    let unknown = first.ask(&format!("/containers/{}/json", container.id), DEADLINE);
    assert_eq!(unknown.expect("an answer").0, 404);
    let expected = [(&left, "undecided", 6), (&live, "spare: live container", 3)];
    let report = look(&test_box, 2, &expected);
    let reason = report.process(left.pid)["reason"].as_str().unwrap();
    assert!(reason.contains("in no store of theirs"), "{reason}");
    reap(&test_box, &["--also", "abandoned"], &[], &[&left, &live]);
}

/// A dockerd that a question starts ends the containers that outlived it.
#[test]
fn a_sleeping_docker_is_not_woken() {
    let Some(test_box) = test_box("asleep", &[("live", 8701), ("left", 8702)]) else { return };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    let (_, live) = contain(&engine, "live", 8701, &[]);
    let (container, left) = contain(&engine, "left", 8702, &[]);
    kill(&test_box, &engine.daemons());
    engine.kill_monitor(&container);
    let is_active =
        |unit: &str| test_box.run(&["systemctl", "is-active", "--quiet", unit]).status.success();
    assert!(is_active("docker.socket") && !is_active("docker.service"));
    let expected = [(&live, "spare: live container", 3), (&left, "undecided", 6)];
    let report = look(&test_box, 2, &expected);
    let reason = report.process(left.pid)["reason"].as_str().unwrap();
    assert!(reason.contains("sleeps"), "{reason}");
    reap(&test_box, &["--also", "abandoned"], &[], &[&live, &left]);
    assert!(is_active("docker.socket") && !is_active("docker.service"));
}

/// Engines are asked about candidates that point to them, and about nothing else.
#[test]
fn no_engine_is_asked_where_no_candidate_is_in_a_container() {
    let Some(test_box) = test_box("unasked", &[("native", 8801), ("aidb", 8802), ("pod", 8805)])
    else {
        return;
    };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    let podman = Engine::start(&test_box, Kind::Podman);
    let traced = || {
        test_box.sh(
            "strace -f -qq -e trace=connect,openat,openat2,execve -o /run/trace /build/portreeve scan \
             --config /etc/scenes.yaml >/dev/null || true; cat /run/trace",
        )
    };
    let unguarded = ["--as", "python3 other.py", "--listen", "8803"];
    engine.contain("other", &HOST_NETWORK, &unguarded);
    podman.contain("other", &HOST_NETWORK, &["--as", "python3 other.py", "--listen", "8804"]);
    let native = format!("/build/examples/plant --as '{}' --listen 8801", disguise("native"));
    test_box.sh(&format!("setsid {native} </dev/null >/dev/null 2>&1 &"));
    Server::at(&test_box, pid_of(&test_box, &disguise("native")), 8801);
    let trace = traced();
    assert!(trace.contains("/etc/scenes.yaml") && trace.contains("systemd"), "{trace}");
    for place in ["docker.sock", "podman"] {
        assert!(!trace.contains(place), "{trace}");
    }
    contain(&engine, "aidb", 8802, &[]);
    let (pod, _) = contain(&podman, "pod", 8805, &[]);
    // For the name of a container that its conmon looks after, no podman is run; for its life it is.
    let runs_podman =
        |trace: &str| trace.lines().any(|l| l.contains("execve") && l.contains("podman"));
    let trace = traced();
    assert!(trace.contains("docker.sock") && !runs_podman(&trace), "{trace}");
    podman.kill_monitor(&pod);
    assert!(runs_podman(&traced()));
}

fn outcome<'a>(report: &'a Report, pid: u32, result: &str) -> &'a str {
    let outcome = &report.process(pid)["outcome"];
    assert_eq!(outcome["result"], result, "{outcome:#}");
    outcome["detail"].as_str().unwrap_or_default()
}

/// The ladder, where the engine does as it is told: stopped, killed where it must be, never removed.
#[test]
fn an_unsupervised_container_is_stopped_by_its_engine_where_that_is_asked_for() {
    let services = [("polite", 8401_u16), ("stubborn", 8402), ("bobs", 8403), ("later", 8404)];
    let Some(test_box) = test_box("ladder", &services) else { return };
    let (root, bob) =
        (Engine::start(&test_box, Kind::Podman), Engine::start(&test_box, Kind::PodmanOfBob));
    // As the first process of its namespace the planted server does not hear SIGTERM.
    let polite = ["--stop-signal", "KILL"];
    let of = [(&root, &polite[..]), (&root, &[]), (&bob, &[]), (&root, &[])];
    let containers: Vec<(Container, Server)> = of
        .iter()
        .zip(services)
        .map(|((engine, options), (name, port))| contain(engine, name, port, options))
        .collect();
    for ((engine, _), (container, _)) in of.iter().zip(&containers) {
        engine.kill_monitor(container);
    }
    let servers: Vec<&Server> = containers.iter().map(|(_, server)| server).collect();
    reap(&test_box, &[], &[], &servers);

    let also = ["--also", "unsupervised"];
    let first = [&also[..], &["polite", "stubborn", "bobs"]].concat();
    let report = reap(&test_box, &first, &servers[..3], &servers[3..]);
    assert_eq!(report.code, 0, "{:#}", report.json);
    for server in &servers[..3] {
        assert!(outcome(&report, server.pid, "stopped").starts_with("stop: done"));
    }
    for ((engine, _), (name, _)) in of.iter().zip(services) {
        assert_ne!(engine.status(name), "", "{name} was removed");
    }
    let metrics =
        test_box.sh("/build/portreeve scan polite --format prometheus --config /etc/scenes.yaml");
    for count in ["outcome=\"graceful\"} 1", "outcome=\"forced\"} 2", "outcome=\"failed\"} 0"] {
        let series = format!("portreeve_container_stops_total{{{count}\n");
        assert!(metrics.contains(&series), "{metrics}");
    }

    let later = [&["reap", "later", "--no-wait"], &also[..], &CONFIG[..]].concat();
    let began = Instant::now();
    let report = test_box.portreeve(&later);
    let unit = outcome(&report, servers[3].pid, "handed_over").to_owned();
    assert_eq!(report.code, 1);
    wait_until(DEADLINE, "the unit has stopped it", || !servers[3].lives(&test_box));
    assert!(unit.starts_with("portreeve-reap-"), "{unit}");
    let count = "grep -q '\"forced\":3' /var/lib/portreeve/stops.json";
    wait_until(DEADLINE, "the unit has counted it", || {
        test_box.run(&["sh", "-c", count]).status.success()
    });
    wait_until(DEADLINE, "the journal tells", || {
        let told = format!("journalctl -u {unit} -o cat PORTREEVE_OUTCOME=stopped");
        test_box.sh(&told).contains("ended with its container, which had to be killed")
    });
    assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
}

/// The ladder, where the engine takes orders and does nothing: its runtime is gone.
#[test]
fn what_a_broken_engine_cannot_stop_is_ended_all_the_same_and_its_forwarder_never() {
    let Some(test_box) = test_box("broken", &[("docker", 8411)]) else { return };
    let settings = test_box.sh("cat /etc/scenes.yaml");
    let limits = "engines: { timeout: 3s, stop_timeout: 1s, kill_timeout: 1s }";
    test_box.write("/etc/scenes.yaml", &settings.replace("engines: { timeout: 3s }", limits));
    let engine = Engine::start(&test_box, Kind::DockerCgroupfs);
    let (container, server) = publish(&engine, "docker", 8411, &[]);
    // dockerd lives, containerd and the shim do not.
    let daemons = engine.daemons();
    kill(&test_box, &daemons[1..]);
    engine.kill_monitor(&container);
    let unsupervised = "unsupervised: container docker";
    let report = look(&test_box, 1, &[(&server, unsupervised, 4)]);
    let forwarders = holders(&report, 8411);
    assert!(!forwarders.is_empty());
    for pid in &forwarders {
        assert_said(report.process(*pid), unsupervised, 7);
    }
    let arguments = [&["reap", "--also", "unsupervised"], &CONFIG[..]].concat();
    let began = Instant::now();
    let report = test_box.portreeve(&arguments);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(report.code, 1);
    assert!(!server.lives(&test_box));
    assert!(
        ["killed", "stopped"].contains(
            &report.process(server.pid)["outcome"]["result"].as_str().unwrap_or_default()
        )
    );
    for pid in forwarders {
        outcome(&report, pid, "not_stopped");
        assert!(test_box.stat(pid).is_some(), "docker-proxy {pid} was ended");
    }
}

/// Docker's socket by its other path, and a `/run` that is not systemd's: a question would start dockerd, and that would end
/// the container, which its shim keeps alive.
#[test]
fn a_sleeping_docker_is_not_woken_by_another_way() {
    let Some(test_box) = test_box("asleep-other", &[("live", 8711)]) else { return };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    let (_, live) = contain(&engine, "live", 8711, &[]);
    kill(&test_box, &engine.daemons());
    let is_active =
        |unit: &str| test_box.run(&["systemctl", "is-active", "--quiet", unit]).status.success();
    assert!(is_active("docker.socket") && !is_active("docker.service"));
    // A container with the host's pids and the socket.
    test_box.sh(
        "unshare -m sh -c 'mount -t tmpfs tmpfs /run/systemd && /build/portreeve scan --config /etc/scenes.yaml' || true",
    );
    assert_eq!(test_box.sh("systemctl is-active docker.service || true"), "failed");
    test_box
        .sh("sed -i 's#timeout: 3s#timeout: 3s, docker: /var/run/docker.sock#' /etc/scenes.yaml");
    test_box.portreeve(&[&["scan"], &CONFIG[..]].concat());
    assert_eq!(test_box.sh("systemctl is-active docker.service || true"), "failed");
    live.assert_serves(&test_box);
}

/// A unit whose process entered a container's mounts, or has a container's files for a root, is that unit's.
#[test]
fn the_main_process_of_a_living_unit_is_no_containers_leftover() {
    let Some(test_box) = test_box("unit-in", &[("sidecar", 8721), ("rooted", 8722)]) else {
        return;
    };
    let engine = Engine::start(&test_box, Kind::Podman);
    let plant = ["--as", "python3 other.py", "--listen", "8723"];
    let main = engine.contain("web", &HOST_NETWORK, &plant).pid;
    test_box.sh(&format!(
        "systemd-run -q --unit=sidecar nsenter -t {main} -m -- /bin/busybox nc -ll -p 8721 -e /bin/cat"
    ));
    engine.must(&["create", "--name", "base", "plant", "plant"]);
    let root = engine.must(&["mount", "base"]);
    test_box.sh(&format!(
        "systemd-run -q --unit=rooted -p RootDirectory={root} -p MountAPIVFS=yes \
         /bin/plant --as 'python3 -u /app/rooted.py --config x' --listen 8722"
    ));
    let servers = [("sidecar", 8721), ("rooted", 8722)].map(|(unit, port)| {
        let pid = test_box.sh(&format!("systemctl show -P MainPID {unit}")).parse().unwrap();
        Server::at(&test_box, pid, port)
    });
    reap(&test_box, &[], &[], &[&servers[0], &servers[1]]);
}

/// Podman says "stopping" while it waits for the process to leave, and for ever where the one who waited was ended.
#[test]
fn a_container_that_is_being_stopped_has_its_own_time_to_leave() {
    let Some(test_box) = test_box("stopping", &[("slow", 8731)]) else { return };
    let engine = Engine::start(&test_box, Kind::Podman);
    let plant = ["--as", &disguise("slow"), "--ignore-term", "--listen", "8731"];
    let container = engine.contain("slow", &HOST_NETWORK, &plant);
    let server = Server::at(&test_box, container.pid, 8731);
    engine.kill_monitor(&container);
    test_box.sh("podman stop -t 60 slow >/dev/null 2>&1 &");
    engine.wait_for_status("slow", "stopping");
    reap(&test_box, &[], &[], &[&server]);
}

/// Two databases on one store: another Podman's, Buildah's, one with `--transient-store`.
#[test]
fn what_another_database_on_the_same_store_knows_is_not_removed() {
    let Some(test_box) = test_box("two-books", &[("other", 8741)]) else { return };
    let _engine = Engine::start(&test_box, Kind::Podman);
    test_box.sh(
        "sed 's#^.engine.#[engine]\\nstatic_dir=\"/var/lib/other\"\\ntmp_dir=\"/run/other\"#' \
         /etc/containers/containers.conf >/run/other.conf",
    );
    test_box.sh(&format!(
        "CONTAINERS_CONF=/run/other.conf podman run -d --name other --network host plant plant \
         --as '{}' --listen 8741 >/dev/null 2>&1",
        disguise("other")
    ));
    let pid = pid_of(&test_box, &disguise("other"));
    let server = Server::at(&test_box, pid, 8741);
    let conmon = u32::try_from(test_box.stat(pid).unwrap().parent).unwrap();
    kill(&test_box, &[conmon]);
    reap(&test_box, &[], &[], &[&server]);
}

/// A command run in a container has a conmon of its own; that one's death is no reason to stop the container.
#[test]
fn a_supervised_container_is_not_stopped_for_a_command_that_lost_its_monitor() {
    let Some(test_box) = test_box("exec", &[("helper", 8751), ("db", 8752)]) else { return };
    let engine = Engine::start(&test_box, Kind::Podman);
    let (_, db) = contain(&engine, "db", 8752, &[]);
    let line = disguise("helper");
    engine.must(&["exec", "-d", "db", "/bin/plant", "--as", &line, "--listen", "8751"]);
    let pid = pid_of(&test_box, &line);
    Server::at(&test_box, pid, 8751);
    kill(&test_box, &[u32::try_from(test_box.stat(pid).unwrap().parent).unwrap()]);
    test_box.portreeve(&[&["reap", "--also", "unsupervised"], &CONFIG[..]].concat());
    db.assert_serves(&test_box);
}

/// Anybody may lock a file that they may read.
#[test]
fn a_stranger_who_holds_the_counts_lock_does_not_hold_up_a_reap() {
    let Some(test_box) = test_box("locked", &[("db", 8761)]) else { return };
    let engine = Engine::start(&test_box, Kind::Podman);
    let (container, _) = contain(&engine, "db", 8761, &[]);
    engine.kill_monitor(&container);
    test_box.sh("mkdir -p /var/lib/portreeve && touch /var/lib/portreeve/stops.lock && chmod 644 /var/lib/portreeve/stops.lock");
    test_box.sh("setpriv --reuid alice --regid alice --clear-groups flock /var/lib/portreeve/stops.lock sleep 60 >/dev/null 2>&1 &");
    test_box.sh("sleep .3; timeout -s KILL 20 /build/portreeve reap --config /etc/scenes.yaml --also unsupervised");
}
