//! What all engines of one user have: asked side by side, and where no Podman listens, by its command. For who looks for what
//! may be anywhere; who made a container asks the engine that made it.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    Engine, Which, command::Podman, made, made::Listed, places, socket::Socket, way::NoAnswer,
};
use crate::{
    host::Host,
    ident::{ContainerId, EngineKind, EngineRef},
};

/// What one engine said of its containers.
#[derive(Debug, Clone)]
pub struct Everything {
    /// Who was asked, by what answered: at Docker's place may stand a Podman.
    pub engine: Engine,
    /// All its containers, or why it said nothing.
    pub containers: Result<Vec<Listed>, NoAnswer>,
}

/// All containers of all engines of this user, each once. An engine that is not here is left out; one that is and does not
/// answer is not. Returns within `timeout`.
pub fn list_everywhere(
    host: &Host,
    which: &Which,
    owner: u32,
    timeout: Duration,
) -> Vec<Everything> {
    let engines = places(host, which, &[owner].into());
    let late =
        |engine: &Engine| Everything { engine: engine.clone(), containers: Err(NoAnswer::Late) };
    let mut all: Vec<Everything> = engines.iter().map(late).collect();
    let runtime = match super::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            for one in &mut all {
                one.containers = Err(NoAnswer::NoWay(error.to_string()));
            }
            return all;
        }
    };
    let deadline = Instant::now() + timeout;
    runtime.block_on(async {
        let mut asked = JoinSet::new();
        for (index, engine) in engines.into_iter().enumerate() {
            asked.spawn(async move { (index, list(engine, deadline).await) });
        }
        while let Some(done) = asked.join_next().await {
            if let Ok((index, said)) = done
                && let Some(place) = all.get_mut(index)
            {
                *place = said;
            }
        }
    });
    // A thread that hangs in a user's folder is left to itself.
    runtime.shutdown_background();
    all.retain(|one| one.containers != Err(NoAnswer::Absent));
    // Two sockets may lead to one engine.
    let mut seen: BTreeSet<(EngineRef, ContainerId)> = BTreeSet::new();
    for Everything { engine, containers } in &mut all {
        if let Ok(containers) = containers {
            containers.retain(|one| seen.insert((engine.name, one.id.clone())));
        }
    }
    all
}

async fn list(mut engine: Engine, deadline: Instant) -> Everything {
    let containers = match Socket::open(&engine, deadline).await {
        Ok(mut socket) => {
            engine.name.kind = socket.dialect.version.kind;
            made::all(&mut socket).await
        }
        Err(why @ (NoAnswer::Absent | NoAnswer::Refused))
            if engine.name.kind == EngineKind::Podman =>
        {
            by_command(&engine, why, deadline).await
        }
        Err(why) => Err(why),
    };
    Everything { engine, containers }
}

async fn by_command(
    engine: &Engine,
    why: NoAnswer,
    deadline: Instant,
) -> Result<Vec<Listed>, NoAnswer> {
    match Podman::find(engine, deadline) {
        Ok(podman) => super::beside(move || podman.containers()).await.flatten(),
        Err(NoAnswer::Absent) => Err(why),
        Err(why) => Err(why),
    }
}
