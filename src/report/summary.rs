//! The counts that end every report.

use schemars::JsonSchema;
use serde::Serialize;

use super::judged;
use crate::{
    act::Outcome,
    judge::{
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
}

impl Summary {
    pub(super) fn of_findings(findings: &Findings) -> Self {
        Self::of(findings.verdicts.iter().map(|verdict| (verdict, None)), &findings.ports)
    }

    pub(super) fn of_reaped(reaped: &Reaped) -> Self {
        Self::of(judged(reaped), &reaped.after.ports)
    }

    pub(super) fn of<'a>(
        processes: impl Iterator<Item = (&'a Verdict, Option<&'a Outcome>)>,
        ports: &[PortVerdict],
    ) -> Self {
        let mut summary = Self::default();
        processes.for_each(|(verdict, outcome)| summary.count(verdict, outcome));
        summary.count_ports(ports);
        summary
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
