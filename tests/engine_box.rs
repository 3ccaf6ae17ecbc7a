//! Real engines in the box do what the tests rest on: containers run, are left behind, and crash-loop.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::time::Duration;

use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind, kill, signal},
    skip, wait_until,
};

const SERVER: &str = "python3 -u /app/server.py --config /etc/x.yaml";

/// A box, or a skip.
fn test_box(name: &str) -> Option<TestBox> {
    TestBox::boot(name).map_err(|reason| skip(&reason)).ok()
}

#[test]
fn a_container_of_each_engine_serves_and_is_supervised() {
    let Some(test_box) = test_box("engines") else { return };
    let kinds = [
        (Kind::DockerSystemd, "/system.slice/docker-ID.scope"),
        (Kind::SecondDocker, "/system.slice/docker-ID.scope"),
        (Kind::Podman, "/machine.slice/libpod-ID.scope"),
        (Kind::PodmanOfBob, "user@1001.service/user.slice/libpod-ID.scope"),
        (Kind::PodmanOfAlice, "/init.scope"),
    ];
    for ((kind, cgroup), port) in kinds.into_iter().zip(8101_u16..) {
        let engine = Engine::start(&test_box, kind);
        engine.serve();
        let port = port.to_string();
        let host = ["--network", "host"];
        let container = engine.contain("server", &host, &["--as", SERVER, "--listen", &port]);
        assert_eq!(engine.status("server"), "running", "{kind:?}");
        assert_ne!(container.monitor, 1, "{kind:?}");
        let seen = test_box.cgroup(container.pid);
        assert!(seen.ends_with(&cgroup.replace("ID", &container.id)), "{kind:?}: {seen}");
        wait_until(DEADLINE, "the port is held", || !test_box.can_bind(port.parse().unwrap()));

        let (status, said) =
            engine.ask(&format!("/containers/{}/json", container.id), DEADLINE).expect("an answer");
        assert_eq!((status, said["State"]["Pid"].as_u64()), (200, Some(container.pid.into())));
        let unknown = engine.ask("/containers/unknown/json", DEADLINE).expect("an answer");
        assert_eq!(unknown.0, 404);
    }
}

#[test]
fn published_ports_are_held_by_forwarders() {
    let Some(test_box) = test_box("forwarders") else { return };
    let kinds = [
        (Kind::DockerCgroupfs, "docker-proxy"),
        (Kind::Podman, "conmon"),
        (Kind::PodmanOfBob, "rootlessport"),
        (Kind::PodmanOfAlice, "rootlessport"),
    ];
    for ((kind, forwarder), port) in kinds.into_iter().zip(8201_u16..) {
        let engine = Engine::start(&test_box, kind);
        let publish = format!("{port}:8091");
        engine.contain("server", &["--publish", &publish], &["--as", SERVER, "--listen", "8091"]);
        let holders = test_box.sh(&format!("ss -Hltnp 'sport = :{port}'"));
        // From Podman 5 on, pasta takes the place of rootlessport.
        let pasta = forwarder == "rootlessport" && holders.contains("pasta");
        assert!(pasta || holders.contains(&format!("\"{forwarder}\"")), "{kind:?}: {holders}");
    }
}

#[test]
fn a_frozen_engine_accepts_and_does_not_answer() {
    let Some(test_box) = test_box("frozen") else { return };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    let daemons = engine.daemons();
    signal(&test_box, "STOP", &daemons[..1]);
    assert_eq!(engine.ask("/_ping", Duration::from_millis(500)), None);
    signal(&test_box, "CONT", &daemons[..1]);
    assert!(engine.ask("/_ping", DEADLINE).is_some());
}

#[test]
fn a_container_whose_conmon_died_is_still_called_running_until_its_state_is_lost() {
    let Some(test_box) = test_box("conmon") else { return };
    for (kind, port) in
        [Kind::Podman, Kind::PodmanOfBob, Kind::PodmanOfAlice].iter().zip(8301_u16..)
    {
        let engine = Engine::start(&test_box, *kind);
        let plant = ["--as", SERVER, "--listen", &port.to_string()];
        let container = engine.contain("server", &["--network", "host"], &plant);
        engine.abandon(&container);
        assert_eq!(engine.status("server"), "running", "{kind:?}");
        engine.forget();
        assert_eq!(engine.status("server"), "created", "{kind:?}");
        assert!(test_box.stat(container.pid).is_some(), "{kind:?}");
    }
}

/// Case 42. The survivor has to go before the container can come up.
#[test]
fn a_container_crash_loops_on_the_port_of_its_own_earlier_run() {
    let Some(test_box) = test_box("crash-loop") else { return };
    let engine = Engine::start(&test_box, Kind::DockerCgroupfs);
    let options = ["--restart", "always", "--network", "host"];
    let survivor = engine.contain("loop", &options, &["--as", SERVER, "--listen", "8091"]);
    engine.abandon(&survivor);
    engine.forget();
    engine.start_daemon();
    wait_until(DEADLINE, "the container was restarted three times", || {
        engine.inspect("loop")["RestartCount"].as_u64() >= Some(3)
    });
    assert_eq!(test_box.cgroup(survivor.pid), format!("/docker/{}", survivor.id));
    let log = engine.run(&["logs", "loop"]);
    assert!(String::from_utf8_lossy(&log.stderr).contains("AddrInUse"), "{log:?}");

    kill(&test_box, &[survivor.pid]);
    wait_until(DEADLINE, "the container holds its port", || {
        engine.status("loop") == "running" && !test_box.can_bind(8091)
    });
    assert_ne!(engine.container("loop").pid, survivor.pid);
}
