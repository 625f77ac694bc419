//! Precision, recall and F1: per class, macro and micro.

use crate::ConfusionMatrix;

/// Precision, recall and F1 of one class, or their macro average over classes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassScores {
    /// The share of the predictions of this class that are right; 0 when it was never predicted.
    pub precision: f64,
    /// The share of the samples of this class that were found; 0 when it has no sample.
    pub recall: f64,
    /// The harmonic mean of precision and recall; 0 when both are 0.
    pub f1: f64,
}

/// Precision, recall and F1 of each class.
///
/// ```text
/// precision_j = TP_j / (TP_j + FP_j)
/// recall_j    = TP_j / (TP_j + FN_j)
/// F1_j        = 2 TP_j / (2 TP_j + FP_j + FN_j)
/// ```
///
/// A quotient 0/0 is 0, as with `zero_division=0` of scikit-learn. A class that appears neither in the labels nor
/// in the predictions has no scores: `None`. Result: one entry per class, range [0, 1].
pub fn class_scores(confusion: &ConfusionMatrix) -> Vec<Option<ClassScores>> {
    let (hits, support, predicted) = (confusion.hits(), confusion.support(), confusion.predicted());
    hits.iter()
        .zip(support.iter().zip(&predicted))
        .map(|(&hits, (&support, &predicted))| {
            (support + predicted > 0).then(|| ClassScores {
                precision: ratio(hits, predicted),
                recall: ratio(hits, support),
                f1: ratio(2 * hits, support + predicted),
            })
        })
        .collect()
}

/// The unweighted means of precision, recall and F1 over the classes that appear in the labels or the predictions.
///
/// ```text
/// macro F1 = (1/|A|) * sum over j in A of F1_j,   A = { j : class j appears in labels or predictions }
/// ```
///
/// This is scikit-learn's `average="macro"`: a class absent from both does not lower the mean, a class that is
/// predicted but never true counts as 0. Note that the macro F1 is the mean of the F1s, not the F1 of the means.
/// Range: [0, 1].
pub fn macro_scores(confusion: &ConfusionMatrix) -> ClassScores {
    let present: Vec<ClassScores> = class_scores(confusion).into_iter().flatten().collect();
    let mean = |field: fn(&ClassScores) -> f64| present.iter().map(field).sum::<f64>() / present.len() as f64;
    ClassScores { precision: mean(|s| s.precision), recall: mean(|s| s.recall), f1: mean(|s| s.f1) }
}

/// The F1 field of [`macro_scores`].
pub fn macro_f1(confusion: &ConfusionMatrix) -> f64 {
    macro_scores(confusion).f1
}

/// F1 of the counts pooled over all classes.
///
/// ```text
/// micro F1 = 2 TP / (2 TP + FP + FN)   with TP, FP, FN summed over the classes
/// ```
///
/// Every miss is one FP and one FN, so with one label per sample this equals the accuracy. Range: [0, 1].
pub fn micro_f1(confusion: &ConfusionMatrix) -> f64 {
    confusion.accuracy()
}

fn ratio(numerator: u64, denominator: u64) -> f64 {
    if denominator == 0 { 0.0 } else { numerator as f64 / denominator as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_absent_from_both_do_not_count() {
        // Class 2 is never predicted, class 3 is never true, class 4 does not appear.
        let confusion = ConfusionMatrix::new(&[0, 0, 1, 2], &[0, 1, 1, 3], 5).expect("valid");
        let scores = class_scores(&confusion);
        assert_eq!(scores[0], Some(ClassScores { precision: 1.0, recall: 0.5, f1: 2.0 / 3.0 }));
        assert_eq!(scores[2], Some(ClassScores { precision: 0.0, recall: 0.0, f1: 0.0 }));
        assert_eq!(scores[3], Some(ClassScores { precision: 0.0, recall: 0.0, f1: 0.0 }));
        assert_eq!(scores[4], None);
        assert!((macro_f1(&confusion) - (2.0 / 3.0 + 2.0 / 3.0) / 4.0).abs() < 1e-15);
        assert_eq!(micro_f1(&confusion), 0.5);
        assert_eq!(macro_scores(&confusion).precision, 1.5 / 4.0);
    }

    #[test]
    fn perfect_predictions_score_one() {
        let confusion = ConfusionMatrix::new(&[0, 2], &[0, 2], 3).expect("valid");
        assert_eq!(macro_scores(&confusion), ClassScores { precision: 1.0, recall: 1.0, f1: 1.0 });
    }
}
