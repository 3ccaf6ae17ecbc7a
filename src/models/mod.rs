//! The stack's models: what is wanted of each, what became of it, and who may have its port and GPUs.

pub mod cards;
pub mod guard;
pub mod health;
pub mod launch;
pub mod lifecycle;
pub mod names;
pub mod plan;
pub mod receipt;
pub mod reconcile;
pub mod registry;
pub mod state;
pub mod trouble;

pub use registry::Registry;
pub use state::State;
