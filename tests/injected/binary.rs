//! The real command on a real mess, while the kernel refuses: by strace's tampering the nth call of a kind fails, by limits what
//! it needs is not to be had.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    is_long,
    support::{
        skip,
        stage::{Planted, Stage},
    },
};

/// Nothing may take longer, whatever fails.
const MOST: Duration = Duration::from_secs(30);
/// The documented codes; with a command, a gate has two of its own.
const CODES: [i32; 5] = [0, 1, 2, 69, 75];
/// `timeout` ended it.
const HUNG: i32 = 137;

/// An orphan on 7300, a living look-alike on 7301 and a stranger on 7302, and the settings that tell them apart.
pub(super) struct Mess {
    pub(super) stage: Stage,
    pub(super) config: String,
    name: String,
    pub(super) alike: Planted,
    stranger: Planted,
}

impl Mess {
    pub(super) fn new() -> Option<Self> {
        let stage = Stage::set_on_the_host().map_err(|reason| skip(&reason)).ok()?;
        let name = format!("injected-{}", stage.path("x").display()).replace('/', "-");
        let text = format!(
            "defaults: {{ min_age: 1ms, grace: 1s, respawn_watch: 0s }}\n\
             gate: {{ settle: 0s, timeout: 0s }}\n\
             services:\n  mine: {{ runs_in: container, ports: [7300, 7301], patterns: ['{}'] }}\n",
            name.replace('.', r"\.")
        );
        let config = stage.write("config.yaml", &text);
        let alike = stage.plant(&["--as", &name, "--listen", "7301"]);
        let stranger = stage.plant(&["--listen", "7302"]);
        Some(Self { stage, config, name, alike, stranger })
    }

    pub(super) fn orphan(&self) -> Option<Planted> {
        self.stage.orphan(&["--as", &self.name, "--listen", "7300"])
    }

    /// Plants it anew where it was ended; none where there can be none.
    fn orphan_again<'o>(&self, orphan: &'o mut Option<Planted>) -> Option<&'o Planted> {
        if orphan.as_ref().is_none_or(|orphan| !orphan.is_alive()) {
            *orphan = self.orphan();
        }
        orphan.as_ref()
    }

    fn words<'a>(&'a self, verb: &'a str) -> Vec<&'a str> {
        let config = ["--config", self.config.as_str()];
        let (verb, rest): (&str, &[&str]) = match verb {
            "explain" => ("explain", &["7300", "--format", "json"]),
            "dry run" => ("reap", &["--dry-run", "mine", "--format", "json"]),
            "gate" => ("gate", &["mine", "--format", "json"]),
            verb => (verb, &["mine", "--format", "json"]),
        };
        [&[verb][..], &config, rest].concat()
    }

    /// Runs it by a script that ends in words before the command.
    fn run(&self, script: &str, verb: &str) -> Output {
        let script = format!("exec timeout --signal=KILL {} {script}", MOST.as_secs());
        self.stage.portreeve_by(&script, &self.words(verb)).output().expect("nsenter runs")
    }

    /// What broke the law, of a run that looks only, or ends the orphan.
    fn broken(&self, output: &Output, orphan: &Planted, plain: Option<&Value>) -> Option<String> {
        let code = output.status.code();
        let errors = String::from_utf8_lossy(&output.stderr);
        let is_documented = code.is_some_and(|code| CODES.contains(&code));
        if !is_documented {
            let hung = if code == Some(HUNG) { " (it hung)" } else { "" };
            return Some(format!("{}{hung}: {errors}", output.status));
        }
        if !self.alike.is_alive() || !self.stranger.is_alive() {
            return Some("somebody who lives was ended".to_owned());
        }
        if errors.contains("panicked") {
            return Some(errors.into_owned());
        }
        let Ok(json) = serde_json::from_slice::<Value>(&output.stdout) else {
            let says = errors.lines().any(|line| line.starts_with("error: "));
            return (!says || code == Some(0))
                .then(|| format!("{code:?} without a word: {errors}"));
        };
        let said = said(&json);
        let ports = json["ports"].as_array().into_iter().flatten();
        let ports: Vec<&Value> = ports.chain(json.get("port")).collect();
        for port in ports {
            let number = port["port"].as_str().unwrap_or_default();
            let is_free = matches!(port["state"].as_str(), Some("free" | "no_listener"))
                || port["answer"] == "open";
            let is_held =
                number.starts_with("7301") || number.starts_with("7300") && orphan.is_alive();
            if is_held && is_free {
                return Some(format!("{number} is held and was called free: {port}"));
            }
        }
        let convicted = json["processes"].as_array().into_iter().flatten();
        let mut wrong = convicted.filter(|p| p["verdict"] == "orphan" && p["pid"] != orphan.pid());
        if let Some(wrong) = wrong.next() {
            return Some(format!("not an orphan: {wrong}"));
        }
        match plain {
            Some(plain) if said != *plain => {
                Some(format!("it said {said}, undisturbed {plain}; {errors}"))
            }
            Some(_) | None => None,
        }
    }
}

/// What does not change from run to run.
fn said(json: &Value) -> Value {
    let of = |list: &str, keys: &[&str]| -> Vec<Value> {
        let all = json[list].as_array().into_iter().flatten();
        all.map(|one| keys.iter().map(|key| one[*key].clone()).collect()).collect()
    };
    json!([
        json["exit_code"],
        of("ports", &["port", "state", "holders", "answer"]),
        of("processes", &["pid", "title", "row", "would_end"]),
        of("unknowns", &["fact"]),
    ])
}

/// strace that lets calls of a kind fail.
pub(super) fn tampering(calls: &str, how: &str, when: &str) -> String {
    format!(
        "strace -f --seccomp-bpf --quiet=all -o /dev/null -e trace={calls} -e inject={calls}:{how}:when={when}"
    )
}

pub(super) fn may_be_traced() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null());
    let is_so = strace.status().is_ok_and(|status| status.success());
    if !is_so {
        skip("nothing may be traced here");
    }
    is_so
}

/// How many calls of these kinds a run makes: while the loader works, which is not ours, and in all.
fn counted(mess: &Mess, calls: &str, verb: &str) -> (usize, usize) {
    let log = mess.stage.path("calls");
    let script = format!("strace -f --quiet=all -o {} -e trace={calls},poll", log.display());
    mess.run(&script, verb);
    let text = fs::read_to_string(log).unwrap();
    let is_call = |line: &&str| line.contains('(') && !line.contains(" resumed>");
    // The first thing that Rust does is to look whether its three descriptors are open.
    let start = text.lines().position(|line| line.contains("poll([{fd=0")).unwrap();
    let is_poll = calls.split(',').any(|call| call == "poll");
    let of_loader = text.lines().take(start).filter(is_call).count();
    let wanted = |line: &&str| is_call(line) && (is_poll || !line.contains(" poll("));
    (of_loader, text.lines().filter(wanted).count())
}

#[test]
fn calls_that_are_interrupted_make_no_difference() {
    let Some(mess) = may_be_traced().then(Mess::new).flatten() else { return };
    let Some(orphan) = mess.orphan() else { return };
    // What a signal may interrupt (signal(7)). Not futex(2): a wake, which none can, would fail, too, and nobody be woken.
    let calls = "read,write,recvfrom,recvmsg,sendto,sendmsg,poll,ppoll,connect,accept4,wait4,waitid,epoll_wait,clock_nanosleep,flock";
    let mut broken = Vec::new();
    // Each so many, from each one on.
    let most = if is_long() { 9 } else { 3 };
    let turns = (2..=most).flat_map(|step| (1..=step).map(move |first| (first, step)));
    let turns: Vec<(usize, usize)> = turns.collect();
    let (of_loader, _) = counted(&mess, calls, "scan");
    let tampered = |(first, step): (usize, usize)| {
        tampering(calls, "error=EINTR", &format!("{}+{step}", of_loader + first))
    };
    for verb in ["scan", "explain", "gate", "dry run"] {
        let plain = mess.run("", verb);
        let plain =
            said(&serde_json::from_slice(&plain.stdout).unwrap_or_else(|_| panic!("{plain:?}")));
        for &when in &turns {
            let output = mess.run(&tampered(when), verb);
            let why = mess.broken(&output, &orphan, Some(&plain));
            broken.extend(why.map(|why| format!("{verb}, EINTR at {when:?}: {why}")));
        }
    }
    let mut orphan = Some(orphan);
    for &when in &turns {
        let Some(orphan) = mess.orphan_again(&mut orphan) else { return };
        let output = mess.run(&tampered(when), "reap");
        let why = mess.broken(&output, orphan, None);
        let why = why.or_else(|| {
            orphan
                .is_alive()
                .then(|| format!("the orphan lives: {}", String::from_utf8_lossy(&output.stdout)))
        });
        let why = why.or_else(|| (output.status.code() != Some(1)).then(|| format!("{output:?}")));
        broken.extend(why.map(|why| format!("reap, EINTR at {when:?}: {why}")));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Kinds of calls, and how they fail.
const REFUSALS: [(&str, &str); 9] = [
    ("openat", "error=EMFILE"),
    ("socket,socketpair,pipe2,eventfd2,epoll_create1", "error=ENFILE"),
    ("pidfd_open", "error=EMFILE"),
    ("read,getdents64,readlink,readlinkat", "error=EIO"),
    ("recvfrom,recvmsg", "error=ECONNRESET"),
    ("clone3,clone", "error=EAGAIN"),
    ("poll,ppoll,epoll_wait,epoll_pwait", "error=ENOMEM"),
    ("kill,pidfd_send_signal", "error=EPERM"),
    ("openat", "error=EIO"),
];

#[test]
fn calls_that_fail_end_nobody_who_lives_and_free_no_port() {
    let Some(mess) = may_be_traced().then(Mess::new).flatten() else { return };
    let (mut broken, mut runs) = (Vec::new(), 0);
    let began = Instant::now();
    let mut orphan = None;
    for (turn, (calls, how)) in REFUSALS.iter().enumerate() {
        for (verb_turn, verb) in
            ["scan", "explain", "gate", "dry run", "reap"].into_iter().enumerate()
        {
            // Otherwise each kind meets one of those that look, and who ends is kept from starting threads and from ending.
            let is_in_turn = verb_turn == turn % 4;
            let is_of_ends =
                verb == "reap" && ["clone3,clone", "kill,pidfd_send_signal"].contains(calls);
            if !(is_long() || is_in_turn || is_of_ends) {
                continue;
            }
            let Some(_) = mess.orphan_again(&mut orphan) else { return };
            let (of_loader, all) = counted(&mess, calls, verb);
            // Dense at the start, where all is set up; then ever wider steps.
            let mut at: BTreeSet<usize> = BTreeSet::new();
            let mut next = of_loader + 1;
            while next <= all {
                at.insert(next);
                let step = if is_long() { 24 } else { 1 };
                next += 1 + (next - of_loader) / step;
            }
            for first in at {
                for stays in ["", "+"] {
                    let Some(orphan) = mess.orphan_again(&mut orphan) else { return };
                    let when = format!("{first}{stays}");
                    let output = mess.run(&tampering(calls, how, &when), verb);
                    runs += 1;
                    let why = mess.broken(&output, orphan, None);
                    broken.extend(why.map(|why| format!("{verb}, {calls} {how} at {when}: {why}")));
                }
            }
        }
    }
    println!("{runs} runs in {:?}", began.elapsed());
    assert!(broken.is_empty(), "{} of {runs}:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn too_few_descriptors_end_nobody_who_lives_and_free_no_port() {
    let Some(mess) = Mess::new() else { return };
    let (mut broken, mut said, mut orphan) = (Vec::new(), BTreeSet::new(), None);
    for verb in ["scan", "explain", "gate", "reap"] {
        for most in 3..if is_long() { 40 } else { 11 } {
            let Some(orphan) = mess.orphan_again(&mut orphan) else { return };
            let output = mess.run(&format!("prlimit --nofile={most}:{most}"), verb);
            // The loader's own.
            if output.status.code() == Some(127) {
                continue;
            }
            said.insert((most, output.status.code()));
            let why = mess.broken(&output, orphan, None);
            broken.extend(why.map(|why| format!("{verb}, {most} descriptors: {why}")));
        }
    }
    println!("{said:?}");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn too_little_memory_ends_nobody_who_lives_and_frees_no_port() {
    let Some(mess) = Mess::new() else { return };
    let (mut broken, mut said, mut orphan) = (Vec::new(), BTreeSet::new(), None);
    let limit = |kilobytes: usize| format!("prlimit --as={}", kilobytes << 10);
    let starts = |kilobytes: usize| {
        let mut command = mess.stage.portreeve_by(&limit(kilobytes), &["--version"]);
        command.output().expect("nsenter runs").status.success()
    };
    // With less the kernel and the loader do not get as far as us.
    let Some(least) =
        (8..128).map(|megabytes| megabytes << 10).find(|&kilobytes| starts(kilobytes))
    else {
        panic!("it does not start with 128 MiB");
    };
    let step = if is_long() { 32 } else { 512 };
    for verb in ["scan", "gate", "reap"] {
        for kilobytes in (least..least + (6 << 10)).step_by(step) {
            let Some(orphan) = mess.orphan_again(&mut orphan) else { return };
            let output = mess.run(&limit(kilobytes), verb);
            let errors = String::from_utf8_lossy(&output.stderr);
            // Rust's allocator knows no answer but the end.
            let is_abort = errors.contains("memory allocation of");
            said.insert((output.status.code(), is_abort));
            if is_abort {
                assert!(mess.alike.is_alive() && mess.stranger.is_alive());
                continue;
            }
            let why = mess.broken(&output, orphan, None);
            broken.extend(why.map(|why| format!("{verb}, {kilobytes} KiB: {why}")));
        }
    }
    println!("from {least} KiB on: {said:?}");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
