//! `nvidia-smi`, where NVIDIA's library could not be asked by us. Its columns are read strictly: what is not understood is a
//! trouble, never a free GPU.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::{bare, late, uuid};
use crate::{
    command::{self, Unheard},
    host::Host,
    ident::{Pid, pci_address},
    snapshot::{Gpu, GpuHolding, GpuMemory, GpuSource, GpuTrouble, GpuUse, GpuVendor, Seen},
};

/// Where distributions, NixOS and WSL put it.
const PROGRAMS: [&str; 6] = [
    "usr/bin/nvidia-smi",
    "usr/local/bin/nvidia-smi",
    "opt/bin/nvidia-smi",
    "run/current-system/sw/bin/nvidia-smi",
    "run/opengl-driver/bin/nvidia-smi",
    "usr/lib/wsl/lib/nvidia-smi",
];
/// The name is the last, since it may hold a comma.
const GPUS: &str =
    "--query-gpu=index,uuid,pci.bus_id,memory.total,memory.free,mig.mode.current,name";
const PROCESSES: &str = "--query-compute-apps=gpu_uuid,pid,used_memory";
const FORMAT: &str = "--format=csv,noheader,nounits";
const MEBIBYTE: u64 = 1 << 20;

/// The program on this host, by its absolute path. Root runs none that another user could have written.
pub fn program(host: &Host) -> Result<PathBuf, GpuTrouble> {
    let is_root = rustix::process::geteuid().is_root();
    let is_safe = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|m| !is_root || (m.uid() == 0 && m.mode() & 0o022 == 0))
    };
    let mut paths = PROGRAMS.iter().map(|path| host.path(path));
    let found = paths.find(|path| command::is_program(path));
    match found {
        Some(path) if is_safe(&path) => Ok(path),
        Some(path) => Err(GpuTrouble {
            source: GpuSource::NvidiaSmi,
            why: format!("is not root's alone: {}", path.display()),
            remedy: Some("name one that only root can write at 'gpus: nvidia_smi'".to_owned()),
        }),
        None => Err(trouble("is not here")),
    }
}

/// All GPUs that it tells of, with the processes that compute there. Where it tells the GPUs and not the processes, who holds
/// them is unknown, and the trouble is added.
pub(super) fn ask(
    program: &Path,
    timeout: Duration,
    troubles: &mut Vec<GpuTrouble>,
) -> Result<Vec<Gpu>, GpuTrouble> {
    let deadline = Instant::now() + timeout;
    let run = |question: &str| {
        run(program, question, deadline).map_err(|why| match why {
            None => trouble(late(timeout)),
            Some(why) => trouble(why),
        })
    };
    let mut gpus = read_gpus(&run(GPUS)?).map_err(trouble)?;
    let processes = run(PROCESSES).and_then(|text| read_processes(&text).map_err(trouble));
    let held = processes.and_then(|held| {
        let strange = held.iter().find(|(on, _)| !gpus.iter().any(|g| g.uuid.as_ref() == Some(on)));
        match strange {
            Some((on, _)) => {
                Err(trouble(format!("tells of a process on a GPU that it did not tell of: {on}")))
            }
            None => Ok(held),
        }
    });
    match held {
        Ok(held) => {
            for (on, holding) in held {
                let on = gpus.iter_mut().find(|gpu| gpu.uuid.as_deref() == Some(on.as_str()));
                if let Some(gpu) = on {
                    gpu.holdings.push(holding);
                }
            }
        }
        Err(trouble) => {
            let why = format!("nvidia-smi {}", trouble.why);
            for gpu in &mut gpus {
                gpu.may_miss = Some(why.clone());
            }
            troubles.push(trouble);
        }
    }
    for gpu in gpus.iter_mut().filter(|gpu| gpu.is_split) {
        gpu.may_miss =
            Some("nvidia-smi does not tell who holds which part of a split GPU".to_owned());
    }
    Ok(gpus)
}

fn trouble(why: impl Into<String>) -> GpuTrouble {
    GpuTrouble { source: GpuSource::NvidiaSmi, why: why.into(), remedy: None }
}

/// What it says; `None` in the error = not in time.
fn run(program: &Path, question: &str, deadline: Instant) -> Result<String, Option<String>> {
    let mut command = Command::new(program);
    command.args([question, FORMAT]).current_dir("/").env("LC_ALL", "C");
    let said = command::run(command, deadline).map_err(|why| {
        let is_late = matches!(why, Unheard::Late);
        (!is_late).then(|| format!("could not be asked: {why}"))
    })?;
    let text = String::from_utf8_lossy(&said.out).into_owned();
    if said.code == Some(0) {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&said.errors).into_owned();
    let first = text.lines().chain(errors.lines()).find(|line| !line.trim().is_empty());
    let code = said.code.map_or_else(|| "by a signal".to_owned(), |code| format!("with {code}"));
    Err(Some(format!("failed {code}: {}", shown(first.unwrap_or("it says nothing")))))
}

/// As much of a line as a sentence takes.
fn shown(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(120).collect()
}

pub(super) fn read_gpus(text: &str) -> Result<Vec<Gpu>, String> {
    let gpus = text.lines().map(|line| {
        read_gpu(line).ok_or_else(|| format!("says what is not understood: '{}'", shown(line)))
    });
    let gpus = gpus.collect::<Result<Vec<Gpu>, String>>()?;
    if gpus.is_empty() { Err("tells of no GPU".to_owned()) } else { Ok(gpus) }
}

fn read_gpu(line: &str) -> Option<Gpu> {
    let columns: Vec<&str> = line.splitn(7, ',').map(str::trim).collect();
    let [index, id, bus, total, free, mig, name] = columns.as_slice() else { return None };
    let memory = match (amount(total)?, amount(free)?) {
        (Figure::Mebibytes(total), Figure::Mebibytes(free)) => {
            let (total_bytes, free_bytes) =
                (total.checked_mul(MEBIBYTE)?, free.checked_mul(MEBIBYTE)?);
            Seen::Known(Some(GpuMemory { total_bytes, free_bytes }))
        }
        (Figure::NotCounted, Figure::NotCounted) => Seen::Known(None),
        (Figure::Mebibytes(_) | Figure::NotCounted | Figure::Refused, _) => {
            Seen::Unreadable("nvidia-smi does not tell it".to_owned())
        }
    };
    let is_split = match *mig {
        "Enabled" => true,
        "Disabled" => false,
        other => match amount(other)? {
            Figure::NotCounted => false,
            Figure::Mebibytes(_) | Figure::Refused => return None,
        },
    };
    Some(Gpu {
        index: index.parse().ok()?,
        uuid: Some(uuid(id.strip_prefix("GPU-").map(|_| id)?)),
        bus: Some(pci_address(bus)?),
        name: (*name).to_owned(),
        is_split,
        memory,
        ..bare(GpuVendor::Nvidia, GpuSource::NvidiaSmi, "")
    })
}

pub(super) fn read_processes(text: &str) -> Result<Vec<(String, GpuHolding)>, String> {
    let holdings = text.lines().map(|line| {
        read_process(line).ok_or_else(|| format!("says what is not understood: '{}'", shown(line)))
    });
    holdings.collect()
}

fn read_process(line: &str) -> Option<(String, GpuHolding)> {
    let columns: Vec<&str> = line.split(',').map(str::trim).collect();
    let [on, pid, memory] = columns.as_slice() else { return None };
    let pid = pid.parse().ok().filter(|&pid| pid != 0).map(Pid)?;
    let memory_bytes = match amount(memory)? {
        Figure::Mebibytes(amount) => Some(amount.checked_mul(MEBIBYTE)?),
        Figure::NotCounted | Figure::Refused => None,
    };
    let is_uuid = on.starts_with("GPU-") || on.starts_with("MIG-");
    is_uuid.then(|| (uuid(on), GpuHolding { pid, kind: GpuUse::Compute, memory_bytes }))
}

/// What stands in a column of figures.
enum Figure {
    Mebibytes(u64),
    NotCounted,
    Refused,
}

fn amount(text: &str) -> Option<Figure> {
    match text {
        "[N/A]" | "N/A" | "[Not Supported]" => Some(Figure::NotCounted),
        "[Insufficient Permissions]" => Some(Figure::Refused),
        number => number.parse().ok().map(Figure::Mebibytes),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn root_runs_no_nvidia_smi_that_another_user_could_have_written() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root is careful about whose program it runs");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("usr/bin/nvidia-smi");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        let host = Host::fixture(folder.path());
        let set = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        set(0o755);
        assert_eq!(program(&host), Ok(file.clone()));
        set(0o775);
        assert!(program(&host).unwrap_err().why.starts_with("is not root's alone"));
        set(0o755);
        std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
        assert!(program(&host).is_err());
        set(0o644);
        assert_eq!(program(&host).unwrap_err().why, "is not here", "no program at all");
    }
}
