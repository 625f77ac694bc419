//! MCR: each modality is rewarded for what the prediction loses without it, by permuting its features within the batch.
//!
//! ```text
//! D_m  = mean_{(i,j)} JSD( softmax f(h_j^m, h_i^{-m}) ‖ softmax f(h_i) )     row i with modality m of another row j
//! L    = CE(z, y) + λ_u Σ_m CE(u^m, y) + λ L_MIPD + λ_c L_Con + λ_b L_CEB
//! ∂L_MIPD/∂θ_m = -∂D_m/∂θ_m - k Σ_{n≠m} ∂D_n/∂θ_m          θ_m: encoder m, and its share of a fusion that is a sum
//! ```
//!
//! D_m stands for the conditional mutual information of modality m and the label, given the others, and lies between 0
//! and log 2. Each modality is a player that wants D_m large; `strategy` sets what it wants for the others:
//!
//! | `strategy` | k | |
//! |---|---:|---|
//! | `greedy` | -1 | and the others' small; z is a constant in D, since its gradients cancel |
//! | `independent` | 0 | and does not care; through z, D_m still reaches the others, as released |
//! | `collaborative` | 1 | and the others' large |
//!
//! ```text
//! L_Con = mean_{a,p} -log( e^{s_ap} / (e^{s_ap} + Σ_n e^{s_an}) ),  s = cosine / τ       shared information
//!         over features of all modalities and rows: p has the class of a, n another one
//! L_CEB = mean ‖[h_1 … h_M] - B relu(A [z])‖²                 what of the features the prediction does not explain
//! ```
//!
//! where [ ] stops gradients. Shapes: h_m (B, D), of tokens the mean; z, u^m (B, C); A (D, C), B (MD, D), without
//! biases.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `strategy` | `greedy` | | `independent`, `collaborative` |
//! | `weight` λ | 0.1 | > 0 | of L_MIPD |
//! | `samples` | 32 | 1 to 1024 | permutations per step |
//! | `contrast` λ_c | 1 | >= 0 | of L_Con; above 0 all encoders need one width |
//! | `temperature` τ | 0.5 | > 0 | of L_Con |
//! | `bottleneck` λ_b | 0 | >= 0 | of L_CEB; 1 in released runs with conformers, 0 with ResNets |
//! | `unimodal` λ_u | 0.01 | >= 0 | of the unimodal losses |
//!
//! Parameters, where λ_b > 0: `balance.mcr.{hidden,out}.weight`. The fusion, where it is not a sum, moves with -D_m as
//! the players do together: not at all under `greedy`.
//!
//! Differences. The release encodes the batch a second time, in evaluation mode, for the features that it permutes;
//! here they are the features of the step. Rows that a permutation leaves in their place are left out, one of the
//! released ways to shuffle. For M = 3 the release permutes pairs of modalities besides; here one at a time, for any M.
//! It starts from encoders that were trained alone: give them in `[model.weights]`. At the commit below its class for M = 2
//! computes L_MIPD and L_Con but does not add them to the loss; that for M = 3 does, as here. A row that lacks a
//! modality is no pair of it, and takes no part in L_Con and L_CEB with it. The shared bias belongs to the shares in
//! equal parts, and is detached with them; there it never is.
//!
//! Source: Kontras et al., "Balancing Multimodal Training Through Game-Theoretic Regularization", NeurIPS 2025, arXiv
//! 2411.07335; released code kkontras/MCR @338d370, `Bias_Infusion.py` and `MCR_Models.py`.

use crate::lfm::{jensen_shannon, unit_rows};
use crate::multi_loss::heads_of;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{pooled, sum, to_host};
use mm_core::rng::Draws;
use mm_core::{Batch, Checked, ConfigError, Forward, Init, Modal, Modality, Presence, Scope};
use mm_kernels::{linear::linear, relu};
use serde::{Deserialize, Serialize};

/// What a modality wants for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// That they count for little.
    #[default]
    Greedy,
    /// Nothing.
    Independent,
    /// That they count for much.
    Collaborative,
}

/// Settings of [`Mcr`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct McrConfig {
    /// What a modality wants for the others.
    pub strategy: Strategy,
    /// λ, weight of the permutations' divergences.
    pub weight: f64,
    /// Permutations per step.
    pub samples: usize,
    /// λ_c, weight of the contrastive loss.
    pub contrast: f64,
    /// τ, its temperature.
    pub temperature: f64,
    /// λ_b, weight of the bottleneck.
    pub bottleneck: f64,
    /// λ_u, weight of the unimodal losses.
    pub unimodal: f64,
}

impl Default for McrConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::Greedy,
            weight: 0.1,
            samples: 32,
            contrast: 1.0,
            temperature: 0.5,
            bottleneck: 0.0,
            unimodal: 0.01,
        }
    }
}

impl McrConfig {
    /// Validates; says what the method needs.
    pub fn check(&self) -> Checked<Needs> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("samples", self.samples as f64, 1.0, 1024.0)?;
        ConfigError::check_range("contrast", self.contrast, 0.0, f64::MAX)?;
        ConfigError::check_range("temperature", self.temperature, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("bottleneck", self.bottleneck, 0.0, f64::MAX)?;
        ConfigError::check_range("unimodal", self.unimodal, 0.0, f64::MAX)?;
        Ok(Needs {
            heads: self.unimodal > 0.0,
            equal_widths: self.contrast > 0.0,
            modalities: 2,
            ..Needs::default()
        })
    }

    /// The method; the bottleneck's parameters go to `scope`.
    pub fn build(&self, mut scope: Scope<'_>, widths: &Modal<usize>, classes: usize) -> Result<Mcr> {
        let needs = self.check().map_err(candle_core::Error::wrap)?;
        let total: usize = widths.values().iter().sum();
        let hidden = total.div_ceil(widths.len().max(1));
        let bottleneck = (self.bottleneck > 0.0).then(|| {
            let mut layer = |name: &str, out: usize, input: usize| {
                scope.child(name).param("weight", (out, input), Init::linear(input))
            };
            Result::Ok([layer("hidden", hidden, classes)?, layer("out", total, hidden)?])
        });
        Ok(Mcr {
            config: self.clone(),
            needs,
            bottleneck: bottleneck.transpose()?,
            divergences: Vec::new(),
            scores: Vec::new(),
            contrast: None,
        })
    }
}

/// Rows, and for each another one whose modality takes the place of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs {
    /// Row i.
    pub rows: Vec<u32>,
    /// Row j.
    pub partners: Vec<u32>,
}

impl Pairs {
    /// The pairs of `samples` permutations of `rows`, without those of a row with itself.
    pub fn draw(rows: &[u32], samples: usize, draws: &mut Draws) -> Self {
        let mut pairs = Self::default();
        if rows.len() < 2 {
            return pairs;
        }
        let mut shuffled = rows.to_vec();
        for _ in 0..samples {
            draws.shuffle(&mut shuffled);
            for (row, partner) in rows.iter().zip(&shuffled).filter(|(row, partner)| row != partner) {
                pairs.rows.push(*row);
                pairs.partners.push(*partner);
            }
        }
        pairs
    }
}

/// Whose gradients flow through logits of permuted features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// The permuted modality's.
    Own,
    /// All but the permuted modality's.
    Others,
    /// All.
    All,
}

impl Live {
    /// `x` of modality `n` where `m` is permuted.
    fn pass(self, n: Modality, m: Modality, x: &Tensor) -> Tensor {
        let live = match self {
            Self::Own => n == m,
            Self::Others => n != m,
            Self::All => true,
        };
        if live { x.clone() } else { x.detach() }
    }
}

/// f with modality `m` permuted where the fused logits are the sum of `shares`.
pub fn permuted_sum(shares: &Modal<Tensor>, m: Modality, pairs: &Pairs, live: Live) -> Result<Tensor> {
    let terms = shares.try_map(|n, share| {
        let from = if n == m { &pairs.partners } else { &pairs.rows };
        live.pass(n, m, share).index_select(&Tensor::new(from.as_slice(), share.device())?, 0)
    })?;
    sum(terms.values())
}

/// L_MIPD and D_m. `permuted` gives logits with modality m permuted by `pairs[m]`; a modality without pairs has D_m = 0.
pub fn competition<F>(
    strategy: Strategy,
    fused: &Tensor,
    pairs: &[Pairs],
    mut permuted: F,
) -> Result<(Option<Tensor>, Vec<f64>)>
where
    F: FnMut(Modality, &Pairs, Live) -> Result<Tensor>,
{
    let (mut terms, mut divergences) = (Vec::new(), vec![0.0; pairs.len()]);
    for (m, pairs) in pairs.iter().enumerate().filter(|(_, pairs)| !pairs.rows.is_empty()) {
        let clean = fused.index_select(&Tensor::new(pairs.rows.as_slice(), fused.device())?, 0)?;
        let mut divergence =
            |live: Live, clean: &Tensor| jensen_shannon(&permuted(Modality::new(m), pairs, live)?, clean);
        let own = match strategy {
            Strategy::Greedy => {
                // The two have one value, so that only gradients are left of the second.
                let others = divergence(Live::Others, &clean.detach())?;
                terms.push((&others - others.detach())?);
                divergence(Live::Own, &clean.detach())?
            }
            Strategy::Independent => divergence(Live::Own, &clean)?,
            Strategy::Collaborative => divergence(Live::All, &clean)?,
        };
        divergences[m] = to_host(&own)?[0];
        terms.push(own.neg()?);
    }
    Ok((if terms.is_empty() { None } else { Some(sum(&terms)?) }, divergences))
}

/// L_Con of embeddings (N, D) with these labels; `None` where no two have one class, or all have.
pub fn contrast(embeddings: &Tensor, labels: &[u32], temperature: f64) -> Result<Option<Tensor>> {
    let count = embeddings.dim(0)?;
    if labels.len() != count {
        bail!("MCR: {} labels for {count} embeddings", labels.len());
    }
    let unit = unit_rows(embeddings)?;
    let similarity = (unit.matmul(&unit.t()?)? / temperature)?;
    let s = to_host(&similarity)?;
    let (mut gradient, mut loss, mut positives, mut negatives) = (vec![0.0; s.len()], 0.0, 0usize, 0usize);
    for (a, label) in labels.iter().enumerate() {
        let row = &s[a * count..(a + 1) * count];
        let other = |n: &usize| labels[*n] != *label;
        let largest = (0..count).filter(other).map(|n| row[n]).fold(f64::NEG_INFINITY, f64::max);
        let all: f64 = (0..count).filter(other).map(|n| (row[n] - largest).exp()).sum();
        negatives += (0..count).filter(other).count();
        let outside = largest + all.ln(); // -∞ where there is no negative: then the loss is 0
        let mut slopes = 0.0;
        for p in (0..count).filter(|p| *p != a && labels[*p] == *label) {
            positives += 1;
            let excess = outside - row[p];
            if excess == f64::NEG_INFINITY {
                continue;
            }
            // log(1 + e^x) and its derivative, without overflow.
            loss += excess.max(0.0) + (-excess.abs()).exp().ln_1p();
            let slope = 1.0 / (1.0 + (-excess).exp());
            gradient[a * count + p] -= slope;
            slopes += slope;
        }
        // Every positive pulls at every negative by the same share.
        if slopes > 0.0 {
            for n in (0..count).filter(other) {
                gradient[a * count + n] += slopes * (row[n] - outside).exp();
            }
        }
    }
    if positives == 0 || negatives == 0 {
        return Ok(None);
    }
    // A linear function of the similarities with this value and this gradient.
    let scale = 1.0 / positives as f64;
    let gradient = Tensor::from_vec(gradient, (count, count), embeddings.device())?;
    let gradient = gradient.affine(scale, 0.0)?.to_dtype(embeddings.dtype())?;
    let linear = ((&similarity - similarity.detach())? * gradient)?.sum_all()?;
    (linear + loss * scale).map(Some)
}

/// L_CEB of features whose rows that lack the modality are zero.
pub fn bottleneck(
    features: &Modal<Tensor>,
    fused: &Tensor,
    [hidden, out]: [&Tensor; 2],
    batch: &Batch,
) -> Result<Tensor> {
    let explained = linear(&relu(&linear(&fused.detach(), hidden, None)?)?, out, None)?;
    let (mut start, mut entries, mut terms) = (0, 0, Vec::with_capacity(features.len()));
    for (m, h) in features.iter() {
        let (rows, width) = h.dims2()?;
        let rest = (h - explained.narrow(1, start, width)?)?.sqr()?;
        let (rest, rows) = match &batch.present[m] {
            Some(present) => (present.apply(&rest)?, present.count()),
            None => (rest, rows),
        };
        terms.push(rest.sum_all()?);
        (start, entries) = (start + width, entries + rows * width);
    }
    sum(&terms)? / entries.max(1) as f64
}

/// See the [module](self).
#[derive(Debug)]
pub struct Mcr {
    config: McrConfig,
    needs: Needs,
    bottleneck: Option<[Tensor; 2]>,
    divergences: Vec<f64>,
    scores: Vec<f64>,
    contrast: Option<f64>,
}

impl Mcr {
    /// The features of the rows that have them, all modalities below each other, and their labels.
    fn embeddings(features: &Modal<Tensor>, batch: &Batch) -> Result<(Tensor, Vec<u32>)> {
        let (mut parts, mut labels) = (Vec::new(), Vec::new());
        for (m, h) in features.iter() {
            let rows = present_rows(batch, m);
            labels.extend(rows.iter().map(|&row| batch.labels[row as usize]));
            parts.push(if rows.len() == batch.rows() {
                h.clone()
            } else {
                h.index_select(&Tensor::new(rows.as_slice(), h.device())?, 0)?
            });
        }
        let widths: Vec<usize> = parts.iter().map(|h| h.dim(1)).collect::<Result<_>>()?;
        if widths.windows(2).any(|pair| pair[0] != pair[1]) {
            bail!(
                "MCR compares features, whose widths are {widths:?}: give the encoders the same `dim`, or set \
                 contrast = 0"
            );
        }
        Ok((Tensor::cat(&parts, 0)?, labels))
    }
}

fn present_rows(batch: &Batch, m: Modality) -> Vec<u32> {
    let here = |row: &u32| batch.present[m].as_ref().is_none_or(|p| p.rows()[*row as usize]);
    (0..batch.rows() as u32).filter(here).collect()
}

/// f with modality `m` permuted, for any fusion.
fn fused_again(cx: &StepCx<'_>, fwd: &Forward, m: Modality, pairs: &Pairs, live: Live) -> Result<Tensor> {
    let from = |n: Modality| if n == m { &pairs.partners } else { &pairs.rows };
    let z = fwd
        .features
        .try_map(|n, h| live.pass(n, m, h).index_select(&Tensor::new(from(n).as_slice(), h.device())?, 0))?;
    let present = cx.batch.present.try_map(|n, p| match p {
        None => Ok(None),
        Some(p) => {
            let rows = from(n).iter().map(|&row| p.rows()[row as usize]).collect();
            Presence::new(rows, z[n].dtype(), z[n].device()).map(Some)
        }
    })?;
    Ok(cx.model.fuse(z, &present, cx.mode)?.fused)
}

impl Balancer for Mcr {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let config = &self.config;
        let mut terms = Vec::new();
        if config.unimodal > 0.0 {
            let (loss, scores) = losses_and_scores(heads_of(fwd)?, cx.batch)?;
            self.scores = scores.into_values();
            terms.push((loss * config.unimodal)?);
        }
        let draws = |m: Modality| cx.rng.stream("mcr").sample(m.index() as u64).draws();
        let pairs: Vec<Pairs> = (cx.model.modalities().iter())
            .map(|m| Pairs::draw(&present_rows(cx.batch, m), config.samples, &mut draws(m)))
            .collect();
        let (loss, divergences) =
            competition(config.strategy, &fwd.fused, &pairs, |m, pairs, live| match &fwd.split {
                Some(shares) => permuted_sum(shares, m, pairs, live),
                None => fused_again(cx, fwd, m, pairs, live),
            })?;
        self.divergences = divergences;
        terms.extend(loss.map(|loss| loss * config.weight).transpose()?);
        let features = fwd.features.try_map(|_, h| pooled(h))?;
        self.contrast = None;
        if config.contrast > 0.0 {
            let (embeddings, labels) = Self::embeddings(&features, cx.batch)?;
            if let Some(loss) = contrast(&embeddings, &labels, config.temperature)? {
                self.contrast = Some(to_host(&loss)?[0]);
                terms.push((loss * config.contrast)?);
            }
        }
        if let Some([hidden, out]) = &self.bottleneck {
            let loss = bottleneck(&features, &fwd.fused, [hidden, out], cx.batch)?;
            terms.push((loss * config.bottleneck)?);
        }
        if terms.is_empty() { Ok(None) } else { sum(&terms).map(Some) }
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, d) in self.divergences.iter().enumerate() {
            sink("divergence", Some(m), *d);
        }
        if let Some(loss) = self.contrast {
            sink("contrast", None, loss);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use mm_core::StepRng;

    #[test]
    fn pairs_are_permutations_without_rows_that_stay() {
        let rows = [0, 2, 3, 5, 7];
        let pairs = Pairs::draw(&rows, 200, &mut StepRng::new(1).draws());
        assert!(pairs.rows.iter().zip(&pairs.partners).all(|(i, j)| i != j && rows.contains(j)));
        // One of five rows stays on average.
        assert!((700..900).contains(&pairs.rows.len()), "{}", pairs.rows.len());
        assert_eq!(Pairs::draw(&[4], 8, &mut StepRng::new(1).draws()), Pairs::default());
    }

    #[test]
    fn contrast_of_three_embeddings() {
        // Cosines: 0 between the first two, which have one class; 1 and 0 with the third.
        let x = Tensor::new(&[[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], &Device::Cpu).unwrap();
        let loss = contrast(&x, &[1, 1, 0], 0.5).unwrap().unwrap().to_scalar::<f64>().unwrap();
        // -log(1 / (1 + e²)) and -log(1 / (1 + 1)), in the mean.
        let expected = 0.5 * (2f64.exp().ln_1p() + 2f64.ln());
        assert!((loss - expected).abs() < 1e-12, "{loss} {expected}");
        assert!(contrast(&x, &[1, 1, 1], 0.5).unwrap().is_none());
        assert!(contrast(&x, &[0, 1, 2], 0.5).unwrap().is_none());
        assert!(contrast(&x, &[0, 1], 0.5).unwrap_err().to_string().contains("2 labels for 3 embeddings"));
    }

    #[test]
    fn what_nobody_looks_at_has_no_divergence() {
        let shares = Modal::new(vec![
            Tensor::new(&[[50.0, -50.0], [-50.0, 50.0]], &Device::Cpu).unwrap(),
            Tensor::new(&[[0.3, 0.1], [0.3, 0.1]], &Device::Cpu).unwrap(),
        ]);
        let fused = sum(shares.values()).unwrap();
        let pairs = vec![Pairs { rows: vec![0, 1], partners: vec![1, 0] }; 2];
        for strategy in [Strategy::Greedy, Strategy::Independent, Strategy::Collaborative] {
            let (loss, found) =
                competition(strategy, &fused, &pairs, |m, pairs, live| permuted_sum(&shares, m, pairs, live))
                    .unwrap();
            assert!((found[0] - std::f64::consts::LN_2).abs() < 1e-12 && found[1].abs() < 1e-15, "{found:?}");
            let loss = loss.unwrap().to_scalar::<f64>().unwrap();
            assert!((loss + found[0] + found[1]).abs() < 1e-12, "{loss}");
        }
    }
}
