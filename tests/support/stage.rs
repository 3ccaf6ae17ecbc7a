//! A network of our own on this very machine, processes planted on it, and portreeve looking at it. Ports mean
//! nothing outside; processes are the machine's.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{DEADLINE, Report, wait_until};

/// A network namespace with nothing but `lo`, and a folder for what a test writes. Ends with all that was planted.
pub struct Stage {
    folder: tempfile::TempDir,
    keeper: Child,
    /// Open for writing as long as we live; what is planted ends with it.
    _leash: File,
    planted: AtomicUsize,
}

impl Stage {
    /// Sets it up, or says why it cannot be had here: a reason to `skip`.
    pub fn set() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a network of one's own needs root".to_owned());
        }
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        // Whoever is planted as another user writes here, too.
        fs::create_dir(folder.path().join("planted")).expect("ours");
        let all = fs::Permissions::from_mode(0o1777);
        fs::set_permissions(folder.path().join("planted"), all).expect("ours");
        let fifo = folder.path().join("leash");
        assert!(
            Command::new("mkfifo")
                .arg("--mode=644")
                .arg(&fifo)
                .status()
                .expect("mkfifo runs")
                .success()
        );
        // For both, so that the open itself waits for nobody.
        let leash = File::options().read(true).write(true).open(&fifo).expect("a FIFO");
        let mut keeper = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo up && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut line = String::new();
        let mut said = BufReader::new(keeper.stdout.take().expect("piped"));
        said.read_line(&mut line).expect("a line");
        let stage = Self { folder, keeper, _leash: leash, planted: AtomicUsize::new(0) };
        if line.trim() == "up" {
            Ok(stage)
        } else {
            Err("no network namespace can be had here".to_owned())
        }
    }

    /// The same where everything that holds a port is ours to see: not in a container.
    pub fn set_on_the_host() -> Result<Self, String> {
        let namespace = fs::read_link("/proc/self/ns/pid").expect("procfs");
        if namespace.as_os_str() != "pid:[4026531836]" {
            return Err("processes outside this pid namespace cannot be seen".to_owned());
        }
        Self::set()
    }

    /// Runs this on a thread that has entered the stage's network.
    pub fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.keeper.id());
        let namespace = File::open(path).expect("our keeper lives");
        let enter = move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("entered");
            run()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().expect("it returns"))
    }

    /// A file of the stage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the stage and returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).expect("a file of the stage");
        self.path(name).to_str().expect("plain").to_owned()
    }

    /// A command on the stage's network.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.keeper.id())).arg("--").args(words);
        command
    }

    /// Runs a script there; panics where it fails.
    pub fn sh(&self, text: &str) {
        let output = self.command(&["sh", "-euc", text]).output().expect("nsenter runs");
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Plants a process, a child of ours, and waits until all is in place.
    pub fn plant(&self, words: &[&str]) -> Planted {
        self.plant_by(&[], words)
    }

    /// The same, with words before it: `["setpriv", "--nnp"]`.
    pub fn plant_by(&self, before: &[&str], words: &[&str]) -> Planted {
        let mut planted = None;
        // Who reads a link of a process to its socket keeps the socket for that moment, though its process ends.
        wait_until(DEADLINE, "the port can be bound", || match self.try_plant(before, words) {
            Ok(new) => planted.replace(new).is_none(),
            Err(why) => {
                assert!(why.contains("AddrInUse"), "{words:?} was not planted: {why}");
                false
            }
        });
        planted.expect("just planted")
    }

    /// The same for what not every kernel can do.
    pub fn try_plant(&self, before: &[&str], words: &[&str]) -> Result<Planted, String> {
        let ready = self.ready();
        let mut command = self.planting(before, &[], words, &ready);
        let child = command.stderr(Stdio::piped()).spawn().expect("nsenter runs");
        Planted::take(&ready, Some(child))
    }

    /// Plants a process and waits until its parent is gone; none where somebody else than PID 1 adopts orphans.
    pub fn orphan(&self, words: &[&str]) -> Option<Planted> {
        let ready = self.ready();
        let status = self.planting(&[], &["--daemonise"], words, &ready).status();
        assert!(status.expect("nsenter runs").success());
        let planted = Planted::take(&ready, None).expect("it stays");
        wait_until(DEADLINE, "it is adopted", || planted.parent() != Some(std::process::id()));
        if planted.parent() == Some(1) {
            return Some(planted);
        }
        super::skip("here orphans are adopted by another process than PID 1");
        None
    }

    fn ready(&self) -> PathBuf {
        self.path(&format!("planted/{}", self.planted.fetch_add(1, Ordering::Relaxed)))
    }

    fn planting(&self, before: &[&str], first: &[&str], words: &[&str], ready: &Path) -> Command {
        let mut command = self.command(before);
        command.arg(self.program("examples/plant")).args(first).arg("--ready").arg(ready);
        command.arg("--leash").arg(self.path("leash")).args(words);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// A program of ours, where every user may run it.
    pub fn program(&self, built: &str) -> PathBuf {
        let program = self.path(built);
        if !program.exists() {
            let built = build_folder().join(built);
            assert!(
                built.exists(),
                "no '{}' beside the tests\nhint: cargo build --examples",
                built.display()
            );
            fs::create_dir_all(program.parent().expect("a folder")).expect("ours");
            let beside = program.with_extension("new");
            // Not by ourselves: a test beside this one may start a process while we write, which then has the file open
            // for writing, too, and what is being written cannot be run.
            let copied = Command::new("cp").arg(built).arg(&beside).status();
            assert!(copied.expect("cp runs").success());
            fs::rename(beside, &program).expect("a copy");
        }
        program
    }

    /// portreeve on this network, as on a machine without systemd, without settings and models of its own.
    pub fn portreeve(&self, words: &[&str]) -> Command {
        self.portreeve_by("exec", words)
    }

    /// The same, by a script that ends in words before the command: `exec setpriv --nnp`.
    pub fn portreeve_by(&self, script: &str, words: &[&str]) -> Command {
        let mut command = self.apart(script);
        command.arg(self.program("portreeve")).args(words);
        command
    }

    /// A script on this network, as on a machine without systemd, without settings and models of its own. What is added are words
    /// behind its last.
    pub fn apart(&self, script: &str) -> Command {
        let script = format!(
            "mount -t tmpfs none /run; ! [ -d /etc/portreeve ] || mount -t tmpfs none /etc/portreeve; \
             ! [ -d /var/lib/portreeve ] || mount -t tmpfs none /var/lib/portreeve; {script} \"$@\""
        );
        let mut command = self.command(&["unshare", "--mount", "sh", "-euc", &script, "sh"]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it and takes all that it said.
    pub fn run(&self, words: &[&str]) -> Output {
        self.portreeve(words).output().expect("nsenter runs")
    }

    /// Runs it and reads its report.
    pub fn report(&self, words: &[&str]) -> Report {
        Report::read(&self.run(&[words, &["--format", "json"]].concat()))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn build_folder() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_portreeve")).parent().expect("a build folder")
}

/// A process that ends when this is dropped.
pub struct Planted {
    pid: u32,
    pidfd: OwnedFd,
    child: Option<Child>,
}

impl Planted {
    /// Waits for its pid; where the child ended before, what it said.
    fn take(ready: &Path, mut child: Option<Child>) -> Result<Self, String> {
        let (mut pid, mut has_ended) = (None, false);
        wait_until(DEADLINE, "the process is in place", || {
            has_ended = child.as_mut().is_some_and(|c| c.try_wait().expect("ours").is_some());
            pid = fs::read_to_string(ready).ok().and_then(|text| text.trim().parse().ok());
            pid.is_some() || has_ended
        });
        if let (true, Some(child)) = (has_ended, child.take()) {
            let output = child.wait_with_output().expect("ours");
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let pid: u32 = pid.expect("just seen");
        Ok(Self { pid, pidfd: open(pid), child })
    }

    /// A child of ours.
    pub fn of_child(child: Child) -> Self {
        Self { pid: child.id(), pidfd: open(child.id()), child: Some(child) }
    }

    /// What another planted process started.
    pub fn adopt(pid: u32) -> Self {
        Self { pid, pidfd: open(pid), child: None }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 0
    }

    /// The state letter of its first thread.
    pub fn state(&self) -> Option<char> {
        self.stat(0)?.chars().next()
    }

    fn parent(&self) -> Option<u32> {
        self.stat(1)?.parse().ok()
    }

    /// A word of `/proc/PID/stat`, counted from the state letter.
    fn stat(&self, word: usize) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        text.rsplit_once(") ")?.1.split(' ').nth(word).map(str::to_owned)
    }

    /// Ends it at once.
    pub fn end(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        wait_until(DEADLINE, "the process has ended", || !self.is_alive());
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

fn open(pid: u32) -> OwnedFd {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    pidfd_open(raw, PidfdFlags::empty()).expect("a living process")
}
