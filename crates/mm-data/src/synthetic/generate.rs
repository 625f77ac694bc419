//! Draws a synthetic set.

use super::{SourceConfig, SyntheticConfig};
use crate::dataset::hex;
use crate::{DataError, Dataset, Matrix, Splits};
use mm_core::{Modal, Modalities, StepRng};
use mm_kernels::rng::Draws;
use sha2::{Digest, Sha256};

/// Changes whenever the same settings would give other numbers.
const GENERATOR: &str = "synthetic-1";

/// What a row tells about its class in one modality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The class mean at full strength; 0 in the column.
    Informative = 0,
    /// The class mean scaled down; 1.
    Weak = 1,
    /// No class mean; 2.
    Absent = 2,
    /// The mean of another class; 3.
    Conflict = 3,
}

/// A generated set with what it was made of.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// The rows as a model sees them, all sources.
    pub dataset: Dataset,
    /// The parts as generated.
    pub splits: Splits,
    /// What lies behind each modality.
    pub truth: Modal<Truth>,
}

/// What lies behind one modality.
#[derive(Debug, Clone)]
pub struct Truth {
    /// (rows, k): the latent of each row, without nuisance.
    pub latents: Matrix,
    /// (classes, k): the class means.
    pub means: Matrix,
    /// The state of each row.
    pub states: Vec<State>,
    /// The class whose mean each row shows; `None` where absent.
    pub shown: Vec<Option<u32>>,
}

/// Everything about one modality while rows are drawn.
struct Source<'a> {
    config: &'a SourceConfig,
    means: Vec<f64>,
    map: Map,
    rng: StepRng,
    values: Vec<f32>,
    latents: Vec<f32>,
    states: Vec<State>,
    shown: Vec<Option<u32>>,
    missing: Vec<f64>,
}

impl SyntheticConfig {
    /// Generates all sources; the same settings give the same bits on the same platform.
    pub fn generate(&self) -> Result<Synthetic, DataError> {
        self.check().map_err(|e| e.within("data"))?;
        let rng = StepRng::new(self.seed).stream("synthetic");
        let mut labels = Vec::with_capacity(self.rows());
        let mut keys = Vec::with_capacity(self.rows());
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for (part, count) in [self.n_train, self.n_val, self.n_test].into_iter().enumerate() {
            let mut classes: Vec<u32> = (0..count).map(|i| (i % self.classes) as u32).collect();
            rng.stream("labels").sample(part as u64).draws().shuffle(&mut classes);
            parts[part] = (labels.len()..labels.len() + count).collect();
            labels.extend(classes);
            keys.extend((0..count as u64).map(|i| (part as u64) << 40 | i));
        }
        let mut sources: Vec<Source<'_>> =
            self.sources.iter().map(|config| Source::new(config, self.classes, rng)).collect();
        for source in &mut sources {
            for (&label, &key) in labels.iter().zip(&keys) {
                source.draw(label, self.classes, key);
            }
        }
        let present = presence(&sources, &keys, rng);
        let modalities = Modalities::new(self.sources.iter().map(|s| s.name.clone()))?;
        let mut inputs = Vec::new();
        let mut truth = Vec::new();
        let rows = labels.len();
        for (source, present) in sources.into_iter().zip(present) {
            let Source { config, means, values, latents, states, shown, .. } = source;
            inputs.push(Matrix::new(rows, config.dim, values, present)?);
            let means = means.iter().map(|&v| v as f32).collect();
            truth.push(Truth {
                latents: Matrix::new(rows, config.latent, latents, None)?,
                means: Matrix::new(self.classes, config.latent, means, None)?,
                states,
                shown,
            });
        }
        let name = "synthetic".to_owned();
        let mut set =
            Dataset::assemble(name.clone(), name, modalities, self.classes, Modal::new(inputs), labels)?;
        for (source, truth) in self.sources.iter().zip(&truth) {
            let states = truth.states.iter().map(|&s| s as i64).collect();
            let shown = truth.shown.iter().map(|s| s.map_or(-1, i64::from)).collect();
            set = set.with_column(format!("state_{}", source.name), states)?;
            set = set.with_column(format!("shown_{}", source.name), shown)?;
        }
        let [train, val, test] = parts;
        set = set.with_index("train_index", train.clone())?;
        if !val.is_empty() {
            set = set.with_index("val_index", val.clone())?;
        }
        set = set.with_index("test_index", test.clone())?;
        set.hash = self.hash();
        Ok(Synthetic { dataset: set, splits: Splits { train, val, test }, truth: Modal::new(truth) })
    }

    /// Of the settings that decide about the numbers.
    fn hash(&self) -> String {
        let plain = Self {
            modalities: None,
            standardize: true,
            split: crate::SplitConfig::default(),
            ..self.clone()
        };
        let text = serde_json::to_string(&plain).unwrap_or_default();
        hex(&Sha256::digest(format!("{GENERATOR} {text}")))
    }
}

/// Which rows have each modality. Where a row would have none it keeps one at random.
fn presence(sources: &[Source<'_>], keys: &[u64], rng: StepRng) -> Vec<Option<Vec<bool>>> {
    let mut present: Vec<Vec<bool>> =
        sources.iter().map(|s| s.missing.iter().map(|&u| u >= s.config.missing).collect()).collect();
    for (row, &key) in keys.iter().enumerate() {
        if present.iter().all(|p| !p[row]) {
            let kept = rng.stream("kept").sample(key).draws().below(sources.len());
            present[kept][row] = true;
        }
    }
    present.into_iter().map(|p| p.contains(&false).then_some(p)).collect()
}

impl<'a> Source<'a> {
    fn new(config: &'a SourceConfig, classes: usize, rng: StepRng) -> Self {
        let rng = rng.stream("source").stream(&config.name);
        let mut means = Vec::with_capacity(classes * config.latent);
        let mut draws = rng.stream("means").draws();
        for _ in 0..classes {
            let direction: Vec<f64> = (0..config.latent).map(|_| draws.normal()).collect();
            let norm = direction.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
            means.extend(direction.iter().map(|v| v / norm * config.separation));
        }
        Self {
            config,
            means,
            map: Map::new(config, rng.stream("map")),
            rng: rng.stream("row"),
            values: Vec::new(),
            latents: Vec::new(),
            states: Vec::new(),
            shown: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// Appends the row `key` of class `label`.
    fn draw(&mut self, label: u32, classes: usize, key: u64) {
        let SourceConfig { absent, conflict, weak, latent, nuisance, .. } = *self.config;
        let mut draws = self.rng.sample(key).draws();
        let (u, other, missing) = (draws.uniform(), draws.below(classes - 1) as u32, draws.uniform());
        let state = match u {
            u if u < absent => State::Absent,
            u if u < absent + conflict => State::Conflict,
            u if u < absent + conflict + weak => State::Weak,
            _ => State::Informative,
        };
        let (shown, scale) = match state {
            State::Informative => (label, 1.0),
            State::Weak => (label, self.config.weak_scale),
            State::Absent => (label, 0.0),
            State::Conflict => (other + u32::from(other >= label), 1.0),
        };
        let mean = &self.means[shown as usize * latent..][..latent];
        let mut z: Vec<f64> = mean.iter().map(|m| scale * m + draws.normal()).collect();
        self.latents.extend(z.iter().map(|&v| v as f32));
        z.extend((0..nuisance).map(|_| self.config.nuisance_scale * draws.normal()));
        let x = self.map.apply(z);
        self.values.extend(x.iter().map(|v| (v + self.config.noise * draws.normal()) as f32));
        self.states.push(state);
        self.shown.push((state != State::Absent).then_some(shown));
        self.missing.push(missing);
    }
}

/// A fixed random map: tanh layers, then a linear one.
struct Map {
    gain: f64,
    layers: Vec<Layer>,
    last: Layer,
}

struct Layer {
    inputs: usize,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Map {
    fn new(config: &SourceConfig, rng: StepRng) -> Self {
        let mut draws = rng.draws();
        let mut width = config.latent + config.nuisance;
        let mut layers = Vec::new();
        for _ in 0..config.depth {
            layers.push(Layer::new(width, config.hidden, 0.5, &mut draws));
            width = config.hidden;
        }
        // With a small gain the activations are small: dividing by it keeps features of order 1 beside the noise.
        let mut last = Layer::new(width, config.dim, 0.0, &mut draws);
        if config.depth > 0 {
            let scale = config.hardness.min(1.0).powi(config.depth as i32).recip();
            for w in &mut last.weight {
                *w *= scale;
            }
        }
        Self { gain: config.hardness, layers, last }
    }

    fn apply(&self, mut z: Vec<f64>) -> Vec<f64> {
        for layer in &self.layers {
            z = layer.apply(&z);
            for v in &mut z {
                *v = (self.gain * *v).tanh();
            }
        }
        self.last.apply(&z)
    }
}

impl Layer {
    fn new(inputs: usize, outputs: usize, bias: f64, draws: &mut Draws) -> Self {
        let scale = (inputs as f64).sqrt().recip();
        let weight = (0..inputs * outputs).map(|_| scale * draws.normal()).collect();
        Self { inputs, weight, bias: (0..outputs).map(|_| bias * draws.normal()).collect() }
    }

    fn apply(&self, x: &[f64]) -> Vec<f64> {
        let rows = self.weight.chunks_exact(self.inputs);
        let dot = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        rows.zip(&self.bias).map(|(row, bias)| dot(row) + bias).collect()
    }
}
