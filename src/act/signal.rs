//! Ending processes: SIGTERM, grace period, SIGKILL, each by pidfd and never by bare pid. All targets share
//! one wait, so that the slowest costs its own grace and nobody else's.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Resource, Rlimit, Signal, getrlimit, pidfd_send_signal, setrlimit},
};

use crate::{
    host::Host,
    ident::Pid,
    judge::verdict::Verdict,
    observe::{cgroup, processes},
    snapshot::{Seen, Snapshot},
};

use super::{
    Deed, Outcome,
    interrupt::{Interrupt, timespec},
};

/// How long a process may take to exit after SIGKILL before it is called unkillable. A big address space
/// takes a second or two to unmap.
const KILL_WAIT: Duration = Duration::from_secs(3);
/// How long an exit may take from the first loss that we see to its end.
const EXIT_TIME: Duration = Duration::from_millis(200);
/// Between two progress lines.
const PROGRESS: Duration = Duration::from_millis(500);
/// Python's `multiprocessing` starts one; it ignores SIGTERM, leaves with the last worker, and cleans
/// /dev/shm on its way (Lib/multiprocessing/resource_tracker.py).
const TRACKER: &[u8] = b"multiprocessing.resource_tracker";

struct Target {
    verdict: Verdict,
    stage: Stage,
}

enum Stage {
    /// SIGTERM was sent; SIGKILL is due at the end of the grace period.
    Terminating {
        pidfd: OwnedFd,
        began: Instant,
    },
    /// SIGKILL was sent.
    Killed {
        pidfd: OwnedFd,
        began: Instant,
        killed: Instant,
    },
    Done(Outcome),
}

/// Ends the convicted of one look. `snapshot` is that look: what it saw is compared once more, after a pidfd
/// was opened and before anything is sent.
pub fn end(
    host: &Host,
    snapshot: &Snapshot,
    verdicts: Vec<Verdict>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Vec<Deed> {
    allow_many_descriptors();
    // Every target is captured before the first signal: a parent's end must not hide its children.
    let captured: Vec<(Verdict, Result<OwnedFd, Outcome>)> = verdicts
        .into_iter()
        .map(|verdict| {
            let pidfd = capture(host, snapshot, &verdict);
            (verdict, pidfd)
        })
        .collect();
    let mut targets: Vec<Target> = Vec::new();
    for (verdict, pidfd) in captured {
        let stage = match pidfd {
            Err(outcome) => Stage::Done(outcome),
            Ok(_) if interrupt.count() > 0 => Stage::Done(Outcome::Interrupted),
            Ok(pidfd) => terminate(&verdict, pidfd),
        };
        targets.push(Target { verdict, stage });
    }
    // One grace period for all from here on, so that equal ones are over in the same moment, and SIGKILL waits for nobody's end.
    let all_told = Instant::now();
    for target in &mut targets {
        if let Stage::Terminating { began, .. } = &mut target.stage {
            *began = all_told;
        }
    }
    wait(host, &mut targets, interrupt, say);
    targets
        .into_iter()
        .map(|target| {
            let outcome = match target.stage {
                Stage::Done(outcome) => outcome,
                Stage::Terminating { .. } | Stage::Killed { .. } => Outcome::Interrupted,
            };
            Deed { verdict: target.verdict, outcome }
        })
        .collect()
}

/// A descriptor or some per target; the soft limit of 1,024 is a default, not a wish (getrlimit(2)).
pub fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Opens a pidfd and checks that all that convicted the process is still true of it.
fn capture(host: &Host, snapshot: &Snapshot, verdict: &Verdict) -> Result<OwnedFd, Outcome> {
    let seen = &verdict.process;
    let pid = seen.key.pid;
    if let Some(why) = is_off_limits(host, pid) {
        return Err(Outcome::Refused(why));
    }
    let pidfd = match processes::open_pidfd(pid) {
        Seen::Known(pidfd) => pidfd,
        Seen::Gone => return Err(Outcome::Vanished),
        Seen::Denied => return Err(Outcome::Refused("permission denied".to_owned())),
        Seen::Unreadable(why) => return Err(Outcome::Refused(format!("no pidfd: {why}"))),
    };
    // A process on its way out loses arguments, descriptors and control group before its end is told.
    let changed = |what: &str| {
        if processes::ends_within(&pidfd, EXIT_TIME) {
            Err(Outcome::Vanished)
        } else {
            Err(Outcome::Replaced(what.to_owned()))
        }
    };
    // A pidfd speaks of our own pid namespace, /proc of the one that it was mounted in.
    if processes::pid_of_pidfd(host, &pidfd) != Some(pid) && !processes::has_ended(&pidfd) {
        let why = "/proc numbers processes otherwise than the kernel does for us";
        return Err(Outcome::Refused(why.to_owned()));
    }
    match (processes::pidfd_inode(&pidfd), seen.key.pidfd_inode) {
        (Some(now), Some(then)) if now != then => return changed("the pid is another process now"),
        (_, _) => {}
    }
    match processes::read_stat(host, pid) {
        Seen::Known(stat) if stat.starttime == seen.key.start_ticks => {}
        Seen::Known(_) => return changed("the pid is another process now"),
        Seen::Gone => return Err(Outcome::Vanished),
        Seen::Denied | Seen::Unreadable(_) => {
            return Err(Outcome::Refused("its start time could not be read again".to_owned()));
        }
    }
    let group = host.read_text(&format!("proc/{pid}/cgroup")).parse(|text| cgroup::parse(&text));
    if group != seen.cgroup {
        return changed("it moved to another control group");
    }
    let again = processes::read_command_lines(host, &[pid], |_| true).remove(&pid);
    if again.as_ref() != Some(&seen.command_line) {
        return changed("it runs another program now");
    }
    if !verdict.ports.is_empty() && !still_holds(host, snapshot, pid) {
        return changed("it let the port go");
    }
    // Alive after the last read: all that was read was about this process.
    if processes::has_ended(&pidfd) { Err(Outcome::Vanished) } else { Ok(pidfd) }
}

/// PID 1, ourselves and our ancestors, whatever the verdict says: asked of the kernel once more.
fn is_off_limits(host: &Host, pid: Pid) -> Option<String> {
    if pid == Pid::INIT || pid == Pid::OUTSIDE {
        return Some("it is PID 1".to_owned());
    }
    match crate::observe::ourselves(host) {
        Some(chain) if !chain.contains(&pid) => None,
        Some(_) => Some("portreeve was started from it".to_owned()),
        None => Some("what portreeve was started from could not be read".to_owned()),
    }
}

/// One of the descriptors by which it held a guarded port still leads to that socket. A hold without a link
/// (io_uring) cannot be looked at again.
fn still_holds(host: &Host, snapshot: &Snapshot, pid: Pid) -> bool {
    let holdings = snapshot.sockets.known().map(|s| s.holdings.as_slice()).unwrap_or_default();
    holdings.iter().filter(|h| h.pid == pid).any(|holding| {
        holding.link.as_ref().is_none_or(|link| {
            let target = std::fs::read_link(host.path(format!("proc/{link}")));
            target.is_ok_and(|t| t.as_os_str() == format!("socket:[{}]", holding.inode).as_str())
        })
    })
}

fn terminate(verdict: &Verdict, pidfd: OwnedFd) -> Stage {
    let began = Instant::now();
    let line = verdict.process.command_line.known().map(|l| l.text.as_slice()).unwrap_or_default();
    let is_tracker = line.windows(TRACKER.len()).any(|window| window == TRACKER);
    if is_tracker {
        return Stage::Terminating { pidfd, began };
    }
    match pidfd_send_signal(&pidfd, Signal::TERM) {
        Ok(()) => {
            // A stopped process takes its SIGTERM only when it goes on.
            let _ = pidfd_send_signal(&pidfd, Signal::CONT);
            Stage::Terminating { pidfd, began }
        }
        Err(Errno::SRCH) => Stage::Done(Outcome::Vanished),
        Err(error) => Stage::Done(Outcome::Refused(error.to_string())),
    }
}

/// Waits for the exits, sends SIGKILL where a grace period is over, until all are done or we are told twice
/// to stop.
fn wait(host: &Host, targets: &mut [Target], interrupt: &mut Interrupt, say: &mut dyn FnMut(&str)) {
    loop {
        let now = Instant::now();
        for target in targets.iter_mut() {
            advance(host, target, now);
        }
        let due = targets.iter().filter_map(deadline).min();
        let Some(due) = due else { return };
        if interrupt.count() > 1 {
            return;
        }
        say(&progress(targets, now));
        let time = due.saturating_duration_since(now).min(PROGRESS);
        let mut fds = vec![PollFd::from_borrowed_fd(interrupt.as_fd(), PollFlags::IN)];
        fds.extend(targets.iter().filter_map(|t| match &t.stage {
            Stage::Terminating { pidfd, .. } | Stage::Killed { pidfd, .. } => {
                Some(PollFd::new(pidfd, PollFlags::IN))
            }
            Stage::Done(_) => None,
        }));
        // EINTR and the like only make the next round come sooner.
        let _ = poll(&mut fds, Some(&timespec(time)));
    }
}

fn deadline(target: &Target) -> Option<Instant> {
    match &target.stage {
        Stage::Terminating { began, .. } => Some(*began + target.verdict.grace),
        Stage::Killed { killed, .. } => Some(*killed + KILL_WAIT),
        Stage::Done(_) => None,
    }
}

/// The next stage of one target, if its time or its end has come.
fn advance(host: &Host, target: &mut Target, now: Instant) {
    let is_due = deadline(target).is_some_and(|due| due <= now);
    let stage = std::mem::replace(&mut target.stage, Stage::Done(Outcome::Vanished));
    target.stage = match stage {
        Stage::Terminating { pidfd, began } if processes::has_ended(&pidfd) => {
            Stage::Done(Outcome::Terminated(began.elapsed()))
        }
        Stage::Terminating { pidfd, began } if is_due => {
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) => Stage::Killed { pidfd, began, killed: Instant::now() },
                Err(Errno::SRCH) => Stage::Done(Outcome::Terminated(began.elapsed())),
                Err(error) => Stage::Done(Outcome::Refused(error.to_string())),
            }
        }
        Stage::Killed { pidfd, began, .. } if processes::has_ended(&pidfd) => {
            Stage::Done(Outcome::Killed(began.elapsed()))
        }
        Stage::Killed { .. } if is_due => {
            Stage::Done(unkillable(host, target.verdict.process.key.pid))
        }
        stage @ (Stage::Terminating { .. } | Stage::Killed { .. } | Stage::Done(_)) => stage,
    };
}

/// What the kernel says of a process that does not exit: state and wait channel (proc_pid_wchan(5)).
fn unkillable(host: &Host, pid: Pid) -> Outcome {
    let state = processes::read_stat(host, pid).known().map_or('?', |stat| stat.state);
    let channel = host.read_text(&format!("proc/{pid}/wchan"));
    let channel = channel.known().filter(|c| !c.is_empty() && *c != "0").cloned();
    Outcome::Unkillable { state, wait_channel: channel }
}

fn progress(targets: &[Target], now: Instant) -> String {
    let waiting = targets.iter().filter(|t| deadline(t).is_some()).count();
    let killed = targets.iter().filter(|t| matches!(t.stage, Stage::Killed { .. })).count();
    let next_kill = targets
        .iter()
        .filter(|t| matches!(t.stage, Stage::Terminating { .. }))
        .filter_map(deadline)
        .min();
    let what = format!("waiting for {waiting} of {} processes to end", targets.len());
    match next_kill {
        Some(due) => {
            format!("{what}, SIGKILL in {} s", due.saturating_duration_since(now).as_secs() + 1)
        }
        None => format!("{what}, {killed} sent SIGKILL"),
    }
}
