//! Which models there are, and their ports and GPUs among what is guarded.

use super::{State, registry::Record};
use crate::{backend::Spec, config::settings::Settings, ident::ModelName};

/// Every model by name, with declared ones laid over registered ones; of one that never had a state it is `stopped`.
pub fn all(settings: &Settings, records: Vec<Record>) -> Vec<Record> {
    let mut all = records;
    for (name, spec) in &settings.models {
        let spec = Some(spec.clone());
        match all.iter_mut().find(|record| record.name == *name) {
            Some(record) => (record.spec, record.is_declared) = (spec, true),
            None => all.push(Record {
                name: name.clone(),
                spec,
                state: State::Stopped,
                since_ms: 0,
                why: String::new(),
                worker: None,
                is_declared: true,
            }),
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// What is wanted of each of them.
pub fn wanted(all: &[Record]) -> Vec<(ModelName, Spec)> {
    all.iter().filter_map(|record| Some((record.name.clone(), record.spec.clone()?))).collect()
}
