//! The Brier score: the squared distance of the probabilities from the truth.

use crate::{MetricError, Scores};

/// The Brier score in its multi-class form: the mean squared distance of the probabilities from the one-hot label.
///
/// ```text
/// Brier = (1/n) * sum over i of sum over j of (p_ij - [label_i == j])^2
/// ```
///
/// Range: [0, 2]. For two classes the inner sum holds the same square twice, so this is twice the usual binary
/// Brier score (1/n) sum (p_i1 - y_i)^2. scikit-learn: `brier_score_loss(..., scale_by_half=False)`.
/// `scores` must be probabilities; logits are an error. Source: Brier, "Verification of forecasts expressed in terms
/// of probability", 1950.
pub fn brier(scores: &Scores<'_>) -> Result<f64, MetricError> {
    scores.check_probabilities()?;
    let sum: f64 = scores
        .rows()
        .zip(scores.labels())
        .flat_map(|(row, &label)| {
            row.iter().enumerate().map(move |(class, &p)| if class == label as usize { p - 1.0 } else { p })
        })
        .map(|distance| distance * distance)
        .sum();
    Ok(sum / scores.samples() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_twice_the_binary_score() {
        let scores = Scores::new(&[0.75, 0.25, 0.5, 0.5], &[0, 1], 2).expect("valid");
        let binary = 0.5 * (0.25_f64.powi(2) + 0.5_f64.powi(2));
        assert_eq!(brier(&scores), Ok(2.0 * binary));
    }

    #[test]
    fn ends_of_the_range() {
        let sure = [1.0, 0.0, 0.0];
        assert_eq!(brier(&Scores::new(&sure, &[0], 3).expect("valid")), Ok(0.0));
        assert_eq!(brier(&Scores::new(&sure, &[1], 3).expect("valid")), Ok(2.0));
        assert!(brier(&Scores::new(&[3.0, 0.0], &[1], 2).expect("valid")).is_err());
    }
}
