//! Opening a pack and reading its rows.

use super::config::{Normalize, PackedConfig, PackedInputConfig, Pad};
use super::{Element, FORMAT, FileEntry, Index};
use crate::image::{Frame, FrameTransform, sheet::Spectrogram};
use crate::input::Picture;
use crate::labels::{classes, pick};
use crate::safe_file::{self, Contents, Header};
use crate::{DataError, Dataset, Input, decode, features};
use candle_core::{DType, Device, Tensor};
use mm_core::{ConfigError, Modal, RowShape, StepRng};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open pack: index and table are read, rows are on the disk.
#[derive(Debug)]
pub struct Pack {
    /// What `index.json` says.
    pub index: Index,
    dir: PathBuf,
    hash: String,
    table: Contents,
    shards: Arc<Vec<Shard>>,
}

/// An open shard.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

impl PartialEq for Shard {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// The rows of one modality of a pack.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedInput {
    shards: Arc<Vec<Shard>>,
    name: String,
    element: Element,
    /// Sizes of a row as it lies in the pack.
    dims: Vec<usize>,
    ragged: bool,
    frames: bool,
    /// For each row: shard, first byte, length.
    places: Arc<Vec<(u32, u64, usize)>>,
    config: PackedInputConfig,
    /// Mean and spread, repeated along a row.
    statistics: Option<Arc<(Vec<f64>, Vec<f64>)>>,
    standardize: bool,
}

/// The largest index that is read.
const MAX_INDEX: u64 = 1 << 30;

pub(super) fn read_index(dir: &Path) -> Result<(Index, String), DataError> {
    let path = dir.join("index.json");
    let file = path.display().to_string();
    if !path.exists() {
        let rule = "there is no index.json: this is no pack, or one that is not finished";
        let remedy = "give the folder that `mm data prepare` wrote; an unfinished one goes on when the same command is \
                      given again";
        return Err(DataError::invalid(&dir.display().to_string(), rule, remedy));
    }
    let io = |source| DataError::Io { file: file.clone(), source };
    let handle = safe_file::open(&path)?;
    let bytes = handle.metadata().map_err(io)?.len();
    if bytes > MAX_INDEX {
        let rule = format!("the index has {bytes} bytes, more than the allowed {MAX_INDEX}");
        return Err(DataError::invalid(&file, rule, "prepare the data in parts"));
    }
    let text = std::fs::read(&path).map_err(io)?;
    let index: Index = serde_json::from_slice(&text).map_err(|e| {
        DataError::invalid(&file, format!("is not the index of a pack ({e})"), "prepare the data again")
    })?;
    let fault = |rule: String| Err(DataError::invalid(&file, rule, "prepare the data again"));
    if index.format != FORMAT {
        return fault(format!("has format {}, this version reads {FORMAT}", index.format));
    }
    let rows = index.shards.iter().try_fold(0usize, |rows, shard| rows.checked_add(shard.rows));
    if index.ids.len() != index.rows || rows != Some(index.rows) {
        return fault(format!("names {} rows, but its lists have other lengths", index.rows));
    }
    for entry in index.shards.iter().chain([&index.table]) {
        if entry.file.is_empty() || entry.file.starts_with('.') || entry.file.contains(['/', '\\', '\0']) {
            return fault(format!("names the file {:?}, which is no plain name", entry.file));
        }
    }
    // The longest row lies in a shard; only where no row has the modality are its sizes a mere claim.
    let largest = index.shards.iter().map(|shard| shard.bytes).max().unwrap_or(0).max(1 << 24);
    for m in &index.modalities {
        let bytes = m.dims.iter().try_fold(m.element.size(), |n, &d| n.checked_mul(d));
        if m.dims.is_empty() || m.dims.contains(&0) || bytes.is_none_or(|n| n as u64 > largest) {
            return fault(format!("gives the modality `{}` rows of {:?}", m.name, m.dims));
        }
        if m.frames
            && (m.dims.len() != 4 || m.ragged || m.element != Element::U8 || ![1, 3].contains(&m.dims[3]))
        {
            return fault(format!("gives the modality `{}` frames of {:?}", m.name, m.dims));
        }
    }
    let hash = crate::dataset::hex(&Sha256::digest(&text));
    Ok((index, hash))
}

impl Pack {
    /// Opens a pack and checks that index, table and the headers of all shards agree. Values are not read.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let (index, hash) = read_index(dir)?;
        let table = Contents::read(&dir.join(&index.table.file))?;
        let shards: Result<Vec<Shard>, DataError> = index
            .shards
            .iter()
            .map(|entry| {
                let path = dir.join(&entry.file);
                let file = safe_file::open(&path)?;
                let length = file
                    .metadata()
                    .map_err(|source| DataError::Io { file: path.display().to_string(), source })?
                    .len();
                if length != entry.bytes {
                    let rule = format!("has {length} bytes, but the index says {}", entry.bytes);
                    let remedy = "it was cut or changed: fetch it again, or prepare the data again";
                    return Err(DataError::invalid(&path.display().to_string(), rule, remedy));
                }
                Ok(Shard { path, file })
            })
            .collect();
        Ok(Self { index, dir: dir.to_owned(), hash, table, shards: Arc::new(shards?) })
    }

    /// The data set, with the inputs as `config` wants them.
    pub fn dataset(&self, config: &PackedConfig) -> Result<Dataset, DataError> {
        let origin = self.dir.display().to_string();
        let there: Vec<String> = self.index.modalities.iter().map(|m| m.name.clone()).collect();
        let modalities = pick(&origin, &there, config.modalities.as_deref(), "a pack names its modalities")?;
        for name in config.inputs.keys() {
            if !there.contains(name) {
                return Err(mm_core::ConfigError::unknown("data.inputs", name, &there).into());
            }
        }
        let inputs = Modal::try_from_fn(modalities.len(), |m| {
            let name = &modalities.names()[m.index()];
            self.input(name, config).map(Input::Packed)
        })?;
        let file = self.table.header.file.clone();
        let Some(labels) = features::vector(&self.table, "y")? else {
            return Err(DataError::invalid(&file, "there is no tensor `y`", "prepare the data again"));
        };
        let declared = (self.index.classes.len() >= 2).then_some(self.index.classes.len());
        let (labels, count) = classes(&file, &labels, declared, &|row| format!("tensor `y`, row {row}"))?;
        let mut data =
            Dataset::assemble_inputs(self.index.name.clone(), origin, modalities, count, inputs, labels)?;
        data.class_names.clone_from(&self.index.classes);
        data.ids.clone_from(&self.index.ids);
        data = features::side_tensors(&self.table, data)?;
        data.columns.retain(|name, _| !name.starts_with("length_"));
        data.hash.clone_from(&self.hash);
        Ok(data)
    }

    /// The rows of one modality.
    fn input(&self, name: &str, config: &PackedConfig) -> Result<PackedInput, DataError> {
        let Some(modality) = self.index.modalities.iter().find(|m| m.name == name) else {
            let rule = format!("there is no modality `{name}`");
            return Err(DataError::invalid(&self.dir.display().to_string(), rule, "see index.json"));
        };
        let own = config.inputs.get(name).cloned().unwrap_or_default();
        let place = |field: &str| format!("data.inputs.{name}.{field}");
        if !modality.frames && own.frames.is_some() {
            let rule = "the rows of this modality are no frames";
            return Err(ConfigError::new(place("frames"), "a transform", rule).into());
        }
        if modality.frames && own.length.is_some() {
            let rule = "frames are as many in every row; leave it out";
            return Err(ConfigError::new(place("length"), own.length.unwrap_or(0), rule).into());
        }
        let lengths = features::vector(&self.table, &format!("length_{name}"))?;
        let first = modality.dims.first().copied().unwrap_or(1);
        let file = &self.table.header.file;
        let lengths: Vec<usize> = match lengths {
            None => vec![first; self.index.rows],
            Some(lengths) if lengths.len() == self.index.rows => {
                let fits = |&l: &i64| usize::try_from(l).ok().filter(|&l| l <= first);
                let checked: Option<Vec<usize>> = lengths.iter().map(fits).collect();
                let allowed = |l: &usize| modality.ragged || *l == 0 || *l == first;
                checked.filter(|lengths| lengths.iter().all(allowed)).ok_or_else(|| {
                    let rule = format!("a length of `{name}` is out of range");
                    DataError::invalid(file, rule, "prepare the data again")
                })?
            }
            Some(lengths) => {
                let rule =
                    format!("`length_{name}` has {} values for {} rows", lengths.len(), self.index.rows);
                return Err(DataError::invalid(file, rule, "prepare the data again"));
            }
        };
        let inner: usize = modality.dims.iter().skip(1).product();
        let mut places = Vec::with_capacity(self.index.rows);
        for (s, (entry, shard)) in self.index.shards.iter().zip(self.shards.iter()).enumerate() {
            let rows = lengths.get(places.len()..places.len() + entry.rows).unwrap_or_default();
            let mut at = Self::tensor_start(entry, shard, modality, rows)?;
            for &length in rows {
                places.push((s as u32, at, length));
                let stored = if modality.ragged { length } else { first };
                at += (stored * inner * modality.element.size()) as u64;
            }
        }
        Ok(PackedInput {
            shards: Arc::clone(&self.shards),
            name: name.to_owned(),
            element: modality.element,
            dims: modality.dims.clone(),
            ragged: modality.ragged,
            places: Arc::new(places),
            frames: modality.frames,
            config: own,
            statistics: None,
            standardize: config.standardize,
        })
    }

    /// The first byte of `x_<modality>` in a shard whose header says what the index does.
    fn tensor_start(
        entry: &FileEntry,
        shard: &Shard,
        modality: &super::PackedModality,
        lengths: &[usize],
    ) -> Result<u64, DataError> {
        let header = Header::read(&shard.path)?;
        let mut shape = modality.dims.clone();
        if modality.ragged {
            shape[0] = lengths.iter().sum();
        } else {
            shape.insert(0, entry.rows);
        }
        let tensor = format!("x_{}", modality.name);
        match header.tensors.get(&tensor) {
            Some(info) if info.shape == shape && info.dtype == modality.element.dtype() => {
                Ok(header.start_of(info))
            }
            _ => {
                let rule = format!("does not hold `{tensor}` as {shape:?} of {}", modality.element.dtype());
                let remedy = "it belongs to another pack or was changed: prepare the data again";
                Err(DataError::invalid(&header.file, rule, remedy))
            }
        }
    }
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
        let (shard, at, length) = self.places[row];
        let shard = &self.shards[shard as usize];
        let mut bytes = vec![0u8; length * self.inner() * self.element.size()];
        read_at(&shard.file, &mut bytes, at)
            .map_err(|source| DataError::Io { file: shard.path.display().to_string(), source })?;
        Ok(bytes)
    }

    /// The numbers of a row as they lie in the pack, `length` times the inner sizes of them.
    pub(crate) fn raw(&self, row: usize) -> Result<Vec<f32>, DataError> {
        let bytes = self.bytes(row)?;
        let file = || self.shards[self.places[row].0 as usize].path.display().to_string();
        let values = match self.element {
            Element::F32 | Element::F16 => decode::floats(&file(), &self.name, self.element.dtype(), &bytes)?,
            Element::U8 => bytes.iter().map(|&b| f32::from(b) / 255.0).collect(),
            Element::I16 => {
                let (pairs, _) = bytes.as_chunks::<2>();
                pairs.iter().map(|&pair| f32::from(i16::from_le_bytes(pair)) / 32768.0).collect()
            }
        };
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let place = format!("row {row}, modality `{}`, value {at}", self.name);
            let rule = format!("the value is {}", values[at]);
            return Err(DataError::row(&file(), place, rule, "prepare the data again"));
        }
        Ok(values)
    }

    /// A row as the model gets it.
    fn ready(&self, row: usize, key: Option<StepRng>) -> Result<Vec<f32>, DataError> {
        if self.frames {
            return self.ready_frames(row, key);
        }
        let mut values = self.raw(row)?;
        self.normalise(&mut values);
        let inner = self.inner();
        let places = values.len() / inner;
        if let Some(length) = self.config.length
            && places > 0
        {
            values = match (places > length, self.config.pad) {
                (true, _) => {
                    let room = places - length;
                    let start = key.map_or(room / 2, |key| key.stream("crop").draws().below(room + 1));
                    values[start * inner..(start + length) * inner].to_vec()
                }
                (false, Pad::Tile) => values.iter().copied().cycle().take(length * inner).collect(),
                (false, Pad::Zeros) => {
                    values.resize(length * inner, 0.0);
                    values
                }
            };
        }
        if let Some(key) = key {
            self.hide(&mut values, key);
        }
        Ok(values)
    }

    /// Frames as the model gets them, channels first.
    fn ready_frames(&self, row: usize, key: Option<StepRng>) -> Result<Vec<f32>, DataError> {
        let (_, _, length) = self.places[row];
        let &[_, height, width, channels] = &self.dims[..] else { return Ok(Vec::new()) };
        if length == 0 {
            return Ok(Vec::new());
        }
        let (values, pixels, channels) = match &self.config.frames {
            None => {
                let mut values = self.raw(row)?;
                self.normalise(&mut values);
                (values, height * width, channels)
            }
            Some(transform) => {
                let bytes = self.bytes(row)?;
                let frame = |pixels: &[u8]| Frame::new(height, width, channels, pixels.to_vec());
                let clip: Vec<Frame> =
                    bytes.chunks_exact(height * width * channels).map(frame).collect::<Result<_, _>>()?;
                let values = match key {
                    Some(key) => transform.train(&clip, key)?,
                    None => transform.evaluate(&clip)?,
                };
                let [height, width, channels] = transform.shape();
                (values, height * width, channels)
            }
        };
        let frames = values.chunks_exact(pixels * channels);
        Ok(frames
            .flat_map(|frame| {
                (0..channels).flat_map(move |c| frame.iter().skip(c).step_by(channels).copied())
            })
            .collect())
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

    /// Rows as one tensor: read by all threads, filled with zeros to the longest of the batch.
    pub(crate) fn gather(
        &self,
        rows: &[usize],
        key: Option<StepRng>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<crate::input::Gathered> {
        let read = |&row: &usize| self.ready(row, key.map(|key| key.sample(row as u64)));
        let rows: Vec<Vec<f32>> =
            rows.par_iter().map(read).collect::<Result<_, _>>().map_err(candle_core::Error::wrap)?;
        let shape = self.shape();
        let inner: usize = shape.dims.iter().skip(1).product();
        let lengths: Vec<usize> = rows.iter().map(|row| row.len() / inner).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let places = if shape.ragged { longest } else { shape.dims[0] };
        let mut values = Vec::with_capacity(rows.len() * places * inner);
        for row in &rows {
            values.extend_from_slice(row);
            values.resize(values.len() + (places * inner - row.len()), 0.0);
        }
        let mut dims = vec![rows.len(), places];
        dims.extend(&shape.dims[1..]);
        let x = Tensor::from_vec(values, dims, device)?.to_dtype(dtype)?;
        Ok((x, shape.ragged.then(|| lengths.into())))
    }
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
