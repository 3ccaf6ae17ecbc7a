//! Which of a process's open files are GPUs. An NVIDIA device is known by its number, read through `/proc/PID/fd`, so that
//! it does not matter which `/dev` we see; what a DRM client has is told by `/proc/PID/fdinfo` (drm-usage-stats.rst).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs,
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, readlinkat_raw, statx};

use crate::{
    host::{Host, seen},
    ident::{Pid, pci_address},
    observe::{
        holders::each_entry,
        reader::{look_with_deadline, read_limited},
    },
    snapshot::Seen,
    sys,
};

/// Longer links lead to no device.
const LINK_BYTES: usize = 256;

/// What one process has open of GPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Files {
    /// Device numbers, major and minor, of NVIDIA's devices.
    pub(super) nvidia: BTreeSet<(u32, u32)>,
    /// Clients of DRM drivers, by bus and `drm-client-id`: a client is one though it be open twice.
    pub(super) drm: BTreeMap<(String, u64), Client>,
    /// DRM nodes of which the kernel does not tell what the process does there: `renderD128`.
    pub(super) silent: BTreeSet<String>,
}

/// One client of a DRM driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Client {
    /// The memory of the GPU's own that it has; none where the driver does not say.
    pub(super) bytes: Option<u64>,
    /// It came through a render node, not the one that drives displays.
    pub(super) is_render: bool,
    /// It has had the GPU do something.
    pub(super) has_run: bool,
}

/// The files of all processes.
#[derive(Debug, Default)]
pub(super) struct Walk {
    /// Processes that have something of a GPU open.
    pub(super) of: BTreeMap<Pid, Files>,
    /// Of how many the files could not be read.
    pub(super) refused: usize,
    /// Why there is no list of processes.
    pub(super) unlisted: Option<&'static str>,
}

impl Walk {
    /// Why there may be more holders than these.
    pub(super) fn may_miss(&self) -> Option<String> {
        if let Some(why) = self.unlisted {
            return Some(why.to_owned());
        }
        (self.refused > 0)
            .then(|| format!("the open files of {} processes could not be read", self.refused))
    }
}

/// Looks at the open files of every process.
pub(super) fn walk(host: &Host) -> Walk {
    let pids = match super::super::list(host) {
        Ok(pids) => pids,
        Err(why) => return Walk { unlisted: Some(why), ..Walk::default() },
    };
    let door = host.clone();
    let read = look_with_deadline(&pids, move |pid, bytes| files_of(&door, pid, bytes));
    let mut walk = Walk::default();
    for (pid, files) in read {
        match files {
            Seen::Known(files) if files == Files::default() => {}
            Seen::Known(files) => drop(walk.of.insert(pid, files)),
            Seen::Gone => {}
            Seen::Denied | Seen::Unreadable(_) => walk.refused += 1,
        }
    }
    walk
}

fn files_of(host: &Host, pid: Pid, bytes: &mut Vec<u8>) -> Seen<Files> {
    let mut files = Files::default();
    let whole = read_folder(host, &pid.to_string(), &mut files, bytes);
    if whole != Seen::Known(()) {
        return whole.map(|()| files);
    }
    // Threads with descriptors of their own, and those that outlived their leader.
    let tasks = match seen(fs::read_dir(host.of_process(pid, "task"))) {
        Seen::Known(tasks) => tasks,
        Seen::Gone => return Seen::Known(files),
        refused @ (Seen::Denied | Seen::Unreadable(_)) => return refused.map(|_| files),
    };
    for task in tasks {
        let name = match task {
            Ok(task) => task.file_name(),
            Err(error) => return seen(Err(error)),
        };
        let Some(thread) = name.to_str().and_then(|n| n.parse().ok()).map(Pid) else { continue };
        let is_shared =
            || host.is_live() && matches!(sys::shares_descriptors(pid, thread), Ok(true));
        if thread != pid && !is_shared() {
            match read_folder(host, &format!("{pid}/task/{thread}"), &mut files, bytes) {
                Seen::Known(()) | Seen::Gone => {}
                refused @ (Seen::Denied | Seen::Unreadable(_)) => return refused.map(|()| files),
            }
        }
    }
    Seen::Known(files)
}

/// Adds what is open in `proc/OF/fd`.
fn read_folder(host: &Host, of: &str, files: &mut Files, bytes: &mut Vec<u8>) -> Seen<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = host.path(format!("proc/{of}/fd"));
    let folder = match openat(CWD, path, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(error) => return seen(Err(error.into())),
    };
    let mut refusal = Seen::Known(());
    let was_refused = each_entry(&folder, |name| {
        match read_file(host, of, &folder, name, files, bytes) {
            // Closed meanwhile.
            Seen::Known(()) | Seen::Gone => true,
            refused @ (Seen::Denied | Seen::Unreadable(_)) => {
                refusal = refused;
                false
            }
        }
    });
    if was_refused && refusal == Seen::Known(()) {
        return Seen::Unreadable("its files could not be listed".to_owned());
    }
    refusal
}

fn read_file(
    host: &Host,
    of: &str,
    folder: &OwnedFd,
    name: &CStr,
    files: &mut Files,
    bytes: &mut Vec<u8>,
) -> Seen<()> {
    let mut buffer = [MaybeUninit::uninit(); LINK_BYTES];
    let link = match readlinkat_raw(folder, name, &mut buffer) {
        Ok((link, _)) => String::from_utf8_lossy(link).into_owned(),
        Err(error) => return seen(Err(error.into())),
    };
    let mut parts = link.rsplit('/');
    let (Some(last), Some(parent)) = (parts.next(), parts.next()) else { return Seen::Known(()) };
    // The kernel appends this where the node was removed since.
    let last = last.trim_end_matches(" (deleted)");
    if is_nvidia(last) || parent == "nvidia-caps" {
        // Without a question to a file server that may hang: a directory of this name may be anywhere.
        return match statx(folder, name, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE) {
            Ok(stat) => {
                if stat.stx_mode & 0o170_000 == 0o020_000 {
                    files.nvidia.insert((stat.stx_rdev_major, stat.stx_rdev_minor));
                }
                Seen::Known(())
            }
            Err(error) => seen(Err(error.into())),
        };
    }
    if parent != "dri" {
        return Seen::Known(());
    }
    let file = host.path(format!("proc/{of}/fdinfo/{}", name.to_string_lossy()));
    match seen(read_limited(&file, bytes)) {
        Seen::Known(()) => match client(&String::from_utf8_lossy(bytes)) {
            Some((bus, id, client)) => {
                let is_render = last.starts_with("renderD");
                let same = files.drm.entry((bus, id)).or_insert_with(|| client.clone());
                same.is_render |= is_render;
            }
            None => drop(files.silent.insert(last.to_owned())),
        },
        refused @ (Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => return refused,
    }
    Seen::Known(())
}

/// `nvidia0`, `nvidiactl`, `nvidia-uvm`: the driver's own names, which its libraries open.
fn is_nvidia(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("nvidia") else { return false };
    rest == "ctl"
        || rest == "-uvm"
        || (!rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// What an `fdinfo` tells of a client; none where it tells of none.
pub(super) fn client(text: &str) -> Option<(String, u64, Client)> {
    let lines = || {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.map(|(key, value)| (key.trim(), value.trim()))
    };
    let value = |wanted: &str| lines().find(|(key, _)| *key == wanted).map(|(_, value)| value);
    let bus = pci_address(value("drm-pdev")?)?;
    let id = value("drm-client-id")?.parse().ok()?;
    let has_run = lines().any(|(key, value)| {
        let is_time = key.starts_with("drm-engine-") || key.starts_with("drm-cycles-");
        let number = value.split_whitespace().next();
        is_time && !key.starts_with("drm-engine-capacity-") && number.is_some_and(|n| n != "0")
    });
    // What is there now; older kernels tell it as `memory` (amdgpu from 5.14), and where neither stands, all that was asked for.
    let bytes = ["drm-resident-", "drm-memory-", "drm-total-"].iter().find_map(|kind| {
        let of_kind = lines().filter_map(|(key, value)| {
            let region = key.strip_prefix(kind)?;
            let is_own = region.starts_with("vram") || region.starts_with("local");
            is_own.then(|| amount(value))
        });
        let amounts: Vec<Option<u64>> = of_kind.collect();
        let sum = |sum: u64, amount: Option<u64>| sum.checked_add(amount?);
        if amounts.is_empty() { None } else { amounts.into_iter().try_fold(0, sum) }
    });
    Some((bus, id, Client { bytes, is_render: false, has_run }))
}

/// `1024 KiB`; bytes where no unit stands.
fn amount(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    let unit = match words.next() {
        None => 1,
        Some("KiB") => 1 << 10,
        Some("MiB") => 1 << 20,
        Some("GiB") => 1 << 30,
        Some(_) => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_memory_is_what_is_resident_in_the_gpus_own_regions() {
        let text = "pos:\t0\ndrm-driver:\txe\ndrm-client-id:\t7\ndrm-pdev:\t0000:03:00.0\n\
                    drm-total-system:\t9 GiB\ndrm-resident-system:\t9 GiB\ndrm-total-vram0:\t3 GiB\n\
                    drm-resident-vram0:\t2 MiB\ndrm-resident-vram1:\t8 KiB\ndrm-cycles-ccs:\t5\n";
        let (bus, id, client) = client(text).unwrap();
        assert_eq!((bus.as_str(), id), ("0000:03:00.0", 7));
        let bytes = Some((2 << 20) + (8 << 10));
        assert_eq!(client, Client { bytes, is_render: false, has_run: true });
    }

    #[test]
    fn older_kernels_tell_it_by_other_names_or_not_at_all() {
        let old = |line: &str| {
            let text = format!("drm-pdev:\t0000:03:00.0\ndrm-client-id:\t7\n{line}\n");
            client(&text).map(|(_, _, client)| client.bytes)
        };
        assert_eq!(old("drm-memory-vram:\t12 KiB"), Some(Some(12 << 10)));
        assert_eq!(old("drm-total-local0:\t12"), Some(Some(12)));
        assert_eq!(old("drm-engine-render:\t0 ns"), Some(None));
        assert_eq!(old("drm-resident-vram:\t12 pages"), Some(None), "a unit that we do not know");
        assert_eq!(client("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn more_memory_than_a_number_holds_is_not_known_and_not_little() {
        let text = format!(
            "drm-pdev:\t0000:03:00.0\ndrm-client-id:\t7\ndrm-memory-vram0:\t{}\ndrm-memory-vram1:\t2\n",
            u64::MAX
        );
        assert_eq!(client(&text).map(|(_, _, client)| client.bytes), Some(None));
    }

    #[test]
    fn only_the_drivers_own_names_are_its_devices() {
        for name in ["nvidia0", "nvidia12", "nvidiactl", "nvidia-uvm"] {
            assert!(is_nvidia(name), "{name}");
        }
        for name in ["nvidia", "nvidia-docker", "nvidia0.log", "nvidia-uvm-tools", "nvidia-modeset"]
        {
            assert!(!is_nvidia(name), "{name}");
        }
    }
}
