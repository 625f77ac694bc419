//! A residual network over images: spectrograms, frames of a video, optical flow.
//!
//! ```text
//! a    = pool(relu(norm(conv_7x7/2(x))))                       pool: largest of 3x3, every second place
//! a    = relu(norm(conv(… relu(norm(conv(a))))) + shortcut(a)) for every block
//! h    = mean over places and frames of a
//! ```
//!
//! A basic block (depths 18 and 34) has two convolutions of 3x3; a bottleneck (depth 50) has 1x1, 3x3 and 1x1, the last
//! four times as wide. The shortcut is the identity, or where width or size change, a convolution of 1x1 with its
//! normalisation. The four stages are 64, 128, 256 and 512 wide; all but the first begin with a stride of 2, which a
//! bottleneck has in its 3x3.
//!
//! Shapes: x (B, C, H, W), or (B, T, C, H, W) with T frames, which are encoded one by one and averaged; h (B, 512), or
//! (B, 2048) at depth 50. Height and width are free and need not be the same from batch to batch. [`ResNet::places`]
//! gives the features before the average, (B, T H' W', 512) with H' = ⌈H / 32⌉, for a fusion that takes tokens.
//!
//! | setting | default | range |
//! |---|---|---|
//! | `depth` | 18 | 18, 34, 50 |
//! | `channels` | 3 | 1 (spectrogram), 2 (optical flow), 3 (image) |
//! | `init` | "torchvision" | "torchvision", "mlb", "ogm": how parameters start, see below |
//! | `downsample_in_bottleneck` | false | true at depth 50 alone: a bottleneck has its stride in its first 1x1 |
//! | `precision` | "f32" | "f32"; "bf16", "bf16x3": the numbers in which the products of convolutions of f32 tensors are taken on a CPU |
//!
//! Parameters, in `encoder.<modality>`, have torchvision's names: `conv1.weight`, `bn1.{weight,bias}`,
//! `layer<s>.<b>.{conv1,conv2}.weight`, `layer<s>.<b>.downsample.0.weight`, `layer<s>.<b>.downsample.1.{weight,bias}`
//! and so on, and buffers `….{running_mean,running_var}` (torchvision's count of batches is not kept).
//! [`from_torchvision`] and [`from_microsoft`] translate the names of published checkpoints.
//!
//! Kernels start with He's normal distribution over the fan out, N(0, 2 / (O KH KW)), and shifts with 0, whatever `init`
//! says. Scales start with 1 in "torchvision" and with N(1, 0.02²) in "mlb". The family of OGM starts its scales as MLB
//! does and then starts everything again: kernels as before, scales with 1, and linear layers with Glorot's normal
//! distribution and zero biases. Linear layers are not part of an encoder, so here "ogm" is "torchvision" under the name
//! that an experiment writes down.
//!
//! Batch normalisation: momentum 0.1 and eps 1e-5, as PyTorch; frames count as rows of the batch. A pass in training
//! mode moves the running statistics, and so does each further pass of a method that makes several. Rows whose modality
//! is missing hold zeros and count in the statistics of their batch.
//!
//! Differences: the paper has the stride of a bottleneck in its first 1x1; torchvision and `microsoft/resnet-50` have it
//! in the 3x3, and so is the default. Configurations of transformers' `ResNetModel` with `downsample_in_first_stage`, or
//! with other widths and depths than those above, have no counterpart here. AGM starts kernels with He's uniform
//! distribution, which is not offered.
//!
//! Sources: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385; torchvision 0.29 and
//! transformers 5.23 for layout and names; start values of kkontras/MLB @357b5ce and GeWu-Lab/OGM-GE_CVPR2022 @343dc1d.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use mm_core::{Encoder, Mode, ParamStore};
//! use mm_encoders::ResNetConfig;
//! let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
//! let config = ResNetConfig { channels: 1, ..ResNetConfig::default() };
//! let encoder = config.build(store.root().at("encoder").at("audio"))?;
//! let spectrograms = Tensor::zeros((2, 1, 9, 6), DType::F32, &Device::Cpu)?;
//! assert_eq!(encoder.forward(&spectrograms, Mode::Eval)?.dims(), [2, 512]);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Result, Tensor, Var, bail};
use mm_core::{ConfigError, Encoder, Init, Mode, Scope};
use mm_kernels::batch_norm::update_running;
use mm_kernels::{
    BatchStatistics, BlockConfig, ConvNorm, PoolConfig, ResidualBlock, Shortcut, Statistics, conv_norm_pool,
    residual_blocks,
};
use serde::{Deserialize, Serialize};

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// The numbers in which the products of convolutions of f32 tensors are taken on a CPU; sums and parameters stay f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Factors rounded to bfloat16.
    Bf16,
    /// Factors as a sum of two bfloat16, three products.
    Bf16x3,
}

impl From<Precision> for mm_kernels::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Bf16x3 => Self::Bf16x3,
        }
    }
}

/// How parameters start; see the text of this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResNetInit {
    /// Norms start with a scale of 1.
    #[default]
    Torchvision,
    /// Norms start with a scale drawn from N(1, 0.02²).
    Mlb,
    /// In an encoder the same as torchvision's.
    Ogm,
}

impl ResNetInit {
    fn scale(self) -> Init {
        match self {
            Self::Torchvision | Self::Ogm => Init::Const(1.0),
            Self::Mlb => Init::Normal { mean: 1.0, std: 0.02 },
        }
    }
}

/// Settings of [`ResNet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResNetConfig {
    /// Number of layers with weights, the last linear layer that is not here counted: 18, 34 or 50.
    pub depth: usize,
    /// Channels of the input.
    pub channels: usize,
    /// How parameters start.
    pub init: ResNetInit,
    /// Whether a bottleneck has its stride in its first 1x1 instead of its 3x3; the setting of this name in the
    /// configuration file of a `microsoft/resnet-*` checkpoint, whose weights do not tell.
    pub downsample_in_bottleneck: bool,
    /// The numbers in which products are taken.
    pub precision: Precision,
}

impl Default for ResNetConfig {
    fn default() -> Self {
        Self {
            depth: 18,
            channels: 3,
            init: ResNetInit::Torchvision,
            downsample_in_bottleneck: false,
            precision: Precision::F32,
        }
    }
}

impl ResNetConfig {
    /// Checks every setting.
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        if ![18, 34, 50].contains(&self.depth) {
            return Err(ConfigError::new("depth", self.depth, "must be 18, 34 or 50"));
        }
        if !(1..=3).contains(&self.channels) {
            let rule = "must be 1 (spectrogram), 2 (optical flow) or 3 (image)";
            return Err(ConfigError::new("channels", self.channels, rule));
        }
        if self.downsample_in_bottleneck && self.depth != 50 {
            let rule = format!("must be false at depth {}, which has no bottlenecks", self.depth);
            return Err(ConfigError::new("downsample_in_bottleneck", true, rule));
        }
        Ok(())
    }

    /// The width of the features.
    pub fn dim(&self) -> usize {
        512 * self.expansion()
    }

    /// Makes the encoder with its parameters in `scope`.
    pub fn build(&self, mut scope: Scope<'_>) -> Result<ResNet> {
        self.check().map_err(candle_core::Error::wrap)?;
        let stem = Layer::new(&mut scope, ("conv1", "bn1"), [64, self.channels, 7], 2, self.init)?;
        let blocks: [usize; 4] = if self.depth == 18 { [2, 2, 2, 2] } else { [3, 4, 6, 3] };
        let mut stages = Vec::with_capacity(blocks.iter().sum());
        let mut input = 64;
        for (stage, count) in blocks.into_iter().enumerate() {
            let width = 64 << stage;
            for b in 0..count {
                let stride = if stage > 0 && b == 0 { 2 } else { 1 };
                let scope = scope.child(format_args!("layer{}", stage + 1)).at(b);
                stages.push(Block::new(scope, self, input, width, stride)?);
                input = width * self.expansion();
            }
        }
        Ok(ResNet { config: self.clone(), stem, blocks: stages })
    }

    /// How much wider a block ends than its 3x3 convolutions are.
    fn expansion(&self) -> usize {
        if self.depth == 50 { 4 } else { 1 }
    }
}

/// The encoder; see the equations of this module.
#[derive(Debug)]
pub struct ResNet {
    config: ResNetConfig,
    stem: Layer,
    blocks: Vec<Block>,
}

impl ResNet {
    /// The features of every place of every frame, (B, T H' W', `dim`): frame by frame, and in a frame row by row.
    /// Their mean is what [`Encoder::forward`] gives.
    pub fn places(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let (rows, images) = match *x.dims() {
            [rows, channels, _, _] if channels == self.config.channels => (rows, x.clone()),
            [rows, _, channels, _, _] if channels == self.config.channels => (rows, x.flatten(0, 1)?),
            _ => bail!(
                "the encoder needs images of {} channels, (batch, channels, height, width) or with frames (batch, \
                 frames, channels, height, width), got inputs {:?}",
                self.config.channels,
                x.shape()
            ),
        };
        let config = BlockConfig {
            statistics: if mode.is_train() { Statistics::Batch } else { Statistics::Running },
            eps: EPS,
            precision: self.config.precision.into(),
        };
        // Channels last from here on: the layout in which the kernels work.
        let images = images.permute((0, 2, 3, 1))?.contiguous()?;
        let stem = conv_norm_pool(&images, &self.stem.view(), &PoolConfig::square(3, 2, 1), &config)?;
        self.stem.update(stem.statistics.first())?;
        let a = self.stages(&stem.y, &config)?;
        a.reshape((rows, (), self.dim()))
    }
}

impl Encoder for ResNet {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        // All images have one size, so this is the mean of the frames' means.
        self.places(x, mode)?.mean(1)
    }

    fn dim(&self) -> usize {
        self.config.dim()
    }
}

impl ResNet {
    /// All blocks, as one operation.
    fn stages(&self, x: &Tensor, config: &BlockConfig) -> Result<Tensor> {
        let layers: Vec<Vec<ConvNorm<'_>>> =
            self.blocks.iter().map(|block| block.layers.iter().map(Layer::view).collect()).collect();
        let blocks: Vec<ResidualBlock<'_>> = self
            .blocks
            .iter()
            .zip(&layers)
            .map(|(block, layers)| ResidualBlock { layers, shortcut: block.shortcut() })
            .collect();
        let out = residual_blocks(x, &blocks, config)?;
        let mut statistics = out.statistics.iter();
        for layer in self.blocks.iter().flat_map(|block| block.layers.iter().chain(&block.projection)) {
            layer.update(statistics.next())?;
        }
        Ok(out.y)
    }
}

/// A convolution and its normalisation.
#[derive(Debug)]
struct Layer {
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Var,
    var: Var,
    stride: usize,
    padding: usize,
}

impl Layer {
    /// With a square kernel: `[outputs, inputs, side]`.
    fn new(
        scope: &mut Scope<'_>,
        (conv, norm): (&str, &str),
        [outputs, inputs, side]: [usize; 3],
        stride: usize,
        init: ResNetInit,
    ) -> Result<Self> {
        let fan_out = (outputs * side * side) as f64;
        let kernel = Init::Normal { mean: 0.0, std: (2.0 / fan_out).sqrt() };
        let weight = scope.child(conv).param("weight", (outputs, inputs, side, side), kernel)?;
        let mut scope = scope.child(norm);
        let scale = scope.param("weight", outputs, init.scale())?;
        let shift = scope.param("bias", outputs, Init::Const(0.0))?;
        let mean = scope.buffer("running_mean", outputs, Init::Const(0.0))?;
        let var = scope.buffer("running_var", outputs, Init::Const(1.0))?;
        Ok(Self { weight, scale, shift, mean, var, stride, padding: side / 2 })
    }

    /// Moves the running statistics towards those of a batch; in evaluation there are none.
    fn update(&self, batch: Option<&BatchStatistics>) -> Result<()> {
        let Some(batch) = batch else { return Ok(()) };
        update_running(&self.mean, &batch.mean, MOMENTUM)?;
        update_running(&self.var, &batch.var_unbiased, MOMENTUM)
    }

    fn view(&self) -> ConvNorm<'_> {
        ConvNorm {
            weight: &self.weight,
            scale: &self.scale,
            shift: &self.shift,
            running: (self.mean.as_tensor(), self.var.as_tensor()),
            stride: self.stride,
            padding: self.padding,
        }
    }
}

#[derive(Debug)]
struct Block {
    layers: Vec<Layer>,
    projection: Option<Layer>,
}

impl Block {
    fn new(
        mut scope: Scope<'_>,
        config: &ResNetConfig,
        input: usize,
        width: usize,
        stride: usize,
    ) -> Result<Self> {
        let output = width * config.expansion();
        let shapes = if config.expansion() == 1 {
            vec![([width, input, 3], stride), ([width, width, 3], 1)]
        } else {
            let (first, second) = if config.downsample_in_bottleneck { (stride, 1) } else { (1, stride) };
            vec![([width, input, 1], first), ([width, width, 3], second), ([output, width, 1], 1)]
        };
        let mut layers = Vec::with_capacity(shapes.len());
        for (l, (shape, stride)) in shapes.into_iter().enumerate() {
            let (conv, norm) = (format!("conv{}", l + 1), format!("bn{}", l + 1));
            layers.push(Layer::new(&mut scope, (&conv, &norm), shape, stride, config.init)?);
        }
        let projection = if stride != 1 || input != output {
            let mut scope = scope.at("downsample");
            Some(Layer::new(&mut scope, ("0", "1"), [output, input, 1], stride, config.init)?)
        } else {
            None
        };
        Ok(Self { layers, projection })
    }

    fn shortcut(&self) -> Shortcut<'_> {
        self.projection.as_ref().map_or(Shortcut::Identity, |layer| Shortcut::Projection(layer.view()))
    }
}

/// The name in this encoder of a tensor of torchvision's `resnet18`, `resnet34` or `resnet50`, which is the same name;
/// `None` for the last linear layer and the counts of batches, which are no part of an encoder, and for names that
/// torchvision does not have.
///
/// ```
/// use mm_encoders::resnet::from_torchvision;
/// assert_eq!(from_torchvision("layer2.0.downsample.1.bias").as_deref(), Some("layer2.0.downsample.1.bias"));
/// assert_eq!(from_torchvision("fc.weight"), None);
/// ```
pub fn from_torchvision(name: &str) -> Option<String> {
    let known = match &name.split('.').collect::<Vec<_>>()[..] {
        ["conv1", "weight"] => true,
        ["bn1", value] => is_norm(value),
        ["layer1" | "layer2" | "layer3" | "layer4", block, place @ .., value] if is_number(block) => {
            match place {
                ["conv1" | "conv2" | "conv3"] | ["downsample", "0"] => *value == "weight",
                ["bn1" | "bn2" | "bn3"] | ["downsample", "1"] => is_norm(value),
                _ => false,
            }
        }
        _ => false,
    };
    known.then(|| name.to_owned())
}

/// The name in this encoder of a tensor of a `microsoft/resnet-*` checkpoint, transformers' `ResNetModel` or
/// `ResNetForImageClassification`; `None` for the classifier and the counts of batches, which are no part of an encoder,
/// and for names that those models do not have.
///
/// The names do not say where a bottleneck has its stride: [`ResNetConfig::downsample_in_bottleneck`] has to be what the
/// checkpoint's configuration file says.
///
/// ```
/// use mm_encoders::resnet::from_microsoft;
/// let name = "resnet.encoder.stages.1.layers.0.shortcut.normalization.bias";
/// assert_eq!(from_microsoft(name).as_deref(), Some("layer2.0.downsample.1.bias"));
/// assert_eq!(from_microsoft("classifier.1.weight"), None);
/// ```
pub fn from_microsoft(name: &str) -> Option<String> {
    let inside = name.strip_prefix("resnet.").unwrap_or(name);
    let segments: Vec<&str> = inside.split('.').collect();
    let [place @ .., part, value] = &segments[..] else { return None };
    let norm = match *part {
        "convolution" if *value == "weight" => false,
        "normalization" if is_norm(value) => true,
        _ => return None,
    };
    // From 0 there, from 1 here.
    let next = |number: &str, last: usize| number.parse::<usize>().ok().filter(|&n| n < last).map(|n| n + 1);
    let place = match place {
        ["embedder", "embedder"] => if norm { "bn1" } else { "conv1" }.to_owned(),
        ["encoder", "stages", stage, "layers", block, place @ ..] if is_number(block) => {
            let place = match place {
                ["shortcut"] => format!("downsample.{}", usize::from(norm)),
                ["layer", layer] => format!("{}{}", if norm { "bn" } else { "conv" }, next(layer, 3)?),
                _ => return None,
            };
            format!("layer{}.{block}.{place}", next(stage, 4)?)
        }
        _ => return None,
    };
    Some(format!("{place}.{value}"))
}

/// Whether a normalisation has a tensor of this name.
pub(crate) fn is_norm(value: &str) -> bool {
    ["weight", "bias", "running_mean", "running_var"].contains(&value)
}

/// Whether this is a number of a block.
pub(crate) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
