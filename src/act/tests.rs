//! Real processes, ended for real.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Outcome, interrupt::Interrupt, signal};
use crate::{
    host::Host,
    ident::{Endpoint, Pid, Port, Proto},
    judge::verdict::{Finding, Verdict},
    observe::{self, Question, Reach, processes},
    snapshot::{Seen, Snapshot},
};

/// A child of ours that is gone when the test is.
struct Planted(Child);

impl Planted {
    fn pid(&self) -> Pid {
        Pid(self.0.id())
    }

    /// The signal that ended it.
    fn ended_by(&mut self) -> Option<i32> {
        self.0.wait().unwrap().signal()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A listener of the kernel's choice, and where it listens.
fn listener() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Port::new(listener.local_addr().unwrap().port()).unwrap();
    (listener, Endpoint { port, proto: Proto::Tcp, address: None, is_v6only: false })
}

/// Runs a shell script that says `ready` when it is in place and holds the listener as descriptor 7.
fn plant(script: &str, listener: Option<&TcpListener>) -> Planted {
    plant_as("sh", script, listener)
}

/// The same, with a word in the shell's command line behind the script.
fn plant_as(name: &str, script: &str, listener: Option<&TcpListener>) -> Planted {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "sh", "-c"]).stdout(Stdio::piped());
    match listener {
        Some(listener) => {
            let script = format!("exec 7<&0 0</dev/null; {script}");
            command.args([&script, name]).stdin(OwnedFd::from(listener.try_clone().unwrap()));
        }
        None => drop(command.args([script, name]).stdin(Stdio::null())),
    }
    let mut child = command.spawn().unwrap();
    let mut word = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
    assert_eq!(&word, b"ready\n");
    let planted = Planted(child);
    if script.ends_with("exec sleep 1000") {
        wait_until("it runs sleep", || name_of(planted.pid()).as_deref() == Some("sleep"));
    }
    planted
}

fn name_of(pid: Pid) -> Option<String> {
    processes::read_stat(&Host::live(), pid).known().map(|stat| stat.comm.clone())
}

const SERVER: &str = "echo ready; exec sleep 1000";
const STUBBORN: &str = "trap '' TERM; echo ready; exec sleep 1000";

fn look(endpoint: Endpoint) -> Snapshot {
    let question = Question {
        endpoints: vec![endpoint],
        nominate: None,
        declared_units: BTreeSet::new(),
        reach: Reach::Whole,
        pids: BTreeSet::new(),
        receipts: Vec::new(),
        gpus: None,
        engines: observe::Engines::none(),
        beyond: observe::Ask::No,
    };
    observe::observe(&Host::live(), &question)
}

/// The conviction of a process as it is now.
fn convict(pid: Pid, ports: &[Endpoint], grace: Duration) -> Verdict {
    let host = Host::live();
    let line = processes::read_command_lines(&host, &[pid], |_| true).remove(&pid).unwrap();
    let Seen::Known(process) = processes::read(&host, pid, line) else {
        panic!("pid {pid} lives");
    };
    let mut verdict = Verdict::sample(process, Finding::Suspect);
    verdict.ports = ports.to_vec();
    verdict.grace = grace;
    verdict
}

fn end(snapshot: &Snapshot, verdicts: Vec<Verdict>) -> Vec<Outcome> {
    let mut interrupt = Interrupt::install().unwrap();
    let deeds = signal::end(&Host::live(), snapshot, verdicts, &mut interrupt, &mut |_| {});
    deeds.into_iter().map(|deed| deed.outcome).collect()
}

/// Waits until it is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < end, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const GRACE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_server_ends_by_sigterm_long_before_its_grace_is_over_and_its_port_binds_again() {
    let (held, endpoint) = listener();
    let mut server = plant(SERVER, Some(&held));
    let address = held.local_addr().unwrap();
    drop(held);
    let snapshot = look(endpoint);
    let began = Instant::now();
    let outcomes = end(&snapshot, vec![convict(server.pid(), &[endpoint], GRACE)]);
    assert!(matches!(outcomes[..], [Outcome::Terminated(_)]), "{outcomes:?}");
    assert!(began.elapsed() < GRACE);
    assert_eq!(server.ended_by(), Some(libc::SIGTERM));
    TcpListener::bind(address).unwrap();
}

#[test]
fn a_server_that_ignores_sigterm_gets_its_grace_and_then_sigkill() {
    let (held, endpoint) = listener();
    let mut server = plant(STUBBORN, Some(&held));
    let outcomes = end(&look(endpoint), vec![convict(server.pid(), &[endpoint], SHORT)]);
    assert!(matches!(outcomes[..], [Outcome::Killed(after)] if after >= SHORT), "{outcomes:?}");
    assert_eq!(server.ended_by(), Some(libc::SIGKILL));
}

#[test]
fn a_stopped_process_is_woken_to_take_its_sigterm() {
    let (held, endpoint) = listener();
    let mut server = plant(SERVER, Some(&held));
    let host = Host::live();
    let raw = rustix::process::Pid::from_raw(server.pid().0.cast_signed()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::STOP).unwrap();
    wait_until("the server is stopped", || {
        processes::read_stat(&host, server.pid()).known().is_some_and(|stat| stat.state == 'T')
    });
    let outcomes = end(&look(endpoint), vec![convict(server.pid(), &[endpoint], GRACE)]);
    assert!(matches!(outcomes[..], [Outcome::Terminated(_)]), "{outcomes:?}");
    assert_eq!(server.ended_by(), Some(libc::SIGTERM));
}

#[test]
fn one_stubborn_process_costs_the_others_nothing() {
    let (held, endpoint) = listener();
    let mut servers: Vec<Planted> = (0..8).map(|_| plant(SERVER, Some(&held))).collect();
    servers.push(plant(STUBBORN, Some(&held)));
    let verdicts = servers.iter().map(|s| convict(s.pid(), &[endpoint], SHORT)).collect();
    let outcomes = end(&look(endpoint), verdicts);
    let (last, others) = outcomes.split_last().unwrap();
    assert!(matches!(last, Outcome::Killed(_)), "{last:?}");
    for outcome in others {
        assert!(matches!(outcome, Outcome::Terminated(after) if *after < SHORT), "{outcome:?}");
    }
}

#[test]
fn a_child_whose_parent_ends_at_sigterm_is_still_escalated() {
    let (held, endpoint) = listener();
    // The child ignores SIGTERM and has a session of its own; its parent goes at once.
    let script = "setsid sh -c \"trap '' TERM; exec sleep 1000\" & echo ready; wait";
    let parent = plant(script, Some(&held));
    let child = || {
        let path = format!("/proc/{0}/task/{0}/children", parent.pid());
        fs::read_to_string(path).ok()?.trim().parse().ok().map(Pid)
    };
    wait_until("the child sleeps", || {
        child().is_some_and(|pid| name_of(pid).as_deref() == Some("sleep"))
    });
    let child = child().unwrap();
    let verdicts = [parent.pid(), child].map(|pid| convict(pid, &[endpoint], SHORT)).to_vec();
    let outcomes = end(&look(endpoint), verdicts);
    assert!(matches!(outcomes[..], [Outcome::Terminated(_), Outcome::Killed(_)]), "{outcomes:?}");
}

#[test]
fn a_process_that_left_before_its_turn_has_vanished_and_the_next_one_still_ends() {
    let (held, endpoint) = listener();
    let mut early = plant(SERVER, Some(&held));
    let mut late = plant(SERVER, Some(&held));
    let snapshot = look(endpoint);
    let verdicts = [&early, &late].map(|s| convict(s.pid(), &[endpoint], GRACE)).to_vec();
    early.0.kill().unwrap();
    early.0.wait().unwrap();
    let outcomes = end(&snapshot, verdicts);
    assert!(matches!(outcomes[..], [Outcome::Vanished, Outcome::Terminated(_)]), "{outcomes:?}");
    assert_eq!(late.ended_by(), Some(libc::SIGTERM));
}

#[test]
fn a_zombie_that_nobody_has_waited_for_counts_as_gone() {
    let (held, endpoint) = listener();
    let mut server = plant(SERVER, Some(&held));
    let snapshot = look(endpoint);
    let verdict = convict(server.pid(), &[endpoint], GRACE);
    server.0.kill().unwrap();
    wait_until("the server is a zombie", || {
        processes::read_stat(&Host::live(), server.pid()).known().is_some_and(|s| s.state == 'Z')
    });
    assert_eq!(end(&snapshot, vec![verdict]), [Outcome::Vanished]);
}

#[test]
fn a_process_that_let_the_port_go_since_the_verdict_is_left_alone() {
    let (held, endpoint) = listener();
    let script = "trap 'exec 7<&-; echo gone' USR1; echo ready; while :; do sleep 0.02; done";
    let mut server = plant(script, Some(&held));
    let snapshot = look(endpoint);
    let verdict = convict(server.pid(), &[endpoint], GRACE);
    let raw = rustix::process::Pid::from_raw(server.pid().0.cast_signed()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::USR1).unwrap();
    let mut word = [0; 5];
    std::io::Read::read_exact(server.0.stdout.as_mut().unwrap(), &mut word).unwrap();
    let outcomes = end(&snapshot, vec![verdict]);
    assert_eq!(outcomes, [Outcome::Replaced("it let the port go".to_owned())]);
    assert!(server.lives());
}

#[test]
fn a_process_that_runs_another_program_since_the_verdict_is_left_alone() {
    let (held, endpoint) = listener();
    let script = "trap 'exec sleep 1000' USR1; echo ready; while :; do sleep 0.02; done";
    let mut server = plant(script, Some(&held));
    let snapshot = look(endpoint);
    let verdict = convict(server.pid(), &[endpoint], GRACE);
    let raw = rustix::process::Pid::from_raw(server.pid().0.cast_signed()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::USR1).unwrap();
    wait_until("it runs sleep", || name_of(server.pid()).as_deref() == Some("sleep"));
    let outcomes = end(&snapshot, vec![verdict]);
    assert_eq!(outcomes, [Outcome::Replaced("it runs another program now".to_owned())]);
    assert!(server.lives());
}

#[test]
fn a_newcomer_with_the_pid_of_the_convicted_is_left_alone() {
    let (held, endpoint) = listener();
    let newcomer = |without_inode: bool| {
        let mut server = plant(SERVER, Some(&held));
        let pid = server.pid();
        let snapshot = look(endpoint);
        let mut verdict = convict(pid, &[endpoint], GRACE);
        if without_inode {
            // As on kernels before 6.9: the start time alone tells them apart, once a tick has passed.
            verdict.process.key.pidfd_inode = None;
            let then = observe::clock(&Host::live()).now_ticks;
            wait_until("a tick has passed", || observe::clock(&Host::live()).now_ticks != then);
        }
        server.0.kill().unwrap();
        server.0.wait().unwrap();
        let newcomer = with_pid(pid, &held)?;
        Some((newcomer, end(&snapshot, vec![verdict])))
    };
    for without_inode in [false, true] {
        let Some((mut newcomer, outcomes)) = newcomer(without_inode) else {
            println!("skipped: a pid cannot be chosen here (/proc/sys/kernel/ns_last_pid)");
            return;
        };
        let expected = Outcome::Replaced("the pid is another process now".to_owned());
        assert_eq!(outcomes, [expected]);
        assert!(newcomer.lives());
    }
}

/// A process of this very pid, holding the listener too; none where the kernel does not let us choose.
fn with_pid(pid: Pid, held: &TcpListener) -> Option<Planted> {
    for _ in 0..200 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid.0 - 1).to_string()).ok()?;
        let newcomer = plant(SERVER, Some(held));
        if newcomer.pid() == pid {
            return Some(newcomer);
        }
    }
    panic!("pid {pid} was not to be had in 200 tries")
}

#[test]
fn a_process_that_moved_to_another_control_group_is_left_alone() {
    let Some(group) = control_group("moved") else {
        println!("skipped: no control group can be made here");
        return;
    };
    let (held, endpoint) = listener();
    let mut server = plant(SERVER, Some(&held));
    let snapshot = look(endpoint);
    let verdict = convict(server.pid(), &[endpoint], GRACE);
    fs::write(group.0.join("cgroup.procs"), server.pid().to_string()).unwrap();
    let outcomes = end(&snapshot, vec![verdict]);
    assert_eq!(outcomes, [Outcome::Replaced("it moved to another control group".to_owned())]);
    assert!(server.lives());
}

/// A control group of the test's own, removed with it.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let thawed = fs::write(self.0.join("freezer.state"), "THAWED");
        let _ = thawed;
        let end = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// In the unified hierarchy.
fn control_group(name: &str) -> Option<Group> {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find_map(|mount| {
        fs::metadata(format!("{mount}/cgroup.procs")).ok()?;
        let path = PathBuf::from(format!("{mount}/portreeve-{name}-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Group(path))
    })
}

#[test]
fn a_process_that_does_not_exit_is_reported_unkillable_and_holds_up_nobody() {
    let path = format!("/sys/fs/cgroup/freezer/portreeve-{}", std::process::id());
    if fs::create_dir(&path).is_err() {
        println!("skipped: no v1 freezer here, which keeps a process from dying");
        return;
    }
    let freezer = Group(PathBuf::from(path));
    let (held, endpoint) = listener();
    let (frozen, mut other) = (plant(SERVER, Some(&held)), plant(SERVER, Some(&held)));
    fs::write(freezer.0.join("cgroup.procs"), frozen.pid().to_string()).unwrap();
    fs::write(freezer.0.join("freezer.state"), "FROZEN").unwrap();
    wait_until("the process is frozen", || {
        fs::read_to_string(freezer.0.join("freezer.state")).is_ok_and(|s| s.trim() == "FROZEN")
    });
    let verdicts = [&frozen, &other].map(|s| convict(s.pid(), &[endpoint], SHORT)).to_vec();
    let outcomes = end(&look(endpoint), verdicts);
    drop(freezer);
    let [Outcome::Unkillable { state: 'D', wait_channel }, Outcome::Terminated(_)] = &outcomes[..]
    else {
        panic!("{outcomes:?}");
    };
    println!("it waited in {wait_channel:?}");
    assert_eq!(other.ended_by(), Some(libc::SIGTERM));
}

#[test]
fn neither_pid_1_nor_anything_we_were_started_from_is_ever_signalled() {
    let (_held, endpoint) = listener();
    let snapshot = look(endpoint);
    let parent = Pid(std::os::unix::process::parent_id());
    for pid in [Pid::INIT, Pid(std::process::id()), parent] {
        let outcomes = end(&snapshot, vec![convict(pid, &[], GRACE)]);
        assert!(matches!(outcomes[..], [Outcome::Refused(_)]), "{outcomes:?}");
    }
}

#[test]
fn pythons_resource_tracker_is_left_to_leave_by_itself() {
    let (held, endpoint) = listener();
    let script = "trap 'echo TERM >&2' TERM; echo ready; sleep 2 & wait";
    let line = "from multiprocessing.resource_tracker import main;main(5)";
    let mut tracker = plant_as(line, script, Some(&held));
    let outcomes = end(&look(endpoint), vec![convict(tracker.pid(), &[endpoint], GRACE)]);
    assert!(matches!(outcomes[..], [Outcome::Terminated(_)]), "{outcomes:?}");
    assert_eq!(tracker.0.wait().unwrap().code(), Some(0), "it left when its work was done");
}
