//! Batches of rows, in an order that depends on nothing but its key.

use crate::{DataError, Dataset};
use candle_core::{DType, Device, Result, Tensor, bail};
use mm_core::{Batch, ConfigError, Modal, Presence, StepRng};

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
    /// modalities that some of these rows lack.
    pub fn batch(&self, rows: &[usize], dtype: DType, device: &Device) -> Result<Batch> {
        if rows.is_empty() {
            bail!("a batch needs at least one row");
        }
        if let Some(row) = rows.iter().find(|&&row| row >= self.data.rows()) {
            bail!("row {row} does not exist in {}, there are {} rows", self.data.origin, self.data.rows());
        }
        let inputs = self.data.inputs.try_map(|_, x| {
            let mut values = Vec::with_capacity(rows.len() * x.dim);
            for &row in rows {
                values.extend_from_slice(x.row(row));
            }
            Tensor::from_vec(values, (rows.len(), x.dim), device)?.to_dtype(dtype)
        })?;
        let present: Modal<Option<Presence>> = self.data.inputs.try_map(|_, x| {
            let flags: Vec<bool> = rows.iter().map(|&row| x.is_present(row)).collect();
            flags.contains(&false).then(|| Presence::new(flags, dtype, device)).transpose()
        })?;
        let labels = rows.iter().map(|&row| self.data.labels[row]).collect();
        let batch = Batch { inputs, present, labels, ids: rows.into() };
        batch.check()?;
        Ok(batch)
    }
}
