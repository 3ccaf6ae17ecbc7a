//! What the tests on real machines share: a box with a systemd of its own, logins into it, processes planted in it.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]
#![allow(clippy::print_stdout, reason = "a skip is said aloud")]
#![allow(unreachable_pub, reason = "shared by several test programs")]

pub mod engines;
pub mod fixtures;
pub mod gpus;
pub mod model;
pub mod packaging;
pub mod ran;
pub mod stage;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Long enough for a slow machine, short enough for a person who waits.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Says why a test cannot run here; `tests/run` counts these lines.
pub fn skip(reason: &str) {
    println!("skipped: {reason}");
}

/// Looks until it is so; panics with `what` when the deadline passes.
pub fn wait_until(deadline: Duration, what: &str, is_so: impl FnMut() -> bool) {
    assert!(becomes_so(deadline, is_so), "still not so after {deadline:?}: {what}");
}

/// Looks until it is so, or the time is over; whether it is. The one place where a test sleeps: between two looks.
pub fn becomes_so(within: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() >= within {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A machine of its own, with systemd, logind, sshd, cron, alice (who logs in by key) and bob (who lingers). Ends when
/// dropped, and with the test process however that ends: its keeper waits for the end of our pipe.
///
/// The folder with the built programs is `/build` inside.
pub struct TestBox {
    name: String,
    root: PathBuf,
    keeper: Child,
}

impl TestBox {
    /// Boots one, or says why none can be had here: a reason to `skip`. Panics where it ought to boot and does not.
    pub fn boot(name: &str) -> Result<Self, String> {
        let test_box = Self::keep("boot", name)?;
        test_box.sh("install -d /run/systemd/system");
        Ok(test_box)
    }

    /// The same without systemd and with the host's pids: who holds a GPU is not known in any other pid namespace. Everything
    /// that was started inside ends with it.
    pub fn share(name: &str) -> Result<Self, String> {
        Self::keep("share", name)
    }

    fn keep(verb: &str, name: &str) -> Result<Self, String> {
        let reason = script(&["why-not", verb]).output().expect("tests/box/box runs");
        let reason = String::from_utf8_lossy(&reason.stdout).trim().to_owned();
        if !reason.is_empty() {
            return Err(reason);
        }
        let build =
            Path::new(env!("CARGO_BIN_EXE_portreeve")).parent().expect("a build folder").to_owned();
        assert!(
            build.join("examples/plant").exists(),
            "no 'plant' beside the tests\nhint: cargo build --examples"
        );

        let name = format!("{name}-{}", std::process::id());
        let mut keeper = script(&[verb, &name, &format!("{}:/build", build.display())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tests/box/box runs");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("its first line");
        if line.is_empty() {
            let mut why = String::new();
            keeper.stderr.take().expect("piped").read_to_string(&mut why).expect("its errors");
            panic!("the box did not boot: {why}");
        }
        let root = PathBuf::from(line.trim());
        let test_box = Self { name, root, keeper };
        test_box.sh("install -d -m 1777 /run/planted");
        Ok(test_box)
    }

    /// A command to be run inside, as root.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = script(&["run", &self.name]);
        command.args(arguments);
        command
    }

    /// Runs a command inside.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).stdin(Stdio::null()).output().expect("tests/box/box runs")
    }

    /// Runs a script inside and returns what it printed; panics where it fails.
    pub fn sh(&self, text: &str) -> String {
        let output = self.run(&["bash", "-euo", "pipefail", "-c", text]);
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            output.status.success(),
            "{text}: {}\n{said}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    }

    /// Writes a file inside.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.inside(path);
        fs::create_dir_all(path.parent().expect("a file in a folder")).expect("its folder");
        fs::write(path, text).expect("a file inside the box");
    }

    /// Writes a unit of the system's manager and makes it known.
    pub fn unit(&self, name: &str, text: &str) {
        self.write(&format!("/run/systemd/system/{name}"), text);
        self.sh("systemctl daemon-reload");
    }

    /// Logs in over ssh.
    pub fn login(&self, user: &str, terminal: Terminal) -> Login {
        let mut command = self.command(&["ssh"]);
        match terminal {
            Terminal::Yes => command.arg("-tt"),
            Terminal::No => command.arg("-T"),
        };
        command.arg(format!("{user}@127.0.0.1"));
        if terminal == Terminal::No {
            command.arg("bash");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut client = command.spawn().expect("ssh runs");
        Login { keyboard: client.stdin.take(), client }
    }

    /// The pid that a planted process wrote into `/run/planted/NAME` once it was in place.
    pub fn planted(&self, name: &str) -> u32 {
        let file = self.inside(&format!("/run/planted/{name}"));
        let mut pid = None;
        wait_until(DEADLINE, &format!("'{name}' is planted"), || {
            pid = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            pid.is_some()
        });
        pid.expect("just seen")
    }

    /// What the kernel says of a process inside; none where there is no such one or it only waits to be reaped.
    pub fn stat(&self, pid: u32) -> Option<Stat> {
        let text = fs::read_to_string(self.inside(&format!("/proc/{pid}/stat"))).ok()?;
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
        let number = |n: usize| fields[n - 3].parse::<u64>().unwrap_or_default();
        let stat = Stat {
            parent: number(4),
            group: number(5),
            session: number(6),
            terminal: number(7),
            start: number(22),
        };
        (!matches!(fields[0], "Z" | "X")).then_some(stat)
    }

    /// The control group of a process, as the box's systemd sees it.
    pub fn cgroup(&self, pid: u32) -> String {
        let text =
            fs::read_to_string(self.inside(&format!("/proc/{pid}/cgroup"))).unwrap_or_default();
        let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        // Read from outside, it starts with the box's own group.
        path.trim_start_matches(&format!("/portreeve-box-{}", self.name)).to_owned()
    }

    /// The scope of the login session that a process is in.
    pub fn session_scope(&self, pid: u32) -> String {
        let cgroup = self.cgroup(pid);
        let scope = cgroup.rsplit('/').next().unwrap_or_default();
        assert!(
            scope.starts_with("session-"),
            "pid {pid} is in '{cgroup}', which is no login session"
        );
        scope.to_owned()
    }

    /// Waits until the login session of a process is over and only its leftovers remain.
    pub fn wait_for_logout(&self, pid: u32) {
        let scope = self.session_scope(pid);
        wait_until(DEADLINE, &format!("{scope} is abandoned"), || {
            self.sh(&format!("systemctl show --property=SubState --value {scope}")) == "abandoned"
        });
    }

    /// Waits until a process is older than this.
    pub fn wait_for_age(&self, pid: u32, age: Duration) {
        let start = self.stat(pid).expect("a living process").start;
        let ticks = rustix::param::clock_ticks_per_second();
        let born = Duration::from_millis(start * 1000 / ticks);
        wait_until(DEADLINE, &format!("pid {pid} is older than {age:?}"), || {
            let uptime = fs::read_to_string("/proc/uptime").expect("procfs");
            let now: f64 =
                uptime.split(' ').next().and_then(|text| text.parse().ok()).expect("seconds");
            Duration::from_secs_f64(now) > born + age
        });
    }

    /// Whether this port can be bound and listened on, by really doing so.
    pub fn can_bind(&self, port: u16) -> bool {
        self.run(&["/build/examples/plant", "--listen", &port.to_string(), "--leave"])
            .status
            .success()
    }

    /// Runs the program under test and reads its report.
    pub fn portreeve(&self, arguments: &[&str]) -> Report {
        let output = self.run(&[&["/build/portreeve"], arguments, &["--format", "json"]].concat());
        Report::read(&output)
    }

    /// Where a file of the box is to be seen from outside. Not for paths over absolute links: those lead back out.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn script(arguments: &[&str]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/box/box"));
    // The box lies where this test program lies, whatever cargo was told on its command line.
    let target =
        Path::new(env!("CARGO_BIN_EXE_portreeve")).ancestors().nth(2).expect("a target folder");
    command.env("CARGO_TARGET_DIR", target).args(arguments);
    command
}

/// Whether a login has a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// `ssh -tt`
    Yes,
    /// `ssh -T`
    No,
}

/// Somebody at the other end of an ssh connection, in front of a shell. Stays until told to leave.
pub struct Login {
    client: Child,
    keyboard: Option<ChildStdin>,
}

impl Login {
    /// Types a line.
    pub fn types(&mut self, line: &str) {
        let keyboard = self.keyboard.as_mut().expect("nobody types after leaving");
        writeln!(keyboard, "{line}").and_then(|()| keyboard.flush()).expect("the shell reads");
    }

    /// Logs out and waits until the connection is closed.
    pub fn leaves(mut self) {
        self.types("exit");
        drop(self.keyboard.take());
        wait_until(DEADLINE, "the ssh connection is closed", || {
            self.client.try_wait().expect("our child").is_some()
        });
    }

    /// The connection was cut; waits until it is seen.
    pub fn was_cut(mut self) {
        drop(self.keyboard.take());
        wait_until(DEADLINE, "the ssh client has ended", || {
            self.client.try_wait().expect("our child").is_some()
        });
    }
}

/// `/proc/PID/stat`, in part (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Parent.
    pub parent: u64,
    /// Process group.
    pub group: u64,
    /// Session.
    pub session: u64,
    /// Controlling terminal, 0 for none.
    pub terminal: u64,
    /// Start, in ticks since boot.
    pub start: u64,
}

/// What portreeve said, as JSON.
#[derive(Debug, Clone)]
pub struct Report {
    /// Its exit code.
    pub code: i32,
    /// Its report.
    pub json: Value,
}

impl Report {
    /// Reads the report of a run; panics where there is none.
    pub fn read(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout);
        let json = serde_json::from_str(&text).unwrap_or_else(|cause| {
            let errors = String::from_utf8_lossy(&output.stderr);
            panic!("no JSON report, {}: {cause}\n{text}\n{errors}", output.status)
        });
        Self { code: output.status.code().expect("an exit code"), json }
    }

    /// What it says of a process; null where it does not name it.
    pub fn process(&self, pid: u32) -> &Value {
        let all = self.json["processes"].as_array().expect("processes");
        all.iter().find(|process| process["pid"] == pid).unwrap_or(&Value::Null)
    }

    /// What it says of a port: `8091/tcp`.
    pub fn port(&self, port: &str) -> &Value {
        let all = self.json["ports"].as_array().expect("ports");
        all.iter().find(|entry| entry["port"] == port).unwrap_or(&Value::Null)
    }
}
