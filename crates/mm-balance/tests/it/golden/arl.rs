use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::{context, over_features, set};
use candle_core::{DType, Result, Tensor, Var};
use mm_balance::Balancer;
use mm_balance::arl::{self, ArlConfig};
use mm_core::{Batch, Modal, Mode, Multimodal};
use mm_kernels::cross_entropy;
use std::collections::BTreeMap;

fn is_input(key: &str) -> bool {
    matches!(key.rsplit('.').next().unwrap_or(key), "feat_a" | "feat_v" | "W" | "b" | "labels")
}

#[test]
fn arl() -> Result<()> {
    let golden = Fixture::open("arl", is_input);
    for (prefix, dtype) in PRECISIONS {
        for case in 0..3 {
            one(&golden, &format!("{prefix}.case{case}"), &format!("case{case}.labels"), dtype)?;
        }
    }
    golden.finish();
    Ok(())
}

fn one(golden: &Fixture, prefix: &str, labels: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
    let (w, b) = (golden.input(&key("W"), dtype), golden.input(&key("b"), dtype));
    let features = ["a", "v"].map(|m| Var::from_tensor(&golden.input(&key(&format!("feat_{m}")), dtype)));
    let features: Vec<Var> = features.into_iter().collect::<Result<_>>()?;
    let widths: Vec<usize> = features.iter().map(|h| h.dim(1)).collect::<Result<_>>()?;
    let toy = over_features(&widths, b.dim(0)?, dtype)?;
    set(&toy.store, "fusion.m0.weight", &w.narrow(1, 0, widths[0])?.contiguous()?)?;
    set(&toy.store, "fusion.m1.weight", &w.narrow(1, widths[0], widths[1])?.contiguous()?)?;
    set(&toy.store, "fusion.bias", &b)?;
    let z: Modal<Tensor> = features.iter().map(|h| h.as_tensor().clone()).collect();
    let batch = Batch::new(z.map(|_, h| h.detach()), golden.labels(labels))?;
    let fwd = toy.model.fuse(z, &batch.present, Mode::Eval)?;
    let alone =
        batch.inputs.try_map(|m, _| toy.model.masked_logits(m, &batch.inputs, &batch.present, Mode::Eval))?;
    golden.compare(&key("out_a"), &alone.values()[0], tol);
    golden.compare(&key("out_v"), &alone.values()[1], tol);
    let (magnitudes, entropies) = arl::statistics(&alone, &batch)?;
    golden.compare(&key("magnitude"), &magnitudes, tol);
    golden.compare(&key("entropy"), &entropies, tol);
    golden.compare(&key("weight"), &arl::weights(&magnitudes, &entropies, 8.0), tol);

    let mut method = ArlConfig { start_epoch: 0, ..ArlConfig::default() }.build().expect("valid");
    let cx = context(&toy, &batch, 0);
    let auxiliary = method.auxiliary(&cx, &fwd)?.expect("unimodal losses");
    let loss = (cross_entropy(&fwd.fused, &batch.labels, None)? + auxiliary)?;
    golden.compare(&key("loss"), &loss, tol);
    let mut factors = BTreeMap::new();
    let gradients = loss.backward()?;
    // The encoders are the identity, without parameters: their gradients are those of the features.
    method.gradients(&cx, &fwd, &mut mm_core::Gradients::empty(&toy.store))?;
    method.observe(&mut |name, m, value| {
        factors.insert((name, m), value);
    });
    for (m, (name, x)) in ["grad_a", "grad_v"].into_iter().zip(&features).enumerate() {
        let factor = factors[&("coefficient", Some(m))];
        let gradient = gradients.get(x.as_tensor()).expect("a gradient").affine(factor, 0.0)?;
        golden.compare(&key(name), &gradient, tol);
    }
    Ok(())
}
