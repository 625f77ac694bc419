//! One encoder over the rows of a pack: features to train on, made once.
//!
//! Large pretrained encoders cost hours where they are trained with the rest and seconds where their features are kept:
//! [`encode`] writes them as a feature file (`data.kind = "features"`), with labels, columns and index lists of the pack, and
//! with its other modalities where those are vectors. An encoder of a run of ours gets its inputs standardised as in that run.

use crate::error::TrainError;
use crate::predict::trained_statistics;
use crate::record::write_atomic;
use candle_core::{DType, Device};
use mm_core::model::{pooled, to_host};
use mm_core::{ConfigError, Encoder, Modal, Modalities, Modality, Mode, ParamStore};
use mm_data::{Dataset, Standardizer, unlabelled_batch};
use mm_encoders::weights::Source;
use mm_encoders::{EncoderConfig, PretrainedConfig};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// What to encode, and with what.
#[derive(Debug, Clone)]
pub struct Encoding {
    /// The modality.
    pub modality: String,
    /// The encoder.
    pub encoder: EncoderConfig,
    /// Its weights; without them it has start values drawn from `seed`, which is of use for tests alone.
    pub weights: Option<PretrainedConfig>,
    /// Seed of start values.
    pub seed: u64,
    /// Rows at a time; at least 1.
    pub batch_size: usize,
    /// The device.
    pub device: Device,
}

/// What [`encode`] has done.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Rows.
    pub rows: usize,
    /// Numbers of a feature.
    pub dim: usize,
    /// Where the weights came from.
    pub source: Option<Source>,
    /// Other modalities that were written as they are.
    pub copied: Vec<String>,
    /// Other modalities that are no vectors and were left out.
    pub left_out: Vec<String>,
}

type Block = (String, Dtype, Vec<usize>, Vec<u8>);

/// Encodes every row in evaluation mode and writes a feature file. `None` where it was told to stop; then nothing is written.
pub fn encode(
    data: &Dataset,
    encoding: &Encoding,
    out: &Path,
    progress: &dyn Fn(usize),
    stop: &AtomicBool,
) -> Result<Option<Encoded>, TrainError> {
    encoding.encoder.check().map_err(|e| e.within("encoder"))?;
    if encoding.batch_size == 0 {
        return Err(ConfigError::new("batch-size", 0, "must be at least 1").into());
    }
    let m = data.modalities.require("modality", &encoding.modality)?;
    let shape = data.inputs[m].shape();
    encoding.encoder.check_input(&encoding.modality, &shape).map_err(|e| e.within("encoder"))?;
    let mut params = ParamStore::new(encoding.seed, DType::F32, &encoding.device);
    let encoder = encoding.encoder.build(params.root().at("encoder"), &shape)?;
    let source = match &encoding.weights {
        None => None,
        Some(weights) => {
            weights.check().map_err(|e| e.within("weights"))?;
            Some(weights.load(&encoding.encoder, &params, "encoder")?.1)
        }
    };
    let mut own = data.select_modalities(std::slice::from_ref(&encoding.modality))?;
    if let Some((dir, trained)) = encoding.weights.as_ref().and_then(run_folder)
        && let Some(tensors) = trained_statistics(dir, trained, &encoding.modality)?
    {
        Standardizer::from_tensors(&own.modalities, &tensors)?.apply(&mut own)?;
    }
    let Some((features, dim)) = features(&own, encoder.as_ref(), encoding, progress, stop)? else {
        return Ok(None);
    };
    let rows = data.rows();
    let mut blocks: Vec<Block> = vec![floats(&format!("x_{}", encoding.modality), &[rows, dim], &features)];
    blocks.extend(presence(data, m));
    let (mut copied, mut left_out) = (Vec::new(), Vec::new());
    for (other, x) in data.inputs.iter().filter(|(other, _)| *other != m) {
        let name = data.modalities.name(other).to_owned();
        let shape = x.shape();
        if shape.ragged || shape.dims.len() != 1 {
            left_out.push(name);
            continue;
        }
        let only = Modal::new(vec![x.clone()]);
        let names = Modalities::new([name.clone()])?;
        let all: Vec<usize> = (0..rows).collect();
        let batch = unlabelled_batch(&names, &only, &all, DType::F32, &Device::Cpu)?;
        let values: Vec<f32> = batch.inputs.values()[0].flatten_all()?.to_vec1()?;
        blocks.push(floats(&format!("x_{name}"), &[rows, shape.dims[0]], &values));
        blocks.extend(presence(data, other));
        copied.push(name);
    }
    blocks.push(integers("y", &mut data.labels.iter().map(|&y| i64::from(y))));
    for (name, values) in &data.columns {
        blocks.push(integers(name, &mut values.iter().copied()));
    }
    for (name, list) in &data.indices {
        blocks.push(integers(name, &mut list.iter().map(|&row| row as i64)));
    }
    let bytes = serialize(data, encoding, source.as_ref(), &blocks, out)?;
    write_atomic(out, &bytes)?;
    Ok(Some(Encoded { rows, dim, source, copied, left_out }))
}

/// The folder of weights that are a model of ours, and the modality whose encoder is taken: its inputs are standardised as
/// they were in training.
fn run_folder(weights: &PretrainedConfig) -> Option<(&Path, &str)> {
    let modality = weights.prefix.as_deref()?.strip_prefix("encoder.")?;
    Some((weights.path.as_deref().filter(|path| path.is_dir())?, modality))
}

/// The features of every row of a data set with one modality, zeros where the modality is missing, and their width.
fn features(
    data: &Dataset,
    encoder: &dyn Encoder,
    encoding: &Encoding,
    progress: &dyn Fn(usize),
    stop: &AtomicBool,
) -> Result<Option<(Vec<f32>, usize)>, TrainError> {
    let mut values = Vec::with_capacity(data.rows() * encoder.dim());
    for start in (0..data.rows()).step_by(encoding.batch_size) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let rows: Vec<usize> = (start..(start + encoding.batch_size).min(data.rows())).collect();
        let batch = unlabelled_batch(&data.modalities, &data.inputs, &rows, DType::F32, &encoding.device)?;
        let x = &batch.inputs.values()[0];
        let h = match &batch.lengths.values()[0] {
            Some(lengths) => encoder.forward_padded(x, lengths, Mode::Eval)?,
            None => encoder.forward(x, Mode::Eval)?,
        };
        let h = match &batch.present.values()[0] {
            Some(present) => present.apply(&pooled(&h)?)?,
            None => pooled(&h)?,
        };
        values.extend(to_host(&h)?.into_iter().map(|v| v as f32));
        progress(values.len() / encoder.dim().max(1));
    }
    Ok(Some((values, encoder.dim())))
}

fn floats(name: &str, shape: &[usize], values: &[f32]) -> Block {
    (name.to_owned(), Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn integers(name: &str, values: &mut dyn Iterator<Item = i64>) -> Block {
    let bytes: Vec<u8> = values.flat_map(i64::to_le_bytes).collect();
    (name.to_owned(), Dtype::I64, vec![bytes.len() / 8], bytes)
}

/// Flags of the rows that have a modality, where some do not.
fn presence(data: &Dataset, m: Modality) -> Option<Block> {
    let x = &data.inputs[m];
    let flags: Vec<i64> = (0..x.rows()).map(|row| i64::from(x.is_present(row))).collect();
    let name = format!("present_{}", data.modalities.name(m));
    flags.contains(&0).then(|| integers(&name, &mut flags.iter().copied()))
}

fn serialize(
    data: &Dataset,
    encoding: &Encoding,
    source: Option<&Source>,
    blocks: &[Block],
    out: &Path,
) -> Result<Vec<u8>, TrainError> {
    let fail = |e: safetensors::SafeTensorError| TrainError::run(out, format!("cannot be written: {e}"));
    let json = |value: serde_json::Result<String>| value.map_err(|e| TrainError::run(out, e.to_string()));
    #[allow(clippy::disallowed_types)] // safetensors asks for one and sorts it
    let metadata = std::collections::HashMap::from([
        ("classes".to_owned(), data.class_names.join(",")),
        ("encoder".to_owned(), json(serde_json::to_string(&encoding.encoder))?),
        ("weights".to_owned(), json(serde_json::to_string(&source))?),
        ("dataset".to_owned(), data.name.clone()),
        ("dataset_hash".to_owned(), data.hash.clone()),
        ("ids".to_owned(), json(serde_json::to_string(&data.ids))?),
    ]);
    let views: Result<Vec<_>, _> = blocks
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect();
    safetensors::serialize(views.map_err(fail)?, Some(metadata)).map_err(fail)
}
