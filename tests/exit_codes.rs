//! The exit code is an interface: 0 clear, 1 not clear, 2 could not tell or could not run. Here of the real command.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    fs::File,
    process::{Command, Output, Stdio},
};

use support::{
    DEADLINE, skip,
    stage::{Planted, Stage},
    wait_until,
};

/// Services by the verdict that their planted holder is to get.
const CONFIG: &str = "
defaults: { min_age: 1ms, grace: 500ms, respawn_watch: 0s }
services:
  empty: { ports: [7100] }
  left: { runs_in: container, ports: [7101], patterns: ['^exit-codes-left '] }
  living: { ports: [7102] }
  guarded: { ports: [7103], patterns: ['^exit-codes-guarded$'] }
protect: [{ exe: '/**/examples/plant' }]
";

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A stage with a config from `CONFIG`; without its `protect:` rule where `protects` is false.
fn stage(protects: bool) -> Option<(Stage, String)> {
    let stage = Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()?;
    let end = CONFIG.find("protect:").unwrap();
    let text = if protects { CONFIG } else { &CONFIG[..end] };
    // The tests beside this one share the machine's processes: each looks for its own alone.
    let own = format!("exit-codes-left {}", stage.path("").display());
    let config = stage.write("config.yaml", &text.replace("exit-codes-left ", &own));
    Some((stage, config))
}

/// Left behind on 7101.
fn left(stage: &Stage) -> Option<Planted> {
    let name = format!("exit-codes-left {}", stage.path("").display());
    stage.orphan(&["--as", &name, "--listen", "7101"])
}

fn scan(stage: &Stage, config: &str, words: &[&str]) -> Output {
    stage.run(&[&["scan", "--config", config], words].concat())
}

#[test]
fn a_free_port_is_clear() {
    let Some((stage, config)) = stage(false) else { return };
    let output = scan(&stage, &config, &["empty"]);
    assert_eq!((code(&output), errors(&output)), (0, String::new()));
    let output = stage.run(&["reap", "--config", &config, "empty"]);
    assert_eq!((code(&output), errors(&output)), (0, String::new()));
}

#[test]
fn a_port_of_a_protected_holder_is_clear() {
    let Some((stage, config)) = stage(true) else { return };
    let holder = stage.plant(&["--listen", "7102"]);
    for verb in ["scan", "reap"] {
        let output = stage.run(&[verb, "--config", &config, "living"]);
        assert_eq!(code(&output), 0, "{output:?}");
    }
    assert!(holder.is_alive());
}

#[test]
fn an_orphan_and_a_foreign_holder_are_not_clear() {
    let Some((stage, config)) = stage(false) else { return };
    let foreign = stage.plant(&["--listen", "7102"]);
    let output = scan(&stage, &config, &["living"]);
    assert_eq!(code(&output), 1, "{output:?}");
    let output = stage.run(&["reap", "--config", &config, "living"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(foreign.is_alive());

    let Some(orphan) = left(&stage) else { return };
    let output = scan(&stage, &config, &["left"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert!(orphan.is_alive());
}

#[test]
fn a_dry_run_ends_nobody_and_says_the_code_of_a_scan() {
    let Some((stage, config)) = stage(false) else { return };
    let Some(orphan) = left(&stage) else { return };
    for (service, expected) in [("left", 1), ("empty", 0)] {
        let output = stage.run(&["reap", "--dry-run", "--config", &config, service]);
        assert_eq!(code(&output), expected, "{output:?}");
        assert_eq!(code(&scan(&stage, &config, &[service])), expected);
    }
    assert!(orphan.is_alive());
}

#[test]
fn a_reap_that_ended_every_orphan_is_clear() {
    let Some((stage, config)) = stage(false) else { return };
    let Some(orphan) = left(&stage) else { return };
    let output = stage.run(&["reap", "--config", &config, "left"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(!orphan.is_alive());
}

#[test]
fn what_is_too_young_to_judge_could_not_be_told() {
    let Some((stage, _)) = stage(false) else { return };
    let end = CONFIG.find("protect:").unwrap();
    let config = stage.write("old.yaml", &CONFIG[..end].replace("min_age: 1ms", "min_age: 1h"));
    let Some(young) = left(&stage) else { return };
    for verb in ["scan", "reap"] {
        let output = stage.run(&[verb, "--config", &config, "left"]);
        assert_eq!(code(&output), 2, "{output:?}");
    }
    assert!(young.is_alive());
}

#[test]
fn of_several_targets_not_clear_outranks_could_not_tell_which_outranks_clear() {
    let Some((stage, _)) = stage(false) else { return };
    let end = CONFIG.find("protect:").unwrap();
    let config = stage.write("old.yaml", &CONFIG[..end].replace("min_age: 1ms", "min_age: 1h"));
    let _foreign = stage.plant(&["--listen", "7102"]);
    let Some(_young) = left(&stage) else { return };
    for (services, expected) in [
        (["left", "empty"], 2),
        (["empty", "left"], 2),
        (["left", "living"], 1),
        (["living", "left"], 1),
        (["living", "empty"], 1),
    ] {
        let output = scan(&stage, &config, &services);
        assert_eq!(code(&output), expected, "{services:?}: {output:?}");
        let output = stage.run(&["reap", "--config", &config, services[0], services[1]]);
        assert_eq!(code(&output), expected, "{services:?}: {output:?}");
    }
}

#[test]
fn a_sound_config_is_0_and_a_bad_one_2_for_every_verb() {
    let Some((stage, config)) = stage(false) else { return };
    let output = stage.run(&["config", "check", "--config", &config]);
    assert_eq!(code(&output), 0, "{output:?}");
    let bad = stage.write("bad.yaml", "services: { x: { prots: [1] } }\n");
    for words in [&["config", "check"][..], &["config", "show"], &["scan"], &["reap"]] {
        let output = stage.run(&[words, &["--config", &bad]].concat());
        assert_eq!(code(&output), 2, "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        assert!(errors(&output).contains("bad.yaml:1:"), "{output:?}");
    }
    let output = stage.run(&["scan", "--config", "/nowhere/at/all.yaml"]);
    assert_eq!(code(&output), 2, "{output:?}");
}

#[test]
fn bad_usage_is_2_says_what_is_wrong_and_reports_nothing() {
    let Some((stage, config)) = stage(false) else { return };
    let witness = stage.plant(&["--listen", "7102"]);
    for (words, says) in [
        (&["sacn"][..], "sacn"),
        (&[], "Usage"),
        (&["scan", "--port", "0"], "1 to 65535"),
        (&["scan", "--port", "65536"], "1 to 65535"),
        (&["scan", "--format", "xml"], "xml"),
        (&["scan", "--dry-run"], "--dry-run"),
        (&["reap", "--grace", "5"], "5"),
        (&["reap", "--also", "everything"], "everything"),
        (&["reap", "--also", "session"], "SERVICE or --port"),
        (&["reap", "--dry-run", "--also", "session"], "SERVICE or --port"),
        (&["reap", "--also", "foreign"], "--port"),
        (&["reap", "living", "--also", "foreign"], "--port"),
        (&["scan", "no-such-service"], "no-such-service"),
        (&["reap", "living", "no-such-service"], "no-such-service"),
    ] {
        let with_config = [words, &["--config", &config]].concat();
        let output = stage.run(if words.len() > 1 { &with_config } else { words });
        assert_eq!(code(&output), 2, "{words:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
        assert!(errors(&output).contains(says), "{words:?}: {output:?}");
    }
    assert!(witness.is_alive());
}

#[test]
fn an_unknown_service_is_answered_with_those_that_there_are() {
    let Some((stage, config)) = stage(false) else { return };
    let output = scan(&stage, &config, &["emty"]);
    let said = errors(&output);
    assert!(said.starts_with("error: no service 'emty'") && said.contains("empty"), "{said}");
}

/// Runs a command with a standard output whose reader is gone.
fn into_closed_pipe(mut command: Command) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn a_closed_pipe_is_no_error() {
    let Some((stage, config)) = stage(false) else { return };
    for words in [
        &["scan", "--config", &config, "empty"][..],
        &["scan", "--config", &config, "empty", "--format", "json"],
        &["reap", "--config", &config, "empty"],
        &["config", "check", "--config", &config],
        &["config", "show"],
        &["config", "schema"],
        &["--help"],
        &["scan", "--help"],
        &["--version"],
    ] {
        let output = into_closed_pipe(stage.portreeve(words));
        assert_eq!((code(&output), errors(&output)), (0, String::new()), "{words:?}");
    }
}

#[test]
fn a_reap_into_a_closed_pipe_still_ends_the_orphans() {
    let Some((stage, config)) = stage(false) else { return };
    let Some(orphan) = left(&stage) else { return };
    let output = into_closed_pipe(stage.portreeve(&["reap", "--config", &config, "left"]));
    assert_eq!((code(&output), errors(&output)), (0, String::new()));
    assert!(!orphan.is_alive());
}

#[test]
fn a_report_that_finds_no_room_is_an_error_and_never_clear() {
    let Some((stage, config)) = stage(false) else { return };
    for words in [
        &["scan", "--config", &config, "empty"][..],
        &["scan", "--config", &config, "empty", "--format", "json"],
        &["reap", "--config", &config, "empty"],
        &["config", "check", "--config", &config],
        &["config", "schema"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = stage.portreeve(words).stdout(full).output().unwrap();
        assert_eq!(code(&output), 2, "{words:?}: {output:?}");
        let said = errors(&output);
        assert!(said.contains("cannot be written: No space left on device"), "{words:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn without_any_open_descriptor_it_still_answers() {
    let Some((stage, config)) = stage(false) else { return };
    let output = stage
        .portreeve_by("exec 0<&- 1>&- 2>&-; exec", &["scan", "--config", &config, "empty"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
}

#[test]
fn the_code_of_the_document_is_that_of_the_command() {
    let Some((stage, config)) = stage(false) else { return };
    let mut foreign = stage.plant(&["--listen", "7102"]);
    let report = stage.report(&["scan", "--config", &config, "living"]);
    assert_eq!((report.code, &report.json["exit_code"]), (1, &1.into()));
    foreign.end();
    wait_until(DEADLINE, "the port is free", || {
        let report = stage.report(&["scan", "--config", &config, "living"]);
        assert_eq!(report.json["exit_code"], report.code);
        report.code == 0
    });
}
