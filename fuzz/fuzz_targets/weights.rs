//! Any bytes as a checkpoint: they are refused with a message, or what opens can be read.
//!
//! An input is a safetensors file. One that begins with `{"` is an index instead, and what follows each line `--shard--`
//! is the next file beside it: `1.safetensors`, `2.safetensors`, …
#![no_main]

use candle_core::{DType, Device};
use libfuzzer_sys::fuzz_target;
use mm_core::{Init, ParamStore};
use mm_encoders::weights::{Matching, Weights, WeightsError};
use mm_fuzz::{FOLDER, MESSAGE, plain, split};
use std::path::{Path, PathBuf};

const SEPARATOR: &[u8] = b"\n--shard--\n";
/// The most shards; more would be the file system's test.
const SHARDS: usize = 4;
/// The longest list of what does not fit, ten names of a kind.
const LIST: usize = 100_000;

fuzz_target!(|data: &[u8]| {
    let (path, bytes) = put(FOLDER.path(), data);
    match Weights::from_file(&path) {
        Ok(weights) => read(&weights, bytes),
        Err(error) => readable(&error),
    }
});

/// Writes the input to the folder; the file to open, and the bytes that its tensors may take.
fn put(folder: &Path, data: &[u8]) -> (PathBuf, usize) {
    if !data.starts_with(b"{\"") {
        let path = folder.join("model.safetensors");
        std::fs::write(&path, data).expect("the folder takes files");
        return (path, data.len());
    }
    let mut parts = split(data, SEPARATOR).into_iter();
    let index = folder.join("model.safetensors.index.json");
    std::fs::write(&index, parts.next().unwrap_or_default()).expect("the folder takes files");
    let mut bytes = 0;
    for number in 1..=SHARDS {
        let shard = folder.join(format!("{number}.safetensors"));
        match parts.next() {
            Some(part) => std::fs::write(shard, part).expect("the folder takes files"),
            None => drop(std::fs::remove_file(shard)), // of the input before, if there is one
        }
        bytes = data.len();
    }
    (index, bytes)
}

/// Everything that can be asked of an open checkpoint.
fn read(weights: &Weights, bytes: usize) {
    let _ = weights.metadata("format");
    let mut taken = 0;
    for name in weights.names() {
        let shape = weights.shape(name).expect("a name of its own").to_vec();
        match weights.tensor(name) {
            Ok(tensor) => {
                assert_eq!(tensor.dims(), shape);
                taken += tensor.elem_count() * tensor.dtype().size_in_bytes();
            }
            Err(error) => readable(&error),
        }
    }
    assert!(taken <= bytes, "{taken} bytes of tensors in {bytes} bytes of files");

    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    for (name, width) in [("a", 1), ("b", 2), ("layer.weight", 6)] {
        store.root().param(name, width, Init::Const(0.5)).expect("a parameter");
    }
    for how in [Matching::Strict, Matching::Partial] {
        match weights.load_into(&store, "", |name| Some(name.to_owned()), how) {
            Ok(report) => plain(&report.to_string(), LIST),
            Err(error) => readable(&error),
        }
    }
}

fn readable(error: &WeightsError) {
    let most = if matches!(error, WeightsError::Mismatch(_)) { LIST } else { MESSAGE };
    plain(&error.to_string(), most);
}
