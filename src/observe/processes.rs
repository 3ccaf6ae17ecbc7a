//! Processes as `/proc` shows them. All facts of one process are tied together by a pidfd that was open
//! before the first read and still unread-able (alive) after the last.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use procfs_core::{FromRead, process::Stat};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, pidfd_open},
};

use crate::{
    host::{Host, seen},
    ident::{Pid, ProcessKey},
    observe::{cgroup, reader::read_with_deadline},
    snapshot::{CommandLine, Enclosure, Process, Seen, Terminal},
    sys,
};

/// What is kept of it: a user may start thousands with 6 MiB each, and pays for one.
const KEPT_COMMAND_BYTES: usize = 4096;
/// PF_KTHREAD, include/linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;
/// Magic number of pidfs: only there each process's pidfd has an inode of its own (Linux ≥ 6.9).
const PID_FS_MAGIC: i64 = 0x5049_4446;

/// Opens a pidfd; `Gone` where there is no such process.
pub fn open_pidfd(pid: Pid) -> Seen<OwnedFd> {
    match i32::try_from(pid.0).ok().and_then(rustix::process::Pid::from_raw) {
        Some(raw) => seen(pidfd_open(raw, PidfdFlags::empty()).map_err(Into::into)),
        None => Seen::Gone,
    }
}

/// Whether the process of this pidfd has ended: the descriptor is readable then (pidfd_open(2)).
pub fn has_ended(pidfd: &OwnedFd) -> bool {
    ends_within(pidfd, Duration::ZERO)
}

/// The same, or it ends within this time.
pub fn ends_within(pidfd: &OwnedFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let time = Timespec::try_from(time).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
    poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0)
}

/// Which process a pidfd refers to, as numbered in the pid namespace of this `/proc` (`Pid:` of its fdinfo,
/// pidfd_open(2)).
pub fn pid_of_pidfd(host: &Host, pidfd: &OwnedFd) -> Option<Pid> {
    let info = host.read(&format!("proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    numbers(info.known()?, b"Pid:").first().copied().map(Pid)
}

/// The pidfd's inode where it identifies the process.
pub fn pidfd_inode(pidfd: &OwnedFd) -> Option<u64> {
    let is_pidfs = rustix::fs::fstatfs(pidfd).ok()?.f_type == PID_FS_MAGIC;
    is_pidfs.then(|| rustix::fs::fstat(pidfd).ok().map(|s| s.st_ino)).flatten()
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)).
pub fn read_stat(host: &Host, pid: Pid) -> Seen<Stat> {
    host.read(&format!("proc/{pid}/stat")).parse(|text| parse_stat(&text))
}

/// `PID (NAME) STATE …` to the end of its line. The crate panics where it has another form (procfs-core 0.18, process/stat.rs), and
/// takes half a number for a whole one.
pub(super) fn parse_stat(text: &[u8]) -> Option<Stat> {
    let is_whole = text.ends_with(b"\n");
    let text = String::from_utf8_lossy(text);
    let (pid, rest) = text.trim().split_once('(')?;
    let (_, rest) = rest.rsplit_once(')')?;
    let has_form = pid.ends_with(' ') && rest.starts_with(' ');
    (is_whole && has_form).then(|| Stat::from_read(text.as_bytes()).ok()).flatten()
}

/// When a process of the machine that we run on began, in ticks since boot.
pub fn start_of(pid: Pid) -> Option<u64> {
    read_stat(&Host::live(), pid).known().map(|stat| stat.starttime)
}

/// Reads one process; its command line comes from [`read_command_lines`].
pub fn read(host: &Host, pid: Pid, command_line: Seen<CommandLine>) -> Seen<Process> {
    let pidfd = if host.is_live() {
        match open_pidfd(pid) {
            Seen::Known(pidfd) => Some(pidfd),
            Seen::Gone => return Seen::Gone,
            // Out of descriptors, or a kernel without pidfds: read on, with less certainty.
            Seen::Denied | Seen::Unreadable(_) => None,
        }
    } else {
        None
    };
    let stat = match read_stat(host, pid) {
        Seen::Known(stat) => stat,
        Seen::Gone => return Seen::Gone,
        Seen::Denied => return Seen::Denied,
        Seen::Unreadable(why) => return Seen::Unreadable(why),
    };
    let status = host.read(&format!("proc/{pid}/status"));
    let process = Process {
        key: ProcessKey {
            pid,
            start_ticks: stat.starttime,
            pidfd_inode: pidfd.as_ref().and_then(pidfd_inode),
        },
        parent: pid_of(stat.ppid),
        group: pid_of(stat.pgrp),
        session: pid_of(stat.session),
        terminal: Terminal::of_number(stat.tty_nr),
        state: stat.state,
        threads: u32::try_from(stat.num_threads).unwrap_or_default(),
        is_kernel_thread: stat.flags & PF_KTHREAD != 0,
        name: stat.comm,
        command_line,
        exe: read_link(host, pid, "exe"),
        uid: status.as_ref().parse(|text| numbers(text, b"Uid:").first().copied()),
        tracer: status.as_ref().parse(|text| {
            let tracer = *numbers(text, b"TracerPid:").first()?;
            Some((tracer != 0).then_some(Pid(tracer)))
        }),
        namespace_pids: status.as_ref().parse(|text| {
            let pids = numbers(text, b"NSpid:");
            (!pids.is_empty()).then_some(pids)
        }),
        cgroup: host.read_text(&format!("proc/{pid}/cgroup")).parse(|text| cgroup::parse(&text)),
        invocation_id: None,
        enclosure: None,
        is_root_deleted: read_link(host, pid, "root")
            .known()
            .is_some_and(|root| root.as_os_str().as_bytes().ends_with(b"//deleted")),
    };
    // The same process from the first read to the last: else these are facts about two.
    let is_one = match &pidfd {
        Some(pidfd) if process.is_dead() => {
            Seen::Known(pidfd_inode(pidfd) == process.key.pidfd_inode)
        }
        Some(pidfd) => Seen::Known(!has_ended(pidfd)),
        None => read_stat(host, pid).map(|last| last.starttime == stat.starttime),
    };
    match is_one {
        Seen::Known(true) => Seen::Known(process),
        Seen::Known(false) | Seen::Gone => Seen::Gone,
        Seen::Denied => Seen::Denied,
        Seen::Unreadable(why) => Seen::Unreadable(why),
    }
}

/// Reads what namespaces and root say of a container.
pub fn read_enclosure(host: &Host, pid: Pid) -> Enclosure {
    let owner = || {
        let namespace = fs::File::open(host.of_process(pid, "ns/user"))?;
        sys::namespace_owner(namespace.as_fd())
    };
    let owner = if host.is_live() {
        seen(owner())
    } else {
        Seen::Unreadable("a folder has no namespaces".to_owned())
    };
    let layer = host.read(&format!("proc/{pid}/mountinfo")).parse(|text| layer(&text));
    Enclosure {
        is_layer_there: layer.as_ref().parse(|layer| is_there(host, layer.as_ref()?)),
        pid_namespace: read_pid_namespace(host, pid),
        owner,
        layer,
        fellows: Seen::Known(BTreeSet::new()),
    }
}

/// Whether a directory is there, in PID 1's mount namespace: ours may have another `/var/lib` (a container with the host's
/// pids, a unit's ProtectSystem=). None where that is not known, also where its file system may not be mounted.
fn is_there(host: &Host, path: &Path) -> Option<bool> {
    let of_first = |path: &Path| {
        fs::symlink_metadata(host.path("proc/1/root").join(path.strip_prefix("/").ok()?)).ok()
    };
    if of_first(path).is_some() {
        return Some(true);
    }
    // `…/overlay/ID/diff`: the layers' folder stays when one of them goes.
    of_first(path.parent()?.parent()?).map(|_| false)
}

/// `/proc/PID/ns/mnt`, to be compared and nothing else.
pub fn read_mount_namespace(host: &Host, pid: Pid) -> Seen<PathBuf> {
    read_link(host, pid, "ns/mnt")
}

/// The number in `/proc/PID/ns/pid` (namespaces(7)).
pub fn read_pid_namespace(host: &Host, pid: Pid) -> Seen<u64> {
    read_link(host, pid, "ns/pid")
        .parse(|link| link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok())
}

/// The upper directory of the overlay that is the root of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)); none where
/// the text has no root.
#[expect(clippy::option_option, reason = "no root, a root in no overlay, a root in one")]
pub(super) fn layer(mounts: &[u8]) -> Option<Option<PathBuf>> {
    let fields =
        |line: &[u8]| -> Vec<Vec<u8>> { line.split(|&b| b == b' ').map(<[u8]>::to_vec).collect() };
    // Of several mounts on one another the last is seen.
    let root =
        mounts.split(|&b| b == b'\n').map(fields).rfind(|f| f.get(4).is_some_and(|p| p == b"/"))?;
    let mut rest = root.iter().skip_while(|field| *field != b"-").skip(1);
    if rest.next().is_none_or(|kind| kind != b"overlay") {
        return Some(None);
    }
    let options = rest.nth(1)?;
    let upper = options.split(|&b| b == b',').find_map(|option| option.strip_prefix(b"upperdir="));
    Some(upper.map(|path| PathBuf::from(OsString::from_vec(unescape(path)))))
}

/// Space, tab, newline and backslash stand as octal escapes in a mount table.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = || u8::from_str_radix(std::str::from_utf8(after.get(..3)?).ok()?, 8).ok();
        let escaped = octal().filter(|_| byte == b'\\');
        plain.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    plain
}

fn pid_of(number: i32) -> Pid {
    Pid(u32::try_from(number).unwrap_or_default())
}

fn read_link(host: &Host, pid: Pid, link: &str) -> Seen<PathBuf> {
    seen(fs::read_link(host.of_process(pid, link)))
}

/// The numbers behind a key of `/proc/PID/status`, whose other lines may hold any bytes.
pub(super) fn numbers(status: &[u8], key: &[u8]) -> Vec<u32> {
    let line = status.split(|&b| b == b'\n').find_map(|l| l.strip_prefix(key));
    let words = line.unwrap_or_default().split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    words.map_while(|w| std::str::from_utf8(w).ok()?.parse().ok()).collect()
}

/// INVOCATION_ID of a process's environment (systemd.exec(5)): its value at exec time, wiped by setproctitle.
pub fn read_invocation_ids(host: &Host, pids: &[Pid]) -> BTreeMap<Pid, Seen<Option<String>>> {
    read_with_deadline(host, pids, "environ", |bytes| invocation_id(bytes))
        .into_iter()
        .map(|(pid, seen)| (pid, seen.parse(|id| id)))
        .collect()
}

/// The same of one environment; none where something else stands in its place.
#[expect(clippy::option_option, reason = "wiped, without an id, with one")]
pub(super) fn invocation_id(environment: &[u8]) -> Option<Option<String>> {
    let mut variables = environment.split(|&b| b == 0);
    let value = variables.find_map(|v| v.strip_prefix(b"INVOCATION_ID="));
    // setproctitle writes its title over the environment: what that said is unknown.
    let is_wiped = !environment.is_empty() && !environment.contains(&b'=');
    (!is_wiped).then(|| value.map(|v| String::from_utf8_lossy(v).into_owned()))
}

/// Reads the command lines of `pids` and keeps those that `wanted` says yes to; the others answer with an
/// empty line. Each read has a deadline: one that outlasts it is left to itself and the rest goes on.
pub fn read_command_lines(
    host: &Host,
    pids: &[Pid],
    wanted: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
) -> BTreeMap<Pid, Seen<CommandLine>> {
    let read = read_with_deadline(host, pids, "cmdline", move |bytes| {
        join(bytes);
        wanted(bytes).then(|| {
            let text = bytes.iter().take(KEPT_COMMAND_BYTES).copied().collect();
            CommandLine { text, is_cut: bytes.len() > KEPT_COMMAND_BYTES }
        })
    });
    read.into_iter().map(|(pid, seen)| (pid, seen.map(Option::unwrap_or_default))).collect()
}

/// NULs become spaces, padding at the end goes.
pub(super) fn join(bytes: &mut Vec<u8>) {
    let end = bytes.iter().rposition(|&b| b != 0 && b != b' ').map_or(0, |last| last + 1);
    bytes.truncate(end);
    for byte in bytes {
        if *byte == 0 {
            *byte = b' ';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_of_another_form_is_none_and_no_panic() {
        for text in [
            "",
            "7",
            "7 (a)",
            "7 (a) \n",
            "(a) S 1",
            ")7 ( S",
            "7 (a)S 1",
            "7\u{2003}(a) S",
            "7 (a)\u{e9} 1",
        ] {
            assert!(parse_stat(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_stat_that_is_cut_off_anywhere_is_none() {
        let whole = b"7 (a) b) S 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 5000 1000000 100 18446744073709551615 \
            1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        assert_eq!(parse_stat(whole).unwrap().starttime, 5000);
        for length in 0..whole.len() {
            assert!(parse_stat(&whole[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn a_containers_root_is_named_by_its_upper_directory() {
        let mounts = b"1 2 0:1 / /proc rw - proc proc rw
3 2 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/a/l/X:/a/l/Y,upperdir=/var/lib/my\\040store/9/diff,workdir=/w
";
        let path = layer(mounts).unwrap().unwrap();
        assert_eq!(path, PathBuf::from("/var/lib/my store/9/diff"));
    }

    #[test]
    fn a_root_that_is_no_overlay_is_in_no_store_and_a_table_without_a_root_says_nothing() {
        assert_eq!(layer(b"3 2 8:1 / / rw shared:1 - ext4 /dev/vda rw,upperdir=/x\n"), Some(None));
        assert_eq!(layer(b"3 2 0:50 / / rw - overlay overlay ro,lowerdir=/a\n"), Some(None));
        assert_eq!(layer(b"3 2 0:5 / /proc rw - proc proc rw\n"), None);
        assert_eq!(layer(b""), None);
    }

    #[test]
    fn the_mount_on_top_is_the_root() {
        let mounts =
            b"1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:9 / / rw - overlay o rw,upperdir=/up\n";
        assert_eq!(layer(mounts), Some(Some(PathBuf::from("/up"))));
    }
}
