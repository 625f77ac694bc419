//! Why a checkpoint was not loaded or saved.

use super::load::Mismatch;

/// The result of loading or saving a checkpoint.
pub type Result<T> = std::result::Result<T, WeightsError>;

/// Why a checkpoint was not loaded or saved: each case names the file, the value, the rule and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused to read or write.
    #[error("cannot {what} {file}: {source}; check the path, the permissions and the space on the disk")]
    Io {
        /// What was tried, such as `read`.
        what: &'static str,
        /// The file.
        file: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A file breaks a rule.
    #[error("{file}: {rule}; {remedy}")]
    Invalid {
        /// The file.
        file: String,
        /// What is wrong, with the value.
        rule: String,
        /// What to do about it.
        remedy: String,
    },
    /// The checkpoint and the model do not fit together.
    #[error("{0}")]
    Mismatch(Box<Mismatch>),
    /// The hub did not give the checkpoint.
    #[error("{repo} at revision `{revision}`: {rule}; {remedy}")]
    Hub {
        /// The repository.
        repo: String,
        /// The revision as asked for.
        revision: String,
        /// What is wrong, with the value.
        rule: String,
        /// What to do about it.
        remedy: String,
    },
    /// A tensor could not be made or copied.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl WeightsError {
    pub(crate) fn invalid(file: &str, rule: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Invalid { file: file.to_owned(), rule: rule.into(), remedy: remedy.into() }
    }

    /// A failure to `what` a path; fits `map_err`.
    pub(super) fn io(what: &'static str, path: &std::path::Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let file = path.display().to_string();
        move |source| Self::Io { what, file: file.clone(), source }
    }
}

/// A name from a stranger's file as it may stand in a message.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 120;
    let mut text: String = name.chars().take(MOST).flat_map(char::escape_debug).collect();
    if name.chars().nth(MOST).is_some() {
        text.push('…');
    }
    text
}
