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
    launch::{self, Created, Order, Prepared, Started},
    receipt::Worker,
    reconcile,
    registry::{Record, RegistryError},
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
    ident::ModelName,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// What became of each of its containers; empty where there was none.
    pub stopped: Vec<(String, Stopped)>,
}

/// What is said of a model while it is on its way.
pub type Say<'a> = &'a (dyn Fn(&ModelName, &str) + Sync);

impl Keeper<'_> {
    fn spec(&self, name: &ModelName) -> Result<&Spec, Trouble> {
        let found = self.models.iter().find(|(known, _)| known == name);
        found.map(|(_, spec)| spec).ok_or_else(|| {
            let known = self.models.iter().map(|(known, _)| known.clone()).collect();
            Trouble::from(RegistryError::NoModel(name.clone(), known))
        })
    }

    fn order<'o>(&'o self, name: &'o ModelName, spec: &'o Spec, instance: &'o str) -> Order<'o> {
        let Self { host, settings, until, .. } = *self;
        Order { host, settings, name, spec, instance, until }
    }

    fn open(&self) -> Result<Registry, Trouble> {
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
        if !spec.is_container {
            let why =
                format!("model '{name}' runs as a process, and portreeve starts containers only");
            return Err(Trouble::new(why).hint("register it with --container"));
        }
        let mut registry = self.open()?;
        let worker = self.worker()?;
        reconcile::reconcile(self, &mut registry, Some(std::slice::from_ref(name)))?;
        match registry.begin(name, State::begin_start, "asked to start", &worker) {
            Ok(_) => {}
            Err(RegistryError::Forbidden(_, step)) if step.from == State::Running => {
                return Ok(Up::WasUp);
            }
            Err(error) => return Err(error.into()),
        }
        let instance = registry.instance_id()?;
        let order = Order { until: None, ..self.order(name, spec, &instance) };
        let way = Way { order, worker: &worker };
        match self.bring_up(&mut registry, way, reaps, interrupt, say) {
            Ok(()) => Ok(Up::Started),
            Err(trouble) => {
                match registry.settle(name, &worker, |state| Ok(state.fail()), &trouble.why) {
                    // Who stopped it meanwhile says how that went.
                    Ok(_) | Err(RegistryError::TakenOver(..)) => Err(trouble),
                    Err(error) => Err(error.into()),
                }
            }
        }
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
        let old = prepared.predecessors()?;
        prepared.replace(&old, interrupt, say)?;
        prepared.pass_gate(reaps, interrupt, say)?;
        let created = prepared.create()?;
        for warning in &created.warnings {
            registry.record(order.name, "warning", warning)?;
            say(warning);
        }
        let written = registry.put_receipt(order.name, &created.receipt());
        let created = match written {
            Ok(()) => created,
            Err(error) => return Err(clear(&created, error.into(), interrupt, say)),
        };
        let started = match created.start() {
            Ok(started) => started,
            Err(undone) => {
                let (created, trouble) = *undone;
                return Err(clear(&created, trouble, interrupt, say));
            }
        };
        let up = come_up(registry, Way { order, worker }, &started, interrupt, say);
        up.map_err(|trouble| clear(&started.into_created(), trouble, interrupt, say))
    }

    /// What another model that is up has already: known without a look at the host.
    fn check_conflicts(&self, registry: &Registry, order: Order<'_>) -> Result<(), Trouble> {
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
        let mut registry = self.open()?;
        let record = registry.get(name).ok();
        let spec = self.spec(name).ok();
        if record.is_none() && spec.is_none() {
            self.spec(name)?;
        }
        let worker = self.worker()?;
        let is_begun = match registry.begin(name, State::begin_stop, why, &worker) {
            Ok(_) => true,
            Err(RegistryError::Forbidden(..)) => false,
            Err(error) => return Err(error.into()),
        };
        let mut down = self.bring_down(&registry, name, spec, record.as_ref(), interrupt, say);
        if !is_begun && down.as_ref().is_err_and(|trouble| trouble.is_unknown) {
            // It was down already, and that nobody can be asked whether something is left makes no failure of it.
            down = Ok(Down { stopped: Vec::new() });
        }
        match &down {
            Ok(down) => {
                if is_begun {
                    let come_down = |state: State| Ok(state.come_down());
                    registry.settle(name, &worker, come_down, &down.to_string())?;
                } else if !down.stopped.is_empty() {
                    registry.record(
                        name,
                        "cleaned",
                        &format!("a container of its was left: {down}"),
                    )?;
                }
            }
            Err(trouble) => {
                if is_begun {
                    registry.settle(name, &worker, |state| Ok(state.fail()), &trouble.why)?;
                }
            }
        }
        down
    }

    fn bring_down(
        &self,
        registry: &Registry,
        name: &ModelName,
        spec: Option<&Spec>,
        record: Option<&Record>,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Down, Trouble> {
        let instance = registry.instance_id()?;
        let receipt = registry.receipt(name)?;
        let spec = spec.or_else(|| record.and_then(|record| record.spec.as_ref()));
        let Some(spec) = spec else {
            let why = "it is neither registered nor declared any more, and how it was launched is not known";
            return Err(Trouble::new(why).hint("'portreeve model clean' ends what is left of it"));
        };
        if !spec.is_container {
            return Ok(Down { stopped: Vec::new() });
        }
        let wanted = receipt.and_then(|receipt| receipt.container).map(|one| one.engine);
        let (engine, _) = launch::engine_of(self.host, self.settings, wanted.or(spec.engine))?;
        let all = engine::list(&engine, self.settings.engines.timeout)?;
        let ours: Vec<Listed> =
            all.into_iter().filter(|one| launch::is_of(one, &instance, name)).collect();
        let grace = spec.backend.backend().grace;
        let Self { settings, until, .. } = *self;
        let stopped = launch::end(settings, until, &engine, &ours, grace, interrupt, say)?;
        let names = ours.iter().map(|one| one.name.clone());
        let stopped: Vec<(String, Stopped)> = names.zip(stopped).collect();
        if let Some((container, stopped)) = stopped.iter().find(|(_, one)| !one.is_removed) {
            let kind = engine.name.kind;
            let hint = format!("'{kind} rm -f {container}'; 'portreeve model stop' tries again");
            return Err(left(&format!("container '{container}'"), stopped).hint(hint));
        }
        if !stopped.is_empty() {
            self.prove(spec, &ours)?;
        }
        Ok(Down { stopped })
    }

    /// Nothing of these containers is left on its ports. Who else may have come since is not our matter.
    pub(super) fn prove(&self, spec: &Spec, removed: &[Listed]) -> Result<(), Trouble> {
        let ports = claims(spec).into_iter().map(|claim| claim.endpoint).collect();
        let scope = Scope { services: Vec::new(), ports, gpus: Vec::new() };
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

/// A start that is on record as ours.
#[derive(Clone, Copy)]
struct Way<'a> {
    order: Order<'a>,
    worker: &'a Worker,
}

fn come_up(
    registry: &mut Registry,
    Way { order, worker }: Way<'_>,
    started: &Started<'_>,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<(), Trouble> {
    registry.put_receipt(order.name, &started.receipt())?;
    started.wait_until_ready(interrupt, say)?;
    registry.settle(order.name, worker, State::come_up, "")?;
    Ok(())
}

/// Takes down what did not come up; the trouble says what could not be taken down.
fn clear(
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
        Ok(stopped) if stopped.is_removed => return trouble,
        Ok(stopped) => stopped.to_string(),
        Err(why) => why.why,
    };
    trouble.why = format!("{}; and its container could not be removed: {left}", trouble.why);
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
        if self.stopped.is_empty() {
            return f.write_str("nothing of it ran");
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
