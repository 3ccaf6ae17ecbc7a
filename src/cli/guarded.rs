//! The settings that a verb works with: those of the files, with every model guarded that is declared or registered.

use crate::{
    config::{
        ConfigErrors,
        settings::{Settings, UnreadModels},
    },
    host::Host,
    ident::ServiceName,
    models::{
        Registry, guard,
        registry::{self, Record, RegistryError},
    },
};

use super::{ConfigFile, Target};

impl ConfigFile {
    /// Errors of the files; a registry that cannot be read is told by the settings.
    pub(super) fn guarded(self, host: &Host) -> Result<Settings, ConfigErrors> {
        let mut settings = self.load()?.settings;
        guard_models(host, &mut settings);
        Ok(settings)
    }
}

impl Target {
    /// The same, where an unknown service is to be explained by what could not be read.
    pub(super) fn guarded(self, host: &Host) -> Result<Settings, ConfigErrors> {
        let services: Vec<ServiceName> = self.scope().services;
        let settings = self.file.guarded(host)?;
        if let Some(unread) = &settings.unread_models
            && services.iter().any(|name| settings.service(name).is_none())
        {
            super::warn(&in_words(unread));
        }
        Ok(settings)
    }
}

/// Guards the models of whoever runs this: root's are the system's.
pub(super) fn guard_models(host: &Host, settings: &mut Settings) {
    let records = registered(host).unwrap_or_else(|error| {
        settings.unread_models = Some(unread(&error));
        Vec::new()
    });
    let models = guard::wanted(settings, &records);
    guard::guard(settings, &models);
}

fn registered(host: &Host) -> Result<Vec<Record>, RegistryError> {
    // A user without a home has registered nothing.
    let Ok(path) = registry::path(host) else { return Ok(Vec::new()) };
    let registry = Registry::look(&path)?;
    Ok(registry.map(|registry| registry.all()).transpose()?.unwrap_or_default())
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
