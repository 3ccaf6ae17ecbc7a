//! Models as services: their ports and GPUs are guarded under their names, as if the settings had them.

use std::collections::BTreeMap;

use super::{State, plan::container_name, registry::Record, unit::unit_of};
use crate::{
    backend::{Spec, claims},
    config::settings::{ForeignHolder, RunsIn, Service, Settings},
    ident::{Endpoint, GpuName, ModelName, ServiceName, UnitName},
};

/// What is wanted of each model, by name: what is declared over what is registered.
pub fn wanted(settings: &Settings, records: &[Record]) -> Vec<(ModelName, Spec)> {
    let registered = records.iter().filter_map(|r| Some((r.name.clone(), r.spec.clone()?)));
    let declared = settings.models.iter().cloned();
    registered.chain(declared).collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// Every model by name, with declared ones laid over registered ones; of one that never had a state it is `stopped`.
pub fn all(settings: &Settings, records: Vec<Record>) -> Vec<Record> {
    let mut all = records;
    for (name, spec) in &settings.models {
        let spec = Some(spec.clone());
        match all.iter_mut().find(|record| record.name == *name) {
            Some(record) => (record.spec, record.is_declared) = (spec, true),
            None => all.push(Record {
                name: name.clone(),
                spec,
                state: State::Stopped,
                since_ms: 0,
                why: String::new(),
                worker: None,
                is_declared: true,
            }),
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Guards these models: each is a service of its name, or extends the one that has it. A port that another service has too is
/// the model's alone from now on; of two models it is the declared one's.
///
/// What is a model's alone convicts nobody: it has no pattern, and ends no stranger. A service of its name judges the model's
/// ports as its own, but for a model that is a process: that is not held against where the service is declared to run.
pub fn guard(settings: &mut Settings, models: &[(ModelName, Spec)]) {
    let declared: Vec<ModelName> = settings.models.iter().map(|(name, _)| name.clone()).collect();
    let (first, then): (Vec<_>, Vec<_>) =
        models.iter().partition(|(name, _)| declared.contains(name));
    let mut taken: Vec<Endpoint> = Vec::new();
    for (name, spec) in first.into_iter().chain(then) {
        let mut own: Vec<Endpoint> = Vec::new();
        for claim in claims(spec) {
            if !taken.iter().any(|port| port.overlaps(&claim.endpoint)) {
                taken.push(claim.endpoint);
                own.push(claim.endpoint);
            }
        }
        for service in &mut settings.services {
            service.ports.retain(|port| !own.iter().any(|own| own.overlaps(port)));
        }
        let service = ServiceName(name.0.clone());
        match settings.services.iter_mut().find(|s| s.name == service) {
            Some(service) => extend(service, name, spec, own),
            None => settings.services.push(Service {
                name: service,
                runs_in: runs_in(name, spec),
                own_unit: own_unit(name, spec),
                ports: own,
                reuse_addr: true,
                gpus: spec.gpus.clone(),
                gpu_free: settings.gate.gpu_free,
                patterns: Vec::new(),
                grace: spec.backend.backend().grace,
                foreign_holder: ForeignHolder::Report,
            }),
        }
    }
    settings.services.sort_by(|a, b| a.name.cmp(&b.name));
}

/// Where it surely is when it runs.
fn runs_in(name: &ModelName, spec: &Spec) -> Option<RunsIn> {
    let container = || RunsIn::Container(Some(container_name(name, spec.backend)));
    spec.is_container.then(container)
}

/// Its unit, where that has its server: it may as well be kept in the foreground ('model exec').
fn own_unit(name: &ModelName, spec: &Spec) -> Option<UnitName> {
    (!spec.is_container).then(|| unit_of(name))
}

fn extend(service: &mut Service, name: &ModelName, spec: &Spec, ports: Vec<Endpoint>) {
    service.ports.extend(ports);
    let is_new = |gpu: &&GpuName| !service.gpus.contains(gpu);
    let gpus: Vec<GpuName> = spec.gpus.iter().filter(is_new).cloned().collect();
    service.gpus.extend(gpus);
    service.own_unit = own_unit(name, spec);
    let own = runs_in(name, spec);
    let gives_way = match &service.runs_in {
        // With a pattern it would convict who was only suspected.
        None => service.patterns.is_empty(),
        Some(RunsIn::Container(None)) => true,
        Some(RunsIn::Container(Some(_))) => own.is_none(),
        Some(RunsIn::Unit(_)) => false,
    };
    if gives_way {
        service.runs_in = own;
    }
    if !spec.is_container {
        service.foreign_holder = ForeignHolder::Report;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        backend::BackendName,
        config::settings::{
            Defaults, Engines, Gate, GpuNeed, GpuSources, ServicePattern, compile_pattern,
        },
        ident::Port,
    };

    fn service(name: &str, ports: &[&str]) -> Service {
        Service {
            name: name.into(),
            runs_in: None,
            own_unit: None,
            ports: ports.iter().map(|port| port.parse().unwrap()).collect(),
            reuse_addr: true,
            gpus: Vec::new(),
            gpu_free: GpuNeed::Bytes(7),
            patterns: Vec::new(),
            grace: Duration::from_secs(5),
            foreign_holder: ForeignHolder::Reap,
        }
    }

    fn settings(services: Vec<Service>) -> Settings {
        Settings {
            defaults: Defaults { foreign_holder: ForeignHolder::Reap, ..Defaults::default() },
            services,
            models: Vec::new(),
            unread_models: None,
            workers: Vec::new(),
            protect: Vec::new(),
            engines: Engines::default(),
            gate: Gate::default(),
            gpus: GpuSources::default(),
        }
    }

    fn model(name: &str, port: u16) -> (ModelName, Spec) {
        (name.into(), Spec { port: Port::new(port), ..Spec::sample(BackendName::Vllm) })
    }

    fn process(name: &str, port: u16) -> (ModelName, Spec) {
        let (name, spec) = model(name, port);
        (name, Spec { is_container: false, ..spec })
    }

    fn ports(settings: &Settings) -> Vec<String> {
        let of = |s: &Service| {
            let ports: Vec<String> = s.ports.iter().map(Endpoint::short).collect();
            format!("{}: {}", s.name, ports.join(" "))
        };
        settings.services.iter().map(of).collect()
    }

    #[test]
    fn a_model_is_a_service_of_its_name_without_patterns_that_ends_no_stranger() {
        let mut settings = settings(vec![service("a", &["1"]), service("z", &["2"])]);
        let (name, mut spec) = model("llama", 8000);
        spec.gpus = vec![GpuName::Index(0), GpuName::Index(1)];
        guard(&mut settings, &[(name, spec)]);
        assert_eq!(ports(&settings), ["a: 1", "llama: 127.0.0.1:8000", "z: 2"]);
        let added = settings.service(&"llama".into()).unwrap();
        let container = RunsIn::Container(Some("vllm-model-llama".to_owned()));
        assert_eq!(added.runs_in, Some(container));
        assert_eq!(added.gpus, [GpuName::Index(0), GpuName::Index(1)]);
        assert_eq!((added.gpu_free, added.patterns.len()), (GpuNeed::Share(90), 0));
        assert_eq!(added.grace, BackendName::Vllm.backend().grace);
        assert_eq!(added.foreign_holder, ForeignHolder::Report);
    }

    #[test]
    fn a_process_on_this_host_is_declared_to_run_nowhere_and_guards_what_it_binds_beside_its_port()
    {
        let mut settings = settings(Vec::new());
        let (name, mut spec) = process("llama", 8000);
        spec.backend = BackendName::Tgi;
        guard(&mut settings, &[(name, spec)]);
        let llama = &settings.services[0];
        assert_eq!(llama.runs_in, None);
        assert!(llama.ports.contains(&"9000".parse().unwrap()), "{:?}", llama.ports);
    }

    #[test]
    fn a_port_of_another_service_is_the_models_alone_and_the_service_keeps_the_rest() {
        let mut settings =
            settings(vec![service("llama-cpp", &["8080", "8081", "192.0.2.1:8000", "8000/udp"])]);
        guard(&mut settings, &[model("m", 8080), model("n", 8000)]);
        assert_eq!(
            ports(&settings),
            ["llama-cpp: 8081 192.0.2.1:8000 8000/udp", "m: 127.0.0.1:8080", "n: 127.0.0.1:8000"]
        );
    }

    #[test]
    fn a_service_of_the_models_name_is_extended_and_no_port_or_gpu_stands_there_twice() {
        let mut llama = service("llama", &["8000", "9"]);
        llama.gpus = vec![GpuName::Index(0)];
        let mut settings = settings(vec![llama]);
        let (name, mut spec) = model("llama", 8000);
        spec.gpus = vec![GpuName::Index(0), GpuName::Index(1)];
        guard(&mut settings, &[(name, spec)]);
        assert_eq!(ports(&settings), ["llama: 9 127.0.0.1:8000"]);
        let llama = &settings.services[0];
        assert_eq!(llama.gpus, [GpuName::Index(0), GpuName::Index(1)]);
        // What is typed of it stays.
        assert_eq!((llama.gpu_free, llama.grace), (GpuNeed::Bytes(7), Duration::from_secs(5)));
        assert_eq!(llama.foreign_holder, ForeignHolder::Reap);
    }

    /// Where a service runs by declaration once a model has its name.
    fn extended(runs_in: Option<RunsIn>, has_pattern: bool, is_container: bool) -> Service {
        let mut llama = service("llama", &["9"]);
        llama.runs_in = runs_in;
        let regex = compile_pattern("llama").unwrap();
        llama.patterns.extend(has_pattern.then_some(ServicePattern { regex, is_portless: false }));
        let mut settings = settings(vec![llama]);
        let model = if is_container { model("llama", 8000) } else { process("llama", 8000) };
        guard(&mut settings, &[model]);
        settings.services.remove(0)
    }

    #[test]
    fn a_models_process_is_never_held_against_where_a_service_of_its_name_runs() {
        let in_container = || RunsIn::Container(Some("cache".to_owned()));
        for runs_in in [RunsIn::Container(None), in_container()] {
            let llama = extended(Some(runs_in), true, false);
            assert_eq!((llama.runs_in, llama.foreign_holder), (None, ForeignHolder::Report));
        }
        let named = Some(RunsIn::Container(Some("vllm-model-llama".to_owned())));
        assert_eq!(extended(None, true, true).runs_in, None, "it would convict who is suspected");
        assert_eq!(extended(None, false, true).runs_in, named);
        assert_eq!(extended(Some(RunsIn::Container(None)), true, true).runs_in, named);
        assert_eq!(extended(Some(in_container()), true, true).runs_in, Some(in_container()));
        let unit = Some(RunsIn::Unit("llama.service".into()));
        assert_eq!(extended(unit.clone(), true, false).runs_in, unit);
    }

    #[test]
    fn what_is_declared_lies_over_what_is_registered_and_has_the_port_that_both_want() {
        let record = |(name, spec): (ModelName, Spec), is_known: bool| Record {
            name,
            spec: is_known.then_some(spec),
            state: State::Stopped,
            since_ms: 0,
            why: String::new(),
            worker: None,
            is_declared: false,
        };
        let mut settings = settings(Vec::new());
        settings.models = vec![model("b", 1), model("z", 2)];
        let records = [
            record(model("a", 2), true),
            record(model("b", 9), true),
            record(model("gone", 3), false),
            record(model("z", 9), false),
        ];
        let all = wanted(&settings, &records);
        assert_eq!(all, [model("a", 2), model("b", 1), model("z", 2)]);
        guard(&mut settings, &all);
        assert_eq!(ports(&settings), ["a: ", "b: 127.0.0.1:1", "z: 127.0.0.1:2"]);
    }
}
