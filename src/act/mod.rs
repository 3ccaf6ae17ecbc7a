//! The only place that changes the host.

pub mod container;
pub mod interrupt;
pub mod respawn;
pub mod signal;
pub mod systemctl;
pub mod tally;
pub mod unit;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::{ident::ProcessKey, judge::verdict::Verdict};

/// What became of one convicted process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Gone after SIGTERM.
    Terminated(Duration),
    /// Gone after SIGKILL, its grace period being over.
    Killed(Duration),
    /// Gone with its container, which its engine stopped; says how.
    Stopped(container::Stopped),
    /// Its container is not down, or only itself is still there; says what the engine came to.
    NotStopped(String),
    /// Left to another run of ours, in this unit (`--no-wait`).
    HandedOver(String),
    /// Gone before we signalled it.
    Vanished,
    /// The pid is another process now, or the process changed since the verdict; nothing was sent. Says what changed.
    Replaced(String),
    /// The kernel refused the signal; says why.
    Refused(String),
    /// SIGKILL was sent and it did not exit; state letter and kernel wait channel where readable.
    Unkillable {
        /// State letter of proc_pid_stat(5), `D` as a rule.
        state: char,
        /// `/proc/PID/wchan`.
        wait_channel: Option<String>,
    },
    /// We were interrupted before its turn or before its end was seen.
    Interrupted,
}

impl Outcome {
    /// Whether the process is known to be gone.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Terminated(_) | Self::Killed(_) | Self::Stopped(_) | Self::Vanished => true,
            Self::NotStopped(_)
            | Self::HandedOver(_)
            | Self::Replaced(_)
            | Self::Refused(_)
            | Self::Unkillable { .. }
            | Self::Interrupted => false,
        }
    }
}

/// A verdict and what became of it.
#[derive(Debug, Clone)]
pub struct Deed {
    /// Why.
    pub verdict: Verdict,
    /// What became of it.
    pub outcome: Outcome,
}

/// An orphan's like that came back after the end.
#[derive(Debug, Clone)]
pub struct Respawn {
    /// The newcomer.
    pub key: ProcessKey,
    /// Its command line, for display.
    pub command_line: String,
    /// What it resembles: `8091/tcp`, or a pattern's name.
    pub like: String,
    /// Who brought it, in words, as far as the kernel tells.
    pub brought_by: String,
    /// How to stop that.
    pub next_step: String,
}
