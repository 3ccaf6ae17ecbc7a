//! What containers and networks look like to whoever made them: found by their name or listed, with labels, state and how they
//! ended. All of it in Docker's API, which both engines speak. "None" is an engine's own word, never a guess.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    Engine,
    answer::{self, shown},
    http::Reply,
    is_whole,
    socket::{CONTAINER_BYTES, LIST_BYTES, Socket, talk},
    way::NoAnswer,
};
use crate::ident::{ContainerId, Pid};

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
    /// The devices that it asks for, in the words in which they were asked for: the ids of Docker's requests (`0`, `GPU-…`, `all`
    /// for a request of all), then the paths or the CDI names (`nvidia.com/gpu=0`) of devices. Podman tells no requests.
    pub device_requests: Vec<String>,
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
    /// The words: Docker's `StateString` (moby container/state.go), Podman's `ContainerStatus` (libpod/define/containerstate.go).
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

/// A network of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name. Docker before 25 lets several networks have one, and then finds none by it.
    pub name: String,
    /// What is attached to it now: the id of the container, or Docker's `ep-…` where the container is no more and its endpoint is
    /// left over; then the name of the container.
    pub attached: Vec<(ContainerId, String)>,
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

/// A network by its whole name or whole id. None = its engine says that it knows no such network.
pub fn network(
    engine: &Engine,
    name: &str,
    timeout: Duration,
) -> Result<Option<Network>, NoAnswer> {
    let wanted = plain(name)?;
    talk(engine, timeout, async |mut socket| look_up_network(&mut socket, wanted).await)
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
    if reply.status == 404 && answer::is_unknown(&reply) {
        return Ok(None);
    }
    inspected(body(&reply)?, asked, socket.counts_as_we_do()).map(Some)
}

/// Engines find a container by the beginning of its id, where no other has that name (moby daemon/container.go, `GetContainer`).
fn may_begin_an_id(wanted: &str) -> bool {
    wanted.len() < 64 && wanted.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

async fn all(socket: &mut Socket) -> Result<Vec<Listed>, NoAnswer> {
    let all: Vec<ListedJson> = body(&socket.get("/containers/json?all=true", LIST_BYTES).await?)?;
    all.into_iter().map(listed).collect()
}

pub(super) async fn look_up_network(
    socket: &mut Socket,
    wanted: &str,
) -> Result<Option<Network>, NoAnswer> {
    let found;
    let asked = if may_begin_an_id(wanted) {
        let all: Vec<NetworkJson> = body(&socket.get("/networks", LIST_BYTES).await?)?;
        let Some(network) = all.into_iter().find(|network| network.name == wanted) else {
            return Ok(None);
        };
        found = network.id;
        plain(&found)?
    } else {
        wanted
    };
    let reply = socket.get(&format!("/networks/{asked}"), LIST_BYTES).await?;
    if reply.status == 404 && answer::is_unknown_network(&reply) {
        return Ok(None);
    }
    let NetworkJson { id, name, containers } = body(&reply)?;
    if asked != id && asked != name {
        let why = format!("it answered for another network, '{}'", shown(&name));
        return Err(NoAnswer::Strange(why));
    }
    let attached = containers.unwrap_or_default().into_iter();
    let attached = attached.map(|(id, endpoint)| (ContainerId(id), endpoint.name)).collect();
    Ok(Some(Network { id, name, attached }))
}

fn body<T: DeserializeOwned>(reply: &Reply) -> Result<T, NoAnswer> {
    answer::body(reply)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkJson {
    id: String,
    name: String,
    containers: Option<BTreeMap<String, EndpointJson>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointJson {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedJson {
    id: String,
    names: Option<Vec<String>>,
    image: String,
    labels: Option<BTreeMap<String, String>>,
    state: String,
    network_settings: Option<NetworksJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworksJson {
    networks: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

fn listed(json: ListedJson) -> Result<Listed, NoAnswer> {
    let id = ContainerId(json.id);
    if !is_whole(&id) {
        return Err(NoAnswer::Strange(format!("its list has '{}'", shown(&id.0))));
    }
    // Docker lists what other containers call it, too: `/other/alias`.
    let names = json.names.unwrap_or_default();
    let name = names.iter().find_map(|text| answer::name(text)).unwrap_or_else(|| id.short());
    let networks = json.network_settings.and_then(|settings| settings.networks);
    Ok(Listed {
        name: name.to_owned(),
        labels: json.labels.unwrap_or_default(),
        state: Phase::of(&json.state),
        image: json.image,
        networks: networks.unwrap_or_default().into_keys().collect(),
        id,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MadeJson {
    id: String,
    name: String,
    state: StateJson,
    host_config: Option<HostConfigJson>,
    config: ConfigJson,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StateJson {
    status: String,
    running: bool,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    restarting: bool,
    #[serde(default, rename = "OOMKilled")]
    oom_killed: bool,
    pid: u32,
    exit_code: Option<i64>,
    error: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    health: Option<HealthJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthJson {
    status: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct HostConfigJson {
    restart_policy: Option<RestartPolicyJson>,
    device_requests: Option<Vec<DeviceRequestJson>>,
    devices: Option<Vec<DeviceJson>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicyJson {
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeviceRequestJson {
    count: Option<i64>,
    #[serde(rename = "DeviceIDs")]
    ids: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeviceJson {
    path_on_host: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigJson {
    image: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    tty: bool,
}

fn inspected(json: MadeJson, asked: &str, counts_as_we_do: bool) -> Result<Inspected, NoAnswer> {
    let MadeJson { id, name, state, host_config, config } = json;
    let name = name.strip_prefix('/').unwrap_or(&name).to_owned();
    let id = ContainerId(id);
    if !is_whole(&id) || (asked != id.0 && asked != name) {
        let why = format!("it answered for another container, '{}'", shown(&id.0));
        return Err(NoAnswer::Strange(why));
    }
    let host = host_config.unwrap_or_default();
    let policy = host.restart_policy.and_then(|policy| policy.name);
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    // Go's zero of a time, which Docker writes for "never".
    let time = |text: Option<String>| set(text).filter(|text| !text.starts_with("0001-"));
    let phase = phase(&state)?;
    let pid = Some(Pid(state.pid)).filter(|pid| counts_as_we_do && *pid != Pid::OUTSIDE);
    let made = Made {
        main_pid: pid,
        exit_code: state.exit_code.filter(|code| has_ended(&phase, *code)),
        state: phase,
        oom_killed: state.oom_killed,
        error: state.error.unwrap_or_default(),
        restart_policy: policy.map(|word| if word.is_empty() { "no".to_owned() } else { word }),
        started_at: time(state.started_at),
        finished_at: time(state.finished_at),
        health: set(state.health.and_then(|health| health.status)).filter(|word| word != "none"),
        device_requests: devices(host.device_requests, host.devices),
        image: config.image.unwrap_or_default(),
        labels: config.labels.unwrap_or_default(),
        id,
        name,
    };
    Ok(Inspected { made, has_terminal: config.tty })
}

/// A state that contradicts itself is none.
fn phase(json: &StateJson) -> Result<Phase, NoAnswer> {
    let StateJson { status, running, paused, restarting, .. } = json;
    match Phase::of(status) {
        Phase::Running if *restarting => Ok(Phase::Restarting),
        Phase::Running if *paused => Ok(Phase::Paused),
        // Where it speaks as Docker does, Podman calls a stopping one running, and says beside it that it does not run.
        Phase::Running if !running => Ok(Phase::Stopping),
        Phase::Created | Phase::Exited | Phase::Dead if *running => {
            let why = format!("its state is '{}', running: {running}", shown(status));
            Err(NoAnswer::Strange(why))
        }
        phase @ (Phase::Created
        | Phase::Running
        | Phase::Paused
        | Phase::Restarting
        | Phase::Stopping
        | Phase::Exited
        | Phase::Dead
        | Phase::Removing
        | Phase::Other(_)) => Ok(phase),
    }
}

/// Engines write 0 for a run that lasts or never was. After a start that failed Docker calls it created, with a code.
fn has_ended(phase: &Phase, code: i64) -> bool {
    match phase {
        Phase::Created => code != 0,
        Phase::Running | Phase::Paused | Phase::Stopping | Phase::Other(_) => false,
        Phase::Restarting | Phase::Exited | Phase::Dead | Phase::Removing => true,
    }
}

fn devices(
    requests: Option<Vec<DeviceRequestJson>>,
    devices: Option<Vec<DeviceJson>>,
) -> Vec<String> {
    let requested = requests.into_iter().flatten().flat_map(|request| {
        let ids = request.ids.unwrap_or_default();
        // -1 = all there are (Docker's `--gpus all`).
        let is_all = ids.is_empty() && request.count == Some(-1);
        if is_all { vec!["all".to_owned()] } else { ids }
    });
    let paths = devices.into_iter().flatten().map(|device| device.path_on_host);
    requested.chain(paths).collect()
}
