//! One client for Docker and Podman: which engines there are, what they say of containers, and orders to them. Everything
//! has a deadline and a limit of size: a user's engine is run by that user. No runtime is made and no socket is touched
//! before a question is asked. What an answer means is the judge's; a user's engine speaks for that user's containers only.

mod deed;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

pub use deed::{Deed, Until, kill, remove, stop, wait};

use crate::{
    host::Host,
    ident::{ContainerId, EngineKind, EngineRef},
    snapshot::{Container, Seen, Store},
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
    /// Where it listens: below the host's root, for a user's below `/run/user/UID`.
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
}

/// What one engine answered. Where it said nothing, everything that was asked is `Denied` or `Unreadable`, never `Gone`.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Who was asked.
    pub engine: EngineRef,
    /// What it says it is. `Gone` = there is no such engine here.
    pub version: Seen<Version>,
    /// Its containers. `Gone` = this engine does not know the id, by its own words.
    pub containers: BTreeMap<ContainerId, Seen<Container>>,
    /// All ids, where they were asked for.
    pub all: Option<Seen<Vec<ContainerId>>>,
    /// Its store, where it was asked for.
    pub store: Option<Seen<Store>>,
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
    let _ = (host, which, owners);
    Vec::new()
}

/// Asks all engines side by side. Returns within `timeout`, one answer per question, in their order.
pub fn ask(questions: &[Question], timeout: Duration) -> Vec<Answer> {
    let why = format!("no answer within {} ms", timeout.as_millis());
    questions.iter().map(|q| q.unanswered(&Seen::Unreadable(why.clone()))).collect()
}

impl Question {
    /// Whether this engine knows these containers.
    pub fn about(engine: Engine, ids: impl IntoIterator<Item = ContainerId>) -> Self {
        Self { engine, ids: ids.into_iter().collect(), list: false, store: false }
    }

    /// The answer of an engine that said nothing.
    fn unanswered(&self, why: &Seen<()>) -> Answer {
        fn silent<T>(why: &Seen<()>, engine: EngineRef) -> Seen<T> {
            match why {
                Seen::Denied => Seen::Denied,
                Seen::Unreadable(why) => Seen::Unreadable(why.clone()),
                Seen::Known(()) => Seen::Unreadable("it was not asked".to_owned()),
                // That there is no engine does not say that there is no container.
                Seen::Gone => Seen::Unreadable(format!("no {engine} here")),
            }
        }
        let name = self.engine.name;
        Answer {
            engine: name,
            version: match why {
                Seen::Gone => Seen::Gone,
                Seen::Known(()) | Seen::Denied | Seen::Unreadable(_) => silent(why, name),
            },
            containers: self.ids.iter().map(|id| (id.clone(), silent(why, name))).collect(),
            all: self.list.then(|| silent(why, name)),
            store: self.store.then(|| silent(why, name)),
        }
    }
}
