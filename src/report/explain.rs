//! Why: every fact and where it came from, what each row of the verdict table said, what would have changed the
//! verdict. For a person in that order, the answer first; for a program as one JSON document
//! (docs/schema/explain-v1.json is generated from the types below).

use std::{
    fmt::Debug,
    io::{self, Write},
};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

use super::{
    Style,
    escape::{escape, width},
    exit, json,
    table::{DOUBT, GOOD, ORPHAN, Page, SPARED},
    title_of,
};
use crate::{
    ident::Pid,
    judge::{
        explain::{Explanation, RowSaid},
        truth::Truth,
        verdict::{Finding, Verdict},
    },
    pipeline::Explained,
    snapshot::{Process, Seen, Snapshot},
};

/// A command line is shown up to this many columns.
const PROCESS_COLUMNS: usize = 200;

/// 2 where something was not seen or is undecided, else 0: an explanation finds no fault.
pub fn exit_code(explained: &Explained) -> u8 {
    let is_undecided = |e: &Explanation| matches!(e.verdict.finding, Finding::Undecided(_));
    if explained.processes.iter().any(is_undecided) || !explained.unknowns.is_empty() {
        exit::COULD_NOT_TELL
    } else {
        exit::CLEAR
    }
}

/// One fact in words, and where it was read.
#[derive(Debug, Serialize, JsonSchema)]
struct Fact {
    /// What it is about.
    name: &'static str,
    /// What was seen, or why it was not.
    value: String,
    /// The kernel file, the manager, or the settings that it comes from.
    source: String,
}

fn seen<T>(seen: &Seen<T>, show: impl FnOnce(&T) -> String) -> String {
    match seen {
        Seen::Known(value) => show(value),
        Seen::Gone => "not known: it was gone when it was read".to_owned(),
        Seen::Denied => "not known: permission denied".to_owned(),
        Seen::Unreadable(why) => format!("not known: {why}"),
    }
}

fn shown(value: impl Debug) -> String {
    format!("{value:?}")
}

fn of_pid(snapshot: &Snapshot, pid: Pid) -> String {
    match (pid, snapshot.processes.get(&pid)) {
        (Pid::OUTSIDE, _) => "outside our pid namespace".to_owned(),
        (_, Some(process)) => format!("pid {pid} ({})", process.name),
        (_, None) => format!("pid {pid}, which is gone"),
    }
}

/// Every fact about one process, in the order in which the table asks for them.
fn facts(snapshot: &Snapshot, verdict: &Verdict) -> Vec<Fact> {
    let process = &verdict.process;
    let pid = process.key.pid;
    let file = |name: &str| format!("/proc/{pid}/{name}");
    let mut facts = Vec::new();
    let mut add = |name, value: String, source: String| facts.push(Fact { name, value, source });
    add("command line", String::from_utf8_lossy(&title_of(process)).into_owned(), file("cmdline"));
    add("executable", seen(&process.exe, |exe| exe.display().to_string()), file("exe"));
    add("user", seen(&process.uid, |uid| format!("uid {uid}")), file("status"));
    let age = snapshot.clock.age(process.key.start_ticks);
    let age = age.map_or("not known".to_owned(), |age| format!("{} s", age.as_secs()));
    add("age", age, format!("{}, /proc/uptime", file("stat")));
    add("parent", of_pid(snapshot, process.parent), file("stat"));
    add("session leader", of_pid(snapshot, process.session), file("stat"));
    add("group leader", of_pid(snapshot, process.group), file("stat"));
    let terminal = if process.has_terminal { "yes" } else { "none" };
    add("terminal", terminal.to_owned(), file("stat"));
    let tracer = seen(&process.tracer, |tracer| {
        tracer.map_or("nobody".to_owned(), |tracer| of_pid(snapshot, tracer))
    });
    add("traced by", tracer, file("status"));
    let namespaces = seen(&process.namespace_pids, |pids| match pids.as_slice() {
        [_] => "that of the observer".to_owned(),
        pids => format!("one of its own; its pids from here inwards: {}", shown(pids)),
    });
    add("pid namespace", namespaces, file("status"));
    add("control group", seen(&process.cgroup, |c| c.path.clone()), file("cgroup"));
    if let Some(cgroup) = process.cgroup.known() {
        let claim = cgroup
            .claim
            .as_ref()
            .map_or("none".to_owned(), |c| format!("{:?} container {}", c.kind, c.id.short()));
        add("container claim", claim, file("cgroup"));
        let unit = cgroup.unit.as_ref();
        add("unit", unit.map_or("none".to_owned(), ToString::to_string), file("cgroup"));
        if let Some((unit, state)) = unit.and_then(|u| Some((u, snapshot.units.get(u)?))) {
            let state = seen(state, |s| {
                let main = s.main_pid.map_or("none".to_owned(), |pid| pid.to_string());
                let mode = s.kill_mode.as_ref().map(shown).unwrap_or_default();
                format!("{} ({}), main pid {main}, KillMode {mode}", s.active_state, s.sub_state)
            });
            add("unit's state", state, format!("systemd: {unit}"));
        }
        if let Some(id) = &cgroup.session {
            let state = snapshot.sessions.get(id).map(|s| seen(s, Clone::clone));
            add(
                "login session",
                format!("{id}, {}", state.unwrap_or_default()),
                "logind".to_owned(),
            );
        }
    }
    for (uid, lingers) in &snapshot.lingering {
        let lingers = seen(lingers, |yes| if *yes { "yes" } else { "no" }.to_owned());
        add("lingers", format!("uid {uid}: {lingers}"), "logind".to_owned());
    }
    if let Some(id) = &process.invocation_id {
        let id = seen(id, |id| id.clone().unwrap_or_else(|| "none".to_owned()));
        add("invocation id", id, file("environ"));
    }
    add_sockets(snapshot, process, &mut add);
    let services: Vec<&str> = verdict.services.iter().map(|s| s.0.as_str()).collect();
    let services = if services.is_empty() { "none".to_owned() } else { services.join(", ") };
    add("services", services, "the settings: its patterns and ports".to_owned());
    facts
}

fn add_sockets(
    snapshot: &Snapshot,
    process: &Process,
    add: &mut impl FnMut(&'static str, String, String),
) {
    let Some(sockets) = snapshot.sockets.known() else {
        let why = seen(&snapshot.sockets, |_| String::new());
        return add("sockets", why, "socket diagnostics".to_owned());
    };
    for holding in sockets.holdings.iter().filter(|h| h.pid == process.key.pid) {
        for socket in sockets.all.iter().filter(|s| s.inode == holding.inode) {
            let value = format!(
                "{}/{} on {}, {:?}, inode {}",
                socket.port, socket.proto, socket.address, socket.state, socket.inode
            );
            let source = match &holding.link {
                Some(link) => format!("socket diagnostics, /proc/{link}"),
                None => "socket diagnostics, io_uring's fdinfo".to_owned(),
            };
            add("socket", value, source);
        }
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

/// Writes the explanation for a person.
pub fn render(explained: &Explained, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    if let Some(port) = &explained.port {
        let bold = anstyle::Style::new().bold();
        page.line(&format!("port {}  ", port.endpoint), bold, &port.sentence);
        if let Some(service) = &port.service {
            page.line("  service  ", SPARED, &service.0);
        }
        if let Some(step) = &port.next_step {
            page.line("  next: ", anstyle::Style::new(), step);
        }
    }
    for explanation in &explained.processes {
        page.blank();
        process(&mut page, &explained.snapshot, explanation);
    }
    for unknown in &explained.unknowns {
        page.blank();
        page.line("not seen: ", DOUBT, &unknown.to_string());
        if let Some(remedy) = &unknown.remedy {
            page.line("  next: ", anstyle::Style::new(), remedy);
        }
    }
    out.write_all(page.text.as_bytes())
}

fn process(page: &mut Page, snapshot: &Snapshot, explanation: &Explanation) {
    let verdict = &explanation.verdict;
    let bold = anstyle::Style::new().bold();
    let line = escape(title_of(&verdict.process), Some(PROCESS_COLUMNS));
    page.paint(&format!("pid {}  ", verdict.key().pid), bold);
    page.text.push_str(&line);
    page.text.push('\n');
    let colour = match verdict.finding {
        Finding::Orphan(_) => ORPHAN,
        Finding::Suspect | Finding::Unsupervised(_) | Finding::Foreign | Finding::Undecided(_) => {
            DOUBT
        }
        Finding::Spare(_) => GOOD,
    };
    page.paint(&format!("  {}", escape(verdict.title(), None)), colour);
    let deed =
        if verdict.is_convicted { "'portreeve reap' ends it" } else { "reap leaves it alone" };
    page.line("", bold, &format!("  (row {}; {deed})", verdict.row.0));
    page.line("  why: ", bold, &verdict.reason);
    let nominated = explanation.nominated_by.as_deref();
    let nominated = nominated.unwrap_or("nothing: it holds no guarded port and matches no pattern");
    page.line("  looked at because: ", bold, nominated);
    if let Some(step) = &verdict.next_step {
        page.line("  next: ", bold, step);
    }
    page.line("\n  what was seen", bold, "");
    let facts = facts(snapshot, verdict);
    let names = facts.iter().map(|f| width(f.name)).max().unwrap_or_default();
    for fact in &facts {
        page.paint(&format!("    {:names$}  ", fact.name), SPARED);
        page.text.push_str(&escape(&fact.value, Some(PROCESS_COLUMNS)));
        page.paint(&format!("  [{}]", escape(&fact.source, None)), SPARED);
        page.text.push('\n');
    }
    for evidence in &verdict.evidence {
        page.line("    beside it: ", SPARED, evidence);
    }
    page.line("\n  what each row of the verdict table said", bold, "");
    let end = explanation.rows.iter().position(|r| r.decided).unwrap_or(explanation.rows.len());
    for said in explanation.rows.iter().take(end + 1) {
        row(page, said, verdict);
    }
    page.line("\n  what would have changed it", bold, "");
    if explanation.changes.is_empty() {
        page.line("    ", SPARED, "no flag and no declaration");
    }
    for change in &explanation.changes {
        let then = if change.would_end { "; reap would end it" } else { "" };
        page.line("    ", SPARED, &format!("if {}: {}{then}", change.what, change.title));
    }
}

fn row(page: &mut Page, said: &RowSaid, verdict: &Verdict) {
    let colour = if said.decided { anstyle::Style::new().bold() } else { SPARED };
    let mark = if said.decided { "▶" } else { " " };
    for (n, (text, truth)) in said.conditions.iter().enumerate() {
        let number = if n == 0 { said.row.0.to_string() } else { String::new() };
        let mark = if n == 0 { mark } else { " " };
        page.paint(&format!("  {mark} {number:>2}  {:<3}  ", word(truth)), colour);
        page.text.push_str(text);
        if let Some(why) = why_unknown(truth) {
            page.paint(&format!("  ({})", escape(&why, None)), DOUBT);
        }
        page.text.push('\n');
    }
    if said.decided {
        page.line("             ", colour, &format!("→ {}", verdict.title()));
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
    /// The process that was asked about, or the port's holders.
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
    /// `reap` ends it.
    would_end: bool,
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
    let processes = explained.processes.iter().map(|e| of(&explained.snapshot, e)).collect();
    let document = Document {
        version: 1,
        exit_code: exit_code(explained),
        port,
        processes,
        not_seen: explained.unknowns.iter().map(ToString::to_string).collect(),
    };
    json::write(&document, out)
}

fn of(snapshot: &Snapshot, explanation: &Explanation) -> Subject {
    let verdict = &explanation.verdict;
    let row = |said: &RowSaid| RowJson {
        row: said.row.0,
        holds: holds(&said.holds),
        decided: said.decided,
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
        would_end: verdict.is_convicted,
        nominated_by: explanation.nominated_by.clone(),
        facts: facts(snapshot, verdict),
        evidence: verdict.evidence.clone(),
        rows: explanation.rows.iter().map(row).collect(),
        changes: explanation
            .changes
            .iter()
            .map(|change| ChangeJson {
                what: change.what.clone(),
                title: change.title.clone(),
                would_end: change.would_end,
            })
            .collect(),
    }
}
