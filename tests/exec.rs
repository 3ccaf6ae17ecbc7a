//! `model exec`: a model in the foreground, as a user without any right would keep it.

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
    io::{BufRead, BufReader, PipeReader},
    os::unix::{fs::symlink, net::UnixDatagram},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use support::{
    DEADLINE,
    model::{ask, program},
    wait_until,
};

static PORT: AtomicU16 = AtomicU16::new(7440);

/// A model of vLLM's, its server played, in a home of its own.
struct Scene {
    home: tempfile::TempDir,
    port: u16,
}

/// `model exec` at work; killed with the test.
struct Kept {
    child: Child,
    lines: BufReader<PipeReader>,
    said: String,
}

impl Scene {
    fn set(options: &[&str]) -> Self {
        let scene =
            Self { home: tempfile::tempdir().unwrap(), port: PORT.fetch_add(1, Ordering::Relaxed) };
        symlink(program(), scene.home.path().join("vllm")).unwrap();
        let config =
            "gate: { timeout: 0s, settle: 50ms }\nengines: { docker: 'off', podman: 'off' }\n";
        fs::write(scene.home.path().join("config.yaml"), config).unwrap();
        let port = scene.port.to_string();
        let words = ["register", "m", "--backend", "vllm", "--model", "org/qwen", "--port", &port];
        let watch =
            ["--health-delay", "50ms", "--health-interval", "100ms", "--health-failures", "2"];
        let options: Vec<String> = options.iter().map(|o| format!("--extra-args={o}")).collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let done = scene.command(&[&words, &watch[..], &options].concat()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        scene
    }

    /// A run that has no registry but its own, whoever runs the tests.
    fn command(&self, words: &[&str]) -> Command {
        let home = self.home.path();
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-user=65534",
            "--",
            env!("CARGO_BIN_EXE_portreeve"),
            "model",
        ]);
        command.args(words).arg("--config").arg(home.join("config.yaml"));
        let path = format!("{}:/usr/bin:/bin", home.display());
        command.env("HOME", home).env("XDG_STATE_HOME", home).env("PATH", path);
        command.env_remove("NOTIFY_SOCKET").stdin(Stdio::null());
        command
    }

    fn keep(&self, edit: impl FnOnce(&mut Command)) -> Kept {
        let mut command = self.command(&["exec", "m"]);
        edit(&mut command);
        // What its server writes comes the same way.
        let (lines, writer) = std::io::pipe().unwrap();
        let other = writer.try_clone().unwrap();
        let child = command.stderr(writer).stdout(other).spawn().unwrap();
        // It keeps the other end open.
        drop(command);
        let lines = BufReader::new(lines);
        Kept { child, lines, said: String::new() }
    }

    fn is_served(&self) -> bool {
        ask(([127, 0, 0, 1], self.port).into(), "/health").status().is_some()
    }
}

impl Kept {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Reads on until it says so.
    #[track_caller]
    fn says(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).unwrap();
            self.said.push_str(&line);
            if line.contains(text) {
                return;
            }
            assert!(read > 0, "wanted '{text}' in: {}", self.said);
        }
    }

    fn ends(mut self) -> (ExitStatus, String) {
        std::io::Read::read_to_string(&mut self.lines, &mut self.said).unwrap();
        (self.child.wait().unwrap(), std::mem::take(&mut self.said))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Its server's pid and its worker's, as they told.
fn told_pid(said: &str, before: &str) -> u32 {
    let rest = said.split(before).nth(1).unwrap_or_else(|| panic!("'{before}' in: {said}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_model_is_ready_when_it_serves_and_sigterm_ends_it_with_its_worker() {
    let scene = Scene::set(&["--child"]);
    let mut kept = scene.keep(|_| ());
    kept.says("m: ready");
    assert!(scene.is_served());
    kept.signal(Signal::TERM);
    let (status, said) = kept.ends();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!lives(told_pid(&said, "its child is ")), "{said}");
    assert!(!scene.is_served());
}

#[test]
fn the_manager_is_told_of_loading_of_being_ready_and_of_the_end() {
    let scene = Scene::set(&["--load-for", "1"]);
    let path = scene.home.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut kept = scene.keep(|command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    });
    let mut heard = String::new();
    let hear_until = |heard: &mut String, text: &str| {
        let end = Instant::now() + DEADLINE;
        while !heard.contains(text) {
            assert!(Instant::now() < end, "'{text}' in: {heard}");
            let mut bytes = [0; 4096];
            let read = socket.recv(&mut bytes).unwrap_or_else(|_| panic!("'{text}' in: {heard}"));
            heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
            heard.push('\n');
        }
    };
    hear_until(&mut heard, "READY=1");
    let (loading, _) = heard.split_once("READY=1").unwrap();
    assert!(
        loading.contains("EXTEND_TIMEOUT_USEC=") && loading.contains("STATUS=loading for"),
        "{heard}"
    );
    heard.clear();
    hear_until(&mut heard, "WATCHDOG=1");
    kept.says("ready");
    kept.signal(Signal::TERM);
    hear_until(&mut heard, "STOPPING=1");
    hear_until(&mut heard, "STATUS=told to stop\n");
    assert_eq!(kept.ends().0.code(), Some(0));
}

#[test]
fn the_last_status_is_why_it_ended_in_one_line() {
    let ends: [(&[&str], &str); 4] = [
        (
            &["--crash-after", "0.5", "--crash-code", "9"],
            "its server ended by itself: exit status: 9",
        ),
        (&["--crash-at-start", "no-such-layer"], "its server ended by itself: exit status: 3"),
        (&["--health-fails-after", "0.5"], "2 times in a row: unhealthy: it answers 500"),
        (&["--serve-id", "org/other"], "it serves org/other, not org/qwen"),
    ];
    for (options, expected) in ends {
        let scene = Scene::set(options);
        let path = scene.home.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let kept = scene.keep(|command| {
            command.env("NOTIFY_SOCKET", &path);
        });
        // A manager that does not listen keeps it waiting.
        let hear = std::thread::spawn(move || {
            let mut heard = String::new();
            while !heard.ends_with("THE END\n") {
                let mut bytes = [0; 4096];
                let read = socket.recv(&mut bytes).unwrap();
                heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            heard
        });
        let (_, said) = kept.ends();
        UnixDatagram::unbound().unwrap().send_to(b"THE END\n", &path).unwrap();
        let heard = hear.join().unwrap();
        let last = heard.lines().rev().find_map(|line| line.strip_prefix("STATUS="));
        assert_eq!(last, Some(expected), "{heard}{said}");
    }
}

#[test]
fn its_server_is_not_taken_for_the_service_itself() {
    let scene = Scene::set(&[]);
    let path = scene.home.path().join("notify");
    let _socket = UnixDatagram::bind(&path).unwrap();
    let mut kept = scene.keep(|command| {
        command.args([
            "--",
            "sh",
            "-c",
            "echo it has ${NOTIFY_SOCKET-nothing} ${WATCHDOG_USEC-either}",
        ]);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "60000000");
    });
    kept.says("it has nothing either");
    kept.ends();
}

#[test]
fn one_that_is_unhealthy_too_often_is_taken_down_with_70() {
    let scene = Scene::set(&["--health-fails-after", "0.5", "--child"]);
    let mut kept = scene.keep(|_| ());
    kept.says("m: ready");
    let (status, said) = kept.ends();
    assert_eq!(status.code(), Some(70), "{said}");
    assert!(said.contains("unhealthy: it answers 500 (1 of 2 times)"), "{said}");
    assert!(said.contains("2 times in a row: unhealthy: it answers 500"), "{said}");
    assert!(!lives(told_pid(&said, "its child is ")), "{said}");
}

#[test]
fn one_that_we_have_no_means_to_ask_goes_on() {
    let scene = Scene::set(&[]);
    let mut kept = scene.keep(|_| ());
    // Not its server, which is "vllm: ready at …".
    kept.says("m: ready\n");
    let pid = kept.child.id().to_string();
    let limit = |soft: u32| {
        let limit = format!("--nofile={soft}:4096");
        let done = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
        assert!(done.unwrap().success());
    };
    limit(3);
    // Once, however often it is so.
    kept.says("not asked whether it is healthy: ");
    let since = Instant::now();
    // Ten times as often as a model may miss its answer.
    wait_until(DEADLINE, "two seconds have passed", || {
        assert!(scene.is_served());
        since.elapsed() > Duration::from_secs(2)
    });
    limit(1024);
    kept.signal(Signal::TERM);
    let (status, said) = kept.ends();
    assert!(status.success(), "{said}");
}

#[test]
fn the_code_of_a_server_that_ends_by_itself_is_ours() {
    let scene = Scene::set(&["--crash-after", "0.3", "--crash-code", "9", "--child"]);
    let (status, said) = scene.keep(|_| ()).ends();
    assert_eq!(status.code(), Some(9), "{said}");
    assert!(said.contains("its server ended by itself: exit status: 9"), "{said}");
    assert!(!lives(told_pid(&said, "its child is ")), "its worker outlives it by nothing: {said}");
}

#[test]
fn one_that_ignores_sigterm_is_killed_after_its_grace_period() {
    let scene = Scene::set(&["--ignore-term"]);
    let mut kept = scene.keep(|_| ());
    kept.says("m: ready");
    kept.signal(Signal::TERM);
    // Told once more, nobody is waited for.
    kept.says("got SIGTERM");
    kept.signal(Signal::INT);
    let (status, said) = kept.ends();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("had to be killed"), "{said}");
    assert!(!scene.is_served());
}

#[test]
fn a_port_that_is_held_is_75_before_anything_is_started() {
    let scene = Scene::set(&[]);
    let _holder = std::net::TcpListener::bind(("127.0.0.1", scene.port)).unwrap();
    let (status, said) = scene.keep(|_| ()).ends();
    assert!(matches!(status.code(), Some(75 | 69)), "{said}");
    assert!(said.contains("was not started") && !said.contains("vllm: loading"), "{said}");
}

#[test]
fn somebody_elses_server_on_its_port_is_not_taken_for_it() {
    let scene = Scene::set(&["--never-listen"]);
    let path = scene.home.path().join("notify");
    let _socket = UnixDatagram::bind(&path).unwrap();
    // Below a manager the gate is a unit of its own: here nobody asks.
    let mut kept = scene.keep(|command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    kept.says("loading");
    let port = scene.port.to_string();
    let mut robber = Command::new(scene.home.path().join("vllm"))
        .args(["serve", "org/qwen", "--host", "127.0.0.1", "--port", &port])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (status, said) = kept.ends();
    assert_eq!(status.code(), Some(70), "{said}");
    assert!(said.contains("somebody else answers") || said.contains("does not hold"), "{said}");
    wait_until(Duration::from_secs(1), "the other lives on", || scene.is_served());
    robber.kill().unwrap();
    robber.wait().unwrap();
}

#[test]
fn a_command_that_is_not_there_is_said_with_what_to_do() {
    let scene = Scene::set(&[]);
    fs::remove_file(scene.home.path().join("vllm")).unwrap();
    let (status, said) = scene.keep(|_| ()).ends();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("'vllm' cannot be run: No such file or directory"), "{said}");
    assert!(said.contains("hint: install it, or say what is to be run behind '--'"), "{said}");
}
