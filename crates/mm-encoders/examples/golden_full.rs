//! Our side of `cargo xtask golden`: an encoder of published size against the library that publishes it, and an export.
//!
//! ```text
//! golden_full compare FOLDER    a case that tests/golden/generate/full.py wrote; one line of JSON with the largest errors
//! golden_full export FOLDER     checkpoints of ours and what they compute, for tests/golden/generate/export_check.py
//! ```
//!
//! The error of a tensor is its largest difference over the largest entry of the reference, or of the reference's
//! gradient of the same module's `weight` where the true gradient is zero and all there is is rounding.

#![allow(clippy::print_stdout)] // it talks to the program that started it

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Mode, ParamStore, StepRng};
use mm_encoders::bert::{Family, from_bert, from_distilbert};
use mm_encoders::conformer::from_wav2vec2_conformer;
use mm_encoders::efficientnet::{self, EfficientNetVariant};
use mm_encoders::resnet;
use mm_encoders::weights::{Matching, Weights, export};
use mm_encoders::{BertConfig, ConformerConfig, EfficientNetConfig, Mask, ResNetConfig, Wav2Vec2Config};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["compare", folder] => {
            println!("{}", serde_json::to_string(&compare(Path::new(folder))?)?);
            Ok(())
        }
        ["export", folder] => export_all(Path::new(folder)),
        _ => Err("usage: golden_full compare|export FOLDER".into()),
    }
}

/// The file `case.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Comparison {
    case: String,
    dtype: String,
    build: Build,
    /// Tensors whose gradient is rounding, by mode.
    blind: BTreeMap<String, BTreeSet<String>>,
    /// How far the reference in f32 is from itself in f64; handed on.
    own: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Build {
    Resnet { depth: usize, channels: usize },
    Efficientnet { variant: EfficientNetVariant },
    Wav2vec2 { layers: usize, lengths: Option<Vec<usize>> },
    Conformer { input: usize, lengths: Vec<usize> },
    Wav2vec2Conformer { layers: usize },
    Bert { family: Family, lengths: Vec<usize> },
}

type Run = Box<dyn Fn(&Tensor, Mode) -> candle_core::Result<Tensor>>;
type Rename = Box<dyn Fn(&str) -> Option<String>>;

impl Build {
    /// The encoder, its output, and the name in `store` of a tensor of the checkpoint.
    fn build(self, store: &mut ParamStore, weights: &Weights) -> Result<(Run, Rename)> {
        Ok(match self {
            Self::Resnet { depth, channels } => {
                let encoder =
                    ResNetConfig { depth, channels, ..ResNetConfig::default() }.build(store.root())?;
                (Box::new(move |x, mode| encoder.forward(x, mode)), Box::new(resnet::from_torchvision))
            }
            Self::Efficientnet { variant } => {
                let config = EfficientNetConfig {
                    variant,
                    frozen: false,
                    drop_path: 0.0,
                    ..EfficientNetConfig::default()
                };
                let encoder = config.build(store.root())?;
                let rename = match variant {
                    EfficientNetVariant::Tf => efficientnet::from_timm,
                    EfficientNetVariant::Torchvision => efficientnet::from_torchvision,
                };
                (Box::new(move |x, mode| encoder.forward(x, mode)), Box::new(rename))
            }
            Self::Wav2vec2 { layers, lengths } => {
                let mut config = Wav2Vec2Config::from_hugging_face(&weights.config()?)?;
                config.layers = Some(layers);
                config.freeze_features = false;
                let encoder = config.build(store.root())?;
                let run: Run = Box::new(move |x, mode| encoder.frames(x, lengths.as_deref(), mode));
                (run, Box::new(move |name| config.tensor_name(name)))
            }
            Self::Conformer { input, lengths } => {
                let config = ConformerConfig { dropout: 0.0, ..ConformerConfig::default() };
                let encoder = config.build(store.root(), input)?;
                let run: Run = Box::new(move |x, mode| encoder.encode(x, Some(&mask(&lengths, x)?), mode));
                (run, Box::new(|name| (!name.ends_with("num_batches_tracked")).then(|| name.to_owned())))
            }
            Self::Wav2vec2Conformer { layers } => {
                let mut config = ConformerConfig::from_hugging_face(&weights.config()?)?;
                config.layers = layers;
                let encoder = config.build(store.root(), config.dim)?;
                (Box::new(move |x, mode| encoder.places(x, None, mode)), Box::new(from_wav2vec2_conformer))
            }
            Self::Bert { family, lengths } => {
                let config = BertConfig::from_hugging_face(&weights.config()?)?;
                if config.family != family {
                    return Err(format!("config.json is that of {:?}, not {family:?}", config.family).into());
                }
                let encoder = config.build(store.root())?;
                let run: Run =
                    Box::new(move |ids, mode| encoder.tokens(ids, Some(&mask(&lengths, ids)?), mode));
                let rename = if family == Family::Bert { from_bert } else { from_distilbert };
                (run, Box::new(rename))
            }
        })
    }
}

fn mask(lengths: &[usize], x: &Tensor) -> candle_core::Result<Mask> {
    Mask::from_lengths(lengths, x.dim(1)?)
}

/// The largest error of some tensors, and which it was.
#[derive(Debug, Default, Serialize)]
struct Worst {
    tensors: usize,
    error: f64,
    name: String,
}

impl Worst {
    fn add(&mut self, name: String, error: f64) {
        self.tensors += 1;
        // Not a number is the worst there is, and JSON has no infinity.
        let error = if error.is_finite() { error } else { f64::MAX };
        if self.name.is_empty() || error > self.error {
            (self.error, self.name) = (error, name);
        }
    }
}

/// What a case gave; the line that is printed.
#[derive(Debug, Serialize)]
struct Outcome {
    case: String,
    dtype: String,
    /// Parameters and buffers that were loaded.
    loaded: usize,
    /// Parameters, in numbers.
    parameters: usize,
    outputs: Worst,
    gradients: Worst,
    /// Running statistics after the pass in training; none where there are none.
    statistics: Worst,
    own: Option<Value>,
    seconds: f64,
}

fn compare(folder: &Path) -> Result<Outcome> {
    let began = Instant::now();
    let case: Comparison = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let dtype = match case.dtype.as_str() {
        "f32" => DType::F32,
        "f64" => DType::F64,
        other => return Err(format!("dtype `{other}`: must be f32 or f64").into()),
    };
    let weights = Weights::from_dir(folder)?;
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let (run, rename) = case.build.build(&mut store, &weights)?;
    let loaded = weights.load_into(&store, "", &rename, Matching::Strict)?.loaded.len();

    let inputs = Weights::from_file(folder.join("inputs.safetensors"))?;
    let (x, loss) = (Var::from_tensor(&inputs.tensor("x")?)?, inputs.tensor("loss")?);
    let keep = inputs.shape("keep").map(|_| inputs.tensor("keep")).transpose()?;
    let mut outcome = Outcome {
        case: case.case,
        dtype: case.dtype,
        loaded,
        parameters: store.elements(),
        outputs: Worst::default(),
        gradients: Worst::default(),
        statistics: Worst::default(),
        own: case.own,
        seconds: 0.0,
    };
    for (mode, pass) in [("eval", Mode::Eval), ("train", Mode::Train(StepRng::new(0)))] {
        let expected = Weights::from_file(folder.join(format!("{mode}.safetensors")))?;
        let mut y = run(&x, pass)?;
        if let Some(keep) = &keep {
            y = y.broadcast_mul(keep)?;
        }
        outcome.outputs.add(mode.to_owned(), distance(&y, &expected.tensor("y")?, None)?);
        let mut gradients = (y * &loss)?.sum_all()?.backward()?;
        let nothing = BTreeSet::new();
        let blind = case.blind.get(mode).unwrap_or(&nothing);
        let mut left: BTreeSet<&str> = store.params().iter().map(mm_core::Param::name).collect();
        for name in expected.names() {
            if let Some(theirs) = name.strip_prefix("after.") {
                let own = rename(theirs).ok_or_else(|| format!("nothing here is their `{theirs}`"))?;
                let buffer = store.buffers().iter().find(|b| b.name() == own);
                let buffer = buffer.ok_or_else(|| format!("there is no buffer `{own}`"))?;
                let error = distance(buffer.var(), &expected.tensor(name)?, None)?;
                outcome.statistics.add(theirs.to_owned(), error);
                continue;
            }
            let Some(theirs) = name.strip_prefix("gradient.") else { continue };
            let var = if theirs == "x" {
                &x
            } else {
                let Some(own) = rename(theirs) else { continue };
                left.remove(own.as_str());
                store.find(&own).ok_or_else(|| format!("there is no parameter `{own}`"))?.var()
            };
            let own = gradients.remove(var).ok_or_else(|| format!("`{theirs}` got no gradient"))?;
            let scale = if blind.contains(theirs) {
                let weight = theirs.strip_suffix("bias").unwrap_or(theirs).to_owned() + "weight";
                Some(largest(&to_host(&expected.tensor(&format!("gradient.{weight}"))?)?))
            } else {
                None
            };
            let error = distance(&own, &expected.tensor(name)?, scale)?;
            outcome.gradients.add(format!("{mode} {theirs}"), error);
        }
        if let Some(name) = left.first() {
            return Err(format!("the reference has no gradient of `{name}`").into());
        }
    }
    outcome.seconds = began.elapsed().as_secs_f64();
    Ok(outcome)
}

/// The largest difference over the largest entry of the expectation, or over `scale`.
fn distance(found: &Tensor, expected: &Tensor, scale: Option<f64>) -> Result<f64> {
    if found.dims() != expected.dims() {
        return Err(format!("shape {:?}, the reference has {:?}", found.dims(), expected.dims()).into());
    }
    let (found, expected) = (to_host(found)?, to_host(expected)?);
    let scale = scale.unwrap_or_else(|| largest(&expected));
    // Not `max` alone, which passes over what is not a number.
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, worse);
    Ok(if scale > 0.0 { worst / scale } else { worst })
}

fn largest(values: &[f64]) -> f64 {
    values.iter().map(|v| v.abs()).fold(0.0, worse)
}

fn worse(a: f64, b: f64) -> f64 {
    if b.is_nan() || b > a { b } else { a }
}

const CARD: &str = "# A checkpoint for a test\n\nIts weights are start values.\n";

/// A folder for each encoder as `weights::export` writes it, and beside it `<name>.safetensors` with inputs and outputs.
fn export_all(folder: &Path) -> Result<()> {
    let mut store = ParamStore::new(1, DType::F32, &Device::Cpu);
    let encoder = ResNetConfig::default().build(store.root().at("encoder").at("video"))?;
    // What a trained network has: scales that are not 1, statistics that are not those of the start.
    move_values(&store)?;
    let x = wave(&[2, 3, 96, 80])?;
    let y = encoder.forward(&x, Mode::Eval)?;
    let config = json!({"architectures": ["resnet18"], "num_features": 512});
    let same = |name: &str| Some(name.to_owned());
    export::save_folder(folder.join("resnet18"), &store, "encoder.video", same, &config, CARD)?;
    save(&folder.join("resnet18.safetensors"), [("x", x), ("y", y)])?;

    let mut store = ParamStore::new(2, DType::F32, &Device::Cpu);
    let config = Wav2Vec2Config {
        conv_dim: vec![16, 16, 24],
        conv_kernel: vec![10, 3, 2],
        conv_stride: vec![5, 2, 2],
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 64,
        num_conv_pos_embeddings: 16,
        num_conv_pos_embedding_groups: 4,
        ..Wav2Vec2Config::default()
    };
    let encoder = config.build(store.root().at("encoder").at("audio"))?;
    move_values(&store)?;
    let x = wave(&[2, 800])?;
    let y = encoder.frames(&x, None, Mode::Eval)?;
    // The settings have the names of a checkpoint's, but for those that are the encoder's own.
    let mut settings = serde_json::to_value(&config)?;
    if let Value::Object(settings) = &mut settings {
        settings.retain(|key, _| !["layers", "freeze_features", "pooling", "precision"].contains(&&**key));
        settings.insert("model_type".to_owned(), "wav2vec2".into());
        settings.insert("architectures".to_owned(), json!(["Wav2Vec2Model"]));
    }
    export::save_folder(folder.join("wav2vec2"), &store, "encoder.audio", same, &settings, CARD)?;
    save(&folder.join("wav2vec2.safetensors"), [("x", x), ("y", y)])
}

/// Moves every vector of the store a little, so that none is what a fresh network of the other side has.
fn move_values(store: &ParamStore) -> Result<()> {
    for p in store.params().iter().chain(store.buffers()).filter(|p| p.var().dims().len() == 1) {
        p.var().set(&(p.var().as_tensor() + (wave(p.var().dims())? * 0.2)?)?)?;
    }
    Ok(())
}

/// A sum of two sines over all places.
fn wave(shape: &[usize]) -> Result<Tensor> {
    let count: usize = shape.iter().product();
    let value = |i: usize| ((i as f64 * 0.37).sin() + (i as f64 * 0.0113).sin()) as f32;
    Ok(Tensor::from_vec((0..count).map(value).collect(), shape, &Device::Cpu)?)
}

fn save(path: &Path, tensors: [(&str, Tensor); 2]) -> Result<()> {
    Ok(safetensors::serialize_to_file(tensors, None, path)?)
}
