//! Cohen's kappa: agreement beyond chance.

use crate::ConfusionMatrix;

/// Cohen's kappa: how much better than chance predictions and labels agree.
///
/// ```text
/// kappa = (p_o - p_e) / (1 - p_e),   p_o = h / n,   p_e = sum_j t_j p_j / n^2
/// ```
///
/// with n samples, h correct predictions, t_j samples of class j and p_j predictions of class j.
/// `None` when labels and predictions are all the same class: chance agreement is 1 and kappa is 0/0
/// (scikit-learn returns NaN). Range: [-1, 1]. Source: Cohen, "A coefficient of agreement for nominal scales",
/// 1960; unweighted.
pub fn cohen_kappa(confusion: &ConfusionMatrix) -> Option<f64> {
    let n = confusion.samples() as f64;
    let hits = confusion.hits().iter().sum::<u64>() as f64;
    let chance: f64 =
        confusion.support().iter().zip(&confusion.predicted()).map(|(&t, &p)| t as f64 * p as f64).sum();
    // Counts are exact in f64 (below 2^26 samples), so the comparison with zero is, too.
    let room = n * n - chance;
    (room > 0.0).then(|| (hits * n - chance) / room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kappa(labels: &[u32], predicted: &[u32]) -> Option<f64> {
        cohen_kappa(&ConfusionMatrix::new(labels, predicted, 3).expect("valid"))
    }

    #[test]
    fn agreement_beyond_chance() {
        assert_eq!(kappa(&[0, 1, 2], &[0, 1, 2]), Some(1.0));
        assert_eq!(kappa(&[0, 1, 0, 1], &[1, 0, 1, 0]), Some(-1.0));
        assert_eq!(kappa(&[0, 1, 2], &[1, 1, 1]), Some(0.0));
        // p_o = 3/4, p_e = (2*3 + 2*1)/16 = 1/2.
        assert_eq!(kappa(&[1, 1, 0, 0], &[1, 1, 1, 0]), Some(0.5));
    }

    #[test]
    fn undefined_when_everything_is_one_class() {
        assert_eq!(kappa(&[1, 1], &[1, 1]), None);
    }
}
