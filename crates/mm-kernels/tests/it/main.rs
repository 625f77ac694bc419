//! Tests of the public operations: against PyTorch's numbers, against central differences, and at their edges.

mod edges;
mod edges_block;
mod edges_conv;
mod golden;
mod golden_conv;
mod gradients;
mod gradients_conv;
mod gradients_fused;
mod layers;
mod optimisers;
mod traps;

use candle_core::{DType, Device, Result, Tensor};
use mm_kernels::StepRng;

/// Standard normal values of a key, f64.
fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut draws = StepRng::new(seed).stream("test").draws();
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draws.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn values(x: &Tensor) -> Result<Vec<f64>> {
    x.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn largest(x: &Tensor) -> Result<f64> {
    Ok(values(x)?.iter().fold(0.0, |a, b| a.max(b.abs())))
}

/// Fails where an element differs by more than `tol` times the largest expected value.
#[track_caller]
fn assert_close(what: &str, got: &Tensor, expected: &Tensor, tol: f64) -> Result<()> {
    assert_within(what, got, expected, tol * largest(expected)?)
}

/// Fails where an element differs by more than `allowed`.
#[track_caller]
fn assert_within(what: &str, got: &Tensor, expected: &Tensor, allowed: f64) -> Result<()> {
    assert_eq!(got.shape(), expected.shape(), "{what}: shape");
    for (i, (g, e)) in values(got)?.iter().zip(values(expected)?).enumerate() {
        assert!((g - e).abs() <= allowed, "{what}: element {i} is {g:e}, expected {e:e}");
    }
    Ok(())
}

/// The text of an error.
#[track_caller]
fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.expect_err("an error").to_string()
}

/// Fails where a part is missing from the text of an error.
#[track_caller]
fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}
