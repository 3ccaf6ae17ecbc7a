//! llama.cpp's llama-server.

use std::time::Duration;

use super::{
    Backend, Cache, Health, Line, Models, Served, Spec, Told, Wish, extra, openai_ids, port,
};

/// More layers than any model has: all of them. `all` is understood by newer servers only.
const ALL_LAYERS: u16 = 999;

pub(super) const BACKEND: Backend = Backend {
    image: "ghcr.io/ggml-org/llama.cpp:server-cuda",
    command: &["llama-server"],
    // The image's entrypoint is `/app/llama-server` (.devops/cuda.Dockerfile).
    in_image: &[],
    port: port(8080),
    // 503 "Loading model", then 200 (tools/server/README.md).
    health: Health { path: "/health" },
    served: Served { path: "/v1/models", read: openai_ids, fits },
    grace: Duration::from_secs(10),
    shm_bytes: None,
    cache: Cache { volume: None, path: "", variable: None },
    // common/common.cpp: what `-hf` downloads.
    caches: &[("LLAMA_CACHE", "llama.cpp")],
    models: Models::Files,
    ours: &["--host", "--port", "--model", "-m"],
    cannot: &[
        (Wish::TensorParallel, "it spreads a model's layers over all GPUs that it is given"),
        (Wish::Quantization, "a GGUF file is quantised already"),
    ],
    arguments,
    environment: |_, _| Vec::new(),
    helpers: |_| Vec::new(),
};

fn arguments(spec: &Spec, told: &Told) -> Vec<String> {
    let layers = (!spec.gpus.is_empty()).then_some(ALL_LAYERS);
    let line = Line::default()
        .flag("--model", &told.model)
        .flag("--alias", name(spec))
        .flag("--host", told.address)
        .flag("--port", told.port)
        .maybe("--ctx-size", spec.max_model_len)
        .maybe("--n-gpu-layers", layers);
    line.0
}

fn name(spec: &Spec) -> &str {
    extra(spec, &["--alias", "-a"]).unwrap_or(&spec.model)
}

/// Without an alias the id would be the file's path or its name, by the server's version. An alias may be several.
fn fits(spec: &Spec, _: &Told, id: &str) -> bool {
    id == name(spec) || name(spec).split(',').any(|alias| alias.trim() == id)
}
