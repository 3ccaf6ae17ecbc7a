//! Why a process got its verdict: what each row of the table said, and what would have changed it. Each "would" is
//! judged anew with that one thing changed; a missing fact and a rule that protects are the exceptions, told as such.

use crate::{
    config::settings::{RunsIn, Service, Settings},
    ident::{Manager, Pid, ServiceName},
    snapshot::Snapshot,
};

use super::{
    Also, Terms, candidates,
    case::Case,
    orphan,
    truth::Truth,
    verdict::{Finding, Row, Verdict},
    verdict_on,
};

/// The whole chain of evidence for one process.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The verdict.
    pub verdict: Verdict,
    /// Why `scan` looks at it; none where it does not.
    pub nominated_by: Option<String>,
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
}

/// Something that would have led to another verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What, as a clause behind "if": `'runs_in: container' were declared for web`.
    pub what: String,
    /// The verdict then.
    pub title: String,
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
            conditions: answer.conditions,
        })
        .collect();
    let changes = changes(snapshot, settings, terms, &case, &verdict);
    Some(Explanation { nominated_by: nominated_by(&case), verdict, rows, changes })
}

fn case_of<'a>(
    snapshot: &'a Snapshot,
    settings: &'a Settings,
    terms: &'a Terms,
    pid: Pid,
) -> Option<Case<'a>> {
    let (held, unsure) = candidates(snapshot, terms).remove(&pid)?;
    Some(Case::new(snapshot, settings, snapshot.processes.get(&pid)?, held, unsure))
}

fn nominated_by(case: &Case<'_>) -> Option<String> {
    let ports: Vec<String> = case.held.iter().map(|g| g.endpoint.to_string()).collect();
    let services: Vec<&str> = case.matched.iter().map(|(s, _)| s.name.0.as_str()).collect();
    let reasons = [
        (!ports.is_empty()).then(|| format!("it holds {}", ports.join(", "))),
        (!services.is_empty()).then(|| format!("it matches a pattern of {}", services.join(", "))),
        case.worker.map(|w| format!("it matches the worker pattern {}", w.name)),
    ];
    let reasons: Vec<String> = reasons.into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn changes(
    snapshot: &Snapshot,
    settings: &Settings,
    terms: &Terms,
    case: &Case<'_>,
    verdict: &Verdict,
) -> Vec<Change> {
    let pid = case.process.key.pid;
    let mut changes = Vec::new();
    let mut consider = |what: String, settings: &Settings, terms: &Terms| {
        let Some(case) = case_of(snapshot, settings, terms, pid) else { return };
        let then = verdict_on(&case, terms, Truth::Yes);
        if then.title() != verdict.title() || then.is_convicted != verdict.is_convicted {
            changes.push(Change { what, title: then.title(), would_end: then.is_convicted });
        }
    };
    let target = case.held.first().map_or_else(
        || case.services().first().map(|s| s.name.to_string()),
        |guard| Some(format!("--port {}", guard.endpoint)),
    );
    let target = target.map(|t| format!(" {t}")).unwrap_or_default();
    for (word, also) in [
        ("abandoned", Also { abandoned: true, ..Also::default() }),
        ("session", Also { session: true, ..Also::default() }),
        ("unsupervised", Also { unsupervised: true, ..Also::default() }),
        ("foreign", Also { foreign: true, ..Also::default() }),
    ] {
        let named_ports = case.held.iter().map(|g| g.endpoint).collect();
        let named_services = case.services().iter().map(|s| s.name.clone()).collect();
        let terms = Terms { named_services, named_ports, also, ..terms.clone() };
        let what = format!("'portreeve reap{target} --also {word}' were the command");
        consider(what, settings, &terms);
    }
    for service in case.services() {
        for (runs_in, words) in places(case, service) {
            let with = declared(settings, &service.name, runs_in.as_ref());
            consider(format!("{words} for {}", service.name), &with, terms);
        }
    }
    match &verdict.finding {
        Finding::Undecided(unknown) => {
            if let Some(remedy) = &unknown.remedy {
                let title = "another verdict, once it is known".to_owned();
                changes.push(Change { what: remedy.clone(), title, would_end: false });
            }
        }
        Finding::Orphan(_) | Finding::Suspect | Finding::Unsupervised(_) | Finding::Foreign
            if verdict.is_convicted =>
        {
            let what = "a 'protect:' rule named its unit or executable".to_owned();
            let title = "spare: protected".to_owned();
            changes.push(Change { what, title, would_end: false });
        }
        Finding::Orphan(_)
        | Finding::Suspect
        | Finding::Unsupervised(_)
        | Finding::Foreign
        | Finding::Spare(_) => {}
    }
    changes
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
