//! Who took a port between a gate that found it free and the service that was to have it.

use super::{
    super::{port::PortVerdict, seconds, verdict::Verdict},
    Look, service_of,
};
use crate::{
    config::settings::RunsIn,
    ident::{Manager, Pid},
    snapshot::{Passed, Process},
};

impl Look<'_> {
    /// That nothing had the port when a gate before this one let it pass, and so this process took it since. Not of the
    /// service itself, as far as that can be told; a thief is only who surely is not.
    pub(super) fn since(&self, port: &PortVerdict, pid: Pid) -> Option<String> {
        let passed = self.passed.iter().find(|passed| passed.endpoint == port.endpoint)?;
        let process = self.snapshot.processes.get(&pid)?;
        let verdict = self.verdict_on(pid);
        let service = service_of(port, self.settings);
        let is_ours = |v| self.is_in_our_place(v) || service.is_some_and(|s| self.is_of(s, v));
        if verdict.is_some_and(is_ours) || is_in_unit_of(passed, process) {
            return None;
        }
        let free = format!(
            "a gate found it free {} ago",
            seconds(self.snapshot.clock.age(passed.at_ticks)?)
        );
        // An engine starts containers for the command, and is no child of it.
        let may_be_told = !may_be_contained(process) && !verdict.is_some_and(is_of_containers);
        let gate = passed.gate.pid;
        match self.is_started_by(passed, process) {
            Some(true) => None,
            Some(false) | None if may_be_told && self.is_elsewhere(port, process) => Some(format!(
                "it took the port after {free}, and does not run where the port's service does: the thief"
            )),
            Some(false) if may_be_told && passed.became_command => Some(format!(
                "it took the port after {free} for its command, pid {gate}, which did not start it: the thief"
            )),
            Some(false) if may_be_told && passed.unit_path.is_some() => Some(format!(
                "it took the port after {free} for its unit, in which it does not run: the thief"
            )),
            Some(false) | None => Some(format!("it took the port after {free}")),
        }
    }

    /// Whether the port's service is declared to run where this process, in no container, does not.
    fn is_elsewhere(&self, port: &PortVerdict, process: &Process) -> bool {
        match service_of(port, self.settings).and_then(|service| service.runs_in.as_ref()) {
            Some(RunsIn::Unit(name)) => process.cgroup.known().is_some_and(|cgroup| {
                cgroup
                    .unit
                    .as_ref()
                    .is_none_or(|unit| unit.manager != Manager::System || unit.name != *name)
            }),
            Some(RunsIn::Container(_)) => true,
            None => false,
        }
    }

    /// Whether it descends from the gate, or the command that this became; none where that cannot be told. Who loses their
    /// parent gets one of their ancestors in its place (prctl(2), `PR_SET_CHILD_SUBREAPER`). So above a descendant whose
    /// line is broken comes somebody who stood above the gate, too; under anybody else who is older than the passage there
    /// is none.
    fn is_started_by(&self, passed: &Passed, process: &Process) -> Option<bool> {
        let pid = process.key.pid;
        let line = std::iter::once(process).chain(self.snapshot.ancestors(pid));
        for above in line {
            if above.key.is_same(&passed.gate) {
                return Some(true);
            }
            if above.key.start_ticks < passed.at_ticks {
                let ancestors = passed.ancestors.as_ref()?;
                return (!ancestors.contains(&above.key.pid)).then_some(false);
            }
        }
        None
    }
}

fn is_in_unit_of(passed: &Passed, process: &Process) -> bool {
    let path = process.cgroup.known().map(|cgroup| &cgroup.path);
    path.is_some() && path == passed.unit_path.as_ref()
}

/// What is not surely outside of containers may be in one.
fn may_be_contained(process: &Process) -> bool {
    let has_claim = process.cgroup.known().is_none_or(|cgroup| cgroup.claim.is_some());
    has_claim || process.namespace_pids.known().is_none_or(|pids| pids.len() > 1)
}

/// The rows of containers and of those who forward to them.
fn is_of_containers(verdict: &Verdict) -> bool {
    (3..=7).contains(&verdict.row.0)
}
