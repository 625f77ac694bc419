//! candle's traps, as they are in the pinned version: a test that fails here says that a workaround can go.

use crate::{message, normal};
use candle_core::{Device, Module, Result, Tensor, Var};
use mm_kernels::{Conv1dConfig, Conv2dConfig, PoolConfig, gradcheck};

#[test]
fn candle_relu_passes_the_gradient_at_zero_and_ours_does_not() -> Result<()> {
    let x = Var::new(&[0f32], &Device::Cpu)?;
    let gradient = |y: Tensor| -> Result<Vec<f32>> {
        y.sum_all()?.backward()?.get(x.as_tensor()).expect("a gradient").to_vec1()
    };
    assert_eq!(gradient(x.relu()?)?, [1.0]);
    assert_eq!(gradient(mm_kernels::relu(x.as_tensor())?)?, [0.0]);
    Ok(())
}

#[test]
fn candle_gelu_has_six_digits_in_its_gradient() -> Result<()> {
    let x = [normal(&[20], 1)?];
    assert!(message(gradcheck(|x| x[0].gelu_erf(), &x, 1e-6, 1e-8)).contains("central difference"));
    gradcheck(|x| mm_kernels::gelu(&x[0]), &x, 1e-6, 1e-8)?;
    Ok(())
}

#[allow(clippy::disallowed_methods)] // the trap itself
#[test]
fn candle_fused_layer_norm_and_softmax_drop_the_gradient() -> Result<()> {
    let x = Var::from_tensor(&normal(&[2, 3], 1)?.to_dtype(candle_core::DType::F32)?)?;
    let one = Tensor::ones(3, candle_core::DType::F32, &Device::Cpu)?;
    let norm = candle_nn::LayerNorm::new(one.clone(), one.zeros_like()?, 1e-5);
    for y in [norm.forward(x.as_tensor())?, candle_nn::ops::softmax_last_dim(x.as_tensor())?] {
        // Some releases say nothing, others fail: both are useless for training.
        let reached = y.sqr()?.sum_all()?.backward().is_ok_and(|grads| grads.get(x.as_tensor()).is_some());
        assert!(!reached);
    }
    for y in [mm_kernels::layer_norm(&x, None, None, 1e-5)?, mm_kernels::softmax_last(&x)?] {
        assert!(y.sqr()?.sum_all()?.backward()?.get(x.as_tensor()).is_some());
    }
    Ok(())
}

#[allow(clippy::disallowed_methods)] // the trap itself
#[test]
fn candle_max_pool_divides_the_gradient_and_fails_where_windows_overlap() -> Result<()> {
    let x = Var::from_tensor(&normal(&[1, 1, 4, 4], 1)?)?;
    let total = |y: Tensor| -> Result<f64> {
        y.sum_all()?.backward()?.get(x.as_tensor()).expect("a gradient").sum_all()?.to_scalar()
    };
    // Four windows, each with a gradient of one.
    assert_eq!(total(x.max_pool2d(2)?)?, 1.0);
    assert_eq!(total(mm_kernels::max_pool2d(&x, &PoolConfig::square(2, 2, 0))?)?, 4.0);
    assert!(x.max_pool2d_with_stride(3, 1)?.sum_all()?.backward().is_err());
    assert_eq!(total(mm_kernels::max_pool2d(&x, &PoolConfig::square(3, 1, 0))?)?, 4.0);
    assert!(x.avg_pool2d_with_stride(3, 1)?.sum_all()?.backward().is_err());
    let mean = mm_kernels::avg_pool2d(&x, &PoolConfig::square(3, 1, 0))?;
    assert!((total(mean)? - 4.0).abs() < 1e-14);
    Ok(())
}

#[allow(clippy::disallowed_methods)] // the trap itself
#[test]
fn candle_conv1d_has_a_wrong_gradient_for_batches() -> Result<()> {
    let x = [normal(&[2, 3, 8], 1)?, normal(&[4, 3, 3], 2)?];
    assert!(
        message(gradcheck(|x| x[0].conv1d(&x[1], 0, 1, 1, 1), &x, 1e-6, 1e-3)).contains("central difference")
    );
    gradcheck(|x| mm_kernels::conv1d(&x[0], &x[1], None, &Conv1dConfig::default()), &x, 1e-6, 1e-8)?;
    Ok(())
}

#[allow(clippy::disallowed_methods)] // the trap itself
#[test]
fn candle_conv2d_has_no_gradient_where_height_and_width_leave_different_remainders() -> Result<()> {
    let x = [normal(&[1, 1, 7, 8], 1)?, normal(&[1, 1, 3, 3], 2)?];
    assert!(gradcheck(|x| x[0].conv2d(&x[1], 1, 2, 1, 1), &x, 1e-6, 1e-8).is_err());
    let config = Conv2dConfig { stride: (2, 2), padding: (1, 1), ..Conv2dConfig::default() };
    gradcheck(|x| mm_kernels::conv2d(&x[0], &x[1], None, &config), &x, 1e-6, 1e-8)?;
    Ok(())
}
