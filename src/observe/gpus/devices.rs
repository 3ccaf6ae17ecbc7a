//! NVIDIA's GPUs without any library: which there are, and by the device numbers of open files who computes on them. Who, but
//! not how much.

use std::{collections::BTreeMap, fs, path::Path};

use super::{bare, files::Walk, uuid};
use crate::{
    host::{Host, seen},
    ident::pci_address,
    snapshot::{Gpu, GpuHolding, GpuSource, GpuUse, GpuVendor, Seen},
};

/// The major number of `/dev/nvidia0`, `/dev/nvidia1`, … (`NV_MAJOR_DEVICE_NUMBER`, nv.h of NVIDIA's kernel modules).
const MAJOR: u32 = 195;
const DRIVER: &str = "proc/driver/nvidia/gpus";
const PCI: &str = "sys/bus/pci/devices";

/// What the driver tells of a card, by the name of its folder: the text of `information`. NVIDIA's driver takes locks for it,
/// which one that is stuck holds for ever: the machine's is read by the process that asks NVML.
pub(super) type Information = BTreeMap<String, String>;

/// A GPU of NVIDIA's, as its kernel driver tells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Card {
    /// Its place on the PCI bus.
    pub(super) bus: Option<String>,
    /// `GPU-…`.
    uuid: Option<String>,
    /// `NVIDIA H200`; empty where nobody says.
    name: String,
    /// The N of `/dev/nvidiaN`.
    minor: Option<u32>,
}

/// The GPUs of NVIDIA's that the host has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Cards {
    /// Each that its kernel driver drives, by bus.
    pub(super) all: Vec<Card>,
    /// How many no driver drives, as after an update of the kernel without its modules.
    pub(super) undriven: u32,
    /// Why there may be more.
    pub(super) may_miss: Option<String>,
}

/// Which GPUs of NVIDIA's the kernel driver drives: by its own list, by the PCI bus, by the devices in `/dev`.
pub(super) fn cards(host: &Host) -> Cards {
    let mut cards = Cards::default();
    let mut by_bus: BTreeMap<String, Card> = BTreeMap::new();
    let driver = folder(host, DRIVER);
    let pci = folder(host, PCI);
    for (seen, path) in [(&driver, DRIVER), (&pci, PCI)] {
        if let Seen::Denied | Seen::Unreadable(_) = seen {
            cards.may_miss = Some(format!("'/{path}' cannot be read"));
        }
    }
    let mut undriven: Vec<String> = Vec::new();
    for name in pci.known().into_iter().flatten().filter(|name| is_nvidia(host, name)) {
        let Some(bus) = pci_address(name) else { continue };
        match driver_of(host, name) {
            Seen::Known(driver) if driver == "nvidia" => {
                by_bus.insert(bus.clone(), Card { bus: Some(bus), ..Card::default() });
            }
            // A virtual machine's, or a display's.
            Seen::Known(_) => {}
            Seen::Gone | Seen::Denied | Seen::Unreadable(_) => undriven.push(bus),
        }
    }
    for name in driver.known().into_iter().flatten() {
        let bus = pci_address(name);
        by_bus.insert(bus.clone().unwrap_or_else(|| name.clone()), Card { bus, ..Card::default() });
    }
    undriven.retain(|bus| !by_bus.contains_key(bus));
    if let Some(bus) = undriven.first() {
        let why =
            format!("no driver is seen for NVIDIA's GPU at {bus}: 'modprobe nvidia' loads it");
        cards.may_miss.get_or_insert(why);
    }
    cards.undriven = u32::try_from(undriven.len()).unwrap_or_default();
    cards.all = by_bus.into_values().collect();
    if cards.all.is_empty() {
        // WSL has no such driver, but its library; containers may show devices without either list.
        let minors = numbered(&host.path("dev"), "nvidia");
        cards.all = minors
            .into_iter()
            .map(|minor| Card { minor: Some(minor), ..Card::default() })
            .collect();
        if cards.all.is_empty()
            && host.path("dev/dxg").exists()
            && host.path("usr/lib/wsl/lib").is_dir()
        {
            cards.all.push(Card::default());
        }
    }
    if cards.all.is_empty() && !host.path("sys/class").is_dir() {
        cards.may_miss = Some("'/sys' is not mounted".to_owned());
    }
    cards
}

/// The names in a folder, sorted.
pub(super) fn folder(host: &Host, below_root: &str) -> Seen<Vec<String>> {
    let list = || {
        let mut names = Vec::new();
        for entry in fs::read_dir(host.path(below_root))? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    };
    seen(list())
}

/// A display or 3D controller (class 03) of NVIDIA's (vendor 10de).
fn is_nvidia(host: &Host, address: &str) -> bool {
    let read = |file: &str| host.read_text(&format!("{PCI}/{address}/{file}"));
    let is = |file: &str, start: &str| read(file).known().is_some_and(|t| t.starts_with(start));
    is("vendor", "0x10de") && is("class", "0x03")
}

/// The name of the driver that drives a device; gone where none does.
fn driver_of(host: &Host, address: &str) -> Seen<String> {
    let link = seen(fs::read_link(host.path(format!("{PCI}/{address}/driver"))));
    link.map(|to| {
        to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    })
}

/// What the driver tells of its cards.
pub(super) fn read_information(host: &Host) -> Information {
    let names = folder(host, DRIVER);
    let names = names.known().into_iter().flatten();
    let texts = names.map(|name| {
        let text = host.read_text(&format!("{DRIVER}/{name}/information"));
        (name.clone(), text.known().cloned().unwrap_or_default())
    });
    texts.collect()
}

/// Adds what the driver tells of them.
pub(super) fn describe(cards: &mut [Card], information: &Information) {
    for (name, text) in information {
        let bus = pci_address(name);
        if let Some(card) = cards.iter_mut().find(|card| card.bus.is_some() && card.bus == bus) {
            *card = Card { bus, ..described(text) };
        }
    }
}

/// `/proc/driver/nvidia/gpus/*/information`: `GPU UUID: \t GPU-…`.
fn described(text: &str) -> Card {
    let value = |wanted: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(key, _)| key.trim() == wanted)?;
        Some(value.trim()).filter(|value| !value.is_empty())
    };
    Card {
        bus: None,
        // While nobody has it open, the driver may not know and prints question marks.
        uuid: value("GPU UUID").filter(|text| !text.contains('?')).map(uuid),
        name: value("Model").unwrap_or_default().to_owned(),
        minor: value("Device Minor").and_then(|text| text.parse().ok()),
    }
}

/// The numbers behind a name: of `nvidia0` and `nvidia1`.
pub(super) fn numbered(folder: &Path, name: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u32> =
        names.filter_map(|entry| entry.strip_prefix(name)?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// These cards with their holders: who has both a card and `nvidia-uvm` open computes there; to open a card alone is what
/// displays, monitors and `nvidia-smi` do.
pub(super) fn gpus(
    host: &Host,
    cards: &[Card],
    walk: &Walk,
    may_miss: &mut Option<String>,
) -> Vec<Gpu> {
    let uvm = uvm_major(host);
    let mut gpus = Vec::new();
    for (index, card) in (0..).zip(cards) {
        let memory = "the device numbers of open files tell who holds it, not how much";
        let mut gpu = bare(GpuVendor::Nvidia, GpuSource::Devices, memory);
        gpu.index = index;
        (gpu.uuid, gpu.bus, gpu.name) = (card.uuid.clone(), card.bus.clone(), card.name.clone());
        match (card.minor, &uvm) {
            (None, _) => gpu.may_miss = Some("the number of its device is not known".to_owned()),
            (Some(minor), Seen::Known(uvm)) => gpu.holdings = holdings(walk, minor, *uvm),
            (Some(_), Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => {
                gpu.may_miss = Some("'/proc/devices' could not be read".to_owned());
            }
        }
        gpus.push(gpu);
    }
    if cards.iter().any(|card| is_split(host, card)) {
        let why = "the parts of a split GPU (MIG) cannot be told apart without NVIDIA's library";
        may_miss.get_or_insert(why.to_owned());
    }
    gpus
}

fn holdings(walk: &Walk, minor: u32, uvm: Option<u32>) -> Vec<GpuHolding> {
    let Some(uvm) = uvm else { return Vec::new() };
    let computing = walk.of.iter().filter(|(_, files)| {
        let has_uvm = files.nvidia.iter().any(|(major, _)| *major == uvm);
        has_uvm && files.nvidia.contains(&(MAJOR, minor))
    });
    computing
        .map(|(&pid, _)| GpuHolding { pid, kind: GpuUse::Compute, memory_bytes: None })
        .collect()
}

/// The major number of `/dev/nvidia-uvm`, which the kernel chooses; none while that module is not loaded, and then nobody
/// computes.
fn uvm_major(host: &Host) -> Seen<Option<u32>> {
    host.read_text("proc/devices").map(|text| {
        let mut lines = text.lines().filter_map(|line| line.trim().split_once(' '));
        let (major, _) = lines.find(|(_, name)| name.trim() == "nvidia-uvm")?;
        major.parse().ok()
    })
}

/// By the instances that the driver offers as capabilities: `/proc/driver/nvidia/capabilities/gpuN/mig/giM`.
fn is_split(host: &Host, card: &Card) -> bool {
    let Some(minor) = card.minor else { return false };
    let parts = host.path(format!("proc/driver/nvidia/capabilities/gpu{minor}/mig"));
    !numbered(&parts, "gi").is_empty()
}
