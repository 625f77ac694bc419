//! OGM and OGM-GE: on-the-fly gradient modulation damps the encoder of the modality that leads.
//!
//! ```text
//! s_m = mean_i softmax(z^m_i)[y_i]            z^m: the modality's share of the fused logits
//! ρ_m = s_m / mean_{j≠m} s_j                  above 1 where m leads
//! k_m = 1 - tanh(α ρ_m)  if ρ_m > 1,  else 1
//! g_m ← k_m g_m                                                            (OGM)
//! g_m ← k_m g_m + ε,  ε ~ N(0, (std(g_m) + 1e-8)²) element-wise            (OGM-GE)
//! ```
//!
//! Only parameters under `encoder.<m>` are touched. The noise of OGM-GE is added to every encoder, damped or not; its
//! deviation is that of the undamped gradient, per parameter tensor.
//!
//! z^m is exact where the fusion is a sum over modalities (late-linear, concat, sum). Elsewhere the scores come from the
//! fused logits with every other modality masked; the papers leave these fusions open.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `alpha` α | 0.8 | > 0 | strength |
//! | `variant` | `paper` | | `released`: a tie counts as a lead of the first modality (M = 2); `released-m3`: below |
//! | `parameters` | `all` | | `conv`: tensors of rank 4 only, as the released code; `weights`: rank >= 2 |
//! | `start_epoch`, `end_epoch` | 0, none | | when it acts; the released run is 0..51 of 100 epochs |
//!
//! Differences. It is tanh(αρ), not tanh(α(ρ-1)): k jumps from 1 to 1 - tanh α as ρ passes 1. At an exact tie the
//! released code damps the first modality; by default a tie damps nobody. For M = 3 the MLA repository (`released-m3`)
//! compares with the *sum* of the others and always damps exactly one modality - the second if ρ > 1, else the third if
//! ρ > 1, else the first even where it does not lead; by default any number of leaders is damped, compared with the mean.
//! 0/0 counts as a tie, and a modality that is missing in the whole batch is left alone.
//!
//! Under Adam a constant factor cancels between the moments; the released code uses SGD.
//!
//! Source: Peng et al., CVPR 2022 (released: GeWu-Lab/OGM-GE_CVPR2022 @343dc1d); Wei et al., arXiv 2410.11582 (released:
//! GeWu-Lab/BML_TPAMI2024 @4b3aa4f, which adds a warm-up of 6 epochs).

use crate::{Balancer, Needs, StepCx, Windowed, score};
use candle_core::{Result, Tensor};
use mm_core::model::to_host;
use mm_core::{Checked, ConfigError, Forward, Gradients, ParamId, StepRng};
use serde::{Deserialize, Serialize};

/// Which coefficients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Every modality that leads the mean of the others is damped.
    #[default]
    Paper,
    /// Two modalities; a tie damps the first.
    Released,
    /// Three modalities; exactly one is damped.
    ReleasedM3,
}

/// Which encoder parameters are modulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parameters {
    /// All of them.
    #[default]
    All,
    /// Tensors of rank 4: the kernels of 2-d convolutions.
    Conv,
    /// Tensors of rank 2 and more.
    Weights,
}

/// Settings of [`Ogm`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OgmConfig {
    /// α, strength.
    pub alpha: f64,
    /// Paper or released coefficients.
    pub variant: Variant,
    /// Which parameters.
    pub parameters: Parameters,
    /// First epoch with modulation.
    pub start_epoch: usize,
    /// First epoch without modulation again.
    pub end_epoch: Option<usize>,
}

impl Default for OgmConfig {
    fn default() -> Self {
        Self {
            alpha: 0.8,
            variant: Variant::Paper,
            parameters: Parameters::All,
            start_epoch: 0,
            end_epoch: None,
        }
    }
}

impl OgmConfig {
    /// Validates for a number of modalities; `noise` is the generalisation enhancement of OGM-GE.
    pub fn build(&self, modalities: usize, noise: bool) -> Checked<Windowed<Ogm>> {
        ConfigError::check_range("alpha", self.alpha, f64::MIN_POSITIVE, f64::MAX)?;
        let needs = match self.variant {
            Variant::Paper => modalities,
            Variant::Released => 2,
            Variant::ReleasedM3 => 3,
        };
        if needs != modalities {
            let rule = format!("this variant exists for {needs} modalities only, the model has {modalities}");
            return Err(ConfigError::new("variant", format!("{:?}", self.variant), rule));
        }
        let ogm = Ogm { config: self.clone(), noise, scores: Vec::new(), coefficients: Vec::new() };
        Ok(Windowed::new(ogm, self.start_epoch, self.end_epoch))
    }
}

/// k_m from a ratio ρ_m.
pub fn coefficient(ratio: f64, alpha: f64) -> f64 {
    if ratio > 1.0 { damped(ratio, alpha) } else { 1.0 }
}

fn damped(ratio: f64, alpha: f64) -> f64 {
    1.0 - (alpha * ratio.max(0.0)).tanh()
}

/// k_m of every modality from the scores s_m; NaN scores mean "no evidence" and give 1.
///
/// ```
/// let k = mm_balance::ogm::coefficients(&[0.8, 0.4], 0.8);
/// assert!(k[0] < 0.1 && k[1] == 1.0);
/// ```
pub fn coefficients(scores: &[f64], alpha: f64) -> Vec<f64> {
    score::lead(scores).into_iter().map(|r| coefficient(r, alpha)).collect()
}

/// The released coefficients for two modalities: a tie damps the first.
pub fn coefficients_released(scores: [f64; 2], alpha: f64) -> [f64; 2] {
    let second = scores[1] / scores[0];
    if second > 1.0 { [1.0, damped(second, alpha)] } else { [damped(1.0 / second, alpha), 1.0] }
}

/// ρ_m of the three-modality release: the score over the *sum* of the others.
pub fn ratios_released_m3(scores: [f64; 3]) -> [f64; 3] {
    let total: f64 = scores.iter().sum();
    scores.map(|s| s / (total - s))
}

/// The released coefficients for three modalities: the second is damped if it leads, else the third if it leads, else
/// the first in any case.
pub fn coefficients_released_m3(scores: [f64; 3], alpha: f64) -> [f64; 3] {
    let ratios = ratios_released_m3(scores);
    let chosen = [1, 2].into_iter().find(|&m| ratios[m] > 1.0).unwrap_or(0);
    let mut k = [1.0; 3];
    k[chosen] = damped(ratios[chosen], alpha);
    k
}

/// Unbiased standard deviation of a gradient's entries; 0 for a single entry, where it does not exist.
pub fn deviation(gradient: &Tensor) -> Result<f64> {
    let values = to_host(gradient)?;
    if values.len() < 2 {
        return Ok(0.0);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let centred = values.iter().map(|g| (g - mean) * (g - mean)).sum::<f64>();
    Ok((centred / (n - 1.0)).sqrt())
}

/// The deviation of OGM-GE's noise, `std(g) + 1e-8`.
pub fn noise_deviation(gradient: &Tensor) -> Result<f64> {
    Ok(deviation(gradient)? + 1e-8)
}

/// `k g + unit_noise (std(g) + 1e-8)`: the gradient of OGM-GE, given standard normal noise of g's shape.
pub fn enhanced(gradient: &Tensor, k: f64, unit_noise: &Tensor) -> Result<Tensor> {
    let noise = unit_noise.affine(noise_deviation(gradient)?, 0.0)?;
    gradient.affine(k, 0.0)? + noise
}

/// See the [module](self).
#[derive(Debug)]
pub struct Ogm {
    config: OgmConfig,
    noise: bool,
    scores: Vec<f64>,
    coefficients: Vec<f64>,
}

impl Ogm {
    fn coefficients(&self, scores: &[f64]) -> Vec<f64> {
        let alpha = self.config.alpha;
        match (self.config.variant, scores) {
            (Variant::Released, &[a, b]) => coefficients_released([a, b], alpha).to_vec(),
            (Variant::ReleasedM3, &[a, b, c]) => coefficients_released_m3([a, b, c], alpha).to_vec(),
            _ => coefficients(scores, alpha),
        }
    }

    fn touches(&self, rank: usize) -> bool {
        match self.config.parameters {
            Parameters::All => true,
            Parameters::Conv => rank == 4,
            Parameters::Weights => rank >= 2,
        }
    }
}

impl Balancer for Ogm {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn gradients(&mut self, cx: &StepCx<'_>, fwd: &Forward, g: &mut Gradients) -> Result<()> {
        self.scores = cx.scores(&fwd.features, fwd.split.as_ref())?.into_values();
        self.coefficients = self.coefficients(&self.scores);
        for m in cx.model.modalities().iter() {
            let prefix = format!("encoder.{}", cx.model.modalities().name(m));
            for id in cx.params.group(&prefix) {
                if !self.touches(cx.params.get(id).var().rank()) {
                    continue;
                }
                let k = self.coefficients[m.index()];
                match (self.noise, g.get(id)?) {
                    (true, Some(grad)) => {
                        g.set(id, Some(enhanced(&grad, k, &unit_noise(&grad, cx.rng, id)?)?));
                    }
                    _ => g.scale_one(id, k),
                }
            }
        }
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, r) in score::lead(&self.scores).into_iter().enumerate() {
            sink("ratio", Some(m), r);
        }
        for (m, k) in self.coefficients.iter().enumerate() {
            sink("coefficient", Some(m), *k);
        }
    }
}

/// Standard normal noise of a gradient's shape, keyed by step and parameter.
fn unit_noise(gradient: &Tensor, rng: StepRng, id: ParamId) -> Result<Tensor> {
    let mut draws = rng.stream("ogm-ge").sample(id.index() as u64).draws();
    let values = draws.normals_f32(gradient.elem_count());
    Tensor::from_vec(values, gradient.shape(), gradient.device())?.to_dtype(gradient.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn only_leaders_are_damped() {
        assert_eq!(coefficients(&[0.5, 0.5], 0.8), [1.0, 1.0]);
        assert_eq!(coefficients(&[0.0, 0.0], 0.8), [1.0, 1.0]);
        assert_eq!(coefficients(&[0.5, 0.0], 0.8), [0.0, 1.0]);
        assert_eq!(coefficients(&[f64::NAN, 0.5], 0.8), [1.0, 1.0]);
        let k = coefficients(&[0.6, 0.6, 0.1], 0.5);
        assert!(k[0] < 1.0 && k[0] == k[1] && k[2] == 1.0);
        let tie = coefficients_released([0.5, 0.5], 0.8);
        assert_eq!(tie, [1.0 - 0.8f64.tanh(), 1.0]);
    }

    #[test]
    fn deviation_of_one_entry_is_zero() {
        let one = Tensor::new(&[3f32], &Device::Cpu).unwrap();
        assert_eq!(deviation(&one).unwrap(), 0.0);
        let two = Tensor::new(&[1f32, 3.0], &Device::Cpu).unwrap();
        assert!((deviation(&two).unwrap() - 2f64.sqrt()).abs() < 1e-12);
    }
}
