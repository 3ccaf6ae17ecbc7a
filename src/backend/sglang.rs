//! SGLang's server (0.5).

use std::time::Duration;

use super::{
    Backend, HF_CACHE, HF_FOLDER, Health, Helper, INDUCTOR_FOLDER, Line, Models, Quantization,
    Served, Spec, TORCH, TRITON_FOLDER, Told, extra, extra_port, openai_ids, port,
};

const COMMAND: &[&str] = &["python3", "-m", "sglang.launch_server"];

pub(super) const BACKEND: Backend = Backend {
    image: "lmsysorg/sglang:latest",
    command: COMMAND,
    // Its image starts no server of its own accord.
    in_image: COMMAND,
    port: port(30000),
    // 503 while it starts (python/sglang/srt/entrypoints/http_server.py).
    health: Health { path: "/health" },
    served: Served { path: "/v1/models", read: openai_ids, fits },
    grace: Duration::from_secs(10),
    // The size of its documents (docs, "Install SGLang"). Not the host's, as for vLLM. Nor the `memlock` without limit of its
    // docker/compose.yaml: that is for RDMA between machines, and engines without root's rights may not grant it.
    shm_bytes: Some(32 << 30),
    cache: HF_CACHE,
    caches: &[HF_FOLDER, TRITON_FOLDER, INDUCTOR_FOLDER],
    models: Models::Both,
    ours: &["--host", "--port", "--model-path", "--model"],
    cannot: &[],
    arguments,
    environment: |_, _| Vec::new(),
    helpers,
};

fn arguments(spec: &Spec, told: &Told) -> Vec<String> {
    let line = Line::default()
        .flag("--model-path", &told.model)
        .flag("--served-model-name", name(spec))
        .flag("--host", told.address)
        .flag("--port", told.port)
        .maybe("--context-length", spec.max_model_len)
        .maybe("--tp-size", spec.tensor_parallel)
        .maybe("--quantization", spec.quantization.map(Quantization::word));
    line.0
}

fn name(spec: &Spec) -> &str {
    extra(spec, &["--served-model-name"]).unwrap_or(&spec.model)
}

fn fits(spec: &Spec, _: &Told, id: &str) -> bool {
    id == name(spec)
}

/// Its schedulers meet at a port that is free just then (`PortArgs.init_new`), unless they are told one.
fn helpers(spec: &Spec) -> Vec<Helper> {
    let told = ["--nccl-port", "--dist-init-addr"];
    told.into_iter().filter_map(|flag| extra_port(spec, flag, TORCH)).collect()
}
