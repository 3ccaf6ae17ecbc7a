//! `gate --reap -- COMMAND`: on a port that is free, that an orphan holds, or that a living stranger does.

use std::fs;

use serde_json::Value;

use crate::{Kill, Scene, dice::Dice, moment::Run, support::TestBox};

const PLANT: &str = "/build/examples/plant";
const CONFIG: &str = "
defaults: { min_age: 0s, grace: 200ms, respawn_watch: 0s }
gate: { timeout: 300ms, settle: 50ms }
services:
  worker: { ports: [7421] }
patterns:
  - { name: kills-worker, kind: worker, match: '^kills-worker' }
";

/// Who is on the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Nobody,
    Orphan,
    Stranger,
}

pub(crate) struct Stage<'a> {
    test_box: &'a TestBox,
    played: usize,
}

impl<'a> Stage<'a> {
    pub(crate) fn set(test_box: &'a TestBox) -> Self {
        test_box.write("/etc/kills.yaml", CONFIG);
        let stranger = format!("{PLANT} --as stranger --listen 7421 --ready /run/planted/stranger");
        test_box.unit("stranger.service", &format!("[Service]\nExecStart={stranger}\n"));
        // It says that it runs, and that it has the port.
        test_box.write(
            "/usr/local/bin/command",
            &format!("#!/bin/sh\necho ran >>\"$1\"\n{PLANT} --listen 7421 --leave && echo served >>\"$1\"\n"),
        );
        test_box.sh("mkdir -p /run/reports; chmod +x /usr/local/bin/command");
        Self { test_box, played: 0 }
    }

    fn lines(&self, file: &str, word: &str) -> usize {
        let text = fs::read_to_string(self.test_box.inside(file)).unwrap_or_default();
        text.lines().filter(|line| *line == word).count()
    }

    fn nothing_is_torn(&self) {
        // A dead gate's lock is nobody's.
        let free = self.test_box.run(&[
            "sh",
            "-c",
            "[ ! -e /run/portreeve ] || flock --nonblock /run/portreeve/gate.lock true",
        ]);
        assert!(free.status.success(), "its lock is held: {free:?}");
        let passed = fs::read_to_string(self.test_box.inside("/run/portreeve/passed.json"));
        if let Ok(text) = passed {
            let json: Value = serde_json::from_str(&text)
                .unwrap_or_else(|why| panic!("half a memory, {why}: {text}"));
            assert!(json["passed"].is_array(), "{json:#}");
        }
        if let Ok(text) = fs::read_to_string(self.test_box.inside("/run/reports/gate.json")) {
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "half a report: {text}");
        }
    }
}

impl Scene for Stage<'_> {
    fn play(&mut self, dice: &mut Dice, kill: &mut Kill<'_>) {
        self.played += 1;
        let ran = format!("/run/ran-{}", self.played);
        let holder = dice.pick(&[Holder::Nobody, Holder::Orphan, Holder::Orphan, Holder::Stranger]);
        match holder {
            Holder::Nobody => {}
            Holder::Orphan => {
                let stubborn = if dice.one_in(2) { "--ignore-term" } else { "" };
                let name = format!("orphan-{}", self.played);
                self.test_box.sh(&format!(
                    "{PLANT} --daemonise --as kills-worker {stubborn} --listen 7421 --ready /run/planted/{name}"
                ));
                self.test_box.planted(&name);
            }
            Holder::Stranger => {
                self.test_box.sh("rm -f /run/planted/stranger; systemctl start stranger");
                self.test_box.planted("stranger");
            }
        }
        let words = ["/build/portreeve", "gate", "worker", "--reap", "--config", "/etc/kills.yaml"];
        let more = ["--json-file", "/run/reports/gate.json", "--", "/usr/local/bin/command", &ran];
        let words: Vec<&str> = words.into_iter().chain(more).collect();
        let owned = words.iter().map(|word| (*word).to_owned()).collect();
        let what = format!("gate:{holder:?}");
        let killed = kill.run(dice, &what, &Run { words: owned, by: &[], group: None });

        assert_eq!(killed.left, [""; 0], "children of ours");
        self.nothing_is_torn();
        let became = killed.end.starts_with("became") || killed.end == "exit 0";
        let runs = self.lines(&ran, "ran");
        // At a time, COMMAND itself may have been hit.
        let is_timed = killed.end == "killed at a time";
        assert!(
            runs == usize::from(became) || (is_timed && runs <= 1),
            "it ran {runs} times: {killed:?}"
        );
        assert!(!became || self.lines(&ran, "served") == 1, "its port was taken: {killed:?}");
        assert!(holder != Holder::Stranger || runs == 0, "on a taken port: {killed:?}");

        // The next gate is not barred, and knows no more than is true.
        let again = || {
            let output = self.test_box.run(&words);
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let served = self.lines(&ran, "served");
        let (mut code, mut err) = again();
        if holder == Holder::Stranger {
            assert_eq!((code, self.lines(&ran, "ran")), (Some(75), 0), "{err}");
            assert!(self.test_box.sh("systemctl is-active stranger") == "active", "wrong kill");
            self.test_box.sh("systemctl stop stranger");
            (code, err) = again();
        }
        assert_eq!(code, Some(0), "{err}");
        assert_eq!(
            (self.lines(&ran, "ran"), self.lines(&ran, "served")),
            (runs + 1, served + 1),
            "{err}"
        );
        self.nothing_is_torn();
        let all = self.test_box.sh("ls -A /run/portreeve /run/reports");
        let known =
            ["", "/run/portreeve:", "/run/reports:", "gate.lock", "passed.json", "gate.json"];
        let strange: Vec<&str> = all.lines().filter(|name| !known.contains(name)).collect();
        assert_eq!(strange, [""; 0], "left in its folders");
    }
}
