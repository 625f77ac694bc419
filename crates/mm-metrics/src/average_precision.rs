//! Average precision, one class against the rest; its mean is the mAP.

use crate::one_vs_rest::{TieGroup, one_vs_rest, totals};
use crate::{OneVsRest, Scores};

/// The average precision of each class against the rest, and its mean (mAP).
///
/// ```text
/// AP_j = sum over thresholds k of (R_k - R_(k-1)) P_k
/// ```
///
/// with P_k and R_k the precision and recall when every sample whose score is at least the k-th largest distinct score
/// counts as class j. This is the step function of scikit-learn's `average_precision_score`, without interpolation;
/// equal scores share one threshold.
///
/// A class without a positive sample has no value and does not enter the mean; [`OneVsRest::counted`] says how
/// many classes did (scikit-learn counts such a class as 0 in its macro mean). Range: (0, 1].
pub fn average_precision(scores: &Scores<'_>) -> OneVsRest {
    one_vs_rest(scores, step_sum)
}

fn step_sum(groups: &[TieGroup]) -> Option<f64> {
    let (positives, _) = totals(groups);
    if positives == 0 {
        return None;
    }
    let (mut found, mut seen, mut sum) = (0, 0, 0.0);
    for group in groups {
        found += group.positives;
        seen += group.positives + group.negatives;
        sum += group.positives as f64 * (found as f64 / seen as f64);
    }
    Some(sum / positives as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_the_precision_at_each_positive() {
        // Ranking of class 1: hit, miss, hit -> (1 + 2/3) / 2. Of class 0: its one positive comes second -> 1/2.
        let scores = [0.1, 0.9, 0.4, 0.6, 0.7, 0.3];
        let result = average_precision(&Scores::new(&scores, &[1, 0, 1], 2).expect("valid"));
        assert!((result.per_class[1].expect("present") - 5.0 / 6.0).abs() < 1e-15);
        assert_eq!(result.per_class[0], Some(0.5));
    }

    #[test]
    fn ties_share_a_threshold_and_absent_classes_are_skipped() {
        let scores = [0.5, 0.5, 0.0, 0.5, 0.5, 0.0];
        let result = average_precision(&Scores::new(&scores, &[0, 1], 3).expect("valid"));
        assert_eq!(result.per_class, [Some(0.5), Some(0.5), None]);
        assert_eq!((result.mean, result.counted), (Some(0.5), 2));
        let all = average_precision(&Scores::new(&scores, &[0, 0], 3).expect("valid"));
        assert_eq!((all.mean, all.counted), (Some(1.0), 1));
    }
}
