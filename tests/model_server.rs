//! The server that plays the backends behaves as they do, and misbehaves as it is told: whatever else is tested with it rests on
//! this.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

use portreeve::{
    backend::{BackendName, Spec},
    ident::ModelName,
    models::plan::{self, Cards, Process},
};
use rustix::{
    net::{AddressFamily, SocketType},
    process::{Pid, Signal, kill_process},
};
use serde_json::json;
use support::{
    DEADLINE,
    model::{Answer, ask, program},
    wait_until,
};

/// Any; the addresses differ.
const PORT: u16 = 7391;

/// As the child of a server with `--child` is titled.
const CHILD: &str = "VLLM::EngineCore\0";

/// The command line of a process; empty where it is gone.
fn title(pid: Pid) -> String {
    let file = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    fs::read_to_string(file).unwrap_or_default()
}

/// A server that was started as its backend is, and ends when dropped.
struct Played {
    child: Child,
    spec: Spec,
    process: Process,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Played {
    /// Ollama's options stand in the environment.
    fn start(backend: BackendName, options: &[&str]) -> Self {
        // Loopback addresses that no test beside this one has.
        static LAST: AtomicU8 = AtomicU8::new(0);
        let [low, high, ..] = std::process::id().to_le_bytes();
        let last = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let address = IpAddr::V4(Ipv4Addr::new(127, high | 128, low, last));

        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("l.gguf");
        File::create(&weights).unwrap();
        let is_ollama = backend == BackendName::Ollama;
        let spec: Spec = serde_json::from_value(json!({
            "backend": backend, "is_container": false, "port": PORT, "host": address,
            "model": if is_ollama { "llama3" } else { weights.to_str().unwrap() },
            "extra_args": if is_ollama { &[] } else { options },
        }))
        .unwrap();
        let process = plan::process(&ModelName::from("llama"), &spec, &Cards::default()).unwrap();
        let mut command = Command::new(program());
        command.arg0(&process.command[0]).args(&process.command[1..]).envs(&process.environment);
        if is_ollama {
            let options = [&["--serve-id", "llama3:latest"], options].concat();
            command.env("MODEL_SERVER_ARGS", options.join(" "));
        }
        let log = File::create(folder.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = child.spawn().unwrap();
        let address = SocketAddr::new(address, PORT);
        Self { child, spec, process, address, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn wait_for(&self, text: &str) {
        wait_until(DEADLINE, &format!("it says '{text}'"), || self.log().contains(text));
    }

    fn health(&self) -> Answer {
        ask(self.address, self.process.reach.health.unwrap().path)
    }

    fn wait_for_health(&self, status: u16) {
        wait_until(DEADLINE, &format!("its health is {status}"), || {
            self.health().status() == Some(status)
        });
    }

    /// The ids that it serves, as portreeve reads them.
    fn serves(&self) -> Vec<String> {
        let served = self.process.reach.served;
        let answer = ask(self.address, served.path);
        let Answer::Said(200, list) = answer else { panic!("{answer:?}") };
        (served.read)(&list).unwrap()
    }

    fn fits(&self, id: &str) -> bool {
        (self.process.reach.served.fits)(&self.spec, &self.process.told, id)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// The child of a server with `--child`.
    fn child(&self) -> Option<Pid> {
        let log = self.log();
        let pid = log.lines().find_map(|line| line.split_once("its child is "))?.1;
        Pid::from_raw(pid.parse().ok()?)
    }

    fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(DEADLINE, "it has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Whether somebody else could bind its port, who insists on having it alone.
    fn has_port(&self) -> bool {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &self.address).is_err()
    }
}

impl Drop for Played {
    fn drop(&mut self) {
        if let Some(child) = self.child().filter(|pid| title(*pid) == CHILD) {
            let _ = kill_process(child, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn vllm(options: &[&str]) -> Played {
    Played::start(BackendName::Vllm, options)
}

#[test]
fn every_backend_loads_becomes_healthy_says_what_it_serves_and_ends() {
    for backend in BackendName::ALL {
        let mut played = Played::start(backend, &["--load-for", "usr1"]);
        played.wait_for("loading");
        let health = match played.health() {
            Answer::Nothing => "nothing".to_owned(),
            Answer::Silence => "silence".to_owned(),
            Answer::Said(status, _) => status.to_string(),
        };
        let expected = match backend {
            BackendName::Vllm => (true, "nothing"),
            BackendName::LlamaCpp | BackendName::SgLang => (true, "503"),
            BackendName::Ollama => (true, "silence"),
            BackendName::Tgi => (false, "nothing"),
        };
        assert_eq!((played.has_port(), health.as_str()), expected, "{backend}");

        played.signal(Signal::USR1);
        played.wait_for_health(200);
        let ids = played.serves();
        assert!(!ids.is_empty() && ids.iter().all(|id| played.fits(id)), "{backend}: {ids:?}");
        assert_eq!(ask(played.address, "/elsewhere").status(), Some(404), "{backend}");

        played.signal(Signal::TERM);
        assert_eq!(played.end().code(), Some(0), "{backend}");
        assert!(played.log().contains("got SIGTERM"), "{backend}");
    }
}

#[test]
fn arguments_that_its_backend_is_not_told_are_refused() {
    for (backend, argument) in [
        (BackendName::Vllm, "--num-shard=2"),
        (BackendName::LlamaCpp, "another.gguf"),
        (BackendName::Ollama, "--verbose"),
        (BackendName::Tgi, "--ctx-size=4096"),
        (BackendName::SgLang, "--max-model-len=4096"),
    ] {
        let mut played = Played::start(backend, &[argument]);
        assert_eq!(played.end().code(), Some(1), "{backend}");
        assert!(played.log().contains("unrecognized argument"), "{backend}: {}", played.log());
    }
    let output = Command::new(program())
        .arg0("text-generation-launcher")
        .args(["--model-id", "/there/is/none", "--hostname", "127.0.0.1", "--port", "1"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("'/there/is/none': No such file"));
}

#[test]
fn it_never_listens_where_it_is_told_so() {
    for backend in BackendName::ALL {
        let played = Played::start(backend, &["--never-listen"]);
        played.wait_for("never listens");
        assert_eq!(played.health(), Answer::Nothing, "{backend}");
    }
}

#[test]
fn it_loads_for_as_long_as_it_is_told() {
    let started = Instant::now();
    let played = vllm(&["--load-for", "0.5"]);
    played.wait_for_health(200);
    assert!(started.elapsed() >= Duration::from_millis(500));
}

#[test]
fn it_takes_as_much_memory_as_it_is_told() {
    let played = vllm(&["--allocate", "64"]);
    played.wait_for("ready");
    let status = fs::read_to_string(format!("/proc/{}/status", played.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib >= 64 << 10, "{kib}");
}

#[test]
fn it_serves_another_model_where_it_is_told_so() {
    for backend in BackendName::ALL {
        let played = Played::start(backend, &["--serve-id", "other"]);
        played.wait_for_health(200);
        assert_eq!(played.serves(), ["other"], "{backend}");
        assert!(!played.fits("other"), "{backend}");
    }
}

#[test]
fn its_health_fails_while_it_serves_on() {
    for backend in BackendName::ALL {
        let played = Played::start(backend, &["--health-fails-after", "usr1"]);
        played.wait_for_health(200);
        played.signal(Signal::USR1);
        played.wait_for_health(500);
        if backend != BackendName::Ollama {
            assert!(played.fits(&played.serves()[0]), "{backend}");
        }
    }
}

#[test]
fn its_health_hangs_while_it_serves_on() {
    let played = vllm(&["--hang-health-after", "usr1"]);
    played.wait_for_health(200);
    played.signal(Signal::USR1);
    wait_until(DEADLINE, "its health hangs", || played.health() == Answer::Silence);
    assert!(played.fits(&played.serves()[0]));
}

#[test]
fn it_survives_sigterm_where_it_is_told_so() {
    let mut played = vllm(&["--ignore-term"]);
    played.wait_for_health(200);
    played.signal(Signal::TERM);
    played.wait_for("got SIGTERM");
    assert_eq!(played.health().status(), Some(200));
    played.signal(Signal::KILL);
    assert_eq!(played.end().signal(), Some(9));
}

#[test]
fn it_takes_its_time_to_end_where_it_is_told_so() {
    let mut played = vllm(&["--slow-stop", "0.5"]);
    played.wait_for("ready");
    let asked = Instant::now();
    played.signal(Signal::TERM);
    assert_eq!(played.end().code(), Some(0));
    assert!(asked.elapsed() >= Duration::from_millis(500));
}

#[test]
fn it_crashes_at_its_start_with_the_text_that_it_is_told() {
    let mut played = vllm(&["--crash-at-start", "CUDA out of memory."]);
    assert_eq!(played.end().code(), Some(3));
    assert_eq!(played.log(), "CUDA out of memory.\n");
}

#[test]
fn it_crashes_when_it_is_told() {
    for (options, code) in [
        (&["--crash-after", "0.2", "--load-for", "60"][..], 1),
        (&["--crash-after", "usr1", "--crash-code", "139"], 139),
    ] {
        let mut played = vllm(options);
        played.wait_for("loading");
        played.signal(Signal::USR1);
        assert_eq!(played.end().code(), Some(code), "{options:?}");
        assert!(played.log().contains("crashes"), "{options:?}");
    }
}

/// Its child, once that has its name.
fn child_of(played: &Played) -> Pid {
    played.wait_for("ready");
    let child = played.child().unwrap();
    let pid = child.as_raw_nonzero();
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    wait_until(DEADLINE, "the child has its name", || file("comm") == "VLLM::EngineCor\n");
    assert_eq!(title(child), CHILD);
    let stat = file("stat");
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_eq!(session, pid.to_string());
    for held in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let held = fs::read_link(held.unwrap().path()).unwrap();
        let held = held.to_string_lossy();
        assert!(!held.starts_with("socket:"), "{held}");
    }
    child
}

#[test]
fn its_child_outlives_it_only_where_it_is_killed() {
    let mut played = vllm(&["--child"]);
    let child = child_of(&played);
    played.signal(Signal::TERM);
    played.end();
    assert!(rustix::process::test_kill_process(child).is_err());

    let mut played = vllm(&["--child"]);
    let child = child_of(&played);
    played.signal(Signal::KILL);
    played.end();
    kill_process(child, Signal::KILL).expect("it lives on");
}
