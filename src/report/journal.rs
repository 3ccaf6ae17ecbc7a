//! What happens, as it happens, on record: in the journal where systemd runs us, as lines on standard error where a person asked
//! for them, nowhere else. docs/report.md promises the kinds, their ids and their fields.
//!
//! Speaks the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) itself; docs/dependencies.md says why.

use std::{
    io::{self, Write},
    os::unix::net::UnixDatagram,
    time::Duration,
};

use super::{
    Progress, escape::escape, exit, gate, github::outcome, gpu, judged, table::counted, title_of,
};
use crate::{
    act::{Deed, Outcome, Respawn, container::End},
    gate::Gated,
    ident::{Endpoint, ProcessKey},
    judge::{
        gate::{Answer, Block, Blocker},
        gpu::{GpuState, GpuVerdict},
        port::{PortState, PortVerdict},
        verdict::{Finding, Unknown, Verdict},
    },
    pipeline::{Event, Findings, OrphanedContainer, Reaped},
};

const SOCKET: &str = "/run/systemd/journal/socket";
/// A journal that takes nothing for so long is not waited for (unix(7): a full queue blocks).
const PATIENCE: Duration = Duration::from_secs(1);
/// A value is cut to this, and an entry holds so many: a datagram has room for some 200 KiB (socket(7), wmem_default).
const VALUE_BYTES: usize = 4096;
const MOST_FIELDS: usize = 40;
/// Columns of a command line in a message; the field has more of it.
const PROCESS_COLUMNS: usize = 120;

/// Kinds of events, each with the id by which `journalctl MESSAGE_ID=` finds it: for ever the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Found,
    Taken,
    NotSeen,
    Blocked,
    Convicted,
    Ended,
    NotEnded,
    CameBack,
    Warning,
    Summary,
}

impl Kind {
    #[cfg(test)]
    const ALL: [Self; 10] = [
        Self::Found,
        Self::Taken,
        Self::NotSeen,
        Self::Blocked,
        Self::Convicted,
        Self::Ended,
        Self::NotEnded,
        Self::CameBack,
        Self::Warning,
        Self::Summary,
    ];

    /// Its word and its id.
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Found => ("found", "062965c544a44884a5623cfffb852c9a"),
            Self::Taken => ("taken", "7b579566f57441829430044c3ec0f030"),
            Self::NotSeen => ("not_seen", "9bad7eb5b006439c9845c802865495dd"),
            Self::Blocked => ("blocked", "7edc8846343a4982a1d1017cfb306e1e"),
            Self::Convicted => ("convicted", "fc8a1ddc28ed40399e8b139a4925e45a"),
            Self::Ended => ("ended", "70501eff78bb43e0bc8f6308eb2ae6b4"),
            Self::NotEnded => ("not_ended", "6c9702f754f34525ba06859cd4fa8a2c"),
            Self::CameBack => ("came_back", "204e146b870b463e8e237dd9979841b1"),
            Self::Warning => ("warning", "d5364af5233d4b0081d436692c3504df"),
            Self::Summary => ("summary", "7bb444ec49ee4b59ae3622a9ea9923c3"),
        }
    }
}

/// Of syslog(3), as the journal takes them.
#[derive(Debug, Clone, Copy)]
enum Priority {
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
}

/// Where events go.
#[derive(Debug)]
pub struct Record {
    journal: Option<UnixDatagram>,
    has_lines: bool,
    progress: Progress,
}

impl Record {
    /// The journal where our standard error leads there; else lines there, if they are asked for.
    pub fn new(is_verbose: bool) -> Self {
        let leads_there = is_journal(&io::stderr());
        let journal = leads_there.then(connect).and_then(Result::ok);
        // Lines reach it as well, though without their fields.
        let has_lines = is_verbose || (leads_there && journal.is_none());
        let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
        Self { journal, has_lines, progress: Progress::new(is_terminal) }
    }

    /// Puts one event of a reap on record.
    pub fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Progress(text) => self.progress.say(text),
            Event::Warning(text) => self.warn(text),
            Event::Convicted(verdict) => self.put(&convicted(verdict)),
            Event::Done(deed) => self.put(&done(deed)),
            Event::CameBack(newcomer) => self.put(&came_back(newcomer)),
        }
    }

    fn warn(&mut self, text: &str) {
        let message = format!("warning: {text}");
        if self.journal.is_none() && !self.has_lines {
            self.progress.clear();
            let _ = writeln!(io::stderr(), "{message}");
        }
        self.put(&Entry::new(Kind::Warning, Priority::Warning, &message));
    }

    /// Puts what one look found on record.
    pub fn findings(&mut self, findings: &Findings) {
        self.state(findings, &[], exit::of_findings(findings), findings.verdicts.len());
    }

    /// Puts on record what a reap left; its deeds were told as they were done.
    pub fn reaped(&mut self, reaped: &Reaped) {
        let told: Vec<ProcessKey> = reaped
            .respawns
            .iter()
            .map(|newcomer| newcomer.key)
            .chain(reaped.deeds.iter().map(|deed| deed.verdict.key()))
            .collect();
        let code = exit::of_reaped(reaped);
        self.state(&reaped.after, &told, code, judged(reaped).count());
    }

    /// Puts on record what a gate found; its deeds were told as they were done.
    pub fn gated(&mut self, gated: &Gated, on_blocked: gate::OnBlocked) {
        self.progress.clear();
        if self.journal.is_none() && !self.has_lines {
            return;
        }
        let priority = match on_blocked {
            gate::OnBlocked::Fail => Priority::Error,
            gate::OnBlocked::Warn => Priority::Warning,
        };
        for place in gate::places(gated) {
            match place.answer {
                Answer::Open(_) => {}
                Answer::Unknown(unknown) => {
                    let (name, value) = &place.field;
                    self.put(&not_seen(unknown).with(name, value));
                }
                Answer::Blocked(block) => self.put(&blocked(gated, &place, block, priority)),
            }
        }
        gated
            .unseen
            .iter()
            .chain(&gated.cut_short)
            .for_each(|unknown| self.put(&not_seen(unknown)));
        let code = gate::exit_code(gated, on_blocked);
        let (answer, priority) = match code {
            exit::CLEAR => ("may start", Priority::Info),
            exit::NOT_CLEAR => ("blocked", Priority::Warning),
            _ => ("could not tell", Priority::Warning),
        };
        let message = format!("gate: {answer}: {}", gate::summary(gated));
        let entry = Entry::new(Kind::Summary, priority, &message);
        self.put(&entry.with("PORTREEVE_EXIT_CODE", &code));
    }

    fn state(&mut self, findings: &Findings, told: &[ProcessKey], code: u8, processes: usize) {
        // Nobody reads along: nothing need be said.
        if self.journal.is_none() && !self.has_lines {
            return;
        }
        let is_told = |verdict: &&Verdict| told.iter().any(|key| key.is_same(&verdict.key()));
        findings
            .verdicts
            .iter()
            .filter(|v| !is_told(v))
            .filter_map(found)
            .for_each(|e| self.put(&e));
        findings.ports.iter().filter_map(taken).for_each(|entry| self.put(&entry));
        findings.gpus.iter().filter_map(short).for_each(|entry| self.put(&entry));
        let containers = findings.model_containers.iter().flatten();
        containers.for_each(|one| self.put(&left_over(one)));
        findings.unknowns.iter().for_each(|unknown| self.put(&not_seen(unknown)));
        self.put(&summary(code, processes, findings));
    }

    fn put(&mut self, entry: &Entry) {
        if let Some(journal) = &self.journal {
            if journal.send(&entry.encode()).is_ok() {
                return;
            }
            self.journal = None;
            self.has_lines = true;
        }
        if self.has_lines {
            self.progress.clear();
            let _ = writeln!(io::stderr(), "{}", entry.message);
        }
    }
}

/// Whether a stream leads to the journal: systemd.exec(5), `$JOURNAL_STREAM`. The variable alone says nothing: a child
/// inherits it with other streams.
fn is_journal(stream: &impl std::os::fd::AsFd) -> bool {
    let Some(said) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(stream)
        .is_ok_and(|stat| said.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino)))
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SOCKET)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// One event: a line for people, fields for programs. Only the line is escaped.
struct Entry {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Entry {
    fn new(kind: Kind, priority: Priority, message: &str) -> Self {
        let (word, id) = kind.name();
        let priority = (priority as u8).to_string();
        Self {
            message: escape(
                format!("{}: {message}", word.replace('_', " ")),
                Some(VALUE_BYTES / 4),
            ),
            fields: vec![
                ("MESSAGE_ID", id.to_owned()),
                ("PRIORITY", priority),
                ("SYSLOG_IDENTIFIER", "portreeve".to_owned()),
                ("PORTREEVE_EVENT", word.to_owned()),
            ],
        }
    }

    fn with(mut self, name: &'static str, value: &(impl ToString + ?Sized)) -> Self {
        if self.fields.len() < MOST_FIELDS {
            self.fields.push((name, value.to_string()));
        }
        self
    }

    /// A field for each: the journal lets a field stand more than once, and finds an entry by any of its values.
    fn with_all(self, name: &'static str, values: impl IntoIterator<Item = impl ToString>) -> Self {
        values.into_iter().fold(self, |entry, value| entry.with(name, &value))
    }

    fn of(self, verdict: &Verdict) -> Self {
        let key = verdict.key();
        self.with("PORTREEVE_PID", &key.pid)
            .with("PORTREEVE_START_TICKS", &key.start_ticks)
            .with("PORTREEVE_COMMAND_LINE", &command_line(verdict))
            .with("PORTREEVE_VERDICT", &word(&verdict.finding))
            .with("PORTREEVE_TITLE", &verdict.title())
            .with("PORTREEVE_ROW", &verdict.row.0)
            .with("PORTREEVE_REASON", &verdict.reason)
            .with_all("PORTREEVE_NEXT_STEP", &verdict.next_step)
            .with_all("PORTREEVE_SERVICE", &verdict.services)
            .with_all("PORTREEVE_EVIDENCE", &verdict.evidence)
            .with_all("PORTREEVE_PORT", &verdict.ports)
            .with_all("PORTREEVE_GPU", verdict.gpus.iter().map(|share| &share.label))
    }

    /// `NAME=value`, or with its length where the value has a line end of its own.
    fn encode(&self) -> Vec<u8> {
        let mut datagram = Vec::new();
        let message = std::iter::once(("MESSAGE", self.message.as_str()));
        for (name, value) in message.chain(self.fields.iter().map(|(name, v)| (*name, v.as_str())))
        {
            let value = cut(value);
            datagram.extend_from_slice(name.as_bytes());
            if value.contains('\n') {
                let length = u64::try_from(value.len()).unwrap_or_default();
                datagram.push(b'\n');
                datagram.extend_from_slice(&length.to_le_bytes());
            } else {
                datagram.push(b'=');
            }
            datagram.extend_from_slice(value.as_bytes());
            datagram.push(b'\n');
        }
        datagram
    }
}

/// At most as long as a value may be, and whole characters.
fn cut(value: &str) -> &str {
    let mut ends = (0..=VALUE_BYTES.min(value.len())).rev();
    ends.find_map(|end| value.get(..end)).unwrap_or_default()
}

fn command_line(verdict: &Verdict) -> String {
    String::from_utf8_lossy(&title_of(&verdict.process)).into_owned()
}

/// Who, and what the judge said.
fn sentence(verdict: &Verdict) -> String {
    let ports = verdict.ports.iter().map(Endpoint::short);
    let ports: Vec<String> = ports.chain(verdict.gpus.iter().map(|g| g.label.clone())).collect();
    let on = if ports.is_empty() { String::new() } else { format!(" on {}", ports.join(" ")) };
    let process = escape(title_of(&verdict.process), Some(PROCESS_COLUMNS));
    format!("pid {} ({process}){on}: {}: {}", verdict.key().pid, verdict.title(), verdict.reason)
}

fn word(finding: &Finding) -> &'static str {
    match finding {
        Finding::Spare(_) => "spare",
        Finding::Orphan(_) => "orphan",
        Finding::Suspect => "suspect",
        Finding::Unsupervised(_) => "unsupervised",
        Finding::Foreign => "foreign",
        Finding::Undecided(_) => "undecided",
    }
}

fn found(verdict: &Verdict) -> Option<Entry> {
    match verdict.finding {
        Finding::Spare(_) => None,
        Finding::Orphan(_)
        | Finding::Suspect
        | Finding::Unsupervised(_)
        | Finding::Foreign
        | Finding::Undecided(_) => {
            Some(Entry::new(Kind::Found, Priority::Warning, &sentence(verdict)).of(verdict))
        }
    }
}

/// A model's container that nothing needs.
fn left_over(one: &OrphanedContainer) -> Entry {
    let OrphanedContainer { name, id, engine, model, state, why, next_step, .. } = one;
    let message = format!("container {name} of {engine} ({state}): orphan: {why}");
    Entry::new(Kind::Found, Priority::Warning, &message)
        .with("PORTREEVE_CONTAINER", id)
        .with("PORTREEVE_CONTAINER_NAME", name)
        .with_all("PORTREEVE_MODEL", model)
        .with("PORTREEVE_VERDICT", "orphan")
        .with("PORTREEVE_STATE", state)
        .with("PORTREEVE_REASON", why)
        .with("PORTREEVE_NEXT_STEP", next_step)
}

/// A port that is not free and has no process to judge.
fn taken(port: &PortVerdict) -> Option<Entry> {
    let state = match port.state {
        PortState::Ephemeral { .. } => "ephemeral",
        PortState::Connected { .. } => "connected",
        PortState::KernelOwned => "kernel_owned",
        PortState::Allocated(_) => "allocated",
        PortState::Detoured(_) => "detoured",
        PortState::HolderNotVisible => "holder_not_visible",
        PortState::Unknown(_) => "unknown",
        PortState::Free
        | PortState::NoListener
        | PortState::Held(_)
        | PortState::BoundOnly(_)
        | PortState::Lingering => return None,
    };
    let message = format!("port {}: {}", port.endpoint.short(), port.sentence);
    let entry = Entry::new(Kind::Taken, Priority::Warning, &message)
        .with("PORTREEVE_PORT", &port.endpoint)
        .with("PORTREEVE_STATE", state)
        .with_all("PORTREEVE_SERVICE", &port.service)
        .with_all("PORTREEVE_NEXT_STEP", &port.next_step);
    Some(entry)
}

/// A GPU that is not free and that no process's own entry explains.
fn short(verdict: &GpuVerdict) -> Option<Entry> {
    match verdict.state {
        GpuState::Held(_) if verdict.may_miss.is_some() => {}
        GpuState::Free | GpuState::Held(_) => return None,
        GpuState::Residual | GpuState::Absent | GpuState::Unknown(_) => {}
    }
    let message = format!("{}: {}", verdict.label, verdict.sentence);
    let entry = Entry::new(Kind::Taken, Priority::Warning, &message)
        .with("PORTREEVE_GPU", &verdict.label)
        .with("PORTREEVE_STATE", gpu::word(&verdict.state))
        .with_all("PORTREEVE_SERVICE", &verdict.services)
        .with_all("PORTREEVE_NEXT_STEP", &verdict.next_step);
    Some(entry)
}

/// A port or a GPU on which a service may not start, and who is in its way.
fn blocked(
    gated: &Gated,
    place: &gate::Place<'_>,
    Block { by, why }: &Block,
    priority: Priority,
) -> Entry {
    let first = by.iter().find_map(|blocker| gate::verdict_on(gated, blocker.pid));
    let who = first.map_or_else(|| why.sentence.clone(), sentence);
    let since = by
        .iter()
        .filter_map(|Blocker { pid, since, .. }| Some(format!("; pid {pid}: {}", since.as_ref()?)));
    let since: String = since.collect();
    let message = format!("{}: {}: {who}{since}", place.title, why.title);
    let (name, value) = &place.field;
    let service = Some(&place.service).filter(|service| !service.is_empty());
    let next = by.iter().filter_map(|Blocker { next_step, .. }| next_step.as_ref());
    Entry::new(Kind::Blocked, priority, &message)
        .with(name, value)
        .with("PORTREEVE_STATE", why.title)
        .with_all("PORTREEVE_SERVICE", service)
        .with_all("PORTREEVE_PID", by.iter().map(|blocker| blocker.pid))
        .with_all("PORTREEVE_NEXT_STEP", next.chain(&why.next_step))
}

fn not_seen(unknown: &Unknown) -> Entry {
    Entry::new(Kind::NotSeen, Priority::Warning, &unknown.to_string())
        .with("PORTREEVE_FACT", &unknown.fact)
        .with("PORTREEVE_REASON", &unknown.why)
        .with_all("PORTREEVE_NEXT_STEP", &unknown.remedy)
}

fn convicted(verdict: &Verdict) -> Entry {
    let sentence = sentence(verdict);
    let evidence = verdict.evidence.iter().map(String::as_str);
    let parts: Vec<&str> = std::iter::once(sentence.as_str()).chain(evidence).collect();
    let message = parts.join("; ");
    Entry::new(Kind::Convicted, Priority::Notice, &message).of(verdict)
}

fn done(deed: &Deed) -> Entry {
    let process = escape(title_of(&deed.verdict.process), Some(PROCESS_COLUMNS));
    let pid = deed.verdict.key().pid;
    let message = format!("pid {pid} ({process}): {}", outcome(&deed.outcome));
    let was_forced = matches!(&deed.outcome, Outcome::Stopped(s) if s.end == End::Forced);
    let (kind, priority) = if was_forced {
        (Kind::Ended, Priority::Warning)
    } else if deed.outcome.is_gone() {
        (Kind::Ended, Priority::Notice)
    } else {
        (Kind::NotEnded, Priority::Error)
    };
    let (word, after) = match &deed.outcome {
        Outcome::Terminated(after) => ("terminated", Some(after.as_millis())),
        Outcome::Killed(after) => ("killed", Some(after.as_millis())),
        Outcome::Stopped(stopped) => ("stopped", Some(stopped.took.as_millis())),
        Outcome::NotStopped(_) => ("not_stopped", None),
        Outcome::HandedOver(_) => ("handed_over", None),
        Outcome::Vanished => ("vanished", None),
        Outcome::Replaced(_) => ("replaced", None),
        Outcome::Refused(_) => ("refused", None),
        Outcome::Unkillable { .. } => ("unkillable", None),
        Outcome::Interrupted => ("interrupted", None),
    };
    Entry::new(kind, priority, &message)
        .with("PORTREEVE_OUTCOME", word)
        .with_all("PORTREEVE_AFTER_MS", after)
        .of(&deed.verdict)
}

fn came_back(newcomer: &Respawn) -> Entry {
    let process = escape(&newcomer.command_line, Some(PROCESS_COLUMNS));
    let Respawn { key, like, brought_by, .. } = newcomer;
    let message =
        format!("pid {} ({process}): like {like}, brought by {brought_by}", newcomer.key.pid);
    Entry::new(Kind::CameBack, Priority::Error, &message)
        .with("PORTREEVE_PID", &key.pid)
        .with("PORTREEVE_START_TICKS", &key.start_ticks)
        .with("PORTREEVE_COMMAND_LINE", &newcomer.command_line)
        .with("PORTREEVE_LIKE", like)
        .with("PORTREEVE_BROUGHT_BY", brought_by)
        .with("PORTREEVE_NEXT_STEP", &newcomer.next_step)
}

fn summary(code: u8, processes: usize, findings: &Findings) -> Entry {
    let (answer, priority) = match code {
        exit::CLEAR => ("clear", Priority::Info),
        exit::NOT_CLEAR => ("not clear", Priority::Warning),
        _ => ("could not tell", Priority::Warning),
    };
    let processes = counted(processes, "process", "processes");
    let ports = counted(findings.ports.len(), "guarded port", "guarded ports");
    let message = match findings.gpus.len() {
        0 => format!("{answer}: {processes} and {ports} judged"),
        gpus => {
            format!("{answer}: {processes}, {ports} and {} judged", counted(gpus, "GPU", "GPUs"))
        }
    };
    Entry::new(Kind::Summary, priority, &message).with("PORTREEVE_EXIT_CODE", &code)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{judge::verdict::Orphan, report::sample};

    /// The fields of a datagram, as journald reads them.
    fn read(mut datagram: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !datagram.is_empty() {
            let end = datagram.iter().position(|&b| b == b'\n' || b == b'=').unwrap();
            let name = String::from_utf8(datagram[..end].to_vec()).unwrap();
            let is_plain = datagram[end] == b'=';
            let mut rest = &datagram[end + 1..];
            let length = if is_plain {
                rest.iter().position(|&b| b == b'\n').unwrap()
            } else {
                let (length, value) = rest.split_first_chunk::<8>().unwrap();
                rest = value;
                usize::try_from(u64::from_le_bytes(*length)).unwrap()
            };
            fields.push((name, String::from_utf8(rest[..length].to_vec()).unwrap()));
            assert_eq!(rest[length], b'\n');
            datagram = &rest[length + 1..];
        }
        fields
    }

    fn values<'f>(fields: &'f [(String, String)], name: &str) -> Vec<&'f str> {
        fields.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }

    #[test]
    fn no_foreign_text_adds_a_field_or_a_line() {
        let hostile = "a\nMESSAGE=b\nPRIORITY=0\u{1b}[2J";
        let mut verdict = sample::verdict(7, Finding::Orphan(Orphan::Worker(hostile.to_owned())));
        verdict.process = sample::process(7, hostile.as_bytes());
        verdict.reason = hostile.to_owned();
        verdict.evidence = vec![hostile.to_owned()];
        let entry = convicted(&verdict);
        let fields = read(&entry.encode());
        assert_eq!(values(&fields, "PRIORITY"), ["5"]);
        assert_eq!(values(&fields, "MESSAGE").len(), 1);
        assert_eq!(values(&fields, "PORTREEVE_COMMAND_LINE"), [hostile]);
        assert_eq!(values(&fields, "PORTREEVE_EVIDENCE"), [hostile]);
        assert!(!entry.message.contains(['\n', '\u{1b}']), "{}", entry.message);
    }

    #[test]
    fn each_port_is_a_value_of_its_own() {
        let verdict = sample::mess().verdicts.remove(0);
        let fields = read(&convicted(&verdict).encode());
        assert_eq!(values(&fields, "PORTREEVE_PORT"), ["8091/tcp", "8791/tcp"]);
    }

    #[test]
    fn the_largest_entry_fits_a_datagram() {
        let huge = "é\n".repeat(1 << 20);
        let mut verdict = sample::verdict(7, Finding::Foreign);
        verdict.process = sample::process(7, huge.as_bytes());
        verdict.reason.clone_from(&huge);
        verdict.evidence = vec![huge; 100];
        verdict.ports = (1..2000).map(|port: u16| port.to_string().parse().unwrap()).collect();
        let datagram = convicted(&verdict).encode();
        assert!(datagram.len() < 200 << 10, "{}", datagram.len());
        let (ours, _theirs) = UnixDatagram::pair().unwrap();
        assert_eq!(ours.send(&datagram).unwrap(), datagram.len());
        read(&datagram);
    }

    const CATALOG: &str = include_str!("../../packaging/usr/lib/systemd/catalog/portreeve.catalog");

    #[test]
    fn every_kind_has_an_id_of_its_own_and_stands_in_the_document_and_in_the_catalog() {
        let document = include_str!("../../docs/report.md");
        let ids: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name().1).collect();
        assert_eq!(ids.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let (word, id) = kind.name();
            assert_eq!(id.len(), 32);
            assert!(document.contains(&format!("| `{word}` | `{id}` |")), "{word}");
        }
        let entries = CATALOG.lines().filter_map(|line| line.strip_prefix("-- "));
        assert_eq!(entries.collect::<BTreeSet<_>>(), ids);
    }

    /// `journalctl -x` shows a value as it is.
    #[test]
    fn the_catalog_shows_no_field_with_text_of_others() {
        let ours = ["PID", "ROW", "OUTCOME", "EXIT_CODE"].map(|name| format!("PORTREEVE_{name}"));
        let shown: BTreeSet<&str> =
            CATALOG.lines().flat_map(|line| line.split('@').skip(1).step_by(2)).collect();
        assert_eq!(shown, ours.iter().map(String::as_str).collect());
    }
}
