use crate::fixture::{Fixture, PRECISIONS, exact, number, rounded};
use crate::nets::{context, observed, over_features, set};
use candle_core::{DType, Result, Tensor, Var};
use mm_balance::opm::{self, OpmConfig};
use mm_balance::{Balancer, StepReport, score};
use mm_core::{Batch, Modal, Mode, Multimodal};
use mm_kernels::cross_entropy;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    matches!(key, "perf_pairs" | "drop.labels" | "drop.mask_b2")
        || matches!(last, "W" | "b" | "feat_a" | "feat_v")
}

#[test]
fn opm() -> Result<()> {
    let golden = Fixture::open("opm", is_input);
    let pairs = golden.values("perf_pairs");
    for (table, tol) in [("q.", 1e-6), ("q_f64_own.", 1e-9)] {
        for name in golden.under(table) {
            let (q_base, lambda) = (number(&name, "qbase"), number(&name, "lam"));
            let q: Vec<f64> =
                pairs.chunks(2).flat_map(|pair| opm::drop_probabilities(pair, q_base, lambda)).collect();
            golden.compare(&format!("{table}{name}"), &q, tol);
        }
    }
    for (prefix, dtype) in PRECISIONS {
        drop_step(&golden, &format!("{prefix}.drop"), dtype)?;
    }
    golden.finish();
    Ok(())
}

/// A step with a given mask. The file has q_base = λ = 0.5; q and θ are f32 numbers in both precisions.
fn drop_step(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let key = |name: &str| format!("{prefix}.{name}");
    let features = Modal::new(vec![golden.input(&key("feat_a"), dtype), golden.input(&key("feat_v"), dtype)]);
    let widths = features.try_map(|_, h| h.dim(1))?;
    let weight = golden.input(&key("W"), dtype);
    let toy = over_features(widths.values(), weight.dim(0)?, dtype)?;
    set(&toy.store, "fusion.m0.weight", &weight.narrow(1, 0, widths.values()[0])?)?;
    set(&toy.store, "fusion.m1.weight", &weight.narrow(1, widths.values()[0], widths.values()[1])?)?;
    set(&toy.store, "fusion.bias", &golden.input(&key("b"), dtype))?;
    let batch = Batch::new(features.clone(), golden.labels("drop.labels"))?;

    // The method itself, which never drops with p_exe = 0, and so shows scores and probabilities only.
    let mut method =
        OpmConfig { q_base: 0.5, lambda: 0.5, p_exe: 0.0, ..OpmConfig::default() }.build().expect("valid");
    method.features(&context(&toy, &batch, 0), features.clone())?;
    let mut report = StepReport { loss: 0.0, rows: batch.rows(), observations: Vec::new() };
    method.observe(&mut |name, m, value| report.observations.push((name, m, value)));
    let (scores, q) = (observed(&report, "score"), observed(&report, "drop_probability"));
    let shares = toy.model.split_logits(&features)?.expect("the head is a sum");
    assert_eq!(score::true_class(&shares, &batch)?.values(), scores);
    for (n, (logits, score)) in (1..).zip(shares.values().iter().zip(&scores)) {
        golden.compare(&key(&format!("t{n}")), logits, exact(dtype));
        golden.compare(&key(&format!("perf{n}")), &(score * batch.rows() as f64), exact(dtype));
    }
    let tol = rounded(dtype);
    golden.compare(&key("q"), &q, tol);
    let theta = opm::dropped_share(&q, widths.values());
    golden.compare(&key("theta"), &theta, tol);

    let leaves = features.try_map(|_, h| Var::from_tensor(h))?;
    let mask = golden.values("drop.mask_b2");
    let keep = Modal::from_fn(2, |m| mask.chunks(2).map(|row| row[m.index()] != 0.0).collect::<Vec<bool>>());
    let z = leaves.map(|_, h| h.as_tensor().clone());
    let edited = opm::drop_features(&z, &keep, &|_, _| true, theta)?;
    golden.compare(&key("cleaned_a"), &edited.features.values()[0], tol);
    golden.compare(&key("cleaned_v"), &edited.features.values()[1], tol);
    let all: Vec<u32> = (0..batch.rows() as u32).collect();
    let kept = edited.keep.unwrap_or(all);
    let flags: Vec<f64> =
        (0..batch.rows() as u32).map(|row| f64::from(u8::from(kept.contains(&row)))).collect();
    golden.compare(&key("update_flag"), &flags, 0.0);

    let batch = batch.select(&kept)?;
    let out = toy.model.fuse(edited.features, &batch.present, Mode::Eval)?.fused;
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
