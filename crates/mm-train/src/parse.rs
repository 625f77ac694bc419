//! From a TOML table to checked settings, with errors that name the key, the value, the rule and the nearest name.

use mm_core::{Checked, ConfigError};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Takes the table at `key` out of `table`; an absent one is empty.
pub fn take_table(table: &mut Table, key: &str, path: &str) -> Checked<Table> {
    match table.remove(key) {
        None => Ok(Table::new()),
        Some(Value::Table(inner)) => Ok(inner),
        Some(other) => {
            let rule = format!("must be a table, as in `[{path}]`");
            Err(ConfigError::new(path, other, rule))
        }
    }
}

/// Fails where anything is left in `table`.
pub fn refuse_rest(table: &Table, path: &str, allowed: &[&str]) -> Checked<()> {
    match table.keys().next() {
        None => Ok(()),
        Some(key) => Err(unknown_key(&join(path, key), &table[key], key, allowed)),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn unknown_key(field: &str, value: &Value, key: &str, allowed: &[&str]) -> ConfigError {
    let listed = if allowed.is_empty() {
        "this table takes no keys".into()
    } else {
        format!("known keys: {}", allowed.join(", "))
    };
    let mut error = ConfigError::new(field, value, format!("unknown key; {listed}"));
    error.suggestion = mm_core::nearest(key, allowed).map(str::to_owned);
    error
}

/// Reads a table as `T`; `path` is where it stands in the file.
pub fn section<T: DeserializeOwned>(table: Table, path: &str) -> Checked<T> {
    let written = table.clone();
    match Value::Table(table).try_into::<T>() {
        Ok(value) => Ok(value),
        Err(error) => Err(explain(&written, path, error.message(), |t| {
            Value::Table(t).try_into::<T>().err().map(|e| e.message().to_owned())
        })),
    }
}

/// Turns serde's message about `table` into an error that names the key.
///
/// serde says what is wrong, not where: the place is the one whose removal changes the message.
fn explain(table: &Table, path: &str, message: &str, retry: impl Fn(Table) -> Option<String>) -> ConfigError {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let mut places = Vec::new();
    collect(&Value::Table(table.clone()), &mut Vec::new(), &mut places);
    let blame = |suspect: &dyn Fn(&[Step], &Value) -> bool| {
        let suspects = || places.iter().filter(|(place, value)| suspect(place, value));
        suspects()
            .find(|(place, _)| retry(without(table, place)).as_deref() != Some(message))
            .or(suspects().next())
    };
    if message.starts_with("unknown field")
        && let Some((key, allowed)) = quoted.split_first()
        && let Some((place, value)) =
            blame(&|place, _| matches!(place.last(), Some(Step::Key(last)) if last == key))
    {
        return unknown_key(&dotted(path, place), value, key, allowed);
    }
    if message.starts_with("unknown variant")
        && let Some((name, allowed)) = quoted.split_first()
        && let Some((place, _)) = blame(&|_, value| value.as_str() == Some(*name))
    {
        return ConfigError::unknown(dotted(path, place), name, allowed);
    }
    if message.starts_with("missing field")
        && let Some(key) = quoted.first()
    {
        let incomplete = places.iter().filter(|(_, value)| value.is_table()).find(|(place, _)| {
            retry(with(table, place, key)).is_none_or(|m| m != message && !m.starts_with("unknown field"))
        });
        let path = incomplete.map_or_else(|| path.to_owned(), |(place, _)| dotted(path, place));
        return ConfigError::new(join(&path, key), "nothing", "is required");
    }
    let rule = message.lines().next().unwrap_or(message).replace("invalid type: ", "wrong type: ");
    let rule = rule.replace("unit variant, expected string only", "expected a name");
    let by_value = || blame(&|place, value| !place.is_empty() && message.contains(&described(value)));
    // Some messages do not quote the value.
    let by_effect = || {
        places.iter().find(|(place, _)| {
            let changed = retry(without(table, place));
            !place.is_empty() && changed.is_none_or(|m| m != message && !m.starts_with("missing field"))
        })
    };
    let unquoted = message.contains("unit variant");
    match if unquoted { by_effect() } else { by_value().or_else(by_effect) } {
        Some((place, value)) => ConfigError::new(dotted(path, place), value, rule),
        None => ConfigError::new(path, "(the table)", rule),
    }
}

/// One step into a value.
#[derive(Debug, Clone)]
enum Step {
    Key(String),
    Index(usize),
}

/// Every value inside `value`, itself first, with the way to it.
fn collect(value: &Value, at: &mut Vec<Step>, found: &mut Vec<(Vec<Step>, Value)>) {
    found.push((at.clone(), value.clone()));
    let mut inside = |step: Step, inner: &Value| {
        at.push(step);
        collect(inner, at, found);
        at.pop();
    };
    match value {
        Value::Table(table) => table.iter().for_each(|(key, inner)| inside(Step::Key(key.clone()), inner)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, inner)| inside(Step::Index(i), inner)),
        _ => {}
    }
}

/// The table with `edit` applied to the value at `place`.
fn edited(table: &Table, place: &[Step], edit: impl FnOnce(&mut Value)) -> Table {
    let mut root = Value::Table(table.clone());
    let target = place.iter().try_fold(&mut root, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(i) => value.get_mut(*i),
    });
    if let Some(target) = target {
        edit(target);
    }
    match root {
        Value::Table(table) => table,
        _ => Table::new(),
    }
}

fn without(table: &Table, place: &[Step]) -> Table {
    let Some((last, outer)) = place.split_last() else { return Table::new() };
    edited(table, outer, |value| match (value, last) {
        (Value::Table(inner), Step::Key(key)) => drop(inner.remove(key)),
        (Value::Array(list), Step::Index(i)) => drop(list.remove(*i)),
        _ => {}
    })
}

fn with(table: &Table, place: &[Step], key: &str) -> Table {
    edited(table, place, |value| {
        if let Value::Table(inner) = value {
            inner.insert(key.to_owned(), Value::Boolean(true));
        }
    })
}

fn dotted(path: &str, place: &[Step]) -> String {
    place.iter().fold(path.to_owned(), |path, step| match step {
        Step::Key(key) => join(&path, key),
        Step::Index(i) => format!("{path}[{i}]"),
    })
}

/// What serde calls a value in a message about its type.
fn described(value: &Value) -> String {
    match value {
        Value::String(s) => format!("string {s:?}"),
        Value::Integer(i) => format!("integer `{i}`"),
        Value::Float(f) => format!("floating point `{f}"),
        Value::Boolean(b) => format!("boolean `{b}`"),
        Value::Array(_) => "sequence".to_owned(),
        Value::Table(_) | Value::Datetime(_) => "map".to_owned(),
    }
}

/// Applies `a.b.c=value`; the value is TOML, or a plain string where it is not.
///
/// ```
/// let mut table: toml::Table = "seed = 0".parse()?;
/// mm_train::parse::set(&mut table, "optim.lr=0.1")?;
/// mm_train::parse::set(&mut table, "method.kind=mlb")?;
/// assert_eq!(table["optim"]["lr"].as_float(), Some(0.1));
/// assert_eq!(table["method"]["kind"].as_str(), Some("mlb"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn set(table: &mut Table, assignment: &str) -> Checked<()> {
    let Some((path, text)) = assignment.split_once('=') else {
        return Err(ConfigError::new("--set", format!("\"{assignment}\""), "write it as key.path=value"));
    };
    let parsed = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    let value = parsed.unwrap_or_else(|| Value::String(text.trim().to_owned()));
    let keys: Vec<&str> = path.trim().split('.').collect();
    if keys.iter().any(|k| k.is_empty()) {
        return Err(ConfigError::new("--set", format!("\"{path}\""), "a key of the path is empty"));
    }
    let (last, outer) = keys.split_last().unwrap_or((&"", &[]));
    let mut here = table;
    for key in outer {
        let next = here.entry((*key).to_owned()).or_insert_with(|| Value::Table(Table::new()));
        here = match next {
            Value::Table(inner) => inner,
            other => {
                let rule = format!("`{key}` is not a table, so nothing can be set inside it");
                return Err(ConfigError::new(format!("--set {path}"), other, rule));
            }
        };
    }
    here.insert((*last).to_owned(), value);
    Ok(())
}
