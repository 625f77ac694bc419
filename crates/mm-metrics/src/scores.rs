//! Rows of scores with their labels, validated once; softmax and argmax over rows.

use crate::error::{check_class_count, check_classes, check_matrix, check_not_empty};
use crate::{MetricError, error};

/// How far a row of probabilities may be from summing to one: the rounding of a softmax in single precision
/// over a few thousand classes.
const ROW_SUM_TOLERANCE: f64 = 1e-4;

/// Scores of `n` samples over `c` classes and the true labels: a borrowed view that has been validated.
///
/// Every metric that ranks or calibrates takes this view, so a label out of range or a NaN is found in one
/// place, [`Scores::new`].
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    values: &'a [f64],
    labels: &'a [u32],
    classes: usize,
}

impl<'a> Scores<'a> {
    /// Views row-major `scores` (`n x classes`; logits or probabilities, larger means more likely) beside `labels`
    /// (`n`, each below `classes`).
    ///
    /// Errors: no samples, no classes, lengths that do not fit, a label out of range, a NaN. Infinities are
    /// allowed, because minus infinity is a usual logit of a masked class.
    pub fn new(scores: &'a [f64], labels: &'a [u32], classes: usize) -> Result<Self, MetricError> {
        check_class_count(classes)?;
        check_not_empty("labels", labels)?;
        check_matrix("scores", scores.len(), labels.len(), classes, "labels x classes")?;
        check_classes("labels", labels, classes)?;
        if let Some(index) = scores.iter().position(|score| score.is_nan()) {
            return Err(MetricError::NotFinite { what: "scores", index, value: f64::NAN });
        }
        Ok(Self { values: scores, labels, classes })
    }

    /// The number of samples, at least one.
    pub fn samples(&self) -> usize {
        self.labels.len()
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The true labels.
    pub fn labels(&self) -> &'a [u32] {
        self.labels
    }

    /// The rows of scores, in the order of the samples.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &'a [f64]> + use<'a> {
        self.values.chunks_exact(self.classes)
    }

    /// The scores of one class, in the order of the samples.
    pub(crate) fn column(&self, class: usize) -> impl Iterator<Item = f64> + use<'a> {
        self.values.iter().skip(class).step_by(self.classes).copied()
    }

    /// The predicted classes: the largest score of each row, the lowest index among equals.
    pub fn predictions(&self) -> Vec<u32> {
        self.rows().map(|row| argmax(row) as u32).collect()
    }

    /// Errors unless every row is a probability distribution (entries in [0, 1], sum 1 within 1e-4).
    pub(crate) fn check_probabilities(&self) -> Result<(), MetricError> {
        for (row, scores) in self.rows().enumerate() {
            let mut sum = 0.0;
            for &value in scores {
                if !(0.0..=1.0).contains(&value) {
                    return Err(MetricError::NotProbability { row, quantity: "an entry", value });
                }
                sum += value;
            }
            if (sum - 1.0).abs() > ROW_SUM_TOLERANCE {
                return Err(MetricError::NotProbability { row, quantity: "the sum", value: sum });
            }
        }
        Ok(())
    }
}

/// The softmax of each row of `logits` (row-major, `n x classes`), in double precision.
///
/// ```text
/// p_ij = exp(z_ij - m_i) / sum over j' of exp(z_ij' - m_i),   m_i = max over j of z_ij
/// ```
///
/// Takes `f32` or `f64`; no rows give no rows. Minus infinity is allowed and gives probability zero.
/// Errors: no classes, a length that is no multiple of `classes`, NaN, plus infinity, a row of only minus infinity.
pub fn softmax_rows<T: Copy + Into<f64>>(logits: &[T], classes: usize) -> Result<Vec<f64>, MetricError> {
    check_rows("logits", logits.len(), classes)?;
    let mut out: Vec<f64> = logits.iter().map(|&value| value.into()).collect();
    for (row, values) in out.chunks_exact_mut(classes).enumerate() {
        let max = row_max("logits", row, values)?;
        if max.is_infinite() {
            let column = argmax(values);
            return Err(MetricError::NotFinite { what: "logits", index: row * classes + column, value: max });
        }
        let mut sum = 0.0;
        for value in &mut *values {
            *value = (*value - max).exp();
            sum += *value;
        }
        for value in values {
            *value /= sum;
        }
    }
    Ok(out)
}

/// The index of the largest entry of each row of `scores` (row-major, `n x classes`); among equals the lowest
/// index, as in NumPy and PyTorch.
///
/// Takes `f32` or `f64`. Errors: no classes, a length that is no multiple of `classes`, NaN.
pub fn argmax_rows<T: Copy + Into<f64>>(scores: &[T], classes: usize) -> Result<Vec<u32>, MetricError> {
    check_rows("scores", scores.len(), classes)?;
    let mut values = vec![0.0; classes];
    scores
        .chunks_exact(classes)
        .enumerate()
        .map(|(row, scores)| {
            for (value, &score) in values.iter_mut().zip(scores) {
                *value = score.into();
            }
            row_max("scores", row, &values)?;
            Ok(argmax(&values) as u32)
        })
        .collect()
}

/// The index of the first largest entry of a row without NaN.
pub(crate) fn argmax(row: &[f64]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

/// The largest entry of a row; a NaN is an error.
fn row_max(what: &'static str, row: usize, values: &[f64]) -> Result<f64, MetricError> {
    let mut max = f64::NEG_INFINITY;
    for (column, &value) in values.iter().enumerate() {
        if value.is_nan() {
            return Err(MetricError::NotFinite { what, index: row * values.len() + column, value });
        }
        max = max.max(value);
    }
    Ok(max)
}

fn check_rows(what: &'static str, length: usize, classes: usize) -> Result<(), MetricError> {
    check_class_count(classes)?;
    let rule = "a whole number of rows of `classes` entries";
    error::check_length(what, length, length.next_multiple_of(classes), rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_is_stable_and_normalised() {
        let p = softmax_rows(&[1000.0_f64, 1000.0, 0.0, 0.0_f64.ln(), 0.0, 2.0_f64.ln()], 3).expect("valid");
        assert_eq!(&p[..3], &[0.5, 0.5, 0.0]);
        assert_eq!(p[3], 0.0);
        assert!((p[4] - 1.0 / 3.0).abs() < 1e-15 && (p[5] - 2.0 / 3.0).abs() < 1e-15);
        assert_eq!(softmax_rows(&[0.0_f32, 0.0], 2).expect("valid"), [0.5, 0.5]);
    }

    #[test]
    fn softmax_rejects_what_has_no_softmax() {
        let infinite = softmax_rows(&[0.0, 1.0, 0.0, f64::INFINITY], 2);
        assert_eq!(infinite, Err(MetricError::NotFinite { what: "logits", index: 3, value: f64::INFINITY }));
        assert!(softmax_rows(&[f64::NEG_INFINITY, f64::NEG_INFINITY], 2).is_err());
        assert!(softmax_rows(&[0.0, f64::NAN], 2).is_err());
        assert!(softmax_rows(&[0.0, 0.0, 0.0], 2).is_err());
        assert!(softmax_rows(&[0.0], 0).is_err());
    }

    #[test]
    fn argmax_takes_the_first_of_equals() {
        assert_eq!(argmax_rows(&[1.0_f32, 3.0, 3.0, -1.0, -1.0, -2.0], 3).expect("valid"), [1, 0]);
        let masked = [f64::NEG_INFINITY, f64::NEG_INFINITY];
        assert_eq!(argmax_rows(&masked, 2).expect("valid"), [0]);
        assert!(argmax_rows(&[0.0, f64::NAN], 2).is_err());
    }

    #[test]
    fn view_validates_once() {
        let scores = [0.2, 0.8, 0.5, 0.5];
        let view = Scores::new(&scores, &[1, 0], 2).expect("valid");
        assert_eq!((view.samples(), view.classes()), (2, 2));
        assert_eq!(view.predictions(), [1, 0]);
        assert_eq!(view.column(1).collect::<Vec<_>>(), [0.8, 0.5]);
        assert!(view.check_probabilities().is_ok());

        assert_eq!(Scores::new(&[], &[], 2).err(), Some(MetricError::Empty { what: "labels" }));
        assert!(matches!(
            Scores::new(&scores, &[1], 2),
            Err(MetricError::Length { actual: 4, expected: 2, .. })
        ));
        assert!(matches!(
            Scores::new(&scores, &[1, 2], 2),
            Err(MetricError::ClassOutOfRange { index: 1, class: 2, .. })
        ));
        assert!(matches!(
            Scores::new(&[0.0, f64::NAN], &[1], 2),
            Err(MetricError::NotFinite { index: 1, .. })
        ));
    }

    #[test]
    fn logits_are_not_probabilities() {
        let view = Scores::new(&[0.4, 0.6, 2.0, -1.0], &[1, 0], 2).expect("valid");
        assert_eq!(
            view.check_probabilities(),
            Err(MetricError::NotProbability { row: 1, quantity: "an entry", value: 2.0 })
        );
        let view = Scores::new(&[0.5, 0.25], &[1], 2).expect("valid");
        assert_eq!(
            view.check_probabilities(),
            Err(MetricError::NotProbability { row: 0, quantity: "the sum", value: 0.75 })
        );
    }
}
