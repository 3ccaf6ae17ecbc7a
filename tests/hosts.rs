//! Fixture hosts: each folder of `tests/hosts` is a host as `/proc` shows it, with what is planted there in
//! `expected.json` and, where it has one, a `config.yaml` above the default. A scan must say exactly that.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use portreeve::{
    config::{self, Sources},
    host::Host,
    judge::{Also, port::PortState},
    pipeline::{self, Findings, Scope},
    report::exit,
};
use serde_json::{Map, Value, json};

fn hosts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts");
    let mut hosts: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    hosts.sort();
    hosts
}

fn scan(folder: &Path, also: Also) -> Findings {
    let explicit = Some(folder.join("config.yaml")).filter(|file| file.exists());
    let sources = Sources { etc: folder.join("etc"), explicit, is_privileged: false };
    let loaded = config::load(&sources).unwrap();
    pipeline::scan(&Host::fixture(folder), &loaded.settings, &Scope::default(), also).unwrap()
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
