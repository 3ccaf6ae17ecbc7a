use serde_json::{Value, json};

use super::{super::fake::*, *};

/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);

fn said(text: &str) -> Value {
    json!({ "message": text })
}

fn network_json(attached: &Value) -> Value {
    json!({ "Name": "stack", "Id": id(9).0, "Driver": "bridge", "Containers": attached })
}

/// A network to which this is attached, and what else is asked about it.
fn with_network(
    attached: Value,
    act: impl Fn(&str) -> Act + Send + Sync + 'static,
) -> impl Fn(&str) -> Act + Send + Sync + 'static {
    let by = ["stack".to_owned(), id(9).0].map(|by| format!("GET /v1.41/networks/{by}"));
    move |path| {
        if by.contains(&path.to_owned()) {
            Act::Answer(200, network_json(&attached))
        } else {
            act(path)
        }
    }
}

fn nothing_else(path: &str) -> Act {
    panic!("asked for {path}")
}

#[test]
fn a_network_is_found_by_its_name_with_what_is_attached_to_it() {
    let attached =
        json!({ id(1).0: { "Name": "llama", "EndpointID": "x" }, "ep-77": { "Name": "old" } });
    let fake = Fake::docker(with_network(attached, nothing_else));
    let found = network(&fake.only(), "stack", LONG).unwrap().unwrap();
    let attached = [(id(1), "llama"), (ContainerId("ep-77".to_owned()), "old")];
    let attached = attached.map(|(id, name)| (id, name.to_owned())).into();
    assert_eq!(found, Network { id: id(9).0, name: "stack".to_owned(), attached });
    let fake = Fake::podman(with_network(Value::Null, nothing_else));
    assert_eq!(network(&fake.only(), &id(9).0, LONG).unwrap().unwrap().attached, []);
}

#[test]
fn that_there_is_no_such_network_is_an_engines_own_word() {
    let answer = |status, body: Value| {
        let fake = Fake::docker(move |_| Act::Answer(status, body.clone()));
        network(&fake.only(), "stack", LONG)
    };
    assert_eq!(answer(404, said("network stack not found")), Ok(None));
    let podman = json!({ "cause": "network not found", "response": 404,
        "message": "unable to find network with name or ID stack: network not found" });
    assert_eq!(answer(404, podman), Ok(None));
    assert_eq!(answer(404, said("No such network: stack")), Ok(None));
    for (status, body) in [
        (404, said("page not found")),
        (404, Value::Null),
        (500, said("network stack not found")),
        (200, json!({ "Name": "stack-2", "Id": id(9).0 })),
        (200, json!([])),
    ] {
        let answer = answer(status, body.clone());
        assert!(matches!(answer, Err(NoAnswer::Strange(_))), "{status} {body}: {answer:?}");
    }
}

#[test]
fn a_network_whose_name_may_begin_an_id_is_looked_for_among_the_names() {
    let fake = Fake::docker(with_network(json!({}), |path| {
        assert_eq!(path, "GET /v1.41/networks");
        Act::Answer(
            200,
            json!([{ "Name": "x", "Id": format!("ab{}", &id(1).0[2..]) }, { "Name": "stack", "Id": id(9).0 }]),
        )
    }));
    assert_eq!(network(&fake.only(), "ab", LONG), Ok(None));
}

#[test]
fn a_container_is_taken_off_a_network() {
    let deed = |status, body: Value| {
        let fake = Fake::docker(move |path| {
            let body_sent = format!("{{\"Container\":\"{}\",\"Force\":false}}", id(1));
            assert_eq!(path, format!("POST /v1.41/networks/{}/disconnect {body_sent}", id(9)));
            Act::Answer(status, body.clone())
        });
        disconnect(&fake.only(), &id(9).0, &id(1), false, LONG)
    };
    assert_eq!(deed(200, Value::Null), Deed::Done);
    assert_eq!(deed(404, said("network 9 not found")), Deed::Gone);
    assert_eq!(deed(404, said("No such container: 1")), Deed::Gone);
    for (status, words) in [
        (500, "container 1 is not connected to network stack"),
        (500, "container 1 is not connected to the network stack"),
        (404, "endpoint 1 not found"),
        // Podman's, of a network that is there.
        (404, "container 1 is not connected to CNI network \"stack\": network not found"),
    ] {
        assert_eq!(deed(status, said(words)), Deed::AlreadySo, "{words}");
    }
    assert_eq!(deed(403, said("not in swarm")), Deed::Failed(403, "not in swarm".to_owned()));
    assert_eq!(deed(404, said("page not found")), Deed::Failed(404, "page not found".to_owned()));
}

#[test]
fn what_is_left_over_on_a_network_is_taken_off_by_its_name_unless_that_may_be_anothers() {
    let endpoint = ContainerId("ep-77".to_owned());
    let freed = |name: &'static str, known: (u16, Value)| {
        let fake = Fake::docker(with_network(json!({ "ep-77": { "Name": name } }), move |path| {
            if path.starts_with("GET /v1.41/containers/") {
                return Act::Answer(known.0, known.1.clone());
            }
            let order = format!("POST /v1.41/networks/{}/disconnect", id(9));
            assert_eq!(path, format!("{order} {{\"Container\":\"{name}\",\"Force\":true}}"));
            Act::Answer(200, Value::Null)
        }));
        disconnect(&fake.only(), &id(9).0, &endpoint, false, LONG)
    };
    let unknown = || (404, said("No such container: x"));
    assert_eq!(freed("llama", unknown()), Deed::Done);
    let another = json!({ "Id": id(3).0, "Name": "/llama", "Config": {},
        "State": { "Status": "running", "Running": true, "Pid": 7 } });
    assert!(matches!(freed("llama", (200, another)), Deed::Conflict(_)));
    assert!(matches!(freed("llama", (500, said("no"))), Deed::NoAnswer(_)));
    // By this name Docker would find any container whose id begins so.
    assert!(matches!(freed("db", unknown()), Deed::Conflict(_)));
    let other = Fake::docker(with_network(json!({ "ep-78": { "Name": "llama" } }), nothing_else));
    assert_eq!(disconnect(&other.only(), &id(9).0, &endpoint, true, LONG), Deed::AlreadySo);
}

#[test]
fn a_network_is_removed_only_where_nothing_is_attached_to_it() {
    let free = |fake: Fake| remove_network(&fake.only(), &id(9).0, LONG);
    let done = |expected: String| {
        move |path: &str| {
            assert_eq!(path, expected);
            Act::Answer(204, Value::Null)
        }
    };
    let docker = done(format!("DELETE /v1.41/networks/{}", id(9)));
    assert_eq!(free(Fake::docker(with_network(json!({}), docker))), Deed::Done);
    // By an id, Podman 4.3 looks for nobody who uses it.
    let podman = done("DELETE /v1.41/networks/stack".to_owned());
    assert_eq!(free(Fake::podman(with_network(json!({}), podman))), Deed::Done);
    let attached = json!({ id(1).0: { "Name": "llama" } });
    let kept = free(Fake::docker(with_network(attached, nothing_else)));
    assert_eq!(kept, Deed::Conflict("'llama' is attached to it".to_owned()));

    let refused = |status, words: &'static str| {
        free(Fake::docker(with_network(json!({}), move |_| Act::Answer(status, said(words)))))
    };
    for (status, words) in [
        (403, "error while removing network: network stack id 9 has active endpoints"),
        (500, "\"stack\" has associated containers with it. Use -f to …: network is being used"),
    ] {
        assert_eq!(refused(status, words), Deed::Conflict(words.to_owned()));
    }
    assert_eq!(refused(404, "network 9 not found"), Deed::Gone);
    let words = "bridge is a pre-defined network and cannot be removed";
    assert_eq!(refused(403, words), Deed::Failed(403, words.to_owned()));
    let gone = Fake::docker(|_| Act::Answer(404, said("network 9 not found")));
    assert_eq!(free(gone), Deed::Gone);
}

#[test]
fn a_network_is_named_in_orders_by_its_whole_id_alone() {
    let fake = Fake::docker(|_| Act::Hang);
    for network in ["stack", "", "0009", "../containers"] {
        assert!(matches!(remove_network(&fake.only(), network, LONG), Deed::NoAnswer(_)));
        assert!(matches!(disconnect(&fake.only(), network, &id(1), true, LONG), Deed::NoAnswer(_)));
    }
    let name = ContainerId("llama".to_owned());
    assert!(matches!(disconnect(&fake.only(), &id(9).0, &name, true, LONG), Deed::NoAnswer(_)));
    assert_eq!(fake.connections(), 0);
}
