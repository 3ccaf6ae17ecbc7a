//! The systemd unit of a model, as a text: what starts it, what watches it, what it may use, and what it may not. Values only:
//! nothing is looked up, written or asked. docs/models.md says which wish becomes which line.

mod page;
mod sandbox;
#[cfg(test)]
mod tests;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use page::{Page, argument, plain, quoted, unit_word};

use super::plan;
use crate::{
    backend::{
        Spec,
        spec::{Engine, Watch},
    },
    ident::{Manager, ModelName, UnitName},
};

/// Where a unit will run, as far as its text depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The manager that it is for.
    pub manager: Manager,
    /// The absolute path of this program.
    pub program: PathBuf,
    /// The absolute path of the file that `--config` names.
    pub config: Option<PathBuf>,
    /// Those of [`GPU_GROUPS`] that there are.
    pub groups: Vec<&'static str>,
    /// Whoever builds a system writes it, and it is no file to be edited there.
    pub is_offline: bool,
}

/// Groups whose members may use AMD's and Intel's devices (udev's 50-udev-default.rules); NVIDIA's are everybody's.
pub const GPU_GROUPS: [&str; 2] = ["render", "video"];

/// Starts within the interval; one more, and systemd gives up.
const START_BURST: u32 = 5;
/// Between an end and the next start.
const RESTART_TIME: Duration = Duration::from_secs(10);
/// systemd counts microseconds in 64 bits; nobody waits longer than this.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For what a start does beside loading, which asks for more time as it goes on.
const START_TIME: Duration = Duration::from_secs(120);
/// For what a stop does behind the grace period.
const STOP_TIME: Duration = Duration::from_secs(60);
/// A server has a thread for each core in each of its workers; some hundred are soon used up.
const TASKS: u32 = 4096;

const GIB: u64 = 1 << 30;

/// What a model's unit is called.
pub fn unit_of(model: &ModelName) -> UnitName {
    UnitName(format!("portreeve-model-{}.service", unit_word(&model.0)))
}

/// The gate that stands before it.
pub fn gate_of(model: &ModelName) -> UnitName {
    UnitName(format!("portreeve-gate@{}.service", unit_word(&model.0)))
}

/// The whole file.
pub fn text(model: &ModelName, spec: &Spec, surroundings: &Surroundings) -> String {
    let unit = Unit { model, spec, surroundings };
    let mut page = Page::default();
    unit.head(&mut page);
    unit.dependencies(&mut page);
    unit.life(&mut page);
    unit.limits(&mut page);
    unit.sandbox(&mut page);
    page.section("Install");
    page.why("What portreeve-models.service starts at boot, which waits for none of them.");
    page.set("WantedBy", "portreeve-models.target");
    page.0
}

/// A unit that is written.
struct Unit<'a> {
    model: &'a ModelName,
    spec: &'a Spec,
    surroundings: &'a Surroundings,
}

impl Unit<'_> {
    fn is_systems(&self) -> bool {
        self.surroundings.manager == Manager::System
    }

    fn grace(&self) -> Duration {
        self.spec.backend.backend().grace
    }

    fn head(&self, page: &mut Page) {
        let Spec { backend, model, host, gpus, .. } = self.spec;
        let unit = unit_of(self.model);
        let switch = if self.is_systems() { "" } else { "--user " };
        if self.surroundings.is_offline {
            page.why("Written by 'portreeve model show --unit --offline'. Changes belong into a drop-in.");
        } else {
            page.why("Written by 'portreeve model register', which writes it anew. Changes belong into a drop-in:");
            page.why(&format!("'systemctl {switch}edit {unit}'."));
        }
        let gpus: Vec<String> = gpus.iter().map(ToString::to_string).collect();
        let on = match (gpus.is_empty(), self.spec.is_container) {
            (true, false) => " without a GPU".to_owned(),
            (true, true) => " in a container, without a GPU".to_owned(),
            (false, false) => format!(" on GPU {}", gpus.join(", ")),
            (false, true) => format!(" in a container, on GPU {}", gpus.join(", ")),
        };
        let at = match host {
            IpAddr::V4(host) => format!("{host}:{}", self.spec.port()),
            IpAddr::V6(host) => format!("[{host}]:{}", self.spec.port()),
        };
        page.why(&format!("Serves {} with {backend} at {at}{on}.", page::shown(model)));
        page.section("Unit");
        // Nothing of a hostile name stands at the end, where a backslash would take the next line in.
        let description = format!("Model {}: {model} ({backend}, {at})", self.model);
        page.set("Description", &plain(&description));
        page.set("Documentation", "file:///usr/share/doc/portreeve/models.md");
    }

    fn dependencies(&self, page: &mut Page) {
        let Self { spec, .. } = self;
        let UnitName(gate) = gate_of(self.model);
        page.why("Asked before each start, a restart too: its ports and GPUs must be free. It fails aloud, and never loops.");
        page.set("Requires", &gate);
        page.why("What is started before it is stopped after it.");
        let mut after = vec![gate.as_str()];
        if self.is_systems() {
            after.extend(["portreeve-shutdown.service", "network-online.target"]);
        }
        if spec.is_container {
            after.extend(["docker.service", "podman.service", "podman.socket"]);
        }
        page.set("After", &after.join(" "));
        let engine = spec.engine.map(|engine| match engine {
            Engine::Docker => "docker.service",
            Engine::Podman => "podman.socket",
        });
        if let Some(engine) = engine.filter(|_| spec.is_container) {
            page.why("Requires= would stop it with its engine, and bring it back with it, though nobody said so.");
            page.set("Wants", engine);
        }
        if self.is_systems() && !spec.host.is_loopback() && !spec.host.is_unspecified() {
            page.why("Its address may not be there before.");
            page.set("Wants", "network-online.target");
        }
        let mounts: Vec<String> = self.folders().into_iter().map(quoted).collect();
        if self.is_systems() && !mounts.is_empty() {
            page.why("They may be on a disk of their own.");
            page.set("RequiresMountsFor", &mounts.join(" "));
        }
        if spec.is_container {
            page.why("Nothing starts it again but somebody who says so, which is no loop.");
            page.set("StartLimitIntervalSec", "0");
            return;
        }
        let Watch { interval, timeout, failures, delay } = spec.watch;
        let load = plan::reach_of(spec).load_timeout;
        let asked = interval.saturating_add(timeout).saturating_mul(failures);
        let all = [load, delay, asked, self.grace(), RESTART_TIME];
        let one = all.into_iter().fold(Duration::ZERO, Duration::saturating_add);
        page.why(&format!(
            "After {START_BURST} starts it stays down, each as slow as may be: {} s to load, {} s until it is asked, {} s until it has",
            load.as_secs(),
            delay.as_secs(),
            asked.as_secs()
        ));
        page.why(&format!(
            "failed {failures} times, {} s to end, {} s until the next one.",
            self.grace().as_secs(),
            RESTART_TIME.as_secs()
        ));
        let all = one.saturating_mul(START_BURST).saturating_add(Duration::from_secs(60));
        let interval = all.min(LONGEST);
        page.set("StartLimitIntervalSec", &seconds(interval));
        page.set("StartLimitBurst", &START_BURST.to_string());
    }

    /// What must be there: its weights, its program.
    fn folders(&self) -> Vec<&Path> {
        let Spec { backend, model, .. } = self.spec;
        let is_file = !self.spec.is_container && backend.backend().models.is_file(model);
        let weights = is_file.then(|| Path::new(model)).or(self.spec.models_dir.as_deref());
        let all = weights.into_iter().chain(self.spec.program.as_deref());
        all.filter(|path| path.is_absolute()).collect()
    }

    fn life(&self, page: &mut Page) {
        let command = |prefix: &str, words: &[&str]| self.command(prefix, words);
        page.section("Service");
        page.why("Ready once it serves and is itself; a longer start while it loads; what it is doing stands in its status.");
        page.set("Type", "notify");
        page.why("From the commands below, not from its server.");
        page.set("NotifyAccess", "exec");
        page.why("From the first step to the main process: what is to be started, and the GPUs that were found.");
        page.set("FileDescriptorStoreMax", "4");
        page.why("Steps ('+') run with the manager's own rights, outside of the sandbox below: they write the registry, and end what is left over.");
        page.set("ExecStartPre", &command("+", &["step", "begin"]));
        page.set("ExecStart", &command("", &["exec"]));
        page.set("ExecStartPost", &command("+", &["step", "up"]));
        page.set("ExecStopPost", &command("+", &["step", "down"]));
        if self.spec.is_container {
            page.why("A container starts when somebody says so: not after its end, not after its engine's restart.");
            page.set("Restart", "no");
        } else {
            page.why("70 is a server that was unhealthy too often; 2 is a mistake that no restart mends.");
            page.set("Restart", "on-failure");
            page.set("RestartSec", &seconds(RESTART_TIME));
            page.set("RestartPreventExitStatus", "2");
        }
        page.why("SIGTERM to the main process, which ends its server by the ladder; SIGKILL to whatever is left then.");
        page.set("KillMode", "mixed");
        page.why(
            "Only of the main process's own loop. SIGTERM, so that it may still end its server.",
        );
        page.set("WatchdogSec", "60");
        page.set("WatchdogSignal", "SIGTERM");
        page.why(&format!(
            "The grace period of {} is {} s.",
            self.spec.backend,
            self.grace().as_secs()
        ));
        page.set("TimeoutStartSec", &seconds(self.grace() + START_TIME));
        page.set("TimeoutStopSec", &seconds(self.grace() + STOP_TIME));
    }

    /// `portreeve model [--config FILE] WORDS NAME`.
    fn command(&self, prefix: &str, words: &[&str]) -> String {
        let Surroundings { program, config, .. } = self.surroundings;
        let config = config
            .iter()
            .flat_map(|file| ["--config".to_owned(), argument(&file.to_string_lossy())]);
        let words = words.iter().map(|word| (*word).to_owned());
        let all: Vec<String> = [format!("{prefix}{}", quoted(program)), "model".to_owned()]
            .into_iter()
            .chain(config)
            .chain(words)
            .chain([argument(&self.model.0)])
            .collect();
        all.join(" ")
    }

    fn limits(&self, page: &mut Page) {
        let spec = self.spec;
        page.gap();
        if spec.is_container {
            page.why("The container's limits are its engine's to keep. These are of the process that stays with it, and of the steps.");
            page.set("MemoryMax", "512M");
            page.set("TasksMax", "128");
            return;
        }
        if let Some(bytes) = spec.memory_bytes {
            let margin = memory_margin(bytes);
            page.why("Above MemoryHigh= it is slowed down and its cache taken back, before MemoryMax= ends it.");
            page.set("MemoryMax", &amount(bytes));
            page.set("MemoryHigh", &amount(bytes - margin));
            page.why("A model in the swap answers nobody, and slows down everybody else.");
            page.set("MemorySwapMax", "0");
        }
        page.why("A worker that was killed for want of memory takes its server with it, which is started anew.");
        page.set("OOMPolicy", "stop");
        if let Some(milli) = spec.cpu_milli {
            page.set("CPUQuota", &percent(milli));
        }
        page.set("CPUWeight", "100");
        if self.is_systems() {
            page.set("IOWeight", "100");
        }
        page.set("TasksMax", &spec.pids.unwrap_or(TASKS).to_string());
        page.why("Of clients, and of weights in many files.");
        page.set("LimitNOFILE", "65536");
        page.why("Pinned memory is bounded by the memory that it may have.");
        page.set("LimitMEMLOCK", "infinity");
        page.why("A dump of a model is as large as the model.");
        page.set("LimitCORE", "0");
    }
}

/// What lies between the two limits: 4 GiB, or a sixteenth of a large limit, or an eighth of a small one.
fn memory_margin(bytes: u64) -> u64 {
    (4 * GIB).min(bytes / 8).max(bytes / 16)
}

/// Bytes with the largest unit that needs no fraction.
fn amount(bytes: u64) -> String {
    let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    let found = units.into_iter().find(|(_, shift)| bytes.is_multiple_of(1 << shift));
    found.map_or(bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// Of one processor; systemd reads two places.
fn percent(milli: u32) -> String {
    match (milli / 10, milli % 10) {
        (whole, 0) => format!("{whole}%"),
        (whole, tenth) => format!("{whole}.{tenth}%"),
    }
}

/// Rounded up.
fn seconds(time: Duration) -> String {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).to_string()
}
