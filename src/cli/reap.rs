//! `portreeve reap`: ends the orphans and proves it.

use std::io::Write;

use crate::{
    act::interrupt::Interrupt,
    host::Host,
    pipeline::{self, Event},
    report::{self, exit, github, journal::Record, json, prometheus},
};

use super::{
    Deed, Failure, Target, Verbosity,
    output::{Format, Output, append_summary},
    scan,
};

/// Looks, ends, proves, reports.
pub(super) fn run(
    target: Target,
    deed: &Deed,
    output: &Output,
    verbosity: Verbosity,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let scope = target.scope();
    let also = deed.also(&scope)?;
    let mut settings = target.file.load()?.settings;
    if let Some(grace) = deed.grace {
        settings.override_grace(grace);
    }
    if deed.dry_run {
        let command = json::Command::Reap;
        return scan::report_findings(&settings, &scope, also, command, output, verbosity, out);
    }
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    let mut record = Record::new(verbosity.is_verbose);
    let mut tell = |event: Event<'_>| record.tell(event);
    let reaped = pipeline::reap(&Host::live(), &settings, &scope, also, &mut interrupt, &mut tell)?;
    record.reaped(&reaped);
    match output.format {
        Format::Table => report::render_reaped(&reaped, output.style(verbosity.is_verbose), out)?,
        Format::Json => json::render_reaped(&reaped, out)?,
        Format::Github => {
            github::render_reaped(&reaped, out)?;
            append_summary(|room| github::summary_of_reaped(&reaped, room));
        }
        Format::Prometheus => prometheus::render_reaped(&reaped, out)?,
    }
    Ok(exit::of_reaped(&reaped))
}
