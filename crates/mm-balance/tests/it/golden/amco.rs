use crate::fixture::{Fixture, PRECISIONS, exact};
use candle_core::{DType, Result};
use mm_balance::amco::{dependences, mask, masked_share};
use mm_balance::unimodal::losses_and_scores;
use mm_core::model::sum;
use mm_core::{Batch, Modal};
use mm_kernels::cross_entropy;
use mm_kernels::linear::linear;

fn is_input(key: &str) -> bool {
    matches!(key, "labels" | "ramp" | "m2.kept" | "m3.kept") || key.contains(".param.")
}

#[test]
fn amco() -> Result<()> {
    let golden = Fixture::open("amco", is_input);
    let labels = golden.labels("labels");
    let settings = golden.values("ramp");
    let shares: Vec<f64> = (0..golden.shape("shares")[0])
        .map(|n| masked_share(n as f64 * settings[1] / 10.0, settings[0]))
        .collect();
    golden.compare("shares", &shares, exact(DType::F64));
    for (prefix, dtype) in PRECISIONS {
        let tol = exact(dtype);
        for count in [2, 3] {
            let key = |name: &str| format!("{prefix}.m{count}.{name}");
            let leaves = golden.leaves(&key("param."), dtype);
            let leaf = |name: &str| leaves[name].as_tensor();
            let kept: Vec<bool> = golden.labels(&format!("m{count}.kept")).iter().map(|k| *k == 1).collect();
            let bias = (leaf("bias") / count as f64)?;
            let logits = Modal::try_from_fn(count, |m| {
                let m = m.index();
                let h = leaf(&format!("h{m}"));
                let h = if m == 0 { mask(h, &kept, 1.0 / (1.0 - shares[1]))? } else { h.clone() };
                linear(&h, leaf(&format!("w{m}")), Some(&bias))
            })?;
            let batch = Batch::new(logits.clone(), labels.clone())?;
            golden.compare(&key("dependence"), &dependences(&logits, &batch)?, tol);
            let loss = (cross_entropy(&sum(logits.values())?, &labels, None)?
                + losses_and_scores(&logits, &batch)?.0)?;
            golden.compare(&key("loss"), &loss, tol);
            let gradients = loss.backward()?;
            for name in leaves.keys() {
                let gradient = gradients.get(leaf(name)).expect("the loss depends on it");
                golden.compare(&key(&format!("grad.{name}")), gradient, tol);
            }
        }
    }
    golden.finish();
    Ok(())
}
