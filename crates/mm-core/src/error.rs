//! Configuration errors that name the field, the value, the rule and the remedy.

/// The result of checking a configuration.
pub type Checked<T> = Result<T, ConfigError>;

/// A configuration value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} = {value}: {rule}{}", .suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
pub struct ConfigError {
    /// Dotted path of the field, such as `method.alpha`.
    pub field: String,
    /// The offending value as written.
    pub value: String,
    /// What is allowed.
    pub rule: String,
    /// The nearest allowed name, where the field takes names.
    pub suggestion: Option<String>,
}

impl ConfigError {
    /// `field` has `value`, but `rule`.
    pub fn new(field: impl Into<String>, value: impl std::fmt::Display, rule: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), rule: rule.into(), suggestion: None }
    }

    /// `field` names something that is not among `allowed`.
    pub fn unknown<S: AsRef<str>>(field: impl Into<String>, value: &str, allowed: &[S]) -> Self {
        let names: Vec<&str> = allowed.iter().map(AsRef::as_ref).collect();
        Self {
            field: field.into(),
            value: format!("\"{value}\""),
            rule: format!("allowed: {}", names.join(", ")),
            suggestion: nearest(value, &names).map(str::to_owned),
        }
    }

    /// The same error with `prefix.` before the field.
    #[must_use]
    pub fn within(mut self, prefix: &str) -> Self {
        self.field = format!("{prefix}.{}", self.field);
        self
    }

    /// Checks that a number is finite and inside `[low, high]`.
    pub fn check_range(field: &str, value: f64, low: f64, high: f64) -> Result<(), Self> {
        if value.is_finite() && (low..=high).contains(&value) {
            return Ok(());
        }
        let rule = match (low, high) {
            (l, h) if h == f64::MAX && l == f64::MIN_POSITIVE => "must be a finite number above 0".to_owned(),
            (l, h) if h == f64::MAX => format!("must be a finite number of at least {l}"),
            (l, h) => format!("must be a number in [{l}, {h}]"),
        };
        Err(Self::new(field, value, rule))
    }
}

/// The name among `allowed` closest to `word` by edit distance, if it is close enough to be a slip.
pub fn nearest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let fold = |s: &str| s.to_lowercase().replace('_', "-");
    let word = fold(word);
    allowed
        .iter()
        .map(|name| (edit_distance(&word, &fold(name)), *name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .map(|(_, name)| name)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_the_slip_and_only_the_slip() {
        let names = ["late-linear", "mid-mlp", "film"];
        assert_eq!(nearest("late_liner", &names), Some("late-linear"));
        assert_eq!(nearest("FiLM", &names), Some("film"));
        assert_eq!(nearest("transformer", &names), None);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }

    #[test]
    fn says_field_value_rule_and_remedy() {
        let error = ConfigError::unknown("model.fusion", "flim", &["film", "gated"]).within("run");
        assert_eq!(
            error.to_string(),
            "run.model.fusion = \"flim\": allowed: film, gated; did you mean `film`?"
        );
        let error = ConfigError::check_range("lr", f64::NAN, f64::MIN_POSITIVE, f64::MAX).unwrap_err();
        assert_eq!(error.to_string(), "lr = NaN: must be a finite number above 0");
    }
}
