//! Ollama: one server for all that is in its store.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde_json::Value;

use super::{Backend, Cache, Health, Models, Served, Spec, Told, Wish, port, texts};

pub(super) const BACKEND: Backend = Backend {
    image: "ollama/ollama:latest",
    command: &["ollama", "serve"],
    // The image's entrypoint is `/bin/ollama` (Ollama's Dockerfile).
    in_image: &["serve"],
    port: port(11434),
    // It has no health endpoint: the list of models answers as soon as it serves.
    health: Health { path: "/api/tags" },
    served: Served { path: "/api/tags", read: tags, fits },
    grace: Duration::from_secs(10),
    shm_bytes: None,
    cache: Cache { volume: Some("portreeve-ollama"), path: "/root/.ollama", variable: None },
    caches: &[("OLLAMA_MODELS", "ollama")],
    models: Models::Names,
    ours: &[],
    cannot: &[
        (Wish::TensorParallel, "it spreads a model over its GPUs by itself"),
        (Wish::Quantization, "it is part of the model's tag"),
        (Wish::ExtraArgs, "'ollama serve' takes no arguments"),
    ],
    arguments: |_, _| Vec::new(),
    environment,
    // Its runners listen where the kernel lets them (`--port` of llm/server.go).
    helpers: |_| Vec::new(),
};

/// envconfig/config.go. A folder that is read-only cannot be tidied up, which is what it would do at its start.
fn environment(spec: &Spec, told: &Told) -> Vec<(&'static str, String)> {
    let mut all = vec![("OLLAMA_HOST", listen(told.address, told.port.number()))];
    all.extend(spec.max_model_len.map(|n| ("OLLAMA_CONTEXT_LENGTH", n.to_string())));
    if spec.models_dir.is_some() {
        all.push(("OLLAMA_MODELS", super::MODELS.to_owned()));
        all.push(("OLLAMA_NOPRUNE", "1".to_owned()));
    }
    all
}

fn listen(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// `{"models": [{"name": "llama3:latest"}]}` (docs/api.md).
fn tags(answer: &Value) -> Option<Vec<String>> {
    texts(answer.get("models")?, "name")
}

/// A name without a tag means `latest` (types/model/name.go).
fn fits(spec: &Spec, _: &Told, id: &str) -> bool {
    id == spec.model || id.strip_suffix(":latest") == Some(&spec.model)
}
