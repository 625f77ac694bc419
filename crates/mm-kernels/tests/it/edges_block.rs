//! Blocks of a residual network: what is rejected with which words, batches of none and of one, frozen parameters, a
//! second backward pass, gradients, and the same bits for any number of threads.

use crate::{message, normal, says, values};
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_kernels::{
    BlockConfig, BlockOut, Conv2dConfig, ConvNorm, PoolConfig, Shortcut, Statistics, conv_norm_pool,
    conv2d_nhwc, gradcheck, residual_block,
};
use rayon::ThreadPoolBuilder;

/// Weight, scale, shift, running mean and running variance of a layer.
type Parts = [Tensor; 5];

fn parts(o: usize, i: usize, k: usize, seed: u64) -> Result<Parts> {
    Ok([
        normal(&[o, i, k, k], seed)?,
        normal(&[o], seed + 1)?,
        normal(&[o], seed + 2)?,
        normal(&[o], seed + 3)?,
        (normal(&[o], seed + 4)?.sqr()? + 0.5)?,
    ])
}

fn layer(p: &[Tensor], stride: usize) -> ConvNorm<'_> {
    let padding = p[0].dims().get(2).map_or(0, |k| k / 2);
    ConvNorm { weight: &p[0], scale: &p[1], shift: &p[2], running: (&p[3], &p[4]), stride, padding }
}

const TRAIN: BlockConfig =
    BlockConfig { statistics: Statistics::Batch, eps: 1e-5, precision: mm_kernels::Precision::F32 };
const EVAL: BlockConfig = BlockConfig { statistics: Statistics::Running, ..TRAIN };

fn zeros(shape: &[usize]) -> Result<Tensor> {
    Tensor::zeros(shape, DType::F64, &Device::Cpu)
}

/// The same layer in both operations.
fn both(x: &Tensor, p: &Parts, config: &BlockConfig) -> [(&'static str, Result<BlockOut>); 2] {
    let pool = PoolConfig::square(3, 2, 1);
    [
        ("residual_block:", residual_block(x, &[layer(p, 1)], Shortcut::None, config)),
        ("conv_norm_pool:", conv_norm_pool(x, &layer(p, 1), &pool, config)),
    ]
}

#[test]
fn the_default_settings_are_those_of_training() {
    assert_eq!(BlockConfig::default(), TRAIN);
}

#[test]
fn what_does_not_fit_is_named_with_its_shapes_and_the_rule() -> Result<()> {
    let (x, good) = (normal(&[2, 6, 5, 3], 1)?, parts(4, 3, 3, 2)?);
    let wrong = normal(&[5], 9)?;
    for (k, what) in
        [(1, "scale [5]"), (2, "shift [5]"), (3, "running mean [5]"), (4, "running variance [5]")]
    {
        let mut p = good.clone();
        p[k] = wrong.clone();
        for config in [TRAIN, EVAL] {
            for (op, out) in both(&x, &p, &config) {
                says(&message(out), &[op, what, "[4, 3, 3, 3]", "must be [4]"]);
            }
        }
    }
    let of_weight = |shape: &[usize]| -> Result<Parts> {
        let mut p = good.clone();
        p[0] = normal(shape, 2)?;
        Ok(p)
    };
    for (weight, parts) in [
        (&[4, 2, 3, 3][..], &["[4, 2, 3, 3]", "3 channels", "must be 3"][..]),
        (&[4, 3, 3], &["[4, 3, 3]", "(out, in / groups, kernel height, kernel width)"]),
        (&[4, 3, 0, 0], &["kernel must be at least 1"]),
        (&[0, 3, 3, 3], &["at least 1", "[0, 3, 3, 3]"]),
    ] {
        for (op, out) in both(&x, &of_weight(weight)?, &TRAIN) {
            says(&message(out), &[&[op], parts].concat());
        }
    }
    for (op, out) in both(&normal(&[6, 5, 3], 1)?, &good, &TRAIN) {
        says(&message(out), &[op, "(batch, height, width, channels)", "[6, 5, 3]"]);
    }
    let mut huge = layer(&good, 1);
    (huge.padding, huge.stride) = (0, 0);
    let stride = message(residual_block(&x, &[huge], Shortcut::None, &TRAIN));
    says(&stride, &["residual_block:", "stride must be at least 1"]);
    let small = x.narrow(1, 0, 2)?;
    huge.stride = 1;
    for error in [
        message(residual_block(&small, &[huge], Shortcut::None, &TRAIN)),
        message(conv_norm_pool(&small, &huge, &PoolConfig::square(1, 1, 0), &TRAIN)),
    ] {
        says(&error, &["kernel of 3", "height of 2", "at most 2"]);
    }
    huge.padding = usize::MAX;
    says(&message(residual_block(&x, &[huge], Shortcut::None, &TRAIN)), &["residual_block:", "too large"]);
    Ok(())
}

#[test]
fn numbers_of_another_type_are_rejected_by_name() -> Result<()> {
    let (x, good) = (normal(&[2, 6, 5, 3], 1)?, parts(4, 3, 3, 2)?);
    for (op, out) in both(&x.to_dtype(DType::BF16)?, &good, &TRAIN) {
        says(&message(out), &[&op[..op.len() - 1], "BF16"]);
    }
    for k in 0..3 {
        let mut p = good.clone();
        p[k] = p[k].to_dtype(DType::F32)?;
        for (_, out) in both(&x, &p, &TRAIN) {
            says(&message(out), &["F32", "F64"]);
        }
    }
    Ok(())
}

#[test]
fn a_shortcut_of_another_shape_and_no_layers_are_rejected() -> Result<()> {
    let x = normal(&[2, 6, 5, 3], 1)?;
    let (wide, same) = (parts(4, 3, 3, 2)?, parts(3, 3, 3, 3)?);
    for (p, stride, got) in [(&wide, 1, "[2, 6, 5, 4]"), (&same, 2, "[2, 3, 3, 3]")] {
        let error = message(residual_block(&x, &[layer(p, stride)], Shortcut::Identity, &TRAIN));
        says(&error, &["residual_block:", "shortcut", "[2, 6, 5, 3]", got, "must be the same"]);
    }
    let narrow = parts(3, 3, 1, 4)?;
    let projection = Shortcut::Projection(layer(&narrow, 2));
    let error = message(residual_block(&x, &[layer(&wide, 1)], projection, &TRAIN));
    says(&error, &["residual_block:", "shortcut", "[2, 3, 3, 3]", "[2, 6, 5, 4]", "must be the same"]);
    for shortcut in [Shortcut::None, Shortcut::Identity] {
        says(&message(residual_block(&x, &[], shortcut, &TRAIN)), &["residual_block:", "at least one layer"]);
    }
    Ok(())
}

#[test]
fn a_window_that_does_not_fit_is_rejected() -> Result<()> {
    let (x, p) = (normal(&[2, 6, 5, 3], 1)?, parts(4, 3, 3, 2)?);
    let plain = PoolConfig::square(3, 2, 1);
    for (pool, parts) in [
        (PoolConfig::square(9, 1, 0), &["kernel of 9", "height of 6", "at most 6"][..]),
        (PoolConfig { kernel: (3, 8), ..plain }, &["kernel of 8", "width of 5", "at most 7"]),
        (PoolConfig::square(3, 0, 1), &["stride must be at least 1"]),
        (PoolConfig::square(0, 1, 0), &["kernel must be at least 1"]),
        (PoolConfig::square(3, 1, 2), &["at most half"]),
        (PoolConfig::square(16, 1, 0), &["at most 255"]),
        (PoolConfig { dilation: (2, 1), ..plain }, &["no dilation"]),
        (PoolConfig { kernel: (usize::MAX, 2), ..plain }, &["at most 255"]),
    ] {
        let error = message(conv_norm_pool(&x, &layer(&p, 1), &pool, &TRAIN));
        says(&error, &[&["conv_norm_pool:"], parts].concat());
    }
    Ok(())
}

/// One value per channel has no variance: an error in training, a result in evaluation.
#[test]
fn one_value_per_channel_and_empty_batches() -> Result<()> {
    let p = parts(4, 3, 3, 2)?;
    for (op, out) in both(&normal(&[1, 1, 1, 3], 1)?, &p, &TRAIN) {
        says(&message(out), &[op, "more than 1 value per channel", "1x1x1x4"]);
    }
    for (_, out) in both(&normal(&[1, 1, 1, 3], 1)?, &p, &EVAL) {
        assert_eq!(out?.y.dims(), [1, 1, 1, 4]);
    }
    for (op, out) in both(&zeros(&[0, 6, 5, 3])?, &p, &TRAIN) {
        says(&message(out), &[op, "more than 1 value per channel", "0x6x5x4"]);
    }
    // Evaluation of no rows gives no rows, and gradients that are zero.
    let (x, w) = (Var::from_tensor(&zeros(&[0, 6, 5, 3])?)?, Var::from_tensor(&p[0])?);
    let mut leaves = p.clone();
    leaves[0] = w.as_tensor().clone();
    for ((op, out), shape) in both(&x, &leaves, &EVAL).into_iter().zip([[0, 6, 5, 4], [0, 3, 3, 4]]) {
        let out = out?;
        assert_eq!(out.y.dims(), shape, "{op}");
        assert!(out.statistics.is_empty());
        let grads = out.y.backward()?;
        assert_eq!(grads.get(&x).map(|g| g.dims().to_vec()), Some(vec![0, 6, 5, 3]), "{op}");
        let dw = grads.get(&w).expect("a gradient of the weight");
        assert!(values(dw)?.iter().all(|&v| v == 0.0), "{op}");
    }
    for size in [[2, 0, 5, 3], [2, 6, 0, 3], [2, 6, 5, 0]] {
        for (op, out) in both(&zeros(&size)?, &p, &EVAL) {
            says(&message(out), &[op]);
        }
    }
    Ok(())
}

#[test]
fn rows_of_a_batch_are_alone_in_evaluation() -> Result<()> {
    let (x, p) = (normal(&[3, 6, 5, 3], 1)?, parts(4, 3, 3, 2)?);
    for k in 0..2 {
        let run = |x: &Tensor| -> Result<Tensor> {
            let [block, stem] = both(x, &p, &EVAL);
            Ok(if k == 0 { block.1?.y } else { stem.1?.y })
        };
        let all = run(&x)?;
        for row in 0..3 {
            let one = run(&x.narrow(0, row, 1)?)?;
            crate::assert_close("one row", &one, &all.narrow(0, row, 1)?, 1e-14)?;
        }
    }
    Ok(())
}

/// A block of two layers with a projection, and a stem before it: x, then three parameters of each of four layers.
fn network(x: &[Tensor], running: &[Tensor], config: &BlockConfig) -> Result<Tensor> {
    let at = |k: usize, stride: usize| {
        let padding = x[1 + 3 * k].dims()[2] / 2;
        let p = &x[1 + 3 * k..];
        let running = (&running[2 * k], &running[2 * k + 1]);
        ConvNorm { weight: &p[0], scale: &p[1], shift: &p[2], running, stride, padding }
    };
    let stem = conv_norm_pool(&x[0], &at(0, 1), &PoolConfig::square(3, 2, 1), config)?.y;
    let shortcut = Shortcut::Projection(at(3, 2));
    Ok(residual_block(&stem, &[at(1, 2), at(2, 1)], shortcut, config)?.y)
}

fn inputs(x: [usize; 4], wide: usize) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let (mut all, mut running) = (vec![normal(&x, 1)?], Vec::new());
    for (k, (o, i, size)) in
        [(wide, x[3], 3), (wide + 1, wide, 3), (wide + 1, wide + 1, 3), (wide + 1, wide, 1)]
            .into_iter()
            .enumerate()
    {
        let [weight, scale, shift, mean, variance] = parts(o, i, size, 10 * (k as u64 + 1))?;
        all.extend([weight, scale, shift]);
        running.extend([mean, variance]);
    }
    Ok((all, running))
}

#[test]
fn frozen_parameters_get_no_gradient_and_change_no_other() -> Result<()> {
    let (x, running) = inputs([2, 9, 8, 3], 4)?;
    let vars: Vec<Var> = x.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let all = network(&tracked, &running, &TRAIN)?.backward()?;
    for frozen in 0..x.len() {
        let mut mixed = tracked.clone();
        mixed[frozen] = x[frozen].clone();
        let grads = network(&mixed, &running, &TRAIN)?.backward()?;
        for (k, leaf) in mixed.iter().enumerate() {
            match (k == frozen, grads.get(leaf)) {
                (true, got) => assert!(got.is_none(), "input {k} is frozen"),
                (false, got) => {
                    let got = got.expect("a gradient");
                    let expected = all.get(&tracked[k]).expect("a gradient");
                    assert_eq!(values(got)?, values(expected)?, "input {k} where {frozen} is frozen");
                }
            }
        }
    }
    let nothing = network(&x, &running, &TRAIN)?;
    assert!(!nothing.track_op(), "outside every graph there is no graph");
    Ok(())
}

#[test]
fn a_second_backward_pass_gives_the_same_gradients() -> Result<()> {
    let (x, running) = inputs([2, 9, 8, 3], 4)?;
    let vars: Vec<Var> = x.iter().map(Var::from_tensor).collect::<Result<_>>()?;
    let tracked: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = network(&tracked, &running, &TRAIN)?;
    let (first, second) = (y.backward()?, y.backward()?);
    for (k, leaf) in tracked.iter().enumerate() {
        let of = |grads: &candle_core::backprop::GradStore| values(grads.get(leaf).expect("a gradient"));
        assert_eq!(of(&first)?, of(&second)?, "input {k}");
    }
    Ok(())
}

#[test]
fn gradients_are_those_of_central_differences() -> Result<()> {
    for config in [TRAIN, EVAL] {
        let (x, running) = inputs([2, 7, 6, 2], 3)?;
        let report = gradcheck(|x| network(x, &running, &config), &x, 1e-6, 1e-6)?;
        assert_eq!(report.elements, x.iter().map(Tensor::elem_count).sum::<usize>());
        // Each alone, so that an error of one is not hidden behind the ReLU of the other; batch of one.
        let p = parts(3, 2, 3, 5)?;
        let alone = [normal(&[1, 5, 6, 2], 4)?, p[0].clone(), p[1].clone(), p[2].clone()];
        for (k, name) in ["residual_block", "conv_norm_pool"].into_iter().enumerate() {
            let f = |x: &[Tensor]| -> Result<Tensor> {
                let p = [x[1].clone(), x[2].clone(), x[3].clone(), p[3].clone(), p[4].clone()];
                let [block, stem] = both(&x[0], &p, &config);
                Ok(if k == 0 { block.1?.y } else { stem.1?.y })
            };
            let report = gradcheck(f, &alone, 1e-6, 1e-6)?;
            assert!(report.unreached.is_empty(), "{name}");
        }
        // The identity as shortcut.
        let square = parts(2, 2, 3, 6)?;
        let (x, p) = (alone[0].clone(), &square);
        let f = |x: &[Tensor]| -> Result<Tensor> {
            let p = [x[1].clone(), x[2].clone(), x[3].clone(), p[3].clone(), p[4].clone()];
            let layers = [layer(&p, 1), layer(&p, 1)];
            Ok(residual_block(&x[0], &layers, Shortcut::Identity, &config)?.y)
        };
        gradcheck(f, &[x, p[0].clone(), p[1].clone(), p[2].clone()], 1e-6, 1e-6)?;
    }
    Ok(())
}

/// The bits of a result and of all gradients, in a pool of some threads.
fn bits(
    threads: usize,
    x: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
) -> Result<Vec<Vec<u32>>> {
    let run = || -> Result<Vec<Vec<u32>>> {
        let vars: Vec<Var> = x.iter().map(Var::from_tensor).collect::<Result<_>>()?;
        let leaves: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&leaves)?;
        let grads = y.sqr()?.backward()?;
        let tensors = std::iter::once(&y).chain(leaves.iter().map(|l| grads.get(l).expect("a gradient")));
        tensors
            .map(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect()))
            .collect()
    };
    ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(run)
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Result<()> {
    let single = |x: &[Tensor]| x.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<Vec<_>>>();
    for (shape, wide) in [([3, 23, 21, 3], 20), ([5, 40, 37, 1], 33)] {
        let (x, running) = inputs(shape, wide)?;
        let (x, running) = (single(&x)?, single(&running)?);
        for config in [TRAIN, EVAL] {
            let f = |x: &[Tensor]| network(x, &running, &config);
            let (one, three) = (bits(1, &x, f)?, bits(3, &x, f)?);
            assert_eq!(one.len(), 14);
            assert!(one == three, "{shape:?} {config:?}");
        }
    }
    for (x, w, stride) in [
        ([4, 28, 28, 64], [128, 64, 3, 3], 2),
        ([3, 30, 31, 40], [48, 40, 3, 3], 1),
        ([2, 50, 50, 3], [64, 3, 7, 7], 2),
        ([6, 14, 13, 96], [33, 96, 1, 1], 1),
    ] {
        let inputs = single(&[normal(&x, 1)?, normal(&w, 2)?, normal(&w[..1], 3)?])?;
        let padding = (w[2] / 2, w[3] / 2);
        let config = Conv2dConfig { stride: (stride, stride), padding, ..Conv2dConfig::default() };
        let f = |x: &[Tensor]| conv2d_nhwc(&x[0], &x[1], Some(&x[2]), &config);
        assert!(bits(1, &inputs, f)? == bits(3, &inputs, f)?, "{x:?} {w:?}");
    }
    Ok(())
}
