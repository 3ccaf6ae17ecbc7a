//! Orders to an engine about what is to be: create, start, never restart. Only over its socket, in Docker's
//! API, and none is ever given twice: where no answer came, whether it was done is not known.

#[cfg(test)]
mod tests;

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

/// From now on its engine does not start it again by itself. `Done` = the engine says so when it is asked again; `AlreadySo`
/// = it never did. Podman has the order since 5.1 (podman pull request 22322); an older one says that it cannot, and the
/// container is as it was.
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

/// An order about one container or network, by its whole id: a beginning or a name would find another.
pub(super) fn about(
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

pub(super) fn not_asked(id: &str) -> Deed {
    Deed::NoAnswer(format!("not asked: '{}' is no whole id", shown(id)))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreatedJson {
    id: String,
    warnings: Option<Vec<String>>,
}

pub(super) fn created(reply: &Reply) -> Result<Created, Refused> {
    let words = || answer::message(reply);
    match reply.status {
        200 | 201 => {}
        // Podman 4.3 has no 409 for it.
        409 | 500 if answer::is_about_a_name(reply) => return Err(Refused::NameTaken(words())),
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
