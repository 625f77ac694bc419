//! Paired comparison of two methods over the same seeds or folds.

use crate::error::{check_finite, check_length};
use crate::{MetricError, mean_std, student_t_quantile};

/// The mean difference of two methods with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedDifference {
    /// The number of pairs, at least one.
    pub n: usize,
    /// The mean of `a - b`.
    pub mean: f64,
    /// The sample standard deviation of the differences (ddof 1); `None` for a single pair.
    pub std: Option<f64>,
    /// The lower end of the confidence interval; `None` for a single pair.
    pub low: Option<f64>,
    /// The upper end of the confidence interval; `None` for a single pair.
    pub high: Option<f64>,
}

/// The mean of `a_i - b_i` and its two-sided Student confidence interval.
///
/// ```text
/// d_i = a_i - b_i,   interval = mean(d) -+ t * std(d) / sqrt(n)
/// ```
///
/// with the sample standard deviation and t the (1 + confidence)/2 quantile of Student's t distribution with n - 1
/// degrees of freedom. Pairs share a seed or fold, so what the seed does to both methods cancels. Differences that are
/// all equal give an interval of width zero. The interval assumes roughly normal differences; with three or five
/// seeds there is too little data to resample, which is why this is no bootstrap.
///
/// Shapes: `a` and `b` both `n`. Errors: no pairs, different lengths, a value that is not finite,
/// `confidence` outside (0, 1).
pub fn paired_difference(a: &[f64], b: &[f64], confidence: f64) -> Result<PairedDifference, MetricError> {
    check_length("b", b.len(), a.len(), "one value per value of a")?;
    check_finite("a", a)?;
    check_finite("b", b)?;
    if !(confidence > 0.0 && confidence < 1.0) {
        return Err(MetricError::Parameter {
            name: "confidence",
            value: confidence,
            rule: "must be above 0 and below 1; 0.95 is usual",
        });
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let summary = mean_std(&differences)?;
    let half_width = match summary.sample {
        None => None,
        Some(0.0) => Some(0.0),
        Some(std) => {
            let t = student_t_quantile(0.5 * (1.0 + confidence), (summary.n - 1) as f64)?;
            Some(t * std / (summary.n as f64).sqrt())
        }
    };
    Ok(PairedDifference {
        n: summary.n,
        mean: summary.mean,
        std: summary.sample,
        low: half_width.map(|half| summary.mean - half),
        high: half_width.map(|half| summary.mean + half),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_of_three_seeds() {
        // Differences 1, 2, 3: mean 2, std 1; with two degrees of freedom t has a closed form.
        let result = paired_difference(&[2.0, 4.0, 6.0], &[1.0, 2.0, 3.0], 0.95).expect("valid");
        let t = 0.95 * (2.0_f64 / (4.0 * 0.975 * 0.025)).sqrt();
        let half = t / 3.0_f64.sqrt();
        assert_eq!((result.n, result.mean, result.std), (3, 2.0, Some(1.0)));
        assert!((result.low.expect("three pairs") - (2.0 - half)).abs() < 1e-12);
        assert!((result.high.expect("three pairs") - (2.0 + half)).abs() < 1e-12);
    }

    #[test]
    fn one_pair_has_no_interval_and_equal_differences_no_width() {
        let one = paired_difference(&[2.0], &[1.5], 0.95).expect("valid");
        assert_eq!((one.n, one.mean, one.std, one.low, one.high), (1, 0.5, None, None, None));
        let equal = paired_difference(&[2.0, 3.0], &[1.5, 2.5], 0.95).expect("valid");
        assert_eq!((equal.mean, equal.low, equal.high), (0.5, Some(0.5), Some(0.5)));
    }

    #[test]
    fn rejects_what_has_no_interval() {
        assert!(matches!(paired_difference(&[1.0], &[], 0.95), Err(MetricError::Length { .. })));
        assert!(matches!(paired_difference(&[], &[], 0.95), Err(MetricError::Empty { .. })));
        assert!(matches!(
            paired_difference(&[1.0, 2.0], &[1.0, 2.5], 1.0),
            Err(MetricError::Parameter { name: "confidence", .. })
        ));
        // The largest confidence below 1 rounds to the quantile of 1, which is infinite: an error, not a panic.
        assert!(paired_difference(&[1.0, 2.0], &[1.0, 2.5], 1.0 - f64::EPSILON / 2.0).is_err());
        assert!(paired_difference(&[f64::NAN], &[1.0], 0.9).is_err());
    }
}
