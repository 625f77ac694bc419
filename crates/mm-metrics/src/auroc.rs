//! Area under the ROC curve, one class against the rest.

use crate::one_vs_rest::{TieGroup, one_vs_rest, totals};
use crate::{OneVsRest, Scores};

/// The area under the ROC curve of each class against the rest, and its mean.
///
/// ```text
/// AUROC_j = P(s_j of a sample of class j > s_j of another sample) + 1/2 P(the two are equal)
/// ```
///
/// over all pairs of a positive and a negative sample (the Mann-Whitney U statistic over its maximum). Only the order
/// of the scores within a class matters, so logits and probabilities may differ: softmax does not keep the order of
/// one class's logits across samples. Published numbers use the softmax.
///
/// A class without a positive or without a negative sample has no value and does not enter the mean;
/// [`OneVsRest::counted`] says how many classes did. With every class present the mean equals scikit-learn's
/// `roc_auc_score(multi_class="ovr", average="macro")`, which refuses data with an absent class. For two classes the
/// usual binary AUROC is `per_class[1]`. Range: [0, 1].
pub fn auroc(scores: &Scores<'_>) -> OneVsRest {
    one_vs_rest(scores, area)
}

fn area(groups: &[TieGroup]) -> Option<f64> {
    let (positives, negatives) = totals(groups);
    if positives == 0 || negatives == 0 {
        return None;
    }
    // Twice the U statistic, in integers: exact, hence unchanged by any monotone map of the scores.
    let mut doubled: u128 = 0;
    let mut above: u64 = 0;
    for group in groups {
        doubled += u128::from(group.negatives) * u128::from(2 * above + group.positives);
        above += group.positives;
    }
    Some(doubled as f64 / (2.0 * positives as f64 * negatives as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_pairs_and_half_pairs() {
        // Class 1: positives 0.8, 0.5; negatives 0.5, 0.1. Of 4 pairs 3 are in order and 1 is tied.
        let scores = [0.2, 0.8, 0.5, 0.5, 0.5, 0.5, 0.9, 0.1];
        let result = auroc(&Scores::new(&scores, &[1, 1, 0, 0], 2).expect("valid"));
        assert_eq!(result.per_class, [Some(0.875), Some(0.875)]);
        assert_eq!((result.mean, result.counted), (Some(0.875), 2));
    }

    #[test]
    fn absent_classes_are_skipped_and_counted() {
        let scores = [0.6, 0.3, 0.1, 0.3, 0.6, 0.1];
        let result = auroc(&Scores::new(&scores, &[0, 1], 3).expect("valid"));
        assert_eq!(result.per_class, [Some(1.0), Some(1.0), None]);
        assert_eq!((result.mean, result.counted), (Some(1.0), 2));
        let alone = auroc(&Scores::new(&scores, &[0, 0], 3).expect("valid"));
        assert_eq!((alone.mean, alone.counted), (None, 0));
    }
}
