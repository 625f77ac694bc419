//! Central differences in f64 over random shapes, settings and layouts: convolutions, pools and what goes
//! with them.

use crate::gradients::{check, lies};
use candle_core::{D, Device, Result, Tensor};
use mm_kernels::{Conv1dConfig, Conv2dConfig, PoolConfig, RelativePositions, StepRng};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// One axis of a window: size of the input, kernel, stride, padding, dilation.
type Axis = (usize, usize, usize, usize, usize);

/// Sizes and kernels of 1 to 5 with every remainder of a stride; kernels above the input are given the
/// padding they need.
fn axis() -> impl Strategy<Value = Axis> {
    (1usize..6, 1usize..6, 1usize..4, 0usize..3, 1usize..3).prop_map(
        |(size, kernel, stride, padding, dilation)| {
            let missing = ((kernel - 1) * dilation + 1).saturating_sub(size);
            (size, kernel, stride, padding.max(missing.div_ceil(2)), dilation)
        },
    )
}

/// As [`axis`], with padding of at most half of the kernel, and no window that lies outside the input.
fn pooled_axis() -> impl Strategy<Value = Axis> {
    (1usize..7, 1usize..5, 1usize..4, 0usize..3, 1usize..3).prop_map(
        |(size, kernel, stride, padding, dilation)| {
            let padding = padding.min(kernel / 2);
            let dilation = if padding == 0 { dilation } else { 1 };
            (size.max((kernel - 1) * dilation + 1 - padding), kernel, stride, padding, dilation)
        },
    )
}

fn pool_config(h: Axis, w: Axis, count_include_pad: bool) -> PoolConfig {
    PoolConfig {
        kernel: (h.1, w.1),
        stride: (h.2, w.2),
        padding: (h.3, w.3),
        dilation: (h.4, w.4),
        count_include_pad,
    }
}

proptest! {
    // A fixed seed, so that a run repeats; PROPTEST_RNG_SEED and PROPTEST_CASES look further.
    #![proptest_config(ProptestConfig {
        cases: 16,
        rng_seed: RngSeed::Fixed(20_240_607),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn conv2d(
        (h, w, b) in (axis(), axis(), 1usize..3),
        (groups, ci, co) in (1usize..3, 1usize..3, 1usize..3),
        (lies, bias, seed) in (lies(), any::<bool>(), any::<u64>()),
    ) {
        let config = Conv2dConfig {
            stride: (h.2, w.2),
            padding: (h.3, w.3),
            dilation: (h.4, w.4),
            groups,
            ..Conv2dConfig::default()
        };
        let (ci_all, weight, co) = (groups * ci, [groups * co, ci, h.1, w.1], [groups * co]);
        let (first, last): ([usize; 4], [usize; 4]) = ([b, ci_all, h.0, w.0], [b, h.0, w.0, ci_all]);
        let shapes = |x| if bias { vec![x, &weight[..], &co[..]] } else { vec![x, &weight[..]] };
        check(|x| mm_kernels::conv2d(&x[0], &x[1], x.get(2), &config), lies, &shapes(&first[..]), seed)?;
        check(|x| mm_kernels::conv2d_nhwc(&x[0], &x[1], x.get(2), &config), lies, &shapes(&last[..]), seed)?;
    }

    #[test]
    fn conv1d(
        (l, b) in (axis(), 1usize..4),
        (groups, ci, co) in (1usize..4, 1usize..4, 1usize..4),
        (lies, bias, seed) in (lies(), any::<bool>(), any::<u64>()),
    ) {
        let (size, kernel, stride, padding, dilation) = l;
        let config = Conv1dConfig { stride, padding, dilation, groups, ..Conv1dConfig::default() };
        let (weight, channels) = ([groups * co, ci, kernel], [groups * co]);
        let (first, last) = ([b, groups * ci, size], [b, size, groups * ci]);
        let shapes = |x| if bias { vec![x, &weight[..], &channels[..]] } else { vec![x, &weight[..]] };
        check(|x| mm_kernels::conv1d(&x[0], &x[1], x.get(2), &config), lies, &shapes(&first[..]), seed)?;
        check(|x| mm_kernels::conv1d_nlc(&x[0], &x[1], x.get(2), &config), lies, &shapes(&last[..]), seed)?;
    }

    #[test]
    fn conv2d_with_a_weight_that_lies_turned(c in 1usize..4, o in 1usize..4, seed: u64) {
        let shapes: [&[usize]; 2] = [&[2, 3, 4, c], &[3, 2, c, o]];
        let config = Conv2dConfig::default();
        let turned = |x: &[Tensor]| {
            mm_kernels::conv2d_nhwc(&x[0], &x[1].permute((3, 2, 0, 1))?, None, &config)
        };
        check(turned, crate::gradients::Lies::Plain, &shapes, seed)?;
    }

    #[test]
    fn pools(
        (h, w, b, c) in (pooled_axis(), pooled_axis(), 1usize..3, 1usize..6),
        (lies, include, seed) in (lies(), any::<bool>(), any::<u64>()),
    ) {
        type Op = fn(&Tensor, &PoolConfig) -> Result<Tensor>;
        let config = pool_config(h, w, include);
        let ops: [(Op, Op); 2] = [
            (mm_kernels::max_pool2d, mm_kernels::max_pool2d_nhwc),
            (mm_kernels::avg_pool2d, mm_kernels::avg_pool2d_nhwc),
        ];
        for (first, last) in ops {
            check(|x| first(&x[0], &config), lies, &[&[b, c, h.0, w.0]], seed)?;
            check(|x| last(&x[0], &config), lies, &[&[b, h.0, w.0, c]], seed)?;
        }
    }

    #[test]
    fn adaptive_pools(
        (h, w, b, c) in (1usize..6, 1usize..6, 1usize..3, 1usize..4),
        output in (1usize..7, 1usize..7),
        (lies, seed) in (lies(), any::<u64>()),
    ) {
        check(|x| mm_kernels::adaptive_avg_pool2d(&x[0], output), lies, &[&[b, c, h, w]], seed)?;
        check(|x| mm_kernels::adaptive_avg_pool2d_nhwc(&x[0], output), lies, &[&[b, h, w, c]], seed)?;
    }

    #[test]
    fn group_norm(
        (b, groups, per_group) in (1usize..4, 1usize..4, 1usize..4),
        places in prop::collection::vec(2usize..4, 1..3),
        (lies, seed) in (lies(), any::<u64>()),
    ) {
        let c = [groups * per_group];
        let first = [&[b, c[0]], &places[..]].concat();
        let last = [&[b], &places[..], &c].concat();
        // A large eps keeps the function smooth where a group happens to be nearly constant.
        let op = |x: &[Tensor]| mm_kernels::group_norm(&x[0], groups, x.get(1), x.get(2), 0.1);
        check(op, lies, &[&first, &c, &c], seed)?;
        check(op, lies, &[&first], seed)?;
        let op = |x: &[Tensor]| mm_kernels::group_norm_nhwc(&x[0], groups, x.get(1), x.get(2), 0.1);
        check(op, lies, &[&last, &c, &c], seed)?;
        check(op, lies, &[&last, &c], seed)?;
    }

    #[test]
    fn glu(mut shape in prop::collection::vec(1usize..4, 2..4), dim in 0usize..2, lies in lies(), seed: u64) {
        let last = shape.len() - 1;
        shape[dim] *= 2;
        check(|x| mm_kernels::glu(&x[0], dim), lies, &[&shape], seed)?;
        shape[last] *= 2;
        check(|x| mm_kernels::glu(&x[0], D::Minus1), lies, &[&shape], seed)?;
    }

    #[test]
    fn embedding(
        (rows, width, n) in (1usize..5, 1usize..5, 1usize..7),
        (lies, seed) in (lies(), any::<u64>()),
    ) {
        let mut draws = StepRng::new(seed).draws();
        let ids: Vec<u32> = (0..n).map(|_| draws.below(rows) as u32).collect();
        let ids = Tensor::from_vec(ids, (n, 1), &Device::Cpu)?;
        check(|x| mm_kernels::embedding(&ids, &x[0], None), lies, &[&[rows, width]], seed)?;
    }

    #[test]
    fn attention_relative(b in 1usize..3, n in 1usize..5, heads in 1usize..3, lies in lies(), seed: u64) {
        let d = 3 * heads;
        let (x, p, bias): ([usize; 3], [usize; 2], [usize; 2]) = ([b, n, d], [2 * n - 1, d], [heads, 3]);
        let op = |x: &[Tensor], mask: Option<&Tensor>| {
            let positions = RelativePositions { table: &x[3], content_bias: &x[4], position_bias: &x[5] };
            mm_kernels::attention_relative(&x[0], &x[1], &x[2], &positions, mask, heads)
        };
        let shapes: [&[usize]; 7] = [&x, &x, &x, &p, &bias, &bias, &[b, 1, n, n]];
        check(|x| op(x, None), lies, &shapes[..6], seed)?;
        let bits = (0..b * n).map(|i| u8::from(seed >> i & 1 == 1)).collect();
        let keep = Tensor::from_vec(bits, (b, n), &Device::Cpu)?;
        check(|x| op(x, Some(&keep)), lies, &shapes[..6], seed)?;
        check(|x| op(x, Some(&x[6])), lies, &shapes, seed)?;
    }
}
