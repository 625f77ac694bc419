//! The fields of a checkpoint's JSON files, read one by one so that an error can name what is wrong.

use mm_core::ConfigError;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;

type Checked<T> = Result<T, ConfigError>;

/// What JSON can say.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    Null,
    Flag(bool),
    Whole(u64),
    Real(f64),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => write!(f, "null"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Real(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::List(list) => {
                let list: Vec<String> = list.iter().map(Self::to_string).collect();
                write!(f, "[{}]", list.join(", "))
            }
            Self::Map(map) => write!(f, "an object of {} fields", map.len()),
        }
    }
}

/// The fields of an object. One that is missing or null has the default that is given.
pub(super) struct Fields(BTreeMap<String, Value>);

impl Fields {
    /// `file` is what an error calls the whole.
    pub(super) fn read<'de, D: Deserializer<'de>>(file: &str, source: D) -> Checked<Self> {
        let rule = "must be a JSON object";
        BTreeMap::deserialize(source).map(Self).map_err(|e| ConfigError::new(file, e, rule))
    }

    fn get<T>(&self, key: &str, default: T, rule: &str, read: impl Fn(&Value) -> Option<T>) -> Checked<T> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => read(value).ok_or_else(|| ConfigError::new(key, value, rule)),
        }
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Checked<bool> {
        self.get(key, default, "must be true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(super) fn whole(&self, key: &str, default: usize) -> Checked<usize> {
        self.get(key, default, "must be a whole number", whole)
    }

    pub(super) fn real(&self, key: &str, default: f64) -> Checked<f64> {
        self.get(key, default, "must be a number", |value| match value {
            Value::Whole(number) => Some(*number as f64),
            Value::Real(number) => Some(*number),
            _ => None,
        })
    }

    pub(super) fn wholes(&self, key: &str, default: Vec<usize>) -> Checked<Vec<usize>> {
        self.get(key, default, "must be a list of whole numbers", |value| match value {
            Value::List(list) => list.iter().map(whole).collect(),
            _ => None,
        })
    }

    /// One of some names.
    pub(super) fn name<'a>(&self, key: &str, default: &'a str, allowed: &[&'a str]) -> Checked<&'a str> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Text(text)) => allowed
                .iter()
                .find(|name| *name == text)
                .copied()
                .ok_or_else(|| ConfigError::unknown(key, text, allowed)),
            Some(value) => Err(ConfigError::new(key, value, format!("allowed: {}", allowed.join(", ")))),
        }
    }

    /// Refuses anything but null, false and what is missing.
    pub(super) fn absent(&self, key: &str, rule: &str) -> Checked<()> {
        match self.0.get(key) {
            None | Some(Value::Null | Value::Flag(false)) => Ok(()),
            Some(value) => Err(ConfigError::new(key, value, rule)),
        }
    }

    /// Refuses an object without this field.
    pub(super) fn present(&self, key: &str, rule: &str) -> Checked<()> {
        if self.0.contains_key(key) { Ok(()) } else { Err(ConfigError::new(key, "(missing)", rule)) }
    }
}

fn whole(value: &Value) -> Option<usize> {
    match *value {
        Value::Whole(number) => usize::try_from(number).ok(),
        Value::Real(number) if number.fract() == 0.0 && (0.0..1e15).contains(&number) => {
            Some(number as usize)
        }
        _ => None,
    }
}
