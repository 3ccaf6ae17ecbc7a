//! What is wrong with a configuration, and how a person is told: file, line and column, the line itself with the
//! offending text underlined, what was expected, a hint.

use std::{fmt, fmt::Write as _, path::Path};

use unicode_width::UnicodeWidthStr;

/// More would only scroll the first away.
const MAX_SHOWN: usize = 50;
/// Columns of a quoted line before and after the offending text; the rest is cut.
const MAX_CONTEXT: usize = 60;

/// Everything that is wrong with a configuration, in the order of files and lines. `Display` is the whole report, plain text.
#[derive(Debug)]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        // Stable: the files keep their order, and what has no place stands before what has one.
        problems.sort_by_key(|p| (p.layer, p.excerpt.as_ref().map(|e| (e.line, e.column))));
        Self { problems }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.problems.len()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(MAX_SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        match self.problems.len().checked_sub(MAX_SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n\n{more} more errors are not shown"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Debug)]
pub(super) struct Problem {
    /// Rank of the layer, for the order of the report.
    pub(super) layer: usize,
    /// The file, as its path or `default`.
    pub(super) file: String,
    /// The offending text; none where the file as a whole is meant.
    pub(super) excerpt: Option<Excerpt>,
    /// What is wrong and what was expected.
    pub(super) message: String,
    /// What to do.
    pub(super) hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Excerpt { line, column, .. }) = self.excerpt {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(excerpt) = &self.excerpt {
            write!(f, "\n{excerpt}")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// A line of a file with a part of it marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Excerpt {
    line: usize,
    /// In characters, from 1.
    column: usize,
    before: String,
    marked: String,
    after: String,
}

impl Excerpt {
    /// Marks the bytes `start..end` of this text, up to the end of their first line; `line` counts from 1.
    pub(super) fn new(text: &str, line: usize, start: usize, end: usize) -> Self {
        let (head, tail) = text.split_at_checked(start).unwrap_or((text, ""));
        let before = head.rsplit(['\n', '\r']).next().unwrap_or_default();
        let rest = tail.split(['\n', '\r']).next().unwrap_or_default();
        let (marked, after) =
            rest.split_at_checked(end.saturating_sub(start)).unwrap_or((rest, ""));
        Self {
            line,
            column: before.chars().count() + 1,
            before: cut_front(before),
            marked: quoted(marked, 2 * MAX_CONTEXT),
            after: quoted(after, MAX_CONTEXT),
        }
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        writeln!(f, "  {number} | {}{}{}", self.before, self.marked, self.after)?;
        let indent = " ".repeat(self.before.width());
        let carets = "^".repeat(self.marked.width().max(1));
        write!(f, "  {:1$} | {indent}{carets}", "", number.len())
    }
}

/// The last characters of a text that is too long.
fn cut_front(text: &str) -> String {
    match text.char_indices().rev().nth(MAX_CONTEXT - 1) {
        Some((at, _)) if at > 0 => format!("…{}", escaped(text.get(at..).unwrap_or_default())),
        Some(_) | None => escaped(text),
    }
}

/// The text with its control characters escaped, cut to so many characters.
pub(super) fn quoted(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => escaped(text),
        Some((at, _)) => format!("{}…", escaped(text.get(..at).unwrap_or_default())),
    }
}

/// Whether a terminal only draws this character: no control, nothing invisible, nothing that turns the reading direction.
pub(crate) fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with everything escaped that could move the cursor, colour the terminal or change the reading direction.
pub(super) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            safe.push(c);
        } else {
            let _ = write!(safe, "{}", c.escape_default());
        }
    }
    safe
}

/// A path for a person: escaped like all foreign text.
pub(super) fn shown(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// `a, b or c`.
pub(super) fn any_of(words: &[&str]) -> String {
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The word that this one was probably meant to be.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.chars().count() > 40 {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    known
        .map(|k| (edits(&word, &k.replace('-', "_")), k))
        .filter(|(distance, k)| *distance <= (k.len() + 1) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// Levenshtein's distance: how many characters to insert, remove or replace.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let replaced = diagonal + usize::from(from != to);
            diagonal = *cell;
            *cell = replaced.min(left + 1).min(diagonal + 1);
            left = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offending_text_is_underlined_where_it_stands() {
        let text = "services:\n  aidb: { prots: [8091] }\n";
        let start = text.find("prots").unwrap();
        assert_eq!(
            Excerpt::new(text, 2, start, start + 5).to_string(),
            "  2 |   aidb: { prots: [8091] }\n    |           ^^^^^"
        );
    }

    #[test]
    fn a_quoted_line_moves_no_cursor_and_its_underline_stays_in_place() {
        let text = "a: \"\u{1b}[2J\u{202e}\"\tb: 日本 x";
        let start = text.find('x').unwrap();
        assert_eq!(
            Excerpt::new(text, 1, start, start + 1).to_string(),
            format!("  1 | a: \"\\u{{1b}}[2J\\u{{202e}}\"\\tb: 日本 x\n    | {}^", " ".repeat(32))
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_offending_text() {
        let text = format!("{}X{}", "a".repeat(100_000), "b".repeat(100_000));
        let shown = Excerpt::new(&text, 1, 100_000, 100_001).to_string();
        assert!(shown.len() < 300, "{shown}");
        assert!(
            shown.contains("…aaa") && shown.contains("aXb") && shown.contains("bbb…"),
            "{shown}"
        );
    }

    #[test]
    fn the_nearest_known_word_is_suggested_and_nothing_else() {
        let known = ["grace", "ports", "patterns", "foreign_holder"];
        assert_eq!(nearest("prots", known.into_iter()), Some("ports"));
        assert_eq!(nearest("port", known.into_iter()), Some("ports"));
        assert_eq!(nearest("foreign-holder", known.into_iter()), Some("foreign_holder"));
        assert_eq!(nearest("Patern", known.into_iter()), Some("patterns"));
        assert_eq!(nearest("colour", known.into_iter()), None);
    }
}
