//! Expected calibration error: how far confidence is from accuracy.

use crate::scores::argmax;
use crate::{MetricError, Scores};

/// The number of bins that published numbers use.
pub const DEFAULT_BINS: usize = 15;

/// The largest number of bins: beyond this a wrong argument is likelier than a right one.
const MAX_BINS: usize = 1 << 20;

/// The samples whose confidence falls into one interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CalibrationBin {
    /// The lower edge of the interval, inclusive.
    pub lower: f64,
    /// The upper edge of the interval, exclusive.
    pub upper: f64,
    /// The number of samples in it.
    pub count: usize,
    /// Their mean confidence; 0 when there are none.
    pub confidence: f64,
    /// The share of them that is predicted correctly; 0 when there are none.
    pub accuracy: f64,
}

/// The reliability diagram: the samples binned by confidence, from 0 to 1.
///
/// ```text
/// conf_i = max over j of p_ij,   hit_i = [argmax over j of p_ij == label_i]
/// bin b  = [b/B, (b+1)/B)  for b = 0 .. B-1,   bin B = { 1 }
/// ```
///
/// Edges: the convention of torchmetrics (`_binning_bucketize`, release 1.9): intervals are closed below and open
/// above, and a confidence of exactly 1 is counted in a bin of its own, so `bins + 1` entries come back. (Its
/// older releases had intervals open below and closed above. The two differ only for confidences that lie on an
/// edge.) torchmetrics rounds the confidences to single precision before binning; we do not.
///
/// `scores` must be probabilities. Errors: logits, `bins` outside 1..=2^20.
pub fn reliability(scores: &Scores<'_>, bins: usize) -> Result<Vec<CalibrationBin>, MetricError> {
    if bins == 0 || bins > MAX_BINS {
        return Err(MetricError::Parameter {
            name: "bins",
            value: bins as f64,
            rule: "must be between 1 and 2^20; published numbers use 15",
        });
    }
    scores.check_probabilities()?;
    let edge = |bin: usize| bin as f64 / bins as f64;
    let mut out: Vec<CalibrationBin> = (0..=bins)
        .map(|bin| CalibrationBin {
            lower: edge(bin),
            upper: edge((bin + 1).min(bins)),
            count: 0,
            confidence: 0.0,
            accuracy: 0.0,
        })
        .collect();
    for (row, &label) in scores.rows().zip(scores.labels()) {
        let predicted = argmax(row);
        let confidence = row[predicted];
        // The product rounds: step to the neighbour where it landed on the wrong side of an edge.
        let mut bin = ((confidence * bins as f64) as usize).min(bins);
        if confidence < edge(bin) {
            bin -= 1;
        } else if bin < bins && confidence >= edge(bin + 1) {
            bin += 1;
        }
        out[bin].count += 1;
        out[bin].confidence += confidence;
        out[bin].accuracy += f64::from(u8::from(predicted == label as usize));
    }
    for bin in out.iter_mut().filter(|bin| bin.count > 0) {
        bin.confidence /= bin.count as f64;
        bin.accuracy /= bin.count as f64;
    }
    Ok(out)
}

/// The expected calibration error: the mean distance of confidence and accuracy over the bins of [`reliability`].
///
/// ```text
/// ECE = sum over b of (n_b / n) |accuracy_b - confidence_b|
/// ```
///
/// The l1 norm with equal-width bins over the largest probability, [`DEFAULT_BINS`] of them in published
/// numbers (torchmetrics' `MulticlassCalibrationError(n_bins=15, norm="l1")`). `scores` must be probabilities, which
/// [`softmax_rows`](crate::softmax_rows) makes of logits; torchmetrics applies the softmax by itself whenever
/// an entry is outside [0, 1], and so takes logits that happen to lie inside for probabilities.
/// Range: [0, 1]. Errors as in [`reliability`]. Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017.
pub fn expected_calibration_error(scores: &Scores<'_>, bins: usize) -> Result<f64, MetricError> {
    let weighted: f64 = reliability(scores, bins)?
        .iter()
        .map(|bin| bin.count as f64 * (bin.accuracy - bin.confidence).abs())
        .sum();
    Ok(weighted / scores.samples() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_gap_between_confidence_and_accuracy() {
        // Bin [0.6, 0.8): confidences 0.7, 0.6, one hit. Bin [0.8, 1): 0.9, a hit.
        let probabilities = [0.7, 0.3, 0.4, 0.6, 0.9, 0.1];
        let scores = Scores::new(&probabilities, &[0, 0, 0], 2).expect("valid");
        let expected = (2.0 * (0.65_f64 - 0.5) + (1.0 - 0.9)) / 3.0;
        assert!((expected_calibration_error(&scores, 5).expect("valid") - expected).abs() < 1e-15);
    }

    #[test]
    fn edges_are_closed_below_and_one_has_its_own_bin() {
        let probabilities = [0.5, 0.5, 1.0, 0.0, 0.75, 0.25];
        let scores = Scores::new(&probabilities, &[0, 1, 0], 2).expect("valid");
        let bins = reliability(&scores, 4).expect("valid");
        let counts: Vec<usize> = bins.iter().map(|bin| bin.count).collect();
        assert_eq!(counts, [0, 0, 1, 1, 1]);
        assert_eq!((bins[4].lower, bins[4].upper, bins[4].accuracy), (1.0, 1.0, 0.0));
    }

    #[test]
    fn every_edge_falls_into_the_bin_above_it() {
        for bins in 2..200_usize {
            for bin in bins.div_ceil(2)..bins {
                let p = bin as f64 / bins as f64;
                let row = [p, 1.0 - p];
                let scores = Scores::new(&row, &[0], 2).expect("valid");
                let diagram = reliability(&scores, bins).expect("valid");
                assert_eq!(diagram.iter().position(|b| b.count == 1), Some(bin), "{bin} of {bins}");
            }
        }
    }

    #[test]
    fn rejects_logits_and_no_bins() {
        let logits = Scores::new(&[2.0, -1.0], &[0], 2).expect("valid");
        assert!(matches!(expected_calibration_error(&logits, 15), Err(MetricError::NotProbability { .. })));
        let fine = Scores::new(&[0.5, 0.5], &[0], 2).expect("valid");
        assert!(matches!(
            expected_calibration_error(&fine, 0),
            Err(MetricError::Parameter { name: "bins", .. })
        ));
    }
}
