//! Convolutions, pools and what goes with them: empty batches, NaN, and what is rejected with which words.

use crate::{message, normal, says, values};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use mm_kernels::{
    Conv1dConfig, Conv2dConfig, PoolConfig, RelativePositions, adaptive_avg_pool2d, adaptive_avg_pool2d_nhwc,
    attention_relative, avg_pool2d, avg_pool2d_nhwc, conv1d, conv1d_nlc, conv2d, conv2d_nhwc, embedding, glu,
    group_norm, group_norm_nhwc, max_pool2d, max_pool2d_nhwc,
};

#[test]
fn a_convolution_that_does_not_fit_names_both_shapes_and_the_rule() -> Result<()> {
    let (x, plain) = (normal(&[2, 4, 5, 6], 1)?, Conv2dConfig::default());
    let two = |w: &[usize], config: &Conv2dConfig| -> Result<[String; 2]> {
        let (w, last) = (normal(w, 2)?, x.permute((0, 2, 3, 1))?);
        Ok([message(conv2d(&x, &w, None, config)), message(conv2d_nhwc(&last, &w, None, config))])
    };
    for (error, op) in two(&[3, 3, 3, 3], &plain)?.iter().zip(["conv2d:", "conv2d_nhwc:"]) {
        says(error, &[op, "[3, 3, 3, 3]", "4 channels", "must be 4"]);
    }
    for error in two(&[3, 4, 3], &plain)? {
        says(&error, &["conv2d", "[3, 4, 3]", "(out, in / groups, kernel height, kernel width)"]);
    }
    for error in two(&[3, 4, 7, 3], &plain)? {
        says(&error, &["conv2d", "kernel of 7", "height of 5", "at most 5"]);
    }
    for error in two(&[3, 2, 3, 3], &Conv2dConfig { groups: 2, ..plain })? {
        says(&error, &["conv2d", "groups must divide", "4 input and 3 output", "got 2"]);
    }
    for (config, what) in [
        (Conv2dConfig { stride: (1, 0), ..plain }, "stride must be at least 1 along the width"),
        (Conv2dConfig { dilation: (0, 1), ..plain }, "dilation must be at least 1 along the height"),
        (Conv2dConfig { groups: 0, ..plain }, "groups must divide"),
        (Conv2dConfig { padding: (usize::MAX, 0), ..plain }, "too large"),
        (Conv2dConfig { dilation: (usize::MAX, 1), ..plain }, "too large"),
        (Conv2dConfig { padding: (0, 1 << 61), ..plain }, "do not fit in memory"),
    ] {
        for error in two(&[3, 4, 3, 3], &config)? {
            says(&error, &["conv2d", what]);
        }
    }
    let (w, bias) = (normal(&[3, 4, 3, 3], 2)?, normal(&[4], 3)?);
    says(
        &message(conv2d(&x, &w, Some(&bias), &plain)),
        &["conv2d:", "bias [4]", "[3, 4, 3, 3]", "must be [3]"],
    );
    let flat = normal(&[4, 5, 6], 1)?;
    says(
        &message(conv2d(&flat, &w, None, &plain)),
        &["conv2d:", "(batch, channels, height, width)", "[4, 5, 6]"],
    );
    says(
        &message(conv2d_nhwc(&flat, &w, None, &plain)),
        &["conv2d_nhwc:", "(batch, height, width, channels)", "[4, 5, 6]"],
    );
    let sequence = Conv1dConfig::default();
    says(&message(conv1d(&x, &w, None, &sequence)), &["conv1d:", "[2, 4, 5, 6]", "[3, 4, 3, 3]"]);
    says(&message(conv1d_nlc(&x, &w, None, &sequence)), &["conv1d_nlc:", "[2, 4, 5, 6]", "[3, 4, 3, 3]"]);
    Ok(())
}

#[test]
fn a_pool_that_does_not_fit_names_the_operation_and_the_rule() -> Result<()> {
    type Op = fn(&Tensor, &PoolConfig) -> Result<Tensor>;
    let ops: [(&str, Op); 4] = [
        ("max_pool2d:", max_pool2d),
        ("max_pool2d_nhwc:", max_pool2d_nhwc),
        ("avg_pool2d:", avg_pool2d),
        ("avg_pool2d_nhwc:", avg_pool2d_nhwc),
    ];
    let (x, plain) = (normal(&[2, 5, 5, 5], 1)?, PoolConfig::square(3, 2, 1));
    for (name, op) in ops {
        says(&message(op(&normal(&[5, 5, 5], 1)?, &plain)), &[name, "x must be (batch, ", "[5, 5, 5]"]);
        says(&message(op(&x, &PoolConfig::square(3, 2, 2))), &[name, "half of the kernel", "got 2 for 3"]);
        let asymmetric = PoolConfig { padding: (1, 1), ..PoolConfig::new((2, 1)) };
        says(&message(op(&x, &asymmetric)), &[name, "along the width", "got 1 for 1"]);
        says(
            &message(op(&x, &PoolConfig::square(8, 1, 1))),
            &[name, "kernel of 8", "height of 5", "at most 7"],
        );
        says(&message(op(&x, &PoolConfig::square(3, 0, 1))), &[name, "stride must be at least 1"]);
        says(&message(op(&x, &PoolConfig::square(0, 1, 0))), &[name, "kernel must be at least 1"]);
        says(
            &message(op(&x, &PoolConfig { dilation: (1, 0), ..plain })),
            &[name, "dilation must be at least 1"],
        );
        says(&message(op(&x, &PoolConfig { padding: (usize::MAX, 0), ..plain })), &[name, "too large"]);
        let empty = Tensor::zeros((2, 5, 0, 5), DType::F64, &Device::Cpu)?;
        says(&message(op(&empty, &PoolConfig::square(1, 1, 0))), &[name]);
        says(&message(op(&x.to_dtype(DType::BF16)?, &plain)), &[&name[..name.len() - 1], "BF16"]);
    }
    for (name, error) in [
        ("adaptive_avg_pool2d:", message(adaptive_avg_pool2d(&x, (0, 1)))),
        ("adaptive_avg_pool2d_nhwc:", message(adaptive_avg_pool2d_nhwc(&x, (0, 1)))),
        ("adaptive_avg_pool2d:", message(adaptive_avg_pool2d(&x, (1, usize::MAX)))),
        ("adaptive_avg_pool2d:", message(adaptive_avg_pool2d(&x, (1 << 31, 1 << 31)))),
    ] {
        says(&error, &[name, "fit in memory"]);
    }
    says(&message(adaptive_avg_pool2d(&x.get(0)?, (1, 1))), &["adaptive_avg_pool2d:", "[5, 5, 5]"]);
    Ok(())
}

#[test]
fn windows_of_any_size_are_clipped_to_the_input() -> Result<()> {
    let x = Tensor::new(&[[[[1f64], [3.0]], [[2.0], [0.0]]]], &Device::Cpu)?;
    // One step, and a window far larger than the image: nothing loops over what is outside.
    let kernel = 1usize << 40;
    let config = PoolConfig { stride: (kernel, usize::MAX), ..PoolConfig::square(kernel, 1, kernel / 2) };
    assert_eq!(values(&max_pool2d_nhwc(&x, &config)?)?, [3.0]);
    let inside = PoolConfig { count_include_pad: false, ..config };
    assert_eq!(values(&avg_pool2d_nhwc(&x, &inside)?)?, [1.5]);
    assert_eq!(values(&avg_pool2d_nhwc(&x, &config)?)?, [6.0 / (kernel as f64 * kernel as f64)]);
    Ok(())
}

#[test]
fn a_nan_in_a_window_is_its_maximum_and_receives_its_gradient() -> Result<()> {
    // PyTorch: the last NaN of a window receives the gradient.
    let rows = [[1.0, f64::NAN, 5.0, 4.0], [2.0, 3.0, f64::NAN, 9.0]];
    let x = Var::from_tensor(&Tensor::new(&rows, &Device::Cpu)?.reshape((1, 1, 2, 4))?)?;
    let y = max_pool2d(&x, &PoolConfig { stride: (1, 1), ..PoolConfig::new((2, 2)) })?;
    assert!(values(&y)?.iter().all(|y| y.is_nan()));
    let grads = y.backward()?;
    assert_eq!(
        values(grads.get(x.as_tensor()).expect("a gradient"))?,
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0]
    );
    // Wide enough for the vectorised loop and its rest; the other channels do not see it.
    let mut wide = values(&normal(&[1, 3, 3, 21], 1)?)?;
    wide[4 * 21 + 17] = f64::NAN;
    let y = values(&max_pool2d_nhwc(
        &Tensor::from_vec(wide, (1, 3, 3, 21), &Device::Cpu)?,
        &PoolConfig::new((3, 3)),
    )?)?;
    assert!(y.iter().enumerate().all(|(c, y)| y.is_nan() == (c == 17)), "{y:?}");
    Ok(())
}

#[test]
fn windows_of_minus_infinity_and_of_nothing() -> Result<()> {
    let x = Var::from_tensor(&Tensor::full(f64::NEG_INFINITY, (1, 1, 2, 2), &Device::Cpu)?)?;
    let y = max_pool2d(&x, &PoolConfig::square(2, 2, 0))?;
    assert_eq!(values(&y)?, [f64::NEG_INFINITY]);
    let grads = y.backward()?;
    assert_eq!(values(grads.get(x.as_tensor()).expect("a gradient"))?, [1.0, 0.0, 0.0, 0.0]);

    // Taps at -1 and 2 of an axis of two: both in the border.
    let config = PoolConfig { dilation: (3, 3), ..PoolConfig::square(2, 1, 1) };
    let x = Var::from_tensor(&normal(&[1, 1, 2, 2], 1)?)?;
    let y = max_pool2d(&x, &config)?;
    assert_eq!(values(&y)?, [f64::NEG_INFINITY]);
    let grads = y.backward()?;
    assert_eq!(values(grads.get(x.as_tensor()).expect("a gradient"))?, [0.0; 4]);
    for count_include_pad in [true, false] {
        let y = avg_pool2d(&x, &PoolConfig { count_include_pad, ..config })?;
        assert_eq!(values(&y)?, [0.0]);
    }
    Ok(())
}

#[test]
fn empty_batches_pass_and_give_gradients_of_zero() -> Result<()> {
    let no_images = |channels_last: bool| {
        let shape = if channels_last { (0, 5, 6, 4) } else { (0, 4, 5, 6) };
        Var::zeros(shape, DType::F64, &Device::Cpu)
    };
    let w = Var::from_tensor(&normal(&[3, 4, 3, 3], 1)?)?;
    let b = Var::from_tensor(&normal(&[3], 1)?)?;
    let config = Conv2dConfig { stride: (2, 2), padding: (1, 1), ..Conv2dConfig::default() };
    let pool = PoolConfig::square(3, 2, 1);
    let c = Var::from_tensor(&normal(&[4], 1)?)?;
    for last in [false, true] {
        let x = no_images(last)?;
        let results = if last {
            [
                conv2d_nhwc(&x, &w, Some(&b), &config)?.permute((0, 3, 1, 2))?,
                max_pool2d_nhwc(&x, &pool)?.permute((0, 3, 1, 2))?,
                avg_pool2d_nhwc(&x, &pool)?.permute((0, 3, 1, 2))?,
                adaptive_avg_pool2d_nhwc(&x, (2, 2))?.permute((0, 3, 1, 2))?,
                group_norm_nhwc(&x, 2, Some(&c), None, 1e-5)?.permute((0, 3, 1, 2))?,
            ]
        } else {
            [
                conv2d(&x, &w, Some(&b), &config)?,
                max_pool2d(&x, &pool)?,
                avg_pool2d(&x, &pool)?,
                adaptive_avg_pool2d(&x, (2, 2))?,
                group_norm(&x, 2, Some(&c), None, 1e-5)?,
            ]
        };
        let dims = [[0, 3, 3, 3], [0, 4, 3, 3], [0, 4, 3, 3], [0, 4, 2, 2], [0, 4, 5, 6]];
        for (y, dims) in results.iter().zip(dims) {
            assert_eq!(y.dims(), dims);
            let grads = y.sum_all()?.backward()?;
            assert_eq!(grads.get(x.as_tensor()).expect("a gradient").dims(), x.dims());
        }
        let grads = results[0].sum_all()?.backward()?;
        assert_eq!(values(grads.get(w.as_tensor()).expect("a gradient"))?, [0.0; 108]);
        assert_eq!(values(grads.get(b.as_tensor()).expect("a gradient"))?, [0.0; 3]);
        let grads = results[4].sum_all()?.backward()?;
        assert_eq!(values(grads.get(c.as_tensor()).expect("a gradient"))?, [0.0; 4]);
    }
    assert_eq!(glu(&normal(&[0, 4], 1)?, D::Minus1)?.dims(), [0, 2]);
    assert_eq!(glu(&normal(&[3, 0], 1)?, 1)?.dims(), [3, 0]);
    let ids = Tensor::zeros((0, 2), DType::U32, &Device::Cpu)?;
    let y = embedding(&ids, w.flatten_from(1)?.as_ref(), None)?;
    assert_eq!(y.dims(), [0, 2, 36]);
    Ok(())
}

#[test]
fn data_and_frozen_weights_get_no_gradient() -> Result<()> {
    let (x, w) = (normal(&[2, 4, 5, 6], 1)?, Var::from_tensor(&normal(&[3, 4, 3, 3], 2)?)?);
    let config = Conv2dConfig::default();
    let grads = conv2d(&x, &w, None, &config)?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_none());
    assert!(grads.get(w.as_tensor()).is_some_and(|g| !g.track_op()));
    let (x, w) = (Var::from_tensor(&x)?, w.as_detached_tensor());
    let pooled = max_pool2d(&conv2d(&x, &w, None, &config)?, &PoolConfig::square(2, 1, 0))?;
    let normal_form = group_norm(&pooled, 1, Some(&normal(&[3], 1)?), None, 1e-5)?;
    let grads = normal_form.sqr()?.sum_all()?.backward()?;
    assert!(grads.get(&w).is_none());
    assert!(grads.get(x.as_tensor()).is_some_and(|g| !g.track_op()));
    Ok(())
}

#[test]
fn group_norm_rejects_and_survives() -> Result<()> {
    let (x, c) = (normal(&[2, 6, 3], 1)?, normal(&[4], 1)?);
    let last = x.transpose(1, 2)?;
    says(&message(group_norm(&x, 4, None, None, 1e-5)), &["group_norm:", "6 channels", "[2, 6, 3]", "got 4"]);
    says(&message(group_norm(&x, 0, None, None, 1e-5)), &["group_norm:", "got 0"]);
    says(
        &message(group_norm(&x, 2, Some(&c), None, 1e-5)),
        &["group_norm:", "weight [4]", "[2, 6, 3]", "be [6]"],
    );
    says(
        &message(group_norm_nhwc(&last, 2, None, Some(&c), 1e-5)),
        &["group_norm_nhwc:", "bias [4]", "be [6]"],
    );
    says(&message(group_norm(&c, 2, None, None, 1e-5)), &["group_norm:", "(batch, channels, ..)", "[4]"]);
    says(
        &message(group_norm_nhwc(&c, 2, None, None, 1e-5)),
        &["group_norm_nhwc:", "(batch, .., channels)", "[4]"],
    );
    says(&message(group_norm(&x.to_dtype(DType::F16)?, 2, None, None, 1e-5)), &["group_norm", "F16"]);

    // A group of one value is its mean: the bias remains.
    let b = normal(&[6], 4)?;
    let y = group_norm(&normal(&[2, 6], 3)?, 6, Some(&normal(&[6], 5)?), Some(&b), 1e-5)?;
    assert_eq!(values(&y)?, values(&b)?.repeat(2));
    // A variance by E[x²] - E[x]² would be lost to rounding here.
    let large = Tensor::new(&[[[10_000f32, 10_001.0, 10_002.0]]], &Device::Cpu)?;
    let expected = [-(1.5f64.sqrt()), 0.0, 1.5f64.sqrt()];
    for y in [group_norm(&large, 1, None, None, 0.0)?, group_norm_nhwc(&large.t()?, 1, None, None, 0.0)?] {
        assert!(values(&y)?.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6));
    }
    Ok(())
}

#[test]
fn glu_and_embedding_name_what_is_wrong() -> Result<()> {
    let x = normal(&[2, 3], 1)?;
    says(&message(glu(&x, 1)), &["glu:", "dimension 1", "[2, 3]", "even", "got 3"]);
    says(&message(glu(&x, 2)), &["glu", "2"]);
    says(&message(glu(&x.to_dtype(DType::BF16)?, 0)), &["glu", "BF16"]);
    // Far beyond where exp overflows.
    let extreme = Tensor::new(&[[2f64, 2.0, 2.0, 1e4, -1e4, 0.0]], &Device::Cpu)?;
    assert_eq!(values(&glu(&extreme, 1)?)?, [2.0, 0.0, 1.0]);

    let ids = |ids: &[i64]| Tensor::new(ids, &Device::Cpu);
    says(&message(embedding(&ids(&[0, 2])?, &x, None)), &["embedding:", "id 2", "position 1", "table of 2"]);
    says(&message(embedding(&ids(&[-1])?, &x, None)), &["embedding:", "id -1", "table of 2"]);
    says(
        &message(embedding(&ids(&[0])?, &x, Some(2))),
        &["embedding:", "padding_idx is 2", "[2, 3]", "2 rows"],
    );
    says(&message(embedding(&ids(&[0])?, &x.get(0)?, None)), &["embedding:", "(rows, width)", "[3]"]);
    says(&message(embedding(&x, &x, None)), &["embedding:", "U32 or I64", "F64"]);
    says(&message(embedding(&ids(&[0])?, &x.to_dtype(DType::F16)?, None)), &["embedding", "F16"]);
    let scalar = embedding(&Tensor::new(1u32, &Device::Cpu)?, &x, None)?;
    assert_eq!(values(&scalar)?, values(&x.get(1)?)?);
    Ok(())
}

#[test]
fn relative_attention_names_what_is_wrong_and_takes_a_query_without_a_key() -> Result<()> {
    let (q, p, b) = (normal(&[2, 3, 4], 1)?, normal(&[5, 4], 2)?, normal(&[2, 2], 3)?);
    let positions = RelativePositions { table: &p, content_bias: &b, position_bias: &b };
    let wrong = normal(&[6, 4], 2)?;
    let longer = normal(&[2, 4, 4], 1)?;
    let error =
        message(attention_relative(&q, &q, &q, &RelativePositions { table: &wrong, ..positions }, None, 2));
    says(&error, &["attention_relative:", "[6, 4]", "[2, 3, 4]", "must be [5, 4]"]);
    let error = message(attention_relative(
        &q,
        &q,
        &q,
        &RelativePositions { position_bias: &p, ..positions },
        None,
        2,
    ));
    says(&error, &["attention_relative:", "position_bias [5, 4]", "must be [2, 2]"]);
    let error = message(attention_relative(&q, &longer, &longer, &positions, None, 2));
    says(&error, &["attention_relative:", "[2, 4, 4]", "length of q [2, 3, 4]"]);
    says(&message(attention_relative(&q, &q, &q, &positions, None, 3)), &["attention_relative:", "3 heads"]);
    says(
        &message(attention_relative(&q.get(0)?, &q, &q, &positions, None, 2)),
        &["attention_relative:", "[3, 4]"],
    );
    let keep = Tensor::new(&[[0u8, 0, 0], [1, 0, 0]], &Device::Cpu)?;
    let y = attention_relative(&q, &q, &q, &positions, Some(&keep), 2)?;
    assert_eq!(values(&y.get(0)?)?, [0.0; 12]);
    // One key takes all the weight.
    assert_eq!(values(&y.get(1)?)?, values(&q.get(1)?.get(0)?)?.repeat(3));
    let short = message(attention_relative(&q, &q, &q, &positions, Some(&keep.narrow(1, 0, 2)?), 2));
    says(&short, &["attention_relative:", "key mask must be [2, 3]"]);
    Ok(())
}
