//! What the judge says of one process. Only the judge can make a verdict, and only a verdict can be acted on.

use std::{fmt, time::Duration};

use crate::{
    config::settings::UnreadModels,
    ident::{ContainerId, Endpoint, EngineRef, Pid, ProcessKey, ServiceName, UnitRef},
    snapshot::{Process, gibibytes},
};

/// A fact that could not be known, and so can convict nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The fact, as a phrase: `the executable of pid 4242`.
    pub fact: String,
    /// Why it is not known: `permission denied`.
    pub why: String,
    /// What would settle it, as a command or a step.
    pub remedy: Option<String>,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fact, self.why)
    }
}

impl From<&UnreadModels> for Unknown {
    fn from(unread: &UnreadModels) -> Self {
        let UnreadModels { why, remedy } = unread.clone();
        Self { fact: "which models are registered".to_owned(), why, remedy }
    }
}

/// Number of the row of the verdict table (docs/design.md) that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Row(pub u8);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Alive and in its place: never ended by default.
    Spare(Spare),
    /// Left behind: ended by `reap`.
    Orphan(Orphan),
    /// Looks left behind, but nothing declares where it ought to run: ended only with `--also abandoned`.
    Suspect,
    /// Of a container that runs, says its engine, and whose monitor is gone: ended only with `--also unsupervised`, by
    /// its engine.
    Unsupervised(ContainerRef),
    /// Neither owner nor orphan, on a guarded port.
    Foreign,
    /// The deciding row needs a fact that is not known.
    Undecided(Unknown),
}

/// Why a process is spared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spare {
    /// PID 1, kernel, ourselves, systemd, sshd, an engine or monitor, or a `protect:` rule; says which.
    Protected(String),
    /// Its container is supervised by this living process.
    LiveContainer(Pid, String),
    /// It forwards a port to this living container.
    Forwarder(ContainerRef),
    /// In somebody's session; says in which way.
    Session(String),
    /// The unit's main or control process, or a descendant of it.
    ManagedBy(UnitRef),
    /// Elsewhere in a unit's cgroup.
    InUnit(UnitRef),
    /// It matches a pattern only, and the parent that started it lives.
    ParentLives(Pid, String),
}

/// A container as its engine is asked about it and as people call it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerRef {
    /// Whose it is.
    pub engine: EngineRef,
    /// Its id; empty where neither a control group nor the engine tells it.
    pub id: ContainerId,
    /// Its name, or the beginning of its id where the engine does not know it.
    pub name: String,
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}", self.name)
    }
}

/// Why a process is an orphan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Orphan {
    /// Its container does not run, or runs anew without it.
    LeftBehind(ContainerRef),
    /// We started it, and its recorded owner is gone.
    Ours(String),
    /// An inference server's worker without its server; the pattern's name.
    Worker(String),
    /// systemd ended the unit and this survived.
    SurvivedUnit(UnitRef),
    /// From an earlier run of the unit.
    EarlierRun(UnitRef),
    /// Not where the service is declared to run.
    Misplaced(ServiceName),
}

/// A guarded GPU that a process computes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuShare {
    /// `GPU 0`, `GPU 0 part 1`.
    pub label: String,
    /// How much of its memory it has, where the driver says.
    pub memory_bytes: Option<u64>,
}

impl fmt::Display for GpuShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.memory_bytes {
            Some(bytes) => write!(f, "{} ({})", self.label, gibibytes(bytes)),
            None => f.write_str(&self.label),
        }
    }
}

/// What stands beside a verdict: a fact in words. Shown, never convicting.
pub type Evidence = String;

/// The judge's word on one process.
#[must_use]
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The process as it was seen.
    pub process: Process,
    /// What was found.
    pub finding: Finding,
    /// Which row decided.
    pub row: Row,
    /// Services whose pattern it matches or whose port it holds.
    pub services: Vec<ServiceName>,
    /// Guarded ports that it holds.
    pub ports: Vec<Endpoint>,
    /// Guarded GPUs that it computes on.
    pub gpus: Vec<GpuShare>,
    /// One line: why.
    pub reason: String,
    /// Supporting facts.
    pub evidence: Vec<Evidence>,
    /// What the reader can do, where there is something to do.
    pub next_step: Option<String>,
    /// Time between SIGTERM and SIGKILL, should it be ended.
    pub grace: Duration,
    /// Whether `reap` with the present flags ends it.
    pub is_convicted: bool,
    #[expect(dead_code, reason = "its type alone matters: nobody else can name it")]
    pub(in crate::judge) seal: Seal,
}

/// Keeps other modules from making a verdict.
#[derive(Debug, Clone)]
pub(in crate::judge) struct Seal;

impl Verdict {
    /// Which process.
    pub fn key(&self) -> ProcessKey {
        self.process.key
    }

    /// The finding in a few words: `orphan: not where aidb runs`.
    pub fn title(&self) -> String {
        self.finding.title()
    }
}

impl Finding {
    /// The same.
    pub fn title(&self) -> String {
        match self {
            Self::Spare(Spare::Protected(_)) => "spare: protected".to_owned(),
            Self::Spare(Spare::LiveContainer(..)) => "spare: live container".to_owned(),
            Self::Spare(Spare::Forwarder(container)) => {
                format!("spare: forwards to {container}")
            }
            Self::Spare(Spare::Session(_)) => "spare: session".to_owned(),
            Self::Spare(Spare::ManagedBy(unit)) => format!("spare: managed by {unit}"),
            Self::Spare(Spare::InUnit(unit)) => format!("spare: in {unit}"),
            Self::Spare(Spare::ParentLives(..)) => "spare: its parent lives".to_owned(),
            Self::Orphan(Orphan::LeftBehind(container)) => {
                format!("orphan: left behind by {container}")
            }
            Self::Unsupervised(container) => format!("unsupervised: {container}"),
            Self::Orphan(Orphan::Ours(_)) => "orphan: ours".to_owned(),
            Self::Orphan(Orphan::Worker(_)) => "orphan: worker without its server".to_owned(),
            Self::Orphan(Orphan::SurvivedUnit(unit)) => format!("orphan: survived {unit}"),
            Self::Orphan(Orphan::EarlierRun(unit)) => {
                format!("orphan: an earlier run of {unit}")
            }
            Self::Orphan(Orphan::Misplaced(service)) => {
                format!("orphan: not where {service} runs")
            }
            Self::Suspect => "suspect".to_owned(),
            Self::Foreign => "foreign".to_owned(),
            Self::Undecided(_) => "undecided".to_owned(),
        }
    }
}

#[cfg(test)]
impl Verdict {
    /// A verdict as no judge made it: for tests of what is done with verdicts.
    pub(crate) fn sample(process: Process, finding: Finding) -> Self {
        Self {
            is_convicted: matches!(finding, Finding::Orphan(_)),
            process,
            finding,
            row: Row(0),
            services: Vec::new(),
            ports: Vec::new(),
            gpus: Vec::new(),
            reason: "because the test says so".to_owned(),
            evidence: Vec::new(),
            next_step: None,
            grace: Duration::from_secs(5),
            seal: Seal,
        }
    }
}
