//! Times whole processes round-robin: in each round every command once, so that a neighbour's burst hits all alike.
//!
//! ```text
//! race ROUNDS < COMMANDS        # lines of NAME | COMMAND, split at spaces
//! race ROUNDS --rows < COMMANDS # one line of each, between tabs: name, exit code, runs, median, quarters, cpu ms, peak MB
//! race ROUNDS --cold …          # the kernel's caches dropped before each start, outside of what is timed
//! race ROUNDS --enough SECONDS  # whoever ran for so long in all sits out the rounds that are left
//! ```
//!
//! Writes one table of the times, and one of how many times as long each peer takes as each command whose name begins
//! with `portreeve`. The peak memory of a command includes what it was started from: the row of `/bin/true` is the floor.

#![allow(unsafe_code)] // wait4(2): no safe crate tells what a child has used

use std::{
    env,
    error::Error,
    fs,
    io::{self, Write},
    mem::MaybeUninit,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

struct Racer {
    name: String,
    words: Vec<String>,
    exit_code: i32,
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
    peak_kib: i64,
}

impl Racer {
    fn parse(line: &str) -> Option<Self> {
        let (name, command) = line.split_once('|')?;
        Some(Self {
            name: name.trim().to_owned(),
            words: command.split_whitespace().map(str::to_owned).collect(),
            exit_code: 0,
            wall: Vec::new(),
            cpu: Vec::new(),
            peak_kib: 0,
        })
    }

    /// In all, as far as it is kept.
    fn ran(&self) -> Duration {
        self.wall.iter().sum()
    }

    fn run(&mut self) -> Result<(), Box<dyn Error>> {
        let (program, arguments) = self.words.split_first().ok_or("a command is missing")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let child = command.spawn().map_err(|error| format!("'{program}': {error}"))?;
        let pid = i32::try_from(child.id())?;
        let mut status = 0;
        let mut usage = MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: both pointers are to memory of ours that lives through the call.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        // SAFETY: all zero, as it began, is a valid rusage.
        let usage = unsafe { usage.assume_init() };
        self.wall.push(began.elapsed());
        if waited != pid {
            return Err(io::Error::last_os_error().into());
        }
        let time = |t: libc::timeval| {
            Duration::from_micros(
                u64::try_from(t.tv_sec * 1_000_000 + t.tv_usec).unwrap_or_default(),
            )
        };
        self.cpu.push(time(usage.ru_utime) + time(usage.ru_stime));
        self.peak_kib = self.peak_kib.max(usage.ru_maxrss);
        self.exit_code = libc::WEXITSTATUS(status);
        Ok(())
    }
}

/// The value below which a share of all lie.
fn quantile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
    sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn median(times: &[Duration]) -> f64 {
    quantile(times, 50)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = env::args().skip(1);
    let rounds: usize = words.next().ok_or("expected the number of rounds")?.parse()?;
    let (mut as_rows, mut is_cold, mut enough) = (false, false, Duration::MAX);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rows" => as_rows = true,
            "--cold" => is_cold = true,
            "--enough" => {
                let seconds = words.next().ok_or("expected seconds behind '--enough'")?;
                enough = Duration::from_secs(seconds.parse()?);
            }
            _ => return Err(format!("'{word}' is not known").into()),
        }
    }
    let mut racers: Vec<Racer> =
        io::read_to_string(io::stdin())?.lines().filter_map(Racer::parse).collect();
    // One round to fill the caches.
    for round in 0..=rounds {
        for racer in racers.iter_mut().filter(|racer| racer.ran() < enough) {
            if is_cold {
                // Pages, dentries and inodes (Documentation/admin-guide/sysctl/vm.rst).
                fs::write("/proc/sys/vm/drop_caches", "3")?;
            }
            racer.run()?;
        }
        if round == 0 {
            for racer in racers.iter_mut().filter(|racer| racer.ran() < enough) {
                (racer.wall, racer.cpu) = Default::default();
            }
        }
    }
    let mut out = io::stdout().lock();
    if as_rows {
        for racer in &racers {
            let (name, exit_code, wall) = (&racer.name, racer.exit_code, &racer.wall);
            let (low, mid, high) = (quantile(wall, 25), median(wall), quantile(wall, 75));
            let (cpu, peak) = (median(&racer.cpu), racer.peak_kib * 1024 / 100_000);
            let (whole, tenth) = (peak / 10, peak % 10);
            writeln!(
                out,
                "{name}\t{exit_code}\t{}\t{mid:.2}\t{low:.2}\t{high:.2}\t{cpu:.2}\t{whole}.{tenth}",
                wall.len()
            )?;
        }
        return Ok(());
    }
    writeln!(out, "| command | exit | median ms | half of all ms | cpu ms | peak MB |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for racer in &racers {
        let (name, exit_code, wall) = (&racer.name, racer.exit_code, &racer.wall);
        let (low, mid, high) = (quantile(wall, 25), median(wall), quantile(wall, 75));
        let (cpu, peak) = (median(&racer.cpu), racer.peak_kib * 1024 / 100_000);
        writeln!(
            out,
            "| {name} | {exit_code} | {mid:.2} | {low:.2}–{high:.2} | {cpu:.2} | {}.{} |",
            peak / 10,
            peak % 10
        )?;
    }
    let (ours, peers): (Vec<&Racer>, Vec<&Racer>) =
        racers.iter().partition(|racer| racer.name.starts_with("portreeve"));
    let names: Vec<&str> = peers.iter().map(|racer| racer.name.as_str()).collect();
    writeln!(out, "\n| takes … times as long as portreeve | {} |", names.join(" | "))?;
    writeln!(out, "|---|{}", "---|".repeat(peers.len()))?;
    for racer in ours {
        let ratio = |peer: &&Racer| format!("{:.2}", median(&peer.wall) / median(&racer.wall));
        let ratios: Vec<String> = peers.iter().map(ratio).collect();
        writeln!(out, "| {} | {} |", racer.name, ratios.join(" | "))?;
    }
    Ok(())
}
