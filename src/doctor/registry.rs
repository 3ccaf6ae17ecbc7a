//! The registry of models: where it is, whether it may be trusted and is sound, how many models it has.

use std::path::{Path, PathBuf};

use super::{Area, Check, State, off};
use crate::{
    host::Host,
    models::registry::{self, Registry, RegistryError},
};

const NAME: &str = "registry";

/// What was found.
#[derive(Debug)]
pub(super) struct Look {
    path: Result<PathBuf, RegistryError>,
    /// None where there is no registry yet.
    content: Option<Result<Content, RegistryError>>,
}

/// What is in a registry.
#[derive(Debug)]
struct Content {
    models: usize,
    damage: Option<String>,
}

/// Looks at the registry of whoever runs this: root's is the system's.
pub(super) fn look(host: &Host) -> Look {
    let path = registry::path(host);
    let content = path.as_ref().ok().and_then(|path| content(path).transpose());
    Look { path, content }
}

fn content(path: &Path) -> Result<Option<Content>, RegistryError> {
    let Some(registry) = Registry::look(path)? else { return Ok(None) };
    // A damaged file may not even list what it has.
    let damage = registry.damage()?;
    let models = if damage.is_some() { 0 } else { registered(&registry)? };
    Ok(Some(Content { models, damage }))
}

fn registered(registry: &Registry) -> Result<usize, RegistryError> {
    // What is declared elsewhere has only its state there.
    Ok(registry.all()?.iter().filter(|record| record.spec.is_some()).count())
}

pub(super) fn checks(look: &Look) -> Vec<Check> {
    let (state, detail) = match (&look.path, &look.content) {
        (Err(error), _) | (Ok(_), Some(Err(error))) => wrong(error),
        (Ok(path), None) => {
            (State::Absent, format!("'{}' is made by 'portreeve model register'", path.display()))
        }
        (Ok(path), Some(Ok(Content { damage: Some(damage), .. }))) => {
            (off(anew(path)), format!("'{}' is damaged: {damage}", path.display()))
        }
        (Ok(path), Some(Ok(Content { models, damage: None }))) => {
            let models =
                if *models == 1 { "1 model".to_owned() } else { format!("{models} models") };
            (State::Good, format!("'{}' is sound and has {models}", path.display()))
        }
    };
    vec![Check::new(Area::Models, NAME, state, detail)]
}

/// What mends a registry that is not used, and why it is not.
fn wrong(error: &RegistryError) -> (State, String) {
    let text = error.to_string();
    let (why, hint) = match text.split_once("\nhint: ") {
        Some((why, hint)) => (why.to_owned(), Some(hint.to_owned())),
        None => (text, None),
    };
    let state = match error {
        RegistryError::NotTrusted(path, _) => off(format!(
            "see what others may have written to it; then make '{}' a file or folder of your own, no link, that nobody else may \
             write to",
            path.display()
        )),
        RegistryError::Damaged(path, _) => off(anew(path)),
        RegistryError::TooNew(..) | RegistryError::Foreign(_) => {
            hint.map_or(State::Unknown { fix: None }, off)
        }
        RegistryError::NoPlace
        | RegistryError::NoModel(..)
        | RegistryError::Exists(_)
        | RegistryError::Conflicts(_)
        | RegistryError::NoText(..)
        | RegistryError::Forbidden(..)
        | RegistryError::TakenOver(..)
        | RegistryError::Failed(..)
        | RegistryError::Io(..) => State::Unknown { fix: hint },
    };
    (state, why)
}

fn anew(path: &Path) -> String {
    format!("move '{}' away and register its models anew", path.display())
}
