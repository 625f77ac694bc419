use crate::fixture::{Fixture, PRECISIONS, exact};
use candle_core::{Result, Var};
use mm_balance::reconboost::{ReconBoostConfig, boosting_losses, reconciling_losses};

fn is_input(key: &str) -> bool {
    matches!(key.rsplit('.').next().unwrap_or(key), "out_obj" | "out_join" | "pre_out" | "labels")
}

#[test]
fn reconboost() -> Result<()> {
    let golden = Fixture::open("reconboost", is_input);
    let labels = golden.labels("labels");
    let config = ReconBoostConfig::default();
    for (prefix, dtype) in PRECISIONS {
        let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
        let input = |name: &str| golden.input(&key(name), dtype);
        let own = Var::from_tensor(&input("out_obj"))?;
        let each = boosting_losses(own.as_tensor(), &input("out_join"), &labels, config.boost, config.damp)?;
        golden.compare(&key("boosting_loss_per_sample"), &each, tol);
        let boosting = each.mean_all()?;
        let reconciling = reconciling_losses(own.as_tensor(), &input("pre_out"))?.mean_all()?;
        golden.compare(&key("ga_loss"), &reconciling, tol);
        golden.compare(&key("loss"), &(&boosting + (&reconciling * config.alpha)?)?, tol);
        // The released sum has the gradient of its first term alone.
        let of = |loss: candle_core::Tensor| -> Result<_> {
            Ok(loss.backward()?.remove(own.as_tensor()).expect("a gradient"))
        };
        golden.compare(&key("grad_out_obj"), &of(boosting)?, tol);
        golden.compare(&key("ga_undetached_own.grad"), &of(reconciling)?, tol);
    }
    golden.finish();
    Ok(())
}
