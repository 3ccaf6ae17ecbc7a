//! A model's unit and the registry: its run is ordered from systemd, and the commands around its main process, which have the rights that
//! it lacks, write down how it goes. Each of them may be killed and the next goes on from what is there.

use std::{env, time::Duration};

use super::{
    Registry, State,
    handover::{self, Handover},
    journal,
    launch::{self, Prepared},
    lifecycle::{Down, Keeper, Up, put_failure, replace_old},
    native,
    receipt::{self, Main, Receipt, Worker, boot_id},
    registry::{Record, RegistryError},
    service::{self, Service},
    trouble::Trouble,
    unit::{gate_of, unit_of},
};
use crate::{
    act::{
        interrupt::Interrupt,
        systemctl::{self, NotDone, Order},
    },
    backend::{Spec, spec::Engine},
    config::settings::{Gate, Settings},
    host::Host,
    ident::{ModelName, Pid},
    snapshot::Seen,
};

/// How many of its last lines are told.
const LOG_LINES: usize = 15;

impl Keeper<'_> {
    /// Has its unit started, and waits until it serves.
    pub(super) fn start_unit(
        &self,
        name: &ModelName,
        spec: &Spec,
        unit: &Service,
        reaps: bool,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Up, Trouble> {
        let mut registry = self.open()?;
        self.reconcile_one(&mut registry, name)?;
        let before = recorded(&registry, name)?;
        // One that is being stopped is started once that is done.
        let is_up = !unit.is_going_down();
        if is_up && before.as_ref().is_some_and(|record| record.state == State::Running) {
            return Ok(Up::WasUp);
        }
        if unit.needs_reload {
            say(
                "its unit's file is newer than what systemd has read of it: 'systemctl daemon-reload'",
            );
        }
        // Whoever starts it already has passed.
        if reaps && !unit.is_up() {
            launch::pass_gate(self.host, self.settings, spec, reaps, interrupt, say)?;
        }
        let waits = unit.waits_for_restart();
        let (host, manager, unit) = (self.host, service::manager(), unit_of(name));
        if waits {
            // systemd would only wait with us until its time has come.
            let stop = Order::Stop;
            drop(systemctl::give(host, manager, stop, &unit, self.until, interrupt, &mut || ()));
        }
        // Somebody asks for it: how often systemd tried before is not held against it.
        let forgotten = systemctl::forget_failure(host, manager, &unit);
        if let Err(why @ NotDone::NotGiven(_)) = forgotten {
            return Err(Trouble::unknown(why.to_string()));
        }
        let mut look = || {
            if let Seen::Known(now) = service::look_at(host, &unit)
                && !now.status_text.is_empty()
            {
                say(&now.status_text);
            }
        };
        let given = systemctl::give(host, manager, Order::Start, &unit, None, interrupt, &mut look);
        match given {
            Ok(()) => {}
            Err(NotDone::Failed(words) | NotDone::HungUp(words)) => {
                return Err(self.why_not(
                    &mut registry,
                    name,
                    spec,
                    before.as_ref(),
                    &words,
                    interrupt,
                ));
            }
            Err(why @ (NotDone::Interrupted | NotDone::Late)) => {
                let hint = format!("it goes on starting; 'portreeve model stop {name}' ends it");
                return Err(Trouble::unknown(why.to_string()).hint(hint));
            }
            Err(why @ NotDone::NotGiven(_)) => return Err(Trouble::unknown(why.to_string())),
        }
        match recorded(&registry, name)?.map(|record| record.state) {
            Some(State::Running) => Ok(Up::Started),
            state => {
                let state = state.map_or_else(|| "unknown".to_owned(), |state| state.to_string());
                let why = format!("systemd has started its unit, and it is on record as {state}");
                Err(Trouble::unknown(why).hint(format!("'systemctl status {unit}'")))
            }
        }
    }

    /// Why its unit did not start: what its commands wrote down, else who stands in its gate, else systemd's word.
    fn why_not(
        &self,
        registry: &mut Registry,
        name: &ModelName,
        spec: &Spec,
        before: Option<&Record>,
        words: &str,
        interrupt: &mut Interrupt,
    ) -> Trouble {
        let unit = unit_of(name);
        let now = recorded(registry, name).ok().flatten();
        let since = |record: Option<&Record>| record.map(|record| record.since_ms);
        if since(now.as_ref()) != since(before)
            && let Some(record) = now.filter(|record| !record.state.is_up())
        {
            let log = journal::of_this_run(self.host, &unit, LOG_LINES);
            let trouble = Trouble { log, ..Trouble::new(record.why) };
            let is_tried_again = match service::look_at(self.host, &unit) {
                Seen::Known(unit) => {
                    unit.waits_for_restart() || unit.is_up() && !unit.is_going_down()
                }
                Seen::Gone | Seen::Denied | Seen::Unreadable(_) => false,
            };
            let hint = format!("systemd tries it again; 'portreeve model stop {name}' ends that");
            return is_tried_again.then_some(hint).into_iter().fold(trouble, Trouble::hint);
        }
        let gate = gate_of(name);
        let is_shut = service::state_of(self.host, &gate).as_deref() == Some("failed");
        let is_stopped = match service::look_at(self.host, &unit) {
            Seen::Known(unit) => {
                unit.is_going_down() || unit.active_state == "inactive" && unit.result == "success"
            }
            Seen::Gone => true,
            Seen::Denied | Seen::Unreadable(_) => false,
        };
        if !is_shut && is_stopped {
            return Trouble::new("somebody else had it stopped meanwhile");
        }
        if !is_shut {
            return Trouble::new(format!("systemd says: {words}"))
                .hint(format!("'systemctl status {unit}'"));
        }
        // The gate has waited as long as it is to.
        let gate_now = Gate { timeout: Duration::ZERO, ..self.settings.gate };
        let settings = Settings { gate: gate_now, ..self.settings.clone() };
        let passed = launch::pass_gate(self.host, &settings, spec, false, interrupt, &mut |_| ());
        let trouble = passed.err().unwrap_or_else(|| {
            Trouble::new("its gate was shut, and by now all is free")
                .hint(format!("'journalctl -u {gate}' says who was in the way"))
        });
        // That it could not be put on record is not the trouble.
        drop(registry.record(name, "blocked", &trouble.why));
        trouble
    }

    /// Has its unit stopped, where that runs or is about to; what is on record of it then.
    pub(super) fn stop_unit(
        &self,
        name: &ModelName,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<Option<String>, Trouble> {
        let Some(before) = service::of_model(self.host, name)? else { return Ok(None) };
        let ran = before.is_up() || before.waits_for_restart();
        let (host, manager, unit) = (self.host, service::manager(), unit_of(name));
        if ran {
            say("systemd stops its unit");
        }
        // Also where nothing of it runs: its start may wait for its gate.
        let mut look = || ();
        match systemctl::give(host, manager, Order::Stop, &unit, self.until, interrupt, &mut look) {
            Ok(()) => {}
            // What is left is told by the look that follows.
            Err(NotDone::Failed(_) | NotDone::HungUp(_)) => {
                let now = service::of_model(host, name)?;
                if now.is_some_and(|now| now.is_up() && !now.is_going_down()) {
                    let why = "somebody else has it started meanwhile";
                    return Err(Trouble::new(why).hint(format!("'systemctl status {unit}'")));
                }
            }
            Err(why @ (NotDone::Interrupted | NotDone::Late)) => {
                let hint = format!("it goes on stopping: 'systemctl status {unit}'");
                return Err(Trouble::unknown(why.to_string()).hint(hint));
            }
            Err(NotDone::NotGiven(_)) if !ran => {}
            Err(why @ NotDone::NotGiven(_)) => return Err(Trouble::unknown(why.to_string())),
        }
        if !ran {
            return Ok(None);
        }
        let registry = Registry::look(self.registry).ok().flatten();
        let record = registry.and_then(|registry| recorded(&registry, name).ok().flatten());
        let why = record.map(|record| record.why).filter(|why| !why.is_empty());
        Ok(Some(why.unwrap_or_else(|| "its unit was stopped".to_owned())))
    }

    /// Before its main process: on record as starting, with the way cleared, and what was found handed over.
    pub fn step_begin(
        &self,
        name: &ModelName,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        let spec = self.spec(name)?;
        let worker = self.this_run(name)?;
        let mut registry = self.open()?;
        self.reconcile_one(&mut registry, name)?;
        let restarts =
            service::of_model(self.host, name)?.map(|unit| unit.restarts).unwrap_or_default();
        let why = match (restarts, recorded(&registry, name)?) {
            (0, _) | (_, None) => "its unit was started".to_owned(),
            (restarts, Some(last)) => {
                format!("systemd restarts it, {restarts} in a row by now: {}", last.why)
            }
        };
        match registry.begin(name, State::begin_start, &why, &worker) {
            Ok(_) => {}
            Err(RegistryError::Forbidden(_, step)) if step.from == State::Running => {
                let why = "it runs already, without its unit";
                return Err(Trouble::new(why).hint(format!("'portreeve model stop {name}' first")));
            }
            Err(error) => return Err(error.into()),
        }
        self.check_wanted(&mut registry, name, spec, &worker)?;
        let mut prepare = |registry: &mut Registry| {
            let instance = registry.instance_id()?;
            let order = self.order(name, spec, &instance);
            self.check_conflicts(registry, order)?;
            let chosen = launch::cards(self.host, self.settings, spec)?;
            let mut spec = spec.clone();
            if spec.is_container {
                let prepared = Prepared::with(order, chosen.clone())?;
                // The one that answers now is the one that it is started on.
                spec.engine = Some(Engine::of_kind(prepared.kind()));
                replace_old(registry, &worker, name, &prepared, interrupt, say)?;
            }
            let engines = self.settings.engines.clone();
            handover::give(&Handover { spec, chosen, instance, engines }).map_err(|error| {
                Trouble::unknown(format!("systemd does not hand over what was found: {error}"))
                    .hint("its unit needs NotifyAccess=exec and FileDescriptorStoreMax=")
            })
        };
        let prepared = prepare(&mut registry);
        prepared.map_err(|trouble| put_failure(&mut registry, name, &worker, trouble))
    }

    /// Once its main process says that it serves: it is seen with all rights, and on record as running.
    pub fn step_up(
        &self,
        name: &ModelName,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        let spec = self.spec(name)?;
        let worker = self.this_run(name)?;
        let mut registry = self.open()?;
        let instance = registry.instance_id()?;
        let order = self.order(name, spec, &instance);
        let receipt = if spec.is_container {
            let chosen = launch::cards(self.host, self.settings, spec);
            chosen.and_then(|chosen| launch::verify(order, chosen, interrupt, say))
        } else {
            self.receipt_of_process(&instance)
        };
        let receipt = receipt.map(|receipt| Receipt { unit: Some(unit_of(name).0), ..receipt });
        let up = receipt.and_then(|receipt| {
            registry.put_receipt(name, &worker, &receipt)?;
            registry.settle(name, &worker, State::come_up, "")?;
            Ok(())
        });
        up.map_err(|trouble| put_failure(&mut registry, name, &worker, trouble))
    }

    /// The server below the main process: what is to be known again should it outlive its unit.
    fn receipt_of_process(&self, instance: &str) -> Result<Receipt, Trouble> {
        let gone = || Trouble::new("its server is gone already");
        let main = env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()).map(Pid);
        let server = main.and_then(|main| native::first_child(self.host, main)).ok_or_else(gone)?;
        Ok(Receipt {
            boot_id: boot_id(self.host).unwrap_or_default(),
            container: None,
            process: Some(Main::of(self.host, server).ok_or_else(gone)?),
            unit: None,
            instance_id: instance.to_owned(),
        })
    }

    /// After its run, however that ended: nothing of it is left, and why is on record.
    pub fn step_down(
        &self,
        name: &ModelName,
        interrupt: &mut Interrupt,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), Trouble> {
        // By hand beside a run, it would take that for what is left over.
        if env::var_os("SERVICE_RESULT").is_none() {
            return Err(not_its_unit(name));
        }
        let end = self.how_it_ended(name);
        let (record, brought, survivor) = {
            // Also where it cannot be written: what is left is ended first.
            let registry = Registry::look(self.registry)?;
            let registry = registry.ok_or_else(|| Trouble::unknown("there is no registry"))?;
            let receipt = registry.receipt(name)?;
            let survivor = receipt.as_ref().and_then(|receipt| survivor(self.host, receipt));
            let contained = receipt.and_then(|receipt| receipt.container);
            let spec = self.spec(name).ok();
            let brought = self.bring_down(&registry, name, spec, contained, interrupt, say);
            (recorded(&registry, name)?, brought, survivor)
        };
        let Some(record) = record else { return brought.map(drop) };
        let mut registry = self.open()?;
        let (to, why) = match (end, &brought) {
            (_, Err(left)) => (State::Failed, left.why.clone()),
            // Its receipt is kept: by that it is known for what it is.
            (_, Ok(_)) if survivor.is_some() => (State::Failed, outlived(name, survivor)),
            (End::Asked(why), Ok(_)) => (State::Stopped, why),
            (End::Failed(why), Ok(_)) => (State::Failed, why),
        };
        if record.state.is_up() {
            registry.settle_if(&record, to, &why)?;
        } else if let Ok(down @ Down { stopped, .. }) = &brought
            && !stopped.is_empty()
        {
            registry.record(name, "cleaned", &format!("a container of its was left: {down}"))?;
        }
        brought.map(drop)
    }

    /// As systemd has it: `$SERVICE_RESULT` and its like (systemd.exec(5)), and what its main process said last.
    fn how_it_ended(&self, name: &ModelName) -> End {
        let variable = |name: &str| env::var(name).unwrap_or_default();
        let said = service::of_model(self.host, name).ok().flatten().map(|unit| unit.status_text);
        let said = said.filter(|said| !said.is_empty());
        let (result, code) = (variable("SERVICE_RESULT"), variable("EXIT_CODE"));
        let status = variable("EXIT_STATUS");
        let how = match (result.as_str(), code.as_str()) {
            ("success", _) => {
                return End::Asked(said.unwrap_or_else(|| "its unit was stopped".to_owned()));
            }
            ("watchdog", _) => {
                return End::Failed("its main process gave no sign of life (watchdog)".to_owned());
            }
            // Its main process did as it was told: another command of its unit did not.
            ("signal" | "core-dump", "" | "exited") => {
                return End::Failed("a signal ended one of its unit's steps".to_owned());
            }
            ("exit-code", "") => {
                return End::Failed("one of its unit's steps failed".to_owned());
            }
            ("exit-code", "exited") if status == "0" => {
                return End::Failed("one of its unit's steps failed".to_owned());
            }
            ("timeout", _) => "it took longer than its unit allows".to_owned(),
            ("oom-kill", _) => {
                return End::Failed("the kernel killed it for want of memory".to_owned());
            }
            (_, "killed" | "dumped") => {
                return End::Failed(format!("SIG{status} ended its main process"));
            }
            // Why is what it said.
            (_, "exited") => {
                return End::Failed(
                    said.unwrap_or_else(|| format!("it ended with exit code {status}")),
                );
            }
            (result, _) => format!("systemd calls it '{result}'"),
        };
        End::Failed(said.map_or_else(|| how.clone(), |said| format!("{said} ({how})")))
    }

    fn this_run(&self, name: &ModelName) -> Result<Worker, Trouble> {
        Worker::this_run(self.host, &unit_of(name)).ok_or_else(|| not_its_unit(name))
    }
}

fn not_its_unit(name: &ModelName) -> Trouble {
    Trouble::new("this is a command of its unit, and none runs it")
        .hint(format!("'portreeve model start {name}' has systemd start it"))
}

/// A server that is no process of its unit any more, and lives on: systemd has ended the others by now.
fn survivor(host: &Host, receipt: &Receipt) -> Option<Pid> {
    let is_ours = receipt.container.is_none() && boot_id(host)? == receipt.boot_id;
    let server = receipt.process.as_ref().filter(|_| is_ours)?;
    let is_it = receipt::key_of(server.key.pid).is_some_and(|now| now.is_same(&server.key));
    is_it.then_some(server.key.pid)
}

fn outlived(name: &ModelName, survivor: Option<Pid>) -> String {
    let pid = survivor.map_or_else(String::new, |pid| format!("pid {pid}"));
    format!("its server, {pid}, outlived its unit ('portreeve reap {name}' ends it)")
}

/// How a run came to its end, and why.
enum End {
    /// It was asked to, or was done.
    Asked(String),
    Failed(String),
}

fn recorded(registry: &Registry, name: &ModelName) -> Result<Option<Record>, RegistryError> {
    match registry.get(name) {
        Ok(record) => Ok(Some(record)),
        // It may be declared, and never have had a state.
        Err(RegistryError::NoModel(..)) => Ok(None),
        Err(error) => Err(error),
    }
}
