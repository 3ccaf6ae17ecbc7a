//! Who holds a socket: inode → processes. Narrow first (the cgroup that created the socket), then every
//! process, then what `/proc/PID/fd` cannot show: threads with a descriptor table of their own, threads
//! that outlived their leader, sockets registered with io_uring.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::{
    fs::{CWD, Mode, OFlags, RawDir, openat, readlinkat_raw},
    io::Errno,
};

use crate::{
    host::{Host, seen},
    ident::Pid,
    snapshot::{Holding, Seen, Sockets},
    sys,
};

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Stop where the creating cgroups already explain every socket: of each socket at least one holder, and
    /// all that are in the cgroup that created it. Enough to say that a port is taken and by whom; a holder
    /// to whom the descriptor travelled into another cgroup is looked for only where nobody is found there, and a
    /// socket that is bound and silent only where nothing listens.
    Narrow,
    /// Walk every process whatever the cgroups say: all sockets, all holders. For whoever ends one of them, and for the proof.
    Whole,
}

/// Links with more bytes than this are no `socket:[…]`.
const LINK_BYTES: usize = 64;
const MOST_THREADS: usize = 4;
const PIDS_OF_A_THREAD: usize = 8;

/// Finds the holders of `sockets` and writes them into it; asks for the list of all processes where it needs it.
pub fn observe<'p>(host: &Host, sockets: &mut Sockets, reach: Reach, pids: &dyn Fn() -> &'p [Pid]) {
    let wanted: BTreeSet<u64> = sockets.all.iter().map(|s| s.inode).filter(|&i| i != 0).collect();
    if wanted.is_empty() {
        return;
    }
    let search = Search { host, wanted: &wanted, refused: Mutex::default() };
    let (near, gone) = creators(host, sockets);
    let mut found: BTreeSet<Holding> = BTreeSet::new();
    let nearest: Vec<Pid> = near.iter().copied().collect();
    search.every(&nearest, &mut found, Search::shown);
    let is_explained = |found: &BTreeSet<Holding>| {
        let held: BTreeSet<u64> = found.iter().map(|h| h.inode).collect();
        wanted.is_subset(&held)
    };
    if reach == Reach::Whole || !is_explained(&found) {
        let rest: Vec<Pid> = pids().iter().filter(|p| !near.contains(p)).copied().collect();
        search.every(&rest, &mut found, Search::shown);
        if !is_explained(&found) {
            search.every(pids(), &mut found, Search::hidden);
        }
    }
    sockets.holdings = found.into_iter().collect();
    let refused = search.refused.into_inner().unwrap_or_else(PoisonError::into_inner);
    sockets.refused = u32::try_from(refused.len()).unwrap_or(u32::MAX);
    sockets.unread = refused;
    sockets.creator_gone = gone;
}

struct Search<'a> {
    host: &'a Host,
    wanted: &'a BTreeSet<u64>,
    refused: Mutex<BTreeSet<Pid>>,
}

impl Search<'_> {
    fn refuse(&self, pid: Pid) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
    }

    fn refuse_unless_gone<T>(&self, pid: Pid, answer: &Seen<T>) {
        match answer {
            Seen::Known(_) | Seen::Gone => {}
            Seen::Denied | Seen::Unreadable(_) => self.refuse(pid),
        }
    }

    /// Runs `look` over all of `pids` on a few threads.
    fn every(
        &self,
        pids: &[Pid],
        found: &mut BTreeSet<Holding>,
        look: impl Fn(&Self, Pid, &mut BTreeSet<Holding>) + Sync,
    ) {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut mine = BTreeSet::new();
            while let Some(&pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                look(self, pid, &mut mine);
            }
            mine
        };
        // A thread costs as much as some of the processes that it would look at.
        let most = MOST_THREADS.min(pids.len() / PIDS_OF_A_THREAD).max(1);
        let threads = if most == 1 {
            1
        } else {
            thread::available_parallelism().map_or(1, |n| n.get().min(most))
        };
        thread::scope(|scope| {
            // Where none can be had, we do it all ourselves.
            let helper = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
            let helpers: Vec<_> = (1..threads).filter_map(helper).collect();
            found.extend(work());
            for helper in helpers {
                found.extend(helper.join().unwrap_or_default());
            }
        });
    }

    /// What `/proc/PID/fd` shows.
    fn shown(&self, pid: Pid, found: &mut BTreeSet<Holding>) {
        self.descriptors_of(pid, &format!("{pid}/fd"), found);
    }

    /// What it does not show.
    fn hidden(&self, pid: Pid, found: &mut BTreeSet<Holding>) {
        self.rings_of(pid, found);
        let tasks = match fs::read_dir(self.host.of_process(pid, "task")) {
            Ok(tasks) => tasks,
            Err(error) => return self.refuse_unless_gone(pid, &seen(Err::<(), _>(error))),
        };
        for task in tasks {
            let Ok(task) = task else { return self.refuse(pid) };
            let Some(thread) = task.file_name().to_str().and_then(|n| n.parse().ok()).map(Pid)
            else {
                continue;
            };
            // A thread of the same table adds nothing; one that cannot be compared is looked at.
            let is_shared =
                || self.host.is_live() && matches!(sys::shares_descriptors(pid, thread), Ok(true));
            if thread != pid && !is_shared() {
                self.descriptors_of(pid, &format!("{pid}/task/{thread}/fd"), found);
            }
        }
    }

    /// Adds the wanted sockets among the descriptors in `folder` (relative to `/proc`).
    fn descriptors_of(&self, pid: Pid, folder: &str, found: &mut BTreeSet<Holding>) {
        let path = self.host.path(format!("proc/{folder}"));
        let directory = match openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::SRCH) => return,
            Err(_) => {
                self.refuse(pid);
                return;
            }
        };
        let was_refused = each_entry(&directory, |name| {
            let mut buffer = [MaybeUninit::uninit(); LINK_BYTES];
            let link = match readlinkat_raw(&directory, name, &mut buffer) {
                Ok((link, _)) => link,
                // Closed meanwhile; a path that is too long to be told is no socket's.
                Err(Errno::NOENT | Errno::SRCH | Errno::NAMETOOLONG) => return true,
                Err(_) => return false,
            };
            if let Some(inode) = socket_inode(link).filter(|i| self.wanted.contains(i)) {
                let link = Some(format!("{folder}/{}", name.to_string_lossy()));
                found.insert(Holding { inode, pid, link });
            }
            true
        });
        if was_refused {
            self.refuse(pid);
        }
    }

    /// Sockets registered with an io_uring of this process: its fdinfo lists them under `UserFiles:`.
    fn rings_of(&self, pid: Pid, found: &mut BTreeSet<Holding>) {
        let path = self.host.of_process(pid, "fd");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match openat(CWD, path, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(error) => return self.refuse_unless_gone(pid, &seen(Err::<(), _>(error.into()))),
        };
        let was_refused = each_entry(&directory, |name| {
            let mut buffer = [MaybeUninit::uninit(); LINK_BYTES];
            let link = match readlinkat_raw(&directory, name, &mut buffer) {
                Ok((link, _)) => link,
                Err(Errno::NOENT | Errno::SRCH | Errno::NAMETOOLONG) => return true,
                Err(_) => return false,
            };
            if &*link == b"anon_inode:[io_uring]" {
                let info = format!("fdinfo/{}", name.to_string_lossy());
                let text = self.host.read(&format!("proc/{pid}/{info}"));
                self.refuse_unless_gone(pid, &text);
                for word in text.known().into_iter().flat_map(|t| t.split(u8::is_ascii_whitespace))
                {
                    if let Some(inode) = socket_inode(word).filter(|i| self.wanted.contains(i)) {
                        found.insert(Holding { inode, pid, link: None });
                    }
                }
            }
            true
        });
        if was_refused {
            self.refuse(pid);
        }
    }
}

/// Calls `look` with each name but `.` and `..`; returns whether any look, or the listing itself, was refused.
pub(super) fn each_entry(
    directory: &OwnedFd,
    mut look: impl FnMut(&std::ffi::CStr) -> bool,
) -> bool {
    let mut space = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(directory, &mut space);
    let mut was_refused = false;
    while let Some(entry) = entries.next() {
        let Ok(entry) = entry else { return true };
        if !entry.file_name().to_bytes().starts_with(b".") {
            was_refused |= !look(entry.file_name());
        }
    }
    was_refused
}

/// The number in `socket:[N]`.
pub(super) fn socket_inode(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The processes in the cgroups that created the sockets, and the inodes whose creating cgroup is gone.
fn creators(host: &Host, sockets: &Sockets) -> (BTreeSet<Pid>, BTreeSet<u64>) {
    let (mut pids, mut gone) = (BTreeSet::new(), BTreeSet::new());
    let mut inodes_of: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for socket in &sockets.all {
        if let Some(id) = socket.creator_cgroup.filter(|&id| id != 0) {
            inodes_of.entry(id).or_default().push(socket.inode);
        }
    }
    let Some(mount) = (host.is_live() && !inodes_of.is_empty()).then(unified_mount).flatten()
    else {
        return (pids, gone);
    };
    for (id, inodes) in inodes_of {
        match sys::open_cgroup(std::os::fd::AsFd::as_fd(&mount), id) {
            Ok(cgroup) => pids.extend(members(&cgroup).unwrap_or_default()),
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => gone.extend(inodes),
            Err(_) => {} // no right to open by handle: the whole walk answers
        }
    }
    (pids, gone)
}

/// A descriptor of the cgroup2 mount: `/sys/fs/cgroup`, or `unified` below it on hybrid hosts.
pub fn unified_mount() -> Option<OwnedFd> {
    const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().find_map(|path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mount = openat(CWD, path, flags, Mode::empty()).ok()?;
        let is_unified = rustix::fs::fstatfs(&mount).ok()?.f_type == CGROUP2_SUPER_MAGIC;
        is_unified.then_some(mount)
    })
}

fn members(cgroup: &OwnedFd) -> io::Result<Vec<Pid>> {
    let file = openat(cgroup, "cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    fs::File::from(file).read_to_string(&mut text)?;
    // 0 = a process outside our pid namespace.
    Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|&p| p != 0).map(Pid).collect())
}
