//! Batches of rows, in an order that depends on nothing but its key.

use crate::input::Threads;
use crate::{DataError, Dataset, Input};
use candle_core::{DType, Device, Result, bail};
use mm_core::{Batch, ConfigError, Modal, Modalities, Presence, StepRng};

/// Cuts rows of a data set into batches.
#[derive(Debug, Clone)]
pub struct Loader<'a> {
    data: &'a Dataset,
    rows: Vec<usize>,
    batch_size: usize,
    merge_single: bool,
}

impl<'a> Loader<'a> {
    /// A loader of `rows`, `batch_size` (at least 1) at a time. The last batch of an epoch may be smaller.
    pub fn new(
        data: &'a Dataset,
        rows: Vec<usize>,
        batch_size: usize,
    ) -> std::result::Result<Self, DataError> {
        if batch_size == 0 {
            return Err(ConfigError::new("batch_size", 0, "must be at least 1").into());
        }
        if let Some(row) = rows.iter().find(|&&row| row >= data.rows()) {
            let rule = format!("row {row} does not exist, there are {} rows", data.rows());
            return Err(DataError::split(&data.origin, rule, "rows count from 0"));
        }
        Ok(Self { data, rows, batch_size, merge_single: false })
    }

    /// Whether a last batch of exactly one row joins the one before, because batch normalisation needs two rows.
    /// Default: no.
    #[must_use]
    pub fn merge_single(mut self, merge: bool) -> Self {
        self.merge_single = merge;
        self
    }

    /// The rows, in the order they were given.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// The data set.
    pub fn data(&self) -> &'a Dataset {
        self.data
    }

    /// Batches in an epoch.
    pub fn batches(&self) -> usize {
        let full = self.rows.len().div_ceil(self.batch_size);
        let merged =
            self.merge_single && self.batch_size > 1 && full > 1 && self.rows.len() % self.batch_size == 1;
        full - usize::from(merged)
    }

    /// The row lists of one epoch. With a key the rows are shuffled, and the order depends on the key and the set of
    /// rows only; give each epoch its own (`rng.stream("order").epoch(e)`). Without, they come as they were given.
    pub fn epoch(&self, shuffle: Option<StepRng>) -> Vec<Vec<usize>> {
        let mut rows = self.rows.clone();
        if let Some(rng) = shuffle {
            rows.sort_unstable();
            rng.draws().shuffle(&mut rows);
        }
        let mut batches: Vec<Vec<usize>> = rows.chunks(self.batch_size).map(<[usize]>::to_vec).collect();
        if batches.len() > self.batches()
            && let Some(single) = batches.pop()
            && let Some(last) = batches.last_mut()
        {
            last.extend(single);
        }
        batches
    }

    /// The batch of some rows: inputs of `dtype` on `device`, zeros where a modality is missing, and presence flags for
    /// modalities that some of these rows lack. Nothing is augmented.
    pub fn batch(&self, rows: &[usize], dtype: DType, device: &Device) -> Result<Batch> {
        self.make(rows, None, Threads::All, dtype, device)
    }

    /// As [`Loader::batch`], augmented as the data's settings say. What a row becomes depends on `key` and the row alone;
    /// give each epoch its own key (`rng.stream("augment").epoch(e)`).
    pub fn training_batch(
        &self,
        rows: &[usize],
        key: StepRng,
        dtype: DType,
        device: &Device,
    ) -> Result<Batch> {
        self.make(rows, Some(key), Threads::All, dtype, device)
    }

    pub(crate) fn make(
        &self,
        rows: &[usize],
        key: Option<StepRng>,
        threads: Threads,
        dtype: DType,
        device: &Device,
    ) -> Result<Batch> {
        if rows.is_empty() {
            bail!("a batch needs at least one row");
        }
        if let Some(row) = rows.iter().find(|&&row| row >= self.data.rows()) {
            bail!("row {row} does not exist in {}, there are {} rows", self.data.origin, self.data.rows());
        }
        let labels = rows.iter().map(|&row| self.data.labels[row]).collect();
        let from = (&self.data.modalities, &self.data.inputs);
        assemble(from, labels, rows, (key, threads), dtype, device)
    }
}

/// The batch of some rows of inputs without labels, for prediction: class 0 stands for each.
pub fn unlabelled_batch(
    modalities: &Modalities,
    inputs: &Modal<Input>,
    rows: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Batch> {
    assemble((modalities, inputs), vec![0; rows.len()], rows, (None, Threads::All), dtype, device)
}

fn assemble(
    (modalities, all): (&Modalities, &Modal<Input>),
    labels: Vec<u32>,
    rows: &[usize],
    (key, threads): (Option<StepRng>, Threads),
    dtype: DType,
    device: &Device,
) -> Result<Batch> {
    let mut inputs = Vec::with_capacity(all.len());
    let mut lengths = Vec::with_capacity(all.len());
    for (m, x) in all.iter() {
        let key = key.map(|key| key.stream(modalities.name(m)));
        let (x, own) = x.gather(rows, key, threads, dtype, device)?;
        inputs.push(x);
        lengths.push(own);
    }
    let present: Modal<Option<Presence>> = all.try_map(|_, x| {
        let flags: Vec<bool> = rows.iter().map(|&row| x.is_present(row)).collect();
        flags.contains(&false).then(|| Presence::new(flags, dtype, device)).transpose()
    })?;
    let (inputs, lengths) = (Modal::new(inputs), Modal::new(lengths));
    let batch = Batch { inputs, lengths, present, labels: labels.into(), ids: rows.into() };
    batch.check()?;
    Ok(batch)
}
