//! What a model is doing, as the registry has it, and which step may follow which.

use std::fmt;

/// States of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It does not run, and nothing of it is left.
    Stopped,
    /// On its way up: created, started, loading.
    Starting,
    /// Its health endpoint answered, and the listener is its own.
    Running,
    /// On its way down.
    Stopping,
    /// It ended by itself, or did not come up or down. What may be left of it, its receipt says.
    Failed,
}

/// A step that the present state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forbidden {
    /// The present state.
    pub from: State,
    /// The one that was wanted.
    pub to: State,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is {}, and from there it cannot become {}", self.from, self.to)
    }
}

impl std::error::Error for Forbidden {}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Stopped, Self::Starting, Self::Running, Self::Stopping, Self::Failed];

    /// A start begins.
    pub fn begin_start(self) -> Result<Self, Forbidden> {
        match self {
            Self::Stopped | Self::Failed => Ok(Self::Starting),
            Self::Starting | Self::Running | Self::Stopping => self.forbids(Self::Starting),
        }
    }

    /// The start came to its end: healthy, and itself.
    pub fn come_up(self) -> Result<Self, Forbidden> {
        match self {
            Self::Starting => Ok(Self::Running),
            Self::Stopped | Self::Running | Self::Stopping | Self::Failed => {
                self.forbids(Self::Running)
            }
        }
    }

    /// A stop begins. Also of what failed: something may be left of it.
    pub fn begin_stop(self) -> Result<Self, Forbidden> {
        match self {
            Self::Starting | Self::Running | Self::Stopping | Self::Failed => Ok(Self::Stopping),
            Self::Stopped => self.forbids(Self::Stopping),
        }
    }

    /// It is seen that nothing of it runs, and that it was to be so.
    #[must_use]
    pub fn come_down(self) -> Self {
        Self::Stopped
    }

    /// It did not come up, ended by itself, or could not be got down.
    #[must_use]
    pub fn fail(self) -> Self {
        Self::Failed
    }

    /// Whether something of it may run.
    pub fn is_up(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Stopping => true,
            Self::Stopped | Self::Failed => false,
        }
    }

    fn forbids(self, to: Self) -> Result<Self, Forbidden> {
        Err(Forbidden { from: self, to })
    }

    /// As the registry writes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        }
    }

    /// The state of this word.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_these_steps_are_allowed() {
        use State::{Failed, Running, Starting, Stopped, Stopping};
        let of = |step: fn(State) -> Result<State, Forbidden>| {
            State::ALL.into_iter().filter(|state| step(*state).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(of(State::begin_start), [Stopped, Failed]);
        assert_eq!(of(State::come_up), [Starting]);
        assert_eq!(of(State::begin_stop), [Starting, Running, Stopping, Failed]);
        let forbidden = Running.begin_start().unwrap_err().to_string();
        assert_eq!(forbidden, "it is running, and from there it cannot become starting");
    }

    #[test]
    fn every_state_is_read_back_as_it_is_written() {
        for state in State::ALL {
            assert_eq!(State::of_word(state.word()), Some(state));
        }
        assert_eq!(State::of_word("paused"), None);
    }
}
