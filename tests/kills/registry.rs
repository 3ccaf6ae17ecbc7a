//! The registry as a crash would leave it: the files are copied and read apart, so that nothing is put right by looking.

use std::fs;

use rusqlite::Connection;

use crate::support::TestBox;

const FILE: &str = "/var/lib/portreeve/models.db";

/// Number, model, kind, detail.
pub(crate) type Event = (i64, String, String, String);

/// What stood in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stand {
    pub(crate) events: Vec<Event>,
    /// Name, state.
    pub(crate) models: Vec<(String, String)>,
}

impl Stand {
    /// Reads it, and finds it sound.
    pub(crate) fn of(test_box: &TestBox) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let copy = folder.path().join("models.db");
        // Without its index (-shm), which is made anew: that is what recovery is.
        for ending in ["", "-wal"] {
            let from = test_box.inside(&format!("{FILE}{ending}"));
            if from.exists() {
                fs::copy(from, folder.path().join(format!("models.db{ending}"))).expect("a copy");
            }
        }
        let db = Connection::open(copy).expect("a database");
        for check in ["integrity_check", "foreign_key_check"] {
            let said: Vec<String> = column(&db, &format!("PRAGMA {check}"));
            assert!(said.iter().all(|line| line == "ok"), "{check}: {said:?}");
        }
        let mut all = db
            .prepare("SELECT id, model, kind, detail FROM events ORDER BY id")
            .expect("its table");
        let events =
            all.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)));
        let events = events.expect("rows").map(Result::unwrap).collect();
        let mut all =
            db.prepare("SELECT name, state FROM models ORDER BY name").expect("its table");
        let models = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        let models = models.expect("rows").map(Result::unwrap).collect();
        let stand = Self { events, models };
        stand.is_consistent();
        stand
    }

    /// Each state has its event, and no event is missing between two.
    fn is_consistent(&self) {
        let numbers: Vec<i64> = self.events.iter().map(|event| event.0).collect();
        let last = i64::try_from(numbers.len()).expect("few");
        assert_eq!(numbers, (1..=last).collect::<Vec<_>>(), "an event is missing");
        let states = ["stopped", "starting", "running", "stopping", "failed"];
        for (name, state) in &self.models {
            assert!(states.contains(&state.as_str()), "'{state}' of '{name}'");
            let of = |event: &&Event| event.1 == *name && states.contains(&event.2.as_str());
            let last =
                self.events.iter().rev().find(of).map_or("stopped", |event| event.2.as_str());
            assert_eq!(last, state, "the last event of '{name}' and its state");
        }
    }

    /// Everything that stood there before still does.
    pub(crate) fn continues(&self, before: &Self) {
        assert!(self.events.len() >= before.events.len(), "events were lost");
        assert_eq!(self.events[..before.events.len()], before.events[..], "events were changed");
    }

    pub(crate) fn state(&self, name: &str) -> &str {
        self.models.iter().find(|(model, _)| model == name).map_or("", |(_, state)| state)
    }
}

fn column(db: &Connection, question: &str) -> Vec<String> {
    let mut statement = db.prepare(question).expect("a statement");
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).expect("rows");
    rows.map(Result::unwrap).collect()
}
