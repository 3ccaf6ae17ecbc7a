//! How often containers stopped in time and how often they did not, over all runs: a small file, so that the metrics can count.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::host::Host;

use super::container::{End, Stopped};

/// Longer than any run holds the lock.
const PATIENCE: Duration = Duration::from_secs(1);
/// Below the host's root.
const FOLDER: &str = "var/lib/portreeve";

/// Containers that were stopped, by how far the ladder had to be climbed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// They left within their grace period.
    pub graceful: u64,
    /// They had to be killed.
    pub forced: u64,
    /// Their engine did not get them down.
    pub failed: u64,
}

/// What was counted so far; zero where nothing ever was. A file that is there and cannot be read is an error, not zero.
pub fn read(host: &Host) -> io::Result<Tally> {
    match fs::read(host.path(FOLDER).join("stops.json")) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Tally::default()),
        Err(error) => Err(error),
    }
}

/// Adds what this run did; the message says what was lost where it cannot be written.
pub fn add(host: &Host, stopped: &[Stopped]) -> Result<(), String> {
    let count = |wanted: fn(&End) -> bool| -> u64 {
        stopped.iter().filter(|s| wanted(&s.end)).count().try_into().unwrap_or_default()
    };
    let new = Tally {
        graceful: count(|end| *end == End::Graceful),
        forced: count(|end| *end == End::Forced),
        failed: count(|end| *end == End::StillRuns),
    };
    if new == Tally::default() {
        return Ok(());
    }
    let folder = host.path(FOLDER);
    let add = || -> io::Result<()> {
        fs::create_dir_all(&folder)?;
        let _lock = lock(folder.join("stops.lock"))?;
        let old = read(host)?;
        let sum = Tally {
            graceful: old.graceful + new.graceful,
            forced: old.forced + new.forced,
            failed: old.failed + new.failed,
        };
        // Beside, then renamed: a full disk leaves the old count.
        let beside = folder.join("stops.json.new");
        let mut file = open(beside.clone(), 0o644)?;
        // Whatever the umask is: who reads the metrics is another user.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.set_len(0)?;
        file.write_all(&serde_json::to_vec(&sum)?)?;
        file.sync_all()?;
        fs::rename(beside, folder.join("stops.json"))
    };
    add().map_err(|error| {
        format!(
            "how these containers stopped could not be counted in '{}': {error}",
            folder.display()
        )
    })
}

/// Others may not open it, for whoever may open a file may hold its lock; who has it all the same is not waited for.
fn lock(path: PathBuf) -> io::Result<File> {
    let file = open(path, 0o600)?;
    let end = Instant::now() + PATIENCE;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK) => return Err(io::Error::other("its lock is held by another")),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open(path: PathBuf, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(mode);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(end: End) -> Stopped {
        Stopped { end, health: None, rungs: Vec::new(), is_removed: false, took: Duration::ZERO }
    }

    #[test]
    fn stops_are_counted_over_all_runs_and_what_did_nothing_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::fixture(folder.path());
        assert_eq!(read(&host).unwrap(), Tally::default());
        add(&host, &[stopped(End::LeftAlone("no".to_owned()))]).unwrap();
        assert!(!folder.path().join(FOLDER).exists());
        add(&host, &[stopped(End::Graceful), stopped(End::Forced)]).unwrap();
        add(&host, &[stopped(End::Forced), stopped(End::StillRuns)]).unwrap();
        assert_eq!(read(&host).unwrap(), Tally { graceful: 1, forced: 2, failed: 1 });
    }

    #[test]
    fn two_at_once_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::fixture(folder.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| add(&host, &[stopped(End::Forced)]).unwrap()));
            }
        });
        assert_eq!(read(&host).unwrap().forced, 80);
    }

    #[test]
    fn a_count_that_cannot_be_read_is_not_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::fixture(folder.path());
        add(&host, &[stopped(End::Forced)]).unwrap();
        let file = folder.path().join(FOLDER).join("stops.json");
        fs::write(&file, "{\"forced\": 7").unwrap();
        assert!(read(&host).is_err());
        assert!(add(&host, &[stopped(End::Forced)]).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"{\"forced\": 7");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("var"), "a file").unwrap();
        let why = add(&Host::fixture(folder.path()), &[stopped(End::Forced)]).unwrap_err();
        assert!(why.contains("var/lib/portreeve"), "{why}");
    }
}
