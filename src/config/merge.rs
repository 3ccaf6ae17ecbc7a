//! Lays the layers over each other: a field that a higher layer gives replaces the lower one's, and a port that a higher
//! layer gives to a service is taken from the service that had it.

use std::collections::BTreeMap;

use super::{
    fragment::{
        At, DefaultsFragment, EnginesFragment, Fragment, GateFragment, GpuSourcesFragment, Place,
        ServiceFragment,
    },
    models,
    problem::{Problem, nearest},
    settings::Protect,
    source::Layer,
};
use crate::ident::{Endpoint, Port, Proto, ServiceName};

/// A port that a higher layer took from a lower layer's service.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// The port as the service that lost it had it.
    pub endpoint: Endpoint,
    /// Who lost it, and where that one was given it.
    pub from: At<ServiceName>,
    /// Who has it now, and where.
    pub to: At<ServiceName>,
}

/// Lays a layer over the lower ones.
pub(super) fn overlay(lower: &mut Fragment, upper: Fragment) {
    let Fragment { defaults, services, models, patterns, protect, engines, gate, gpus, compose } =
        upper;
    lower.compose.extend(compose);
    let GpuSourcesFragment { nvml, nvidia_smi, timeout: gpu_timeout } = gpus;
    replace(&mut lower.gpus.nvml, nvml);
    replace(&mut lower.gpus.nvidia_smi, nvidia_smi);
    replace(&mut lower.gpus.timeout, gpu_timeout);
    let GateFragment { timeout: gate_timeout, settle, gpu_settle, gpu_free } = gate;
    replace(&mut lower.gate.gpu_settle, gpu_settle);
    replace(&mut lower.gate.gpu_free, gpu_free);
    replace(&mut lower.gate.timeout, gate_timeout);
    replace(&mut lower.gate.settle, settle);
    let EnginesFragment { docker, podman, timeout, stop_timeout, kill_timeout, remove_timeout } =
        engines;
    replace(&mut lower.engines.docker, docker);
    replace(&mut lower.engines.podman, podman);
    replace(&mut lower.engines.timeout, timeout);
    replace(&mut lower.engines.stop_timeout, stop_timeout);
    replace(&mut lower.engines.kill_timeout, kill_timeout);
    replace(&mut lower.engines.remove_timeout, remove_timeout);
    let DefaultsFragment { grace, min_age, respawn_watch, foreign_holder } = defaults;
    replace(&mut lower.defaults.grace, grace);
    replace(&mut lower.defaults.min_age, min_age);
    replace(&mut lower.defaults.respawn_watch, respawn_watch);
    replace(&mut lower.defaults.foreign_holder, foreign_holder);
    for (name, service) in services {
        match lower.services.get_mut(&name) {
            None => {
                lower.services.insert(name, service);
            }
            Some(below) => overlay_service(below, service),
        }
    }
    for (name, model) in models {
        match lower.models.get_mut(&name) {
            None => {
                lower.models.insert(name, model);
            }
            Some(below) => models::overlay(below, model),
        }
    }
    for worker in patterns {
        match lower.patterns.iter_mut().find(|w| w.value.name.value == worker.value.name.value) {
            None => lower.patterns.push(worker),
            Some(below) => *below = worker,
        }
    }
    for rule in protect {
        if !lower.protect.iter().any(|below| is_same_rule(&below.value, &rule.value)) {
            lower.protect.push(rule);
        }
    }
}

fn overlay_service(below: &mut At<ServiceFragment>, above: At<ServiceFragment>) {
    let ServiceFragment {
        enabled,
        runs_in,
        ports,
        reuse_addr,
        gpus,
        gpu_free,
        patterns,
        grace,
        foreign_holder,
    } = above.value;
    replace(&mut below.value.gpus, gpus);
    replace(&mut below.value.gpu_free, gpu_free);
    replace(&mut below.value.enabled, enabled);
    replace(&mut below.value.runs_in, runs_in);
    replace(&mut below.value.ports, ports);
    replace(&mut below.value.reuse_addr, reuse_addr);
    replace(&mut below.value.patterns, patterns);
    replace(&mut below.value.grace, grace);
    replace(&mut below.value.foreign_holder, foreign_holder);
}

pub(super) fn replace<T>(below: &mut Option<T>, above: Option<T>) {
    if above.is_some() {
        *below = above;
    }
}

fn is_same_rule(a: &Protect, b: &Protect) -> bool {
    match (a, b) {
        (Protect::Unit(a), Protect::Unit(b)) | (Protect::Exe(a), Protect::Exe(b)) => {
            a.glob() == b.glob()
        }
        (Protect::Unit(_), Protect::Exe(_)) | (Protect::Exe(_), Protect::Unit(_)) => false,
    }
}

/// Ports that one layer gives to two services, or twice to one.
pub(super) fn check_owners(fragment: &Fragment, layer: &Layer) -> Vec<Problem> {
    let mut ports: Vec<Owned> = ports_of(fragment).collect();
    ports.sort_by_key(|(_, port)| port.place.start);
    let mut owners = Owners::default();
    let mut problems = Vec::new();
    for (name, port) in ports {
        if let Some(first) = owners.of(&port.value) {
            problems.push(two_owners(layer, (name, port), first));
        }
        owners.add(name, port);
    }
    problems
}

/// Services that a layer drops and that no lower one has: a slip of the pen, and the service that was meant stays.
pub(super) fn check_dropped(fragment: &Fragment, lower: &Fragment, layer: &Layer) -> Vec<Problem> {
    let dropped = fragment
        .services
        .iter()
        .filter(|(_, service)| !is_enabled(&service.value) && says_nothing_else(&service.value));
    let unknown = dropped.filter(|(name, _)| !lower.services.contains_key(name));
    unknown
        .map(|(name, service)| {
            let message =
                format!("'enabled: false' drops service '{name}', which no lower layer has");
            let hint = nearest(&name.0, lower.services.keys().map(|n| n.0.as_str()));
            layer.problem(service.place, message, hint.map(|n| format!("did you mean '{n}'?")))
        })
        .collect()
}

fn two_owners(
    layer: &Layer,
    second: (&ServiceName, &At<Endpoint>),
    first: (&ServiceName, Place),
) -> Problem {
    let ((name, port), (owner, place)) = (second, first);
    let (message, hint) = if name == owner {
        (
            format!("port {} is given twice: see line {}", port.value, place.line),
            "keep one of the two",
        )
    } else {
        let message = format!(
            "port {} has two owners in one layer: '{owner}' (line {}) and '{name}'",
            port.value, place.line
        );
        (message, "keep it in one; a layer above may take it over")
    };
    layer.problem(port.place, message, Some(hint.to_owned()))
}

/// Leaves every port with the service of the highest layer that claims it. Two in one layer are refused by `check_owners`
/// already, unless one of them was dropped there and is back through a higher layer.
pub(super) fn take_over(merged: &mut Fragment, layers: &[Layer]) -> (Vec<Takeover>, Vec<Problem>) {
    let mut ports: Vec<Owned> = ports_of(merged).collect();
    ports.sort_by_key(|(_, port)| (std::cmp::Reverse(port.place.layer), port.place.start));
    let mut owners = Owners::default();
    let (mut takeovers, mut problems) = (Vec::new(), Vec::new());
    for (name, port) in ports {
        match owners.of(&port.value) {
            Some((owner, place)) if place.layer == port.place.layer => {
                problems.extend(
                    layers
                        .get(place.layer)
                        .map(|layer| two_owners(layer, (name, port), (owner, place))),
                );
            }
            Some((owner, place)) => takeovers.push(Takeover {
                endpoint: port.value,
                from: At { value: name.clone(), place: port.place },
                to: At { value: owner.clone(), place },
            }),
            None => owners.add(name, port),
        }
    }
    for takeover in &takeovers {
        let ports =
            merged.services.get_mut(&takeover.from.value).and_then(|s| s.value.ports.as_mut());
        if let Some(ports) = ports {
            let lost = |port: &At<Endpoint>| {
                // All ports of a compose file have one place.
                port.place == takeover.from.place && port.value == takeover.endpoint
            };
            ports.value.retain(|port| !lost(port));
        }
    }
    (takeovers, problems)
}

/// Who has which port, found by number and protocol first: a hostile list of ports must not take quadratic time.
#[derive(Default)]
struct Owners<'f>(BTreeMap<(Port, Proto), Vec<Owned<'f>>>);

type Owned<'f> = (&'f ServiceName, &'f At<Endpoint>);

impl<'f> Owners<'f> {
    fn of(&self, endpoint: &Endpoint) -> Option<(&'f ServiceName, Place)> {
        let near = self.0.get(&(endpoint.port, endpoint.proto))?;
        near.iter()
            .find(|(_, port)| port.value.overlaps(endpoint))
            .map(|(name, port)| (*name, port.place))
    }

    fn add(&mut self, name: &'f ServiceName, port: &'f At<Endpoint>) {
        self.0.entry((port.value.port, port.value.proto)).or_default().push((name, port));
    }
}

fn ports_of(fragment: &Fragment) -> impl Iterator<Item = Owned<'_>> {
    let enabled = fragment.services.iter().filter(|(_, service)| is_enabled(&service.value));
    enabled.flat_map(|(name, service)| {
        let ports = service.value.ports.iter().flat_map(|ports| &ports.value);
        ports.map(move |port| (name, port))
    })
}

/// Whether the service takes part.
pub(super) fn is_enabled(service: &ServiceFragment) -> bool {
    service.enabled.as_ref().is_none_or(|enabled| enabled.value)
}

fn says_nothing_else(service: &ServiceFragment) -> bool {
    let ServiceFragment {
        enabled: _,
        runs_in,
        ports,
        reuse_addr,
        gpus,
        gpu_free,
        patterns,
        grace,
        foreign_holder,
    } = service;
    runs_in.is_none()
        && gpus.is_none()
        && gpu_free.is_none()
        && ports.is_none()
        && reuse_addr.is_none()
        && patterns.is_none()
        && grace.is_none()
        && foreign_holder.is_none()
}
