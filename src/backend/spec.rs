//! What is wanted of a model: as it is registered on the command line or declared in the settings.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::BackendName;
use crate::ident::{EngineKind, GpuName, Port};

/// Where the folder with the weights stands in a container.
pub const MODELS: &str = "/models";

/// The network that is the host's own, as both engines call it.
const HOST_NETWORK: &str = "host";

/// How a model's weights are quantised, where its backend is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// Activation-aware weight quantisation.
    Awq,
    /// GPTQ.
    Gptq,
}

impl Quantization {
    /// As backends take it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Awq => "awq",
            Self::Gptq => "gptq",
        }
    }
}

/// A model as it is wanted. What is none is left to its backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Which server.
    pub backend: BackendName,
    /// The weights: a name of the backend's own (`meta-llama/Llama-2-70b-hf`) or a path, below `models_dir` in a container.
    pub model: String,
    /// Runs in a container; else as a process.
    pub is_container: bool,
    /// The port of the host.
    pub port: Option<Port>,
    /// The address of the host.
    pub host: IpAddr,
    /// GPUs by name; empty = none is asked for.
    #[serde(with = "gpus", default)]
    pub gpus: Vec<GpuName>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processors, in thousandths: 4.0 is 4000.
    pub cpu_milli: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// The longest context.
    pub max_model_len: Option<u32>,
    /// Over how many GPUs it is spread.
    pub tensor_parallel: Option<u32>,
    /// How its weights are quantised.
    pub quantization: Option<Quantization>,
    /// What else its backend is told.
    #[serde(default)]
    pub extra_args: Vec<String>,
    /// Another image than the backend's.
    pub image: Option<String>,
    /// The host's folder with the weights, read-only in the container.
    pub models_dir: Option<PathBuf>,
    /// The stack's network; none = the engine's default.
    pub network: Option<String>,
    /// Which engine; none = Docker where it answers, else Podman.
    pub engine: Option<Engine>,
    /// It is not asked whether it is healthy.
    #[serde(default)]
    pub skips_health: bool,
    /// How long a start may load.
    pub load_timeout: Option<Duration>,
}

/// The engine's name as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
}

impl Engine {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// The engine of this word.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Docker, Self::Podman].into_iter().find(|engine| engine.word() == word)
    }

    /// The name of a kind.
    pub fn of_kind(kind: EngineKind) -> Self {
        match kind {
            EngineKind::Docker => Self::Docker,
            EngineKind::Podman => Self::Podman,
        }
    }

    /// Which kind.
    pub fn kind(self) -> EngineKind {
        match self {
            Self::Docker => EngineKind::Docker,
            Self::Podman => EngineKind::Podman,
        }
    }
}

/// GPUs as the texts that name them.
mod gpus {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::ident::GpuName;

    pub(super) fn serialize<S: Serializer>(gpus: &[GpuName], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(gpus.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<GpuName>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

impl Spec {
    /// The port on the host: its own, else its backend's.
    pub fn port(&self) -> Port {
        self.port.unwrap_or(self.backend.backend().port)
    }

    /// Whether its ports are the host's: all that it binds, not only what is published.
    pub fn is_on_hosts_network(&self) -> bool {
        !self.is_container || self.network.as_deref() == Some(HOST_NETWORK)
    }
}

#[cfg(test)]
impl Spec {
    pub(crate) fn sample(backend: BackendName) -> Self {
        Self {
            backend,
            model: "meta-llama/Llama-2-70b-hf".to_owned(),
            is_container: true,
            port: Port::new(8000),
            host: IpAddr::from([127, 0, 0, 1]),
            gpus: Vec::new(),
            memory_bytes: None,
            cpu_milli: None,
            pids: None,
            max_model_len: None,
            tensor_parallel: None,
            quantization: None,
            extra_args: Vec::new(),
            image: None,
            models_dir: None,
            network: None,
            engine: None,
            skips_health: false,
            load_timeout: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_read_back_as_it_was_written() {
        let mut spec = Spec::sample(BackendName::LlamaCpp);
        spec.gpus = vec![GpuName::Index(1), GpuName::Bus("0000:01:00.0".to_owned())];
        spec.quantization = Some(Quantization::Awq);
        spec.load_timeout = Some(Duration::from_millis(90_500));
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }

    #[test]
    fn a_backend_is_named_with_and_without_its_dot() {
        for text in ["llama.cpp", "llamacpp", "llama-cpp"] {
            assert_eq!(text.parse(), Ok(BackendName::LlamaCpp));
        }
        let error = "gpt4all".parse::<BackendName>().unwrap_err();
        assert_eq!(error, "no backend 'gpt4all': expected vllm, llamacpp, ollama, tgi, sglang");
    }
}
