//! What a model uses now: memory, processor time, GPU memory.

use std::{collections::BTreeSet, fs, time::Duration};

use super::{receipt, receipt::Receipt, service::Service};
use crate::{
    config::settings::Settings,
    host::Host,
    ident::Pid,
    observe::{cgroup, gpus::Reader},
    pipeline,
    snapshot::Gpus,
};

/// What is none is not counted by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time since its start.
    pub cpu_time: Option<Duration>,
    /// GPU memory in bytes.
    pub gpu_bytes: Option<u64>,
}

/// Looks at what several models use; the GPUs are looked at once, where one of the models is to have any.
pub struct Meter<'a> {
    host: &'a Host,
    gpus: Option<Gpus>,
}

impl<'a> Meter<'a> {
    /// Looks at the GPUs, if they matter.
    pub fn new(host: &'a Host, settings: &Settings, wants_gpus: bool) -> Self {
        let gpus = wants_gpus.then(|| Reader::new(pipeline::sources(settings)).look(host));
        Self { host, gpus }
    }

    /// Of a model that was started: as a unit, in a container, or both.
    pub fn read(&self, unit: Option<&Service>, receipt: Option<&Receipt>) -> Usage {
        let group = match receipt.filter(|receipt| receipt.container.is_some()) {
            // Its unit has its main process only.
            Some(receipt) => self.group_of(receipt),
            None => unit.map(|unit| unit.control_group.clone()).filter(|group| !group.is_empty()),
        };
        let Some(group) = group else { return Usage::default() };
        let read = |file: &str| {
            let text = self.host.read_text(&format!("sys/fs/cgroup{group}/{file}"));
            text.known().cloned()
        };
        // cgroup v2 (Documentation/admin-guide/cgroup-v2.rst): `usage_usec` of cpu.stat.
        let cpu = read("cpu.stat").and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
            line.and_then(|number| number.parse().ok()).map(Duration::from_micros)
        });
        Usage {
            memory_bytes: read("memory.current").and_then(|text| text.trim().parse().ok()),
            cpu_time: cpu,
            gpu_bytes: self.gpus.as_ref().and_then(|gpus| held(gpus, &self.processes(&group))),
        }
    }

    /// The control group of a container's main process, while it is that process.
    fn group_of(&self, receipt: &Receipt) -> Option<String> {
        let main = receipt.process.as_ref()?;
        receipt::key_of(main.key.pid).filter(|now| now.is_same(&main.key))?;
        let file = self.host.of_process(main.key.pid, "cgroup");
        let group = cgroup::parse(&fs::read_to_string(file).ok()?)?;
        Some(group.path)
    }

    /// All in a control group and below it.
    fn processes(&self, group: &str) -> BTreeSet<Pid> {
        let mut all = BTreeSet::new();
        let mut folders = vec![self.host.path(format!("sys/fs/cgroup{group}"))];
        while let Some(folder) = folders.pop() {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            all.extend(text.lines().filter_map(|line| line.parse().ok()).map(Pid));
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let is_folder =
                |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
            folders.extend(entries.filter(is_folder).map(|entry| entry.path()));
        }
        all
    }
}

/// None where a driver does not say how much one of them has.
fn held(gpus: &Gpus, pids: &BTreeSet<Pid>) -> Option<u64> {
    let of_gpu = gpus.all.iter().filter(|gpu| !gpu.is_split).flat_map(|gpu| &gpu.holdings);
    of_gpu.filter(|holding| pids.contains(&holding.pid)).map(|holding| holding.memory_bytes).sum()
}
