//! GPUs and who holds them, as they were seen.

use std::fmt;

use super::Seen;
use crate::ident::{GpuName, Pid};

/// Who makes a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuVendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// Intel.
    Intel,
}

impl fmt::Display for GpuVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvidia => "NVIDIA",
            Self::Amd => "AMD",
            Self::Intel => "Intel",
        })
    }
}

/// Who told of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuSource {
    /// NVIDIA's management library (NVML).
    Nvml,
    /// `nvidia-smi`, where the library gave no answer.
    NvidiaSmi,
    /// The device numbers of open files, where neither did: who, but not how much.
    Devices,
    /// The kernel: `/sys/class/kfd`, `/sys/class/drm` and the `drm-` lines of `/proc/PID/fdinfo` (drm-usage-stats.rst).
    Kernel,
}

impl GpuSource {
    /// Whether it tells of GPUs of this vendor.
    pub fn tells_of(self, vendor: GpuVendor) -> bool {
        match self {
            Self::Nvml | Self::NvidiaSmi | Self::Devices => vendor == GpuVendor::Nvidia,
            Self::Kernel => vendor != GpuVendor::Nvidia,
        }
    }
}

impl fmt::Display for GpuSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvml => "NVML",
            Self::NvidiaSmi => "nvidia-smi",
            Self::Devices => "device numbers of open files",
            Self::Kernel => "the kernel's sysfs and fdinfo",
        })
    }
}

/// A GPU's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// All of it.
    pub total_bytes: u64,
    /// What a new process can have.
    pub free_bytes: u64,
}

impl GpuMemory {
    /// What is taken, by processes or by the driver.
    pub fn used_bytes(self) -> u64 {
        self.total_bytes.saturating_sub(self.free_bytes)
    }
}

/// How a process uses a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GpuUse {
    /// It computes there: a CUDA or KFD context, or memory of a render node.
    Compute,
    /// It computes through NVIDIA's Multi-Process Service.
    Mps,
    /// It only draws.
    Graphics,
}

/// One process's hold on one GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuHolding {
    /// Who.
    pub pid: Pid,
    /// How.
    pub kind: GpuUse,
    /// How much memory it has there; none where the driver does not say: it holds the GPU all the same.
    pub memory_bytes: Option<u64>,
}

/// One GPU, or one part of a GPU that is split by MIG (Multi-Instance GPU).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Who makes it.
    pub vendor: GpuVendor,
    /// Its number on this host: NVIDIA's as NVML counts, then AMD's and Intel's by bus. A part has its GPU's.
    pub index: u32,
    /// `GPU-…`, `MIG-…`, in lower case behind the prefix; only NVIDIA's have one.
    pub uuid: Option<String>,
    /// Its place on the PCI bus, `0000:01:00.0`. A part has its GPU's.
    pub bus: Option<String>,
    /// `NVIDIA H200`; empty where nobody says.
    pub name: String,
    /// For a part of a split GPU: which, from 0.
    pub part: Option<u32>,
    /// It is split into parts, which have the processes and the memory.
    pub is_split: bool,
    /// It draws on the processor's memory and has none of its own; `all` does not mean it.
    pub is_integrated: bool,
    /// Its memory. `Known(None)`: the driver answers that it does not count it, as where GPU and processor share one.
    pub memory: Seen<Option<GpuMemory>>,
    /// Who holds it, each process and use once; infrastructure (display servers, monitors, MPS servers) among them.
    pub holdings: Vec<GpuHolding>,
    /// Why more may hold it than are seen; none = all are seen.
    pub may_miss: Option<String>,
    /// Who told all this.
    pub source: GpuSource,
}

impl Gpu {
    /// `GPU 0`, `GPU 0 part 1`.
    pub fn label(&self) -> String {
        match self.part {
            Some(part) => format!("GPU {} part {part}", self.index),
            None => format!("GPU {}", self.index),
        }
    }

    /// How a command line names it.
    pub fn command_name(&self) -> GpuName {
        match (self.part, &self.uuid) {
            (Some(_), Some(uuid)) => GpuName::Uuid(uuid.clone()),
            (_, _) => GpuName::Index(self.index),
        }
    }
}

/// `40.1 GiB`, `512 MiB`.
pub fn gibibytes(bytes: u64) -> String {
    let mebibytes = bytes >> 20;
    if mebibytes < 1024 {
        return format!("{mebibytes} MiB");
    }
    let tenths = mebibytes * 10 / 1024;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// The GPUs of the host and who holds them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gpus {
    /// Each GPU that was found, a split one before its parts.
    pub all: Vec<Gpu>,
    /// What went wrong on the way to an answer, though another way may have led to one: a driver's library that hangs.
    pub trouble: Vec<GpuTrouble>,
    /// Why there may be more GPUs than these; none = these are all.
    pub may_miss: Option<String>,
}

/// A source of facts about GPUs that should have answered and did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuTrouble {
    /// Which.
    pub source: GpuSource,
    /// What came instead, in a sentence's second half: `did not answer within 3 s`.
    pub why: String,
    /// What would help.
    pub remedy: Option<String>,
}
