//! The stack's models: what is wanted of each, what became of it, and who may have its port and GPUs.

pub mod plan;
pub mod receipt;
pub mod registry;
pub mod state;

pub use registry::Registry;
pub use state::State;
