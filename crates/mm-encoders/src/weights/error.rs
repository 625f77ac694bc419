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

/// A parser's message about a stranger's file, which it may quote: nothing in it steers a terminal, and only its beginning
/// and its end, where the place stands, are kept.
pub(super) fn told(message: &impl std::fmt::Display) -> String {
    const FIRST: usize = 240;
    const LAST: usize = 60;
    let message = message.to_string();
    let count = message.chars().count();
    let mut text = String::new();
    for (i, c) in message.chars().enumerate() {
        if count > FIRST + LAST && i == FIRST {
            text.push('…');
        }
        if i >= FIRST && i + LAST < count {
            continue;
        }
        // As `shown`, but the message's own quotes stay.
        if matches!(c, '"' | '\'' | '\\') { text.push(c) } else { text.extend(c.escape_debug()) }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::header::Header;

    #[test]
    fn a_parsers_message_is_plain_and_short() {
        assert_eq!(told(&"unknown field `a`, \"b\" \\u at line 1"), "unknown field `a`, \"b\" \\u at line 1");
        assert_eq!(told(&"\u{1b}[31m\u{202e}é"), "\\u{1b}[31m\\u{202e}é");
        let long = format!("{} at line 1 column 9", "x".repeat(1_000_000));
        let short = told(&long);
        assert_eq!(short.chars().count(), 301);
        assert!(short.starts_with(&"x".repeat(240)) && short.ends_with("x at line 1 column 9"), "{short}");
        assert_eq!(told(&"x".repeat(300)), "x".repeat(300));
    }

    #[test]
    fn a_header_is_quoted_within_bounds() {
        let error = |header: &str| {
            let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
            let error = Header::read(&mut file.as_slice(), file.len() as u64, "w").expect_err("refused");
            error.to_string()
        };
        // The name of an unknown field, and text in the place of a table: serde quotes both whole, the first one raw.
        let field = error(r#"{"a":{"dtype":"F32","\u001b[31mred":1}}"#);
        assert!(field.contains(r"unknown field `\u{1b}[31mred`"), "{field}");
        assert!(error(&format!(r#"{{"a":{{"{}":1}}}}"#, "x".repeat(1_000_000))).len() < 600);
        assert!(error(&format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000_000))).len() < 600);
    }
}
