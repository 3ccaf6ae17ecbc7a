//! Networks of the stack that leftovers keep in use: engines remove no network to which something is attached.

use std::collections::BTreeSet;

use super::{Leftover, Sight, look::unseen, named_like};
use crate::{
    engine::{self, Deed, Engine, Network},
    ident::ContainerId,
    judge::verdict::Unknown,
    models::{lifecycle::Keeper, trouble::Trouble},
};

/// Networks that engines have of their own accord; none of them is ever removed.
const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "podman"];

/// A network, and who is attached to it.
#[derive(Debug, Clone)]
pub struct Tenancy {
    /// Whose.
    pub engine: Engine,
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Endpoints of models' containers that are no more: what they are called by their engine, and what the container was called.
    pub left_over: Vec<(ContainerId, String)>,
    /// Names of who else is attached.
    pub others: Vec<(ContainerId, String)>,
}

/// What was done for a network.
#[derive(Debug, Clone, Default)]
pub struct Freed {
    /// Whose endpoints were taken off.
    pub freed: Vec<String>,
    /// Who is attached still.
    pub others: Vec<String>,
    /// What could not be done.
    pub troubles: Vec<Trouble>,
}

impl Tenancy {
    fn of(engine: &Engine, network: Network) -> Self {
        let Network { id, name, attached } = network;
        // Of anybody else's container an endpoint may be somebody's matter.
        let is_left_over = |(id, name): &(ContainerId, String)| {
            id.0.starts_with("ep-") && named_like(name).is_some()
        };
        let (left_over, others) = attached.into_iter().partition(is_left_over);
        Self { engine: engine.clone(), id, name, left_over, others }
    }
}

/// The networks that models are to have and those of these leftovers, as far as they are there; and what could not be seen.
pub fn tenancies(
    keeper: &Keeper<'_>,
    sight: &Sight,
    leftovers: &[&Leftover],
) -> (Vec<Tenancy>, Vec<Unknown>) {
    let timeout = keeper.settings.engines.timeout;
    let (mut all, mut unknowns) = (Vec::new(), Vec::new());
    for engine in &sight.engines {
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for (_, spec) in keeper.models.iter().filter(|(_, spec)| spec.is_container) {
            // Where nobody says, the first that answers makes it.
            let is_its = match spec.engine {
                Some(wanted) => wanted.kind() == engine.name.kind,
                None => sight.engines.first().is_some_and(|first| first.name == engine.name),
            };
            names.extend(spec.network.as_deref().filter(|_| is_its));
        }
        let own = leftovers.iter().filter(|one| one.engine.name == engine.name);
        names.extend(own.flat_map(|one| &one.networks).map(String::as_str));
        for name in names.into_iter().filter(|name| is_somebodys(name)) {
            match engine::network(engine, name, timeout) {
                Ok(Some(network)) => all.push(Tenancy::of(engine, network)),
                Ok(None) => {}
                Err(why) => unknowns.push(Unknown {
                    fact: format!("who is attached to network '{name}' of {}", engine.name),
                    ..unseen(engine.name, &why)
                }),
            }
        }
    }
    (all, unknowns)
}

/// `container:NAME` is no network of its own.
fn is_somebodys(name: &str) -> bool {
    !PREDEFINED.contains(&name) && !name.contains(':')
}

/// Takes off what is left over and what of these removed containers is still attached; nobody else. The network stays.
pub fn free(keeper: &Keeper<'_>, tenancy: &Tenancy, removed: &BTreeSet<ContainerId>) -> Freed {
    let Tenancy { engine, id, name, .. } = tenancy;
    let timeout = keeper.settings.engines.timeout;
    let look = || match engine::network(engine, id, timeout) {
        Ok(network) => Ok(network.map(|network| Tenancy::of(engine, network))),
        Err(why) => {
            let why = format!("who is attached to network '{name}' is not known: {why}");
            Err(Trouble::unknown(why))
        }
    };
    let mut freed = Freed::default();
    let now = match look() {
        Ok(Some(now)) => now,
        Ok(None) => return freed,
        Err(trouble) => return Freed { troubles: vec![trouble], ..freed },
    };
    // Only what was told of: a container that ended since may be started again.
    let was_told = |endpoint: &ContainerId| tenancy.left_over.iter().any(|(id, _)| id == endpoint);
    let left_over = now.left_over.iter().filter(|(id, _)| was_told(id) || removed.contains(id));
    let removed = now.others.iter().filter(|(id, _)| removed.contains(id));
    for (endpoint, whose) in left_over.chain(removed) {
        let kept = || format!("what is left of '{whose}' is still on network '{name}'");
        match engine::disconnect(engine, id, endpoint, true, timeout) {
            Deed::Done => freed.freed.push(whose.clone()),
            Deed::AlreadySo | Deed::Gone => {}
            Deed::Conflict(why) | Deed::Failed(_, why) => {
                freed.troubles.push(Trouble::new(format!("{}: {why}", kept())));
            }
            Deed::NoAnswer(why) => {
                freed.troubles.push(Trouble::unknown(format!("{}: {why}", kept())));
            }
        }
    }
    match look() {
        Ok(after) => {
            let attached = after.into_iter().flat_map(|now| [now.left_over, now.others].concat());
            freed.others = attached.map(|(_, name)| name).collect();
        }
        Err(trouble) => freed.troubles.push(trouble),
    }
    freed
}
