//! The file of a model's unit: where it is kept, written in one step, and taken away.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    launch, service,
    trouble::Trouble,
    unit::{self, GPU_GROUPS, Surroundings, gate_of, unit_of},
};
use crate::{
    act::systemctl,
    backend::{Spec, spec::Engine},
    config::settings::Settings,
    engine::{self, NoAnswer, Phase},
    host::Host,
    ident::{Manager, ModelName, UnitName},
    snapshot::Seen,
};

/// What enabled ones hang on.
const TARGET: &str = "portreeve-models.target";

/// How a file of ours begins.
const MARK: &str = "# Written by 'portreeve model register'";

/// What came of a wish for a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is there; a remark where systemd does not know it as it is yet.
    Unit(UnitName, Option<String>),
    /// None can be had here, and why.
    None(String),
}

/// What a unit's text says of where it stands.
pub fn surroundings(
    host: &Host,
    manager: Manager,
    config: Option<&Path>,
) -> io::Result<Surroundings> {
    let program = installed(std::env::current_exe()?);
    let (config, groups) = (config.map(Path::to_owned), groups(host));
    Ok(Surroundings { manager, program, config, groups, is_offline: false })
}

/// The same for a system that is only being built. Nothing of this host counts: the settings will be in its `/etc/portreeve`, and
/// its groups are those that a distribution has.
pub fn offline() -> io::Result<Surroundings> {
    let program = installed(std::env::current_exe()?);
    let groups = GPU_GROUPS.to_vec();
    Ok(Surroundings { manager: Manager::System, program, config: None, groups, is_offline: true })
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

/// Writes a model's unit, over an older one of ours.
pub fn write(
    host: &Host,
    settings: &Settings,
    (name, spec): (&ModelName, &Spec),
    config: Option<&Path>,
) -> Result<Written, Trouble> {
    if !service::has_manager(host) {
        return Ok(Written::None("no systemd runs here".to_owned()));
    }
    match service::look_at(host, &gate_of(name)) {
        Seen::Known(_) => {}
        Seen::Gone => {
            let why = "portreeve's own units, which it needs, are not installed";
            return Ok(Written::None(why.to_owned()));
        }
        Seen::Denied => return Err(Trouble::unknown("systemd refuses to tell of its units")),
        Seen::Unreadable(why) => return Err(Trouble::unknown(why)),
    }
    let around = surroundings(host, service::manager(), config);
    let around = around
        .map_err(|error| Trouble::unknown(format!("where portreeve is is not known: {error}")))?;
    let path = path(host, name)?;
    is_ours(&path)?;
    let text = unit::text(name, spec, &around);
    put(&path, &text).map_err(|error| {
        let why = format!("its unit '{}' cannot be written: {error}", path.display());
        Trouble::new(why).hint("'--no-unit' registers it without; on NixOS models are declared, and the module makes their units")
    })?;
    let unit = unit_of(name);
    let is_old = match service::look_at(host, &unit) {
        Seen::Known(service) => service.needs_reload,
        Seen::Gone | Seen::Denied | Seen::Unreadable(_) => false,
    };
    let remark = if is_old { reload(host, settings) } else { None };
    Ok(Written::Unit(unit, remark))
}

/// Whether there is one, ours or not.
pub fn is_there(host: &Host, name: &ModelName) -> bool {
    path(host, name).is_ok_and(|path| fs::symlink_metadata(path).is_ok())
}

/// Takes a model's unit away. Nothing of it runs.
pub fn remove(host: &Host, name: &ModelName) -> Result<(), Trouble> {
    let path = path(host, name)?;
    let is_absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    // Without its file its link may be there still.
    if fs::symlink_metadata(&path).is_err_and(|error| is_absent(&error)) && !is_enabled(host, name)
    {
        return Ok(());
    }
    is_ours(&path)?;
    let (manager, unit) = (service::manager(), unit_of(name));
    let failed = |why: &dyn std::fmt::Display| {
        Trouble::new(format!("its unit '{}' cannot be removed: {why}", path.display()))
    };
    if service::has_manager(host) {
        systemctl::set_enabled(host, manager, false, &[&unit]).map_err(|why| failed(&why))?;
    }
    if let Err(error) =
        fs::remove_file(&path).or_else(|e| if is_absent(&e) { Ok(()) } else { Err(e) })
    {
        return Err(failed(&error));
    }
    if service::has_manager(host) {
        // A failed one would be kept in mind; that it is not known is as good.
        drop(systemctl::forget_failure(host, manager, &unit));
    }
    Ok(())
}

/// systemd finds new files by itself, and reads one that it has read anew only together with all others: which may cut running
/// containers off their GPUs (nvidia-container-toolkit, issue 48). What to do instead, where it may.
fn reload(host: &Host, settings: &Settings) -> Option<String> {
    const FIRST: &str = "systemd has an older text of its unit";
    if service::manager() == Manager::System {
        let risk = match on_gpus_by_hook(host, settings) {
            Ok(all) if all.is_empty() => None,
            Ok(all) => Some(format!("{} may be restarted", all.join(", "))),
            Err(why) => {
                Some(format!("no container of Docker's needs a GPU (not known now: {why})"))
            }
        };
        if let Some(risk) = risk {
            return Some(format!(
                "{FIRST}: 'systemctl daemon-reload' when {risk}, for it may cut running containers off their GPUs"
            ));
        }
    }
    let done = systemctl::reload(host, service::manager());
    done.err().map(|why| format!("{FIRST}: 'systemctl daemon-reload' failed: {why}"))
}

/// Running containers of Docker's that have their GPUs by NVIDIA's hook, which systemd does not know of.
fn on_gpus_by_hook(host: &Host, settings: &Settings) -> Result<Vec<String>, NoAnswer> {
    if !host.path("dev/nvidiactl").exists() {
        return Ok(Vec::new());
    }
    let (engine, _) = match launch::engine_of(host, settings, Some(Engine::Docker)) {
        Err(NoAnswer::Absent) => return Ok(Vec::new()),
        found => found?,
    };
    let timeout = settings.engines.timeout;
    let mut all = Vec::new();
    for one in engine::list(&engine, timeout)? {
        let made = if one.state == Phase::Running {
            engine::find(&engine, &one.id.0, timeout)?
        } else {
            None
        };
        let asked = made.map(|made| made.device_requests).unwrap_or_default();
        if asked.iter().any(|device| !device.starts_with('/') && !device.contains('=')) {
            all.push(one.name);
        }
    }
    Ok(all)
}

/// Whether it is started at boot: by its link, for a manager that has not read its files anew tells what was before.
pub fn is_enabled(host: &Host, name: &ModelName) -> bool {
    let link = |folder: PathBuf| folder.join(format!("{TARGET}.wants")).join(unit_of(name).0);
    folder(host).is_ok_and(|folder| fs::symlink_metadata(link(folder)).is_ok())
}

fn path(host: &Host, name: &ModelName) -> Result<PathBuf, Trouble> {
    Ok(folder(host)?.join(unit_of(name).0))
}

/// Where units are kept that are not a package's.
fn folder(host: &Host) -> Result<PathBuf, Trouble> {
    Ok(match service::manager() {
        Manager::System => host.path("etc/systemd/system"),
        Manager::User(_) => {
            let absolute = |name: &str, below: &str| {
                let folder = PathBuf::from(std::env::var_os(name)?).join(below);
                folder.is_absolute().then_some(folder)
            };
            let config = absolute("XDG_CONFIG_HOME", "").or_else(|| absolute("HOME", ".config"));
            config
                .ok_or_else(|| Trouble::new("there is no place for its unit: no HOME is set"))?
                .join("systemd/user")
        }
    })
}

/// Nobody else's file is written over or removed.
fn is_ours(path: &Path) -> Result<(), Trouble> {
    let is_ours = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Ok(data) if data.is_file() => {
            fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK))
        }
        Ok(_) | Err(_) => false,
    };
    if is_ours {
        return Ok(());
    }
    let why =
        format!("'{}' is there, and 'portreeve model register' did not write it", path.display());
    Err(Trouble::new(why).hint("take it away, or leave the model to it ('--no-unit')"))
}

/// All of it or nothing: beside it, then in its place.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    // Of one name for each model: what somebody left who was killed goes with the next.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    let _ = fs::remove_file(&beside);
    let written = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(folder)?.sync_all()
    };
    let done = written();
    if done.is_err() {
        let _ = fs::remove_file(&beside);
    }
    done
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
    fn what_was_left_half_written_is_written_anew_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("portreeve-model-a.service");
        fs::write(folder.path().join("portreeve-model-a.service.tmp"), "[Un").unwrap();
        put(&path, "[Unit]\n").unwrap();
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(
            (&left[..], fs::read_to_string(&path).unwrap().as_str()),
            (&[path.clone()][..], "[Unit]\n")
        );
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
