//! Extreme values, absent arguments, and what is rejected with which words.

use crate::{message, normal, values};
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_kernels::{
    StepRng, attention, batch_norm_eval, batch_norm_train, cross_entropy, cross_entropy_soft, dropout,
    layer_norm, linear, log_softmax_last, relu, softmax_last, true_class_probability,
};

fn row(values: &[f64]) -> Result<Tensor> {
    Tensor::from_slice(values, (1, values.len()), &Device::Cpu)
}

#[test]
fn linear_computes_no_gradient_for_data_and_frozen_weights() -> Result<()> {
    let (x, w) = (normal(&[3, 4], 1)?, Var::from_tensor(&normal(&[2, 4], 2)?)?);
    let grads = linear(&x, w.as_tensor(), None)?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_none());
    let gradient = grads.get(w.as_tensor()).expect("the weight has a gradient");
    assert!(!gradient.track_op(), "a gradient must not hold on to a graph");

    let (x, w) = (Var::from_tensor(&x)?, w.as_detached_tensor());
    let grads = linear(x.as_tensor(), &w, Some(&normal(&[2], 3)?))?.sum_all()?.backward()?;
    assert!(grads.get(&w).is_none());
    assert!(grads.get(x.as_tensor()).is_some_and(|g| !g.track_op()));
    Ok(())
}

#[test]
fn linear_takes_empty_batches_and_empty_rows() -> Result<()> {
    let w = Var::from_tensor(&normal(&[2, 4], 2)?)?;
    let b = Var::from_tensor(&normal(&[2], 3)?)?;
    let y = linear(&normal(&[0, 4], 1)?, &w, Some(&b))?;
    assert_eq!(y.dims(), [0, 2]);
    let grads = y.sum_all()?.backward()?;
    assert_eq!(values(grads.get(w.as_tensor()).expect("a gradient"))?, [0.0; 8]);
    let y = linear(&normal(&[3, 0], 1)?, &normal(&[2, 0], 1)?, Some(&b))?;
    assert_eq!(values(&y)?, values(&b)?.repeat(3));
    Ok(())
}

#[test]
fn wrong_shapes_are_named() -> Result<()> {
    let x = normal(&[3, 4], 1)?;
    assert!(message(linear(&x, &normal(&[2, 5], 1)?, None)).contains("x [3, 4] does not fit weight [2, 5]"));
    assert!(message(linear(&x, &normal(&[5], 1)?, None)).contains("weight must be (out, in)"));
    assert!(message(linear(&x, &normal(&[2, 4], 1)?, Some(&normal(&[3], 1)?))).contains("bias must be [2]"));
    assert!(message(linear(&normal(&[4], 1)?, &normal(&[2, 4], 1)?, None)).contains("does not fit"));
    assert!(message(layer_norm(&x, Some(&normal(&[3], 1)?), None, 1e-5)).contains("weight [3]"));
    assert!(message(layer_norm(&normal(&[3, 0], 1)?, None, None, 1e-5)).contains("not empty"));
    assert!(message(softmax_last(&Tensor::new(1f32, &Device::Cpu)?)).contains("scalar"));
    let c = normal(&[4], 1)?;
    assert!(message(batch_norm_eval(&x, &c, &normal(&[3], 1)?, None, None, 1e-5)).contains("var [3]"));
    assert!(message(batch_norm_train(&c, None, None, 1e-5)).contains("(batch, channels, ..)"));
    assert!(message(batch_norm_train(&normal(&[1, 4], 1)?, None, None, 1e-5)).contains("more than 1 value"));
    let q = normal(&[1, 2, 4], 1)?;
    assert!(message(attention(&q, &q, &q, None, 3)).contains("3 heads do not divide"));
    assert!(message(attention(&q, &q, &normal(&[1, 3, 4], 1)?, None, 2)).contains("do not fit"));
    let mask = Tensor::ones((1, 3), DType::U8, &Device::Cpu)?;
    assert!(message(attention(&q, &q, &q, Some(&mask), 2)).contains("key mask must be [1, 2]"));
    Ok(())
}

#[test]
fn wrong_dtypes_name_the_operation() -> Result<()> {
    let x = normal(&[2, 3], 1)?.to_dtype(DType::BF16)?;
    let w = normal(&[2, 3], 1)?.to_dtype(DType::BF16)?;
    let errors = [
        ("linear", message(linear(&x, &w, None))),
        ("relu", message(relu(&x))),
        ("softmax_last", message(softmax_last(&x))),
        ("cross_entropy", message(cross_entropy(&x, &[0, 0], None))),
        ("layer_norm", message(layer_norm(&x, None, None, 1e-5))),
        ("batch_norm", message(batch_norm_train(&x, None, None, 1e-5))),
        ("dropout", message(dropout(&x, 0.5, StepRng::new(1)))),
    ];
    for (name, error) in errors {
        assert!(error.contains(name) && error.contains("BF16"), "{error}");
    }
    let mixed = message(linear(&x.to_dtype(DType::F32)?, &w.to_dtype(DType::F64)?, None));
    assert!(mixed.contains("linear: all arguments must have one dtype"), "{mixed}");
    Ok(())
}

#[test]
fn relu_shows_a_nan() -> Result<()> {
    let y = values(&relu(&row(&[f64::NAN, -1.0, 2.0])?)?)?;
    assert!(y[0].is_nan());
    assert_eq!(y[1..], [0.0, 2.0]);
    Ok(())
}

#[test]
fn softmax_survives_large_logits() -> Result<()> {
    let x = row(&[1e4, 1e4, -1e4])?;
    assert_eq!(values(&softmax_last(&x)?)?, [0.5, 0.5, 0.0]);
    assert_eq!(values(&log_softmax_last(&x)?)?, [-(2f64.ln()), -(2f64.ln()), -2e4 - 2f64.ln()]);
    assert_eq!(true_class_probability(&x, &[1])?, [0.5]);
    let loss = cross_entropy(&x, &[2], None)?.to_scalar::<f64>()?;
    assert!((loss - 2e4 - 2f64.ln()).abs() < 1e-9);
    Ok(())
}

#[test]
fn a_soft_target_of_zero_ignores_its_logit() -> Result<()> {
    let x = Var::from_tensor(&row(&[0.0, 0.0, f64::NEG_INFINITY])?)?;
    let loss = cross_entropy_soft(x.as_tensor(), &row(&[1.0, 0.0, 0.0])?, None)?;
    assert_eq!(loss.to_scalar::<f64>()?, 2f64.ln());
    let grads = loss.backward()?;
    assert_eq!(values(grads.get(x.as_tensor()).expect("a gradient"))?, [-0.5, 0.5, 0.0]);
    Ok(())
}

#[test]
fn hard_and_soft_agree_on_one_hot_rows() -> Result<()> {
    let x = normal(&[3, 4], 1)?;
    let mut one_hot = vec![0.0; 12];
    for (i, label) in [2usize, 0, 3].into_iter().enumerate() {
        one_hot[4 * i + label] = 1.0;
    }
    let targets = Tensor::from_vec(one_hot, (3, 4), &Device::Cpu)?;
    let hard = cross_entropy(&x, &[2, 0, 3], None)?.to_scalar::<f64>()?;
    let soft = cross_entropy_soft(&x, &targets, None)?.to_scalar::<f64>()?;
    assert!((hard - soft).abs() < 1e-15);
    let p = true_class_probability(&x, &[2, 0, 3])?;
    assert!((hard + p.iter().map(|p| p.ln()).sum::<f64>() / 3.0).abs() < 1e-15);
    Ok(())
}

#[test]
fn weights_that_sum_to_zero_give_a_zero_with_a_zero_gradient() -> Result<()> {
    let x = Var::from_tensor(&row(&[f64::NAN, 1.0])?)?;
    let loss = cross_entropy(x.as_tensor(), &[0], Some(&[0.0]))?;
    assert_eq!(loss.to_scalar::<f64>()?, 0.0);
    let grads = loss.backward()?;
    assert_eq!(values(grads.get(x.as_tensor()).expect("a gradient"))?, [0.0, 0.0]);
    let empty = cross_entropy(&normal(&[0, 3], 1)?, &[], None)?;
    assert_eq!(empty.to_scalar::<f64>()?, 0.0);
    Ok(())
}

#[test]
fn a_loss_can_be_scaled_and_used_twice() -> Result<()> {
    let x = Var::from_tensor(&normal(&[3, 4], 1)?)?;
    let loss = cross_entropy(x.as_tensor(), &[0, 1, 2], None)?;
    let gradient = |loss: &Tensor| -> Result<Vec<f64>> {
        values(loss.backward()?.get(x.as_tensor()).expect("a gradient"))
    };
    let once = gradient(&loss)?;
    let thrice: Vec<f64> = once.iter().map(|g| 3.0 * g).collect();
    let scaled = gradient(&((&loss * 2.0)? + &loss)?)?;
    assert!(scaled.iter().zip(&thrice).all(|(a, b)| (a - b).abs() < 1e-15));
    assert_eq!(gradient(&loss)?, once);
    Ok(())
}

#[test]
fn cross_entropy_rejects_with_the_row() -> Result<()> {
    let x = normal(&[2, 3], 1)?;
    assert!(message(cross_entropy(&x, &[0, 3], None)).contains("row 1 has label 3, but there are 3 classes"));
    assert!(message(true_class_probability(&x, &[0, 7])).contains("row 1 has label 7"));
    assert!(message(cross_entropy(&x, &[0], None)).contains("1 labels for a batch of 2"));
    assert!(message(cross_entropy(&x, &[0, 1], Some(&[1.0, -1.0]))).contains("row 1 has weight -1"));
    assert!(message(cross_entropy(&x, &[0, 1], Some(&[f64::NAN, 1.0]))).contains("row 0 has weight NaN"));
    assert!(message(cross_entropy(&x, &[0, 1], Some(&[1.0]))).contains("1 weights for a batch of 2"));
    assert!(message(cross_entropy_soft(&x, &normal(&[2, 2], 1)?, None)).contains("shape of the logits"));
    assert!(message(cross_entropy(&normal(&[3], 1)?, &[0, 1, 2], None)).contains("(batch, classes)"));
    Ok(())
}

#[test]
fn statistics_of_large_values_are_exact() -> Result<()> {
    // A variance by E[x²] - E[x]² would be lost to rounding here.
    let x = Tensor::new(&[[10_000f32], [10_001.0], [10_002.0]], &Device::Cpu)?;
    let out = batch_norm_train(&x, None, None, 0.0)?;
    assert_eq!(out.mean.to_vec1::<f32>()?, [10_001.0]);
    assert_eq!(out.var_unbiased.to_vec1::<f32>()?, [1.0]);
    let expected = [-(1.5f64.sqrt()), 0.0, 1.5f64.sqrt()];
    for y in [values(&out.y)?, values(&layer_norm(&x.t()?, None, None, 0.0)?)?] {
        assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y:?}");
    }
    Ok(())
}

#[test]
fn dropout_keeps_the_expectation_and_repeats_itself() -> Result<()> {
    let x = Tensor::ones((100, 1000), DType::F32, &Device::Cpu)?;
    let key = StepRng::new(3).stream("dropout");
    let y = dropout(&x, 0.3, key)?;
    let mean = y.mean_all()?.to_scalar::<f32>()?;
    assert!((mean - 1.0).abs() < 0.01, "{mean}");
    assert_eq!(values(&y)?, values(&dropout(&x, 0.3, key)?)?);
    assert_ne!(values(&y)?, values(&dropout(&x, 0.3, key.step(1))?)?);
    // The mask goes by position, whatever the layout and the dtype.
    let turned = Tensor::ones((1000, 100), DType::F64, &Device::Cpu)?.t()?;
    let zeros = |y: &Tensor| -> Result<Vec<bool>> { Ok(values(y)?.iter().map(|&y| y == 0.0).collect()) };
    assert_eq!(zeros(&y)?, zeros(&dropout(&turned, 0.3, key)?)?);
    Ok(())
}

#[test]
fn dropout_of_nothing_is_the_tensor_itself() -> Result<()> {
    let x = normal(&[3], 1)?;
    assert_eq!(dropout(&x, 0.0, StepRng::new(1))?.id(), x.id());
    for p in [-0.1, 1.0, f64::NAN] {
        assert!(message(dropout(&x, p, StepRng::new(1))).contains("p must be in [0, 1)"));
    }
    Ok(())
}

#[test]
fn a_query_without_a_key_receives_zero_and_passes_no_gradient() -> Result<()> {
    let x = Var::from_tensor(&normal(&[2, 3, 4], 1)?)?;
    let mask = Tensor::new(&[[0u8, 0, 0], [1, 1, 0]], &Device::Cpu)?;
    let y = attention(&x, &x, &x, Some(&mask), 2)?;
    assert_eq!(values(&y.get(0)?)?, [0.0; 12]);
    assert!(values(&y.get(1)?)?.iter().all(|y| y.is_finite() && *y != 0.0));
    let grads = y.sum_all()?.backward()?;
    assert_eq!(values(&grads.get(x.as_tensor()).expect("a gradient").get(0)?)?, [0.0; 12]);
    Ok(())
}

#[test]
fn two_runs_give_the_same_bits() -> Result<()> {
    let run = || -> Result<Vec<f64>> {
        // Large enough for the matrix products to use more than one thread.
        let x = normal(&[128, 300], 1)?.to_dtype(DType::F32)?;
        let w = Var::from_tensor(&normal(&[200, 300], 2)?.to_dtype(DType::F32)?)?;
        let y = layer_norm(&relu(&linear(&x, &w, None)?)?, None, None, 1e-5)?;
        let labels: Vec<u32> = (0..128).collect();
        let loss = cross_entropy(&dropout(&y, 0.2, StepRng::new(1))?, &labels, None)?;
        values(loss.backward()?.get(w.as_tensor()).expect("a gradient"))
    };
    let first = run()?;
    for _ in 0..5 {
        assert_eq!(run()?, first);
    }
    Ok(())
}
