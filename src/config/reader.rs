//! The tools that read nodes: maps with known keys, lists, and the list of all that is wrong.

use std::collections::BTreeMap;

use super::{
    fragment::{At, Place},
    problem::{Excerpt, Problem, any_of, nearest, quoted},
    yaml::{Node, TextSpan, Value},
};

/// Reads one layer. What is wrong is told and left out, and the reading goes on.
pub(super) struct Reader<'t> {
    pub(super) layer: usize,
    pub(super) file: &'t str,
    pub(super) text: &'t str,
    pub(super) problems: Vec<Problem>,
}

/// The values of a map that say something, by key.
pub(super) type Fields<'n> = BTreeMap<&'n str, &'n Node>;

/// One entry of a map.
pub(super) struct Entry<'n> {
    pub(super) name: &'n str,
    pub(super) key: &'n Node,
    pub(super) value: &'n Node,
}

impl Reader<'_> {
    /// The values of a map with known keys; those that are null say nothing.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, what: &str, known: &[&str]) -> Fields<'n> {
        let mut fields = Fields::new();
        if node.value == Value::Null {
            return fields;
        }
        let all = any_of(known);
        for Entry { name, key, value } in self.entries(node, &format!("a map with {all}")) {
            if !known.contains(&name) {
                let name = quoted(name, 40);
                let hint = nearest(&name, known.iter().copied());
                let hint = hint.map(|key| format!("did you mean '{key}'?"));
                let message = format!("unknown key '{name}' in {what}: expected {all}");
                self.problem(key.span, message, hint);
            } else if value.value != Value::Null {
                fields.insert(name, value);
            }
        }
        fields
    }

    /// The entries of a map, of equal keys the first.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, what: &str) -> Vec<Entry<'n>> {
        let Value::Map(entries) = &node.value else {
            return self.expected(node, what, None).unwrap_or_default();
        };
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        let mut all = Vec::new();
        for (key, value) in entries {
            let Some(name) = key.value.text().or(key.value.bare()) else {
                let _: Option<()> = self.expected(key, "a key", None);
                continue;
            };
            if let Some(line) = lines.get(name) {
                let message =
                    format!("duplicate key '{}': line {line} sets it already", quoted(name, 40));
                self.problem(key.span, message, Some("keep one of the two".to_owned()));
            } else {
                lines.insert(name, key.span.line);
                all.push(Entry { name, key, value });
            }
        }
        all
    }

    /// The value of a key that must be there.
    pub(super) fn required<T>(
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

    /// Key and value of a map with exactly one of these keys.
    pub(super) fn one_of<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &[&str],
    ) -> Option<(&'n str, &'n Node)> {
        if !matches!(node.value, Value::Map(_)) {
            return self.expected(node, what, None);
        }
        let before = self.problems.len();
        let mut fields = self.fields(node, "this map", known).into_iter();
        if let (Some(only), None) = (fields.next(), fields.next()) {
            return Some(only);
        }
        if self.problems.len() > before {
            return None;
        }
        self.refuse(node, format!("expected exactly one of {}", any_of(known)), None)
    }

    /// Every item of a list that is valid.
    pub(super) fn items<T>(
        &mut self,
        node: &Node,
        what: &str,
        mut read: impl FnMut(&mut Self, &Node) -> Option<At<T>>,
    ) -> Option<At<Vec<At<T>>>> {
        let Value::List(items) = &node.value else {
            let single = node.value.text().or(node.value.bare());
            return self.expected(node, what, single.map(|s| format!("write [{}]", quoted(s, 40))));
        };
        let items = items.iter().filter_map(|item| read(self, item)).collect();
        Some(self.at(node, items))
    }

    /// A text; a number must be quoted to be one.
    pub(super) fn text_of<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        let text = node.value.text();
        if text.is_none() {
            let bare = node.value.bare();
            let hint = bare.map(|text| format!("put it in quotes: '{}'", quoted(text, 40)));
            return self.expected(node, what, hint);
        }
        text
    }

    pub(super) fn expected<T>(
        &mut self,
        node: &Node,
        what: &str,
        hint: Option<String>,
    ) -> Option<T> {
        self.refuse(node, format!("expected {what}, found {}", node.value.describe()), hint)
    }

    pub(super) fn refuse<T>(
        &mut self,
        node: &Node,
        message: String,
        hint: Option<String>,
    ) -> Option<T> {
        self.problem(node.span, message, hint);
        None
    }

    pub(super) fn problem(&mut self, span: TextSpan, message: String, hint: Option<String>) {
        let excerpt = Some(Excerpt::new(self.text, span.line, span.start, span.end));
        let file = self.file.to_owned();
        self.problems.push(Problem { layer: self.layer, file, excerpt, message, hint });
    }

    pub(super) fn at<T>(&self, node: &Node, value: T) -> At<T> {
        let TextSpan { start, end, line } = node.span;
        At { value, place: Place { layer: self.layer, line, start, end } }
    }
}
