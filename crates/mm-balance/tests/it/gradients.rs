//! Gradients of every loss kernel against central differences, in f64.

use candle_core::{Device, Result, Tensor};
use mm_balance::functional_entropy::{Estimate, Form, evaluate, perturbed};
use mm_balance::lfm::{alignment, info_nce, jensen_shannon};
use mm_balance::mcr::{self, Pairs, Strategy};
use mm_balance::pmr::{self, Prototypes};
use mm_balance::proxyanchor::{self, ProxyAnchorConfig};
use mm_balance::proxynca::{self, ProxyNcaConfig};
use mm_balance::softtriple::{self, SoftTripleConfig};
use mm_balance::{amco, cggm, cml, mbsd, mmcosine, multimodal_loss, reconboost, sum_ce, unimodal};
use mm_core::{Batch, Modal, Modality, Presence, StepRng};
use mm_kernels::check::gradcheck;
use mm_kernels::cross_entropy;
use mm_testkit::toy::{self, Options};

const EPS: f64 = 1e-6;
const TOL: f64 = 1e-7;

fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut draws = StepRng::new(seed).stream("test").draws();
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draws.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

#[test]
fn matching_losses() -> Result<()> {
    for (rows, width) in [(1, 3), (5, 2), (6, 4)] {
        let pair = [normal(&[rows, width], 1)?, normal(&[rows, width], 2)?];
        gradcheck(|x| info_nce(&x[0], &x[1], 0.5), &pair, EPS, TOL)?;
        gradcheck(|x| alignment(&x[0], &x[1]), &pair, EPS, TOL)?;
        gradcheck(|x| jensen_shannon(&x[0], &x[1]), &pair, EPS, TOL)?;
        // As one modality of a larger loss, whose gradient is not 1.
        gradcheck(|x| (alignment(&x[0], &x[1])? * 3.0)?.sqr(), &pair, EPS, TOL)?;
        gradcheck(|x| (jensen_shannon(&x[0], &x[1])? * 3.0)?.exp(), &pair, EPS, TOL)?;
        // Both arguments one tensor.
        gradcheck(|x| alignment(&x[0], &(&x[0] * 2.0)?), &pair[..1], EPS, TOL)?;
    }
    Ok(())
}

#[test]
fn multimodal_logits() -> Result<()> {
    let (rows, modalities, classes, per_class) = (4, 3, 2, 3);
    let embeddings = mm_kernels::softmax_last(&normal(&[rows, modalities, classes], 3)?)?.flatten_from(1)?;
    let proxies = normal(&[modalities * classes, classes * per_class], 4)?;
    let logits = |x: &[Tensor]| Ok(multimodal_loss::logits(&x[0], &x[1], classes, 10.0)?.logits);
    gradcheck(logits, &[embeddings.clone(), proxies.clone()], EPS, 1e-6)?;
    let loss = |x: &[Tensor]| cross_entropy(&logits(x)?, &[0, 1, 1, 0], None);
    gradcheck(loss, &[embeddings, proxies], EPS, 1e-6)?;
    Ok(())
}

/// Losses over heads, where the second modality lacks two rows.
#[test]
fn losses_over_heads() -> Result<()> {
    let heads: Vec<Tensor> = (0..3).map(|m| normal(&[4, 3], 10 + m)).collect::<Result<_>>()?;
    let mut batch = Batch::new(heads.iter().cloned().collect(), vec![0, 2, 1, 2])?;
    let presence = Presence::new(vec![true, false, true, false], heads[0].dtype(), &Device::Cpu)?;
    for missing in [false, true] {
        if missing {
            batch.present[mm_core::Modality::new(1)] = Some(presence.clone());
        }
        let modal = |x: &[Tensor]| -> Modal<Tensor> { x.iter().cloned().collect() };
        gradcheck(|x| Ok(unimodal::losses_and_scores(&modal(x), &batch)?.0), &heads, EPS, TOL)?;
        let summed = |x: &[Tensor]| {
            let probabilities = sum_ce::probabilities(&modal(x), &batch)?;
            cross_entropy(&mm_core::model::sum(probabilities.values())?, &batch.labels, None)
        };
        gradcheck(summed, &heads, EPS, TOL)?;
    }
    Ok(())
}

/// CGGM's cosine, whose gradient reaches features and fused logits.
#[test]
fn directions() -> Result<()> {
    let classifier = normal(&[5, 3], 20)?;
    let pair = [normal(&[5, 4], 21)?, normal(&[5, 3], 22)?];
    let cosine = |x: &[Tensor]| {
        // The classifier sees the features as constants: it must not follow them here either.
        let direction = cggm::cosine(&x[0], &x[1], &classifier, &[0, 2, 1, 1, 0])?;
        Ok(direction)
    };
    // G_m is made of the same features, whose gradient is stopped there: only the fused logits can be varied.
    gradcheck(|x| cosine(&[pair[0].clone(), x[0].clone()]), &pair[1..], EPS, TOL)?;
    Ok(())
}

#[test]
fn kernels_say_what_does_not_fit() -> Result<()> {
    let (a, b) = (normal(&[3, 4], 1)?, normal(&[3, 5], 2)?);
    let text = |r: Result<Tensor>| r.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(text(info_nce(&a, &b, 0.1)).contains("needs features of one width"));
    assert!(text(alignment(&a, &b)).contains("cannot be matched"));
    assert!(
        text(multimodal_loss::logits(&a, &b, 2, 10.0).map(|p| p.logits)).contains("do not fit 2 classes")
    );
    Ok(())
}

#[test]
fn cosines_and_proxies() -> Result<()> {
    let (rows, width, classes) = (5, 4, 3);
    let labels = [0, 2, 2, 0, 2]; // class 1 is absent
    let weights = [1.0, 1.0, 0.0, 1.0, 1.0];
    let (x, p) = (normal(&[rows, width], 20)?, normal(&[classes, width], 21)?);
    gradcheck(|x| mmcosine::logits(&x[0], &x[1], 3.0), &[x.clone(), p.clone()], EPS, TOL)?;
    for weights in [None, Some(&weights[..])] {
        let soft = SoftTripleConfig { scale: 2.0, gamma: 0.5, ..SoftTripleConfig::default() };
        for centers in [1, 3] {
            let w = normal(&[width, classes * centers], 22)?;
            gradcheck(
                |x| softtriple::loss(&x[0], &x[1], &labels, weights, classes, &soft),
                &[x.clone(), w],
                EPS,
                TOL,
            )?;
        }
        let pair = [x.clone(), p.clone()];
        gradcheck(|x| proxynca::loss(&x[0], &x[1], &labels, weights), &pair, EPS, TOL)?;
        let nca = ProxyNcaConfig::default();
        gradcheck(|x| proxynca::loss_released(&x[0], &x[1], &labels, weights, &nca), &pair, EPS, 1e-6)?;
        let anchor = ProxyAnchorConfig { alpha: 4.0, ..ProxyAnchorConfig::default() };
        gradcheck(|x| proxyanchor::loss(&x[0], &x[1], &labels, weights, &anchor), &pair, EPS, TOL)?;
    }
    // As part of a larger loss, whose gradient is not 1.
    gradcheck(|x| proxynca::loss(&x[0], &x[1], &labels, None)?.exp(), &[x, p], EPS, 1e-6)?;
    Ok(())
}

#[test]
fn prototypes_confidences_and_boosting() -> Result<()> {
    let (x, labels) = (normal(&[5, 4], 30)?, [0, 1, 1, 0, 1]);
    let seen = mm_core::model::to_host(&normal(&[6, 4], 31)?)?;
    // Class 2 was never seen.
    for known in [vec![0, 1, 2, 0, 1, 2], vec![0, 1, 1, 0, 1, 0]] {
        let prototypes = Prototypes::new(&seen, &known, 4, 3)?;
        let loss = |x: &[Tensor]| cross_entropy(&prototypes.logits(&x[0])?, &labels, None);
        gradcheck(loss, std::slice::from_ref(&x), EPS, TOL)?;
        let weights = [1.0, 0.0, 1.0, 1.0, 0.0];
        let entropy = |x: &[Tensor]| pmr::mean_entropy(&prototypes.logits(&x[0])?, &weights);
        gradcheck(entropy, std::slice::from_ref(&x), EPS, TOL)?;
    }
    let pair = [normal(&[6, 3], 32)?, normal(&[6, 3], 33)?];
    let labels = [0, 1, 2, 0, 1, 2];
    gradcheck(|x| cml::rank_losses(&x[0], &x[1], &labels), &pair, EPS, TOL)?;
    let others = pair[1].clone();
    let boosting = |x: &[Tensor]| reconboost::boosting_losses(&x[0], &others, &labels, 5.0, 1.0);
    gradcheck(boosting, &pair[..1], EPS, TOL)?;
    let weights = [0.5, 0.0, 1.0, 0.2, 0.0, 0.3];
    gradcheck(|x| mbsd::transfer(&x[0], &others, &weights), &pair[..1], EPS, TOL)?;
    gradcheck(|x| reconboost::reconciling_losses(&x[0], &others), &pair[..1], EPS, TOL)?;
    Ok(())
}

/// What MCR adds, where every modality wants the same, and what its contrast and its bottleneck add.
#[test]
fn competition_contrast_and_bottleneck() -> Result<()> {
    let shares: Vec<Tensor> = (0..3).map(|m| normal(&[4, 3], 50 + m)).collect::<Result<_>>()?;
    let pairs: Vec<Pairs> = [[1, 2, 3, 0], [2, 0, 1, 0], [3, 3, 0, 1]]
        .map(|partners: [u32; 4]| Pairs { rows: vec![0, 1, 2, 3], partners: partners.to_vec() })
        .into();
    let modal = |x: &[Tensor]| -> Modal<Tensor> { x.iter().cloned().collect() };
    let collaborative = |x: &[Tensor]| {
        let fused = mm_core::model::sum(x)?;
        let permuted = |m: Modality, pairs: &Pairs, live| mcr::permuted_sum(&modal(x), m, pairs, live);
        let (loss, _) = mcr::competition(Strategy::Collaborative, &fused, &pairs, permuted)?;
        loss.ok_or_else(|| candle_core::Error::Msg("no pairs".into()))
    };
    gradcheck(collaborative, &shares, EPS, TOL)?;
    for labels in [[0, 1, 1, 0, 2], [0, 0, 0, 0, 1], [2, 1, 2, 2, 2]] {
        let contrast = |x: &[Tensor]| {
            mcr::contrast(&x[0], &labels, 0.5)?.ok_or_else(|| candle_core::Error::Msg("no pairs".into()))
        };
        gradcheck(contrast, &[normal(&[5, 3], 60)?], EPS, TOL)?;
        // As part of a larger loss, whose gradient is not 1.
        gradcheck(|x| contrast(x)?.exp(), &[normal(&[5, 3], 61)?], EPS, 1e-6)?;
    }
    let (fused, hidden, out) = (normal(&[4, 2], 62)?, normal(&[3, 2], 63)?, normal(&[9, 3], 64)?);
    let mut batch = Batch::new(modal(&shares), vec![0, 1, 2, 1])?;
    let rows = vec![true, false, true, true];
    batch.present[Modality::new(1)] = Some(Presence::new(rows, shares[0].dtype(), &Device::Cpu)?);
    let leaves = [shares[0].clone(), shares[1].clone(), shares[2].clone(), hidden, out];
    let bottleneck = |x: &[Tensor]| mcr::bottleneck(&modal(&x[..3]), &fused, [&x[3], &x[4]], &batch);
    gradcheck(bottleneck, &leaves, EPS, TOL)?;
    Ok(())
}

/// Losses of masked features, where the mask goes over tokens.
#[test]
fn masked_channels() -> Result<()> {
    let kept = [true, false, true, true];
    let labels = [0, 2, 1];
    let loss = |x: &[Tensor]| {
        let masked = amco::mask(&x[0], &kept, 4.0 / 3.0)?.mean(1)?;
        cross_entropy(&masked, &labels, None)
    };
    gradcheck(loss, &[normal(&[3, 2, 4], 70)?], EPS, TOL)?;
    Ok(())
}

/// The gradient of the regulariser against differences of its value, for a fusion that is no sum, with a modality
/// missing in two rows.
#[test]
fn functional_entropies() -> Result<()> {
    let options = Options { dims: vec![3, 4, 2], width: 3, ..Options::default() };
    let toy = options.build(toy::opaque)?;
    let mut batch = options.batch(1, 4)?;
    let inputs = batch.inputs.try_map(|m, x| {
        let mut shape = x.dims().to_vec();
        shape[0] *= 2;
        perturbed(x, 2, &normal(&shape, 40 + m.index() as u64)?)
    })?;
    let labels = batch.labels.iter().flat_map(|&y| [y; 2]).collect();
    let mut copies = Batch::new(inputs, labels)?;
    let dtype = candle_core::DType::F64;
    let one = mm_core::Modality::new(1);
    batch.present[one] = Some(Presence::new(vec![true, false, true, true], dtype, &Device::Cpu)?);
    let rows = vec![true, true, false, false, true, true, true, true];
    copies.present[one] = Some(Presence::new(rows, dtype, &Device::Cpu)?);
    for (estimate, form) in [
        (Estimate::Entropy, Form::Inverse),
        (Estimate::Variance, Form::Minimum),
        (Estimate::Entropy, Form::Margin),
    ] {
        let value = || evaluate(&toy.model, &toy.store, &batch, &copies, estimate, form);
        let found = value()?;
        let largest = found.gradients.iter().flatten().try_fold(0f64, |largest, g| {
            Result::Ok(mm_core::model::to_host(g)?.iter().fold(largest, |a, b| a.max(b.abs())))
        })?;
        for id in toy.store.ids() {
            let var = toy.store.get(id).var();
            let start = var.as_tensor().copy()?;
            let values = mm_core::model::to_host(&start)?;
            let gradient = found.gradients[id.index()].as_ref().map(mm_core::model::to_host).transpose()?;
            for j in (0..values.len()).step_by(2) {
                let at = |delta: f64| -> Result<f64> {
                    let mut moved = values.clone();
                    moved[j] += delta;
                    var.set(&Tensor::from_vec(moved, start.shape(), &Device::Cpu)?)?;
                    Ok(value()?.value)
                };
                let numeric = (at(1e-5)? - at(-1e-5)?) / 2e-5;
                var.set(&start)?;
                let ours = gradient.as_ref().map_or(0.0, |g| g[j]);
                assert!((ours - numeric).abs() < 1e-6 * largest, "{form:?} {id:?} {j}: {ours} {numeric}");
            }
        }
    }
    Ok(())
}
