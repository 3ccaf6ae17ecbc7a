//! Containers of ours that their engine starts again by itself: a model is started by portreeve alone.

use super::Sight;
use crate::{
    engine::{self, Deed, Engine},
    ident::ContainerId,
    judge::verdict::Unknown,
    models::{lifecycle::Keeper, trouble::Trouble},
};

/// A container of ours with a restart policy.
#[derive(Debug, Clone)]
pub struct Restarting {
    /// Whose.
    pub engine: Engine,
    /// Which.
    pub id: ContainerId,
    /// What it is called.
    pub name: String,
    /// The name of its model.
    pub model: Option<String>,
    /// `always`, `on-failure`, `unless-stopped`.
    pub policy: String,
}

impl Restarting {
    /// Whether a name that somebody typed means it: its own, or its model's.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.model.as_deref() == Some(name)
    }
}

/// Which of ours have one, needed or not; and of which that cannot be seen.
pub fn restarting(keeper: &Keeper<'_>, sight: &Sight) -> (Vec<Restarting>, Vec<Unknown>) {
    let timeout = keeper.settings.engines.timeout;
    let (mut all, mut unseen) = (Vec::new(), Vec::new());
    for one in sight.leftovers.iter().filter(|one| one.is_orphan()) {
        if let Some(policy) = one.restarts() {
            all.push(Restarting {
                engine: one.engine.clone(),
                id: one.id.clone(),
                name: one.name.clone(),
                model: one.model.as_ref().map(ToString::to_string),
                policy: policy.to_owned(),
            });
        }
    }
    for one in &sight.in_use {
        match engine::find(&one.engine, &one.id.0, timeout) {
            Ok(made) => {
                let policy = made.and_then(|made| made.restart_policy);
                if let Some(policy) = policy.filter(|policy| policy != "no") {
                    all.push(Restarting {
                        engine: one.engine.clone(),
                        id: one.id.clone(),
                        name: one.name.clone(),
                        model: Some(one.model.to_string()),
                        policy,
                    });
                }
            }
            Err(why) => unseen.push(Unknown {
                fact: format!("the restart policy of container '{}'", one.name),
                ..super::look::unseen(one.engine.name, &why)
            }),
        }
    }
    (all, unseen)
}

/// Sets it to `no`; whether it was there to be set.
pub fn forbid(keeper: &Keeper<'_>, one: &Restarting) -> Result<bool, Trouble> {
    let timeout = keeper.settings.engines.timeout;
    let kept = || format!("its restart policy is still '{}'", one.policy);
    match engine::forbid_restarts(&one.engine, &one.id, timeout) {
        Deed::Done | Deed::AlreadySo => Ok(true),
        Deed::Gone => Ok(false),
        Deed::Conflict(why) | Deed::Failed(_, why) => {
            Err(Trouble::new(format!("{}: {why}", kept()))
                .hint("stop its model and start it anew: portreeve makes its containers with 'no'"))
        }
        Deed::NoAnswer(why) => Err(Trouble::unknown(format!("{}: {why}", kept()))),
    }
}
