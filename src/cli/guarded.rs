//! The settings that a verb works with: those of the files, with every model guarded that is declared or registered.

use crate::{
    config::{
        ConfigErrors,
        settings::{Settings, UnreadModels},
    },
    host::Host,
    models::{
        Registry, guard,
        registry::{self, Record, RegistryError},
        started,
    },
    pipeline::{Receipts, Scope},
};

use super::{ConfigFile, Target};

impl ConfigFile {
    /// With them the receipts of what was started. Errors of the files; a registry that cannot be read is told by the settings.
    pub(super) fn guarded(self, host: &Host) -> Result<(Settings, Receipts), ConfigErrors> {
        let mut settings = self.load()?.settings;
        let receipts = guard_models(host, &mut settings);
        Ok((settings, receipts))
    }
}

impl Target {
    /// The same, with what they are asked about; there an unknown service is explained by what could not be read.
    pub(super) fn guarded(self, host: &Host) -> Result<(Settings, Scope), ConfigErrors> {
        let scope = self.scope();
        let (settings, receipts) = self.file.guarded(host)?;
        if let Some(unread) = &settings.unread_models
            && scope.services.iter().any(|name| settings.service(name).is_none())
        {
            super::warn(&in_words(unread));
        }
        Ok((settings, Scope { receipts, ..scope }))
    }
}

/// Guards the models of whoever runs this: root's are the system's. Answers with what was started of them.
pub(super) fn guard_models(host: &Host, settings: &mut Settings) -> Receipts {
    let (records, receipts) = registered(host).unwrap_or_else(|error| {
        settings.unread_models = Some(unread(&error));
        (Vec::new(), Receipts::default())
    });
    let models = guard::wanted(settings, &records);
    guard::guard(settings, &models);
    receipts
}

fn registered(host: &Host) -> Result<(Vec<Record>, Receipts), RegistryError> {
    let none = || Ok((Vec::new(), Receipts::default()));
    // A user without a home has registered nothing.
    let Ok(path) = registry::path(host) else { return none() };
    let Some(registry) = Registry::look(&path)? else { return none() };
    let records = registry.all()?;
    let receipts = started::receipts(host, &registry, &records)?;
    Ok((records, started::told(host, path, receipts)))
}

fn unread(error: &RegistryError) -> UnreadModels {
    let text = error.to_string();
    let (why, remedy) = text
        .split_once("\nhint: ")
        .map_or((text.as_str(), None), |(why, hint)| (why, Some(hint.to_owned())));
    UnreadModels { why: why.to_owned(), remedy }
}

/// What is missing and what would help, in one line.
pub(super) fn in_words(unread: &UnreadModels) -> String {
    let UnreadModels { why, remedy } = unread;
    let remedy = remedy.as_ref().map(|remedy| format!(" ({remedy})"));
    format!("which models are registered is not known: {why}{}", remedy.unwrap_or_default())
}
