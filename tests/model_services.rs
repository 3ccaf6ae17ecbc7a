//! Models as services of a real systemd: started, stopped, restarted, given up, and what becomes of them when any part of them is
//! killed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{process::Stdio, sync::LazyLock};

use serde_json::Value;
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind},
    packaging,
    ran::Ran,
    skip, wait_until,
};

const CONFIG: &str =
    "gate: { timeout: 0s, settle: 50ms }\ndefaults: { min_age: 0s, respawn_watch: 0s }\n";

/// Sooner than a person would want it: what is counted and in which order is as it is shipped.
const SOON: &str =
    "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n[Service]\nRestartSec=100ms\n";

/// A box with systemd, the shipped units, and llama-server in its PATH.
struct House {
    test_box: &'static TestBox,
    /// Docker with the images, in one of them.
    engine: Option<Engine<'static>>,
}

static HOUSE: LazyLock<Result<House, String>> = LazyLock::new(|| {
    let mut house = build("model-services")?;
    let engine = Engine::start(house.test_box, Kind::DockerSystemd);
    engine.serve();
    engine.give_models();
    house.engine = Some(engine);
    Ok(house)
});

fn build(name: &str) -> Result<House, String> {
    let test_box: &'static TestBox = Box::leak(Box::new(TestBox::boot(name)?));
    test_box.write("/run/systemd/system/portreeve-model-.service.d/soon.conf", SOON);
    test_box.sh("mkdir -p /srv/models && touch /srv/models/l.gguf
         ln -s /build/examples/model-server /usr/local/bin/llama-server");
    packaging::install(test_box, CONFIG);
    // What a model's main process goes by is handed to it.
    test_box.sh("chmod 600 /etc/portreeve/config.yaml");
    Ok(House { test_box, engine: None })
}

fn house() -> Option<&'static House> {
    HOUSE.as_ref().map_err(|reason| skip(reason)).ok()
}

/// Watched closely, so that a test need not wait.
const WATCHED: [&str; 6] =
    ["--health-delay", "50ms", "--health-interval", "100ms", "--health-failures", "2"];

impl House {
    fn test_box(&self) -> &'static TestBox {
        self.test_box
    }

    fn docker(&self) -> &Engine<'static> {
        self.engine.as_ref().expect("this one has Docker")
    }

    fn model(&self, words: &[&str]) -> Ran {
        let mut command =
            self.test_box().command(&[&["/usr/bin/portreeve", "model"], words].concat());
        Ran::of(&command.stdin(Stdio::null()).output().unwrap())
    }

    #[track_caller]
    fn register(&self, name: &str, port: u16, words: &[&str], options: &[&str]) {
        let port = port.to_string();
        let options: Vec<String> = options.iter().map(|o| format!("--extra-args={o}")).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let first = ["register", name, "--port", &port];
        self.model(&[&first[..], words, &WATCHED, &options].concat())
            .ends_with(0)
            .says(&format!("portreeve-model-{name}.service"));
    }

    #[track_caller]
    fn native(&self, name: &str, port: u16, options: &[&str]) {
        self.register(
            name,
            port,
            &["--backend", "llamacpp", "--path", "/srv/models/l.gguf"],
            options,
        );
    }

    #[track_caller]
    fn contained(&self, name: &str, port: u16, options: &[&str]) {
        let words = ["--backend", "vllm", "--model", "org/qwen", "--container"];
        let more = ["--image", "model-vllm", "--engine", "docker"];
        self.register(name, port, &[&words[..], &more].concat(), options);
    }

    fn status(&self, name: &str) -> Value {
        let said = self.model(&["status", name, "--json"]);
        let all: Value = serde_json::from_str(&said.out).expect(&said.err);
        all["models"][0].clone()
    }

    #[track_caller]
    fn wait_for(&self, name: &str, state: &str, why: &str) {
        wait_until(DEADLINE, &format!("model '{name}' is {state}: {why}"), || {
            let status = self.status(name);
            status["state"] == state && status["why"].as_str().unwrap().contains(why)
        });
    }

    /// What happened to it, `KIND: DETAIL`.
    fn events(&self, name: &str) -> Vec<String> {
        let said = self.model(&["events", name, "--json"]).ends_with(0);
        let all: Value = serde_json::from_str(&said.out).expect("a document");
        let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
        let line = |event: &Value| format!("{}: {}", text(event, "kind"), text(event, "detail"));
        all["events"].as_array().unwrap().iter().map(line).collect()
    }

    #[track_caller]
    fn wait_for_event(&self, name: &str, text: &str) {
        wait_until(DEADLINE, &format!("'{text}' of model '{name}'"), || {
            self.events(name).iter().any(|event| event.contains(text))
        });
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.test_box().sh(&format!("systemctl show --property={name} --value {unit}"))
    }

    fn main_pid(&self, name: &str) -> u32 {
        self.property(&unit(name), "MainPID").parse().unwrap()
    }

    /// Its server, the child of its main process.
    fn server(&self, name: &str) -> u32 {
        let main = self.main_pid(name);
        self.test_box()
            .sh(&format!("cat /proc/{main}/task/{main}/children"))
            .trim()
            .parse()
            .unwrap()
    }

    fn kill(&self, signal: &str, pid: u32) {
        self.test_box().sh(&format!("kill -{signal} {pid}"));
    }

    fn lives(&self, pid: u32) -> bool {
        self.test_box().stat(pid).is_some()
    }

    #[track_caller]
    fn nothing_is_left(&self, name: &str, port: u16) {
        let unit = unit(name);
        let group = format!("/sys/fs/cgroup/system.slice/{unit}/cgroup.procs");
        let inside = self.test_box().sh(&format!(
            "for pid in $(cat {group} 2>/dev/null); do tr '\\0' ' ' </proc/$pid/cmdline || true; done"
        ));
        assert_eq!(inside, "", "processes of {unit}");
        assert!(self.test_box().can_bind(port), "port {port} is free");
        if let Some(engine) = &self.engine {
            assert_eq!(engine.inspect(&format!("vllm-model-{name}")), Value::Null);
        }
    }

    /// Further lines for a model's unit.
    fn change(&self, name: &str, text: &str) {
        self.test_box().write(&format!("/run/systemd/system/{}.d/test.conf", unit(name)), text);
        self.test_box().sh("systemctl daemon-reload");
    }

    /// Somebody else's server.
    fn stranger(&self, port: u16) -> u32 {
        let server = format!(
            "/build/examples/plant --as stranger --listen {port} --ready /run/planted/stranger-{port}"
        );
        self.test_box().write(
            &format!("/run/systemd/system/stranger-{port}.service"),
            &format!("[Service]\nExecStart={server}\n"),
        );
        self.test_box()
            .sh(&format!("rm -f /run/planted/stranger-{port}; systemctl start stranger-{port}"));
        self.test_box().planted(&format!("stranger-{port}"))
    }
}

fn unit(name: &str) -> String {
    format!("portreeve-model-{name}.service")
}

#[test]
fn a_process_is_started_kept_up_and_stopped_by_its_unit() {
    let Some(house) = house() else { return };
    house.native("plain", 8701, &["--child"]);
    house.model(&["start", "plain"]).ends_with(0).says("is running on 127.0.0.1:8701");
    house.model(&["start", "plain"]).ends_with(0).says("is running already");
    let (wrapper, server) = (house.main_pid("plain"), house.server("plain"));
    let uid = house.test_box().sh(&format!("stat --format=%u /proc/{server}"));
    assert_ne!(uid, "0", "it runs as a user of its own");
    let rights = house.test_box().sh(&format!("grep CapEff /proc/{wrapper}/status"));
    assert!(rights.ends_with("0000000000000000"), "{rights}");
    house.model(&["logs", "plain"]).ends_with(0).says("ready");
    // Its unit's commands are its unit's.
    house.model(&["step", "down", "plain"]).ends_with(1).complains("none runs it");
    house.wait_for("plain", "running", "");

    house.kill("KILL", server);
    house.wait_for_event(
        "plain",
        "starting: systemd restarts it, 1 in a row by now: its server ended by itself",
    );
    house.wait_for("plain", "running", "");
    let again = house.main_pid("plain");
    assert_ne!(again, wrapper);
    house.kill("KILL", again);
    house.wait_for_event("plain", "failed: ");
    house.wait_for("plain", "running", "");
    assert!(house.events("plain").iter().any(|e| e.contains("SIGKILL ended its main process")));

    house.model(&["stop", "plain"]).ends_with(0).says("told to stop");
    assert_eq!(house.property(&unit("plain"), "ActiveState"), "inactive");
    house.nothing_is_left("plain", 8701);
    house.wait_for("plain", "stopped", "told to stop");
    house.model(&["unregister", "plain"]).ends_with(0);
    let file =
        house.test_box().run(&["test", "-e", &format!("/etc/systemd/system/{}", unit("plain"))]);
    assert!(!file.status.success(), "its unit is gone");
}

#[test]
fn one_that_is_sick_is_restarted() {
    let Some(house) = house() else { return };
    house.native("sick", 8702, &["--health-fails-after", "usr1"]);
    house.model(&["start", "sick"]).ends_with(0);
    house.kill("USR1", house.server("sick"));
    house.wait_for_event("sick", "failed: 2 times in a row: ");
    house.wait_for("sick", "running", "");
    house.model(&["stop", "sick"]).ends_with(0);
}

#[test]
fn one_that_never_comes_up_is_given_up() {
    // Whoever has systemd read its files anew starts its count anew: nobody does here.
    let house = match build("model-given-up") {
        Ok(house) => house,
        Err(reason) => return skip(&reason),
    };
    house.native("broken", 8703, &["--crash-at-start", "no weights"]);
    let started = house.model(&["start", "broken"]).ends_with(1);
    started.complains("its server ended by itself: exit status: 3").complains("no weights");
    wait_until(DEADLINE, "systemd gives it up", || {
        house.property(&unit("broken"), "ActiveState") == "failed"
    });
    let starts = house.events("broken").iter().filter(|e| e.starts_with("starting")).count();
    assert_eq!(starts, 3, "{:?}", house.events("broken"));
    house.wait_for("broken", "failed", "its server ended by itself");
    house.model(&["status", "broken"]).ends_with(1).says("systemd has given it up");
    // Asked for by a person, it is tried again.
    house.model(&["start", "broken"]).ends_with(1).complains("no weights");
    house.model(&["stop", "broken"]).ends_with(0);
    house.nothing_is_left("broken", 8703);
}

#[test]
fn a_stranger_on_its_port_blocks_it_once_and_nothing_loops() {
    let Some(house) = house() else { return };
    let stranger = house.stranger(8704);
    house.change("blocked", "[Service]\nRestartSec=2s\n");
    house.native("blocked", 8704, &[]);
    let started = house.model(&["start", "blocked"]).ends_with(1);
    started.complains("127.0.0.1:8704/tcp is not free").complains(&stranger.to_string());
    assert_eq!(house.property(&unit("blocked"), "ActiveState"), "inactive");
    assert!(house.events("blocked").iter().any(|e| e.starts_with("blocked: ")));
    assert!(house.lives(stranger));
    house.test_box().sh("systemctl stop stranger-8704");
    house.model(&["start", "blocked"]).ends_with(0);

    // Restarted while somebody has taken the port: asked about once.
    house.kill("KILL", house.server("blocked"));
    house.wait_for("blocked", "failed", "");
    let stranger = house.stranger(8704);
    let gate = "portreeve-gate@blocked.service";
    wait_until(DEADLINE, "its gate is shut", || house.property(gate, "ActiveState") == "failed");
    let asked = || {
        house
            .test_box()
            .sh(&format!("journalctl -q -u {gate} -o cat | grep -c 'Failed to start' || true"))
    };
    let before = asked();
    let later = house.test_box().sh("date +%s").parse::<u64>().unwrap() + 5;
    wait_until(DEADLINE, "two restarts' time is over", || {
        house.test_box().sh("date +%s").parse::<u64>().unwrap() > later
    });
    assert_eq!(asked(), before, "it was asked again");
    house.model(&["status", "blocked"]).ends_with(1).says("its gate was shut at its last start");
    assert!(house.lives(stranger));
    house.model(&["stop", "blocked"]).ends_with(0);
    house.test_box().sh("systemctl stop stranger-8704");
}

#[test]
fn a_main_process_that_hangs_is_ended_in_order_and_restarted() {
    let Some(house) = house() else { return };
    house.change("frozen", "[Service]\nWatchdogSec=1s\n");
    house.native("frozen", 8705, &["--child"]);
    house.model(&["start", "frozen"]).ends_with(0);
    let (wrapper, server) = (house.main_pid("frozen"), house.server("frozen"));
    house.kill("STOP", wrapper);
    house.wait_for_event("frozen", "failed: its main process gave no sign of life (watchdog)");
    house.wait_for("frozen", "running", "");
    assert!(!house.lives(wrapper) && !house.lives(server));
    house.model(&["stop", "frozen"]).ends_with(0);
    house.nothing_is_left("frozen", 8705);
}

#[test]
fn a_container_is_kept_by_its_unit_and_never_comes_back_by_itself() {
    let Some(house) = house() else { return };
    house.contained("boxed", 8706, &["--health-fails-after", "usr1"]);
    house.model(&["start", "boxed"]).ends_with(0).says("is running on 127.0.0.1:8706");
    let rights = format!("grep CapEff /proc/{}/status", house.main_pid("boxed"));
    assert!(house.test_box().sh(&rights).ends_with("0000000000000000"));
    let status = house.status("boxed");
    assert_eq!(status["now"]["container"], "vllm-model-boxed", "{status:#}");
    assert_eq!(status["now"]["unit"], unit("boxed"), "{status:#}");

    house.docker().must(&["kill", "-s", "USR1", "vllm-model-boxed"]);
    house.wait_for("boxed", "failed", "2 times in a row");
    house.nothing_is_left("boxed", 8706);
    assert_eq!(house.property(&unit("boxed"), "NRestarts"), "0");
    assert_eq!(house.property(&unit("boxed"), "ActiveState"), "failed");

    // Its main process alone is killed: its container goes, too.
    house.model(&["start", "boxed"]).ends_with(0);
    house.kill("KILL", house.main_pid("boxed"));
    house.wait_for("boxed", "failed", "SIGKILL ended its main process");
    house.nothing_is_left("boxed", 8706);

    // So it does where somebody kills the container.
    house.model(&["start", "boxed"]).ends_with(0);
    house.docker().must(&["kill", "vllm-model-boxed"]);
    house.wait_for("boxed", "failed", "somebody killed it with SIGKILL");
    house.nothing_is_left("boxed", 8706);

    house.model(&["start", "boxed"]).ends_with(0);
    house.model(&["stop", "boxed"]).ends_with(0).says("told to stop");
    house.nothing_is_left("boxed", 8706);
    // What it wrote outlives its container.
    house.model(&["logs", "boxed"]).ends_with(0).says("ready at 0.0.0.0:8000");
}

#[test]
fn the_commands_around_its_main_process_may_be_killed() {
    let Some(house) = house() else { return };
    let unit = unit("hurt");
    house.change(
        "hurt",
        "[Service]\nExecStopPost=\nExecStopPost=+/bin/sh -c '[ ! -e /run/kill-it ] || kill -9 $$$$; \
         exec /usr/bin/portreeve model step down hurt'\n",
    );
    house.contained("hurt", 8707, &["--load-for", "usr1"]);
    // While it loads, all of its unit is gone at once, the command of its end too.
    house.test_box().sh("touch /run/kill-it");
    house.test_box().sh(&format!("systemctl start --no-block {unit}"));
    house.docker().wait_for_status("vllm-model-hurt", "running");
    house.kill("KILL", house.main_pid("hurt"));
    wait_until(DEADLINE, "its unit is down", || house.property(&unit, "ActiveState") == "failed");
    house.docker().wait_for_status("vllm-model-hurt", "running");
    house.wait_for("hurt", "failed", "its start was cut off, and its container was left running");
    // The next start takes it away, and begins anew.
    house.test_box().sh("rm /run/kill-it");
    let mut start = house.test_box().command(&["/usr/bin/portreeve", "model", "start", "hurt"]);
    let start = start.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    house.wait_for("hurt", "starting", "");
    wait_until(DEADLINE, "it is ready", || {
        house.test_box().run(&["docker", "kill", "-s", "USR1", "vllm-model-hurt"]);
        house.status("hurt")["state"] == "running"
    });
    Ran::of(&start.wait_with_output().unwrap()).ends_with(0);
    house.model(&["stop", "hurt"]).ends_with(0);
    house.nothing_is_left("hurt", 8707);
}

#[test]
fn a_start_beside_a_start_waits_with_it_and_a_stop_calls_off_who_waits() {
    let Some(house) = house() else { return };
    let (unit, gate) = (unit("twice"), "portreeve-gate@twice.service");
    house.test_box().write(
        &format!("/run/systemd/system/{gate}.d/hold.conf"),
        "[Service]\nExecStartPre=/bin/sh -c 'while [ -e /run/hold-gate ]; do sleep 0.05; done'\n",
    );
    house.native("twice", 8713, &["--load-for", "usr1"]);
    let start = || {
        let mut start =
            house.test_box().command(&["/usr/bin/portreeve", "model", "start", "twice"]);
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ended = |start: std::process::Child| Ran::of(&start.wait_with_output().unwrap());
    let loads = || {
        wait_until(DEADLINE, "it loads, with its port", || {
            house.property(&unit, "StatusText").starts_with("loading for")
                && !house.test_box().can_bind(8713)
        });
    };
    let first = start();
    loads();
    let asked = house.property(gate, "InvocationID");
    let second = start();
    wait_until(DEADLINE, "its gate is asked again", || {
        house.property(gate, "InvocationID") != asked
            && house.property(gate, "ActiveState") == "inactive"
    });
    house.kill("USR1", house.server("twice"));
    ended(first).ends_with(0).says("is running");
    ended(second).ends_with(0).says("is running");
    house.test_box().sh(&format!("systemctl start {unit}"));
    house.model(&["stop", "twice"]).ends_with(0);

    let first = start();
    loads();
    house.model(&["stop", "twice"]).ends_with(0);
    ended(first).ends_with(1).complains("somebody else had it stopped meanwhile");
    assert_eq!(house.property(&unit, "ActiveState"), "inactive");
    house.nothing_is_left("twice", 8713);

    // While it waits for its gate, nothing of it runs yet.
    house.test_box().sh("touch /run/hold-gate");
    let first = start();
    wait_until(DEADLINE, "its gate is asked", || {
        house.property(gate, "ActiveState") == "activating"
    });
    house.model(&["stop", "twice"]).ends_with(0);
    ended(first).ends_with(1).complains("somebody else had it stopped meanwhile");
    house.test_box().sh(&format!("rm /run/hold-gate; systemctl stop {gate}"));
    assert_eq!(house.property(&unit, "ActiveState"), "inactive");
    house.nothing_is_left("twice", 8713);
}

#[test]
fn a_step_that_is_killed_is_not_taken_for_a_stop() {
    let Some(house) = house() else { return };
    let more = "[Service]\nRestartSec=1h\nExecStartPost=/bin/sh -c 'kill -9 $$$$'\n";
    house.change("cut", more);
    house.native("cut", 8714, &[]);
    let why = "a signal ended one of its unit's steps";
    house.model(&["start", "cut"]).ends_with(1).complains(why);
    house.wait_for("cut", "failed", why);
    house.model(&["stop", "cut"]).ends_with(0);
    house.nothing_is_left("cut", 8714);
}

#[test]
fn enabled_models_are_started_without_holding_the_boot_up() {
    let Some(house) = house() else { return };
    house.native("slow", 8708, &["--load-for", "usr1"]);
    house.contained("quick", 8709, &[]);
    house.model(&["enable", "slow", "quick"]).ends_with(0).says("is started at boot from now on");
    assert_eq!(house.status("slow")["now"]["enabled"], true);
    // What a boot starts; it does not wait.
    house.test_box().sh("systemctl start portreeve-models.service");
    house.wait_for("quick", "running", "");
    wait_until(DEADLINE, "the other loads", || {
        house.property(&unit("slow"), "StatusText").starts_with("loading for")
    });
    house.test_box().sh("systemctl daemon-reexec");
    house.wait_for("slow", "starting", "");
    house.kill("USR1", house.server("slow"));
    house.wait_for("slow", "running", "");
    house.wait_for("quick", "running", "");
    house.model(&["disable", "slow", "quick"]).ends_with(0);
    assert_eq!(house.status("slow")["now"]["enabled"], false);
    house.model(&["stop", "slow", "quick"]).ends_with(0);
    // Its link goes with it, though somebody removed its file.
    house.model(&["enable", "quick"]).ends_with(0);
    house.test_box().sh(&format!("rm /etc/systemd/system/{}", unit("quick")));
    house.model(&["unregister", "quick"]).ends_with(0);
    let link = format!("/etc/systemd/system/portreeve-models.target.wants/{}", unit("quick"));
    assert!(!house.test_box().run(&["test", "-L", &link]).status.success());
    for (name, port) in [("slow", 8708), ("quick", 8709)] {
        house.nothing_is_left(name, port);
    }
}

#[test]
fn a_server_that_outlives_its_unit_is_known_for_what_it_is_and_reaped() {
    let Some(house) = house() else { return };
    house.change("moved", "[Service]\nRestartSec=1h\n");
    house.native("moved", 8710, &[]);
    house.model(&["start", "moved"]).ends_with(0);
    let (wrapper, server) = (house.main_pid("moved"), house.server("moved"));
    house.test_box().sh(&format!(
        "mkdir -p /sys/fs/cgroup/system.slice/elsewhere.service
         echo {server} >/sys/fs/cgroup/system.slice/elsewhere.service/cgroup.procs"
    ));
    house.kill("KILL", wrapper);
    house.wait_for("moved", "failed", &format!("its server, pid {server}, outlived its unit"));
    assert!(house.lives(server));
    house.model(&["start", "moved"]).ends_with(1).complains(&server.to_string());
    house.test_box().sh("/usr/bin/portreeve reap moved");
    assert!(!house.lives(server));
    house.model(&["start", "moved"]).ends_with(0);
    house.model(&["stop", "moved"]).ends_with(0);
    house.nothing_is_left("moved", 8710);
}

#[test]
fn a_users_models_are_kept_by_the_users_own_manager() {
    let house = match build("model-users") {
        Ok(house) => house,
        Err(reason) => return skip(&reason),
    };
    let podman = Engine::start(house.test_box, Kind::PodmanOfBob);
    podman.serve();
    podman.give_model("model-vllm", "vllm", "");
    let by = |user: &str, words: &[&str]| {
        let id = house.test_box.sh(&format!("id -u {user}"));
        let run = format!("XDG_RUNTIME_DIR=/run/user/{id}");
        let home = format!("HOME=/home/{user}");
        let first =
            ["runuser", "-u", user, "--", "env", &run, &home, "/usr/bin/portreeve", "model"];
        let mut command = house.test_box.command(&[&first[..], words].concat());
        Ran::of(&command.stdin(Stdio::null()).output().unwrap())
    };
    let bob = |words: &[&str]| by("bob", words);
    let native = ["--backend", "llamacpp", "--path", "/srv/models/l.gguf", "--port", "8711"];
    house.test_box.sh("chmod 644 /etc/portreeve/config.yaml");
    bob(&[&["register", "own", "--memory", "1G"], &native[..]].concat())
        .ends_with(0)
        .says("portreeve-model-own.service");
    let boxed = [
        "--backend",
        "vllm",
        "--model",
        "org/qwen",
        "--container",
        "--engine",
        "podman",
        "--port",
        "8712",
    ];
    bob(&[&["register", "boxed", "--image", "model-vllm", "--network", "host"], &boxed[..]]
        .concat())
    .ends_with(0);
    bob(&["enable", "own", "boxed"]).ends_with(0);
    bob(&["start", "own", "boxed"])
        .ends_with(0)
        .says("'own' is running")
        .says("'boxed' is running");
    let state = |name: &str| {
        house.test_box.sh(&format!(
            "runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 \
             systemctl --user show --property=ActiveState --value portreeve-model-{name}"
        ))
    };
    assert_eq!([state("own"), state("boxed")], ["active", "active"]);
    bob(&["status"]).ends_with(0).says("healthy").says("portreeve-model-boxed.service");
    wait_until(DEADLINE, "what they write is in bob's journal", || {
        ["own", "boxed"].iter().all(|name| bob(&["logs", name]).out.contains("ready at"))
    });
    bob(&["stop", "--all"]).ends_with(0).says("none is left");
    assert_eq!([state("own"), state("boxed")], ["inactive", "inactive"]);
    for port in [8711, 8712] {
        assert!(house.test_box.can_bind(port), "{port}");
    }
    for name in ["own", "boxed"] {
        bob(&["unregister", name]).ends_with(0);
    }
    // Root's models are the system's.
    house.model(&["list"]).ends_with(0).says("no model is registered");

    let mut login = house.test_box.login("alice", support::Terminal::No);
    login.types("echo here");
    wait_until(DEADLINE, "alice has a manager", || {
        house.test_box.run(&["test", "-S", "/run/user/1000/systemd/private"]).status.success()
    });
    by("alice", &[&["register", "hers"], &native[..]].concat()).ends_with(0);
    by("alice", &["enable", "hers"]).ends_with(0).complains("loginctl enable-linger");
    login.leaves();
}

#[test]
fn whoever_is_killed_while_it_stops_nothing_is_left_and_the_next_stop_says_so() {
    let Some(house) = house() else { return };
    house.native("torn", 8715, &["--slow-stop", "0.2", "--child"]);
    house.contained("torn-box", 8716, &["--slow-stop", "0.2"]);
    let unit_of_box = unit("torn-box");
    for moment in ["0.05", "0.25"] {
        for (name, part) in
            [("torn", "main"), ("torn", "server"), ("torn-box", "main"), ("torn-box", "step")]
        {
            house.model(&["start", name]).ends_with(0);
            let pid = match part {
                "main" => house.main_pid(name).to_string(),
                "server" => house.server(name).to_string(),
                // Whatever of its unit runs then: its main process, or the step behind it.
                _ => format!("$(cat /sys/fs/cgroup/system.slice/{unit_of_box}/cgroup.procs)"),
            };
            // The moment is the test.
            house.test_box().sh(&format!(
                "systemctl stop --no-block {}; sleep {moment}; kill -9 {pid} 2>/dev/null || true",
                unit(name)
            ));
            let said = house.model(&["stop", name]).ends_with(0);
            let what = format!("{name}, {part} at {moment} s: {}{}", said.out, said.err);
            assert_eq!(house.status(name)["state"], "stopped", "{what}");
            house.nothing_is_left(name, if name == "torn" { 8715 } else { 8716 });
        }
    }
    let ends = |event: &String| event.starts_with("stopped: ") || event.starts_with("failed: ");
    assert!(house.events("torn").iter().filter(|e| ends(e)).count() >= 4);
}
