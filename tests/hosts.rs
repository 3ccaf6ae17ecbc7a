//! Fixture hosts: each folder of `tests/hosts` is a host as `/proc` shows it, with what is planted there in
//! `expected.json` and, where it has one, a `config.yaml` above the default. A scan must say exactly that.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use portreeve::{
    host::Host,
    ident::Pid,
    judge::{Also, port::PortState},
    pipeline::{self, Findings, Receipts, Scope, Subject},
    report::{self, Style, exit},
};
use serde_json::{Map, Value, json};
use support::fixtures::{hosts, settings};

fn scan(folder: &Path, also: Also) -> Findings {
    let settings = settings(folder);
    pipeline::scan(&Host::fixture(folder), &settings, &Scope::default(), also).unwrap()
}

/// What was found, in the form of `expected.json`; a reason is kept down to the part that is expected.
fn found(findings: &Findings, expected: &Value) -> Value {
    let mut processes = Map::new();
    for verdict in &findings.verdicts {
        let pid = verdict.key().pid.to_string();
        let because = expected["processes"][&pid]["because"].as_str().unwrap_or("?");
        let because = if verdict.reason.contains(because) { because } else { &verdict.reason };
        let found = json!({ "row": verdict.row.0, "verdict": verdict.title(), "because": because });
        processes.insert(pid, found);
    }
    // The text of /proc/net shows no bound sockets: what has no socket there has no listener.
    let taken = findings.ports.iter().filter(|port| port.state != PortState::NoListener);
    let ports: Map<String, Value> =
        taken.map(|p| (p.endpoint.to_string(), p.sentence.clone().into())).collect();
    let unknowns: Vec<&str> = findings.unknowns.iter().map(|u| u.fact.as_str()).collect();
    json!({
        "exit_code": exit::of_findings(findings),
        "ports": ports,
        "processes": processes,
        "unknowns": unknowns,
    })
}

#[test]
fn every_fixture_host_is_seen_as_it_was_planted() {
    let mut wrong = Vec::new();
    for folder in hosts() {
        let expected: Value =
            serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let found = found(&scan(&folder, Also::default()), &expected);
        if found != expected {
            wrong.push(format!("{}:\nexpected {expected:#}\nfound {found:#}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn no_flag_ends_anybody_who_is_undecided_protected_or_in_a_container() {
    let all = Also { abandoned: true, session: true, foreign: true, unsupervised: true };
    for folder in hosts() {
        for verdict in scan(&folder, all).verdicts.iter().filter(|v| v.is_convicted) {
            let title = verdict.title();
            let may_be = ["orphan: ", "suspect", "spare: session"];
            assert!(may_be.iter().any(|t| title.starts_with(t)), "{}: {title}", folder.display());
        }
    }
}

/// What `explain` writes for a person on a terminal of so many columns.
fn explained(folder: &Path, pid: u32, width: Option<usize>, is_verbose: bool) -> String {
    let subject = Subject::Process(Pid(pid));
    let explained = pipeline::explain(
        &Host::fixture(folder),
        &settings(folder),
        &subject,
        &Receipts::default(),
    )
    .unwrap();
    let style = Style { width, is_coloured: false, shows_evidence: is_verbose };
    let mut text = Vec::new();
    report::explain::render(&explained, style, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

fn without_systemd() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts/14-no-systemd")
}

#[test]
fn an_explanation_is_written_as_the_golden_files_show() {
    let mut wrong = Vec::new();
    for (name, pid, width, is_verbose) in [
        ("spare", 4243, None, false),
        ("orphan", 4242, Some(80), false),
        ("narrow", 4243, Some(50), false),
        ("verbose", 4243, None, true),
    ] {
        let path = format!("{}/tests/golden/explain-{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let text = explained(&without_systemd(), pid, width, is_verbose);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        if fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{path}: BLESS=1 writes it anew\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_first_lines_of_an_explanation_hold_the_whole_answer() {
    let text = explained(&without_systemd(), 4243, None, false);
    let first: Vec<&str> = text.lines().take(6).collect();
    for (line, parts) in first.iter().zip([
        ["pid 4243", "python3"],
        ["alice (uid 1000)", "old"],
        ["spare: session", "plain 'portreeve reap' leaves it alone (row 10)"],
        ["why", "terminal pts/0"],
        ["next", "'portreeve reap --port 8092 --also session' ends it"],
        ["found by", "it holds 8092/tcp"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
    }
}

#[test]
fn a_containers_user_is_not_called_by_the_hosts_name_for_that_number() {
    let folder = tempfile::tempdir().unwrap();
    let host = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts/05-live-container");
    std::os::unix::fs::symlink(host.join("proc"), folder.path().join("proc")).unwrap();
    fs::create_dir(folder.path().join("etc")).unwrap();
    fs::write(folder.path().join("etc/passwd"), "alice:x:1000:1000::/home/alice:/bin/sh\n")
        .unwrap();
    let text = explained(folder.path(), 4242, None, false);
    assert!(text.contains("  who       uid 1000, parent pid 300 (containerd-shim)"), "{text}");
    assert!(text.contains("'docker stop 0123456789ab' does"), "{text}");
}

#[test]
fn an_explanation_is_broken_between_words_and_no_command_is_broken() {
    let text = explained(&without_systemd(), 4243, Some(50), false);
    for line in text.lines().skip(1) {
        let is_one_piece =
            line.trim_start().starts_with(['\'', '/']) || line.contains(": portreeve");
        assert!(line.chars().count() <= 50 || is_one_piece, "{line}");
    }
    assert!(text.contains("'portreeve reap --port 8092 --also session'"), "{text}");
    let sources = explained(&without_systemd(), 4243, None, true);
    assert!(sources.contains("[/proc/4243/exe]") && !text.contains("[/proc"), "{sources}");
}

#[test]
fn a_row_is_shown_up_to_its_first_no_and_only_where_it_is_asked_for() {
    let short = explained(&without_systemd(), 4243, None, false);
    assert!(!short.contains("portreeve has a receipt with its process id"), "{short}");
    let whole = explained(&without_systemd(), 4243, None, true);
    assert!(whole.contains("  8  no   portreeve has a receipt with its process id\n"), "{whole}");
    let worker = whole.split("it matches a worker's pattern\n").nth(1).unwrap();
    assert!(worker.starts_with("  ▶    10  yes"), "{worker}");
}
