//! Answers of compose that are none.

use std::path::PathBuf;

use super::{
    answer::read,
    ask::{DOCKER_COMPOSE, PODMAN_COMPOSE, Told},
};
use crate::config::fragment::ComposeFragment;

/// An answer: of each kind of compose the same bytes.
pub(in crate::config) fn compose(text: &str) {
    let entry = ComposeFragment {
        files: vec![PathBuf::from("/srv/ai/compose.yaml")],
        profiles: vec!["debug".to_owned()],
        prefix: None,
    };
    for by in [DOCKER_COMPOSE, "docker-compose", PODMAN_COMPOSE] {
        let told = Told { by, text: text.to_owned(), warnings: Vec::new() };
        let Ok(services) = read(&told, &entry) else { continue };
        for service in services.values() {
            for (at, port) in service.ports.iter().enumerate().take(64) {
                let mut others = service.ports.iter().skip(at + 1).take(64);
                assert!(!others.any(|other| other == port), "{port} twice");
            }
            assert!(!service.is_on_host || service.ports.is_empty());
        }
    }
}
