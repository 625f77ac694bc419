//! Opening a pack: index, table and the headers of the shards, checked against each other.

use super::config::PackedConfig;
use super::rows::{PackedInput, Shard};
use super::{Element, FORMAT, FileEntry, Index, MAX_ROW};
use crate::labels::{classes, pick};
use crate::safe_file::{self, Contents, Header};
use crate::{DataError, Dataset, Input, features};
use mm_core::{ConfigError, Modal};
use sha2::{Digest, Sha256};
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
        let inner: usize = modality.dims.iter().skip(1).product();
        let most = MAX_ROW / size_of::<f32>() / inner;
        if let Some(length) = own.length.filter(|&length| length > most) {
            let rule = format!("must be at most {most}: a row has {inner} numbers at each place");
            return Err(ConfigError::new(place("length"), length, rule).into());
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
