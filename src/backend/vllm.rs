//! vLLM's OpenAI server (0.33).

use std::time::Duration;

use super::{
    Backend, HF_CACHE, HF_FOLDER, Health, Helper, INDUCTOR_FOLDER, Line, Models, Quantization,
    Served, Spec, TORCH, TRITON_FOLDER, Told, extra, extra_port, openai_ids, port,
};

pub(super) const BACKEND: Backend = Backend {
    image: "vllm/vllm-openai:latest",
    command: &["vllm", "serve"],
    // The image's entrypoint is `vllm serve` (vLLM's docker/Dockerfile).
    in_image: &[],
    port: port(8000),
    // Answers only when the engine is up; before that nothing does, though the port is bound early.
    health: Health { path: "/health" },
    served: Served { path: "/v1/models", read: openai_ids, fits },
    grace: Duration::from_secs(5),
    // The size in vLLM's own example (docs, "Deploying with Docker"). Not the host's shared memory, which is offered there
    // too: what a killed server leaves in its own goes with the container.
    shm_bytes: Some(10 << 30),
    cache: HF_CACHE,
    // vllm/envs.py.
    caches: &[HF_FOLDER, ("VLLM_CACHE_ROOT", "vllm"), TRITON_FOLDER, INDUCTOR_FOLDER],
    models: Models::Both,
    ours: &["--host", "--port", "--model", "--uds"],
    cannot: &[],
    arguments,
    environment: |_, _| Vec::new(),
    helpers,
};

/// The model stands by itself: `--model` is on its way out (vllm/utils/argparse_utils.py).
fn arguments(spec: &Spec, told: &Told) -> Vec<String> {
    let line = Line::default()
        .word(&told.model)
        .flag("--served-model-name", name(spec))
        .flag("--host", told.address)
        .flag("--port", told.port)
        .maybe("--max-model-len", spec.max_model_len)
        .maybe("--tensor-parallel-size", spec.tensor_parallel)
        .maybe("--quantization", spec.quantization.map(Quantization::word));
    line.0
}

fn name(spec: &Spec) -> &str {
    extra(spec, &["--served-model-name"]).unwrap_or(&spec.model)
}

fn fits(spec: &Spec, _: &Told, id: &str) -> bool {
    id == name(spec)
}

/// On one machine its workers meet at ports that are free just then (`get_open_port`). Fixed are Ray's and, over several
/// machines, `--master-port` (29501; vllm/config/parallel.py).
fn helpers(spec: &Spec) -> Vec<Helper> {
    let is_ray = ["--distributed-executor-backend", "--data-parallel-backend"]
        .iter()
        .any(|flag| extra(spec, &[flag]) == Some("ray"));
    let ray = is_ray.then(|| Helper { port: port(6379), what: "Ray's head" });
    let is_many = extra(spec, &["--nnodes"]).is_some_and(|n| n != "1");
    let fixed = is_many.then(|| Helper { port: port(29501), what: TORCH });
    ray.into_iter().chain(extra_port(spec, "--master-port", TORCH).or(fixed)).collect()
}
