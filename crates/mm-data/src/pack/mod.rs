//! Packs: prepared rows of any shape in safetensors shards, read one by one when they are needed.
//!
//! ```text
//! PACK/index.json             name, preset, modalities, classes, ids, and the size and SHA-256 of every file
//! PACK/table.safetensors      y, length_<modality>, other columns and index lists, as in a feature file
//! PACK/shard-00000.safetensors …   x_<modality>: (rows, …) where all rows have one shape, else (sum of lengths, …)
//! ```
//!
//! | type | what for | a value is |
//! |---|---|---|
//! | `F32` | features, spectrograms | itself |
//! | `F16` | spectrograms at half the size | itself, 11 bits of it |
//! | `I16` | waveforms of 16 bits, exactly | n / 32768 |
//! | `U8` | images and frames | n / 255 |
//!
//! Frames lie as (frames, height, width, channels) and are handed on with their channels first, as encoders of images take
//! them: (T, C, H, W); a single frame as (C, H, W), a single grey one as (H, W). The setting `frames` of an input puts a
//! [`FrameTransform`](crate::image::FrameTransform) between: crops, flips, sizes, statistics.
//!
//! A row is read by its position in the file, by as many threads as ask and without a lock; nothing is mapped into
//! memory, so a file that is cut short while it is read, on a network disk say, is an error and not a fault of the
//! process. A row that lacks a modality has length 0.
//!
//! [`write`](fn@write) makes a pack: shard after shard under a temporary name, synced and renamed, `index.json` last, so a pack that has
//! an index is complete. A killed call goes on after the last complete shard. [`verify`] reads everything again and
//! compares the checksums, [`mend`](fn@mend) makes what is damaged again, alone.

mod config;
mod lock;
mod mend;
mod plan;
mod read;
mod rows;
mod shard;
mod verify;
mod write;

pub use config::{Normalize, PackedConfig, PackedInputConfig, Pad};
pub use mend::{Mended, mend};
pub use plan::{Plan, PlannedModality};
pub use read::Pack;
pub use rows::PackedInput;
pub use verify::{Verified, verify};
pub use write::{Row, WriteProgress, Written, write};

pub(crate) use plan::MAX_ROW;
pub(crate) use write::is_complete;

use serde::{Deserialize, Serialize};

/// The number of the layout; a reader refuses others.
pub(crate) const FORMAT: u32 = 1;

/// Types of values in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// n / 32768.
    I16,
    /// n / 255.
    U8,
}

impl Element {
    /// Bytes of a value.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::I16 => 2,
            Self::U8 => 1,
        }
    }

    /// Its name in a safetensors file.
    pub(crate) fn dtype(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
            Self::I16 => safetensors::Dtype::I16,
            Self::U8 => safetensors::Dtype::U8,
        }
    }
}

/// `index.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// 1.
    pub format: u32,
    /// What the data set is called.
    pub name: String,
    /// How the rows were made: the front-ends with their settings and versions.
    pub preset: serde_json::Value,
    /// Number of rows.
    pub rows: usize,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The modalities.
    pub modalities: Vec<PackedModality>,
    /// The shards, in the order of their rows.
    pub shards: Vec<FileEntry>,
    /// Labels, lengths, columns and index lists.
    pub table: FileEntry,
    /// The id of each row.
    pub ids: Vec<String>,
}

/// One modality of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedModality {
    /// Its name.
    pub name: String,
    /// Sizes of a row; where `ragged`, the first is that of the longest.
    pub dims: Vec<usize>,
    /// Whether rows differ in their first size.
    pub ragged: bool,
    /// Whether rows are frames, (frames, height, width, channels) of bytes.
    #[serde(default)]
    pub frames: bool,
    /// Type of the values.
    pub element: Element,
}

/// A file of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name in the pack's folder.
    pub file: String,
    /// Rows that it holds.
    pub rows: usize,
    /// Its size.
    pub bytes: u64,
    /// Its checksum in hexadecimal.
    pub sha256: String,
}
