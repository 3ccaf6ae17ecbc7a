//! Three hundred orphans that ignore SIGTERM: one escalation for all of them, seen in the kernel calls of a real `reap`. How long it
//! takes is measured by benches/reap.sh, since a test that times is right only on a quiet machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{fs, process::Stdio};

use support::{DEADLINE, Report, TestBox, skip, wait_until};

const ORPHANS: usize = 300;
const SIGNAL: &str = "pidfd_send_signal(";
const CONFIG: &str = "defaults: { min_age: 0s, grace: 1s, respawn_watch: 0s }\n";

/// Workers of inference servers that have none (row 9); each is gone from its parent before it is in place.
const PLANT: &str = "
for n in $(seq 300); do
    /build/examples/plant --daemonise --title VLLM::EngineCore_$n --ignore-term --ready /run/planted/worker-$n
done
until [ \"$(ls /run/planted | grep -c '^worker-')\" = 300 ]; do sleep 0.02; done
";

/// What `reap` called, in order: the lines of strace from the first signal to the last.
fn signals_and_waits(trace: &str) -> Vec<&str> {
    let calls: Vec<&str> = trace.lines().collect();
    let first = calls.iter().position(|line| line.contains(SIGNAL)).expect("a signal");
    let last = calls.iter().rposition(|line| line.contains(SIGNAL)).expect("a signal");
    calls[first..=last].to_vec()
}

/// A poll that may wait; a timeout of zero only asks.
fn waits(call: &str) -> bool {
    call.contains("poll(") && !call.contains("{tv_sec=0, tv_nsec=0}")
}

#[test]
fn three_hundred_orphans_that_ignore_sigterm_are_ended_by_one_escalation() {
    let test_box = match TestBox::boot("mass-reap") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    test_box.write("/etc/mass.yaml", CONFIG);
    test_box.sh(PLANT);
    let orphans = |report: &Report| {
        let processes = report.json["processes"].as_array().cloned().unwrap_or_default();
        processes.iter().filter(|process| process["verdict"] == "orphan").count()
    };
    wait_until(DEADLINE, "all are orphans", || {
        orphans(&test_box.portreeve(&["scan", "--config", "/etc/mass.yaml"])) == ORPHANS
    });

    // Each signal takes a millisecond longer, so that the first is sent long before the last.
    let strace = "strace -f -qq -e trace=pidfd_send_signal,poll,ppoll \
        -e inject=pidfd_send_signal:delay_exit=1000 -o /run/trace";
    let strace: Vec<&str> = strace.split_whitespace().collect();
    let reaped = test_box
        .command(&strace)
        .args(["/build/portreeve", "reap", "--config", "/etc/mass.yaml", "--format", "json"])
        .stdin(Stdio::null())
        .output()
        .expect("strace runs");
    let report = Report::read(&reaped);
    let outcomes = report.json["processes"].as_array().expect("processes");
    let killed = outcomes.iter().filter(|process| process["outcome"]["result"] == "killed").count();
    assert_eq!(killed, ORPHANS, "{:#}", report.json);
    assert_eq!(reaped.status.code(), Some(0));

    let trace = fs::read_to_string(test_box.inside("/run/trace")).unwrap();
    let calls = signals_and_waits(&trace);
    let places = |signal: &str| -> Vec<usize> {
        (0..calls.len()).filter(|&at| calls[at].contains(signal)).collect()
    };
    let (terms, kills) = (places(", SIGTERM,"), places(", SIGKILL,"));
    assert_eq!((terms.len(), kills.len()), (ORPHANS, ORPHANS), "one of each for everybody");
    let (first_kill, last_kill) = (kills[0], kills[ORPHANS - 1]);
    assert!(terms[ORPHANS - 1] < first_kill, "nobody is killed before all were asked");
    let between =
        |from: usize, to: usize| calls[from..to].iter().filter(|call| waits(call)).count();
    assert_eq!(
        between(terms[0], terms[ORPHANS - 1]),
        0,
        "nobody's end is awaited while others are asked"
    );
    assert!(between(terms[ORPHANS - 1], first_kill) > 0, "the grace period is waited for");
    assert_eq!(
        between(first_kill, last_kill),
        0,
        "nobody's end is awaited while others are killed"
    );
}
