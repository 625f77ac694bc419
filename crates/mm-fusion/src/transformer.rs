//! Transformer fusion: a class token attends to the tokens of all modalities.
//!
//! ```text
//! t_m = P_m h_m + p_m + e_m                                     tokens of modality m, e_m a learnt offset
//! x   = [cls; t_1; …; t_M]
//! x   = x + dropout(attention(norm(x)))                         `layers` times, with
//! x   = x + dropout(W_2 dropout(gelu(W_1 norm(x) + b_1)) + b_2)
//! z   = V norm(x)_cls + v
//! ```
//!
//! Shapes: h_m (B, D_m) is one token, (B, N_m, D_m) is N_m tokens; P_m (dim, D_m); V (C, dim); z (B, C). M >= 1, widths
//! and numbers of tokens may differ. There is no position: the tokens of a modality are a set.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `dim` | the widest D_m, rounded up to a multiple of `heads` | a multiple of `heads` |
//! | `layers` | 2 | at least 1 |
//! | `heads` | 8 | at least 1 |
//! | `feed_forward` | 4 | at least 1; inner width as a multiple of `dim` |
//! | `dropout` | 0.1 | [0, 1) |
//! | `token_std` | 1.0 | at least 0; standard deviation from which `cls` and e_m start |
//!
//! Parameters: `fusion.cls`, `fusion.token.<modality>`, `fusion.project.<modality>.{weight,bias}`,
//! `fusion.layer.<l>.{attention,feed_forward}.norm.{weight,bias}`,
//! `fusion.layer.<l>.attention.{query,value,out}.{weight,bias}`, `fusion.layer.<l>.attention.key.weight`,
//! `fusion.layer.<l>.feed_forward.{up,down}.{weight,bias}`, `fusion.norm.{weight,bias}`, `fusion.out.{weight,bias}`.
//! Keys have no bias: it would shift all scores of a query alike and so never receive a gradient.
//!
//! Unimodal predictions: by masking - the logits when every other modality is missing.
//!
//! A missing modality's tokens are masked out of the attention: no other token sees them, whatever they hold. A row
//! without any modality is decided by the class token alone.
//!
//! Source: Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation" (MLB, arXiv 2405.07930),
//! the fusion called TF.
//!
//! Differences: the paper and its code run two Conformer layers of width 512 (convolutions, relative positions, halved
//! feed-forward layers) over un-pooled feature maps with one input projection for all modalities; this is a pre-norm
//! transformer encoder with a projection for each. The released code has no masks.

use crate::FusionInfo;
use crate::layers::{Linear, check_dropout, check_positive, dropout};
use candle_core::{Result, Tensor, bail};
use mm_core::{ConfigError, Features, Fusion, Init, Modal, Modalities, Mode, Presence, Scope};
use mm_kernels::{activation::gelu, attention::attention, layer_norm::layer_norm};
use serde::{Deserialize, Serialize};

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "transformer",
    summary: "a class token attends to the tokens of all modalities",
    unimodal: "by masking the other modalities, or from heads on the encoders",
    parameters: &[
        "fusion.cls",
        "fusion.token.<modality>",
        "fusion.project.<modality>.{weight,bias}",
        "fusion.layer.<l>.attention.…",
        "fusion.layer.<l>.feed_forward.…",
        "fusion.norm.{weight,bias}",
        "fusion.out.{weight,bias}",
    ],
};

/// Settings of [`Transformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransformerConfig {
    /// Width of the tokens; the widest features, rounded up to a multiple of `heads`, where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dim: Option<usize>,
    /// Number of layers.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Inner width of the feed-forward layers as a multiple of `dim`.
    pub feed_forward: usize,
    /// Dropout after attention, inside and after the feed-forward layers.
    pub dropout: f64,
    /// Standard deviation from which the class token and the modalities' offsets start.
    pub token_std: f64,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self { dim: None, layers: 2, heads: 8, feed_forward: 4, dropout: 0.1, token_std: 1.0 }
    }
}

impl TransformerConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        check_positive("layers", self.layers)?;
        check_positive("heads", self.heads)?;
        check_positive("feed_forward", self.feed_forward)?;
        check_dropout(self.dropout)?;
        ConfigError::check_range("token_std", self.token_std, 0.0, f64::MAX)?;
        match self.dim {
            Some(dim) if dim == 0 || !dim.is_multiple_of(self.heads) => {
                let rule = format!("must be a multiple of heads = {}", self.heads);
                Err(ConfigError::new("dim", dim, rule))
            }
            _ => Ok(()),
        }
    }

    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<Transformer> {
        self.check().map_err(candle_core::Error::wrap)?;
        let widest = dims.values().iter().copied().max().unwrap_or(1);
        let dim = self.dim.unwrap_or_else(|| widest.next_multiple_of(self.heads));
        let token = Init::Normal { mean: 0.0, std: self.token_std };
        let cls = scope.param("cls", dim, token)?;
        let offsets = dims.try_map(|m, _| scope.child("token").param(modalities.name(m), dim, token))?;
        let project =
            dims.try_map(|m, &width| Linear::new(scope.child("project").at(modalities.name(m)), width, dim))?;
        let layers = (0..self.layers)
            .map(|l| Layer::new(scope.child("layer").at(l), dim, self))
            .collect::<Result<_>>()?;
        let norm = Norm::new(scope.child("norm"), dim)?;
        let out = Linear::new(scope.child("out"), dim, classes)?;
        Ok(Transformer { cls, offsets, project, layers, norm, out })
    }
}

/// The transformer fusion; see the equations of this module.
#[derive(Debug)]
pub struct Transformer {
    cls: Tensor,
    offsets: Modal<Tensor>,
    project: Modal<Linear>,
    layers: Vec<Layer>,
    norm: Norm,
    out: Linear,
}

impl Fusion for Transformer {
    fn fuse(&self, z: &Features, present: &Modal<Option<Presence>>, mode: Mode) -> Result<Tensor> {
        let tokens = z.try_map(|m, h| {
            let h = match h.rank() {
                2 => h.unsqueeze(1)?,
                3 => h.clone(),
                _ => bail!("features must be (B, D) or (B, N, D), got {:?}", h.shape()),
            };
            self.project[m].forward(&h)?.broadcast_add(&self.offsets[m])
        })?;
        let (rows, _, dim) = tokens.values()[0].dims3()?;
        let mut x = vec![self.cls.broadcast_as((rows, 1, dim))?];
        x.extend(tokens.values().iter().cloned());
        let mut x = Tensor::cat(&x, 1)?;
        let mask = key_mask(&tokens, present)?;
        for (l, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, mask.as_ref(), mode.stream("layer").stream(&l.to_string()))?;
        }
        let cls = x.narrow(1, 0, 1)?.squeeze(1)?;
        self.out.forward(&self.norm.forward(&cls)?)
    }
}

/// (B, 1 + ΣN_m), 1 where a token may be attended to; nothing where that is everywhere.
fn key_mask(tokens: &Modal<Tensor>, present: &Modal<Option<Presence>>) -> Result<Option<Tensor>> {
    let (rows, device) = (tokens.values()[0].dim(0)?, tokens.values()[0].device());
    if present.iter().all(|(_, p)| p.as_ref().is_none_or(|p| p.count() == rows)) {
        return Ok(None);
    }
    let counts = tokens.try_map(|_, t| t.dim(1))?;
    let total = 1 + counts.values().iter().sum::<usize>();
    let mut mask = Vec::with_capacity(rows * total);
    for row in 0..rows {
        mask.push(1u8);
        for (m, &count) in counts.iter() {
            let there = present[m].as_ref().is_none_or(|p| p.rows()[row]);
            mask.extend(std::iter::repeat_n(u8::from(there), count));
        }
    }
    Tensor::from_vec(mask, (rows, total), device).map(Some)
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    feed_forward_norm: Norm,
    up: Linear,
    down: Linear,
    heads: usize,
    dropout: f64,
}

impl Layer {
    fn new(mut scope: Scope<'_>, dim: usize, config: &TransformerConfig) -> Result<Self> {
        let inner = dim * config.feed_forward;
        let mut a = scope.child("attention");
        let attention_norm = Norm::new(a.child("norm"), dim)?;
        let query = Linear::new(a.child("query"), dim, dim)?;
        let key = Linear::without_bias(a.child("key"), dim, dim)?;
        let value = Linear::new(a.child("value"), dim, dim)?;
        let out = Linear::new(a.child("out"), dim, dim)?;
        let mut f = scope.child("feed_forward");
        let feed_forward_norm = Norm::new(f.child("norm"), dim)?;
        let up = Linear::new(f.child("up"), dim, inner)?;
        let down = Linear::new(f.child("down"), inner, dim)?;
        let (heads, dropout) = (config.heads, config.dropout);
        Ok(Self { attention_norm, query, key, value, out, feed_forward_norm, up, down, heads, dropout })
    }

    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let drop = |x: &Tensor, place: &str| dropout(x, self.dropout, mode.stream(place));
        let h = self.attention_norm.forward(x)?;
        let (q, k, v) = (self.query.forward(&h)?, self.key.forward(&h)?, self.value.forward(&h)?);
        let h = self.out.forward(&attention(&q, &k, &v, mask, self.heads)?)?;
        let x = (x + drop(&h, "attention")?)?;
        let h = gelu(&self.up.forward(&self.feed_forward_norm.forward(&x)?)?)?;
        let h = self.down.forward(&drop(&h, "inner")?)?;
        x + drop(&h, "outer")?
    }
}

#[derive(Debug)]
struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    fn new(mut scope: Scope<'_>, dim: usize) -> Result<Self> {
        let weight = scope.param("weight", dim, Init::Const(1.0))?;
        let bias = scope.param("bias", dim, Init::Const(0.0))?;
        Ok(Self { weight, bias })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), 1e-5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture, missing};
    use candle_core::{DType, Device};
    use mm_testkit::assert_close;

    fn config() -> TransformerConfig {
        TransformerConfig { heads: 2, layers: 2, ..TransformerConfig::default() }
    }

    #[test]
    fn the_width_suits_the_features_and_the_heads() {
        let (_, store) = fixture(&[3, 5], |s, m, d| config().build(s, m, d, 4));
        assert_eq!(store.find("fusion.cls").unwrap().var().dims(), [6]);
        assert_eq!(store.find("fusion.layer.1.feed_forward.up.weight").unwrap().var().dims(), [24, 6]);
        let wide = TransformerConfig { dim: Some(10), ..config() };
        let (_, store) = fixture(&[3, 5], |s, m, d| wide.build(s, m, d, 4));
        assert_eq!(store.find("fusion.project.b.weight").unwrap().var().dims(), [10, 5]);
        let error = TransformerConfig { dim: Some(9), ..config() }.check().unwrap_err();
        assert_eq!(error.to_string(), "dim = 9: must be a multiple of heads = 2");
    }

    #[test]
    fn tokens_of_a_modality_are_a_set() {
        let (fusion, _) = fixture(&[4, 6], |s, m, d| config().build(s, m, d, 3));
        let one = features(&[4, 6], 2);
        let maps = features(&[4 * 5, 6 * 2], 2).map(|m, h| {
            let width = [4, 6][m.index()];
            h.reshape((2, h.dim(1).unwrap() / width, width)).unwrap()
        });
        let logits = |z: &Features| fusion.fuse(z, &z.map(|_, _| None), Mode::Eval).unwrap();
        let order = Tensor::new(&[3u32, 0, 4, 1, 2], &Device::Cpu).unwrap();
        let shuffled =
            maps.map(|m, h| if m.index() == 0 { h.index_select(&order, 1).unwrap() } else { h.clone() });
        assert_close(&logits(&shuffled), &logits(&maps), 1e-12);
        let single = one.map(|_, h| h.unsqueeze(1).unwrap());
        assert_close(&logits(&single), &logits(&one), 1e-12);
    }

    #[test]
    fn a_masked_modality_is_as_if_it_did_not_exist() {
        let (fusion, store) = fixture(&[4, 6], |s, m, d| config().build(s, m, d, 3));
        // The same parameters by name; only the width must not change with the second modality.
        let alone = TransformerConfig { dim: Some(6), ..config() };
        let (single, own) = fixture(&[4], |s, m, d| alone.build(s, m, d, 3));
        assert!(own.params().iter().all(|p| store.find(p.name()).is_some()));
        let z = features(&[4, 6], 3);
        let masked = fusion.fuse(&z, &missing(&z, 1), Mode::Eval).unwrap();
        let first = Modal::new(vec![z.values()[0].clone()]);
        let expected = single.fuse(&first, &Modal::new(vec![None]), Mode::Eval).unwrap();
        assert_close(&masked, &expected, 1e-12);
    }

    #[test]
    fn a_row_without_any_modality_is_finite() {
        let (fusion, _) = fixture(&[4, 6], |s, m, d| config().build(s, m, d, 3));
        let z = features(&[4, 6], 2);
        let none = Presence::new(vec![true, false], DType::F64, &Device::Cpu).unwrap();
        let logits = fusion.fuse(&z, &z.map(|_, _| Some(none.clone())), Mode::Eval).unwrap();
        let logits = mm_core::model::to_host(&logits).unwrap();
        assert!(logits.iter().all(|v| v.is_finite()));
    }
}
