//! What stands in the file of gates that let something pass, whoever wrote it (`crate::fuzzing`).

/// The file's text.
pub fn passed(bytes: &[u8]) {
    super::passed::hostile(bytes);
}
