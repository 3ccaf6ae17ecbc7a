//! Orders to an engine about what is to be: create, start, never restart, and free a network. Only over its socket, in Docker's
//! API, and none is ever given twice: where no answer came, whether it was done is not known.

use std::time::Duration;

use hyper::Method;
use serde::Deserialize;
use serde_json::json;

use super::{
    Engine,
    answer::{self, shown},
    deed::{self, Deed},
    http::Reply,
    is_whole, made,
    socket::{Socket, talk},
    way::NoAnswer,
};
use crate::ident::{ContainerId, EngineKind};

/// A container that was created; it does not run yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// 64 hexadecimal digits.
    pub id: ContainerId,
    /// What the engine has to say about it.
    pub warnings: Vec<String>,
}

/// Why no container was created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Another one has the name; the engine's words.
    NameTaken(String),
    /// The engine does not have the image; its words.
    NoImage(String),
    /// The engine refused or failed; HTTP's status and its words.
    Failed(u16, String),
    /// No answer. Whether it was created is not known, unless it was not asked at all (`NoWay`, `Absent`, `Refused`, `Denied`).
    NoAnswer(NoAnswer),
}

/// Creates a container of this name. `body` is the JSON of Docker's `POST /containers/create`.
pub fn create(
    engine: &Engine,
    name: &str,
    body: &str,
    timeout: Duration,
) -> Result<Created, Refused> {
    let path = format!("/containers/create?name={}", made::plain(name).map_err(Refused::NoAnswer)?);
    let order = async |mut socket: Socket| socket.order(Method::POST, &path, body.to_owned()).await;
    created(&talk(engine, timeout, order).map_err(Refused::NoAnswer)?)
}

/// Starts a container. `AlreadySo` = it runs.
pub fn start(engine: &Engine, id: &ContainerId, timeout: Duration) -> Deed {
    let path = format!("/containers/{id}/start");
    about(engine, &id.0, timeout, async |mut socket| {
        Ok(deed::read(&socket.order(Method::POST, &path, String::new()).await?))
    })
}

/// From now on its engine does not start it again by itself. `Done` = the engine says so when it is asked again; `AlreadySo` = it
/// never did. Podman has the order since 5.1, and keeps to it only where its database is SQLite.
pub fn forbid_restarts(engine: &Engine, id: &ContainerId, timeout: Duration) -> Deed {
    about(engine, &id.0, timeout, async |mut socket| {
        match made::look_up(&mut socket, &id.0).await? {
            None => return Ok(Deed::Gone),
            Some(inspected) if inspected.made.stays_down() => return Ok(Deed::AlreadySo),
            Some(_) => {}
        }
        let body = json!({ "RestartPolicy": { "Name": "no" } }).to_string();
        let reply = socket.order(Method::POST, &format!("/containers/{id}/update"), body).await?;
        let deed = deed::read(&reply);
        if let Deed::Failed(status @ (404 | 405 | 501), _) = deed
            && socket.dialect.version.kind == EngineKind::Podman
        {
            let version = &socket.dialect.version.version;
            let why = format!("Podman {version} cannot change a restart policy, 5.1 can");
            return Ok(Deed::Failed(status, why));
        }
        if deed != Deed::Done {
            return Ok(deed);
        }
        Ok(match made::look_up(&mut socket, &id.0).await? {
            None => Deed::Gone,
            Some(inspected) if inspected.made.stays_down() => Deed::Done,
            Some(inspected) => {
                let policy = inspected.made.restart_policy.unwrap_or_default();
                Deed::Failed(
                    reply.status,
                    format!("its restart policy is still '{}'", shown(&policy)),
                )
            }
        })
    })
}

/// Takes a container off a network, or what is left of one there (`ep-…`). `force` = though the container does not answer.
/// `AlreadySo` = it is not attached.
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
        // Docker takes an endpoint without a container by the container's name (moby daemon/network.go, `ForceEndpointDelete`).
        let whom = if is_left_over {
            let Some(network) = made::look_up_network(&mut socket, network_id).await? else {
                return Ok(Deed::Gone);
            };
            let mut attached = network.attached.into_iter();
            match attached.find(|(id, _)| id == container) {
                Some((_, name)) => name,
                None => return Ok(Deed::AlreadySo),
            }
        } else {
            container.0.clone()
        };
        let path = format!("/networks/{network_id}/disconnect");
        let body = json!({ "Container": whom, "Force": force }).to_string();
        let reply = socket.order(Method::POST, &path, body).await?;
        Ok(read_network(&reply))
    })
}

/// Removes a network. `Conflict` = something is attached to it.
pub fn remove_network(engine: &Engine, network_id: &str, timeout: Duration) -> Deed {
    let path = format!("/networks/{network_id}");
    about(engine, network_id, timeout, async |mut socket| {
        Ok(read_network(&socket.order(Method::DELETE, &path, String::new()).await?))
    })
}

/// An order about one container or network, by its whole id: a beginning or a name would find another.
fn about(
    engine: &Engine,
    id: &str,
    timeout: Duration,
    order: impl AsyncFnOnce(Socket) -> Result<Deed, NoAnswer>,
) -> Deed {
    if !is_whole(&ContainerId(id.to_owned())) {
        return not_asked(id);
    }
    talk(engine, timeout, order).unwrap_or_else(Into::into)
}

fn not_asked(id: &str) -> Deed {
    Deed::NoAnswer(format!("not asked: '{}' is no whole id", shown(id)))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreatedJson {
    id: String,
    warnings: Option<Vec<String>>,
}

fn created(reply: &Reply) -> Result<Created, Refused> {
    let words = || answer::message(reply);
    match reply.status {
        200 | 201 => {}
        409 if answer::is_about_a_name(reply) => return Err(Refused::NameTaken(words())),
        500 if answer::is_about_a_name(reply) => return Err(Refused::NameTaken(words())),
        404 if answer::is_no_image(reply) => return Err(Refused::NoImage(words())),
        status => return Err(Refused::Failed(status, words())),
    }
    let CreatedJson { id, warnings } = serde_json::from_slice(&reply.body)
        .map_err(|error| Refused::NoAnswer(answer::no_form(&error)))?;
    let id = ContainerId(id);
    if !is_whole(&id) {
        let why = format!("it created '{}'", shown(&id.0));
        return Err(Refused::NoAnswer(NoAnswer::Strange(why)));
    }
    Ok(Created { id, warnings: warnings.unwrap_or_default() })
}

/// What came of an order about a network.
fn read_network(reply: &Reply) -> Deed {
    match deed::read(reply) {
        Deed::Failed(404, _) if answer::is_unknown_network(reply) => Deed::Gone,
        Deed::Failed(_, words) if answer::is_in_use(&words) => Deed::Conflict(words),
        Deed::Failed(_, words) if answer::is_not_attached(&words) => Deed::AlreadySo,
        deed => deed,
    }
}
