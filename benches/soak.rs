//! Looks again and again in one process, and holds what it takes by then against what it took at first:
//!
//! ```text
//! soak COUNT [--leak WHAT] -- scan --port 8091 …
//! ```
//!
//! Each look is a whole run of portreeve's own command line, from the configuration to a report in a file. COUNT is cut into ten parts.
//! After the first, which warms up, nothing may grow: descriptors and threads are those of the first part's end, whenever they are
//! counted; Rust's heap, counted by its allocator, and the resident memory, SQLite's included, of the last part, at most, are those
//! of the second and a little slack. Ends with 1 where something has grown. `--leak descriptor`, `thread` or `memory` (4 KiB) leaks one with each look: to see that it is seen.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    env,
    error::Error,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

/// One look's pid has a digit more than another's.
const HEAP_SLACK: u64 = 4 << 10;
/// What the allocator keeps of freed memory comes and goes by pages.
const RESIDENT_SLACK: u64 = 512 << 10;
const PARTS: usize = 10;
/// So often in each part.
const SAMPLES: usize = 20;

#[derive(Debug, Clone, Copy)]
struct Sample {
    descriptors: usize,
    threads: usize,
    heap: u64,
    resident: u64,
    peak: u64,
}

impl Sample {
    fn take() -> Result<Self, Box<dyn Error>> {
        let status = fs::read_to_string("/proc/self/status")?;
        let number = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let of = |key: &str| number(key).ok_or_else(|| format!("no '{key}' in /proc/self/status"));
        Ok(Self {
            // The one that reads the folder is always among them.
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            threads: fs::read_dir("/proc/self/task")?.count(),
            heap: ALLOCATED.load(Ordering::Relaxed),
            resident: of("VmRSS:")? << 10,
            peak: of("VmHWM:")? << 10,
        })
    }
}

/// Counts what is allocated and not freed yet: the C library's own account has its caches in it, which grow for a while.
struct Counting;

static ALLOCATED: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

#[allow(unsafe_code)]
// SAFETY: all is done by the system's allocator, with what it was asked for.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait asks of whoever calls.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as the trait asks of whoever calls.
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(block, layout) }
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut words = env::args().skip(1);
    let count: usize = words.next().ok_or("how many looks?")?.parse()?;
    let mut leak = None;
    while let Some(word) = words.next().filter(|word| word != "--") {
        leak = words.next().filter(|_| word == "--leak");
    }
    let file = env::temp_dir().join(format!("soak-{}.json", std::process::id()));
    let mut line: Vec<OsString> = vec!["portreeve".into()];
    line.extend(words.map(OsString::from));
    line.extend(["--format", "json", "--output"].map(OsString::from));
    line.push(file.clone().into());

    let every = (count / (PARTS * SAMPLES)).max(1);
    let began = Instant::now();
    // What we take ourselves is taken now.
    let (mut samples, mut codes, mut kept) =
        (Vec::with_capacity(count / every + 2), BTreeMap::new(), Vec::new());
    for number in 1..=count {
        // An engine may answer late now and then: what is not known is told by the code, and takes no more than what is.
        let code = format!("{:?}", portreeve::cli::run(line.iter().cloned()));
        *codes.entry(code).or_insert(0_usize) += 1;
        match leak.as_deref() {
            Some("descriptor") => std::mem::forget(File::open("/dev/null")?),
            Some("thread") => drop(thread::spawn(thread::park)),
            Some("memory") => kept.push(vec![1_u8; 4 << 10]),
            Some(other) => return Err(format!("what is '{other}'?").into()),
            None => {}
        }
        if number % every == 0 || number == count {
            samples.push((number, Sample::take()?));
        }
    }
    let report = fs::read_to_string(&file)?;
    fs::remove_file(&file)?;
    let grown = judge(count, &samples)?;
    let seconds = began.elapsed().as_secs_f64();
    let mut out = io::stdout();
    #[allow(clippy::cast_precision_loss)]
    let each = seconds * 1000.0 / count as f64;
    writeln!(
        out,
        "{count} looks, {each:.1} ms each, a report of {} bytes, codes {codes:?}",
        report.len()
    )?;
    writeln!(
        out,
        "| look | descriptors | threads | heap KiB | resident KiB | its peak KiB |\n|---|---|---|---|---|---|"
    )?;
    for part in 1..=PARTS {
        let until = count * part / PARTS;
        if let Some((number, s)) = samples.iter().rfind(|(number, _)| *number <= until) {
            let (heap, resident, peak) = (s.heap >> 10, s.resident >> 10, s.peak >> 10);
            writeln!(
                out,
                "| {number} | {} | {} | {heap} | {resident} | {peak} |",
                s.descriptors, s.threads
            )?;
        }
    }
    for what in &grown {
        writeln!(out, "grown: {what}")?;
    }
    if grown.is_empty() {
        writeln!(out, "nothing has grown")?;
    }
    Ok(if grown.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What has grown since the first part.
fn judge(count: usize, samples: &[(usize, Sample)]) -> Result<Vec<String>, Box<dyn Error>> {
    let part = |number: usize| {
        let (from, to) = (count * (number - 1) / PARTS, count * number / PARTS);
        samples.iter().filter(move |(at, _)| *at > from && *at <= to).map(|(_, sample)| sample)
    };
    let (_, warm) = samples.iter().rfind(|(at, _)| *at <= count / PARTS).ok_or("too few looks")?;
    let mut grown = Vec::new();
    for (number, now) in samples.iter().filter(|(at, _)| *at > count / PARTS) {
        if (now.descriptors, now.threads) != (warm.descriptors, warm.threads) {
            grown.push(format!(
                "descriptors and threads, {} and {} after {number} looks, {} and {} at first",
                now.descriptors, now.threads, warm.descriptors, warm.threads
            ));
            break;
        }
    }
    let most =
        |number: usize, of: fn(&Sample) -> u64| part(number).map(of).max().unwrap_or_default();
    for (what, slack, of) in [
        ("the heap", HEAP_SLACK, (|s| s.heap) as fn(&Sample) -> u64),
        ("resident memory", RESIDENT_SLACK, |s| s.resident),
    ] {
        let (second, last) = (most(2, of), most(PARTS, of));
        if last > second + slack {
            grown.push(format!(
                "{what}, by {} bytes from the second part to the last",
                last - second
            ));
        }
    }
    Ok(grown)
}
