//! An engine that answers at its socket: first who it is, then all that is asked, over a few connections.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hyper::Method;
use tokio::{task::JoinSet, time::timeout_at};

use super::{
    Answer, Engine, Part, PartAnswer, Question,
    answer::{self, Dialect},
    command,
    deed::ANSWER_BYTES,
    http::{Flow, Line, Reply},
    way::{self, NoAnswer},
};
use crate::{
    ident::{EngineKind, EngineRef},
    snapshot::Seen,
};

/// Connections to one engine: one container over which it hangs does not keep us from the others.
const MOST_LINES: usize = 4;
/// One container, with its labels, mounts and environment: some 10 kB.
pub(super) const CONTAINER_BYTES: usize = 1 << 20;
/// All containers: some 2 kB each.
pub(super) const LIST_BYTES: usize = 16 << 20;
/// What it says of itself: some 4 kB.
const INFO_BYTES: usize = 1 << 20;

/// Talks with an engine over its socket, all of it within `timeout`. Podman's command is no way here: what it leaves out would
/// be missing in what its caller makes of it.
pub(super) fn talk<T>(
    engine: &Engine,
    timeout: Duration,
    talk: impl AsyncFnOnce(Socket) -> Result<T, NoAnswer>,
) -> Result<T, NoAnswer> {
    let runtime = super::runtime().map_err(|error| NoAnswer::NoWay(error.to_string()))?;
    let deadline = Instant::now() + timeout;
    let said = runtime.block_on(async { talk(open(engine, deadline).await?).await });
    runtime.shutdown_background();
    said
}

/// The same as [`Socket::open`]; where a Podman is installed that listens nowhere, the error says how to change that.
pub(super) async fn open(engine: &Engine, deadline: Instant) -> Result<Socket, NoAnswer> {
    Socket::open(engine, deadline).await.map_err(|why| match why {
        NoAnswer::Absent | NoAnswer::Refused => how_to_listen(engine).unwrap_or(why),
        NoAnswer::Denied | NoAnswer::Late | NoAnswer::NoWay(_) | NoAnswer::Strange(_) => why,
    })
}

/// Only for a Podman that is installed.
fn how_to_listen(engine: &Engine) -> Option<NoAnswer> {
    let EngineRef { kind, owner } = engine.name;
    let is_podman = kind == EngineKind::Podman && command::program(&engine.host).is_some();
    let order = match owner {
        0 => "systemctl enable --now podman.socket",
        _ => "systemctl --user enable --now podman.socket",
    };
    let path = engine.path().display();
    is_podman.then(|| {
        NoAnswer::NoWay(format!("nobody listens at '/{path}'\nhint: open it with: {order}"))
    })
}

/// An engine that said who it is.
pub(super) struct Socket {
    line: Line,
    name: EngineRef,
    pub(super) dialect: Dialect,
}

impl Socket {
    /// Opens the socket, connects, and asks who is there.
    pub(super) async fn open(engine: &Engine, deadline: Instant) -> Result<Self, NoAnswer> {
        let (deadline, name) = (deadline.into(), engine.name);
        let socket: OwnedFd = if name.owner == 0 {
            way::open(engine)?
        } else {
            // The way there leads through that user's folder.
            let engine = engine.clone();
            let opened = timeout_at(deadline, super::beside(move || way::open(&engine))).await;
            opened.map_err(|_| NoAnswer::Late)???
        };
        let mut line = Line::new(Arc::new(socket), name.owner, deadline);
        let dialect = answer::dialect(&line.get("/version", INFO_BYTES).await?)?;
        let name = EngineRef { kind: dialect.version.kind, ..name };
        Ok(Self { line, name, dialect })
    }

    /// The connection on which it said who it is.
    pub(super) fn into_line(self) -> Line {
        self.line
    }

    /// A question in Docker's API, which both speak.
    pub(super) async fn get(&mut self, path: &str, most_bytes: usize) -> Result<Reply, NoAnswer> {
        self.line.get(&format!("{}{path}", self.dialect.docker), most_bytes).await
    }

    /// An order in Docker's API, never given twice.
    pub(super) async fn order(
        &mut self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Reply, NoAnswer> {
        let path = format!("{}{path}", self.dialect.docker);
        self.line.call(method, &path, body.into(), ANSWER_BYTES).await
    }

    /// A question whose answer is read piece by piece.
    pub(super) async fn follow(self, path: &str) -> Result<Flow, NoAnswer> {
        self.line.follow(&format!("{}{path}", self.dialect.docker)).await
    }

    /// Until when it is to have answered.
    pub(super) fn deadline(&self) -> tokio::time::Instant {
        self.line.deadline
    }

    /// Whether a pid in its answers means the same process to us.
    pub(super) fn counts_as_we_do(&self) -> bool {
        self.line.counts_as_we_do
    }

    pub(super) async fn answer(self, question: &Question) -> Answer {
        let mut answer = question.unanswered(&NoAnswer::Late);
        for id in question.ids.iter().filter(|id| !super::is_whole(id)) {
            let why = NoAnswer::Strange("that is no whole id".to_owned());
            answer.containers.insert(id.clone(), why.of(self.name));
        }
        answer.version = Ok(self.dialect.version.clone());
        let parts: VecDeque<Part> = question.parts().into();
        let lines = parts.len().min(MOST_LINES);
        let parts = Arc::new(Mutex::new(parts));
        let asker = Asker { dialect: self.dialect, name: self.name, parts };
        let mut all = JoinSet::new();
        for _ in 1..lines {
            all.spawn(asker.clone().run(self.line.sibling()));
        }
        all.spawn(asker.run(self.line));
        while let Some(done) = all.join_next().await {
            done.into_iter().flatten().for_each(|part| answer.take(part));
        }
        answer
    }
}

/// Asks what is left to ask, over one connection.
#[derive(Clone)]
struct Asker {
    dialect: Dialect,
    name: EngineRef,
    parts: Arc<Mutex<VecDeque<Part>>>,
}

impl Asker {
    async fn run(self, mut line: Line) -> Vec<PartAnswer> {
        let next = || self.parts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let mut answers = Vec::new();
        while let Some(part) = next() {
            answers.push(self.ask(&mut line, part).await);
        }
        answers
    }

    async fn ask(&self, line: &mut Line, part: Part) -> PartAnswer {
        let (own, name) = (&self.dialect.own, self.name);
        match part {
            Part::Running => {
                // Podman's shorter list leaves out what is paused, Docker's does not.
                let path = format!("{own}/containers/json?all=true");
                let reply = line.get(&path, LIST_BYTES).await;
                let running = reply.and_then(|reply| answer::running(&reply, name));
                PartAnswer::Running(seen(running, name))
            }
            Part::Store => {
                let reply = line.get(&format!("{own}/info"), INFO_BYTES).await;
                let store = reply.and_then(|reply| answer::store(&reply, name.kind));
                PartAnswer::Store(seen(store, name))
            }
            Part::List => {
                let path = format!("{own}/containers/json?all=true");
                let all = line.get(&path, LIST_BYTES).await.and_then(|reply| answer::all(&reply));
                PartAnswer::List(seen(all, name))
            }
            Part::Container(id) => {
                let reply = line.get(&format!("{own}/containers/{id}/json"), CONTAINER_BYTES).await;
                let container = match reply {
                    Ok(reply) => answer::container(&reply, name, &id),
                    Err(why) => why.of(name),
                };
                let container = match container {
                    Seen::Known(c) if c.main_pid.is_some() && !line.counts_as_we_do => {
                        let why = "it numbers processes in another pid namespace than this";
                        NoAnswer::Strange(why.to_owned()).of(name)
                    }
                    container @ (Seen::Known(_)
                    | Seen::Gone
                    | Seen::Denied
                    | Seen::Unreadable(_)) => container,
                };
                PartAnswer::Container(id, Box::new(container))
            }
        }
    }
}

fn seen<T>(answer: Result<T, NoAnswer>, engine: EngineRef) -> Seen<T> {
    match answer {
        Ok(value) => Seen::Known(value),
        Err(why) => why.of(engine),
    }
}
