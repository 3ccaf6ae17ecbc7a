//! One line that overwrites itself while we wait, on standard error and only on a terminal.

use std::io::{self, Stderr, Write};

use super::{columns, escape::escape};

/// Back to the line's beginning, then erase to its end (ECMA-48 EL).
const ERASE: &str = "\r\x1b[K";

/// The line. What cannot be written is not missed: it only says what we wait for.
#[derive(Debug)]
pub(super) struct Progress<W: Write = Stderr> {
    out: W,
    is_terminal: bool,
    columns: usize,
    is_shown: bool,
}

impl Progress {
    /// A line on standard error, silent unless that is a terminal.
    pub(super) fn new(is_terminal: bool) -> Self {
        let out = io::stderr();
        let columns = columns(&out).unwrap_or(80);
        Self { out, is_terminal, columns, is_shown: false }
    }
}

impl<W: Write> Progress<W> {
    /// Shows this text in place of the last.
    pub(super) fn say(&mut self, text: &str) {
        if self.is_terminal {
            // A line as wide as the terminal would wrap, and could not be taken back.
            let shown = escape(text, Some(self.columns.saturating_sub(1)));
            self.write(&format!("{ERASE}{shown}"));
            self.is_shown = true;
        }
    }

    /// Takes the line back, before anything else is written.
    pub(super) fn clear(&mut self) {
        if self.is_shown {
            self.write(ERASE);
            self.is_shown = false;
        }
    }

    fn write(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(
        is_terminal: bool,
        columns: usize,
        work: impl FnOnce(&mut dyn FnMut(&str)),
    ) -> String {
        let mut out = Vec::new();
        let mut progress = Progress { out: &mut out, is_terminal, columns, is_shown: false };
        work(&mut |text| progress.say(text));
        drop(progress);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_text_overwrites_the_last_and_the_end_clears_the_line() {
        let shown = written(true, 80, |say| {
            say("waiting for 2 of 3 processes to end");
            say("waiting for 1 of 3 processes to end");
        });
        assert_eq!(
            shown,
            "\r\x1b[Kwaiting for 2 of 3 processes to end\r\x1b[Kwaiting for 1 of 3 processes to end\r\x1b[K"
        );
    }

    #[test]
    fn nothing_is_written_where_no_terminal_is_or_nothing_was_said() {
        assert_eq!(written(false, 80, |say| say("waiting")), "");
        assert_eq!(written(true, 80, |_| {}), "");
    }

    #[test]
    fn a_text_never_wraps_and_foreign_text_in_it_is_escaped() {
        assert_eq!(
            written(true, 10, |say| say("a\u{1b}[2J and more")),
            "\r\x1b[Ka\\x1b[2J…\r\x1b[K"
        );
    }

    #[test]
    fn a_closed_standard_error_is_no_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut progress =
            Progress { out: Closed, is_terminal: true, columns: 80, is_shown: false };
        progress.say("waiting");
        progress.clear();
        assert!(!progress.is_shown);
    }
}
