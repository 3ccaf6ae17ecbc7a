//! YAML text → nodes with their places. The only module that knows the YAML crate.
//!
//! Read from the parser's events and not through serde: a serde reader stops at the first wrong value, and all of them
//! are to be told at once. Of YAML only what a configuration needs: one document, no tags, no aliases.

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span};

/// Deeper than any configuration: bounds the recursion below.
const MAX_DEPTH: usize = 24;
/// More values than any configuration has: bounds the work that a hostile file can make.
const MAX_NODES: usize = 16_384;

/// Where a value stands in its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextSpan {
    /// Bytes from the beginning of the text, first.
    pub(super) start: usize,
    /// Bytes from the beginning of the text, past the last.
    pub(super) end: usize,
    /// Line, from 1.
    pub(super) line: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) span: TextSpan,
}

/// What YAML can say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// An unquoted word that YAML reads as true, false or a number; as it was written.
    Bare(String),
    /// Any other text.
    Text(String),
    /// `[a, b]` or lines with `-`.
    List(Vec<Node>),
    /// `{a: b}` or lines `a: b`; keys as they come, equal ones too.
    Map(Vec<(Node, Node)>),
}

impl Value {
    /// The text, of what is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Bare(_) | Self::List(_) | Self::Map(_) => None,
        }
    }

    /// The number or truth as it was written, of what is one.
    pub(super) fn bare(&self) -> Option<&str> {
        match self {
            Self::Bare(text) => Some(text),
            Self::Null | Self::Text(_) | Self::List(_) | Self::Map(_) => None,
        }
    }

    /// For the sentence "expected …, found …".
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Bare(text) => match text.as_str() {
                "true" | "false" => text.clone(),
                _ => format!("the number {}", super::problem::quoted(text, 40)),
            },
            Self::Text(text) => format!("the text '{}'", super::problem::quoted(text, 40)),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }
}

/// Why a text is no YAML that we read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct YamlError {
    pub(super) message: String,
    pub(super) hint: Option<&'static str>,
    pub(super) span: TextSpan,
}

/// Reads the one document of a text; a text without any is `Null`.
pub(super) fn parse(text: &str) -> Result<Node, YamlError> {
    parse_up_to(text, MAX_NODES)
}

/// The same, of a text that may have this many values.
pub(super) fn parse_up_to(text: &str, most: usize) -> Result<Node, YamlError> {
    let options = granit_parser::options! {
        disallow_directives: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut reader =
        Reader { text, events: Parser::new_from_str_with_options(text, options), nodes: 0, most };
    let empty = Node { value: Value::Null, span: TextSpan { start: 0, end: 0, line: 1 } };
    let mut document = None;
    while let Some((event, span)) = reader.next()? {
        // Of the events between documents only this one says something.
        let Event::DocumentStart(..) = event else { continue };
        if document.is_some() {
            let hint = Some("put everything into one document");
            return Err(reader.error("a second document", hint, span));
        }
        document = match reader.next()? {
            Some((event, span)) => Some(reader.node(event, span, 0)?),
            None => None,
        };
    }
    Ok(document.unwrap_or(empty))
}

struct Reader<'t> {
    text: &'t str,
    events: Parser<'t, granit_parser::StrInput<'t>>,
    nodes: usize,
    most: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, YamlError> {
        match self.events.next_event() {
            None => Ok(None),
            Some(Ok(pair)) => Ok(Some(pair)),
            Some(Err(e)) => {
                let span = Span::empty(*e.marker());
                Err(self.error(&format!("not YAML: {}", e.info()), None, span))
            }
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, YamlError> {
        self.nodes += 1;
        if self.nodes > self.most {
            return Err(self.error(&format!("more than {} values", self.most), None, span));
        }
        if depth > MAX_DEPTH {
            return Err(self.error(&format!("nested deeper than {MAX_DEPTH}"), None, span));
        }
        if span.tag_start.is_some() {
            let hint = Some("remove the tag: the keys say what type each value has");
            return Err(self.error("tags (!…) are not understood here", hint, span));
        }
        let value = match event {
            Event::Scalar(text, style, _, _) => scalar(text.into_owned(), style),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        None | Some((Event::SequenceEnd, _)) => break,
                        Some((event, span)) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                Value::List(items)
            }
            Event::MappingStart(..) => {
                let mut entries = Vec::new();
                loop {
                    let key = match self.next()? {
                        None | Some((Event::MappingEnd, _)) => break,
                        Some((event, span)) => self.node(event, span, depth + 1)?,
                    };
                    let Some((event, span)) = self.next()? else { break };
                    entries.push((key, self.node(event, span, depth + 1)?));
                }
                Value::Map(entries)
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                let hint = Some("write the value out");
                return Err(self.error("aliases (*…) are not understood here", hint, span));
            }
            Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::Anchor(..)
            | Event::SequenceEnd
            | Event::MappingEnd
            | _ => return Err(self.error("not YAML: a value is missing", None, span)),
        };
        Ok(Node { value, span: self.span(span) })
    }

    fn error(&self, message: &str, hint: Option<&'static str>, span: Span) -> YamlError {
        YamlError { message: message.to_owned(), hint, span: self.span(span) }
    }

    fn span(&self, span: Span) -> TextSpan {
        let start = self.offset(span.start);
        let end = self.offset(span.end).max(start);
        TextSpan { start, end, line: span.start.line() }
    }

    fn offset(&self, marker: Marker) -> usize {
        marker.byte_offset().unwrap_or(self.text.len()).min(self.text.len())
    }
}

/// YAML 1.2's core schema (§10.3.2), as far as it decides between a text and something else.
fn scalar(text: String, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::Text(text);
    }
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bare("true".to_owned()),
        "false" | "False" | "FALSE" => Value::Bare("false".to_owned()),
        _ if is_number(&text) => Value::Bare(text),
        _ => Value::Text(text),
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    match digits.get(..2) {
        Some("0x") => digits.len() > 2 && digits.bytes().skip(2).all(|b| b.is_ascii_hexdigit()),
        Some("0o") => digits.len() > 2 && digits.bytes().skip(2).all(|b| matches!(b, b'0'..=b'7')),
        Some(_) | None => {
            matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
                || (digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
                    && digits.parse::<f64>().is_ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices<'t>(text: &'t str, node: &Node, into: &mut Vec<(usize, &'t str)>) {
        into.push((node.span.line, &text[node.span.start..node.span.end]));
        match &node.value {
            Value::List(items) => items.iter().for_each(|n| slices(text, n, into)),
            Value::Map(entries) => entries.iter().for_each(|(k, v)| {
                slices(text, k, into);
                slices(text, v, into);
            }),
            Value::Null | Value::Bare(_) | Value::Text(_) => {}
        }
    }

    #[test]
    fn every_scalar_knows_its_place_also_behind_wide_characters_and_windows_line_ends() {
        let text = "\u{feff}ä: 'é x' # 日本\r\n日: [8091, \"\\t\"]\r\nz: |\r\n  block\r\nnone:\r\n";
        let mut all = Vec::new();
        slices(text, &parse(text).unwrap(), &mut all);
        for wanted in
            [(1, "ä"), (1, "'é x'"), (2, "日"), (2, "8091"), (2, "\"\\t\""), (3, "z"), (5, "none")]
        {
            assert!(all.contains(&wanted), "{wanted:?} in {all:?}");
        }
    }

    #[test]
    fn text_numbers_truth_and_nothing_are_told_apart_as_yaml_1_2_does() {
        for (text, expected) in [
            ("~", Value::Null),
            ("''", Value::Text(String::new())),
            ("8091", Value::Bare("8091".into())),
            ("-1.5e3", Value::Bare("-1.5e3".into())),
            ("0x1F", Value::Bare("0x1F".into())),
            ("'8091'", Value::Text("8091".into())),
            ("5s", Value::Text("5s".into())),
            ("1_000", Value::Text("1_000".into())),
            ("infinity", Value::Text("infinity".into())),
            ("no", Value::Text("no".into())),
            ("true", Value::Bare("true".into())),
        ] {
            assert_eq!(parse(text).unwrap().value, expected, "{text}");
        }
    }

    #[test]
    fn what_a_configuration_needs_no_more_than_is_refused() {
        for (text, message) in [
            ("a: 1\n---\nb: 2\n", "a second document"),
            ("a: &x [1]\nb: *x\n", "aliases (*…) are not understood here"),
            ("a: !!str 1\n", "tags (!…) are not understood here"),
        ] {
            assert_eq!(parse(text).unwrap_err().message, message, "{text}");
        }
        assert!(parse("%YAML 1.2\n---\na: 1\n").is_err());
    }

    #[test]
    fn hostile_text_is_refused_in_little_time() {
        for text in [
            "[".repeat(100_000),
            "{a: ".repeat(100_000),
            (0..1000).map(|n| " ".repeat(n) + "a:\n").collect(),
            "- ".repeat(100_000),
            "? ".repeat(100_000),
            "[1,".to_owned() + &"1,".repeat(500_000) + "]",
            "a: \u{0}b\n".to_owned(),
            "a: [1\n".to_owned(),
            "&a ".repeat(1000),
        ] {
            assert!(parse(&text).is_err(), "{text:.40}");
        }
    }

    #[test]
    fn a_text_without_a_document_says_nothing() {
        for text in ["", "# only a comment\n", "---\n", "\n\n"] {
            assert_eq!(parse(text).unwrap().value, Value::Null, "{text:?}");
        }
    }
}
