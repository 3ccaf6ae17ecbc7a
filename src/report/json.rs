//! The report for programs: one JSON document, versioned. docs/report.md promises what stays, and
//! docs/schema/report-v1.json is generated from the types below.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
    time::Duration,
};

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::Serialize;

use super::{escape::is_hidden, exit, gpu, judged, leftovers, summary::Summary};
use crate::{
    act::{self, Respawn as Newcomer},
    ident::{Endpoint, Pid},
    judge::{
        port::{PortState, PortVerdict},
        verdict::{self, Finding, Verdict},
    },
    pipeline::{Findings, Reaped},
};

/// The verb that reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// `portreeve scan`.
    Scan,
    /// `portreeve reap`.
    Reap,
}

/// Writes what a look found: of `scan` and of `reap --dry-run`.
pub fn render_findings(
    findings: &Findings,
    dry_run: bool,
    command: Command,
    out: &mut dyn Write,
) -> io::Result<()> {
    let processes = findings.verdicts.iter().map(|verdict| process(verdict, None)).collect();
    let summary = Summary::of_findings(findings);
    let head =
        Head { command, dry_run, exit_code: exit::of_findings(findings), interrupted: false };
    write(&report(head, processes, Vec::new(), findings, summary), out)
}

/// Writes what a reap did, and what the last look found.
pub fn render_reaped(reaped: &Reaped, out: &mut dyn Write) -> io::Result<()> {
    let head = Head {
        command: Command::Reap,
        dry_run: false,
        exit_code: exit::of_reaped(reaped),
        interrupted: reaped.was_interrupted,
    };
    let processes = judged(reaped).map(|(verdict, outcome)| process(verdict, outcome)).collect();
    let respawns = reaped.respawns.iter().map(respawn).collect();
    write(&report(head, processes, respawns, &reaped.after, Summary::of_reaped(reaped)), out)
}

/// The schema of the document, JSON Schema 2020-12.
pub fn schema() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<Report>()
}

/// A report of portreeve.
#[derive(Debug, Serialize, JsonSchema)]
struct Report {
    /// Version of this document's form.
    #[schemars(extend("const" = 1))]
    version: u32,
    /// The verb that reports.
    command: Command,
    /// Nothing was to be ended.
    dry_run: bool,
    /// The command's exit code: 0 clear, 1 not clear, 2 could not tell.
    exit_code: u8,
    /// A signal cut the run short.
    interrupted: bool,
    /// Every guarded port that was asked about; of a reap, as they are after it.
    ports: Vec<Port>,
    /// Every guarded GPU that was asked about, likewise.
    gpus: Vec<gpu::Gpu>,
    /// Every process that was judged.
    processes: Vec<Process>,
    /// Containers of models that run and that nothing needs; null = they were not looked for.
    model_containers: Option<Vec<leftovers::ModelContainer>>,
    /// Likes of ended processes that came back.
    respawns: Vec<Respawn>,
    /// What could not be seen beyond single processes and ports.
    unknowns: Vec<Unknown>,
    /// Counts of the above.
    summary: Summary,
}

/// A guarded port.
#[derive(Debug, Serialize, JsonSchema)]
#[allow(clippy::struct_field_names, reason = "the document's word for it")]
pub(super) struct Port {
    /// Number and protocol, `8091/tcp`.
    port: String,
    /// Its number.
    #[schemars(range(min = 1, max = 65535))]
    number: u16,
    /// Its protocol.
    proto: Proto,
    /// The address that its owner binds; null = every address.
    address: Option<String>,
    /// Its owner leaves IPv4 to others (IPV6_V6ONLY).
    v6only: bool,
    /// Its owner by the settings.
    service: Option<String>,
    /// What it is.
    state: State,
    /// Process ids of who has it, as far as they were seen.
    holders: Vec<u32>,
    /// Of an ephemeral port: where the connection leads.
    peer: Option<String>,
    /// The state in a sentence.
    sentence: String,
    /// What to do, where there is something to do.
    next_step: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Proto {
    Tcp,
    Udp,
}

/// States of a guarded port.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Nothing has it.
    Free,
    /// Nothing listens; a socket that is bound and silent could not be seen.
    NoListener,
    /// Listening (UDP: bound).
    Held,
    /// Bound, not listening.
    BoundOnly,
    /// An outgoing connection took it as its own local port.
    Ephemeral,
    /// Nothing listens; a connection has it as its local port.
    Connected,
    /// Only closing connections remain.
    Lingering,
    /// No process holds it: the kernel does, or a descriptor in flight.
    KernelOwned,
    /// Somebody has it who may not be seen.
    HolderNotVisible,
    /// No socket is on it; an engine has allocated it to a running container.
    Allocated,
    /// No socket is on it; a rule sends its packets elsewhere.
    Detoured,
    /// Could not be learnt.
    Unknown,
}

/// A process and the verdict on it; one that was to be ended is shown with the verdict that was acted on.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Process {
    /// Process id.
    pid: u32,
    /// Start time in clock ticks since boot, field 22 of /proc/PID/stat.
    start_ticks: u64,
    /// The kernel's name of it, at most 15 bytes.
    name: String,
    /// Its arguments joined by spaces, bytes that are no UTF-8 replaced by U+FFFD; null where it could not be read.
    command_line: Option<String>,
    /// The command line is longer than what is shown.
    command_line_is_cut: bool,
    /// Path of its executable.
    exe: Option<String>,
    /// Its real user id.
    uid: Option<u32>,
    /// Services whose pattern it matches or whose port it holds.
    services: Vec<String>,
    /// Guarded ports that it holds, as in `ports[].port`, with the address before it where the settings name one.
    ports: Vec<String>,
    /// Guarded GPUs that it computes on, as in `gpus[].gpu`.
    gpus: Vec<String>,
    /// What it was found to be.
    verdict: Word,
    /// The verdict in a few words.
    title: String,
    /// Row of the verdict table (docs/design.md) that decided.
    row: u8,
    /// One line: why.
    reason: String,
    /// Supporting facts; they convict nobody.
    evidence: Vec<String>,
    /// What to do, where there is something to do.
    next_step: Option<String>,
    /// `reap` with the same arguments ends it.
    would_end: bool,
    /// What became of it; null where it was not to be ended.
    outcome: Option<Outcome>,
}

/// Kinds of verdicts.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// Alive and in its place.
    Spare,
    /// Left behind.
    Orphan,
    /// Looks left behind, and nothing declares where it ought to run.
    Suspect,
    /// Of a container that runs and whose monitor is gone.
    Unsupervised,
    /// Neither owner nor orphan, on a guarded port.
    Foreign,
    /// A fact is missing.
    Undecided,
}

/// What became of a process that was to be ended.
#[derive(Debug, Serialize, JsonSchema)]
struct Outcome {
    /// In one word.
    result: Ending,
    /// Time from the first signal to its end, in milliseconds.
    after_ms: Option<u64>,
    /// What changed, why the signal was refused, or where in the kernel it hangs.
    detail: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Ending {
    /// Gone after SIGTERM.
    Terminated,
    /// Gone after SIGKILL.
    Killed,
    /// Gone with its container, which its engine stopped; `detail` says how.
    Stopped,
    /// Its container is not down, or only itself is still there.
    NotStopped,
    /// Left to the unit in `detail` (`--no-wait`).
    HandedOver,
    /// Gone before any signal.
    Vanished,
    /// It changed or is another process now; nothing was sent.
    Replaced,
    /// The kernel refused the signal.
    Refused,
    /// It did not exit after SIGKILL.
    Unkillable,
    /// We were interrupted before its turn or before its end was seen.
    Interrupted,
}

/// A process like an ended one.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Respawn {
    /// Process id.
    pid: u32,
    /// Start time in clock ticks since boot.
    start_ticks: u64,
    /// Its arguments joined by spaces.
    command_line: String,
    /// What it resembles: a port, or a pattern's name.
    like: String,
    /// Who brought it, in words.
    brought_by: String,
    /// How to stop that.
    next_step: String,
}

/// A fact that could not be known.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Unknown {
    /// The fact, as a phrase.
    fact: String,
    /// Why it is not known.
    why: String,
    /// What would settle it.
    remedy: Option<String>,
}

#[derive(Clone, Copy)]
struct Head {
    command: Command,
    dry_run: bool,
    exit_code: u8,
    interrupted: bool,
}

fn report(
    head: Head,
    processes: Vec<Process>,
    respawns: Vec<Respawn>,
    last_look: &Findings,
    summary: Summary,
) -> Report {
    let containers = last_look.model_containers.as_ref();
    Report {
        version: 1,
        command: head.command,
        dry_run: head.dry_run,
        exit_code: head.exit_code,
        interrupted: head.interrupted,
        ports: last_look.ports.iter().map(port).collect(),
        gpus: last_look.gpus.iter().map(gpu::gpu).collect(),
        processes,
        model_containers: containers
            .map(|all| all.iter().map(leftovers::model_container).collect()),
        respawns,
        unknowns: last_look.unknowns.iter().map(unknown).collect(),
        summary,
    }
}

pub(super) fn port(port: &PortVerdict) -> Port {
    let pids = |pids: &[Pid]| pids.iter().map(|pid| pid.0).collect();
    let (state, holders, peer) = match &port.state {
        PortState::Free => (State::Free, Vec::new(), None),
        PortState::NoListener => (State::NoListener, Vec::new(), None),
        PortState::Held(holders) => (State::Held, pids(holders), None),
        PortState::BoundOnly(holders) => (State::BoundOnly, pids(holders), None),
        PortState::Ephemeral { holders, peer } => {
            (State::Ephemeral, pids(holders), Some(peer.to_string()))
        }
        PortState::Connected { holders, peer } => {
            (State::Connected, pids(holders), Some(peer.to_string()))
        }
        PortState::Lingering => (State::Lingering, Vec::new(), None),
        PortState::KernelOwned => (State::KernelOwned, Vec::new(), None),
        PortState::HolderNotVisible => (State::HolderNotVisible, Vec::new(), None),
        PortState::Allocated(_) => (State::Allocated, Vec::new(), None),
        PortState::Detoured(_) => (State::Detoured, Vec::new(), None),
        PortState::Unknown(_) => (State::Unknown, Vec::new(), None),
    };
    let Endpoint { port: number, proto, address, is_v6only } = port.endpoint;
    Port {
        port: format!("{number}/{proto}"),
        number: number.number(),
        proto: match proto {
            crate::ident::Proto::Tcp => Proto::Tcp,
            crate::ident::Proto::Udp => Proto::Udp,
        },
        address: address.map(|address| address.to_string()),
        v6only: is_v6only,
        service: port.service.as_ref().map(ToString::to_string),
        state,
        holders,
        peer,
        sentence: port.sentence.clone(),
        next_step: port.next_step.clone(),
    }
}

pub(super) fn process(verdict: &Verdict, outcome: Option<&act::Outcome>) -> Process {
    let seen = &verdict.process;
    let command_line = seen.command_line.known();
    Process {
        pid: seen.key.pid.0,
        start_ticks: seen.key.start_ticks,
        name: seen.name.clone(),
        command_line: command_line.map(|line| String::from_utf8_lossy(&line.text).into_owned()),
        command_line_is_cut: command_line.is_some_and(|line| line.is_cut),
        exe: seen.exe.known().map(|path| path.to_string_lossy().into_owned()),
        uid: seen.uid.known().copied(),
        services: verdict.services.iter().map(ToString::to_string).collect(),
        ports: verdict.ports.iter().map(ToString::to_string).collect(),
        gpus: verdict.gpus.iter().map(|share| share.label.clone()).collect(),
        verdict: match verdict.finding {
            Finding::Spare(_) => Word::Spare,
            Finding::Orphan(_) => Word::Orphan,
            Finding::Suspect => Word::Suspect,
            Finding::Unsupervised(_) => Word::Unsupervised,
            Finding::Foreign => Word::Foreign,
            Finding::Undecided(_) => Word::Undecided,
        },
        title: verdict.title(),
        row: verdict.row.0,
        reason: verdict.reason.clone(),
        evidence: verdict.evidence.clone(),
        next_step: verdict.next_step.clone(),
        would_end: verdict.is_convicted,
        outcome: outcome.map(ending),
    }
}

fn ending(outcome: &act::Outcome) -> Outcome {
    let after = |time: &Duration| u64::try_from(time.as_millis()).ok();
    let (result, after_ms, detail) = match outcome {
        act::Outcome::Terminated(time) => (Ending::Terminated, after(time), None),
        act::Outcome::Killed(time) => (Ending::Killed, after(time), None),
        act::Outcome::Stopped(stopped) => {
            (Ending::Stopped, after(&stopped.took), Some(stopped.to_string()))
        }
        act::Outcome::NotStopped(why) => (Ending::NotStopped, None, Some(why.clone())),
        act::Outcome::HandedOver(unit) => (Ending::HandedOver, None, Some(unit.clone())),
        act::Outcome::Vanished => (Ending::Vanished, None, None),
        act::Outcome::Replaced(what) => (Ending::Replaced, None, Some(what.clone())),
        act::Outcome::Refused(why) => (Ending::Refused, None, Some(why.clone())),
        act::Outcome::Unkillable { state, wait_channel } => {
            let place =
                wait_channel.as_ref().map(|place| format!(" in {place}")).unwrap_or_default();
            (Ending::Unkillable, None, Some(format!("state {state}{place}")))
        }
        act::Outcome::Interrupted => (Ending::Interrupted, None, None),
    };
    Outcome { result, after_ms, detail }
}

pub(super) fn respawn(newcomer: &Newcomer) -> Respawn {
    Respawn {
        pid: newcomer.key.pid.0,
        start_ticks: newcomer.key.start_ticks,
        command_line: newcomer.command_line.clone(),
        like: newcomer.like.clone(),
        brought_by: newcomer.brought_by.clone(),
        next_step: newcomer.next_step.clone(),
    }
}

pub(super) fn unknown(unknown: &verdict::Unknown) -> Unknown {
    let verdict::Unknown { fact, why, remedy } = unknown.clone();
    Unknown { fact, why, remedy }
}

/// Writes a document.
pub(super) fn write(report: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    out.write_all(harmless(&text).as_bytes())?;
    out.write_all(b"\n")
}

/// The same document with what a terminal would act on as `\u` escapes. Outside of strings JSON knows no such
/// character but the newline, and inside of them serde_json has escaped those below U+0020.
fn harmless(json: &str) -> Cow<'_, str> {
    // Almost every document.
    if json.bytes().all(|byte| matches!(byte, b'\n' | b' '..=b'~')) {
        return json.into();
    }
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a String cannot fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::{
        report::sample::{self, findings, process},
        snapshot::{CommandLine, Seen},
    };

    /// The document as text, checked against the schema.
    fn document(render: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> (String, Value) {
        let mut out = Vec::new();
        render(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let schema = serde_json::to_value(schema()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}\n{text}");
        (text, value)
    }

    fn scanned(found: &Findings) -> (String, Value) {
        document(|out| render_findings(found, true, Command::Scan, out))
    }

    #[test]
    fn a_scan_says_of_each_port_and_process_what_the_judge_said() {
        let (_, report) = scanned(&sample::mess());
        assert_eq!(report["version"], 1);
        assert_eq!(report["command"], "scan");
        assert_eq!(report["dry_run"], true);
        assert_eq!(report["exit_code"], 1);
        let states: Vec<&str> = report["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| port["state"].as_str().unwrap())
            .collect();
        assert_eq!(
            states,
            [
                "held",
                "held",
                "bound_only",
                "free",
                "free",
                "free",
                "holder_not_visible",
                "held",
                "held",
                "lingering",
                "ephemeral",
            ]
        );
        let port = &report["ports"][5];
        assert_eq!(
            (&port["port"], &port["number"], &port["proto"]),
            (&"8098/udp".into(), &8098.into(), &"udp".into())
        );
        assert_eq!((&port["address"], &port["peer"]), (&"::1".into(), &Value::Null));
        assert_eq!(report["ports"][10]["peer"], "198.51.100.7:443");
        assert_eq!(report["ports"][7]["holders"], serde_json::json!([500, 501]));
        assert_eq!(report["gpus"][0]["state"], "held");
        assert_eq!(report["gpus"][0]["holders"], serde_json::json!([31337]));
        assert_eq!(report["gpus"][1]["memory_free_bytes"], 79_u64 << 30);
        assert_eq!(
            (&report["gpus"][3]["state"], &report["gpus"][3]["index"]),
            (&"unknown".into(), &Value::Null)
        );
        assert_eq!(report["processes"][6]["gpus"], serde_json::json!(["GPU 0"]));
        let orphan = &report["processes"][0];
        assert_eq!(orphan["pid"], 4242);
        assert_eq!(orphan["verdict"], "orphan");
        assert_eq!(orphan["title"], "orphan: not where aidb runs");
        assert_eq!(orphan["ports"], serde_json::json!(["8091/tcp", "8791/tcp"]));
        assert_eq!(orphan["would_end"], true);
        assert_eq!(orphan["outcome"], Value::Null);
        assert_eq!(report["unknowns"][0]["remedy"], "run as root, or with CAP_SYS_PTRACE");
        assert_eq!(
            report["summary"],
            serde_json::json!({
                "orphans": 2, "suspects": 1, "unsupervised": 0, "foreign": 1, "undecided": 1, "spared": 2, "ended": 0, "not_ended": 0,
                "ports_guarded": 11, "ports_free": 3, "ports_lingering": 1, "ports_held": 7, "ports_unknown": 0, "ports_without_listener": 0,
                "gpus_guarded": 4, "gpus_free": 1, "gpus_held": 1, "gpus_short": 1, "gpus_unknown": 1,
                "model_containers": 1,
            })
        );
    }

    #[test]
    fn a_reap_says_of_each_process_what_became_of_it() {
        let (_, report) = document(|out| render_reaped(&sample::reaped_badly(), out));
        assert_eq!((&report["command"], &report["dry_run"]), (&"reap".into(), &false.into()));
        assert_eq!((&report["exit_code"], &report["interrupted"]), (&1.into(), &true.into()));
        let outcomes: Vec<Value> = report["processes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|process| process["outcome"].clone())
            .collect();
        let outcome = |result: &str, after_ms: Option<u64>, detail: Option<&str>| serde_json::json!({ "result": result, "after_ms": after_ms, "detail": detail });
        // The unkillable one, which the last look found again, stands there once.
        assert_eq!(
            outcomes,
            [
                outcome("terminated", Some(312), None),
                outcome("killed", Some(5240), None),
                outcome("vanished", None, None),
                outcome("replaced", None, Some("its start time is another")),
                outcome("refused", None, Some("operation not permitted")),
                outcome("unkillable", None, Some("state D in nfs_wait_bit_killable")),
                outcome("interrupted", None, None),
                Value::Null,
            ]
        );
        assert_eq!(report["respawns"][0]["brought_by"], "supervisord (pid 612), its parent");
        assert_eq!(
            (&report["summary"]["ended"], &report["summary"]["not_ended"]),
            (&3.into(), &4.into())
        );
    }

    #[test]
    fn facts_that_were_not_seen_are_null() {
        let mut blind = sample::verdict(7, Finding::Foreign);
        blind.process.command_line = Seen::Denied;
        blind.process.exe = Seen::Gone;
        blind.process.uid = Seen::Unreadable("it hangs".into());
        let (_, report) = scanned(&findings(Vec::new(), vec![blind]));
        let process = &report["processes"][0];
        for field in ["command_line", "exe", "uid"] {
            assert_eq!(process[field], Value::Null, "{field}");
        }
    }

    #[test]
    fn every_kind_of_port_fits_the_schema() {
        let unknown = PortState::Unknown(sample::unknown());
        let ports = [PortState::KernelOwned, unknown, PortState::Lingering]
            .map(|state| sample::port("8091", state));
        let (_, report) = scanned(&findings(ports.to_vec(), Vec::new()));
        assert_eq!(report["ports"][1]["state"], "unknown");
    }

    #[test]
    fn a_command_line_that_is_no_text_or_too_long_is_shown_as_far_as_it_goes() {
        let mut cut = sample::verdict(7, Finding::Foreign);
        let text = [b"\xff".to_vec(), vec![b'x'; 2 << 20]].concat();
        cut.process.command_line = Seen::Known(CommandLine { text, is_cut: true });
        let (_, report) = scanned(&findings(Vec::new(), vec![cut]));
        let process = &report["processes"][0];
        assert_eq!(process["command_line_is_cut"], true);
        let line = process["command_line"].as_str().unwrap();
        assert!(line.starts_with("\u{fffd}xxx") && line.len() == (2 << 20) + 3);
    }

    proptest! {
        #[test]
        fn foreign_text_is_read_back_whole_and_written_without_control_characters(
            text in "\\PC{0,10}|[\\x00-\\x1f\\x7f-\\u{9f}\\u{200b}-\\u{202e}\\u{2066}-\\u{2069}\\u{e0001}\"\\\\]{0,20}",
        ) {
            let mut orphan = Verdict::sample(process(7, text.as_bytes()), Finding::Foreign);
            orphan.reason.clone_from(&text);
            let mut out = Vec::new();
            render_findings(&findings(Vec::new(), vec![orphan]), true, Command::Reap, &mut out).unwrap();
            let written = String::from_utf8(out).unwrap();
            prop_assert!(!written.chars().any(|c| c != '\n' && is_hidden(c)));
            let report: Value = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(report["processes"][0]["command_line"].as_str(), Some(text.as_str()));
            prop_assert_eq!(report["processes"][0]["reason"].as_str(), Some(text.as_str()));
        }
    }
}
