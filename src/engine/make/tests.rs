use serde_json::{Value, json};

use super::{super::fake::*, *};

/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn said(text: &str) -> Value {
    json!({ "message": text })
}

fn creating(status: u16, body: Value) -> Result<Created, Refused> {
    let fake = Fake::docker(move |path| {
        assert_eq!(path, "POST /v1.41/containers/create?name=llama {\"Image\":\"x\"}");
        Act::Answer(status, body.clone())
    });
    create(&fake.only(), "llama", r#"{"Image":"x"}"#, LONG)
}

#[test]
fn a_container_is_created_as_its_body_says_and_its_id_is_told() {
    let created = creating(201, json!({ "Id": id(1).0, "Warnings": ["no swap limit"] }));
    assert_eq!(created, Ok(Created { id: id(1), warnings: vec!["no swap limit".to_owned()] }));
    let created = creating(201, json!({ "Id": id(1).0, "Warnings": null }));
    assert_eq!(created, Ok(Created { id: id(1), warnings: Vec::new() }));
    for body in [json!({ "Id": "7", "Warnings": null }), json!({}), Value::Null] {
        let created = creating(201, body.clone());
        assert!(
            matches!(created, Err(Refused::NoAnswer(NoAnswer::Strange(_)))),
            "{body}: {created:?}"
        );
    }
}

#[test]
fn a_name_that_is_taken_and_an_image_that_is_missing_are_told_apart_in_both_engines_words() {
    let taken = "Conflict. The container name \"/llama\" is already in use by container \"7133\". You have to remove (or \
                 rename) that container to be able to reuse that name.";
    assert_eq!(creating(409, said(taken)), Err(Refused::NameTaken(taken.to_owned())));
    // As Podman 4.3 answers.
    let podmans = "container create: creating container storage: the container name \"llama\" is already in use by 943b. You \
                   have to remove that container to be able to reuse that name: that name is already in use";
    let body =
        json!({ "cause": "that name is already in use", "message": podmans, "response": 500 });
    assert!(matches!(creating(500, body), Err(Refused::NameTaken(_))));

    let missing = "No such image: x:latest";
    assert_eq!(creating(404, said(missing)), Err(Refused::NoImage(missing.to_owned())));
    let podmans = "no such image: docker.io/library/x: image not known";
    let body = json!({ "cause": "image not known", "message": podmans, "response": 404 });
    assert_eq!(creating(404, body), Err(Refused::NoImage(podmans.to_owned())));

    for (status, words) in [
        (404, "page not found"),
        (404, "network x not found"),
        (409, "removal in progress"),
        (400, "invalid: image"),
        (500, "disk full"),
        (500, "No such image: x"),
        (500, "port is already in use"),
    ] {
        assert_eq!(creating(status, said(words)), Err(Refused::Failed(status, words.to_owned())));
    }
}

#[test]
fn what_is_created_once_is_not_created_again_where_no_answer_comes() {
    let closed = Fake::docker(|_| Act::Raw(Vec::new()));
    let answer = create(&closed.only(), "llama", "{}", LONG);
    assert!(matches!(answer, Err(Refused::NoAnswer(NoAnswer::Strange(_)))), "{answer:?}");
    assert_eq!(closed.connections(), 1);
    let hung = Fake::docker(|_| Act::Hang);
    let answer = create(&hung.only(), "llama", "{}", SHORT);
    assert_eq!(answer, Err(Refused::NoAnswer(NoAnswer::Late)));
    // A name that is another path is none.
    let fake = Fake::docker(|_| Act::Hang);
    let answer = create(&fake.only(), "llama&platform=x", "{}", LONG);
    assert!(matches!(answer, Err(Refused::NoAnswer(NoAnswer::NoWay(_)))), "{answer:?}");
    assert_eq!(fake.connections(), 0);
}

#[test]
fn what_came_of_a_start_is_told_by_the_engines_answer() {
    let started = |status, body: Value| {
        let fake = Fake::podman(move |path| {
            assert_eq!(path, format!("POST /v1.41/containers/{}/start", id(1)));
            Act::Answer(status, body.clone())
        });
        start(&fake.only(), &id(1), LONG)
    };
    assert_eq!(started(204, Value::Null), Deed::Done);
    assert_eq!(started(304, Value::Null), Deed::AlreadySo);
    assert_eq!(started(404, said("No such container: x")), Deed::Gone);
    let words = "OCI runtime create failed: executable file not found";
    assert_eq!(started(404, said(words)), Deed::Failed(404, words.to_owned()));
    assert_eq!(
        started(500, said("port is already allocated")),
        Deed::Failed(500, "port is already allocated".to_owned())
    );
    // A beginning of an id would start another one.
    let fake = Fake::docker(|_| Act::Hang);
    let deed = start(&fake.only(), &ContainerId(id(1).short().to_owned()), LONG);
    assert!(matches!(deed, Deed::NoAnswer(_)), "{deed:?}");
    assert_eq!(fake.connections(), 0);
}

/// A container whose restart policy is this, until an update is answered so; then it is the other.
fn restarting(
    before: &'static str,
    update: (u16, Value),
    after: &'static str,
) -> impl Fn(&str) -> Act {
    let is_updated = std::sync::atomic::AtomicBool::new(false);
    move |path| {
        use std::sync::atomic::Ordering::SeqCst;
        if path == format!("GET /v1.41/containers/{}/json", id(1)) {
            let policy = if is_updated.load(SeqCst) { after } else { before };
            let state = json!({ "Status": "running", "Running": true, "Pid": 7, "ExitCode": 0 });
            return Act::Answer(
                200,
                json!({ "Id": id(1).0, "Name": "/llama", "State": state, "Config": {},
                    "HostConfig": { "RestartPolicy": { "Name": policy } } }),
            );
        }
        let expected = format!(
            "POST /v1.41/containers/{}/update {{\"RestartPolicy\":{{\"Name\":\"no\"}}}}",
            id(1)
        );
        assert_eq!(path, expected);
        is_updated.store(true, SeqCst);
        Act::Answer(update.0, update.1.clone())
    }
}

#[test]
fn restarts_are_forbidden_only_where_the_engine_then_says_so() {
    let docker = |before, update, after| {
        let fake = Fake::docker(restarting(before, update, after));
        forbid_restarts(&fake.only(), &id(1), LONG)
    };
    let done = || (200, json!({ "Warnings": null }));
    assert_eq!(docker("always", done(), "no"), Deed::Done);
    assert_eq!(docker("unless-stopped", done(), ""), Deed::Done);
    let Deed::Failed(200, why) = docker("always", done(), "always") else { panic!("believed") };
    assert_eq!(why, "its restart policy is still 'always'");
    assert_eq!(docker("no", (500, said("not to be asked")), "no"), Deed::AlreadySo);
    assert_eq!(docker("", (500, said("not to be asked")), "no"), Deed::AlreadySo);
    assert_eq!(
        docker("always", (409, said("being removed")), "no"),
        Deed::Conflict("being removed".to_owned())
    );
    assert_eq!(
        docker("always", (404, said("page not found")), "no"),
        Deed::Failed(404, "page not found".to_owned())
    );
    let gone = Fake::docker(|_| Act::Answer(404, said("No such container: x")));
    assert_eq!(forbid_restarts(&gone.only(), &id(1), LONG), Deed::Gone);
}

#[test]
fn a_podman_that_cannot_forbid_restarts_says_so_with_its_version() {
    // Its answer to a path that it does not have is a line of text.
    let fake = Fake::podman(restarting("always", (404, json!("Not Found")), "always"));
    let deed = forbid_restarts(&fake.only(), &id(1), LONG);
    let why = "Podman 4.3.1 cannot change a restart policy, 5.1 can";
    assert_eq!(deed, Deed::Failed(404, why.to_owned()));
    let newer = Fake::podman(restarting("always", (200, json!({ "Warnings": null })), "no"));
    assert_eq!(forbid_restarts(&newer.only(), &id(1), LONG), Deed::Done);
}
