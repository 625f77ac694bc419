use crate::fixture::{Fixture, PRECISIONS, exact};
use candle_core::{DType, Result, Tensor};
use mm_balance::mla::{self, Gate};
use mm_core::Modal;
use mm_core::model::to_host;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    matches!(last, "feat" | "grad_in") || last.starts_with("logits")
}

#[test]
fn mla() -> Result<()> {
    let golden = Fixture::open("mla", is_input);
    for (prefix, dtype) in PRECISIONS {
        for count in [2, 3] {
            gates(&golden, prefix, count, dtype)?;
        }
        projectors(&golden, prefix, dtype)?;
        let certain = golden.hazard(&format!("{prefix}.hazard_entropy.logits"), dtype);
        let h = mla::entropies(&certain)?;
        assert!(h.iter().all(|h| h.is_finite() && h.abs() < 1e-100), "{h:?}");
    }
    golden.finish();
    Ok(())
}

fn gates(golden: &Fixture, prefix: &str, count: usize, dtype: DType) -> Result<()> {
    let tol = exact(dtype);
    let logits: Modal<Tensor> =
        (0..count).map(|m| golden.input(&format!("{prefix}.logits{m}"), dtype)).collect();
    let present = logits.map(|_, _| None);
    let key = |name: &str| format!("{prefix}.per_sample.m{count}.{name}");
    let entropies: Vec<Vec<f64>> = logits.values().iter().map(mla::entropies).collect::<Result<_>>()?;
    golden.compare(&key("entropies_MB"), &entropies.concat(), tol);
    let rows = entropies[0].len();
    let weights: Vec<Vec<f64>> =
        (0..rows).map(|row| mla::gates(&entropies.iter().map(|h| h[row]).collect::<Vec<_>>())).collect();
    let turned: Vec<f64> = (0..count).flat_map(|m| weights.iter().map(move |w| w[m])).collect();
    golden.compare(&key("weights_MB"), &turned, tol);
    golden.compare(&key("out"), &mla::decide(&logits, &present, Gate::Row)?, tol);

    let key = |name: &str| format!("{prefix}.official.m{count}.{name}");
    let h: Vec<f64> = logits.values().iter().map(mla::batch_entropy).collect::<Result<_>>()?;
    if golden.has(&key("entropies")) {
        golden.compare(&key("entropies"), &h, tol);
    }
    golden.compare(&key("batch_weights"), &mla::gates(&h), tol);
    golden.compare(&key("out"), &mla::decide(&logits, &present, Gate::Batch)?, tol);
    Ok(())
}

/// The released update as if it ran, and the right one, over four steps of two modalities in epochs of ten batches.
fn projectors(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let tol = exact(dtype);
    let width = golden.shape(&format!("{prefix}.gs.step0.feat"))[1];
    let identity: Vec<f64> =
        (0..width * width).map(|n| f64::from(u8::from(n / width == n % width))).collect();
    let (mut released, mut ours) = (identity.clone(), identity);
    for step in 0..4usize {
        let key = |name: &str| format!("{prefix}.gs.step{step}.{name}");
        let r = to_host(&golden.input(&key("feat"), dtype).mean(0)?)?;
        let gradient = golden.input(&key("grad_in"), dtype);
        let alpha = 0.1f64.powf(1.0 + (step / 2) as f64 / 10.0);
        // The first call does nothing.
        if step > 0 {
            mla::absorb_released(&mut released, &r, alpha);
            mla::absorb(&mut ours, &r, alpha);
            golden.compare(&key("rls_own.P_after"), &ours, tol);
            golden.compare(&key("rls_own.grad_out"), &mla::project(&gradient, &ours)?, tol);
        }
        golden.compare(&key("P_after"), &released, tol);
        golden.compare(&key("grad_out"), &mla::project(&gradient, &released)?, tol);
    }
    Ok(())
}
