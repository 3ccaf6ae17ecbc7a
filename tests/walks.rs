//! The walks of README.md and docs/models.md, played as they are written: each command is run in a box, and what it says must be
//! what stands below it. Numbers may differ. What only looks is asked again until it says so: systemd takes its time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests may panic, and say what they saw"
)]

mod support;

use std::{fs, path::Path};

use regex::Regex;
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind, kill},
    packaging, skip, wait_until,
};

/// A command of a walk, the remark behind it, and what it says.
struct Step {
    command: String,
    remark: String,
    says: String,
}

/// The walk of a document: the block that begins with a `portreeve model register`.
fn walk(document: &str) -> Vec<Step> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs::read_to_string(path).unwrap();
    let block = text
        .split("```")
        .find(|block| block.starts_with("\n# portreeve model register "))
        .unwrap_or_else(|| panic!("{document} has no walk"));
    let steps = block.trim().strip_prefix("# ").unwrap().split("\n# ");
    let steps = steps.map(|step| {
        let (line, says) = step.split_once('\n').unwrap_or((step, ""));
        let (command, remark) = line.split_once("  #").unwrap_or((line, ""));
        let [command, remark] = [command, remark].map(|text| text.trim().to_owned());
        Step { command, remark, says: plain(says) }
    });
    steps.collect()
}

/// Numbers, columns' widths and what is not known here or there do not count.
fn plain(text: &str) -> String {
    let number =
        Regex::new(r"container [0-9a-f]{12}\b|\d+(\.\d+)?( (s|ms|min|[KMG]iB)\b)?").unwrap();
    let text = number.replace_all(text, "N");
    let lines = text.lines().map(|line| {
        let words = line.split_whitespace().map(|word| if word == "-" { "N" } else { word });
        words.collect::<Vec<_>>().join(" ")
    });
    lines.collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// Runs a line of a walk as a person would; its exit code is said where it is not 0.
fn run(test_box: &TestBox, command: &str) -> String {
    let output = test_box.run(&["bash", "-c", &format!("exec 2>&1; {command}")]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.code() {
        Some(0) => plain(&said),
        code => plain(&format!("{said}(exit code {})", code.unwrap_or(-1))),
    }
}

/// Whether it changes nothing, so that it may be asked again.
fn only_looks(command: &str) -> bool {
    ["status", "events", "logs", "scan", "list-units"]
        .iter()
        .any(|verb| command.split(' ').any(|word| word == *verb))
}

/// Plays a walk; `others` does what is no command of a shell: it kills whom the remark names.
fn play(test_box: &TestBox, document: &str, others: impl Fn(&str, &str) -> bool) {
    for step in walk(document) {
        let Step { command, remark, says } = &step;
        if others(command, remark) {
            continue;
        }
        if only_looks(command) {
            wait_until(DEADLINE, &format!("{document}: {command}: says\n{says}"), || {
                let said = run(test_box, command);
                println!("{said}");
                said == *says
            });
        } else {
            assert_eq!(run(test_box, command), *says, "{document}: {command}");
        }
    }
}

fn boot(name: &str) -> Option<TestBox> {
    let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
    test_box.sh("mkdir -p /srv/models && touch /srv/models/coder.gguf
         ln -s /build/examples/model-server /usr/local/bin/llama-server");
    packaging::install(&test_box, "gate: { timeout: 1s }\n");
    Some(test_box)
}

/// Docker with a server that plays vLLM under the name of the real image.
fn docker<'a>(test_box: &'a TestBox, options: &str) -> Engine<'a> {
    let docker = Engine::start(test_box, Kind::DockerSystemd);
    docker.give_model("vllm/vllm-openai:latest", "vllm", options);
    docker
}

fn main_pid(test_box: &TestBox, unit: &str) -> u32 {
    test_box.sh(&format!("systemctl show -P MainPID {unit}")).parse().unwrap()
}

#[test]
fn the_readmes_walk_with_models_is_as_it_is_written() {
    let Some(test_box) = boot("walk-services") else { return };
    let docker = docker(&test_box, "--health-fails-after usr1");
    test_box.unit(
        "batch.service",
        "[Service]\nExecStart=/build/examples/plant --as batch --listen 8081 --ready /run/planted/batch\n",
    );
    let coder = "portreeve-model-coder.service";
    play(&test_box, "README.md", |command, remark| match (command, remark) {
        (kills, "coder's server") if kills.starts_with("kill -9 ") => {
            let main = main_pid(&test_box, coder);
            let server = test_box.sh(&format!("pgrep --parent {main}")).parse().unwrap();
            kill(&test_box, &[server]);
            // Both fail side by side: qwen's health from now on.
            docker.must(&["kill", "--signal", "USR1", "vllm-model-qwen"]);
            true
        }
        (kills, "the main process of coder's unit") if kills.starts_with("kill -9 ") => {
            kill(&test_box, &[main_pid(&test_box, coder)]);
            true
        }
        ("systemctl start batch", _) => {
            wait_until(DEADLINE, "its port is free", || test_box.can_bind(8081));
            test_box.sh("systemctl start batch");
            test_box.planted("batch");
            true
        }
        _ => false,
    });
}

#[test]
fn the_walk_without_units_is_as_it_is_written() {
    let Some(test_box) = boot("walk-containers") else { return };
    let docker = docker(&test_box, "");
    play(&test_box, "docs/models.md", |command, remark| match (command, remark) {
        (kills, "dockerd, containerd, the shim of qwen's container") => {
            assert!(kills.starts_with("kill -9 "));
            let container = docker.container("vllm-model-qwen");
            docker.abandon(&[&container]);
            true
        }
        ("systemctl start docker", _) => {
            docker.start_daemon();
            true
        }
        _ => false,
    });
}
