//! The encoder of a modality as a configuration file names it.

use crate::{
    BertConfig, ConformerConfig, EfficientNetConfig, MlpConfig, ResNetConfig, SequenceConfig, Wav2Vec2Config,
};
use candle_core::{Result, Tensor};
use mm_core::{Checked, ConfigError, Encoder, Mode, RowShape, Scope};
use serde::{Deserialize, Serialize};

/// An encoder and its settings; `kind` says which.
///
/// | `kind` | rows that it takes | of different lengths |
/// |---|---|---|
/// | [`mlp`](crate::mlp) | d numbers | no |
/// | [`resnet`](crate::resnet) | H x W (with `channels = 1`), C x H x W, T x C x H x W | no |
/// | [`efficientnet`](crate::efficientnet) | 3 x H x W, T x 3 x H x W | no |
/// | [`conformer`](crate::conformer), [`sequence`](crate::sequence) | N x d | yes |
/// | [`wav2vec2`](crate::wav2vec2) | samples of a waveform | yes |
/// | [`bert`](crate::bert) | token ids | yes |
///
/// ```
/// use mm_core::RowShape;
/// use mm_encoders::EncoderConfig;
/// let config: EncoderConfig = toml::from_str("kind = \"mlp\"\nhidden = [32]\ndim = 16")?;
/// assert_eq!((config.name(), config.dim()), ("mlp", 16));
/// let images = RowShape::fixed([3, 224, 224]);
/// assert_eq!(
///     config.check_input("visual", &images).unwrap_err().to_string(),
///     "kind = \"mlp\": takes rows of d numbers, but those of `visual` are 3 x 224 x 224; choose resnet, efficientnet"
/// );
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum EncoderConfig {
    /// [`crate::mlp`]
    Mlp(MlpConfig),
    /// [`crate::resnet`]
    ResNet(ResNetConfig),
    /// [`crate::efficientnet`]
    EfficientNet(EfficientNetConfig),
    /// [`crate::conformer`]
    Conformer(ConformerConfig),
    /// [`crate::wav2vec2`]
    Wav2Vec2(Wav2Vec2Config),
    /// [`crate::sequence`]
    Sequence(SequenceConfig),
    /// [`crate::bert`]
    Bert(BertConfig),
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self::Mlp(MlpConfig::default())
    }
}

impl EncoderConfig {
    /// Every kind with its default settings.
    pub fn all() -> [Self; 7] {
        [
            Self::Mlp(MlpConfig::default()),
            Self::ResNet(ResNetConfig::default()),
            Self::EfficientNet(EfficientNetConfig::default()),
            Self::Conformer(ConformerConfig::default()),
            Self::Wav2Vec2(Wav2Vec2Config::default()),
            Self::Sequence(SequenceConfig::default()),
            Self::Bert(BertConfig::default()),
        ]
    }

    /// The encoder called `name` with its default settings; an unknown name is an error that lists the known ones.
    pub fn named(name: &str) -> Checked<Self> {
        let all = Self::all();
        let names: Vec<&str> = all.iter().map(Self::name).collect();
        let unknown = ConfigError::unknown("kind", name, &names);
        all.into_iter().find(|config| config.name() == name).ok_or(unknown)
    }

    /// Its name, as `kind` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mlp(_) => "mlp",
            Self::ResNet(_) => "resnet",
            Self::EfficientNet(_) => "efficientnet",
            Self::Conformer(_) => "conformer",
            Self::Wav2Vec2(_) => "wav2vec2",
            Self::Sequence(_) => "sequence",
            Self::Bert(_) => "bert",
        }
    }

    /// The width of the features it makes.
    pub fn dim(&self) -> usize {
        match self {
            Self::Mlp(config) => config.dim,
            Self::ResNet(config) => config.dim(),
            Self::EfficientNet(config) => config.dim(),
            Self::Conformer(config) => config.dim,
            Self::Wav2Vec2(config) => config.hidden_size,
            Self::Sequence(config) => config.dim,
            Self::Bert(config) => config.dim,
        }
    }

    /// Checks every setting. Errors name the field alone, such as `dropout`: the caller knows which modality it is and
    /// puts the path before it with [`ConfigError::within`].
    pub fn check(&self) -> Checked<()> {
        match self {
            Self::Mlp(config) => config.check(),
            Self::ResNet(config) => config.check(),
            Self::EfficientNet(config) => config.check(),
            Self::Conformer(config) => config.check(),
            Self::Wav2Vec2(config) => config.check(),
            Self::Sequence(config) => config.check(),
            Self::Bert(config) => config.check(),
        }
    }

    /// Whether it normalises over the rows of a batch alone, so that a training batch needs two of them.
    pub fn needs_two_rows(&self) -> bool {
        matches!(self, Self::Mlp(config) if config.norm == crate::Norm::Batch)
    }

    /// Checks that rows of this shape suit it; `modality` names them in the message.
    pub fn check_input(&self, modality: &str, shape: &RowShape) -> Checked<()> {
        if !self.takes(shape) {
            let fitting = Self::all().into_iter().filter(|config| config.takes(shape));
            let fitting: Vec<&str> = fitting.map(|config| config.name()).collect();
            let choose = match fitting[..] {
                [] => "prepare the data in another shape".to_owned(),
                _ => format!("choose {}", fitting.join(", ")),
            };
            let rule = format!("takes {}, but those of `{modality}` are {shape}; {choose}", self.rows());
            return Err(ConfigError::new("kind", format!("\"{}\"", self.name()), rule));
        }
        if let (Self::ResNet(config), [.., _, _]) = (self, &shape.dims[..]) {
            let channels = if shape.dims.len() == 2 { 1 } else { shape.dims[shape.dims.len() - 3] };
            if channels != config.channels {
                let rule = format!("must be {channels}: the rows of `{modality}` are {shape}");
                return Err(ConfigError::new("channels", config.channels, rule));
            }
        }
        if let (Self::Conformer(config), [_, width]) = (self, &shape.dims[..])
            && config.input == crate::conformer::Input::None
            && *width != config.dim
        {
            let rule = format!("needs rows of dim = {} numbers, not {width}; set \"linear\"", config.dim);
            return Err(ConfigError::new("input", "\"none\"", rule));
        }
        if let (Self::Wav2Vec2(config), [samples]) = (self, &shape.dims[..])
            && *samples < config.least_samples()
        {
            let least = config.least_samples();
            let rule =
                format!("needs clips of at least {least} samples, but those of `{modality}` are {shape}");
            return Err(ConfigError::new("kind", "\"wav2vec2\"", rule));
        }
        if let (Self::Bert(config), [tokens]) = (self, &shape.dims[..])
            && *tokens > config.max_positions
        {
            let rule = format!("the texts of `{modality}` have {shape} tokens; cut them");
            return Err(ConfigError::new("max_positions", config.max_positions, rule));
        }
        Ok(())
    }

    /// The number of axes that fits.
    fn takes(&self, shape: &RowShape) -> bool {
        let axes = shape.dims.len();
        match self {
            Self::Mlp(_) => axes == 1 && !shape.ragged,
            Self::ResNet(_) => (2..=4).contains(&axes) && !shape.ragged,
            Self::EfficientNet(_) => (3..=4).contains(&axes) && shape.dims[axes - 3] == 3 && !shape.ragged,
            Self::Conformer(_) | Self::Sequence(_) => axes == 2,
            Self::Wav2Vec2(_) | Self::Bert(_) => axes == 1,
        }
    }

    fn rows(&self) -> &'static str {
        match self {
            Self::Mlp(_) => "rows of d numbers",
            Self::ResNet(_) => "images of one size, with frames before them or without",
            Self::EfficientNet(_) => "images of 3 channels and one size, with frames before them or without",
            Self::Conformer(_) | Self::Sequence(_) => "rows of N x d numbers",
            Self::Wav2Vec2(_) => "waveforms",
            Self::Bert(_) => "token ids",
        }
    }

    /// Makes the encoder of rows of this shape, with its parameters in `scope` (which is already at
    /// `encoder.<modality>`). Settings that [`EncoderConfig::check`] refuses, and rows that
    /// [`EncoderConfig::check_input`] refuses, are an error.
    pub fn build(&self, scope: Scope<'_>, shape: &RowShape) -> Result<Box<dyn Encoder>> {
        self.check_input("this modality", shape).map_err(candle_core::Error::wrap)?;
        let width = shape.dims.last().copied().unwrap_or(0);
        Ok(match self {
            Self::Mlp(config) => Box::new(config.build(scope, width)?),
            Self::ResNet(config) if shape.dims.len() == 2 => Box::new(OneChannel(config.build(scope)?)),
            Self::ResNet(config) => Box::new(config.build(scope)?),
            Self::EfficientNet(config) => Box::new(config.build(scope)?),
            Self::Conformer(config) => Box::new(config.build(scope, width)?),
            Self::Wav2Vec2(config) => Box::new(config.build(scope)?),
            Self::Sequence(config) => Box::new(config.build(scope, width)?),
            Self::Bert(config) => Box::new(config.build(scope)?),
        })
    }
}

/// Images (B, H, W) for an encoder of images with channels.
#[derive(Debug)]
struct OneChannel<E>(E);

impl<E: Encoder> Encoder for OneChannel<E> {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.0.forward(&x.unsqueeze(1)?, mode)
    }

    fn dim(&self) -> usize {
        self.0.dim()
    }
}
