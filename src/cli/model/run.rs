//! `portreeve model start`, `stop` and `restart`.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use clap::Args;
use clap_complete::engine::ArgValueCandidates;

use super::{Stack, model_name};
use crate::{
    act::{interrupt::Interrupt, signal},
    backend::Spec,
    cli::{Failure, complete},
    ident::ModelName,
    models::{
        State,
        lifecycle::{Down, Up},
        trouble::Trouble,
    },
    report::{exit, models::Voice},
};

/// Which models.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(in crate::cli) struct Which {
    /// Their names
    #[arg(value_parser = model_name, add = ArgValueCandidates::new(complete::models))]
    names: Vec<ModelName>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// What a stop has for the rungs behind the longest grace period.
const LADDER_TIME: Duration = Duration::from_secs(60);

/// Starts them side by side.
pub(super) fn start(
    stack: &Stack,
    which: &Which,
    reaps: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let names = stack.names(which);
    let voice = Voice::new();
    let say = |name: &ModelName, text: &str| voice.say(name, text);
    let interrupts = interrupts(names.len())?;
    let results = stack.keeper(None).start(&names, reaps, interrupts, &say);
    drop(voice);
    let mut codes = Vec::new();
    for (name, result) in names.iter().zip(results) {
        match result {
            Ok(up) => {
                let what = match up {
                    Up::Started => "is running",
                    Up::WasUp => "is running already",
                };
                writeln!(out, "model '{name}' {what}{}", stack.place_of(name))?;
                codes.push(exit::CLEAR);
            }
            Err(trouble) => codes.push(complain(name, "did not start", &trouble)),
        }
    }
    Ok(exit::worst(codes))
}

/// Stops them side by side, and sums up where there are many.
pub(super) fn stop(
    stack: &Stack,
    which: &Which,
    timeout: Option<Duration>,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let began = Instant::now();
    let mut names = stack.names(which);
    if which.all {
        names.extend(stack.unwanted()?);
    }
    let longest = stack.models.iter().map(|(_, spec)| spec.backend.backend().grace).max();
    let most = timeout.unwrap_or(LADDER_TIME + longest.unwrap_or_default());
    let voice = Voice::new();
    let say = |name: &ModelName, text: &str| voice.say(name, text);
    let why = if which.all { "all are to stop" } else { "asked to stop" };
    let keeper = stack.keeper(Some(began + most));
    let results = keeper.stop(&names, why, interrupts(names.len())?, &say);
    drop(voice);
    let mut codes = Vec::new();
    let mut stopped = 0;
    for (name, result) in names.iter().zip(results) {
        match result {
            Ok(down) if down.is_nothing() => {
                if !which.all {
                    writeln!(out, "model '{name}' is stopped; nothing of it ran")?;
                }
                codes.push(exit::CLEAR);
            }
            Ok(down) => {
                stopped += 1;
                writeln!(out, "model '{name}' is stopped: {down}")?;
                codes.push(exit::CLEAR);
            }
            Err(trouble) => codes.push(complain(name, "did not stop", &trouble)),
        }
    }
    if which.all {
        let left = codes.iter().filter(|code| **code != exit::CLEAR).count();
        let left =
            if left == 0 { "none is left".to_owned() } else { format!("{left} are not down") };
        writeln!(
            out,
            "Models stopped: {stopped}; {left}, after {:.1} s",
            began.elapsed().as_secs_f64()
        )?;
    }
    Ok(exit::worst(codes))
}

/// Down, then up again; what does not come down is not started.
pub(super) fn restart(stack: &Stack, which: &Which, out: &mut dyn Write) -> Result<u8, Failure> {
    match stop(stack, which, None, out)? {
        exit::CLEAR => start(stack, which, false, out),
        code => Ok(code),
    }
}

/// Stops one before it is taken out of the registry.
pub(super) fn stop_first(stack: &Stack, name: &ModelName) -> Result<Down, u8> {
    let voice = Voice::new();
    let say = |name: &ModelName, text: &str| voice.say(name, text);
    let interrupts = interrupts(1).map_err(|_| exit::COULD_NOT_TELL)?;
    let names = std::slice::from_ref(name);
    let mut results = stack.keeper(None).stop(names, "it is to be unregistered", interrupts, &say);
    drop(voice);
    match results.pop() {
        Some(Ok(down)) => Ok(down),
        Some(Err(trouble)) => Err(complain(name, "did not stop, and stays registered", &trouble)),
        None => Err(exit::COULD_NOT_TELL),
    }
}

pub(super) fn interrupts(many: usize) -> Result<Vec<Interrupt>, Failure> {
    signal::allow_many_descriptors();
    let all = (0..many).map(|_| Interrupt::install());
    all.collect::<Result<_, _>>().map_err(Failure::Interrupt)
}

/// Says on standard error what went wrong; the exit code for it.
pub(super) fn complain(name: &ModelName, what: &str, trouble: &Trouble) -> u8 {
    crate::report::models::complain(name, what, trouble);
    if trouble.is_unknown { exit::COULD_NOT_TELL } else { exit::NOT_CLEAR }
}

impl Stack {
    fn names(&self, which: &Which) -> Vec<ModelName> {
        if which.all {
            return self.models.iter().map(|(name, _)| name.clone()).collect();
        }
        let mut names = which.names.clone();
        names.sort();
        names.dedup();
        names
    }

    /// What may run, though it is neither registered nor declared any more.
    fn unwanted(&self) -> Result<Vec<ModelName>, Failure> {
        let all = self.records()?.into_iter();
        let all = all.filter(|record| record.spec.is_none() && record.state != State::Stopped);
        Ok(all.map(|record| record.name).collect())
    }

    /// Where it is to be reached, for a person.
    fn place_of(&self, name: &ModelName) -> String {
        let found = self.models.iter().find(|(known, _)| known == name);
        let address = |spec: &Spec| SocketAddr::new(spec.host, spec.port().number());
        found.map_or_else(String::new, |(_, spec)| format!(" on {}", address(spec)))
    }
}
