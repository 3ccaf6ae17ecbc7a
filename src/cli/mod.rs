//! The command: parse, call, report.

pub mod config;

use std::{ffi::OsString, process::ExitCode};

/// Runs the command with these arguments.
pub fn run(_arguments: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::SUCCESS
}
