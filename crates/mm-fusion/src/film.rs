//! Feature-wise linear modulation: one modality scales and shifts the features of the others.
//!
//! ```text
//! [γ_m; β_m] = F_m h_c + f_m                       for every modality m other than the conditioner c
//! z          = Σ_{m ≠ c} V_m (γ_m ⊙ h_m + β_m) + v
//! ```
//!
//! With two modalities there is one term, as published. With more the conditioner modulates each of the others, and
//! the results are summed (our extension).
//!
//! Shapes: h_m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; F_m (2 D_m, D_c); V_m (C, D_m); z (B, C).
//! M >= 2, widths may differ.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `conditioner` | the first modality | a modality's name |
//!
//! Parameters: `fusion.film.<modality>.{weight,bias}`, `fusion.out.<modality>.weight`, `fusion.out.bias`, for every
//! modality but the conditioner.
//!
//! Unimodal predictions: by masking - the logits when every other modality is missing. The two factors of a product
//! have no separate shares.
//!
//! Missing modalities: in rows without the conditioner γ = 1 and β = 0, so the other features pass unchanged; a missing
//! conditioned modality has h_m = 0, and its β_m remains: what the conditioner has to say.
//!
//! Source: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (arXiv 1709.07871), as a fusion in
//! the code of OGM-GE (arXiv 2203.15332) and of MLB (arXiv 2405.07930).
//!
//! Differences: in the released code audio conditions video, which is the default here where audio is named first. The
//! released code treats a missing modality as zero features, so γ and β are then the biases.

use crate::FusionInfo;
use crate::layers::{Linear, at_least_two, chosen, neutral};
use candle_core::{Result, Tensor};
use mm_core::model::{pooled, sum};
use mm_core::{ConfigError, Features, Fusion, Init, Modal, Modalities, Modality, Mode, Presence, Scope};
use serde::{Deserialize, Serialize};

/// What there is to know about this fusion.
pub const INFO: FusionInfo = FusionInfo {
    name: "film",
    summary: "one modality scales and shifts the features of the others",
    unimodal: "by masking the other modalities, or from heads on the encoders",
    parameters: &["fusion.film.<modality>.{weight,bias}", "fusion.out.<modality>.weight", "fusion.out.bias"],
};

/// Settings of [`Film`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FilmConfig {
    /// The modality that modulates the others; the first where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conditioner: Option<String>,
}

impl FilmConfig {
    /// Checks every setting and the number of modalities.
    pub fn check(&self, modalities: &Modalities) -> std::result::Result<(), ConfigError> {
        at_least_two(INFO.name, modalities)?;
        chosen("conditioner", self.conditioner.as_deref(), modalities).map(drop)
    }

    /// Makes the fusion's parameters in `scope`.
    pub fn build(
        &self,
        mut scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<Film> {
        self.check(modalities).map_err(candle_core::Error::wrap)?;
        let conditioner = chosen("conditioner", self.conditioner.as_deref(), modalities)
            .map_err(candle_core::Error::wrap)?;
        let others = || dims.iter().filter(|(m, _)| *m != conditioner);
        let init = Init::linear(others().map(|(_, dim)| dim).sum());
        let mut branches = Vec::with_capacity(dims.len() - 1);
        for (m, &dim) in others() {
            let name = modalities.name(m);
            let film = Linear::new(scope.child("film").at(name), dims[conditioner], 2 * dim)?;
            let out = scope.child("out").at(name).param("weight", (classes, dim), init)?;
            branches.push(Branch { m, dim, film, out });
        }
        let bias = scope.child("out").param("bias", classes, init)?;
        Ok(Film { conditioner, branches, bias })
    }
}

/// The FiLM fusion; see the equations of this module.
#[derive(Debug)]
pub struct Film {
    conditioner: Modality,
    branches: Vec<Branch>,
    bias: Tensor,
}

#[derive(Debug)]
struct Branch {
    m: Modality,
    dim: usize,
    film: Linear,
    out: Tensor,
}

impl Fusion for Film {
    fn fuse(&self, z: &Features, present: &Modal<Option<Presence>>, _mode: Mode) -> Result<Tensor> {
        let condition = pooled(&z[self.conditioner])?;
        let there = present[self.conditioner].as_ref();
        let terms = self.branches.iter().enumerate().map(|(i, branch)| {
            let film = branch.film.forward(&condition)?;
            let gamma = neutral(&film.narrow(1, 0, branch.dim)?, there, 1.0)?;
            let beta = neutral(&film.narrow(1, branch.dim, branch.dim)?, there, 0.0)?;
            let modulated = ((gamma * pooled(&z[branch.m])?)? + beta)?;
            mm_kernels::linear::linear(&modulated, &branch.out, (i == 0).then_some(&self.bias))
        });
        sum(&terms.collect::<Result<Vec<_>>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{features, fixture, missing};
    use mm_testkit::assert_close;

    #[test]
    fn equals_its_equation() {
        let config = FilmConfig { conditioner: Some("b".to_owned()) };
        let (fusion, store) = fixture(&[3, 5], |s, m, d| config.build(s, m, d, 4));
        let value = |name: &str| store.find(&format!("fusion.{name}")).unwrap().var().as_tensor().clone();
        let map = |x: &Tensor, w: &str, b: &str| {
            x.matmul(&value(w).t().unwrap()).unwrap().broadcast_add(&value(b)).unwrap()
        };
        let z = features(&[3, 5], 6);
        let film = map(&z.values()[1], "film.a.weight", "film.a.bias");
        let (gamma, beta) = (film.narrow(1, 0, 3).unwrap(), film.narrow(1, 3, 3).unwrap());
        let modulated = ((gamma * &z.values()[0]).unwrap() + &beta).unwrap();
        let expected = map(&modulated, "out.a.weight", "out.bias");
        assert_close(&fusion.fuse(&z, &z.map(|_, _| None), Mode::Eval).unwrap(), &expected, 1e-12);

        // Without the conditioner the features pass unchanged; without the conditioned one beta remains.
        let alone = |gone: usize| fusion.fuse(&z, &missing(&z, gone), Mode::Eval).unwrap();
        assert_close(&alone(1), &map(&z.values()[0], "out.a.weight", "out.bias"), 1e-12);
        let zero = z.map(|m, h| if m.index() == 0 { h.zeros_like().unwrap() } else { h.clone() });
        let left = fusion.fuse(&zero, &missing(&z, 0), Mode::Eval).unwrap();
        assert_close(&left, &map(&beta, "out.a.weight", "out.bias"), 1e-12);
    }
}
