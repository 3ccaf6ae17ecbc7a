//! `portreeve model`: the stack's models. Which there are, what is wanted of each, what happened to it.

use std::{
    io::Write,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCandidates;

use crate::{
    backend::{
        self, BackendName, Quantization, Spec,
        spec::{self, Engine, Watch},
    },
    config::{self, settings::Settings},
    host::Host,
    ident::{GpuName, ModelName, Port},
    models::{
        Registry, State, guard,
        handover::Handover,
        lifecycle::Keeper,
        receipt::Receipt,
        registry::{self, RegistryError},
        service,
        unit_file::{self, Written},
    },
    report::{Style, exit, models},
};

use super::{ConfigFile, Failure, complete};

mod exec;
mod clean;
mod look;
mod run;
mod step;
mod unit;

/// What `model` does.
#[derive(Debug, Subcommand)]
pub(super) enum ModelVerb {
    /// Add a model to the registry; starts nothing
    Register {
        /// Its name: letters, digits, '.', '_' and '-'
        #[arg(value_parser = model_name)]
        name: ModelName,
        #[command(flatten)]
        wanted: Box<Wanted>,
        /// Write no unit for it, also where systemd runs
        #[arg(long)]
        no_unit: bool,
    },
    /// Take a model out of the registry
    Unregister {
        /// Its name
        #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        name: ModelName,
    },
    /// Start models side by side, each on free ports and GPUs; wait until they serve
    Start {
        #[command(flatten)]
        which: run::Which,
        /// End orphans that hold its ports and GPUs first, as 'reap' does
        #[arg(long)]
        reap: bool,
    },
    /// Stop models side by side, by the ladder: SIGTERM, grace period, SIGKILL, removal
    Stop {
        #[command(flatten)]
        which: run::Which,
        /// For all of them together, such as 2m (default: the longest grace period and a minute)
        #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration)]
        timeout: Option<Duration>,
    },
    /// Stop models, then start them
    Restart {
        #[command(flatten)]
        which: run::Which,
    },
    /// Start models at each boot from now on, by their units
    Enable {
        /// Their names
        #[arg(required = true, value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        names: Vec<ModelName>,
    },
    /// Start models at boot no longer; what runs goes on
    Disable {
        /// Their names
        #[arg(required = true, value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        names: Vec<ModelName>,
    },
    /// Say what models are doing, by their engines and their health endpoints
    Status {
        /// Only these
        #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        names: Vec<ModelName>,
        #[command(flatten)]
        form: Form,
    },
    /// Ask whether a model is healthy
    Health {
        /// Its name
        #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        name: ModelName,
        /// Ask again and again
        #[arg(long)]
        watch: bool,
        /// Between two questions
        #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration, default_value = "30s")]
        interval: Duration,
        #[command(flatten)]
        form: Form,
    },
    /// Show what a model wrote: its unit's journal, or its container's log
    Logs {
        /// Its name
        #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        name: ModelName,
        /// Go on with what it writes from now on
        #[arg(long, short = 'f')]
        follow: bool,
        /// So many of its last lines
        #[arg(long, short = 'n', value_name = "N", default_value_t = 100)]
        lines: usize,
    },
    /// Keep a model in the foreground: the main process of its unit
    #[command(after_help = EXEC_EXIT_CODES)]
    Exec {
        /// Its name
        #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        name: ModelName,
        /// Instead of its backend's own command; not of a container
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// A command of a model's unit, around its main process
    #[command(hide = true)]
    Step {
        /// Which
        step: step::Step,
        /// Its name
        #[arg(value_parser = model_name)]
        name: ModelName,
    },
    /// List the models
    List {
        /// As the registry has them, without asking their engines
        #[arg(long)]
        as_recorded: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Find containers that are left over of models, and remove them
    Clean {
        #[command(flatten)]
        wish: clean::Wish,
        #[command(flatten)]
        form: Form,
    },
    /// Show what is wanted of a model
    Show {
        /// Its name
        #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        name: ModelName,
        /// Print its systemd unit, and nothing else
        #[arg(long, conflicts_with = "json")]
        unit: bool,
        /// As it is for a user's manager (default: where another than root asks)
        #[arg(long, requires = "unit")]
        user: bool,
        /// As it is for a system that is only being built: of its manager, by the settings of its /etc/portreeve
        #[arg(long, requires = "unit", conflicts_with = "user")]
        offline: bool,
        #[command(flatten)]
        form: Form,
    },
    /// Show what happened, the newest last
    Events {
        /// Of this model only
        #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
        name: Option<ModelName>,
        /// So many at the most
        #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
        lines: usize,
        #[command(flatten)]
        form: Form,
    },
}

/// For whom it is shown.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Form {
    /// Write JSON: docs/schema/models-v1.json
    #[arg(long)]
    json: bool,
}

const EXEC_EXIT_CODES: &str = "Exit codes:
  0   told to stop, and down
  69  could not tell whether its ports and GPUs are free, before it was started
  70  it did not come up, or was unhealthy too often: taken down; or it could not be taken down
  75  its ports or GPUs are not free, before it was started
Else its server's own; 128 + N where signal N ended it";

/// What is wanted of a model.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// Its server: vllm, llamacpp, ollama, tgi or sglang
    #[arg(long, add = ArgValueCandidates::new(complete::backends))]
    backend: BackendName,
    /// Its weights: a name that the backend knows, or a path (in a container: below --models-dir)
    #[arg(long = "path", visible_alias = "model", value_name = "MODEL")]
    model: String,
    /// Run it in a container
    #[arg(long)]
    container: bool,
    /// As a process: run this program instead of the backend's own, such as /opt/vllm/bin/vllm
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// As a process in a unit of the system: run as this user (default: one of its own)
    #[arg(long, value_name = "USER")]
    run_as: Option<String>,
    /// The port of this host that it serves (default: the backend's)
    #[arg(long, value_parser = port)]
    port: Option<Port>,
    /// The address that it serves
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// GPUs: numbers as nvidia-smi shows them, UUIDs, PCI addresses, or all
    #[arg(long, value_name = "GPU,…", value_delimiter = ',')]
    gpus: Vec<GpuName>,
    /// Memory, such as 32G
    #[arg(long, value_parser = spec::parse_bytes)]
    memory: Option<u64>,
    /// Processors, such as 4.0
    #[arg(long, value_parser = spec::parse_processors)]
    cpu: Option<u32>,
    /// Processes and threads
    #[arg(long)]
    pids: Option<u32>,
    /// The longest context, in tokens
    #[arg(long)]
    max_model_len: Option<u32>,
    /// Over how many GPUs it is spread
    #[arg(long)]
    tensor_parallel: Option<u32>,
    /// How its weights are quantised: awq or gptq
    #[arg(long)]
    quantization: Option<Quantization>,
    /// Another argument for its server; may be repeated
    #[arg(long = "extra-args", value_name = "ARGUMENT", allow_hyphen_values = true)]
    extra_args: Vec<String>,
    /// Another image than the backend's
    #[arg(long)]
    image: Option<String>,
    /// This host's folder with the weights, read-only in the container
    #[arg(long, value_name = "FOLDER")]
    models_dir: Option<PathBuf>,
    /// The stack's network
    #[arg(long)]
    network: Option<String>,
    /// docker or podman (default: Docker where it answers, else Podman)
    #[arg(long)]
    engine: Option<Engine>,
    /// Do not ask whether it is healthy
    #[arg(long)]
    no_health_check: bool,
    /// Between two questions about its health once it serves
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration, default_value = "30s")]
    health_interval: Duration,
    /// For one answer
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration, default_value = "10s")]
    health_timeout: Duration,
    /// So many failures in a row, and it is ended
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    health_failures: u32,
    /// The first question comes so long after it was ready
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration, default_value = "60s")]
    health_delay: Duration,
    /// How long a start may load, such as 10m
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration)]
    load_timeout: Option<Duration>,
}

impl Wanted {
    fn spec(self) -> Spec {
        Spec {
            backend: self.backend,
            model: self.model,
            is_container: self.container,
            program: self.program,
            run_as: self.run_as,
            port: self.port,
            host: self.host,
            gpus: self.gpus,
            memory_bytes: self.memory,
            cpu_milli: self.cpu,
            pids: self.pids,
            max_model_len: self.max_model_len,
            tensor_parallel: self.tensor_parallel,
            quantization: self.quantization,
            extra_args: self.extra_args,
            image: self.image,
            models_dir: self.models_dir,
            network: self.network,
            engine: self.engine,
            skips_health: self.no_health_check,
            load_timeout: self.load_timeout,
            watch: Watch {
                interval: self.health_interval,
                timeout: self.health_timeout,
                failures: self.health_failures,
                delay: self.health_delay,
            },
        }
    }
}

/// What the verbs look at.
struct Stack {
    host: Host,
    settings: Settings,
    path: PathBuf,
    models: Vec<(ModelName, Spec)>,
    /// The file that '--config' names, for the commands of units.
    config: Option<PathBuf>,
}

impl Stack {
    fn load(file: ConfigFile) -> Result<Self, Failure> {
        let host = Host::live();
        let config = file.config.as_ref().map(std::path::absolute).transpose()?;
        let settings = file.load()?.settings;
        let path = registry::path(&host)?;
        Ok(Self { host, settings, path, models: Vec::new(), config })
    }

    /// The models are wanted and guarded; whoever only reads does without.
    fn guarded(mut self) -> Result<Self, Failure> {
        self.models = guard::wanted(&self.settings, &self.records()?);
        guard::guard(&mut self.settings, &self.models);
        Ok(self)
    }

    /// In a model's unit: neither registry nor settings are its main process's to open.
    fn of_one(name: &ModelName, given: &Handover) -> Self {
        let mut settings = Settings { engines: given.engines.clone(), ..config::embedded() };
        let models = vec![(name.clone(), given.spec.clone())];
        guard::guard(&mut settings, &models);
        Self { host: Host::live(), settings, path: PathBuf::new(), models, config: None }
    }

    fn keeper(&self, until: Option<Instant>) -> Keeper<'_> {
        let Self { host, settings, path, models, config: _ } = self;
        Keeper { host, settings, registry: path, models, until }
    }

    fn registry(&self) -> Result<Option<Registry>, RegistryError> {
        Registry::open_if_there(&self.path)
    }

    /// Every model, registered or declared, as the registry has it now.
    fn records(&self) -> Result<Vec<registry::Record>, RegistryError> {
        let recorded = Registry::look(&self.path)?.map(|registry| registry.all()).transpose()?;
        Ok(guard::all(&self.settings, recorded.unwrap_or_default()))
    }

    fn receipt(&self, name: &ModelName) -> Option<Receipt> {
        self.registry().ok().flatten()?.receipt(name).ok().flatten()
    }

    fn spec(&self, name: &ModelName) -> Result<&Spec, RegistryError> {
        let found = self.models.iter().find(|(known, _)| known == name);
        found.map(|(_, spec)| spec).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, name: &ModelName) -> RegistryError {
        let known = self.models.iter().map(|(known, _)| known.clone()).collect();
        RegistryError::NoModel(name.clone(), known)
    }
}

/// Does it.
pub(super) fn run(file: ConfigFile, verb: ModelVerb, out: &mut dyn Write) -> Result<u8, Failure> {
    let given = if let ModelVerb::Exec { name, .. } = &verb { exec::given(name)? } else { None };
    if let (ModelVerb::Exec { name, command }, Some(given)) = (&verb, given) {
        return exec::run(&Stack::of_one(name, &given), name, command, Some(given));
    }
    let stack = Stack::load(file)?;
    if let ModelVerb::List { as_recorded: true, form } = &verb {
        list(&stack, *form, out)?;
        return Ok(exit::CLEAR);
    }
    let stack = stack.guarded()?;
    match verb {
        ModelVerb::Register { name, wanted, no_unit } => {
            register(&stack, &name, &wanted.spec(), !no_unit, out)?;
        }
        ModelVerb::Unregister { name } => return unregister(&stack, &name, out),
        ModelVerb::Start { which, reap } => return run::start(&stack, &which, reap, out),
        ModelVerb::Stop { which, timeout } => return run::stop(&stack, &which, timeout, out),
        ModelVerb::Restart { which } => return run::restart(&stack, &which, out),
        ModelVerb::Enable { names } => return unit::set_enabled(&stack, &names, true, out),
        ModelVerb::Disable { names } => return unit::set_enabled(&stack, &names, false, out),
        ModelVerb::Step { step, name } => return step::run(&stack, step, &name),
        ModelVerb::Status { names, form } => return look::status(&stack, &names, form.json, out),
        ModelVerb::Health { name, watch, interval, form } => {
            let watch = watch.then_some(interval);
            return look::health(&stack, &name, watch, form.json, out);
        }
        ModelVerb::Clean { wish, form } => return clean::clean(&stack, &wish, form.json, out),
        ModelVerb::Logs { name, follow, lines } => {
            return look::logs(&stack, &name, lines, follow, out);
        }
        ModelVerb::Exec { name, command } => return exec::run(&stack, &name, &command, None),
        ModelVerb::List { as_recorded, form } => {
            if !as_recorded {
                for (name, why) in stack.reconcile(None)? {
                    super::warn(&format!("what became of model '{name}' is not known: {why}"));
                }
            }
            list(&stack, form, out)?;
        }
        ModelVerb::Show { name, unit: true, user, offline, form: _ } => {
            let whose = match (offline, user) {
                (true, _) => unit::Whose::Offline,
                (false, true) => unit::Whose::User,
                (false, false) => unit::Whose::Ours,
            };
            out.write_all(unit::text(&stack, &name, whose)?.as_bytes())?;
        }
        ModelVerb::Show { name, unit: false, user: _, offline: _, form } => {
            let record = stack.records()?.into_iter().find(|record| record.name == name);
            let record = record.ok_or_else(|| stack.unknown(&name))?;
            if form.json {
                models::render_list_json(&[record], out)?;
            } else {
                models::render_model(&record, Style::of_stdout(), out)?;
            }
        }
        ModelVerb::Events { name, lines, form } => {
            let events = stack.registry()?.map(|registry| registry.events(name.as_ref(), lines));
            let events = events.transpose()?.unwrap_or_default();
            if form.json {
                models::render_events_json(&events, out)?;
            } else {
                models::render_events(&events, Style::of_stdout(), out)?;
            }
        }
    }
    Ok(exit::CLEAR)
}

fn list(stack: &Stack, form: Form, out: &mut dyn Write) -> Result<(), Failure> {
    let all = stack.records()?;
    if form.json {
        models::render_list_json(&all, out)?;
    } else {
        models::render_list(&all, Style::of_stdout(), out)?;
    }
    Ok(())
}

fn register(
    stack: &Stack,
    name: &ModelName,
    spec: &Spec,
    wants_unit: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let spec = &from_anywhere(spec)?;
    if spec.run_as.is_some() && !rustix::process::geteuid().is_root() {
        let why =
            "--run-as is for models of the system, and a user's manager runs all as that user";
        return Err(Failure::Usage(format!("{why}\nhint: leave it out, or register it as root")));
    }
    let refused = backend::check(name, spec);
    if !refused.is_empty() {
        let all: Vec<String> = refused.iter().map(ToString::to_string).collect();
        return Err(Failure::Usage(all.join("\n")));
    }
    // The registry knows those that are registered; the settings may declare others.
    let declared: Vec<(ModelName, &Spec)> =
        stack.settings.models.iter().map(|(name, spec)| (name.clone(), spec)).collect();
    if declared.iter().any(|(declared, _)| declared == name) {
        let why = format!("model '{name}' is declared in the settings");
        return Err(Failure::Usage(format!(
            "{why}\nhint: change it there, or choose another name"
        )));
    }
    let (refused, shared): (Vec<_>, Vec<_>) = backend::conflicts(&declared, name, spec)
        .into_iter()
        .partition(backend::Conflict::is_error);
    if !refused.is_empty() {
        return Err(RegistryError::Conflicts(refused).into());
    }
    let mut registry = Registry::open(&stack.path)?;
    match registry.register(name, spec) {
        Ok(all) => {
            for shared in all.into_iter().chain(shared) {
                super::warn(&shared.to_string());
            }
        }
        // Whoever was killed on its way may have left it without its unit.
        Err(exists @ RegistryError::Exists(_)) => {
            let is_same = registry.get(name)?.spec.as_ref() == Some(spec);
            if !is_same || !wants_unit || unit_file::is_there(&stack.host, name) {
                return Err(exists.into());
            }
            let Written::Unit(unit, _) = unit::write(stack, name, spec)? else {
                return Err(exists.into());
            };
            writeln!(out, "model '{name}' was registered already, and has its unit now: {unit}")?;
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    if !wants_unit {
        writeln!(out, "model '{name}' is registered")?;
        return Ok(());
    }
    match unit::write(stack, name, spec) {
        Ok(Written::Unit(unit, remark)) => {
            writeln!(out, "model '{name}' is registered, as {unit}")?;
            if let Some(remark) = remark {
                super::warn(&remark);
            }
        }
        Ok(Written::None(why)) => {
            writeln!(out, "model '{name}' is registered, without a unit: {why}")?;
        }
        // Nothing by halves: what has no unit by mistake would be started without one.
        Err(trouble) => {
            registry.unregister(name)?;
            return Err(trouble.into());
        }
    }
    Ok(())
}

/// A process's weights are where they are seen from here: it is started from elsewhere.
fn from_anywhere(spec: &Spec) -> Result<Spec, Failure> {
    let is_file = spec.backend.backend().models.is_file(&spec.model);
    if spec.is_container || !is_file {
        return Ok(spec.clone());
    }
    let path = std::path::absolute(&spec.model)?;
    let model = path.into_os_string().into_string().map_err(|path| {
        let why = format!("the path of the weights is no text: '{}'", path.display());
        Failure::Usage(format!("{why}\nhint: give its folder a name in UTF-8"))
    })?;
    Ok(Spec { model, ..spec.clone() })
}

/// What is up is stopped first.
fn unregister(stack: &Stack, name: &ModelName, out: &mut dyn Write) -> Result<u8, Failure> {
    let mut registry = stack.registry()?.ok_or_else(|| stack.unknown(name))?;
    let record = registry.get(name)?;
    let is_declared = stack.settings.models.iter().any(|(declared, _)| declared == name);
    if record.spec.is_none() && is_declared {
        let why = format!("model '{name}' is not registered, but declared in the settings");
        return Err(Failure::Usage(format!("{why}\nhint: take it out there")));
    }
    let unit = service::of_model(&stack.host, name)?;
    let runs = unit.is_some_and(|unit| unit.is_up() || unit.waits_for_restart());
    if record.state != State::Stopped || runs {
        match run::stop_first(stack, name) {
            Ok(down) => writeln!(out, "model '{name}' is stopped: {down}")?,
            Err(code) => return Ok(code),
        }
    }
    unit_file::remove(&stack.host, name)?;
    registry.unregister(name)?;
    writeln!(out, "model '{name}' is registered no more")?;
    Ok(exit::CLEAR)
}

fn model_name(text: &str) -> Result<ModelName, String> {
    text.parse().map_err(str::to_owned)
}

fn port(text: &str) -> Result<Port, String> {
    let number = text.parse().ok().and_then(Port::new);
    number.ok_or_else(|| "expected a port number from 1 to 65535".to_owned())
}
