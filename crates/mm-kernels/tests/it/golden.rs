//! Values and gradients against PyTorch, in f64 and f32. The recipe: tests/golden/generate/operations.py.

use crate::{assert_close, values};
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_kernels::{AdamStep, SgdStep};
use std::collections::BTreeMap;

pub(crate) const DTYPES: [(DType, f64); 2] = [(DType::F64, 1e-9), (DType::F32, 2e-5)];

pub(crate) struct Golden(pub(crate) BTreeMap<String, Tensor>);

impl Golden {
    fn load() -> Result<Self> {
        Self::open("kernels")
    }

    /// Reads `tests/golden/<file>.safetensors`.
    pub(crate) fn open(file: &str) -> Result<Self> {
        let path = format!("{}/../../tests/golden/{file}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Ok(Self(candle_core::safetensors::load(path, &Device::Cpu)?.into_iter().collect()))
    }

    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no tensor {name} in the file"))
    }

    /// Value and input gradients of one case, in both dtypes.
    pub(crate) fn check(
        &self,
        case: &str,
        inputs: &[&str],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        for (dtype, tol) in DTYPES {
            let vars = inputs
                .iter()
                .map(|name| Var::from_tensor(&self.get(&format!("{case}.{name}")).to_dtype(dtype)?))
                .collect::<Result<Vec<_>>>()?;
            let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
            let y = f(&tensors)?;
            assert_eq!(y.dtype(), dtype, "{case}");
            assert_close(&format!("{case} {dtype:?}"), &y, self.get(&format!("{case}.y")), tol)?;
            let grads = (y * self.get(&format!("{case}.r")).to_dtype(dtype)?)?.sum_all()?.backward()?;
            for (name, tensor) in inputs.iter().zip(&tensors) {
                let what = format!("{case} {dtype:?}, gradient of {name}");
                let got = grads.get(tensor).unwrap_or_else(|| panic!("{what} is missing"));
                assert_close(&what, got, self.get(&format!("{case}.d{name}")), tol)?;
            }
        }
        Ok(())
    }
}

#[test]
fn linear() -> Result<()> {
    let golden = Golden::load()?;
    for case in ["linear", "linear_rank3"] {
        golden
            .check(case, &["input", "weight", "bias"], |x| mm_kernels::linear(&x[0], &x[1], Some(&x[2])))?;
    }
    Ok(())
}

#[test]
fn activations_and_softmax() -> Result<()> {
    type Op = fn(&Tensor) -> Result<Tensor>;
    let golden = Golden::load()?;
    let cases: [(&str, Op); 8] = [
        ("relu", mm_kernels::relu),
        ("gelu", mm_kernels::gelu),
        ("gelu_tanh", mm_kernels::gelu_tanh),
        ("silu", mm_kernels::silu),
        ("sigmoid", mm_kernels::sigmoid),
        ("tanh", mm_kernels::tanh),
        ("softmax", mm_kernels::softmax_last),
        ("log_softmax", mm_kernels::log_softmax_last),
    ];
    for (case, f) in cases {
        golden.check(case, &["input"], |x| f(&x[0]))?;
    }
    Ok(())
}

#[test]
fn layer_norm() -> Result<()> {
    Golden::load()?.check("layer_norm", &["input", "weight", "bias"], |x| {
        mm_kernels::layer_norm(&x[0], Some(&x[1]), Some(&x[2]), 1e-5)
    })
}

#[test]
fn batch_norm() -> Result<()> {
    let golden = Golden::load()?;
    for case in ["batch_norm", "batch_norm_2d"] {
        let before = ["mean", "var"].map(|s| golden.get(&format!("{case}.running_{s}_before")));
        let after = ["mean", "var"].map(|s| golden.get(&format!("{case}.running_{s}_after")));
        golden.check(&format!("{case}_eval"), &["input", "weight", "bias"], |x| {
            let [mean, var] = [before[0].to_dtype(x[0].dtype())?, before[1].to_dtype(x[0].dtype())?];
            mm_kernels::batch_norm_eval(&x[0], &mean, &var, Some(&x[1]), Some(&x[2]), 1e-5)
        })?;
        golden.check(&format!("{case}_train"), &["input", "weight", "bias"], |x| {
            let dtype = x[0].dtype();
            let tol = if dtype == DType::F64 { 1e-9 } else { 2e-5 };
            let out = mm_kernels::batch_norm_train(&x[0], Some(&x[1]), Some(&x[2]), 1e-5)?;
            for (i, new) in [&out.mean, &out.var_unbiased].into_iter().enumerate() {
                let running = Var::from_tensor(&before[i].to_dtype(dtype)?)?;
                mm_kernels::update_running(&running, new, 0.1)?;
                assert_close("running statistics", running.as_tensor(), after[i], tol)?;
            }
            Ok(out.y)
        })?;
    }
    Ok(())
}

const LABELS: [u32; 6] = [0, 3, 1, 1, 2, 0];

#[test]
fn cross_entropy() -> Result<()> {
    let golden = Golden::load()?;
    let weights = values(golden.get("cross_entropy.weights"))?;
    for (suffix, weights) in [("", None), ("_weighted", Some(weights.as_slice()))] {
        golden.check(&format!("cross_entropy_hard{suffix}"), &["logits"], |x| {
            mm_kernels::cross_entropy(&x[0], &LABELS, weights)
        })?;
        golden.check(&format!("cross_entropy_soft{suffix}"), &["logits"], |x| {
            let targets = golden.get("cross_entropy.targets").to_dtype(x[0].dtype())?;
            mm_kernels::cross_entropy_soft(&x[0], &targets, weights)
        })?;
    }
    let logits = golden.get("cross_entropy_hard.logits");
    let expected = values(golden.get("cross_entropy.true_class_probability"))?;
    for (dtype, tol) in DTYPES {
        let got = mm_kernels::true_class_probability(&logits.to_dtype(dtype)?, &LABELS)?;
        assert!(got.iter().zip(&expected).all(|(g, e)| (g - e).abs() <= tol), "{got:?} {expected:?}");
    }
    Ok(())
}

#[test]
fn attention() -> Result<()> {
    let golden = Golden::load()?;
    let mask = golden.get("attention.mask");
    golden.check("attention", &["q", "k", "v"], |x| mm_kernels::attention(&x[0], &x[1], &x[2], None, 2))?;
    golden.check("attention_masked", &["q", "k", "v"], |x| {
        mm_kernels::attention(&x[0], &x[1], &x[2], Some(mask), 2)
    })
}

/// Runs the ten steps of a case in both dtypes; `step` is given the parameter, a gradient, two states and the step number.
fn trajectory(case: &str, step: impl Fn(&Var, &Tensor, &Var, &Var, u64) -> Result<()>) -> Result<()> {
    let golden = Golden::load()?;
    for (dtype, tol) in DTYPES {
        let start = golden.get("optim.start").to_dtype(dtype)?;
        let param = Var::from_tensor(&start)?;
        let seen = param.as_tensor().clone();
        let states = [Var::from_tensor(&start.zeros_like()?)?, Var::from_tensor(&start.zeros_like()?)?];
        let gradients = golden.get("optim.gradients").to_dtype(dtype)?;
        for i in 0..10 {
            step(&param, &gradients.get(i)?, &states[0], &states[1], i as u64 + 1)?;
            let expected = golden.get(&format!("optim.{case}")).get(i)?;
            assert_close(&format!("{case} {dtype:?} after step {}", i + 1), &seen, &expected, tol)?;
        }
    }
    Ok(())
}

#[test]
fn sgd_trajectories() -> Result<()> {
    let plain = SgdStep { lr: 0.1, ..SgdStep::default() };
    let heavy = SgdStep { momentum: 0.9, ..plain };
    let cases = [
        ("sgd", plain),
        ("sgd_decay", SgdStep { weight_decay: 0.05, ..plain }),
        ("sgd_momentum", heavy),
        ("sgd_dampening", SgdStep { dampening: 0.3, weight_decay: 0.05, ..heavy }),
        ("sgd_nesterov", SgdStep { nesterov: true, weight_decay: 0.05, ..heavy }),
    ];
    for (case, cfg) in cases {
        trajectory(case, |p, g, buffer, _, n| {
            // The scale is a power of two, and so changes no bits.
            let cfg = SgdStep { first: n == 1, grad_scale: 4.0, ..cfg };
            mm_kernels::sgd_step(p, &(g * 0.25)?, Some(buffer), &cfg)
        })?;
    }
    Ok(())
}

#[test]
fn adam_trajectories() -> Result<()> {
    let base = AdamStep { lr: 0.01, grad_scale: 4.0, ..AdamStep::default() };
    let decay = AdamStep { beta1: 0.8, beta2: 0.99, eps: 1e-6, weight_decay: 0.1, ..base };
    let decoupled = AdamStep { beta2: 0.98, weight_decay: 0.1, decoupled: true, ..base };
    for (case, cfg) in [("adam", base), ("adam_decay", decay), ("adamw", decoupled)] {
        trajectory(case, |p, g, m, v, step| {
            mm_kernels::adam_step(p, &(g * 0.25)?, m, v, &AdamStep { step, ..cfg })
        })?;
    }
    let coupled = AdamStep { decoupled: false, ..decoupled };
    trajectory("adamw", |p, g, m, v, step| {
        mm_kernels::adamw_step(p, &(g * 0.25)?, m, v, &AdamStep { step, ..coupled })
    })
}
