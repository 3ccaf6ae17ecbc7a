//! Podman's command where our own rights do not do: in a unit's sandbox. systemd runs it then, in a unit of its own, as the same
//! user and with the same environment.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use rustix::thread::CapabilitySet;

use crate::{command, host::Host};

/// Where distributions put systemd-run; the last is NixOS's.
const PROGRAMS: [&str; 3] =
    ["usr/bin/systemd-run", "bin/systemd-run", "run/current-system/sw/bin/systemd-run"];

/// Whether a run of Podman as this user would fail, or worse, for want of rights. Only for root.
pub(super) fn is_needed(owner: u32) -> bool {
    let Ok(sets) = rustix::thread::capabilities(None) else { return false };
    // Root's without CAP_SYS_ADMIN takes itself for a user's and opens root's store with other locks
    // (pkg/rootless/rootless_linux.go, 4.3 and 5.4).
    let rights = if owner == 0 {
        CapabilitySet::SYS_ADMIN
    } else {
        CapabilitySet::SETUID | CapabilitySet::SETGID
    };
    !sets.effective.contains(rights)
}

/// Who asks systemd (systemd-run(1)).
pub(super) fn program(host: &Host) -> Option<PathBuf> {
    let mut places = PROGRAMS.iter().map(|place| host.path(place));
    places.find(|path| command::is_program(path))
}

/// As whom, in which environment, and until when.
pub(super) struct Order<'a> {
    /// User and group; none for root.
    pub(super) user: Option<(u32, u32)>,
    pub(super) environment: &'a [(&'static str, PathBuf)],
    pub(super) deadline: Instant,
}

/// The same command, run by systemd. Its standard streams, its exit code and the wait for it are as if it were ours.
pub(super) fn by_systemd(
    systemd_run: &Path,
    order: &Order<'_>,
    program: &Path,
    arguments: &[&str],
) -> Command {
    let left = order.deadline.saturating_duration_since(Instant::now());
    let mut command = Command::new(systemd_run);
    command.args(["--quiet", "--collect", "--wait", "--pipe", "--no-ask-password"]);
    command.args(["--service-type=exec", "--description=portreeve asks podman"]);
    command.arg("--working-directory=/");
    if let Some((uid, gid)) = order.user {
        command.arg(format!("--property=User={uid}")).arg(format!("--property=Group={gid}"));
    }
    // Should we be gone by then, or late.
    command.arg(format!("--property=RuntimeMaxSec={}ms", left.as_millis().max(1)));
    command.arg("--property=TimeoutStopSec=2s");
    // The process with which Podman keeps a user's namespace ignores SIGTERM, and would keep us waiting.
    command.arg("--property=KillMode=process");
    // At shutdown systemd starts nothing else.
    command.arg("--property=DefaultDependencies=no");
    for (name, value) in order.environment {
        let mut setting = OsString::from(format!("--setenv={name}="));
        setting.push(value);
        command.arg(setting);
    }
    command.arg("--").arg(program).args(arguments).env_clear();
    command
}
