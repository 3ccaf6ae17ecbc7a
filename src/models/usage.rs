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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::snapshot::{Gpu, GpuHolding, GpuSource, GpuUse, GpuVendor, Seen};

    fn gpu(holdings: &[(u32, Option<u64>)]) -> Gpu {
        let holding = |&(pid, memory_bytes): &(u32, Option<u64>)| GpuHolding {
            pid: Pid(pid),
            kind: GpuUse::Compute,
            memory_bytes,
        };
        Gpu {
            vendor: GpuVendor::Nvidia,
            index: 0,
            uuid: None,
            bus: None,
            name: String::new(),
            part: None,
            is_split: false,
            is_integrated: false,
            memory: Seen::Known(None),
            holdings: holdings.iter().map(holding).collect(),
            may_miss: None,
            source: GpuSource::Nvml,
        }
    }

    fn service(control_group: &str) -> Service {
        Service {
            load_state: "loaded".to_owned(),
            active_state: "active".to_owned(),
            sub_state: "running".to_owned(),
            result: "success".to_owned(),
            status_text: String::new(),
            invocation_id: None,
            restarts: 0,
            needs_reload: false,
            control_group: control_group.to_owned(),
        }
    }

    fn write(folder: &Path, file: &str, text: &str) {
        let path = folder.join("sys/fs/cgroup/system.slice/m.service").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn what_a_unit_uses_is_what_all_in_its_control_group_use() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "cgroup.procs", "7\n8\n");
        write(folder.path(), "workers/cgroup.procs", "9\n");
        write(folder.path(), "memory.current", "1048576\n");
        write(folder.path(), "cpu.stat", "usage_usec 2500000\nuser_usec 1\n");
        let host = Host::fixture(folder.path());
        let usage = |holdings: &[(u32, Option<u64>)]| {
            let gpus = Some(Gpus { all: vec![gpu(holdings)], ..Gpus::default() });
            Meter { host: &host, gpus }.read(Some(&service("/system.slice/m.service")), None)
        };
        let expected = Usage {
            memory_bytes: Some(1 << 20),
            cpu_time: Some(Duration::from_millis(2500)),
            gpu_bytes: Some(30),
        };
        assert_eq!(usage(&[(7, Some(10)), (9, Some(20)), (10, Some(40))]), expected);
        assert_eq!(usage(&[]).gpu_bytes, Some(0));
        // How much one of them has is not known, so the sum is not.
        assert_eq!(usage(&[(7, Some(10)), (9, None)]).gpu_bytes, None);
        let nobody = Meter { host: &host, gpus: None };
        assert_eq!(nobody.read(None, None), Usage::default());
    }
}
