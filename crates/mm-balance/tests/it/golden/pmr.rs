use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::{context, over_features, set};
use candle_core::{DType, Result, Tensor, Var};
use mm_balance::Balancer;
use mm_balance::pmr::{self, PmrConfig, Prototypes, Variant};
use mm_core::model::to_host;
use mm_core::{Batch, Modal, Multimodal};
use mm_kernels::cross_entropy;
use std::collections::BTreeMap;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    matches!(last, "labels" | "n_batches_used" | "W" | "b" | "feat_a" | "feat_v" | "prev_a" | "prev_v")
        || key.contains(".step") && matches!(last, "proto_a" | "proto_v")
}

#[test]
fn pmr() -> Result<()> {
    let golden = Fixture::open("pmr", is_input);
    for (prefix, dtype) in PRECISIONS {
        prototypes(&golden, prefix, dtype)?;
        for step in 0..2 {
            one(&golden, &format!("{prefix}.step{step}"), &format!("step{step}.labels"), dtype)?;
        }
    }
    golden.finish();
    Ok(())
}

fn prototypes(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let used = golden.values("proto.n_batches_used")[0] as usize;
    let config = PmrConfig::default();
    for m in ["a", "v"] {
        let features = golden.input(&format!("{prefix}.proto.feat_{m}"), dtype);
        let (batches, rows, width) = features.dims3()?;
        assert_eq!(used, (batches as f64 * config.share) as usize);
        let labels = &golden.labels("proto.labels")[..used * rows];
        let seen = to_host(&features.narrow(0, 0, used)?)?;
        let previous = to_host(&golden.input(&format!("{prefix}.proto.prev_{m}"), dtype))?;
        let new = Prototypes::new(&seen, labels, width, previous.len() / width)?;
        golden.compare(&format!("{prefix}.proto.proto_{m}_epoch0"), new.values(), exact(dtype));
        let kept = new.after(&Prototypes::from_values(previous, width)?, config.momentum);
        golden.compare(&format!("{prefix}.proto.proto_{m}_epoch1_mom0_2"), kept.values(), exact(dtype));
    }
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
    let fwd = toy.model.fuse(z, &batch.present, mm_core::Mode::Eval)?;
    golden.compare(&key("out"), &fwd.fused, tol);

    let config = PmrConfig { variant: Variant::Released, ..PmrConfig::default() };
    let mut method = config.build().expect("valid");
    let mut prototypes = Vec::new();
    for (m, h) in ["a", "v"].into_iter().zip(&features) {
        let values = to_host(&golden.input(&key(&format!("proto_{m}")), dtype))?;
        let one = Prototypes::from_values(values, h.dim(1)?)?;
        let u = one.logits(h.as_tensor())?;
        golden.compare(&key(&format!("sim_{m}")), &u, tol);
        golden.compare(&key(&format!("loss_proto_{m}")), &cross_entropy(&u, &batch.labels, None)?, tol);
        prototypes.push(one);
    }
    method.set_prototypes(prototypes);
    let auxiliary = method.auxiliary(&context(&toy, &batch, 0), &fwd)?.expect("a modality lags");
    let mut seen = BTreeMap::new();
    method.observe(&mut |name, m, value| {
        seen.insert((name, m), value);
    });
    let score = |m: usize| seen[&("prototype_score", Some(m))];
    let rows = batch.rows() as f64;
    golden.compare(&key("score_a"), &(score(0) * rows), tol);
    golden.compare(&key("score_v"), &(score(1) * rows), tol);
    golden.compare(&key("ratio_a"), &(score(0) / score(1)), tol);
    golden.compare(&key("beta"), &seen[&("prototype_weight", Some(0))], tol);
    golden.compare(&key("lam"), &seen[&("prototype_weight", Some(1))], tol);
    let (boost, _) = pmr::coefficients(&[score(0), score(1)]);
    golden.compare(&key("paper_clip_beta_a"), &boost[0], tol);
    golden.compare(&key("paper_clip_gamma_v"), &boost[1], tol);

    let loss = (cross_entropy(&fwd.fused, &batch.labels, None)? + auxiliary)?;
    golden.compare(&key("loss"), &loss, tol);
    let gradients = loss.backward()?;
    let of = |x: &Var| gradients.get(x.as_tensor()).expect("a gradient").clone();
    golden.compare(&key("grad_feat_a"), &of(&features[0]), tol);
    golden.compare(&key("grad_feat_v"), &of(&features[1]), tol);
    let blocks =
        ["fusion.m0.weight", "fusion.m1.weight"].map(|name| of(toy.store.find(name).expect(name).var()));
    golden.compare(&key("grad_W"), &Tensor::cat(&blocks, 1)?, tol);
    Ok(())
}
