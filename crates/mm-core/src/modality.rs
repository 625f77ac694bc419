//! Modalities and one value per modality.

use crate::ConfigError;
use std::ops::{Index, IndexMut};

/// The position of a modality in its [`Modalities`]; a copyable id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Modality(usize);

impl Modality {
    /// The modality at `index`.
    pub const fn new(index: usize) -> Self {
        Self(index)
    }

    /// Its position.
    pub const fn index(self) -> usize {
        self.0
    }
}

/// The names of the modalities, in their fixed order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modalities(Vec<String>);

impl Modalities {
    /// Checks the names: at least one, no two equal, letters, digits, `_` and `-` only (they become path segments of
    /// parameter names).
    pub fn new<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Result<Self, ConfigError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        if names.is_empty() {
            return Err(ConfigError::new("modalities", "[]", "name at least one modality"));
        }
        for (i, name) in names.iter().enumerate() {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || !name.chars().all(good) {
                let rule = "a modality name is made of letters, digits, `_` and `-`";
                return Err(ConfigError::new("modalities", format!("{name:?}"), rule));
            }
            if names[..i].contains(name) {
                return Err(ConfigError::new("modalities", format!("{name:?}"), "named twice"));
            }
        }
        Ok(Self(names))
    }

    /// How many there are; never 0.
    #[allow(clippy::len_without_is_empty)] // never empty by construction
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Modality> + ExactSizeIterator + use<> {
        (0..self.0.len()).map(Modality)
    }

    /// The name of `m`.
    pub fn name(&self, m: Modality) -> &str {
        &self.0[m.0]
    }

    /// All names in order.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The modality called `name`.
    pub fn find(&self, name: &str) -> Option<Modality> {
        self.0.iter().position(|n| n == name).map(Modality)
    }

    /// The modality called `name`, or an error for `field` that lists the names there are.
    pub fn require(&self, field: &str, name: &str) -> Result<Modality, ConfigError> {
        self.find(name).ok_or_else(|| ConfigError::unknown(field, name, &self.0))
    }
}

/// One `T` per modality, in the order of the [`Modalities`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modal<T>(Vec<T>);

impl<T> Modal<T> {
    /// Wraps values that are already in order.
    pub fn new(values: Vec<T>) -> Self {
        Self(values)
    }

    /// Makes the value of each of `count` modalities.
    pub fn from_fn(count: usize, f: impl FnMut(Modality) -> T) -> Self {
        Self((0..count).map(Modality).map(f).collect())
    }

    /// Makes the value of each of `count` modalities; stops at the first error.
    pub fn try_from_fn<E>(count: usize, f: impl FnMut(Modality) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self((0..count).map(Modality).map(f).collect::<Result<_, E>>()?))
    }

    /// How many modalities.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The modalities with their values, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Modality, &T)> + ExactSizeIterator {
        self.0.iter().enumerate().map(|(i, v)| (Modality(i), v))
    }

    /// The modalities with their values, in order, to change them.
    pub fn iter_mut(&mut self) -> impl DoubleEndedIterator<Item = (Modality, &mut T)> + ExactSizeIterator {
        self.0.iter_mut().enumerate().map(|(i, v)| (Modality(i), v))
    }

    /// The values in order.
    pub fn values(&self) -> &[T] {
        &self.0
    }

    /// The values in order, by value.
    pub fn into_values(self) -> Vec<T> {
        self.0
    }

    /// A new value from each.
    pub fn map<U>(&self, mut f: impl FnMut(Modality, &T) -> U) -> Modal<U> {
        Modal(self.iter().map(|(m, v)| f(m, v)).collect())
    }

    /// A new value from each; stops at the first error.
    pub fn try_map<U, E>(&self, mut f: impl FnMut(Modality, &T) -> Result<U, E>) -> Result<Modal<U>, E> {
        Ok(Modal(self.iter().map(|(m, v)| f(m, v)).collect::<Result<_, E>>()?))
    }
}

impl<T> Index<Modality> for Modal<T> {
    type Output = T;
    fn index(&self, m: Modality) -> &T {
        &self.0[m.0]
    }
}

impl<T> IndexMut<Modality> for Modal<T> {
    fn index_mut(&mut self, m: Modality) -> &mut T {
        &mut self.0[m.0]
    }
}

impl<T> FromIterator<T> for Modal<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(Modalities::new(Vec::<String>::new()).is_err());
        assert!(Modalities::new(["a", "a"]).unwrap_err().to_string().contains("named twice"));
        assert!(Modalities::new(["a.b"]).is_err());
        let names = Modalities::new(["audio", "video"]).unwrap();
        assert_eq!(names.find("video"), Some(Modality::new(1)));
        let error = names.require("fusion.gate", "adio").unwrap_err();
        assert_eq!(error.suggestion.as_deref(), Some("audio"));
    }
}
