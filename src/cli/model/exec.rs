//! `portreeve model exec`.

use std::{
    io::{self, Write},
    ops::ControlFlow,
};

use super::Stack;
use crate::{
    act::interrupt::Interrupt,
    backend::Spec,
    cli::{Failure, gate},
    ident::ModelName,
    models::{
        Registry,
        exec::{self, Exit, Foreground},
        handover::{self, Handover},
        launch::{self, Order, Sight},
        plan,
        trouble::Trouble,
    },
    report::escape::escape,
};

/// What is kept, and what its unit's privileged command found out for it.
struct Kept<'a> {
    stack: &'a Stack,
    spec: &'a Spec,
    given: Option<Handover>,
}

/// What its unit's privileged command found out for it. None where it has no unit of ours.
pub(super) fn given(name: &ModelName) -> Result<Option<Handover>, Failure> {
    let given = handover::take().map_err(|error| {
        Trouble::new(format!("what its unit found out for it cannot be read: {error}"))
            .hint(format!("'portreeve model restart {name}'"))
    });
    Ok(given?)
}

/// Starts it and stays with it. Below a service manager a gate stands before its unit; else it is asked here.
pub(super) fn run(
    stack: &Stack,
    name: &ModelName,
    command: &[String],
    given: Option<Handover>,
) -> Result<u8, Failure> {
    let kept = stack.spec(name).map(|spec| Kept { stack, spec, given });
    let done = kept.map_err(Failure::from).and_then(|kept| {
        kept.is_down(name)?;
        keep(&kept, name, command)
    });
    if let Err(failure) = &done {
        exec::tell_status(&failure.to_string());
    }
    done
}

fn keep(kept: &Kept<'_>, name: &ModelName, command: &[String]) -> Result<u8, Failure> {
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    let mut last = String::new();
    let mut say = |text: &str| {
        if last != text {
            tell(name, text);
        }
        text.clone_into(&mut last);
    };
    let done = if kept.spec.is_container {
        keep_container(kept, name, command, &mut interrupt, &mut say)
    } else {
        keep_process(kept, name, command, &mut interrupt, &mut say)
    };
    let exit = match done? {
        Done::Exit(exit) => exit,
        Done::Shut(trouble) => {
            exec::tell_status(&trouble.why);
            complain(name, "was not started", &trouble);
            return Ok(if trouble.is_unknown { gate::NOT_KNOWN } else { gate::BLOCKED });
        }
    };
    match &exit {
        Exit::Stopped => tell(name, "stopped"),
        Exit::Server(_) => tell(name, &exit.reason()),
        Exit::Unhealthy(trouble) => complain(name, "is taken down", trouble),
        Exit::NotDown(_, trouble) => {
            let trouble = Trouble { why: exit.reason(), ..trouble.clone() };
            complain(name, "is not down", &trouble);
        }
    }
    Ok(exit.code())
}

/// What came of it.
enum Done {
    /// It was started.
    Exit(Exit),
    /// The gate stayed shut.
    Shut(Trouble),
}

fn keep_process(
    kept: &Kept<'_>,
    name: &ModelName,
    command: &[String],
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Done, Failure> {
    let Kept { stack: Stack { host, settings, .. }, spec, given } = kept;
    let chosen = match given {
        Some(given) => given.chosen.clone(),
        None => launch::cards(host, settings, spec)?,
    };
    let process = plan::process(name, spec, &chosen.cards);
    let mut process = process.map_err(|refusal| Trouble::of(&refusal))?;
    if !command.is_empty() {
        process.command = command.to_vec();
    }
    if let Err(trouble) = kept.pass_gate(interrupt, say) {
        return Ok(Done::Shut(trouble));
    }
    let foreground = Foreground { host, settings, spec, process: &process };
    let exit = exec::keep(&foreground, interrupt, say);
    Ok(Done::Exit(exit.map_err(|error| {
        let program = process.command.first().map_or("", String::as_str);
        Trouble::new(format!("'{program}' cannot be run: {error}"))
            .hint("install it, or say what is to be run behind '--'")
    })?))
}

fn keep_container(
    kept: &Kept<'_>,
    name: &ModelName,
    command: &[String],
    interrupt: &mut Interrupt,
    say: &mut dyn FnMut(&str),
) -> Result<Done, Failure> {
    if !command.is_empty() {
        let why = format!("model '{name}' runs in a container, whose command is its image's");
        let hint = "'--extra-args' of 'model register' adds to it";
        return Err(Failure::Usage(format!("{why}\nhint: {hint}")));
    }
    let Kept { stack: Stack { host, settings, path, .. }, spec, given } = kept;
    let (chosen, instance, sight) = match given.clone() {
        Some(given) => (Some(given.chosen), given.instance, Sight::Engine),
        // Its label says whose it is.
        None => (None, Registry::open(path)?.instance_id()?, Sight::Whole),
    };
    let order = Order { host, settings, name, spec, instance: &instance, until: None, sight };
    let prepared = exec::prepare(order, chosen, interrupt, say)?;
    if let Err(trouble) = kept.pass_gate(interrupt, say) {
        return Ok(Done::Shut(trouble));
    }
    Ok(Done::Exit(exec::keep_container(prepared, write, interrupt, say)?))
}

impl Kept<'_> {
    /// Whoever has it up would find it taken away.
    fn is_down(&self, name: &ModelName) -> Result<(), Failure> {
        if self.given.is_some() {
            return Ok(());
        }
        let record = self.stack.records()?.into_iter().find(|record| record.name == *name);
        let Some(record) = record.filter(|record| record.state.is_up()) else { return Ok(()) };
        let why = format!("model '{name}' is recorded as {}", record.state.word());
        let hint = format!("'portreeve model stop {name}' first");
        Err(Failure::Usage(format!("{why}\nhint: {hint}")))
    }

    /// Below a service manager it is a unit of its own.
    fn pass_gate(
        &self,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        if self.given.is_some() || std::env::var_os("NOTIFY_SOCKET").is_some() {
            return Ok(());
        }
        launch::pass_gate(&self.stack.host, &self.stack.settings, self.spec, false, interrupt, say)
    }
}

/// What a container writes, as it wrote it.
fn write(line: &str) -> ControlFlow<()> {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

fn complain(name: &ModelName, what: &str, trouble: &Trouble) {
    crate::report::models::complain(name, what, trouble);
}

/// For the journal, or whoever watches: a line.
fn tell(name: &ModelName, text: &str) {
    let _ = writeln!(anstream::stderr(), "{name}: {}", escape(text, None));
}
