//! Rows and whole files that we did not write.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use std::{cell::RefCell, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use rusqlite::{Connection, types::Value};

use super::{APPLICATION, MIGRATIONS, NEWEST, Registry};
use crate::backend::Spec;

thread_local! {
    static ROWS: RefCell<Option<Registry>> = const { RefCell::new(None) };
}

/// Cells, each behind a byte 0x1e and a letter for its kind: six of a model, twelve of a receipt, four of an event.
pub fn registry(bytes: &[u8]) {
    ROWS.with_borrow_mut(|rows| {
        if rows.is_none() {
            *rows = loose().ok();
        }
        if let Some(registry) = rows {
            let _ = read_rows(registry, bytes);
        }
    });
}

/// Our tables, but any cell may hold anything.
fn loose() -> rusqlite::Result<Registry> {
    let connection = Connection::open_in_memory()?;
    for step in MIGRATIONS {
        let step = step.replace(" NOT NULL", "").replace("STRICT, WITHOUT ROWID", "");
        connection.execute_batch(&step.replace("STRICT", ""))?;
    }
    Ok(Registry { connection, path: PathBuf::from("models.db") })
}

fn read_rows(registry: &Registry, bytes: &[u8]) -> rusqlite::Result<()> {
    let mut cells = bytes.split(|byte| *byte == 0x1e).map(cell);
    for (table, columns) in [("models", 6), ("receipts", 13), ("events", 5)] {
        let places: Vec<String> = (1..=columns).map(|at| format!("?{at}")).collect();
        let sql = format!("INSERT INTO {table} VALUES ({})", places.join(", "));
        registry.connection.execute(&format!("DELETE FROM {table}"), [])?;
        let row: Vec<Cell> = cells.by_ref().take(columns).collect();
        if row.len() == columns {
            // Text that is no UTF-8 can only be written as what it is not.
            let sql = row.iter().enumerate().filter(|(_, cell)| cell.is_text).fold(
                sql,
                |sql, (at, _)| {
                    let place = format!("?{}", at + 1);
                    sql.replace(&format!("{place},"), &format!("CAST({place} AS TEXT),"))
                        .replace(&format!("{place})"), &format!("CAST({place} AS TEXT))"))
                },
            );
            registry
                .connection
                .execute(&sql, rusqlite::params_from_iter(row.iter().map(|c| &c.value)))?;
        }
    }
    look(registry, true);
    Ok(())
}

struct Cell {
    value: Value,
    is_text: bool,
}

fn cell(bytes: &[u8]) -> Cell {
    let (kind, rest) = bytes.split_first().unwrap_or((&b'n', b""));
    let text = String::from_utf8_lossy(rest);
    let value = match kind {
        b't' | b'b' => Value::Blob(rest.to_vec()),
        b'i' => text.parse().map_or(Value::Null, Value::Integer),
        b'r' => text.parse().map_or(Value::Null, Value::Real),
        _ => Value::Null,
    };
    Cell { value, is_text: *kind == b't' }
}

/// Reads all that is there: what is read can be written and read again. In a file that is damaged one question may be answered and
/// the next one not.
fn look(registry: &Registry, is_sound: bool) {
    for record in registry.all().into_iter().flatten() {
        if let Some(spec) = &record.spec {
            let text = serde_json::to_string(spec).unwrap_or_default();
            assert_eq!(serde_json::from_str::<Spec>(&text).ok().as_ref(), Some(spec));
        }
        if let Some(worker) = &record.worker {
            let text = serde_json::to_string(worker).unwrap_or_default();
            assert_eq!(serde_json::from_str(&text).ok().as_ref(), Some(worker));
        }
        let again = registry.get(&record.name).ok();
        assert!(!is_sound || again.as_ref() == Some(&record));
    }
    for (name, receipt) in registry.receipts().into_iter().flatten() {
        let engine: Option<String> = registry
            .sql(|c| {
                c.query_row("SELECT engine FROM receipts WHERE model = ?1", [&name.0], |r| r.get(0))
            })
            .unwrap_or_default();
        let is_kept_by_one = receipt.container.is_some();
        assert!(engine.is_none() || is_kept_by_one || receipt.process.is_none(), "{engine:?}");
        let again = registry.receipt(&name);
        assert!(!is_sound || again.is_ok());
    }
    for event in registry.events(None, 100).into_iter().flatten() {
        assert!(event.kind.len() <= 1 << 20);
    }
    let _ = (registry.instance_id(), registry.damage());
}

/// A whole file at the registry's place.
pub fn database(bytes: &[u8]) {
    let folder = std::env::temp_dir().join(format!("portreeve-hostile-{}", std::process::id()));
    let path = folder.join("models.db");
    let write = || {
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for beside in ["models.db-wal", "models.db-shm", "models.db-journal"] {
            drop(fs::remove_file(folder.join(beside)));
        }
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
    };
    if write().is_err() {
        return;
    }
    if let Ok(Some(registry)) = Registry::look(&path) {
        assert_eq!(registry.version().ok(), Some((APPLICATION, NEWEST)));
        look(&registry, false);
    }
    drop(fs::remove_dir_all(&folder));
}
