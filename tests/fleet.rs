//! What is shipped for fleets (`packaging/`): the DaemonSet run by real engines, node-problem-detector's plugin as it runs one, the alert
//! rules on the metrics that there are; each against the schema or the tool that its readers publish.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind},
    skip,
    stage::Stage,
    wait_until,
};

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file)
}

fn text(file: &str) -> String {
    fs::read_to_string(packaging(file)).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

// ---- Schemas and tools

/// A program that `tests/tools` has put beside the build.
fn tool(name: &str) -> Option<Command> {
    let build = Path::new(env!("CARGO_BIN_EXE_portreeve")).parent().unwrap();
    let path = build.parent().unwrap().join("tools").join(name);
    if path.exists() {
        return Some(Command::new(path));
    }
    skip(&format!("'{name}' is not there: tests/tools gets it"));
    None
}

fn is_content(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[test]
fn the_action_and_the_gitlab_job_fit_their_schemas() {
    for (schema, more, file) in [
        ("vendor.github-actions", None, "github/action.yml"),
        ("vendor.gitlab-ci", Some(["--data-transform", "gitlab-ci"]), "gitlab/portreeve.yml"),
    ] {
        let Some(mut command) = tool("python/bin/check-jsonschema") else { return };
        command.args(["--builtin-schema", schema]).args(more.into_iter().flatten());
        command.arg(packaging(file));
        is_content(command);
    }
}

#[test]
fn the_manifests_fit_the_schemas_of_kubernetes() {
    let Some(mut command) = tool("python/bin/kubernetes-validate") else { return };
    command.arg("--strict").arg(packaging("kubernetes/portreeve.yaml"));
    is_content(command);
}

#[test]
fn the_alert_rules_are_sound_and_fire_when_they_should() {
    for (verb, file) in [("check", "portreeve.rules.yml"), ("test", "portreeve.test.yml")] {
        let Some(mut command) = tool("promtool") else { return };
        command.args([verb, "rules"]).arg(packaging("prometheus").join(file));
        is_content(command);
    }
}

// ---- Metrics

/// The series of a page, by family.
fn series(page: &str) -> BTreeMap<String, usize> {
    let mut families = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        *families.entry(name.to_owned()).or_default() += 1;
    }
    families
}

#[test]
fn the_alert_rules_ask_for_metrics_that_there_are() {
    let stage = match Stage::set() {
        Ok(stage) => stage,
        Err(reason) => return skip(&reason),
    };
    let mut there: BTreeSet<String> = BTreeSet::new();
    for words in [&["scan"][..], &["reap", "--port", "7399"]] {
        let page = said(&stage.run(&[words, &["--format", "prometheus"]].concat()));
        there.extend(series(&page).into_keys());
    }
    // What no run here has: GPUs, and a registry of models.
    let documented =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.md"));
    let documented = documented.unwrap();
    let rules = text("prometheus/portreeve.rules.yml");
    let rules: Value = serde_saphyr::from_str(&rules).unwrap();
    let name = regex::bytes::Regex::new(r"portreeve_[a-z_]+").unwrap();
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        let expression = rule["expr"].as_str().unwrap();
        for found in name.find_iter(expression.as_bytes()) {
            let metric = std::str::from_utf8(found.as_bytes()).unwrap();
            let is_there = there.contains(metric) || documented.contains(&format!("| `{metric}`"));
            assert!(is_there, "{metric}: {there:?}");
        }
        assert!(rule["annotations"]["next"].is_string(), "{rule}");
    }
}

/// docs/fleet.md counts them: beside the ports 13 of a scan (one of them where there may be models), 18 of a reap.
#[test]
fn a_host_has_as_many_series_as_the_document_says() {
    let stage = match Stage::set() {
        Ok(stage) => stage,
        Err(reason) => return skip(&reason),
    };
    for (verb, fixed) in [("scan", 12), ("reap", 18)] {
        let page = said(&stage.run(&[verb, "--format", "prometheus"]));
        let mut families = series(&page);
        assert_eq!(families.remove("portreeve_port_state"), Some(11), "{page}");
        families.remove("portreeve_orphaned_model_containers");
        assert_eq!(families.values().sum::<usize>(), fixed, "{families:?}");
    }
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet.md"));
    let document = document.unwrap();
    for row in ["| `scan` | 13 | 24 | 24 000 |", "| `reap` | 18 | 29 | 29 000 |"] {
        assert!(document.contains(row), "{row}");
    }
}

// ---- node-problem-detector

/// What node-problem-detector makes of a rule: the command without a shell, in a process group of its own; what it said, trimmed and cut;
/// 0 OK, 1 not, else unknown (its pkg/custompluginmonitor/plugin/plugin.go, run()).
fn detect(stage: &Stage, rule: &Value, more: &[&str], most: usize) -> (&'static str, String) {
    assert_eq!(rule["path"], "/usr/bin/portreeve");
    let arguments = rule["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
    let arguments: Vec<&str> = arguments.chain(more.iter().copied()).collect();
    let output = stage.portreeve_by("exec setsid --wait", &arguments).output().unwrap();
    let mut message = said(&output).trim().as_bytes().to_vec();
    message.truncate(most);
    let status = match output.status.code() {
        Some(0) => "OK",
        Some(1) => "NonOK",
        _ => "Unknown",
    };
    (status, String::from_utf8(message).unwrap())
}

#[test]
fn node_problem_detector_gets_its_answer_in_one_whole_line() {
    let stage = match Stage::set_on_the_host() {
        Ok(stage) => stage,
        Err(reason) => return skip(&reason),
    };
    let plugin: Value =
        serde_json::from_str(&text("node-problem-detector/portreeve.json")).unwrap();
    let global = &plugin["pluginConfig"];
    let most = usize::try_from(global["max_output_length"].as_u64().unwrap()).unwrap();
    let rule = &plugin["rules"][0];
    // Its own checks (pkg/custompluginmonitor/types/config.go): the plugin's name, the condition of a permanent rule, timeouts.
    assert_eq!((&plugin["plugin"], &rule["type"]), (&"custom".into(), &"permanent".into()));
    assert_eq!(rule["condition"], plugin["conditions"][0]["type"]);
    assert_eq!(rule["timeout"], global["timeout"]);

    let config = "services: { own: { ports: ['7401', '7402', '7403', '7404', '7405', '7406', '7407', '7408', '7409', \
                  '7410', '7411', '7412', '7413', '7414', '7415', '7416', '7417', '7418', '7419', '7420'] } }";
    let config = stage.write("config.yaml", config);
    let own = ["own", "--config", &config];
    let clear = ("OK", "clear: 20 ports guarded".to_owned());
    assert_eq!(detect(&stage, rule, &own, most), clear);
    let hostile = r"x\x0a\xe2\x80\xae '$(id)' ::error::";
    let listen: Vec<String> = (7401..7421).map(|port| port.to_string()).collect();
    let listen: Vec<&str> = listen.iter().flat_map(|port| ["--listen", port]).collect();
    let foreign = stage.plant(&[&["--as", hostile], &listen[..]].concat());
    let (status, message) = detect(&stage, rule, &own, most);
    assert_eq!(status, "NonOK");
    let head = "not clear: 1 foreign, 20 ports guarded, 20 held; 7401 7402 ";
    assert!(message.starts_with(head), "{message}");
    let shown = message.matches(" 74").count();
    assert!(message.ends_with(&format!(" +{}", 20 - shown)), "nothing is cut: {message}");
    drop(foreign);
    let (status, message) = detect(&stage, rule, &["no-such-service"], most);
    assert_eq!((status, &*message), ("Unknown", ""), "the reason is in its log");
}

// ---- Kubernetes

/// A Debian in small: what the manifest calls, and the libraries of it.
const IMAGE: &str = r#"
dir=$(mktemp -d)
mkdir -p "$dir"/{bin,usr/bin,etc/portreeve,metrics,run,proc,sys,dev,tmp,var/lib/portreeve}
cp -L /bin/sh "$dir/bin/sh"
cp -L /usr/bin/nsenter /usr/bin/setpriv /bin/sleep /bin/cat /build/portreeve "$dir/usr/bin/"
for program in "$dir"/bin/* "$dir"/usr/bin/*; do
    for library in $(ldd "$program" | grep -o '/lib[^ ]*'); do install -D "$library" "$dir$library"; done
done
tar -C "$dir" -cf /run/portreeve.tar .
"#;

/// What the kubelet would ask its runtime for, as options of `docker run` and `podman run`; its command behind them.
fn as_options(test_box: &TestBox) -> (Vec<String>, Vec<String>) {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text("kubernetes/portreeve.yaml")).unwrap();
    let config = documents.iter().find(|d| d["kind"] == "ConfigMap").unwrap();
    for (name, text) in config["data"].as_object().unwrap() {
        test_box.write(&format!("/run/configmap/{name}"), text.as_str().unwrap());
    }
    let pod =
        &documents.iter().find(|d| d["kind"] == "DaemonSet").unwrap()["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let context = &container["securityContext"];
    assert_eq!((&pod["hostPID"], &pod["hostNetwork"]), (&true.into(), &true.into()));
    assert_eq!(
        (&context["readOnlyRootFilesystem"], &context["runAsUser"]),
        (&true.into(), &0.into())
    );
    let words = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut options: Vec<String> =
        ["--pid=host", "--network=host", "--read-only", "--user=0"].map(str::to_owned).to_vec();
    options
        .extend(words(&context["capabilities"]["drop"]).iter().map(|c| format!("--cap-drop={c}")));
    let rights = words(&context["capabilities"]["add"]);
    assert!(!rights.contains(&"KILL".to_owned()), "it only looks");
    options.extend(rights.iter().map(|right| format!("--cap-add={right}")));
    for mount in container["volumeMounts"].as_array().unwrap() {
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        let from = volume["hostPath"]["path"].as_str().unwrap_or("/run/configmap");
        if volume["hostPath"]["type"] == "DirectoryOrCreate" {
            test_box.sh(&format!("mkdir -p {from}"));
        }
        let mode = if mount["readOnly"] == true { "ro" } else { "rw" };
        options.push(format!("--volume={from}:{}:{mode}", mount["mountPath"].as_str().unwrap()));
    }
    (options, [words(&container["command"]), words(&container["args"])].concat())
}

/// The page of metrics, without the time.
fn states(page: &str) -> Vec<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#') && !line.contains("timestamp"));
    lines.map(str::to_owned).collect()
}

#[test]
fn the_daemonset_sees_what_the_host_sees_and_may_signal_nobody_but_root() {
    let test_box = match TestBox::boot("daemonset") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    test_box.sh(IMAGE);
    let (options, command) = as_options(&test_box);
    // Left behind, and managed by a unit.
    test_box.sh(
        "setpriv --reuid alice --regid alice --clear-groups \\
            /build/examples/plant --daemonise --title VLLM::EngineCore --ready /run/planted/worker
         systemd-run --quiet --unit=pg /build/examples/plant --as 'postgres -D /data' --listen 5432 --ready /run/planted/pg",
    );
    let worker = test_box.planted("worker");
    test_box.planted("pg");
    let on_the_host = || {
        let run = ["/build/portreeve", "scan", "--config", "/run/configmap/config.yaml"];
        let page = said(&test_box.run(&[&run[..], &["--format", "prometheus"]].concat()));
        states(&page)
    };
    let orphan = "portreeve_processes{verdict=\"orphan\"} 1".to_owned();
    wait_until(DEADLINE, "the worker is old enough to be judged", || {
        on_the_host().contains(&orphan)
    });
    for kind in [Kind::DockerSystemd, Kind::Podman] {
        let engine = Engine::start(&test_box, kind);
        engine.must(&["import", "/run/portreeve.tar", "portreeve"]);
        let page = test_box.inside("/var/lib/portreeve/metrics/portreeve.prom");
        let _ = fs::remove_file(&page);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let run = ["run", "--detach", "--name", "looks"];
        engine.must(&[&run, &options[..], &["portreeve"], &words].concat());
        wait_until(DEADLINE, "it has looked twice", || {
            engine.run(&["logs", "looks"]).stdout.ends_with(b"\n")
        });
        let logs = said(&engine.run(&["logs", "looks"]));
        assert_eq!(logs, "not clear: 1 orphan, 11 ports guarded, 1 held\n", "{kind:?}");
        assert_eq!(states(&fs::read_to_string(&page).unwrap()), on_the_host(), "{kind:?}");
        // The same way as it looks, somebody has it reap.
        let reap = command.last().unwrap().lines().find(|line| line.contains("nsenter")).unwrap();
        let reap = reap.replace("portreeve scan \"$@\"", "portreeve reap");
        let reaped = engine.run(&["exec", "looks", "sh", "-c", &reap]);
        assert_eq!(reaped.status.code(), Some(1), "{reaped:?}");
        assert!(said(&reaped).contains("signal refused"), "{reaped:?}");
        assert!(test_box.stat(worker).is_some(), "{kind:?}");
        engine.must(&["rm", "--force", "looks"]);
    }
}

#[test]
fn a_pods_process_is_spared_while_it_is_supervised_and_else_undecided() {
    let test_box = match TestBox::boot("pods") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    // The control groups of two containers as the kubelet and containerd name them, and shells in place of their shims: the one
    // ends, the other stays.
    test_box.sh(
        "pods=/sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice
         for id in a b; do
            group=$pods/kubepods-besteffort-pod$id.slice/cri-containerd-$(printf \"$id%.0s\" $(seq 64)).scope
            mkdir -p $group
            case $id in a) port=6333 shim=exit;; b) port=6379 shim=wait;; esac
            server=\"/build/examples/plant --as server --listen $port --ready /run/planted/$id\"
            setsid sh -c \"sh -c 'echo \\$\\$ >$group/cgroup.procs; exec $server' & $shim\" \\
                </dev/null >/dev/null 2>&1 &
         done",
    );
    let (left, served) = (test_box.planted("a"), test_box.planted("b"));
    wait_until(DEADLINE, "the first shim has ended", || {
        test_box.stat(left).is_some_and(|stat| stat.parent == 1)
    });
    let report = test_box.portreeve(&["scan", "qdrant", "redis"]);
    assert_eq!(report.code, 2, "{:?}", report.json);
    let verdict = |pid: u32| {
        let process = report.process(pid);
        (process["row"].as_u64().unwrap(), process["title"].as_str().unwrap().to_owned())
    };
    assert_eq!(verdict(left), (6, "undecided".to_owned()));
    assert_eq!(verdict(served), (3, "spare: live container".to_owned()));
}
