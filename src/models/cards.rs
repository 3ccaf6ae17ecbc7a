//! Which GPUs of this host a spec's names stand for. Numbers mean one thing to nvidia-smi and another to engines and CUDA, so
//! what is passed on are UUIDs.

use super::plan::Cards;
use crate::{
    host::Host,
    ident::GpuName,
    judge::gpu::named,
    observe::gpus::{Reader, Sources},
    snapshot::{Gpu, GpuVendor, Gpus},
};

/// Why the GPUs that are wanted cannot be passed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// There is none of this name.
    #[error("GPU {0} was not found\nhint: 'portreeve scan --gpu all' shows those that there are")]
    NotFound(GpuName),
    /// Whether there is one could not be seen.
    #[error(
        "whether there is a GPU {0} could not be seen: {1}\nhint: 'portreeve doctor' says what would mend it"
    )]
    NotSeen(GpuName, String),
    /// It is there, and its UUID is not known.
    #[error(
        "GPU {0} cannot be passed on: its UUID is not known\nhint: NVIDIA's library must answer ('portreeve doctor')"
    )]
    NoUuid(GpuName),
    /// It is no GPU that a server of ours computes on.
    #[error("GPU {0} is {1}'s: models cannot be given those yet")]
    Vendor(GpuName, GpuVendor),
}

/// Looks once. No GPU is looked for where none is wanted.
pub fn find(host: &Host, sources: Sources, wanted: &[GpuName]) -> Result<Cards, CardError> {
    if wanted.is_empty() {
        return Ok(Cards::default());
    }
    choose(&Reader::new(sources).look(host), wanted)
}

fn choose(gpus: &Gpus, wanted: &[GpuName]) -> Result<Cards, CardError> {
    let mut cards = Cards::default();
    for name in wanted {
        let found = named(gpus, name);
        if found.is_empty() {
            let why = gpus.trouble.first().map(|trouble| trouble.why.clone());
            let why = why.or_else(|| gpus.may_miss.clone());
            return Err(match why {
                Some(why) => CardError::NotSeen(name.clone(), why),
                None => CardError::NotFound(name.clone()),
            });
        }
        for gpu in found {
            match (gpu.vendor, &gpu.uuid) {
                (GpuVendor::Nvidia, Some(uuid)) => add(&mut cards.nvidia, uuid.clone()),
                (GpuVendor::Nvidia, None) => return Err(CardError::NoUuid(name.clone())),
                // HIP counts its own only.
                (GpuVendor::Amd, _) => {
                    let is_before = |g: &&Gpu| g.vendor == GpuVendor::Amd && g.index < gpu.index;
                    let before = gpus.all.iter().filter(|g| g.part.is_none()).filter(is_before);
                    add(&mut cards.amd, u32::try_from(before.count()).unwrap_or(u32::MAX));
                }
                (GpuVendor::Intel, _) => return Err(CardError::Vendor(name.clone(), gpu.vendor)),
            }
        }
    }
    Ok(cards)
}

fn add<T: PartialEq>(list: &mut Vec<T>, one: T) {
    if !list.contains(&one) {
        list.push(one);
    }
}
