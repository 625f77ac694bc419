//! What the losses over proxies share: one set of proxies per modality, rows that lack the modality left out, and the
//! learning rate of the proxies.

use crate::StepCx;
use candle_core::{Result, Tensor};
use mm_core::model::{pooled, sum};
use mm_core::{Forward, Gradients, Init, Modal, Scope};

/// The proxies of every modality.
#[derive(Debug)]
pub(crate) struct Proxies {
    parameters: Modal<Tensor>,
    prefix: String,
    weight: f64,
    rate: f64,
    losses: Vec<f64>,
}

impl Proxies {
    /// Makes `<scope>.m<index>.proxies` of the shapes that `shape` gives for a width.
    pub(crate) fn new(
        mut scope: Scope<'_>,
        widths: &Modal<usize>,
        shape: impl Fn(usize) -> (usize, usize),
        init: impl Fn(usize) -> Init,
        (weight, rate): (f64, f64),
    ) -> Result<Self> {
        let prefix = scope.prefix().to_owned();
        let parameters = widths.try_map(|m, &width| {
            scope.child(format!("m{}", m.index())).param("proxies", shape(width), init(width))
        })?;
        Ok(Self { parameters, prefix, weight, rate, losses: Vec::new() })
    }

    /// `λ Σ_m loss(h_m, proxies_m, weights of the rows)` over pooled features.
    pub(crate) fn loss(
        &mut self,
        cx: &StepCx<'_>,
        fwd: &Forward,
        loss: impl Fn(&Tensor, &Tensor, Option<&[f64]>) -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        let losses = fwd
            .features
            .try_map(|m, h| loss(&pooled(h)?, &self.parameters[m], cx.batch.weights(m).as_deref()))?;
        self.losses.clear();
        for loss in losses.values() {
            self.losses.push(mm_core::model::to_host(loss)?[0]);
        }
        (sum(losses.values())? * self.weight).map(Some)
    }

    /// Gives the proxies their learning rate.
    pub(crate) fn gradients(&self, cx: &StepCx<'_>, g: &mut Gradients) {
        if self.rate != 1.0 {
            g.scale_lr(cx.params, &self.prefix, self.rate);
        }
    }

    pub(crate) fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, loss) in self.losses.iter().enumerate() {
            sink("proxy_loss", Some(m), *loss);
        }
    }
}

/// (B, C), 1 where the label of the row is the class.
pub(crate) fn one_hot(labels: &[u32], classes: usize, like: &Tensor) -> Result<Tensor> {
    let mut values = vec![0f32; labels.len() * classes];
    for (row, &label) in labels.iter().enumerate() {
        match values.get_mut(row * classes + label as usize) {
            Some(value) if (label as usize) < classes => *value = 1.0,
            _ => candle_core::bail!("row {row} has label {label}, but there are {classes} classes"),
        }
    }
    Tensor::from_vec(values, (labels.len(), classes), like.device())?.to_dtype(like.dtype())
}

/// `log Σ_i exp(x_i)` along `dim`, which is dropped.
pub(crate) fn log_sum_exp(x: &Tensor, dim: usize) -> Result<Tensor> {
    // The maximum is detached, because the result does not depend on it.
    let largest = x.detach().max_keepdim(dim)?;
    x.broadcast_sub(&largest)?.exp()?.sum(dim)?.log()? + largest.squeeze(dim)?
}
