use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::{
    backend::{BackendName, Quantization},
    ident::{GpuName, Port},
};

fn native() -> Spec {
    Spec { is_container: false, ..Spec::sample(BackendName::Vllm) }
}

fn contained() -> Spec {
    Spec::sample(BackendName::Vllm)
}

fn systems() -> Surroundings {
    Surroundings {
        manager: Manager::System,
        program: "/usr/bin/portreeve".into(),
        config: None,
        groups: vec!["render"],
        is_offline: false,
    }
}

fn users() -> Surroundings {
    Surroundings { manager: Manager::User(1000), ..systems() }
}

fn of(spec: &Spec, surroundings: &Surroundings) -> String {
    text(&"llama".into(), spec, surroundings)
}

/// Every value of a key, in order.
fn all<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.collect()
}

fn one<'t>(text: &'t str, key: &str) -> &'t str {
    let all = all(text, key);
    assert_eq!(all.len(), 1, "{key}: {all:?}\n{text}");
    all[0]
}

fn keys(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty());
    lines.map(|line| line.split_once('=').expect(line).0).collect()
}

// ---- its life

#[test]
fn a_process_is_gated_kept_watched_and_started_again() {
    let text = of(&native(), &systems());
    assert_eq!(one(&text, "Requires"), "portreeve-gate@llama.service");
    assert!(
        one(&text, "After").starts_with("portreeve-gate@llama.service portreeve-shutdown.service ")
    );
    for (key, expected) in [
        ("ExecStartPre", "+/usr/bin/portreeve model step begin llama"),
        ("ExecStart", "/usr/bin/portreeve model exec llama"),
        ("ExecStartPost", "+/usr/bin/portreeve model step up llama"),
        ("ExecStopPost", "+/usr/bin/portreeve model step down llama"),
        ("Type", "notify"),
        ("NotifyAccess", "exec"),
        ("FileDescriptorStoreMax", "4"),
        ("KillMode", "mixed"),
        ("WatchdogSec", "60"),
        ("WatchdogSignal", "SIGTERM"),
        ("Restart", "on-failure"),
        ("RestartSec", "10"),
        ("RestartPreventExitStatus", "2"),
        ("DynamicUser", "yes"),
        ("WantedBy", "portreeve-models.target"),
    ] {
        assert_eq!(one(&text, key), expected);
    }
    assert_eq!(unit_of(&"llama-70b_1.x".into()).0, "portreeve-model-llama-70b_1.x.service");
}

#[test]
fn a_container_comes_back_by_nobody_but_who_says_so_and_is_not_tied_to_its_engine() {
    for (engine, wants) in [
        (None, vec![]),
        (Some(Engine::Docker), vec!["docker.service"]),
        (Some(Engine::Podman), vec!["podman.socket"]),
    ] {
        let text = of(&Spec { engine, ..contained() }, &systems());
        assert_eq!([one(&text, "Restart"), one(&text, "StartLimitIntervalSec")], ["no", "0"]);
        assert!(one(&text, "After").ends_with(" docker.service podman.service podman.socket"));
        assert_eq!(all(&text, "Wants"), wants);
        assert_eq!(one(&text, "Requires"), "portreeve-gate@llama.service");
        for key in ["BindsTo", "PartOf", "RestartSec", "User", "DynamicUser", "CacheDirectory"] {
            assert!(all(&text, key).is_empty(), "{key}");
        }
        assert_eq!(one(&text, "CapabilityBoundingSet"), "");
    }
}

#[test]
fn a_stop_and_a_start_wait_for_the_grace_period_of_the_backend() {
    for backend in BackendName::ALL {
        let grace = backend.backend().grace.as_secs();
        for spec in [Spec::sample(backend), Spec { is_container: false, ..Spec::sample(backend) }] {
            let text = of(&spec, &systems());
            assert_eq!(one(&text, "TimeoutStopSec"), (grace + 60).to_string());
            assert_eq!(one(&text, "TimeoutStartSec"), (grace + 120).to_string());
        }
    }
}

#[test]
fn the_start_limit_is_longer_than_the_slowest_starts_that_fail() {
    let day = Duration::from_secs(24 * 3600);
    for (load, failures) in
        [(None, 3), (Some(Duration::from_millis(7_200_500)), 10), (Some(day), 1000)]
    {
        let watch = Watch { failures, delay: day, ..Watch::default() };
        let spec = Spec { load_timeout: load, watch, ..native() };
        let text = of(&spec, &systems());
        let asked = Duration::from_secs(30 + 10) * failures;
        let load = plan::reach_of(&spec).load_timeout;
        let slowest = load + day + asked + Duration::from_secs(5 + 10);
        let interval: u64 = one(&text, "StartLimitIntervalSec").parse().unwrap();
        let burst: u32 = one(&text, "StartLimitBurst").parse().unwrap();
        assert!(Duration::from_secs(interval) > slowest * burst, "{interval}");
    }
    let watch = Watch { failures: u32::MAX, interval: day, ..Watch::default() };
    let text = of(&Spec { load_timeout: Some(Duration::MAX), watch, ..native() }, &systems());
    assert_eq!(one(&text, "StartLimitIntervalSec"), "315360000");
}

// ---- every wish

type Change = fn(&mut Spec);

/// A change of each field, and the line that it makes; none = the server is told by `model exec`, or the engine.
fn changes() -> Vec<(Change, bool, Option<&'static str>)> {
    // A new field breaks this line: say below which line it becomes.
    let Spec {
        backend: _,
        model: _,
        is_container: _,
        program: _,
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
        watch: _,
    } = native();
    let (process, container) = (false, true);
    vec![
        (|s| s.backend = BackendName::Tgi, process, Some("TimeoutStopSec=155")),
        (
            |s| s.model = "org/other".to_owned(),
            process,
            Some("Description=Model llama: org/other (vllm, 127.0.0.1:8000)"),
        ),
        (
            |s| s.model = "/srv/a b/%x".to_owned(),
            process,
            Some("RequiresMountsFor=\"/srv/a b/%%x\""),
        ),
        (
            |s| s.program = Some("/opt/vllm/bin/vllm".into()),
            process,
            Some("RequiresMountsFor=/opt/vllm/bin/vllm"),
        ),
        (|s| s.run_as = Some("vllm".to_owned()), process, Some("User=vllm")),
        (|s| s.port = Port::new(443), process, Some("AmbientCapabilities=CAP_NET_BIND_SERVICE")),
        (|s| s.host = IpAddr::from([10, 0, 0, 9]), process, Some("Wants=network-online.target")),
        (
            |s| s.host = IpAddr::from([10, 0, 0, 9]),
            container,
            Some(
                "IPAddressAllow=localhost 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 10.0.0.9",
            ),
        ),
        (|s| s.gpus = vec![GpuName::Index(0)], process, Some("DeviceAllow=char-nvidia* rw")),
        (|s| s.memory_bytes = Some(32 << 30), process, Some("MemoryMax=32G")),
        (|s| s.memory_bytes = Some(32 << 30), process, Some("MemoryHigh=28G")),
        (|s| s.cpu_milli = Some(4000), process, Some("CPUQuota=400%")),
        (|s| s.cpu_milli = Some(1255), process, Some("CPUQuota=125.5%")),
        (|s| s.pids = Some(512), process, Some("TasksMax=512")),
        (
            |s| s.models_dir = Some("/srv/models".into()),
            container,
            Some("RequiresMountsFor=/srv/models"),
        ),
        (|s| s.engine = Some(Engine::Docker), container, Some("Wants=docker.service")),
        (
            |s| s.load_timeout = Some(Duration::from_secs(60)),
            process,
            Some("StartLimitIntervalSec=1335"),
        ),
        (|s| s.watch.failures = 1, process, Some("StartLimitIntervalSec=5135")),
        (|s| s.max_model_len = Some(1), process, None),
        (|s| s.tensor_parallel = Some(2), process, None),
        (|s| s.quantization = Some(Quantization::Awq), process, None),
        (|s| s.extra_args = vec!["--seed".to_owned()], process, None),
        (|s| s.skips_health = true, process, None),
        (|s| s.image = Some("a:1".to_owned()), container, None),
        (|s| s.network = Some("stack".to_owned()), container, None),
        (|s| s.memory_bytes = Some(1 << 30), container, None),
        (|s| s.cpu_milli = Some(500), container, None),
        (|s| s.pids = Some(64), container, None),
        (
            |s| s.gpus = vec![GpuName::All],
            container,
            Some(
                "# Serves meta-llama/Llama-2-70b-hf with vllm at 127.0.0.1:8000 in a container, on GPU all.",
            ),
        ),
    ]
}

#[test]
fn every_wish_becomes_a_line_or_is_told_by_the_main_process() {
    for (change, is_container, line) in changes() {
        let before = if is_container { contained() } else { native() };
        let mut spec = before.clone();
        change(&mut spec);
        let (before, after) = (of(&before, &systems()), of(&spec, &systems()));
        match line {
            Some(line) => {
                assert!(after.lines().any(|l| l == line), "{line}\n{after}");
                assert!(!before.lines().any(|l| l == line), "{line}");
            }
            None => assert_eq!(before, after),
        }
    }
}

#[test]
fn what_it_may_use_is_slowed_down_before_it_is_ended() {
    let gib = |n: u64| n << 30;
    for (max, high) in [
        (gib(32), gib(28)),
        (gib(64), gib(60)),
        (gib(128), gib(120)),
        // 4 GiB less would be next to nothing.
        (gib(16), gib(14)),
        (gib(4), gib(4) - (gib(1) >> 1)),
        (1, 1),
        (u64::MAX, u64::MAX - u64::MAX / 16),
    ] {
        assert_eq!(max - memory_margin(max), high, "{max}");
    }
    assert_eq!([amount(gib(32)), amount(3 << 19), amount(1025)], ["32G", "1536K", "1025"]);
}

#[test]
fn without_a_gpu_no_device_is_seen_and_with_one_those_of_each_maker() {
    let text = of(&native(), &systems());
    assert_eq!(one(&text, "PrivateDevices"), "yes");
    assert!(all(&text, "DeviceAllow").is_empty());
    let spec = Spec { gpus: vec![GpuName::All], ..native() };
    let text = of(&spec, &systems());
    assert!(all(&text, "PrivateDevices").is_empty());
    assert_eq!(all(&text, "DeviceAllow"), ["char-nvidia* rw", "char-kfd rw", "char-drm rw"]);
    assert_eq!(one(&text, "SupplementaryGroups"), "render");
    let text = of(&spec, &Surroundings { groups: Vec::new(), ..systems() });
    assert!(all(&text, "SupplementaryGroups").is_empty());
}

#[test]
fn each_backend_keeps_what_it_downloads_in_the_models_own_cache() {
    let mut variables = BTreeSet::new();
    for backend in BackendName::ALL {
        let spec = Spec { is_container: false, ..Spec::sample(backend) };
        let text = of(&spec, &systems());
        assert_eq!(one(&text, "CacheDirectory"), "portreeve/llama");
        let environment = all(&text, "Environment");
        assert!(environment[0].starts_with("HOME=%C/portreeve/llama "));
        assert!(environment.len() > 1, "{backend}");
        for line in environment {
            let values = line.split(' ').map(|word| word.split_once('=').unwrap().1);
            assert!(values.clone().all(|value| value.starts_with("%C/portreeve/llama")), "{line}");
            variables.insert(line.split('=').next().unwrap().to_owned());
        }
        // What 'model exec' sets itself is not set twice.
        let process = plan::process(&"llama".into(), &spec, &plan::Cards::default()).unwrap();
        assert!(process.environment.keys().all(|key| !variables.contains(*key)));
        assert!(all(&of(&spec, &users()), "Environment").is_empty());
    }
    for known in ["HF_HOME", "VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "OLLAMA_MODELS"] {
        assert!(variables.contains(known), "{known}");
    }
}

#[test]
fn a_users_unit_has_only_what_works_there_and_says_what_is_left_out() {
    let allowed = [
        "Description",
        "Documentation",
        "Requires",
        "After",
        "Wants",
        "StartLimitIntervalSec",
        "StartLimitBurst",
        "Type",
        "NotifyAccess",
        "FileDescriptorStoreMax",
        "ExecStartPre",
        "ExecStart",
        "ExecStartPost",
        "ExecStopPost",
        "Restart",
        "RestartSec",
        "RestartPreventExitStatus",
        "KillMode",
        "WatchdogSec",
        "WatchdogSignal",
        "TimeoutStartSec",
        "TimeoutStopSec",
        "MemoryMax",
        "MemoryHigh",
        "MemorySwapMax",
        "OOMPolicy",
        "CPUQuota",
        "CPUWeight",
        "TasksMax",
        "LimitNOFILE",
        "LimitMEMLOCK",
        "LimitCORE",
        "RestrictAddressFamilies",
        "MemoryDenyWriteExecute",
        "SystemCallFilter",
        "SystemCallErrorNumber",
        "SystemCallArchitectures",
        "NoNewPrivileges",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "UMask",
        "WantedBy",
    ];
    let full = Spec {
        gpus: vec![GpuName::All],
        memory_bytes: Some(1 << 35),
        cpu_milli: Some(1),
        host: IpAddr::from([10, 0, 0, 9]),
        port: Port::new(80),
        run_as: Some("vllm".to_owned()),
        model: "/srv/m".to_owned(),
        ..native()
    };
    for spec in [full, Spec { engine: Some(Engine::Podman), ..contained() }] {
        let text = of(&spec, &users());
        for key in keys(&text) {
            assert!(allowed.contains(&key), "{key}");
        }
        assert!(text.contains("# Left out, since a user's manager"), "{text}");
        assert!(!one(&text, "After").contains("shutdown"), "{text}");
    }
}

// ---- hostile texts

/// A command as systemd splits it (its basic/extract-word.c), specifiers and variables replaced by themselves.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_in, mut any) = (Vec::new(), Vec::new(), false, false);
    let mut rest = line.bytes().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'"' => (is_in, any) = (!is_in, true),
            b' ' if !is_in => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            b'\\' => match rest.next().unwrap() {
                b'x' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    word.push(u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap());
                }
                byte => word.push(byte),
            },
            byte @ (b'%' | b'$') => {
                assert_eq!(rest.next(), Some(byte), "{line}");
                word.push(byte);
            }
            byte => (any, ()) = (true, word.push(byte)),
        }
    }
    assert!(!is_in, "{line}");
    if any {
        words.push(word);
    }
    words.into_iter().map(|word| String::from_utf8(word).unwrap()).collect()
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof!["[a\\\\\"'%$; \n\r\t{}=#\\[\\]é\u{1}\u{7f}\u{85}\u{2028}-]{0,12}", any::<String>()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_a_line_of_its_own_or_another_word(
        called in hostile(),
        model in hostile(),
        program in hostile(),
        config in hostile(),
        own in hostile(),
    ) {
        let plain = Spec { program: Some("/opt/run".into()), ..native() };
        let expected = text(&"llama".into(), &plain, &Surroundings { config: Some("/x".into()), ..systems() });
        let spec = Spec { model: model.clone(), program: Some(format!("/{program}").into()), ..plain };
        let surroundings = Surroundings {
            program: format!("/{own}").into(),
            config: Some(format!("/{config}").into()),
            ..systems()
        };
        let name = ModelName(called.clone());
        let text = text(&name, &spec, &surroundings);
        prop_assert_eq!(keys(&text), keys(&expected));
        prop_assert_eq!(text.lines().count(), expected.lines().count());
        prop_assert!(text.lines().all(|line| !line.ends_with('\\')), "{}", text);
        let odd = ['\r', '\u{85}', '\0'];
        prop_assert!(!text.contains(odd));
        // Variables are replaced in arguments only, not in the program's path.
        let line = one(&text, "ExecStart");
        if !own.contains('$') {
            let config = format!("/{config}");
            prop_assert_eq!(
                split(line),
                [&format!("/{own}"), "model", "--config", &config, "exec", &called]
            );
        }
        let description = one(&text, "Description").replace("%%", "");
        prop_assert!(!description.contains('%'), "{}", description);
        prop_assert!(super::unit_of(&name).0.bytes().all(|b| b.is_ascii_alphanumeric() || b"\\._-".contains(&b)));
    }
}

#[test]
fn an_odd_path_is_one_word() {
    let surroundings = Surroundings {
        program: "/opt/a b/100%/$x\"\\/portreeve".into(),
        config: Some("/etc/$HOME/%i;\n".into()),
        ..systems()
    };
    let text = of(&native(), &surroundings);
    assert_eq!(
        one(&text, "ExecStartPre"),
        r#"+"/opt/a b/100%%/$x\"\\/portreeve" model --config "/etc/$$HOME/%%i;\x0a" step begin llama"#
    );
}
