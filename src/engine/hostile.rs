//! Bytes at an engine's socket, read as an engine's answers, and what must be true whatever they are. Built for the fuzzer and
//! for the tests that read its corpora again (`crate::fuzzing`).

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use std::{
    fs::File,
    io,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::body::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Builder,
    time::Instant,
};

use super::{
    Deed, answer, deed,
    http::{Line, Reply},
    is_whole,
    logs::Lines,
    made, make, networks,
    way::NoAnswer,
};
use crate::{
    ident::{ContainerId, EngineKind, EngineRef},
    snapshot::Seen,
};

const STATUSES: [u16; 8] = [200, 404, 409, 500, 304, 403, 201, 204];
const MOST_BODY_BYTES: usize = 4096;
const ENGINE: EngineRef = EngineRef { kind: EngineKind::Docker, owner: 0 };

/// A status and JSON: what is no answer is `Unreadable`, never `Gone` and never another container.
pub fn engine(bytes: &[u8]) {
    let Some((status, body)) = bytes.split_first() else { return };
    let status = STATUSES.get(usize::from(*status) % 8).copied().unwrap_or(200);
    let reply = Reply { status, body: Bytes::copy_from_slice(body) };
    let text = String::from_utf8_lossy(body).to_lowercase();
    let id = ContainerId("0123456789abcdef".repeat(4));

    if let Ok(dialect) = answer::dialect(&reply) {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-/".contains(c);
        for path in [&dialect.docker, &dialect.own] {
            assert!(path.starts_with("/v") && path.chars().all(is_plain), "{path:?}");
        }
    }
    for seen in [answer::container(&reply, ENGINE, &id), answer::read_listed(body, ENGINE, &id)] {
        match seen {
            Seen::Known(container) => {
                assert!(container.id == id && text.contains(&id.0));
                assert!(answer::name(&container.name) == Some(container.name.as_str()));
                assert!(container.upper_dir.is_none_or(|path| path.is_absolute()));
            }
            Seen::Gone => assert!(status == 404 && text.contains("no such container")),
            Seen::Denied => assert!(status == 403),
            Seen::Unreadable(why) => assert!(!why.is_empty()),
        }
    }
    for publishers in [answer::running(&reply, ENGINE), answer::read_running(body, ENGINE)] {
        for publisher in publishers.into_iter().flatten() {
            assert!(is_whole(&publisher.id));
        }
    }
    for store in [
        answer::store(&reply, EngineKind::Docker),
        answer::store(&reply, EngineKind::Podman),
        answer::podman_store(body),
    ] {
        assert!(store.is_err() || store.is_ok_and(|store| store.root.is_absolute()));
    }
    let _ = (answer::all(&reply), answer::listed(body));
    for listed in made::printed(body).into_iter().flatten() {
        assert!(is_whole(&listed.id));
        assert!(answer::name(&listed.name) == Some(listed.name.as_str()));
    }
    for asked in [id.0.as_str(), "llama"] {
        match made::read(&reply, asked, true) {
            Ok(Some(inspected)) => {
                assert!(is_whole(&inspected.made.id));
                assert!(inspected.made.id.0 == asked || inspected.made.name == asked);
            }
            Ok(None) => assert!(status == 404 && text.contains("no such container")),
            Err(_) => {}
        }
        match networks::read_one(&reply, asked) {
            Ok(Some(network)) => assert!(network.id == asked || network.name == asked),
            Ok(None) => assert!(status == 404 && text.contains("network")),
            Err(_) => {}
        }
    }
    if let Ok(created) = make::created(&reply) {
        assert!(is_whole(&created.id) && matches!(status, 200 | 201));
    }
    for deed in [deed::read(&reply), networks::read_network(&reply)] {
        assert!(deed != Deed::Gone || status == 404);
        assert!(deed != Deed::Done || matches!(status, 200 | 204));
    }
}

/// What comes over the connection, to one question after the other.
pub fn http(bytes: &[u8]) {
    let (Ok(runtime), Ok(nowhere)) =
        (Builder::new_current_thread().enable_time().build(), File::open("/dev/null"))
    else {
        return;
    };
    runtime.block_on(async {
        let deadline = Instant::now() + Duration::from_secs(1);
        let said = Said { bytes: bytes.to_vec(), at: 0, was_asked: false, reader: None };
        let Ok(mut line) = Line::over(said, nowhere.into(), deadline).await else { return };
        // On a kept connection a second answer may stand behind the first.
        for _ in 0..2 {
            match line.get("/version", MOST_BODY_BYTES).await {
                Ok(reply) => {
                    assert!(reply.body.len() <= MOST_BODY_BYTES && reply.status >= 100);
                    assert!(bytes.windows(5).any(|part| part == b"HTTP/"));
                }
                Err(why) => {
                    assert_ne!(why, NoAnswer::Late, "its connection has an end");
                    break;
                }
            }
        }
    });
}

/// A container's log: whether it has a terminal, then what comes. However it comes in pieces, its lines are the same.
pub fn logs(bytes: &[u8]) {
    let Some((first, text)) = bytes.split_first() else { return };
    let read = |piece: usize| {
        let mut lines = Lines::new(first % 2 == 1);
        let mut all = Vec::new();
        let mut each = |line: String| {
            all.push(line);
            ControlFlow::Continue(())
        };
        let mut parts = text.chunks(piece.max(1));
        let read = parts.try_for_each(|part| lines.take(part, &mut each).map(drop));
        let read = read.and_then(|()| lines.end(&mut each));
        (all, read)
    };
    let whole = read(text.len());
    assert_eq!(read(1 + usize::from(first / 2)), whole);
    assert!(whole.0.iter().map(String::len).sum::<usize>() <= text.len() * 3);
    assert!(whole.0.iter().all(|line| !line.contains('\n')));
}

/// Somebody who says this, whatever he is asked, and hangs up.
struct Said {
    bytes: Vec<u8>,
    at: usize,
    /// Who speaks before he is asked is not listened to.
    was_asked: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.was_asked {
            self.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let left = self.bytes.get(self.at..).unwrap_or_default();
        let taken = left.get(..left.len().min(buffer.remaining())).unwrap_or_default();
        buffer.put_slice(taken);
        let taken = taken.len();
        self.at += taken;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.was_asked = true;
        self.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
