//! Reads golden vectors and keeps track of which of them a test has used.

use crate::close::{Values, difference};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The environment variable that names another directory of golden files.
pub const DIRECTORY_VARIABLE: &str = "MM_GOLDEN_DIR";

/// The vectors of one golden file.
///
/// Every key counts as touched once it is read, compared or skipped with a reason; [`Golden::finish`] panics if keys
/// are left that nobody touched, so a vector can not be forgotten. Keys with `hazard` in their name hold values that
/// are not finite or gradients that are dead on purpose; they may be left alone.
#[derive(Debug)]
#[must_use = "call `finish`, or untouched keys go unnoticed"]
pub struct Golden {
    file: PathBuf,
    metadata: BTreeMap<String, String>,
    entries: BTreeMap<String, Entry>,
    touched: RefCell<BTreeSet<String>>,
    compared: RefCell<BTreeSet<String>>,
}

#[derive(Debug)]
struct Entry {
    shape: Vec<usize>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

impl Entry {
    fn values(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(v) => v.iter().copied().map(f64::from).collect(),
            Data::F64(v) => v.clone(),
            Data::I64(v) => v.iter().map(|&x| x as f64).collect(),
            Data::U8(v) => v.iter().copied().map(f64::from).collect(),
        }
    }
}

struct Expected<'a>(&'a Entry);

impl Values for Expected<'_> {
    fn values(&self) -> Vec<f64> {
        self.0.values()
    }
    fn shape(&self) -> Option<Vec<usize>> {
        Some(self.0.shape.clone())
    }
}

impl Golden {
    /// Opens `<name>.safetensors` in the directory that `MM_GOLDEN_DIR` names, or in `tests/golden` of the workspace.
    #[track_caller]
    pub fn open(name: &str) -> Self {
        let directory = std::env::var_os(DIRECTORY_VARIABLE)
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"), PathBuf::from);
        Self::open_in(&directory, name)
    }

    /// Opens `<name>.safetensors` in `directory`.
    #[track_caller]
    pub fn open_in(directory: &Path, name: &str) -> Self {
        let file = directory.join(format!("{name}.safetensors"));
        match read(&file) {
            Ok((metadata, entries)) => {
                let (touched, compared) = Default::default();
                Self { file, metadata, entries, touched, compared }
            }
            Err(error) => panic!("golden file {}: {error}", file.display()),
        }
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The keys that start with `prefix`, sorted.
    pub fn keys_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.keys().filter(move |key| key.starts_with(prefix))
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// What the file says about itself under `name`, such as `source` or `torch`.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(String::as_str)
    }

    /// The shape of a tensor; does not touch the key.
    #[track_caller]
    pub fn shape(&self, key: &str) -> &[usize] {
        &self.entry(key).shape
    }

    /// A tensor in its own element type, as an input.
    #[track_caller]
    pub fn tensor(&self, key: &str) -> Tensor {
        let entry = self.read(key);
        let (shape, device) = (entry.shape.as_slice(), &Device::Cpu);
        match &entry.data {
            Data::F32(v) => Tensor::from_slice(v, shape, device),
            Data::F64(v) => Tensor::from_slice(v, shape, device),
            Data::I64(v) => Tensor::from_slice(v, shape, device),
            Data::U8(v) => Tensor::from_slice(v, shape, device),
        }
        .expect("a tensor of the size that its file says")
    }

    /// The numbers of a tensor, row-major, as an input.
    #[track_caller]
    pub fn values(&self, key: &str) -> Vec<f64> {
        self.read(key).values()
    }

    /// A single number, as an input.
    #[track_caller]
    pub fn scalar(&self, key: &str) -> f64 {
        match self.values(key)[..] {
            [value] => value,
            ref values => panic!("{} `{key}` holds {} values, not one", self.file.display(), values.len()),
        }
    }

    /// Class labels (or other indices), as an input.
    #[track_caller]
    pub fn labels(&self, key: &str) -> Vec<u32> {
        let index = |x: f64| {
            assert!(x >= 0.0 && x.fract() == 0.0, "{} `{key}` holds {x}, not an index", self.file.display());
            x as u32
        };
        self.values(key).into_iter().map(index).collect()
    }

    /// Panics unless `actual` equals the vector under the rule of [`crate::close`]; says key, index, both values and
    /// tolerance.
    #[track_caller]
    pub fn compare<A: Values + ?Sized>(&self, key: &str, actual: &A, relative: f64) {
        let entry = self.read(key);
        self.compared.borrow_mut().insert(key.to_owned());
        if let Err(difference) = difference(actual, &Expected(entry), relative) {
            panic!("{} `{key}`: {difference}", self.file.display());
        }
    }

    /// Leaves out every key that starts with `prefix`, for a reason that the caller writes down.
    #[track_caller]
    pub fn skip(&self, prefix: &str, reason: &str) {
        assert!(!reason.is_empty(), "why is `{prefix}` skipped?");
        let keys: Vec<String> = self.keys_with(prefix).map(str::to_owned).collect();
        assert!(!keys.is_empty(), "{} has no key that starts with `{prefix}`", self.file.display());
        self.touched.borrow_mut().extend(keys);
    }

    /// How many different keys were compared. Panics with the keys that were neither read, compared nor skipped.
    #[track_caller]
    pub fn finish(self) -> usize {
        let touched = self.touched.borrow();
        let left: Vec<&str> =
            self.keys().filter(|key| !key.contains("hazard") && !touched.contains(*key)).collect();
        assert!(
            left.is_empty(),
            "{}: {} of {} keys were never used: {}",
            self.file.display(),
            left.len(),
            self.entries.len(),
            left.join(", ")
        );
        self.compared.borrow().len()
    }

    #[track_caller]
    fn read(&self, key: &str) -> &Entry {
        let entry = self.entry(key);
        self.touched.borrow_mut().insert(key.to_owned());
        entry
    }

    #[track_caller]
    fn entry(&self, key: &str) -> &Entry {
        self.entries.get(key).unwrap_or_else(|| {
            let keys: Vec<&str> = self.keys().collect();
            let hint = mm_core::nearest(key, &keys).map(|n| format!("; nearest: `{n}`")).unwrap_or_default();
            panic!("{} has no key `{key}`{hint}", self.file.display())
        })
    }
}

type Contents = (BTreeMap<String, String>, BTreeMap<String, Entry>);

fn read(file: &Path) -> Result<Contents, String> {
    let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| e.to_string())?;
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
    let mut entries = BTreeMap::new();
    for (key, view) in tensors.tensors() {
        let data = match view.dtype() {
            Dtype::F32 => Data::F32(decode(view.data(), f32::from_le_bytes)),
            Dtype::F64 => Data::F64(decode(view.data(), f64::from_le_bytes)),
            Dtype::I64 => Data::I64(decode(view.data(), i64::from_le_bytes)),
            Dtype::U8 | Dtype::BOOL => Data::U8(view.data().to_vec()),
            other => {
                return Err(format!("`{key}` has element type {other:?}; known: f32, f64, i64, u8, bool"));
            }
        };
        entries.insert(key, Entry { shape: view.shape().to_vec(), data });
    }
    Ok((metadata, entries))
}

fn decode<const N: usize, T>(bytes: &[u8], one: fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().copied().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn golden(name: &str) -> (tempfile::TempDir, Golden) {
        let directory = tempfile::tempdir().unwrap();
        let x: Vec<u8> = [1f64, -2.0, 3.0, 0.5].iter().flat_map(|v| v.to_le_bytes()).collect();
        let loss: Vec<u8> = 0.25f32.to_le_bytes().to_vec();
        let labels: Vec<u8> = [2i64, 0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let nan: Vec<u8> = f64::NAN.to_le_bytes().to_vec();
        let tensors = [
            ("x", TensorView::new(Dtype::F64, vec![2, 2], &x).unwrap()),
            ("f32.loss", TensorView::new(Dtype::F32, vec![], &loss).unwrap()),
            ("labels", TensorView::new(Dtype::I64, vec![2], &labels).unwrap()),
            ("hazard.grad", TensorView::new(Dtype::F64, vec![1], &nan).unwrap()),
            ("mask", TensorView::new(Dtype::U8, vec![2], &[1, 0]).unwrap()),
        ];
        let source = [("source".to_owned(), "by hand".to_owned())].into_iter().collect();
        let bytes = safetensors::serialize(tensors, Some(source)).unwrap();
        std::fs::write(directory.path().join(format!("{name}.safetensors")), bytes).unwrap();
        let golden = Golden::open_in(directory.path(), name);
        (directory, golden)
    }

    #[test]
    fn gives_every_element_type() {
        let (_directory, golden) = golden("toy");
        assert_eq!(golden.keys().collect::<Vec<_>>(), ["f32.loss", "hazard.grad", "labels", "mask", "x"]);
        assert_eq!(golden.keys_with("f32.").count(), 1);
        assert_eq!(golden.metadata("source"), Some("by hand"));
        assert_eq!(golden.tensor("x").to_vec2::<f64>().unwrap(), [[1.0, -2.0], [3.0, 0.5]]);
        assert_eq!(golden.tensor("labels").to_vec1::<i64>().unwrap(), [2, 0]);
        assert_eq!(golden.labels("labels"), [2, 0]);
        assert_eq!(golden.scalar("f32.loss"), 0.25);
        assert_eq!(golden.values("mask"), [1.0, 0.0]);
        assert!(golden.has("x") && !golden.has("y"));
        assert!(golden.values("hazard.grad")[0].is_nan());
    }

    #[test]
    fn finish_counts_what_was_compared() {
        let (_directory, golden) = golden("toy");
        let x = golden.tensor("x");
        golden.compare("x", &x, 0.0);
        golden.compare("x", &[1.0, -2.0, 3.0, 0.5], 0.0);
        golden.compare("f32.loss", &0.250_001, 2e-5);
        let _ = golden.labels("labels");
        golden.skip("mask", "this test has no use for it");
        assert_eq!(golden.finish(), 2);
    }

    #[test]
    #[should_panic(expected = "toy.safetensors: 3 of 5 keys were never used: f32.loss, labels, mask")]
    fn finish_names_what_nobody_touched() {
        let (_directory, golden) = golden("toy");
        let _ = golden.tensor("x");
        golden.finish();
    }

    #[test]
    #[should_panic(expected = "`x`: at [1, 0] 3.1e0, expected 3e0: off by 1.000e-1, allowed 3.000e-9")]
    fn compare_says_key_index_values_and_tolerance() {
        let (_directory, golden) = golden("toy");
        golden.compare("x", &[1.0, -2.0, 3.1, 0.5], 1e-9);
    }

    #[test]
    #[should_panic(expected = "a value is not finite")]
    fn compare_refuses_nan() {
        let (_directory, golden) = golden("toy");
        golden.compare("hazard.grad", &f64::NAN, 1.0);
    }

    #[test]
    #[should_panic(expected = "has no key `f32.los`; nearest: `f32.loss`")]
    fn an_unknown_key_suggests_the_nearest() {
        let (_directory, golden) = golden("toy");
        golden.scalar("f32.los");
    }
}
