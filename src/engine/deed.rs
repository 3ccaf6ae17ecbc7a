//! Orders to an engine about what runs: stop, kill, remove, wait. Each tells what came of it; whom to order what is not
//! decided here.

use std::time::{Duration, Instant};

use hyper::{Method, body::Bytes};

use super::{
    Engine, answer, answer::Dialect, command::Podman, http::Reply, is_whole, socket::Socket,
    way::NoAnswer,
};
use crate::ident::{ContainerId, EngineKind};

/// The answer to an order is empty, or a list of warnings.
pub(super) const ANSWER_BYTES: usize = 64 << 10;

/// What came of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Deed {
    /// The engine did it.
    Done,
    /// There was nothing to do (304): what is to be stopped did not run, what is to be started did.
    AlreadySo,
    /// The engine does not know the container, or the network (404).
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

/// SIGTERM, and SIGKILL after `grace`, both by the engine; whole seconds, rounded up. `timeout` is our own, on top of the
/// grace period.
pub fn stop(engine: &Engine, id: &ContainerId, grace: Duration, timeout: Duration) -> Deed {
    let seconds = grace.as_millis().div_ceil(1000).to_string();
    let order = Order {
        method: Method::POST,
        path: format!("stop?t={seconds}"),
        podmans: None,
        command: vec!["stop".to_owned(), "-t".to_owned(), seconds],
    };
    give(engine, id, order, grace.saturating_add(timeout))
}

/// SIGKILL by the engine.
pub fn kill(engine: &Engine, id: &ContainerId, timeout: Duration) -> Deed {
    let order = Order {
        method: Method::POST,
        path: "kill?signal=KILL".to_owned(),
        podmans: None,
        command: ["kill", "--signal", "KILL"].map(str::to_owned).into(),
    };
    give(engine, id, order, timeout)
}

/// Removes a container, not its volumes; `force` ends what still runs in it.
pub fn remove(engine: &Engine, id: &ContainerId, force: bool, timeout: Duration) -> Deed {
    let order = Order {
        method: Method::DELETE,
        path: format!("?force={force}"),
        podmans: None,
        command: vec!["rm".to_owned(), format!("--force={force}")],
    };
    give(engine, id, order, timeout)
}

/// Waits until it is so.
pub fn wait(engine: &Engine, id: &ContainerId, until: Until, timeout: Duration) -> Deed {
    let (ours, podmans) = match until {
        Until::NotRunning => ("not-running", "stopped"),
        Until::Removed => ("removed", "removing"),
    };
    // Asked in Docker's words, Podman looks again without a pause, and takes a whole processor (4.3,
    // pkg/api/handlers/utils/containers.go, `WaitContainerDocker`: an interval of a nanosecond). In its own it takes one.
    let pause_ms = if timeout > A_WHILE { 2000 } else { 50 };
    let own = match until {
        Until::NotRunning => {
            Some(format!("wait?condition=stopped&condition=exited&interval={pause_ms}ms"))
        }
        Until::Removed => None,
    };
    let order = Order {
        method: Method::POST,
        path: format!("wait?condition={ours}"),
        podmans: own,
        command: vec!["wait".to_owned(), format!("--condition={podmans}")],
    };
    give(engine, id, order, timeout)
}

/// Who waits longer has another way to hear of it.
const A_WHILE: Duration = Duration::from_secs(120);

/// In Docker's API, which Podman speaks too, and as a command of Podman.
struct Order {
    method: Method,
    /// Behind the container's own path.
    path: String,
    /// The same in Podman's own API, where that differs.
    podmans: Option<String>,
    command: Vec<String>,
}

fn give(engine: &Engine, id: &ContainerId, order: Order, timeout: Duration) -> Deed {
    // A beginning or a name would find another.
    if !is_whole(id) {
        return Deed::NoAnswer(format!("not asked: '{id}' is no whole id"));
    }
    let runtime = match super::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return Deed::NoAnswer(error.to_string()),
    };
    let deed = runtime.block_on(carry_out(engine, id, order, Instant::now() + timeout));
    runtime.shutdown_background();
    deed
}

async fn carry_out(engine: &Engine, id: &ContainerId, order: Order, deadline: Instant) -> Deed {
    let why = match Socket::open(engine, deadline).await {
        Ok(socket) => {
            let Dialect { docker, own, version } = &socket.dialect;
            let podmans = order.podmans.as_ref().filter(|_| version.kind == EngineKind::Podman);
            let (api, what) = podmans.map_or((docker, &order.path), |path| (own, path));
            let slash = if what.starts_with('?') { "" } else { "/" };
            let path = format!("{api}/containers/{id}{slash}{what}");
            let reply =
                socket.into_line().call(order.method, &path, Bytes::new(), ANSWER_BYTES).await;
            return reply.map_or_else(Into::into, |reply| read(&reply));
        }
        Err(why) => why,
    };
    let is_mute = matches!(why, NoAnswer::Absent | NoAnswer::Refused);
    if !(is_mute && engine.name.kind == EngineKind::Podman) {
        return why.into();
    }
    match Podman::find(engine, deadline) {
        Ok(podman) => {
            let id = id.clone();
            let run = move || {
                let words: Vec<&str> = order.command.iter().map(String::as_str).collect();
                podman.order(&words, &id)
            };
            super::beside(run).await.unwrap_or_else(Into::into)
        }
        Err(NoAnswer::Absent) => why.into(),
        Err(why) => why.into(),
    }
}

pub(super) fn read(reply: &Reply) -> Deed {
    match reply.status {
        200 | 204 => Deed::Done,
        304 => Deed::AlreadySo,
        404 if answer::is_unknown(reply) => Deed::Gone,
        409 => Deed::Conflict(answer::message(reply)),
        // Podman 4.3 has no 409 for it.
        500 if answer::is_in_wrong_state(&String::from_utf8_lossy(&reply.body)) => {
            Deed::Conflict(answer::message(reply))
        }
        status => Deed::Failed(status, answer::message(reply)),
    }
}

impl From<NoAnswer> for Deed {
    fn from(why: NoAnswer) -> Self {
        Self::NoAnswer(why.to_string())
    }
}
