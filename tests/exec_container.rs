//! `model exec` of models in containers, on real engines: by hand, below a service manager that is played, and in a unit's sandbox
//! without any capability. And what a unit's privileged command hands over, through a real systemd.

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
    os::unix::net::UnixDatagram,
    process::{Child, Stdio},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind, signal},
    ran::Ran,
    skip, wait_until,
};

const CONFIG: &str =
    "gate: { timeout: 0s, settle: 50ms }\nengines: { timeout: 2s }\ndefaults: { min_age: 0s }\n";

/// A box with one engine that has the images.
struct House {
    engine: Engine<'static>,
    kind: &'static str,
}

fn house(name: &str, kind: Kind, word: &'static str) -> Result<House, String> {
    let test_box: &'static TestBox = Box::leak(Box::new(TestBox::boot(name)?));
    test_box.write("/etc/portreeve/config.yaml", CONFIG);
    let engine = Engine::start(test_box, kind);
    engine.serve();
    engine.give_models();
    Ok(House { engine, kind: word })
}

static DOCKER: LazyLock<Result<House, String>> =
    LazyLock::new(|| house("exec-docker", Kind::DockerSystemd, "docker"));
static PODMAN: LazyLock<Result<House, String>> =
    LazyLock::new(|| house("exec-podman", Kind::Podman, "podman"));

/// `model exec` at work below a service manager that is played.
struct Kept {
    house: &'static House,
    name: &'static str,
    child: Child,
    manager: UnixDatagram,
    heard: String,
}

impl House {
    fn test_box(&self) -> &'static TestBox {
        self.engine.test_box
    }

    fn model(&self, words: &[&str]) -> Ran {
        let words = [&["/build/portreeve", "model"], words].concat();
        Ran::of(&self.test_box().command(&words).stdin(Stdio::null()).output().unwrap())
    }

    #[track_caller]
    fn register(&self, name: &str, port: u16, options: &[&str], more: &[&str]) {
        let port = port.to_string();
        let words = ["register", name, "--backend", "vllm", "--model", "org/qwen", "--container"];
        let place = ["--image", "model-vllm", "--port", &port, "--engine", self.kind];
        let watch =
            ["--health-delay", "50ms", "--health-interval", "100ms", "--health-failures", "2"];
        let options: Vec<String> = options.iter().map(|o| format!("--extra-args={o}")).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.model(&[&words, &place[..], &watch, &options, more].concat()).ends_with(0);
    }

    fn container(name: &str) -> String {
        format!("vllm-model-{name}")
    }

    #[track_caller]
    fn nothing_is_left(&self, name: &str) {
        assert_eq!(self.engine.inspect(&Self::container(name)), Value::Null);
    }

    fn keep(&'static self, name: &'static str) -> Kept {
        let socket = format!("/run/notify-{name}");
        let path = self.test_box().inside(&socket);
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let socket = format!("NOTIFY_SOCKET={socket}");
        let words =
            ["env", &socket, "WATCHDOG_USEC=400000", "/build/portreeve", "model", "exec", name];
        let mut command = self.test_box().command(&words);
        let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = piped.spawn().unwrap();
        Kept { house: self, name, child, manager, heard: String::new() }
    }

    /// A unit as a model's is: a privileged command hands over, the main process has no capability.
    fn unit(&self, name: &str, port: u16, options: &[&str], is_asked: bool) {
        let spec = json!({
            "backend": "vllm", "model": "org/qwen", "is_container": true, "port": port, "host": "127.0.0.1",
            "image": "model-vllm", "engine": self.kind, "extra_args": options, "skips_health": !is_asked,
            "watch": { "interval": { "secs": 0, "nanos": 100_000_000 }, "timeout": { "secs": 2, "nanos": 0 },
                       "failures": 2, "delay": { "secs": 0, "nanos": 50_000_000 } },
        });
        let chosen = json!({ "cards": { "nvidia": [], "amd": [] }, "devices": 0 });
        let handover = json!({ "spec": spec, "chosen": chosen, "instance": "of-a-test" });
        let file = format!("/etc/{name}.json");
        self.test_box().write(&file, &handover.to_string());
        let text = format!(
            "[Service]\nType=notify\nNotifyAccess=exec\nFileDescriptorStoreMax=4\nWatchdogSec=5\nTimeoutStartSec=20\n\
             ExecStartPre=+/build/examples/handover give {file}\nExecStart=/build/portreeve model exec {name}\n\
             CapabilityBoundingSet=\nNoNewPrivileges=yes\nProtectSystem=strict\nRestartPreventExitStatus=2\n"
        );
        self.test_box().unit(&format!("{name}.service"), &text);
    }

    fn show(&self, name: &str, property: &str) -> String {
        self.test_box().sh(&format!("systemctl show -P {property} {name}.service"))
    }
}

impl Kept {
    /// Listens until the manager was told so.
    #[track_caller]
    fn hears(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.heard.contains(text) {
            let mut bytes = [0; 4096];
            let read = self.manager.recv(&mut bytes);
            let read = read.unwrap_or_else(|_| panic!("'{text}' in: {}", self.heard));
            assert!(Instant::now() < end, "'{text}' in: {}", self.heard);
            self.heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }

    fn signal(&self, signal: &str) {
        let which = format!("pgrep -f -x '/build/portreeve model exec {}'", self.name);
        self.house.test_box().sh(&format!("kill -{signal} $({which})"));
    }

    /// Its end, and the last status that the manager was told.
    fn ends(self) -> (Ran, String) {
        let Self { house, name, child, manager, mut heard } = self;
        let path = house.test_box().inside(&format!("/run/notify-{name}"));
        // A manager that does not listen keeps it waiting.
        let hear = thread::spawn(move || {
            manager.set_read_timeout(None).unwrap();
            while !heard.ends_with("THE END\n") {
                let mut bytes = [0; 4096];
                let read = manager.recv(&mut bytes).unwrap();
                heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            heard
        });
        let ran = Ran::of(&child.wait_with_output().unwrap());
        UnixDatagram::unbound().unwrap().send_to(b"THE END\n", &path).unwrap();
        let heard = hear.join().unwrap();
        let status = heard.lines().rev().find_map(|line| line.strip_prefix("STATUS="));
        let status = status.unwrap_or_default().to_owned();
        fs::remove_file(path).unwrap();
        (ran, status)
    }
}

/// The same scene on either engine.
macro_rules! on_both {
    ($($name:ident $scene:ident;)*) => {
        mod docker {
            $(#[test] fn $name() { match &*super::DOCKER { Ok(house) => super::$scene(house), Err(why) => super::skip(why) } })*
        }
        mod podman {
            $(#[test] fn $name() { match &*super::PODMAN { Ok(house) => super::$scene(house), Err(why) => super::skip(why) } })*
        }
    };
}

on_both! {
    a_container_is_ready_when_it_serves_and_sigterm_removes_it stays;
    one_that_is_unhealthy_too_often_is_removed_with_70 unhealthy;
    the_code_of_a_server_that_ends_by_itself_is_ours ends_by_itself;
    by_hand_it_stands_at_the_gate_and_leaves_alone_what_is_up by_hand;
    somebody_elses_server_on_its_port_is_not_taken_for_it another_server;
    without_any_capability_it_does_all_the_same sandbox;
    without_any_capability_the_end_of_its_container_is_noticed sandbox_ends;
}

fn stays(house: &'static House) {
    house.register("stays", 8401, &["--load-for", "1"], &[]);
    let mut kept = house.keep("stays");
    kept.hears("READY=1");
    let (loading, _) = kept.heard.split_once("READY=1").unwrap();
    assert!(loading.contains("STATUS=loading for"), "{loading}");
    assert!(loading.contains("EXTEND_TIMEOUT_USEC="), "{loading}");
    kept.heard.clear();
    kept.hears("WATCHDOG=1");
    assert_eq!(house.engine.status("vllm-model-stays"), "running");
    kept.signal("TERM");
    let (ran, status) = kept.ends();
    let ran = ran.ends_with(0);
    assert_eq!(status, "told to stop");
    assert!(ran.out.contains("ready at 0.0.0.0:8000"), "what it writes is ours: {}", ran.out);
    assert!(ran.out.contains("SIGTERM"), "its last words, too: {}", ran.out);
    house.nothing_is_left("stays");
    let record = house.model(&["events", "stays"]).ends_with(0).out;
    assert!(!record.contains("running"), "it writes no registry: {record}");
}

fn unhealthy(house: &'static House) {
    house.register("sick", 8402, &["--health-fails-after", "usr1"], &[]);
    let mut kept = house.keep("sick");
    kept.hears("READY=1");
    house.engine.must(&["kill", "-s", "USR1", "vllm-model-sick"]);
    kept.hears("STOPPING=1");
    let (ran, status) = kept.ends();
    ran.ends_with(70);
    assert_eq!(status, "2 times in a row: unhealthy: it answers 500");
    house.nothing_is_left("sick");
}

fn ends_by_itself(house: &'static House) {
    house.register("brief", 8403, &["--crash-after", "usr1", "--crash-code", "9"], &[]);
    let mut kept = house.keep("brief");
    kept.hears("READY=1");
    house.engine.must(&["kill", "-s", "USR1", "vllm-model-brief"]);
    let (ran, status) = kept.ends();
    ran.ends_with(9);
    assert_eq!(status, "its server ended by itself: exit code 9");
    house.nothing_is_left("brief");

    house.register("crash", 8404, &["--crash-at-start", "no-such-layer"], &[]);
    let (ran, status) = house.keep("crash").ends();
    let said = ran.ends_with(3);
    assert!(said.out.contains("no-such-layer"), "{}", said.out);
    assert_eq!(status, "its server ended by itself: exit code 3");
    house.nothing_is_left("crash");
}

fn by_hand(house: &'static House) {
    house.register("hand", 8405, &[], &[]);
    let test_box = house.test_box();
    let holder = "/build/examples/plant --ready /run/planted/holder --listen 8405";
    test_box.sh(&format!("setsid {holder} </dev/null >/dev/null 2>&1 &"));
    let pid = test_box.planted("holder");
    let said = house.model(&["exec", "hand"]).ends_with(75);
    said.complains("was not started").complains("127.0.0.1:8405/tcp is not free");
    house.nothing_is_left("hand");
    support::engines::kill(test_box, &[pid]);

    house.model(&["start", "hand"]).ends_with(0);
    let before = house.engine.container("vllm-model-hand");
    let said = house.model(&["exec", "hand"]).ends_with(2);
    said.complains("is recorded as running").complains("hint: 'portreeve model stop hand' first");
    assert_eq!(house.engine.container("vllm-model-hand"), before);
    house.model(&["stop", "hand"]).ends_with(0);
    let said = house.model(&["exec", "hand", "--", "true"]).ends_with(2);
    said.complains("whose command is its image's");
}

fn another_server(house: &'static House) {
    house.register("robbed", 8406, &["--never-listen"], &["--network", "host"]);
    let mut kept = house.keep("robbed");
    kept.hears("STATUS=loading for");
    let test_box = house.test_box();
    let robber = "/run/other/vllm serve org/qwen --host 127.0.0.1 --port 8406";
    test_box.sh(&format!(
        "mkdir -p /run/other; ln -sf /build/examples/model-server /run/other/vllm
         setsid {robber} </dev/null >/dev/null 2>&1 & echo $! >/run/planted/robber"
    ));
    let (ran, status) = kept.ends();
    ran.ends_with(70);
    assert!(status.starts_with("somebody else answers on 127.0.0.1:8406"), "{status}");
    house.nothing_is_left("robbed");
    let pid = test_box.planted("robber");
    support::engines::kill(test_box, &[pid]);
}

fn sandbox(house: &'static House) {
    house.unit("boxed", 8407, &[], true);
    let test_box = house.test_box();
    test_box.sh("systemctl start boxed || { journalctl -u boxed >&2; exit 1; }");
    assert_eq!(house.show("boxed", "StatusText"), "healthy");
    let pid = house.show("boxed", "MainPID");
    let status = test_box.sh(&format!("grep -E '^Cap(Prm|Eff|Bnd)' /proc/{pid}/status"));
    assert!(status.lines().all(|line| line.ends_with("0000000000000000")), "{status}");
    assert_eq!(house.engine.status("vllm-model-boxed"), "running");
    let labels = house.engine.inspect("vllm-model-boxed")["Config"]["Labels"].clone();
    assert_eq!(labels["io.portreeve.instance"], "of-a-test");
    let verify = ["/build/examples/handover", "verify", "boxed", "/etc/boxed.json"];
    let verify = || Ran::of(&test_box.run(&verify));
    let main = house.engine.container("vllm-model-boxed").pid;
    assert_eq!(verify().ends_with(0).out, main.to_string());
    // One that has its name and labels, and not its port.
    let handover = test_box.sh("cat /etc/boxed.json");
    test_box.write("/etc/boxed.json", &handover.replace("8407", "8409"));
    verify().ends_with(1).complains("nobody listens");
    test_box.write("/etc/boxed.json", &handover.replace("org/qwen", "org/other"));
    verify().ends_with(1).complains("it serves org/qwen, not org/other");
    test_box.write("/etc/boxed.json", &handover);
    test_box.sh("systemctl stop boxed");
    verify().ends_with(1).complains("has no container 'vllm-model-boxed'");
    assert_eq!(house.show("boxed", "Result"), "success");
    house.nothing_is_left("boxed");
    // Podman writes it there itself, under the container's name.
    let words = "journalctl -o cat _SYSTEMD_UNIT=boxed.service + CONTAINER_NAME=vllm-model-boxed";
    wait_until(DEADLINE, "its end is in the journal: it had its grace period", || {
        test_box.sh(words).contains("SIGTERM")
    });
}

fn sandbox_ends(house: &'static House) {
    // Nobody but its engine, or the kernel, can tell.
    house.unit("short", 8408, &["--crash-after", "usr1", "--crash-code", "9"], false);
    let test_box = house.test_box();
    test_box.sh("systemctl start short || { journalctl -u short >&2; exit 1; }");
    house.engine.must(&["kill", "-s", "USR1", "vllm-model-short"]);
    wait_until(DEADLINE, "its unit has failed", || house.show("short", "ActiveState") == "failed");
    assert_eq!(house.show("short", "ExecMainStatus"), "9");
    assert_eq!(house.show("short", "StatusText"), "its server ended by itself: exit code 9");
    house.nothing_is_left("short");
}

// ---- what befalls its engine: in a box of its own

#[test]
fn an_engine_that_restarts_or_hangs_is_survived_within_bounds() {
    let house = match house("exec-engine", Kind::DockerSystemd, "docker") {
        Ok(house) => Box::leak(Box::new(house)),
        Err(why) => return skip(&why),
    };
    let test_box = house.test_box();
    house.register("swayed", 8411, &[], &[]);
    let mut kept = house.keep("swayed");
    kept.hears("READY=1");
    test_box.sh("systemctl restart docker");
    // Docker ends what runs, and it leaves as it was asked to.
    let (ran, status) = kept.ends();
    ran.ends_with(0);
    assert!(status.starts_with("its server ended by itself"), "{status}");
    house.nothing_is_left("swayed");

    house.register("frozen", 8412, &[], &[]);
    let mut kept = house.keep("frozen");
    kept.hears("READY=1");
    let daemons = house.engine.daemons();
    signal(test_box, "STOP", &daemons);
    kept.heard.clear();
    kept.hears("WATCHDOG=1");
    kept.signal("TERM");
    let began = Instant::now();
    let (ran, status) = kept.ends();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    signal(test_box, "CONT", &daemons);
    ran.ends_with(70);
    assert!(status.starts_with("told to stop; and it could not be taken down"), "{status}");
    assert_eq!(house.engine.status("vllm-model-frozen"), "running", "nobody could end it");
    house.engine.must(&["rm", "-f", "vllm-model-frozen"]);
}

// ---- what is handed over

#[test]
fn what_a_privileged_command_gives_another_user_takes_and_nothing_old_comes_back() {
    let test_box = match TestBox::boot("exec-handover") {
        Ok(test_box) => test_box,
        Err(why) => return skip(&why),
    };
    let give = |model: &str| {
        let spec = json!({ "backend": "vllm", "model": model, "is_container": false, "host": "127.0.0.1" });
        let chosen = json!({ "cards": { "nvidia": ["GPU-1"], "amd": [] }, "devices": 1 });
        let handover = json!({ "spec": spec, "chosen": chosen, "instance": "i" });
        test_box.write("/etc/handover.json", &handover.to_string());
    };
    test_box.unit(
        "taker.service",
        "[Service]\nType=exec\nNotifyAccess=exec\nFileDescriptorStoreMax=4\nDynamicUser=yes\nRestart=on-failure\n\
         RestartSec=50ms\nStandardOutput=truncate:/run/planted/taken\n\
         ExecStartPre=+/build/examples/handover give /etc/handover.json\n\
         ExecStart=/build/examples/handover take\n",
    );
    let takes = |model: &str| {
        let file = test_box.inside("/run/planted/taken");
        let mut said = Value::Null;
        wait_until(DEADLINE, &format!("'{model}' is taken"), || {
            let text = fs::read_to_string(&file).unwrap_or_default();
            said = serde_json::from_str(&text).unwrap_or_default();
            said["taken"]["spec"]["model"] == model
        });
        assert_eq!(said["taken"]["chosen"]["cards"]["nvidia"][0], "GPU-1");
        assert_ne!(said["uid"], 0);
        assert_eq!((&said["again"], &said["names"]), (&false.into(), &"portreeve-model".into()));
    };
    give("first");
    test_box.sh("systemctl start taker");
    takes("first");
    give("second");
    test_box.sh("systemctl restart taker");
    takes("second");
    give("third");
    test_box.sh("systemctl kill --kill-who=main -s KILL taker");
    takes("third");
    assert_eq!(test_box.sh("systemctl show -P NRestarts taker"), "1");
}
