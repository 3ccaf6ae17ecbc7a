//! The one door to the machine: where `/proc`, `/sys`, `/etc` and `/run` are, and how a file of theirs is
//! read into one of the four answers. A fixture host is the same door on a folder.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{ident::Pid, snapshot::Seen};

/// A machine, or a folder that looks like one.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
    is_live: bool,
}

impl Host {
    /// The machine that we run on.
    pub fn live() -> Self {
        Self { root: PathBuf::from("/"), is_live: true }
    }

    /// A folder with `proc/`, `sys/`, `run/` in it. Nothing is asked of the running kernel.
    pub fn fixture(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), is_live: false }
    }

    /// The running kernel, with other files around it: for fakes at the wire.
    #[cfg(test)]
    pub(crate) fn live_below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), is_live: true }
    }

    /// Whether system calls about processes and sockets speak of this host.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// A path of this host, given from its root without the leading slash.
    pub fn path(&self, below_root: impl AsRef<Path>) -> PathBuf {
        self.root.join(below_root)
    }

    /// `/proc/PID/file`.
    pub fn of_process(&self, pid: Pid, file: &str) -> PathBuf {
        self.root.join(format!("proc/{pid}/{file}"))
    }

    /// Reads a whole file.
    pub fn read(&self, below_root: &str) -> Seen<Vec<u8>> {
        seen(read_whole(&self.path(below_root)))
    }

    /// Reads a file as text; bytes that are no UTF-8 are replaced.
    pub fn read_text(&self, below_root: &str) -> Seen<String> {
        self.read(below_root).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Every process id in `/proc`, ascending.
    pub fn pids(&self) -> Seen<Vec<Pid>> {
        let list = || {
            let mut pids = Vec::new();
            for entry in fs::read_dir(self.path("proc"))? {
                if let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse().ok()) {
                    pids.push(Pid(pid));
                }
            }
            pids.sort_unstable();
            Ok(pids)
        };
        seen(list())
    }
}

/// Reads a kernel file, whose size in `stat` means nothing.
fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(1024);
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The one place where an error becomes an answer: ENOENT and ESRCH are a thing that is gone, EACCES and
/// EPERM a right that we lack, all else could not be read.
pub fn seen<T>(result: io::Result<T>) -> Seen<T> {
    match result {
        Ok(value) => Seen::Known(value),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Seen::Gone,
            Some(libc::EACCES | libc::EPERM) => Seen::Denied,
            Some(_) | None => Seen::Unreadable(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_becomes_the_answer_that_it_means() {
        let of = |errno| seen::<()>(Err(io::Error::from_raw_os_error(errno)));
        assert_eq!(of(libc::ENOENT), Seen::Gone);
        assert_eq!(of(libc::ESRCH), Seen::Gone);
        assert_eq!(of(libc::EACCES), Seen::Denied);
        assert_eq!(of(libc::EPERM), Seen::Denied);
        assert!(matches!(of(libc::EIO), Seen::Unreadable(_)));
    }
}
