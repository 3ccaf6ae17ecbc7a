//! NixOS (`nix/`, `flake.nix`), as far as a machine without nixpkgs can tell: Nix itself reads it and builds with it in its sandbox, what
//! it takes from nixpkgs is played by `tests/nix/`, and the system that comes out of it runs in a box.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may panic"
)]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use portreeve::backend::BackendName;
use serde_json::{Value, json};
use support::{DEADLINE, TestBox, packaging, ran::Ran, skip, wait_until};
use tempfile::TempDir;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder with the built programs, which a box has as `/build`.
fn build_folder() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_portreeve")).parent().unwrap()
}

/// What each system here says first.
const ENABLED: &str = "services.portreeve.enable = true;";

/// Nix, with a store of its own.
struct Nix {
    folder: TempDir,
}

impl Nix {
    fn set() -> Option<Self> {
        if Command::new("nix-instantiate").arg("--version").output().is_err() {
            skip("no nix-instantiate: the package 'nix-bin' has it");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("nix-").tempdir_in(build_folder()).unwrap();
        // Users of a box go through it.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { folder })
    }

    /// For tests that build something.
    fn set_to_build() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("Nix's sandbox is built as root here");
            return None;
        }
        Self::set()
    }

    /// What builds see: a shell with its friends, and the program in cargo's place.
    fn settings() -> String {
        let paths = ["/bin", "/lib", "/lib64", "/usr"].into_iter();
        let paths: Vec<&str> = paths.filter(|path| Path::new(path).exists()).collect();
        format!(
            "build-users-group =\nsubstitute = false\nsandbox = true\nsandbox-fallback = false\n\
             sandbox-paths = {} /portreeve={}",
            paths.join(" "),
            env!("CARGO_BIN_EXE_portreeve")
        )
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Ran {
        let mut command = Command::new(program);
        command.arg("--store").arg(self.folder.path()).args(arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", self.folder.path()).env("NIX_CONFIG", Self::settings());
        Ran::of(&command.output().unwrap())
    }

    /// A part of the system of a module: a whole one, or settings beside ours.
    fn expression(&self, module: &str, part: &str) -> String {
        let file = self.folder.path().join("module.nix");
        let is_whole = module.starts_with('{');
        let text = if is_whole { module.to_owned() } else { format!("{{ {ENABLED} {module} }}") };
        fs::write(&file, text).unwrap();
        let system = repository().join("tests/nix");
        format!("(import {} {{ modules = [ {} ]; }}).{part}", system.display(), file.display())
    }

    fn value(&self, module: &str, part: &str) -> Value {
        let expression = self.expression(module, part);
        let words = ["--eval", "--strict", "--json", "-E", &expression];
        serde_json::from_str(&self.run("nix-instantiate", &words).ends_with(0).out).unwrap()
    }

    fn build(&self, module: &str, part: &str) -> Ran {
        let expression = self.expression(module, part);
        let words = ["--no-out-link", "-E", &expression];
        let all = (0..5).map(|_| self.run("nix-build", &words));
        // Nix takes a builder's closed output for its end, and may kill it before that (NixOS/nix, issue 2176).
        let is_killed = |ran: &Ran| ran.err.contains("failed due to signal 9 (Killed)");
        all.into_iter().find(|ran| !is_killed(ran)).expect("it is killed once in a hundred times")
    }

    /// What was built, by its path in the store.
    #[track_caller]
    fn built(&self, module: &str, part: &str) -> String {
        self.build(module, part).ends_with(0).out.trim().to_owned()
    }

    /// Where a path of the store really is.
    fn place(&self, path: &str) -> PathBuf {
        self.folder.path().join(&path[1..])
    }

    /// The text of a file in the store, links followed.
    fn text(&self, path: &str) -> String {
        let mut place = self.place(path);
        while let Ok(target) = fs::read_link(&place) {
            place = match target.strip_prefix("/") {
                Ok(target) => self.folder.path().join(target),
                Err(_) => place.parent().unwrap().join(target),
            };
        }
        fs::read_to_string(&place).unwrap_or_else(|error| panic!("{}: {error}", place.display()))
    }
}

fn nix_files() -> Vec<PathBuf> {
    let mut files = vec![repository().join("flake.nix")];
    for folder in ["nix", "nix/tests", "tests/nix"] {
        for entry in fs::read_dir(repository().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            files.extend(path.extension().is_some_and(|e| e == "nix").then_some(path));
        }
    }
    files
}

#[test]
fn every_file_parses() {
    let Some(nix) = Nix::set() else { return };
    let files = nix_files();
    assert!(files.len() > 6, "{files:?}");
    for file in files {
        nix.run("nix-instantiate", &["--parse", file.to_str().unwrap()]).ends_with(0);
    }
}

/// The units that something asks for, and who.
fn wanted(nix: &Nix, module: &str) -> Value {
    let systemd = nix.value(module, "config.systemd");
    let mut wanted = serde_json::Map::new();
    for kind in ["services", "timers", "targets"] {
        for (name, unit) in systemd[kind].as_object().unwrap() {
            let by = unit["wantedBy"].clone();
            if by != json!([]) {
                wanted.insert(name.clone(), by);
            }
        }
    }
    wanted.into()
}

#[test]
fn what_is_started_is_what_the_options_say() {
    let Some(nix) = Nix::set() else { return };
    let engines = json!(["docker.service", "podman-restart.service"]);
    let timers = json!(["timers.target"]);
    let boot = json!(["multi-user.target"]);
    assert_eq!(
        wanted(&nix, ""),
        json!({ "portreeve-boot": engines, "portreeve-sweep": timers }),
        "nothing at shutdown unless it is asked for"
    );
    let nothing = "services.portreeve = { onBoot = false; timer = false; };";
    assert_eq!(wanted(&nix, nothing), json!({}));
    let all = "services.portreeve = { onShutdown = true;
        models.a = { backend = \"vllm\"; model = \"m\"; program = \"/x\"; autoStart = true; };
        models.b = { backend = \"vllm\"; model = \"m\"; program = \"/x\"; port = 8001; }; };";
    assert_eq!(
        wanted(&nix, all),
        json!({
            "portreeve-boot": engines, "portreeve-sweep": timers, "portreeve-shutdown": boot,
            "portreeve-models": boot, "portreeve-model-a": ["portreeve-models.target"],
        })
    );
    let systemd = nix.value(all, "config.systemd");
    for model in ["portreeve-model-a", "portreeve-model-b"] {
        assert_eq!(systemd["services"][model]["restartIfChanged"], false);
    }
    let target = &systemd["targets"]["portreeve-models"];
    assert_eq!(target["unitConfig"]["X-OnlyManualStart"], true, "a switch starts no model");
    let shutdown = &systemd["services"]["portreeve-shutdown"];
    assert_eq!(shutdown["unitConfig"]["X-StopOnRemoval"], false, "a switch stops no other model");
}

#[test]
fn a_system_that_is_not_enabled_has_nothing_of_it() {
    let Some(nix) = Nix::set() else { return };
    let systemd = nix.value("{ services.portreeve.gates.web = [ \"web\" ]; }", "config.systemd");
    for part in ["packages", "services", "targets", "timers"] {
        assert!(matches!(&systemd[part], value if value == &json!([]) || value == &json!({})));
    }
}

#[test]
fn podmans_containers_of_nixos_start_after_the_sweep_at_boot() {
    let Some(nix) = Nix::set() else { return };
    let containers = "virtualisation.oci-containers.containers.web.image = \"web\";";
    let boot = nix.value(containers, "config.systemd.services.portreeve-boot");
    assert_eq!(boot["before"], json!(["podman-web.service"]));
    let by = json!(["docker.service", "podman-restart.service", "multi-user.target"]);
    assert_eq!(boot["wantedBy"], by);
    let docker = format!("{containers} virtualisation.oci-containers.backend = \"docker\";");
    let boot = nix.value(&docker, "config.systemd.services.portreeve-boot");
    assert_eq!(boot["before"], json!([]));
}

#[test]
fn what_cannot_work_is_refused_with_both_ways_out() {
    let Some(nix) = Nix::set() else { return };
    let model = |more: &str| {
        format!("services.portreeve.models.m = {{ backend = \"ollama\"; model = \"m\"; {more} }};")
    };
    for (module, ways) in [
        (
            format!("{} services.ollama.enable = true;", model("program = \"/x\";")),
            ["port 11434", "services.portreeve.models.m.port", "services.ollama.enable = false"],
        ),
        (
            format!(
                "{} services.open-webui.enable = true;",
                model("program = \"/x\"; port = 8080;")
            ),
            ["port 8080", "services.portreeve.models.m.port", "services.open-webui.port"],
        ),
        (model(""), ["no unit finds its server", ".m.program", ".m.container = true"]),
        (
            model("container = true;"),
            ["no engine", "virtualisation.podman.enable = true", ".m.container = false"],
        ),
        (
            format!(
                "{} virtualisation.podman.enable = true;",
                model("container = true; engine = \"docker\";")
            ),
            ["no docker", "virtualisation.docker.enable = true", ".m.container = false"],
        ),
    ] {
        let refused = nix.build(&module, "etc");
        assert_ne!(refused.code, 0, "{module}");
        for way in ways {
            assert!(refused.err.contains(way), "{module}: {way}: {}", refused.err);
        }
    }
    let words = ["onBot = true;", "onBoot = 3;", "models.m.backend = \"gpt\";"];
    for (word, why) in words.into_iter().zip(["does not exist", "not of type", "not of type"]) {
        let module = format!("services.portreeve.{word}");
        let part = "config.services.portreeve";
        let words = ["--eval", "--strict", "-E", &nix.expression(&module, part)];
        let refused = nix.run("nix-instantiate", &words);
        assert!(refused.code != 0 && refused.err.contains(why), "{word}: {}", refused.err);
    }
}

#[test]
fn the_modules_ports_of_backends_are_the_programs() {
    let Some(nix) = Nix::set() else { return };
    for backend in BackendName::ALL {
        let port = backend.backend().port.number();
        let module = format!(
            "services.portreeve.models.m = {{ backend = \"{backend}\"; model = \"m\"; program = \"/x\"; }};
             services.ollama = {{ enable = true; port = {port}; }};"
        );
        nix.build(&module, "etc").complains(&format!("both serve port {port}."));
    }
}

#[test]
fn the_package_has_the_shipped_files_with_nothing_but_paths_changed() {
    let Some(nix) = Nix::set_to_build() else { return };
    let package = nix.built("", "package");
    let systemctl = format!("{}/bin/systemctl", nix.built("", "systemctl"));
    let mut count = 0;
    for file in packaging::shipped() {
        let shipped = fs::read_to_string(packaging::folder().join(&file[1..])).unwrap();
        let there = nix.text(&format!("{package}{}", file.strip_prefix("/usr").unwrap()));
        count += there.matches(&package).count();
        assert!(!there.contains("/usr/"), "{file}: {there}");
        let back = there
            .replace(&format!("{package}/bin/portreeve"), "/usr/bin/portreeve")
            .replace(&systemctl, "/usr/bin/systemctl")
            .replace(&format!("{package}/share/doc"), "/usr/share/doc");
        assert_eq!(back, shipped, "{file}");
    }
    assert!(count > 20, "{count} paths are the store's");
    for document in ["systemd.md", "models.md", "report.md", "doctor.md"] {
        nix.text(&format!("{package}/share/doc/portreeve/{document}"));
    }
}

#[test]
fn the_documents_examples_build_systems() {
    let Some(nix) = Nix::set_to_build() else { return };
    let document = fs::read_to_string(repository().join("docs/nixos.md")).unwrap();
    let blocks = document.split("\n```nix\n").skip(1).map(|rest| rest.split("\n```").next());
    let modules: Vec<&str> = blocks.flatten().filter(|block| block.starts_with("{ pkgs")).collect();
    assert_eq!(modules.len(), 2);
    for module in modules {
        nix.built(module, "etc");
    }
}

#[test]
fn settings_that_portreeve_refuses_build_no_system() {
    let Some(nix) = Nix::set_to_build() else { return };
    for (settings, why) in [
        ("defaults.grace = 5;", "a duration"),
        ("servces = { };", "servces"),
        (
            "models.m = { backend = \"vllm\"; model = \"m\"; container = true; port = 99999; };",
            "99999",
        ),
    ] {
        let module = format!("services.portreeve.settings = {{ {settings} }};");
        let refused = nix.build(&module, "etc");
        assert_ne!(refused.code, 0, "{settings}");
        assert!(refused.err.contains(why), "{settings}: {}", refused.err);
    }
    // What compose files say is known on the host alone.
    nix.built("services.portreeve.settings.compose = [ \"/srv/none.yaml\" ];", "etc");
}

/// As a host with a stack would have it, played by what a box has.
const STACK: &str = r#"
    services.portreeve = {
      onShutdown = true;
      settings = {
        gate = { timeout = "0s"; settle = "50ms"; };
        services.web = { runs_in.unit = "web.service"; ports = [ 8508 ]; };
      };
      models.small = {
        backend = "llamacpp"; model = "/opt/model.gguf"; program = "/opt/llama-server"; port = 8509; autoStart = true;
      };
      models.large = {
        backend = "vllm"; model = "org/large"; container = true; port = 8510; memory = "32G";
      };
      gates."web.service" = [ "web" ];
    };
    virtualisation.docker.enable = true;
    systemd.services.web.serviceConfig.ExecStart = "/build/examples/plant --listen 8508";
"#;

#[test]
fn a_models_unit_is_the_programs_own_text_for_a_system_that_is_built() {
    let Some(nix) = Nix::set_to_build() else { return };
    let (etc, package) = (nix.built(STACK, "etc"), nix.built(STACK, "package"));
    let config = nix.folder.path().join("config.yaml");
    fs::write(&config, nix.text(&format!("{etc}/portreeve/config.yaml"))).unwrap();
    for model in ["small", "large"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portreeve"));
        command.args(["model", "show", model, "--unit", "--offline", "--config"]).arg(&config);
        let expected = Ran::of(&command.output().unwrap()).ends_with(0).out;
        let there = nix.text(&format!("{etc}/systemd/system/portreeve-model-{model}.service"));
        let back = there
            .replace(&format!("{package}/bin/portreeve"), env!("CARGO_BIN_EXE_portreeve"))
            .replace(&format!("{package}/share/doc"), "/usr/share/doc");
        assert_eq!(back, expected);
    }
    let large = nix.text(&format!("{etc}/systemd/system/portreeve-model-large.service"));
    assert!(large.contains(&format!("ExecStart={package}/bin/portreeve model exec large\n")));
}

/// A box that has the system's units and settings, and portreeve in the store only.
fn live(nix: &Nix, name: &str) -> Option<TestBox> {
    let test_box = TestBox::boot(name).map_err(|reason| skip(&reason)).ok()?;
    let etc = nix.built(STACK, "etc");
    let store = nix.folder.path().file_name().unwrap().to_str().unwrap();
    test_box.sh(&format!(
        "mkdir -p /nix && mount --bind /build/{store}/nix /nix
         cp -a {etc}/systemd/. /etc/systemd/ && ln -s {etc}/portreeve /etc/portreeve
         ln -s /build/examples/model-server /opt/llama-server && touch /opt/model.gguf
         systemctl daemon-reload"
    ));
    Some(test_box)
}

#[test]
fn the_systems_units_are_sound_and_do_what_they_are_for() {
    let Some(nix) = Nix::set_to_build() else { return };
    let Some(test_box) = live(&nix, "nix") else { return };
    let units = test_box.sh("cd /etc/systemd/system && ls -d portreeve-*.service portreeve-*.t* | grep -v '[.]d$\\|wants$'");
    assert!(units.lines().count() >= 10, "{units}");
    for unit in units.lines() {
        let said = test_box.sh(&format!("systemd-analyze verify {unit} 2>&1"));
        assert_eq!(said, "", "{unit}");
        if unit.ends_with(".service") {
            let words = "systemd-analyze security --offline=true --no-pager --threshold=26";
            test_box.sh(&format!("{words} {unit}"));
        }
    }

    test_box.sh("systemctl start portreeve-sweep.service portreeve-boot.service");
    test_box.sh("systemctl start portreeve-shutdown.service");
    let wanted = test_box.sh("systemctl show --property=Wants --value multi-user.target");
    for unit in ["portreeve-shutdown.service", "portreeve-models.service"] {
        assert!(wanted.contains(unit), "{wanted}");
    }

    test_box.sh("systemctl start portreeve-models.service");
    wait_until(DEADLINE, "the model that starts at boot serves", || {
        test_box.sh("systemctl is-active portreeve-model-small.service || true") == "active"
    });
    let others =
        "systemctl is-active portreeve-models.service portreeve-model-large.service || true";
    assert_eq!(test_box.sh(others), "active\ninactive");
    let program = test_box.sh(
        "readlink /proc/$(systemctl show --property=MainPID --value portreeve-model-small)/exe",
    );
    assert!(program.starts_with("/nix/store/"), "{program}");

    let stranger = "/build/examples/plant --listen 8508 --ready /run/planted/stranger";
    test_box.sh(&format!("systemd-run --quiet --unit=stranger {stranger}"));
    test_box.planted("stranger");
    let refused = test_box.run(&["systemctl", "start", "web.service"]);
    assert!(!refused.status.success(), "its port is taken");
    let said = test_box.sh("journalctl --quiet --output=cat --unit=portreeve-gate@web");
    assert!(said.contains("8508") && said.contains("stranger.service"), "{said}");
    test_box.sh("systemctl stop stranger && systemctl start web.service");
}
