//! The target that PORTREEVE_FUZZ_TARGET names.

#![no_main]

use std::sync::LazyLock;

static NAME: LazyLock<String> = LazyLock::new(|| {
    let name = std::env::var("PORTREEVE_FUZZ_TARGET").unwrap_or_default();
    assert!(
        portreeve::fuzzing::TARGETS.iter().any(|(known, _)| *known == name),
        "no target '{name}'"
    );
    name
});

portreeve_fuzz::libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portreeve_fuzz::run(&NAME, bytes));
