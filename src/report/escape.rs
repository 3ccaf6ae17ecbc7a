//! Foreign text made fit to be shown: what a terminal would act on, hide or reorder is written out instead.
//!
//! | in the text | shown as |
//! |---|---|
//! | newline, carriage return, tab | `\n`, `\r`, `\t` |
//! | other control characters below U+0080 | `\x1b` |
//! | bytes that are no UTF-8 | `\xff` (always 80 or above) |
//! | other control, format, bidirectional and invisible characters | `\u{202e}` |
//! | a backslash before what would read as one of these | `\\` |
//!
//! So `server\.py` stays as it is, and still no two texts are shown alike.

use std::fmt::Write;

use unicode_width::UnicodeWidthChar;

/// Marks that one character may carry; languages stack up to three, hostile text stacks thousands.
const MARKS_PER_CHARACTER: usize = 3;

/// The text, safe to show on one line. With `columns` it is at most so wide on a terminal, and ends in `…` where it was cut.
/// To be used once, at the outer edge: what it returns must not pass through it again.
pub fn escape(text: impl AsRef<[u8]>, columns: Option<usize>) -> String {
    let limit = columns.unwrap_or(usize::MAX);
    // Almost every text, and a list has thousands.
    if let Some(plain) = plain(text.as_ref()).filter(|plain| plain.len() <= limit) {
        return plain.to_owned();
    }
    let mut shown = String::new();
    let mut width = 0;
    // End of what leaves room for the ellipsis.
    let mut cut_at = 0;
    // A mark at the beginning would sit on our own text: as if the room for marks was used up.
    let mut marks = MARKS_PER_CHARACTER;
    let mut units = units(text.as_ref()).peekable();
    while let Some(unit) = units.next() {
        let before = shown.len();
        let columns = match unit {
            Unit::Char('\\') if units.peek().is_some_and(|next| next.makes_an_escape()) => {
                shown.push_str(r"\\");
                2
            }
            Unit::Char(c)
                if !is_hidden(c) && (columns_of(c) > 0 || marks < MARKS_PER_CHARACTER) =>
            {
                shown.push(c);
                columns_of(c)
            }
            Unit::Char(_) | Unit::Byte(_) => {
                unit.write_out(&mut shown);
                shown.len() - before
            }
        };
        marks = match unit {
            Unit::Char(_) if columns == 0 => marks + 1,
            Unit::Char(c) if columns == columns_of(c) => 0,
            Unit::Char(_) | Unit::Byte(_) => MARKS_PER_CHARACTER,
        };
        if width + columns > limit {
            shown.truncate(cut_at);
            if limit > 0 {
                shown.push('…');
            }
            return shown;
        }
        width += columns;
        if width < limit {
            cut_at = shown.len();
        }
    }
    shown
}

/// The text, where each byte is a column and stands for itself.
fn plain(text: &[u8]) -> Option<&str> {
    let is_plain = text.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'\\');
    str::from_utf8(text).ok().filter(|_| is_plain)
}

/// Columns that an escaped text takes on a terminal.
pub fn width(shown: &str) -> usize {
    match plain(shown.as_bytes()) {
        Some(plain) => plain.len(),
        None => shown.chars().map(columns_of).sum(),
    }
}

/// Whether a terminal acts on the character, hides it, or lets it move its neighbours: control characters, and
/// Unicode's format characters (Cf), line separators (Zl, Zp) and default-ignorable code points.
pub(super) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1345f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

fn columns_of(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// A character, or a byte that belongs to none.
#[derive(Clone, Copy)]
enum Unit {
    Char(char),
    Byte(u8),
}

fn units(text: &[u8]) -> impl Iterator<Item = Unit> {
    text.utf8_chunks().flat_map(|chunk| {
        let bytes = chunk.invalid().iter().copied().map(Unit::Byte);
        chunk.valid().chars().map(Unit::Char).chain(bytes)
    })
}

impl Unit {
    /// Whether a backslash shown before this one would read as an escape.
    fn makes_an_escape(self) -> bool {
        match self {
            Self::Byte(_) => true,
            // A zero-width character may itself be written out.
            Self::Char(c) => {
                matches!(c, '\\' | 'n' | 'r' | 't' | 'x' | 'u')
                    || is_hidden(c)
                    || columns_of(c) == 0
            }
        }
    }

    fn write_out(self, shown: &mut String) {
        // Writing into a String cannot fail.
        let _ = match self {
            Self::Char('\n') => shown.write_str(r"\n"),
            Self::Char('\r') => shown.write_str(r"\r"),
            Self::Char('\t') => shown.write_str(r"\t"),
            Self::Char(c) if c.is_ascii() => write!(shown, r"\x{:02x}", u32::from(c)),
            Self::Char(c) => write!(shown, r"\u{{{:x}}}", u32::from(c)),
            Self::Byte(byte) => write!(shown, r"\x{byte:02x}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads back what was shown, by the table above.
    fn unescape(shown: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = shown;
        while let Some(c) = rest.chars().next() {
            let hex = |text: &str| u32::from_str_radix(text, 16).unwrap();
            let (value, length) = match (c, rest.as_bytes().get(1)) {
                ('\\', Some(b'\\')) => (vec![b'\\'], 2),
                ('\\', Some(b'n')) => (vec![b'\n'], 2),
                ('\\', Some(b'r')) => (vec![b'\r'], 2),
                ('\\', Some(b't')) => (vec![b'\t'], 2),
                ('\\', Some(b'x')) => (vec![u8::try_from(hex(&rest[2..4])).unwrap()], 4),
                ('\\', Some(b'u')) => {
                    let end = rest.find('}').unwrap();
                    let c = char::from_u32(hex(&rest[3..end])).unwrap();
                    (c.to_string().into_bytes(), end + 1)
                }
                _ => (c.to_string().into_bytes(), c.len_utf8()),
            };
            bytes.extend(value);
            rest = &rest[length..];
        }
        bytes
    }

    /// Text as hostile as it comes: anything, and often what this file is about.
    /// What a terminal acts on or reorders by, written down a second time: C0, DEL and C1 (ECMA-48), and the controls of
    /// bidirectional text (Unicode, annex 9).
    fn is_acted_on(c: char) -> bool {
        matches!(c,
            '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
            | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    }

    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let unit = prop_oneof![
            any::<u8>().prop_map(|b| vec![b]),
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            prop::sample::select(vec![
                "\u{1b}[31m",
                "\u{202e}",
                "\u{301}",
                "\\",
                "n",
                "x",
                "u{",
                "漢",
                "\u{200b}",
                "\u{9b}",
                "\n",
                "a",
            ])
            .prop_map(|s| s.as_bytes().to_vec()),
        ];
        prop::collection::vec(unit, 0..40).prop_map(|units| units.concat())
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_acts_on_or_hides_is_left(text in hostile()) {
            prop_assert!(!escape(&text, None).chars().any(|c| is_hidden(c) || is_acted_on(c)));
        }

        #[test]
        fn what_is_shown_reads_back_as_the_bytes_that_were_there(text in hostile()) {
            prop_assert_eq!(unescape(&escape(&text, None)), text);
        }

        #[test]
        fn a_cut_text_is_never_wider_than_asked_and_an_uncut_one_is_whole(text in hostile(), columns in 0usize..50) {
            let shown = escape(&text, Some(columns));
            let whole = escape(&text, None);
            prop_assert!(width(&shown) <= columns);
            prop_assert_eq!(shown == whole, width(&whole) <= columns);
        }
    }

    #[test]
    fn each_form_of_the_table_is_shown_as_it_says() {
        for (text, shown) in [
            (&b"python3 -u /app/server.py"[..], "python3 -u /app/server.py"),
            (b"a\nb\r\tc", r"a\nb\r\tc"),
            (b"\x1b[2J\x00\x7f", r"\x1b[2J\x00\x7f"),
            (b"\xff\xfe", r"\xff\xfe"),
            (
                "\u{9b}31m \u{202e}gpj \u{2066}x\u{2069} \u{200b} \u{2028}".as_bytes(),
                r"\u{9b}31m \u{202e}gpj \u{2066}x\u{2069} \u{200b} \u{2028}",
            ),
            (br"server\.py C:\new a\", r"server\.py C:\\new a\"),
            (b"\\\x1b \\\\", r"\\\x1b \\\"),
            (b"", ""),
        ] {
            assert_eq!(escape(text, None), shown, "{text:?}");
        }
    }

    #[test]
    fn an_escape_is_cut_whole_and_wide_characters_count_twice() {
        assert_eq!(escape("ab\u{1b}cd", Some(5)), "ab…");
        assert_eq!(escape("漢字漢字", Some(5)), "漢字…");
        assert_eq!(escape("漢字漢字", Some(8)), "漢字漢字");
        assert_eq!(escape("abc", Some(1)), "…");
        assert_eq!(escape("abc", Some(0)), "");
    }

    #[test]
    fn accents_stay_and_towers_of_accents_do_not() {
        assert_eq!(escape("re\u{301}sume\u{301}", None), "re\u{301}sume\u{301}");
        assert_eq!(escape("\u{301}a", None), r"\u{301}a");
        let tower = format!("a{}", "\u{301}".repeat(1_000_000));
        assert!(escape(tower, Some(40)).len() < 100);
    }
}
