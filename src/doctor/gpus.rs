//! What a look at GPUs could use, and what it comes to: NVIDIA's library is asked as `scan --gpu` would, by a process of its own.

use std::{fs, path::Path};

use super::{Area, Check, State, off};
use crate::{
    host::Host,
    observe::gpus::{self, LIBRARY, Reader, Sources, Way},
    snapshot::{Gpu, GpuSource, GpuTrouble, Seen},
};

/// What was found, paths from the host's root.
#[derive(Debug)]
pub(super) struct Gpus {
    library: Option<String>,
    nvidia: Vec<String>,
    has_kfd: bool,
    render: Vec<String>,
    has_nvidia_smi: bool,
    sources: Sources,
    seen: crate::snapshot::Gpus,
}

pub(super) fn look(host: &Host, sources: Sources) -> Gpus {
    Gpus {
        library: gpus::library(host).map(|path| format!("/{}", path.display())),
        nvidia: numbered(&host.path("dev"), "nvidia"),
        has_kfd: host.path("sys/class/kfd/kfd").exists(),
        render: numbered(&host.path("dev/dri"), "renderD"),
        has_nvidia_smi: gpus::nvidia_smi(host).is_ok(),
        seen: Reader::new(sources.clone()).look(host),
        sources,
    }
}

/// `nvidia0`, `renderD128`: the name and a number behind it.
fn numbered(folder: &Path, name: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_numbered = |entry: &String| {
        let number = entry.strip_prefix(name);
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut found: Vec<String> = names.filter(is_numbered).collect();
    found.sort();
    found
}

pub(super) fn checks(gpus: &Gpus) -> Vec<Check> {
    let new = |name: &str, found: Option<String>| {
        let state = if found.is_some() { State::Good } else { State::Absent };
        Check::new(Area::Gpus, name, state, found.unwrap_or_else(|| "not found".to_owned()))
    };
    let listed = |names: &[String], folder: &str| {
        let shown: Vec<String> = names.iter().map(|name| format!("{folder}/{name}")).collect();
        (!shown.is_empty()).then(|| shown.join(" "))
    };
    let mut checks = vec![
        new(LIBRARY, gpus.library.clone()),
        new("NVIDIA devices", listed(&gpus.nvidia, "/dev")),
        new("AMD kfd", gpus.has_kfd.then(|| "/sys/class/kfd/kfd".to_owned())),
        new("render nodes", listed(&gpus.render, "/dev/dri")),
        nvml(gpus),
        nvidia_smi(gpus),
    ];
    checks.extend(gpus.seen.all.iter().map(gpu));
    if let Some(why) = &gpus.seen.may_miss {
        let detail = format!("there may be more GPUs than these: {why}");
        checks.push(Check::new(Area::Gpus, "all GPUs", State::Unknown { fix: None }, detail));
    }
    checks
}

/// Whether NVIDIA's library answers.
fn nvml(gpus: &Gpus) -> Check {
    let (state, detail) = if let Some(answer) = answered(gpus, GpuSource::Nvml) {
        (State::Good, answer)
    } else if let Some(trouble) = trouble(gpus, GpuSource::Nvml) {
        state_of(trouble)
    } else if gpus.sources.nvml == Way::Off {
        (State::Absent, "switched off ('gpus: nvml')".to_owned())
    } else {
        (State::Absent, "no GPU of NVIDIA's here".to_owned())
    };
    Check::new(Area::Gpus, "NVML", state, detail)
}

/// Whether `nvidia-smi` answers, where it is needed.
fn nvidia_smi(gpus: &Gpus) -> Check {
    let (state, detail) = if let Some(answer) = answered(gpus, GpuSource::NvidiaSmi) {
        (State::Fallback, format!("{answer} in place of NVML; parts of a split GPU are not told"))
    } else if gpus.sources.nvidia_smi == Way::Off {
        (State::Absent, "switched off ('gpus: nvidia_smi')".to_owned())
    } else if gpus.sources.nvidia_smi == Way::Auto && !gpus.has_nvidia_smi {
        (State::Absent, "not found".to_owned())
    } else if let Some(trouble) = trouble(gpus, GpuSource::NvidiaSmi) {
        state_of(trouble)
    } else {
        (State::Good, "not needed, and not asked".to_owned())
    };
    Check::new(Area::Gpus, "nvidia-smi", state, detail)
}

fn answered(gpus: &Gpus, source: GpuSource) -> Option<String> {
    let told = gpus.seen.all.iter().filter(|gpu| gpu.source == source && gpu.part.is_none());
    let count = told.count();
    (count > 0).then(|| format!("answers: {count} {}", if count == 1 { "GPU" } else { "GPUs" }))
}

fn trouble(gpus: &Gpus, source: GpuSource) -> Option<&GpuTrouble> {
    gpus.seen.trouble.iter().find(|trouble| trouble.source == source)
}

fn state_of(trouble: &GpuTrouble) -> (State, String) {
    let state = trouble.remedy.as_ref().map_or(State::Unknown { fix: None }, off);
    (state, format!("{} {}", trouble.source, trouble.why))
}

/// What would be known of a GPU if a service named it.
fn gpu(gpu: &Gpu) -> Check {
    const MEBIBYTE: u64 = 1 << 20;
    let memory = match &gpu.memory {
        Seen::Known(Some(memory)) => {
            let (free, total) = (memory.free_bytes / MEBIBYTE, memory.total_bytes / MEBIBYTE);
            Ok(format!("{free} of {total} MiB free"))
        }
        Seen::Known(None) => Ok("its memory is not counted".to_owned()),
        Seen::Gone => Err("its memory: gone".to_owned()),
        Seen::Denied => Err("its memory: permission denied".to_owned()),
        Seen::Unreadable(why) => Err(format!("its memory is not known: {why}")),
    };
    let (state, told) = match (&gpu.may_miss, memory) {
        (Some(why), _) => {
            (State::Unknown { fix: None }, format!("who holds it is not known: {why}"))
        }
        (None, Err(why)) => (State::Fallback, why),
        (None, Ok(memory)) => (State::Good, memory),
    };
    let words = [Some(gpu.name.as_str()), gpu.uuid.as_deref(), gpu.bus.as_deref()];
    let words: Vec<&str> = words.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    let detail = format!("{} ({}), told by {}: {told}", words.join(", "), gpu.vendor, gpu.source);
    Check::new(Area::Gpus, &gpu.label(), state, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[&str], cache: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        fs::create_dir_all(folder.path().join("etc")).unwrap();
        fs::write(folder.path().join("etc/ld.so.cache"), cache).unwrap();
        fs::create_dir_all(folder.path().join("sys/class")).unwrap();
        let gpus = look(&Host::fixture(folder.path()), Sources::default());
        let mut checks = checks(&gpus);
        checks.truncate(4);
        checks.into_iter().filter(|c| c.state == State::Good).map(|c| c.detail).collect()
    }

    #[test]
    fn devices_and_libraries_are_found_where_they_are() {
        let files = [
            "usr/lib64/libnvidia-ml.so.1",
            "dev/nvidia0",
            "dev/nvidia1",
            "dev/nvidiactl",
            "dev/nvidia-uvm",
            "sys/class/kfd/kfd/topology",
            "dev/dri/renderD128",
            "dev/dri/card0",
        ];
        assert_eq!(
            found(&files, ""),
            [
                "/usr/lib64/libnvidia-ml.so.1",
                "/dev/nvidia0 /dev/nvidia1",
                "/sys/class/kfd/kfd",
                "/dev/dri/renderD128"
            ]
        );
    }

    #[test]
    fn the_loaders_cache_leads_to_an_unusual_place_unless_the_library_is_gone_from_there() {
        let cache = "glibc-ld.so.cache1.1\0libnvidia-ml.so.1\0/opt/nv/libnvidia-ml.so.1\0";
        assert_eq!(found(&["opt/nv/libnvidia-ml.so.1"], cache), ["/opt/nv/libnvidia-ml.so.1"]);
        assert_eq!(found(&["opt/nv/other.so"], cache), [""; 0]);
    }

    fn state(gpus: &Gpus, name: &str) -> State {
        checks(gpus).into_iter().find(|check| check.name == name).unwrap().state
    }

    fn trouble(why: &str, remedy: Option<&str>) -> GpuTrouble {
        let remedy = remedy.map(str::to_owned);
        GpuTrouble { source: GpuSource::Nvml, why: why.to_owned(), remedy }
    }

    #[test]
    fn a_driver_that_does_not_answer_is_off_with_its_fix_and_unknown_where_nobody_knows_one() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sys/class")).unwrap();
        let mut gpus = look(&Host::fixture(folder.path()), Sources::default());
        assert_eq!(state(&gpus, "NVML"), State::Absent);
        gpus.seen.trouble = vec![trouble("says: no driver", Some("modprobe nvidia"))];
        assert_eq!(state(&gpus, "NVML"), off("modprobe nvidia"));
        gpus.seen.trouble = vec![trouble("did not answer", None)];
        assert_eq!(state(&gpus, "NVML"), State::Unknown { fix: None });
    }

    #[test]
    fn a_gpu_that_is_only_seen_by_open_files_is_a_fallback_and_one_whose_holders_may_hide_unknown()
    {
        let folder = tempfile::tempdir().unwrap();
        let file = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("sys/class/drm/version", "");
        file("proc/devices", "");
        file("proc/driver/nvidia/gpus/0000:3b:00.0/information", "Model: H200\nDevice Minor: 0\n");
        fs::create_dir_all(folder.path().join("proc/self/ns")).unwrap();
        let namespace = folder.path().join("proc/self/ns/pid");
        std::os::unix::fs::symlink("pid:[4026531836]", &namespace).unwrap();
        let look = || look(&Host::fixture(folder.path()), Sources::default());
        assert_eq!(state(&look(), "GPU 0"), State::Fallback);
        fs::remove_file(namespace).unwrap();
        assert_eq!(state(&look(), "GPU 0"), State::Unknown { fix: None });
    }
}
