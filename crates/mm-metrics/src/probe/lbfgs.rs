//! L-BFGS for smooth convex functions.
//!
//! Source: Nocedal and Wright, "Numerical Optimization", 2nd edition, algorithms 7.4 and 7.5. The line search brackets
//! by the sign of the slope, which on a convex function points at the minimum.

use std::collections::VecDeque;

use super::loss::dot;

/// A step must lower the function by this share of what its slope promises.
const SUFFICIENT_DECREASE: f64 = 1e-4;
/// A step must flatten the slope to this share of what it was.
const CURVATURE: f64 = 0.9;
/// What rounding may do to a value, relative: without it the search would fail beside the minimum, where the slope
/// is still known but differences of values are not.
const ROUNDING: f64 = 1e-13;
const MAX_EVALUATIONS: usize = 40;

/// When to stop.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) tolerance: f64,
    pub(super) max_iterations: usize,
    pub(super) memory: usize,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) iterations: usize,
    pub(super) converged: bool,
}

/// A step and the change of the gradient along it.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    /// 1 / <step, change>
    rho: f64,
}

/// Moves `x` to a minimum of `function`, which returns the value at a point and writes the gradient there.
pub(super) fn minimise(
    x: &mut Vec<f64>,
    limits: &Limits,
    mut function: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Outcome {
    let mut gradient = vec![0.0; x.len()];
    let mut value = function(x, &mut gradient);
    let mut pairs: VecDeque<Pair> = VecDeque::new();
    let mut trial = x.clone();
    let mut trial_gradient = gradient.clone();
    for iterations in 0..limits.max_iterations {
        if largest(&gradient) <= limits.tolerance {
            return Outcome { iterations, converged: true };
        }
        let mut direction = descent(&gradient, &pairs);
        let mut slope = dot(&direction, &gradient);
        if slope >= 0.0 {
            pairs.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = -dot(&gradient, &gradient);
        }
        let first = if pairs.is_empty() { (1.0 / (-slope).sqrt()).min(1.0) } else { 1.0 };
        let Some(new_value) = search(first, value, slope, |length| {
            for ((trial, x), direction) in trial.iter_mut().zip(&*x).zip(&direction) {
                *trial = x + length * direction;
            }
            let value = function(&trial, &mut trial_gradient);
            (value, dot(&trial_gradient, &direction))
        }) else {
            return Outcome { iterations, converged: false };
        };
        remember(&mut pairs, limits.memory, difference(&trial, x), difference(&trial_gradient, &gradient));
        value = new_value;
        std::mem::swap(x, &mut trial);
        std::mem::swap(&mut gradient, &mut trial_gradient);
    }
    Outcome { iterations: limits.max_iterations, converged: largest(&gradient) <= limits.tolerance }
}

/// The length of a step with sufficient decrease and a flattened slope; returns the value there.
///
/// `at` gives value and slope at a length and leaves its last point behind as the new one. `None` when no length
/// will do, which on a convex function means that rounding hides any further decrease.
fn search(first: f64, value: f64, slope: f64, mut at: impl FnMut(f64) -> (f64, f64)) -> Option<f64> {
    let slack = ROUNDING * value.abs().max(1.0);
    let (mut low, mut low_slope) = (0.0, slope);
    let mut high: Option<(f64, f64)> = None;
    let mut length = first;
    for _ in 0..MAX_EVALUATIONS {
        let (new_value, new_slope) = at(length);
        // A value or slope that overflowed compares false here and so counts as too far.
        let decreased = new_value <= value + SUFFICIENT_DECREASE * length * slope + slack;
        if decreased && new_slope.abs() <= CURVATURE * -slope {
            return Some(new_value);
        }
        if decreased && new_slope < 0.0 {
            (low, low_slope) = (length, new_slope);
        } else {
            high = Some((length, new_slope));
        }
        length = match high {
            None => 2.0 * length,
            Some((high, high_slope)) => {
                let width = high - low;
                let secant = low + width * low_slope / (low_slope - high_slope);
                if secant.is_finite() {
                    secant.clamp(low + 0.1 * width, high - 0.1 * width)
                } else {
                    low + 0.1 * width
                }
            }
        };
    }
    None
}

/// Minus the inverse Hessian that the pairs imply, times the gradient (two-loop recursion).
fn descent(gradient: &[f64], pairs: &VecDeque<Pair>) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let Some(latest) = pairs.back() else { return q };
    let mut alphas = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let alpha = pair.rho * dot(&pair.step, &q);
        q.iter_mut().zip(&pair.change).for_each(|(q, y)| *q -= alpha * y);
        alphas.push(alpha);
    }
    let scale = 1.0 / (latest.rho * dot(&latest.change, &latest.change));
    for q in &mut q {
        *q *= scale;
    }
    for (pair, alpha) in pairs.iter().zip(alphas.into_iter().rev()) {
        let beta = pair.rho * dot(&pair.change, &q);
        q.iter_mut().zip(&pair.step).for_each(|(q, s)| *q += (alpha - beta) * s);
    }
    q
}

/// Appends a pair, unless its curvature is lost in rounding, and drops the oldest.
fn remember(pairs: &mut VecDeque<Pair>, memory: usize, step: Vec<f64>, change: Vec<f64>) {
    let curvature = dot(&step, &change);
    if curvature <= f64::EPSILON * dot(&change, &change) {
        return;
    }
    if pairs.len() == memory {
        pairs.pop_front();
    }
    pairs.push_back(Pair { step, change, rho: 1.0 / curvature });
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn largest(gradient: &[f64]) -> f64 {
    gradient.iter().fold(0.0, |max, g| max.max(g.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { tolerance: 1e-11, max_iterations: 200, memory: 10 };

    #[test]
    fn finds_the_minimum_of_a_badly_scaled_quadratic() {
        let mut x = vec![0.0; 20];
        let outcome = minimise(&mut x, &LIMITS, |x, gradient| {
            let mut value = 0.0;
            for (i, (g, x)) in gradient.iter_mut().zip(x).enumerate() {
                let curvature = 10.0_f64.powi(i as i32 / 5);
                let distance = x - i as f64;
                *g = curvature * distance;
                value += 0.5 * curvature * distance * distance;
            }
            value
        });
        assert!(outcome.converged, "{outcome:?}");
        for (i, x) in x.iter().enumerate() {
            assert!((x - i as f64).abs() < 1e-10);
        }
    }

    #[test]
    fn takes_back_steps_that_overflow() {
        // The first step has length 1, and cosh(1000) overflows.
        let mut x = vec![1e-4];
        let outcome = minimise(&mut x, &LIMITS, |x, gradient| {
            gradient[0] = 1000.0 * (1000.0 * x[0]).sinh();
            (1000.0 * x[0]).cosh()
        });
        assert!(outcome.converged, "{outcome:?}");
        assert!(x[0].abs() < 1e-12);
    }

    #[test]
    fn starts_at_the_minimum() {
        let mut x = vec![0.0];
        let outcome = minimise(&mut x, &LIMITS, |x, gradient| {
            gradient[0] = x[0];
            0.5 * x[0] * x[0]
        });
        assert_eq!(outcome, Outcome { iterations: 0, converged: true });
    }
}
