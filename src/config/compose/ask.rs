//! Which compose there is, and what it says of a file: `docker compose config`, or its like. Runs it, and knows nothing of
//! what the answer means.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::super::{
    fragment::ComposeFragment,
    problem::{quoted, shown},
    source::Sources,
};
use crate::command::{self, Said, Unheard};

/// Lines of its own words that are shown, and characters of each.
const MOST_LINES: usize = 12;
const MOST_CHARACTERS: usize = 300;
/// Compose asks the engine for its version even before `config`, and a Docker that sleeps behind its socket unit would
/// wake (tried with 2.26; it goes on without an answer). Nothing can be below this path.
const NO_ENGINE: &str = "unix:///dev/null/none";
/// Root's, whoever's environment we were started with: plugins are run from there.
const ROOTS_HOME: &str = "/root";

/// Where compose would find code besides: plugins of docker, modules of Python.
const OTHERS_CODE: [&str; 4] = ["DOCKER_CONFIG", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE"];

/// A way to ask: a program, and what stands before and behind the files.
struct Way {
    /// As it is called in messages.
    by: &'static str,
    program: &'static str,
    before: &'static [&'static str],
    behind: &'static [&'static str],
}

/// In this order: of several, the one that most hosts use. `podman compose` only calls one of the last two.
/// Version 1 of docker-compose and podman-compose print YAML and know no other format.
const WAYS: [Way; 3] = [
    Way {
        by: DOCKER_COMPOSE,
        program: "docker",
        before: &["compose"],
        behind: &["config", "--format", "json"],
    },
    Way { by: "docker-compose", program: "docker-compose", before: &[], behind: &["config"] },
    Way { by: PODMAN_COMPOSE, program: "podman-compose", before: &[], behind: &["config"] },
];
pub(super) const DOCKER_COMPOSE: &str = "docker compose";
pub(super) const PODMAN_COMPOSE: &str = "podman-compose";

/// Why compose's word is not to be had: a message, and what to do.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// The compose of this host.
pub(super) struct Compose {
    way: &'static Way,
    program: PathBuf,
    path: OsString,
    timeout: Duration,
    is_privileged: bool,
}

/// What it said of one entry.
pub(super) struct Told {
    pub(super) by: &'static str,
    /// Its answer, YAML or JSON.
    pub(super) text: String,
    /// What it said beside it.
    pub(super) warnings: Vec<String>,
}

impl Compose {
    /// The first that is installed.
    pub(super) fn find(sources: &Sources) -> Result<Self, Failure> {
        let programs = &sources.programs;
        let mut words = String::new();
        for way in &WAYS {
            let mut paths = programs.folders.iter().map(|folder| folder.join(way.program));
            let Some(program) = paths.find(|path| command::is_program(path)) else { continue };
            let path = std::env::join_paths(&programs.folders).unwrap_or_default();
            let (timeout, is_privileged) = (programs.timeout, sources.is_privileged);
            let compose = Self { way, program, path, timeout, is_privileged };
            // Docker's command may be there without its plugin.
            match compose.has_compose() {
                Ok(()) => return Ok(compose),
                Err(why) => words = why,
            }
        }
        let folders: Vec<String> = programs.folders.iter().map(|folder| shown(folder)).collect();
        Err(Failure {
            message: format!(
                "no compose is installed: no 'docker compose', 'docker-compose' or 'podman-compose' in {}{words}",
                folders.join(", ")
            ),
            hint: Some(
                "install one, or name the ports under 'services:' instead of 'compose:'".to_owned(),
            ),
        })
    }

    /// Its own words where it has none.
    fn has_compose(&self) -> Result<(), String> {
        if self.way.before.is_empty() {
            return Ok(());
        }
        let mut command = self.command(Path::new("/"));
        command.arg("version");
        match command::run(command, Instant::now() + self.timeout) {
            Ok(Said { code: Some(0), .. }) => Ok(()),
            Ok(said) => Err(own_words(self.way.by, &said.errors)),
            Err(why) => Err(format!("\n  {}: {why}", self.way.by)),
        }
    }

    /// What an entry's files mean, with the variables of the environment and of `.env` put in.
    pub(super) fn ask(&self, entry: &ComposeFragment) -> Result<Told, Failure> {
        let mut command = self.command(entry.folder());
        for file in &entry.files {
            command.arg("--file").arg(file);
        }
        for profile in &entry.profiles {
            command.args(["--profile", profile]);
        }
        command.args(self.way.behind);
        let failed = |why: &str, errors: &[u8]| self.failed(entry, why, errors);
        let said =
            command::run(command, Instant::now() + self.timeout).map_err(|why| match why {
                Unheard::Late => {
                    failed(&format!("no answer within {} s", self.timeout.as_secs()), &[])
                }
                Unheard::NotStarted(_) | Unheard::TooMuch(_) | Unheard::Lost(_) => {
                    failed(&why.to_string(), &[])
                }
            })?;
        match said.code {
            Some(0) => {}
            Some(code) => return Err(failed(&format!("exit code {code}"), &said.errors)),
            None => return Err(failed("ended by a signal", &said.errors)),
        }
        let text = String::from_utf8(said.out)
            .map_err(|_| failed("its answer is not UTF-8", &said.errors))?;
        Ok(Told { by: self.way.by, text, warnings: lines(&said.errors) })
    }

    /// Ours, then its own words.
    fn failed(&self, entry: &ComposeFragment, why: &str, errors: &[u8]) -> Failure {
        let by = self.way.by;
        let files: Vec<String> =
            entry.files.iter().map(|file| format!("'{}'", shown(file))).collect();
        let words = own_words(by, errors);
        Failure {
            message: format!("{by} does not read {}: {why}{words}", files.join(", ")),
            hint: Some(format!("see it with: {by} --file {} config", files.join(" --file "))),
        }
    }

    /// The program with what stands before the files, in this folder. The environment is a source of variables, so it is
    /// ours, but for what would choose another program or an engine.
    fn command(&self, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.way.before).current_dir(folder);
        command.env("PWD", folder).env("PATH", &self.path).env("DOCKER_HOST", NO_ENGINE);
        command.env_remove("DOCKER_CONTEXT");
        if self.is_privileged {
            command.env("HOME", ROOTS_HOME);
            for name in OTHERS_CODE {
                command.env_remove(name);
            }
        }
        command
    }
}

/// What it put to standard error, as lines of ours.
fn own_words(by: &str, errors: &[u8]) -> String {
    let lines: Vec<String> = lines(errors).iter().map(|line| format!("\n  {by}: {line}")).collect();
    lines.concat()
}

fn lines(errors: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(errors);
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.take(MOST_LINES).map(|line| quoted(line, MOST_CHARACTERS)).collect()
}
