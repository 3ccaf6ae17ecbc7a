//! The registry against what is really there. What was running and is not is recorded as what became of it, with an event that says
//! why; a start or stop whose process died is told from one under way. Nothing is started or ended here, and where an engine does
//! not answer nothing is concluded.

use std::collections::BTreeMap;

use super::{
    Registry, State, launch,
    lifecycle::Keeper,
    receipt::{Receipt, boot_id},
    registry::{Record, RegistryError},
    service,
    trouble::how_it_ended,
};
use crate::{
    backend::spec::Engine,
    engine::{self, Made, NoAnswer, Phase},
    ident::{ModelName, UnitName},
    snapshot::Seen,
};

/// What is seen of a model that is on its way, or up.
#[derive(Debug, Clone)]
pub struct Sight {
    /// What was written down of its container.
    pub receipt: Option<Receipt>,
    /// Its container as its engine has it now; none = gone. An error = nothing is known.
    pub container: Result<Option<Made>, NoAnswer>,
    /// It was started in this boot.
    pub is_this_boot: bool,
    /// Whoever leads it from one state to the next still lives, or the unit that keeps it.
    pub is_led: bool,
    /// How the run of its unit ended, in systemd's word; none = it has none, or nothing is known of it.
    pub run: Option<String>,
}

impl Sight {
    /// It ran as a process of a unit.
    fn is_process(&self) -> bool {
        self.receipt.as_ref().is_some_and(|one| one.unit.is_some() && one.container.is_none())
    }
}

/// A state that reality contradicts, and the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub to: State,
    /// Why, in a sentence.
    pub why: String,
}

/// Looks at every model that is up, and puts right what the registry has of it. Returns what could not be seen, by model.
pub fn reconcile(
    keeper: &Keeper<'_>,
    registry: &mut Registry,
    only: Option<&[ModelName]>,
) -> Result<BTreeMap<ModelName, String>, RegistryError> {
    let mut unseen = BTreeMap::new();
    let mut engines = BTreeMap::new();
    for record in registry.all()? {
        let is_meant = only.is_none_or(|names| names.contains(&record.name));
        if !record.state.is_up() || !is_meant {
            continue;
        }
        let sight = look(keeper, registry, &record, &mut engines)?;
        if let Some(Change { to, why }) = judge(&record, &sight) {
            registry.settle_if(&record, to, &why)?;
        } else if let (Err(why), false) = (&sight.container, sight.is_led) {
            unseen.insert(record.name, why.to_string());
        }
    }
    Ok(unseen)
}

type Engines = BTreeMap<&'static str, Result<engine::Engine, NoAnswer>>;

fn look(
    keeper: &Keeper<'_>,
    registry: &Registry,
    record: &Record,
    engines: &mut Engines,
) -> Result<Sight, RegistryError> {
    let receipt = registry.receipt(&record.name)?;
    let now = boot_id(keeper.host);
    let is_this_boot = match (&receipt, &now) {
        (Some(receipt), Some(now)) => receipt.boot_id == *now,
        (_, _) => true,
    };
    let mut is_led = record.worker.as_ref().is_some_and(|worker| worker.is_alive(keeper.host));
    let unit = receipt.as_ref().and_then(|receipt| receipt.unit.clone());
    let unit = unit.filter(|_| is_this_boot && !is_led);
    let mut ended = Ok(None);
    match unit.map(|unit| service::look_at(keeper.host, &UnitName(unit))) {
        None | Some(Seen::Gone) => {}
        // Its own commands write down how its run ends.
        Some(Seen::Known(unit)) if unit.is_up() => is_led = true,
        Some(Seen::Known(unit)) => ended = Ok(Some(unit.result)),
        Some(Seen::Denied) => ended = Err("systemd refuses to tell".to_owned()),
        Some(Seen::Unreadable(why)) => ended = Err(why),
    }
    let run = match ended {
        Ok(run) => run,
        Err(why) => {
            let container = Err(NoAnswer::Strange(why));
            return Ok(Sight { receipt, container, is_this_boot, is_led, run: None });
        }
    };
    let timeout = keeper.settings.engines.timeout;
    let mut engine = |which: Option<Engine>| {
        let word = which.map_or("", Engine::word);
        let found = engines.entry(word).or_insert_with(|| {
            launch::engine_of(keeper.host, keeper.settings, which).map(|(engine, _)| engine)
        });
        found.clone()
    };
    let noted = receipt.as_ref().and_then(|receipt| receipt.container.as_ref());
    // A unit's main process writes nothing down: what it made is found by its label.
    let spec = keeper.spec(&record.name).ok().filter(|spec| spec.is_container && !is_led);
    let container = match (noted, spec) {
        (Some(contained), _) => engine(Some(contained.engine))
            .and_then(|engine| engine::find(&engine, &contained.id.0, timeout)),
        (None, Some(spec)) if record.state != State::Running => {
            let instance = registry.instance_id()?;
            engine(spec.engine).and_then(|engine| {
                let all = engine::list(&engine, timeout)?;
                let one = all.into_iter().find(|one| launch::is_of(one, &instance, &record.name));
                one.map_or(Ok(None), |one| engine::find(&engine, &one.id.0, timeout))
            })
        }
        (None, _) => Ok(None),
    };
    let container = container.and_then(understood);
    Ok(Sight { receipt, container, is_this_boot, is_led, run })
}

/// A word that we do not know says neither that it runs nor that it does not.
fn understood(made: Option<Made>) -> Result<Option<Made>, NoAnswer> {
    match made {
        Some(Made { state: Phase::Other(word), .. }) => {
            Err(NoAnswer::Strange(format!("its engine calls its container '{word}'")))
        }
        made => Ok(made),
    }
}

/// What became of a model that the registry calls up; none = nothing contradicts it.
pub fn judge(record: &Record, sight: &Sight) -> Option<Change> {
    if sight.is_led {
        return None;
    }
    let Ok(container) = &sight.container else { return None };
    let container = container.as_ref();
    let lives = container.is_some_and(|made| match made.state {
        Phase::Running | Phase::Paused | Phase::Restarting | Phase::Stopping => true,
        Phase::Created | Phase::Exited | Phase::Dead | Phase::Removing | Phase::Other(_) => false,
    });
    let (to, why): (State, String) = match record.state {
        State::Stopped | State::Failed => return None,
        State::Starting if lives => (
            State::Failed,
            "its start was cut off, and its container was left running ('portreeve model start' begins anew)".into(),
        ),
        State::Starting => (State::Failed, "its start was cut off before it served".into()),
        State::Stopping if lives => (
            State::Failed,
            "its stop was cut off, and its container was left running ('portreeve model stop' goes on)".into(),
        ),
        State::Stopping => (
            State::Stopped,
            match container.and_then(|made| made.exit_code) {
                Some(137) => {
                    "its stop was cut off after portreeve had it killed (SIGKILL, exit code 137)".into()
                }
                Some(_) | None => "its stop was cut off, and nothing of it runs".into(),
            },
        ),
        State::Running if lives => return None,
        State::Running => match container {
            _ if sight.is_process() && !sight.is_this_boot => {
                (State::Stopped, "the host was restarted".into())
            }
            _ if sight.is_process() => (
                State::Failed,
                match &sight.run {
                    Some(result) => format!("its unit's run ended unrecorded: {result}"),
                    None => "its unit is gone".to_owned(),
                },
            ),
            None if sight.receipt.is_none() => {
                (State::Stopped, "nothing was written down of what was started".into())
            }
            None => (State::Stopped, "somebody removed its container".into()),
            Some(_) if !sight.is_this_boot => {
                (State::Stopped, "the host was restarted, and nothing starts by itself".into())
            }
            Some(made) if made.exit_code == Some(0) && !made.oom_killed => {
                (State::Stopped, "it ended by itself, with exit code 0".into())
            }
            // What docker stop sends.
            Some(made) if made.exit_code == Some(143) && !made.oom_killed => (
                State::Stopped,
                "somebody else stopped it: SIGTERM ended it (exit code 143)".into(),
            ),
            Some(made) => (State::Failed, how_it_ended(made)),
        },
    };
    Some(Change { to, why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ident::ContainerId;

    fn record(state: State) -> Record {
        Record {
            name: ModelName::from("llama"),
            spec: None,
            state,
            since_ms: 0,
            why: String::new(),
            worker: None,
            is_declared: false,
        }
    }

    fn made(state: Phase, exit_code: Option<i64>) -> Made {
        Made {
            id: ContainerId("ab".repeat(32)),
            name: "vllm-model-llama".to_owned(),
            image: "vllm".to_owned(),
            labels: BTreeMap::new(),
            state,
            main_pid: None,
            exit_code,
            oom_killed: false,
            error: String::new(),
            restart_policy: Some("no".to_owned()),
            started_at: None,
            finished_at: None,
            health: None,
            device_requests: Vec::new(),
            network_mode: String::new(),
            published: Vec::new(),
        }
    }

    fn sight(container: Result<Option<Made>, NoAnswer>) -> Sight {
        let receipt = Receipt {
            boot_id: "this".to_owned(),
            container: None,
            process: None,
            unit: None,
            instance_id: "5f2c".to_owned(),
        };
        Sight { receipt: Some(receipt), container, is_this_boot: true, is_led: false, run: None }
    }

    fn became(state: State, sight: &Sight) -> Option<(State, String)> {
        judge(&record(state), sight).map(|change| (change.to, change.why))
    }

    #[test]
    fn an_engine_that_does_not_answer_changes_nothing() {
        for state in State::ALL {
            assert_eq!(became(state, &sight(Err(NoAnswer::Late))), None, "{state}");
        }
    }

    #[test]
    fn a_word_of_the_engines_that_is_not_known_changes_nothing() {
        let strange = made(Phase::Other("hibernating".to_owned()), Some(0));
        let seen = understood(Some(strange));
        assert!(seen.is_err());
        assert_eq!(became(State::Running, &sight(seen)), None);
        let known = Some(made(Phase::Exited, Some(0)));
        assert_eq!(understood(known.clone()), Ok(known));
    }

    #[test]
    fn what_somebody_leads_is_left_to_them() {
        for state in State::ALL {
            let led = Sight { is_led: true, ..sight(Ok(None)) };
            assert_eq!(became(state, &led), None, "{state}");
        }
    }

    #[test]
    fn what_runs_as_it_should_is_left_as_it_is() {
        for phase in [Phase::Running, Phase::Paused, Phase::Restarting, Phase::Stopping] {
            assert_eq!(became(State::Running, &sight(Ok(Some(made(phase, None))))), None);
        }
        for state in [State::Stopped, State::Failed] {
            assert_eq!(became(state, &sight(Ok(Some(made(Phase::Running, None))))), None);
        }
    }

    #[test]
    fn a_kill_by_us_for_want_of_memory_and_by_somebody_are_told_apart() {
        let killed = made(Phase::Exited, Some(137));
        let (state, why) = became(State::Stopping, &sight(Ok(Some(killed.clone())))).unwrap();
        assert_eq!(state, State::Stopped);
        assert!(why.contains("portreeve had it killed"), "{why}");
        let (state, why) = became(State::Running, &sight(Ok(Some(killed.clone())))).unwrap();
        assert_eq!(state, State::Failed);
        assert!(why.contains("somebody killed it") && why.contains("neither portreeve"), "{why}");
        let hungry = Made { oom_killed: true, ..killed };
        let (state, why) = became(State::Running, &sight(Ok(Some(hungry)))).unwrap();
        assert_eq!(state, State::Failed);
        assert!(why.contains("want of memory (exit code 137)"), "{why}");
    }

    #[test]
    fn an_end_in_order_is_a_stop_and_any_other_a_failure() {
        let after =
            |code| became(State::Running, &sight(Ok(Some(made(Phase::Exited, Some(code))))));
        assert_eq!(after(0).unwrap().0, State::Stopped);
        assert_eq!(after(143).unwrap().0, State::Stopped);
        assert_eq!(
            after(1).unwrap(),
            (State::Failed, "it ended by itself, with exit code 1".to_owned())
        );
        assert_eq!(after(139).unwrap().1, "SIGSEGV ended it (exit code 139)");
        let gone = became(State::Running, &sight(Ok(None))).unwrap();
        assert_eq!(gone, (State::Stopped, "somebody removed its container".to_owned()));
        let elsewhen =
            Sight { is_this_boot: false, ..sight(Ok(Some(made(Phase::Exited, Some(255))))) };
        let (state, why) = became(State::Running, &elsewhen).unwrap();
        assert_eq!(state, State::Stopped);
        assert!(why.starts_with("the host was restarted"), "{why}");
    }

    #[test]
    fn a_start_or_stop_whose_process_died_has_failed_where_something_of_it_runs() {
        let running = || sight(Ok(Some(made(Phase::Running, None))));
        assert_eq!(became(State::Starting, &running()).unwrap().0, State::Failed);
        assert_eq!(became(State::Starting, &sight(Ok(None))).unwrap().0, State::Failed);
        assert_eq!(became(State::Stopping, &running()).unwrap().0, State::Failed);
        assert_eq!(became(State::Stopping, &sight(Ok(None))).unwrap().0, State::Stopped);
    }
}
