//! What two models cannot both have, known from their specs alone: no port is looked at and no engine asked.

use std::fmt;

use super::{Helper, Spec};
use crate::ident::{Endpoint, GpuName, ModelName, Proto};

/// A port of the host that a model takes when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Which.
    pub endpoint: Endpoint,
    /// What for; none = to be asked by its clients.
    pub what: Option<&'static str>,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            None => write!(f, "port {}", self.endpoint.short()),
            Some(what) => write!(f, "port {} ({what})", self.endpoint.short()),
        }
    }
}

/// Something that a new model and another both want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other.
    pub with: ModelName,
    /// What.
    pub clash: Clash,
}

/// What both want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clash {
    /// Ports that no two can bind: an error. Both would start only while the other does not run.
    Ports {
        /// The new one's.
        ours: Claim,
        /// The other's.
        theirs: Claim,
    },
    /// A GPU: a warning. GPUs are shared on purpose, and how much is free is asked before a start (decision 0016).
    Gpu(GpuName),
}

impl Conflict {
    /// Whether the two can never run side by side.
    pub fn is_error(&self) -> bool {
        match self.clash {
            Clash::Ports { .. } => true,
            Clash::Gpu(_) => false,
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = &self.with;
        match &self.clash {
            Clash::Ports { ours, theirs } if ours == theirs => write!(f, "{ours} is also {with}'s"),
            Clash::Ports { ours, theirs } => write!(f, "{ours} overlaps {with}'s {theirs}"),
            Clash::Gpu(GpuName::All) => write!(f, "{with} uses GPUs too"),
            Clash::Gpu(gpu) => write!(f, "{with} uses GPU {gpu} too"),
        }
    }
}

/// The ports of the host that it takes. What a container binds beside its own port stays in its own network namespace.
pub fn claims(spec: &Spec) -> Vec<Claim> {
    let at = |port, address| Endpoint { port, proto: Proto::Tcp, address, is_v6only: false };
    let own = Claim { endpoint: at(spec.port(), Some(spec.host)), what: None };
    let helpers = (spec.backend.backend().helpers)(spec);
    let helpers = helpers.into_iter().filter(|_| spec.is_on_hosts_network());
    // Servers bind these everywhere: torch's store and Prometheus' exporter take no address from us.
    let helper = |h: Helper| Claim { endpoint: at(h.port, None), what: Some(h.what) };
    [own].into_iter().chain(helpers.map(helper)).collect()
}

/// What the new model and the others cannot both have; an entry of its own name is the one that it replaces. GPUs that are
/// named in two ways, by number here and by UUID there, are not compared: only the host knows which is which.
pub fn conflicts(others: &[(ModelName, &Spec)], name: &ModelName, new: &Spec) -> Vec<Conflict> {
    let ours = claims(new);
    let others = others.iter().filter(|(other, _)| other != name);
    others
        .flat_map(|(with, spec)| {
            let ports = ports(&ours, &claims(spec));
            let gpus = gpus(&new.gpus, &spec.gpus).map(Clash::Gpu);
            let found = ports.into_iter().chain(gpus);
            found.map(|clash| Conflict { with: with.clone(), clash }).collect::<Vec<_>>()
        })
        .collect()
}

fn ports(ours: &[Claim], theirs: &[Claim]) -> Vec<Clash> {
    let pairs = ours.iter().flat_map(|a| theirs.iter().map(move |b| (*a, *b)));
    let overlap = pairs.filter(|(a, b)| a.endpoint.overlaps(&b.endpoint));
    overlap.map(|(ours, theirs)| Clash::Ports { ours, theirs }).collect()
}

fn gpus(ours: &[GpuName], theirs: &[GpuName]) -> Option<GpuName> {
    let is_all = |gpus: &[GpuName]| gpus.contains(&GpuName::All);
    match (is_all(ours), is_all(theirs)) {
        (true, true) => Some(GpuName::All),
        (true, false) => theirs.first().cloned(),
        (false, true) => ours.first().cloned(),
        (false, false) => ours.iter().find(|gpu| theirs.contains(gpu)).cloned(),
    }
}
