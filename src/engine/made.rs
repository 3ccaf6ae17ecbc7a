//! What containers look like to whoever made them: found by their name or listed, with labels, state and how they ended. All of
//! it in Docker's API, which both engines speak. "None" is an engine's own word, never a guess.

mod json;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{
    Engine,
    answer::{self, shown},
    http::Reply,
    socket::{CONTAINER_BYTES, LIST_BYTES, Socket, talk},
    way::NoAnswer,
};
use crate::{
    ident::{ContainerId, Pid},
    snapshot::Published,
};

/// A container, as its engine describes it to whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// 64 hexadecimal digits.
    pub id: ContainerId,
    /// Without Docker's slash.
    pub name: String,
    /// As it was asked for: `vllm/vllm-openai:v0.6.0`.
    pub image: String,
    /// Its own and its image's.
    pub labels: BTreeMap<String, String>,
    /// What it does.
    pub state: Phase,
    /// None where nothing runs in it, and where the engine numbers processes in another pid namespace than ours.
    pub main_pid: Option<Pid>,
    /// Of its last run; none while it runs and before the first. 128 + signal where a signal ended it.
    pub exit_code: Option<i64>,
    /// The kernel ended a process of it for want of memory, in its last run.
    pub oom_killed: bool,
    /// Why the engine could not start it, in its words; else empty.
    pub error: String,
    /// When it is started again by itself: `no`, `always`, `on-failure`, `unless-stopped`; none where its engine does not say.
    pub restart_policy: Option<String>,
    /// RFC 3339, as the engine writes it; none before the first start.
    pub started_at: Option<String>,
    /// The same of its last end.
    pub finished_at: Option<String>,
    /// `starting`, `healthy` or `unhealthy`; none without a health check.
    pub health: Option<String>,
    /// The devices that it asks for, in the words in which they were asked for: the ids of Docker's requests (`0`, `GPU-…`,
    /// `nvidia.com/gpu=0`; `all` for a request of all), then the paths of devices on the host. Podman 4.3 tells neither.
    pub device_requests: Vec<String>,
    /// `host`, `bridge`, `none`, `container:ID`, `slirp4netns`, a network's name.
    pub network_mode: String,
    /// Ports of the host that are forwarded to it now.
    pub published: Vec<Published>,
}

impl Made {
    /// Whether its engine never starts it again by itself.
    pub fn stays_down(&self) -> bool {
        self.restart_policy.as_deref() == Some("no")
    }
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Not started yet, or its start failed.
    Created,
    /// Its main process runs.
    Running,
    /// It runs, frozen.
    Paused,
    /// It ended, and its engine is about to start it again. Docker alone says so.
    Restarting,
    /// It was told to stop and still runs. Podman alone says so.
    Stopping,
    /// It ended.
    Exited,
    /// Its removal failed. Docker alone says so.
    Dead,
    /// It is being removed.
    Removing,
    /// A word that we do not know.
    Other(String),
}

impl Phase {
    /// The words: Docker's `StateString` (moby container/state.go), Podman's `ContainerStatus`
    /// (libpod/define/containerstate.go).
    fn of(word: &str) -> Self {
        match word {
            "created" | "configured" | "initialized" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "restarting" => Self::Restarting,
            "stopping" => Self::Stopping,
            "exited" | "stopped" => Self::Exited,
            "dead" => Self::Dead,
            "removing" => Self::Removing,
            word => Self::Other(shown(word)),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Exited => "exited",
            Self::Dead => "dead",
            Self::Removing => "removing",
            Self::Other(word) => word,
        })
    }
}

/// One of an engine's containers, as its list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// 64 hexadecimal digits.
    pub id: ContainerId,
    /// Without Docker's slash; the short id where it has none.
    pub name: String,
    /// Its own and its image's.
    pub labels: BTreeMap<String, String>,
    /// What it does.
    pub state: Phase,
    /// As it was asked for; an id where that name is another image's by now.
    pub image: String,
    /// The names of the networks that it is attached to, or will be when it runs.
    pub networks: Vec<String>,
}

/// A container by its whole name or whole id. None = its engine says that it knows no such container.
pub fn find(
    engine: &Engine,
    name_or_id: &str,
    timeout: Duration,
) -> Result<Option<Made>, NoAnswer> {
    let wanted = plain(name_or_id)?;
    talk(engine, timeout, async |mut socket| {
        Ok(look_up(&mut socket, wanted).await?.map(|inspected| inspected.made))
    })
}

/// All containers of an engine, whatever they do.
pub fn list(engine: &Engine, timeout: Duration) -> Result<Vec<Listed>, NoAnswer> {
    talk(engine, timeout, async |mut socket| all(&mut socket).await)
}

/// A name that engines give; anything else would be another path of their API.
pub(super) fn plain(name: &str) -> Result<&str, NoAnswer> {
    let why = || NoAnswer::NoWay(format!("not asked: '{}' is no name", shown(name)));
    answer::name(name).filter(|plain| *plain == name).ok_or_else(why)
}

/// A container, and what only reading its log takes.
pub(super) struct Inspected {
    pub(super) made: Made,
    /// Its output is a terminal's, one stream.
    pub(super) has_terminal: bool,
}

pub(super) async fn look_up(
    socket: &mut Socket,
    wanted: &str,
) -> Result<Option<Inspected>, NoAnswer> {
    let found;
    let asked = if may_begin_an_id(wanted) {
        let named = all(socket).await?.into_iter().find(|container| container.name == wanted);
        let Some(container) = named else { return Ok(None) };
        found = container.id;
        &found.0
    } else {
        wanted
    };
    let reply = socket.get(&format!("/containers/{asked}/json"), CONTAINER_BYTES).await?;
    read(&reply, asked, socket.counts_as_we_do())
}

/// What came of the question for one container.
pub(super) fn read(
    reply: &Reply,
    asked: &str,
    counts_as_we_do: bool,
) -> Result<Option<Inspected>, NoAnswer> {
    if reply.status == 404 && answer::is_unknown(reply) {
        return Ok(None);
    }
    json::inspected(answer::body(reply)?, asked, counts_as_we_do).map(Some)
}

/// Engines find a container by the beginning of its id, where no other has that name (moby daemon/container.go,
/// `GetContainer`).
pub(super) fn may_begin_an_id(wanted: &str) -> bool {
    wanted.len() < 64 && wanted.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) async fn all(socket: &mut Socket) -> Result<Vec<Listed>, NoAnswer> {
    let all: Vec<json::Listed> =
        answer::body(&socket.get("/containers/json?all=true", LIST_BYTES).await?)?;
    all.into_iter().map(json::listed).collect()
}

/// The same of what `podman ps --format json` prints.
pub(super) fn printed(json: &[u8]) -> Result<Vec<Listed>, NoAnswer> {
    let all: Vec<json::Listed> =
        serde_json::from_slice(json).map_err(|error| answer::no_form(&error))?;
    all.into_iter().map(json::listed).collect()
}
