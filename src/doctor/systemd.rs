//! Whether systemd runs here, and who of its managers and logind answers.

use std::{collections::BTreeMap, fs};

use super::{Area, Check, State, off};
use crate::{
    host::Host,
    ident::{Manager, UnitName, UnitRef},
    observe::{self, units},
    snapshot::{Seen, Unit},
};

/// More users' managers than these are not asked.
const MOST_MANAGERS: usize = 32;
/// Every manager has it.
const ANY_UNIT: &str = "basic.target";

/// Who answered.
#[derive(Debug)]
pub(super) struct Systemd {
    is_running: Seen<bool>,
    is_root: bool,
    managers: BTreeMap<Manager, Seen<Unit>>,
    logind: Seen<bool>,
}

pub(super) fn look(host: &Host) -> Systemd {
    let is_running = observe::has_systemd(host, &BTreeMap::new());
    let me = rustix::process::geteuid().as_raw();
    let is_root = me == 0;
    if is_running != Seen::Known(true) {
        return Systemd { is_running, is_root, managers: BTreeMap::new(), logind: Seen::Gone };
    }
    let unit = |manager, name: String| UnitRef { manager, name: UnitName(name) };
    let service = |uid: &u32| unit(Manager::System, format!("user@{uid}.service"));
    let entries = fs::read_dir(host.path("run/user")).into_iter().flatten().flatten();
    let users: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Others' managers answer root alone, which is said where the rights are.
    let users: Vec<u32> =
        users.into_iter().filter(|&uid| is_root || uid == me).take(MOST_MANAGERS).collect();
    let system = unit(Manager::System, ANY_UNIT.to_owned());
    let questions = units::Questions {
        units: users.iter().map(service).chain([system.clone()]).collect(),
        users: [me].into(),
        ..units::Questions::default()
    };
    let mut answers = units::observe(host, &questions);
    // Not every user who is logged in has a manager.
    let runs = |uid: &&u32| {
        answers.units.get(&service(uid)).and_then(Seen::known).is_some_and(|unit| !unit.is_dead())
    };
    let managers = users.iter().filter(runs).map(|&uid| Manager::User(uid));
    let questions = units::Questions {
        units: managers.map(|manager| unit(manager, ANY_UNIT.to_owned())).collect(),
        ..units::Questions::default()
    };
    let of_users = units::observe(host, &questions).units.into_iter();
    let of_system = answers.units.remove(&system).into_iter().map(|seen| (Manager::System, seen));
    let managers = of_users.map(|(unit, seen)| (unit.manager, seen)).chain(of_system).collect();
    let logind = answers.lingering.remove(&me).unwrap_or(Seen::Gone);
    Systemd { is_running, is_root, managers, logind }
}

pub(super) fn checks(systemd: &Systemd) -> Vec<Check> {
    let new = |name: &str, state, detail: String| Check::new(Area::Systemd, name, state, detail);
    let name = "systemd";
    let undecided = "what runs in a unit is undecided";
    let mut checks = match &systemd.is_running {
        Seen::Known(true) => vec![new(name, State::Good, "runs this host".to_owned())],
        Seen::Known(false) | Seen::Gone => {
            let detail = "does not run here; a terminal alone speaks for a session";
            return vec![new(name, State::Absent, detail.to_owned())];
        }
        Seen::Denied => {
            let detail = "whether it runs could not be learnt: permission denied".to_owned();
            return vec![new(name, State::Unknown { fix: Some("run as root".to_owned()) }, detail)];
        }
        Seen::Unreadable(why) => {
            let fix = "run it on the host, or give the container the host's /run (-v /run:/run)";
            return vec![new(name, off(fix), format!("{why}; {undecided}"))];
        }
    };
    if !systemd.is_root {
        let name = "ask other users' systemd managers";
        let detail =
            "they answer nobody but their user and root: what runs in their units is undecided";
        checks.push(Check::new(Area::Rights, name, off("run as root"), detail));
    }
    for (manager, answer) in &systemd.managers {
        let name = match manager {
            Manager::System => "system manager".to_owned(),
            Manager::User(uid) => format!("manager of user {uid}"),
        };
        let fix = match manager {
            Manager::System => "see why: systemctl is-system-running, as root".to_owned(),
            Manager::User(uid) => format!("see why: systemctl status user@{uid}.service"),
        };
        checks.push(answered(&name, answer, &fix, undecided));
    }
    let fix = "see why: systemctl status systemd-logind dbus";
    let undecided = "what runs in a login session is undecided";
    checks.push(answered("logind", &systemd.logind, fix, undecided));
    checks
}

fn answered<T>(name: &str, answer: &Seen<T>, fix: &str, otherwise: &str) -> Check {
    let (state, detail) = match answer {
        // "No such unit" is an answer, too.
        Seen::Known(_) | Seen::Gone => (State::Good, "answers".to_owned()),
        Seen::Denied => (off("run as root"), format!("does not answer us; {otherwise}")),
        Seen::Unreadable(why) => (off(fix), format!("{why}; {otherwise}")),
    };
    Check::new(Area::Systemd, name, state, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_systemd_lacks_nothing() {
        let none = Systemd {
            is_running: Seen::Known(false),
            is_root: false,
            managers: BTreeMap::new(),
            logind: Seen::Gone,
        };
        assert!(matches!(checks(&none).as_slice(), [check] if check.state == State::Absent));
    }

    #[test]
    fn a_manager_that_does_not_answer_is_off_and_no_answer_of_another() {
        let silent = || Seen::Unreadable("systemd did not answer within 3 s".to_owned());
        let systemd = Systemd {
            is_running: Seen::Known(true),
            is_root: true,
            managers: [(Manager::System, silent()), (Manager::User(1000), Seen::Gone)].into(),
            logind: Seen::Unreadable("logind cannot be asked".to_owned()),
        };
        let states: Vec<bool> =
            checks(&systemd).iter().map(|c| matches!(c.state, State::Off { .. })).collect();
        assert_eq!(states, [false, true, false, true]);
    }

    #[test]
    fn a_systemd_whose_run_is_not_ours_is_off() {
        let hidden = Systemd {
            is_running: Seen::Unreadable("its /run is not this one".to_owned()),
            is_root: true,
            managers: BTreeMap::new(),
            logind: Seen::Gone,
        };
        assert!(matches!(checks(&hidden).as_slice(), [Check { state: State::Off { .. }, .. }]));
    }
}
