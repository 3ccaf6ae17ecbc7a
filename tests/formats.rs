//! The report for machines that are no JSON readers, into files and into the journal: each with the real command.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Output, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;
use support::{
    Terminal, TestBox, skip,
    stage::{Planted, Stage},
};

/// Services by the verdict that their planted holder is to get.
const CONFIG: &str = r"
defaults: { min_age: 1ms, grace: 500ms, respawn_watch: 0s }
services:
  empty: { ports: ['127.0.0.1:7200'] }
  left: { runs_in: container, ports: [7201, 7202], patterns: ['^formats-left '] }
  living: { ports: [7203] }
";

fn stage() -> Option<(Stage, String)> {
    let stage = Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()?;
    // The tests beside this one share the machine's processes: each looks for its own alone.
    let own = format!("formats-left {}", stage.path("").display());
    let config = stage.write("config.yaml", &CONFIG.replace("formats-left ", &own));
    Some((stage, config))
}

/// Left behind on 7201 and 7202.
fn left(stage: &Stage) -> Option<Planted> {
    let name = format!("formats-left {}", stage.path("").display());
    stage.orphan(&["--as", &name, "--listen", "7201", "--listen", "7202"])
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

// ---- Prometheus

/// Name and labels of each sample with its value; panics where a line is none and no comment, a family is told twice or without
/// its type, or a series stands twice (exposition format 0.0.4).
fn metrics(text: &str) -> Vec<(String, f64)> {
    assert!(text.ends_with('\n'));
    let sample = regex::bytes::Regex::new(
        r#"(?-u)^([a-z_]+)(\{([a-z]+="([^"\\\n]|\\["\\n])*",?)+\})? [0-9]+$"#,
    )
    .unwrap();
    let (mut samples, mut families) = (Vec::new(), Vec::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let name = help.split(' ').next().unwrap();
            let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
            assert_eq!(lines.next(), Some(format!("# TYPE {name} {kind}").as_str()));
            assert!(!families.contains(&name.to_owned()), "{name} stands twice");
            families.push(name.to_owned());
            continue;
        }
        let found = sample.captures(line.as_bytes()).unwrap_or_else(|| panic!("no sample: {line}"));
        let name = std::str::from_utf8(&found[1]).unwrap();
        assert_eq!(families.last().map(String::as_str), Some(name), "{line} is among its family");
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.iter().all(|(known, _)| known != series), "{series} stands twice");
        samples.push((series.to_owned(), value.parse().unwrap()));
    }
    samples
}

fn value(samples: &[(String, f64)], series: &str) -> Option<f64> {
    samples.iter().find(|(name, _)| name == series).map(|(_, value)| *value)
}

#[test]
fn the_metrics_of_a_scan_and_of_a_reap_say_what_the_exit_code_says() {
    let Some((stage, config)) = stage() else { return };
    let Some(_orphan) = left(&stage) else { return };
    let words = ["--config", &config, "--format", "prometheus"];
    let output = stage.run(&[&["scan"], &words[..]].concat());
    assert_eq!((code(&output), errors(&output)), (1, String::new()));
    let samples = metrics(&said(&output));
    for (series, expected) in [
        (
            r#"portreeve_port_state{port="7200",proto="tcp",address="127.0.0.1",service="empty",state="free"}"#,
            1.0,
        ),
        (
            r#"portreeve_port_state{port="7201",proto="tcp",address="",service="left",state="held"}"#,
            1.0,
        ),
        (r#"portreeve_processes{verdict="orphan"}"#, 1.0),
        (r#"portreeve_processes{verdict="foreign"}"#, 0.0),
        ("portreeve_exit_code", 1.0),
    ] {
        assert_eq!(value(&samples, series), Some(expected), "{series}: {samples:?}");
    }
    let output = stage.run(&[&["reap"], &words[..]].concat());
    assert_eq!(code(&output), 0, "{output:?}");
    let samples = metrics(&said(&output));
    let ended = value(&samples, r#"portreeve_reap_processes{outcome="terminated"}"#);
    assert_eq!((ended, value(&samples, "portreeve_exit_code")), (Some(1.0), Some(0.0)));
}

#[test]
fn doctor_has_metrics_and_annotations_too() {
    let Some((stage, config)) = stage() else { return };
    let run = |format| stage.run(&["doctor", "--config", &config, "--format", format]);
    let output = run("prometheus");
    let samples = metrics(&said(&output));
    assert_eq!(value(&samples, "portreeve_doctor_exit_code"), Some(code(&output).into()));
    let output = run("github");
    assert!(said(&output).lines().all(|line| line.starts_with("::")), "{output:?}");
}

// ---- GitHub

fn github(stage: &Stage, words: &[&str], summary: &Path) -> Output {
    let words = [words, &["--format", "github"]].concat();
    stage.portreeve(&words).env("GITHUB_STEP_SUMMARY", summary).output().unwrap()
}

#[test]
fn an_orphan_is_an_error_annotation_and_a_row_of_the_summary_that_was_begun_by_others() {
    let Some((stage, config)) = stage() else { return };
    let Some(orphan) = left(&stage) else { return };
    let summary = stage.path("summary.md");
    fs::write(&summary, "# theirs\n").unwrap();
    let output = github(&stage, &["scan", "--config", &config], &summary);
    assert_eq!((code(&output), errors(&output)), (1, String::new()));
    let said = said(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.starts_with(
            "::error title=portreeve%3A orphan%3A not where left runs on 7201%2C 7202::pid "
        ),
        "{said}"
    );
    let text = fs::read_to_string(&summary).unwrap();
    assert!(text.starts_with("# theirs\n### portreeve: not clear\n"), "{text}");
    assert!(text.contains(&format!("| {} |", orphan.pid())), "{text}");
}

#[test]
fn a_summary_never_makes_the_steps_longer_than_the_platform_takes() {
    let Some((stage, config)) = stage() else { return };
    let summary = stage.path("summary.md");
    for (taken, grows) in [((1 << 20) - 300, true), (1 << 20, false), (2 << 20, false)] {
        fs::write(&summary, vec![b'x'; taken]).unwrap();
        let output = github(&stage, &["scan", "--config", &config], &summary);
        assert_eq!(code(&output), 0, "{output:?}");
        let length = usize::try_from(fs::metadata(&summary).unwrap().len()).unwrap();
        assert_eq!((length > taken, length <= taken.max(1 << 20)), (grows, true), "{length}");
        assert_eq!(errors(&output).contains("warning: the job summary"), !grows, "{output:?}");
    }
}

#[test]
fn a_summary_that_cannot_be_written_is_a_warning_and_changes_no_code() {
    let Some((stage, config)) = stage() else { return };
    let target = stage.path("target");
    fs::write(&target, "").unwrap();
    let link = stage.path("link");
    symlink(&target, &link).unwrap();
    stage.sh(&format!("mkfifo {}", stage.path("fifo").display()));
    for file in
        [stage.path("no/such/folder"), link, stage.path(""), stage.path("fifo"), "/dev/full".into()]
    {
        let output = github(&stage, &["scan", "--config", &config], &file);
        assert_eq!(code(&output), 0, "{output:?}");
        assert_eq!(errors(&output).lines().count(), 1, "{output:?}");
        assert!(errors(&output).starts_with("warning: the job summary '"), "{output:?}");
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "");
}

// ---- --output

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_format_goes_to_the_file_whole_and_readable_to_others() {
    let Some((stage, config)) = stage() else { return };
    let folder = stage.path("reports");
    fs::create_dir(&folder).unwrap();
    for verb in ["scan", "reap", "doctor"] {
        for format in ["table", "json", "github", "line", "prometheus"] {
            let file = folder.join("report");
            let path = file.to_str().unwrap();
            let script = "umask 077; exec";
            let words = [verb, "--config", &config, "--format", format, "--output", path];
            let output = stage.portreeve_by(script, &words).output().unwrap();
            assert_eq!(
                (said(&output), errors(&output)),
                (String::new(), String::new()),
                "{words:?}"
            );
            let text = fs::read_to_string(&file).unwrap();
            match format {
                "json" => assert_eq!(
                    serde_json::from_str::<Value>(&text).unwrap()["exit_code"],
                    code(&output)
                ),
                "prometheus" => assert!(!metrics(&text).is_empty()),
                "github" => assert!(text.lines().all(|line| line.starts_with("::"))),
                "line" => assert!(text.lines().count() == 1 && text.len() <= 81, "{text}"),
                _ => assert!(!text.is_empty() && !text.contains('\u{1b}'), "{text}"),
            }
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o644);
            assert_eq!(names(&folder), ["report"]);
        }
    }
}

#[test]
fn the_document_goes_beside_any_report_that_of_a_quiet_run_included() {
    let Some((stage, config)) = stage() else { return };
    let Some(_orphan) = left(&stage) else { return };
    let file = stage.path("document");
    let path = file.to_str().unwrap();
    for (verb, more, key) in [
        ("scan", &["left", "--format", "line"][..], "summary"),
        ("gate", &["empty", "--timeout", "0s", "--quiet"], "ports"),
        ("gate", &["left", "--timeout", "0s", "--format", "github"], "ports"),
        ("doctor", &["--format", "prometheus"], "checks"),
        ("explain", &["7201"], "processes"),
        ("reap", &["left", "--quiet"], "summary"),
    ] {
        let words = [&[verb, "--config", &config, "--json-file", path], more].concat();
        let output = stage.run(&words);
        assert_eq!(said(&output).is_empty(), more.contains(&"--quiet"), "{output:?}");
        let document: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(document["exit_code"], code(&output), "{words:?}");
        assert!(!document[key].is_null(), "{words:?}: {document}");
        fs::remove_file(&file).unwrap();
    }
    // Known before anything is ended.
    let Some(orphan) = left(&stage) else { return };
    symlink(stage.path("target"), &file).unwrap();
    let output = stage.run(&["reap", "--config", &config, "--json-file", path]);
    assert_eq!((code(&output), orphan.is_alive()), (2, true), "{output:?}");
    assert!(errors(&output).contains("is a symbolic link"), "{output:?}");
}

#[test]
fn a_file_of_no_folder_is_one_of_the_working_directory() {
    let Some((stage, config)) = stage() else { return };
    let script = format!("cd {}; exec", stage.path("planted").display());
    let words = ["scan", "--config", &config, "--output", "here"];
    let output = stage.portreeve_by(&script, &words).output().unwrap();
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(stage.path("planted/here").exists());
}

#[test]
fn links_and_what_is_no_regular_file_are_refused_before_anything_is_ended() {
    let Some((stage, config)) = stage() else { return };
    let Some(orphan) = left(&stage) else { return };
    let path = |name: &str| stage.path(name).to_str().unwrap().to_owned();
    fs::create_dir(stage.path("folder")).unwrap();
    fs::write(stage.path("target"), "old").unwrap();
    symlink(stage.path("target"), stage.path("link")).unwrap();
    symlink(stage.path("absent"), stage.path("dangling")).unwrap();
    symlink(stage.path("folder"), stage.path("linked")).unwrap();
    for (file, says) in [
        (path("link"), "is a symbolic link"),
        (path("dangling"), "is a symbolic link"),
        (path("linked/file"), "is a symbolic link"),
        (path("folder"), "is no regular file"),
        (path("leash"), "is no regular file"),
        ("/dev/null".to_owned(), "is no regular file"),
        (path("target/file"), "cannot be written to: Not a directory"),
        (path("none/file"), "cannot be written to: No such file"),
        ("..".to_owned(), "names no file"),
    ] {
        let output = stage.run(&["reap", "--config", &config, "--output", &file]);
        assert_eq!(code(&output), 2, "{file}: {output:?}");
        assert!(said(&output).is_empty() && errors(&output).contains(says), "{file}: {output:?}");
    }
    assert!(orphan.is_alive());
    assert_eq!(fs::read_to_string(stage.path("target")).unwrap(), "old");
    assert!(!stage.path("absent").exists() && names(&stage.path("folder")).is_empty());
}

#[test]
fn a_full_disk_leaves_the_old_file_and_nothing_else_and_is_never_clear() {
    let Some((stage, config)) = stage() else { return };
    let (small, after) = (stage.path("small"), stage.path("after"));
    fs::create_dir(&small).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=256k none {0}; echo old >{0}/report; ! cat /dev/zero >{0}/filler; \
         code=0; \"$@\" || code=$?; cat {0}/report >{1}; ls -A {0} >>{1}; exit $code; :",
        small.display(),
        after.display()
    );
    let file = small.join("report");
    let words = ["scan", "--config", &config, "--output", file.to_str().unwrap()];
    let output = stage.portreeve_by(&script, &words).output().unwrap();
    assert_eq!(code(&output), 2, "{output:?}");
    assert!(errors(&output).contains("cannot be written to '"), "{output:?}");
    assert!(errors(&output).contains("No space left on device"), "{output:?}");
    assert_eq!(fs::read_to_string(&after).unwrap(), "old\nfiller\nreport\n");
}

#[test]
fn a_reader_never_sees_half_a_file() {
    let Some((stage, config)) = stage() else { return };
    let file = stage.path("planted/metrics.prom");
    let words =
        ["scan", "--config", &config, "--format", "prometheus", "--output", file.to_str().unwrap()];
    assert_eq!(code(&stage.run(&words)), 0);
    let is_over = AtomicBool::new(false);
    let inodes = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut inodes = std::collections::BTreeSet::new();
            while !is_over.load(Ordering::Relaxed) {
                let opened = fs::File::open(&file).expect("there is always one");
                inodes.insert(opened.metadata().unwrap().ino());
                let text = std::io::read_to_string(opened).unwrap();
                assert!(text.contains("portreeve_last_run_timestamp_seconds "), "{text}");
                metrics(&text);
            }
            inodes
        });
        for _ in 0..20 {
            assert_eq!(code(&stage.run(&words)), 0);
        }
        is_over.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    assert!(inodes.len() > 1, "the file was replaced while it was read");
}

// ---- --quiet, --verbose, --no-color

#[test]
fn quiet_says_nothing_when_all_is_clear_and_all_when_not() {
    let Some((stage, config)) = stage() else { return };
    let run = |words: &[&str]| stage.run(&[words, &["--config", &config, "--quiet"]].concat());
    for verb in ["scan", "reap"] {
        let output = run(&[verb, "empty"]);
        assert_eq!(
            (code(&output), said(&output), errors(&output)),
            (0, String::new(), String::new())
        );
    }
    let _foreign = stage.plant(&["--listen", "7203"]);
    let output = run(&["scan", "living"]);
    assert_eq!(code(&output), 1, "{output:?}");
    assert_eq!(said(&output), said(&stage.run(&["scan", "living", "--config", &config])));
    let output = run(&["scan", "no-such-service"]);
    assert!(code(&output) == 2 && errors(&output).starts_with("error: no service"), "{output:?}");
}

#[test]
fn verbose_tells_the_conviction_before_the_end_and_the_table_has_the_evidence() {
    let Some((stage, config)) = stage() else { return };
    let Some(orphan) = left(&stage) else { return };
    let plain = stage.run(&["scan", "--config", &config]);
    assert_eq!(errors(&plain), "");
    assert!(!said(&plain).contains("evidence: "), "{plain:?}");
    let report = stage.report(&["scan", "--config", &config]);
    let evidence = report.process(orphan.pid())["evidence"].as_array().unwrap();
    let evidence: Vec<&str> = evidence.iter().map(|text| text.as_str().unwrap()).collect();
    // Its age is another a moment later.
    let evidence: Vec<&&str> = evidence.iter().filter(|text| !text.ends_with(" old")).collect();
    assert!(!evidence.is_empty());
    let output = stage.run(&["reap", "--config", &config, "--verbose"]);
    assert_eq!(code(&output), 0, "{output:?}");
    for text in evidence {
        assert!(said(&output).contains(&format!("      evidence: {text}\n")), "{text}: {output:?}");
        assert!(errors(&output).contains(&format!("; {text}")), "{text}: {output:?}");
    }
    let errors = errors(&output);
    let lines: Vec<&str> = errors.lines().collect();
    let pid = orphan.pid();
    assert_eq!(lines.len(), 3, "{errors}");
    assert!(lines[0].starts_with(&format!("convicted: pid {pid} (formats-left ")), "{errors}");
    assert!(lines[0].contains("orphan: not where left runs"), "{errors}");
    assert!(lines[1].starts_with(&format!("ended: pid {pid} (")), "{errors}");
    assert!(lines[2].starts_with("summary: clear"), "{errors}");
}

#[test]
fn a_conviction_is_on_record_while_the_convicted_still_lives() {
    let Some((stage, config)) = stage() else { return };
    let name = format!("formats-left {}", stage.path("").display());
    let Some(mut orphan) = stage.orphan(&["--as", &name, "--listen", "7201", "--ignore-term"])
    else {
        return;
    };
    let words = ["reap", "--config", &config, "--verbose", "--grace", "10s"];
    let mut command = stage.portreeve(&words);
    let mut reap = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(reap.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with(&format!("convicted: pid {} ", orphan.pid())), "{first}");
    assert!(orphan.is_alive());
    orphan.end();
    let second = lines.next().unwrap().unwrap();
    assert!(second.starts_with(&format!("ended: pid {} ", orphan.pid())), "{second}");
    lines.for_each(drop);
    assert_eq!(reap.wait().unwrap().code(), Some(0));
}

/// What the command writes to a terminal, by script(1).
fn on_a_terminal(stage: &Stage, config: &str, before: &str, more: &str) -> String {
    let program = stage.program("portreeve");
    let line = format!("{before} {} scan --config {config} {more}", program.display());
    let output = stage.command(&["script", "--quiet", "--command", &line, "/dev/null"]);
    let mut output = output;
    // CI is taken for a terminal with colours, whatever TERM says.
    let output = output.env("TERM", "xterm").env_remove("NO_COLOR").env_remove("CI");
    said(&output.output().unwrap())
}

#[test]
fn a_terminal_gets_colour_unless_the_flag_or_the_environment_says_no() {
    let Some((stage, config)) = stage() else { return };
    let coloured = on_a_terminal(&stage, &config, "", "");
    assert!(coloured.contains("\u{1b}["), "{coloured}");
    for (before, more) in [("", "--no-color"), ("env NO_COLOR=1", ""), ("env TERM=dumb", "")] {
        let plain = on_a_terminal(&stage, &config, before, more);
        assert!(plain.contains("clear: ") && !plain.contains('\u{1b}'), "{before}{more}: {plain}");
    }
}

// ---- the journal

/// A field of an entry, its values in order: `journalctl -o json` has a list where there are several.
fn field(entry: &Value, name: &str) -> Vec<String> {
    let values = entry[name].as_array().map_or(std::slice::from_ref(&entry[name]), Vec::as_slice);
    values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

#[test]
fn under_systemd_the_journal_has_the_conviction_before_the_end_each_with_its_id_and_fields() {
    let test_box = match TestBox::boot("formats") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    let config = CONFIG.replace("min_age: 1ms", "min_age: 1s");
    test_box.write("/etc/formats.yaml", &config);
    let mut login = test_box.login("alice", Terminal::No);
    let plant = "/build/examples/plant --as 'formats-left x' --listen 7201 --listen 7202";
    login.types(&format!("nohup {plant} --ready /run/planted/left >/dev/null 2>&1 </dev/null &"));
    let pid = test_box.planted("left");
    login.leaves();
    test_box.wait_for_logout(pid);
    test_box.wait_for_age(pid, std::time::Duration::from_millis(1100));
    // Not clear, so the unit fails; a reap after it is clear.
    let unit = "systemd-run --quiet --wait --unit";
    let verb = |verb| format!("/build/portreeve {verb} --config /etc/formats.yaml --quiet");
    test_box.sh(&format!("! {unit} formats-scan -- {}", verb("scan")));
    test_box.sh(&format!("{unit} formats-reap -- {}", verb("reap")));
    test_box.sh("journalctl --sync");
    let entries = |unit: &str| -> Vec<Value> {
        let query = format!("journalctl --output=json --all _SYSTEMD_UNIT={unit}.service");
        let text = test_box.sh(&query);
        let entries = text.lines().map(|line| serde_json::from_str(line).unwrap());
        entries.filter(|entry: &Value| !entry["PORTREEVE_EVENT"].is_null()).collect()
    };
    let told = |entries: &[Value]| -> Vec<[String; 4]> {
        let names = ["PORTREEVE_EVENT", "MESSAGE_ID", "PRIORITY", "_TRANSPORT"];
        entries.iter().map(|entry| names.map(|name| field(entry, name).concat())).collect()
    };
    assert_eq!(
        told(&entries("formats-scan")),
        [
            ["found", "062965c544a44884a5623cfffb852c9a", "4", "journal"],
            ["summary", "7bb444ec49ee4b59ae3622a9ea9923c3", "4", "journal"],
        ]
    );
    let ours = entries("formats-reap");
    assert_eq!(
        told(&ours),
        [
            ["convicted", "fc8a1ddc28ed40399e8b139a4925e45a", "5", "journal"],
            ["ended", "70501eff78bb43e0bc8f6308eb2ae6b4", "5", "journal"],
            ["summary", "7bb444ec49ee4b59ae3622a9ea9923c3", "6", "journal"],
        ]
    );
    let [convicted, ended, summary] = &ours[..] else { unreachable!() };
    for entry in [convicted, ended] {
        assert_eq!(field(entry, "PORTREEVE_PID"), [pid.to_string()]);
        assert_eq!(field(entry, "PORTREEVE_PORT"), ["7201/tcp", "7202/tcp"]);
        assert_eq!(field(entry, "PORTREEVE_SERVICE"), ["left"]);
        assert_eq!(field(entry, "PORTREEVE_VERDICT"), ["orphan"]);
        assert_eq!(field(entry, "PORTREEVE_COMMAND_LINE"), ["formats-left x"]);
        assert_eq!(field(entry, "SYSLOG_IDENTIFIER"), ["portreeve"]);
        assert!(!field(entry, "PORTREEVE_REASON").is_empty());
        assert!(!field(entry, "PORTREEVE_EVIDENCE").is_empty());
    }
    assert_eq!(field(ended, "PORTREEVE_OUTCOME"), ["terminated"]);
    assert_eq!(field(summary, "PORTREEVE_EXIT_CODE"), ["0"]);
    // By either port: each is a value of its own.
    for port in ["7201/tcp", "7202/tcp"] {
        let found = test_box.sh(&format!("journalctl --output=cat PORTREEVE_PORT={port}"));
        assert_eq!(found.lines().count(), 3, "{found}");
    }
    // A variable that was inherited by a process with another standard error says nothing.
    let output = test_box.run(&[
        "systemd-run",
        "--quiet",
        "--wait",
        "--pipe",
        "--setenv=JOURNAL_STREAM=1:2",
        "--unit=formats-pipe",
        "/build/portreeve",
        "scan",
        "--config",
        "/etc/formats.yaml",
        "--quiet",
        "--verbose",
    ]);
    assert!(errors(&output).starts_with("summary: clear"), "{output:?}");
}
