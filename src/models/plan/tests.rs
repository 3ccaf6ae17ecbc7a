use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    backend::{Conflict, claims, conflicts},
    ident::{Endpoint, Port},
};

const GPU: &str = "GPU-2c1e4a5b-0000-1111-2222-0123456789ab";
const PART: &str = "MIG-2c1e4a5b-0000-1111-2222-0123456789ab";

fn docker() -> Version {
    Version { kind: EngineKind::Docker, version: "20.10.24".to_owned() }
}

fn podman(version: &str) -> Version {
    Version { kind: EngineKind::Podman, version: version.to_owned() }
}

fn name(text: &str) -> ModelName {
    ModelName::from(text)
}

fn cards(nvidia: &[&str]) -> Cards {
    Cards { nvidia: nvidia.iter().map(|uuid| (*uuid).to_owned()).collect(), amd: Vec::new() }
}

fn native(backend: BackendName) -> Spec {
    Spec { is_container: false, ..Spec::sample(backend) }
}

fn launch(spec: &Spec) -> Result<Launch, Refusal> {
    let found = if spec.gpus.is_empty() { Cards::default() } else { cards(&[GPU, PART]) };
    container(&name("llama"), "5f2c", spec, &found, &docker())
}

fn body(spec: &Spec) -> Value {
    serde_json::to_value(launch(spec).unwrap().body).unwrap()
}

fn refused(spec: &Spec) -> String {
    let all: Vec<String> = check(&name("llama"), spec).iter().map(ToString::to_string).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

fn full() -> Spec {
    Spec {
        gpus: vec![GpuName::All],
        memory_bytes: Some(32 << 30),
        cpu_milli: Some(4000),
        pids: Some(512),
        models_dir: Some("/srv/models".into()),
        network: Some("cortex_default".to_owned()),
        extra_args: vec!["--enable-prefix-caching".to_owned()],
        ..Spec::sample(BackendName::Vllm)
    }
}

// ---- the container

#[test]
fn a_body_is_what_dockers_api_takes_word_for_word() {
    let expected = json!({
        "Image": "vllm/vllm-openai:latest",
        "Cmd": [
            "meta-llama/Llama-2-70b-hf", "--served-model-name", "meta-llama/Llama-2-70b-hf",
            "--host", "0.0.0.0", "--port", "8000", "--enable-prefix-caching",
        ],
        "Env": ["HF_HOME=/root/.cache/huggingface", "SPT_NOENV=1", "TOKENIZERS_PARALLELISM=false"],
        "Labels": {
            "io.portreeve.backend": "vllm",
            "io.portreeve.instance": "5f2c",
            "io.portreeve.model": "llama",
        },
        "ExposedPorts": {"8000/tcp": {}},
        "StopTimeout": 5,
        "HostConfig": {
            "RestartPolicy": {"Name": "no"},
            "NetworkMode": "cortex_default",
            "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}]},
            "Mounts": [
                {"Type": "bind", "Source": "/srv/models", "Target": "/models", "ReadOnly": true},
                {
                    "Type": "volume", "Source": "portreeve-huggingface",
                    "Target": "/root/.cache/huggingface", "ReadOnly": false,
                },
            ],
            "Memory": 34_359_738_368_u64,
            "NanoCpus": 4_000_000_000_u64,
            "PidsLimit": 512,
            "ShmSize": 10_737_418_240_u64,
            "IpcMode": "private",
            "DeviceRequests": [{"Driver": "", "DeviceIDs": [GPU, PART], "Capabilities": [["gpu"]]}],
        },
    });
    assert_eq!(body(&full()), expected);
    assert_eq!(launch(&full()).unwrap().container, "vllm-model-llama");
}

#[test]
fn nothing_is_limited_that_nobody_limits() {
    let body = body(&Spec::sample(BackendName::Ollama));
    let config = body["HostConfig"].as_object().unwrap();
    for field in ["Memory", "NanoCpus", "PidsLimit", "ShmSize", "DeviceRequests", "NetworkMode"] {
        assert!(!config.contains_key(field), "{field}");
    }
    assert_eq!(body["Cmd"], json!(["serve"]));
}

#[test]
fn no_container_is_ever_started_by_its_engine() {
    for backend in BackendName::ALL {
        let mut spec = Spec::sample(backend);
        spec.models_dir = Some("/srv/models".into());
        assert_eq!(body(&spec)["HostConfig"]["RestartPolicy"]["Name"], "no");
    }
}

#[test]
fn sglangs_image_is_given_the_whole_command() {
    let body = body(&Spec::sample(BackendName::SgLang));
    let command: Vec<&str> =
        body["Cmd"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert!(command.starts_with(&["python3", "-m", "sglang.launch_server", "--model-path"]));
}

#[test]
fn a_container_listens_everywhere_in_its_own_network_and_is_published_where_it_was_asked() {
    let spec = Spec {
        host: "::1".parse().unwrap(),
        port: Port::new(9100),
        ..Spec::sample(BackendName::Tgi)
    };
    let launch = launch(&spec).unwrap();
    let bound = &launch.body.host_config.port_bindings["3000/tcp"];
    assert_eq!((bound[0].host_ip.as_str(), bound[0].host_port.as_str()), ("::1", "9100"));
    assert_eq!(
        (launch.told.address.to_string(), launch.told.port.number()),
        ("0.0.0.0".to_owned(), 3000)
    );
    assert_eq!(launch.reach.address.to_string(), "[::1]:9100");
}

#[test]
fn on_the_hosts_network_a_container_binds_the_port_itself_and_publishes_none() {
    let network = Some("host".to_owned());
    let spec = Spec { network, port: Port::new(9100), ..Spec::sample(BackendName::Vllm) };
    let launch = launch(&spec).unwrap();
    assert!(launch.body.exposed_ports.is_empty());
    assert!(launch.body.host_config.port_bindings.is_empty());
    assert_eq!(launch.body.host_config.network_mode.as_deref(), Some("host"));
    assert_eq!((launch.told.address, launch.told.port.number()), (spec.host, 9100));
}

#[test]
fn where_a_model_listens_everywhere_it_is_asked_over_loopback() {
    for (host, asked) in
        [("0.0.0.0", "127.0.0.1:8000"), ("::", "[::1]:8000"), ("10.0.0.7", "10.0.0.7:8000")]
    {
        let spec = Spec { host: host.parse().unwrap(), ..Spec::sample(BackendName::Vllm) };
        assert_eq!(launch(&spec).unwrap().reach.address.to_string(), asked);
    }
}

#[test]
fn a_file_is_named_by_its_place_in_the_folder_of_models() {
    let told = |model: &str| {
        let models_dir = Some("/srv/models".into());
        let model = model.to_owned();
        launch(&Spec { model, models_dir, ..Spec::sample(BackendName::LlamaCpp) })
            .map(|launch| launch.told.model)
    };
    for model in [
        "q/l.gguf",
        "./q/l.gguf",
        "/srv/models/q/l.gguf",
        "/srv//models/q/./l.gguf",
        "/models/q/l.gguf",
    ] {
        assert_eq!(told(model).unwrap(), "/models/q/l.gguf", "{model}");
    }
    for model in [
        "../l.gguf",
        "q/../../l.gguf",
        "/srv/models/../l.gguf",
        "/etc/passwd",
        "/srv/models2/l.gguf",
    ] {
        assert!(matches!(told(model), Err(Refusal::Outside { .. })), "{model}");
    }
}

#[test]
fn a_name_on_the_hub_is_kept_and_what_it_downloads_outlives_the_container() {
    let hub = launch(&full()).unwrap();
    assert_eq!(hub.told.model, "meta-llama/Llama-2-70b-hf");
    assert_eq!(hub.body.host_config.mounts.len(), 2);
    let file = launch(&Spec { model: "/srv/models/l".to_owned(), ..full() }).unwrap();
    assert_eq!(file.told.model, "/models/l");
    assert_eq!(file.body.host_config.mounts.len(), 1);
}

#[test]
fn the_folder_of_models_is_never_writable() {
    for backend in BackendName::ALL {
        let spec = Spec { models_dir: Some("/srv/models".into()), ..Spec::sample(backend) };
        let mounts = launch(&spec).unwrap().body.host_config.mounts;
        assert!(mounts.iter().all(|mount| mount.read_only == (mount.kind == "bind")), "{backend}");
        assert!(mounts.iter().any(|mount| mount.target == MODELS), "{backend}");
    }
}

// ---- GPUs

fn with_gpus(engine: &Version) -> Result<Vec<DeviceRequest>, Refusal> {
    let spec = Spec { gpus: vec![GpuName::Index(0)], ..Spec::sample(BackendName::Vllm) };
    let launch = container(&name("llama"), "5f2c", &spec, &cards(&[GPU]), engine)?;
    Ok(launch.body.host_config.device_requests)
}

#[test]
fn podman_is_given_cdis_names() {
    for version in ["5.4.0", "5.4.0-rc1", "5.10.2", "6.0.0"] {
        let request = with_gpus(&podman(version)).unwrap();
        let expected = json!([{"Driver": "cdi", "DeviceIDs": [format!("nvidia.com/gpu={GPU}")]}]);
        assert_eq!(serde_json::to_value(request).unwrap(), expected, "{version}");
    }
}

#[test]
fn a_podman_that_would_drop_gpus_without_a_word_is_refused() {
    for version in ["4.3.1", "4.9.3", "5.3.9", "3.54.0", "", "5", "five.four", "v5.4.0"] {
        let error = with_gpus(&podman(version)).unwrap_err();
        assert_eq!(error, Refusal::OldPodman(version.to_owned()));
    }
    let engine = podman("4.3.1");
    let spec = Spec::sample(BackendName::Vllm);
    assert!(container(&name("llama"), "5f2c", &spec, &Cards::default(), &engine).is_ok());
}

#[test]
fn a_model_whose_gpus_were_not_found_does_not_start_without_them() {
    let spec = Spec { gpus: vec![GpuName::Index(7)], ..Spec::sample(BackendName::Vllm) };
    let error = container(&name("a"), "5f2c", &spec, &Cards::default(), &docker()).unwrap_err();
    assert!(error.to_string().starts_with("none of its GPUs (7) was found"), "{error}");
}

#[test]
fn a_model_is_not_spread_over_more_gpus_than_it_has() {
    let spec = Spec { tensor_parallel: Some(4), gpus: vec![GpuName::All], ..full() };
    assert_eq!(launch(&spec).unwrap_err(), Refusal::TooFewCards { wanted: 4, given: 2 });
}

#[test]
fn gpus_of_amd_are_refused_in_a_container_and_named_to_a_process() {
    let found = Cards { nvidia: Vec::new(), amd: vec![0, 2] };
    let spec = Spec { gpus: vec![GpuName::All], ..Spec::sample(BackendName::Vllm) };
    let error = container(&name("a"), "5f2c", &spec, &found, &docker()).unwrap_err();
    assert_eq!(error, Refusal::AmdInContainer);
    let spec = Spec { is_container: false, ..spec };
    let process = process(&name("a"), &spec, &found).unwrap();
    assert_eq!(process.environment["HIP_VISIBLE_DEVICES"], "0,2");
    assert!(!process.environment.contains_key("CUDA_VISIBLE_DEVICES"));
}

#[test]
fn a_gpus_id_that_is_no_uuid_is_passed_to_nobody() {
    let spec = Spec { gpus: vec![GpuName::All], ..native(BackendName::Vllm) };
    for id in ["0", "all", "GPU-1,GPU-2", "", "GPU-2c1e4a5b-0000-1111-2222-0123456789ab,1"] {
        assert!(process(&name("a"), &spec, &cards(&[id])).is_err(), "{id}");
    }
}

// ---- the process

#[test]
fn a_process_gets_the_backends_command_and_sees_its_gpus_only() {
    let spec = Spec {
        gpus: vec![GpuName::All],
        memory_bytes: Some(1 << 30),
        cpu_milli: Some(1500),
        pids: Some(64),
        extra_args: vec!["--seed".to_owned(), "7".to_owned()],
        ..native(BackendName::Vllm)
    };
    let process = process(&name("llama"), &spec, &cards(&[GPU, PART])).unwrap();
    assert_eq!(
        process.command.join(" "),
        "vllm serve meta-llama/Llama-2-70b-hf --served-model-name meta-llama/Llama-2-70b-hf --host 127.0.0.1 \
         --port 8000 --seed 7"
    );
    let environment: Vec<String> =
        process.environment.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let visible = format!("CUDA_VISIBLE_DEVICES={GPU},{PART}");
    assert_eq!(environment, [&visible, "SPT_NOENV=1", "TOKENIZERS_PARALLELISM=false"]);
    let limits = Limits { memory_bytes: Some(1 << 30), cpu_milli: Some(1500), pids: Some(64) };
    assert_eq!(process.limits, limits);
}

#[test]
fn each_backend_starts_as_a_process_by_its_own_command() {
    for (backend, expected) in [
        (BackendName::Vllm, "vllm serve"),
        (BackendName::LlamaCpp, "llama-server --model"),
        (BackendName::Ollama, "ollama serve"),
        (BackendName::Tgi, "text-generation-launcher --model-id"),
        (BackendName::SgLang, "python3 -m sglang.launch_server --model-path"),
    ] {
        let process = process(&name("a"), &native(backend), &Cards::default()).unwrap();
        assert!(process.command.join(" ").starts_with(expected), "{backend}");
    }
}

#[test]
fn a_program_stands_in_the_place_of_the_backends_own() {
    for (backend, expected) in [
        (BackendName::Vllm, "/opt/a b/run serve meta-llama"),
        (BackendName::LlamaCpp, "/opt/a b/run --model"),
        (BackendName::Ollama, "/opt/a b/run serve"),
        (BackendName::Tgi, "/opt/a b/run --model-id"),
        (BackendName::SgLang, "/opt/a b/run -m sglang.launch_server --model-path"),
    ] {
        let spec = Spec { program: Some("/opt/a b/run".into()), ..native(backend) };
        let process = process(&name("a"), &spec, &Cards::default()).unwrap();
        assert_eq!(process.command[0], "/opt/a b/run");
        assert!(process.command.join(" ").starts_with(expected), "{:?}", process.command);
    }
}

// ---- every field of a spec

type Change = fn(&mut Spec);

/// One change per field, each of which must show in the launch or be refused.
fn changes() -> Vec<(&'static str, Change)> {
    // A new field breaks this line: give it a change below.
    let Spec {
        backend: _,
        model: _,
        is_container: _,
        program: _,
        // Its unit's to tell.
        run_as: _,
        port: _,
        host: _,
        gpus: _,
        memory_bytes: _,
        cpu_milli: _,
        pids: _,
        max_model_len: _,
        tensor_parallel: _,
        quantization: _,
        extra_args: _,
        image: _,
        models_dir: _,
        network: _,
        engine: _,
        skips_health: _,
        load_timeout: _,
        // How it is watched is nothing that its server is told.
        watch: _,
    } = Spec::sample(BackendName::Vllm);
    vec![
        ("model", |s| s.model = "other".to_owned()),
        ("program", |s| s.program = Some("/opt/vllm/bin/vllm".into())),
        ("port", |s| s.port = Port::new(8011)),
        ("host", |s| s.host = IpAddr::from([127, 0, 0, 9])),
        ("gpus", |s| s.gpus = vec![GpuName::Index(0)]),
        ("memory_bytes", |s| s.memory_bytes = Some(1 << 30)),
        ("cpu_milli", |s| s.cpu_milli = Some(500)),
        ("pids", |s| s.pids = Some(64)),
        ("max_model_len", |s| s.max_model_len = Some(2048)),
        ("tensor_parallel", |s| s.tensor_parallel = Some(2)),
        ("quantization", |s| s.quantization = Some(crate::backend::Quantization::Gptq)),
        ("extra_args", |s| s.extra_args = vec!["--seed".to_owned()]),
        ("image", |s| s.image = Some("local/other:1".to_owned())),
        ("models_dir", |s| s.models_dir = Some("/srv/other".into())),
        ("network", |s| s.network = Some("stack".to_owned())),
        ("engine", |s| s.engine = Some(Engine::Podman)),
        ("skips_health", |s| s.skips_health = true),
        ("load_timeout", |s| s.load_timeout = Some(Duration::from_secs(7))),
    ]
}

#[test]
fn every_field_of_a_spec_shows_in_the_launch_or_is_refused() {
    for backend in BackendName::ALL {
        let mut spec = Spec::sample(backend);
        spec.models_dir = Some("/srv/models".into());
        let before = format!("{:?}", launch(&spec).unwrap());
        for (field, change) in changes() {
            let mut changed = spec.clone();
            change(&mut changed);
            // Ollama serves whatever is in its store: the model only shows in what its answer has to name.
            let only_in_answer = backend == BackendName::Ollama && field == "model";
            match launch(&changed) {
                Ok(after) if only_in_answer => assert_eq!(after.told.model, "other"),
                Ok(after) => assert_ne!(format!("{after:?}"), before, "{backend} {field}"),
                Err(refusal) => assert!(!refusal.to_string().is_empty()),
            }
        }
    }
}

#[test]
fn what_only_containers_have_is_refused_for_a_process() {
    for (flag, change) in [
        ("--image", (|s| s.image = Some("a:1".to_owned())) as Change),
        ("--models-dir", |s| s.models_dir = Some("/srv".into())),
        ("--network", |s| s.network = Some("host".to_owned())),
        ("--engine", |s| s.engine = Some(Engine::Docker)),
    ] {
        let mut spec = native(BackendName::Vllm);
        change(&mut spec);
        assert!(refused(&spec).starts_with(flag), "{flag}");
    }
}

#[test]
fn what_only_processes_have_is_refused_for_a_container() {
    for (flag, change) in [
        ("--program", (|s| s.program = Some("/opt/vllm/bin/vllm".into())) as Change),
        ("--run-as", |s| s.run_as = Some("vllm".to_owned())),
    ] {
        let mut spec = Spec::sample(BackendName::Vllm);
        change(&mut spec);
        assert!(refused(&spec).starts_with(flag), "{flag}");
    }
}

#[test]
fn a_program_is_an_absolute_path_and_nothing_that_a_unit_could_misread() {
    for path in ["vllm", "./vllm", "", "/opt/", "/", "/opt/v\nllm", "/opt/v\u{7f}"] {
        let spec = Spec { program: Some(path.into()), ..native(BackendName::Vllm) };
        assert!(refused(&spec).starts_with("the program "), "{path}");
    }
    let good = Spec { program: Some("/opt/a b/100%/$x".into()), ..native(BackendName::Vllm) };
    assert_eq!(check(&name("a"), &good), []);
}

#[test]
fn a_model_runs_as_a_user_by_name_and_never_as_root() {
    for user in ["root", "0", "1000", "", "a b", "%u", "-x", "a:b", "ä", "a\nUser=root"] {
        let spec = Spec { run_as: Some(user.to_owned()), ..native(BackendName::Vllm) };
        assert!(refused(&spec).starts_with("the user "), "{user}");
    }
    for user in ["vllm", "_vllm", "svc-model", "first.last"] {
        let spec = Spec { run_as: Some(user.to_owned()), ..native(BackendName::Vllm) };
        assert_eq!(check(&name("a"), &spec), [], "{user}");
    }
}

#[test]
fn a_model_runs_on_the_engine_that_was_named_and_on_no_other() {
    let spec = Spec { engine: Some(Engine::Podman), ..Spec::sample(BackendName::Vllm) };
    assert_eq!(
        launch(&spec).unwrap_err().to_string(),
        "the model is to run on podman, and docker answers there"
    );
    assert!(container(&name("a"), "5f2c", &spec, &Cards::default(), &podman("4.3.1")).is_ok());
}

// ---- what is refused

#[test]
fn what_a_backend_cannot_do_is_refused_with_its_reason() {
    let spec = Spec { tensor_parallel: Some(2), ..native(BackendName::LlamaCpp) };
    assert_eq!(
        refused(&spec),
        "llamacpp cannot be told --tensor-parallel: it spreads a model's layers over all GPUs that it is given\n\
         hint: leave it out"
    );
    let spec = Spec { extra_args: vec!["-v".to_owned()], ..native(BackendName::Ollama) };
    assert!(refused(&spec).starts_with("ollama cannot be told --extra-args"));
    let spec = Spec { tensor_parallel: Some(1), ..native(BackendName::LlamaCpp) };
    assert_eq!(check(&name("a"), &spec), []);
}

#[test]
fn a_limit_of_zero_is_refused_since_engines_take_it_for_none() {
    for change in [
        (|s| s.memory_bytes = Some(0)) as Change,
        |s| s.cpu_milli = Some(0),
        |s| s.pids = Some(0),
        |s| s.memory_bytes = Some(u64::MAX),
    ] {
        let mut spec = Spec::sample(BackendName::Vllm);
        change(&mut spec);
        assert!(refused(&spec).contains(" cannot be "));
    }
}

#[test]
fn a_port_or_address_that_the_registry_does_not_know_cannot_be_slipped_in() {
    use BackendName::{LlamaCpp, SgLang, Tgi, Vllm};
    for (backend, arg) in [
        (Vllm, "--port"),
        (Vllm, "--port=9"),
        (Vllm, "--por=9"),
        (Vllm, "--host"),
        (Vllm, "--uds"),
        (SgLang, "--model_path"),
        (LlamaCpp, "-m"),
        (Tgi, "-p"),
        (Tgi, "-p9"),
        (Tgi, "-p=9"),
        (Tgi, "--hostname"),
    ] {
        let spec = Spec { extra_args: vec![arg.to_owned()], ..native(backend) };
        assert!(refused(&spec).contains("portreeve sets"), "{backend} {arg}");
    }
    for (backend, arg) in [
        (Vllm, "--max-model-len=9"),
        (Vllm, "-tp=2"),
        (LlamaCpp, "--mlock"),
        (LlamaCpp, "-mg"),
        (LlamaCpp, "--port-like"),
        (Tgi, "--master-port=9"),
        (SgLang, "--"),
        (SgLang, ""),
    ] {
        let spec = Spec { extra_args: vec![arg.to_owned()], ..native(backend) };
        assert_eq!(check(&name("a"), &spec), [], "{backend} {arg}");
    }
}

#[test]
fn a_text_that_would_mean_something_else_on_its_way_is_refused() {
    let base = || Spec { models_dir: Some("/srv/m".into()), ..Spec::sample(BackendName::Vllm) };
    for change in [
        (|s| s.model = "-x".to_owned()) as Change,
        |s| s.model = "--trust-remote-code".to_owned(),
        |s| s.model = String::new(),
        |s| s.model = "a\nb".to_owned(),
        |s| s.model = "a\0".to_owned(),
        |s| s.model = "org/../x".to_owned(),
        |s| s.extra_args = vec!["a\0".to_owned()],
        |s| s.image = Some(String::new()),
        |s| s.image = Some("a b".to_owned()),
        |s| s.image = Some("--privileged".to_owned()),
        |s| s.network = Some("container:db".to_owned()),
        |s| s.network = Some("ns:/proc/1/ns/net".to_owned()),
        |s| s.network = Some("none".to_owned()),
        |s| s.network = Some(String::new()),
        |s| s.models_dir = Some("/".into()),
        |s| s.models_dir = Some("/srv/../etc".into()),
        |s| s.models_dir = Some("srv".into()),
        |s| s.models_dir = Some(String::new().into()),
        |s| s.models_dir = Some("/srv,rw".into()),
        |s| s.models_dir = Some("/srv:rw".into()),
    ] {
        let mut spec = base();
        change(&mut spec);
        let said = refused(&spec);
        assert!(said.contains("cannot be used") && !said.contains('\0'), "{said}");
    }
    let ollama = Spec { model: "/srv/m/x".to_owned(), ..native(BackendName::Ollama) };
    assert!(refused(&ollama).contains("names in its own store"));
}

#[test]
fn a_models_name_is_one_that_engines_take() {
    for text in ["", "-x", "a b", "a/b", "../a", "a\n", "ä", "_a", &"a".repeat(49)] {
        assert_eq!(check(&name(text), &Spec::sample(BackendName::Vllm)).len(), 1, "{text:?}");
    }
    for text in ["a", "llama-70b", "Llama_3.1", "7b", &"a".repeat(48)] {
        assert_eq!(check(&name(text), &Spec::sample(BackendName::Vllm)), [], "{text}");
    }
}

#[test]
fn a_file_without_a_folder_is_refused_in_a_container() {
    let said = refused(&Spec { model: "l.gguf".to_owned(), ..Spec::sample(BackendName::LlamaCpp) });
    assert!(said.ends_with("hint: name the folder that it is in with --models-dir"), "{said}");
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[-a-z./_=,: \\n]{0,12}",
        "(--host|--port|--model|-p|/srv/m|\\.\\.|/|=| |,){0,5}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_becomes_more_than_the_one_argument_label_or_mount_that_it_is(
        backend in proptest::sample::select(BackendName::ALL.to_vec()),
        model in any_text(),
        called in any_text(),
        image in any_text(),
        network in any_text(),
        dir in any_text(),
    ) {
        let plain = Spec {
            model: "l".to_owned(),
            models_dir: Some("/srv/m".into()),
            ..Spec::sample(backend)
        };
        let spec = Spec {
            model,
            image: Some(image),
            network: Some(network),
            models_dir: Some(dir.into()),
            ..plain.clone()
        };
        let at = |name: &str, spec: &Spec| {
            container(&ModelName::from(name), "5f2c", spec, &Cards::default(), &docker())
        };
        let one = |change: fn(&mut Spec, &Spec)| {
            let mut changed = plain.clone();
            change(&mut changed, &spec);
            changed
        };
        let expected = at("a", &plain).unwrap().body;
        for changed in [
            one(|s, from| s.model.clone_from(&from.model)),
            one(|s, from| s.image.clone_from(&from.image)),
            one(|s, from| s.network.clone_from(&from.network)),
            one(|s, from| s.models_dir.clone_from(&from.models_dir)),
        ] {
            let Ok(launch) = at("a", &changed) else { continue };
            let body = launch.body;
            prop_assert_eq!(body.cmd.len(), expected.cmd.len());
            let flags = |cmd: &[String]| -> Vec<String> {
                cmd.iter().filter(|word| word.starts_with('-')).cloned().collect()
            };
            prop_assert_eq!(flags(&body.cmd), flags(&expected.cmd));
            prop_assert_eq!(body.env.len(), expected.env.len());
            prop_assert_eq!(&body.labels, &expected.labels);
            prop_assert!(body.host_config.mounts.iter().all(|m| !m.source.contains([',', ':'])));
            let models = launch.told.model;
            prop_assert!(!models.starts_with('/') || models.starts_with(MODELS));
            prop_assert!(!models.split('/').any(|part| part == ".."));
        }
        if let Ok(launch) = at(&called, &plain) {
            prop_assert_eq!(launch.container, format!("{}-model-{}", backend, called));
            prop_assert_eq!(launch.body.labels.len(), 3);
        }
    }
}

// ---- conflicts

fn found(other: &Spec, new: &Spec) -> Vec<String> {
    let all = conflicts(&[(name("one"), other)], &name("two"), new);
    all.iter().map(ToString::to_string).collect()
}

fn at(port: u16, host: &str) -> Spec {
    let host = host.parse().unwrap();
    Spec { port: Port::new(port), host, ..Spec::sample(BackendName::Vllm) }
}

#[test]
fn two_models_at_one_port_are_found_by_their_specs_alone() {
    assert_eq!(
        found(&at(8000, "127.0.0.1"), &at(8000, "127.0.0.1")),
        ["port 127.0.0.1:8000 is also one's"]
    );
    assert_eq!(
        found(&at(8000, "127.0.0.1"), &at(8000, "0.0.0.0")),
        ["port 0.0.0.0:8000 overlaps one's port 127.0.0.1:8000"]
    );
    assert_eq!(found(&at(8000, "127.0.0.1"), &at(8000, "127.0.0.2")), [""; 0]);
    assert_eq!(found(&at(8000, "127.0.0.1"), &at(8001, "127.0.0.1")), [""; 0]);
}

#[test]
fn a_port_that_is_not_named_is_the_backends_own() {
    let unnamed = Spec { port: None, ..Spec::sample(BackendName::LlamaCpp) };
    assert_eq!(found(&at(8080, "127.0.0.1"), &unnamed), ["port 127.0.0.1:8080 is also one's"]);
}

#[test]
fn helper_ports_clash_where_both_are_on_the_hosts_network() {
    let spread =
        |port| Spec { port: Port::new(port), tensor_parallel: Some(2), ..native(BackendName::Tgi) };
    assert_eq!(
        found(&spread(1), &spread(2)),
        ["port 29500 (torch.distributed) is also one's", "port 9000 (metrics) is also one's"]
    );
    let network = Some("host".to_owned());
    let on_host = Spec { is_container: true, network, ..spread(3) };
    assert_eq!(found(&spread(1), &on_host).len(), 2);
    let own_network = Spec { is_container: true, ..spread(3) };
    assert_eq!(found(&spread(1), &own_network), [""; 0]);
    let ray = ["--distributed-executor-backend", "ray"].map(str::to_owned).to_vec();
    let ray = Spec { extra_args: ray, ..native(BackendName::Vllm) };
    assert_eq!(
        found(&at(6379, "127.0.0.1"), &ray),
        ["port 6379 (Ray's head) overlaps one's port 127.0.0.1:6379"]
    );
}

#[test]
fn a_shared_gpu_is_a_warning_and_a_shared_port_an_error() {
    let on = |port, gpus: &[GpuName]| Spec { gpus: gpus.to_vec(), ..at(port, "127.0.0.1") };
    let (zero, one) = (GpuName::Index(0), GpuName::Index(1));
    let clash = |a: &[GpuName], b: &[GpuName]| {
        let (other, new) = (on(1, a), on(2, b));
        let all = conflicts(&[(name("one"), &other)], &name("two"), &new);
        assert!(all.iter().all(|conflict| !conflict.is_error()));
        all.first().map(ToString::to_string)
    };
    let zeros = [zero.clone()];
    let both = [zero, one.clone()];
    assert_eq!(clash(&zeros, &both).as_deref(), Some("one uses GPU 0 too"));
    assert_eq!(clash(&[GpuName::All], &zeros).as_deref(), Some("one uses GPU 0 too"));
    assert_eq!(clash(&[GpuName::All], &[GpuName::All]).as_deref(), Some("one uses GPUs too"));
    assert_eq!(clash(&zeros, &[one]), None);
    assert_eq!(clash(&[], &[GpuName::All]), None);
    let (other, new) = (at(1, "127.0.0.1"), at(1, "127.0.0.1"));
    let all = conflicts(&[(name("one"), &other)], &name("two"), &new);
    assert!(all.iter().all(Conflict::is_error) && all.len() == 1);
}

#[test]
fn a_model_that_is_registered_anew_does_not_clash_with_itself() {
    let spec = at(8000, "127.0.0.1");
    assert_eq!(conflicts(&[(name("two"), &spec)], &name("two"), &spec), []);
}

#[test]
fn what_a_model_claims_can_be_guarded() {
    let claims = claims(&Spec { tensor_parallel: Some(2), ..native(BackendName::Tgi) });
    let endpoints: Vec<Endpoint> = claims.iter().map(|claim| claim.endpoint).collect();
    let texts: Vec<String> = endpoints.iter().map(Endpoint::short).collect();
    assert_eq!(texts, ["127.0.0.1:8000", "29500", "9000"]);
}
