//! Faults of data, each with the file, the place, the rule and the remedy.

use mm_core::ConfigError;

/// What can be wrong with data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refuses the file.
    #[error("cannot read {}: {source}; check the path and its permissions", plain(.file.as_str()))]
    Io {
        /// The path as it was given.
        file: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The operating system refuses to write.
    #[error("cannot write {}: {source}; free space or choose another folder, what is complete stays", plain(.file.as_str()))]
    Write {
        /// The path as it was given.
        file: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file or the data set as a whole breaks a rule.
    #[error("{file}: {rule}; {remedy}")]
    Invalid {
        /// The path as it was given, or the name of a data set that does not come from a file.
        file: String,
        /// What is wrong.
        rule: String,
        /// What to do about it.
        remedy: String,
    },
    /// One row breaks a rule.
    #[error("{file}, {place}: {rule}; {remedy}")]
    Row {
        /// The path as it was given, or the name of a data set that does not come from a file.
        file: String,
        /// The row of a tensor (from 0) or the line of a text file (from 1), and the column.
        place: String,
        /// What is wrong.
        rule: String,
        /// What to do about it.
        remedy: String,
    },
    /// A split breaks a rule.
    #[error("split of {file}: {rule}; {remedy}")]
    Split {
        /// The path as it was given, or the name of a data set that does not come from a file.
        file: String,
        /// What is wrong.
        rule: String,
        /// What to do about it.
        remedy: String,
    },
    /// A setting is not allowed, or does not fit the data.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl DataError {
    pub(crate) fn invalid(file: &str, rule: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Invalid { file: plain(file), rule: plain(rule), remedy: plain(remedy) }
    }

    pub(crate) fn row(
        file: &str,
        place: impl Into<String>,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Row { file: plain(file), place: plain(place), rule: plain(rule), remedy: plain(remedy) }
    }

    pub(crate) fn split(file: &str, rule: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Split { file: plain(file), rule: plain(rule), remedy: plain(remedy) }
    }
}

/// The longest part of a message, in bytes.
const LONGEST: usize = 1500;

/// Text that may quote a stranger's file, as a terminal can show it: control characters are escaped, and it has an end.
fn plain(text: impl Into<String>) -> String {
    let mut text = text.into();
    let strange = |c: char| c.is_control() && c != '\n';
    if text.contains(strange) {
        let escaped = |c: char| if strange(c) { c.escape_default().to_string() } else { c.to_string() };
        text = text.chars().map(escaped).collect();
    }
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_quote_no_control_characters_and_end() {
        let error = DataError::invalid("a\u{1b}[2J.csv", "has\u{7}\n`é`", "x");
        assert_eq!(error.to_string(), "a\\u{1b}[2J.csv: has\\u{7}\n`é`; x");
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = DataError::Io { file: "sha\u{7f}rd".into(), source };
        assert!(error.to_string().starts_with("cannot read sha\\u{7f}rd: "), "{error}");
        let long = DataError::row("f", "line 1", "é".repeat(5000), "x").to_string();
        assert!(long.len() < 1600 && long.contains('…'), "{}", long.len());
    }
}
