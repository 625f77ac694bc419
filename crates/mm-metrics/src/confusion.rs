//! The confusion matrix: how often each true class was predicted as each class.

use crate::MetricError;
use crate::error::{check_class_count, check_classes, check_length, check_not_empty};

/// How often each true class (row) was predicted as each class (column).
///
/// ```text
/// C_tp = #{ i : label_i == t and predicted_i == p }
/// ```
///
/// It holds at least one sample and only valid classes, so [`class_scores`](crate::class_scores),
/// [`matthews_correlation`](crate::matthews_correlation) and [`cohen_kappa`](crate::cohen_kappa), which are
/// computed from it, cannot fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfusionMatrix {
    counts: Vec<u64>,
    classes: usize,
}

impl ConfusionMatrix {
    /// Counts pairs of true and predicted classes.
    ///
    /// Shapes: `labels` and `predicted` both `n`, every entry below `classes`. Errors: no samples, no classes,
    /// different lengths, a class out of range.
    pub fn new(labels: &[u32], predicted: &[u32], classes: usize) -> Result<Self, MetricError> {
        check_class_count(classes)?;
        check_not_empty("labels", labels)?;
        check_length("predicted", predicted.len(), labels.len(), "one prediction per label")?;
        check_classes("labels", labels, classes)?;
        check_classes("predicted", predicted, classes)?;
        let mut counts = vec![0; classes * classes];
        for (&label, &predicted) in labels.iter().zip(predicted) {
            counts[label as usize * classes + predicted as usize] += 1;
        }
        Ok(Self { counts, classes })
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The number of samples, at least one.
    pub fn samples(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The counts, row-major: `classes x classes`, rows true, columns predicted.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The rows, one per true class.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u64]> {
        self.counts.chunks_exact(self.classes)
    }

    /// The number of samples of each true class: the row sums.
    pub fn support(&self) -> Vec<u64> {
        self.rows().map(|row| row.iter().sum()).collect()
    }

    /// How often each class was predicted: the column sums.
    pub fn predicted(&self) -> Vec<u64> {
        let mut sums = vec![0; self.classes];
        for row in self.rows() {
            for (sum, count) in sums.iter_mut().zip(row) {
                *sum += count;
            }
        }
        sums
    }

    /// The number of correct predictions of each class: the diagonal.
    pub fn hits(&self) -> Vec<u64> {
        self.counts.iter().step_by(self.classes + 1).copied().collect()
    }

    /// The share of correct predictions: the trace over the sum.
    pub fn accuracy(&self) -> f64 {
        self.hits().iter().sum::<u64>() as f64 / self.samples() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_true_and_columns_predicted() {
        let matrix = ConfusionMatrix::new(&[0, 0, 1, 2], &[0, 1, 1, 1], 4).expect("valid");
        assert_eq!(matrix.counts(), [1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(matrix.support(), [2, 1, 1, 0]);
        assert_eq!(matrix.predicted(), [1, 3, 0, 0]);
        assert_eq!(matrix.hits(), [1, 1, 0, 0]);
        assert_eq!(matrix.accuracy(), 0.5);
        assert_eq!(matrix.samples(), 4);
    }

    #[test]
    fn rejects_classes_out_of_range() {
        let error = ConfusionMatrix::new(&[0, 1], &[0, 2], 2);
        assert_eq!(
            error,
            Err(MetricError::ClassOutOfRange { what: "predicted", index: 1, class: 2, classes: 2 })
        );
        assert!(ConfusionMatrix::new(&[2], &[0], 2).is_err());
        assert!(ConfusionMatrix::new(&[], &[], 2).is_err());
        assert!(ConfusionMatrix::new(&[0], &[0], 0).is_err());
        assert!(ConfusionMatrix::new(&[0], &[0], u32::MAX as usize).is_err());
    }
}
