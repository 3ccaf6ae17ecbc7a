//! Podman without a socket: its command, run as the user whose containers it is asked about. From a system folder, with an
//! environment of our own making, in a session of its own, with a deadline and a limit to what it may say.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::task::JoinSet;

use super::{
    Answer, Deed, Engine, Part, PartAnswer, Question, Version,
    answer::{self, shown},
    made::{self, Listed},
    outside,
    way::NoAnswer,
};
use crate::{
    command::{self, Said, Unheard},
    host::Host,
    ident::{ContainerId, EngineKind, EngineRef},
    snapshot::{Container, Seen},
};

/// Where a distribution puts it; the last is NixOS's.
const PROGRAMS: [&str; 3] = ["usr/bin/podman", "bin/podman", "run/current-system/sw/bin/podman"];
/// What Podman itself calls: conmon, crun, newuidmap (a wrapper on NixOS).
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin";
/// Commands of one user at a time; each takes some 25 to 100 ms.
const MOST_COMMANDS: usize = 2;

/// Lists all containers.
const PS: [&str; 5] = ["ps", "--all", "--no-trunc", "--format", "json"];

/// The command on this host. A fixture's is never run.
pub(super) fn program(host: &Host) -> Option<PathBuf> {
    let mut paths = PROGRAMS.iter().map(|path| host.path(path)).filter(|_| host.is_live());
    paths.find(|path| command::is_program(path))
}

/// Podman's command as one user.
#[derive(Debug, Clone)]
pub(super) struct Podman {
    name: EngineRef,
    program: PathBuf,
    /// By whom it is run where our own rights do not do.
    systemd_run: Option<PathBuf>,
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
        let is_confined = ourselves == 0 && outside::is_needed(name.owner);
        let systemd_run = outside::program(host).filter(|_| is_confined);
        if is_confined && systemd_run.is_none() {
            let why = "podman cannot be run with these rights, and there is no systemd-run";
            return Err(NoAnswer::NoWay(why.to_owned()));
        }
        Ok(Self { name, program, systemd_run, user, deadline })
    }

    pub(super) async fn answer(self, question: &Question) -> Answer {
        let mut answer = question.unanswered(&NoAnswer::Late);
        // A command that is there is of this version whether or not it gets on with its store.
        let version = self.clone();
        answer.version = super::beside(move || version.version()).await.flatten();
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
            all.spawn(super::beside(move || {
                let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                std::iter::from_fn(next).map(|part| podman.ask(part)).collect::<Vec<PartAnswer>>()
            }));
        }
        while let Some(done) = all.join_next().await {
            done.into_iter().flatten().flatten().for_each(|part| answer.take(part));
        }
        answer
    }

    fn version(&self) -> Result<Version, NoAnswer> {
        // `podman version 4.3.1`; touches no store.
        let said = succeeded(self.run(&["--version"])?)?;
        let text = String::from_utf8_lossy(&said);
        let version = text.trim().strip_prefix("podman version ");
        let why = || NoAnswer::Strange(format!("it says '{}'", shown(&text)));
        Ok(Version { kind: EngineKind::Podman, version: shown(version.ok_or_else(why)?) })
    }

    fn ask(&self, part: Part) -> PartAnswer {
        let name = self.name;
        match part {
            Part::Running => {
                let said = self.run(&PS).and_then(succeeded);
                let running = said.and_then(|json| answer::read_running(&json, name));
                PartAnswer::Running(running.map_or_else(|why| why.of(name), Seen::Known))
            }
            Part::Store => {
                let said = self.run(&["info", "--format", "json"]).and_then(succeeded);
                let store = said.and_then(|json| answer::podman_store(&json));
                PartAnswer::Store(store.map_or_else(|why| why.of(name), Seen::Known))
            }
            Part::List => {
                let said = self.run(&PS).and_then(succeeded);
                let all = said.and_then(|json| answer::listed(&json));
                PartAnswer::List(all.map_or_else(|why| why.of(name), Seen::Known))
            }
            Part::Container(id) => {
                let container = self.inspect(&id);
                PartAnswer::Container(id, Box::new(container))
            }
        }
    }

    /// All its containers, with their labels.
    pub(super) fn containers(&self) -> Result<Vec<Listed>, NoAnswer> {
        made::printed(&self.run(&PS).and_then(succeeded)?)
    }

    fn inspect(&self, id: &ContainerId) -> Seen<Container> {
        let arguments = ["inspect", "--type", "container", "--format", "json", &id.0];
        match self.run(&arguments) {
            Err(why) => why.of(self.name),
            Ok(said) if said.code == Some(125) && knows_no(&said, id) => Seen::Gone,
            Ok(said) => match succeeded(said) {
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
            Some(1 | 125) if knows_no(&said, id) => Deed::Gone,
            Some(_) if is_conflict => Deed::Conflict(message),
            Some(code) => Deed::Failed(u16::try_from(code).unwrap_or(u16::MAX), message),
            None => Deed::NoAnswer("podman was ended by a signal".to_owned()),
        }
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Result<Said, NoAnswer> {
        Ok(command::run(self.command(arguments), self.deadline)?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let User { uid, gid, home, runtime_folder } = &self.user;
        // A configured remote is another machine, whose word says nothing of this one's processes.
        let arguments = [&["--remote=false"], arguments].concat();
        let mut environment =
            vec![("PATH", PATH.into()), ("HOME", home.clone()), ("LC_ALL", "C".into())];
        if let Some(folder) = runtime_folder {
            environment.push(("XDG_RUNTIME_DIR", folder.clone()));
        }
        let is_other = rustix::process::geteuid().as_raw() != *uid;
        if let Some(systemd_run) = &self.systemd_run {
            let user = is_other.then_some((*uid, *gid));
            let order = outside::Order { user, environment: &environment, deadline: self.deadline };
            return outside::by_systemd(systemd_run, &order, &self.program, &arguments);
        }
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir("/").env_clear().envs(environment);
        if is_other {
            // With a uid, std drops root's supplementary groups as well.
            command.uid(*uid).gid(*gid);
        }
        command
    }
}

/// What a command that succeeded put out.
fn succeeded(said: Said) -> Result<Vec<u8>, NoAnswer> {
    match said.code {
        Some(0) => Ok(said.out),
        Some(code) => {
            let words = shown(&String::from_utf8_lossy(&said.errors));
            Err(NoAnswer::Strange(format!("podman failed with {code}: {words}")))
        }
        None => Err(NoAnswer::Strange("podman was ended by a signal".to_owned())),
    }
}

/// Whether it says so of this container: `no such container`, with the id before or behind it, by version and verb.
fn knows_no(said: &Said, id: &ContainerId) -> bool {
    let text = String::from_utf8_lossy(&said.errors);
    text.lines().any(|line| line.contains(&id.0) && line.contains("no such container"))
}

impl From<Unheard> for NoAnswer {
    fn from(unheard: Unheard) -> Self {
        match unheard {
            Unheard::NotStarted(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Self::Denied
            }
            Unheard::NotStarted(error) => Self::NoWay(error.to_string()),
            Unheard::Late => Self::Late,
            Unheard::TooMuch(_) | Unheard::Lost(_) => Self::Strange(unheard.to_string()),
        }
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
