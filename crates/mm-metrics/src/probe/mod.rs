//! The linear probe: multinomial logistic regression on frozen features.

mod lbfgs;
mod loss;

use crate::error::{
    check_class_count, check_classes, check_finite, check_length, check_matrix, check_not_empty,
};
use crate::scores::argmax;
use crate::{MetricError, accuracy};

use self::lbfgs::Limits;
use self::loss::{Objective, dot};

/// How a [`LinearProbe`] is fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeConfig {
    /// C of the objective, the inverse of the strength of the L2 penalty: above 0 and finite. Default 1.
    pub inverse_strength: f64,
    /// The fit has converged when no entry of the gradient of the mean loss is larger: at least 0. Default 1e-6.
    pub tolerance: f64,
    /// The largest number of L-BFGS iterations: at least 1. Default 1000.
    pub max_iterations: usize,
    /// The number of past steps from which L-BFGS models the curvature: at least 1. Default 10.
    pub memory: usize,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { inverse_strength: 1.0, tolerance: 1e-6, max_iterations: 1000, memory: 10 }
    }
}

impl ProbeConfig {
    fn check(&self) -> Result<(), MetricError> {
        let invalid = |name, value, rule| Err(MetricError::Parameter { name, value, rule });
        if !(self.inverse_strength > 0.0 && self.inverse_strength.is_finite()) {
            let rule = "must be above 0 and finite; 1 is usual, larger values penalise less";
            return invalid("inverse_strength", self.inverse_strength, rule);
        }
        if !(self.tolerance >= 0.0 && self.tolerance.is_finite()) {
            return invalid("tolerance", self.tolerance, "must be at least 0 and finite; 1e-6 is usual");
        }
        if self.max_iterations == 0 {
            return invalid("max_iterations", 0.0, "must be at least 1; 1000 is usual");
        }
        if self.memory == 0 {
            return invalid("memory", 0.0, "must be at least 1; 10 is usual");
        }
        Ok(())
    }
}

/// A linear classifier on frozen features: how much of the label a linear map can read from them.
///
/// ```text
/// z_i  = W (x_i - mean) / scale + b
/// W, b = argmin  C * sum over i of -log softmax(z_i)[label_i]  +  1/2 ||W||^2
/// ```
///
/// `mean` and `scale` are the mean and the population standard deviation of each training feature; a feature that is
/// constant in training has scale 1. The intercepts are not penalised. This is scikit-learn's `StandardScaler`
/// followed by `LogisticRegression(C)`, and so are its two corner cases:
///
/// - with two classes in the training labels the penalty counts the one difference vector that scikit-learn
///   fits: it is ||W_1 - W_0||^2 / 2 instead of ||W||^2 / 2, and `z_1 - z_0` is its decision function;
/// - a class that is absent from the training labels is not fitted: its logit is minus infinity and it is never
///   predicted.
///
/// The objective is convex and is minimised by L-BFGS in double precision from zero, in one thread: the same input
/// gives the same bits.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbe {
    means: Vec<f64>,
    scales: Vec<f64>,
    weights: Vec<f64>,
    intercepts: Vec<f64>,
    iterations: usize,
    converged: bool,
}

impl LinearProbe {
    /// Fits the probe to `features` (row-major, `n x d`, `f32` or `f64`) and `labels` (`n`, each below `classes`).
    ///
    /// A fit that meets `max_iterations` first, or whose tolerance is below what rounding allows, still returns the
    /// probe; [`LinearProbe::converged`] tells. Errors: empty or unequal input, a label out of range, a feature
    /// that is not finite, fewer than two classes among the labels, a parameter out of range.
    pub fn fit<T: Copy + Into<f64>>(
        features: &[T],
        n: usize,
        d: usize,
        labels: &[u32],
        classes: usize,
        config: &ProbeConfig,
    ) -> Result<Self, MetricError> {
        config.check()?;
        check_class_count(classes)?;
        check_not_empty("labels", labels)?;
        check_not_empty("features", features)?;
        check_length("labels", labels.len(), n, "n")?;
        check_matrix("features", features.len(), n, d, "n x d")?;
        check_classes("labels", labels, classes)?;

        let mut x = to_f64(features)?;
        let (means, scales) = moments(&x, d);
        check_finite("the standard deviations of the features", &scales)?;
        standardise(&mut x, &means, &scales);

        let (seen, targets) = compact(labels, classes);
        if let [class] = seen[..] {
            return Err(MetricError::SingleClass { class: class as u32 });
        }
        // Per sample, because the loss is a mean. With two classes W_1 = -W_0 at the minimum, and the penalty on
        // their difference, ||W_1 - W_0||^2 = 2 ||W||^2, is twice that on the two rows.
        let rows_per_vector = if seen.len() == 2 { 2.0 } else { 1.0 };
        let penalty = rows_per_vector / (config.inverse_strength * n as f64);
        let mut objective = Objective::new(&x, &targets, d, seen.len(), penalty);
        let mut parameters = vec![0.0; seen.len() * (d + 1)];
        let limits = Limits {
            tolerance: config.tolerance,
            max_iterations: config.max_iterations,
            memory: config.memory,
        };
        let outcome =
            lbfgs::minimise(&mut parameters, &limits, |at, gradient| objective.evaluate(at, gradient));

        let mut weights = vec![0.0; classes * d];
        let mut intercepts = vec![f64::NEG_INFINITY; classes];
        let (fitted, fitted_intercepts) = parameters.split_at(seen.len() * d);
        for ((&class, row), &intercept) in seen.iter().zip(fitted.chunks_exact(d)).zip(fitted_intercepts) {
            weights[class * d..(class + 1) * d].copy_from_slice(row);
            intercepts[class] = intercept;
        }
        Ok(Self {
            means,
            scales,
            weights,
            intercepts,
            iterations: outcome.iterations,
            converged: outcome.converged,
        })
    }

    /// The logits of `features` (row-major, `n x d`), row-major `n x classes`.
    ///
    /// Errors: no features, a length that is no multiple of d, a feature that is not finite.
    pub fn logits<T: Copy + Into<f64>>(&self, features: &[T]) -> Result<Vec<f64>, MetricError> {
        let d = self.means.len();
        check_not_empty("features", features)?;
        check_length(
            "features",
            features.len(),
            features.len().next_multiple_of(d),
            "whole rows of d features",
        )?;
        let mut x = to_f64(features)?;
        standardise(&mut x, &self.means, &self.scales);
        let logits = x.chunks_exact(d).flat_map(|x| {
            self.weights.chunks_exact(d).zip(&self.intercepts).map(move |(w, b)| dot(w, x) + b)
        });
        Ok(logits.collect())
    }

    /// The predicted classes of `features`; errors as in [`LinearProbe::logits`].
    pub fn predict<T: Copy + Into<f64>>(&self, features: &[T]) -> Result<Vec<u32>, MetricError> {
        let logits = self.logits(features)?;
        Ok(logits.chunks_exact(self.classes()).map(|row| argmax(row) as u32).collect())
    }

    /// The accuracy on `features` with `labels`; errors as in [`LinearProbe::logits`] and [`accuracy`].
    pub fn accuracy<T: Copy + Into<f64>>(&self, features: &[T], labels: &[u32]) -> Result<f64, MetricError> {
        accuracy(labels, &self.predict(features)?)
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.intercepts.len()
    }

    /// The weights W on standardised features, row-major `classes x d`; zero for a class that was not fitted.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The intercepts b, one per class; minus infinity for a class that was not fitted.
    pub fn intercepts(&self) -> &[f64] {
        &self.intercepts
    }

    /// The mean of each training feature.
    pub fn means(&self) -> &[f64] {
        &self.means
    }

    /// What each centred feature is divided by.
    pub fn scales(&self) -> &[f64] {
        &self.scales
    }

    /// The number of L-BFGS iterations of the fit.
    pub fn iterations(&self) -> usize {
        self.iterations
    }

    /// Whether the gradient fell below the tolerance.
    pub fn converged(&self) -> bool {
        self.converged
    }
}

fn to_f64<T: Copy + Into<f64>>(features: &[T]) -> Result<Vec<f64>, MetricError> {
    let x: Vec<f64> = features.iter().map(|&value| value.into()).collect();
    check_finite("features", &x)?;
    Ok(x)
}

/// The mean and the scale of each column.
fn moments(x: &[f64], d: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (x.len() / d) as f64;
    let mut means = vec![0.0; d];
    for row in x.chunks_exact(d) {
        means.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    for sum in &mut means {
        *sum /= n;
    }
    let mut variances = vec![0.0; d];
    for row in x.chunks_exact(d) {
        for ((sum, value), mean) in variances.iter_mut().zip(row).zip(&means) {
            *sum += (value - mean) * (value - mean);
        }
    }
    let scale = |(sum, mean): (&f64, &f64)| {
        let variance = sum / n;
        // The variance that rounding alone gives a constant column: dividing by it would turn noise into a feature.
        let rounding = (n * mean * f64::EPSILON).powi(2) + n * f64::EPSILON * variance;
        if variance.is_finite() && variance <= rounding { 1.0 } else { variance.sqrt() }
    };
    let scales = variances.iter().zip(&means).map(scale).collect();
    (means, scales)
}

fn standardise(x: &mut [f64], means: &[f64], scales: &[f64]) {
    for row in x.chunks_exact_mut(means.len()) {
        for ((value, mean), scale) in row.iter_mut().zip(means).zip(scales) {
            *value = (*value - mean) / scale;
        }
    }
}

/// The classes that occur, ascending, and each label's position among them.
fn compact(labels: &[u32], classes: usize) -> (Vec<usize>, Vec<usize>) {
    let mut position = vec![usize::MAX; classes];
    for &label in labels {
        position[label as usize] = 0;
    }
    let seen: Vec<usize> = (0..classes).filter(|&class| position[class] == 0).collect();
    for (index, &class) in seen.iter().enumerate() {
        position[class] = index;
    }
    (seen, labels.iter().map(|&label| position[label as usize]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two clouds on a line, a constant column, and an unused class 1.
    const FEATURES: [f64; 12] = [-2.0, 0.1, -1.0, 0.1, -1.5, 0.1, 1.0, 0.1, 2.0, 0.1, 1.5, 0.1];
    const LABELS: [u32; 6] = [0, 0, 0, 2, 2, 2];

    #[test]
    fn separates_two_clouds_and_never_predicts_an_absent_class() {
        let probe = LinearProbe::fit(&FEATURES, 6, 2, &LABELS, 3, &ProbeConfig::default()).expect("valid");
        assert!(probe.converged());
        assert_eq!(probe.accuracy(&FEATURES, &LABELS), Ok(1.0));
        assert_eq!(probe.predict(&[-1.0_f32, 0.0, 3.0, 9.0]), Ok(vec![0, 2]));
        assert_eq!(probe.intercepts()[1], f64::NEG_INFINITY);
        assert_eq!(probe.scales()[1], 1.0);
        assert!(probe.weights()[1].abs() < 1e-12, "a constant feature gets no weight");
    }

    #[test]
    fn the_minimum_has_no_gradient_and_symmetric_data_no_intercept() {
        let config = ProbeConfig { tolerance: 1e-12, ..ProbeConfig::default() };
        let probe = LinearProbe::fit(&FEATURES, 6, 2, &LABELS, 3, &config).expect("valid");
        // With w = W_2 - W_0 on the first feature, w = C * sum of x_i (y_i - sigmoid(w x_i)).
        let w = probe.weights()[4] - probe.weights()[0];
        let scale = probe.scales()[0];
        let residuals: f64 = FEATURES
            .chunks_exact(2)
            .zip(LABELS)
            .map(|(x, label)| {
                let x = x[0] / scale;
                x * (f64::from(label) / 2.0 - 1.0 / (1.0 + (-w * x).exp()))
            })
            .sum();
        assert!((w - residuals).abs() < 1e-10, "{w} is not {residuals}");
        assert!(probe.intercepts()[0].abs() < 1e-12 && probe.intercepts()[2].abs() < 1e-12);
    }

    #[test]
    fn two_fits_give_the_same_bits() {
        let fit = || LinearProbe::fit(&FEATURES, 6, 2, &LABELS, 3, &ProbeConfig::default()).expect("valid");
        assert_eq!(fit(), fit());
    }

    #[test]
    fn stops_at_the_limit_and_says_so() {
        let config = ProbeConfig { max_iterations: 1, tolerance: 1e-12, ..ProbeConfig::default() };
        let probe = LinearProbe::fit(&FEATURES, 6, 2, &LABELS, 3, &config).expect("valid");
        assert_eq!((probe.iterations(), probe.converged()), (1, false));
    }

    #[test]
    fn rejects_what_cannot_be_fitted() {
        let config = ProbeConfig::default();
        let fit =
            |x: &[f64], n, d, y: &[u32], c, config: &ProbeConfig| LinearProbe::fit(x, n, d, y, c, config);
        assert_eq!(fit(&[1.0, 2.0], 2, 1, &[1, 1], 2, &config), Err(MetricError::SingleClass { class: 1 }));
        assert!(matches!(fit(&[1.0, 2.0], 2, 2, &[0, 1], 2, &config), Err(MetricError::Length { .. })));
        assert!(matches!(fit(&[1.0], 2, 1, &[0], 2, &config), Err(MetricError::Length { .. })));
        assert!(matches!(fit(&[], 0, 1, &[], 2, &config), Err(MetricError::Empty { .. })));
        assert!(fit(&[], 2, 0, &[0, 1], 2, &config).is_err());
        assert!(matches!(
            fit(&[1.0, f64::NAN], 2, 1, &[0, 1], 2, &config),
            Err(MetricError::NotFinite { index: 1, .. })
        ));
        assert!(matches!(
            fit(&[1.0, 2.0], 2, 1, &[0, 2], 2, &config),
            Err(MetricError::ClassOutOfRange { .. })
        ));
        for config in [
            ProbeConfig { inverse_strength: 0.0, ..ProbeConfig::default() },
            ProbeConfig { tolerance: -1.0, ..ProbeConfig::default() },
            ProbeConfig { max_iterations: 0, ..ProbeConfig::default() },
            ProbeConfig { memory: 0, ..ProbeConfig::default() },
        ] {
            assert!(matches!(
                fit(&[1.0, 2.0], 2, 1, &[0, 1], 2, &config),
                Err(MetricError::Parameter { .. })
            ));
        }
        assert!(matches!(
            fit(&[1e200, -1e200], 2, 1, &[0, 1], 2, &config),
            Err(MetricError::NotFinite { index: 0, .. })
        ));
        let probe = fit(&[1.0, 2.0], 2, 1, &[0, 1], 2, &config).expect("valid");
        assert!(probe.logits::<f64>(&[]).is_err());
        assert!(probe.logits(&[f64::INFINITY]).is_err());
    }
}
