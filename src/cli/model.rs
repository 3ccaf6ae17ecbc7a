//! `portreeve model`: the stack's models. Which there are, what is wanted of each, what happened to it.

use std::{io::Write, net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

use crate::{
    backend::{
        self, BackendName, Quantization, Spec,
        spec::{self, Engine},
    },
    host::Host,
    ident::{GpuName, ModelName, Port},
    models::{
        Registry,
        registry::{self, RegistryError},
    },
    report::{Style, exit, models},
};

use super::Failure;

/// What `model` does.
#[derive(Debug, Subcommand)]
pub(super) enum ModelVerb {
    /// Add a model to the registry; starts nothing
    Register {
        /// Its name: letters, digits, '.', '_' and '-'
        #[arg(value_parser = model_name)]
        name: ModelName,
        #[command(flatten)]
        wanted: Box<Wanted>,
    },
    /// Take a model out of the registry
    Unregister {
        /// Its name
        #[arg(value_parser = model_name)]
        name: ModelName,
    },
    /// List the models
    List {
        #[command(flatten)]
        form: Form,
    },
    /// Show what is wanted of a model
    Show {
        /// Its name
        #[arg(value_parser = model_name)]
        name: ModelName,
        #[command(flatten)]
        form: Form,
    },
    /// Show what happened, the newest last
    Events {
        /// Of this model only
        #[arg(value_parser = model_name)]
        name: Option<ModelName>,
        /// So many at the most
        #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
        lines: usize,
        #[command(flatten)]
        form: Form,
    },
}

/// For whom it is shown.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Form {
    /// Write JSON: docs/schema/models-v1.json
    #[arg(long)]
    json: bool,
}

/// What is wanted of a model.
#[derive(Debug, Args)]
pub(super) struct Wanted {
    /// Its server: vllm, llamacpp, ollama, tgi or sglang
    #[arg(long)]
    backend: BackendName,
    /// Its weights: a name that the backend knows, or a path (in a container: below --models-dir)
    #[arg(long = "path", visible_alias = "model", value_name = "MODEL")]
    model: String,
    /// Run it in a container
    #[arg(long)]
    container: bool,
    /// The port of this host that it serves (default: the backend's)
    #[arg(long, value_parser = port)]
    port: Option<Port>,
    /// The address that it serves
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// GPUs: numbers as nvidia-smi shows them, UUIDs, PCI addresses, or all
    #[arg(long, value_name = "GPU,…", value_delimiter = ',')]
    gpus: Vec<GpuName>,
    /// Memory, such as 32G
    #[arg(long, value_parser = spec::parse_bytes)]
    memory: Option<u64>,
    /// Processors, such as 4.0
    #[arg(long, value_parser = spec::parse_processors)]
    cpu: Option<u32>,
    /// Processes and threads
    #[arg(long)]
    pids: Option<u32>,
    /// The longest context, in tokens
    #[arg(long)]
    max_model_len: Option<u32>,
    /// Over how many GPUs it is spread
    #[arg(long)]
    tensor_parallel: Option<u32>,
    /// How its weights are quantised: awq or gptq
    #[arg(long)]
    quantization: Option<Quantization>,
    /// Another argument for its server; may be repeated
    #[arg(long = "extra-args", value_name = "ARGUMENT", allow_hyphen_values = true)]
    extra_args: Vec<String>,
    /// Another image than the backend's
    #[arg(long)]
    image: Option<String>,
    /// This host's folder with the weights, read-only in the container
    #[arg(long, value_name = "FOLDER")]
    models_dir: Option<PathBuf>,
    /// The stack's network
    #[arg(long)]
    network: Option<String>,
    /// docker or podman (default: Docker where it answers, else Podman)
    #[arg(long)]
    engine: Option<Engine>,
    /// Do not ask whether it is healthy
    #[arg(long)]
    no_health_check: bool,
    /// How long a start may load, such as 10m
    #[arg(long, value_name = "TIME", value_parser = crate::config::parse_duration)]
    load_timeout: Option<Duration>,
}

impl Wanted {
    fn spec(self) -> Spec {
        Spec {
            backend: self.backend,
            model: self.model,
            is_container: self.container,
            port: self.port,
            host: self.host,
            gpus: self.gpus,
            memory_bytes: self.memory,
            cpu_milli: self.cpu,
            pids: self.pids,
            max_model_len: self.max_model_len,
            tensor_parallel: self.tensor_parallel,
            quantization: self.quantization,
            extra_args: self.extra_args,
            image: self.image,
            models_dir: self.models_dir,
            network: self.network,
            engine: self.engine,
            skips_health: self.no_health_check,
            load_timeout: self.load_timeout,
        }
    }
}

/// Does it.
pub(super) fn run(verb: ModelVerb, out: &mut dyn Write) -> Result<u8, Failure> {
    let path = registry::path(&Host::live())?;
    let known = || Registry::open_if_there(&path);
    match verb {
        ModelVerb::Register { name, wanted } => {
            let spec = wanted.spec();
            let refused = backend::check(&name, &spec);
            if !refused.is_empty() {
                let all: Vec<String> = refused.iter().map(ToString::to_string).collect();
                return Err(Failure::Usage(all.join("\n")));
            }
            for shared in Registry::open(&path)?.register(&name, &spec)? {
                super::warn(&shared.to_string());
            }
            writeln!(out, "model '{name}' is registered")?;
        }
        ModelVerb::Unregister { name } => {
            let none = || RegistryError::NoModel(name.clone(), Vec::new());
            known()?.ok_or_else(none)?.unregister(&name)?;
            writeln!(out, "model '{name}' is registered no more")?;
        }
        ModelVerb::List { form } => {
            let all = known()?.map(|registry| registry.all()).transpose()?.unwrap_or_default();
            if form.json {
                models::render_list_json(&all, out)?;
            } else {
                models::render_list(&all, Style::of_stdout(), out)?;
            }
        }
        ModelVerb::Show { name, form } => {
            let none = || RegistryError::NoModel(name.clone(), Vec::new());
            let record = known()?.ok_or_else(none)?.get(&name)?;
            if form.json {
                models::render_list_json(&[record], out)?;
            } else {
                models::render_model(&record, Style::of_stdout(), out)?;
            }
        }
        ModelVerb::Events { name, lines, form } => {
            let events = known()?.map(|registry| registry.events(name.as_ref(), lines));
            let events = events.transpose()?.unwrap_or_default();
            if form.json {
                models::render_events_json(&events, out)?;
            } else {
                models::render_events(&events, Style::of_stdout(), out)?;
            }
        }
    }
    Ok(exit::CLEAR)
}

fn model_name(text: &str) -> Result<ModelName, String> {
    text.parse().map_err(str::to_owned)
}

fn port(text: &str) -> Result<Port, String> {
    let number = text.parse().ok().and_then(Port::new);
    number.ok_or_else(|| "expected a port number from 1 to 65535".to_owned())
}
