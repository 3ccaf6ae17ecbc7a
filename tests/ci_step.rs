//! portreeve as a step of a pipeline: the GitHub action and the GitLab job that are shipped (`packaging/`), their scripts run as the
//! platforms run them, with the files that these document; and the hooks of a runner, by a played runner.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;
use support::{
    DEADLINE, TestBox, engines, skip,
    stage::{Planted, Stage},
    wait_until,
};

/// Services by the verdict that their planted holder is to get.
const CONFIG: &str = r"
defaults: { min_age: 1ms, grace: 500ms, respawn_watch: 0s }
gate: { timeout: 0s, settle: 1ms }
services:
  empty: { ports: ['127.0.0.1:7300'] }
  left: { runs_in: container, ports: [7301, 7302], patterns: ['^ci-left '] }
  living: { ports: [7303] }
  crowd: { ports: ['7310', '7311', '7312', '7313', '7314', '7315', '7316', '7317', '7318', '7319', '7320', '7321'] }
";

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file)
}

fn yaml(file: &str) -> Value {
    let text = fs::read_to_string(packaging(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

fn stage() -> Option<(Stage, String)> {
    let stage = Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()?;
    // The tests beside this one share the machine's processes: each looks for its own alone.
    let own = format!("ci-left {}", stage.path("").display());
    let config = stage.write("config.yaml", &CONFIG.replace("ci-left ", &own));
    Some((stage, config))
}

/// Left behind on 7301 and 7302, with a command line that would break out of everything.
fn left(stage: &Stage) -> Option<Planted> {
    let path = stage.path("");
    let hostile = r"a|b\x0a::error::owned\x0d\x0a|%0A::set-output]##[error]</td><script>`]($(id)";
    let name = format!("ci-left {} {hostile}", path.display());
    stage.orphan(&["--as", &name, "--listen", "7301", "--listen", "7302"])
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a step left: exit code, log, summary, outputs.
#[derive(Debug)]
struct Step {
    code: i32,
    log: String,
    summary: String,
    outputs: BTreeMap<String, String>,
}

impl Step {
    fn report(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(&self.outputs["report"]).unwrap()).unwrap()
    }

    /// The commands that the platform would see: none while another command has stopped them.
    fn commands(&self) -> Vec<&str> {
        let mut token: Option<&str> = None;
        let mut commands = Vec::new();
        for line in self.log.lines().filter(|line| line.trim_start().starts_with("::")) {
            match token {
                Some(end) if line == format!("::{end}::") => token = None,
                Some(_) => {}
                None => match line.strip_prefix("::stop-commands::") {
                    Some(text) => token = Some(text),
                    None => commands.push(line),
                },
            }
        }
        commands
    }
}

/// Runs the action's steps as the runner does: inputs with their defaults, expressions filled in, `bash --noprofile --norc -eo pipefail`
/// on a file of the text (GitHub docs: "Workflow syntax", "Metadata syntax", "Variables").
fn action(stage: &Stage, inputs: &[(&str, &str)]) -> Step {
    let action = yaml("github/action.yml");
    let declared = action["inputs"].as_object().unwrap();
    assert!(inputs.iter().all(|(name, _)| declared.contains_key(*name)), "{inputs:?}");
    let value_of = |name: &str| {
        let given = inputs.iter().find(|(given, _)| *given == name).map(|(_, value)| *value);
        given.unwrap_or_else(|| declared[name]["default"].as_str().unwrap()).to_owned()
    };
    let folder = stage.path("runner");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let file = |name: &str| folder.join(name);
    fs::write(file("summary"), "").unwrap();
    fs::write(file("output"), "").unwrap();
    assert_eq!(action["runs"]["using"], "composite");
    let (mut code, mut log) = (0, String::new());
    for step in action["runs"]["steps"].as_array().unwrap() {
        assert_eq!(step["shell"], "bash");
        let run = step["run"].as_str().unwrap();
        assert!(!run.contains("${{"), "what is filled in here becomes a part of the script: {run}");
        fs::write(file("step.sh"), run).unwrap();
        let script =
            format!("exec bash --noprofile --norc -eo pipefail {}", file("step.sh").display());
        let mut command = stage.apart(&script);
        for (name, value) in step["env"].as_object().unwrap() {
            let value = value.as_str().unwrap();
            let input = value.strip_prefix("${{ inputs.").and_then(|rest| rest.strip_suffix(" }}"));
            command.env(name, input.map_or_else(|| value.to_owned(), value_of));
        }
        command
            .env("GITHUB_ACTIONS", "true")
            .env("GITHUB_ACTION_PATH", packaging("github"))
            .env("GITHUB_OUTPUT", file("output"))
            .env("GITHUB_STEP_SUMMARY", file("summary"))
            .env("RUNNER_TEMP", &folder);
        let output = command.output().unwrap();
        code = output.status.code().unwrap();
        log.push_str(&said(&output));
        log.push_str(&String::from_utf8(output.stderr).unwrap());
    }
    let outputs = fs::read_to_string(file("output")).unwrap();
    let outputs = outputs.lines().map(|line| line.split_once('=').expect(line));
    let outputs = outputs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for (name, output) in action["outputs"].as_object().unwrap() {
        assert_eq!(output["value"], format!("${{{{ steps.portreeve.outputs.{name} }}}}"));
    }
    Step { code, log, summary: fs::read_to_string(file("summary")).unwrap(), outputs }
}

fn act(stage: &Stage, config: &str, inputs: &[(&str, &str)]) -> Step {
    let path = stage.program("portreeve");
    let own = [("config", config), ("path", path.to_str().unwrap())];
    action(stage, &[inputs, &own].concat())
}

#[test]
fn the_action_annotates_fills_the_summary_and_hands_on_its_outputs() {
    let Some((stage, config)) = stage() else { return };
    let Some(orphan) = left(&stage) else { return };
    let step = act(&stage, &config, &[("services", "left\nempty")]);
    assert_eq!(step.code, 1, "{step:?}");
    let commands = step.commands();
    assert_eq!(commands.len(), 1, "{step:?}");
    let title = "::error title=portreeve%3A orphan%3A not where left runs on 7301%2C 7302::pid ";
    assert!(commands[0].starts_with(title), "{step:?}");
    assert_eq!(step.log.lines().count(), 1, "the hostile command line ends no line: {step:?}");
    assert!(step.summary.starts_with("### portreeve: not clear\n"), "{step:?}");
    let row = step.summary.lines().find(|l| l.contains(&format!("| {} |", orphan.pid()))).unwrap();
    // Five cells, whatever the command line holds.
    assert_eq!(row.replace("\\|", "").matches('|').count(), 6, "{row}");
    assert!(!step.summary.contains("<script>"), "{step:?}");
    assert_eq!(
        (&*step.outputs["exit-code"], &*step.outputs["orphans"], &*step.outputs["ended"]),
        ("1", "1", "0")
    );
    assert_eq!(step.report()["summary"]["orphans"], 1);
    assert_eq!(step.report()["summary"]["ports_guarded"], 3);
    assert!(orphan.is_alive());

    let step = act(&stage, &config, &[("mode", "reap"), ("services", "left")]);
    assert_eq!((step.code, &*step.outputs["ended"]), (0, "1"), "{step:?}");
    assert!(!orphan.is_alive());
    let step = act(&stage, &config, &[("mode", "gate"), ("services", "left"), ("timeout", "1s")]);
    assert_eq!((step.code, step.commands().len()), (0, 0), "{step:?}");
    assert_eq!(step.report()["ports"][0]["answer"], "open");
    assert!(step.summary.starts_with("### portreeve gate: clear\n"), "{step:?}");
}

#[test]
fn no_more_annotations_than_the_platform_shows_and_the_summary_has_them_all() {
    let Some((stage, config)) = stage() else { return };
    let ports: Vec<String> = (7310..7322).map(|port| port.to_string()).collect();
    let _foreign: Vec<Planted> = ports
        .iter()
        .map(|port| stage.plant(&["--as", "somebody else", "--listen", port]))
        .collect();
    let step = act(&stage, &config, &[("services", "crowd")]);
    assert_eq!((step.code, step.commands().len()), (1, 10), "{step:?}");
    let last = "::error title=portreeve::3 more; the job summary has them all";
    assert_eq!(step.commands().last(), Some(&last));
    assert_eq!(step.summary.matches("somebody else").count(), 12, "{step:?}");
}

#[test]
fn fail_on_says_which_answers_fail_the_step() {
    let Some((stage, config)) = stage() else { return };
    let Some(_orphan) = left(&stage) else { return };
    for (fail_on, code) in [("any", 1), ("not-clear", 1), ("never", 0)] {
        let step = act(&stage, &config, &[("services", "left"), ("fail-on", fail_on)]);
        assert_eq!((step.code, &*step.outputs["exit-code"]), (code, "1"), "{step:?}");
    }
    // A played portreeve that could not tell.
    let played = stage.write("played", "#!/bin/sh\nfor w; do f=$l; l=$w; case $f in --json-file) echo {} >$w;; esac; done; exit 2\n");
    fs::set_permissions(&played, fs::Permissions::from_mode(0o755)).unwrap();
    for (fail_on, code) in [("any", 2), ("not-clear", 0), ("never", 0)] {
        let step = action(&stage, &[("path", &played), ("fail-on", fail_on)]);
        assert_eq!(step.code, code, "{step:?}");
    }
}

#[test]
fn where_portreeve_cannot_run_the_step_fails_and_says_what_to_do() {
    let Some((stage, config)) = stage() else { return };
    let broken = stage.write("broken.yaml", "services:\n  x: { prots: [1] }\n::error::owned\n");
    let missing = "/nowhere/portreeve";
    for (inputs, word) in [
        (
            vec![("path", missing)],
            "there is no program '/nowhere/portreeve' on this runner%0Anext: install",
        ),
        (
            vec![("config", &*broken)],
            "portreeve did not come to a report (exit code 2)%0Anext: see",
        ),
        (vec![("mode", "model")], "mode 'model' is unknown"),
        (
            vec![("mode", "gate"), ("services", "empty -- touch /tmp/owned")],
            "'services' holds '--'",
        ),
        (vec![("ports", "--also=foreign")], "'ports' holds '--also=foreign'"),
        (vec![("timeout", "1s")], "'timeout' is for gates"),
        (vec![("fail-on", "nothing")], "fail-on 'nothing' is unknown"),
        (vec![("sudo", "perhaps")], "sudo 'perhaps' is unknown"),
        (vec![("mode", "x\n::error::owned")], "mode 'x%0A::error::owned' is unknown"),
    ] {
        // Even where no answer is to fail the step.
        let path = stage.program("portreeve");
        let path = path.to_str().unwrap().to_owned();
        let mut all: Vec<(&str, &str)> =
            vec![("fail-on", "never"), ("config", &config), ("path", &path)];
        all.retain(|(name, _)| inputs.iter().all(|(given, _)| given != name));
        let step = action(&stage, &[&all[..], &inputs].concat());
        assert_eq!(step.code, 2, "{step:?}");
        let commands = step.commands();
        assert_eq!(commands.len(), 1, "{step:?}");
        assert!(commands[0].starts_with(&format!("::error title=portreeve::{word}")), "{step:?}");
        assert_eq!(step.outputs["exit-code"], "2");
    }
}

#[test]
fn no_input_becomes_a_command_of_the_shell() {
    let Some((stage, config)) = stage() else { return };
    let proof = stage.path("proof");
    let text = format!("$(touch {0});`touch {0}`;*;'\"", proof.display());
    for input in
        ["services", "ports", "gpus", "config", "timeout", "mode", "path", "sudo", "fail-on"]
    {
        let step = act(&stage, &config, &[(input, &text)]);
        assert_ne!(step.code, 0, "{input}: {step:?}");
        assert!(!proof.exists(), "{input}");
    }
}

// ---- GitLab

/// Runs the job's script as the shell executor does: variables in the environment, bash with `set -eo pipefail`.
fn gitlab(stage: &Stage, variables: &[(&str, &str)]) -> (i32, String, PathBuf) {
    let job = &yaml("gitlab/portreeve.yml")[".portreeve"];
    let folder = stage.path("build");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let script: Vec<&str> =
        job["script"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    let file = stage.write("job.sh", &format!("set -eo pipefail\n{}\n", script.join("\n")));
    let path = stage.program("portreeve");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", path.parent().unwrap().display());
    let mut command = stage.apart(&format!("cd {}; exec bash {file}", folder.display()));
    command.env("PATH", path);
    for (name, value) in job["variables"].as_object().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    (output.status.code().unwrap(), said(&output), folder)
}

#[test]
fn the_gitlab_job_leaves_the_document_the_code_and_a_section_of_the_log() {
    let Some((stage, config)) = stage() else { return };
    let Some(orphan) = left(&stage) else { return };
    let (code, log, folder) = gitlab(&stage, &[("PORTREEVE_SERVICES", "-x")]);
    assert_eq!((code, &*log), (3, "error: PORTREEVE_SERVICES holds names only\n"));
    assert!(!folder.join("portreeve.json").exists());
    let (code, log, folder) = gitlab(&stage, &[("PORTREEVE_SERVICES", "no-such-service")]);
    assert_eq!(code, 3, "{log}");
    assert_eq!(
        fs::read_to_string(folder.join("portreeve.env")).unwrap(),
        "PORTREEVE_EXIT_CODE=3\n"
    );
    let own = [("PORTREEVE_CONFIG", &*config), ("PORTREEVE_SERVICES", "left empty")];
    let (code, log, folder) = gitlab(&stage, &own);
    assert_eq!(code, 1, "{log}");
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0].starts_with("\u{1b}[0Ksection_start:"), "{log}");
    assert!(lines[0].ends_with(":portreeve\r\u{1b}[0Kportreeve scan"), "{log}");
    assert!(lines.last().unwrap().starts_with("\u{1b}[0Ksection_end:"), "{log}");
    assert_eq!(log.matches('\u{1b}').count(), 4, "nothing else moves the reader's cursor: {log}");
    let file = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let report: Value = serde_json::from_str(&file("portreeve.json")).unwrap();
    assert_eq!(report["summary"]["orphans"], 1);
    assert_eq!(file("portreeve.env"), "PORTREEVE_EXIT_CODE=1\n");
    assert!(orphan.is_alive());
    let (code, log, _) = gitlab(&stage, &[&own[..], &[("PORTREEVE_MODE", "reap")]].concat());
    assert_eq!((code, orphan.is_alive()), (0, false), "{log}");
}

// ---- The hooks of a runner

/// What svc.sh of a runner installs, in short: its main process starts each job and is not what a stop ends.
const RUNNER: &str = "[Service]\nExecStart=/run/runner\nKillMode=process\n";

/// A runner that runs the hook before a job, a job that leaves a server behind, and the hook after it.
const JOB: &str = r#"#!/bin/bash
export GITHUB_ACTIONS=true
bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED" >/run/started.log 2>&1
bash -c "/build/examples/plant --daemonise --as 'python3 /app/server.py --config x' --listen 8091 --ready /run/planted/left"
until [ -e /run/planted/left ]; do sleep 0.05; done
bash -e "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED" >/run/completed.log 2>&1
echo done >/run/job
exec sleep infinity
"#;

#[test]
fn the_hooks_end_what_is_left_behind_elsewhere_and_show_what_the_runners_unit_speaks_for() {
    let test_box = match TestBox::boot("hooks") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    for hook in ["job-started.sh", "job-completed.sh"] {
        let text = fs::read_to_string(packaging("github/hooks").join(hook)).unwrap();
        test_box.write(&format!("/opt/portreeve/{hook}"), &text);
    }
    test_box.write("/etc/portreeve/config.yaml", "defaults: { min_age: 1ms, respawn_watch: 0s }\n");
    test_box.write("/run/runner", JOB);
    test_box.sh("ln -s /build/portreeve /usr/bin/portreeve; chmod +x /run/runner");
    let hook = |phase: &str, file: &str| {
        format!("Environment=ACTIONS_RUNNER_HOOK_JOB_{phase}=/opt/portreeve/{file}\n")
    };
    let hooks = hook("STARTED", "job-started.sh") + &hook("COMPLETED", "job-completed.sh");
    test_box.unit("actions.runner.test.service", &format!("{RUNNER}{hooks}"));
    // Left behind by somebody else than a job: a worker whose server is gone.
    test_box.sh(
        "bash -c '/build/examples/plant --daemonise --title VLLM::EngineCore --ready /run/planted/worker'",
    );
    let worker = test_box.planted("worker");
    test_box.sh("systemctl start actions.runner.test");
    wait_until(DEADLINE, "the job is over", || {
        test_box.run(&["test", "-e", "/run/job"]).status.success()
    });
    let left = test_box.planted("left");
    let started = test_box.sh("cat /run/started.log");
    let completed = test_box.sh("cat /run/completed.log");
    assert_eq!((test_box.stat(worker), &*started), (None, ""), "{completed}");
    // The runner's unit speaks for what its jobs leave: it is seen, and spared.
    assert!(completed.contains("spare: in actions.runner.test.service"), "{completed}");
    assert!(completed.contains("clear: no orphans"), "{completed}");
    // A gate is what keeps the next job off that port.
    let gate = test_box.run(&["portreeve", "gate", "--port", "8091", "--timeout", "0s"]);
    assert_eq!(gate.status.code(), Some(1), "{gate:?}");
    assert!(said(&gate).contains("spare: in actions.runner.test.service"), "{gate:?}");
    // With the unit gone nobody speaks for it, and nothing convicts it either.
    test_box.sh("systemctl stop actions.runner.test");
    let report = test_box.portreeve(&["scan", "aidb"]);
    assert_eq!((report.code, &report.process(left)["verdict"]), (1, &"suspect".into()));
    // An ephemeral runner with KillMode=control-group leaves nothing: systemd ends all of it.
    test_box
        .unit("actions.runner.test.service", &format!("{RUNNER}{hooks}KillMode=control-group\n"));
    test_box.sh("rm /run/job /run/planted/left");
    engines::kill(&test_box, &[left]);
    test_box.sh("systemctl start actions.runner.test");
    wait_until(DEADLINE, "the job is over", || {
        test_box.run(&["test", "-e", "/run/job"]).status.success()
    });
    let left = test_box.planted("left");
    test_box.sh("systemctl stop actions.runner.test");
    assert_eq!(test_box.stat(left), None);
}
