//! Why: every fact and where it came from, what each row of the verdict table said, what would have changed the
//! verdict. For a person the answer first, then what bears on it, all of it where it is asked for; for a program as one JSON document
//! (docs/schema/explain-v1.json is generated from the types below).

mod facts;

use std::{
    io::{self, Write},
    time::Duration,
};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

use super::{
    Style,
    escape::{escape, width},
    exit, gpu, json,
    table::{DOUBT, GOOD, ORPHAN, Page, SPARED},
    title_of,
};
use crate::{
    ident::Pid,
    judge::{
        explain::{Change, Explanation, RowSaid},
        gpu::{GpuState, GpuVerdict},
        truth::Truth,
        verdict::Finding,
    },
    pipeline::Explained,
    snapshot::Seen,
};
use facts::{Fact, Rank, facts, gpu_facts, of_pid, user};

/// A command line is shown up to this many columns.
const PROCESS_COLUMNS: usize = 200;

/// 2 where something was not seen or is undecided, else 0: an explanation finds no fault.
pub fn exit_code(explained: &Explained) -> u8 {
    let is_undecided = |e: &Explanation| matches!(e.verdict.finding, Finding::Undecided(_));
    let is_unknown =
        |gpu: &GpuVerdict| matches!(gpu.state, GpuState::Unknown(_)) || gpu.may_miss.is_some();
    let is_unseen = explained.gpus.iter().any(is_unknown) || !explained.unknowns.is_empty();
    if is_unseen || explained.processes.iter().any(is_undecided) {
        exit::COULD_NOT_TELL
    } else {
        exit::CLEAR
    }
}

fn word(truth: &Truth) -> &'static str {
    match truth {
        Truth::Yes => "yes",
        Truth::No => "no",
        Truth::Unknown(_) => "?",
    }
}

fn why_unknown(truth: &Truth) -> Option<String> {
    match truth {
        Truth::Unknown(unknown) => Some(unknown.to_string()),
        Truth::Yes | Truth::No => None,
    }
}

const BOLD: anstyle::Style = anstyle::Style::new().bold();

/// Writes the explanation for a person: the answer in the first lines, then what it rests on.
pub fn render(explained: &Explained, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    if let Some(port) = &explained.port {
        let service = port.service.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
        page.told(
            &format!("port {}{}  ", port.endpoint, escape(service, None)),
            BOLD,
            &port.sentence,
        );
        if let Some(step) = &port.next_step {
            page.told("  next  ", BOLD, step);
        }
    }
    for gpu in &explained.gpus {
        page.told(&format!("{}  ", gpu.label), BOLD, &gpu.sentence);
        let facts = gpu_facts(gpu, &explained.snapshot);
        if !facts.is_empty() {
            every_fact(&mut page, &facts);
        }
        if let Some(step) = &gpu.next_step {
            page.told("  next  ", BOLD, step);
        }
    }
    for explanation in &explained.processes {
        page.blank();
        answer(&mut page, explained, explanation);
        let facts = facts(explained, explanation);
        if style.shows_evidence {
            every_fact(&mut page, &facts);
            every_row(&mut page, &explanation.rows);
        } else {
            telling_facts(&mut page, &facts);
            telling_rows(&mut page, &explanation.rows);
        }
        changes(&mut page, explanation);
    }
    for unknown in &explained.unknowns {
        page.blank();
        page.told("not seen  ", DOUBT, &unknown.to_string());
        if let Some(remedy) = &unknown.remedy {
            page.told("  next    ", BOLD, remedy);
        }
    }
    out.write_all(page.text.as_bytes())
}

/// The first lines: who it is, the verdict, why, and what to do.
fn answer(page: &mut Page, explained: &Explained, explanation: &Explanation) {
    let verdict = &explanation.verdict;
    let line = escape(title_of(&verdict.process), Some(PROCESS_COLUMNS));
    page.paint(&format!("pid {}  ", verdict.key().pid), BOLD);
    page.text.push_str(&line);
    page.text.push('\n');
    page.told("  who       ", BOLD, &who(explained, explanation));
    let colour = match verdict.finding {
        Finding::Orphan(_) => ORPHAN,
        Finding::Suspect | Finding::Unsupervised(_) | Finding::Foreign | Finding::Undecided(_) => {
            DOUBT
        }
        Finding::Spare(_) => GOOD,
    };
    let mut title = escape(verdict.title(), None);
    if verdict.finding == Finding::Suspect {
        title.push_str(" (--also abandoned ends it)");
    }
    page.paint("  verdict   ", BOLD);
    page.paint(&title, colour);
    let deed = if verdict.is_convicted { "ends it" } else { "leaves it alone" };
    let row = verdict.row.0;
    page.flow(12 + width(&title), 12, &format!(": plain 'portreeve reap' {deed} (row {row})"));
    page.told("  why       ", BOLD, &verdict.reason);
    page.told("  next      ", BOLD, &explanation.next);
    let nominated = explanation.nominated_by.as_deref();
    let nominated = nominated
        .unwrap_or("it holds no guarded port and matches no pattern: 'scan' does not look at it");
    page.told("  found by  ", BOLD, nominated);
}

/// User, parent, age, and the session, container or unit.
fn who(explained: &Explained, explanation: &Explanation) -> String {
    let snapshot = &explained.snapshot;
    let process = &explanation.verdict.process;
    let user = match &process.uid {
        Seen::Known(uid) => user(explained, process, *uid),
        Seen::Gone | Seen::Denied | Seen::Unreadable(_) => "user not known".to_owned(),
    };
    let parent = match process.parent {
        Pid::OUTSIDE if process.key.pid == Pid::INIT => "the first process".to_owned(),
        pid if explanation.is_adopted => {
            let by = if pid == Pid::INIT { "pid 1".to_owned() } else { of_pid(snapshot, pid) };
            format!("adopted by {by} (its parent is gone)")
        }
        pid => format!("parent {}", of_pid(snapshot, pid)),
    };
    let age = snapshot.clock.age(process.key.start_ticks).map(old);
    let age = age.unwrap_or_else(|| "age not known".to_owned());
    let place = process.cgroup.known().and_then(|cgroup| {
        if let Some(claim) = &cgroup.claim {
            return Some(format!("container {}", claim.id.short()));
        }
        if let Some(id) = &cgroup.session {
            let state = snapshot.sessions.get(id).and_then(Seen::known);
            return Some(format!("login session {id} ({})", state.map_or("?", |state| state)));
        }
        let unit = cgroup.unit.as_ref()?;
        let state = snapshot.units.get(unit).and_then(Seen::known);
        Some(format!("{unit} ({})", state.map_or("?", |state| &state.active_state)))
    });
    [Some(user), Some(parent), Some(age), place]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ")
}

/// An age in the largest unit of which it has two.
fn old(age: Duration) -> String {
    match age.as_secs() {
        seconds @ ..120 => format!("{seconds} s old"),
        seconds @ ..7200 => format!("{} min old", seconds / 60),
        seconds @ ..172_800 => format!("{} h old", seconds / 3600),
        seconds => format!("{} days old", seconds / 86_400),
    }
}

fn every_fact(page: &mut Page, facts: &[Fact]) {
    page.heading("facts");
    for fact in facts {
        page.told(
            &format!("    {:15}  ", fact.name),
            SPARED,
            &format!("{}  [{}]", fact.value, fact.source),
        );
    }
}

/// Those that the first lines have not told; what is not so on one line.
fn telling_facts(page: &mut Page, facts: &[Fact]) {
    page.heading("facts");
    for fact in facts.iter().filter(|fact| fact.rank == Rank::Shown) {
        page.told(&format!("    {:15}  ", fact.name), SPARED, &fact.value);
    }
    let absent = facts.iter().filter_map(|fact| match fact.rank {
        Rank::Absent(words) => Some(words),
        Rank::Told | Rank::Shown => None,
    });
    let absent: Vec<&str> = absent.collect();
    if !absent.is_empty() {
        page.told(&format!("    {:15}  ", "it has no"), SPARED, &absent.join(", "));
    }
}

const RULE: &str = "the first row whose conditions all hold decides; a row that does not fit is over at its first 'no'";

/// The row that decided, and those that one condition kept from deciding before it.
fn telling_rows(page: &mut Page, rows: &[RowSaid]) {
    page.blank();
    page.told("  verdict table: ", BOLD, RULE);
    let end = rows.iter().position(|said| said.decided).unwrap_or(rows.len());
    for said in rows.iter().skip(end).take(1) {
        row(page, &said.row.0.to_string(), said);
    }
    let mut misses =
        rows.iter().take(end).filter_map(|said| Some((said, said.near_miss()?))).peekable();
    if misses.peek().is_some() {
        page.line("    near misses: one 'no' kept each from its verdict", SPARED, "");
    }
    for (said, condition) in misses {
        let label = format!("    {:>5}  no   ", said.row.0);
        page.told(&label, SPARED, &format!("{condition} → {}", said.title));
    }
}

/// Every row; neighbours that say the same, once.
fn every_row(page: &mut Page, rows: &[RowSaid]) {
    page.blank();
    page.told("  verdict table: ", BOLD, RULE);
    let said = |said: &RowSaid| (said.decided, conditions(said).to_vec());
    let mut is_behind = false;
    for alike in rows.chunk_by(|a, b| !a.decided && said(a) == said(b)) {
        let (Some(first), Some(last)) = (alike.first(), alike.last()) else { continue };
        let number = match alike {
            [one] => one.row.0.to_string(),
            _ => format!("{}–{}", first.row.0, last.row.0),
        };
        row(page, &number, first);
        if first.decided && !is_behind {
            is_behind = true;
            page.line("    not asked any more:", SPARED, "");
        }
    }
}

/// A row's conditions up to its first "no".
fn conditions(said: &RowSaid) -> &[(&'static str, Truth)] {
    let end = said.conditions.iter().position(|(_, truth)| *truth == Truth::No);
    let end = end.map_or(said.conditions.len(), |no| no + 1);
    said.conditions.get(..end).unwrap_or_default()
}

fn row(page: &mut Page, number: &str, said: &RowSaid) {
    let colour = if said.decided { BOLD } else { SPARED };
    for (n, (text, truth)) in conditions(said).iter().enumerate() {
        let number = if n == 0 { number } else { "" };
        let mark = if n == 0 && said.decided { "▶" } else { " " };
        let why = why_unknown(truth).map(|why| format!(" ({why})")).unwrap_or_default();
        let label = format!("  {mark} {number:>5}  {:<3}  ", word(truth));
        page.told(&label, colour, &format!("{text}{why}"));
    }
    if said.decided {
        let finding = if said.holds == Truth::Yes { said.title.as_str() } else { "undecided" };
        page.told("                → ", colour, finding);
    }
}

fn changes(page: &mut Page, explanation: &Explanation) {
    if !explanation.changes.is_empty() {
        page.heading("what would change it");
    }
    for Change { what, title, row, would_end } in &explanation.changes {
        let deed = if *would_end { "ends" } else { "leaves alone" };
        let then = format!(", which plain 'portreeve reap' {deed}");
        page.told("    if ", SPARED, &format!("{what}: {title}, row {}{then}", row.0));
    }
    if let Some(command) = &explanation.ending {
        let anyway = if explanation.verdict.is_convicted { "" } else { " anyway" };
        page.blank();
        page.line(&format!("  to end it{anyway}: "), BOLD, command);
    }
}

/// An explanation by portreeve.
#[derive(Debug, Serialize, JsonSchema)]
struct Document {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// The command's exit code: 0 all is known, 2 something is not.
    exit_code: u8,
    /// The port that was asked about.
    port: Option<Port>,
    /// The GPUs that were asked about.
    gpus: Vec<gpu::Gpu>,
    /// The process that was asked about, or the holders of the port or the GPUs.
    processes: Vec<Subject>,
    /// What could not be seen beyond single processes.
    not_seen: Vec<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Port {
    /// Number and protocol, with the address where one was named.
    endpoint: String,
    /// Its owner by the settings.
    service: Option<String>,
    /// What it is, in a sentence.
    sentence: String,
    /// What to do.
    next_step: Option<String>,
}

/// A process and its chain of evidence.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Process")]
struct Subject {
    /// Process id.
    pid: u32,
    /// Start time in clock ticks since boot.
    start_ticks: u64,
    /// The verdict in a few words.
    title: String,
    /// Row of the verdict table that decided.
    row: u8,
    /// One line: why.
    reason: String,
    /// What to do now, or where to look on.
    next_step: String,
    /// `reap` ends it.
    would_end: bool,
    /// The command that ends it, as narrow as can be; null where no flag does.
    end_with: Option<String>,
    /// Why `scan` looks at it; null where it does not.
    nominated_by: Option<String>,
    /// Every fact.
    facts: Vec<Fact>,
    /// Supporting facts; they convict nobody.
    evidence: Vec<String>,
    /// What each row of the verdict table said, in order, those behind the deciding one as well.
    rows: Vec<RowJson>,
    /// What would have changed the verdict.
    changes: Vec<ChangeJson>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Row")]
struct RowJson {
    /// Its number in docs/design.md.
    row: u8,
    /// Whether all its conditions hold; null = not known.
    holds: Option<bool>,
    /// It decided.
    decided: bool,
    /// The verdict that it gives where all its conditions hold.
    title: String,
    /// Its conditions.
    conditions: Vec<Condition>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Condition {
    /// In words.
    text: String,
    /// Whether it holds; null = not known.
    holds: Option<bool>,
    /// Why it is not known.
    unknown: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Change")]
struct ChangeJson {
    /// What would have to be so.
    what: String,
    /// The verdict then.
    title: String,
    /// The row that would decide.
    row: u8,
    /// Whether `reap` would end it then.
    would_end: bool,
}

fn holds(truth: &Truth) -> Option<bool> {
    match truth {
        Truth::Yes => Some(true),
        Truth::No => Some(false),
        Truth::Unknown(_) => None,
    }
}

/// The schema of the document, JSON Schema 2020-12.
pub fn schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    settings.into_generator().into_root_schema_for::<Document>()
}

/// Writes the explanation for a program.
pub fn render_json(explained: &Explained, out: &mut dyn Write) -> io::Result<()> {
    let port = explained.port.as_ref().map(|port| Port {
        endpoint: port.endpoint.to_string(),
        service: port.service.as_ref().map(ToString::to_string),
        sentence: port.sentence.clone(),
        next_step: port.next_step.clone(),
    });
    let processes = explained.processes.iter().map(|e| of(explained, e)).collect();
    let document = Document {
        version: 1,
        exit_code: exit_code(explained),
        port,
        gpus: explained.gpus.iter().map(gpu::gpu).collect(),
        processes,
        not_seen: explained.unknowns.iter().map(ToString::to_string).collect(),
    };
    json::write(&document, out)
}

fn of(explained: &Explained, explanation: &Explanation) -> Subject {
    let verdict = &explanation.verdict;
    let row = |said: &RowSaid| RowJson {
        row: said.row.0,
        holds: holds(&said.holds),
        decided: said.decided,
        title: said.title.clone(),
        conditions: said
            .conditions
            .iter()
            .map(|(text, truth)| Condition {
                text: (*text).to_owned(),
                holds: holds(truth),
                unknown: why_unknown(truth),
            })
            .collect(),
    };
    Subject {
        pid: verdict.key().pid.0,
        start_ticks: verdict.key().start_ticks,
        title: verdict.title(),
        row: verdict.row.0,
        reason: verdict.reason.clone(),
        next_step: explanation.next.clone(),
        end_with: explanation.ending.clone(),
        would_end: verdict.is_convicted,
        nominated_by: explanation.nominated_by.clone(),
        facts: facts(explained, explanation),
        evidence: verdict.evidence.clone(),
        rows: explanation.rows.iter().map(row).collect(),
        changes: explanation
            .changes
            .iter()
            .map(|change| ChangeJson {
                what: change.what.clone(),
                title: change.title.clone(),
                row: change.row.0,
                would_end: change.would_end,
            })
            .collect(),
    }
}
