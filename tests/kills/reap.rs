//! `reap`: orphans, polite and stubborn, beside living ones that look alike; a container without its monitor; reports into files and
//! the journal.

use std::{fmt::Write as _, fs};

use serde_json::Value;

use crate::{
    Kill, Scene,
    dice::Dice,
    moment::{Killed, Run},
    support::{
        DEADLINE, TestBox,
        engines::{Engine, Kind},
        wait_until,
    },
};

const PLANT: &str = "/build/examples/plant";
const CONFIG: &str = "
defaults: { min_age: 0s, grace: 200ms, respawn_watch: 0s }
engines: { timeout: 3s, stop_timeout: 3s }
services:
  worker: { ports: [7411, 7412, 7413, 7414] }
  boxed: { runs_in: { container: boxed }, ports: [7416], patterns: ['^kills-boxed'] }
patterns:
  - { name: kills-worker, kind: worker, match: '^kills-worker' }
";
const PORTS: [u16; 4] = [7411, 7412, 7413, 7414];
const REPORT: &str = "/run/reports/reap.json";
const METRICS: &str = "/run/reports/reap.prom";

pub(crate) struct Stage<'a> {
    test_box: &'a TestBox,
    podman: Engine<'a>,
    /// A unit's main process and a child of another's, both with the orphans' command line.
    alike: [u32; 2],
    planted: usize,
}

impl<'a> Stage<'a> {
    pub(crate) fn set(test_box: &'a TestBox) -> Self {
        test_box.write("/etc/kills.yaml", CONFIG);
        test_box.sh("mkdir -p /run/reports");
        let alike = format!(
            "{PLANT} --as 'python3 server.py' --child --as 'kills-worker child' --listen 7415 --ready /run/planted/child"
        );
        test_box.unit("parent.service", &format!("[Service]\nExecStart={alike}\n"));
        let alike =
            format!("{PLANT} --as 'kills-worker alike' --listen 7417 --ready /run/planted/alike");
        test_box.unit("alike.service", &format!("[Service]\nExecStart={alike}\n"));
        test_box.sh("systemctl start alike parent");
        let alike = ["alike", "child"].map(|name| test_box.planted(name));
        let podman = Engine::start(test_box, Kind::Podman);
        podman.serve();
        Self { test_box, podman, alike, planted: 0 }
    }

    /// Left by a parent that is gone: a worker with a port.
    fn orphans(&mut self, dice: &mut Dice) -> Vec<u32> {
        let mut names = Vec::new();
        let mut script = String::new();
        for port in PORTS.into_iter().take(1 + dice.below(PORTS.len())) {
            self.planted += 1;
            let name = format!("orphan-{}", self.planted);
            let stubborn = if dice.one_in(2) { "--ignore-term" } else { "" };
            let words = format!("--as 'kills-worker {name}' {stubborn} --listen {port}");
            writeln!(script, "{PLANT} --daemonise {words} --ready /run/planted/{name}")
                .expect("text");
            names.push(name);
        }
        self.test_box.sh(&script);
        names.iter().map(|name| self.test_box.planted(name)).collect()
    }

    /// A container whose monitor is gone.
    fn unsupervised(&self) -> u32 {
        self.podman.run(&["rm", "--force", "boxed"]);
        let plant = ["--as", "kills-boxed", "--listen", "7416", "--ready", "/run/boxed"];
        let options = ["--network", "host", "--stop-signal", "KILL"];
        let container = self.podman.contain("boxed", &options, &plant);
        wait_until(DEADLINE, "the container serves", || !self.test_box.can_bind(7416));
        self.podman.kill_monitor(&container);
        container.pid
    }

    fn run(words: &[&str], by: &'static [&'static str]) -> Run<'static> {
        let first = ["/build/portreeve", "reap", "--config", "/etc/kills.yaml", "--quiet"];
        let files = ["--json-file", REPORT];
        let words = first.iter().chain(&files).chain(words).map(|word| (*word).to_owned());
        Run { words: words.collect(), by, group: None }
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.test_box.inside(path)).ok()
    }

    fn lives(&self, pid: u32) -> bool {
        self.test_box.stat(pid).is_some()
    }

    /// Who looks like them and is wanted is untouched, whatever became of the reap.
    fn nobody_else_is_ended(&self) {
        assert!(self.alike.iter().all(|pid| self.lives(*pid)), "wrong kill: a living look-alike");
    }

    /// The old file or a whole new one.
    fn files_are_whole(&self, before: &[Option<String>; 2]) {
        let report = self.text(REPORT);
        if report != before[0] {
            let text = report.expect("it was there");
            let json: Value = serde_json::from_str(&text)
                .unwrap_or_else(|why| panic!("half a report, {why}: {text}"));
            assert_eq!(json["command"], "reap", "{json:#}");
        }
        let metrics = self.text(METRICS);
        if metrics != before[1] {
            let text = metrics.expect("it was there");
            assert!(
                text.ends_with('\n') && text.contains("portreeve_last_run_timestamp_seconds"),
                "half: {text}"
            );
        }
        if let Some(text) = self.text("/var/lib/portreeve/stops.json") {
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "half a tally: {text}");
        }
    }

    /// Nobody dies unrecorded: the journal has the conviction of everybody who is gone.
    fn the_dead_are_on_record(&self, orphans: &[u32]) {
        let dead: Vec<u32> = orphans.iter().copied().filter(|pid| !self.lives(*pid)).collect();
        if dead.is_empty() {
            return;
        }
        let mut told = String::new();
        wait_until(DEADLINE, &format!("the journal tells of {dead:?}"), || {
            told = self.test_box.sh(
                "journalctl --sync; journalctl -q -o json --output-fields=PORTREEVE_PID PORTREEVE_EVENT=convicted | \
                 grep -o 'PORTREEVE_PID\":\"[0-9]*' | grep -o '[0-9]*$' || true",
            );
            dead.iter().all(|pid| told.lines().any(|line| line == pid.to_string()))
        });
    }

    fn nothing_grows(&self) {
        let all =
            self.test_box.sh("ls -A /run/reports; ls -A /var/lib/portreeve 2>/dev/null || true");
        let known = [
            "reap.json",
            "reap.prom",
            "models.db",
            "models.db-wal",
            "models.db-shm",
            "stops.json",
            "stops.lock",
            // Of one name, and whoever counts next writes it anew.
            "stops.json.new",
        ];
        let strange: Vec<&str> = all.lines().filter(|name| !known.contains(name)).collect();
        assert_eq!(strange, [""; 0], "left in its folders");
        let units = self
            .test_box
            .sh("systemctl list-units --all --no-legend --plain 'portreeve-*' | cut -d' ' -f1");
        assert_eq!(units, "", "transient units");
    }
}

/// As its timer runs it: into the journal.
const AS_A_UNIT: &[&str] =
    &["systemd-run", "--quiet", "--wait", "--collect", "--service-type=exec", "--unit=kills-reap"];

impl Scene for Stage<'_> {
    fn play(&mut self, dice: &mut Dice, kill: &mut Kill<'_>) {
        let orphans = self.orphans(dice);
        let boxed = dice.one_in(4).then(|| self.unsupervised());
        let has_metrics = dice.one_in(3);
        let mut words = Vec::new();
        if boxed.is_some() {
            words.extend(["--also", "unsupervised"]);
        }
        if has_metrics {
            words.extend(["--format", "prometheus", "--output", METRICS]);
        }
        let before = [self.text(REPORT), self.text(METRICS)];
        let what = format!(
            "reap:{}{}",
            if boxed.is_some() { "boxed" } else { "" },
            if has_metrics { " metrics" } else { "" }
        );
        let killed: Killed = kill.run(dice, &what, &Self::run(&words, AS_A_UNIT));

        self.nobody_else_is_ended();
        self.files_are_whole(&before);
        self.the_dead_are_on_record(&orphans);
        assert_eq!(killed.left, [""; 0], "children of ours");

        // The next one finishes.
        let next = Self::run(&words, &[]).words;
        let next: Vec<&str> = next.iter().map(String::as_str).collect();
        let output = self.test_box.run(&next);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value =
            serde_json::from_str(&self.text(REPORT).expect("a report")).expect("whole");
        assert_eq!(output.status.code(), Some(0), "{err}{report:#}");
        assert_eq!(err, "", "it complains");
        let left: Vec<u32> =
            orphans.iter().chain(&boxed).copied().filter(|pid| self.lives(*pid)).collect();
        assert_eq!(left, [0; 0], "orphans that the next one left: {report:#}");
        let shut = |port: &&Value| port["state"] != "free";
        let shut: Vec<&Value> =
            report["ports"].as_array().expect("ports").iter().filter(shut).collect();
        assert!(shut.is_empty(), "{shut:#?}");
        if boxed.is_some() {
            assert_ne!(self.podman.status("boxed"), "", "it was removed");
        }
        self.nobody_else_is_ended();
        self.files_are_whole(&before);
        self.nothing_grows();
        for words in
            [&["scan"][..], &["gate", "--port", "7411", "--timeout", "0s"], &["explain", "7411"]]
        {
            let output = self
                .test_box
                .run(&[&["/build/portreeve"], words, &["--config", "/etc/kills.yaml"]].concat());
            assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
        }
    }
}
