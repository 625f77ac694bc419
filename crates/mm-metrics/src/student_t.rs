//! Quantiles of Student's t distribution.

use std::f64::consts::PI;

use crate::MetricError;

/// The quantile of Student's t distribution: the t with P(T <= t) = `probability`.
///
/// ```text
/// P(|T| > t) = I_x(nu/2, 1/2),   x = nu / (nu + t^2)
/// ```
///
/// with nu degrees of freedom and I the regularised incomplete beta function, which is computed from its continued
/// fraction and inverted by Newton steps inside a bracket. Relative error below 1e-10 for nu up to 10^6.
///
/// Errors: `probability` outside (0, 1), `degrees_of_freedom` below 1 or not finite.
/// Source: Abramowitz and Stegun, 26.5.8 and 26.7.1.
pub fn student_t_quantile(probability: f64, degrees_of_freedom: f64) -> Result<f64, MetricError> {
    if !(probability > 0.0 && probability < 1.0) {
        return Err(MetricError::Parameter {
            name: "probability",
            value: probability,
            rule: "must be above 0 and below 1; the quantiles of 0 and 1 are infinite",
        });
    }
    if !(degrees_of_freedom >= 1.0 && degrees_of_freedom.is_finite()) {
        return Err(MetricError::Parameter {
            name: "degrees_of_freedom",
            value: degrees_of_freedom,
            rule: "must be at least 1 and finite; it is one less than the number of pairs",
        });
    }
    let t = two_sided_quantile(2.0 * probability.min(1.0 - probability), degrees_of_freedom);
    Ok(if probability < 0.5 { -t } else { t })
}

/// The t >= 0 with P(|T| > t) = `outer`.
fn two_sided_quantile(outer: f64, nu: f64) -> f64 {
    // The smaller of the two probabilities is the one that keeps its digits: solve for that.
    let excess = |t: f64| {
        let (inside, outside) = two_sided(t, nu);
        if outer > 0.5 { inside - (1.0 - outer) } else { outer - outside }
    };
    let (mut low, mut high) = (0.0, 1.0);
    while excess(high) < 0.0 {
        low = high;
        high *= 2.0;
    }
    let mut t = 0.5 * (low + high);
    for _ in 0..200 {
        let error = excess(t);
        if error < 0.0 {
            low = t;
        } else {
            high = t;
        }
        let newton = t - error / (2.0 * density(t, nu));
        let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
        if (next - t).abs() <= f64::EPSILON * t {
            return next;
        }
        t = next;
    }
    t
}

/// P(|T| <= t) and P(|T| > t), each accurate where it is small.
fn two_sided(t: f64, nu: f64) -> (f64, f64) {
    if t == 0.0 {
        return (0.0, 1.0);
    }
    let a = 0.5 * nu;
    let square = t * t;
    let (x, y) = (nu / (nu + square), square / (nu + square));
    // x^a y^(1/2) / B(a, 1/2), where ln x = -ln(1 + t^2/nu) keeps its digits for x near 1.
    let front = (-a * (square / nu).ln_1p()).exp() * y.sqrt() * gamma_ratio(a) / PI.sqrt();
    if x < (a + 1.0) / (a + 2.5) {
        let outside = front * continued_fraction(a, 0.5, x) / a;
        (1.0 - outside, outside)
    } else {
        let inside = front * continued_fraction(0.5, a, y) / 0.5;
        (inside, 1.0 - inside)
    }
}

fn density(t: f64, nu: f64) -> f64 {
    (-0.5 * (nu + 1.0) * (t * t / nu).ln_1p()).exp() * gamma_ratio(0.5 * nu) / (nu * PI).sqrt()
}

/// Gamma(a + 1/2) / Gamma(a): Stirling's series far out, and the recurrence of the ratio to get there.
///
/// The ratio is computed as such because the difference of two logarithms of Gamma loses digits for large `a`.
fn gamma_ratio(mut a: f64) -> f64 {
    let mut factor = 1.0;
    while a < 30.0 {
        factor *= a / (a + 0.5);
        a += 1.0;
    }
    let r = 1.0 / (a * a);
    let series = (-1.0 / 8.0 + r * (1.0 / 192.0 + r * (-1.0 / 640.0 + r * (17.0 / 14336.0)))) / a;
    factor * a.sqrt() * series.exp()
}

/// The continued fraction of the incomplete beta function by the modified Lentz method.
fn continued_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away_from_zero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut result = d;
    for m in 1..20_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            change = c * d;
            result *= change;
        }
        if (change - 1.0).abs() <= f64::EPSILON {
            break;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= 1e-11 * expected.abs(), "{actual} is not {expected}");
    }

    #[test]
    fn closed_forms_of_one_and_two_degrees() {
        for p in [1e-9, 0.01, 0.3, 0.5 + 1e-6, 0.7, 0.975, 0.9999] {
            let offset = p - 0.5;
            // The tangent from the side that keeps the digits of p.
            let expected = if p < 0.1 { -1.0 / (PI * p).tan() } else { (PI * offset).tan() };
            close(student_t_quantile(p, 1.0).expect("valid"), expected);
            let expected = 2.0 * offset * (2.0 / (4.0 * p * (1.0 - p))).sqrt();
            close(student_t_quantile(p, 2.0).expect("valid"), expected);
        }
        assert!(student_t_quantile(0.5, 7.0).expect("valid").abs() < 1e-15);
    }

    #[test]
    fn many_degrees_approach_the_normal_distribution() {
        // z = 1.959963984540054, and t = z + (z^3 + z) / (4 nu) + O(1 / nu^2).
        let z = 1.959_963_984_540_054_f64;
        let nu = 1e6;
        let expected = z + (z.powi(3) + z) / (4.0 * nu);
        close(student_t_quantile(0.975, nu).expect("valid"), expected);
    }

    #[test]
    fn gamma_ratio_of_known_arguments() {
        close(gamma_ratio(0.5), 1.0 / PI.sqrt());
        close(gamma_ratio(1.0), 0.5 * PI.sqrt());
        close(gamma_ratio(2.0), 0.75 * PI.sqrt());
    }

    #[test]
    fn rejects_parameters_out_of_range() {
        for p in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(student_t_quantile(p, 3.0).is_err());
        }
        for nu in [0.0, 0.5, f64::INFINITY, f64::NAN] {
            assert!(student_t_quantile(0.9, nu).is_err());
        }
    }
}
