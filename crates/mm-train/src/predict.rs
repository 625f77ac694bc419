//! The selected model as a folder in the Hugging Face layout, and prediction from it.
//!
//! `config.json` holds the run's configuration, the modalities with the shapes of their rows and the class names;
//! `model.safetensors` the parameters; `preprocessor_config.json` the standardisation of each modality.

use crate::build::{Built, build};
use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optim::dtype;
use crate::record::{read_json, read_safetensors, safetensors_bytes, write_atomic, write_json};
use candle_core::Tensor;
use mm_core::model::to_host;
use mm_core::{Modal, Modalities, Mode, Multimodal, RowShape};
use mm_data::pack::Pack;
use mm_data::{DataConfig, Input, PackedConfig, Prepared, Standardizer, unlabelled_batch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Numbers of a batch and a modality in prediction, about.
const BATCH_NUMBERS: usize = 3_000_000;

/// `config.json` of a saved model.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Card {
    architectures: Vec<String>,
    modalities: Vec<String>,
    shapes: Vec<Shape>,
    id2label: BTreeMap<usize, String>,
    run: String,
}

/// What a row of a modality looks like.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Shape {
    dims: Vec<usize>,
    ragged: bool,
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

/// Mean and deviation by which the inputs of a modality were standardised for the model in a folder, under the names of
/// [`Standardizer::from_tensors`] for the modality `name`; `None` where they were not, or the folder is none of ours.
pub(crate) fn trained_statistics(
    dir: &Path,
    modality: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, Tensor>>, TrainError> {
    let path = dir.join("preprocessor_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let all: serde_json::Value = read_json(&path)?;
    let Some(own) = all.get("standardize").and_then(|all| all.get(modality)) else { return Ok(None) };
    let own: Statistics = serde_json::from_value(own.clone())
        .map_err(|e| TrainError::run(&path, format!("is damaged ({e}); restore it")))?;
    let mut tensors = BTreeMap::new();
    for (kind, values) in [("mean", &own.mean), ("std", &own.std)] {
        let tensor = Tensor::from_slice(values, values.len(), &candle_core::Device::Cpu)?;
        tensors.insert(format!("{kind}_{name}"), tensor);
    }
    Ok(Some(tensors))
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
        shapes: data
            .inputs
            .values()
            .iter()
            .map(Input::shape)
            .map(|RowShape { dims, ragged }| Shape { dims, ragged })
            .collect(),
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
    modalities: Modalities,
    shapes: Modal<RowShape>,
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
        if card.shapes.len() != modalities.len() {
            return Err(TrainError::run(
                &dir,
                "config.json names another number of shapes than of modalities",
            ));
        }
        let shapes = card.shapes.into_iter().map(|Shape { dims, ragged }| RowShape { dims, ragged });
        let shapes: Modal<RowShape> = shapes.collect();
        let built = build(&config, &modalities, &shapes, card.id2label.len())?;
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
        let classes = card.id2label.into_values().collect();
        Ok(Self { built, config, modalities, shapes, classes, standardizer })
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

    /// Predicts every row of a file, or of a pack's folder; modalities may be missing, a row must have at least one.
    pub fn predict_file(&self, path: &Path) -> Result<Vec<Prediction>, TrainError> {
        let (inputs, ids) = if path.is_dir() { self.pack(path)? } else { self.vectors(path)? };
        let widest = self.shapes.values().iter().map(RowShape::elements).max().unwrap_or(1).max(1);
        let size = (BATCH_NUMBERS / widest).clamp(1, 512);
        let mut out = Vec::with_capacity(ids.len());
        for start in (0..ids.len()).step_by(size) {
            let rows: Vec<usize> = (start..(start + size).min(ids.len())).collect();
            out.extend(self.predict_rows(&inputs, &ids, &rows)?);
        }
        Ok(out)
    }

    /// The rows of a file of vectors.
    fn vectors(&self, path: &Path) -> Result<(Modal<Input>, Vec<String>), TrainError> {
        let mut widths = Vec::new();
        for (m, shape) in self.shapes.iter() {
            let [width] = shape.dims[..] else {
                let reason = format!(
                    "the model takes rows of {shape} as `{}`, which no file of vectors has: give the folder of a pack \
                     (`mm data prepare`)",
                    self.modalities.name(m)
                );
                return Err(TrainError::run(path, reason));
            };
            widths.push((self.modalities.name(m).to_owned(), width));
        }
        let (mut inputs, ids) = mm_data::load_inputs(path, &widths)?;
        if let Some(s) = &self.standardizer {
            s.apply_inputs(&path.display().to_string(), &mut inputs)?;
        }
        Ok((inputs.map(|_, x| Input::Matrix(x.clone())), ids))
    }

    /// The rows of a pack that was prepared as the training data were.
    fn pack(&self, path: &Path) -> Result<(Modal<Input>, Vec<String>), TrainError> {
        let DataConfig::Packed(trained) = &self.config.data else {
            let reason =
                "is a folder, but the model was trained on vectors: give a .safetensors or .csv file";
            return Err(TrainError::run(path, reason));
        };
        let modalities = Some(self.modalities.names().to_vec());
        let config = PackedConfig { path: path.into(), modalities, ..trained.clone() };
        let mut data = Pack::open(path)?.dataset(&config)?;
        for (m, x) in data.inputs.iter() {
            let (found, own) = (x.shape(), &self.shapes[m]);
            // The longest row may be longer or shorter than that of the training data.
            let skip = usize::from(own.ragged);
            if found.ragged != own.ragged || found.dims[skip..] != own.dims[skip..] {
                let reason = format!(
                    "has rows of {found} as `{}`, but the model was made for {own}: prepare the data as for training",
                    self.modalities.name(m)
                );
                return Err(TrainError::run(path, reason));
            }
        }
        if let Some(s) = &self.standardizer {
            s.apply(&mut data)?;
        }
        let ids = data.ids.clone();
        Ok((data.inputs, ids))
    }

    fn predict_rows(
        &self,
        inputs: &Modal<Input>,
        ids: &[String],
        rows: &[usize],
    ) -> Result<Vec<Prediction>, TrainError> {
        let (dtype, device) = (dtype(self.config.train.precision), &self.built.device);
        let batch = unlabelled_batch(&self.modalities, inputs, rows, dtype, device)?;
        let model: &dyn Multimodal = &self.built.model;
        let fwd = model.forward(&batch, Mode::Eval)?;
        let logits = to_host(&self.built.step.decide(model, &batch, &fwd)?)?;
        let classes = self.classes.len();
        let probabilities = mm_metrics::softmax_rows(&logits, classes)?;
        let decided = mm_metrics::argmax_rows(&logits, classes)?;
        let has = |row: usize| {
            let here = inputs.iter().filter(|(_, x)| x.is_present(row));
            here.map(|(m, _)| self.modalities.name(m).to_owned()).collect::<Vec<_>>()
        };
        Ok((0..rows.len())
            .map(|i| Prediction {
                id: ids[rows[i]].clone(),
                class: self.classes[decided[i] as usize].clone(),
                probabilities: probabilities[i * classes..(i + 1) * classes].to_vec(),
                present: has(rows[i]),
            })
            .collect())
    }
}
