//! The seeds of the fuzz targets, once each: what is refused has a message that can be read, what is not can be used.

use candle_core::{DType, Device};
use mm_data::audio::Clip;
use mm_data::pack::{Pack, PackedConfig, verify};
use mm_data::prepare::Source;
use mm_data::{CsvConfig, DataConfig, DataError, Loader};
use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// The seeds of a target by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(fuzz().join("seeds").join(target)).unwrap().map(|e| e.unwrap());
    let mut seeds: Vec<_> =
        entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect();
    seeds.sort();
    assert!(seeds.len() > 15, "{target}");
    seeds
}

/// Whether it went well; an error can be read.
#[track_caller]
#[allow(clippy::needless_pass_by_value)] // callers have no more use for it
fn went<T>(name: &str, result: Result<T, DataError>) -> bool {
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(text.len() < 8000 && !text.chars().any(|c| c.is_control() && c != '\n'), "{name}: {text:?}");
    }
    result.is_ok()
}

#[test]
fn sounds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.wav");
    let mut good = Vec::new();
    for (name, bytes) in seeds("wav") {
        std::fs::write(&path, bytes).unwrap();
        if went(&name, Clip::open(&path)) {
            good.push(name);
        }
    }
    let expected = [
        "bytes",
        "doubles",
        "extensible",
        "floats",
        "good",
        "long",
        "odd-chunks",
        "stereo",
        "three-bytes",
        "two-formats",
    ];
    let missing: Vec<_> = expected.iter().filter(|name| !good.contains(&(**name).to_owned())).collect();
    assert!(good.len() < 14, "{good:?}");
    assert!(missing.len() <= 1, "{missing:?}: the mean of two large numbers may be none");
}

#[test]
fn manifests() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("manifest.csv");
    let (mut listed, mut loaded) = (Vec::new(), Vec::new());
    for (name, bytes) in seeds("manifest") {
        std::fs::write(&path, bytes).unwrap();
        if went(&name, Source::Manifest.list(folder.path())) {
            listed.push(name.clone());
        }
        let config = DataConfig::Csv(CsvConfig::new(&path));
        went(&name, config.peek());
        if went(&name, config.load(0)) {
            loaded.push(name);
        }
    }
    for name in ["good", "mark-and-crlf", "numbers", "quotes"] {
        assert!(listed.contains(&name.to_owned()), "{name}: {listed:?}");
    }
    for name in
        ["parent", "absolute", "here", "same-id", "no-label", "negative-label", "unknown-part", "same-column"]
    {
        assert!(!listed.contains(&name.to_owned()), "{name}");
    }
    assert_eq!(loaded, ["features"]);
}

#[test]
fn packs() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let separator = b"\n--file--\n";
    let mut good = Vec::new();
    for (name, bytes) in seeds("pack") {
        let mut parts = Vec::new();
        let mut rest = &bytes[..];
        while let Some(at) = rest.windows(separator.len()).position(|w| w == separator) {
            parts.push(&rest[..at]);
            rest = &rest[at + separator.len()..];
        }
        parts.push(rest);
        for (i, file) in
            ["index.json", "table.safetensors", "shard-00000.safetensors"].into_iter().enumerate()
        {
            match parts.get(i) {
                Some(part) => std::fs::write(dir.join(file), part).unwrap(),
                None => drop(std::fs::copy(fuzz().join("pack").join(file), dir.join(file)).unwrap()),
            }
        }
        went(&name, verify(dir));
        let data = Pack::open(dir).and_then(|pack| pack.dataset(&PackedConfig::new(dir)));
        let Ok(data) = data else {
            went(&name, data);
            continue;
        };
        let rows: Vec<usize> = (0..data.rows()).collect();
        for (_, input) in data.inputs.iter() {
            for &row in &rows {
                went(&name, input.picture(row));
            }
        }
        if let Ok(loader) = Loader::new(&data, rows.clone(), rows.len().max(1))
            && loader.batch(&rows, DType::F32, &Device::Cpu).is_ok()
        {
            good.push(name);
        }
    }
    assert!(good.contains(&"good".to_owned()) && good.contains(&"with-its-files".to_owned()), "{good:?}");
    for name in
        ["huge", "huge-and-nowhere", "rows-overflow", "more-rows", "path", "nan", "label-out-of-range"]
    {
        assert!(!good.contains(&name.to_owned()), "{name}");
    }
}
