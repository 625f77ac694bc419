//! Faults of data, each with the file, the place, the rule and the remedy.

use mm_core::ConfigError;

/// What can be wrong with data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The operating system refuses the file.
    #[error("cannot read {file}: {source}; check the path and its permissions")]
    Io {
        /// The path as it was given.
        file: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The operating system refuses to write.
    #[error("cannot write {file}: {source}; free space or choose another folder, what is complete stays")]
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
        Self::Invalid { file: file.to_owned(), rule: rule.into(), remedy: remedy.into() }
    }

    pub(crate) fn row(
        file: &str,
        place: impl Into<String>,
        rule: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Row { file: file.to_owned(), place: place.into(), rule: rule.into(), remedy: remedy.into() }
    }

    pub(crate) fn split(file: &str, rule: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Split { file: file.to_owned(), rule: rule.into(), remedy: remedy.into() }
    }
}
