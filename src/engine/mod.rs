//! One client for Docker and Podman: which engines there are, what they say of containers, and orders to them. Everything
//! has a deadline and a limit of size: a user's engine is run by that user. No runtime is made and no socket is touched
//! before a question is asked. What an answer means is the judge's; a user's engine speaks for that user's containers only.

mod answer;
mod choice;
mod command;
#[cfg(test)]
mod cuts;
mod deed;
mod everywhere;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod http;
mod logs;
mod made;
mod make;
mod networks;
mod outside;
mod socket;
#[cfg(test)]
mod tests;
mod way;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::Errno,
};

pub use choice::default_for;
pub use deed::{Deed, Until, kill, remove, stop, wait};
pub use everywhere::{Everything, list_everywhere};
pub use logs::{follow_logs, logs};
pub use made::{Listed, Made, Phase, find, list};
pub use make::{Created, Refused, create, forbid_restarts, start};
pub use networks::{Network, disconnect, network, remove_network};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::JoinSet,
};
pub use way::NoAnswer;

use crate::{
    host::Host,
    ident::{ContainerId, EngineKind, EngineRef},
    snapshot::{Container, Publisher, Seen, Store},
};

/// Which engines may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Which {
    /// Docker's.
    pub docker: bool,
    /// The socket of root's Docker, where it is not the usual one; an absolute path.
    pub docker_socket: Option<PathBuf>,
    /// Podman's.
    pub podman: bool,
}

/// An engine that may be asked. Holds no connection.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Which one.
    pub name: EngineRef,
    host: Host,
    /// Where it listens, with the host's root; a user's lies below `/run/user/UID`.
    socket: PathBuf,
}

/// What one engine is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Whom.
    pub engine: Engine,
    /// Containers by their whole ids.
    pub ids: Vec<ContainerId>,
    /// The ids of all its containers, whatever their state.
    pub list: bool,
    /// Where it keeps them.
    pub store: bool,
    /// Which of them run, with the host's ports that are theirs now.
    pub running: bool,
}

/// What one engine answered. Where it said nothing, all that was asked is `Denied` or `Unreadable`, never `Gone`.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who was asked.
    pub engine: EngineRef,
    /// What it says it is, or why it says nothing.
    pub version: Result<Version, NoAnswer>,
    /// Its containers. `Gone` = this engine does not know the id, by its own words.
    pub containers: BTreeMap<ContainerId, Seen<Container>>,
    /// All ids, where they were asked for.
    pub all: Option<Seen<Vec<ContainerId>>>,
    /// Its store, where it was asked for.
    pub store: Option<Seen<Store>>,
    /// What runs, where that was asked for.
    pub running: Option<Seen<Vec<Publisher>>>,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The product, by what it answers: at Docker's place may stand a Podman.
    pub kind: EngineKind,
    /// Its version, `20.10.24`.
    pub version: String,
}

/// The engines at their usual places: root's, and those of these users. Root's are left out where nothing of them is here;
/// a user's folder is not looked into before that engine is asked.
pub fn places(host: &Host, which: &Which, owners: &BTreeSet<u32>) -> Vec<Engine> {
    let kinds = [(EngineKind::Docker, which.docker), (EngineKind::Podman, which.podman)];
    let asked = kinds.into_iter().filter(|(_, may_ask)| *may_ask).map(|(kind, _)| kind);
    let all = asked.flat_map(|kind| owners.iter().map(move |&owner| EngineRef { kind, owner }));
    let mut engines: Vec<Engine> = all
        .map(|name| Engine { name, host: host.clone(), socket: socket_of(host, which, name) })
        .collect();
    engines.retain(|engine| engine.name.owner != 0 || engine.is_here());
    // Debian's podman-docker links the one to the other.
    let identity = |engine: &Engine| fs::metadata(&engine.socket).map(|m| (m.dev(), m.ino())).ok();
    let roots = |kind| engines.iter().position(|e| e.name == EngineRef { kind, owner: 0 });
    if let (Some(docker), Some(podman)) = (roots(EngineKind::Docker), roots(EngineKind::Podman)) {
        let (one, other) = (engines.get(docker), engines.get(podman));
        let one = one.and_then(identity);
        if one.is_some() && one == other.and_then(identity) {
            engines.remove(docker);
        }
    }
    engines
}

/// The engine at one place of root's, whether or not anything is there.
pub fn at(host: &Host, kind: EngineKind, below_root: &str) -> Engine {
    let name = EngineRef { kind, owner: 0 };
    Engine { name, host: host.clone(), socket: host.path(below_root) }
}

/// A user's engine, whether or not there is one.
pub fn of_user(host: &Host, kind: EngineKind, owner: u32) -> Engine {
    let which = Which { docker: true, docker_socket: None, podman: true };
    let name = EngineRef { kind, owner };
    Engine { name, host: host.clone(), socket: socket_of(host, &which, name) }
}

fn socket_of(host: &Host, which: &Which, EngineRef { kind, owner }: EngineRef) -> PathBuf {
    let of_user = |file| host.path(format!("run/user/{owner}/{file}"));
    match (kind, owner) {
        (EngineKind::Docker, 0) => {
            let set = which.docker_socket.as_ref();
            host.path(set.map_or("run/docker.sock".as_ref(), |p| p.strip_prefix("/").unwrap_or(p)))
        }
        (EngineKind::Podman, 0) => host.path("run/podman/podman.sock"),
        // Docker without root (dockerd-rootless.sh) listens there, in XDG_RUNTIME_DIR.
        (EngineKind::Docker, _) => of_user("docker.sock"),
        (EngineKind::Podman, _) => of_user("podman/podman.sock"),
    }
}

impl Engine {
    /// Its socket, as a path of the host.
    pub fn path(&self) -> &Path {
        let root = self.host.path("");
        self.socket.strip_prefix(root).unwrap_or(&self.socket)
    }

    /// At the place where its distributions put it, by whatever path.
    pub fn is_usual(&self) -> bool {
        let which = Which { docker: true, docker_socket: None, podman: true };
        let usual = socket_of(&self.host, &which, self.name);
        let identity = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        self.socket == usual || identity(&self.socket) == identity(&usual)
    }

    /// Whether there is a socket that we may open; it is not touched.
    pub fn look(&self) -> Result<(), NoAnswer> {
        way::open(self).map(drop)
    }

    /// Whether its socket is there and not ours to write to; it is not touched.
    pub fn is_forbidden(&self) -> bool {
        let may = accessat(CWD, &self.socket, Access::WRITE_OK, AtFlags::EACCESS);
        matches!(may, Err(Errno::ACCESS | Errno::PERM))
    }

    /// Whether anything of an engine of root's is there: a socket, or the command that needs none.
    fn is_here(&self) -> bool {
        way::is_there(&self.socket)
            || self.name.kind == EngineKind::Podman && command::program(&self.host).is_some()
    }
}

/// Asks all engines side by side. Returns within `timeout`, one answer per question, in their order.
pub fn ask(questions: &[Question], timeout: Duration) -> Vec<Answer> {
    let silent = |why: &NoAnswer| questions.iter().map(|q| q.unanswered(why)).collect();
    if questions.is_empty() {
        return Vec::new();
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return silent(&NoAnswer::NoWay(error.to_string())),
    };
    let mut answers: Vec<Answer> = silent(&NoAnswer::Late);
    let deadline = Instant::now() + timeout;
    runtime.block_on(async {
        let mut all = JoinSet::new();
        for (index, question) in questions.iter().cloned().enumerate() {
            all.spawn(async move { (index, answer(&question, deadline).await) });
        }
        while let Some(done) = all.join_next().await {
            if let Ok((index, answer)) = done
                && let Some(place) = answers.get_mut(index)
            {
                *place = answer;
            }
        }
    });
    // A thread that hangs in a user's folder is left to itself.
    runtime.shutdown_background();
    answers
}

/// What answers at an engine's socket; its command is not tried.
pub fn version(engine: &Engine, timeout: Duration) -> Result<Version, NoAnswer> {
    let runtime = runtime().map_err(|error| NoAnswer::NoWay(error.to_string()))?;
    let deadline = Instant::now() + timeout;
    let socket = runtime.block_on(socket::Socket::open(engine, deadline));
    runtime.shutdown_background();
    socket.map(|socket| socket.dialect.version)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_io().enable_time().build()
}

/// Runs what may block on a thread beside us; tokio's own way to do that panics where no thread can be had.
async fn beside<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    let (send, receive) = oneshot::channel();
    let run = move || drop(send.send(run()));
    let started = thread::Builder::new().name("portreeve-engine".to_owned()).spawn(run);
    started.map_err(|error| NoAnswer::NoWay(format!("no thread could be started: {error}")))?;
    receive.await.map_err(|error| NoAnswer::Strange(error.to_string()))
}

/// Over the socket; where no Podman listens, by its command.
async fn answer(question: &Question, deadline: Instant) -> Answer {
    let engine = &question.engine;
    let why = match socket::Socket::open(engine, deadline).await {
        Ok(socket) => return socket.answer(question).await,
        Err(why) => why,
    };
    let is_mute = matches!(why, NoAnswer::Absent | NoAnswer::Refused);
    if !(is_mute && engine.name.kind == EngineKind::Podman) {
        return question.unanswered(&why);
    }
    match command::Podman::find(engine, deadline) {
        Ok(podman) => podman.answer(question).await,
        Err(NoAnswer::Absent) => question.unanswered(&why),
        Err(why) => question.unanswered(&why),
    }
}

impl Question {
    /// Whether this engine knows these containers.
    pub fn about(engine: Engine, ids: impl IntoIterator<Item = ContainerId>) -> Self {
        Self { engine, ids: ids.into_iter().collect(), list: false, store: false, running: false }
    }

    /// The answer where the engine was better not asked.
    pub fn left_unasked(&self, why: &str) -> Answer {
        self.unanswered(&NoAnswer::NoWay(why.to_owned()))
    }

    /// The answer of an engine that said nothing.
    fn unanswered(&self, why: &NoAnswer) -> Answer {
        let name = self.engine.name;
        Answer {
            engine: name,
            version: Err(why.clone()),
            containers: self.ids.iter().map(|id| (id.clone(), why.of(name))).collect(),
            all: self.list.then(|| why.of(name)),
            store: self.store.then(|| why.of(name)),
            running: self.running.then(|| why.of(name)),
        }
    }

    /// One by one, what is asked. An id is asked for in full, so that nothing else is found by it.
    fn parts(&self) -> Vec<Part> {
        let ids = self.ids.iter().filter(|id| is_whole(id)).cloned().map(Part::Container);
        let more =
            [(self.running, Part::Running), (self.store, Part::Store), (self.list, Part::List)];
        let more = more.into_iter().filter(|(is_asked, _)| *is_asked).map(|(_, part)| part);
        more.chain(ids).collect()
    }
}

/// What one request asks.
#[derive(Debug, Clone)]
enum Part {
    Running,
    Store,
    List,
    Container(ContainerId),
}

/// What one request was answered.
#[derive(Debug)]
enum PartAnswer {
    Running(Seen<Vec<Publisher>>),
    Store(Seen<Store>),
    List(Seen<Vec<ContainerId>>),
    Container(ContainerId, Box<Seen<Container>>),
}

impl Answer {
    fn take(&mut self, part: PartAnswer) {
        match part {
            PartAnswer::Running(running) => self.running = Some(running),
            PartAnswer::Store(store) => self.store = Some(store),
            PartAnswer::List(all) => self.all = Some(all),
            PartAnswer::Container(id, container) => drop(self.containers.insert(id, *container)),
        }
    }
}

/// 64 lower-case hexadecimal digits: what Docker and Podman call a container, and find nothing else by.
fn is_whole(id: &ContainerId) -> bool {
    id.0.len() == 64 && id.0.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
