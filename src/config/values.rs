//! Single values: ports, durations, patterns, globs, names. Each says what it expected.

use std::{path::PathBuf, time::Duration};

use globset::{GlobBuilder, GlobMatcher};

use super::{
    fragment::{At, Kind},
    problem::quoted,
    reader::Reader,
    settings::{
        EngineUse, ForeignHolder, GpuNeed, PATTERN_NEST_LIMIT, Pattern, RunsIn, compile_pattern,
    },
    source::DEFAULT_LAYER,
    yaml::{Node, TextSpan, Value},
};
use crate::ident::{Endpoint, GpuName, UnitName};

/// Longer than any wait that a person would want, and short of every overflow.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);
/// PATH_MAX of path_resolution(7).
const MAX_PATH_BYTES: usize = 4096;
const MAX_PATTERN_CHARS: usize = 4096;
/// Nothing bounds the compiled form of a glob but the length of its text.
const MAX_GLOB_CHARS: usize = 256;

const DURATION: &str = "a duration such as 5s, 500ms, 2m or 1h";
const NAME: &str =
    "letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most";
const RUNS_IN: &str = "container, {container: NAME} or {unit: NAME}";

impl Reader<'_> {
    pub(super) fn truth(&mut self, node: &Node) -> Option<At<bool>> {
        match node.value.bare() {
            Some("true") => Some(self.at(node, true)),
            Some("false") => Some(self.at(node, false)),
            Some(_) | None => self.expected(node, "true or false", None),
        }
    }

    pub(super) fn kind(&mut self, node: &Node) -> Option<At<Kind>> {
        match node.value.text() {
            Some("worker") => Some(self.at(node, Kind::Worker)),
            Some(_) | None => self.expected(node, "worker", None),
        }
    }

    pub(super) fn foreign_holder(&mut self, node: &Node) -> Option<At<ForeignHolder>> {
        match node.value.text() {
            Some("report") => Some(self.at(node, ForeignHolder::Report)),
            Some("reap") => Some(self.at(node, ForeignHolder::Reap)),
            Some(_) | None => self.expected(node, "report or reap", None),
        }
    }

    /// `auto`, `off`, or the path of such a thing where one may be named.
    pub(super) fn engine_use(&mut self, node: &Node, at: Option<&str>) -> Option<At<EngineUse>> {
        let what = match at {
            Some(thing) => format!("auto, off or the path of {thing}"),
            None => "auto or off".to_owned(),
        };
        match node.value.text() {
            Some("auto") => Some(self.at(node, EngineUse::Auto)),
            Some("off") => Some(self.at(node, EngineUse::Off)),
            Some(path) if at.is_some() && path.len() > 1 && path.starts_with('/') => {
                Some(self.at(node, EngineUse::At(path.into())))
            }
            Some(_) | None => self.expected(node, &what, None),
        }
    }

    /// One GPU, or a list of them.
    pub(super) fn gpus(&mut self, node: &Node) -> Option<At<Vec<At<GpuName>>>> {
        if matches!(node.value, Value::List(_)) {
            return self.items(node, "a list of GPUs", Self::gpu);
        }
        let one = self.gpu(node)?;
        Some(self.at(node, vec![one]))
    }

    fn gpu(&mut self, node: &Node) -> Option<At<GpuName>> {
        let text = node.value.text().or(node.value.bare()).unwrap_or_default();
        match text.parse() {
            Ok(name) => Some(self.at(node, name)),
            Err(error) => {
                self.refuse(node, format!("{error}; found {}", node.value.describe()), None)
            }
        }
    }

    /// `90%`, `40GiB`.
    pub(super) fn gpu_need(&mut self, node: &Node) -> Option<At<GpuNeed>> {
        match node.value.text().and_then(|text| text.parse().ok()) {
            Some(need) => Some(self.at(node, need)),
            None => self.expected(
                node,
                "a share such as 90%, or an amount such as 40GiB or 500MiB",
                None,
            ),
        }
    }

    pub(super) fn compose_file(&mut self, node: &Node) -> Option<At<PathBuf>> {
        self.absolute_path(node, "the path of a compose file")
    }

    pub(super) fn absolute_path(&mut self, node: &Node, what: &str) -> Option<At<PathBuf>> {
        let text = self.text_of(node, what)?;
        if text.len() < 2 || text.len() > MAX_PATH_BYTES || !text.starts_with('/') {
            return self.expected(node, "an absolute path", None);
        }
        Some(self.at(node, PathBuf::from(text)))
    }

    /// Compose's own rule for the names of profiles.
    pub(super) fn profile(&mut self, node: &Node) -> Option<At<String>> {
        let name = self.text_of(node, "the name of a profile")?;
        if is_word(name) {
            return Some(self.at(node, name.to_owned()));
        }
        let name = quoted(name, 64);
        let message = format!("bad profile '{name}': expected letters, digits, '_', '.' and '-'");
        self.refuse(node, message, None)
    }

    pub(super) fn prefix(&mut self, node: &Node) -> Option<At<String>> {
        let prefix = self.text_of(node, "a prefix")?;
        self.is_name(node, prefix, "prefix").then(|| self.at(node, prefix.to_owned()))
    }

    /// A duration in which something can be done.
    pub(super) fn positive_duration(&mut self, node: &Node) -> Option<At<Duration>> {
        let at = self.duration(node)?;
        if at.value.is_zero() {
            return self.expected(node, "a duration longer than nothing", None);
        }
        Some(at)
    }

    pub(super) fn duration(&mut self, node: &Node) -> Option<At<Duration>> {
        let Some(text) = node.value.text() else {
            let number = node.value.bare().filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
            let hint = number.map(|n| format!("write {0}s for {0} seconds", quoted(n, 20)));
            return self.expected(node, DURATION, hint);
        };
        if text.starts_with('-') {
            let found = node.value.describe();
            let message =
                format!("a duration is never negative: expected {DURATION}, found {found}");
            return self.refuse(node, message, None);
        }
        match parse_duration(text) {
            Some(duration) if duration <= MAX_DURATION => Some(self.at(node, duration)),
            Some(_) => self.expected(node, "a duration of at most 24h", None),
            None => self.expected(node, DURATION, None),
        }
    }

    pub(super) fn endpoint(&mut self, node: &Node) -> Option<At<Endpoint>> {
        let text = node.value.text().or(node.value.bare()).unwrap_or_default();
        match text.parse() {
            Ok(endpoint) => Some(self.at(node, endpoint)),
            Err(error) => {
                // `[::1]:8091` without quotes is a list or a map to YAML.
                let hint = matches!(node.value, Value::List(_) | Value::Map(_))
                    .then(|| "an IPv6 address stands in quotes: '[::1]:8091'".to_owned());
                self.refuse(node, format!("{error}, found {}", node.value.describe()), hint)
            }
        }
    }

    pub(super) fn regex(&mut self, node: &Node) -> Option<At<Pattern>> {
        let text = self.text_of(node, "a regular expression")?;
        if self.layer == DEFAULT_LAYER {
            return Some(self.at(node, Pattern::proven(text)));
        }
        if text.chars().count() > MAX_PATTERN_CHARS {
            let message =
                format!("expected a regular expression of at most {MAX_PATTERN_CHARS} characters");
            return self.refuse(node, message, None);
        }
        if let Some((what, start, end)) = syntax_error(text) {
            let at = text.get(..start).unwrap_or_default().chars().count() + 1;
            let message = format!("bad regular expression: {what}, at its character {at}");
            self.problem(self.within(node.span, text, start, end), message, None);
            return None;
        }
        let Ok(regex) = compile_pattern(text) else {
            let hint = Some("use smaller repetitions".to_owned());
            return self.refuse(
                node,
                "the regular expression takes too much memory".to_owned(),
                hint,
            );
        };
        if regex.is_match(b"") {
            let message = "a pattern that matches the empty text matches every process".to_owned();
            let hint = "name something that only this command line has".to_owned();
            return self.refuse(node, message, Some(hint));
        }
        Some(self.at(node, regex))
    }

    /// Where a part of a scalar stands, if it is written there as it is; else the whole scalar.
    fn within(&self, span: TextSpan, value: &str, start: usize, end: usize) -> TextSpan {
        let written = self.text.get(span.start..span.end).unwrap_or_default();
        match written.find(value) {
            // At the beginning or behind the quote.
            Some(offset @ 0..=1) => {
                let begin = span.start + offset;
                TextSpan { start: begin + start, end: begin + end, line: span.line }
            }
            Some(_) | None => span,
        }
    }

    pub(super) fn glob(&mut self, node: &Node, is_path: bool) -> Option<GlobMatcher> {
        let text = self.text_of(node, "a glob")?;
        if text.is_empty() || text.chars().count() > MAX_GLOB_CHARS {
            let message = format!("expected a glob of 1 to {MAX_GLOB_CHARS} characters");
            return self.refuse(node, message, None);
        }
        if is_path && !text.starts_with(['/', '*']) {
            let hint = format!("write **/{}", quoted(text, 64));
            return self.refuse(
                node,
                "expected a glob for an absolute path".to_owned(),
                Some(hint),
            );
        }
        match GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build() {
            Ok(glob) => Some(glob.compile_matcher()),
            Err(error) => self.refuse(node, format!("bad glob: {}", error.kind()), None),
        }
    }

    pub(super) fn runs_in(&mut self, node: &Node) -> Option<At<RunsIn>> {
        if node.value.text() == Some("container") {
            return Some(self.at(node, RunsIn::Container(None)));
        }
        let (key, value) = self.one_of(node, RUNS_IN, &["container", "unit"])?;
        let name = self.text_of(value, "a name")?;
        let place = if key == "container" {
            RunsIn::Container(Some(self.container_name(value, name)?))
        } else {
            RunsIn::Unit(self.unit_name(value, name)?)
        };
        Some(self.at(node, place))
    }

    /// As Docker and Podman take it: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
    fn container_name(&mut self, node: &Node, name: &str) -> Option<String> {
        if is_word(name) {
            return Some(name.to_owned());
        }
        let name = quoted(name, 64);
        let message =
            format!("bad container name '{name}': expected letters, digits, '_', '.' and '-'");
        self.refuse(node, message, None)
    }

    /// As systemd takes it (systemd.unit(5)); only services and scopes hold processes.
    fn unit_name(&mut self, node: &Node, name: &str) -> Option<UnitName> {
        let stem = name.strip_suffix(".service").or_else(|| name.strip_suffix(".scope"));
        let may_stand = |c: char| c.is_ascii_alphanumeric() || ":_.\\@-".contains(c);
        if stem.is_some_and(|s| !s.is_empty() && !s.ends_with('@') && s.chars().all(may_stand)) {
            return Some(UnitName::from(name));
        }
        let name = quoted(name, 64);
        let hint = (!name.contains('.')).then(|| format!("write {name}.service"));
        let message =
            format!("bad unit name '{name}': expected one with its suffix, such as aidb.service");
        self.refuse(node, message, hint)
    }

    /// Whether this can name a service or a pattern: on a command line, in a report, in a file name.
    pub(super) fn is_name(&mut self, node: &Node, name: &str, what: &str) -> bool {
        let is_valid = is_word(name) && name.len() <= 64;
        if name.is_empty() {
            self.problem(node.span, format!("empty {what}: expected {NAME}"), None);
        } else if !is_valid {
            let message = format!("bad {what} '{}': expected {NAME}", quoted(name, 64));
            self.problem(node.span, message, None);
        }
        is_valid
    }
}

pub(super) fn is_word(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// What is wrong with a regular expression, and the bytes where.
fn syntax_error(text: &str) -> Option<(String, usize, usize)> {
    let mut builder = regex_syntax::ParserBuilder::new();
    builder.unicode(false).utf8(false).nest_limit(PATTERN_NEST_LIMIT);
    let error = builder.build().parse(text).err()?;
    let (what, span) = match &error {
        regex_syntax::Error::Parse(e) => (e.kind().to_string(), Some(e.span())),
        regex_syntax::Error::Translate(e) => (e.kind().to_string(), Some(e.span())),
        _ => (error.to_string(), None),
    };
    Some((what, span.map_or(0, |s| s.start.offset), span.map_or(text.len(), |s| s.end.offset)))
}

/// `500ms`, `5s`, `2m`, `1h`; none for anything else. What is too long for a number is as long as can be.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).filter(|(number, _)| !number.is_empty())?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let number = number.parse().unwrap_or(u64::MAX);
    Some(Duration::from_millis(number.saturating_mul(milliseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_numbers_with_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("0s"), Some(Duration::ZERO));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_secs(3600)));
        for text in ["", "s", "5", "5 s", "5S", "1.5s", "+5s", "5sec", "٥s", "5s "] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        assert!(parse_duration("99999999999999999999999h").unwrap() > MAX_DURATION);
    }

    #[test]
    fn a_syntax_error_is_told_exactly_for_what_the_compiler_refuses() {
        for text in ["a(b", "*", "[ä]", r"\p{Greek}", "(?P<x", "a{2,1}", r"\xZZ", "(((", "[z-a]"] {
            assert!(compile_pattern(text).is_err(), "{text}");
            let (_, start, end) = syntax_error(text).unwrap_or_else(|| panic!("{text}"));
            assert!(text.get(start..end).is_some(), "{text}: {start}..{end}");
        }
        for text in ["a", r"\xff", "(?i)ä", ".*", "(?-u:.)", r"\bserver\.py\b"] {
            assert!(compile_pattern(text).is_ok() && syntax_error(text).is_none(), "{text}");
        }
        let deep = "(".repeat(100) + "a" + &")".repeat(100);
        assert!(compile_pattern(&deep).is_err() && syntax_error(&deep).is_some());
    }
}
