//! Engines at the wire: who is asked, when, and which orders are given.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::super::*;
use crate::{
    act::interrupt::Interrupt,
    backend::Spec,
    config::settings::{Defaults, Engines, Gate, GpuSources, Settings},
    engine::fake::{Act, Fake, id},
    host::Host,
    models::{Registry, lifecycle::Keeper},
    pipeline::{Findings, Scope},
};

/// A host with an engine, a registry beside it, and settings that ask the engine for a short time.
struct House {
    fake: Fake,
    settings: Settings,
    models: Vec<(ModelName, Spec)>,
}

impl House {
    /// None where not root: a user's engines are elsewhere.
    fn with(fake: Fake) -> Option<Self> {
        let engines = Engines { timeout: Duration::from_millis(500), ..Engines::default() };
        let settings = Settings {
            defaults: Defaults::default(),
            services: Vec::new(),
            models: Vec::new(),
            unread_models: None,
            workers: Vec::new(),
            protect: Vec::new(),
            engines,
            gate: Gate::default(),
            gpus: GpuSources::default(),
        };
        let house = Self { fake, settings, models: Vec::new() };
        rustix::process::geteuid().is_root().then_some(house)
    }

    fn path(&self) -> PathBuf {
        self.fake.folder.path().join("state/models.db")
    }

    fn registry(&self) -> Registry {
        Registry::open(&self.path()).unwrap()
    }

    fn register(&self, name: &str) {
        let port = 8000 + u16::try_from(name.len()).unwrap();
        let spec = Spec { port: crate::ident::Port::new(port), ..Spec::sample(BackendName::Vllm) };
        self.registry().register(&name.into(), &spec).unwrap();
    }

    /// What a scan says of containers, and how many things it could not see.
    fn scan(&self, scope: &Scope) -> (Option<Vec<String>>, usize) {
        let mut findings = Findings {
            ports: Vec::new(),
            gpus: Vec::new(),
            verdicts: Vec::new(),
            unknowns: Vec::new(),
            model_containers: None,
        };
        scan(&self.fake.host(), &self.settings, Ok(&self.path()), scope, &mut findings);
        let name = |one: crate::pipeline::OrphanedContainer| one.name;
        let found = findings.model_containers.map(|all| all.into_iter().map(name).collect());
        (found, findings.unknowns.len())
    }

    fn with_keeper<T>(&self, work: impl FnOnce(&Keeper<'_>) -> T) -> T {
        let (host, registry): (Host, PathBuf) = (self.fake.host(), self.path());
        let (settings, models) = (&self.settings, self.models.as_slice());
        work(&Keeper { host: &host, settings, registry: &registry, models, until: None })
    }
}

fn everything() -> Scope {
    Scope::default()
}

fn service(name: &str) -> Scope {
    Scope { services: vec![name.into()], ..Scope::default() }
}

fn listed(number: u8, model: &str, instance: &str) -> Value {
    json!({ "Id": id(number).0, "Names": [format!("/vllm-model-{model}")], "Image": "vllm",
        "State": "running", "NetworkSettings": { "Networks": { "stack": {} } },
        "Labels": { INSTANCE_LABEL: instance, MODEL_LABEL: model, BACKEND_LABEL: "vllm" } })
}

fn made(number: u8, model: &str, instance: &str) -> Value {
    json!({ "Id": id(number).0, "Name": format!("/vllm-model-{model}"),
        "State": { "Status": "exited", "Running": false, "Pid": 0, "ExitCode": 0 },
        "HostConfig": { "RestartPolicy": { "Name": "no" } },
        "Config": { "Labels":
            { INSTANCE_LABEL: instance, MODEL_LABEL: model, BACKEND_LABEL: "vllm" } } })
}

fn gone() -> Act {
    Act::Answer(404, json!({ "message": "No such container: x" }))
}

/// Docker with these containers, told by who knows our installation's id; those of an even number are gone at the second look.
fn docker_with(models: &'static [&'static str], instance: &Arc<Mutex<String>>) -> Fake {
    let instance = Arc::clone(instance);
    Fake::docker(move |path| {
        let instance = instance.lock().unwrap().clone();
        let numbered = || (1..).zip(models);
        if path == "GET /v1.41/containers/json?all=true" {
            let all: Vec<Value> =
                numbered().map(|(number, model)| listed(number, model, &instance)).collect();
            return Act::Answer(200, json!(all));
        }
        let asked = |number| path == format!("GET /v1.41/containers/{}/json", id(number));
        match numbered().find(|(number, _)| asked(*number)) {
            Some((number, _)) if number % 2 == 0 => gone(),
            Some((number, model)) => {
                let mut made = made(number, model, &instance);
                made["State"] = json!({ "Status": "running", "Running": true, "Pid": 1 });
                Act::Answer(200, made)
            }
            None => panic!("asked for {path}"),
        }
    })
}

#[test]
fn no_engine_is_touched_where_no_model_ever_was_or_another_question_is_asked() {
    let Some(house) = House::with(Fake::docker(|_| Act::Answer(200, json!([])))) else { return };
    assert_eq!(house.scan(&everything()), (Some(Vec::new()), 0));
    assert!(!house.path().exists(), "looking makes no registry");
    drop(house.registry());
    assert_eq!(house.scan(&everything()), (Some(Vec::new()), 0));
    house.register("llama");
    let port = Scope { ports: vec!["8000".parse().unwrap()], ..Scope::default() };
    let gpu = Scope { gpus: vec![crate::ident::GpuName::All], ..Scope::default() };
    for scope in [port, gpu, service("aidb")] {
        assert_eq!(house.scan(&scope), (None, 0), "{scope:?}");
    }
    assert_eq!(house.fake.connections(), 0);
    assert_eq!(house.scan(&everything()), (Some(Vec::new()), 0));
    assert!(house.fake.connections() > 0);
}

#[test]
fn an_engine_that_says_nothing_is_unknown_where_there_is_a_model_and_asked_where_there_was_one() {
    let Some(house) = House::with(Fake::docker(|_| Act::Hang)) else { return };
    house.register("llama");
    assert_eq!(house.scan(&everything()), (Some(Vec::new()), 1));
    house.registry().unregister(&"llama".into()).unwrap();
    let before = house.fake.connections();
    assert_eq!(house.scan(&everything()), (Some(Vec::new()), 0));
    assert!(house.fake.connections() > before);
}

#[test]
fn a_registry_that_cannot_be_read_is_unknown() {
    let Some(house) = House::with(Fake::nowhere()) else { return };
    std::fs::create_dir(house.fake.folder.path().join("state")).unwrap();
    std::fs::write(house.path(), "this is no database, whatever its name says it were").unwrap();
    assert_eq!(house.scan(&everything()), (None, 1));
}

#[test]
fn what_is_gone_by_the_second_look_was_not_left_over_and_a_named_model_is_told_alone() {
    let instance = Arc::default();
    let fake = docker_with(&["llama", "qwen", "phi"], &instance);
    let Some(house) = House::with(fake) else { return };
    house.register("llama");
    house.register("phi");
    let all = |names: &[&str]| {
        Some(names.iter().map(|name| format!("vllm-model-{name}")).collect::<Vec<_>>())
    };
    assert_eq!(house.scan(&everything()), (Some(Vec::new()), 0), "another installation's");
    *instance.lock().unwrap() = house.registry().instance_id().unwrap();
    let folder = house.path().parent().unwrap().to_owned();
    let written = || std::fs::metadata(&folder).unwrap().modified().unwrap();
    let before = written();
    assert_eq!(house.scan(&everything()), (all(&["llama", "phi"]), 0));
    assert_eq!(written(), before, "no file is made beside the registry, not for a moment");
    assert_eq!(house.scan(&service("phi")), (all(&["phi"]), 0));
}

/// A leftover of this engine, as a look found it.
fn leftover(house: &House) -> Leftover {
    Leftover {
        engine: house.fake.only(),
        id: id(1),
        name: "vllm-model-llama".to_owned(),
        model: Some("llama".into()),
        backend: Some(BackendName::Vllm),
        state: Phase::Exited,
        kind: Kind::Orphan(Why::RecordedAs(State::Stopped)),
        restart_policy: Some("no".to_owned()),
        networks: Vec::new(),
    }
}

#[test]
fn what_is_needed_by_now_or_is_anothers_gets_no_order() {
    let orders: Arc<Mutex<Vec<String>>> = Arc::default();
    let (told, instance): (_, Arc<Mutex<String>>) = (Arc::clone(&orders), Arc::default());
    let whose = Arc::clone(&instance);
    let fake = Fake::docker(move |path| {
        if path.starts_with("GET") {
            return Act::Answer(200, made(1, "llama", &whose.lock().unwrap()));
        }
        told.lock().unwrap().push(path.to_owned());
        Act::Answer(204, Value::Null)
    });
    let Some(house) = House::with(fake) else { return };
    house.register("llama");
    let clean = || {
        house.with_keeper(|keeper| {
            let interrupts = vec![Interrupt::install().unwrap()];
            keeper.clean(&[leftover(&house)], interrupts, &|_, _| {}).pop().unwrap()
        })
    };
    *instance.lock().unwrap() = "77aa".to_owned();
    let why = clean().unwrap_err();
    assert_eq!(why.why, "it was left alone: it is another installation's (77aa)");

    *instance.lock().unwrap() = house.registry().instance_id().unwrap();
    let us = crate::models::receipt::Worker::ourselves(&Host::live()).unwrap();
    let begin = |registry: &mut Registry| {
        registry.begin(&"llama".into(), State::begin_start, "asked to start", &us).unwrap();
    };
    begin(&mut house.registry());
    let why = clean().unwrap_err();
    assert_eq!(why.why, "it was left alone: model 'llama' is starting by now");
    assert_eq!(*orders.lock().unwrap(), [""; 0]);

    house.registry().settle(&"llama".into(), &us, |state| Ok(state.fail()), "").unwrap();
    assert!(matches!(clean(), Ok(Cleaned::Removed(_))));
    assert_eq!(*orders.lock().unwrap(), [format!("DELETE /v1.41/containers/{}?force=true", id(1))]);
    let events = house.registry().events(Some(&"llama".into()), 10).unwrap();
    let last = events.last().unwrap();
    assert_eq!(last.kind, "cleaned");
    assert!(last.detail.contains("recorded as stopped"), "{}", last.detail);
}

#[test]
fn a_registry_that_cannot_be_read_again_saves_what_was_to_be_removed() {
    let fake = Fake::docker(|path| {
        assert!(path.starts_with("GET"), "{path}");
        Act::Answer(200, made(1, "llama", "5f2c"))
    });
    let Some(house) = House::with(fake) else { return };
    std::fs::create_dir(house.fake.folder.path().join("state")).unwrap();
    std::fs::write(house.path(), "this is no database, whatever its name says it were").unwrap();
    house.with_keeper(|keeper| {
        let interrupts = vec![Interrupt::install().unwrap()];
        let said = keeper.clean(&[leftover(&house)], interrupts, &|_, _| {}).pop().unwrap();
        assert!(said.unwrap_err().is_unknown);
    });
}

/// A network with an endpoint that a model's container left, one that somebody else's did, and two containers.
fn network(freed: bool) -> Value {
    let mut attached = json!({
        "ep-2": { "Name": "web" }, id(3).0: { "Name": "tenant" }, id(4).0: { "Name": "vllm-model-up" },
    });
    if !freed {
        attached["ep-1"] = json!({ "Name": "vllm-model-llama" });
    }
    json!({ "Name": "stack", "Id": id(9).0, "Containers": attached })
}

#[test]
fn of_a_network_only_what_models_left_and_what_was_removed_is_taken_off() {
    let orders: Arc<Mutex<Vec<String>>> = Arc::default();
    let told = Arc::clone(&orders);
    let fake = Fake::docker(move |path| {
        if path.starts_with("GET /v1.41/networks/") {
            return Act::Answer(200, network(told.lock().unwrap().len() == 2));
        }
        if path.starts_with("GET /v1.41/containers/vllm-model-llama/") {
            return gone();
        }
        let order = format!("POST /v1.41/networks/{}/disconnect ", id(9));
        told.lock().unwrap().push(path.strip_prefix(&order).expect("no other order").to_owned());
        Act::Answer(200, Value::Null)
    });
    let Some(house) = House::with(fake) else { return };
    let engine = house.fake.only();
    let sight = Sight { engines: vec![engine], ..Sight::default() };
    let netted = Leftover { networks: vec!["stack".to_owned()], ..leftover(&house) };
    house.with_keeper(|keeper| {
        let (mut all, unknowns) = tenancies(keeper, &sight, &[&netted]);
        assert_eq!(unknowns, []);
        let tenancy = all.remove(0);
        let names = |all: &[(ContainerId, String)]| {
            all.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&tenancy.left_over), ["vllm-model-llama"]);
        assert_eq!(names(&tenancy.others), ["tenant", "vllm-model-up", "web"]);
        let freed = free(keeper, &tenancy, &[id(4)].into());
        assert_eq!(freed.troubles, []);
        assert_eq!(freed.freed, ["vllm-model-llama", "vllm-model-up"]);
        assert_eq!(freed.others, ["tenant", "vllm-model-up", "web"], "as its engine says then");
    });
    let expected = [
        r#"{"Container":"vllm-model-llama","Force":true}"#.to_owned(),
        format!(r#"{{"Container":"{}","Force":true}}"#, id(4)),
    ];
    assert_eq!(*orders.lock().unwrap(), expected);
}

#[test]
fn networks_that_engines_have_of_themselves_are_none_of_the_stacks() {
    let Some(house) = House::with(Fake::docker(|path| panic!("asked for {path}"))) else { return };
    let networks = ["bridge", "host", "none", "podman", "container:web"].map(str::to_owned);
    let netted = Leftover { networks: networks.into(), ..leftover(&house) };
    let sight = Sight { engines: vec![house.fake.only()], ..Sight::default() };
    house.with_keeper(|keeper| {
        assert!(tenancies(keeper, &sight, &[&netted]).0.is_empty());
    });
    assert_eq!(house.fake.connections(), 0);
}
