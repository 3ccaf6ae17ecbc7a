//! SIGINT, SIGTERM and SIGKILL to portreeve itself, in the middle of its work: what was begun is finished or left whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    fs,
    process::{Child, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use support::{DEADLINE, Report, TestBox, skip, wait_until};

static BOX: LazyLock<Result<TestBox, String>> = LazyLock::new(|| TestBox::boot("interrupt"));

/// An orphan that takes note of each SIGTERM and stays, and a reap that has just begun on it.
struct Scene {
    test_box: &'static TestBox,
    name: &'static str,
    orphan: u32,
    reap: Child,
    reaper: u32,
}

impl Scene {
    fn plant(name: &'static str, grace: &str) -> Option<Self> {
        let test_box = BOX.as_ref().map_err(|reason| skip(reason)).ok()?;
        test_box.write(
            &format!("/run/worker-{name}.sh"),
            &format!(
                "trap 'echo noted >/run/planted/noted-{name}' TERM\n\
                 echo $$ >/run/planted/orphan-{name}\n\
                 while :; do sleep 0.05; done\n"
            ),
        );
        test_box.write(
            &format!("/etc/{name}.yaml"),
            &format!(
                "defaults: {{ min_age: 0s }}\n\
                 patterns: [{{ name: {name}, kind: worker, match: 'worker-{name}\\.sh' }}]\n"
            ),
        );
        test_box
            .sh(&format!("setsid --fork bash /run/worker-{name}.sh </dev/null >/dev/null 2>&1"));
        let orphan = test_box.planted(&format!("orphan-{name}"));
        wait_until(DEADLINE, "the orphan has lost its parent", || {
            test_box.stat(orphan).is_some_and(|stat| stat.parent == 1)
        });
        // What whoever runs the tests ignores (nohup(1)), it would ignore too.
        let reap = test_box
            .command(&["bash", "-c"])
            .arg(format!(
                "echo $$ >/run/planted/reaper-{name}; exec env --default-signal=HUP,INT,TERM \
                 /build/portreeve reap --grace {grace} --config /etc/{name}.yaml --format json"
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let reaper = test_box.planted(&format!("reaper-{name}"));
        let scene = Self { test_box, name, orphan, reap, reaper };
        wait_until(DEADLINE, "portreeve catches SIGTERM", || scene.catches_sigterm());
        Some(scene)
    }

    fn catches_sigterm(&self) -> bool {
        let status = self.test_box.inside(&format!("/proc/{}/status", self.reaper));
        let status = fs::read_to_string(status).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        status.contains("Name:\tportreeve") && caught & (1 << (15 - 1)) != 0
    }

    fn noted(&self) -> bool {
        self.test_box.inside(&format!("/run/planted/noted-{}", self.name)).exists()
    }

    fn wait_for_sigterm(&self) {
        wait_until(DEADLINE, "the orphan has got its SIGTERM", || self.noted());
    }

    fn signal(&self, name: &str) {
        self.test_box.sh(&format!("kill -{name} {}", self.reaper));
    }

    /// The report of the interrupted run.
    fn report(self) -> (Report, Duration) {
        let began = Instant::now();
        let output = self.reap.wait_with_output().unwrap();
        (Report::read(&output), began.elapsed())
    }
}

#[test]
fn one_sigterm_lets_what_was_begun_be_finished() {
    let Some(scene) = Scene::plant("finish", "2s") else { return };
    scene.wait_for_sigterm();
    scene.signal("TERM");
    let (test_box, orphan) = (scene.test_box, scene.orphan);
    let (report, _) = scene.report();
    let said = report.process(orphan);
    assert_eq!(said["outcome"]["result"], "killed", "{said:#}");
    assert_eq!(report.json["interrupted"], true);
    assert_eq!(report.code, 2, "it did not watch for what comes back");
    assert!(test_box.stat(orphan).is_none());
}

#[test]
fn a_second_sigterm_ends_the_waiting_and_the_report_says_what_remains() {
    let Some(scene) = Scene::plant("leave", "600s") else { return };
    scene.wait_for_sigterm();
    // A connection that drops asks us to stop, too.
    scene.signal("HUP");
    scene.signal("INT");
    let (test_box, orphan) = (scene.test_box, scene.orphan);
    let (report, time) = scene.report();
    let said = report.process(orphan);
    assert_eq!(said["outcome"]["result"], "interrupted", "{said:#}");
    assert_eq!(report.code, 1, "the orphan remains");
    assert!(time < Duration::from_secs(300), "it waited {time:?}");
    assert!(test_box.stat(orphan).is_some());
}

#[test]
fn a_sigint_before_the_second_look_ends_nobody() {
    let Some(scene) = Scene::plant("nobody", "2s") else { return };
    scene.signal("INT");
    let (test_box, orphan, noted) = (scene.test_box, scene.orphan, scene.noted());
    let (report, _) = scene.report();
    assert!(!noted, "the signal came in time");
    assert_eq!(report.process(orphan)["verdict"], "orphan");
    assert_eq!(report.process(orphan)["outcome"], serde_json::Value::Null);
    assert_eq!(report.json["interrupted"], true);
    assert_eq!(report.code, 1);
    assert!(test_box.stat(orphan).is_some());
    assert!(!test_box.inside("/run/planted/noted-nobody").exists());
}

#[test]
fn a_sigkill_leaves_the_orphan_running_and_the_next_reap_ends_it() {
    let Some(scene) = Scene::plant("killed", "600s") else { return };
    scene.wait_for_sigterm();
    scene.signal("KILL");
    let (test_box, orphan) = (scene.test_box, scene.orphan);
    let mut reap = scene.reap;
    assert!(!reap.wait().unwrap().success());
    let state = fs::read_to_string(test_box.inside(&format!("/proc/{orphan}/stat"))).unwrap();
    assert!(!state.contains(") T "), "nothing of ours keeps it stopped: {state}");
    let again = test_box.portreeve(&["reap", "--grace", "100ms", "--config", "/etc/killed.yaml"]);
    assert_eq!(again.process(orphan)["outcome"]["result"], "killed");
    assert_eq!(again.code, 0, "{:#}", again.json);
}
