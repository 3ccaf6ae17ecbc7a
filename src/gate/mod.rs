//! Observe → judge, again and again, until every port and GPU is open or the time is up: what stands before a service's start.
//! Nothing is bound or held on the service's behalf.

mod lock;
mod passed;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod wait;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    act::interrupt::Interrupt,
    config::settings::Settings,
    host::Host,
    ident::Endpoint,
    judge::{
        self, Also, Judgement, Terms,
        gate::{
            Accepts, Answer, Binds, GpuPassage, Passage, asks_for_bind, gpu_stays, judge_gpus,
            may_reuse, stays, unseen,
        },
        port::{PortState, PortVerdict},
        verdict::{Unknown, Verdict},
    },
    observe::{self, Ask, Reach, bind, listeners, settling::Settling, watch::Watch},
    pipeline::{self, Event, Inquiry, Orders, Reaped, Scope, ScopeError},
    snapshot::{Bind, Publishers, Seen, Snapshot, Socket},
};

use lock::{Held, Lock};
use passed::Records;
use wait::Wait;

/// How the gate is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// How long to wait for what blocks.
    pub timeout: Duration,
    /// A port is called blocked only if it has been so for this long, whatever the timeout.
    pub settle: Duration,
    /// What blocks is let pass in the end: what somebody would have to change is waited for no longer than it settles.
    pub lets_pass: bool,
    /// Ends orphans first.
    pub reaps: bool,
    /// Whose hold on a port does not block it.
    pub accepts: Accepts,
}

/// What came of it.
#[derive(Debug)]
pub struct Gated {
    /// Every port that was asked about, as the last look found it.
    pub ports: Vec<Passage>,
    /// Every GPU that was asked about.
    pub gpus: Vec<GpuPassage>,
    /// Who holds them.
    pub verdicts: Vec<Verdict>,
    /// What was ended first.
    pub reaped: Vec<Reaped>,
    /// How long it took.
    pub waited: Duration,
    /// What this run had no right to see; it keeps no port shut.
    pub unseen: Option<Unknown>,
    /// Why they were not looked at to the end.
    pub cut_short: Option<Unknown>,
}

impl Gated {
    /// What was said of each port and GPU.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        answers(&self.ports, &self.gpus)
    }

    /// Whether every port and every GPU is open.
    pub fn is_open(&self) -> bool {
        self.cut_short.is_none() && self.answers().all(|answer| matches!(answer, Answer::Open(_)))
    }

    #[cfg(test)]
    pub(crate) fn sample(ports: Vec<Passage>, verdicts: Vec<Verdict>) -> Self {
        Self {
            ports,
            gpus: Vec::new(),
            verdicts,
            reaped: Vec::new(),
            waited: Duration::from_millis(1234),
            unseen: None,
            cut_short: None,
        }
    }
}

/// A reap that brought somebody back is not tried without end.
const MOST_REAPS: usize = 3;

/// How long another gate's look, which takes milliseconds, is waited for though the time is up.
const OTHERS_LOOK: Duration = Duration::from_secs(1);

/// While a gate waits, its engines are asked again with every whole look (`wait::LOOK`), so that their answer is at hand when
/// a port is released. So old it may be at another look, and at one that a release brought about
/// ([0017](../../docs/decisions/0017-ports-without-a-socket.md)).
const ANSWER_LASTS: Duration = Duration::from_millis(900);
const ANSWER_LASTS_FOR_A_RELEASE: Duration = Duration::from_secs(2);

/// A gate that is being kept.
pub struct Gate<'a> {
    host: &'a Host,
    settings: &'a Settings,
    scope: &'a Scope,
    wishes: Wishes,
    inquiry: Inquiry<'a>,
    terms: Terms,
    lock: Option<Lock>,
    /// What gates let pass; none where it cannot be kept.
    records: Option<Records>,
    /// From the first look that found something shut.
    watch: Option<Watch>,
    /// What engines said, and when.
    said: Option<(Instant, Publishers)>,
    /// The last wait was ended by a release.
    was_released: bool,
    unseen: Option<Unknown>,
    /// No other gate looks or ends anything while this lives: from a look on until a wait, or our end.
    held: Option<Held>,
    began: Instant,
    reaps: usize,
    reaped: Vec<Reaped>,
    settling: Settling,
    /// Until then an open port may be one between an end and who is brought back for it.
    settles_at: Instant,
}

/// What one look found.
pub(super) struct Found {
    pub(super) snapshot: Snapshot,
    pub(super) ports: Vec<Passage>,
    pub(super) gpus: Vec<GpuPassage>,
    pub(super) verdicts: Vec<Verdict>,
}

impl Found {
    pub(super) fn answers(&self) -> impl Iterator<Item = &Answer> {
        answers(&self.ports, &self.gpus)
    }

    fn is_open(&self) -> bool {
        self.answers().all(|answer| matches!(answer, Answer::Open(_)))
    }

    /// Whether only somebody could open what is shut.
    fn stays(&self) -> bool {
        let is_open = |answer: &Answer| matches!(answer, Answer::Open(_));
        let ports = self.ports.iter().filter(|passage| !is_open(&passage.answer));
        let mut gpus = self.gpus.iter().filter(|passage| !is_open(&passage.answer));
        ports.into_iter().all(|port| stays(port, &self.verdicts))
            && gpus.all(|gpu| gpu_stays(gpu, &self.verdicts))
    }

    pub(super) fn is_settling(&self) -> bool {
        self.gpus.iter().any(|gpu| gpu.is_settling)
    }
}

impl<'a> Gate<'a> {
    /// Ready to look at these ports. Errors on a scope that the settings do not know.
    pub fn new(
        host: &'a Host,
        settings: &'a Settings,
        scope: &'a Scope,
        wishes: Wishes,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, ScopeError> {
        let mut inquiry = Inquiry::new(host, settings, scope)?;
        // Only holders matter here; a reap looks for portless orphans by itself.
        (inquiry.nominate, inquiry.receipts_of) = (None, None);
        inquiry.by_name = wishes.accepts != Accepts::Nobody;
        let mut terms = inquiry.terms(scope, Also::default());
        // What somebody brings back after our first look would be brought back for ever.
        terms.began_ticks = wishes.reaps.then(|| pipeline::now_ticks(host));
        let lock = match Lock::open(host) {
            Ok(lock) => Some(lock),
            Err(why) => {
                let text = format!("another gate may be at work at the same time: {why}");
                tell(Event::Warning(&text));
                None
            }
        };
        let began = Instant::now();
        let beside = lock.as_ref().map(|lock| lock.beside("passed.json"));
        Ok(Self {
            records: beside.and_then(|path| Records::of(host, path)),
            host,
            settings,
            scope,
            wishes,
            inquiry,
            terms,
            lock,
            watch: None,
            said: None,
            was_released: false,
            unseen: None,
            held: None,
            began,
            reaps: 0,
            reaped: Vec::new(),
            settling: Settling::default(),
            settles_at: began,
        })
    }

    /// Waits until all is open, or for the timeout; asked once more later, it looks at least once more.
    pub fn keep(
        &mut self,
        interrupt: &mut Interrupt,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Gated, ScopeError> {
        // Since a look that found all open, anybody may have come.
        (self.said, self.was_released) = (None, false);
        let mut over_time: Option<Instant> = None;
        loop {
            let gpu_settle = self.settings.gate.gpu_settle;
            // What settles past the timeout has its own time.
            let left = self.left().max(over_time.map(|_| gpu_settle).unwrap_or_default());
            let left = left.max(OTHERS_LOOK);
            if let Err(why) = self.take_lock(left, interrupt, tell) {
                return Ok(self.gated(None, Some(why)));
            }
            if self.wishes.reaps && self.reaps == 0 {
                self.reap(interrupt, tell)?;
            }
            let found = self.look();
            if interrupt.count() > 0 {
                return Ok(self.gated(Some(found), Some(interrupted())));
            }
            let may_reap = self.wishes.reaps && self.reaps < MOST_REAPS;
            if may_reap && found.verdicts.iter().any(|verdict| verdict.is_convicted) {
                self.reap(interrupt, tell)?;
                continue;
            }
            let unsettled = self.settles_at.saturating_duration_since(Instant::now());
            if found.is_open() && !unsettled.is_zero() {
                self.held = None;
                if interrupt.wait(unsettled) {
                    return Ok(self.gated(Some(found), Some(interrupted())));
                }
                continue;
            }
            let left = self.left_for(&found);
            // Memory that is coming back is no conflict yet, whatever the timeout; but who comes and goes on a GPU may go on so
            // for ever.
            let mut may_settle = || {
                let since = over_time.get_or_insert_with(Instant::now);
                found.is_settling() && since.elapsed() < gpu_settle
            };
            if found.is_open() || (left.is_zero() && !may_settle()) {
                return Ok(self.gated(Some(found), None));
            }
            // Made before the look on which the waiting rests, so that nothing falls between the two.
            let Some(watch) = &mut self.watch else {
                let endpoints: Vec<Endpoint> =
                    found.ports.iter().map(|p| p.port.endpoint).collect();
                self.watch = Some(Watch::new(&endpoints));
                continue;
            };
            self.held = None;
            let settle = self.wishes.settle.saturating_sub(self.began.elapsed());
            if settle.is_zero() {
                tell(Event::Progress(&waiting_for(&found, left)));
            }
            // The first progress line is due when it is settled.
            let most = if settle.is_zero() { left } else { settle.min(left) };
            match wait::for_change(self.host, watch, &found, interrupt, most) {
                Wait::Interrupted => return Ok(self.gated(Some(found), Some(interrupted()))),
                Wait::Changed => self.was_released = true,
                Wait::Over => self.was_released = false,
            }
        }
    }

    /// Writes down what is let pass now, before other gates may look: the next one is to name who takes it in between.
    pub fn record(&self, gated: &Gated, becomes_command: bool) -> Result<(), String> {
        let Some(records) = &self.records else { return Ok(()) };
        let is_free = |passage: &&Passage| {
            matches!(passage.answer, Answer::Open(_)) && asks_for_bind(&passage.port)
        };
        let free: Vec<Endpoint> =
            gated.ports.iter().filter(is_free).map(|passage| passage.port.endpoint).collect();
        if free.is_empty() {
            return Ok(());
        }
        records.add(self.host, &free, becomes_command)
    }

    /// Lets other gates look meanwhile: whoever reads our report may take their time.
    pub fn give_way(&mut self) {
        self.held = None;
    }

    /// Leaves nothing of ours to the command that is to take our place, but the lock, which its start closes.
    pub fn make_way(&self) {
        self.inquiry.rest();
    }

    fn left(&self) -> Duration {
        self.wishes.timeout.max(self.wishes.settle).saturating_sub(self.began.elapsed())
    }

    /// The same, or less where a warning would be all that comes of more.
    fn left_for(&self, found: &Found) -> Duration {
        if self.wishes.lets_pass && found.stays() {
            return self.wishes.settle.saturating_sub(self.began.elapsed());
        }
        self.left()
    }

    fn take_lock(
        &mut self,
        left: Duration,
        interrupt: &mut Interrupt,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Unknown> {
        if let (Some(lock), None) = (&self.lock, &self.held) {
            let mut say = |text: &str| tell(Event::Progress(text));
            self.held = Some(lock.take(left, interrupt, &mut say)?);
        }
        Ok(())
    }

    fn reap(
        &mut self,
        interrupt: &mut Interrupt,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), ScopeError> {
        let orders = Orders { hand_over: None, began_ticks: self.terms.began_ticks };
        let also = Also::default();
        let reaped =
            pipeline::reap(self.host, self.settings, self.scope, also, &orders, interrupt, tell)?;
        if reaped.deeds.iter().any(|deed| deed.outcome.is_gone()) {
            // The reap itself has watched for a while.
            let watched = self.settings.defaults.respawn_watch;
            self.settles_at = Instant::now() + self.wishes.settle.saturating_sub(watched);
        }
        self.reaps += 1;
        self.reaped.push(reaped);
        Ok(())
    }

    fn look(&mut self) -> Found {
        self.look_by_binding().unwrap_or_else(|| self.look_at_all())
    }

    /// The short way, where nothing listens on any port and each can be bound plainly: then nothing else is on them. The
    /// kernel's walk of its tables for what is silent, connected or lingers takes milliseconds.
    fn look_by_binding(&mut self) -> Option<Found> {
        if !self.terms.gpus.is_empty() {
            return None;
        }
        let asked = self.terms.guards.iter().filter(|guard| self.terms.is_asked_about(guard));
        let endpoints: Vec<Endpoint> = asked.map(|guard| guard.endpoint).collect();
        let mut snapshot = observe::ports(self.host, &endpoints);
        let judgement = judge::judge(&snapshot, self.settings, &self.terms);
        for port in &judgement.ports {
            match port.state {
                PortState::Free | PortState::NoListener => {}
                PortState::Held(_)
                | PortState::BoundOnly(_)
                | PortState::Ephemeral { .. }
                | PortState::Connected { .. }
                | PortState::Lingering
                | PortState::KernelOwned
                | PortState::Allocated(_)
                | PortState::Detoured(_)
                | PortState::HolderNotVisible
                | PortState::Unknown(_) => return None,
            }
        }
        self.bind_plainly(&endpoints)?;
        let asked_at = self.prepare_to_ask();
        self.inquiry.look_beyond(&mut snapshot, &endpoints);
        // An engine takes its time to answer, and somebody may have taken a port meanwhile.
        let binds = self.bind_plainly(&endpoints)?;
        let judgement = judge::judge(&snapshot, self.settings, &self.terms);
        Some(self.judged(asked_at, snapshot, judgement, &binds))
    }

    /// None where one of them cannot be bound so.
    fn bind_plainly(&self, endpoints: &[Endpoint]) -> Option<Binds> {
        let bind = |endpoint: &Endpoint| {
            let bind = bind::observe(self.host, endpoint, false);
            (bind == Seen::Known(Bind::Bound)).then_some((*endpoint, bind))
        };
        endpoints.iter().map(bind).collect()
    }

    /// As its service will. Beside a server that is bound and silent a bind that reuses succeeds, too: whether one came
    /// since the look, a new dump tells.
    fn bind(&self, port: &PortVerdict) -> Seen<Bind> {
        let endpoint = port.endpoint;
        let bind = bind::observe(self.host, &endpoint, may_reuse(port, self.settings));
        if bind != Seen::Known(Bind::BoundReusing) {
            return bind;
        }
        listeners::observe(self.host, &[endpoint], Reach::Whole).map(|sockets| {
            let is_served =
                sockets.all.iter().any(|s| listeners::is_server(s) && s.is_on(&endpoint));
            if is_served { Bind::Busy } else { Bind::BoundReusing }
        })
    }

    fn look_at_all(&mut self) -> Found {
        let asked_at = self.prepare_to_ask();
        // Somebody else may share the service's own socket.
        let reach =
            if self.wishes.accepts == Accepts::Nobody { Reach::Narrow } else { Reach::Whole };
        let (snapshot, judgement) = self.inquiry.look(&self.terms, reach);
        let asked = judgement.ports.iter().filter(|port| asks_for_bind(port));
        let binds: Binds = asked.map(|port| (port.endpoint, self.bind(port))).collect();
        self.judged(asked_at, snapshot, judgement, &binds)
    }

    fn judged(
        &mut self,
        asked_at: Instant,
        snapshot: Snapshot,
        judgement: Judgement,
        binds: &Binds,
    ) -> Found {
        let accepts = self.wishes.accepts;
        let is_held = |port: &PortVerdict| !asks_for_bind(port);
        let passed = self.records.as_ref().filter(|_| judgement.ports.iter().any(is_held));
        let passed = passed.map(Records::read).unwrap_or_default();
        let (settings, terms) = (self.settings, &self.terms);
        let ports =
            judge::gate::judge(&snapshot, settings, terms, &judgement, binds, &passed, accepts);
        self.keep_answer(asked_at, &snapshot, &ports);
        self.unseen = unseen(&snapshot);
        let settling = self.settling(&judgement);
        let (settings, terms) = (self.settings, &self.terms);
        let gpus = judge_gpus(&snapshot, settings, terms, &judgement, &settling, accepts);
        Found { snapshot, ports, gpus, verdicts: judgement.verdicts }
    }

    /// Decides whether engines are asked anew; when.
    fn prepare_to_ask(&mut self) -> Instant {
        self.inquiry.beyond = self.ask();
        Instant::now()
    }

    fn ask(&self) -> Ask {
        let lasts = if self.was_released { ANSWER_LASTS_FOR_A_RELEASE } else { ANSWER_LASTS };
        match &self.said {
            Some((at, said)) if at.elapsed() < lasts => Ask::Kept(said.clone()),
            Some(_) | None => Ask::Anew,
        }
    }

    /// Keeps what engines said, unless it shuts a port, or the next release may be a forwarder's end: its container may have
    /// come since.
    fn keep_answer(&mut self, asked_at: Instant, snapshot: &Snapshot, ports: &[Passage]) {
        let is_shut = |p: &Passage| matches!(p.port.state, PortState::Allocated(_));
        let said = snapshot.beyond.as_ref().map(|beyond| &beyond.publishers);
        self.said = match (said, &self.inquiry.beyond) {
            _ if may_forward(snapshot) || ports.iter().any(is_shut) => None,
            (Some(said), Ask::Anew) if said.values().all(|seen| seen.known().is_some()) => {
                Some((asked_at, said.clone()))
            }
            (_, Ask::Kept(_)) => self.said.take(),
            (_, Ask::No | Ask::Anew) => None,
        };
    }

    /// GPUs whose missing memory may still come back, by label.
    fn settling(&mut self, judgement: &Judgement) -> BTreeSet<String> {
        let (most, now) = (self.settings.gate.gpu_settle, Instant::now());
        let mut labels = BTreeSet::new();
        for verdict in &judgement.gpus {
            let Some(gpu) = &verdict.gpu else { continue };
            if self.settling.may_change(gpu, verdict.holders(), most, now) && verdict.is_short() {
                labels.insert(verdict.label.clone());
            }
        }
        labels
    }

    fn gated(&mut self, found: Option<Found>, cut_short: Option<Unknown>) -> Gated {
        let reaped = std::mem::take(&mut self.reaped);
        let (ports, gpus, verdicts) =
            found.map(|found| (found.ports, found.gpus, found.verdicts)).unwrap_or_default();
        let (waited, unseen) = (self.began.elapsed(), self.unseen.clone());
        Gated { ports, gpus, verdicts, reaped, waited, unseen, cut_short }
    }
}

/// Whether one of the holders may hold its port for a container; one that is not to be seen may.
fn may_forward(snapshot: &Snapshot) -> bool {
    let Some(sockets) = snapshot.sockets.known() else { return true };
    let is_held = |socket: &Socket| sockets.holdings.iter().any(|h| h.inode == socket.inode);
    let is_hidden = |socket: &Socket| listeners::is_server(socket) && !is_held(socket);
    let mut holders = sockets.holdings.iter().map(|h| snapshot.processes.get(&h.pid));
    sockets.all.iter().any(is_hidden)
        || holders.any(|holder| {
            holder.is_none_or(|p| p.exe.known().is_none() || p.forwards_for().is_some())
        })
}

fn answers<'a>(ports: &'a [Passage], gpus: &'a [GpuPassage]) -> impl Iterator<Item = &'a Answer> {
    let of_ports = ports.iter().map(|passage| &passage.answer);
    of_ports.chain(gpus.iter().map(|passage| &passage.answer))
}

fn interrupted() -> Unknown {
    Unknown {
        fact: "whether all becomes free".to_owned(),
        why: "a signal ended the waiting".to_owned(),
        remedy: None,
    }
}

fn waiting_for(found: &Found, left: Duration) -> String {
    let title = |answer: &Answer| match answer {
        Answer::Open(_) => None,
        Answer::Blocked(block) => Some(match block.by.first() {
            Some(blocker) => format!("{}, pid {}", block.why.title, blocker.pid),
            None => block.why.title.to_owned(),
        }),
        Answer::Unknown(_) => Some("unknown".to_owned()),
    };
    let ports = found.ports.iter().map(|p| (p.port.endpoint.short(), title(&p.answer)));
    let gpus = found.gpus.iter().map(|p| (p.gpu.label.clone(), title(&p.answer)));
    let shut: Vec<String> = ports
        .chain(gpus)
        .filter_map(|(name, title)| Some(format!("{name} ({})", title?)))
        .collect();
    format!("waiting for {}, {} s left", shut.join(", "), left.as_secs() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ident::Pid,
        snapshot::{Holding, SocketState, Sockets},
    };

    #[test]
    fn a_holder_that_is_not_to_be_seen_may_be_a_forwarder() {
        let endpoint: Endpoint = "127.0.0.1:8091".parse().unwrap();
        let mut snapshot = observe::ports(&Host::fixture("/nowhere"), &[endpoint]);
        assert!(may_forward(&snapshot), "the sockets are not known");
        snapshot.sockets = Seen::Known(Sockets::default());
        assert!(!may_forward(&snapshot));
        let socket = Socket {
            proto: endpoint.proto,
            address: [127, 0, 0, 1].into(),
            port: endpoint.port,
            state: SocketState::Lingering,
            inode: 7,
            cookie: Some(7),
            uid: 0,
            creator_cgroup: None,
            v6only: None,
        };
        let with = |state, holdings| {
            let all = vec![Socket { state, ..socket.clone() }];
            Seen::Known(Sockets { all, holdings, ..Sockets::default() })
        };
        snapshot.sockets = with(SocketState::Lingering, Vec::new());
        assert!(!may_forward(&snapshot), "nobody holds it");
        snapshot.sockets = with(SocketState::Listening, Vec::new());
        assert!(may_forward(&snapshot), "whoever does is hidden");
        let holding = Holding { inode: 7, pid: Pid(1), link: None };
        snapshot.sockets = with(SocketState::Listening, vec![holding]);
        assert!(may_forward(&snapshot), "it could not be read");
    }
}
