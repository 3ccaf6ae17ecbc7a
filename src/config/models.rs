//! `models:`, the models that are declared: read, laid over each other, and checked as a registration is.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use super::{
    fragment::{At, Fragment, ModelFragment, Place},
    merge::replace,
    problem::{Problem, nearest, quoted},
    reader::{Entry, Reader},
    source::Layer,
    yaml::Node,
};
use crate::{
    backend::{
        self, Refusal, Spec,
        spec::{Watch, parse_bytes, parse_processors},
    },
    ident::{ModelName, Port},
};

pub(super) const MODEL_KEYS: &[&str] = &[
    "enabled",
    "backend",
    "model",
    "container",
    "program",
    "run_as",
    "port",
    "host",
    "gpus",
    "memory",
    "cpu",
    "pids",
    "max_model_len",
    "tensor_parallel",
    "quantization",
    "extra_args",
    "image",
    "models_dir",
    "network",
    "engine",
    "health",
    "health_interval",
    "health_timeout",
    "health_failures",
    "health_delay",
    "load_timeout",
];

const BACKEND: &str = "vllm, llamacpp, ollama, tgi or sglang";
const AMOUNT: &str = "an amount such as 32G, 512M or a number of bytes";
const PROCESSORS: &str = "a number of processors such as 4 or 1.5";
const COUNT: &str = "a whole number from 1";

// ---- as typed

impl Reader<'_> {
    pub(super) fn models(&mut self, node: &Node) -> BTreeMap<ModelName, At<ModelFragment>> {
        let mut models = BTreeMap::new();
        for Entry { name, key, value } in self.entries(node, "a map of models by name") {
            let model = self.model(name, value);
            match name.parse::<ModelName>() {
                Ok(name) => {
                    models.insert(name, self.at(key, model));
                }
                Err(why) => {
                    let message = format!("bad model name '{}': {why}", quoted(name, 64));
                    self.problem(key.span, message, None);
                }
            }
        }
        models
    }

    fn model(&mut self, name: &str, node: &Node) -> ModelFragment {
        let what = format!("model '{}'", quoted(name, 64));
        let fields = self.fields(node, &what, MODEL_KEYS);
        let arguments = "a list of arguments";
        ModelFragment {
            enabled: fields.get("enabled").and_then(|n| self.truth(n)),
            backend: fields.get("backend").and_then(|n| self.parsed(n, BACKEND)),
            model: fields.get("model").and_then(|n| self.word(n, "a name or a path")),
            container: fields.get("container").and_then(|n| self.truth(n)),
            program: fields
                .get("program")
                .and_then(|n| self.absolute_path(n, "the path of a program")),
            run_as: fields.get("run_as").and_then(|n| self.word(n, "the name of a user")),
            port: fields.get("port").and_then(|n| self.port(n)),
            host: fields.get("host").and_then(|n| self.address(n)),
            gpus: fields.get("gpus").and_then(|n| self.gpus(n)),
            memory: fields.get("memory").and_then(|n| self.read_by(n, AMOUNT, parse_bytes)),
            cpu: fields.get("cpu").and_then(|n| self.read_by(n, PROCESSORS, parse_processors)),
            pids: fields.get("pids").and_then(|n| self.count(n)),
            max_model_len: fields.get("max_model_len").and_then(|n| self.count(n)),
            tensor_parallel: fields.get("tensor_parallel").and_then(|n| self.count(n)),
            quantization: fields.get("quantization").and_then(|n| self.parsed(n, "awq or gptq")),
            extra_args: fields
                .get("extra_args")
                .and_then(|n| self.items(n, arguments, |reader, n| reader.word(n, "an argument"))),
            image: fields.get("image").and_then(|n| self.word(n, "the name of an image")),
            models_dir: fields
                .get("models_dir")
                .and_then(|n| self.absolute_path(n, "the path of a folder")),
            network: fields.get("network").and_then(|n| self.word(n, "the name of a network")),
            engine: fields.get("engine").and_then(|n| self.parsed(n, "docker or podman")),
            health: fields.get("health").and_then(|n| self.truth(n)),
            health_interval: fields.get("health_interval").and_then(|n| self.positive_duration(n)),
            health_timeout: fields.get("health_timeout").and_then(|n| self.positive_duration(n)),
            health_failures: fields.get("health_failures").and_then(|n| self.count(n)),
            health_delay: fields.get("health_delay").and_then(|n| self.positive_duration(n)),
            load_timeout: fields.get("load_timeout").and_then(|n| self.positive_duration(n)),
        }
    }

    fn word(&mut self, node: &Node, what: &str) -> Option<At<String>> {
        let text = self.text_of(node, what)?;
        Some(self.at(node, text.to_owned()))
    }

    /// A text, or a number as it is written.
    fn read_by<T, E>(
        &mut self,
        node: &Node,
        what: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<At<T>> {
        let text = node.value.text().or(node.value.bare()).unwrap_or_default();
        match read(text) {
            Ok(value) => Some(self.at(node, value)),
            Err(_) => self.expected(node, what, None),
        }
    }

    fn parsed<T: FromStr>(&mut self, node: &Node, what: &str) -> Option<At<T>> {
        self.read_by(node, what, str::parse)
    }

    fn port(&mut self, node: &Node) -> Option<At<Port>> {
        let number = node.value.bare().and_then(|text| text.parse().ok());
        match number.and_then(Port::new) {
            Some(port) => Some(self.at(node, port)),
            None => self.expected(node, "a port number from 1 to 65535", None),
        }
    }

    fn address(&mut self, node: &Node) -> Option<At<IpAddr>> {
        self.parsed(node, "an address such as 127.0.0.1, 0.0.0.0 or '::1'")
    }

    fn count(&mut self, node: &Node) -> Option<At<u32>> {
        let number = node.value.bare().and_then(|text| text.parse().ok());
        match number.filter(|number| *number > 0) {
            Some(number) => Some(self.at(node, number)),
            None => self.expected(node, COUNT, None),
        }
    }
}

// ---- over each other

/// Lays a layer's model over the lower ones' of its name, key by key.
pub(super) fn overlay(below: &mut At<ModelFragment>, above: At<ModelFragment>) {
    let ModelFragment {
        enabled,
        backend,
        model,
        container,
        program,
        run_as,
        port,
        host,
        gpus,
        memory,
        cpu,
        pids,
        max_model_len,
        tensor_parallel,
        quantization,
        extra_args,
        image,
        models_dir,
        network,
        engine,
        health,
        health_interval,
        health_timeout,
        health_failures,
        health_delay,
        load_timeout,
    } = above.value;
    let below = &mut below.value;
    replace(&mut below.enabled, enabled);
    replace(&mut below.backend, backend);
    replace(&mut below.model, model);
    replace(&mut below.container, container);
    replace(&mut below.program, program);
    replace(&mut below.run_as, run_as);
    replace(&mut below.port, port);
    replace(&mut below.host, host);
    replace(&mut below.gpus, gpus);
    replace(&mut below.memory, memory);
    replace(&mut below.cpu, cpu);
    replace(&mut below.pids, pids);
    replace(&mut below.max_model_len, max_model_len);
    replace(&mut below.tensor_parallel, tensor_parallel);
    replace(&mut below.quantization, quantization);
    replace(&mut below.extra_args, extra_args);
    replace(&mut below.image, image);
    replace(&mut below.models_dir, models_dir);
    replace(&mut below.network, network);
    replace(&mut below.engine, engine);
    replace(&mut below.health, health);
    replace(&mut below.health_interval, health_interval);
    replace(&mut below.health_timeout, health_timeout);
    replace(&mut below.health_failures, health_failures);
    replace(&mut below.health_delay, health_delay);
    replace(&mut below.load_timeout, load_timeout);
}

/// Models that a layer drops and that no lower one has.
pub(super) fn check_dropped(fragment: &Fragment, lower: &Fragment, layer: &Layer) -> Vec<Problem> {
    let dropped = fragment.models.iter().filter(|(_, model)| !is_enabled(&model.value));
    let unknown = dropped.filter(|(name, model)| {
        // What is typed out and switched off is nobody's slip.
        model.value.backend.is_none() && !lower.models.contains_key(*name)
    });
    unknown
        .map(|(name, model)| {
            let message =
                format!("'enabled: false' drops model '{name}', which no lower layer has");
            let hint = nearest(&name.0, lower.models.keys().map(|n| n.0.as_str()));
            layer.problem(model.place, message, hint.map(|n| format!("did you mean '{n}'?")))
        })
        .collect()
}

pub(super) fn is_enabled(model: &ModelFragment) -> bool {
    model.enabled.as_ref().is_none_or(|enabled| enabled.value)
}

// ---- valid

/// What is wanted of each declared model, by name, and what is wrong with it: a key that is missing, what its backend cannot
/// be told, a port that two want.
pub(super) fn specs(merged: &Fragment, layers: &[Layer]) -> (Vec<(ModelName, Spec)>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut told = |place: Place, message: String, hint: Option<String>| {
        let layer = layers.get(place.layer);
        problems.extend(layer.map(|layer| layer.problem(place, message, hint)));
    };
    let mut specs: Vec<(ModelName, Spec, Place)> = Vec::new();
    let enabled = merged.models.iter().filter(|(_, model)| is_enabled(&model.value));
    for (name, At { value: model, place }) in enabled {
        let lacks = [("backend", model.backend.is_none()), ("model", model.model.is_none())];
        for (key, _) in lacks.into_iter().filter(|(_, is_missing)| *is_missing) {
            told(*place, format!("model '{name}' needs the key '{key}'"), None);
        }
        let Some(spec) = spec(model) else { continue };
        for refusal in backend::check(name, &spec) {
            let (key, message, hint) = in_settings(&refusal);
            let argument = argument(model, &refusal).map(|argument| argument.place);
            let place = argument.or_else(|| place_of(model, &key)).unwrap_or(*place);
            told(place, format!("model '{name}': {message}"), hint);
        }
        specs.push((name.clone(), spec, place_of(model, "port").unwrap_or(*place)));
    }
    // The second of two is told, as it is read.
    specs.sort_by_key(|(_, _, place)| (place.layer, place.start));
    let mut others: Vec<(ModelName, &Spec)> = Vec::new();
    for (name, spec, place) in &specs {
        let clashes = backend::conflicts(&others, name, spec);
        if let Some(clash) = clashes.iter().find(|clash| clash.is_error()) {
            let hint = format!("give one of the two another 'port', or drop '{}'", clash.with);
            told(*place, format!("model '{name}': {clash}"), Some(hint));
        }
        others.push((name.clone(), spec));
    }
    let mut specs: Vec<_> = specs.into_iter().map(|(name, spec, _)| (name, spec)).collect();
    specs.sort_by(|(a, _), (b, _)| a.cmp(b));
    (specs, problems)
}

/// The merged model with the defaults of the command line; none of one without backend or model.
fn spec(model: &ModelFragment) -> Option<Spec> {
    fn value<T: Clone>(at: Option<&At<T>>) -> Option<T> {
        at.map(|at| at.value.clone())
    }
    fn list<T: Clone>(at: Option<&At<Vec<At<T>>>>) -> Vec<T> {
        at.into_iter().flat_map(|list| &list.value).map(|item| item.value.clone()).collect()
    }
    Some(Spec {
        backend: value(model.backend.as_ref())?,
        model: value(model.model.as_ref())?,
        is_container: value(model.container.as_ref()).unwrap_or(false),
        program: value(model.program.as_ref()),
        run_as: value(model.run_as.as_ref()),
        port: value(model.port.as_ref()),
        host: value(model.host.as_ref()).unwrap_or(IpAddr::from([127, 0, 0, 1])),
        gpus: list(model.gpus.as_ref()),
        memory_bytes: value(model.memory.as_ref()),
        cpu_milli: value(model.cpu.as_ref()),
        pids: value(model.pids.as_ref()),
        max_model_len: value(model.max_model_len.as_ref()),
        tensor_parallel: value(model.tensor_parallel.as_ref()),
        quantization: value(model.quantization.as_ref()),
        extra_args: list(model.extra_args.as_ref()),
        image: value(model.image.as_ref()),
        models_dir: value::<PathBuf>(model.models_dir.as_ref()),
        network: value(model.network.as_ref()),
        engine: value(model.engine.as_ref()),
        skips_health: !value(model.health.as_ref()).unwrap_or(true),
        load_timeout: value(model.load_timeout.as_ref()),
        watch: watch(model),
    })
}

fn watch(model: &ModelFragment) -> Watch {
    let time = |at: Option<&At<Duration>>, default| at.map_or(default, |at| at.value);
    let default = Watch::default();
    Watch {
        interval: time(model.health_interval.as_ref(), default.interval),
        timeout: time(model.health_timeout.as_ref(), default.timeout),
        failures: model.health_failures.as_ref().map_or(default.failures, |at| at.value),
        delay: time(model.health_delay.as_ref(), default.delay),
    }
}

/// A refusal in the words of the settings: the key that it is about, what is wrong, what to do.
fn in_settings(refusal: &Refusal) -> (String, String, Option<String>) {
    let key_of = |flag: &str| flag.trim_start_matches('-').replace('-', "_");
    let text = refusal.to_string();
    let (message, hint) = match text.split_once("\nhint: ") {
        Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
        None => (text, None),
    };
    match refusal {
        Refusal::Number { flag, .. }
        | Refusal::Cannot { flag, .. }
        | Refusal::InContainer(flag) => {
            let key = key_of(flag);
            let message = message.replace(flag, &format!("'{key}'"));
            (key, message, hint)
        }
        Refusal::NotAContainer(flag) => {
            let key = key_of(flag);
            let message = message.replace(flag, &format!("'{key}'"));
            (key, message, Some("leave it out, or set 'container: true'".to_owned()))
        }
        Refusal::NoModelsDir(_) => {
            let hint = "name the folder that it is in with 'models_dir'".to_owned();
            ("model".to_owned(), message, Some(hint))
        }
        Refusal::Ours { .. } => {
            let hint = "say it with a key of the model".to_owned();
            ("extra_args".to_owned(), message, Some(hint))
        }
        Refusal::Outside { .. } => ("model".to_owned(), message, hint),
        Refusal::Text { what, .. } => {
            let key = match *what {
                "extra argument" => "extra_args",
                "folder of models" => "models_dir",
                "user" => "run_as",
                what => what,
            };
            (key.to_owned(), message, hint)
        }
        // Of GPUs and engines, which nobody has looked at yet.
        Refusal::NotAProcess
        | Refusal::OtherEngine { .. }
        | Refusal::NoCards(_)
        | Refusal::TooFewCards { .. }
        | Refusal::OldPodman(_)
        | Refusal::AmdInContainer => (String::new(), message, hint),
    }
}

/// The further argument that is refused.
fn argument<'m>(model: &'m ModelFragment, refusal: &Refusal) -> Option<&'m At<String>> {
    let (Refusal::Ours { text, .. } | Refusal::Text { what: "extra argument", text, .. }) = refusal
    else {
        return None;
    };
    model.extra_args.iter().flat_map(|args| &args.value).find(|arg| arg.value == *text)
}

fn place_of(model: &ModelFragment, key: &str) -> Option<Place> {
    fn place<T>(at: Option<&At<T>>) -> Option<Place> {
        at.map(|at| at.place)
    }
    match key {
        "model" => place(model.model.as_ref()),
        "program" => place(model.program.as_ref()),
        "run_as" => place(model.run_as.as_ref()),
        "port" => place(model.port.as_ref()),
        "memory" => place(model.memory.as_ref()),
        "cpu" => place(model.cpu.as_ref()),
        "pids" => place(model.pids.as_ref()),
        "max_model_len" => place(model.max_model_len.as_ref()),
        "tensor_parallel" => place(model.tensor_parallel.as_ref()),
        "quantization" => place(model.quantization.as_ref()),
        "extra_args" => place(model.extra_args.as_ref()),
        "image" => place(model.image.as_ref()),
        "models_dir" => place(model.models_dir.as_ref()),
        "network" => place(model.network.as_ref()),
        "engine" => place(model.engine.as_ref()),
        _ => None,
    }
}
