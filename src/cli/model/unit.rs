//! `portreeve model show --unit`, and what a unit's text needs to know of this host.

use std::{io, path::PathBuf};

use super::Stack;
use crate::{
    cli::Failure,
    host::Host,
    ident::{Manager, ModelName},
    models::unit::{self, GPU_GROUPS, Surroundings},
};

/// The text of a model's unit; for a user's manager where that is asked for, or another than root asks.
pub(super) fn text(stack: &Stack, name: &ModelName, is_users: bool) -> Result<String, Failure> {
    let spec = stack.spec(name)?;
    let manager = if is_users { Manager::User(uid()) } else { own_manager() };
    Ok(unit::text(name, spec, &surroundings(stack, manager)?))
}

/// Who runs the units of whoever runs us.
pub(super) fn own_manager() -> Manager {
    match uid() {
        0 => Manager::System,
        uid => Manager::User(uid),
    }
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Where a unit that we write will run.
pub(super) fn surroundings(stack: &Stack, manager: Manager) -> io::Result<Surroundings> {
    let program = installed(std::env::current_exe()?);
    let config = stack.config.as_deref().map(std::path::absolute).transpose()?;
    Ok(Surroundings { manager, program, config, groups: groups(&stack.host) })
}

/// As it is called, though an update has put another in its place meanwhile (proc_pid_exe(5)).
fn installed(program: PathBuf) -> PathBuf {
    let path = program.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    path.map(PathBuf::from).unwrap_or(program)
}

/// By `/etc/group` (group(5)) alone: NSS would ask others, and wait for them.
fn groups(host: &Host) -> Vec<&'static str> {
    let text = host.read_text("etc/group");
    let text = text.known().map(String::as_str).unwrap_or_default();
    let is_there = |name: &str| text.lines().any(|line| line.split(':').next() == Some(name));
    GPU_GROUPS.into_iter().filter(|name| is_there(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_while_it_ran_is_where_it_was() {
        for path in ["/usr/bin/portreeve (deleted)", "/usr/bin/portreeve"] {
            assert_eq!(installed(path.into()), PathBuf::from("/usr/bin/portreeve"));
        }
    }

    #[test]
    fn groups_are_those_that_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::fixture(folder.path());
        assert_eq!(groups(&host), [""; 0]);
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        std::fs::write(
            folder.path().join("etc/group"),
            "root:x:0:\nvideo:x:44:a,b\nrenderer:x:9:\n",
        )
        .unwrap();
        assert_eq!(groups(&host), ["video"]);
    }
}
