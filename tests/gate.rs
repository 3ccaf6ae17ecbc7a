//! `portreeve gate` on real sockets and processes: what may be bound, what blocks, how long it waits, what it becomes.

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
    io::{BufRead, BufReader, Write},
    net::{TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::{Child, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use portreeve::{
    host::Host,
    observe::{Reach, bind, listeners},
    snapshot::{Bind, Seen},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde_json::Value;
use support::{
    DEADLINE, skip,
    stage::{Planted, Stage},
    wait_until,
};

const CONFIG: &str = "
defaults: { min_age: 1ms, grace: 500ms, respawn_watch: 0s }
gate: { timeout: 0s, settle: 50ms }
services:
  left: { runs_in: container, ports: [7201], patterns: ['^gate-left '] }
  web: { ports: [7202] }
  plain: { ports: [7203], reuse_addr: false }
  lost: { ports: ['192.0.2.77:7204'] }
  local: { ports: ['127.0.0.1:7205'] }
  db: { ports: [7206] }
";

/// A stage with the config; the tests beside this one share the machine's processes, so each looks for its own alone.
fn stage() -> Option<(Stage, String)> {
    let stage = Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()?;
    stage.sh("sysctl -qw net.ipv4.ip_local_port_range='32768 60999'");
    let own = format!("gate-left {}", stage.path("").display());
    let config = stage.write("config.yaml", &CONFIG.replace("gate-left ", &own));
    Some((stage, config))
}

fn left_name(stage: &Stage) -> String {
    format!("gate-left {}", stage.path("").display())
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn gate(stage: &Stage, config: &str, words: &[&str]) -> Output {
    stage.run(&[&["gate", "--config", config], words].concat())
}

/// The document, checked against its published schema.
fn document(stage: &Stage, config: &str, words: &[&str]) -> Value {
    let output = gate(stage, config, &[words, &["--format", "json"]].concat());
    let document: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    let schema = fs::read_to_string(SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(document["exit_code"], code(&output));
    document
}

/// Answer, title of the first remark, and pids in the way, of the first port.
fn first(document: &Value) -> (String, String, Vec<u64>) {
    let port = &document["ports"][0];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pids = port["blockers"].as_array().unwrap().iter().map(|b| b["pid"].as_u64().unwrap());
    (word(&port["answer"]), word(&port["remarks"][0]["title"]), pids.collect())
}

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/schema/gate-v1.json");

#[test]
fn the_published_schema_is_the_one_that_the_code_generates() {
    let schema = serde_json::to_string_pretty(&portreeve::report::gate::schema()).unwrap();
    let generated = format!("{schema}\n");
    if std::env::var_os("BLESS").is_some() {
        fs::write(SCHEMA, &generated).unwrap();
    }
    let published = fs::read_to_string(SCHEMA).unwrap_or_default();
    assert_eq!(published, generated, "BLESS=1 writes {SCHEMA} anew");
}

// ---- what may be bound

/// A socket as a service makes it: none where it cannot be bound and listen.
fn serve(at: &str, v6only: bool, reuse_addr: bool) -> Option<OwnedFd> {
    let at: std::net::SocketAddr = at.parse().unwrap();
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, v6only).unwrap();
    }
    sockopt::set_socket_reuseaddr(&socket, reuse_addr).unwrap();
    rustix::net::bind(&socket, &at).ok()?;
    rustix::net::listen(&socket, 1).ok()?;
    Some(socket)
}

#[test]
fn the_probe_of_each_of_twelve_binds_is_what_a_service_meets() {
    let stage = match Stage::set() {
        Ok(stage) => stage,
        Err(reason) => return skip(&reason),
    };
    let cells: Vec<(String, bool, Seen<Bind>)> = stage.within(|| {
        let holders = [("127.0.0.2:7210", false), ("[::]:7210", true), ("[::]:7210", false)];
        let services = ["127.0.0.1:7210", "0.0.0.0:7210", "[::]:7210", "[::]:7210/tcp6"];
        let mut cells = Vec::new();
        for (holder, v6only) in holders {
            let held = serve(holder, v6only, true).unwrap();
            for service in services {
                let name = format!("{service} beside {holder}, v6only {v6only}");
                // Twice: the probe itself leaves nothing behind.
                let probed = bind::observe(&Host::live(), &service.parse().unwrap(), true);
                assert_eq!(bind::observe(&Host::live(), &service.parse().unwrap(), true), probed);
                let at = service.trim_end_matches("/tcp6");
                cells.push((name, serve(at, at != service, true).is_some(), probed));
            }
            drop(held);
        }
        cells
    });
    assert_eq!(cells.len(), 12);
    for (name, can_serve, probed) in &cells {
        let expected = if *can_serve { Bind::Bound } else { Bind::Busy };
        assert_eq!(*probed, Seen::Known(expected), "{name}");
    }
    let free: Vec<bool> = cells.iter().map(|(_, can_serve, _)| *can_serve).collect();
    assert_eq!(free[..4], [true, false, false, true]);
    assert_eq!(free[4..], [true, true, false, false, false, false, false, false]);
}

/// A TCP socket on this address, bound as it says.
fn silent(at: &str, reuses: [bool; 2], v6only: bool) -> OwnedFd {
    let at: std::net::SocketAddr = at.parse().unwrap();
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, v6only).unwrap();
    }
    sockopt::set_socket_reuseaddr(&socket, reuses[0]).unwrap();
    sockopt::set_socket_reuseport(&socket, reuses[1]).unwrap();
    rustix::net::bind(&socket, &at).unwrap();
    socket
}

/// What the whole dump shows beside which a plain bind succeeds; and how many sockets it showed at all.
fn bound_beside(name: &str, port: u16) -> (Vec<String>, usize) {
    let at = ["", "127.0.0.1:", "127.0.0.2:", "0.0.0.0:", "[::1]:", "[::]:"];
    let endpoints = at.iter().flat_map(|at| ["tcp", "udp"].map(|p| format!("{at}{port}/{p}")));
    let mut shown = 0;
    let wrong = endpoints.filter_map(|text| {
        let endpoint = text.parse().unwrap();
        let sockets = listeners::from_diagnostics(&[endpoint], Reach::Whole).unwrap();
        let bind = bind::observe(&Host::live(), &endpoint, false);
        shown += sockets.len();
        let is_wrong = !sockets.is_empty() && bind != Seen::Known(Bind::Busy);
        is_wrong.then(|| format!("{text} beside {name}: {bind:?}, {sockets:?}"))
    });
    (wrong.collect(), shown)
}

#[test]
fn a_plain_bind_succeeds_beside_no_socket_of_any_state() {
    let stage = match Stage::set() {
        Ok(stage) => stage,
        Err(reason) => return skip(&reason),
    };
    let seen: Vec<(&str, Vec<String>, usize)> = stage.within(|| {
        let mut seen = Vec::new();
        let mut look = |name, port| {
            let (wrong, shown) = bound_beside(name, port);
            seen.push((name, wrong, shown));
        };
        let addresses = ["127.0.0.1", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"];
        let ways = [[false, false], [true, false], [false, true], [true, true]];
        // Another one each time: what other tests fork may have the last one open for a moment.
        let mut ports = 7300..;
        for (address, reuses) in addresses.iter().flat_map(|a| ways.map(|w| (a, w))) {
            for v6only in [false, true] {
                if v6only && !address.contains("[::]") {
                    continue;
                }
                let port = ports.next().unwrap();
                let socket = silent(&format!("{address}:{port}"), reuses, v6only);
                if listeners::sees_bound(&Host::live()) {
                    look("what is bound and silent", port);
                }
                rustix::net::listen(&socket, 1).unwrap();
                look("what listens", port);
            }
        }
        let two = [(); 2].map(|()| silent("127.0.0.1:7220", [true, true], false));
        for socket in &two {
            rustix::net::listen(socket, 1).unwrap();
        }
        look("two that share it", 7220);
        drop(two);
        for (at, port) in [("127.0.0.1", 7221), ("[::1]", 7222)] {
            let server = serve(&format!("[::]:{port}"), false, true).unwrap();
            let client = TcpStream::connect(format!("{at}:{port}")).unwrap();
            let accepted = rustix::net::accept(&server).unwrap();
            drop(server);
            look("a connection that it accepted", port);
            look("a client", client.local_addr().unwrap().port());
            drop(accepted);
            look("FIN_WAIT", port);
            drop(client);
            look("TIME_WAIT", port);
        }
        for (address, port) in [("127.0.0.1", 7223), ("0.0.0.0", 7224)] {
            let socket = UdpSocket::bind((address, port)).unwrap();
            look("UDP", port);
            socket.connect("127.0.0.1:9").unwrap();
            look("connected UDP", port);
        }
        let both = UdpSocket::bind("[::]:7225").unwrap();
        look("UDP of both families", 7225);
        drop(both);
        seen
    });
    for (name, wrong, shown) in seen {
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(shown > 0, "{name} is not seen");
    }
}

/// A server that closed its connection first, and went: TIME_WAIT is on the port.
fn leave_time_wait(stage: &Stage, port: u16, reuse_addr: bool) {
    stage.within(|| {
        let server = serve(&format!("0.0.0.0:{port}"), false, reuse_addr).unwrap();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let accepted = rustix::net::accept(&server).unwrap();
        drop((accepted, server));
        // The client closes second, so that the server's side lingers.
        drop(client);
    });
    wait_until(DEADLINE, "it lingers", || {
        let output = stage.command(&["cat", "/proc/net/tcp"]).output().unwrap();
        let local = format!(":{port:04X} ");
        text(&output.stdout).lines().any(|l| l.contains(&local) && l.contains(" 06 "))
    });
}

#[test]
fn time_wait_lets_a_server_with_so_reuseaddr_pass_and_blocks_one_without() {
    let Some((stage, config)) = stage() else { return };
    leave_time_wait(&stage, 7202, true);
    leave_time_wait(&stage, 7203, true);
    leave_time_wait(&stage, 7206, false);
    let met = stage.within(|| {
        let can = |at: &str, reuse| serve(at, false, reuse).is_some();
        [can("0.0.0.0:7202", true), can("0.0.0.0:7203", false), can("0.0.0.0:7206", true)]
    });
    assert_eq!(met, [true, false, false], "what the services meet");
    // What lingers of a server that did not set it keeps off one that does.
    let db = document(&stage, &config, &["db"]);
    assert_eq!(first(&db), ("blocked".into(), "lingering".into(), vec![]), "{db:#}");
    let web = document(&stage, &config, &["web"]);
    if !listeners::sees_bound(&Host::live()) {
        // There a silent socket beside them would not be seen.
        assert_eq!((&web["ports"][0]["answer"], &web["exit_code"]), (&"unknown".into(), &2.into()));
        return;
    }
    assert_eq!(first(&web), ("open".into(), "lingering".into(), vec![]), "{web:#}");
    let plain = document(&stage, &config, &["plain"]);
    assert_eq!(first(&plain), ("blocked".into(), "lingering".into(), vec![]), "{plain:#}");
    assert_eq!((&web["exit_code"], &plain["exit_code"]), (&0.into(), &1.into()));
}

#[test]
fn a_socket_that_is_bound_and_silent_blocks_and_its_holder_is_named() {
    let Some((stage, config)) = stage() else { return };
    let holder = stage.plant(&["--as", "loading-model", "--bind", "7202"]);
    let document = document(&stage, &config, &["web"]);
    let (answer, title, pids) = first(&document);
    assert_eq!((answer.as_str(), &document["exit_code"]), ("blocked", &1.into()), "{document:#}");
    if listeners::sees_bound(&Host::live()) {
        assert_eq!((title.as_str(), pids), ("bound, not listening", vec![holder.pid().into()]));
    } else {
        assert_eq!(title, "busy");
    }
}

#[test]
fn an_address_that_is_not_there_blocks_and_a_holder_of_another_address_does_not() {
    let Some((stage, config)) = stage() else { return };
    let lost = document(&stage, &config, &["lost"]);
    assert_eq!(first(&lost), ("blocked".into(), "no such address".into(), vec![]));
    let _holder = stage.plant(&["--as", "beside", "--listen", "127.0.0.2:7205"]);
    let local = document(&stage, &config, &["local"]);
    assert_eq!(first(&local), ("open".into(), String::new(), vec![]), "{local:#}");
    let anywhere = document(&stage, &config, &["--port", "7205"]);
    assert_eq!(anywhere["exit_code"], 1, "{anywhere:#}");
}

#[test]
fn a_udp_port_is_held_by_who_is_bound() {
    let Some((stage, config)) = stage() else { return };
    let holder = stage.plant(&["--as", "resolver", "--bind", "udp:7211"]);
    let document = document(&stage, &config, &["--port", "7211/udp", "--port", "7211"]);
    assert_eq!(first(&document), ("blocked".into(), "held".into(), vec![holder.pid().into()]));
    assert_eq!(document["ports"][1]["answer"], "open");
}

#[test]
fn an_outgoing_connection_on_the_port_blocks_with_the_sysctl_line() {
    let Some((stage, config)) = stage() else { return };
    stage.sh("sysctl -qw net.ipv4.ip_local_port_range='7202 7203'; sysctl -qw net.ipv4.ip_local_reserved_ports=9999");
    let _server = stage.plant(&["--as", "server", "--listen", "7999"]);
    let client = stage.plant(&["--as", "client", "--connect", "7202:7999"]);
    let found = document(&stage, &config, &["web"]);
    let wanted = ("blocked".into(), "outgoing connection".into(), vec![client.pid().into()]);
    assert_eq!(first(&found), wanted, "{found:#}");
    let next = found["ports"][0]["remarks"][0]["next_step"].as_str().unwrap();
    assert!(next.contains("sysctl -w net.ipv4.ip_local_reserved_ports=9999,7202"), "{next}");
    // The other one only could be taken.
    let plain = document(&stage, &config, &["plain"]);
    assert_eq!(first(&plain), ("open".into(), "could be taken".into(), vec![]), "{plain:#}");
    stage.sh("sysctl -qw net.ipv4.ip_local_reserved_ports=9999,7203");
    let reserved = document(&stage, &config, &["plain"]);
    assert_eq!(first(&reserved), ("open".into(), String::new(), vec![]), "{reserved:#}");
}

#[test]
fn two_unrelated_holders_block_and_both_are_named() {
    let Some((stage, config)) = stage() else { return };
    let words = ["--setsid", "--reuse-port", "--listen", "7202"];
    let holders = ["one", "two"].map(|name| stage.plant(&[&["--as", name][..], &words].concat()));
    let document = document(&stage, &config, &["web"]);
    let (answer, _, mut pids) = first(&document);
    pids.sort_unstable();
    let mut planted = holders.each_ref().map(|holder| u64::from(holder.pid()));
    planted.sort_unstable();
    assert_eq!((answer.as_str(), pids), ("blocked", planted.to_vec()), "{document:#}");
    let said = text(&gate(&stage, &config, &["web"]).stdout);
    assert!(said.contains("2 unrelated processes"), "{said}");
}

#[test]
fn a_low_port_without_the_right_to_bind_it_is_unknown_and_never_let_pass() {
    let Some((stage, config)) = stage() else { return };
    let without = "exec setpriv --bounding-set -net_bind_service --inh-caps -net_bind_service";
    let run = |more: &[&str]| {
        let words = [&["gate", "--config", &config, "--port", "81"][..], more].concat();
        code(&stage.portreeve_by(without, &words).output().unwrap())
    };
    assert_eq!(run(&[]), 2);
    assert_eq!(run(&["--on-blocked", "warn"]), 2);
    assert_eq!(run(&["--", "true"]), 69);
    assert_eq!(code(&gate(&stage, &config, &["--port", "81"])), 0);
}

// ---- waiting

/// A gate in the background.
fn start(stage: &Stage, config: &str, words: &[&str]) -> Child {
    let mut command = stage.portreeve(&[&["gate", "--config", config], words].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn is_running(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_none()
}

#[test]
fn it_waits_for_a_holder_that_leaves_and_no_longer() {
    let Some((stage, config)) = stage() else { return };
    let mut holder = stage.plant(&["--as", "leaving", "--listen", "7202"]);
    let mut waiting = start(&stage, &config, &["web", "--timeout", "20s"]);
    // Past the time in which it settles.
    let began = Instant::now();
    wait_until(DEADLINE, "it has waited a while", || began.elapsed() > Duration::from_millis(400));
    assert!(is_running(&mut waiting));
    let ended = Instant::now();
    holder.end();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output.stdout));
    assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
}

#[test]
fn what_is_just_closing_is_no_conflict_though_the_timeout_is_zero() {
    let Some((stage, _)) = stage() else { return };
    let config = stage.write(
        "settle.yaml",
        "gate: { timeout: 0s, settle: 20s }\nservices: { web: { ports: [7202] } }\n",
    );
    let mut holder = stage.plant(&["--as", "closing", "--listen", "7202"]);
    let mut waiting = start(&stage, &config, &["web"]);
    let began = Instant::now();
    wait_until(DEADLINE, "it has looked", || began.elapsed() > Duration::from_millis(300));
    assert!(is_running(&mut waiting));
    holder.end();
    assert_eq!(code(&waiting.wait_with_output().unwrap()), 0);
    // And what stays is one, once that time is up.
    let _holder = stage.plant(&["--as", "staying", "--listen", "7202"]);
    let config = stage.write(
        "short.yaml",
        "gate: { timeout: 0s, settle: 300ms }\nservices: { web: { ports: [7202] } }\n",
    );
    let document = document(&stage, &config, &["web"]);
    assert_eq!(document["exit_code"], 1);
    assert!(document["waited_ms"].as_u64().unwrap() >= 300, "{document:#}");
}

/// Which signals a process has handlers for (SigCgt of proc_pid_status(5)).
fn catches(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[test]
fn a_signal_ends_the_waiting_and_nothing_is_started() {
    let Some((stage, config)) = stage() else { return };
    let mut holder = stage.plant(&["--as", "staying", "--listen", "7202"]);
    let mark = stage.path("started");
    let touch = ["--", "touch", mark.to_str().unwrap()];
    let waiting = start(&stage, &config, &[&["web", "--timeout", "20s"][..], &touch].concat());
    // nsenter and unshare become what they run. What whoever runs the tests ignores, it ignores too; SIGTERM nobody does.
    wait_until(DEADLINE, "it catches signals", || catches(waiting.id()) & 0x4000 == 0x4000);
    let pid = rustix::process::Pid::from_child(&waiting);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(code(&output), 69, "{}", text(&output.stderr));
    holder.end();
    assert!(!mark.exists());
}

/// A Docker in which nothing runs; says when it was asked for that.
fn empty_docker(socket: &std::path::Path) -> Arc<Mutex<Vec<Instant>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    docker(socket, move || noted.lock().unwrap().push(Instant::now()));
    asked
}

/// A Docker in which nothing runs, and which does this before it says so.
fn docker(socket: &std::path::Path, before: impl Fn() + Send + Sync + 'static) {
    let listener = UnixListener::bind(socket).unwrap();
    let before = Arc::new(before);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, before) = (stream.unwrap(), Arc::clone(&before));
            std::thread::spawn(move || {
                let mut out = stream.try_clone().unwrap();
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { return };
                    let body = match line.split(' ').nth(1) {
                        Some("/version") => r#"{"Version":"20.10","ApiVersion":"1.41"}"#,
                        Some(_) if line.starts_with("GET ") => {
                            before();
                            "[]"
                        }
                        Some(_) | None => continue,
                    };
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}", body.len());
                    if write!(out, "{head}\r\n\r\n{body}").is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// The settings with a Docker at this socket.
fn with_docker(stage: &Stage, config: &str, socket: &std::path::Path) -> String {
    let settings = format!(
        "{}\nengines: {{ docker: {}, podman: off, timeout: 20s }}\n",
        fs::read_to_string(config).unwrap(),
        socket.display()
    );
    stage.write("docker.yaml", &settings)
}

#[test]
fn who_takes_the_port_while_an_engine_answers_is_in_the_way_nevertheless() {
    let Some((stage, config)) = stage() else { return };
    // The code of a gate that is started, and meets this once it asks its engine.
    let meets = |name: &str, occupy: &dyn Fn()| {
        let (asked, is_asked) = mpsc::channel();
        let (answer, may_answer) = mpsc::channel::<()>();
        let may_answer = Mutex::new(may_answer);
        let socket = stage.path(name);
        docker(&socket, move || {
            let _ = asked.send(());
            let _ = may_answer.lock().unwrap().recv();
        });
        let config = with_docker(&stage, &config, &socket);
        let waiting = start(&stage, &config, &["web"]);
        is_asked.recv_timeout(DEADLINE).unwrap();
        occupy();
        drop(answer);
        let output = waiting.wait_with_output().unwrap();
        (code(&output), text(&output.stdout))
    };
    let held = Mutex::new(None);
    let (code, said) = meets("one.sock", &|| {
        *held.lock().unwrap() = Some(stage.plant(&["--as", "quick", "--listen", "7202"]));
    });
    assert_eq!(code, 1, "{said}");
    held.into_inner().unwrap().unwrap().end();
    if !listeners::sees_bound(&Host::live()) {
        println!("skipped: this kernel is older than 6.8 and shows no bound-only sockets");
        return;
    }
    // One that is bound and silent, beside what lets a bind that reuses succeed.
    leave_time_wait(&stage, 7202, true);
    let silent_one = Mutex::new(None);
    let (code, said) = meets("two.sock", &|| {
        let socket = stage.within(|| silent("0.0.0.0:7202", [true, false], false));
        *silent_one.lock().unwrap() = Some(socket);
    });
    assert_eq!(code, 1, "{said}");
}

/// Processor time of a process so far, in ticks of a hundredth of a second.
fn ticks_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[test]
fn a_wait_for_what_no_socket_tells_of_leaves_the_processor_alone() {
    let Some((stage, config)) = stage() else { return };
    // What its own binds of a free port do must not wake it.
    let mut waiting = start(&stage, &config, &["lost", "web", "--timeout", "3s"]);
    let mut ticks = 0;
    wait_until(DEADLINE, "it has ended", || {
        ticks = ticks_of(waiting.id()).unwrap_or(ticks);
        !is_running(&mut waiting)
    });
    assert!(ticks < 100, "{ticks} of 300");
}

#[test]
fn engines_are_asked_while_it_waits_and_not_when_the_port_is_released() {
    let Some((stage, config)) = stage() else { return };
    let socket = stage.path("docker.sock");
    let asked = empty_docker(&socket);
    let count = || asked.lock().unwrap().len();
    let config = with_docker(&stage, &config, &socket);
    let mut holder = stage.plant(&["--as", "leaving", "--listen", "7202"]);
    let waiting = start(&stage, &config, &["web", "--timeout", "20s"]);
    // Once at first, and then with every whole look, a second apart.
    wait_until(DEADLINE, "it was asked again", || count() == 3);
    let ended = Instant::now();
    holder.end();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(code(&output), 0, "{}", text_of(&output));
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|at| *at < ended), "{asked:?}");
    assert!(asked.windows(2).all(|two| two[1] - two[0] > Duration::from_millis(800)), "{asked:?}");
}

fn text_of(output: &Output) -> String {
    text(&[output.stdout.clone(), output.stderr.clone()].concat())
}

// ---- what it becomes

#[test]
fn an_orphan_on_the_port_is_cleared_and_the_command_comes_up() {
    let Some((stage, config)) = stage() else { return };
    let Some(orphan) = stage.orphan(&["--as", &left_name(&stage), "--listen", "7201"]) else {
        return;
    };
    let blocked = gate(&stage, &config, &["left"]);
    assert_eq!(code(&blocked), 1);
    let said = text(&blocked.stdout);
    assert!(
        said.contains("orphan: not where left runs") && said.contains("portreeve reap"),
        "{said}"
    );
    assert_eq!(code(&gate(&stage, &config, &["left", "--", "true"])), 75);
    assert!(orphan.is_alive());
    let plant = stage.program("examples/plant");
    let ready = stage.path("ready");
    let leash = stage.path("leash");
    let words = ["left", "--reap", "--timeout", "20s", "--", plant.to_str().unwrap()];
    let rest = [
        "--listen",
        "7201",
        "--ready",
        ready.to_str().unwrap(),
        "--leash",
        leash.to_str().unwrap(),
    ];
    let server = start(&stage, &config, &[&words[..], &rest].concat());
    let server = Planted::of_child(server);
    wait_until(DEADLINE, "the command listens", || ready.exists() || !server.is_alive());
    assert!(server.is_alive() && !orphan.is_alive());
    // It became the command: the same process.
    assert_eq!(fs::read_to_string(&ready).unwrap().trim(), server.pid().to_string());
}

#[test]
fn whom_somebody_brings_back_is_not_ended_again_and_again() {
    let Some((stage, config)) = stage() else { return };
    let (plant, ready) = (stage.program("examples/plant"), stage.path("planted/again"));
    let (plant, ready, leash) = (plant.display(), ready.display(), stage.path("leash"));
    let (name, log) = (left_name(&stage), stage.path("started"));
    // A launcher whose servers daemonise, so that each looks left behind.
    let once = format!(
        "rm -f {ready}; {plant} --daemonise --as '{name}' --ready {ready} --leash {} --listen 7201; \
         while ! [ -e {ready} ]; do sleep 0.02; done; cat {ready} >>{}; echo >>{1}",
        leash.display(),
        log.display()
    );
    let alive = format!(
        "kill -0 $(cat {ready}) 2>/dev/null && ! grep -q 'State:.Z' /proc/$(cat {ready})/status"
    );
    let script = format!("while :; do {once}; while {alive}; do sleep 0.02; done; done");
    let launcher = stage.command(&["sh", "-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    let mut launcher = Planted::of_child(launcher);
    let started = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
    };
    wait_until(DEADLINE, "the first is there", || started().len() == 1);
    let first_one = Planted::adopt(started()[0]);
    let watching =
        fs::read_to_string(&config).unwrap().replace("respawn_watch: 0s", "respawn_watch: 10s");
    let config = stage.write("watching.yaml", &watching);
    let output = gate(&stage, &config, &["left", "--reap", "--timeout", "3s"]);
    launcher.end();
    let all = started();
    let last = Planted::adopt(*all.last().unwrap());
    let said = text(&output.stdout);
    assert_eq!(code(&output), 1, "{said}");
    assert!(!first_one.is_alive() && last.is_alive(), "{said}");
    assert_eq!(all.len(), 2, "one was ended, one brought back: {said}");
    assert!(said.contains("CAME BACK") && said.contains("started after this run began"), "{said}");
}

#[test]
fn a_port_between_an_end_and_a_respawn_is_not_let_pass() {
    let Some((stage, config)) = stage() else { return };
    let (plant, ready) = (stage.program("examples/plant"), stage.path("planted/again"));
    let again = stage.path("planted/second");
    let once = |ready: &std::path::Path| {
        format!(
            "{} --daemonise --as '{}' --ready {} --leash {} --listen 7201",
            plant.display(),
            left_name(&stage),
            ready.display(),
            stage.path("leash").display(),
        )
    };
    let alive =
        format!("grep -q 'State:.[^Z]' /proc/$(cat {})/status 2>/dev/null", ready.display());
    // It takes its time to bring the second one up: nobody watches for it (respawn_watch: 0s).
    let script = format!(
        "{}; until [ -s {} ]; do sleep 0.02; done; while {alive}; do sleep 0.02; done; sleep 0.4; {}; sleep 60",
        once(&ready),
        ready.display(),
        once(&again),
    );
    let launcher = stage.command(&["sh", "-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    let mut launcher = Planted::of_child(launcher);
    let pid = || fs::read_to_string(&ready).ok().and_then(|text| text.trim().parse().ok());
    wait_until(DEADLINE, "the first is there", || pid().is_some());
    let first_one = Planted::adopt(pid().unwrap());
    let slow = fs::read_to_string(&config).unwrap().replace("settle: 50ms", "settle: 3s");
    let config = stage.write("slow.yaml", &slow);
    let output = gate(&stage, &config, &["left", "--reap"]);
    let said = text(&output.stdout);
    launcher.end();
    assert!(!first_one.is_alive(), "{said}");
    assert_eq!(code(&output), 1, "{said}");
    let _second = Planted::adopt(fs::read_to_string(&again).unwrap().trim().parse().unwrap());
}

#[test]
fn who_stays_in_the_way_is_let_pass_at_once_and_who_may_go_is_waited_for() {
    let Some((stage, _)) = stage() else { return };
    let config = stage.write(
        "patient.yaml",
        "defaults: { min_age: 1ms }\ngate: { timeout: 4s, settle: 50ms }\n\
         services: { db: { ports: [7206] }, lost: { ports: ['192.0.2.77:7204'] } }\n",
    );
    let _postgres = stage.plant(&["--as", "postgres", "--listen", "7206"]);
    let waited = |words: &[&str]| {
        let found = document(&stage, &config, &[words, &["--on-blocked", "warn"]].concat());
        assert_eq!(found["exit_code"], 0, "{found:#}");
        found["waited_ms"].as_u64().unwrap()
    };
    assert!(waited(&["db"]) < 3000);
    // An address may come; and whoever says how long to wait is believed.
    assert!(waited(&["db", "lost"]) >= 4000);
    let waited_long = waited(&["db", "--timeout", "1500ms"]);
    assert!((1500..4000).contains(&waited_long), "{waited_long}");
    assert_eq!(document(&stage, &config, &["db", "--timeout", "0s"])["exit_code"], 1);
}

#[test]
fn the_commands_own_code_is_its_own_and_it_inherits_nothing_of_ours() {
    let Some((stage, config)) = stage() else { return };
    assert_eq!(code(&gate(&stage, &config, &["web", "--", "sh", "-c", "exit 42"])), 42);
    assert_eq!(code(&gate(&stage, &config, &["web", "--", "/nonexistent/program"])), 69);
    assert_eq!(code(&gate(&stage, "/nonexistent.yaml", &["web", "--", "true"])), 69);
    assert_eq!(code(&gate(&stage, "/nonexistent.yaml", &["web"])), 2);
    // Descriptors, signals that are ignored or blocked, the limit of descriptors that a reap raises.
    let look =
        "ls -1 /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status; ulimit -Sn";
    let bare = stage.command(&["sh", "-c", look]).stdin(Stdio::null()).output().unwrap();
    let gated = gate(&stage, &config, &["web", "--reap", "--", "sh", "-c", look]);
    assert_eq!(text(&gated.stdout), text(&bare.stdout), "{}", text(&gated.stderr));
    assert_eq!(text(&gated.stderr), "");
}

#[test]
fn a_signal_that_was_ignored_stays_so_for_the_command() {
    let Some((stage, config)) = stage() else { return };
    // As nohup, a shell's background and systemd (IgnoreSIGPIPE=) start what they start.
    for signals in ["PIPE", "HUP INT", "HUP INT PIPE TERM USR1"] {
        let script = format!("trap '' {signals}; exec");
        let look = ["grep", "SigIgn", "/proc/self/status"];
        let bare = stage.command(&["sh", "-c", &format!("{script} \"$@\""), "sh"]);
        let bare = { bare }.args(look).output().unwrap();
        let words = [&["gate", "--config", &config, "web", "--"], &look[..]].concat();
        let gated = stage.portreeve_by(&script, &words).output().unwrap();
        assert_eq!(text(&gated.stdout), text(&bare.stdout), "{signals}: {}", text_of(&gated));
    }
}

#[test]
fn a_healthy_foreign_holder_blocks_and_is_let_pass_with_a_warning_where_that_is_wished() {
    let Some((stage, config)) = stage() else { return };
    let postgres =
        stage.plant(&["--as", "postgres -D /var/lib/postgresql/15/main", "--listen", "7206"]);
    let blocked = gate(&stage, &config, &["db", "--reap"]);
    let said = text(&blocked.stdout);
    assert_eq!(code(&blocked), 1, "{said}");
    let (pid, lines): (String, Vec<&str>) = (postgres.pid().to_string(), said.lines().collect());
    assert!(
        lines.iter().any(|l| l.contains("7206") && l.contains(&pid) && l.contains("postgres -D")),
        "{said}"
    );
    assert!(lines.iter().any(|line| line.trim_start().starts_with("next: ")), "{said}");
    assert!(lines.last().unwrap().starts_with("blocked: "), "{said}");
    let warned = gate(&stage, &config, &["db", "--on-blocked", "warn"]);
    assert_eq!(code(&warned), 0);
    assert!(text(&warned.stdout).contains("warning, goes on: "), "{}", text(&warned.stdout));
    let went_on = gate(&stage, &config, &["db", "--on-blocked", "warn", "--", "echo", "up"]);
    assert_eq!((code(&went_on), text(&went_on.stdout).as_str()), (0, "up\n"));
    assert!(text(&went_on.stderr).contains("postgres"), "{}", text(&went_on.stderr));
    // Not even a quiet one, or one that writes a file, goes on in silence.
    let quiet =
        gate(&stage, &config, &["db", "--on-blocked", "warn", "--quiet", "--", "echo", "up"]);
    assert_eq!((code(&quiet), text(&quiet.stdout).as_str()), (0, "up\n"));
    assert!(
        text(&quiet.stderr).starts_with("warning: port 7206 is blocked"),
        "{}",
        text(&quiet.stderr)
    );
    assert!(postgres.is_alive());
}

#[test]
fn a_holder_in_no_unit_of_ours_is_never_accepted_as_ours() {
    let Some((stage, config)) = stage() else { return };
    // In the same control group as the gate, which here is no unit's or a session's.
    let _holder = stage.plant(&["--as", "somebody", "--listen", "7202"]);
    assert_eq!(code(&gate(&stage, &config, &["web", "--allow-ours"])), 1);
}

/// Runs gates by a script before the command, all on one `/run`.
fn by(stage: &Stage, config: &str, script: &str, words: &[&str]) -> Output {
    let words = [&["gate", "--config", config, "web"], words].concat();
    stage.portreeve_by(script, &words).output().unwrap()
}

#[test]
fn gates_at_once_all_find_a_free_port_free_and_none_calls_another_a_holder() {
    let Some((stage, config)) = stage() else { return };
    let four = "four() { all=; for i in 1 2 3 4; do \"$@\" & all=\"$all $!\"; done; for i in $all; do wait $i; done; }; four";
    for _ in 0..10 {
        let output = by(&stage, &config, four, &["--timeout", "20s"]);
        assert_eq!(code(&output), 0, "{}", text(&output.stdout));
    }
}

#[test]
fn gates_whose_time_is_up_at_once_all_say_what_blocks() {
    let Some((stage, config)) = stage() else { return };
    let _holder = stage.plant(&["--as", "staying", "--listen", "7202"]);
    let four = "four() { all=; for i in 1 2 3 4; do \"$@\" >/dev/null & all=\"$all $!\"; done; \
                for i in $all; do code=0; wait $i || code=$?; echo $code; done; }; four";
    for _ in 0..3 {
        let output = by(&stage, &config, four, &["--timeout", "500ms"]);
        assert_eq!(text(&output.stdout), "1\n1\n1\n1\n");
    }
}

#[test]
fn a_gate_waits_for_another_and_its_command_keeps_nobody_waiting() {
    let Some((stage, config)) = stage() else { return };
    let locked = "install -d /run/portreeve; exec flock /run/portreeve/gate.lock";
    let late = by(&stage, &config, locked, &[]);
    assert_eq!(code(&late), 2);
    assert!(text(&late.stdout).contains("another gate is at work"), "{}", text(&late.stdout));
    assert_eq!(code(&by(&stage, &config, locked, &["--", "true"])), 69);
    // Somebody who has it for a moment.
    let moment = "install -d /run/portreeve; flock /run/portreeve/gate.lock sleep 0.3 & exec";
    assert_eq!(code(&by(&stage, &config, moment, &["--timeout", "20s"])), 0);
    let command = ["--", "flock", "--nonblock", "/run/portreeve/gate.lock", "true"];
    let output = by(&stage, &config, "exec", &command);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
}

/// Gates of one stage that share a `/run`.
fn in_turn(stage: &Stage, config: &str, words: &[&str]) -> std::process::Command {
    let run = stage.path("run");
    fs::create_dir_all(&run).unwrap();
    let script = format!("mount --bind {} /run; exec", run.display());
    stage.portreeve_by(&script, &[&["gate", "--config", config], words].concat())
}

/// Somebody beside the gate who takes port 7202 as soon as this file is there; as a child of theirs, or by themselves.
fn lurk(stage: &Stage, sign: &str, itself: bool) -> Planted {
    let (plant, ready) = (stage.program("examples/plant"), stage.path("planted/thief"));
    let script = format!(
        "while ! [ -e {sign} ]; do sleep 0.02; done; {} {} --as thief --ready {} --leash {} --listen 7202; exit",
        if itself { "exec" } else { "" },
        plant.display(),
        ready.display(),
        stage.path("leash").display(),
    );
    let lurker = stage.command(&["sh", "-c", &script]).stdout(Stdio::null()).spawn().unwrap();
    Planted::of_child(lurker)
}

#[test]
fn a_thief_who_takes_the_port_from_under_a_start_is_named_by_the_next_gate() {
    for itself in [false, true] {
        let Some((stage, config)) = stage() else { return };
        let sign = stage.path("through").to_str().unwrap().to_owned();
        let lurker = lurk(&stage, &sign, itself);
        // Older than the passage by more than the kernel's clock tells apart.
        let began = Instant::now();
        let is_past = || began.elapsed() > Duration::from_millis(30);
        wait_until(DEADLINE, "some ticks are over", is_past);
        let (plant, ready) = (stage.program("examples/plant"), stage.path("planted/thief"));
        let service = format!(
            "touch {sign}; while ! [ -e {} ]; do sleep 0.02; done; exec {} --as web --ready {}/web --listen 7202",
            ready.display(),
            plant.display(),
            stage.path("planted").display(),
        );
        let start = ["web", "--", "sh", "-c", &service];
        let started = in_turn(&stage, &config, &start).stderr(Stdio::piped()).spawn().unwrap();
        let gate_pid = started.id();
        let failed = started.wait_with_output().unwrap();
        assert!(text(&failed.stderr).contains("AddrInUse"), "{}", text(&failed.stderr));
        let thief: u32 = fs::read_to_string(&ready).unwrap().trim().parse().unwrap();
        let thief = Planted::adopt(thief);
        assert_eq!(thief.pid() == lurker.pid(), itself);
        let said = format!("for its command, pid {gate_pid}, which did not start it: the thief");
        let asked = |words: &[&str]| {
            let output = in_turn(&stage, &config, &[&["web"], words].concat()).output().unwrap();
            assert_eq!(code(&output), 1);
            output
        };
        let table = text(&asked(&[]).stdout);
        assert!(table.contains(&said) && table.contains(&thief.pid().to_string()), "{table}");
        let document: Value = serde_json::from_slice(&asked(&["--format", "json"]).stdout).unwrap();
        let blocker = &document["ports"][0]["blockers"][0];
        assert_eq!(blocker["pid"], thief.pid());
        assert!(blocker["since"].as_str().unwrap().ends_with(&said), "{document:#}");
        let journal = text(&asked(&["--verbose"]).stderr);
        assert!(journal.contains(&format!("pid {}: it took the port", thief.pid())), "{journal}");
        let github = text(&asked(&["--format", "github"]).stdout);
        assert!(github.contains(&said), "{github}");
        drop(lurker);
    }
}

#[test]
fn what_the_command_started_is_no_thief_and_neither_is_who_had_the_port_before_any_gate() {
    let Some((stage, config)) = stage() else { return };
    let since = || {
        let words = ["web", "--format", "json"];
        let output = in_turn(&stage, &config, &words).output().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["exit_code"], 1, "{document:#}");
        document["ports"][0]["blockers"][0]["since"].clone()
    };
    let mut before = stage.plant(&["--as", "before", "--listen", "7202"]);
    assert_eq!(since(), Value::Null);
    before.end();
    let (plant, ready) = (stage.program("examples/plant"), stage.path("planted/child"));
    let service = format!(
        "{} --as child --ready {} --leash {} --listen 7202; exit",
        plant.display(),
        ready.display(),
        stage.path("leash").display()
    );
    let words = ["web", "--", "sh", "-c", &service];
    let mut server = Planted::of_child(in_turn(&stage, &config, &words).spawn().unwrap());
    wait_until(DEADLINE, "the command's child listens", || ready.exists());
    let mut child = Planted::adopt(fs::read_to_string(&ready).unwrap().trim().parse().unwrap());
    assert_eq!(since(), Value::Null);
    server.end();
    child.end();
    // Who comes after a gate without a command may be what it stood before.
    assert_eq!(code(&in_turn(&stage, &config, &["web"]).output().unwrap()), 0);
    let _next = stage.plant(&["--as", "next", "--listen", "7202"]);
    let said = since();
    assert!(said.as_str().unwrap().starts_with("it took the port after a gate found"), "{said}");
    assert!(!said.as_str().unwrap().contains("thief"), "{said}");
}

#[test]
fn a_passage_that_cannot_be_written_down_is_a_warning_and_no_reason_not_to_start() {
    let Some((stage, config)) = stage() else { return };
    let full = "mkdir -p /run/portreeve/passed.json; exec";
    let run = |script: &str, more: &[&str]| by(&stage, &config, script, more);
    for more in [&[][..], &["--", "true"]] {
        let output = run(full, more);
        assert_eq!(code(&output), 0);
        let said = text(&output.stderr);
        assert!(said.starts_with("warning: the next gate will not know"), "{said}");
    }
    // Read-only, or full.
    for options in ["remount,ro", "remount,size=4k"] {
        let script = format!(
            "install -d /run/portreeve; : >/run/portreeve/gate.lock; mount -o {options} /run; exec"
        );
        let output = run(&script, &["--", "echo", "up"]);
        let up = (code(&output), text(&output.stdout));
        assert_eq!(up, (0, "up\n".to_owned()), "{}", text(&output.stderr));
        assert!(text(&output.stderr).starts_with("warning: "), "{options}");
    }
}

#[test]
fn every_format_says_what_blocks() {
    let Some((stage, config)) = stage() else { return };
    let _holder = stage.plant(&["--as", "somebody", "--listen", "7202"]);
    let said = |words: &[&str]| {
        let output = gate(&stage, &config, &[&["web", "plain"], words].concat());
        assert_eq!(code(&output), 1);
        text(&output.stdout)
    };
    let github = said(&["--format", "github"]);
    assert!(github.starts_with("::error title=portreeve%3A port 7202 is blocked"), "{github}");
    let metrics = said(&["--format", "prometheus"]);
    assert!(
        metrics.contains(
            "portreeve_gate_port{port=\"7202\",proto=\"tcp\",address=\"\",service=\"web\",answer=\"blocked\"} 1\n"
        ) && metrics.contains("portreeve_gate_exit_code 1\n"),
        "{metrics}"
    );
    let verbose = gate(&stage, &config, &["web", "--verbose"]);
    assert!(
        text(&verbose.stderr).contains("blocked: port 7202: held: pid"),
        "{}",
        text(&verbose.stderr)
    );
}
