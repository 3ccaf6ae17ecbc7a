//! `model start` and `model stop`: containers of Docker's and Podman's without units, a process and a container of units. One
//! registry, one engine of each kind for all moments.

use std::{net::SocketAddr, process::Stdio};

use serde_json::Value;

use crate::{
    Kill, Scene,
    dice::Dice,
    moment::{Killed, Run},
    registry::Stand,
    support::{
        DEADLINE, TestBox,
        engines::{Engine, Kind},
        model::ask_in,
        packaging,
        ran::Ran,
        wait_until,
    },
};

const CONFIG: &str =
    "gate: { timeout: 2s, settle: 50ms }\ndefaults: { min_age: 0s, respawn_watch: 0s }\n";

/// Sooner than a person would want it, and as often as it takes: what is counted here are kills, not restarts.
const SOON: &str = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\n";

/// A model, and what keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    name: &'static str,
    port: u16,
    engine: Option<&'static str>,
    has_unit: bool,
}

const MODELS: [Kept; 4] = [
    Kept { name: "docker", port: 8801, engine: Some("docker"), has_unit: false },
    Kept { name: "podman", port: 8802, engine: Some("podman"), has_unit: false },
    Kept { name: "process", port: 8803, engine: None, has_unit: true },
    Kept { name: "unit", port: 8804, engine: Some("docker"), has_unit: true },
];

impl Kept {
    fn container(self) -> String {
        format!("vllm-model-{}", self.name)
    }

    fn unit(self) -> String {
        format!("portreeve-model-{}.service", self.name)
    }
}

pub(crate) struct House<'a> {
    test_box: &'a TestBox,
    docker: Engine<'a>,
    podman: Engine<'a>,
    /// Of a box without a model.
    files: String,
}

const FOLDERS: &str = "ls -A /var/lib/portreeve /run/portreeve /etc/systemd/system /run/systemd/transient 2>/dev/null | \
                       grep -v -e '^models.db' -e '^session-.*scope$' -e '^docker-' -e '^libpod-' -e '^crun-' || true";

impl<'a> House<'a> {
    pub(crate) fn build(test_box: &'a TestBox) -> Self {
        test_box.write("/run/systemd/system/portreeve-model-.service.d/soon.conf", SOON);
        test_box.sh("mkdir -p /srv/models && touch /srv/models/l.gguf
             ln -s /build/examples/model-server /usr/local/bin/llama-server");
        packaging::install(test_box, CONFIG);
        let (docker, podman) =
            (Engine::start(test_box, Kind::DockerSystemd), Engine::start(test_box, Kind::Podman));
        for engine in [&docker, &podman] {
            engine.serve();
            engine.give_model("model-vllm", "vllm", "");
        }
        let mut house = Self { test_box, docker, podman, files: String::new() };
        for kept in MODELS {
            house.register(kept);
            // What is made at the first start is there from now on.
            house.model(&["start", kept.name]).ends_with(0);
            house.model(&["stop", kept.name]).ends_with(0);
        }
        house.files = house.test_box.sh(FOLDERS);
        house
    }

    fn register(&self, kept: Kept) {
        let words = Self::wanted(kept);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.model(&words).ends_with(0);
    }

    fn wanted(kept: Kept) -> Vec<String> {
        let port = kept.port.to_string();
        let mut words = vec!["register", kept.name, "--port", &port];
        match kept.engine {
            Some(engine) => words.extend([
                "--backend",
                "vllm",
                "--model",
                "org/qwen",
                "--container",
                "--image",
                "model-vllm",
                "--engine",
                engine,
            ]),
            None => words.extend(["--backend", "llamacpp", "--path", "/srv/models/l.gguf"]),
        }
        if !kept.has_unit {
            words.push("--no-unit");
        }
        let watched = ["--health-delay", "50ms", "--health-interval", "100ms"];
        let options = [
            "--extra-args=--load-for",
            "--extra-args=0.2",
            "--extra-args=--slow-stop",
            "--extra-args=0.1",
        ];
        [&words[..], &watched, &options].concat().into_iter().map(str::to_owned).collect()
    }

    fn portreeve(&self, words: &[&str]) -> Ran {
        let mut command =
            self.test_box.command(&[&["timeout", "60", "/usr/bin/portreeve"], words].concat());
        Ran::of(&command.stdin(Stdio::null()).output().unwrap())
    }

    fn model(&self, words: &[&str]) -> Ran {
        self.portreeve(&[&["model"], words].concat())
    }

    fn engine(&self, kept: Kept) -> Option<&Engine<'a>> {
        let engine = kept.engine?;
        Some(if engine == "docker" { &self.docker } else { &self.podman })
    }

    /// `running`, `created`, …; empty where there is none.
    fn container(&self, kept: Kept) -> String {
        self.engine(kept).map(|engine| engine.status(&kept.container())).unwrap_or_default()
    }

    fn serves(&self, kept: Kept) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], kept.port));
        ask_in(self.test_box, address, "/health").status() == Some(200)
    }

    fn status(&self, kept: Kept) -> (String, Value) {
        let ran = self.model(&["status", kept.name, "--json"]);
        assert!([0, 1].contains(&ran.code), "'model status': {ran:?}");
        let all: Value = serde_json::from_str(&ran.out).expect("a document");
        (all["models"][0]["state"].as_str().expect("a state").to_owned(), all["models"][0].clone())
    }

    /// What everybody may ask after a kill, and what they must be told: nothing is on its way that nobody leads.
    fn all_verbs_answer(&self, kept: Kept) {
        let mut status = self.status(kept);
        if kept.has_unit {
            // systemd goes on with what it was told, and may not have seen yet who was killed.
            wait_until(DEADLINE * 2, &format!("the unit of '{}' is at rest", kept.name), || {
                status = self.status(kept);
                match status.0.as_str() {
                    "starting" | "stopping" => false,
                    "running" => self.serves(kept),
                    _ => true,
                }
            });
        }
        let (state, now) = status;
        let container = self.container(kept);
        match state.as_str() {
            "running" => assert!(self.serves(kept), "it is said to run: {now:#}"),
            "stopped" => {
                assert!(
                    !self.serves(kept) && container != "running",
                    "it is said to be stopped: {container}, {now:#}"
                );
            }
            "failed" => {}
            other => panic!("'{other}', and nobody leads it: {now:#}"),
        }
        // What is left of it has a name.
        if !container.is_empty() && state != "running" && !kept.has_unit {
            let clean = self.model(&["clean"]);
            assert!(
                clean.out.contains(&kept.container()),
                "'model clean' does not name it: {clean:?}"
            );
        }
        let port = kept.port.to_string();
        for words in [
            &["model", "list"][..],
            &["scan"],
            &["gate", "--port", &port, "--timeout", "0s"],
            &["explain", &port],
        ] {
            let ran = self.portreeve(words);
            assert!([0, 1].contains(&ran.code), "{words:?} when it is {state}: {ran:?}");
        }
    }

    fn nothing_is_left(&self, kept: Kept) {
        assert_eq!(self.container(kept), "", "its container");
        assert!(self.test_box.can_bind(kept.port), "port {} is free", kept.port);
        if kept.has_unit {
            let unit = kept.unit();
            let active = self.test_box.sh(&format!("systemctl show -P ActiveState {unit}"));
            // Where a step of its was killed systemd keeps that in mind until its next start.
            assert!(["inactive", "failed"].contains(&active.as_str()), "{active}");
            let group = format!("/sys/fs/cgroup/system.slice/{unit}/cgroup.procs");
            assert_eq!(
                self.test_box.sh(&format!("cat {group} 2>/dev/null || true")),
                "",
                "processes of its unit"
            );
        }
    }

    /// Kills this verb on its way and does it again.
    fn torn(&self, kept: Kept, verb: &str, dice: &mut Dice, kill: &mut Kill<'_>) {
        let looks_between = dice.one_in(2);
        let words = ["/usr/bin/portreeve", "model", verb, kept.name].map(str::to_owned).to_vec();
        let group = kept.has_unit.then(|| format!("/sys/fs/cgroup/system.slice/{}", kept.unit()));
        let before = Stand::of(self.test_box);
        let killed: Killed =
            kill.run(dice, &format!("{verb}:{}", kept.name), &Run { words, by: &[], group });
        let (goal, said) =
            if verb == "stop" { ("stopped", "is stopped") } else { ("running", "is running") };
        if !kept.has_unit {
            // With a unit, others go on writing.
            let torn = Stand::of(self.test_box);
            torn.continues(&before);
            // What was said is so.
            assert!(!killed.out.contains(said) || torn.state(kept.name) == goal, "{killed:?}");
        }
        assert_eq!(killed.left, [""; 0], "children of ours");
        if looks_between {
            self.all_verbs_answer(kept);
        }
        let again = self.model(&[verb, kept.name]);
        assert_eq!(again.code, 0, "the next one: {again:?}; the killed one: {killed:?}");
        assert!(again.out.contains(said), "{again:?}");
        let stand = Stand::of(self.test_box);
        stand.continues(&before);
        assert_eq!(stand.state(kept.name), goal, "{again:?}");
    }
}

/// Without engines: a process whose server is never ready.
pub(crate) fn waits_for_ever(test_box: &TestBox) {
    test_box.sh("mkdir -p /srv/models && touch /srv/models/l.gguf
         ln -s /build/examples/model-server /usr/local/bin/llama-server");
    packaging::install(test_box, CONFIG);
    test_box.sh(
        "/usr/bin/portreeve model register slow --backend llamacpp --path /srv/models/l.gguf --port 8805 \
         --extra-args=--load-for --extra-args=usr1",
    );
    let word = "/run/killer.json";
    let start = format!(
        "timeout 60 /build/examples/killer --word {word} --after 1500000 -- /usr/bin/portreeve model start slow"
    );
    test_box.sh(&start);
    let said = test_box.sh(&format!("cat {word}"));
    let said: Value = serde_json::from_str(&said).expect("its word");
    assert_eq!(said["end"], "killed at a time", "{said}");
    assert_eq!(said["left"], serde_json::json!([]));
    // What it had asked systemd for goes on, and is stopped by the next who wants that.
    let unit = "portreeve-model-slow.service";
    assert_eq!(test_box.sh(&format!("systemctl show -P ActiveState {unit}")), "activating");
    test_box.sh("timeout 60 /usr/bin/portreeve model stop slow");
    assert_eq!(test_box.sh(&format!("systemctl show -P ActiveState {unit}")), "inactive");
}

impl House<'_> {
    /// Kills a registration, then the end of it: a model is registered with its unit, or not at all.
    fn torn_registration(&self, dice: &mut Dice, kill: &mut Kill<'_>) {
        let kept = Kept { name: "extra", port: 8806, engine: None, has_unit: true };
        let unit = self.test_box.inside(&format!("/etc/systemd/system/{}", kept.unit()));
        let before = Stand::of(self.test_box);
        for (what, words, refusal) in [
            ("register", Self::wanted(kept), "there is a model 'extra' already"),
            ("unregister", vec!["unregister".to_owned(), kept.name.to_owned()], "no model 'extra'"),
        ] {
            let run =
                ["/usr/bin/portreeve", "model"].map(str::to_owned).into_iter().chain(words.clone());
            let run = Run { words: run.collect(), by: &[], group: None };
            let killed = kill.run(dice, what, &run);
            Stand::of(self.test_box).continues(&before);
            assert_eq!(killed.left, [""; 0], "children of ours");
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let again = self.model(&words);
            let is_done = again.code == 0 || again.err.contains(refusal);
            assert!(is_done, "the next one: {again:?}; the killed one: {killed:?}");
            let is_registered =
                Stand::of(self.test_box).models.iter().any(|(name, _)| name == kept.name);
            assert_eq!(
                (is_registered, unit.exists()),
                (what == "register", what == "register"),
                "{again:?}; {killed:?}"
            );
        }
    }
}

impl Scene for House<'_> {
    fn play(&mut self, dice: &mut Dice, kill: &mut Kill<'_>) {
        let kept = dice.pick(&MODELS);
        self.torn(kept, "start", dice, kill);
        assert!(self.serves(kept), "it serves");
        assert_eq!(self.status(kept).0, "running");
        if dice.one_in(4) {
            self.torn(kept, "restart", dice, kill);
            assert!(self.serves(kept), "it serves");
        }
        self.torn(kept, "stop", dice, kill);
        self.torn_registration(dice, kill);
        self.nothing_is_left(kept);
        assert_eq!(self.status(kept).0, "stopped");
        assert_eq!(self.test_box.sh(FOLDERS), self.files, "files that were not there");
    }
}
