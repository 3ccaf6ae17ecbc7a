//! What every target has: its entry, and the watch over memory. An input that makes more than 64 MiB live at once ends the run,
//! as a crash does; the slowest input and the most memory are told at its end.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

pub use libfuzzer_sys;

/// Of one input.
const MOST_BYTES: usize = 64 << 20;

static LIVE: AtomicUsize = AtomicUsize::new(0);
/// Live before the input came.
static BEFORE: AtomicUsize = AtomicUsize::new(usize::MAX / 2);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static SLOWEST_MICROSECONDS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

impl Counting {
    fn grow(bytes: usize) {
        let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
        let of_input = live.saturating_sub(BEFORE.load(Relaxed));
        if of_input > PEAK.load(Relaxed) {
            PEAK.store(of_input, Relaxed);
        }
        if of_input > MOST_BYTES {
            // To tell it may take memory.
            BEFORE.store(usize::MAX / 2, Relaxed);
            eprintln!("portreeve: this input has more than {MOST_BYTES} bytes live at once");
            std::process::abort();
        }
    }
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait asks of whoever calls.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as the trait asks of whoever calls.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::grow(layout.size());
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    // SAFETY: as the trait asks of whoever calls.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    // SAFETY: as the trait asks of whoever calls.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::grow(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// One input.
pub fn run(name: &str, bytes: &[u8]) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: the function lives as long as the program.
        unsafe { libc::atexit(tell) };
    });
    let began = processor_time();
    BEFORE.store(LIVE.load(Relaxed), Relaxed);
    portreeve::fuzzing::run(name, bytes);
    BEFORE.store(usize::MAX / 2, Relaxed);
    let took = usize::try_from((processor_time() - began).as_micros()).unwrap_or(usize::MAX);
    SLOWEST_MICROSECONDS.fetch_max(took, Relaxed);
}

/// Of this thread: a machine that is busy makes no input slow.
fn processor_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a time there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

extern "C" fn tell() {
    let (slowest, peak) = (SLOWEST_MICROSECONDS.load(Relaxed), PEAK.load(Relaxed));
    eprintln!("portreeve: slowest {slowest} us, peak {peak} bytes");
}

/// The program of a target.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        $crate::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| $crate::run($name, bytes));
    };
}
