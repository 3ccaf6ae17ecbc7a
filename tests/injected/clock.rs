//! A wall clock that jumps: nothing is judged, waited for or put in order by it.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::{binary::Mess, support::skip};

/// In seconds: an hour back, into 1970, a day ahead, beyond 2038, beyond 2106.
const YEAR: i64 = 31_557_600;
const JUMPS: [i64; 5] = [-3600, -56 * YEAR, 86_400, 14 * YEAR, 100 * YEAR];

/// A wall clock that goes wrong by as much as its file says.
struct Clock<'a>(&'a Mess);

impl<'a> Clock<'a> {
    fn new(mess: &'a Mess) -> Option<Self> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/injected/clock_shim.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(mess.stage.path("clock.so")).arg(source);
        if !cc.status().is_ok_and(|status| status.success()) {
            skip("no C compiler");
            return None;
        }
        let clock = Self(mess);
        clock.is_off_by(0);
        Some(clock)
    }

    /// In one step: nobody reads half of it.
    fn is_off_by(&self, seconds: i64) {
        let new = self.0.stage.write("clock.new", &seconds.to_string());
        fs::rename(new, self.0.stage.path("clock")).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let script = format!(
            "exec env LD_PRELOAD={} PORTREEVE_CLOCK={}",
            self.0.stage.path("clock.so").display(),
            self.0.stage.path("clock").display()
        );
        let lib = self.0.stage.path("lib");
        fs::create_dir_all(&lib).unwrap();
        self.0
            .stage
            .portreeve_by(&format!("mount --bind {} /var/lib; {script}", lib.display()), words)
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// When the run ended, as the metrics have it.
fn ended_at(output: &Output) -> i64 {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| !line.starts_with('#') && line.contains("end"));
    let line = text
        .lines()
        .find(|line| line.starts_with("portreeve_") && line.contains("timestamp_seconds"))
        .or(line);
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn a_wall_clock_that_is_wrong_changes_no_verdict_and_no_age() {
    let Some(mess) = Mess::new() else { return };
    let Some(clock) = Clock::new(&mess) else { return };
    let Some(orphan) = mess.orphan() else { return };
    let scan = ["scan", "--config", &mess.config, "mine", "--format"];
    let young = mess.stage.write(
        "young.yaml",
        &fs::read_to_string(&mess.config).unwrap().replace("min_age: 1ms", "min_age: 1h"),
    );
    let now = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(now.as_secs()).unwrap()
    };
    for jump in JUMPS {
        clock.is_off_by(jump);
        let seen = ended_at(&clock.run(&[&scan[..], &["prometheus"]].concat())) - now();
        assert!((seen - jump).abs() < 60 || now() + jump < 0, "the jump was not seen: {seen}");
        let report = json(&clock.run(&[&scan[..], &["json"]].concat()));
        let of = report["processes"].as_array().unwrap();
        let process = of.iter().find(|p| p["pid"] == orphan.pid()).unwrap();
        assert_eq!(process["would_end"], true, "{jump}: {process:#}");
        let report = json(&clock.run(&["scan", "--config", &young, "mine", "--format", "json"]));
        let of = report["processes"].as_array().unwrap();
        let process = of.iter().find(|p| p["pid"] == orphan.pid()).unwrap();
        assert_eq!(process["verdict"], "undecided", "{jump}: older than it is: {process:#}");
    }
    clock.is_off_by(-56 * YEAR);
    let output = clock.run(&["reap", "--config", &mess.config, "mine", "--format", "json"]);
    assert!(!orphan.is_alive() && mess.alike.is_alive(), "{output:?}");
}

#[test]
fn what_is_waited_for_takes_its_time_while_the_wall_clock_jumps() {
    let Some(mess) = Mess::new() else { return };
    let Some(clock) = Clock::new(&mess) else { return };
    let words = ["gate", "--config", &mess.config, "--port", "7302", "--timeout", "1s"];
    for jump in JUMPS {
        clock.is_off_by(0);
        let began = Instant::now();
        let mut gate = clock.command(&words).stdout(Stdio::null()).spawn().unwrap();
        while gate.try_wait().unwrap().is_none() {
            clock.is_off_by(if began.elapsed().as_millis() % 200 < 100 { jump } else { -jump });
            assert!(began.elapsed() < Duration::from_secs(20), "{jump}: it does not end");
        }
        let took = began.elapsed();
        assert_eq!(gate.wait().unwrap().code(), Some(1), "{jump}");
        assert!(took >= Duration::from_secs(1), "{jump}: it waited {took:?}");
    }
}

#[test]
fn events_keep_their_order_and_times_their_sign_whatever_the_wall_clock_says() {
    let Some(mess) = Mess::new() else { return };
    let Some(clock) = Clock::new(&mess) else { return };
    let mut names = Vec::new();
    for (n, jump) in JUMPS.into_iter().chain([0]).enumerate() {
        clock.is_off_by(jump);
        let (name, port) = (format!("m-{n}"), (9000 + n).to_string());
        let words =
            ["model", "register", &name, "--backend", "vllm", "--path", "m", "--port", &port];
        let output = clock.run(&words);
        assert!(output.status.success(), "{output:?}");
        names.push(name);
    }
    for jump in JUMPS.into_iter().chain([0]) {
        clock.is_off_by(jump);
        let events = json(&clock.run(&["model", "events", "--json"]));
        let events = events["events"].as_array().unwrap();
        let order: Vec<&str> =
            events.iter().map(|event| event["model"].as_str().unwrap()).collect();
        assert_eq!(order, names, "{jump}");
        assert!(events.iter().all(|event| event["at_ms"].as_i64().unwrap() >= 0), "{events:?}");
        for words in [&["model", "events"][..], &["model", "list"], &["model", "status", "m-0"]] {
            let output = clock.run(words);
            let text = String::from_utf8_lossy(&output.stdout);
            let words_of = text.split_whitespace();
            let mut negative = words_of.filter(|word| word.parse::<f64>().is_ok_and(|n| n < 0.0));
            assert_eq!(negative.next(), None, "{words:?} at {jump}: {text}");
            assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
        }
    }
}
