//! Why a process got its verdict: what each row of the table said, what to do, and what would have changed it. Each
//! "would" is judged anew with that one thing changed; a rule that protects is the exception.

use crate::{
    config::settings::{RunsIn, Service, Settings},
    ident::{Manager, Pid, ServiceName},
    snapshot::{ClaimKind, KillMode, Seen, Snapshot},
};

use super::{
    Also, Target, Terms, candidates,
    case::Case,
    command,
    gpu::GpuGuard,
    orphan, targets,
    truth::Truth,
    verdict::{Finding, Row, Spare, Verdict},
    verdict_on,
};

/// The whole chain of evidence for one process.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The verdict.
    pub verdict: Verdict,
    /// What to do now, or where to look on.
    pub next: String,
    /// The command that ends it, as narrow as can be; none where no flag does.
    pub ending: Option<String>,
    /// A reaper took it from a parent that is gone.
    pub is_adopted: bool,
    /// Why `scan` looks at it; none where it does not.
    pub nominated_by: Option<String>,
    /// What the receipt with its process id comes to; none where there is none.
    pub receipt: Option<String>,
    /// What each row said, in the table's order.
    pub rows: Vec<RowSaid>,
    /// What would have changed the verdict.
    pub changes: Vec<Change>,
}

/// What one row of the table said.
#[derive(Debug, Clone)]
pub struct RowSaid {
    /// Its number.
    pub row: Row,
    /// Its conditions and whether each holds; all must.
    pub conditions: Vec<(&'static str, Truth)>,
    /// Whether all hold.
    pub holds: Truth,
    /// It decided, or is the first whose facts are not known where that left the process undecided.
    pub decided: bool,
    /// The verdict that it gives where they hold.
    pub title: String,
}

impl RowSaid {
    /// The one condition that kept it from holding; none where there were more, or where it is about other processes,
    /// which is what its first condition tells.
    pub fn near_miss(&self) -> Option<&'static str> {
        let (_, others) =
            self.conditions.split_first().filter(|((_, first), _)| *first == Truth::Yes)?;
        let mut missed = others.iter().filter(|(_, truth)| *truth != Truth::Yes);
        match (missed.next(), missed.next()) {
            (Some((text, Truth::No)), None) => Some(text),
            (_, _) => None,
        }
    }
}

/// Something that would have led to another verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What, as a clause behind "if": `uid 1000 did not linger`, `'runs_in: container' were declared for web`.
    pub what: String,
    /// The verdict then.
    pub title: String,
    /// The row that would decide.
    pub row: Row,
    /// Whether `reap` would end it then.
    pub would_end: bool,
}

/// Explains one process of the snapshot; none where it was not seen.
pub fn explain(
    snapshot: &Snapshot,
    settings: &Settings,
    terms: &Terms,
    pid: Pid,
) -> Option<Explanation> {
    let case = case_of(snapshot, settings, terms, pid)?;
    let verdict = verdict_on(&case, terms, Truth::Yes);
    let rows = orphan::trace(&case)
        .into_iter()
        .map(|(row, answer)| RowSaid {
            row,
            holds: answer.holds(),
            decided: row == verdict.row,
            title: answer.finding.title(),
            conditions: answer.conditions,
        })
        .collect();
    let ending = ending(&case, terms);
    Some(Explanation {
        next: next(&case, &verdict, ending.as_deref()),
        ending,
        is_adopted: case.is_parent_reaper() == Truth::Yes
            && case.is_unit_process(false) != Truth::Yes,
        nominated_by: nominated_by(&case),
        receipt: case.receipt_in_words(),
        rows,
        changes: changes(&case, terms, &verdict),
        verdict,
    })
}

fn case_of<'a>(
    snapshot: &'a Snapshot,
    settings: &'a Settings,
    terms: &'a Terms,
    pid: Pid,
) -> Option<Case<'a>> {
    let held = candidates(snapshot, terms).remove(&pid)?;
    Some(Case::new(snapshot, settings, snapshot.processes.get(&pid)?, held))
}

fn nominated_by(case: &Case<'_>) -> Option<String> {
    let ports: Vec<String> = case.held.ports.iter().map(|g| g.endpoint.to_string()).collect();
    let gpus: Vec<String> = case.gpu_shares().iter().map(ToString::to_string).collect();
    let services: Vec<&str> = case.matched.iter().map(|(s, _)| s.name.0.as_str()).collect();
    let reasons = [
        (!ports.is_empty()).then(|| format!("it holds {}", ports.join(", "))),
        (!gpus.is_empty()).then(|| format!("it computes on {}", gpus.join(", "))),
        (!services.is_empty()).then(|| format!("it matches a pattern of {}", services.join(", "))),
        case.worker.map(|w| format!("it matches the worker pattern {}", w.name)),
        case.receipt
            .filter(|receipt| case.is_of(receipt) != Truth::No)
            .map(|receipt| format!("portreeve has a receipt for it, of model {}", receipt.model)),
    ];
    let reasons: Vec<String> = reasons.into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// The first command that ends it: with the narrowest target, and without a flag where none is needed.
fn ending(case: &Case<'_>, terms: &Terms) -> Option<String> {
    let none = Also::default();
    let kinds = [
        (None, none),
        (Some("abandoned"), Also { abandoned: true, ..none }),
        (Some("session"), Also { session: true, ..none }),
        (Some("unsupervised"), Also { unsupervised: true, ..none }),
        (Some("foreign"), Also { foreign: true, ..none }),
    ];
    let targets = targets(case);
    let ways = targets.iter().flat_map(|target| kinds.map(|(word, also)| (target, word, also)));
    // Whose session it is wants a port or a service to be named.
    ways.filter(|(target, _, also)| {
        !(also.session && matches!(target, Target::Gpu(_) | Target::All))
    })
    .find(|(target, _, also)| {
        let mut asked = Terms { also: *also, ..terms.clone() };
        match target {
            Target::Port(endpoint) => {
                asked.guards.retain(|guard| guard.endpoint == *endpoint);
                asked.named_ports = vec![*endpoint];
            }
            Target::Gpu(name) => {
                asked.guards.clear();
                asked.named_gpus = vec![name.clone()];
                let need = case.settings.gate.gpu_free;
                asked.gpus = vec![GpuGuard { name: name.clone(), service: None, need }];
            }
            Target::Service(name) => asked.named_services = vec![name.clone()],
            Target::All => {}
        }
        let pid = case.process.key.pid;
        case_of(case.snapshot, case.settings, &asked, pid)
            .is_some_and(|case| verdict_on(&case, &asked, asked.concerns(&case)).is_convicted)
    })
    .map(|(target, word, _)| command(target, word))
}

/// What to do, or where to look on: there is always something.
fn next(case: &Case<'_>, verdict: &Verdict, ending: Option<&str>) -> String {
    let look = look_on(case);
    let ends = ending.map(|command| format!("'{command}' ends it"));
    match &verdict.finding {
        Finding::Orphan(_) => ends.unwrap_or(look),
        Finding::Suspect => match verdict.next_step.clone().or(ends) {
            Some(step) => format!("{look}; {step}"),
            None => look,
        },
        Finding::Foreign | Finding::Unsupervised(_) => {
            verdict.next_step.clone().or(ends).unwrap_or(look)
        }
        Finding::Undecided(unknown) => unknown.remedy.clone().unwrap_or_else(|| {
            format!("'portreeve doctor' says what this run may not see; {look}")
        }),
        Finding::Spare(spare) => {
            let ends = ends.unwrap_or_else(|| match stop(case, spare) {
                Some(step) => format!("no portreeve flag ends it{step}"),
                None => "no portreeve flag ends it".to_owned(),
            });
            format!("{look}; {ends}")
        }
    }
}

/// A command that shows where a process belongs.
fn look_on(case: &Case<'_>) -> String {
    let pid = case.process.key.pid;
    let cgroup = case.process.cgroup.known();
    let claim = cgroup.and_then(|c| c.claim.as_ref());
    match claim.map(|claim| (claim.kind, claim.id.short())) {
        Some((ClaimKind::Docker, id)) => {
            return format!("'docker inspect {id}' shows its container");
        }
        Some((ClaimKind::Podman, id)) => {
            return format!("'podman inspect {id}' shows its container");
        }
        Some((ClaimKind::Cri | ClaimKind::Other | ClaimKind::Lxc | ClaimKind::Nspawn, _))
        | None => {}
    }
    if case.snapshot.has_systemd != Seen::Known(true) {
        return format!("'ps -fp {pid}' shows it");
    }
    if let Some(id) = cgroup.and_then(|c| c.session.as_ref()) {
        return format!("'loginctl session-status {id}' shows its session");
    }
    match cgroup.and_then(|c| c.unit.as_ref()).map(|unit| (unit.manager, &unit.name)) {
        Some((Manager::System, name)) => format!("'systemctl status {name}' shows its unit"),
        Some((Manager::User(uid), _)) => {
            format!("'systemctl status user@{uid}.service' shows its unit")
        }
        None => format!("'systemctl status {pid}' shows where it belongs"),
    }
}

/// How the one who started it stops it; none for what keeps the machine running or was named to be kept.
fn stop(case: &Case<'_>, spare: &Spare) -> Option<String> {
    let claim = case.process.cgroup.known().and_then(|c| c.claim.as_ref());
    Some(match (spare, claim.map(|claim| (claim.kind, claim.id.short()))) {
        (Spare::LiveContainer(..), Some((ClaimKind::Docker, id))) => {
            format!(": 'docker stop {id}' does")
        }
        (Spare::LiveContainer(..), Some((ClaimKind::Podman, id))) => {
            format!(": 'podman stop {id}' does")
        }
        (Spare::Forwarder(container), _) => {
            format!(": '{} stop {}' does", container.engine.kind, container.name)
        }
        (Spare::ManagedBy(unit), _) if unit.manager == Manager::System => {
            format!(": 'systemctl stop {unit}' does")
        }
        (Spare::ParentLives(pid, name), _) => format!(": its parent, pid {pid} ({name}), can"),
        (Spare::InUnit(unit), _) if unit.manager == Manager::System => {
            let state = case.snapshot.units.get(unit).and_then(Seen::known);
            match state.and_then(|state| state.kill_mode.as_ref()) {
                Some(KillMode::ControlGroup | KillMode::Mixed) => {
                    format!(": 'systemctl stop {unit}' does")
                }
                Some(mode @ (KillMode::Process | KillMode::None | KillMode::Other(_))) => {
                    let pid = case.process.key.pid;
                    format!(
                        ", nor does 'systemctl stop' (KillMode={mode}): ask whose it is, then 'kill {pid}'"
                    )
                }
                None => ": stop it where it was started".to_owned(),
            }
        }
        (
            Spare::LiveContainer(..) | Spare::Session(_) | Spare::ManagedBy(_) | Spare::InUnit(_),
            _,
        ) => ": stop it where it was started".to_owned(),
        (Spare::Protected(_), _) => return None,
    })
}

fn changes(case: &Case<'_>, terms: &Terms, verdict: &Verdict) -> Vec<Change> {
    let pid = case.process.key.pid;
    let mut changes = Vec::new();
    let mut consider = |what: String, snapshot: &Snapshot, settings: &Settings| {
        let Some(case) = case_of(snapshot, settings, terms, pid) else { return };
        let then = verdict_on(&case, terms, Truth::Yes);
        // One that would be left undecided is no answer: facts were not read that nobody needed.
        let is_answer = !matches!(then.finding, Finding::Undecided(_));
        if is_answer && then.title() != verdict.title() {
            let (title, row, would_end) = (then.title(), then.row, then.is_convicted);
            changes.push(Change { what, title, row, would_end });
        }
    };
    for (what, snapshot) in other_facts(case) {
        consider(what, &snapshot, case.settings);
    }
    for service in case.services() {
        for (runs_in, words) in places(case, service) {
            let with = declared(case.settings, &service.name, runs_in.as_ref());
            consider(format!("{words} for {}", service.name), case.snapshot, &with);
        }
    }
    if verdict.is_convicted {
        changes.push(Change {
            what: "a 'protect:' rule named its unit or executable".to_owned(),
            title: Finding::Spare(Spare::Protected(String::new())).title(),
            row: Row(1),
            would_end: false,
        });
    }
    changes
}

/// The host with one fact changed that speaks for the process, each with that fact in words.
fn other_facts(case: &Case<'_>) -> Vec<(String, Snapshot)> {
    let mut others = Vec::new();
    let mut with = |what: String, change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = case.snapshot.clone();
        change(&mut snapshot);
        others.push((what, snapshot));
    };
    let pid = case.process.key.pid;
    let lingering: Vec<u32> = case.users().filter(|(_, yes)| *yes).map(|(uid, _)| uid).collect();
    if !lingering.is_empty() {
        let who: Vec<String> = lingering.iter().map(|uid| format!("uid {uid}")).collect();
        with(format!("{} did not linger", who.join(" and ")), &|s| {
            s.lingering.extend(lingering.iter().map(|uid| (*uid, Seen::Known(false))));
        });
    }
    let receipt = case.receipt.filter(|receipt| case.is_of(receipt) == Truth::Yes);
    if let Some((receipt, alive)) = receipt.and_then(|r| Some((r, *r.is_owner_alive.known()?))) {
        let owner = &receipt.owner;
        let what = if alive { "were gone" } else { "lived" };
        with(format!("{owner} {what}"), &|s| {
            for own in s.receipts.iter_mut().filter(|own| own.key.pid == pid) {
                own.is_owner_alive = Seen::Known(!alive);
            }
        });
    }
    if let Some(terminal) = case.process.terminal {
        with(format!("terminal {terminal} were gone"), &|s| {
            s.processes.entry(pid).and_modify(|process| process.terminal = None);
        });
    }
    let cgroup = case.process.cgroup.known();
    if let (Truth::Yes, Some(id)) =
        (case.in_open_session(), cgroup.and_then(|c| c.session.as_ref()))
    {
        with(format!("login session {id} were closing"), &|s| {
            s.sessions.insert(id.clone(), Seen::Known("closing".to_owned()));
        });
    }
    if let (Truth::No, Some(parent)) = (case.is_parent_gone(), case.parent()) {
        let root = case.root().key.pid;
        with(format!("its parent, pid {} ({}), were gone", parent.key.pid, parent.name), &|s| {
            s.processes.entry(root).and_modify(|process| process.parent = Pid::INIT);
        });
    }
    if let (Truth::Yes, Truth::No, Some(unit)) =
        (case.in_unit_of_its_own(), case.is_unit_dead(), cgroup.and_then(|c| c.unit.as_ref()))
    {
        with(format!("{unit} were inactive (dead)"), &|s| {
            if let Some(Seen::Known(unit)) = s.units.get_mut(unit) {
                "inactive".clone_into(&mut unit.active_state);
                "dead".clone_into(&mut unit.sub_state);
                (unit.main_pid, unit.control_pid) = (None, None);
            }
        });
    }
    others
}

/// Other declarations than the present one that the settings could make.
fn places(case: &Case<'_>, service: &Service) -> Vec<(Option<RunsIn>, String)> {
    let unit = case.process.cgroup.known().and_then(|c| c.unit.as_ref());
    let unit = unit.filter(|u| u.manager == Manager::System && u.name.0.ends_with(".service"));
    let in_unit = unit.map(|u| {
        let words = format!("'runs_in: {{ unit: {} }}' were declared", u.name);
        (Some(RunsIn::Unit(u.name.clone())), words)
    });
    let nowhere = (None, "no 'runs_in:' were declared".to_owned());
    let container = Some(RunsIn::Container(None));
    let in_container = (container, "'runs_in: container' were declared".to_owned());
    in_unit
        .into_iter()
        .chain([in_container, nowhere])
        .filter(|(runs_in, _)| *runs_in != service.runs_in)
        .collect()
}

fn declared(settings: &Settings, name: &ServiceName, runs_in: Option<&RunsIn>) -> Settings {
    let mut settings = settings.clone();
    for service in settings.services.iter_mut().filter(|s| s.name == *name) {
        service.runs_in = runs_in.cloned();
    }
    settings
}
