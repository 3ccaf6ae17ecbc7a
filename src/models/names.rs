//! The names in a registry, for a shell that completes one: nothing is written, made, waited for or complained of.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use rusqlite::{Connection, OpenFlags};

use super::registry::uri;
use crate::ident::ModelName;

/// The models that are registered there, by name; none where the file is not there, not to be trusted, or of no known form.
pub fn registered(path: &Path) -> Vec<ModelName> {
    read(path).unwrap_or_default()
}

fn read(path: &Path) -> Option<Vec<ModelName>> {
    let data = fs::symlink_metadata(path).ok()?;
    let is_own = data.uid() == rustix::process::geteuid().as_raw();
    if !data.is_file() || !is_own || data.mode() & 0o022 != 0 {
        return None;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(uri(path)?, flags).ok()?;
    connection.pragma_update(None, "trusted_schema", false).ok()?;
    let question = "SELECT name FROM models WHERE spec IS NOT NULL ORDER BY name";
    let mut statement = connection.prepare(question).ok()?;
    let names = statement.query_map([], |row| row.get::<_, String>(0)).ok()?;
    // A name that is none could say something else to a shell.
    Some(names.filter_map(|name| name.ok()?.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::{
        backend::{BackendName, Spec},
        ident::Port,
        models::Registry,
    };

    fn entries(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn register(path: &Path, name: &str, port: u16) -> Registry {
        let mut registry = Registry::open(path).unwrap();
        let spec = Spec { port: Port::new(port), ..Spec::sample(BackendName::Vllm) };
        registry.register(&name.into(), &spec).unwrap();
        registry
    }

    #[test]
    fn names_are_read_and_nothing_is_written_whether_somebody_writes_or_not() {
        let folder = tempfile::tempdir().unwrap();
        // A folder of a user's may be called anything.
        let place = folder.path().join("50% 'a'?#&");
        fs::create_dir(&place).unwrap();
        let path = place.join("models.db");
        assert!(registered(&path).is_empty());
        assert_eq!(entries(&place), [""; 0]);
        drop(register(&path, "llama", 1));
        assert_eq!(entries(&place), ["models.db"]);
        let before = fs::read(&path).unwrap();
        assert_eq!(registered(&path), ["llama".into()]);
        assert_eq!((entries(&place).len(), fs::read(&path).unwrap()), (1, before));
        let open = register(&path, "a", 2);
        assert_eq!(registered(&path), ["a".into(), "llama".into()]);
        drop(open);
    }

    #[test]
    fn what_is_no_registry_of_ones_own_has_no_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models.db");
        drop(register(&path, "llama", 1));
        let link = folder.path().join("link.db");
        symlink(&path, &link).unwrap();
        assert!(registered(&link).is_empty());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(registered(&path).is_empty());
        fs::write(&path, "no database").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(registered(&path).is_empty());
        assert!(registered(folder.path()).is_empty());
    }
}
