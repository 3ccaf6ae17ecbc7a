//! What the registry has of started processes, as a look at the host takes it: receipts with who keeps what they name. What a
//! receipt convicts of is not decided here.

use std::{path::PathBuf, sync::Mutex};

use super::{
    Registry, State,
    receipt::{Main, Receipt as Written},
    registry::{Record, RegistryError},
    service,
};
use crate::{
    host::Host,
    ident::{ModelName, UnitName, UnitRef},
    pipeline::Receipts,
    snapshot::{Owner, Receipt, Seen},
};

/// The receipts of processes, of these models.
pub fn receipts(
    host: &Host,
    registry: &Registry,
    records: &[Record],
) -> Result<Vec<Receipt>, RegistryError> {
    // Its file is ours alone, else it would not be open.
    let writer = rustix::process::geteuid().as_raw();
    let is_led = |name: &ModelName| {
        let record = records.iter().find(|record| record.name == *name);
        record.is_some_and(|record| is_on_its_way(record, host))
    };
    let read = |(model, written): (ModelName, Written)| {
        let owner = owner(&written);
        let Main { key, exe, uid } = written.process?;
        let unasked = || Seen::Unreadable("systemd was not asked about it".to_owned());
        let is_owner_alive = if is_led(&model) { Seen::Known(true) } else { unasked() };
        Some(Receipt {
            boot_id: written.boot_id,
            key,
            exe,
            uid,
            model,
            writer,
            owner,
            is_owner_alive,
        })
    };
    Ok(registry.receipts()?.into_iter().filter_map(read).collect())
}

/// A start or a stop is under way, by somebody who lives.
fn is_on_its_way(record: &Record, host: &Host) -> bool {
    let is_between = match record.state {
        State::Starting | State::Stopping => true,
        State::Stopped | State::Running | State::Failed => false,
    };
    is_between && record.worker.as_ref().is_some_and(|worker| worker.is_alive(host))
}

/// A container in a unit is a container first: its engine knows of it.
fn owner(written: &Written) -> Owner {
    match (&written.container, &written.unit) {
        (Some(container), _) => Owner::Container(container.name.clone()),
        (None, Some(unit)) => {
            Owner::Unit(UnitRef { manager: service::manager(), name: UnitName(unit.clone()) })
        }
        (None, None) => Owner::Unsaid,
    }
}

/// Those of a registry that was just read, for the first look; for each further one it is read again. Nothing is read where there
/// are none: what is written later is about what was started later.
pub fn told(host: &Host, path: PathBuf, first: Vec<Receipt>) -> Receipts {
    if first.is_empty() {
        return Receipts::default();
    }
    let (host, at_hand) = (host.clone(), Mutex::new(Some(first.clone())));
    Receipts::told_by(move || {
        let at_hand = at_hand.lock().ok().and_then(|mut at_hand| at_hand.take());
        at_hand.unwrap_or_else(|| read_again(&host, &path, &first))
    })
}

fn read_again(host: &Host, path: &std::path::Path, first: &[Receipt]) -> Vec<Receipt> {
    let read = || {
        let Some(registry) = Registry::look(path)? else { return Ok(Vec::new()) };
        receipts(host, &registry, &registry.all()?)
    };
    read().unwrap_or_else(|error: RegistryError| {
        let why = error.to_string();
        let why = why.split('\n').next().unwrap_or_default();
        // Whether a start is under way is not known any more.
        let unread = |receipt: &Receipt| Receipt {
            is_owner_alive: Seen::Unreadable(why.to_owned()),
            owner: match &receipt.owner {
                Owner::Unit(_) | Owner::Unsaid => Owner::Unsaid,
                Owner::Container(name) => Owner::Container(name.clone()),
            },
            ..receipt.clone()
        };
        first.iter().map(unread).collect()
    })
}
