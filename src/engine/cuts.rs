//! An engine that dies in the middle of an answer: cut at every byte, by an end or by silence. Half an answer is none.

use std::{
    fmt::Debug,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use super::{fake::*, *};

/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

/// The forms in which a body is sent: of a known length, in chunks, until the connection ends.
fn forms(status: &str, body: &str) -> [Vec<u8>; 3] {
    let (first, second) = body.split_at(body.len() / 2);
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    [
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        format!(
            "HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n{}{}0\r\n\r\n",
            chunk(first),
            chunk(second)
        ),
        format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}"),
    ]
    .map(String::into_bytes)
}

/// Asks an engine that says only so much of `whole` when it is asked for `what`, for every length: then it closes, and at some
/// lengths it says nothing more. The whole is an answer, whatever is shorter is none.
fn cut<T: Debug>(
    what: &'static str,
    whole: &[u8],
    ask: impl Fn(&Engine, Duration) -> T,
    is_none: impl Fn(&T) -> bool,
) {
    let said = Arc::new(Mutex::new((Vec::new(), false)));
    let told = Arc::clone(&said);
    let fake = Fake::at("run/docker.sock", move |path| {
        if path.starts_with(what) {
            let (bytes, is_silent) = told.lock().unwrap().clone();
            return if is_silent { Act::Begin(bytes) } else { Act::Raw(bytes) };
        }
        assert_eq!(path, "GET /version");
        Act::Answer(200, docker_version())
    });
    for length in 0..whole.len() {
        for is_silent in [false, true] {
            if is_silent && !length.is_multiple_of(61) {
                continue;
            }
            *said.lock().unwrap() = (whole[..length].to_vec(), is_silent);
            let answer = ask(&fake.only(), if is_silent { SHORT } else { LONG });
            assert!(is_none(&answer), "{what}, {length} of {} bytes: {answer:?}", whole.len());
        }
    }
    *said.lock().unwrap() = (whole.to_vec(), false);
    let answer = ask(&fake.only(), LONG);
    assert!(!is_none(&answer), "{what}, all of it: {answer:?}");
}

fn inspected(engine: &Engine, timeout: Duration) -> Seen<Container> {
    let mut answer = ask(&[Question::about(engine.clone(), [id(1)])], timeout).remove(0);
    answer.containers.remove(&id(1)).unwrap()
}

fn is_unread<T>(seen: &Seen<T>) -> bool {
    matches!(seen, Seen::Unreadable(_))
}

#[test]
fn half_of_what_it_says_of_a_container_is_no_fact() {
    for whole in forms("200 OK", &a_running_container().to_string()) {
        cut("GET /v1.41/containers/", &whole, inspected, is_unread);
    }
    let unknown = json!({ "message": format!("No such container: {}", id(1)) });
    for whole in forms("404 Not Found", &unknown.to_string()) {
        // "It is gone" is a fact like any other.
        cut("GET /v1.41/containers/", &whole, inspected, is_unread);
    }
}

#[test]
fn half_of_what_it_says_of_itself_is_no_engine() {
    for whole in forms("200 OK", &docker_version().to_string()) {
        cut("GET /version", &whole, version, Result::is_err);
    }
}

#[test]
fn half_a_list_is_no_list() {
    let one = |number: u8| json!({ "Id": id(number).0, "Names": ["/aidb"], "State": "running", "Ports": null });
    let list = |engine: &Engine, timeout: Duration| {
        let question = Question { running: true, ..Question::about(engine.clone(), []) };
        super::ask(&[question], timeout).remove(0).running
    };
    for body in [json!([one(1), one(2)]), json!([])] {
        for whole in forms("200 OK", &body.to_string()) {
            cut("GET /v1.41/containers/json", &whole, list, |said| {
                said.as_ref().is_none_or(is_unread)
            });
        }
    }
}

#[test]
fn an_order_whose_answer_is_cut_is_not_known_to_be_done() {
    let is_unknown = |deed: &Deed| matches!(deed, Deed::NoAnswer(_));
    let stop = |engine: &Engine, timeout| super::stop(engine, &id(1), Duration::ZERO, timeout);
    let start = |engine: &Engine, timeout| super::start(engine, &id(1), timeout);
    let gone = json!({ "message": "No such container: x" }).to_string();
    // Without a length or chunks, half of a refusal is a refusal without words.
    let [length, chunks, _] = forms("404 Not Found", &gone);
    let wholes = [length, chunks].into_iter().chain([
        b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        b"HTTP/1.1 304 Not Modified\r\nServer: Docker\r\n\r\n".to_vec(),
    ]);
    for whole in wholes {
        cut("POST /v1.41/containers/", &whole, stop, is_unknown);
        cut("POST /v1.41/containers/", &whole, start, is_unknown);
    }
}

#[test]
fn a_container_of_whose_creation_half_is_told_is_not_known_to_be_made() {
    let create = |engine: &Engine, timeout| super::create(engine, "llama", "{}", timeout);
    let body: Value = json!({ "Id": id(1).0, "Warnings": ["no swap limit"] });
    for whole in forms("201 Created", &body.to_string()) {
        cut("POST /v1.41/containers/create", &whole, create, |answer| {
            matches!(answer, Err(Refused::NoAnswer(_)))
        });
    }
}
