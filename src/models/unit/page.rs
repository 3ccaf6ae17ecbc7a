//! How a text stands in a unit's file, so that it means itself (systemd.syntax(7), systemd.service(5) "Command lines").

use std::{fmt::Write, path::Path};

/// A file as it is written.
#[derive(Debug, Default)]
pub(super) struct Page(pub(super) String);

impl Page {
    pub(super) fn section(&mut self, name: &str) {
        self.0.push('\n');
        let _ = writeln!(self.0, "[{name}]");
    }

    pub(super) fn gap(&mut self) {
        self.0.push('\n');
    }

    /// A line for the reader.
    pub(super) fn why(&mut self, text: &str) {
        let _ = writeln!(self.0, "# {}", shown(text));
    }

    pub(super) fn set(&mut self, key: &str, value: &str) {
        let _ = writeln!(self.0, "{key}={value}");
    }
}

/// Control characters as they are escaped: none begins a line of its own.
pub(super) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if c.is_control() || "\u{2028}\u{2029}".contains(c) {
            shown.extend(c.escape_debug());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A value that is read as it stands, but for specifiers.
pub(super) fn plain(text: &str) -> String {
    shown(text).replace('%', "%%")
}

/// One word of a list, or a program's path.
pub(super) fn quoted(path: &Path) -> String {
    word(&path.to_string_lossy(), "%")
}

/// One argument of a command, where variables are replaced as well.
pub(super) fn argument(text: &str) -> String {
    word(text, "%$")
}

fn word(text: &str, doubled: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._:=,@+-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if doubled.contains(c) => quoted.extend([c, c]),
            c if c.is_control() => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(quoted, "\\x{byte:02x}");
                }
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// As part of a unit's name or a folder's: models' names need no change.
pub(super) fn unit_word(text: &str) -> String {
    let mut word = String::new();
    for byte in text.bytes() {
        match char::from(byte) {
            c if c.is_ascii_alphanumeric() || "._-".contains(c) => word.push(c),
            _ => {
                let _ = write!(word, "\\x{byte:02x}");
            }
        }
    }
    word
}
