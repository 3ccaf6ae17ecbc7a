//! HTTP/1.1 over an engine's socket: one request after the other on a connection that is kept, each with the deadline, and
//! no more of a body than was agreed. Whoever listens may send for ever. What is to be followed is read piece by piece.

use std::{os::fd::OwnedFd, sync::Arc};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};

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
    pub(super) deadline: Instant,
    sender: Option<SendRequest<Full<Bytes>>>,
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
        match self.call(Method::GET, path, Bytes::new(), most_bytes).await {
            Err(NoAnswer::Strange(_)) if was_used => {
                self.call(Method::GET, path, Bytes::new(), most_bytes).await
            }
            answer => answer,
        }
    }

    /// One request; its body is JSON, where it has one. After a failure the connection is not used again.
    pub(super) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        most_bytes: usize,
    ) -> Result<Reply, NoAnswer> {
        let deadline = self.deadline;
        let call = async {
            let (sender, response) = self.send(method, path, body).await?;
            let status = response.status().as_u16();
            let body = read(response.into_body(), most_bytes).await?;
            Ok((sender, Reply { status, body }))
        };
        let (sender, reply) = timeout_at(deadline, call).await.unwrap_or(Err(NoAnswer::Late))?;
        self.sender = Some(sender);
        Ok(reply)
    }

    /// A question whose answer comes piece by piece. Without a deadline: that is the caller's.
    pub(super) async fn follow(mut self, path: &str) -> Result<Flow, NoAnswer> {
        let (sender, response) = self.send(Method::GET, path, Bytes::new()).await?;
        let status = response.status().as_u16();
        Ok(Flow { status, body: response.into_body(), _sender: sender })
    }

    /// Sends a request and waits for the head of its answer.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(SendRequest<Full<Bytes>>, Response<Incoming>), NoAnswer> {
        let mut sender = match self.sender.take() {
            Some(sender) if !sender.is_closed() => sender,
            Some(_) | None => self.connect().await?,
        };
        sender.ready().await.map_err(strange)?;
        let mut request = Request::builder().method(method).uri(path).header("Host", "localhost");
        if !body.is_empty() {
            request = request.header("Content-Type", "application/json");
        }
        let request = request.body(Full::new(body)).map_err(strange)?;
        let response = sender.send_request(request).await.map_err(strange)?;
        Ok((sender, response))
    }

    async fn connect(&mut self) -> Result<SendRequest<Full<Bytes>>, NoAnswer> {
        let (stream, counts_as_we_do) = way::reach(&self.socket, self.owner)?;
        self.counts_as_we_do = counts_as_we_do;
        begin(tokio::net::UnixStream::from_std(stream).map_err(strange)?).await
    }

    /// Over a connection that is there already.
    #[cfg(any(test, fuzzing))]
    pub(super) async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        nowhere: OwnedFd,
        deadline: Instant,
    ) -> Result<Self, NoAnswer> {
        let sender = Some(begin(stream).await?);
        Ok(Self { sender, ..Self::new(Arc::new(nowhere), 0, deadline) })
    }
}

async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, NoAnswer> {
    let (sender, connection) = Builder::new()
        .max_buf_size(MOST_HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(strange)?;
    // What it has to say, the sender says too.
    tokio::spawn(async { drop(connection.await) });
    Ok(sender)
}

/// An answer that is still coming.
pub(super) struct Flow {
    pub(super) status: u16,
    body: Incoming,
    /// As long as it lives, so does the connection.
    _sender: SendRequest<Full<Bytes>>,
}

impl Flow {
    /// What came next; none at the end. May be dropped while it waits: nothing is lost.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, NoAnswer> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(strange(error)),
                Some(Ok(frame)) => {
                    // Trailers are no part of it.
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// All of it, where it is no longer than that: why there is nothing to follow.
    pub(super) async fn rest(self, most_bytes: usize) -> Result<Reply, NoAnswer> {
        Ok(Reply { status: self.status, body: read(self.body, most_bytes).await? })
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
