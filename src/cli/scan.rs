//! `portreeve scan`: the dry-run report.

use std::io::Write;

use crate::{
    act::tally,
    config::settings::Settings,
    host::Host,
    judge::Also,
    models::{leftovers, registry},
    pipeline::{self, Scope},
    report::{self, exit, github, journal::Record, json, line, prometheus},
};

use super::{
    Failure, Target, Verbosity,
    output::{Format, Output, append_outputs, append_summary},
};

/// Looks and reports.
pub(super) fn run(
    target: Target,
    output: &Output,
    verbosity: Verbosity,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let (settings, scope) = target.guarded(&Host::live())?;
    let command = json::Command::Scan;
    report_findings(&settings, &scope, Also::default(), command, output, verbosity, out)
}

/// The report of a dry run, of either verb.
pub(super) fn report_findings(
    settings: &Settings,
    scope: &Scope,
    also: Also,
    command: json::Command,
    output: &Output,
    verbosity: Verbosity,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let host = Host::live();
    let mut findings = pipeline::scan(&host, settings, scope, also)?;
    // A reap leaves containers to 'model clean'.
    if command == json::Command::Scan {
        let registry = registry::path(&host);
        leftovers::scan(&host, settings, registry.as_deref(), scope, &mut findings);
    }
    Record::new(verbosity.is_verbose).findings(&findings);
    match output.format {
        Format::Table => {
            report::render_findings(&findings, output.style(verbosity.is_verbose), out)?;
        }
        Format::Json => json::render_findings(&findings, true, command, out)?,
        Format::Github => {
            github::render_findings(&findings, out)?;
            append_summary(|room| github::summary_of_findings(&findings, room));
            append_outputs(&github::outputs_of_findings(&findings));
        }
        Format::Line => line::render_findings(&findings, out)?,
        Format::Prometheus => {
            prometheus::render_findings(&findings, tally::read(&host).ok(), out)?;
        }
    }
    output.put_document(|out| json::render_findings(&findings, true, command, out))?;
    Ok(exit::of_findings(&findings))
}
