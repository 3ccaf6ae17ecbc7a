//! `portreeve doctor`: what this process may see and do here.

use std::io::Write;

use crate::{
    doctor,
    host::Host,
    report::{doctor as report, exit},
};

use super::{ConfigFile, Failure, Format, style};

/// Looks and reports, or prints the file for `/etc/sysctl.d`.
pub(super) fn run(
    file: ConfigFile,
    format: Format,
    only_sysctl: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let host = Host::live();
    let config = file.load();
    if only_sysctl {
        out.write_all(doctor::sysctl_file(&host, &config?.settings)?.as_bytes())?;
        return Ok(exit::CLEAR);
    }
    let checks = doctor::examine(&host, config.as_ref());
    match format {
        Format::Table => report::render(&checks, style(), out)?,
        Format::Json => report::render_json(&checks, out)?,
    }
    Ok(report::exit_code(&checks))
}
