//! The selected model as a folder in the Hugging Face layout, and prediction from it.
//!
//! `config.json` holds the run's configuration, the modalities with their widths and the class names;
//! `model.safetensors` the parameters; `preprocessor_config.json` the standardisation of each modality.

use crate::build::{Built, build};
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optim::dtype;
use crate::record::{read_json, read_safetensors, safetensors_bytes, write_atomic, write_json};
use candle_core::Tensor;
use mm_core::model::to_host;
use mm_core::{Batch, Modal, Modalities, Mode, Multimodal, Presence};
use mm_data::{Matrix, Prepared, Standardizer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// `config.json` of a saved model.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Card {
    architectures: Vec<String>,
    modalities: Vec<String>,
    widths: Vec<usize>,
    id2label: BTreeMap<usize, String>,
    run: String,
}

/// `preprocessor_config.json` of a saved model.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Preprocessor {
    standardize: BTreeMap<String, Statistics>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Statistics {
    mean: Vec<f64>,
    std: Vec<f64>,
}

/// Writes a model folder.
pub(crate) fn export(
    dir: &Path,
    config: &RunConfig,
    prepared: &Prepared,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), TrainError> {
    let data = &prepared.dataset;
    let card = Card {
        architectures: vec!["MultimodalClassifier".into()],
        modalities: data.modalities.names().to_vec(),
        widths: data.inputs.values().iter().map(|x| x.dim).collect(),
        id2label: (0..data.classes)
            .map(|class| (class, data.class_names.get(class).cloned().unwrap_or_else(|| class.to_string())))
            .collect(),
        run: config.to_toml()?,
    };
    let standardize = prepared.standardizer.as_ref().map_or_else(BTreeMap::new, |s| {
        let one = |m| Statistics { mean: s.mean(m).to_vec(), std: s.std(m).to_vec() };
        data.modalities.iter().map(|m| (data.modalities.name(m).to_owned(), one(m))).collect()
    });
    write_json(&dir.join("preprocessor_config.json"), &Preprocessor { standardize })?;
    let path = dir.join("model.safetensors");
    write_atomic(&path, &safetensors_bytes(tensors, &path)?)?;
    write_json(&dir.join("config.json"), &card)
}

/// A saved model, ready to predict.
#[derive(Debug)]
pub struct Predictor {
    built: Built,
    config: RunConfig,
    widths: Vec<(String, usize)>,
    classes: Vec<String>,
    standardizer: Option<Standardizer>,
}

/// The prediction of one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// The row's id.
    pub id: String,
    /// The decision.
    pub class: String,
    /// Probability of each class, in the order of the model's classes.
    pub probabilities: Vec<f64>,
    /// The modalities that the row has.
    pub present: Vec<String>,
}

impl Predictor {
    /// Opens the model of a finished run.
    pub fn open(run: &Path) -> Result<Self, TrainError> {
        let dir = run.join("model");
        if !dir.join("config.json").exists() {
            let reason =
                "holds no finished model (model/config.json); finish the run with `mm train … --resume`";
            return Err(TrainError::run(run, reason));
        }
        let card: Card = read_json(&dir.join("config.json"))?;
        let config = RunConfig::parse(&card.run, &[])?;
        let modalities = Modalities::new(card.modalities.clone())?;
        if card.widths.len() != modalities.len() {
            return Err(TrainError::run(
                &dir,
                "config.json names another number of widths than of modalities",
            ));
        }
        let widths: Modal<usize> = card.widths.iter().copied().collect();
        let built = build(&config, &modalities, &widths, card.id2label.len())?;
        built.params.load(&read_safetensors(&dir.join("model.safetensors"))?)?;
        let preprocessor: Preprocessor = read_json(&dir.join("preprocessor_config.json"))?;
        let standardizer = if preprocessor.standardize.is_empty() {
            None
        } else {
            let mut tensors = BTreeMap::new();
            for (name, s) in &preprocessor.standardize {
                for (kind, values) in [("mean", &s.mean), ("std", &s.std)] {
                    let tensor = Tensor::from_slice(values, values.len(), &candle_core::Device::Cpu)?;
                    tensors.insert(format!("{kind}_{name}"), tensor);
                }
            }
            Some(Standardizer::from_tensors(&modalities, &tensors)?)
        };
        let widths = card.modalities.into_iter().zip(card.widths).collect();
        Ok(Self { built, config, widths, classes: card.id2label.into_values().collect(), standardizer })
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The configuration the model was trained with.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The model and its training step, for evaluation.
    pub fn built(&self) -> &Built {
        &self.built
    }

    /// Predicts every row of a file; modalities may be missing, a row must have at least one.
    pub fn predict_file(&self, path: &Path) -> Result<Vec<Prediction>, TrainError> {
        let (mut inputs, ids) = mm_data::load_inputs(path, &self.widths)?;
        if let Some(s) = &self.standardizer {
            s.apply_inputs(&path.display().to_string(), &mut inputs)?;
        }
        let mut out = Vec::with_capacity(ids.len());
        for start in (0..ids.len()).step_by(512) {
            let end = (start + 512).min(ids.len());
            out.extend(self.predict_rows(&inputs, &ids, start, end)?);
        }
        Ok(out)
    }

    fn predict_rows(
        &self,
        inputs: &Modal<Matrix>,
        ids: &[String],
        start: usize,
        end: usize,
    ) -> Result<Vec<Prediction>, TrainError> {
        let (dtype, device, rows) = (dtype(self.config.train.precision), &self.built.device, end - start);
        let tensors = inputs.try_map(|_, x| {
            let values = x.values[start * x.dim..end * x.dim].to_vec();
            Tensor::from_vec(values, (rows, x.dim), device)?.to_dtype(dtype)
        })?;
        let present = inputs.try_map(|_, x| {
            let flags: Vec<bool> = (start..end).map(|row| x.is_present(row)).collect();
            flags.contains(&false).then(|| Presence::new(flags, dtype, device)).transpose()
        })?;
        let batch = Batch {
            inputs: tensors,
            present,
            labels: vec![0; rows].into(),
            ids: (start..end).collect::<Vec<_>>().into(),
        };
        batch.check()?;
        let model: &dyn Multimodal = &self.built.model;
        let fwd = model.forward(&batch, Mode::Eval)?;
        let logits = to_host(&self.built.step.decide(model, &batch, &fwd)?)?;
        let classes = self.classes.len();
        let probabilities = mm_metrics::softmax_rows(&logits, classes)?;
        let decided = mm_metrics::argmax_rows(&logits, classes)?;
        let has = |row: usize| {
            let here = |(i, (name, _)): (usize, &(String, usize))| {
                inputs.values()[i].is_present(row).then(|| name.clone())
            };
            self.widths.iter().enumerate().filter_map(here).collect::<Vec<_>>()
        };
        Ok((0..rows)
            .map(|i| Prediction {
                id: ids[start + i].clone(),
                class: self.classes[decided[i] as usize].clone(),
                probabilities: probabilities[i * classes..(i + 1) * classes].to_vec(),
                present: has(start + i),
            })
            .collect())
    }
}
