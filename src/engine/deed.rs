//! Orders to an engine: stop, kill, remove, wait. Each tells what came of it; whom to order what is not decided here.

use std::time::Duration;

use super::Engine;
use crate::ident::ContainerId;

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Deed {
    /// The engine did it.
    Done,
    /// There was nothing to stop (304).
    AlreadyStopped,
    /// The engine does not know the container (404).
    Gone,
    /// Not now: a removal is under way, it does not run, … (409), in the engine's words.
    Conflict(String),
    /// The engine refused or failed; its status (HTTP's, or the command's exit code) and words.
    Failed(u16, String),
    /// No answer: whether it was done is not known.
    NoAnswer(String),
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Its main process has exited.
    NotRunning,
    /// The container is removed.
    Removed,
}

/// SIGTERM, and SIGKILL after `grace`, both by the engine. `timeout` is our own, on top of the grace period.
pub fn stop(engine: &Engine, id: &ContainerId, grace: Duration, timeout: Duration) -> Deed {
    let _ = (engine, id, grace, timeout);
    Deed::NoAnswer("not asked".to_owned())
}

/// SIGKILL by the engine.
pub fn kill(engine: &Engine, id: &ContainerId, timeout: Duration) -> Deed {
    let _ = (engine, id, timeout);
    Deed::NoAnswer("not asked".to_owned())
}

/// Removes a container; `force` ends what still runs in it.
pub fn remove(engine: &Engine, id: &ContainerId, force: bool, timeout: Duration) -> Deed {
    let _ = (engine, id, force, timeout);
    Deed::NoAnswer("not asked".to_owned())
}

/// Waits until it is so.
pub fn wait(engine: &Engine, id: &ContainerId, until: Until, timeout: Duration) -> Deed {
    let _ = (engine, id, until, timeout);
    Deed::NoAnswer("not asked".to_owned())
}
