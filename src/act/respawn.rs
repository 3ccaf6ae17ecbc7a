//! What comes back after an end, and who brought it. Ends nothing: an end that is undone within seconds has
//! a cause that must be addressed, not its effect.

use crate::{
    ident::{Pid, ProcessKey},
    judge::{display_name, verdict::Verdict},
    snapshot::{Process, Snapshot},
};

use super::{Deed, Respawn};

/// Candidates of the look after the deeds that were started since `since_ticks` and resemble what was ended.
pub fn find(
    deeds: &[Deed],
    verdicts: &[Verdict],
    snapshot: &Snapshot,
    since_ticks: u64,
) -> Vec<Respawn> {
    let is_new = |key: ProcessKey| key.start_ticks >= since_ticks;
    verdicts
        .iter()
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
    if let Some(parent) = snapshot.ancestors(newcomer.key.pid).next()
        && parent.key.pid != Pid::INIT
    {
        let name = display_name(parent);
        let pid = parent.key.pid;
        return (
            format!("its parent, pid {pid} ({name})"),
            format!("stop pid {pid} first, or what runs it"),
        );
    }
    let unit = newcomer.cgroup.known().and_then(|c| c.unit.as_ref());
    if let Some(unit) = unit {
        let restart = snapshot.units.get(unit).and_then(|u| u.known()?.restart.clone());
        let how = restart.map(|r| format!(" (Restart={r})")).unwrap_or_default();
        return (format!("{unit}{how}"), format!("stop it: systemctl stop {}", unit.name));
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
