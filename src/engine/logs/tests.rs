use std::{cell::Cell, time::Instant};

use serde_json::{Value, json};

use super::{super::fake::*, *};

/// Never reached, unless a test fails.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn container(has_terminal: bool) -> Value {
    json!({ "Id": id(1).0, "Name": "/llama", "Config": { "Tty": has_terminal },
        "State": { "Status": "running", "Running": true, "Pid": 7 } })
}

fn frame(stream: u8, text: &[u8]) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[stream, 0, 0, 0], &length[..], text].concat()
}

/// A log that ends with its connection, as an engine sends it to an old client.
fn head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec()
}

fn engine_with(
    has_terminal: bool,
    log: impl Fn(&str) -> Act + Send + Sync + 'static,
) -> impl Fn(&str) -> Act + Send + Sync + 'static {
    move |path| {
        if path.contains("/json") { Act::Answer(200, container(has_terminal)) } else { log(path) }
    }
}

/// What is read of a log that is this body.
fn read(has_terminal: bool, body: Vec<u8>, tail: usize) -> Result<Vec<String>, NoAnswer> {
    let log = move |_: &str| Act::Raw([head(), body.clone()].concat());
    logs(&Fake::docker(engine_with(has_terminal, log)).only(), &id(1), tail, LONG)
}

#[track_caller]
fn assert_strange<T: std::fmt::Debug>(answer: &Result<T, NoAnswer>, words: &str) {
    let Err(NoAnswer::Strange(why)) = answer else { panic!("{answer:?}: {words}") };
    assert!(why.contains(words), "{why}: {words}");
}

#[test]
fn both_streams_are_read_in_their_order() {
    let fake = Fake::docker(|path| match path.replace(&id(1).0, "ID").as_str() {
        "GET /v1.41/containers/ID/json" => Act::Answer(200, container(false)),
        path => {
            assert_eq!(
                path,
                "GET /v1.41/containers/ID/logs?stdout=true&stderr=true&follow=false&tail=9"
            );
            let frames = [
                frame(1, b"out1\n"),
                frame(2, b"err1\r\n"),
                frame(1, b"out2\n"),
                frame(1, b"no end"),
            ];
            Act::Raw([head(), frames.concat()].concat())
        }
    });
    let lines = logs(&fake.only(), &id(1), 9, LONG).unwrap();
    assert_eq!(lines, ["out1", "err1", "out2", "no end"]);
}

#[test]
fn a_line_is_whole_however_its_bytes_come() {
    // Several frames of a line, another stream in between, several lines of a frame, an empty frame, an empty line.
    let frames = [
        frame(1, b"begin "),
        frame(2, b"err\n"),
        frame(1, b""),
        frame(1, b"end\nnext\n\n"),
        frame(1, "zw\u{f6}lf \u{1f980}\n".as_bytes()),
        frame(1, b"\xff\xfe\n"),
        frame(3, b"the daemon's own word\n"),
    ]
    .concat();
    let expected =
        ["err", "begin end", "next", "", "zwölf 🦀", "\u{fffd}\u{fffd}", "the daemon's own word"];
    assert_eq!(read(false, frames.clone(), 100).unwrap(), expected);
    // Byte by byte.
    let (mut lines, mut got) = (Lines::new(false), Vec::new());
    let mut each = |line: String| {
        got.push(line);
        ControlFlow::Continue(())
    };
    for byte in frames {
        assert_eq!(lines.take(&[byte], &mut each), Ok(ControlFlow::Continue(())));
    }
    assert_eq!(lines.end(&mut each), Ok(()));
    assert_eq!(got, expected);
}

#[test]
fn a_terminals_one_stream_is_read_as_it_is() {
    let body = b"out1\r\n\x01\x00\x00\x00\x00\x00\x00\x02\r\nno end".to_vec();
    let lines = read(true, body, 100).unwrap();
    assert_eq!(lines, ["out1", "\u{1}\0\0\0\0\0\0\u{2}", "no end"]);
    assert_eq!(read(true, Vec::new(), 100), Ok(Vec::new()));
}

#[test]
fn of_too_much_the_last_lines_are_kept() {
    let frames: Vec<u8> = (0..1000).flat_map(|n| frame(1, format!("{n}\n").as_bytes())).collect();
    assert_eq!(read(false, frames.clone(), 2).unwrap(), ["998", "999"]);
    assert_eq!(read(false, frames, 0), Ok(Vec::new()));
    // 3 MiB of it.
    let text = "x".repeat(1 << 10);
    let long: Vec<u8> =
        (0..3 << 10).flat_map(|n| frame(1, format!("{n} {text}\n").as_bytes())).collect();
    let kept = read(false, long, usize::MAX).unwrap();
    assert!(kept.last().unwrap().starts_with("3071 "));
    let bytes: usize = kept.iter().map(String::len).sum();
    assert!(bytes <= MOST_BYTES && bytes > MOST_BYTES - 2000, "{bytes}");
    // Empty lines take room, too.
    let empty = read(false, frame(1, &vec![b'\n'; MOST_LINES + 5]), usize::MAX).unwrap();
    assert_eq!(empty.len(), MOST_LINES);
    // A line without end is cut.
    let endless: Vec<u8> = (0..9).flat_map(|_| frame(1, &[b'y'; 16 << 10])).collect();
    let lengths: Vec<usize> = read(false, endless, 9).unwrap().iter().map(String::len).collect();
    assert_eq!(lengths, [64 << 10, 64 << 10, 16 << 10]);
}

#[test]
fn what_is_no_log_is_no_answer() {
    assert_strange(&read(false, b"no frames at all\n".to_vec(), 9), "in no form");
    assert_strange(
        &read(false, [frame(1, b"x\n"), vec![1, 0, 0, 7, 0, 0, 0, 1, 0]].concat(), 9),
        "in no form",
    );
    assert_strange(&read(false, [frame(1, b"x\n"), vec![1, 0, 0]].concat(), 9), "in the middle");
    assert_strange(&read(false, frame(1, b"half of it\n")[..12].to_vec(), 9), "in the middle");
    let said = |act: fn() -> Act, timeout| {
        logs(&Fake::docker(engine_with(true, move |_| act())).only(), &id(1), 9, timeout)
    };
    let half = || Act::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec());
    assert_strange(&said(half, LONG), "body");
    let none = || {
        Act::Answer(501, json!({ "message": "configured logging driver does not support reading" }))
    };
    assert_strange(&said(none, LONG), "it answered 501: configured logging driver");
    let begin = || Act::Begin([head(), b"a line\n".to_vec()].concat());
    assert_eq!(said(begin, SHORT), Err(NoAnswer::Late));
    assert_eq!(said(|| Act::Hang, SHORT), Err(NoAnswer::Late));
    // Without end: no more is kept than agreed, and the deadline holds.
    assert_eq!(said(|| Act::Flood, SHORT), Err(NoAnswer::Late));
    let gone = Fake::docker(|_| Act::Answer(404, json!({ "message": "No such container: x" })));
    assert_strange(&logs(&gone.only(), &id(1), 9, LONG), "no such container");
}

#[test]
fn whoever_follows_hears_each_line_until_the_container_ends() {
    let frames = [frame(1, b"loading\n"), frame(2, b"ready\n")].concat();
    let fake = Fake::docker(engine_with(false, move |path| {
        assert!(path.ends_with("follow=true&tail=5"), "{path}");
        Act::Raw([head(), frames.clone()].concat())
    }));
    let mut lines = Vec::new();
    let mut each = |line: &str| {
        lines.push(line.to_owned());
        ControlFlow::Continue(())
    };
    let followed = follow_logs(&fake.only(), &id(1), 5, LONG, &mut each, &|| false);
    assert_eq!(followed, Ok(()));
    assert_eq!(lines, ["loading", "ready"]);
}

#[test]
fn whoever_follows_may_break_at_a_line_and_hears_it_before_the_next_comes() {
    let first = || Act::Begin([head(), frame(1, b"ready\nmore\n")].concat());
    let fake = Fake::docker(engine_with(false, move |_| first()));
    let mut lines = Vec::new();
    let mut each = |line: &str| {
        lines.push(line.to_owned());
        ControlFlow::Break(())
    };
    // The log is open still, and says nothing.
    assert_eq!(follow_logs(&fake.only(), &id(1), 5, LONG, &mut each, &|| false), Ok(()));
    assert_eq!(lines, ["ready"]);
}

/// How often one who waits in a silence is asked, until the answer is yes.
fn silent(fake: &Fake, timeout: Duration) -> (Result<(), NoAnswer>, usize, Duration) {
    let asked = Cell::new(0);
    let should_end = || {
        asked.set(asked.get() + 1);
        asked.get() > 5
    };
    let (mut each, began) = (|_: &str| ControlFlow::Continue(()), Instant::now());
    let followed = follow_logs(&fake.only(), &id(1), 5, timeout, &mut each, &should_end);
    (followed, asked.get(), began.elapsed())
}

#[test]
fn in_a_silence_whoever_follows_is_asked_whether_to_go_on() {
    let quiet = Fake::docker(engine_with(false, |_| Act::Begin(head())));
    // The silence outlasts the time for the first answer.
    let (followed, asked, took) = silent(&quiet, SHORT);
    assert_eq!((followed, asked), (Ok(()), 6));
    const { assert!(LOOK.as_millis() <= 200) };
    assert!(took < LONG, "{took:?}");
    // Podman 4.3 sends no head before the first line.
    let podman = Fake::podman(engine_with(false, |_| Act::Hang));
    assert_eq!(silent(&podman, SHORT).0, Ok(()));
    // Nor is an engine that hangs waited for.
    let hung = Fake::docker(|_| Act::Hang);
    assert_eq!(silent(&hung, LONG).0, Ok(()));
}

#[test]
fn a_first_answer_that_does_not_come_is_late() {
    let mut each = |_: &str| ControlFlow::Continue(());
    for fake in [
        Fake::docker(|_| Act::Hang),
        Fake::docker(engine_with(false, |_| Act::Hang)),
        Fake::podman(|_| Act::Hang),
        Fake::at("run/podman/podman.sock", |_| Act::Hang),
    ] {
        let followed = follow_logs(&fake.only(), &id(1), 5, SHORT, &mut each, &|| false);
        assert_eq!(followed, Err(NoAnswer::Late));
    }
}

#[test]
fn a_flood_that_is_followed_can_be_left() {
    let endless = Fake::docker(engine_with(true, |_| Act::Flood));
    let bytes = Cell::new(0);
    let mut each = |line: &str| {
        bytes.set(bytes.get() + line.len());
        ControlFlow::Continue(())
    };
    let followed =
        follow_logs(&endless.only(), &id(1), 5, LONG, &mut each, &|| bytes.get() > 4 << 20);
    assert_eq!(followed, Ok(()));
}
