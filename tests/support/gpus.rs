//! A stand-in for NVIDIA's library, built here from `nvml_stub.c`, and for `nvidia-smi`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// The variable by which the stand-in finds its state file.
pub const STATE: &str = "PORTREEVE_NVML_STUB";

/// A `libnvidia-ml.so.1` that says what a state file says; `nvml_stub.c` has its statements.
pub struct Stub {
    folder: tempfile::TempDir,
}

impl Stub {
    /// One that knows no GPU yet.
    pub fn new() -> Self {
        Self::without(&[])
    }

    /// One that lacks functions: `V2`, `MIG`, `LISTS`.
    pub fn without(what: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/nvml_stub.c");
        // rustc links with it, so that it is there wherever the tests were built.
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(folder.path().join("libnvidia-ml.so.1"))
            .arg(source)
            .args(what.iter().map(|what| format!("-DWITHOUT_{what}")))
            .status();
        assert!(status.expect("cc runs").success(), "cc builds tests/support/nvml_stub.c");
        let stub = Self { folder };
        stub.state("");
        stub
    }

    /// What it says from the next look on.
    pub fn state(&self, text: &str) {
        let new = self.folder.path().join("state.new");
        fs::write(&new, text).expect("the state file");
        fs::rename(new, self.state_file()).expect("the state file");
    }

    /// Lets every user load it and read what it says.
    pub fn open_to_all(&self) {
        let all = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.folder.path(), all).expect("ours");
    }

    /// For the configuration: `gpus: { nvml: PATH }`.
    pub fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// For the environment variable [`STATE`] of whatever loads the library.
    pub fn state_file(&self) -> PathBuf {
        self.folder.path().join("state")
    }
}

/// A program that stands in for `nvidia-smi`: a shell script in this folder.
pub fn nvidia_smi(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("nvidia-smi");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}
