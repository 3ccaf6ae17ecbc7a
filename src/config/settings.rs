//! What the settings are once they are valid. Owns every default; knows neither files nor YAML.

use std::{fmt, path::PathBuf, str::FromStr, sync::OnceLock, time::Duration};

use globset::GlobMatcher;
use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::{Deserialize, Serialize};

use crate::{
    backend::Spec,
    ident::{Endpoint, GpuName, ModelName, ServiceName, UnitName},
};

/// Everything that was set, valid.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Values for services that set none of their own.
    pub defaults: Defaults,
    /// Services in the order of their names.
    pub services: Vec<Service>,
    /// Models that are declared, in the order of their names. No two want the same port.
    pub models: Vec<(ModelName, Spec)>,
    /// Why it is not known which models are registered, where it is not: any port may be one's. Never from a file.
    pub unread_models: Option<UnreadModels>,
    /// Stack-wide patterns.
    pub workers: Vec<WorkerPattern>,
    /// Processes that are never ended, whatever else is found.
    pub protect: Vec<Protect>,
    /// Which container engines are asked.
    pub engines: Engines,
    /// How long `gate` waits.
    pub gate: Gate,
    /// Who is asked about GPUs.
    pub gpus: GpuSources,
}

/// A registry of models that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadModels {
    /// Why.
    pub why: String,
    /// What would help.
    pub remedy: Option<String>,
}

/// `gpus:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuSources {
    /// NVIDIA's management library.
    pub nvml: EngineUse,
    /// `nvidia-smi`, where the library gives no answer.
    pub nvidia_smi: EngineUse,
    /// How long either may take for one answer; the first one of a run loads the driver.
    pub timeout: Duration,
}

impl Default for GpuSources {
    fn default() -> Self {
        Self { nvml: EngineUse::Auto, nvidia_smi: EngineUse::Auto, timeout: Duration::from_secs(5) }
    }
}

/// How much of a GPU's memory a service needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuNeed {
    /// So many hundredths of all of it.
    Share(u8),
    /// So many bytes.
    Bytes(u64),
}

impl GpuNeed {
    /// What this comes to on a GPU with so much memory.
    pub fn bytes_of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Share(hundredths) => total_bytes.saturating_mul(u64::from(hundredths)) / 100,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Display for GpuNeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(hundredths) => write!(f, "{hundredths}%"),
            Self::Bytes(bytes) if bytes.is_multiple_of(1 << 30) => write!(f, "{}GiB", bytes >> 30),
            Self::Bytes(bytes) => write!(f, "{}MiB", bytes >> 20),
        }
    }
}

impl FromStr for GpuNeed {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |unit: &str| {
            let number = text.strip_suffix(unit)?;
            let is_number = number.bytes().all(|b| b.is_ascii_digit());
            if is_number { number.parse::<u64>().ok() } else { None }
        };
        if let Some(hundredths) = number("%") {
            let hundredths = u8::try_from(hundredths).map_err(|_| ())?;
            return if hundredths <= 100 { Ok(Self::Share(hundredths)) } else { Err(()) };
        }
        let bytes = number("GiB").and_then(|n| n.checked_mul(1 << 30));
        let bytes = bytes.or_else(|| number("MiB").and_then(|n| n.checked_mul(1 << 20)));
        bytes.map(Self::Bytes).ok_or(())
    }
}

/// `gate:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// How long to wait for what blocks.
    pub timeout: Duration,
    /// A port is called blocked only if it has been so for this long, whatever the timeout.
    pub settle: Duration,
    /// The same for a GPU's memory that nobody holds: drivers give it back a while after the exit.
    pub gpu_settle: Duration,
    /// How much of a GPU must be free for a service that does not say how much it needs.
    pub gpu_free: GpuNeed,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            settle: Duration::from_millis(500),
            gpu_settle: Duration::from_secs(10),
            gpu_free: GpuNeed::Share(90),
        }
    }
}

/// `engines:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engines {
    /// Docker.
    pub docker: EngineUse,
    /// Podman; has no path of its own, since each user has an engine.
    pub podman: EngineUse,
    /// How long one engine may take for all its answers.
    pub timeout: Duration,
    /// Deadlines of the rungs of the stop ladder.
    pub ladder: Ladder,
}

/// How long an engine may take for each rung of the stop ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder {
    /// For the stop, on top of the grace period.
    pub stop_timeout: Duration,
    /// For the kill.
    pub kill_timeout: Duration,
    /// For the removal.
    pub remove_timeout: Duration,
}

impl Default for Ladder {
    fn default() -> Self {
        Self {
            stop_timeout: Duration::from_secs(10),
            kill_timeout: Duration::from_secs(5),
            remove_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Engines {
    fn default() -> Self {
        Self {
            docker: EngineUse::Auto,
            podman: EngineUse::Auto,
            timeout: Duration::from_secs(3),
            ladder: Ladder::default(),
        }
    }
}

/// Whether and where an engine, or who knows GPUs, is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineUse {
    /// Where it is found, at its usual places.
    Auto,
    /// Never: what it could have told stays unknown.
    Off,
    /// At this socket (library, program), instead of the usual one.
    At(PathBuf),
}

/// `defaults:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// A younger process is convicted of nothing.
    pub min_age: Duration,
    /// How long to watch for a respawn after an end.
    pub respawn_watch: Duration,
    /// What becomes of a foreign holder.
    pub foreign_holder: ForeignHolder,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(5),
            min_age: Duration::from_secs(10),
            respawn_watch: Duration::from_secs(3),
            foreign_holder: ForeignHolder::Report,
        }
    }
}

/// `foreign_holder:`, what becomes of a living holder that is neither owner nor orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignHolder {
    /// Named in the report.
    Report,
    /// Ended by `reap`.
    Reap,
}

/// One service of `services:`.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Where it is declared to run, if that is declared.
    pub runs_in: Option<RunsIn>,
    /// The unit that portreeve keeps it in, where it does: no stranger to it, and no reason to call others strangers.
    pub own_unit: Option<UnitName>,
    /// Its guarded ports.
    pub ports: Vec<Endpoint>,
    /// It sets SO_REUSEADDR before it binds them.
    pub reuse_addr: bool,
    /// GPUs that it computes on.
    pub gpus: Vec<GpuName>,
    /// How much memory it needs on each of them.
    pub gpu_free: GpuNeed,
    /// Command lines of its processes.
    pub patterns: Vec<ServicePattern>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// What becomes of a foreign holder of its ports.
    pub foreign_holder: ForeignHolder,
}

/// `runs_in:`, the evidence that no look at a process can give: where it ought to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunsIn {
    /// In a container, of this name where one is given.
    Container(Option<String>),
    /// In this unit of the system's manager.
    Unit(UnitName),
}

/// A command line of a service's process.
#[derive(Debug, Clone)]
pub struct ServicePattern {
    /// Matched anywhere in the command line, arguments joined by single spaces.
    pub regex: Pattern,
    /// The process holds no port of its own: the pattern alone speaks for it.
    pub is_portless: bool,
}

/// A worker that an inference server leaves behind, `kind: worker`.
#[derive(Debug, Clone)]
pub struct WorkerPattern {
    /// Its name in reports.
    pub name: String,
    /// Matched like a service's pattern.
    pub regex: Pattern,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// A rule of `protect:`.
#[derive(Debug, Clone)]
pub enum Protect {
    /// Processes of units whose name matches.
    Unit(GlobMatcher),
    /// Processes whose executable's path matches.
    Exe(GlobMatcher),
}

/// How deep groups may nest in a pattern.
pub(super) const PATTERN_NEST_LIMIT: u32 = 64;
/// Memory that one compiled pattern may take: some hundred times what real ones need.
const PATTERN_BYTES: usize = 256 << 10;
/// Memory that all compiled patterns together may take.
const ALL_PATTERNS_BYTES: usize = 16 << 20;

/// A regular expression over bytes: a command line need not be UTF-8, so `.` is any byte and `\w` is ASCII.
/// Compiled when it is first asked, since [`any_of`] rules most of them out before: half the time of a run.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Pattern {
    /// A pattern of the default inside the binary, where a test has compiled them all.
    pub(super) fn proven(text: &str) -> Self {
        Self { text: text.to_owned(), compiled: OnceLock::new() }
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it matches anywhere.
    pub fn is_match(&self, line: &[u8]) -> bool {
        self.compiled().is_some_and(|regex| regex.is_match(line))
    }

    /// None only of one that was proven and is not.
    fn compiled(&self) -> Option<&Regex> {
        self.compiled.get_or_init(|| compile(&self.text).ok()).as_ref()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

/// A pattern, compiled. Errors on bad syntax and on one that would take too much memory.
pub fn compile_pattern(text: &str) -> Result<Pattern, regex::Error> {
    let regex = compile(text)?;
    Ok(Pattern { text: text.to_owned(), compiled: OnceLock::from(Some(regex)) })
}

fn compile(text: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text)
        .unicode(false)
        .nest_limit(PATTERN_NEST_LIMIT)
        .size_limit(PATTERN_BYTES)
        .build()
}

/// Patterns as one automaton, for the question "may any of them match?". Errors when they are too large
/// together, which loading has ruled out for all of them.
pub fn any_of<'a>(patterns: impl Iterator<Item = &'a Pattern>) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(patterns.map(Pattern::as_str))
        .unicode(false)
        .nest_limit(PATTERN_NEST_LIMIT)
        .size_limit(ALL_PATTERNS_BYTES)
        .build()
}

/// Whether a pattern matches a command line. Of one that was cut, a match that ends at the cut might not be one
/// of the whole.
pub fn fits(pattern: &Pattern, text: &[u8], is_cut: bool) -> bool {
    let mut found = pattern.compiled().into_iter().flat_map(|regex| regex.find_iter(text));
    found.any(|found| !is_cut || found.end() < text.len())
}

impl Settings {
    /// Every pattern, of services and workers.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        let of_services = self.services.iter().flat_map(|s| &s.patterns).map(|p| &p.regex);
        of_services.chain(self.workers.iter().map(|w| &w.regex))
    }

    /// `--grace`: one grace period for all.
    pub fn override_grace(&mut self, grace: Duration) {
        self.defaults.grace = grace;
        self.services.iter_mut().for_each(|service| service.grace = grace);
        self.workers.iter_mut().for_each(|worker| worker.grace = grace);
    }

    /// The service of this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|s| s.name == *name)
    }
}
