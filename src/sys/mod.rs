//! The few kernel calls that no crate wraps safely; the only place where unsafe is allowed.

#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use crate::ident::Pid;

/// File handle type of kernfs (`FILEID_KERNFS`, include/linux/exportfs.h).
const FILEID_KERNFS: libc::c_int = 0xfe;

/// `struct file_handle` with the eight bytes of a kernfs node id behind it.
#[repr(C)]
struct KernfsHandle {
    handle_bytes: libc::c_uint,
    handle_type: libc::c_int,
    id: [u8; 8],
}

/// Opens the cgroup of this id, as socket diagnostics report it (INET_DIAG_CGROUP_ID), below the cgroup2
/// mount that `mount` is a descriptor of. Needs CAP_DAC_READ_SEARCH (open_by_handle_at(2)). ESTALE: that
/// cgroup no longer exists.
pub fn open_cgroup(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    let mut handle =
        KernfsHandle { handle_bytes: 8, handle_type: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: `handle` has the layout of struct file_handle with handle_bytes = 8 bytes of f_handle, is
    // alive for the call and only read by the kernel; the descriptor is borrowed for the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            std::ptr::from_mut(&mut handle),
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::other("descriptor out of range"))?;
    // SAFETY: the kernel has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether two tasks share one descriptor table (`KCMP_FILES` of kcmp(2)). Needs CAP_SYS_PTRACE.
pub fn shares_descriptors(a: Pid, b: Pid) -> io::Result<bool> {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: kcmp takes five integers and touches no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILES, 0, 0) };
    match order {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(true),
        _ => Ok(false),
    }
}

/// The user who listens at the other end of a Unix socket (SO_PEERCRED of unix(7)), as our own user namespace numbers users.
/// rustix has the call, and fails where the listener is outside our pid namespace: its pid is 0 here.
pub fn peer_user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let whole = libc::socklen_t::try_from(size_of_val(&peer)).map_err(io::Error::other)?;
    let mut length = whole;
    // SAFETY: the kernel writes at most `length` bytes, the size of `peer`, which is alive for the call, as is `length`;
    // the descriptor is borrowed for it.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut peer).cast(),
            &raw mut length,
        )
    };
    match answer {
        0 if length == whole => Ok(peer.uid),
        0 => Err(io::Error::other("the kernel's ucred has another size")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the command begin a session of its own (setsid(2)): no terminal of ours that it could type into (TIOCSTI), and a
/// process group with its pid, by which its children are ended too.
pub fn begin_session(command: &mut Command) {
    let begin = || rustix::process::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure makes one system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(begin) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_our_own_socket_is_our_own_user() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = std::os::fd::AsFd::as_fd(&one);
        assert_eq!(peer_user(fd).unwrap(), rustix::process::geteuid().as_raw());
    }

    #[test]
    fn a_process_shares_its_descriptors_with_itself_but_not_with_init() {
        let me = Pid(std::process::id());
        assert!(shares_descriptors(me, me).unwrap());
        match shares_descriptors(me, Pid::INIT) {
            Ok(shared) => assert!(!shared),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EPERM)), "{error}"),
        }
    }
}
