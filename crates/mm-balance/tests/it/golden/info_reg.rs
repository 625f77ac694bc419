use crate::fixture::{Fixture, exact};
use candle_core::DType;
use mm_balance::info_reg;

fn is_input(key: &str) -> bool {
    matches!(key, "traces" | "scores" | "epochs")
}

/// Strength 0.95, threshold 0.04 and a window of ten epochs, the defaults.
#[test]
fn info_reg() {
    let golden = Fixture::open("info_reg", is_input);
    let tol = exact(DType::F64);
    let traces = golden.values("traces");
    let growth: Vec<f64> = (0..=traces.len()).map(|e| info_reg::growth(&traces[..e], 10)).collect();
    golden.compare("growth", &growth, tol);
    let (mut gaps, mut coefficients) = (Vec::new(), Vec::new());
    for (scores, epoch) in golden.values("scores").chunks(3).zip(golden.values("epochs")) {
        let found = info_reg::gaps(scores);
        coefficients
            .extend(found.iter().map(|gap| info_reg::coefficient(*gap, growth[epoch as usize], 0.95, 0.04)));
        gaps.extend(found);
    }
    golden.compare("gaps", &gaps, tol);
    golden.compare("coefficients", &coefficients, tol);
    golden.finish();
}
