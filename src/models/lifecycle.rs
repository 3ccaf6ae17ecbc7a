//! A model's way up and down, recorded step by step. Killed at any moment, it leaves a state and a receipt from which the next
//! command goes on; whatever fails, the model comes to rest with nothing of it left and the reason on record.

use std::{
    path::Path,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use super::{
    Registry, State,
    launch::{self, Created, Order, Prepared, Sight, Started},
    receipt::{Contained, Worker},
    reconcile,
    registry::RegistryError,
    service,
    trouble::Trouble,
};
use crate::{
    act::{
        container::{End, Stopped},
        interrupt::Interrupt,
    },
    backend::{Spec, claims, conflicts},
    config::settings::Settings,
    engine::{self, Listed},
    host::Host,
    ident::{EngineKind, ModelName},
    judge::{
        Also,
        verdict::{Finding, Orphan, Verdict},
    },
    pipeline::{self, Scope},
};

/// What every command about models needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Keeper<'a> {
    /// This host.
    pub host: &'a Host,
    /// The settings, with all models guarded by them.
    pub settings: &'a Settings,
    /// Where the registry is.
    pub registry: &'a Path,
    /// Every model that is registered or declared.
    pub models: &'a [(ModelName, Spec)],
    /// A stop waits no longer than this.
    pub until: Option<Instant>,
}

/// What came of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Up {
    /// It serves now.
    Started,
    /// It did already.
    WasUp,
}

/// What came of a stop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Down {
    /// What became of each of its containers; empty where there was none.
    pub stopped: Vec<(String, Stopped)>,
    /// What is on record of the end of its unit's run, where that was stopped.
    pub run: Option<String>,
}

impl Down {
    /// Nothing of it ran.
    pub fn is_nothing(&self) -> bool {
        self.stopped.is_empty() && self.run.is_none()
    }
}

/// What is said of a model while it is on its way.
pub type Say<'a> = &'a (dyn Fn(&ModelName, &str) + Sync);

impl Keeper<'_> {
    pub(super) fn spec(&self, name: &ModelName) -> Result<&Spec, Trouble> {
        let found = self.models.iter().find(|(known, _)| known == name);
        found.map(|(_, spec)| spec).ok_or_else(|| {
            let known = self.models.iter().map(|(known, _)| known.clone()).collect();
            Trouble::from(RegistryError::NoModel(name.clone(), known))
        })
    }

    pub(super) fn order<'o>(
        &'o self,
        name: &'o ModelName,
        spec: &'o Spec,
        instance: &'o str,
    ) -> Order<'o> {
        let Self { host, settings, until, .. } = *self;
        Order { host, settings, name, spec, instance, until, sight: Sight::Whole }
    }

    pub(super) fn open(&self) -> Result<Registry, Trouble> {
        Ok(Registry::open(self.registry)?)
    }

    /// Starts models side by side, each answered for in its place. `interrupts`: one for each.
    pub fn start(
        &self,
        names: &[ModelName],
        reaps: bool,
        interrupts: Vec<Interrupt>,
        say: Say<'_>,
    ) -> Vec<Result<Up, Trouble>> {
        side_by_side(names, interrupts, |name, interrupt| {
            self.start_one(name, reaps, interrupt, &mut |text| say(name, text))
        })
    }

    /// Stops models side by side.
    pub fn stop(
        &self,
        names: &[ModelName],
        why: &str,
        interrupts: Vec<Interrupt>,
        say: Say<'_>,
    ) -> Vec<Result<Down, Trouble>> {
        side_by_side(names, interrupts, |name, interrupt| {
            self.stop_one(name, why, interrupt, &mut |text| say(name, text))
        })
    }

    /// Brings one model up.
    fn start_one(
        &self,
        name: &ModelName,
        reaps: bool,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Up, Trouble> {
        let spec = self.spec(name)?;
        if let Some(unit) = service::of_model(self.host, name)? {
            return self.start_unit(name, spec, &unit, reaps, interrupt, say);
        }
        if !spec.is_container {
            let why = format!("model '{name}' runs as a process, and has no unit to run it");
            let hint = format!("'portreeve model exec {name}' keeps it in the foreground");
            return Err(Trouble::new(why).hint(hint));
        }
        let mut registry = self.open()?;
        let worker = self.worker()?;
        self.reconcile_one(&mut registry, name)?;
        match registry.begin(name, State::begin_start, "asked to start", &worker) {
            Ok(_) => {}
            Err(RegistryError::Forbidden(_, step)) if step.from == State::Running => {
                return Ok(Up::WasUp);
            }
            Err(error) => return Err(error.into()),
        }
        self.check_wanted(&mut registry, name, spec, &worker)?;
        let instance = registry.instance_id()?;
        let order = Order { until: None, ..self.order(name, spec, &instance) };
        let way = Way { order, worker: &worker };
        match self.bring_up(&mut registry, way, reaps, interrupt, say) {
            Ok(()) => Ok(Up::Started),
            Err(trouble) => Err(put_failure(&mut registry, name, &worker, trouble)),
        }
    }

    /// What is on record of it holds.
    pub(super) fn reconcile_one(
        &self,
        registry: &mut Registry,
        name: &ModelName,
    ) -> Result<(), Trouble> {
        let unseen = reconcile::reconcile(self, registry, Some(std::slice::from_ref(name)))?;
        let Some(why) = unseen.get(name) else { return Ok(()) };
        let state = registry.get(name)?.state;
        let why = format!("it is recorded as {state}, and whether it is cannot be seen: {why}");
        Err(Trouble::unknown(why).hint("'portreeve doctor' says which engines answer"))
    }

    /// That what is to be started is still what is wanted: it may have been unregistered since we read it.
    pub(super) fn check_wanted(
        &self,
        registry: &mut Registry,
        name: &ModelName,
        spec: &Spec,
        worker: &Worker,
    ) -> Result<(), Trouble> {
        if self.is_declared(name) {
            return Ok(());
        }
        let now = registry.get(name)?.spec;
        if now.as_ref() == Some(spec) {
            return Ok(());
        }
        let trouble = Trouble::new("it was unregistered or registered anew meanwhile");
        registry.settle(name, worker, |state| Ok(state.come_down()), &trouble.why)?;
        if now.is_none() {
            registry.unregister(name)?;
        }
        Err(trouble.hint("'portreeve model list' shows which there are now"))
    }

    fn is_declared(&self, name: &ModelName) -> bool {
        self.settings.models.iter().any(|(declared, _)| declared == name)
    }

    fn worker(&self) -> Result<Worker, Trouble> {
        let lost = || Trouble::unknown("this process does not find itself in /proc");
        Worker::ourselves(self.host).ok_or_else(lost)
    }

    /// From nothing to running; where that fails, back to nothing.
    fn bring_up(
        &self,
        registry: &mut Registry,
        Way { order, worker }: Way<'_>,
        reaps: bool,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        self.check_conflicts(registry, order)?;
        let prepared = Prepared::new(order)?;
        replace_old(registry, worker, order.name, &prepared, interrupt, say)?;
        prepared.pass_gate(reaps, interrupt, say)?;
        if interrupt.count() > 0 {
            return Err(launch::told_to_stop());
        }
        let way = Way { order, worker };
        let created = prepared.create()?;
        if let Err(error) = put_created(registry, way, &created, say) {
            return Err(clear(registry, way, &created, error.into(), interrupt, say));
        }
        if let Some(trouble) = created.lost_limit() {
            return Err(clear(registry, way, &created, trouble, interrupt, say));
        }
        let started = match created.start() {
            Ok(started) => started,
            Err(undone) => {
                let (created, trouble) = *undone;
                return Err(clear(registry, way, &created, trouble, interrupt, say));
            }
        };
        let up = come_up(registry, way, &started, interrupt, say);
        up.map_err(|trouble| clear(registry, way, &started.into_created(), trouble, interrupt, say))
    }

    /// What another model that is up has already: known without a look at the host.
    pub(super) fn check_conflicts(
        &self,
        registry: &Registry,
        order: Order<'_>,
    ) -> Result<(), Trouble> {
        let records = registry.all()?;
        let is_up = |name: &ModelName| records.iter().any(|r| r.name == *name && r.state.is_up());
        let others = self.models.iter().filter(|(name, _)| is_up(name));
        let others: Vec<(ModelName, &Spec)> =
            others.map(|(name, spec)| (name.clone(), spec)).collect();
        let found = conflicts(&others, order.name, order.spec);
        match found.into_iter().find(crate::backend::Conflict::is_error) {
            Some(conflict) => {
                let why = format!("{conflict}, which is up");
                Err(Trouble::new(why).hint(format!("'portreeve model stop {}'", conflict.with)))
            }
            None => Ok(()),
        }
    }

    /// Brings one model down. That nothing of it runs is success.
    fn stop_one(
        &self,
        name: &ModelName,
        why: &str,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Down, Trouble> {
        let run = self.stop_unit(name, interrupt, say)?;
        let down = self.stop_what_is_left(name, why, interrupt, say)?;
        Ok(Down { run, ..down })
    }

    fn stop_what_is_left(
        &self,
        name: &ModelName,
        why: &str,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Down, Trouble> {
        let mut registry = match Registry::open(self.registry) {
            Ok(registry) => registry,
            Err(error @ (RegistryError::Failed(..) | RegistryError::Io(..))) => {
                return Err(self.stop_unrecorded(name, &error, interrupt, say));
            }
            Err(error) => return Err(error.into()),
        };
        let record = match registry.get(name) {
            Ok(record) => Some(record),
            // It may be declared, and never have had a state.
            Err(RegistryError::NoModel(..)) => None,
            Err(error) => return Err(error.into()),
        };
        let spec = self.spec(name).ok();
        if record.is_none() && spec.is_none() {
            self.spec(name)?;
        }
        let worker = self.worker()?;
        let is_begun = match registry.begin(name, State::begin_stop, why, &worker) {
            Ok(_) => true,
            Err(RegistryError::Forbidden(..)) => false,
            Err(error @ (RegistryError::Failed(..) | RegistryError::Io(..))) => {
                return Err(self.stop_unrecorded(name, &error, interrupt, say));
            }
            Err(error) => return Err(error.into()),
        };
        let contained = registry.receipt(name)?.and_then(|receipt| receipt.container);
        // Of what failed without a receipt nothing was ever started.
        let was_failed = record.as_ref().is_some_and(|record| record.state == State::Failed);
        let was_down = !is_begun || (was_failed && contained.is_none());
        let spec = spec.or_else(|| record.as_ref().and_then(|record| record.spec.as_ref()));
        let mut down = self.bring_down(&registry, name, spec, contained, interrupt, say);
        if was_down && down.as_ref().is_err_and(|trouble| trouble.is_unknown) {
            // That nobody can be asked whether something is left makes no failure of it.
            down = Ok(Down::default());
        }
        match &down {
            Ok(down) => {
                if is_begun {
                    let come_down = |state: State| Ok(state.come_down());
                    match registry.settle(name, &worker, come_down, &down.to_string()) {
                        // Who stops it beside us says so, too.
                        Ok(_) | Err(RegistryError::TakenOver(..) | RegistryError::NoModel(..)) => {}
                        Err(error) => return Err(error.into()),
                    }
                } else if !down.stopped.is_empty() {
                    registry.record(
                        name,
                        "cleaned",
                        &format!("a container of its was left: {down}"),
                    )?;
                }
            }
            Err(trouble) if is_begun => {
                return Err(put_failure(&mut registry, name, &worker, trouble.clone()));
            }
            Err(_) => {}
        }
        down
    }

    /// A full disk or a read-only one keeps nobody from stopping a model; that it could not be put on record is the trouble. The
    /// next command that can write sees that it is down.
    fn stop_unrecorded(
        &self,
        name: &ModelName,
        error: &RegistryError,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Trouble {
        let mut stop = || -> Result<Down, Trouble> {
            let registry = Registry::look(self.registry)?;
            let registry = registry.ok_or_else(|| Trouble::of(&error))?;
            let contained = registry.receipt(name)?.and_then(|receipt| receipt.container);
            self.bring_down(&registry, name, self.spec(name).ok(), contained, interrupt, say)
        };
        let cause = Trouble::of(&error);
        match stop() {
            Ok(down) => Trouble {
                why: format!("{down}; but that could not be put on record: {}", cause.why),
                is_unknown: true,
                ..cause
            },
            Err(trouble) => trouble,
        }
    }

    pub(super) fn bring_down(
        &self,
        registry: &Registry,
        name: &ModelName,
        spec: Option<&Spec>,
        contained: Option<Contained>,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Down, Trouble> {
        let instance = registry.instance_id()?;
        // What was started tells before what is wanted by now.
        let is_container = contained.is_some() || spec.is_none_or(|spec| spec.is_container);
        if !is_container {
            return Ok(Down::default());
        }
        let wanted = contained.map(|one| one.engine).or_else(|| spec.and_then(|spec| spec.engine));
        let (engine, _) = launch::engine_of(self.host, self.settings, wanted)?;
        let all = engine::list(&engine, self.settings.engines.timeout)?;
        let ours: Vec<Listed> =
            all.into_iter().filter(|one| launch::is_of(one, &instance, name)).collect();
        let backends = ours.iter().filter_map(launch::backend_of);
        let grace = backends.map(|one| one.backend().grace).max().unwrap_or_default();
        let Self { settings, until, .. } = *self;
        let stopped = launch::end(settings, until, &engine, &ours, grace, interrupt, say)?;
        let names = ours.iter().map(|one| one.name.clone());
        let stopped: Vec<(String, Stopped)> = names.zip(stopped).collect();
        if let Some((container, stopped)) = stopped.iter().find(|(_, one)| !one.is_removed) {
            return Err(left_of(container, stopped, engine.name.kind, "'portreeve model stop'"));
        }
        if let Some(spec) = spec.filter(|_| !stopped.is_empty()) {
            self.prove(spec, &ours)?;
        }
        Ok(Down { stopped, run: None })
    }

    /// Nothing of these containers is left on its ports. Who else may have come since is not our matter.
    pub(super) fn prove(&self, spec: &Spec, removed: &[Listed]) -> Result<(), Trouble> {
        let ports = claims(spec).into_iter().map(|claim| claim.endpoint).collect();
        let scope = Scope { ports, ..Scope::default() };
        let found = pipeline::scan(self.host, self.settings, &scope, Also::default());
        let found = found.map_err(|error| Trouble::of(&error))?;
        let is_left = |verdict: &&Verdict| match &verdict.finding {
            Finding::Orphan(Orphan::LeftBehind(of)) | Finding::Unsupervised(of) => {
                removed.iter().any(|one| one.id == of.id)
            }
            Finding::Orphan(_)
            | Finding::Spare(_)
            | Finding::Suspect
            | Finding::Foreign
            | Finding::Undecided(_) => false,
        };
        match found.verdicts.iter().find(is_left) {
            Some(verdict) => {
                let pid = verdict.key().pid;
                let why = format!(
                    "its container is removed, and pid {pid} outlived it: {}",
                    verdict.reason
                );
                Err(Trouble::new(why).hint("'portreeve reap' ends it"))
            }
            None => Ok(()),
        }
    }
}

/// Ends what is left of an earlier run, and forgets its receipt.
pub(super) fn replace_old(
    registry: &mut Registry,
    worker: &Worker,
    name: &ModelName,
    prepared: &Prepared<'_>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<(), Trouble> {
    let old = prepared.predecessors()?;
    prepared.replace(&old, interrupt, say)?;
    let contained = registry.receipt(name)?.and_then(|receipt| receipt.container);
    if contained.is_some_and(|contained| old.iter().any(|one| one.id == contained.id)) {
        registry.drop_receipt(name, worker)?;
    }
    Ok(())
}

/// A start that is on record as ours.
#[derive(Clone, Copy)]
struct Way<'a> {
    order: Order<'a>,
    worker: &'a Worker,
}

/// What was made, and what its engine has to say about it.
fn put_created(
    registry: &mut Registry,
    Way { order, worker }: Way<'_>,
    created: &Created<'_>,
    say: &mut dyn FnMut(&str),
) -> Result<(), RegistryError> {
    registry.put_receipt(order.name, worker, &created.receipt())?;
    for warning in &created.warnings {
        registry.record(order.name, "warning", warning)?;
        say(warning);
    }
    Ok(())
}

/// Puts a failure on record, and tells where that was not possible.
pub(super) fn put_failure(
    registry: &mut Registry,
    name: &ModelName,
    worker: &Worker,
    mut trouble: Trouble,
) -> Trouble {
    match registry.settle(name, worker, |state| Ok(state.fail()), &trouble.why) {
        Ok(_) | Err(RegistryError::NoModel(..)) => {}
        // What befell it since was the other's doing, who says how that went.
        Err(error @ RegistryError::TakenOver(..)) => {
            return Trouble { log: trouble.log, ..Trouble::from(error) };
        }
        Err(error) => {
            let error = Trouble::from(error);
            trouble.why = format!("{}; and that is not on record: {}", trouble.why, error.why);
            trouble.hint = trouble.hint.or(error.hint);
        }
    }
    trouble
}

fn come_up(
    registry: &mut Registry,
    Way { order, worker }: Way<'_>,
    started: &Started<'_>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<(), Trouble> {
    registry.put_receipt(order.name, worker, &started.receipt())?;
    started.wait_until_ready(interrupt, say)?;
    registry.settle(order.name, worker, State::come_up, "")?;
    Ok(())
}

/// Takes down what did not come up; the trouble says what could not be taken down.
fn clear(
    registry: &mut Registry,
    Way { order, worker }: Way<'_>,
    created: &Created<'_>,
    mut trouble: Trouble,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Trouble {
    if trouble.log.is_empty() {
        trouble.log = created.last_lines();
    }
    say("taking it down again");
    let left = match created.end(interrupt, say) {
        Ok(stopped) if stopped.is_removed => {
            // Kept, it would be found to speak of nothing.
            drop(registry.drop_receipt(order.name, worker));
            return trouble;
        }
        Ok(stopped) => left_of(created.name(), &stopped, created.kind(), "'portreeve model stop'"),
        Err(why) => why.hint("'portreeve model stop' tries again"),
    };
    trouble.why = format!("{}; and its container could not be removed: {}", trouble.why, left.why);
    trouble.hint = left.hint;
    trouble
}

/// Does the same to each, each on a thread of its own with an interrupt of its own, answered for in its place.
pub(super) fn side_by_side<I: Sync, T: Send>(
    all: &[I],
    interrupts: Vec<Interrupt>,
    run: impl Fn(&I, &mut Interrupt) -> Result<T, Trouble> + Sync,
) -> Vec<Result<T, Trouble>> {
    let lost = || Err(Trouble::unknown("its thread ended without a word"));
    let results: Vec<Mutex<Option<Result<T, Trouble>>>> =
        all.iter().map(|_| Mutex::new(None)).collect();
    thread::scope(|scope| {
        for ((one, mut interrupt), result) in all.iter().zip(interrupts).zip(&results) {
            let run = &run;
            scope.spawn(move || {
                let done = run(one, &mut interrupt);
                if let Ok(mut place) = result.lock() {
                    *place = Some(done);
                }
            });
        }
    });
    let taken = results.into_iter().map(|result| result.into_inner().ok().flatten());
    taken.map(|result| result.unwrap_or_else(lost)).collect()
}

/// What was not removed; `again`: the command that tries again.
fn left_of(container: &str, stopped: &Stopped, kind: EngineKind, again: &str) -> Trouble {
    let hint = format!("'{kind} rm -f {container}'; {again} tries again");
    left(&format!("container '{container}'"), stopped).hint(hint)
}

/// Why this container is not removed.
pub(super) fn left(whom: &str, stopped: &Stopped) -> Trouble {
    Trouble::new(match &stopped.end {
        End::LeftAlone(why) => format!("{whom} was left alone: {why}"),
        End::Interrupted => format!("{whom} was not waited for any longer: its end was not seen"),
        End::StillRuns => format!("{whom} still runs: {stopped}"),
        End::AlreadyStopped | End::Graceful | End::Forced => {
            format!("{whom} is down, and not removed: {stopped}")
        }
    })
}

impl std::fmt::Display for Down {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.run {
            Some(run) if self.stopped.is_empty() => return f.write_str(run),
            None if self.stopped.is_empty() => return f.write_str("nothing of it ran"),
            Some(_) | None => {}
        }
        for (n, (_, stopped)) in self.stopped.iter().enumerate() {
            let how = match stopped.end {
                End::AlreadyStopped => "its container did not run any more".to_owned(),
                End::Graceful => format!("it left within its grace period, after {}", seconds(stopped.took)),
                End::Forced => "it did not leave within its grace period, and portreeve had it killed (SIGKILL, exit code 137)".to_owned(),
                End::StillRuns | End::LeftAlone(_) | End::Interrupted => stopped.to_string(),
            };
            write!(f, "{}{how}", if n == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
