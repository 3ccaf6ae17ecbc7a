//! Why a model did not come up, or down: for the registry, for a person, for the exit code.

use std::fmt;

use crate::engine::{Deed, Made, NoAnswer};

use super::registry::RegistryError;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// In a sentence.
    pub why: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The last that its container wrote.
    pub log: Vec<String>,
    /// Only our sight failed, or we could not do what we wanted: nothing is known to be wrong with the model.
    pub is_unknown: bool,
}

impl Trouble {
    /// It did not work.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), hint: None, log: Vec::new(), is_unknown: false }
    }

    /// Whether it would have worked is not known.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { is_unknown: true, ..Self::new(why) }
    }

    /// From a text with its hint in a line of its own.
    pub fn of(error: &impl fmt::Display) -> Self {
        let text = error.to_string();
        match text.split_once("\nhint: ") {
            Some((why, hint)) => Self::new(why).hint(hint),
            None => Self::new(text),
        }
    }

    /// What went wrong, and what to do in a line of its own.
    pub fn with_hint(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{}\nhint: {hint}", self.why),
            None => self.why.clone(),
        }
    }

    /// With what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<RegistryError> for Trouble {
    fn from(error: RegistryError) -> Self {
        Self { is_unknown: true, ..Self::of(&error) }
    }
}

impl From<NoAnswer> for Trouble {
    fn from(why: NoAnswer) -> Self {
        Self { is_unknown: true, ..Self::of(&why) }
    }
}

impl std::error::Error for Trouble {}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// How a server ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// As a shell has it: 128 + N where signal N ended it. None where that is not known.
    pub code: Option<u8>,
    /// In words.
    pub how: String,
}

/// What an order came to, where it was not done.
pub fn undone(order: &str, deed: &Deed) -> Option<Trouble> {
    match deed {
        Deed::Done | Deed::AlreadySo => None,
        Deed::Gone => Some(Trouble::new(format!("{order}: the container is gone"))),
        Deed::Conflict(words) => Some(Trouble::new(format!("{order}: {words}"))),
        Deed::Failed(status, words) => {
            Some(Trouble::new(format!("{order}: the engine failed ({status}): {words}")))
        }
        Deed::NoAnswer(why) => Some(Trouble::unknown(format!("{order}: {why}"))),
    }
}

/// How a container that we did not end came to its end. 128 + n is signal n; Docker and Podman call it 137 whoever sent the
/// SIGKILL, and tell apart only what the kernel did for want of memory in the container's own control group.
pub fn how_it_ended(made: &Made) -> String {
    const SIGNALS: [(i64, &str); 7] = [
        (2, "SIGINT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (15, "SIGTERM"),
    ];
    if !made.error.is_empty() {
        return format!("its engine says: {}", made.error);
    }
    let Some(code) = made.exit_code else { return "how it ended is not known".to_owned() };
    if made.oom_killed {
        return format!("the kernel killed it for want of memory (exit code {code})");
    }
    // Docker's word for one that was dead when it came back (daemon/monitor.go, `ExitCode: 255`).
    if code == 255 {
        return "it was dead when its engine looked again, or ended with exit code 255".to_owned();
    }
    match SIGNALS.iter().find(|(number, _)| number + 128 == code) {
        Some((9, _)) => "somebody killed it with SIGKILL (exit code 137): neither portreeve, nor the kernel for want of memory \
                         in its container ('journalctl -k' tells whether the host was short of it)"
            .to_owned(),
        Some((_, signal)) => format!("{signal} ended it (exit code {code})"),
        None => format!("it ended by itself, with exit code {code}"),
    }
}
