//! Texts that are no configuration, and such as are one in a way that nobody thought of. Built for the fuzzer and for the tests
//! that read its corpora again (`crate::fuzzing`).

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

use std::{path::PathBuf, time::Duration};

use super::{
    ConfigErrors, Layer, Loaded, Origin, Programs, Sources, lay, parse_duration, read,
    source::DEFAULT_LAYER,
};

/// The default with this text over it. None where it names compose files: whoever fuzzes asks no programs.
pub fn load(text: &str) -> Option<Result<Loaded, ConfigErrors>> {
    let file = PathBuf::from("/etc/portreeve/config.yaml");
    let origin = Origin::File(file.clone());
    let (fragment, _) = read::read(DEFAULT_LAYER + 1, &origin.to_string(), text);
    if !fragment.compose.is_empty() {
        return None;
    }
    let default = include_str!("../../config/default.yaml").to_owned();
    let files = vec![
        Layer { origin: Origin::Default, text: default },
        Layer { origin, text: text.to_owned() },
    ];
    let sources = Sources {
        etc: PathBuf::from("/nonexistent"),
        explicit: Some(file),
        is_privileged: false,
        programs: Programs { folders: Vec::new(), timeout: Duration::ZERO },
    };
    Some(lay(files, Vec::new(), &sources))
}

/// What compose answers.
pub fn compose(bytes: &[u8]) {
    super::compose::hostile::compose(&String::from_utf8_lossy(bytes));
}

/// A duration as it is typed.
pub fn duration(text: &str) {
    if let Ok(duration) = parse_duration(text) {
        let again = parse_duration(&format!("{}ms", duration.as_millis()));
        assert_eq!(again, Ok(duration), "{text}");
    }
}
