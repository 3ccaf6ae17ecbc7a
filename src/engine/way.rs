//! How we get to an engine's socket: opened first without touching it, a user's only beneath that user's own folder, and
//! connected through that descriptor; then who listens there is asked of the kernel (SO_PEERCRED of unix(7)).

use std::{
    fmt, fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Component, Path},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use super::Engine;
use crate::{
    host::seen,
    ident::{EngineRef, Pid},
    snapshot::Seen,
    sys,
};

/// Why an engine did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// There is none here.
    Absent,
    /// We may not ask it.
    Denied,
    /// A socket is left over: nobody listens there.
    Refused,
    /// It took the connection, or started, and did not answer in time.
    Late,
    /// The way to it fails on our side; the text says how. It was not asked.
    NoWay(String),
    /// What came is no answer of an engine; the text says why.
    Strange(String),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "there is no such engine here",
            Self::Denied => "permission denied",
            Self::Refused => "nobody listens at its socket",
            Self::Late => "no answer in time",
            Self::NoWay(what) | Self::Strange(what) => what,
        })
    }
}

impl NoAnswer {
    /// What is then known of anything that it was asked: nothing. `Gone` least of all.
    pub(super) fn of<T>(&self, engine: EngineRef) -> Seen<T> {
        Seen::Unreadable(match self {
            Self::Denied => return Seen::Denied,
            Self::Absent => format!("no {engine} here"),
            Self::Refused => format!("nobody listens at the socket of {engine}"),
            Self::Late => format!("{engine} did not answer in time"),
            Self::NoWay(what) | Self::Strange(what) => format!("{engine}: {what}"),
        })
    }
}

/// The socket itself, without touching it. A user's is taken from that user's folder alone: a link in it might lead root to
/// anybody's socket. A file system of that user's may let us wait for ever.
pub(super) fn open(engine: &Engine) -> Result<OwnedFd, NoAnswer> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = || -> io::Result<OwnedFd> {
        let path = &engine.socket;
        if engine.name.owner == 0 {
            return Ok(openat(CWD, path, flags, Mode::empty())?);
        }
        let folder = engine.host.path(format!("run/user/{}", engine.name.owner));
        let below = path.strip_prefix(&folder).map_err(io::Error::other)?;
        // Step by step, since openat2 is not to be had before Linux 5.6, nor in a unit with RestrictSUIDSGID=.
        let mut at = openat(CWD, &folder, flags | OFlags::NOFOLLOW, Mode::empty())?;
        for step in below.components() {
            let Component::Normal(name) = step else {
                return Err(io::Error::other("the path leads elsewhere"));
            };
            at = openat(&at, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(at)
    };
    let socket = match seen(open()) {
        Seen::Known(socket) => socket,
        Seen::Gone => return Err(NoAnswer::Absent),
        Seen::Denied => return Err(NoAnswer::Denied),
        Seen::Unreadable(why) => return Err(NoAnswer::NoWay(why)),
    };
    match fstat(&socket) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_socket() => Ok(socket),
        Ok(_) => Err(NoAnswer::NoWay("what is there is no socket".to_owned())),
        Err(error) => Err(NoAnswer::NoWay(error.to_string())),
    }
}

/// A connection through an opened socket, non-blocking; with it, whether a pid means the same there as here.
pub(super) fn reach(socket: &OwnedFd, owner: u32) -> Result<(UnixStream, bool), NoAnswer> {
    let connected = || -> rustix::io::Result<OwnedFd> {
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&fd, &address)?;
        Ok(fd)
    };
    let fd = connected().map_err(|error| match error.raw_os_error() {
        // The socket is open: what is missing is our own folder in /proc, by which we name it.
        libc::ENOENT => NoAnswer::NoWay("'/proc' is not this run's own".to_owned()),
        libc::EACCES | libc::EPERM => NoAnswer::Denied,
        libc::ECONNREFUSED => NoAnswer::Refused,
        // A full backlog, where a blocking connect would wait for ever.
        libc::EAGAIN => NoAnswer::Late,
        _ => NoAnswer::NoWay(error.to_string()),
    })?;
    let (peer, pid) = sys::socket_peer(fd.as_fd()).map_err(|e| NoAnswer::NoWay(e.to_string()))?;
    if may_speak(peer, owner, rustix::process::geteuid().as_raw()) {
        Ok((UnixStream::from(fd), pid.is_some_and(counts_as_we_do)))
    } else {
        Err(NoAnswer::Strange(format!("user {peer} listens there")))
    }
}

/// Whether a process numbers processes as we do: it is in our pid namespace. PID 1's may be unreadable, and is ours.
fn counts_as_we_do(peer: Pid) -> bool {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/pid")).ok();
    let theirs = namespace(&peer.to_string());
    peer == Pid::INIT || (theirs.is_some() && theirs == namespace("self"))
}

/// Whose word about an owner's containers counts: the owner's, root's and our own.
fn may_speak(peer: u32, owner: u32, ourselves: u32) -> bool {
    peer == owner || peer == 0 || peer == ourselves
}

/// Whether there is something at a place of root's.
pub(super) fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_word_counts_for_that_user_alone() {
        assert!(may_speak(1000, 1000, 0) && may_speak(0, 0, 0) && may_speak(0, 1000, 0));
        assert!(!may_speak(1000, 0, 0) && !may_speak(1001, 1000, 0));
        // Unprivileged, we may ask our own.
        assert!(may_speak(1000, 1000, 1000) && !may_speak(1001, 1000, 1000));
    }
}
