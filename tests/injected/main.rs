//! Faults on ourselves: calls that fail, and what is exhausted, full, or jumps. Incomplete sight only makes us gentler.
//! `docs/proof.md` says what was injected and what came out; `tests/injected/run` plays more of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]
#![allow(clippy::print_stdout, reason = "a skip and the figures are said aloud")]

#[path = "../support/mod.rs"]
mod support;

mod binary;
mod clock;
mod disk;
mod door;
mod reads;

/// How much is played: all of it by `tests/injected/run`.
fn is_long() -> bool {
    std::env::var_os("PORTREEVE_LONG").is_some()
}
