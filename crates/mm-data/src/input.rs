//! The inputs of one modality: vectors in memory, or arrays of any shape in a pack on the disk.

use crate::image::{Frame, sheet::Spectrogram};
use crate::pack::PackedInput;
use crate::{DataError, Matrix};
use candle_core::{DType, Device, Result, Tensor};
use mm_core::{RowShape, StepRng};
use std::sync::Arc;

/// The inputs of one modality.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Input {
    /// A vector per row, in memory.
    Matrix(Matrix),
    /// An array per row, read when it is asked for.
    Packed(PackedInput),
}

/// What a person can look at of a row.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Picture {
    /// Frames.
    Frames(Vec<Frame>),
    /// Numbers over frequency and time.
    Spectrogram(Spectrogram),
    /// Nothing: vectors and waveforms.
    None,
}

/// Who reads the rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The thread that asks.
    One,
    /// All threads of the pool.
    All,
}

/// Rows of one modality as a tensor (B, …), and how long each is where they differ.
pub(crate) type Gathered = (Tensor, Option<Arc<[usize]>>);

impl Input {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Matrix(x) => x.rows,
            Self::Packed(x) => x.rows(),
        }
    }

    /// What one row looks like.
    pub fn shape(&self) -> RowShape {
        match self {
            Self::Matrix(x) => RowShape::fixed([x.dim]),
            Self::Packed(x) => x.shape(),
        }
    }

    /// Whether a row has the modality.
    ///
    /// # Panics
    /// Where `row` is not below `rows`.
    pub fn is_present(&self, row: usize) -> bool {
        match self {
            Self::Matrix(x) => x.is_present(row),
            Self::Packed(x) => x.is_present(row),
        }
    }

    /// How many rows have the modality.
    pub fn present_count(&self) -> usize {
        (0..self.rows()).filter(|&row| self.is_present(row)).count()
    }

    /// The matrix of vectors in memory; `None` for a pack.
    pub fn matrix(&self) -> Option<&Matrix> {
        match self {
            Self::Matrix(x) => Some(x),
            Self::Packed(_) => None,
        }
    }

    /// A row to look at, as it lies in the pack.
    pub fn picture(&self, row: usize) -> std::result::Result<Picture, DataError> {
        match self {
            Self::Packed(x) if row < x.rows() => x.picture(row),
            _ => Ok(Picture::None),
        }
    }

    /// Some rows as one tensor; with a key they are augmented as in training, each by `key.sample(row)`.
    pub(crate) fn gather(
        &self,
        rows: &[usize],
        key: Option<StepRng>,
        threads: Threads,
        dtype: DType,
        device: &Device,
    ) -> Result<Gathered> {
        match self {
            Self::Matrix(x) => {
                let mut values = Vec::with_capacity(rows.len() * x.dim);
                for &row in rows {
                    values.extend_from_slice(x.row(row));
                }
                Ok((Tensor::from_vec(values, (rows.len(), x.dim), device)?.to_dtype(dtype)?, None))
            }
            Self::Packed(x) => x.gather(rows, key, threads, dtype, device),
        }
    }
}

impl From<Matrix> for Input {
    fn from(matrix: Matrix) -> Self {
        Self::Matrix(matrix)
    }
}
