//! The verdict table (docs/design.md, section 4): the first row that answers decides. A row whose facts are
//! not known leaves only gentler verdicts possible: where every possible one spares, the process is spared,
//! else it is undecided. Rows 2 and 8 speak of receipts.

use crate::{
    config::settings::{RunsIn, Service},
    ident::{Endpoint, EngineKind, EngineRef, Manager, Pid, UnitRef},
    snapshot::{Container, KillMode, Process, Seen, Unit},
};

use super::{
    case::Case,
    container::{Behind, Membership, namespace_of, state_in_words, title},
    truth::{Truth, fact},
    verdict::{ContainerRef, Finding, Orphan, Row, Spare, Unknown},
};

/// What a row of the table says to a case.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The row's facts, in words that fit behind "that …", and whether each holds; all must.
    pub conditions: Vec<(&'static str, Truth)>,
    /// What it finds if they do.
    pub finding: Finding,
    /// Why, in one line.
    pub reason: String,
}

impl Answer {
    /// Whether all conditions hold. One that does not needs no other.
    pub fn holds(&self) -> Truth {
        self.conditions.iter().fold(Truth::Yes, |all, (_, one)| all.and(|| one.clone()))
    }
}

const CONTAINED: &str = "a container claims it, or it has a pid namespace or a root of its own";
const UNSUPERVISED: &str = "no living process outside supervises it";
const PARENT_GONE: &str = "its parent is gone: pid 1 (or a user's manager) adopted it";
const IN_UNIT: &str = "it is in a loaded unit that is no closed session's";

type Ask = fn(&Case<'_>) -> Answer;

/// The rows in their order.
const TABLE: [(Row, Ask); 17] = [
    (Row(1), protected),
    (Row(3), live_container),
    (Row(4), unsupervised_container),
    (Row(5), left_behind),
    (Row(6), unsettled_container),
    (Row(7), forwarder),
    (Row(8), ours),
    (Row(9), worker),
    (Row(10), session),
    (Row(12), managed),
    (Row(13), survived_unit),
    (Row(14), earlier_run),
    (Row(15), in_unit),
    (Row(16), misplaced),
    (Row(17), suspect),
    (Row(18), foreign),
    (Row(19), parent_lives),
];

/// What every row says to a case, those behind the deciding one as well: for `explain`.
pub fn trace(case: &Case<'_>) -> Vec<(Row, Answer)> {
    TABLE.iter().map(|(row, ask)| (*row, ask(case))).collect()
}

/// What the table says of a case.
pub struct Decision {
    /// The finding.
    pub finding: Finding,
    /// The row that decided, or the first whose facts are not known.
    pub row: Row,
    /// Why, in one line.
    pub reason: String,
    /// No earlier row was in doubt: whoever wants such processes ended may have this one ended.
    pub is_certain: bool,
}

/// Asks the rows in turn.
pub fn decide(case: &Case<'_>) -> Decision {
    let mut doubt: Option<(Row, Unknown, bool)> = None;
    for (row, ask) in TABLE {
        let answer = ask(case);
        let spares = matches!(answer.finding, Finding::Spare(_));
        match (answer.holds(), doubt.take()) {
            (Truth::No, earlier) => doubt = earlier,
            (Truth::Unknown(unknown), None) => doubt = Some((row, unknown, spares)),
            (Truth::Unknown(_), Some((row, unknown, all_spare))) => {
                doubt = Some((row, unknown, all_spare && spares));
            }
            (Truth::Yes, None) => {
                let Answer { finding, reason, .. } = answer;
                return Decision { finding, row, reason, is_certain: true };
            }
            (Truth::Yes, Some((_, _, true))) if spares => {
                let Answer { finding, reason, .. } = answer;
                return Decision { finding, row, reason, is_certain: false };
            }
            // What is doubtful about a container is told by the row that is there for it.
            (Truth::Yes, Some((Row(4 | 5), ..)))
                if matches!(answer.finding, Finding::Undecided(_)) =>
            {
                let Answer { finding, reason, .. } = answer;
                return Decision { finding, row, reason, is_certain: false };
            }
            (Truth::Yes, Some((row, unknown, _))) => return undecided(row, unknown),
        }
    }
    let (row, unknown) = match doubt {
        Some((row, unknown, _)) => (row, unknown),
        None => (
            Row(0),
            Unknown {
                fact: "where it belongs".to_owned(),
                why: "no row of the verdict table fits it".to_owned(),
                remedy: None,
            },
        ),
    };
    undecided(row, unknown)
}

fn undecided(row: Row, unknown: Unknown) -> Decision {
    let reason = format!("not known: {unknown}");
    Decision { finding: Finding::Undecided(unknown), row, reason, is_certain: false }
}

fn protected(case: &Case<'_>) -> Answer {
    let (is_protected, why) = case.is_protected();
    Answer {
        conditions: vec![(
            "it is part of the machine, of portreeve's own line, or named by a 'protect:' rule",
            is_protected,
        )],
        finding: Finding::Spare(Spare::Protected(why.clone())),
        reason: why,
    }
}

fn live_container(case: &Case<'_>) -> Answer {
    let (is_supervised, pid, name) = match case.supervisor() {
        Ok(Some(above)) => (Truth::Yes, above.key.pid, above.name.clone()),
        Ok(None) => (Truth::No, case.process.parent, String::new()),
        Err(unknown) => (Truth::Unknown(unknown), case.process.parent, String::new()),
    };
    Answer {
        conditions: vec![
            (CONTAINED, case.has_container_evidence()),
            ("a living process outside supervises it", is_supervised),
        ],
        reason: format!("{} is supervised by {name} (pid {pid})", case.container_name()),
        finding: Finding::Spare(Spare::LiveContainer(pid, name)),
    }
}

fn unsupervised_container(case: &Case<'_>) -> Answer {
    let (container, is_of_its_run, state) = match case.container() {
        Membership::Known(container) => {
            let state = container.state.to_string();
            (reference(container), case.is_of_present_run(container), state)
        }
        Membership::Removed(engine) => (removed(case, engine), Truth::No, String::new()),
        Membership::Unsettled(unknown) => {
            (unknown_container(case), Truth::Unknown(unknown), String::new())
        }
    };
    Answer {
        conditions: vec![
            (CONTAINED, case.has_container_evidence()),
            (UNSUPERVISED, !is_supervised(case)),
            (
                "it belongs to the container's present run, by its engine's word and its pid namespace",
                is_of_its_run,
            ),
        ],
        reason: format!(
            "{} says '{state}' of {container}, but its monitor is gone: nothing supervises it",
            container.engine
        ),
        finding: Finding::Unsupervised(container),
    }
}

fn left_behind(case: &Case<'_>) -> Answer {
    let (container, is_left, why) = match case.container() {
        Membership::Known(container) => (
            reference(container),
            !case.is_of_present_run(container),
            state_in_words(container, namespace_of(case, container)),
        ),
        Membership::Removed(engine) => {
            let why = format!("{engine}, in whose store its files lie, does not know it any more");
            (removed(case, engine), Truth::Yes, why)
        }
        Membership::Unsettled(unknown) => {
            (unknown_container(case), Truth::Unknown(unknown), String::new())
        }
    };
    Answer {
        conditions: vec![
            (CONTAINED, case.has_container_evidence()),
            (UNSUPERVISED, !is_supervised(case)),
            ("its engine says that the container does not run, or runs without it", is_left),
        ],
        reason: match victim(case) {
            Some(victim) => format!("{victim}: {why}"),
            None => format!("an earlier run of {container} left it: {why}"),
        },
        finding: Finding::Orphan(Orphan::LeftBehind(container)),
    }
}

/// Whose starts fail on the port that the process still holds.
fn victim(case: &Case<'_>) -> Option<String> {
    let Membership::Known(container) = case.container() else { return None };
    let port = case.held.ports.first()?.endpoint;
    let times = match container.restarts {
        0 => return None,
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let (pid, name) = (case.process.key.pid, &container.name);
    let port = port.short();
    // Within the 94 columns that a terminal of a hundred has for it.
    Some(format!(
        "{name} restarted {times} because pid {pid}, left by its earlier run, holds {port}"
    ))
}

fn is_supervised(case: &Case<'_>) -> Truth {
    match case.supervisor() {
        Ok(supervisor) => supervisor.is_some().into(),
        Err(unknown) => Truth::Unknown(unknown),
    }
}

fn reference(container: &Container) -> ContainerRef {
    let Container { engine, id, name, .. } = container;
    ContainerRef { engine: *engine, id: id.clone(), name: name.clone() }
}

fn removed(case: &Case<'_>, engine: EngineRef) -> ContainerRef {
    let claim = case.process.cgroup.known().and_then(|c| c.claim.as_ref());
    match claim.map(|c| &c.id) {
        Some(id) => ContainerRef { engine, id: id.clone(), name: id.short().to_owned() },
        None => ContainerRef { engine, id: "".into(), name: "that was removed".to_owned() },
    }
}

fn unknown_container(case: &Case<'_>) -> ContainerRef {
    removed(case, EngineRef { kind: EngineKind::Docker, owner: 0 })
}

fn unsettled_container(case: &Case<'_>) -> Answer {
    let unknown = match case.container() {
        Membership::Unsettled(unknown) => unknown,
        // One of the rows above has it, but for its supervisor.
        Membership::Known(_) | Membership::Removed(_) => match case.supervisor() {
            Err(unknown) => unknown,
            Ok(_) => Unknown {
                fact: format!("whether {} still runs", case.container_name()),
                why: "what its engine says does not fit what is seen".to_owned(),
                remedy: None,
            },
        },
    };
    Answer {
        conditions: vec![(CONTAINED, case.has_container_evidence())],
        reason: format!("not known: {unknown}"),
        finding: Finding::Undecided(unknown),
    }
}

/// A forwarder is judged by the container behind it, and never signalled itself.
fn forwarder(case: &Case<'_>) -> Answer {
    let (finding, reason) = match case.behind() {
        Behind::Alive(container, Truth::No) => (
            Finding::Unsupervised(reference(container)),
            format!("it forwards to {}, whose monitor is gone", title(container)),
        ),
        Behind::Alive(container, Truth::Yes | Truth::Unknown(_)) => (
            Finding::Spare(Spare::Forwarder(reference(container))),
            format!("it forwards to {}, which is {}", title(container), container.state),
        ),
        Behind::Stopped(container) => {
            let unknown = Unknown {
                fact: format!("why {} still has this port", case.process.name),
                why: format!("{} is {}, and owns it", title(container), container.state),
                remedy: Some(format!(
                    "'{0} start {1}' takes it over, '{0} rm -f {1}' frees it, else restart the engine",
                    container.engine.kind, container.name
                )),
            };
            (Finding::Undecided(unknown.clone()), format!("not known: {unknown}"))
        }
        Behind::Nobody(unknown) => {
            (Finding::Undecided(unknown.clone()), format!("not known: {unknown}"))
        }
    };
    Answer {
        conditions: vec![("it forwards a guarded port for a container", case.is_forwarder())],
        reason,
        finding,
    }
}

/// Row 2 drops a receipt of another boot or another process; row 8 convicts by one that fits.
fn ours(case: &Case<'_>) -> Answer {
    let (of, told, gone) = match case.receipt {
        Some(receipt) => {
            (case.is_of(receipt), case.may_be_told_by(receipt), case.is_owner_gone(receipt))
        }
        None => (Truth::No, Truth::No, Truth::No),
    };
    let owner = case.receipt.map_or_else(String::new, |receipt| receipt.owner.to_string());
    Answer {
        conditions: vec![
            ("portreeve has a receipt with its process id", case.receipt.is_some().into()),
            ("that is of this boot and of this very process (row 2)", of),
            ("root wrote it, or this process's own user", told),
            ("who kept it by that receipt is gone", gone),
        ],
        reason: case.receipt.map_or_else(String::new, |receipt| {
            let owner = case.owner_in_words(receipt);
            format!("portreeve started it for model {}, and {owner}", receipt.model)
        }),
        finding: Finding::Orphan(Orphan::Ours(owner)),
    }
}

fn worker(case: &Case<'_>) -> Answer {
    let name = case.worker.map_or_else(String::new, |pattern| pattern.name.clone());
    Answer {
        conditions: vec![
            ("it matches a worker's pattern", case.by_command_line(|| case.worker.is_some())),
            (PARENT_GONE, case.is_parent_gone()),
            // Below a unit's main process that is a worker, too, no other server is to be looked for.
            ("it is, and descends from, no unit's main process", !case.is_unit_process(true)),
        ],
        reason: format!(
            "it is a {name} worker, and the server that started it is gone: {} adopted it",
            named(case.parent())
        ),
        finding: Finding::Orphan(Orphan::Worker(name)),
    }
}

fn session(case: &Case<'_>) -> Answer {
    let tracer = case.process.tracer.known().copied().flatten();
    let id = case.process.cgroup.known().and_then(|c| c.session.clone());
    let said = id.as_ref().and_then(|id| case.snapshot.sessions.get(id)?.known().cloned());
    let state = said.unwrap_or_else(|| "of unknown state".to_owned());
    let how = match (case.process.terminal, id) {
        (Some(terminal), Some(id)) if case.is_session_closed() == Truth::Yes => {
            let over = if state == "closing" { "closing" } else { "over" };
            format!("it has terminal {terminal}, though login session {id} is {over}")
        }
        (Some(terminal), Some(id)) => format!("it has terminal {terminal} in login session {id}"),
        (Some(terminal), None) => format!("it has terminal {terminal}"),
        (None, Some(id)) if case.in_open_session() == Truth::Yes => {
            format!("it runs in login session {id}, which is {state}")
        }
        (None, _) => {
            let tracer = tracer.and_then(|pid| case.snapshot.processes.get(&pid));
            format!("{} traces it: somebody looks into it", named(tracer))
        }
    };
    Answer {
        conditions: vec![(
            "it has a terminal, is in an open login session, or is traced",
            Truth::from(case.process.terminal.is_some())
                .or(|| case.in_open_session())
                .or(|| case.is_traced()),
        )],
        finding: Finding::Spare(Spare::Session(how.clone())),
        reason: how,
    }
}

fn unit_of(case: &Case<'_>) -> UnitRef {
    let unit = case.process.cgroup.known().and_then(|c| c.unit.clone());
    unit.unwrap_or_else(|| UnitRef { manager: Manager::System, name: "?".into() })
}

/// A process in words: `pid 5 (sh)`.
fn named(process: Option<&Process>) -> String {
    process
        .map_or_else(|| "another process".to_owned(), |p| format!("pid {} ({})", p.key.pid, p.name))
}

fn state_of<'a>(case: &Case<'a>, unit: &UnitRef) -> Option<&'a Unit> {
    case.snapshot.units.get(unit)?.known()
}

/// A unit in words: `a.service, which is active (running)`.
fn with_state(case: &Case<'_>, unit: &UnitRef) -> String {
    let state = state_of(case, unit).map(Unit::state);
    state.map_or_else(|| unit.to_string(), |state| format!("{unit}, which is {state}"))
}

/// The setting of a unit that tells what becomes of its processes when it stops.
fn kill_mode(case: &Case<'_>, unit: &UnitRef) -> String {
    match state_of(case, unit) {
        Some(state) if state.is_delegated => "Delegate=yes".to_owned(),
        Some(Unit { kill_mode: Some(mode), sends_sigkill, .. }) => match mode {
            KillMode::ControlGroup | KillMode::Mixed if !sends_sigkill => {
                "SendSIGKILL=no".to_owned()
            }
            KillMode::ControlGroup
            | KillMode::Mixed
            | KillMode::Process
            | KillMode::None
            | KillMode::Other(_) => format!("KillMode={mode}"),
        },
        Some(_) | None => "its kill mode".to_owned(),
    }
}

/// Why a process in a unit is neither managed by it nor a survivor of its end.
fn why_unclaimed(case: &Case<'_>, unit: &UnitRef) -> String {
    let Some(state) = state_of(case, unit) else { return String::new() };
    let mode = kill_mode(case, unit);
    let ends_all = state.ends_all_processes();
    if state.is_dead() {
        let parent = || format!("its parent, {}, lives", named(case.parent()));
        return match case.is_parent_gone() {
            Truth::No => format!(", and {}", parent()),
            Truth::Yes | Truth::Unknown(_) if !ends_all => {
                format!("; {mode} leaves its processes alone when it stops")
            }
            Truth::Yes | Truth::Unknown(_) => {
                ", and is no service that ends its processes".to_owned()
            }
        };
    }
    let main = match state.main_pid {
        Some(main) => format!(" and has another main process, pid {main}"),
        None => " and names no main process".to_owned(),
    };
    if ends_all || state.kill_mode.is_none() {
        return main;
    }
    format!("{main}; {mode} leaves this one alone when the unit stops")
}

/// What of its session, and of the user whose it is, no longer speaks for a process.
fn whose_end(case: &Case<'_>) -> String {
    if case.snapshot.has_systemd != Seen::Known(true) {
        return "no terminal".to_owned();
    }
    let session = case.process.cgroup.known().and_then(|c| c.session.as_ref());
    let session =
        session.map_or_else(|| "in no session".to_owned(), |id| format!("session {id} over"));
    let users: Vec<String> = case.users().map(|(uid, _)| format!("uid {uid}")).collect();
    format!(
        "{session}, {} {} not linger",
        users.join(" and "),
        if users.len() == 1 { "does" } else { "do" }
    )
}

/// Row 12, and row 11 with it: a unit that is not loaded or whose manager does not answer leaves it unknown.
fn managed(case: &Case<'_>) -> Answer {
    let unit = unit_of(case);
    let pid = case.process.key.pid;
    let main = state_of(case, &unit).and_then(|state| state.main_pid);
    let above = case.snapshot.ancestors(pid).map(|p| p.key.pid).find(|above| {
        state_of(case, &unit)
            .is_some_and(|state| [state.main_pid, state.control_pid].contains(&Some(*above)))
    });
    let what = |of: Pid| if main == Some(of) { "main" } else { "control" };
    let how = match (case.is_unit_process(false), above) {
        (Truth::No | Truth::Unknown(_), Some(above)) => {
            format!("it descends from pid {above}, the {} process of", what(above))
        }
        (Truth::Yes | Truth::No | Truth::Unknown(_), _) => {
            format!("it is the {} process of", what(pid))
        }
    };
    Answer {
        conditions: vec![
            (IN_UNIT, case.in_unit_of_its_own()),
            ("the unit is neither inactive nor failed", !case.is_unit_dead()),
            ("it is, or descends from, the unit's main process", case.is_unit_process(true)),
        ],
        reason: format!("{how} {}", with_state(case, &unit)),
        finding: Finding::Spare(Spare::ManagedBy(unit)),
    }
}

fn survived_unit(case: &Case<'_>) -> Answer {
    let unit = unit_of(case);
    let was_to_end_all = || {
        case.own_unit(|unit, state| {
            Truth::from(
                unit.name.0.ends_with(".service") && state.is_dead() && state.ends_all_processes(),
            )
        })
    };
    Answer {
        conditions: vec![
            (IN_UNIT, case.in_unit_of_its_own()),
            ("the unit is a dead service, which ends all its processes", was_to_end_all()),
            (PARENT_GONE, case.is_parent_gone()),
        ],
        reason: format!(
            "it outlived {}; {} should have ended it",
            with_state(case, &unit),
            kill_mode(case, &unit)
        ),
        finding: Finding::Orphan(Orphan::SurvivedUnit(unit)),
    }
}

fn earlier_run(case: &Case<'_>) -> Answer {
    let unit = unit_of(case);
    let is_declared = |s: &Service| {
        unit.manager == Manager::System
            && matches!(&s.runs_in, Some(RunsIn::Unit(name)) if *name == unit.name)
    };
    let by_port =
        || Truth::from(case.services_by_port().any(is_declared)).and(|| case.are_owners_known());
    let is_declared = Truth::from(case.matched.iter().any(|(s, _)| is_declared(s))).or(by_port);
    let pid = case.process.key.pid;
    let is_older = || {
        case.own_unit(|unit, state| {
            let (Some(started), Some(age)) = (state.started, case.age()) else {
                return unread(format!("when {unit} or pid {pid} began"));
            };
            let Some(since_boot) = case.snapshot.clock.age(0) else {
                return unread("the time since boot".to_owned());
            };
            Truth::from(since_boot.saturating_sub(age) < started)
        })
    };
    let is_another_run = || {
        case.own_unit(|_, state| {
            let name = || format!("INVOCATION_ID of pid {pid}");
            let seen = case.process.invocation_id.clone();
            let seen = seen.unwrap_or_else(|| Seen::Unreadable("it was not read".to_owned()));
            fact(&seen, name, |id| match (id, &state.invocation_id) {
                (Some(own), Some(present)) => Truth::from(own != present),
                (None, _) | (_, None) => Truth::No,
            })
        })
    };
    Answer {
        conditions: vec![
            ("its service is declared to run in the unit that it is in", is_declared),
            (IN_UNIT, case.in_unit_of_its_own()),
            (PARENT_GONE, case.is_parent_gone()),
            (
                "the unit is dead, or its present run is younger and has another invocation id",
                case.is_unit_dead().or(|| is_older().and(is_another_run)),
            ),
        ],
        reason: match case.is_unit_dead() {
            Truth::Yes => format!("it outlived {}", with_state(case, &unit)),
            Truth::No | Truth::Unknown(_) => format!(
                "it began before the present run of {unit}, and its INVOCATION_ID is another"
            ),
        },
        finding: Finding::Orphan(Orphan::EarlierRun(unit)),
    }
}

fn unread(fact: String) -> Truth {
    Truth::Unknown(Unknown { fact, why: "it could not be read".to_owned(), remedy: None })
}

/// Whether the process outlived a unit that means to leave its processes (KillMode=process, Delegate=): no
/// proof against it, but nobody's care either (docs/decisions/0001).
fn is_left_by_dead_unit(case: &Case<'_>) -> Truth {
    case.has_pattern().and(|| case.is_unit_dead()).and(|| case.is_parent_gone())
}

fn in_unit(case: &Case<'_>) -> Answer {
    let unit = unit_of(case);
    Answer {
        conditions: vec![
            (IN_UNIT, case.in_unit_of_its_own()),
            (
                "the unit lives, its parent lives, or it matches no pattern",
                !is_left_by_dead_unit(case),
            ),
        ],
        reason: format!("it runs in {}{}", with_state(case, &unit), why_unclaimed(case, &unit)),
        finding: Finding::Spare(Spare::InUnit(unit)),
    }
}

fn misplaced(case: &Case<'_>) -> Answer {
    let (is_declared, service) = case.declared_service();
    let place = match service.and_then(|s| s.runs_in.as_ref()) {
        Some(RunsIn::Container(Some(name))) => format!("container {name}"),
        Some(RunsIn::Container(None)) | None => "a container".to_owned(),
        Some(RunsIn::Unit(unit)) => unit.to_string(),
    };
    let name = service.map_or_else(|| "?".into(), |s| s.name.clone());
    Answer {
        conditions: vec![
            (
                "a service declares where it runs, and it has that one's pattern and port",
                is_declared,
            ),
            ("it is in no unit but a closed session's", !case.in_unit_of_its_own()),
            (PARENT_GONE, case.is_parent_gone()),
            (
                "its user's processes may not outlive the logout (lingering is off)",
                !case.does_user_linger(),
            ),
        ],
        reason: format!(
            "declared to run in {place}, runs outside; parent gone, {}",
            whose_end(case)
        ),
        finding: Finding::Orphan(Orphan::Misplaced(name)),
    }
}

fn suspect(case: &Case<'_>) -> Answer {
    Answer {
        conditions: vec![
            ("it matches a pattern", case.has_pattern()),
            (PARENT_GONE, case.is_parent_gone()),
        ],
        reason: why_suspect(case),
        finding: Finding::Suspect,
    }
}

/// What kept it from being an orphan.
fn why_suspect(case: &Case<'_>) -> String {
    let (is_declared, declared) = case.declared_service();
    let mut matched = case.matched.iter().map(|(service, _)| *service);
    let first = matched.clone().find(|s| s.runs_in.is_some()).or_else(|| matched.next());
    let Some(service) = declared.filter(|_| is_declared == Truth::Yes).or(first) else {
        return "its parent is gone, but nothing proves it left behind".to_owned();
    };
    let name = &service.name;
    let mut kept = Vec::new();
    if service.runs_in.is_none() {
        kept.push(format!("nothing declares where {name} runs"));
    } else if is_declared != Truth::Yes {
        let ports: Vec<String> = service.ports.iter().map(Endpoint::short).collect();
        kept.push(match ports.as_slice() {
            [] => format!("{name} has no port by which to know it"),
            ports => format!("it holds none of {name}'s ports ({})", ports.join(", ")),
        });
    }
    if case.in_unit_of_its_own() == Truth::Yes {
        let unit = unit_of(case);
        let (state, mode) = (with_state(case, &unit), kill_mode(case, &unit));
        kept.push(format!("it runs in {state}, and {mode} leaves such processes alone"));
    }
    if service.runs_in.is_some() && case.does_user_linger() == Truth::Yes {
        let who = case.users().find(|(_, lingers)| *lingers).map(|(uid, _)| uid);
        let who = who.map_or_else(String::new, |uid| format!(" (uid {uid})"));
        kept.push(format!("its user{who} lingers: it may be meant to outlive the logout"));
    }
    if kept.is_empty() {
        kept.push("nothing proves it left behind".to_owned());
    }
    format!("its parent is gone and it looks like {name}, but {}", kept.join("; "))
}

fn foreign(case: &Case<'_>) -> Answer {
    let owners: Vec<String> = case
        .held
        .ports
        .iter()
        .filter_map(|g| g.service.as_ref())
        .map(ToString::to_string)
        .collect();
    let parent = match case.parent() {
        Some(parent) => format!("; its parent is {} (pid {})", parent.name, parent.key.pid),
        None => String::new(),
    };
    let gpus: Vec<String> = case.gpu_shares().iter().map(ToString::to_string).collect();
    let reason = if case.held.ports.is_empty() && !gpus.is_empty() {
        format!("it is alive and computes on {}{parent}", gpus.join(", "))
    } else if owners.is_empty() {
        format!("it is alive and holds the port{parent}")
    } else {
        format!("it is alive and holds the port of {}{parent}", owners.join(", "))
    };
    Answer {
        conditions: vec![
            (
                "it holds a guarded port or computes on a guarded GPU",
                Truth::from(!gpus.is_empty()).or(|| case.holds(|_| true)),
            ),
            // One that was not read might be an orphan's.
            ("its command line was read", case.by_command_line(|| true)),
        ],
        finding: Finding::Foreign,
        reason,
    }
}

fn parent_lives(case: &Case<'_>) -> Answer {
    let (pid, name) =
        case.parent().map_or((case.process.parent, String::new()), |p| (p.key.pid, p.name.clone()));
    Answer {
        conditions: vec![("its parent lives", !case.is_parent_gone())],
        reason: format!("its parent {name} (pid {pid}) lives"),
        finding: Finding::Spare(Spare::ParentLives(pid, name)),
    }
}
