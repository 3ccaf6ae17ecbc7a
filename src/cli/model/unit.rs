//! `portreeve model enable`, `disable` and `show --unit`, and the units that registering writes.

use std::io::Write;

use super::Stack;
use crate::{
    act::systemctl,
    backend::Spec,
    cli::{Failure, warn},
    ident::{Manager, ModelName, UnitName},
    models::{
        Registry, service,
        trouble::Trouble,
        unit::unit_of,
        unit_file::{self, Written},
    },
    observe::units::{self, Questions},
    report::exit,
    snapshot::Seen,
};

/// Starts the target of enabled models at boot.
const BOOT: &str = "portreeve-models.service";

/// Writes a registered model's unit.
pub(super) fn write(stack: &Stack, name: &ModelName, spec: &Spec) -> Result<Written, Trouble> {
    unit_file::write(&stack.host, &stack.settings, (name, spec), stack.config.as_deref())
}

/// The text of a model's unit; for a user's manager where that is asked for, or another than root asks.
pub(super) fn text(stack: &Stack, name: &ModelName, is_users: bool) -> Result<String, Failure> {
    let spec = stack.spec(name)?;
    let uid = rustix::process::geteuid().as_raw();
    let manager = if is_users { Manager::User(uid) } else { service::manager() };
    let around = unit_file::surroundings(&stack.host, manager, stack.config.as_deref())?;
    Ok(crate::models::unit::text(name, spec, &around))
}

/// Has models started at boot, or no longer.
pub(super) fn set_enabled(
    stack: &Stack,
    names: &[ModelName],
    enabled: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let (host, manager) = (&stack.host, service::manager());
    let mut codes = Vec::new();
    for name in names {
        stack.spec(name)?;
        let unit = unit_of(name);
        let change = || -> Result<(), Trouble> {
            match service::look_at(host, &unit) {
                Seen::Known(_) => {}
                Seen::Gone => return Err(no_unit(name)),
                Seen::Denied => {
                    return Err(Trouble::unknown("systemd refuses to tell of its unit"));
                }
                Seen::Unreadable(why) => return Err(Trouble::unknown(why)),
            }
            let boot = UnitName::from(BOOT);
            let units = if enabled { vec![&unit, &boot] } else { vec![&unit] };
            systemctl::set_enabled(host, manager, enabled, &units)
                .map_err(|why| Trouble::new(why.to_string()))?;
            let kind = if enabled { "enabled" } else { "disabled" };
            Registry::open(&stack.path)?.record(name, kind, "")?;
            Ok(())
        };
        match change() {
            Ok(()) if enabled => writeln!(out, "model '{name}' is started at boot from now on")?,
            Ok(()) => writeln!(out, "model '{name}' is started at boot no longer")?,
            Err(trouble) => {
                crate::report::models::complain(name, "is as it was", &trouble);
                codes.push(if trouble.is_unknown { exit::COULD_NOT_TELL } else { exit::NOT_CLEAR });
                continue;
            }
        }
        codes.push(exit::CLEAR);
    }
    if enabled && codes.contains(&exit::CLEAR) {
        warn_of_no_lingering(stack, manager);
    }
    Ok(exit::worst(codes))
}

fn no_unit(name: &ModelName) -> Trouble {
    let unit = unit_of(name);
    Trouble::new("it has no unit").hint(format!(
        "'portreeve model show {name} --unit' prints one, for /etc/systemd/system/{unit}; on NixOS its module makes it"
    ))
}

/// A user's manager goes with the last login, and all that it keeps (loginctl(1), `enable-linger`).
pub(super) fn warn_of_no_lingering(stack: &Stack, manager: Manager) {
    let Manager::User(uid) = manager else { return };
    let questions = Questions { users: [uid].into(), ..Questions::default() };
    let lingers = units::observe(&stack.host, &questions).lingering.remove(&uid);
    if lingers == Some(Seen::Known(false)) {
        warn(
            "you do not linger: models end with your last login and are not started at boot ('loginctl enable-linger')",
        );
    }
}
