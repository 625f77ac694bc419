//! Top-k accuracy: the share of samples whose true class is among the k largest scores.

use crate::{MetricError, Scores};

/// The share of samples whose true class is among the `k` largest scores of its row.
///
/// ```text
/// rank_i = #{ j : s_ij > s_iy } + #{ j < y : s_ij == s_iy },   y = label_i
/// top-k  = (1/n) * sum over i of [rank_i < k]
/// ```
///
/// Equal scores rank by class index, lowest first, so that k = 1 is exactly [`accuracy`](crate::accuracy) of
/// [`Scores::predictions`]. (scikit-learn's `top_k_accuracy_score` ranks equal scores highest index first;
/// without ties the two agree.)
///
/// Range: [0, 1], and 1 when `k` is the number of classes. Errors: `k` outside `1..=classes`.
pub fn top_k_accuracy(scores: &Scores<'_>, k: usize) -> Result<f64, MetricError> {
    if k == 0 || k > scores.classes() {
        return Err(MetricError::Parameter {
            name: "k",
            value: k as f64,
            rule: "must be between 1 and the number of classes; leave top-k out for datasets with few classes",
        });
    }
    let hits =
        scores.rows().zip(scores.labels()).filter(|(row, label)| rank(row, **label as usize) < k).count();
    Ok(hits as f64 / scores.samples() as f64)
}

/// The number of classes that come before `class` in a row.
fn rank(row: &[f64], class: usize) -> usize {
    let own = row[class];
    let before = row[..class].iter().filter(|&&score| score >= own).count();
    let after = row[class + 1..].iter().filter(|&&score| score > own).count();
    before + after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_k_and_breaks_ties_by_index() {
        let scores = [0.1, 0.3, 0.6, 0.6, 0.3, 0.1, 0.5, 0.5, 0.0];
        let scores = Scores::new(&scores, &[1, 1, 1], 3).expect("valid");
        assert_eq!(top_k_accuracy(&scores, 1), Ok(0.0));
        assert_eq!(top_k_accuracy(&scores, 2), Ok(1.0));
        assert_eq!(top_k_accuracy(&scores, 3), Ok(1.0));
        let tied = Scores::new(&[0.5, 0.5], &[0], 2).expect("valid");
        assert_eq!(top_k_accuracy(&tied, 1), Ok(1.0));
    }

    #[test]
    fn rejects_k_outside_the_classes() {
        let scores = Scores::new(&[0.5, 0.5], &[0], 2).expect("valid");
        assert!(matches!(top_k_accuracy(&scores, 0), Err(MetricError::Parameter { name: "k", .. })));
        assert!(top_k_accuracy(&scores, 3).is_err());
    }
}
