//! `portreeve reap`: ends the orphans and proves it.

use std::io::{IsTerminal, Write};

use crate::{
    act::interrupt::Interrupt,
    host::Host,
    pipeline,
    report::{self, Progress, exit, json},
};

use super::{Deed, Failure, Format, Target, scan, style};

/// Looks, ends, proves, reports.
pub(super) fn run(
    target: Target,
    deed: &Deed,
    format: Format,
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
        return scan::report_findings(&settings, &scope, also, command, format, out);
    }
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    let mut progress = Progress::new(std::io::stderr().is_terminal());
    let mut say = |text: &str| progress.say(text);
    let reaped = pipeline::reap(&Host::live(), &settings, &scope, also, &mut interrupt, &mut say)?;
    progress.clear();
    match format {
        Format::Table => report::render_reaped(&reaped, style(), out)?,
        Format::Json => json::render_reaped(&reaped, out)?,
    }
    Ok(exit::of_reaped(&reaped))
}
