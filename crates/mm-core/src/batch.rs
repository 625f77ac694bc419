//! A batch of rows with one input tensor per modality, some of which may be missing for single rows.

use crate::{Modal, Modality};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::Arc;

/// Which rows of a batch have a modality.
#[derive(Debug, Clone)]
pub struct Presence {
    rows: Arc<[bool]>,
    mask: Tensor,
}

impl Presence {
    /// From one flag per row; the mask tensor is (B, 1) of `dtype`, 1 where present.
    pub fn new(rows: Vec<bool>, dtype: DType, device: &Device) -> Result<Self> {
        let values: Vec<f32> = rows.iter().map(|&p| f32::from(u8::from(p))).collect();
        let mask = Tensor::from_vec(values, (rows.len(), 1), device)?.to_dtype(dtype)?;
        Ok(Self { rows: rows.into(), mask })
    }

    /// One flag per row.
    pub fn rows(&self) -> &[bool] {
        &self.rows
    }

    /// How many rows have the modality.
    pub fn count(&self) -> usize {
        self.rows.iter().filter(|&&p| p).count()
    }

    /// (B, 1), 1 where present and 0 where missing.
    pub fn mask(&self) -> &Tensor {
        &self.mask
    }

    /// `x` (B, …) with the rows that lack the modality set to zero.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = vec![1; x.rank()];
        shape[0] = self.rows.len();
        x.broadcast_mul(&self.mask.to_dtype(x.dtype())?.reshape(shape)?)
    }

    /// The flags as weights for a masked mean.
    pub fn weights(&self) -> Vec<f64> {
        self.rows.iter().map(|&p| f64::from(u8::from(p))).collect()
    }
}

/// A batch: inputs (B, …) per modality, labels (B), ids (B).
#[derive(Debug, Clone)]
pub struct Batch {
    /// One input tensor per modality, the batch first. Rows whose modality is missing hold zeros.
    pub inputs: Modal<Tensor>,
    /// Which rows have each modality; `None` means all of them.
    pub present: Modal<Option<Presence>>,
    /// The class of each row.
    pub labels: Arc<[u32]>,
    /// The position of each row in its data set.
    pub ids: Arc<[usize]>,
}

impl Batch {
    /// A batch in which every modality is present.
    pub fn new(inputs: Modal<Tensor>, labels: Vec<u32>) -> Result<Self> {
        let present = inputs.map(|_, _| None);
        let ids = (0..labels.len()).collect::<Vec<_>>().into();
        let batch = Self { inputs, present, labels: labels.into(), ids };
        batch.check()?;
        Ok(batch)
    }

    /// Fails where inputs, flags, labels and ids disagree about the number of rows.
    pub fn check(&self) -> Result<()> {
        let rows = self.labels.len();
        if self.ids.len() != rows {
            bail!("a batch has {rows} labels but {} ids", self.ids.len());
        }
        if self.inputs.len() != self.present.len() {
            bail!("a batch has {} inputs but {} presence masks", self.inputs.len(), self.present.len());
        }
        for (m, x) in self.inputs.iter() {
            if x.rank() == 0 || x.dim(0)? != rows {
                bail!("modality {} has shape {:?} in a batch of {rows} rows", m.index(), x.shape());
            }
            if let Some(p) = &self.present[m]
                && p.rows().len() != rows
            {
                bail!("modality {} has {} presence flags for {rows} rows", m.index(), p.rows().len());
            }
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Number of modalities.
    pub fn modalities(&self) -> usize {
        self.inputs.len()
    }

    /// Weights of the rows for losses of modality `m`: `None` if it is present everywhere.
    pub fn weights(&self, m: Modality) -> Option<Vec<f64>> {
        self.present[m].as_ref().map(Presence::weights)
    }

    /// The rows at `keep`, in that order.
    pub fn select(&self, keep: &[u32]) -> Result<Self> {
        if let Some(row) = keep.iter().find(|&&r| r as usize >= self.rows()) {
            bail!("row {row} selected from a batch of {} rows", self.rows());
        }
        let Some((_, first)) = self.inputs.iter().next() else { return Ok(self.clone()) };
        let index = Tensor::new(keep, first.device())?;
        let pick = |rows: &[bool]| keep.iter().map(|&r| rows[r as usize]).collect::<Vec<bool>>();
        Ok(Self {
            inputs: self.inputs.try_map(|_, x| x.index_select(&index, 0))?,
            present: self.present.try_map(|_, p| {
                p.as_ref().map(|p| Presence::new(pick(p.rows()), p.mask.dtype(), p.mask.device())).transpose()
            })?,
            labels: keep.iter().map(|&r| self.labels[r as usize]).collect(),
            ids: keep.iter().map(|&r| self.ids[r as usize]).collect(),
        })
    }
}
