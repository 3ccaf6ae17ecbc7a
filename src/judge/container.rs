//! A process and its container: which one it is, what the engine's word on it means, and who stands behind a forwarder.

use crate::{
    ident::{EngineRef, Pid},
    snapshot::{
        ClaimKind, Container, ContainerState, Process, Published, Seen, Socket, SocketState, Store,
    },
};

use super::{
    case::{Case, Held},
    truth::{Truth, fact, known},
    verdict::Unknown,
};

/// Which container a process belongs to.
#[derive(Debug, Clone)]
pub enum Membership<'a> {
    /// This one, which its engine knows.
    Known(&'a Container),
    /// One whose files lie in this engine's store and which that engine does not know any more.
    Removed(EngineRef),
    /// Not settled: no answer, no engine, another engine's store.
    Unsettled(Unknown),
}

/// Who stands behind a forwarder.
#[derive(Debug, Clone)]
pub enum Behind<'a> {
    /// A container that runs, is paused or about to run again; with it what supervises it, if that is known.
    Alive(&'a Container, Truth),
    /// A container that its engine knows and that does not run.
    Stopped(&'a Container),
    /// Nobody that we know of.
    Nobody(Unknown),
}

const LOOK: &str = "look for the published port: 'docker ps -a' or 'podman ps -a'";
const HOW_TO_ASK: &str = "ask the engine that owns it: 'docker inspect' or 'podman inspect'";

impl<'a> Case<'a> {
    /// The container that the process belongs to, as far as its engine settles it.
    pub fn container(&self) -> Membership<'a> {
        let containers = &self.snapshot.containers;
        let unsettled = |why: String, remedy: Option<&str>| {
            Membership::Unsettled(Unknown {
                fact: format!("whether {} still runs", self.container_name()),
                why,
                remedy: remedy.map(str::to_owned),
            })
        };
        let claim = self.process.cgroup.known().and_then(|c| c.claim.as_ref());
        if let Some((why, remedy)) = claim.and_then(|claim| unaskable(claim.kind)) {
            return unsettled(why.to_owned(), Some(remedy));
        }
        let Some(enclosure) = &self.process.enclosure else {
            return unsettled("no container engine was asked".to_owned(), Some(HOW_TO_ASK));
        };
        let owner = match known(&enclosure.owner, || "whose container it is".to_owned()) {
            Ok(&owner) => owner,
            Err(unknown) => return unsettled(unknown.to_string(), Some(HOW_TO_ASK)),
        };
        let layer = enclosure.layer.known().and_then(Option::as_ref);
        let is_by_root_alone = claim.is_none() && !self.process.is_in_nested_namespace();
        // A user's engine speaks for that user's containers only.
        let said = || containers.said.iter().filter(|((engine, _), _)| engine.owner == owner);
        let is_it = |container: &&Container| match claim {
            Some(claim) => container.id == claim.id,
            None => layer.is_some() && container.upper_dir.as_ref() == layer,
        };
        if let Some(container) = said().filter_map(|(_, seen)| seen.known()).find(is_it) {
            // Anybody's process may enter a container's mounts (nsenter, RootDirectory=).
            if is_by_root_alone && container.pid_mode != "host" {
                let why = format!("it has the files of {}, and not its pids", title(container));
                return unsettled(why, Some("see who sent it in there"));
            }
            return Membership::Known(container);
        }
        if is_by_root_alone {
            let why = "its root directory alone speaks for a container".to_owned();
            return unsettled(why, Some(HOW_TO_ASK));
        }
        // Without a name and without a root by which to know it: who else is in its pid namespace?
        if claim.is_none() && self.process.is_in_nested_namespace() {
            let mut doubt = None;
            for container in said().filter_map(|(_, seen)| seen.known()) {
                match self.is_of_present_run(container) {
                    Truth::Yes => return Membership::Known(container),
                    Truth::No => {}
                    Truth::Unknown(unknown) => doubt = Some(unknown),
                }
            }
            if let Some(unknown) = doubt {
                return unsettled(unknown.to_string(), Some(HOW_TO_ASK));
            }
        }
        // Nobody knows it. That is proof only by every engine that was asked, and by the one whose store it is in.
        let mut removed_from = None;
        let mut asked = 0;
        let said = said().filter(|((_, id), _)| claim.is_none_or(|c| c.id == *id));
        let said = said.map(|((engine, _), seen)| (*engine, seen.as_ref().map(|_| ())));
        let listed = containers.listed.iter().filter(|_| claim.is_none());
        let listed = listed.map(|(engine, seen)| (*engine, seen.clone()));
        for (engine, seen) in said.chain(listed).filter(|(engine, _)| engine.owner == owner) {
            asked += 1;
            match (claim, seen) {
                // Another container's answer, or the whole list: this engine has spoken.
                (None, Seen::Known(()) | Seen::Gone) | (Some(_), Seen::Gone) => {
                    let store = containers.stores.get(&engine).and_then(Seen::known);
                    if store.is_some_and(|store| store.has(layer)) {
                        removed_from = Some(engine);
                    }
                }
                (Some(_), Seen::Known(())) => {}
                (_, Seen::Denied) => {
                    return unsettled(format!("{engine} let us not ask"), Some("run it as root"));
                }
                (_, Seen::Unreadable(why)) => {
                    let why = format!("nothing supervises it, and {engine} gave no answer: {why}");
                    return unsettled(
                        why,
                        Some("see whether that engine runs, and run this again"),
                    );
                }
            }
        }
        match removed_from {
            Some(engine) => match known(&enclosure.is_layer_there, || "its files".to_owned()) {
                Ok(false) => Membership::Removed(engine),
                // Another database on the same store: another Podman's, Buildah's.
                Ok(true) => {
                    let why = format!("{engine} does not know it, but its files are still there");
                    unsettled(why, Some("look for another engine on the same store"))
                }
                Err(unknown) => unsettled(unknown.to_string(), Some(HOW_TO_ASK)),
            },
            None if asked == 0 => {
                let why = "nothing supervises it, and no engine here answers for it".to_owned();
                unsettled(why, Some(HOW_TO_ASK))
            }
            None => {
                let why =
                    "the engines here do not know it, and its files lie in no store of theirs";
                unsettled(why.to_owned(), Some("look for another engine that has it"))
            }
        }
    }

    /// Its container runs, says the engine, and it is one of that run's processes: unsupervised, but alive.
    pub fn is_of_present_run(&self, container: &Container) -> Truth {
        // Whatever the engine calls it: Podman says "stopping" of one that is told to end and serves, for ever where
        // the one who told it died.
        let Some(main) = container.main_pid else {
            // Between two runs there is none; otherwise the engine contradicts itself.
            return match container.state {
                ContainerState::Restarting | ContainerState::NotRunning(_) => Truth::No,
                ContainerState::Running | ContainerState::Paused => {
                    let why = format!("{} names none", container.engine);
                    let fact = format!("the main process of {}", title(container));
                    Truth::Unknown(Unknown { fact, why, remedy: None })
                }
            };
        };
        let name = || format!("the pid namespace of {}'s main process, pid {main}", container.name);
        let unread = Seen::Unreadable("it was not read".to_owned());
        let theirs = match self.snapshot.containers.namespaces.get(&main).unwrap_or(&unread) {
            Seen::Gone => return Truth::No,
            seen @ (Seen::Known(_) | Seen::Denied | Seen::Unreadable(_)) => known(seen, name),
        };
        let own = || self.name("the pid namespace");
        let unread = Seen::Unreadable("it was not read".to_owned());
        let enclosure = self.process.enclosure.as_ref();
        let theirs = match theirs {
            Ok(theirs) => *theirs,
            Err(unknown) => return Truth::Unknown(unknown),
        };
        let seen = enclosure.map_or(&unread, |e| &e.pid_namespace);
        fact(seen, own, |own| if *own == theirs { Truth::Yes } else { self.is_below(main) })
    }

    /// Whether its pid namespace lies within that of the container's main process: no where it is no deeper, else not known.
    fn is_below(&self, main: Pid) -> Truth {
        let unseen = Seen::Unreadable("it was not read".to_owned());
        let of_main = self.snapshot.processes.get(&main).map_or(&unseen, |p| &p.namespace_pids);
        let depth = |seen, name: String| known(seen, || name).map(Vec::len);
        let own = depth(&self.process.namespace_pids, self.name("the pid namespace"));
        let theirs = depth(of_main, format!("the pid namespace of pid {main}"));
        match (own, theirs) {
            (Ok(own), Ok(theirs)) if own <= theirs => Truth::No,
            (Ok(_), Ok(_)) => Truth::Unknown(Unknown {
                fact: self.name("whose the pid namespace is that lies within the container's,"),
                why: "only its processes could tell".to_owned(),
                remedy: None,
            }),
            (Err(unknown), _) | (_, Err(unknown)) => Truth::Unknown(unknown),
        }
    }

    /// What the process is called as a member of a container, as long as no engine has named that.
    pub fn container_name(&self) -> String {
        match self.process.cgroup.known().and_then(|c| c.claim.as_ref()) {
            Some(claim) => {
                let known = self.snapshot.containers.known().find(|c| c.id == claim.id);
                known.map_or_else(|| format!("container {}", claim.id.short()), title)
            }
            None => match self.snapshot.containers.known().find(|c| self.has_layer_of(c)) {
                Some(container) => title(container),
                None => "its container".to_owned(),
            },
        }
    }

    fn has_layer_of(&self, container: &Container) -> bool {
        let layer = self.process.enclosure.as_ref().and_then(|e| e.layer.known());
        container.upper_dir.is_some() && layer == Some(&container.upper_dir)
    }

    /// The container for which a forwarder holds its guarded ports: by address and port of its sockets.
    pub fn behind(&self) -> Behind<'a> {
        let containers = &self.snapshot.containers;
        let owner = match self.whose_containers() {
            Ok(owner) => owner,
            Err(unknown) => return Behind::Nobody(unknown),
        };
        let own = |container: &&Container| container.engine.owner == owner;
        let all = containers.known().filter(own).filter(|c| self.forwards_to(c));
        let (alive, stopped): (Vec<_>, Vec<_>) =
            all.partition(|c| !matches!(c.state, ContainerState::NotRunning(_)));
        if let Some(container) = alive.first() {
            let is_one_supervised = alive
                .iter()
                .fold(Truth::No, |any, container| any.or(|| self.is_main_supervised(container)));
            // Another container may publish this port too, of which nobody told us.
            let unread = || self.unread_containers().map_or(Truth::No, Truth::Unknown);
            return Behind::Alive(container, is_one_supervised.or(unread));
        }
        if let Some(container) = stopped.first() {
            return Behind::Stopped(container);
        }
        if let Some(unknown) = self.unread_containers() {
            return Behind::Nobody(unknown);
        }
        let why = if containers.listed.is_empty() {
            "it forwards this port for a container, and no container engine was asked"
        } else {
            "it forwards this port, and no container of the engines here publishes it"
        };
        Behind::Nobody(Unknown {
            fact: format!("the container behind {}", self.process.name),
            why: why.to_owned(),
            remedy: Some(LOOK.to_owned()),
        })
    }

    /// Containers that an engine did not tell about.
    fn unread_containers(&self) -> Option<Unknown> {
        let containers = &self.snapshot.containers;
        let listed = containers.listed.iter().map(|(engine, seen)| (engine, seen.clone()));
        let said = containers.said.iter();
        let said = said.map(|((engine, _), seen)| (engine, seen.as_ref().map(|_| ())));
        let why = listed.chain(said).find_map(|(engine, seen)| match seen {
            Seen::Unreadable(why) => Some(format!("{engine} gave no answer: {why}")),
            Seen::Denied => Some(format!("{engine} let us not ask")),
            Seen::Known(()) | Seen::Gone => None,
        })?;
        let fact = format!("the container behind {}", self.process.name);
        Some(Unknown { fact, why, remedy: Some(LOOK.to_owned()) })
    }

    /// Whose engine a forwarder works for: another user's may claim any port.
    fn whose_containers(&self) -> Result<u32, Unknown> {
        if let Some(enclosure) = &self.process.enclosure {
            let owner = *known(&enclosure.owner, || self.name("the owner of the user namespace"))?;
            if owner != 0 {
                return Ok(owner);
            }
        }
        known(&self.process.uid, || self.name("the user")).copied()
    }

    fn forwards_to(&self, container: &Container) -> bool {
        let Some(sockets) = self.snapshot.sockets.known() else { return false };
        let holds = |s: &&Socket| {
            let is_server = matches!(s.state, SocketState::Listening | SocketState::Bound);
            is_server && self.snapshot.holders(s.inode).any(|pid| pid == self.process.key.pid)
        };
        let is_held = |s: &&Socket| self.held.ports.iter().any(|guard| s.is_on(&guard.endpoint));
        let mut held = sockets.all.iter().filter(holds).filter(is_held);
        held.any(|socket| container.published.iter().any(|p| is_mapped(p, socket)))
    }

    /// Whether the container's main process is alive and supervised.
    fn is_main_supervised(&self, container: &Container) -> Truth {
        // About to run again: its engine has it in hand.
        let Some(main) = container.main_pid else { return Truth::Yes };
        let Some(process) = self.snapshot.processes.get(&main) else { return Truth::Yes };
        let case = Case::new(self.snapshot, self.settings, process, Held::default());
        match case.supervisor() {
            Ok(supervisor) => supervisor.is_some().into(),
            Err(unknown) => Truth::Unknown(unknown),
        }
    }
}

/// Whether both have the same root of their own: they are in one container, which has the host's pids.
pub fn share_layer(one: &Process, other: &Process) -> bool {
    let layer = |process: &Process| {
        process.enclosure.as_ref().and_then(|e| e.layer.known().cloned()).flatten()
    };
    layer(one).is_some() && layer(one) == layer(other)
}

impl Store {
    /// Whether a root directory is one of this store's, `DRIVER/ID/diff`: another engine's store may lie below it.
    fn has(&self, layer: Option<&std::path::PathBuf>) -> bool {
        let below = layer.and_then(|layer| layer.strip_prefix(&self.root).ok());
        let parts: Vec<_> = below.into_iter().flatten().collect();
        let is_layer = matches!(parts.as_slice(), [driver, _, last]
            if *driver == self.driver.as_str() && *last == "diff");
        self.holds_layers && is_layer
    }
}

/// Runtimes that nobody asks here: why it is not known, and whom to ask instead.
fn unaskable(kind: ClaimKind) -> Option<(&'static str, &'static str)> {
    match kind {
        ClaimKind::Cri => Some((
            "nothing supervises it; it is the kubelet's, whom nobody asks here",
            "ask its runtime: 'crictl inspect'",
        )),
        ClaimKind::Lxc => Some((
            "nothing supervises it, and LXC is not asked",
            "ask it: 'lxc-info' or 'incus info'",
        )),
        ClaimKind::Nspawn => Some((
            "nothing supervises it, and machined is not asked",
            "ask it: 'machinectl status'",
        )),
        ClaimKind::Docker | ClaimKind::Podman | ClaimKind::Other => None,
    }
}

/// A container in words: `container aidb (docker)`.
pub fn title(container: &Container) -> String {
    format!("container {} ({})", container.name, container.engine)
}

/// Whether a socket may be the one by which this port is published.
fn is_mapped(published: &Published, socket: &Socket) -> bool {
    let is_open = |address: std::net::IpAddr| address.to_canonical().is_unspecified();
    published.port == socket.port
        && published.proto == socket.proto
        && published.address.is_none_or(|address| {
            address.to_canonical() == socket.address.to_canonical()
                || (is_open(address) && is_open(socket.address))
        })
}

/// What the engine says of a container and what became of its main process, in words.
pub fn state_in_words(container: &Container, namespaces: &Seen<u64>) -> String {
    let state = &container.state;
    let engine = container.engine;
    match (container.main_pid, namespaces) {
        (None, _) => format!("{engine} says '{state}' of it, without a process"),
        (Some(pid), Seen::Gone) => {
            format!("{engine} says '{state}' of it, but its main process, pid {pid}, is dead")
        }
        (Some(pid), _) => format!("{engine} says '{state}' of it, with main process {pid}"),
    }
}

/// The namespace of a container's main process; Gone where it has none.
pub fn namespace_of<'a>(case: &Case<'a>, container: &Container) -> &'a Seen<u64> {
    const NONE: &Seen<u64> = &Seen::Gone;
    let find = |pid: Pid| case.snapshot.containers.namespaces.get(&pid);
    container.main_pid.and_then(find).unwrap_or(NONE)
}
