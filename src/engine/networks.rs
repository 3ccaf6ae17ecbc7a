//! Networks of an engine: who is attached to one, and how one is freed of what is left over and removed. In Docker's API,
//! over its socket alone.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    Engine,
    answer::{self, shown},
    deed::{self, Deed},
    http::Reply,
    is_whole, made,
    make::{about, not_asked},
    socket::{LIST_BYTES, Socket, talk},
    way::NoAnswer,
};
use crate::ident::{ContainerId, EngineKind};

/// A network of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name. Docker before 25 lets several networks have one, and then finds none by it.
    pub name: String,
    /// What is attached to it: the id of the container, or Docker's `ep-…` where the container is no more and its endpoint is
    /// left over (moby api/server/router/network, `buildDetailedNetworkResources`); then the name of the container. Podman
    /// lists those that do not run, too.
    pub attached: Vec<(ContainerId, String)>,
}

/// A network by its whole name or whole id. None = its engine says that it knows no such network.
pub fn network(
    engine: &Engine,
    name: &str,
    timeout: Duration,
) -> Result<Option<Network>, NoAnswer> {
    let wanted = made::plain(name)?;
    talk(engine, timeout, async |mut socket| look_up_network(&mut socket, wanted).await)
}

/// Takes a container off a network, or what is left of one there (`ep-…`, always by force). `force` = though the container is
/// gone. `AlreadySo` = it is not attached.
pub fn disconnect(
    engine: &Engine,
    network_id: &str,
    container: &ContainerId,
    force: bool,
    timeout: Duration,
) -> Deed {
    let is_left_over = container.0.starts_with("ep-");
    if !is_left_over && !is_whole(container) {
        return not_asked(&container.0);
    }
    about(engine, network_id, timeout, async |mut socket| {
        let whom = if is_left_over {
            match owner_of(&mut socket, network_id, container).await? {
                Ok(name) => name,
                Err(deed) => return Ok(deed),
            }
        } else {
            container.0.clone()
        };
        let path = format!("/networks/{network_id}/disconnect");
        let body = json!({ "Container": whom, "Force": force || is_left_over }).to_string();
        Ok(read_network(&socket.order(Method::POST, &path, body).await?))
    })
}

/// Whose endpoint is left over: Docker takes it by the name of the container that it was, and by nothing else (moby issue
/// 33156). Not where that name is, or would find, another container: that one would be cut off instead.
async fn owner_of(
    socket: &mut Socket,
    network_id: &str,
    endpoint: &ContainerId,
) -> Result<Result<String, Deed>, NoAnswer> {
    let Some(network) = look_up_network(socket, network_id).await? else {
        return Ok(Err(Deed::Gone));
    };
    let mut attached = network.attached.into_iter();
    let Some((_, name)) = attached.find(|(id, _)| id == endpoint) else {
        return Ok(Err(Deed::AlreadySo));
    };
    let is_anothers =
        made::may_begin_an_id(&name) || made::look_up(socket, made::plain(&name)?).await?.is_some();
    let why = || Deed::Conflict(format!("a container may be called '{}' now", shown(&name)));
    Ok(if is_anothers { Err(why()) } else { Ok(name) })
}

/// Removes a network. `Conflict` = something is attached to it. Of containers that do not run only Podman says so: Docker's
/// cannot be started any more then.
pub fn remove_network(engine: &Engine, network_id: &str, timeout: Duration) -> Deed {
    about(engine, network_id, timeout, async |mut socket| {
        let Some(network) = look_up_network(&mut socket, network_id).await? else {
            return Ok(Deed::Gone);
        };
        if let Some((_, name)) = network.attached.first() {
            return Ok(Deed::Conflict(format!("'{}' is attached to it", shown(name))));
        }
        // By its id, Podman 4.3 removes it from under containers that run. There, the id follows from the name.
        let path = match socket.dialect.version.kind {
            EngineKind::Docker => format!("/networks/{network_id}"),
            EngineKind::Podman => format!("/networks/{}", made::plain(&network.name)?),
        };
        Ok(read_network(&socket.order(Method::DELETE, &path, String::new()).await?))
    })
}

async fn look_up_network(socket: &mut Socket, wanted: &str) -> Result<Option<Network>, NoAnswer> {
    let found;
    let asked = if made::may_begin_an_id(wanted) {
        let all: Vec<NetworkJson> = answer::body(&socket.get("/networks", LIST_BYTES).await?)?;
        let Some(network) = all.into_iter().find(|network| network.name == wanted) else {
            return Ok(None);
        };
        found = network.id;
        made::plain(&found)?
    } else {
        wanted
    };
    let reply = socket.get(&format!("/networks/{asked}"), LIST_BYTES).await?;
    read_one(&reply, asked)
}

/// What came of the question for one network.
pub(super) fn read_one(reply: &Reply, asked: &str) -> Result<Option<Network>, NoAnswer> {
    if reply.status == 404 && answer::is_unknown_network(reply) {
        return Ok(None);
    }
    let NetworkJson { id, name, containers } = answer::body(reply)?;
    if asked != id && asked != name {
        let why = format!("it answered for another network, '{}'", shown(&name));
        return Err(NoAnswer::Strange(why));
    }
    let attached = containers.unwrap_or_default().into_iter();
    let attached = attached.map(|(id, endpoint)| (ContainerId(id), endpoint.name)).collect();
    Ok(Some(Network { id, name, attached }))
}

/// What came of an order about a network.
pub(super) fn read_network(reply: &Reply) -> Deed {
    match reply.status {
        // Podman 4.3 says of it in one breath: not connected, network not found.
        _ if answer::is_not_attached(reply) => Deed::AlreadySo,
        404 if answer::is_unknown_network(reply) => Deed::Gone,
        _ if answer::is_in_use(reply) => Deed::Conflict(answer::message(reply)),
        _ => deed::read(reply),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkJson {
    id: String,
    name: String,
    containers: Option<BTreeMap<String, EndpointJson>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EndpointJson {
    name: String,
}
