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

/// What one row of a modality looks like.
///
/// ```
/// use mm_core::RowShape;
/// assert_eq!(RowShape::fixed([257, 188]).to_string(), "257 x 188");
/// assert_eq!(RowShape::ragged([400, 80]).to_string(), "up to 400 x 80");
/// assert_eq!(RowShape::fixed([35]).elements(), 35);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RowShape {
    /// Sizes of a row without the batch's axis; at least one, none of them 0. Where `ragged`, the first is that of the
    /// longest row.
    pub dims: Vec<usize>,
    /// Whether rows differ in their first size: a batch fills them with zeros to one length and says their lengths.
    pub ragged: bool,
}

impl RowShape {
    /// Rows of one size.
    pub fn fixed(dims: impl Into<Vec<usize>>) -> Self {
        Self { dims: dims.into(), ragged: false }
    }

    /// Rows that differ in their first size, which is `dims[0]` at most.
    pub fn ragged(dims: impl Into<Vec<usize>>) -> Self {
        Self { dims: dims.into(), ragged: true }
    }

    /// Numbers in a row, in the longest one where they differ.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

impl std::fmt::Display for RowShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(ToString::to_string).collect();
        write!(f, "{}{}", if self.ragged { "up to " } else { "" }, dims.join(" x "))
    }
}

/// A batch: inputs (B, …) per modality, labels (B), ids (B).
#[derive(Debug, Clone)]
pub struct Batch {
    /// One input tensor per modality, the batch first. Rows whose modality is missing hold zeros.
    pub inputs: Modal<Tensor>,
    /// How many places of the second axis of each row are real, where rows differ in length; what follows is zero.
    /// `None` means all of them. A row whose modality is missing has length 0.
    pub lengths: Modal<Option<Arc<[usize]>>>,
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
        let lengths = inputs.map(|_, _| None);
        let ids = (0..labels.len()).collect::<Vec<_>>().into();
        let batch = Self { inputs, lengths, present, labels: labels.into(), ids };
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
        if self.inputs.len() != self.lengths.len() {
            bail!("a batch has {} inputs but {} lists of lengths", self.inputs.len(), self.lengths.len());
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
            if let Some(lengths) = &self.lengths[m] {
                let places = if x.rank() > 1 { x.dim(1)? } else { 0 };
                if lengths.len() != rows {
                    bail!("modality {} has {} lengths for {rows} rows", m.index(), lengths.len());
                }
                if let Some(length) = lengths.iter().find(|&&length| length > places) {
                    bail!("modality {} has a row of length {length} in {:?}", m.index(), x.shape());
                }
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
            lengths: self.lengths.map(|_, lengths| {
                lengths.as_ref().map(|lengths| keep.iter().map(|&r| lengths[r as usize]).collect())
            }),
            present: self.present.try_map(|_, p| {
                p.as_ref().map(|p| Presence::new(pick(p.rows()), p.mask.dtype(), p.mask.device())).transpose()
            })?,
            labels: keep.iter().map(|&r| self.labels[r as usize]).collect(),
            ids: keep.iter().map(|&r| self.ids[r as usize]).collect(),
        })
    }
}
