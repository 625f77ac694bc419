//! Properties of the coefficients: ranges, symmetry, scale.

use mm_balance::functional_entropy::{Form, regulariser};
use mm_balance::lfm_weight::{Schedule, released_step, unrolled_hypergradient};
use mm_balance::{
    agm, arl, cggm, g_blend, info_reg, mla, mlb, mmpareto, modality_dropout, mslr, ogm, opm, pmr, relearning,
    score,
};
use proptest::prelude::*;

/// Scores on a grid of 1/1024: their sums are exact, so every order of the modalities rounds alike.
fn scores() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec((0u32..=1024).prop_map(|n| f64::from(n) / 1024.0), 2..6)
}

/// As [`scores`], some of them NaN: modalities of which the batch has no row.
fn scores_with_gaps() -> impl Strategy<Value = Vec<f64>> {
    let one = prop_oneof![4 => (0u32..=1024).prop_map(|n| f64::from(n) / 1024.0), 1 => Just(f64::NAN)];
    prop::collection::vec(one, 1..6)
}

fn rotated(values: &[f64], by: usize) -> Vec<f64> {
    let mut turned = values.to_vec();
    turned.rotate_left(by % values.len());
    turned.reverse();
    turned
}

fn leader(scores: &[f64]) -> Option<usize> {
    (0..scores.len()).filter(|&m| !scores[m].is_nan()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}

fn laggard(scores: &[f64]) -> Option<usize> {
    (0..scores.len()).filter(|&m| !scores[m].is_nan()).min_by(|&a, &b| scores[a].total_cmp(&scores[b]))
}

proptest! {
    #[test]
    fn mlb_stays_in_its_range(s in scores_with_gaps(), alpha in 0.01..3.0f64, beta_max in 1.0..20.0f64) {
        let k = mlb::coefficients(&s, alpha, beta_max);
        let low = 1.0 - alpha.tanh();
        for (k, s) in k.iter().zip(&s) {
            prop_assert!((low - 1e-12..=beta_max + 1e-12).contains(k), "{k} not in [{low}, {beta_max}]");
            prop_assert!(!s.is_nan() || *k == 1.0);
        }
        if let (Some(first), Some(last)) = (leader(&s), laggard(&s)) {
            prop_assert!(k[first] <= 1.0 && 1.0 <= k[last], "{k:?} of {s:?}");
        }
    }

    #[test]
    fn ogm_stays_in_its_range(s in scores_with_gaps(), alpha in 0.01..3.0f64) {
        let k = ogm::coefficients(&s, alpha);
        for (k, ratio) in k.iter().zip(score::lead(&s)) {
            prop_assert!((0.0..=1.0).contains(k));
            prop_assert_eq!(*k < 1.0, ratio > 1.0);
        }
    }

    #[test]
    fn opm_drops_leaders_only(
        s in scores_with_gaps(),
        q_base in 0.0..=1.0f64,
        lambda in 0.0..5.0f64,
        widths in prop::collection::vec(1usize..300, 6),
    ) {
        let q = opm::drop_probabilities(&s, q_base, lambda);
        for (q, ratio) in q.iter().zip(score::lead(&s)) {
            prop_assert!((0.0..=1.0).contains(q));
            prop_assert!(ratio > 1.0 || *q == 0.0, "{q} at a ratio of {ratio}");
        }
        let theta = opm::dropped_share(&q, &widths[..s.len()]);
        prop_assert!((0.0..1.0).contains(&theta), "{theta}");
    }

    #[test]
    fn pmr_boosts_laggards_only(s in scores_with_gaps()) {
        let (boost, entropy) = pmr::coefficients(&s);
        let hard = pmr::coefficients_released(&s);
        for (m, ratio) in score::lag(&s).into_iter().enumerate() {
            prop_assert!((0.0..=1.0).contains(&boost[m]) && (0.0..=1.0).contains(&entropy[m]));
            prop_assert_eq!(boost[m] > 0.0, ratio > 1.0);
            prop_assert_eq!(hard[m] == 1.0, ratio > 1.0);
            prop_assert!(boost[m] == 0.0 || entropy[m] == 0.0, "{m} lags and leads");
        }
    }

    #[test]
    fn arl_weights_are_weights(a in scores_with_gaps(), h in scores_with_gaps(), t in 0.1..20.0f64, by in 0usize..6) {
        let count = a.len().min(h.len());
        let (a, h) = (&a[..count], &h[..count]);
        let w = arl::weights(a, h, t);
        let any = a.iter().zip(h).any(|(a, h)| !a.is_nan() && !h.is_nan());
        prop_assert!((w.iter().sum::<f64>() - if any { 1.0 } else { 0.0 }).abs() < 1e-12, "{w:?}");
        for (x, y) in arl::weights(&rotated(a, by), &rotated(h, by), t).iter().zip(rotated(&w, by)) {
            prop_assert!((x - y).abs() < 1e-12);
        }
    }

    #[test]
    fn mla_gates_are_weights(h in scores_with_gaps(), by in 0usize..6) {
        let g = mla::gates(&h);
        let total: f64 = g.iter().sum();
        let any = h.iter().any(|h| !h.is_nan());
        prop_assert!((total - if any { 1.0 } else { 0.0 }).abs() < 1e-12, "{g:?}");
        for (g, h) in g.iter().zip(&h) {
            prop_assert!(!h.is_nan() || *g == 0.0);
        }
        for (a, b) in mla::gates(&rotated(&h, by)).iter().zip(rotated(&g, by)) {
            prop_assert!((a - b).abs() < 1e-12);
        }
    }

    #[test]
    fn mla_projectors_shrink(rows in prop::collection::vec(prop::collection::vec(-3.0..3.0f64, 4), 1..20)) {
        let mut p: Vec<f64> = (0..16).map(|n| f64::from(u8::from(n / 4 == n % 4))).collect();
        let mut size = 4.0;
        for r in &rows {
            mla::absorb(&mut p, r, 0.1);
            let trace: f64 = (0..4).map(|i| p[5 * i]).sum();
            prop_assert!(trace <= size + 1e-12 && trace >= -1e-12, "{trace} after {size}");
            size = trace;
            for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
                prop_assert!((p[4 * i + j] - p[4 * j + i]).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn every_row_keeps_a_modality(
        present in prop::collection::vec(prop::collection::vec(any::<bool>(), 9), 2..5),
        rate in 0.0..=1.0f64,
        seed in 0u64..1000,
    ) {
        let keep = modality_dropout::keep_masks(&present, rate, &mut mm_core::StepRng::new(seed).draws());
        for row in 0..9 {
            let here = present.iter().any(|flags| flags[row]);
            prop_assert!(!here || (0..present.len()).any(|m| keep[m][row] && present[m][row]));
            prop_assert!(rate > 0.0 || keep.iter().all(|flags| flags[row]));
        }
    }

    #[test]
    fn the_information_regulariser_is_finite(s in scores_with_gaps()) {
        for form in [Form::Inverse, Form::Margin, Form::Minimum] {
            let (value, slopes) = regulariser(&s, form);
            prop_assert!(value.is_finite() && slopes.iter().all(|c| c.is_finite()), "{value} {slopes:?}");
            let sign = if form == Form::Minimum { 1.0 } else { -1.0 };
            prop_assert!(slopes.iter().all(|c| c * sign >= 0.0), "{form:?} {slopes:?}");
        }
    }

    #[test]
    fn the_order_of_the_modalities_does_not_matter(s in scores(), by in 0usize..6) {
        let turned = rotated(&s, by);
        prop_assert_eq!(mlb::coefficients(&turned, 0.8, 5.0), rotated(&mlb::coefficients(&s, 0.8, 5.0), by));
        prop_assert_eq!(ogm::coefficients(&turned, 0.8), rotated(&ogm::coefficients(&s, 0.8), by));
        prop_assert_eq!(agm::ratios(&turned), rotated(&agm::ratios(&s), by));
        prop_assert_eq!(cggm::balance(&turned, 5.0), rotated(&cggm::balance(&s, 5.0), by));
        prop_assert_eq!(info_reg::gaps(&turned), rotated(&info_reg::gaps(&s), by));
        prop_assert_eq!(g_blend::normalised(&turned), rotated(&g_blend::normalised(&s), by));
        prop_assert_eq!(
            opm::drop_probabilities(&turned, 0.5, 0.5),
            rotated(&opm::drop_probabilities(&s, 0.5, 0.5), by)
        );
        prop_assert_eq!(pmr::coefficients(&turned).0, rotated(&pmr::coefficients(&s).0, by));
    }

    #[test]
    fn only_ratios_matter(s in scores(), exponent in -20i32..20, factor in 0.01..100.0f64) {
        let times = |factor: f64| s.iter().map(|s| s * factor).collect::<Vec<f64>>();
        let scaled = times(2f64.powi(exponent)); // exact, so that ties stay ties
        prop_assert_eq!(mlb::coefficients(&scaled, 0.8, 5.0), mlb::coefficients(&s, 0.8, 5.0));
        prop_assert_eq!(ogm::coefficients(&scaled, 0.8), ogm::coefficients(&s, 0.8));
        prop_assert_eq!(opm::drop_probabilities(&scaled, 0.5, 0.5), opm::drop_probabilities(&s, 0.5, 0.5));
        let scaled = mlb::coefficients(&times(factor), 0.8, 5.0);
        for (a, b) in scaled.iter().zip(mlb::coefficients(&s, 0.8, 5.0)) {
            prop_assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
    }

    #[test]
    fn the_released_rules_damp_one_modality(a in 0.01..1.0f64, b in 0.01..1.0f64, c in 0.01..1.0f64, alpha in 0.01..3.0f64) {
        let two = ogm::coefficients_released([a, b], alpha);
        prop_assert_eq!(two.iter().filter(|k| **k < 1.0).count(), 1);
        let three = ogm::coefficients_released_m3([a, b, c], alpha);
        prop_assert_eq!(three.iter().filter(|k| **k < 1.0).count(), 1);
        prop_assert!(two.iter().chain(&three).all(|k| (0.0..=1.0).contains(k)));
    }

    #[test]
    fn agm_slows_who_leads_and_is_bounded(s in scores_with_gaps(), alpha in 0.01..3.0f64, cap in 0.1..10.0f64) {
        // The first batch: the reference is 1 for all.
        let k = agm::coefficients(&s, &vec![0.0; s.len()], alpha, cap);
        for ((k, ratio), loss) in k.iter().zip(agm::ratios(&s)).zip(&s) {
            prop_assert!((0.0..=(alpha * cap).exp()).contains(k), "{k}");
            prop_assert!(!loss.is_nan() || *k == 1.0);
            prop_assert!(ratio <= 1.0 || *k < 1.0, "{k} at a ratio of {ratio}");
        }
    }

    #[test]
    fn cggm_holds_back_who_improves_most(s in scores_with_gaps(), bound in 1.0..10.0f64) {
        let b = cggm::balance(&s, bound);
        prop_assert!(b.iter().all(|b| (0.0..=bound).contains(b)), "{b:?}");
        if let (Some(first), Some(last)) = (leader(&s), laggard(&s)) {
            prop_assert!(b[first] <= b[last], "{b:?} of {s:?}");
        }
    }

    #[test]
    fn info_reg_holds_back_leaders_only(s in scores_with_gaps(), growth in -1.0..1.0f64) {
        for (m, gap) in info_reg::gaps(&s).into_iter().enumerate() {
            let beta = info_reg::coefficient(gap, growth, 0.95, 0.04);
            prop_assert!((0.0..=0.95 * 1f64.exp()).contains(&beta));
            prop_assert_eq!(beta > 0.0, gap > 0.0 && growth > 0.04);
            prop_assert!(beta == 0.0 || s[m] > s.iter().copied().fold(f64::INFINITY, f64::min));
        }
    }

    #[test]
    fn blending_weights_are_weights(raw in prop::collection::vec(-10.0..10.0f64, 1..6), share in 0.0..0.99f64) {
        let w = g_blend::normalised(&raw);
        prop_assert!((w.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        prop_assert!(w.iter().all(|w| (0.0..=1.0).contains(w)));
        let least = share / w.len() as f64;
        let raised = g_blend::raised(&w, least);
        prop_assert!((raised.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{raised:?}");
        prop_assert!(raised.iter().all(|w| *w >= least - 1e-15), "{raised:?} below {least}");
    }

    #[test]
    fn a_pareto_direction_harms_neither_loss(
        a in prop::collection::vec(-3.0..3.0f64, 4),
        b in prop::collection::vec(-3.0..3.0f64, 4),
    ) {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let w = mmpareto::weights(dot(&a, &a), dot(&a, &b), dot(&b, &b));
        let h: Vec<f64> = a.iter().zip(&b).map(|(a, b)| w[0] * a + w[1] * b).collect();
        prop_assert!((w[0] + w[1] - 1.0).abs() < 1e-12 && w.iter().all(|w| *w >= 0.0), "{w:?}");
        prop_assert!(dot(&h, &a) > -1e-9 && dot(&h, &b) > -1e-9, "{} {}", dot(&h, &a), dot(&h, &b));
        // And the solver for any number finds what the closed form finds, where it is not cut.
        let (exact, square) = mmpareto::min_norm(&[vec![dot(&a, &a), dot(&a, &b)], vec![dot(&a, &b), dot(&b, &b)]])
            .expect("finite");
        let (weight, least) = mmpareto::min_norm_pair(dot(&a, &a), dot(&a, &b), dot(&b, &b));
        prop_assert!((square - least).abs() <= 1e-9 * (1.0 + least), "{square} {least}");
        prop_assert!((exact[0] - weight).abs() <= 1.1e-3);
    }

    #[test]
    fn rates_follow_accuracies(past in prop::collection::vec(0.01..1.0f64, 3), factor in 0.1..10.0f64) {
        let mut all = past.clone();
        all.push(past.iter().sum::<f64>() / 3.0 * factor);
        prop_assert!((mslr::ratio(&all, 3) - factor).abs() < 1e-9 * factor);
    }

    #[test]
    fn purities_and_shares_have_their_ranges(
        labels in prop::collection::vec(0u32..4, 1..40),
        values in prop::collection::vec(-5.0..5.0f64, 80),
        strength in 0.1..10.0f64,
    ) {
        let points = relearning::Points::new(values[..2 * labels.len()].to_vec(), 2).scaled();
        let found = relearning::k_means(&points, 4, mm_core::StepRng::new(1));
        prop_assert!(found.iter().all(|c| *c < 4));
        let purity = relearning::purity(&labels, &found);
        prop_assert!(purity > 0.0 && purity <= 1.0);
        prop_assert!((0.0..1.0).contains(&relearning::reset_share(purity, 0.5, strength)));
    }

    #[test]
    fn lfm_weights_are_weights(epoch in 0usize..100_000, fixed in 0.0..=1.0f64) {
        for schedule in [Schedule::Paper, Schedule::Exponential, Schedule::Fixed { supervised: fixed }] {
            prop_assert!((0.0..=1.0).contains(&schedule.supervised(epoch)), "{schedule:?}");
        }
        // The released curve overshoots by a hundredth.
        prop_assert!((0.2..1.011).contains(&Schedule::Polynomial.supervised(epoch)));
    }

    #[test]
    fn lfm_steps_stay_inside(epoch in 0usize..200, rate in 0.0..100.0f64, w in 0.05..=0.95f64, g in -10.0..10.0f64) {
        let (moved, slower) = released_step(epoch, rate, w, g);
        prop_assert!((0.05..=0.95).contains(&moved));
        prop_assert_eq!(slower, if epoch > 0 && epoch % 20 == 0 { rate / 2.0 } else { rate });
    }
}

#[test]
fn a_parameter_without_gradient_counts_as_zero_in_the_hypergradient() -> candle_core::Result<()> {
    let t = |v: &[f64]| candle_core::Tensor::new(v, &candle_core::Device::Cpu).map(Some);
    let (outer, supervised, matching) = (
        [t(&[1.0, 2.0])?, None, t(&[3.0])?],
        [t(&[5.0, 0.0])?, t(&[1.0])?, None],
        [None, t(&[1.0])?, t(&[7.0])?],
    );
    assert_eq!(unrolled_hypergradient(0.5, &outer, &supervised, &matching)?, -0.5 * (5.0 - 21.0));
    Ok(())
}
