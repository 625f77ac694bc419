use crate::fixture::{Fixture, exact};
use candle_core::DType;
use mm_balance::relearning::{self, Points};
use mm_core::StepRng;

fn is_input(key: &str) -> bool {
    key.ends_with(".features") || key.ends_with(".labels") || key == "gap"
}

/// Four classes, λ = 3.
#[test]
fn relearning() {
    let golden = Fixture::open("relearning", is_input);
    let tol = exact(DType::F64);
    for part in ["train", "held_out"] {
        let key = |name: &str| format!("{part}.{name}");
        let dim = golden.shape(&key("features"))[1];
        let points = Points::new(golden.values(&key("features")), dim).scaled();
        golden.compare(&key("scaled"), points.values(), tol);
        let labels = golden.labels(&key("labels"));
        for seed in 0..5 {
            let clusters = relearning::k_means(&points, 4, StepRng::new(seed));
            golden.compare(&key("purity"), &relearning::purity(&labels, &clusters), tol);
        }
    }
    let share: Vec<f64> =
        golden.values("gap").iter().map(|gap| relearning::reset_share(*gap, 0.0, 3.0)).collect();
    golden.compare("share", &share, tol);
    golden.finish();
}
