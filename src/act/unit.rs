//! Work that outlives this run, in a transient unit.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    host::Host,
    ident::Pid,
    observe::{self, processes},
    snapshot::Seen,
};

/// Where distributions put it; `$PATH` is not asked by somebody with root.
const PLACES: [&str; 3] =
    ["/usr/bin/systemd-run", "/bin/systemd-run", "/run/current-system/sw/bin/systemd-run"];
const DEADLINE: Duration = Duration::from_secs(10);

/// Has systemd run a command on its own (systemd-run(1)); returns the unit's name once it runs. Errors say why
/// not, as a phrase.
pub fn start(host: &Host, command: &[String]) -> Result<String, String> {
    if observe::has_systemd(host, &std::collections::BTreeMap::new()) != Seen::Known(true) {
        return Err("no systemd runs here, to which it could be left".to_owned());
    }
    let program = PLACES.iter().map(|place| host.path(place.trim_start_matches('/')));
    let program = program.into_iter().find(|path| path.exists());
    let program = program.ok_or_else(|| "there is no systemd-run here".to_owned())?;
    let name = format!("portreeve-reap-{}.service", std::process::id());
    let mut run = Command::new(program)
        .args(["--quiet", "--collect", "--service-type=exec", "--no-ask-password"])
        .args(["--description", "portreeve stops unsupervised containers"])
        .args(["--property", "SyslogIdentifier=portreeve"])
        .arg(format!("--unit={name}"))
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("systemd-run cannot be started: {error}"))?;
    // Its end wakes us; before Linux 5.3 there is no such descriptor, and systemd-run keeps its own time.
    if let Seen::Known(pidfd) = processes::open_pidfd(Pid(run.id()))
        && !processes::ends_within(&pidfd, DEADLINE)
    {
        let _ = run.kill();
        let _ = run.wait();
        return Err("systemd did not take it in time".to_owned());
    }
    match run.wait() {
        Ok(status) if status.success() => Ok(name),
        Ok(status) => Err(format!("systemd-run failed: {status}")),
        Err(error) => Err(format!("systemd-run cannot be waited for: {error}")),
    }
}
