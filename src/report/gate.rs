//! What the gate found, for the one who waits before it: a line for each thing in the way, with its verdict and the next step;
//! the same as a document. docs/report.md promises what stays.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

use super::{
    Style, exit, gpu, json,
    table::{DOUBT, Detail, GOOD, ORPHAN, Page, Row, SPARED, brief, deed_row, respawn_row},
    title_of,
};
use crate::{
    act::{Deed, Respawn},
    gate::Gated,
    ident::Pid,
    judge::{
        gate::{Advice, Answer, Block, Blocker, GpuPassage, Passage},
        verdict::{Unknown, Verdict},
    },
};

/// What becomes of a start whose ports are blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBlocked {
    /// It does not take place.
    Fail,
    /// It goes on with a warning; never where something is not known.
    Warn,
}

/// 0 it may start, 1 blocked, 2 not known; 1 outranks 2, unless a block is let pass. What was cut short had no time to settle.
pub fn exit_code(gated: &Gated, on_blocked: OnBlocked) -> u8 {
    if gated.cut_short.is_some() {
        return exit::COULD_NOT_TELL;
    }
    let codes = gated.answers().map(|answer| match answer {
        Answer::Open(_) => exit::CLEAR,
        Answer::Blocked(_) => match on_blocked {
            OnBlocked::Fail => exit::NOT_CLEAR,
            OnBlocked::Warn => exit::CLEAR,
        },
        Answer::Unknown(_) => exit::COULD_NOT_TELL,
    });
    codes.fold(exit::CLEAR, exit::worse)
}

/// A port or a GPU, as the forms name it.
pub struct Place<'a> {
    /// `8091`, `GPU 0`.
    pub name: String,
    /// `port 8091`, `GPU 0`.
    pub title: String,
    /// Its services; empty where it has none.
    pub service: String,
    /// Whether they may have it.
    pub answer: &'a Answer,
    /// As the journal has it: its field and the value.
    pub field: (&'static str, String),
}

/// Every port, then every GPU that was asked about.
pub fn places(gated: &Gated) -> impl Iterator<Item = Place<'_>> {
    let ports = gated.ports.iter().map(|Passage { port, answer }| Place {
        name: port.endpoint.short(),
        title: format!("port {}", port.endpoint.short()),
        service: port.service.as_ref().map(ToString::to_string).unwrap_or_default(),
        answer,
        field: ("PORTREEVE_PORT", port.endpoint.to_string()),
    });
    let gpus = gated.gpus.iter().map(|GpuPassage { gpu, answer, .. }| Place {
        name: gpu.label.clone(),
        title: gpu.label.clone(),
        service: gpu::services(gpu),
        answer,
        field: ("PORTREEVE_GPU", gpu.label.clone()),
    });
    ports.chain(gpus)
}

/// Who was to be ended first.
pub(super) fn deeds(gated: &Gated) -> impl Iterator<Item = &Deed> {
    gated.reaped.iter().flat_map(|reaped| &reaped.deeds)
}

/// Who came back after that.
pub(super) fn respawns(gated: &Gated) -> impl Iterator<Item = &Respawn> {
    gated.reaped.iter().flat_map(|reaped| &reaped.respawns)
}

pub(super) fn verdict_on(gated: &Gated, pid: Pid) -> Option<&Verdict> {
    gated.verdicts.iter().find(|verdict| verdict.key().pid == pid)
}

/// What the last line says: how many ports and GPUs are open, and how long it took.
pub(super) fn summary(gated: &Gated) -> String {
    let all = gated.answers().count();
    let what = match (gated.ports.is_empty(), gated.gpus.is_empty()) {
        (_, true) => "ports",
        (true, false) => "GPUs",
        (false, false) => "ports and GPUs",
    };
    let count =
        |wanted: fn(&Answer) -> bool| gated.answers().filter(|answer| wanted(answer)).count();
    let open = count(|answer| matches!(answer, Answer::Open(_)));
    let blocked = count(|answer| matches!(answer, Answer::Blocked(_)));
    let unknown = count(|answer| matches!(answer, Answer::Unknown(_)));
    let rest = [(blocked, "blocked"), (unknown, "unknown")];
    let rest = rest.into_iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!(", {n} {word}"));
    let waited = format!("; waited {}", brief(gated.waited));
    if all == 0 {
        let verb = if gated.cut_short.is_some() { "looked at" } else { "asked about" };
        return format!("nothing was {verb}{waited}");
    }
    format!("{open} of {all} {what} open{}{waited}", rest.collect::<String>())
}

/// Writes the table.
pub fn render(
    gated: &Gated,
    on_blocked: OnBlocked,
    style: Style,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut page = Page { style, text: String::new() };
    page.table(&["PID"], "OUTCOME", &deeds(gated).map(deed_row).collect::<Vec<_>>());
    page.table(&["PID"], "CAME BACK", &respawns(gated).map(respawn_row).collect::<Vec<_>>());
    let rows: Vec<Row> = places(gated).flat_map(|place| rows(gated, &place)).collect();
    page.table(&[super::table::first_column(&gated.gpus), "SERVICE", "PID"], "VERDICT", &rows);
    let open = places(gated).filter(|place| *place.answer == Answer::Open(Vec::new()));
    let open: Vec<String> = open.map(|place| place.name).collect();
    if !open.is_empty() {
        page.line("open: ", GOOD, &open.join(" "));
    }
    if let Some(Unknown { fact, why, remedy }) = &gated.cut_short {
        page.line("not seen: ", DOUBT, &format!("{fact}: {why}"));
        if let Some(remedy) = remedy {
            page.line("      next: ", super::table::PLAIN, remedy);
        }
    }
    page.blank();
    let is_blocked = gated.answers().any(|answer| matches!(answer, Answer::Blocked(_)));
    let (label, colour) = match exit_code(gated, on_blocked) {
        exit::CLEAR if is_blocked => ("warning, goes on: ", DOUBT),
        exit::CLEAR => ("open: ", GOOD),
        exit::NOT_CLEAR => ("blocked: ", ORPHAN),
        _ => ("could not tell: ", DOUBT),
    };
    page.line(label, colour, &summary(gated));
    out.write_all(page.text.as_bytes())
}

/// None for a port or a GPU that is open and of which nothing need be said.
fn rows<'a>(gated: &'a Gated, place: &Place<'a>) -> Vec<Row<'a>> {
    let service = if place.service.is_empty() { "-" } else { &place.service };
    let row = |pid: String, process: Vec<u8>, word: &str, colour, details| Row {
        before: vec![place.name.clone(), service.to_owned(), pid],
        process,
        word: word.to_owned(),
        colour,
        details,
    };
    let nobody = |advice: &'a Advice, colour| {
        let details = vec![Detail::Why(advice.sentence.as_str().into())];
        let next = advice.next_step.iter().map(|next| Detail::Next(next));
        let details = details.into_iter().chain(next).collect();
        row("-".to_owned(), b"-".to_vec(), advice.title, colour, details)
    };
    match place.answer {
        Answer::Open(advice) => advice.iter().map(|advice| nobody(advice, SPARED)).collect(),
        Answer::Blocked(Block { by, why }) if by.is_empty() => vec![nobody(why, ORPHAN)],
        Answer::Blocked(Block { by, why }) => {
            let is_server = by.iter().all(|b| verdict_on(gated, b.pid).is_some());
            let last = by.len() - 1;
            by.iter()
                .enumerate()
                .map(|(n, Blocker { pid, next_step, since })| {
                    let verdict = verdict_on(gated, *pid);
                    let word = verdict.map_or_else(|| why.title.to_owned(), Verdict::title);
                    let process = verdict.map_or(b"-".to_vec(), |v| title_of(&v.process));
                    let mut details: Vec<Detail<'a>> = verdict
                        .map(|v| Detail::Why(Cow::from(v.reason.as_str())))
                        .into_iter()
                        .collect();
                    // One holder with a verdict says it all; several, or a connection, want the port's own sentence too.
                    if n == last && (by.len() > 1 || !is_server || why.title != "held") {
                        details.push(Detail::Why(why.sentence.as_str().into()));
                    }
                    details.extend(since.iter().map(|since| Detail::Why(since.as_str().into())));
                    details.extend(next_step.iter().map(|next| Detail::Next(next)));
                    if n == last {
                        details.extend(why.next_step.iter().map(|next| Detail::Next(next)));
                    }
                    row(pid.to_string(), process, &word, ORPHAN, details)
                })
                .collect()
        }
        Answer::Unknown(Unknown { why, remedy, .. }) => {
            let details = vec![Detail::Why(why.as_str().into())];
            let details = details.into_iter().chain(remedy.iter().map(|next| Detail::Next(next)));
            vec![row("-".to_owned(), b"-".to_vec(), "unknown", DOUBT, details.collect())]
        }
    }
}

/// The schema of the document, JSON Schema 2020-12.
pub fn schema() -> Schema {
    SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Document>()
}

/// What portreeve's gate found.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Gate")]
struct Document {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// Always `gate`.
    #[schemars(extend("const" = "gate"))]
    command: &'static str,
    /// The command's exit code: 0 the service may start, 1 blocked, 2 could not tell. Before a COMMAND that is 75 and 69.
    exit_code: u8,
    /// What becomes of a start whose ports are blocked.
    on_blocked: OnBlocked,
    /// How long it took, in milliseconds.
    waited_ms: u64,
    /// Every port that was asked about, as the last look found it.
    ports: Vec<Port>,
    /// Every GPU that was asked about, likewise.
    gpus: Vec<Gpu>,
    /// Who was to be ended first, with what became of it, and who holds the ports and GPUs.
    processes: Vec<json::Process>,
    /// Likes of ended processes that came back.
    respawns: Vec<json::Respawn>,
    /// What could not be seen beyond single ports.
    unknowns: Vec<json::Unknown>,
}

/// A port that a service is to start on.
#[derive(Debug, Serialize, JsonSchema)]
struct Port {
    /// What it is.
    #[serde(flatten)]
    state: json::Port,
    /// What the gate says of it.
    #[serde(flatten)]
    said: Said,
}

/// A GPU that a service is to start on.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "GatedGpu")]
struct Gpu {
    /// What it is.
    #[serde(flatten)]
    state: gpu::Gpu,
    /// Its memory may still be on its way back from a process that ended.
    settling: bool,
    /// What the gate says of it.
    #[serde(flatten)]
    said: Said,
}

/// What the gate says of a port or a GPU.
#[derive(Debug, Serialize, JsonSchema)]
struct Said {
    /// Whether its service may have it.
    answer: Word,
    /// Who stands in the way, as far as they were seen.
    blockers: Vec<Obstacle>,
    /// Why it is blocked or not known; of what is open, what should be known.
    remarks: Vec<Remark>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// Its service may have it.
    Open,
    /// It may not.
    Blocked,
    /// A fact is missing.
    Unknown,
}

/// A process in the way.
#[derive(Debug, Serialize, JsonSchema)]
struct Obstacle {
    /// Process id; `processes` has its verdict, unless it only has a connection.
    pid: u32,
    /// What to do about it.
    next_step: Option<String>,
    /// That it took the port after a gate had found it free, in a sentence.
    since: Option<String>,
}

/// A sentence, and what to do.
#[derive(Debug, Serialize, JsonSchema)]
struct Remark {
    /// In a few words.
    title: String,
    /// In a sentence.
    sentence: String,
    /// What to do.
    next_step: Option<String>,
}

/// Writes the document.
pub fn render_json(gated: &Gated, on_blocked: OnBlocked, out: &mut dyn Write) -> io::Result<()> {
    let ended = deeds(gated).map(|deed| json::process(&deed.verdict, Some(&deed.outcome)));
    let is_ended =
        |verdict: &Verdict| deeds(gated).any(|deed| deed.verdict.key().is_same(&verdict.key()));
    let others = gated.verdicts.iter().filter(|verdict| !is_ended(verdict));
    let document = Document {
        version: 1,
        command: "gate",
        exit_code: exit_code(gated, on_blocked),
        on_blocked,
        waited_ms: u64::try_from(gated.waited.as_millis()).unwrap_or(u64::MAX),
        ports: gated.ports.iter().map(port).collect(),
        gpus: gated.gpus.iter().map(gated_gpu).collect(),
        processes: ended.chain(others.map(|verdict| json::process(verdict, None))).collect(),
        respawns: respawns(gated).map(json::respawn).collect(),
        unknowns: gated.cut_short.iter().map(json::unknown).collect(),
    };
    json::write(&document, out)
}

fn port(passage: &Passage) -> Port {
    Port { state: json::port(&passage.port), said: said(&passage.answer) }
}

fn gated_gpu(passage: &GpuPassage) -> Gpu {
    let (state, settling) = (gpu::gpu(&passage.gpu), passage.is_settling);
    Gpu { state, settling, said: said(&passage.answer) }
}

fn said(answer: &Answer) -> Said {
    let remark = |advice: &Advice| Remark {
        title: advice.title.to_owned(),
        sentence: advice.sentence.clone(),
        next_step: advice.next_step.clone(),
    };
    let (answer, blockers, remarks) = match answer {
        Answer::Open(advice) => (Word::Open, &[][..], advice.iter().map(remark).collect()),
        Answer::Blocked(Block { by, why }) => (Word::Blocked, by.as_slice(), vec![remark(why)]),
        Answer::Unknown(unknown) => {
            let Unknown { fact, why, remedy } = unknown.clone();
            let remark = Remark { title: fact, sentence: why, next_step: remedy };
            (Word::Unknown, &[][..], vec![remark])
        }
    };
    let blockers = blockers.iter().map(|Blocker { pid, next_step, since }| Obstacle {
        pid: pid.0,
        next_step: next_step.clone(),
        since: since.clone(),
    });
    Said { answer, blockers: blockers.collect(), remarks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        judge::{port::PortState, verdict::Finding},
        report::sample::{self, unknown, verdict},
    };

    fn passage(endpoint: &str, answer: Answer) -> Passage {
        Passage { port: sample::port(endpoint, PortState::Free), answer }
    }

    fn advice(title: &'static str) -> Advice {
        let next_step = Some("do something".to_owned());
        Advice { title, sentence: format!("it is {title}"), next_step }
    }

    fn blocked(by: &[u32]) -> Answer {
        let by = by.iter().map(|&pid| Blocker {
            pid: Pid(pid),
            next_step: Some(format!("stop pid {pid}")),
            since: Some("it took the port".to_owned()),
        });
        Answer::Blocked(Block { by: by.collect(), why: advice("held") })
    }

    fn gated() -> Gated {
        let ports = vec![
            passage("8091", blocked(&[7])),
            passage("8092", Answer::Open(Vec::new())),
            passage("47334", Answer::Open(vec![advice("could be taken")])),
            passage("8093", blocked(&[])),
        ];
        Gated::sample(ports, vec![verdict(7, Finding::Foreign)])
    }

    #[test]
    fn a_block_outranks_an_unknown_unless_it_is_let_pass() {
        use OnBlocked::{Fail, Warn};
        let codes = |answers: Vec<Answer>| {
            let ports = answers.into_iter().map(|a| passage("8091", a)).collect();
            let gated = Gated::sample(ports, Vec::new());
            (exit_code(&gated, Fail), exit_code(&gated, Warn))
        };
        assert_eq!(codes(vec![Answer::Open(vec![advice("lingering")])]), (0, 0));
        assert_eq!(codes(vec![blocked(&[7]), Answer::Open(Vec::new())]), (1, 0));
        assert_eq!(codes(vec![blocked(&[7]), Answer::Unknown(unknown())]), (1, 2));
        assert_eq!(codes(vec![Answer::Unknown(unknown())]), (2, 2));
        let mut interrupted = gated();
        interrupted.cut_short = Some(unknown());
        assert_eq!((exit_code(&interrupted, Fail), exit_code(&interrupted, Warn)), (2, 2));
    }

    #[test]
    fn the_table_has_a_line_for_each_blocker_and_the_answer_last() {
        let style = Style { width: None, is_coloured: false, shows_evidence: false };
        let mut out = Vec::new();
        render(&gated(), OnBlocked::Fail, style, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
PORT   SERVICE  PID  PROCESS                                            VERDICT
8091   aidb     7    python3 -u /app/server.py --config /etc/aidb.yaml  foreign
      because the test says so
      it took the port
      next: stop pid 7
      next: do something
47334  aidb     -    -                                                  could be taken
      it is could be taken
      next: do something
8093   aidb     -    -                                                  held
      it is held
      next: do something
open: 8092

blocked: 2 of 4 ports open, 2 blocked; waited 1.2 s
"
        );
    }

    #[test]
    fn the_document_fits_its_schema() {
        let schema = serde_json::to_value(schema()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let mut broken = gated();
        broken.ports.push(passage("8094", Answer::Unknown(unknown())));
        broken.cut_short = Some(unknown());
        broken.reaped.push(sample::reaped_badly());
        for gated in [gated(), broken] {
            let mut out = Vec::new();
            render_json(&gated, OnBlocked::Warn, &mut out).unwrap();
            let document: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let errors: Vec<String> =
                validator.iter_errors(&document).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{errors:?}");
            assert_eq!(document["ports"][0]["answer"], "blocked");
            assert_eq!(document["ports"][0]["blockers"][0]["pid"], 7);
            assert_eq!(document["ports"][0]["blockers"][0]["since"], "it took the port");
        }
    }
}
