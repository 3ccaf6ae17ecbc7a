//! The product's sentence: observe → judge → act, for `scan` and `reap`.

use crate::{
    act::{Deed, Respawn},
    judge::{port::PortVerdict, verdict::{Unknown, Verdict}},
};

/// What one look found: the dry-run report. Has no way to act.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Every guarded port, in the order of the settings.
    pub ports: Vec<PortVerdict>,
    /// Every nominated process.
    pub verdicts: Vec<Verdict>,
    /// What could not be seen beyond single verdicts, and what would help.
    pub unknowns: Vec<Unknown>,
}

/// What a reap did.
#[derive(Debug, Clone)]
pub struct Reaped {
    /// Every process that was to be ended.
    pub deeds: Vec<Deed>,
    /// Likes of the ended that came back.
    pub respawns: Vec<Respawn>,
    /// The last look, after the deeds: the proof.
    pub after: Findings,
    /// A signal to ourselves cut the run short.
    pub was_interrupted: bool,
}
