//! `portreeve model step`: the commands of a model's unit around its main process.

use std::io::Write;

use clap::ValueEnum;

use super::Stack;
use crate::{
    act::interrupt::Interrupt,
    cli::Failure,
    ident::ModelName,
    report::{escape::escape, exit},
};

/// Which of them.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum Step {
    /// `ExecStartPre=`: on record as starting, the way cleared, what was found handed over
    Begin,
    /// `ExecStartPost=`: seen with all rights, on record as running
    Up,
    /// `ExecStopPost=`: nothing of it is left, and why is on record
    Down,
}

pub(super) fn run(stack: &Stack, step: Step, name: &ModelName) -> Result<u8, Failure> {
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    let mut last = String::new();
    let mut say = |text: &str| {
        // The journal keeps each line.
        if last != text {
            text.clone_into(&mut last);
            let _ = writeln!(anstream::stderr(), "{name}: {}", escape(text, None));
        }
    };
    let keeper = stack.keeper(None);
    let (done, what) = match step {
        Step::Begin => (keeper.step_begin(name, &mut interrupt, &mut say), "is not started"),
        Step::Up => (keeper.step_up(name, &mut interrupt, &mut say), "is not up"),
        Step::Down => (keeper.step_down(name, &mut interrupt, &mut say), "is not down"),
    };
    Ok(match done {
        Ok(()) => exit::CLEAR,
        Err(trouble) => super::run::complain(name, what, &trouble),
    })
}
