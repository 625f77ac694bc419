//! Our side of `cargo xtask bench peer`: one training step or evaluation at a time, when it is told to.
//!
//! The lines that it reads and writes are described in `xtask/src/bench/side.rs`; PyTorch's side is
//! `xtask/src/bench/peer.py`. A step is what the trainer does with a batch: [`Joint`] with its balancing method, and the
//! optimiser; in rows with `-forward` it is the encoder's features in evaluation.
//!
//! `cargo run --release -p mm-train --example peer_step -- --row resnet18-audio-f32 --batch 16`

#![allow(clippy::print_stdout)] // it talks to the program that started it

use candle_core::{DType, Device, Result, Tensor, bail};
use mm_balance::mlb::MlbConfig;
use mm_balance::{Balancer, Joint, StepCx, TrainStep};
use mm_core::{
    Batch, Composite, Encoder, Fusion, Modal, Modalities, Mode, Multimodal, ParamStore, Scope, StepRng,
};
use mm_encoders::conformer::positions;
use mm_encoders::{
    ConformerConfig, ConformerLayer, EfficientNetConfig, EfficientNetVariant, Precision, ResNetConfig,
    Wav2Vec2Config,
};
use mm_fusion::late_linear::LateLinearConfig;
use mm_train::optim::{Kind, Optim, OptimConfig};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Instant;

const CLASSES: usize = 6;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let (Some(row), Some(batch)) = (value("--row"), value("--batch")) else {
        bail!("usage: peer_step --row NAME --batch ROWS [--small]")
    };
    let batch = batch.parse().map_err(candle_core::Error::wrap)?;
    let small = arguments.iter().any(|argument| argument == "--small");
    let mut task = Task::new(row, batch, small)?;
    let config = OptimConfig {
        kind: Kind::Sgd,
        lr: 1e-3,
        momentum: 0.9,
        weight_decay: 1e-4,
        ..OptimConfig::default()
    };
    let mut optim = Optim::new(config, &task.params, None).map_err(candle_core::Error::wrap)?;

    say(&json!({ "ready": concat!("mm-train ", env!("CARGO_PKG_VERSION")), "mib": memory("VmRSS") }))?;
    let mut done = 0;
    for line in std::io::stdin().lines() {
        let line = line?;
        let Some(count) = line.strip_prefix("step ") else {
            return say(&json!({ "mib": memory("VmHWM") }));
        };
        let (mut ms, mut loss) = (Vec::new(), f64::NAN);
        for _ in 0..count.trim().parse().map_err(candle_core::Error::wrap)? {
            let began = Instant::now();
            loss = if task.forward {
                task.evaluate()?
            } else {
                let cx = StepCx::new(&task.model, &task.params, &task.batch, 0, done, StepRng::new(0));
                task.step.step(&cx, &mut optim)?.loss
            };
            ms.push(began.elapsed().as_secs_f64() * 1e3);
            done += 1;
        }
        say(&json!({ "ms": ms, "loss": loss.is_finite().then_some(loss) }))?;
    }
    Ok(())
}

fn say(answer: &Value) -> Result<()> {
    println!("{answer}");
    Ok(std::io::stdout().flush()?)
}

/// The memory that this process holds (`VmRSS`) or held at most (`VmHWM`), in MiB; on Linux only.
fn memory(what: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// What a row trains or evaluates, and on what.
struct Task {
    forward: bool,
    params: ParamStore,
    model: Composite,
    step: Box<dyn TrainStep>,
    batch: Batch,
}

impl Task {
    fn new(row: &str, rows: usize, small: bool) -> Result<Self> {
        let (name, precision) = match row.rsplit_once('-') {
            Some((name, "f32")) => (name, Precision::F32),
            Some((name, "bf16")) => (name, Precision::Bf16),
            Some((name, "bf16x3")) => (name, Precision::Bf16x3),
            _ => bail!("there is no row {row}"),
        };
        let sized = |full: &[usize], less: &[usize]| {
            let mut shape = vec![rows];
            shape.extend(if small { less } else { full });
            shape
        };
        let (name, forward) = name.strip_suffix("-forward").map_or((name, false), |name| (name, true));
        let audio = ("audio", sized(&[1, 257, 188], &[1, 33, 24]));
        let video = ("video", sized(&[3, 224, 224], &[3, 32, 32]));
        let sequence = ("sequence", sized(&[200, 512], &[8, 512]));
        let inputs = match name {
            "resnet18-audio" => vec![audio],
            "resnet18-visual" => vec![video],
            "resnet18-av-mlb" => vec![audio, video],
            "conformer-layer" => vec![sequence],
            "conformer" => vec![("sequence", sized(&[200, 512], &[8, 32]))],
            "wav2vec2-base" => vec![("waveform", sized(&[64_000], &[1600]))],
            "efficientnet-b2" => vec![("image", sized(&[3, 260, 260], &[3, 32, 32]))],
            _ => bail!("there is no row {row}"),
        };
        let balancer: Box<dyn Balancer> = if name.ends_with("-mlb") {
            Box::new(MlbConfig::default().build().map_err(candle_core::Error::wrap)?)
        } else {
            Box::new(())
        };

        let modalities =
            Modalities::new(inputs.iter().map(|(name, _)| *name)).map_err(candle_core::Error::wrap)?;
        let mut params = ParamStore::new(0, DType::F32, &Device::Cpu);
        let mut encoders: Vec<Box<dyn Encoder>> = Vec::new();
        for (modality, shape) in &inputs {
            let scope = params.root().at("encoder").at(modality);
            encoders.push(match (name, &shape[..]) {
                ("conformer-layer", _) => Box::new(Sequence::new(scope, shape)?),
                ("conformer", &[.., width]) => Box::new(conformer(width, small).build(scope, width)?),
                ("wav2vec2-base", _) => Box::new(wav2vec2(precision, small).build(scope)?),
                ("efficientnet-b2", _) => {
                    let variant = EfficientNetVariant::Torchvision;
                    Box::new(
                        EfficientNetConfig { variant, precision, ..EfficientNetConfig::default() }
                            .build(scope)?,
                    )
                }
                (_, &[_, channels, ..]) => {
                    Box::new(ResNetConfig { channels, precision, ..ResNetConfig::default() }.build(scope)?)
                }
                _ => bail!("there is no encoder of {modality} in the row {row}"),
            });
        }
        let dims = encoders.iter().map(|encoder| encoder.dim()).collect();
        let fusion =
            LateLinearConfig::default().build(params.root().at("fusion"), &modalities, &dims, CLASSES)?;
        let fusion: Option<Box<dyn Fusion>> = Some(Box::new(fusion));
        let mut model = Composite::new(modalities, CLASSES, Modal::new(encoders), fusion)?;
        if balancer.needs().heads {
            model = model.with_heads(params.root())?;
        }
        let inputs: Result<Modal<Tensor>> = inputs.iter().map(|(_, shape)| normal(shape)).collect();
        let labels = (0..rows).map(|row| (row % CLASSES) as u32).collect();
        let batch = Batch::new(inputs?, labels)?;
        Ok(Self { forward, params, model, step: Box::new(Joint::new(balancer)), batch })
    }

    /// The mean of the features.
    fn evaluate(&self) -> Result<f64> {
        let features = self.model.encode_all(&self.batch, Mode::Eval)?;
        let means: Result<Vec<f32>> = features.iter().map(|(_, h)| h.mean_all()?.to_scalar()).collect();
        Ok(means?.into_iter().map(f64::from).sum())
    }
}

/// All layers as published; in small two narrow ones.
fn conformer(width: usize, small: bool) -> ConformerConfig {
    let published = ConformerConfig::default();
    if small { ConformerConfig { dim: width, layers: 2, heads: 4, ..published } } else { published }
}

/// `facebook/wav2vec2-base`, which drops and masks nothing here; in small two narrow layers.
fn wav2vec2(precision: Precision, small: bool) -> Wav2Vec2Config {
    let base = Wav2Vec2Config {
        hidden_dropout: 0.0,
        activation_dropout: 0.0,
        attention_dropout: 0.0,
        feat_proj_dropout: 0.0,
        layerdrop: 0.0,
        apply_spec_augment: false,
        precision,
        ..Wav2Vec2Config::default()
    };
    if !small {
        return base;
    }
    Wav2Vec2Config {
        conv_dim: vec![16; 7],
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 64,
        num_conv_pos_embeddings: 16,
        num_conv_pos_embedding_groups: 4,
        ..base
    }
}

fn normal(shape: &[usize]) -> Result<Tensor> {
    let mut draws = StepRng::new(1).stream("inputs").draws();
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| draws.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// One layer of a Conformer and the mean over places.
#[derive(Debug)]
struct Sequence {
    layer: ConformerLayer,
    table: Tensor,
}

impl Sequence {
    fn new(scope: Scope<'_>, shape: &[usize]) -> Result<Self> {
        let layer = ConformerConfig::default().build_layer(scope)?;
        Ok(Self { layer, table: positions(shape[1], shape[2], DType::F32, &Device::Cpu)? })
    }
}

impl Encoder for Sequence {
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.layer.forward(x, &self.table, mode)?.mean(1)
    }

    fn dim(&self) -> usize {
        512
    }
}
