//! The stack's models: how they are brought up and down, what each is doing, and what became of it.

pub mod cards;
pub mod exec;
pub mod guard;
pub mod health;
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
pub mod state;
pub mod trouble;
pub mod unit;

pub use registry::Registry;
pub use state::State;
