//! Receipts against this host: whether the process that one names is there, and what systemd says of who keeps it.

use std::collections::BTreeMap;

use super::{clock, is_proc_ours, processes};
use crate::{
    host::Host,
    ident::{Pid, ProcessKey, UnitRef},
    snapshot::{Owner, Process, Receipt, Seen, Unit},
};

/// The processes that these receipts name, where they are still there: not those that have only their process id.
pub fn still_there<'a>(host: &Host, receipts: impl Iterator<Item = &'a Receipt>) -> Vec<Pid> {
    let mut receipts = receipts.peekable();
    if receipts.peek().is_none() || !is_proc_ours(host) {
        return Vec::new();
    }
    let boot_id = clock(host).boot_id;
    let is_there = |receipt: &&Receipt| {
        let is_this_boot = boot_id.known().is_none_or(|id| *id == receipt.boot_id);
        is_this_boot && key_of(host, receipt.key.pid).is_some_and(|key| key.is_same(&receipt.key))
    };
    receipts.filter(is_there).map(|receipt| receipt.key.pid).collect()
}

fn key_of(host: &Host, pid: Pid) -> Option<ProcessKey> {
    // Open before the start time is read, so that both are of one process.
    let pidfd = if host.is_live() { processes::open_pidfd(pid) } else { Seen::Gone };
    let pidfd_inode = pidfd.known().and_then(processes::pidfd_inode);
    let start_ticks = processes::read_stat(host, pid).known()?.starttime;
    Some(ProcessKey { pid, start_ticks, pidfd_inode })
}

/// Those that name one of these processes, or one that had its process id before.
pub(super) fn about(all: &[Receipt], processes: &BTreeMap<Pid, Process>) -> Vec<Receipt> {
    all.iter().filter(|receipt| processes.contains_key(&receipt.key.pid)).cloned().collect()
}

/// The units that keep what these receipts name: none of a process that is another by now.
pub(super) fn owners(
    receipts: &[Receipt],
    processes: &BTreeMap<Pid, Process>,
) -> impl Iterator<Item = UnitRef> {
    let names = |receipt: &&Receipt| {
        processes.get(&receipt.key.pid).is_some_and(|process| process.key.is_same(&receipt.key))
    };
    receipts.iter().filter(names).filter_map(|receipt| match &receipt.owner {
        Owner::Unit(unit) => Some(unit.clone()),
        Owner::Container(_) | Owner::Unsaid => None,
    })
}

/// Adds what their manager says of these owners.
pub(super) fn with_owners(receipts: &mut [Receipt], units: &BTreeMap<UnitRef, Seen<Unit>>) {
    for Receipt { owner, is_owner_alive, .. } in receipts {
        // Who is on the way up or down lives, whatever its unit is doing yet.
        if let Owner::Unit(unit) = owner
            && *is_owner_alive != Seen::Known(true)
            && let Some(seen) = units.get(unit)
        {
            *is_owner_alive = match seen {
                Seen::Known(unit) => Seen::Known(!unit.is_dead() && !unit.waits_for_restart()),
                // "No such unit" is an answer.
                Seen::Gone => Seen::Known(false),
                Seen::Denied => Seen::Denied,
                Seen::Unreadable(why) => Seen::Unreadable(why.clone()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ident::Manager, snapshot::KillMode};

    fn llama() -> UnitRef {
        UnitRef { manager: Manager::System, name: "portreeve-model-llama.service".into() }
    }

    fn unit(active_state: &str, sub_state: &str) -> Seen<Unit> {
        Seen::Known(Unit {
            is_loaded: true,
            active_state: active_state.to_owned(),
            sub_state: sub_state.to_owned(),
            kill_mode: Some(KillMode::Mixed),
            sends_sigkill: true,
            is_delegated: false,
            main_pid: None,
            control_pid: None,
            invocation_id: None,
            started: None,
            restart: None,
        })
    }

    fn receipt(pid: u32, start_ticks: u64) -> Receipt {
        Receipt {
            boot_id: "this".to_owned(),
            key: ProcessKey { pid: Pid(pid), start_ticks, pidfd_inode: None },
            exe: None,
            uid: None,
            model: "llama".into(),
            writer: 0,
            owner: Owner::Unit(llama()),
            is_owner_alive: Seen::Unreadable("it was not asked".to_owned()),
        }
    }

    #[test]
    fn a_unit_lives_until_systemd_calls_it_dead_and_no_answer_is_none() {
        let lives = |seen: Seen<Unit>| {
            let mut receipts = [receipt(7, 1)];
            with_owners(&mut receipts, &BTreeMap::from([(llama(), seen)]));
            receipts.map(|receipt| receipt.is_owner_alive)[0].clone()
        };
        for (active, sub) in [
            ("active", "running"),
            ("activating", "start-pre"),
            ("deactivating", "stop-post"),
            ("reloading", "reload"),
            ("maintenance", "?"),
        ] {
            assert_eq!(lives(unit(active, sub)), Seen::Known(true), "{active}");
        }
        // Between two runs nothing of a unit runs; what does was left by the last.
        for (active, sub) in
            [("inactive", "dead"), ("failed", "failed"), ("activating", "auto-restart")]
        {
            assert_eq!(lives(unit(active, sub)), Seen::Known(false), "{active}");
        }
        assert_eq!(lives(Seen::Gone), Seen::Known(false));
        assert_eq!(lives(Seen::Denied), Seen::Denied);
        let mute = Seen::Unreadable("no answer".to_owned());
        assert_eq!(lives(mute), Seen::Unreadable("no answer".to_owned()));
        let mut led = [Receipt { is_owner_alive: Seen::Known(true), ..receipt(7, 1) }];
        with_owners(&mut led, &BTreeMap::from([(llama(), unit("inactive", "dead"))]));
        assert_eq!(led[0].is_owner_alive, Seen::Known(true), "a start is under way");
    }

    #[test]
    fn only_a_process_that_is_still_there_is_named() {
        let us = Pid(std::process::id());
        let host = Host::live();
        let boot_id = clock(&host).boot_id.known().cloned().unwrap();
        let key = key_of(&host, us).unwrap();
        let own = Receipt { boot_id, key, ..receipt(us.0, 0) };
        let another_boot = Receipt { boot_id: "another".to_owned(), ..own.clone() };
        let another_start = receipt(us.0, key.start_ticks + 1);
        let another_start = Receipt { boot_id: own.boot_id.clone(), ..another_start };
        let mut another_inode = own.clone();
        another_inode.key.pidfd_inode = key.pidfd_inode.map(|inode| inode + 1);
        let there = |receipt: &Receipt| !still_there(&host, std::iter::once(receipt)).is_empty();
        assert!(there(&own));
        assert!(!there(&another_boot) && !there(&another_start));
        assert!(key.pidfd_inode.is_none() || !there(&another_inode));
    }
}
