//! A model as a process of this host, below us: started, and ended with all that it started. We are its subreaper, so that a worker
//! that its server leaves behind becomes our child and not PID 1's.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{
    Pid as RawPid, Signal, WaitOptions, pidfd_send_signal, set_child_subreaper, waitpid,
};

use super::plan::Process;
use crate::{
    act::interrupt::Interrupt,
    host::Host,
    ident::{Pid, ProcessKey},
    observe::processes,
    snapshot::Seen,
    sys,
};

/// After SIGKILL: who does not exit then is stuck in the kernel.
const EXIT_TIME: Duration = Duration::from_secs(2);
/// A look that finds nobody new ends the ending; so many do, too.
const ROUNDS: usize = 8;

/// What a service manager tells its service in the environment (systemd.exec(5), sd_listen_fds(3)).
const FOR_US: [&str; 7] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// A server that was started, and everything below it.
#[derive(Debug)]
pub struct Server {
    host: Host,
    child: Child,
    pidfd: OwnedFd,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It left within its grace period, and nothing of it is left.
    Graceful(Duration),
    /// So many of its processes had to be killed.
    Killed(usize),
    /// These did not exit, though killed.
    Left(Vec<Pid>),
}

impl Server {
    /// Starts it. Its output is ours; it reads nothing.
    pub fn start(host: &Host, process: &Process) -> io::Result<Self> {
        set_child_subreaper(Some(rustix::process::getpid()))?;
        let (program, arguments) =
            process.command.split_first().ok_or_else(|| io::Error::other("no command"))?;
        let mut command = Command::new(program);
        command.args(arguments).envs(&process.environment).stdin(Stdio::null());
        // The service manager's word is for us.
        for name in FOR_US {
            command.env_remove(name);
        }
        sys::keep_sigpipe(&mut command);
        let child = command.spawn()?;
        let pid = Pid(child.id());
        match processes::open_pidfd(pid) {
            Seen::Known(pidfd) => Ok(Self { host: host.clone(), child, pidfd }),
            Seen::Gone | Seen::Denied | Seen::Unreadable(_) => {
                Err(io::Error::other("its pidfd cannot be opened"))
            }
        }
    }

    /// Its own process.
    pub fn pid(&self) -> Pid {
        Pid(self.child.id())
    }

    /// Can be read once it has ended.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, once it has.
    pub fn exit(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Itself and everything below it, by parents: what left its session or group too.
    pub fn all(&self) -> Vec<Pid> {
        let root = Pid(std::process::id());
        below(&self.host, root)
    }

    /// SIGTERM to the server, which tells its workers; its grace period for all of them; SIGKILL for who is left, until a look finds
    /// nobody.
    pub fn end(&mut self, grace: Duration, interrupt: &mut Interrupt) -> Ended {
        let began = Instant::now();
        // Captured before the first signal: afterwards a worker's parent may be gone.
        let captured = self.captured();
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
        let before = interrupt.count();
        for (_, pidfd) in &captured {
            loop {
                let left = grace.saturating_sub(began.elapsed());
                // Told once more to stop, nobody is waited for.
                if processes::has_ended(pidfd) || left.is_zero() || interrupt.count() > before {
                    break;
                }
                interrupt.wait_beside(Some(pidfd.as_fd()), left);
            }
        }
        self.reap();
        let mut killed = 0;
        for _ in 0..ROUNDS {
            let left = self.captured();
            if left.is_empty() {
                break;
            }
            for (_, pidfd) in &left {
                killed += usize::from(pidfd_send_signal(pidfd, Signal::KILL).is_ok());
            }
            let since = Instant::now();
            for (_, pidfd) in &left {
                processes::ends_within(pidfd, EXIT_TIME.saturating_sub(since.elapsed()));
            }
            self.reap();
        }
        let left: Vec<Pid> = self.captured().into_iter().map(|(key, _)| key.pid).collect();
        match (left.is_empty(), killed) {
            (false, _) => Ended::Left(left),
            (true, 0) => Ended::Graceful(began.elapsed()),
            (true, killed) => Ended::Killed(killed),
        }
    }

    /// Everything below us that has not ended, each by a descriptor of its own.
    fn captured(&self) -> Vec<(ProcessKey, OwnedFd)> {
        let open = |pid: Pid| match processes::open_pidfd(pid) {
            Seen::Known(pidfd) => {
                let start_ticks = processes::start_of(pid)?;
                let pidfd_inode = processes::pidfd_inode(&pidfd);
                let key = ProcessKey { pid, start_ticks, pidfd_inode };
                (!processes::has_ended(&pidfd)).then_some((key, pidfd))
            }
            Seen::Gone | Seen::Denied | Seen::Unreadable(_) => None,
        };
        // Whose parent is still one of ours once its descriptor is open was ours when it was opened.
        let opened: Vec<(ProcessKey, OwnedFd)> = self.all().into_iter().filter_map(open).collect();
        let still = self.all();
        let mut all: Vec<(ProcessKey, OwnedFd)> =
            opened.into_iter().filter(|(key, _)| still.contains(&key.pid)).collect();
        // The server itself is known though '/proc' shows nothing.
        let is_missing = !all.iter().any(|(key, _)| key.pid == self.pid());
        if is_missing
            && !processes::has_ended(&self.pidfd)
            && let Ok(pidfd) = self.pidfd.try_clone()
        {
            let key = ProcessKey { pid: self.pid(), start_ticks: 0, pidfd_inode: None };
            all.push((key, pidfd));
        }
        all
    }

    /// Takes note of ended children that became ours; the server's own end is told by its handle.
    fn reap(&mut self) {
        let _ = self.child.try_wait();
        let (us, own) = (std::process::id(), self.pid());
        for pid in self.host.pids().known().into_iter().flatten().filter(|pid| **pid != own) {
            let Seen::Known(stat) = processes::read_stat(&self.host, *pid) else { continue };
            let raw = i32::try_from(pid.0).ok().and_then(RawPid::from_raw);
            if stat.state == 'Z' && u32::try_from(stat.ppid) == Ok(us) {
                let _ = waitpid(raw, WaitOptions::NOHANG);
            }
        }
    }
}

/// The child that a process has had the longest: of one that keeps a server, that server.
pub fn first_child(host: &Host, parent: Pid) -> Option<Pid> {
    let of = |pid: &Pid| match processes::read_stat(host, *pid) {
        Seen::Known(stat) if u32::try_from(stat.ppid) == Ok(parent.0) && stat.state != 'Z' => {
            Some((stat.starttime, *pid))
        }
        Seen::Known(_) | Seen::Gone | Seen::Denied | Seen::Unreadable(_) => None,
    };
    let pids = host.pids();
    pids.known().into_iter().flatten().filter_map(of).min().map(|(_, pid)| pid)
}

/// Everything below a process, by `ppid` of proc_pid_stat(5); zombies are left out.
fn below(host: &Host, root: Pid) -> Vec<Pid> {
    let mut children: BTreeMap<Pid, Vec<Pid>> = BTreeMap::new();
    for pid in host.pids().known().into_iter().flatten() {
        if let Seen::Known(stat) = processes::read_stat(host, *pid)
            && let Ok(parent) = u32::try_from(stat.ppid)
            && (stat.state != 'Z' || stat.num_threads > 1)
        {
            children.entry(Pid(parent)).or_default().push(*pid);
        }
    }
    let (mut all, mut next) = (Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        let found = children.remove(&pid).unwrap_or_default();
        all.extend(found.iter().copied());
        next.extend(found);
    }
    all
}
