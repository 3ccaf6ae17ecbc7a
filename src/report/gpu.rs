//! A guarded GPU, as the forms write it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    judge::gpu::{GpuState, GpuVerdict},
    snapshot::{GpuMemory, GpuUse, GpuVendor},
};

/// A guarded GPU.
#[derive(Debug, Serialize, JsonSchema)]
#[allow(clippy::struct_field_names, reason = "the document's word for it")]
pub(super) struct Gpu {
    /// `GPU 0`; a part of one that MIG splits, `GPU 0 part 1`.
    gpu: String,
    /// Its number, as `nvidia-smi` shows it; AMD's and Intel's are counted on. Null where it was not found.
    index: Option<u32>,
    /// `GPU-…` or `MIG-…`; NVIDIA's only.
    uuid: Option<String>,
    /// Its place on the PCI bus.
    bus: Option<String>,
    /// What it is called.
    name: Option<String>,
    /// Who makes it.
    vendor: Option<Vendor>,
    /// Its services by the settings.
    services: Vec<String>,
    /// What it is.
    state: State,
    /// All of its memory, in bytes; null where that is not known or not counted.
    memory_total_bytes: Option<u64>,
    /// What a new process can have, in bytes.
    memory_free_bytes: Option<u64>,
    /// How much must be free: a share (`90%`) or an amount (`40GiB`).
    memory_needed: String,
    /// Process ids of who computes on it, infrastructure left out.
    holders: Vec<u32>,
    /// Every process that has it open for more than to look, infrastructure and what only draws among them.
    users: Vec<User>,
    /// Who told: `NVML`, `nvidia-smi`, …; null where it was not found.
    source: Option<String>,
    /// The state in a sentence.
    sentence: String,
    /// What to do, where there is something to do.
    next_step: Option<String>,
}

/// A process that uses a GPU.
#[derive(Debug, Serialize, JsonSchema)]
struct User {
    /// Process id.
    pid: u32,
    /// How.
    kind: Kind,
    /// How much memory it has there, in bytes; null where the driver does not say.
    memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "GpuUse")]
enum Kind {
    /// It computes.
    Compute,
    /// It computes through NVIDIA's Multi-Process Service.
    Mps,
    /// It only draws.
    Graphics,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "GpuVendor")]
enum Vendor {
    Nvidia,
    Amd,
    Intel,
}

/// States of a guarded GPU.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "GpuState")]
enum State {
    /// Nobody computes on it, and enough of its memory is free.
    Free,
    /// Somebody computes on it.
    Held,
    /// Too little of its memory is free, and nobody computes on it.
    Residual,
    /// This host has no such GPU.
    Absent,
    /// Could not be learnt.
    Unknown,
}

/// The state in one word, the same in every form.
pub(super) fn word(state: &GpuState) -> &'static str {
    match state {
        GpuState::Free => "free",
        GpuState::Held(_) => "held",
        GpuState::Residual => "residual",
        GpuState::Absent => "absent",
        GpuState::Unknown(_) => "unknown",
    }
}

/// What its memory comes to, where it is known and counted.
pub(super) fn memory(verdict: &GpuVerdict) -> Option<GpuMemory> {
    verdict.gpu.as_ref()?.memory.known().copied().flatten()
}

/// The services that may have it, as a cell shows them.
pub(super) fn services(verdict: &GpuVerdict) -> String {
    let names: Vec<&str> = verdict.services.iter().map(|name| name.0.as_str()).collect();
    names.join(",")
}

pub(super) fn gpu(verdict: &GpuVerdict) -> Gpu {
    let seen = verdict.gpu.as_ref();
    let memory = memory(verdict);
    let users = seen.iter().flat_map(|gpu| &gpu.holdings).map(|holding| User {
        pid: holding.pid.0,
        kind: match holding.kind {
            GpuUse::Compute => Kind::Compute,
            GpuUse::Mps => Kind::Mps,
            GpuUse::Graphics => Kind::Graphics,
        },
        memory_bytes: holding.memory_bytes,
    });
    let (state, holders) = match &verdict.state {
        GpuState::Free => (State::Free, &[][..]),
        GpuState::Held(holders) => (State::Held, holders.as_slice()),
        GpuState::Residual => (State::Residual, &[][..]),
        GpuState::Absent => (State::Absent, &[][..]),
        GpuState::Unknown(_) => (State::Unknown, &[][..]),
    };
    Gpu {
        gpu: verdict.label.clone(),
        index: seen.map(|gpu| gpu.index),
        uuid: seen.and_then(|gpu| gpu.uuid.clone()),
        bus: seen.and_then(|gpu| gpu.bus.clone()),
        name: seen.map(|gpu| gpu.name.clone()).filter(|name| !name.is_empty()),
        vendor: seen.map(|gpu| match gpu.vendor {
            GpuVendor::Nvidia => Vendor::Nvidia,
            GpuVendor::Amd => Vendor::Amd,
            GpuVendor::Intel => Vendor::Intel,
        }),
        services: verdict.services.iter().map(ToString::to_string).collect(),
        state,
        memory_total_bytes: memory.map(|memory| memory.total_bytes),
        memory_free_bytes: memory.map(|memory| memory.free_bytes),
        memory_needed: verdict.need.to_string(),
        holders: holders.iter().map(|pid| pid.0).collect(),
        users: users.collect(),
        source: seen.map(|gpu| gpu.source.to_string()),
        sentence: verdict.sentence.clone(),
        next_step: verdict.next_step.clone(),
    }
}
