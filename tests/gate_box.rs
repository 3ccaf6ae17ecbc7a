//! `portreeve gate` on a machine with systemd and engines: before a unit's start, beside the service itself, after a bad day.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::time::Duration;

use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind},
    skip, wait_until,
};

const CONFIG: &str = "
defaults: { min_age: 1s, grace: 1s, respawn_watch: 0s }
gate: { timeout: 0s, settle: 50ms }
services:
  aidb: { runs_in: { container: local-aidb }, ports: [8091], patterns: ['^python3 -u /app/aidb\\.py'] }
  web: { runs_in: { unit: web.service }, ports: [8092] }
  left: { runs_in: container, ports: [8093], patterns: ['^python3 /app/left\\.py'] }
  postgres: { ports: [5432] }
";

fn test_box(name: &str) -> Option<TestBox> {
    let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
    test_box.write("/etc/gate.yaml", CONFIG);
    Some(test_box)
}

/// Exit code, and all that was said.
fn gate(test_box: &TestBox, words: &[&str]) -> (i32, String) {
    let command = [&["/build/portreeve", "gate", "--config", "/etc/gate.yaml"], words].concat();
    let output = test_box.run(&command);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

fn code(test_box: &TestBox, words: &[&str]) -> i32 {
    gate(test_box, words).0
}

/// A unit that runs a planted server, with lines for its [Service] section.
fn server(test_box: &TestBox, name: &str, port: u16, more: &str) {
    let plant = format!("/build/examples/plant --ready /run/planted/{name} --listen {port}");
    let text = format!("[Service]\nExecStart={plant}\n{more}\n");
    test_box.unit(&format!("{name}.service"), &text);
}

#[test]
fn the_service_in_its_declared_unit_is_accepted_as_itself_and_a_stranger_is_not() {
    let Some(test_box) = test_box("gate-unit") else { return };
    server(&test_box, "web", 8092, "");
    test_box.sh("systemctl start web");
    test_box.planted("web");
    let (blocked, said) = gate(&test_box, &["web"]);
    assert_eq!(blocked, 1, "{said}");
    assert!(said.contains("managed by web.service") && said.contains("systemctl"), "{said}");
    assert_eq!(code(&test_box, &["web", "--allow-ours"]), 0);
    test_box.sh("systemctl stop web");
    server(&test_box, "thief", 8092, "");
    test_box.sh("systemctl start thief");
    test_box.planted("thief");
    let (taken, said) = gate(&test_box, &["web", "--allow-ours"]);
    assert_eq!(taken, 1, "{said}");
    assert!(said.contains("managed by thief.service"), "{said}");
}

#[test]
fn a_unit_starts_only_behind_an_open_gate_and_the_journal_says_what_blocked_it() {
    let Some(test_box) = test_box("gate-start") else { return };
    server(&test_box, "thief", 8092, "");
    test_box.sh("systemctl start thief");
    test_box.planted("thief");
    let gate = "/build/portreeve gate --config /etc/gate.yaml web --timeout 0s --";
    let plant = "/build/examples/plant --ready /run/planted/web --listen 8092";
    test_box.unit("web.service", &format!("[Service]\nExecStart={gate} {plant}\n"));
    test_box.sh("systemctl start web");
    let status = "systemctl show --property=ExecMainStatus,ActiveState --value web | paste -sd' '";
    wait_until(DEADLINE, "it has failed", || test_box.sh(status) == "75 failed");
    let journal = "journalctl --output json PORTREEVE_EVENT=blocked PORTREEVE_SERVICE=web || true";
    wait_until(DEADLINE, "it is on record", || !test_box.sh(journal).is_empty());
    let entry: serde_json::Value =
        serde_json::from_str(test_box.sh(journal).lines().next().unwrap()).unwrap();
    assert_eq!(
        (&entry["PORTREEVE_PORT"], &entry["PORTREEVE_SERVICE"], &entry["PRIORITY"]),
        (&"8092/tcp".into(), &"web".into(), &"3".into()),
        "{entry:#}"
    );
    assert!(entry["MESSAGE"].as_str().unwrap().contains("thief.service"), "{entry:#}");
    test_box.sh("systemctl stop thief; systemctl start web");
    // The gate became the server: it is the unit's main process.
    let planted = test_box.planted("web").to_string();
    assert_eq!(test_box.sh("systemctl show --property=MainPID --value web"), planted);
}

#[test]
fn a_unit_that_took_the_port_between_a_gate_and_its_start_is_on_record_at_the_next() {
    let Some(test_box) = test_box("gate-thief") else { return };
    server(&test_box, "thief", 8092, "");
    let gate = "/build/portreeve gate --config /etc/gate.yaml web --timeout 0s";
    let plant = "/build/examples/plant --ready /run/planted/web --listen 8092";
    test_box.unit(
        "web.service",
        &format!(
            "[Service]\nExecStartPre={gate}\n\
             ExecStart=/bin/sh -c 'systemctl start thief; while ! [ -e /run/planted/thief ]; do sleep 0.02; done; exec {plant}'\n"
        ),
    );
    test_box.sh("systemctl start web");
    let thief = test_box.planted("thief");
    let status = "systemctl show --property=ActiveState --value web";
    wait_until(DEADLINE, "its start has failed", || test_box.sh(status) == "failed");
    let journal = "journalctl --output cat PORTREEVE_EVENT=blocked PORTREEVE_SERVICE=web || true";
    assert_eq!(test_box.sh(journal), "");
    test_box.sh("systemctl start web || true");
    wait_until(DEADLINE, "it is on record", || !test_box.sh(journal).is_empty());
    let said = test_box.sh(journal);
    let wanted = format!("pid {thief}: it took the port after a gate found it free");
    assert!(said.contains("thief.service") && said.contains(&wanted), "{said}");
    assert!(said.trim_end().ends_with("does not run where the port's service does: the thief"));
}

#[test]
fn the_service_in_its_named_container_is_accepted_as_itself() {
    let Some(test_box) = test_box("gate-container") else { return };
    for kind in [Kind::DockerSystemd, Kind::Podman] {
        let engine = Engine::start(&test_box, kind);
        let plant = ["--as", "python3 -u /app/aidb.py", "--listen", "8091"];
        engine.contain("local-aidb", &["--network", "host"], &plant);
        let (blocked, said) = gate(&test_box, &["aidb"]);
        assert_eq!(blocked, 1, "{said}");
        assert!(said.contains("spare: live container"), "{said}");
        let (ours, said) = gate(&test_box, &["aidb", "--allow-ours"]);
        assert_eq!(ours, 0, "{said}");
        engine.must(&["rm", "--force", "local-aidb"]);
        assert_eq!(code(&test_box, &["aidb", "--timeout", "10s"]), 0);
        engine.contain("another", &["--network", "host"], &plant);
        let (taken, said) = gate(&test_box, &["aidb", "--allow-ours"]);
        assert_eq!(taken, 1, "{said}");
        engine.must(&["rm", "--force", "another"]);
    }
}

#[test]
fn a_stack_boots_after_its_leftover_is_cleared_and_never_over_a_healthy_postgres() {
    let Some(test_box) = test_box("gate-boot") else { return };
    test_box.unit(
        "postgresql.service",
        "[Service]\nExecStart=/build/examples/plant --as 'postgres -D /data' --ready /run/planted/db --listen 5432\n",
    );
    test_box.sh("systemctl start postgresql");
    let postgres = test_box.planted("db");
    // A login that left a server behind, and is over.
    let mut login = test_box.login("alice", support::Terminal::No);
    login.types(
        "nohup /build/examples/plant --as 'python3 /app/left.py' --ready /run/planted/left --listen 8093 >/dev/null 2>&1 &",
    );
    let left = test_box.planted("left");
    login.leaves();
    test_box.wait_for_logout(left);
    test_box.wait_for_age(left, Duration::from_millis(1100));
    let (whole, said) = gate(&test_box, &["--reap"]);
    assert_eq!(whole, 1, "{said}");
    assert!(test_box.stat(left).is_none(), "{said}");
    assert!(said.contains("ended by SIGTERM") && said.contains("postgresql.service"), "{said}");
    let (warned, said) = gate(&test_box, &["--reap", "--on-blocked", "warn", "--", "echo", "up"]);
    assert_eq!(warned, 0, "{said}");
    assert!(said.starts_with("up\n") && said.contains("warning, goes on"), "{said}");
    assert!(test_box.stat(postgres).is_some());
}

/// Answer, and title, sentence and next step of the first remark, of each port.
fn answers(test_box: &TestBox, words: &[&str]) -> Vec<[String; 4]> {
    let (_, said) = gate(test_box, &[words, &["--format", "json"]].concat());
    let document: serde_json::Value = serde_json::from_str(&said).expect(&said);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let ports = document["ports"].as_array().unwrap().iter();
    let of = |port: &serde_json::Value| {
        let remark = &port["remarks"][0];
        let [title, sentence, next] = ["title", "sentence", "next_step"].map(|k| text(&remark[k]));
        [text(&port["answer"]), title, sentence, next]
    };
    ports.map(of).collect()
}

fn answer(test_box: &TestBox, words: &[&str]) -> [String; 4] {
    answers(test_box, words).remove(0)
}

#[track_caller]
fn assert_is(answer: &[String; 4], word: &str, title: &str, parts: &[&str]) {
    assert_eq!((answer[0].as_str(), answer[1].as_str()), (word, title), "{answer:?}");
    let said = answer.join("\n");
    for part in parts {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// The command between quotes that an answer advises.
fn command(answer: &[String; 4]) -> &str {
    answer[3].split('\'').nth(1).unwrap_or_else(|| panic!("{answer:?}"))
}

/// Case 13.
#[test]
fn a_port_that_docker_alone_counts_as_taken_is_shut_until_its_container_gives_it_up() {
    let Some(test_box) = test_box("gate-docker") else { return };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    let plant = ["--as", "python3 -u /app/aidb.py", "--listen", "80"];
    engine.contain("local-aidb", &["--publish", "8091:80"], &plant);
    let proxies = || test_box.sh("pgrep docker-proxy | paste -sd' '");
    let kill_proxies = || test_box.sh(&format!("kill -9 {}", proxies()));
    assert_eq!(code(&test_box, &["aidb"]), 1);
    let container = engine.container("local-aidb");
    kill_proxies();
    wait_until(DEADLINE, "the kernel calls it free", || test_box.can_bind(8091));
    let title = "allocated in the engine only";
    let taken = answer(&test_box, &["aidb"]);
    assert_is(&taken, "blocked", title, &["docker has allocated it to container local-aidb"]);
    assert_eq!(code(&test_box, &["aidb"]), 1);
    // One address of it is as taken as all are, though no rule takes what is sent to this one.
    assert_is(&answer(&test_box, &["--port", "127.0.0.1:8091"]), "blocked", title, &[]);
    let ours = answer(&test_box, &["aidb", "--allow-ours"]);
    assert_is(&ours, "open", "held by the service itself", &[]);
    // Nothing was ended, and `explain` says the same.
    assert_eq!(engine.container("local-aidb"), container);
    let explained = test_box.sh("/build/portreeve explain 8091 | tr -s ' \\n' ' '");
    assert!(explained.contains("allocated it to container local-aidb"), "{explained}");
    test_box.sh(command(&taken));
    assert!(!proxies().is_empty());
    // Nor does it open where the forwarder goes while a gate waits.
    let mut waiting = test_box.command(&["/build/portreeve", "gate", "--config", "/etc/gate.yaml"]);
    waiting.args(["aidb", "--timeout", "3s"]).stdout(std::process::Stdio::piped());
    let mut waiting = waiting.spawn().unwrap();
    let began = std::time::Instant::now();
    wait_until(DEADLINE, "it waits", || began.elapsed() > Duration::from_millis(1200));
    assert!(waiting.try_wait().unwrap().is_none());
    kill_proxies();
    let output = waiting.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && said.contains(title), "{said}");
    assert_is(&answer(&test_box, &["aidb"]), "blocked", title, &[]);
    test_box.sh("docker stop --time 0 local-aidb");
    // It would publish the port at its next start, and holds nothing.
    assert_eq!(answer(&test_box, &["aidb"])[0], "open");
}

/// Case 14.
#[test]
fn a_rule_that_outlived_its_podman_container_is_named_with_the_command_that_removes_it() {
    let Some(test_box) = test_box("gate-podman") else { return };
    let engine = Engine::start(&test_box, Kind::Podman);
    let contain = |name: &str, port: u16| {
        let publish = format!("{port}:80");
        engine.contain(name, &["--publish", &publish], &["--as", name, "--listen", "80"])
    };
    let (lone, dead, lost) = (contain("lone", 7501), contain("dead", 7502), contain("lost", 7503));
    let ports = ["--port", "7501", "--port", "7502", "--port", "7503", "--port", "7504"];
    for container in [&lone, &dead, &lost] {
        engine.kill_monitor(container);
    }
    support::engines::kill(&test_box, &[dead.pid]);
    let lone_pid = lone.pid;
    let look = || answers(&test_box, &ports);
    let before = look();
    assert_is(
        &before[0],
        "blocked",
        "published by a rule alone",
        &["its packets go to container lone of podman", "NETAVARK", "'podman rm -f lone'"],
    );
    let title = "a rule takes its packets";
    assert_is(&before[1], "blocked", title, &["for container dead, whose process is dead"]);
    assert_eq!(before[3][0], "open");
    assert_eq!(code(&test_box, &ports), 1);
    assert!(test_box.stat(lone_pid).is_some(), "nobody is ended");

    test_box.sh(command(&before[1]));
    test_box.sh("podman rm -f lone");
    let after = look();
    assert_eq!([&after[0][0], &after[1][0]], ["open", "open"], "{after:?}");
    // Podman forgets the last one and leaves its rules.
    engine.forget();
    engine.run(&["rm", "--force", "lost"]);
    assert_eq!(engine.status("lost"), "");
    let left = &look()[2];
    assert_is(left, "blocked", title, &["no running container of podman has the port"]);
    assert!(left[2].contains(&lost.id) && left[3].contains("nft delete rule ip nat NETAVARK"));
    test_box.sh(command(left));
    assert_eq!(look()[2][0], "open");
}

/// Case 10.
#[test]
fn a_docker_that_hangs_lets_no_port_pass_and_one_that_sleeps_or_is_gone_is_not_asked() {
    let Some(test_box) = test_box("gate-hang") else { return };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    assert_eq!(code(&test_box, &["aidb"]), 0);
    let dockerd = engine.daemons()[0];
    support::engines::signal(&test_box, "STOP", &[dockerd]);
    let began = std::time::Instant::now();
    let hangs = answer(&test_box, &["aidb"]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_is(&hangs, "unknown", "whether docker has allocated it to a container", &["in time"]);
    let passes = ["aidb", "--on-blocked", "warn", "--", "echo", "up"];
    assert_eq!(code(&test_box, &passes), 69);
    let off = format!("{CONFIG}\nengines: {{ docker: off }}\n");
    test_box.write("/etc/off.yaml", &off);
    test_box.sh("/build/portreeve gate --config /etc/off.yaml aidb");
    support::engines::signal(&test_box, "CONT", &[dockerd]);
    assert_eq!(code(&test_box, &["aidb"]), 0);

    test_box.sh("systemctl stop docker; systemctl start docker.socket");
    assert_eq!(code(&test_box, &["aidb"]), 0);
    assert_eq!(test_box.sh("systemctl is-active docker || true"), "inactive");
    test_box.sh("systemctl stop docker.socket");
    assert_eq!(code(&test_box, &["aidb"]), 0);
}

#[test]
fn who_may_not_ask_docker_is_told_so_and_may_say_that_it_does_not_matter() {
    let Some(test_box) = test_box("gate-denied") else { return };
    let _engine = Engine::start(&test_box, Kind::DockerSystemd);
    test_box.write("/etc/off.yaml", &format!("{CONFIG}\nengines: {{ docker: off }}\n"));
    let as_alice = |file: &str| {
        let gate = format!("/build/portreeve gate --config {file} aidb");
        let by = "setpriv --reuid alice --regid alice --init-groups";
        let output = test_box.run(&["bash", "-c", &format!("{by} {gate}")]);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = as_alice("/etc/gate.yaml");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("permission denied") && said.contains("docker: off"), "{said}");
    let (code, said) = as_alice("/etc/off.yaml");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("lacks CAP_NET_ADMIN"), "{said}");
}

const NFT_RULES: &str = r#"
table inet stage {
    map by_port { type inet_service : ipv4_addr; elements = { 7605 : 10.9.9.5 } }
    set ranges { type inet_service; flags interval; elements = { 7620-7630, 7640 } }
    chain deep {
        dnat ip to 10.9.9.9
    }
    map verdicts { type inet_service : verdict; elements = { 7607 : jump deep, 7608 : accept } }
    map parts {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { 10.3.3.3 . tcp . 7611 : goto deep, 10.1.1.1 . tcp . 7612 : goto deep }
    }
    chain rules {
        tcp dport 7601 dnat ip to 10.9.9.1:80 comment "left behind"
        tcp dport { 7602, 7603 } dnat ip to 10.9.9.2
        tcp dport 7604-7604 counter dnat ip to 10.9.9.4:81
        meta nfproto ipv4 dnat ip to tcp dport map @by_port
        tcp dport vmap @verdicts
        ip daddr . meta l4proto . th dport vmap @parts
        ip saddr 10.0.0.1 tcp dport 7613 dnat ip to 10.9.9.13
        iifname "eth7" tcp dport 7614 dnat ip to 10.9.9.14
        iifname != "eth7" tcp dport 7615 dnat ip to 10.9.9.15
        ct state new tcp dport 7616 dnat ip to 10.9.9.16
        udp dport 7617 dnat ip to 10.9.9.17
        tcp dport 7618 redirect to :9318
        tcp dport 7619 redirect
        tcp dport @ranges dnat ip to 10.9.9.20
        ip daddr 10.88.0.0/13 tcp dport 7650 dnat ip to 10.9.9.21
        ip daddr 10.0.0.0/13 tcp dport 7651 dnat ip to 10.9.9.22
        ip daddr 10.3.3.0/24 tcp dport 7652 dnat ip to 10.9.9.22
        ip6 daddr ::1 tcp dport 7653 dnat ip6 to [fd00::9]:80
        tcp dport 7654 return
        tcp dport 7654 dnat ip to 10.9.9.23
        tcp dport != 1-65000 dnat ip to 10.9.9.24
        meta mark 0x5 tcp dport 7655 dnat ip to 10.9.9.25
        tcp dport >= 7690 tcp dport < 7692 dnat ip to 10.9.9.26
        meta mark 0 tcp dport 7657 dnat ip to 10.9.9.27
        tcp sport 1024-65535 tcp dport 7658 dnat ip to 10.9.9.28
        tcp dport 7659 limit rate 100/second dnat ip to 10.9.9.29
        meta mark != 0x5 tcp dport 7660 dnat ip to 10.9.9.30
        meta mark & 0xf0 == 0 tcp dport 7661 dnat ip to 10.9.9.31
    }
    chain pre {
        type nat hook prerouting priority dstnat
        fib daddr type local jump rules
    }
    chain out {
        type nat hook output priority -100
        fib daddr type local jump rules
    }
}
"#;

const OLDER_RULES: &str = "
iptables-legacy -t nat -N MINE
iptables-legacy -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j MINE
iptables-legacy -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j MINE
iptables-legacy -t nat -A MINE -i eth7 -j RETURN
iptables-legacy -t nat -A MINE ! -i eth7 -p tcp -m tcp --dport 7701 -j DNAT --to-destination 10.9.9.1:80
iptables-legacy -t nat -A MINE -p tcp -m multiport --dports 7702,7704:7706 -j DNAT --to-destination 10.9.9.2
iptables-legacy -t nat -A MINE -p tcp --dport 7707 -j REDIRECT --to-ports 80
iptables-legacy -t nat -A MINE -s 10.2.2.2 -p tcp --dport 7708 -j DNAT --to-destination 10.9.9.3
iptables-legacy -t nat -A MINE -d 10.2.2.2 -p tcp --dport 7709 -j DNAT --to-destination 10.9.9.3
iptables-legacy -t nat -A MINE -d 10.3.3.0/24 -p tcp --dport 7710 -j DNAT --to-destination 10.9.9.3
iptables-legacy -t nat -A MINE -p tcp --dport 7711 -j ACCEPT
iptables-legacy -t nat -A MINE -p tcp --dport 7711 -j DNAT --to-destination 10.9.9.4
iptables-legacy -t nat -A MINE -p tcp -m multiport --ports 7731 -j DNAT --to-destination 10.9.9.5
iptables-legacy -t nat -A MINE -m mark --mark 0/0xff -p tcp --dport 7732 -j DNAT --to-destination 10.9.9.5
iptables-legacy -t nat -A MINE -m mark ! --mark 5 -p tcp --dport 7733 -j DNAT --to-destination 10.9.9.5
iptables-legacy -t nat -A MINE -m mark --mark 5 -p tcp --dport 7734 -j DNAT --to-destination 10.9.9.5
iptables-legacy -t nat -A MINE -p tcp ! --sport 53 --dport 7735 -j DNAT --to-destination 10.9.9.5
iptables-legacy -t nat -A MINE -p tcp --dport 7736 -m limit --limit 100/second -j DNAT --to-destination 10.9.9.5
ip6tables-legacy -t nat -A PREROUTING -p tcp --dport 7712 -j DNAT --to-destination [fd00::1]:80
iptables-nft -t nat -N CARRIED
iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CARRIED
iptables-nft -t nat -A CARRIED -p tcp -m tcp --dport 7721 -j DNAT --to-destination 10.9.9.1:80
iptables-nft -t nat -A CARRIED -p tcp -m multiport --dports 7722,7724:7726 -j DNAT --to-destination 10.9.9.2
iptables-nft -t nat -A CARRIED ! -d 10.3.3.0/24 -p tcp --dport 7727 -j DNAT --to-destination 10.9.9.3
iptables-nft -t nat -A CARRIED -p tcp --dport 7728 -j REDIRECT --to-ports 80
iptables-nft -t nat -A CARRIED -p tcp -m multiport --ports 7737 -j DNAT --to-destination 10.9.9.5
iptables-nft -t nat -A CARRIED -m mark --mark 0 -p tcp --dport 7738 -j DNAT --to-destination 10.9.9.5
";

/// Listens on each port in both families, and says which of them a client here or over there does not reach.
const REACH: &str = r#"
import errno, select, socket, subprocess, sys, time
ports = [int(port) for port in sys.argv[1:]]
servers = []
for port in ports:
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    servers.append(server)
CLIENT = '''
import select, socket, sys, time
want = {}
for address in sys.argv[1].split(","):
    for port in sys.argv[2:]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = socket.socket(family)
        client.setblocking(False)
        try:
            client.connect_ex((address, int(port)))
        except OSError:
            pass
        want[client] = port
end = time.monotonic() + 1.5
reached = {}
waiting = list(want)
while waiting and time.monotonic() < end:
    _, done, _ = select.select([], waiting, [], 0.1)
    for client in done:
        waiting.remove(client)
        reached[client] = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
for client, port in want.items():
    if not reached.get(client):
        print(port)
'''
words = [str(port) for port in ports]
lost = set()
for before, addresses in ((["ip", "netns", "exec", "over"], "10.3.3.3,fd00:3::3"), ([], "127.0.0.1,::1,10.3.3.3")):
    command = before + ["python3", "-c", CLIENT, addresses] + words
    lost.update(subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
print(" ".join(sorted(lost)))
"#;

/// Who is the judge of what rules do? The kernel: clients at another end and here either reach a server on the port, or not.
#[test]
fn rules_are_followed_as_the_kernel_follows_them() {
    let Some(test_box) = test_box("gate-rules") else { return };
    test_box.sh(
        "ip netns add over; ip link add here type veth peer name there netns over
         ip addr add 10.3.3.3/24 dev here; ip -6 addr add fd00:3::3/64 dev here nodad; ip link set here up
         ip -n over addr add 10.3.3.4/24 dev there; ip -n over -6 addr add fd00:3::4/64 dev there nodad
         ip -n over link set there up",
    );
    test_box.write("/tmp/rules.nft", NFT_RULES);
    test_box.sh("nft -f /tmp/rules.nft");
    test_box.sh(OLDER_RULES);
    test_box.write("/tmp/reach.py", REACH);
    let numbers = [7601..=7619, 7620..=7620, 7625..=7625, 7630..=7631, 7639..=7641, 7650..=7662];
    let more = [7689..=7692, 7701..=7713, 7721..=7739, 65_000..=65_001];
    let ports: Vec<String> =
        numbers.into_iter().chain(more).flatten().map(|n: u32| n.to_string()).collect();
    let asked: Vec<&str> = ports.iter().flat_map(|port| ["--port", port.as_str()]).collect();
    let said = answers(&test_box, &asked);
    let lost = test_box.sh(&format!("python3 /tmp/reach.py {}", ports.join(" ")));
    let lost: Vec<&str> = lost.split(' ').collect();
    for (port, answer) in ports.iter().zip(&said) {
        let expected = if lost.contains(&port.as_str()) { "blocked" } else { "open" };
        assert_eq!(answer[0], expected, "{port}: {answer:?}");
    }
    assert!(lost.len() > 20, "{lost:?}");
    let of = |port: &str| &said[ports.iter().position(|p| p == port).unwrap()];
    assert_is(of("7601"), "blocked", "a rule takes its packets", &["10.9.9.1:80", "left behind"]);
    for port in ["7613", "7614", "7655", "7708", "7734"] {
        assert_is(of(port), "open", "a rule takes some packets", &["sends some of its packets"]);
    }
    // Of one family alone, in a table of both.
    for (port, word) in [("[::1]:7601", "open"), ("127.0.0.1:7601", "blocked")] {
        assert_eq!(answer(&test_box, &["--port", port])[0], word, "{port}");
    }
    // Over UDP it is the other way round.
    assert_eq!(answer(&test_box, &["--port", "7617/udp"])[0], "blocked");
    for port in ["7601", "7701", "7712", "7721"] {
        let taken = answer(&test_box, &["--port", port]);
        test_box.sh(command(&taken));
        assert_eq!(answer(&test_box, &["--port", port])[0], "open", "{taken:?}");
    }
}

#[test]
fn without_the_right_to_read_rules_a_gate_says_so_once_and_opens() {
    let Some(test_box) = test_box("gate-rights") else { return };
    test_box.write("/tmp/rules.nft", NFT_RULES);
    test_box.sh("nft -f /tmp/rules.nft");
    let gate = "/build/portreeve gate --config /etc/gate.yaml --timeout 0s --port 7601 --port 7602";
    let output =
        test_box.run(&["bash", "-c", &format!("setpriv --bounding-set -net_admin {gate}")]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("lacks CAP_NET_ADMIN").count(), 1, "{said}");
}
