//! One rule for "equal up to rounding", used wherever numbers are compared.
//!
//! ```text
//! |a_i - b_i| <= relative * max(max_j |b_j|, 1e-6)      for every i
//! ```
//!
//! The scale is the largest entry of the expected tensor, because an entry that cancels to almost nothing carries the
//! rounding of the large ones. Values that are not finite are never equal to anything.

use candle_core::{DType, Tensor};

/// Tolerance of f64 computations against golden vectors.
pub const F64: f64 = 1e-9;
/// Tolerance of f32 computations against golden vectors.
pub const F32: f64 = 2e-5;
/// Expected tensors whose entries are all smaller than this are compared against this scale.
pub const SMALLEST_SCALE: f64 = 1e-6;

/// The usual tolerance of a computation in `dtype`: [`F64`] for f64, [`F32`] for everything else.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F64 { F64 } else { F32 }
}

/// Numbers with an optional shape: what can be compared.
pub trait Values {
    /// The numbers, row-major, in f64.
    fn values(&self) -> Vec<f64>;
    /// The shape, where the type has one.
    fn shape(&self) -> Option<Vec<usize>> {
        None
    }
}

impl Values for Tensor {
    fn values(&self) -> Vec<f64> {
        mm_core::model::to_host(self).expect("a tensor that can be read")
    }
    fn shape(&self) -> Option<Vec<usize>> {
        Some(self.dims().to_vec())
    }
}

impl Values for [f64] {
    fn values(&self) -> Vec<f64> {
        self.to_vec()
    }
}

impl<const N: usize> Values for [f64; N] {
    fn values(&self) -> Vec<f64> {
        self.to_vec()
    }
}

impl Values for Vec<f64> {
    fn values(&self) -> Vec<f64> {
        self.clone()
    }
}

impl Values for f64 {
    fn values(&self) -> Vec<f64> {
        vec![*self]
    }
}

/// Panics unless `actual` has the shape of `expected` and is equal to it under the rule of this module.
#[track_caller]
pub fn assert_close(actual: &Tensor, expected: &Tensor, relative: f64) {
    if let Err(difference) = difference(actual, expected, relative) {
        panic!("tensors differ: {difference}");
    }
}

/// `Err` says where and by how much `actual` differs from `expected`.
pub fn difference<A, E>(actual: &A, expected: &E, relative: f64) -> Result<(), String>
where
    A: Values + ?Sized,
    E: Values + ?Sized,
{
    let (a, e) = (actual.values(), expected.values());
    let (shape, wanted) = (actual.shape(), expected.shape());
    if let (Some(shape), Some(wanted)) = (&shape, &wanted)
        && shape != wanted
    {
        return Err(format!("shape {shape:?}, expected {wanted:?}"));
    }
    if a.len() != e.len() {
        return Err(format!("{} values, expected {}", a.len(), e.len()));
    }
    let place = |i: usize| match wanted.as_ref().or(shape.as_ref()) {
        Some(dims) if dims.len() > 1 => format!("{:?}", unravel(i, dims)),
        _ => format!("[{i}]"),
    };
    if let Some(i) = (0..a.len()).find(|&i| !a[i].is_finite() || !e[i].is_finite()) {
        return Err(format!("at {} {:e}, expected {:e}: a value is not finite", place(i), a[i], e[i]));
    }
    let scale = e.iter().fold(SMALLEST_SCALE, |scale, v| scale.max(v.abs()));
    let gap = |i: usize| (a[i] - e[i]).abs();
    let Some(worst) = (0..a.len()).max_by(|&i, &j| gap(i).total_cmp(&gap(j))) else {
        return Ok(());
    };
    if gap(worst) <= relative * scale {
        return Ok(());
    }
    Err(format!(
        "at {} {:e}, expected {:e}: off by {:.3e}, allowed {:.3e} (= {relative:e} of {scale:e})",
        place(worst),
        a[worst],
        e[worst],
        gap(worst),
        relative * scale
    ))
}

fn unravel(mut flat: usize, dims: &[usize]) -> Vec<usize> {
    let mut index = vec![0; dims.len()];
    for (place, dim) in index.iter_mut().zip(dims).rev() {
        *place = flat % dim;
        flat /= dim;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_scale_is_the_largest_expected_entry() {
        assert!(difference(&[1000.0, 1e-7], &[1000.0, 0.0], 1e-9).is_ok());
        assert!(difference(&[1000.0, 1e-5], &[1000.0, 0.0], 1e-9).is_err());
        assert!(difference(&[1e-17], &[0.0], 1e-9).is_ok());
        assert!(difference(&[1e-14], &[0.0], 1e-9).is_err());
    }

    #[test]
    fn says_where_and_by_how_much() {
        let a = Tensor::new(&[[1f64, 2.0], [3.0, 4.5]], &Device::Cpu).unwrap();
        let e = Tensor::new(&[[1f64, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let text = difference(&a, &e, 1e-9).unwrap_err();
        assert_eq!(text, "at [1, 1] 4.5e0, expected 4e0: off by 5.000e-1, allowed 4.000e-9 (= 1e-9 of 4e0)");
        assert_eq!(difference(&a, &e.flatten_all().unwrap(), 1.0).unwrap_err(), "shape [2, 2], expected [4]");
    }

    #[test]
    fn nothing_equals_what_is_not_finite() {
        assert!(difference(&f64::NAN, &f64::NAN, 1.0).unwrap_err().contains("not finite"));
        assert!(difference(&f64::INFINITY, &f64::INFINITY, 1.0).is_err());
        assert!(difference(&[1.0, f64::NAN], &[1.0, 2.0], 1.0).unwrap_err().starts_with("at [1] NaN"));
    }

    #[test]
    #[should_panic(expected = "tensors differ: at [0]")]
    fn assert_close_panics() {
        let x = |v: f32| Tensor::new(&[v], &Device::Cpu).unwrap();
        assert_close(&x(1.0), &x(1.001), F32);
    }
}
