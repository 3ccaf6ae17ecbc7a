//! Bad input and faults: what cannot be seen is unknown, never free and never ended; what is strange is shown and
//! does no harm; what vanishes is a normal case.

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
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use portreeve::{
    host::Host,
    ident::{Endpoint, Pid},
    observe::{self, Question, Reach, processes},
    snapshot::{Seen, SocketState},
};
use serde_json::Value;
use support::{
    DEADLINE, Report, skip,
    stage::{Planted, Stage},
    wait_until,
};

const PORT: &str = "7300/tcp";
const AS_NOBODY: &str = "exec setpriv --reuid 65534 --regid 65534 --clear-groups";

fn on_the_host() -> Option<Stage> {
    Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()
}

/// A config with one service: port 7300, and processes whose command line begins with a name that only this stage has.
fn config(stage: &Stage) -> (String, String) {
    let name = format!("fault-of-{}", stage.path("x").display()).replace('/', "-");
    let text = format!(
        "defaults: {{ min_age: 1ms, grace: 1s, respawn_watch: 0s }}\n\
         services: {{ mine: {{ runs_in: container, ports: [7300], patterns: ['{}'] }} }}\n",
        name.replace('.', r"\.")
    );
    (stage.write("config.yaml", &text), name)
}

fn state(report: &Report) -> &str {
    report.port(PORT)["state"].as_str().expect("a port of the report")
}

/// The hints of a report, each once.
fn hints(report: &Report) -> BTreeSet<String> {
    let ports = report.json["ports"].as_array().unwrap().iter().map(|port| &port["next_step"]);
    let unknowns = report.json["unknowns"].as_array().unwrap().iter().map(|one| &one["remedy"]);
    ports.chain(unknowns).filter_map(Value::as_str).map(str::to_owned).collect()
}

fn run_by(stage: &Stage, script: &str, words: &[&str]) -> Output {
    stage.portreeve_by(script, words).output().expect("nsenter runs")
}

/// Both forms of the report of a run by this script; neither may say more on stderr.
fn reports_by(stage: &Stage, script: &str, words: &[&str]) -> (Report, String) {
    let table = run_by(stage, script, words);
    let json = run_by(stage, script, &[words, &["--format", "json"]].concat());
    for output in [&table, &json] {
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    (Report::read(&json), String::from_utf8(table.stdout).unwrap())
}

#[test]
fn without_rights_what_can_be_seen_is_shown_and_the_rest_is_unknown_with_one_hint() {
    let Some(stage) = on_the_host() else { return };
    let hidden = "mount -t proc -o hidepid=%d proc /proc;";
    let (config, _) = config(&stage);
    let roots = stage.plant(&["--listen", "7300"]);
    let setpriv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let own = stage.plant_by(&setpriv, &["--listen", "7301"]);
    // What it says of a port of nobody's own: its holder, and 2 where it may be one that we were started from.
    for (who, before, of_own) in [
        ("without CAP_SYS_PTRACE", "exec setpriv --bounding-set -sys_ptrace".to_owned(), None),
        (
            "with neither right",
            "exec setpriv --bounding-set -sys_ptrace,-dac_read_search,-dac_override".to_owned(),
            None,
        ),
        ("nobody", AS_NOBODY.to_owned(), Some(1)),
        ("nobody, hidepid=1", format!("{} {AS_NOBODY}", hidden.replace("%d", "1")), Some(2)),
        ("nobody, hidepid=2", format!("{} {AS_NOBODY}", hidden.replace("%d", "2")), Some(2)),
    ] {
        for words in [&["scan", "--config", &config, "mine"][..], &["scan", "--port", "7300"]] {
            let (report, table) = reports_by(&stage, &before, words);
            assert_eq!(state(&report), "holder_not_visible", "{who}: {:#}", report.json);
            assert_eq!(report.code, 2, "{who}: {:#}", report.json);
            assert_eq!(hints(&report).len(), 1, "{who}: {:#}", report.json);
            assert!(hints(&report).first().unwrap().contains("as root"), "{who}");
            assert!(table.contains("not visible") && !table.contains("free: "), "{who}: {table}");
        }
        if let Some(code) = of_own {
            let (report, _) = reports_by(&stage, &before, &["scan", "--port", "7301"]);
            let holders = &report.port("7301/tcp")["holders"];
            assert_eq!(*holders, serde_json::json!([own.pid()]), "{who}: {:#}", report.json);
            assert_eq!(report.code, code, "{who}: {:#}", report.json);
        }
    }
    // A port that nobody has is free for everybody: the dump needs no rights.
    let free = run_by(&stage, AS_NOBODY, &["scan", "--port", "7302"]);
    assert!(String::from_utf8_lossy(&free.stdout).contains("free: 7302"), "{free:?}");
    assert!(roots.is_alive());
}

#[test]
fn a_reap_without_rights_ends_nobody_and_could_not_tell() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    let Some(orphan) = stage.orphan(&["--as", &name, "--listen", "7300"]) else { return };
    for before in ["exec setpriv --bounding-set -sys_ptrace", AS_NOBODY] {
        let output = run_by(&stage, before, &["reap", "--config", &config, "mine"]);
        assert_eq!(output.status.code(), Some(2), "{before}: {output:?}");
        assert!(orphan.is_alive(), "{before}");
    }
}

#[test]
fn a_holder_outside_our_pid_namespace_is_not_visible_and_never_nobody() {
    let Some(stage) = on_the_host() else { return };
    let (config, _) = config(&stage);
    let outside = stage.plant(&["--listen", "7300"]);
    let script = "exec unshare --pid --fork --mount-proc";
    for words in
        [&["scan", "--config", &config, "mine"][..], &["reap", "--config", &config, "mine"]]
    {
        let (report, table) = reports_by(&stage, script, words);
        assert_eq!(state(&report), "holder_not_visible", "{:#}", report.json);
        assert_eq!(report.code, 2, "{:#}", report.json);
        assert_eq!(hints(&report).len(), 1, "{:#}", report.json);
        assert!(table.contains("outside this pid namespace"), "{table}");
    }
    assert!(outside.is_alive());
}

#[test]
fn a_proc_of_another_pid_namespace_shows_nobody_and_ends_nobody() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    let Some(orphan) = stage.orphan(&["--as", &name, "--listen", "7300"]) else { return };
    // In here the kernel counts processes anew, and /proc still shows the count outside.
    let script = "exec unshare --pid --fork --kill-child";
    for verb in ["scan", "reap"] {
        let (report, table) = reports_by(&stage, script, &[verb, "--config", &config, "mine"]);
        assert_eq!(report.code, 2, "{:#}", report.json);
        assert_eq!(state(&report), "holder_not_visible");
        assert!(table.contains("another pid namespace"), "{table}");
    }
    assert!(orphan.is_alive());
}

#[test]
fn who_started_portreeve_is_spared_though_it_matches_a_pattern() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    // The shell that runs us has the pattern in its own command line, and does not end before us.
    let script = format!(": {name}; \"$@\"; exit $?");
    let words = ["reap", "--config", &config, "mine", "--also", "abandoned", "--format", "json"];
    let mut command = stage.command(&["sh", "-c", &script, "sh"]);
    command.arg(stage.program("portreeve")).args(words);
    let output = command.stdin(Stdio::null()).output().expect("nsenter runs");
    let report = Report::read(&output);
    let processes = report.json["processes"].as_array().unwrap();
    let shell = processes.iter().find(|p| p["name"] == "sh").expect("the shell is a candidate");
    assert_eq!(shell["title"], "spare: protected", "{shell:#}");
    assert_eq!(report.code, 0, "it lived to pass our exit code on: {:#}", report.json);
}

#[test]
fn where_netlink_is_refused_the_text_of_proc_net_answers() {
    let Some(stage) = on_the_host() else { return };
    let server = stage.plant(&["--listen", "127.0.0.1:7300"]);
    let other = stage.plant(&["--v6only", "--listen", "[::1]:7300"]);
    // strace's tampering lets the call fail as RestrictAddressFamilies= does, without asking the kernel.
    let strace = "exec strace --quiet=all -o /dev/null -e trace=socket -e inject=socket:error=EAFNOSUPPORT:when=1+";
    let said = run_by(&stage, strace, &["scan", "--port", "7300", "--format", "json"]);
    if String::from_utf8_lossy(&said.stderr).contains("ptrace") {
        return skip("nothing may be traced here");
    }
    let report = Report::read(&said);
    assert_eq!(state(&report), "held", "{:#}", report.json);
    let plain = stage.report(&["scan", "--port", "7300"]);
    assert_eq!(report.port(PORT)["holders"], plain.port(PORT)["holders"]);
    assert_eq!(report.port(PORT)["holders"].as_array().unwrap().len(), 2);
    assert!(server.is_alive() && other.is_alive());
}

#[test]
fn where_netlink_fails_or_is_cut_short_the_ports_are_unknown_and_not_free() {
    let Some(stage) = on_the_host() else { return };
    let _server = stage.plant(&["--listen", "7300"]);
    for answer in ["error=EIO", "error=ENOBUFS", "error=EINTR", "retval=0", "retval=10"] {
        let strace = format!(
            "exec strace --quiet=all -o /dev/null -e trace=recvfrom -e inject=recvfrom:{answer}:when=1+"
        );
        let said = run_by(&stage, &strace, &["scan", "--port", "7300", "--format", "json"]);
        if String::from_utf8_lossy(&said.stderr).contains("ptrace") {
            return skip("nothing may be traced here");
        }
        let report = Report::read(&said);
        assert_eq!(state(&report), "unknown", "{answer}: {:#}", report.json);
        assert_eq!(report.code, 2, "{answer}");
    }
}

/// Processes that come and go on port 7300 under a name that the service's pattern matches, until dropped.
fn storm(stage: &Stage, name: &str) -> Planted {
    let plant = stage.program("examples/plant");
    // Each has the port for as long as it takes to start another program.
    let short = format!(
        "{} --as {name} --reuse-port --listen 7300 --leave --child --leave",
        plant.display()
    );
    let cloud = format!("while :; do {short}; done");
    let script =
        format!("for n in 1 2 3; do setpriv --pdeathsig KILL sh -c '{cloud}' & done; wait");
    let mut command = stage.command(&["setpriv", "--pdeathsig", "KILL", "sh", "-c", &script]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("nsenter runs");
    Planted::of_child(child)
}

#[test]
fn in_a_storm_of_processes_that_come_and_go_nothing_breaks_and_nobody_is_wrongly_an_orphan() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    let storm = storm(&stage, &name);
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        let output = stage.run(&["scan", "--config", &config, "mine", "--format", "json"]);
        assert!(output.stderr.is_empty(), "{output:?}");
        let report = Report::read(&output);
        assert_eq!(report.json["exit_code"], report.code);
        seen.insert(state(&report).to_owned());
        for process in report.json["processes"].as_array().unwrap() {
            // Their parents live, or left them a moment ago.
            assert_ne!(process["verdict"], "orphan", "{process:#}");
            assert_eq!(process["would_end"], false, "{process:#}");
        }
    }
    assert!(storm.is_alive());
    println!("states: {seen:?}");
    assert!(seen.iter().any(|state| state != "free"), "it did not blow: {seen:?}");
    assert!(
        !seen.contains("kernel_owned"),
        "a socket that is closed meanwhile is nobody's: {seen:?}"
    );
}

#[test]
fn among_four_thousand_processes_the_holder_is_found() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    let script =
        "i=0; while [ $i -lt 4000 ]; do sleep 1000 & i=$((i+1)); done; echo there; read end";
    let mut crowd = stage
        .command(&[
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(crowd.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _crowd = Planted::of_child(crowd);
    if line.trim() != "there" {
        return skip("no 4,000 processes may be started here");
    }
    let server = stage.plant(&["--as", &name, "--listen", "7300"]);
    let began = Instant::now();
    let report = stage.report(&["scan", "--config", &config, "mine"]);
    println!("took {:?}", began.elapsed());
    assert_eq!(report.port(PORT)["holders"], serde_json::json!([server.pid()]));
    assert_eq!(report.json["processes"].as_array().unwrap().len(), 1);
    assert_eq!(report.code, 1);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_socket_behind_fifteen_thousand_descriptors_is_found() {
    let Some(stage) = on_the_host() else { return };
    let limits = ["sh", "-euc", "ulimit -n 15100; exec \"$@\"", "sh"];
    let Ok(server) = stage.try_plant(&limits, &["--descriptors", "15000", "--listen", "7300"])
    else {
        return skip("no process may have 15,100 descriptors here");
    };
    assert!(fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() > 15_000);
    let report = stage.report(&["scan", "--port", "7300"]);
    assert_eq!(report.port(PORT)["holders"], serde_json::json!([server.pid()]));
}

#[test]
fn a_command_line_of_two_megabytes_is_matched_and_shown_short() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    let Ok(server) = stage.try_plant(
        &["sh", "-euc", "ulimit -s unlimited || ulimit -s 65536; exec \"$@\"", "sh"],
        &["--as", &name, "--bulk", "2097152", "--listen", "7300"],
    ) else {
        return skip("no command line of 2 MiB may be used here");
    };
    let length = fs::read(format!("/proc/{}/cmdline", server.pid())).unwrap().len();
    assert!(length > 2 << 20, "{length}");
    let (report, table) = reports_by(&stage, "exec", &["scan", "--config", &config, "mine"]);
    assert_eq!(report.process(server.pid())["services"], serde_json::json!(["mine"]));
    assert!(table.len() < 4000, "{} bytes", table.len());
}

#[test]
fn a_command_line_that_is_empty_or_wiped_is_shown_as_the_name_in_brackets() {
    let Some(stage) = on_the_host() else { return };
    for words in [&["--as", "", "--listen", "7300"][..], &["--wipe-arguments", "--listen", "7300"]]
    {
        let server = stage.plant(words);
        let line = fs::read(format!("/proc/{}/cmdline", server.pid())).unwrap();
        assert!(line.iter().all(|&byte| byte == 0), "{line:?}");
        let (report, table) = reports_by(&stage, "exec", &["scan", "--port", "7300"]);
        assert_eq!(report.port(PORT)["holders"], serde_json::json!([server.pid()]));
        assert_eq!(report.code, 1);
        let name = fs::read_to_string(format!("/proc/{}/comm", server.pid())).unwrap();
        assert!(table.contains(&format!("[{}]", name.trim())), "{table}");
    }
}

#[test]
fn foreign_bytes_of_a_command_line_never_reach_the_terminal() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    for (told, shown) in [
        (r"\xff\xfe", r"\xff\xfe"),
        (r"\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\u{202e}b", r"a\u{202e}b"),
        ("line\nfeed\rx", r"line\nfeed\rx"),
        (r"\xc2\x9b31m", r"\u{9b}31m"),
    ] {
        let server = stage.plant(&["--as", &format!("{name} {told}"), "--listen", "7300"]);
        let (report, table) = reports_by(&stage, "exec", &["scan", "--config", &config, "mine"]);
        assert_eq!(
            report.process(server.pid())["services"],
            serde_json::json!(["mine"]),
            "{told:?}"
        );
        let wide =
            run_by(&stage, "exec", &["scan", "--config", &config, "mine", "--format", "json"]);
        for text in [table.as_bytes(), &wide.stdout] {
            let text = std::str::from_utf8(text).expect("UTF-8 only");
            let is_foul = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!text.contains(is_foul), "{told:?}: {text:?}");
        }
        // The table cuts a command line to 80 columns.
        if name.len() + shown.len() < 70 {
            assert!(table.contains(shown), "{told:?}: {table}");
        }
    }
}

/// A host in a folder, whose processes have the command lines that `write` makes.
fn fixture(pids: std::ops::Range<u32>, stuck: impl Fn(u32) -> bool) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for pid in pids {
        let process = folder.path().join(format!("proc/{pid}"));
        fs::create_dir_all(&process).unwrap();
        if stuck(pid) {
            make_fifo(&process.join("cmdline"));
        } else {
            fs::write(process.join("cmdline"), format!("server\0--number\0{pid}\0")).unwrap();
        }
    }
    folder
}

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn stuck_processes_are_unreadable_in_time_and_the_rest_is_read() {
    for (all, stuck_every) in [(3, 3), (40, 2), (400, 8)] {
        let folder = fixture(1..all + 1, |pid| pid % stuck_every == 0);
        let host = Host::fixture(folder.path());
        let Seen::Known(pids) = host.pids() else { panic!("no pids") };
        let began = Instant::now();
        let lines = processes::read_command_lines(&host, &pids, |_| true);
        let took = began.elapsed();
        assert!(took < Duration::from_millis(1500), "{took:?} for {} stuck", all / stuck_every);
        assert_eq!(lines.len(), pids.len());
        for (pid, line) in lines {
            if pid.0 % stuck_every == 0 {
                assert!(matches!(line, Seen::Unreadable(_)), "{pid}: {line:?}");
            } else {
                let expected = format!("server --number {pid}");
                assert_eq!(line.known().unwrap().text, expected.as_bytes());
            }
        }
    }
}

#[test]
fn a_look_at_a_host_with_stuck_processes_names_them_as_unread() {
    let folder = fixture(100..120, |pid| pid < 110);
    fs::create_dir_all(folder.path().join("proc/net")).unwrap();
    fs::write(folder.path().join("proc/net/tcp"), "  sl  local_address rem_address\n").unwrap();
    let question = Question {
        endpoints: vec!["7300".parse::<Endpoint>().unwrap()],
        nominate: Some(std::sync::Arc::new(|line: &[u8]| line.ends_with(b"115"))),
        declared_units: BTreeSet::new(),
        reach: Reach::Narrow,
        pids: BTreeSet::new(),
        receipts: Vec::new(),
        gpus: None,
        engines: portreeve::observe::Engines::none(),
        beyond: portreeve::observe::Ask::No,
    };
    let began = Instant::now();
    let snapshot = observe::observe(&Host::fixture(folder.path()), &question);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let unread: Vec<Pid> = snapshot.unread.iter().map(|(pid, _)| *pid).collect();
    assert_eq!(unread, (100..110).map(Pid).collect::<Vec<_>>());
    assert!(snapshot.sockets.known().is_some_and(|sockets| {
        !sockets.all.iter().any(|socket| socket.state == SocketState::Listening)
    }));
}

#[test]
fn a_process_that_ends_while_it_holds_the_port_leaves_it_free() {
    let Some(stage) = on_the_host() else { return };
    let mut server = stage.plant(&["--listen", "7300"]);
    assert_eq!(state(&stage.report(&["scan", "--port", "7300"])), "held");
    server.end();
    wait_until(DEADLINE, "the port is free", || {
        let report = stage.report(&["scan", "--port", "7300"]);
        report.code == 0 && state(&report) == "free"
    });
}

#[test]
fn an_orphan_that_ends_by_itself_while_it_is_reaped_is_no_trouble() {
    let Some(stage) = on_the_host() else { return };
    let (config, name) = config(&stage);
    let Some(mut orphan) = stage.orphan(&["--as", &name, "--listen", "7300"]) else { return };
    let mut command = stage.portreeve(&["reap", "--config", &config, "mine"]);
    let reap = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    orphan.end();
    let output = reap.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
