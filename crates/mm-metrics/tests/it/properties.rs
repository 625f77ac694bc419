//! What holds for every input.

use mm_metrics::{
    Agreement, AgreementRow, ConfusionMatrix, Scores, auroc, average_precision, brier, cohen_kappa,
    correctness, expected_calibration_error, macro_scores, matthews_correlation, paired_difference, shapley,
    softmax_rows, student_t_quantile, top_k_accuracy,
};
use proptest::collection::vec;
use proptest::prelude::*;

const CLASSES: usize = 4;

/// Labels and logits on a coarse grid, so that ties occur, of 1 to 40 samples.
fn labelled_logits() -> impl Strategy<Value = (Vec<u32>, Vec<f64>)> {
    vec((0..CLASSES as u32, vec(-8_i32..8, CLASSES)), 1..40).prop_map(|samples| {
        let labels = samples.iter().map(|(label, _)| *label).collect();
        let logits = samples.iter().flat_map(|(_, row)| row.iter().map(|&z| f64::from(z) / 2.0)).collect();
        (labels, logits)
    })
}

fn labels_and_predictions() -> impl Strategy<Value = (Vec<u32>, Vec<u32>)> {
    vec((0..CLASSES as u32, 0..CLASSES as u32), 1..60).prop_map(|pairs| pairs.into_iter().unzip())
}

fn game(players: usize) -> impl Strategy<Value = Vec<f64>> {
    vec(-10.0..10.0, 1 << players)
}

fn any_game() -> impl Strategy<Value = Vec<f64>> {
    (1_usize..6).prop_flat_map(game)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9
}

proptest! {
    #[test]
    fn shapley_is_efficient(values in any_game()) {
        let sum: f64 = shapley(&values).expect("valid").iter().sum();
        prop_assert!(close(sum, values[values.len() - 1] - values[0]));
    }

    #[test]
    fn shapley_is_symmetric(values in game(4), i in 0_usize..4, j in 0_usize..4) {
        // Exchanging two players exchanges their values and nothing else.
        let exchange = |s: usize| {
            let differ = (s >> i ^ s >> j) & 1;
            if i == j { s } else { s ^ (differ << i | differ << j) }
        };
        let exchanged: Vec<f64> = (0..16).map(|s| values[exchange(s)]).collect();
        let mut expected = shapley(&values).expect("valid");
        expected.swap(i, j);
        for (a, b) in shapley(&exchanged).expect("valid").iter().zip(&expected) {
            prop_assert!(close(*a, *b));
        }
    }

    #[test]
    fn shapley_gives_a_dummy_what_it_brings(others in game(3), dummy in 0_usize..4, alone in -5.0..5.0_f64) {
        let values: Vec<f64> = (0..16_usize)
            .map(|s| {
                let (below, above) = (s & ((1 << dummy) - 1), s >> (dummy + 1) << dummy);
                others[below | above] + if s >> dummy & 1 == 1 { alone } else { 0.0 }
            })
            .collect();
        let phi = shapley(&values).expect("valid");
        prop_assert!(close(phi[dummy], alone));
        let rest: Vec<f64> = (0..4).filter(|&player| player != dummy).map(|player| phi[player]).collect();
        for (a, b) in rest.iter().zip(shapley(&others).expect("valid")) {
            prop_assert!(close(*a, b));
        }
    }

    #[test]
    fn ranking_metrics_see_only_the_order((labels, logits) in labelled_logits()) {
        let mapped: Vec<f64> = logits.iter().map(|z| (z / 3.0).exp() * 7.0 - 2.0).collect();
        let before = Scores::new(&logits, &labels, CLASSES).expect("valid");
        let after = Scores::new(&mapped, &labels, CLASSES).expect("valid");
        prop_assert_eq!(auroc(&before), auroc(&after));
        prop_assert_eq!(average_precision(&before), average_precision(&after));
        for k in 1..=CLASSES {
            prop_assert_eq!(top_k_accuracy(&before, k), top_k_accuracy(&after, k));
        }
    }

    #[test]
    fn auroc_of_reversed_scores_is_the_complement((labels, logits) in labelled_logits()) {
        let reversed: Vec<f64> = logits.iter().map(|z| -z).collect();
        let before = auroc(&Scores::new(&logits, &labels, CLASSES).expect("valid"));
        let after = auroc(&Scores::new(&reversed, &labels, CLASSES).expect("valid"));
        prop_assert_eq!(before.counted, after.counted);
        for (a, b) in before.per_class.iter().flatten().zip(after.per_class.iter().flatten()) {
            prop_assert!(close(a + b, 1.0));
        }
    }

    #[test]
    fn scores_stay_in_their_ranges((labels, logits) in labelled_logits(), bins in 1_usize..30) {
        let probabilities = softmax_rows(&logits, CLASSES).expect("valid");
        let scores = Scores::new(&probabilities, &labels, CLASSES).expect("valid");
        let ece = expected_calibration_error(&scores, bins).expect("valid");
        prop_assert!((0.0..=1.0).contains(&ece), "{}", ece);
        let brier = brier(&scores).expect("valid");
        prop_assert!((0.0..=2.0).contains(&brier), "{}", brier);
        let mut last = 0.0;
        for k in 1..=CLASSES {
            let hits = top_k_accuracy(&scores, k).expect("valid");
            prop_assert!(hits >= last);
            last = hits;
        }
        prop_assert_eq!(last, 1.0);
    }

    #[test]
    fn one_bin_leaves_the_gap_of_the_means((labels, logits) in labelled_logits()) {
        let probabilities = softmax_rows(&logits, CLASSES).expect("valid");
        let scores = Scores::new(&probabilities, &labels, CLASSES).expect("valid");
        let n = labels.len() as f64;
        let confidence: f64 = scores.rows().map(|row| row.iter().copied().fold(0.0, f64::max)).sum();
        let hits = correctness(&labels, &scores.predictions()).expect("valid").iter().filter(|&&hit| hit).count();
        let ece = expected_calibration_error(&scores, 1).expect("valid");
        prop_assert!(close(ece, (confidence - hits as f64).abs() / n));
    }

    #[test]
    fn confusion_counts_every_sample_once((labels, predicted) in labels_and_predictions()) {
        let confusion = ConfusionMatrix::new(&labels, &predicted, CLASSES).expect("valid");
        for class in 0..CLASSES {
            let count = |of: &[u32]| of.iter().filter(|&&c| c as usize == class).count() as u64;
            prop_assert_eq!(confusion.rows().nth(class).expect("a row").iter().sum::<u64>(), count(&labels));
            prop_assert_eq!(confusion.support()[class], count(&labels));
            prop_assert_eq!(confusion.predicted()[class], count(&predicted));
        }
        prop_assert_eq!(confusion.samples(), labels.len() as u64);
    }

    #[test]
    fn correlations_do_not_ask_which_is_true((labels, predicted) in labels_and_predictions()) {
        let forth = ConfusionMatrix::new(&labels, &predicted, CLASSES).expect("valid");
        let back = ConfusionMatrix::new(&predicted, &labels, CLASSES).expect("valid");
        let mcc = matthews_correlation(&forth);
        prop_assert!(close(mcc, matthews_correlation(&back)));
        prop_assert!((-1.0 - 1e-12..=1.0 + 1e-12).contains(&mcc));
        prop_assert_eq!(cohen_kappa(&forth), cohen_kappa(&back));
        let (a, b) = (macro_scores(&forth), macro_scores(&back));
        prop_assert!(close(a.f1, b.f1) && close(a.precision, b.recall));
    }

    #[test]
    fn agreement_partitions_the_samples(rows in vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..50)) {
        let a: Vec<bool> = rows.iter().map(|row| row.0).collect();
        let b: Vec<bool> = rows.iter().map(|row| row.1).collect();
        let multimodal: Vec<bool> = rows.iter().map(|row| row.2).collect();
        let table = Agreement::of_two(&a, &b, &multimodal).expect("valid");
        let counted: u64 = table.rows().iter().map(AgreementRow::samples).sum();
        prop_assert_eq!(counted, rows.len() as u64);
        let percent: f64 = table.percentages().iter().flatten().sum();
        prop_assert!(close(percent, 100.0));
        let only_a = rows.iter().filter(|row| row.0 && !row.1).count() as u64;
        prop_assert_eq!(table.rows()[1].samples(), only_a);
    }

    #[test]
    fn quantiles_are_odd_and_increase(p in 0.001..0.998_f64, nu in 1.0..200.0_f64) {
        let t = student_t_quantile(p, nu).expect("valid");
        let above = student_t_quantile(p + 0.001, nu).expect("valid");
        prop_assert!(above > t);
        let mirrored = student_t_quantile(1.0 - p, nu).expect("valid");
        prop_assert!((t + mirrored).abs() <= 1e-9 * t.abs().max(1e-3));
    }

    #[test]
    fn intervals_mirror_and_widen(pairs in vec((-5.0..5.0_f64, -5.0..5.0_f64), 2..12)) {
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let narrow = paired_difference(&a, &b, 0.9).expect("valid");
        let wide = paired_difference(&a, &b, 0.99).expect("valid");
        let mirrored = paired_difference(&b, &a, 0.9).expect("valid");
        let (low, high) = (narrow.low.expect("pairs"), narrow.high.expect("pairs"));
        prop_assert!(low <= narrow.mean && narrow.mean <= high);
        prop_assert!(wide.low.expect("pairs") <= low && high <= wide.high.expect("pairs"));
        prop_assert!(close(mirrored.low.expect("pairs"), -high));
    }
}
