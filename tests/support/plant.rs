//! A process in disguise: takes any command line or title, holds what it is told to hold, and stays.
//!
//! ```text
//! plant --as 'python3 -u /app/server.py --config /etc/x.yaml' --listen 8091 --ready /run/planted/x
//! ```
//!
//! | option | effect |
//! |---|---|
//! | `--as TEXT` | its command line, split at spaces |
//! | `--title TEXT` | its title as setproctitle(3) leaves it: padded with NULs, environment wiped, name cut to 15 bytes |
//! | `--bulk BYTES` | lengthens the command line by so much |
//! | `--listen`, `--bind` `[udp:][ADDRESS:]PORT` | listens there, or binds only; may be repeated |
//! | `--connect FROM:TO` | an outgoing connection to 127.0.0.1:TO with the local port FROM |
//! | `--descriptors N` | holds so many descriptors |
//! | `--ignore-term` | survives SIGTERM |
//! | `--setsid` | leads a session of its own |
//! | `--daemonise` | as the first option: forks twice, as daemon(7) wants it, and returns |
//! | `--ready FILE` | writes its pid there once all is in place |
//! | `--leave` | ends once all is in place |
//! | `--child …` | all that follows is for a child process |

use std::{
    env,
    error::Error,
    ffi::CString,
    fs::{self, File},
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    str::FromStr,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use rustix::{
    fs::MemfdFlags,
    net::{AddressFamily, SocketType},
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
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
struct Part {
    setsid: bool,
    ignore_term: bool,
    leave: bool,
    descriptors: usize,
    listen: Vec<Place>,
    bind: Vec<Place>,
    connect: Vec<(u16, u16)>,
    ready: Option<PathBuf>,
    child: Option<Vec<String>>,
}

/// `[udp:][ADDRESS:]PORT`
struct Place {
    is_udp: bool,
    address: SocketAddr,
}

impl FromStr for Place {
    type Err = Box<dyn Error>;

    fn from_str(text: &str) -> Outcome<Self> {
        let (is_udp, text) = text.strip_prefix("udp:").map_or((false, text), |rest| (true, rest));
        let address = match text.parse::<u16>() {
            Ok(port) => (Ipv4Addr::UNSPECIFIED, port).into(),
            Err(_) => text.parse()?,
        };
        Ok(Self { is_udp, address })
    }
}

impl Part {
    fn parse(words: Vec<String>) -> Outcome<Self> {
        let mut part = Self::default();
        let mut rest = words.into_iter();
        while let Some(option) = rest.next() {
            let mut value = || rest.next().ok_or(format!("'{option}' wants a value"));
            match option.as_str() {
                "--setsid" => part.setsid = true,
                "--ignore-term" => part.ignore_term = true,
                "--leave" => part.leave = true,
                "--descriptors" => part.descriptors = value()?.parse()?,
                "--listen" => part.listen.push(value()?.parse()?),
                "--bind" => part.bind.push(value()?.parse()?),
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
        let _held = self.hold()?;
        if let Some(words) = self.child {
            let mut child = Command::new(env::current_exe()?).args(words).spawn()?;
            thread::spawn(move || child.wait());
        }
        if let Some(file) = self.ready {
            announce(&file)?;
        }
        if self.leave {
            return Ok(());
        }
        loop {
            thread::park();
        }
    }

    /// Takes every socket and descriptor that was asked for.
    fn hold(&self) -> Outcome<Vec<OwnedFd>> {
        let mut held = Vec::new();
        for place in &self.listen {
            held.push(if place.is_udp {
                UdpSocket::bind(place.address)?.into()
            } else {
                TcpListener::bind(place.address)?.into()
            });
        }
        for place in &self.bind {
            let kind = if place.is_udp { SocketType::DGRAM } else { SocketType::STREAM };
            held.push(bound(place.address, kind)?);
        }
        for (from, to) in &self.connect {
            let socket = bound((Ipv4Addr::UNSPECIFIED, *from).into(), SocketType::STREAM)?;
            rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, *to)))?;
            held.push(socket);
        }
        for _ in 0..self.descriptors {
            held.push(File::open("/dev/null")?.into());
        }
        Ok(held)
    }
}

fn bound(address: SocketAddr, kind: SocketType) -> Outcome<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, kind, None)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
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
    arguments: Vec<String>,
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
                "--as" => disguise.arguments = value()?.split(' ').map(str::to_owned).collect(),
                "--title" => {
                    disguise.arguments = [vec![value()?], vec![String::new(); 40]].concat();
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
            self.arguments.push("x".repeat(piece));
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
    let argument = env::args().next().unwrap_or_default();
    let name = argument.rsplit('/').next().unwrap_or_default();
    Ok(rustix::thread::set_name(&CString::new(name)?)?)
}
