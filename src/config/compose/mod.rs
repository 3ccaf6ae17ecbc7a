//! `compose:` → services: what a compose file publishes, by compose's own word, as a layer right below the file that names it.

mod ask;
mod gpu;
mod answer;
#[cfg(any(test, fuzzing))]
pub(super) mod hostile;

use std::{collections::BTreeMap, path::PathBuf};

use self::{
    answer::Service,
    ask::{Compose, Told},
};
use super::{
    fragment::{At, ComposeFragment, Fragment, Place, ServiceFragment},
    problem::{Problem, quoted, shown},
    source::{self, Layer, Sources},
    values::is_word,
};
use crate::ident::{Endpoint, GpuName, ServiceName};

/// What became of one entry of `compose:`.
#[derive(Debug, Clone)]
pub struct Composed {
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Who answered: `docker compose`, `docker-compose` or `podman-compose`.
    pub by: &'static str,
    /// What guards nothing, and why: sentences.
    pub remarks: Vec<String>,
    /// What compose said beside its answer, a line each.
    pub warnings: Vec<String>,
}

/// The layer that the entries of one file make.
pub(super) struct Derived {
    pub(super) fragment: Fragment,
    pub(super) composed: Vec<Composed>,
    pub(super) problems: Vec<Problem>,
}

/// Asks compose about these entries of `naming`, for a layer of this rank.
pub(super) fn derive(
    rank: usize,
    naming: &Layer,
    entries: &[At<ComposeFragment>],
    sources: &Sources,
) -> Derived {
    let mut derived =
        Derived { fragment: Fragment::default(), composed: Vec::new(), problems: Vec::new() };
    let mut compose: Option<Result<Compose, ask::Failure>> = None;
    for entry in entries {
        let place = Place { layer: rank, ..entry.place };
        let told = trusted(&entry.value, sources).and_then(|()| {
            let compose = compose.get_or_insert_with(|| Compose::find(sources));
            compose.as_ref().map_err(Clone::clone)?.ask(&entry.value)
        });
        let wrong = match told.and_then(|told| Ok((answer::read(&told, &entry.value)?, told))) {
            Ok((services, told)) => derived.add(&entry.value, place, services, told),
            Err(failure) => vec![failure],
        };
        let problem = |ask::Failure { message, hint }| naming.problem(place, message, hint);
        derived.problems.extend(wrong.into_iter().map(problem));
    }
    derived
}

/// Whether the run may take the files' word, and the word of the `.env` that compose reads beside them.
fn trusted(entry: &ComposeFragment, sources: &Sources) -> Result<(), ask::Failure> {
    let beside = entry.folder().join(".env");
    let beside = (sources.is_privileged && !source::is_missing(&beside)).then_some(beside);
    for file in entry.files.iter().chain(&beside) {
        source::check(file, sources.is_privileged).map_err(|(why, hint)| ask::Failure {
            message: format!("compose file '{}': {why}", shown(file)),
            hint,
        })?;
    }
    Ok(())
}

impl Derived {
    fn add(
        &mut self,
        entry: &ComposeFragment,
        place: Place,
        services: BTreeMap<String, Service>,
        told: Told,
    ) -> Vec<ask::Failure> {
        let (mut remarks, mut wrong) = (Vec::new(), Vec::new());
        for (name, service) in services {
            remarks.extend(service.remarks.iter().map(|why| format!("'{name}' {why}")));
            if !service.has_something_to_say() {
                continue;
            }
            let name = format!("{}{name}", entry.prefix.as_deref().unwrap_or_default());
            if let Err(failure) = self.add_service(&name, place, service) {
                wrong.push(failure);
            }
        }
        let (files, warnings) = (entry.files.clone(), told.warnings);
        self.composed.push(Composed { files, by: told.by, remarks, warnings });
        wrong
    }

    fn add_service(
        &mut self,
        name: &str,
        place: Place,
        service: Service,
    ) -> Result<(), ask::Failure> {
        let hint = |prefix: &str| {
            Some(format!("give the entry a prefix: {{ file: FILE, prefix: {prefix} }}"))
        };
        if !is_word(name) || name.len() > 64 {
            let name = quoted(name, 64);
            let message = format!("compose service '{name}' has no name for a service here");
            return Err(ask::Failure { message, hint: hint("ai-") });
        }
        let name = ServiceName::from(name);
        if self.fragment.services.contains_key(&name) {
            let message = format!("two compose files have a service '{name}'");
            return Err(ask::Failure { message, hint: hint("other-") });
        }
        let at = |endpoint: Endpoint| At { value: endpoint, place };
        let ports: Vec<At<Endpoint>> = service.ports.into_iter().map(at).collect();
        let gpus: Vec<At<GpuName>> =
            service.gpus.into_iter().map(|value| At { value, place }).collect();
        let fragment = ServiceFragment {
            runs_in: Some(At { value: service.runs_in, place }),
            // A service that publishes nothing takes nothing from the layers below.
            ports: (!ports.is_empty()).then_some(At { value: ports, place }),
            gpus: (!gpus.is_empty()).then_some(At { value: gpus, place }),
            ..ServiceFragment::default()
        };
        self.fragment.services.insert(name, At { value: fragment, place });
        Ok(())
    }
}
