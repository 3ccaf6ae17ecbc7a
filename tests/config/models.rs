//! Models that are declared: by the names of the command line, key by key, and what is wrong with them.

use super::*;

/// What is declared of a model.
fn model<'l>(loaded: &'l Loaded, name: &str) -> &'l Spec {
    let found = loaded.settings.models.iter().find(|(known, _)| known.0 == name);
    found.map_or_else(|| panic!("no model {name}"), |(_, spec)| spec)
}

#[test]
fn a_model_is_declared_by_the_names_of_the_command_line_and_laid_over_key_by_key() {
    let above = loaded(&[
        (
            "config.yaml",
            "models:\n  llama-70b:\n    backend: vllm\n    model: meta-llama/Llama-2-70b-hf\n    container: true\n    \
             port: 8000\n    host: '::1'\n    gpus: [0, '0000:3b:00.0']\n    memory: 32G\n    cpu: 4.0\n    pids: 4096\n    \
             max_model_len: 8192\n    tensor_parallel: 2\n    quantization: awq\n    extra_args: [--enforce-eager, '--seed', '7']\n    \
             image: vllm/vllm-openai:latest\n    models_dir: /srv/models\n    network: ai\n    engine: podman\n    \
             health: false\n    health_interval: 5s\n    health_failures: 2\n    load_timeout: 10m\n  tiny: { backend: ollama, model: tiny }\n",
        ),
        (
            "conf.d/10.yaml",
            "models: { llama-70b: { memory: 7, cpu: '1.25', gpus: all }, tiny: { enabled: false }, b: { backend: llama.cpp, model: /m.gguf, port: 8081, program: '/opt/a b/llama-server', run_as: llama } }\n",
        ),
    ]);
    let names: Vec<&str> = above.settings.models.iter().map(|(name, _)| name.0.as_str()).collect();
    assert_eq!(names, ["b", "llama-70b"]);
    let expected = Spec {
        backend: BackendName::Vllm,
        model: "meta-llama/Llama-2-70b-hf".to_owned(),
        is_container: true,
        program: None,
        run_as: None,
        port: Port::new(8000),
        host: "::1".parse().unwrap(),
        gpus: vec![GpuName::All],
        memory_bytes: Some(7),
        cpu_milli: Some(1250),
        pids: Some(4096),
        max_model_len: Some(8192),
        tensor_parallel: Some(2),
        quantization: Some(Quantization::Awq),
        extra_args: ["--enforce-eager", "--seed", "7"].map(str::to_owned).to_vec(),
        image: Some("vllm/vllm-openai:latest".to_owned()),
        models_dir: Some("/srv/models".into()),
        network: Some("ai".to_owned()),
        engine: Some(Engine::Podman),
        skips_health: true,
        load_timeout: Some(Duration::from_secs(600)),
        watch: portreeve::backend::spec::Watch {
            interval: Duration::from_secs(5),
            failures: 2,
            ..portreeve::backend::spec::Watch::default()
        },
    };
    assert_eq!(*model(&above, "llama-70b"), expected);
    let by_default = model(&above, "b");
    assert_eq!((by_default.backend, by_default.is_container), (BackendName::LlamaCpp, false));
    assert_eq!(by_default.program.as_deref(), Some(Path::new("/opt/a b/llama-server")));
    assert_eq!(by_default.run_as.as_deref(), Some("llama"));
    assert_eq!(by_default.host.to_string(), "127.0.0.1");
    assert!(!by_default.skips_health);
    assert_show_is_loadable(&above);
    let line = printed(|out| command::check(&above, out));
    assert!(line.starts_with("ok: 11 services, 11 guarded ports, 2 models, files: "), "{line}");
}

#[test]
fn show_says_where_each_value_of_a_model_comes_from() {
    let base = "models:\n  llama:\n    backend: llamacpp\n    model: \"/srv/it's.gguf\"\n    memory: 512M\n    cpu: 1.5\n";
    let above = "models:\n  llama:\n    port: 8001\n    gpus: 0\n    extra_args: [--flash-attn]\n  old: { enabled: false, backend: vllm }\n";
    let etc = Etc::new(&[("config.yaml", base), ("conf.d/10.yaml", above)]);
    let shown = show(&load(&etc.sources()).unwrap()).replace(etc.0.path().to_str().unwrap(), "");
    let expected = "\
models:
  llama:
    backend: llamacpp # /config.yaml:3
    model: '/srv/it''s.gguf' # /config.yaml:4
    port: 8001 # /conf.d/10.yaml:3
    gpus: [0] # /conf.d/10.yaml:4
    memory: 512M # /config.yaml:5
    cpu: 1.500 # /config.yaml:6
    extra_args: ['--flash-attn'] # /conf.d/10.yaml:5
  # old: { enabled: false } # /conf.d/10.yaml:6
patterns:
";
    assert!(shown.contains(expected), "{expected}\nin\n{shown}");
}

#[test]
fn what_cannot_be_read_of_a_model_is_told_key_by_key() {
    let text = "\
models:
  ../x: {}
  a:
    backend: gpt4all
    model: 7
    container: yes
    port: 65536
    host: localhost
    memory: lots
    cpu: 0
    pids: -1
    quantization: int4
    extra_args: [256]
    models_dir: models
    engine: lxc
    modle: m
";
    assert_eq!(
        errors(text),
        "\
config.yaml:2:3: bad model name '../x': expected letters, digits, '.', '_' and '-', beginning with a letter or digit, 48 at most
  2 |   ../x: {}
    |   ^^^^

config.yaml:4:14: expected vllm, llamacpp, ollama, tgi or sglang, found the text 'gpt4all'
  4 |     backend: gpt4all
    |              ^^^^^^^

config.yaml:5:12: expected a name or a path, found the number 7
  5 |     model: 7
    |            ^
hint: put it in quotes: '7'

config.yaml:6:16: expected true or false, found the text 'yes'
  6 |     container: yes
    |                ^^^

config.yaml:7:11: expected a port number from 1 to 65535, found the number 65536
  7 |     port: 65536
    |           ^^^^^

config.yaml:8:11: expected an address such as 127.0.0.1, 0.0.0.0 or '::1', found the text 'localhost'
  8 |     host: localhost
    |           ^^^^^^^^^

config.yaml:9:13: expected an amount such as 32G, 512M or a number of bytes, found the text 'lots'
  9 |     memory: lots
    |             ^^^^

config.yaml:10:10: expected a number of processors such as 4 or 1.5, found the number 0
  10 |     cpu: 0
     |          ^

config.yaml:11:11: expected a whole number from 1, found the number -1
  11 |     pids: -1
     |           ^^

config.yaml:12:19: expected awq or gptq, found the text 'int4'
  12 |     quantization: int4
     |                   ^^^^

config.yaml:13:18: expected an argument, found the number 256
  13 |     extra_args: [256]
     |                  ^^^
hint: put it in quotes: '256'

config.yaml:14:17: expected an absolute path, found the text 'models'
  14 |     models_dir: models
     |                 ^^^^^^

config.yaml:15:13: expected docker or podman, found the text 'lxc'
  15 |     engine: lxc
     |             ^^^

config.yaml:16:5: unknown key 'modle' in model 'a': expected enabled, backend, model, container, program, run_as, port, host, gpus, memory, cpu, pids, max_model_len, tensor_parallel, quantization, extra_args, image, models_dir, network, engine, health, health_interval, health_timeout, health_failures, health_delay or load_timeout
  16 |     modle: m
     |     ^^^^^
hint: did you mean 'model'?"
    );
}

#[test]
fn what_a_registration_would_refuse_is_told_where_it_is_declared() {
    let text = "\
models:
  none: { port: 9 }
  file: { backend: llamacpp, model: /srv/l.gguf, container: true, port: 1000 }
  native: { backend: vllm, model: m, port: 1001, image: x }
  gguf: { backend: llamacpp, model: /m, port: 1002, quantization: awq }
  ours: { backend: vllm, model: m, port: 1003, extra_args: [--port=1] }
  empty: { backend: vllm, model: '-m', port: 1004 }
  box: { backend: vllm, model: m, port: 1005, container: true, program: /opt/vllm }
  root: { backend: vllm, model: m, port: 1006, run_as: root }
";
    assert_eq!(
        errors(text),
        "\
config.yaml:2:3: model 'none' needs the key 'backend'
  2 |   none: { port: 9 }
    |   ^^^^

config.yaml:2:3: model 'none' needs the key 'model'
  2 |   none: { port: 9 }
    |   ^^^^

config.yaml:3:37: model 'file': the model '/srv/l.gguf' is a file, and no folder of models is given
  3 |   file: { backend: llamacpp, model: /srv/l.gguf, container: true, port: 1000 }
    |                                     ^^^^^^^^^^^
hint: name the folder that it is in with 'models_dir'

config.yaml:4:57: model 'native': 'image' is for containers, and this model is a process
  4 |   native: { backend: vllm, model: m, port: 1001, image: x }
    |                                                         ^
hint: leave it out, or set 'container: true'

config.yaml:5:67: model 'gguf': llamacpp cannot be told 'quantization': a GGUF file is quantised already
  5 | …: { backend: llamacpp, model: /m, port: 1002, quantization: awq }
    |                                                              ^^^
hint: leave it out

config.yaml:6:61: model 'ours': the extra argument '--port=1' is not passed on: portreeve sets --port itself
  6 |   ours: { backend: vllm, model: m, port: 1003, extra_args: [--port=1] }
    |                                                             ^^^^^^^^
hint: say it with a key of the model

config.yaml:7:34: model 'empty': the model '-m' cannot be used: its server would take it for an option
  7 |   empty: { backend: vllm, model: '-m', port: 1004 }
    |                                  ^^^^

config.yaml:8:73: model 'box': 'program' is for processes, and this model is a container
  8 | …kend: vllm, model: m, port: 1005, container: true, program: /opt/vllm }
    |                                                              ^^^^^^^^^
hint: leave it out

config.yaml:9:56: model 'root': the user 'root' cannot be used: its server would have every right on this host
  9 |   root: { backend: vllm, model: m, port: 1006, run_as: root }
    |                                                        ^^^^"
    );
}

#[test]
fn a_port_that_two_declared_models_want_is_an_error_at_the_second_wherever_they_are_declared() {
    let etc = Etc::new(&[
        (
            "config.yaml",
            "models:\n  z: { backend: vllm, model: m, port: 9100 }\n  a: { backend: tgi, model: m, port: 9100, host: 0.0.0.0 }\n",
        ),
        ("conf.d/10.yaml", "models: { c: { backend: sglang, model: m, port: 9100 } }\n"),
    ]);
    assert_eq!(
        etc.errors(&etc.sources()),
        "\
config.yaml:3:38: model 'a': port 0.0.0.0:9100 overlaps z's port 127.0.0.1:9100
  3 |   a: { backend: tgi, model: m, port: 9100, host: 0.0.0.0 }
    |                                      ^^^^
hint: give one of the two another 'port', or drop 'z'

conf.d/10.yaml:1:49: model 'c': port 127.0.0.1:9100 is also z's
  1 | models: { c: { backend: sglang, model: m, port: 9100 } }
    |                                                 ^^^^
hint: give one of the two another 'port', or drop 'z'"
    );
    // One that is dropped, or moved by a layer above, is in nobody's way.
    let apart = "models: { z: { enabled: false }, c: { port: 9101 } }\n";
    fs::write(etc.path("conf.d/20.yaml"), apart).unwrap();
    let names: Vec<String> =
        load(&etc.sources()).unwrap().settings.models.into_iter().map(|(name, _)| name.0).collect();
    assert_eq!(names, ["a", "c"]);
}

#[test]
fn a_drop_of_a_model_that_nobody_has_is_an_error() {
    assert_eq!(
        errors("models:\n  lama: { enabled: false }\n"),
        "\
config.yaml:2:3: 'enabled: false' drops model 'lama', which no lower layer has
  2 |   lama: { enabled: false }
    |   ^^^^"
    );
}
