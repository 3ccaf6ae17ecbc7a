//! A model's unit: what it is called, and what its manager says of it.

use std::collections::HashMap;

use super::{trouble::Trouble, unit::unit_of};
use crate::{
    host::Host,
    ident::{Manager, ModelName, UnitName, UnitRef},
    observe::{
        self,
        dbus::Value,
        units::{self, Questions},
    },
    snapshot::Seen,
};

/// What a manager says of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `loaded`, `not-found`, `bad-setting`, `masked`.
    pub load_state: String,
    /// `active`, `activating`, `deactivating`, `inactive`, `failed`, `reloading`.
    pub active_state: String,
    /// `running`, `start-post`, `auto-restart`, `dead`.
    pub sub_state: String,
    /// How its last run came to its end: `success`, `exit-code`, `watchdog`, `start-limit-hit`.
    pub result: String,
    /// What it last said of itself.
    pub status_text: String,
    /// Which of its runs this is, or was.
    pub invocation_id: Option<String>,
    /// How often its manager restarted it by itself.
    pub restarts: u64,
    /// Its file is newer than what the manager has read.
    pub needs_reload: bool,
    /// Where its processes are, below the control groups' root.
    pub control_group: String,
}

impl Service {
    /// Something of it runs, or is about to.
    pub fn is_up(&self) -> bool {
        !matches!(self.active_state.as_str(), "inactive" | "failed") && !self.waits_for_restart()
    }

    /// It is being stopped.
    pub fn is_going_down(&self) -> bool {
        self.active_state == "deactivating"
    }

    /// Nothing of it runs, and its manager will start it again.
    pub fn waits_for_restart(&self) -> bool {
        self.sub_state.starts_with("auto-restart")
    }

    /// Whether this is the run of that id.
    pub fn is_run(&self, invocation_id: &str) -> bool {
        self.invocation_id.as_deref() == Some(invocation_id)
    }

    pub(super) fn read(properties: &HashMap<String, Value>) -> Option<Self> {
        let text = |key: &str| properties.get(key).and_then(Value::text).map(str::to_owned);
        let number = |key: &str| properties.get(key).and_then(Value::number);
        Some(Self {
            load_state: text("LoadState")?,
            active_state: text("ActiveState")?,
            sub_state: text("SubState")?,
            result: text("Result").unwrap_or_default(),
            status_text: text("StatusText").unwrap_or_default(),
            invocation_id: properties.get("InvocationID").and_then(Value::hex),
            restarts: number("NRestarts").unwrap_or_default(),
            needs_reload: properties.get("NeedDaemonReload").and_then(Value::flag)?,
            control_group: text("ControlGroup").unwrap_or_default(),
        })
    }
}

/// Who keeps the models of whoever runs this: root's are the system's.
pub fn manager() -> Manager {
    let uid = rustix::process::geteuid();
    if uid.is_root() { Manager::System } else { Manager::User(uid.as_raw()) }
}

/// Whether systemd runs here, and keeps units for whoever runs this.
pub fn has_manager(host: &Host) -> bool {
    let has_systemd = observe::has_systemd(host, &std::collections::BTreeMap::new());
    has_systemd == Seen::Known(true)
        && match manager() {
            Manager::System => true,
            Manager::User(uid) => host.path(format!("run/user/{uid}/systemd/private")).exists(),
        }
}

/// What our manager says of a unit. One without a file is `Gone`; so is every one where there is no manager.
pub fn look_at(host: &Host, unit: &UnitName) -> Seen<Service> {
    if !has_manager(host) {
        return Seen::Gone;
    }
    let unit = UnitRef { manager: manager(), name: unit.clone() };
    match units::properties(host, &unit) {
        Seen::Known(properties) => match Service::read(&properties) {
            Some(service) if service.load_state == "not-found" && !service.is_up() => Seen::Gone,
            Some(service) => Seen::Known(service),
            None => Seen::Unreadable("systemd left a property out".to_owned()),
        },
        Seen::Gone => Seen::Gone,
        Seen::Denied => Seen::Denied,
        Seen::Unreadable(why) => Seen::Unreadable(why),
    }
}

/// What a unit is doing, as far as its manager tells.
pub fn state_of(host: &Host, unit: &UnitName) -> Option<String> {
    look_at(host, unit).known().map(|unit| unit.active_state.clone())
}

/// The unit of a model, where it has one.
pub fn of_model(host: &Host, name: &ModelName) -> Result<Option<Service>, Trouble> {
    let not_told =
        |why: &str| Trouble::unknown(format!("whether it has a unit is not known: {why}"));
    match look_at(host, &unit_of(name)) {
        Seen::Known(unit) => Ok(Some(unit)),
        Seen::Gone => Ok(None),
        Seen::Denied => Err(not_told("systemd refuses to tell")),
        Seen::Unreadable(why) => Err(not_told(&why)),
    }
}

/// Whether our manager goes with our last login, and all that it keeps (loginctl(1), `enable-linger`).
pub fn ends_with_login(host: &Host) -> bool {
    let Manager::User(uid) = manager() else { return false };
    let questions = Questions { users: [uid].into(), ..Questions::default() };
    units::observe(host, &questions).lingering.remove(&uid) == Some(Seen::Known(false))
}
