//! A golden file of which no tensor may be left out.

use candle_core::{DType, Tensor, Var};
use mm_testkit::Golden;
use mm_testkit::close::Values;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// Keys with it record the behaviour of another library, bugs included.
const OTHERS: &str = "balancebench.";
const HAZARD: &str = "hazard";

/// The two computations that every file holds: key prefix and element type.
pub(crate) const PRECISIONS: [(&str, DType); 2] = [("f64", DType::F64), ("f32", DType::F32)];

/// A golden file whose keys are split beforehand into inputs and expectations.
///
/// An input counts when it is read, an expectation only when it is compared: [`Fixture::finish`] fails if a key of either
/// kind is left, so nothing passes as "only an input".
pub(crate) struct Fixture {
    name: &'static str,
    golden: Golden,
    is_input: fn(&str) -> bool,
    read: RefCell<BTreeSet<String>>,
    compared: RefCell<BTreeSet<String>>,
}

impl Fixture {
    pub(crate) fn open(name: &'static str, is_input: fn(&str) -> bool) -> Self {
        let (read, compared) = Default::default();
        Self { name, golden: Golden::open(name), is_input, read, compared }
    }

    /// An input in `dtype`.
    #[track_caller]
    pub(crate) fn input(&self, key: &str, dtype: DType) -> Tensor {
        self.note_input(key);
        self.golden.tensor(key).to_dtype(dtype).expect("a float tensor")
    }

    #[track_caller]
    pub(crate) fn labels(&self, key: &str) -> Vec<u32> {
        self.note_input(key);
        self.golden.labels(key)
    }

    #[track_caller]
    pub(crate) fn values(&self, key: &str) -> Vec<f64> {
        self.note_input(key);
        self.golden.values(key)
    }

    /// Compares with an expectation: within `relative` of its largest entry.
    #[track_caller]
    pub(crate) fn compare<A: Values + ?Sized>(&self, key: &str, actual: &A, relative: f64) {
        assert!(!(self.is_input)(key), "`{key}` is an input, not an expectation");
        self.golden.compare(key, actual, relative);
        self.compared.borrow_mut().insert(key.to_owned());
    }

    /// Compares with an expectation whose entries are all rounding: within `absolute`.
    #[track_caller]
    pub(crate) fn compare_zero(&self, key: &str, actual: &Tensor, absolute: f64) {
        let largest =
            self.golden.values(key).iter().fold(mm_testkit::close::SMALLEST_SCALE, |s, v| s.max(v.abs()));
        self.compare(key, actual, absolute / largest);
    }

    /// The values of a key that shows how the original breaks; they need not be reproduced.
    #[track_caller]
    pub(crate) fn hazard(&self, key: &str, dtype: DType) -> Tensor {
        assert!(key.contains(HAZARD), "`{key}` is no hazard");
        self.golden.tensor(key).to_dtype(dtype).expect("a float tensor")
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.golden.has(key)
    }

    pub(crate) fn shape(&self, key: &str) -> &[usize] {
        self.golden.shape(key)
    }

    /// The keys that start with `prefix`, without it.
    pub(crate) fn under(&self, prefix: &str) -> Vec<String> {
        self.golden.keys().filter_map(|k| k.strip_prefix(prefix)).map(str::to_owned).collect()
    }

    /// The inputs below `prefix` as leaves of a graph, by the rest of their names.
    #[track_caller]
    pub(crate) fn leaves(&self, prefix: &str, dtype: DType) -> BTreeMap<String, Var> {
        let leaf = |name: String| {
            let value = self.input(&format!("{prefix}{name}"), dtype);
            (name, Var::from_tensor(&value).expect("a variable"))
        };
        self.under(prefix).into_iter().map(leaf).collect()
    }

    /// The distinct first segments of the keys under `prefix` that start with `head`, without `head`; a segment reaches
    /// to the first dot that does not belong to a number.
    pub(crate) fn variants(&self, prefix: &str, head: &str) -> Vec<String> {
        let tail = |key: String| key.strip_prefix(head).map(|rest| number_text(rest).to_owned());
        let found: BTreeSet<String> = self.under(prefix).into_iter().filter_map(tail).collect();
        found.into_iter().collect()
    }

    /// Prints how many tensors were covered; fails if one was not.
    #[allow(clippy::print_stdout)] // the line is what the test reports
    pub(crate) fn finish(self) {
        let (read, compared) = (self.read.borrow(), self.compared.borrow());
        let ours = |key: &&str| !key.contains(OTHERS) && !key.contains(HAZARD);
        let left: Vec<&str> = self
            .golden
            .keys()
            .filter(ours)
            .filter(|&key| !if (self.is_input)(key) { read.contains(key) } else { compared.contains(key) })
            .collect();
        assert!(left.is_empty(), "{}: not covered: {}", self.name, left.join(", "));
        let total = self.golden.keys().filter(ours).count();
        assert_eq!(total, read.len() + compared.len(), "{}: a key counts twice", self.name);
        println!(
            "\ngolden {}: {total} tensors compared ({} results, {} inputs they come from)",
            self.name,
            compared.len(),
            read.len()
        );
        drop((read, compared));
        for prefix in ["", "f64.", "f32."].map(|dtype| format!("{dtype}{OTHERS}")) {
            if self.golden.keys().any(|key| key.starts_with(&prefix)) {
                self.golden.skip(&prefix, "another library's behaviour");
            }
        }
        self.golden.finish();
    }

    #[track_caller]
    fn note_input(&self, key: &str) {
        assert!((self.is_input)(key), "`{key}` is an expectation, not an input");
        self.read.borrow_mut().insert(key.to_owned());
    }
}

/// Tolerance of what the original computes in tensors of `dtype`.
pub(crate) fn exact(dtype: DType) -> f64 {
    mm_testkit::tolerance(dtype)
}

/// Tolerance of what the original takes through an f32 number on the way.
pub(crate) fn rounded(dtype: DType) -> f64 {
    exact(dtype).max(1e-6)
}

/// The number at the start of `text`, as written.
pub(crate) fn number_text(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text[..end].trim_end_matches('.')
}

/// The number that follows `head` in a key, such as 0.8 in `f64.alpha0.8.k_a` after `alpha`.
#[track_caller]
pub(crate) fn number(key: &str, head: &str) -> f64 {
    let start = key.find(head).expect("the key names the number") + head.len();
    number_text(&key[start..]).parse().expect("a number in the key")
}
