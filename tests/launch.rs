//! Real engines take what a model's launch asks them to create, field by field, and run it: its server loads, is healthy, says
//! what it serves, and ends at SIGTERM.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use portreeve::{
    backend::{BackendName, Spec},
    engine::Version,
    ident::{EngineKind, ModelName},
    models::plan::{Cards, Launch, container},
};
use serde_json::{Value, json};
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind},
    model::{Answer, ask_in},
    skip, wait_until,
};

/// Has a server load until it is told.
const LOADING: [&str; 2] = ["--load-for", "usr1"];

/// The limits that this machine's control groups can hold: where they are left to version 1, a box has none.
fn limits(test_box: &TestBox) -> Value {
    let controllers = test_box.sh("cat /sys/fs/cgroup/cgroup.controllers");
    let mut limits = json!({});
    for (controller, field, value) in
        [("memory", "memory_bytes", 256 << 20), ("cpu", "cpu_milli", 1500), ("pids", "pids", 64)]
    {
        if controllers.split_whitespace().any(|c| c == controller) {
            limits[field] = json!(value);
        } else {
            skip(&format!("limits of '{controller}': this box has no such controller"));
        }
    }
    limits
}

/// A model in a container, its server played.
fn launch(backend: BackendName, kind: EngineKind, port: usize, limits: &Value) -> (Spec, Launch) {
    let mut spec = json!({
        "backend": backend, "model": "/srv/models/l.gguf", "is_container": true, "port": port,
        "host": "127.0.0.1", "image": format!("model-{backend}"), "models_dir": "/srv/models",
        "extra_args": LOADING,
    });
    spec.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let spec = match backend {
        BackendName::Ollama => Spec {
            model: "llama3".to_owned(),
            image: Some("loading".to_owned()),
            extra_args: Vec::new(),
            ..spec
        },
        BackendName::Vllm | BackendName::LlamaCpp | BackendName::Tgi | BackendName::SgLang => spec,
    };
    // No GPU is asked for, so that any version will do.
    let engine = Version { kind, version: String::new() };
    let name = ModelName::from("llama");
    let launch = container(&name, "5f2c", &spec, &Cards::default(), &engine).unwrap();
    (spec, launch)
}

fn post(engine: &Engine, path: &str, body: &str) -> (u16, Value) {
    engine.post(path, body, DEADLINE).expect("an answer")
}

/// Creates and starts it, and holds what the engine made of it against what was asked.
fn holds_what_was_asked(engine: &Engine, launch: &Launch) {
    let (name, body) = (&launch.container, serde_json::to_value(&launch.body).unwrap());
    let create = format!("/v1.40/containers/create?name={name}");
    let (status, answer) = post(engine, &create, &body.to_string());
    assert_eq!(status, 201, "{name}: {answer}");
    let (status, answer) = post(engine, &format!("/v1.40/containers/{name}/start"), "");
    assert_eq!(status, 204, "{name}: {answer}");
    let (status, seen) = engine.ask(&format!("/v1.40/containers/{name}/json"), DEADLINE).unwrap();
    assert_eq!((status, &seen["State"]["Running"]), (200, &json!(true)), "{name}: {seen}");

    let (asked, made) = (&body["HostConfig"], &seen["HostConfig"]);
    for field in ["Memory", "NanoCpus", "PidsLimit", "PortBindings"] {
        if !asked[field].is_null() {
            assert_eq!(made[field], asked[field], "{name}: {field}");
        }
    }
    assert!(["no", ""].contains(&made["RestartPolicy"]["Name"].as_str().unwrap()), "{made}");
    // Podman calls its own 'shareable'.
    assert!(["private", "shareable"].contains(&made["IpcMode"].as_str().unwrap()), "{made}");
    if let Some(bytes) = asked["ShmSize"].as_i64() {
        assert_eq!(made["ShmSize"], bytes, "{name}");
        let size = engine.must(&["exec", name, "/bin/busybox", "df", "-k", "/dev/shm"]);
        assert!(size.contains(&(bytes >> 10).to_string()), "{name}: {size}");
    }
    for (label, value) in body["Labels"].as_object().unwrap() {
        assert_eq!(&seen["Config"]["Labels"][label], value, "{name}");
    }
    let environment = seen["Config"]["Env"].as_array().unwrap();
    assert!(body["Env"].as_array().unwrap().iter().all(|e| environment.contains(e)), "{name}");
    let write = engine.run(&["exec", name, "/bin/busybox", "touch", "/models/x"]);
    let said = String::from_utf8_lossy(&write.stderr).into_owned();
    assert!(said.contains("Read-only file system"), "{name}: {said}");
    engine.must(&["exec", name, "/bin/busybox", "test", "-f", "/models/l.gguf"]);
}

/// Its server is not healthy, then is, and serves the model that is wanted.
fn becomes_healthy(engine: &Engine, spec: &Spec, launch: &Launch) {
    let (name, reach) = (&launch.container, &launch.reach);
    let health = || ask_in(engine.test_box, reach.address, reach.health.unwrap().path);
    wait_until(DEADLINE, "it loads", || {
        let log = engine.run(&["logs", name]);
        String::from_utf8_lossy(&log.stdout).contains("loading")
    });
    let loading = health();
    assert!(loading.status().is_none_or(|status| status == 503), "{name}: {loading:?}");
    engine.must(&["kill", "--signal", "USR1", name]);
    wait_until(DEADLINE, &format!("{name} is healthy"), || health().status() == Some(200));

    let answer = ask_in(engine.test_box, reach.address, reach.served.path);
    let Answer::Said(200, list) = answer else { panic!("{name}: {answer:?}") };
    let ids = (reach.served.read)(&list).unwrap();
    assert!(ids.iter().any(|id| (reach.served.fits)(spec, &launch.told, id)), "{name}: {ids:?}");
}

/// SIGTERM is enough.
fn ends(engine: &Engine, launch: &Launch) {
    let (name, grace) = (&launch.container, launch.reach.grace);
    let stop = format!("/v1.40/containers/{name}/stop?t={}", grace.as_secs());
    let (status, answer) = engine.post(&stop, "", grace + DEADLINE).expect("an answer");
    assert_eq!(status, 204, "{name}: {answer}");
    let state = &engine.inspect(name)["State"];
    assert_eq!((&state["Running"], &state["ExitCode"]), (&json!(false), &json!(0)), "{name}");
    engine.must(&["rm", name]);
}

fn every_backend(name: &str, kind: Kind, product: EngineKind) {
    let test_box = match TestBox::boot(name) {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    test_box.sh("mkdir -p /srv/models && touch /srv/models/l.gguf");
    let engine = Engine::start(&test_box, kind);
    engine.serve();
    engine.give_models();
    engine.give_model("loading", "ollama", &LOADING.join(" "));
    let limits = limits(&test_box);
    for (place, backend) in BackendName::ALL.into_iter().enumerate() {
        let (spec, launch) = launch(backend, product, 8100 + place, &limits);
        holds_what_was_asked(&engine, &launch);
        becomes_healthy(&engine, &spec, &launch);
        ends(&engine, &launch);
    }
}

#[test]
fn docker_makes_of_every_backend_what_was_asked_and_runs_it() {
    every_backend("launch-docker", Kind::DockerSystemd, EngineKind::Docker);
}

#[test]
fn podman_makes_of_every_backend_what_was_asked_and_runs_it() {
    every_backend("launch-podman", Kind::Podman, EngineKind::Podman);
}
