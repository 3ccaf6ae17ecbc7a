//! Real container engines in a box: Docker, and the Podman of root, of bob and of alice.
//!
//! Containers are of one image, `plant`, which holds busybox and the planted process. As the first process of a pid
//! namespace it survives SIGTERM, as any program without a handler does there (pid_namespaces(7)). Models have images of
//! their own (`give_models`).

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::Output,
    time::Duration,
};

use serde_json::Value;

use super::{DEADLINE, TestBox, wait_until};

/// Which engine, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// docker.service, its containers placed by systemd: `/system.slice/docker-ID.scope`.
    DockerSystemd,
    /// docker.service, its containers placed by itself: `/docker/ID`.
    DockerCgroupfs,
    /// A second dockerd, with a containerd, a store and a socket of its own; its containers have the host's network or none.
    SecondDocker,
    /// Docker where there is no systemd; its containers have the host's network or none.
    DockerByHand,
    /// Root's.
    Podman,
    /// Bob's, who has a user manager.
    PodmanOfBob,
    /// Alice's, who has none: no container stands in the cgroup path of hers.
    PodmanOfAlice,
}

/// An engine that can run containers.
pub struct Engine<'a> {
    pub test_box: &'a TestBox,
    pub kind: Kind,
    /// The command line up to the engine's verb.
    program: Vec<String>,
    /// Where its API listens; for Podman only once it was told to `serve`.
    pub socket: String,
}

/// A container that was started, and its run at that time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The main process of this run, as the box sees it.
    pub pid: u32,
    /// What supervises it: its shim or its conmon.
    pub monitor: u32,
}

/// busybox, a program of ours under its name and others (`$@`), and the libraries that it is linked against.
const IMAGE: &str = r#"
program=$1
[ -e "/run/$program.tar" ] && exit
dir=$(mktemp -d)
mkdir -p "$dir"/{bin,etc,tmp,run}
cp /bin/busybox "/build/examples/$program" "$dir/bin"
for applet in sh sleep kill setsid nc; do ln -s busybox "$dir/bin/$applet"; done
shift
for name; do ln -s "$program" "$dir/bin/$name"; done
for library in $(ldd "/build/examples/$program" | grep -o '/[^ ]*'); do
    install -D "$library" "$dir$library"
done
echo root:x:0:0:root:/:/bin/sh >"$dir/etc/passwd"
tar -C "$dir" -cf "/run/$program.new" .
mv "/run/$program.new" "/run/$program.tar"
rm -r "$dir"
"#;

/// The names under which the server of the tests plays backends (tests/support/model_server).
const PLAYED: &str = "vllm llama-server ollama text-generation-launcher python3";

/// Backends, with the entrypoint that the image of each really has; SGLang's starts nothing of its own accord.
const MODELS: [(&str, Option<&str>); 5] = [
    ("vllm", Some(r#"["vllm","serve"]"#)),
    ("llamacpp", Some(r#"["llama-server"]"#)),
    ("ollama", Some(r#"["ollama"]"#)),
    ("tgi", Some(r#"["text-generation-launcher"]"#)),
    ("sglang", None),
];

/// What was killed stays dead, so that a test sees the state in between.
const NO_RESTART: &str = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=no\n";

const SECOND: &str = "/run/second";

impl<'a> Engine<'a> {
    /// Starts it, where there is something to start, and gives it the image.
    pub fn start(test_box: &'a TestBox, kind: Kind) -> Self {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        let uid = |user: &str| test_box.sh(&format!("id -u {user}"));
        let as_user = |user: &str, environment: &str| {
            words(&format!(
                "setpriv --reuid {user} --regid {user} --init-groups env HOME=/home/{user} USER={user} \
                 {environment} podman --log-level error"
            ))
        };
        let (program, socket) = match kind {
            Kind::DockerSystemd | Kind::DockerCgroupfs | Kind::DockerByHand => {
                (words("docker"), "/run/docker.sock".to_owned())
            }
            Kind::SecondDocker => {
                let socket = format!("{SECOND}/docker.sock");
                (words(&format!("docker -H unix://{socket}")), socket)
            }
            Kind::Podman => (words("podman"), "/run/podman/podman.sock".to_owned()),
            Kind::PodmanOfBob => {
                let run = format!("/run/user/{}", uid("bob"));
                let environment =
                    format!("XDG_RUNTIME_DIR={run} DBUS_SESSION_BUS_ADDRESS=unix:path={run}/bus");
                (as_user("bob", &environment), format!("{run}/podman/podman.sock"))
            }
            Kind::PodmanOfAlice => (as_user("alice", "LC_ALL=C"), "/tmp/alice.sock".to_owned()),
        };
        let engine = Self { test_box, kind, program, socket };
        test_box.sh(&format!("set -- plant\n{IMAGE}"));
        engine.start_daemon();
        engine.must(&["import", "/run/plant.tar", "plant"]);
        engine
    }

    /// Gives it an image of each backend, `model-BACKEND`, in which a server plays it. What Ollama has in its store is `llama3`.
    pub fn give_models(&self) {
        for (backend, _) in MODELS {
            self.give_model(&format!("model-{backend}"), backend, "");
        }
    }

    /// Gives it an image of a backend whose server has these options already: Ollama takes no arguments.
    pub fn give_model(&self, image: &str, backend: &str, options: &str) {
        self.test_box.sh(&format!("set -- model-server {PLAYED}\n{IMAGE}"));
        let (_, entrypoint) = MODELS.iter().find(|(name, _)| *name == backend).expect("a backend");
        let entrypoint = entrypoint.map(|words| format!("ENTRYPOINT {words}"));
        let store = if backend == "ollama" { "--serve-id llama3:latest" } else { "" };
        let options = format!("ENV MODEL_SERVER_ARGS=\"{store} {options}\"");
        let changes = entrypoint.iter().chain([&options]).flat_map(|change| ["--change", change]);
        let import: Vec<&str> = ["import"].into_iter().chain(changes).collect();
        self.must(&[&import[..], &["/run/model-server.tar", image]].concat());
    }

    /// Starts the daemon, again or for the first time, and waits until it answers. Podman has none.
    pub fn start_daemon(&self) {
        let driver = match self.kind {
            Kind::DockerSystemd => "systemd",
            Kind::DockerCgroupfs => "cgroupfs",
            Kind::SecondDocker => return self.start_second(),
            Kind::DockerByHand => return self.start_by_hand(),
            Kind::Podman | Kind::PodmanOfBob | Kind::PodmanOfAlice => return,
        };
        self.test_box.write(
            "/etc/docker/daemon.json",
            &format!("{{\"exec-opts\": [\"native.cgroupdriver={driver}\"]}}"),
        );
        for unit in ["docker", "containerd"] {
            let drop_in = format!("/run/systemd/system/{unit}.service.d/no-restart.conf");
            self.test_box.write(&drop_in, NO_RESTART);
        }
        self.test_box.sh("systemctl daemon-reload; systemctl start docker");
    }

    fn start_second(&self) {
        self.test_box.sh(&format!(
            "mkdir -p {SECOND}; mount -t tmpfs tmpfs {SECOND}; systemd-run --quiet --unit=second-docker \
             --property=Delegate=yes --property=KillMode=process dockerd -H unix://{SECOND}/docker.sock \
             --data-root {SECOND}/data --exec-root {SECOND}/exec --pidfile {SECOND}/pid --bridge=none \
             --iptables=false --ip6tables=false"
        ));
        self.wait_until_it_answers();
    }

    fn start_by_hand(&self) {
        self.test_box.sh(
            "setsid dockerd --bridge=none --iptables=false --ip6tables=false --ip-forward=false \
             </dev/null >/run/dockerd.log 2>&1 &",
        );
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&self) {
        wait_until(DEADLINE, &format!("{:?} answers", self.kind), || {
            self.ask("/_ping", Duration::from_secs(1)).is_some()
        });
    }

    /// Opens Podman's API at `socket`; Docker's is open anyway.
    pub fn serve(&self) {
        let user = match self.kind {
            Kind::DockerSystemd
            | Kind::DockerCgroupfs
            | Kind::SecondDocker
            | Kind::DockerByHand => return,
            Kind::Podman => "root",
            Kind::PodmanOfBob => "bob",
            Kind::PodmanOfAlice => "alice",
        };
        let program = self.program.join(" ");
        let socket = &self.socket;
        self.test_box.sh(&format!(
            "folder=$(dirname {socket}); [ -d $folder ] || install -d -m 700 -o {user} $folder
             setsid {program} system service --time=0 unix://{socket} </dev/null >/dev/null 2>&1 &"
        ));
        self.wait_until_it_answers();
    }

    /// Runs a verb of the engine's own command.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let program = self.program.iter().map(String::as_str);
        let line: Vec<&str> = program.chain(arguments.iter().copied()).collect();
        self.test_box.run(&line)
    }

    /// The same; panics where it fails.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?} {arguments:?}: {errors}", self.kind);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Runs a container of that name: `options` as in `docker run`, then what `plant` is told.
    pub fn contain(&self, name: &str, options: &[&str], plant: &[&str]) -> Container {
        let run = ["run", "--detach", "--name", name];
        self.must(&[&run, options, &["plant", "plant"], plant].concat());
        self.container(name)
    }

    /// The container as it runs now.
    pub fn container(&self, name: &str) -> Container {
        let seen = self.inspect(name);
        let pid = seen["State"]["Pid"].as_u64().expect("a pid");
        let pid = u32::try_from(pid).expect("a pid");
        let parent = self.test_box.stat(pid).expect("a running container").parent;
        let id = seen["Id"].as_str().expect("an id").to_owned();
        Container { id, pid, monitor: u32::try_from(parent).expect("a pid") }
    }

    /// What the engine says of a container; null where it knows none of that name.
    pub fn inspect(&self, name: &str) -> Value {
        let output = self.run(&["container", "inspect", name]);
        let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        all.get(0).cloned().unwrap_or_default()
    }

    /// `running`, `exited`, …; empty where the engine knows no such container.
    pub fn status(&self, name: &str) -> String {
        self.inspect(name)["State"]["Status"].as_str().unwrap_or_default().to_owned()
    }

    pub fn wait_for_status(&self, name: &str, status: &str) {
        wait_until(DEADLINE, &format!("'{name}' is {status}"), || self.status(name) == status);
    }

    /// Asks its API: status and body; none where no answer came in time.
    pub fn ask(&self, path: &str, timeout: Duration) -> Option<(u16, Value)> {
        self.call("GET", path, "", timeout)
    }

    /// Gives its API an order with a body: status and answer; none where no answer came in time.
    pub fn post(&self, path: &str, body: &str, timeout: Duration) -> Option<(u16, Value)> {
        self.call("POST", path, body, timeout)
    }

    fn call(
        &self,
        method: &str,
        path: &str,
        body: &str,
        timeout: Duration,
    ) -> Option<(u16, Value)> {
        let mut stream = UnixStream::connect(self.test_box.inside(&self.socket)).ok()?;
        stream.set_read_timeout(Some(timeout)).ok()?;
        // An answer in HTTP/1.0 is never in chunks.
        let head =
            format!("{method} {path} HTTP/1.0\r\nHost: engine\r\nContent-Type: application/json");
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or_default()))
    }

    /// The pids of dockerd and its containerd; none for Podman.
    pub fn daemons(&self) -> Vec<u32> {
        let main_pid = |unit: &str| {
            let pid = self.test_box.sh(&format!("systemctl show -P MainPID {unit}"));
            pid.parse().ok().filter(|pid| *pid != 0)
        };
        let read_pid = |file: &str| {
            fs::read_to_string(self.test_box.inside(file)).ok()?.trim().parse::<u32>().ok()
        };
        match self.kind {
            Kind::DockerSystemd | Kind::DockerCgroupfs => {
                ["docker", "containerd"].into_iter().filter_map(main_pid).collect()
            }
            Kind::SecondDocker => {
                let containerd = read_pid(&format!("{SECOND}/exec/containerd/containerd.pid"));
                main_pid("second-docker").into_iter().chain(containerd).collect()
            }
            Kind::DockerByHand => ["/run/docker.pid", "/run/docker/containerd/containerd.pid"]
                .into_iter()
                .filter_map(read_pid)
                .collect(),
            Kind::Podman | Kind::PodmanOfBob | Kind::PodmanOfAlice => Vec::new(),
        }
    }

    /// Kills whoever looks after these containers: their monitors, and for Docker the daemons. They run on, on their own. (A
    /// shim that dies alone takes its container with it, for containerd cleans up.)
    pub fn abandon(&self, containers: &[&Container]) {
        let mut doomed = self.daemons();
        doomed.extend(containers.iter().map(|container| container.monitor));
        kill(self.test_box, &doomed);
        match self.kind {
            Kind::DockerSystemd | Kind::DockerCgroupfs => {
                // The socket would start dockerd again with the first question.
                self.test_box.sh("systemctl stop docker.socket docker containerd 2>/dev/null");
            }
            Kind::SecondDocker
            | Kind::DockerByHand
            | Kind::Podman
            | Kind::PodmanOfBob
            | Kind::PodmanOfAlice => {}
        }
        for container in containers {
            self.wait_until_alone(container);
        }
    }

    /// Kills the monitor of a container and nobody else. For Docker, containerd must be frozen or dead.
    pub fn kill_monitor(&self, container: &Container) {
        kill(self.test_box, &[container.monitor]);
        self.wait_until_alone(container);
    }

    fn wait_until_alone(&self, container: &Container) {
        wait_until(DEADLINE, "the container has lost its monitor", || {
            self.test_box.stat(container.pid).is_some_and(|stat| stat.parent == 1)
        });
    }

    /// Makes the engine forget what runs, as after a reboot: for Docker with no daemon up. Its containers' processes
    /// live on.
    pub fn forget(&self) {
        let user = |user: &str| self.test_box.sh(&format!("id -u {user}"));
        let script = match self.kind {
            // `netns` is a mount point and stays.
            Kind::DockerSystemd | Kind::DockerCgroupfs | Kind::DockerByHand => {
                "rm -rf /run/containerd /run/docker 2>/dev/null || true".to_owned()
            }
            Kind::SecondDocker => format!("rm -rf {SECOND}/exec 2>/dev/null || true"),
            Kind::Podman => "rm /run/libpod/alive".to_owned(),
            Kind::PodmanOfBob => format!("rm /run/user/{}/libpod/tmp/alive", user("bob")),
            // By version: `podman-run-UID` or `storage-run-UID`.
            Kind::PodmanOfAlice => format!("rm /tmp/*-run-{}/libpod/tmp/alive", user("alice")),
        };
        self.test_box.sh(&script);
    }
}

/// Ends processes of the box by pid and waits until they are gone.
pub fn kill(test_box: &TestBox, pids: &[u32]) {
    signal(test_box, "KILL", pids);
    wait_until(DEADLINE, &format!("{pids:?} are gone"), || {
        pids.iter().all(|pid| test_box.stat(*pid).is_none())
    });
}

/// Sends a signal: `STOP` freezes, `CONT` thaws.
pub fn signal(test_box: &TestBox, signal: &str, pids: &[u32]) {
    // 0 would be our own process group, which reaches out of the box.
    assert!(pids.iter().all(|pid| *pid > 1), "SIG{signal} for {pids:?}");
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    test_box.sh(&format!("kill -{signal} {}", pids.join(" ")));
}
