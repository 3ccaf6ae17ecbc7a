//! What others do in the scenes of the README's comparison: each scene is planted anew for each tool, on real engines, the tool is
//! told to free the port, and the README's cell must begin with what came of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{fs, path::Path, time::Duration};

use support::{
    DEADLINE, TestBox, becomes_so,
    engines::{Container, Engine, Kind, kill},
    skip, wait_until,
};

/// A column of the comparison: whoever is told to free a port.
#[derive(Debug, Clone, Copy)]
enum Tool {
    Portreeve,
    Fuser,
    Killport,
    /// The rule of many scripts: end whoever holds the port, but for what has a container's name in its cgroup.
    ByCgroup,
}

impl Tool {
    fn heading(self) -> &'static str {
        match self {
            Self::Portreeve => "portreeve",
            Self::Fuser => "`fuser -k PORT/tcp`",
            Self::Killport => "killport 2.0.2",
            Self::ByCgroup => "\"its cgroup names a container: spare\"",
        }
    }

    fn free(self, test_box: &TestBox, port: u16) {
        match self {
            Self::Portreeve => {
                test_box.portreeve(&[
                    "reap",
                    "--config",
                    "/etc/scenes.yaml",
                    "--port",
                    &port.to_string(),
                ]);
            }
            Self::Fuser => {
                test_box.run(&["fuser", "-k", &format!("{port}/tcp")]);
            }
            Self::Killport => {
                test_box.run(&["/run/killport", &port.to_string()]);
            }
            Self::ByCgroup => {
                let culprits: Vec<u32> = holders(test_box, port)
                    .into_iter()
                    .filter(|pid| {
                        let cgroup = test_box.cgroup(*pid);
                        !["docker-", "/docker/", "libpod-"].iter().any(|name| cgroup.contains(name))
                    })
                    .collect();
                if !culprits.is_empty() {
                    kill(test_box, &culprits);
                }
            }
        }
    }
}

fn holders(test_box: &TestBox, port: u16) -> Vec<u32> {
    let output = test_box.run(&["fuser", &format!("{port}/tcp")]);
    let pids = String::from_utf8_lossy(&output.stdout).into_owned();
    pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn answers(test_box: &TestBox, port: u16) -> bool {
    test_box.run(&["bash", "-c", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}")]).status.success()
}

/// A process, known again by its start.
#[derive(Debug, Clone, Copy)]
struct Planted {
    pid: u32,
    start: u64,
}

impl Planted {
    fn at(test_box: &TestBox, pid: u32) -> Self {
        test_box.wait_for_age(pid, Duration::from_millis(1100));
        Self { pid, start: test_box.stat(pid).expect("a living process").start }
    }

    fn lives(self, test_box: &TestBox) -> bool {
        test_box.stat(self.pid).is_some_and(|stat| stat.start == self.start)
    }

    /// Whether it was spared. A SIGKILL that was just sent takes a moment, and nothing tells that there was none.
    fn outlives_it(self, test_box: &TestBox) -> bool {
        !becomes_so(Duration::from_secs(1), || !self.lives(test_box))
    }
}

fn contain(engine: &Engine<'_>, name: &str, port: u16, options: &[&str]) -> (Container, Planted) {
    let disguise = format!("python3 -u /app/{name}.py --config /etc/{name}.yaml");
    let listen = if options.contains(&"--publish") { 8091 } else { port };
    let plant = ["--as", &disguise, "--listen", &listen.to_string()];
    let container = engine.contain(name, options, &plant);
    wait_until(DEADLINE, &format!("port {port} answers"), || answers(engine.test_box, port));
    let server = Planted::at(engine.test_box, container.pid);
    (container, server)
}

const SERVICES: [(&str, u16); 7] = [
    ("loop", 8201),
    ("living", 8202),
    ("unsupervised", 8203),
    ("forgotten", 8204),
    ("docker-proxy", 8205),
    ("conmon", 8206),
    ("rootlessport", 8207),
];

const HOST_NETWORK: [&str; 2] = ["--network", "host"];

/// Its container is gone, or runs anew without it: it is to be ended.
fn left(test_box: &TestBox, tool: Tool, port: u16, server: Planted) -> &'static str {
    tool.free(test_box, port);
    if server.outlives_it(test_box) { "spares it" } else { "ends it" }
}

/// Somebody is served by it.
fn living(test_box: &TestBox, tool: Tool, port: u16, server: Planted) -> &'static str {
    tool.free(test_box, port);
    if server.outlives_it(test_box) { "spares it" } else { "kills it" }
}

/// A living container behind a forwarder of this name.
fn forwarded(engine: &Engine<'_>, tool: Tool, port: u16, forwarder: &str) -> String {
    let test_box = engine.test_box;
    let publish = format!("{port}:8091");
    let (_, server) = contain(engine, forwarder, port, &["--publish", &publish]);
    let held: Vec<Planted> =
        holders(test_box, port).into_iter().map(|pid| Planted::at(test_box, pid)).collect();
    let is_named = |holder: &Planted| {
        fs::read_link(test_box.inside(&format!("/proc/{}/exe", holder.pid)))
            .is_ok_and(|exe| exe.to_string_lossy().contains(forwarder))
    };
    assert!(!held.is_empty() && held.iter().all(is_named), "{forwarder}: {held:?}");
    tool.free(test_box, port);
    let held = held.iter().all(|holder| holder.outlives_it(test_box));
    match (server.lives(test_box), held, answers(test_box, port)) {
        (true, true, true) => "spares both".to_owned(),
        (true, false, false) => format!("kills {forwarder}: it cannot be reached"),
        (true, false, true) => {
            let orphan = test_box.stat(server.pid).is_some_and(|stat| stat.parent == 1);
            format!(
                "kills {forwarder}: {}",
                if orphan { "an orphan is made" } else { "it answers" }
            )
        }
        (false, ..) if engine.status(forwarder) != "running" => {
            "stops the living container".to_owned()
        }
        (server, held, answers) => panic!("{forwarder}: {tool:?}: {server} {held} {answers}"),
    }
}

/// Docker restarts it for ever on the port of its own earlier run.
fn crash_loop(engine: &Engine<'_>, tool: Tool) -> &'static str {
    let options = [&HOST_NETWORK[..], &["--restart", "always"]].concat();
    let (container, survivor) = contain(engine, "loop", 8201, &options);
    engine.abandon(&[&container]);
    engine.forget();
    engine.start_daemon();
    wait_until(DEADLINE, "the container was restarted three times", || {
        engine.inspect("loop")["RestartCount"].as_u64() >= Some(3)
    });
    let end = left(engine.test_box, tool, 8201, survivor);
    if matches!(tool, Tool::Portreeve) {
        wait_until(DEADLINE, "the container comes up", || {
            engine.status("loop") == "running" && answers(engine.test_box, 8201)
        });
    }
    engine.must(&["rm", "--force", "loop"]);
    end
}

/// The README's cells of a column, from the second row on.
fn column(heading: &str) -> Vec<(String, String)> {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let mut lines = readme.lines().skip_while(|line| !line.starts_with("| scene |"));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let headings = cells(lines.next().expect("the comparison"));
    let at = headings.iter().position(|it| it == heading).expect("the column");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells);
    rows.map(|row| (row[0].clone(), row[at].clone())).collect()
}

fn plays_every_scene(tool: Tool, name: &str) {
    let test_box = match TestBox::boot(name) {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    if matches!(tool, Tool::Killport) {
        let target = Path::new(env!("CARGO_BIN_EXE_portreeve")).ancestors().nth(2).unwrap();
        let killport = target.join("tools/bin/killport");
        if !killport.exists() {
            return skip("no killport: 'tests/tools' builds it");
        }
        fs::copy(killport, test_box.inside("/run/killport")).unwrap();
        let version = test_box.sh("/run/killport --version");
        assert_eq!(version, "killport 2.0.2");
    }
    let services = SERVICES.map(|(name, port)| {
        format!("  {name}: {{ runs_in: container, ports: [{port}], patterns: ['/{name}\\.py'] }}\n")
    });
    let settings =
        "defaults: { min_age: 1s, grace: 1s, respawn_watch: 1s }\nservices:\n".to_owned();
    test_box.write("/etc/scenes.yaml", &(settings + &services.concat()));
    let docker = Engine::start(&test_box, Kind::DockerCgroupfs);
    let podman = Engine::start(&test_box, Kind::Podman);
    let alice = Engine::start(&test_box, Kind::PodmanOfAlice);
    let looped = crash_loop(&docker, tool);
    let (_, server) = contain(&alice, "living", 8202, &HOST_NETWORK);
    let rootless = living(&test_box, tool, 8202, server);
    let (container, server) = contain(&alice, "unsupervised", 8203, &HOST_NETWORK);
    alice.kill_monitor(&container);
    assert_eq!(alice.status("unsupervised"), "running");
    let unsupervised = living(&test_box, tool, 8203, server);
    let behind = [
        forwarded(&docker, tool, 8205, "docker-proxy"),
        forwarded(&podman, tool, 8206, "conmon"),
        forwarded(&alice, tool, 8207, "rootlessport"),
    ];
    let (container, server) = contain(&alice, "forgotten", 8204, &HOST_NETWORK);
    alice.kill_monitor(&container);
    alice.forget();
    let forgotten = left(&test_box, tool, 8204, server);

    let [proxy, conmon, rootlessport] = &behind;
    let seen = [looped, rootless, unsupervised, forgotten, proxy, conmon, rootlessport];
    let written = column(tool.heading());
    assert_eq!(written.len(), seen.len());
    let wrong: Vec<_> =
        written.iter().zip(seen).filter(|((_, cell), seen)| !cell.starts_with(seen)).collect();
    assert!(wrong.is_empty(), "{}: the README says, and this was seen: {wrong:#?}", tool.heading());
}

#[test]
fn portreeve_does_what_the_readme_says() {
    plays_every_scene(Tool::Portreeve, "peer-portreeve");
}

#[test]
fn fuser_does_what_the_readme_says() {
    plays_every_scene(Tool::Fuser, "peer-fuser");
}

#[test]
fn killport_does_what_the_readme_says() {
    plays_every_scene(Tool::Killport, "peer-killport");
}

#[test]
fn a_rule_by_cgroup_does_what_the_readme_says() {
    plays_every_scene(Tool::ByCgroup, "peer-cgroup");
}
