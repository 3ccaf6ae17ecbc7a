//! The merged layers → settings.

use super::{
    fragment::{At, DefaultsFragment, EnginesFragment, Fragment, GateFragment, GpuSourcesFragment},
    merge::is_enabled,
    settings::{
        Defaults, Engines, Gate, GpuSources, Ladder, Service, ServicePattern, Settings,
        WorkerPattern,
    },
};
use crate::{backend::Spec, ident::ModelName};

/// What the merged layers say, with the defaults where they say nothing.
pub(super) fn settings(merged: &Fragment, models: Vec<(ModelName, Spec)>) -> Settings {
    let defaults = defaults(&merged.defaults);
    let gate = gate(&merged.gate);
    let services = merged.services.iter().filter(|(_, service)| is_enabled(&service.value));
    let services = services.map(|(name, At { value: service, .. })| Service {
        name: name.clone(),
        runs_in: service.runs_in.as_ref().map(|place| place.value.clone()),
        own_unit: None,
        ports: service.ports.iter().flat_map(|ports| &ports.value).map(|port| port.value).collect(),
        reuse_addr: service.reuse_addr.as_ref().is_none_or(|reuse| reuse.value),
        gpus: service
            .gpus
            .iter()
            .flat_map(|gpus| &gpus.value)
            .map(|gpu| gpu.value.clone())
            .collect(),
        gpu_free: service.gpu_free.as_ref().map_or(gate.gpu_free, |need| need.value),
        patterns: service
            .patterns
            .iter()
            .flat_map(|patterns| &patterns.value)
            .map(|p| ServicePattern {
                regex: p.value.regex.clone(),
                is_portless: p.value.is_portless,
            })
            .collect(),
        grace: service.grace.as_ref().map_or(defaults.grace, |grace| grace.value),
        foreign_holder: service
            .foreign_holder
            .as_ref()
            .map_or(defaults.foreign_holder, |holder| holder.value),
    });
    let workers = merged.patterns.iter().map(|At { value: worker, .. }| WorkerPattern {
        name: worker.name.value.clone(),
        regex: worker.regex.clone(),
        grace: worker.grace.as_ref().map_or(defaults.grace, |grace| grace.value),
    });
    Settings {
        defaults,
        services: services.collect(),
        models,
        unread_models: None,
        workers: workers.collect(),
        protect: merged.protect.iter().map(|rule| rule.value.clone()).collect(),
        engines: engines(&merged.engines),
        gate,
        gpus: gpu_sources(&merged.gpus),
    }
}

/// `gpus:` over those of the settings.
pub(super) fn gpu_sources(typed: &GpuSourcesFragment) -> GpuSources {
    let otherwise = GpuSources::default();
    GpuSources {
        nvml: typed.nvml.as_ref().map_or(otherwise.nvml, |v| v.value.clone()),
        nvidia_smi: typed.nvidia_smi.as_ref().map_or(otherwise.nvidia_smi, |v| v.value.clone()),
        timeout: typed.timeout.as_ref().map_or(otherwise.timeout, |v| v.value),
    }
}

/// `gate:` over those of the settings.
pub(super) fn gate(typed: &GateFragment) -> Gate {
    let otherwise = Gate::default();
    Gate {
        timeout: typed.timeout.as_ref().map_or(otherwise.timeout, |v| v.value),
        settle: typed.settle.as_ref().map_or(otherwise.settle, |v| v.value),
        gpu_settle: typed.gpu_settle.as_ref().map_or(otherwise.gpu_settle, |v| v.value),
        gpu_free: typed.gpu_free.as_ref().map_or(otherwise.gpu_free, |v| v.value),
    }
}

/// `engines:` over those of the settings.
pub(super) fn engines(typed: &EnginesFragment) -> Engines {
    let otherwise = Engines::default();
    Engines {
        docker: typed.docker.as_ref().map_or(otherwise.docker, |v| v.value.clone()),
        podman: typed.podman.as_ref().map_or(otherwise.podman, |v| v.value.clone()),
        timeout: typed.timeout.as_ref().map_or(otherwise.timeout, |v| v.value),
        ladder: Ladder {
            stop_timeout: typed
                .stop_timeout
                .as_ref()
                .map_or(otherwise.ladder.stop_timeout, |v| v.value),
            kill_timeout: typed
                .kill_timeout
                .as_ref()
                .map_or(otherwise.ladder.kill_timeout, |v| v.value),
            remove_timeout: typed
                .remove_timeout
                .as_ref()
                .map_or(otherwise.ladder.remove_timeout, |v| v.value),
        },
    }
}

/// `defaults:` over those of the settings.
pub(super) fn defaults(typed: &DefaultsFragment) -> Defaults {
    let otherwise = Defaults::default();
    Defaults {
        grace: typed.grace.as_ref().map_or(otherwise.grace, |v| v.value),
        min_age: typed.min_age.as_ref().map_or(otherwise.min_age, |v| v.value),
        respawn_watch: typed.respawn_watch.as_ref().map_or(otherwise.respawn_watch, |v| v.value),
        foreign_holder: typed.foreign_holder.as_ref().map_or(otherwise.foreign_holder, |v| v.value),
    }
}
