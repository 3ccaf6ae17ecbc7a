//! What each server is told, and how it answers.

use std::{
    env,
    net::{IpAddr, SocketAddr},
};

use serde_json::{Value, json};

use super::Outcome;

/// One inference server.
pub(super) struct Backend {
    /// Its name, and the words that follow.
    pub(super) command: &'static [&'static str],
    /// Flags that tell it the model.
    pub(super) model: &'static [&'static str],
    /// The model may stand by itself.
    pub(super) takes_bare_model: bool,
    /// Flags that tell it what the model is called.
    pub(super) name: &'static [&'static str],
    pub(super) host: &'static str,
    pub(super) port: &'static str,
    /// Further flags, each with a value.
    pub(super) others: &'static [&'static str],
    pub(super) loading: Loading,
    pub(super) health: &'static str,
    pub(super) list: &'static str,
    /// The list of what it serves, for a model that is called so.
    pub(super) serves: fn(&str) -> Value,
}

/// How far a server's port is while it loads.
#[derive(Clone, Copy)]
pub(super) enum Loading {
    /// Nothing has the port.
    Unbound,
    /// Nobody is let in.
    Bound,
    /// Everybody is let in, and gets no answer.
    Silent,
    /// Its health says 503.
    Unhealthy,
    /// All that it is asked gets a 503.
    Busy,
}

/// As llama.cpp says it (tools/server/server.cpp).
pub(super) const LOADING: &str =
    r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;

const VLLM: Backend = Backend {
    command: &["vllm", "serve"],
    model: &[],
    takes_bare_model: true,
    name: &["--served-model-name"],
    host: "--host",
    port: "--port",
    others: &["--max-model-len", "--tensor-parallel-size", "--quantization"],
    // It keeps the port while its engine starts (`create_server_socket` in vllm/entrypoints/openai/api_server.py).
    loading: Loading::Bound,
    health: "/health",
    list: "/v1/models",
    serves: |id| openai(id, "vllm"),
};

const LLAMA: Backend = Backend {
    command: &["llama-server"],
    model: &["--model", "-m"],
    takes_bare_model: false,
    name: &["--alias", "-a"],
    others: &["--ctx-size", "--n-gpu-layers"],
    // A middleware stands before everything until the model is there.
    loading: Loading::Busy,
    serves: |id| openai(id, "llamacpp"),
    ..VLLM
};

const OLLAMA: Backend = Backend {
    command: &["ollama", "serve"],
    takes_bare_model: false,
    name: &[],
    host: "",
    port: "",
    others: &[],
    // It listens first, then looks for GPUs (`RunServer` in cmd/cmd.go, `Serve` in server/routes.go).
    loading: Loading::Silent,
    health: "/api/tags",
    list: "/api/tags",
    serves: |id| match id {
        "" => json!({"models": []}),
        id => json!({"models": [{"name": id, "model": id, "size": 4_661_224_676_u64}]}),
    },
    ..VLLM
};

const TGI: Backend = Backend {
    command: &["text-generation-launcher"],
    model: &["--model-id"],
    takes_bare_model: false,
    name: &[],
    host: "--hostname",
    others: &["--max-total-tokens", "--max-input-tokens", "--num-shard", "--quantize"],
    // The web server is started when all shards are ready (launcher/src/main.rs).
    loading: Loading::Unbound,
    list: "/info",
    serves: |id| json!({"model_id": id, "model_sha": null, "router": "text-generation-router"}),
    ..VLLM
};

const SGLANG: Backend = Backend {
    command: &["python3", "-m", "sglang.launch_server"],
    model: &["--model-path", "--model"],
    takes_bare_model: false,
    others: &["--context-length", "--tp-size", "--quantization"],
    // Until it has warmed up (python/sglang/srt/entrypoints/http_server.py).
    loading: Loading::Unhealthy,
    serves: |id| openai(id, "sglang"),
    ..VLLM
};

fn openai(id: &str, owner: &str) -> Value {
    let model = json!({"id": id, "object": "model", "created": 0, "owned_by": owner});
    json!({"object": "list", "data": [model]})
}

/// Whom this command line calls, and what it is told.
pub(super) fn called(line: &[String]) -> Outcome<(&'static Backend, &[String])> {
    let (path, words) = line.split_first().ok_or("it has no name")?;
    let name = path.rsplit('/').next().unwrap_or_default();
    for backend in [&VLLM, &LLAMA, &OLLAMA, &TGI, &SGLANG] {
        let (own, verb) = backend.command.split_first().ok_or("a backend has no name")?;
        if let Some((first, rest)) = words.split_at_checked(verb.len())
            && *own == name
            && first == verb
        {
            return Ok((backend, rest));
        }
    }
    Err(format!("'{}' calls no backend", line.join(" ")).into())
}

/// Where Ollama is told to listen, who has no flags.
pub(super) fn from_environment(backend: &Backend) -> Outcome<(Option<IpAddr>, Option<u16>)> {
    if !backend.host.is_empty() {
        return Ok((None, None));
    }
    let address: SocketAddr = env::var("OLLAMA_HOST")?.parse()?;
    Ok((Some(address.ip()), Some(address.port())))
}
