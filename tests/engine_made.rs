//! Real engines make, start, watch, find again and free what a model's launch asks for: the client's orders and what it says of
//! them, held against Docker and Podman in a box. The box numbers its processes in another pid namespace than we do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{cell::Cell, fs, ops::ControlFlow, time::Instant};

use portreeve::{
    engine::{self, Created, Deed, Engine as Client, Made, Phase, Refused, Which},
    host::Host,
    ident::{ContainerId, EngineKind},
};
use serde_json::{Value, json};
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind, kill},
    skip, wait_until,
};

const WHICH: Which = Which { docker: true, docker_socket: None, podman: true };
/// What a container in this way says, before and after the test opens its gate.
const GATED: &str =
    "echo ready; while [ ! -e /gate/open ]; do sleep 0.05; done; echo done >&2; exit 3";

/// The client of a test, and the box.
struct Scene<'a> {
    test_box: &'a TestBox,
    engine: &'a Engine<'a>,
    client: Client,
}

impl Scene<'_> {
    fn create(&self, name: &str, body: &Value) -> Result<Created, Refused> {
        engine::create(&self.client, name, &body.to_string(), DEADLINE)
    }

    /// Creates and starts a container that runs this script.
    fn run(&self, name: &str, script: &str, more: &Value) -> ContainerId {
        let created = self.create(name, &body(&["sh", "-c", script], more)).unwrap();
        assert_eq!(engine::start(&self.client, &created.id, DEADLINE), Deed::Done, "{name}");
        created.id
    }

    fn found(&self, name: &str) -> Made {
        self.find(name).unwrap_or_else(|| panic!("no '{name}'"))
    }

    fn find(&self, name: &str) -> Option<Made> {
        engine::find(&self.client, name, DEADLINE).unwrap()
    }

    fn wait_for(&self, name: &str, phase: &Phase) -> Made {
        wait_until(DEADLINE, &format!("'{name}' is {phase:?}"), || {
            self.found(name).state == *phase
        });
        self.found(name)
    }

    fn remove(&self, id: &ContainerId) {
        assert_eq!(engine::remove(&self.client, id, true, DEADLINE), Deed::Done);
    }

    fn logs(&self, id: &ContainerId, tail: usize) -> Vec<String> {
        engine::logs(&self.client, id, tail, DEADLINE).unwrap()
    }

    fn follow(&self, id: &ContainerId, each: &mut dyn FnMut(&str) -> ControlFlow<()>) {
        let followed = engine::follow_logs(&self.client, id, 100, DEADLINE, each, &|| false);
        assert_eq!(followed, Ok(()));
    }
}

/// What is asked for: a user's Podman has no other network than none in a box.
fn body(command: &[&str], more: &Value) -> Value {
    let host = json!({ "NetworkMode": "none" });
    let mut body = json!({ "Image": "plant", "Cmd": command, "HostConfig": host });
    merge(&mut body, more);
    body
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

// ---- what is made

/// Made once and found by its whole name, whatever else is called nearly so.
fn is_made_once_and_found_again(scene: &Scene<'_>) {
    let body = body(&["sleep", "1000"], &json!({ "Labels": { "portreeve.model": "llama" } }));
    let created = scene.create("portreeve-llama", &body).unwrap();
    let taken = scene.create("portreeve-llama", &body);
    assert!(matches!(taken, Err(Refused::NameTaken(_))), "{taken:?}");
    for image in ["nosuch", "registry.invalid/nosuch:1"] {
        let missing = scene.create("other", &json!({ "Image": image }));
        assert!(matches!(missing, Err(Refused::NoImage(_))), "{missing:?}");
    }
    let refused = scene.create("other", &json!({ "Image": 5 }));
    assert!(matches!(refused, Err(Refused::Failed(400 | 500, _))), "{refused:?}");
    assert_eq!(scene.find("other"), None, "what was refused is not there");

    let made = scene.found("portreeve-llama");
    assert_eq!((&made.id, &made.state), (&created.id, &Phase::Created));
    assert_eq!(made.name, "portreeve-llama");
    assert!(made.image.contains("plant"), "{made:?}");
    assert_eq!(made.labels["portreeve.model"], "llama");
    assert!(made.stays_down(), "{made:?}");
    assert_eq!((made.exit_code, made.started_at, made.finished_at), (None, None, None));
    assert_eq!(scene.found(&created.id.0).id, created.id);
    // Engines would find it by the beginning of its id.
    let (short, shorter) = (created.id.short(), &created.id.0[..3]);
    for name in ["portreeve-llam", "portreeve", "Portreeve-llama", "llama", short, shorter] {
        assert_eq!(scene.find(name), None, "{name}");
    }
    assert_eq!(scene.find(&"a".repeat(64)), None);

    assert_eq!(engine::start(&scene.client, &created.id, DEADLINE), Deed::Done);
    assert_eq!(engine::start(&scene.client, &created.id, DEADLINE), Deed::AlreadySo);
    let made = scene.found("portreeve-llama");
    assert_eq!((made.state, made.exit_code, made.finished_at), (Phase::Running, None, None));
    assert!(made.started_at.is_some());
    assert_eq!(made.main_pid, None, "a pid of the box is none of ours");
    let listed = engine::list(&scene.client, DEADLINE).unwrap();
    let listed = listed.into_iter().find(|listed| listed.id == created.id).unwrap();
    assert_eq!((listed.name.as_str(), &listed.state), ("portreeve-llama", &Phase::Running));
    assert_eq!(listed.labels["portreeve.model"], "llama");

    assert_eq!(engine::kill(&scene.client, &created.id, DEADLINE), Deed::Done);
    let made = scene.wait_for("portreeve-llama", &Phase::Exited);
    assert_eq!((made.exit_code, made.oom_killed), (Some(137), false));
    assert!(made.finished_at.is_some());
    scene.remove(&created.id);
    assert_eq!(scene.find("portreeve-llama"), None);
    assert_eq!(engine::start(&scene.client, &created.id, DEADLINE), Deed::Gone);
}

fn what_cannot_be_started_says_why(scene: &Scene<'_>) {
    let created = scene.create("broken", &body(&["nosuchprogram"], &json!({}))).unwrap();
    let deed = engine::start(&scene.client, &created.id, DEADLINE);
    let Deed::Failed(_, why) = deed else { panic!("{deed:?}") };
    assert!(why.contains("nosuchprogram"), "{why}");
    assert_eq!(scene.found("broken").state, Phase::Created);
    scene.remove(&created.id);
}

// ---- what it says

/// Each line is heard as it comes: the second is written only once the first was heard.
fn is_followed_until_it_ends(scene: &Scene<'_>) {
    scene.test_box.sh("rm -rf /srv/gate; install -d -m 777 /srv/gate");
    let id = scene.run("talker", GATED, &json!({ "HostConfig": { "Binds": ["/srv/gate:/gate"] } }));
    let mut lines = Vec::new();
    scene.follow(&id, &mut |line| {
        lines.push(line.to_owned());
        fs::write(scene.test_box.inside("/srv/gate/open"), "").unwrap();
        ControlFlow::Continue(())
    });
    assert_eq!(lines, ["ready", "done"]);
    assert_eq!(scene.wait_for("talker", &Phase::Exited).exit_code, Some(3));
    assert_eq!(scene.logs(&id, 100), ["ready", "done"]);
    assert_eq!(scene.logs(&id, 1), ["done"]);
    assert_eq!(scene.logs(&id, 0), [""; 0]);
    // Of one that ended, a follower hears the rest, or breaks before.
    let mut lines = 0;
    scene.follow(&id, &mut |_| {
        lines += 1;
        ControlFlow::Break(())
    });
    assert_eq!(lines, 1);
    scene.remove(&id);
}

fn a_silent_one_is_left_when_its_follower_should_end(scene: &Scene<'_>) {
    let id = scene.run("silent", "sleep 1000", &json!({}));
    assert_eq!(scene.logs(&id, 100), [""; 0]);
    let asked = Cell::new(0);
    let should_end = || asked.replace(asked.get() + 1) == 5;
    let (mut each, began) = (|_: &str| ControlFlow::Continue(()), Instant::now());
    let followed = engine::follow_logs(&scene.client, &id, 9, DEADLINE, &mut each, &should_end);
    assert_eq!((followed, asked.get()), (Ok(()), 6));
    assert!(began.elapsed() < DEADLINE);
    scene.remove(&id);
}

fn a_terminal_and_a_long_line_are_read(scene: &Scene<'_>) {
    let id =
        scene.run("terminal", "echo out; echo err >&2; printf 'no end'", &json!({ "Tty": true }));
    scene.wait_for("terminal", &Phase::Exited);
    assert_eq!(scene.logs(&id, 100), ["out", "err", "no end"]);
    scene.remove(&id);
    // Engines cut it into pieces of their own.
    let script = "/bin/busybox head -c 40000 /dev/zero | /bin/busybox tr '\\0' x; echo; echo end";
    let id = scene.run("long", script, &json!({}));
    scene.wait_for("long", &Phase::Exited);
    let lines = scene.logs(&id, 100);
    let lengths: Vec<usize> = lines.iter().map(String::len).collect();
    assert_eq!(lengths, [40_000, 3]);
    scene.remove(&id);
}

// ---- what it shall not do

/// `Done` is said only where the container then stays down.
fn restarts_are_forbidden_or_the_engine_cannot(scene: &Scene<'_>, kind: EngineKind) {
    let always = json!({ "HostConfig": { "RestartPolicy": { "Name": "always" } } });
    let id = scene.run("eternal", "sleep 1000", &always);
    assert_eq!(scene.found("eternal").restart_policy.as_deref(), Some("always"));
    let deed = engine::forbid_restarts(&scene.client, &id, DEADLINE);
    let made = scene.found("eternal");
    match &deed {
        Deed::Done => {
            assert!(made.stays_down());
            let again = engine::forbid_restarts(&scene.client, &id, DEADLINE);
            assert_eq!(again, Deed::AlreadySo);
            kill(scene.test_box, &[scene.engine.container("eternal").pid]);
            assert_eq!(scene.wait_for("eternal", &Phase::Exited).exit_code, Some(137));
        }
        Deed::Failed(404, why) => {
            assert_eq!(kind, EngineKind::Podman);
            assert!(why.contains("cannot change a restart policy"), "{why}");
            assert_eq!(made.restart_policy.as_deref(), Some("always"));
        }
        Deed::AlreadySo | Deed::Gone | Deed::Conflict(_) | Deed::Failed(..) | Deed::NoAnswer(_) => {
            panic!("{deed:?}")
        }
    }
    scene.remove(&id);
    assert_eq!(engine::forbid_restarts(&scene.client, &id, DEADLINE), Deed::Gone);
}

// ---- networks

fn a_network_is_freed_of_its_tenant_and_then_removed(scene: &Scene<'_>) {
    let client = &scene.client;
    scene.engine.must(&["network", "create", "stack"]);
    let id =
        scene.run("tenant", "sleep 1000", &json!({ "HostConfig": { "NetworkMode": "stack" } }));
    let found = || engine::network(client, "stack", DEADLINE).unwrap();
    let network = found().unwrap();
    assert_eq!(network.attached, [(id.clone(), "tenant".to_owned())]);
    let listed = engine::list(client, DEADLINE).unwrap();
    let listed = listed.iter().find(|listed| listed.id == id).unwrap();
    assert_eq!(listed.networks, ["stack"]);
    for name in ["stac", "stack2", &network.id[..12], &network.id[..2]] {
        assert_eq!(engine::network(client, name, DEADLINE), Ok(None), "{name}");
    }

    let removed = || engine::remove_network(client, &network.id, DEADLINE);
    let kept = removed();
    assert!(matches!(kept, Deed::Conflict(_)), "{kept:?}");
    assert!(found().is_some());
    let off = || engine::disconnect(client, &network.id, &id, true, DEADLINE);
    assert_eq!(off(), Deed::Done);
    assert_eq!(off(), Deed::AlreadySo);
    assert_eq!(found().unwrap().attached, []);
    assert_eq!(removed(), Deed::Done);
    assert_eq!(removed(), Deed::Gone);
    assert_eq!(found(), None);
    assert_eq!(scene.found("tenant").state, Phase::Running, "it is off the network, not ended");
    scene.remove(&id);
}

// ---- the engines

fn with_engine(
    name: &str,
    kind: Kind,
    client: impl FnOnce(&TestBox, &Host) -> Client,
    scenes: impl FnOnce(&Scene<'_>, &Host),
) {
    let test_box = match TestBox::boot(name) {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    let engine = Engine::start(&test_box, kind);
    engine.serve();
    let host = Host::fixture(test_box.inside("/"));
    let client = client(&test_box, &host);
    scenes(&Scene { test_box: &test_box, engine: &engine, client }, &host);
}

fn every_scene(scene: &Scene<'_>, kind: EngineKind) {
    is_made_once_and_found_again(scene);
    what_cannot_be_started_says_why(scene);
    is_followed_until_it_ends(scene);
    a_silent_one_is_left_when_its_follower_should_end(scene);
    a_terminal_and_a_long_line_are_read(scene);
    restarts_are_forbidden_or_the_engine_cannot(scene, kind);
}

#[test]
fn docker_makes_starts_and_finds_what_it_is_told_to() {
    let client = |_: &TestBox, host: &Host| engine::at(host, EngineKind::Docker, "run/docker.sock");
    with_engine("made-docker", Kind::DockerSystemd, client, |scene, host| {
        every_scene(scene, EngineKind::Docker);
        a_network_is_freed_of_its_tenant_and_then_removed(scene);
        let (chosen, version) = engine::default_for(host, &WHICH, 0, None, DEADLINE).unwrap();
        assert_eq!((chosen.name.kind, version.kind), (EngineKind::Docker, EngineKind::Docker));
    });
}

#[test]
fn podman_makes_starts_and_finds_what_it_is_told_to() {
    let client =
        |_: &TestBox, host: &Host| engine::at(host, EngineKind::Podman, "run/podman/podman.sock");
    with_engine("made-podman", Kind::Podman, client, |scene, host| {
        every_scene(scene, EngineKind::Podman);
        a_network_is_freed_of_its_tenant_and_then_removed(scene);
        let (chosen, _) = engine::default_for(host, &WHICH, 0, None, DEADLINE).unwrap();
        assert_eq!(chosen.name.kind, EngineKind::Podman);
        let docker = engine::default_for(host, &WHICH, 0, Some(EngineKind::Docker), DEADLINE);
        let why = docker.unwrap_err().to_string();
        assert!(why.starts_with("no engine answers: docker at '/run/docker.sock': "), "{why}");
    });
}

#[test]
fn a_users_podman_makes_starts_and_finds_what_it_is_told_to() {
    let client = |test_box: &TestBox, host: &Host| {
        let uid = test_box.sh("id -u bob").parse().unwrap();
        engine::of_user(host, EngineKind::Podman, uid)
    };
    with_engine("made-bob", Kind::PodmanOfBob, client, |scene, _| {
        every_scene(scene, EngineKind::Podman);
    });
}
