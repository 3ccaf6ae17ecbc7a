//! `model exec`: a model in the foreground, the main process of its unit. Launch, READY once it serves and is itself, STATUS while it
//! does; after so many failures the ladder and 70, which a service manager restarts; on SIGTERM the ladder and 0. Writes no
//! registry and needs no right but to run its server: what needs more stands in the unit's other commands.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

use super::{
    health::{self, Health, Served},
    native::{Ended, Server},
    plan::Process,
    trouble::Trouble,
};
use crate::{
    act::interrupt::Interrupt,
    backend::{Readiness, Spec},
    config::settings::Settings,
    host::Host,
    ident::{Endpoint, Pid, Proto},
    judge::{Also, port::PortState},
    pipeline::{self, Scope},
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

/// How it came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// We were told to stop; how its server left.
    Stopped(Ended),
    /// Its server ended by itself.
    Server(ExitStatus),
    /// It did not come up, or was no good any more: taken down.
    Unhealthy(Trouble),
}

impl Exit {
    /// The code of this process.
    pub fn code(&self) -> u8 {
        match self {
            Self::Stopped(_) => 0,
            // As a shell has it.
            Self::Server(status) => {
                let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
                code.and_then(|code| u8::try_from(code).ok()).unwrap_or(UNHEALTHY)
            }
            Self::Unhealthy(_) => UNHEALTHY,
        }
    }
}

/// A model that is to be kept in the foreground.
pub struct Foreground<'a> {
    /// This host.
    pub host: &'a Host,
    /// The settings.
    pub settings: &'a Settings,
    /// What is wanted of it.
    pub spec: &'a Spec,
    /// How it is launched.
    pub process: &'a Process,
}

/// Starts it and stays with it to its end.
pub fn keep(
    foreground: &Foreground<'_>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> io::Result<Exit> {
    let grace = foreground.process.reach.grace;
    let mut server = Server::start(foreground.host, foreground.process)?;
    let exit = watch(foreground, &mut server, interrupt, say)?;
    notify(&[NotifyState::Stopping]);
    // Also where its server ended by itself: its workers may not have.
    let ended = server.end(grace, interrupt);
    match &ended {
        Ended::Graceful(_) => {}
        Ended::Killed(many) => say(&format!("{many} of its processes had to be killed")),
        Ended::Left(pids) => {
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            say(&format!("stuck in the kernel, though killed: pid {}", pids.join(", ")));
        }
    }
    Ok(match exit {
        Exit::Stopped(_) => Exit::Stopped(ended),
        exit @ (Exit::Server(_) | Exit::Unhealthy(_)) => exit,
    })
}

/// Until it is to be ended, or has.
fn watch(
    foreground: &Foreground<'_>,
    server: &mut Server,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> io::Result<Exit> {
    let told = || Exit::Stopped(Ended::Graceful(Duration::ZERO));
    match load(foreground, server, interrupt, say)? {
        Step::Told => return Ok(told()),
        Step::Ended(status) => return Ok(Exit::Server(status)),
        Step::Failed(trouble) => return Ok(Exit::Unhealthy(trouble)),
        Step::On => {}
    }
    notify(&[NotifyState::Ready, NotifyState::Status("healthy")]);
    say("ready");
    let (reach, plan) = (&foreground.process.reach, foreground.spec.watch);
    let (mut failures, mut pause) = (0, plan.delay);
    loop {
        match pass(server, pause, interrupt)? {
            Step::On => {}
            Step::Told => return Ok(told()),
            Step::Ended(status) => return Ok(Exit::Server(status)),
            Step::Failed(trouble) => return Ok(Exit::Unhealthy(trouble)),
        }
        pause = plan.interval;
        let Some(health) = health::ask(reach, plan.timeout) else { continue };
        if health == Health::Answered(Readiness::Ready) {
            if failures > 0 {
                say("healthy again");
            }
            failures = 0;
            notify(&[NotifyState::Status("healthy")]);
            continue;
        }
        failures += 1;
        let text = format!("{health} ({failures} of {} times)", plan.failures);
        notify(&[NotifyState::Status(&text)]);
        say(&text);
        if failures >= plan.failures {
            let why = format!("{failures} times in a row: {health}");
            return Ok(Exit::Unhealthy(Trouble::new(why)));
        }
    }
}

/// What a while came to.
enum Step {
    On,
    Told,
    Ended(ExitStatus),
    Failed(Trouble),
}

/// Until it serves and is itself.
fn load(
    foreground: &Foreground<'_>,
    server: &mut Server,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> io::Result<Step> {
    let reach = &foreground.process.reach;
    let (began, mut pause) = (Instant::now(), FIRST_LOOK);
    let mut last = String::new();
    loop {
        let left = reach.load_timeout.saturating_sub(began.elapsed());
        let Some(health) = health::ask(reach, HEALTH_TIME.min(left.max(FIRST_LOOK))) else {
            return pass(server, UNASKED_TIME, interrupt);
        };
        if health == Health::Answered(Readiness::Ready) {
            break;
        }
        if left.is_zero() {
            let limit = reach.load_timeout.as_secs();
            let why =
                format!("it was not ready within {limit} s; at last: {}", health.while_loading());
            return Ok(Step::Failed(Trouble::new(why).hint("'--load-timeout' gives it more time")));
        }
        let text =
            format!("loading for {} s: {}", began.elapsed().as_secs(), health.while_loading());
        let more = pause + HEALTH_TIME + EXTENSION;
        let more = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        notify(&[NotifyState::ExtendTimeoutUsec(more), NotifyState::Status(&text)]);
        if last != health.to_string() {
            last = health.to_string();
            say(&text);
        }
        match pass(server, pause.min(left), interrupt)? {
            Step::On => {}
            step @ (Step::Told | Step::Ended(_) | Step::Failed(_)) => return Ok(step),
        }
        pause = (pause * 2).min(LAST_LOOK);
    }
    Ok(match is_itself(foreground, server) {
        Ok(()) => Step::On,
        Err(trouble) => Step::Failed(trouble),
    })
}

/// Lets time pass; the service manager hears from us meanwhile.
fn pass(server: &mut Server, time: Duration, interrupt: &mut Interrupt) -> io::Result<Step> {
    let end = Instant::now() + time;
    let beat = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    loop {
        if beat.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
        let left = end.saturating_duration_since(Instant::now());
        let slice = beat.map_or(left, |beat| beat.min(left));
        // Also one that came between two waits.
        if interrupt.count() > 0 || server.wait(slice, interrupt) {
            return Ok(Step::Told);
        }
        if let Some(status) = server.exit()? {
            return Ok(Step::Ended(status));
        }
        if left.is_zero() {
            return Ok(Step::On);
        }
    }
}

/// Somebody answers that it is healthy: is it one of its processes, and this model? Its own sockets it can see without any right.
fn is_itself(foreground: &Foreground<'_>, server: &Server) -> Result<(), Trouble> {
    let Foreground { host, settings, spec, process } = foreground;
    let address = Some(spec.host);
    let endpoint = Endpoint { port: spec.port(), proto: Proto::Tcp, address, is_v6only: false };
    let scope = Scope { services: Vec::new(), ports: vec![endpoint], gpus: Vec::new() };
    let found = pipeline::scan(host, settings, &scope, Also::default());
    let found = found.map_err(|error| Trouble::of(&error))?;
    let Some(port) = found.ports.first() else {
        return Err(Trouble::unknown("its port was not looked at"));
    };
    let ours = server.all();
    let is_ours = |pids: &[Pid]| !pids.is_empty() && pids.iter().all(|pid| ours.contains(pid));
    let PortState::Held(pids) = &port.state else {
        let why =
            format!("it says that it is healthy, and does not hold {endpoint}: {}", port.sentence);
        return Err(Trouble::new(why));
    };
    if !is_ours(pids) {
        let why = format!("somebody else answers on {endpoint} in its place: {}", port.sentence);
        return Err(Trouble::new(why));
    }
    match health::served(&process.reach, spec, &process.told, HEALTH_TIME) {
        Served::Fits => Ok(()),
        Served::Other(ids) => {
            let ids = if ids.is_empty() { "nothing".to_owned() } else { ids.join(", ") };
            Err(Trouble::new(format!("it serves {ids}, not {}", spec.model)))
        }
        Served::Unsaid(why) => Err(Trouble::new(format!("it does not say what it serves: {why}"))),
    }
}

/// Where nobody listens, nothing is said.
fn notify(state: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(state);
}
