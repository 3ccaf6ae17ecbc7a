//! Every holder of a guarded port, however it holds it, on real sockets and processes.

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
    io::Read,
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
};

use portreeve::{
    host::Host,
    ident::{Endpoint, Pid, Port, Proto},
    observe::{self, Question, Reach, listeners},
    snapshot::{Socket, SocketState},
};
use support::{
    DEADLINE, Report, skip,
    stage::{Planted, Stage},
    wait_until,
};

const PORT: &str = "7200/tcp";

/// What scan says of one port, and of nothing else.
fn scan(stage: &Stage, port: &str) -> Report {
    stage.report(&["scan", "--port", port])
}

fn holders(report: &Report, port: &str) -> BTreeSet<u32> {
    let holders = report.port(port)["holders"].as_array().expect("a port of the report");
    holders.iter().map(|pid| u32::try_from(pid.as_u64().unwrap()).unwrap()).collect()
}

fn state<'a>(report: &'a Report, port: &str) -> &'a str {
    report.port(port)["state"].as_str().expect("a port of the report")
}

fn pids<const N: usize>(planted: [&Planted; N]) -> BTreeSet<u32> {
    planted.iter().map(|p| p.pid()).collect()
}

fn on_the_host() -> Option<Stage> {
    Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()
}

/// The pid that a planted child wrote.
fn child_pid(file: &Path) -> u32 {
    let mut pid = None;
    wait_until(DEADLINE, "the child is in place", || {
        pid = fs::read_to_string(file).ok().and_then(|text| text.parse().ok());
        pid.is_some()
    });
    pid.unwrap()
}

#[test]
fn every_process_that_inherited_a_socket_holds_it() {
    let Some(stage) = on_the_host() else { return };
    let (first, second) = (stage.path("first"), stage.path("second"));
    let leash = stage.path("leash");
    let leash = leash.to_str().unwrap();
    let server = stage.plant(&[
        "--listen",
        "7200",
        "--inherit",
        "--child",
        "--ready",
        first.to_str().unwrap(),
        "--leash",
        leash,
        "--child",
        "--ready",
        second.to_str().unwrap(),
        "--leash",
        leash,
    ]);
    let report = scan(&stage, "7200");
    let expected = BTreeSet::from([server.pid(), child_pid(&first), child_pid(&second)]);
    assert_eq!(holders(&report, PORT), expected, "{:#}", report.json);
}

#[test]
fn the_holders_of_all_sockets_on_one_port_are_told() {
    let Some(stage) = on_the_host() else { return };
    let any = stage.plant(&["--setsid", "--reuse-port", "--listen", "7200"]);
    let shared = stage.plant(&["--setsid", "--reuse-port", "--listen", "7200"]);
    let v6 = stage.plant(&["--v6only", "--listen", "[::]:7200"]);
    let report = scan(&stage, "7200");
    assert_eq!(holders(&report, PORT), pids([&any, &shared, &v6]), "{:#}", report.json);
    assert!(report.port(PORT)["sentence"].as_str().unwrap().contains("unrelated"));
    assert_eq!(report.code, 1);
}

#[test]
fn holders_on_different_addresses_are_all_told_and_an_address_asks_for_its_own() {
    let Some(stage) = on_the_host() else { return };
    let one = stage.plant(&["--listen", "127.0.0.1:7200"]);
    let two = stage.plant(&["--listen", "127.0.0.2:7200"]);
    let six = stage.plant(&["--v6only", "--listen", "[::1]:7200"]);
    for (asked, printed, expected) in [
        ("7200", "7200/tcp", pids([&one, &two, &six])),
        ("127.0.0.1:7200", "7200/tcp", pids([&one])),
        ("127.0.0.2:7200", "7200/tcp", pids([&two])),
        ("127.0.0.3:7200", "7200/tcp", pids([])),
        ("[::1]:7200", "7200/tcp", pids([&six])),
        ("7200/udp", "7200/udp", pids([])),
    ] {
        let report = scan(&stage, asked);
        assert_eq!(holders(&report, printed), expected, "{asked}: {:#}", report.json);
        let is_free = expected.is_empty();
        assert_eq!(state(&report, printed), if is_free { "free" } else { "held" }, "{asked}");
        assert_eq!(report.code, i32::from(!is_free), "{asked}");
    }
}

#[test]
fn a_port_named_with_an_address_is_that_address_alone_whatever_the_settings_guard() {
    let Some(stage) = on_the_host() else { return };
    let config = stage.write(
        "config.yaml",
        "defaults: { min_age: 1ms, grace: 1s, respawn_watch: 0s }\n\
         services: { wide: { ports: [7200] }, narrow: { ports: ['127.0.0.1:7201'] } }\n",
    );
    let asked = stage.plant(&["--listen", "127.0.0.1:7200"]);
    let beside = stage.plant(&["--listen", "127.0.0.2:7200"]);
    let other = stage.plant(&["--listen", "127.0.0.2:7201"]);
    // The settings guard less of 7201 than is asked about.
    let report = stage.report(&["scan", "--config", &config, "--port", "7201"]);
    assert_eq!(holders(&report, "7201/tcp"), pids([&other]), "{:#}", report.json);
    // The settings guard more of 7200 than is named.
    let words = ["--config", &config, "--also", "foreign", "--port", "127.0.0.1:7200"];
    let report = stage.report(&[&["reap"], &words[..]].concat());
    assert_eq!(report.process(asked.pid())["outcome"]["result"], "terminated", "{:#}", report.json);
    assert!(!asked.is_alive() && beside.is_alive() && other.is_alive());
    assert_eq!(report.code, 0, "{:#}", report.json);
}

#[test]
fn the_next_step_for_a_foreign_holder_names_its_port_whole() {
    let Some(stage) = on_the_host() else { return };
    let server = stage.plant(&["--listen", "udp:127.0.0.1:7200"]);
    let report = scan(&stage, "127.0.0.1:7200/udp");
    let step = report.process(server.pid())["next_step"].as_str().unwrap();
    assert!(step.contains("--port 127.0.0.1:7200/udp --also foreign'"), "{step}");
}

#[test]
fn a_socket_that_outlives_the_end_of_one_holder_is_told_to_be_shared() {
    let Some(stage) = on_the_host() else { return };
    let (ready, leash) = (stage.path("heir"), stage.path("leash"));
    let name = format!("shares-of-{}", stage.path("x").display()).replace('/', "-");
    let config = stage.write(
        "config.yaml",
        &format!(
            "defaults: {{ min_age: 1ms, grace: 1s, respawn_watch: 0s }}\n\
             services: {{ mine: {{ runs_in: container, ports: [7200], patterns: ['{name}'] }} }}\n"
        ),
    );
    let words = ["--as", &name, "--listen", "7200", "--inherit", "--child", "--as", "another"];
    let rest = ["--ready", ready.to_str().unwrap(), "--leash", leash.to_str().unwrap()];
    let Some(server) = stage.orphan(&[&words[..], &rest].concat()) else { return };
    let heir = child_pid(&ready);
    let report = stage.report(&["reap", "--config", &config, "mine"]);
    assert_eq!(
        report.process(server.pid())["outcome"]["result"],
        "terminated",
        "{:#}",
        report.json
    );
    assert_eq!(holders(&report, PORT), BTreeSet::from([heir]), "{:#}", report.json);
    let sentence = report.port(PORT)["sentence"].as_str().unwrap();
    assert!(
        sentence.contains(&format!("pid {}, now ended, shared it", server.pid())),
        "{sentence}"
    );
    assert_eq!(report.code, 1);
}

#[test]
fn a_socket_on_every_address_stands_in_the_way_of_each_that_its_family_reaches() {
    let Some(stage) = on_the_host() else { return };
    for (listens, reaches) in [
        ("0.0.0.0:7200", ["127.0.0.1:7200"].as_slice()),
        ("[::]:7200", &["127.0.0.1:7200", "[::1]:7200", "0.0.0.0:7200"]),
    ] {
        let server = stage.plant(&["--listen", listens]);
        for asked in ["127.0.0.1:7200", "[::1]:7200", "0.0.0.0:7200"] {
            let is_held = reaches.contains(&asked) || listens == asked;
            let report = scan(&stage, asked);
            let expected = if is_held { pids([&server]) } else { pids([]) };
            assert_eq!(holders(&report, PORT), expected, "{listens}, {asked}");
        }
    }
    let only = stage.plant(&["--v6only", "--listen", "[::]:7200"]);
    assert_eq!(holders(&scan(&stage, "127.0.0.1:7200"), PORT), pids([]));
    assert_eq!(holders(&scan(&stage, "[::1]:7200"), PORT), pids([&only]));
}

#[test]
fn udp_is_asked_for_apart_from_tcp_in_both_families() {
    let Some(stage) = on_the_host() else { return };
    let v4 = stage.plant(&["--listen", "udp:127.0.0.1:7200"]);
    let v6 = stage.plant(&["--v6only", "--listen", "udp:[::1]:7200"]);
    for (asked, expected) in [
        ("7200/udp", pids([&v4, &v6])),
        ("127.0.0.1:7200/udp", pids([&v4])),
        ("[::1]:7200/udp", pids([&v6])),
    ] {
        let report = scan(&stage, asked);
        assert_eq!(holders(&report, "7200/udp"), expected, "{asked}: {:#}", report.json);
        assert_eq!(state(&report, "7200/udp"), "held");
    }
    assert_eq!(state(&scan(&stage, "7200"), PORT), "free");
}

#[test]
fn who_has_bound_and_does_not_listen_yet_is_named() {
    let Some(stage) = on_the_host() else { return };
    let loading = stage.plant(&["--bind", "127.0.0.1:7200"]);
    let report = scan(&stage, "7200");
    if report.port(PORT)["sentence"].as_str().unwrap().contains("this kernel does not show") {
        return skip("this kernel is older than 6.8 and shows no bound-only sockets");
    }
    assert_eq!(state(&report, PORT), "bound_only", "{:#}", report.json);
    assert_eq!(holders(&report, PORT), pids([&loading]));
    assert_eq!(report.code, 1);
}

#[test]
fn a_thread_that_outlived_the_first_holds_its_sockets() {
    let Some(stage) = on_the_host() else { return };
    let server = stage.plant(&["--listen", "7200", "--how", "outlived"]);
    wait_until(DEADLINE, "the first thread has ended", || server.state() == Some('Z'));
    let report = scan(&stage, "7200");
    assert_eq!(state(&report, PORT), "held", "{:#}", report.json);
    assert_eq!(holders(&report, PORT), pids([&server]));
    assert_ne!(report.code, 0);
}

#[test]
fn a_thread_with_descriptors_of_its_own_holds_its_sockets() {
    let Some(stage) = on_the_host() else { return };
    let server = stage.plant(&["--listen", "7200", "--how", "own-table"]);
    let report = scan(&stage, "7200");
    assert_eq!(state(&report, PORT), "held", "{:#}", report.json);
    assert_eq!(holders(&report, PORT), pids([&server]));
}

#[test]
fn a_socket_that_only_a_ring_has_is_held_by_the_rings_owner() {
    let Some(stage) = on_the_host() else { return };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if disabled.is_ok_and(|text| text.trim() == "2") {
        return skip("io_uring is switched off (kernel.io_uring_disabled = 2)");
    }
    let Ok(server) = stage.try_plant(&[], &["--listen", "7200", "--how", "ring"]) else {
        return skip("this kernel has no io_uring");
    };
    let report = scan(&stage, "7200");
    assert_eq!(state(&report, PORT), "held", "{:#}", report.json);
    assert_eq!(holders(&report, PORT), pids([&server]));
}

#[test]
fn a_socket_in_flight_is_never_free_and_has_nobody_named() {
    let Some(stage) = on_the_host() else { return };
    let _sender = stage.plant(&["--listen", "7200", "--how", "in-flight"]);
    let report = scan(&stage, "7200");
    // Some machines keep their first process from root, too; then it may be that one.
    let links =
        fs::read_dir("/proc/1/fd").unwrap().map(|entry| fs::read_link(entry.unwrap().path()));
    let is_all_readable = links.flatten().next().is_some();
    let (expected, words, code) = if is_all_readable {
        ("kernel_owned", "on its way between processes", 1)
    } else {
        ("holder_not_visible", "may not see", 2)
    };
    assert_eq!(state(&report, PORT), expected, "{:#}", report.json);
    let sentence = report.port(PORT)["sentence"].as_str().unwrap();
    assert!(sentence.contains(words), "{sentence}");
    assert_eq!(holders(&report, PORT), pids([]));
    assert_eq!(report.code, code);
}

/// A cgroup v2 of the test's own, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Result<Self, String> {
        let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .map(Path::new)
            .find(|mount| mount.join("cgroup.procs").exists() && is_unified(mount))
            .ok_or("there are no control groups v2 here")?;
        let folder = mount.join(format!("portreeve-{name}-{}", std::process::id()));
        fs::create_dir(&folder)
            .map_err(|cause| format!("no control group can be made: {cause}"))?;
        Ok(Self(folder))
    }

    fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        wait_until(DEADLINE, "the control group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

fn is_unified(mount: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        Path::new(words[1]) == mount && words[2] == "cgroup2"
    })
}

/// A server in one cgroup, and its child, who inherited the socket, in another.
struct Moved {
    server: Planted,
    child: Planted,
    #[allow(dead_code, reason = "removed last")]
    cgroups: [Cgroup; 2],
}

fn moved(stage: &Stage, name: &str) -> Option<Moved> {
    let made = Cgroup::make(&format!("{name}-a"))
        .and_then(|a| Ok([a, Cgroup::make(&format!("{name}-b"))?]));
    let cgroups = made.map_err(|reason| skip(&reason)).ok()?;
    let ready = stage.path("child");
    let join = format!("echo $$ > {} && exec \"$@\"", cgroups[0].procs().display());
    let server = stage.plant_by(
        &["sh", "-euc", &join, "sh"],
        &[
            "--listen",
            "7200",
            "--inherit",
            "--child",
            "--ready",
            ready.to_str().unwrap(),
            "--leash",
            stage.path("leash").to_str().unwrap(),
        ],
    );
    let child = Planted::adopt(child_pid(&ready));
    fs::write(cgroups[1].procs(), child.pid().to_string()).unwrap();
    Some(Moved { server, child, cgroups })
}

/// The holders that one look of the library sees; it runs on this thread, which enters the stage's network.
fn seen_by(stage: &Stage, reach: Reach) -> BTreeSet<u32> {
    let question = Question {
        endpoints: vec!["7200".parse::<Endpoint>().unwrap()],
        nominate: None,
        declared_units: BTreeSet::new(),
        reach,
        pids: BTreeSet::new(),
        receipts: Vec::new(),
        gpus: None,
        engines: portreeve::observe::Engines::none(),
        beyond: portreeve::observe::Ask::No,
    };
    let snapshot = stage.within(move || observe::observe(&Host::live(), &question));
    let sockets = snapshot.sockets.known().unwrap();
    sockets.holdings.iter().map(|holding| holding.pid.0).collect()
}

#[test]
fn a_whole_look_finds_a_holder_that_left_the_sockets_cgroup_and_a_narrow_one_those_that_stayed() {
    let Some(stage) = on_the_host() else { return };
    let Some(moved) = moved(&stage, "both") else { return };
    let both = pids([&moved.server, &moved.child]);
    assert_eq!(seen_by(&stage, Reach::Whole), both);
    assert_eq!(seen_by(&stage, Reach::Narrow), pids([&moved.server]));
}

#[test]
fn a_narrow_look_goes_on_where_nobody_in_the_sockets_cgroup_holds_it() {
    let Some(stage) = on_the_host() else { return };
    let Some(mut moved) = moved(&stage, "left") else { return };
    moved.server.end();
    assert_eq!(seen_by(&stage, Reach::Narrow), pids([&moved.child]));
    assert_eq!(holders(&scan(&stage, "7200"), PORT), pids([&moved.child]));
}

#[test]
fn a_socket_outlives_the_cgroup_that_made_it_and_is_told_so() {
    let Some(stage) = on_the_host() else { return };
    let Some(Moved { cgroups: [made, now], mut server, child }) = moved(&stage, "gone") else {
        return;
    };
    server.end();
    drop(made);
    let report = scan(&stage, "7200");
    assert_eq!(holders(&report, PORT), pids([&child]));
    let evidence = report.process(child.pid())["evidence"].to_string();
    assert!(evidence.contains("control group that created its socket is gone"), "{evidence}");
    drop(child);
    drop(now);
}

#[test]
fn our_listeners_are_those_that_an_independent_reader_finds() {
    use netstat2::{
        AddressFamilyFlags, ProtocolFlags, ProtocolSocketInfo, TcpState, get_sockets_info,
    };
    let tcp: Vec<TcpListener> = ["127.0.0.1:0", "127.0.0.2:0", "0.0.0.0:0", "[::1]:0", "[::]:0"]
        .iter()
        .filter_map(|address| TcpListener::bind(address).ok())
        .collect();
    let udp: Vec<UdpSocket> = ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"]
        .iter()
        .filter_map(|address| UdpSocket::bind(address).ok())
        .collect();
    let port = |address: std::net::SocketAddr| Port::new(address.port()).unwrap();
    let on = |proto| move |&port: &Port| Endpoint { port, proto, address: None, is_v6only: false };
    let tcp_ports: BTreeSet<Port> = tcp.iter().map(|s| port(s.local_addr().unwrap())).collect();
    let udp_ports: BTreeSet<Port> = udp.iter().map(|s| port(s.local_addr().unwrap())).collect();

    let endpoints =
        tcp_ports.iter().map(on(Proto::Tcp)).chain(udp_ports.iter().map(on(Proto::Udp)));
    let ours = listeners::from_diagnostics(&endpoints.collect::<Vec<_>>(), Reach::Whole).unwrap();
    let ours: BTreeSet<(bool, String, u16)> = ours
        .iter()
        .filter(|s: &&Socket| s.state == SocketState::Listening)
        .map(|s| (s.proto == Proto::Udp, s.address.to_string(), s.port.number()))
        .collect();
    let families = AddressFamilyFlags::IPV4 | AddressFamilyFlags::IPV6;
    let theirs: BTreeSet<(bool, String, u16)> =
        get_sockets_info(families, ProtocolFlags::TCP | ProtocolFlags::UDP)
            .unwrap()
            .into_iter()
            .filter_map(|info| match info.protocol_socket_info {
                ProtocolSocketInfo::Tcp(s) => (s.state == TcpState::Listen
                    && Port::new(s.local_port).is_some_and(|p| tcp_ports.contains(&p)))
                .then(|| (false, s.local_addr.to_string(), s.local_port)),
                ProtocolSocketInfo::Udp(s) => Port::new(s.local_port)
                    .is_some_and(|p| udp_ports.contains(&p))
                    .then(|| (true, s.local_addr.to_string(), s.local_port)),
            })
            .collect();
    assert_eq!(ours, theirs);
    assert_eq!(ours.len(), tcp.len() + udp.len());
}

#[test]
fn the_text_of_proc_net_names_the_same_holders_as_the_dump() {
    let sockets =
        [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("0.0.0.0:0").unwrap()];
    let endpoints = sockets.each_ref().map(|s| {
        let port = Port::new(s.local_addr().unwrap().port()).unwrap();
        Endpoint { port, proto: Proto::Tcp, address: None, is_v6only: false }
    });
    let host = Host::live();
    let pids = vec![Pid(std::process::id())];
    // A child that a test beside this one is just starting shares our descriptors for a moment.
    let found = |mut sockets: portreeve::snapshot::Sockets| -> BTreeSet<u64> {
        observe::holders::observe(&host, &mut sockets, Reach::Whole, &|| &pids);
        sockets.holdings.iter().filter(|h| pids.contains(&h.pid)).map(|h| h.inode).collect()
    };
    let text = listeners::from_text(&host, &endpoints);
    let dump = listeners::observe(&host, &endpoints, Reach::Whole);
    let (text, dump) = (found(text.known().unwrap().clone()), found(dump.known().unwrap().clone()));
    assert_eq!(text, dump);
    assert_eq!(text.len(), 2);
}

#[test]
fn only_closed_connections_linger_and_do_not_block() {
    let Some(stage) = on_the_host() else { return };
    stage.within(|| {
        let server = TcpListener::bind("127.0.0.1:7200").unwrap();
        let client = TcpStream::connect("127.0.0.1:7200").unwrap();
        let (accepted, _) = server.accept().unwrap();
        // Who closes first keeps the TIME_WAIT.
        drop((server, accepted));
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
    });
    let report = scan(&stage, "7200");
    assert_eq!(state(&report, PORT), "lingering", "{:#}", report.json);
    assert_eq!(report.code, 0);
    assert!(report.port(PORT)["next_step"].as_str().unwrap().contains("SO_REUSEADDR"));
}

#[test]
fn a_client_on_a_guarded_port_is_an_ephemeral_clash_and_never_ended() {
    let Some(stage) = on_the_host() else { return };
    stage.sh("echo 7200 7299 > /proc/sys/net/ipv4/ip_local_port_range");
    stage.sh("echo 7210 > /proc/sys/net/ipv4/ip_local_reserved_ports");
    let server = stage.plant(&["--listen", "7500"]);
    let client = stage.plant(&["--connect", "7200:7500"]);
    let report = scan(&stage, "7200");
    assert_eq!(state(&report, PORT), "ephemeral", "{:#}", report.json);
    assert_eq!(report.code, 1);
    assert_eq!(holders(&report, PORT), pids([&client]));
    assert_eq!(report.port(PORT)["peer"], "127.0.0.1:7500");
    let step = report.port(PORT)["next_step"].as_str().unwrap();
    assert!(step.contains("net.ipv4.ip_local_reserved_ports=7210,7200"), "{step}");

    let config = stage.write("config.yaml", "defaults: { min_age: 1ms, grace: 1s }\n");
    let words =
        ["reap", "--config", &config, "--port", "7200", "--also", "foreign,abandoned,session"];
    assert_eq!(stage.report(&words).code, 1);
    assert!(client.is_alive() && server.is_alive());
}
