//! Whether memory of GPUs may still be on its way back: drivers free it some time after the exit, usually within 1.5 s and
//! sometimes in more than 5 (sglang PR#36589, llama-swap#97).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::snapshot::Gpu;

/// Memory that has not moved for so long is not being freed.
const STABLE: Duration = Duration::from_secs(2);
/// Samples that differ by less agree: so much comes and goes with clocks and contexts of the driver.
const MOST_NOISE_BYTES: u64 = 256 << 20;

/// What was seen of each GPU's free memory over several looks.
#[derive(Debug, Default)]
pub struct Settling(BTreeMap<String, Sample>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    free_bytes: u64,
    /// Since when the memory has been about that.
    since: Instant,
    /// Since when nobody is seen to hold the GPU.
    alone_since: Instant,
}

impl Settling {
    /// Adds what was seen of a GPU, and says whether its memory, held by nobody, may still come back within `most` of the
    /// last holder's end.
    pub fn may_change(&mut self, gpu: &Gpu, is_held: bool, most: Duration, now: Instant) -> bool {
        let Some(memory) = gpu.memory.known().copied().flatten() else { return false };
        let free_bytes = memory.free_bytes;
        let fresh = Sample { free_bytes, since: now, alone_since: now };
        let sample = self.0.entry(gpu.label()).or_insert(fresh);
        let noise = MOST_NOISE_BYTES.max(memory.total_bytes / 50);
        if sample.free_bytes.abs_diff(free_bytes) > noise {
            (sample.free_bytes, sample.since) = (free_bytes, now);
        }
        if is_held {
            (sample.since, sample.alone_since) = (now, now);
            return false;
        }
        let is_stable = now.saturating_duration_since(sample.since) >= STABLE;
        !is_stable && now.saturating_duration_since(sample.alone_since) < most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{GpuMemory, GpuSource, GpuVendor, Seen};

    const MOST: Duration = Duration::from_secs(10);

    fn gpu(free_gib: u64) -> Gpu {
        Gpu {
            vendor: GpuVendor::Nvidia,
            index: 0,
            uuid: None,
            bus: None,
            name: String::new(),
            part: None,
            is_split: false,
            is_integrated: false,
            memory: Seen::Known(Some(GpuMemory {
                total_bytes: 80 << 30,
                free_bytes: free_gib << 30,
            })),
            holdings: Vec::new(),
            may_miss: None,
            source: GpuSource::Nvml,
        }
    }

    /// What is said of samples (after how many seconds, free GiB, held).
    fn said(samples: &[(u64, u64, bool)]) -> Vec<bool> {
        let (mut settling, began) = (Settling::default(), Instant::now());
        let mut say = |&(after, free, is_held): &(u64, u64, bool)| {
            settling.may_change(&gpu(free), is_held, MOST, began + Duration::from_secs(after))
        };
        samples.iter().map(&mut say).collect()
    }

    #[test]
    fn memory_that_does_not_move_for_two_seconds_stays_taken() {
        assert_eq!(said(&[(0, 10, false), (1, 10, false), (2, 10, false)]), [true, true, false]);
    }

    #[test]
    fn memory_that_moves_may_move_on_though_slowly_but_not_for_ever() {
        let slowly: Vec<_> = (0..=10).map(|second| (second, 10 + 5 * second, false)).collect();
        let said = said(&slowly);
        assert!(said[..10].iter().all(|may| *may) && !said[10], "{said:?}");
    }

    #[test]
    fn the_time_counts_from_the_last_holders_end() {
        let held_long = [(0, 10, true), (60, 10, true), (61, 10, false), (62, 10, false)];
        assert_eq!(said(&held_long), [false, false, true, false]);
    }

    #[test]
    fn a_little_more_or_less_is_no_movement() {
        let mut settling = Settling::default();
        let began = Instant::now();
        settling.may_change(&gpu(10), false, MOST, began);
        // 1 GiB of 80 is less than 2 %.
        let later = began + Duration::from_secs(2);
        assert!(!settling.may_change(&gpu(11), false, MOST, later));
    }
}
