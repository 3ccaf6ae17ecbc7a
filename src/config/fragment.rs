//! What one file of the configuration says, as it was typed: every value optional, every value with its place.
//! The JSON schema is derived from these types; `read` fills them.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::settings::{EngineUse, ForeignHolder, GpuNeed, Pattern, Protect, RunsIn};
use crate::{
    backend::{BackendName, Quantization, spec::Engine},
    ident::{Endpoint, GpuName, ModelName, Port, ServiceName},
};

/// Where a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Rank of the layer: 0 is the default inside the binary.
    pub layer: usize,
    /// Line, from 1.
    pub line: usize,
    /// First byte in the layer's text.
    pub start: usize,
    /// Past the last byte in the layer's text.
    pub end: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Where.
    pub place: Place,
}

/// The configuration of portreeve: one file of it. Every key is optional, `null` says nothing.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(deny_unknown_fields, title = "portreeve configuration, version 1")]
pub struct Fragment {
    /// Values for services that set none of their own.
    #[schemars(with = "Option<DefaultsFragment>")]
    pub defaults: DefaultsFragment,
    /// The services that own ports, by name.
    #[schemars(with = "Option<BTreeMap<NameText, Option<ServiceFragment>>>")]
    pub services: BTreeMap<ServiceName, At<ServiceFragment>>,
    /// The models that are declared, by name: each is guarded as a service of its name.
    #[schemars(with = "Option<BTreeMap<ModelNameText, Option<ModelFragment>>>")]
    pub models: BTreeMap<ModelName, At<ModelFragment>>,
    /// Stack-wide patterns: workers that inference servers leave behind.
    #[schemars(with = "Option<Vec<WorkerFragment>>")]
    pub patterns: Vec<At<WorkerFragment>>,
    /// Processes that are never ended, whatever else is found.
    #[schemars(with = "Option<Vec<ProtectRule>>")]
    pub protect: Vec<At<Protect>>,
    /// The container engines that may be asked.
    #[schemars(with = "Option<EnginesFragment>")]
    pub engines: EnginesFragment,
    /// How long `portreeve gate` waits.
    #[schemars(with = "Option<GateFragment>")]
    pub gate: GateFragment,
    /// Who is asked about GPUs.
    #[schemars(with = "Option<GpuSourcesFragment>")]
    pub gpus: GpuSourcesFragment,
    /// Compose files: their services and published ports are a layer right below this file.
    #[schemars(with = "Option<ComposeText>")]
    pub compose: Vec<At<ComposeFragment>>,
}

/// Who is asked about GPUs. Nobody is, unless a service or the command line names one.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "GpuSources")]
pub struct GpuSourcesFragment {
    /// NVIDIA's management library, libnvidia-ml.so.1: where it is found, never, or this file (default auto).
    #[schemars(with = "Option<GpuSourceText>")]
    pub nvml: Option<At<EngineUse>>,
    /// nvidia-smi, where the library gives no answer: where it is found, never, or this file (default auto).
    #[schemars(with = "Option<GpuSourceText>")]
    pub nvidia_smi: Option<At<EngineUse>>,
    /// How long either may take for one answer; a run's first one loads the driver (default 5s).
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<At<Duration>>,
}

/// A stack's compose files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeFragment {
    /// Absolute paths, at least one; compose lays the later over the earlier.
    pub files: Vec<PathBuf>,
    /// The profiles that are started.
    pub profiles: Vec<String>,
    /// Stands before the name of each service.
    pub prefix: Option<String>,
}

impl ComposeFragment {
    /// The project's folder, which has its `.env`: that of the first file.
    pub fn folder(&self) -> &Path {
        self.files.first().and_then(|file| file.parent()).unwrap_or(Path::new("/"))
    }
}

/// How long `portreeve gate` waits.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Gate")]
pub struct GateFragment {
    /// How long to wait for what blocks (default 30s).
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<At<Duration>>,
    /// A port is called blocked only if it has been so for this long (default 500ms).
    #[schemars(with = "Option<DurationText>")]
    pub settle: Option<At<Duration>>,
    /// The same for a GPU's memory that no process holds: drivers give it back a while after the exit (default 10s).
    #[schemars(with = "Option<DurationText>")]
    pub gpu_settle: Option<At<Duration>>,
    /// How much of a GPU must be free for a service that does not say how much it needs (default 90%).
    #[schemars(with = "Option<GpuNeedText>")]
    pub gpu_free: Option<At<GpuNeed>>,
}

/// The container engines that may be asked.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Engines")]
pub struct EnginesFragment {
    /// Docker: where it is found, never, or at this socket (default auto).
    #[schemars(with = "Option<DockerText>")]
    pub docker: Option<At<EngineUse>>,
    /// Podman, root's and users': where it is found, or never (default auto).
    #[schemars(with = "Option<PodmanText>")]
    pub podman: Option<At<EngineUse>>,
    /// How long one engine may take for all its answers (default 3s).
    #[schemars(with = "Option<DurationText>")]
    pub timeout: Option<At<Duration>>,
    /// How long an engine may take for a stop beyond the grace period (default 10s).
    #[schemars(with = "Option<DurationText>")]
    pub stop_timeout: Option<At<Duration>>,
    /// How long it may take for a kill, where the stop did not do (default 5s).
    #[schemars(with = "Option<DurationText>")]
    pub kill_timeout: Option<At<Duration>>,
    /// How long it may take for a removal (default 10s).
    #[schemars(with = "Option<DurationText>")]
    pub remove_timeout: Option<At<Duration>>,
}

/// Values for services that set none of their own.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Defaults")]
pub struct DefaultsFragment {
    /// Grace period: the time between SIGTERM and SIGKILL (default 5s).
    #[schemars(with = "Option<DurationText>")]
    pub grace: Option<At<Duration>>,
    /// A younger process is convicted of nothing (default 10s).
    #[schemars(with = "Option<DurationText>")]
    pub min_age: Option<At<Duration>>,
    /// How long to watch for a respawn after an end (default 3s).
    #[schemars(with = "Option<DurationText>")]
    pub respawn_watch: Option<At<Duration>>,
    /// What becomes of a living holder that is neither owner nor orphan (default report).
    #[schemars(with = "Option<ForeignHolderText>")]
    pub foreign_holder: Option<At<ForeignHolder>>,
}

/// A service: its ports, and how its processes are known.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Service")]
pub struct ServiceFragment {
    /// `false` drops the service.
    #[schemars(with = "Option<bool>")]
    pub enabled: Option<At<bool>>,
    /// Where the service is declared to run; elsewhere its process is left behind.
    #[schemars(with = "Option<RunsInText>")]
    pub runs_in: Option<At<RunsIn>>,
    /// The ports that the service owns.
    #[schemars(with = "Option<Vec<PortText>>")]
    pub ports: Option<At<Vec<At<Endpoint>>>>,
    /// It sets SO_REUSEADDR before it binds them, as nearly every server does (default true).
    #[schemars(with = "Option<bool>")]
    pub reuse_addr: Option<At<bool>>,
    /// The GPUs that the service computes on: one, or a list.
    #[schemars(with = "Option<GpusText>")]
    pub gpus: Option<At<Vec<At<GpuName>>>>,
    /// How much memory it needs on each of them (default: 'gpu_free' of 'gate').
    #[schemars(with = "Option<GpuNeedText>")]
    pub gpu_free: Option<At<GpuNeed>>,
    /// Regular expressions for the command lines of its processes.
    #[schemars(with = "Option<Vec<PatternText>>")]
    pub patterns: Option<At<Vec<At<PatternFragment>>>>,
    /// Grace period: the time between SIGTERM and SIGKILL.
    #[schemars(with = "Option<DurationText>")]
    pub grace: Option<At<Duration>>,
    /// What becomes of a living holder of its ports that is neither owner nor orphan.
    #[schemars(with = "Option<ForeignHolderText>")]
    pub foreign_holder: Option<At<ForeignHolder>>,
}

/// A model: what is wanted of it, by the names of 'portreeve model register'. Over all layers it needs 'backend' and 'model'.
#[derive(Debug, Clone, Default, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Model")]
pub struct ModelFragment {
    /// `false` drops the model.
    #[schemars(with = "Option<bool>")]
    pub enabled: Option<At<bool>>,
    /// Its server.
    #[schemars(with = "Option<BackendText>")]
    pub backend: Option<At<BackendName>>,
    /// Its weights: a name that the backend knows, or a path (in a container: below 'models_dir').
    #[schemars(with = "Option<ModelText>")]
    pub model: Option<At<String>>,
    /// It runs in a container (default false: as a process).
    #[schemars(with = "Option<bool>")]
    pub container: Option<At<bool>>,
    /// As a process: the program that is run, instead of the backend's own.
    #[schemars(with = "Option<FolderText>")]
    pub program: Option<At<PathBuf>>,
    /// As a process in a unit of the system: the user that it runs as (default: one of its own).
    #[schemars(with = "Option<UserText>")]
    pub run_as: Option<At<String>>,
    /// The port of this host that it serves (default: the backend's).
    #[schemars(with = "Option<PortNumberText>")]
    pub port: Option<At<Port>>,
    /// The address that it serves (default 127.0.0.1).
    #[schemars(with = "Option<AddressText>")]
    pub host: Option<At<IpAddr>>,
    /// The GPUs that it computes on: one, or a list.
    #[schemars(with = "Option<GpusText>")]
    pub gpus: Option<At<Vec<At<GpuName>>>>,
    /// Memory.
    #[schemars(with = "Option<AmountText>")]
    pub memory: Option<At<u64>>,
    /// Processors: 4.0 are four.
    #[schemars(with = "Option<ProcessorsText>")]
    pub cpu: Option<At<u32>>,
    /// Processes and threads.
    #[schemars(with = "Option<CountText>")]
    pub pids: Option<At<u32>>,
    /// The longest context, in tokens.
    #[schemars(with = "Option<CountText>")]
    pub max_model_len: Option<At<u32>>,
    /// Over how many GPUs it is spread.
    #[schemars(with = "Option<CountText>")]
    pub tensor_parallel: Option<At<u32>>,
    /// How its weights are quantised.
    #[schemars(with = "Option<QuantizationText>")]
    pub quantization: Option<At<Quantization>>,
    /// Further arguments for its server.
    #[schemars(with = "Option<Vec<String>>")]
    pub extra_args: Option<At<Vec<At<String>>>>,
    /// Another image than the backend's.
    #[schemars(with = "Option<ImageText>")]
    pub image: Option<At<String>>,
    /// This host's folder with the weights, read-only in the container.
    #[schemars(with = "Option<FolderText>")]
    pub models_dir: Option<At<PathBuf>>,
    /// The stack's network.
    #[schemars(with = "Option<NetworkText>")]
    pub network: Option<At<String>>,
    /// Its engine (default: Docker where it answers, else Podman).
    #[schemars(with = "Option<EngineText>")]
    pub engine: Option<At<Engine>>,
    /// `false`: it is not asked whether it is healthy (default true).
    #[schemars(with = "Option<bool>")]
    pub health: Option<At<bool>>,
    /// Between two questions about its health once it serves (default 30s).
    #[schemars(with = "Option<DurationText>")]
    pub health_interval: Option<At<Duration>>,
    /// For one answer (default 10s).
    #[schemars(with = "Option<DurationText>")]
    pub health_timeout: Option<At<Duration>>,
    /// So many failures in a row, and it is ended (default 3).
    #[schemars(with = "Option<CountText>")]
    pub health_failures: Option<At<u32>>,
    /// The first question comes so long after it was ready (default 60s).
    #[schemars(with = "Option<DurationText>")]
    pub health_delay: Option<At<Duration>>,
    /// How long a start may load.
    #[schemars(with = "Option<DurationText>")]
    pub load_timeout: Option<At<Duration>>,
}

/// A pattern of a service.
#[derive(Debug, Clone)]
pub struct PatternFragment {
    /// Matched anywhere in the command line.
    pub regex: Pattern,
    /// The process holds no port of its own.
    pub is_portless: bool,
}

/// A worker that an inference server leaves behind, known by its command line. A higher layer's entry of the same name
/// replaces this one.
#[derive(Debug, Clone, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Worker")]
pub struct WorkerFragment {
    /// Its name in reports.
    #[schemars(with = "NameText")]
    pub name: At<String>,
    /// Always `worker`: left behind as soon as its parent is gone.
    #[schemars(with = "WorkerText")]
    pub kind: Kind,
    /// Regular expression for its command line.
    #[schemars(with = "RegexText", rename = "match")]
    pub regex: Pattern,
    /// Grace period: the time between SIGTERM and SIGKILL.
    #[schemars(with = "Option<DurationText>")]
    pub grace: Option<At<Duration>>,
}

/// What a stack-wide pattern is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It names workers of inference servers.
    Worker,
}

/// A file, an entry with these keys, or a list of both.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Compose")]
#[expect(dead_code, reason = "it exists for its schema only")]
enum ComposeText {
    One(ComposeEntry),
    Several(Vec<ComposeEntry>),
}

/// A type that exists for its schema only: how a value is written.
macro_rules! written {
    ($($name:ident = $title:literal $schema:tt)*) => {$(
        struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

written! {
    NameText = "Name" {
        "type": "string",
        "description": "Letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
    }
    ModelNameText = "ModelName" {
        "type": "string",
        "description": "Letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,47}$"
    }
    BackendText = "Backend" { "enum": ["vllm", "llamacpp", "llama.cpp", "llama-cpp", "ollama", "tgi", "sglang"] }
    ModelText = "ModelText" { "type": "string", "pattern": "^[^-]", "maxLength": 4096 }
    PortNumberText = "PortNumber" { "type": "integer", "minimum": 1, "maximum": 65535 }
    AddressText = "Address" { "type": "string", "pattern": "^[0-9A-Fa-f:.]+$" }
    AmountText = "Amount" {
        "description": "Bytes, or an amount in powers of 1024.",
        "examples": ["32G", "512M"],
        "anyOf": [
            { "type": "integer", "minimum": 1 },
            { "type": "string", "pattern": "^[0-9]+([KkMmGgTt]?(iB|B)?)$" }
        ]
    }
    ProcessorsText = "Processors" {
        "description": "A number of processors with three places at most.",
        "examples": [4.0, 1.5],
        "anyOf": [
            { "type": "number", "exclusiveMinimum": 0 },
            { "type": "string", "pattern": "^[0-9]+(\\.[0-9]{0,3})?$" }
        ]
    }
    CountText = "Count" { "type": "integer", "minimum": 1, "maximum": 4_294_967_295_u32 }
    QuantizationText = "Quantization" { "enum": ["awq", "gptq"] }
    ImageText = "Image" { "type": "string", "pattern": "^[^-\\s]\\S*$" }
    FolderText = "Folder" { "type": "string", "pattern": "^/.", "maxLength": 4096 }
    UserText = "User" { "type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_.-]{0,30}$" }
    NetworkText = "Network" { "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$" }
    EngineText = "EngineName" { "enum": ["docker", "podman"] }
    DurationText = "Duration" {
        "type": "string",
        "description": "A whole number with its unit, at most 24h.",
        "pattern": "^[0-9]+(ms|s|m|h)$",
        "examples": ["500ms", "5s", "2m", "1h"]
    }
    PortText = "Port" {
        "description": "8091, 8091/udp, 127.0.0.1:8091, [::1]:8091/tcp, or [::]:8091/tcp6 for one that leaves IPv4 to others (IPV6_V6ONLY); TCP and every address where nothing else is written.",
        "anyOf": [
            { "type": "integer", "minimum": 1, "maximum": 65535 },
            { "type": "string", "pattern": "^([0-9.]+:|\\[[0-9A-Fa-f:.]+\\]:)?[0-9]+(/(tcp|udp)6?)?$" }
        ]
    }
    GpuSourceText = "GpuSource" {
        "anyOf": [{ "enum": ["auto", "off"] }, { "type": "string", "pattern": "^/.", "maxLength": 4096 }]
    }
    GpuNeedText = "GpuNeed" {
        "type": "string",
        "description": "A share of the GPU's memory, at most 100%, or an amount in MiB or GiB.",
        "pattern": "^([0-9]{1,3}%|[0-9]+(MiB|GiB))$",
        "examples": ["90%", "40GiB"]
    }
    GpusText = "Gpus" {
        "description": "A GPU's number as nvidia-smi shows it, its UUID (GPU-…, MIG-…), its PCI address (0000:01:00.0), or 'all': every \
                        GPU with memory of its own.",
        "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32 },
            { "type": "string", "minLength": 1, "maxLength": 64 },
            { "type": "array", "items": { "anyOf": [
                { "type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32 },
                { "type": "string", "minLength": 1, "maxLength": 64 }
            ] } }
        ]
    }
    RegexText = "Regex" {
        "type": "string",
        "description": "A regular expression (syntax of the Rust crate regex), matched anywhere in the command line, whose arguments are \
                        joined by single spaces. One that matches the empty text is refused.",
        "minLength": 1,
        "maxLength": 4096
    }
    PatternText = "Pattern" {
        "anyOf": [
            { "type": "string", "minLength": 1, "maxLength": 4096 },
            {
                "type": "object",
                "additionalProperties": false,
                "required": ["match"],
                "properties": {
                    "match": { "type": "string", "minLength": 1, "maxLength": 4096 },
                    "portless": {
                        "type": ["boolean", "null"],
                        "description": "The process holds no port of its own: the pattern alone speaks for it."
                    }
                }
            }
        ]
    }
    RunsInText = "RunsIn" {
        "anyOf": [
            { "const": "container" },
            {
                "type": "object",
                "additionalProperties": false,
                "required": ["container"],
                "properties": { "container": { "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$" } }
            },
            {
                "type": "object",
                "additionalProperties": false,
                "required": ["unit"],
                "properties": { "unit": { "type": "string", "pattern": "^[A-Za-z0-9:_.\\\\@-]+\\.(service|scope)$" } }
            }
        ]
    }
    ComposeEntry = "ComposeEntry" {
        "anyOf": [
            { "type": "string", "pattern": "^/.", "maxLength": 4096 },
            {
                "type": "object",
                "additionalProperties": false,
                "required": ["file"],
                "properties": {
                    "file": {
                        "description": "An absolute path, or several: compose lays the later over the earlier.",
                        "anyOf": [
                            { "type": "string", "pattern": "^/.", "maxLength": 4096 },
                            {
                                "type": "array",
                                "minItems": 1,
                                "items": { "type": "string", "pattern": "^/.", "maxLength": 4096 }
                            }
                        ]
                    },
                    "profiles": {
                        "description": "The profiles that are started.",
                        "type": ["array", "null"],
                        "items": { "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]*$" }
                    },
                    "prefix": {
                        "description": "Stands before the name of each service.",
                        "type": ["string", "null"],
                        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
                    }
                }
            }
        ]
    }
    ForeignHolderText = "ForeignHolder" { "enum": ["report", "reap"] }
    DockerText = "Docker" {
        "anyOf": [{ "enum": ["auto", "off"] }, { "type": "string", "pattern": "^/.", "maxLength": 4096 }]
    }
    PodmanText = "Podman" { "enum": ["auto", "off"] }
    WorkerText = "Kind" { "const": "worker" }
    ProtectRule = "Protect" {
        "description": "A glob: `*` and `?` match within one path component, `**` over several.",
        "anyOf": [
            {
                "type": "object",
                "additionalProperties": false,
                "required": ["unit"],
                "properties": { "unit": { "type": "string", "minLength": 1, "maxLength": 256 } }
            },
            {
                "type": "object",
                "additionalProperties": false,
                "required": ["exe"],
                "properties": { "exe": { "type": "string", "pattern": "^[/*]", "maxLength": 256 } }
            }
        ]
    }
}

/// The JSON schema of a file of the configuration.
pub fn schema() -> Schema {
    schemars::schema_for!(Fragment)
}
