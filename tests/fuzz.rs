//! Hostile input: every target of `fuzz/` for some seconds, over the inputs that were kept and over new ones. What each holds
//! stands in the `hostile.rs` of its module; the inputs that were kept are also read by a test beside `src/fuzzing.rs`, which
//! needs no fuzzer.

#![allow(clippy::unwrap_used, reason = "clippy knows the tests, not their helpers")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn targets() -> Vec<String> {
    let files = fs::read_dir(root().join("fuzz/fuzz_targets")).unwrap();
    let names = files.map(|file| file.unwrap().path().file_stem().unwrap().to_owned());
    names.map(|name| name.into_string().unwrap()).collect()
}

/// Why there is no fuzzer here: its source is C++, and not part of a build of portreeve.
fn why_not() -> Option<&'static str> {
    let quiet = |command: &mut Command| {
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    if !quiet(Command::new("c++").arg("--version")) {
        return Some("no C++ compiler ('c++'; Debian's package g++)");
    }
    let manifest = root().join("fuzz/Cargo.toml");
    let fetch = ["fetch", "--locked", "--manifest-path"];
    if !quiet(Command::new(env!("CARGO")).args(fetch).arg(manifest)) {
        return Some("the crates of fuzz/Cargo.lock cannot be fetched");
    }
    None
}

#[test]
fn no_target_crashes_hangs_or_takes_more_than_64_mib() {
    if let Some(why) = why_not() {
        println!("skipped: {why}");
        return;
    }
    let seconds = std::env::var("PORTREEVE_FUZZ_SECONDS").unwrap_or_else(|_| "10".to_owned());
    let run = Command::new(root().join("fuzz/run")).arg(&seconds).output().unwrap();
    let (table, errors) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "fuzz/run {seconds}:\n{table}{errors}");
    for target in targets() {
        let row = table.lines().find(|line| line.starts_with(&format!("| {target} |")));
        let runs = row.and_then(|row| row.split('|').nth(2)?.trim().parse::<u64>().ok());
        assert!(runs.is_some_and(|runs| runs > 0), "{target} did not run:\n{table}{errors}");
    }
    println!("{table}");
}

/// Name and version of each package.
fn locked(file: &Path) -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(file).unwrap();
    let packages = text.split("[[package]]").skip(1);
    let value = |package: &str, key: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches([' ', '=']).trim_matches('"').to_owned()
    };
    packages.map(|package| (value(package, "name"), value(package, "version"))).collect()
}

#[test]
fn what_is_fuzzed_is_built_of_the_same_crates_as_what_ships() {
    let (ours, fuzzed) =
        (locked(&root().join("Cargo.lock")), locked(&root().join("fuzz/Cargo.lock")));
    // The fuzzer, what it brings, and itself.
    let own = ["arbitrary", "jobserver", "libfuzzer-sys", "portreeve-fuzz"];
    let others: Vec<_> = fuzzed
        .iter()
        .filter(|package| !ours.contains(package) && !own.contains(&package.0.as_str()))
        .collect();
    assert!(others.is_empty(), "only in fuzz/Cargo.lock: {others:?}");
}
