//! The units that are shipped (`packaging/usr/`), on a machine with systemd, logins and engines: each does inside its sandbox what it
//! is for, and has no right that it could do without.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use portreeve::backend::BackendName;
use serde_json::{Value, json};
use support::{
    DEADLINE, Report, Terminal, TestBox,
    engines::{Container, Engine, Kind},
    gpus::{STATE, Stub},
    packaging::{self, shipped},
    skip, wait_until,
};

const UNITS: &str = "usr/lib/systemd/system";
const USERS_UNITS: &str = "usr/lib/systemd/user";
const SWEEP: &str = "portreeve-sweep.service";
const BOOT: &str = "portreeve-boot.service";
const GATE: &str = "portreeve-gate@web.service";
const SHUTDOWN: &str = "portreeve-shutdown.service";

/// What `systemd-analyze security` may say of each, with all that it does working: tenths of what it calls exposure.
const BUDGETS: [(&str, u32); 6] = [
    (SWEEP, 21),
    (BOOT, 21),
    ("portreeve-gate@.service", 24),
    (SHUTDOWN, 26),
    ("portreeve-models.service", 10),
    ("portreeve-podman.service", 10),
];

const CONFIG: &str = "
defaults: { min_age: 1s, grace: 500ms, respawn_watch: 0s }
gate: { timeout: 0s, settle: 50ms }
services:
  docker: { runs_in: container, ports: [8501], patterns: ['docker\\.py --config'] }
  root: { runs_in: container, ports: [8502], patterns: ['root\\.py --config'] }
  alice: { runs_in: container, ports: [8503], patterns: ['alice\\.py --config'] }
  bob: { runs_in: container, ports: [8504], patterns: ['bob\\.py --config'] }
  login: { runs_in: container, ports: [8506], patterns: ['login\\.py --config'] }
  users-unit: { runs_in: container, ports: [8507], patterns: ['users-unit\\.py --config'] }
  web: { runs_in: { unit: web.service }, ports: [8508] }
  low: { ports: [508] }
";

/// A box in which the shipped tree is installed.
struct Installed {
    test_box: TestBox,
}

impl Installed {
    fn boot(name: &str) -> Option<Self> {
        let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
        packaging::install(&test_box, CONFIG);
        Some(Self { test_box })
    }

    /// A drop-in of a unit.
    fn change(&self, unit: &str, text: &str) {
        self.test_box.write(&format!("/run/systemd/system/{unit}.d/test.conf"), text);
        self.test_box.sh("systemctl daemon-reload");
    }

    /// Runs another command in a unit's sandbox, with further lines for it; its exit code and what it said.
    fn within(&self, unit: &str, command: &str, more: &str) -> (i32, String) {
        self.change(
            unit,
            &format!(
                "[Service]\nExecStop=\nExecStopPost=\nExecStart=\nExecStart={command}\nRemainAfterExit=no\n\
                 StandardOutput=truncate:/run/said\nStandardError=truncate:/run/complained\n{more}\n"
            ),
        );
        self.test_box.sh(&format!("systemctl start {unit} || true"));
        let code = self.property(unit, "ExecMainStatus").parse().unwrap();
        self.test_box.sh(&format!("systemctl reset-failed {unit} 2>/dev/null || true"));
        let said = self.test_box.sh("cat /run/said");
        let complained = self.test_box.sh("cat /run/complained");
        assert!(!said.is_empty(), "{command} in {unit}: {code}: {complained}");
        (code, said)
    }

    fn report_within(&self, unit: &str, words: &str, more: &str) -> Report {
        let command = format!("/usr/bin/portreeve {words} --format json");
        let (code, said) = self.within(unit, &command, more);
        Report { code, json: serde_json::from_str(&said).expect(&said) }
    }

    fn as_shipped(&self, unit: &str) {
        self.test_box.sh(&format!("rm -r /run/systemd/system/{unit}.d; systemctl daemon-reload"));
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.test_box.sh(&format!("systemctl show --property={name} --value {unit}"))
    }

    fn lives(&self, pid: u32) -> bool {
        self.test_box.stat(pid).is_some()
    }

    /// The command of a planted server of a service.
    fn server(name: &str, port: u16, more: &str) -> String {
        format!(
            "/build/examples/plant --as 'python3 /app/{name}.py --config x' --listen {port} \
             --ready /run/planted/{name} {more}"
        )
    }

    /// A server that a login left behind, old enough to be judged.
    fn left_by_a_login(&self, name: &str, port: u16, more: &str) -> u32 {
        self.test_box.sh(&format!("rm -f /run/planted/{name}"));
        let mut login = self.test_box.login("alice", Terminal::No);
        let server = Self::server(name, port, more);
        login.types(&format!("nohup {server} >/dev/null 2>&1 </dev/null &"));
        let pid = self.test_box.planted(name);
        login.leaves();
        self.test_box.wait_for_logout(pid);
        self.test_box.wait_for_age(pid, Duration::from_millis(1100));
        pid
    }

    /// A planted server in a unit of bob's, old enough to be judged.
    fn users_unit(&self, name: &str, port: u16) -> u32 {
        let server = Self::server(name, port, "");
        self.test_box.write("/app/users-unit.sh", &format!("exec {server}\n"));
        self.test_box.sh("runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 \
             systemd-run --user --quiet --unit=bobs sh /app/users-unit.sh");
        let pid = self.test_box.planted(name);
        self.test_box.wait_for_age(pid, Duration::from_millis(1100));
        pid
    }

    /// A unit with a planted server.
    fn unit(&self, name: &str, port: u16, more: &str) {
        let server = Self::server(name, port, "");
        self.test_box
            .unit(&format!("{name}.service"), &format!("[Service]\nExecStart={server}\n{more}\n"));
    }
}

/// A server in a container on the host's network.
fn contain(engine: &Engine<'_>, name: &str, port: u16) -> Container {
    let (disguise, port) = (format!("python3 /app/{name}.py --config x"), port.to_string());
    let container =
        engine.contain(name, &["--network", "host"], &["--as", &disguise, "--listen", &port]);
    engine.test_box.wait_for_age(container.pid, Duration::from_millis(1100));
    container
}

/// Leftovers of every kind that only somebody can judge who sees all and asks everybody.
struct Leftovers<'a> {
    /// By their services' names.
    orphans: Vec<(&'static str, u32)>,
    spared: Vec<(&'static str, u32)>,
    /// Whose container lost its conmon, and runs on.
    bobs: Engine<'a>,
}

fn leave_behind(installed: &Installed) -> Leftovers<'_> {
    let test_box = &installed.test_box;
    let docker = Engine::start(test_box, Kind::DockerSystemd);
    let of_docker = contain(&docker, "docker", 8501);
    docker.abandon(&[&of_docker]);
    docker.forget();
    docker.start_daemon();
    docker.wait_for_status("docker", "exited");
    let mut orphans = vec![("docker", of_docker.pid)];

    // Nobody listens for these three: their command is asked. Alice has no user manager.
    let contained = |kind, name, port| {
        let podman = Engine::start(test_box, kind);
        let container = contain(&podman, name, port);
        podman.kill_monitor(&container);
        (podman, container.pid)
    };
    for (kind, name, port) in [(Kind::Podman, "root", 8502), (Kind::PodmanOfAlice, "alice", 8503)] {
        let (podman, pid) = contained(kind, name, port);
        podman.forget();
        orphans.push((name, pid));
    }
    let (bobs, bob) = contained(Kind::PodmanOfBob, "bob", 8504);
    orphans.push(("login", installed.left_by_a_login("login", 8506, "--ignore-term")));

    let users_unit = installed.users_unit("users-unit", 8507);
    Leftovers { orphans, spared: vec![("bob", bob), ("users-unit", users_unit)], bobs }
}

/// What a report says, without what differs between any two looks.
fn gist(report: &Report) -> Value {
    const FIELDS: [&str; 14] = [
        "pid", "verdict", "title", "row", "reason", "ports", "port", "state", "holders", "answer",
        "sentence", "remarks", "fact", "why",
    ];
    let all = |name: &str| {
        let mut entries = report.json[name].as_array().unwrap().clone();
        for entry in &mut entries {
            entry.as_object_mut().unwrap().retain(|field, _| FIELDS.contains(&field.as_str()));
        }
        entries
    };
    json!([report.code, all("processes"), all("ports"), all("unknowns")])
}

/// What is said in a unit's sandbox and by root outside is the same; without any of its rights it is not.
fn sees_all_and_needs_its_rights(installed: &Installed, unit: &str, words: &str, needed: &[&str]) {
    let outside = installed.test_box.portreeve(&words.split(' ').collect::<Vec<_>>());
    let inside = installed.report_within(unit, words, "");
    assert_eq!(gist(&inside), gist(&outside), "{:#}", inside.json);
    for right in needed {
        let without = format!("CapabilityBoundingSet=~{right}");
        let less = installed.report_within(unit, words, &without);
        assert_ne!(gist(&less), gist(&inside), "{unit} does without {right}");
        assert_ne!(less.code, 0, "{unit} without {right} saw less, and said that all is well");
    }
}

#[test]
fn the_sweep_sees_in_its_sandbox_what_root_sees_and_ends_what_every_engine_left() {
    let Some(installed) = Installed::boot("units-sweep") else { return };
    let test_box = &installed.test_box;
    let Leftovers { orphans, spared, bobs } = leave_behind(&installed);
    sees_all_and_needs_its_rights(
        &installed,
        SWEEP,
        "scan",
        &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"],
    );
    bobs.serve();
    sees_all_and_needs_its_rights(&installed, SWEEP, "scan", &[]);
    let seen = installed.report_within(SWEEP, "scan", "");
    for (name, pid) in &orphans {
        assert_eq!(seen.process(*pid)["verdict"], "orphan", "{name}: {:#}", seen.process(*pid));
    }
    assert_eq!(seen.process(spared[0].1)["row"], 4, "{:#}", seen.process(spared[0].1));

    let words = "reap login";
    let refused = installed.report_within(SWEEP, words, "CapabilityBoundingSet=~CAP_KILL");
    let login = orphans.last().unwrap().1;
    assert_eq!(refused.process(login)["outcome"]["result"], "refused", "{:#}", refused.json);
    assert!(installed.lives(login));

    installed.as_shipped(SWEEP);
    test_box.sh(&format!("systemctl start {SWEEP} || true"));
    for (name, pid) in &orphans {
        assert!(!installed.lives(*pid), "{name} lives");
    }
    for (name, pid) in &spared {
        assert!(installed.lives(*pid), "{name} is gone");
    }
    // Bob's container runs without its monitor.
    assert_eq!(installed.property(SWEEP, "ExecMainStatus"), "1");
    let metrics = test_box.sh("cat /var/lib/portreeve/metrics/portreeve.prom");
    // Podman's as the first processes of their namespaces, and the one that ignores SIGTERM.
    assert!(metrics.contains("portreeve_reap_processes{outcome=\"killed\"} 4\n"), "{metrics}");
    assert!(metrics.contains("portreeve_exit_code 1\n"), "{metrics}");
    let mode = test_box.sh("stat --format=%a /var/lib/portreeve/metrics/portreeve.prom");
    assert_eq!(mode, "644", "node_exporter is another user");

    // By the engine, at bob's socket, which only he may write to.
    let stopped = installed.report_within(SWEEP, "reap bob --also unsupervised", "");
    assert_eq!(stopped.code, 0, "{:#}", stopped.json);
    assert!(!installed.lives(spared[0].1));
    let mode = test_box.sh("stat --format=%a /var/lib/portreeve/stops.json");
    assert_eq!(mode, "644", "a user's scan shows it");

    let told = |event: &str, pid: u32| {
        let found = format!("journalctl -x -o short PORTREEVE_EVENT={event} PORTREEVE_PID={pid}");
        test_box.sh(&format!("{found} _SYSTEMD_UNIT={SWEEP} || true"))
    };
    test_box.sh("journalctl --update-catalog");
    wait_until(DEADLINE, "the end is on record", || !told("ended", login).is_empty());
    let convicted = told("convicted", login);
    let wanted = format!("Subject: Process {login} is about to be ended");
    assert!(convicted.contains(&wanted) && convicted.contains("Row 16 of"), "{convicted}");
    assert!(told("ended", login).contains("It is gone: killed."), "{}", told("ended", login));
    // A field that an event lacks would stand there by its name.
    let all = test_box.sh(&format!("journalctl -x _SYSTEMD_UNIT={SWEEP}"));
    assert!(all.contains("It ended with exit code 1:") && !all.contains("PORTREEVE_"), "{all}");
}

/// What takes a port without a process of one's own to show for it.
fn take_ports(installed: &Installed) {
    let test_box = &installed.test_box;
    let docker = Engine::start(test_box, Kind::DockerSystemd);
    docker.contain("docker", &["--publish", "8501:80"], &["--listen", "80"]);
    test_box.sh("kill -9 $(pgrep docker-proxy)");
    test_box.sh(
        "nft add table ip test; nft 'add chain ip test pre { type nat hook prerouting priority -100; }'
         nft 'add chain ip test out { type nat hook output priority -100; }'
         for chain in pre out; do nft add rule ip test $chain tcp dport 8503 dnat to 10.9.9.1:80; done",
    );
    installed.left_by_a_login("login", 8506, "");
    installed.users_unit("users-unit", 8507);
}

#[test]
fn the_gate_sees_in_its_sandbox_what_root_sees_and_needs_its_rights() {
    let Some(installed) = Installed::boot("units-gate") else { return };
    take_ports(&installed);
    let words = "gate docker alice bob login users-unit low";
    let rights = ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"];
    sees_all_and_needs_its_rights(&installed, GATE, words, &rights);
    let report = installed.report_within(GATE, words, "");
    let answer = |port: &str| report.port(port)["answer"].as_str().unwrap().to_owned();
    assert_eq!(report.port("8501/tcp")["state"], "allocated");
    assert_eq!(report.port("8503/tcp")["state"], "detoured");
    assert_eq!([answer("508/tcp"), answer("8504/tcp")], ["open", "open"]);
    // As docs/systemd.md has it.
    let words = "gate --allow-ours --reap login";
    let reaping = installed.report_within(GATE, words, "CapabilityBoundingSet=CAP_KILL");
    assert_eq!(reaping.code, 0, "{:#}", reaping.json);
    // Nothing but what is not known without NET_ADMIN is let pass.
    let (code, _) = installed.within(
        GATE,
        "/usr/bin/portreeve gate low",
        "CapabilityBoundingSet=~CAP_NET_BIND_SERVICE",
    );
    assert_eq!(code, 2);
}

#[test]
fn nothing_is_off_in_a_sandbox_but_what_its_unit_does_not_do() {
    let Some(installed) = Installed::boot("units-doctor") else { return };
    let test_box = &installed.test_box;
    let stub = Stub::new();
    fs::create_dir(test_box.inside("/run/nvml")).unwrap();
    fs::copy(stub.library(), test_box.inside("/run/nvml/libnvidia-ml.so.1")).unwrap();
    test_box.write(
        "/run/nvml/state",
        "gpu GPU-2C1E4A5B-0000-1111-2222-0123456789AB 00000000:3B:00.0 NVIDIA Stub\nmemory 1000 400\n",
    );
    test_box.write(
        "/etc/portreeve/conf.d/gpus.yaml",
        "gpus: { nvml: /run/nvml/libnvidia-ml.so.1 }\ncompose: /root/stack/compose.yaml\n",
    );
    test_box.write(
        "/root/stack/compose.yaml",
        "services:\n  shop:\n    image: shop\n    ports: ['8599:80']\n",
    );
    test_box.sh("systemctl start docker; /usr/bin/portreeve model register llama --backend vllm --path m --port 8510");
    let variable = format!("{STATE}=/run/nvml/state");
    let states = |report: &Report| -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let checks = report.json["checks"].as_array().unwrap();
        checks.iter().map(|check| (text(&check["name"]), text(&check["state"]))).collect()
    };
    let outside = ["env", &variable, "/usr/bin/portreeve", "doctor", "--format", "json"];
    let outside = states(&Report::read(&test_box.run(&outside)));
    for (unit, less) in [
        (SWEEP, &["rules of the packet filter"][..]),
        (BOOT, &["rules of the packet filter"]),
        (SHUTDOWN, &["rules of the packet filter"]),
        (GATE, &["end processes", "cgroups by handle"]),
    ] {
        let inside = installed.report_within(unit, "doctor", &format!("Environment={variable}"));
        let inside = states(&inside);
        let mut differ: Vec<&str> = outside
            .iter()
            .zip(&inside)
            .filter(|(a, b)| a != b)
            .map(|(a, _)| a.0.as_str())
            .collect();
        differ.sort_unstable();
        let mut less = less.to_vec();
        less.sort_unstable();
        assert_eq!(differ, less, "{unit}: {inside:#?}");
        for (name, state) in [("NVML", "good"), ("/root/stack/compose.yaml", "good")] {
            assert!(inside.contains(&(name.to_owned(), state.to_owned())), "{unit}: {inside:#?}");
        }
    }
    // What the right to open control groups by their id is for.
    let without = "CapabilityBoundingSet=~CAP_DAC_READ_SEARCH";
    let inside = states(&installed.report_within(SWEEP, "doctor", without));
    assert!(!inside.contains(&("cgroups by handle".to_owned(), "good".to_owned())), "{inside:#?}");
}

#[test]
fn every_unit_is_sound_and_no_more_exposed_than_its_budget() {
    let Some(installed) = Installed::boot("units-sound") else { return };
    let test_box = &installed.test_box;
    let files = shipped();
    let units = files.iter().filter_map(|file| file.strip_prefix(&format!("/{UNITS}/")));
    for unit in units.filter(|unit| !unit.contains('/')) {
        // It exits with 0 where it only warns.
        let said = test_box.sh(&format!("systemd-analyze verify /{UNITS}/{unit} 2>&1"));
        assert_eq!(said, "", "{unit}");
        if !unit.ends_with(".service") {
            continue;
        }
        let (_, budget) = BUDGETS.iter().find(|(name, _)| *name == unit).expect("a budget");
        let threshold = format!("--threshold={budget}");
        let security = ["systemd-analyze", "security", "--offline=true", "--no-pager"];
        let output = test_box.run(&[&security[..], &[&threshold, unit]].concat());
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{unit}: {said}");
    }
    // A user's manager has other rights, and no budget.
    for unit in files.iter().filter_map(|file| file.strip_prefix(&format!("/{USERS_UNITS}/"))) {
        let said = test_box.sh(&format!(
            "runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001 \
             systemd-analyze --user verify /{USERS_UNITS}/{unit} 2>&1"
        ));
        assert_eq!(said, "", "{unit}");
    }
}

/// What stands below a heading of a unit's file, comments left out.
fn settings(unit: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(packaging::folder().join(UNITS).join(unit)).unwrap();
    let lines = text.lines().skip_while(|line| *line != format!("[{heading}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn those_that_reap_have_one_sandbox_and_the_gate_has_less() {
    let sandbox = |unit: &str| -> BTreeSet<String> {
        let job = ["Type=", "Exec", "StateDirectory=", "Timeout", "Remain", "Runtime"];
        let all = settings(unit, "Service").into_iter();
        all.filter(|line| !job.iter().any(|job| line.starts_with(job))).collect()
    };
    let sweep = sandbox(SWEEP);
    assert_eq!(sandbox(BOOT), sweep);
    let differences = |unit: &str| -> Vec<String> {
        let other = sandbox(unit);
        let mut all: Vec<String> = sweep.symmetric_difference(&other).cloned().collect();
        all.retain(|line| !line.starts_with("CapabilityBoundingSet="));
        all
    };
    let families = [
        "RestrictAddressFamilies=AF_UNIX AF_NETLINK",
        "RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6",
    ];
    let [few, many] = families;
    assert_eq!(
        differences("portreeve-gate@.service"),
        [few, many, "SystemCallFilter=open_by_handle_at"]
    );
    assert_eq!(differences(SHUTDOWN), ["IPAddressDeny=any", few, many]);
}

#[test]
fn a_shutdown_waits_for_the_longest_stop_of_models() {
    let graces = BackendName::ALL.into_iter().map(|name| name.backend().grace);
    // What a stop has for the rungs behind the grace period, and what a run may take beside it.
    let longest = graces.max().unwrap() + Duration::from_secs(60 + 5);
    let lines = settings(SHUTDOWN, "Service");
    let timeout = lines.iter().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let minutes: u64 = timeout.strip_suffix("min").unwrap().parse().unwrap();
    assert!(Duration::from_secs(60 * minutes) >= longest, "{longest:?}");
}

#[test]
fn the_boot_service_reaps_at_each_start_of_an_engine() {
    let Some(installed) = Installed::boot("units-boot") else { return };
    let test_box = &installed.test_box;
    test_box.write(
        "/run/systemd/system/docker.service.d/again.conf",
        "[Service]\nRestart=always\nRestartSec=100ms\n",
    );
    test_box.sh("systemctl daemon-reload; systemctl --quiet enable portreeve-boot podman-restart");
    let starts: [(&str, &dyn Fn()); 4] = [
        ("the first start", &|| drop(test_box.sh("systemctl start docker"))),
        ("a restart", &|| drop(test_box.sh("systemctl restart docker"))),
        ("a crash", &|| drop(test_box.sh("kill -KILL $(systemctl show -P MainPID docker)"))),
        ("Podman's containers", &|| drop(test_box.sh("systemctl start podman-restart"))),
    ];
    for (what, start) in starts {
        let orphan = installed.left_by_a_login("login", 8506, "");
        start();
        wait_until(DEADLINE, &format!("{what} has the orphan ended"), || !installed.lives(orphan));
    }
    let order = test_box.sh("systemctl show --property=Before,After portreeve-boot");
    let of = |name: &str| order.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(of("After=").contains("docker.service"), "{order}");
    assert!(of("Before=").contains("podman-restart.service"), "{order}");
}

/// What was left in a container is judged by what its engine says: so Docker is up, and asked.
#[test]
fn the_boot_service_ends_what_dockers_earlier_run_left_in_a_container() {
    let Some(installed) = Installed::boot("units-crash") else { return };
    let test_box = &installed.test_box;
    let docker = Engine::start(test_box, Kind::DockerSystemd);
    let container = contain(&docker, "docker", 8501);
    test_box.sh("systemctl --quiet enable portreeve-boot");
    docker.abandon(&[&container]);
    docker.forget();
    assert!(installed.lives(container.pid));
    docker.start_daemon();
    wait_until(DEADLINE, "it is ended", || !installed.lives(container.pid));
}

#[test]
fn the_timer_reaps() {
    let Some(installed) = Installed::boot("units-timer") else { return };
    let test_box = &installed.test_box;
    let orphan = installed.left_by_a_login("login", 8506, "");
    test_box.sh("systemctl --quiet enable --now portreeve-sweep.timer");
    let monotonic = installed.property("portreeve-sweep.timer", "TimersMonotonic");
    for wanted in ["OnBootUSec=5min", "OnUnitActiveUSec=6h"] {
        assert!(monotonic.contains(wanted), "{monotonic}");
    }
    assert_eq!(installed.property("portreeve-sweep.timer", "RandomizedDelayUSec"), "5min");
    assert!(installed.lives(orphan));
    // The same, sooner.
    installed.change(
        "portreeve-sweep.timer",
        "[Timer]\nOnBootSec=\nOnActiveSec=100ms\nOnUnitActiveSec=1s\nRandomizedDelaySec=0\nAccuracySec=100ms\n",
    );
    test_box.sh("systemctl restart portreeve-sweep.timer");
    wait_until(DEADLINE, "the orphan is ended", || !installed.lives(orphan));
    // And again, though the last run found nothing wrong.
    let orphan = installed.left_by_a_login("login", 8506, "");
    wait_until(DEADLINE, "the next one is ended", || !installed.lives(orphan));
}

/// The drop-in as it is documented, before a unit that is restarted when it fails.
#[test]
fn a_foreign_holder_keeps_a_gated_unit_from_starting_and_nothing_loops() {
    let Some(installed) = Installed::boot("units-loop") else { return };
    let test_box = &installed.test_box;
    let drop_in = packaging::folder().join("usr/share/doc/portreeve/examples/gate.conf");
    let drop_in = fs::read_to_string(drop_in).unwrap();
    test_box.write("/etc/systemd/system/web.service.d/gate.conf", &drop_in);
    installed.unit("web", 8508, "Restart=on-failure\nRestartSec=200ms");
    installed.unit("thief", 8508, "");
    let web = || installed.property("web", "MainPID");
    // Not by _SYSTEMD_UNIT: the journal does not know it of who is gone before it looks.
    let asked = || {
        test_box.sh("journalctl -o cat PORTREEVE_EVENT=summary | grep -c '^summary: gate: ' || :")
    };
    test_box.sh("systemctl start thief");
    test_box.planted("thief");
    assert!(!test_box.run(&["systemctl", "start", "web"]).status.success(), "it is loud");
    assert_eq!([web(), installed.property(GATE, "Result")], ["0", "exit-code"]);
    let blocked = "journalctl -o cat PORTREEVE_EVENT=blocked PORTREEVE_SERVICE=web || true";
    wait_until(DEADLINE, "it is on record", || test_box.sh(blocked).contains("thief.service"));

    test_box.sh("systemctl stop thief; systemctl start web");
    test_box.planted("web");
    // A start and a restart of what runs are none of a stranger's.
    test_box.sh("systemctl start web; systemctl restart web");
    assert_ne!(web(), "0");
    wait_until(DEADLINE, "four questions are on record", || asked() == "4");

    // It dies, and somebody else is quicker than its restart.
    test_box.sh(&format!("kill -KILL {}; systemctl start thief", web()));
    wait_until(DEADLINE, "the restart was refused", || {
        installed.property(GATE, "Result") == "exit-code"
    });
    // systemd 257 calls it 'auto-restart-queued' from then on, 252 'dead'.
    let began = Instant::now();
    wait_until(DEADLINE, "five restarts could have been tried", || {
        began.elapsed() > Duration::from_secs(1)
    });
    assert_eq!([web(), asked()], ["0", "5"]);
    test_box.sh("systemctl stop thief; systemctl start web");
    assert_ne!(web(), "0");
}

/// What files of a folder of the box held, though the box is gone.
fn kept(folder: &fs::File) -> Vec<(String, Vec<u8>)> {
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    let read = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    entries.filter(|entry| entry.file_type().unwrap().is_file()).map(read).collect()
}

/// Who keeps the models: the command that started them is gone, their units are there.
#[derive(Clone, Copy, PartialEq)]
enum By {
    Nobody,
    Units,
}

fn shut_down(name: &str, kind: Kind, word: &str, by: By) {
    let Some(installed) = Installed::boot(name) else { return };
    let test_box = &installed.test_box;
    let engine = Engine::start(test_box, kind);
    if kind == Kind::Podman {
        test_box.sh("systemctl --quiet enable --now podman.socket");
    }
    engine.give_models();
    for (name, port) in [("one", "8511"), ("two", "8512")] {
        test_box.sh(&format!(
            "/usr/bin/portreeve model register {name} --backend vllm --model org/qwen --container \
             --image model-vllm --port {port} --engine {word} {}",
            if by == By::Nobody { "--no-unit" } else { "" },
        ));
    }
    test_box.sh("/usr/bin/portreeve model start one two");
    test_box.sh("systemctl --quiet enable --now portreeve-shutdown");
    assert!(!test_box.run(&["systemctl", "stop", "portreeve-shutdown"]).status.success());
    assert_eq!(installed.property(SHUTDOWN, "ActiveState"), "active");
    let mut orphans = Vec::new();
    if kind == Kind::Podman {
        // Her Podman's command is asked, which takes a bus and a systemd that still starts something.
        let alices = Engine::start(test_box, Kind::PodmanOfAlice);
        let container = contain(&alices, "alice", 8503);
        alices.kill_monitor(&container);
        alices.forget();
        orphans.push(container.pid);
    }
    orphans.push(installed.left_by_a_login("login", 8506, "--ignore-term"));
    if kind == Kind::Podman && by == By::Nobody {
        // Its API leaves when nobody has asked for 5 s, and at shutdown no socket brings it back.
        let api = || installed.property("podman.service", "ActiveState");
        wait_until(DEADLINE, "Podman's API is idle", || api() == "inactive");
    }
    let state = fs::File::open(test_box.inside("/var/lib/portreeve")).unwrap();
    let journal = test_box.sh("cd /run/log/journal/* 2>/dev/null || cd /var/log/journal/*; pwd");
    let journal = fs::File::open(test_box.inside(&journal)).unwrap();
    test_box.run(&["systemctl", "poweroff"]);
    wait_until(Duration::from_secs(60), "the machine is off", || {
        fs::read_dir(test_box.inside("/")).is_err()
    });

    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in kept(&state) {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let registry = rusqlite::Connection::open(folder.path().join("models.db")).unwrap();
    let mut models = registry.prepare("SELECT name, state, why FROM models ORDER BY name").unwrap();
    let models = models.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    let models: Vec<(String, String, String)> = models.map(Result::unwrap).collect();
    assert_eq!(models.len(), 2);
    for (name, state, why) in models {
        assert_eq!(state, "stopped", "{name}: {why}");
        let wanted = if by == By::Nobody { "within its grace period" } else { "told to stop" };
        assert!(why.contains(wanted), "{name}: {why}");
    }
    let written: Vec<u8> = kept(&journal).into_iter().flat_map(|(_, bytes)| bytes).collect();
    let has = |text: &str| written.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    for orphan in orphans {
        assert!(has(&format!("ended: pid {orphan} ")), "its end is on record");
    }
}

#[test]
fn at_shutdown_all_models_are_stopped_while_docker_is_there_and_the_rest_is_reaped() {
    shut_down("units-off-docker", Kind::DockerSystemd, "docker", By::Nobody);
}

#[test]
fn at_shutdown_the_units_of_models_stop_theirs_before_docker_goes() {
    shut_down("units-off-docker-kept", Kind::DockerSystemd, "docker", By::Units);
}

#[test]
fn at_shutdown_the_units_of_models_stop_theirs_before_podmans_scopes_go() {
    shut_down("units-off-podman-kept", Kind::Podman, "podman", By::Units);
}

#[test]
fn at_shutdown_all_models_are_stopped_while_podman_answers_and_the_rest_is_reaped() {
    shut_down("units-off-podman", Kind::Podman, "podman", By::Nobody);
}
