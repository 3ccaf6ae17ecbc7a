//! Configuration in three types: as typed (`fragment`), merged over the layers (`merge`), valid (`settings`).

mod problem;
pub mod settings;
mod yaml;
