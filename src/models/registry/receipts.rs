//! Receipts in the registry: one for each model of which something was started.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{Registry, RegistryError, Result, led, now_ms};
use crate::{
    backend::spec::Engine,
    ident::{ContainerId, ModelName, Pid, ProcessKey},
    models::receipt::{Contained, Main, Receipt, Worker},
};

const COLUMNS: &str = "model, boot_id, pid, start_ticks, pidfd_inode, exe, uid, engine, container_id, container_name, unit, \
                       instance_id";

impl Registry {
    /// Writes down what this worker started for a model, over what stood there. Refused where somebody else leads it meanwhile.
    pub fn put_receipt(
        &mut self,
        name: &ModelName,
        worker: &Worker,
        receipt: &Receipt,
    ) -> Result<()> {
        let Receipt { boot_id, container, process, unit, instance_id } = receipt;
        let key = process.as_ref().map(|process| process.key);
        let exe = process.as_ref().and_then(|process| process.exe.as_ref());
        let number = |n: u64| i64::from_ne_bytes(n.to_ne_bytes());
        self.change(|transaction, path| {
            led(transaction, path, name, worker)?;
            let sql = format!(
                "INSERT OR REPLACE INTO receipts ({COLUMNS}, at_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
            );
            let values = params![
                name.0,
                boot_id,
                key.map(|key| key.pid.0),
                key.map(|key| number(key.start_ticks)),
                key.and_then(|key| key.pidfd_inode).map(number),
                exe.map(|exe| exe.to_string_lossy()),
                process.as_ref().and_then(|process| process.uid),
                container.as_ref().map(|one| one.engine.word()),
                container.as_ref().map(|one| &one.id.0),
                container.as_ref().map(|one| &one.name),
                unit,
                instance_id,
                now_ms(),
            ];
            let failed = |error| RegistryError::Failed(path.to_owned(), error);
            transaction.execute(&sql, values).map_err(failed).map(drop)
        })
    }

    /// Forgets what was started for a model, of which its worker saw that nothing is left.
    pub fn drop_receipt(&mut self, name: &ModelName, worker: &Worker) -> Result<()> {
        self.change(|transaction, path| {
            led(transaction, path, name, worker)?;
            drop_of(transaction, path, name)
        })
    }

    /// What was started for a model.
    pub fn receipt(&self, name: &ModelName) -> Result<Option<Receipt>> {
        let sql = format!("SELECT {COLUMNS} FROM receipts WHERE model = ?1");
        let read =
            |connection: &Connection| connection.query_row(&sql, [&name.0], receipt).optional();
        Ok(self.sql(read)?.map(|(_, receipt)| receipt))
    }

    /// What was started for all of them.
    pub fn receipts(&self) -> Result<Vec<(ModelName, Receipt)>> {
        let sql = format!("SELECT {COLUMNS} FROM receipts ORDER BY model");
        self.sql(|connection| connection.prepare(&sql)?.query_map([], receipt)?.collect())
    }
}

/// Forgets what was started for a model.
pub(super) fn drop_of(transaction: &Transaction<'_>, path: &Path, name: &ModelName) -> Result<()> {
    let dropped = transaction.execute("DELETE FROM receipts WHERE model = ?1", [&name.0]);
    dropped.map(drop).map_err(|error| RegistryError::Failed(path.to_owned(), error))
}

/// A row whose numbers fit nothing has no process, and convicts nobody.
fn receipt(row: &Row<'_>) -> rusqlite::Result<(ModelName, Receipt)> {
    let number = |n: i64| u64::from_ne_bytes(n.to_ne_bytes());
    let pid: Option<u32> = row.get(2)?;
    let start_ticks: Option<i64> = row.get(3)?;
    let pidfd_inode: Option<i64> = row.get(4)?;
    let key = pid.zip(start_ticks).map(|(pid, start)| ProcessKey {
        pid: Pid(pid),
        start_ticks: number(start),
        pidfd_inode: pidfd_inode.map(number),
    });
    let (exe, uid): (Option<String>, Option<u32>) = (row.get(5)?, row.get(6)?);
    let engine: Option<String> = row.get(7)?;
    let (id, name): (Option<String>, Option<String>) = (row.get(8)?, row.get(9)?);
    let has_container = engine.is_some() || id.is_some() || name.is_some();
    let engine = engine.and_then(|engine| engine.parse::<Engine>().ok());
    let container = match (engine, id, name) {
        (Some(engine), Some(id), Some(name)) => {
            Some(Contained { engine, id: ContainerId(id), name })
        }
        _ => None,
    };
    // A container that we do not understand keeps its process all the same: a unit beside it does not speak for it.
    let is_understood = container.is_some() || !has_container;
    let process = key.filter(|_| is_understood);
    let process = process.map(|key| Main { key, exe: exe.map(Into::into), uid });
    let receipt = Receipt {
        boot_id: row.get(1)?,
        container,
        process,
        unit: row.get(10)?,
        instance_id: row.get(11)?,
    };
    Ok((ModelName(row.get(0)?), receipt))
}
