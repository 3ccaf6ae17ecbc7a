//! GPUs of AMD and Intel: all that is asked about them the kernel tells. Which there are and AMD's memory: `/sys/class/drm`.
//! Who computes: `/sys/class/kfd` (AMD's compute driver) and the DRM clients of `/proc/PID/fdinfo`.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    OWN_NAMESPACE, bare,
    devices::folder,
    files::{Client, Walk},
};
use crate::{
    host::Host,
    ident::{Pid, pci_address},
    snapshot::{Gpu, GpuHolding, GpuMemory, GpuSource, GpuUse, GpuVendor, Seen},
};

const DRM: &str = "sys/class/drm";
const KFD: &str = "sys/class/kfd/kfd";
/// What a processor's own graphics keep of its memory for themselves is 512 MiB mostly; cards have more.
const LEAST_OWN_MEMORY: u64 = 1 << 30;
/// Where Intel's integrated graphics sit on every processor that has them (function 0 of device 2 of the first bus).
const INTEL_INTEGRATED: &str = "0000:00:02.0";

/// A GPU as `/sys/class/drm` shows it.
#[derive(Debug)]
pub(super) struct Found {
    vendor: GpuVendor,
    bus: String,
    driver: String,
    /// Its nodes in `/dev/dri`: `renderD128`, `card0`.
    nodes: BTreeSet<String>,
}

/// Which GPUs there are, AMD's before Intel's, each by bus.
pub(super) fn observe(host: &Host, may_miss: &mut Option<String>) -> Vec<Found> {
    let names = match folder(host, DRM) {
        Seen::Known(names) => names,
        Seen::Gone => return Vec::new(), // a kernel without such drivers
        Seen::Denied | Seen::Unreadable(_) => {
            may_miss.get_or_insert(format!("'/{DRM}' cannot be read"));
            return Vec::new();
        }
    };
    let mut found: BTreeMap<(GpuVendor, String), Found> = BTreeMap::new();
    // `card0-HDMI-A-1` is a connector.
    let is_node = |name: &&String| {
        let number = name.strip_prefix("renderD").or_else(|| name.strip_prefix("card"));
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    for node in names.iter().filter(is_node) {
        let read = |file: &str| host.read_text(&format!("{DRM}/{node}/device/{file}"));
        let (vendor, uevent) = match (read("vendor"), read("uevent")) {
            (Seen::Known(vendor), Seen::Known(uevent)) => (vendor, uevent),
            // A node that is on no bus: a virtual one, or a further partition of a GPU that is counted by its first.
            (Seen::Gone, _) => continue,
            _ => {
                may_miss.get_or_insert(format!("'/{DRM}/{node}' cannot be read"));
                continue;
            }
        };
        let value = |key: &str| uevent.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        let (driver, bus) = (value("DRIVER"), value("PCI_SLOT_NAME").and_then(pci_address));
        let vendor = match (vendor.trim(), driver) {
            ("0x1002", Some("amdgpu")) => GpuVendor::Amd,
            ("0x8086", Some("i915" | "xe")) => GpuVendor::Intel,
            _ => continue,
        };
        let (Some(bus), Some(driver)) = (bus, driver) else { continue };
        let new = || Found {
            vendor,
            bus: bus.clone(),
            driver: driver.to_owned(),
            nodes: BTreeSet::new(),
        };
        found.entry((vendor, bus.clone())).or_insert_with(new).nodes.insert(node.clone());
    }
    // A card without a render node only drives displays.
    found.retain(|_, gpu| gpu.nodes.iter().any(|node| node.starts_with("renderD")));
    found.into_values().collect()
}

/// These GPUs with their memory and holders, in the same order.
pub(super) fn gpus(
    host: &Host,
    found: Vec<Found>,
    walk: &Walk,
    is_first_pid_namespace: bool,
) -> Vec<Gpu> {
    let has_amd = found.iter().any(|gpu| gpu.vendor == GpuVendor::Amd);
    let kfd = if has_amd { kfd(host) } else { Kfd::default() };
    found
        .into_iter()
        .map(|found| {
            let mut gpu = bare(found.vendor, GpuSource::Kernel, "");
            match found.vendor {
                GpuVendor::Amd => {
                    let memory = amd_memory(host, &found);
                    let total = memory.known().map(|memory| memory.total_bytes);
                    gpu.is_integrated = total.is_some_and(|total| total < LEAST_OWN_MEMORY);
                    gpu.memory = memory.map(|memory| (!gpu.is_integrated).then_some(memory));
                    if is_first_pid_namespace {
                        gpu.holdings = kfd.holdings(&found.bus);
                        gpu.may_miss.clone_from(&kfd.may_miss);
                    } else {
                        gpu.may_miss = Some(OWN_NAMESPACE.to_owned());
                    }
                }
                GpuVendor::Intel | GpuVendor::Nvidia => {
                    gpu.is_integrated = found.bus == INTEL_INTEGRATED;
                    gpu.memory = if gpu.is_integrated {
                        Seen::Known(None)
                    } else {
                        let why =
                            format!("the driver '{}' does not tell how much is free", found.driver);
                        Seen::Unreadable(why)
                    };
                }
            }
            add_clients(&mut gpu, &found, walk);
            gpu.name = format!("{} GPU", found.vendor);
            gpu.bus = Some(found.bus);
            gpu
        })
        .collect()
}

/// DRM clients that have memory of the GPU, or of whom the driver does not say and that have had it do something. To open it
/// is not to hold it. Who is known to compute there by another way is not listed twice.
fn add_clients(gpu: &mut Gpu, found: &Found, walk: &Walk) {
    let mut silent = 0;
    for (&pid, files) in &walk.of {
        silent += usize::from(!files.silent.is_disjoint(&found.nodes));
        let clients = files.drm.iter().filter(|((bus, _), _)| *bus == found.bus);
        let holding: Vec<&Client> = clients
            .map(|(_, client)| client)
            .filter(|client| client.bytes.map_or(client.has_run, |bytes| bytes > 0))
            .collect();
        if holding.is_empty() || gpu.holdings.iter().any(|held| held.pid == pid) {
            continue;
        }
        let is_render = holding.iter().any(|client| client.is_render);
        let kind = if is_render { GpuUse::Compute } else { GpuUse::Graphics };
        let memory_bytes = holding.iter().map(|client| client.bytes).sum();
        gpu.holdings.push(GpuHolding { pid, kind, memory_bytes });
    }
    if silent > 0 {
        let why = format!(
            "{silent} processes have it open, and this kernel does not tell what they do there"
        );
        gpu.may_miss.get_or_insert(why);
    }
}

/// `mem_info_vram_total` and `mem_info_vram_used` (Documentation/gpu/amdgpu/driver-misc.rst), bytes.
fn amd_memory(host: &Host, found: &Found) -> Seen<GpuMemory> {
    let node = found.nodes.iter().find(|node| node.starts_with("renderD"));
    let node = node.map(String::as_str).unwrap_or_default();
    let read = |file: &str| {
        let text = host.read_text(&format!("{DRM}/{node}/device/{file}"));
        text.parse(|text| text.trim().parse::<u64>().ok())
    };
    match (read("mem_info_vram_total"), read("mem_info_vram_used")) {
        (Seen::Known(total_bytes), Seen::Known(used)) => {
            let free_bytes = total_bytes.saturating_sub(used);
            Seen::Known(GpuMemory { total_bytes, free_bytes })
        }
        (Seen::Known(_), other) | (other, _) => {
            other.map(|_| GpuMemory { total_bytes: 0, free_bytes: 0 })
        }
    }
}

/// Who computes on AMD's GPUs.
#[derive(Debug, Default)]
struct Kfd {
    /// By bus and process; how much memory, where the kernel tells.
    held: BTreeMap<(String, Pid), Option<u64>>,
    may_miss: Option<String>,
}

impl Kfd {
    fn holdings(&self, bus: &str) -> Vec<GpuHolding> {
        let of_bus = self.held.iter().filter(|((of, _), _)| of == bus);
        let holding = of_bus.map(|((_, pid), &memory_bytes)| GpuHolding {
            pid: *pid,
            kind: GpuUse::Compute,
            memory_bytes,
        });
        holding.collect()
    }

    fn refuse<T>(&mut self, path: &str, seen: &Seen<T>) {
        if let Seen::Denied | Seen::Unreadable(_) = seen {
            self.may_miss.get_or_insert(format!("'/{path}' cannot be read"));
        }
    }
}

/// `/sys/class/kfd/kfd/proc/PID` is there while a process has `/dev/kfd` open; `vram_GPU` in it is how many bytes it has of the
/// GPU of this `gpu_id` (`kfd_procfs_show`, drivers/gpu/drm/amd/amdkfd/kfd_process.c). The pids are the first namespace's.
fn kfd(host: &Host) -> Kfd {
    let mut kfd = Kfd::default();
    let buses = buses_of_gpu_ids(host, &mut kfd);
    let processes = format!("{KFD}/proc");
    let pids = folder(host, &processes);
    kfd.refuse(&processes, &pids);
    for name in pids.known().into_iter().flatten() {
        let Ok(pid) = name.parse().map(Pid) else { continue };
        let path = format!("{processes}/{name}");
        let queues = queues(host, &path, &mut kfd);
        for (id, bus) in &buses {
            let file = format!("{path}/vram_{id}");
            let bytes = host.read_text(&file).parse(|text| text.trim().parse::<u64>().ok());
            kfd.refuse(&file, &bytes);
            let bytes = bytes.known().copied();
            // Every process of this driver has an entry for every GPU.
            if bytes.is_some_and(|bytes| bytes > 0) || queues.contains(id) {
                let held = kfd.held.entry((bus.clone(), pid)).or_insert(Some(0));
                *held = held.zip(bytes).map(|(before, more)| before.saturating_add(more));
            }
        }
    }
    kfd
}

/// The GPUs on which a process has queues: `queues/N/gpuid`.
fn queues(host: &Host, path: &str, kfd: &mut Kfd) -> BTreeSet<String> {
    let path = format!("{path}/queues");
    let names = folder(host, &path);
    kfd.refuse(&path, &names);
    let mut ids = BTreeSet::new();
    for name in names.known().into_iter().flatten() {
        let file = format!("{path}/{name}/gpuid");
        let id = host.read_text(&file);
        kfd.refuse(&file, &id);
        ids.extend(id.known().map(|id| id.trim().to_owned()));
    }
    ids
}

/// `gpu_id` → bus. A GPU that is split into partitions has several.
fn buses_of_gpu_ids(host: &Host, kfd: &mut Kfd) -> BTreeMap<String, String> {
    let nodes = format!("{KFD}/topology/nodes");
    let names = folder(host, &nodes);
    kfd.refuse(&nodes, &names);
    let mut buses = BTreeMap::new();
    for name in names.known().into_iter().flatten() {
        let (id, properties) =
            (format!("{nodes}/{name}/gpu_id"), format!("{nodes}/{name}/properties"));
        let (id_seen, properties_seen) = (host.read_text(&id), host.read_text(&properties));
        kfd.refuse(&id, &id_seen);
        let id = id_seen.known().map(|id| id.trim().to_owned()).unwrap_or_default();
        // Processors are nodes, too.
        if id.is_empty() || id == "0" {
            continue;
        }
        kfd.refuse(&properties, &properties_seen);
        if let Some(bus) = properties_seen.known().and_then(|text| bus_of(text)) {
            buses.insert(id, bus);
        }
    }
    buses
}

/// `domain` and `location_id`: bus, device and function as PCI packs them into 16 bits; above them a partition's number
/// (`kfd_topology_add_device`, drivers/gpu/drm/amd/amdkfd/kfd_topology.c).
pub(super) fn bus_of(properties: &str) -> Option<String> {
    let value = |wanted: &str| {
        let mut lines = properties.lines().filter_map(|line| line.split_once(' '));
        lines
            .find(|(key, _)| *key == wanted)
            .and_then(|(_, value)| value.trim().parse::<u32>().ok())
    };
    let (domain, place) = (value("domain").unwrap_or_default(), value("location_id")?);
    let (bus, device, function) = ((place >> 8) & 0xff, (place >> 3) & 0x1f, place & 7);
    pci_address(&format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}
