use crate::fixture::{Fixture, exact};
use candle_core::{DType, Result};
use mm_balance::mslr::{self, MslrConfig};
use mm_balance::{Balancer, EpochCx, EpochReport};
use mm_core::{Modal, StepRng};
use mm_testkit::toy;

fn is_input(key: &str) -> bool {
    matches!(key, "acc_per_epoch" | "init_lr_ratio" | "keep")
}

/// Ratios and coefficients of each epoch, from one epoch's accuracies after the other.
fn run(config: &MslrConfig, accuracies: &[f64]) -> Result<[Vec<f64>; 2]> {
    let toy = toy::composite(0, &[4, 6], 3, toy::split)?;
    let mut method = config.build(2).expect("valid");
    let mut found = [Vec::new(), Vec::new()];
    let mut look = |method: &dyn Balancer| {
        method.observe(&mut |name, _, value| found[usize::from(name == "coefficient")].push(value));
    };
    look(&method);
    for (epoch, row) in accuracies.chunks(2).enumerate() {
        let cx = EpochCx {
            model: &toy.model,
            params: &toy.store,
            epoch,
            learning_rate: 0.1,
            batches: None,
            train: None,
            rng: StepRng::new(0),
        };
        let unimodal = Some(Modal::new(row.to_vec()));
        method.epoch_end(&cx, &EpochReport { train_loss: 1.0, accuracy: Some(0.5), unimodal })?;
        // A checkpoint of every epoch is gone on from.
        let state = method.state();
        method = config.build(2).expect("valid");
        method.restore(&state)?;
        look(&method);
    }
    Ok(found)
}

#[test]
fn mslr() -> Result<()> {
    let golden = Fixture::open("mslr", is_input);
    let (accuracies, factors) = (golden.values("acc_per_epoch"), golden.values("init_lr_ratio"));
    let keep = golden.values("keep")[0] as usize;
    let config = MslrConfig { factors, keep, ..MslrConfig::default() };
    let [ratios, coefficients] = run(&config, &accuracies)?;
    let tol = exact(DType::F64);
    // One port writes down what an epoch uses, the other what it leaves for the next.
    golden.compare("mlbrepo.ratio_during_epoch", ratios.as_slice(), tol);
    golden.compare("mlbrepo.coeff_during_epoch", coefficients.as_slice(), tol);
    golden.compare("agmrepo.ratio_after_epoch", &ratios[2..], tol);
    golden.compare("agmrepo.coeff_after_epoch", &coefficients[2..], tol);
    for m in 0..2 {
        let column: Vec<f64> = accuracies.iter().skip(m).step_by(2).copied().collect();
        for (epoch, used) in ratios.iter().skip(m).step_by(2).enumerate() {
            assert_eq!(mslr::ratio(&column[..epoch], keep), *used, "epoch {epoch}");
        }
    }
    golden.finish();
    Ok(())
}
