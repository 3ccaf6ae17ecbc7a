//! What stands in the file of gates that let something pass, whoever wrote it (`crate::fuzzing`).

#![allow(clippy::missing_panics_doc, reason = "a panic is how a target tells what is not so")]

/// The file's text.
pub fn passed(bytes: &[u8]) {
    super::passed::hostile(bytes);
}
