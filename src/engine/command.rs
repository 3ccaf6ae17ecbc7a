//! Podman without a socket: its command, run as the user whose containers it is asked about. From a system folder, with an
//! environment of our own making, in a session of its own, with a deadline and a limit to what it may say.

use std::{
    collections::VecDeque,
    fs, io,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            process::CommandExt,
        },
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use tokio::task::{JoinSet, spawn_blocking};

use super::{
    Answer, Deed, Engine, Part, PartAnswer, Question, Version,
    answer::{self, shown},
    way::NoAnswer,
};
use crate::{
    host::Host,
    ident::{ContainerId, EngineKind, EngineRef},
    snapshot::{Container, Seen},
    sys,
};

/// Where a distribution puts it; the last is NixOS's.
const PROGRAMS: [&str; 3] = ["usr/bin/podman", "bin/podman", "run/current-system/sw/bin/podman"];
/// What Podman itself calls: conmon, crun, newuidmap (a wrapper on NixOS).
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin";
/// Commands of one user at a time; each takes some 25 to 100 ms.
const MOST_COMMANDS: usize = 2;
/// A list of thousands of ids, or a container with its labels.
const MOST_BYTES: usize = 1 << 20;
/// How long a killed command may take to be gone.
const LAST_WAIT: Duration = Duration::from_millis(200);

/// The command on this host. A fixture's is never run.
pub(super) fn program(host: &Host) -> Option<PathBuf> {
    let mut paths = PROGRAMS.iter().map(|path| host.path(path)).filter(|_| host.is_live());
    paths.find(|path| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

/// Podman's command as one user.
#[derive(Debug, Clone)]
pub(super) struct Podman {
    name: EngineRef,
    program: PathBuf,
    user: User,
    deadline: Instant,
}

/// Who runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    home: PathBuf,
    /// `/run/user/UID`, where that is this user's folder; without it Podman keeps what it needs in `/tmp`.
    runtime_folder: Option<PathBuf>,
}

/// What a command said.
#[derive(Debug)]
pub(super) struct Said {
    code: Option<i32>,
    out: Vec<u8>,
    pub(super) errors: Vec<u8>,
}

impl Podman {
    /// `Absent` = there is no such command.
    pub(super) fn find(engine: &Engine, deadline: Instant) -> Result<Self, NoAnswer> {
        let (host, name) = (&engine.host, engine.name);
        let program = program(host).ok_or(NoAnswer::Absent)?;
        let ourselves = rustix::process::geteuid().as_raw();
        if ourselves != 0 && ourselves != name.owner {
            return Err(NoAnswer::Denied);
        }
        let user = user(host, name.owner)?;
        Ok(Self { name, program, user, deadline })
    }

    pub(super) async fn answer(self, question: &Question) -> Answer {
        let mut answer = question.unanswered(&NoAnswer::Late);
        // A command that is there is of this version whether or not it gets on with its store.
        let version = self.clone();
        answer.version = match spawn_blocking(move || version.version()).await {
            Ok(version) => version,
            Err(error) => Err(NoAnswer::Strange(error.to_string())),
        };
        if let Err(why) = &answer.version {
            return question.unanswered(why);
        }
        for id in question.ids.iter().filter(|id| !super::is_whole(id)) {
            let why = NoAnswer::Strange("that is no whole id".to_owned());
            answer.containers.insert(id.clone(), why.of(self.name));
        }
        let parts: VecDeque<Part> = question.parts().into();
        let commands = parts.len().min(MOST_COMMANDS);
        let parts = Arc::new(Mutex::new(parts));
        let mut all = JoinSet::new();
        for _ in 0..commands {
            let (podman, parts) = (self.clone(), Arc::clone(&parts));
            all.spawn_blocking(move || {
                let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                std::iter::from_fn(next).map(|part| podman.ask(part)).collect::<Vec<PartAnswer>>()
            });
        }
        while let Some(done) = all.join_next().await {
            done.into_iter().flatten().for_each(|part| answer.take(part));
        }
        answer
    }

    fn version(&self) -> Result<Version, NoAnswer> {
        // `podman version 4.3.1`; touches no store.
        let said = self.run(&["--version"])?.succeeded()?;
        let text = String::from_utf8_lossy(&said);
        let version = text.trim().strip_prefix("podman version ");
        let why = || NoAnswer::Strange(format!("it says '{}'", shown(&text)));
        Ok(Version { kind: EngineKind::Podman, version: shown(version.ok_or_else(why)?) })
    }

    fn ask(&self, part: Part) -> PartAnswer {
        let name = self.name;
        match part {
            Part::Running => {
                let arguments = ["ps", "--all", "--no-trunc", "--format", "json"];
                let said = self.run(&arguments).and_then(Said::succeeded);
                let running = said.and_then(|json| answer::read_running(&json, name));
                PartAnswer::Running(running.map_or_else(|why| why.of(name), Seen::Known))
            }
            Part::Store => {
                let said = self.run(&["info", "--format", "json"]).and_then(Said::succeeded);
                let store = said.and_then(|json| answer::podman_store(&json));
                PartAnswer::Store(store.map_or_else(|why| why.of(name), Seen::Known))
            }
            Part::List => {
                let arguments = ["ps", "--all", "--no-trunc", "--format", "json"];
                let said = self.run(&arguments).and_then(Said::succeeded);
                let all = said.and_then(|json| answer::listed(&json));
                PartAnswer::List(all.map_or_else(|why| why.of(name), Seen::Known))
            }
            Part::Container(id) => {
                let container = self.inspect(&id);
                PartAnswer::Container(id, Box::new(container))
            }
        }
    }

    fn inspect(&self, id: &ContainerId) -> Seen<Container> {
        let arguments = ["inspect", "--type", "container", "--format", "json", &id.0];
        match self.run(&arguments) {
            Err(why) => why.of(self.name),
            Ok(said) if said.code == Some(125) && said.knows_no(id) => Seen::Gone,
            Ok(said) => match said.succeeded() {
                Ok(json) => answer::read_listed(&json, self.name, id),
                Err(why) => why.of(self.name),
            },
        }
    }

    /// An order. What a failed command says tells the cases apart. Of one that it need not do, `stop` of a stopped container
    /// and, from 4.3, `rm --force` of none, it says nothing: done.
    pub(super) fn order(&self, arguments: &[&str], id: &ContainerId) -> Deed {
        let said = match self.run(&[arguments, &[&id.0]].concat()) {
            Ok(said) => said,
            Err(why) => return why.into(),
        };
        let errors = String::from_utf8_lossy(&said.errors);
        let (message, is_conflict) = (shown(&errors), answer::is_in_wrong_state(&errors));
        match said.code {
            Some(0) => Deed::Done,
            Some(1 | 125) if said.knows_no(id) => Deed::Gone,
            Some(_) if is_conflict => Deed::Conflict(message),
            Some(code) => Deed::Failed(u16::try_from(code).unwrap_or(u16::MAX), message),
            None => Deed::NoAnswer("podman was ended by a signal".to_owned()),
        }
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Result<Said, NoAnswer> {
        if Instant::now() >= self.deadline {
            return Err(NoAnswer::Late);
        }
        let child = self.command(arguments).spawn();
        let mut child = child.map_err(|error| {
            let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
            if is_denied { NoAnswer::Denied } else { NoAnswer::NoWay(error.to_string()) }
        })?;
        let said = listen(&mut child, self.deadline);
        if said.is_err() {
            end(&mut child);
        }
        said
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let User { uid, gid, home, runtime_folder } = &self.user;
        let mut command = Command::new(&self.program);
        // A configured remote is another machine, whose word says nothing of this one's processes.
        command.arg("--remote=false").args(arguments).current_dir("/").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_clear().env("PATH", PATH).env("HOME", home).env("LC_ALL", "C");
        if let Some(folder) = runtime_folder {
            command.env("XDG_RUNTIME_DIR", folder);
        }
        if rustix::process::geteuid().as_raw() != *uid {
            // With a uid, std drops root's supplementary groups as well.
            command.uid(*uid).gid(*gid);
        }
        sys::begin_session(&mut command);
        command
    }
}

impl Said {
    fn succeeded(self) -> Result<Vec<u8>, NoAnswer> {
        match self.code {
            Some(0) => Ok(self.out),
            Some(code) => {
                let words = shown(&String::from_utf8_lossy(&self.errors));
                Err(NoAnswer::Strange(format!("podman failed with {code}: {words}")))
            }
            None => Err(NoAnswer::Strange("podman was ended by a signal".to_owned())),
        }
    }

    /// Whether it says so of this container: `no such container`, with the id before or behind it, by version and verb.
    fn knows_no(&self, id: &ContainerId) -> bool {
        let text = String::from_utf8_lossy(&self.errors);
        text.lines().any(|line| line.contains(&id.0) && line.contains("no such container"))
    }
}

/// The user in `/etc/passwd`; users of other sources are not known here.
fn user(host: &Host, uid: u32) -> Result<User, NoAnswer> {
    let why = || NoAnswer::NoWay(format!("user {uid} is not in /etc/passwd"));
    let passwd = host.read_text("etc/passwd");
    let (gid, home) = passwd.known().and_then(|text| entry(text, uid)).ok_or_else(why)?;
    let folder = PathBuf::from(format!("/run/user/{uid}"));
    let is_own = |m: fs::Metadata| m.is_dir() && m.uid() == uid;
    let is_there =
        uid != 0 && fs::symlink_metadata(host.path(format!("run/user/{uid}"))).is_ok_and(is_own);
    Ok(User { uid, gid, home, runtime_folder: is_there.then_some(folder) })
}

/// `name:password:uid:gid:comment:home:shell` (passwd(5)).
fn entry(passwd: &str, uid: u32) -> Option<(u32, PathBuf)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, user, group, _, home, _] = fields.as_slice() else { return None };
        let is_it = user.parse() == Ok(uid) && home.starts_with('/');
        is_it.then_some((group.parse().ok()?, PathBuf::from(home)))
    })
}

/// All that it says until it exits. Who else has its output open (Podman leaves a process behind that keeps a user's
/// namespace) is not waited for.
fn listen(child: &mut Child, deadline: Instant) -> Result<Said, NoAnswer> {
    let strange = |error: io::Error| NoAnswer::Strange(error.to_string());
    let own = |error: rustix::io::Errno| strange(error.into());
    let pid = Pid::from_child(child);
    let exit = pidfd_open(pid, PidfdFlags::empty()).map_err(own)?;
    let out: Option<OwnedFd> = child.stdout.take().map(Into::into);
    let errors: Option<OwnedFd> = child.stderr.take().map(Into::into);
    let mut pipes = [Pipe::new(out).map_err(strange)?, Pipe::new(errors).map_err(strange)?];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(NoAnswer::Late);
        }
        let has_exited = wait(&exit, &pipes, left).map_err(own)?;
        for pipe in &mut pipes {
            pipe.drain().map_err(strange)?;
            if pipe.text.len() > MOST_BYTES {
                return Err(NoAnswer::Strange(format!("it says more than {MOST_BYTES} bytes")));
            }
        }
        if has_exited {
            break;
        }
    }
    let code = child.wait().map_err(strange)?.code();
    let [out, errors] = pipes.map(|pipe| pipe.text);
    Ok(Said { code, out, errors })
}

/// Waits for an exit or for something to read; tells whether it is the exit.
fn wait(exit: &OwnedFd, pipes: &[Pipe], left: Duration) -> rustix::io::Result<bool> {
    let mut fds = vec![PollFd::new(exit, PollFlags::IN)];
    fds.extend(pipes.iter().filter_map(|p| p.fd.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)));
    let left = Timespec::try_from(left).ok();
    match poll(&mut fds, left.as_ref()) {
        Ok(_) => Ok(fds.first().is_some_and(|exit| !exit.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One end of a pipe, and what came out of it.
struct Pipe {
    fd: Option<OwnedFd>,
    text: Vec<u8>,
}

impl Pipe {
    fn new(fd: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(fd) = &fd {
            rustix::io::ioctl_fionbio(fd.as_fd(), true)?;
        }
        Ok(Self { fd, text: Vec::new() })
    }

    /// Reads what is there, and a little beyond the limit at most.
    fn drain(&mut self) -> io::Result<()> {
        let Some(fd) = self.fd.take() else { return Ok(()) };
        let mut pipe = fs::File::from(fd);
        let mut part = [0; 8192];
        while self.text.len() <= MOST_BYTES {
            match pipe.read(&mut part) {
                Ok(0) => return Ok(()),
                Ok(length) => self.text.extend(part.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.fd = Some(pipe.into());
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Kills the command and its children: its group is a child's that was not waited for, so the number is still theirs.
fn end(child: &mut Child) {
    let pid = Pid::from_child(child);
    // Before setsid there is no such group yet.
    if kill_process_group(pid, Signal::KILL).is_err() {
        drop(child.kill());
    }
    let Ok(exit) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if matches!(wait(&exit, &[], LAST_WAIT), Ok(true)) {
        drop(child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_number_and_a_broken_line_is_none() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad:x:7:7\nme:x:1000:1001:Me,,:/home/me:/bin/sh\n\
                      rel:x:8:8::home:/bin/sh\n";
        assert_eq!(entry(passwd, 1000), Some((1001, "/home/me".into())));
        assert_eq!(entry(passwd, 0), Some((0, "/root".into())));
        for uid in [7, 8, 1001] {
            assert_eq!(entry(passwd, uid), None);
        }
    }
}
