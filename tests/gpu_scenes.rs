//! GPUs through the whole command: orphans on a stand-in for NVIDIA's library are found, ended, and their memory waited for; the
//! gate lets nobody start where it is not back.

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
    process::{Child, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    gpus::{STATE, Stub},
    skip,
    stage::{Planted, Stage},
};

const GPU: &str = "gpu GPU-00000000-1111-2222-3333-444444444444 00000000:01:00.0 NVIDIA H200\n";

/// A network of its own, a library that knows one GPU of 80 GiB, and a service that wants it.
struct Scene {
    stage: Stage,
    stub: Stub,
    config: String,
}

impl Scene {
    fn set() -> Option<Self> {
        let stage = Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()?;
        let stub = Stub::new();
        // The tests beside this one share the machine's processes: each knows its own by its folder.
        let config = stage.write(
            "config.yaml",
            &format!(
                "defaults: {{ min_age: 1ms, grace: 500ms, respawn_watch: 0s }}\n\
                 gate: {{ timeout: 0s, settle: 50ms, gpu_settle: 5s }}\n\
                 gpus: {{ nvml: '{}', nvidia_smi: 'off', timeout: 2s }}\n\
                 services: {{ llm: {{ gpus: [0], ports: [7301] }} }}\n\
                 patterns: [{{ name: mine, kind: worker, match: '^gpu-worker {}' }}]\n",
                stub.library().display(),
                stage.path("").display(),
            ),
        );
        Some(Self { stage, stub, config })
    }

    fn worker_name(&self) -> String {
        format!("gpu-worker {}", self.stage.path("").display())
    }

    /// A worker whose server is gone.
    fn left_worker(&self) -> Option<Planted> {
        self.stage.orphan(&["--as", &self.worker_name()])
    }

    fn gpu(&self, rest: &str) {
        self.stub.state(&format!("{GPU}{rest}"));
    }

    fn command(&self, words: &[&str]) -> std::process::Command {
        let (verb, rest) = words.split_first().unwrap();
        let mut command =
            self.stage.portreeve(&[&[*verb, "--config", &self.config], rest].concat());
        command.env(STATE, self.stub.state_file());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("nsenter runs")
    }

    /// The document, which fits its published schema.
    fn document(&self, words: &[&str]) -> Value {
        let schema = match words[0] {
            "gate" => "gate",
            "explain" => "explain",
            _ => "report",
        };
        let output = self.run(&[words, &["--format", "json"]].concat());
        let document: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let path = format!("{}/docs/schema/{schema}-v1.json", env!("CARGO_MANIFEST_DIR"));
        let schema = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&document).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(document["exit_code"], code(&output));
        document
    }

    /// The gate, under way.
    fn gate(&self, words: &[&str]) -> Child {
        let mut command = self.command(&[&["gate"], words].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(text).unwrap()
}

/// Answer and title of the first remark on the only GPU.
fn answer(document: &Value) -> (String, String) {
    let gpu = &document["gpus"][0];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (word(&gpu["answer"]), word(&gpu["remarks"][0]["title"]))
}

/// What a document says of a process: others' leftovers may be on the machine, too.
fn of_pid(document: &Value, pid: u32) -> &Value {
    let all = document["processes"].as_array().unwrap();
    all.iter().find(|process| process["pid"] == pid).unwrap_or_else(|| panic!("{document:#}"))
}

#[test]
fn an_orphan_that_holds_nothing_but_a_gpu_is_found_ended_and_its_memory_is_back_before_the_report()
{
    let Some(scene) = Scene::set() else { return };
    let Some(worker) = scene.left_worker() else { return };
    // The driver gives it back 700 ms after the exit.
    let pid = worker.pid();
    scene.gpu(&format!("memory 81920 40960\nreturns 700\ncompute {pid} 40000\n"));
    let found = scene.document(&["scan", "llm"]);
    assert_eq!(found["gpus"][0]["state"], "held", "{found:#}");
    assert_eq!(found["gpus"][0]["holders"], serde_json::json!([pid]));
    let process = of_pid(&found, pid);
    assert_eq!(process["title"], "orphan: worker without its server");
    assert_eq!(process["gpus"], serde_json::json!(["GPU 0"]));
    let reaped = scene.document(&["reap", "llm"]);
    assert_eq!(reaped["exit_code"], 0, "{reaped:#}");
    assert_eq!(of_pid(&reaped, pid)["outcome"]["result"], "terminated");
    assert_eq!(reaped["gpus"][0]["state"], "free");
    assert!(!worker.is_alive());
}

#[test]
fn who_computes_on_a_guarded_gpu_is_seen_without_any_pattern_and_lives() {
    let Some(scene) = Scene::set() else { return };
    let stranger = scene.stage.plant(&["--as", "python3 train.py", "--setsid"]);
    let pid = stranger.pid();
    scene.gpu(&format!("memory 81920 40960\nmps {pid}\ngraphics {pid} 100\n"));
    let found = scene.document(&["scan", "--gpu", "0000:01:00.0"]);
    assert_eq!(found["gpus"][0]["holders"], serde_json::json!([pid]), "{found:#}");
    assert_eq!(found["ports"], serde_json::json!([]));
    assert_ne!(of_pid(&found, pid)["verdict"], "orphan");
    assert_eq!(
        code(&scene.run(&["reap", "--gpu", "0", "--also", "abandoned"])),
        found["exit_code"]
    );
    assert!(stranger.is_alive());
    let explained = said(&scene.run(&["explain", "gpu:0"]));
    for part in ["GPU 0  held by pid", "through MPS", "memory not counted", "0000:01:00.0", "H200"]
    {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    scene.document(&["explain", "GPU-00000000-1111-2222-3333-444444444444"]);
}

#[test]
fn explain_shows_a_split_gpu_with_its_parts_and_its_service_with_what_it_needs() {
    let Some(scene) = Scene::set() else { return };
    let stranger = scene.stage.plant(&["--as", "python3 train.py"]);
    let uuid = "MIG-00000000-1111-2222-3333-444444444444";
    scene.gpu(&format!(
        "memory 81920 79000\npart {uuid} NVIDIA H200 MIG 1g.18gb\nmemory 18000 17000\ncompute {} 512\n",
        stranger.pid()
    ));
    let explained = said(&scene.run(&["explain", "gpu:0"]));
    let explained = explained.split_whitespace().collect::<Vec<_>>().join(" ");
    let pid = stranger.pid();
    for part in [
        "GPU 0 held by pid".to_owned(),
        "72.0 GiB needed".to_owned(),
        format!("GPU 0 part 0 ({uuid}): 16.6 GiB free of 17.5 GiB"),
        format!("pid {pid} computes, 512 MiB, on GPU 0 part 0"),
    ] {
        assert!(explained.contains(&part), "{part}: {explained}");
    }
    let text = fs::read_to_string(&scene.config).unwrap();
    scene.stage.write("config.yaml", &text.replace("gpus: [0],", "gpus: [0], gpu_free: 2GiB,"));
    let document = scene.document(&["explain", "gpu:0"]);
    assert_eq!(document["gpus"][0]["services"], serde_json::json!(["llm"]), "{document:#}");
    assert_eq!(document["gpus"][0]["memory_needed"], "2GiB");
    let absent = said(&scene.run(&["explain", "gpu:3"]));
    assert!(absent.starts_with("GPU 3  this host has no such GPU\n"), "{absent}");
    assert!(!absent.contains("facts"), "of what is not there: {absent}");
}

#[test]
fn the_gate_waits_for_a_holders_end_and_for_its_memory() {
    let Some(scene) = Scene::set() else { return };
    let mut holder = scene.stage.plant(&["--as", "python3 train.py"]);
    let pid = holder.pid();
    scene.gpu(&format!("memory 81920 40960\nreturns 600\ncompute {pid} 40000\n"));
    let blocked = scene.document(&["gate", "llm"]);
    assert_eq!(answer(&blocked), ("blocked".into(), "held".into()), "{blocked:#}");
    assert_eq!(blocked["gpus"][0]["blockers"][0]["pid"], pid);
    assert_eq!(blocked["exit_code"], 1);
    // Enough for a service that asks for less.
    scene.gpu(&format!("memory 81920 79000\ncompute {pid} 500\n"));
    let shared = scene.document(&["gate", "llm"]);
    assert_eq!(answer(&shared), ("open".into(), "shared".into()), "{shared:#}");
    scene.gpu(&format!("memory 81920 40960\nreturns 600\ncompute {pid} 40000\n"));
    let mut gate = scene.gate(&["llm", "--timeout", "20s"]);
    // Past the time in which it settles.
    let began = Instant::now();
    support::wait_until(support::DEADLINE, "it has begun to wait", || {
        assert!(gate.try_wait().unwrap().is_none());
        began.elapsed() > Duration::from_millis(500)
    });
    let ended = Instant::now();
    holder.end();
    assert!(gate.wait().unwrap().success());
    assert!(ended.elapsed() > Duration::from_millis(600), "the memory was not back");
}

#[test]
fn memory_of_the_ended_is_waited_for_beside_a_colleague_who_stays() {
    let Some(scene) = Scene::set() else { return };
    let Some(worker) = scene.left_worker() else { return };
    let colleague = scene.stage.plant(&["--as", "python3 train.py"]);
    let holders = format!("compute {} 40000\ncompute {} 500\n", worker.pid(), colleague.pid());
    scene.gpu(&format!("memory 81920 40960\nreturns 1500\n{holders}"));
    let reaped = scene.document(&["reap"]);
    assert_eq!(reaped["gpus"][0]["holders"], serde_json::json!([colleague.pid()]));
    assert_eq!(reaped["gpus"][0]["memory_free_bytes"], 80960_u64 << 20, "{reaped:#}");
    assert!(!worker.is_alive() && colleague.is_alive());
}

#[test]
fn the_gate_waits_for_the_memory_of_one_holder_though_another_stays() {
    let Some(scene) = Scene::set() else { return };
    let mut ends = scene.stage.plant(&["--as", "python3 train.py"]);
    let stays = scene.stage.plant(&["--as", "python3 train.py"]);
    let holders = format!("compute {} 40000\ncompute {} 500\n", ends.pid(), stays.pid());
    scene.gpu(&format!("memory 81920 40960\nreturns 1500\n{holders}"));
    let mut gate = scene.gate(&["llm", "--timeout", "1s"]);
    let began = Instant::now();
    support::wait_until(support::DEADLINE, "it has begun to wait", || {
        assert!(gate.try_wait().unwrap().is_none());
        began.elapsed() > Duration::from_millis(500)
    });
    ends.end();
    assert!(gate.wait().unwrap().success(), "the timeout came before the memory");
}

#[test]
fn memory_that_nobody_has_is_waited_for_while_it_moves_and_blocks_when_it_stays() {
    let Some(scene) = Scene::set() else { return };
    // Back at the sixth look, whatever the timeout says.
    scene.gpu("memory 81920 40960\nsettle 6 81000\n");
    let open = scene.document(&["gate", "llm"]);
    assert_eq!(open["exit_code"], 0, "{open:#}");
    scene.gpu("memory 81920 40960\n");
    let stuck = scene.document(&["gate", "llm"]);
    assert_eq!(answer(&stuck), ("blocked".into(), "memory taken".into()), "{stuck:#}");
    assert_eq!(stuck["gpus"][0]["settling"], false);
    assert!(stuck["waited_ms"].as_u64().unwrap() >= 2000);
    let warned = scene.run(&["gate", "llm", "--on-blocked", "warn", "--", "echo", "up"]);
    assert_eq!(code(&warned), 0, "{}", said(&warned));
    assert!(said(&warned).contains("nvidia-smi --gpu-reset -i 0"), "{}", said(&warned));
    assert_eq!(code(&scene.run(&["scan", "llm"])), 1);
}

#[test]
fn a_gate_that_waits_for_memory_past_its_timeout_keeps_no_other_gate_waiting() {
    let Some(scene) = Scene::set() else { return };
    scene.gpu("memory 81920 40960\n");
    // Each run has a /run of its own, unless they share one.
    let run = scene.stage.path("run");
    fs::create_dir(&run).unwrap();
    let script = format!("mount --bind {} /run; exec", run.display());
    let gate = |words: &[&str]| {
        let words = [&["gate", "--config", &scene.config], words].concat();
        let mut command = scene.stage.portreeve_by(&script, &words);
        command.env(STATE, scene.stub.state_file());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut settling = gate(&["llm"]);
    let began = Instant::now();
    support::wait_until(support::DEADLINE, "it settles", || {
        began.elapsed() > Duration::from_millis(500)
    });
    let other = gate(&["--port", "7302", "--timeout", "1s"]).wait_with_output().unwrap();
    assert_eq!(code(&other), 0, "{}", said(&other));
    assert_eq!(settling.wait().unwrap().code(), Some(1));
}

#[test]
fn a_driver_that_hangs_lets_nothing_pass_and_is_the_finding() {
    let Some(scene) = Scene::set() else { return };
    for call in ["init", "memory"] {
        scene.stub.state(&format!("{GPU}memory 81920 81000\nhang {call}\n"));
        let began = Instant::now();
        let hung = scene.document(&["gate", "llm"]);
        assert_eq!(hung["exit_code"], 2, "{hung:#}");
        assert!(began.elapsed() < Duration::from_secs(15));
        let text = hung.to_string();
        assert!(text.contains("NVML did not answer within 2"), "{text}");
        let before = scene.run(&["gate", "llm", "--on-blocked", "warn", "--", "echo", "up"]);
        assert_eq!(code(&before), 69, "{}", said(&before));
        assert!(!said(&before).contains("up\n"));
        assert_eq!(code(&scene.run(&["scan", "llm"])), 2);
    }
}

#[test]
fn the_command_behind_the_gate_has_the_gpu_and_nothing_of_ours() {
    let Some(scene) = Scene::set() else { return };
    let Some(worker) = scene.left_worker() else { return };
    let pid = worker.pid();
    scene.gpu(&format!("memory 81920 40960\nreturns 300\ncompute {pid} 40000\n"));
    let blocked = scene.run(&["gate", "llm", "--", "echo", "up"]);
    assert_eq!(code(&blocked), 75, "{}", said(&blocked));
    let children = "exec cat /proc/$$/task/$$/children";
    let output = scene.run(&["gate", "llm", "--reap", "--", "sh", "-c", children]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(!worker.is_alive());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    // Nor has it a descriptor more than without a GPU.
    let open = |what: &[&str]| {
        scene.run(&[&["gate"], what, &["--", "ls", "/proc/self/fd"]].concat()).stdout
    };
    assert_eq!(open(&["llm"]), open(&["--port", "7301"]));
}

#[test]
fn infrastructure_holds_no_gpu() {
    let Some(scene) = Scene::set() else { return };
    let server = scene.stage.path("nvidia-cuda-mps-server");
    fs::copy(scene.stage.program("examples/plant"), &server).unwrap();
    // Only where the system keeps its executables does a name prove anything.
    let inside = format!(
        "mount -t tmpfs none /opt && cp {} /opt/ && exec /opt/nvidia-cuda-mps-server --ready {} --leash {}",
        server.display(),
        scene.stage.path("planted/mps").display(),
        scene.stage.path("leash").display(),
    );
    let child = scene
        .stage
        .command(&["unshare", "--mount", "sh", "-euc", &inside])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let server = Planted::of_child(child);
    support::wait_until(support::DEADLINE, "it runs", || scene.stage.path("planted/mps").exists());
    scene.gpu(&format!("memory 81920 81000\ncompute {} 30\n", server.pid()));
    let found = scene.document(&["scan", "--gpu", "all"]);
    assert_eq!(found["gpus"][0]["state"], "free", "{found:#}");
    assert_eq!(found["gpus"][0]["users"][0]["pid"], server.pid());
    assert_eq!(found["processes"], serde_json::json!([]));
    assert_eq!(found["exit_code"], 0);
}

#[test]
fn in_a_pid_namespace_of_its_own_a_gpu_that_looks_free_is_unknown() {
    let Some(scene) = Scene::set() else { return };
    scene.gpu("memory 81920 81000\n");
    let script = format!("export {STATE}; exec unshare --pid --fork --mount-proc");
    let words = ["gate", "--config", &scene.config, "llm", "--format", "json"];
    let mut command = scene.stage.portreeve_by(&script, &words);
    let output = command.env(STATE, scene.stub.state_file()).output().unwrap();
    assert_eq!(code(&output), 2, "{}", said(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["gpus"][0]["answer"], "unknown");
    assert!(document["gpus"][0]["sentence"].as_str().unwrap().contains("pid namespace"));
}

/// A leftover on a port, one on a GPU, and a healthy postgres of somebody else's on another port.
#[test]
fn a_stack_boots_after_its_leftovers_are_cleared_and_never_over_a_healthy_postgres() {
    let Some(scene) = Scene::set() else { return };
    let left = format!("python3 /app/left.py {}", scene.stage.path("").display());
    let rest = format!(
        "  left: {{ runs_in: container, ports: [7302], patterns: ['^{left}'] }}\n  postgres: {{ ports: [5432] }}\n"
    );
    let text = fs::read_to_string(&scene.config).unwrap();
    let text = text.replace(
        "services: { llm: { gpus: [0], ports: [7301] } }\n",
        &format!("services:\n  llm: {{ gpus: [0], ports: [7301] }}\n{rest}"),
    );
    scene.stage.write("config.yaml", &text);
    let postgres = scene.stage.plant(&["--as", "postgres -D /data", "--listen", "5432"]);
    let Some(server) = scene.stage.orphan(&["--as", &left, "--listen", "7302"]) else { return };
    let Some(worker) = scene.left_worker() else { return };
    scene.gpu(&format!("memory 81920 40960\nreturns 700\ncompute {} 40000\n", worker.pid()));
    let stack = ["llm", "left", "postgres"];
    let gate = |more: &[&str]| scene.run(&[&["gate"], &stack[..], more].concat());
    let before = gate(&["--", "echo", "up"]);
    assert_eq!(code(&before), 75, "{}", said(&before));
    for part in ["orphan: not where left runs", "orphan: worker without its server", "foreign"] {
        assert!(said(&before).contains(part), "{part}: {}", said(&before));
    }
    let whole = scene.document(&[&["gate"], &stack[..], &["--reap"]].concat());
    assert_eq!(whole["exit_code"], 1, "{whole:#}");
    let answers: Vec<&Value> = ["ports", "gpus"]
        .into_iter()
        .flat_map(|what| whole[what].as_array().unwrap())
        .map(|place| &place["answer"])
        .collect();
    assert_eq!(answers, ["open", "open", "blocked", "open"]);
    assert!(!server.is_alive() && !worker.is_alive());
    let warned = gate(&["--reap", "--on-blocked", "warn", "--", "echo", "up"]);
    assert_eq!(code(&warned), 0, "{}", said(&warned));
    assert!(said(&warned).starts_with("up\n") && said(&warned).contains("warning, goes on"));
    assert!(postgres.is_alive());
}
