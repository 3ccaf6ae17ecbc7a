//! The process that asks NVML, as its parent sees it: a question, an answer within the deadline, else its end.

use std::{
    io::{self, Read, Write},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    devices::Information,
    nvml::{INFORMATION, LOOK, Reply, Told},
};
use crate::{
    snapshot::{GpuSource, GpuTrouble},
    sys,
};

/// The command's verb that is this process.
pub const VERB: &str = "nvml-reader";
/// A GPU takes some 300 bytes, and each process on it 50.
const MOST_BYTES: usize = 4 << 20;
/// How long a killed process may take to be gone. One that is stuck in the driver is left to init.
const LAST_WAIT: Duration = Duration::from_millis(200);

/// Asks NVML through a process of its own.
#[derive(Debug)]
pub(super) struct Asker {
    program: PathBuf,
    running: Option<Running>,
}

impl Asker {
    /// Starts nothing yet. The program is a `portreeve`.
    pub(super) fn new(program: PathBuf) -> Self {
        Self { program, running: None }
    }

    /// All GPUs that NVML knows.
    pub(super) fn look(
        &mut self,
        library: Option<&Path>,
        timeout: Duration,
    ) -> Result<Vec<Told>, GpuTrouble> {
        match self.ask(LOOK, library, timeout)? {
            Reply::Gpus(gpus) => Ok(gpus),
            Reply::Information(_) => Err(told("gave another answer than was asked for")),
            Reply::Trouble { why, remedy } => {
                self.running = None;
                Err(GpuTrouble { source: GpuSource::Nvml, why, remedy })
            }
        }
    }

    /// What the kernel driver tells of its cards.
    pub(super) fn information(&mut self, timeout: Duration) -> Result<Information, GpuTrouble> {
        match self.ask(INFORMATION, None, timeout)? {
            Reply::Information(information) => Ok(information),
            Reply::Gpus(_) | Reply::Trouble { .. } => {
                Err(told("gave another answer than was asked for"))
            }
        }
    }

    /// After a question without an answer the next one goes to a new process.
    fn ask(
        &mut self,
        question: &str,
        library: Option<&Path>,
        timeout: Duration,
    ) -> Result<Reply, GpuTrouble> {
        let deadline = Instant::now() + timeout;
        let running = self.running.take();
        let running = running.map_or_else(|| Running::start(&self.program, library), Ok);
        let mut running = running.map_err(|error| told(&format!("could not be asked: {error}")))?;
        let line = running.ask(question, deadline).map_err(|silence| match silence {
            Silence::Late => told(&super::late(timeout)),
            Silence::Lost(error) => told(&format!("could not be asked: {error}")),
            Silence::Ended => match running.last_status().map(|s| (s, s.signal())) {
                Some((_, Some(signal))) => told(&format!("crashed (signal {signal})")),
                Some((status, None)) => told(&format!("ended without an answer ({status})")),
                None => told("ended without an answer"),
            },
        })?;
        let reply = serde_json::from_slice(&line);
        let reply =
            reply.map_err(|error| told(&format!("gave an answer that is none: {error}")))?;
        self.running = Some(running);
        Ok(reply)
    }
}

fn told(why: &str) -> GpuTrouble {
    GpuTrouble { source: GpuSource::Nvml, why: why.to_owned(), remedy: None }
}

/// Why there is no line.
enum Silence {
    Late,
    Ended,
    Lost(io::Error),
}

#[derive(Debug)]
struct Running {
    child: Child,
    questions: ChildStdin,
    answers: ChildStdout,
}

impl Running {
    fn start(program: &Path, library: Option<&Path>) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg(VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(library) = library {
            command.arg("--library").arg(library);
        }
        // An interrupt at the terminal is for us to answer.
        sys::begin_session(&mut command);
        let mut child = command.spawn()?;
        let (questions, answers) = (child.stdin.take(), child.stdout.take());
        let lost = || io::Error::other("its pipes are lost");
        let (questions, answers) = questions.zip(answers).ok_or_else(lost)?;
        rustix::io::ioctl_fionbio(answers.as_fd(), true)?;
        Ok(Self { child, questions, answers })
    }

    fn ask(&mut self, question: &str, deadline: Instant) -> Result<Vec<u8>, Silence> {
        match self.questions.write_all(question.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Silence::Ended),
            written => written.map_err(Silence::Lost)?,
        }
        let mut line = Vec::new();
        let mut part = [0; 8192];
        while line.last() != Some(&b'\n') {
            if line.len() > MOST_BYTES {
                return Err(Silence::Lost(io::Error::other("it says too much")));
            }
            wait_for(&self.answers, deadline)?;
            match self.answers.read(&mut part) {
                Ok(0) => return Err(Silence::Ended),
                Ok(length) => line.extend(part.get(..length).unwrap_or_default()),
                Err(error) if is_again(&error) => {}
                Err(error) => return Err(Silence::Lost(error)),
            }
        }
        Ok(line)
    }

    /// How it ended, where it has.
    fn last_status(&mut self) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Some(status);
        }
        let exit = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).ok()?;
        wait_for(&exit, Instant::now() + LAST_WAIT).ok()?;
        self.child.wait().ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        let _ = self.last_status();
    }
}

/// Until something is to be read there.
fn wait_for(fd: impl AsFd, deadline: Instant) -> Result<(), Silence> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left =
            Timespec::try_from(left).map_err(|error| Silence::Lost(io::Error::other(error)))?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(Silence::Late),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Silence::Lost(error.into())),
        }
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}
