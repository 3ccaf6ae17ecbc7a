//! Which features this process has the rights for.

use super::{Area, Check, State, off};
use crate::{
    host::Host,
    observe::{self, capabilities},
    snapshot::{Seen, Sight},
};

/// What decides on our rights.
#[derive(Debug, Clone)]
pub(super) struct Rights {
    /// Effective capabilities.
    capabilities: Seen<u64>,
    is_first_user_namespace: bool,
    sight: Sight,
    /// `/proc` numbers processes as the kernel does for us.
    is_proc_ours: bool,
}

pub(super) fn look(host: &Host) -> Rights {
    Rights {
        capabilities: observe::effective_capabilities(host),
        is_first_user_namespace: observe::is_first_user_namespace(host),
        sight: observe::sight(host),
        is_proc_ours: observe::is_proc_ours(host),
    }
}

/// A feature, the capabilities without which it is off, and what its want means.
struct Feature {
    name: &'static str,
    needs: &'static [(u64, &'static str)],
    /// Where one of these is effective, what it covers is not missing.
    covered: u64,
    with: &'static str,
    without: &'static str,
}

const FEATURES: [Feature; 2] = [
    Feature {
        name: "see processes and holders",
        needs: &[
            (capabilities::SYS_PTRACE, "CAP_SYS_PTRACE"),
            (capabilities::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
        ],
        covered: capabilities::DAC_OVERRIDE,
        with: "every process's descriptors, links and environment may be read",
        without: "who holds another user's socket stays unseen, and what depends on it undecided",
    },
    Feature {
        name: "end processes",
        needs: &[(capabilities::KILL, "CAP_KILL")],
        covered: 0,
        with: "'reap' may signal every process",
        without: "'reap' may signal nobody but processes of its own user",
    },
];

pub(super) fn checks(rights: &Rights) -> Vec<Check> {
    let mut checks: Vec<Check> = FEATURES.iter().map(|feature| check(rights, feature)).collect();
    checks.push(every_process(rights));
    checks
}

fn check(rights: &Rights, feature: &Feature) -> Check {
    let Feature { name, needs, covered, with, without } = *feature;
    let new = |state, detail: String| Check::new(Area::Rights, name, state, detail);
    let Seen::Known(effective) = rights.capabilities else {
        let detail = "our own capabilities could not be read from '/proc/self/status'";
        return new(State::Unknown { fix: Some(OWN_PROC.to_owned()) }, detail.to_owned());
    };
    let is_missing = |bit: u64| {
        let is_covered = bit == capabilities::DAC_READ_SEARCH && effective & covered != 0;
        effective & bit == 0 && !is_covered
    };
    let missing: Vec<&str> =
        needs.iter().filter(|(bit, _)| is_missing(*bit)).map(|&(_, name)| name).collect();
    if !missing.is_empty() {
        let named = missing.join(" and ");
        let fix = format!(
            "run as root with its capabilities, or with {named} (in a unit: AmbientCapabilities={}; in a container: \
             --cap-add)",
            missing.join(" ")
        );
        return new(off(fix), format!("for want of {named}, {without}"));
    }
    if !rights.is_first_user_namespace {
        let detail = format!("our capabilities end with our user namespace: {without}");
        return new(off("run it outside of the container or user namespace"), detail);
    }
    new(State::Good, with.to_owned())
}

const OWN_PROC: &str = "mount a /proc of its own: mount -t proc proc /proc";

/// Whether `/proc` shows all of the machine's processes.
fn every_process(rights: &Rights) -> Check {
    let new = |state, detail| Check::new(Area::Rights, "see the whole machine", state, detail);
    let Sight { is_first_pid_namespace, is_proc_hidden, .. } = rights.sight;
    if !rights.is_proc_ours {
        let detail = "'/proc' belongs to another pid namespace than this run, or is missing: no process is seen";
        new(off(OWN_PROC), detail)
    } else if !is_first_pid_namespace {
        let detail = "processes outside our pid namespace stay unseen: a port that one of them holds has no holder to us";
        new(off("run it on the host, or in a container with the host's pids (--pid=host)"), detail)
    } else if is_proc_hidden {
        let detail = "'/proc' is mounted with hidepid: other users' processes stay unseen";
        new(off("run as root, or with CAP_SYS_PTRACE"), detail)
    } else {
        new(State::Good, "'/proc' shows every process of the machine")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = capabilities::SYS_PTRACE | capabilities::DAC_READ_SEARCH | capabilities::KILL;

    fn full() -> Rights {
        Rights {
            capabilities: Seen::Known(ALL),
            is_first_user_namespace: true,
            sight: Sight { may_see_all: true, is_first_pid_namespace: true, is_proc_hidden: false },
            is_proc_ours: true,
        }
    }

    fn offs(rights: &Rights) -> Vec<String> {
        let all = checks(rights).into_iter();
        all.filter(|c| matches!(c.state, State::Off { .. })).map(|c| c.name).collect()
    }

    #[test]
    fn nothing_is_off_with_the_three_capabilities() {
        assert_eq!(offs(&full()), [""; 0]);
    }

    #[test]
    fn each_missing_capability_switches_its_own_feature_off_and_is_named_in_the_fix() {
        for (bit, name, feature) in [
            (capabilities::SYS_PTRACE, "CAP_SYS_PTRACE", "see processes and holders"),
            (capabilities::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "see processes and holders"),
            (capabilities::KILL, "CAP_KILL", "end processes"),
        ] {
            let rights = Rights { capabilities: Seen::Known(ALL & !bit), ..full() };
            assert_eq!(offs(&rights), [feature]);
            let fixes: Vec<String> =
                checks(&rights).iter().filter_map(|c| c.fix().map(str::to_owned)).collect();
            assert!(fixes.len() == 1 && fixes[0].contains(name), "{fixes:?}");
        }
    }

    #[test]
    fn cap_dac_override_opens_what_cap_dac_read_search_opens() {
        let without = ALL & !capabilities::DAC_READ_SEARCH;
        let rights =
            Rights { capabilities: Seen::Known(without | capabilities::DAC_OVERRIDE), ..full() };
        assert_eq!(offs(&rights), [""; 0]);
    }

    #[test]
    fn all_capabilities_of_a_nested_user_namespace_are_none() {
        let rights = Rights { is_first_user_namespace: false, ..full() };
        assert_eq!(offs(&rights), ["see processes and holders", "end processes"]);
    }

    #[test]
    fn capabilities_that_could_not_be_read_are_unknown_and_not_had() {
        let rights = Rights { capabilities: Seen::Denied, ..full() };
        let unknown =
            checks(&rights).iter().filter(|c| matches!(c.state, State::Unknown { .. })).count();
        assert_eq!(unknown, 2);
    }

    #[test]
    fn a_proc_that_does_not_show_the_machine_is_off() {
        let sight = full().sight;
        for rights in [
            Rights { is_proc_ours: false, ..full() },
            Rights { sight: Sight { is_first_pid_namespace: false, ..sight }, ..full() },
            Rights { sight: Sight { is_proc_hidden: true, ..sight }, ..full() },
        ] {
            assert_eq!(offs(&rights), ["see the whole machine"]);
        }
    }
}
