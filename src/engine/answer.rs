//! What an engine's JSON says. Docker's API, Podman's own (libpod) and `podman inspect` write a container alike, as far as
//! we read it. What does not fit is no answer: `Unreadable`, never `Gone`, and never a guess.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{Version, http::Reply, way::NoAnswer};
use crate::{
    ident::{ContainerId, EngineKind, EngineRef, Pid, Port, Proto},
    snapshot::{Container, ContainerState, Published, Publisher, Seen, Store},
};

/// Up to which we know Docker's API; a newer engine is asked in this one, as long as it speaks it.
const NEWEST_API: (u32, u32) = (1, 51);
/// Every port of TCP and UDP on two addresses. A range is written in a few bytes and takes megabytes when it is counted up.
const MOST_PUBLISHED: usize = 1 << 18;
/// More of an engine's words than we show.
const MOST_CHARS: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VersionJson {
    version: String,
    api_version: String,
    #[serde(rename = "MinAPIVersion")]
    oldest: Option<String>,
    components: Option<Vec<Component>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
    details: Option<BTreeMap<String, String>>,
}

/// An engine that we understand, and how it wants to be spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dialect {
    pub(super) version: Version,
    /// Before the paths of Docker's API, which both speak: `/v1.41`.
    pub(super) docker: String,
    /// Before those of the engine's own: the same, or `/v4.3.1/libpod`.
    pub(super) own: String,
}

/// `GET /version`. Podman answers it in Docker's form, and is known by its component's name.
pub(super) fn dialect(reply: &Reply) -> Result<Dialect, NoAnswer> {
    let json: VersionJson = body(reply)?;
    let components = json.components.unwrap_or_default();
    let podman = components.into_iter().find(|c| c.name == "Podman Engine");
    let docker = format!("/v{}", agreed(&json.api_version, json.oldest.as_deref())?);
    let version = |kind| Version { kind, version: shown(&json.version) };
    let Some(podman) = podman else {
        return Ok(Dialect { version: version(EngineKind::Docker), own: docker.clone(), docker });
    };
    let own = podman.details.and_then(|mut details| details.remove("APIVersion"));
    let own = own.unwrap_or_else(|| json.version.clone());
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    if own.is_empty() || !own.chars().all(is_plain) {
        return Err(NoAnswer::Strange(format!("its version is '{}'", shown(&own))));
    }
    Ok(Dialect { version: version(EngineKind::Podman), docker, own: format!("/v{own}/libpod") })
}

/// The version of the API that both speak: the engine's newest, no newer than ours, no older than its oldest.
fn agreed(newest: &str, oldest: Option<&str>) -> Result<String, NoAnswer> {
    let read = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        Some((major, minor))
    };
    let version = |text: &str| {
        let why = || NoAnswer::Strange(format!("its API's version is '{}'", shown(text)));
        read(text).ok_or_else(why)
    };
    let oldest = oldest.map_or(Ok((0, 0)), version)?;
    let (major, minor) = version(newest)?.min(NEWEST_API).max(oldest);
    Ok(format!("{major}.{minor}"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerJson {
    id: String,
    name: String,
    state: StateJson,
    #[serde(default)]
    restart_count: u64,
    host_config: Option<HostConfig>,
    network_settings: Option<NetworkSettings>,
    config: Option<Config>,
    graph_driver: Option<GraphDriver>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct GraphDriver {
    data: Option<BTreeMap<String, String>>,
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
    pid: u32,
    // Podman before 4 calls it `Healthcheck`.
    #[serde(alias = "Healthcheck")]
    health: Option<Health>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    status: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    restart_policy: Option<RestartPolicy>,
    pid_mode: Option<String>,
    network_mode: Option<String>,
    port_bindings: Option<Bindings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    ports: Option<Bindings>,
}

/// By `80/tcp`.
pub(super) type Bindings = BTreeMap<String, Option<Vec<Binding>>>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Binding {
    host_ip: Option<String>,
    host_port: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Config {
    labels: Option<BTreeMap<String, String>>,
}

/// The answer to "do you know this id?" at an engine's socket.
pub(super) fn container(reply: &Reply, engine: EngineRef, id: &ContainerId) -> Seen<Container> {
    match reply.status {
        200 => read_container(&reply.body, engine, id),
        404 if is_unknown(reply) => Seen::Gone,
        401 | 403 => Seen::Denied,
        _ => refusal(reply).of(engine),
    }
}

/// One container's JSON. It must be the one that was asked for: engines also find names and beginnings of ids.
fn read_container(json: &[u8], engine: EngineRef, id: &ContainerId) -> Seen<Container> {
    match serde_json::from_slice(json) {
        Ok(json) => convert(json, engine, id),
        Err(error) => no_form(&error).of(engine),
    }
}

/// What `podman inspect` prints: a list of one.
pub(super) fn read_listed(json: &[u8], engine: EngineRef, id: &ContainerId) -> Seen<Container> {
    match serde_json::from_slice::<[ContainerJson; 1]>(json) {
        Ok([json]) => convert(json, engine, id),
        Err(error) => no_form(&error).of(engine),
    }
}

/// A container's name, without Docker's slash; none where no engine would give it: it stands in commands that we advise.
pub(super) fn name(text: &str) -> Option<&str> {
    let name = text.strip_prefix('/').unwrap_or(text);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    (begins && name.len() <= 128 && name.chars().all(is_plain)).then_some(name)
}

fn convert(json: ContainerJson, engine: EngineRef, id: &ContainerId) -> Seen<Container> {
    if json.id != id.0 {
        let why = format!("it answered for another container, '{}'", shown(&json.id));
        return NoAnswer::Strange(why).of(engine);
    }
    let Some(state) = state(&json.state) else {
        let StateJson { status, running, .. } = &json.state;
        let why = format!("its state is '{}', running: {running}", shown(status));
        return NoAnswer::Strange(why).of(engine);
    };
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    let settings = json.host_config.unwrap_or_default();
    let now = json.network_settings.and_then(|network| network.ports);
    let published: BTreeSet<Published> =
        [now, settings.port_bindings].iter().flatten().flat_map(published).collect();
    Seen::Known(Container {
        engine,
        id: id.clone(),
        name: name(&json.name).map_or_else(|| id.short().to_owned(), str::to_owned),
        state,
        main_pid: Some(Pid(json.state.pid)).filter(|pid| *pid != Pid::OUTSIDE),
        restarts: json.restart_count,
        restart_policy: set(settings.restart_policy.and_then(|policy| policy.name)),
        health: set(json.state.health.and_then(|health| health.status)),
        pid_mode: settings.pid_mode.unwrap_or_default(),
        network_mode: settings.network_mode.unwrap_or_default(),
        published: published.into_iter().collect(),
        upper_dir: json
            .graph_driver
            .and_then(|driver| driver.data?.remove("UpperDir"))
            .map(PathBuf::from)
            .filter(|path| path.is_absolute()),
        labels: json.config.and_then(|config| config.labels).unwrap_or_default(),
    })
}

/// None for a word that we do not know and for a state that contradicts itself. The words: Docker's `StateString` (moby
/// container/state.go), Podman's `ContainerStatus` (libpod/define/containerstate.go); its `unknown` and `bad state` are none.
fn state(json: &StateJson) -> Option<ContainerState> {
    let StateJson { status, running, paused, restarting, .. } = json;
    match status.as_str() {
        "restarting" => Some(ContainerState::Restarting),
        "running" if *restarting => Some(ContainerState::Restarting),
        "running" if *paused => Some(ContainerState::Paused),
        "running" if *running => Some(ContainerState::Running),
        "paused" => Some(ContainerState::Paused),
        "created" | "configured" | "initialized" | "exited" | "stopped" | "stopping" | "dead"
        | "removing"
            if !running =>
        {
            Some(ContainerState::NotRunning(status.clone()))
        }
        _ => None,
    }
}

pub(super) fn published(bindings: &Bindings) -> impl Iterator<Item = Published> {
    bindings.iter().flat_map(|(inside, outside)| {
        let outside = outside.iter().flatten();
        outside.filter_map(move |binding| one_published(inside, binding))
    })
}

/// None for what names no port: SCTP, a port that the engine is still to choose, a range to choose it from.
fn one_published(inside: &str, outside: &Binding) -> Option<Published> {
    let number = |text: &str| text.parse().ok().and_then(Port::new);
    let (container_port, proto) = match inside.split_once('/')? {
        (port, "tcp") => (number(port)?, Proto::Tcp),
        (port, "udp") => (number(port)?, Proto::Udp),
        (_, _) => return None,
    };
    let port = number(outside.host_port.as_deref()?)?;
    let address = match outside.host_ip.as_deref() {
        None | Some("") => None,
        Some(address) => Some(address.parse().ok()?),
    };
    Some(Published { address, port, proto, container_port })
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "Id")]
    id: String,
}

/// All containers' ids.
pub(super) fn all(reply: &Reply) -> Result<Vec<ContainerId>, NoAnswer> {
    Ok(ids(body(reply)?))
}

/// The same of what `podman ps` prints.
pub(super) fn listed(json: &[u8]) -> Result<Vec<ContainerId>, NoAnswer> {
    serde_json::from_slice(json).map(ids).map_err(|error| no_form(&error))
}

fn ids(listed: Vec<Listed>) -> Vec<ContainerId> {
    listed.into_iter().map(|container| ContainerId(container.id)).collect()
}

/// One of a list: Docker's `GET /containers/json`, Podman's own and `podman ps`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RunningJson {
    id: String,
    names: Option<Vec<String>>,
    state: String,
    pid: Option<u32>,
    ports: Option<Vec<PortJson>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortJson {
    Docker {
        #[serde(rename = "IP")]
        address: Option<String>,
        #[serde(rename = "PrivatePort")]
        inside: u16,
        /// None where it is not published.
        #[serde(rename = "PublicPort")]
        outside: Option<u16>,
        #[serde(rename = "Type")]
        proto: String,
    },
    Podman {
        #[serde(rename = "host_ip")]
        address: Option<String>,
        #[serde(rename = "container_port")]
        inside: u16,
        #[serde(rename = "host_port")]
        outside: u16,
        /// So many ports from there on.
        range: Option<u16>,
        #[serde(rename = "protocol")]
        proto: String,
    },
}

/// What runs, and which ports of the host are its own.
pub(super) fn running(reply: &Reply, engine: EngineRef) -> Result<Vec<Publisher>, NoAnswer> {
    publishers(body(reply)?, engine)
}

/// The same of what `podman ps` prints.
pub(super) fn read_running(json: &[u8], engine: EngineRef) -> Result<Vec<Publisher>, NoAnswer> {
    let all: Vec<RunningJson> = serde_json::from_slice(json).map_err(|error| no_form(&error))?;
    publishers(all, engine)
}

/// Of those that run, as far as we know the word for what they do: the others list ports too, and have none.
fn publishers(all: Vec<RunningJson>, engine: EngineRef) -> Result<Vec<Publisher>, NoAnswer> {
    let is_down = |word: &str| {
        matches!(word, "created" | "configured" | "exited" | "stopped" | "dead" | "removing")
    };
    let up = all.into_iter().filter(|json| !is_down(&json.state));
    let mut left = MOST_PUBLISHED;
    up.map(|json| publisher(json, engine, &mut left)).collect()
}

fn publisher(
    json: RunningJson,
    engine: EngineRef,
    left: &mut usize,
) -> Result<Publisher, NoAnswer> {
    let id = ContainerId(json.id);
    if !super::is_whole(&id) {
        return Err(NoAnswer::Strange(format!("its list has '{}'", shown(&id.0))));
    }
    let names = json.names.unwrap_or_default();
    let name = names.first().and_then(|text| name(text)).unwrap_or_else(|| id.short()).to_owned();
    let mut published = Vec::new();
    for port in json.ports.unwrap_or_default() {
        let (address, inside, outside, proto, range) = match port {
            PortJson::Docker { outside: None, .. } => continue,
            PortJson::Docker { address, inside, outside: Some(outside), proto } => {
                (address, inside, outside, proto, 1)
            }
            PortJson::Podman { address, inside, outside, range, proto } => {
                (address, inside, outside, proto, range.unwrap_or(1).max(1))
            }
        };
        let strange = || NoAnswer::Strange(format!("{name} publishes no port that we can read"));
        let address = match address.as_deref() {
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| strange())?),
        };
        let proto = match proto.as_str() {
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            _ => continue,
        };
        let why = || NoAnswer::Strange("it publishes more ports than there can be".to_owned());
        *left = left.checked_sub(usize::from(range)).ok_or_else(why)?;
        for step in 0..range {
            let number = |first: u16| first.checked_add(step).and_then(Port::new);
            let (Some(port), Some(container_port)) = (number(outside), number(inside)) else {
                return Err(strange());
            };
            published.push(Published { address, port, proto, container_port });
        }
    }
    let main_pid = json.pid.map(Pid).filter(|pid| *pid != Pid::OUTSIDE);
    Ok(Publisher { engine, id, name, main_pid, published })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerInfo {
    docker_root_dir: String,
    driver: String,
    driver_status: Option<Vec<Vec<String>>>,
}

#[derive(Deserialize)]
struct PodmanInfo {
    store: PodmanStore,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodmanStore {
    graph_root: String,
    graph_driver_name: String,
}

/// Where it keeps its containers.
pub(super) fn store(reply: &Reply, kind: EngineKind) -> Result<Store, NoAnswer> {
    match kind {
        EngineKind::Docker => {
            let info: DockerInfo = body(reply)?;
            // [["driver-type", "io.containerd.snapshotter.v1"]], where containerd has the images.
            let words = info.driver_status.iter().flatten().flatten();
            let is_containerds =
                { words }.any(|word| word.starts_with("io.containerd.snapshotter"));
            let root = info.docker_root_dir.into();
            checked(Store { root, driver: info.driver, holds_layers: !is_containerds })
        }
        EngineKind::Podman => checked(podmans(body(reply)?)),
    }
}

/// The same of what `podman info` prints.
pub(super) fn podman_store(json: &[u8]) -> Result<Store, NoAnswer> {
    let info = serde_json::from_slice(json).map_err(|error| no_form(&error))?;
    checked(podmans(info))
}

fn podmans(PodmanInfo { store }: PodmanInfo) -> Store {
    Store { root: store.graph_root.into(), driver: store.graph_driver_name, holds_layers: true }
}

fn checked(store: Store) -> Result<Store, NoAnswer> {
    if store.root.is_absolute() {
        Ok(store)
    } else {
        Err(NoAnswer::Strange("its root is no absolute path".to_owned()))
    }
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
    /// Podman's.
    cause: Option<String>,
}

/// Whether an engine says that it knows no such container. Not every 404 says so: of a path that it does not know Docker
/// says "page not found", and a server that is no engine says what it likes.
pub(super) fn is_unknown(reply: &Reply) -> bool {
    says(reply, |text| text.contains("no such container"))
}

/// The same of a network: Docker's `network NAME not found`, Podman's `network not found` behind its own words.
pub(super) fn is_unknown_network(reply: &Reply) -> bool {
    let is_unknown = |text: &str| {
        let begins = text.starts_with("network ") || text.contains("no such network");
        begins && (text.ends_with(" not found") || text.contains("no such network"))
    };
    says(reply, |text| is_unknown(text) || text.ends_with(": network not found"))
}

/// The same of an image: Docker's and Podman's `No such image`.
pub(super) fn is_no_image(reply: &Reply) -> bool {
    says(reply, |text| text.contains("no such image") || text.contains("image not known"))
}

/// Whether it says that another has the name.
pub(super) fn is_about_a_name(reply: &Reply) -> bool {
    says(reply, |text| text.contains("name") && text.contains("already in use"))
}

/// Whether an engine's own words, in lower case, say so.
fn says(reply: &Reply, is_so: impl Fn(&str) -> bool) -> bool {
    serde_json::from_slice::<Refusal>(&reply.body).is_ok_and(|refusal| {
        let is_so = |text: &str| is_so(&text.to_lowercase());
        is_so(&refusal.message) || refusal.cause.as_deref().is_some_and(is_so)
    })
}

/// Docker's and Podman's words for a network to which something is attached.
pub(super) fn is_in_use(reply: &Reply) -> bool {
    says(reply, |text| {
        text.contains("has active endpoints") || text.contains("network is being used")
    })
}

/// Their words for a container that is not attached to it; the second are Docker's of one that it does not know.
pub(super) fn is_not_attached(reply: &Reply) -> bool {
    says(reply, |text| {
        let is_no_endpoint = text.starts_with("endpoint ") && text.ends_with(" not found");
        text.contains(" is not connected to ") || is_no_endpoint
    })
}

/// Podman's words for what an order cannot be given now (libpod/define/errors.go, ErrCtrStateInvalid).
pub(super) fn is_in_wrong_state(text: &str) -> bool {
    text.contains("container state improper")
}

/// An engine's own words of why not, else the beginning of what came.
pub(super) fn message(reply: &Reply) -> String {
    match serde_json::from_slice::<Refusal>(&reply.body) {
        Ok(refusal) => shown(&refusal.message),
        Err(_) => shown(&String::from_utf8_lossy(&reply.body)),
    }
}

pub(super) fn refusal(reply: &Reply) -> NoAnswer {
    NoAnswer::Strange(format!("it answered {}: {}", reply.status, message(reply)))
}

pub(super) fn body<T: DeserializeOwned>(reply: &Reply) -> Result<T, NoAnswer> {
    match reply.status {
        200 => serde_json::from_slice(&reply.body).map_err(|error| no_form(&error)),
        401 | 403 => Err(NoAnswer::Denied),
        _ => Err(refusal(reply)),
    }
}

pub(super) fn no_form(error: &serde_json::Error) -> NoAnswer {
    NoAnswer::Strange(format!("not an engine's answer: {}", shown(&error.to_string())))
}

/// The first line, as far as we show it.
pub(super) fn shown(text: &str) -> String {
    text.trim().lines().next().unwrap_or_default().chars().take(MOST_CHARS).collect()
}
