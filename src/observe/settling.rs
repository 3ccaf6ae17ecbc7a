//! Whether memory of GPUs may still be on its way back: drivers free it some time after the exit, usually within 1.5 s and
//! sometimes in more than 5 (sglang PR#36589, llama-swap#97).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{ident::Pid, snapshot::Gpu};

/// Memory that has not moved for so long is not being freed.
const STABLE: Duration = Duration::from_secs(2);
/// Samples that differ by less agree: so much comes and goes with clocks and contexts of the driver.
const MOST_NOISE_BYTES: u64 = 256 << 20;

/// What was seen of each GPU's free memory over several looks.
#[derive(Debug, Default)]
pub struct Settling {
    samples: BTreeMap<String, Sample>,
    follows_an_end: bool,
}

#[derive(Debug)]
struct Sample {
    free_bytes: u64,
    /// Since when the memory has been about that.
    since: Instant,
    holders: BTreeSet<Pid>,
    /// When one of its holders was last seen to be gone, or may have gone; none = never.
    left_at: Option<Instant>,
}

impl Settling {
    /// For GPUs of which a holder has just been ended: those who hold them now tell nothing of that.
    pub fn after_an_end() -> Self {
        Self { follows_an_end: true, ..Self::default() }
    }

    /// Adds what was seen of a GPU, and says whether memory of a holder who is gone may still come back, within `most` of
    /// that end. Of a GPU that nobody holds at the first look somebody may have gone just before.
    pub fn may_change(&mut self, gpu: &Gpu, holders: &[Pid], most: Duration, now: Instant) -> bool {
        let Some(memory) = gpu.memory.known().copied().flatten() else { return false };
        let free_bytes = memory.free_bytes;
        let holders: BTreeSet<Pid> = holders.iter().copied().collect();
        let has_left = holders.is_empty() || self.follows_an_end;
        let sample = self.samples.entry(gpu.label()).or_insert_with(|| Sample {
            free_bytes,
            since: now,
            holders: holders.clone(),
            left_at: has_left.then_some(now),
        });
        let noise = MOST_NOISE_BYTES.max(memory.total_bytes / 50);
        if sample.free_bytes.abs_diff(free_bytes) > noise {
            (sample.free_bytes, sample.since) = (free_bytes, now);
        }
        if !sample.holders.is_subset(&holders) {
            (sample.since, sample.left_at) = (now, Some(now));
        }
        sample.holders = holders;
        let is_stable = now.saturating_duration_since(sample.since) >= STABLE;
        let is_recent = |at| now.saturating_duration_since(at) < most;
        !is_stable && sample.left_at.is_some_and(is_recent)
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

    /// What is said of samples (after how many seconds, free GiB, how many holders).
    fn said_from(mut settling: Settling, samples: &[(u64, u64, usize)]) -> Vec<bool> {
        let began = Instant::now();
        let mut say = |&(after, free, held): &(u64, u64, usize)| {
            let now = began + Duration::from_secs(after);
            settling.may_change(&gpu(free), &[Pid(7), Pid(8)][..held], MOST, now)
        };
        samples.iter().map(&mut say).collect()
    }

    fn said(samples: &[(u64, u64, usize)]) -> Vec<bool> {
        said_from(Settling::default(), samples)
    }

    #[test]
    fn memory_that_does_not_move_for_two_seconds_stays_taken() {
        assert_eq!(said(&[(0, 10, 0), (1, 10, 0), (2, 10, 0)]), [true, true, false]);
    }

    #[test]
    fn memory_that_moves_may_move_on_though_slowly_but_not_for_ever() {
        let slowly: Vec<_> = (0..=10).map(|second| (second, 10 + 5 * second, 0)).collect();
        let said = said(&slowly);
        assert!(said[..10].iter().all(|may| *may) && !said[10], "{said:?}");
    }

    #[test]
    fn the_time_counts_from_the_last_holders_end() {
        let held_long = [(0, 10, 1), (60, 10, 1), (61, 10, 0), (62, 10, 0), (63, 10, 0)];
        assert_eq!(said(&held_long), [false, false, true, true, false]);
    }

    #[test]
    fn memory_of_one_holder_comes_back_though_another_stays() {
        let shared = [(0, 10, 2), (60, 10, 2), (61, 10, 1), (62, 40, 1), (63, 40, 1), (64, 40, 1)];
        assert_eq!(said(&shared), [false, false, true, true, true, false]);
        // Who was ended before the first look is not to be seen there.
        let (ended, stays) = (Settling::after_an_end(), [(0, 10, 1), (1, 10, 1), (2, 10, 1)]);
        assert_eq!(said_from(ended, &stays), [true, true, false]);
        assert_eq!(said(&stays), [false, false, false]);
    }

    #[test]
    fn a_little_more_or_less_is_no_movement() {
        let mut settling = Settling::default();
        let began = Instant::now();
        settling.may_change(&gpu(10), &[], MOST, began);
        // 1 GiB of 80 is less than 2 %.
        let later = began + Duration::from_secs(2);
        assert!(!settling.may_change(&gpu(11), &[], MOST, later));
    }
}
