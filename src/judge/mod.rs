//! Facts → verdicts. Pure: no I/O, no clock, no logging.

pub mod port;
pub mod verdict;
