//! How a model is launched: a spec, its name, its GPUs and the engine → what the engine is asked to create, or the command
//! that is run. Values only: nothing is looked up, and no file or engine is asked.

mod body;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

pub use body::{Create, DeviceRequest, HostConfig, Mount, PortBinding, RestartPolicy};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    backend::{
        self, Backend, BackendName, Health, MODELS, Refusal, Served, Spec, Told, check,
        spec::Engine,
    },
    engine::Version,
    ident::{EngineKind, GpuName, ModelName},
};

/// Which installation a container belongs to: each has its own registry, and touches no other's.
pub const INSTANCE_LABEL: &str = "io.portreeve.instance";
/// The name of the model that a container serves.
pub const MODEL_LABEL: &str = "io.portreeve.model";
/// Its backend.
pub const BACKEND_LABEL: &str = "io.portreeve.backend";

/// How long a start may load where its spec says nothing: some hundred gigabytes from a slow disk.
const LOAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The first Podman whose API passes GPUs on; before that a container starts without them and nobody is told (its
/// pkg/api/handlers/compat/containers_create.go).
const PODMAN_WITH_GPUS: (u32, u32) = (5, 4);

/// The GPUs that a spec's names stand for on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cards {
    /// NVIDIA's by UUID, `GPU-…` or `MIG-…`: numbers mean one thing to CUDA and another to engines.
    pub nvidia: Vec<String>,
    /// AMD's, by the number that HIP counts.
    pub amd: Vec<u32>,
}

/// A model as a container.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The container's name, `vllm-model-NAME`.
    pub container: String,
    /// The body of `POST /containers/create?name=`.
    pub body: Create,
    /// What the server was told.
    pub told: Told,
    /// How it is spoken to.
    pub reach: Reach,
}

/// A model as a process of its own.
#[derive(Debug, Clone)]
pub struct Process {
    /// Program and arguments.
    pub command: Vec<String>,
    /// What is added to its environment.
    pub environment: BTreeMap<&'static str, String>,
    /// What whoever starts it is to enforce.
    pub limits: Limits,
    /// What the server was told.
    pub told: Told,
    /// How it is spoken to.
    pub reach: Reach,
}

/// What a model may use. What is none is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
    /// Processors, in thousandths.
    pub cpu_milli: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// How a launched model is spoken to, from the host.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Where it is asked; loopback where it listens everywhere.
    pub address: SocketAddr,
    /// Its health endpoint; none where it is not to be asked.
    pub health: Option<Health>,
    /// What it says it serves.
    pub served: Served,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// How long it may load.
    pub load_timeout: Duration,
}

/// What a model's container is called.
pub fn container_name(name: &ModelName, backend: BackendName) -> String {
    format!("{backend}-model-{name}")
}

/// A container on this engine. Refused where the engine could not do all that is asked: never with less.
pub fn container(
    name: &ModelName,
    instance: &str,
    spec: &Spec,
    cards: &Cards,
    engine: &Version,
) -> Result<Launch, Refusal> {
    whole(name, spec, cards)?;
    is_container(spec, engine)?;
    let backend = spec.backend.backend();
    let told = told_in_container(spec, backend)?;
    let mut command = words(backend.in_image);
    command.extend((backend.arguments)(spec, &told));
    command.extend(spec.extra_args.iter().cloned());
    let mut environment = environment(spec, backend, &told);
    environment.extend(backend.cache.variable.map(|key| (key, backend.cache.path.to_owned())));
    let body = Create {
        image: spec.image.clone().unwrap_or_else(|| backend.image.to_owned()),
        cmd: command,
        env: environment.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
        labels: labels(name, instance, spec.backend),
        exposed_ports: exposed(spec, &told),
        stop_timeout: backend.grace.as_secs(),
        host_config: host_config(spec, backend, &told, cards, engine)?,
    };
    let container = container_name(name, spec.backend);
    Ok(Launch { container, body, told, reach: reach(spec, backend) })
}

/// A process of the host.
pub fn process(name: &ModelName, spec: &Spec, cards: &Cards) -> Result<Process, Refusal> {
    whole(name, spec, cards)?;
    check::is_process(spec)?;
    let backend = spec.backend.backend();
    let told = Told { model: spec.model.clone(), address: spec.host, port: spec.port() };
    let mut command = own_command(spec, backend);
    command.extend((backend.arguments)(spec, &told));
    command.extend(spec.extra_args.iter().cloned());
    let mut environment = environment(spec, backend, &told);
    environment.extend(visible(cards));
    let (limits, reach) = (limits(spec)?, reach(spec, backend));
    Ok(Process { command, environment, limits, told, reach })
}

/// All of it, the GPUs too.
fn whole(name: &ModelName, spec: &Spec, cards: &Cards) -> Result<(), Refusal> {
    backend::check(name, spec).into_iter().next().map_or(Ok(()), Err)?;
    check_cards(spec, cards)
}

fn check_cards(spec: &Spec, cards: &Cards) -> Result<(), Refusal> {
    let given = cards.nvidia.len() + cards.amd.len();
    if !spec.gpus.is_empty() && given == 0 {
        let names: Vec<String> = spec.gpus.iter().map(ToString::to_string).collect();
        return Err(Refusal::NoCards(names.join(", ")));
    }
    for uuid in &cards.nvidia {
        if !matches!(uuid.parse(), Ok(GpuName::Uuid(_))) {
            return Err(check::text("GPU", uuid, "expected a UUID (GPU-…, MIG-…)"));
        }
    }
    match spec.tensor_parallel {
        Some(wanted) if given > 0 && wanted as usize > given => {
            Err(Refusal::TooFewCards { wanted, given })
        }
        Some(_) | None if spec.is_container && !cards.amd.is_empty() => {
            Err(Refusal::AmdInContainer)
        }
        Some(_) | None => Ok(()),
    }
}

/// That it is to be a container, and this engine's.
fn is_container(spec: &Spec, engine: &Version) -> Result<(), Refusal> {
    if !spec.is_container {
        return Err(Refusal::NotAProcess);
    }
    match spec.engine.map(Engine::kind) {
        Some(wanted) if wanted != engine.kind => {
            Err(Refusal::OtherEngine { wanted, found: engine.kind })
        }
        Some(_) | None => Ok(()),
    }
}

/// The backend's command, with the spec's program in the place of its own: `/opt/vllm/bin/vllm serve`.
fn own_command(spec: &Spec, backend: &Backend) -> Vec<String> {
    let mut command = words(backend.command);
    if let (Some(program), Some(first)) = (&spec.program, command.first_mut()) {
        *first = program.to_string_lossy().into_owned();
    }
    command
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().copied().map(str::to_owned).collect()
}

/// On the host's network it listens as the spec says, else everywhere in a namespace of its own, at the backend's usual port.
fn told_in_container(spec: &Spec, backend: &Backend) -> Result<Told, Refusal> {
    let model = check::model_in_container(spec)?;
    if spec.is_on_hosts_network() {
        return Ok(Told { model, address: spec.host, port: spec.port() });
    }
    Ok(Told { model, address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), port: backend.port })
}

/// `SPT_NOENV`: a title that it sets leaves its environment readable, which tells whose it is (setproctitle's README).
fn environment(spec: &Spec, backend: &Backend, told: &Told) -> BTreeMap<&'static str, String> {
    let ours = [("SPT_NOENV", "1".to_owned()), ("TOKENIZERS_PARALLELISM", "false".to_owned())];
    ours.into_iter().chain((backend.environment)(spec, told)).collect()
}

/// In a container the engine passes only these; a process would see all GPUs.
fn visible(cards: &Cards) -> impl Iterator<Item = (&'static str, String)> {
    let amd: Vec<String> = cards.amd.iter().map(u32::to_string).collect();
    let all =
        [("CUDA_VISIBLE_DEVICES", cards.nvidia.join(",")), ("HIP_VISIBLE_DEVICES", amd.join(","))];
    all.into_iter().filter(|(_, list)| !list.is_empty())
}

fn labels(
    name: &ModelName,
    instance: &str,
    backend: BackendName,
) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        (INSTANCE_LABEL, instance.to_owned()),
        (MODEL_LABEL, name.to_string()),
        (BACKEND_LABEL, backend.to_string()),
    ])
}

/// As both engines write a port of a container.
fn key(told: &Told) -> String {
    format!("{}/tcp", told.port)
}

fn exposed(spec: &Spec, told: &Told) -> Map<String, Value> {
    let is_published = !spec.is_on_hosts_network();
    is_published.then(|| (key(told), Value::Object(Map::new()))).into_iter().collect()
}

fn host_config(
    spec: &Spec,
    backend: &Backend,
    told: &Told,
    cards: &Cards,
    engine: &Version,
) -> Result<HostConfig, Refusal> {
    let limits = limits(spec)?;
    let binding =
        PortBinding { host_ip: spec.host.to_string(), host_port: spec.port().to_string() };
    let is_published = !spec.is_on_hosts_network();
    Ok(HostConfig {
        restart_policy: RestartPolicy { name: "no" },
        network_mode: spec.network.clone(),
        port_bindings: is_published.then(|| (key(told), vec![binding])).into_iter().collect(),
        mounts: mounts(spec, backend),
        memory: limits.memory_bytes,
        nano_cpus: limits.cpu_milli.map(|milli| i64::from(milli) * 1_000_000),
        pids_limit: limits.pids.map(i64::from),
        shm_size: backend.shm_bytes,
        ipc_mode: "private",
        device_requests: device_requests(cards, engine)?,
    })
}

/// The weights, read-only, and what the server downloads.
fn mounts(spec: &Spec, backend: &Backend) -> Vec<Mount> {
    let weights = spec.models_dir.as_ref().map(|dir| Mount {
        kind: "bind",
        source: dir.to_string_lossy().into_owned(),
        target: MODELS,
        read_only: true,
    });
    let is_downloaded = !backend.models.is_file(&spec.model);
    let cache = backend.cache.volume.filter(|_| is_downloaded).map(|volume| Mount {
        kind: "volume",
        source: volume.to_owned(),
        target: backend.cache.path,
        read_only: false,
    });
    weights.into_iter().chain(cache).collect()
}

/// Docker looks the driver up by what it is to be capable of, which works with NVIDIA's hook and with CDI. Podman takes
/// CDI's names only (`nvidia-ctk cdi generate` writes GPUs by UUID, too, since 1.17).
fn device_requests(cards: &Cards, engine: &Version) -> Result<Vec<DeviceRequest>, Refusal> {
    if cards.nvidia.is_empty() {
        return Ok(Vec::new());
    }
    let request = match engine.kind {
        EngineKind::Docker => DeviceRequest {
            driver: "",
            device_ids: cards.nvidia.clone(),
            capabilities: vec![vec!["gpu"]],
        },
        EngineKind::Podman if passes_gpus(&engine.version) == Some(true) => DeviceRequest {
            driver: "cdi",
            device_ids: cards.nvidia.iter().map(|id| format!("nvidia.com/gpu={id}")).collect(),
            capabilities: Vec::new(),
        },
        EngineKind::Podman => return Err(Refusal::OldPodman(engine.version.clone())),
    };
    Ok(vec![request])
}

/// None = that is no version as Podman writes it.
fn passes_gpus(version: &str) -> Option<bool> {
    let mut parts = version.split('.').map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (parts.next(), parts.next()) else { return None };
    Some((major, minor) >= PODMAN_WITH_GPUS)
}

fn limits(spec: &Spec) -> Result<Limits, Refusal> {
    let (cpu_milli, pids) = (spec.cpu_milli, spec.pids);
    let memory_bytes = spec.memory_bytes.map(check::memory).transpose()?;
    Ok(Limits { memory_bytes, cpu_milli, pids })
}

/// How a model is spoken to, wherever it was launched.
pub fn reach_of(spec: &Spec) -> Reach {
    reach(spec, spec.backend.backend())
}

fn reach(spec: &Spec, backend: &'static Backend) -> Reach {
    let address = match spec.host {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address @ (IpAddr::V4(_) | IpAddr::V6(_)) => address,
    };
    Reach {
        address: SocketAddr::new(address, spec.port().number()),
        health: (!spec.skips_health).then_some(backend.health),
        served: backend.served,
        grace: backend.grace,
        load_timeout: spec.load_timeout.unwrap_or(LOAD_TIMEOUT),
    }
}
