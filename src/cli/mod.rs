//! The command: parse, call, report. One file per verb.

mod complete;
pub mod config;
mod doctor;
mod explain;
mod gate;
mod guarded;
mod model;
mod nvml;
mod output;
mod reap;
mod scan;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use output::{Destination, Output, OutputError};

use crate::{
    config::{ConfigErrors, Loaded, Sources, load, settings::UnreadModels},
    ident::{Endpoint, GpuName, ServiceName},
    judge::Also,
    pipeline::{Scope, ScopeError},
    report::exit,
    sys,
};

const RIGHTS_OF_THE_FILE: &str = "refused, since this program has its rights from its file (setuid, setgid or file capabilities), and so \
    would whoever runs it\nhint: take them from the file ('setcap -r', 'chmod ug-s'); give them to who runs it: sudo, a unit's \
    AmbientCapabilities=";

/// Finds the processes that dead containers, units and parents left behind, proves that they are left behind,
/// ends them, and proves that their ports and GPUs are free.
#[derive(Debug, Parser)]
#[command(name = "portreeve", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXIT_CODES: &str = "Exit codes:
  0  clear: guarded ports and GPUs are free or held by what is alive and spared; or all is done and proven
  1  not clear: an orphan, a suspect, an unsupervised container or a foreign holder remains
  2  could not tell or could not run: incomplete sight, bad usage, bad configuration";

const DOCTOR_EXIT_CODES: &str = "Exit codes:
  0  nothing wants mending; 'fallback' and 'absent' are no faults
  1  something is off, and its fix is named
  2  something could not be learnt, or the configuration is broken; 1 outranks it
With --sysctl: 0 the file was printed, 2 it cannot be complete and nothing was printed";

const GATE_EXIT_CODES: &str = "Exit codes:
  0  every port and GPU is open; or what is blocked is let pass ('--on-blocked warn')
  1  blocked
  2  could not tell or could not run: incomplete sight, another gate at work, a signal, bad usage, bad configuration
With COMMAND: 75 blocked, 69 could not tell or could not run, both before it runs; else its own. Bad usage stays 2";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Report what holds which port and GPU, why, and what 'reap' would do; changes nothing
    Scan {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        verbosity: Verbosity,
    },
    /// End the orphans, then prove that their ports and GPUs are free
    Reap {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        deed: Deed,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        verbosity: Verbosity,
    },
    /// Wait until ports and GPUs are free, or say what blocks them; then become COMMAND, if one is given
    #[command(after_help = GATE_EXIT_CODES)]
    Gate {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        wish: gate::Wish,
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        verbosity: Verbosity,
    },
    /// Give the whole chain of evidence for one process, port or GPU; changes nothing
    Explain {
        /// A process id, a port such as 8091 or 8091/udp, or a GPU (gpu:0, GPU-…, MIG-…); pid:N and port:P where a number is both
        #[arg(value_name = "PID|PORT|GPU")]
        asked: explain::Asked,
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        output: Output,
        /// Show every row of the verdict table, and every fact with where it was read
        #[arg(long = "verbose", short = 'v')]
        is_verbose: bool,
    },
    /// Say what this process may see and do here, and what would mend what it may not; changes nothing
    #[command(after_help = DOCTOR_EXIT_CODES)]
    Doctor {
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        output: Output,
        /// Print only the file for /etc/sysctl.d that keeps outgoing connections off guarded ports
        #[arg(long, conflicts_with_all = ["format", "file", "json_file", "quiet"])]
        sysctl: bool,
    },
    /// Keep the stack's models: which there are, what is wanted of each, what happened
    Model {
        #[command(flatten)]
        file: ConfigFile,
        #[command(subcommand)]
        what: model::ModelVerb,
    },
    /// Check, show or describe the configuration
    Config {
        #[command(subcommand)]
        what: ConfigVerb,
    },
    /// Ask NVIDIA's library, once for each line on standard input: the process that another run starts for it
    #[command(name = crate::observe::gpus::VERB, hide = true)]
    NvmlReader {
        /// The library, instead of the one that the loader finds
        #[arg(long, value_name = "PATH")]
        library: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Read and validate every layer
    Check(ConfigFile),
    /// Print the merged settings with the origin of each value
    Show(ConfigFile),
    /// Print the JSON schema of a configuration file
    Schema,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// Lay this file over those in /etc/portreeve
    #[arg(long = "config", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// What to look at.
#[derive(Debug, Args)]
struct Target {
    /// Only these services of the settings
    #[arg(value_name = "SERVICE", add = ArgValueCandidates::new(complete::services))]
    services: Vec<String>,
    /// Only this port, guarded or not: 8091, 8091/udp, 127.0.0.1:8091
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<Endpoint>,
    /// Only this GPU, guarded or not: a number as nvidia-smi shows it, a UUID, a PCI address, or all
    #[arg(long = "gpu", value_name = "GPU")]
    gpus: Vec<GpuName>,
    #[command(flatten)]
    file: ConfigFile,
}

/// What to do about it.
#[derive(Debug, Args)]
struct Deed {
    /// Report only: what 'scan' says of ports, GPUs and processes
    #[arg(long)]
    dry_run: bool,
    /// End these as well; 'session' needs a SERVICE or --port, 'foreign' needs --port
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    also: Vec<Kind>,
    /// Leave the stopping of unsupervised containers to a transient unit, where systemd runs
    #[arg(long)]
    no_wait: bool,
    /// Time between SIGTERM and SIGKILL, such as 5s or 500ms; overrides every service's own
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration)]
    grace: Option<std::time::Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Suspects: the parent is gone, nothing declares where they run
    Abandoned,
    /// Processes in somebody's session
    Session,
    /// Containers that run without their monitor: stopped by their engine, never removed
    Unsupervised,
    /// Living holders of the named ports
    Foreign,
}

#[derive(Debug, Clone, Copy, Args)]
struct Verbosity {
    /// Show the evidence of each verdict, and on standard error what happens as it happens
    #[arg(long = "verbose", short = 'v')]
    is_verbose: bool,
}

/// Why a verb did not come to a report.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(#[from] ConfigErrors),
    #[error("{0}")]
    Scope(#[from] ScopeError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Sysctl(#[from] crate::doctor::SysctlError),
    #[error("{0}")]
    Output(#[from] OutputError),
    #[error("{0}")]
    Registry(#[from] crate::models::registry::RegistryError),
    #[error("{}", .0.with_hint())]
    Trouble(#[from] crate::models::trouble::Trouble),
    /// A question about everything, of which a part is not known.
    #[error("{}\nhint: name the services, ports or GPUs that it is about", guarded::in_words(.0))]
    UnreadModels(UnreadModels),
    #[error("SIGINT, SIGTERM and SIGHUP cannot be caught: {0}\nhint: nothing was done")]
    Interrupt(#[source] io::Error),
    #[error("the report cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// The whole command line, as `--help` shows it: the manual's pages are made of it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command with these arguments and answers with the exit code of the table in `--help`.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    if let Some(code) = complete::answer(&arguments) {
        return ExitCode::from(code);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap sends help to stdout with 0 and errors to stderr with 2.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::COULD_NOT_TELL));
        }
    };
    // Whoever may run the file would end others' processes, by settings of their own.
    if sys::has_rights_of_its_file().unwrap_or(true) {
        let _ = writeln!(anstream::stderr(), "error: {RIGHTS_OF_THE_FILE}");
        return ExitCode::from(cli.verb.could_not());
    }
    let output = cli.verb.output().cloned();
    if output.as_ref().is_some_and(|output| output.no_color) {
        anstream::ColorChoice::Never.write_global();
    }
    // The command's own codes stay its own.
    let could_not = cli.verb.could_not();
    let result = run_verb(cli.verb, output.as_ref());
    ExitCode::from(match result {
        Ok(code) => code,
        Err(failure) => {
            let _ = writeln!(anstream::stderr(), "error: {failure}");
            could_not
        }
    })
}

fn run_verb(verb: Verb, output: Option<&Output>) -> Result<u8, Failure> {
    // Before anything is done: a reap whose report cannot go where it is wanted has not begun.
    let file = output.and_then(|output| output.file.as_deref());
    let file = file.map(Destination::open).transpose()?;
    if let Some(path) = output.and_then(|output| output.json_file.as_deref()) {
        Destination::open(path)?;
    }
    // The report is whole, and its exit code settled, before the first byte goes out.
    let mut text = Vec::new();
    let code = match verb {
        Verb::Scan { target, output, verbosity } => {
            scan::run(target, &output, verbosity, &mut text)
        }
        Verb::Reap { target, deed, output, verbosity } => {
            reap::run(target, &deed, &output, verbosity, &mut text)
        }
        Verb::Gate { target, wish, output, verbosity } => {
            return gate::run(target, &wish, &output, verbosity, file.as_ref());
        }
        Verb::Explain { asked, file, output, is_verbose } => {
            explain::run(asked, file, &output, is_verbose, &mut text)
        }
        Verb::Doctor { file, output, sysctl } => doctor::run(file, &output, sysctl, &mut text),
        Verb::Model { file, what } => model::run(file, what, &mut text),
        Verb::Config { what } => run_config(what, &mut text),
        Verb::NvmlReader { library } => return nvml::run(library.as_deref()),
    };
    // A document that found no room is no reason to keep to ourselves what was done.
    if let (Err(Failure::Output(_)), Some(output)) = (&code, output) {
        put(&text, exit::COULD_NOT_TELL, output, file.as_ref())?;
    }
    let code = code?;
    if let Some(output) = output {
        put(&text, code, output, file.as_ref())?;
    } else {
        put_out(&text)?;
    }
    Ok(code)
}

/// Writes a report where it is wanted.
fn put(text: &[u8], code: u8, output: &Output, file: Option<&Destination>) -> Result<(), Failure> {
    match file {
        Some(file) => file.replace(text)?,
        None if code == exit::CLEAR && output.quiet => {}
        None => put_out(text)?,
    }
    Ok(())
}

fn put_out(text: &[u8]) -> Result<(), Failure> {
    // Where there is no colour to take out, it is not looked for byte by byte.
    let mut stdout: Box<dyn Write> = if text.contains(&b'\x1b') {
        Box::new(anstream::stdout().lock())
    } else {
        Box::new(io::stdout().lock())
    };
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        // Whoever reads us has seen enough (`| head`).
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Write(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says why something was not done.
fn complain(text: &str) {
    let _ = writeln!(anstream::stderr(), "error: {text}");
}

/// Says what went wrong beside the report.
fn warn(text: &str) {
    let _ = writeln!(anstream::stderr(), "warning: {text}");
}

impl Verb {
    /// How it is to report; none where it prints what it was asked for.
    fn output(&self) -> Option<&Output> {
        match self {
            Self::Scan { output, .. }
            | Self::Reap { output, .. }
            | Self::Gate { output, .. }
            | Self::Explain { output, .. }
            | Self::Doctor { output, .. } => Some(output),
            Self::Model { .. } | Self::Config { .. } | Self::NvmlReader { .. } => None,
        }
    }

    /// The code of a run that came to nothing.
    fn could_not(&self) -> u8 {
        match self {
            Self::Gate { wish, .. } if !wish.command.is_empty() => gate::NOT_KNOWN,
            Self::Gate { .. }
            | Self::Scan { .. }
            | Self::Reap { .. }
            | Self::Explain { .. }
            | Self::Doctor { .. }
            | Self::Model { .. }
            | Self::Config { .. }
            | Self::NvmlReader { .. } => exit::COULD_NOT_TELL,
        }
    }
}

fn run_config(what: ConfigVerb, out: &mut dyn Write) -> Result<u8, Failure> {
    match what {
        ConfigVerb::Check(file) => config::check(&file.load()?, out)?,
        ConfigVerb::Show(file) => config::show(&file.load()?, out)?,
        ConfigVerb::Schema => config::schema(out)?,
    }
    Ok(exit::CLEAR)
}

impl ConfigFile {
    fn load(self) -> Result<Loaded, ConfigErrors> {
        let loaded = load(&Sources { explicit: self.config, ..Sources::default() })?;
        for composed in &loaded.composed {
            // Not seldom a variable that is not set, and with it a port that nobody guards.
            composed.warnings.iter().for_each(|line| warn(&format!("{}: {line}", composed.by)));
        }
        Ok(loaded)
    }
}

impl Target {
    fn scope(&self) -> Scope {
        Scope {
            services: self.services.iter().map(|s| ServiceName(s.clone())).collect(),
            ports: self.ports.clone(),
            gpus: self.gpus.clone(),
            ..Scope::default()
        }
    }
}

impl Deed {
    /// The flags as the judge takes them; a flag that could end more than was meant wants its target named.
    fn also(&self, scope: &Scope) -> Result<Also, Failure> {
        let has = |kind| self.also.contains(&kind);
        if has(Kind::Session) && scope.services.is_empty() && scope.ports.is_empty() {
            return Err(Failure::Usage(
                "'--also session' ends processes of people who are logged in, so its target must be \
                 named\nhint: add a SERVICE or --port PORT"
                    .to_owned(),
            ));
        }
        if has(Kind::Foreign) && scope.ports.is_empty() {
            return Err(Failure::Usage(
                "'--also foreign' ends living processes, so their port must be named\nhint: add \
                 --port PORT"
                    .to_owned(),
            ));
        }
        Ok(Also {
            abandoned: has(Kind::Abandoned),
            session: has(Kind::Session),
            foreign: has(Kind::Foreign),
            unsupervised: has(Kind::Unsupervised),
        })
    }
}
