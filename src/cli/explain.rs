//! `portreeve explain`: the whole chain of evidence for one process, port or GPU.

use std::{io::Write, str::FromStr};

use crate::{
    host::Host,
    ident::{Endpoint, GpuName, Pid},
    pipeline::{self, Subject},
    report::explain,
};

use super::{
    ConfigFile, Failure,
    output::{Format, Output},
};

/// `4242`, `8091/tcp`, `pid:4242`, `port:8091`, `gpu:0`, `GPU-…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// Surely one of them.
    Only(Subject),
    /// A bare number, which may be either.
    Either(Pid, Endpoint),
    /// A number that no port has.
    Pid(Pid),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(pid) = text.strip_prefix("pid:") {
            let pid = pid.parse().map_err(|_| "expected a process id behind 'pid:'".to_owned())?;
            return Ok(Self::Only(Subject::Process(Pid(pid))));
        }
        if let Some(name) = text.strip_prefix("gpu:") {
            let name = name.parse().map_err(|error| format!("{error}, behind 'gpu:'"))?;
            return Ok(Self::Only(Subject::Gpu(name)));
        }
        if let Ok(name @ (GpuName::Uuid(_) | GpuName::Bus(_))) = text.parse() {
            return Ok(Self::Only(Subject::Gpu(name)));
        }
        let port = text.strip_prefix("port:").unwrap_or(text);
        let endpoint: Result<Endpoint, _> = port.parse();
        match (endpoint, text.parse()) {
            (Ok(endpoint), Ok(pid)) => Ok(Self::Either(Pid(pid), endpoint)),
            (Ok(endpoint), Err(_)) => Ok(Self::Only(Subject::Port(endpoint))),
            (Err(_), Ok(pid)) => Ok(Self::Pid(Pid(pid))),
            (Err(error), Err(_)) => {
                Err(format!("{error}, a process id such as 4242, or a GPU such as gpu:0"))
            }
        }
    }
}

/// Looks and explains.
pub(super) fn run(
    asked: Asked,
    file: ConfigFile,
    output: &Output,
    is_verbose: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    if matches!(output.format, Format::Github | Format::Line | Format::Prometheus) {
        return Err(Failure::Usage(
            "an explanation is written for a person or as JSON\nhint: --format table or json"
                .to_owned(),
        ));
    }
    let host = Host::live();
    let (settings, receipts) = file.guarded(&host)?;
    let subject = match asked {
        Asked::Only(subject) => subject,
        Asked::Pid(pid) => Subject::Process(pid),
        Asked::Either(pid, endpoint) => {
            let is_process = host.path(format!("proc/{pid}")).exists();
            let mut guarded = settings.services.iter().flat_map(|s| &s.ports);
            let is_guarded = guarded.any(|p| p.overlaps(&endpoint));
            match (is_process, is_guarded) {
                (true, false) => Subject::Process(pid),
                (false, _) => Subject::Port(endpoint),
                (true, true) => {
                    return Err(Failure::Usage(format!(
                        "'{pid}' is a guarded port and a process\nhint: say port:{pid} or pid:{pid}"
                    )));
                }
            }
        }
    };
    let explained = pipeline::explain(&host, &settings, &subject, &receipts)?;
    if let (Subject::Process(pid), true) = (&subject, explained.processes.is_empty()) {
        return Err(Failure::Usage(format!(
            "no process {pid} is to be seen here\nhint: it may have ended, or run outside this pid namespace"
        )));
    }
    match output.format {
        Format::Json => explain::render_json(&explained, out)?,
        Format::Table | Format::Github | Format::Line | Format::Prometheus => {
            explain::render(&explained, output.style(is_verbose), out)?;
        }
    }
    output.put_document(|out| explain::render_json(&explained, out))?;
    Ok(explain::exit_code(&explained))
}
