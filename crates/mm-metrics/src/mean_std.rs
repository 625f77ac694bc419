//! Mean and standard deviation over seeds or folds.

use crate::MetricError;
use crate::error::{check_finite, check_not_empty};

/// A mean with both conventions of the standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanStd {
    /// The number of values, at least one.
    pub n: usize,
    /// The mean.
    pub mean: f64,
    /// The standard deviation of the values themselves, dividing by `n` (NumPy's default, ddof 0).
    pub population: f64,
    /// The estimate for the distribution that the values are a sample of, dividing by `n - 1` (ddof 1);
    /// `None` for a single value.
    pub sample: Option<f64>,
}

/// The mean and the standard deviations of `values`.
///
/// ```text
/// mean = (1/n) sum x_i,   population = sqrt((1/n) sum (x_i - mean)^2),   sample = sqrt((1/(n-1)) sum (x_i - mean)^2)
/// ```
///
/// Papers seldom say which they print; over three seeds the two differ by a factor of 1.22, so say which.
/// Errors: no values, a value that is not finite.
pub fn mean_std(values: &[f64]) -> Result<MeanStd, MetricError> {
    check_not_empty("values", values)?;
    check_finite("values", values)?;
    let n = values.len();
    let rough = values.iter().sum::<f64>() / n as f64;
    // The second pass removes the rounding of the first: equal values get exactly their value and spread zero.
    let mean = rough + values.iter().map(|x| x - rough).sum::<f64>() / n as f64;
    let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
    Ok(MeanStd {
        n,
        mean,
        population: (squares / n as f64).sqrt(),
        sample: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_conventions() {
        let summary = mean_std(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).expect("valid");
        assert_eq!((summary.n, summary.mean, summary.population), (8, 5.0, 2.0));
        assert_eq!(summary.sample, Some((32.0_f64 / 7.0).sqrt()));
        let one = mean_std(&[3.5]).expect("valid");
        assert_eq!((one.mean, one.population, one.sample), (3.5, 0.0, None));
    }

    #[test]
    fn equal_values_have_no_spread() {
        let summary = mean_std(&[0.1; 7]).expect("valid");
        assert_eq!((summary.mean, summary.population), (0.1, 0.0));
    }

    #[test]
    fn rejects_nothing_and_nan() {
        assert_eq!(mean_std(&[]), Err(MetricError::Empty { what: "values" }));
        assert!(matches!(mean_std(&[1.0, f64::NAN]), Err(MetricError::NotFinite { index: 1, .. })));
    }
}
