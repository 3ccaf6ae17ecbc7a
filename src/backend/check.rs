//! What a spec may not say: what its backend or the engine cannot do, and texts that would mean something else on the way.

use std::path::{Component, Path};

use super::{MODELS, Models, Spec, Wish, looks_like_path};
use crate::ident::{EngineKind, ModelName};

/// Why a model cannot be launched as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A text that cannot stand where it would have to.
    #[error("the {what} {} cannot be used: {why}", quoted(.text))]
    Text {
        /// Of what.
        what: &'static str,
        /// The text.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A limit of zero, which engines take for none, or more than they can be told.
    #[error("{flag} cannot be {value}: {why}\nhint: leave it out for no limit of ours")]
    Number {
        /// As on the command line.
        flag: &'static str,
        /// The number.
        value: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The backend cannot be told.
    #[error("{backend} cannot be told {flag}: {why}\nhint: leave it out")]
    Cannot {
        /// Who.
        backend: &'static str,
        /// As on the command line.
        flag: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// An argument that is ours to set.
    #[error(
        "the extra argument {} is not passed on: portreeve sets {flag} itself\nhint: say it with an option of portreeve",
        quoted(.text)
    )]
    Ours {
        /// The argument.
        text: String,
        /// What it sets.
        flag: &'static str,
    },
    /// A path without the folder that it is in.
    #[error(
        "the model {} is a file, and no folder of models is given\nhint: name the folder that it is in with --models-dir",
        quoted(.0)
    )]
    NoModelsDir(String),
    /// A path outside that folder.
    #[error("the model {} is not in {}, the folder of models", quoted(.model), quoted(.dir))]
    Outside {
        /// The model.
        model: String,
        /// The folder.
        dir: String,
    },
    /// An option of containers for a process.
    #[error(
        "{0} is for containers, and this model is a process\nhint: leave it out, or add --container"
    )]
    NotAContainer(&'static str),
    /// An option of processes for a container.
    #[error("{0} is for processes, and this model is a container\nhint: leave it out")]
    InContainer(&'static str),
    /// A container's plan for a process.
    #[error("this model is a process, not a container")]
    NotAProcess,
    /// Another engine answers than the one that was named.
    #[error("the model is to run on {wanted}, and {found} answers there")]
    OtherEngine {
        /// Which was named.
        wanted: EngineKind,
        /// Which answers.
        found: EngineKind,
    },
    /// GPUs that are named and not there.
    #[error(
        "none of its GPUs ({0}) was found\nhint: 'nvidia-smi -L' lists NVIDIA's with their numbers and UUIDs"
    )]
    NoCards(String),
    /// Fewer GPUs than it is to be spread over.
    #[error("it is to be spread over {wanted} GPUs and is given {given}")]
    TooFewCards {
        /// `--tensor-parallel`.
        wanted: u32,
        /// How many it has.
        given: usize,
    },
    /// Podman before 5.4.
    #[error(
        "Podman {} passes no GPU on through its API: the model would run on the processor, and nobody would be told\n\
         hint: use Podman 5.4 or later, or Docker",
        quoted(.0)
    )]
    OldPodman(String),
    /// AMD's GPUs.
    #[error("GPUs of AMD are not passed to containers yet\nhint: run the model as a process")]
    AmdInContainer,
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.escape_debug())
}

/// All that can be said against a spec before anything is known of GPUs and engines; nothing = it can be registered.
pub fn check(name: &ModelName, spec: &Spec) -> Vec<Refusal> {
    let mut all: Vec<Refusal> = Vec::new();
    all.extend(check_name(name).err());
    all.extend(check_model(spec).err());
    all.extend(check_wishes(spec));
    all.extend(check_extra(spec));
    all.extend(check_numbers(spec));
    if spec.is_container {
        all.extend(check_image(spec).err());
        all.extend(check_network(spec).err());
        all.extend(check_models_dir(spec).and_then(|()| model_in_container(spec).map(drop)).err());
        all.extend(says_nothing_of_processes(spec).err());
    } else {
        all.extend(is_process(spec).err());
        all.extend(check_program(spec).err());
        all.extend(check_user(spec).err());
    }
    all
}

/// A name that was not read from text could hold anything.
fn check_name(name: &ModelName) -> Result<(), Refusal> {
    let read = name.0.parse::<ModelName>();
    read.map(drop).map_err(|why| text("model's name", &name.0, why))
}

pub(crate) fn text(what: &'static str, text: &str, why: &'static str) -> Refusal {
    Refusal::Text { what, text: text.to_owned(), why }
}

fn is_plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn check_model(spec: &Spec) -> Result<(), Refusal> {
    let model = &spec.model;
    let refused = |why| Err(text("model", model, why));
    if model.is_empty() || model.chars().any(char::is_control) {
        return refused("expected a name or a path");
    }
    if model.starts_with('-') {
        return refused("its server would take it for an option");
    }
    let models = spec.backend.backend().models;
    if models == Models::Names && looks_like_path(model) {
        return refused("its server knows names in its own store only");
    }
    // A server may take a name for a path where there is such a folder.
    if !models.is_file(model) && model.split('/').any(|part| part == "..") {
        return refused("no name has a part '..'");
    }
    Ok(())
}

fn check_wishes(spec: &Spec) -> impl Iterator<Item = Refusal> {
    let backend = spec.backend.word();
    let cannot = spec.backend.backend().cannot.iter().filter(|(wish, _)| wish.is_in(spec));
    cannot.map(move |(wish, why)| Refusal::Cannot { backend, flag: Wish::flag(*wish), why })
}

fn check_extra(spec: &Spec) -> impl Iterator<Item = Refusal> {
    spec.extra_args.iter().filter_map(|arg| {
        if arg.contains('\0') {
            return Some(text("extra argument", arg, "no argument can hold a NUL"));
        }
        let flag = spec.backend.backend().ours.iter().find(|flag| is_same(flag, arg))?;
        Some(Refusal::Ours { text: arg.clone(), flag })
    })
}

/// As the servers' parsers would take it: `--port=1`, `--por 1` (argparse), `-p1` (clap), `_` for `-`.
fn is_same(flag: &str, arg: &str) -> bool {
    let is_short = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit() || c == '=');
    if !flag.starts_with("--") {
        return arg == flag || arg.strip_prefix(flag).is_some_and(is_short);
    }
    let name = arg.split('=').next().unwrap_or(arg).replace('_', "-");
    name.len() > "--".len() && flag.starts_with(&name)
}

fn check_numbers(spec: &Spec) -> impl Iterator<Item = Refusal> {
    let given = [
        ("--memory", spec.memory_bytes),
        ("--cpu", spec.cpu_milli.map(u64::from)),
        ("--pids", spec.pids.map(u64::from)),
        ("--max-model-len", spec.max_model_len.map(u64::from)),
        ("--tensor-parallel", spec.tensor_parallel.map(u64::from)),
    ];
    let is_zero = |&(_, value): &(&str, Option<u64>)| value == Some(0);
    let zero = |(flag, _)| Refusal::Number { flag, value: 0, why: "it would mean no limit" };
    let much = spec.memory_bytes.and_then(|bytes| memory(bytes).err());
    given.into_iter().filter(is_zero).map(zero).chain(much)
}

/// Engines count in signed numbers.
pub(crate) fn memory(bytes: u64) -> Result<i64, Refusal> {
    let why = "no engine can be told so much";
    i64::try_from(bytes).map_err(|_| Refusal::Number { flag: "--memory", value: bytes, why })
}

fn check_image(spec: &Spec) -> Result<(), Refusal> {
    let Some(image) = &spec.image else { return Ok(()) };
    let is_odd = |c: char| c.is_whitespace() || c.is_control();
    if image.is_empty() || image.starts_with('-') || image.contains(is_odd) {
        return Err(text("image", image, "expected a name such as vllm/vllm-openai:latest"));
    }
    Ok(())
}

/// Of another container's network (`container:ID`) its ports would be that one's to publish.
fn check_network(spec: &Spec) -> Result<(), Refusal> {
    let Some(network) = &spec.network else { return Ok(()) };
    if !is_plain(network) {
        return Err(text("network", network, "expected the name of a network"));
    }
    if network == "none" {
        return Err(text("network", network, "nobody could reach the model"));
    }
    Ok(())
}

/// Podman writes a mount as one text, split at commas (its compat/containers_create.go).
fn check_models_dir(spec: &Spec) -> Result<(), Refusal> {
    let Some(dir) = &spec.models_dir else { return Ok(()) };
    let shown = dir.to_string_lossy();
    let refused = |why| Err(text("folder of models", &shown, why));
    let is_root = dir.parent().is_none();
    let is_odd = |c: char| c.is_control() || c == ',' || c == ':';
    match dir.to_str() {
        None => refused("engines take UTF-8 only"),
        Some(_) if !dir.is_absolute() => refused("expected an absolute path"),
        Some(_) if is_root => refused("it would show the container the whole host"),
        Some(_) if dir.components().any(|part| part == Component::ParentDir) => {
            refused("'..' may lead anywhere")
        }
        Some(dir) if dir.contains(is_odd) => refused("engines take no ',' or ':' in it"),
        Some(_) => Ok(()),
    }
}

/// The model as the server in the container finds it: a file by its place in the folder of models, a name as it is.
pub(crate) fn model_in_container(spec: &Spec) -> Result<String, Refusal> {
    let model = &spec.model;
    if !spec.backend.backend().models.is_file(model) {
        return Ok(model.clone());
    }
    let Some(dir) = &spec.models_dir else { return Err(Refusal::NoModelsDir(model.clone())) };
    let outside =
        || Refusal::Outside { model: model.clone(), dir: dir.to_string_lossy().into_owned() };
    let path = Path::new(model);
    let inside = match path.strip_prefix(dir).or_else(|_| path.strip_prefix(MODELS)) {
        Ok(inside) => inside,
        Err(_) if path.is_absolute() => return Err(outside()),
        Err(_) => path,
    };
    let mut target = MODELS.to_owned();
    for part in inside.components() {
        match part {
            Component::Normal(part) => {
                target.push('/');
                target.push_str(&part.to_string_lossy());
            }
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(outside());
            }
        }
    }
    Ok(target)
}

fn says_nothing_of_processes(spec: &Spec) -> Result<(), Refusal> {
    let of_processes = [("--program", spec.program.is_some()), ("--run-as", spec.run_as.is_some())];
    let found = of_processes.into_iter().find(|(_, is_set)| *is_set);
    found.map_or(Ok(()), |(flag, _)| Err(Refusal::InContainer(flag)))
}

/// In a unit there is no folder that a relative path could start from.
fn check_program(spec: &Spec) -> Result<(), Refusal> {
    let Some(program) = &spec.program else { return Ok(()) };
    let shown = program.to_string_lossy();
    let refused = |why| Err(text("program", &shown, why));
    match program.to_str() {
        None => refused("expected UTF-8"),
        Some(path) if !path.starts_with('/') => refused("expected an absolute path"),
        Some(path) if path.contains(char::is_control) || path.ends_with('/') => {
            refused("expected the path of a program")
        }
        Some(_) => Ok(()),
    }
}

/// As systemd takes it for `User=` (its basic/user-util.c, `valid_user_group_name`). A number would name whoever gets it next.
fn check_user(spec: &Spec) -> Result<(), Refusal> {
    let Some(user) = &spec.run_as else { return Ok(()) };
    let refused = |why| Err(text("user", user, why));
    let is_name = user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && user.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && user.len() <= 31;
    match user.as_str() {
        "root" => refused("its server would have every right on this host"),
        _ if !is_name => refused("expected the name of a user"),
        _ => Ok(()),
    }
}

/// That it is to be a process, and says nothing that only containers have.
pub(crate) fn is_process(spec: &Spec) -> Result<(), Refusal> {
    let of_containers = [
        ("--container", spec.is_container),
        ("--image", spec.image.is_some()),
        ("--models-dir", spec.models_dir.is_some()),
        ("--network", spec.network.is_some()),
        ("--engine", spec.engine.is_some()),
    ];
    let found = of_containers.into_iter().find(|(_, is_set)| *is_set);
    found.map_or(Ok(()), |(flag, _)| Err(Refusal::NotAContainer(flag)))
}
