//! portreeve.yaml(5), from the schema of the configuration: each key with its values and its description, which are the
//! doc comments of the types that read them.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use serde_json::Value;

use super::{NO_DATE, SOURCE};

const DESCRIPTION: &str = "portreeve needs no settings: those inside the program guard the ports of the AI stack. Files lay \
over them what differs on a host, from the lowest to the highest: config.yaml, those in conf.d by the order of their names, the \
file of --config. A higher layer changes what it names and leaves the rest: 'defaults', 'engines', 'gate' and 'gpus' key by \
key, 'services' and 'models' by name and then key by key, 'patterns' by name; the rules of 'protect' and the files of 'compose' \
add up. A run as root reads only what root alone may write.";

const EXAMPLE: &str = include_str!("../../config/examples/minimal.yaml");

/// The whole page.
pub(super) fn page() -> String {
    let mut schema = Vec::new();
    portreeve::cli::config::schema(&mut schema).unwrap();
    let schema = Schema(serde_json::from_slice(&schema).unwrap());
    let mut roff = Roff::new();
    roff.control("TH", ["portreeve.yaml", "5", NO_DATE, SOURCE, "portreeve"]);
    roff.control("SH", ["NAME"]).text([roman("portreeve.yaml - settings of portreeve")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("/etc/portreeve/config.yaml")]).control("br", []);
    roff.text([bold("/etc/portreeve/conf.d/*.yaml")]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(DESCRIPTION)]);
    roff.control("PP", []).text([bold("portreeve config check"), roman(" says what is wrong, ")]);
    roff.text([
        bold("portreeve config show"),
        roman(" what is in effect and where it comes from."),
    ]);
    roff.control("SH", ["KEYS"]);
    schema.sections(&mut roff);
    roff.control("SH", ["VALUES"]);
    schema.values(&mut roff);
    roff.control("SH", ["EXAMPLE"]).control("nf", []);
    EXAMPLE.lines().for_each(|line| _ = roff.text([roman(line)]));
    roff.control("fi", []).control("SH", ["SEE ALSO"]);
    roff.text([bold("portreeve"), roman("(1), /usr/share/doc/portreeve/configuration.md")]);
    roff.to_roff()
}

/// The schema, whose definitions others refer to by name.
struct Schema(Value);

impl Schema {
    /// A section for each key of the highest level.
    fn sections(&self, roff: &mut Roff) {
        for (key, section) in entries(&self.0["properties"]) {
            let below = if matches!(kind(section), Kind::Map(_)) { ".NAME" } else { "" };
            roff.control("SS", []).text([bold(key), roman(below)]);
            roff.text(prose(&self.remarks(section).join(" ")));
            for object in self.objects(section) {
                self.keys(roff, object);
            }
        }
    }

    /// What is said of a section, and of what may stand in it.
    fn remarks<'s>(&'s self, schema: &'s Value) -> Vec<&'s str> {
        let mut remarks = vec![description(schema)];
        match kind(schema) {
            Kind::Reference(name) => remarks.extend(self.remarks(self.definition(name))),
            Kind::Map(below) | Kind::List(below) => remarks.extend(self.remarks(below)),
            Kind::OneOf(_) | Kind::Object | Kind::Scalar => {}
        }
        remarks.dedup();
        remarks
    }

    /// Every object that may stand here: in a list, by a name, or one of several.
    fn objects<'s>(&'s self, schema: &'s Value) -> Vec<&'s Value> {
        match kind(schema) {
            Kind::Reference(name) => self.objects(self.definition(name)),
            Kind::Map(values) | Kind::List(values) => self.objects(values),
            Kind::OneOf(all) => {
                let mut objects: Vec<_> =
                    all.into_iter().flat_map(|one| self.objects(one)).collect();
                objects.dedup();
                objects
            }
            Kind::Object => vec![schema],
            Kind::Scalar => Vec::new(),
        }
    }

    fn definition(&self, name: &str) -> &Value {
        &self.0["$defs"][name]
    }

    fn keys(&self, roff: &mut Roff, object: &Value) {
        let required = object["required"].as_array();
        for (key, value) in entries(&object["properties"]) {
            let is_required = required.is_some_and(|all| all.iter().any(|one| one == key));
            let mark = if is_required { ", required" } else { "" };
            roff.control("TP", []);
            roff.text([bold(key), roman(": "), italic(self.form(value)), roman(mark)]);
            roff.text(prose(description(value)));
        }
    }

    /// The values that the keys refer to, each under its name.
    fn values(&self, roff: &mut Roff) {
        for (name, value) in entries(&self.0["$defs"]).filter(|(name, _)| self.is_named(name)) {
            roff.control("TP", []).text([italic(words(name))]);
            let mut text = prose(description(value));
            if let Some(examples) = value["examples"].as_array() {
                let examples: Vec<_> = examples.iter().map(plain).collect();
                text.push(roman(format!(" For example {}.", examples.join(", "))));
            }
            roff.text(text);
        }
    }

    /// Whether a value is explained once under its name rather than wherever it may stand: there is something to say of it,
    /// and it has no keys.
    fn is_named(&self, name: &str) -> bool {
        let value = self.definition(name);
        !description(value).is_empty() && self.objects(value).is_empty()
    }

    /// What may be written, in words.
    fn form(&self, schema: &Value) -> String {
        match kind(schema) {
            Kind::Reference(name) if self.is_named(name) => words(name),
            Kind::Reference(name) => self.form(self.definition(name)),
            Kind::List(items) => format!("list of ({})", self.form(items)),
            Kind::Map(values) => format!("by name: {}", self.form(values)),
            Kind::OneOf(all) => {
                all.into_iter().map(|one| self.form(one)).collect::<Vec<_>>().join(" | ")
            }
            Kind::Object => {
                let keys = entries(&schema["properties"]);
                let keys = keys.map(|(key, value)| format!("{key}: {}", self.form(value)));
                format!("{{ {} }}", keys.collect::<Vec<_>>().join(", "))
            }
            Kind::Scalar => scalar(schema),
        }
    }
}

/// How a schema is made up; `null`, which may stand anywhere, left out.
enum Kind<'s> {
    Reference(&'s str),
    OneOf(Vec<&'s Value>),
    List(&'s Value),
    Map(&'s Value),
    Object,
    Scalar,
}

fn kind(schema: &Value) -> Kind<'_> {
    if let Some(name) = schema["$ref"].as_str() {
        return Kind::Reference(name.strip_prefix("#/$defs/").unwrap());
    }
    if let Some(all) = schema["anyOf"].as_array() {
        let mut all: Vec<_> = all.iter().filter(|one| one["type"] != "null").collect();
        return if all.len() == 1 { kind(all.remove(0)) } else { Kind::OneOf(all) };
    }
    match type_of(schema) {
        Some("array") => Kind::List(&schema["items"]),
        Some("object") if schema.get("patternProperties").is_some() => {
            Kind::Map(entries(&schema["patternProperties"]).next().unwrap().1)
        }
        Some("object") => Kind::Object,
        _ => Kind::Scalar,
    }
}

/// Its type, where it has one beside `null`.
fn type_of(schema: &Value) -> Option<&str> {
    let all = schema["type"].as_array();
    let other = all.and_then(|all| all.iter().filter_map(Value::as_str).find(|one| *one != "null"));
    other.or_else(|| schema["type"].as_str())
}

fn scalar(schema: &Value) -> String {
    if let Some(all) = schema["enum"].as_array() {
        return all.iter().map(plain).collect::<Vec<_>>().join(" | ");
    }
    if let Some(one) = schema.get("const") {
        return plain(one);
    }
    let bound = |key| schema.get(key).map(plain);
    match type_of(schema) {
        Some("boolean") => "true | false".to_owned(),
        Some("number") => format!("number above {}", bound("exclusiveMinimum").unwrap()),
        Some("integer") => {
            let from = bound("minimum").unwrap();
            let to = bound("maximum").map(|to| format!(" to {to}")).unwrap_or_default();
            format!("whole number from {from}{to}")
        }
        Some("string") => match schema["pattern"].as_str() {
            Some("^/.") => "absolute path".to_owned(),
            Some(pattern) => format!("text that matches {pattern}"),
            None => "text".to_owned(),
        },
        other => panic!("the page has no words for {other:?}: {schema}"),
    }
}

/// `GpuNeed` → `gpu need`
fn words(name: &str) -> String {
    let mut words = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(letter.to_lowercase());
    }
    words
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// What stands between backquotes is bold.
fn prose(text: &str) -> Vec<Inline> {
    let text = text.replace('\n', " ");
    let parts = text.split('`').enumerate();
    parts.map(|(n, part)| if n % 2 == 1 { bold(part) } else { roman(part) }).collect()
}

fn entries(object: &Value) -> impl Iterator<Item = (&str, &Value)> {
    object.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}
