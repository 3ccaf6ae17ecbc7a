//! What tools and drivers of GPUs say: what is not understood is no free GPU.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use super::{devices, files, kernel, nvml::Reply, smi};
use crate::{ident::pci_address, snapshot::GpuVendor};

/// `nvidia-smi`'s columns, the answer of the process that asks NVIDIA's library, and what its driver tells of a card.
pub fn nvidia(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(gpus) = smi::read_gpus(&text) {
        assert_eq!(gpus.len(), text.lines().count(), "a line that is not understood is a trouble");
        for gpu in gpus {
            assert!(gpu.uuid.is_some_and(|uuid| uuid.starts_with("GPU-")));
            assert!(gpu.vendor == GpuVendor::Nvidia && gpu.holdings.is_empty());
        }
    }
    if let Ok(held) = smi::read_processes(&text) {
        assert_eq!(held.len(), text.lines().count());
        assert!(held.iter().all(|(_, holding)| holding.pid.0 != 0));
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(bytes) {
        let printed = serde_json::to_vec(&reply).unwrap_or_default();
        let again = serde_json::from_slice::<Reply>(&printed);
        let again = again.map(|again| serde_json::to_vec(&again).unwrap_or_default());
        assert_eq!(again.ok(), Some(printed));
        if let Reply::Gpus(told) = reply {
            drop(told.into_iter().map(super::nvml::Told::gpu).collect::<Vec<_>>());
        }
    }
    let mut cards = vec![devices::Card::default()];
    if let Some(card) = cards.first_mut() {
        card.bus = pci_address("0000:01:00.0");
    }
    let information = [("0000:01:00.0".to_owned(), text.clone().into_owned())].into();
    devices::describe(&mut cards, &information);
    assert!(cards.iter().all(|card| card.bus == pci_address("0000:01:00.0")));
    if let Some(bus) = kernel::bus_of(&text) {
        assert_eq!(pci_address(&bus), Some(bus.clone()), "{bus}");
    }
}

/// `/proc/PID/fdinfo/FD` of a client of a graphics driver.
pub(in crate::observe) fn client(text: &str) {
    let Some((bus, id, client)) = files::client(text) else { return };
    assert_eq!(pci_address(&bus), Some(bus.clone()));
    assert!(!client.is_render, "that is the node's to say");
    let amount = |bytes: u64| format!("drm-resident-vram:\t{bytes}\n");
    let line = client.bytes.map(amount).unwrap_or_default();
    let again = files::client(&format!("drm-pdev:\t{bus}\ndrm-client-id:\t{id}\n{line}"));
    assert_eq!(again.map(|(bus, id, again)| (bus, id, again.bytes)), Some((bus, id, client.bytes)));
}
