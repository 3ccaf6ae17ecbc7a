//! A disk that is full, read-only or broken: what had to be ended is ended, what could not be written is said, what was whole
//! stays whole.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
};

use portreeve::models::registry::Registry;
use serde_json::Value;

use super::{
    binary::{Mess, may_be_traced, tampering},
    is_long,
    support::{skip, stage::Stage},
};

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.as_slice(), &output.stderr].concat()).unwrap()
}

/// Makes a small disk of this kind at a folder, with a whole file `report` on it.
fn disk(folder: &str, kind: &str) -> String {
    let first = format!("mount -t tmpfs -o size=64k none {folder}; echo old >{folder}/report;");
    let then = match kind {
        "full" => format!("! cat /dev/zero >{folder}/filler 2>/dev/null;"),
        "read-only" => format!("mount -o remount,ro {folder};"),
        // No room for a further name either.
        "without inodes" => format!("mount -o remount,nr_inodes=2 {folder};"),
        _ => panic!("{kind}"),
    };
    first + &then
}

#[test]
fn a_document_that_finds_no_room_does_not_hide_what_was_ended() {
    let Some(mess) = Mess::new() else { return };
    let small = mess.stage.path("small");
    fs::create_dir(&small).unwrap();
    let (small, after) = (small.display().to_string(), mess.stage.path("after"));
    for (kind, why) in [
        ("full", "No space left on device"),
        ("read-only", "Read-only file system"),
        ("without inodes", "No space left on device"),
    ] {
        let Some(orphan) = mess.orphan() else { return };
        let script = format!(
            "{} code=0; \"$@\" || code=$?; cat {small}/report >{}; exit $code; :",
            disk(&small, kind),
            after.display()
        );
        let file = format!("{small}/report");
        let words = ["reap", "--config", &mess.config, "mine", "--json-file", &file];
        let output = mess.stage.portreeve_by(&script, &words).output().unwrap();
        let text = said(&output);
        assert!(!orphan.is_alive() && mess.alike.is_alive(), "{kind}: {text}");
        assert_eq!(output.status.code(), Some(2), "{kind}: {text}");
        assert!(text.contains(&format!("cannot be written to '{file}'")), "{kind}: {text}");
        assert!(text.contains(why), "{kind}: {text}");
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains(&orphan.pid().to_string()), "{kind}: it was not told: {text}");
        assert_eq!(fs::read_to_string(&after).unwrap(), "old\n", "{kind}");
    }
    let gate =
        ["gate", "--port", "7309", "--json-file", "/dev/shm/report", "--config", &mess.config];
    let output = mess.stage.portreeve_by("mount -t tmpfs -o ro none /dev/shm; exec", &gate);
    let output = { output }.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("7309"), "{}", said(&output));
}

/// A folder that stands in for `/var/lib`, with a model registered in it.
struct Place(Stage);

impl Place {
    fn set() -> Option<Self> {
        let stage = Stage::set().map_err(|reason| skip(&reason)).ok()?;
        fs::create_dir(stage.path("lib")).unwrap();
        let place = Self(stage);
        let output = place.command("", &register("first", 8000)).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        Some(place)
    }

    fn command(&self, first: &str, words: &[String]) -> Command {
        let lib = self.0.path("lib");
        let script = format!("mount --bind {} /var/lib; exec {first}", lib.display());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.0.portreeve_by(&script, &words)
    }

    /// What is in it, once it is whole and can be opened.
    fn state(&self) -> (BTreeSet<String>, Vec<i64>) {
        let registry = Registry::open(&self.0.path("lib/portreeve/models.db")).unwrap();
        assert_eq!(registry.damage().unwrap(), None);
        let models: BTreeSet<String> =
            registry.all().unwrap().iter().map(|model| model.name.to_string()).collect();
        let events = registry.events(None, 1000).unwrap();
        for model in &models {
            assert!(events.iter().any(|event| event.model.to_string() == *model), "{model}");
        }
        (models, events.iter().map(|event| event.id).collect())
    }
}

fn register(name: &str, port: usize) -> Vec<String> {
    let port = port.to_string();
    ["model", "register", name, "--backend", "vllm", "--path", "m", "--port", &port]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn a_registry_whose_nth_write_fails_keeps_all_or_nothing_and_works_again() {
    let Some(place) = may_be_traced().then(Place::set).flatten() else { return };
    let calls = "pwrite64,write,fsync,fdatasync,ftruncate,unlink,openat";
    let (mut runs, mut done, mut refused) = (0, 0, 0);
    for (turn, how) in
        ["error=ENOSPC", "error=EIO", "error=EDQUOT", "error=EROFS"].iter().enumerate()
    {
        for call in calls.split(',') {
            let every = if is_long() { 1 } else { 5 };
            // Of those that open, the first are the loader's.
            let first = if call == "openat" { 5 } else { 1 };
            for nth in (first..40).filter(|nth| (nth + turn).is_multiple_of(every)) {
                let (name, port) = (format!("m-{runs}"), 9000 + runs);
                let (before, _) = place.state();
                let strace = tampering(call, how, &nth.to_string());
                let output = place.command(&strace, &register(&name, port)).output().unwrap();
                let text = said(&output);
                runs += 1;
                let at = format!("{call} {how} at {nth}: {text}");
                let (after, events) = place.state();
                assert!(events.is_sorted_by(|earlier, later| earlier < later), "{at}");
                match output.status.code() {
                    Some(0) => {
                        done += 1;
                        assert!(after.contains(&name), "{at}");
                    }
                    // Whether the last word came through is another matter: said to be done it was not.
                    Some(2) => {
                        refused += 1;
                        assert!(before.is_subset(&after) && text.contains("error: "), "{at}");
                    }
                    Some(127) if call == "openat" => {}
                    code => panic!("{code:?}, {at}"),
                }
                if output.status.code() == Some(0) && nth > 20 && call != "openat" {
                    break; // it makes no more of them
                }
            }
        }
    }
    println!("{runs} runs: {done} done, {refused} refused");
    assert!(refused > 5, "the disk did not fail");
    let listed =
        place.command("", &["model", "list", "--json"].map(str::to_owned)).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["models"].as_array().unwrap().len(), place.state().0.len());
}
