//! Pretrained checkpoints: one entry from a file, a folder or a hub into the parameters of a [`ParamStore`].
//!
//! ```text
//! Weights::from_file(path)              one safetensors file, or the index of several
//! Weights::from_dir(folder)             model.safetensors, or model.safetensors.index.json with its shards
//! Weights::from_hub(repo, revision)     the same from a model hub (feature `hub`), by its cache or by HTTP
//! ```
//!
//! Opening reads and checks the headers only; a tensor is read when it is loaded, converted to the type of the store and
//! copied to its device. Nothing that a file says is believed before it is checked: a damaged or hostile file is an error
//! that names file, tensor, value and rule, and takes no more memory than its own length. Pickled checkpoints
//! (`pytorch_model.bin`, `.pt`, `.pth`, `.ckpt`) are refused, because opening one runs its code; the message says how to
//! convert it outside.
//!
//! A function from the checkpoint's names to ours, such as the `from_…` functions of the encoders, says which tensors
//! belong where; `None` leaves one out. Values are never transposed.
//!
//! | [`Matching`] | a parameter without a tensor | a tensor without a parameter | a wrong shape or type |
//! |---|---|---|---|
//! | `Strict` | error | error | error |
//! | `Partial` | stays as it is: [`Report::fresh`] | [`Report::left_over`] | stays as it is: [`Report::misshapen`] |
//!
//! An error lists everything that does not fit, ten of each kind by name, with the nearest name, and then the store is as
//! it was before. Two tensors for one parameter are an error in both, and so is a checkpoint of which nothing fits.
//!
//! ```
//! use candle_core::{DType, Device};
//! use mm_core::{Init, ParamStore};
//! use mm_encoders::weights::{Matching, Weights, export};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let folder = folder.path().join("exported");
//! let mut trained = ParamStore::new(1, DType::F32, &Device::Cpu);
//! trained.root().at("encoder").at("audio").param("weight", (2, 3), Init::linear(3))?;
//! let config = serde_json::json!({"dim": 2});
//! let theirs = |name: &str| Some(format!("model.{name}"));
//! export::save_folder(&folder, &trained, "encoder.audio", theirs, &config, "# An encoder\n")?;
//!
//! let weights = Weights::from_dir(&folder)?;
//! assert_eq!(weights.config()?["dim"], 2);
//! let mut store = ParamStore::new(2, DType::F64, &Device::Cpu);
//! store.root().at("encoder").at("video").param("weight", (2, 3), Init::linear(3))?;
//! let ours = |name: &str| name.strip_prefix("model.").map(str::to_owned);
//! let report = weights.load_into(&store, "encoder.video", ours, Matching::Strict)?;
//! assert_eq!(report.loaded, ["encoder.video.weight"]);
//! # Ok(())
//! # }
//! ```

pub mod export;

mod error;
mod file;
mod folder;
mod header;
#[cfg(feature = "hub")]
mod hub;
mod load;

pub use error::{Result, WeightsError};
#[cfg(feature = "hub")]
pub use hub::HubConfig;
pub use load::{Matching, Mismatch, Misshapen, Report, Unmatched};

use candle_core::Tensor;
use file::TensorFile;
use header::Info;
use mm_core::ParamStore;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a checkpoint came from, for the record of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// One file.
    File {
        /// Its path as given.
        path: PathBuf,
    },
    /// A folder.
    Folder {
        /// Its path as given.
        path: PathBuf,
    },
    /// A repository of a hub.
    Hub {
        /// Its name, `owner/name`.
        repo: String,
        /// The revision as asked for: a branch, a tag or a commit.
        revision: String,
        /// The commit that the revision stood for.
        commit: String,
    },
}

/// An open checkpoint: names, types and shapes are known, values are still on the disk.
#[derive(Debug)]
pub struct Weights {
    source: Source,
    dir: PathBuf,
    files: Vec<TensorFile>,
    // Which file a tensor is in.
    tensors: BTreeMap<String, usize>,
}

impl Weights {
    /// Opens a safetensors file, or all files that an index (`….safetensors.index.json`) names.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let index = path.to_string_lossy().ends_with(".safetensors.index.json");
        let files = if index { folder::open_index(dir, path)? } else { vec![TensorFile::open(path)?] };
        Ok(Self::new(Source::File { path: path.to_owned() }, dir.to_owned(), files))
    }

    /// Opens the folder of a checkpoint: `model.safetensors`, or `model.safetensors.index.json` with its shards.
    ///
    /// A link in the folder that leads out of it is refused, save those of a hub's cache to its own files.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        Ok(Self::new(Source::Folder { path: dir.to_owned() }, dir.to_owned(), folder::open(dir)?))
    }

    /// Opens a checkpoint of a model hub with the settings of the environment, see [`HubConfig::from_env`].
    ///
    /// `repo` is `owner/name` or `name`; `revision` a branch, a tag or, so that a run can be repeated, a commit.
    #[cfg(feature = "hub")]
    pub fn from_hub(repo: &str, revision: &str) -> Result<Self> {
        Self::from_hub_with(repo, revision, &HubConfig::from_env())
    }

    /// Opens a checkpoint of a model hub.
    ///
    /// Files that the cache lacks are fetched, compared with the size and checksum that the hub announces, and only then
    /// put into the cache; files that the cache has are compared with their checksum each time. A commit that is in the
    /// cache needs no request; a branch or a tag is asked for, and where the hub cannot be reached, what it last stood for
    /// is taken from the cache.
    #[cfg(feature = "hub")]
    pub fn from_hub_with(repo: &str, revision: &str, config: &HubConfig) -> Result<Self> {
        let found = hub::resolve(repo, revision, config)?;
        let source =
            Source::Hub { repo: repo.to_owned(), revision: revision.to_owned(), commit: found.commit };
        let files = folder::open(&found.snapshot)?;
        Ok(Self::new(source, found.snapshot, files))
    }

    fn new(source: Source, dir: PathBuf, files: Vec<TensorFile>) -> Self {
        let mut tensors = BTreeMap::new();
        for (place, file) in files.iter().enumerate() {
            tensors.extend(file.header.tensors.keys().map(|name| (name.clone(), place)));
        }
        Self { source, dir, files, tensors }
    }

    /// Where the checkpoint came from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The commit of a checkpoint from a hub.
    pub fn commit(&self) -> Option<&str> {
        match &self.source {
            Source::Hub { commit, .. } => Some(commit),
            _ => None,
        }
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|(_, info)| info.shape.as_slice())
    }

    /// The entry `key` of the metadata of the first file that has it, such as `format`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.files.iter().find_map(|f| f.header.metadata.get(key)).map(String::as_str)
    }

    /// Reads one tensor of floats, in the type of the checkpoint and on the CPU.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        if let Some((file, info)) = self.info(name) {
            return file.read(name, info);
        }
        let file = self.dir.display().to_string();
        let rule = format!("there is no tensor `{}` among {}", error::shown(name), self.tensors.len());
        let near = load::nearest(name, self.names()).map(|n| format!("the nearest name is `{n}`"));
        Err(WeightsError::invalid(&file, rule, near.unwrap_or_else(|| "see `Weights::names`".to_owned())))
    }

    /// `config.json` beside the weights.
    pub fn config(&self) -> Result<serde_json::Value> {
        folder::json(&self.dir, "config.json")?.ok_or_else(|| {
            let file = self.dir.join("config.json").display().to_string();
            WeightsError::invalid(&file, "there is no such file", "put the model's configuration there")
        })
    }

    /// `preprocessor_config.json` beside the weights, if there is one.
    pub fn preprocessor_config(&self) -> Result<Option<serde_json::Value>> {
        folder::json(&self.dir, "preprocessor_config.json")
    }

    /// Loads the parameters and buffers under `prefix`; `rename` gives from the checkpoint's name the name under the
    /// prefix. All or nothing: after an error the store is as before. See the [module](self) for the rules.
    pub fn load_into(
        &self,
        store: &ParamStore,
        prefix: &str,
        rename: impl Fn(&str) -> Option<String>,
        how: Matching,
    ) -> Result<Report> {
        load::load_into(self, store, prefix, &rename, how)
    }

    fn info(&self, name: &str) -> Option<(&TensorFile, &Info)> {
        let file = self.files.get(*self.tensors.get(name)?)?;
        Some((file, file.header.tensors.get(name)?))
    }
}
