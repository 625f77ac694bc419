//! Settings as TOML tables: laying one over another, dotted keys, `{data}`.

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

/// Lays `over` onto `base`: tables join, everything else is replaced. A table with another `kind` replaces the whole
/// table, for the settings of one kind mean nothing to another.
pub(crate) fn overlay(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(under)), Value::Table(over)) if !changes_kind(under, over) => {
                overlay(under, over);
            }
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn changes_kind(under: &Table, over: &Table) -> bool {
    over.get("kind").is_some_and(|kind| under.get("kind") != Some(kind))
}

/// The value at a dotted key.
pub(crate) fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    let mut parts = key.split('.');
    let first = table.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.as_table()?.get(part))
}

/// Sets the value at a dotted key and makes the tables on the way.
pub(crate) fn set(table: &mut Table, key: &str, value: Value) -> Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            match inner {
                Value::Table(inner) => set(inner, rest, value),
                _ => bail!("`{first}` is not a table, so `{rest}` cannot be set in it"),
            }
        }
    }
}

/// Reads `a.b=value` as on the command line; a value that is no TOML is text.
pub(crate) fn parse(assignment: &str) -> Result<(String, Value)> {
    let (key, text) = assignment
        .split_once('=')
        .with_context(|| format!("`--set {assignment}`: write KEY=VALUE, such as optim.lr=0.01"))?;
    let key = key.trim();
    if key.is_empty() || key.split('.').any(str::is_empty) {
        bail!("`--set {assignment}`: `{key}` is not a dotted key such as optim.lr");
    }
    let parsed: Option<Table> = toml::from_str(&format!("value = {text}")).ok();
    let value = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    Ok((key.to_owned(), value.unwrap_or_else(|| Value::String(text.trim().to_owned()))))
}

/// Replaces a name such as `{data}` in every text.
pub(crate) fn fill_in(value: &mut Value, name: &str, folder: &str) {
    match value {
        Value::String(text) => *text = text.replace(name, folder),
        Value::Array(items) => items.iter_mut().for_each(|item| fill_in(item, name, folder)),
        Value::Table(table) => table.iter_mut().for_each(|(_, item)| fill_in(item, name, folder)),
        _ => {}
    }
}

/// All values with their dotted keys, as `a.b = value`.
pub(crate) fn dotted(table: &Table) -> Vec<String> {
    fn walk(prefix: &str, table: &Table, lines: &mut Vec<String>) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) => walk(&key, inner, lines),
                _ => lines.push(format!("{key} = {value}")),
            }
        }
    }
    let mut lines = Vec::new();
    walk("", table, &mut lines);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).expect("valid TOML")
    }

    #[test]
    fn tables_join_unless_the_kind_changes() {
        let mut base = table("optim = { kind = 'sgd', lr = 0.1, momentum = 0.9 }\ntrain.epochs = 3");
        overlay(&mut base, &table("optim.lr = 0.2\ntrain.batch_size = 4"));
        assert_eq!(
            base,
            table(
                "optim = { kind = 'sgd', lr = 0.2, momentum = 0.9 }\ntrain = { epochs = 3, batch_size = 4 }"
            )
        );
        overlay(&mut base, &table("optim = { kind = 'adam', lr = 0.001 }"));
        assert_eq!(get(&base, "optim.momentum"), None);
        assert_eq!(get(&base, "optim.lr"), Some(&Value::Float(0.001)));
    }

    #[test]
    fn assignments_are_toml_or_text() {
        let read = |text| parse(text).expect("valid");
        assert_eq!(read("optim.lr=0.1"), ("optim.lr".to_owned(), Value::Float(0.1)));
        assert_eq!(read("name=a b"), ("name".to_owned(), Value::String("a b".to_owned())));
        assert_eq!(read("x=[1, 2]").1, Value::Array(vec![Value::Integer(1), Value::Integer(2)]));
        assert_eq!(read("x=1\ny=2").1, Value::String("1\ny=2".to_owned()));
        assert!(parse("optim.lr").is_err() && parse("a..b=1").is_err() && parse("=1").is_err());
    }

    #[test]
    fn dotted_keys() {
        let mut base = table("seed = 1");
        set(&mut base, "train.device", Value::String("cpu".to_owned())).expect("new table");
        assert_eq!(dotted(&base), ["seed = 1", "train.device = \"cpu\""]);
        assert!(set(&mut base, "seed.x", Value::Integer(1)).is_err());
        assert_eq!(get(&base, "seed.x"), None);
    }

    #[test]
    fn fills_in_the_data_folder() {
        let mut value = Value::Table(table("a.path = '{data}/x'\nb = ['{data}', 'y']"));
        fill_in(&mut value, "{data}", "folder");
        assert_eq!(value, Value::Table(table("a.path = 'folder/x'\nb = ['folder', 'y']")));
    }
}
