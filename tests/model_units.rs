//! The units that are written for models, on a machine with systemd: sound, no more exposed than their budget, and inside of
//! their sandbox a server has what it needs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::fmt::Write;

use portreeve::backend::BackendName;
use support::{
    DEADLINE, TestBox,
    model::{ask_in, program},
    packaging, skip, wait_until,
};

/// What `systemd-analyze security` may say of each, tenths of what it calls exposure: of processes and of containers.
const BUDGETS: [u32; 2] = [17, 18];

const BOB: &str = "runuser -u bob -- env XDG_RUNTIME_DIR=/run/user/1001";

/// Whose manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    System,
    User,
}

/// A box with portreeve, and models that are declared in its settings.
struct Models {
    test_box: TestBox,
}

impl Models {
    fn boot(name: &str, models: &str) -> Option<Self> {
        let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
        let head =
            "gate: { timeout: 0s, settle: 50ms }\nengines: { docker: 'off', podman: 'off' }\n";
        packaging::install(&test_box, &format!("{head}models:\n{models}"));
        test_box.sh("install -d /opt/vllm/bin");
        assert!(program().exists());
        test_box.sh("ln -s /build/examples/model-server /opt/vllm/bin/vllm");
        Some(Self { test_box })
    }

    /// The text as it is shown, in the folder for whoever administers the host.
    fn write(&self, model: &str, scope: Scope) -> String {
        let (switch, folder) = match scope {
            Scope::System => ("", "system"),
            Scope::User => ("--user", "user"),
        };
        let text =
            self.test_box.sh(&format!("/usr/bin/portreeve model show {model} --unit {switch}"));
        let path = format!("/etc/systemd/{folder}/portreeve-model-{model}.service");
        self.test_box.write(&path, &format!("{text}\n"));
        path
    }

    /// Without its steps, which would write the registry.
    fn without_steps(&self, model: &str, scope: Scope, more: &str) {
        let path = self.write(model, scope);
        let none = "ExecStartPre=\nExecStartPost=\nExecStopPost=\n";
        self.test_box.write(&format!("{path}.d/test.conf"), &format!("[Service]\n{none}{more}\n"));
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.test_box.sh(&format!("systemctl show --property={name} --value {unit}"))
    }
}

/// Every backend as a process and in a container, and what changes the text.
fn of_every_kind() -> (String, Vec<(String, bool)>) {
    let (mut text, mut names) = (String::new(), Vec::new());
    let mut port = 9000;
    let mut add = |name: String, backend: &str, is_container: bool, more: &str| {
        port += 10;
        let container = if is_container { "container: true, models_dir: '/srv/a b'," } else { "" };
        let model = if backend == "llamacpp" { "/srv/a b/100%.gguf" } else { "org/model" };
        let _ = writeln!(
            text,
            "  {name}: {{ backend: {backend}, model: '{model}', port: {port}, {container} {more} }}"
        );
        names.push((name, is_container));
    };
    let limits = "gpus: all, memory: 32G, cpu: 1.255, pids: 512";
    for backend in BackendName::ALL {
        // Both would have the same port for their metrics.
        let more =
            if backend == BackendName::Tgi { ", extra_args: [--prometheus-port=9900]" } else { "" };
        add(format!("{backend}"), backend.word(), false, "");
        add(format!("{backend}-gpu"), backend.word(), false, &format!("{limits}{more}"));
        add(format!("{backend}-box"), backend.word(), true, "gpus: 0, memory: 32G, engine: docker");
    }
    add("low".to_owned(), "ollama", false, "run_as: bob, host: 10.0.0.9, load_timeout: 24h");
    add("odd_N.a-me".to_owned(), "vllm", false, "program: '/opt/a b/$x/%n', host: '::1'");
    add("podman".to_owned(), "vllm", true, "engine: podman, host: '::'");
    text.push_str("  privileged: { backend: ollama, model: m, port: 80 }\n");
    names.push(("privileged".to_owned(), false));
    (text, names)
}

#[test]
fn a_unit_of_every_kind_is_sound_and_no_more_exposed_than_its_budget() {
    let (models, names) = of_every_kind();
    let Some(models) = Models::boot("model-units-sound", &models) else { return };
    let test_box = &models.test_box;
    let as_bob = format!("{BOB} systemd-analyze --user");
    for (scope, analyze) in [(Scope::System, "systemd-analyze"), (Scope::User, &*as_bob)] {
        let files: Vec<String> = names.iter().map(|(name, _)| models.write(name, scope)).collect();
        // It exits with 0 where it only warns.
        let said = test_box.sh(&format!("{analyze} verify {} 2>&1", files.join(" ")));
        assert_eq!(said, "", "{scope:?}");
    }
    for (name, is_container) in &names {
        let budget = BUDGETS[usize::from(*is_container)];
        let unit = format!("portreeve-model-{name}.service");
        let output = test_box.run(&[
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            &format!("--threshold={budget}"),
            &unit,
        ]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{unit}: {said}");
    }
}

/// A unit that runs the probe in a server's place.
const AS_PROBE: &str = "Type=oneshot\nRestart=no\nExecStart=\nExecStart=/bin/bash /usr/local/bin/probe\nStandardOutput=truncate:/run/said";

/// Says what could not be done, and what could and should not.
const ANSWERS: &str = r#"
may() { bash -c "$1" >/dev/null 2>&1 || echo "cannot: $1"; }
may_not() { bash -c "$1" >/dev/null 2>&1 && echo "can: $1"; }
"#;

/// What a server does, and what a stranger who took it over would.
const PROBE: &str = r#"
may 'echo x >"$HOME/x" && echo x >"$XDG_CACHE_HOME/y"'
may 'mkdir -p "$HF_HOME" "$VLLM_CACHE_ROOT" "$TRITON_CACHE_DIR" && echo x >"$TRITON_CACHE_DIR/x"'
may 'echo x >/dev/shm/x && echo x >/tmp/x && echo x >/var/tmp/x'
may 'cat /proc/meminfo /proc/sys/kernel/random/boot_id /home/weights/w'
may 'test "$(ulimit -c)" = 0 && test "$(id -u)" != 0'
may 'echo 0 >/dev/null && head -c1 /dev/urandom'
may 'python3 -c "import mmap; mmap.mmap(-1, 4096, prot=7)"'
may 'nice -n 1 true && taskset -p 1 $$'
may_not 'cat /proc/1/comm'
may_not 'echo x >/etc/x || echo x >/var/lib/x || echo x >/home/weights/x || echo x >/run/x'
may_not 'unshare --user true || unshare --mount true'
may_not 'test -e /dev/shm/outside || test -e /tmp/outside'
may_not 'cat /etc/shadow || kill -0 1 || chown 0 "$HOME/x"'
may_not 'exec 3<>/dev/fuse || exec 3<>/dev/net/tun'
echo done
"#;

#[test]
fn a_process_has_what_a_server_needs_and_neither_others_files_nor_their_processes() {
    let declared = "  own: { backend: vllm, model: m, port: 8500 }\n  bobs: { backend: vllm, model: m, port: 8510, run_as: bob }\n  gpu: { backend: vllm, model: m, port: 8520, gpus: all }\n";
    let Some(models) = Models::boot("model-units-sandbox", declared) else { return };
    let test_box = &models.test_box;
    test_box.write("/usr/local/bin/probe", &format!("{ANSWERS}{PROBE}"));
    test_box.sh(
        "install -d /home/weights; echo w >/home/weights/w; touch /dev/shm/outside /tmp/outside",
    );
    // It has none, and what stands before a start is another scene.
    test_box.write(
        "/etc/systemd/system/portreeve-gate@gpu.service",
        "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    );
    for model in ["own", "bobs", "gpu"] {
        models.without_steps(model, Scope::System, AS_PROBE);
        test_box.sh(&format!("systemctl daemon-reload; systemctl start portreeve-model-{model}"));
        assert_eq!(test_box.sh("cat /run/said"), "done", "{model}");
        // What it keeps is there the next time, and nothing else is.
        let kept = format!("cd /var/cache/portreeve/{model}/ && find . -type f | sort | xargs");
        assert_eq!(test_box.sh(&kept), "./triton/x ./x ./y", "{model}");
        let left = "find /dev/shm /tmp /var/tmp -name x";
        assert_eq!(test_box.sh(left), "", "{model}");
        test_box.sh(&format!("systemctl start portreeve-model-{model}"));
        assert_eq!(test_box.sh("cat /run/said"), "done", "{model}, again");
    }
}

/// What stays with a container asks its engine and its port, and sees whether it lives.
const BESIDE: &str = r#"
ping='import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b"GET /_ping HTTP/1.0\r\n\r\n"); assert b"200 OK" in s.recv(99)'
may "python3 -c '$ping' /run/docker.sock"
may "python3 -c '$ping' /run/podman/podman.sock"
may 'cat /proc/1/stat /etc/portreeve/config.yaml'
may 'exec 3<>/dev/tcp/127.0.0.1/22'
may_not 'ls /proc/1/fd/ | grep . || ls /root/.ssh/ && echo x >/root/.ssh/x'
may_not 'echo x >/etc/x || echo x >/var/lib/x'
may_not 'echo x >/run/x'
may_not 'chown 1 /tmp'
may_not 'unshare --mount true || mount -t tmpfs t /mnt'
may_not 'exec 3<>/dev/fuse || python3 -c "import mmap; mmap.mmap(-1, 4096, prot=7)"'
echo done
"#;

#[test]
fn what_stays_with_a_container_has_its_engine_and_nothing_else_of_roots() {
    let declared = "  box: { backend: vllm, model: m, port: 8500, container: true }\n";
    let Some(models) = Models::boot("model-units-beside", declared) else { return };
    let test_box = &models.test_box;
    test_box.write("/usr/local/bin/probe", &format!("{ANSWERS}{BESIDE}"));
    test_box.sh("systemctl start docker podman.socket");
    models.without_steps("box", Scope::System, AS_PROBE);
    test_box.sh("systemctl daemon-reload; systemctl start portreeve-model-box");
    assert_eq!(test_box.sh("cat /run/said"), "done");
}

#[test]
fn steps_run_outside_of_the_sandbox_of_either_manager() {
    let declared = "  own: { backend: vllm, model: m, port: 8500 }\n";
    let Some(models) = Models::boot("model-units-steps", declared) else { return };
    let test_box = &models.test_box;
    test_box.sh("install -d -m 1777 /run/steps");
    let said =
        |step: &str| format!("/bin/sh -c 'grep NoNewPrivs /proc/self/status >/run/steps/{step}'");
    let more = format!(
        "Type=oneshot\nRestart=no\nExecStart=\nExecStart={}\nExecStartPre=+{}",
        said("main"),
        said("step")
    );
    for (scope, systemctl) in
        [(Scope::System, "systemctl".to_owned()), (Scope::User, format!("{BOB} systemctl --user"))]
    {
        // A user of its own could write nothing there.
        let more = match scope {
            Scope::System => format!("{more}\nReadWritePaths=/run/steps"),
            Scope::User => more.clone(),
        };
        models.without_steps("own", scope, &more);
        test_box.sh(&format!(
            "rm -f /run/steps/*; {systemctl} daemon-reload; {systemctl} start portreeve-model-own"
        ));
        let seen = test_box.sh("cd /run/steps; cat step main | xargs");
        assert_eq!(seen, "NoNewPrivs: 0 NoNewPrivs: 1", "{scope:?}");
    }
}

#[test]
fn a_model_serves_from_within_its_sandbox_and_leaves_nothing_behind() {
    let declared = "  own: { backend: vllm, model: m, port: 8500, program: /opt/vllm/bin/vllm, extra_args: [--child] }
  bobs: { backend: vllm, model: m, port: 8510, program: /opt/vllm/bin/vllm, extra_args: [--child], run_as: bob }
  low: { backend: vllm, model: m, port: 85, program: /opt/vllm/bin/vllm }
  less: { backend: vllm, model: m, port: 8520, program: /opt/vllm/bin/vllm, extra_args: [--child], memory: 1G, cpu: 1 }
";
    let Some(models) = Models::boot("model-units-serve", declared) else { return };
    let test_box = &models.test_box;
    for (model, port) in [("own", 8500), ("bobs", 8510), ("low", 85), ("less", 8520)] {
        let unit = format!("portreeve-model-{model}.service");
        models.without_steps(model, Scope::System, "");
        test_box.sh("systemctl daemon-reload");
        let started = test_box.run(&["systemctl", "start", &unit]);
        let log = || test_box.sh(&format!("journalctl -o cat -u {unit} -u portreeve-gate@{model}"));
        assert!(started.status.success(), "{model}: {}", log());
        // Ready is who serves, and is itself.
        let address = ([127, 0, 0, 1], port).into();
        assert_eq!(ask_in(test_box, address, "/health").status(), Some(200));
        assert_eq!(models.property(&unit, "StatusText"), "healthy");
        let main = models.property(&unit, "MainPID");
        let user = test_box.sh(&format!("stat --format=%u /proc/{main}")).parse::<u32>().unwrap();
        // Those of DynamicUser= (systemd's docs/UIDS-GIDS.md).
        assert!(
            if model == "bobs" { user == 1001 } else { (61184..=65519).contains(&user) },
            "{user}"
        );
        test_box.sh(&format!("systemctl stop {unit}"));
        assert_eq!(models.property(&unit, "Result"), "success", "{}", log());
        assert!(test_box.can_bind(port));
    }
}

#[test]
fn a_users_model_serves_from_the_users_own_manager() {
    let declared = "  own: { backend: vllm, model: m, port: 8500, program: /opt/vllm/bin/vllm, extra_args: [--child], memory: 1G }\n";
    let Some(models) = Models::boot("model-units-user", declared) else { return };
    let test_box = &models.test_box;
    models.without_steps("own", Scope::User, "");
    let unit = "portreeve-model-own.service";
    let started = test_box.sh(&format!(
        "{BOB} systemctl --user daemon-reload
         {BOB} systemctl --user start {unit} || journalctl -o cat _UID=1001"
    ));
    assert_eq!(started, "");
    assert_eq!(ask_in(test_box, ([127, 0, 0, 1], 8500).into(), "/health").status(), Some(200));
    test_box.sh(&format!("{BOB} systemctl --user stop {unit}"));
    assert!(test_box.can_bind(8500));
}

#[test]
fn what_is_enabled_is_started_at_boot_and_waited_for_by_nobody() {
    let declared = "  own: { backend: vllm, model: m, port: 8500, program: /opt/vllm/bin/vllm, extra_args: [--load-for, usr1] }\n";
    let Some(models) = Models::boot("model-units-boot", declared) else { return };
    let test_box = &models.test_box;
    for (scope, systemctl) in
        [(Scope::System, "systemctl".to_owned()), (Scope::User, format!("{BOB} systemctl --user"))]
    {
        models.without_steps("own", scope, "");
        let unit = "portreeve-model-own.service";
        let enable = if scope == Scope::System { "systemctl" } else { "systemctl --global" };
        test_box.sh(&format!(
            "{enable} --quiet enable portreeve-models.service {unit}; {systemctl} daemon-reload"
        ));
        // It comes back though the model is far from ready.
        test_box.sh(&format!("{systemctl} start portreeve-models.service"));
        let state = || test_box.sh(&format!("{systemctl} show -P ActiveState {unit}"));
        wait_until(DEADLINE, "it is on its way", || state() == "activating");
        let server = "pgrep -f '^/opt/vllm/bin/vllm serve'";
        wait_until(DEADLINE, "it loads", || test_box.run(&["bash", "-c", server]).status.success());
        test_box.sh(&format!("kill -USR1 $({server})"));
        wait_until(DEADLINE, "it serves", || state() == "active");
        test_box.sh(&format!("{systemctl} stop {unit}"));
    }
}
