//! Orphaned model containers for `scan`: engines are asked only where the registry has, or had, a model. Writes nothing.

use std::path::Path;

use super::{Leftover, look};
use crate::{
    config::settings::Settings,
    host::Host,
    ident::ModelName,
    judge::verdict::Unknown,
    models::{
        Registry, guard,
        lifecycle::Keeper,
        registry::{Record, RegistryError},
    },
    pipeline::{Findings, OrphanedContainer, Scope},
};

/// Adds those that run to what a look found, with what could not be seen of them. Of a question that is narrowed to other
/// things than models it adds nothing.
pub fn scan(
    host: &Host,
    settings: &Settings,
    registry: Result<&Path, &RegistryError>,
    scope: &Scope,
    findings: &mut Findings,
) {
    if settings.unread_models.is_some() {
        // That is told already.
        return;
    }
    let found = match registry {
        Ok(path) => find(host, settings, path, scope).map_err(|error| error.to_string()),
        // Whoever runs this has none, and so no models.
        Err(RegistryError::NoPlace) => return,
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(Some((orphans, unseen))) => {
            findings.model_containers = Some(orphans);
            findings.unknowns.extend(unseen);
        }
        Ok(None) => {}
        Err(error) => {
            let (why, remedy) = error.split_once("\nhint: ").unwrap_or((&error, ""));
            findings.unknowns.push(Unknown {
                fact: "which containers of models are left over".to_owned(),
                why: why.to_owned(),
                remedy: Some(remedy.to_owned()).filter(|remedy| !remedy.is_empty()),
            });
        }
    }
}

type Found = (Vec<OrphanedContainer>, Vec<Unknown>);

/// None where it was not asked about.
fn find(
    host: &Host,
    settings: &Settings,
    path: &Path,
    scope: &Scope,
) -> Result<Option<Found>, RegistryError> {
    let is_narrow = !scope.is_everything();
    if is_narrow && scope.services.is_empty() {
        return Ok(None);
    }
    let registry = Registry::look(path)?;
    let records = registry.as_ref().map(Registry::all).transpose()?.unwrap_or_default();
    let was_used = !records.is_empty()
        || registry.as_ref().map(|r| r.events(None, 1)).transpose()?.is_some_and(|e| !e.is_empty());
    let models = guard::wanted(settings, &records);
    let is_named = |model: &ModelName| scope.services.iter().any(|name| name.0 == model.0);
    let names = models.iter().map(|(name, _)| name).chain(records.iter().map(name_of));
    if is_narrow && !{ names }.any(is_named) {
        return Ok(None);
    }
    // Nothing was ever made by it.
    if registry.is_none() || !was_used {
        return Ok(Some((Vec::new(), Vec::new())));
    }
    let keeper = Keeper { host, settings, registry: path, models: &models, until: None };
    let sight = look(&keeper, Registry::look)?;
    let is_meant = |one: &&Leftover| !is_narrow || one.model.as_ref().is_some_and(is_named);
    let orphans = sight.leftovers.iter().filter(|one| one.is_orphan() && one.is_up());
    let orphans = orphans.filter(is_meant).map(OrphanedContainer::from).collect();
    let is_used = !models.is_empty() || !records.is_empty();
    let unseen = if is_used { sight.unseen } else { Vec::new() };
    Ok(Some((orphans, unseen)))
}

fn name_of(record: &Record) -> &ModelName {
    &record.name
}

impl From<&Leftover> for OrphanedContainer {
    fn from(one: &Leftover) -> Self {
        let named = one.model.as_ref().map_or(&one.name, |model| &model.0);
        Self {
            name: one.name.clone(),
            id: one.id.clone(),
            engine: one.engine.name,
            model: one.model.clone(),
            state: one.state.to_string(),
            why: one.kind.to_string(),
            restarts: one.restarts().map(str::to_owned),
            next_step: format!("portreeve model clean {named}"),
        }
    }
}
