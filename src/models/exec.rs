//! `model exec`: a model in the foreground, the main process of its unit. Launch, READY once it serves and is itself, STATUS while it
//! does; after so many failures the ladder and 70, which a service manager restarts; on SIGTERM the ladder and 0. Writes no
//! registry and needs no right but to run its server, or its engine's socket: what needs more stands in the unit's other commands.

mod container;
mod process;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

pub use container::{keep_container, prepare};
pub use process::{Foreground, keep};
use sd_notify::NotifyState;

use super::{
    health::{self, Health},
    plan::Reach,
    trouble::{Left, Trouble},
};
use crate::{
    act::interrupt::Interrupt,
    backend::{Readiness, spec::Watch},
};

/// EX_SOFTWARE of sysexits.h: it ran, and was no good.
pub const UNHEALTHY: u8 = 70;

/// Between two questions while it loads, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(1);
/// For one answer while it loads.
const HEALTH_TIME: Duration = Duration::from_secs(5);
/// How much longer than until its next look a start may take, each time that it says so.
const EXTENSION: Duration = Duration::from_secs(30);
/// How long one that is not asked must live to be called ready.
const UNASKED_TIME: Duration = Duration::from_secs(1);
/// Of a status. systemd reads 4096 bytes of a message (`NOTIFY_BUFFER_MAX` of its src/core/manager.c).
const MOST_CHARACTERS: usize = 500;

/// How it came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// We were told to stop.
    Stopped,
    /// Its server ended by itself.
    Server(Left),
    /// It did not come up, or was no good any more: taken down.
    Unhealthy(Trouble),
    /// Something of it is left. After why it was to end, why that did not succeed.
    NotDown(String, Trouble),
}

impl Exit {
    /// The code of this process.
    pub fn code(&self) -> u8 {
        match self {
            Self::Stopped => 0,
            Self::Server(left) => left.code.unwrap_or(UNHEALTHY),
            Self::Unhealthy(_) | Self::NotDown(..) => UNHEALTHY,
        }
    }

    /// Why it ended, in a sentence.
    pub fn reason(&self) -> String {
        match self {
            Self::Stopped => "told to stop".to_owned(),
            Self::Server(left) => format!("its server ended by itself: {}", left.how),
            Self::Unhealthy(trouble) => trouble.why.clone(),
            Self::NotDown(reason, trouble) => {
                format!("{reason}; and it could not be taken down: {}", trouble.why)
            }
        }
    }
}

/// A model that was launched, in whichever way, and is ours to end.
trait Kept {
    /// How it is spoken to.
    fn reach(&self) -> Reach;

    /// What can be read once its server has ended.
    fn ends(&self) -> Vec<BorrowedFd<'_>>;

    /// How its server ended, once that is seen.
    fn left(&mut self) -> io::Result<Option<Left>>;

    /// The same, looked for: it does not answer any more, and may have ended unseen.
    fn look(&mut self) -> io::Result<Option<Left>>;

    /// Somebody answers that it is healthy: is it this one, and this model?
    fn is_itself(
        &self,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble>;

    /// Ends it by the ladder, with all that it started; also where its server has ended already.
    fn end(&mut self, interrupt: &mut Interrupt, say: &mut dyn FnMut(&str)) -> Result<(), Trouble>;
}

/// Stays with it to its end.
fn stay(
    mut kept: impl Kept,
    plan: Watch,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> io::Result<Exit> {
    // Whatever fails on our side, it does not outlive us.
    let watched = watch(&mut kept, plan, interrupt, say);
    if let Ok(exit) = &watched {
        notify(&[NotifyState::Stopping]);
        tell_status(&exit.reason());
    }
    let ended = kept.end(interrupt, say);
    let exit = watched?;
    let exit = match ended {
        Ok(()) => exit,
        Err(trouble) => Exit::NotDown(exit.reason(), trouble),
    };
    tell_status(&exit.reason());
    Ok(exit)
}

/// Until it is to be ended, or has.
fn watch(
    kept: &mut impl Kept,
    plan: Watch,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> io::Result<Exit> {
    let loaded = load(kept, interrupt, say)?;
    if let Some(exit) = loaded {
        return Ok(exit);
    }
    let is_asked = kept.reach().health.is_some();
    let status = if is_asked { "healthy" } else { "running, and not asked whether it is healthy" };
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    say("ready");
    let (mut failures, mut pause) = (0, plan.delay);
    loop {
        if let Some(exit) = pass(kept, pause, interrupt)? {
            return Ok(exit);
        }
        pause = plan.interval;
        let health = match ask(kept, plan.timeout, interrupt) {
            Ok(Asked::Answer(Some(health))) => health,
            Ok(Asked::Answer(None)) => continue,
            Ok(Asked::Over(exit)) => return Ok(exit),
            // No thread, no descriptor: ours is the trouble, not its.
            Err(error) => {
                say(&format!("not asked whether it is healthy: {error}"));
                continue;
            }
        };
        if health == Health::Answered(Readiness::Ready) {
            if failures > 0 {
                say("healthy again");
            }
            failures = 0;
            tell_status("healthy");
            continue;
        }
        failures += 1;
        let text = format!("{health} ({failures} of {} times)", plan.failures);
        tell_status(&text);
        say(&text);
        if failures >= plan.failures {
            if let Some(left) = kept.look()? {
                return Ok(Exit::Server(left));
            }
            let why = format!("{failures} times in a row: {health}");
            return Ok(Exit::Unhealthy(Trouble::new(why)));
        }
    }
}

/// Until it serves and is itself; else how that ended.
fn load(
    kept: &mut impl Kept,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> io::Result<Option<Exit>> {
    let reach = kept.reach();
    let (began, mut pause) = (Instant::now(), FIRST_LOOK);
    let mut last = String::new();
    loop {
        let left = reach.load_timeout.saturating_sub(began.elapsed());
        let health = match ask(kept, HEALTH_TIME.min(left.max(FIRST_LOOK)), interrupt)? {
            Asked::Answer(Some(health)) => health,
            Asked::Answer(None) => return pass(kept, UNASKED_TIME, interrupt),
            Asked::Over(exit) => return Ok(Some(exit)),
        };
        if health == Health::Answered(Readiness::Ready) {
            break;
        }
        if left.is_zero() {
            let limit = reach.load_timeout.as_secs();
            let why =
                format!("it was not ready within {limit} s; at last: {}", health.while_loading());
            let trouble = Trouble::new(why).hint("'--load-timeout' gives it more time");
            return Ok(Some(Exit::Unhealthy(trouble)));
        }
        let text =
            format!("loading for {} s: {}", began.elapsed().as_secs(), health.while_loading());
        extend(pause + HEALTH_TIME);
        tell_status(&text);
        if last != health.to_string() {
            last = health.to_string();
            say(&text);
        }
        if let Some(exit) = pass(kept, pause.min(left), interrupt)? {
            return Ok(Some(exit));
        }
        pause = (pause * 2).min(LAST_LOOK);
    }
    match kept.is_itself(interrupt, say) {
        Ok(()) => Ok(None),
        // One that has died meanwhile is not itself either.
        Err(trouble) => Ok(Some(kept.look()?.map_or(Exit::Unhealthy(trouble), Exit::Server))),
    }
}

/// Lets time pass; how it ended meanwhile.
fn pass(
    kept: &mut impl Kept,
    time: Duration,
    interrupt: &mut Interrupt,
) -> io::Result<Option<Exit>> {
    let end = Instant::now() + time;
    loop {
        if let Some(exit) = wait(kept, None, end, interrupt)? {
            return Ok(Some(exit));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
    }
}

/// What came of a question.
enum Asked {
    /// None where it is not to be asked.
    Answer(Option<Health>),
    /// It ended before it answered, or is to end.
    Over(Exit),
}

/// Asks whether it is healthy, beside us: an answer that does not come keeps nobody from ending it.
fn ask(kept: &mut impl Kept, most: Duration, interrupt: &mut Interrupt) -> io::Result<Asked> {
    let reach = kept.reach();
    let (send, receive) = mpsc::channel();
    let (reader, writer) = io::pipe()?;
    thread::Builder::new().name("portreeve-health".to_owned()).spawn(move || {
        drop(send.send(health::ask(&reach, most)));
        drop(writer);
    })?;
    // It keeps its time by itself.
    let end = Instant::now() + most + HEALTH_TIME;
    loop {
        if let Some(exit) = wait(kept, Some(reader.as_fd()), end, interrupt)? {
            return Ok(Asked::Over(exit));
        }
        match receive.try_recv() {
            Ok(health) => return Ok(Asked::Answer(health)),
            Err(mpsc::TryRecvError::Empty) if Instant::now() < end => {}
            Err(mpsc::TryRecvError::Empty | mpsc::TryRecvError::Disconnected) => {
                let why = "the question was lost".to_owned();
                return Ok(Asked::Answer(Some(Health::Silent(why))));
            }
        }
    }
}

/// Waits until then, or until this descriptor can be read, or for as long as the service manager may miss us; how it ended meanwhile.
fn wait(
    kept: &mut impl Kept,
    other: Option<BorrowedFd<'_>>,
    end: Instant,
    interrupt: &mut Interrupt,
) -> io::Result<Option<Exit>> {
    let mut slice = end.saturating_duration_since(Instant::now());
    if let Some(limit) = sd_notify::watchdog_enabled() {
        notify(&[NotifyState::Watchdog]);
        slice = slice.min(limit / 2);
    }
    let fds: Vec<BorrowedFd<'_>> = kept.ends().into_iter().chain(other).collect();
    // Also one that came between two waits.
    if interrupt.count() > 0 || interrupt.wait_among(&fds, slice) {
        return Ok(Some(Exit::Stopped));
    }
    Ok(kept.left()?.map(Exit::Server))
}

/// What it is doing, or why it ended, for the service manager: one line, whoever's words are in it.
pub fn tell_status(text: &str) {
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_CHARACTERS).collect();
    notify(&[NotifyState::Status(&line)]);
}

/// The start takes this much longer.
fn extend(time: Duration) {
    let more = u32::try_from((time + EXTENSION).as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::ExtendTimeoutUsec(more)]);
}

/// Where nobody listens, nothing is said.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}
