//! What a container has said, and what it says now. Docker's API writes both streams into one, in frames of 8 bytes of head
//! and the text behind it, unless the container has a terminal (docs.docker.com, "Attach to a container", stream format).

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::time::{timeout, timeout_at};

use super::{
    Engine, answer,
    http::Flow,
    made,
    socket::{self, Socket},
    way::NoAnswer,
};
use crate::ident::{ContainerId, EngineKind};

/// Of what a container has said, we keep no more: the last of it.
const MOST_BYTES: usize = 1 << 20;
/// A longer line is cut into several.
const MOST_LINE_BYTES: usize = 64 << 10;
/// No more lines are asked for or kept: Podman makes room for all of them before it reads the first (podman pull request
/// 29028).
const MOST_LINES: usize = 100_000;
/// Why there is no log.
const REFUSAL_BYTES: usize = 64 << 10;
/// How often one who follows is asked whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// The last `tail` lines that a container wrote, of both streams in their order, without line ends: up to 1 MiB of them. What
/// is no UTF-8 is replaced; control characters are left in. Between the streams the order is that in which the engine read
/// them.
pub fn logs(
    engine: &Engine,
    id: &ContainerId,
    tail: usize,
    timeout: Duration,
) -> Result<Vec<String>, NoAnswer> {
    whole(id)?;
    socket::talk(engine, timeout, async |socket| {
        let deadline = socket.deadline();
        let mut kept = Kept { lines: VecDeque::new(), bytes: 0, most: tail.min(MOST_LINES) };
        let read = async {
            let mut log = Log::open(socket, id, tail, false).await?;
            log.read(&mut |line| kept.take(line)).await
        };
        timeout_at(deadline, read).await.unwrap_or(Err(NoAnswer::Late))?;
        Ok(kept.lines.into())
    })
}

/// The last `tail` lines, then each line as it is written, until the container ends or `each` breaks. `timeout` is for the
/// first answer alone: a container may be silent for as long as it likes. `should_end` is asked ten times a second, also in a
/// silence.
pub fn follow_logs(
    engine: &Engine,
    id: &ContainerId,
    tail: usize,
    timeout: Duration,
    each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    should_end: &dyn Fn() -> bool,
) -> Result<(), NoAnswer> {
    whole(id)?;
    let runtime = super::runtime().map_err(|error| NoAnswer::NoWay(error.to_string()))?;
    let deadline = Instant::now() + timeout;
    let follow = async {
        let socket = socket::open(engine, deadline).await?;
        let deadline = socket.deadline();
        let flushes = socket.dialect.version.kind == EngineKind::Docker;
        let open = Log::open(socket, id, tail, true);
        let mut log = if flushes {
            timeout_at(deadline, open).await.unwrap_or(Err(NoAnswer::Late))?
        } else {
            // Podman may begin its answer with the first line (podman issue 23712).
            open.await?
        };
        log.read(&mut |line| each(&line)).await
    };
    let followed = runtime.block_on(unless(should_end, follow));
    runtime.shutdown_background();
    followed.unwrap_or(Ok(()))
}

/// None where it should end before.
async fn unless<T>(should_end: &dyn Fn() -> bool, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    loop {
        if should_end() {
            return None;
        }
        if let Ok(done) = timeout(LOOK, &mut future).await {
            return Some(done);
        }
    }
}

fn whole(id: &ContainerId) -> Result<(), NoAnswer> {
    let why = || NoAnswer::NoWay(format!("not asked: '{id}' is no whole id"));
    super::is_whole(id).then_some(()).ok_or_else(why)
}

/// The last lines.
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    most: usize,
}

impl Kept {
    fn take(&mut self, line: String) -> ControlFlow<()> {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > self.most || self.bytes > MOST_BYTES {
            let Some(first) = self.lines.pop_front() else { break };
            self.bytes -= first.len();
        }
        ControlFlow::Continue(())
    }
}

/// A log that is being read.
struct Log {
    flow: Flow,
    lines: Lines,
}

impl Log {
    async fn open(
        mut socket: Socket,
        id: &ContainerId,
        tail: usize,
        follow: bool,
    ) -> Result<Self, NoAnswer> {
        let inspected = made::look_up(&mut socket, &id.0).await?;
        let Some(inspected) = inspected else {
            return Err(NoAnswer::Strange("it knows no such container".to_owned()));
        };
        let tail = tail.min(MOST_LINES);
        let path =
            format!("/containers/{id}/logs?stdout=true&stderr=true&follow={follow}&tail={tail}");
        let flow = socket.follow(&path).await?;
        if flow.status != 200 {
            return Err(answer::refusal(&flow.rest(REFUSAL_BYTES).await?));
        }
        Ok(Self { flow, lines: Lines::new(inspected.has_terminal) })
    }

    /// Until it ends or `each` breaks.
    async fn read(
        &mut self,
        each: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> Result<(), NoAnswer> {
        while let Some(bytes) = self.flow.next().await? {
            if self.lines.take(&bytes, each)?.is_break() {
                return Ok(());
            }
        }
        self.lines.end(each)
    }
}

/// Makes lines of what comes.
pub(super) struct Lines {
    /// A terminal's: one stream without heads.
    is_raw: bool,
    /// As much of a frame's head as has come.
    head: Vec<u8>,
    /// So much of the frame's text is still to come.
    left: usize,
    /// Whose text it is.
    stream: u8,
    /// By stream, what has no line end yet; the last that grew stands last.
    open: Vec<(u8, Vec<u8>)>,
}

impl Lines {
    pub(super) fn new(is_raw: bool) -> Self {
        Self { is_raw, head: Vec::new(), left: 0, stream: 1, open: Vec::new() }
    }

    pub(super) fn take(
        &mut self,
        mut bytes: &[u8],
        each: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, NoAnswer> {
        while !bytes.is_empty() {
            if self.is_raw {
                self.left = bytes.len();
            } else if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(8 - self.head.len()));
                self.head.extend(head);
                bytes = rest;
                self.read_head()?;
                continue;
            }
            let (text, rest) = bytes.split_at(bytes.len().min(self.left));
            self.left -= text.len();
            bytes = rest;
            if self.add(text, each).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// `[stream, 0, 0, 0, length…]`, the length with its highest byte first. Docker's streams: 0 standard input, 1 output, 2
    /// error, 3 its own words.
    fn read_head(&mut self) -> Result<(), NoAnswer> {
        let Ok(head) = <[u8; 8]>::try_from(self.head.as_slice()) else { return Ok(()) };
        let [stream @ 0..=3, 0, 0, 0, length @ ..] = head else {
            return Err(NoAnswer::Strange("its log is in no form that we know".to_owned()));
        };
        self.head.clear();
        self.stream = stream;
        self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        Ok(())
    }

    fn add(
        &mut self,
        text: &[u8],
        each: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let place = self.open.iter().position(|(stream, _)| *stream == self.stream);
        let mut open = place.map_or_else(Vec::new, |place| self.open.remove(place).1);
        for part in text.split_inclusive(|byte| *byte == b'\n') {
            open.extend(part);
            while let Some(length) = line_length(&open) {
                let line: Vec<u8> = open.drain(..length).collect();
                each(readable(&line))?;
            }
        }
        if !open.is_empty() {
            self.open.push((self.stream, open));
        }
        ControlFlow::Continue(())
    }

    /// What is left without a line end is a line, too. Half a frame is none.
    pub(super) fn end(
        &mut self,
        each: &mut dyn FnMut(String) -> ControlFlow<()>,
    ) -> Result<(), NoAnswer> {
        for (_, open) in self.open.drain(..) {
            if each(readable(&open)).is_break() {
                return Ok(());
            }
        }
        if self.left > 0 && !self.is_raw || !self.head.is_empty() {
            return Err(NoAnswer::Strange("its log ends in the middle".to_owned()));
        }
        Ok(())
    }
}

/// Of the line that is complete, or too long to wait for more.
fn line_length(open: &[u8]) -> Option<usize> {
    let is_complete = open.last() == Some(&b'\n') && open.len() <= MOST_LINE_BYTES;
    if is_complete {
        Some(open.len())
    } else {
        (open.len() > MOST_LINE_BYTES).then_some(MOST_LINE_BYTES)
    }
}

/// Without its end, which a terminal writes as `\r\n`.
fn readable(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8_lossy(line).into_owned()
}
