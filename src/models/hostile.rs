//! What models, their managers and their files say, and what must be true whatever it is. Built for the fuzzer and for the
//! tests that read its corpora again (`crate::fuzzing`).

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use std::{collections::HashMap, net::IpAddr};

pub use super::registry::hostile::{database, registry};
use super::service::Service;
use crate::{
    backend::{BackendName, Spec, Told},
    observe::dbus::Value,
};

/// A handed-over file.
pub fn handover(bytes: &[u8]) {
    super::handover::hostile(bytes);
}

/// What a manager says of a model's unit: whole or not at all.
pub(crate) fn service(properties: &HashMap<String, Value>) {
    let Some(service) = Service::read(properties) else { return };
    assert!(
        ["LoadState", "ActiveState", "SubState"].iter().all(|key| properties.contains_key(*key))
    );
    assert!(!service.is_run(""), "no run has an empty id");
}

/// What a model answers that is asked what it serves: only its own name makes it the right one.
pub fn served(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice(bytes) else { return };
    for name in BackendName::ALL {
        let spec = Spec::sample(name);
        let told = Told {
            model: "/models/llama".to_owned(),
            address: IpAddr::from([127, 0, 0, 1]),
            port: name.backend().port,
        };
        let served = name.backend().served;
        let Some(ids) = (served.read)(&value) else { continue };
        let text = String::from_utf8_lossy(bytes);
        for id in ids.iter().filter(|id| (served.fits)(&spec, &told, id)) {
            assert!(id.contains("lama"), "{name}: {id} in {text}");
        }
    }
}
