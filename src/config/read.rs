//! Nodes → fragment. Tells everything that is wrong and goes on; what was wrong is left out of the fragment.

use std::{collections::BTreeMap, time::Duration};

use globset::{GlobBuilder, GlobMatcher};
use regex::bytes::Regex;

use super::{
    fragment::{
        At, DefaultsFragment, Fragment, Kind, PatternFragment, Place, ServiceFragment,
        WorkerFragment,
    },
    problem::{Excerpt, Problem, any_of, nearest, quoted},
    settings::{ForeignHolder, Protect, RunsIn, compile_pattern},
    yaml::{self, Node, TextSpan, Value},
};
use crate::ident::{Endpoint, ServiceName, UnitName};

const FRAGMENT_KEYS: &[&str] = &["defaults", "services", "patterns", "protect"];
const DEFAULTS_KEYS: &[&str] = &["grace", "min_age", "respawn_watch", "foreign_holder"];
const SERVICE_KEYS: &[&str] =
    &["enabled", "runs_in", "ports", "patterns", "grace", "foreign_holder"];
const WORKER_KEYS: &[&str] = &["name", "kind", "match", "grace"];

/// Longer than any wait that a person would want, and short of every overflow.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_PATTERN_CHARS: usize = 4096;
/// The crate's compiled form is unbounded, the text is not.
const MAX_GLOB_CHARS: usize = 256;
const DURATION: &str = "a duration such as 5s, 500ms, 2m or 1h";
const NAME: &str =
    "letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most";
const RUNS_IN: &str = "container, {container: NAME} or {unit: NAME}";

/// One text of the configuration: what it says, as far as it says something valid, and all that is wrong with it.
pub(super) fn read(layer: usize, file: &str, text: &str) -> (Fragment, Vec<Problem>) {
    let mut reader = Reader { layer, file, text, problems: Vec::new() };
    let fragment = match yaml::parse(text) {
        Ok(node) => reader.fragment(&node),
        Err(error) => {
            reader.problem(error.span, error.message, error.hint.map(str::to_owned));
            Fragment::default()
        }
    };
    (fragment, reader.problems)
}

struct Reader<'t> {
    layer: usize,
    file: &'t str,
    text: &'t str,
    problems: Vec<Problem>,
}

/// The values of a map that say something, by key.
type Fields<'n> = BTreeMap<&'n str, &'n Node>;

impl Reader<'_> {
    fn fragment(&mut self, node: &Node) -> Fragment {
        let fields = self.fields(node, "the configuration", FRAGMENT_KEYS);
        Fragment {
            defaults: fields.get("defaults").map(|n| self.defaults(n)).unwrap_or_default(),
            services: fields.get("services").map(|n| self.services(n)).unwrap_or_default(),
            patterns: fields.get("patterns").map(|n| self.workers(n)).unwrap_or_default(),
            protect: fields.get("protect").map(|n| self.protect(n)).unwrap_or_default(),
        }
    }

    fn defaults(&mut self, node: &Node) -> DefaultsFragment {
        let fields = self.fields(node, "'defaults'", DEFAULTS_KEYS);
        DefaultsFragment {
            grace: fields.get("grace").and_then(|n| self.duration(n)),
            min_age: fields.get("min_age").and_then(|n| self.duration(n)),
            respawn_watch: fields.get("respawn_watch").and_then(|n| self.duration(n)),
            foreign_holder: fields.get("foreign_holder").and_then(|n| self.foreign_holder(n)),
        }
    }

    fn services(&mut self, node: &Node) -> BTreeMap<ServiceName, At<ServiceFragment>> {
        let mut services = BTreeMap::new();
        for (name, key, value) in self.entries(node, "a map of services by name") {
            let service = self.service(name, value);
            if self.is_name(key.span, name, "service name") {
                services.insert(ServiceName::from(name), self.at(key, service));
            }
        }
        services
    }

    fn service(&mut self, name: &str, node: &Node) -> ServiceFragment {
        let fields = self.fields(node, &format!("service '{}'", quoted(name, 64)), SERVICE_KEYS);
        ServiceFragment {
            enabled: fields.get("enabled").and_then(|n| self.truth(n)),
            runs_in: fields.get("runs_in").and_then(|n| self.runs_in(n)),
            ports: fields
                .get("ports")
                .and_then(|n| self.items(n, "a list of ports", Self::endpoint)),
            patterns: fields
                .get("patterns")
                .and_then(|n| self.items(n, "a list of patterns", Self::pattern)),
            grace: fields.get("grace").and_then(|n| self.duration(n)),
            foreign_holder: fields.get("foreign_holder").and_then(|n| self.foreign_holder(n)),
        }
    }

    fn workers(&mut self, node: &Node) -> Vec<At<WorkerFragment>> {
        let mut workers: Vec<At<WorkerFragment>> = Vec::new();
        for worker in self
            .items(node, "a list of patterns", Self::worker)
            .into_iter()
            .flat_map(|list| list.value)
        {
            let name = &worker.value.name;
            match workers.iter().find(|w| w.value.name.value == name.value) {
                None => workers.push(worker),
                Some(first) => {
                    let message = format!(
                        "two patterns are named '{}': see line {}",
                        name.value, first.value.name.place.line
                    );
                    let hint = "give each a name of its own: a name stands for one pattern over all layers";
                    self.problem(span_of(name.place), message, Some(hint.to_owned()));
                }
            }
        }
        workers
    }

    fn worker(&mut self, node: &Node) -> Option<At<WorkerFragment>> {
        let fields = self.fields(node, "a pattern", WORKER_KEYS);
        let name = self.required(node, &fields, "name", Self::worker_name);
        let kind = self.required(node, &fields, "kind", Self::kind);
        let regex = self.required(node, &fields, "match", Self::regex);
        let grace = fields.get("grace").and_then(|n| self.duration(n));
        Some(self.at(
            node,
            WorkerFragment { name: name?, kind: kind?.value, regex: regex?.value, grace },
        ))
    }

    fn worker_name(&mut self, node: &Node) -> Option<At<String>> {
        let name = self.text_of(node, "a name")?;
        self.is_name(node.span, name, "name of a pattern").then(|| self.at(node, name.to_owned()))
    }

    fn kind(&mut self, node: &Node) -> Option<At<Kind>> {
        match &node.value {
            Value::Text(text) if text == "worker" => Some(self.at(node, Kind::Worker)),
            other => self.expected(node, "worker", other, None),
        }
    }

    fn protect(&mut self, node: &Node) -> Vec<At<Protect>> {
        let rules = self.items(node, "a list of {unit: GLOB} and {exe: GLOB}", |reader, node| {
            let (key, value) =
                reader.one_of(node, "{unit: GLOB} or {exe: GLOB}", &["unit", "exe"])?;
            let glob = reader.glob(value, key == "exe")?;
            Some(
                reader
                    .at(node, if key == "exe" { Protect::Exe(glob) } else { Protect::Unit(glob) }),
            )
        });
        rules.map(|rules| rules.value).unwrap_or_default()
    }

    fn glob(&mut self, node: &Node, is_path: bool) -> Option<GlobMatcher> {
        let text = self.text_of(node, "a glob")?;
        if text.is_empty() || text.chars().count() > MAX_GLOB_CHARS {
            return self.refuse(
                node,
                format!("expected a glob of 1 to {MAX_GLOB_CHARS} characters"),
                None,
            );
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

    fn runs_in(&mut self, node: &Node) -> Option<At<RunsIn>> {
        let place = match &node.value {
            Value::Text(text) if text == "container" => RunsIn::Container(None),
            Value::Map(_) => {
                let (key, value) = self.one_of(node, RUNS_IN, &["container", "unit"])?;
                let name = self.text_of(value, "a name")?;
                if key == "container" {
                    RunsIn::Container(Some(self.container_name(value, name)?))
                } else {
                    RunsIn::Unit(self.unit_name(value, name)?)
                }
            }
            other => return self.expected(node, RUNS_IN, other, None),
        };
        Some(self.at(node, place))
    }

    fn container_name(&mut self, node: &Node, name: &str) -> Option<String> {
        let is_valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if is_valid {
            return Some(name.to_owned());
        }
        let message = format!(
            "bad container name '{}': expected letters, digits, '_', '.' and '-'",
            quoted(name, 64)
        );
        self.refuse(node, message, None)
    }

    fn unit_name(&mut self, node: &Node, name: &str) -> Option<UnitName> {
        let stem = name.strip_suffix(".service").or_else(|| name.strip_suffix(".scope"));
        let is_valid = stem.is_some_and(|stem| {
            !stem.is_empty()
                && !stem.ends_with('@')
                && stem.chars().all(|c| {
                    c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '.' | '\\' | '@' | '-')
                })
        });
        if is_valid {
            return Some(UnitName::from(name));
        }
        let message = format!(
            "bad unit name '{}': expected one with its suffix, such as aidb.service",
            quoted(name, 64)
        );
        let hint = (stem.is_none() && !name.contains('.'))
            .then(|| format!("write {}.service", quoted(name, 64)));
        self.refuse(node, message, hint)
    }

    fn foreign_holder(&mut self, node: &Node) -> Option<At<ForeignHolder>> {
        let holder = match &node.value {
            Value::Text(text) if text == "report" => ForeignHolder::Report,
            Value::Text(text) if text == "reap" => ForeignHolder::Reap,
            other => return self.expected(node, "report or reap", other, None),
        };
        Some(self.at(node, holder))
    }

    fn truth(&mut self, node: &Node) -> Option<At<bool>> {
        match &node.value {
            Value::Bare(text) if text == "true" => Some(self.at(node, true)),
            Value::Bare(text) if text == "false" => Some(self.at(node, false)),
            other => self.expected(node, "true or false", other, None),
        }
    }

    fn duration(&mut self, node: &Node) -> Option<At<Duration>> {
        let text = match &node.value {
            Value::Text(text) => text,
            Value::Bare(number) if number.bytes().all(|b| b.is_ascii_digit()) => {
                return self.expected(
                    node,
                    DURATION,
                    &node.value,
                    Some(format!("write {0}s for {0} seconds", quoted(number, 20))),
                );
            }
            other => return self.expected(node, DURATION, other, None),
        };
        if text.starts_with('-') {
            let message = format!(
                "a duration is never negative: expected {DURATION}, found '{}'",
                quoted(text, 40)
            );
            return self.refuse(node, message, None);
        }
        match parse_duration(text) {
            Some(duration) if duration <= MAX_DURATION => Some(self.at(node, duration)),
            Some(_) => self.expected(node, "a duration of at most 24h", &node.value, None),
            None => self.expected(node, DURATION, &node.value, None),
        }
    }

    fn endpoint(&mut self, node: &Node) -> Option<At<Endpoint>> {
        let text = match &node.value {
            Value::Text(text) | Value::Bare(text) => text.as_str(),
            // `[::1]:8091` without quotes is a list to YAML.
            Value::Null | Value::List(_) | Value::Map(_) => "",
        };
        match text.parse() {
            Ok(endpoint) => Some(self.at(node, endpoint)),
            Err(error) => {
                let hint = matches!(node.value, Value::List(_) | Value::Map(_))
                    .then(|| "an IPv6 address stands in quotes: '[::1]:8091'".to_owned());
                self.refuse(node, format!("{error}, found {}", node.value.describe()), hint)
            }
        }
    }

    fn pattern(&mut self, node: &Node) -> Option<At<PatternFragment>> {
        if !matches!(node.value, Value::Map(_)) {
            let regex = self.regex(node)?.value;
            return Some(self.at(node, PatternFragment { regex, is_portless: false }));
        }
        let fields = self.fields(node, "a pattern", &["match", "portless"]);
        let is_portless =
            fields.get("portless").and_then(|n| self.truth(n)).is_some_and(|p| p.value);
        let regex = self.required(node, &fields, "match", Self::regex)?.value;
        Some(self.at(node, PatternFragment { regex, is_portless }))
    }

    fn regex(&mut self, node: &Node) -> Option<At<Regex>> {
        let text = self.text_of(node, "a regular expression")?;
        if text.chars().count() > MAX_PATTERN_CHARS {
            return self.refuse(
                node,
                format!("expected a regular expression of at most {MAX_PATTERN_CHARS} characters"),
                None,
            );
        }
        let syntax = regex_syntax::ParserBuilder::new()
            .unicode(false)
            .utf8(false)
            .nest_limit(64)
            .build()
            .parse(text);
        if let Err(error) = syntax {
            let (what, span) = match &error {
                regex_syntax::Error::Parse(e) => (e.kind().to_string(), Some(e.span())),
                regex_syntax::Error::Translate(e) => (e.kind().to_string(), Some(e.span())),
                _ => (error.to_string(), None),
            };
            let Some(span) = span else {
                return self.refuse(node, format!("bad regular expression: {what}"), None);
            };
            let at = text.get(..span.start.offset).unwrap_or_default().chars().count() + 1;
            let message = format!("bad regular expression: {what}, at its character {at}");
            let marked = self.within(node.span, text, span.start.offset, span.end.offset);
            self.problem(marked, message, None);
            return None;
        }
        match compile_pattern(text) {
            Ok(regex) if regex.is_match(b"") => {
                let message =
                    "a pattern that matches the empty text matches every process".to_owned();
                self.refuse(
                    node,
                    message,
                    Some("name something that only this command line has".to_owned()),
                )
            }
            Ok(regex) => Some(self.at(node, regex)),
            Err(_) => {
                let hint = Some("use smaller repetitions".to_owned());
                self.refuse(node, "the regular expression takes too much memory".to_owned(), hint)
            }
        }
    }

    /// Where a part of a scalar stands, if it is written there as it is; else the whole scalar.
    fn within(&self, span: TextSpan, value: &str, start: usize, end: usize) -> TextSpan {
        let written = self.text.get(span.start..span.end).unwrap_or_default();
        match written.find(value) {
            Some(offset @ 0..=1) => TextSpan {
                start: span.start + offset + start,
                end: span.start + offset + end,
                line: span.line,
            },
            Some(_) | None => span,
        }
    }

    /// The value of a key that must be there.
    fn required<T>(
        &mut self,
        node: &Node,
        fields: &Fields,
        key: &str,
        read: impl FnOnce(&mut Self, &Node) -> Option<At<T>>,
    ) -> Option<At<T>> {
        match fields.get(key) {
            Some(value) => read(self, value),
            // What is no map was told so already.
            None if !matches!(node.value, Value::Map(_)) => None,
            None => self.refuse(node, format!("a pattern needs the key '{key}'"), None),
        }
    }

    /// Every item of a list that is valid.
    fn items<T>(
        &mut self,
        node: &Node,
        what: &str,
        mut read: impl FnMut(&mut Self, &Node) -> Option<At<T>>,
    ) -> Option<At<Vec<At<T>>>> {
        let Value::List(items) = &node.value else {
            let hint = match &node.value {
                Value::Bare(text) | Value::Text(text) => {
                    Some(format!("write [{}]", quoted(text, 40)))
                }
                Value::Null | Value::List(_) | Value::Map(_) => None,
            };
            return self.expected(node, what, &node.value, hint);
        };
        let items = items.iter().filter_map(|item| read(self, item)).collect();
        Some(self.at(node, items))
    }

    /// The value of the only key of a map.
    fn one_of<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &[&str],
    ) -> Option<(&'n str, &'n Node)> {
        let before = self.problems.len();
        if !matches!(node.value, Value::Map(_)) {
            return self.expected(node, what, &node.value, None);
        }
        let mut fields = self.fields(node, "this map", known).into_iter();
        match (fields.next(), fields.next()) {
            (Some((key, value)), None) => Some((key, value)),
            (None, _) | (_, Some(_)) if self.problems.len() > before => None,
            (None, _) | (_, Some(_)) => {
                self.refuse(node, format!("expected exactly one of {}", any_of(known)), None)
            }
        }
    }

    /// The values of a map with known keys; those that are null say nothing.
    fn fields<'n>(&mut self, node: &'n Node, what: &str, known: &[&str]) -> Fields<'n> {
        let mut fields = Fields::new();
        if node.value == Value::Null {
            return fields;
        }
        for (name, key, value) in self.entries(node, &format!("a map with {}", any_of(known))) {
            if !known.contains(&name) {
                let message = format!(
                    "unknown key '{}' in {what}: expected {}",
                    quoted(name, 40),
                    any_of(known)
                );
                let hint =
                    nearest(name, known.iter().copied()).map(|k| format!("did you mean '{k}'?"));
                self.problem(key.span, message, hint);
            } else if value.value != Value::Null {
                fields.insert(name, value);
            }
        }
        fields
    }

    /// The entries of a map, of equal keys the first.
    fn entries<'n>(&mut self, node: &'n Node, what: &str) -> Vec<(&'n str, &'n Node, &'n Node)> {
        let Value::Map(entries) = &node.value else {
            let _: Option<()> = self.expected(node, what, &node.value, None);
            return Vec::new();
        };
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        let mut all = Vec::new();
        for (key, value) in entries {
            let name = match &key.value {
                Value::Text(name) | Value::Bare(name) => name.as_str(),
                other => {
                    let _: Option<()> = self.expected(key, "a key", other, None);
                    continue;
                }
            };
            match lines.get(name) {
                Some(line) => {
                    let message = format!(
                        "duplicate key '{}': line {line} sets it already",
                        quoted(name, 40)
                    );
                    self.problem(key.span, message, Some("keep one of the two".to_owned()));
                }
                None => {
                    lines.insert(name, key.span.line);
                    all.push((name, key, value));
                }
            }
        }
        all
    }

    fn text_of<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) => Some(text),
            Value::Bare(text) => {
                let hint = format!("put it in quotes: '{}'", quoted(text, 40));
                self.expected(node, what, &node.value, Some(hint))
            }
            other => self.expected(node, what, other, None),
        }
    }

    fn is_name(&mut self, span: TextSpan, name: &str, what: &str) -> bool {
        let is_valid = name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.len() <= 64
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if name.is_empty() {
            self.problem(span, format!("empty {what}: expected {NAME}"), None);
        } else if !is_valid {
            self.problem(span, format!("bad {what} '{}': expected {NAME}", quoted(name, 64)), None);
        }
        is_valid
    }

    fn expected<T>(
        &mut self,
        node: &Node,
        what: &str,
        found: &Value,
        hint: Option<String>,
    ) -> Option<T> {
        self.refuse(node, format!("expected {what}, found {}", found.describe()), hint)
    }

    fn refuse<T>(&mut self, node: &Node, message: String, hint: Option<String>) -> Option<T> {
        self.problem(node.span, message, hint);
        None
    }

    fn problem(&mut self, span: TextSpan, message: String, hint: Option<String>) {
        let excerpt = Some(Excerpt::new(self.text, span.line, span.start, span.end));
        self.problems.push(Problem {
            layer: self.layer,
            file: self.file.to_owned(),
            excerpt,
            message,
            hint,
        });
    }

    fn at<T>(&self, node: &Node, value: T) -> At<T> {
        let TextSpan { start, end, line } = node.span;
        At { value, place: Place { layer: self.layer, line, start, end } }
    }
}

fn span_of(place: Place) -> TextSpan {
    TextSpan { start: place.start, end: place.end, line: place.line }
}

/// `500ms`, `5s`, `2m`, `1h`; none for anything else and for what overflows.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    // Longer than 24h is refused by the caller with a sentence of its own; so is what no u64 holds.
    let number =
        if number.is_empty() { return None } else { number.parse::<u64>().unwrap_or(u64::MAX) };
    Some(Duration::from_millis(number.saturating_mul(milliseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of an object in the schema.
    fn keys(schema: &serde_json::Value, object: &str) -> Vec<String> {
        let object = schema.pointer(object).unwrap_or_else(|| panic!("{object} in {schema:#}"));
        let properties = object.get("properties").and_then(|p| p.as_object()).unwrap();
        properties.keys().cloned().collect()
    }

    #[test]
    fn the_reader_and_the_schema_know_the_same_keys() {
        let schema = super::super::fragment::schema().to_value();
        for (object, known) in [
            ("", FRAGMENT_KEYS),
            ("/$defs/Defaults", DEFAULTS_KEYS),
            ("/$defs/Service", SERVICE_KEYS),
            ("/$defs/Worker", WORKER_KEYS),
        ] {
            let mut known: Vec<String> = known.iter().map(|k| (*k).to_owned()).collect();
            known.sort();
            let mut of_schema = keys(&schema, object);
            of_schema.sort();
            assert_eq!(of_schema, known, "{object}");
        }
    }

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
}
