//! Ensemble: the average of unimodal models that were trained apart.
//!
//! `z = 1/|P_i| Σ_{m in P_i} log softmax(u^m)` (geometric mean, `log-mean`) or `log 1/|P_i| Σ softmax(u^m)` (`mean`),
//! over the modalities P_i that row i has.
//!
//! A single-modality model per member, each with its own early stopping; nothing is trained together. The papers do
//! not say whether they average logits or probabilities; probabilities are the default here.

use mm_core::ConfigError;

/// What is averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Average {
    /// Probabilities.
    #[default]
    Mean,
    /// Log-probabilities.
    LogMean,
}

/// The averaged log-probabilities of one row; `members` are the logits of the modalities that the row has.
///
/// ```
/// use mm_balance::ensemble::{average, Average};
/// let z = average(&[&[0.0, 0.0], &[3f64.ln(), 0.0]], Average::Mean)?;
/// assert!((z[0].exp() - 0.625).abs() < 1e-12);
/// # Ok::<(), mm_core::ConfigError>(())
/// ```
pub fn average(members: &[&[f64]], rule: Average) -> Result<Vec<f64>, ConfigError> {
    let Some(first) = members.first() else {
        return Err(ConfigError::new("members", "[]", "an ensemble needs at least one member"));
    };
    if let Some(odd) = members.iter().find(|m| m.len() != first.len()) {
        let rule = format!("every member must have {} classes", first.len());
        return Err(ConfigError::new("members", format!("{} classes", odd.len()), rule));
    }
    let log_probabilities: Vec<Vec<f64>> = members
        .iter()
        .map(|logits| {
            let norm = log_sum_exp(logits.iter().copied());
            logits.iter().map(|z| z - norm).collect()
        })
        .collect();
    let count = members.len() as f64;
    let of_class = |c: usize| log_probabilities.iter().map(move |p| p[c]);
    Ok((0..first.len())
        .map(|c| match rule {
            Average::Mean => log_sum_exp(of_class(c)) - count.ln(),
            Average::LogMean => of_class(c).sum::<f64>() / count,
        })
        .collect())
}

/// log Σ exp(x), without overflow, and without -∞ where every term underflows.
fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let high = values.clone().fold(f64::NEG_INFINITY, f64::max);
    high + values.map(|x| (x - high).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_classes_stay_finite() {
        let sure = [2000.0, 0.0];
        for rule in [Average::Mean, Average::LogMean] {
            let z = average(&[&sure, &sure], rule).unwrap();
            assert!((z[0]).abs() < 1e-12 && (z[1] + 2000.0).abs() < 1e-9, "{z:?}");
        }
        let z = average(&[&[0.0, 0.0], &[9f64.ln(), 0.0]], Average::Mean).unwrap();
        assert!((z[0].exp() - 0.7).abs() < 1e-12);
    }
}
