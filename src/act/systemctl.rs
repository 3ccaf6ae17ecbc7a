//! Orders to systemd about units that it has files of.

use std::{
    fmt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    act::interrupt::Interrupt,
    command,
    host::Host,
    ident::{Manager, Pid, UnitName},
    observe::processes,
    snapshot::Seen,
};

/// Where distributions put it; `$PATH` is not asked by somebody with root. The last is NixOS's.
const PLACES: [&str; 3] =
    ["usr/bin/systemctl", "bin/systemctl", "run/current-system/sw/bin/systemctl"];

/// For what only changes files.
const FILES_TIME: Duration = Duration::from_secs(30);

/// So often its manager may hang up on one order.
const MOST_HANG_UPS: usize = 10;
/// For it to be there again.
const PAUSE: Duration = Duration::from_millis(300);

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotDone {
    /// Its job did not succeed, or another order took its place; what systemctl said.
    Failed(String),
    /// The manager hung up on us time and again: it executes itself anew. What it was told goes on.
    HungUp(String),
    /// It goes on, and we do not wait any longer: a signal came.
    Interrupted,
    /// The same, at the deadline.
    Late,
    /// It could not be given.
    NotGiven(String),
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(words) | Self::HungUp(words) => write!(f, "systemd says: {words}"),
            Self::Interrupted => f.write_str("a signal ended the wait for systemd"),
            Self::Late => f.write_str("systemd has not done it yet"),
            Self::NotGiven(why) => f.write_str(why),
        }
    }
}

/// An order whose job is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Start it.
    Start,
    /// Stop it.
    Stop,
}

/// Gives an order and waits until its job is done; `look` is called now and then meanwhile. What was ordered goes on without us.
///
/// A manager that executes itself anew hangs up on who waits, and keeps its jobs: the same order is merged with the one that goes on.
pub fn give(
    host: &Host,
    manager: Manager,
    order: Order,
    unit: &UnitName,
    until: Option<Instant>,
    interrupt: &mut Interrupt,
    look: &mut dyn FnMut(),
) -> Result<(), NotDone> {
    let mut hang_ups = 0;
    loop {
        let given = give_once(host, manager, order, unit, until, interrupt, look);
        if !matches!(given, Err(NotDone::HungUp(_))) || hang_ups >= MOST_HANG_UPS {
            return given;
        }
        hang_ups += 1;
        if interrupt.wait(PAUSE) {
            return Err(NotDone::Interrupted);
        }
    }
}

fn give_once(
    host: &Host,
    manager: Manager,
    order: Order,
    unit: &UnitName,
    until: Option<Instant>,
    interrupt: &mut Interrupt,
    look: &mut dyn FnMut(),
) -> Result<(), NotDone> {
    const LOOK: Duration = Duration::from_millis(500);
    let verb = match order {
        Order::Start => "start",
        Order::Stop => "stop",
    };
    let mut command = systemctl(host, manager).map_err(NotDone::NotGiven)?;
    command.args([verb, "--quiet", "--", &unit.0]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    crate::sys::begin_session(&mut command);
    let given = |error: std::io::Error| NotDone::NotGiven(format!("systemctl: {error}"));
    let mut child = command.spawn().map_err(given)?;
    let Seen::Known(pidfd) = processes::open_pidfd(Pid(child.id())) else {
        end(&mut child);
        return Err(NotDone::NotGiven("systemctl cannot be waited for".to_owned()));
    };
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let pause = left.map_or(LOOK, |left| LOOK.min(left));
        if interrupt.wait_beside(Some(std::os::fd::AsFd::as_fd(&pidfd)), pause) {
            end(&mut child);
            return Err(NotDone::Interrupted);
        }
        if processes::has_ended(&pidfd) {
            break;
        }
        if left.is_some_and(|left| left.is_zero()) {
            end(&mut child);
            return Err(NotDone::Late);
        }
        look();
    }
    // It has ended, so that nothing more comes; its few lines fit into the pipe.
    let output = child.wait_with_output().map_err(given)?;
    if output.status.success() { Ok(()) } else { Err(not_done(&output.stderr)) }
}

/// Of a job that did not succeed, or was canceled, nothing is said ('--quiet'; systemd src/shared/bus-wait-for-jobs.c). Of a
/// connection that is lost or cannot be had it is: by the text of its error, or in words of its own.
fn not_done(errors: &[u8]) -> NotDone {
    let words = first_line(errors);
    match words {
        None => NotDone::Failed("its job failed, or was canceled".to_owned()),
        Some(words) if words.contains("onnect") => NotDone::HungUp(words),
        Some(words) => NotDone::Failed(words),
    }
}

/// Starts these units with their targets from now on, or no longer. The manager is not made to read its files anew: that may cut running
/// containers off their GPUs (nvidia-container-toolkit, issue 48).
pub fn set_enabled(
    host: &Host,
    manager: Manager,
    enabled: bool,
    units: &[&UnitName],
) -> Result<(), NotDone> {
    let verb = if enabled { "enable" } else { "disable" };
    let mut words = vec![verb, "--no-reload", "--quiet", "--"];
    words.extend(units.iter().map(|unit| unit.0.as_str()));
    brief(host, manager, &words)
}

/// Forgets that a unit failed, and how often it was started: somebody asks for it now.
pub fn forget_failure(host: &Host, manager: Manager, unit: &UnitName) -> Result<(), NotDone> {
    brief(host, manager, &["reset-failed", "--quiet", "--", &unit.0])
}

/// Has the manager read all its files anew.
pub fn reload(host: &Host, manager: Manager) -> Result<(), NotDone> {
    brief(host, manager, &["daemon-reload"])
}

fn brief(host: &Host, manager: Manager, words: &[&str]) -> Result<(), NotDone> {
    let mut command = systemctl(host, manager).map_err(NotDone::NotGiven)?;
    command.args(words);
    let said = command::run(command, Instant::now() + FILES_TIME);
    let said = said.map_err(|why| NotDone::NotGiven(format!("systemctl: {why}")))?;
    let words = || first_line(&said.errors).unwrap_or_else(|| "nothing".to_owned());
    if said.code == Some(0) { Ok(()) } else { Err(NotDone::Failed(words())) }
}

fn systemctl(host: &Host, manager: Manager) -> Result<Command, String> {
    let program =
        PLACES.iter().map(|place| host.path(place)).find(|path| command::is_program(path));
    let program = program.ok_or_else(|| "there is no systemctl here".to_owned())?;
    let mut command = Command::new(program);
    command.args(["--no-ask-password", "--no-pager"]).env("LC_ALL", "C");
    if let Manager::User(uid) = manager {
        command.arg("--user");
        command.env("XDG_RUNTIME_DIR", host.path(format!("run/user/{uid}")));
    }
    Ok(command)
}

fn first_line(words: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(words);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.map(str::to_owned)
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_up_is_told_from_a_job_that_failed() {
        let hung_up = "Warning! D-Bus connection terminated.\nFailed to wait for response: Connection reset by peer\n";
        for words in [hung_up, "Failed to connect to bus: Connection refused\n"] {
            assert!(matches!(not_done(words.as_bytes()), NotDone::HungUp(_)), "{words}");
        }
        for words in ["", "Failed to start a.service: Unit a.service is masked.\n"] {
            assert!(matches!(not_done(words.as_bytes()), NotDone::Failed(_)), "{words}");
        }
    }
}
