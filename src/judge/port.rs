//! What a guarded port is: free, held, or one of the states that no process explains.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::{
    ident::{Endpoint, EngineKind, EngineRef, Pid, Port, Proto, ServiceName},
    snapshot::{
        Beyond, Detour, Publisher, RuleNumber, RulePlace, Seen, Share, Snapshot, Socket,
        SocketState,
    },
};

use super::{
    case::Guard,
    truth::{Truth, fact, known},
    verdict::{ContainerRef, Unknown, Verdict},
};

/// The judge's word on one guarded port.
#[derive(Debug, Clone)]
pub struct PortVerdict {
    /// The guarded port.
    pub endpoint: Endpoint,
    /// Its owner by the settings; none for `--port` alone.
    pub service: Option<ServiceName>,
    /// What it is.
    pub state: PortState,
    /// One sentence for the person who reads it.
    pub sentence: String,
    /// What to do, where there is something to do.
    pub next_step: Option<String>,
}

/// States of a guarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// Nothing has it.
    Free,
    /// Nothing listens; whether something has bound it without listening could not be seen.
    NoListener,
    /// Listening (UDP: bound), by these processes.
    Held(Vec<Pid>),
    /// Bound, not listening, by these processes: a server that is still loading.
    BoundOnly(Vec<Pid>),
    /// An outgoing connection took it as its own local port.
    Ephemeral {
        /// Who connected, as far as we see.
        holders: Vec<Pid>,
        /// Where to.
        peer: SocketAddr,
    },
    /// Nothing listens, but a connection has it as its local port: what a server that is gone had accepted, or
    /// a client's that chose it.
    Connected {
        /// Who has the connection, as far as we see.
        holders: Vec<Pid>,
        /// Where to.
        peer: SocketAddr,
    },
    /// Only closing connections remain; no process holds it.
    Lingering,
    /// All of `/proc` was read and no process holds it: the kernel itself does, or a descriptor in flight.
    KernelOwned,
    /// Somebody holds it, whom we may not see.
    HolderNotVisible,
    /// No socket is on it, but an engine has allocated it to this running container, or a rule sends its packets there.
    Allocated(ContainerRef),
    /// No socket is on it, but a rule sends its packets elsewhere, and no running container is known to have it.
    Detoured(Box<Detour>),
    /// The port's sockets could not be read, or what else may have it.
    Unknown(Unknown),
}

/// Whether an outgoing connection may take this port as its own.
pub fn is_ephemeral(snapshot: &Snapshot, port: Port) -> Truth {
    fact(
        &snapshot.ephemeral_ports,
        || format!("whether connections take port {port} by themselves (ip_local_port_range)"),
        |&(low, high)| (low..=high).contains(&port.number()).into(),
    )
}

/// Whether a socket stands in the way of a service on this endpoint.
pub fn is_on(socket: &Socket, endpoint: &Endpoint) -> Truth {
    let fact =
        || format!("whether the socket on [{}]:{} takes IPv4 too", socket.address, socket.port);
    socket.overlaps(endpoint).map_or_else(
        || {
            let why = "the text of /proc/net does not tell".to_owned();
            Truth::Unknown(Unknown { fact: fact(), why, remedy: None })
        },
        Truth::from,
    )
}

/// Judges one guarded port; `verdicts` name its holders.
pub fn judge(snapshot: &Snapshot, guard: &Guard, verdicts: &[Verdict]) -> PortVerdict {
    let state = state(snapshot, guard);
    let state = match (&state, &snapshot.beyond) {
        (PortState::Free | PortState::NoListener | PortState::Lingering, Some(beyond)) => {
            without_socket(beyond, guard.endpoint).unwrap_or(state)
        }
        (_, _) => state,
    };
    let endpoint = guard.endpoint;
    let named = |pids: &[Pid]| -> String {
        let name = |pid: &Pid| match verdicts.iter().find(|v| v.key().pid == *pid) {
            Some(verdict) => format!("pid {pid} ({})", verdict.title()),
            None => match snapshot.processes.get(pid) {
                Some(process) => format!("pid {pid} ({})", process.name),
                None => format!("pid {pid}"),
            },
        };
        match pids {
            [] => "a process that is not visible".to_owned(),
            pids => pids.iter().map(name).collect::<Vec<_>>().join(", "),
        }
    };
    let (sentence, next_step) = match &state {
        PortState::Free => ("nothing has it".to_owned(), None),
        PortState::NoListener => (
            "nothing listens; a socket that is bound and silent would not be seen here".to_owned(),
            None,
        ),
        PortState::Held(pids) if are_unrelated(snapshot, pids) => {
            (format!("held by {} unrelated processes: {}", pids.len(), named(pids)), None)
        }
        PortState::Held(pids) => (format!("held by {}", named(pids)), None),
        PortState::BoundOnly(pids) => (format!("bound, not listening yet, by {}", named(pids)), None),
        PortState::Ephemeral { holders, peer } => (
            format!("taken by an outgoing connection to {peer} as its local port: {}", named(holders)),
            Some(format!("{}; this connection must close first", reserve(snapshot, endpoint.port))),
        ),
        PortState::Connected { holders, peer } => (
            format!("nothing listens, but a connection to {peer} has it as its local port: {}", named(holders)),
            Some("end that connection; a server that sets SO_REUSEADDR may bind the port now".to_owned()),
        ),
        PortState::Lingering => (
            "no process has it; closed connections linger (TIME_WAIT), for a minute as a rule".to_owned(),
            Some("a server that sets SO_REUSEADDR may bind it now".to_owned()),
        ),
        PortState::KernelOwned => (
            "no process has it: the kernel itself holds it, or a descriptor on its way between processes".to_owned(),
            Some("look for a kernel service (NFS, a tunnel) on this port".to_owned()),
        ),
        // What would help stands among the report's unknowns, once.
        PortState::HolderNotVisible if snapshot.sight.is_first_pid_namespace => {
            ("held by a process that this run may not see".to_owned(), None)
        }
        PortState::HolderNotVisible => (
            "held by a process outside this pid namespace, or one that this run may not see".to_owned(),
            snapshot.sight.may_see_all.then(|| "run it on the host, outside the container".to_owned()),
        ),
        PortState::Allocated(container) => {
            let rule = snapshot.beyond.as_ref().and_then(|beyond| detour(beyond, endpoint));
            allocated(container, rule)
        }
        PortState::Detoured(detour) => detoured(snapshot, detour),
        PortState::Unknown(unknown) => (format!("not known: {unknown}"), unknown.remedy.clone()),
    };
    PortVerdict { endpoint, service: guard.service.clone(), state, sentence, next_step }
}

fn state(snapshot: &Snapshot, guard: &Guard) -> PortState {
    let sockets = match &snapshot.sockets {
        Seen::Known(sockets) => sockets,
        unseen @ (Seen::Gone | Seen::Denied | Seen::Unreadable(_)) => {
            let why = match unseen {
                Seen::Unreadable(why) => why.clone(),
                Seen::Known(_) | Seen::Gone => "they were gone when they were read".to_owned(),
                Seen::Denied => "permission denied".to_owned(),
            };
            let fact = "its sockets".to_owned();
            return PortState::Unknown(Unknown { fact, why, remedy: None });
        }
    };
    let on_port: Vec<_> = sockets.all.iter().filter(|s| s.is_on(&guard.endpoint)).collect();
    let in_state = |wanted: fn(SocketState) -> bool| -> Vec<u64> {
        on_port.iter().filter(|s| wanted(s.state)).map(|s| s.inode).collect()
    };
    // A socket without a visible holder: the kernel's own only if every process was ours to read.
    let holders = |inodes: &[u64]| -> Result<Vec<Pid>, PortState> {
        let mut pids: BTreeSet<Pid> = BTreeSet::new();
        for &inode in inodes {
            let before = pids.len();
            pids.extend(snapshot.holders(inode));
            if pids.len() == before && snapshot.holders(inode).next().is_none() {
                let sight = &snapshot.sight;
                let was_listed = !snapshot.unread.iter().any(|(pid, _)| *pid == Pid::OUTSIDE);
                let saw_all = sight.may_see_all
                    && sight.is_first_pid_namespace
                    && sockets.refused == 0
                    && was_listed;
                return Err(if saw_all {
                    PortState::KernelOwned
                } else {
                    PortState::HolderNotVisible
                });
            }
        }
        Ok(pids.into_iter().collect())
    };
    let listening = in_state(|s| s == SocketState::Listening);
    let bound = in_state(|s| s == SocketState::Bound);
    let peer = on_port.iter().find_map(|s| match s.state {
        SocketState::Connected(peer) => Some(peer),
        SocketState::Listening | SocketState::Bound | SocketState::Lingering => None,
    });
    let connected = in_state(|s| matches!(s, SocketState::Connected(_)));
    if !listening.is_empty() {
        // Who has bound the port beside a listener is about to share it.
        let all = [listening, bound].concat();
        return holders(&all).map_or_else(|state| state, PortState::Held);
    }
    if !bound.is_empty() {
        return holders(&bound).map_or_else(|state| state, PortState::BoundOnly);
    }
    let Some(peer) = peer else {
        return match (on_port.is_empty(), guard.endpoint.proto) {
            (false, _) => PortState::Lingering,
            (true, Proto::Tcp) if !sockets.sees_bound => PortState::NoListener,
            (true, Proto::Tcp | Proto::Udp) => PortState::Free,
        };
    };
    let holders: BTreeSet<Pid> =
        connected.iter().flat_map(|&inode| snapshot.holders(inode)).collect();
    let holders = holders.into_iter().collect();
    match is_ephemeral(snapshot, guard.endpoint.port) {
        Truth::Yes => PortState::Ephemeral { holders, peer },
        Truth::No => PortState::Connected { holders, peer },
        Truth::Unknown(unknown) => PortState::Unknown(unknown),
    }
}

/// What has a port on which no socket is; none where nothing has.
fn without_socket(beyond: &Beyond, endpoint: Endpoint) -> Option<PortState> {
    let detour = detour(beyond, endpoint);
    let is_its = |container: &&Publisher| {
        // Podman keeps no list of its own: without a rule, what lost its forwarder has lost its port.
        container.engine.kind == EngineKind::Docker || detour.is_some()
    };
    let mut owners = publishers(beyond, endpoint).filter(is_its);
    if let Some(owner) = owners.find(|container| !is_gone(beyond, container)) {
        return Some(PortState::Allocated(reference(owner)));
    }
    if let Some(detour) = detour {
        return Some(PortState::Detoured(Box::new(detour.clone())));
    }
    let silent = silent_engines(beyond).next().map(|(engine, why)| {
        let remedy = if why == "permission denied" {
            format!("run it as root, or let this user ask {engine}")
        } else {
            format!("see to it that {engine} answers")
        };
        let off =
            format!("'engines: {{ {}: off }}' where its containers do not matter", engine.kind);
        let fact = format!("whether {engine} has allocated it to a container");
        Unknown { fact, why, remedy: Some(format!("{remedy}; {off}")) }
    });
    let unread = match &beyond.detours {
        // Whoever lacks the right is told so once, for all ports (`gate::unseen`).
        Seen::Known(_) | Seen::Denied => None,
        Seen::Gone | Seen::Unreadable(_) => {
            known(&beyond.detours, || "whether a rule sends its packets elsewhere".to_owned()).err()
        }
    };
    silent.or(unread).map(PortState::Unknown)
}

/// The rule that takes most of a port's packets; one that takes some of them leaves the port to its server.
fn detour(beyond: &Beyond, endpoint: Endpoint) -> Option<&Detour> {
    detours(beyond, endpoint).find(|detour| detour.share != Share::Some)
}

/// Rules that take packets of this port.
pub(super) fn detours(beyond: &Beyond, endpoint: Endpoint) -> impl Iterator<Item = &Detour> {
    let all = beyond.detours.known().into_iter().flatten();
    all.filter(move |detour| detour.endpoint == endpoint)
}

/// What runs and publishes this port.
fn publishers(beyond: &Beyond, endpoint: Endpoint) -> impl Iterator<Item = &Publisher> {
    let all = beyond.publishers.values().filter_map(Seen::known).flatten();
    all.filter(move |container| {
        container.published.iter().any(|published| {
            let (port, proto) = (published.port, published.proto);
            Endpoint { port, proto, address: published.address, is_v6only: false }
                .overlaps(&endpoint)
        })
    })
}

/// Its engine says that it runs, and its main process is gone.
fn is_gone(beyond: &Beyond, container: &Publisher) -> bool {
    container.main_pid.is_some_and(|pid| beyond.gone.contains(&pid))
}

fn reference(container: &Publisher) -> ContainerRef {
    let Publisher { engine, id, name, .. } = container;
    ContainerRef { engine: *engine, id: id.clone(), name: name.clone() }
}

/// Engines that were asked in vain, and why.
fn silent_engines(beyond: &Beyond) -> impl Iterator<Item = (EngineRef, String)> {
    beyond.publishers.iter().filter_map(|(engine, seen)| {
        let unknown = known(seen, String::new).err()?;
        Some((*engine, unknown.why))
    })
}

fn of_user(engine: EngineRef) -> String {
    match engine.owner {
        0 => String::new(),
        uid => format!("as uid {uid}: "),
    }
}

/// In a few words: Docker keeps a list of its own, Podman's word is a rule.
pub fn allocated_title(container: &ContainerRef) -> &'static str {
    match container.engine.kind {
        EngineKind::Docker => "allocated in the engine only",
        EngineKind::Podman => "published by a rule alone",
    }
}

fn allocated(container: &ContainerRef, rule: Option<&Detour>) -> (String, Option<String>) {
    let ContainerRef { engine, name, .. } = container;
    let by = rule.map_or_else(String::new, |detour| format!("; {} leads there", detour.place));
    let whose = of_user(*engine);
    match engine.kind {
        EngineKind::Docker => (
            format!(
                "no socket is on it, but {engine} has allocated it to {container}, whose docker-proxy is gone, or which needs none{by}"
            ),
            Some(format!(
                "{whose}'docker restart {name}' brings a lost docker-proxy back, 'docker stop {name}' frees the port"
            )),
        ),
        EngineKind::Podman => (
            format!("no socket is on it, but its packets go to {container} of {engine}{by}"),
            Some(format!(
                "{whose}'podman stop {name}' frees the port; where its conmon is dead, 'podman rm -f {name}'"
            )),
        ),
    }
}

fn detoured(snapshot: &Snapshot, detour: &Detour) -> (String, Option<String>) {
    let Some(beyond) = &snapshot.beyond else { return (String::new(), None) };
    let to = detour.to.as_ref().map_or_else(|| "elsewhere".to_owned(), |to| format!("to {to}"));
    let packets = match detour.share {
        Share::All => "its packets",
        Share::Unclear => "its packets, or some of them,",
        Share::Some => "some of its packets",
    };
    let said = detour.comment.as_ref().map(|text| format!(" (its comment: '{text}')"));
    let said = said.unwrap_or_default();
    let rule = format!("{} sends {packets} {to}{said}", detour.place);
    let dead = publishers(beyond, detour.endpoint).find(|container| is_gone(beyond, container));
    if let Some(dead) = dead {
        let (container, whose) = (reference(dead), of_user(dead.engine));
        let sentence =
            format!("no socket is on it, but {rule}, for {container}, whose process is dead");
        let mend = format!("{whose}'{} rm -f {}' removes it", dead.engine.kind, dead.name);
        return (sentence, Some(mend));
    }
    if let Some((engine, why)) = silent_engines(beyond).next() {
        let sentence = format!(
            "no socket is on it, but {rule}; whether a container of {engine} has it is not known: {why}"
        );
        return (sentence, Some(format!("see to it that {engine} answers, and ask again")));
    }
    let rules: Vec<&RulePlace> = detours(beyond, detour.endpoint).map(|d| &d.place).collect();
    let asked: Vec<String> = beyond.publishers.keys().map(ToString::to_string).collect();
    let whose = match asked.as_slice() {
        [] => "no engine is up that could say whose it is".to_owned(),
        asked => format!("no running container of {} has the port", asked.join(" or ")),
    };
    let sentence = format!("no socket is on it, but {rule}, and {whose}");
    let commands: Option<Vec<String>> = rules.iter().map(|place| removal(place)).collect();
    let next = match commands.as_deref() {
        None | Some([]) => format!("remove {}, if nothing else needs it", detour.place),
        Some([one]) => format!("'{one}' removes it, if nothing else needs it"),
        Some(all) => format!("'{}' removes them, if nothing else needs them", all.join("; ")),
    };
    (sentence, Some(next))
}

/// The command that removes a rule; none where a name in it is not one that a shell takes as it stands.
fn removal(place: &RulePlace) -> Option<String> {
    let RulePlace { family, table, chain, number } = place;
    let is_plain = |name: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        !name.is_empty() && !name.starts_with('-') && name.chars().all(is_plain)
    };
    if !is_plain(table) || !is_plain(chain) {
        return None;
    }
    Some(match number {
        RuleNumber::Handle(handle) => {
            format!("nft delete rule {family} {table} {chain} handle {handle}")
        }
        RuleNumber::Place(nth) => {
            let tool = if *family == "ip6" { "ip6tables-legacy" } else { "iptables-legacy" };
            format!("{tool} -t {table} -D {chain} {nth}")
        }
    })
}

/// Neither ancestor of each other nor of one session.
fn are_unrelated(snapshot: &Snapshot, pids: &[Pid]) -> bool {
    let session = |pid: Pid| snapshot.processes.get(&pid).map(|p| p.session);
    let descends = |pid: Pid, from: Pid| snapshot.ancestors(pid).any(|p| p.key.pid == from);
    pids.iter().enumerate().any(|(i, &a)| {
        pids.iter()
            .skip(i + 1)
            .any(|&b| session(a) != session(b) && !descends(a, b) && !descends(b, a))
    })
}

/// How to keep the kernel from giving this port to outgoing connections (proc sysctl net.ipv4,
/// ip_local_reserved_ports): what is reserved already stays so.
pub(super) fn reserve(snapshot: &Snapshot, port: Port) -> String {
    let line = |ports: &str| {
        format!("keep the kernel off it: sysctl -w net.ipv4.ip_local_reserved_ports={ports}")
    };
    match snapshot.reserved_ports.known().map(String::as_str) {
        Some("") => line(&port.to_string()),
        Some(reserved) if is_in(reserved, port) => "the kernel keeps off it already".to_owned(),
        Some(reserved) => line(&format!("{reserved},{port}")),
        // A line that we cannot complete would take back what others reserved.
        None => format!("add {port} to what net.ipv4.ip_local_reserved_ports holds"),
    }
}

/// Whether that is done already, as far as is known.
pub(super) fn is_reserved(snapshot: &Snapshot, port: Port) -> bool {
    snapshot.reserved_ports.known().is_some_and(|reserved| is_in(reserved, port))
}

/// Whether a list such as `8080,9000-9100` has this port.
fn is_in(list: &str, port: Port) -> bool {
    list.split(',').any(|part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (low.trim().parse::<u16>(), high.trim().parse::<u16>());
        low.is_ok_and(|low| low <= port.number()) && high.is_ok_and(|high| port.number() <= high)
    })
}
