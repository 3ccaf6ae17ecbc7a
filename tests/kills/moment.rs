//! When a run is killed: at a time within what an undisturbed one takes, or at one of its system calls (`killer.rs`), each by chance.

use std::{collections::BTreeMap, fs, process::Stdio};

use serde_json::Value;

use crate::{dice::Dice, support::TestBox};

const WORD: &str = "/run/killer.json";

/// What is to be killed.
pub(crate) struct Run<'a> {
    /// Its command line.
    pub(crate) words: Vec<String>,
    /// Words before the killer: `systemd-run …`.
    pub(crate) by: &'a [&'a str],
    /// Every portreeve of this control group may be killed with it.
    pub(crate) group: Option<String>,
}

/// How a run was ended.
#[derive(Debug, Clone)]
pub(crate) struct Killed {
    /// `killed before fsync`, `exit 0`, `became another: exit 0`.
    pub(crate) end: String,
    /// Command lines of its children that outlived it by seconds.
    pub(crate) left: Vec<String>,
    pub(crate) out: String,
}

impl Killed {
    pub(crate) fn was_killed(&self) -> bool {
        self.end.starts_with("killed")
    }
}

/// Of an undisturbed run.
#[derive(Debug, Clone, Copy)]
struct Length {
    calls: usize,
    deeds: usize,
    micros: usize,
}

/// How long runs are, by what they do.
#[derive(Default)]
pub(crate) struct Lengths {
    known: BTreeMap<String, Length>,
    last: String,
    has_measured: bool,
}

impl Lengths {
    /// Whether a run was measured, and so not killed, since this was asked last.
    pub(crate) fn has_measured(&mut self) -> bool {
        std::mem::take(&mut self.has_measured)
    }

    /// Whether the last run was only measured.
    pub(crate) fn is_new(&self) -> bool {
        self.last.ends_with(": measured")
    }

    /// Where the last run was killed, in words.
    pub(crate) fn last(&self) -> &str {
        &self.last
    }

    /// Runs this once, and kills it where it is known how long it takes; the first of its kind is measured.
    pub(crate) fn kill(
        &mut self,
        test_box: &TestBox,
        dice: &mut Dice,
        what: &str,
        run: &Run<'_>,
    ) -> Killed {
        // Thrown whatever comes, so that a seed means the same on every machine.
        let (kind, share, is_behind, with) =
            (dice.below(4), dice.below(1 << 20), dice.one_in(2), dice.one_in(3));
        let Some(length) = self.known.get(what).copied() else {
            let (killed, length) = execute(test_box, &[], run);
            self.known.insert(what.to_owned(), length);
            self.last = format!("{what}: measured");
            self.has_measured = true;
            assert!(!killed.was_killed(), "{killed:?}");
            return killed;
        };
        let of = |all: usize| ((all * share) >> 20) + 1;
        let at = if is_behind { "--behind" } else { "--before" };
        let mut words: Vec<String> = match kind {
            // Those are few among thousands, and it is there that something may be torn.
            0 | 1 => vec![at.into(), of(length.deeds).to_string(), "--deeds".into()],
            2 => vec![at.into(), of(length.calls).to_string()],
            _ => vec!["--after".into(), of(length.micros).to_string()],
        };
        if let (true, Some(group)) = (with, &run.group) {
            words.extend(["--with".to_owned(), group.clone()]);
        }
        let (killed, _) = execute(test_box, &words, run);
        self.last = format!("{what}: {} ({}); {:?}", killed.end, words.join(" "), run.words);
        killed
    }
}

fn execute(test_box: &TestBox, moment: &[String], run: &Run<'_>) -> (Killed, Length) {
    let word = test_box.inside(WORD);
    let _ = fs::remove_file(&word);
    let mut words = run.by.to_vec();
    words.extend(["timeout", "100", "/build/examples/killer", "--word", WORD]);
    words.extend(moment.iter().map(String::as_str));
    words.push("--");
    words.extend(run.words.iter().map(String::as_str));
    let output = test_box.command(&words).stdin(Stdio::null()).output().expect("the box runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let out = text(&output.stdout);
    let said = fs::read_to_string(&word)
        .unwrap_or_else(|_| panic!("the killer says nothing: {out}{}", text(&output.stderr)));
    let said: Value = serde_json::from_str(&said).expect("its word");
    let number = |key: &str| usize::try_from(said[key].as_u64().expect("a number")).expect("small");
    let length =
        Length { calls: number("calls"), deeds: number("deeds"), micros: number("micros") };
    let left = said["left"].as_array().expect("a list").iter();
    let left = left.map(|line| line.as_str().expect("a line").to_owned()).collect();
    let end = said["end"].as_str().expect("a word").to_owned();
    (Killed { end, left, out }, length)
}
