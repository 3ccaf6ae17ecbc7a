//! The exit code, an interface: 0 clear, 1 not clear, 2 could not tell. 1 outranks 2, which outranks 0.

use crate::{
    ident::Pid,
    judge::{
        gpu::{GpuState, GpuVerdict},
        port::{PortState, PortVerdict},
        verdict::{Finding, Verdict},
    },
    pipeline::{Findings, Reaped},
};

/// Guarded ports and GPUs are free, or held by what is alive and spared.
pub const CLEAR: u8 = 0;
/// Something remains that ought not to be there.
pub const NOT_CLEAR: u8 = 1;
/// Sight was incomplete; also bad usage and bad settings.
pub const COULD_NOT_TELL: u8 = 2;

/// The code for several answers together.
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    let codes: Vec<u8> = codes.into_iter().collect();
    let order = [NOT_CLEAR, COULD_NOT_TELL];
    order.into_iter().find(|code| codes.contains(code)).unwrap_or(CLEAR)
}

/// The code for what one look found: of `scan` and of `reap --dry-run`.
pub fn of_findings(findings: &Findings) -> u8 {
    let processes = findings.verdicts.iter().map(of_verdict);
    let ports = findings.ports.iter().map(|port| of_port(port, &findings.verdicts));
    let gpus = findings.gpus.iter().map(|gpu| of_gpu(gpu, &findings.verdicts));
    let containers = findings.model_containers.iter().flatten().map(|_| NOT_CLEAR);
    let unseen = findings.unknowns.iter().map(|_| COULD_NOT_TELL);
    processes.chain(ports).chain(gpus).chain(containers).chain(unseen).fold(CLEAR, worse)
}

/// The code for a reap: that of the last look, and not clear where an end was not seen or undone.
pub fn of_reaped(reaped: &Reaped) -> u8 {
    let deeds =
        reaped.deeds.iter().map(|deed| if deed.outcome.is_gone() { CLEAR } else { NOT_CLEAR });
    let respawns = reaped.respawns.iter().map(|_| NOT_CLEAR);
    // What was cut short has proved nothing.
    let interrupted = if reaped.was_interrupted { COULD_NOT_TELL } else { CLEAR };
    deeds.chain(respawns).fold(worse(of_findings(&reaped.after), interrupted), worse)
}

pub(super) fn worse(a: u8, b: u8) -> u8 {
    match (a, b) {
        (NOT_CLEAR, _) | (_, NOT_CLEAR) => NOT_CLEAR,
        (a, b) => a.max(b),
    }
}

fn of_verdict(verdict: &Verdict) -> u8 {
    match verdict.finding {
        Finding::Spare(_) => CLEAR,
        Finding::Orphan(_) | Finding::Suspect | Finding::Unsupervised(_) | Finding::Foreign => {
            NOT_CLEAR
        }
        Finding::Undecided(_) => COULD_NOT_TELL,
    }
}

pub(super) fn of_port(port: &PortVerdict, verdicts: &[Verdict]) -> u8 {
    match &port.state {
        PortState::Free | PortState::NoListener | PortState::Lingering => CLEAR,
        // The holders' own verdicts count; a holder without one was not judged, which clears nobody.
        PortState::Held(holders) | PortState::BoundOnly(holders) => of_holders(holders, verdicts),
        PortState::Ephemeral { .. }
        | PortState::Connected { .. }
        | PortState::KernelOwned
        | PortState::Allocated(_)
        | PortState::Detoured(_) => NOT_CLEAR,
        PortState::HolderNotVisible | PortState::Unknown(_) => COULD_NOT_TELL,
    }
}

fn of_gpu(gpu: &GpuVerdict, verdicts: &[Verdict]) -> u8 {
    match &gpu.state {
        GpuState::Free => CLEAR,
        GpuState::Held(_) if gpu.may_miss.is_some() => COULD_NOT_TELL,
        GpuState::Held(holders) => of_holders(holders, verdicts),
        GpuState::Residual | GpuState::Absent => NOT_CLEAR,
        GpuState::Unknown(_) => COULD_NOT_TELL,
    }
}

fn of_holders(holders: &[Pid], verdicts: &[Verdict]) -> u8 {
    let is_judged = |pid| verdicts.iter().any(|v| v.process.key.pid == pid);
    let are_all = !holders.is_empty() && holders.iter().all(|&pid| is_judged(pid));
    if are_all { CLEAR } else { COULD_NOT_TELL }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        act::{Deed, Outcome, Respawn},
        judge::verdict::{Orphan, Spare},
        report::sample::{self, findings, key, port, unknown, verdict},
    };

    fn spare() -> Finding {
        Finding::Spare(Spare::Session("terminal".into()))
    }

    fn orphan() -> Finding {
        Finding::Orphan(Orphan::Worker("vllm".into()))
    }

    fn undecided() -> Finding {
        Finding::Undecided(unknown())
    }

    #[test]
    fn one_verdict_gives_the_code_of_its_kind() {
        for (finding, code) in [
            (spare(), 0),
            (orphan(), 1),
            (Finding::Suspect, 1),
            (Finding::Foreign, 1),
            (undecided(), 2),
        ] {
            assert_eq!(
                of_findings(&findings(vec![], vec![verdict(7, finding.clone())])),
                code,
                "{finding:?}"
            );
        }
    }

    #[test]
    fn one_port_gives_the_code_of_its_state() {
        let peer = "192.0.2.1:443".parse().unwrap();
        for (state, code) in [
            (PortState::Free, 0),
            (PortState::NoListener, 0),
            (PortState::Lingering, 0),
            (PortState::Connected { holders: vec![Pid(7)], peer }, 1),
            (PortState::Held(vec![Pid(7)]), 0),
            (PortState::BoundOnly(vec![Pid(7)]), 0),
            (PortState::Held(vec![Pid(7), Pid(8)]), 2),
            (PortState::Held(vec![]), 2),
            (PortState::Ephemeral { holders: vec![Pid(7)], peer }, 1),
            (PortState::KernelOwned, 1),
            (PortState::HolderNotVisible, 2),
            (PortState::Unknown(unknown()), 2),
        ] {
            let found = findings(vec![port("8091", state.clone())], vec![verdict(7, spare())]);
            assert_eq!(of_findings(&found), code, "{state:?}");
        }
    }

    #[test]
    fn a_gpu_that_more_may_hold_is_not_clear_and_is_told() {
        let mut found = findings(vec![], vec![verdict(31_337, spare())]);
        found.gpus = sample::gpus_of_mess();
        found.gpus.truncate(1);
        assert_eq!(of_findings(&found), 0);
        found.gpus[0].may_miss = Some("hidepid".into());
        assert_eq!(of_findings(&found), 2);
        let mut text = Vec::new();
        crate::report::github::render_findings(&found, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("::warning title=portreeve%3A GPU 0::"), "{text}");
    }

    #[test]
    fn a_known_orphan_outranks_what_could_not_be_told_in_any_order() {
        assert_eq!(
            of_findings(&findings(vec![], vec![verdict(7, undecided()), verdict(8, orphan())])),
            1
        );
        assert_eq!(
            of_findings(&findings(vec![], vec![verdict(8, orphan()), verdict(7, undecided())])),
            1
        );
        let mut found = findings(vec![port("8091", PortState::KernelOwned)], vec![]);
        found.unknowns.push(unknown());
        assert_eq!(of_findings(&found), 1);
    }

    #[test]
    fn an_orphaned_model_container_is_not_clear_of_whatever_was_not_seen() {
        let mut found = findings(vec![], vec![]);
        for (containers, code) in
            [(None, 0), (Some(vec![]), 0), (Some(vec![sample::container()]), 1)]
        {
            found.model_containers = containers;
            assert_eq!(of_findings(&found), code);
        }
        found.unknowns.push(unknown());
        assert_eq!(of_findings(&found), 1);
    }

    #[test]
    fn nothing_found_is_clear_unless_something_was_not_seen() {
        let mut found = findings(vec![port("8091", PortState::Free)], vec![]);
        assert_eq!(of_findings(&found), 0);
        found.unknowns.push(unknown());
        assert_eq!(of_findings(&found), 2);
    }

    #[test]
    fn a_reap_is_clear_only_when_every_end_was_seen_and_stayed() {
        for (outcome, code) in sample::outcomes().into_iter().zip([0, 0, 0, 1, 1, 1, 1]) {
            let mut reaped = sample::reaped_nothing();
            reaped.deeds.push(Deed { verdict: verdict(7, orphan()), outcome: outcome.clone() });
            assert_eq!(of_reaped(&reaped), code, "{outcome:?}");
        }
        let mut reaped = sample::reaped_nothing();
        assert_eq!(of_reaped(&reaped), 0);
        reaped.was_interrupted = true;
        assert_eq!(of_reaped(&reaped), 2);
        reaped.deeds.push(Deed { verdict: verdict(7, orphan()), outcome: Outcome::Vanished });
        reaped.respawns.push(Respawn {
            key: key(9),
            command_line: String::new(),
            like: "8091/tcp".into(),
            brought_by: "pid 6".into(),
            next_step: "stop pid 6".into(),
        });
        assert_eq!(of_reaped(&reaped), 1);
    }

    #[test]
    fn a_reap_that_ended_all_it_should_still_tells_of_what_the_last_look_found() {
        let mut reaped = sample::reaped_nothing();
        reaped.after = findings(vec![port("5432", PortState::HolderNotVisible)], vec![]);
        assert_eq!(of_reaped(&reaped), 2);
        reaped.after.verdicts.push(verdict(7, Finding::Foreign));
        assert_eq!(of_reaped(&reaped), 1);
    }
}
