//! Central differences in f64 of the operations that stand for several, and their numbers on one thread and on many.

use crate::{normal, values};
use candle_core::{DType, Result, Tensor, Var};
use mm_kernels::{
    Conv2dConfig, FeedForward, Gate, Precision, RelativePositions, StepRng, attention, attention_relative,
    conv2d_nhwc_then, feed_forward, gradcheck, linear, residual, scale_channels, scale_rows, weight_norm,
};

fn draw(shapes: &[&[usize]]) -> Result<Vec<Tensor>> {
    shapes.iter().zip(1..).map(|(shape, seed)| normal(shape, seed)? * 0.5).collect()
}

#[track_caller]
fn check(f: impl Fn(&[Tensor]) -> Result<Tensor>, shapes: &[&[usize]]) -> Result<()> {
    let report = gradcheck(f, &draw(shapes)?, 1e-6, 1e-7)?;
    assert!(report.unreached.is_empty(), "{report:?}");
    Ok(())
}

fn part(x: &[Tensor], gate: Gate, drop: bool) -> FeedForward<'_> {
    let key = |name| drop.then_some((0.4, StepRng::new(3).stream(name)));
    FeedForward {
        norm: (x.len() > 5).then(|| (&x[5], &x[6], 1e-5)),
        expand: (&x[1], &x[2]),
        gate,
        project: (&x[3], &x[4]),
        dropouts: [key("inside"), key("outside")],
        factor: 0.5,
        precision: Precision::F32,
    }
}

const PART: [&[usize]; 7] = [&[2, 3, 4], &[6, 4], &[6], &[4, 6], &[4], &[4], &[4]];

#[test]
fn feed_forward_has_the_gradient_of_its_value() -> Result<()> {
    for (gate, drop) in [(Gate::Gelu, false), (Gate::Silu, true)] {
        check(|x| feed_forward(&x[0], &part(x, gate, drop)), &PART)?;
        check(|x| feed_forward(&x[0], &part(x, gate, drop)), &PART[..5])?;
    }
    Ok(())
}

#[test]
fn residual_and_factors_have_the_gradients_of_their_values() -> Result<()> {
    for drop in [None, Some((0.4, StepRng::new(1)))] {
        check(|x| residual(&x[0], &x[1], 0.5, drop), &[&[3, 5], &[3, 5]])?;
    }
    check(|x| scale_channels(&x[0], &x[1]), &[&[2, 3, 2, 5], &[2, 1, 1, 5]])?;
    check(|x| scale_rows(&x[0], &x[1]), &[&[3, 2, 5], &[3]])?;
    check(|x| weight_norm(&x[0], &x[1]), &[&[3, 2, 4], &[1, 1, 4]])
}

#[test]
fn attention_over_blocks_of_queries_has_the_gradient_of_its_value() -> Result<()> {
    // More queries than a block has, and a rest.
    let (n, dim, heads) = (70, 2, 1);
    let relative = |x: &[Tensor]| {
        let positions = RelativePositions { table: &x[3], content_bias: &x[4], position_bias: &x[5] };
        attention_relative(&x[0], &x[1], &x[2], &positions, None, heads)
    };
    let row: &[usize] = &[1, n, dim];
    check(relative, &[row, row, row, &[2 * n - 1, dim], &[heads, dim / heads], &[heads, dim / heads]])?;
    let keys = Tensor::from_vec(vec![1u8, 1, 0, 1, 0, 0, 0, 0], (2, 4), &candle_core::Device::Cpu)?;
    check(|x| attention(&x[0], &x[1], &x[2], Some(&keys), 2), &[&[2, 3, 4], &[2, 4, 4], &[2, 4, 4]])?;
    let added = normal(&[2, 1, 1, 4], 9)?;
    check(|x| attention(&x[0], &x[1], &x[2], Some(&added), 2), &[&[2, 3, 4], &[2, 4, 4], &[2, 4, 4]])?;
    // A mask that has a gradient of its own takes the composition.
    let shapes: [&[usize]; 4] = [&[2, 3, 4], &[2, 4, 4], &[2, 4, 4], &[2, 3, 4]];
    check(|x| attention(&x[0], &x[1], &x[2], Some(&x[3].unsqueeze(1)?), 2), &shapes)
}

/// The bits of a result and of all gradients, on so many threads.
fn bits(
    threads: usize,
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
    shapes: &[&[usize]],
) -> Result<Vec<u64>> {
    let pool = rayon_pool(threads);
    pool.install(|| {
        let mut all = Vec::new();
        for dtype in [DType::F32, DType::F64] {
            let x = draw(shapes)?
                .into_iter()
                .map(|x| Var::from_tensor(&x.to_dtype(dtype)?))
                .collect::<Result<Vec<_>>>()?;
            let x: Vec<Tensor> = x.iter().map(|x| x.as_tensor().clone()).collect();
            let y = f(&x)?;
            let grads = y.sqr()?.sum_all()?.backward()?;
            all.extend(values(&y)?.into_iter().map(f64::to_bits));
            for x in &x {
                let grad = grads.get(x).ok_or_else(|| candle_core::Error::msg("no gradient"))?;
                all.extend(values(grad)?.into_iter().map(f64::to_bits));
            }
        }
        Ok(all)
    })
}

fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads")
}

#[test]
fn the_number_of_threads_changes_no_bit_of_fused_operations() -> Result<()> {
    let part_shapes: [&[usize]; 7] = [&[4, 90, 64], &[150, 64], &[150], &[64, 150], &[64], &[64], &[64]];
    let ff = |x: &[Tensor]| feed_forward(&x[0], &part(x, Gate::Silu, true));
    let row: &[usize] = &[2, 90, 32];
    let relative = |x: &[Tensor]| {
        let positions = RelativePositions { table: &x[3], content_bias: &x[4], position_bias: &x[5] };
        attention_relative(&x[0], &x[1], &x[2], &positions, None, 4)
    };
    let relative_shapes: [&[usize]; 6] = [row, row, row, &[179, 32], &[4, 8], &[4, 8]];
    let fully = |x: &[Tensor]| linear(&x[0], &x[1], Some(&x[2]));
    let fully_shapes: [&[usize]; 3] = [&[300, 70], &[190, 70], &[190]];
    let kernel = |x: &[Tensor]| weight_norm(&x[0], &x[1]);
    let image = |x: &[Tensor]| {
        let config = Conv2dConfig { padding: (1, 1), ..Conv2dConfig::default() };
        conv2d_nhwc_then(&scale_channels(&x[0], &x[1])?, &x[2], None, &config, Gate::Silu)
    };
    let image_shapes: [&[usize]; 3] = [&[2, 20, 30, 24], &[2, 1, 1, 24], &[16, 24, 3, 3]];
    for threads in [2, 3] {
        assert_eq!(bits(1, ff, &part_shapes)?, bits(threads, ff, &part_shapes)?, "feed_forward");
        assert_eq!(
            bits(1, relative, &relative_shapes)?,
            bits(threads, relative, &relative_shapes)?,
            "attention"
        );
        assert_eq!(bits(1, fully, &fully_shapes)?, bits(threads, fully, &fully_shapes)?, "linear");
        let shapes: [&[usize]; 2] = [&[40, 30, 64], &[1, 1, 64]];
        assert_eq!(bits(1, kernel, &shapes)?, bits(threads, kernel, &shapes)?, "weight_norm");
        assert_eq!(bits(1, image, &image_shapes)?, bits(threads, image, &image_shapes)?, "conv2d_nhwc_then");
    }
    Ok(())
}
