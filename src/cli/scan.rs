//! `portreeve scan`: the dry-run report.

use std::io::Write;

use crate::{
    config::settings::Settings,
    host::Host,
    judge::Also,
    pipeline::{self, Scope},
    report::{self, exit, json},
};

use super::{Failure, Format, Target, style};

/// Looks and reports.
pub(super) fn run(target: Target, format: Format, out: &mut dyn Write) -> Result<u8, Failure> {
    let scope = target.scope();
    let settings = target.file.load()?.settings;
    report_findings(&settings, &scope, Also::default(), json::Command::Scan, format, out)
}

/// The report of a dry run, of either verb.
pub(super) fn report_findings(
    settings: &Settings,
    scope: &Scope,
    also: Also,
    command: json::Command,
    format: Format,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let findings = pipeline::scan(&Host::live(), settings, scope, also)?;
    match format {
        Format::Table => report::render_findings(&findings, style(), out)?,
        Format::Json => json::render_findings(&findings, true, command, out)?,
    }
    Ok(exit::of_findings(&findings))
}
