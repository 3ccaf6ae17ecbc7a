//! What is left over of models on real engines: found by `scan`, removed by `model clean`, and what is somebody else's left alone.

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
    io::{Read, Write},
    process::{Child, Command, Stdio},
};

use portreeve::{
    engine::{Phase, at},
    host::Host,
    ident::{ContainerId, EngineKind},
    judge::verdict::Unknown,
    models::{
        State,
        leftovers::{Cleaned, Doubt, Freed, Kind as Of, Leftover, Restarting, Tenancy, Why},
        trouble::Trouble,
    },
    report::leftovers::{Cleaning, Found},
};
use rusqlite::Connection;
use serde_json::{Value, json};
use support::{
    DEADLINE, Report, TestBox,
    engines::{Engine, Kind},
    ran::Ran,
    skip, wait_until,
};

const CONFIG: &str =
    "gate: { timeout: 1s, settle: 100ms }\ndefaults: { min_age: 0s, respawn_watch: 0s }\n";
/// Leaves at SIGTERM, as the first process of a pid namespace otherwise does not.
const POLITE: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"];
const REGISTRY: &str = "/var/lib/portreeve/models.db";
const STOPPED: &str = "UPDATE models SET state = 'stopped' WHERE name = 'stopped';
                       DELETE FROM receipts WHERE model = 'stopped'";
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/models-v1.json");

fn leftover(kind: Of) -> Leftover {
    Leftover {
        engine: at(&Host::live(), EngineKind::Docker, "run/docker.sock"),
        id: ContainerId("ab".repeat(32)),
        name: "vllm-model-llama".to_owned(),
        model: Some("llama".into()),
        backend: None,
        state: Phase::Running,
        kind,
        restart_policy: None,
        networks: Vec::new(),
    }
}

#[test]
fn the_exit_code_says_whether_what_was_to_go_is_gone() {
    let orphan = || leftover(Of::Orphan(Why::RecordedAs(State::Stopped)));
    let lookalike = || leftover(Of::Lookalike(Doubt::Unlabelled));
    let failed = || Err(Trouble::new("it still runs"));
    let unknown = || Err(Trouble::unknown("no answer"));
    let code = |leftover: Leftover, is_wanted, became| {
        let found = vec![Found { leftover, is_wanted, became }];
        Cleaning { found, ..Cleaning::default() }.exit_code()
    };
    assert_eq!(Cleaning::default().exit_code(), 0);
    for (leftover, is_wanted, became, expected) in [
        (orphan(), false, None, 1),
        (orphan(), true, Some(Ok(Cleaned::WasGone)), 0),
        (orphan(), true, Some(failed()), 1),
        (orphan(), true, Some(unknown()), 2),
        // Nobody said that it is to go.
        (lookalike(), false, None, 0),
        (lookalike(), true, None, 1),
        (lookalike(), true, Some(Ok(Cleaned::WasGone)), 0),
    ] {
        assert_eq!(code(leftover, is_wanted, became.clone()), expected, "{is_wanted} {became:?}");
    }
    let unseen = Unknown { fact: "x".to_owned(), why: "y".to_owned(), remedy: None };
    assert_eq!(Cleaning { unseen: vec![unseen], ..Cleaning::default() }.exit_code(), 2);
    let Leftover { engine, id, name, .. } = orphan();
    let policy = Restarting {
        engine: engine.clone(),
        id,
        name: name.clone(),
        model: None,
        policy: "always".to_owned(),
    };
    for (became, expected) in [(None, 0), (Some(Ok(true)), 0), (Some(Err(Trouble::new("no"))), 1)] {
        let restarting = vec![(policy.clone(), became)];
        assert_eq!(Cleaning { restarting, ..Cleaning::default() }.exit_code(), expected);
    }
    let tenancy =
        Tenancy { engine, id: "9".repeat(64), name, left_over: Vec::new(), others: Vec::new() };
    let freed = Freed { troubles: vec![Trouble::unknown("no answer")], ..Freed::default() };
    for (freed, expected) in [(None, 0), (Some(Freed::default()), 0), (Some(freed), 2)] {
        let networks = vec![(tenancy.clone(), freed)];
        assert_eq!(Cleaning { networks, ..Cleaning::default() }.exit_code(), expected);
    }
}

/// A box with one engine that has the images.
struct House<'a> {
    test_box: &'a TestBox,
    engine: Engine<'a>,
    kind: &'static str,
}

impl House<'_> {
    fn command(&self, words: &[&str]) -> Command {
        self.test_box.command(&[&["/build/portreeve"], words].concat())
    }

    fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).stdin(Stdio::null()).output().unwrap())
    }

    /// Cleans without a terminal.
    fn clean(&self, words: &[&str]) -> Ran {
        self.run(&[&["model", "clean"], words].concat())
    }

    /// The document of 'clean', which fits its schema.
    fn cleaned(&self, words: &[&str], code: i32) -> Value {
        let said = self.clean(&[words, &["--json"]].concat()).ends_with(code);
        let document: Value = serde_json::from_str(&said.out).expect("a document");
        let schema = serde_json::from_str(&fs::read_to_string(SCHEMA).unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(document["exit_code"], code);
        document
    }

    fn scan(&self, words: &[&str]) -> Report {
        self.test_box.portreeve(&[&["scan"], words].concat())
    }

    /// The names of the orphaned containers that a scan tells.
    fn orphans(&self) -> Vec<String> {
        names(&self.scan(&[]).json["model_containers"], "container")
    }

    #[track_caller]
    fn register(&self, name: &str, port: u16, more: &[&str]) {
        let port = port.to_string();
        let words: [&str; 14] = [
            "model",
            "register",
            name,
            "--backend",
            "vllm",
            "--model",
            "org/qwen",
            "--container",
            "--image",
            "model-vllm",
            "--port",
            &port,
            "--engine",
            self.kind,
        ];
        self.run(&[&words, more].concat()).ends_with(0);
    }

    #[track_caller]
    fn start(&self, name: &str) {
        self.run(&["model", "start", name]).ends_with(0);
    }

    /// Works on a copy of the registry: SQLite follows the way into a box by its links, and they lead out again.
    fn with_registry<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> T {
        let (folder, path) = (tempfile::tempdir().unwrap(), self.test_box.inside(REGISTRY));
        let copy = folder.path().join("models.db");
        fs::write(&copy, fs::read(&path).unwrap()).unwrap();
        let registry = Connection::open(&copy).unwrap();
        registry.pragma_update(None, "foreign_keys", true).unwrap();
        let done = work(&registry).unwrap();
        registry.close().unwrap();
        fs::write(path, fs::read(copy).unwrap()).unwrap();
        done
    }

    /// Changes what the registry has.
    fn registry(&self, sql: &str) {
        self.with_registry(|registry| registry.execute_batch(sql));
    }

    /// Has it say that a model runs in this container.
    fn needs(&self, model: &str, id: &Value) {
        let (id, kind) = (id.as_str().unwrap(), self.kind);
        self.registry(&format!(
            "UPDATE models SET state = 'running' WHERE name = '{model}';
             INSERT INTO receipts (model, boot_id, engine, container_id, container_name, instance_id, at_ms)
             VALUES ('{model}', 'x', '{kind}', '{id}', 'vllm-model-{model}', 'x', 0)"
        ));
    }

    fn instance(&self) -> String {
        let question = "SELECT value FROM meta WHERE key = 'instance_id'";
        self.with_registry(|registry| registry.query_row(question, [], |row| row.get(0)))
    }

    /// Runs this in a container with the labels that a launch gives, by an installation.
    fn labelled(
        &self,
        (name, model, backend): (&str, &str, &str),
        instance: &str,
        options: &[&str],
        words: &[&str],
    ) {
        let labels = [("instance", instance), ("model", model), ("backend", backend)];
        let labels = labels.map(|(key, value)| format!("--label=io.portreeve.{key}={value}"));
        self.contain(name, &[&labels.each_ref().map(String::as_str), options].concat(), words);
    }

    /// Runs this in a container.
    fn contain(&self, name: &str, options: &[&str], words: &[&str]) {
        let run = ["run", "--detach", "--name", name];
        self.engine.must(&[&run, options, &["plant"], words].concat());
    }

    fn id(&self, name: &str) -> Value {
        self.engine.inspect(name)["Id"].clone()
    }

    #[track_caller]
    fn are_gone(&self, names: &[&str]) {
        for name in names {
            assert_eq!(self.engine.inspect(name), Value::Null, "{name}");
        }
    }

    fn policy(&self, name: &str) -> String {
        let policy = &self.engine.inspect(name)["HostConfig"]["RestartPolicy"]["Name"];
        policy.as_str().unwrap().to_owned()
    }

    /// Somebody sits at a terminal and answers each question, once it is asked, after something happened.
    fn at_a_terminal(&self, words: &str, answers: &[(&str, &str)], first: impl FnOnce()) -> Ran {
        let line = format!("/build/portreeve model clean {words}");
        let mut script = self.test_box.command(&["script", "-qec", &line, "/dev/null"]);
        let piped = script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child: Child = piped.spawn().unwrap();
        let (mut keyboard, mut screen) =
            (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut shown = Vec::new();
        let mut first = Some(first);
        for (question, answer) in answers {
            let mut byte = [0];
            while !String::from_utf8_lossy(&shown).ends_with(question) {
                let read = screen.read(&mut byte).unwrap();
                let so_far = String::from_utf8_lossy(&shown);
                assert_eq!(read, 1, "'{question}' was not asked: {so_far}");
                shown.push(byte[0]);
            }
            first.take().into_iter().for_each(|first| first());
            writeln!(keyboard, "{answer}").unwrap();
        }
        screen.read_to_end(&mut shown).unwrap();
        let code = child.wait().unwrap().code().unwrap_or(-1);
        Ran { code, out: String::from_utf8_lossy(&shown).replace('\r', ""), err: String::new() }
    }
}

fn names(all: &Value, key: &str) -> Vec<String> {
    let all = all.as_array().unwrap_or_else(|| panic!("no list: {all}"));
    all.iter().map(|one| one[key].as_str().unwrap().to_owned()).collect()
}

/// Without a registry nothing is ours, and none is made by looking.
fn nothing_was_ever_made(house: &House<'_>) {
    house.clean(&[]).ends_with(0).says("no container of a model is left over");
    house.clean(&["x"]).ends_with(0).says("nothing is left over of 'x'");
    assert_eq!(house.scan(&[]).json["model_containers"], json!([]));
    assert!(!house.test_box.inside("/var/lib/portreeve").exists());
}

/// One of each kind, and what is none: by name, what it is.
fn plant(house: &House<'_>) {
    for (name, port) in [("forgotten", 8401), ("stopped", 8402), ("up", 8403)] {
        house.register(name, port, &[]);
        house.start(name);
    }
    house.registry("DELETE FROM models WHERE name = 'forgotten'");
    house.registry(STOPPED);
    let own = house.instance();
    house.labelled(("sglang-model-up", "up", "sglang"), &own, &[], &POLITE);
    house.labelled(("debug", "stopped", "vllm"), &own, &[], &["plant"]);
    house.labelled(("vllm-model-sibling", "sibling", "vllm"), "77aa", &[], &POLITE);
    house.contain("vllm-model-old", &[], &POLITE);
    house.contain("web", &[], &POLITE);
}

const ORPHANS: [&str; 3] = ["sglang-model-up", "vllm-model-forgotten", "vllm-model-stopped"];
/// Never ours to remove.
const OTHERS: [&str; 3] = ["vllm-model-sibling", "vllm-model-up", "web"];
/// Removed only where they are named.
const LOOKALIKES: [&str; 2] = ["debug", "vllm-model-old"];

fn are_found_by_scan(house: &House<'_>) {
    let registry = || fs::read(house.test_box.inside(REGISTRY)).unwrap();
    let before = registry();
    let report = house.scan(&[]);
    assert_eq!(report.code, 1, "{:#}", report.json);
    assert_eq!(names(&report.json["model_containers"], "container"), ORPHANS);
    let up = &report.json["model_containers"][0];
    assert_eq!((&up["model"], &up["engine"]), (&json!("up"), &json!(house.kind)));
    assert_eq!(up["why"], "its model runs in another container");
    assert_eq!(up["next_step"], "portreeve model clean up");
    assert_eq!(report.json["summary"]["model_containers"], 3);
    assert!(registry() == before, "a scan writes nothing");
    let table = house.run(&["scan"]).ends_with(1);
    let table = table.says("vllm-model-stopped    stopped    ");
    table.says("orphan: its model is recorded as stopped").says("3 orphaned model containers");
    let metrics = house.run(&["scan", "--format", "prometheus"]);
    metrics.says("\nportreeve_orphaned_model_containers 3\n");
    let annotations = house.run(&["scan", "--format", "github"]);
    annotations.says("::warning title=portreeve%3A orphaned model container vllm-model-stopped::");
    // A question about something else is not answered by them.
    let narrow = house.scan(&["--port", "7999"]);
    assert_eq!((&narrow.json["model_containers"], narrow.code), (&Value::Null, 0));
    // What is down holds nothing; it is there for 'clean' alone.
    house.engine.must(&["stop", "-t", "0", "vllm-model-stopped"]);
    assert_eq!(house.orphans(), [ORPHANS[0], ORPHANS[1]]);
    house.engine.must(&["start", "vllm-model-stopped"]);
}

fn are_listed_and_nothing_is_removed_unasked(house: &House<'_>) {
    let all = [&ORPHANS[..], &LOOKALIKES, &OTHERS].concat();
    let ids = || all.iter().map(|name| house.id(name)).collect::<Vec<Value>>();
    let before = ids();
    let said = house.clean(&[]).ends_with(2);
    let said = said.complains("nothing was removed: there is no terminal to ask on");
    let said = said.complains("hint: '--yes' does it without asking");
    let said = said.says("removed only where they are named, or somebody says so:");
    said.says("1 container of another installation left alone");
    let document = house.cleaned(&[], 1);
    let mut found: Vec<(String, String)> = names(&document["containers"], "container")
        .into_iter()
        .zip(names(&document["containers"], "kind"))
        .collect();
    found.sort();
    let expected = [
        ("debug", "renamed"),
        ("sglang-model-up", "orphan"),
        ("vllm-model-forgotten", "orphan"),
        ("vllm-model-old", "unlabelled"),
        ("vllm-model-stopped", "orphan"),
    ];
    assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
    assert_eq!(
        (&document["others"], &document["containers"][0]["removed"]),
        (&json!(1), &Value::Null)
    );
    let questions = [
        ("Remove these 3 containers? [y/N] ", "n"),
        ("Remove debug and vllm-model-old, which portreeve may not have made? [y/N] ", ""),
    ];
    house.at_a_terminal("", &questions, || {}).ends_with(1);
    assert_eq!(ids(), before);
    for name in all {
        assert_eq!(house.engine.status(name), "running", "{name}");
    }
}

/// Between the question and the answer, a model began to need its container.
fn a_start_meanwhile_saves_them(house: &House<'_>) {
    let id = house.id("vllm-model-stopped");
    let needs_it = || house.needs("stopped", &id);
    let answers = [("Remove this container? [y/N] ", "y")];
    let said = house.at_a_terminal("vllm-model-stopped", &answers, needs_it).ends_with(1);
    said.says("it was left alone: model 'stopped' is running by now")
        .says("Containers removed: 0; 1 left alone");
    assert_eq!(house.id("vllm-model-stopped"), id);
    house.clean(&["stopped"]).ends_with(0).says("is needed: its model is running");
    house.registry(STOPPED);
}

fn are_removed_when_somebody_says_so(house: &House<'_>) {
    let kept = [&LOOKALIKES[..], &OTHERS].concat();
    let ids = || kept.iter().map(|name| house.id(name)).collect::<Vec<Value>>();
    let before = ids();
    let answers = [
        ("Remove these 3 containers? [y/N] ", "y"),
        ("Remove debug and vllm-model-old, which portreeve may not have made? [y/N] ", "n"),
    ];
    let said = house.at_a_terminal("", &answers, || {}).ends_with(0);
    said.says("container 'vllm-model-stopped' is removed: it left within its grace period")
        .says("container 'sglang-model-up' is removed: it left within its grace period")
        .says("Containers removed: 3; 2 left alone");
    house.are_gone(&ORPHANS);
    assert_eq!(house.orphans(), [""; 0]);
    // What is nobody's is not removed by a script that does not name it.
    house.clean(&["--yes"]).ends_with(0);
    assert_eq!(ids(), before);
    let events = house.run(&["model", "events", "forgotten"]).ends_with(0);
    events.says(
        "cleaned: container 'vllm-model-forgotten' is removed (the registry knows no such model)",
    );
    let said = house.clean(&["vllm-model-sibling", "--yes"]).ends_with(1);
    said.says("is another portreeve installation's (77aa), and left alone");
    house.clean(&["web", "--yes"]).ends_with(0).says("nothing is left over of 'web'");
    assert_eq!(ids(), before);

    let document = house.cleaned(&["old", "debug", "--yes"], 0);
    let removed = document["containers"].as_array().unwrap();
    let how = removed[0]["detail"].as_str().unwrap();
    assert!(how.starts_with("it did not leave within its grace period"), "{how}");
    assert!(removed.len() == 2 && removed.iter().all(|one| one["removed"] == true), "{document}");
    house.are_gone(&LOOKALIKES);
    for name in OTHERS {
        assert_eq!(house.engine.status(name), "running", "{name}");
    }
}

/// Whoever leads a model lives: its container is that one's matter.
fn a_start_under_way_is_left_alone(house: &House<'_>) {
    house.register("loading", 8404, &["--extra-args=--load-for", "--extra-args=usr1"]);
    let mut start = house.command(&["model", "start", "loading"]);
    let piped = start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().unwrap();
    house.engine.wait_for_status("vllm-model-loading", "running");
    assert_eq!(house.orphans(), [""; 0]);
    house.clean(&["loading", "--yes"]).ends_with(0).says("is needed: its model is starting");
    let leader = house.test_box.sh("pgrep -f -x '/build/portreeve model start loading'");
    house.test_box.sh(&format!("kill -KILL {leader}"));
    child.wait_with_output().unwrap();
    assert_eq!(house.orphans(), ["vllm-model-loading"]);
    let why = &house.scan(&[]).json["model_containers"][0]["why"];
    assert_eq!(why, "its model is recorded as starting, and whoever led it is gone");
    house.clean(&["--yes"]).ends_with(0);
    house.are_gone(&["vllm-model-loading"]);
}

/// Its engine starts it anew again and again; between two runs there is nothing to stop.
fn a_crash_loop_is_ended(house: &House<'_>) {
    let own = house.instance();
    let dies = ["sh", "-c", "exit 1"];
    house.labelled(("vllm-model-loop", "loop", "vllm"), &own, &["--restart", "always"], &dies);
    wait_until(DEADLINE, "it was started anew", || {
        house.engine.inspect("vllm-model-loop")["RestartCount"].as_u64() > Some(2)
    });
    let remark = house.clean(&[]).ends_with(2);
    remark.says("container 'vllm-model-loop' has the restart policy 'always'");
    house.clean(&["--yes"]).ends_with(0).says("Containers removed: 1; none is left");
    house.are_gone(&["vllm-model-loop"]);
}

fn a_policy_is_set_back_or_the_engine_cannot(house: &House<'_>) {
    // As if somebody had changed it: Podman 4.3 cannot change it either.
    house.run(&["model", "stop", "up"]).ends_with(0);
    let own = house.instance();
    house.labelled(("vllm-model-up", "up", "vllm"), &own, &["--restart", "always"], &POLITE);
    let id = house.id("vllm-model-up");
    house.needs("up", &id);
    let remark = house.clean(&[]).ends_with(0);
    remark.says("container 'vllm-model-up' has the restart policy 'always'");
    house.clean(&["--restart-policy"]).ends_with(2).complains("no terminal to ask on");
    assert_eq!(house.policy("vllm-model-up"), "always");
    let said = house.clean(&["--restart-policy", "--yes"]);
    if house.policy("vllm-model-up") == "no" {
        said.ends_with(0).says("container 'vllm-model-up': restart policy 'always' is now 'no'");
    } else {
        assert_eq!(house.kind, "podman");
        said.ends_with(1).complains("cannot change a restart policy, 5.1 can");
    }
    assert_eq!(
        (house.id("vllm-model-up"), house.engine.status("vllm-model-up")),
        (id, "running".to_owned())
    );
    house.run(&["model", "stop", "up"]).ends_with(0);
}

fn a_network_is_freed_and_who_else_is_on_it_is_named(house: &House<'_>) {
    house.engine.must(&["network", "create", "stack"]);
    house.contain("tenant", &["--network", "stack"], &POLITE);
    let own = house.instance();
    house.labelled(("vllm-model-netted", "netted", "vllm"), &own, &["--network", "stack"], &POLITE);
    let before = house.id("tenant");
    let said = house.clean(&["--network", "--yes"]).ends_with(0);
    let said = said.says(&format!("network 'stack' of {}: in use by tenant", house.kind));
    said.says("Containers removed: 1; none is left");
    let attached = &house.engine.inspect("tenant")["NetworkSettings"]["Networks"];
    assert!(attached["stack"].is_object(), "{attached}");
    assert_eq!(house.id("tenant"), before);
    // Of a model's that is only registered.
    house.engine.must(&["rm", "-f", "tenant"]);
    house.register("netted", 8405, &["--network", "stack"]);
    let said = house.clean(&["--network", "--yes"]).ends_with(0);
    said.says(&format!("is free: '{} network rm stack' removes it", house.kind));
    assert_eq!(house.cleaned(&["--network"], 0)["networks"][0]["attached"], json!([]));
    house.engine.must(&["network", "rm", "stack"]);
    house.run(&["model", "unregister", "netted"]).ends_with(0);
}

fn with_engine(name: &str, kind: Kind, word: &'static str, last: impl FnOnce(&House<'_>)) {
    let test_box = match TestBox::boot(name) {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    test_box.write("/etc/portreeve/config.yaml", CONFIG);
    let engine = Engine::start(&test_box, kind);
    engine.serve();
    engine.give_models();
    let house = House { test_box: &test_box, engine, kind: word };
    nothing_was_ever_made(&house);
    plant(&house);
    are_found_by_scan(&house);
    are_listed_and_nothing_is_removed_unasked(&house);
    a_start_meanwhile_saves_them(&house);
    are_removed_when_somebody_says_so(&house);
    a_start_under_way_is_left_alone(&house);
    a_crash_loop_is_ended(&house);
    a_policy_is_set_back_or_the_engine_cannot(&house);
    a_network_is_freed_and_who_else_is_on_it_is_named(&house);
    last(&house);
}

/// An engine that is there and says nothing: what it has is not known, and nothing is called clear.
#[test]
fn dockers_leftovers_are_found_and_removed_and_a_docker_that_is_down_hides_none() {
    with_engine("clean-docker", Kind::DockerSystemd, "docker", |house| {
        let own = house.instance();
        house.labelled(("vllm-model-hidden", "hidden", "vllm"), &own, &[], &POLITE);
        house.test_box.sh("systemctl stop docker.socket docker containerd");
        let said = house.clean(&["--yes"]).ends_with(2);
        said.says("not seen: the models' containers of docker: ");
        let report = house.scan(&[]);
        assert_eq!((report.code, &report.json["model_containers"]), (2, &json!([])));
        let fact = &report.json["unknowns"][0]["fact"];
        assert_eq!(fact, "the models' containers of docker");
        house.test_box.sh("systemctl start docker");
    });
}

/// By its command: it listens nowhere by default.
#[test]
fn podmans_leftovers_are_found_and_removed_and_one_that_listens_nowhere_hides_none() {
    with_engine("clean-podman", Kind::Podman, "podman", |house| {
        let own = house.instance();
        house.labelled(("vllm-model-hidden", "hidden", "vllm"), &own, &[], &POLITE);
        let service = house.test_box.sh("pgrep -f 'podman .*system service'");
        house.test_box.sh(&format!("kill {}", service.replace('\n', " ")));
        wait_until(DEADLINE, "Podman's API is gone", || {
            house.engine.ask("/_ping", DEADLINE).is_none()
        });
        assert_eq!(house.orphans(), ["vllm-model-hidden"]);
        let said = house.clean(&["--yes"]).ends_with(2);
        said.complains(
            "container 'vllm-model-hidden': nobody listens at '/run/podman/podman.sock'\n",
        )
        .complains("\nhint: open it with: systemctl enable --now podman.socket\n");
        assert_eq!(house.engine.status("vllm-model-hidden"), "running");
        house.engine.serve();
        house.clean(&["--yes"]).ends_with(0);
        house.are_gone(&["vllm-model-hidden"]);
    });
}
