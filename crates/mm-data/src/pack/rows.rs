//! The rows of one modality of a pack: read by position, normalised, augmented, put together to batches.

use super::Element;
use super::config::{Normalize, PackedInputConfig, Pad};
use crate::image::{Frame, FrameTransform, sheet::Spectrogram};
use crate::input::{Picture, Threads};
use crate::{DataError, decode};
use candle_core::{DType, Device, Tensor};
use mm_core::{RowShape, StepRng};
use rayon::prelude::*;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

/// An open shard.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

impl PartialEq for Shard {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// The rows of one modality of a pack.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedInput {
    pub(super) shards: Arc<Vec<Shard>>,
    pub(super) name: String,
    pub(super) element: Element,
    /// Sizes of a row as it lies in the pack.
    pub(super) dims: Vec<usize>,
    pub(super) ragged: bool,
    pub(super) frames: bool,
    /// For each row: shard, first byte, length.
    pub(super) places: Arc<Vec<(u32, u64, usize)>>,
    pub(super) config: PackedInputConfig,
    /// Mean and spread, repeated along a row.
    pub(super) statistics: Option<Arc<(Vec<f64>, Vec<f64>)>>,
    pub(super) standardize: bool,
}

impl PackedInput {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.places.len()
    }

    /// What a row looks like when it is handed on.
    pub fn shape(&self) -> RowShape {
        if let (true, &[frames, height, width, channels]) = (self.frames, &self.dims[..]) {
            let [height, width, channels] =
                self.config.frames.as_ref().map_or([height, width, channels], FrameTransform::shape);
            return RowShape::fixed(match (frames, channels) {
                (1, 1) => vec![height, width],
                (1, _) => vec![channels, height, width],
                _ => vec![frames, channels, height, width],
            });
        }
        let mut dims = self.dims.clone();
        if let (Some(length), Some(first)) = (self.config.length, dims.first_mut()) {
            *first = length;
        }
        RowShape { dims, ragged: self.ragged && self.config.length.is_none() }
    }

    /// Whether a row has the modality.
    pub fn is_present(&self, row: usize) -> bool {
        self.places[row].2 > 0
    }

    /// How many numbers a mean is taken for: one for each value of the last axis, or one in all.
    pub(crate) fn statistics_width(&self) -> Option<usize> {
        if self.config.frames.is_some() {
            return None; // The transform has statistics of its own.
        }
        match self.config.normalize {
            Normalize::Feature => self.dims.last().copied(),
            Normalize::All => Some(1),
            Normalize::Row | Normalize::None => None,
        }
    }

    /// Hands rows on with this mean and spread from now on.
    pub(crate) fn set_statistics(&mut self, mean: Vec<f64>, std: Vec<f64>) {
        self.statistics = Some(Arc::new((mean, std)));
    }

    /// Numbers behind each other that have one place.
    fn inner(&self) -> usize {
        self.dims.iter().skip(1).product()
    }

    /// A row to look at: frames, or (T, F) as a spectrogram.
    pub(crate) fn picture(&self, row: usize) -> Result<Picture, DataError> {
        let (_, _, length) = self.places[row];
        match self.dims[..] {
            _ if length == 0 => Ok(Picture::None),
            [_, height, width, channels] if self.frames => {
                let bytes = self.bytes(row)?;
                let frame = |pixels: &[u8]| Frame::new(height, width, channels, pixels.to_vec());
                bytes
                    .chunks_exact(height * width * channels)
                    .map(frame)
                    .collect::<Result<_, _>>()
                    .map(Picture::Frames)
            }
            [_, bins] => {
                let values = self.raw(row)?;
                let turned =
                    (0..bins).flat_map(|bin| values.iter().skip(bin).step_by(bins).copied()).collect();
                Spectrogram::new(bins, length, turned).map(Picture::Spectrogram)
            }
            _ => Ok(Picture::None),
        }
    }

    /// The bytes of a row.
    fn bytes(&self, row: usize) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        self.read(row, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of a row in place of what was in `bytes`.
    fn read(&self, row: usize, bytes: &mut Vec<u8>) -> Result<(), DataError> {
        let (shard, at, length) = self.places[row];
        let shard = &self.shards[shard as usize];
        bytes.resize(length * self.inner() * self.element.size(), 0);
        read_at(&shard.file, bytes, at)
            .map_err(|source| DataError::Io { file: shard.path.display().to_string(), source })
    }

    /// The numbers of a row as they lie in the pack, `length` times the inner sizes of them.
    pub(crate) fn raw(&self, row: usize) -> Result<Vec<f32>, DataError> {
        let mut values = vec![0.0; self.places[row].2 * self.inner()];
        self.raw_into(row, &mut Vec::new(), &mut values)?;
        Ok(values)
    }

    /// The same, into `values`, which has that many places.
    fn raw_into(&self, row: usize, bytes: &mut Vec<u8>, values: &mut [f32]) -> Result<(), DataError> {
        self.read(row, bytes)?;
        match self.element {
            Element::F32 => decode::each_into(bytes, values, f32::from_le_bytes),
            Element::F16 => decode::halves_into(bytes, values),
            Element::U8 => decode::each_into(bytes, values, |[b]: [u8; 1]| f32::from(b) / 255.0),
            Element::I16 => {
                decode::each_into(bytes, values, |pair| f32::from(i16::from_le_bytes(pair)) / 32768.0);
            }
        }
        // Piece by piece without a way out of the middle, which can be done for many numbers at once.
        let finite = |piece: &[f32]| piece.iter().fold(true, |all, v| all & v.is_finite());
        if !values.chunks(4096).all(finite)
            && let Some(at) = values.iter().position(|v| !v.is_finite())
        {
            let file = self.shards[self.places[row].0 as usize].path.display().to_string();
            let place = format!("row {row}, modality `{}`, value {at}", self.name);
            let rule = format!("the value is {}", values[at]);
            return Err(DataError::row(&file, place, rule, "prepare the data again"));
        }
        Ok(())
    }

    /// A row as the model gets it, into the beginning of `to`, with `bytes` as room to work in and the tables of
    /// [`levels`](Self::levels).
    fn ready(
        &self,
        row: usize,
        key: Option<StepRng>,
        levels: &[[f32; 256]],
        bytes: &mut Vec<u8>,
        to: &mut [f32],
    ) -> Result<(), DataError> {
        if self.frames {
            return self.ready_frames(row, key, levels, bytes, to);
        }
        let inner = self.inner();
        let to = &mut to[..self.places(row) * inner];
        let places = self.places[row].2;
        match self.config.length {
            Some(length) if length != places && places > 0 => {
                let mut values = vec![0.0; places * inner];
                self.raw_into(row, bytes, &mut values)?;
                self.normalise(&mut values);
                if places > length {
                    let room = places - length;
                    let start = key.map_or(room / 2, |key| key.stream("crop").draws().below(room + 1));
                    to.copy_from_slice(&values[start * inner..(start + length) * inner]);
                } else {
                    match self.config.pad {
                        Pad::Tile => to.chunks_mut(values.len()).for_each(|piece| {
                            piece.copy_from_slice(&values[..piece.len()]);
                        }),
                        Pad::Zeros => to[..values.len()].copy_from_slice(&values),
                    }
                }
            }
            _ => {
                self.raw_into(row, bytes, to)?;
                self.normalise(to);
            }
        }
        if let Some(key) = key {
            self.hide(to, key);
        }
        Ok(())
    }

    /// Frames as the model gets them, channels first.
    fn ready_frames(
        &self,
        row: usize,
        key: Option<StepRng>,
        levels: &[[f32; 256]],
        bytes: &mut Vec<u8>,
        to: &mut [f32],
    ) -> Result<(), DataError> {
        let (_, _, length) = self.places[row];
        let &[_, height, width, channels] = &self.dims[..] else { return Ok(()) };
        if length == 0 {
            return Ok(());
        }
        let size = height * width * channels;
        if let Some(transform) = &self.config.frames {
            self.read(row, bytes)?;
            let frame = |pixels: &[u8]| Frame::new(height, width, channels, pixels.to_vec());
            let clip: Vec<Frame> = bytes.chunks_exact(size).map(frame).collect::<Result<_, _>>()?;
            let planes = transform.planes(&match key {
                Some(key) => transform.train_views(&clip, key)?,
                None => transform.evaluation_views(&clip)?,
            })?;
            to[..planes.len()].copy_from_slice(&planes);
            return Ok(());
        }
        if !levels.is_empty() {
            self.read(row, bytes)?;
            for (frame, planes) in bytes.chunks_exact(size).zip(to.chunks_exact_mut(size)) {
                for ((c, plane), table) in planes.chunks_exact_mut(height * width).enumerate().zip(levels) {
                    match channels {
                        // Loops over a known number of colours, which the compiler may unroll.
                        1 => frame.iter().zip(plane).for_each(|(&b, to)| *to = table[usize::from(b)]),
                        3 => frame
                            .as_chunks::<3>()
                            .0
                            .iter()
                            .zip(plane)
                            .for_each(|(pixel, to)| *to = table[usize::from(pixel[c])]),
                        _ => frame
                            .iter()
                            .skip(c)
                            .step_by(channels)
                            .zip(plane)
                            .for_each(|(&b, to)| *to = table[usize::from(b)]),
                    }
                }
            }
            return Ok(());
        }
        let mut values = vec![0.0; length * size];
        self.raw_into(row, bytes, &mut values)?;
        self.normalise(&mut values);
        for (frame, planes) in values.chunks_exact(size).zip(to.chunks_exact_mut(size)) {
            for (c, plane) in planes.chunks_exact_mut(height * width).enumerate() {
                frame.iter().skip(c).step_by(channels).zip(plane).for_each(|(&v, to)| *to = v);
            }
        }
        Ok(())
    }

    /// What each of the 256 levels of each colour is as a number, normalised; nothing where rows are no frames of bytes,
    /// go through a transform, or are normalised one by one.
    fn levels(&self) -> Vec<[f32; 256]> {
        let alone = self.standardize && self.config.normalize == Normalize::Row;
        let &[_, _, _, channels] = &self.dims[..] else { return Vec::new() };
        if !self.frames || self.element != Element::U8 || self.config.frames.is_some() || alone {
            return Vec::new();
        }
        let statistics = self.statistics.as_deref().filter(|(mean, _)| self.standardize && !mean.is_empty());
        let level = |channel: usize, level: usize| {
            let value = level as f32 / 255.0;
            statistics.map_or(value, |(mean, std)| {
                let at = channel % mean.len();
                ((f64::from(value) - mean[at]) / std[at]) as f32
            })
        };
        (0..channels).map(|channel| std::array::from_fn(|n| level(channel, n))).collect()
    }

    fn normalise(&self, values: &mut [f32]) {
        if !self.standardize {
            return;
        }
        if self.config.normalize == Normalize::Row && !values.is_empty() {
            let count = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
            let square = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
            let std = if square > 0.0 { square.sqrt() } else { 1.0 };
            for v in values.iter_mut() {
                *v = ((f64::from(*v) - mean) / std) as f32;
            }
        }
        if let Some(statistics) = &self.statistics {
            let (mean, std) = statistics.as_ref();
            for chunk in values.chunks_mut(mean.len().max(1)) {
                for ((v, mean), std) in chunk.iter_mut().zip(mean).zip(std) {
                    *v = ((f64::from(*v) - mean) / std) as f32;
                }
            }
        }
    }

    /// Zeros in one span of places and one of the last axis.
    fn hide(&self, values: &mut [f32], key: StepRng) {
        let inner = self.inner();
        let width = self.dims.last().copied().unwrap_or(1);
        if let Some(widest) = self.config.time_mask {
            let places = values.len() / inner;
            let mut draws = key.stream("time-mask").draws();
            let span = draws.below(widest.min(places) + 1);
            let start = draws.below(places - span + 1);
            values[start * inner..(start + span) * inner].fill(0.0);
        }
        if let Some(widest) = self.config.feature_mask
            && self.dims.len() > 1
        {
            let mut draws = key.stream("feature-mask").draws();
            let span = draws.below(widest.min(width) + 1);
            let start = draws.below(width - span + 1);
            values.chunks_mut(width).for_each(|row| row[start..start + span].fill(0.0));
        }
    }

    /// The places of a row when it is handed on.
    fn places(&self, row: usize) -> usize {
        let own = self.places[row].2;
        if own == 0 { 0 } else { self.config.length.unwrap_or(own) }
    }

    /// Rows as one tensor, filled with zeros to the longest of the batch. Each is read into its part of it, by this thread
    /// alone or by all.
    pub(crate) fn gather(
        &self,
        rows: &[usize],
        key: Option<StepRng>,
        threads: Threads,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<crate::input::Gathered> {
        let shape = self.shape();
        let inner: usize = shape.dims.iter().skip(1).product();
        let lengths: Vec<usize> = rows.iter().map(|&row| self.places(row)).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let places = if shape.ragged { longest } else { shape.dims[0] };
        let mut values = room(&self.name, rows.len(), places, inner)?;
        let levels = self.levels();
        let read = |bytes: &mut Vec<u8>, (to, &row): (&mut [f32], &usize)| {
            self.ready(row, key.map(|key| key.sample(row as u64)), &levels, bytes, to)
        };
        let size = (places * inner).max(1);
        let done: Result<(), DataError> = match threads {
            Threads::One => {
                let mut bytes = Vec::new();
                values.chunks_exact_mut(size).zip(rows).try_for_each(|part| read(&mut bytes, part))
            }
            Threads::All => values.par_chunks_exact_mut(size).zip(rows).try_for_each_init(Vec::new, read),
        };
        done.map_err(candle_core::Error::wrap)?;
        let mut dims = vec![rows.len(), places];
        dims.extend(&shape.dims[1..]);
        let x = Tensor::from_vec(values, dims, device)?.to_dtype(dtype)?;
        Ok((x, shape.ragged.then(|| lengths.into())))
    }
}

/// Zeros for a batch; an error where memory has no place for them, not the end of the process.
fn room(name: &str, rows: usize, places: usize, inner: usize) -> candle_core::Result<Vec<f32>> {
    const LARGE: usize = 1 << 28;
    let count = rows.checked_mul(places).and_then(|n| n.checked_mul(inner));
    // Small ones are taken as they are: that is quicker, and fails only where everything does.
    let fits = |&n: &usize| n < LARGE || Vec::<f32>::new().try_reserve_exact(n).is_ok();
    let count = count.filter(fits).ok_or_else(|| {
        candle_core::Error::Msg(format!(
            "modality `{name}`: memory has no place for a batch of {rows} rows of {places} x {inner} numbers; lower \
             `train.batch_size` or `data.inputs.{name}.length`"
        ))
    })?;
    Ok(vec![0.0; count])
}

/// Reads exactly `bytes.len()` bytes from a place, without moving a cursor that threads would share.
fn read_at(file: &File, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, bytes, at);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < bytes.len() {
            match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[done..], at + done as u64)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}
