//! The shipped tree (`packaging/`), installed into a box.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::TestBox;

/// Where it is in the repository.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// Every file of the shipped tree, as a path from the root.
pub fn shipped() -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![folder().join("usr")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("packaging") {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let path = path.strip_prefix(self::folder()).unwrap().to_str().unwrap();
                files.push(format!("/{path}"));
            }
        }
    }
    files.sort();
    files
}

/// Puts it where a package would, with the settings of `/etc/portreeve`.
pub fn install(test_box: &TestBox, config: &str) {
    for file in shipped() {
        let text = fs::read_to_string(folder().join(&file[1..])).unwrap();
        test_box.write(&file, &text);
    }
    test_box.write("/etc/portreeve/config.yaml", config);
    test_box.sh("ln -s /build/portreeve /usr/bin/portreeve; systemctl daemon-reload");
}
