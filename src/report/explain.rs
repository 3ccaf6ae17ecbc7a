//! Why: every fact and where it came from, what each row of the verdict table said, what would have changed the
//! verdict. For a person the answer first, then what bears on it, all of it where it is asked for; for a program as one JSON document
//! (docs/schema/explain-v1.json is generated from the types below).

use std::{
    fmt::Debug,
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
    ident::{ContainerId, Pid},
    judge::{
        explain::{Change, Explanation, RowSaid},
        gpu::{GpuState, GpuVerdict},
        truth::Truth,
        verdict::{Finding, Verdict},
    },
    pipeline::Explained,
    snapshot::{
        Container, Containers, Enclosure, Gpu, GpuHolding, GpuUse, Process, Seen, Snapshot,
        gibibytes,
    },
};

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

/// One fact in words, and where it was read.
#[derive(Debug, Serialize, JsonSchema)]
struct Fact {
    /// What it is about.
    name: &'static str,
    /// What was seen, or why it was not.
    value: String,
    /// The kernel file, the manager, or the settings that it comes from.
    source: String,
    #[serde(skip)]
    #[schemars(skip)]
    rank: Rank,
}

/// Where a person reads a fact, who does not ask for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    /// In the first lines, or it goes without saying.
    Told,
    /// On a line of its own.
    Shown,
    /// It says that something is not so: among the others of its kind, in these words.
    Absent(&'static str),
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

/// `alice (uid 1000)`. A container's users are not this host's, whatever their numbers.
fn user(explained: &Explained, process: &Process, uid: u32) -> String {
    let has_layer = |e: &Enclosure| e.layer.known().is_some_and(Option::is_some);
    let is_contained = process.has_claim()
        || process.is_in_nested_namespace()
        || process.enclosure.as_ref().is_some_and(has_layer);
    match explained.users.get(&uid).filter(|_| !is_contained) {
        Some(name) => format!("{name} (uid {uid})"),
        None => format!("uid {uid}"),
    }
}

/// Every fact about one process, in the order in which the table asks for them.
fn facts(explained: &Explained, verdict: &Verdict) -> Vec<Fact> {
    let snapshot = &explained.snapshot;
    let process = &verdict.process;
    let pid = process.key.pid;
    let file = |name: &str| format!("/proc/{pid}/{name}");
    let mut facts = Vec::new();
    let mut add = |rank, name, value: String, source: String| {
        facts.push(Fact { name, value, source, rank });
    };
    let absent = |is_absent, words| if is_absent { Rank::Absent(words) } else { Rank::Shown };
    let line = String::from_utf8_lossy(&title_of(process)).into_owned();
    add(Rank::Told, "command line", line, file("cmdline"));
    add(
        Rank::Shown,
        "executable",
        seen(&process.exe, |exe| exe.display().to_string()),
        file("exe"),
    );
    let name = seen(&process.uid, |uid| user(explained, process, *uid));
    add(Rank::Told, "user", name, file("status"));
    let age = snapshot.clock.age(process.key.start_ticks);
    let age = age.map_or("not known".to_owned(), |age| format!("{} s", age.as_secs()));
    add(Rank::Told, "age", age, format!("{}, /proc/uptime", file("stat")));
    add(Rank::Told, "parent", of_pid(snapshot, process.parent), file("stat"));
    for (name, leader) in [("session leader", process.session), ("group leader", process.group)] {
        let rank = if leader == pid { Rank::Told } else { Rank::Shown };
        add(rank, name, of_pid(snapshot, leader), file("stat"));
    }
    let terminal = process.terminal.map_or("none".to_owned(), |terminal| terminal.to_string());
    let rank = absent(process.terminal.is_none(), "terminal");
    add(rank, "terminal", terminal, file("stat"));
    let tracer = seen(&process.tracer, |tracer| {
        tracer.map_or("nobody".to_owned(), |tracer| of_pid(snapshot, tracer))
    });
    let rank = absent(process.tracer == Seen::Known(None), "tracer");
    add(rank, "traced by", tracer, file("status"));
    let namespaces = seen(&process.namespace_pids, |pids| match pids.as_slice() {
        [_] => "that of the observer".to_owned(),
        pids => format!("one of its own; its pids from here inwards: {}", shown(pids)),
    });
    let is_ours = process.namespace_pids.known().is_some_and(|pids| pids.len() == 1);
    let rank = absent(is_ours, "pid namespace of its own");
    add(rank, "pid namespace", namespaces, file("status"));
    if process.is_root_deleted {
        add(Rank::Shown, "root directory", "deleted".to_owned(), file("root"));
    }
    add(Rank::Shown, "control group", seen(&process.cgroup, |c| c.path.clone()), file("cgroup"));
    add_container(snapshot, verdict, &mut add);
    add_membership(explained, process, &mut add);
    if let Some(id) = &process.invocation_id {
        let id = seen(id, |id| id.clone().unwrap_or_else(|| "none".to_owned()));
        add(Rank::Shown, "invocation id", id, file("environ"));
    }
    add_sockets(snapshot, process, &mut add);
    for share in &verdict.gpus {
        add(Rank::Shown, "computes on", share.to_string(), "the GPU's driver".to_owned());
    }
    let services: Vec<&str> = verdict.services.iter().map(|s| s.0.as_str()).collect();
    let services = if services.is_empty() { "none".to_owned() } else { services.join(", ") };
    let source = "the settings: its patterns and ports".to_owned();
    add(Rank::Told, "services", services, source);
    facts
}

/// What was seen of a GPU, and of its parts where it is split.
fn gpu_facts(verdict: &GpuVerdict, snapshot: &Snapshot) -> Vec<Fact> {
    let Some(gpu) = &verdict.gpu else { return Vec::new() };
    let source = gpu.source.to_string();
    let mut facts = Vec::new();
    let mut add = |name, value: String| {
        facts.push(Fact { name, value, source: source.clone(), rank: Rank::Shown });
    };
    let maker = format!("{} {}", gpu.vendor, gpu.name.trim_start_matches("NVIDIA "));
    add("what", maker.trim_end().to_owned());
    for (name, value) in [("uuid", &gpu.uuid), ("bus", &gpu.bus)] {
        if let Some(value) = value {
            add(name, value.clone());
        }
    }
    if gpu.is_split {
        add("split", "into parts by MIG, which have the processes and the memory".to_owned());
    }
    let memory = match &gpu.memory {
        Seen::Known(Some(memory)) => {
            let needed = gibibytes(verdict.need.bytes_of(memory.total_bytes));
            format!("{}, {needed} needed", memory_of(gpu))
        }
        Seen::Known(None) | Seen::Gone | Seen::Denied | Seen::Unreadable(_) => memory_of(gpu),
    };
    add("memory", memory);
    for holding in &gpu.holdings {
        add("used by", used_by(holding));
    }
    let all = snapshot.gpus.iter().flat_map(|gpus| &gpus.all).filter(|_| gpu.is_split);
    for part in all.filter(|part| part.index == gpu.index && part.part.is_some()) {
        let uuid = part.uuid.as_deref().unwrap_or("without a UUID");
        add("part", format!("{} ({uuid}): {}", part.label(), memory_of(part)));
        for holding in &part.holdings {
            add("used by", format!("{}, on {}", used_by(holding), part.label()));
        }
    }
    if let Some(why) = &verdict.may_miss {
        add("may be missing", format!("holders: {why}"));
    }
    facts
}

fn memory_of(gpu: &Gpu) -> String {
    seen(&gpu.memory, |memory| match memory {
        Some(memory) => {
            format!("{} free of {}", gibibytes(memory.free_bytes), gibibytes(memory.total_bytes))
        }
        None => "the driver does not count it".to_owned(),
    })
}

fn used_by(GpuHolding { pid, kind, memory_bytes }: &GpuHolding) -> String {
    let how = match kind {
        GpuUse::Compute => "computes",
        GpuUse::Mps => "computes through MPS",
        GpuUse::Graphics => "draws",
    };
    let memory = memory_bytes.map_or("memory not counted".to_owned(), gibibytes);
    format!("pid {pid} {how}, {memory}")
}

/// What namespaces and mounts say of its container, and what the engines say that were asked.
fn add_container(
    snapshot: &Snapshot,
    verdict: &Verdict,
    add: &mut impl FnMut(Rank, &'static str, String, String),
) {
    let process = &verdict.process;
    let Some(enclosure) = &process.enclosure else { return };
    let file = |name: &str| format!("/proc/{}/{name}", process.key.pid);
    let layer = seen(&enclosure.layer, |layer| match layer {
        Some(path) => path.display().to_string(),
        None => "in no overlay but the host's own".to_owned(),
    });
    // A unit's private mounts are a mount namespace too, and no container.
    let has_layer = enclosure.layer.known().is_some_and(Option::is_some);
    let is_contained = process.has_claim() || process.is_in_nested_namespace() || has_layer;
    let rank = if is_contained { Rank::Shown } else { Rank::Told };
    add(rank, "root directory", layer, file("mountinfo"));
    let number = seen(&enclosure.pid_namespace, ToString::to_string);
    add(Rank::Told, "number of its pid namespace", number, file("ns/pid"));
    let owner = seen(&enclosure.owner, |uid| format!("uid {uid}"));
    add(rank, "made by", owner, file("ns/user"));
    let claim = process.cgroup.known().and_then(|c| c.claim.as_ref());
    let is_its = |id: &ContainerId, said: &Seen<Container>| {
        let has_root =
            |c: &Container| c.upper_dir.is_some() && enclosure.layer.known() == Some(&c.upper_dir);
        let publishes = |c: &Container| {
            c.published.iter().any(|p| verdict.ports.iter().any(|e| e.port == p.port))
        };
        claim.is_some_and(|claim| claim.id == *id)
            || said.known().is_some_and(|c| has_root(c) || publishes(c))
    };
    for ((engine, id), said) in &snapshot.containers.said {
        if is_its(id, said) {
            let words = match said {
                Seen::Gone => format!("{engine} does not know {}", id.short()),
                said @ (Seen::Known(_) | Seen::Denied | Seen::Unreadable(_)) => {
                    seen(said, |c| container(c, &snapshot.containers))
                }
            };
            add(Rank::Shown, "container", words, format!("{engine} inspect {}", id.short()));
        }
    }
    for (engine, listed) in &snapshot.containers.listed {
        if !matches!(listed, Seen::Known(())) {
            let why = seen(listed, |()| String::new());
            add(Rank::Shown, "containers", why, format!("{engine} ps --all"));
        }
    }
    for (engine, store) in &snapshot.containers.stores {
        let store = seen(store, |s| format!("{} ({})", s.root.display(), s.driver));
        add(Rank::Shown, "store", store, format!("{engine} info"));
    }
}

/// One container in words.
fn container(container: &Container, containers: &Containers) -> String {
    let Container { name, state, restarts, restart_policy, health, .. } = container;
    let main = match container.main_pid {
        None => "no main process".to_owned(),
        Some(pid) => match containers.namespaces.get(&pid) {
            Some(Seen::Gone) => format!("main process {pid}, which is gone"),
            Some(Seen::Known(number)) => format!("main process {pid} in pid namespace {number}"),
            Some(Seen::Denied | Seen::Unreadable(_)) | None => format!("main process {pid}"),
        },
    };
    let policy = restart_policy.as_ref().map(|p| format!(" by policy '{p}'")).unwrap_or_default();
    let restarted = match restarts {
        0 => String::new(),
        times => format!(", restarted {times} times{policy}"),
    };
    let health = health.as_ref().map(|health| format!(", {health}")).unwrap_or_default();
    format!("{name}: {state}, {main}{restarted}{health}")
}

/// What its control group says that it is a member of, and what the managers say of that.
fn add_membership(
    explained: &Explained,
    process: &Process,
    add: &mut impl FnMut(Rank, &'static str, String, String),
) {
    let snapshot = &explained.snapshot;
    let Some(cgroup) = process.cgroup.known() else { return };
    let file = format!("/proc/{}/cgroup", process.key.pid);
    let claim = cgroup.claim.as_ref();
    let rank = if claim.is_some() { Rank::Shown } else { Rank::Absent("container claim") };
    let claim =
        claim.map_or("none".to_owned(), |c| format!("{:?} container {}", c.kind, c.id.short()));
    add(rank, "container claim", claim, file.clone());
    let unit = cgroup.unit.as_ref();
    add(Rank::Told, "unit", unit.map_or("none".to_owned(), ToString::to_string), file);
    if let Some((unit, state)) = unit.and_then(|u| Some((u, snapshot.units.get(u)?))) {
        let state = seen(state, |unit| {
            let main =
                unit.main_pid.map_or("no main pid".to_owned(), |pid| format!("main pid {pid}"));
            let mode = unit.kill_mode.as_ref().map(|mode| format!(", KillMode={mode}"));
            let delegated = if unit.is_delegated { ", Delegate=yes" } else { "" };
            let mode = mode.unwrap_or_default();
            format!("{}, {main}{mode}{delegated}", unit.state())
        });
        add(Rank::Shown, "unit's state", state, format!("systemd: {unit}"));
    }
    if let Some(id) = &cgroup.session {
        let state = snapshot.sessions.get(id).map(|s| seen(s, Clone::clone)).unwrap_or_default();
        add(Rank::Told, "login session", format!("{id}, {state}"), "logind".to_owned());
    }
    let own = process.uid.known().copied();
    let users = own.into_iter().chain(cgroup.session_user.filter(|uid| Some(*uid) != own));
    let lingers: Vec<String> = users
        .filter_map(|uid| {
            let lingers = seen(snapshot.lingering.get(&uid)?, |yes| yes_or_no(*yes).to_owned());
            Some(format!("{}: {lingers}", user(explained, process, uid)))
        })
        .collect();
    if !lingers.is_empty() {
        add(Rank::Shown, "lingers", lingers.join("; "), "logind".to_owned());
    }
}

fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn add_sockets(
    snapshot: &Snapshot,
    process: &Process,
    add: &mut impl FnMut(Rank, &'static str, String, String),
) {
    let Some(sockets) = snapshot.sockets.known() else {
        let why = seen(&snapshot.sockets, |_| String::new());
        return add(Rank::Shown, "sockets", why, "socket diagnostics".to_owned());
    };
    for holding in sockets.holdings.iter().filter(|h| h.pid == process.key.pid) {
        for socket in sockets.all.iter().filter(|s| s.inode == holding.inode) {
            let is_left = sockets.creator_gone.contains(&socket.inode);
            let creator = if is_left { ", made in a control group that is gone" } else { "" };
            let state = shown(socket.state).to_lowercase();
            let value = format!(
                "{}/{} on {}, {state}, inode {}{creator}",
                socket.port, socket.proto, socket.address, socket.inode
            );
            let source = match &holding.link {
                Some(link) => format!("socket diagnostics, /proc/{link}"),
                None => "socket diagnostics, io_uring's fdinfo".to_owned(),
            };
            add(Rank::Shown, "socket", value, source);
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
        let facts = facts(explained, &explanation.verdict);
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
        facts: facts(explained, verdict),
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
