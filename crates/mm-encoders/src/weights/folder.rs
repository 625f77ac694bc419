//! The files of a checkpoint in one folder: which they are, and that they are inside it.

use super::error::{Result, WeightsError, shown, told};
use super::file::{TensorFile, is_pickle, pickle, read_text};
use super::header::Unique;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

pub(super) const MODEL: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX: u64 = 100_000_000;
const MAX_CONFIG: u64 = 10_000_000;

/// Opens `model.safetensors` of a folder, or the shards of its index.
pub(super) fn open(dir: &Path) -> Result<Vec<TensorFile>> {
    let all = std::fs::read_dir(dir).map_err(WeightsError::io("read", dir))?;
    let mut names: Vec<String> =
        all.filter_map(|e| e.ok().map(|e| e.file_name().to_string_lossy().into_owned())).collect();
    names.sort_unstable();
    if let Some(path) = inside(dir, MODEL)? {
        return Ok(vec![TensorFile::open(&path)?]);
    }
    if let Some(path) = inside(dir, INDEX)? {
        return open_index(dir, &path);
    }
    let file = dir.display().to_string();
    if let Some(name) = names.iter().find(|name| is_pickle(Path::new(name))) {
        return Err(pickle(&dir.join(name).display().to_string()));
    }
    let there: Vec<String> = names.iter().take(10).map(|name| shown(name)).collect();
    let more = if names.len() > 10 { format!(" and {} more", names.len() - 10) } else { String::new() };
    let rule = format!("there is neither `{MODEL}` nor `{INDEX}`, but [{}]{more}", there.join(", "));
    Err(WeightsError::invalid(
        &file,
        rule,
        "give the folder of a checkpoint, or one file to `Weights::from_file`",
    ))
}

/// Opens the shards that an index names; each tensor stands in the shard that the index says, and nowhere else.
pub(super) fn open_index(dir: &Path, index: &Path) -> Result<Vec<TensorFile>> {
    let map = weight_map(index)?;
    let file = index.display().to_string();
    let remedy = "index and shards are of different checkpoints: fetch them again together";
    let mut shards = Vec::new();
    for shard in shards_of(&map, &file)? {
        let Some(path) = inside(dir, &shard)? else {
            let rule = format!("there is no shard `{}`", dir.join(&shard).display());
            return Err(WeightsError::invalid(&file, rule, "fetch all files of the checkpoint"));
        };
        let opened = TensorFile::open(&path)?;
        for name in opened.header.tensors.keys() {
            if map.get(name) != Some(&shard) {
                let place = map.get(name).map_or("nowhere".to_owned(), |s| format!("in `{}`", shown(s)));
                let rule =
                    format!("shard `{shard}` holds tensor `{}`, which the index has {place}", shown(name));
                return Err(WeightsError::invalid(&file, rule, remedy));
            }
        }
        if let Some((name, _)) =
            map.iter().find(|(name, s)| **s == shard && !opened.header.tensors.contains_key(*name))
        {
            let rule = format!("shard `{shard}` lacks tensor `{}`, which the index has there", shown(name));
            return Err(WeightsError::invalid(&file, rule, remedy));
        }
        shards.push(opened);
    }
    Ok(shards)
}

/// The entry `weight_map` of an index: from the name of a tensor to its file.
pub(super) fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let file = index.display().to_string();
    let text = read_text(index, MAX_INDEX)?;
    let fault = |rule: String| WeightsError::invalid(&file, rule, "make or fetch the index again");
    let index: Index =
        serde_json::from_str(&text).map_err(|e| fault(format!("it is not a valid index: {}", told(&e))))?;
    index.weight_map.ok_or_else(|| fault("there is no entry `weight_map`".to_owned()))
}

/// The one entry of an index that says something; it must not stand there twice, nor a name in it.
struct Index {
    weight_map: Option<BTreeMap<String, String>>,
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Index;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map with the entry `weight_map`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Index, A::Error> {
                let mut weight_map = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name != "weight_map" {
                        map.next_value::<IgnoredAny>()?;
                    } else if weight_map.replace(map.next_value_seed(Unique::new())?).is_some() {
                        return Err(A::Error::custom("the name `weight_map` appears twice"));
                    }
                }
                Ok(Index { weight_map })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The different files of an index, each a plain name of a safetensors file.
pub(super) fn shards_of(map: &BTreeMap<String, String>, index: &str) -> Result<Vec<String>> {
    let mut shards: Vec<String> = map.values().cloned().collect();
    shards.sort_unstable();
    shards.dedup();
    for shard in &shards {
        if is_pickle(Path::new(shard)) {
            return Err(pickle(&format!("{index}, shard `{}`", shown(shard))));
        }
        let plain = shard.strip_suffix(".safetensors").is_some_and(|stem| {
            !stem.is_empty()
                && !stem.starts_with('.')
                && stem.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        });
        if !plain {
            let rule = format!("shard `{}` is not the plain name of a safetensors file", shown(shard));
            let remedy = "a shard lies beside its index and is called like `model-00001-of-00002.safetensors`: \
                do not use this checkpoint";
            return Err(WeightsError::invalid(index, rule, remedy));
        }
    }
    Ok(shards)
}

/// The JSON object in the file `name` of a folder, if there is such a file.
pub(super) fn json(dir: &Path, name: &str) -> Result<Option<serde_json::Value>> {
    let Some(path) = inside(dir, name)? else {
        return Ok(None);
    };
    let text = read_text(&path, MAX_CONFIG)?;
    let file = path.display().to_string();
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| {
        WeightsError::invalid(&file, format!("it is not valid JSON: {}", told(&e)), "make or fetch it again")
    })?;
    if !value.is_object() {
        return Err(WeightsError::invalid(&file, "it is not a JSON object", "make or fetch it again"));
    }
    Ok(Some(value))
}

/// The path of a file of the folder with links resolved, `None` where there is none; a link that leads out is an error.
///
/// Links of a snapshot in a hub's cache lead into the folder `blobs` of the same repository, which is inside.
fn inside(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = dir.join(name);
    if let Err(e) = std::fs::symlink_metadata(&path) {
        return match e.kind() {
            std::io::ErrorKind::NotFound => Ok(None),
            _ => Err(WeightsError::io("read", &path)(e)),
        };
    }
    let real = path.canonicalize().map_err(WeightsError::io("read", &path))?;
    let home = dir.canonicalize().map_err(WeightsError::io("read", dir))?;
    let blobs =
        home.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent).map(|p| p.join("blobs"));
    let within = |root: &Path| {
        real.strip_prefix(root).is_ok_and(|rest| rest.components().all(|c| matches!(c, Component::Normal(_))))
    };
    if within(&home) || blobs.is_some_and(|blobs| within(&blobs)) {
        return Ok(Some(path));
    }
    let rule = format!("it is a link out of its folder, to {}", real.display());
    let remedy = "copy the file into the folder, or give it to `Weights::from_file` if you trust it";
    Err(WeightsError::invalid(&path.display().to_string(), rule, remedy))
}
