use serde_json::{Value, json};

use super::{
    super::{fake::*, tests::with_podman},
    *,
};

const SHORT: Duration = Duration::from_millis(600);
/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);
const BOTH: Which = Which { docker: true, docker_socket: None, podman: true };
const DOCKER: &str = "run/docker.sock";
const PODMAN: &str = "run/podman/podman.sock";

fn listed(number: u8, name: &str) -> Value {
    json!({ "Id": id(number).0, "Names": [format!("/{name}")], "Image": "vllm", "State": "running",
        "Labels": { "stack": "ai" }, "NetworkSettings": { "Networks": { "stack": {} } } })
}

fn engine(version: fn() -> Value, list: Value) -> impl Fn(&str) -> Act + Send + Sync + 'static {
    move |path| {
        let body = if path == "GET /version" { version() } else { list.clone() };
        Act::Answer(200, body)
    }
}

/// Engine by engine: its containers' names, or why there are none.
fn said(fake: &Fake, timeout: Duration) -> Vec<(String, Result<Vec<String>, NoAnswer>)> {
    let names = |all: Vec<Listed>| all.into_iter().map(|one| one.name).collect();
    let all = list_everywhere(&fake.host(), &BOTH, 0, timeout).into_iter();
    all.map(|one| (one.engine.name.to_string(), one.containers.map(names))).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_engine_is_asked_and_one_that_hangs_is_told_from_one_that_is_not_here() {
    assert_eq!(said(&Fake::nowhere(), LONG), []);
    let fake = Fake::at(DOCKER, engine(docker_version, json!([listed(1, "one")])));
    assert_eq!(said(&fake, LONG), [("docker".to_owned(), Ok(names(&["one"])))]);
    fake.listen(PODMAN, |_| Act::Hang);
    assert_eq!(
        said(&fake, SHORT),
        [("docker".to_owned(), Ok(names(&["one"]))), ("podman".to_owned(), Err(NoAnswer::Late))]
    );
}

#[test]
fn a_podman_at_dockers_place_is_called_so_and_its_containers_are_told_once() {
    let list = json!([listed(1, "one"), listed(2, "two")]);
    let fake = Fake::at(DOCKER, engine(podman_version, list.clone()));
    fake.listen(PODMAN, engine(podman_version, list));
    assert_eq!(
        said(&fake, LONG),
        [("podman".to_owned(), Ok(names(&["one", "two"]))), ("podman".to_owned(), Ok(Vec::new()))]
    );
}

#[test]
fn a_podman_that_listens_nowhere_is_asked_by_its_command() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // As Podman 4.3 prints it.
    let list = json!([{ "Id": id(1).0, "Names": ["vllm-model-llama"], "Image": "localhost/vllm:latest",
        "State": "exited", "Labels": { "io.portreeve.model": "llama" }, "Networks": ["stack"] },
        { "Id": id(2).0, "Names": ["bare"], "Image": "x", "State": "created", "Labels": null, "Networks": null }]);
    let fake = with_podman(&format!("[ $1 = ps ] && echo '{list}'"));
    let mut all = list_everywhere(&fake.host(), &BOTH, 0, LONG);
    let all = all.pop().unwrap().containers.unwrap();
    assert_eq!(all[0].name, "vllm-model-llama");
    assert_eq!(all[0].labels["io.portreeve.model"], "llama");
    assert_eq!((&all[0].state, &all[0].networks), (&made::Phase::Exited, &names(&["stack"])));
    assert_eq!((all[1].labels.len(), all[1].networks.len()), (0, 0));
    let broken = with_podman("echo 'Error: database is locked' >&2; exit 125");
    let mut all = list_everywhere(&broken.host(), &BOTH, 0, LONG);
    let why = all.pop().unwrap().containers.unwrap_err().to_string();
    assert!(why.contains("database is locked"), "{why}");
}
