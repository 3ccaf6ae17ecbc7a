//! The fixture hosts of `tests/hosts`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use portreeve::config::{self, Sources, settings::Settings};

/// Their folders, in the order of their names.
pub fn hosts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts");
    let mut hosts: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    hosts.sort();
    hosts
}

/// What such a folder is judged by: its `config.yaml`, where it has one, above the default.
pub fn settings(folder: &Path) -> Settings {
    let explicit = Some(folder.join("config.yaml")).filter(|file| file.exists());
    let sources = Sources {
        etc: folder.join("etc/portreeve"),
        explicit,
        is_privileged: false,
        ..Sources::default()
    };
    config::load(&sources).unwrap().settings
}
