//! NVIDIA's management library (NVML) and the process of ours that loads it. A process, not a thread: one that is stuck in the
//! driver (state D) could be neither ended nor waited for, and with a thread that would be all of us.

use std::{
    ffi::OsStr,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
};

use nvml_wrapper::{
    Device, Nvml, enums::device::UsedGpuMemory, error::NvmlError,
    struct_wrappers::device::ProcessInfo,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, set_parent_process_death_signal},
};
use serde::{Deserialize, Serialize};

use super::{
    devices::{Information, read_information},
    library, uuid,
};
use crate::{
    host::Host,
    ident::{Pid, pci_address},
    snapshot::{Gpu, GpuHolding, GpuMemory, GpuSource, GpuUse, GpuVendor, Seen},
    sys,
};

/// The name under which a loader finds it.
pub const LIBRARY: &str = "libnvidia-ml.so.1";
/// The questions, a line each: what NVML knows, and what the kernel driver tells of its cards.
pub(super) const LOOK: &str = "look\n";
pub(super) const INFORMATION: &str = "information\n";
/// Processes may start between NVML's count and its list.
const TRIES: usize = 3;

/// The answer, one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Gpus(Vec<Told>),
    Information(Information),
    Trouble { why: String, remedy: Option<String> },
}

/// A GPU, or a part of one, as it goes through the pipe.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Told {
    index: u32,
    uuid: Option<String>,
    bus: Option<String>,
    name: String,
    part: Option<u32>,
    is_split: bool,
    memory: ToldMemory,
    holdings: Vec<ToldHolding>,
    may_miss: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum ToldMemory {
    Bytes { total: u64, free: u64 },
    NotCounted,
    Unreadable(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum ToldUse {
    Compute,
    Mps,
    Graphics,
}

#[derive(Debug, Serialize, Deserialize)]
struct ToldHolding {
    pid: u32,
    kind: ToldUse,
    bytes: Option<u64>,
}

impl Told {
    pub(super) fn gpu(self) -> Gpu {
        let memory = match self.memory {
            ToldMemory::Bytes { total, free } => {
                Seen::Known(Some(GpuMemory { total_bytes: total, free_bytes: free }))
            }
            ToldMemory::NotCounted => Seen::Known(None),
            ToldMemory::Unreadable(why) => Seen::Unreadable(why),
        };
        let holdings = self.holdings.into_iter().map(|held| GpuHolding {
            pid: Pid(held.pid),
            kind: match held.kind {
                ToldUse::Compute => GpuUse::Compute,
                ToldUse::Mps => GpuUse::Mps,
                ToldUse::Graphics => GpuUse::Graphics,
            },
            memory_bytes: held.bytes,
        });
        Gpu {
            vendor: GpuVendor::Nvidia,
            index: self.index,
            uuid: self.uuid,
            bus: self.bus,
            name: self.name,
            part: self.part,
            is_split: self.is_split,
            is_integrated: false,
            memory,
            holdings: holdings.collect(),
            may_miss: self.may_miss,
            source: GpuSource::Nvml,
        }
    }
}

/// The body of the process that asks NVML: answers each question with one line, until there is nobody to answer. The library
/// is this one, or the one that the loader or the usual folders have; it is loaded at the first `look`.
pub fn serve(
    path: Option<&Path>,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
) -> io::Result<()> {
    // Whoever asked may end while the driver keeps us; the end that came before this call shows as an end of the input, or
    // as an output that nobody reads.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut nvml: Option<Nvml> = None;
    let mut line = String::new();
    while input.read_line(&mut line)? != 0 && !is_deserted() {
        let reply = match line.as_str() {
            LOOK => answer(&mut nvml, path).unwrap_or_else(|trouble| trouble),
            INFORMATION => Reply::Information(read_information(&Host::live())),
            _ => return Err(io::Error::other("that is no question")),
        };
        line.clear();
        serde_json::to_writer(&mut *output, &reply)?;
        output.write_all(b"\n")?;
        output.flush()?;
    }
    // The kernel takes back what we have open; a shutdown may hang.
    std::mem::forget(nvml);
    Ok(())
}

/// What NVML knows; else the trouble.
fn answer(nvml: &mut Option<Nvml>, path: Option<&Path>) -> Result<Reply, Reply> {
    let nvml = match nvml {
        Some(nvml) => nvml,
        None => nvml.insert(load(path)?),
    };
    look(nvml).map(Reply::Gpus).map_err(|error| trouble(&error))
}

/// Whether nobody reads what we say.
fn is_deserted() -> bool {
    let output = io::stdout();
    let mut fds = [PollFd::new(&output, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now))
        .is_ok_and(|_| fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR)))
}

/// Loads and initialises it; drivers that nobody uses are set up by this first.
fn load(path: Option<&Path>) -> Result<Nvml, Reply> {
    let from = |path: &OsStr| Nvml::builder().lib_path(path).init();
    if let Some(path) = path {
        return from(path.as_os_str()).map_err(|error| trouble(&error));
    }
    match from(OsStr::new(LIBRARY)) {
        Err(NvmlError::LibloadingError(first)) => {
            let Some(found) = library(&Host::live()) else {
                return Err(Reply::Trouble {
                    why: format!("is not here: {first}"),
                    remedy: Some(format!(
                        "install the driver's {LIBRARY}, or name its path at 'gpus: nvml'"
                    )),
                });
            };
            load(Some(&PathBuf::from("/").join(found)))
        }
        loaded => loaded.map_err(|error| trouble(&error)),
    }
}

/// What an error of the whole library means.
fn trouble(error: &NvmlError) -> Reply {
    let remedy = if let NvmlError::LibloadingError(_) = error {
        Some("name the library of the driver at 'gpus: nvml'")
    } else if let NvmlError::LibRmVersionMismatch = error {
        Some(
            "the driver was updated under the running kernel module: reboot, or reload the nvidia modules",
        )
    } else if let NvmlError::DriverNotLoaded = error {
        Some("load the driver: modprobe nvidia")
    } else if let NvmlError::NoPermission = error {
        Some("let this process open /dev/nvidiactl and /dev/nvidia0, /dev/nvidia1, …")
    } else {
        None
    };
    Reply::Trouble { why: said(error), remedy: remedy.map(str::to_owned) }
}

/// As the second half of a sentence about NVML.
fn said(error: &NvmlError) -> String {
    if let NvmlError::LibRmVersionMismatch = error {
        "is of another version than the loaded kernel module".to_owned()
    } else if let NvmlError::LibloadingError(why) = error {
        format!("cannot be loaded: {why}")
    } else if let NvmlError::FailedToLoadSymbol(what) = error {
        format!("lacks a function: {what}")
    } else {
        format!("says: {error}")
    }
}

fn look(nvml: &Nvml) -> Result<Vec<Told>, NvmlError> {
    let mut all = Vec::new();
    for index in 0..nvml.device_count()? {
        match nvml.device_by_index(index) {
            Ok(device) => tell(&device, index, &mut all)?,
            Err(error) => all.push(Told::unread(index, &error)),
        }
    }
    Ok(all)
}

impl Told {
    /// A GPU that is counted and cannot be reached.
    fn unread(index: u32, error: &NvmlError) -> Self {
        Self {
            index,
            uuid: None,
            bus: None,
            name: String::new(),
            part: None,
            is_split: false,
            memory: ToldMemory::Unreadable(format!("NVML {}", said(error))),
            holdings: Vec::new(),
            may_miss: Some(format!("NVML {}", said(error))),
        }
    }

    fn miss(&mut self, why: String) {
        self.may_miss.get_or_insert(why);
    }
}

/// A GPU and, where it is split, its parts behind it.
fn tell(device: &Device<'_>, index: u32, all: &mut Vec<Told>) -> Result<(), NvmlError> {
    let mut gpu = tell_one(device, index)?;
    gpu.bus = device.pci_info().ok().and_then(|pci| pci_address(&pci.bus_id));
    let mut parts = Vec::new();
    match device.mig_mode() {
        Ok(mode) if mode.current != 0 => {
            gpu.is_split = true;
            parts = tell_parts(device, &mut gpu)?;
        }
        Ok(_) | Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => {}
        Err(error) => {
            gpu.miss(format!("whether it is split, NVML does not tell: it {}", said(&error)));
        }
    }
    // NVML lists under a split GPU what its parts hold, too.
    gpu.holdings.retain(|held| {
        !parts.iter().any(|part: &Told| part.holdings.iter().any(|other| other.pid == held.pid))
    });
    all.push(gpu);
    all.append(&mut parts);
    Ok(())
}

fn tell_parts(device: &Device<'_>, gpu: &mut Told) -> Result<Vec<Told>, NvmlError> {
    let most = match device.mig_device_count() {
        Ok(most) => most,
        Err(error) => {
            gpu.miss(format!("its parts, NVML does not tell: it {}", said(&error)));
            return Ok(Vec::new());
        }
    };
    let mut parts = Vec::new();
    for number in 0..most {
        match device.mig_device_by_index(number) {
            Ok(part) => {
                let mut told = tell_one(&part, gpu.index)?;
                (told.part, told.bus) = (Some(number), gpu.bus.clone());
                parts.push(told);
            }
            // There may be fewer parts than there is room for.
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => {
                gpu.miss(format!("its part {number}, NVML does not tell: it {}", said(&error)));
            }
        }
    }
    Ok(parts)
}

/// Fails only where the library cannot list processes at all.
fn tell_one(device: &Device<'_>, index: u32) -> Result<Told, NvmlError> {
    let mut told = Told {
        index,
        uuid: device.uuid().ok().map(|text| uuid(&text)),
        bus: None,
        name: device.name().unwrap_or_default(),
        part: None,
        is_split: false,
        memory: memory(device),
        holdings: Vec::new(),
        may_miss: None,
    };
    let mut knows_no_mps = false;
    for (kind, list) in [
        (ToldUse::Mps, mps as fn(&Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError>),
        (ToldUse::Compute, compute),
        (ToldUse::Graphics, graphics),
    ] {
        let mut listed = list(device);
        for _ in 1..TRIES {
            if !matches!(listed, Err(NvmlError::InsufficientSize(_))) {
                break;
            }
            listed = list(device);
        }
        match (listed, kind) {
            (Ok(processes), _) => processes.iter().for_each(|process| told.hold(kind, process)),
            (Err(error @ NvmlError::FailedToLoadSymbol(_)), ToldUse::Compute) => return Err(error),
            // A driver before 510, and below.
            (Err(NvmlError::FailedToLoadSymbol(_)), ToldUse::Mps | ToldUse::Graphics) => {
                knows_no_mps |= kind == ToldUse::Mps;
            }
            (Err(error), _) => {
                told.miss(format!("its processes, NVML does not list: it {}", said(&error)));
            }
        }
    }
    // Nobody computes through MPS without its server, which computes here itself.
    if knows_no_mps && told.holdings.iter().any(|held| is_mps_server(held.pid)) {
        told.miss("this driver does not list who computes through MPS".to_owned());
    }
    Ok(told)
}

fn is_mps_server(pid: u32) -> bool {
    let name = Host::live().read_text(&format!("proc/{pid}/comm"));
    name.known().is_none_or(|name| name.starts_with("nvidia-cuda-mps"))
}

impl Told {
    fn hold(&mut self, kind: ToldUse, process: &ProcessInfo) {
        if process.pid == 0 {
            self.miss("NVML lists a process without its number".to_owned());
            return;
        }
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // What computes through MPS may be listed as computing, too.
        let is_twice = |held: &ToldHolding| {
            let is_same =
                held.kind == kind || (held.kind, kind) == (ToldUse::Mps, ToldUse::Compute);
            held.pid == process.pid && is_same
        };
        match self.holdings.iter_mut().find(|held| is_twice(held)) {
            // A part of a GPU may list a process once for each of its instances.
            Some(held) if held.kind == kind => {
                held.bytes = held.bytes.zip(bytes).map(|(a, b)| a.saturating_add(b));
            }
            Some(_) => {}
            None => self.holdings.push(ToldHolding { pid: process.pid, kind, bytes }),
        }
    }
}

fn compute(device: &Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError> {
    match device.running_compute_processes() {
        Err(NvmlError::FailedToLoadSymbol(_)) => device.running_compute_processes_v2(),
        listed => listed,
    }
}

/// Where the GPU cannot do it, nobody does.
fn mps(device: &Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError> {
    none_where_unsupported(device.mps_running_compute_processes())
}

fn graphics(device: &Device<'_>) -> Result<Vec<ProcessInfo>, NvmlError> {
    let listed = match device.running_graphics_processes() {
        Err(NvmlError::FailedToLoadSymbol(_)) => device.running_graphics_processes_v2(),
        listed => listed,
    };
    none_where_unsupported(listed)
}

fn none_where_unsupported(
    listed: Result<Vec<ProcessInfo>, NvmlError>,
) -> Result<Vec<ProcessInfo>, NvmlError> {
    match listed {
        Err(NvmlError::NotSupported) => Ok(Vec::new()),
        listed => listed,
    }
}

fn memory(device: &Device<'_>) -> ToldMemory {
    /// `NVML_ERROR_ARGUMENT_VERSION_MISMATCH`: it knows the function and not this form of the answer.
    const OTHER_VERSION: u32 = 25;
    let second = device.memory_info().map(|memory| (memory.total, memory.free));
    let answer = match second {
        Err(NvmlError::FailedToLoadSymbol(_) | NvmlError::UnexpectedVariant(OTHER_VERSION)) => {
            sys::nvml::memory(device)
        }
        answer => answer,
    };
    match answer {
        Ok((total, free)) => ToldMemory::Bytes { total, free },
        // Where the GPU and the processor share one memory (Grace Blackwell GB10, Jetson).
        Err(NvmlError::NotSupported) => ToldMemory::NotCounted,
        Err(error) => ToldMemory::Unreadable(format!("NVML {}", said(&error))),
    }
}
