//! A model's container, from the plan to the moment when it serves: create, start, its devices, its health, its identity. Knows
//! nothing of the registry: whoever launches writes down what was made between one step and the next.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use super::{
    cards::{self, Chosen},
    guard,
    health::{self, Health, Served},
    plan::{self, BACKEND_LABEL, INSTANCE_LABEL, Launch, MODEL_LABEL, Reach, container_name},
    receipt::{Contained, Main, Receipt, boot_id},
    trouble::{Left, Trouble, how_it_ended, undone},
};
use crate::{
    act::{
        container::{self, Stopped, Target},
        interrupt::Interrupt,
    },
    backend::{BackendName, Readiness, Refusal, Spec, claims, spec},
    config::settings::Settings,
    engine::{self, Deed, Engine, Listed, Made, NoAnswer, Phase, Refused, Until},
    gate::{Gate, Gated, Wishes},
    host::Host,
    ident::{ContainerId, EngineKind, ModelName, Proto},
    judge::{
        gate::{Accepts, Answer, asks_for_bind},
        verdict::ContainerRef,
    },
    observe::processes,
    pipeline::{self, Event, Scope},
    snapshot::{Published, Seen},
};

/// A model that is to be launched, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// This host.
    pub host: &'a Host,
    /// The settings, with the model guarded by them.
    pub settings: &'a Settings,
    /// The model.
    pub name: &'a ModelName,
    /// What is wanted of it.
    pub spec: &'a Spec,
    /// Our installation.
    pub instance: &'a str,
    /// Nothing of it is waited for longer than this.
    pub until: Option<Instant>,
    /// What of its container we may look at.
    pub sight: Sight,
}

/// What of a container may be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Its devices, its main process and who holds its port.
    Whole,
    /// What its engine says of it. Whoever has the rights makes sure of the rest: [`verify`].
    Engine,
}

/// Creating and starting may take what loading a GPU's driver takes.
const ORDER_TIME: Duration = Duration::from_secs(60);
/// Between two questions to its health endpoint while it loads, at first and at last; in between a share of the time that it has
/// taken so far, so that it is known to be ready soon after it is, and its log is not filled with our questions.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(1);
const SHARE: u32 = 20;
/// For one answer of its health endpoint while it loads.
const HEALTH_TIME: Duration = Duration::from_secs(5);
/// How long one that is not asked must live to be called running.
const UNASKED_TIME: Duration = Duration::from_secs(1);
/// So often another start may have made the common volume in the very same moment.
const MOST_VOLUMES_LOST: usize = 5;
/// How many of its last lines are told.
const LOG_LINES: usize = 15;

/// What is known of a launch before anything is made.
#[derive(Debug)]
pub struct Prepared<'a> {
    order: Order<'a>,
    engine: Engine,
    launch: Launch,
    /// Devices of NVIDIA's that its container must have.
    devices: usize,
}

/// A container that was created.
#[derive(Debug)]
pub struct Created<'a> {
    prepared: Prepared<'a>,
    /// Which.
    pub id: ContainerId,
    /// What the engine has to say about it.
    pub warnings: Vec<String>,
}

/// A container that runs.
#[derive(Debug)]
pub struct Started<'a> {
    created: Created<'a>,
    /// Its main process. None where that is not to be seen, with [`Sight::Engine`] only.
    main: Option<(Main, OwnedFd)>,
}

/// The engine that a model's containers are asked of: the one that its spec names, else the one that answers.
pub fn engine_of(
    host: &Host,
    settings: &Settings,
    wanted: Option<spec::Engine>,
) -> Result<(Engine, engine::Version), NoAnswer> {
    let which = pipeline::engines(settings).which;
    let owner = rustix::process::geteuid().as_raw();
    engine::default_for(
        host,
        &which,
        owner,
        wanted.map(spec::Engine::kind),
        settings.engines.timeout,
    )
}

impl<'a> Prepared<'a> {
    /// Finds the GPUs and the engine, and lays the plan. Nothing is changed.
    pub fn new(order: Order<'a>) -> Result<Self, Trouble> {
        Self::on_engine(order, || cards(order.host, order.settings, order.spec))
    }

    /// Whose container it will be.
    pub fn kind(&self) -> EngineKind {
        self.engine.name.kind
    }

    /// The same with GPUs that were found already.
    pub fn with(order: Order<'a>, chosen: Chosen) -> Result<Self, Trouble> {
        Self::on_engine(order, || Ok(chosen))
    }

    fn on_engine(
        order: Order<'a>,
        chosen: impl FnOnce() -> Result<Chosen, Trouble>,
    ) -> Result<Self, Trouble> {
        let Order { host, settings, name, spec, instance, .. } = order;
        let (engine, version) = engine_of(host, settings, spec.engine).map_err(|why| {
            Trouble::from(why).hint("'portreeve doctor' says which engines answer")
        })?;
        let Chosen { cards, devices } = chosen()?;
        let launch = plan::container(name, instance, spec, &cards, &version)
            .map_err(|refusal: Refusal| Trouble::of(&refusal))?;
        Ok(Self { order, engine, launch, devices })
    }

    /// What is wanted of it.
    pub fn spec(&self) -> &'a Spec {
        self.order.spec
    }

    /// The containers that stand in the way of a new one: of ours, those that are to be replaced. Refused where somebody else's
    /// has its name.
    pub fn predecessors(&self) -> Result<Vec<Listed>, Trouble> {
        let all = engine::list(&self.engine, self.order.settings.engines.timeout)?;
        let is_ours = |one: &Listed| is_of(one, self.order.instance, self.order.name);
        let name = &self.launch.container;
        if let Some(other) = all.iter().find(|one| one.name == *name && !is_ours(one)) {
            return Err(not_ours(name, other, self.order.instance));
        }
        Ok(all.into_iter().filter(is_ours).collect())
    }

    /// Ends and removes those, by the ladder.
    pub fn replace(
        &self,
        all: &[Listed],
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Vec<Stopped>, Trouble> {
        let Order { settings, until, .. } = self.order;
        let grace = self.launch.reach.grace;
        let stopped = end(settings, until, &self.engine, all, grace, interrupt, say)?;
        for (one, stopped) in all.iter().zip(&stopped) {
            if !stopped.is_removed {
                let why =
                    format!("container '{}', left from before, is not gone: {stopped}", one.name);
                return Err(Trouble::new(why)
                    .hint(format!("look at it with '{} inspect'", self.engine.name.kind)));
            }
        }
        Ok(stopped)
    }

    /// Waits at the gate.
    pub fn pass_gate(
        &self,
        reaps: bool,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        let wishes = at_the_gate(self.order.settings, reaps);
        let gated = self.gate(wishes, interrupt, say)?;
        if gated.is_open() { Ok(()) } else { Err(shut(&gated)) }
    }

    fn gate(
        &self,
        wishes: Wishes,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Gated, Trouble> {
        let Order { host, settings, name, spec, .. } = self.order;
        if wishes.accepts == Accepts::Nobody {
            return keep_gate(host, settings, spec, wishes, interrupt, say);
        }
        // Where it surely runs, whatever a service of its name says.
        let mut alone = Settings { services: Vec::new(), ..settings.clone() };
        guard::guard(&mut alone, &[(name.clone(), spec.clone())]);
        keep_gate(host, &alone, spec, wishes, interrupt, say)
    }

    /// Creates the container; it does not run yet.
    pub fn create(self) -> Result<Created<'a>, Trouble> {
        let Self { launch, engine, .. } = &self;
        let body = serde_json::to_string(&launch.body);
        let body = body.map_err(|error| Trouble::new(error.to_string()))?;
        let kind = engine.name.kind;
        let create = || engine::create(engine, &launch.container, &body, ORDER_TIME);
        let mut created = create();
        // Podman lets one of two win who make their common volume at the same time, and fails the other (libpod's
        // sqlite and boltdb states, `AddVolume`): the next time it is there.
        for _ in 0..MOST_VOLUMES_LOST {
            match &created {
                Err(Refused::Failed(_, words)) if words.contains("volume already exists") => {
                    created = create();
                }
                Ok(_) | Err(_) => break,
            }
        }
        match created {
            Ok(created) => {
                Ok(Created { id: created.id, warnings: created.warnings, prepared: self })
            }
            Err(Refused::NameTaken(words)) => {
                let why = format!("somebody created a container of its name meanwhile: {words}");
                Err(Trouble::new(why))
            }
            Err(Refused::NoImage(_)) => {
                let image = &launch.body.image;
                Err(Trouble::new(format!("{kind} does not have the image '{image}'"))
                    .hint(format!("'{kind} pull {image}' first")))
            }
            Err(Refused::Failed(status, words)) => Err(Trouble::new(format!(
                "{kind} did not create its container ({status}): {words}"
            ))),
            Err(Refused::NoAnswer(why)) => Err(Trouble::unknown(format!(
                "{kind} did not say whether it created its container: {why}"
            ))),
        }
    }
}

/// Makes sure of a model's container that another process of ours started: that it is this model's, has its devices, holds its
/// port and serves what it should. What is to be written down of it. It must be up already: nothing is waited for.
pub fn verify(
    order: Order<'_>,
    chosen: Chosen,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Receipt, Trouble> {
    let prepared = Prepared::with(Order { sight: Sight::Whole, ..order }, chosen)?;
    let (name, kind) = (&prepared.launch.container, prepared.engine.name.kind);
    let all = engine::list(&prepared.engine, order.settings.engines.timeout)?;
    let is_it = |one: &Listed| one.name == *name && is_of(one, order.instance, order.name);
    let one = all.into_iter().find(is_it);
    let one = one.ok_or_else(|| Trouble::new(format!("{kind} has no container '{name}' of it")))?;
    let created = Created { id: one.id, warnings: Vec::new(), prepared };
    let main = created.checked(&created.find()?)?;
    let started = Started { created, main: Some(main) };
    // One that is not asked proves nothing by an answer.
    if started.created.prepared.launch.reach.health.is_some() {
        started.is_itself(interrupt, say)?;
    }
    Ok(started.receipt())
}

/// Which GPUs of this host it is to have.
pub fn cards(host: &Host, settings: &Settings, spec: &Spec) -> Result<Chosen, Trouble> {
    Ok(cards::find(host, pipeline::sources(settings), &spec.gpus)?)
}

fn at_the_gate(settings: &Settings, reaps: bool) -> Wishes {
    Wishes {
        timeout: settings.gate.timeout,
        settle: settings.gate.settle,
        lets_pass: false,
        reaps,
        accepts: Accepts::Nobody,
    }
}

/// Every port that it will bind and every GPU that it will use must be free.
pub fn pass_gate(
    host: &Host,
    settings: &Settings,
    spec: &Spec,
    reaps: bool,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<(), Trouble> {
    let gated = keep_gate(host, settings, spec, at_the_gate(settings, reaps), interrupt, say)?;
    if gated.is_open() { Ok(()) } else { Err(shut(&gated)) }
}

/// Where somebody is accepted, it is asked of its own port alone.
fn keep_gate(
    host: &Host,
    settings: &Settings,
    spec: &Spec,
    wishes: Wishes,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Gated, Trouble> {
    let ports = claims(spec).into_iter().map(|claim| claim.endpoint);
    let (ports, gpus) = if wishes.accepts == Accepts::Nobody {
        (ports.collect(), spec.gpus.clone())
    } else {
        (ports.take(1).collect(), Vec::new())
    };
    let scope = Scope { ports, gpus, ..Scope::default() };
    let mut tell = |event: Event<'_>| match event {
        Event::Progress(text) | Event::Warning(text) => say(text),
        Event::Convicted(_) | Event::Done(_) | Event::CameBack(_) => {}
    };
    let gate = Gate::new(host, settings, &scope, wishes, &mut tell);
    let mut gate = gate.map_err(|error| Trouble::of(&error))?;
    gate.keep(interrupt, &mut tell).map_err(|error| Trouble::of(&error))
}

/// Whether the engine has nobody who passes GPUs on: Docker without NVIDIA's hook (20.10, daemon/devices.go), an engine
/// without NVIDIA's CDI specification (pkg/cdi of tags.cncf.io/container-device-interface).
fn has_no_driver(deed: &Deed) -> bool {
    match deed {
        Deed::Failed(_, words) => {
            words.contains("could not select device driver") || words.contains("unresolvable CDI")
        }
        Deed::Done | Deed::AlreadySo | Deed::Gone | Deed::Conflict(_) | Deed::NoAnswer(_) => false,
    }
}

fn toolkit(kind: EngineKind) -> String {
    let command = match kind {
        EngineKind::Docker => "nvidia-ctk runtime configure --runtime=docker",
        EngineKind::Podman => "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    };
    format!("{kind} needs NVIDIA's Container Toolkit: '{command}'")
}

/// Whether a container is this installation's, and of this model. By its name too: an image that somebody made of it ('docker
/// commit') hands its labels on to whatever is run from that.
pub fn is_of(one: &Listed, instance: &str, name: &ModelName) -> bool {
    let label = |key: &str| one.labels.get(key).map(String::as_str);
    label(INSTANCE_LABEL) == Some(instance)
        && label(MODEL_LABEL) == Some(&name.0)
        && backend_of(one).is_some_and(|backend| one.name == container_name(name, backend))
}

/// The backend that a container of ours was made for: its model may have another by now.
pub fn backend_of(one: &Listed) -> Option<BackendName> {
    one.labels.get(BACKEND_LABEL)?.parse().ok()
}

fn not_ours(name: &str, other: &Listed, instance: &str) -> Trouble {
    match other.labels.get(INSTANCE_LABEL) {
        Some(id) if id == instance => Trouble::new(format!(
            "there is a container '{name}', and it is of another model of ours"
        )),
        Some(id) => Trouble::new(format!(
            "there is a container '{name}', and it is another portreeve installation's ({id})"
        ))
        .hint("give the model another name, or stop the other's"),
        None => {
            Trouble::new(format!("there is a container '{name}', and portreeve did not make it"))
                .hint(format!("'portreeve model clean {name}' removes it"))
        }
    }
}

/// Ends these containers of ours by the ladder, side by side, and removes them.
pub fn end(
    settings: &Settings,
    until: Option<Instant>,
    engine: &Engine,
    all: &[Listed],
    grace: Duration,
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Vec<Stopped>, Trouble> {
    let mut targets = Vec::new();
    // Half of what is left is for the rungs that follow.
    let left = until.map(|until| until.saturating_duration_since(Instant::now()) / 2);
    let grace = left.map_or(grace, |left| grace.min(left));
    let timeout = settings.engines.timeout;
    for one in all {
        let made = engine::find(engine, &one.id.0, timeout)?;
        let runs = made.as_ref().is_some_and(|made| made.state == Phase::Running);
        let main = made.and_then(|made| made.main_pid).and_then(super::receipt::key_of);
        if runs && main.is_none() {
            // The ladder asks only whom it sees to leave. Whatever comes of it, the ladder follows.
            let _: Deed =
                engine::stop(engine, &one.id, grace, settings.engines.ladder.stop_timeout);
        }
        let container =
            ContainerRef { engine: engine.name, id: one.id.clone(), name: one.name.clone() };
        targets.push(Target { container, engine: engine.clone(), main, grace, is_ours: true });
    }
    let ladder = settings.engines.ladder;
    Ok(container::stop(&targets, ladder, timeout, until, interrupt, say))
}

/// What is said of a start that a signal ended.
pub fn told_to_stop() -> Trouble {
    Trouble::new("a signal ended the start")
}

/// What a gate that stayed shut says.
fn shut(gated: &Gated) -> Trouble {
    let mut unknown = None;
    let ports =
        gated.ports.iter().map(|passage| (passage.port.endpoint.to_string(), &passage.answer));
    let gpus = gated.gpus.iter().map(|passage| (passage.gpu.label.clone(), &passage.answer));
    for (name, answer) in ports.chain(gpus) {
        match answer {
            Answer::Open(_) => {}
            Answer::Blocked(block) => {
                let next = block.by.iter().find_map(|by| by.next_step.clone());
                let trouble = Trouble::new(format!("{name} is not free: {}", block.why.sentence));
                let hint = next.or_else(|| block.why.next_step.clone());
                return hint.into_iter().fold(trouble, Trouble::hint);
            }
            Answer::Unknown(fact) => unknown = unknown.or(Some(fact)),
        }
    }
    let unknown = unknown.or(gated.cut_short.as_ref());
    let why = unknown.map_or_else(|| "the gate did not open".to_owned(), ToString::to_string);
    let hint = unknown.and_then(|unknown| unknown.remedy.clone());
    hint.into_iter().fold(Trouble::unknown(why), Trouble::hint)
}

impl<'a> Created<'a> {
    /// What is to be written down before it is started.
    pub fn receipt(&self) -> Receipt {
        let Prepared { order, engine, launch, .. } = &self.prepared;
        let engine = spec::Engine::of_kind(engine.name.kind);
        let name = launch.container.clone();
        Receipt {
            boot_id: boot_id(order.host).unwrap_or_default(),
            container: Some(Contained { engine, id: self.id.clone(), name }),
            process: None,
            unit: None,
            instance_id: order.instance.to_owned(),
        }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.prepared.launch.container
    }

    /// How it is spoken to.
    pub fn reach(&self) -> Reach {
        self.prepared.launch.reach
    }

    /// Where it is.
    pub fn place(&self) -> (Engine, ContainerId) {
        (self.prepared.engine.clone(), self.id.clone())
    }

    /// Whose it is.
    pub fn kind(&self) -> EngineKind {
        self.prepared.engine.name.kind
    }

    /// A limit that the engine took and does not keep: without the kernel's controller Docker says so in a warning and goes on
    /// (moby daemon/daemon_unix.go, `verifyPlatformContainerResources`). Never with less than was asked for.
    pub fn lost_limit(&self) -> Option<Trouble> {
        let is_lost = |words: &&String| {
            let words = words.to_lowercase();
            words.contains("discarded") || words.contains("does not support")
        };
        let words = self.warnings.iter().find(is_lost)?;
        let kind = self.prepared.engine.name.kind;
        let why = format!("{kind} would run it without a limit that was asked for: {words}");
        Some(
            Trouble::new(why)
                .hint("give this host the control group's controller, or leave the limit out"),
        )
    }

    /// Starts it, and makes sure that it has its devices.
    pub fn start(self) -> Result<Started<'a>, Box<(Self, Trouble)>> {
        match self.started() {
            Ok(main) => Ok(Started { created: self, main }),
            Err(trouble) => Err(Box::new((self, trouble))),
        }
    }

    fn started(&self) -> Result<Option<(Main, OwnedFd)>, Trouble> {
        let Prepared { order, engine, devices, .. } = &self.prepared;
        let deed = engine::start(engine, &self.id, ORDER_TIME);
        if let Some(trouble) = undone("it could not be started", &deed) {
            let is_for_gpus = *devices > 0 && trouble.hint.is_none() && has_no_driver(&deed);
            let hint = is_for_gpus.then(|| toolkit(engine.name.kind));
            return Err(hint.into_iter().fold(trouble, Trouble::hint));
        }
        let made = self.find()?;
        match order.sight {
            Sight::Whole => self.checked(&made).map(Some),
            Sight::Engine if made.state != Phase::Running => Err(self.ended(&made)),
            Sight::Engine => Ok(made.main_pid.and_then(|pid| {
                let Seen::Known(pidfd) = processes::open_pidfd(pid) else { return None };
                Some((Main::of(order.host, pid)?, pidfd))
            })),
        }
    }

    /// That it runs and has its devices; its main process.
    fn checked(&self, made: &Made) -> Result<(Main, OwnedFd), Trouble> {
        let order = &self.prepared.order;
        let Some(pid) = made.main_pid.filter(|_| made.state == Phase::Running) else {
            return Err(self.ended(made));
        };
        let Seen::Known(pidfd) = processes::open_pidfd(pid) else {
            return Err(self.how_it_ended());
        };
        let Some(main) = Main::of(order.host, pid) else { return Err(self.how_it_ended()) };
        let checked = self.check_devices(&main);
        // Of one that is gone nothing can be seen, and its end says more.
        if checked.is_err() && processes::has_ended(&pidfd) {
            return Err(self.how_it_ended());
        }
        checked?;
        Ok((main, pidfd))
    }

    /// An engine that cannot pass a GPU on may start the container without it, and the model would run on the processor.
    fn check_devices(&self, main: &Main) -> Result<(), Trouble> {
        let Prepared { order, engine, devices, .. } = &self.prepared;
        if *devices == 0 {
            return Ok(());
        }
        let dev = order.host.path(format!("proc/{}/root/dev", main.key.pid));
        let entries = fs::read_dir(&dev).map_err(|error| {
            let why = format!(
                "whether it has its GPUs could not be seen in '{}': {error}",
                dev.display()
            );
            Trouble::unknown(why).hint("run it as root, or with CAP_SYS_PTRACE")
        })?;
        let names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        cards::check_devices(names.iter().map(String::as_str), *devices).map_err(|found| {
            let kind = engine.name.kind;
            let why = format!(
                "{kind} started it with {found} of the {devices} GPUs that it was to have: it would run on the processor"
            );
            Trouble::new(why).hint(toolkit(kind))
        })
    }

    fn find(&self) -> Result<Made, Trouble> {
        let Prepared { order, engine, launch, .. } = &self.prepared;
        let found = engine::find(engine, &self.id.0, order.settings.engines.timeout)?;
        found.ok_or_else(|| {
            Trouble::new(format!("somebody removed its container '{}'", launch.container))
        })
    }

    /// Its process is gone. The kernel is quicker than the engine's books.
    fn found_ended(&self) -> Result<Made, Trouble> {
        let Prepared { order, engine, .. } = &self.prepared;
        let timeout = order.settings.engines.timeout;
        // Whatever comes of it, its books are asked.
        let _: Deed = engine::wait(engine, &self.id, Until::NotRunning, timeout);
        self.find()
    }

    fn how_it_ended(&self) -> Trouble {
        self.found_ended().map_or_else(|trouble| trouble, |made| self.ended(&made))
    }

    /// Whether it ran and has ended, by its engine's books; not so where the engine does not say.
    pub fn has_exited(&self) -> bool {
        self.find().is_ok_and(|made| made.state == Phase::Exited)
    }

    /// How its server ended, where it ran and has ended; by its engine's books.
    pub fn left(&self) -> Option<Left> {
        let made = match self.found_ended() {
            Ok(made) => made,
            Err(trouble) => return Some(Left { code: None, how: trouble.why }),
        };
        if made.state != Phase::Exited {
            return None;
        }
        let how = how_it_ended(&made);
        let how = how.strip_prefix("it ended by itself, with ").unwrap_or(&how).to_owned();
        Some(Left { code: made.exit_code.and_then(|code| u8::try_from(code).ok()), how })
    }

    /// It ended before it served.
    fn ended(&self, made: &Made) -> Trouble {
        Trouble { log: self.last_lines(), ..Trouble::new(how_it_ended(made)) }
    }

    /// The last that it wrote; nothing where the engine does not tell.
    pub fn last_lines(&self) -> Vec<String> {
        let Prepared { order, engine, .. } = &self.prepared;
        engine::logs(engine, &self.id, LOG_LINES, order.settings.engines.timeout)
            .unwrap_or_default()
    }

    /// Ends and removes it: nothing of it is left, as far as its engine can do that.
    pub fn end(
        &self,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Stopped, Trouble> {
        let Prepared { order, engine, launch, .. } = &self.prepared;
        let one = Listed {
            id: self.id.clone(),
            name: launch.container.clone(),
            labels: std::collections::BTreeMap::new(),
            state: Phase::Created,
            image: String::new(),
            networks: Vec::new(),
        };
        let (Order { settings, until, .. }, grace) = (*order, launch.reach.grace);
        let mut stopped = end(settings, until, engine, &[one], grace, interrupt, say)?;
        stopped.pop().ok_or_else(|| Trouble::unknown("its end was not seen"))
    }
}

impl<'a> Started<'a> {
    /// The same receipt, now with its main process.
    pub fn receipt(&self) -> Receipt {
        let process = self.main.as_ref().map(|(main, _)| main.clone());
        Receipt { process, ..self.created.receipt() }
    }

    /// What was created.
    pub fn created(&self) -> &Created<'a> {
        &self.created
    }

    /// The same, where it is to be taken down.
    pub fn into_created(self) -> Created<'a> {
        self.created
    }

    /// Waits until it serves, and makes sure that it is the one that does. Loading is no failure, up to the model's time limit.
    pub fn wait_until_ready(
        &self,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        let reach = &self.created.prepared.launch.reach;
        let began = Instant::now();
        loop {
            let left = reach.load_timeout.saturating_sub(began.elapsed());
            let Some(health) = health::ask(reach, HEALTH_TIME.min(left.max(FIRST_LOOK))) else {
                return self.lives_for(UNASKED_TIME, interrupt);
            };
            if health == Health::Answered(Readiness::Ready) {
                break;
            }
            if left.is_zero() {
                let limit = reach.load_timeout.as_secs();
                let why = format!(
                    "it was not ready within {limit} s; at last: {}",
                    health.while_loading()
                );
                let trouble = Trouble::new(why).hint("'--load-timeout' gives it more time");
                return Err(Trouble { log: self.created.last_lines(), ..trouble });
            }
            say(&format!(
                "loading for {} s: {}",
                began.elapsed().as_secs(),
                health.while_loading()
            ));
            let pause = (began.elapsed() / SHARE).clamp(FIRST_LOOK, LAST_LOOK);
            self.lives_for(pause.min(left), interrupt)?;
        }
        self.is_itself(interrupt, say)
    }

    /// Waits this long, or until it ends or we are told to stop: the last two are troubles.
    fn lives_for(&self, time: Duration, interrupt: &mut Interrupt) -> Result<(), Trouble> {
        // It may have come while an answer was waited for.
        if interrupt.count() > 0 || interrupt.wait_beside(self.pidfd(), time) {
            return Err(told_to_stop());
        }
        if !self.main.as_ref().is_some_and(|(_, pidfd)| processes::has_ended(pidfd)) {
            return Ok(());
        }
        Err(self.created.how_it_ended())
    }

    /// Readable once its main process has ended; none where that is not to be seen.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.main.as_ref().map(|(_, pidfd)| pidfd.as_fd())
    }

    /// Somebody answers that it is healthy: is it this container, and this model?
    pub fn is_itself(
        &self,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        match self.created.prepared.order.sight {
            Sight::Whole => self.holds_its_port(interrupt, say)?,
            Sight::Engine => self.is_forwarded_to()?,
        }
        self.serves_its_model()
    }

    /// As its engine has it: it runs, it is the one that we made, and its port is forwarded to it or it is on the host's network.
    fn is_forwarded_to(&self) -> Result<(), Trouble> {
        let Prepared { order, launch, .. } = &self.created.prepared;
        let (name, spec) = (&launch.container, order.spec);
        let made = self.created.find()?;
        if made.state != Phase::Running {
            return Err(self.created.ended(&made));
        }
        let label = |key: &str| made.labels.get(key).map(String::as_str);
        let is_ours = label(INSTANCE_LABEL) == Some(order.instance)
            && label(MODEL_LABEL) == Some(&order.name.0);
        if made.name != *name || !is_ours {
            let why = format!("its container is called '{}' now, or has other labels", made.name);
            return Err(Trouble::new(why));
        }
        let is_own = |port: &Published| {
            (port.port, port.proto, port.container_port)
                == (spec.port(), Proto::Tcp, launch.told.port)
                && port.address.is_none_or(|address| address == spec.host)
        };
        let is_there = if spec.is_on_hosts_network() {
            spec.network.as_deref() == Some(&made.network_mode)
        } else {
            made.published.iter().any(is_own)
        };
        if is_there {
            return Ok(());
        }
        let why = format!("its engine does not forward {}:{} to it", spec.host, spec.port());
        Err(Trouble::new(why))
    }

    /// Whoever listens on its port is it.
    fn holds_its_port(
        &self,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        let wishes = Wishes {
            timeout: Duration::ZERO,
            settle: Duration::ZERO,
            lets_pass: false,
            reaps: false,
            accepts: Accepts::Declared,
        };
        let gated = self.created.prepared.gate(wishes, interrupt, say)?;
        let own = gated.ports.first();
        let Some(own) = own else { return Err(shut(&gated)) };
        let endpoint = own.port.endpoint;
        match &own.answer {
            Answer::Open(_) if asks_for_bind(&own.port) => {
                let why = format!("it says that it is healthy, and nobody listens on {endpoint}");
                return Err(Trouble::new(why));
            }
            Answer::Open(_) => {}
            Answer::Blocked(block) => {
                // Only an engine that answers tells its own container from somebody else.
                self.created.find().map_err(|trouble| {
                    let why = &trouble.why;
                    let why = format!(
                        "whether it is the one who answers on {endpoint} is not known: {why}"
                    );
                    Trouble { why, ..trouble }
                })?;
                let why = format!(
                    "somebody else answers on {endpoint} in its place: {}",
                    block.why.sentence
                );
                return Err(Trouble::new(why));
            }
            Answer::Unknown(fact) => {
                let why =
                    format!("whether it is the one who answers on {endpoint} is not known: {fact}");
                let hint = fact.remedy.clone();
                return Err(hint.into_iter().fold(Trouble::unknown(why), Trouble::hint));
            }
        }
        Ok(())
    }

    fn serves_its_model(&self) -> Result<(), Trouble> {
        let Prepared { order, launch, .. } = &self.created.prepared;
        match health::served(&launch.reach, order.spec, &launch.told, HEALTH_TIME) {
            Served::Fits => Ok(()),
            Served::Other(ids) => {
                let ids = if ids.is_empty() { "nothing".to_owned() } else { ids.join(", ") };
                let why = format!("it serves {ids}, not {}", order.spec.model);
                let log = self.created.last_lines();
                Err(Trouble { log, ..Trouble::new(why) })
            }
            Served::Unsaid(why) => {
                Err(Trouble::new(format!("it does not say what it serves: {why}")))
            }
        }
    }
}
