//! What this process may see and do here, and what would mend what it may not. Asks only what changes nothing and
//! wakes nobody up; what a feature needs is tried out where that is harmless, not guessed from a version.
//!
//! One file per area, each in two halves: `look` reads the machine, `checks` is pure.

mod config;
mod engines;
mod gpus;
mod kernel;
mod ports;
mod registry;
mod rights;
mod systemd;

pub use ports::{SysctlError, sysctl_file};

use crate::{
    config::{ConfigErrors, Loaded},
    host::Host,
    observe::gpus::Sources,
};

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// What this process may do.
    Rights,
    /// What the kernel can do.
    Kernel,
    /// systemd and logind.
    Systemd,
    /// Container engines.
    Engines,
    /// GPUs and their libraries.
    Gpus,
    /// Files of the configuration.
    Config,
    /// The registry of models.
    Models,
    /// Guarded ports.
    Ports,
}

impl Area {
    /// All of them, in the order of a report.
    pub const ALL: [Self; 8] = [
        Self::Rights,
        Self::Kernel,
        Self::Systemd,
        Self::Engines,
        Self::Gpus,
        Self::Config,
        Self::Models,
        Self::Ports,
    ];
}

/// How a check came out. Only what is off or unknown can name a fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is there and works.
    Good,
    /// Another way is taken; what is lost thereby, the detail says. There is nothing to mend.
    Fallback,
    /// It is not here, and nothing misses it.
    Absent,
    /// Something does not work for want of this.
    Off {
        /// What would mend it.
        fix: String,
    },
    /// It could not be learnt.
    Unknown {
        /// What would let it be learnt, where we know that.
        fix: Option<String>,
    },
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What it is about.
    pub area: Area,
    /// Its name, the same on every machine; of engines and files, their path.
    pub name: String,
    /// How it came out.
    pub state: State,
    /// What that means here, in a sentence.
    pub detail: String,
}

impl Check {
    fn new(area: Area, name: &str, state: State, detail: impl Into<String>) -> Self {
        Self { area, name: name.to_owned(), state, detail: detail.into() }
    }

    /// What would mend it, where something would.
    pub fn fix(&self) -> Option<&str> {
        match &self.state {
            State::Off { fix } => Some(fix),
            State::Unknown { fix } => fix.as_deref(),
            State::Good | State::Fallback | State::Absent => None,
        }
    }
}

fn off(fix: impl Into<String>) -> State {
    State::Off { fix: fix.into() }
}

/// Looks at everything, area by area. A configuration that does not load is one more finding.
pub fn examine(
    host: &Host,
    config: Result<&Loaded, &ConfigErrors>,
    gpu_sources: Sources,
) -> Vec<Check> {
    let settings = config.ok().map(|loaded| &loaded.settings);
    let mut checks = [
        rights::checks(&rights::look(host)),
        kernel::checks(&kernel::look(host)),
        systemd::checks(&systemd::look(host)),
        engines::checks(&engines::look(host)),
        gpus::checks(&gpus::look(host, gpu_sources)),
        config::checks(config),
        registry::checks(&registry::look(host)),
        ports::checks(&ports::look(host), settings),
    ]
    .concat();
    checks.sort_by_key(|check| check.area);
    checks
}
