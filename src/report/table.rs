//! The report for a person: what has each port, why, what to do; the answer last, where the eye is when the text has run past.
//! Lays out on a terminal's width; in a pipe nothing but a process's command line is cut.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write},
    time::Duration,
};

use anstyle::AnsiColor;

use super::{
    Style,
    escape::{escape, width},
    exit,
    github::stopped_words,
    gpu, leftovers,
    summary::Summary,
    title_of,
};
use crate::{
    act::{Deed, Outcome, Respawn, container::End},
    ident::Pid,
    judge::{
        gpu::{GpuState, GpuVerdict},
        port::{PortState, PortVerdict, allocated_title},
        verdict::{Finding, Unknown, Verdict},
    },
    pipeline::{Findings, Reaped},
    snapshot::gibibytes,
};

/// Below this many columns each cell gets a line of its own.
pub(super) const NARROW: usize = 60;
/// A command line is never longer than this, in a pipe either: JSON has it whole.
const PROCESS_COLUMNS: usize = 80;
/// Flowing text where there is no terminal to tell.
const TEXT_COLUMNS: usize = 100;
/// What a command line keeps beside a long verdict.
const PROCESS_COLUMNS_LEAST: usize = 12;
/// A column before the command line is cut to this on a terminal; to the second below 100 columns.
const COLUMNS_BEFORE: usize = 20;
const COLUMNS_BEFORE_LEAST: usize = 12;
pub(super) const GAP: usize = 2;
/// Reasons and next steps stand below their row by this much.
pub(super) const INDENT: usize = 6;

pub(super) const ORPHAN: anstyle::Style = AnsiColor::Red.on_default();
pub(super) const DOUBT: anstyle::Style = AnsiColor::Yellow.on_default();
pub(super) const GOOD: anstyle::Style = AnsiColor::Green.on_default();
pub(super) const SPARED: anstyle::Style = anstyle::Style::new().dimmed();
pub(super) const PLAIN: anstyle::Style = anstyle::Style::new();

/// Writes what a look found: of `scan` and of `reap --dry-run`.
pub fn render_findings(findings: &Findings, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    state(&mut page, findings);
    page.answer(exit::of_findings(findings), &found(&Summary::of_findings(findings)));
    let convicted = findings.verdicts.iter().filter(|verdict| verdict.is_convicted);
    let convicted: Vec<Pid> = convicted.map(|verdict| verdict.process.key.pid).collect();
    if !convicted.is_empty() {
        let count = counted(convicted.len(), "process", "processes");
        let text = format!(
            "portreeve reap with the same arguments would end {count}: {}",
            pids(&convicted)
        );
        page.line("next: ", PLAIN, &text);
    }
    out.write_all(page.text.as_bytes())
}

/// Writes what a reap did, and what the last look found.
pub fn render_reaped(reaped: &Reaped, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    page.table(&["PID"], "OUTCOME", &reaped.deeds.iter().map(deed_row).collect::<Vec<_>>());
    page.table(&["PID"], "CAME BACK", &reaped.respawns.iter().map(respawn_row).collect::<Vec<_>>());
    state(&mut page, &reaped.after);
    let interrupted = reaped.was_interrupted.then(|| "interrupted before all was done".to_owned());
    let summary = Summary::of_reaped(reaped);
    let parts = [Some(ended(&reaped.deeds)), interrupted, Some(ports(&summary)), gpus(&summary)];
    page.answer(
        exit::of_reaped(reaped),
        &parts.into_iter().flatten().collect::<Vec<_>>().join(" · "),
    );
    let remains = remains(reaped);
    if !remains.is_empty() {
        page.line("remains: ", PLAIN, &remains.join(" · "));
    }
    out.write_all(page.text.as_bytes())
}

/// Ports and processes as one look saw them, and what it could not see.
fn state(page: &mut Page, findings: &Findings) {
    page.blank();
    let mut told = BTreeSet::new();
    let ports = findings.ports.iter();
    let mut rows: Vec<Row> =
        ports.flat_map(|port| port_rows(port, &findings.verdicts, &mut told)).collect();
    let gpus = findings.gpus.iter();
    rows.extend(gpus.flat_map(|gpu| gpu_rows(gpu, &findings.verdicts, &mut told)));
    let portless =
        findings.verdicts.iter().filter(|verdict| !told.contains(&verdict.process.key.pid));
    rows.extend(portless.map(portless_row));
    page.table(&[first_column(&findings.gpus), "SERVICE", "PID"], "VERDICT", &rows);
    if let Some(containers) = &findings.model_containers {
        page.blank();
        leftovers::rows(page, &leftovers::orphans(containers));
        page.blank();
    }

    let free = findings.ports.iter().filter(|port| port.state == PortState::Free);
    let free = free.map(|port| port.endpoint.short());
    let free: Vec<String> = free.chain(findings.gpus.iter().filter_map(free_gpu)).collect();
    if !free.is_empty() {
        page.line("free: ", GOOD, &free.join(" "));
    }
    let silent = findings.ports.iter().filter(|port| port.state == PortState::NoListener);
    let silent: Vec<String> = silent.map(|port| port.endpoint.short()).collect();
    if !silent.is_empty() {
        page.line("no listener: ", GOOD, &silent.join(" "));
        page.line("", SPARED, "sockets that are bound and silent are not seen here");
    }
    for Unknown { fact, why, remedy } in &findings.unknowns {
        page.line("not seen: ", DOUBT, &format!("{fact}: {why}"));
        if let Some(remedy) = remedy {
            page.line("      next: ", PLAIN, remedy);
        }
    }
    page.blank();
}

/// What the first column has.
pub(super) fn first_column<T>(gpus: &[T]) -> &'static str {
    if gpus.is_empty() { "PORT" } else { "PORT/GPU" }
}

/// `GPU 0 (138.9 GiB)`.
fn free_gpu(verdict: &GpuVerdict) -> Option<String> {
    let free = match (&verdict.state, gpu::memory(verdict)) {
        (GpuState::Free, Some(memory)) => format!(" ({})", gibibytes(memory.free_bytes)),
        (GpuState::Free, None) => String::new(),
        (GpuState::Held(_) | GpuState::Residual | GpuState::Absent | GpuState::Unknown(_), _) => {
            return None;
        }
    };
    Some(format!("{}{free}", verdict.label))
}

/// The rows of a GPU, likewise.
fn gpu_rows<'a>(
    gpu: &'a GpuVerdict,
    verdicts: &'a [Verdict],
    told: &mut BTreeSet<Pid>,
) -> Vec<Row<'a>> {
    let (holders, words) = match &gpu.state {
        GpuState::Free => return Vec::new(),
        GpuState::Held(holders) => (holders.as_slice(), ("not judged", DOUBT)),
        GpuState::Residual => (&[][..], ("memory taken", DOUBT)),
        GpuState::Absent => (&[][..], ("no such GPU", DOUBT)),
        GpuState::Unknown(_) => (&[][..], ("unknown", DOUBT)),
    };
    let services = gpu::services(gpu);
    let place = Place {
        name: gpu.label.clone(),
        service: if services.is_empty() { "-".to_owned() } else { services },
    };
    let mut rows = place.rows(holders, words, false, verdicts, told);
    if let Some(last) = rows.last_mut() {
        last.details.push(Detail::Why(gpu.sentence.as_str().into()));
        last.details.extend(gpu.next_step.iter().map(|next| Detail::Next(next)));
    }
    rows
}

/// What rows are about: a port or a GPU.
struct Place {
    name: String,
    service: String,
}

impl Place {
    /// One for each holder, with these words where its verdict does not say it; else one with the words alone.
    fn rows<'a>(
        self,
        holders: &[Pid],
        (words, colour): (&str, anstyle::Style),
        has_own_words: bool,
        verdicts: &'a [Verdict],
        told: &mut BTreeSet<Pid>,
    ) -> Vec<Row<'a>> {
        let Self { name, service } = self;
        let row = |n: usize,
                   pid: String,
                   verdict: Option<&'a Verdict>,
                   told: &mut BTreeSet<Pid>| {
            let (word, colour) = match verdict {
                Some(verdict) if !has_own_words => (verdict.title(), colour_of(&verdict.finding)),
                Some(_) | None => (words.to_owned(), colour),
            };
            let (name, service) = if n == 0 { (name.as_str(), service.as_str()) } else { ("", "") };
            Row {
                before: vec![name.to_owned(), service.to_owned(), pid],
                process: verdict.map_or(b"-".to_vec(), |verdict| title_of(&verdict.process)),
                word,
                colour,
                // Why, and what to do, is said once for each process.
                details: verdict
                    .filter(|verdict| told.insert(verdict.key().pid))
                    .map(details)
                    .unwrap_or_default(),
            }
        };
        if holders.is_empty() {
            return vec![row(0, "-".to_owned(), None, told)];
        }
        let verdict_of = |pid: Pid| verdicts.iter().find(|verdict| verdict.key().pid == pid);
        let all = holders.iter().enumerate();
        all.map(|(n, &pid)| row(n, pid.to_string(), verdict_of(pid), told)).collect()
    }
}

/// The rows of a port: one for each holder, one where no holder is seen, none where it is free.
fn port_rows<'a>(
    port: &'a PortVerdict,
    verdicts: &'a [Verdict],
    told: &mut BTreeSet<Pid>,
) -> Vec<Row<'a>> {
    let (holders, words) = match &port.state {
        PortState::Free | PortState::NoListener => return Vec::new(),
        PortState::Held(holders) | PortState::BoundOnly(holders) => {
            let words = if holders.is_empty() { "holder not visible" } else { "not judged" };
            (holders.as_slice(), (words, DOUBT))
        }
        PortState::Ephemeral { holders, .. } => {
            (holders.as_slice(), ("outgoing connection", DOUBT))
        }
        PortState::Connected { holders, .. } => (holders.as_slice(), ("a connection", DOUBT)),
        PortState::Lingering => (&[][..], ("lingering", SPARED)),
        PortState::KernelOwned => (&[][..], ("held by the kernel", DOUBT)),
        PortState::Allocated(container) => (&[][..], (allocated_title(container), DOUBT)),
        PortState::Detoured(_) => (&[][..], ("a rule takes its packets", DOUBT)),
        PortState::HolderNotVisible => (&[][..], ("holder not visible", DOUBT)),
        PortState::Unknown(_) => (&[][..], ("unknown", DOUBT)),
    };
    let is_connection =
        matches!(port.state, PortState::Ephemeral { .. } | PortState::Connected { .. });
    let verdict_of = |pid: Pid| verdicts.iter().find(|verdict| verdict.process.key.pid == pid);
    let service = port.service.as_ref().map_or("-", |name| &name.0).to_owned();
    let place = Place { name: port.endpoint.short(), service };
    let mut rows = place.rows(holders, words, is_connection, verdicts, told);
    // Where the one holder's verdict stands in the row, that is the answer.
    let explained_by = match (&port.state, holders) {
        (PortState::Held(_), &[pid]) => verdict_of(pid),
        (_, _) => None,
    };
    let remedy =
        if let PortState::Unknown(unknown) = &port.state { unknown.remedy.as_ref() } else { None };
    let next = port.next_step.as_ref().or(remedy);
    let is_said = |next: &&String| {
        explained_by.is_some_and(|verdict| verdict.next_step.is_some())
            || holders
                .iter()
                .filter_map(|&pid| verdict_of(pid))
                .any(|v| v.next_step.as_ref() == Some(next))
    };
    if let Some(last) = rows.last_mut() {
        if explained_by.is_none() {
            last.details.push(Detail::Why(port.sentence.as_str().into()));
        }
        last.details.extend(next.filter(|next| !is_said(next)).map(|next| Detail::Next(next)));
    }
    rows
}

fn portless_row(verdict: &Verdict) -> Row<'_> {
    let services: Vec<&str> = verdict.services.iter().map(|name| name.0.as_str()).collect();
    let services = if services.is_empty() { "-".to_owned() } else { services.join(",") };
    Row {
        before: vec!["-".to_owned(), services, verdict.process.key.pid.to_string()],
        process: title_of(&verdict.process),
        word: verdict.title(),
        colour: colour_of(&verdict.finding),
        details: details(verdict),
    }
}

fn details(verdict: &Verdict) -> Vec<Detail<'_>> {
    let remedy = match &verdict.finding {
        Finding::Undecided(unknown) => unknown.remedy.as_ref(),
        Finding::Spare(_)
        | Finding::Orphan(_)
        | Finding::Suspect
        | Finding::Unsupervised(_)
        | Finding::Foreign => None,
    };
    let next = verdict.next_step.as_ref().or(remedy);
    std::iter::once(Detail::Why(verdict.reason.as_str().into()))
        .chain(verdict.evidence.iter().map(|text| Detail::Evidence(text)))
        .chain(next.map(|next| Detail::Next(next)))
        .collect()
}

pub(super) fn deed_row(deed: &Deed) -> Row<'_> {
    let (word, next) = match &deed.outcome {
        Outcome::Terminated(time) => (format!("ended by SIGTERM after {}", brief(*time)), None),
        Outcome::Killed(time) => (format!("ended by SIGKILL after {}", brief(*time)), None),
        Outcome::Stopped(stopped) => {
            let is_forced = stopped.end == End::Forced;
            let next = is_forced
                .then_some("raise the 'grace:' of its service, or see why it did not stop");
            (stopped_words(stopped), next)
        }
        Outcome::NotStopped(why) => (
            format!("not stopped: {why}"),
            Some("ask its engine: 'docker inspect' or 'podman inspect'"),
        ),
        Outcome::HandedOver(unit) => (
            format!("left to {unit}, which stops its container"),
            Some("its outcome: journalctl -t portreeve"),
        ),
        Outcome::Vanished => ("was gone before any signal".to_owned(), None),
        Outcome::Replaced(what) => {
            (format!("left alone: {what}"), Some("look again: portreeve scan"))
        }
        Outcome::Refused(why) => {
            (format!("signal refused: {why}"), Some("run as root, or with CAP_KILL"))
        }
        Outcome::Unkillable { state, wait_channel } => (
            match wait_channel {
                Some(place) => format!("unkillable: {state} in {place}"),
                None => format!("unkillable: state {state}"),
            },
            Some("mend what it waits for (a mount, a disk, a driver) or reboot: no signal ends it"),
        ),
        Outcome::Interrupted => {
            ("interrupted: its end was not seen".to_owned(), Some("run portreeve reap again"))
        }
    };
    let verdict = &deed.verdict;
    let what = Detail::Why(verdict.title().into());
    let why = Detail::Why(verdict.reason.as_str().into());
    Row {
        before: vec![verdict.process.key.pid.to_string()],
        process: title_of(&verdict.process),
        word,
        colour: if deed.outcome.is_gone() { GOOD } else { ORPHAN },
        details: [what, why]
            .into_iter()
            .chain(verdict.evidence.iter().map(|text| Detail::Evidence(text)))
            .chain(next.map(Detail::Next))
            .collect(),
    }
}

pub(super) fn respawn_row(newcomer: &Respawn) -> Row<'_> {
    Row {
        before: vec![newcomer.key.pid.to_string()],
        process: newcomer.command_line.as_bytes().to_vec(),
        word: format!("like {}", newcomer.like),
        colour: ORPHAN,
        details: vec![
            Detail::Why(format!("brought by {}", newcomer.brought_by).into()),
            Detail::Next(&newcomer.next_step),
        ],
    }
}

fn colour_of(finding: &Finding) -> anstyle::Style {
    match finding {
        Finding::Spare(_) => SPARED,
        Finding::Orphan(_) => ORPHAN,
        Finding::Suspect | Finding::Unsupervised(_) | Finding::Foreign | Finding::Undecided(_) => {
            DOUBT
        }
    }
}

/// None where no GPU is guarded.
fn gpus(summary: &Summary) -> Option<String> {
    let Summary { gpus_guarded: all, gpus_free: free, .. } = *summary;
    if all == 0 {
        return None;
    }
    if free == all {
        return Some(if all == 1 {
            "the GPU is free".to_owned()
        } else {
            format!("all {all} GPUs are free")
        });
    }
    let rest = [
        (summary.gpus_held, "held"),
        (summary.gpus_short, "short of memory or absent"),
        (summary.gpus_unknown, "unknown"),
    ];
    let rest = rest
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!(", {count} {word}"));
    Some(format!("{free} of {} free{}", counted(all, "GPU", "GPUs"), rest.collect::<String>()))
}

/// What a look found, in one line.
fn found(summary: &Summary) -> String {
    let orphans = match summary.orphans {
        0 if summary.model_containers > 0 => None,
        0 => Some("no orphans".to_owned()),
        orphans => Some(counted(orphans, "orphan", "orphans")),
    };
    let containers = (summary.model_containers > 0).then(|| {
        counted(summary.model_containers, "orphaned model container", "orphaned model containers")
    });
    let spared = (summary.spared > 0).then(|| format!("{} spared", summary.spared));
    let parts: Vec<String> = { orphans.into_iter() }
        .chain(containers)
        .chain(others(summary))
        .chain(spared)
        .chain(
            [ports(summary)]
                .into_iter()
                .filter(|_| summary.ports_guarded > 0 || summary.gpus_guarded == 0),
        )
        .chain(gpus(summary))
        .collect();
    parts.join(" · ")
}

/// What is neither orphan nor spared.
fn others(summary: &Summary) -> impl Iterator<Item = String> {
    let suspects = (summary.suspects > 0).then(|| counted(summary.suspects, "suspect", "suspects"));
    let unsupervised =
        (summary.unsupervised > 0).then(|| format!("{} unsupervised", summary.unsupervised));
    let foreign = (summary.foreign > 0).then(|| format!("{} foreign", summary.foreign));
    let undecided = (summary.undecided > 0).then(|| format!("{} undecided", summary.undecided));
    [suspects, unsupervised, foreign, undecided].into_iter().flatten()
}

fn ports(summary: &Summary) -> String {
    let Summary { ports_guarded: all, ports_free: free, .. } = *summary;
    if all == 0 {
        return "no guarded port was asked about".to_owned();
    }
    if free == all {
        return if all == 1 {
            "the guarded port is free".to_owned()
        } else {
            format!("all {all} guarded ports are free")
        };
    }
    let rest = [
        (summary.ports_without_listener, "without a listener"),
        (summary.ports_held, "held"),
        (summary.ports_lingering, "lingering"),
        (summary.ports_unknown, "unknown"),
    ];
    let rest = rest
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!(", {count} {word}"));
    format!(
        "{free} of {} free{}",
        counted(all, "guarded port", "guarded ports"),
        rest.collect::<String>()
    )
}

fn ended(deeds: &[Deed]) -> String {
    let are_orphans = deeds.iter().all(|deed| matches!(deed.verdict.finding, Finding::Orphan(_)));
    let (one, many) = if are_orphans { ("orphan", "orphans") } else { ("process", "processes") };
    let gone = deeds.iter().filter(|deed| deed.outcome.is_gone()).count();
    match deeds.len() {
        0 => "nothing to end".to_owned(),
        all => format!("ended {gone} of {}", counted(all, one, many)),
    }
}

/// What a reap did not bring about, and what else the last look found.
fn remains(reaped: &Reaped) -> Vec<String> {
    let not_ended = reaped.deeds.iter().filter(|deed| !deed.outcome.is_gone());
    let not_ended: Vec<Pid> = not_ended.map(|deed| deed.verdict.process.key.pid).collect();
    let came_back: Vec<Pid> = reaped.respawns.iter().map(|newcomer| newcomer.key.pid).collect();
    // No process is counted twice.
    let is_told = |verdict: &Verdict| {
        let pid = verdict.process.key.pid;
        not_ended.contains(&pid) || came_back.contains(&pid)
    };
    let left = reaped.after.verdicts.iter().filter(|verdict| !is_told(verdict));
    let left = Summary::of_processes(left.map(|verdict| (verdict, None)));
    let not_ended = (!not_ended.is_empty())
        .then(|| format!("{} not ended (pid {})", not_ended.len(), pids(&not_ended)));
    let came_back = (!came_back.is_empty())
        .then(|| format!("{} came back (pid {})", came_back.len(), pids(&came_back)));
    let orphans = (left.orphans > 0).then(|| counted(left.orphans, "orphan", "orphans"));
    let taken = reaped.after.ports.iter().filter_map(taken_by_no_server);
    not_ended
        .into_iter()
        .chain(came_back)
        .chain(orphans)
        .chain(others(&left))
        .chain(taken)
        .collect()
}

/// A port that is not free and has no server to judge.
fn taken_by_no_server(port: &PortVerdict) -> Option<String> {
    let how = match port.state {
        PortState::Ephemeral { .. } | PortState::Connected { .. } => "taken by a connection",
        PortState::KernelOwned => "held by the kernel",
        PortState::Allocated(_) => "taken by a container",
        PortState::Detoured(_) => "taken by a rule",
        PortState::HolderNotVisible => "held by somebody not visible",
        PortState::Unknown(_) => "unknown",
        PortState::Free
        | PortState::NoListener
        | PortState::Held(_)
        | PortState::BoundOnly(_)
        | PortState::Lingering => return None,
    };
    Some(format!("{} {how}", port.endpoint.short()))
}

fn pids(pids: &[Pid]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

pub(super) fn brief(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// One process or port. Texts are raw: they are escaped where they are laid out.
pub(super) struct Row<'a> {
    /// Cells before the process.
    pub(super) before: Vec<String>,
    pub(super) process: Vec<u8>,
    /// The verdict or outcome in a few words.
    pub(super) word: String,
    pub(super) colour: anstyle::Style,
    pub(super) details: Vec<Detail<'a>>,
}

/// A line below a row.
pub(super) enum Detail<'a> {
    /// The reason.
    Why(Cow<'a, str>),
    /// A fact beside it, where they are asked for; not cut.
    Evidence(&'a str),
    /// The next step: never cut, half a command is worth nothing.
    Next(&'a str),
}

/// The text as it grows.
pub(super) struct Page {
    pub(super) style: Style,
    pub(super) text: String,
}

impl Page {
    /// One empty line, but never two and none at the top.
    pub(super) fn blank(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    pub(super) fn line(&mut self, label: &str, colour: anstyle::Style, text: &str) {
        self.paint(label, colour);
        self.text.push_str(&escape(text, None));
        self.text.push('\n');
    }

    /// What a part of the page is about.
    pub(super) fn heading(&mut self, text: &str) {
        self.blank();
        self.text.push_str("  ");
        self.line(text, anstyle::Style::new().bold(), "");
    }

    /// A label and a text that is broken between words and hangs below itself.
    pub(super) fn told(&mut self, label: &str, colour: anstyle::Style, text: &str) {
        self.paint(label, colour);
        self.flow(width(label), width(label), text);
    }

    /// Goes on at a column of the line, and on further lines at `indent`.
    pub(super) fn flow(&mut self, mut column: usize, indent: usize, text: &str) {
        let columns = self.style.width.unwrap_or(TEXT_COLUMNS);
        let shown = escape(text, None);
        for (n, words) in unbroken(&shown).enumerate() {
            let gap = usize::from(n > 0);
            if column + gap + width(words) > columns && column > indent {
                self.text.push('\n');
                self.text.push_str(&" ".repeat(indent));
                column = indent;
            } else {
                self.text.push_str(" ".get(..gap).unwrap_or_default());
                column += gap;
            }
            self.text.push_str(words);
            column += width(words);
        }
        self.text.push('\n');
    }

    /// The last word, by the exit code.
    fn answer(&mut self, code: u8, text: &str) {
        let (label, colour) = match code {
            exit::CLEAR => ("clear: ", GOOD),
            exit::NOT_CLEAR => ("not clear: ", ORPHAN),
            _ => ("could not tell: ", DOUBT),
        };
        self.line(label, colour, text);
    }

    pub(super) fn table(&mut self, before: &[&str], word: &str, rows: &[Row]) {
        if rows.is_empty() {
            return;
        }
        self.blank();
        if self.is_narrow() {
            for row in rows {
                self.stack(row);
            }
            return;
        }
        let columns = Columns::of(before, word, rows, self.style.width);
        let header = before.iter().map(|text| escape(text, None)).collect::<Vec<_>>();
        self.row(&columns, &header, b"PROCESS", word, anstyle::Style::new().bold());
        for row in rows {
            self.row(&columns, &row.before, &row.process, &row.word, row.colour);
            self.details(&row.details, INDENT);
        }
    }

    fn row(
        &mut self,
        columns: &Columns,
        before: &[String],
        process: &[u8],
        word: &str,
        colour: anstyle::Style,
    ) {
        for (text, &columns) in before.iter().zip(&columns.before) {
            self.pad(&escape(text, Some(columns)), columns);
        }
        self.pad(&process_within(process, columns.process), columns.process);
        self.paint(&escape(word, columns.word), colour);
        self.text.push('\n');
    }

    /// A row where columns have no room: the command line and the verdict on lines of their own.
    fn stack(&mut self, row: &Row) {
        let room = self.style.width.unwrap_or(PROCESS_COLUMNS).saturating_sub(GAP);
        let mut names: Vec<String> = row.before.iter().map(|text| escape(text, None)).collect();
        let has_process = names.last().is_some_and(|pid| pid != "-");
        if let Some(pid) = names.last_mut().filter(|_| has_process) {
            pid.insert_str(0, "pid ");
        }
        names.retain(|name| !name.is_empty() && name != "-");
        self.text.push_str(&names.join("  "));
        if has_process {
            self.text.push_str("\n  ");
            self.text.push_str(&process_within(&row.process, room));
        }
        self.text.push_str("\n  ");
        self.paint(&escape(&row.word, None), row.colour);
        self.text.push('\n');
        self.details(&row.details, GAP);
    }

    /// Cells in columns of these widths; the last is coloured and not padded.
    pub(super) fn cells<const N: usize>(
        &mut self,
        cells: &[String; N],
        widths: &[usize; N],
        colour: anstyle::Style,
    ) {
        for (n, (cell, &columns)) in cells.iter().zip(widths).enumerate() {
            if n + 1 < N {
                self.pad(cell, columns);
            } else {
                self.paint(cell, colour);
            }
        }
        self.text.push('\n');
    }

    pub(super) fn details(&mut self, details: &[Detail], indent: usize) {
        // Where there are few columns the terminal may wrap a reason: cut, it would say nothing.
        let room = self
            .style
            .width
            .filter(|_| !self.is_narrow())
            .map(|width| width.saturating_sub(indent));
        for detail in details {
            if matches!(detail, Detail::Evidence(_)) && !self.style.shows_evidence {
                continue;
            }
            self.text.push_str(&" ".repeat(indent));
            match detail {
                Detail::Why(text) => self.text.push_str(&escape(text.as_bytes(), room)),
                Detail::Evidence(text) => {
                    self.text.push_str("evidence: ");
                    self.text.push_str(&escape(text, None));
                }
                Detail::Next(text) => {
                    self.text.push_str("next: ");
                    self.text.push_str(&escape(text, None));
                }
            }
            self.text.push('\n');
        }
    }

    pub(super) fn is_narrow(&self) -> bool {
        self.style.width.is_some_and(|width| width < NARROW)
    }

    fn pad(&mut self, shown: &str, columns: usize) {
        self.text.push_str(shown);
        self.text.push_str(&" ".repeat(columns.saturating_sub(width(shown)) + GAP));
    }

    pub(super) fn paint(&mut self, shown: &str, colour: anstyle::Style) {
        if self.style.is_coloured {
            // Writing into a String cannot fail.
            let _ = write!(self.text, "{colour}{shown}{colour:#}");
        } else {
            self.text.push_str(shown);
        }
    }
}

/// The words of a text; what stands in quotes is one, for a command is copied whole.
fn unbroken(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let quote = text.strip_prefix('\'').and_then(|rest| rest.find('\''));
        let from = quote.map_or(0, |end| end + 2);
        let end = text.get(from..)?.find(' ').map_or(text.len(), |space| from + space);
        let word = text.get(..end)?;
        text = text.get(end + 1..).unwrap_or_default();
        Some(word)
    })
}

/// The command line, without its program's folder where it would not fit otherwise.
fn process_within(text: &[u8], columns: usize) -> String {
    let whole = escape(text, Some(columns));
    if !whole.ends_with('…') {
        return whole;
    }
    let program = text.split(|&byte| byte == b' ').next().unwrap_or_default();
    let folder = program.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    escape(text.get(folder..).unwrap_or_default(), Some(columns))
}

/// Widths of the columns of a table.
struct Columns {
    before: Vec<usize>,
    process: usize,
    /// None = as wide as it is.
    word: Option<usize>,
}

impl Columns {
    fn of(before: &[&str], word: &str, rows: &[Row], terminal: Option<usize>) -> Self {
        let limit = terminal
            .map(|columns| if columns < 100 { COLUMNS_BEFORE_LEAST } else { COLUMNS_BEFORE });
        let widest = |texts: &mut dyn Iterator<Item = String>| {
            texts.map(|text| width(&text)).max().unwrap_or(0)
        };
        let before: Vec<usize> = before
            .iter()
            .enumerate()
            .map(|(n, title)| {
                let cells =
                    rows.iter().filter_map(|row| row.before.get(n)).map(|text| escape(text, limit));
                widest(&mut cells.chain([(*title).to_owned()]))
            })
            .collect();
        let processes = rows.iter().map(|row| escape(&row.process, Some(PROCESS_COLUMNS)));
        let process = widest(&mut processes.chain(["PROCESS".to_owned()]));
        let Some(terminal) = terminal else {
            return Self { before, process, word: None };
        };
        let taken: usize = before.iter().map(|columns| columns + GAP).sum();
        let room = terminal.saturating_sub(taken + GAP);
        let words =
            widest(&mut rows.iter().map(|row| escape(&row.word, None)).chain([word.to_owned()]));
        // The verdict comes first, but the command line keeps enough to be known by.
        let process =
            process.min(room.saturating_sub(words).max(PROCESS_COLUMNS_LEAST.min(room / 2)));
        Self { before, process, word: Some(room.saturating_sub(process)) }
    }
}

#[cfg(test)]
mod tests;
