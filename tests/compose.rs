//! `compose:` in the configuration: what becomes of compose's answer, and of a compose that fails, hangs or is not there; then
//! the real one, on this machine and in a box.

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
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    time::{Duration, Instant},
};

use portreeve::{
    cli::config as command,
    config::{Loaded, Programs, Sources, load, settings::RunsIn},
    ident::ServiceName,
};
use support::{
    DEADLINE, TestBox,
    engines::{Engine, Kind},
    skip, wait_until,
};
use tempfile::TempDir;

/// A stack of which three kinds of compose said the answers beside it.
const STACK: &str = include_str!("compose/compose.yaml");
const V2: &str = include_str!("compose/docker-compose-2.26.json");

/// A folder with a configuration, a compose file and programs.
struct Scene(TempDir);

impl Scene {
    /// `config` is the configuration; `FILE` in it stands for the compose file.
    fn new(config: &str) -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        for folder in ["etc", "ai", "bin"] {
            fs::create_dir(scene.path(folder)).unwrap();
        }
        scene.write("ai/compose.yaml", STACK);
        scene.configure(config);
        scene
    }

    fn configure(&self, config: &str) {
        let file = self.path("ai/compose.yaml");
        self.write("etc/config.yaml", &config.replace("FILE", file.to_str().unwrap()));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A program that is a script; `HERE` in it stands for this folder.
    fn program(&self, name: &str, script: &str) {
        let name = format!("bin/{name}");
        let script = script.replace("HERE", self.0.path().to_str().unwrap());
        self.write(&name, &format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n"));
        fs::set_permissions(self.path(&name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A docker whose compose answers this; what it was told is in `told`.
    fn docker(&self, answer: &str) {
        self.write("answer", answer);
        self.program(
            "docker",
            "[ \"$2\" = version ] && exit\nprintf '%s\\n' \"$PWD\" \"$@\" >HERE/told\nenv >HERE/env\ncat HERE/answer",
        );
    }

    fn sources(&self) -> Sources {
        Sources {
            etc: self.path("etc"),
            explicit: None,
            is_privileged: false,
            programs: Programs { folders: vec![self.path("bin")], timeout: DEADLINE },
        }
    }

    fn load(&self) -> Loaded {
        load(&self.sources()).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// What is wrong, with the folder's name left out.
    fn errors(&self, sources: &Sources) -> String {
        let errors = load(sources).expect_err("an error").to_string();
        errors.replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn ports(loaded: &Loaded, name: &str) -> Vec<String> {
    let service = loaded.settings.service(&ServiceName::from(name));
    let service = service.unwrap_or_else(|| panic!("no service {name}"));
    service.ports.iter().map(ToString::to_string).collect()
}

fn show(loaded: &Loaded) -> String {
    let mut out = Vec::new();
    command::show(loaded, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

// ---- what its answer becomes

#[test]
fn a_compose_file_is_a_layer_right_below_the_file_that_names_it() {
    let scene =
        Scene::new("compose: FILE\nservices: { qdrant: { grace: 9s }, mine: { ports: [8001] } }\n");
    scene.docker(V2);
    let loaded = scene.load();
    // Over the default, whose ports these were.
    assert_eq!(ports(&loaded, "aidb"), ["18091/tcp", "127.0.0.1:8791/tcp"]);
    assert_eq!(ports(&loaded, "qdrant"), ["6333/tcp", "[::1]:6335/udp"]);
    let qdrant = loaded.settings.service(&"qdrant".into()).unwrap();
    assert_eq!(qdrant.runs_in, Some(RunsIn::Container(Some("ai-qdrant-1".to_owned()))));
    assert_eq!(qdrant.grace, Duration::from_secs(9), "what is typed is laid over it");
    // A port that is typed is taken from the service that publishes it, and from no other.
    assert_eq!(ports(&loaded, "mine"), ["8001/tcp"]);
    assert_eq!(
        ports(&loaded, "ranges"),
        ["8000/tcp", "8002/tcp", "127.0.0.1:8200/udp", "127.0.0.1:8201/udp"]
    );
    // What has no port of the host's takes none from anybody, and in the host's network only says where it runs.
    assert!(loaded.settings.service(&"inside".into()).is_none());
    let vllm = loaded.settings.service(&"vllm".into()).unwrap();
    assert_eq!(vllm.runs_in, Some(RunsIn::Container(Some("ai-vllm-1".to_owned()))));
    assert!(vllm.ports.is_empty());
    let origins: Vec<String> = loaded.layers.iter().map(|l| l.origin.to_string()).collect();
    let file = scene.path("etc/config.yaml").display().to_string();
    assert_eq!(origins, ["default".to_owned(), format!("compose of {file}"), file]);
}

#[test]
fn compose_is_asked_in_the_folder_of_the_file_with_its_profiles_and_without_an_engine() {
    let scene = Scene::new("compose: { file: [FILE, /dev/null], profiles: [debug, gpu] }\n");
    scene.docker(V2);
    let errors = scene.errors(&scene.sources());
    assert!(errors.contains("compose file '/dev/null': is no regular file"), "{errors}");
    assert!(!scene.path("told").exists());
    let second = scene.path("ai/more.yaml");
    fs::write(&second, "services: {}\n").unwrap();
    scene.configure(&format!(
        "compose: [{{ file: [FILE, {}], profiles: [debug, gpu] }}]\n",
        second.display()
    ));
    scene.load();
    let folder = scene.path("ai").display().to_string();
    let (first, second) = (format!("{folder}/compose.yaml"), second.display().to_string());
    let told = fs::read_to_string(scene.path("told")).unwrap();
    let expected = [
        folder.as_str(),
        "compose",
        "--file",
        &first,
        "--file",
        &second,
        "--profile",
        "debug",
        "--profile",
        "gpu",
        "config",
        "--format",
        "json",
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    let env = fs::read_to_string(scene.path("env")).unwrap();
    // No socket can lie below it: a Docker that sleeps is not woken.
    assert!(env.contains("DOCKER_HOST=unix:///dev/null/none\n"), "{env}");
    assert!(env.contains("CARGO_MANIFEST_DIR="), "the environment is a source of variables: {env}");
}

#[test]
fn show_says_what_came_from_compose_and_what_of_it_guards_nothing() {
    let scene = Scene::new("compose: FILE\n");
    scene.docker(V2);
    let loaded = scene.load();
    let shown = show(&loaded);
    let file = scene.path("etc/config.yaml").display().to_string();
    for expected in [
        format!("    runs_in: {{ container: 'local-ai-aidb' }} # compose of {file}:1\n"),
        format!("# '{}' is read by docker compose\n", scene.path("ai/compose.yaml").display()),
        "#   'ranges' leaves the choice of a port from 8100 to 8110 to the engine: nothing to guard\n"
            .to_owned(),
        "#   'asleep' has no replicas and is not started\n".to_owned(),
    ] {
        assert!(shown.contains(&expected), "{expected}in\n{shown}");
    }
    // What is printed loads to the same settings, without compose.
    scene.configure(&shown);
    fs::remove_file(scene.path("bin/docker")).unwrap();
    assert_eq!(
        format!("{:?}", scene.load().settings.services),
        format!("{:?}", loaded.settings.services)
    );
}

#[test]
fn two_services_of_a_compose_file_on_one_port_are_an_error_until_one_is_chosen() {
    let answer =
        "{name: x, services: {llama: {ports: ['8000:80']}, vllm: {ports: ['127.0.0.1:8000:80']}}}";
    let scene = Scene::new("# one at a time\ncompose: FILE\n");
    scene.docker(answer);
    let errors = scene.errors(&scene.sources());
    assert!(
        errors.starts_with(
            "etc/config.yaml:2:10: port 127.0.0.1:8000/tcp has two owners in one layer: 'llama' (line 2) and 'vllm'\n  2 | compose: "
        ),
        "{errors}"
    );
    scene.configure("compose: FILE\nservices: { llama: { enabled: false } }\n");
    assert_eq!(ports(&scene.load(), "vllm"), ["127.0.0.1:8000/tcp"]);
    scene.configure("compose: FILE\nservices: { vllm: { ports: [] } }\n");
    assert_eq!(ports(&scene.load(), "llama"), ["8000/tcp"]);
}

#[test]
fn two_compose_files_with_a_service_of_one_name_are_told_apart_by_a_prefix() {
    let scene = Scene::new("compose: [FILE, FILE]\n");
    scene.docker("{name: x, services: {db: {ports: ['5433:5432']}}}");
    let errors = scene.errors(&scene.sources());
    assert!(errors.contains("two compose files have a service 'db'\n"), "{errors}");
    assert!(errors.contains("\nhint: give the entry a prefix: {"), "{errors}");
    scene.configure("compose: [FILE, { file: FILE, prefix: web- }]\n");
    // The one port is still one.
    assert!(scene.errors(&scene.sources()).contains("has two owners"));
    scene.configure("compose: { file: FILE, prefix: web- }\n");
    let loaded = scene.load();
    assert_eq!(ports(&loaded, "web-db"), ["5433/tcp"]);
    let service = loaded.settings.service(&"web-db".into()).unwrap();
    assert_eq!(service.runs_in, Some(RunsIn::Container(Some("x-db-1".to_owned()))));
    scene.docker("{name: x, services: {_db: {ports: ['5433:5432']}}}");
    assert_eq!(ports(&scene.load(), "web-_db"), ["5433/tcp"]);
    scene.configure("compose: FILE\n");
    assert!(scene.errors(&scene.sources()).contains("compose service '_db' has no name"));
}

#[test]
fn what_an_entry_may_be_is_told_where_it_is_not() {
    let scene = Scene::new(
        "compose: [compose.yaml, 7, {}, { file: [] }, { file: /a, profiles: ['--x'], prefix: '-', env: b }]\n",
    );
    let errors = scene.errors(&scene.sources());
    for expected in [
        "expected an absolute path, found the text 'compose.yaml'",
        "expected the path of a compose file, or a map with 'file', found the number 7",
        "an entry of 'compose' needs the key 'file'",
        "expected the path of a compose file, found a list",
        "bad profile '--x'",
        "bad prefix '-'",
        "unknown key 'env' in an entry of 'compose': expected file, profiles or prefix",
    ] {
        assert!(errors.contains(expected), "{expected}\nin\n{errors}");
    }
}

// ---- a compose that is no help

#[test]
fn the_words_of_a_compose_that_fails_stand_with_ours() {
    let scene = Scene::new("services: {}\ncompose:\n  - FILE\n");
    scene.program(
        "docker",
        "[ \"$2\" = version ] && exit\nprintf 'services.a.ports: \\033[31mbad\\nsecond line\\n' >&2\nexit 15",
    );
    let errors = scene.errors(&scene.sources());
    let (message, rest) = errors.split_once("\n  3 |").unwrap();
    assert_eq!(
        message,
        "etc/config.yaml:3:5: docker compose does not read 'ai/compose.yaml': exit code 15\n  \
         docker compose: services.a.ports: \\u{1b}[31mbad\n  docker compose: second line"
    );
    assert!(
        rest.ends_with("hint: see it with: docker compose --file 'ai/compose.yaml' config"),
        "{rest}"
    );
}

#[test]
fn where_no_compose_is_installed_dockers_own_words_are_shown() {
    let scene = Scene::new("compose: FILE\n");
    let errors = scene.errors(&scene.sources());
    assert!(
        errors.starts_with("etc/config.yaml:1:10: no compose is installed: no 'docker compose', 'docker-compose' or 'podman-compose' in "),
        "{errors}"
    );
    scene.program("docker", "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1");
    let errors = scene.errors(&scene.sources());
    assert!(
        errors.contains("\n  docker compose: docker: 'compose' is not a docker command.\n"),
        "{errors}"
    );
    // Another one is as good.
    scene.write("answer", "services: {a: {ports: [8000:80]}}\n");
    scene.program("podman-compose", "[ \"$3\" = config ] && cat HERE/answer");
    assert_eq!(ports(&scene.load(), "a"), ["8000/tcp"]);
}

#[test]
fn a_compose_that_hangs_is_ended_with_its_children_at_the_deadline() {
    let scene = Scene::new("compose: FILE\n");
    scene
        .program("docker", "[ \"$2\" = version ] && exit\nsleep 1000 &\necho $! >HERE/child\nwait");
    let mut sources = scene.sources();
    sources.programs.timeout = Duration::from_secs(1);
    let begin = Instant::now();
    let errors = scene.errors(&sources);
    assert!(
        errors.contains("docker compose does not read 'ai/compose.yaml': no answer within 1 s\n"),
        "{errors}"
    );
    assert!(begin.elapsed() < DEADLINE / 2);
    let child = fs::read_to_string(scene.path("child")).unwrap();
    let stat = PathBuf::from(format!("/proc/{}/stat", child.trim()));
    // Whoever reaps it here may take its time.
    wait_until(DEADLINE, "the child is gone", || {
        fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z"))
    });
}

#[test]
fn an_answer_that_is_none_is_an_error_and_never_an_empty_list() {
    let scene = Scene::new("compose: FILE\n");
    for (answer, expected) in [
        ("", "it has no services"),
        ("[", "line 1: not YAML"),
        ("services: []\n", "its services are no map"),
        ("services: {a: {ports: 8000}}\n", "service 'a': its ports are the number 8000"),
        ("services: {a: {ports: ['x:80']}}\n", "service 'a': its port is the text 'x:80'"),
        (
            "services: {a: {ports: [{target: 80, published: x}]}}\n",
            "service 'a': its port is {target: the number 80, published: the text 'x'}",
        ),
        (
            "services: {a: {deploy: {replicas: many}}}\n",
            "service 'a': its replicas are the text 'many'",
        ),
    ] {
        scene.docker(answer);
        let errors = scene.errors(&scene.sources());
        let expected = format!("the answer of docker compose is not understood: {expected}");
        assert!(errors.contains(&expected), "{expected}\nin\n{errors}");
    }
    scene.program("docker", "[ \"$2\" = version ] && exit\nyes services:");
    assert!(scene.errors(&scene.sources()).contains("it says more than 1048576 bytes"));
}

#[test]
fn what_compose_says_beside_its_answer_is_kept() {
    let scene = Scene::new("compose: FILE\n");
    scene.write("answer", V2);
    scene.program(
        "docker",
        "[ \"$2\" = version ] && exit\necho 'The \"PORT\" variable is not set' >&2\ncat HERE/answer",
    );
    let loaded = scene.load();
    assert_eq!(loaded.composed[0].warnings, ["The \"PORT\" variable is not set"]);
}

// ---- who may write it

#[test]
fn a_privileged_run_takes_the_word_of_roots_compose_files_only() {
    if !rustix::process::geteuid().is_root() {
        return skip("others cannot give files away: not root");
    }
    let scene = Scene::new("compose: FILE\n");
    scene.docker(V2);
    let sources = Sources { is_privileged: true, ..scene.sources() };
    scene.write("ai/.env", "");
    assert!(load(&sources).is_ok());
    let env = fs::read_to_string(scene.path("env")).unwrap();
    assert!(env.contains("\nHOME=/root\n"), "{env}");
    for name in ["ai/compose.yaml", "ai/.env", "ai"] {
        let path = scene.path(name);
        chown(&path, Some(1234), None).unwrap();
        fs::remove_file(scene.path("told")).unwrap();
        let errors = scene.errors(&sources);
        let expected = format!("refused, since root runs this and '{name}' belongs to uid 1234");
        assert!(errors.contains(&expected), "{expected}\nin\n{errors}");
        assert!(errors.starts_with("etc/config.yaml:1:10: compose file 'ai/"), "{errors}");
        assert!(!scene.path("told").exists(), "compose is not asked");
        assert!(load(&scene.sources()).is_ok(), "an unprivileged run may read it");
        chown(&path, Some(0), None).unwrap();
    }
}

// ---- the real one

#[test]
fn a_real_compose_says_the_same_and_reads_the_env_file_beside_it() {
    let scene = Scene::new("compose: { file: FILE, profiles: [debug] }\n");
    scene.write("ai/.env", "AIDB_PORT=18091\n");
    let sources = Sources { programs: Programs::default(), ..scene.sources() };
    let loaded = match load(&sources) {
        Ok(loaded) => loaded,
        Err(errors) if errors.to_string().contains("no compose is installed") => {
            return skip("no compose is installed (docker-compose has one)");
        }
        Err(errors) => panic!("{errors}"),
    };
    for (name, expected) in [
        ("aidb", &["18091/tcp", "127.0.0.1:8791/tcp"][..]),
        ("qdrant", &["6333/tcp", "[::1]:6335/udp"]),
        (
            "ranges",
            &["8000/tcp", "8001/tcp", "8002/tcp", "127.0.0.1:8200/udp", "127.0.0.1:8201/udp"],
        ),
        ("every", &["8300/tcp"]),
        ("two", &["7000/tcp", "7001/tcp", "7002/tcp"]),
        ("debug", &["9229/tcp"]),
        ("vllm", &[]),
    ] {
        assert_eq!(ports(&loaded, name), expected, "{name}, by {}", loaded.composed[0].by);
    }
    let aidb = loaded.settings.service(&"aidb".into()).unwrap();
    assert_eq!(aidb.runs_in, Some(RunsIn::Container(Some("local-ai-aidb".to_owned()))));
    // Its own words, where it does not like the file.
    scene.write("ai/compose.yaml", "services: { a: { imag: x } }\n");
    let errors = scene.errors(&sources);
    assert!(
        errors.contains(" does not read 'ai/compose.yaml': exit code ") && errors.contains("imag"),
        "{errors}"
    );
}

/// In a box: exit code and all that was said.
fn said(test_box: &TestBox, words: &[&str]) -> (i32, String) {
    let output = test_box.run(&[&["/build/portreeve"], words].concat());
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

#[test]
fn as_root_compose_wakes_no_docker_and_runs_nothing_from_the_home_of_a_user() {
    let test_box = match TestBox::boot("compose-asleep") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    test_box.unit("docker.service", "[Service]\nExecStart=/usr/bin/touch /run/woken\n");
    test_box.unit("docker.socket", "[Socket]\nListenStream=/run/docker.sock\n");
    test_box.sh("systemctl start docker.socket; mkdir -p /srv/ai");
    test_box.write("/srv/ai/compose.yaml", STACK);
    test_box.write("/etc/portreeve/config.yaml", "compose: /srv/ai/compose.yaml\n");
    // What docker takes a plugin's description from, and then the plugin itself.
    test_box.sh("install -d /home/alice/.docker/cli-plugins");
    let plugin = "/home/alice/.docker/cli-plugins/docker-compose";
    test_box.write(plugin, "#!/bin/sh\ntouch /run/trapped\n");
    test_box.sh(&format!("chmod 755 {plugin}"));
    // What Python runs first wherever it is found; the compose of some releases is written in it.
    test_box.write("/home/alice/sitecustomize.py", "open('/run/trapped', 'w')\n");
    for home in ["HOME=/home/alice", "DOCKER_CONFIG=/home/alice/.docker", "PYTHONPATH=/home/alice"]
    {
        let show = ["env", home, "AIDB_PORT=18092", "/build/portreeve", "config", "show"];
        let shown = test_box.run(&show);
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.status.success(), "{text}{}", String::from_utf8_lossy(&shown.stderr));
        assert!(text.contains("ports: [18092/tcp, 127.0.0.1:8791/tcp]"), "{text}");
        assert!(!test_box.inside("/run/trapped").exists(), "{home}");
    }
    assert!(!test_box.inside("/run/woken").exists());
    assert_eq!(test_box.sh("systemctl show --property=NConnections --value docker.socket"), "0");
}

#[test]
fn a_stack_is_gated_by_its_compose_file_alone() {
    let test_box = match TestBox::boot("compose-gate") {
        Ok(test_box) => test_box,
        Err(reason) => return skip(&reason),
    };
    let engine = Engine::start(&test_box, Kind::DockerSystemd);
    test_box.sh("mkdir -p /srv/ai");
    test_box.write("/srv/ai/.env", "API_PORT=9191\n");
    test_box.write(
        "/srv/ai/compose.yaml",
        "services:\n  api:\n    image: plant\n    container_name: my-api\n    network_mode: bridge\n    \
         ports: ['${API_PORT}:80']\n    command: [plant, --listen, '80']\n",
    );
    test_box.write(
        "/etc/portreeve/config.yaml",
        "compose: /srv/ai/compose.yaml\ngate: { timeout: 0s, settle: 50ms }\n",
    );
    let compose = |words: &str| {
        test_box.sh(&format!(
            "cd /srv/ai; if docker compose version; then docker compose {words}; else docker-compose {words}; fi"
        ));
    };
    let gate = |words: &[&str]| said(&test_box, &[&["gate", "api"], words].concat());
    assert_eq!(gate(&["--", "true"]).0, 0);
    compose("up --detach");
    engine.wait_for_status("my-api", "running");
    let (blocked, text) = gate(&[]);
    assert_eq!(blocked, 1, "{text}");
    assert!(text.contains("9191") && text.contains("my-api"), "{text}");
    let (ours, text) = gate(&["--allow-ours"]);
    assert_eq!(ours, 0, "{text}");
    compose("down");
    assert_eq!(gate(&["--timeout", "10s"]).0, 0);
    // A start without the stack's file is none.
    test_box.sh("mv /srv/ai/compose.yaml /srv/ai/moved.yaml");
    let (failed, text) = gate(&["--", "touch", "/run/started"]);
    assert_eq!(failed, 69, "{text}");
    assert!(
        text.contains("compose file '/srv/ai/compose.yaml': cannot be read: no such file"),
        "{text}"
    );
    assert!(!test_box.inside("/run/started").exists());
}
