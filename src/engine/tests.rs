//! The client before fakes at the wire ([`fake`]), and before whatever calls itself podman.

use std::{
    io::Write,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use super::{fake::*, *};
use crate::{
    ident::{Pid, Port, Proto},
    snapshot::{ContainerState, Published, Publisher},
};

const SHORT: Duration = Duration::from_millis(300);
/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);

#[track_caller]
fn assert_unreadable<T: std::fmt::Debug>(seen: &Seen<T>, words: &str) {
    assert!(matches!(seen, Seen::Unreadable(why) if why.contains(words)), "{seen:?}: {words}");
}

// ---- what an engine says

#[test]
fn a_container_is_read_as_the_engine_describes_it() {
    let fake = Fake::docker(|path| {
        assert_eq!(path, format!("GET /v1.41/containers/{}/json", id(1)));
        Act::Answer(200, a_running_container())
    });
    let Seen::Known(container) = fake.inspect(LONG) else { panic!("not known") };
    let published = |address: Option<&str>, port, proto, inside| Published {
        address: address.map(|a| a.parse().unwrap()),
        port: Port::new(port).unwrap(),
        proto,
        container_port: Port::new(inside).unwrap(),
    };
    assert_eq!(
        container,
        Container {
            engine: EngineRef { kind: EngineKind::Docker, owner: 0 },
            id: id(1),
            name: "local-ai-aidb".to_owned(),
            state: ContainerState::Running,
            main_pid: Some(Pid(4242)),
            restarts: 7,
            restart_policy: Some("always".to_owned()),
            health: Some("healthy".to_owned()),
            pid_mode: String::new(),
            network_mode: "stack".to_owned(),
            published: vec![
                published(None, 8091, Proto::Tcp, 8091),
                published(Some("0.0.0.0"), 8091, Proto::Tcp, 8091),
                published(Some("127.0.0.1"), 32768, Proto::Udp, 9),
                published(Some("::"), 8091, Proto::Tcp, 8091),
            ],
            upper_dir: Some("/var/lib/docker/overlay2/x/diff".into()),
            labels: [("stack".to_owned(), "ai".to_owned())].into(),
        }
    );
}

#[test]
fn both_engines_state_words_are_understood_and_others_are_not_guessed() {
    let not_running = |word: &str| Some(ContainerState::NotRunning(word.to_owned()));
    let state = |word: &str, running, paused, restarting| {
        let state = json!({ "Status": word, "Running": running, "Paused": paused, "Restarting": restarting, "Pid": 0 });
        let fake = Fake::docker(move |_| Act::Answer(200, container_json(1, &state)));
        match fake.inspect(LONG) {
            Seen::Known(container) => {
                assert_eq!(container.main_pid, None);
                Some(container.state)
            }
            Seen::Unreadable(_) => None,
            seen @ (Seen::Gone | Seen::Denied) => panic!("{seen:?}"),
        }
    };
    assert_eq!(state("running", true, false, false), Some(ContainerState::Running));
    assert_eq!(state("paused", true, true, false), Some(ContainerState::Paused));
    assert_eq!(state("paused", false, false, false), Some(ContainerState::Paused));
    // Docker's `Running` is true while it restarts.
    assert_eq!(state("restarting", true, false, true), Some(ContainerState::Restarting));
    assert_eq!(state("running", true, false, true), Some(ContainerState::Restarting));
    for word in [
        "created",
        "exited",
        "dead",
        "removing",
        "stopping",
        "stopped",
        "configured",
        "initialized",
    ] {
        assert_eq!(state(word, false, false, false), not_running(word));
        // A state that contradicts itself.
        assert_eq!(state(word, true, false, false), None, "{word}");
    }
    for word in ["", "unknown", "bad state", "frozen", "Running", "running"] {
        assert_eq!(state(word, false, false, false), None, "{word}");
    }
}

#[test]
fn podman_is_known_by_what_it_answers_and_asked_in_its_own_words() {
    let fake = Fake::podman(|path| match path {
        "GET /v4.3.1/libpod/containers/json?all=true" => {
            Act::Answer(200, json!([{ "Id": id(1).0, "Names": ["x"] }]))
        }
        "GET /v4.3.1/libpod/info" => Act::Answer(
            200,
            json!({ "store": { "graphRoot": "/var/lib/containers/storage", "graphDriverName": "overlay" } }),
        ),
        path => {
            assert_eq!(path, format!("GET /v4.3.1/libpod/containers/{}/json", id(1)));
            Act::Answer(200, a_running_container())
        }
    });
    let mut question = Question::about(fake.only(), [id(1)]);
    (question.list, question.store) = (true, true);
    let answer = ask(&[question], LONG).remove(0);
    let version = Version { kind: EngineKind::Podman, version: "4.3.1".to_owned() };
    assert_eq!(answer.version, Ok(version));
    assert_eq!(answer.all, Some(Seen::Known(vec![id(1)])));
    let root = "/var/lib/containers/storage".into();
    let store = Store { root, driver: "overlay".to_owned(), holds_layers: true };
    assert_eq!(answer.store, Some(Seen::Known(store)));
    assert!(answer.containers[&id(1)].known().is_some());
}

#[test]
fn a_name_that_no_engine_would_give_is_not_repeated() {
    for name in ["/x; rm -rf ~", "/$(id)", "/-f", "/\u{1b}[2J", "/", "", "/a/b"] {
        let mut json = a_running_container();
        json["Name"] = name.into();
        let fake = Fake::docker(move |_| Act::Answer(200, json.clone()));
        let Seen::Known(container) = fake.inspect(LONG) else { panic!("{name}") };
        assert_eq!(container.name, id(1).short(), "{name}");
    }
}

#[test]
fn a_podman_at_dockers_place_is_called_what_it_is() {
    let fake = Fake::at("run/docker.sock", |path| match path {
        "GET /version" => Act::Answer(200, podman_version()),
        path => {
            assert!(path.starts_with("GET /v4.3.1/libpod/containers/"), "{path}");
            Act::Answer(200, a_running_container())
        }
    });
    let container = fake.inspect(LONG);
    assert_eq!(container.known().unwrap().engine.kind, EngineKind::Podman);
}

#[test]
fn where_containerd_has_the_images_dockers_root_holds_no_layers() {
    let store = |status: Value| {
        let info = json!({ "DockerRootDir": "/var/lib/docker", "Driver": "overlayfs", "DriverStatus": status });
        let fake = Fake::docker(move |_| Act::Answer(200, info.clone()));
        let mut question = Question::about(fake.only(), []);
        question.store = true;
        let Some(Seen::Known(store)) = ask(&[question], LONG).remove(0).store else { panic!() };
        assert_eq!(store.root, Path::new("/var/lib/docker"));
        store.holds_layers
    };
    assert!(store(json!([["Backing Filesystem", "extfs"], ["Supports d_type", "true"]])));
    assert!(store(Value::Null));
    assert!(!store(json!([["driver-type", "io.containerd.snapshotter.v1"]])));
}

#[test]
fn the_version_is_agreed_upon_with_older_and_newer_engines() {
    for (newest, oldest, path) in [
        ("1.24", "1.12", "/v1.24/"),
        ("1.51", "1.24", "/v1.51/"),
        ("1.99", "1.44", "/v1.51/"),
        ("2.0", "1.60", "/v1.60/"),
    ] {
        let fake = Fake::at("run/docker.sock", move |asked| {
            if asked == "GET /version" {
                let version =
                    json!({ "Version": "1", "ApiVersion": newest, "MinAPIVersion": oldest });
                return Act::Answer(200, version);
            }
            assert!(asked.starts_with(&format!("GET {path}")), "{asked}");
            Act::Answer(200, a_running_container())
        });
        assert!(fake.inspect(LONG).known().is_some(), "{newest}");
    }
}

/// What an engine says of what runs.
fn publishers(fake: &Fake) -> Seen<Vec<Publisher>> {
    let question = Question { running: true, ..Question::about(fake.only(), []) };
    ask(&[question], LONG).remove(0).running.unwrap()
}

fn whole(address: Option<&str>, port: u16, proto: Proto, inside: u16) -> Published {
    let address = address.map(|address| address.parse().unwrap());
    let (port, container_port) = (Port::new(port).unwrap(), Port::new(inside).unwrap());
    Published { address, port, proto, container_port }
}

#[test]
fn what_runs_is_listed_with_the_ports_that_are_its_own_now() {
    let docker = |state: &str| {
        json!([{
            "Id": id(1).0, "Names": ["/aidb"], "State": state,
            "Ports": [
                { "IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8091, "Type": "tcp" },
                { "IP": "::", "PrivatePort": 80, "PublicPort": 8091, "Type": "tcp" },
                { "PrivatePort": 81, "Type": "tcp" },
                { "IP": "", "PrivatePort": 9, "PublicPort": 9, "Type": "sctp" }
            ]
        }])
    };
    let named = |engine, main_pid, published| {
        let name = "aidb".to_owned();
        Seen::Known(vec![Publisher { engine, id: id(1), name, main_pid, published }])
    };
    for (state, is_up) in [("running", true), ("paused", true), ("restarting", true), ("new", true)]
        .into_iter()
        .chain([("created", false), ("exited", false), ("dead", false), ("removing", false)])
    {
        let body = docker(state);
        let fake = Fake::docker(move |path| {
            assert_eq!(path, "GET /v1.41/containers/json?all=true");
            Act::Answer(200, body.clone())
        });
        let tcp = |address| whole(Some(address), 8091, Proto::Tcp, 80);
        let name = EngineRef { kind: EngineKind::Docker, owner: 0 };
        let up = named(name, None, vec![tcp("0.0.0.0"), tcp("::")]);
        let expected = if is_up { up } else { Seen::Known(Vec::new()) };
        assert_eq!(publishers(&fake), expected, "{state}");
    }
    let fake = Fake::podman(|path| {
        assert_eq!(path, "GET /v4.3.1/libpod/containers/json?all=true");
        let ports = json!([{ "host_ip": "", "container_port": 80, "host_port": 8091, "range": 2, "protocol": "udp" }]);
        let mut all = json!([{ "Id": id(1).0, "Names": ["aidb"], "State": "running", "Pid": 42 }]);
        all[0]["Ports"] = ports;
        Act::Answer(200, all)
    });
    let udp = |port, inside| whole(None, port, Proto::Udp, inside);
    let name = EngineRef { kind: EngineKind::Podman, owner: 0 };
    let expected = named(name, Some(Pid(42)), vec![udp(8091, 80), udp(8092, 81)]);
    assert_eq!(publishers(&fake), expected);
}

#[test]
fn a_list_in_which_one_thing_is_not_understood_is_no_answer() {
    for (field, value) in [
        ("Id", json!("aidb")),
        ("State", json!(7)),
        (
            "Ports",
            json!([{ "IP": "everywhere", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp" }]),
        ),
        ("Ports", json!([{ "PrivatePort": "80" }])),
    ] {
        let mut one =
            json!({ "Id": id(1).0, "Names": ["/aidb"], "State": "running", "Ports": null });
        one[field] = value;
        let fake = Fake::docker(move |_| Act::Answer(200, json!([one.clone()])));
        assert!(matches!(publishers(&fake), Seen::Unreadable(_)), "{field}");
    }
}

#[test]
fn ranges_that_are_more_ports_than_there_can_be_are_no_answer() {
    let fake = Fake::podman(|_| {
        let all = json!({ "host_ip": "", "container_port": 1, "host_port": 1, "range": 65535, "protocol": "tcp" });
        let ports = vec![all; 5];
        Act::Answer(
            200,
            json!([{ "Id": id(1).0, "Names": ["a"], "State": "running", "Ports": ports }]),
        )
    });
    let Seen::Unreadable(why) = publishers(&fake) else { panic!("megabytes of ports") };
    assert!(why.contains("more ports than there can be"), "{why}");
}

// ---- "I do not know it", and what only sounds like it

#[test]
fn an_engine_that_does_not_know_the_id_says_so_in_its_own_words() {
    let fake = Fake::docker(|_| {
        Act::Answer(404, json!({ "message": format!("No such container: {}", id(1)) }))
    });
    assert_eq!(fake.inspect(LONG), Seen::Gone);
    let fake = Fake::podman(|_| {
        let message =
            format!("no container with name or ID \"{}\" found: no such container", id(1));
        Act::Answer(
            404,
            json!({ "cause": "no such container", "message": message, "response": 404 }),
        )
    });
    assert_eq!(fake.inspect(LONG), Seen::Gone);
}

#[test]
fn a_404_of_anybody_else_is_no_answer() {
    for body in [
        Value::Null,
        json!({ "message": "page not found" }),
        json!("404 page not found: no such container"),
        json!({ "error": "no such container" }),
        json!([]),
    ] {
        let fake = Fake::docker(move |_| Act::Answer(404, body.clone()));
        assert_unreadable(&fake.inspect(LONG), "it answered 404");
    }
    // A web server: it has no version either.
    let fake = Fake::at("run/docker.sock", |_| {
        let text = "<html>404 no such container</html>";
        Act::Raw(
            format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{text}", text.len())
                .into(),
        )
    });
    let answer = fake.answer(LONG);
    assert!(matches!(&answer.version, Err(NoAnswer::Strange(why)) if why.contains("404")));
    assert_unreadable(&answer.containers[&id(1)], "404");
}

#[test]
fn an_answer_for_another_container_than_asked_is_none() {
    let fake = Fake::docker(|_| Act::Answer(200, container_json(2, &running())));
    assert_unreadable(&fake.inspect(LONG), "another container");
}

#[test]
fn a_name_or_the_beginning_of_an_id_is_never_asked_for() {
    let fake = Fake::docker(|path| panic!("asked: {path}"));
    let odd = ["aidb", "0123456789ab", "", "../info", &"A".repeat(64), &format!("{}/../x", id(1))];
    let odd: Vec<ContainerId> = odd.map(ContainerId::from).into();
    let answer = ask(&[Question::about(fake.only(), odd.clone())], LONG).remove(0);
    assert_eq!(answer.containers.len(), odd.len());
    for seen in answer.containers.values() {
        assert_unreadable(seen, "no whole id");
    }
    let deed = kill(&fake.only(), &ContainerId::from("aidb"), LONG);
    assert!(matches!(deed, Deed::NoAnswer(_)));
}

// ---- no answer

#[test]
fn an_engine_that_refuses_denies_or_is_not_there_makes_nothing_gone() {
    let fake = Fake::nowhere();
    let socket = fake.folder.path().join("run/docker.sock");
    fs::create_dir(fake.folder.path().join("run")).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let engine = fake.only();
    let answer = |engine: &Engine| ask(&[Question::about(engine.clone(), [id(1)])], LONG).remove(0);
    let refused = answer(&engine);
    assert_eq!(refused.version, Err(NoAnswer::Refused));
    assert_unreadable(&refused.containers[&id(1)], "nobody listens");

    fs::remove_file(&socket).unwrap();
    let absent = answer(&engine);
    assert_eq!(absent.version, Err(NoAnswer::Absent));
    assert_unreadable(&absent.containers[&id(1)], "no docker here");

    fs::write(&socket, "").unwrap();
    assert_unreadable(&answer(&engine).containers[&id(1)], "no socket");
    assert_eq!(NoAnswer::Denied.of::<()>(engine.name), Seen::Denied);
}

#[test]
fn an_engine_that_hangs_is_left_at_the_deadline() {
    for version_too in [true, false] {
        let fake = Fake::at("run/docker.sock", move |path| match path {
            "GET /version" if !version_too => Act::Answer(200, docker_version()),
            _ => Act::Hang,
        });
        let began = Instant::now();
        assert_unreadable(&fake.inspect(SHORT), "in time");
        assert!(began.elapsed() >= SHORT && began.elapsed() < LONG / 4, "{:?}", began.elapsed());
    }
}

#[test]
fn a_listener_that_never_accepts_is_left_at_the_deadline() {
    let fake = Fake::nowhere();
    fs::create_dir(fake.folder.path().join("run")).unwrap();
    let socket = fake.folder.path().join("run/docker.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    assert_unreadable(&fake.inspect(SHORT), "in time");
    // The first still waits: with a backlog that is full not even a connection is made.
    rustix::net::listen(&listener, 0).unwrap();
    assert_unreadable(&fake.inspect(SHORT), "in time");
}

#[test]
fn what_comes_too_late_too_slowly_or_without_end_is_no_answer() {
    let late = Fake::docker(|_| Act::Late(SHORT * 4, a_running_container()));
    assert_unreadable(&late.inspect(SHORT), "in time");
    let slow = Fake::docker(|_| Act::Dribble);
    assert_unreadable(&slow.inspect(SHORT), "in time");
    let endless = Fake::docker(|_| Act::Flood);
    assert_unreadable(&endless.inspect(LONG), "longer than 1048576 bytes");
    let from_the_start = Fake::at("run/docker.sock", |_| Act::Flood);
    assert_unreadable(&from_the_start.inspect(LONG), "longer than");
}

#[test]
fn endless_headers_are_no_answer() {
    let fake = Fake::docker(|_| {
        let mut text = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        text.resize(1 << 20, b'x');
        Act::Raw(text)
    });
    assert!(matches!(fake.inspect(LONG), Seen::Unreadable(_)));
}

#[test]
fn garbage_half_an_answer_and_a_failure_are_no_answer() {
    let raw: [&[u8]; 7] = [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\xff\xfe\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"Id\":",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"Id\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ];
    for bytes in raw {
        let fake = Fake::docker(move |_| Act::Raw(bytes.to_vec()));
        let seen = fake.inspect(LONG);
        assert!(matches!(seen, Seen::Unreadable(_)), "{seen:?}");
        let fake = Fake::at("run/docker.sock", move |_| Act::Raw(bytes.to_vec()));
        assert!(matches!(fake.inspect(LONG), Seen::Unreadable(_)), "{bytes:?}");
    }
    let fake =
        Fake::docker(|_| Act::Answer(500, json!({ "message": "no such container, or not" })));
    assert_unreadable(&fake.inspect(LONG), "it answered 500: no such container, or not");
    let fake = Fake::docker(|_| Act::Answer(403, json!({ "message": "authorization denied" })));
    assert_eq!(fake.inspect(LONG), Seen::Denied);
}

#[test]
fn a_container_over_which_the_engine_hangs_keeps_none_of_the_others() {
    let fake = Fake::docker(|path| {
        let number = (1..=20).find(|n| path.contains(&id(*n).0)).unwrap();
        if number == 3 { Act::Hang } else { Act::Answer(200, container_json(number, &running())) }
    });
    let all = (1..=20).map(id);
    let answer = ask(&[Question::about(fake.only(), all)], SHORT * 2).remove(0);
    assert_eq!(answer.containers.values().filter(|seen| seen.known().is_some()).count(), 19);
    assert_unreadable(&answer.containers[&id(3)], "in time");
}

#[test]
fn an_engine_that_hangs_keeps_no_other_engine() {
    let fake = Fake::docker(|_| Act::Hang);
    fake.listen("run/podman/podman.sock", |path| match path {
        "GET /version" => Act::Answer(200, podman_version()),
        _ => Act::Answer(200, a_running_container()),
    });
    let engines = [EngineKind::Docker, EngineKind::Podman].map(|kind| fake.engine(kind, 0));
    let questions = engines.map(|engine| Question::about(engine, [id(1)]));
    let answers = ask(&questions, SHORT);
    assert_eq!(answers[0].engine.kind, EngineKind::Docker);
    assert_unreadable(&answers[0].containers[&id(1)], "in time");
    assert!(answers[1].containers[&id(1)].known().is_some());
}

// ---- connections

#[test]
fn many_containers_are_asked_over_few_connections_and_nothing_over_none() {
    let fake = Fake::docker(|path| {
        let number = (1..=50).find(|n| path.contains(&id(*n).0)).unwrap();
        Act::Answer(200, container_json(number, &running()))
    });
    let engine = fake.only();
    assert!(ask(&[], LONG).is_empty());
    assert_eq!(fake.connections(), 0, "who is not asked is not touched");
    let answer = ask(&[Question::about(engine, (1..=50).map(id))], LONG).remove(0);
    assert!(answer.containers.values().all(|seen| seen.known().is_some()));
    assert!((1..=4).contains(&fake.connections()), "{}", fake.connections());
}

#[test]
fn an_engine_that_closes_after_each_answer_is_connected_to_again() {
    let closing = |body: &Value| {
        let text = body.to_string();
        let length = text.len();
        Act::Raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}").into())
    };
    let fake = Fake::at("run/docker.sock", move |path| match path {
        "GET /version" => closing(&docker_version()),
        path => {
            let number = (1..=9).find(|n| path.contains(&id(*n).0)).unwrap();
            closing(&container_json(number, &running()))
        }
    });
    let answer = ask(&[Question::about(fake.only(), (1..=9).map(id))], LONG).remove(0);
    assert!(answer.containers.values().all(|seen| seen.known().is_some()), "{answer:?}");
}

// ---- users' engines

#[test]
fn a_users_socket_is_asked_beneath_that_users_folder_only() {
    let user = 4242;
    let fake = Fake::podman(|_| Act::Answer(200, a_running_container()));
    let of_user = |fake: &Fake| {
        let engine = fake.engine(EngineKind::Podman, user);
        ask(&[Question::about(engine, [id(1)])], LONG).remove(0)
    };
    let folder = fake.folder.path().join(format!("run/user/{user}"));
    fs::create_dir_all(&folder).unwrap();
    // A link to root's socket: what root's engine knows is not that user's.
    std::os::unix::fs::symlink(fake.folder.path().join("run/podman"), folder.join("podman"))
        .unwrap();
    let answer = of_user(&fake);
    assert!(matches!(answer.version, Err(NoAnswer::NoWay(_))), "{answer:?}");
    assert_eq!(fake.connections(), 0);

    fs::remove_file(folder.join("podman")).unwrap();
    fake.listen(&format!("run/user/{user}/podman/podman.sock"), |path| match path {
        "GET /version" => Act::Answer(200, podman_version()),
        _ => Act::Answer(200, a_running_container()),
    });
    let answer = of_user(&fake);
    let container = answer.containers[&id(1)].known().unwrap();
    assert_eq!(container.engine, EngineRef { kind: EngineKind::Podman, owner: user });
}

#[test]
fn roots_places_are_those_that_are_there_and_one_socket_is_one_engine() {
    let fake = Fake::podman(|_| Act::Hang);
    let names = |which: &Which, owners: &[u32]| -> Vec<String> {
        let places = places(&fake.host(), which, &owners.iter().copied().collect());
        places.iter().map(|engine| engine.name.to_string()).collect()
    };
    let both = Which { docker: true, docker_socket: None, podman: true };
    assert_eq!(names(&both, &[0]), ["podman"]);
    assert_eq!(names(&both, &[]), [""; 0]);
    assert_eq!(names(&both, &[0, 7]), ["docker of user 7", "podman", "podman of user 7"]);
    std::os::unix::fs::symlink("podman/podman.sock", fake.folder.path().join("run/docker.sock"))
        .unwrap();
    assert_eq!(names(&both, &[0]), ["podman"]);
    assert_eq!(names(&Which { podman: false, ..both.clone() }, &[0]), ["docker"]);
    fake.listen("run/mine.sock", |_| Act::Hang);
    let mine = Which { docker_socket: Some("/run/mine.sock".into()), ..both };
    assert_eq!(names(&mine, &[0]), ["docker", "podman"]);
    assert_eq!(fake.connections(), 0);
}

// ---- podman by its command

/// A host with a `podman` that is this script.
pub(super) fn with_podman(script: &str) -> Fake {
    let fake = Fake::nowhere();
    let root = fake.folder.path();
    for folder in ["usr/bin", "etc", "run"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nsomebody:x:65534:65534::/:/bin/sh\n",
    )
    .unwrap();
    // Written by another process: a fork of this one would have it open for writing still, and nobody could run it.
    let program = root.join("usr/bin/podman");
    let mut writer = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\"", program.to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever has a remote engine configured is asked about this machine all the same.
    let version = "#!/bin/sh\n[ \"$1\" = --remote=false ] || exit 77\nshift\n\
                   [ \"$1\" = --version ] && { echo 'podman version 4.3.1'; exit; }\n";
    writeln!(writer.stdin.take().unwrap(), "{version}{script}").unwrap();
    assert!(writer.wait().unwrap().success());
    fake
}

/// Others cannot become root, nor root's user.
fn owner() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn by_command(fake: &Fake, timeout: Duration) -> Answer {
    if owner() != 0 {
        let line = format!("me:x:{}:{}::/:/bin/sh\n", owner(), rustix::process::getegid().as_raw());
        fs::write(fake.folder.path().join("etc/passwd"), line).unwrap();
    }
    let engine = fake.engine(EngineKind::Podman, owner());
    let mut question = Question::about(engine, [id(1)]);
    (question.store, question.list) = (true, true);
    ask(&[question], timeout).remove(0)
}

fn inspected(script: &str, timeout: Duration) -> Seen<Container> {
    by_command(&with_podman(script), timeout).containers.remove(&id(1)).unwrap()
}

#[test]
fn podman_without_a_socket_is_asked_by_its_command() {
    let container = json!([a_running_container()]);
    let fake = with_podman(&format!(
        "case $1 in\n\
         inspect) [ \"$*\" = 'inspect --type container --format json {}' ] && echo '{container}';;\n\
         info) echo '{{\"store\": {{\"graphRoot\": \"/home/me/s\", \"graphDriverName\": \"vfs\"}}}}';;\n\
         ps) echo '[{{\"Id\": \"{}\"}}]';;\n\
         esac",
        id(1),
        id(2)
    ));
    let answer = by_command(&fake, LONG);
    let version = Version { kind: EngineKind::Podman, version: "4.3.1".to_owned() };
    assert_eq!(answer.version, Ok(version));
    let container = answer.containers[&id(1)].known().unwrap();
    assert_eq!((container.main_pid, container.name.as_str()), (Some(Pid(4242)), "local-ai-aidb"));
    assert_eq!(answer.all, Some(Seen::Known(vec![id(2)])));
    assert_eq!(answer.store.unwrap().known().unwrap().root, Path::new("/home/me/s"));
}

#[test]
fn a_command_that_does_not_know_the_container_is_told_from_one_that_fails() {
    let said = |text: &str, code| inspected(&format!("echo '{text}' >&2; exit {code}"), LONG);
    let unknown = format!("Error: inspecting object: no such container {}", id(1));
    assert_eq!(said(&unknown, 125), Seen::Gone);
    let other = format!("Error: inspecting object: no such container {}", id(2));
    assert_unreadable(&said(&other, 125), "failed with 125");
    assert_unreadable(&said("Error: open /home: permission denied", 125), "permission denied");
    assert_unreadable(&said(&unknown, 0), "not an engine");
    assert_unreadable(&said(&unknown, 1), "failed with 1");
}

#[test]
fn a_command_that_prints_garbage_or_another_container_or_too_much_is_no_answer() {
    assert_unreadable(&inspected("echo garbage", LONG), "not an engine's answer");
    assert_unreadable(&inspected("echo '[]'", LONG), "not an engine's answer");
    assert_unreadable(&inspected("kill -9 $$", LONG), "ended by a signal");
    let other = json!([container_json(2, &running())]);
    assert_unreadable(&inspected(&format!("echo '{other}'"), LONG), "another container");
    assert_unreadable(&inspected("exec cat /dev/zero", LONG), "more than 1048576 bytes");
    assert_unreadable(&inspected("exec cat /dev/zero >&2", LONG), "more than 1048576 bytes");
}

#[test]
fn a_command_that_hangs_is_ended_with_its_children_at_the_deadline() {
    let fake = with_podman("");
    let pids = fake.folder.path().join("pids");
    fs::write(&pids, "").unwrap();
    fs::set_permissions(&pids, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let script = format!("sleep 600 & echo $$ $! >> '{}'; wait", pids.display());
    drop(fake);
    let fake = with_podman(&script);
    fs::create_dir_all(pids.parent().unwrap()).unwrap();
    let answer = by_command(&fake, SHORT * 3);
    assert_unreadable(&answer.containers[&id(1)], "in time");
    let written = fs::read_to_string(&pids).unwrap();
    fs::remove_dir_all(pids.parent().unwrap()).unwrap();
    let all: Vec<&str> = written.split_whitespace().collect();
    assert!(all.len() >= 2, "{written:?}");
    let deadline = Instant::now() + LONG;
    for pid in all {
        // A zombie, until whoever is its parent now has waited for it.
        let lives = || {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
                stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z'))
            })
        };
        while lives() {
            assert!(Instant::now() < deadline, "{pid} lives");
            thread::yield_now();
        }
    }
}

#[test]
fn who_keeps_the_commands_output_open_is_not_waited_for() {
    let container = json!([a_running_container()]);
    let fake = with_podman(&format!("sleep 5 & echo '{container}'"));
    let began = Instant::now();
    let answer = by_command(&fake, LONG);
    assert!(answer.containers[&id(1)].known().is_some(), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn a_users_command_has_nothing_of_roots() {
    if owner() != 0 {
        println!("skipped: only root runs a command as somebody else");
        return;
    }
    let fake = with_podman(
        "[ \"$1\" = inspect ] || exit 1\n\
         { id -u; id -g; id -G; pwd; env | sort | cut -d= -f1; ls -l /proc/self/fd/0; cut -d' ' -f6,7 /proc/$$/stat; echo $$; } >&2\n\
         exit 3",
    );
    let engine = fake.engine(EngineKind::Podman, 65534);
    let podman = command::Podman::find(&engine, Instant::now() + LONG).unwrap();
    let said = podman.run(&["inspect"]).unwrap();
    let text = String::from_utf8(said.errors).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["65534", "65534", "65534", "/"], "{text}");
    assert_eq!(lines[4..8], ["HOME", "LC_ALL", "PATH", "PWD"], "{text}");
    assert!(lines[8].ends_with("/dev/null"), "{text}");
    // A session and no terminal.
    assert_eq!(lines[9], format!("{} 0", lines[10]), "{text}");
    // Whoever is in no list of users is not asked about.
    let unlisted = fake.engine(EngineKind::Podman, 4_000_000);
    let answer = ask(&[Question::about(unlisted, [id(1)])], LONG).remove(0);
    assert_unreadable(&answer.containers[&id(1)], "not in /etc/passwd");
}

// ---- orders

#[test]
fn what_came_of_an_order_is_told_by_the_engines_answer() {
    let deed = |status, body: Value| {
        let fake = Fake::docker(move |path| {
            assert_eq!(path, format!("POST /v1.41/containers/{}/stop?t=2", id(1)));
            Act::Answer(status, body.clone())
        });
        stop(&fake.only(), &id(1), Duration::from_millis(1500), LONG)
    };
    let said = |text: &str| json!({ "message": text });
    assert_eq!(deed(204, Value::Null), Deed::Done);
    assert_eq!(deed(304, Value::Null), Deed::AlreadySo);
    assert_eq!(deed(404, said("No such container: x")), Deed::Gone);
    assert_eq!(deed(404, said("page not found")), Deed::Failed(404, "page not found".to_owned()));
    assert_eq!(deed(409, said("in progress")), Deed::Conflict("in progress".to_owned()));
    assert_eq!(deed(500, said("no")), Deed::Failed(500, "no".to_owned()));
    // As Podman 4.3 answers.
    let running =
        format!("cannot remove container {} as it is running: container state improper", id(1));
    assert_eq!(deed(500, said(&running)), Deed::Conflict(running));
}

#[test]
fn the_orders_are_dockers_which_podman_takes_too_but_for_a_wait() {
    let asked = |order: &dyn Fn(&Engine) -> Deed, expected: &'static str| {
        let fake = Fake::podman(move |path| {
            assert_eq!(path.replace(&id(1).0, "ID"), expected);
            Act::Answer(200, json!([]))
        });
        assert_eq!(order(&fake.only()), Deed::Done);
    };
    asked(&|e| kill(e, &id(1), LONG), "POST /v1.41/containers/ID/kill?signal=KILL");
    asked(&|e| remove(e, &id(1), true, LONG), "DELETE /v1.41/containers/ID?force=true");
    asked(&|e| remove(e, &id(1), false, LONG), "DELETE /v1.41/containers/ID?force=false");
    asked(
        &|e| wait(e, &id(1), Until::NotRunning, LONG),
        "POST /v4.3.1/libpod/containers/ID/wait?condition=stopped&condition=exited&interval=50ms",
    );
    asked(
        &|e| wait(e, &id(1), Until::Removed, LONG),
        "POST /v1.41/containers/ID/wait?condition=removed",
    );
}

#[test]
fn a_stop_that_takes_its_grace_period_is_waited_for_and_one_that_hangs_is_not() {
    let slow = Fake::docker(|_| Act::Late(SHORT * 2, Value::Null));
    assert_eq!(stop(&slow.only(), &id(1), SHORT * 2, SHORT), Deed::Done);
    let hung = Fake::docker(|_| Act::Hang);
    let deed = stop(&hung.only(), &id(1), Duration::ZERO, SHORT);
    assert_eq!(deed, Deed::NoAnswer("no answer in time".to_owned()));
    // An order is never given twice.
    let closed = Fake::docker(|_| Act::Raw(Vec::new()));
    assert!(matches!(kill(&closed.only(), &id(1), LONG), Deed::NoAnswer(_)));
    assert_eq!(closed.connections(), 1);
}

#[test]
fn orders_reach_a_podman_without_a_socket_by_its_command() {
    let fake = with_podman(&format!(
        "case \"$*\" in\n\
         'stop -t 5 {0}') ;;\n\
         'kill --signal KILL {0}') echo 'Error: can only kill running containers: container state improper' >&2; exit 125;;\n\
         'rm --force=true {0}') echo 'Error: no container with name or ID \"{0}\" found: no such container' >&2; exit 1;;\n\
         *) echo odd >&2; exit 7;;\n\
         esac",
        id(1)
    ));
    if owner() != 0 {
        println!("skipped: the fake's users are root's");
        return;
    }
    let engine = fake.engine(EngineKind::Podman, 0);
    assert_eq!(stop(&engine, &id(1), Duration::from_secs(5), LONG), Deed::Done);
    assert!(matches!(kill(&engine, &id(1), LONG), Deed::Conflict(_)));
    assert_eq!(remove(&engine, &id(1), true, LONG), Deed::Gone);
    assert_eq!(remove(&engine, &id(1), false, LONG), Deed::Failed(7, "odd".to_owned()));
}
