//! What the crates may be that we use (deny.toml): licences, bans, versions, sources and, where their database can be had, advisories.
//! `cargo deny` says it; that each of its own rules bites is tried as well.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy knows the tests, not their helpers; a skip is said aloud"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// What needs nothing but the crates themselves.
const CHECKS: [&str; 3] = ["licenses", "bans", "sources"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `cargo deny` about a manifest, or why there is none.
fn deny(manifest: &Path, rules: &Path, words: &[&str]) -> Option<Output> {
    let build = Path::new(env!("CARGO_BIN_EXE_portreeve")).ancestors().nth(2).unwrap();
    let tool = build.join("tools/bin/cargo-deny");
    if !tool.exists() {
        println!("skipped: '{}' is not there: tests/tools builds it", tool.display());
        return None;
    }
    // A network that swallows packets would hold it up for minutes.
    let mut command = Command::new("timeout");
    command.arg("60").arg(tool).args(["--color", "never", "--locked", "--manifest-path"]);
    command.arg(manifest).arg("--config").arg(rules).arg("check").args(words);
    Some(command.stdin(Stdio::null()).output().unwrap())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn every_crate_has_a_licence_a_version_and_a_source_that_are_allowed() {
    let (manifest, rules) = (repository().join("Cargo.toml"), repository().join("deny.toml"));
    // A rule that nothing needs any more is an error, too.
    let words = [&["-D", "warnings"][..], &CHECKS].concat();
    let Some(output) = deny(&manifest, &rules, &words) else { return };
    assert!(output.status.success(), "{}", said(&output));
}

/// Where the fuzzers are: a crate of its own, by the same rules, with exceptions in a `deny.exceptions.toml` beside it.
#[test]
fn the_same_holds_for_the_fuzzers() {
    let manifest = repository().join("fuzz/Cargo.toml");
    if !manifest.exists() {
        return println!("skipped: there is no fuzz/Cargo.toml");
    }
    let Some(output) = deny(&manifest, &repository().join("deny.toml"), &CHECKS) else { return };
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn each_rule_bites() {
    let rules = fs::read_to_string(repository().join("deny.toml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (rule, instead, complaint) in [
        (r#"allow = ["Apache-2.0", "MIT"]"#, r#"allow = ["Apache-2.0"]"#, "error[rejected]"),
        (r#"{ crate = "foldhash", allow = ["Zlib"] },"#, "", "error[rejected]"),
        (r#"crate = "serde_yaml""#, r#"crate = "hyper""#, "error[banned]"),
        (r#"crate = "thiserror@1""#, r#"crate = "thiserror@0""#, "error[duplicate]"),
        (
            r#"allow-registry = ["https://github.com/rust-lang/crates.io-index"]"#,
            "allow-registry = []",
            "error[source-not-allowed]",
        ),
    ] {
        assert!(rules.contains(rule), "deny.toml has no '{rule}'");
        let changed: PathBuf = folder.path().join("deny.toml");
        fs::write(&changed, rules.replace(rule, instead)).unwrap();
        let manifest = repository().join("Cargo.toml");
        let Some(output) = deny(&manifest, &changed, &CHECKS) else { return };
        let said = said(&output);
        assert!(!output.status.success() && said.contains(complaint), "{instead}: {said}");
    }
}

#[test]
fn no_crate_has_a_hole_that_is_known() {
    let (manifest, rules) = (repository().join("Cargo.toml"), repository().join("deny.toml"));
    let Some(output) = deny(&manifest, &rules, &["advisories"]) else { return };
    let said = said(&output);
    // 124: timeout(1) ended it.
    if said.contains("failed to fetch advisory database") || output.status.code() == Some(124) {
        return println!("skipped: the database of advisories cannot be had from here");
    }
    assert!(output.status.success(), "{said}");
}
