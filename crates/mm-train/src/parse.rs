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
    match Value::Table(table.clone()).try_into::<T>() {
        Ok(value) => Ok(value),
        Err(error) => Err(explain(&table, path, error.message(), |t| {
            Value::Table(t).try_into::<T>().err().map(|e| e.message().to_owned())
        })),
    }
}

/// Turns serde's message about `table` into an error that names the key.
fn explain(table: &Table, path: &str, message: &str, retry: impl Fn(Table) -> Option<String>) -> ConfigError {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field")
        && let Some((key, allowed)) = quoted.split_first()
    {
        let (inside, value) = locate(table, key).unwrap_or_else(|| ((*key).to_owned(), Value::from("")));
        return unknown_key(&join(path, &inside), &value, key, allowed);
    }
    if message.starts_with("unknown variant")
        && let Some((name, allowed)) = quoted.split_first()
    {
        let key = key_of_value(table, name).unwrap_or_else(|| "kind".to_owned());
        return ConfigError::unknown(join(path, &key), name, allowed);
    }
    if message.starts_with("missing field")
        && let Some(key) = quoted.first()
    {
        return ConfigError::new(join(path, key), "nothing", "is required");
    }
    // A wrong type: the key without which the message goes away or changes.
    for key in table.keys() {
        let mut without = table.clone();
        without.remove(key);
        if retry(without).as_deref() != Some(message) {
            let rule = message.lines().next().unwrap_or(message).replace("invalid type: ", "wrong type: ");
            return ConfigError::new(join(path, key), &table[key], rule);
        }
    }
    ConfigError::new(path, "", message.lines().next().unwrap_or(message))
}

/// The dotted place of `key` somewhere inside `table`, and its value.
fn locate(table: &Table, key: &str) -> Option<(String, Value)> {
    if let Some(value) = table.get(key) {
        return Some((key.to_owned(), value.clone()));
    }
    table.iter().find_map(|(outer, value)| {
        let (inside, found) = locate(value.as_table()?, key)?;
        Some((format!("{outer}.{inside}"), found))
    })
}

fn key_of_value(table: &Table, name: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| match value {
        Value::String(s) if s == name => Some(key.clone()),
        Value::Table(inner) => key_of_value(inner, name).map(|k| format!("{key}.{k}")),
        _ => None,
    })
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
