//! `portreeve model exec`.

use std::io::Write;

use super::Stack;
use crate::{
    act::interrupt::Interrupt,
    cli::{Failure, gate},
    ident::ModelName,
    models::{
        exec::{self, Exit, Foreground},
        launch, plan,
        trouble::Trouble,
    },
    report::escape::escape,
};

/// Starts it and stays with it. Below a service manager a gate stands before its unit; else it is asked here.
pub(super) fn run(stack: &Stack, name: &ModelName, command: Vec<String>) -> Result<u8, Failure> {
    let spec = stack.spec(name)?;
    if spec.is_container {
        let why = format!("model '{name}' runs in a container, and 'exec' keeps processes");
        return Err(Failure::Usage(format!("{why}\nhint: 'portreeve model start {name}'")));
    }
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    let mut say = |text: &str| tell(name, text);
    let chosen = launch::cards(&stack.host, &stack.settings, spec)?;
    let process = plan::process(name, spec, &chosen.cards);
    let mut process = process.map_err(|refusal| Trouble::of(&refusal))?;
    if !command.is_empty() {
        process.command = command;
    }
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        let passed =
            launch::pass_gate(&stack.host, &stack.settings, spec, false, &mut interrupt, &mut say);
        if let Err(trouble) = passed {
            complain(name, "was not started", &trouble);
            return Ok(if trouble.is_unknown { gate::NOT_KNOWN } else { gate::BLOCKED });
        }
    }
    let (host, settings) = (&stack.host, &stack.settings);
    let foreground = Foreground { host, settings, spec, process: &process };
    let exit = exec::keep(&foreground, &mut interrupt, &mut say);
    let exit = exit.map_err(|error| {
        let program = process.command.first().map_or("", String::as_str);
        Trouble::new(format!("'{program}' cannot be run: {error}"))
            .hint("install it, or say what is to be run behind '--'")
    })?;
    match &exit {
        Exit::Stopped(_) => tell(name, "stopped"),
        Exit::Server(status) => tell(name, &format!("its server ended by itself: {status}")),
        Exit::Unhealthy(trouble) => complain(name, "is taken down", trouble),
    }
    Ok(exit.code())
}

fn complain(name: &ModelName, what: &str, trouble: &Trouble) {
    crate::report::models::complain(name, what, trouble);
}

/// For the journal, or whoever watches: a line.
fn tell(name: &ModelName, text: &str) {
    let _ = writeln!(anstream::stderr(), "{name}: {}", escape(text, None));
}
