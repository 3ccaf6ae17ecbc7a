//! Every parser of bytes that others write, one target for each grammar: what a fuzzer calls (`fuzz/`), and what the tests call
//! with all inputs that were kept. Each holds more than that nothing panics: its module's `hostile.rs` says what.

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use crate::{
    backend::spec::{parse_bytes, parse_processors},
    cli, config, engine, gate,
    ident::{Endpoint, GpuName, ModelName, pci_address},
    models, observe,
    report::escape,
};

/// A target: its name, which is that of its program and of its corpus, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 21] = [
    ("stat", observe::hostile::stat),
    ("process", observe::hostile::process),
    ("cgroup", observe::hostile::cgroup),
    ("mountinfo", observe::hostile::mountinfo),
    ("fdinfo", observe::hostile::fdinfo),
    ("sock_diag", observe::hostile::sock_diag),
    ("proc_net", observe::hostile::proc_net),
    ("nftables", observe::hostile::nftables),
    ("xtables", observe::hostile::xtables),
    ("dbus", dbus),
    ("nvidia", observe::hostile::nvidia),
    ("engine", engine::hostile::engine),
    ("http", engine::hostile::http),
    ("logs", engine::hostile::logs),
    ("config", config),
    ("compose", config::hostile::compose),
    ("registry", models::hostile::registry),
    ("database", models::hostile::database),
    ("kept", kept),
    ("served", models::hostile::served),
    ("names", names),
];

/// The target of this name does with an input what it does.
pub fn run(name: &str, bytes: &[u8]) {
    if let Some((_, target)) = TARGETS.iter().find(|(known, _)| *known == name) {
        target(bytes);
    }
}

/// A reply over D-Bus, for whoever asks about processes and for whoever asks about models.
fn dbus(bytes: &[u8]) {
    observe::hostile::dbus(bytes);
    if let Some(properties) = observe::hostile::properties(bytes) {
        models::hostile::service(&properties);
    }
}

/// A configuration: what is loaded can be shown, and what is shown loads again to the same.
fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match config::hostile::load(&text) {
        None => {}
        Some(Err(errors)) => assert!(errors.count() > 0 && !errors.to_string().is_empty()),
        Some(Ok(loaded)) => {
            let mut shown = Vec::new();
            assert!(cli::config::show(&loaded, &mut shown).is_ok());
            let shown = String::from_utf8_lossy(&shown);
            let again = config::hostile::load(&shown).and_then(Result::ok);
            let again = again.map(|again| format!("{:?}", again.settings));
            assert_eq!(again, Some(format!("{:?}", loaded.settings)), "{shown}");
        }
    }
}

/// What we wrote down and find again: a handed-over file, what gates let pass.
fn kept(bytes: &[u8]) {
    models::hostile::handover(bytes);
    gate::hostile::passed(bytes);
}

/// Names, ports and amounts as they are typed or shown: what is read, printed and read again is the same.
fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let text = text.as_ref();
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        assert_eq!(endpoint.short().parse(), Ok(endpoint));
    }
    if let Ok(gpu) = text.parse::<GpuName>() {
        assert_eq!(gpu.to_string().parse(), Ok(gpu));
    }
    if let Some(address) = pci_address(text) {
        assert_eq!(pci_address(&address), Some(address));
    }
    if let Ok(name) = text.parse::<ModelName>() {
        assert!(name.0 == text && !text.contains(['/', ' ', '\n']) && text.len() <= 48);
    }
    if let Ok(bytes) = parse_bytes(text) {
        assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
    }
    if let Ok(milli) = parse_processors(text) {
        assert_eq!(parse_processors(&format!("{}.{:03}", milli / 1000, milli % 1000)), Ok(milli));
    }
    config::hostile::duration(text);
    let shown = escape::escape(bytes, None);
    assert!(!shown.contains(|c: char| c.is_control()), "{shown:?}");
    let narrow = escape::escape(bytes, Some(10));
    assert!(escape::width(&narrow) <= 10, "{narrow:?}");
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        panic::catch_unwind,
        path::{Path, PathBuf},
    };

    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn names_in(folder: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn every_input_that_was_kept_is_read_as_it_must_be() {
        for (name, target) in TARGETS {
            let corpus = folder().join("corpus").join(name);
            let inputs = names_in(&corpus);
            assert!(!inputs.is_empty(), "{name} has no seeds");
            for input in inputs {
                let path = corpus.join(input);
                let bytes = fs::read(&path).unwrap();
                assert!(catch_unwind(|| target(&bytes)).is_ok(), "{}", path.display());
            }
        }
    }

    #[test]
    fn every_target_has_a_program_a_corpus_and_nothing_has_one_more() {
        let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names.len(), TARGETS.len());
        assert_eq!(names_in(&folder().join("corpus")), names);
        let programs: BTreeSet<String> = names.iter().map(|name| format!("{name}.rs")).collect();
        assert_eq!(names_in(&folder().join("fuzz_targets")), programs);
        let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
        for name in &names {
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        }
        // And one that has them all.
        assert_eq!(manifest.matches("[[bin]]").count(), names.len() + 1);
    }
}
