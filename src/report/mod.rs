//! What a person and what a program read of a look or a reap, and the exit code that goes with it.
//! Knows how to say things; what is so, the judge and the act have decided.

use progress::Progress;

use crate::{act::Outcome, judge::verdict::Verdict, pipeline::Reaped, snapshot::Process};

pub mod doctor;
pub mod escape;
pub mod explain;
pub mod exit;
pub mod gate;
pub mod github;
mod gpu;
pub mod journal;
pub mod json;
pub mod leftovers;
pub mod line;
pub mod models;
mod progress;
pub mod prometheus;
mod summary;
mod table;

pub use table::{render_findings, render_reaped};

/// What the reader's side of the output can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns of the terminal; none where a file or a pipe takes the text, which then is not cut.
    pub width: Option<usize>,
    /// Whether to write SGR sequences. Nothing is said by colour alone.
    pub is_coloured: bool,
    /// Whether to write the evidence below each verdict; of `explain` every row and where each fact was read.
    pub shows_evidence: bool,
}

impl Style {
    /// What our standard output can take: columns and colour on a terminal, colour as NO_COLOR, CLICOLOR and TERM wish.
    pub fn of_stdout() -> Self {
        Self::of(&std::io::stdout())
    }

    /// The same of standard error.
    pub fn of_stderr() -> Self {
        Self::of(&std::io::stderr())
    }

    fn of<S: anstream::stream::RawStream + std::os::fd::AsFd>(stream: &S) -> Self {
        let width = stream.is_terminal().then(|| columns(stream)).flatten();
        let choice = anstream::AutoStream::choice(stream);
        let is_coloured = choice != anstream::ColorChoice::Never;
        Self { width, is_coloured, shows_evidence: false }
    }
}

/// Columns of the terminal behind this stream; none where it has no size (ioctl_tty(2), TIOCGWINSZ).
fn columns(stream: &impl std::os::fd::AsFd) -> Option<usize> {
    let columns = rustix::termios::tcgetwinsize(stream).ok()?.ws_col;
    (columns > 0).then_some(columns.into())
}

/// What stands for a process on a line: its command line, or its name in brackets where there is none to read.
fn title_of(process: &Process) -> Vec<u8> {
    match process.command_line.known() {
        Some(line) if !line.text.is_empty() => line.text.clone(),
        Some(_) | None => format!("[{}]", process.name).into_bytes(),
    }
}

/// Every process that a reap judged, once: those that were to be ended, by the verdict that was acted on, then
/// what else the last look found.
fn judged(reaped: &Reaped) -> impl Iterator<Item = (&Verdict, Option<&Outcome>)> {
    let ended = reaped.deeds.iter().map(|deed| (&deed.verdict, Some(&deed.outcome)));
    let others = reaped.after.verdicts.iter().filter(|verdict| {
        !reaped.deeds.iter().any(|deed| deed.verdict.key().is_same(&verdict.key()))
    });
    ended.chain(others.map(|verdict| (verdict, None)))
}

#[cfg(test)]
mod sample;
