//! Small sets and files.

#![allow(clippy::disallowed_types)] // `safetensors::serialize` takes its metadata as a HashMap

use mm_core::{Modal, Modalities, RowShape};
use mm_data::{Dataset, Matrix};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One tensor of a file.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn floats(name: &'static str, shape: &[usize], values: &[f32]) -> Entry {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Entry { name, dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

pub(crate) fn integers(name: &'static str, values: &[i64]) -> Entry {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Entry { name, dtype: Dtype::I64, shape: vec![values.len()], bytes }
}

/// Writes a safetensors file and returns its path.
pub(crate) fn write(folder: &Path, entries: &[Entry], classes: Option<&str>) -> PathBuf {
    let views =
        entries.iter().map(|e| (e.name, TensorView::new(e.dtype, e.shape.clone(), &e.bytes).unwrap()));
    let metadata = classes.map(|c| HashMap::from([("classes".to_owned(), c.to_owned())]));
    let path = folder.join("set.safetensors");
    std::fs::write(&path, serialize(views, metadata).unwrap()).unwrap();
    path
}

/// Twelve rows, three classes, modalities `audio` (2) and `video` (1), train and test lists.
pub(crate) fn entries() -> Vec<Entry> {
    let audio: Vec<f32> = (0..24u8).map(f32::from).collect();
    let video: Vec<f32> = (0..12u8).map(|v| f32::from(v) * 0.5).collect();
    vec![
        floats("x_audio", &[12, 2], &audio),
        floats("x_video", &[12, 1], &video),
        integers("y", &[0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]),
        integers("actor", &[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
        integers("train_index", &[0, 1, 2, 3, 4, 5, 6, 7]),
        integers("test_index", &[8, 9, 10, 11]),
    ]
}

/// The entries with one replaced or added.
pub(crate) fn with(entry: Entry) -> Vec<Entry> {
    let mut all = entries();
    all.retain(|e| e.name != entry.name);
    all.push(entry);
    all
}

/// A set with one modality of one feature, given labels and groups.
pub(crate) fn labelled(labels: &[u32], groups: &[i64]) -> Dataset {
    let classes = labels.iter().max().map_or(2, |&m| m as usize + 1).max(2);
    let values = (0..labels.len()).map(|v| v as f32).collect();
    let x = Matrix::new(labels.len(), 1, values, None).unwrap();
    let names = Modalities::new(["audio"]).unwrap();
    Dataset::new("toy", names, classes, Modal::new(vec![x]), labels.to_vec())
        .unwrap()
        .with_column("group", groups.to_vec())
        .unwrap()
}

/// Asserts that a message has all these pieces.
#[track_caller]
pub(crate) fn says(error: &impl std::fmt::Display, pieces: &[&str]) {
    let text = error.to_string();
    for piece in pieces {
        assert!(text.contains(piece), "{text:?} does not say {piece:?}");
    }
}

/// The vectors of the modality with this number.
pub(crate) fn matrix(data: &Dataset, m: usize) -> &Matrix {
    data.inputs.values()[m].matrix().unwrap()
}

/// Names of modalities with vectors of these widths.
pub(crate) fn vectors(widths: &[(&str, usize)]) -> Vec<(String, RowShape)> {
    widths.iter().map(|&(name, width)| (name.to_owned(), RowShape::fixed([width]))).collect()
}
