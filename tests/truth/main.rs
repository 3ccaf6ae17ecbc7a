//! No wrong kill: scenes made by chance are planted on machines with a real systemd, logind, sshd, Docker and Podman, `reap` runs, and
//! who is gone is compared with what was planted. What is true of a process follows from how it was planted and is never asked of
//! the table under test.
//!
//! ```text
//! cargo test --test truth                  50 scenes, and every one that ever failed (tests/truth/seeds)
//! tests/truth/run 5000                     so many, by seeds that follow one another
//! tests/truth/run 1 4711                   the scene of a seed
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

#[path = "../support/mod.rs"]
mod support;

mod contained;
mod dice;
mod figures;
mod plantings;
mod races;
mod receipts;
mod scene;

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    sync::Mutex,
    thread,
    time::Instant,
};

use figures::{Figures, Played};
use scene::Scene;
use support::{
    Report, TestBox,
    engines::{Engine, Kind},
    skip,
};

/// A scene waits more than it works: for sessions that close, for the second look.
const LANES: usize = 4;
const SEEDS: &str = include_str!("seeds");

/// A machine on which one scene is played after another.
pub(crate) struct Lane<'a> {
    pub(crate) test_box: &'a TestBox,
    pub(crate) engines: Vec<Engine<'a>>,
    /// Who keeps this machine running, by unit.
    pub(crate) keepers: Vec<(&'static str, u32)>,
}

impl<'a> Lane<'a> {
    /// With the engines of this lane: which one a scene gets is to follow from its seed alone.
    fn new(test_box: &'a TestBox, number: usize) -> Self {
        test_box.write(SETTINGS, &scene::settings());
        let kinds: &[Kind] = match number {
            0 => &[Kind::DockerSystemd],
            1 => &[Kind::DockerCgroupfs],
            2 => &[Kind::Podman, Kind::PodmanOfBob],
            _ => &[Kind::Podman, Kind::PodmanOfAlice],
        };
        // What ignores SIGTERM in a unit is not waited for when a scene is struck.
        let limit = "[Manager]\nDefaultTimeoutStopSec=2s\n";
        test_box.write("/run/systemd/system.conf.d/truth.conf", limit);
        test_box.sh("systemctl daemon-reexec");
        let engines = kinds.iter().map(|kind| Engine::start(test_box, *kind)).collect();
        let pid_of = |unit| test_box.sh(&format!("systemctl show -P MainPID {unit}"));
        let keepers = ["ssh", "dbus", "systemd-journald", "user@1001"]
            .map(|unit| (unit, pid_of(unit).parse().expect("a pid")));
        let lane = Self { test_box, engines, keepers: keepers.into() };
        lane.write_tools();
        lane
    }
}

const SETTINGS: &str = "/etc/truth.yaml";

/// The seeds of this run.
fn seeds() -> Vec<u64> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(count) = number("PORTREEVE_SCENES") {
        let first = number("PORTREEVE_SEED").unwrap_or(1000);
        return (first..first + count).collect();
    }
    let failed = SEEDS.lines().filter_map(|line| line.split(' ').next()?.parse().ok());
    (0..50).chain(failed).collect()
}

#[test]
fn nobody_is_wrongly_ended_and_no_orphan_is_missed() {
    let seeds = seeds();
    // A scene that was not played is told of with the others.
    panic::set_hook(Box::new(|_| ()));
    let figures = Mutex::new(Figures::default());
    let skipped = Mutex::new(None);
    thread::scope(|scope| {
        for number in 0..LANES {
            let own: Vec<u64> =
                seeds.iter().copied().filter(|seed| lane_of(*seed) == number).collect();
            let (figures, skipped) = (&figures, &skipped);
            scope.spawn(move || {
                if let Err(reason) = play_all(number, &own, figures) {
                    *skipped.lock().unwrap() = Some(reason);
                }
            });
        }
    });
    if let Some(reason) = skipped.into_inner().unwrap() {
        return skip(&reason);
    }
    let _ = panic::take_hook();
    let figures = figures.into_inner().unwrap();
    println!("{figures}");
    assert!(figures.failures.is_empty(), "{}", figures.failures.join("\n"));
    assert_eq!(figures.scenes, seeds.len(), "every scene was played");
}

fn lane_of(seed: u64) -> usize {
    usize::try_from(seed).expect("64 bits") % LANES
}

/// Plays these scenes on one machine, or on another one where a scene could not be set.
fn play_all(number: usize, seeds: &[u64], figures: &Mutex<Figures>) -> Result<(), String> {
    let mut left = seeds;
    while !left.is_empty() {
        let test_box = TestBox::boot(&format!("truth-{number}"))?;
        let lane = Lane::new(&test_box, number);
        while let Some((&seed, rest)) = left.split_first() {
            left = rest;
            let began = Instant::now();
            let played = panic::catch_unwind(AssertUnwindSafe(|| play(&lane, seed)));
            let failure = {
                let mut figures = figures.lock().unwrap();
                match played {
                    Ok(played) => figures.add(seed, played),
                    Err(cause) => {
                        let cause = cause.downcast_ref::<String>().cloned().unwrap_or_default();
                        Some(figures.broke(seed, &cause))
                    }
                }
            };
            println!("scene {seed}: {:.1} s", began.elapsed().as_secs_f32());
            // Whatever is wrong there, the next scene is not to inherit it.
            if let Some(failure) = failure {
                println!("{failure}");
                break;
            }
        }
    }
    Ok(())
}

/// Plants, reaps, compares.
fn play(lane: &Lane<'_>, seed: u64) -> Played {
    let mut scene = Scene::new(lane, seed);
    for _ in 0..3 + scene.dice.below(8) {
        plantings::any(&mut scene);
    }
    if scene.dice.one_in(2) {
        for _ in 0..=scene.dice.below(3) {
            races::any(&mut scene);
        }
    }
    if scene.dice.one_in(2) {
        contained::plant(&mut scene);
    }
    scene.set();
    let mut race = scene.begin_race();
    let reap = format!(
        "touch /run/planted/reap-began; exec /build/portreeve reap --config {SETTINGS} --format json"
    );
    let report = Report::read(&lane.test_box.run(&["bash", "-c", &reap]));
    scene.await_newcomers();
    scene.check_race();
    let played = Played::compare(&scene, &report);
    scene.strike();
    let _ = race.kill();
    let _ = race.wait();
    played
}
