//! One gate of this host's settings at a time: while one binds a port to see if it can, another would call it busy, and two
//! would end the same orphans. Held for a look, never while waiting, and given up by exec (close-on-exec).

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};

use crate::{act::interrupt::Interrupt, host::Host, judge::verdict::Unknown};

/// flock(2) wakes nobody who also waits for signals and a deadline.
const RETRY: Duration = Duration::from_millis(10);
/// A wait that a person may notice.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// The file, not locked.
#[derive(Debug)]
pub(super) struct Lock(PathBuf);

/// The lock; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Held(#[expect(dead_code, reason = "closing it frees the lock")] File);

impl Lock {
    /// Root's below /run, which nobody else may open and so lock; anybody else's below `$XDG_RUNTIME_DIR`. Says why there is
    /// none.
    pub(super) fn open(host: &Host) -> Result<Self, String> {
        let folder = if rustix::process::geteuid().is_root() {
            host.path("run/portreeve")
        } else {
            match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
                Some(path) => PathBuf::from(path).join("portreeve"),
                None => return Err("no lock without root or $XDG_RUNTIME_DIR".to_owned()),
            }
        };
        let lock = Self(folder.join("gate.lock"));
        let opened = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        match opened.and_then(|()| lock.file()) {
            Ok(_) => Ok(lock),
            Err(error) => Err(format!("'{}' cannot be opened: {error}", lock.0.display())),
        }
    }

    /// Another file of gates, beside it.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.0.with_file_name(name)
    }

    fn file(&self) -> io::Result<File> {
        let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(flags).open(&self.0)
    }

    /// Waits for it, at most so long; what is unknown then is what another gate is about to do.
    pub(super) fn take(
        &self,
        most: Duration,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Held, Unknown> {
        let unknown = |why: String| {
            Err(Unknown { fact: "whether the ports are free".to_owned(), why, remedy: None })
        };
        let mut file = match self.file() {
            Ok(file) => file,
            Err(error) => return unknown(format!("the lock cannot be opened: {error}")),
        };
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    sign(&mut file);
                    return Ok(Held(file));
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(errno) => return unknown(format!("the lock cannot be had: {errno}")),
            }
            let other = || format!("another gate{} is at work", signed(&mut file.try_clone().ok()));
            if began.elapsed() >= most {
                return unknown(other());
            }
            if began.elapsed() >= NOTICEABLE {
                say(&format!("{}: waiting for it", other()));
            }
            if interrupt.wait(RETRY) {
                return unknown("a signal ended the waiting".to_owned());
            }
        }
    }
}

/// Who has it, for the one who waits; what cannot be written is not missed.
fn sign(file: &mut File) {
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
}

fn signed(file: &mut Option<File>) -> String {
    let mut text = String::new();
    let Some(file) = file else { return text };
    let _ = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    match text.trim().parse::<u32>() {
        Ok(pid) => format!(" (pid {pid})"),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(lock: &Lock, most: Duration) -> Result<Held, Unknown> {
        lock.take(most, &mut Interrupt::install().unwrap(), &mut |_| ())
    }

    #[test]
    fn a_second_gate_waits_for_the_first_and_knows_its_pid() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock(folder.path().join("gate.lock"));
        let first = take(&lock, Duration::ZERO).unwrap();
        let refused = take(&lock, Duration::from_millis(20)).unwrap_err();
        assert!(refused.why.contains(&format!("pid {}", std::process::id())), "{refused}");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| take(&lock, Duration::from_secs(20)).is_ok());
            drop(first);
            assert!(second.join().unwrap());
        });
    }

    #[test]
    fn a_link_in_the_locks_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("gate.lock"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(take(&Lock(link), Duration::ZERO).is_err());
        assert!(!target.exists());
    }
}
