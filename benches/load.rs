//! A busy host for measurements, and a command run on it:
//!
//! ```text
//! load --cgroups FOLDER --groups 300 [--processes 2000] -- COMMAND …
//! ```
//!
//! 3,000 processes with 149,000 descriptors, 3,000 listeners on 127.0.0.1 from port 10000 on, 200 UDP sockets and 4,000
//! connections, spread over so many control groups below FOLDER (an empty folder of a cgroup2 mount). Fewer processes have as many
//! sockets. All ends with the command; nothing of it outlives this process. Wants a network namespace of its own, where the ports
//! are free.

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

const PROCESSES: usize = 3000;
/// Every tenth process holds the sockets and most of the descriptors, as a few servers do on a real host.
const SERVER_EVERY: usize = 10;
/// Descriptors that are no Internet sockets with a port, of a server and of any other process.
const SERVER_DESCRIPTORS: usize = 300;
const OTHER_DESCRIPTORS: usize = 12;
const FIRST_PORT: u16 = 10_000;
const LISTENERS: usize = 3000;
const UDP_SOCKETS: usize = 200;
const CONNECTIONS: usize = 4000;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut words = env::args().skip(1).peekable();
    let mut option = |name: &str| -> Result<String, String> {
        let found = words.next_if(|word| word == name).and_then(|_| words.next());
        found.ok_or_else(|| format!("expected '{name}' and its value"))
    };
    let cgroups = PathBuf::from(option("--cgroups")?);
    let groups: usize = option("--groups")?.parse()?;
    let processes = option("--processes").map_or(Ok(PROCESSES), |text| text.parse())?;
    let program = option("--")?;
    let mut load = Load { cgroups, groups, processes, members: Vec::new() };
    load.make()?;
    let status = Command::new(program).args(words).status()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

struct Load {
    cgroups: PathBuf,
    groups: usize,
    processes: usize,
    members: Vec<Pid>,
}

impl Load {
    fn make(&mut self) -> Result<(), Box<dyn Error>> {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
        for group in 0..self.groups {
            fs::create_dir(group_path(&self.cgroups, group))?;
        }
        let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let all = self.processes;
        for number in 0..all {
            // SAFETY: this process has one thread, so its copy may do all that it may do.
            match unsafe { libc::fork() } {
                0 => {
                    drop(ready);
                    let group = number / SERVER_EVERY % self.groups;
                    be_member((number, all), &group_path(&self.cgroups, group), tell)
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
        if told.len() == all {
            return Ok(());
        }
        Err(format!("{} of {all} processes did not come up", all - told.len()).into())
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
fn be_member((number, all): (usize, usize), group: &Path, tell: OwnedFd) -> ! {
    let taken = take(number, all, group);
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

fn take(number: usize, all: usize, group: &Path) -> io::Result<Vec<OwnedFd>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // First the group: a socket remembers the one that it was made in.
    fs::write(group.join("cgroup.procs"), "0")?;
    let is_server = number.is_multiple_of(SERVER_EVERY);
    let mut held = Vec::new();
    let descriptors = if is_server { SERVER_DESCRIPTORS } else { OTHER_DESCRIPTORS };
    while held.len() < descriptors {
        held.push(File::open("/dev/null")?.into());
        held.push(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (one, other) = UnixStream::pair()?;
        held.extend([OwnedFd::from(one), other.into()]);
        held.push(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?);
    }
    held.truncate(descriptors);
    if is_server {
        serve(number / SERVER_EVERY, all / SERVER_EVERY, &mut held)?;
    }
    Ok(held)
}

/// This server's share of the sockets.
fn serve(server: usize, servers: usize, held: &mut Vec<OwnedFd>) -> io::Result<()> {
    let share = |all: usize| (server..all).step_by(servers);
    let port = |number: usize| FIRST_PORT + u16::try_from(number).unwrap_or_default();
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port(server)))?;
    for _ in share(CONNECTIONS) {
        held.push(TcpStream::connect(first.local_addr()?)?.into());
        held.push(first.accept()?.0.into());
    }
    held.push(first.into());
    for number in share(LISTENERS).skip(1) {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, port(number)))?.into());
    }
    for number in share(UDP_SOCKETS) {
        held.push(UdpSocket::bind((Ipv4Addr::LOCALHOST, port(number)))?.into());
    }
    Ok(())
}
