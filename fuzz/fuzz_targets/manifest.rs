//! Any bytes as a manifest, the one of `mm data prepare` and the one with features: refused with a message, or rows whose
//! paths stay in the folder, whose ids are their own and whose labels are classes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mm_data::prepare::{Listing, Raw, Source};
use mm_data::{CsvConfig, DataConfig, Dataset};
use mm_fuzz::{FOLDER, readable};
use std::collections::BTreeSet;
use std::path::{Component, Path};

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.path().join("manifest.csv");
    std::fs::write(&path, data).expect("the folder takes files");
    match Source::Manifest.list(FOLDER.path()) {
        Ok(listing) => listed(&listing),
        Err(error) => readable(&error),
    }
    let config = DataConfig::Csv(CsvConfig::new(&path));
    match config.load(0) {
        Ok((data, _)) => loaded(&data),
        Err(error) => readable(&error),
    }
    if let Err(error) = config.peek() {
        readable(&error);
    }
});

fn listed(listing: &Listing) {
    let rows = listing.rows.len();
    assert!(rows > 0 && !listing.modalities.is_empty());
    let ids: BTreeSet<&str> = listing.rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids.len(), rows, "ids of their own");
    for row in &listing.rows {
        assert!((row.label as usize) < listing.classes.len());
        assert_eq!(row.raw.len(), listing.modalities.len());
        for raw in &row.raw {
            if let Raw::Sound(path) | Raw::Image(path) | Raw::Video(path) | Raw::Array(path) = raw {
                inside(path);
            }
        }
    }
    assert!(listing.columns.values().all(|column| column.len() == rows));
    assert!(listing.indices.values().flatten().all(|&row| row < rows));
}

/// A path that nothing leads out of the folder.
fn inside(path: &Path) {
    let below = path.strip_prefix(FOLDER.path()).expect("a path in the folder");
    assert!(below.components().all(|part| matches!(part, Component::Normal(_))), "{}", path.display());
}

fn loaded(data: &Dataset) {
    assert!(data.labels.iter().all(|&label| (label as usize) < data.classes));
    assert!(data.columns.values().all(|column| column.len() == data.rows()));
    assert!(data.indices.values().flatten().all(|&row| row < data.rows()));
}
