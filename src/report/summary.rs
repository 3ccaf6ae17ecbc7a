//! The counts that end every report.

use schemars::JsonSchema;
use serde::Serialize;

use super::judged;
use crate::{
    act::Outcome,
    judge::{
        gpu::{GpuState, GpuVerdict},
        port::{PortState, PortVerdict},
        verdict::{Finding, Verdict},
    },
    pipeline::{Findings, Reaped},
};

/// Counts of the processes and ports above.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct Summary {
    /// Processes found left behind; of a reap, before it.
    pub(super) orphans: usize,
    /// Processes that look left behind where nothing declares where they ought to run.
    pub(super) suspects: usize,
    /// Processes of containers that run and whose monitor is gone, and forwarders to them.
    pub(super) unsupervised: usize,
    /// Living holders of guarded ports that are neither owner nor orphan.
    pub(super) foreign: usize,
    /// Processes that could not be judged for want of a fact.
    pub(super) undecided: usize,
    /// Processes that are alive and in their place.
    pub(super) spared: usize,
    /// Processes that were to be ended and are gone.
    pub(super) ended: usize,
    /// Processes that were to be ended and are not known to be gone.
    pub(super) not_ended: usize,
    /// Guarded ports that were asked about: the sum of the five counts below.
    pub(super) ports_guarded: usize,
    /// Ports that nothing has.
    pub(super) ports_free: usize,
    /// Ports on which nothing listens, where a socket that is bound and silent could not be seen.
    pub(super) ports_without_listener: usize,
    /// Ports on which only closing connections remain.
    pub(super) ports_lingering: usize,
    /// Ports that somebody has, seen or not.
    pub(super) ports_held: usize,
    /// Ports of which nothing could be learnt.
    pub(super) ports_unknown: usize,
    /// Guarded GPUs that were asked about: the sum of the four counts below.
    pub(super) gpus_guarded: usize,
    /// GPUs on which nobody computes, with enough memory free.
    pub(super) gpus_free: usize,
    /// GPUs on which somebody computes.
    pub(super) gpus_held: usize,
    /// GPUs whose memory is taken by nobody, and GPUs that are not there.
    pub(super) gpus_short: usize,
    /// GPUs of which nothing could be learnt.
    pub(super) gpus_unknown: usize,
    /// Containers of models that run and that nothing needs; 0 also where they were not looked for.
    pub(super) model_containers: usize,
}

impl Summary {
    pub(super) fn of_findings(findings: &Findings) -> Self {
        let processes = findings.verdicts.iter().map(|verdict| (verdict, None));
        Self::of_processes(processes).with(findings)
    }

    pub(super) fn of_reaped(reaped: &Reaped) -> Self {
        Self::of_processes(judged(reaped)).with(&reaped.after)
    }

    pub(super) fn of_processes<'a>(
        processes: impl Iterator<Item = (&'a Verdict, Option<&'a Outcome>)>,
    ) -> Self {
        let mut summary = Self::default();
        processes.for_each(|(verdict, outcome)| summary.count(verdict, outcome));
        summary
    }

    fn with(mut self, findings: &Findings) -> Self {
        self.count_ports(&findings.ports);
        self.count_gpus(&findings.gpus);
        self.model_containers = findings.model_containers.as_ref().map_or(0, Vec::len);
        self
    }

    fn count(&mut self, verdict: &Verdict, outcome: Option<&Outcome>) {
        *match verdict.finding {
            Finding::Spare(_) => &mut self.spared,
            Finding::Orphan(_) => &mut self.orphans,
            Finding::Suspect => &mut self.suspects,
            Finding::Unsupervised(_) => &mut self.unsupervised,
            Finding::Foreign => &mut self.foreign,
            Finding::Undecided(_) => &mut self.undecided,
        } += 1;
        match outcome {
            Some(outcome) if outcome.is_gone() => self.ended += 1,
            Some(_) => self.not_ended += 1,
            None => {}
        }
    }

    fn count_gpus(&mut self, gpus: &[GpuVerdict]) {
        self.gpus_guarded = gpus.len();
        for gpu in gpus {
            *match gpu.state {
                GpuState::Free => &mut self.gpus_free,
                GpuState::Held(_) => &mut self.gpus_held,
                GpuState::Residual | GpuState::Absent => &mut self.gpus_short,
                GpuState::Unknown(_) => &mut self.gpus_unknown,
            } += 1;
        }
    }

    fn count_ports(&mut self, ports: &[PortVerdict]) {
        self.ports_guarded = ports.len();
        for port in ports {
            *match port.state {
                PortState::Free => &mut self.ports_free,
                PortState::NoListener => &mut self.ports_without_listener,
                PortState::Lingering => &mut self.ports_lingering,
                PortState::Held(_)
                | PortState::BoundOnly(_)
                | PortState::Ephemeral { .. }
                | PortState::Connected { .. }
                | PortState::KernelOwned
                | PortState::Allocated(_)
                | PortState::Detoured(_)
                | PortState::HolderNotVisible => &mut self.ports_held,
                PortState::Unknown(_) => &mut self.ports_unknown,
            } += 1;
        }
    }
}
