//! Models with GPUs on a real engine, NVIDIA's library and hook played: which GPUs a start asks for, and that it runs on them or
//! not at all. In a box that shares the host's pids, for who holds a GPU is not known elsewhere.

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
    process::Stdio,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind},
    gpus::{STATE, Stub},
    ran::Ran,
    skip, wait_until,
};

/// Dockerd asks for it by this name at its start (20.10, daemon/nvidia_linux.go), and runs it before a container's first process. It
/// makes those devices that `/run/given` has for the UUIDs that it is given.
const HOOK: &str = r#"#!/bin/sh
set -eu
state=$(cat)
pid=$(echo "$state" | grep -o '"pid":[0-9]*' | cut -d: -f2)
config=$(echo "$state" | sed 's/.*"bundle":"\([^"]*\)".*/\1/')/config.json
root=$(sed 's/.*"root":{"path":"\([^"]*\)".*/\1/' "$config")
for uuid in $(grep -o 'NVIDIA_VISIBLE_DEVICES=[^"]*' "$config" | cut -d= -f2 | tr , ' '); do
    device=$(sed -n "s/^$uuid //p" /run/given)
    [ -z "$device" ] || touch "/proc/$pid/root$root/dev/$device"
done
"#;

const CONFIG: &str = "gate: { timeout: 10s, settle: 100ms, gpu_settle: 2s }\n\
                      gpus: { nvml: /opt/libnvidia-ml.so.1, nvidia_smi: 'off', timeout: 5s }\n\
                      defaults: { min_age: 0s, respawn_watch: 0s }\n";
/// Laid over it by scenes in which it is known what comes.
const HASTY: &str = "gate: { timeout: 0s }\ngpus: { timeout: 500ms }\n";

/// A Docker with the image, and a library that says what each scene writes.
struct House {
    engine: Engine<'static>,
}

fn house(name: &str, has_hook: bool) -> Result<House, String> {
    let test_box: &'static TestBox = Box::leak(Box::new(TestBox::share(name)?));
    fs::copy(Stub::new().library(), test_box.inside("/opt/libnvidia-ml.so.1")).unwrap();
    test_box.write("/etc/portreeve/config.yaml", CONFIG);
    test_box.write("/etc/hasty.yaml", HASTY);
    test_box.write("/run/given", "");
    if has_hook {
        test_box.write("/usr/bin/nvidia-container-runtime-hook", HOOK);
        test_box.sh("chmod +x /usr/bin/nvidia-container-runtime-hook");
    }
    let engine = Engine::start(test_box, Kind::DockerByHand);
    engine.give_model("model-vllm", "vllm", "");
    Ok(House { engine })
}

static HOUSE: LazyLock<Result<House, String>> = LazyLock::new(|| house("model-gpus", true));

/// A model, and what the library says while it is spoken of.
struct Scene<'a> {
    house: &'a House,
    name: &'static str,
}

impl Scene<'static> {
    /// None where there is no such engine.
    fn set(name: &'static str, port: u16, options: &[&str]) -> Option<Self> {
        let house = HOUSE.as_ref().map_err(|why| skip(why)).ok()?;
        Some(Self::set_in(house, name, port, options))
    }
}

impl<'a> Scene<'a> {
    fn set_in(house: &'a House, name: &'static str, port: u16, options: &[&str]) -> Self {
        let scene = Self { house, name };
        let port = port.to_string();
        let register =
            ["register", name, "--backend", "vllm", "--model", "org/qwen", "--container"];
        let own = ["--image", "model-vllm", "--network", "host", "--port", &port];
        scene.model(&[&register[..], &own, options].concat()).ends_with(0);
        scene
    }

    fn test_box(&self) -> &'static TestBox {
        self.house.engine.test_box
    }

    /// What the library says from now on.
    fn gpus(&self, text: &str) {
        self.test_box().write(&format!("/run/gpus/{}", self.name), text);
    }

    /// The hook makes these devices for these UUIDs.
    fn gives(&self, devices: &[(&str, &str)]) {
        for (uuid, device) in devices {
            self.test_box().sh(&format!("echo {uuid} {device} >>/run/given"));
        }
    }

    fn model(&self, words: &[&str]) -> Ran {
        let state = format!("{STATE}=/run/gpus/{}", self.name);
        let first = ["env", &state, "/build/portreeve", "model"];
        let mut command = self.test_box().command(&[&first, words].concat());
        Ran::of(&command.stdin(Stdio::null()).output().unwrap())
    }

    fn start(&self) -> Ran {
        self.model(&["start", self.name])
    }

    fn start_hastily(&self) -> Ran {
        self.model(&["start", self.name, "--config", "/etc/hasty.yaml"])
    }

    fn stop(&self) {
        self.model(&["stop", self.name]).ends_with(0);
    }

    /// Its container, as Docker tells; null where there is none.
    fn container(&self) -> Value {
        self.house.engine.inspect(&format!("vllm-model-{}", self.name))
    }

    /// The GPUs that its container asks for, and those of which its server is told.
    fn asked_for(&self) -> (Value, String) {
        let container = self.container();
        let requests = container["HostConfig"]["DeviceRequests"].as_array().unwrap();
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert_eq!(requests[0]["Count"], 0, "a number means other GPUs to an engine");
        let pid = &container["State"]["Pid"];
        let told = self.test_box().sh(&format!(
            "tr '\\0' '\\n' </proc/{pid}/environ | sed -n 's/^NVIDIA_VISIBLE_DEVICES=//p'"
        ));
        (requests[0]["DeviceIDs"].clone(), told)
    }

    #[track_caller]
    fn is_failed(&self, why: &str) {
        let said = self.model(&["status", self.name, "--json"]).out;
        let all: Value = serde_json::from_str(&said).expect("a document");
        let model = &all["models"][0];
        let told = model["why"].as_str().unwrap();
        assert!(model["state"] == "failed" && told.contains(why), "wanted '{why}': {model:#}");
    }

    /// Nothing is left, and the reason is on record.
    #[track_caller]
    fn has_failed(&self, why: &str) {
        assert_eq!(self.container(), Value::Null);
        self.is_failed(why);
    }

    /// Nothing was made in the first place.
    #[track_caller]
    fn made_nothing(&self, why: &str) {
        self.has_failed(why);
        assert_eq!(self.heard_of(), "", "Docker was asked for a container");
    }

    /// What Docker has done for it so far.
    fn heard_of(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
        let filter = format!("container=vllm-model-{}", self.name);
        self.house.engine.must(&["events", "--since", "0", "--until", &now, "--filter", &filter])
    }
}

fn uuid(number: u32) -> String {
    format!("GPU-{number:08x}-1111-2222-3333-444444444444")
}

/// One GPU in the library's words, all but a little of its memory free.
fn gpu(number: u32) -> String {
    format!(
        "gpu {} 00000000:{:02x}:00.0 NVIDIA H200\nmemory 81920 81000\n",
        uuid(number),
        number & 0xff
    )
}

#[test]
fn a_model_is_given_its_gpu_by_uuid_and_runs() {
    let Some(scene) = Scene::set("one", 8401, &["--gpus", "0"]) else { return };
    scene.gpus(&gpu(0x11));
    scene.gives(&[(&uuid(0x11), "nvidia0")]);
    let said = scene.start().ends_with(0);
    assert_eq!(said.out, "model 'one' is running on 127.0.0.1:8401\n");
    assert_eq!(scene.asked_for(), (json!([uuid(0x11)]), uuid(0x11)));
    let status: Value =
        serde_json::from_str(&scene.model(&["status", "one", "--json"]).ends_with(0).out).unwrap();
    assert_eq!(status["models"][0]["state"], "running");
    scene.stop();
    assert_eq!(scene.container(), Value::Null);
}

#[test]
fn two_gpus_are_both_given_in_the_order_in_which_they_are_named() {
    let options = ["--gpus", "1,0", "--tensor-parallel", "2"];
    let Some(scene) = Scene::set("two", 8402, &options) else { return };
    let (first, second) = (uuid(0x21), uuid(0x22));
    scene.gpus(&format!("{}{}", gpu(0x21), gpu(0x22)));
    scene.gives(&[(&first, "nvidia0"), (&second, "nvidia1")]);
    scene.start().ends_with(0);
    assert_eq!(scene.asked_for(), (json!([second, first]), format!("{second},{first}")));
    scene.stop();
}

#[test]
fn parts_of_a_split_gpu_are_given_by_their_own_uuids() {
    let parts =
        ["MIG-00000031-1111-2222-3333-444444444444", "MIG-00000032-1111-2222-3333-444444444444"];
    let both = parts.join(",");
    let Some(scene) = Scene::set("parts", 8403, &["--gpus", &both]) else { return };
    let part = |uuid: &str| format!("part {uuid} NVIDIA H200 MIG 1g.18gb\nmemory 18000 17900\n");
    scene.gpus(&format!("{}{}{}", gpu(0x31), part(parts[0]), part(parts[1])));
    // As NVIDIA's does: the whole GPU's device stands for both.
    scene.gives(&[(parts[0], "nvidia0"), (parts[1], "nvidia0")]);
    scene.start().ends_with(0);
    assert_eq!(scene.asked_for(), (json!(parts), both));
    scene.stop();
}

#[test]
fn a_container_without_its_devices_is_taken_down_rather_than_run_on_the_processor() {
    let options = ["--gpus", "0,1", "--tensor-parallel", "2"];
    let Some(scene) = Scene::set("bare", 8404, &options) else { return };
    scene.gpus(&format!("{}{}", gpu(0x41), gpu(0x42)));
    let said = scene.start().ends_with(1);
    said.complains("docker started it with 0 of the 2 GPUs that it was to have")
        .complains("it would run on the processor")
        .complains("nvidia-ctk runtime configure --runtime=docker");
    scene.has_failed("would run on the processor");
    assert!(scene.heard_of().contains("container destroy"), "{}", scene.heard_of());
    // One of two is not enough.
    scene.gives(&[(&uuid(0x41), "nvidia0")]);
    scene.start().ends_with(1).complains("with 1 of the 2 GPUs");
    scene.has_failed("would run on the processor");
}

#[test]
fn a_gpu_whose_memory_somebody_holds_blocks_and_the_holder_is_named() {
    let Some(scene) = Scene::set("blocked", 8405, &["--gpus", "0"]) else { return };
    scene.gives(&[(&uuid(0x51), "nvidia0")]);
    let test_box = scene.test_box();
    test_box
        .sh("setsid /build/examples/plant --as 'python3 train.py' --ready /run/planted/trainer \
         </dev/null >/dev/null 2>&1 &");
    let holder = test_box.planted("trainer");
    let held = format!(
        "gpu {} 00000000:51:00.0 NVIDIA H200\nmemory 81920 40960\ncompute {holder} 40000\n",
        uuid(0x51)
    );
    scene.gpus(&held);
    let said = scene.start_hastily().ends_with(1);
    said.complains("GPU 0 is not free").complains(&format!("pid {holder}"));
    scene.made_nothing(&format!("pid {holder}"));
    // Its end gives the memory back, and nobody has to say so.
    test_box.sh(&format!("kill -KILL {holder}"));
    wait_until(DEADLINE, "the holder is gone", || test_box.stat(holder).is_none());
    scene.start().ends_with(0);
    scene.stop();
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_and_nothing_is_made() {
    let Some(scene) = Scene::set("absent", 8406, &["--gpus", "7"]) else { return };
    scene.gpus(&gpu(0x61));
    let said = scene.start().ends_with(1);
    said.complains("GPU 7 was not found").complains("portreeve scan --gpu all");
    scene.made_nothing("GPU 7 was not found");
}

#[test]
fn where_the_library_fails_or_hangs_the_start_could_not_tell_and_makes_nothing() {
    let Some(scene) = Scene::set("unseen", 8407, &["--gpus", "0"]) else { return };
    for (how, why) in [
        ("init 999", "NVML"),
        ("hang init", "NVML did not answer within"),
        ("crash memory", "NVML crashed"),
    ] {
        scene.gpus(&format!("{}{how}\n", gpu(0x71)));
        let said = scene.start_hastily().ends_with(2);
        said.complains(&format!("whether there is a GPU 0 could not be seen: {why}"));
        scene.made_nothing("could not be seen");
    }
}

#[test]
fn an_engine_that_knows_no_gpus_is_told_what_it_lacks() {
    let house = match house("no-toolkit", false) {
        Ok(house) => house,
        Err(why) => return skip(&why),
    };
    let scene = Scene::set_in(&house, "plain", 8408, &["--gpus", "0"]);
    scene.gpus(&gpu(0x81));
    let said = scene.start().ends_with(1);
    said.complains("could not select device driver").complains("needs NVIDIA's Container Toolkit");
    scene.has_failed("it could not be started");
}

#[test]
fn a_podman_that_would_leave_the_gpus_out_is_asked_for_nothing() {
    let options = ["--gpus", "0", "--engine", "podman"];
    let Some(scene) = Scene::set("podman", 8409, &options) else { return };
    let podman = Engine::start(scene.test_box(), Kind::Podman);
    let version = podman.must(&["version", "--format", "{{.Server.Version}}"]);
    let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
    if numbers >= vec![5, 4] {
        return skip(&format!("Podman {version} passes GPUs on"));
    }
    podman.serve();
    scene.gpus(&gpu(0x91));
    let said = scene.start().ends_with(1);
    said.complains(&version).complains("use Podman 5.4 or later");
    scene.is_failed("passes no GPU on");
    assert_eq!(podman.must(&["ps", "--all", "--quiet"]), "");
}
