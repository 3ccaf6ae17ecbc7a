//! How long after its first SIGTERM a reap is done with many orphans that ignore it, seen from outside: each of them tells when the
//! signal came, and its end is seen on a pidfd.
//!
//! ```text
//! mass-reap ROUNDS ORPHANS GRACE_MS PORTREEVE CONFIG      # benches/reap.sh runs it in the test box
//! ```

use std::{
    env,
    error::Error,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{self, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
    time::{ClockId, clock_gettime},
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// A worker without its server: row 9 of the verdict table.
const TITLE: &str = "VLLM::EngineCore_0";
/// In the environment: what this copy of the program is.
const PART: &str = "MASS_REAP_PART";
const PATIENCE: Duration = Duration::from_secs(60);

/// What an orphan tells: three numbers, its pid, one of these, and when by the monotonic clock.
const READY: u64 = 0;
const SIGNALLED: u64 = 1;

fn main() -> Outcome {
    match env::var(PART).as_deref() {
        Ok("orphan") => return be_orphan(),
        Ok(number) => return leave_behind(number.parse()?),
        Err(_) => {}
    }
    let words: Vec<String> = env::args().skip(1).collect();
    let [rounds, orphans, grace_ms, portreeve, config] = words.as_slice() else {
        return Err("expected ROUNDS ORPHANS GRACE_MS PORTREEVE CONFIG".into());
    };
    let (rounds, orphans): (usize, usize) = (rounds.parse()?, orphans.parse()?);
    let grace_ms: u64 = grace_ms.parse()?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "| round | all signalled after ms | all gone after ms | beyond the grace period | reap ended after ms |"
    )?;
    writeln!(out, "|---|---|---|---|---|")?;
    let mut beyond = Vec::new();
    for round in 1..=rounds {
        let run = reap(orphans, grace_ms, portreeve, config)?;
        let ms =
            |ns: u64| Duration::from_nanos(ns.saturating_sub(run.first_signal)).as_secs_f64() * 1e3;
        let over = ms(run.last_end) - Duration::from_millis(grace_ms).as_secs_f64() * 1e3;
        beyond.push(over);
        writeln!(
            out,
            "| {round} | {:.1} | {:.1} | {over:.1} | {:.1} |",
            ms(run.last_signal),
            ms(run.last_end),
            ms(run.ended)
        )?;
    }
    beyond.sort_by(f64::total_cmp);
    let (median, most) = (beyond.get(rounds / 2), beyond.last());
    if let (Some(median), Some(most)) = (median, most) {
        writeln!(
            out,
            "\n{orphans} orphans, grace period {grace_ms} ms: beyond it {median:.1} ms, at most {most:.1}"
        )?;
    }
    Ok(())
}

/// By the monotonic clock, in nanoseconds.
struct Run {
    first_signal: u64,
    last_signal: u64,
    last_end: u64,
    ended: u64,
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or_default()
}

fn reap(orphans: usize, grace_ms: u64, portreeve: &str, config: &str) -> Outcome<Run> {
    let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut told = File::from(told);
    let status = Command::new(env::current_exe()?)
        .env(PART, orphans.to_string())
        .stdin(Stdio::null())
        .stdout(tell)
        .status()?;
    if !status.success() {
        return Err(format!("the orphans' parent: {status}").into());
    }
    let mut pidfds: Vec<OwnedFd> = Vec::new();
    while pidfds.len() < orphans {
        let (pid, kind, _) = next(&mut told)?;
        if kind == READY {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("a pid is missing")?;
            pidfds.push(pidfd_open(pid, PidfdFlags::empty())?);
        }
    }
    // First the answer, then the time.
    let began = Instant::now();
    let all = format!("{orphans} × orphan");
    loop {
        let scan = Command::new(portreeve)
            .args(["scan", "--config", config, "--format", "json"])
            .output()?;
        let said = String::from_utf8_lossy(&scan.stdout);
        let found = said.matches("\"verdict\": \"orphan\"").count();
        if found == orphans {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{all} expected, {found} found").into());
        }
    }

    let mut reap = Command::new(portreeve)
        .args(["reap", "--config", config, "--grace", &format!("{grace_ms}ms")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut last_end = 0;
    while !pidfds.is_empty() {
        let mut fds: Vec<PollFd> = pidfds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let patience = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
        if poll(&mut fds, Some(&patience))? == 0 {
            return Err(format!("{} orphans do not end", pidfds.len()).into());
        }
        last_end = now();
        let live: Vec<bool> = fds.iter().map(|fd| fd.revents().is_empty()).collect();
        let mut lives = live.into_iter();
        pidfds.retain(|_| lives.next() == Some(true));
    }
    let status = reap.wait()?;
    let ended = now();
    if !status.success() {
        return Err(format!("portreeve reap: {status}").into());
    }
    let (mut first_signal, mut last_signal, mut signals) = (u64::MAX, 0, 0);
    while let Ok((_, kind, at)) = next(&mut told) {
        if kind == SIGNALLED {
            (first_signal, last_signal) = (first_signal.min(at), last_signal.max(at));
            signals += 1;
        }
    }
    if signals != orphans {
        return Err(format!("{signals} of {orphans} orphans had a SIGTERM").into());
    }
    Ok(Run { first_signal, last_signal, last_end, ended })
}

fn next(told: &mut File) -> Outcome<(u64, u64, u64)> {
    let mut number = || -> Outcome<u64> {
        let mut bytes = [0; 8];
        told.read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    Ok((number()?, number()?, number()?))
}

/// In one write, so that nobody's words get between ours (pipe(7)).
fn tell(kind: u64) -> Outcome {
    let record = [u64::from(process::id()), kind, now()].map(u64::to_ne_bytes).concat();
    let written = rustix::io::write(io::stdout(), &record)?;
    if written == record.len() { Ok(()) } else { Err("half a record was written".into()) }
}

/// Starts so many and ends, so that they have no parent.
fn leave_behind(orphans: usize) -> Outcome {
    for _ in 0..orphans {
        Command::new(env::current_exe()?)
            .arg0(TITLE)
            .env(PART, "orphan")
            .stdin(Stdio::null())
            .spawn()?;
    }
    Ok(())
}

/// Takes each SIGTERM, tells of the first and stays.
fn be_orphan() -> Outcome {
    let (mut signals, handler) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, handler)?;
    tell(READY)?;
    let mut byte = [0];
    signals.read_exact(&mut byte)?;
    tell(SIGNALLED)?;
    loop {
        signals.read_exact(&mut byte)?;
    }
}
