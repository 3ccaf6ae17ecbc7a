//! HTTP/1.1 over an engine's socket: one request after the other on a connection that is kept, each with the deadline, and
//! no more of a body than was agreed. Whoever listens may send for ever.

use std::{os::fd::OwnedFd, sync::Arc};

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout_at};

use super::way::{self, NoAnswer};

/// More than the headers of any engine.
const MOST_HEADER_BYTES: usize = 64 << 10;

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

/// One connection, made when it is first used and made anew when the engine closed it.
#[derive(Debug)]
pub(super) struct Line {
    socket: Arc<OwnedFd>,
    owner: u32,
    deadline: Instant,
    sender: Option<SendRequest<Empty<Bytes>>>,
    /// Whether a pid in its answers means the same process to us.
    pub(super) counts_as_we_do: bool,
}

impl Line {
    pub(super) fn new(socket: Arc<OwnedFd>, owner: u32, deadline: Instant) -> Self {
        Self { socket, owner, deadline, sender: None, counts_as_we_do: false }
    }

    /// Another connection to the same.
    pub(super) fn sibling(&self) -> Self {
        Self::new(Arc::clone(&self.socket), self.owner, self.deadline)
    }

    /// A question; asked again once where a connection that was used before turns out to be closed.
    pub(super) async fn get(&mut self, path: &str, most_bytes: usize) -> Result<Reply, NoAnswer> {
        let was_used = self.sender.is_some();
        match self.call(Method::GET, path, most_bytes).await {
            Err(NoAnswer::Strange(_)) if was_used => self.call(Method::GET, path, most_bytes).await,
            answer => answer,
        }
    }

    /// One request. After a failure the connection is not used again.
    pub(super) async fn call(
        &mut self,
        method: Method,
        path: &str,
        most_bytes: usize,
    ) -> Result<Reply, NoAnswer> {
        let (kept, deadline) = (self.sender.take(), self.deadline);
        let call = async {
            let mut sender = match kept {
                Some(sender) if !sender.is_closed() => sender,
                Some(_) | None => self.connect().await?,
            };
            sender.ready().await.map_err(strange)?;
            let request = Request::builder().method(method).uri(path).header("Host", "localhost");
            let request = request.body(Empty::new()).map_err(strange)?;
            let response = sender.send_request(request).await.map_err(strange)?;
            let status = response.status().as_u16();
            let body = read(response.into_body(), most_bytes).await?;
            Ok((sender, Reply { status, body }))
        };
        let (sender, reply) = timeout_at(deadline, call).await.unwrap_or(Err(NoAnswer::Late))?;
        self.sender = Some(sender);
        Ok(reply)
    }

    async fn connect(&mut self) -> Result<SendRequest<Empty<Bytes>>, NoAnswer> {
        let (stream, counts_as_we_do) = way::reach(&self.socket, self.owner)?;
        self.counts_as_we_do = counts_as_we_do;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(strange)?;
        let (sender, connection) = Builder::new()
            .max_buf_size(MOST_HEADER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(strange)?;
        // What it has to say, the sender says too.
        tokio::spawn(async { drop(connection.await) });
        Ok(sender)
    }
}

async fn read(body: Incoming, most_bytes: usize) -> Result<Bytes, NoAnswer> {
    match Limited::new(body, most_bytes).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(NoAnswer::Strange(format!("its answer is longer than {most_bytes} bytes")))
        }
        Err(error) => Err(strange(error)),
    }
}

/// With its causes: hyper's own words are "error reading a body from connection" and the like.
fn strange(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> NoAnswer {
    let error = error.into();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    NoAnswer::Strange(text)
}
