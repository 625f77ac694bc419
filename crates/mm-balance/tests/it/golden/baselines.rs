use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::{context, over_features, set};
use candle_core::{DType, Result, Tensor, Var};
use mm_balance::multi_loss::MultiLossConfig;
use mm_balance::sum_ce::SumCe;
use mm_balance::{Balancer, Joint, TrainStep};
use mm_core::model::sum;
use mm_core::{Batch, Forward, Modal, Mode, Multimodal};
use mm_kernels::cross_entropy;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    last == "labels" || matches!(last, "W" | "a" | "b" | "v") || last.starts_with("logits")
}

#[test]
fn baselines() -> Result<()> {
    let golden = Fixture::open("baselines", is_input);
    for (prefix, dtype) in PRECISIONS {
        joint(&golden, &format!("{prefix}.joint"), dtype)?;
        multi_loss(&golden, prefix, dtype)?;
        sum_ce(&golden, &format!("{prefix}.sum_ce"), dtype)?;
    }
    golden.finish();
    Ok(())
}

/// Cross-entropy of one linear layer over both features.
fn joint(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
    let features = Modal::new(vec![golden.input(&key("a"), dtype), golden.input(&key("v"), dtype)]);
    let widths = features.try_map(|_, h| h.dim(1))?.into_values();
    let weight = golden.input(&key("W"), dtype);
    let toy = over_features(&widths, weight.dim(0)?, dtype)?;
    set(&toy.store, "fusion.m0.weight", &weight.narrow(1, 0, widths[0])?)?;
    set(&toy.store, "fusion.m1.weight", &weight.narrow(1, widths[0], widths[1])?)?;
    set(&toy.store, "fusion.bias", &golden.input(&key("b"), dtype))?;
    let leaves = features.try_map(|_, h| Var::from_tensor(h))?;
    let batch = Batch::new(features, golden.labels("labels"))?;
    let forward = toy.model.fuse(leaves.map(|_, h| h.as_tensor().clone()), &batch.present, Mode::Eval)?;
    let out = Joint::new(()).decide(&toy.model, &batch, &forward)?;
    golden.compare(&key("out"), &out, tol);
    let loss = cross_entropy(&out, &batch.labels, None)?;
    golden.compare(&key("loss"), &loss, tol);
    let gradients = loss.backward()?;
    let of = |x: &Tensor| gradients.get(x).expect("the loss depends on it").clone();
    golden.compare(&key("grad_a"), &of(leaves.values()[0].as_tensor()), tol);
    golden.compare(&key("grad_v"), &of(leaves.values()[1].as_tensor()), tol);
    let parameter = |name: &str| of(toy.store.find(name).expect("a parameter").var().as_tensor());
    let blocks = [parameter("fusion.m0.weight"), parameter("fusion.m1.weight")];
    golden.compare(&key("grad_W"), &Tensor::cat(&blocks, 1)?, tol);
    golden.compare(&key("grad_b"), &parameter("fusion.bias"), tol);
    Ok(())
}

/// The three logits of the file as leaves.
fn logits(golden: &Fixture, prefix: &str, dtype: DType) -> Result<Vec<Var>> {
    (0..3).map(|i| Var::from_tensor(&golden.input(&format!("{prefix}.sum_ce.logits{i}"), dtype))).collect()
}

/// The file's first logits are the fused ones, the others unimodal.
fn multi_loss(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.multi_loss.{name}"), exact(dtype));
    let leaves = logits(golden, prefix, dtype)?;
    let heads: Modal<Tensor> = leaves[1..].iter().map(|u| u.as_tensor().clone()).collect();
    let toy = over_features(&[1, 1], leaves[0].dim(1)?, dtype)?;
    let batch = Batch::new(heads.map(|_, u| u.detach()), golden.labels("labels"))?;
    let fused = leaves[0].as_tensor().clone();
    let task = cross_entropy(&fused, &batch.labels, None)?;
    let forward = Forward { features: heads.clone(), fused, heads: Some(heads), split: None };
    let mut method = MultiLossConfig::default().build().expect("valid");
    let auxiliary = method.auxiliary(&context(&toy, &batch, 0), &forward)?.expect("unimodal losses");
    let loss = (task + auxiliary)?;
    golden.compare(&key("loss"), &loss, tol);
    let gradients = loss.backward()?;
    for (leaf, name) in leaves.iter().zip(["grad_combined", "grad_uni1", "grad_uni2"]) {
        golden.compare(&key(name), gradients.get(leaf.as_tensor()).expect("a gradient"), tol);
    }
    Ok(())
}

fn sum_ce(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
    let leaves = logits(golden, prefix.trim_end_matches(".sum_ce"), dtype)?;
    let heads: Modal<Tensor> = leaves.iter().map(|u| u.as_tensor().clone()).collect();
    let toy = over_features(&[1, 1, 1], leaves[0].dim(1)?, dtype)?;
    let batch = Batch::new(heads.map(|_, u| u.detach()), golden.labels("labels"))?;
    let fused = sum(heads.values())?;
    let forward = Forward { features: heads.clone(), fused, heads: Some(heads), split: None };
    let decision = SumCe.logits(&toy.model, &batch, &forward)?.expect("the method decides");
    golden.compare(&key("sum_of_softmax"), &decision, tol);
    let loss = cross_entropy(&decision, &batch.labels, None)?;
    golden.compare(&key("loss"), &loss, tol);
    let gradients = loss.backward()?;
    for (i, leaf) in leaves.iter().enumerate() {
        golden.compare(&key(&format!("grad{i}")), gradients.get(leaf.as_tensor()).expect("a gradient"), tol);
    }
    Ok(())
}
