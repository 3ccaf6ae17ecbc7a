//! Models that are declared or registered, as the verbs guard them: their ports under their names, and what happens where the
//! registry cannot be read.

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
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    process::Output,
};

use serde_json::Value;
use support::{Report, skip, stage::Stage};

const CONFIG: &str = "
defaults: { min_age: 1ms, grace: 500ms, respawn_watch: 0s }
gate: { timeout: 0s, settle: 50ms }
services:
  left: { runs_in: container, ports: [7301, 7302], patterns: ['^guarded-left '] }
models:
  declared: { backend: vllm, model: m, port: 7303 }
";

/// What the report says that it does not know.
const MODELS: &str = "which models are registered";

/// A stage whose `/var/lib` is a folder of its own.
struct Place {
    stage: Stage,
    config: String,
}

impl Place {
    fn set() -> Option<Self> {
        let stage = Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()?;
        fs::create_dir(stage.path("lib")).unwrap();
        // The tests beside this one share the machine's processes.
        let config = CONFIG.replace("guarded-left ", &left_name(&stage));
        let config = stage.write("config.yaml", &config);
        Some(Self { stage, config })
    }

    fn by(&self, exec: &str, words: &[&str]) -> Output {
        let lib = self.stage.path("lib");
        let script = format!("mount --bind {} /var/lib; {exec}", lib.display());
        self.stage.portreeve_by(&script, words).output().unwrap()
    }

    /// The verb, with the config.
    fn run(&self, verb: &str, words: &[&str]) -> Output {
        self.by("exec", &[&[verb, "--config", &self.config], words].concat())
    }

    fn report(&self, verb: &str, words: &[&str]) -> Report {
        Report::read(&self.run(verb, &[words, &["--format", "json"]].concat()))
    }

    fn register(&self, name: &str, port: &str) {
        let words = ["model", "register", name, "--backend", "vllm", "--path", "m", "--port", port];
        let output = self.by("exec", &words);
        assert!(output.status.success(), "{}", errors(&output));
    }

    fn registry(&self) -> PathBuf {
        self.stage.path("lib/portreeve/models.db")
    }

    /// As a newer portreeve would leave it.
    fn make_newer(&self) {
        let newer = rusqlite::Connection::open(self.registry()).unwrap();
        newer.pragma_update(None, "user_version", 99).unwrap();
    }

    /// The doctor's word on the registry.
    fn doctor(&self) -> Value {
        let report = self.report("doctor", &[]);
        let all = report.json["checks"].as_array().unwrap().clone();
        all.into_iter().find(|check| check["area"] == "models").expect("a check of the registry")
    }
}

fn left_name(stage: &Stage) -> String {
    format!("guarded-left {}", stage.path("").display())
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// The ports of a report with their services.
fn ports(report: &Report) -> Vec<String> {
    let all = report.json["ports"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.map(|port| format!("{} {}", text(&port["service"]), text(&port["port"]))).collect()
}

fn unknowns(report: &Report) -> Vec<&str> {
    let all = report.json["unknowns"].as_array().unwrap().iter();
    all.map(|unknown| unknown["fact"].as_str().unwrap()).collect()
}

#[test]
fn every_verb_guards_the_ports_of_declared_and_registered_models_once_and_under_their_names() {
    let Some(place) = Place::set() else { return };
    place.register("registered", "7301");
    place.register("declared", "9");
    let models = ["declared 7303/tcp", "registered 7301/tcp"];
    assert_eq!(ports(&place.report("scan", &["registered", "declared"])), models);
    let all = ports(&place.report("scan", &[]));
    for port in ["registered 7301/tcp", "left 7302/tcp", "declared 7303/tcp"] {
        let number = port.split_once(' ').unwrap().1;
        let of_port: Vec<_> = all.iter().filter(|port| port.ends_with(number)).collect();
        assert_eq!(of_port, [port], "{all:?}");
    }

    let holder = place.stage.plant(&["--listen", "7301"]);
    let output = place.run("gate", &["registered"]);
    assert_eq!(code(&output), 1, "{output:?}");
    let report = place.report("reap", &["registered"]);
    assert_eq!(report.process(holder.pid())["verdict"], "foreign", "{report:?}");
    assert!(holder.is_alive());
    let explained = place.run("explain", &["7301"]);
    let said = String::from_utf8(explained.stdout).unwrap();
    assert!(said.contains("registered"), "{said}");
}

#[test]
fn a_process_that_has_a_models_port_is_no_orphan_of_the_service_that_had_it() {
    let Some(place) = Place::set() else { return };
    place.register("registered", "7301");
    let name = left_name(&place.stage);
    let Some(left) = place.stage.orphan(&["--as", &name, "--listen", "7301"]) else { return };
    let report = place.report("reap", &[]);
    assert_eq!(report.process(left.pid())["verdict"], "suspect", "{report:?}");
    assert!(left.is_alive());
    let output = place.by("exec", &["model", "unregister", "registered"]);
    assert!(output.status.success(), "{}", errors(&output));
    place.report("reap", &[]);
    assert!(!left.is_alive(), "it is the service's again");
}

#[test]
fn a_registry_that_cannot_be_read_is_unknown_and_ends_nobody_by_a_port_that_may_be_a_models() {
    let Some(place) = Place::set() else { return };
    place.register("registered", "7309");
    place.make_newer();
    let report = place.report("scan", &["left"]);
    assert_eq!((report.code, unknowns(&report)), (2, vec![MODELS]));
    let unknown = &report.json["unknowns"][0];
    assert!(unknown["why"].as_str().unwrap().contains("version 99"), "{unknown}");
    assert!(unknown["remedy"].as_str().unwrap().contains("a newer portreeve"), "{unknown}");
    // What is declared is guarded all the same.
    assert_eq!(ports(&place.report("scan", &["declared"])), ["declared 7303/tcp"]);
    let explained = place.report("explain", &["7302"]);
    let not_seen = explained.json["not_seen"][0].as_str().unwrap();
    assert!(not_seen.starts_with(MODELS), "{explained:?}");
    assert_eq!(explained.code, 2);

    let name = left_name(&place.stage);
    let Some(left) = place.stage.orphan(&["--as", &name, "--listen", "7301"]) else { return };
    for words in [&[][..], &["left"], &["--port", "7301"]] {
        let report = place.report("reap", words);
        assert_eq!(report.process(left.pid())["verdict"], "undecided", "{words:?}: {report:?}");
        assert!(left.is_alive());
    }
    fs::remove_file(place.registry()).unwrap();
    place.report("reap", &["left"]);
    assert!(!left.is_alive());
}

#[test]
fn a_gate_for_everything_wants_to_know_every_model_and_one_for_what_is_named_goes_on() {
    let Some(place) = Place::set() else { return };
    place.register("registered", "7301");
    place.make_newer();
    let output = place.run("gate", &[]);
    assert_eq!(code(&output), 2, "{output:?}");
    assert!(errors(&output).contains(MODELS), "{}", errors(&output));
    let output = place.run("gate", &["--", "true"]);
    assert_eq!(code(&output), 69, "{output:?}");
    for words in [&["left"][..], &["--port", "7301"], &["left", "--", "true"]] {
        let output = place.run("gate", words);
        assert_eq!(code(&output), 0, "{words:?}: {output:?}");
        let warning = format!("warning: {MODELS} is not known");
        assert!(errors(&output).contains(&warning), "{words:?}: {}", errors(&output));
    }
    for verb in ["scan", "reap", "gate"] {
        let output = place.run(verb, &["registered"]);
        assert_eq!(code(&output), 2, "{output:?}");
        let said = errors(&output);
        assert!(
            said.contains(MODELS) && said.contains("no service 'registered'"),
            "{verb}: {said}"
        );
    }
}

#[test]
fn another_user_reads_a_registry_of_their_own_and_not_roots() {
    let Some(place) = Place::set() else { return };
    place.register("roots", "7301");
    let home = place.stage.path("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(65534), Some(65534)).unwrap();
    let nobody = format!(
        "exec env -u XDG_STATE_HOME HOME={} setpriv --reuid 65534 --clear-groups",
        home.display()
    );
    let words = ["model", "register", "own", "--backend", "vllm", "--path", "m", "--port", "7302"];
    let output = place.by(&nobody, &words);
    assert!(output.status.success(), "{}", errors(&output));
    let words = ["scan", "--config", &place.config, "--format", "json", "own", "left"];
    let report = Report::read(&place.by(&nobody, &words));
    assert_eq!(ports(&report), ["left 7301/tcp", "own 7302/tcp"]);
    assert!(!unknowns(&report).contains(&MODELS), "{report:?}");
}

// ---- doctor

#[test]
fn doctor_says_where_the_registry_is_and_how_many_models_it_has() {
    let Some(place) = Place::set() else { return };
    let none = place.doctor();
    assert_eq!(none["state"], "absent", "{none}");
    assert!(!place.stage.path("lib/portreeve").exists(), "it makes none");
    place.register("a", "7301");
    place.register("b", "7302");
    let sound = place.doctor();
    assert_eq!(sound["state"], "good", "{sound}");
    let detail = "'/var/lib/portreeve/models.db' is sound and has 2 models";
    assert_eq!(sound["detail"], detail);
}

#[test]
fn doctor_names_what_mends_a_registry_that_is_not_used() {
    let Some(place) = Place::set() else { return };
    place.register("a", "7301");
    place.make_newer();
    let newer = place.doctor();
    assert_eq!((&newer["state"], newer["fix"].is_string()), (&"off".into(), true), "{newer}");
    assert!(newer["detail"].as_str().unwrap().contains("version 99"), "{newer}");

    let others = fs::Permissions::from_mode(0o666);
    fs::set_permissions(place.registry(), others).unwrap();
    let open = place.doctor();
    assert_eq!((&open["state"], open["fix"].is_string()), (&"off".into(), true), "{open}");
    assert!(open["detail"].as_str().unwrap().contains("others may write to it"), "{open}");

    fs::remove_file(place.registry()).unwrap();
    place.register("a", "7301");
    // All but the head, which says what it is.
    let mut bytes = fs::read(place.registry()).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(place.registry(), bytes).unwrap();
    let damaged = place.doctor();
    assert_eq!((&damaged["state"], damaged["fix"].is_string()), (&"off".into(), true), "{damaged}");

    let output = place.by("exec", &["doctor", "--sysctl", "--config", &place.config]);
    assert_eq!((code(&output), output.stdout.len()), (2, 0), "{output:?}");
}
