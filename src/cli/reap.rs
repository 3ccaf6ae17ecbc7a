//! `portreeve reap`: ends the orphans and proves it.

use std::io::Write;

use crate::{
    act::{interrupt::Interrupt, tally},
    host::Host,
    pipeline::{self, Event, Orders},
    report::{self, exit, github, journal::Record, json, line, prometheus},
};

use super::{
    Deed, Failure, Target, Verbosity,
    output::{Format, Output, append_outputs, append_summary},
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
    let also = deed.also(&target.scope())?;
    let hand_over = if deed.no_wait { command_of(&target, deed) } else { None };
    let (mut settings, scope) = target.guarded(&Host::live())?;
    if let Some(grace) = deed.grace {
        settings.override_grace(grace);
    }
    if deed.dry_run {
        let command = json::Command::Reap;
        return scan::report_findings(&settings, &scope, also, command, output, verbosity, out);
    }
    let orders = Orders { hand_over, began_ticks: None };
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    let mut record = Record::new(verbosity.is_verbose);
    let mut tell = |event: Event<'_>| record.tell(event);
    let reaped =
        pipeline::reap(&Host::live(), &settings, &scope, also, &orders, &mut interrupt, &mut tell)?;
    record.reaped(&reaped);
    match output.format {
        Format::Table => report::render_reaped(&reaped, output.style(verbosity.is_verbose), out)?,
        Format::Json => json::render_reaped(&reaped, out)?,
        Format::Github => {
            github::render_reaped(&reaped, out)?;
            append_summary(|room| github::summary_of_reaped(&reaped, room));
            append_outputs(&github::outputs_of_reaped(&reaped));
        }
        Format::Line => line::render_reaped(&reaped, out)?,
        Format::Prometheus => {
            prometheus::render_reaped(&reaped, tally::read(&Host::live()).ok(), out)?;
        }
    }
    output.put_document(|out| json::render_reaped(&reaped, out))?;
    Ok(exit::of_reaped(&reaped))
}

/// What a unit runs in our stead: the same question, for unsupervised containers alone. It looks and judges anew.
fn command_of(target: &Target, deed: &Deed) -> Option<Vec<String>> {
    let exe = std::env::current_exe().ok()?;
    let mut command = vec![exe.to_str()?.to_owned()];
    // What it did stands in the journal, with its fields.
    command.extend(["reap", "--quiet", "--also", "unsupervised"].map(str::to_owned));
    if let Some(file) = &target.file.config {
        let file = std::path::absolute(file).ok()?;
        command.extend(["--config".to_owned(), file.to_str()?.to_owned()]);
    }
    if let Some(grace) = deed.grace {
        command.extend(["--grace".to_owned(), format!("{}ms", grace.as_millis())]);
    }
    for port in &target.ports {
        command.extend(["--port".to_owned(), port.to_string()]);
    }
    for gpu in &target.gpus {
        command.extend(["--gpu".to_owned(), gpu.to_string()]);
    }
    command.extend(target.services.iter().cloned());
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;

    #[test]
    fn what_is_handed_over_asks_about_no_more_than_this_run() {
        let words = ["--port", "8091/tcp", "--gpu", "0", "web"];
        let cli = Cli::try_parse_from([&["portreeve", "reap", "--no-wait"], &words[..]].concat());
        let Verb::Reap { target, deed, .. } = cli.unwrap().verb else { panic!("another verb") };
        assert!(command_of(&target, &deed).unwrap().ends_with(&words.map(str::to_owned)));
    }
}
