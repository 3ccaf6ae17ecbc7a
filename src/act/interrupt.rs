//! SIGINT, SIGTERM and SIGHUP (a connection that dropped) to ourselves, as a descriptor that a poll can wait on.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::sys;

/// Counts the signals that asked us to stop. The first lets what was begun be finished; the second ends
/// the waiting as well.
#[derive(Debug)]
pub struct Interrupt {
    wake: UnixStream,
    seen: usize,
    taken: Vec<i32>,
}

impl Interrupt {
    /// Takes over SIGINT, SIGTERM and SIGHUP of this process, but for those that it was started to ignore (nohup(1), a
    /// shell's background): what is ignored stays so over an exec.
    pub fn install() -> io::Result<Self> {
        let (wake, ring) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut taken = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if !sys::is_ignored(signal)? {
                signal_hook::low_level::pipe::register(signal, ring.try_clone()?)?;
                taken.push(signal);
            }
        }
        Ok(Self { wake, seen: 0, taken })
    }

    /// From now on they end this process, as they did before; tells how many came until then.
    pub fn give_up(mut self) -> io::Result<usize> {
        for signal in &self.taken {
            sys::restore_default(*signal)?;
        }
        Ok(self.count())
    }

    /// How many came so far.
    pub fn count(&mut self) -> usize {
        let mut bytes = [0; 64];
        while let Ok(read @ 1..) = self.wake.read(&mut bytes) {
            self.seen += read;
        }
        self.seen
    }

    /// Becomes readable with the next one.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Waits this long, or until the next signal; returns whether one came.
    pub fn wait(&mut self, time: Duration) -> bool {
        self.wait_beside(None, time)
    }

    /// The same, or until this descriptor can be read: a pidfd's process has ended then.
    pub fn wait_beside(&mut self, other: Option<BorrowedFd<'_>>, time: Duration) -> bool {
        self.wait_among(other.as_slice(), time)
    }

    /// The same, or until one of these can be read.
    pub fn wait_among(&mut self, others: &[BorrowedFd<'_>], time: Duration) -> bool {
        let before = self.count();
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut fds = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
            fds.extend(others.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
            let _ = poll(&mut fds, Some(&timespec(left)));
            let is_other = fds.iter().skip(1).any(|fd| !fd.revents().is_empty());
            if self.count() > before {
                return true;
            }
            if is_other {
                return false;
            }
        }
    }
}

/// A duration as poll takes it.
pub fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}
