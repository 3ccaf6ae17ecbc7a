//! A model in a container that we started. Its engine runs it, not we: its end is heard of from the kernel and from the engine, with
//! which a question about it stays open. By that Podman's service stays, too, which ends when nobody has asked it anything
//! for a while (`--time` of podman-system-service(1)).

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{
        cards::Chosen,
        launch::{Created, Order, Prepared, Started},
        lifecycle::left,
        plan::Reach,
        trouble::{Left, Trouble},
    },
    Exit, Kept, extend, stay, tell_status,
};
use crate::{
    act::{container::End, interrupt::Interrupt},
    engine::{self, Deed, Engine, Until},
    ident::{ContainerId, EngineKind},
    observe::processes,
};

/// Creating, starting, and a look in between.
const LAUNCH_TIME: Duration = Duration::from_secs(180);
/// Of one question for its end; then it is asked again.
const WAIT_TIME: Duration = Duration::from_secs(60 * 60);
/// After an engine that did not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// An engine that is restarted has so long to come back before its container is given up.
const BACK_TIME: Duration = Duration::from_secs(20);
/// For the last that it wrote.
const LAST_WORDS_TIME: Duration = Duration::from_secs(2);
/// All that it has said: it has only begun.
const ALL_LINES: usize = usize::MAX;

/// Where what it writes goes, line by line. Breaks where nobody reads it any more.
pub(super) type Write = fn(&str) -> ControlFlow<()>;

/// What it writes is in the journal without us, under its container's name: Podman's own way where there is one (`log_driver` of
/// containers.conf(5)). Its API that follows the journal for somebody does not end with it, and keeps a shutdown waiting [4.3].
fn is_in_the_journal(kind: EngineKind) -> bool {
    kind == EngineKind::Podman && journal_has_our_output()
}

/// `JOURNAL_STREAM` names a device and an inode (systemd.exec(5)); whoever inherited the variable has another output.
fn journal_has_our_output() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stdout()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|s| s == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Lays the plan, with GPUs that were found already or are looked for now, and clears away what is left of an earlier run.
pub fn prepare<'a>(
    order: Order<'a>,
    chosen: Option<Chosen>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Prepared<'a>, Trouble> {
    let prepared = match chosen {
        Some(chosen) => Prepared::with(order, chosen)?,
        None => Prepared::new(order)?,
    };
    let old = prepared.predecessors()?;
    if !old.is_empty() {
        extend(LAUNCH_TIME);
    }
    prepared.replace(&old, interrupt, say)?;
    Ok(prepared)
}

/// Launches it and stays with it to its end.
pub fn keep_container(
    prepared: Prepared<'_>,
    write: Write,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Exit, Trouble> {
    if interrupt.count() > 0 {
        return Ok(Exit::Stopped);
    }
    extend(LAUNCH_TIME);
    tell_status("launching");
    let plan = prepared.spec().watch;
    let created = prepared.create()?;
    for warning in &created.warnings {
        say(warning);
    }
    if let Some(trouble) = created.lost_limit() {
        return Ok(give_up(&created, Exit::Unhealthy(trouble), interrupt, say));
    }
    let started = match created.start() {
        Ok(started) => started,
        Err(undone) => {
            let (created, trouble) = *undone;
            let exit = created.left().map_or(Exit::Unhealthy(trouble), Exit::Server);
            for line in created.last_lines() {
                let _: ControlFlow<()> = write(&line);
            }
            return Ok(give_up(&created, exit, interrupt, say));
        }
    };
    let contained = Contained::new(started, write);
    stay(contained, plan, interrupt, say).map_err(|error| Trouble::new(error.to_string()))
}

fn give_up(
    created: &Created<'_>,
    exit: Exit,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Exit {
    tell_status(&exit.reason());
    let exit = match end(created, interrupt, say) {
        Ok(()) => exit,
        Err(trouble) => Exit::NotDown(exit.reason(), trouble),
    };
    tell_status(&exit.reason());
    exit
}

struct Contained<'a> {
    started: Started<'a>,
    /// Closed by the thread that asks its engine, once it has ended. None where none could be had.
    over: Option<OwnedFd>,
    /// Closed by the thread that reads what it writes, at the end of that. None where nobody need read it.
    written: Option<mpsc::Receiver<()>>,
}

impl<'a> Contained<'a> {
    fn new(started: Started<'a>, write: Write) -> Self {
        let (engine, id) = started.created().place();
        let pidfd = || started.pidfd().and_then(|fd| fd.try_clone_to_owned().ok());
        let over = wait_beside(engine.clone(), id.clone(), pidfd());
        let is_read = !is_in_the_journal(started.created().kind());
        let written = is_read.then(|| read_beside(engine, id, pidfd(), write));
        Self { started, over: over.ok(), written }
    }

    fn has_ended(&self) -> bool {
        let can_be_read =
            |fd: BorrowedFd<'_>| fd.try_clone_to_owned().is_ok_and(|fd| processes::has_ended(&fd));
        self.ends().into_iter().any(can_be_read)
    }
}

/// Asks its engine for its end, again and again, on a thread of its own; what is closed then.
fn wait_beside(engine: Engine, id: ContainerId, pidfd: Option<OwnedFd>) -> io::Result<OwnedFd> {
    let (reader, writer) = io::pipe()?;
    let wait = move || {
        loop {
            match engine::wait(&engine, &id, Until::NotRunning, WAIT_TIME) {
                Deed::Done | Deed::AlreadySo | Deed::Gone => break,
                Deed::Conflict(_) | Deed::Failed(..) | Deed::NoAnswer(_) => {}
            }
            // A question more would start Docker again that was just stopped: its socket starts it.
            if has_ended_within(pidfd.as_ref(), PAUSE) {
                break;
            }
        }
        drop(writer);
    };
    thread::Builder::new().name("portreeve-wait".to_owned()).spawn(wait)?;
    Ok(reader.into())
}

/// Reads what it writes, on a thread of its own; what is closed at the end of that.
fn read_beside(
    engine: Engine,
    id: ContainerId,
    pidfd: Option<OwnedFd>,
    write: Write,
) -> mpsc::Receiver<()> {
    let (send, receive) = mpsc::channel();
    let read = move || {
        let mut lines = ALL_LINES;
        let mut is_read = true;
        loop {
            let mut each = |line: &str| {
                is_read = write(line).is_continue();
                if is_read { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            let done = engine::follow_logs(&engine, &id, lines, PAUSE * 5, &mut each, &|| false);
            // An engine that is stopped ends its answer in order, too.
            if !is_read || (done.is_ok() && pidfd.is_none()) {
                break;
            }
            if has_ended_within(pidfd.as_ref(), PAUSE) {
                break;
            }
            lines = 0;
        }
        drop(send);
    };
    // Without a thread what it writes is lost with it, and nothing else.
    drop(thread::Builder::new().name("portreeve-logs".to_owned()).spawn(read));
    receive
}

/// Waits this long where its process is not to be seen.
fn has_ended_within(pidfd: Option<&OwnedFd>, time: Duration) -> bool {
    if let Some(pidfd) = pidfd {
        return processes::ends_within(pidfd, time);
    }
    thread::sleep(time);
    false
}

impl Kept for Contained<'_> {
    fn reach(&self) -> Reach {
        self.started.created().reach()
    }

    fn ends(&self) -> Vec<BorrowedFd<'_>> {
        let over = self.over.as_ref().map(AsFd::as_fd);
        self.started.pidfd().into_iter().chain(over).collect()
    }

    fn left(&mut self) -> io::Result<Option<Left>> {
        if !self.has_ended() {
            return Ok(None);
        }
        let unknown = || Left { code: None, how: "how is not known".to_owned() };
        Ok(Some(self.started.created().left().unwrap_or_else(unknown)))
    }

    fn look(&mut self) -> io::Result<Option<Left>> {
        let created = self.started.created();
        Ok(if created.has_exited() { created.left() } else { None })
    }

    fn is_itself(
        &self,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        self.started.is_itself(interrupt, say)
    }

    fn end(&mut self, interrupt: &mut Interrupt, say: &mut dyn FnMut(&str)) -> Result<(), Trouble> {
        let ended = end(self.started.created(), interrupt, say);
        // Disconnected at the end.
        if let Some(written) = &self.written {
            let _ = written.recv_timeout(LAST_WORDS_TIME);
        }
        ended
    }
}

/// Ends and removes it by the ladder. An engine that does not answer has a while to come back.
fn end(
    created: &Created<'_>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<(), Trouble> {
    let began = Instant::now();
    loop {
        let trouble = match created.end(interrupt, say) {
            Ok(stopped) if stopped.is_removed => {
                if stopped.end == End::Forced {
                    say("it did not leave within its grace period, and had to be killed");
                }
                return Ok(());
            }
            Ok(stopped) => left(&format!("container '{}'", created.name()), &stopped),
            Err(trouble) => trouble,
        };
        say(&trouble.why);
        if began.elapsed() > BACK_TIME || interrupt.count() > 1 || interrupt.wait(PAUSE) {
            return Err(trouble);
        }
    }
}
