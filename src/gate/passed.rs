//! What gates found free and let pass, for the next gate to say who took it since. A help, never a proof that anything is
//! free: what cannot be read tells nothing, and what cannot be written costs a warning. Forgotten with the boot.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    host::Host,
    ident::{Endpoint, Pid, ProcessKey},
    observe::{self, processes},
    snapshot::{Passed, Seen},
};

const VERSION: u32 = 1;
/// The oldest go first.
const MOST: usize = 256;
/// Some 400 bytes each, and an ancestor more or less.
const MOST_BYTES: u64 = 256 << 10;
/// With more above it, what a gate did not start cannot be told.
const MOST_ANCESTORS: usize = 64;

/// The file, and what this gate will write of itself.
#[derive(Debug)]
pub(super) struct Records {
    path: PathBuf,
    boot_id: String,
    /// This network's inode: another one's ports are others.
    network: u64,
    own: Entry,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    boot_id: String,
    passed: Vec<Entry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    port: String,
    network: u64,
    at_ticks: u64,
    pid: u32,
    start_ticks: u64,
    pidfd_inode: Option<u64>,
    became_command: bool,
    ancestors: Option<Vec<u32>>,
    unit_path: Option<String>,
}

impl Records {
    /// Reads who we are, so that nothing of it is left for the moment in which a port is free; none where that is not known.
    pub(super) fn of(host: &Host, path: PathBuf) -> Option<Self> {
        let Seen::Known(own) = processes::read(host, Pid(std::process::id()), Seen::Gone) else {
            return None;
        };
        let unit = own.cgroup.known().filter(|c| c.unit.is_some() && c.session.is_none());
        let ancestors = observe::ourselves(host).filter(|chain| chain.len() <= MOST_ANCESTORS);
        let entry = Entry {
            port: String::new(),
            network: 0,
            at_ticks: 0,
            pid: own.key.pid.0,
            start_ticks: own.key.start_ticks,
            pidfd_inode: own.key.pidfd_inode,
            became_command: false,
            ancestors: ancestors.map(|chain| chain.iter().skip(1).map(|pid| pid.0).collect()),
            unit_path: unit.map(|cgroup| cgroup.path.clone()),
        };
        let network = fs::metadata(host.path("proc/self/ns/net")).ok()?.ino();
        let boot_id = observe::clock(host).boot_id.known()?.clone();
        Some(Self { path, boot_id, network, own: entry })
    }

    /// What was let pass on this network since it booted.
    pub(super) fn read(&self) -> Vec<Passed> {
        self.entries().iter().filter(|e| e.network == self.network).filter_map(passed).collect()
    }

    /// Writes down that these ports are let pass now. To be called with the lock held.
    pub(super) fn add(
        &self,
        host: &Host,
        ports: &[Endpoint],
        becomes_command: bool,
    ) -> Result<(), String> {
        let failed = |why: &dyn std::fmt::Display| {
            Err(format!("the next gate will not know who takes a port now: {why}"))
        };
        let Seen::Known(at_ticks) = observe::clock(host).now_ticks else {
            return failed(&"the clock cannot be read");
        };
        let mut entries = self.entries();
        for port in ports.iter().map(Endpoint::to_string) {
            entries.retain(|entry| (entry.network, &entry.port) != (self.network, &port));
            let network = self.network;
            let own = self.own.clone();
            entries.push(Entry { port, network, at_ticks, became_command: becomes_command, ..own });
        }
        entries.drain(..entries.len().saturating_sub(MOST));
        match self.write(entries) {
            Ok(()) => Ok(()),
            Err(error) => failed(&format!("'{}' cannot be written: {error}", self.path.display())),
        }
    }

    /// None of another boot, and none where the file is anything but ours.
    fn entries(&self) -> Vec<Entry> {
        self.text().map(|text| entries(&text, &self.boot_id)).unwrap_or_default()
    }

    /// No link is followed, and no FIFO waited for.
    fn text(&self) -> io::Result<Vec<u8>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open(&self.path)?;
        let about = file.metadata()?;
        let is_ours =
            about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o022 == 0;
        if !about.is_file() || !is_ours || about.len() > MOST_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Beside, then renamed: a full disk leaves the old one, and a link in its place is replaced, not followed.
    fn write(&self, passed: Vec<Entry>) -> io::Result<()> {
        let document = Document { version: VERSION, boot_id: self.boot_id.clone(), passed };
        let beside = self.path.with_extension("new");
        let _ = fs::remove_file(&beside);
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(&document)?)?;
        fs::rename(beside, &self.path)
    }
}

fn entries(text: &[u8], boot_id: &str) -> Vec<Entry> {
    let document: Option<Document> = serde_json::from_slice(text).ok();
    let is_ours = |d: &Document| d.version == VERSION && d.boot_id == boot_id;
    document.filter(is_ours).map(|document| document.passed).unwrap_or_default()
}

/// What a file says that we did not write: each port is one, and what is written down again is read again.
#[cfg(any(test, fuzzing))]
pub(super) fn hostile(text: &[u8]) {
    let read = entries(text, "this boot");
    let all: Vec<Passed> = read.iter().filter_map(passed).collect();
    assert!(all.len() <= read.len() && read.len() <= text.len() / 16);
    let document = Document { version: VERSION, boot_id: "this boot".to_owned(), passed: read };
    let printed = serde_json::to_vec(&document).unwrap_or_default();
    let again: Vec<Passed> = entries(&printed, "this boot").iter().filter_map(passed).collect();
    assert_eq!(again, all);
    assert!(entries(&printed, "another boot").is_empty());
}

fn passed(entry: &Entry) -> Option<Passed> {
    let pids = |pids: &Vec<u32>| pids.iter().map(|&pid| Pid(pid)).collect();
    Some(Passed {
        endpoint: entry.port.parse().ok()?,
        at_ticks: entry.at_ticks,
        gate: ProcessKey {
            pid: Pid(entry.pid),
            start_ticks: entry.start_ticks,
            pidfd_inode: entry.pidfd_inode,
        },
        became_command: entry.became_command,
        ancestors: entry.ancestors.as_ref().map(pids),
        unit_path: entry.unit_path.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: [&str; 2] = ["8091", "127.0.0.1:8092/udp"];

    fn records(path: PathBuf) -> Records {
        Records::of(&Host::live(), path).unwrap()
    }

    fn add(records: &Records) -> Result<(), String> {
        let ports = PORTS.map(|port| port.parse().unwrap());
        records.add(&Host::live(), &ports, true)
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None, ..Default::default()
        })]

        #[test]
        fn whatever_was_let_pass_is_read_as_it_was_written(
            numbers in proptest::prelude::any::<(u64, u64, u32, u64, Option<u64>)>(),
            ancestors in proptest::option::of(proptest::collection::vec(0..u32::MAX, 0..5)),
            unit_path in proptest::option::of("\\PC{0,20}"),
            became_command: bool,
        ) {
            let (network, at_ticks, pid, start_ticks, pidfd_inode) = numbers;
            let entry = Entry {
                port: PORTS[1].to_owned(), network, at_ticks, pid, start_ticks, pidfd_inode, became_command,
                ancestors, unit_path,
            };
            let document = Document { version: VERSION, boot_id: "b".to_owned(), passed: vec![entry.clone()] };
            let text = serde_json::to_vec(&document).unwrap();
            let read: Vec<Passed> = entries(&text, "b").iter().filter_map(passed).collect();
            proptest::prop_assert_eq!(&read, &[passed(&entry).unwrap()]);
            proptest::prop_assert_eq!(read[0].at_ticks, at_ticks);
            proptest::prop_assert_eq!(read[0].gate.start_ticks, start_ticks);
        }
    }

    #[test]
    fn what_one_gate_lets_pass_the_next_one_reads_once_for_each_port() {
        let folder = tempfile::tempdir().unwrap();
        let records = records(folder.path().join("passed.json"));
        assert_eq!(records.read(), []);
        add(&records).unwrap();
        add(&records).unwrap();
        let read = records.read();
        let ports: Vec<String> = read.iter().map(|passed| passed.endpoint.to_string()).collect();
        assert_eq!(ports, ["8091/tcp", "127.0.0.1:8092/udp"]);
        let Seen::Known(own) = processes::read(&Host::live(), Pid(std::process::id()), Seen::Gone)
        else {
            panic!("our own process is there")
        };
        assert!(read[0].gate.is_same(&own.key) && read[0].became_command);
        assert!(read[0].ancestors.as_ref().unwrap().contains(&own.parent));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_boot_and_another_network_are_as_if_nothing_was_let_pass() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passed.json");
        add(&records(path.clone())).unwrap();
        let mut elsewhere = records(path.clone());
        elsewhere.network += 1;
        assert_eq!(elsewhere.read(), []);
        // Which forgets nothing of the first one.
        add(&elsewhere).unwrap();
        assert_eq!((elsewhere.read().len(), records(path.clone()).read().len()), (2, 2));
        let mut later = records(path);
        later.boot_id = "another".to_owned();
        assert_eq!(later.read(), []);
    }

    #[test]
    fn the_file_grows_to_its_bound_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = records(folder.path().join("passed.json"));
        records.own.ancestors = Some(vec![u32::MAX; MOST_ANCESTORS]);
        for first in [1, 301] {
            let ports: Vec<Endpoint> = (first..first + 300)
                .map(|port| format!("[2001:db8::{port}]:{port}").parse().unwrap())
                .collect();
            records.add(&Host::live(), &ports, false).unwrap();
        }
        let read = records.read();
        assert_eq!((read.len(), read[MOST - 1].endpoint.port.number()), (MOST, 600));
    }

    #[test]
    fn a_file_that_is_not_ours_is_neither_believed_nor_followed() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passed.json");
        let elsewhere = folder.path().join("elsewhere.json");
        add(&records(elsewhere.clone())).unwrap();
        symlink(&elsewhere, &path).unwrap();
        let records = records(path.clone());
        assert_eq!(records.read(), [], "a link");
        let before = fs::read(&elsewhere).unwrap();
        add(&records).unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), before);
        assert_eq!(records.read().len(), 2);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(records.read(), [], "anybody may write it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert_eq!(records.read(), [], "somebody else's");
        }
        fs::remove_file(&path).unwrap();
        for text in [&b"[1, 2"[..], b"null", &b" ".repeat(300 << 10)] {
            fs::write(&path, text).unwrap();
            assert_eq!(records.read(), []);
        }
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_eq!(records.read(), [], "a FIFO");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(records.read(), [], "a folder");
        assert!(add(&records).unwrap_err().contains("passed.json' cannot be written"));
    }
}
