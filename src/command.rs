//! Another program, asked for what it says: without a shell, in a session of its own, until a deadline, with a limit to what it
//! may say. What it says means is its caller's; so are its path, its environment and its user.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::sys;

/// A list of thousands of ids, a container with its labels, a stack of hundreds of services.
const MOST_BYTES: usize = 1 << 20;
/// How long a killed command may take to be gone.
const LAST_WAIT: Duration = Duration::from_millis(200);

/// What a command said until it exited.
#[derive(Debug)]
pub struct Said {
    /// Its exit status; none where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: Vec<u8>,
    /// Its standard error.
    pub errors: Vec<u8>,
}

/// Why a command was not heard to its end. What was started of it is killed.
#[derive(Debug, thiserror::Error)]
pub enum Unheard {
    /// It could not be started.
    #[error("{0}")]
    NotStarted(#[source] io::Error),
    /// Not until the deadline.
    #[error("it did not end in time")]
    Late,
    /// More than this many bytes.
    #[error("it says more than {0} bytes")]
    TooMuch(usize),
    /// Its output or its exit could not be read.
    #[error("{0}")]
    Lost(#[source] io::Error),
}

/// Whether a file may be executed by somebody.
pub fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Runs a command and hears it out. It gets nothing to read and no terminal; its children are ended with it.
pub fn run(mut command: Command, deadline: Instant) -> Result<Said, Unheard> {
    if Instant::now() >= deadline {
        return Err(Unheard::Late);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::begin_session(&mut command);
    let mut child = command.spawn().map_err(Unheard::NotStarted)?;
    let said = listen(&mut child, deadline);
    if said.is_err() {
        end(&mut child);
    }
    said
}

/// All that it says until it exits. Who else has its output open (Podman leaves a process behind that keeps a user's
/// namespace) is not waited for.
fn listen(child: &mut Child, deadline: Instant) -> Result<Said, Unheard> {
    let own = |error: rustix::io::Errno| Unheard::Lost(error.into());
    let pid = Pid::from_child(child);
    let exit = pidfd_open(pid, PidfdFlags::empty()).map_err(own)?;
    let out: Option<OwnedFd> = child.stdout.take().map(Into::into);
    let errors: Option<OwnedFd> = child.stderr.take().map(Into::into);
    let mut pipes =
        [Pipe::new(out).map_err(Unheard::Lost)?, Pipe::new(errors).map_err(Unheard::Lost)?];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Unheard::Late);
        }
        let has_exited = wait(&exit, &pipes, left).map_err(own)?;
        for pipe in &mut pipes {
            pipe.drain().map_err(Unheard::Lost)?;
            if pipe.text.len() > MOST_BYTES {
                return Err(Unheard::TooMuch(MOST_BYTES));
            }
        }
        if has_exited {
            break;
        }
    }
    let code = child.wait().map_err(Unheard::Lost)?.code();
    let [out, errors] = pipes.map(|pipe| pipe.text);
    Ok(Said { code, out, errors })
}

/// Waits for an exit or for something to read; tells whether it is the exit.
fn wait(exit: &OwnedFd, pipes: &[Pipe], left: Duration) -> rustix::io::Result<bool> {
    let mut fds = vec![PollFd::new(exit, PollFlags::IN)];
    fds.extend(pipes.iter().filter_map(|p| p.fd.as_ref()).map(|fd| PollFd::new(fd, PollFlags::IN)));
    let left = Timespec::try_from(left).ok();
    match poll(&mut fds, left.as_ref()) {
        Ok(_) => Ok(fds.first().is_some_and(|exit| !exit.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One end of a pipe, and what came out of it.
struct Pipe {
    fd: Option<OwnedFd>,
    text: Vec<u8>,
}

impl Pipe {
    fn new(fd: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(fd) = &fd {
            rustix::io::ioctl_fionbio(fd.as_fd(), true)?;
        }
        Ok(Self { fd, text: Vec::new() })
    }

    /// Reads what is there, and a little beyond the limit at most.
    fn drain(&mut self) -> io::Result<()> {
        let Some(fd) = self.fd.take() else { return Ok(()) };
        let mut pipe = fs::File::from(fd);
        let mut part = [0; 8192];
        while self.text.len() <= MOST_BYTES {
            match pipe.read(&mut part) {
                Ok(0) => return Ok(()),
                Ok(length) => self.text.extend(part.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.fd = Some(pipe.into());
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Kills the command and its children: its group is a child's that was not waited for, so the number is still theirs.
fn end(child: &mut Child) {
    let pid = Pid::from_child(child);
    // Before setsid there is no such group yet.
    if kill_process_group(pid, Signal::KILL).is_err() {
        drop(child.kill());
    }
    let Ok(exit) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if matches!(wait(&exit, &[], LAST_WAIT), Ok(true)) {
        drop(child.wait());
    }
}
