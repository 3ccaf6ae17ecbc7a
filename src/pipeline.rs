//! The product's sentence: observe → judge → act, for `scan` and `reap`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    act::{Deed, Outcome, Respawn, container, interrupt::Interrupt, respawn, signal, tally, unit},
    config::settings::{EngineUse, GpuSources, RunsIn, Settings, any_of},
    engine::Which,
    host::Host,
    ident::{ContainerId, Endpoint, EngineRef, GpuName, ModelName, Pid, ServiceName, UnitName},
    judge::{
        self, Also, Ended, Judgement, Terms,
        case::Guard,
        explain::Explanation,
        gpu::{self, GpuGuard, GpuVerdict},
        port::PortVerdict,
        verdict::{Finding, Unknown, Verdict},
    },
    observe::{
        self, Ask, Engines, Nominate, Question, Reach,
        gpus::{self, Sources, Way},
        settling::Settling,
    },
    snapshot::{Receipt, Snapshot},
};

/// What one look found: the dry-run report. Has no way to act.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Every guarded port, in the order of the settings.
    pub ports: Vec<PortVerdict>,
    /// Every guarded GPU.
    pub gpus: Vec<GpuVerdict>,
    /// Every nominated process.
    pub verdicts: Vec<Verdict>,
    /// What could not be seen beyond single verdicts, and what would help.
    pub unknowns: Vec<Unknown>,
    /// Containers of models that nothing needs, as whoever keeps the models found them; none = they were not looked for.
    pub model_containers: Option<Vec<OrphanedContainer>>,
}

/// A model's container that runs and that nothing needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrphanedContainer {
    /// What it is called.
    pub name: String,
    /// Which.
    pub id: ContainerId,
    /// Whose.
    pub engine: EngineRef,
    /// Of which model.
    pub model: Option<ModelName>,
    /// What it does, in a word.
    pub state: String,
    /// Why nothing needs it, in a sentence.
    pub why: String,
    /// The policy by which its engine starts it again by itself.
    pub restarts: Option<String>,
    /// The command that removes it.
    pub next_step: String,
}

impl From<Judgement> for Findings {
    fn from(judgement: Judgement) -> Self {
        let Judgement { ports, gpus, verdicts, unknowns } = judgement;
        Self { ports, gpus, verdicts, unknowns, model_containers: None }
    }
}

/// What a reap did.
#[derive(Debug, Clone)]
pub struct Reaped {
    /// Every process that was to be ended.
    pub deeds: Vec<Deed>,
    /// Likes of the ended that came back.
    pub respawns: Vec<Respawn>,
    /// The last look, after the deeds: the proof.
    pub after: Findings,
    /// A signal to ourselves cut the run short.
    pub was_interrupted: bool,
}

/// What happens during a reap, told as it happens.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// What is waited for, for a person who waits.
    Progress(&'a str),
    /// Something did not go as it should, and the run goes on.
    Warning(&'a str),
    /// To be ended: told of all before the first signal goes to any, so that it is on record though we be ended ourselves.
    Convicted(&'a Verdict),
    /// What became of it.
    Done(&'a Deed),
    /// The like of what was ended.
    CameBack(&'a Respawn),
}

/// What the command line narrows the question to; empty = everything in the settings.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Services by name.
    pub services: Vec<ServiceName>,
    /// Ports, guarded or not.
    pub ports: Vec<Endpoint>,
    /// GPUs, guarded or not.
    pub gpus: Vec<GpuName>,
    /// What we started; narrows nothing.
    pub receipts: Receipts,
}

/// What is written down of processes that we started: told anew for each look, so that no look rests on what another was told.
#[derive(Clone, Default)]
pub struct Receipts(Option<Arc<dyn Fn() -> Vec<Receipt> + Send + Sync>>);

impl Receipts {
    /// Who tells them.
    pub fn told_by(tell: impl Fn() -> Vec<Receipt> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    fn tell(&self) -> Vec<Receipt> {
        self.0.as_ref().map(|tell| tell()).unwrap_or_default()
    }
}

impl fmt::Debug for Receipts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Receipts(told)" } else { "Receipts(none)" })
    }
}

impl Scope {
    /// Whether nothing is named.
    pub fn is_everything(&self) -> bool {
        self.services.is_empty() && self.ports.is_empty() && self.gpus.is_empty()
    }
}

/// A scope that the settings do not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeError {
    /// No service of this name; the names that there are.
    UnknownService(ServiceName, Vec<ServiceName>),
    /// The patterns together are too large for one automaton; says why.
    Patterns(String),
}

impl fmt::Display for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownService(name, known) => {
                let known: Vec<&str> = known.iter().map(|n| n.0.as_str()).collect();
                write!(
                    f,
                    "no service '{name}' in the settings\nhint: there are {}",
                    known.join(", ")
                )
            }
            Self::Patterns(why) => write!(f, "the patterns cannot be searched for together: {why}"),
        }
    }
}

impl std::error::Error for ScopeError {}

/// A question, ready to be asked again and again.
pub(crate) struct Inquiry<'a> {
    host: &'a Host,
    settings: &'a Settings,
    guards: Vec<Guard>,
    /// None = no process is looked for by its command line.
    pub(crate) nominate: Option<Nominate>,
    declared_units: BTreeSet<UnitName>,
    pids: BTreeSet<Pid>,
    receipts: Receipts,
    /// Of which services receipts name processes to look at; empty = of all. None = of no one: they speak only of who is looked
    /// at anyway.
    pub(crate) receipts_of: Option<Vec<ServiceName>>,
    /// Whether it matters what a container is called.
    pub(crate) by_name: bool,
    /// Whether rules and engines are asked for ports that no socket shows.
    pub(crate) beyond: Ask,
    gpus: Vec<GpuGuard>,
    /// Who knows GPUs: stays loaded from look to look. None where no GPU is guarded.
    reader: Option<RefCell<gpus::Reader>>,
}

/// Looks once and reports: the dry run.
pub fn scan(
    host: &Host,
    settings: &Settings,
    scope: &Scope,
    also: Also,
) -> Result<Findings, ScopeError> {
    let inquiry = Inquiry::new(host, settings, scope)?;
    let terms = inquiry.terms(scope, also);
    let (_, judgement) = inquiry.look(&terms, Reach::Narrow);
    Ok(judgement.into())
}

/// What `explain` is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A process.
    Process(Pid),
    /// A port, guarded or not.
    Port(Endpoint),
    /// GPUs, guarded or not.
    Gpu(GpuName),
}

/// The whole chain of evidence for a port or a GPU and its holders, or for a process.
#[derive(Debug, Clone)]
pub struct Explained {
    /// The port, where one was asked about.
    pub port: Option<PortVerdict>,
    /// The GPUs, where they were asked about.
    pub gpus: Vec<GpuVerdict>,
    /// The process, or the holders.
    pub processes: Vec<Explanation>,
    /// All that was seen.
    pub snapshot: Snapshot,
    /// Names of this host's users by uid, as far as known; for display only.
    pub users: BTreeMap<u32, String>,
    /// What could not be seen beyond that.
    pub unknowns: Vec<Unknown>,
}

/// Looks once, at everything that bears on the subject.
pub fn explain(
    host: &Host,
    settings: &Settings,
    subject: &Subject,
    receipts: &Receipts,
) -> Result<Explained, ScopeError> {
    let mut scope = Scope { receipts: receipts.clone(), ..Scope::default() };
    if let Subject::Gpu(name) = subject {
        scope.gpus.push(name.clone());
    }
    // A process's verdict rests on everything that it may hold; nobody else's command line matters.
    let mut inquiry = Inquiry::new(host, settings, &scope)?;
    (inquiry.nominate, inquiry.receipts_of) = (None, None);
    match *subject {
        Subject::Gpu(_) => inquiry.guards = Inquiry::new(host, settings, &Scope::default())?.guards,
        Subject::Process(pid) => inquiry.pids = BTreeSet::from([pid]),
        Subject::Port(endpoint) => {
            scope.ports.push(endpoint);
            let named = Inquiry::new(host, settings, &scope)?.guards;
            inquiry.beyond = Ask::Anew;
            inquiry.guards.retain(|g| !named.contains(g));
            inquiry.guards.extend(named);
        }
    }
    let terms = inquiry.terms(&scope, Also::default());
    let (snapshot, judgement) = inquiry.look(&terms, Reach::Whole);
    let port = judgement.ports.into_iter().next().filter(|_| !scope.ports.is_empty());
    let pids: Vec<Pid> = match inquiry.pids.first() {
        Some(&pid) => vec![pid],
        None => judgement.verdicts.iter().map(|v| v.key().pid).collect(),
    };
    let terms = inquiry.terms(&Scope::default(), Also::default());
    let explained = pids
        .into_iter()
        .filter_map(|pid| judge::explain::explain(&snapshot, settings, &terms, pid));
    let processes = explained.collect();
    let users = observe::users::names(host);
    let gpus = judgement.gpus;
    let gpus = if scope.gpus.is_empty() { Vec::new() } else { gpus };
    Ok(Explained { port, gpus, processes, snapshot, users, unknowns: judgement.unknowns })
}

/// A look that convicts nobody new ends the reaping; this many rounds do, too.
const ROUNDS: usize = 4;
/// Between the two looks that must agree.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Between looks for a respawn, at a tenth of a millisecond each.
const RESPAWN_LOOK: Duration = Duration::from_millis(100);

/// How containers are stopped.
#[derive(Debug, Clone, Default)]
pub struct Orders {
    /// Not waited for: this command is left to a transient unit that stops them.
    pub hand_over: Option<Vec<String>>,
    /// What was started since is left alone, since somebody brings it back; none = since now.
    pub began_ticks: Option<u64>,
}

/// Ends the orphans in scope and proves that they are gone.
pub fn reap(
    host: &Host,
    settings: &Settings,
    scope: &Scope,
    also: Also,
    orders: &Orders,
    interrupt: &mut Interrupt,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Reaped, ScopeError> {
    let inquiry = Inquiry::new(host, settings, scope)?;
    let mut terms = inquiry.terms(scope, also);
    let mut deeds: Vec<Deed> = Vec::new();
    let mut shared: BTreeMap<u64, Pid> = BTreeMap::new();
    let began_ticks = orders.began_ticks.unwrap_or_else(|| now_ticks(host));
    terms.began_ticks = Some(began_ticks);
    for _ in 0..ROUNDS {
        let (_, first) = inquiry.look(&terms, Reach::Narrow);
        let looked = Instant::now();
        if !first.convicted().any(|v| !was_tried(&deeds, v)) {
            break;
        }
        tell(Event::Progress("looking a second time before anything is ended"));
        if interrupt.wait(SECOND_LOOK.saturating_sub(looked.elapsed())) {
            break;
        }
        let (snapshot, second) = inquiry.look(&terms, Reach::Whole);
        let confirmed: Vec<Verdict> = second
            .convicted()
            .filter(|v| first.confirms(v.key(), v.row) && !was_tried(&deeds, v))
            .cloned()
            .collect();
        let round_ticks = now_ticks(host);
        for verdict in &confirmed {
            tell(Event::Convicted(verdict));
        }
        let done = inquiry.end(&snapshot, confirmed, orders, interrupt, tell);
        for deed in &done {
            tell(Event::Done(deed));
        }
        let hertz = snapshot.clock.ticks_per_second;
        terms.ended.extend(done.iter().filter_map(|deed| ended(deed, round_ticks, hertz)));
        shared.extend(done.iter().flat_map(|deed| cookies(&snapshot, deed)));
        deeds.extend(done);
        if interrupt.count() > 0 {
            break;
        }
    }
    if deeds.iter().any(|d| d.outcome.is_gone()) && interrupt.count() == 0 {
        tell(Event::Progress("watching for what comes back"));
        watch(&inquiry, &deeds, interrupt);
    }
    let gone = deeds.iter().filter(|deed| deed.outcome.is_gone());
    let left: BTreeSet<&str> =
        gone.flat_map(|deed| &deed.verdict.gpus).map(|share| share.label.as_str()).collect();
    if !left.is_empty() {
        tell(Event::Progress("waiting for the GPU's memory"));
        settle(&inquiry, &terms, &left, interrupt);
    }
    let (snapshot, mut after) = inquiry.look(&terms, Reach::Whole);
    for port in &mut after.ports {
        if let Some(ended) = outlived(&snapshot, port, &shared) {
            let shared = format!("the same socket as before: pid {ended}, now ended, shared it");
            port.sentence = format!("{}; {shared}", port.sentence);
        }
    }
    let respawns = respawn::find(&deeds, &after.verdicts, &snapshot, began_ticks);
    for newcomer in &respawns {
        tell(Event::CameBack(newcomer));
    }
    Ok(Reaped { deeds, respawns, after: after.into(), was_interrupted: interrupt.count() > 0 })
}

/// When a process was gone, in ticks since boot: rather too early than too late.
fn ended(deed: &Deed, round_ticks: u64, ticks_per_second: u64) -> Option<Ended> {
    let after = match deed.outcome {
        Outcome::Terminated(after) | Outcome::Killed(after) => after,
        Outcome::Vanished
        | Outcome::Stopped(_)
        | Outcome::NotStopped(_)
        | Outcome::HandedOver(_)
        | Outcome::Replaced(_)
        | Outcome::Refused(_)
        | Outcome::Unkillable { .. }
        | Outcome::Interrupted => return None,
    };
    let ticks = u64::try_from(after.as_millis()).unwrap_or_default() * ticks_per_second / 1000;
    Some(Ended { session: deed.verdict.process.session, at_ticks: round_ticks + ticks })
}

/// The sockets that an ended process held, by the kernel's own names for them.
fn cookies<'a>(snapshot: &'a Snapshot, deed: &'a Deed) -> impl Iterator<Item = (u64, Pid)> + 'a {
    let pid = deed.verdict.key().pid;
    let sockets = snapshot.sockets.known().filter(|_| deed.outcome.is_gone());
    sockets.into_iter().flat_map(move |sockets| {
        let is_its = move |inode| sockets.holdings.iter().any(|h| h.pid == pid && h.inode == inode);
        sockets
            .all
            .iter()
            .filter(move |s| is_its(s.inode))
            .filter_map(move |s| Some((s.cookie?, pid)))
    })
}

/// Who held one of this port's present sockets and is gone: the socket lives on, somebody shares it.
fn outlived(snapshot: &Snapshot, port: &PortVerdict, ended: &BTreeMap<u64, Pid>) -> Option<Pid> {
    let sockets = &snapshot.sockets.known()?.all;
    let mut on_port = sockets.iter().filter(|s| s.is_on(&port.endpoint));
    on_port.find_map(|socket| ended.get(&socket.cookie?).copied())
}

fn was_tried(deeds: &[Deed], verdict: &Verdict) -> bool {
    deeds.iter().any(|deed| deed.verdict.key().is_same(&verdict.key()))
}

pub(crate) fn now_ticks(host: &Host) -> u64 {
    observe::clock(host).now_ticks.known().copied().unwrap_or_default()
}

/// Waits for `respawn_watch`, or until every port that was freed is taken again.
fn watch(inquiry: &Inquiry<'_>, deeds: &[Deed], interrupt: &mut Interrupt) {
    let freed: Vec<Endpoint> = deeds
        .iter()
        .filter(|d| d.outcome.is_gone())
        .flat_map(|d| d.verdict.ports.iter().copied())
        .collect();
    let end = Instant::now() + inquiry.settings.defaults.respawn_watch;
    while Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        if interrupt.wait(left.min(RESPAWN_LOOK)) {
            return;
        }
        if !freed.is_empty() && observe::are_all_taken(inquiry.host, &freed) {
            return;
        }
    }
}

/// Waits until none of these GPUs' memory is still on its way back from who was ended, whoever else may hold them.
fn settle(
    inquiry: &Inquiry<'_>,
    terms: &Terms,
    labels: &BTreeSet<&str>,
    interrupt: &mut Interrupt,
) {
    let most = inquiry.settings.gate.gpu_settle;
    let (mut settling, began) = (Settling::after_an_end(), Instant::now());
    while began.elapsed() < most {
        let (_, judgement) = inquiry.look(terms, Reach::Narrow);
        let mut may_change = false;
        for verdict in judgement.gpus.iter().filter(|gpu| labels.contains(gpu.label.as_str())) {
            let Some(gpu) = &verdict.gpu else { continue };
            let holders = verdict.holders();
            let moves = settling.may_change(gpu, holders, most, Instant::now());
            may_change |= moves && verdict.is_short();
        }
        if !may_change || interrupt.wait(RESPAWN_LOOK) {
            return;
        }
    }
}

/// Which engines the settings let us ask.
pub(crate) fn engines(settings: &Settings) -> Engines {
    let engines = &settings.engines;
    let which = Which {
        docker: engines.docker != EngineUse::Off,
        docker_socket: match &engines.docker {
            EngineUse::At(path) => Some(path.clone()),
            EngineUse::Auto | EngineUse::Off => None,
        },
        podman: engines.podman != EngineUse::Off,
    };
    Engines { which, timeout: engines.timeout, by_name: false }
}

/// Who may be asked about GPUs.
pub(crate) fn sources(settings: &Settings) -> Sources {
    let way = |source: &EngineUse| match source {
        EngineUse::Auto => Way::Auto,
        EngineUse::Off => Way::Off,
        EngineUse::At(path) => Way::At(path.clone()),
    };
    let GpuSources { nvml, nvidia_smi, timeout } = &settings.gpus;
    Sources { nvml: way(nvml), nvidia_smi: way(nvidia_smi), timeout: *timeout }
}

impl<'a> Inquiry<'a> {
    pub(crate) fn new(
        host: &'a Host,
        settings: &'a Settings,
        scope: &Scope,
    ) -> Result<Self, ScopeError> {
        for name in &scope.services {
            if settings.service(name).is_none() {
                let known = settings.services.iter().map(|s| s.name.clone()).collect();
                return Err(ScopeError::UnknownService(name.clone(), known));
            }
        }
        let is_everything = scope.is_everything();
        let in_scope = |name: &ServiceName| is_everything || scope.services.contains(name);
        // Named ports and GPUs alone are a narrow question. Named services are not: a process that matches a pattern may
        // hold the port of another service.
        let is_by_name = scope.services.is_empty() && !is_everything;
        let mut guards = Vec::new();
        for service in &settings.services {
            for &endpoint in &service.ports {
                if !is_by_name {
                    guards.push(Guard { endpoint, service: Some(service.name.clone()) });
                }
            }
        }
        // A named port is asked about as it is named: neither another address of it nor less than it.
        for &endpoint in &scope.ports {
            let owner =
                settings.services.iter().find(|s| s.ports.iter().any(|p| p.overlaps(&endpoint)));
            let guard = Guard { endpoint, service: owner.map(|s| s.name.clone()) };
            if !guards.contains(&guard) {
                guards.push(guard);
            }
        }
        let services = settings.services.iter().filter(|s| in_scope(&s.name));
        let of_services = services.flat_map(|s| &s.patterns).map(|p| &p.regex);
        let of_workers = settings.workers.iter().filter(|_| is_everything).map(|w| &w.regex);
        let patterns: Vec<_> = of_services.chain(of_workers).collect();
        let nominate = if patterns.is_empty() {
            None
        } else {
            let set = any_of(patterns.into_iter())
                .map_err(|error| ScopeError::Patterns(error.to_string()))?;
            Some(Arc::new(move |line: &[u8]| set.is_match(line)) as Nominate)
        };
        let declared_units = settings
            .services
            .iter()
            .filter_map(|s| match &s.runs_in {
                Some(RunsIn::Unit(unit)) => Some(unit.clone()),
                Some(RunsIn::Container(_)) | None => None,
            })
            .collect();
        // Which services a named GPU has, and how much they need, theirs alone tell.
        let may_share = |name: &ServiceName| in_scope(name) || !scope.gpus.is_empty();
        let mut gpus = gpu::guards(settings, may_share);
        let need = settings.gate.gpu_free;
        gpus.extend(scope.gpus.iter().map(|name| GpuGuard {
            name: name.clone(),
            service: None,
            need,
        }));
        let reader = (!gpus.is_empty()).then(|| RefCell::new(gpus::Reader::new(sources(settings))));
        Ok(Self {
            host,
            settings,
            guards,
            nominate,
            declared_units,
            pids: BTreeSet::new(),
            receipts: scope.receipts.clone(),
            receipts_of: (!is_by_name).then(|| scope.services.clone()),
            by_name: false,
            beyond: Ask::No,
            gpus,
            reader,
        })
    }

    /// Ends what looks at GPUs for us; a further look starts it anew.
    pub(crate) fn rest(&self) {
        if let Some(reader) = &self.reader {
            *reader.borrow_mut() = gpus::Reader::new(sources(self.settings));
        }
    }

    /// Ends the convicted of one look: processes by signals, unsupervised containers by their engines.
    fn end(
        &self,
        snapshot: &Snapshot,
        convicted: Vec<Verdict>,
        orders: &Orders,
        interrupt: &mut Interrupt,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Vec<Deed> {
        let is_of_container = |v: &Verdict| matches!(v.finding, Finding::Unsupervised(_));
        let (of_containers, others): (Vec<_>, Vec<_>) =
            convicted.into_iter().partition(is_of_container);
        let mut say = |text: &str| tell(Event::Progress(text));
        let mut deeds = signal::end(self.host, snapshot, others, interrupt, &mut say);
        if of_containers.is_empty() || interrupt.count() > 0 {
            let interrupted = |verdict| Deed { verdict, outcome: Outcome::Interrupted };
            deeds.extend(of_containers.into_iter().map(interrupted));
            return deeds;
        }
        if let Some(command) = &orders.hand_over {
            match unit::start(self.host, command) {
                Ok(unit) => {
                    let outcome = Outcome::HandedOver(unit);
                    let handed = |verdict| Deed { verdict, outcome: outcome.clone() };
                    deeds.extend(of_containers.into_iter().map(handed));
                    return deeds;
                }
                Err(why) => tell(Event::Warning(&format!("waiting after all: {why}"))),
            }
        }
        let mut say = |text: &str| tell(Event::Progress(text));
        let engines = container::Engines {
            which: engines(self.settings).which,
            timeout: self.settings.engines.timeout,
            ladder: self.settings.engines.ladder,
        };
        let (done, stopped) =
            container::end(self.host, snapshot, of_containers, &engines, interrupt, &mut say);
        if let Err(why) = tally::add(self.host, &stopped) {
            tell(Event::Warning(&why));
        }
        deeds.extend(done);
        deeds
    }

    pub(crate) fn terms(&self, scope: &Scope, also: Also) -> Terms {
        Terms {
            guards: self.guards.clone(),
            named_services: scope.services.clone(),
            gpus: self.gpus.clone(),
            named_ports: scope.ports.clone(),
            named_gpus: scope.gpus.clone(),
            also,
            began_ticks: None,
            ended: Vec::new(),
        }
    }

    fn question(&self, endpoints: Vec<Endpoint>, reach: Reach) -> Question {
        Question {
            endpoints,
            nominate: self.nominate.clone(),
            declared_units: self.declared_units.clone(),
            reach,
            pids: self.pids.clone(),
            receipts: Vec::new(),
            engines: Engines { by_name: self.by_name, ..engines(self.settings) },
            beyond: self.beyond.clone(),
            gpus: None,
        }
    }

    /// Adds to the sockets on these ports what may have one without a socket.
    pub(crate) fn look_beyond(&self, snapshot: &mut Snapshot, endpoints: &[Endpoint]) {
        let question = self.question(endpoints.to_vec(), Reach::Narrow);
        let sight = || observe::sight(self.host);
        snapshot.beyond = observe::beyond(self.host, &question, &snapshot.sockets, sight);
    }

    pub(crate) fn look(&self, terms: &Terms, reach: Reach) -> (Snapshot, Judgement) {
        let endpoints = self.guards.iter().map(|g| g.endpoint).collect();
        let gpus = self.reader.as_ref().map(|reader| reader.borrow_mut().look(self.host));
        let mut question = Question { gpus, ..self.question(endpoints, reach) };
        question.receipts = self.receipts.tell();
        let is_meant = |receipt: &&Receipt| {
            let is_named = |name: &ServiceName| name.0 == receipt.model.0;
            self.receipts_of.as_ref().is_some_and(|of| of.is_empty() || of.iter().any(is_named))
        };
        let meant = question.receipts.iter().filter(is_meant);
        question.pids.extend(observe::receipts::still_there(self.host, meant));
        let snapshot = observe::observe(self.host, &question);
        let judgement = judge::judge(&snapshot, self.settings, terms);
        (snapshot, judgement)
    }
}
