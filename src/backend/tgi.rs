//! Hugging Face's text-generation-inference (3.3).

use std::time::Duration;

use serde_json::Value;

use super::{
    Backend, Cache, HF_FOLDER, HUGGINGFACE, Health, Helper, Line, Models, Quantization, Served,
    Spec, TORCH, TRITON_FOLDER, Told, extra, extra_port, port,
};
use crate::ident::GpuName;

pub(super) const BACKEND: Backend = Backend {
    image: "ghcr.io/huggingface/text-generation-inference:latest",
    command: &["text-generation-launcher"],
    // The image's entrypoint starts the launcher (its Dockerfile).
    in_image: &[],
    // The launcher's own default. Its image says 80, and is told otherwise.
    port: port(3000),
    health: Health { path: "/health" },
    served: Served { path: "/info", read: info, fits },
    // The launcher gives its web server and its shards 90 s (`terminate` in launcher/src/main.rs).
    grace: Duration::from_secs(95),
    shm_bytes: Some(1 << 30),
    // `HF_HOME=/data` of its Dockerfile.
    cache: Cache { volume: Some(HUGGINGFACE), path: "/data", variable: Some("HF_HOME") },
    caches: &[HF_FOLDER, TRITON_FOLDER],
    models: Models::Both,
    ours: &["--hostname", "--port", "-p", "--model-id"],
    cannot: &[],
    arguments,
    environment: |_, _| Vec::new(),
    helpers,
};

/// The launcher wants fewer tokens of input than in all, and its default for the input may be more than a short context.
fn arguments(spec: &Spec, told: &Told) -> Vec<String> {
    let line = Line::default()
        .flag("--model-id", &told.model)
        .flag("--hostname", told.address)
        .flag("--port", told.port)
        .maybe("--max-total-tokens", spec.max_model_len)
        .maybe("--max-input-tokens", spec.max_model_len.map(|n| n.saturating_sub(1)))
        .maybe("--num-shard", spec.tensor_parallel)
        .maybe("--quantize", spec.quantization.map(Quantization::word));
    line.0
}

/// `{"model_id": "…"}`, as it was given to `--model-id` (router/src/server.rs).
fn info(answer: &Value) -> Option<Vec<String>> {
    Some(vec![answer.get("model_id")?.as_str()?.to_owned()])
}

fn fits(_: &Spec, told: &Told, id: &str) -> bool {
    id == told.model
}

/// Shards meet at `--master-port`, which is fixed; without `--num-shard` there is one per GPU (`find_num_shards`). Its metrics
/// take 9000 whether or not anybody wants them there (tgi#3062).
fn helpers(spec: &Spec) -> Vec<Helper> {
    let may_be_many = spec.gpus.len() > 1 || spec.gpus.contains(&GpuName::All);
    let is_sharded = match (extra(spec, &["--num-shard"]), spec.tensor_parallel) {
        (Some(number), _) => number != "1",
        (None, Some(number)) => number > 1,
        (None, None) => may_be_many,
    };
    let fixed = is_sharded.then(|| Helper { port: port(29500), what: TORCH });
    let master = extra_port(spec, "--master-port", TORCH).or(fixed);
    let metrics = Helper { port: port(9000), what: "metrics" };
    let metrics = extra_port(spec, "--prometheus-port", "metrics").unwrap_or(metrics);
    master.into_iter().chain([metrics]).collect()
}
