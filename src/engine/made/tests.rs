use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, net::UnixListener},
};

use serde_json::{Value, json};

use super::{
    super::{at, fake::*, of_user},
    *,
};
use crate::ident::{EngineKind, Port, Proto};

/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

/// As Docker 20.10 describes a container that runs.
fn made_json(number: u8, name: &str) -> Value {
    json!({
        "Id": id(number).0, "Name": format!("/{name}"), "Image": "sha256:5830",
        "State": { "Status": "running", "Running": true, "Paused": false, "Restarting": false, "OOMKilled": false, "Dead": false,
            "Pid": 301, "ExitCode": 0, "Error": "", "StartedAt": "2026-11-21T08:06:22.311447461Z",
            "FinishedAt": "0001-01-01T00:00:00Z" },
        "HostConfig": {
            "NetworkMode": "stack",
            "RestartPolicy": { "Name": "", "MaximumRetryCount": 0 },
            "Devices": [{ "PathOnHost": "/dev/dri/renderD128", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm" }],
            "DeviceRequests": [
                { "Driver": "nvidia", "Count": 0, "DeviceIDs": ["0", "GPU-1"], "Capabilities": [["gpu"]], "Options": null },
                { "Driver": "", "Count": -1, "DeviceIDs": null, "Capabilities": [["gpu"]], "Options": {} }
            ]
        },
        "NetworkSettings": {
            "Ports": { "8000/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "8091" }], "9/udp": null }
        },
        "Config": { "Image": "vllm/vllm-openai:v0.6.0", "Tty": false, "Labels": { "portreeve.model": "llama" } }
    })
}

fn with(mut json: Value, path: &str, value: Value) -> Value {
    *json.pointer_mut(path).unwrap() = value;
    json
}

/// What is found by this name where every question is answered so.
fn found(name: &str, status: u16, body: Value) -> Result<Option<Made>, NoAnswer> {
    let fake = Fake::docker(move |_| Act::Answer(status, body.clone()));
    find(&fake.only(), name, LONG)
}

#[track_caller]
fn assert_strange<T: std::fmt::Debug>(answer: &Result<T, NoAnswer>, words: &str) {
    let Err(NoAnswer::Strange(why)) = answer else { panic!("{answer:?}: {words}") };
    assert!(why.contains(words), "{why}: {words}");
}

#[test]
fn a_container_is_found_by_its_name_as_it_was_made() {
    let fake = Fake::docker(|path| {
        assert_eq!(path, "GET /v1.41/containers/portreeve-llama/json");
        Act::Answer(200, made_json(1, "portreeve-llama"))
    });
    let made = find(&fake.only(), "portreeve-llama", LONG).unwrap().unwrap();
    assert_eq!(
        made,
        Made {
            id: id(1),
            name: "portreeve-llama".to_owned(),
            image: "vllm/vllm-openai:v0.6.0".to_owned(),
            labels: [("portreeve.model".to_owned(), "llama".to_owned())].into(),
            state: Phase::Running,
            main_pid: Some(Pid(301)),
            exit_code: None,
            oom_killed: false,
            error: String::new(),
            restart_policy: Some("no".to_owned()),
            started_at: Some("2026-11-21T08:06:22.311447461Z".to_owned()),
            finished_at: None,
            health: None,
            device_requests: ["0", "GPU-1", "all", "/dev/dri/renderD128"].map(str::to_owned).into(),
            network_mode: "stack".to_owned(),
            published: vec![Published {
                address: Some([127, 0, 0, 1].into()),
                port: Port::new(8091).unwrap(),
                proto: Proto::Tcp,
                container_port: Port::new(8000).unwrap(),
            }],
        }
    );
    assert!(made.stays_down());
}

#[test]
fn how_a_container_ended_is_told_and_what_did_not_end_has_no_code() {
    let state = |status: &str, running, code: i64, more: Value| {
        let mut state = json!({ "Status": status, "Running": running, "Pid": 0, "ExitCode": code });
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        found("a-b", 200, with(made_json(1, "a-b"), "/State", state)).unwrap().unwrap()
    };
    let killed = state(
        "exited",
        false,
        137,
        json!({ "OOMKilled": true, "FinishedAt": "2026-11-21T08:06:22Z", "Health": { "Status": "unhealthy" } }),
    );
    assert_eq!(
        (killed.state, killed.exit_code, killed.oom_killed),
        (Phase::Exited, Some(137), true)
    );
    assert_eq!((killed.main_pid, killed.health.as_deref()), (None, Some("unhealthy")));
    assert_eq!(killed.finished_at.as_deref(), Some("2026-11-21T08:06:22Z"));
    assert_eq!(state("exited", false, 0, json!({})).exit_code, Some(0));
    // As Docker writes one that could not be started.
    let failed = state("created", false, 128, json!({ "Error": "port is already allocated" }));
    assert_eq!((failed.state, failed.exit_code), (Phase::Created, Some(128)));
    assert_eq!(failed.error, "port is already allocated");
    // As Podman writes one that was never started and has no health check.
    let created = state("created", false, 0, json!({ "Health": { "Status": "" } }));
    assert_eq!((created.exit_code, created.health), (None, None));
    assert_eq!(state("paused", true, 0, json!({ "Paused": true })).exit_code, None);
}

#[test]
fn every_word_for_a_state_is_understood_and_a_contradiction_is_no_answer() {
    let state = |word: &str, running, paused, restarting| {
        let state = json!({ "Status": word, "Running": running, "Paused": paused, "Restarting": restarting, "Pid": 0 });
        found("a-b", 200, with(made_json(1, "a-b"), "/State", state))
            .map(|made| made.unwrap().state)
    };
    assert_eq!(state("running", true, false, false), Ok(Phase::Running));
    assert_eq!(state("running", true, true, false), Ok(Phase::Paused));
    assert_eq!(state("restarting", true, false, true), Ok(Phase::Restarting));
    assert_eq!(state("running", true, false, true), Ok(Phase::Restarting));
    // Podman's API for Docker's clients, of one that is being stopped.
    assert_eq!(state("running", false, false, false), Ok(Phase::Stopping));
    for (word, phase) in [
        ("created", Phase::Created),
        ("configured", Phase::Created),
        ("initialized", Phase::Created),
        ("stopping", Phase::Stopping),
        ("exited", Phase::Exited),
        ("stopped", Phase::Exited),
        ("dead", Phase::Dead),
        ("removing", Phase::Removing),
        ("frozen", Phase::Other("frozen".to_owned())),
        ("", Phase::Other(String::new())),
    ] {
        assert_eq!(state(word, false, false, false), Ok(phase));
    }
    for word in ["created", "exited", "dead"] {
        assert_strange(&state(word, true, false, false), word);
    }
}

#[test]
fn none_is_an_engines_own_word_in_either_engines_words() {
    assert_eq!(found("a-b", 404, json!({ "message": "No such container: a-b" })), Ok(None));
    let podman = json!({ "cause": "no such container", "response": 404,
        "message": "no container with name or ID \"a-b\" found: no such container" });
    assert_eq!(found("a-b", 404, podman), Ok(None));
    for (status, body) in [
        (404, json!({ "message": "page not found" })),
        (404, json!("no such container")),
        (404, Value::Null),
        (500, json!({ "message": "No such container: a-b" })),
        (200, json!({ "message": "No such container: a-b" })),
        (200, Value::Null),
        (204, Value::Null),
    ] {
        let answer = found("a-b", status, body.clone());
        assert!(matches!(answer, Err(NoAnswer::Strange(_))), "{status} {body}: {answer:?}");
    }
    assert_eq!(found("a-b", 403, Value::Null), Err(NoAnswer::Denied));
}

#[test]
fn another_container_than_the_one_that_was_asked_for_is_no_answer() {
    assert_strange(&found("a-b", 200, made_json(1, "a-b-c")), "another container");
    assert_strange(&found(&id(2).0, 200, made_json(1, "a-b")), "another container");
    assert!(found(&id(1).0, 200, made_json(1, "a-b")).unwrap().is_some());
    let short = with(made_json(1, "a-b"), "/Id", json!("0001"));
    assert_strange(&found("a-b", 200, short), "another container");
    // Nothing that would lead to another path is asked at all.
    for name in ["", "/a", "a/json?x=", "..", "a b", "ä", "a%2fb", "-a"] {
        let fake = Fake::docker(|_| Act::Hang);
        let answer = find(&fake.only(), name, LONG);
        assert!(matches!(answer, Err(NoAnswer::NoWay(_))), "{name}: {answer:?}");
        assert_eq!(fake.connections(), 0);
    }
}

/// Both engines would find any container whose id begins so.
#[test]
fn a_name_that_may_begin_an_id_is_looked_for_among_the_names() {
    let fake = Fake::docker(|path| match path {
        "GET /v1.41/containers/json?all=true" => Act::Answer(
            200,
            json!([
                { "Id": format!("dbdb{}", &id(1).0[4..]), "Names": ["/other"], "Image": "x", "State": "running" },
                { "Id": id(2).0, "Names": ["/other/alias", "/db"], "Image": "x", "State": "exited" },
            ]),
        ),
        path => {
            assert_eq!(path, format!("GET /v1.41/containers/{}/json", id(2)));
            Act::Answer(200, made_json(2, "db"))
        }
    });
    assert_eq!(find(&fake.only(), "db", LONG).unwrap().unwrap().id, id(2));
    assert_eq!(find(&fake.only(), "dbdb", LONG), Ok(None));
}

#[test]
fn a_list_has_every_container_with_its_labels_and_networks() {
    let fake = Fake::podman(|path| {
        assert_eq!(path, "GET /v1.41/containers/json?all=true");
        Act::Answer(
            200,
            json!([
                { "Id": id(1).0, "Names": ["/one"], "Image": "localhost/plant:latest", "State": "stopped",
                    "Labels": { "portreeve.model": "m" },
                    "NetworkSettings": { "Networks": { "stack": { "NetworkID": "x" }, "podman": null } } },
                { "Id": id(2).0, "Names": null, "Image": "x", "State": "odd", "Labels": null, "NetworkSettings": null },
            ]),
        )
    });
    let listed = list(&fake.only(), LONG).unwrap();
    assert_eq!(
        listed[0],
        Listed {
            id: id(1),
            name: "one".to_owned(),
            labels: [("portreeve.model".to_owned(), "m".to_owned())].into(),
            state: Phase::Exited,
            image: "localhost/plant:latest".to_owned(),
            networks: ["podman", "stack"].map(str::to_owned).into(),
        }
    );
    assert_eq!(
        (listed[1].name.as_str(), &listed[1].state),
        (id(2).short(), &Phase::Other("odd".to_owned()))
    );
    let short =
        Fake::docker(|_| Act::Answer(200, json!([{ "Id": "7", "Image": "x", "State": "exited" }])));
    assert_strange(&list(&short.only(), LONG), "its list has '7'");
}

#[test]
fn half_an_answer_and_one_without_end_are_none() {
    let said = |act: fn() -> Act, timeout| {
        let fake = Fake::docker(move |_| act());
        find(&fake.only(), "a-b", timeout)
    };
    assert_strange(
        &said(|| Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"Id".to_vec()), LONG),
        "body",
    );
    assert_strange(&said(|| Act::Raw(b"garbage\r\n\r\n".to_vec()), LONG), "");
    assert_strange(&said(|| Act::Flood, LONG), "longer than");
    assert_eq!(said(|| Act::Hang, SHORT), Err(NoAnswer::Late));
    assert_eq!(said(|| Act::Dribble, SHORT), Err(NoAnswer::Late));
}

#[test]
fn a_podman_that_listens_nowhere_is_told_how_to_listen_and_never_run() {
    let fake = Fake::nowhere();
    let root = fake.folder.path();
    let podman = at(&fake.host(), EngineKind::Podman, "run/podman/podman.sock");
    assert_eq!(
        find(&podman, "a-b", LONG),
        Err(NoAnswer::Absent),
        "without its command there is none"
    );
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    let program = root.join("usr/bin/podman");
    // It could not even be run.
    fs::write(&program, "").unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let how = "nobody listens at '/run/podman/podman.sock'\nhint: open it with: systemctl enable --now podman.socket";
    let why = Err(NoAnswer::NoWay(how.to_owned()));
    assert_eq!(find(&podman, "a-b", LONG), why);
    fs::create_dir_all(root.join("run/podman")).unwrap();
    drop(UnixListener::bind(root.join("run/podman/podman.sock")).unwrap());
    assert_eq!(find(&podman, "a-b", LONG), why, "a socket that is left over");
    let users = of_user(&fake.host(), EngineKind::Podman, 4242);
    let why = find(&users, "a-b", LONG).unwrap_err().to_string();
    assert!(
        why.ends_with("hint: open it with: systemctl --user enable --now podman.socket"),
        "{why}"
    );
    let docker = at(&fake.host(), EngineKind::Docker, "run/docker.sock");
    assert_eq!(find(&docker, "a-b", LONG), Err(NoAnswer::Absent));
}
