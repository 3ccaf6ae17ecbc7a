//! Whether a service may start: of each of its ports and GPUs whether it is open, blocked and by whom, or not known. What can be
//! bound is no proof by itself: beside a socket that is bound and silent, or one that shares its port, a bind succeeds too.

mod gpus;
mod ours;
mod thief;

use std::collections::BTreeMap;

use crate::{
    config::settings::{Service, Settings},
    ident::{Endpoint, Pid},
    snapshot::{Bind, Passed, Seen, Share, Snapshot},
};

use super::{
    Judgement, Terms, explain,
    port::{self, PortState, PortVerdict},
    truth::Truth,
    verdict::{Finding, Unknown, Verdict},
};

pub use gpus::{GpuPassage, gpu_stays, judge_gpus};

/// Whose hold on a port does not block it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepts {
    /// Nobody's.
    Nobody,
    /// Who surely is the service itself, where it is declared to run.
    Declared,
    /// The same, and who is in the unit that we were started in.
    Ours,
}

/// What binding each port came to, where it was tried.
pub type Binds = BTreeMap<Endpoint, Seen<Bind>>;

/// The judge's word on one port that a service is to start on.
#[derive(Debug, Clone)]
pub struct Passage {
    /// What the port is.
    pub port: PortVerdict,
    /// Whether its service may have it.
    pub answer: Answer,
}

/// Whether a service may have a port or a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may; what it should know.
    Open(Vec<Advice>),
    /// It may not.
    Blocked(Block),
    /// A fact is missing.
    Unknown(Unknown),
}

/// A sentence, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What is so, in a few words.
    pub title: &'static str,
    /// What is so, in a sentence.
    pub sentence: String,
    /// What to do about it.
    pub next_step: Option<String>,
}

/// What stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Who, and what to do about each; nobody where no process is to be seen.
    pub by: Vec<Blocker>,
    /// In what way.
    pub why: Advice,
}

/// A process in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Which.
    pub pid: Pid,
    /// What to do about it.
    pub next_step: Option<String>,
    /// That it took the port after a gate had found it free, in a sentence.
    pub since: Option<String>,
}

/// Whether the port's sockets leave open if it can be bound, and so a bind has to tell.
pub fn asks_for_bind(port: &PortVerdict) -> bool {
    match port.state {
        PortState::Free | PortState::NoListener | PortState::Lingering => true,
        PortState::Held(_)
        | PortState::BoundOnly(_)
        | PortState::Ephemeral { .. }
        | PortState::Connected { .. }
        | PortState::KernelOwned
        | PortState::HolderNotVisible
        | PortState::Allocated(_)
        | PortState::Detoured(_)
        | PortState::Unknown(_) => false,
    }
}

/// What bears on every port and was not ours to see: without CAP_NET_ADMIN nobody is told the packet filter's rules, and which of
/// the older tables there are is in a file of root's (/proc/net/ip_tables_names, 0440). That alone keeps no port shut ([0017](../../docs/decisions/0017-ports-without-a-socket.md)).
pub fn unseen(snapshot: &Snapshot) -> Option<Unknown> {
    let beyond = snapshot.beyond.as_ref()?;
    (beyond.detours == Seen::Denied).then(|| Unknown {
        fact: "whether a rule of the packet filter (DNAT) takes a port's packets".to_owned(),
        why: "this run lacks CAP_NET_ADMIN, or is not root and lacks CAP_DAC_READ_SEARCH"
            .to_owned(),
        remedy: Some("run it as root, or with CAP_NET_ADMIN".to_owned()),
    })
}

/// Whether that bind may set SO_REUSEADDR, should it be busy without: the service does, and closed connections are all that
/// is to be seen on the port.
pub fn may_reuse(port: &PortVerdict, settings: &Settings) -> bool {
    port.state == PortState::Lingering && sets_reuse_addr(port, settings)
}

/// Whether a port stays blocked until somebody does something: it is held by processes whose verdicts time does not change.
/// Not so what lingers or is connected, an address that is not there yet, or what is too young to be judged.
pub fn stays(passage: &Passage, verdicts: &[Verdict]) -> bool {
    match (&passage.port.state, &passage.answer) {
        (PortState::Held(_) | PortState::BoundOnly(_), Answer::Blocked(block)) => {
            are_settled(&block.by, verdicts)
        }
        (PortState::Detoured(_), Answer::Blocked(_)) => true,
        (
            PortState::Free
            | PortState::NoListener
            | PortState::Held(_)
            | PortState::BoundOnly(_)
            | PortState::Allocated(_)
            | PortState::Detoured(_)
            | PortState::Ephemeral { .. }
            | PortState::Connected { .. }
            | PortState::Lingering
            | PortState::KernelOwned
            | PortState::HolderNotVisible
            | PortState::Unknown(_),
            Answer::Open(_) | Answer::Blocked(_) | Answer::Unknown(_),
        ) => false,
    }
}

/// Whether there are such and time changes no verdict on them.
fn are_settled(blockers: &[Blocker], verdicts: &[Verdict]) -> bool {
    let is_settled = |blocker: &Blocker| {
        let verdict = verdicts.iter().find(|verdict| verdict.key().pid == blocker.pid);
        verdict.is_some_and(|verdict| match verdict.finding {
            Finding::Undecided(_) => false,
            Finding::Spare(_)
            | Finding::Orphan(_)
            | Finding::Suspect
            | Finding::Unsupervised(_)
            | Finding::Foreign => true,
        })
    };
    !blockers.is_empty() && blockers.iter().all(is_settled)
}

fn service_of<'s>(port: &PortVerdict, settings: &'s Settings) -> Option<&'s Service> {
    settings.service(port.service.as_ref()?)
}

fn sets_reuse_addr(port: &PortVerdict, settings: &Settings) -> bool {
    service_of(port, settings).is_none_or(|service| service.reuse_addr)
}

/// Judges every port of a look. `accepts`: whose hold on a port does not block it.
/// `passed` is what gates before this one let pass, one entry for a port.
pub fn judge(
    snapshot: &Snapshot,
    settings: &Settings,
    terms: &Terms,
    judgement: &Judgement,
    binds: &Binds,
    passed: &[Passed],
    accepts: Accepts,
) -> Vec<Passage> {
    let look = Look { snapshot, settings, terms, judgement, binds, passed, accepts };
    judgement
        .ports
        .iter()
        .map(|port| Passage { port: port.clone(), answer: look.answer(port) })
        .collect()
}

struct Look<'a> {
    snapshot: &'a Snapshot,
    settings: &'a Settings,
    terms: &'a Terms,
    judgement: &'a Judgement,
    binds: &'a Binds,
    passed: &'a [Passed],
    accepts: Accepts,
}

impl Look<'_> {
    fn answer(&self, port: &PortVerdict) -> Answer {
        let blocked = |title, by| {
            let (sentence, next_step) = (port.sentence.clone(), port.next_step.clone());
            Answer::Blocked(Block { by, why: Advice { title, sentence, next_step } })
        };
        match &port.state {
            PortState::Free | PortState::NoListener | PortState::Lingering => self.by_bind(port),
            PortState::Held(holders) => self.by_holders(port, "held", holders),
            PortState::BoundOnly(holders) => self.by_holders(port, "bound, not listening", holders),
            PortState::Ephemeral { holders, .. } => {
                blocked("outgoing connection", self.blockers(Some(port), holders))
            }
            PortState::Connected { holders, .. } => {
                blocked("a connection", self.blockers(Some(port), holders))
            }
            PortState::KernelOwned => blocked("held by the kernel", Vec::new()),
            PortState::Allocated(container) if self.is_our_container(port, container) => {
                Answer::Open(vec![Advice {
                    title: "held by the service itself",
                    sentence: port.sentence.clone(),
                    next_step: None,
                }])
            }
            PortState::Allocated(container) => {
                blocked(port::allocated_title(container), Vec::new())
            }
            PortState::Detoured(_) => blocked("a rule takes its packets", Vec::new()),
            PortState::HolderNotVisible => Answer::Unknown(Unknown {
                fact: format!("who holds {}", port.endpoint),
                why: port.sentence.clone(),
                remedy: port.next_step.clone().or_else(|| {
                    let as_root = || "run it as root".to_owned();
                    (!self.snapshot.sight.may_see_all).then(as_root)
                }),
            }),
            PortState::Unknown(unknown) => Answer::Unknown(unknown.clone()),
        }
    }

    fn by_holders(&self, port: &PortVerdict, title: &'static str, holders: &[Pid]) -> Answer {
        let service = service_of(port, self.settings);
        let others = self.others(service.as_slice(), holders);
        if others.is_empty() && !holders.is_empty() {
            return Answer::Open(vec![Advice {
                title: "held by the service itself",
                sentence: port.sentence.clone(),
                next_step: None,
            }]);
        }
        let why =
            Advice { title, sentence: port.sentence.clone(), next_step: port.next_step.clone() };
        Answer::Blocked(Block { by: self.blockers(Some(port), &others), why })
    }

    fn verdict_on(&self, pid: Pid) -> Option<&Verdict> {
        self.judgement.verdicts.iter().find(|verdict| verdict.key().pid == pid)
    }

    /// `port`: what they have, where it is a port.
    fn blockers(&self, port: Option<&PortVerdict>, pids: &[Pid]) -> Vec<Blocker> {
        let next = |pid: Pid| {
            let said = explain::explain(self.snapshot, self.settings, self.terms, pid);
            said.map(|explanation| explanation.next)
        };
        let since = |pid| port.and_then(|port| self.since(port, pid));
        let blocker = |&pid| Blocker { pid, next_step: next(pid), since: since(pid) };
        pids.iter().map(blocker).collect()
    }

    /// No holder is seen: only a bind tells.
    fn by_bind(&self, port: &PortVerdict) -> Answer {
        let endpoint = port.endpoint;
        let fact = || format!("whether {endpoint} can be bound");
        let unknown = |why: &str, remedy: Option<&str>| {
            let (why, remedy) = (why.to_owned(), remedy.map(str::to_owned));
            Answer::Unknown(Unknown { fact: fact(), why, remedy })
        };
        let blocked = |title, sentence: &str, next_step: Option<&str>| {
            let (sentence, next_step) = (sentence.to_owned(), next_step.map(str::to_owned));
            Answer::Blocked(Block { by: Vec::new(), why: Advice { title, sentence, next_step } })
        };
        let is_lingering = port.state == PortState::Lingering;
        let bind = match self.binds.get(&endpoint) {
            Some(Seen::Known(bind)) => *bind,
            Some(Seen::Denied) => {
                return unknown(
                    "permission denied: a port below net.ipv4.ip_unprivileged_port_start needs CAP_NET_BIND_SERVICE, \
                     and a security module may refuse any",
                    Some("run it as root, or with CAP_NET_BIND_SERVICE"),
                );
            }
            Some(Seen::Unreadable(why)) => return unknown(why, None),
            Some(Seen::Gone) | None => return unknown("it was not tried", None),
        };
        match bind {
            Bind::Bound => Answer::Open(
                self.loses_some(port).into_iter().chain(self.could_be_taken(port)).collect(),
            ),
            // A silent socket among them would not be seen, and a bind that reuses does not tell.
            Bind::BoundReusing if !self.sees_bound() => unknown(
                "closed connections linger on it, and beside them this look sees no socket that is bound and silent",
                Some("they are gone within a minute: '--timeout 70s' waits for it"),
            ),
            Bind::BoundReusing => {
                let lingering = Advice {
                    title: "lingering",
                    sentence: port.sentence.clone(),
                    next_step: port.next_step.clone(),
                };
                Answer::Open([lingering].into_iter().chain(self.could_be_taken(port)).collect())
            }
            Bind::Busy if is_lingering && !sets_reuse_addr(port, self.settings) => blocked(
                "lingering",
                "no process has it, but closed connections linger (TIME_WAIT), and its service does not set SO_REUSEADDR",
                Some(
                    "wait a minute, or have the service set SO_REUSEADDR and drop its 'reuse_addr: false'",
                ),
            ),
            // TIME_WAIT takes SO_REUSEADDR from the socket that it is left of: both must have set it.
            Bind::Busy if is_lingering => blocked(
                "lingering",
                "it cannot be bound with SO_REUSEADDR either: closed connections linger of a server that did not set it, or something is not shown",
                Some("wait a minute"),
            ),
            Bind::Busy => blocked(
                "busy",
                "it cannot be bound, and no socket is seen on it: one that is bound and silent, or that came and went",
                Some("ask again; if it stays, look for a server that is still loading"),
            ),
            Bind::NoSuchAddress => blocked(
                "no such address",
                "no interface of this host has its address",
                Some(
                    "'ip address' shows those there are; start after network-online.target, or mend 'ports:'",
                ),
            ),
            Bind::NoSuchFamily => blocked(
                "no such family",
                "this kernel has no addresses of this family",
                Some("switch IPv6 on, or mend 'ports:'"),
            ),
        }
    }

    fn sees_bound(&self) -> bool {
        self.snapshot.sockets.known().is_some_and(|sockets| sockets.sees_bound)
    }

    /// A rule takes what some senders send to it.
    fn loses_some(&self, port: &PortVerdict) -> Option<Advice> {
        let beyond = self.snapshot.beyond.as_ref()?;
        let mut detours = port::detours(beyond, port.endpoint);
        let detour = detours.find(|detour| detour.share == Share::Some)?;
        let to = detour.to.as_deref().unwrap_or("elsewhere");
        Some(Advice {
            title: "a rule takes some packets",
            sentence: format!("{} sends some of its packets to {to}", detour.place),
            next_step: None,
        })
    }

    /// Whether an outgoing connection may take it before its service does.
    fn could_be_taken(&self, port: &PortVerdict) -> Option<Advice> {
        let number = port.endpoint.port;
        let title = "could be taken";
        match port::is_ephemeral(self.snapshot, number) {
            Truth::Yes if port::is_reserved(self.snapshot, number) => None,
            Truth::Yes => Some(Advice {
                title,
                sentence: "nothing has it, but the kernel may give it to an outgoing connection before its service binds it".to_owned(),
                next_step: Some(port::reserve(self.snapshot, number)),
            }),
            Truth::No => None,
            Truth::Unknown(unknown) => {
                Some(Advice { title, sentence: unknown.to_string(), next_step: unknown.remedy })
            }
        }
    }
}
