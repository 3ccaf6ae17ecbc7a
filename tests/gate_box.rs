//! `portreeve gate` on a machine with systemd and engines: before a unit's start, beside the service itself, after a bad day.

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
    engines::{Engine, Kind},
    skip, wait_until,
};

const CONFIG: &str = "
defaults: { min_age: 1s, grace: 1s, respawn_watch: 0s }
gate: { timeout: 0s, settle: 50ms }
services:
  aidb: { runs_in: { container: local-aidb }, ports: [8091], patterns: ['^python3 -u /app/aidb\\.py'] }
  web: { runs_in: { unit: web.service }, ports: [8092] }
  left: { runs_in: container, ports: [8093], patterns: ['^python3 /app/left\\.py'] }
  postgres: { ports: [5432] }
";

fn test_box(name: &str) -> Option<TestBox> {
    let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
    test_box.write("/etc/gate.yaml", CONFIG);
    Some(test_box)
}

/// Exit code, and all that was said.
fn gate(test_box: &TestBox, words: &[&str]) -> (i32, String) {
    let command = [&["/build/portreeve", "gate", "--config", "/etc/gate.yaml"], words].concat();
    let output = test_box.run(&command);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

fn code(test_box: &TestBox, words: &[&str]) -> i32 {
    gate(test_box, words).0
}

/// A unit that runs a planted server, with lines for its [Service] section.
fn server(test_box: &TestBox, name: &str, port: u16, more: &str) {
    let plant = format!("/build/examples/plant --ready /run/planted/{name} --listen {port}");
    let text = format!("[Service]\nExecStart={plant}\n{more}\n");
    test_box.unit(&format!("{name}.service"), &text);
}

#[test]
fn the_service_in_its_declared_unit_is_accepted_as_itself_and_a_stranger_is_not() {
    let Some(test_box) = test_box("gate-unit") else { return };
    server(&test_box, "web", 8092, "");
    test_box.sh("systemctl start web");
    test_box.planted("web");
    let (blocked, said) = gate(&test_box, &["web"]);
    assert_eq!(blocked, 1, "{said}");
    assert!(said.contains("managed by web.service") && said.contains("systemctl"), "{said}");
    assert_eq!(code(&test_box, &["web", "--allow-ours"]), 0);
    test_box.sh("systemctl stop web");
    server(&test_box, "thief", 8092, "");
    test_box.sh("systemctl start thief");
    test_box.planted("thief");
    let (taken, said) = gate(&test_box, &["web", "--allow-ours"]);
    assert_eq!(taken, 1, "{said}");
    assert!(said.contains("managed by thief.service"), "{said}");
}

#[test]
fn a_unit_starts_only_behind_an_open_gate_and_the_journal_says_what_blocked_it() {
    let Some(test_box) = test_box("gate-start") else { return };
    server(&test_box, "thief", 8092, "");
    test_box.sh("systemctl start thief");
    test_box.planted("thief");
    let gate = "/build/portreeve gate --config /etc/gate.yaml web --timeout 0s --";
    let plant = "/build/examples/plant --ready /run/planted/web --listen 8092";
    test_box.unit("web.service", &format!("[Service]\nExecStart={gate} {plant}\n"));
    test_box.sh("systemctl start web");
    let status = "systemctl show --property=ExecMainStatus,ActiveState --value web | paste -sd' '";
    wait_until(DEADLINE, "it has failed", || test_box.sh(status) == "75 failed");
    let journal = "journalctl --unit web --output json PORTREEVE_EVENT=blocked || true";
    wait_until(DEADLINE, "it is on record", || !test_box.sh(journal).is_empty());
    let entry: serde_json::Value =
        serde_json::from_str(test_box.sh(journal).lines().next().unwrap()).unwrap();
    assert_eq!(
        (&entry["PORTREEVE_PORT"], &entry["PORTREEVE_SERVICE"], &entry["PRIORITY"]),
        (&"8092/tcp".into(), &"web".into(), &"3".into()),
        "{entry:#}"
    );
    assert!(entry["MESSAGE"].as_str().unwrap().contains("thief.service"), "{entry:#}");
    test_box.sh("systemctl stop thief; systemctl start web");
    // The gate became the server: it is the unit's main process.
    let planted = test_box.planted("web").to_string();
    assert_eq!(test_box.sh("systemctl show --property=MainPID --value web"), planted);
}

#[test]
fn a_unit_that_took_the_port_between_a_gate_and_its_start_is_on_record_at_the_next() {
    let Some(test_box) = test_box("gate-thief") else { return };
    server(&test_box, "thief", 8092, "");
    let gate = "/build/portreeve gate --config /etc/gate.yaml web --timeout 0s";
    let plant = "/build/examples/plant --ready /run/planted/web --listen 8092";
    test_box.unit(
        "web.service",
        &format!(
            "[Service]\nExecStartPre={gate}\n\
             ExecStart=/bin/sh -c 'systemctl start thief; while ! [ -e /run/planted/thief ]; do sleep 0.02; done; exec {plant}'\n"
        ),
    );
    test_box.sh("systemctl start web");
    let thief = test_box.planted("thief");
    let status = "systemctl show --property=ActiveState --value web";
    wait_until(DEADLINE, "its start has failed", || test_box.sh(status) == "failed");
    let journal = "journalctl --unit web --output cat PORTREEVE_EVENT=blocked || true";
    assert_eq!(test_box.sh(journal), "");
    test_box.sh("systemctl start web || true");
    wait_until(DEADLINE, "it is on record", || !test_box.sh(journal).is_empty());
    let said = test_box.sh(journal);
    let wanted = format!("pid {thief}: it took the port after a gate found it free");
    assert!(said.contains("thief.service") && said.contains(&wanted), "{said}");
    assert!(said.trim_end().ends_with("does not run where the port's service does: the thief"));
}

#[test]
fn the_service_in_its_named_container_is_accepted_as_itself() {
    let Some(test_box) = test_box("gate-container") else { return };
    for kind in [Kind::DockerSystemd, Kind::Podman] {
        let engine = Engine::start(&test_box, kind);
        let plant = ["--as", "python3 -u /app/aidb.py", "--listen", "8091"];
        engine.contain("local-aidb", &["--network", "host"], &plant);
        let (blocked, said) = gate(&test_box, &["aidb"]);
        assert_eq!(blocked, 1, "{said}");
        assert!(said.contains("spare: live container"), "{said}");
        let (ours, said) = gate(&test_box, &["aidb", "--allow-ours"]);
        assert_eq!(ours, 0, "{said}");
        engine.must(&["rm", "--force", "local-aidb"]);
        assert_eq!(code(&test_box, &["aidb", "--timeout", "10s"]), 0);
        engine.contain("another", &["--network", "host"], &plant);
        let (taken, said) = gate(&test_box, &["aidb", "--allow-ours"]);
        assert_eq!(taken, 1, "{said}");
        engine.must(&["rm", "--force", "another"]);
    }
}

#[test]
fn a_stack_boots_after_its_leftover_is_cleared_and_never_over_a_healthy_postgres() {
    let Some(test_box) = test_box("gate-boot") else { return };
    test_box.unit(
        "postgresql.service",
        "[Service]\nExecStart=/build/examples/plant --as 'postgres -D /data' --ready /run/planted/db --listen 5432\n",
    );
    test_box.sh("systemctl start postgresql");
    let postgres = test_box.planted("db");
    // A login that left a server behind, and is over.
    let mut login = test_box.login("alice", support::Terminal::No);
    login.types(
        "nohup /build/examples/plant --as 'python3 /app/left.py' --ready /run/planted/left --listen 8093 >/dev/null 2>&1 &",
    );
    let left = test_box.planted("left");
    login.leaves();
    test_box.wait_for_logout(left);
    test_box.wait_for_age(left, Duration::from_millis(1100));
    let (whole, said) = gate(&test_box, &["--reap"]);
    assert_eq!(whole, 1, "{said}");
    assert!(test_box.stat(left).is_none(), "{said}");
    assert!(said.contains("ended by SIGTERM") && said.contains("postgresql.service"), "{said}");
    let (warned, said) = gate(&test_box, &["--reap", "--on-blocked", "warn", "--", "echo", "up"]);
    assert_eq!(warned, 0, "{said}");
    assert!(said.starts_with("up\n") && said.contains("warning, goes on"), "{said}");
    assert!(test_box.stat(postgres).is_some());
}
