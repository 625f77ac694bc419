//! The layers of the transformer, and the parts that they are made of.

use super::config::Wav2Vec2Config;
use crate::Precision;
use candle_core::{Result, Tensor};
use mm_core::{Init, Mode, Scope, StepRng};
use mm_kernels::{
    FeedForward, Gate, attention, dropout, feed_forward, layer_norm, linear_in, residual, softmax_last,
};

pub(super) fn drop(x: &Tensor, p: f64, mode: Mode, place: &str) -> Result<Tensor> {
    match mode.stream(place) {
        Mode::Train(rng) => dropout(x, p, rng),
        Mode::Eval => Ok(x.clone()),
    }
}

/// The probability and the key of a dropout in training.
fn key(p: f64, mode: Mode, place: &str) -> Option<(f64, StepRng)> {
    match mode.stream(place) {
        Mode::Train(rng) => Some((p, rng)),
        Mode::Eval => None,
    }
}

/// A linear map.
#[derive(Debug)]
pub(super) struct Affine {
    weight: Tensor,
    bias: Tensor,
    precision: Precision,
}

impl Affine {
    pub(super) fn with(
        mut scope: Scope<'_>,
        (input, output): (usize, usize),
        (weight, bias): (Init, Init),
        precision: Precision,
    ) -> Result<Self> {
        let weight = scope.param("weight", (output, input), weight)?;
        Ok(Self { weight, bias: scope.param("bias", output, bias)?, precision })
    }

    fn new(scope: Scope<'_>, input: usize, output: usize, precision: Precision) -> Result<Self> {
        let init = (Init::Normal { mean: 0.0, std: 0.02 }, Init::Const(0.0));
        Self::with(scope, (input, output), init, precision)
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear_in(x, &self.weight, Some(&self.bias), self.precision.into())
    }
}

/// A layer normalisation.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl Norm {
    pub(super) fn new(mut scope: Scope<'_>, width: usize, eps: f64) -> Result<Self> {
        let weight = scope.param("weight", width, Init::Const(1.0))?;
        Ok(Self { weight, bias: scope.param("bias", width, Init::Const(0.0))?, eps })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)
    }
}

/// The probabilities of what a layer leaves out in training.
#[derive(Debug, Clone, Copy)]
struct Rates {
    /// Of what a part adds.
    hidden: f64,
    /// Inside the feed-forward part.
    activation: f64,
    /// Of attention weights.
    attention: f64,
    /// Of the layer.
    layer: f64,
}

/// One layer; see the equations of the encoder's module.
#[derive(Debug)]
pub(super) struct Layer {
    query: Affine,
    key: Affine,
    value: Affine,
    out: Affine,
    norm: Norm,
    expand: Affine,
    project: Affine,
    last_norm: Norm,
    heads: usize,
    /// Whether norms come before the parts instead of after them.
    stable: bool,
    rates: Rates,
}

impl Layer {
    pub(super) fn new(config: &Wav2Vec2Config, mut scope: Scope<'_>) -> Result<Self> {
        let (width, inside, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let precision = config.precision;
        let mut attention = scope.child("attention");
        let mut square = |name: &str| Affine::new(attention.child(name), width, width, precision);
        let (query, key) = (square("q_proj")?, square("k_proj")?);
        let (value, out) = (square("v_proj")?, square("out_proj")?);
        let norm = Norm::new(scope.child("layer_norm"), width, eps)?;
        let mut ff = scope.child("feed_forward");
        let expand = Affine::new(ff.child("intermediate_dense"), width, inside, precision)?;
        let project = Affine::new(ff.child("output_dense"), inside, width, precision)?;
        let last_norm = Norm::new(scope.child("final_layer_norm"), width, eps)?;
        let rates = Rates {
            hidden: config.hidden_dropout,
            activation: config.activation_dropout,
            attention: config.attention_dropout,
            layer: config.layerdrop,
        };
        let (heads, stable) = (config.num_attention_heads, config.do_stable_layer_norm);
        Ok(Self { query, key, value, out, norm, expand, project, last_norm, heads, stable, rates })
    }

    /// From x (B, T, D) to the same shape; `keys` is added to the scores, (B, 1, 1, T).
    pub(super) fn forward(&self, x: &Tensor, keys: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        if let Mode::Train(rng) = mode
            && rng.stream("layer").draws().uniform() < self.rates.layer
        {
            return self.left_out(x);
        }
        let attend = |x: &Tensor, read: &Tensor| {
            residual(x, &self.attend(read, keys, mode)?, 1.0, key(self.rates.hidden, mode, "attention"))
        };
        if self.stable {
            let y = attend(x, &self.norm.forward(x)?)?;
            self.feed_forward(&y, Some(&self.last_norm), mode)
        } else {
            let y = self.norm.forward(&attend(x, x)?)?;
            self.last_norm.forward(&self.feed_forward(&y, None, mode)?)
        }
    }

    fn attend(&self, x: &Tensor, keys: Option<&Tensor>, mode: Mode) -> Result<Tensor> {
        let (q, k, v) = (self.query.forward(x)?, self.key.forward(x)?, self.value.forward(x)?);
        let y = match mode.stream("weights") {
            Mode::Train(rng) if self.rates.attention > 0.0 => {
                attention_dropped([&q, &k, &v], keys, self.heads, self.rates.attention, rng)?
            }
            _ => attention(&q, &k, &v, keys, self.heads)?,
        };
        self.out.forward(&y)
    }

    /// x and what the feed-forward part adds to it.
    fn feed_forward(&self, x: &Tensor, norm: Option<&Norm>, mode: Mode) -> Result<Tensor> {
        let part = FeedForward {
            norm: norm.map(|norm| (&norm.weight, &norm.bias, norm.eps)),
            expand: (&self.expand.weight, &self.expand.bias),
            gate: Gate::Gelu,
            project: (&self.project.weight, &self.project.bias),
            dropouts: [key(self.rates.activation, mode, "inside"), key(self.rates.hidden, mode, "outside")],
            factor: 1.0,
            precision: self.expand.precision.into(),
        };
        feed_forward(x, &part)
    }

    /// x itself, in a graph where every parameter of this layer has the gradient zero.
    fn left_out(&self, x: &Tensor) -> Result<Tensor> {
        let zero = Tensor::zeros(1, x.dtype(), x.device())?;
        let affine = [&self.query, &self.key, &self.value, &self.out, &self.expand, &self.project];
        let norms = [&self.norm, &self.last_norm].map(|norm| [&norm.weight, &norm.bias]);
        let mut sum = zero.clone();
        for parameter in affine.map(|map| [&map.weight, &map.bias]).iter().chain(&norms).flatten() {
            sum = (sum + (parameter.flatten_all()?.narrow(0, 0, 1)? * &zero)?)?;
        }
        x.broadcast_add(&sum)
    }
}

/// [`attention`] whose weights are dropped with probability `p`.
fn attention_dropped(
    projected: [&Tensor; 3],
    keys: Option<&Tensor>,
    heads: usize,
    p: f64,
    rng: StepRng,
) -> Result<Tensor> {
    let (batch, places, width) = projected[0].dims3()?;
    let split = |x: &Tensor| x.reshape((batch, places, heads, width / heads))?.transpose(1, 2)?.contiguous();
    let [q, k, v] = projected.map(split);
    let scale = (heads as f64 / width as f64).sqrt();
    let scores = (q? * scale)?.matmul(&k?.t()?)?;
    let scores = keys.map_or(Ok(scores.clone()), |keys| scores.broadcast_add(keys))?;
    let weights = dropout(&softmax_last(&scores)?, p, rng)?;
    weights.matmul(&v?)?.transpose(1, 2)?.reshape((batch, places, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use mm_testkit::assert_close;

    #[test]
    fn attention_that_drops_almost_nothing_is_attention() {
        let draw = |name: &str, shape: &[usize]| {
            let mut draws = StepRng::new(1).stream(name).draws();
            let values: Vec<f64> = (0..shape.iter().product()).map(|_| draws.normal()).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let [q, k, v] = ["q", "k", "v"].map(|name| draw(name, &[2, 5, 6]));
        let keys = Tensor::from_vec(vec![0.0, 0.0, 0.0, -1e30, -1e30], (1, 1, 1, 5), &Device::Cpu).unwrap();
        for keys in [None, Some(&keys)] {
            let dropped = attention_dropped([&q, &k, &v], keys, 3, 1e-12, StepRng::new(2)).unwrap();
            assert_close(&dropped, &attention(&q, &k, &v, keys, 3).unwrap(), 1e-10);
        }
    }
}
