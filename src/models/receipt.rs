//! What is written down of what we started, and of ourselves while we start it: so that either is known again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::service;
use crate::{
    backend::spec::Engine,
    host::Host,
    ident::{ContainerId, Pid, ProcessKey, UnitName},
    observe::{self, processes},
    snapshot::Seen,
};

/// Who leads a model from one state to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Worker {
    /// A command of ours.
    Process(Command),
    /// A run of the model's unit, by several commands one after another.
    Run(Run),
}

/// A process as it is known again in this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Its process id.
    pub pid: u32,
    /// When it began, in ticks since boot.
    pub start_ticks: u64,
    /// Its pidfd's inode, from Linux 6.9 on never used twice in a boot.
    pub pidfd_inode: Option<u64>,
}

/// A unit's run, from one start to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The unit.
    pub unit: String,
    /// Which of its runs (systemd.exec(5), `INVOCATION_ID`).
    pub invocation_id: String,
}

/// What was started for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// In which boot.
    pub boot_id: String,
    /// Its container.
    pub container: Option<Contained>,
    /// Its main process, once it runs.
    pub process: Option<Main>,
    /// The unit that it runs in.
    pub unit: Option<String>,
    /// Which installation started it.
    pub instance_id: String,
}

/// A container, as a receipt has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contained {
    /// Whose.
    pub engine: Engine,
    /// Which.
    pub id: ContainerId,
    /// What it is called.
    pub name: String,
}

/// A main process, as a receipt has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Main {
    /// Which.
    pub key: ProcessKey,
    /// Its executable.
    pub exe: Option<PathBuf>,
    /// Its user.
    pub uid: Option<u32>,
}

impl Worker {
    /// Ourselves. None where `/proc` does not show us.
    pub fn ourselves(host: &Host) -> Option<Self> {
        let pid = Pid(std::process::id());
        let key = key_of(pid)?;
        let boot_id = boot_id(host)?;
        let ProcessKey { start_ticks, pidfd_inode, .. } = key;
        Some(Self::Process(Command { boot_id, pid: pid.0, start_ticks, pidfd_inode }))
    }

    /// The run of a unit that this process is a part of. None where it is started by hand.
    pub fn this_run(host: &Host, unit: &UnitName) -> Option<Self> {
        let invocation_id = std::env::var("INVOCATION_ID").ok()?;
        Some(Self::Run(Run { boot_id: boot_id(host)?, unit: unit.0.clone(), invocation_id }))
    }

    /// Whether it still runs. What cannot be seen is taken to run: who waits for it loses time, who does not loses a model.
    pub fn is_alive(&self, host: &Host) -> bool {
        let (Self::Process(Command { boot_id: then, .. }) | Self::Run(Run { boot_id: then, .. })) =
            self;
        if boot_id(host).is_some_and(|now| now != *then) {
            return false;
        }
        match self {
            Self::Process(command) => command.is_alive(),
            Self::Run(run) => match service::look_at(host, &UnitName(run.unit.clone())) {
                Seen::Known(unit) => unit.is_up() && unit.is_run(&run.invocation_id),
                Seen::Gone => false,
                Seen::Denied | Seen::Unreadable(_) => true,
            },
        }
    }
}

impl Command {
    fn is_alive(&self) -> bool {
        let Self { pid, start_ticks, pidfd_inode, .. } = *self;
        let key = ProcessKey { pid: Pid(pid), start_ticks, pidfd_inode };
        match processes::open_pidfd(key.pid) {
            Seen::Known(pidfd) => {
                let now = processes::start_of(key.pid);
                let inode = processes::pidfd_inode(&pidfd);
                let seen =
                    now.map(|start_ticks| ProcessKey { start_ticks, pidfd_inode: inode, ..key });
                seen.is_none_or(|seen| seen.is_same(&key)) && !processes::has_ended(&pidfd)
            }
            Seen::Gone => false,
            Seen::Denied | Seen::Unreadable(_) => true,
        }
    }
}

/// Which boot this is.
pub fn boot_id(host: &Host) -> Option<String> {
    observe::clock(host).boot_id.known().cloned()
}

/// A living process, as it is known again.
pub fn key_of(pid: Pid) -> Option<ProcessKey> {
    let Seen::Known(pidfd) = processes::open_pidfd(pid) else { return None };
    let start_ticks = processes::start_of(pid)?;
    let pidfd_inode = processes::pidfd_inode(&pidfd);
    (!processes::has_ended(&pidfd)).then_some(ProcessKey { pid, start_ticks, pidfd_inode })
}

impl Main {
    /// A living process; none where it is gone.
    pub fn of(host: &Host, pid: Pid) -> Option<Self> {
        let key = key_of(pid)?;
        let process = processes::read(host, pid, Seen::Gone);
        let process = process.known();
        let exe = process.and_then(|process| process.exe.known()).cloned();
        let uid = process.and_then(|process| process.uid.known()).copied();
        Some(Self { key, exe, uid })
    }
}
