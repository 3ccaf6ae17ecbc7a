//! A busy host for measurements, and a command run on it:
//!
//! ```text
//! load --cgroups FOLDER --groups 300 -- COMMAND …
//! ```
//!
//! 3,000 processes with 149,000 descriptors, 3,000 listeners on 127.0.0.1 from port 10000 on, 200 UDP sockets and 4,000
//! connections, spread over so many control groups below FOLDER (an empty folder of a cgroup2 mount). All ends with the
//! command; nothing of it outlives this process. Wants a network namespace of its own, where the ports are free.
//!
//! | option | of what another number |
//! |---|---|
//! | `--processes N` | processes; every tenth is a server |
//! | `--descriptors N` | descriptors of each that are no Internet sockets with a port |
//! | `--listeners N`, `--connections N` | all servers' together; the listener on port 10000 + N is of server N modulo the servers |

#![allow(unsafe_code)] // fork(2): three thousand processes of one kind cost a second; executed anew, ten

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
    process::{
        Pid, Resource, Rlimit, Signal, WaitOptions, getrlimit, kill_process,
        set_parent_process_death_signal, setrlimit, waitpid,
    },
};

/// Every tenth process holds the sockets and most of the descriptors, as a few servers do on a real host.
const SERVER_EVERY: usize = 10;
const FIRST_PORT: u16 = 10_000;
const UDP_SOCKETS: usize = 200;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Size {
    processes: usize,
    /// Descriptors that are no Internet sockets with a port, of a server and of any other process.
    server_descriptors: usize,
    other_descriptors: usize,
    listeners: usize,
    connections: usize,
}

impl Size {
    const fn servers(self) -> usize {
        self.processes.div_ceil(SERVER_EVERY)
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut size = Size {
        processes: 3000,
        server_descriptors: 300,
        other_descriptors: 12,
        listeners: 3000,
        connections: 4000,
    };
    let (mut cgroups, mut groups) = (None, 1);
    let mut words = env::args().skip(1);
    let program = loop {
        let word = words.next().ok_or("expected '--' and a command")?;
        let value = words.next().ok_or_else(|| format!("expected something behind '{word}'"))?;
        match word.as_str() {
            "--" => break value,
            "--cgroups" => cgroups = Some(PathBuf::from(value)),
            "--groups" => groups = value.parse()?,
            "--processes" => size.processes = value.parse()?,
            "--descriptors" => {
                size.server_descriptors = value.parse()?;
                size.other_descriptors = size.server_descriptors;
            }
            "--listeners" => size.listeners = value.parse()?,
            "--connections" => size.connections = value.parse()?,
            _ => return Err(format!("'{word}' is not known").into()),
        }
    };
    if size.listeners < size.servers() {
        return Err(format!("each of {} servers needs a listener", size.servers()).into());
    }
    let cgroups = cgroups.ok_or("expected '--cgroups'")?;
    let mut load = Load { cgroups, groups, size, members: Vec::new() };
    load.make()?;
    let status = Command::new(program).args(words).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

struct Load {
    cgroups: PathBuf,
    groups: usize,
    size: Size,
    members: Vec<Pid>,
}

impl Load {
    fn make(&mut self) -> Result<(), Box<dyn Error>> {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
        for group in 0..self.groups {
            fs::create_dir(group_path(&self.cgroups, group))?;
        }
        let (size, processes) = (self.size, self.size.processes);
        let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        for number in 0..processes {
            // SAFETY: this process has one thread, so its copy may do all that it may do.
            match unsafe { libc::fork() } {
                0 => {
                    drop(ready);
                    let group = number / SERVER_EVERY % self.groups;
                    be_member(number, size, &group_path(&self.cgroups, group), tell)
                }
                pid => {
                    let pid = Pid::from_raw(pid).filter(|_| pid > 0);
                    self.members.push(pid.ok_or_else(io::Error::last_os_error)?);
                }
            }
        }
        drop(tell);
        let mut told = Vec::new();
        File::from(ready).read_to_end(&mut told)?;
        if told.len() == processes {
            return Ok(());
        }
        Err(format!("{} of {processes} processes did not come up", processes - told.len()).into())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for &pid in &self.members {
            let _ = kill_process(pid, Signal::KILL);
        }
        for &pid in &self.members {
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        for group in 0..self.groups {
            let _ = fs::remove_dir(group_path(&self.cgroups, group));
        }
    }
}

fn group_path(cgroups: &Path, group: usize) -> PathBuf {
    cgroups.join(format!("group-{group}"))
}

/// Takes what this process is to hold, tells so, and stays until it is killed.
fn be_member(number: usize, size: Size, group: &Path, tell: OwnedFd) -> ! {
    let taken = take(number, size, group);
    let told = taken.and_then(|held| File::from(tell).write_all(b"x").map(|()| held));
    match told {
        Ok(_held) => loop {
            // SAFETY: pause(2) takes nothing and touches no memory.
            unsafe { libc::pause() };
        },
        Err(error) => {
            let _ = writeln!(io::stderr(), "process {number}: {error}");
            // SAFETY: ends this copy without running what belongs to the original.
            unsafe { libc::_exit(1) }
        }
    }
}

fn take(number: usize, size: Size, group: &Path) -> io::Result<Vec<OwnedFd>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // First the group: a socket remembers the one that it was made in.
    fs::write(group.join("cgroup.procs"), "0")?;
    let is_server = number.is_multiple_of(SERVER_EVERY);
    let mut held = Vec::new();
    let descriptors = if is_server { size.server_descriptors } else { size.other_descriptors };
    while held.len() < descriptors {
        held.push(File::open("/dev/null")?.into());
        held.push(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (one, other) = UnixStream::pair()?;
        held.extend([OwnedFd::from(one), other.into()]);
        held.push(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?);
    }
    held.truncate(descriptors);
    if is_server {
        serve(number / SERVER_EVERY, size, &mut held)?;
    }
    Ok(held)
}

/// This server's share of the sockets.
fn serve(server: usize, size: Size, held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let share = |all: usize| (server..all).step_by(size.servers());
    let port = |number: usize| FIRST_PORT + u16::try_from(number).unwrap_or_default();
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port(server)))?;
    for _ in share(size.connections) {
        held.push(TcpStream::connect(first.local_addr()?)?.into());
        held.push(first.accept()?.0.into());
    }
    held.push(first.into());
    for number in share(size.listeners).skip(1) {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, port(number)))?.into());
    }
    for number in share(UDP_SOCKETS) {
        held.push(UdpSocket::bind((Ipv4Addr::LOCALHOST, port(number)))?.into());
    }
    Ok(())
}
