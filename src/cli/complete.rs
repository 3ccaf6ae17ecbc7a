//! What a shell completes: `COMPLETE=bash portreeve` prints the script, which asks anew at every TAB. Nothing is written, no
//! engine and no compose asked, and what cannot be read is left out without a word.

use std::{collections::BTreeSet, ffi::OsString, io::Write};

use clap_complete::{
    CompleteEnv,
    engine::CompletionCandidate,
    env::{Bash, Fish, Shells, Zsh},
};

use crate::{
    backend::BackendName,
    config::{self, Sources},
    host::Host,
    models::{names, registry},
    report::exit,
};

/// Set by the script, and by whoever wants it.
const VARIABLE: &str = "COMPLETE";

/// Answers a shell that asks; none where nobody does. Only a command line that asks for nothing else is taken for a shell's
/// question (nothing, or `--` first): no variable that somebody left behind opens a gate or keeps a reap from its work.
pub(super) fn answer(arguments: &[OsString]) -> Option<u8> {
    std::env::var_os(VARIABLE)?;
    let (_, words) = arguments.split_first()?;
    if words.first().is_some_and(|first| first != "--") {
        return None;
    }
    let asked = CompleteEnv::with_factory(super::command)
        .var(VARIABLE)
        .shells(Shells(&[&Bash, &Fish, &Zsh]))
        .try_complete(arguments, std::env::current_dir().ok().as_deref());
    match asked {
        Ok(is_answered) => is_answered.then_some(exit::CLEAR),
        Err(error) => {
            // At a TAB a person is in the middle of a line.
            if words.is_empty() {
                let _ = write!(anstream::stderr(), "{error}");
            }
            Some(exit::COULD_NOT_TELL)
        }
    }
}

/// Models that are registered or declared.
pub(super) fn models() -> Vec<CompletionCandidate> {
    let (_, declared) = config::names(&Sources::default());
    let names = declared.into_iter().map(|name| name.0).chain(registered());
    candidates(names)
}

/// Services that the verbs know: those of the settings, and every model.
pub(super) fn services() -> Vec<CompletionCandidate> {
    let (services, declared) = config::names(&Sources::default());
    let services = services.into_iter().map(|name| name.0);
    candidates(services.chain(declared.into_iter().map(|name| name.0)).chain(registered()))
}

/// The names of backends.
pub(super) fn backends() -> Vec<CompletionCandidate> {
    candidates(BackendName::ALL.into_iter().map(|name| name.word().to_owned()))
}

fn registered() -> impl Iterator<Item = String> {
    let path = registry::path(&Host::live()).ok();
    path.into_iter().flat_map(|path| names::registered(&path)).map(|name| name.0)
}

fn candidates(names: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    names.collect::<BTreeSet<_>>().into_iter().map(CompletionCandidate::new).collect()
}
