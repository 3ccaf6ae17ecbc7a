//! Three-valued answers: what is not known is neither yes nor no.

use crate::snapshot::Seen;

use super::verdict::Unknown;

/// Whether a condition of the verdict table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// A fact that it rests on is not known.
    Unknown(Unknown),
}

impl Truth {
    /// Both hold. A known "no" needs no other fact.
    #[must_use]
    pub fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::No => Self::No,
            Self::Yes => other(),
            Self::Unknown(unknown) => match other() {
                Self::No => Self::No,
                Self::Yes | Self::Unknown(_) => Self::Unknown(unknown),
            },
        }
    }

    /// One of them holds. A known "yes" needs no other fact.
    #[must_use]
    pub fn or(self, other: impl FnOnce() -> Self) -> Self {
        !(!self).and(|| !other())
    }
}

impl std::ops::Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unknown(unknown) => Self::Unknown(unknown),
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// The value of a fact, or what is not known and why.
pub fn known<T>(seen: &Seen<T>, name: impl FnOnce() -> String) -> Result<&T, Unknown> {
    let why = match seen {
        Seen::Known(value) => return Ok(value),
        Seen::Gone => "it was gone when it was read".to_owned(),
        Seen::Denied => "permission denied".to_owned(),
        Seen::Unreadable(why) => why.clone(),
    };
    Err(Unknown { fact: name(), why, remedy: None })
}

/// A condition on a fact that may not be known.
pub fn fact<T>(
    seen: &Seen<T>,
    name: impl FnOnce() -> String,
    test: impl FnOnce(&T) -> Truth,
) -> Truth {
    known(seen, name).map_or_else(Truth::Unknown, test)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> Truth {
        fact(&Seen::<()>::Denied, || "a".to_owned(), |()| Truth::Yes)
    }

    #[test]
    fn a_known_answer_wins_over_an_unknown_one_where_it_alone_decides() {
        assert_eq!(unknown().and(|| Truth::No), Truth::No);
        assert_eq!(Truth::No.and(unknown), Truth::No);
        assert_eq!(unknown().or(|| Truth::Yes), Truth::Yes);
        assert_eq!(Truth::Yes.or(unknown), Truth::Yes);
    }

    #[test]
    fn an_unknown_that_decides_stays_unknown() {
        assert_eq!(unknown().and(|| Truth::Yes), unknown());
        assert_eq!(Truth::Yes.and(unknown), unknown());
        assert_eq!(unknown().or(|| Truth::No), unknown());
        assert_eq!(!unknown(), unknown());
    }
}
