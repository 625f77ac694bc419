//! The Matthews correlation coefficient for any number of classes.

use crate::ConfusionMatrix;

/// The Matthews correlation coefficient: the correlation of true and predicted class indicators.
///
/// ```text
/// MCC = (h n - sum_j t_j p_j) / sqrt((n^2 - sum_j p_j^2) (n^2 - sum_j t_j^2))
/// ```
///
/// with n samples, h correct predictions, t_j samples of class j and p_j predictions of class j.
/// When all labels or all predictions are one class the quotient is 0/0 and the result is 0, as in scikit-learn.
/// Range: [-1, 1]. Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation
/// coefficient", 2004.
pub fn matthews_correlation(confusion: &ConfusionMatrix) -> f64 {
    let n = confusion.samples() as f64;
    let hits = confusion.hits().iter().sum::<u64>() as f64;
    let (support, predicted) = (confusion.support(), confusion.predicted());
    let dot = |a: &[u64], b: &[u64]| a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>();
    let variance = (n * n - dot(&predicted, &predicted)) * (n * n - dot(&support, &support));
    if variance == 0.0 { 0.0 } else { (hits * n - dot(&support, &predicted)) / variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mcc(labels: &[u32], predicted: &[u32]) -> f64 {
        matthews_correlation(&ConfusionMatrix::new(labels, predicted, 3).expect("valid"))
    }

    #[test]
    fn ends_and_middle_of_the_range() {
        assert_eq!(mcc(&[0, 1, 2, 1], &[0, 1, 2, 1]), 1.0);
        assert_eq!(mcc(&[0, 1, 0, 1], &[1, 0, 1, 0]), -1.0);
        // TP 2, TN 1, FP 1, FN 0: 2 / sqrt(3 * 2 * 2 * 1).
        assert!((mcc(&[1, 1, 0, 0], &[1, 1, 1, 0]) - 2.0 / 12.0_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn one_class_alone_gives_zero() {
        assert_eq!(mcc(&[0, 1, 2], &[1, 1, 1]), 0.0);
        assert_eq!(mcc(&[1, 1], &[1, 1]), 0.0);
    }
}
