//! `portreeve model status`, `health` and `logs`.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    sync::Mutex,
    time::Duration,
};

use super::Stack;
use crate::{
    act::interrupt::Interrupt,
    backend::{Readiness, Spec},
    cli::Failure,
    ident::ModelName,
    models::{
        State,
        health::{self, Health},
        journal, logs, plan, reconcile,
        registry::{Record, RegistryError},
        service,
        unit::{gate_of, unit_of},
        unit_file,
        usage::Meter,
    },
    report::{Style, escape::escape, exit, models},
};

/// For one answer of a health endpoint.
const HEALTH_TIME: Duration = Duration::from_secs(10);

/// What each is doing, as its engine and its health endpoint have it.
pub(super) fn status(
    stack: &Stack,
    names: &[ModelName],
    is_json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let unseen = stack.reconcile((!names.is_empty()).then_some(names))?;
    let all = stack.records()?;
    for name in names {
        if !all.iter().any(|record| record.name == *name) {
            return Err(stack.unknown(name).into());
        }
    }
    let asked: Vec<Record> =
        all.into_iter().filter(|r| names.is_empty() || names.contains(&r.name)).collect();
    let healths = side_by_side(&asked);
    let is_on_gpus = |record: &Record| {
        record.state.is_up() && record.spec.as_ref().is_some_and(|spec| !spec.gpus.is_empty())
    };
    let meter = Meter::new(&stack.host, &stack.settings, asked.iter().any(is_on_gpus));
    let row = |mut record: Record| {
        let unit = service::of_model(&stack.host, &record.name);
        let unit_unseen = unit.as_ref().err().map(|trouble| trouble.why.clone());
        let unit = unit.ok().flatten();
        if unit.as_ref().is_some_and(service::Service::is_going_down) {
            record.state = State::Stopping;
        }
        let receipt = stack.receipt(&record.name).filter(|_| record.state.is_up());
        models::Status {
            health: healths.get(&record.name).cloned(),
            unseen: unseen.get(&record.name).cloned().or(unit_unseen),
            usage: meter.read(unit.as_ref(), receipt.as_ref()),
            receipt: stack.receipt(&record.name),
            gate: (record.state == State::Failed)
                .then(|| service::state_of(&stack.host, &gate_of(&record.name)))
                .flatten(),
            is_enabled: unit_file::is_enabled(&stack.host, &record.name),
            unit,
            record,
        }
    };
    let rows: Vec<models::Status> = asked.into_iter().map(row).collect();
    if is_json {
        models::render_status_json(&rows, out)?;
    } else {
        models::render_status(&rows, Style::of_stdout(), out)?;
    }
    let is_sick = |row: &models::Status| row.record.state == State::Failed || row.is_sick();
    Ok(match rows.iter().any(is_sick) {
        true => exit::NOT_CLEAR,
        false if rows.iter().any(|row| row.unseen.is_some()) => exit::COULD_NOT_TELL,
        false => exit::CLEAR,
    })
}

/// The health of those that run: one that hangs keeps nobody from the others.
fn side_by_side(records: &[Record]) -> BTreeMap<ModelName, Health> {
    let healths = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for record in records.iter().filter(|r| r.state == State::Running) {
            let Some(spec) = &record.spec else { continue };
            let healths = &healths;
            scope.spawn(move || {
                let health = health::ask(&plan::reach_of(spec), HEALTH_TIME);
                if let (Some(health), Ok(mut healths)) = (health, healths.lock()) {
                    healths.insert(record.name.clone(), health);
                }
            });
        }
    });
    healths.into_inner().unwrap_or_default()
}

/// Asks one model whether it is healthy, once or again and again.
pub(super) fn health(
    stack: &Stack,
    name: &ModelName,
    watch: Option<Duration>,
    is_json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let spec = stack.spec(name)?;
    let mut interrupt = Interrupt::install().map_err(Failure::Interrupt)?;
    loop {
        let (health, code) = one_look(stack, name, spec)?;
        let Some(pause) = watch else {
            models::render_health(name, &health, is_json, out)?;
            return Ok(code);
        };
        // At once, for whoever watches; and whoever has seen enough closes the pipe.
        let mut line = Vec::new();
        models::render_health(name, &health, is_json, &mut line)?;
        let mut stdout = anstream::stdout().lock();
        if stdout.write_all(&line).and_then(|()| stdout.flush()).is_err() {
            return Ok(code);
        }
        drop(stdout);
        if interrupt.wait(pause) {
            return Ok(code);
        }
    }
}

fn one_look(stack: &Stack, name: &ModelName, spec: &Spec) -> Result<(String, u8), Failure> {
    let names = std::slice::from_ref(name);
    let unseen = stack.reconcile(Some(names))?;
    let record = stack.records()?.into_iter().find(|record| record.name == *name);
    let state = record.map(|record| record.state);
    if let Some(state) = state.filter(|state| *state != State::Running) {
        return Ok((state.to_string(), exit::NOT_CLEAR));
    }
    let Some(health) = health::ask(&plan::reach_of(spec), HEALTH_TIME) else {
        return Ok(("not asked, by its registration".to_owned(), exit::CLEAR));
    };
    let code = match (&health, unseen.is_empty()) {
        (Health::Answered(Readiness::Ready), true) => exit::CLEAR,
        // Whoever answers may be somebody else.
        (Health::Answered(Readiness::Ready), false) => exit::COULD_NOT_TELL,
        (Health::Answered(Readiness::Loading | Readiness::Sick(_)) | Health::Silent(_), _) => {
            exit::NOT_CLEAR
        }
    };
    Ok((health.to_string(), code))
}

/// What a model's container wrote.
pub(super) fn logs(
    stack: &Stack,
    name: &ModelName,
    lines: usize,
    follows: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let spec = stack.spec(name)?;
    let model = (name, spec);
    let unit = unit_of(name);
    if service::of_model(&stack.host, name)?.is_some() {
        let container = spec.is_container.then(|| plan::container_name(name, spec.backend));
        let container = container.as_deref();
        return Err(journal::show(&stack.host, &unit, container, lines, follows).into());
    }
    let Some(registry) = stack.registry()? else { return Err(stack.unknown(name).into()) };
    let keeper = stack.keeper(None);
    let is_terminal = io::stdout().is_terminal();
    let shown = |line: &str| if is_terminal { escape(line, None) } else { line.to_owned() };
    if !follows {
        for line in logs::last(&keeper, &registry, model, lines)? {
            writeln!(out, "{}", shown(&line))?;
        }
        return Ok(exit::CLEAR);
    }
    let interrupt = Mutex::new(Interrupt::install().map_err(Failure::Interrupt)?);
    let is_over = || interrupt.lock().is_ok_and(|mut interrupt| interrupt.count() > 0);
    let mut each = |line: &str| {
        let mut stdout = io::stdout().lock();
        match writeln!(stdout, "{}", shown(line)).and_then(|()| stdout.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    logs::follow(&keeper, &registry, model, lines, &mut each, &is_over)?;
    Ok(exit::CLEAR)
}

impl Stack {
    /// Puts right what the registry has of the models; what could not be seen.
    pub(super) fn reconcile(
        &self,
        only: Option<&[ModelName]>,
    ) -> Result<BTreeMap<ModelName, String>, RegistryError> {
        let registry = match self.registry() {
            // What is on record can still be told.
            Err(error @ (RegistryError::Failed(..) | RegistryError::Io(..))) => {
                crate::cli::warn(&format!("not held against what runs: {error}"));
                return Ok(BTreeMap::new());
            }
            registry => registry?,
        };
        match registry {
            Some(mut registry) => reconcile::reconcile(&self.keeper(None), &mut registry, only),
            None => Ok(BTreeMap::new()),
        }
    }
}
