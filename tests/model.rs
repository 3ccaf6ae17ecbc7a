//! `portreeve model` through the command, on real files: nothing that was said to be done is ever lost.

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
    process::{Command, Output, Stdio},
    time::Duration,
};

use portreeve::models::registry::Registry;
use serde_json::Value;
use support::{skip, stage::Stage};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/models-v1.json");

/// A folder that stands in for `/var/lib`, and the command that has it there.
struct Place(Stage);

impl Place {
    fn set() -> Option<Self> {
        let stage = Stage::set().map_err(|reason| skip(&reason)).ok()?;
        fs::create_dir(stage.path("lib")).unwrap();
        Some(Self(stage))
    }

    /// The command, after a script that may change the folder.
    fn command(&self, first: &str, words: &[&str]) -> Command {
        let script =
            format!("mount --bind {} /var/lib; {first} exec", self.0.path("lib").display());
        self.0.portreeve_by(&script, &[&["model"], words].concat())
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command("", words).output().unwrap()
    }

    fn must(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        said(&output)
    }

    fn register(&self, name: &str) -> Output {
        let port = if name == "first" { "8000" } else { "8001" };
        self.run(&["register", name, "--backend", "vllm", "--path", "org/model", "--port", port])
    }

    fn registry(&self) -> Registry {
        Registry::open(&self.0.path("lib/portreeve/models.db")).unwrap()
    }

    fn document(&self, words: &[&str]) -> Value {
        let document = serde_json::from_str(&self.must(&[words, &["--json"]].concat())).unwrap();
        let schema = serde_json::from_str(&fs::read_to_string(SCHEMA).unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        document
    }
}

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.as_slice(), &output.stderr].concat()).unwrap()
}

#[test]
fn the_published_schema_is_the_one_that_the_code_generates() {
    let schema = serde_json::to_string_pretty(&portreeve::report::models::schema()).unwrap();
    let generated = format!("{schema}\n");
    if std::env::var_os("BLESS").is_some() {
        fs::write(SCHEMA, &generated).unwrap();
    }
    let published = fs::read_to_string(SCHEMA).unwrap_or_default();
    assert_eq!(published, generated, "BLESS=1 writes {SCHEMA} anew");
}

#[test]
fn a_model_is_registered_listed_shown_and_taken_out_again() {
    let Some(place) = Place::set() else { return };
    assert!(place.must(&["list"]).contains("no model is registered"));
    let wanted = [
        "register",
        "llama-70b",
        "--backend",
        "llama.cpp",
        "--path",
        "/models/llama.gguf",
        "--container",
        "--models-dir",
        "/models",
        "--port",
        "8000",
        "--gpus",
        "0,1",
        "--memory",
        "32G",
        "--cpu",
        "4.0",
        "--extra-args",
        "--flash-attn",
        "--load-timeout",
        "10m",
    ];
    place.must(&wanted);
    let list = place.must(&["list"]);
    for part in ["llama-70b", "stopped", "llamacpp", "8000", "0,1", "/models/llama.gguf"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let model = &place.document(&["list"])["models"][0];
    assert_eq!(model["memory_bytes"], 32_u64 << 30);
    assert_eq!((&model["cpu_milli"], &model["container"]), (&4000.into(), &true.into()));
    assert_eq!(place.document(&["show", "llama-70b"])["models"][0], *model);
    let shown = place.must(&["show", "llama-70b"]);
    for part in ["32.0 GiB", "4.000", "--flash-attn", "600 s", "127.0.0.1, port 8000"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let twice = place.run(&wanted);
    assert_eq!(twice.status.code(), Some(2));
    assert!(said(&twice).contains("there is a model 'llama-70b' already"), "{}", said(&twice));
    place.must(&["unregister", "llama-70b"]);
    let gone = place.run(&["show", "llama-70b"]);
    assert_eq!(gone.status.code(), Some(2));
    let events = place.document(&["events", "llama-70b"]);
    let kinds: Vec<&Value> =
        events["events"].as_array().unwrap().iter().map(|event| &event["kind"]).collect();
    assert_eq!(kinds, ["registered", "unregistered"]);
}

#[test]
fn the_unit_of_a_model_is_shown_and_nothing_else() {
    let Some(place) = Place::set() else { return };
    place.must(&[
        "register",
        "llama",
        "--backend",
        "vllm",
        "--path",
        "org/model",
        "--program",
        "/opt/vllm/bin/vllm",
        "--run-as",
        "vllm",
        "--gpus",
        "0",
    ]);
    let shown = place.must(&["show", "llama"]);
    for part in ["/opt/vllm/bin/vllm", "user"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let unit = place.must(&["show", "llama", "--unit"]);
    assert!(unit.starts_with("# Written by 'portreeve model register'"), "{unit}");
    for part in
        ["/portreeve model exec llama\n", "\nUser=vllm\n", "\nWantedBy=portreeve-models.target\n"]
    {
        assert!(unit.contains(part), "{part}: {unit}");
    }
    let users = place.must(&["show", "llama", "--unit", "--user"]);
    assert!(!users.contains("\nUser=") && !users.contains("\nProtectSystem="), "{users}");
    let config = place.0.path("lib/some.yaml");
    fs::write(&config, "").unwrap();
    let config = config.to_str().unwrap();
    let unit = place.must(&["show", "llama", "--unit", "--config", config]);
    assert!(unit.contains(&format!(" model --config {config} exec llama\n")), "{unit}");
    let offline = place.must(&["show", "llama", "--unit", "--offline", "--config", config]);
    for part in
        ["/portreeve model exec llama\n", "\nUser=vllm\n", "\nSupplementaryGroups=render video\n"]
    {
        assert!(offline.contains(part), "{part}: {offline}");
    }
    for words in [
        &["show", "llama", "--user"][..],
        &["show", "llama", "--offline"],
        &["show", "llama", "--unit", "--user", "--offline"],
        &["show", "llama", "--unit", "--json"],
        &["show", "x", "--unit"],
    ] {
        assert_eq!(place.run(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn what_names_no_model_or_no_amount_is_refused_before_anything_is_written() {
    let Some(place) = Place::set() else { return };
    for words in [
        &["register", "../x", "--backend", "vllm", "--path", "m"][..],
        &["register", "x", "--backend", "gpt", "--path", "m"],
        &["register", "x", "--backend", "vllm", "--path", "m", "--gpus", "card0"],
        &["register", "x", "--backend", "vllm", "--path", "m", "--memory", "lots"],
        &["register", "x", "--backend", "llamacpp", "--path", "/m", "--quantization", "awq"],
        &["show", "-x"],
    ] {
        let output = place.run(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", said(&output));
    }
    assert!(!place.0.path("lib/portreeve").exists());
}

#[test]
fn a_port_that_another_model_wants_is_refused_and_a_shared_gpu_is_a_warning() {
    let Some(place) = Place::set() else { return };
    assert!(place.register("first").status.success());
    let words = ["register", "second", "--backend", "sglang", "--path", "org/m", "--port"];
    let taken = place.run(&[&words[..], &["8000"]].concat());
    assert_eq!(taken.status.code(), Some(2));
    assert!(said(&taken).contains("first") && said(&taken).contains("8000"), "{}", said(&taken));
    place.must(&[&words[..], &["8002", "--gpus", "0"]].concat());
    let third = ["register", "third", "--backend", "vllm", "--path", "org/m", "--port", "8003"];
    let shared = place.must(&[&third[..], &["--gpus", "0"]].concat());
    assert!(shared.contains("warning: ") && shared.contains("second"), "{shared}");
}

#[test]
fn a_full_disk_and_a_folder_that_is_read_only_change_nothing_and_say_so() {
    let Some(place) = Place::set() else { return };
    assert!(place.register("first").status.success());
    // A copy on a file system of its own, filled to the brim.
    let full = "mount -t tmpfs -o size=1m none /mnt; cp -a /var/lib/portreeve /mnt/; \
                mount --bind /mnt /var/lib; head -c 2m /dev/zero >/var/lib/fill 2>/dev/null || :;";
    let words = ["register", "second", "--backend", "vllm", "--path", "m", "--port", "9000"];
    let output = place.command(full, &words).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("full; nothing was changed"), "{}", said(&output));
    let read_only = "mount -o remount,bind,ro /var/lib;";
    let output = place.command(read_only, &words).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("Read-only")
            || said(&output).contains("writable; nothing was changed"),
        "{}",
        said(&output)
    );
    let listed = place.document(&["list"]);
    assert_eq!(listed["models"].as_array().unwrap().len(), 1);
    assert_eq!(place.registry().damage().unwrap(), None);
}

#[test]
fn a_sigkill_at_any_moment_leaves_a_model_with_its_event_or_neither() {
    let Some(place) = Place::set() else { return };
    assert!(place.register("first").status.success());
    let mut done = 0;
    for n in 0..20_u32 {
        let name = format!("m-{n}");
        let port = (9000 + n).to_string();
        let words = ["register", &name, "--backend", "vllm", "--path", "m", "--port", &port];
        let mut child = place.command("", &words).stdout(Stdio::null()).spawn().unwrap();
        // From before its first line to after its last.
        std::thread::sleep(Duration::from_millis(u64::from(n)));
        let _ = child.kill();
        done += u32::from(child.wait().unwrap().success());
    }
    let registry = place.registry();
    assert_eq!(registry.damage().unwrap(), None);
    let models = registry.all().unwrap();
    let events = registry.events(None, 1000).unwrap();
    assert_eq!(models.len(), events.len());
    assert!(models.len() > usize::try_from(done).unwrap(), "{done} were said to be done");
    assert!(models.iter().all(|model| events.iter().any(|event| event.model == model.name)));
    assert!(place.register("last").status.success());
}

#[test]
fn a_registry_that_a_newer_portreeve_wrote_is_refused() {
    let Some(place) = Place::set() else { return };
    assert!(place.register("first").status.success());
    let path = place.0.path("lib/portreeve/models.db");
    let newer = rusqlite::Connection::open(path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let output = place.run(&["list"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("a newer portreeve wrote it"), "{}", said(&output));
}
