//! What a look at GPUs could use. Nothing is loaded and no device is opened.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Area, Check, State};
use crate::host::Host;

const LIBRARY: &str = "libnvidia-ml.so.1";
/// Where loaders look, and where NixOS, WSL and container runtimes put the driver's libraries.
const FOLDERS: [&str; 12] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "lib",
    "usr/local/lib",
    "usr/local/nvidia/lib64",
    "run/opengl-driver/lib",
    "usr/lib/wsl/lib",
];

/// What was found, paths from the host's root.
#[derive(Debug, Default)]
pub(super) struct Gpus {
    library: Option<PathBuf>,
    nvidia: Vec<String>,
    has_kfd: bool,
    render: Vec<String>,
}

pub(super) fn look(host: &Host) -> Gpus {
    Gpus {
        library: library(host),
        nvidia: numbered(&host.path("dev"), "nvidia"),
        has_kfd: host.path("sys/class/kfd/kfd").exists(),
        render: numbered(&host.path("dev/dri"), "renderD"),
    }
}

fn library(host: &Host) -> Option<PathBuf> {
    let usual = FOLDERS.iter().map(|folder| Path::new(folder).join(LIBRARY));
    usual.chain(cached(host)).find(|path| host.path(path).exists())
}

/// Where the loader's cache has it (ldconfig(8)): paths end in NUL there.
fn cached(host: &Host) -> Option<PathBuf> {
    let cache = fs::read(host.path("etc/ld.so.cache")).ok()?;
    let mut paths = cache.split(|&b| b == 0).filter_map(|text| std::str::from_utf8(text).ok());
    let path =
        paths.find(|path| path.starts_with('/') && path.ends_with(&format!("/{LIBRARY}")))?;
    Some(PathBuf::from(path.trim_start_matches('/')))
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
    vec![
        new(LIBRARY, gpus.library.as_ref().map(|path| format!("/{}", path.display()))),
        new("NVIDIA devices", listed(&gpus.nvidia, "/dev")),
        new("AMD kfd", gpus.has_kfd.then(|| "/sys/class/kfd/kfd".to_owned())),
        new("render nodes", listed(&gpus.render, "/dev/dri")),
    ]
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
        let checks = checks(&look(&Host::fixture(folder.path())));
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
}
