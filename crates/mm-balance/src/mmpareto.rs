//! MMPareto: in every encoder, the gradients of the multimodal and of its unimodal loss are combined without conflict.
//!
//! ```text
//! L    = CE(z, y) + Σ_m CE(u^m, y)                              heads and fusion are trained by the gradient of L
//! g_0  = ∂(L - Σ_j CE(u^j, y))/∂θ_m,   g_m = ∂CE(u^m, y)/∂θ_m   θ_m: all parameters of encoder m
//! w    = (1/2, 1/2)                      if ⟨g_0, g_m⟩ >= 0
//!        argmin_w ‖w_0 g_0 + w_m g_m‖    otherwise, over w_0 + w_m = 1, both >= 0
//! h_p  = 2 w_0 g_0,p + 2 w_m g_m,p       for each parameter tensor p of the encoder
//! g_p ← γ max(1, ‖g_0,p + g_m,p‖ / ‖h_p‖) h_p
//! ```
//!
//! so the direction harms neither loss, and its length is at least that of the plain sum, times γ. Two objectives meet
//! in an encoder, however many modalities there are. g_m of all encoders comes from one more backward pass over the
//! same forward pass, because a head reaches no encoder but its own; g_0 is the difference to the gradient of L.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `boost` γ | 1.5 | > 0 | factor of the final gradient |
//!
//! [`min_norm`] is the solver for any number of gradients, [`min_norm_pair`] the released closed form for two.
//!
//! Differences. As released, the weights are those of the whole encoder and the length is restored for each parameter
//! tensor. The released code takes the least norm also where ⟨g_0, g_m⟩ = 0, so that an encoder stands still once one
//! of its gradients vanishes; here this counts as no conflict. Where ‖h_p‖ = 0 it divides by zero; here the factor is
//! γ. It solves with every vector written down twice, which changes nothing. Under Adam a constant γ cancels.
//! `mmpareto` sets the gradients of the encoders, so it must stand first in a composition.
//!
//! Source: Wei and Hu, "MMPareto: Boosting Multimodal Learning with Innocent Unimodal Assistance", ICML 2024, arXiv
//! 2405.17730; released code GeWu-Lab/MMPareto_ICML2024 @a339db3.

use crate::multi_loss::heads_of;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, Needs, StepCx};
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, bail};
use mm_core::gradients::square_sum;
use mm_core::{Checked, ConfigError, Forward, Gradients, ParamId};
use serde::{Deserialize, Serialize};

/// Settings of [`MmPareto`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MmParetoConfig {
    /// γ, factor of the final gradient.
    pub boost: f64,
}

impl Default for MmParetoConfig {
    fn default() -> Self {
        Self { boost: 1.5 }
    }
}

impl MmParetoConfig {
    /// Validates.
    pub fn build(&self) -> Checked<MmPareto> {
        ConfigError::check_range("boost", self.boost, f64::MIN_POSITIVE, f64::MAX)?;
        Ok(MmPareto { boost: self.boost, unimodal: None, scores: Vec::new(), pairs: Vec::new() })
    }
}

/// The released closed form for two vectors a and b from ⟨a, a⟩, ⟨a, b⟩ and ⟨b, b⟩: the weight of a, and the square of
/// the least norm. Where one vector is the answer, its weight is 0.999, as released, and the square is its own.
pub fn min_norm_pair(aa: f64, ab: f64, bb: f64) -> (f64, f64) {
    if ab >= aa {
        return (0.999, aa);
    }
    if ab >= bb {
        return (0.001, bb);
    }
    let weight = (bb - ab) / (aa + bb - 2.0 * ab);
    (weight, bb + weight * (ab - bb))
}

/// The point of least norm in the convex hull of some vectors, from their inner products: weights, and its square.
///
/// Exact: of all subsets whose affine hull has its least point inside, the best. At most 12 vectors.
pub fn min_norm(products: &[Vec<f64>]) -> Result<(Vec<f64>, f64)> {
    let count = products.len();
    if count == 0 || count > 12 || products.iter().any(|row| row.len() != count) {
        bail!("the least norm takes a square matrix of inner products of 1 to 12 vectors, got {count} rows");
    }
    let mut best: Option<(Vec<f64>, f64)> = None;
    for set in 1u32..1 << count {
        let members: Vec<usize> = (0..count).filter(|i| set & (1 << i) != 0).collect();
        let Some(inside) = affine_min(products, &members) else { continue };
        if inside.iter().any(|w| *w < 0.0) {
            continue;
        }
        let mut weights = vec![0.0; count];
        for (i, w) in members.iter().zip(inside) {
            weights[*i] = w;
        }
        let square: f64 = (0..count)
            .flat_map(|i| (0..count).map(move |j| (i, j)))
            .map(|(i, j)| weights[i] * weights[j] * products[i][j])
            .sum();
        if best.as_ref().is_none_or(|(_, least)| square < *least) {
            best = Some((weights, square));
        }
    }
    best.ok_or_else(|| candle_core::Error::Msg("the inner products are not finite".into()))
}

/// Weights of the least point of an affine hull, which sum to 1; `None` where a vector can be spared.
fn affine_min(products: &[Vec<f64>], members: &[usize]) -> Option<Vec<f64>> {
    // G w + λ 1 = 0 with Σ w = 1, as one linear system in (w, λ).
    let n = members.len();
    let mut rows: Vec<Vec<f64>> = members
        .iter()
        .map(|&i| members.iter().map(|&j| products[i][j]).chain([1.0, 0.0]).collect())
        .chain([(0..n).map(|_| 1.0).chain([0.0, 1.0]).collect()])
        .collect();
    for column in 0..=n {
        let pivot = (column..=n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        let lead = rows[column].clone();
        if lead[column] == 0.0 || !lead[column].is_finite() {
            return None;
        }
        for (i, row) in rows.iter_mut().enumerate() {
            let factor = row[column] / lead[column];
            if i != column && factor != 0.0 {
                for (x, l) in row.iter_mut().zip(&lead) {
                    *x -= factor * l;
                }
            }
        }
    }
    let weights: Vec<f64> = rows.iter().take(n).enumerate().map(|(i, row)| row[n + 1] / row[i]).collect();
    weights.iter().all(|w| w.is_finite()).then_some(weights)
}

/// w_0 and w_m from ⟨g_0, g_0⟩, ⟨g_0, g_m⟩ and ⟨g_m, g_m⟩.
///
/// ```
/// use mm_balance::mmpareto::weights;
/// assert_eq!(weights(1.0, 0.5, 4.0), [0.5, 0.5]);
/// assert_eq!(weights(1.0, -1.0, 4.0), [5.0 / 7.0, 2.0 / 7.0]);
/// ```
pub fn weights(multimodal: f64, both: f64, unimodal: f64) -> [f64; 2] {
    if both < 0.0 {
        let (weight, _) = min_norm_pair(multimodal, both, unimodal);
        return [weight, 1.0 - weight];
    }
    [0.5, 0.5]
}

/// The final gradient of one parameter tensor.
pub fn combine(multimodal: &Tensor, unimodal: &Tensor, weights: [f64; 2], boost: f64) -> Result<Tensor> {
    let direction = (multimodal.affine(2.0 * weights[0], 0.0)? + unimodal.affine(2.0 * weights[1], 0.0)?)?;
    let (length, plain) = (square_sum(&direction)?.sqrt(), square_sum(&(multimodal + unimodal)?)?.sqrt());
    let restored = plain / length;
    direction.affine(boost * if restored > 1.0 && restored.is_finite() { restored } else { 1.0 }, 0.0)
}

/// ⟨a, b⟩, accumulated in f64.
pub(crate) fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? * b.to_dtype(DType::F64)?)?.sum_all()?.to_scalar::<f64>()
}

/// ⟨g_0, g_0⟩, ⟨g_0, g_m⟩ and ⟨g_m, g_m⟩ of g_0 = total - g_m, accumulated in f64: one pass over tensors that lie in memory.
fn products(total: &Tensor, own: &Tensor) -> Result<[f64; 3]> {
    {
        let (total, total_layout) = total.storage_and_layout();
        let (own, own_layout) = own.storage_and_layout();
        if let (Storage::Cpu(CpuStorage::F32(t)), Storage::Cpu(CpuStorage::F32(o))) = (&*total, &*own)
            && let (Some((a, b)), Some((c, d))) =
                (total_layout.contiguous_offsets(), own_layout.contiguous_offsets())
        {
            return Ok(products_f32(&t[a..b], &o[c..d]));
        }
    }
    let rest = (total - own)?;
    Ok([square_sum(&rest)?, dot(&rest, own)?, square_sum(own)?])
}

fn products_f32(total: &[f32], own: &[f32]) -> [f64; 3] {
    // Eight independent sums each: the order is fixed, so the bits are, and the loop vectorises.
    let mut lanes = [[0f64; 8]; 3];
    let add = |lanes: &mut [[f64; 8]; 3], lane: usize, t: f32, o: f32| {
        let (rest, own) = (f64::from(t - o), f64::from(o));
        lanes[0][lane] += rest * rest;
        lanes[1][lane] += rest * own;
        lanes[2][lane] += own * own;
    };
    let (mut t, mut o) = (total.chunks_exact(8), own.chunks_exact(8));
    for (t, o) in (&mut t).zip(&mut o) {
        for lane in 0..8 {
            add(&mut lanes, lane, t[lane], o[lane]);
        }
    }
    for (lane, (t, o)) in t.remainder().iter().zip(o.remainder()).enumerate() {
        add(&mut lanes, lane, *t, *o);
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// What was decided for one encoder.
#[derive(Debug, Clone, Copy)]
struct Pair {
    weights: [f64; 2],
    cosine: f64,
}

/// See the [module](self).
#[derive(Debug)]
pub struct MmPareto {
    boost: f64,
    unimodal: Option<Tensor>,
    scores: Vec<f64>,
    pairs: Vec<Pair>,
}

impl Balancer for MmPareto {
    fn needs(&self) -> Needs {
        Needs { heads: true, modalities: 2, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let (loss, scores) = losses_and_scores(heads_of(fwd)?, cx.batch)?;
        self.scores = scores.into_values();
        self.unimodal = Some(loss.clone());
        Ok(Some(loss))
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        self.pairs.clear();
        let Some(loss) = self.unimodal.take() else { return Ok(()) };
        let unimodal = Gradients::collect(cx.params, loss.backward()?);
        for m in cx.model.modalities().iter() {
            let prefix = format!("encoder.{}", cx.model.modalities().name(m));
            let mut found: Vec<(ParamId, Tensor, Tensor)> = Vec::new();
            let [mut a, mut both, mut b] = [0.0; 3];
            for id in cx.params.group(&prefix) {
                let (Some(total), Some(own)) = (g.get(id)?, unimodal.get(id)?) else { continue };
                let [multimodal, mixed, alone] = products(&total, &own)?;
                (a, both, b) = (a + multimodal, both + mixed, b + alone);
                found.push((id, total, own));
            }
            let weights = if found.is_empty() { [0.5, 0.5] } else { weights(a, both, b) };
            let cosine = both / (a.sqrt() * b.sqrt());
            self.pairs.push(Pair { weights, cosine: if cosine.is_nan() { 0.0 } else { cosine } });
            for (id, total, own) in found {
                if weights == [0.5, 0.5] {
                    // Then h_p is the plain sum, which has its own length.
                    g.scale_one(id, self.boost);
                } else {
                    g.set(id, Some(combine(&(total - &own)?, &own, weights, self.boost)?));
                }
            }
        }
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, pair) in self.pairs.iter().enumerate() {
            sink("cosine", Some(m), pair.cosine);
            sink("unimodal_weight", Some(m), pair.weights[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_least_norm_is_found_in_corners_on_edges_and_inside() {
        let products = |v: &[[f64; 2]]| -> Vec<Vec<f64>> {
            v.iter().map(|a| v.iter().map(|b| a[0] * b[0] + a[1] * b[1]).collect()).collect()
        };
        let close = |v: &[[f64; 2]], expected: &[f64], square: f64| {
            let (w, s) = min_norm(&products(v)).unwrap();
            assert!(w.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{w:?}");
            assert!((s - square).abs() < 1e-12, "{s}");
        };
        close(&[[1.0, 0.0], [2.0, 0.0]], &[1.0, 0.0], 1.0);
        close(&[[1.0, 1.0], [1.0, -1.0], [3.0, 0.0]], &[0.5, 0.5, 0.0], 1.0);
        close(&[[0.0, 0.0], [1.0, -1.0]], &[1.0, 0.0], 0.0);
        close(&[[2.0, 0.0], [-1.0, 0.0]], &[1.0 / 3.0, 2.0 / 3.0], 0.0);
        assert!(min_norm(&[]).is_err());
        assert!(min_norm(&[vec![f64::NAN]]).is_err());
    }

    #[test]
    fn one_pass_equals_three() {
        let mut draws = mm_core::StepRng::new(4).draws();
        let (t, o) = (draws.normals_f32(3 * 7), draws.normals_f32(3 * 7));
        let tensor = |v: &[f32]| Tensor::from_vec(v.to_vec(), (3, 7), &Device::Cpu).unwrap();
        let (t, o) = (tensor(&t), tensor(&o));
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let (one, three) = (products(&t, &o).unwrap(), products(&wide(&t), &wide(&o)).unwrap());
        assert!(one.iter().zip(three).all(|(a, b)| (a - b).abs() < 1e-6 * b.abs()), "{one:?} {three:?}");
        // Columns do not lie in memory one after the other.
        let (t, o) = (t.t().unwrap(), o.t().unwrap());
        let views = products(&t, &o).unwrap();
        assert!(one.iter().zip(views).all(|(a, b)| (a - b).abs() < 1e-6 * b.abs()), "{one:?} {views:?}");
    }

    #[test]
    fn nothing_is_divided_by_a_length_of_zero() {
        let zero = Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap();
        let one = Tensor::ones(3, DType::F64, &Device::Cpu).unwrap();
        assert_eq!(combine(&zero, &zero, [0.5, 0.5], 1.5).unwrap().to_vec1::<f64>().unwrap(), [0.0; 3]);
        assert_eq!(combine(&one, &zero, [0.0, 1.0], 1.5).unwrap().to_vec1::<f64>().unwrap(), [0.0; 3]);
        assert_eq!(combine(&one, &one, [0.5, 0.5], 1.5).unwrap().to_vec1::<f64>().unwrap(), [3.0; 3]);
    }
}
