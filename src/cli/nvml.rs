//! The process that asks NVIDIA's library on behalf of another run: no report, one line for each line.

use std::{io, path::Path};

use super::Failure;
use crate::{observe::gpus, report::exit};

/// Answers until the input ends.
pub(super) fn run(library: Option<&Path>) -> Result<u8, Failure> {
    gpus::serve(library, &mut io::stdin().lock(), &mut io::stdout().lock())?;
    Ok(exit::CLEAR)
}
