//! Which GPUs of this host a spec's names stand for. Numbers mean one thing to nvidia-smi and another to engines and CUDA, so
//! what is passed on are UUIDs.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{plan::Cards, trouble::Trouble};
use crate::{
    host::Host,
    ident::GpuName,
    judge::gpu::{may_be_there, named},
    observe::gpus::{Reader, Sources},
    snapshot::{Gpu, GpuVendor, Gpus},
};

/// Why the GPUs that are wanted cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// There is none of this name.
    #[error("{}\nhint: 'portreeve scan --gpu all' shows those that there are", absent(.0))]
    NotFound(GpuName),
    /// Whether there is one could not be seen.
    #[error("{} could not be seen: {why}\nhint: {remedy}", question(.name))]
    NotSeen {
        /// The name.
        name: GpuName,
        /// Why.
        why: String,
        /// What would help.
        remedy: String,
    },
    /// It is there, and its UUID is not known.
    #[error(
        "GPU {0} cannot be passed on: its UUID is not known\nhint: NVIDIA's library must answer ('portreeve doctor')"
    )]
    NoUuid(GpuName),
    /// It is no GPU that a server of ours computes on; its label comes first.
    #[error("{0} is {1}'s: models cannot be given those yet")]
    Vendor(String, GpuVendor),
}

fn absent(name: &GpuName) -> String {
    match name {
        GpuName::All => "no GPU was found".to_owned(),
        GpuName::Index(_) | GpuName::Uuid(_) | GpuName::Bus(_) => {
            format!("GPU {name} was not found")
        }
    }
}

fn question(name: &GpuName) -> String {
    match name {
        GpuName::All => "which GPUs there are".to_owned(),
        GpuName::Index(_) | GpuName::Uuid(_) | GpuName::Bus(_) => {
            format!("whether there is a GPU {name}")
        }
    }
}

impl From<CardError> for Trouble {
    fn from(error: CardError) -> Self {
        let is_unknown = match error {
            CardError::NotSeen { .. } | CardError::NoUuid(_) => true,
            CardError::NotFound(_) | CardError::Vendor(..) => false,
        };
        Self { is_unknown, ..Self::of(&error) }
    }
}

/// The GPUs to be passed on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// What the engine or CUDA is told.
    pub cards: Cards,
    /// How many devices of NVIDIA's (`/dev/nvidia0`, …) whoever gets them must see. The parts of a split GPU share its own.
    pub devices: usize,
}

/// Looks once. No GPU is looked for where none is wanted.
pub fn find(host: &Host, sources: Sources, wanted: &[GpuName]) -> Result<Chosen, CardError> {
    if wanted.is_empty() {
        return Ok(Chosen::default());
    }
    choose(&Reader::new(sources).look(host), wanted)
}

fn choose(gpus: &Gpus, wanted: &[GpuName]) -> Result<Chosen, CardError> {
    let mut cards = Cards::default();
    let mut devices = BTreeSet::new();
    for name in wanted {
        let found = named(gpus, name);
        if found.is_empty() {
            return Err(not_found(gpus, name));
        }
        for gpu in found {
            match (gpu.vendor, &gpu.uuid) {
                (GpuVendor::Nvidia, Some(uuid)) => {
                    add(&mut cards.nvidia, uuid.clone());
                    devices.insert(gpu.index);
                }
                (GpuVendor::Nvidia, None) => return Err(CardError::NoUuid(name.clone())),
                // HIP counts its own only.
                (GpuVendor::Amd, _) => {
                    let is_before = |g: &&Gpu| g.vendor == GpuVendor::Amd && g.index < gpu.index;
                    let before = gpus.all.iter().filter(|g| g.part.is_none()).filter(is_before);
                    add(&mut cards.amd, u32::try_from(before.count()).unwrap_or(u32::MAX));
                }
                (GpuVendor::Intel, _) => return Err(CardError::Vendor(gpu.label(), gpu.vendor)),
            }
        }
    }
    Ok(Chosen { cards, devices: devices.len() })
}

/// Where another source answered, one that did not takes nothing away from it.
fn not_found(gpus: &Gpus, name: &GpuName) -> CardError {
    let Some(why) = may_be_there(gpus, name) else { return CardError::NotFound(name.clone()) };
    let remedy = gpus.trouble.iter().find_map(|trouble| trouble.remedy.clone());
    let remedy = remedy.unwrap_or_else(|| "'portreeve doctor' says what would mend it".to_owned());
    CardError::NotSeen { name: name.clone(), why, remedy }
}

fn add<T: PartialEq>(list: &mut Vec<T>, one: T) {
    if !list.contains(&one) {
        list.push(one);
    }
}

/// Whether these names in a `/dev` are those of so many GPUs of NVIDIA's at the least; how many they are where not.
pub fn check_devices<'a>(
    names: impl IntoIterator<Item = &'a str>,
    wanted: usize,
) -> Result<(), usize> {
    let mut found = 0;
    for name in names {
        // Below WSL one device stands for all (NVIDIA's CUDA on WSL user guide).
        if name == "dxg" {
            return Ok(());
        }
        let number = name.strip_prefix("nvidia");
        found += usize::from(
            number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())),
        );
    }
    if found >= wanted { Ok(()) } else { Err(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{GpuSource, GpuTrouble, Seen};

    const FIRST: &str = "GPU-00000000-1111-2222-3333-444444444444";
    const SECOND: &str = "GPU-55555555-1111-2222-3333-444444444444";
    const PARTS: [&str; 2] =
        ["MIG-00000000-1111-2222-3333-444444444444", "MIG-55555555-1111-2222-3333-444444444444"];

    fn gpu(vendor: GpuVendor, index: u32, uuid: Option<&str>) -> Gpu {
        Gpu {
            vendor,
            index,
            uuid: uuid.map(str::to_owned),
            bus: Some(format!("0000:0{index}:00.0")),
            name: String::new(),
            part: None,
            is_split: false,
            is_integrated: false,
            memory: Seen::Known(None),
            holdings: Vec::new(),
            may_miss: None,
            source: GpuSource::Nvml,
        }
    }

    fn nvidia(index: u32, uuid: &str) -> Gpu {
        gpu(GpuVendor::Nvidia, index, Some(uuid))
    }

    fn host(all: Vec<Gpu>) -> Gpus {
        Gpus { all, ..Gpus::default() }
    }

    /// The first is split in two.
    fn split() -> Gpus {
        let part = |(number, uuid): (u32, &&str)| Gpu { part: Some(number), ..nvidia(0, uuid) };
        let whole = Gpu { is_split: true, ..nvidia(0, FIRST) };
        let parts = (0..).zip(&PARTS).map(part);
        host([whole].into_iter().chain(parts).chain([nvidia(1, SECOND)]).collect())
    }

    fn choose(gpus: &Gpus, wanted: &[&str]) -> Result<Chosen, CardError> {
        let wanted: Vec<GpuName> = wanted.iter().map(|name| name.parse().unwrap()).collect();
        super::choose(gpus, &wanted)
    }

    fn chosen(gpus: &Gpus, wanted: &[&str]) -> (Vec<String>, usize) {
        let chosen = choose(gpus, wanted).unwrap();
        (chosen.cards.nvidia, chosen.devices)
    }

    fn refused(gpus: &Gpus, wanted: &str) -> (String, bool) {
        let trouble = Trouble::from(choose(gpus, &[wanted]).unwrap_err());
        (format!("{}; {}", trouble.why, trouble.hint.unwrap_or_default()), trouble.is_unknown)
    }

    fn uuids(all: &[&str]) -> Vec<String> {
        all.iter().map(|uuid| (*uuid).to_owned()).collect()
    }

    #[test]
    fn every_name_becomes_the_uuid_and_no_gpu_stands_there_twice() {
        let two = host(vec![nvidia(0, FIRST), nvidia(1, SECOND)]);
        assert_eq!(chosen(&two, &["1"]), (uuids(&[SECOND]), 1));
        assert_eq!(chosen(&two, &["0000:01:00.0", SECOND, "1"]), (uuids(&[SECOND]), 1));
        // In the order in which they were named: CUDA counts by it.
        assert_eq!(chosen(&two, &["1", "0"]), (uuids(&[SECOND, FIRST]), 2));
        assert_eq!(chosen(&two, &["all"]), (uuids(&[FIRST, SECOND]), 2));
        assert_eq!(choose(&two, &[]).unwrap(), Chosen::default());
    }

    #[test]
    fn parts_of_one_gpu_are_passed_on_by_their_own_uuids_and_share_its_device() {
        assert_eq!(chosen(&split(), &PARTS), (uuids(&PARTS), 1));
        assert_eq!(chosen(&split(), &[PARTS[1], "1"]), (uuids(&[PARTS[1], SECOND]), 2));
        assert_eq!(chosen(&split(), &["all"]), (uuids(&[FIRST, SECOND]), 2));
    }

    #[test]
    fn what_is_not_there_is_an_error_and_what_is_not_seen_is_unknown() {
        let (why, is_unknown) = refused(&host(vec![nvidia(0, FIRST)]), "7");
        assert_eq!((is_unknown, why.starts_with("GPU 7 was not found; ")), (false, true), "{why}");
        assert!(!refused(&host(Vec::new()), "all").1);
        assert!(refused(&host(Vec::new()), "all").0.starts_with("no GPU was found; "));

        let why = "NVML did not answer within 2s".to_owned();
        let blind = Gpus { may_miss: Some(why), ..Gpus::default() };
        for name in ["0", "all", FIRST, "0000:01:00.0"] {
            let (why, is_unknown) = refused(&blind, name);
            assert!(is_unknown && why.contains("could not be seen: NVML did not answer"), "{why}");
        }
        // Which parts there are is told by the library alone.
        let mut whole = nvidia(0, FIRST);
        whole.may_miss = Some("another pid namespace".to_owned());
        assert!(refused(&host(vec![whole.clone()]), PARTS[0]).1);
        assert!(!refused(&host(vec![whole]), "1").1);
    }

    #[test]
    fn a_source_that_failed_beside_one_that_answered_makes_nothing_unknown() {
        let trouble = |remedy: Option<&str>| GpuTrouble {
            source: GpuSource::Nvml,
            why: "crashed (signal 11)".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let mut gpus = host(vec![nvidia(0, FIRST)]);
        gpus.trouble = vec![trouble(Some("restart the host"))];
        assert!(!refused(&gpus, "7").1);
        assert_eq!(chosen(&gpus, &["0"]).0, [FIRST]);
        gpus.may_miss = Some("NVML crashed".to_owned());
        let (why, is_unknown) = refused(&gpus, "7");
        assert!(is_unknown && why.ends_with("; restart the host"), "{why}");
    }

    #[test]
    fn a_gpu_whose_uuid_is_not_known_is_never_passed_on_by_its_number() {
        let nameless = host(vec![gpu(GpuVendor::Nvidia, 0, None)]);
        let (why, is_unknown) = refused(&nameless, "0");
        assert!(is_unknown && why.contains("its UUID is not known"), "{why}");
    }

    #[test]
    fn amds_are_counted_among_themselves_and_intels_are_refused() {
        let mixed = host(vec![
            nvidia(0, FIRST),
            gpu(GpuVendor::Amd, 1, None),
            gpu(GpuVendor::Intel, 2, None),
            gpu(GpuVendor::Amd, 3, None),
        ]);
        let both = choose(&mixed, &["3", "0", "1"]).unwrap();
        assert_eq!((both.cards.amd, both.cards.nvidia), (vec![1, 0], uuids(&[FIRST])));
        assert_eq!(both.devices, 1);
        let (why, is_unknown) = refused(&mixed, "all");
        assert!(!is_unknown && why.starts_with("GPU 2 is Intel's"), "{why}");
    }

    #[test]
    fn a_container_has_its_gpus_by_its_numbered_devices_or_by_the_one_of_wsl() {
        let dev =
            ["null", "nvidiactl", "nvidia-uvm", "nvidia-caps", "nvidia", "nvidia0", "nvidia12"];
        assert_eq!(check_devices(dev, 2), Ok(()));
        assert_eq!(check_devices(dev, 1), Ok(()));
        assert_eq!(check_devices(dev, 3), Err(2));
        assert_eq!(check_devices(["nvidiactl", "nvidia-uvm", "nvidia0x"], 1), Err(0));
        assert_eq!(check_devices(["dxg"], 2), Ok(()));
        assert_eq!(check_devices([], 0), Ok(()));
    }
}
