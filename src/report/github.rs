//! The report as a step of a GitHub workflow: annotations on standard output, the table for the job summary, outputs.
//!
//! Limits (GitHub docs, "Workflow commands" and "Checks API"): ten annotations of a kind are shown of a step, a title has 255
//! characters, a message 64 KiB, the summary of a step 1 MiB.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::{doctor, escape::escape, exit, gate, gpu, judged, summary::Summary, title_of};
use crate::{
    act::{
        Outcome,
        container::{End, Stopped},
    },
    doctor::{Check, State},
    gate::Gated,
    ident::{Endpoint, ProcessKey},
    judge::{
        gate::{Advice, Answer, Block, Blocker},
        gpu::{GpuState, GpuVerdict},
        port::{PortState, PortVerdict},
        verdict::{Finding, Unknown, Verdict},
    },
    pipeline::{Findings, OrphanedContainer, Reaped},
};

/// Annotations of one kind that a step may show.
const MOST_ANNOTATIONS: usize = 10;
/// Columns of a title, and of a message before its encoding, which may triple it.
const TITLE_COLUMNS: usize = 120;
const MESSAGE_COLUMNS: usize = 4000;
const PROCESS_COLUMNS: usize = 120;
/// What the summary of a step may hold, that of its other commands included.
pub const MOST_SUMMARY_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Warning,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Texts are raw: they are escaped where they are written.
struct Annotation {
    kind: Kind,
    title: String,
    message: String,
    next: Option<String>,
}

/// Writes the annotations of what a look found.
pub fn render_findings(findings: &Findings, out: &mut dyn Write) -> io::Result<()> {
    write_annotations(&of_findings(findings, &[]), out)
}

/// Writes the annotations of a reap.
pub fn render_reaped(reaped: &Reaped, out: &mut dyn Write) -> io::Result<()> {
    let not_ended = reaped.deeds.iter().filter(|deed| !deed.outcome.is_gone());
    let not_ended = not_ended.map(|deed| Annotation {
        kind: Kind::Error,
        title: format!("pid {} was not ended", deed.verdict.key().pid),
        message: format!("{}: {}", shown(&deed.verdict), outcome(&deed.outcome)),
        next: None,
    });
    let came_back = reaped.respawns.iter().map(|newcomer| Annotation {
        kind: Kind::Error,
        title: format!("pid {} came back", newcomer.key.pid),
        message: format!(
            "{}: like {}, brought by {}",
            escape(&newcomer.command_line, Some(PROCESS_COLUMNS)),
            newcomer.like,
            newcomer.brought_by
        ),
        next: Some(newcomer.next_step.clone()),
    });
    let told: Vec<ProcessKey> = reaped
        .respawns
        .iter()
        .map(|newcomer| newcomer.key)
        .chain(reaped.deeds.iter().map(|deed| deed.verdict.key()))
        .collect();
    let all = not_ended.chain(came_back).chain(of_findings(&reaped.after, &told));
    write_annotations(&all.collect::<Vec<_>>(), out)
}

/// Writes the annotations of what the gate found: an error for what blocks, a warning where it is let pass.
pub fn render_gated(
    gated: &Gated,
    on_blocked: gate::OnBlocked,
    out: &mut dyn Write,
) -> io::Result<()> {
    let places = gate::places(gated).flat_map(|place| of_place(gated, &place, on_blocked));
    let cut_short = gated.unseen.iter().chain(&gated.cut_short).map(of_unknown);
    write_annotations(&places.chain(cut_short).collect::<Vec<_>>(), out)
}

fn of_place(
    gated: &Gated,
    gate::Place { title: place, answer, .. }: &gate::Place<'_>,
    on_blocked: gate::OnBlocked,
) -> Vec<Annotation> {
    let block = match on_blocked {
        gate::OnBlocked::Fail => Kind::Error,
        gate::OnBlocked::Warn => Kind::Warning,
    };
    let of_advice = |kind, word, advice: &Advice| Annotation {
        kind,
        title: format!("{place} {word}: {}", advice.title),
        message: advice.sentence.clone(),
        next: advice.next_step.clone(),
    };
    match answer {
        Answer::Open(advice) => {
            let advice = advice.iter().filter(|advice| advice.next_step.is_some());
            advice.map(|advice| of_advice(Kind::Warning, "is open", advice)).collect()
        }
        Answer::Blocked(Block { by, why }) if by.is_empty() => {
            vec![of_advice(block, "is blocked", why)]
        }
        Answer::Blocked(Block { by, why }) => by
            .iter()
            .map(|Blocker { pid, next_step, since }| {
                let mut annotation = match gate::verdict_on(gated, *pid) {
                    Some(verdict) => Annotation {
                        kind: block,
                        title: format!("{place} is blocked: {}", verdict.title()),
                        message: format!("pid {pid} ({}): {}", shown(verdict), verdict.reason),
                        next: next_step.clone(),
                    },
                    None => of_advice(block, "is blocked", why),
                };
                if let Some(since) = since {
                    annotation.message = format!("{}; {since}", annotation.message);
                }
                annotation
            })
            .collect(),
        Answer::Unknown(unknown) => vec![of_unknown(unknown)],
    }
}

/// What the gate found as Markdown for `$GITHUB_STEP_SUMMARY`: at most so many bytes, cut at a row.
pub fn summary_of_gated(gated: &Gated, on_blocked: gate::OnBlocked, room: usize) -> String {
    let mut text = heading("portreeve gate", gate::exit_code(gated, on_blocked));
    let places = gate::places(gated).flat_map(|place| {
        let said = |word: &str, why: &str, next: &Option<String>| {
            row(&[&place.name, &place.service, word, why, next.as_deref().unwrap_or("")])
        };
        match place.answer {
            Answer::Open(advice) if advice.is_empty() => vec![said("open", "", &None)],
            Answer::Open(advice) => advice
                .iter()
                .map(|a| said(&format!("open: {}", a.title), &a.sentence, &a.next_step))
                .collect(),
            Answer::Blocked(Block { by, why }) => {
                let next = by.iter().find_map(|blocker| blocker.next_step.clone());
                vec![said("blocked", &why.sentence, &next.or_else(|| why.next_step.clone()))]
            }
            Answer::Unknown(unknown) => vec![said("unknown", &unknown.why, &unknown.remedy)],
        }
    });
    let head = ["port or GPU", "service", "answer", "why", "next"];
    push_table(&mut text, &head, places.collect::<Vec<_>>().into_iter(), room);
    let deeds = gate::deeds(gated).map(|deed| {
        let pid = deed.verdict.key().pid.to_string();
        row(&[&pid, &shown(&deed.verdict), &deed.verdict.title(), &outcome(&deed.outcome)])
    });
    let deeds: Vec<String> = deeds.collect();
    push_table(&mut text, &["pid", "process", "verdict", "outcome"], deeds.into_iter(), room);
    text
}

/// Writes the annotations of what `doctor` found.
pub fn render_checks(checks: &[Check], out: &mut dyn Write) -> io::Result<()> {
    let annotations = checks.iter().filter_map(|check| {
        let kind = match check.state {
            State::Off { .. } => Kind::Error,
            State::Unknown { .. } => Kind::Warning,
            State::Good | State::Fallback | State::Absent => return None,
        };
        Some(Annotation {
            kind,
            title: check.name.clone(),
            message: check.detail.clone(),
            next: check.fix().map(str::to_owned),
        })
    });
    write_annotations(&annotations.collect::<Vec<_>>(), out)
}

fn shown(verdict: &Verdict) -> String {
    escape(title_of(&verdict.process), Some(PROCESS_COLUMNS))
}

/// How a container was stopped, in words.
pub(super) fn stopped_words(stopped: &Stopped) -> String {
    match stopped.end {
        End::AlreadyStopped => "its container had stopped by itself".to_owned(),
        End::Graceful => "ended with its container, which stopped in time".to_owned(),
        End::Forced | End::StillRuns | End::LeftAlone(_) | End::Interrupted => {
            format!("ended with its container, which had to be killed ({stopped})")
        }
    }
}

/// What became of a process, in words.
pub(super) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Terminated(_) => "ended by SIGTERM".to_owned(),
        Outcome::Killed(_) => "ended by SIGKILL".to_owned(),
        Outcome::Stopped(stopped) => stopped_words(stopped),
        Outcome::NotStopped(why) => format!("not stopped: {why}"),
        Outcome::HandedOver(unit) => format!("left to {unit}, which stops its container"),
        Outcome::Vanished => "was gone before any signal".to_owned(),
        Outcome::Replaced(what) => format!("left alone: {what}"),
        Outcome::Refused(why) => format!("signal refused: {why}"),
        Outcome::Unkillable { state, wait_channel: Some(place) } => {
            format!("unkillable: {state} in {place}")
        }
        Outcome::Unkillable { state, wait_channel: None } => format!("unkillable: state {state}"),
        Outcome::Interrupted => "interrupted: its end was not seen".to_owned(),
    }
}

fn of_findings(findings: &Findings, told: &[ProcessKey]) -> Vec<Annotation> {
    let is_told = |verdict: &&Verdict| told.iter().any(|key| key.is_same(&verdict.key()));
    let verdicts = findings.verdicts.iter().filter(|verdict| !is_told(verdict));
    let ports = findings.ports.iter().filter_map(of_port);
    let gpus = findings.gpus.iter().filter_map(of_gpu);
    let containers = findings.model_containers.iter().flatten().map(of_container);
    let unknowns = findings.unknowns.iter().map(of_unknown);
    let places = ports.chain(gpus);
    verdicts.filter_map(of_verdict).chain(places).chain(containers).chain(unknowns).collect()
}

/// A warning: it is not what a `reap` would end.
fn of_container(one: &OrphanedContainer) -> Annotation {
    let OrphanedContainer { name, engine, state, why, next_step, .. } = one;
    Annotation {
        kind: Kind::Warning,
        title: format!("orphaned model container {name}"),
        message: format!("container {name} of {engine} ({state}): {why}"),
        next: Some(next_step.clone()),
    }
}

fn of_verdict(verdict: &Verdict) -> Option<Annotation> {
    let kind = match verdict.finding {
        Finding::Spare(_) => return None,
        Finding::Orphan(_) | Finding::Suspect | Finding::Unsupervised(_) | Finding::Foreign => {
            Kind::Error
        }
        Finding::Undecided(_) => Kind::Warning,
    };
    let ports = verdict.ports.iter().map(Endpoint::short);
    let ports: Vec<String> = ports.chain(verdict.gpus.iter().map(|g| g.label.clone())).collect();
    let on = if ports.is_empty() { String::new() } else { format!(" on {}", ports.join(", ")) };
    Some(Annotation {
        kind,
        title: format!("{}{on}", verdict.title()),
        message: format!("pid {} ({}): {}", verdict.key().pid, shown(verdict), verdict.reason),
        next: verdict.next_step.clone(),
    })
}

/// Of a port that no process's own annotation explains.
fn of_port(port: &PortVerdict) -> Option<Annotation> {
    let kind = match port.state {
        PortState::Free
        | PortState::NoListener
        | PortState::Held(_)
        | PortState::BoundOnly(_)
        | PortState::Lingering => return None,
        PortState::Ephemeral { .. }
        | PortState::Connected { .. }
        | PortState::KernelOwned
        | PortState::Allocated(_)
        | PortState::Detoured(_) => Kind::Error,
        PortState::HolderNotVisible | PortState::Unknown(_) => Kind::Warning,
    };
    Some(Annotation {
        kind,
        title: format!("port {}", port.endpoint.short()),
        message: port.sentence.clone(),
        next: port.next_step.clone(),
    })
}

/// Of a GPU that no process's own annotation explains.
fn of_gpu(gpu: &GpuVerdict) -> Option<Annotation> {
    let kind = match gpu.state {
        GpuState::Held(_) if gpu.may_miss.is_some() => Kind::Warning,
        GpuState::Free | GpuState::Held(_) => return None,
        GpuState::Residual | GpuState::Absent => Kind::Error,
        GpuState::Unknown(_) => Kind::Warning,
    };
    let (title, message, next) = (gpu.label.clone(), gpu.sentence.clone(), gpu.next_step.clone());
    Some(Annotation { kind, title, message, next })
}

fn of_unknown(unknown: &Unknown) -> Annotation {
    Annotation {
        kind: Kind::Warning,
        title: "not seen".to_owned(),
        message: unknown.to_string(),
        next: unknown.remedy.clone(),
    }
}

/// At most ten of a kind; the tenth counts those that it stands for.
fn write_annotations(annotations: &[Annotation], out: &mut dyn Write) -> io::Result<()> {
    for kind in [Kind::Error, Kind::Warning] {
        let all: Vec<_> = annotations.iter().filter(|a| a.kind == kind).collect();
        let shown = if all.len() > MOST_ANNOTATIONS { MOST_ANNOTATIONS - 1 } else { all.len() };
        for Annotation { title, message, next, .. } in all.iter().take(shown) {
            let title = escape(format!("portreeve: {title}"), Some(TITLE_COLUMNS));
            let mut text = escape(message, Some(MESSAGE_COLUMNS));
            if let Some(next) = next {
                text.push_str("\nnext: ");
                text.push_str(&escape(next, Some(MESSAGE_COLUMNS)));
            }
            writeln!(out, "::{} title={}::{}", kind.word(), property(&title), data(&text))?;
        }
        if all.len() > shown {
            let rest = all.len() - shown;
            let word = kind.word();
            writeln!(out, "::{word} title=portreeve::{rest} more; the job summary has them all")?;
        }
    }
    Ok(())
}

/// A command's message: `%`, CR and LF would end or change it.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A command's property: `:` and `,` as well.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// An output of the step: numbers alone, so that nothing in it can end its line.
pub type StepOutput = (&'static str, usize);

/// The outputs of what a look found.
pub fn outputs_of_findings(findings: &Findings) -> Vec<StepOutput> {
    outputs(exit::of_findings(findings), &Summary::of_findings(findings))
}

/// The same of a reap.
pub fn outputs_of_reaped(reaped: &Reaped) -> Vec<StepOutput> {
    outputs(exit::of_reaped(reaped), &Summary::of_reaped(reaped))
}

/// The same of what the gate found.
pub fn outputs_of_gated(gated: &Gated, on_blocked: gate::OnBlocked) -> Vec<StepOutput> {
    let deeds = gate::deeds(gated).map(|deed| (&deed.verdict, Some(&deed.outcome)));
    let holders = gated.verdicts.iter().map(|verdict| (verdict, None));
    let summary = Summary::of_processes(deeds.chain(holders));
    outputs(gate::exit_code(gated, on_blocked), &summary)
}

fn outputs(code: u8, summary: &Summary) -> Vec<StepOutput> {
    vec![("exit-code", code.into()), ("orphans", summary.orphans), ("ended", summary.ended)]
}

/// What a look found as Markdown for `$GITHUB_STEP_SUMMARY`: at most so many bytes, cut at a row.
pub fn summary_of_findings(findings: &Findings, room: usize) -> String {
    let processes = findings.verdicts.iter().map(|verdict| (verdict, None));
    summary(processes, findings, exit::of_findings(findings), room)
}

/// The same of a reap, with what became of each.
pub fn summary_of_reaped(reaped: &Reaped, room: usize) -> String {
    summary(judged(reaped), &reaped.after, exit::of_reaped(reaped), room)
}

/// The same of what `doctor` found.
pub fn summary_of_checks(checks: &[Check], room: usize) -> String {
    let mut text = heading("portreeve doctor", doctor::exit_code(checks));
    let rows = checks.iter().map(|check| {
        let word = doctor::word(&check.state).0;
        row(&[&check.name, word, &check.detail, check.fix().unwrap_or("")])
    });
    push_table(&mut text, &["check", "state", "detail", "fix"], rows, room);
    text
}

fn summary<'a>(
    processes: impl Iterator<Item = (&'a Verdict, Option<&'a Outcome>)>,
    findings: &Findings,
    code: u8,
    room: usize,
) -> String {
    let mut text = heading("portreeve", code);
    let ports = findings.ports.iter().map(|port| {
        let service = port.service.as_ref().map_or("", |name| &name.0);
        let next = port.next_step.as_deref().unwrap_or("");
        row(&[&port.endpoint.short(), service, &port.sentence, next])
    });
    push_table(&mut text, &["port", "service", "state", "next"], ports, room);
    let gpus = findings.gpus.iter().map(|verdict| {
        let next = verdict.next_step.as_deref().unwrap_or("");
        row(&[&verdict.label, &gpu::services(verdict), &verdict.sentence, next])
    });
    push_table(&mut text, &["GPU", "service", "state", "next"], gpus, room);
    let processes = processes.map(|(verdict, became)| {
        let became = became.map(outcome).unwrap_or_default();
        let pid = verdict.key().pid.to_string();
        row(&[&pid, &shown(verdict), &verdict.title(), &verdict.reason, &became])
    });
    push_table(&mut text, &["pid", "process", "verdict", "why", "outcome"], processes, room);
    let containers = findings.model_containers.iter().flatten().map(|one| {
        let OrphanedContainer { name, engine, model, why, next_step, .. } = one;
        let model = model.as_ref().map_or("", |model| &model.0);
        row(&[name, model, &engine.to_string(), why, next_step])
    });
    let head = ["model container", "model", "engine", "why", "next"];
    push_table(&mut text, &head, containers, room);
    let unknowns = findings.unknowns.iter().map(|unknown| {
        row(&[&unknown.fact, &unknown.why, unknown.remedy.as_deref().unwrap_or("")])
    });
    push_table(&mut text, &["not seen", "why", "next"], unknowns, room);
    text
}

fn heading(what: &str, code: u8) -> String {
    let answer = match code {
        exit::CLEAR => "clear",
        exit::NOT_CLEAR => "not clear",
        _ => "could not tell",
    };
    format!("### {what}: {answer}\n")
}

/// What the line takes that says how many rows were left out.
const REST_BYTES: usize = 80;

fn push_table(text: &mut String, head: &[&str], rows: impl Iterator<Item = String>, room: usize) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    let titles = format!("\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    let mut left_out = 0_usize;
    for (n, row) in rows.enumerate() {
        let added = if n == 0 { titles.len() + row.len() } else { row.len() };
        // What comes after a row that did not fit is left out as well: no gaps.
        if left_out > 0 || text.len() + added + REST_BYTES > room {
            left_out += 1;
            continue;
        }
        if n == 0 {
            text.push_str(&titles);
        }
        text.push_str(&row);
    }
    if left_out > 0 && text.len() + REST_BYTES <= room {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "\n{left_out} more: no room in a job summary");
    }
}

fn row(cells: &[&str]) -> String {
    let cells: Vec<String> = cells.iter().map(|text| cell(text)).collect();
    format!("| {} |\n", cells.join(" | "))
}

/// A table's cell: no foreign text becomes Markdown or HTML.
fn cell(text: &str) -> String {
    let mut cell = String::with_capacity(text.len());
    for character in escape(text.as_bytes(), None).chars() {
        match character {
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '~' | '!' | '@' => {
                cell.push('\\');
                cell.push(character);
            }
            '<' => cell.push_str("&lt;"),
            '>' => cell.push_str("&gt;"),
            '&' => cell.push_str("&amp;"),
            other => cell.push(other),
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        judge::verdict::Orphan,
        report::sample::{self, findings, verdict},
    };

    fn annotations(findings: &Findings) -> String {
        let mut out = Vec::new();
        render_findings(findings, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn orphan() -> Finding {
        Finding::Orphan(Orphan::Worker("vllm".into()))
    }

    #[test]
    fn ten_errors_are_shown_at_most_and_the_tenth_counts_the_rest() {
        let mut many = findings(vec![], (100..125).map(|pid| verdict(pid, orphan())).collect());
        let text = annotations(&many);
        let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("::error ")).collect();
        assert_eq!(errors.len(), 10);
        assert!(errors[9].contains("16 more"), "{}", errors[9]);
        many.verdicts.truncate(10);
        let text = annotations(&many);
        assert_eq!(text.lines().count(), 10);
        assert!(!text.contains("more;"));
    }

    #[test]
    fn no_foreign_text_ends_a_command_or_starts_another() {
        let hostile = "100%\r\n::set-output name=x::y, z: \u{202e}\u{1b}[2J";
        let unit =
            crate::ident::UnitRef { manager: crate::ident::Manager::System, name: hostile.into() };
        let mut bad = verdict(7, Finding::Orphan(Orphan::SurvivedUnit(unit)));
        bad.reason = hostile.into();
        bad.next_step = Some(hostile.into());
        let text = annotations(&findings(vec![], vec![bad]));
        assert_eq!(text.lines().count(), 1, "{text}");
        let (title, message) =
            text.strip_prefix("::error title=").unwrap().split_once("::").unwrap();
        assert!(!title.contains([':', ',']), "{title}");
        assert!(message.contains("100%25"), "{message}");
        assert!(message.contains("%0Anext: "), "{message}");
        assert!(!text.contains(['\r', '\u{1b}', '\u{202e}']));
    }

    #[test]
    fn a_title_and_a_message_stay_within_the_checks_apis_limits() {
        let mut long = verdict(7, Finding::Foreign);
        long.reason = "%".repeat(100_000);
        long.ports = (1..2000).map(|port: u16| port.to_string().parse().unwrap()).collect();
        let text = annotations(&findings(vec![], vec![long]));
        let (title, message) =
            text.strip_prefix("::error title=").unwrap().split_once("::").unwrap();
        assert!(title.replace("%3A", ":").replace("%2C", ",").chars().count() <= 255, "{title}");
        assert!(message.len() <= 64 << 10, "{}", message.len());
    }

    #[test]
    fn what_is_spared_or_free_gets_no_annotation_and_each_process_of_a_reap_one_at_most() {
        assert_eq!(annotations(&sample::quiet()), "");
        let mut out = Vec::new();
        render_reaped(&sample::reaped_badly(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for pid in [5001, 5002, 5003, 911] {
            assert!(!text.contains(&format!("pid {pid}")), "{text}");
        }
        for pid in [5004, 5005, 5006, 5007, 5100] {
            assert_eq!(text.matches(&format!("pid {pid} ")).count(), 1, "{pid}: {text}");
        }
    }

    #[test]
    fn a_summary_is_never_longer_than_its_room_and_says_what_it_left_out() {
        let mut long = verdict(1, Finding::Foreign);
        long.reason = "|`<b>".repeat(500);
        let many = findings(vec![], vec![long; 1000]);
        for room in [100, 1000, 10_000, MOST_SUMMARY_BYTES] {
            let text = summary_of_findings(&many, room);
            assert!(text.len() <= room, "{} > {room}", text.len());
            assert!(room < 1000 || text.contains("more: no room"), "{room}");
            assert!(!text.contains("<b>"));
        }
        let whole = summary_of_findings(&sample::mess(), MOST_SUMMARY_BYTES);
        assert!(!whole.contains("no room") && whole.contains("| 4242 |"), "{whole}");
    }
}
