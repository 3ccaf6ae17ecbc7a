//! Nodes → fragment. Tells everything that is wrong and goes on; what was wrong is left out of the fragment.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    fragment::{
        At, ComposeFragment, DefaultsFragment, EnginesFragment, Fragment, GateFragment,
        GpuSourcesFragment, PatternFragment, Place, ServiceFragment, WorkerFragment,
    },
    problem::{Problem, quoted},
    reader::{Entry, Reader},
    settings::Protect,
    yaml::{self, Node, TextSpan, Value},
};
use crate::ident::ServiceName;

const FRAGMENT_KEYS: &[&str] = &[
    "defaults", "services", "models", "patterns", "protect", "engines", "gate", "gpus", "compose",
];
const DEFAULTS_KEYS: &[&str] = &["grace", "min_age", "respawn_watch", "foreign_holder"];
const ENGINES_KEYS: &[&str] =
    &["docker", "podman", "timeout", "stop_timeout", "kill_timeout", "remove_timeout"];
const GATE_KEYS: &[&str] = &["timeout", "settle", "gpu_settle", "gpu_free"];
const GPU_SOURCES_KEYS: &[&str] = &["nvml", "nvidia_smi", "timeout"];
const SERVICE_KEYS: &[&str] = &[
    "enabled",
    "runs_in",
    "ports",
    "reuse_addr",
    "gpus",
    "gpu_free",
    "patterns",
    "grace",
    "foreign_holder",
];
const WORKER_KEYS: &[&str] = &["name", "kind", "match", "grace"];
const COMPOSE_KEYS: &[&str] = &["file", "profiles", "prefix"];

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

impl Reader<'_> {
    fn fragment(&mut self, node: &Node) -> Fragment {
        let fields = self.fields(node, "the configuration", FRAGMENT_KEYS);
        Fragment {
            defaults: fields.get("defaults").map(|n| self.defaults(n)).unwrap_or_default(),
            services: fields.get("services").map(|n| self.services(n)).unwrap_or_default(),
            models: fields.get("models").map(|n| self.models(n)).unwrap_or_default(),
            patterns: fields.get("patterns").map(|n| self.workers(n)).unwrap_or_default(),
            protect: fields.get("protect").map(|n| self.protect(n)).unwrap_or_default(),
            engines: fields.get("engines").map(|n| self.engines(n)).unwrap_or_default(),
            gate: fields.get("gate").map(|n| self.gate(n)).unwrap_or_default(),
            gpus: fields.get("gpus").map(|n| self.gpu_sources(n)).unwrap_or_default(),
            compose: fields.get("compose").map(|n| self.compose(n)).unwrap_or_default(),
        }
    }

    /// One entry, or a list of them.
    fn compose(&mut self, node: &Node) -> Vec<At<ComposeFragment>> {
        if !matches!(node.value, Value::List(_)) {
            return self.compose_entry(node).into_iter().collect();
        }
        let entries = self.items(node, "a list of compose files", Self::compose_entry);
        entries.map(|entries| entries.value).unwrap_or_default()
    }

    fn compose_entry(&mut self, node: &Node) -> Option<At<ComposeFragment>> {
        if node.value.text().is_some() {
            let files = vec![self.compose_file(node)?.value];
            return Some(
                self.at(node, ComposeFragment { files, profiles: Vec::new(), prefix: None }),
            );
        }
        if !matches!(node.value, Value::Map(_)) {
            return self.expected(node, "the path of a compose file, or a map with 'file'", None);
        }
        let fields = self.fields(node, "an entry of 'compose'", COMPOSE_KEYS);
        let profiles = fields.get("profiles");
        let profiles = profiles.and_then(|n| self.items(n, "a list of profiles", Self::profile));
        let prefix = fields.get("prefix").and_then(|n| self.prefix(n));
        let Some(file) = fields.get("file") else {
            return self.refuse(
                node,
                "an entry of 'compose' needs the key 'file'".to_owned(),
                None,
            );
        };
        let files: Vec<PathBuf> = if matches!(file.value, Value::List(_)) {
            let files = self.items(file, "a list of paths", Self::compose_file)?.value;
            files.into_iter().map(|file| file.value).collect()
        } else {
            vec![self.compose_file(file)?.value]
        };
        if files.is_empty() {
            return self.expected(file, "the path of a compose file", None);
        }
        let profiles = profiles.into_iter().flat_map(|list| list.value);
        let profiles = profiles.map(|profile| profile.value).collect();
        let prefix = prefix.map(|prefix| prefix.value);
        Some(self.at(node, ComposeFragment { files, profiles, prefix }))
    }

    fn gate(&mut self, node: &Node) -> GateFragment {
        let fields = self.fields(node, "'gate'", GATE_KEYS);
        GateFragment {
            timeout: fields.get("timeout").and_then(|n| self.duration(n)),
            settle: fields.get("settle").and_then(|n| self.duration(n)),
            gpu_settle: fields.get("gpu_settle").and_then(|n| self.duration(n)),
            gpu_free: fields.get("gpu_free").and_then(|n| self.gpu_need(n)),
        }
    }

    fn gpu_sources(&mut self, node: &Node) -> GpuSourcesFragment {
        let fields = self.fields(node, "'gpus'", GPU_SOURCES_KEYS);
        GpuSourcesFragment {
            nvml: fields.get("nvml").and_then(|n| self.engine_use(n, Some("a library"))),
            nvidia_smi: fields
                .get("nvidia_smi")
                .and_then(|n| self.engine_use(n, Some("a program"))),
            timeout: fields.get("timeout").and_then(|n| self.positive_duration(n)),
        }
    }

    fn engines(&mut self, node: &Node) -> EnginesFragment {
        let fields = self.fields(node, "'engines'", ENGINES_KEYS);
        EnginesFragment {
            docker: fields.get("docker").and_then(|n| self.engine_use(n, Some("a socket"))),
            podman: fields.get("podman").and_then(|n| self.engine_use(n, None)),
            timeout: fields.get("timeout").and_then(|n| self.positive_duration(n)),
            stop_timeout: fields.get("stop_timeout").and_then(|n| self.positive_duration(n)),
            kill_timeout: fields.get("kill_timeout").and_then(|n| self.positive_duration(n)),
            remove_timeout: fields.get("remove_timeout").and_then(|n| self.positive_duration(n)),
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
        for Entry { name, key, value } in self.entries(node, "a map of services by name") {
            let service = self.service(name, value);
            if self.is_name(key, name, "service name") {
                services.insert(ServiceName::from(name), self.at(key, service));
            }
        }
        services
    }

    fn service(&mut self, name: &str, node: &Node) -> ServiceFragment {
        let what = format!("service '{}'", quoted(name, 64));
        let fields = self.fields(node, &what, SERVICE_KEYS);
        let (ports, patterns) = ("a list of ports", "a list of patterns");
        ServiceFragment {
            enabled: fields.get("enabled").and_then(|n| self.truth(n)),
            runs_in: fields.get("runs_in").and_then(|n| self.runs_in(n)),
            ports: fields.get("ports").and_then(|n| self.items(n, ports, Self::endpoint)),
            reuse_addr: fields.get("reuse_addr").and_then(|n| self.truth(n)),
            gpus: fields.get("gpus").and_then(|n| self.gpus(n)),
            gpu_free: fields.get("gpu_free").and_then(|n| self.gpu_need(n)),
            patterns: fields.get("patterns").and_then(|n| self.items(n, patterns, Self::pattern)),
            grace: fields.get("grace").and_then(|n| self.duration(n)),
            foreign_holder: fields.get("foreign_holder").and_then(|n| self.foreign_holder(n)),
        }
    }

    fn pattern(&mut self, node: &Node) -> Option<At<PatternFragment>> {
        if !matches!(node.value, Value::Map(_)) {
            let regex = self.regex(node)?.value;
            return Some(self.at(node, PatternFragment { regex, is_portless: false }));
        }
        let fields = self.fields(node, "a pattern", &["match", "portless"]);
        let portless = fields.get("portless").and_then(|n| self.truth(n));
        let regex = self.required(node, &fields, "match", Self::regex)?.value;
        let is_portless = portless.is_some_and(|portless| portless.value);
        Some(self.at(node, PatternFragment { regex, is_portless }))
    }

    fn workers(&mut self, node: &Node) -> Vec<At<WorkerFragment>> {
        let mut workers: Vec<At<WorkerFragment>> = Vec::new();
        let all = self.items(node, "a list of patterns", Self::worker);
        for worker in all.into_iter().flat_map(|list| list.value) {
            let name = &worker.value.name;
            match workers.iter().find(|w| w.value.name.value == name.value) {
                None => workers.push(worker),
                Some(first) => {
                    let line = first.value.name.place.line;
                    let message =
                        format!("two patterns are named '{}': see line {line}", name.value);
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
        let (name, kind, regex) = (name?, kind?.value, regex?.value);
        Some(self.at(node, WorkerFragment { name, kind, regex, grace }))
    }

    fn worker_name(&mut self, node: &Node) -> Option<At<String>> {
        let name = self.text_of(node, "a name")?;
        self.is_name(node, name, "name of a pattern").then(|| self.at(node, name.to_owned()))
    }

    fn protect(&mut self, node: &Node) -> Vec<At<Protect>> {
        let what = "a list of {unit: GLOB} and {exe: GLOB}";
        let rules = self.items(node, what, Self::protect_rule);
        rules.map(|rules| rules.value).unwrap_or_default()
    }

    fn protect_rule(&mut self, node: &Node) -> Option<At<Protect>> {
        let (key, value) = self.one_of(node, "{unit: GLOB} or {exe: GLOB}", &["unit", "exe"])?;
        let is_path = key == "exe";
        let glob = self.glob(value, is_path)?;
        Some(self.at(node, if is_path { Protect::Exe(glob) } else { Protect::Unit(glob) }))
    }
}

fn span_of(place: Place) -> TextSpan {
    TextSpan { start: place.start, end: place.end, line: place.line }
}

#[cfg(test)]
mod tests {
    use super::{super::models::MODEL_KEYS, *};

    #[test]
    fn the_reader_and_the_schema_know_the_same_keys() {
        let schema = super::super::fragment::schema().to_value();
        for (object, known) in [
            ("/$defs/ComposeEntry/anyOf/1", COMPOSE_KEYS),
            ("", FRAGMENT_KEYS),
            ("/$defs/Defaults", DEFAULTS_KEYS),
            ("/$defs/Engines", ENGINES_KEYS),
            ("/$defs/Gate", GATE_KEYS),
            ("/$defs/GpuSources", GPU_SOURCES_KEYS),
            ("/$defs/Model", MODEL_KEYS),
            ("/$defs/Service", SERVICE_KEYS),
            ("/$defs/Worker", WORKER_KEYS),
        ] {
            let properties = schema.pointer(&format!("{object}/properties")).unwrap();
            let mut of_schema: Vec<&str> =
                properties.as_object().unwrap().keys().map(String::as_str).collect();
            let mut known = known.to_vec();
            of_schema.sort_unstable();
            known.sort_unstable();
            assert_eq!(of_schema, known, "{object}");
        }
    }
}
