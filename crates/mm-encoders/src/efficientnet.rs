//! An EfficientNet over images: the descriptor of a face, 1408 numbers for B2.
//!
//! ```text
//! a   = silu(norm(conv_3x3/2(x)))
//! e   = silu(norm(conv_1x1(a)))                 six times as wide; in the first stage e = a
//! d   = silu(norm(depthwise(e)))                3x3 or 5x5
//! g   = d · sigmoid(U silu(R mean(d) + r) + u)  squeeze and excitation: one factor for each channel
//! a   = norm(conv_1x1(g)) (+ a)                 a is added where width and size stay, in training by chance
//! h   = mean over places and frames of silu(norm(conv_1x1(a)))
//! ```
//!
//! the middle four lines for every block. Seven stages with kernels of 3, 3, 5, 3, 5, 5, 3 and (channels, blocks) =
//! (16, 1), (24, 2), (40, 2), (80, 3), (112, 3), (192, 4), (320, 1); stages 1, 2, 3 and 5, counted from 0, halve the
//! size. `width` scales channels, then rounded to a multiple of 8, and `depth` the numbers of blocks, rounded up: B0 is
//! (1, 1), B1 (1, 1.1), B2 (1.1, 1.2), B3 (1.2, 1.4), B4 (1.4, 1.8).
//!
//! Shapes: x (B, 3, H, W), or (B, T, 3, H, W) with T frames, which are encoded one by one and averaged; h (B, 1408), or
//! (B, 1280) for B0. [`EfficientNet::frames`] gives the features of each frame, (B, T, 1408). Height and width are free.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `variant` | "tf" | "tf", "torchvision": see below |
//! | `width` | 1.1 | [0.05, 5]; "torchvision": at most 1.5 |
//! | `depth` | 1.2 | [0.05, 6] |
//! | `frozen` | true | true: nothing is trained, running statistics always, no gradient |
//! | `drop_path` | 0.2 | [0, 1): how often the last block is left out in training; earlier ones in proportion |
//! | `precision` | "f32" | "f32"; "bf16", "bf16x3": the numbers in which the products of convolutions of f32 tensors are taken on a CPU |
//!
//! Variants. "tf" is TensorFlow's network as timm's `tf_efficientnet_*` have it: a convolution of stride s makes ⌈H / s⌉
//! places and pads what it needs for that, the odd zero at the end, so the border depends on the size of the input; norms
//! add 1e-3 to the variance; depthwise kernels start with N(0, 2 / K²). "torchvision" pads ⌊K / 2⌋ on both sides, adds
//! 1e-5, and depthwise kernels start with N(0, 2 / (C K²)). timm's `efficientnet_*` without `tf_` compute as
//! "torchvision" does. Other kernels start with N(0, 2 / (O K²)), norms with scale 1 and shift 0, biases with 0.
//!
//! Parameters, in `encoder.<modality>`, have timm's names: `conv_stem.weight`, `bn1.{weight,bias}`, and for block b of
//! stage s, in `blocks.<s>.<b>`: `conv_pw.weight`, `bn1.…`, `conv_dw.weight`, `bn2.…`,
//! `se.{conv_reduce,conv_expand}.{weight,bias}`, `conv_pwl.weight`, `bn3.…`; in stage 0 `conv_dw.weight`, `bn1.…`, `se.…`,
//! `conv_pw.weight`, `bn2.…`; at the end `conv_head.weight`, `bn2.…`. Buffers: `….{running_mean,running_var}`, and all
//! of them if `frozen`. [`from_timm`] and [`from_torchvision`] translate the names of published checkpoints.
//!
//! Batch normalisation: momentum 0.1; frames count as rows of the batch. A pass in training mode moves the running
//! statistics if not `frozen`, and so does each further pass of a method that makes several.
//!
//! Differences: torchvision's B5 to B7 have an eps of 1e-3 and a momentum of 0.01, and are refused. A frame is left out
//! (`drop_path`) on its own, not with the others of its clip.
//!
//! Sources: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", arXiv 1905.11946;
//! torchvision 0.29 and timm 1.0 for layouts and names.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mm_core::{Encoder, Mode, ParamStore};
//! use mm_encoders::EfficientNetConfig;
//! let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let config = EfficientNetConfig { width: 0.1, depth: 0.5, ..EfficientNetConfig::default() };
//! let encoder = config.build(store.root().at("encoder").at("video"))?;
//! let faces = Tensor::zeros((2, 3, 33, 40), DType::F32, &Device::Cpu)?;
//! assert_eq!(encoder.forward(&faces, Mode::Eval)?.dims(), [2, 128]);
//! assert_eq!(EfficientNetConfig::default().dim(), 1408);
//! # Ok::<(), candle_core::Error>(())
//! ```

use crate::resnet::{Precision, is_norm, is_number};
use candle_core::{Result, Shape, Tensor, Var, bail};
use mm_core::{ConfigError, Encoder, Init, Mode, Scope, StepRng};
use mm_kernels::batch_norm::{batch_norm_train, update_running};
use mm_kernels::{
    Conv2dConfig, Gate, adaptive_avg_pool2d_nhwc, conv2d_nhwc, conv2d_nhwc_then, dropout, residual,
    scale_channels, scale_rows, sigmoid, silu,
};
use serde::{Deserialize, Serialize};

const MOMENTUM: f64 = 0.1;
/// Images that a frozen encoder computes at once: all frames of all clips would not fit in memory.
const CHUNK: usize = 32;
const AFFINE: [&str; 2] = ["weight", "bias"];
/// Kernel, stride of the first block, widening inside, channels and blocks of each stage.
const STAGES: [(usize, usize, usize, usize, usize); 7] = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
];

/// Whose network it is; see the text of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EfficientNetVariant {
    /// TensorFlow's, as timm's `tf_efficientnet_*`.
    #[default]
    Tf,
    /// torchvision's.
    Torchvision,
}

impl EfficientNetVariant {
    fn eps(self) -> f64 {
        if self == Self::Tf { 1e-3 } else { 1e-5 }
    }

    /// Zeros before and after an axis of `size`.
    fn padding(self, size: usize, kernel: usize, stride: usize) -> (usize, usize) {
        match self {
            Self::Tf => {
                let needed = (size.div_ceil(stride).saturating_sub(1) * stride + kernel).saturating_sub(size);
                (needed / 2, needed.div_ceil(2))
            }
            Self::Torchvision => (kernel / 2, kernel / 2),
        }
    }
}

/// Settings of [`EfficientNet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EfficientNetConfig {
    /// Whose network it is.
    pub variant: EfficientNetVariant,
    /// Factor of the channels.
    pub width: f64,
    /// Factor of the numbers of blocks.
    pub depth: f64,
    /// Whether nothing is trained.
    pub frozen: bool,
    /// How often the last block is left out in training.
    pub drop_path: f64,
    /// The numbers in which products are taken.
    pub precision: Precision,
}

impl Default for EfficientNetConfig {
    fn default() -> Self {
        Self {
            variant: EfficientNetVariant::Tf,
            width: 1.1,
            depth: 1.2,
            frozen: true,
            drop_path: 0.2,
            precision: Precision::F32,
        }
    }
}

impl EfficientNetConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        ConfigError::check_range("width", self.width, 0.05, 5.0)?;
        ConfigError::check_range("depth", self.depth, 0.05, 6.0)?;
        if self.variant == EfficientNetVariant::Torchvision && self.width > 1.5 {
            let rule =
                "must be at most 1.5 with variant \"torchvision\", whose B5 and up differ; take \"tf\"";
            return Err(ConfigError::new("width", self.width, rule));
        }
        if !(0.0..1.0).contains(&self.drop_path) {
            return Err(ConfigError::new("drop_path", self.drop_path, "must be a number in [0, 1)"));
        }
        Ok(())
    }

    /// The width of the features.
    pub fn dim(&self) -> usize {
        match self.variant {
            EfficientNetVariant::Tf => self.channels(1280),
            EfficientNetVariant::Torchvision => 4 * self.channels(320),
        }
    }

    /// Makes the encoder with its parameters in `scope`.
    pub fn build(&self, mut scope: Scope<'_>) -> Result<EfficientNet> {
        self.check().map_err(candle_core::Error::wrap)?;
        let mut input = self.channels(32);
        let stem = Layer::new(&mut scope, ("conv_stem", "bn1"), self, [input, 3, 3], 2)?;
        let repeats = STAGES.map(|stage| (stage.4 as f64 * self.depth).ceil() as usize);
        let total: usize = repeats.iter().sum();
        let mut blocks = Vec::with_capacity(total);
        for (s, (&(kernel, stride, widening, base, _), repeats)) in STAGES.iter().zip(repeats).enumerate() {
            let output = self.channels(base);
            for b in 0..repeats {
                let scope = scope.child("blocks").at(s).at(b);
                let stride = if b == 0 { stride } else { 1 };
                let drop = self.drop_path * blocks.len() as f64 / total as f64;
                let inside = input * widening;
                blocks.push(Block::new(scope, self, [input, inside, output], (kernel, stride), drop)?);
                input = output;
            }
        }
        let head = Layer::new(&mut scope, ("conv_head", "bn2"), self, [self.dim(), input, 1], 1)?;
        Ok(EfficientNet { config: self.clone(), stem, blocks, head })
    }

    /// A tensor that is trained, or if `frozen` one that is only kept with the model.
    fn make(&self, at: &mut Scope<'_>, name: &str, dims: impl Into<Shape>, init: Init) -> Result<Tensor> {
        if self.frozen {
            // Detached, because a variable would start a graph that nobody goes through.
            return Ok(at.buffer(name, dims, init)?.as_detached_tensor());
        }
        at.param(name, dims, init)
    }

    /// `base` channels scaled and rounded to a multiple of 8, at least 8 and at least nine tenths of the exact number.
    fn channels(&self, base: usize) -> usize {
        let exact = base as f64 * self.width;
        let near = ((exact + 4.0) as usize / 8 * 8).max(8);
        if (near as f64) < 0.9 * exact { near + 8 } else { near }
    }
}

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct EfficientNet {
    config: EfficientNetConfig,
    stem: Layer,
    blocks: Vec<Block>,
    head: Layer,
}

impl EfficientNet {
    /// The features of every frame, (B, T, `dim`); images without frames count as one each. Their mean is what
    /// [`Encoder::forward`] gives.
    pub fn frames(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (rows, frames, images) = match *x.dims() {
            [rows, 3, h, w] if h > 0 && w > 0 => (rows, 1, x.clone()),
            [rows, frames, 3, h, w] if frames > 0 && h > 0 && w > 0 => (rows, frames, x.flatten(0, 1)?),
            _ => bail!(
                "the encoder needs images of 3 channels, (batch, 3, height, width) or with frames (batch, frames, 3, \
                 height, width), got inputs {:?}",
                x.shape()
            ),
        };
        let h = if self.config.frozen {
            let (images, count) = (images.detach(), rows * frames);
            let chunks: Result<Vec<Tensor>> = (0..count.max(1))
                .step_by(CHUNK)
                .map(|start| self.images(&images.narrow(0, start, CHUNK.min(count - start))?, Mode::Eval))
                .collect();
            Tensor::cat(&chunks?, 0)?
        } else {
            self.images(&images, mode)?
        };
        h.reshape((rows, frames, self.dim()))
    }

    /// From (N, 3, H, W) to (N, `dim`).
    fn images(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let pass = Pass { train: mode.is_train(), config: &self.config };
        // Channels last from here on: the layout in which the kernels work.
        let images = images.permute((0, 2, 3, 1))?.contiguous()?;
        let mut a = self.stem.forward(&images, &pass, Gate::Silu)?;
        for (b, block) in self.blocks.iter().enumerate() {
            a = block.forward(&a, &pass, mode.stream(&b.to_string()))?;
        }
        let a = self.head.forward(&a, &pass, Gate::Silu)?;
        adaptive_avg_pool2d_nhwc(&a, (1, 1))?.flatten_from(1)
    }
}

impl Encoder for EfficientNet {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.frames(x, mode)?.mean(1)
    }

    fn dim(&self) -> usize {
        self.config.dim()
    }
}

/// What all layers of one pass have in common.
struct Pass<'a> {
    train: bool,
    config: &'a EfficientNetConfig,
}

/// A convolution without bias and its normalisation.
#[derive(Debug)]
struct Layer {
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Var,
    var: Var,
    side: usize,
    stride: usize,
    groups: usize,
}

impl Layer {
    /// With a square kernel: `[outputs, inputs of a group, side]`; one input of a group is a depthwise convolution.
    fn new(
        scope: &mut Scope<'_>,
        (conv, norm): (&str, &str),
        config: &EfficientNetConfig,
        [outputs, inputs, side]: [usize; 3],
        stride: usize,
    ) -> Result<Self> {
        let groups = if inputs == 1 { outputs } else { 1 };
        let fan_out = match config.variant {
            EfficientNetVariant::Tf => outputs / groups,
            EfficientNetVariant::Torchvision => outputs,
        };
        let (dims, kernel) = ((outputs, inputs, side, side), he(fan_out * side * side));
        let weight = config.make(&mut scope.child(conv), "weight", dims, kernel)?;
        let mut scope = scope.child(norm);
        let scale = config.make(&mut scope, "weight", outputs, Init::Const(1.0))?;
        let shift = config.make(&mut scope, "bias", outputs, Init::Const(0.0))?;
        let mean = scope.buffer("running_mean", outputs, Init::Const(0.0))?;
        let var = scope.buffer("running_var", outputs, Init::Const(1.0))?;
        Ok(Self { weight, scale, shift, mean, var, side, stride, groups })
    }

    fn forward(&self, x: &Tensor, pass: &Pass<'_>, gate: Gate) -> Result<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let padding = |size| pass.config.variant.padding(size, self.side, self.stride);
        let ((top, bottom), (left, right)) = (padding(height), padding(width));
        let config = Conv2dConfig {
            stride: (self.stride, self.stride),
            padding: (bottom, right),
            groups: self.groups,
            precision: pass.config.precision.into(),
            ..Conv2dConfig::default()
        };
        // A border that is wider at the end is one of equal sides under a kernel with zeros in front: smaller to make
        // than a padded image.
        let weight = self.weight.pad_with_zeros(2, bottom - top, 0)?.pad_with_zeros(3, right - left, 0)?;
        let eps = pass.config.variant.eps();
        if pass.train {
            let y = conv2d_nhwc(x, &weight, None, &config)?;
            let rows = y.reshape(((), y.dim(3)?))?;
            let out = batch_norm_train(&rows, Some(&self.scale), Some(&self.shift), eps)?;
            update_running(&self.mean, &out.mean, MOMENTUM)?;
            update_running(&self.var, &out.var_unbiased, MOMENTUM)?;
            return gate.apply(&out.y.reshape(y.shape())?);
        }
        // With fixed statistics the normalisation is one more factor of the kernel, and a bias.
        let factor = (&self.scale / (self.var.as_detached_tensor() + eps)?.sqrt()?)?;
        let bias = (&self.shift - (self.mean.as_detached_tensor() * &factor)?)?;
        let weight = scale_rows(&weight, &factor)?;
        conv2d_nhwc_then(x, &weight, Some(&bias), &config, gate)
    }
}

/// He's normal distribution.
fn he(fan: usize) -> Init {
    Init::Normal { mean: 0.0, std: (2.0 / fan as f64).sqrt() }
}

/// One factor for each channel, from the mean of all channels.
#[derive(Debug)]
struct Squeeze {
    reduce: [Tensor; 2],
    expand: [Tensor; 2],
}

impl Squeeze {
    fn new(mut scope: Scope<'_>, config: &EfficientNetConfig, outer: usize, inside: usize) -> Result<Self> {
        let mut pointwise = |name: &str, outputs: usize, inputs: usize| {
            let mut scope = scope.child(name);
            let weight = config.make(&mut scope, "weight", (outputs, inputs, 1, 1), he(outputs))?;
            Result::Ok([weight, config.make(&mut scope, "bias", outputs, Init::Const(0.0))?])
        };
        let reduce = pointwise("conv_reduce", inside, outer)?;
        Ok(Self { reduce, expand: pointwise("conv_expand", outer, inside)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let pointwise = |x: &Tensor, [weight, bias]: &[Tensor; 2]| {
            conv2d_nhwc(x, weight, Some(bias), &Conv2dConfig::default())
        };
        let inside = silu(&pointwise(&adaptive_avg_pool2d_nhwc(x, (1, 1))?, &self.reduce)?)?;
        scale_channels(x, &sigmoid(&pointwise(&inside, &self.expand)?)?)
    }
}

#[derive(Debug)]
struct Block {
    expand: Option<Layer>,
    depthwise: Layer,
    squeeze: Squeeze,
    project: Layer,
    residual: bool,
    drop: f64,
}

impl Block {
    fn new(
        mut scope: Scope<'_>,
        config: &EfficientNetConfig,
        [input, inside, output]: [usize; 3],
        (kernel, stride): (usize, usize),
        drop: f64,
    ) -> Result<Self> {
        let (mut expand, mut names) = (None, [("conv_dw", "bn1"), ("conv_pw", "bn2")]);
        if inside != input {
            expand = Some(Layer::new(&mut scope, ("conv_pw", "bn1"), config, [inside, input, 1], 1)?);
            names = [("conv_dw", "bn2"), ("conv_pwl", "bn3")];
        }
        let depthwise = Layer::new(&mut scope, names[0], config, [inside, 1, kernel], stride)?;
        let squeeze = Squeeze::new(scope.child("se"), config, inside, (input / 4).max(1))?;
        let project = Layer::new(&mut scope, names[1], config, [output, inside, 1], 1)?;
        Ok(Self { expand, depthwise, squeeze, project, residual: stride == 1 && input == output, drop })
    }

    fn forward(&self, x: &Tensor, pass: &Pass<'_>, mode: Mode) -> Result<Tensor> {
        let mut y = x.clone();
        if let Some(expand) = &self.expand {
            y = expand.forward(&y, pass, Gate::Silu)?;
        }
        y = self.depthwise.forward(&y, pass, Gate::Silu)?;
        y = self.project.forward(&self.squeeze.forward(&y)?, pass, Gate::None)?;
        if !self.residual {
            return Ok(y);
        }
        if let Mode::Train(rng) = mode {
            y = drop_images(&y, self.drop, rng)?;
        }
        residual(x, &y, 1.0, None)
    }
}

/// Stochastic depth: each image of y (N, H, W, C) is zeroed with probability `p` and otherwise divided by 1 - `p`.
pub fn drop_images(y: &Tensor, p: f64, rng: StepRng) -> Result<Tensor> {
    if p == 0.0 {
        return Ok(y.clone());
    }
    let keep = dropout(&Tensor::ones((y.dim(0)?, 1, 1, 1), y.dtype(), y.device())?, p, rng)?;
    y.broadcast_mul(&keep)
}

/// The name in this encoder of a tensor of timm's `tf_efficientnet_b*` or `efficientnet_b*`, which is the same name;
/// `None` for the classifier and the counts of batches, which are no part of an encoder, and for names that those models
/// do not have.
///
/// ```
/// use mm_encoders::efficientnet::from_timm;
/// assert_eq!(from_timm("blocks.6.1.conv_pwl.weight").as_deref(), Some("blocks.6.1.conv_pwl.weight"));
/// assert_eq!(from_timm("classifier.weight"), None);
/// ```
pub fn from_timm(name: &str) -> Option<String> {
    let known = match &name.split('.').collect::<Vec<_>>()[..] {
        ["conv_stem" | "conv_head", "weight"] => true,
        ["bn1" | "bn2", value] => is_norm(value),
        ["blocks", stage @ ("0" | "1" | "2" | "3" | "4" | "5" | "6"), block, place @ .., value] => {
            match place {
                _ if !is_number(block) => false,
                ["conv_pw" | "conv_dw"] => *value == "weight",
                ["bn1" | "bn2"] => is_norm(value),
                ["se", "conv_reduce" | "conv_expand"] => AFFINE.contains(value),
                ["conv_pwl"] => *value == "weight" && *stage != "0",
                ["bn3"] => is_norm(value) && *stage != "0",
                _ => false,
            }
        }
        _ => false,
    };
    known.then(|| name.to_owned())
}

/// The name in this encoder of a tensor of torchvision's `efficientnet_b*`; `None` for the classifier and the counts of
/// batches, which are no part of an encoder, and for names that those models do not have.
///
/// ```
/// use mm_encoders::efficientnet::from_torchvision;
/// let name = "features.3.1.block.2.fc1.bias";
/// assert_eq!(from_torchvision(name).as_deref(), Some("blocks.2.1.se.conv_reduce.bias"));
/// assert_eq!(from_torchvision("classifier.1.weight"), None);
/// ```
pub fn from_torchvision(name: &str) -> Option<String> {
    let segments: Vec<&str> = name.strip_prefix("features.")?.split('.').collect();
    // There a layer is a list of convolution and normalisation.
    let layer = |part: &str, value: &str, conv: &str, norm: &str| match part {
        "0" if value == "weight" => Some(format!("{conv}.{value}")),
        "1" if is_norm(value) => Some(format!("{norm}.{value}")),
        _ => None,
    };
    match segments[..] {
        ["0", part, value] => layer(part, value, "conv_stem", "bn1"),
        ["8", part, value] => layer(part, value, "conv_head", "bn2"),
        [stage, block, "block", place, part, value] if is_number(block) => {
            let stage = stage.parse::<usize>().ok()?.checked_sub(1).filter(|&s| s < STAGES.len())?;
            // The first stage does not widen: its list begins with the depthwise convolution.
            let inside = match (place, stage) {
                ("0", 1..) => layer(part, value, "conv_pw", "bn1"),
                ("0", 0) => layer(part, value, "conv_dw", "bn1"),
                ("1", 1..) => layer(part, value, "conv_dw", "bn2"),
                ("1", 0) | ("2", 1..) if AFFINE.contains(&value) => match part {
                    "fc1" => Some(format!("se.conv_reduce.{value}")),
                    "fc2" => Some(format!("se.conv_expand.{value}")),
                    _ => None,
                },
                ("2", 0) => layer(part, value, "conv_pw", "bn2"),
                ("3", 1..) => layer(part, value, "conv_pwl", "bn3"),
                _ => None,
            };
            inside.map(|inside| format!("blocks.{stage}.{block}.{inside}"))
        }
        _ => None,
    }
}
