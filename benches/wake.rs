//! How long after a port's release its waiter knows: woken by the kernel, beside a loop that looks every 50 ms.
//!
//! ```text
//! unshare --net sh -c 'ip link set lo up; target/release/examples/wake 500 [storm]'
//! ```
//!
//! In each round every way sees a listener close and a holder die by SIGKILL, at a random moment of 50 ms. `wait` is the
//! time until the waiter is woken, `look` until a fresh dump has told it that nothing listens. With `storm` another
//! process opens and closes sockets all the while.

use std::{
    collections::BTreeSet,
    env,
    error::Error,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use portreeve::{
    ident::{Endpoint, Port, Proto},
    observe::{
        diag::{Diag, states},
        watch::{Watch, Woken},
    },
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const PORT: u16 = 8091;
const INTERVAL: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Cause {
    Close,
    Kill,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Watch,
    Polling,
}

/// What holds the port.
enum Holder {
    Us(TcpListener),
    Other(Child),
}

#[derive(Default)]
struct Times {
    wait: Vec<Duration>,
    look: Vec<Duration>,
    looks: usize,
}

fn main() -> Outcome {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("hold") => hold(),
        Some("blow") => blow(),
        Some(rounds) => race(rounds.parse()?, words.get(1).is_some_and(|word| word == "storm")),
        None => Err("expected the number of rounds".into()),
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

fn race(rounds: usize, has_storm: bool) -> Outcome {
    let storm = has_storm.then(|| ourselves("blow")).transpose()?;
    let mut random = 1_u64;
    let mut rows = [Way::Watch, Way::Polling]
        .into_iter()
        .flat_map(|way| [Cause::Close, Cause::Kill].map(|cause| (way, cause, Times::default())))
        .collect::<Vec<_>>();
    for _ in 0..rounds {
        for (way, cause, times) in &mut rows {
            // The generator of Knuth's MMIX: its upper bits will do.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let delay = INTERVAL.mul_f64(f64::from(u32::try_from(random >> 32)?) / 2_f64.powi(32));
            release(*way, *cause, delay, times)?;
        }
    }
    if let Some(mut storm) = storm {
        drop(storm.stdin.take());
        storm.wait()?;
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "| way | release | wait ms: median | p99 | most | look ms: median | p99 | most | looks |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|")?;
    for (way, cause, times) in &rows {
        write!(out, "| {way:?} | {cause:?} |")?;
        for times in [&times.wait, &times.look] {
            for percent in [50, 99, 100] {
                write!(out, " {:.3} |", quantile(times, percent))?;
            }
        }
        writeln!(out, " {} |", times.looks)?;
    }
    Ok(())
}

/// One release, and the wait for it.
fn release(way: Way, cause: Cause, delay: Duration, times: &mut Times) -> Outcome {
    let port = Port::new(PORT).ok_or("no port")?;
    let ports = BTreeSet::from([port]);
    let mut diag = Diag::open()?;
    let mut watch = Watch::new(&[Endpoint { port, proto: Proto::Tcp, address: None }]);
    if let Some(why) = watch.polls_since() {
        return Err(format!("the kernel does not tell of sockets that end: {why}").into());
    }
    let holder = match cause {
        Cause::Close => Holder::Us(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?),
        Cause::Kill => {
            let mut child = ourselves("hold")?;
            child.stdout.as_mut().ok_or("no pipe")?.read_exact(&mut [0; 5])?;
            let pid = Pid::from_raw(i32::try_from(child.id())?).ok_or("no pid")?;
            watch.add_holder(pidfd_open(pid, PidfdFlags::empty())?);
            Holder::Other(child)
        }
    };
    let seen = diag.sockets(Proto::Tcp, states::LISTEN, &ports)?;
    watch.follow(Some(seen.iter().filter_map(|socket| socket.cookie).collect()));
    let releaser = thread::spawn(move || let_go(holder, delay));
    let until = Instant::now() + DEADLINE;
    let (woken, known) = loop {
        match way {
            Way::Watch => match watch.wait(until, None) {
                Woken::Released(_) | Woken::HolderEnded | Woken::LookAgain => {}
                Woken::Signal | Woken::Deadline => return Err("nobody let go".into()),
            },
            Way::Polling => thread::sleep(INTERVAL),
        }
        let woken = Instant::now();
        times.looks += 1;
        if diag.sockets(Proto::Tcp, states::LISTEN, &ports)?.is_empty() {
            break (woken, Instant::now());
        }
    };
    let began = releaser.join().map_err(|_| "the releaser panicked")??;
    times.wait.push(woken.saturating_duration_since(began));
    times.look.push(known.saturating_duration_since(began));
    Ok(())
}

/// Lets go after this delay, and returns when it began to.
fn let_go(holder: Holder, delay: Duration) -> io::Result<Instant> {
    thread::sleep(delay);
    match holder {
        Holder::Us(listener) => {
            let began = Instant::now();
            drop(listener);
            Ok(began)
        }
        Holder::Other(mut child) => {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let pidfd = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
            let began = Instant::now();
            pidfd_send_signal(&pidfd, Signal::KILL)?;
            child.wait()?;
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
