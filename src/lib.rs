//! portreeve keeps an AI stack's ports and GPUs free for the services that own them.
//!
//! The modules in the order in which a question flows through them; each may use only those above
//! it (`tests/layers.rs` reads the imports and fails on an arrow that runs the other way):
//!
//! ```text
//! config ─► observe ─► judge ─► act ─► report
//! ```
//!
//! One law stands above all others: incomplete sight only makes us gentler.

pub mod ident;
pub mod sys;
pub mod command;
pub mod snapshot;
pub mod host;
pub mod engine;
pub mod backend;
pub mod config;
pub mod observe;
pub mod judge;
pub mod act;
pub mod pipeline;
pub mod gate;
pub mod models;
pub mod doctor;
pub mod report;
pub mod cli;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
