//! An LSTM or a transformer over the features of frames or words that another network gave out.
//!
//! ```text
//! i, f, g, o = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh                    lstm, for each layer and direction
//! c_t        = σ(f) c_{t-1} + σ(i) tanh(g)
//! h_t        = σ(o) tanh(c_t)                                           both directions side by side go on
//!
//! z_0        = dropout(W x + b + position)                              transformer
//! y          = z_l + dropout(O attention(norm_1(z_l)))
//! z_{l+1}    = y + dropout(W_2 dropout(gelu(W_1 norm_2(y))))            and norm after the last layer
//!
//! h          = mean over the real places of what the last layer gives
//! ```
//!
//! Shapes: x (B, N, d), h (B, `dim`).
//!
//! | setting | default | range |
//! |---|---|---|
//! | `network` | "lstm" | "lstm", "transformer" |
//! | `dim` | 128 | at least 1; even for an LSTM of two directions, of which each has a half |
//! | `layers` | 1 | at least 1 |
//! | `dropout` | 0.1 | [0, 1); lstm: between layers; transformer: as above, and of attention weights |
//! | `padding` | "none" | "none"; "zeros": the places after the last that is not all zeros are padding |
//! | `bidirectional` | true | of the LSTM alone |
//! | `heads` | 4 | a divisor of `dim`; of the transformer alone |
//! | `feed_forward` | 4 `dim` | at least 1; inside of W_1 and W_2, of the transformer alone |
//!
//! Parameters, in `encoder.<modality>`, have PyTorch's names. LSTM: `weight_ih_l<l>`, `weight_hh_l<l>`, `bias_ih_l<l>`,
//! `bias_hh_l<l>`, and the same with `_reverse`; all start with U(±1/√hidden). Transformer: `input.{weight,bias}`,
//! `norm.…`, and in `layers.<l>` `self_attn.{in_proj_weight,in_proj_bias}`, `self_attn.out_proj.…`, `linear1.…`,
//! `linear2.…`, `norm1.…`, `norm2.…`; weights of queries, keys and values start with Glorot's uniform distribution, other
//! maps with U(±1/√fan_in), the biases of attention with 0, norms with scale 1 and shift 0. Positions are sinusoids.
//!
//! Masks. [`SequenceEncoder::encode`] takes a [`Mask`]; `padding = "zeros"` makes one where only tensors are handed on. An LSTM
//! passes padding over with its state unchanged, so its backward direction begins at a clip's own end, as with packed
//! sequences in PyTorch; attention has no keys there. A clip has the same features alone and in a padded batch, in
//! evaluation. A row without a real place has features of zero.
//!
//! Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; Vaswani et al., "Attention Is All You Need", arXiv
//! 1706.03762, with normalisation first; equations and names as in PyTorch 2.15.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mm_core::{Mode, ParamStore};
//! use mm_encoders::{Mask, SequenceConfig};
//! let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let config = SequenceConfig { dim: 8, ..SequenceConfig::default() };
//! let encoder = config.build(store.root().at("encoder").at("video"), 20)?;
//! let frames = Tensor::zeros((2, 5, 20), DType::F32, &Device::Cpu)?;
//! let clips = Mask::from_lengths(&[5, 3], 5)?;
//! assert_eq!(encoder.encode(&frames, Some(&clips), Mode::Eval)?.dims(), [2, 8]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::conformer::attention::{split, weigh};
use crate::conformer::{Padding, sinusoids};
use crate::mask::{Mask, Places};
use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, bail};
use mm_core::{ConfigError, Encoder, Init, Mode, Scope};
use mm_kernels::{attention, dropout, gelu, layer_norm, linear, sigmoid, tanh};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;

/// The kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// Long short-term memory.
    #[default]
    Lstm,
    /// Attention and feed-forward, each with its normalisation first.
    Transformer,
}

/// Settings of [`SequenceEncoder`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SequenceConfig {
    /// The kind of network.
    pub network: Network,
    /// Width of the features.
    pub dim: usize,
    /// Number of layers.
    pub layers: usize,
    /// Dropout.
    pub dropout: f64,
    /// Which places of inputs that come without a mask are padding.
    pub padding: Padding,
    /// Whether the LSTM reads in both directions.
    pub bidirectional: bool,
    /// Heads of the transformer.
    pub heads: usize,
    /// Width inside the feed-forward part of the transformer; `None` is four times `dim`.
    pub feed_forward: Option<usize>,
}

impl Default for SequenceConfig {
    fn default() -> Self {
        Self {
            network: Network::Lstm,
            dim: 128,
            layers: 1,
            dropout: 0.1,
            padding: Padding::None,
            bidirectional: true,
            heads: 4,
            feed_forward: None,
        }
    }
}

impl SequenceConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        let sizes = [("dim", self.dim), ("layers", self.layers), ("heads", self.heads)];
        for (field, value) in sizes.into_iter().chain([("feed_forward", self.inside())]) {
            if value == 0 {
                return Err(ConfigError::new(field, 0, "must be at least 1"));
            }
        }
        if self.network == Network::Lstm && self.bidirectional && !self.dim.is_multiple_of(2) {
            return Err(ConfigError::new("dim", self.dim, "must be even: each direction has a half of it"));
        }
        if self.network == Network::Transformer && !self.dim.is_multiple_of(self.heads) {
            return Err(ConfigError::new("heads", self.heads, format!("must divide dim = {}", self.dim)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "must be a number in [0, 1)"));
        }
        Ok(())
    }

    /// Makes the encoder of sequences of `input_dim` numbers per place, with its parameters in `scope`.
    pub fn build(&self, mut scope: Scope<'_>, input_dim: usize) -> Result<SequenceEncoder> {
        self.check().map_err(candle_core::Error::wrap)?;
        if input_dim == 0 {
            bail!("an encoder needs inputs of at least one number");
        }
        let layers = match self.network {
            Network::Lstm => {
                let directions: &[&str] = if self.bidirectional { &["", "_reverse"] } else { &[""] };
                let hidden = self.dim / directions.len();
                let layer = |l: usize| {
                    let input = if l == 0 { input_dim } else { self.dim };
                    let new = |side| Lstm::new(&mut scope, &format!("l{l}{side}"), input, hidden);
                    directions.iter().map(new).collect()
                };
                Layers::Lstm((0..self.layers).map(layer).collect::<Result<_>>()?)
            }
            Network::Transformer => {
                let start = Init::linear(input_dim);
                let input = Pair::new(&mut scope.child("input"), (self.dim, input_dim), start, start)?;
                let layer = |l| Block::new(scope.child("layers").at(l), self);
                let layers = (0..self.layers).map(layer).collect::<Result<_>>()?;
                Layers::Transformer { input, layers, norm: Pair::norm(scope.child("norm"), self.dim)? }
            }
        };
        Ok(SequenceEncoder { config: self.clone(), input_dim, layers })
    }

    /// The width inside a feed-forward part.
    fn inside(&self) -> usize {
        self.feed_forward.unwrap_or(4 * self.dim)
    }
}

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct SequenceEncoder {
    config: SequenceConfig,
    input_dim: usize,
    layers: Layers,
}

#[derive(Debug)]
enum Layers {
    /// The directions of each layer.
    Lstm(Vec<Vec<Lstm>>),
    Transformer {
        input: Pair,
        layers: Vec<Block>,
        norm: Pair,
    },
}

impl SequenceEncoder {
    /// The features (B, `dim`) of x (B, N, d). Without a mask every place is real, whatever `padding` says.
    pub fn encode(&self, x: &Tensor, mask: Option<&Mask>, mode: Mode) -> Result<Tensor> {
        let places = self.places(x, mask, mode)?;
        mask.map_or_else(|| places.mean(1), |mask| mask.mean(&places))
    }

    /// The last layer's output (B, N, `dim`), before the mean. In places of padding it means nothing.
    pub fn places(&self, x: &Tensor, mask: Option<&Mask>, mode: Mode) -> Result<Tensor> {
        match *x.dims() {
            [_, places, d] if places > 0 && d == self.input_dim => {}
            _ => bail!(
                "the encoder needs sequences (batch, places, {}) of at least one place, got inputs {:?}",
                self.input_dim,
                x.shape()
            ),
        }
        let places = Places::new(mask, x)?;
        let mut x = places.as_ref().map_or(Ok(x.clone()), |places| places.clear(x))?;
        let keys = places.as_ref().map(|places| &places.keys);
        let p = self.config.dropout;
        match &self.layers {
            Layers::Lstm(layers) => {
                for (l, directions) in layers.iter().enumerate() {
                    if l > 0 {
                        x = drop(&x, p, mode, &l.to_string())?;
                    }
                    let outputs: Result<Vec<_>> = directions
                        .iter()
                        .enumerate()
                        .map(|(d, lstm)| lstm.forward(&x, keys, d == 1))
                        .collect();
                    x = Tensor::cat(&outputs?, D::Minus1)?;
                }
                Ok(x)
            }
            Layers::Transformer { input, layers, norm } => {
                let numbers = (0..x.dim(1)?).map(|t| t as f64);
                let positions = sinusoids(numbers, self.config.dim, x.dtype(), x.device())?;
                let mut z = drop(&input.map(&x)?.broadcast_add(&positions)?, p, mode, "input")?;
                for (l, layer) in layers.iter().enumerate() {
                    z = layer.forward(&z, keys, &self.config, mode.stream(&l.to_string()))?;
                }
                norm.normalise(&z)
            }
        }
    }
}

impl Encoder for SequenceEncoder {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.encode(x, self.config.padding.mask(x)?.as_ref(), mode)
    }

    fn forward_padded(&self, x: &Tensor, lengths: &[usize], mode: Mode) -> Result<Tensor> {
        self.encode(x, Some(&Mask::from_lengths(lengths, x.dim(1)?)?), mode)
    }

    fn dim(&self) -> usize {
        self.config.dim
    }
}

fn drop(x: &Tensor, p: f64, mode: Mode, place: &str) -> Result<Tensor> {
    match mode.stream(place) {
        Mode::Train(rng) => dropout(x, p, rng),
        Mode::Eval => Ok(x.clone()),
    }
}

/// One direction of one layer.
#[derive(Debug)]
struct Lstm {
    input: Tensor,
    hidden: Tensor,
    biases: (Tensor, Tensor),
}

impl Lstm {
    fn new(scope: &mut Scope<'_>, place: &str, input: usize, hidden: usize) -> Result<Self> {
        let init = Init::linear(hidden);
        Ok(Self {
            input: scope.param(&format!("weight_ih_{place}"), (4 * hidden, input), init)?,
            hidden: scope.param(&format!("weight_hh_{place}"), (4 * hidden, hidden), init)?,
            biases: (
                scope.param(&format!("bias_ih_{place}"), 4 * hidden, init)?,
                scope.param(&format!("bias_hh_{place}"), 4 * hidden, init)?,
            ),
        })
    }

    /// (B, N, input) to (B, N, hidden).
    fn forward(&self, x: &Tensor, keys: Option<&Tensor>, backwards: bool) -> Result<Tensor> {
        let bias = (&self.biases.0 + &self.biases.1)?;
        // Time first: a step is then one block of memory.
        let inputs = linear(&x.transpose(0, 1)?.contiguous()?, &self.input, Some(&bias))?;
        let keep = keys.map(|keys| keys.t()?.unsqueeze(2)?.to_dtype(x.dtype())).transpose()?;
        recur(&inputs, &self.hidden, keep, backwards)?.transpose(0, 1)?.contiguous()
    }
}

/// The recurrence over `inputs` (N, B, 4 hidden) with `weight` (4 hidden, hidden), to (N, B, hidden).
///
/// `keep` (N, B, 1) is 1 where a row moves on and 0 where it keeps its state. On a CPU it is one operation of the
/// graph: of as many as there are steps, candle's walk through the graph would overflow the stack on long sequences.
fn recur(inputs: &Tensor, weight: &Tensor, keep: Option<Tensor>, backwards: bool) -> Result<Tensor> {
    if !inputs.device().is_cpu() {
        return Ok(Steps::run(inputs, weight, keep, backwards)?.outputs);
    }
    let steps = Steps::run(&inputs.detach(), &weight.detach(), keep, backwards)?;
    inputs.apply_op2(weight, steps)
}

/// What the steps of a recurrence leave for its backward pass, (N, B, ..) each.
struct Steps {
    keep: Option<Tensor>,
    backwards: bool,
    outputs: Tensor,
    cells: Tensor,
    /// σ(i), σ(f), tanh(g), σ(o) side by side.
    gates: Tensor,
}

impl Steps {
    fn order(count: usize, backwards: bool) -> Vec<usize> {
        if backwards { (0..count).rev().collect() } else { (0..count).collect() }
    }

    fn run(inputs: &Tensor, weight: &Tensor, keep: Option<Tensor>, backwards: bool) -> Result<Self> {
        let (count, batch, width) = inputs.dims3()?;
        let hidden = width / 4;
        let mut h = Tensor::zeros((batch, hidden), inputs.dtype(), inputs.device())?;
        let mut c = h.clone();
        let mut steps = Vec::with_capacity(count);
        for t in Self::order(count, backwards) {
            let z = (inputs.get(t)? + linear(&h, weight, None)?)?;
            let part = |k: usize| z.narrow(1, k * hidden, hidden)?.contiguous();
            let (i, f) = (sigmoid(&part(0)?)?, sigmoid(&part(1)?)?);
            let (g, o) = (tanh(&part(2)?)?, sigmoid(&part(3)?)?);
            let next = ((&f * &c)? + (&i * &g)?)?;
            let output = (&o * tanh(&next)?)?;
            (h, c) = match &keep {
                None => (output, next),
                Some(keep) => {
                    let (keep, stay) = (keep.get(t)?, keep.get(t)?.affine(-1.0, 1.0)?);
                    let moved =
                        |new: Tensor, old: Tensor| new.broadcast_mul(&keep)? + old.broadcast_mul(&stay)?;
                    (moved(output, h)?, moved(next, c)?)
                }
            };
            steps.push((h.clone(), c.clone(), Tensor::cat(&[i, f, g, o], 1)?));
        }
        if backwards {
            steps.reverse();
        }
        let stack = |of: fn(&(Tensor, Tensor, Tensor)) -> &Tensor| {
            Tensor::stack(&steps.iter().map(of).collect::<Vec<_>>(), 0)
        };
        let (outputs, cells, gates) = (stack(|s| &s.0)?, stack(|s| &s.1)?, stack(|s| &s.2)?);
        Ok(Self { keep, backwards, outputs, cells, gates })
    }

    /// The step before t in reading order.
    fn before(&self, states: &Tensor, t: usize) -> Result<Tensor> {
        let earlier = if self.backwards { t + 1 } else { t.wrapping_sub(1) };
        if earlier < states.dim(0)? { states.get(earlier) } else { states.get(0)?.zeros_like() }
    }

    /// The gradients of inputs and weight.
    fn pull(&self, weight: &Tensor, grad: &Tensor) -> Result<(Tensor, Tensor)> {
        let (count, batch, hidden) = grad.dims3()?;
        let mut dh = grad.get(0)?.zeros_like()?;
        let mut dc = dh.clone();
        let mut slopes = Vec::with_capacity(count);
        for t in Self::order(count, !self.backwards) {
            let gates = self.gates.get(t)?;
            let part = |k: usize| gates.narrow(1, k * hidden, hidden)?.contiguous();
            let (i, f, g, o) = (part(0)?, part(1)?, part(2)?, part(3)?);
            let total = (grad.get(t)? + &dh)?;
            // What goes through the step, and what passes by it where the state is kept.
            let (through, kept, stay) = match &self.keep {
                None => (total, dc, None),
                Some(keep) => {
                    let keep = keep.get(t)?;
                    let (through, kept) = (total.broadcast_mul(&keep)?, dc.broadcast_mul(&keep)?);
                    let stay = ((total - &through)?, (&dc - &kept)?);
                    (through, kept, Some(stay))
                }
            };
            let bent = tanh(&self.cells.get(t)?)?;
            let inner = (kept + ((&through * &o)? * bent.sqr()?.affine(-1.0, 1.0)?)?)?;
            let logistic = |d: Tensor, s: &Tensor| (d * s)? * s.affine(-1.0, 1.0)?;
            let dz = [
                logistic((&inner * &g)?, &i)?,
                logistic((&inner * self.before(&self.cells, t)?)?, &f)?,
                ((&inner * &i)? * g.sqr()?.affine(-1.0, 1.0)?)?,
                logistic((&through * bent)?, &o)?,
            ];
            let dz = Tensor::cat(&dz, 1)?;
            (dh, dc) = (dz.matmul(weight)?, (inner * f)?);
            if let Some((h, c)) = stay {
                (dh, dc) = ((dh + h)?, (dc + c)?);
            }
            slopes.push(dz);
        }
        if !self.backwards {
            slopes.reverse();
        }
        let states: Result<Vec<_>> = (0..count).map(|t| self.before(&self.outputs, t)).collect();
        let (inputs, states) = (Tensor::stack(&slopes, 0)?, Tensor::cat(&states?, 0)?);
        let weight = inputs.reshape((count * batch, 4 * hidden))?.t()?.matmul(&states)?;
        Ok((inputs, weight))
    }
}

impl CustomOp2 for Steps {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let flat = self.outputs.flatten_all()?;
        let storage = match flat.dtype() {
            DType::F32 => CpuStorage::F32(flat.to_vec1()?),
            DType::F64 => CpuStorage::F64(flat.to_vec1()?),
            other => bail!("lstm: inputs must be f32 or f64 on a CPU, got {other:?}"),
        };
        Ok((storage, self.outputs.shape().clone()))
    }

    fn bwd(
        &self,
        _inputs: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (inputs, weight) = self.pull(&weight.detach(), &grad.detach().contiguous()?)?;
        Ok((Some(inputs), Some(weight)))
    }
}

/// Weight and bias, of a linear map or of a norm.
#[derive(Debug)]
struct Pair {
    weight: Tensor,
    bias: Tensor,
}

impl Pair {
    fn new(scope: &mut Scope<'_>, shape: (usize, usize), weight: Init, bias: Init) -> Result<Self> {
        let weight = scope.param("weight", shape, weight)?;
        Ok(Self { weight, bias: scope.param("bias", shape.0, bias)? })
    }

    fn norm(mut scope: Scope<'_>, width: usize) -> Result<Self> {
        let weight = scope.param("weight", width, Init::Const(1.0))?;
        Ok(Self { weight, bias: scope.param("bias", width, Init::Const(0.0))? })
    }

    fn map(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }

    fn normalise(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, Some(&self.weight), Some(&self.bias), EPS)
    }
}

/// One layer of the transformer.
#[derive(Debug)]
struct Block {
    norms: [Pair; 2],
    qkv: Pair,
    out: Pair,
    expand: Pair,
    project: Pair,
}

impl Block {
    fn new(mut scope: Scope<'_>, config: &SequenceConfig) -> Result<Self> {
        let (dim, inside, zero) = (config.dim, config.inside(), Init::Const(0.0));
        let norms = [Pair::norm(scope.child("norm1"), dim)?, Pair::norm(scope.child("norm2"), dim)?];
        let start = Init::linear(dim);
        let expand = Pair::new(&mut scope.child("linear1"), (inside, dim), start, start)?;
        let start = Init::linear(inside);
        let project = Pair::new(&mut scope.child("linear2"), (dim, inside), start, start)?;
        let mut scope = scope.at("self_attn");
        let out = Pair::new(&mut scope.child("out_proj"), (dim, dim), Init::linear(dim), zero)?;
        let weight = scope.param("in_proj_weight", (3 * dim, dim), Init::xavier_uniform(dim, 3 * dim))?;
        let qkv = Pair { weight, bias: scope.param("in_proj_bias", 3 * dim, zero)? };
        Ok(Self { norms, qkv, out, expand, project })
    }

    fn forward(
        &self,
        x: &Tensor,
        keys: Option<&Tensor>,
        config: &SequenceConfig,
        mode: Mode,
    ) -> Result<Tensor> {
        let (p, heads, dim) = (config.dropout, config.heads, config.dim);
        let qkv = self.qkv.map(&self.norms[0].normalise(x)?)?;
        let part = |k: usize| qkv.narrow(2, k * dim, dim)?.contiguous();
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        // The kernel drops no weights.
        let attended = if mode.is_train() && p > 0.0 {
            let scaled = (q * (heads as f64 / dim as f64).sqrt())?;
            let scores = split(&scaled, heads)?.matmul(&split(&k, heads)?.t()?)?;
            weigh(&scores, &v, keys, p, mode)?
        } else {
            attention(&q, &k, &v, keys, heads)?
        };
        let y = (x + drop(&self.out.map(&attended)?, p, mode, "attention")?)?;
        let hidden = gelu(&self.expand.map(&self.norms[1].normalise(&y)?)?)?;
        let hidden = drop(&hidden, p, mode, "inside")?;
        &y + drop(&self.project.map(&hidden)?, p, mode, "outside")?
    }
}
