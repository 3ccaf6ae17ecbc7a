//! Looks for leftovers with every engine that is here. Changes nothing.

use std::{collections::BTreeMap, path::Path};

use super::{Entry, Ledger, Leftover, Standing, backend_of, judge, named_like};
use crate::{
    engine::{self, Engine, Listed, NoAnswer},
    ident::{ContainerId, EngineRef, ModelName},
    judge::verdict::Unknown,
    models::{
        Registry, State,
        lifecycle::Keeper,
        registry::{Record, RegistryError},
    },
    pipeline,
};

/// What a look found.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    /// What is left over, by engine and name.
    pub leftovers: Vec<Leftover>,
    /// Ours that are needed.
    pub in_use: Vec<InUse>,
    /// Other installations'.
    pub siblings: Vec<Sibling>,
    /// The engines that answered.
    pub engines: Vec<Engine>,
    /// Those that are here and did not: what they have is not known.
    pub unseen: Vec<Unknown>,
}

/// A container of a model that is up, or on its way.
#[derive(Debug, Clone)]
pub struct InUse {
    /// Whose.
    pub engine: Engine,
    /// Which.
    pub id: ContainerId,
    /// What it is called.
    pub name: String,
    /// Of which model.
    pub model: ModelName,
    /// What that one is doing.
    pub state: State,
}

/// A container of another installation.
#[derive(Debug, Clone)]
pub struct Sibling {
    /// What it is called.
    pub name: String,
    /// The name of its model, as it is labelled.
    pub model: Option<String>,
    /// The other installation's id.
    pub instance: String,
}

/// How the registry is opened: `Registry::look` writes nothing, `Registry::open_if_there` misses nothing of who is writing now.
pub type Open = fn(&Path) -> Result<Option<Registry>, RegistryError>;

/// Looks. The registry is read after the engines' lists, and what those had then is looked for once more: whatever was started
/// or stopped in between is not mistaken.
pub fn look(keeper: &Keeper<'_>, open: Open) -> Result<Sight, RegistryError> {
    let which = pipeline::engines(keeper.settings).which;
    let owner = rustix::process::geteuid().as_raw();
    let timeout = keeper.settings.engines.timeout;
    let all = engine::list_everywhere(keeper.host, &which, owner, timeout);
    let ledger = Ledger::read(keeper, open)?;
    let mut sight = Sight::default();
    for engine::Everything { engine, containers } in all {
        match containers {
            Ok(containers) => {
                for one in containers {
                    sight.take(&engine, one, &ledger);
                }
                sight.engines.push(engine);
            }
            Err(why) => sight.unseen.push(unseen(engine.name, &why)),
        }
    }
    confirm(keeper, &mut sight.leftovers);
    sight.leftovers.sort_by(|a, b| (a.engine.name, &a.name).cmp(&(b.engine.name, &b.name)));
    Ok(sight)
}

impl Sight {
    fn take(&mut self, engine: &Engine, one: Listed, ledger: &Ledger) {
        let Listed { id, name, labels, state, networks, .. } = one;
        let engine = engine.clone();
        match judge(&name, &id, &labels, ledger) {
            Standing::Foreign => {}
            Standing::Sibling(instance) => {
                let model = labels.get(crate::models::plan::MODEL_LABEL).cloned();
                self.siblings.push(Sibling { name, model, instance });
            }
            Standing::InUse(model, state) => {
                self.in_use.push(InUse { engine, id, name, model, state });
            }
            Standing::Leftover(model, kind) => {
                let by_name = || named_like(&name).map(|(backend, _)| backend);
                let backend = backend_of(&labels).or_else(by_name);
                self.leftovers.push(Leftover {
                    engine,
                    id,
                    name,
                    model,
                    backend,
                    state,
                    kind,
                    restart_policy: None,
                    networks,
                });
            }
        }
    }
}

/// What is gone by now was not left over; of the rest, what they do now. Where that cannot be seen, the list has the last word.
fn confirm(keeper: &Keeper<'_>, leftovers: &mut Vec<Leftover>) {
    let timeout = keeper.settings.engines.timeout;
    let mut silent: Vec<EngineRef> = Vec::new();
    leftovers.retain_mut(|one| {
        if silent.contains(&one.engine.name) {
            return true;
        }
        match engine::find(&one.engine, &one.id.0, timeout) {
            Ok(Some(made)) => {
                one.state = made.state;
                one.restart_policy = made.restart_policy;
                true
            }
            Ok(None) => false,
            Err(_) => {
                silent.push(one.engine.name);
                true
            }
        }
    });
}

pub(super) fn unseen(engine: EngineRef, why: &NoAnswer) -> Unknown {
    let text = why.to_string();
    let (why, hint) = text.split_once("\nhint: ").unwrap_or((&text, ""));
    let hint = if hint.is_empty() { "'portreeve doctor' says which engines answer" } else { hint };
    Unknown {
        fact: format!("the models' containers of {engine}"),
        why: why.to_owned(),
        remedy: Some(hint.to_owned()),
    }
}

impl Ledger {
    /// As the registry has it now; empty where there is none.
    pub(super) fn read(keeper: &Keeper<'_>, open: Open) -> Result<Self, RegistryError> {
        let Some(registry) = open(keeper.registry)? else {
            return Ok(Self::default());
        };
        let records = registry.all()?;
        let receipts: BTreeMap<ModelName, ContainerId> = { registry.receipts()?.into_iter() }
            .filter_map(|(model, receipt)| Some((model, receipt.container?.id)))
            .collect();
        let entry = |record: Record| {
            let is_led = record.worker.as_ref().is_some_and(|worker| worker.is_alive(keeper.host));
            let container = receipts.get(&record.name).cloned();
            (record.name, Entry { state: record.state, is_led, container })
        };
        let never = || Entry { state: State::Stopped, is_led: false, container: None };
        let declared = keeper.models.iter().map(|(name, _)| (name.clone(), never()));
        // What is recorded is laid over what is only declared.
        let models = declared.chain(records.into_iter().map(entry)).collect();
        Ok(Self { instance: Some(registry.instance_id()?), models })
    }
}
