//! The mean cross-entropy of a linear classifier with an L2 penalty, and its gradient.

/// Independent partial sums in [`dot`]: enough for the compiler to fill vector registers, since it may not reorder
/// a floating-point sum by itself.
const LANES: usize = 8;

/// ```text
/// f(W, b) = (1/n) sum over i of -log softmax(W x_i + b)[t_i]  +  penalty/2 ||W||^2
/// ```
///
/// Parameters are W, row-major `classes x d`, then b. Rows of x are read once per evaluation, while W and its
/// gradient stay in the cache.
#[derive(Debug)]
pub(super) struct Objective<'a> {
    x: &'a [f64],
    targets: &'a [usize],
    d: usize,
    penalty: f64,
    residuals: Vec<f64>,
}

impl<'a> Objective<'a> {
    pub(super) fn new(x: &'a [f64], targets: &'a [usize], d: usize, classes: usize, penalty: f64) -> Self {
        Self { x, targets, d, penalty, residuals: vec![0.0; classes] }
    }

    /// The value at `parameters`; writes the gradient.
    pub(super) fn evaluate(&mut self, parameters: &[f64], gradient: &mut [f64]) -> f64 {
        let d = self.d;
        let split = self.residuals.len() * d;
        let (weights, intercepts) = parameters.split_at(split);
        gradient.fill(0.0);
        let (weight_gradient, intercept_gradient) = gradient.split_at_mut(split);
        let mut loss = 0.0;
        for (x, &target) in self.x.chunks_exact(d).zip(self.targets) {
            for ((z, w), b) in self.residuals.iter_mut().zip(weights.chunks_exact(d)).zip(intercepts) {
                *z = dot(w, x) + b;
            }
            loss += cross_entropy(&mut self.residuals, target);
            for (&r, g) in self.residuals.iter().zip(weight_gradient.chunks_exact_mut(d)) {
                g.iter_mut().zip(x).for_each(|(g, x)| *g += r * x);
            }
            intercept_gradient.iter_mut().zip(&self.residuals).for_each(|(g, r)| *g += r);
        }
        let n = self.targets.len() as f64;
        for (g, w) in weight_gradient.iter_mut().zip(weights) {
            *g = *g / n + self.penalty * w;
        }
        for g in intercept_gradient {
            *g /= n;
        }
        loss / n + 0.5 * self.penalty * dot(weights, weights)
    }
}

/// Turns logits into softmax minus one-hot, the gradient of the cross-entropy, and returns the cross-entropy.
fn cross_entropy(z: &mut [f64], target: usize) -> f64 {
    let max = z.iter().fold(f64::NEG_INFINITY, |max, &z| max.max(z));
    let own = z[target] - max;
    let mut sum = 0.0;
    for z in z.iter_mut() {
        *z = (*z - max).exp();
        sum += *z;
    }
    for z in &mut *z {
        *z /= sum;
    }
    z[target] -= 1.0;
    sum.ln() - own
}

/// The inner product, in an order of summation that vectorises.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    let mut lanes = [0.0; LANES];
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_agrees_with_finite_differences() {
        let x: Vec<f64> = (0..44_u32).map(|i| f64::from(i * i % 13) / 6.0 - 1.0).collect();
        let targets = [0, 1, 2, 1];
        let mut objective = Objective::new(&x, &targets, 11, 3, 0.3);
        let at: Vec<f64> = (0..36_u32).map(|i| f64::from(i * 7 % 11) / 10.0 - 0.5).collect();
        let mut gradient = vec![0.0; 36];
        objective.evaluate(&at, &mut gradient);
        let mut scratch = vec![0.0; 36];
        for i in 0..36 {
            let mut shifted = at.clone();
            shifted[i] += 1e-5;
            let above = objective.evaluate(&shifted, &mut scratch);
            shifted[i] -= 2e-5;
            let below = objective.evaluate(&shifted, &mut scratch);
            assert!(((above - below) / 2e-5 - gradient[i]).abs() < 1e-9, "parameter {i}");
        }
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let mut z = [1e4, 0.0];
        assert_eq!(cross_entropy(&mut z, 1), 1e4);
        assert_eq!(z, [1.0, -1.0]);
    }

    #[test]
    fn dot_takes_any_length() {
        for length in [0_u32, 1, 7, 8, 19] {
            let a: Vec<f64> = (0..length).map(f64::from).collect();
            let expected = (0..length).map(|i| i * i).sum::<u32>();
            assert_eq!(dot(&a, &a), f64::from(expected));
        }
    }
}
