use crate::fixture::{Fixture, PRECISIONS, exact};
use candle_core::{Result, Tensor, Var};
use mm_balance::{mbsd, unimodal};
use mm_core::{Batch, Modal};

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    last == "labels" || last.starts_with("logits")
}

#[test]
fn mbsd() -> Result<()> {
    let golden = Fixture::open("mbsd", is_input);
    for (prefix, dtype) in PRECISIONS {
        for count in [2, 3] {
            let (key, tol) = (|name: &str| format!("{prefix}.m{count}.{name}"), exact(dtype));
            let leaves =
                (0..count).map(|m| Var::from_tensor(&golden.input(&key(&format!("logits{m}")), dtype)));
            let leaves: Vec<Var> = leaves.collect::<Result<_>>()?;
            let logits: Modal<Tensor> = leaves.iter().map(|z| z.as_tensor().clone()).collect();
            let labels = golden.labels(&format!("m{count}.labels"));
            let batch = Batch::new(logits.map(|_, z| z.detach()), labels)?;
            let right = mm_balance::score::probabilities(logits.values(), &batch.labels)?;
            let leader = |row: usize| mbsd::leader(&right.iter().map(|p| p[row]).collect::<Vec<_>>());
            let leaders: Vec<f64> =
                (0..batch.rows()).map(|row| leader(row).map_or(-1.0, |s| s as f64)).collect();
            golden.compare(&format!("m{count}.leaders"), &leaders, 0.0);
            let (transferred, counted) = mbsd::self_distillation(&logits, &batch)?;
            assert!(counted.iter().any(Option::is_none) && counted.iter().any(Option::is_some));
            golden.compare(&key("transfer"), &transferred, tol);
            let losses = unimodal::losses_and_scores(&logits, &batch)?.0;
            golden.compare(&key("loss"), &(&transferred + losses)?, tol);
            let gradients = transferred.backward()?;
            for (m, z) in leaves.iter().enumerate() {
                let gradient = gradients.get(z.as_tensor()).expect("a gradient");
                golden.compare(&key(&format!("grad{m}")), gradient, tol);
            }
        }
    }
    golden.finish();
    Ok(())
}
