//! What the kernel can do for us, tried out: a seccomp filter or a missing module shows in the call, not in the version.

use std::{collections::BTreeSet, io, os::fd::AsFd};

use rustix::fs::fstat;

use super::{Area, Check, State, off};
use crate::{
    host::Host,
    ident::{Pid, Port, Proto},
    observe::{
        diag::{Diag, states},
        holders, listeners, nat, processes,
    },
    snapshot::{Seen, Socket},
    sys,
};

/// How the calls went.
#[derive(Debug)]
pub(super) struct Kernel {
    /// pidfd_open of ourselves; whether the pidfd's inode names one process alone.
    pidfd: io::Result<bool>,
    /// A dump of all listeners.
    listeners: io::Result<Vec<Socket>>,
    /// A dump of UDP sockets on one port.
    udp: io::Result<()>,
    sees_bound: bool,
    /// open_by_handle_at of the cgroup2 mount; none where there is no such mount.
    by_handle: Option<io::Result<()>>,
    /// kcmp of ourselves.
    kcmp: io::Result<()>,
    /// The packet filter's rules that may change a destination.
    rules: Seen<()>,
}

pub(super) fn look(host: &Host) -> Kernel {
    let me = std::process::id();
    let raw = i32::try_from(me).ok().and_then(rustix::process::Pid::from_raw);
    let pidfd = raw.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH)).and_then(|raw| {
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
        Ok(processes::pidfd_inode(&pidfd).is_some())
    });
    let every: BTreeSet<Port> = (1..=u16::MAX).filter_map(Port::new).collect();
    let any: BTreeSet<Port> = every.iter().take(1).copied().collect();
    let dump = |proto, wanted, ports| Diag::open()?.sockets(proto, wanted, ports);
    let by_handle = holders::unified_mount().map(|mount| {
        // The number of a cgroup's directory is its id (kernfs).
        let id = fstat(&mount)?.st_ino;
        sys::open_cgroup(mount.as_fd(), id).map(drop)
    });
    Kernel {
        pidfd,
        listeners: dump(Proto::Tcp, states::LISTEN, &every),
        udp: dump(Proto::Udp, states::UNCONNECTED, &any).map(drop),
        sees_bound: listeners::sees_bound(host),
        by_handle,
        kcmp: sys::shares_descriptors(Pid(me), Pid(me)).map(drop),
        rules: nat::observe(host, &[]).map(drop),
    }
}

pub(super) fn checks(kernel: &Kernel) -> Vec<Check> {
    vec![
        pidfd(&kernel.pidfd),
        identity(&kernel.pidfd),
        diagnostics(kernel),
        bound(kernel),
        creators(&kernel.listeners),
        by_handle(kernel.by_handle.as_ref()),
        kcmp(&kernel.kcmp),
        rules(&kernel.rules),
    ]
}

fn new(name: &str, state: State, detail: impl Into<String>) -> Check {
    Check::new(Area::Kernel, name, state, detail)
}

/// The kernel does not know the call, or its module; a seccomp filter may answer the same.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS))
}

fn pidfd(opened: &io::Result<bool>) -> Check {
    let name = "pidfd";
    match opened {
        Ok(_) => {
            new(name, State::Good, "a signal reaches the process that was judged, and no other")
        }
        Err(error) => {
            let fix = if is_missing(error) {
                "Linux 5.3 or later; where a seccomp filter stands before it, allow pidfd_open"
            } else {
                "allow pidfd_open in the seccomp filter (in a unit: SystemCallFilter=pidfd_open)"
            };
            new(name, off(fix), format!("pidfd_open: {error}; 'reap' ends nobody without it"))
        }
    }
}

fn identity(opened: &io::Result<bool>) -> Check {
    let (state, detail) = match opened {
        Ok(true) => (State::Good, "no other process of this boot has the same"),
        Ok(false) | Err(_) => (
            State::Fallback,
            "only from Linux 6.9 on; two processes of one pid are told apart by their start, to 10 ms",
        ),
    };
    new("pidfd inode", state, detail)
}

fn diagnostics(kernel: &Kernel) -> Check {
    let name = "socket diagnostics";
    let error = match (&kernel.listeners, &kernel.udp) {
        (Ok(_), Ok(())) => {
            return new(name, State::Good, "sockets on guarded ports are asked for by netlink");
        }
        (Err(error), _) | (_, Err(error)) => error,
    };
    if !listeners::is_refusal(error) {
        let detail = format!("a dump failed: {error}");
        return new(name, State::Unknown { fix: Some("try again".to_owned()) }, detail);
    }
    let fix = if error.raw_os_error() == Some(libc::ENOENT) {
        "modprobe -a tcp_diag udp_diag"
    } else {
        "let it open netlink sockets (in a unit: AF_NETLINK in RestrictAddressFamilies=)"
    };
    let detail = format!(
        "refused: {error}; the text of /proc/net stands in, by which no port is ever called free"
    );
    new(name, off(fix), detail)
}

fn bound(kernel: &Kernel) -> Check {
    let name = "sockets that are bound and do not listen";
    if kernel.sees_bound && kernel.listeners.is_ok() {
        return new(name, State::Good, "a server that loads before it listens is seen");
    }
    let why =
        if kernel.sees_bound { "not without socket diagnostics" } else { "only from Linux 6.8 on" };
    let detail =
        format!("{why}; a port on which nothing listens is called 'no listener', not free");
    new(name, State::Fallback, detail)
}

fn creators(listeners: &io::Result<Vec<Socket>>) -> Check {
    let name = "creating cgroups of sockets";
    let slower = "holders are looked for in every process, which is slower";
    match listeners {
        Err(_) => new(name, State::Fallback, format!("not without socket diagnostics; {slower}")),
        Ok(all) if all.is_empty() => {
            new(name, State::Absent, "nothing listens here that would show whether they are told")
        }
        Ok(all) if all.iter().any(|s| s.creator_cgroup.is_some_and(|id| id != 0)) => {
            new(name, State::Good, "holders are looked for there first")
        }
        Ok(_) => new(name, State::Fallback, format!("this kernel does not tell them; {slower}")),
    }
}

fn by_handle(opened: Option<&io::Result<()>>) -> Check {
    let name = "cgroups by handle";
    let slower = "holders are looked for in every process, which is slower";
    match opened {
        None => {
            let detail = format!("no cgroup2 at /sys/fs/cgroup or its 'unified'; {slower}");
            new(name, State::Fallback, detail)
        }
        Some(Ok(())) => new(name, State::Good, "a socket's creating cgroup can be opened"),
        Some(Err(error)) if error.kind() != io::ErrorKind::PermissionDenied => {
            new(name, State::Fallback, format!("open_by_handle_at: {error}; {slower}"))
        }
        Some(Err(error)) => {
            let fix = "run as root, or with CAP_DAC_READ_SEARCH in the machine's first user namespace; where a seccomp \
                       filter stands before it, allow open_by_handle_at (in a unit: SystemCallFilter=open_by_handle_at)";
            new(name, off(fix), format!("open_by_handle_at: {error}; {slower}"))
        }
    }
}

fn kcmp(compared: &io::Result<()>) -> Check {
    match compared {
        Ok(()) => {
            new("kcmp", State::Good, "threads that share their descriptors are looked at once")
        }
        Err(error) => {
            let detail = format!("{error}; every thread is looked at instead, which is slower");
            new("kcmp", State::Fallback, detail)
        }
    }
}

fn rules(read: &Seen<()>) -> Check {
    let name = "rules of the packet filter";
    match read {
        Seen::Known(()) => {
            new(name, State::Good, "a gate sees those that take a free port's packets (DNAT)")
        }
        Seen::Denied => {
            let fix = "run as root, or with CAP_NET_ADMIN and CAP_DAC_READ_SEARCH (in a unit also: AF_NETLINK in RestrictAddressFamilies=)";
            let detail =
                "refused; a gate calls a port open whose packets a rule (DNAT) takes, and says so";
            new(name, off(fix), detail)
        }
        Seen::Gone => new(name, State::Unknown { fix: None }, "they were gone when they were read"),
        Seen::Unreadable(why) => {
            let detail = format!("they cannot be read: {why}; a gate then opens no port");
            new(name, State::Unknown { fix: Some("try again".to_owned()) }, detail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed<T>(errno: i32) -> io::Result<T> {
        Err(io::Error::from_raw_os_error(errno))
    }

    fn modern() -> Kernel {
        let socket = Socket {
            proto: Proto::Tcp,
            address: [127, 0, 0, 1].into(),
            port: Port::new(8091).unwrap(),
            state: crate::snapshot::SocketState::Listening,
            inode: 7,
            cookie: Some(1),
            uid: 0,
            creator_cgroup: Some(1),
            v6only: None,
        };
        Kernel {
            pidfd: Ok(true),
            listeners: Ok(vec![socket]),
            udp: Ok(()),
            sees_bound: true,
            by_handle: Some(Ok(())),
            kcmp: Ok(()),
            rules: Seen::Known(()),
        }
    }

    /// What is not good, by name and state.
    fn lacks(kernel: &Kernel) -> Vec<(String, State)> {
        let all = checks(kernel).into_iter().filter(|c| c.state != State::Good);
        all.map(|c| (c.name, c.state)).collect()
    }

    fn names(kernel: &Kernel) -> Vec<String> {
        lacks(kernel).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_modern_kernel_lacks_nothing() {
        assert_eq!(lacks(&modern()), []);
    }

    #[test]
    fn an_older_kernel_falls_back_and_nothing_is_to_be_mended() {
        let old = Kernel { pidfd: Ok(false), sees_bound: false, by_handle: None, ..modern() };
        let old = Kernel { kcmp: failed(libc::ENOSYS), ..old };
        let lacks = lacks(&old);
        assert_eq!(lacks.len(), 4);
        assert!(lacks.iter().all(|(_, state)| *state == State::Fallback), "{lacks:?}");
    }

    #[test]
    fn without_pidfds_reap_is_off() {
        let lacks = lacks(&Kernel { pidfd: failed(libc::ENOSYS), ..modern() });
        assert!(
            matches!(&lacks[0], (name, State::Off { fix }) if name == "pidfd" && fix.contains("5.3"))
        );
    }

    #[test]
    fn refused_diagnostics_take_everything_with_them_that_rests_on_them() {
        for (errno, fix) in [(libc::ENOENT, "modprobe"), (libc::EAFNOSUPPORT, "AF_NETLINK")] {
            let kernel = Kernel { listeners: failed(errno), ..modern() };
            assert_eq!(
                names(&kernel),
                [
                    "socket diagnostics",
                    "sockets that are bound and do not listen",
                    "creating cgroups of sockets"
                ]
            );
            let check = diagnostics(&kernel);
            assert!(check.fix().unwrap().contains(fix), "{check:?}");
        }
        assert_eq!(
            names(&Kernel { udp: failed(libc::ENOENT), ..modern() }),
            ["socket diagnostics"]
        );
    }

    #[test]
    fn rules_that_may_not_be_read_are_off_and_such_that_cannot_be_are_unknown() {
        let check = rules(&Seen::Denied);
        assert!(check.fix().is_some_and(|fix| fix.contains("CAP_NET_ADMIN")), "{check:?}");
        let check = rules(&Seen::Unreadable("no".to_owned()));
        assert!(matches!(check.state, State::Unknown { .. }), "{check:?}");
    }

    #[test]
    fn a_dump_that_fails_once_is_unknown_and_not_refused() {
        let check = diagnostics(&Kernel { listeners: failed(libc::ENOBUFS), ..modern() });
        assert!(matches!(check.state, State::Unknown { .. }), "{check:?}");
    }
}
