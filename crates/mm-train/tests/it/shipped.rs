//! The experiments of the repository: the configuration and the recipe of every size of each can be read.

use mm_data::prepare::Recipe;
use mm_train::RunConfig;
use serde::Deserialize as _;
use std::path::Path;
use toml::{Table, Value};

/// As `cargo xtask reproduce` lays settings over each other: tables join, unless the kind changes.
fn overlay(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(under)), Value::Table(over))
                if over.get("kind").is_none_or(|kind| under.get("kind") == Some(kind)) =>
            {
                overlay(under, over);
            }
            _ => drop(base.insert(key.clone(), value.clone())),
        }
    }
}

fn table(of: &Table, path: &[&str]) -> Table {
    let found = path.iter().try_fold(of, |table, key| table.get(*key)?.as_table());
    found.cloned().unwrap_or_default()
}

#[test]
fn every_preset_and_method_is_a_valid_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let mut read = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".tuned.toml") {
            continue;
        }
        let experiment: Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let presets = table(&experiment, &["presets"]);
        let sizes = [Table::new()].into_iter().chain(presets.keys().map(|name| table(&presets, &[name])));
        for preset in sizes {
            let mut recipe = table(&experiment, &["prepare", "recipe"]);
            overlay(&mut recipe, &table(&preset, &["recipe"]));
            Recipe::deserialize(Value::Table(recipe)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let mut base = table(&experiment, &["base"]);
            overlay(&mut base, &table(&preset, &["set"]));
            let own = table(&experiment, &["methods"]);
            for set in [Table::new()].into_iter().chain(own.keys().map(|name| table(&own, &[name, "set"]))) {
                let mut config = base.clone();
                overlay(&mut config, &set);
                RunConfig::from_table(config).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                read += 1;
            }
            let splits = preset.get("splits").and_then(Value::as_array).cloned().unwrap_or_default();
            for split in splits {
                let mut config = base.clone();
                overlay(&mut config, &table(split.as_table().unwrap(), &["set"]));
                RunConfig::from_table(config).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                read += 1;
            }
        }
    }
    assert!(read > 12, "{read}");
}
