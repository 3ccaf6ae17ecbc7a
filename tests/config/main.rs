//! The configuration as its user meets it: layers, errors word for word, what `config` prints, who may write the files.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy knows the tests, not their helpers"
)]

mod models;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use portreeve::{
    backend::{BackendName, Quantization, Spec, spec::Engine},
    cli::config as command,
    config::{
        Loaded, Sources, load,
        settings::{
            EngineUse, Engines, ForeignHolder, Gate, GpuNeed, Ladder, Protect, RunsIn, Service,
            Settings,
        },
    },
    ident::{GpuName, Port, ServiceName},
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

/// A directory like `/etc/portreeve`.
struct Etc(TempDir);

impl Etc {
    fn new(files: &[(&str, &str)]) -> Self {
        let etc = Self(tempfile::tempdir().unwrap());
        fs::create_dir(etc.path("conf.d")).unwrap();
        for (name, text) in files {
            fs::write(etc.path(name), text).unwrap();
        }
        etc
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn sources(&self) -> Sources {
        Sources { etc: self.0.path().to_owned(), is_privileged: false, ..Sources::default() }
    }

    /// What is wrong, with the directory's name left out.
    fn errors(&self, sources: &Sources) -> String {
        let errors = load(sources).expect_err("an error").to_string();
        errors.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn loaded(files: &[(&str, &str)]) -> Loaded {
    load(&Etc::new(files).sources()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// What is wrong with this file.
fn errors(text: &str) -> String {
    let etc = Etc::new(&[("config.yaml", text)]);
    etc.errors(&etc.sources())
}

fn service<'l>(loaded: &'l Loaded, name: &str) -> &'l Service {
    loaded.settings.service(&ServiceName::from(name)).unwrap_or_else(|| panic!("no service {name}"))
}

fn ports(loaded: &Loaded, name: &str) -> Vec<String> {
    service(loaded, name).ports.iter().map(ToString::to_string).collect()
}

fn printed(print: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    print(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

// ---- the default inside the binary

#[test]
fn without_any_file_the_founding_stack_is_guarded() {
    let loaded = loaded(&[]);
    let expected: &[(&str, &[&str])] = &[
        ("aidb", &["8091/tcp", "8791/tcp"]),
        ("health-monitor", &[]),
        ("hybrid-coordinator", &["8092/tcp"]),
        ("llama-cpp", &["8080/tcp"]),
        ("mindsdb", &["47334/tcp"]),
        ("nixos-docs", &["8094/tcp"]),
        ("open-webui", &["3001/tcp"]),
        ("postgres", &["5432/tcp"]),
        ("qdrant", &["6333/tcp"]),
        ("ralph-wiggum", &["8098/tcp"]),
        ("redis", &["6379/tcp"]),
    ];
    let found: Vec<&str> = loaded.settings.services.iter().map(|s| s.name.0.as_str()).collect();
    assert_eq!(found, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, expected) in expected {
        assert_eq!(ports(&loaded, name), *expected, "{name}");
        let is_native = ["llama-cpp", "mindsdb", "postgres", "qdrant", "redis"].contains(name);
        let declared = (!is_native).then_some(RunsIn::Container(None));
        assert_eq!(service(&loaded, name).runs_in, declared, "{name}");
    }
    assert!(loaded.settings.protect.is_empty());
}

/// Services with a pattern for this command line; `*` behind those where it is portless.
fn matching(loaded: &Loaded, command_line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for service in &loaded.settings.services {
        for pattern in service.patterns.iter().filter(|p| p.regex.is_match(command_line.as_bytes()))
        {
            names.push(format!("{}{}", service.name, if pattern.is_portless { "*" } else { "" }));
        }
    }
    names
}

#[test]
fn the_default_knows_the_founding_stacks_command_lines() {
    let loaded = loaded(&[]);
    for (command_line, expected) in [
        (
            "python3 -u /app/server.py --config /app/config/config.yaml",
            &["aidb", "hybrid-coordinator"][..],
        ),
        ("/bin/sh /app/start_with_discovery.sh", &["aidb"]),
        ("bash ./start_with_learning.sh", &["hybrid-coordinator"]),
        ("python3 -u /app/tool_discovery_daemon.py", &["aidb*"]),
        (
            "/usr/bin/python3.11 /app/continuous_learning_daemon.py --interval 60",
            &["hybrid-coordinator*"],
        ),
        ("/opt/venv/bin/python -X dev -u self_healing_daemon.py", &["health-monitor*"]),
        // Nor is who starts it somewhere else.
        ("docker run --rm img python3 /app/tool_discovery_daemon.py", &[]),
        ("bash -c ssh gpu2 python3 /app/self_healing_daemon.py", &[]),
        (
            "/usr/bin/python3 /usr/local/bin/uvicorn open_webui.main:app --host 0.0.0.0 --port 3001",
            &["open-webui"],
        ),
        ("python /srv/ralph-wiggum/server.py", &["ralph-wiggum"]),
        // What has the file open is not the daemon.
        ("vim server.py", &[]),
        ("vim /app/tool_discovery_daemon.py", &[]),
        ("tail -f /var/log/self_healing_daemon.py.log", &[]),
        ("python3 -m http.server", &[]),
        ("uvicorn open_webui.main:app --port 8080", &[]),
    ] {
        assert_eq!(matching(&loaded, command_line), expected, "{command_line}");
    }
}

#[test]
fn the_default_knows_the_workers_that_inference_servers_leave_behind() {
    let loaded = loaded(&[]);
    let tgi = "/opt/conda/bin/python3.11 /opt/conda/bin/text-generation-server serve m --uds-path /tmp/text-generation-server";
    for (command_line, expected) in [
        ("VLLM::EngineCore", Some("vllm")),
        ("VLLM::EngineCore_DP0", Some("vllm")),
        ("llama-70b::EngineCore_DP12   ", Some("vllm")),
        ("VLLM::Worker_DP0_PP1_PCP2_TP3_DCP4_EP5", Some("vllm")),
        ("VLLM::APIServer_0\0\0\0", Some("vllm")),
        ("VLLM::APIServer_DP0", Some("vllm")),
        ("VLLM::DPCoordinator", Some("vllm")),
        ("sglang::scheduler_DP0_TP1", Some("sglang")),
        ("sglang::detokenizer", Some("sglang")),
        ("sglang::tokenizer_worker:4242", Some("sglang")),
        ("sgl_diffusion::scheduler_TP0", Some("sglang-diffusion")),
        (tgi, Some("text-generation-inference")),
        ("/usr/local/lib/ollama/llama-server --model /x --port 41523", Some("ollama-llama-server")),
        ("/usr/local/bin/ollama runner --model /x --port 41523", Some("ollama-runner")),
        ("ollama runner", Some("ollama-runner")),
        // Servers, and what only looks like a worker.
        ("vllm serve m --host 0.0.0.0", None),
        ("grep VLLM::EngineCore", None),
        ("Resque::Worker", None),
        ("python -m sglang.launch_server --model-path m", None),
        ("text-generation-launcher --model-id m", None),
        ("llama-server -m model.gguf --port 8080", None),
        ("ollama serve", None),
        ("ray::IDLE", None),
        ("/usr/lib/ray/raylet --raylet_socket_name=x", None),
    ] {
        let found =
            loaded.settings.workers.iter().filter(|w| w.regex.is_match(command_line.as_bytes()));
        assert_eq!(
            found.map(|w| w.name.as_str()).collect::<Vec<_>>(),
            expected.as_slice(),
            "{command_line}"
        );
    }
}

#[test]
fn the_question_whether_any_pattern_matches_has_the_same_answer_as_each_pattern() {
    let loaded = loaded(&[("config.yaml", "services: { odd: { patterns: ['^x.y$'] } }")]);
    let any = portreeve::config::settings::any_of(loaded.settings.patterns()).unwrap();
    // 0xff is no UTF-8: `.` has to be any byte in both.
    assert!(service(&loaded, "odd").patterns[0].regex.is_match(b"x\xffy"));
    assert!(any.is_match(b"x\xffy"));
    assert!(any.is_match(b"VLLM::EngineCore"));
    assert!(!any.is_match(b"/sbin/init"));
}

// ---- errors, word for word

#[test]
fn the_gates_times_and_a_services_way_to_bind_are_laid_over_key_by_key() {
    let above = loaded(&[
        (
            "config.yaml",
            "gate: { timeout: 2m, settle: 1s }\nservices: { redis: { reuse_addr: false } }\n",
        ),
        ("conf.d/10.yaml", "gate: { timeout: 0s }\nservices: { redis: { grace: 1s } }\n"),
    ]);
    let Gate { timeout, settle, .. } = above.settings.gate;
    assert_eq!((timeout, settle), (Duration::ZERO, Duration::from_secs(1)));
    assert!(!service(&above, "redis").reuse_addr);
    assert!(service(&above, "postgres").reuse_addr);
    assert_show_is_loadable(&above);
}

#[test]
fn gpus_are_read_in_every_form_and_laid_over_key_by_key() {
    let above = loaded(&[
        (
            "config.yaml",
            "gate: { gpu_settle: 3s, gpu_free: 50% }\ngpus: { nvml: /opt/nv/libnvidia-ml.so.1, timeout: 1s }\nservices:\n  \
             llama-cpp: { gpus: all }\n  vllm: { gpus: [0, GPU-2C1E4A5B-0000-1111-2222-0123456789ab, '0000:3b:00.0'], gpu_free: 40GiB }\n",
        ),
        (
            "conf.d/10.yaml",
            "gpus: { nvml: off, nvidia_smi: 'off' }\nservices: { llama-cpp: { gpus: 1, gpu_free: 500MiB } }\n",
        ),
    ]);
    let Settings { gate, gpus, .. } = &above.settings;
    assert_eq!((gate.gpu_settle, gate.gpu_free), (Duration::from_secs(3), GpuNeed::Share(50)));
    assert_eq!((&gpus.nvml, &gpus.nvidia_smi), (&EngineUse::Off, &EngineUse::Off));
    assert_eq!(gpus.timeout, Duration::from_secs(1));
    let (llama, vllm) = (service(&above, "llama-cpp"), service(&above, "vllm"));
    assert_eq!(
        (&llama.gpus[..], llama.gpu_free),
        (&[GpuName::Index(1)][..], GpuNeed::Bytes(500 << 20))
    );
    let names: Vec<String> = vllm.gpus.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["0", "GPU-2c1e4a5b-0000-1111-2222-0123456789ab", "0000:3b:00.0"]);
    assert_eq!(vllm.gpu_free, GpuNeed::Bytes(40 << 30));
    assert_eq!(service(&above, "redis").gpu_free, GpuNeed::Share(50));
    assert_show_is_loadable(&above);
}

#[test]
fn what_names_no_gpu_and_no_amount_is_shown_with_the_forms_that_do() {
    assert_eq!(
        errors("services:\n  a: { gpus: [card0], gpu_free: 90 }\n  b: { gpu_free: 101% }\n"),
        "\
config.yaml:2:15: expected a GPU: a number as nvidia-smi shows it, a UUID (GPU-…, MIG-…), a PCI address such as 0000:01:00.0, or 'all'; found the text 'card0'
  2 |   a: { gpus: [card0], gpu_free: 90 }
    |               ^^^^^

config.yaml:2:33: expected a share such as 90%, or an amount such as 40GiB or 500MiB, found the number 90
  2 |   a: { gpus: [card0], gpu_free: 90 }
    |                                 ^^

config.yaml:3:18: expected a share such as 90%, or an amount such as 40GiB or 500MiB, found the text '101%'
  3 |   b: { gpu_free: 101% }
    |                  ^^^^"
    );
}

#[test]
fn a_key_that_is_unknown_is_shown_with_those_that_are_known() {
    assert_eq!(
        errors("defalts: { grace: 5s }\nservices:\n  aidb: { prots: [8091] }\nplugins: {}\n"),
        "\
config.yaml:1:1: unknown key 'defalts' in the configuration: expected defaults, services, models, patterns, protect, engines, gate, gpus or compose
  1 | defalts: { grace: 5s }
    | ^^^^^^^
hint: did you mean 'defaults'?

config.yaml:3:11: unknown key 'prots' in service 'aidb': expected enabled, runs_in, ports, reuse_addr, gpus, gpu_free, patterns, grace or foreign_holder
  3 |   aidb: { prots: [8091] }
    |           ^^^^^
hint: did you mean 'ports'?

config.yaml:4:1: unknown key 'plugins' in the configuration: expected defaults, services, models, patterns, protect, engines, gate, gpus or compose
  4 | plugins: {}
    | ^^^^^^^"
    );
}

#[test]
fn a_key_that_is_given_twice_is_an_error_wherever_it_stands() {
    assert_eq!(
        errors("services:\n  aidb: { grace: 5s, grace: 5s }\n  aidb: {}\nservices: {}\n"),
        "\
config.yaml:2:22: duplicate key 'grace': line 2 sets it already
  2 |   aidb: { grace: 5s, grace: 5s }
    |                      ^^^^^
hint: keep one of the two

config.yaml:3:3: duplicate key 'aidb': line 2 sets it already
  3 |   aidb: {}
    |   ^^^^
hint: keep one of the two

config.yaml:4:1: duplicate key 'services': line 1 sets it already
  4 | services: {}
    | ^^^^^^^^
hint: keep one of the two"
    );
}

#[test]
fn every_port_that_is_none_is_shown_with_the_forms_that_are() {
    assert_eq!(
        errors("services:\n  a:\n    ports: [0, 65536, 80/sctp, '-1', [::1]:8091]\n  b: { ports: 80 }\n"),
        "\
config.yaml:3:13: expected a port number from 1 to 65535, found the number 0
  3 |     ports: [0, 65536, 80/sctp, '-1', [::1]:8091]
    |             ^

config.yaml:3:16: expected a port number from 1 to 65535, found the number 65536
  3 |     ports: [0, 65536, 80/sctp, '-1', [::1]:8091]
    |                ^^^^^

config.yaml:3:23: expected the protocol to be tcp or udp, found the text '80/sctp'
  3 |     ports: [0, 65536, 80/sctp, '-1', [::1]:8091]
    |                       ^^^^^^^

config.yaml:3:32: expected a port such as 8091, 8091/udp, 127.0.0.1:8091 or [::1]:8091/tcp, found the text '-1'
  3 |     ports: [0, 65536, 80/sctp, '-1', [::1]:8091]
    |                                ^^^^

config.yaml:3:38: expected a port such as 8091, 8091/udp, 127.0.0.1:8091 or [::1]:8091/tcp, found a map
  3 |     ports: [0, 65536, 80/sctp, '-1', [::1]:8091]
    |                                      ^
hint: an IPv6 address stands in quotes: '[::1]:8091'

config.yaml:4:15: expected a list of ports, found the number 80
  4 |   b: { ports: 80 }
    |               ^^
hint: write [80]"
    );
}

#[test]
fn a_port_with_two_owners_in_one_layer_is_an_error_at_the_second() {
    assert_eq!(
        errors(
            "services:\n  b: { ports: [1000, '127.0.0.1:1000', 2000/udp] }\n  a: { ports: ['[::]:2000/udp', 2000] }\n"
        ),
        "\
config.yaml:2:22: port 127.0.0.1:1000/tcp is given twice: see line 2
  2 |   b: { ports: [1000, '127.0.0.1:1000', 2000/udp] }
    |                      ^^^^^^^^^^^^^^^^
hint: keep one of the two

config.yaml:3:16: port [::]:2000/udp has two owners in one layer: 'b' (line 2) and 'a'
  3 |   a: { ports: ['[::]:2000/udp', 2000] }
    |                ^^^^^^^^^^^^^^^
hint: keep it in one; a layer above may take it over"
    );
}

#[test]
fn a_duration_without_unit_negative_or_endless_is_an_error() {
    assert_eq!(
        errors("defaults:\n  grace: 5\n  min_age: -5s\n  respawn_watch: 5 parsecs\nservices: { a: { grace: 100h } }\n"),
        "\
config.yaml:2:10: expected a duration such as 5s, 500ms, 2m or 1h, found the number 5
  2 |   grace: 5
    |          ^
hint: write 5s for 5 seconds

config.yaml:3:12: a duration is never negative: expected a duration such as 5s, 500ms, 2m or 1h, found the text '-5s'
  3 |   min_age: -5s
    |            ^^^

config.yaml:4:18: expected a duration such as 5s, 500ms, 2m or 1h, found the text '5 parsecs'
  4 |   respawn_watch: 5 parsecs
    |                  ^^^^^^^^^

config.yaml:5:25: expected a duration of at most 24h, found the text '100h'
  5 | services: { a: { grace: 100h } }
    |                         ^^^^"
    );
}

#[test]
fn a_bad_regular_expression_is_underlined_where_it_is_bad() {
    let patterns = ["'a(b'", "\"a\\t[z\"", "'x*'", "'(a{1000}){1000}'", "42"];
    let list = patterns.map(|p| format!("      - {p}\n")).concat();
    assert_eq!(
        errors(&format!("services:\n  a:\n    patterns:\n{list}")),
        "\
config.yaml:4:11: bad regular expression: unclosed group, at its character 2
  4 |       - 'a(b'
    |           ^

config.yaml:5:9: bad regular expression: unclosed character class, at its character 3
  5 |       - \"a\\t[z\"
    |         ^^^^^^^

config.yaml:6:9: a pattern that matches the empty text matches every process
  6 |       - 'x*'
    |         ^^^^
hint: name something that only this command line has

config.yaml:7:9: the regular expression takes too much memory
  7 |       - '(a{1000}){1000}'
    |         ^^^^^^^^^^^^^^^^^
hint: use smaller repetitions

config.yaml:8:9: expected a regular expression, found the number 42
  8 |       - 42
    |         ^^
hint: put it in quotes: '42'"
    );
}

#[test]
fn a_value_of_the_wrong_type_is_shown_with_what_was_expected() {
    assert_eq!(
        errors("services:\n  a: 5\n  b: { enabled: yes, foreign_holder: kill }\n  c: { patterns: x }\nprotect: {}\n"),
        "\
config.yaml:2:6: expected a map with enabled, runs_in, ports, reuse_addr, gpus, gpu_free, patterns, grace or foreign_holder, found the number 5
  2 |   a: 5
    |      ^

config.yaml:3:17: expected true or false, found the text 'yes'
  3 |   b: { enabled: yes, foreign_holder: kill }
    |                 ^^^

config.yaml:3:38: expected report or reap, found the text 'kill'
  3 |   b: { enabled: yes, foreign_holder: kill }
    |                                      ^^^^

config.yaml:4:18: expected a list of patterns, found the text 'x'
  4 |   c: { patterns: x }
    |                  ^
hint: write [x]

config.yaml:5:10: expected a list of {unit: GLOB} and {exe: GLOB}, found a map
  5 | protect: {}
    |          ^"
    );
    assert_eq!(
        errors("- a\n"),
        "\
config.yaml:1:1: expected a map with defaults, services, models, patterns, protect, engines, gate, gpus or compose, found a list
  1 | - a
    | ^"
    );
}

#[test]
fn names_that_no_service_can_have_are_errors() {
    assert_eq!(
        errors("services:\n  '': {}\n  'a b': {}\n  \"\\e[31mx\": {}\n"),
        "\
config.yaml:2:3: empty service name: expected letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most
  2 |   '': {}
    |   ^^

config.yaml:3:3: bad service name 'a b': expected letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most
  3 |   'a b': {}
    |   ^^^^^

config.yaml:4:3: bad service name '\\u{1b}[31mx': expected letters, digits, '.', '_' and '-', beginning with a letter or digit, 64 at most
  4 |   \"\\e[31mx\": {}
    |   ^^^^^^^^^"
    );
}

#[test]
fn a_place_that_no_service_can_run_in_is_an_error() {
    let text = "\
services:
  a: { runs_in: host }
  b: { runs_in: { container: a, unit: b.service } }
  c: { runs_in: { unit: aidb } }
  d: { runs_in: { container: -x } }
";
    assert_eq!(
        errors(text),
        "\
config.yaml:2:17: expected container, {container: NAME} or {unit: NAME}, found the text 'host'
  2 |   a: { runs_in: host }
    |                 ^^^^

config.yaml:3:17: expected exactly one of container or unit
  3 |   b: { runs_in: { container: a, unit: b.service } }
    |                 ^

config.yaml:4:25: bad unit name 'aidb': expected one with its suffix, such as aidb.service
  4 |   c: { runs_in: { unit: aidb } }
    |                         ^^^^
hint: write aidb.service

config.yaml:5:30: bad container name '-x': expected letters, digits, '_', '.' and '-'
  5 |   d: { runs_in: { container: -x } }
    |                              ^^"
    );
}

#[test]
fn incomplete_patterns_and_rules_are_errors() {
    let text = "\
patterns:
  - { kind: worker, match: b }
  - { name: c, kind: server, match: c }
  - { name: d, kind: worker, match: d }
  - { name: d, kind: worker, match: e }
protect:
  - { exe: sshd }
  - { unit: 'a[' }
  - {}
";
    assert_eq!(
        errors(text),
        "\
config.yaml:2:5: a pattern needs the key 'name'
  2 |   - { kind: worker, match: b }
    |     ^

config.yaml:3:22: expected worker, found the text 'server'
  3 |   - { name: c, kind: server, match: c }
    |                      ^^^^^^

config.yaml:5:13: two patterns are named 'd': see line 4
  5 |   - { name: d, kind: worker, match: e }
    |             ^
hint: give each a name of its own: a name stands for one pattern over all layers

config.yaml:7:12: expected a glob for an absolute path
  7 |   - { exe: sshd }
    |            ^^^^
hint: write **/sshd

config.yaml:8:13: bad glob: unclosed character class; missing ']'
  8 |   - { unit: 'a[' }
    |             ^^^^

config.yaml:9:5: expected exactly one of unit or exe
  9 |   - {}
    |     ^"
    );
}

#[test]
fn a_drop_of_a_service_that_nobody_has_is_an_error() {
    assert_eq!(
        errors("services:\n  qdrnt: { enabled: false }\n"),
        "\
config.yaml:2:3: 'enabled: false' drops service 'qdrnt', which no lower layer has
  2 |   qdrnt: { enabled: false }
    |   ^^^^^
hint: did you mean 'qdrant'?"
    );
}

#[test]
fn the_errors_of_all_files_are_told_at_once() {
    let etc = Etc::new(&[
        ("config.yaml", "a: [1\nb: 2\n"),
        ("conf.d/10-x.yaml", "defaults: { grace: 5 }\n"),
        (
            "conf.d/20-x.yaml",
            "services: { a: { ports: [0] }, b: { ports: [7] }, c: { ports: [7] } }\n",
        ),
    ]);
    let sources = Sources { explicit: Some(etc.path("missing.yaml")), ..etc.sources() };
    assert_eq!(
        etc.errors(&sources),
        "\
config.yaml:2:2: not YAML: illegal placement of ':' indicator
  2 | b: 2
    |  ^

conf.d/10-x.yaml:1:20: expected a duration such as 5s, 500ms, 2m or 1h, found the number 5
  1 | defaults: { grace: 5 }
    |                    ^
hint: write 5s for 5 seconds

conf.d/20-x.yaml:1:26: expected a port number from 1 to 65535, found the number 0
  1 | services: { a: { ports: [0] }, b: { ports: [7] }, c: { ports: [7] } }
    |                          ^

conf.d/20-x.yaml:1:64: port 7/tcp has two owners in one layer: 'b' (line 1) and 'c'
  1 | …vices: { a: { ports: [0] }, b: { ports: [7] }, c: { ports: [7] } }
    |                                                              ^
hint: keep it in one; a layer above may take it over

missing.yaml: cannot be read: no such file or directory"
    );
}

#[test]
fn hostile_yaml_is_refused_shortly_and_quickly() {
    let bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n";
    let many_ports = (1..=60_000).map(|n| format!("{n},")).collect::<Vec<_>>().concat();
    let many_keys = (0..8_000).map(|n| format!("k{n}: 1\n")).collect::<Vec<_>>().concat();
    let many_models = (0..1_000).map(|n| format!("m{n}: {{ backend: vllm, model: m }},"));
    let many_models = many_models.collect::<String>();
    let cases: &[(&str, String, &str)] = &[
        (
            "1,000 models on one port",
            format!("models: {{ {many_models} }}"),
            "port 127.0.0.1:8000 is also m0's",
        ),
        ("deep flow", "[".repeat(50_000), "not YAML: recursion limit exceeded"),
        ("deep blocks", "- ".repeat(50_000), "not YAML: "),
        ("alias bomb", bomb.to_owned(), "aliases (*…) are not understood here"),
        ("NUL", "services: \0\n".to_owned(), "not YAML: unexpected character: `\\u{0}'"),
        (
            "escape sequence",
            "services: \u{1b}[2J\n".to_owned(),
            "not YAML: unexpected character: `\\u{1b}'",
        ),
        (
            "tag",
            "services: !!python/object:os.system {}\n".to_owned(),
            "tags (!…) are not understood here",
        ),
        ("two documents", "services: {}\n---\nservices: {}\n".to_owned(), "a second document"),
        (
            "60,000 ports",
            format!("services: {{ a: {{ ports: [{many_ports}] }} }}"),
            "more than 16384 values",
        ),
        ("10 MB", "#".repeat(10 << 20), "is larger than 1 MiB, which no configuration is"),
        ("8,000 wrong keys", many_keys, "unknown key 'k0'"),
        (
            "a long pattern",
            format!("services: {{ a: {{ patterns: ['{}'] }} }}", "a".repeat(5000)),
            "at most 4096 characters",
        ),
    ];
    for (name, text, expected) in cases {
        let begun = Instant::now();
        let report = errors(text);
        assert!(report.contains(expected), "{name}: {report:.500}");
        assert!(!report.chars().any(|c| c.is_control() && c != '\n'), "{name}: {report:.500}");
        assert!(report.len() < 20_000, "{name}: a report of {} bytes", report.len());
        assert!(begun.elapsed() < Duration::from_secs(20), "{name} took {:?}", begun.elapsed());
    }
}

#[test]
fn text_that_is_no_utf_8_is_refused_with_its_line() {
    let etc = Etc::new(&[]);
    fs::write(etc.path("config.yaml"), b"services: {}\n# caf\xe9\n").unwrap();
    assert_eq!(
        etc.errors(&etc.sources()),
        "config.yaml:2:6: not UTF-8: byte 0xe9\n  2 | # caf\u{fffd}\n    |      ^"
    );
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_no_matter() {
    let loaded =
        loaded(&[("config.yaml", "\u{feff}services:\r\n  mine:\r\n    ports: [9000]\r\n")]);
    assert_eq!(ports(&loaded, "mine"), ["9000/tcp"]);
}

// ---- layers

#[test]
fn a_higher_layer_replaces_fields_and_leaves_the_rest() {
    let etc = Etc::new(&[
        (
            "config.yaml",
            "defaults: { grace: 7s, min_age: 1m }\nservices: { aidb: { runs_in: { unit: aidb.service }, grace: 1s } }\n",
        ),
        ("conf.d/20-b.yaml", "services: { aidb: { grace: 3s, patterns: [] } }\n"),
        ("conf.d/10-a.yaml", "services: { aidb: { grace: 2s, foreign_holder: reap } }\n"),
        ("conf.d/.#20-b.yaml", "not read: [\n"),
        ("conf.d/README", "not read: [\n"),
        (
            "explicit.yaml",
            "defaults: { grace: 9s }\nservices: { new: { ports: [9000, 9000/udp] } }\n",
        ),
    ]);
    let loaded =
        load(&Sources { explicit: Some(etc.path("explicit.yaml")), ..etc.sources() }).unwrap();
    let aidb = service(&loaded, "aidb");
    assert_eq!(aidb.runs_in, Some(RunsIn::Unit("aidb.service".into())));
    assert_eq!(aidb.grace, Duration::from_secs(3));
    assert_eq!(aidb.foreign_holder, ForeignHolder::Reap);
    assert!(aidb.patterns.is_empty());
    assert_eq!(ports(&loaded, "aidb"), ["8091/tcp", "8791/tcp"]);
    assert_eq!(loaded.settings.defaults.grace, Duration::from_secs(9));
    assert_eq!(loaded.settings.defaults.min_age, Duration::from_secs(60));
    assert_eq!(loaded.settings.defaults.respawn_watch, Duration::from_secs(3));
    assert_eq!(
        service(&loaded, "new").grace,
        Duration::from_secs(9),
        "the default is the highest layer's"
    );
    assert_eq!(ports(&loaded, "new"), ["9000/tcp", "9000/udp"]);
    let files: Vec<String> = loaded.layers.iter().map(|l| l.origin.to_string()).collect();
    let files: Vec<&str> = files.iter().map(|f| f.rsplit('/').next().unwrap()).collect();
    assert_eq!(files, ["default", "config.yaml", "10-a.yaml", "20-b.yaml", "explicit.yaml"]);
}

#[test]
fn a_port_goes_to_the_service_of_the_highest_layer() {
    let loaded = loaded(&[
        (
            "config.yaml",
            "services: { mine: { ports: [8091, 9000] }, local: { ports: ['127.0.0.1:6379'] } }\n",
        ),
        ("conf.d/10.yaml", "services: { third: { ports: [8091] } }\n"),
    ]);
    assert_eq!(ports(&loaded, "aidb"), ["8791/tcp"]);
    assert_eq!(ports(&loaded, "mine"), ["9000/tcp"]);
    assert_eq!(ports(&loaded, "third"), ["8091/tcp"]);
    assert_eq!(ports(&loaded, "redis"), [""; 0], "127.0.0.1:6379 is a part of redis's 6379");
    let taken =
        loaded.takeovers.iter().map(|t| format!("{} {} {}", t.endpoint, t.from.value, t.to.value));
    assert_eq!(
        taken.collect::<Vec<_>>(),
        ["8091/tcp mine third", "8091/tcp aidb third", "6379/tcp redis local"]
    );
}

#[test]
fn a_port_returns_when_the_layer_that_took_it_is_overruled() {
    let loaded = loaded(&[
        ("config.yaml", "services: { mine: { ports: [8091] } }\n"),
        ("conf.d/10.yaml", "services: { mine: { ports: [9000] } }\n"),
    ]);
    assert_eq!(ports(&loaded, "aidb"), ["8091/tcp", "8791/tcp"]);
    assert!(loaded.takeovers.is_empty());
}

#[test]
fn a_dropped_service_owns_nothing_and_can_come_back() {
    let drop =
        ("config.yaml", "services: { redis: { enabled: false }, cache: { ports: [6379] } }\n");
    let dropped = loaded(&[drop]);
    assert!(dropped.settings.service(&ServiceName::from("redis")).is_none());
    assert!(dropped.takeovers.is_empty());
    let back = loaded(&[drop, ("conf.d/10.yaml", "services: { redis: { enabled: true } }\n")]);
    assert_eq!(ports(&back, "redis"), [""; 0]);
    assert_eq!(back.takeovers.len(), 1);
}

#[test]
fn two_owners_that_meet_only_in_the_merged_layers_are_an_error_too() {
    let etc = Etc::new(&[
        (
            "config.yaml",
            "services:\n  a: { ports: [9000], enabled: false }\n  b: { ports: [9000] }\n",
        ),
        ("conf.d/10.yaml", "services: { a: { enabled: true } }\n"),
    ]);
    let report = etc.errors(&etc.sources());
    assert!(
        report.starts_with(
            "config.yaml:3:16: port 9000/tcp has two owners in one layer: 'a' (line 2)"
        ),
        "{report}"
    );
}

#[test]
fn workers_are_replaced_by_name_and_protect_rules_add_up() {
    let loaded = loaded(&[
        (
            "config.yaml",
            "patterns: [{ name: vllm, kind: worker, match: '^mine$', grace: 1h }]\nprotect: [{ exe: /usr/sbin/sshd }]\n",
        ),
        ("conf.d/10.yaml", "protect: [{ unit: 'postgresql*.service' }, { exe: /usr/sbin/sshd }]\n"),
    ]);
    let vllm: Vec<_> = loaded.settings.workers.iter().filter(|w| w.name == "vllm").collect();
    assert_eq!(
        (vllm.len(), vllm[0].regex.as_str(), vllm[0].grace),
        (1, "^mine$", Duration::from_secs(3600))
    );
    let [Protect::Exe(exe), Protect::Unit(unit)] = loaded.settings.protect.as_slice() else {
        panic!("{:?}", loaded.settings.protect)
    };
    assert!(exe.is_match("/usr/sbin/sshd") && !exe.is_match("/usr/sbin/sshd2"));
    assert!(unit.is_match("postgresql@15-main.service") && !unit.is_match("redis.service"));
}

#[test]
fn engines_are_found_turned_off_or_named_key_by_key_over_the_layers() {
    let above = loaded(&[
        ("config.yaml", "engines: { docker: /run/other.sock, podman: off, timeout: 500ms }\n"),
        ("conf.d/10.yaml", "engines: { podman: auto }\n"),
    ]);
    let expected = Engines {
        docker: EngineUse::At("/run/other.sock".into()),
        podman: EngineUse::Auto,
        timeout: Duration::from_millis(500),
        ladder: Ladder::default(),
    };
    assert_eq!(above.settings.engines, expected);
    let by_default = loaded(&[]).settings.engines;
    assert_eq!((by_default.docker, by_default.podman), (EngineUse::Auto, EngineUse::Auto));
    assert_eq!(by_default.timeout, Duration::from_secs(3));
    assert_show_is_loadable(&above);
    assert_show_is_loadable(&loaded(&[("config.yaml", "engines: { docker: off, podman: off }\n")]));
    assert_eq!(
        errors("engines: { docker: docker.sock, podman: /run/x.sock, timeout: 0s }\n"),
        "\
config.yaml:1:20: expected auto, off or the path of a socket, found the text 'docker.sock'
  1 | engines: { docker: docker.sock, podman: /run/x.sock, timeout: 0s }
    |                    ^^^^^^^^^^^

config.yaml:1:41: expected auto or off, found the text '/run/x.sock'
  1 | engines: { docker: docker.sock, podman: /run/x.sock, timeout: 0s }
    |                                         ^^^^^^^^^^^

config.yaml:1:63: expected a duration longer than nothing, found the text '0s'
  1 | …gines: { docker: docker.sock, podman: /run/x.sock, timeout: 0s }
    |                                                              ^^"
    );
}

#[test]
fn null_says_nothing() {
    let text = "defaults:\nmodels:\nservices:\n  aidb:\n  redis: { ports: ~, grace: null }\npatterns:\nprotect:\nengines: { docker: ~ }\n";
    let nothing = loaded(&[("config.yaml", text)]);
    assert_eq!(format!("{:?}", nothing.settings), format!("{:?}", loaded(&[]).settings));
}

#[test]
fn a_file_that_is_there_but_cannot_be_read_is_an_error() {
    let etc = Etc::new(&[("conf.d/10.yml", "")]);
    symlink("nowhere", etc.path("config.yaml")).unwrap();
    fs::create_dir(etc.path("conf.d/20.yaml")).unwrap();
    assert_eq!(
        etc.errors(&etc.sources()),
        "\
conf.d/10.yml: is not read here, only *.yaml is
hint: rename it to 'conf.d/10.yaml'

config.yaml: cannot be read: no such file or directory

conf.d/20.yaml: is no regular file"
    );
    let etc = Etc::new(&[]);
    fs::remove_dir(etc.path("conf.d")).unwrap();
    fs::write(etc.path("conf.d"), "").unwrap();
    assert_eq!(etc.errors(&etc.sources()), "conf.d: cannot be read: not a directory");
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_writer() {
    let etc = Etc::new(&[]);
    mknodat(CWD, etc.path("config.yaml"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for is_privileged in [false, rustix::process::geteuid().is_root()] {
        assert_eq!(
            etc.errors(&Sources { is_privileged, ..etc.sources() }),
            "config.yaml: is no regular file"
        );
    }
}

// ---- who may write it

/// Others cannot give files away.
fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: {test}: not root");
    }
    is_root
}

/// Makes a file unfit for a privileged run.
type Spoil = fn(&Etc);

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_privileged_run_refuses_what_others_than_root_may_write() {
    if !is_root("a_privileged_run_refuses_what_others_than_root_may_write") {
        return;
    }
    let cases: &[(&str, Spoil, &str)] = &[
        (
            "the file is writable for all",
            |etc| mode(&etc.path("conf.d/10.yaml"), 0o646),
            "others than root may write 'conf.d/10.yaml' (mode 0646, owner 0:0)\nhint: chmod go-w 'conf.d/10.yaml'",
        ),
        (
            "the file is writable for its group",
            |etc| mode(&etc.path("conf.d/10.yaml"), 0o664),
            "others than root may write 'conf.d/10.yaml' (mode 0664, owner 0:0)\nhint: chmod go-w 'conf.d/10.yaml'",
        ),
        (
            "the file belongs to somebody",
            |etc| chown(etc.path("conf.d/10.yaml"), Some(1234), None).unwrap(),
            "'conf.d/10.yaml' belongs to uid 1234 (mode 0644)\nhint: chown -h root 'conf.d/10.yaml'",
        ),
        (
            "its directory is writable for all",
            |etc| mode(&etc.path("conf.d"), 0o777),
            "others than root may write 'conf.d' (mode 0777, owner 0:0)\nhint: chmod go-w 'conf.d'",
        ),
        (
            "its directory belongs to somebody",
            |etc| chown(etc.path("conf.d"), Some(1234), None).unwrap(),
            "'conf.d' belongs to uid 1234 (mode 0755)\nhint: chown -h root 'conf.d'",
        ),
        (
            "it is a link into a directory that is writable for all",
            |etc| {
                fs::create_dir(etc.path("open")).unwrap();
                fs::rename(etc.path("conf.d/10.yaml"), etc.path("open/real")).unwrap();
                mode(&etc.path("open"), 0o777);
                symlink("../open/real", etc.path("conf.d/10.yaml")).unwrap();
            },
            "others than root may write 'open' (mode 0777, owner 0:0)\nhint: chmod go-w 'open'",
        ),
        (
            "it is somebody's link to root's file",
            |etc| {
                fs::rename(etc.path("conf.d/10.yaml"), etc.path("real")).unwrap();
                symlink(etc.path("real"), etc.path("conf.d/10.yaml")).unwrap();
                lchown(etc.path("conf.d/10.yaml"), Some(1234), None).unwrap();
            },
            "'conf.d/10.yaml' belongs to uid 1234 (mode 0777)\nhint: chown -h root 'conf.d/10.yaml'",
        ),
    ];
    for (name, spoil, expected) in cases {
        let etc = Etc::new(&[("conf.d/10.yaml", "services: { mine: { ports: [9000] } }\n")]);
        let privileged = Sources { is_privileged: true, ..etc.sources() };
        assert!(load(&privileged).is_ok(), "{name}: refused before it is spoilt");
        spoil(&etc);
        let expected = format!("conf.d/10.yaml: refused, since root runs this and {expected}");
        assert_eq!(etc.errors(&privileged), expected, "{name}");
        assert!(load(&etc.sources()).is_ok(), "{name}: an unprivileged run may read it");
    }
}

#[test]
fn a_link_to_itself_ends_the_walk() {
    let etc = Etc::new(&[]);
    symlink("config.yaml", etc.path("config.yaml")).unwrap();
    for is_privileged in [false, rustix::process::geteuid().is_root()] {
        let report = etc.errors(&Sources { is_privileged, ..etc.sources() });
        assert_eq!(report, "config.yaml: cannot be read: too many levels of symbolic links");
    }
}

#[test]
fn a_privileged_run_reads_roots_files_through_sticky_directories_and_links() {
    if !is_root("a_privileged_run_reads_roots_files_through_sticky_directories_and_links") {
        return;
    }
    let etc = Etc::new(&[]);
    // As on NixOS: /etc/portreeve is a link into a store that a group may write, with the sticky bit.
    fs::create_dir_all(etc.path("store/abc-etc/portreeve")).unwrap();
    fs::write(
        etc.path("store/abc-etc/portreeve/config.yaml"),
        "services: { mine: { ports: [9000] } }\n",
    )
    .unwrap();
    mode(&etc.path("store/abc-etc/portreeve/config.yaml"), 0o444);
    mode(&etc.path("store"), 0o1775);
    symlink("store/../store/./abc-etc", etc.path("static")).unwrap();
    symlink(etc.path("static/portreeve"), etc.path("linked")).unwrap();
    let sources = Sources { etc: etc.path("linked"), is_privileged: true, ..Sources::default() };
    assert_eq!(ports(&load(&sources).unwrap(), "mine"), ["9000/tcp"]);
}

// ---- what the command prints

fn show(loaded: &Loaded) -> String {
    printed(|out| command::show(loaded, out))
}

#[test]
fn check_says_what_is_guarded_and_by_which_files() {
    let line = printed(|out| command::check(&loaded(&[]), out));
    assert_eq!(line, "ok: 11 services, 11 guarded ports, files: default\n");
}

#[test]
fn show_says_where_each_value_comes_from() {
    let base = "\
defaults:
  grace: 90s
services:
  redis: { enabled: false }
  postgres:
    grace: 2m
    runs_in: { unit: postgresql.service }
";
    let above = "\
services:
  mine:
    ports: ['[::1]:6333', 8080/udp]
    patterns:
      - \"it's\"
      - { match: \"\\t\", portless: true }
";
    let etc = Etc::new(&[("config.yaml", base), ("conf.d/10.yaml", above)]);
    let shown = show(&load(&etc.sources()).unwrap()).replace(etc.0.path().to_str().unwrap(), "");
    for expected in [
        "\
defaults:
  grace: 90s # /config.yaml:2
  min_age: 10s # default
  respawn_watch: 3s # default
  foreign_holder: report # default
",
        "  redis: { enabled: false } # /config.yaml:4\n",
        "\
  postgres:
    runs_in: { unit: 'postgresql.service' } # /config.yaml:7
    ports: [5432/tcp] # default
    grace: 2m # /config.yaml:6
",
        "  qdrant:\n    ports: [] # default\n",
        "  llama-cpp:\n    ports: [8080/tcp] # default\n",
        "\
  mine:
    ports: ['[::1]:6333/tcp', 8080/udp] # /conf.d/10.yaml:3
    patterns: # /conf.d/10.yaml:5
      - 'it''s' # /conf.d/10.yaml:5
      - { match: \"\\U00000009\", portless: true } # /conf.d/10.yaml:6
",
        "  - { name: 'ollama-runner', kind: worker, match: '^(\\S*/)?ollama runner( |$)' } # default\nprotect: []\n",
        "engines:\n  docker: auto # default\n  podman: auto # default\n  timeout: 3s # default\n  stop_timeout: 10s # default\n  kill_timeout: 5s # default\n  remove_timeout: 10s # default\ngate:\n  timeout: 30s # default\n  settle: 500ms # default\n",
        "# 6333/tcp of qdrant (default) is taken over by mine (/conf.d/10.yaml:3)\n",
    ] {
        assert!(shown.contains(expected), "{expected}\nin\n{shown}");
    }
}

/// What `show` prints loads to the same settings.
fn assert_show_is_loadable(loaded: &Loaded) {
    let text = show(loaded);
    let etc = Etc::new(&[("config.yaml", &text)]);
    let again = load(&etc.sources()).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
    assert_eq!(format!("{:#?}", again.settings), format!("{:#?}", loaded.settings), "{text}");
}

#[test]
fn what_show_prints_is_a_configuration_that_says_the_same() {
    assert_show_is_loadable(&loaded(&[]));
    for example in examples() {
        assert_show_is_loadable(&loaded(&[("config.yaml", &fs::read_to_string(example).unwrap())]));
    }
    let base = "services: { '8091': {}, 'true': { ports: [1] }, 'no': ~, '1.5': ~, x: { enabled: true, ports: [8091, '[::]:1/udp'] } }\n";
    let above = "services: { aidb: { enabled: false }, q: { patterns: [\"a\\n'b\\\"\\u202e\\U0001f600 # : \\\\{\\\\[\", '0', ' x '] } }\n";
    let odd = "services: { q: { grace: 1ms, foreign_holder: reap } }\nprotect: [{ exe: '/a b/**/c' }, { unit: \"a'*\" }]\n";
    assert_show_is_loadable(&loaded(&[
        ("config.yaml", base),
        ("conf.d/10.yaml", above),
        ("conf.d/1 #'\n\u{1b}.yaml", odd),
    ]));
    let long = format!(
        "services: {{ q: {{ patterns: [{{ match: '{}', portless: true }}] }} }}",
        "a".repeat(4096)
    );
    assert_show_is_loadable(&loaded(&[("config.yaml", &long)]));
}

proptest::proptest! {
    #[test]
    fn any_pattern_survives_show(pattern in ".{1,40}", name in "[A-Za-z0-9][A-Za-z0-9._-]{0,8}", grace in 0_u64..=86_400_000) {
        let regex = serde_json::to_string(&regex::escape(&pattern)).unwrap();
        let text = format!("services: {{ {name:?}: {{ grace: {grace}ms, patterns: [{regex}] }} }}");
        // JSON leaves some characters as they are that YAML wants escaped.
        if let Ok(loaded) = load(&Etc::new(&[("config.yaml", &text)]).sources()) {
            assert_show_is_loadable(&loaded);
        }
    }

    #[test]
    fn any_text_of_a_model_survives_show(model in ".{1,40}", argument in ".{0,20}", bytes in 1_u64..1 << 62, milli in 1_u32..1 << 30) {
        let [model, argument] = [model, argument].map(|text| serde_json::to_string(&text).unwrap());
        let cpu = format!("{}.{:03}", milli / 1000, milli % 1000);
        let text = format!("models: {{ m: {{ backend: vllm, model: {model}, extra_args: [{argument}], memory: {bytes}, cpu: {cpu} }} }}");
        if let Ok(loaded) = load(&Etc::new(&[("config.yaml", &text)]).sources()) {
            assert_show_is_loadable(&loaded);
        }
    }

    #[test]
    fn no_text_makes_loading_panic(text in "[a-z:\\[\\]{},&*!|>'\"%@`#\\-?~ \n\t0-9]{0,200}") {
        let _ = load(&Etc::new(&[("config.yaml", &text)]).sources());
    }
}

// ---- schema and examples

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(in_repository("config/examples")).unwrap();
    let files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    assert!(files.len() >= 2);
    files
}

fn schema() -> String {
    printed(|out| command::schema(out))
}

fn validator() -> jsonschema::Validator {
    jsonschema::validator_for(&serde_json::from_str(&schema()).unwrap()).unwrap()
}

/// YAML as another reader sees it.
fn independent(text: &str) -> serde_json::Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn the_published_schema_is_what_config_schema_prints() {
    let published = fs::read_to_string(in_repository("docs/schema/config-v1.json")).unwrap();
    assert_eq!(
        published,
        schema(),
        "write it anew: portreeve config schema > docs/schema/config-v1.json"
    );
}

#[test]
fn every_shipped_file_and_what_show_prints_is_valid_by_the_schema_and_loads() {
    let validator = validator();
    let is_valid = |text: &str, name: &str| {
        let document = independent(text);
        let errors: Vec<String> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");
    };
    for path in examples().into_iter().chain([in_repository("config/default.yaml")]) {
        let text = fs::read_to_string(&path).unwrap();
        is_valid(&text, &path.display().to_string());
        is_valid(&show(&loaded(&[("config.yaml", &text)])), "show");
    }
}

#[test]
fn the_full_example_has_every_key() {
    let text = fs::read_to_string(in_repository("config/examples/full.yaml")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    for object in [
        "",
        "/$defs/Defaults",
        "/$defs/Gate",
        "/$defs/Model",
        "/$defs/Service",
        "/$defs/Worker",
        "/$defs/ComposeEntry/anyOf/1",
    ] {
        let properties =
            schema.pointer(&format!("{object}/properties")).unwrap().as_object().unwrap();
        for key in properties.keys() {
            assert!(text.contains(&format!("{key}:")), "{key} of {object}");
        }
    }
}

#[test]
fn the_schema_refuses_what_loading_refuses() {
    let validator = validator();
    for text in [
        "plugins: {}",
        "models: { a: { port: 8000, modle: m } }",
        "models: { a: { backend: gpt } }",
        "models: { a: { port: 0 } }",
        "models: { a: { port: '8000' } }",
        "models: { a: { pids: 0 } }",
        "models: { a: { memory: lots } }",
        "models: { a: { engine: lxc } }",
        "models: { a: { models_dir: models } }",
        "models: { a: { program: vllm } }",
        "models: { a: { run_as: 'a b' } }",
        "models: { a: { extra_args: --x } }",
        "models: { 'a b': {} }",
        "services: { a: { prots: [1] } }",
        "services: { a: { ports: [0] } }",
        "services: { a: { ports: 80 } }",
        "services: { a: { ports: [80/sctp] } }",
        "services: { 'a b': {} }",
        "services: { a: { grace: 5 } }",
        "services: { a: { grace: -5s } }",
        "services: { a: { runs_in: host } }",
        "services: { a: { runs_in: { unit: aidb } } }",
        "services: { a: { runs_in: { unit: a.service, container: b } } }",
        "services: { a: { patterns: [{ portless: true }] } }",
        "services: { a: { patterns: [42] } }",
        "defaults: { foreign_holder: kill }",
        "patterns: [{ name: a, kind: server, match: x }]",
        "patterns: [{ name: a, match: x }]",
        "protect: [{ exe: sshd }]",
        "protect: [{}]",
        "gate: { timeout: 30 }",
        "gate: { wait: 30s }",
        "services: { a: { reuse_addr: maybe } }",
        "engines: { docker: yes }",
        "engines: { docker: run/docker.sock }",
        "engines: { docker: / }",
        "engines: { podman: /run/podman/podman.sock }",
        "engines: { timeout: 3 }",
        "engines: { stop: {} }",
        "compose: compose.yaml",
        "compose: 7",
        "compose: {}",
        "compose: { file: [] }",
        "compose: { file: /srv/compose.yaml, env: x }",
        "compose: [{ file: /srv/compose.yaml, profiles: ['--x'] }]",
        "[]",
    ] {
        assert!(!validator.is_valid(&independent(text)), "{text}");
        errors(text);
    }
}
