//! What a model's unit wrote into the journal, read by journalctl: the format of its files is systemd's own matter.

use std::{
    os::unix::process::CommandExt,
    process::Command,
    time::{Duration, Instant},
};

use super::{
    service::{self, look_at},
    trouble::Trouble,
};
use crate::{
    command,
    host::Host,
    ident::{Manager, UnitName},
    snapshot::Seen,
    sys,
};

/// Where distributions put it; the last is NixOS's.
const PLACES: [&str; 3] =
    ["usr/bin/journalctl", "bin/journalctl", "run/current-system/sw/bin/journalctl"];
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The last lines of a unit's present run, or of its last one; nothing where the journal does not tell.
pub fn of_this_run(host: &Host, unit: &UnitName, lines: usize) -> Vec<String> {
    let Seen::Known(service) = look_at(host, unit) else { return Vec::new() };
    let Some(id) = service.invocation_id else { return Vec::new() };
    let word = match service::manager() {
        Manager::System => format!("_SYSTEMD_INVOCATION_ID={id}"),
        Manager::User(_) => format!("USER_INVOCATION_ID={id}"),
    };
    let Ok(mut command) = journalctl(host, lines) else { return Vec::new() };
    if service::manager() != Manager::System {
        command.arg("--user");
    }
    command.arg(word);
    said(command).unwrap_or_default()
}

/// Becomes journalctl: it shows the last lines of a unit and of its container, and each line as it is written where it is to follow.
/// Returns only where that failed.
pub fn show(
    host: &Host,
    unit: &UnitName,
    container: Option<&str>,
    lines: usize,
    follows: bool,
) -> Trouble {
    let mut command = match journalctl(host, lines) {
        Ok(command) => command,
        Err(trouble) => return trouble,
    };
    command.args(follows.then_some("--follow"));
    // What a unit's processes write, and what its manager says of it.
    match service::manager() {
        Manager::System => {
            command.arg(format!("_SYSTEMD_UNIT={unit}")).args(["+", "_PID=1"]);
            command.arg(format!("UNIT={unit}"));
        }
        Manager::User(_) => {
            command.arg("--user").arg(format!("_SYSTEMD_USER_UNIT={unit}")).arg("+");
            command.arg(format!("USER_UNIT={unit}"));
        }
    }
    // As Podman's journald driver writes them (libpod's and conmon's, conmon(8)).
    if let Some(container) = container {
        command.arg("+").arg(format!("CONTAINER_NAME={container}"));
    }
    sys::keep_sigpipe(&mut command);
    Trouble::unknown(format!("journalctl: {}", command.exec()))
}

fn said(command: Command) -> Result<Vec<String>, Trouble> {
    let said = command::run(command, Instant::now() + ANSWER_TIME);
    let said = said.map_err(|why| Trouble::unknown(format!("journalctl: {why}")))?;
    Ok(String::from_utf8_lossy(&said.out).lines().map(str::to_owned).collect())
}

fn journalctl(host: &Host, lines: usize) -> Result<Command, Trouble> {
    let program =
        PLACES.iter().map(|place| host.path(place)).find(|path| command::is_program(path));
    let program = program.ok_or_else(|| Trouble::unknown("there is no journalctl here"))?;
    let mut command = Command::new(program);
    command.args(["--quiet", "--no-pager", "--output=cat"]).arg(format!("--lines={lines}"));
    Ok(command)
}
