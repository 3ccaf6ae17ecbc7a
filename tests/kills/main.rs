//! Whoever kills us at any moment: `reap`, `gate -- COMMAND`, `model start` and `model stop` are killed with SIGKILL at moments made by
//! chance, on machines with a real systemd, Docker and Podman. Then what is there is looked at from outside, and the next run of the
//! same verb must come to its end as though nothing had been.
//!
//! ```text
//! cargo test --test kills                  5 moments of each verb, and every one that ever failed (tests/kills/seeds)
//! tests/kills/run 100                      so many of each verb, by seeds that follow one another
//! tests/kills/run 1 4711                   the moment of a seed
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests may panic and print"
)]
#![allow(unreachable_pub, reason = "shared by several test programs")]

#[path = "../truth/dice.rs"]
mod dice;
#[path = "../support/mod.rs"]
mod support;

mod gate;
mod models;
mod moment;
mod reap;
mod registry;

use std::{
    collections::BTreeMap,
    env,
    panic::{self, AssertUnwindSafe},
};

use dice::Dice;
use moment::{Killed, Lengths};
use support::{TestBox, skip};

const SEEDS: &str = include_str!("seeds");

/// Something that is killed and done again, on a machine of its own.
pub(crate) trait Scene {
    /// Plants what a run meets, kills that run, looks, and does it again. `deed` kills.
    fn play(&mut self, dice: &mut Dice, kill: &mut Kill<'_>);
}

/// Kills runs at the moments of one seed.
pub(crate) struct Kill<'a> {
    test_box: &'a TestBox,
    lengths: &'a mut Lengths,
    figures: &'a mut Figures,
}

impl Kill<'_> {
    /// Runs this and kills it. `what`: runs of one name are about as long.
    pub(crate) fn run(&mut self, dice: &mut Dice, what: &str, run: &moment::Run<'_>) -> Killed {
        let killed = self.lengths.kill(self.test_box, dice, what, run);
        if !self.lengths.is_new() {
            self.figures.add(what, &killed);
        }
        killed
    }
}

/// How many runs were killed, and where.
#[derive(Default)]
pub(crate) struct Figures {
    runs: BTreeMap<String, usize>,
    ends: BTreeMap<String, usize>,
}

impl Figures {
    fn add(&mut self, what: &str, killed: &Killed) {
        let verb = what.split(':').next().unwrap_or_default();
        let word = if killed.was_killed() { "killed" } else { "came to its end first" };
        *self.runs.entry(format!("{verb} {word}")).or_default() += 1;
        *self.ends.entry(killed.end.clone()).or_default() += 1;
    }

    fn say(&self) {
        for (end, count) in &self.ends {
            println!("{count:7}  {end}");
        }
        let runs: Vec<String> = self.runs.iter().map(|(run, n)| format!("{run}: {n}")).collect();
        println!("{}", runs.join(", "));
    }
}

/// The seeds of this run for a verb: those that failed once stand behind its name.
fn seeds(verb: &str) -> Vec<u64> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(count) = number("PORTREEVE_MOMENTS") {
        let first = number("PORTREEVE_SEED").unwrap_or(1000);
        return (first..first + count).collect();
    }
    let failed = SEEDS
        .lines()
        .filter_map(|line| line.strip_prefix(verb)?.trim().split(' ').next()?.parse().ok());
    (0..5).chain(failed).collect()
}

/// Plays the moments of all seeds; where one fails, the rest has a new machine.
fn play_all(verb: &str, set: &dyn for<'a> Fn(&'a TestBox) -> Box<dyn Scene + 'a>) {
    let seeds = seeds(verb);
    let (mut left, mut figures, mut failures) = (&seeds[..], Figures::default(), Vec::new());
    while !left.is_empty() {
        let test_box = match TestBox::boot(&format!("kills-{verb}")) {
            Ok(test_box) => test_box,
            Err(reason) => return skip(&reason),
        };
        let mut scene = set(&test_box);
        let mut lengths = Lengths::default();
        while let Some((&seed, rest)) = left.split_first() {
            left = rest;
            let began = std::time::Instant::now();
            let played = panic::catch_unwind(AssertUnwindSafe(|| {
                // Where it is not known yet how long such a run takes, it is seen first.
                while {
                    let mut kill =
                        Kill { test_box: &test_box, lengths: &mut lengths, figures: &mut figures };
                    scene.play(&mut Dice::new(seed), &mut kill);
                    lengths.has_measured()
                } {}
            }));
            println!("{verb} {seed}: {:.1} s", began.elapsed().as_secs_f32());
            if let Err(cause) = played {
                let text = cause.downcast_ref::<String>().map(String::as_str);
                let text =
                    text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or_default();
                let last = lengths.last();
                let failure = format!(
                    "{verb} {seed}: {last}\n{text}\nagain: tests/kills/run 1 {seed} {verb}"
                );
                println!("{failure}");
                failures.push(failure);
                break;
            }
        }
    }
    figures.say();
    assert!(
        failures.is_empty(),
        "{} of {} moments:\n{}",
        failures.len(),
        seeds.len(),
        failures.join("\n\n")
    );
}

#[test]
fn a_reap_that_is_killed_at_any_moment_harms_nobody_and_the_next_one_finishes() {
    play_all("reap", &|test_box| Box::new(reap::Stage::set(test_box)));
}

#[test]
fn a_gate_that_is_killed_at_any_moment_starts_nothing_twice_and_bars_no_other() {
    play_all("gate", &|test_box| Box::new(gate::Stage::set(test_box)));
}

#[test]
fn a_start_or_stop_of_a_model_that_is_killed_at_any_moment_is_gone_on_with() {
    play_all("model", &|test_box| Box::new(models::House::build(test_box)));
}

#[test]
fn a_command_that_we_wait_for_does_not_outlive_us() {
    match TestBox::boot("kills-waits") {
        Ok(test_box) => models::waits_for_ever(&test_box),
        Err(reason) => skip(&reason),
    }
}
