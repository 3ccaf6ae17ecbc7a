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

/// For which manager a unit is printed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// That of whoever asks: the system's for root.
    Ours,
    /// A user's.
    User,
    /// That of a system which is only being built.
    Offline,
}

/// The text of a model's unit.
pub(super) fn text(stack: &Stack, name: &ModelName, whose: Whose) -> Result<String, Failure> {
    let spec = stack.spec(name)?;
    let config = stack.config.as_deref();
    let around = match whose {
        Whose::Ours => unit_file::surroundings(&stack.host, service::manager(), config)?,
        Whose::User => {
            let manager = Manager::User(rustix::process::geteuid().as_raw());
            unit_file::surroundings(&stack.host, manager, config)?
        }
        Whose::Offline => unit_file::offline()?,
    };
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
