//! Ways to hold a socket that `/proc/PID/fd` does not show.

#![allow(unsafe_code, reason = "no crate wraps these calls safely")]

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    str::FromStr,
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// How the listeners are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a descriptor of the process.
    #[default]
    Plain,
    /// By a thread that outlives the first.
    Outlived,
    /// By a thread with a descriptor table of its own.
    OwnTable,
    /// Registered with io_uring only.
    Ring,
    /// On the way through a Unix socket.
    InFlight,
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "outlived" => Ok(Self::Outlived),
            "own-table" => Ok(Self::OwnTable),
            "ring" => Ok(Self::Ring),
            "in-flight" => Ok(Self::InFlight),
            _ => Err(format!("no way '{text}'")),
        }
    }
}

/// Ends the calling thread and leaves the others to themselves, as pthread_exit(3) in `main`.
pub(crate) fn end_thread() -> ! {
    loop {
        // SAFETY: exit(2) takes one integer; nothing of this thread is used afterwards.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

/// Gives the calling thread a descriptor table of its own, a copy of the common one.
pub(crate) fn take_own_table() -> io::Result<()> {
    // SAFETY: the descriptors of this thread's values are in the copy under the same numbers.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }?)
}

/// Registers the descriptors with a ring, which holds them from then on.
pub(crate) fn into_ring(held: &[OwnedFd]) -> io::Result<OwnedFd> {
    const IORING_REGISTER_FILES: libc::c_uint = 2;
    let mut parameters = [0_u32; 30]; // struct io_uring_params
    // SAFETY: the kernel reads and writes `parameters`, which has the size of its struct.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    let ring = i32::try_from(ring).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let files: Vec<i32> = held.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: the kernel reads as many integers as it is told of.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            IORING_REGISTER_FILES,
            files.as_ptr(),
            files.len(),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(ring) }
}

/// Sends the descriptors into a Unix socket from which nobody takes them.
pub(crate) fn into_flight(held: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    let (from, to) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for socket in held {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let one = [socket.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&one)) {
            return Err(io::Error::other("no room for a descriptor"));
        }
        rustix::net::sendmsg(&from, &[IoSlice::new(b"x")], &mut control, SendFlags::empty())?;
    }
    Ok(vec![from, to])
}
