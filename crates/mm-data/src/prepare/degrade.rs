//! Harder inputs, as AV-MNIST makes them: images that keep a share of their energy, sound under noise.
//!
//! ```text
//! image   y = mean + V_k V_kᵀ (x - mean),  k the smallest number with  sum_{i<=k} λ_i >= energy sum_i λ_i
//! sound   y = x + n,  n ~ N(0, P 10^(-noise_db / 10)),  P = mean(x²)
//! ```
//!
//! λ_i and V are eigenvalues, largest first, and eigenvectors of the covariance of the training rows' pixels; other parts
//! have no say. `y` is rounded to whole levels from 0 to 255. The noise of a clip depends on its name, that of the modality
//! and the number of its samples alone, so a preparation that is done again gives the same bytes.
//!
//! | setting | of | default | range | meaning |
//! |---|---|---|---|---|
//! | `energy` | images | 1: as they are | above 0, to 1 | share of the variance that is kept |
//! | `noise_db` | sound | none | -60 to 120 | power of the clip over that of the noise, in decibels |
//!
//! Differences: AV-MNIST (Vielzeuf et al. 2018, CentralNet, section 4.1) removes 75 % of the energy (`energy = 0.25`) and
//! adds noises of ESC-50; these here are white, since those recordings are no part of this library. Its published figures
//! are therefore of other data.

use crate::DataError;
use mm_core::{ConfigError, StepRng};
use nalgebra::{DMatrix, SymmetricEigen};

/// The most pixels of an image whose energy is reduced: the covariance has as many rows and columns.
const MAX_PIXELS: usize = 4096;

/// Which draws make the noise, so that a pack of other noise is not gone on with: 2 since they depend on the modality.
pub(super) const NOISE_VERSION: u32 = 2;

/// Checks `energy`.
pub(super) fn check_energy(name: &str, energy: f64) -> Result<(), ConfigError> {
    if energy > 0.0 && energy <= 1.0 {
        return Ok(());
    }
    Err(ConfigError::new(format!("inputs.{name}.energy"), energy, "must be a number above 0 and at most 1"))
}

/// Checks `noise_db`.
pub(super) fn check_noise(name: &str, decibels: f64) -> Result<(), ConfigError> {
    ConfigError::check_range(&format!("inputs.{name}.noise_db"), decibels, -60.0, 120.0)
}

/// The directions that images keep.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Projection {
    mean: Vec<f64>,
    /// Row after row, each of unit length.
    directions: Vec<Vec<f64>>,
}

impl Projection {
    /// Fits the directions to images, which all have `size` values.
    pub(super) fn fit(
        name: &str,
        size: usize,
        energy: f64,
        images: impl Iterator<Item = Result<Vec<u8>, DataError>>,
    ) -> Result<Self, DataError> {
        if size > MAX_PIXELS {
            let rule =
                format!("of images with {size} values it cannot be reduced; the most are {MAX_PIXELS}");
            return Err(ConfigError::new(format!("inputs.{name}.energy"), energy, rule).into());
        }
        let mut mean = vec![0.0; size];
        let mut products = DMatrix::<f64>::zeros(size, size);
        let mut count = 0usize;
        // Rows gathered before they are multiplied: a product of matrices is far faster than one outer product each.
        let mut block: Vec<f64> = Vec::new();
        let mut add = |block: &mut Vec<f64>| {
            let rows = DMatrix::from_row_slice(block.len() / size, size, block);
            products.gemm_tr(1.0, &rows, &rows, 1.0);
            block.clear();
        };
        for image in images {
            let image = image?;
            if image.len() != size {
                let rule = format!("an image has {} values, others {size}", image.len());
                return Err(DataError::invalid(name, rule, "give all images one size"));
            }
            mean.iter_mut().zip(&image).for_each(|(sum, &v)| *sum += f64::from(v));
            block.extend(image.iter().map(|&v| f64::from(v)));
            count += 1;
            if block.len() >= 256 * size {
                add(&mut block);
            }
        }
        if count < 2 {
            let rule = format!("there are {count} training images; directions need at least 2");
            return Err(DataError::invalid(name, rule, "leave `energy` out, or give more training rows"));
        }
        if !block.is_empty() {
            add(&mut block);
        }
        let n = count as f64;
        for sum in &mut mean {
            *sum /= n;
        }
        for i in 0..size {
            for j in 0..size {
                products[(i, j)] = products[(i, j)] / n - mean[i] * mean[j];
            }
        }
        let total: f64 = (0..size).map(|i| products[(i, i)]).sum();
        let eigen = SymmetricEigen::new(products);
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]).then(a.cmp(&b)));
        let (mut directions, mut kept) = (Vec::new(), 0.0);
        for i in order {
            // All variance in rounding: what is left are directions in which nothing varies.
            if kept >= energy * total * (1.0 - 1e-12) {
                break;
            }
            kept += eigen.eigenvalues[i].max(0.0);
            directions.push(eigen.eigenvectors.column(i).iter().copied().collect());
        }
        Ok(Self { mean, directions })
    }

    /// The image with what its directions keep.
    pub(super) fn apply(&self, pixels: &[u8]) -> Vec<u8> {
        let centred: Vec<f64> = pixels.iter().zip(&self.mean).map(|(&v, mean)| f64::from(v) - mean).collect();
        let mut kept = self.mean.clone();
        for direction in &self.directions {
            let share: f64 = direction.iter().zip(&centred).map(|(d, x)| d * x).sum();
            kept.iter_mut().zip(direction).for_each(|(y, d)| *y += share * d);
        }
        kept.into_iter().map(|y| y.round().clamp(0.0, 255.0) as u8).collect()
    }
}

/// Adds white noise to the samples of a modality of the clip that is called `id`.
pub(super) fn add_noise(id: &str, modality: &str, samples: &mut [f32], decibels: f64) {
    let power = samples.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / samples.len().max(1) as f64;
    let deviation = (power * 10f64.powf(-decibels / 10.0)).sqrt();
    // FNV-1a of the name, so that the order of the clips does not matter.
    let key = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut draws = StepRng::new(key).stream("noise").stream(modality).draws();
    for x in samples {
        *x = (f64::from(*x) + deviation * draws.normal()) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(images: &[[u8; 3]], energy: f64) -> Projection {
        Projection::fit("image", 3, energy, images.iter().map(|i| Ok(i.to_vec()))).expect("fitted")
    }

    #[test]
    fn keeps_the_directions_that_carry_the_share() {
        // Variances along the axes: 1600, 100, 0 around (100, 100, 7).
        let images = [[140, 110, 7], [140, 90, 7], [60, 110, 7], [60, 90, 7]];
        let one = fit(&images, 0.9);
        assert_eq!(one.directions.len(), 1, "1600 / 1700 = 0.94");
        assert_eq!(one.apply(&[140, 110, 7]), [140, 100, 7]);
        assert_eq!(fit(&images, 0.95).apply(&[140, 110, 7]), [140, 110, 7]);
        let all = fit(&images, 1.0);
        assert_eq!(all.directions.len(), 2, "nothing varies in the third");
        assert_eq!(all.apply(&[61, 91, 9]), [61, 91, 7]);
        assert_eq!(one.apply(&[255, 0, 0]), [255, 100, 7], "levels stay levels");
    }

    #[test]
    fn the_basis_is_right_where_axes_are_mixed() {
        // (1, 1, 0) / sqrt 2 carries all: x = 100 + t, y = 100 + t.
        let images = [[90, 90, 5], [110, 110, 5], [100, 100, 5], [120, 120, 5], [80, 80, 5]];
        let one = fit(&images, 0.5);
        assert_eq!(one.directions.len(), 1);
        for (direction, expected) in one.directions[0].iter().zip([0.5f64.sqrt(), 0.5f64.sqrt(), 0.0]) {
            assert!((direction.abs() - expected).abs() < 1e-12, "{:?}", one.directions);
        }
        assert_eq!(one.apply(&[120, 100, 5]), [110, 110, 5]);
    }

    #[test]
    fn noise_has_its_power_and_depends_on_the_name_alone() {
        let tone: Vec<f32> = (0..40_000).map(|t| (t as f32 * 0.1).sin()).collect();
        for decibels in [0.0, 10.0, -6.0] {
            let noisy = |id, modality| {
                let mut samples = tone.clone();
                add_noise(id, modality, &mut samples, decibels);
                samples
            };
            let a = noisy("a", "left");
            assert_eq!(a, noisy("a", "left"));
            assert_ne!(a, noisy("c", "left"));
            assert_ne!(a, noisy("a", "right"), "two microphones hear two noises");
            let power = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
            let noise: Vec<f64> = a.iter().zip(&tone).map(|(a, t)| f64::from(a - t)).collect();
            let tone: Vec<f64> = tone.iter().map(|&t| f64::from(t)).collect();
            let measured = 10.0 * (power(&tone) / power(&noise)).log10();
            assert!((measured - decibels).abs() < 0.1, "{measured} is not {decibels}");
        }
        let mut silence = vec![0.0; 100];
        add_noise("a", "left", &mut silence, 0.0);
        assert_eq!(silence, vec![0.0; 100]);
    }

    #[test]
    fn what_cannot_be_fitted_is_said() {
        let none = Projection::fit("image", 3, 0.5, std::iter::empty());
        assert!(none.is_err_and(|e| e.to_string().contains("at least 2")));
        let uneven = Projection::fit("image", 3, 0.5, [Ok(vec![1, 2, 3]), Ok(vec![1, 2])].into_iter());
        assert!(uneven.is_err_and(|e| e.to_string().contains("one size")));
        assert!(Projection::fit("image", 5000, 0.5, std::iter::empty()).is_err());
        assert!(check_energy("image", 0.0).is_err() && check_energy("image", f64::NAN).is_err());
        assert!(check_energy("image", 1.0).is_ok() && check_noise("audio", 200.0).is_err());
    }
}
