//! Which places of the sequences of a batch are real, and which only fill them up to one length.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use mm_core::model::to_host;
use mm_kernels::embedding;

/// Real places of the sequences of a batch.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mm_encoders::Mask;
/// let mask = Mask::from_lengths(&[3, 1], 3)?;
/// let x = Tensor::new(&[[[1f32], [2.0], [3.0]], [[4.0], [9.0], [9.0]]], &Device::Cpu)?;
/// assert_eq!(mask.mean(&x)?.to_vec2::<f32>()?, [[2.0], [4.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    places: usize,
    keep: Vec<bool>,
}

impl Mask {
    /// The first `lengths[b]` of `places` places of row b are real. A length may be 0: a row without a clip.
    pub fn from_lengths(lengths: &[usize], places: usize) -> Result<Self> {
        if let Some((row, length)) = lengths.iter().enumerate().find(|(_, length)| **length > places) {
            bail!(
                "row {row} has length {length}, but the batch has {places} places: cut the row or pad the batch"
            )
        }
        let keep = lengths.iter().flat_map(|&length| (0..places).map(move |place| place < length)).collect();
        Ok(Self { rows: lengths.len(), places, keep })
    }

    /// From a tensor (B, N) of any type that holds 1 for real places and 0 for the others.
    pub fn from_tensor(mask: &Tensor) -> Result<Self> {
        let &[rows, places] = mask.dims() else {
            bail!("a mask must be (batch, places), got {:?}", mask.shape())
        };
        let values = to_host(mask)?;
        if let Some((at, value)) = values.iter().enumerate().find(|(_, v)| **v != 0.0 && **v != 1.0) {
            bail!("a mask must hold 0 and 1, got {value} at row {}, place {}", at / places, at % places)
        }
        Ok(Self { rows, places, keep: values.into_iter().map(|value| value == 1.0).collect() })
    }

    /// Places (B, N, d) after the last one that is not all zeros are padding.
    pub fn trailing_zeros(x: &Tensor) -> Result<Self> {
        let (rows, places, _) = x.dims3()?;
        if x.elem_count() == 0 {
            return Self::from_lengths(&vec![0; rows], places);
        }
        let largest = to_host(&x.detach().abs()?.max(D::Minus1)?)?;
        let lengths: Vec<usize> = (0..rows)
            .map(|row| {
                let row = largest.iter().skip(row * places).take(places);
                row.zip(1..)
                    .filter(|(largest, _)| **largest != 0.0)
                    .map(|(_, length)| length)
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        Self::from_lengths(&lengths, places)
    }

    /// Real places are those where `keep` says so, row by row.
    pub(crate) fn from_flags(keep: Vec<bool>, rows: usize, places: usize) -> Self {
        Self { rows, places, keep }
    }

    /// Whether every place is real.
    pub fn is_full(&self) -> bool {
        self.keep.iter().all(|&keep| keep)
    }

    /// The number of real places of each row.
    pub fn counts(&self) -> Vec<usize> {
        let row = |row: usize| self.keep.iter().skip(row * self.places).take(self.places);
        (0..self.rows).map(|b| row(b).filter(|keep| **keep).count()).collect()
    }

    /// The first row that has real places, but whose first place is none of them.
    pub(crate) fn starts_late(&self) -> Option<usize> {
        let late = |b: usize, count: usize| count > 0 && self.keep.get(b * self.places) == Some(&false);
        self.counts().into_iter().enumerate().find(|&(b, count)| late(b, count)).map(|(b, _)| b)
    }

    /// The mean over the real places, (B, N, D) to (B, D); zero for a row that has none.
    pub fn mean(&self, x: &Tensor) -> Result<Tensor> {
        self.fits(x)?;
        let counts = self.counts();
        let shares = self.keep.iter().enumerate().map(|(at, &keep)| {
            let count = counts.get(at / self.places).copied().unwrap_or(1);
            if keep { 1.0 / count as f64 } else { 0.0 }
        });
        let shares = Tensor::from_iter(shares, x.device())?.reshape((self.rows, self.places, 1))?;
        x.broadcast_mul(&shares.to_dtype(x.dtype())?)?.sum(1)
    }

    /// Fails where the mask is not that of `x` (B, N, ..).
    pub(crate) fn fits(&self, x: &Tensor) -> Result<()> {
        if x.dims().get(..2) != Some(&[self.rows, self.places]) {
            bail!("a mask of {} rows and {} places does not fit {:?}", self.rows, self.places, x.shape())
        }
        Ok(())
    }

    /// 1 and 0 in u8, (B, N): what attention takes for its keys.
    pub(crate) fn keys(&self, device: &Device) -> Result<Tensor> {
        Tensor::from_iter(self.keep.iter().map(|&keep| u8::from(keep)), device)?
            .reshape((self.rows, self.places))
    }

    /// One number per row, 1 and 0 in `dtype`, (B, 1): whether it has a real place.
    pub(crate) fn filled(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let filled = self.counts().into_iter().map(|count| if count > 0 { 1.0 } else { 0.0 });
        Tensor::from_iter(filled, device)?.reshape((self.rows, 1))?.to_dtype(dtype)
    }
}

/// What the layers of a network need of a mask, made once for all of them.
#[derive(Debug)]
pub(crate) struct Places {
    /// (B, N), u8.
    pub(crate) keys: Tensor,
    /// (B, N, 1), 1 and 0 in the type of the features.
    factor: Tensor,
    /// The numbers of the real rows among all B N.
    kept: Tensor,
    /// For each of the B N rows its number among the real ones; for padding, the number after the last.
    back: Tensor,
}

impl Places {
    /// `None` where the mask hides nothing.
    pub(crate) fn new(mask: Option<&Mask>, x: &Tensor) -> Result<Option<Self>> {
        let Some(mask) = mask else { return Ok(None) };
        mask.fits(x)?;
        if mask.is_full() {
            return Ok(None);
        }
        let device = x.device();
        let keys = mask.keys(device)?;
        let kept = (0u32..).zip(&mask.keep).filter(|(_, keep)| **keep).map(|(row, _)| row);
        let kept: Vec<u32> = kept.collect();
        let mut next = 0u32;
        let back: Vec<u32> = mask
            .keep
            .iter()
            .map(|&keep| {
                let own = next;
                next += u32::from(keep);
                if keep { own } else { kept.len() as u32 }
            })
            .collect();
        Ok(Some(Self {
            factor: keys.unsqueeze(2)?.to_dtype(x.dtype())?,
            keys,
            back: Tensor::from_vec(back, mask.keep.len(), device)?,
            kept: Tensor::from_vec(kept, mask.counts().iter().sum::<usize>(), device)?,
        }))
    }

    /// Zeros in the places of padding, whatever was there: not a product, because infinity times zero is no number.
    pub(crate) fn clear(&self, x: &Tensor) -> Result<Tensor> {
        self.keys.unsqueeze(2)?.broadcast_as(x.shape())?.where_cond(x, &x.zeros_like()?)
    }

    /// As [`Places::clear`] for numbers that are known to be finite, and cheaper.
    pub(crate) fn scale(&self, x: &Tensor) -> Result<Tensor> {
        x.broadcast_mul(&self.factor)
    }

    /// The number of real places in the batch.
    pub(crate) fn count(&self) -> usize {
        self.kept.elem_count()
    }

    /// The real rows of (B N, D).
    pub(crate) fn gather(&self, rows: &Tensor) -> Result<Tensor> {
        embedding(&self.kept, rows, None)
    }

    /// Puts the real rows back among zeros: the inverse of [`Places::gather`].
    pub(crate) fn scatter(&self, kept: &Tensor) -> Result<Tensor> {
        let nothing = Tensor::zeros((1, kept.dim(1)?), kept.dtype(), kept.device())?;
        embedding(&self.back, &Tensor::cat(&[kept, &nothing], 0)?, None)
    }
}
