//! The inference servers: image, command, ports and answers of each, as data with a little code. Adding one is a file beside
//! this one, its `mod`, and its line in the list. Nothing here asks or starts anything.

pub mod check;
mod conflict;
mod llamacpp;
mod ollama;
mod sglang;
pub mod spec;
mod tgi;
#[cfg(test)]
mod tests;
mod vllm;

use std::{fmt, net::IpAddr, num::NonZeroU16, str::FromStr, time::Duration};

pub use check::{Refusal, check};
pub use conflict::{Claim, Clash, Conflict, claims, conflicts};
use serde::{Deserialize, Serialize};
use serde_json::Value;
pub use spec::{MODELS, Quantization, Spec};

use crate::ident::Port;

/// The name of each backend, and its file.
macro_rules! backends {
    ($($(#[$doc:meta])* $name:ident: $file:ident,)*) => {
        /// The inference servers that there are files for.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(rename_all = "lowercase")]
        pub enum BackendName {
            $($(#[$doc])* $name,)*
        }

        impl BackendName {
            /// Every backend.
            pub const ALL: [Self; [$(stringify!($name),)*].len()] = [$(Self::$name,)*];

            /// As it is written, and as containers are named after it: `vllm-model-NAME`.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($file),)*
                }
            }

            /// What there is to know of it.
            pub fn backend(self) -> &'static Backend {
                match self {
                    $(Self::$name => &$file::BACKEND,)*
                }
            }
        }
    };
}

backends! {
    /// vLLM.
    Vllm: vllm,
    /// llama.cpp's llama-server.
    LlamaCpp: llamacpp,
    /// Ollama.
    Ollama: ollama,
    /// Hugging Face's text-generation-inference.
    Tgi: tgi,
    /// SGLang.
    SgLang: sglang,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for BackendName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = text.replace(['.', '-'], "");
        Self::ALL.into_iter().find(|name| name.word() == plain).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|name| name.word()).collect();
            format!("no backend '{text}': expected {}", all.join(", "))
        })
    }
}

/// One inference server.
#[derive(Debug)]
pub struct Backend {
    /// The image that its project publishes.
    pub image: &'static str,
    /// Its command as a process, before the arguments.
    pub command: &'static [&'static str],
    /// What stands before the arguments in a container, behind the image's own entrypoint.
    pub in_image: &'static [&'static str],
    /// Its port, where the spec names none: on the host, and always in a container.
    pub port: Port,
    /// How it says that it is ready.
    pub health: Health,
    /// How it says what it serves.
    pub served: Served,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Shared memory that its processes need between them, in bytes; none = the engine's 64 MiB.
    pub shm_bytes: Option<i64>,
    /// What it downloads and keeps, in a container.
    pub cache: Cache,
    /// Variables that name its caches as a process, and the folder of each below one that is kept for the model.
    pub caches: &'static [(&'static str, &'static str)],
    /// What a spec's model is to it.
    pub models: Models,
    /// Arguments that are ours to set: `extra_args` may not.
    pub ours: &'static [&'static str],
    /// What of a spec it cannot be told, and why.
    pub cannot: &'static [(Wish, &'static str)],
    /// What follows its command; `extra_args` come behind.
    pub arguments: fn(&Spec, &Told) -> Vec<String>,
    /// Variables of its own.
    pub environment: fn(&Spec, &Told) -> Vec<(&'static str, String)>,
    /// Ports that it takes beside its own, in whatever network namespace it runs in.
    pub helpers: fn(&Spec) -> Vec<Helper>,
}

/// What the text of a spec's model is to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Models {
    /// A name in a store of its own.
    Names,
    /// A path.
    Files,
    /// A path where it begins with `/` or `./`, else a name on Hugging Face's hub.
    Both,
}

impl Models {
    /// Whether this model is a path.
    pub fn is_file(self, model: &str) -> bool {
        match self {
            Self::Names => false,
            Self::Files => true,
            Self::Both => looks_like_path(model),
        }
    }
}

/// Begins as no name does.
pub fn looks_like_path(model: &str) -> bool {
    model.starts_with('/') || model.starts_with("./")
}

/// What a server is told: what to serve, and where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The model as the server finds it: a name of its own, or a path in its own mount namespace.
    pub model: String,
    /// The address, in its network namespace.
    pub address: IpAddr,
    /// The port, in its network namespace.
    pub port: Port,
}

/// Wishes that not every backend can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Over how many GPUs it is spread.
    TensorParallel,
    /// How its weights are quantised.
    Quantization,
    /// Arguments of its own.
    ExtraArgs,
}

impl Wish {
    /// As it is written on the command line.
    pub fn flag(self) -> &'static str {
        match self {
            Self::TensorParallel => "--tensor-parallel",
            Self::Quantization => "--quantization",
            Self::ExtraArgs => "--extra-args",
        }
    }

    /// Whether the spec has it.
    pub fn is_in(self, spec: &Spec) -> bool {
        match self {
            Self::TensorParallel => spec.tensor_parallel.is_some_and(|n| n > 1),
            Self::Quantization => spec.quantization.is_some(),
            Self::ExtraArgs => !spec.extra_args.is_empty(),
        }
    }
}

/// A health endpoint: a GET of this path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The path.
    pub path: &'static str,
}

/// What a health endpoint's status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It serves.
    Ready,
    /// It is on its way up.
    Loading,
    /// It answers, and neither of the two: this status.
    Sick(u16),
}

impl Health {
    /// 200 = ready, 503 = loading. A redirect or a page of somebody else's is neither.
    pub fn read(self, status: u16) -> Readiness {
        match status {
            200 => Readiness::Ready,
            503 => Readiness::Loading,
            other => Readiness::Sick(other),
        }
    }
}

/// The endpoint that says which models are served: a GET of this path.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// The path.
    pub path: &'static str,
    /// The ids in its JSON; none where it is not of the form that this backend answers.
    pub read: fn(&Value) -> Option<Vec<String>>,
    /// Whether this id is what the spec asks for, told as it was told.
    pub fits: fn(&Spec, &Told, &str) -> bool,
}

/// A volume of the engine's that outlives the container, so that a start downloads nothing twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cache {
    /// Its name. Models that download from the same place share it. None = nothing is downloaded.
    pub volume: Option<&'static str>,
    /// Where it stands in the container.
    pub path: &'static str,
    /// The variable that tells the server so.
    pub variable: Option<&'static str>,
}

/// A port beside the server's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Helper {
    /// Its number.
    pub port: Port,
    /// What for.
    pub what: &'static str,
}

/// The volume of what comes from Hugging Face.
const HUGGINGFACE: &str = "portreeve-huggingface";

/// Where the processes of a model that is spread meet.
const TORCH: &str = "torch.distributed";

/// What Hugging Face's library keeps (`HF_HOME`), below root's home, where the images of vLLM and SGLang run it.
const HF_CACHE: Cache = Cache {
    volume: Some(HUGGINGFACE),
    path: "/root/.cache/huggingface",
    variable: Some("HF_HOME"),
};

/// What PyTorch's compilers keep.
const HF_FOLDER: (&str, &str) = ("HF_HOME", "huggingface");
const TRITON_FOLDER: (&str, &str) = ("TRITON_CACHE_DIR", "triton");
const INDUCTOR_FOLDER: (&str, &str) = ("TORCHINDUCTOR_CACHE_DIR", "torchinductor");

/// Arguments, flag by flag. Each value is an argument of its own, so that no text can become two.
#[derive(Debug, Default)]
struct Line(Vec<String>);

impl Line {
    fn word(mut self, word: impl fmt::Display) -> Self {
        self.0.push(word.to_string());
        self
    }

    fn flag(self, flag: &str, value: impl fmt::Display) -> Self {
        self.word(flag).word(value)
    }

    fn maybe<V: fmt::Display>(self, flag: &str, value: Option<V>) -> Self {
        match value {
            Some(value) => self.flag(flag, value),
            None => self,
        }
    }
}

/// The value of an argument in `extra_args`, as `--flag value` or `--flag=value`; the last one counts, as parsers have it.
fn extra<'s>(spec: &'s Spec, flags: &[&str]) -> Option<&'s str> {
    let args = &spec.extra_args;
    let follow = args.iter().skip(1).map(String::as_str).map(Some).chain([None]);
    let value = |(arg, next): (&'s String, Option<&'s str>)| match arg.split_once('=') {
        Some((flag, value)) => is_one_of(flag, flags).then_some(value),
        None => next.filter(|_| is_one_of(arg, flags)),
    };
    args.iter().zip(follow).filter_map(value).last()
}

/// vLLM and SGLang take `--max_model_len` for `--max-model-len`.
fn is_one_of(arg: &str, flags: &[&str]) -> bool {
    flags.contains(&arg.replace('_', "-").as_str())
}

/// A port that `extra_args` names.
fn extra_port(spec: &Spec, flag: &str, what: &'static str) -> Option<Helper> {
    // `--dist-init-addr HOST:PORT`
    let number = extra(spec, &[flag])?.rsplit(':').next()?;
    let port = Port::new(number.parse().ok()?)?;
    Some(Helper { port, what })
}

/// A port of this file's neighbours; none of theirs is 0.
const fn port(number: u16) -> Port {
    match NonZeroU16::new(number) {
        Some(number) => Port(number),
        None => Port(NonZeroU16::MIN),
    }
}

/// `{"data": [{"id": "…"}]}`: the list of OpenAI's API (`GET /v1/models`), which vLLM, SGLang and llama.cpp answer with.
fn openai_ids(answer: &Value) -> Option<Vec<String>> {
    texts(answer.get("data")?, "id")
}

/// This text of every entry of a list.
fn texts(list: &Value, key: &str) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|entry| entry.get(key)?.as_str().map(str::to_owned)).collect()
}
