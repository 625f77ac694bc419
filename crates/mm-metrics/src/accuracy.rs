//! Accuracy: the share of samples whose predicted class is the true one.

use crate::MetricError;
use crate::error::{check_length, check_not_empty};

/// The share of samples whose predicted class is the true one (micro accuracy).
///
/// ```text
/// accuracy = (1/n) * sum over i of [predicted_i == label_i]
/// ```
///
/// Shapes: `labels` and `predicted` both `n`. Range: [0, 1]. Errors: no samples, different lengths.
/// Class indices are only compared, so there is no number of classes to check them against.
pub fn accuracy(labels: &[u32], predicted: &[u32]) -> Result<f64, MetricError> {
    let hits = correctness(labels, predicted)?.into_iter().filter(|&hit| hit).count();
    Ok(hits as f64 / labels.len() as f64)
}

/// Whether each prediction is right: the vectors that [`Agreement`](crate::Agreement) counts.
///
/// Shapes and errors as in [`accuracy`].
pub fn correctness(labels: &[u32], predicted: &[u32]) -> Result<Vec<bool>, MetricError> {
    check_not_empty("labels", labels)?;
    check_length("predicted", predicted.len(), labels.len(), "one prediction per label")?;
    Ok(labels.iter().zip(predicted).map(|(label, predicted)| label == predicted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_hits() {
        assert_eq!(accuracy(&[0, 1, 2, 2], &[0, 2, 2, 2]), Ok(0.75));
        assert_eq!(correctness(&[0, 1], &[0, 2]), Ok(vec![true, false]));
    }

    #[test]
    fn rejects_empty_and_unequal() {
        assert_eq!(accuracy(&[], &[]), Err(MetricError::Empty { what: "labels" }));
        assert!(matches!(accuracy(&[0, 1], &[0]), Err(MetricError::Length { expected: 2, actual: 1, .. })));
    }
}
