//! `portreeve doctor`: what this process may see and do here.

use std::io::Write;

use crate::{
    doctor,
    host::Host,
    pipeline,
    report::{doctor as report, exit, github, line, prometheus},
};

use super::{
    ConfigFile, Failure,
    guarded::guard_models,
    output::{Format, Output, append_summary},
};

/// Looks and reports, or prints the file for `/etc/sysctl.d`.
pub(super) fn run(
    file: ConfigFile,
    output: &Output,
    only_sysctl: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let host = Host::live();
    let mut config = file.load();
    if let Ok(loaded) = &mut config {
        guard_models(&host, &mut loaded.settings);
    }
    if only_sysctl {
        out.write_all(doctor::sysctl_file(&host, &config?.settings)?.as_bytes())?;
        return Ok(exit::CLEAR);
    }
    let sources = config.as_ref().map(|loaded| pipeline::sources(&loaded.settings));
    let checks = doctor::examine(&host, config.as_ref(), sources.unwrap_or_default());
    match output.format {
        Format::Table => report::render(&checks, output.style(false), out)?,
        Format::Json => report::render_json(&checks, out)?,
        Format::Github => {
            github::render_checks(&checks, out)?;
            append_summary(|room| github::summary_of_checks(&checks, room));
        }
        Format::Line => line::render_checks(&checks, out)?,
        Format::Prometheus => prometheus::render_checks(&checks, out)?,
    }
    output.put_document(|out| report::render_json(&checks, out))?;
    Ok(report::exit_code(&checks))
}
