//! Configuration in three types: as typed (`fragment`), merged over the layers (`merge`), valid (`settings`).

pub mod settings;
