//! Which engine makes a new container, where nobody says which.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::{Engine, Version, Which, socket, socket_of, way::NoAnswer};
use crate::{
    host::Host,
    ident::{EngineKind, EngineRef},
};

/// The engine of this owner that is wanted, else Docker where it answers, else Podman; with what it says it is. It may be a
/// Podman at Docker's place, and is then called so. Returns within `timeout`; the error names what was tried.
pub fn default_for(
    host: &Host,
    which: &Which,
    owner: u32,
    wanted: Option<EngineKind>,
    timeout: Duration,
) -> Result<(Engine, Version), NoAnswer> {
    let kinds = [(EngineKind::Docker, which.docker), (EngineKind::Podman, which.podman)];
    let kinds = kinds.into_iter().filter(|(kind, _)| wanted.is_none_or(|wanted| wanted == *kind));
    let (asked, forbidden): (Vec<_>, Vec<_>) = kinds.partition(|(_, may_ask)| *may_ask);
    let mut tried: Vec<String> = forbidden
        .iter()
        .map(|(kind, _)| format!("{kind}: not to be asked, by the settings"))
        .collect();
    let deadline = Instant::now() + timeout;
    let mut left = u32::try_from(asked.len()).unwrap_or(1);
    for (kind, _) in asked {
        let name = EngineRef { kind, owner };
        let engine = Engine { name, host: host.clone(), socket: socket_of(host, which, name) };
        // One that hangs leaves the other its share.
        let share = deadline.saturating_duration_since(Instant::now()) / left.max(1);
        left -= 1;
        match socket::talk(&engine, share, async |socket| Ok(socket.dialect.version)) {
            Ok(version) if wanted.is_none_or(|wanted| wanted == version.kind) => {
                let name = EngineRef { kind: version.kind, owner };
                return Ok((Engine { name, ..engine }, version));
            }
            Ok(version) => tried.push(format!(
                "{name} at '/{}': {} {} answers there",
                engine.path().display(),
                version.kind,
                version.version
            )),
            Err(why) => tried.push(format!("{name} at '/{}': {why}", engine.path().display())),
        }
    }
    Err(NoAnswer::NoWay(format!("no engine answers: {}", tried.join("; "))))
}
