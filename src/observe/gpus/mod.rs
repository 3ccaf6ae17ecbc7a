//! GPUs and who holds them. NVIDIA's are asked about in three ways, each only where the one before gave no answer: the
//! management library (`nvml.rs`, through the process of `asker.rs`), `nvidia-smi` (`smi.rs`), and the device numbers of open
//! files (`devices.rs`). Of AMD's and Intel's the kernel tells (`kernel.rs`). Which files a process has open: `files.rs`.

mod asker;
mod devices;
mod files;
#[cfg(any(test, fuzzing))]
pub(super) mod hostile;
mod kernel;
mod nvml;
mod smi;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use asker::VERB;
pub use nvml::{LIBRARY, serve};
pub use smi::program as nvidia_smi;

use crate::{
    host::Host,
    snapshot::{Gpu, GpuSource, GpuTrouble, GpuVendor, Gpus, Seen},
};
use asker::Asker;
use devices::{Card, Information};
use files::Walk;

/// Where loaders look, and where NixOS, WSL and container runtimes put the driver's libraries.
const FOLDERS: [&str; 12] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
    "usr/local/lib",
    "usr/local/nvidia/lib64",
    "run/opengl-driver/lib",
    "usr/lib/wsl/lib",
];
/// A driver that has just failed may be one that is still being set up.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Who hangs once mostly hangs again, and each time may leave a process behind that only the driver can let go.
const MOST_HANGS: u32 = 3;
/// Why pids that come from outside our pid namespace mean nothing here.
const OWN_NAMESPACE: &str = "this run is in a pid namespace of its own, where processes of others are left out: run it with \
                             the host's pids (--pid host)";

/// Whether and where a source is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Where it is found, if there is an NVIDIA GPU on the host at all.
    Auto,
    /// Never.
    Off,
    /// At this library or program.
    At(PathBuf),
}

/// Who may be asked about GPUs, beside the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// NVIDIA's management library.
    pub nvml: Way,
    /// `nvidia-smi`, where the library gives no answer.
    pub nvidia_smi: Way,
    /// How long either may take for one answer.
    pub timeout: Duration,
}

impl Default for Sources {
    fn default() -> Self {
        Self { nvml: Way::Auto, nvidia_smi: Way::Auto, timeout: Duration::from_secs(5) }
    }
}

/// Looks at GPUs, again and again. Between two looks it keeps the process that asks NVML, which ends with the thread that looked
/// first, and when this is dropped: drop it before an exec.
#[derive(Debug)]
pub struct Reader {
    sources: Sources,
    nvml: Asker,
    nvml_failures: Failures,
    smi_failures: Failures,
    information_failures: Failures,
}

impl Reader {
    /// Starts nothing yet.
    pub fn new(sources: Sources) -> Self {
        Self::with_program(sources, "/proc/self/exe")
    }

    /// The same in a program that is no `portreeve` itself.
    pub fn with_program(sources: Sources, portreeve: impl Into<PathBuf>) -> Self {
        Self {
            sources,
            nvml: Asker::new(portreeve.into()),
            nvml_failures: Failures::default(),
            smi_failures: Failures::default(),
            information_failures: Failures::default(),
        }
    }

    /// The GPUs as they are now. Takes one timeout for each source that does not answer, and what a walk over all processes
    /// takes.
    pub fn look(&mut self, host: &Host) -> Gpus {
        let mut gpus = Gpus::default();
        let sight = super::sight(host);
        let mut found = devices::cards(host);
        gpus.may_miss.clone_from(&found.may_miss);
        let has_nvidia = !found.all.is_empty();
        let answer = self.ask(host, has_nvidia, &mut gpus.trouble);
        let rest = kernel::observe(host, &mut gpus.may_miss);
        let is_walked = (has_nvidia && answer.is_none()) || !rest.is_empty();
        let walk = if is_walked { files::walk(host) } else { Walk::default() };
        gpus.all = if let Some(mut told) = answer {
            if !sight.is_first_pid_namespace {
                for gpu in &mut told {
                    forget(gpu, OWN_NAMESPACE);
                }
            }
            hidden_cards(&told, &found.all, &mut gpus.may_miss);
            told
        } else {
            // Who failed to answer may have known of more.
            if let Some(failed) = gpus.trouble.first() {
                gpus.may_miss.get_or_insert(format!("{} {}", failed.source, failed.why));
            }
            devices::describe(&mut found.all, &self.information(host, has_nvidia));
            devices::gpus(host, &found.all, &walk, &mut gpus.may_miss)
        };
        // A GPU of NVIDIA's that is not told keeps its number: another vendor's must not take its place.
        let cards = u32::try_from(found.all.len()).unwrap_or_default() + found.undriven;
        let told = gpus.all.iter().map(|gpu| gpu.index + 1).max().unwrap_or_default();
        let first = told.max(cards);
        let rest = kernel::gpus(host, rest, &walk, sight.is_first_pid_namespace);
        gpus.all.extend(rest.into_iter().zip(first..).map(|(gpu, index)| Gpu { index, ..gpu }));
        let is_blind = |gpu: &Gpu| matches!(gpu.source, GpuSource::Devices | GpuSource::Kernel);
        for gpu in gpus.all.iter_mut().filter(|gpu| is_blind(gpu)) {
            let why = if !super::is_proc_ours(host) {
                gpu.holdings.clear();
                Some(
                    "'/proc' belongs to another pid namespace than this run: mount its own"
                        .to_owned(),
                )
            } else if !sight.is_first_pid_namespace {
                Some(OWN_NAMESPACE.to_owned())
            } else if sight.is_proc_hidden {
                Some("'/proc' hides the processes of other users (hidepid)".to_owned())
            } else {
                walk.may_miss()
            };
            gpu.may_miss = gpu.may_miss.take().or(why);
        }
        gpus
    }

    /// What NVML or `nvidia-smi` tell; none where neither does.
    fn ask(
        &mut self,
        host: &Host,
        is_there: bool,
        trouble: &mut Vec<GpuTrouble>,
    ) -> Option<Vec<Gpu>> {
        let Sources { nvml, nvidia_smi, timeout } = &self.sources;
        let is_wanted = |way: &Way| match way {
            Way::Auto => is_there && host.is_live(),
            Way::Off => false,
            Way::At(_) => true,
        };
        if is_wanted(nvml) {
            let asker = &mut self.nvml;
            let answer = self.nvml_failures.unless_recent(|| asker.look(place(nvml), *timeout));
            match answer {
                Ok(told) => return Some(told.into_iter().map(nvml::Told::gpu).collect()),
                Err(why) => trouble.push(why),
            }
        }
        if is_wanted(nvidia_smi) {
            let place = place(nvidia_smi).map(Path::to_owned);
            let answer = self.smi_failures.unless_recent(|| {
                let program = place.map_or_else(|| smi::program(host), Ok)?;
                smi::ask(&program, *timeout, trouble)
            });
            match answer {
                Ok(told) => return Some(told),
                Err(why) => trouble.push(why),
            }
        }
        None
    }
}

impl Reader {
    /// What the kernel driver tells of its cards; nothing of any card where it does not answer.
    fn information(&mut self, host: &Host, is_there: bool) -> Information {
        if !host.is_live() || !is_there {
            return devices::read_information(host);
        }
        let (asker, timeout) = (&mut self.nvml, self.sources.timeout);
        let answer = self.information_failures.unless_recent(|| asker.information(timeout));
        answer.unwrap_or_default()
    }
}

fn place(way: &Way) -> Option<&Path> {
    match way {
        Way::At(path) => Some(path),
        Way::Auto | Way::Off => None,
    }
}

/// Who fails is not asked again at once: that would cost each look its deadline.
#[derive(Debug, Default)]
struct Failures {
    last: Option<(Instant, GpuTrouble)>,
    hangs: u32,
}

impl Failures {
    fn unless_recent<T>(
        &mut self,
        ask: impl FnOnce() -> Result<T, GpuTrouble>,
    ) -> Result<T, GpuTrouble> {
        if let Some((since, trouble)) = &self.last
            && (self.hangs >= MOST_HANGS || since.elapsed() < RETRY_AFTER)
        {
            return Err(trouble.clone());
        }
        let answer = ask();
        self.last = answer.as_ref().err().map(|trouble| (Instant::now(), trouble.clone()));
        self.hangs += u32::from(answer.as_ref().is_err_and(|t| t.why.starts_with(LATE)));
        answer
    }
}

/// How a trouble begins that took the whole deadline.
const LATE: &str = "did not answer within";

fn late(timeout: Duration) -> String {
    format!("{LATE} {timeout:?}")
}

/// Nothing is known of who holds it.
fn forget(gpu: &mut Gpu, why: &str) {
    gpu.holdings.clear();
    gpu.may_miss = Some(why.to_owned());
}

/// A container is often given some of the host's GPUs only.
fn hidden_cards(told: &[Gpu], cards: &[Card], may_miss: &mut Option<String>) {
    let is_told = |card: &&Card| {
        let is_same = |gpu: &Gpu| gpu.bus == card.bus || gpu.bus.is_none();
        told.iter().any(is_same)
    };
    let hidden: Vec<&str> =
        cards.iter().filter(|card| !is_told(card)).filter_map(|card| card.bus.as_deref()).collect();
    if !hidden.is_empty() {
        let why = format!("GPUs that NVIDIA's driver does not show here: {}", hidden.join(", "));
        may_miss.get_or_insert(why);
    }
}

/// NVIDIA's library on this host, from its root; none where it is in none of the usual places.
pub fn library(host: &Host) -> Option<PathBuf> {
    let usual = FOLDERS.iter().map(|folder| Path::new(folder).join(LIBRARY));
    usual.chain(cached(host)).find(|path| host.path(path).exists())
}

/// Where the loader's cache has it (ldconfig(8)): paths end in NUL there.
fn cached(host: &Host) -> Option<PathBuf> {
    let cache = fs::read(host.path("etc/ld.so.cache")).ok()?;
    let mut paths = cache.split(|&b| b == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let path =
        paths.find(|path| path.starts_with('/') && path.ends_with(&format!("/{LIBRARY}")))?;
    Some(PathBuf::from(path.trim_start_matches('/')))
}

/// `GPU-…` or `MIG-…` in the case in which we compare it.
fn uuid(text: &str) -> String {
    match text.split_once('-') {
        Some((prefix, rest)) => format!("{prefix}-{}", rest.to_ascii_lowercase()),
        None => text.to_owned(),
    }
}

/// A GPU of which only who makes it and who told is known.
fn bare(vendor: GpuVendor, source: GpuSource, memory_why: &str) -> Gpu {
    Gpu {
        vendor,
        index: 0,
        uuid: None,
        bus: None,
        name: String::new(),
        part: None,
        is_split: false,
        is_integrated: false,
        memory: Seen::Unreadable(memory_why.to_owned()),
        holdings: Vec::new(),
        may_miss: None,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_driver_that_hangs_at_its_own_files_is_not_asked_at_each_look() {
        let folder = tempfile::tempdir().unwrap();
        let (program, starts) = (folder.path().join("portreeve"), folder.path().join("starts"));
        let script = format!("#!/bin/sh\necho >> '{}'\nexec sleep 600\n", starts.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let timeout = Duration::from_millis(300);
        let mut reader = Reader::with_program(Sources { timeout, ..Sources::default() }, program);
        for _ in 0..3 {
            assert_eq!(reader.information(&Host::live(), true), Information::new());
        }
        assert_eq!(fs::read_to_string(starts).unwrap(), "\n");
    }
}
