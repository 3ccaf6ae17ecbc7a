//! What comes back after an end, and who brought it. Ends nothing: an end that is undone within seconds has
//! a cause that must be addressed, not its effect.

use crate::{
    ident::{Manager, Pid, ProcessKey},
    judge::{
        display_name,
        verdict::{Finding, Verdict},
    },
    snapshot::{Process, Snapshot},
};

use super::{Deed, Respawn};

/// Candidates of the look after the deeds that were started since `since_ticks` and resemble what was ended.
/// Who is spared is none of them: that is the owner, back in its place.
pub fn find(
    deeds: &[Deed],
    verdicts: &[Verdict],
    snapshot: &Snapshot,
    since_ticks: u64,
) -> Vec<Respawn> {
    let is_new = |key: ProcessKey| key.start_ticks >= since_ticks;
    verdicts
        .iter()
        .filter(|v| !matches!(v.finding, Finding::Spare(_)))
        .filter(|v| is_new(v.key()) && !deeds.iter().any(|d| d.verdict.key().is_same(&v.key())))
        .filter_map(|newcomer| {
            let like = likeness(deeds, newcomer)?;
            let (brought_by, next_step) = bringer(snapshot, &newcomer.process);
            Some(Respawn {
                key: newcomer.key(),
                command_line: display_name(&newcomer.process),
                like,
                brought_by,
                next_step,
            })
        })
        .collect()
}

/// Holds a port of one of the ended, or has its command line.
fn likeness(deeds: &[Deed], newcomer: &Verdict) -> Option<String> {
    let gone = || deeds.iter().filter(|d| d.outcome.is_gone()).map(|d| &d.verdict);
    let by_port = gone().find_map(|ended| {
        ended.ports.iter().find(|p| newcomer.ports.contains(p)).map(ToString::to_string)
    });
    by_port.or_else(|| {
        let line = newcomer.process.command_line.known().filter(|l| !l.text.is_empty())?;
        gone()
            .find(|ended| ended.process.command_line.known() == Some(line))
            .map(|ended| format!("pid {}", ended.key().pid))
    })
}

/// Who started it, as far as the kernel tells: its living parent; else its unit; else what leads its session.
fn bringer(snapshot: &Snapshot, newcomer: &Process) -> (String, String) {
    let unit_of = |process: &Process| process.cgroup.known().and_then(|c| c.unit.clone());
    let is_manager = |process: &Process| {
        process.key.pid == Pid::INIT
            || unit_of(process)
                .is_some_and(|u| u.name.0 == "init.scope" && matches!(u.manager, Manager::User(_)))
    };
    let parent = snapshot.ancestors(newcomer.key.pid).next().filter(|p| !is_manager(p));
    if let Some(parent) = parent {
        let (name, pid) = (display_name(parent), parent.key.pid);
        return (
            format!("its parent, pid {pid} ({name})"),
            format!("stop pid {pid} first, or what runs it"),
        );
    }
    // A session's scope starts nothing by itself, and stopping it would end a login.
    if let Some(unit) = unit_of(newcomer).filter(|u| u.name.0.ends_with(".service")) {
        let restart = snapshot.units.get(&unit).and_then(|u| u.known()?.restart.clone());
        let how = restart.map(|r| format!(" (Restart={r})")).unwrap_or_default();
        let whose = match unit.manager {
            Manager::System => String::new(),
            Manager::User(uid) => format!("--user -M {uid}@ "),
        };
        let step = format!("stop it: systemctl {whose}stop {}", unit.name);
        return (format!("{unit}{how}"), step);
    }
    let leader = snapshot.processes.get(&newcomer.session).filter(|p| p.key != newcomer.key);
    match leader {
        Some(leader) => (
            format!("the leader of its session, pid {} ({})", leader.key.pid, display_name(leader)),
            format!("stop pid {} first", leader.key.pid),
        ),
        None => (
            "unknown: what started it has left again".to_owned(),
            "look for a supervisor, a timer or a cron job that starts it".to_owned(),
        ),
    }
}
