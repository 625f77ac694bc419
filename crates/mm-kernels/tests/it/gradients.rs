//! Central differences in f64 over random shapes and layouts, and f32 against f64.

use crate::{assert_within, largest, normal};
use candle_core::{DType, Result, Tensor};
use mm_kernels::{StepRng, gradcheck};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// The ways an argument can lie in memory: contiguous, a transposed view, a narrowed view with a start offset.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lies {
    Plain,
    Transposed,
    Narrowed,
}

impl Lies {
    /// A view of logical shape `shape`, as a function of a leaf of shape `self.leaf(shape)`.
    fn view(self, leaf: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain => Ok(leaf.clone()),
            Self::Transposed => leaf.t(),
            Self::Narrowed => {
                let last = leaf.rank() - 1;
                leaf.narrow(0, 1, leaf.dim(0)? - 1)?.narrow(last, 1, leaf.dim(last)? - 2)
            }
        }
    }

    fn leaf(self, shape: &[usize]) -> Vec<usize> {
        let (mut leaf, last) = (shape.to_vec(), shape.len() - 1);
        match self {
            Self::Plain => {}
            Self::Transposed => leaf.swap(last - 1, last),
            Self::Narrowed => {
                leaf[0] += 1;
                leaf[last] += 2;
            }
        }
        leaf
    }
}

pub(crate) fn lies() -> impl Strategy<Value = Lies> {
    prop_oneof![Just(Lies::Plain), Just(Lies::Transposed), Just(Lies::Narrowed)]
}

/// Two or three dimensions of 1 to 5, a layout and a seed.
fn input() -> impl Strategy<Value = (Vec<usize>, Lies, u64)> {
    (prop::collection::vec(1usize..6, 2..4), lies(), any::<u64>())
}

/// The gradient of `f` in each argument by central differences, and its values and gradients in f32 against f64.
///
/// The first argument is a view that lies as `lies`; the others are contiguous.
#[track_caller]
pub(crate) fn check(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    lies: Lies,
    shapes: &[&[usize]],
    seed: u64,
) -> Result<()> {
    let mut leaves = Vec::new();
    for (i, shape) in shapes.iter().enumerate() {
        let shape = if i == 0 { lies.leaf(shape) } else { shape.to_vec() };
        leaves.push(normal(&shape, seed.wrapping_add(i as u64))?);
    }
    let viewed = |x: &[Tensor]| {
        let mut x = x.to_vec();
        x[0] = lies.view(&x[0])?;
        f(&x)
    };
    let report = gradcheck(viewed, &leaves, 1e-6, 1e-7)?;
    assert!(report.unreached.is_empty(), "{report:?}");

    let narrow = leaves.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<Vec<_>>>()?;
    let wide = narrow.iter().map(|x| x.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
    let (got, expected) = (viewed(&narrow)?, viewed(&wide)?);
    // The terms of a sum are near one even where the sum is near zero.
    assert_within("f32 against f64", &got, &expected, 1e-5 * largest(&expected)?.max(1.0))
}

proptest! {
    // A fixed seed, so that a run repeats; PROPTEST_RNG_SEED and PROPTEST_CASES look further.
    #![proptest_config(ProptestConfig {
        cases: 24,
        rng_seed: RngSeed::Fixed(20_240_607),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn linear((shape, lies, seed) in input(), out in 1usize..6) {
        let inputs = shape[shape.len() - 1];
        let (weight, bias) = ([out, inputs], [out]);
        check(|x| mm_kernels::linear(&x[0], &x[1], Some(&x[2])), lies, &[&shape, &weight, &bias], seed)?;
        check(|x| mm_kernels::linear(&x[0], &x[1], None), lies, &[&shape, &weight], seed)?;
        // The weight lies transposed.
        let turned = [inputs, out];
        check(|x| mm_kernels::linear(&x[0], &x[1].t()?, None), lies, &[&shape, &turned], seed)?;
    }

    #[test]
    fn activations((shape, lies, seed) in input()) {
        // Not relu: central differences fail within eps of its kink; see below.
        for f in [mm_kernels::gelu, mm_kernels::gelu_tanh, mm_kernels::silu, mm_kernels::sigmoid, mm_kernels::tanh] {
            check(|x| f(&x[0]), lies, &[&shape], seed)?;
        }
    }

    #[test]
    fn relu_away_from_its_kink((shape, lies, seed) in input()) {
        // Adding the sign keeps every value at least 1 from zero.
        let away = |x: &Tensor| x + x.detach().sign()?;
        check(|x| mm_kernels::relu(&away(&x[0])?), lies, &[&shape], seed)?;
    }

    #[test]
    fn softmax((shape, lies, seed) in input()) {
        check(|x| mm_kernels::softmax_last(&x[0]), lies, &[&shape], seed)?;
        check(|x| mm_kernels::log_softmax_last(&x[0]), lies, &[&shape], seed)?;
    }

    #[test]
    fn layer_norm((mut shape, lies, seed) in input()) {
        let last = shape.len() - 1;
        shape[last] += 2; // of one or two values the normal form is constant, or nearly a step
        let d = [shape[last]];
        // A large eps keeps the function smooth where a row happens to be nearly constant.
        let f = |x: &[Tensor]| mm_kernels::layer_norm(&x[0], Some(&x[1]), Some(&x[2]), 0.1);
        check(f, lies, &[&shape, &d, &d], seed)?;
        check(|x| mm_kernels::layer_norm(&x[0], None, None, 0.1), lies, &[&shape], seed)?;
        check(|x| mm_kernels::layer_norm(&x[0], Some(&x[1]), None, 0.1), lies, &[&shape, &d], seed)?;
    }

    #[test]
    fn batch_norm((mut shape, lies, seed) in input()) {
        shape[0] += 1;
        let c = [shape[1]];
        let train = |x: &[Tensor], w: Option<&Tensor>, b: Option<&Tensor>| {
            mm_kernels::batch_norm_train(&x[0], w, b, 0.1).map(|out| out.y)
        };
        check(|x| train(x, Some(&x[1]), Some(&x[2])), lies, &[&shape, &c, &c], seed)?;
        check(|x| train(x, None, None), lies, &[&shape], seed)?;
        let (mean, var) = (normal(&c, 1)?, normal(&c, 2)?.sqr()?);
        let eval = |x: &[Tensor]| {
            let (mean, var) = (mean.to_dtype(x[0].dtype())?, var.to_dtype(x[0].dtype())?);
            mm_kernels::batch_norm_eval(&x[0], &mean, &var, Some(&x[1]), Some(&x[2]), 0.1)
        };
        check(eval, lies, &[&shape, &c, &c], seed)?;
    }

    #[test]
    fn cross_entropy(b in 1usize..6, c in 1usize..6, lies in lies(), seed: u64) {
        let mut draws = StepRng::new(seed).draws();
        let labels: Vec<u32> = (0..b).map(|_| draws.below(c) as u32).collect();
        let weights: Vec<f64> = (0..b).map(|_| draws.uniform()).collect();
        let targets = normal(&[b, c], seed)?.abs()?;
        for weights in [None, Some(weights.as_slice())] {
            check(|x| mm_kernels::cross_entropy(&x[0], &labels, weights), lies, &[&[b, c]], seed)?;
            let soft = |x: &[Tensor]| {
                mm_kernels::cross_entropy_soft(&x[0], &targets.to_dtype(x[0].dtype())?, weights)
            };
            check(soft, lies, &[&[b, c]], seed)?;
        }
    }

    #[test]
    fn dropout((shape, lies, seed) in input(), p in 0.0f64..0.9) {
        check(|x| mm_kernels::dropout(&x[0], p, StepRng::new(seed)), lies, &[&shape], seed)?;
    }

    #[test]
    fn attention(b in 1usize..3, n in 1usize..4, m in 1usize..4, heads in 1usize..3, lies in lies(), seed: u64) {
        let d = 3 * heads;
        let shapes: [&[usize]; 3] = [&[b, n, d], &[b, m, d], &[b, m, d]];
        check(|x| mm_kernels::attention(&x[0], &x[1], &x[2], None, heads), lies, &shapes, seed)?;
        let bits = (0..b * m).map(|i| u8::from(seed >> i & 1 == 1)).collect();
        let keep = Tensor::from_vec(bits, (b, m), &candle_core::Device::Cpu)?;
        check(|x| mm_kernels::attention(&x[0], &x[1], &x[2], Some(&keep), heads), lies, &shapes, seed)?;
        let shapes = [shapes[0], shapes[1], shapes[2], &[b, 1, 1, m]];
        check(|x| mm_kernels::attention(&x[0], &x[1], &x[2], Some(&x[3]), heads), lies, &shapes, seed)?;
    }
}
