//! The stop ladder: a container is stopped by its engine, less politely from rung to rung. Each rung has a deadline, and none
//! that fails keeps the next from being tried: a slow or broken engine fails no run.

use std::{
    collections::BTreeMap,
    fmt,
    os::fd::OwnedFd,
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Signal, pidfd_send_signal};

use crate::{
    config::settings::Ladder,
    engine::{self, Deed, Engine, Question, Until, Which},
    host::Host,
    ident::{ContainerId, ProcessKey},
    judge::verdict::{ContainerRef, Finding, Row, Verdict},
    observe::processes,
    snapshot::{Container, ContainerState, Seen, Snapshot},
};

use super::{Outcome, interrupt::Interrupt, signal};

/// Which engines may be ordered, and how long each order may take.
#[derive(Debug, Clone)]
pub struct Engines {
    /// Which.
    pub which: Which,
    /// For the question before the first order.
    pub timeout: Duration,
    /// For the orders.
    pub ladder: Ladder,
}

/// A container to be stopped.
#[derive(Debug, Clone)]
pub struct Target {
    /// Which.
    pub container: ContainerRef,
    /// Who is asked to stop it.
    pub engine: Engine,
    /// Its main process at the verdict: another run since then was not meant. None = it does not run.
    pub main: Option<ProcessKey>,
    /// Between the polite signal and the forced one.
    pub grace: Duration,
    /// Whether it is removed in the end: only what we made.
    pub is_ours: bool,
}

/// What became of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// How far the ladder had to be climbed.
    pub end: End,
    /// What its health check said before, where it has one.
    pub health: Option<String>,
    /// What each rung came to, in words.
    pub rungs: Vec<String>,
    /// Its engine has removed it, as only what is ours is.
    pub is_removed: bool,
    /// From the first order to the end.
    pub took: Duration,
}

/// How far the ladder had to be climbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was gone, or not running, before any order.
    AlreadyStopped,
    /// It left within its grace period.
    Graceful,
    /// It did not, and was killed by its engine.
    Forced,
    /// Its engine did not get it down: its main process still lives.
    StillRuns,
    /// It is not the run that was judged, or nobody told; nothing was ordered. Says why.
    LeftAlone(String),
    /// We were told twice to stop, or the time was up: its end was not seen.
    Interrupted,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rungs.join("; "))?;
        match &self.health {
            Some(health) => write!(f, "; its health was '{health}' before"),
            None => Ok(()),
        }
    }
}

impl Target {
    /// The container of a verdict, as this look saw it; none where its main process or its engine is not there any more.
    pub fn new(
        snapshot: &Snapshot,
        engines: &[Engine],
        container: &ContainerRef,
        grace: Duration,
    ) -> Option<Self> {
        // By its engine too: a user's may claim any id.
        let is_it = |c: &&Container| c.engine == container.engine && c.id == container.id;
        let known = snapshot.containers.known().find(is_it)?;
        let main = Some(snapshot.processes.get(&known.main_pid?)?.key);
        // At Docker's place may stand a Podman.
        let is_exactly = |engine: &&Engine| engine.name == container.engine;
        let is_its_owners = |engine: &&Engine| engine.name.owner == container.engine.owner;
        let mut places = engines.iter();
        let engine =
            places.clone().find(is_exactly).or_else(|| places.find(is_its_owners))?.clone();
        Some(Self { container: container.clone(), engine, main, grace, is_ours: false })
    }
}

/// Ends the convicted of unsupervised containers: each container by its engine; where that does not get it down, its
/// convicted processes by signals. A forwarder is never signalled: it is its container that is stopped.
pub fn end(
    host: &Host,
    snapshot: &Snapshot,
    verdicts: Vec<Verdict>,
    engines: &Engines,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> (Vec<super::Deed>, Vec<Stopped>) {
    let mut of_container: BTreeMap<ContainerRef, Vec<(Verdict, Seen<OwnedFd>)>> = BTreeMap::new();
    for verdict in verdicts {
        if let Finding::Unsupervised(container) = &verdict.finding {
            // Captured before the first order: afterwards its pid may be another's.
            let pidfd = open(verdict.key());
            of_container.entry(container.clone()).or_default().push((verdict, pidfd));
        }
    }
    let owners = of_container.keys().map(|container| container.engine.owner).collect();
    let places = engine::places(host, &engines.which, &owners);
    let (mut targets, mut members, mut deeds) = (Vec::new(), Vec::new(), Vec::new());
    for (container, processes) in of_container {
        let grace = processes.iter().map(|(v, _)| v.grace).max().unwrap_or_default();
        match Target::new(snapshot, &places, &container, grace) {
            Some(target) => {
                targets.push(target);
                members.push(processes);
            }
            None => deeds.extend(processes.into_iter().map(|(verdict, _)| {
                let why = format!("{container} has no main process any more");
                super::Deed { verdict, outcome: Outcome::NotStopped(why) }
            })),
        }
    }
    let stopped = stop(&targets, engines.ladder, engines.timeout, None, interrupt, say);
    for (stopped, processes) in stopped.iter().zip(members) {
        deeds.extend(outcomes(host, snapshot, stopped, processes, interrupt, say));
    }
    (deeds, stopped)
}

/// What became of a container's convicted processes.
fn outcomes(
    host: &Host,
    snapshot: &Snapshot,
    stopped: &Stopped,
    processes: Vec<(Verdict, Seen<OwnedFd>)>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Vec<super::Deed> {
    let deed = |verdict, outcome| super::Deed { verdict, outcome };
    // Whose end cannot be watched is not called ended.
    let is_gone = |pidfd: &Seen<OwnedFd>| match pidfd {
        Seen::Known(pidfd) => processes::ends_within(pidfd, EXIT_TIME),
        Seen::Gone => true,
        Seen::Denied | Seen::Unreadable(_) => false,
    };
    let mut deeds = Vec::new();
    let mut left = Vec::new();
    for (mut verdict, pidfd) in processes {
        let outcome = match &stopped.end {
            End::Interrupted => Outcome::Interrupted,
            End::LeftAlone(why) => Outcome::NotStopped(why.clone()),
            _ if is_gone(&pidfd) => Outcome::Stopped(stopped.clone()),
            // Its own engine has given up on it, and whoever ran this wants it ended.
            End::StillRuns if verdict.row != FORWARDER => {
                verdict.grace = Duration::ZERO;
                verdict.evidence.push(format!("its engine did not end it: {stopped}"));
                left.push(verdict);
                continue;
            }
            End::StillRuns => Outcome::NotStopped(stopped.to_string()),
            End::AlreadyStopped | End::Graceful | End::Forced => {
                Outcome::NotStopped("its container is down, and it is still here".to_owned())
            }
        };
        deeds.push(deed(verdict, outcome));
    }
    if !left.is_empty() {
        deeds.extend(signal::end(host, snapshot, left, interrupt, say));
    }
    deeds
}

/// The row of forwarders.
const FORWARDER: Row = Row(7);

/// Stops these containers side by side, and waits until then at most. Returns what became of each, in their order.
pub fn stop(
    targets: &[Target],
    limits: Ladder,
    timeout: Duration,
    until: Option<Instant>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Vec<Stopped> {
    const PROGRESS: Duration = Duration::from_millis(500);
    let (send, receive) = mpsc::channel();
    for (index, target) in targets.iter().cloned().enumerate() {
        let send = send.clone();
        let climb = move || drop(send.send((index, climb(&target, limits, timeout))));
        // Where no thread can be had, the others wait for this one.
        let name = "portreeve-stop".to_owned();
        let builder = std::thread::Builder::new().name(name);
        if builder.spawn(climb.clone()).is_err() {
            climb();
        }
    }
    drop(send);
    let unseen = || Stopped {
        end: End::Interrupted,
        health: None,
        rungs: Vec::new(),
        is_removed: false,
        took: Duration::ZERO,
    };
    let mut all: Vec<Stopped> = targets.iter().map(|_| unseen()).collect();
    let mut left = targets.len();
    let is_late = || until.is_some_and(|until| Instant::now() >= until);
    while left > 0 && interrupt.count() < 2 && !is_late() {
        say(&format!("waiting for {left} of {} containers to stop", targets.len()));
        match receive.recv_timeout(PROGRESS) {
            Ok((index, stopped)) => {
                left -= 1;
                if let Some(place) = all.get_mut(index) {
                    *place = stopped;
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    all
}

/// One container, rung by rung.
fn climb(target: &Target, limits: Ladder, timeout: Duration) -> Stopped {
    let began = Instant::now();
    let Target { engine, container: ContainerRef { id, .. }, grace, .. } = target;
    let mut stopped = Stopped {
        end: End::StillRuns,
        health: None,
        rungs: Vec::new(),
        is_removed: false,
        took: Duration::ZERO,
    };
    let main = match look_again(target, timeout) {
        Ok((container, main)) => {
            stopped.health = container.health;
            main
        }
        Err(end) => {
            if target.is_ours && end == End::AlreadyStopped {
                stopped.is_removed = remove(engine, id, limits.remove_timeout, &mut stopped.rungs);
            }
            return Stopped { end, took: began.elapsed(), ..stopped };
        }
    };

    let ordered = Instant::now();
    let deed = engine::stop(engine, id, *grace, limits.stop_timeout);
    stopped.rungs.push(words("stop", &deed, ordered.elapsed()));
    // The engine kills after the grace period by itself and calls that done, too.
    let is_in_time = ordered.elapsed() < *grace || grace.is_zero();
    let is_done = matches!(deed, Deed::Done | Deed::AlreadySo | Deed::Gone);
    if processes::ends_within(&main, EXIT_TIME) {
        let is_graceful = is_done && is_in_time;
        stopped.end = if is_graceful { End::Graceful } else { End::Forced };
    } else if !is_done && is_in_time && ask_politely(&main, *grace, &mut stopped.rungs) {
        stopped.end = End::Graceful;
    } else {
        let ordered = Instant::now();
        let deed = engine::kill(engine, id, limits.kill_timeout);
        stopped.rungs.push(words("kill", &deed, ordered.elapsed()));
        if processes::ends_within(&main, EXIT_TIME) {
            stopped.end = End::Forced;
        }
    }
    if target.is_ours {
        stopped.is_removed = remove(engine, id, limits.remove_timeout, &mut stopped.rungs);
        if stopped.end == End::StillRuns && processes::ends_within(&main, EXIT_TIME) {
            stopped.end = End::Forced;
        }
    }
    stopped.took = began.elapsed();
    stopped
}

/// Where an engine refused the stop at once (Podman, of a paused container), nobody has asked the container to leave yet: we
/// do, and it has its whole grace period. Whether it left.
fn ask_politely(main: &OwnedFd, grace: Duration, rungs: &mut Vec<String>) -> bool {
    let asked = Instant::now();
    let sent = pidfd_send_signal(main, Signal::TERM);
    let has_left = sent.is_ok() && processes::ends_within(main, grace);
    let what = match (sent, has_left) {
        (Err(error), _) => format!("refused: {error}"),
        (Ok(()), true) => "done".to_owned(),
        (Ok(()), false) => "it did not leave".to_owned(),
    };
    rungs.push(format!("SIGTERM: {what}, after {:.1} s", asked.elapsed().as_secs_f64()));
    has_left
}

/// How long a process that was killed may take to exit.
const EXIT_TIME: Duration = Duration::from_secs(1);
/// A removal that is under way, or that failed, is tried once more.
const REMOVALS: usize = 2;

/// By force; whether it is removed. That it is gone is success; a removal under way is waited for.
fn remove(engine: &Engine, id: &ContainerId, timeout: Duration, rungs: &mut Vec<String>) -> bool {
    for _ in 0..REMOVALS {
        let ordered = Instant::now();
        let deed = engine::remove(engine, id, true, timeout);
        rungs.push(words("remove", &deed, ordered.elapsed()));
        match deed {
            Deed::Done | Deed::Gone => return true,
            Deed::Conflict(_) => {
                let deed = engine::wait(engine, id, Until::Removed, timeout);
                rungs.push(words("wait for the removal", &deed, ordered.elapsed()));
                if matches!(deed, Deed::Done | Deed::Gone) {
                    return true;
                }
            }
            Deed::AlreadySo | Deed::Failed(..) | Deed::NoAnswer(_) => {}
        }
    }
    false
}

/// Right before the first order: the engine says that the run which was judged still runs, and the kernel that its main
/// process is the same. Its pidfd, and the container as it is now.
fn look_again(target: &Target, timeout: Duration) -> Result<(Container, OwnedFd), End> {
    let ContainerRef { id, name, .. } = &target.container;
    let question = Question::about(target.engine.clone(), [id.clone()]);
    let mut answers = engine::ask(&[question], timeout);
    let seen = answers.pop().and_then(|mut answer| answer.containers.remove(id));
    let container = match seen {
        Some(Seen::Known(container)) => container,
        Some(Seen::Gone) => return Err(End::AlreadyStopped),
        Some(Seen::Denied) => {
            return Err(End::LeftAlone(format!("{} let us not ask", target.engine.name)));
        }
        Some(Seen::Unreadable(why)) => return Err(End::LeftAlone(why)),
        None => return Err(End::LeftAlone("its engine did not answer".to_owned())),
    };
    // Whatever its engine calls it: "stopping" may still serve.
    let is_down = matches!(container.state, ContainerState::NotRunning(_));
    let key = match (container.main_pid, target.main) {
        (None, _) if is_down => return Err(End::AlreadyStopped),
        (Some(pid), Some(key)) if pid == key.pid => key,
        // Its restart policy brings it back again and again: that run is over, and its removal ends any.
        (Some(_) | None, _) if target.is_ours => return Err(End::AlreadyStopped),
        (Some(_) | None, _) => {
            return Err(End::LeftAlone(format!("{name} began another run meanwhile")));
        }
    };
    match open(key) {
        Seen::Known(main) => Ok((container, main)),
        Seen::Gone => Err(End::AlreadyStopped),
        Seen::Denied => Err(End::LeftAlone("its main process: permission denied".to_owned())),
        Seen::Unreadable(why) => Err(End::LeftAlone(format!("its main process: {why}"))),
    }
}

/// A descriptor of this very process.
fn open(key: ProcessKey) -> Seen<OwnedFd> {
    let pidfd = match processes::open_pidfd(key.pid) {
        Seen::Known(pidfd) => pidfd,
        unseen @ (Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => return unseen,
    };
    let is_same = match (processes::pidfd_inode(&pidfd), key.pidfd_inode) {
        (Some(now), Some(then)) => now == then,
        // Before Linux 6.9 its start time must do.
        (_, _) => processes::start_of(key.pid) == Some(key.start_ticks),
    };
    if is_same && !processes::has_ended(&pidfd) { Seen::Known(pidfd) } else { Seen::Gone }
}

fn words(rung: &str, deed: &Deed, took: Duration) -> String {
    let what = match deed {
        Deed::Done => "done".to_owned(),
        Deed::AlreadySo => "it did not run".to_owned(),
        Deed::Gone => "it was gone".to_owned(),
        Deed::Conflict(what) => format!("refused for now: {what}"),
        Deed::Failed(status, what) => format!("failed ({status}): {what}"),
        Deed::NoAnswer(why) => format!("no answer: {why}"),
    };
    format!("{rung}: {what}, after {:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests;
