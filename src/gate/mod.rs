//! Observe → judge, again and again, until every port is open or the time is up: what stands before a service's start.
//! Nothing is bound or held on the service's behalf.

mod lock;
mod wait;

use std::time::{Duration, Instant};

use crate::{
    act::interrupt::Interrupt,
    config::settings::Settings,
    host::Host,
    ident::Endpoint,
    judge::{
        Also, Terms,
        gate::{Answer, Binds, Passage, asks_for_bind, judge, may_reuse, unseen},
        port::PortState,
        verdict::{Unknown, Verdict},
    },
    observe::{Ask, Reach, bind, watch::Watch},
    pipeline::{self, Event, Inquiry, Orders, Reaped, Scope, ScopeError},
    snapshot::{Publishers, Snapshot},
};

use lock::{Held, Lock};
use wait::Wait;

/// How the gate is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// How long to wait for what blocks.
    pub timeout: Duration,
    /// A port is called blocked only if it has been so for this long, whatever the timeout.
    pub settle: Duration,
    /// Ends orphans first.
    pub reaps: bool,
    /// Who holds a port and surely is the service itself does not block it.
    pub accepts_ours: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Gated {
    /// Every port that was asked about, as the last look found it.
    pub ports: Vec<Passage>,
    /// Who holds them.
    pub verdicts: Vec<Verdict>,
    /// What was ended first.
    pub reaped: Vec<Reaped>,
    /// How long it took.
    pub waited: Duration,
    /// What this run had no right to see; it keeps no port shut.
    pub unseen: Option<Unknown>,
    /// Why the ports were not looked at to the end.
    pub cut_short: Option<Unknown>,
}

impl Gated {
    /// Whether every port is open.
    pub fn is_open(&self) -> bool {
        self.cut_short.is_none()
            && self.ports.iter().all(|port| matches!(port.answer, Answer::Open(_)))
    }

    #[cfg(test)]
    pub(crate) fn sample(ports: Vec<Passage>, verdicts: Vec<Verdict>) -> Self {
        Self {
            ports,
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

/// While a gate waits, its engines are asked again with every whole look (`wait::LOOK`), so that their answer is at hand when
/// a port is released. So old it may be at another look, and at one that a release brought about
/// ([0014](../../docs/decisions/0014-ports-without-a-socket.md)).
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
        inquiry.nominate = None;
        inquiry.by_name = wishes.accepts_ours;
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
        Ok(Self {
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
            began: Instant::now(),
            reaps: 0,
            reaped: Vec::new(),
        })
    }

    /// Waits until all is open, or for the timeout; asked once more later, it looks at least once more.
    pub fn keep(
        &mut self,
        interrupt: &mut Interrupt,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<Gated, ScopeError> {
        loop {
            if let Err(why) = self.take_lock(interrupt, tell) {
                return Ok(self.gated(Vec::new(), Vec::new(), Some(why)));
            }
            if self.wishes.reaps && self.reaps == 0 {
                self.reap(interrupt, tell)?;
            }
            let (snapshot, ports, verdicts) = self.look();
            if interrupt.count() > 0 {
                return Ok(self.gated(ports, verdicts, Some(interrupted())));
            }
            let may_reap = self.wishes.reaps && self.reaps < MOST_REAPS;
            if may_reap && verdicts.iter().any(|verdict| verdict.is_convicted) {
                self.reap(interrupt, tell)?;
                continue;
            }
            let is_open = ports.iter().all(|port| matches!(port.answer, Answer::Open(_)));
            let left = self.left();
            if is_open || left.is_zero() {
                return Ok(self.gated(ports, verdicts, None));
            }
            // Made before the look on which the waiting rests, so that nothing falls between the two.
            let Some(watch) = &mut self.watch else {
                let endpoints: Vec<Endpoint> = ports.iter().map(|p| p.port.endpoint).collect();
                self.watch = Some(Watch::new(&endpoints));
                continue;
            };
            self.held = None;
            let settle = self.wishes.settle.saturating_sub(self.began.elapsed());
            if settle.is_zero() {
                tell(Event::Progress(&waiting_for(&ports, left)));
            }
            // The first progress line is due when it is settled.
            let most = if settle.is_zero() { left } else { settle.min(left) };
            match wait::for_change(self.host, watch, &snapshot, &ports, interrupt, most) {
                Wait::Interrupted => return Ok(self.gated(ports, verdicts, Some(interrupted()))),
                Wait::Changed => self.was_released = true,
                Wait::Over => self.was_released = false,
            }
        }
    }

    /// Lets other gates look meanwhile: whoever reads our report may take their time.
    pub fn give_way(&mut self) {
        self.held = None;
    }

    fn left(&self) -> Duration {
        self.wishes.timeout.max(self.wishes.settle).saturating_sub(self.began.elapsed())
    }

    fn take_lock(
        &mut self,
        interrupt: &mut Interrupt,
        tell: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Unknown> {
        let left = self.left();
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
        self.reaps += 1;
        self.reaped.push(reaped);
        Ok(())
    }

    fn look(&mut self) -> (Snapshot, Vec<Passage>, Vec<Verdict>) {
        self.inquiry.beyond = self.ask();
        let asked_at = Instant::now();
        // Somebody else may share the service's own socket.
        let reach = if self.wishes.accepts_ours { Reach::Whole } else { Reach::Narrow };
        let (snapshot, judgement) = self.inquiry.look(&self.terms, reach);
        self.unseen = unseen(&snapshot);
        let asked = judgement.ports.iter().filter(|port| asks_for_bind(port));
        let binds: Binds = asked
            .map(|port| {
                let may_reuse = may_reuse(port, self.settings);
                (port.endpoint, bind::observe(self.host, &port.endpoint, may_reuse))
            })
            .collect();
        let ours = self.wishes.accepts_ours;
        let ports = judge(&snapshot, self.settings, &self.terms, &judgement, &binds, ours);
        self.keep_answer(asked_at, &snapshot, &ports);
        (snapshot, ports, judgement.verdicts)
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
        let sockets = snapshot.sockets.known();
        let mut holders = sockets.into_iter().flat_map(|sockets| &sockets.holdings);
        let may_forward = holders.any(|holding| {
            let process = snapshot.processes.get(&holding.pid);
            process.is_none_or(|p| p.exe.known().is_none() || p.forwards_for().is_some())
        });
        let said = snapshot.beyond.as_ref().map(|beyond| &beyond.publishers);
        self.said = match (said, &self.inquiry.beyond) {
            _ if may_forward || ports.iter().any(is_shut) => None,
            (Some(said), Ask::Anew) if said.values().all(|seen| seen.known().is_some()) => {
                Some((asked_at, said.clone()))
            }
            (_, Ask::Kept(_)) => self.said.take(),
            (_, Ask::No | Ask::Anew) => None,
        };
    }

    fn gated(
        &mut self,
        ports: Vec<Passage>,
        verdicts: Vec<Verdict>,
        cut_short: Option<Unknown>,
    ) -> Gated {
        let reaped = std::mem::take(&mut self.reaped);
        let (waited, unseen) = (self.began.elapsed(), self.unseen.clone());
        Gated { ports, verdicts, reaped, waited, unseen, cut_short }
    }
}

fn interrupted() -> Unknown {
    Unknown {
        fact: "whether the ports become free".to_owned(),
        why: "a signal ended the waiting".to_owned(),
        remedy: None,
    }
}

fn waiting_for(ports: &[Passage], left: Duration) -> String {
    let shut = ports.iter().filter_map(|Passage { port, answer }| {
        let title = match answer {
            Answer::Open(_) => return None,
            Answer::Blocked(block) => match block.by.first() {
                Some(blocker) => format!("{}, pid {}", block.why.title, blocker.pid),
                None => block.why.title.to_owned(),
            },
            Answer::Unknown(_) => "unknown".to_owned(),
        };
        Some(format!("{} ({title})", port.endpoint.short()))
    });
    let shut: Vec<String> = shut.collect();
    format!("waiting for {}, {} s left", shut.join(", "), left.as_secs() + 1)
}
