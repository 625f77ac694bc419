//! Evaluation of a model on a part of the data.

use crate::error::TrainError;
use crate::result::{Predictions, Scores, Unimodal};
use candle_core::{DType, Device, Tensor};
use mm_balance::TrainStep;
use mm_core::model::{pooled, to_host};
use mm_core::{Batch, Forward, Modal, Modality, Mode, Multimodal, Presence};
use mm_data::{Batches, Dataset, Loader, Prefetch, Recipe};
use mm_metrics as metrics;
use std::collections::BTreeMap;

/// Rows of a batch, at most.
const EVAL_BATCH: usize = 512;
/// Numbers of a batch and a modality, about: a batch of images is smaller than one of vectors.
const EVAL_NUMBERS: usize = 1_000_000;
/// Above this many modalities the 2^M coalitions are not evaluated.
const SHAPLEY_LIMIT: usize = 6;

/// What evaluation needs of a run.
#[derive(Debug, Clone, Copy)]
pub struct Evaluator<'a> {
    /// The model.
    pub model: &'a dyn Multimodal,
    /// The decision rule.
    pub step: &'a dyn TrainStep,
    /// The data.
    pub data: &'a Dataset,
    /// Element type.
    pub dtype: DType,
    /// Device.
    pub device: &'a Device,
    /// How batches are made ahead of their use.
    pub prefetch: Prefetch,
}

/// Rows of logits on the host, row-major.
#[derive(Debug, Clone, Default)]
struct Logits(Vec<f64>);

impl Logits {
    fn push(&mut self, logits: &Tensor) -> Result<(), TrainError> {
        self.0.extend(to_host(logits)?);
        Ok(())
    }
}

/// Accuracy and cross-entropy of a part, and each modality's accuracy where it costs nothing.
#[derive(Debug, Clone)]
pub struct Quick {
    /// Accuracy.
    pub accuracy: f64,
    /// Cross-entropy; NaN where a logit is not finite.
    pub loss: f64,
    /// Accuracy of own heads, else of split logits.
    pub unimodal: Option<Modal<f64>>,
}

/// A part of the data as features: batches whose inputs are what the encoders made of them. Everything that is reported
/// on a part is computed from this, so each row passes through its encoders once.
#[derive(Debug, Clone)]
pub struct Encoded {
    batches: Vec<Batch>,
    rows: usize,
}

impl Evaluator<'_> {
    fn with_batches<T>(
        &self,
        rows: &[usize],
        f: impl FnOnce(&mut Batches<'_>) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let widest = self.data.inputs.values().iter().map(|x| x.shape().elements()).max().unwrap_or(1);
        let size = (EVAL_NUMBERS / widest.max(1)).clamp(1, EVAL_BATCH);
        let loader = Loader::new(self.data, rows.to_vec(), size)?;
        let recipe = Recipe { key: None, dtype: self.dtype, device: self.device };
        loader.with_batches(&loader.epoch(None), recipe, self.prefetch, f)
    }

    /// Passes the rows of a part through the encoders.
    pub fn encode(&self, rows: &[usize]) -> Result<Encoded, TrainError> {
        self.with_batches(rows, |all| {
            let mut batches = Vec::new();
            for batch in all {
                let batch = batch?;
                let inputs = self.model.encode_all(&batch, Mode::Eval)?.map(|_, h| h.detach());
                let lengths = inputs.map(|_, _| None);
                batches.push(Batch { inputs, lengths, ..batch });
            }
            Ok(Encoded { batches, rows: rows.len() })
        })
    }

    /// The rest of the forward pass.
    fn fuse(&self, batch: &Batch) -> Result<Forward, TrainError> {
        Ok(self.model.fuse(batch.inputs.clone(), &batch.present, Mode::Eval)?)
    }

    /// The numbers that choose an epoch.
    pub fn quick(&self, rows: &[usize]) -> Result<Quick, TrainError> {
        self.with_batches(rows, |batches| self.quick_over(batches, rows.len()))
    }

    fn quick_over(&self, batches: &mut Batches<'_>, rows: usize) -> Result<Quick, TrainError> {
        let count = self.model.modalities().len();
        let classes = self.model.classes();
        let (mut right, mut loss) = (0usize, 0.0);
        let (mut uni_right, mut uni_rows) = (vec![0usize; count], vec![0usize; count]);
        let mut known = true;
        for batch in batches {
            let batch = batch?;
            let fwd = self.model.forward(&batch, Mode::Eval)?;
            let logits = to_host(&self.step.decide(self.model, &batch, &fwd)?)?;
            if logits.iter().any(|z| !z.is_finite()) {
                return Ok(Quick { accuracy: 0.0, loss: f64::NAN, unimodal: None });
            }
            let decided = metrics::argmax_rows(&logits, classes)?;
            right += decided.iter().zip(batch.labels.iter()).filter(|(a, b)| a == b).count();
            loss += nll(&logits, &batch.labels, classes);
            let Some(alone) = fwd.heads.as_ref().or(fwd.split.as_ref()) else {
                known = false;
                continue;
            };
            for (m, z) in alone.iter() {
                let (hits, seen) = hits(&metrics::argmax_rows(&to_host(z)?, classes)?, &batch, m);
                uni_right[m.index()] += hits;
                uni_rows[m.index()] += seen;
            }
        }
        let share = |m: Modality| uni_right[m.index()] as f64 / uni_rows[m.index()].max(1) as f64;
        Ok(Quick {
            accuracy: right as f64 / rows as f64,
            loss: loss / rows as f64,
            unimodal: known.then(|| Modal::from_fn(count, share)),
        })
    }

    /// The decisions of a part.
    pub fn predictions(&self, part: &Encoded) -> Result<Predictions, TrainError> {
        let classes = self.model.classes();
        let mut all = Logits::default();
        let mut out = Predictions::default();
        for batch in &part.batches {
            let fwd = self.fuse(batch)?;
            all.push(&self.step.decide(self.model, batch, &fwd)?)?;
            out.ids.extend(batch.ids.iter());
            out.labels.extend(batch.labels.iter());
            for row in 0..batch.rows() {
                out.present.push(batch.present.values().iter().map(|p| here(p.as_ref(), row)).collect());
            }
        }
        out.predicted = metrics::argmax_rows(&all.0, classes)?;
        out.logits = all.0.chunks(classes).map(<[f64]>::to_vec).collect();
        Ok(out)
    }

    /// Each modality alone by each of four ways; probes learn from at most `probe_rows` of the `train` rows.
    pub fn unimodal(
        &self,
        train: &[usize],
        test: &Encoded,
        probe_rows: usize,
    ) -> Result<BTreeMap<String, Unimodal>, TrainError> {
        let names = self.model.modalities();
        let classes = self.model.classes();
        let mut tally: Vec<[Tally; 3]> = names.iter().map(|_| Default::default()).collect();
        for batch in &test.batches {
            let fwd = self.fuse(batch)?;
            for m in names.iter() {
                if let Some(heads) = &fwd.heads {
                    tally[m.index()][0].add(&heads[m], batch, m, classes)?;
                }
                if let Some(split) = &fwd.split {
                    tally[m.index()][1].add(&split[m], batch, m, classes)?;
                }
                let masked = self.coalition(batch, &|j| j == m)?;
                tally[m.index()][2].add(&masked, batch, m, classes)?;
            }
        }
        // Evenly spaced: a file may be sorted by class.
        let count = train.len().min(probe_rows);
        let train: Vec<usize> = (0..count).map(|i| train[i * train.len() / count]).collect();
        let learned = self.features(&self.encode(&train)?)?;
        let tested = self.features(test)?;
        names
            .iter()
            .map(|m| {
                let [head, split, masked] = &tally[m.index()];
                let probe = probe(&learned[m], &tested[m], classes)?;
                let one =
                    Unimodal { head: head.share(), split: split.share(), masked: masked.share(), probe };
                Ok((names.name(m).to_owned(), one))
            })
            .collect()
    }

    /// Each modality's Shapley share of the accuracy on a part; `None` for more than six modalities.
    pub fn shapley(&self, part: &Encoded) -> Result<Option<BTreeMap<String, f64>>, TrainError> {
        let names = self.model.modalities();
        let count = names.len();
        if !(2..=SHAPLEY_LIMIT).contains(&count) {
            return Ok(None);
        }
        let classes = self.model.classes();
        let mut right = vec![0usize; 1 << count];
        for batch in &part.batches {
            for (mask, right) in right.iter_mut().enumerate() {
                let logits = self.coalition(batch, &|m| mask >> m.index() & 1 == 1)?;
                let decided = metrics::argmax_rows(&to_host(&logits)?, classes)?;
                *right += decided.iter().zip(batch.labels.iter()).filter(|(a, b)| a == b).count();
            }
        }
        let values: Vec<f64> = right.iter().map(|&r| r as f64 / part.rows as f64).collect();
        let shares = metrics::shapley_shares(&values)?;
        Ok(shares.map(|s| names.names().iter().cloned().zip(s).collect()))
    }

    /// Distances between the centroids of unit-length features, by pair.
    pub fn modality_gap(&self, part: &Encoded) -> Result<BTreeMap<String, f64>, TrainError> {
        let names = self.model.modalities();
        let features = self.features(part)?;
        let mut gaps = BTreeMap::new();
        for a in names.iter() {
            for b in names.iter().skip(a.index() + 1) {
                let (x, y) = (&features[a], &features[b]);
                if x.dim == y.dim
                    && let Ok(gap) = metrics::modality_gap(&x.values, &y.values, x.dim)
                {
                    gaps.insert(format!("{}|{}", names.name(a), names.name(b)), gap.distance);
                }
            }
        }
        Ok(gaps)
    }

    /// The decision when only the modalities of a coalition are there.
    fn coalition(&self, batch: &Batch, member: &dyn Fn(Modality) -> bool) -> Result<Tensor, TrainError> {
        let alone = batch.inputs.try_map(|m, h| if member(m) { Ok(h.clone()) } else { h.zeros_like() })?;
        let present = batch.present.try_map(|m, p| {
            if member(m) {
                return Ok(p.clone());
            }
            Presence::new(vec![false; batch.rows()], self.dtype, self.device).map(Some)
        })?;
        let batch = Batch { present, ..batch.clone() };
        let fwd = self.model.fuse(alone, &batch.present, Mode::Eval)?;
        Ok(self.step.decide(self.model, &batch, &fwd)?)
    }

    /// Pooled features of the rows that have each modality, with their labels.
    fn features(&self, part: &Encoded) -> Result<Modal<Frozen>, TrainError> {
        let mut out = Modal::from_fn(self.model.modalities().len(), |_| Frozen::default());
        for batch in &part.batches {
            for (m, h) in batch.inputs.iter() {
                let h = pooled(h)?;
                let frozen = &mut out[m];
                frozen.dim = h.dim(1)?;
                let values = to_host(&h)?;
                for (row, features) in values.chunks(frozen.dim).enumerate() {
                    if here(batch.present[m].as_ref(), row) {
                        frozen.values.extend_from_slice(features);
                        frozen.labels.push(batch.labels[row]);
                    }
                }
            }
        }
        Ok(out)
    }
}

#[derive(Debug, Default)]
struct Frozen {
    values: Vec<f64>,
    labels: Vec<u32>,
    dim: usize,
}

#[derive(Debug, Default)]
struct Tally {
    hits: usize,
    rows: usize,
}

impl Tally {
    fn add(&mut self, logits: &Tensor, batch: &Batch, m: Modality, classes: usize) -> Result<(), TrainError> {
        let (hits, rows) = hits(&metrics::argmax_rows(&to_host(logits)?, classes)?, batch, m);
        self.hits += hits;
        self.rows += rows;
        Ok(())
    }

    fn share(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.hits as f64 / self.rows as f64)
    }
}

fn here(present: Option<&Presence>, row: usize) -> bool {
    present.is_none_or(|p| p.rows()[row])
}

/// Right decisions and rows, among the rows that have the modality.
fn hits(decided: &[u32], batch: &Batch, m: Modality) -> (usize, usize) {
    let rows = (0..batch.rows()).filter(|&row| here(batch.present[m].as_ref(), row));
    rows.fold((0, 0), |(hits, n), row| (hits + usize::from(decided[row] == batch.labels[row]), n + 1))
}

fn probe(train: &Frozen, test: &Frozen, classes: usize) -> Result<Option<f64>, TrainError> {
    let mut seen = train.labels.clone();
    seen.sort_unstable();
    seen.dedup();
    if seen.len() < 2 || test.labels.is_empty() {
        return Ok(None);
    }
    let config = metrics::ProbeConfig::default();
    let fitted = metrics::LinearProbe::fit(
        &train.values,
        train.labels.len(),
        train.dim,
        &train.labels,
        classes,
        &config,
    )?;
    Ok(Some(fitted.accuracy(&test.values, &test.labels)?))
}

/// Σ -log softmax(z)[y] over rows.
fn nll(logits: &[f64], labels: &[u32], classes: usize) -> f64 {
    logits
        .chunks(classes)
        .zip(labels)
        .map(|(z, &y)| {
            let high = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            high + z.iter().map(|x| (x - high).exp()).sum::<f64>().ln() - z[y as usize]
        })
        .sum()
}

/// All metrics of a part from its decisions.
pub fn scores(predictions: &Predictions, classes: usize) -> Result<Scores, TrainError> {
    let logits: Vec<f64> = predictions.logits.iter().flatten().copied().collect();
    let labels = &predictions.labels;
    let probabilities = metrics::softmax_rows(&logits, classes)?;
    let view = metrics::Scores::new(&probabilities, labels, classes)?;
    let confusion = metrics::ConfusionMatrix::new(labels, &predictions.predicted, classes)?;
    Ok(Scores {
        accuracy: metrics::accuracy(labels, &predictions.predicted)?,
        loss: nll(&logits, labels, classes) / labels.len() as f64,
        macro_f1: metrics::macro_f1(&confusion),
        micro_f1: metrics::micro_f1(&confusion),
        mcc: metrics::matthews_correlation(&confusion),
        kappa: metrics::cohen_kappa(&confusion),
        top5: if classes > 5 { Some(metrics::top_k_accuracy(&view, 5)?) } else { None },
        auroc: metrics::auroc(&view).mean,
        average_precision: metrics::average_precision(&view).mean,
        ece: metrics::expected_calibration_error(&view, metrics::DEFAULT_BINS)?,
        brier: metrics::brier(&view)?,
        confusion: confusion.counts().chunks(classes).map(<[u64]>::to_vec).collect(),
    })
}
