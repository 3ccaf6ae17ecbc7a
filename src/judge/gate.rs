//! Whether a service may start: of each of its ports and GPUs whether it is open, blocked and by whom, or not known. What can be
//! bound is no proof by itself: beside a socket that is bound and silent, or one that shares its port, a bind succeeds too.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    config::settings::{RunsIn, Service, Settings},
    ident::{Endpoint, Manager, Pid},
    snapshot::{Bind, Passed, Process, Seen, Share, Snapshot},
};

use super::{
    Judgement, Terms, explain,
    gpu::{GpuState, GpuVerdict, has_enough},
    port::{self, PortState, PortVerdict},
    seconds,
    truth::Truth,
    verdict::{ContainerRef, Finding, Spare, Unknown, Verdict},
};

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

/// The judge's word on one GPU that a service is to start on.
#[derive(Debug, Clone)]
pub struct GpuPassage {
    /// What the GPU is.
    pub gpu: GpuVerdict,
    /// Whether its service may have it.
    pub answer: Answer,
    /// Its memory may still be on its way back from a process that ended.
    pub is_settling: bool,
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

/// What bears on every port and was not ours to see: without CAP_NET_ADMIN nobody is told the packet filter's rules. That
/// alone keeps no port shut ([0017](../../docs/decisions/0017-ports-without-a-socket.md)).
pub fn unseen(snapshot: &Snapshot) -> Option<Unknown> {
    let beyond = snapshot.beyond.as_ref()?;
    (beyond.detours == Seen::Denied).then(|| Unknown {
        fact: "whether a rule of the packet filter (DNAT) takes a port's packets".to_owned(),
        why: "this run lacks CAP_NET_ADMIN".to_owned(),
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

/// The same of a GPU: of its holders, of memory that nobody has and of what is not there. What settles may change.
pub fn gpu_stays(passage: &GpuPassage, verdicts: &[Verdict]) -> bool {
    match (&passage.gpu.state, &passage.answer) {
        (GpuState::Held(_), Answer::Blocked(block)) => {
            !passage.is_settling && are_settled(&block.by, verdicts)
        }
        (GpuState::Residual | GpuState::Absent, Answer::Blocked(_)) => !passage.is_settling,
        (
            GpuState::Free
            | GpuState::Held(_)
            | GpuState::Residual
            | GpuState::Absent
            | GpuState::Unknown(_),
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

/// Judges every port of a look. `accepts_ours`: who holds a port and surely is the service itself does not block it.
/// `passed` is what gates before this one let pass, one entry for a port.
pub fn judge(
    snapshot: &Snapshot,
    settings: &Settings,
    terms: &Terms,
    judgement: &Judgement,
    binds: &Binds,
    passed: &[Passed],
    accepts_ours: bool,
) -> Vec<Passage> {
    let look = Look { snapshot, settings, terms, judgement, binds, passed, accepts_ours };
    judgement
        .ports
        .iter()
        .map(|port| Passage { port: port.clone(), answer: look.answer(port) })
        .collect()
}

fn is_in_unit_of(passed: &Passed, process: &Process) -> bool {
    let path = process.cgroup.known().map(|cgroup| &cgroup.path);
    path.is_some() && path == passed.unit_path.as_ref()
}

/// What is not surely outside of containers may be in one.
fn may_be_contained(process: &Process) -> bool {
    let has_claim = process.cgroup.known().is_none_or(|cgroup| cgroup.claim.is_some());
    has_claim || process.namespace_pids.known().is_none_or(|pids| pids.len() > 1)
}

/// The rows of containers and of those who forward to them.
fn is_of_containers(verdict: &Verdict) -> bool {
    (3..=7).contains(&verdict.row.0)
}

/// Judges every GPU of a look; `settling` are those whose missing memory may still come back, by label.
pub fn judge_gpus(
    snapshot: &Snapshot,
    settings: &Settings,
    terms: &Terms,
    judgement: &Judgement,
    settling: &BTreeSet<String>,
    accepts_ours: bool,
) -> Vec<GpuPassage> {
    let (binds, passed) = (&Binds::new(), &[][..]);
    let look = Look { snapshot, settings, terms, judgement, binds, passed, accepts_ours };
    let passage = |gpu: &GpuVerdict| {
        let is_settling = settling.contains(&gpu.label);
        GpuPassage { gpu: gpu.clone(), answer: look.gpu_answer(gpu, is_settling), is_settling }
    };
    judgement.gpus.iter().map(passage).collect()
}

struct Look<'a> {
    snapshot: &'a Snapshot,
    settings: &'a Settings,
    terms: &'a Terms,
    judgement: &'a Judgement,
    binds: &'a Binds,
    passed: &'a [Passed],
    accepts_ours: bool,
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

    fn gpu_answer(&self, gpu: &GpuVerdict, is_settling: bool) -> Answer {
        let advice = |title| {
            let (sentence, next_step) = (gpu.sentence.clone(), gpu.next_step.clone());
            Advice { title, sentence, next_step }
        };
        let blocked = |title, by| Answer::Blocked(Block { by, why: advice(title) });
        match &gpu.state {
            GpuState::Free => Answer::Open(Vec::new()),
            GpuState::Held(holders) => {
                let services: Vec<&Service> =
                    gpu.services.iter().filter_map(|name| self.settings.service(name)).collect();
                let others = self.others(&services, holders);
                let unseen = gpu.may_miss.as_ref().map(|_| Unknown {
                    fact: format!("who else holds {}", gpu.label),
                    why: gpu.sentence.clone(),
                    remedy: gpu.next_step.clone(),
                });
                // Where the driver counts no memory, a holder may have all of it.
                let counted = gpu.gpu.as_ref().filter(|seen| seen.memory != Seen::Known(None));
                match (counted.map(|seen| has_enough(seen, gpu.need)), unseen) {
                    (_, None) if others.is_empty() => {
                        Answer::Open(vec![advice("held by the service itself")])
                    }
                    (_, Some(unseen)) if others.is_empty() => Answer::Unknown(unseen),
                    (Some(Ok(true)), Some(unseen)) => Answer::Unknown(unseen),
                    (Some(Ok(true)), None) => Answer::Open(vec![advice("shared")]),
                    (Some(Err(unknown)), _) => {
                        let why = format!("{}; {}", unknown.why, gpu.sentence);
                        Answer::Unknown(Unknown { why, ..unknown })
                    }
                    (Some(Ok(false)) | None, _) => blocked("held", self.blockers(None, &others)),
                }
            }
            GpuState::Residual if is_settling => blocked("settling", Vec::new()),
            GpuState::Residual => blocked("memory taken", Vec::new()),
            GpuState::Absent => blocked("no such GPU", Vec::new()),
            GpuState::Unknown(unknown) => {
                let remedy = unknown.remedy.clone().or_else(|| gpu.next_step.clone());
                Answer::Unknown(Unknown { remedy, ..unknown.clone() })
            }
        }
    }

    /// Those of the holders who are surely not one of the services itself.
    fn others(&self, services: &[&Service], holders: &[Pid]) -> Vec<Pid> {
        let is_ours = |pid: &Pid| {
            let verdict = self.verdict_on(*pid);
            let is_its =
                |v: &Verdict| self.is_in_our_place(v) || services.iter().any(|s| self.is_of(s, v));
            self.accepts_ours && verdict.is_some_and(is_its)
        };
        holders.iter().filter(|pid| !is_ours(pid)).copied().collect()
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

    /// That nothing had the port when a gate before this one let it pass, and so this process took it since. Not of the
    /// service itself, as far as that can be told; a thief is only who surely is not.
    fn since(&self, port: &PortVerdict, pid: Pid) -> Option<String> {
        let passed = self.passed.iter().find(|passed| passed.endpoint == port.endpoint)?;
        let process = self.snapshot.processes.get(&pid)?;
        let verdict = self.verdict_on(pid);
        let service = service_of(port, self.settings);
        let is_ours = |v| self.is_in_our_place(v) || service.is_some_and(|s| self.is_of(s, v));
        if verdict.is_some_and(is_ours) || is_in_unit_of(passed, process) {
            return None;
        }
        let free = format!(
            "a gate found it free {} ago",
            seconds(self.snapshot.clock.age(passed.at_ticks)?)
        );
        // An engine starts containers for the command, and is no child of it.
        let may_be_told = !may_be_contained(process) && !verdict.is_some_and(is_of_containers);
        let gate = passed.gate.pid;
        match self.is_started_by(passed, process) {
            Some(true) => None,
            Some(false) | None if may_be_told && self.is_elsewhere(port, process) => Some(format!(
                "it took the port after {free}, and does not run where the port's service does: the thief"
            )),
            Some(false) if may_be_told && passed.became_command => Some(format!(
                "it took the port after {free} for its command, pid {gate}, which did not start it: the thief"
            )),
            Some(false) if may_be_told && passed.unit_path.is_some() => Some(format!(
                "it took the port after {free} for its unit, in which it does not run: the thief"
            )),
            Some(false) | None => Some(format!("it took the port after {free}")),
        }
    }

    /// Whether the port's service is declared to run where this process, in no container, does not.
    fn is_elsewhere(&self, port: &PortVerdict, process: &Process) -> bool {
        match service_of(port, self.settings).and_then(|service| service.runs_in.as_ref()) {
            Some(RunsIn::Unit(name)) => process.cgroup.known().is_some_and(|cgroup| {
                cgroup
                    .unit
                    .as_ref()
                    .is_none_or(|unit| unit.manager != Manager::System || unit.name != *name)
            }),
            Some(RunsIn::Container(_)) => true,
            None => false,
        }
    }

    /// Whether it descends from the gate, or the command that this became; none where that cannot be told. Who loses their
    /// parent gets one of their ancestors in its place (prctl(2), `PR_SET_CHILD_SUBREAPER`). So above a descendant whose
    /// line is broken comes somebody who stood above the gate, too; under anybody else who is older than the passage there
    /// is none.
    fn is_started_by(&self, passed: &Passed, process: &Process) -> Option<bool> {
        let pid = process.key.pid;
        let line = std::iter::once(process).chain(self.snapshot.ancestors(pid));
        for above in line {
            if above.key.is_same(&passed.gate) {
                return Some(true);
            }
            if above.key.start_ticks < passed.at_ticks {
                let ancestors = passed.ancestors.as_ref()?;
                return (!ancestors.contains(&above.key.pid)).then_some(false);
            }
        }
        None
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

    /// The container in which the port's service runs by declaration, where that is accepted.
    fn is_our_container(&self, port: &PortVerdict, container: &ContainerRef) -> bool {
        let runs_in = service_of(port, self.settings).and_then(|service| service.runs_in.as_ref());
        let is_named = match runs_in {
            Some(RunsIn::Container(Some(name))) => *name == container.name,
            Some(RunsIn::Container(None) | RunsIn::Unit(_)) | None => false,
        };
        self.accepts_ours && is_named && self.is_trusted(container.engine.owner)
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

    /// Spared, and in the unit that we were started in.
    fn is_in_our_place(&self, verdict: &Verdict) -> bool {
        matches!(verdict.finding, Finding::Spare(_)) && self.is_in_our_unit(&verdict.process)
    }

    /// Spared, and beyond doubt where the service is declared to run.
    fn is_of(&self, service: &Service, verdict: &Verdict) -> bool {
        let Finding::Spare(spare) = &verdict.finding else { return false };
        match service.runs_in.as_ref() {
            Some(RunsIn::Unit(name)) => match spare {
                Spare::ManagedBy(unit) | Spare::InUnit(unit) => {
                    unit.manager == Manager::System && unit.name == *name
                }
                Spare::Protected(_)
                | Spare::LiveContainer(..)
                | Spare::Forwarder(_)
                | Spare::Session(_)
                | Spare::ParentLives(..) => false,
            },
            Some(RunsIn::Container(Some(name))) => match spare {
                Spare::LiveContainer(..) => self.is_in_container(&verdict.process, name),
                Spare::Forwarder(ContainerRef { engine, name: forwarded, .. }) => {
                    forwarded == name && self.is_trusted(engine.owner)
                }
                Spare::Protected(_)
                | Spare::ManagedBy(_)
                | Spare::InUnit(_)
                | Spare::Session(_)
                | Spare::ParentLives(..) => false,
            },
            Some(RunsIn::Container(None)) | None => false,
        }
    }

    fn ourselves(&self) -> Option<&Process> {
        self.snapshot.processes.get(self.snapshot.ourselves.first()?)
    }

    /// A login session's scope, or no unit at all, holds other people's processes as well as the service's.
    fn is_in_our_unit(&self, process: &Process) -> bool {
        let own = self.ourselves().and_then(|own| own.cgroup.known());
        let own = own.filter(|cgroup| cgroup.unit.is_some() && cgroup.session.is_none());
        own.is_some_and(|own| process.cgroup.known().is_some_and(|c| c.path == own.path))
    }

    fn is_in_container(&self, process: &Process, name: &str) -> bool {
        let claim = process.cgroup.known().and_then(|cgroup| cgroup.claim.as_ref());
        let layer = process.enclosure.as_ref().and_then(|enclosure| enclosure.layer.known());
        let mut known = self.snapshot.containers.known();
        known.any(|container| {
            let has_layer = container.upper_dir.is_some() && layer == Some(&container.upper_dir);
            let is_its = claim.map_or(has_layer, |claim| claim.id == container.id);
            is_its && container.name == name && self.is_trusted(container.engine.owner)
        })
    }

    /// Any user may give a container of theirs any name.
    fn is_trusted(&self, owner: u32) -> bool {
        let uid = self.ourselves().and_then(|own| own.uid.known().copied());
        owner == 0 || uid == Some(owner)
    }
}
