//! The layers, from a `candle_nn::VarBuilder` and through candle's traits: they call the operations they
//! name.

use crate::{message, normal, values};
use candle_core::{DType, Device, Module, ModuleT, Result, Tensor, Var};
use candle_nn::VarBuilder;
use mm_kernels::layers::{
    AdaptiveAvgPool2d, AvgPool2d, BatchNorm, Conv1d, Conv2d, Embedding, GroupNorm, LayerNorm, Linear,
    MaxPool2d,
};
use mm_kernels::{Conv1dConfig, Conv2dConfig, PoolConfig};

/// A file's worth of tensors: names with shapes.
fn weights(shapes: &[(&str, &[usize])]) -> Result<VarBuilder<'static>> {
    let tensors = shapes.iter().zip(1..).map(|((name, shape), seed)| {
        let value = normal(shape, seed)?;
        Ok(((*name).to_string(), if name.ends_with("var") { value.abs()? } else { value }))
    });
    Ok(VarBuilder::from_tensors(tensors.collect::<Result<_>>()?, DType::F64, &Device::Cpu))
}

#[track_caller]
fn same(a: &Tensor, b: &Tensor) -> Result<()> {
    assert_eq!(a.dims(), b.dims());
    assert_eq!(values(a)?, values(b)?);
    Ok(())
}

#[test]
fn a_small_network_reads_a_var_builder() -> Result<()> {
    let vb = weights(&[
        ("stem.conv.weight", &[4, 1, 3, 3]),
        ("stem.norm.weight", &[4]),
        ("stem.norm.bias", &[4]),
        ("stem.norm.running_mean", &[4]),
        ("stem.norm.running_var", &[4]),
        ("head.weight", &[3, 4]),
        ("head.bias", &[3]),
    ])?;
    let (conv, norm, head) = (vb.pp("stem").pp("conv"), vb.pp("stem").pp("norm"), vb.pp("head"));
    let config = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
    let conv = Conv2d::from_tensors(|name| conv.get_unchecked(name), false, config)?;
    let norm = BatchNorm::from_tensors(|name| norm.get_unchecked(name))?;
    let head = Linear::from_tensors(|name| head.get_unchecked(name), true)?;
    let pool = MaxPool2d::new(PoolConfig::square(3, 2, 1));
    let mean = AdaptiveAvgPool2d::new((1, 1));

    let x = normal(&[2, 1, 5, 6], 9)?;
    for train in [false, true] {
        let y = pool.forward(&norm.forward_t(&conv.forward_t(&x, train)?, train)?)?;
        let y = head.forward(&mean.forward(&y)?.flatten_from(1)?)?;
        assert_eq!(y.dims(), [2, 3]);

        let last = x.permute((0, 2, 3, 1))?;
        let (norm, pool) = (norm.clone().channels_last(), pool.clone().channels_last());
        let z = norm.forward_t(&conv.clone().channels_last().forward(&last)?, false)?;
        let z = head.forward(&mean.clone().channels_last().forward(&pool.forward(&z)?)?.flatten_from(1)?)?;
        if train {
            // The running statistics have moved, but are not yet those of the batch.
            assert_ne!(values(&y)?, values(&z)?);
        } else {
            crate::assert_close("channels last", &z, &y, 1e-12)?;
        }
    }
    let lost = message(Linear::from_tensors(|name| vb.pp("stem").get_unchecked(name), true));
    assert!(lost.contains("stem.weight"), "{lost}");
    Ok(())
}

#[test]
fn layers_are_their_operations() -> Result<()> {
    let vb = weights(&[
        ("conv1d.weight", &[6, 2, 3]),
        ("conv1d.bias", &[6]),
        ("norm.weight", &[6]),
        ("norm.bias", &[6]),
        ("embedding.weight", &[5, 6]),
    ])?;
    let get = |prefix: &'static str| {
        let vb = vb.pp(prefix);
        move |name: &str| vb.get_unchecked(name)
    };
    let weight = |name: &str| vb.get_unchecked(name);
    let (w, b) = (weight("norm.weight")?, weight("norm.bias")?);

    let config = Conv1dConfig { stride: 2, padding: 1, groups: 2, ..Conv1dConfig::default() };
    let conv = Conv1d::from_tensors(get("conv1d"), true, config)?;
    let x = normal(&[2, 4, 7], 20)?;
    let (cw, cb) = (weight("conv1d.weight")?, weight("conv1d.bias")?);
    same(&conv.forward(&x)?, &mm_kernels::conv1d(&x, &cw, Some(&cb), &config)?)?;
    let turned = x.transpose(1, 2)?;
    same(
        &conv.channels_last().forward(&turned)?,
        &mm_kernels::conv1d_nlc(&turned, &cw, Some(&cb), &config)?,
    )?;

    let x = normal(&[2, 3, 4, 6], 21)?;
    let norm = LayerNorm::from_tensors(get("norm"), true, 1e-3)?;
    same(&norm.forward(&x)?, &mm_kernels::layer_norm(&x, Some(&w), Some(&b), 1e-3)?)?;
    let norm = LayerNorm::from_tensors(get("norm"), false, 1e-3)?;
    same(&norm.forward(&x)?, &mm_kernels::layer_norm(&x, Some(&w), None, 1e-3)?)?;
    let norm = GroupNorm::from_tensors(get("norm"), 3, 1e-3)?;
    let last = mm_kernels::group_norm_nhwc(&x, 3, Some(&w), Some(&b), 1e-3)?;
    same(&norm.clone().channels_last().forward(&x)?, &last)?;
    let first = x.permute((0, 3, 1, 2))?;
    same(&norm.forward(&first)?, &mm_kernels::group_norm(&first, 3, Some(&w), Some(&b), 1e-3)?)?;

    let config = PoolConfig::square(3, 2, 1);
    let pool = AvgPool2d::new(config);
    same(&pool.forward(&x)?, &mm_kernels::avg_pool2d(&x, &config)?)?;
    same(&pool.channels_last().forward(&x)?, &mm_kernels::avg_pool2d_nhwc(&x, &config)?)?;

    let ids = Tensor::new(&[[4u32, 0], [2, 2]], &Device::Cpu)?;
    let embedding = Embedding::from_tensors(get("embedding"), Some(2))?;
    let table = weight("embedding.weight")?;
    same(&embedding.forward(&ids)?, &mm_kernels::embedding(&ids, &table, Some(2))?)?;
    Ok(())
}

#[test]
fn batch_norm_moves_its_running_statistics_in_training_alone() -> Result<()> {
    let statistics = |seed| Var::from_tensor(&normal(&[3], seed)?.abs()?);
    let (mean, var) = (statistics(1)?, statistics(2)?);
    let before = [values(&mean)?, values(&var)?];
    let norm = BatchNorm::new(None, None, mean.clone(), var.clone()).momentum(0.25).eps(1e-3);
    let x = normal(&[4, 3, 2, 2], 3)?;
    let eval = mm_kernels::batch_norm_eval(&x, &mean, &var, None, None, 1e-3)?;
    same(&norm.forward_t(&x, false)?, &eval)?;
    assert_eq!([values(&mean)?, values(&var)?], before);

    let out = mm_kernels::batch_norm_train(&x, None, None, 1e-3)?;
    same(&norm.forward_t(&x, true)?, &out.y)?;
    // The variables that went in are those that move.
    for (running, (before, new)) in
        [&mean, &var].into_iter().zip(before.iter().zip([out.mean, out.var_unbiased]))
    {
        let expected = before.iter().zip(values(&new)?).map(|(b, n)| 0.75 * b + 0.25 * n);
        assert!(values(running)?.iter().zip(expected).all(|(r, e)| (r - e).abs() < 1e-15));
    }
    assert_eq!(norm.running_mean().id(), mean.id());
    assert_eq!(norm.running_var().id(), var.id());

    // Channels last, of three dimensions and of two, from the same statistics.
    let (a, b) = (statistics(1)?, statistics(2)?);
    let last = BatchNorm::new(None, None, a.clone(), b.clone()).momentum(0.25).eps(1e-3).channels_last();
    let y = last.forward_t(&x.permute((0, 2, 3, 1))?, true)?;
    crate::assert_close("channels last", &y.permute((0, 3, 1, 2))?, &out.y, 1e-12)?;
    crate::assert_close("channels last", &a, &mean, 1e-12)?;
    crate::assert_close("channels last", &b, &var, 1e-12)?;
    assert_eq!(last.forward_t(&normal(&[5, 3], 4)?, true)?.dims(), [5, 3]);

    let wrong = BatchNorm::new(None, None, a, b).momentum(2.0);
    assert!(message(wrong.forward_t(&x, true)).contains("momentum must be in [0, 1], got 2"));
    Ok(())
}

#[test]
fn variables_train_through_layers() -> Result<()> {
    let weight = Var::from_tensor(&normal(&[2, 1, 3, 3], 1)?)?;
    let table = Var::from_tensor(&normal(&[3, 4], 2)?)?;
    let conv = Conv2d::new(weight.as_tensor().clone(), None, Conv2dConfig::default());
    let embedding = Embedding::new(table.as_tensor().clone(), None);
    let y = conv.forward(&normal(&[1, 1, 4, 4], 3)?)?.sum_all()?;
    let z = embedding.forward(&Tensor::new(&[0u32, 0, 2], &Device::Cpu)?)?.sum_all()?;
    let grads = (y + z)?.backward()?;
    assert!(grads.get(weight.as_tensor()).is_some());
    let rows = grads.get(table.as_tensor()).expect("a gradient");
    assert_eq!(values(rows)?, [[2.0; 4], [0.0; 4], [1.0; 4]].concat());
    Ok(())
}
