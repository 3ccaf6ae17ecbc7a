//! What is wanted of a model: as it is registered on the command line or declared in the settings.

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

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

impl FromStr for Quantization {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = [Self::Awq, Self::Gptq].into_iter().find(|one| one.word() == text);
        found.ok_or("expected awq or gptq")
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
    /// As a process: the program that is run, instead of the backend's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// As a process in a unit of the system: the user that it runs as; none = one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_as: Option<String>,
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
    /// How it is watched once it serves.
    #[serde(default)]
    pub watch: Watch,
}

/// How a model that serves is watched by the process that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Between two questions.
    pub interval: Duration,
    /// For one answer.
    pub timeout: Duration,
    /// So many failures in a row, and it is ended.
    pub failures: u32,
    /// The first question comes so long after it was ready.
    pub delay: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            failures: 3,
            delay: Duration::from_secs(60),
        }
    }
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

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

impl FromStr for Engine {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = [Self::Docker, Self::Podman].into_iter().find(|one| one.word() == text);
        found.ok_or("expected docker or podman")
    }
}

/// `32G` in bytes, as systemd and the engines read it: powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "expected an amount such as 32G, 512M or a number of bytes";
    let plain = text.trim_end_matches("iB").trim_end_matches('B');
    let unit = plain.trim_start_matches(|c: char| c.is_ascii_digit());
    let number = plain.strip_suffix(unit).unwrap_or(plain);
    let shift = match unit {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(EXPECTED),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or(EXPECTED)
}

/// Processors in thousandths, `4.0` as 4000; three places at most.
pub fn parse_processors(text: &str) -> Result<u32, &'static str> {
    const EXPECTED: &str = "expected a number of processors such as 4 or 1.5";
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || places.len() > 3 || !is_number(whole) || !is_number(places) {
        return Err(EXPECTED);
    }
    let whole: u32 = whole.parse().map_err(|_| EXPECTED)?;
    let places: u32 = format!("{places:0<3}").parse().map_err(|_| EXPECTED)?;
    let sum = whole.checked_mul(1000).and_then(|milli| milli.checked_add(places));
    sum.filter(|milli| *milli > 0).ok_or(EXPECTED)
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

#[cfg(any(test, fuzzing))]
impl Spec {
    pub(crate) fn sample(backend: BackendName) -> Self {
        Self {
            backend,
            model: "meta-llama/Llama-2-70b-hf".to_owned(),
            is_container: true,
            program: None,
            run_as: None,
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
            watch: Watch::default(),
        }
    }
}

/// Anything that can be wanted, sensible or not.
#[cfg(test)]
pub(crate) mod any {
    use std::net::IpAddr;

    use proptest::{option, prelude::*};

    use super::{BackendName, Duration, Engine, Port, Quantization, Spec, Watch};
    use crate::ident::tests::gpu;

    fn text() -> impl Strategy<Value = String> {
        "\\PC{0,12}|[\\x00-\\x1f\"'\\\\$%{}:,]{0,8}"
    }

    fn time() -> impl Strategy<Value = Duration> {
        (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Duration::new(secs, nanos))
    }

    prop_compose! {
        fn wishes()(
            memory_bytes in option::of(any::<u64>()),
            cpu_milli in option::of(any::<u32>()),
            pids in option::of(any::<u32>()),
            max_model_len in option::of(any::<u32>()),
            tensor_parallel in option::of(any::<u32>()),
            quantization in option::of(prop::sample::select(vec![Quantization::Awq, Quantization::Gptq])),
            extra_args in prop::collection::vec(text(), 0..4),
            skips_health in any::<bool>(),
            load_timeout in option::of(time()),
            (interval, timeout, failures, delay) in (time(), time(), any::<u32>(), time()),
        ) -> Spec {
            Spec {
                memory_bytes, cpu_milli, pids, max_model_len, tensor_parallel, quantization, extra_args,
                skips_health, load_timeout,
                watch: Watch { interval, timeout, failures, delay },
                ..Spec::sample(BackendName::Vllm)
            }
        }
    }

    prop_compose! {
        pub(crate) fn spec()(
            wishes in wishes(),
            backend in prop::sample::select(BackendName::ALL.to_vec()),
            (model, is_container) in (text(), any::<bool>()),
            (program, run_as) in (option::of(text()), option::of(text())),
            (port, host) in (any::<u16>(), any::<IpAddr>()),
            gpus in prop::collection::vec(gpu(), 0..4),
            (image, models_dir, network) in (option::of(text()), option::of(text()), option::of(text())),
            engine in option::of(prop::sample::select(vec![Engine::Docker, Engine::Podman])),
        ) -> Spec {
            Spec {
                backend, model, is_container, run_as, host, gpus, image, network, engine,
                program: program.map(Into::into),
                models_dir: models_dir.map(Into::into),
                port: Port::new(port),
                ..wishes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_wanted_is_read_back_as_it_was_written(spec in any::spec()) {
            let text = serde_json::to_string(&spec).unwrap();
            prop_assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        }

        #[test]
        fn every_amount_is_read_back_as_it_is_printed(bytes in 1..u64::MAX, milli in 1..u32::MAX) {
            prop_assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
            let printed = format!("{}.{:03}", milli / 1000, milli % 1000);
            prop_assert_eq!(parse_processors(&printed), Ok(milli));
        }
    }

    #[test]
    fn a_spec_is_read_back_as_it_was_written() {
        let mut spec = Spec::sample(BackendName::LlamaCpp);
        spec.gpus = vec![GpuName::Index(1), GpuName::Bus("0000:01:00.0".to_owned())];
        spec.quantization = Some(Quantization::Awq);
        spec.load_timeout = Some(Duration::from_millis(90_500));
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
        let process = Spec {
            is_container: false,
            program: Some("/opt/vllm/bin/vllm".into()),
            run_as: Some("vllm".to_owned()),
            ..spec
        };
        let text = serde_json::to_string(&process).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), process);
    }

    #[test]
    fn a_spec_of_an_earlier_version_is_read() {
        let text = r#"{"backend": "vllm", "model": "m", "is_container": false, "port": null, "host": "127.0.0.1"}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        assert_eq!((spec.program, spec.run_as, spec.watch), (None, None, Watch::default()));
    }

    #[test]
    fn a_backend_is_named_with_and_without_its_dot() {
        for text in ["llama.cpp", "llamacpp", "llama-cpp"] {
            assert_eq!(text.parse(), Ok(BackendName::LlamaCpp));
        }
        let error = "gpt4all".parse::<BackendName>().unwrap_err();
        assert_eq!(error, "no backend 'gpt4all': expected vllm, llamacpp, ollama, tgi, sglang");
    }

    #[test]
    fn amounts_and_processors_are_read_as_they_are_written() {
        for (text, expected) in
            [("32G", 32 << 30), ("512MiB", 512 << 20), ("1k", 1024), ("7", 7), ("2TB", 2 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "G", "0", "-1", "1.5G", "32X", "99999999999999T"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        for (text, expected) in [("4.0", 4000), ("4", 4000), ("0.5", 500), ("1.25", 1250)] {
            assert_eq!(parse_processors(text), Ok(expected), "{text}");
        }
        for text in ["", "0", ".5", "1.2345", "x", "-1", "9999999999"] {
            assert!(parse_processors(text).is_err(), "{text}");
        }
    }
}
