//! How long after a port's release the one who waits for it is done: the gate, and beside it a loop that tries to bind every
//! 50 ms. Seen from outside: from the release to the end of the waiting process.
//!
//! ```text
//! wake ROUNDS PORTREEVE [storm]         # benches/wake.sh builds it and gives it a network of its own
//! ```
//!
//! In each round every way sees a listener close and a holder die by SIGKILL, at a random moment of 50 ms; a holder's release
//! counts from the signal. With `storm` another process opens and closes sockets all the while.

use std::{
    env,
    error::Error,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const PORT: u16 = 8091;
const INTERVAL: Duration = Duration::from_millis(50);
/// Until a waiting process has looked for the first time; it takes some 3 ms.
const START: Duration = Duration::from_millis(60);

#[derive(Debug, Clone, Copy)]
enum Cause {
    Close,
    Kill,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Gate,
    Loop,
}

/// What holds the port.
enum Holder {
    Us(TcpListener),
    Other(Child),
}

fn main() -> Outcome {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["hold"] => hold(),
        ["blow"] => blow(),
        ["loop"] => {
            bind_every_50_ms();
            Ok(())
        }
        [rounds, portreeve] => race(rounds.parse()?, portreeve, false),
        [rounds, portreeve, "storm"] => race(rounds.parse()?, portreeve, true),
        _ => Err("expected ROUNDS PORTREEVE [storm]".into()),
    }
}

/// What a script does: tries until it succeeds.
fn bind_every_50_ms() {
    while TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).is_err() {
        thread::sleep(INTERVAL);
    }
}

/// Holds the port until standard input ends.
fn hold() -> Outcome {
    let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
    writeln!(io::stdout(), "held")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Opens and closes sockets until standard input ends.
fn blow() -> Outcome {
    thread::spawn(|| {
        loop {
            drop(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
            drop(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        }
    });
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn ourselves(word: &str) -> io::Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(word).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
}

fn race(rounds: usize, portreeve: &str, has_storm: bool) -> Outcome {
    let storm = has_storm.then(|| ourselves("blow")).transpose()?;
    let mut random = 1_u64;
    let mut rows = [Way::Gate, Way::Loop]
        .into_iter()
        .flat_map(|way| [Cause::Close, Cause::Kill].map(|cause| (way, cause, Vec::new())))
        .collect::<Vec<_>>();
    for _ in 0..rounds {
        for (way, cause, times) in &mut rows {
            // The generator of Knuth's MMIX: its upper bits will do.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let delay = INTERVAL.mul_f64(f64::from(u32::try_from(random >> 32)?) / 2_f64.powi(32));
            times.push(release(*way, *cause, START + delay, portreeve)?);
        }
    }
    if let Some(mut storm) = storm {
        drop(storm.stdin.take());
        storm.wait()?;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "| who waits | release | median ms | p99 | most | releases |")?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    for (way, cause, times) in &rows {
        let name = match way {
            Way::Gate => "portreeve gate",
            Way::Loop => "a bind every 50 ms",
        };
        let cause = match cause {
            Cause::Close => "close",
            Cause::Kill => "SIGKILL",
        };
        let [median, p99, most] = [50, 99, 100].map(|percent| quantile(times, percent));
        let row = format!("| {name} | {cause} | {median:.2} | {p99:.2} | {most:.2} |");
        writeln!(out, "{row} {} |", times.len())?;
    }
    Ok(())
}

/// How long after one release of the port the one who waits for it has ended.
fn release(way: Way, cause: Cause, delay: Duration, portreeve: &str) -> Outcome<Duration> {
    let holder = match cause {
        Cause::Close => Holder::Us(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?),
        Cause::Kill => {
            let mut child = ourselves("hold")?;
            let out = child.stdout.as_mut().ok_or("no standard output")?;
            out.read_exact(&mut [0; 5])?;
            Holder::Other(child)
        }
    };
    let mut waiter = match way {
        Way::Gate => {
            let mut command = Command::new(portreeve);
            let port = PORT.to_string();
            command.args(["gate", "--timeout", "20s", "--port", &port]).stdout(Stdio::null());
            command.spawn().map_err(|error| format!("'{portreeve}': {error}"))?
        }
        Way::Loop => ourselves("loop")?,
    };
    thread::sleep(delay);
    if waiter.try_wait()?.is_some() {
        return Err("it did not wait".into());
    }
    let began = let_go(holder)?;
    let status = waiter.wait()?;
    let took = began.elapsed();
    if !status.success() {
        return Err(format!("who waited ended with {status}").into());
    }
    Ok(took)
}

/// Lets go, and returns when it began to.
fn let_go(holder: Holder) -> Outcome<Instant> {
    match holder {
        Holder::Us(listener) => {
            let began = Instant::now();
            drop(listener);
            Ok(began)
        }
        Holder::Other(mut child) => {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let pidfd = pidfd_open(pid.ok_or("no pid")?, PidfdFlags::empty())?;
            let began = Instant::now();
            pidfd_send_signal(&pidfd, Signal::KILL)?;
            // Reaped by a thread: it must not take from the time.
            thread::spawn(move || child.wait());
            Ok(began)
        }
    }
}

/// The value below which a share of all lie.
fn quantile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len().saturating_sub(1) * percent).div_ceil(100);
    sorted.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}
