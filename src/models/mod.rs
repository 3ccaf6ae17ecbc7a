//! The stack's models: how they are brought up and down, what each is doing, and what became of it.

pub mod cards;
pub mod exec;
pub mod guard;
pub mod handover;
pub mod health;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod journal;
pub mod launch;
pub mod leftovers;
pub mod lifecycle;
pub mod logs;
pub mod names;
pub mod native;
pub mod plan;
pub mod receipt;
pub mod reconcile;
pub mod registry;
mod run;
pub mod service;
pub mod started;
pub mod state;
pub mod trouble;
pub mod unit;
pub mod unit_file;
pub mod usage;

pub use registry::Registry;
pub use state::State;
