//! The few kernel calls that no crate wraps safely; the only place where unsafe is allowed.

#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::process::Signal;

use crate::ident::Pid;

pub mod nvml;

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
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: kcmp takes five integers and touches no memory of ours.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, KCMP_FILES, UNUSED, UNUSED) };
    match order {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(true),
        _ => Ok(false),
    }
}

/// The user who made the user namespace of this descriptor (`/proc/PID/ns/user`), as our own user namespace numbers
/// users (`NS_GET_OWNER_UID`, ioctl_ns(2)).
pub fn namespace_owner(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;
    /// `NSFS_MAGIC` (include/uapi/linux/magic.h).
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    // To another file's driver the same number may be another request, of which nothing is known here.
    if rustix::fs::fstatfs(namespace)?.f_type != NSFS_MAGIC {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let mut uid: libc::uid_t = 0;
    // SAFETY: the descriptor is a namespace's, as just seen, and borrowed for the call; of those the request writes one uid_t, to
    // `uid`, which is alive for the call.
    let answer = unsafe {
        libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, std::ptr::from_mut(&mut uid))
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(uid) }
}

/// Who made the socket at the other end listen (SO_PEERCRED of unix(7)): the user, and the process as our pid namespace numbers
/// it; none where it is in no namespace below ours. rustix takes that 0 for a pid, which it is not.
pub fn socket_peer(socket: BorrowedFd<'_>) -> io::Result<(u32, Option<Pid>)> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = u32::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: `peer` and `length` are alive for the call, and the kernel writes at most `length` bytes to `peer`, which any
    // bits fit.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            std::ptr::from_mut(&mut peer).cast(),
            std::ptr::from_mut(&mut length),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = u32::try_from(peer.pid).ok().filter(|&pid| pid != 0).map(Pid);
    Ok((peer.uid, pid))
}

/// What may be asked of the older packet filter's tables (`IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`,
/// linux/netfilter_ipv4/ip_tables.h; the same numbers in ip6_tables.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableQuestion {
    /// `struct ipt_getinfo`.
    Info,
    /// `struct ipt_get_entries`, with the entries behind it.
    Entries,
}

/// Has the kernel answer such a question of IPv4's tables, or of IPv6's, in the bytes that hold the question. Returns how many of
/// them it wrote.
pub fn ask_table(
    socket: BorrowedFd<'_>,
    is_ipv6: bool,
    question: TableQuestion,
    bytes: &mut [u8],
) -> io::Result<usize> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut length = u32::try_from(bytes.len()).map_err(too_long)?;
    let level = if is_ipv6 { libc::SOL_IPV6 } else { libc::SOL_IP };
    let option = match question {
        TableQuestion::Info => 64,
        TableQuestion::Entries => 65,
    };
    // SAFETY: `bytes` and `length` are alive for the call, and any bits fit a byte. These two options read and write at most `length`
    // bytes there (do_ipt_get_ctl, do_ip6t_get_ctl). Others would take an address from those bytes and write to it
    // (TCP_ZEROCOPY_RECEIVE), which is why the caller does not choose.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            bytes.as_mut_ptr().cast(),
            std::ptr::from_mut(&mut length),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(length as usize) }
}

/// Lets a socket receive only what this classic BPF program accepts (SO_ATTACH_FILTER of socket(7)). The kernel checks the
/// program and takes a copy.
pub fn attach_filter(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(too_long)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `program` and the `len` instructions that it points at are alive for the call and only read by the kernel; the
    // descriptor is borrowed for the call.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&program).cast(),
            u32::try_from(size_of::<libc::sock_fprog>()).unwrap_or_default(),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Has the command begin a session of its own (setsid(2)): no terminal of ours that it could type into (TIOCSTI), and a
/// process group with its pid, by which its children are ended too. Should we be killed it ends with us, and so it does with the
/// thread that starts it (PR_SET_PDEATHSIG(2const)): that one is to wait for it.
pub fn begin_session(command: &mut Command) {
    let ourselves = rustix::process::getpid();
    let begin = move || {
        rustix::process::setsid()?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // We may have been killed before it was asked for.
        if rustix::process::getppid() != Some(ourselves) {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes a few system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(begin) };
}

/// Copies of the descriptors that a service manager opened for us, with their names (sd_listen_fds(3)); all are closed with an exec
/// from now on. Once: whoever asks again gets none.
pub fn listen_fds() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let copy = |(fd, name): (RawFd, String)| {
        // SAFETY: it is open, as was just seen (fcntl(2)), and borrowed for one call. It is not made ours: were the environment to
        // name a descriptor that something else here owns, that would be closed twice.
        let given = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok((rustix::io::fcntl_dupfd_cloexec(given, 0)?, name))
    };
    sd_notify::listen_fds_with_names()?.map(copy).collect()
}

/// Whether this program has rights that its file gave it (set-user-ID, set-group-ID, file capabilities: capabilities(7)), which
/// whoever started it did not have. AT_SECURE (getauxval(3)) would say so, too, and of a change of SELinux's domain as well.
pub fn has_rights_of_its_file() -> io::Result<bool> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    /// PR_CAP_AMBIENT_IS_SET.
    const IS_SET: libc::c_ulong = 1;
    const UNUSED: libc::c_ulong = 0;
    if getuid() != geteuid() || getgid() != getegid() {
        return Ok(true);
    }
    if geteuid().is_root() {
        return Ok(false);
    }
    // By an exec, a user's permitted capabilities are the ambient ones and what the file adds.
    let permitted = rustix::thread::capabilities(None)?.permitted.bits();
    let is_ambient = |bit: u32| {
        let which = libc::c_ulong::from(bit);
        // SAFETY: it takes five integers and touches no memory of ours.
        let answer = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, IS_SET, which, UNUSED, UNUSED) };
        answer == 1
    };
    Ok((0..u64::BITS).filter(|bit| permitted & (1 << bit) != 0).any(|bit| !is_ambient(bit)))
}

/// Whether a signal is ignored (sigaction(2)).
pub fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    // SAFETY: all zeros are a value of this struct: the default handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: without a new action nothing changes; the kernel writes the old one to `action`, which is alive for the call.
    let answer =
        unsafe { libc::sigaction(signal, std::ptr::null(), std::ptr::from_mut(&mut action)) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Has a signal do again what it does by default.
pub fn restore_default(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: the default handler is none of our code.
    match unsafe { libc::signal(signal, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether we were started with SIGPIPE ignored, as systemd starts its services (IgnoreSIGPIPE= of systemd.exec(5)).
static IGNORED_SIGPIPE: AtomicBool = AtomicBool::new(false);

/// Rust ignores it before `main`, so that this has to be asked before Rust begins.
extern "C" fn note_sigpipe() {
    IGNORED_SIGPIPE.store(is_ignored(libc::SIGPIPE).unwrap_or_default(), Ordering::Relaxed);
}

// SAFETY: the section holds addresses of functions (System V ABI, 'Initialization and Termination Functions'), and this is one. The
// loader calls it once, before `main`, when the C library is set up, with arguments (glibc) or without (musl), which a C function may
// ignore. It does not unwind, and uses nothing that Rust would have to set up first.
#[unsafe(link_section = ".init_array")]
#[used]
static NOTE_SIGPIPE: extern "C" fn() = note_sigpipe;

/// Has the command find SIGPIPE as we did; `Command` gives it the default.
pub fn keep_sigpipe(command: &mut Command) {
    if !IGNORED_SIGPIPE.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: to ignore a signal runs none of our code.
    let ignore = || match unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: before exec the closure makes one system call, allocates nothing and takes no lock.
    unsafe { command.pre_exec(ignore) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_shares_its_descriptors_with_itself_but_not_with_init() {
        let me = Pid(std::process::id());
        assert!(shares_descriptors(me, me).unwrap());
        match shares_descriptors(me, Pid::INIT) {
            Ok(shared) => assert!(!shared),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EPERM)), "{error}"),
        }
    }

    #[test]
    fn the_first_user_namespace_is_roots() {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        if !map.split_whitespace().eq(["0", "0", "4294967295"]) {
            println!("skipped: this is not the first user namespace");
            return;
        }
        let namespace = std::fs::File::open("/proc/self/ns/user").unwrap();
        assert_eq!(namespace_owner(std::os::fd::AsFd::as_fd(&namespace)).unwrap(), 0);
    }
}
