use serde_json::json;

use super::*;
use crate::ident::GpuName;

fn told(model: &str) -> Told {
    Told { model: model.to_owned(), address: IpAddr::from([0, 0, 0, 0]), port: port(8000) }
}

fn full(backend: BackendName) -> Spec {
    Spec {
        model: "org/llama".to_owned(),
        gpus: vec![GpuName::Index(0), GpuName::Index(1)],
        max_model_len: Some(4096),
        tensor_parallel: Some(2),
        quantization: Some(Quantization::Awq),
        ..Spec::sample(backend)
    }
}

fn line(spec: &Spec, model: &str) -> String {
    (spec.backend.backend().arguments)(spec, &told(model)).join(" ")
}

fn extra(backend: BackendName, args: &str) -> Spec {
    let extra_args = args.split_whitespace().map(str::to_owned).collect();
    Spec { extra_args, ..Spec::sample(backend) }
}

fn helpers(spec: &Spec) -> Vec<(u16, &'static str)> {
    let helpers = (spec.backend.backend().helpers)(spec);
    helpers.iter().map(|helper| (helper.port.number(), helper.what)).collect()
}

#[test]
fn each_backend_is_told_all_of_a_spec_in_its_own_words() {
    for (backend, expected) in [
        (
            BackendName::Vllm,
            "/models/l --served-model-name org/llama --host 0.0.0.0 --port 8000 --max-model-len 4096 \
             --tensor-parallel-size 2 --quantization awq",
        ),
        (
            BackendName::LlamaCpp,
            "--model /models/l --alias org/llama --host 0.0.0.0 --port 8000 --ctx-size 4096 --n-gpu-layers 999",
        ),
        (BackendName::Ollama, ""),
        (
            BackendName::Tgi,
            "--model-id /models/l --hostname 0.0.0.0 --port 8000 --max-total-tokens 4096 --max-input-tokens 4095 \
             --num-shard 2 --quantize awq",
        ),
        (
            BackendName::SgLang,
            "--model-path /models/l --served-model-name org/llama --host 0.0.0.0 --port 8000 --context-length 4096 \
             --tp-size 2 --quantization awq",
        ),
    ] {
        assert_eq!(line(&full(backend), "/models/l"), expected, "{backend}");
    }
}

#[test]
fn each_backend_is_told_no_more_than_a_bare_spec_says() {
    for (backend, expected) in [
        (BackendName::Vllm, "m --served-model-name x --host 0.0.0.0 --port 8000"),
        (BackendName::LlamaCpp, "--model m --alias x --host 0.0.0.0 --port 8000"),
        (BackendName::Ollama, ""),
        (BackendName::Tgi, "--model-id m --hostname 0.0.0.0 --port 8000"),
        (BackendName::SgLang, "--model-path m --served-model-name x --host 0.0.0.0 --port 8000"),
    ] {
        let spec = Spec { model: "x".to_owned(), ..Spec::sample(backend) };
        assert_eq!(line(&spec, "m"), expected, "{backend}");
    }
}

#[test]
fn ollama_is_told_by_its_environment() {
    let spec = Spec { models_dir: Some("/srv/ollama".into()), ..full(BackendName::Ollama) };
    let environment = (BackendName::Ollama.backend().environment)(&spec, &told("llama3"));
    let expected = [
        ("OLLAMA_HOST", "0.0.0.0:8000"),
        ("OLLAMA_CONTEXT_LENGTH", "4096"),
        ("OLLAMA_MODELS", "/models"),
        ("OLLAMA_NOPRUNE", "1"),
    ];
    assert_eq!(environment, expected.map(|(key, value)| (key, value.to_owned())));
    let six = Told { address: "::1".parse().unwrap(), ..told("llama3") };
    let environment = (BackendName::Ollama.backend().environment)(&spec, &six);
    assert_eq!(environment.first().unwrap().1, "[::1]:8000");
}

#[test]
fn what_a_backend_cannot_be_told_stands_in_none_of_its_arguments() {
    for backend in BackendName::ALL {
        let cannot = backend.backend().cannot;
        let line = line(&full(backend), "m");
        let has = |wish| cannot.iter().any(|(cannot, _)| *cannot == wish);
        assert_eq!(has(Wish::Quantization), !line.contains("awq"), "{backend}");
        let spread = ["--tensor-parallel-size 2", "--num-shard 2", "--tp-size 2"];
        let is_told = spread.iter().any(|flag| line.contains(flag));
        assert_eq!(has(Wish::TensorParallel), !is_told, "{backend}");
    }
}

#[test]
fn loading_is_neither_ready_nor_sick() {
    let health = BackendName::LlamaCpp.backend().health;
    assert_eq!(health.read(200), Readiness::Ready);
    assert_eq!(health.read(503), Readiness::Loading);
    for status in [204, 301, 401, 404, 500] {
        assert_eq!(health.read(status), Readiness::Sick(status));
    }
}

#[test]
fn each_backends_own_answer_names_what_it_serves() {
    let openai = json!({"object": "list", "data": [{"id": "org/llama", "object": "model"}]});
    let tags = json!({"models": [{"name": "org/llama:latest", "size": 1}, {"name": "b:7b"}]});
    let info = json!({"model_id": "/models/l", "version": "3.3.6"});
    for (backend, answer, expected) in [
        (BackendName::Vllm, &openai, vec!["org/llama"]),
        (BackendName::LlamaCpp, &openai, vec!["org/llama"]),
        (BackendName::Ollama, &tags, vec!["org/llama:latest", "b:7b"]),
        (BackendName::Tgi, &info, vec!["/models/l"]),
        (BackendName::SgLang, &openai, vec!["org/llama"]),
    ] {
        let served = backend.backend().served;
        let ids = (served.read)(answer).unwrap();
        assert_eq!(ids, expected, "{backend}");
        let fits = |id: &str| (served.fits)(&full(backend), &told("/models/l"), id);
        assert!(fits(&ids[0]) && !fits("other/llama") && !fits(""), "{backend}");
    }
}

#[test]
fn another_servers_answer_names_nothing() {
    for answer in [
        json!({}),
        json!([]),
        json!(null),
        json!({"data": "x", "models": 1, "model_id": 7}),
        json!({"data": [{"name": "x"}], "models": [{"id": "x"}], "model_id": null}),
        json!({"data": [{"id": "x"}, {"id": 1}], "models": [{"name": "x"}, {}]}),
    ] {
        for backend in BackendName::ALL {
            assert_eq!((backend.backend().served.read)(&answer), None, "{backend} {answer}");
        }
    }
}

#[test]
fn a_model_that_is_served_under_another_name_is_known_by_that_name() {
    for (backend, args) in [
        (BackendName::Vllm, "--served-model-name=chat"),
        (BackendName::Vllm, "--served_model_name chat"),
        (BackendName::SgLang, "--served-model-name old --served-model-name chat"),
        (BackendName::LlamaCpp, "-a chat"),
        (BackendName::LlamaCpp, "--alias small,chat"),
    ] {
        let spec = extra(backend, args);
        let fits = |id: &str| (backend.backend().served.fits)(&spec, &told("m"), id);
        assert!(fits("chat") && !fits(&spec.model), "{backend} {args}");
    }
}

#[test]
fn helper_ports_are_those_that_a_server_takes_without_asking() {
    use BackendName::{LlamaCpp, Ollama, SgLang, Tgi, Vllm};
    for (backend, args, expected) in [
        (Vllm, "", vec![]),
        (Vllm, "--distributed-executor-backend ray", vec![(6379, "Ray's head")]),
        (Vllm, "--nnodes 2", vec![(29501, TORCH)]),
        (Vllm, "--nnodes 2 --master-port 4000", vec![(4000, TORCH)]),
        (LlamaCpp, "", vec![]),
        (Ollama, "", vec![]),
        (Tgi, "", vec![(9000, "metrics")]),
        (Tgi, "--num-shard 2", vec![(29500, TORCH), (9000, "metrics")]),
        (Tgi, "--master-port=4000 --prometheus-port 9001", vec![(4000, TORCH), (9001, "metrics")]),
        (SgLang, "", vec![]),
        (SgLang, "--nccl-port 4000", vec![(4000, TORCH)]),
        (SgLang, "--dist-init-addr 10.0.0.1:4001", vec![(4001, TORCH)]),
        (SgLang, "--nccl-port", vec![]),
    ] {
        assert_eq!(helpers(&extra(backend, args)), expected, "{backend} {args}");
    }
    let spread = |tensor_parallel, gpus| {
        helpers(&Spec { gpus, tensor_parallel, ..Spec::sample(Tgi) }).len() == 2
    };
    assert!(spread(Some(2), vec![]) && spread(None, vec![GpuName::All]));
    assert!(!spread(Some(1), vec![GpuName::All]) && !spread(None, vec![GpuName::Index(3)]));
}

#[test]
fn every_backend_is_named_after_its_file_and_found_again() {
    for backend in BackendName::ALL {
        assert_eq!(backend.word().parse(), Ok(backend));
        assert_eq!(serde_json::to_value(backend).unwrap(), json!(backend.word()));
        let facts = backend.backend();
        assert!(facts.health.path.starts_with('/') && facts.served.path.starts_with('/'));
        assert!(!facts.command.is_empty() && facts.image.contains(':'));
    }
}
