use crate::fixture::{Fixture, exact};
use candle_core::DType;
use mm_balance::g_blend::{Estimator, Measured, normalised};

fn is_input(key: &str) -> bool {
    key == "losses_trainN_valN_trainNn_valNn"
}

#[test]
fn gblend() {
    let golden = Fixture::open("gblend", is_input);
    let tol = exact(DType::F64);
    let measured: Vec<Measured> = golden
        .values("losses_trainN_valN_trainNn_valNn")
        .chunks(4)
        .map(|l| Measured { train_before: l[0], held_before: l[1], train_after: l[2], held_after: l[3] })
        .collect();
    let of = |f: &dyn Fn(&Measured) -> f64| measured.iter().map(f).collect::<Vec<f64>>();
    golden.compare("paper_own.G", &of(&Measured::generalisation), tol);
    golden.compare("paper_own.dO", &of(&Measured::overfitting), tol);
    let paper = of(&|m| m.raw(Estimator::Paper, 0.01));
    let multi_bench = of(&|m| m.raw(Estimator::MultiBench, 0.01));
    // Where every loss falls, MultiBench with its option `delta` computes the paper's weights.
    for (names, raw) in [
        (["paper_own.raw_G_over_dO2", "paper_own.weights_first3"], &paper),
        (["multibench.deltaTrue.raw", "multibench.deltaTrue.weights_first3"], &paper),
        (["multibench.deltaFalse.raw", "multibench.deltaFalse.weights_first3"], &multi_bench),
    ] {
        golden.compare(names[0], raw, tol);
        golden.compare(names[1], &normalised(&raw[..3]), tol);
    }
    golden.finish();
}
