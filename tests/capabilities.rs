//! Each feature with exactly the rights that docs/support.md says it needs, and with each of them missing: then it does less and says
//! so, frees nothing and convicts nobody. The table there is what is tried here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{process::Output, time::Duration};

use serde_json::Value;
use support::{
    Report, Terminal, TestBox,
    engines::{Engine, Kind},
    gpus::{STATE, Stub},
    skip,
    stage::Stage,
};

const SUPPORT: &str = include_str!("../docs/support.md");

const CONFIG: &str = "
defaults: { min_age: 1s, grace: 500ms, respawn_watch: 0s }
gate: { timeout: 0s, settle: 50ms }
services:
  docker: { runs_in: container, ports: [8501], patterns: ['docker\\.py --config'] }
  login: { runs_in: container, ports: [8506], patterns: ['login\\.py --config'] }
  users-unit: { runs_in: container, ports: [8507], patterns: ['users-unit\\.py --config'] }
";
/// Where no engine matters.
const ALONE: &str = "
gate: { timeout: 0s, settle: 50ms }
engines: { docker: 'off', podman: 'off' }
services:
  low: { ports: [508] }
  high: { ports: [8508] }
  detoured: { ports: [8503] }
";

/// A row of the table.
#[derive(Debug)]
struct Row {
    feature: String,
    /// Else any user.
    is_root: bool,
    /// Each with the words by which a run without it says so; none where they are listed elsewhere.
    needs: Vec<(String, String)>,
}

/// The table of docs/support.md: feature, user, and each capability with what is said without it.
fn rows() -> Vec<Row> {
    let (_, table) =
        SUPPORT.split_once("| feature | as | needs, and what is said without it |").unwrap();
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, feature, user, needs, _] = cells[..] else { panic!("{line}") };
            let needs = needs.split("; ").filter(|need| *need != "none");
            let needs = needs.map(|need| {
                let (name, said) = need.split_once(": ").unwrap_or_else(|| panic!("{line}"));
                assert!(name.starts_with("CAP_"), "{line}");
                (name.to_owned(), said.trim_matches('*').to_owned())
            });
            assert!(["any user", "root"].contains(&user), "{line}");
            Row { feature: feature.to_owned(), is_root: user == "root", needs: needs.collect() }
        })
        .collect()
}

/// A feature as it is tried.
struct Trial {
    /// As docs/support.md calls it.
    feature: &'static str,
    words: &'static str,
    /// Whether it was had.
    is_had: fn(&Report) -> bool,
}

fn verdict_of(report: &Report, command_line: &str) -> String {
    let all = report.json["processes"].as_array().into_iter().flatten();
    let of = |process: &&Value| {
        process["command_line"].as_str().is_some_and(|line| line.contains(command_line))
    };
    all.filter(of).filter_map(|process| process["verdict"].as_str()).collect()
}

fn state_of(report: &Report, port: &str) -> [String; 2] {
    let word = |field: &str| report.port(port)[field].as_str().unwrap_or_default().to_owned();
    [word("state"), word("answer")]
}

/// In this order: what ends something comes behind all that looks at it.
const TRIALS: [Trial; 10] = [
    Trial {
        feature: "whether a port is taken (`scan`)",
        words: "scan --port 8506 --port 8599",
        is_had: |r| {
            state_of(r, "8506/tcp")[0] == "holder_not_visible"
                && state_of(r, "8599/tcp")[0] == "free"
        },
    },
    Trial {
        feature: "who holds a port, and what becomes of them (`scan`)",
        words: "scan login",
        is_had: |r| verdict_of(r, "login.py") == "orphan" && r.code == 1,
    },
    Trial {
        feature: "why (`explain`)",
        words: "explain 8506",
        is_had: |r| r.json["processes"][0]["row"] == 16 && r.code == 0,
    },
    Trial {
        feature: "what is left of Docker's containers (`scan`)",
        words: "scan docker",
        is_had: |r| verdict_of(r, "docker.py") == "orphan" && r.code == 1,
    },
    Trial {
        feature: "what users' managers keep (`scan`)",
        words: "scan users-unit",
        is_had: |r| verdict_of(r, "users-unit.py") == "spare" && r.code == 0,
    },
    Trial {
        feature: "a gate on a port from 1024 on",
        words: "gate --config /etc/alone.yaml high",
        is_had: |r| state_of(r, "8508/tcp")[1] == "open" && r.code == 0,
    },
    Trial {
        feature: "a gate on a port below 1024",
        words: "gate --config /etc/alone.yaml low",
        is_had: |r| state_of(r, "508/tcp")[1] == "open" && r.code == 0,
    },
    Trial {
        feature: RULES,
        words: "gate --config /etc/alone.yaml detoured",
        is_had: |r| state_of(r, "8503/tcp")[0] == "detoured" && r.code == 1,
    },
    Trial {
        feature: "a gate on a port that only Docker counts as taken",
        words: "gate --port 8502",
        is_had: |r| state_of(r, "8502/tcp")[0] == "allocated" && r.code == 1,
    },
    Trial {
        feature: "ending processes (`reap`)",
        words: "reap login",
        is_had: |r| {
            let ended = &r.json["processes"][0]["outcome"]["result"];
            verdict_of(r, "login.py") == "orphan" && ended == "terminated" && r.code == 0
        },
    },
];

/// The one thing that is let pass unseen, and said (docs/decisions/0017).
const RULES: &str = "a gate on a port that a rule takes (DNAT)";

/// These capabilities behind setpriv's `-all`: `,+kill,+sys_ptrace`.
fn held(rights: &[&str]) -> String {
    rights.iter().flat_map(|name| [",+", &name[4..]]).collect::<String>().to_lowercase()
}

/// Runs portreeve with these rights and no other; what it reported, and what a person is told.
fn run(test_box: &TestBox, is_root: bool, rights: &[&str], words: &str) -> (Report, String) {
    let held = held(rights);
    let user = if is_root {
        String::new()
    } else {
        format!("--reuid 65534 --regid 65534 --clear-groups --ambient-caps=-all{held}")
    };
    let by = format!(
        "exec setpriv {user} --inh-caps=-all{held} --bounding-set=-all{held} --no-new-privs \
         env HOME=/nonexistent /build/portreeve {words}"
    );
    let ask = |more: &str| -> Output { test_box.run(&["sh", "-euc", &format!("{by}{more}")]) };
    // What ends something ends it once: the report first, and the person is told of what is left.
    let report = Report::read(&ask(" --format json"));
    let told = ask("");
    (report, String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned())
}

/// What this run convicts, or calls free or open.
fn harsh(report: &Report) -> Vec<String> {
    let all = |name: &str| report.json[name].as_array().cloned().unwrap_or_default();
    let is =
        |value: &Value, words: &[&str]| value.as_str().is_some_and(|word| words.contains(&word));
    let processes = all("processes").into_iter().filter(|process| {
        is(&process["verdict"], &["orphan", "suspect", "unsupervised_container", "foreign"])
            || process["would_end"] == true
    });
    let ports = all("ports").into_iter().filter(|port| {
        is(&port["state"], &["free", "no_listener"]) && port["answer"].is_null()
            || is(&port["answer"], &["open"])
    });
    let named =
        processes.map(|p| format!("pid {}", p["pid"])).chain(ports.map(|p| p["port"].to_string()));
    named.collect()
}

/// What only somebody with rights can judge: a login's orphan, a container's, a user's unit, a lost forwarder, a rule.
fn leave_behind(test_box: &TestBox) {
    let server = |name: &str, port: u16| {
        format!(
            "/build/examples/plant --as 'python3 /app/{name}.py --config x' --listen {port} --ready /run/planted/{name}"
        )
    };
    let mut login = test_box.login("alice", Terminal::No);
    login.types(&format!("nohup {} >/dev/null 2>&1 </dev/null &", server("login", 8506)));
    let pid = test_box.planted("login");
    login.leaves();
    test_box.wait_for_logout(pid);
    test_box.wait_for_age(pid, Duration::from_millis(1100));

    test_box.write("/app/users-unit.sh", &format!("exec {}\n", server("users-unit", 8507)));
    test_box.sh("runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 \
         systemd-run --user --quiet --unit=bobs sh /app/users-unit.sh");
    test_box.wait_for_age(test_box.planted("users-unit"), Duration::from_millis(1100));

    test_box.sh(
        "nft add table ip test; nft 'add chain ip test pre { type nat hook prerouting priority -100; }'
         nft 'add chain ip test out { type nat hook output priority -100; }'
         for chain in pre out; do nft add rule ip test $chain tcp dport 8503 dnat to 10.9.9.1:80; done",
    );
    let docker = Engine::start(test_box, Kind::DockerSystemd);
    let of_docker = docker.contain(
        "docker",
        &["--network", "host"],
        &["--as", "python3 /app/docker.py --config x", "--listen", "8501"],
    );
    test_box.wait_for_age(of_docker.pid, Duration::from_millis(1100));
    docker.abandon(&[&of_docker]);
    docker.forget();
    docker.start_daemon();
    docker.wait_for_status("docker", "exited");
    docker.contain("lost", &["--publish", "8502:80"], &["--listen", "80"]);
    test_box.sh("kill -9 $(pgrep docker-proxy)");
}

#[test]
fn each_feature_runs_with_the_rights_that_it_is_said_to_need_and_says_so_without_each_of_them() {
    let test_box = match TestBox::boot("capabilities") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    test_box.write("/etc/portreeve/config.yaml", CONFIG);
    test_box.write("/etc/alone.yaml", ALONE);
    leave_behind(&test_box);
    let rows = rows();
    let tried: Vec<&str> = TRIALS.iter().map(|trial| trial.feature).chain([GPUS]).collect();
    let listed: Vec<&str> = rows.iter().map(|row| row.feature.as_str()).collect();
    assert_eq!(listed, tried, "the table of docs/support.md is what is tried here");
    for Trial { feature, words, is_had } in TRIALS {
        let row = rows.iter().find(|row| row.feature == feature).unwrap();
        let rights: Vec<&str> = row.needs.iter().map(|(name, _)| name.as_str()).collect();
        let (roots, _) = run(&test_box, true, &ALL, &words.replace("reap", "reap --dry-run"));
        for (missing, said) in &row.needs {
            let fewer: Vec<&str> = rights.iter().copied().filter(|name| name != missing).collect();
            let (less, told) = run(&test_box, row.is_root, &fewer, words);
            assert!(!is_had(&less), "{feature} does without {missing}: {:#}", less.json);
            assert!(told.contains(said.as_str()), "{feature} without {missing}: {told}");
            if feature != RULES {
                assert_ne!(less.code, 0, "{feature} without {missing}: {told}");
                let roots = harsh(&roots);
                let more: Vec<String> =
                    harsh(&less).into_iter().filter(|one| !roots.contains(one)).collect();
                assert!(more.is_empty(), "{feature} without {missing}: {more:?}: {told}");
            }
        }
        let (full, told) = run(&test_box, row.is_root, &rights, words);
        assert!(is_had(&full), "{feature} with {rights:?}: {told}\n{:#}", full.json);
        for (missing, said) in &row.needs {
            assert!(
                !told.contains(said.as_str()),
                "{feature}: nothing for want of {missing}: {told}"
            );
        }
    }
}

/// All that any feature needs.
const ALL: [&str; 6] = [
    "CAP_KILL",
    "CAP_SYS_PTRACE",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
];

const GPUS: &str = "who holds a GPU (`scan`)";

/// On this very machine: in another pid namespace who holds a GPU is not known.
#[test]
fn who_holds_a_gpu_is_seen_with_the_rights_that_it_is_said_to_need() {
    let stage = match Stage::set_on_the_host() {
        Ok(stage) => stage,
        Err(reason) => return skip(&reason),
    };
    let stub = Stub::new();
    stub.open_to_all();
    let name = format!("gpu-worker {}", stage.path("").display());
    let Some(worker) = stage.orphan(&["--as", &name]) else { return };
    let gpu = "gpu GPU-00000000-1111-2222-3333-444444444444 00000000:01:00.0 NVIDIA H200";
    stub.state(&format!("{gpu}\nmemory 81920 40960\ncompute {} 40000\n", worker.pid()));
    let config = stage.write(
        "config.yaml",
        &format!(
            "defaults: {{ min_age: 1ms }}\ngpus: {{ nvml: '{}', nvidia_smi: 'off' }}\n\
             services: {{ llm: {{ gpus: [0], ports: [7301] }} }}\n\
             patterns: [{{ name: mine, kind: worker, match: '^{name}' }}]\n",
            stub.library().display(),
        ),
    );
    let rows = rows();
    let row = rows.iter().find(|row| row.feature == GPUS).unwrap();
    let run = |rights: &[&str]| {
        let held = held(rights);
        let by = format!(
            "exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
             --inh-caps=-all{held} --ambient-caps=-all{held} --bounding-set=-all{held}"
        );
        let words = ["scan", "llm", "--config", &config, "--format", "json"];
        let mut command = stage.portreeve_by(&by, &words);
        Report::read(&command.env(STATE, stub.state_file()).output().unwrap())
    };
    let rights: Vec<&str> = row.needs.iter().map(|(name, _)| name.as_str()).collect();
    let full = run(&rights);
    assert_eq!(full.process(worker.pid())["verdict"], "orphan", "{:#}", full.json);
    assert_eq!(full.json["gpus"][0]["state"], "held");
    for (missing, said) in &row.needs {
        let fewer: Vec<&str> = rights.iter().copied().filter(|name| name != missing).collect();
        let less = run(&fewer);
        assert_eq!(less.process(worker.pid())["verdict"], "undecided", "{:#}", less.json);
        assert_eq!(less.code, 2, "{:#}", less.json);
        assert!(less.json.to_string().contains(said.as_str()), "{:#}", less.json);
        assert_ne!(less.json["gpus"][0]["state"], "free");
    }
}

/// Whoever may run such a file would have its rights, with settings of their own.
#[test]
fn rights_that_the_file_brings_are_refused_and_those_of_who_runs_it_are_not() {
    let stage = match Stage::set() {
        Ok(stage) => stage,
        Err(reason) => return skip(&reason),
    };
    let own = stage.program("portreeve").to_str().unwrap().to_owned();
    let given = stage.path("given").to_str().unwrap().to_owned();
    let as_nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let run = |by: &str, program: &str| {
        let script = format!("unset XDG_STATE_HOME; export HOME=/nonexistent; exec {by}");
        let output =
            stage.apart(&script).args([program, "scan", "--port", "7399"]).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    };
    let ambient = format!("{as_nobody} --inh-caps=-all,+kill --ambient-caps=-all,+kill");
    for by in ["env", as_nobody, ambient.as_str()] {
        let (code, said) = run(by, &own);
        assert_eq!(code, Some(0), "{by}: {said}");
    }
    for give in ["setcap cap_kill+ep", "chmod u+s", "chown :1 \"$1\"; chmod g+s"] {
        stage.sh(&format!("cp '{own}' '{given}'; set -- '{given}'; {give} '{given}'"));
        let (code, said) = run(as_nobody, &given);
        assert_eq!(code, Some(2), "{give}: {said}");
        assert!(said.contains("has its rights from its file"), "{give}: {said}");
    }
}
