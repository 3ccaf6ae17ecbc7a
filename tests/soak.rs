//! Nothing grows: hundreds of looks in one process take what one takes. `benches/soak.sh` has the long form.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use support::{ran::Ran, skip, stage::Stage};

/// On a network with a listener, a socket that is only bound, and a free port.
fn soak(stage: &Stage, count: &str, leak: &[&str]) -> Ran {
    let program = stage.program("examples/soak");
    let script = "mount -t tmpfs none /run; ! [ -d /etc/portreeve ] || mount -t tmpfs none /etc/portreeve; \
                  ! [ -d /var/lib/portreeve ] || mount -t tmpfs none /var/lib/portreeve; exec \"$@\"";
    let before = ["unshare", "--mount", "sh", "-euc", script, "sh", "timeout", "100"];
    let looks = ["--", "scan", "--port", "7301", "--port", "7302/udp", "--port", "7303"];
    let words = [&before[..], &[program.to_str().unwrap(), count], leak, &looks].concat();
    Ran::of(&stage.command(&words).output().unwrap())
}

fn stage() -> Option<Stage> {
    Stage::set().map_err(|reason| skip(&reason)).ok()
}

#[test]
fn two_hundred_looks_in_one_process_leave_no_descriptor_thread_or_memory_behind() {
    let Some(stage) = stage() else { return };
    let _one = stage.plant(&["--as", "soaked", "--listen", "7301", "--bind", "udp:7302"]);
    soak(&stage, "200", &[]).ends_with(0).says("nothing has grown");
}

#[test]
fn a_descriptor_a_thread_and_memory_that_each_look_leaves_behind_are_noticed() {
    let Some(stage) = stage() else { return };
    for (leak, what) in
        [("descriptor", "descriptors"), ("thread", "threads"), ("memory", "the heap")]
    {
        let ran = soak(&stage, "200", &["--leak", leak]).ends_with(1);
        assert!(ran.out.contains("grown: ") && ran.out.contains(what), "{leak}: {}", ran.out);
    }
}
