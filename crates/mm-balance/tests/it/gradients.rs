//! Gradients of every loss kernel against central differences, in f64.

use candle_core::{Device, Result, Tensor};
use mm_balance::lfm::{alignment, info_nce, jensen_shannon};
use mm_balance::{cggm, multimodal_loss, sum_ce, unimodal};
use mm_core::{Batch, Modal, Presence, StepRng};
use mm_kernels::check::gradcheck;
use mm_kernels::cross_entropy;

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
