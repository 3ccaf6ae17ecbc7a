//! A process in disguise: takes any command line or title, holds what it is told to hold, and stays.
//!
//! ```text
//! plant --as 'python3 -u /app/server.py --config /etc/x.yaml' --listen 8091 --ready /run/planted/x
//! ```
//!
//! | option | effect |
//! |---|---|
//! | `--as TEXT` | its command line, split at spaces; `\xNN` is one byte, UTF-8 or not |
//! | `--title TEXT` | its title as setproctitle(3) leaves it: padded with NULs, environment wiped, name cut to 15 bytes |
//! | `--bulk BYTES` | lengthens the command line by so much |
//! | `--listen`, `--bind` `[udp:][ADDRESS:]PORT` | listens there, or binds only; may be repeated |
//! | `--reuse-port`, `--v6only` | for the sockets that are named after it: SO_REUSEPORT, IPV6_V6ONLY |
//! | `--how WAY` | how the listeners are held: `outlived`, by a thread that outlives the first; `own-table`, by a thread with descriptors of its own; `ring`, registered with io_uring only; `in-flight`, on their way through a Unix socket |
//! | `--connect FROM:TO` | an outgoing connection to 127.0.0.1:TO with the local port FROM |
//! | `--descriptors N` | holds so many descriptors |
//! | `--ignore-term` | survives SIGTERM |
//! | `--setsid` | leads a session of its own |
//! | `--daemonise` | as the first option: forks twice, as daemon(7) wants it, and returns |
//! | `--ready FILE` | writes its pid there once all is in place |
//! | `--wipe-arguments` | overwrites its command line with NULs |
//! | `--leash FIFO` | ends when nobody has this FIFO open for writing any more |
//! | `--leave` | ends once all is in place |
//! | `--subreaper` | adopts what its descendants leave behind |
//! | `--re-exec` | at SIGUSR1 runs itself anew: the same pid, start and command line, all else from the beginning |
//! | `--brood N:MS` | has a child every MS milliseconds, N in all: `--inherit` gives them its sockets; they look like it and stay |
//! | `--inherit` | the child gets its sockets, too |
//! | `--child …` | all that follows is for a child process |

mod ways;

use std::{
    env,
    error::Error,
    ffi::{CString, OsString},
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    net::{Ipv4Addr, SocketAddr},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStringExt, net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    str::FromStr,
    sync::{Arc, atomic::AtomicBool, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    fs::MemfdFlags,
    net::{AddressFamily, SocketType, sockopt},
};
use ways::Way;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    // One of a brood: it has what it inherited and does nothing.
    if env::var_os("PLANT_STAYS").is_some() {
        stay();
    }
    if let Some(words) = handed_over()? {
        return Part::parse(words)?.play();
    }
    let mut words: Vec<String> = env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--daemonise") => return fork(&["--leader"], &words),
        Some("--leader") => {
            // The first child leads a session and ends, so that the second never gets a terminal (daemon(7)).
            rustix::process::setsid()?;
            return fork(&[], &words);
        }
        Some(_) | None => {}
    }
    match Disguise::take_from(&mut words)? {
        Some(disguise) => disguise.put_on(&words),
        None => Part::parse(words)?.play(),
    }
}

/// Starts this program anew with the words after the first. A `--leader` is waited for, the last child is not.
fn fork(first: &[&str], words: &[String]) -> Outcome {
    let mut command = Command::new(env::current_exe()?);
    command.args(first).args(words.iter().skip(1));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if !first.is_empty() {
        child.wait()?;
    }
    Ok(())
}

/// What to hold and how to behave.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is an option of its own")]
struct Part {
    setsid: bool,
    ignore_term: bool,
    leave: bool,
    inherit: bool,
    wipe_arguments: bool,
    subreaper: bool,
    re_exec: bool,
    brood: Option<(u32, u64)>,
    descriptors: usize,
    way: Way,
    leash: Option<PathBuf>,
    listen: Vec<Place>,
    bind: Vec<Place>,
    connect: Vec<(u16, u16)>,
    ready: Option<PathBuf>,
    child: Option<Vec<String>>,
}

/// `[udp:][ADDRESS:]PORT`
#[derive(Clone)]
struct Place {
    is_udp: bool,
    address: SocketAddr,
    reuse_port: bool,
    v6only: bool,
}

impl FromStr for Place {
    type Err = Box<dyn Error>;

    fn from_str(text: &str) -> Outcome<Self> {
        let (is_udp, text) = text.strip_prefix("udp:").map_or((false, text), |rest| (true, rest));
        let address = match text.parse::<u16>() {
            Ok(port) => (Ipv4Addr::UNSPECIFIED, port).into(),
            Err(_) => text.parse()?,
        };
        Ok(Self { is_udp, address, reuse_port: false, v6only: false })
    }
}

impl Place {
    fn bind(&self, reuse_address: bool) -> Outcome<OwnedFd> {
        let family =
            if self.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if self.is_udp { SocketType::DGRAM } else { SocketType::STREAM };
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        sockopt::set_socket_reuseport(&socket, self.reuse_port)?;
        sockopt::set_socket_reuseaddr(&socket, reuse_address)?;
        if self.address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, self.v6only)?;
        }
        rustix::net::bind(&socket, &self.address)?;
        Ok(socket)
    }

    fn listen(&self) -> Outcome<OwnedFd> {
        // Servers reuse addresses, lest the last one's TIME_WAIT keep them off.
        let socket = self.bind(!self.is_udp)?;
        if !self.is_udp {
            rustix::net::listen(&socket, 128)?;
        }
        Ok(socket)
    }
}

impl Part {
    fn parse(words: Vec<String>) -> Outcome<Self> {
        let mut part = Self::default();
        let (mut reuse_port, mut v6only) = (false, false);
        let mut rest = words.into_iter();
        while let Some(option) = rest.next() {
            let mut value = || rest.next().ok_or(format!("'{option}' wants a value"));
            match option.as_str() {
                "--setsid" => part.setsid = true,
                "--ignore-term" => part.ignore_term = true,
                "--leave" => part.leave = true,
                "--inherit" => part.inherit = true,
                "--wipe-arguments" => part.wipe_arguments = true,
                "--reuse-port" => reuse_port = true,
                "--v6only" => v6only = true,
                "--subreaper" => part.subreaper = true,
                "--re-exec" => part.re_exec = true,
                "--brood" => {
                    let value = value()?;
                    let (count, pause) = value.split_once(':').ok_or("'--brood' wants N:MS")?;
                    part.brood = Some((count.parse()?, pause.parse()?));
                }
                "--descriptors" => part.descriptors = value()?.parse()?,
                "--how" => part.way = value()?.parse()?,
                "--leash" => part.leash = Some(value()?.into()),
                "--listen" => {
                    part.listen.push(Place { reuse_port, v6only, ..value()?.parse()? });
                }
                "--bind" => part.bind.push(Place { reuse_port, v6only, ..value()?.parse()? }),
                "--connect" => {
                    let value = value()?;
                    let (from, to) = value.split_once(':').ok_or("'--connect' wants FROM:TO")?;
                    part.connect.push((from.parse()?, to.parse()?));
                }
                "--ready" => part.ready = Some(value()?.into()),
                "--child" => part.child = Some(rest.by_ref().collect()),
                _ => return Err(format!("unknown option '{option}'").into()),
            }
        }
        Ok(part)
    }

    fn play(self) -> Outcome {
        if self.setsid {
            rustix::process::setsid()?;
        }
        if self.ignore_term {
            signal_hook::flag::register(
                signal_hook::consts::SIGTERM,
                Arc::new(AtomicBool::new(false)),
            )?;
        }
        if self.wipe_arguments {
            wipe_arguments()?;
        }
        if self.subreaper {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        if self.re_exec {
            run_anew_at_signal()?;
        }
        if let Some(fifo) = self.leash.clone() {
            thread::spawn(move || end_with(&fifo));
        }
        let held = self.hold()?;
        if self.inherit {
            for socket in &held {
                rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
            }
        }
        if let Some(words) = self.child {
            let mut child = Command::new(env::current_exe()?).args(words).spawn()?;
            thread::spawn(move || child.wait());
        }
        if let Some((count, pause)) = self.brood {
            thread::spawn(move || breed(count, pause));
        }
        if let Some(file) = self.ready {
            announce(&file)?;
        }
        if self.leave {
            return Ok(());
        }
        if self.way == Way::Outlived {
            thread::spawn(stay);
            ways::end_thread();
        }
        stay()
    }

    /// Takes every socket and descriptor that was asked for.
    fn hold(&self) -> Outcome<Vec<OwnedFd>> {
        // The sockets come last: whoever looks for them must see all that comes first.
        let mut held = Vec::new();
        for _ in 0..self.descriptors {
            held.push(File::open("/dev/null")?.into());
        }
        held.extend(self.listeners()?);
        for place in &self.bind {
            held.push(place.bind(false)?);
        }
        for (from, to) in &self.connect {
            let from: Place = from.to_string().parse()?;
            let socket = from.bind(false)?;
            rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, *to)))?;
            held.push(socket);
        }
        Ok(held)
    }

    fn listeners(&self) -> Outcome<Vec<OwnedFd>> {
        let open = |places: &[Place]| places.iter().map(Place::listen).collect::<Outcome<Vec<_>>>();
        match self.way {
            Way::Plain | Way::Outlived => open(&self.listen),
            Way::Ring => Ok(vec![ways::into_ring(&open(&self.listen)?)?]),
            Way::InFlight => Ok(ways::into_flight(&open(&self.listen)?)?),
            Way::OwnTable => {
                let (listen, (send, receive)) = (self.listen.clone(), mpsc::channel());
                thread::spawn(move || {
                    let held = ways::take_own_table()
                        .map_err(Into::into)
                        .and_then(|()| open(&listen))
                        .map_err(|error| error.to_string());
                    let _ = send.send(held.as_ref().map(|_| ()).map_err(Clone::clone));
                    stay()
                });
                receive.recv()??;
                Ok(Vec::new())
            }
        }
    }
}

fn stay() -> ! {
    loop {
        thread::park();
    }
}

/// Ends this process once the FIFO has no writer left.
#[allow(clippy::exit, reason = "the whole process is to end, whatever its other threads do")]
fn end_with(fifo: &Path) {
    let _ = File::open(fifo).and_then(|mut fifo| fifo.read_to_end(&mut Vec::new()));
    process::exit(0)
}

/// Runs this program anew under the same command line at SIGUSR1. What is to be done is still in the memory file.
fn run_anew_at_signal() -> Outcome {
    let (mut told, tell) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGUSR1, tell)?;
    let mut words = env::args_os();
    let name = words.next().unwrap_or_default();
    let mut command = Command::new(env::current_exe()?);
    command.arg0(name).args(words);
    thread::spawn(move || {
        if told.read_exact(&mut [0]).is_ok() {
            let _ = command.exec();
        }
    });
    Ok(())
}

/// Has children that look like this process and do nothing. They do not end with it.
fn breed(count: u32, pause_ms: u64) {
    let mut words = env::args_os();
    let name = words.next().unwrap_or_default();
    let words: Vec<_> = words.collect();
    for _ in 0..count {
        thread::sleep(Duration::from_millis(pause_ms));
        let Ok(exe) = env::current_exe() else { return };
        let mut child = Command::new(exe);
        child.arg0(&name).args(&words).env("PLANT_STAYS", "1").stdin(Stdio::null());
        if let Ok(mut child) = child.spawn() {
            thread::spawn(move || child.wait());
        }
    }
}

/// Writes NULs over the memory that /proc/self/cmdline shows (fields 48 and 49 of proc_pid_stat(5)).
fn wipe_arguments() -> Outcome {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no name in stat")?;
    let field = |number: usize| -> Outcome<u64> {
        Ok(fields.split(' ').nth(number - 3).ok_or("a short stat")?.trim().parse()?)
    };
    let (from, to) = (field(48)?, field(49)?);
    let mut memory = File::options().write(true).open("/proc/self/mem")?;
    memory.seek(SeekFrom::Start(from))?;
    memory.write_all(&vec![0; usize::try_from(to - from)?])?;
    Ok(())
}

/// The pid, in full or not at all.
fn announce(file: &Path) -> Outcome {
    let beside = file.with_extension("new");
    fs::write(&beside, process::id().to_string())?;
    Ok(fs::rename(beside, file)?)
}

/// Another command line.
#[derive(Default)]
struct Disguise {
    arguments: Vec<OsString>,
    wipes_environment: bool,
    bulk: usize,
}

impl Disguise {
    /// Takes the disguise out of the words, a child's left alone.
    fn take_from(words: &mut Vec<String>) -> Outcome<Option<Self>> {
        let mut disguise = Self::default();
        let mut others = Vec::new();
        let mut rest = words.drain(..);
        while let Some(option) = rest.next() {
            let mut value = || rest.next().ok_or(format!("'{option}' wants a value"));
            match option.as_str() {
                "--as" => disguise.arguments = value()?.split(' ').map(unescaped).collect(),
                "--title" => {
                    disguise.arguments = vec![value()?.into()];
                    disguise.arguments.extend(vec![OsString::new(); 40]);
                    disguise.wipes_environment = true;
                }
                "--bulk" => disguise.bulk = value()?.parse()?,
                "--child" => {
                    others.push(option);
                    others.extend(rest.by_ref());
                }
                _ => others.push(option),
            }
        }
        drop(rest);
        *words = others;
        Ok((!disguise.arguments.is_empty()).then_some(disguise))
    }

    /// Becomes the same program under another command line. What is to be done travels in a memory file, for the
    /// command line and the environment belong to the disguise.
    fn put_on(mut self, words: &[String]) -> Outcome {
        let memory = rustix::fs::memfd_create(memory_name(), MemfdFlags::empty())?;
        File::from(memory.try_clone()?).write_all(words.join("\0").as_bytes())?;

        // One argument is at most 128 KiB long (execve(2)).
        while self.bulk > 0 {
            let piece = self.bulk.min(100_000);
            self.arguments.push("x".repeat(piece).into());
            self.bulk -= piece;
        }
        let (name, rest) = self.arguments.split_first().ok_or("a disguise wants a name")?;
        let mut command = Command::new(env::current_exe()?);
        command.arg0(name).args(rest);
        if self.wipes_environment {
            command.env_clear();
        }
        Err(command.exec().into())
    }
}

/// `\xNN` becomes one byte.
fn unescaped(text: &str) -> OsString {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(part.bytes().skip(2));
            }
            None => bytes.extend([b"\\x", part.as_bytes()].concat()),
        }
    }
    OsString::from_vec(bytes)
}

/// The pid survives execve(2), so a memory file of another name was inherited from somebody else.
fn memory_name() -> String {
    format!("plant-{}", process::id())
}

/// What the same process left for itself before it put on its disguise.
fn handed_over() -> Outcome<Option<Vec<String>>> {
    let wanted = PathBuf::from(format!("/memfd:{} (deleted)", memory_name()));
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|link| link == wanted) {
            take_name()?;
            let words = fs::read_to_string(path)?;
            return Ok(Some(
                words.split('\0').filter(|w| !w.is_empty()).map(str::to_owned).collect(),
            ));
        }
    }
    Ok(None)
}

/// The kernel names a process after its file; a disguise goes by its first argument. The kernel cuts it to 15 bytes.
fn take_name() -> Outcome {
    let argument = env::args_os().next().unwrap_or_default();
    let argument = argument.to_string_lossy();
    let name = argument.rsplit('/').next().unwrap_or_default();
    Ok(rustix::thread::set_name(&CString::new(name)?)?)
}
