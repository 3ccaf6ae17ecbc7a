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
    report::exit,
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
            service::of_model(host, name)?.ok_or_else(|| no_unit(name))?;
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
        warn_of_logout(stack);
    }
    Ok(exit::worst(codes))
}

fn no_unit(name: &ModelName) -> Trouble {
    let unit = unit_of(name);
    Trouble::new("it has no unit").hint(format!(
        "'portreeve model show {name} --unit' prints one, for /etc/systemd/system/{unit}; on NixOS its module makes it"
    ))
}

/// Of models that go with their user.
pub(super) fn warn_of_logout(stack: &Stack) {
    if service::ends_with_login(&stack.host) {
        warn(
            "you do not linger: your models end with your last login, and none is started at boot ('loginctl enable-linger')",
        );
    }
}
