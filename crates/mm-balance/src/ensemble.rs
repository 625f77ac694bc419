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
    let mut total = vec![0.0; first.len()];
    for logits in members {
        let high = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let norm = high + logits.iter().map(|z| (z - high).exp()).sum::<f64>().ln();
        for (t, z) in total.iter_mut().zip(*logits) {
            *t += match rule {
                Average::Mean => (z - norm).exp(),
                Average::LogMean => z - norm,
            };
        }
    }
    let count = members.len() as f64;
    Ok(total
        .into_iter()
        .map(|t| match rule {
            Average::Mean => (t / count).ln(),
            Average::LogMean => t / count,
        })
        .collect())
}
