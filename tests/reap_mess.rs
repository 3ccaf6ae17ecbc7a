//! A machine after a bad day: the AI stack's servers were left behind by people who logged out, some stubborn, one
//! brought back again and again; beside them others run the very same programs and have every right to. `scan` names
//! each and changes nothing, `reap` ends the orphans and nobody else, and the ports are free for their owners.
//!
//! The services and their patterns are those of the default inside the binary.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{collections::BTreeMap, process::Stdio, sync::LazyLock, time::Duration};

use support::{DEADLINE, Login, Report, Terminal, TestBox, skip, wait_until};

const PLANT: &str = "/build/examples/plant";
const AIDB: &str = "python3 -u /app/server.py --config /etc/aidb.yaml";
const CONFIG: &str = "defaults: { min_age: 1s, grace: 1s }\n";

/// Left behind, each with the outcome that `reap` is to report.
const ORPHANS: [(&str, &str); 5] = [
    ("aidb", "terminated"),
    ("open-webui", "terminated"),
    ("stubborn-ralph", "killed"),
    ("respawned-aidb", "terminated"),
    ("lone-worker", "terminated"),
];
/// Others' business, each with the word on it.
const SPARED: [(&str, &str); 4] = [
    ("aidb-in-terminal", "session"),
    ("aidb-in-tmux", "session"),
    ("aidb-in-unit", "managed by dev-aidb.service"),
    ("postgres", "managed by postgresql-look-alike.service"),
];
/// Ports of the orphans that nobody brings back.
const FREED: [u16; 3] = [8091, 3001, 8098];

/// A planted process: pid and start time.
type Known = (u32, u64);

struct Mess {
    test_box: TestBox,
    planted: BTreeMap<&'static str, Known>,
    present: Vec<Login>,
}

impl Mess {
    fn make(name: &str) -> Result<Self, String> {
        let mut mess =
            Self { test_box: TestBox::boot(name)?, planted: BTreeMap::new(), present: Vec::new() };
        mess.test_box.write("/etc/mess.yaml", CONFIG);

        // From real logins that are over: aidb on 8091, Open WebUI on 3001, ralph on 8098, who ignores SIGTERM.
        let webui =
            "/venv/bin/python3 /venv/bin/uvicorn open_webui.main:app --host 0.0.0.0 --port 3001";
        mess.left_behind("aidb", &format!("--as '{AIDB}' --listen 8091"));
        mess.left_behind("open-webui", &format!("--as '{webui}' --listen 3001"));
        mess.left_behind(
            "stubborn-ralph",
            "--as 'python3 /opt/ralph/server.py' --listen 8098 --ignore-term",
        );

        // aidb's WebSocket server on 8791, brought back whenever it ends by a launcher that was left behind, too.
        mess.test_box.write(
            "/app/start_with_discovery.sh",
            &format!("while :; do {PLANT} --as '{AIDB}' --listen 8791 --ready /run/planted/respawned-aidb; done\n"),
        );
        let mut login = mess.test_box.login("alice", Terminal::No);
        login.types("cd /app; nohup sh start_with_discovery.sh >/dev/null 2>&1 </dev/null & echo $! > /run/planted/launcher");
        mess.know("launcher");
        mess.know("respawned-aidb");
        login.leaves();

        // A vLLM server was SIGKILLed; its worker holds no port, but the GPU.
        let mut login = mess.test_box.login("alice", Terminal::No);
        login.types(&format!(
            "nohup {PLANT} --as 'python3 -m vllm serve some/model' --ready /run/planted/vllm \
             --child --setsid --title VLLM::EngineCore --ready /run/planted/lone-worker >/dev/null 2>&1 </dev/null &"
        ));
        mess.know("lone-worker");
        login.leaves();
        let server = mess.test_box.planted("vllm");
        mess.test_box.sh(&format!("kill -KILL {server}"));

        // A developer runs aidb's server, on other ports: in a live terminal, in tmux, in a unit.
        let mut login = mess.test_box.login("alice", Terminal::Yes);
        login.types(&format!(
            "{PLANT} --as '{AIDB}' --listen 18091 --ready /run/planted/aidb-in-terminal"
        ));
        mess.know("aidb-in-terminal");
        mess.present.push(login);
        let mut login = mess.test_box.login("alice", Terminal::Yes);
        login.types(&format!(
            "tmux new-session -d \"{PLANT} --as '{AIDB}' --listen 18092 --ready /run/planted/aidb-in-tmux\""
        ));
        mess.know("aidb-in-tmux");
        login.leaves();
        mess.in_unit("aidb-in-unit", "dev-aidb", &format!("--as '{AIDB}' --listen 18093"));

        // Something like postgres, alive and well in its unit.
        mess.in_unit(
            "postgres",
            "postgresql-look-alike",
            "--as '/usr/lib/postgresql/15/bin/postgres -D /data' --listen 5432",
        );

        // A client whose outgoing connection has taken mindsdb's port for its own end.
        mess.in_unit(
            "client",
            "client",
            "--as 'curl http://127.0.0.1:9999/' --listen 9999 --connect 47334:9999",
        );

        for name in ["aidb", "open-webui", "stubborn-ralph", "launcher", "aidb-in-tmux"] {
            mess.test_box.wait_for_logout(mess.planted[name].0);
        }
        for name in ["aidb", "open-webui", "stubborn-ralph", "launcher", "lone-worker"] {
            wait_until(DEADLINE, &format!("'{name}' has lost its parent"), || {
                mess.parent(name) == 1
            });
        }
        for (pid, _) in mess.planted.values() {
            mess.test_box.wait_for_age(*pid, Duration::from_millis(1100));
        }
        Ok(mess)
    }

    /// Waits for a planted process and remembers it.
    fn know(&mut self, name: &'static str) {
        let pid = self.test_box.planted(name);
        let start = self.test_box.stat(pid).unwrap_or_else(|| panic!("'{name}' lives")).start;
        self.planted.insert(name, (pid, start));
    }

    /// `nohup … &`, then logout.
    fn left_behind(&mut self, name: &'static str, part: &str) {
        let mut login = self.test_box.login("alice", Terminal::Yes);
        login.types(&format!(
            "nohup {PLANT} {part} --ready /run/planted/{name} >/dev/null 2>&1 </dev/null &"
        ));
        self.know(name);
        login.leaves();
    }

    fn in_unit(&mut self, name: &'static str, unit: &str, part: &str) {
        let command = format!("{PLANT} {part} --ready /run/planted/{name}");
        self.test_box
            .unit(&format!("{unit}.service"), &format!("[Service]\nExecStart={command}\n"));
        self.test_box.sh(&format!("systemctl start {unit}"));
        self.know(name);
    }

    fn parent(&self, name: &str) -> u64 {
        self.test_box.stat(self.planted[name].0).unwrap_or_else(|| panic!("'{name}' lives")).parent
    }

    /// Those of the planted that are still the same living process.
    fn alive(&self) -> Vec<&'static str> {
        let is_alive =
            |(pid, start): Known| self.test_box.stat(pid).is_some_and(|now| now.start == start);
        self.planted.iter().filter(|(_, known)| is_alive(**known)).map(|(name, _)| *name).collect()
    }

    /// What a person sees on a terminal of 110 columns, kept in the folder that PORTREEVE_TRANSCRIPTS names: the README's examples.
    fn transcribe(&self, command: &str) {
        let folder = std::env::var_os("PORTREEVE_TRANSCRIPTS").expect("a folder");
        let typed =
            format!("stty cols 110; PATH=$PATH:/build portreeve {command} --config /etc/mess.yaml");
        let seen = self.test_box.run(&["script", "-qec", &typed, "/dev/null"]);
        let name = command.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        std::fs::write(std::path::Path::new(&folder).join(name), seen.stdout)
            .expect("a transcript");
    }

    fn portreeve(&self, arguments: &[&str]) -> Report {
        self.test_box.portreeve(&[arguments, &["--config", "/etc/mess.yaml"]].concat())
    }
}

/// The mess and all that was done to it, in this order.
struct Day {
    mess: Mess,
    scan: Report,
    /// What `explain` says of each of the planted, before the reap.
    explained: BTreeMap<&'static str, Report>,
    /// Every system call of that scan and its children.
    trace: String,
    dry_run: Report,
    alive_before: Vec<&'static str>,
    reap: Report,
    alive_after: Vec<&'static str>,
    bindable: Vec<u16>,
    /// After the launcher was ended by hand, as the report advised.
    launcher_gone: Report,
    last_scan: Report,
}

static DAY: LazyLock<Result<Day, String>> = LazyLock::new(spend);

/// The day; none is said as a skip.
fn day() -> Option<&'static Day> {
    DAY.as_ref().map_err(|reason| skip(reason)).ok()
}

fn spend() -> Result<Day, String> {
    if std::env::var_os("PORTREEVE_TRANSCRIPTS").is_some() {
        let mess = Mess::make("transcripts")?;
        mess.transcribe("scan");
        for name in ["aidb", "aidb-in-terminal", "aidb-in-unit", "launcher"] {
            mess.transcribe(&format!("explain {}", mess.planted[name].0));
        }
        mess.transcribe("explain 47334");
        mess.transcribe("reap");
    }
    let mess = Mess::make("mess")?;
    let traced = mess
        .test_box
        .command(&["strace", "-f", "-qq", "-s", "256", "-o", "/run/trace", "/build/portreeve"])
        .args(["scan", "--config", "/etc/mess.yaml", "--format", "json"])
        .stdin(Stdio::null())
        .output()
        .expect("strace runs");
    let scan = Report::read(&traced);
    let trace = std::fs::read_to_string(mess.test_box.inside("/run/trace")).expect("a trace");
    let explain = |(name, (pid, _)): (&&'static str, &Known)| {
        (*name, mess.portreeve(&["explain", &format!("pid:{pid}")]))
    };
    let explained = mess.planted.iter().map(explain).collect();
    let dry_run = mess.portreeve(&["reap", "--dry-run"]);
    let alive_before = mess.alive();
    let reap = mess.portreeve(&["reap"]);
    let alive_after = mess.alive();
    let bindable = FREED.into_iter().filter(|port| mess.test_box.can_bind(*port)).collect();

    mess.test_box.sh(&format!("kill -KILL {}", mess.planted["launcher"].0));
    let respawned = mess.test_box.planted("respawned-aidb");
    mess.test_box.wait_for_age(respawned, Duration::from_millis(1100));
    let launcher_gone = mess.portreeve(&["reap"]);
    let last_scan = mess.portreeve(&["scan"]);
    Ok(Day {
        mess,
        scan,
        explained,
        trace,
        dry_run,
        alive_before,
        reap,
        alive_after,
        bindable,
        launcher_gone,
        last_scan,
    })
}

#[test]
fn scan_names_every_orphan() {
    let Some(day) = day() else { return };
    for (name, _) in ORPHANS {
        let said = day.scan.process(day.mess.planted[name].0);
        assert_eq!(said["verdict"], "orphan", "'{name}': {said:#}");
        assert_eq!(said["would_end"], true, "'{name}': {said:#}");
    }
}

#[test]
fn scan_spares_the_same_program_where_somebody_runs_it() {
    let Some(day) = day() else { return };
    for (name, title) in SPARED {
        let said = day.scan.process(day.mess.planted[name].0);
        assert_eq!(said["verdict"], "spare", "'{name}': {said:#}");
        assert!(said["title"].as_str().unwrap().contains(title), "'{name}': {said:#}");
        assert_eq!(said["would_end"], false, "'{name}': {said:#}");
    }
}

#[test]
fn scan_tells_a_clients_own_end_of_a_connection_from_a_server() {
    let Some(day) = day() else { return };
    let (client, _) = day.mess.planted["client"];
    assert_eq!(day.scan.port("47334/tcp")["state"], "ephemeral");
    assert!(!day.scan.process(client)["would_end"].as_bool().unwrap_or(false));
}

#[test]
fn scan_says_who_holds_which_port() {
    let Some(day) = day() else { return };
    for (port, name) in [("8091/tcp", "aidb"), ("3001/tcp", "open-webui"), ("5432/tcp", "postgres")]
    {
        let said = day.scan.port(port);
        assert_eq!(said["state"], "held", "{said:#}");
        assert_eq!(said["holders"], serde_json::json!([day.mess.planted[name].0]), "{said:#}");
    }
    assert_eq!(day.scan.port("6379/tcp")["state"], "free");
}

#[test]
fn scan_sends_no_signal_and_writes_nothing() {
    let Some(day) = day() else { return };
    let calls: Vec<&str> = day.trace.lines().collect();
    assert!(calls.len() > 100, "a trace of a whole scan, not {} lines", calls.len());
    let deeds: Vec<_> = calls.iter().filter(|call| changes_the_host(call)).collect();
    assert!(deeds.is_empty(), "{deeds:#?}");
}

/// Whether a line of strace's shows a signal, an open for writing, or a change to files, mounts or the clock.
fn changes_the_host(line: &str) -> bool {
    const DEEDS: &str = " kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal process_vm_writev ptrace \
        unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat mkdir mkdirat rmdir mknod mknodat \
        chmod fchmod fchmodat chown fchown lchown fchownat truncate ftruncate fallocate utimensat setxattr fsetxattr \
        creat mount umount2 move_mount pivot_root swapon reboot sethostname settimeofday clock_settime init_module \
        finit_module delete_module bpf ";
    // `4242  openat(AT_FDCWD, "/proc/1/stat", O_RDONLY) = 3`; a call that another thread cut in two is taken by its first half.
    let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    let Some((name, arguments)) = call.split_once('(') else { return false };
    let opens_to_write = matches!(name, "open" | "openat" | "openat2")
        && ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"]
            .iter()
            .any(|flag| arguments.contains(flag))
        && !arguments.contains("\"/dev/null\"");
    // What systemd does for us is our doing, too.
    let asks_a_manager = name.starts_with("send")
        && [
            "StopUnit",
            "KillUnit",
            "StartUnit",
            "RestartUnit",
            "TerminateSession",
            "KillSession",
            "KillUser",
        ]
        .iter()
        .any(|method| arguments.contains(method));
    DEEDS.contains(&format!(" {name} ")) || opens_to_write || asks_a_manager
}

#[test]
fn a_deed_in_a_trace_is_recognised() {
    assert!(changes_the_host("17 pidfd_send_signal(5, SIGTERM, NULL, 0) = 0"));
    assert!(changes_the_host("17    kill(42, SIGTERM <unfinished ...>"));
    assert!(changes_the_host("17 openat(AT_FDCWD, \"/tmp/x\", O_WRONLY|O_CREAT, 0644) = 3"));
    assert!(!changes_the_host("17 openat(AT_FDCWD, \"/dev/null\", O_RDWR) = 3"));
    assert!(!changes_the_host("17 openat(AT_FDCWD, \"/proc/1/stat\", O_RDONLY|O_CLOEXEC) = 3"));
    assert!(!changes_the_host("17 <... openat resumed>) = 3"));
}

/// What `explain` says of a planted process.
fn explanation<'a>(day: &'a Day, name: &str) -> &'a serde_json::Value {
    &day.explained[name].json["processes"][0]
}

#[test]
fn explain_comes_to_the_verdict_of_scan_and_shows_the_row_that_decided() {
    let Some(day) = day() else { return };
    for (name, (pid, _)) in day.mess.planted.iter().filter(|(name, _)| **name != "client") {
        let (scan, why) = (day.scan.process(*pid), explanation(day, name));
        assert_eq!(
            (&why["title"], &why["row"]),
            (&scan["title"], &scan["row"]),
            "'{name}': {why:#}"
        );
        let rows = why["rows"].as_array().unwrap();
        let decided: Vec<_> = rows.iter().filter(|row| row["decided"] == true).collect();
        assert_eq!(decided.len(), 1, "'{name}'");
        let conditions = decided[0]["conditions"].as_array().unwrap();
        assert!(conditions.iter().all(|c| c["holds"] == true), "'{name}': {conditions:#?}");
        // Every row before it failed on a condition that is named.
        for row in rows.iter().take_while(|row| row["decided"] == false) {
            assert_eq!(row["holds"], false, "'{name}': {row:#}");
        }
    }
}

#[test]
fn explain_names_where_each_fact_comes_from() {
    let Some(day) = day() else { return };
    let (pid, _) = day.mess.planted["aidb-in-unit"];
    let facts = explanation(day, "aidb-in-unit")["facts"].as_array().unwrap();
    let fact = |name: &str| facts.iter().find(|f| f["name"] == name).unwrap();
    assert_eq!(fact("unit")["value"], "dev-aidb.service");
    assert_eq!(fact("unit")["source"], format!("/proc/{pid}/cgroup"));
    let state = fact("unit's state");
    assert!(state["value"].as_str().unwrap().contains(&format!("main pid {pid}")), "{state}");
    assert_eq!(state["source"], "systemd: dev-aidb.service");
}

#[test]
fn explain_says_what_would_have_changed_the_verdict_and_which_command_ends_it() {
    let Some(day) = day() else { return };
    let change = |name: &str, part: &str| {
        let changes = explanation(day, name)["changes"].as_array().unwrap();
        let found = changes.iter().find(|c| c["what"].as_str().unwrap().contains(part));
        found.cloned().unwrap_or_else(|| panic!("'{name}', {part}: {changes:#?}"))
    };
    let undeclared = change("aidb", "no 'runs_in:' were declared");
    assert_eq!(
        (&undeclared["title"], &undeclared["would_end"]),
        (&"suspect".into(), &false.into())
    );
    let stopped = change("aidb-in-unit", "dev-aidb.service were inactive");
    assert_eq!((&stopped["row"], &stopped["would_end"]), (&13.into(), &true.into()));
    let command = "portreeve reap aidb --also abandoned";
    assert_eq!(explanation(day, "launcher")["end_with"], command);
    assert_eq!(explanation(day, "aidb")["end_with"], "portreeve reap --port 8091");
    assert_eq!(explanation(day, "aidb-in-unit")["end_with"], serde_json::Value::Null);
}

#[test]
fn a_process_that_nothing_nominates_is_explained_as_well() {
    let Some(day) = day() else { return };
    let client = explanation(day, "client");
    assert_eq!(client["nominated_by"], serde_json::Value::Null, "{client:#}");
    assert_eq!(client["title"], "spare: managed by client.service");
}

#[test]
fn an_explanation_fits_its_published_schema() {
    let published = include_str!("../docs/schema/explain-v1.json");
    let generated = serde_json::to_string_pretty(&portreeve::report::explain::schema()).unwrap();
    if std::env::var_os("BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/explain-v1.json");
        std::fs::write(path, generated.clone() + "\n").unwrap();
        return;
    }
    assert_eq!(published.trim_end(), generated, "BLESS=1 writes it anew");
    let Some(day) = day() else { return };
    let schema: serde_json::Value = serde_json::from_str(published).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for (name, report) in &day.explained {
        validator.validate(&report.json).unwrap_or_else(|error| panic!("'{name}': {error}"));
    }
}

#[test]
fn a_dry_run_finds_what_scan_finds_and_ends_nobody() {
    let Some(day) = day() else { return };
    for (name, (pid, _)) in &day.mess.planted {
        let verdicts =
            [&day.scan, &day.dry_run].map(|report| report.process(*pid)["verdict"].clone());
        assert_eq!(verdicts[0], verdicts[1], "'{name}'");
        assert!(day.dry_run.process(*pid)["outcome"].is_null(), "'{name}'");
    }
    assert_eq!(day.alive_before, day.mess.planted.keys().copied().collect::<Vec<_>>());
}

#[test]
fn reap_ends_exactly_the_orphans() {
    let Some(day) = day() else { return };
    let expected: Vec<_> = day
        .mess
        .planted
        .keys()
        .copied()
        .filter(|name| !ORPHANS.iter().any(|(orphan, _)| orphan == name))
        .collect();
    assert_eq!(day.alive_after, expected);
}

#[test]
fn reap_says_how_each_orphan_ended() {
    let Some(day) = day() else { return };
    for (name, outcome) in ORPHANS {
        let said = day.reap.process(day.mess.planted[name].0);
        assert_eq!(said["outcome"]["result"], outcome, "'{name}': {said:#}");
    }
}

#[test]
fn what_was_brought_back_is_not_ended_again_in_the_same_run() {
    let Some(day) = day() else { return };
    let processes = day.reap.json["processes"].as_array().unwrap();
    let ended = processes.iter().filter(|process| !process["outcome"].is_null()).count();
    assert_eq!(ended, ORPHANS.len(), "{processes:#?}");
}

#[test]
fn the_ports_of_the_ended_can_be_bound_again() {
    let Some(day) = day() else { return };
    assert_eq!(day.bindable, FREED);
}

#[test]
fn reap_names_the_one_who_brings_a_server_back() {
    let Some(day) = day() else { return };
    let respawns = day.reap.json["respawns"].as_array().unwrap();
    let launcher = format!("pid {} ", day.mess.planted["launcher"].0);
    let names_it = |respawn: &serde_json::Value| {
        let bringer = respawn["brought_by"].as_str().unwrap();
        bringer.contains(&launcher) && bringer.contains("start_with_discovery.sh")
    };
    assert!(respawns.iter().any(names_it), "{respawns:#?}");
}

#[test]
fn the_exit_code_says_whether_something_remains() {
    let Some(day) = day() else { return };
    assert_eq!(day.scan.code, 1, "orphans are there");
    assert_eq!(day.dry_run.code, 1, "orphans are still there");
    assert_eq!(day.reap.code, 1, "one was brought back");
    assert_eq!(day.scan.json["exit_code"], 1);
}

#[test]
fn once_the_launcher_is_gone_the_last_orphan_ends_for_good() {
    let Some(day) = day() else { return };
    let remaining = day.last_scan.json["processes"].as_array().unwrap();
    assert!(remaining.iter().all(|process| process["verdict"] != "orphan"), "{remaining:#?}");
    assert_eq!(day.last_scan.port("8791/tcp")["state"], "free", "{:#}", day.launcher_gone.json);
    assert_eq!(day.last_scan.code, 1, "the client still has mindsdb's port: {remaining:#?}");
}
