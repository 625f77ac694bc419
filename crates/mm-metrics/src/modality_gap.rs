//! The modality gap: how far apart two modalities lie in the shared feature space.

use crate::MetricError;
use crate::error::check_matrix;

/// The modality gap of two sets of features, and how many rows it rests on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModalityGap {
    /// The L2 distance of the two centroids.
    pub distance: f64,
    /// The rows of the first and the second modality whose norm is zero; they have no direction and are skipped.
    pub skipped: [usize; 2],
}

/// The L2 distance between the centroids of the L2-normalised features of two modalities.
///
/// ```text
/// gap = || mean over i of a_i / ||a_i||  -  mean over i of b_i / ||b_i|| ||
/// ```
///
/// Shapes: `a` is `n_a x dim`, `b` is `n_b x dim`, row-major, `f32` or `f64`; n_a and n_b may differ. A row of zeros
/// has no direction: it is skipped and counted in [`ModalityGap::skipped`]. Range: [0, 2].
///
/// Errors: `dim` 0, no rows, a length that is no multiple of `dim`, a number that is not finite, no row with a
/// norm above zero. Source: Liang et al., "Mind the Gap", NeurIPS 2022 (their definition; papers that only draw the gap
/// do not state theirs).
pub fn modality_gap<T: Copy + Into<f64>>(a: &[T], b: &[T], dim: usize) -> Result<ModalityGap, MetricError> {
    if dim == 0 {
        return Err(MetricError::Parameter {
            name: "dim",
            value: 0.0,
            rule: "must be at least 1; pass the width of the features",
        });
    }
    let (centroid_a, skipped_a) = centroid("a", "the number of rows of a with a norm above zero", a, dim)?;
    let (centroid_b, skipped_b) = centroid("b", "the number of rows of b with a norm above zero", b, dim)?;
    let squared: f64 = centroid_a.iter().zip(&centroid_b).map(|(a, b)| (a - b) * (a - b)).sum();
    Ok(ModalityGap { distance: squared.sqrt(), skipped: [skipped_a, skipped_b] })
}

/// The mean direction of the rows and the number of rows that have none.
fn centroid<T: Copy + Into<f64>>(
    what: &'static str,
    count: &'static str,
    features: &[T],
    dim: usize,
) -> Result<(Vec<f64>, usize), MetricError> {
    let rows = features.len() / dim;
    check_matrix(what, features.len(), rows.max(1), dim, "whole rows of `dim` numbers, at least one")?;
    let mut sum = vec![0.0; dim];
    let mut used = 0_usize;
    let mut row = vec![0.0; dim];
    for (i, values) in features.chunks_exact(dim).enumerate() {
        for (j, (slot, &value)) in row.iter_mut().zip(values).enumerate() {
            *slot = value.into();
            if !slot.is_finite() {
                return Err(MetricError::NotFinite { what, index: i * dim + j, value: *slot });
            }
        }
        // Dividing by the largest entry first keeps the squares of tiny and of huge features in range.
        let largest = row.iter().fold(0.0_f64, |max, value| max.max(value.abs()));
        if largest == 0.0 {
            continue;
        }
        for value in &mut row {
            *value /= largest;
        }
        let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        for (sum, value) in sum.iter_mut().zip(&row) {
            *sum += value / norm;
        }
        used += 1;
    }
    if used == 0 {
        return Err(MetricError::Parameter {
            name: count,
            value: 0.0,
            rule: "must be at least 1; look for the layer that outputs only zeros",
        });
    }
    for value in &mut sum {
        *value /= used as f64;
    }
    Ok((sum, rows - used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_of_mean_directions() {
        let a = [3.0, 0.0, 0.0, 0.0, 0.0, 5.0];
        let gap = modality_gap(&a, &[-1.0, 0.0], 2).expect("valid");
        // Centroids (1/2, 1/2), the zero row skipped, and (-1, 0).
        assert!((gap.distance - 2.5_f64.sqrt()).abs() < 1e-15);
        assert_eq!(gap.skipped, [1, 0]);
    }

    #[test]
    fn scale_does_not_matter() {
        let gap = modality_gap(&[1e-300, 1e-300], &[-1e300, -1e300], 2).expect("valid");
        assert!((gap.distance - 2.0).abs() < 1e-15);
        let same = modality_gap(&[0.5_f32, 0.25], &[2.0, 1.0], 2).expect("valid");
        assert_eq!(same.distance, 0.0);
    }

    #[test]
    fn rejects_what_has_no_direction() {
        assert!(modality_gap(&[0.0, 0.0], &[1.0, 0.0], 2).is_err());
        assert!(matches!(
            modality_gap(&[1.0, f64::NAN], &[1.0, 0.0], 2),
            Err(MetricError::NotFinite { index: 1, .. })
        ));
        assert!(matches!(modality_gap(&[], &[1.0], 1), Err(MetricError::Length { .. })));
        assert!(modality_gap(&[1.0, 2.0, 3.0], &[1.0, 2.0], 2).is_err());
        assert!(modality_gap(&[1.0], &[1.0], 0).is_err());
    }
}
