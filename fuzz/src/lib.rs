//! What the targets share: a folder of their own, inputs of several files, messages that can be read.

use std::fmt::Display;
use std::sync::LazyLock;
use tempfile::TempDir;

/// The longest message about a file: inputs are longer, so that one that is quoted whole is noticed.
pub const MESSAGE: usize = 8_000;

/// Where a target puts its input.
pub static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// The parts of an input between separators.
pub fn split<'a>(mut data: &'a [u8], separator: &[u8]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    while let Some(at) = data.windows(separator.len()).position(|window| window == separator) {
        parts.push(&data[..at]);
        data = &data[at + separator.len()..];
    }
    parts.push(data);
    parts
}

/// [`plain`] with the usual length.
pub fn readable(error: &impl Display) {
    plain(&error.to_string(), MESSAGE);
}

/// A message has a length that can be read, and none of a stranger's control sequences.
pub fn plain(text: &str, most: usize) {
    assert!(text.len() <= most, "a message of {} bytes", text.len());
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}
