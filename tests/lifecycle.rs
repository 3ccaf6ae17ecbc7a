//! Models on real engines: started, seen, stopped, and what becomes of them when something goes wrong on the way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    sync::LazyLock,
    time::Duration,
};

use serde_json::Value;
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind},
    ran::Ran,
    skip, wait_until,
};

/// The gate gives up soon, so that a test need not wait for what does not come.
const CONFIG: &str =
    "gate: { timeout: 1s, settle: 100ms }\ndefaults: { min_age: 0s, respawn_watch: 0s }\n";

/// A box with one engine that has the images.
struct House {
    engine: Engine<'static>,
    kind: &'static str,
}

fn house(name: &str, kind: Kind, word: &'static str) -> Result<House, String> {
    let test_box: &'static TestBox = Box::leak(Box::new(TestBox::boot(name)?));
    test_box.write("/etc/portreeve/config.yaml", CONFIG);
    test_box.sh("mkdir -p /srv/models && touch /srv/models/l.gguf");
    let engine = Engine::start(test_box, kind);
    engine.serve();
    engine.give_models();
    Ok(House { engine, kind: word })
}

static DOCKER: LazyLock<Result<House, String>> =
    LazyLock::new(|| house("lifecycle-docker", Kind::DockerSystemd, "docker"));
static PODMAN: LazyLock<Result<House, String>> =
    LazyLock::new(|| house("lifecycle-podman", Kind::Podman, "podman"));

impl House {
    fn test_box(&self) -> &'static TestBox {
        self.engine.test_box
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        self.test_box().command(&[&["/build/portreeve", "model"], words].concat())
    }

    fn model(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).stdin(Stdio::null()).output().unwrap())
    }

    /// Registers a model of vLLM's, whose server is told these options.
    #[track_caller]
    fn register(&self, name: &str, port: u16, options: &[&str]) {
        let port = port.to_string();
        let words = [
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
        let options: Vec<String> = options.iter().map(|o| format!("--extra-args={o}")).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.model(&[&words, &options[..]].concat()).ends_with(0);
    }

    /// What 'status' says of it.
    fn status(&self, name: &str) -> Value {
        let said = self.model(&["status", name, "--json"]);
        let all: Value = serde_json::from_str(&said.out).expect("a document");
        all["models"][0].clone()
    }

    #[track_caller]
    fn is(&self, name: &str, state: &str, why: &str) {
        let status = self.status(name);
        let said = status["why"].as_str().unwrap().to_owned();
        assert!(status["state"] == state && said.contains(why), "wanted '{why}': {status:#}");
    }

    fn wait_for(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) {
        wait_until(DEADLINE, &format!("model '{name}' {what}"), || is_so(&self.status(name)));
    }

    /// The kinds of what happened to it.
    fn events(&self, name: &str) -> Vec<String> {
        let said = self.model(&["events", name, "--json"]).ends_with(0);
        let all: Value = serde_json::from_str(&said.out).expect("a document");
        let kind = |event: &Value| event["kind"].as_str().unwrap().to_owned();
        all["events"].as_array().unwrap().iter().map(kind).collect()
    }

    fn container(name: &str) -> String {
        format!("vllm-model-{name}")
    }

    #[track_caller]
    fn nothing_is_left(&self, name: &str) {
        assert_eq!(self.engine.inspect(&Self::container(name)), Value::Null);
    }

    /// A start that goes on beside us.
    fn begins_to_start(&self, name: &str) -> Child {
        let mut start = self.command(&["start", name]);
        let piped = start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = piped.spawn().unwrap();
        self.engine.wait_for_status(&Self::container(name), "running");
        child
    }

    /// SIGUSR1: what its options leave to be told.
    fn tell(&self, name: &str) {
        self.engine.must(&["kill", "-s", "USR1", &Self::container(name)]);
    }
}

/// The same scene on either engine.
macro_rules! on_both {
    ($($(#[$doc:meta])* $name:ident $scene:ident;)*) => {
        mod docker {
            $(#[test] fn $name() { match &*super::DOCKER { Ok(house) => super::$scene(house), Err(why) => super::skip(why) } })*
        }
        mod podman {
            $(#[test] fn $name() { match &*super::PODMAN { Ok(house) => super::$scene(house), Err(why) => super::skip(why) } })*
        }
    };
}

on_both! {
    a_model_is_started_seen_and_stopped started;
    loading_is_no_failure_and_a_health_that_fails_is_seen loading;
    what_ends_at_its_start_is_told_with_its_last_words crashes;
    what_is_not_ready_in_time_is_taken_down never_ready;
    a_server_of_another_model_is_not_taken_for_it another_model;
    another_server_on_its_port_is_not_taken_for_it another_server;
    what_ignores_sigterm_is_killed_and_the_137_is_ours ignores_sigterm;
    what_somebody_killed_or_removed_is_told_apart somebody_else;
    a_start_that_died_is_seen_and_begun_anew start_that_died;
    somebody_elses_container_of_its_name_is_left_alone anothers_name;
    a_port_that_is_held_is_named_and_nothing_is_made held_port;
    an_image_that_is_not_there_is_said_with_what_to_do no_image;
    what_runs_is_stopped_before_it_is_unregistered unregistered;
    a_limit_that_its_engine_would_not_keep_is_no_start lost_limit;
    a_signal_while_its_health_is_asked_ends_a_start told_to_stop;
    what_an_image_handed_labels_on_to_is_not_ours handed_on;
    two_stops_side_by_side_both_see_it_down two_stops;
    what_is_declared_no_more_is_stopped_and_forgotten declared_no_more;
}

fn started(house: &House) {
    house.register("plain", 8201, &[]);
    let said = house.model(&["start", "plain"]).ends_with(0);
    assert_eq!(said.out, "model 'plain' is running on 127.0.0.1:8201\n");
    let status = house.status("plain");
    assert_eq!((&status["state"], &status["now"]["healthy"]), (&"running".into(), &true.into()));
    assert_eq!(status["now"]["container"], "vllm-model-plain");
    let seen = house.engine.inspect("vllm-model-plain");
    let policy = &seen["HostConfig"]["RestartPolicy"]["Name"];
    assert!(["", "no"].contains(&policy.as_str().unwrap()), "{policy}");
    assert_eq!(seen["Config"]["Labels"]["io.portreeve.model"], "plain");
    let said = house.model(&["start", "plain"]).ends_with(0);
    assert_eq!(said.out, "model 'plain' is running already on 127.0.0.1:8201\n");
    assert_eq!(house.model(&["health", "plain"]).ends_with(0).out, "plain: healthy\n");
    let mut watch = house.command(&["health", "plain", "--watch", "--interval", "50ms"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let two: Vec<String> = lines.take(2).map(Result::unwrap).collect();
    assert_eq!(two, ["plain: healthy", "plain: healthy"]);
    // Whoever read has seen enough.
    assert!(watch.wait().unwrap().success());
    let log = house.model(&["logs", "plain", "-n", "1"]).ends_with(0).out;
    assert!(log.contains("ready at 0.0.0.0:8000 with 'org/qwen'"), "{log}");
    let list = house.model(&["list"]).ends_with(0).out;
    assert!(list.contains("plain") && list.contains("running"), "{list}");

    let said = house.model(&["stop", "plain"]).ends_with(0).out;
    assert!(
        said.starts_with("model 'plain' is stopped: it left within its grace period"),
        "{said}"
    );
    house.nothing_is_left("plain");
    house.is("plain", "stopped", "left within its grace period");
    let expected = ["registered", "starting", "running", "stopping", "stopped"];
    assert_eq!(house.events("plain"), expected);
    let said = house.model(&["stop", "plain"]).ends_with(0).out;
    assert_eq!(said, "model 'plain' is stopped; nothing of it ran\n");
    assert_eq!(house.events("plain"), expected, "there was nothing to tell");
    house.model(&["health", "plain"]).ends_with(1);
}

fn loading(house: &House) {
    house.register("slow", 8202, &["--load-for", "usr1", "--health-fails-after", "usr1"]);
    house.model(&["unregister", "slow"]).ends_with(0);
    house.register("slow", 8202, &["--load-for", "usr1"]);
    let start = house.begins_to_start("slow");
    house.wait_for("slow", "is starting", |status| status["state"] == "starting");
    let again = house.model(&["start", "slow"]).ends_with(2);
    again.complains("it is starting, and from there it cannot become starting");
    house.tell("slow");
    Ran::of(&start.wait_with_output().unwrap()).ends_with(0);
    house.is("slow", "running", "");
    let mut follow = house.command(&["logs", "slow", "-f"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut written = BufReader::new(follow.stdout.take().unwrap());
    let mut log = String::new();
    written.read_line(&mut log).unwrap();
    house.model(&["stop", "slow"]).ends_with(0);
    written.read_to_string(&mut log).unwrap();
    follow.wait().unwrap();
    assert!(log.contains("ready") && log.contains("SIGTERM"), "{log}");

    house.register("sickly", 8203, &["--health-fails-after", "usr1"]);
    house.model(&["start", "sickly"]).ends_with(0);
    house.tell("sickly");
    house.wait_for("sickly", "is unhealthy", |status| status["now"]["healthy"] == false);
    house.model(&["status", "sickly"]).ends_with(1);
    let said = house.model(&["health", "sickly"]).ends_with(1).out;
    assert_eq!(said, "sickly: unhealthy: it answers 500\n");
    house.model(&["stop", "sickly"]).ends_with(0);
}

fn crashes(house: &House) {
    house.register("crash", 8204, &["--crash-at-start", "no-such-layer"]);
    let said = house.model(&["start", "crash"]).ends_with(1);
    let said = said.complains("model 'crash' did not start: it ended by itself, with exit code 3");
    said.complains("no-such-layer");
    house.is("crash", "failed", "it ended by itself, with exit code 3");
    house.nothing_is_left("crash");
    assert_eq!(house.events("crash"), ["registered", "starting", "failed"]);
    house.model(&["status", "crash"]).ends_with(1);
}

fn never_ready(house: &House) {
    house.register("late", 8205, &["--load-for", "usr1"]);
    house.model(&["unregister", "late"]).ends_with(0);
    let port = "8205";
    let words = [
        "register",
        "late",
        "--backend",
        "llamacpp",
        "--path",
        "/srv/models/l.gguf",
        "--models-dir",
        "/srv/models",
        "--container",
        "--image",
        "model-llamacpp",
        "--port",
        port,
        "--engine",
        house.kind,
        "--load-timeout",
        "1s",
        "--extra-args=--load-for",
        "--extra-args=usr1",
    ];
    house.model(&words).ends_with(0);
    let said = house.model(&["start", "late"]).ends_with(1);
    said.complains("it was not ready within 1 s; at last: loading (503)")
        .complains("'--load-timeout' gives it more time")
        .complains("llama-server: loading");
    house.is("late", "failed", "not ready within 1 s");
    assert_eq!(house.engine.inspect("llamacpp-model-late"), Value::Null);
}

fn another_model(house: &House) {
    house.register("other", 8206, &["--serve-id", "org/llama"]);
    let said = house.model(&["start", "other"]).ends_with(1);
    said.complains("it serves org/llama, not org/qwen");
    house.is("other", "failed", "it serves org/llama");
    house.nothing_is_left("other");
}

/// On the host's network somebody else binds its port while it loads, and answers in its place.
fn another_server(house: &House) {
    let words = [
        "register",
        "robbed",
        "--backend",
        "vllm",
        "--model",
        "org/qwen",
        "--container",
        "--image",
        "model-vllm",
        "--port",
        "8207",
        "--engine",
        house.kind,
        "--network",
        "host",
        "--extra-args=--never-listen",
    ];
    house.model(&words).ends_with(0);
    let start = house.begins_to_start("robbed");
    wait_until(DEADLINE, "it has bound its port", || {
        let log = house.engine.run(&["logs", &House::container("robbed")]);
        String::from_utf8_lossy(&[log.stdout, log.stderr].concat()).contains("never listens")
    });
    let test_box = house.test_box();
    test_box.sh(
        "mkdir -p /run/robber; ln -sf /build/examples/model-server /run/robber/vllm
         setsid /run/robber/vllm serve org/qwen --host 127.0.0.1 --port 8207 </dev/null >/dev/null 2>&1 &
         echo $! >/run/robber/pid",
    );
    let said = Ran::of(&start.wait_with_output().unwrap()).ends_with(1);
    said.complains("somebody else answers on 127.0.0.1:8207/tcp in its place");
    house.nothing_is_left("robbed");
    // Whoever did lives on.
    test_box.sh("kill $(cat /run/robber/pid)");
    house.is("robbed", "failed", "somebody else answers");
}

fn ignores_sigterm(house: &House) {
    house.register("deaf", 8208, &["--ignore-term"]);
    house.model(&["start", "deaf"]).ends_with(0);
    let said = house.model(&["stop", "deaf"]).ends_with(0).out;
    assert!(said.contains("portreeve had it killed (SIGKILL, exit code 137)"), "{said}");
    house.is("deaf", "stopped", "exit code 137");
    house.nothing_is_left("deaf");
}

fn somebody_else(house: &House) {
    house.register("victim", 8209, &[]);
    let container = House::container("victim");
    house.model(&["start", "victim"]).ends_with(0);
    house.engine.must(&["kill", &container]);
    house.engine.wait_for_status(&container, "exited");
    house.is(
        "victim",
        "failed",
        "somebody killed it with SIGKILL (exit code 137): neither portreeve",
    );
    house.model(&["start", "victim"]).ends_with(0);
    house.engine.must(&["stop", &container]);
    house.is("victim", "stopped", "it ended by itself, with exit code 0");
    house.model(&["start", "victim"]).ends_with(0);
    house.engine.must(&["kill", &container]);
    house.engine.must(&["rm", "-f", &container]);
    house.is("victim", "stopped", "somebody removed its container");
    let list = house.model(&["list"]).ends_with(0).out;
    assert!(list.contains("somebody removed its container"), "{list}");
}

fn start_that_died(house: &House) {
    house.register("orphaned", 8210, &["--load-for", "usr1"]);
    let container = House::container("orphaned");
    let start = house.begins_to_start("orphaned");
    let first = house.engine.inspect(&container)["Id"].clone();
    // The box's command is a shell around it: end the very process.
    let leader = house.test_box().sh("pgrep -f -x '/build/portreeve model start orphaned'");
    house.test_box().sh(&format!("kill -KILL {leader}"));
    start.wait_with_output().unwrap();
    house.is("orphaned", "failed", "its start was cut off, and its container was left running");
    let again = house.begins_to_start("orphaned");
    wait_until(DEADLINE, "the old container is replaced", || {
        let now = house.engine.inspect(&container);
        now["Id"].is_string() && now["Id"] != first && now["State"]["Running"] == true
    });
    house.tell("orphaned");
    Ran::of(&again.wait_with_output().unwrap()).ends_with(0);
    house.model(&["stop", "orphaned"]).ends_with(0);
    house.nothing_is_left("orphaned");
}

fn anothers_name(house: &House) {
    house.register("taken", 8211, &[]);
    let container = House::container("taken");
    house.engine.must(&[
        "run",
        "-d",
        "--name",
        &container,
        "model-vllm",
        "org/other",
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
    ]);
    let before = house.engine.inspect(&container)["Id"].clone();
    let said = house.model(&["start", "taken"]).ends_with(1);
    said.complains("there is a container 'vllm-model-taken', and portreeve did not make it");
    house.is("taken", "failed", "portreeve did not make it");
    house.model(&["stop", "taken"]).ends_with(0);
    let now = house.engine.inspect(&container);
    assert_eq!((&now["Id"], &now["State"]["Running"]), (&before, &true.into()));
    house.engine.must(&["rm", "-f", &container]);

    let sibling = ["--label", "io.portreeve.instance=5f2c", "--label", "io.portreeve.model=taken"];
    let run = ["run", "-d", "--name", &container];
    house.engine.must(
        &[&run, &sibling[..], &["model-vllm", "org/other", "--host", "0.0.0.0", "--port", "8000"]]
            .concat(),
    );
    let said = house.model(&["start", "taken"]).ends_with(1);
    said.complains("it is another portreeve installation's (5f2c)");
    assert_eq!(house.engine.status(&container), "running");
    house.engine.must(&["rm", "-f", &container]);
}

fn held_port(house: &House) {
    house.register("shut-out", 8212, &[]);
    let test_box = house.test_box();
    test_box.sh("setsid /build/examples/plant --listen 8212 </dev/null >/dev/null 2>&1 &
         mkdir -p /run/planted; echo $! >/run/planted/holder");
    wait_until(DEADLINE, "the port is held", || !test_box.can_bind(8212));
    let said = house.model(&["start", "shut-out"]).ends_with(1);
    said.complains("127.0.0.1:8212/tcp is not free").complains("pid");
    house.is("shut-out", "failed", "is not free");
    house.nothing_is_left("shut-out");
    let pid = test_box.sh("cat /run/planted/holder");
    test_box.sh(&format!("kill {pid}"));
}

fn no_image(house: &House) {
    house.register("bare", 8213, &[]);
    house.model(&["unregister", "bare"]).ends_with(0);
    let words = [
        "register",
        "bare",
        "--backend",
        "vllm",
        "--model",
        "org/qwen",
        "--container",
        "--image",
        "localhost/nobody-has-this:1",
        "--port",
        "8213",
        "--engine",
        house.kind,
    ];
    house.model(&words).ends_with(0);
    let said = house.model(&["start", "bare"]).ends_with(1);
    said.complains("does not have the image 'localhost/nobody-has-this:1'").complains("pull");
}

/// Either is right: a limit that holds, or no start.
fn lost_limit(house: &House) {
    let words = [
        "register",
        "bounded",
        "--backend",
        "vllm",
        "--model",
        "org/qwen",
        "--container",
        "--image",
        "model-vllm",
        "--port",
        "8299",
        "--engine",
        house.kind,
        "--memory",
        "256M",
    ];
    house.model(&words).ends_with(0);
    let controllers = house.test_box().sh("cat /sys/fs/cgroup/cgroup.controllers");
    if controllers.split_whitespace().any(|controller| controller == "memory") {
        house.model(&["start", "bounded"]).ends_with(0);
        let seen = house.engine.inspect(&House::container("bounded"));
        assert_eq!(seen["HostConfig"]["Memory"], 256 << 20);
        house.model(&["stop", "bounded"]).ends_with(0);
    } else {
        let said = house.model(&["start", "bounded"]).ends_with(1);
        let words = ["limit", "memory", "cgroup"];
        assert!(words.iter().any(|word| said.err.contains(word)), "{}", said.err);
    }
    house.nothing_is_left("bounded");
}

fn unregistered(house: &House) {
    house.register("brief", 8214, &[]);
    house.model(&["start", "brief"]).ends_with(0);
    let said = house.model(&["unregister", "brief"]).ends_with(0).out;
    assert!(said.contains("is stopped") && said.contains("is registered no more"), "{said}");
    house.nothing_is_left("brief");
    house.model(&["start", "brief"]).ends_with(2).complains("no model 'brief'");
    assert_eq!(house.events("brief").last().unwrap(), "unregistered");
}

/// Its health endpoint takes the question and says nothing: nearly all the time an answer is waited for.
fn told_to_stop(house: &House) {
    house.register("mute", 8215, &["--hang-health-after", "0"]);
    let mut start = house.begins_to_start("mute");
    let pid = "pgrep -f -x '/build/portreeve model start mute'";
    house.test_box().sh(&format!("sleep 1; kill -INT $({pid})"));
    wait_until(DEADLINE, "the start ends", || start.try_wait().unwrap().is_some());
    let said = Ran::of(&start.wait_with_output().unwrap()).ends_with(1);
    said.complains("a signal ended the start");
    house.is("mute", "failed", "a signal ended the start");
    house.nothing_is_left("mute");
}

/// Who runs an image that was made of a model's container has its labels, too.
fn handed_on(house: &House) {
    house.register("origin", 8216, &[]);
    house.model(&["start", "origin"]).ends_with(0);
    let labels = house.engine.inspect("vllm-model-origin")["Config"]["Labels"].clone();
    let labels: Vec<String> = labels
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| format!("--label={key}={}", value.as_str().unwrap()))
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let run = ["run", "-d", "--name", "somebodys-copy"];
    let server = ["model-vllm", "org/other", "--host", "0.0.0.0", "--port", "8000"];
    house.engine.must(&[&run, &labels[..], &server].concat());
    house.model(&["stop", "origin"]).ends_with(0);
    house.nothing_is_left("origin");
    house.model(&["start", "origin"]).ends_with(0);
    house.model(&["stop", "origin"]).ends_with(0);
    assert_eq!(house.engine.status("somebodys-copy"), "running");
    house.engine.must(&["rm", "-f", "somebodys-copy"]);
}

fn two_stops(house: &House) {
    house.register("twice", 8217, &["--slow-stop", "1"]);
    house.model(&["start", "twice"]).ends_with(0);
    let mut first = house.command(&["stop", "twice"]);
    let piped = first.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let first = piped.spawn().unwrap();
    house.wait_for("twice", "is stopping", |status| status["state"] == "stopping");
    house.model(&["stop", "twice"]).ends_with(0);
    Ran::of(&first.wait_with_output().unwrap()).ends_with(0);
    house.is("twice", "stopped", "");
    house.nothing_is_left("twice");
}

/// Its declaration is taken out while it runs.
fn declared_no_more(house: &House) {
    let file = format!("/etc/{}.yaml", house.kind);
    let model = "backend: vllm, model: org/qwen, container: true, image: model-vllm, port: 8218";
    let test_box = house.test_box();
    let declared = format!("{CONFIG}models:\n  lent: {{ {model}, engine: {} }}\n", house.kind);
    test_box.write(&file, &declared);
    let model = |words: &[&str]| {
        let words = [&["/build/portreeve", "model", "--config", &file], words].concat();
        Ran::of(&test_box.command(&words).stdin(Stdio::null()).output().unwrap())
    };
    model(&["start", "lent"]).ends_with(0);
    let said = model(&["unregister", "lent"]).ends_with(2);
    said.complains("not registered, but declared");
    test_box.write(&file, CONFIG);
    // The others of this box are other scenes'.
    let said = model(&["stop", "lent"]).ends_with(0).out;
    assert!(said.contains("left within its grace period"), "{said}");
    house.nothing_is_left("lent");
    model(&["unregister", "lent"]).ends_with(0);
    model(&["start", "lent"]).ends_with(2).complains("no model 'lent'");
}

// ---- what befalls all of them: in boxes of their own

/// All at once: the shutdown hook.
fn stops_all(house: &House) {
    for (name, port, options) in
        [("a", 8301, &[][..]), ("b", 8302, &["--ignore-term"]), ("c", 8303, &["--slow-stop", "1"])]
    {
        house.register(name, port, options);
    }
    house.register("idle", 8304, &[]);
    let said = house.model(&["start", "a", "b", "c"]).ends_with(0).out;
    assert_eq!(said.lines().count(), 3, "{said}");
    let said = house.model(&["stop", "--all"]).ends_with(0).out;
    assert!(said.contains("Models stopped: 3; none is left"), "{said}");
    for name in ["a", "b", "c", "idle"] {
        house.is(name, "stopped", "");
        house.nothing_is_left(name);
    }
    // Those that ignore everything have half of what there is.
    house.model(&["start", "b"]).ends_with(0);
    let began = std::time::Instant::now();
    house.model(&["stop", "--all", "--timeout", "2s"]).ends_with(0);
    assert!(began.elapsed() < Duration::from_secs(5), "its grace period alone is as long");
    house.nothing_is_left("b");
}

/// An engine's restart starts no model, and is seen as what it was.
fn engine_restarts(house: &House) {
    house.model(&["start", "a"]).ends_with(0);
    let test_box = house.test_box();
    test_box.sh("systemctl restart docker");
    house.is("a", "stopped", "");
    assert_eq!(house.engine.status("vllm-model-a"), "exited");
    house.model(&["start", "a"]).ends_with(0);
    test_box.sh("systemctl stop docker.socket docker containerd");
    let said = house.model(&["status", "a"]).ends_with(1);
    assert!(said.out.contains("what it is doing is not known"), "{}", said.out);
    house.model(&["start", "idle"]).ends_with(2).complains("no engine answers");
    house.is("idle", "failed", "no engine answers");
    // Nothing of it was ever started.
    house.model(&["unregister", "idle"]).ends_with(0);
    test_box.sh("systemctl start docker");
}

/// While its engine hangs, nobody says that a model runs, or that it does not; not even where another engine answers.
fn engine_hangs(house: &House) {
    let test_box = house.test_box();
    let words =
        "register hung --backend vllm --model org/qwen --container --image model-vllm --port 8305";
    house.model(&words.split(' ').collect::<Vec<_>>()).ends_with(0);
    house.model(&["start", "hung"]).ends_with(0);
    let podman = Engine::start(test_box, Kind::Podman);
    podman.serve();
    let daemon = test_box.sh("systemctl show -P MainPID docker");
    test_box.sh(&format!("kill -STOP {daemon}"));
    let said = house.model(&["start", "hung"]).ends_with(2);
    said.complains("recorded as running, and whether it is cannot be seen");
    for _ in 0..2 {
        let stop = house.model(&["stop", "hung"]).ends_with(2);
        stop.complains("no engine answers: docker");
        house.is("hung", "failed", "no engine answers");
    }
    house.model(&["unregister", "hung"]).ends_with(2).complains("stays registered");
    test_box.sh(&format!("kill -CONT {daemon}"));
    assert_eq!(house.engine.status("vllm-model-hung"), "running");
    house.model(&["stop", "hung"]).ends_with(0);
    house.nothing_is_left("hung");

    // In the middle of a start: whoever answers then is nobody else for that.
    house.register("stuck", 8307, &["--load-for", "3"]);
    let start = house.begins_to_start("stuck");
    test_box.sh(&format!("kill -STOP {daemon}"));
    let said = Ran::of(&start.wait_with_output().unwrap()).ends_with(2);
    said.complains("whether it is the one who answers on 127.0.0.1:8307/tcp is not known")
        .complains("'portreeve model stop' tries again");
    test_box.sh(&format!("kill -CONT {daemon}"));
    house.model(&["stop", "stuck"]).ends_with(0);
    house.nothing_is_left("stuck");
}

/// Of a start that a stop took over, nobody says that somebody killed it.
fn taken_over(house: &House) {
    house.register("revoked", 8308, &["--load-for", "usr1"]);
    let start = house.begins_to_start("revoked");
    house.model(&["stop", "revoked"]).ends_with(0);
    let said = Ran::of(&start.wait_with_output().unwrap()).ends_with(2);
    said.complains("another command took model 'revoked' over meanwhile");
    house.is("revoked", "stopped", "");
    house.nothing_is_left("revoked");
}

/// A model takes several descriptors, and a service has 1,024 unless it asks for more.
fn many_are_stopped(house: &House) {
    let register = "for n in $(seq 60); do /build/portreeve model register many$n --backend vllm --model org/qwen \
                    --container --port $((20000 + n)); done";
    house.test_box().sh(register);
    let stop = house.test_box().sh("ulimit -Sn 200; /build/portreeve model stop --all");
    assert!(stop.contains("none is left"), "{stop}");
}

/// What is declared no more is part of all that may run.
fn all_are_more_than_are_wanted(house: &House) {
    let test_box = house.test_box();
    let model = "backend: vllm, model: org/qwen, container: true, image: model-vllm, port: 8306";
    let config = "/etc/portreeve/config.yaml";
    test_box.write(config, &format!("{CONFIG}models:\n  lent: {{ {model} }}\n"));
    house.model(&["start", "lent"]).ends_with(0);
    test_box.write(config, CONFIG);
    let said = house.model(&["stop", "--all"]).ends_with(0).out;
    assert!(said.contains("model 'lent' is stopped: it left"), "{said}");
    house.nothing_is_left("lent");
}

/// A registry that cannot be written keeps nobody from stopping a model.
fn stops_unrecorded(house: &House) {
    house.model(&["start", "a"]).ends_with(0);
    let test_box = house.test_box();
    test_box.sh("mount --bind /var/lib/portreeve /var/lib/portreeve
                 mount -o remount,bind,ro /var/lib/portreeve");
    let said = house.model(&["status", "a"]).ends_with(0);
    assert!(
        said.out.contains("running") && said.err.contains("not held against what runs"),
        "{}",
        said.err
    );
    let said = house.model(&["stop", "a"]).ends_with(2);
    let said = said.complains("it left within its grace period");
    said.complains("but that could not be put on record");
    house.nothing_is_left("a");
    test_box.sh("umount /var/lib/portreeve");
    house.is("a", "stopped", "somebody removed its container");
}

/// A new boot: nothing runs, and nothing is started.
fn host_reboots(house: &House) {
    house.model(&["start", "a"]).ends_with(0);
    let test_box = house.test_box();
    test_box.sh("docker kill vllm-model-a; cat /proc/sys/kernel/random/uuid >/run/boot_id
         mount --bind /run/boot_id /proc/sys/kernel/random/boot_id");
    house.is("a", "stopped", "the host was restarted, and nothing starts by itself");
    test_box.sh("umount /proc/sys/kernel/random/boot_id");
}

#[test]
fn all_are_stopped_together_and_no_restart_of_engine_or_host_starts_one() {
    match house("lifecycle-all", Kind::DockerSystemd, "docker") {
        Ok(house) => {
            stops_all(&house);
            engine_restarts(&house);
            host_reboots(&house);
            stops_unrecorded(&house);
            engine_hangs(&house);
            taken_over(&house);
            all_are_more_than_are_wanted(&house);
            many_are_stopped(&house);
        }
        Err(why) => skip(&why),
    }
}
