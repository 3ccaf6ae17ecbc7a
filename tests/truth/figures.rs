//! What was planted against what is left, and the sum of it.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
};

use serde_json::Value;

use crate::{
    scene::{Intent, Planted, Scene},
    support::{DEADLINE, Report, wait_until},
};

/// What became of a process.
pub(crate) struct Fate {
    pub(crate) kind: &'static str,
    pub(crate) intent: Intent,
    /// `spare`, `undecided`, …; none where the report does not name it.
    verdict: Option<String>,
    reason: String,
    fault: Option<String>,
}

/// A scene that was played.
pub(crate) struct Played {
    fates: Vec<Fate>,
    /// What is wrong beyond single processes.
    faults: Vec<String>,
}

impl Played {
    pub(crate) fn compare(scene: &Scene<'_>, report: &Report) -> Self {
        let fates = scene.planted.iter().map(|planted| {
            let pid = planted.pid.expect("in place");
            let said = report.process(pid);
            let text = |field: &str| said[field].as_str().map(str::to_owned);
            Fate {
                kind: planted.kind,
                intent: planted.intent,
                verdict: text("verdict"),
                reason: text("reason").unwrap_or_default(),
                fault: fault(planted.intent, scene.lives(planted), !said["outcome"].is_null())
                    .filter(|fault| *fault != "missed" || !scene.is_blinded)
                    .map(|fault| format!("{fault}: {} (pid {pid}): {said:#}", planted.kind)),
            }
        });
        let newcomers = scene.planted_later.iter().map(|Planted { kind, intent, pid, .. }| {
            let pid = pid.expect("in place");
            let lives = scene.lane.test_box.stat(pid).is_some();
            // What is said of its pid may be about who had it before.
            Fate {
                kind,
                intent: *intent,
                verdict: None,
                reason: String::new(),
                fault: fault(*intent, lives, false)
                    .map(|fault| format!("{fault}: {kind} (pid {pid}): {:#}", report.process(pid))),
            }
        });
        Self { fates: fates.chain(newcomers).collect(), faults: beyond(scene, report) }
    }
}

/// What is wrong with what became of a process.
fn fault(intent: Intent, lives: bool, was_convicted: bool) -> Option<&'static str> {
    match intent {
        Intent::Living | Intent::Ambiguous if !lives => Some("wrong kill"),
        Intent::Living | Intent::Ambiguous | Intent::Fleeting if was_convicted => {
            Some("wrongly convicted")
        }
        Intent::Orphan if lives => Some("missed"),
        Intent::Living | Intent::Ambiguous | Intent::Orphan | Intent::Racing | Intent::Fleeting => {
            None
        }
    }
}

/// Who was convicted without having been planted, who was started anew too often, who is left of a brood.
fn beyond(scene: &Scene<'_>, report: &Report) -> Vec<String> {
    let mut faults = Vec::new();
    let is_known = |process: &Value| {
        let pid = process["pid"].as_u64();
        let is_it = |planted: &Planted| planted.pid.map(u64::from) == pid;
        let text = process.to_string();
        scene.planted.iter().chain(&scene.planted_later).any(is_it)
            || scene.extinct.iter().any(|part| text.contains(part.as_str()))
    };
    for process in report.json["processes"].as_array().expect("processes") {
        if !process["outcome"].is_null() && !is_known(process) {
            faults.push(format!("wrongly convicted: nobody planted it: {process:#}"));
        }
    }
    for (unit, times) in &scene.restarts {
        let mut runs = None;
        wait_until(DEADLINE, &format!("{unit} is up"), || {
            runs = scene.runs(unit);
            runs.is_some()
        });
        if runs != Some(*times) {
            faults.push(format!("wrong kill: {unit} was restarted {runs:?} times, by us {times}"));
        }
    }
    for part in scene.extinct.iter().filter(|_| !scene.is_blinded) {
        for pid in scene.alike(part) {
            faults.push(format!("missed: child of a brood (pid {pid}): {:#}", report.process(pid)));
        }
    }
    for (unit, pid) in &scene.lane.keepers {
        if scene.lane.test_box.stat(*pid).is_none() {
            faults.push(format!("wrong kill: {unit} (pid {pid}) is gone"));
        }
    }
    faults
}

/// The sum of many scenes.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) scenes: usize,
    planted: BTreeMap<Intent, usize>,
    kinds: BTreeMap<(Intent, &'static str), usize>,
    verdicts: BTreeMap<(Intent, String), usize>,
    undecided: BTreeMap<String, usize>,
    faults: BTreeMap<String, usize>,
    /// In words, one scene each.
    pub(crate) failures: Vec<String>,
}

impl Figures {
    /// Adds a scene; what was wrong with it.
    pub(crate) fn add(&mut self, seed: u64, played: Played) -> Option<String> {
        self.scenes += 1;
        let Played { fates, mut faults } = played;
        for Fate { kind, intent, verdict, reason, fault } in fates {
            *self.planted.entry(intent).or_default() += 1;
            *self.kinds.entry((intent, kind)).or_default() += 1;
            if verdict.as_deref() == Some("undecided") {
                *self.undecided.entry(format!("{kind}: {}", gist(&reason))).or_default() += 1;
            }
            let verdict = verdict.unwrap_or_else(|| "no candidate".to_owned());
            *self.verdicts.entry((intent, verdict)).or_default() += 1;
            faults.extend(fault);
        }
        for fault in &faults {
            let what = fault.split(':').next().unwrap_or_default();
            *self.faults.entry(what.to_owned()).or_default() += 1;
        }
        (!faults.is_empty()).then(|| self.fail(seed, &faults.join("\n")))
    }

    /// A scene could not be set, or ended in the middle.
    pub(crate) fn broke(&mut self, seed: u64, cause: &str) -> String {
        *self.faults.entry("not played".to_owned()).or_default() += 1;
        self.fail(seed, &format!("not played: {cause}"))
    }

    fn fail(&mut self, seed: u64, what: &str) -> String {
        let failure = format!("scene {seed}: {what}\nagain: tests/truth/run 1 {seed}");
        self.failures.push(failure.clone());
        failure
    }

    fn of(&self, intent: Intent) -> usize {
        self.planted.get(&intent).copied().unwrap_or_default()
    }
}

/// A reason without what differs from one process to the next.
fn gist(reason: &str) -> String {
    let word = |word: &str| {
        if word.contains(|c: char| c.is_ascii_digit()) { "…".to_owned() } else { word.to_owned() }
    };
    reason.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

impl Display for Figures {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let all: usize = self.planted.values().sum();
        let fault = |what: &str| self.faults.get(what).copied().unwrap_or_default();
        let undecided: usize = self.undecided.values().sum();
        writeln!(f, "how they were planted:")?;
        for ((intent, kind), count) in &self.kinds {
            writeln!(f, "{count:7}  {intent:?}: {kind}")?;
        }
        writeln!(f, "what was said:")?;
        for ((intent, verdict), count) in &self.verdicts {
            writeln!(f, "{count:7}  {intent:?}: {verdict}")?;
        }
        writeln!(f, "why undecided:")?;
        for (why, count) in &self.undecided {
            writeln!(f, "{count:7}  {why}")?;
        }
        writeln!(
            f,
            "{} scenes, {all} processes: {} living, {} ambiguous, {} orphans, {} that change; {} wrong kills, \
             {} wrongly convicted, {} missed, {undecided} undecided, {} scenes not played",
            self.scenes,
            self.of(Intent::Living) + self.of(Intent::Fleeting),
            self.of(Intent::Ambiguous),
            self.of(Intent::Orphan),
            self.of(Intent::Racing),
            fault("wrong kill"),
            fault("wrongly convicted"),
            fault("missed"),
            fault("not played"),
        )
    }
}

#[test]
fn a_wrong_kill_and_a_miss_are_noticed() {
    assert_eq!(fault(Intent::Living, false, false), Some("wrong kill"));
    assert_eq!(fault(Intent::Ambiguous, false, true), Some("wrong kill"));
    assert_eq!(fault(Intent::Living, true, true), Some("wrongly convicted"));
    assert_eq!(fault(Intent::Fleeting, false, true), Some("wrongly convicted"));
    assert_eq!(fault(Intent::Orphan, true, true), Some("missed"));
    assert_eq!(fault(Intent::Orphan, false, true), None);
    assert_eq!(fault(Intent::Fleeting, false, false), None);
}
