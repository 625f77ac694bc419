//! From raw files to a [pack](crate::pack): what a data set's folder holds, and what becomes of each file.
//!
//! ```text
//! folder --list--> Listing: rows with an id, a label, and a Raw per modality --prepare--> pack
//! ```
//!
//! A data set is a file of this folder with a function `list(raw)` that knows its public layout; it opens no clip. What
//! becomes of a clip is its [`Treatment`]: a front-end of [`crate::audio`] for sound, a size for images, nothing for
//! vectors. The treatment is written into the pack with all its settings, so a figure can always be traced to its
//! front-end.
//!
//! | data set | folder | modalities |
//! |---|---|---|
//! | `ravdess` | speech clips `03-01-EE-II-SS-RR-AA.wav` in any folder below, `df_average_AUs_total.csv` | `audio`, `video` (35 action units of the face, averaged over the clip) |
//! | `cremad` | `AudioWAV/*.wav`, `Image-01-FPS/<clip>/*.jpg`, `VideoFlash/*.flv`, `Face_features/*.npy` | `audio`, `video` (frames of the face), `faces` where there are any |
//! | `ave` | `trainSet.txt`, `valSet.txt`, `testSet.txt`, `AVE/<id>.mp4` | `audio`, `video`, both of the event alone |
//! | `ucf51` | `UCF-101/<class>/v_….avi`, `ucfTrainTestlist/trainlist01.txt`, … | `audio`, `video` |
//! | `kinetics-sounds` | `my_train.txt`, `my_test.txt`, `<id>_<start>_<end>.mp4` | `audio`, `video` |
//! | `vggsound` | `vggsound.csv`, `<id>_<start>.mp4` | `audio`, `video` |
//! | `avmnist` | `pairs.csv` with `id, digit, speaker, split, wav, png` | `audio`, `image` |
//! | `manifest` | `manifest.csv` with `id`, `label`, optionally `split` and integer columns, and a column of paths for each modality | those columns |

mod ave;
mod avmnist;
mod check;
mod clips;
pub mod cremad;
mod degrade;
mod kinetics_sounds;
mod lists;
mod manifest;
mod preset;
mod ravdess;
mod raw;
mod treatment;
mod ucf51;
mod vggsound;

pub use ave::CLASSES as AVE_CLASSES;
pub use check::{Held, Report, check};
pub use raw::{Raw, Span};
pub use treatment::Treatment;

use crate::DataError;
use crate::pack::{Mended, Plan, WriteProgress, Written, is_complete, mend, write};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use treatment::{Ready, plan, treat};

/// A data set whose folder can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// RAVDESS speech with facial action units.
    Ravdess,
    /// CREMA-D: acted emotions, sound and frames.
    CremaD,
    /// AVE: events that are seen and heard, 28 classes.
    Ave,
    /// UCF101 without the classes that have no sound.
    Ucf51,
    /// Kinetics-Sounds: actions that are heard, 31 classes.
    #[serde(rename = "kinetics-sounds")]
    KineticsSounds,
    /// VGGSound: 309 classes of sounds whose source is seen.
    VggSound,
    /// Spoken and written digits, paired by class.
    AvMnist,
    /// Any set, by a CSV file.
    Manifest,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ravdess,
        Self::CremaD,
        Self::Ave,
        Self::Ucf51,
        Self::KineticsSounds,
        Self::VggSound,
        Self::AvMnist,
        Self::Manifest,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ravdess => "ravdess",
            Self::CremaD => "cremad",
            Self::Ave => "ave",
            Self::Ucf51 => "ucf51",
            Self::KineticsSounds => "kinetics-sounds",
            Self::VggSound => "vggsound",
            Self::AvMnist => "avmnist",
            Self::Manifest => "manifest",
        }
    }

    /// The data set of that name.
    pub fn named(name: &str) -> Result<Self, ConfigError> {
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|s| s.name() == name)
            .ok_or_else(|| ConfigError::unknown("dataset", name, &names))
    }

    /// What its folder holds, with the labels that are usual. No clip is opened.
    pub fn list(self, raw: &Path) -> Result<Listing, DataError> {
        self.list_by(raw, None)
    }

    /// What its folder holds, with the labels that are asked for. No clip is opened.
    pub fn list_by(self, raw: &Path, labels: Option<LabelSource>) -> Result<Listing, DataError> {
        if let (Some(labels), false) = (labels, self == Self::CremaD) {
            let rule = format!("the data set {} has one kind of labels only; leave it out", self.name());
            return Err(ConfigError::new("labels", labels.name(), rule).into());
        }
        let place = raw.display().to_string();
        if !raw.is_dir() {
            return Err(DataError::invalid(
                &place,
                "there is no such folder",
                "give the folder of the raw files",
            ));
        }
        match self {
            Self::Ravdess => ravdess::list(raw),
            Self::CremaD => cremad::list(raw, labels.unwrap_or_default()),
            Self::Ave => ave::list(raw),
            Self::Ucf51 => ucf51::list(raw),
            Self::KineticsSounds => kinetics_sounds::list(raw),
            Self::VggSound => vggsound::list(raw),
            Self::AvMnist => avmnist::list(raw),
            Self::Manifest => manifest::list(raw),
        }
    }
}

/// The rows of a data set as its folder has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// What the data set is called.
    pub name: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Names of the modalities.
    pub modalities: Vec<String>,
    /// The rows.
    pub rows: Vec<ListedRow>,
    /// Integer columns.
    pub columns: BTreeMap<String, Vec<i64>>,
    /// Named lists of rows, whose names end in `_index`.
    pub indices: BTreeMap<String, Vec<usize>>,
    /// The SHA-256 of every list of labels or splits that was read, by its name in the folder.
    pub lists: BTreeMap<String, String>,
    /// What was left out or is odd, a sentence each.
    pub warnings: Vec<String>,
}

/// Whose word for the emotion of a clip counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelSource {
    /// What the actor was asked to show.
    #[default]
    Intended,
    /// What most raters saw and heard.
    Consensus,
}

impl LabelSource {
    /// Its name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Consensus => "consensus",
        }
    }
}

/// One row of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedRow {
    /// Its name.
    pub id: String,
    /// Its class.
    pub label: u32,
    /// What each modality has, in the order of [`Listing::modalities`].
    pub raw: Vec<Raw>,
}

/// How a data set is prepared: a treatment for each modality.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// By modality; those that are not named have what is usual: `log-mel` for sound, their own size for images.
    pub inputs: BTreeMap<String, Treatment>,
    /// Only these modalities, in this order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modalities: Option<Vec<String>>,
    /// Whose labels; for `cremad` alone. Default: `intended`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<LabelSource>,
}

/// Prepares a data set into the folder `out`; see [`write`](fn@write) for what happens on errors, kills and second calls.
pub fn prepare(
    source: Source,
    raw: &Path,
    recipe: &Recipe,
    out: &Path,
    progress: &(dyn Fn(WriteProgress) + Sync),
    stop: &AtomicBool,
) -> Result<Written, DataError> {
    let listing = source.list_by(raw, recipe.labels)?;
    prepare_listed(source, listing, recipe, out, progress, stop)
}

/// [`prepare`] for a folder that was listed already, with [`Recipe::labels`] of the same recipe.
pub fn prepare_listed(
    source: Source,
    listing: Listing,
    recipe: &Recipe,
    out: &Path,
    progress: &(dyn Fn(WriteProgress) + Sync),
    stop: &AtomicBool,
) -> Result<Written, DataError> {
    let (listing, plan, mut ready) = planned(source, listing, recipe)?;
    if is_complete(out, &plan)? {
        return Ok(Written::Done { made: 0 });
    }
    fit(&listing, &mut ready, stop)?;
    let read = |row: usize, m: usize| treat(&listing.rows[row].id, &listing.rows[row].raw[m], &ready[m]);
    write(out, &plan, &read, progress, stop)
}

/// Reads a complete pack and makes the files again that are damaged or gone, and no others; see [`mend`](fn@mend).
pub fn mend_listed(
    source: Source,
    listing: Listing,
    recipe: &Recipe,
    out: &Path,
    progress: &(dyn Fn(WriteProgress) + Sync),
    stop: &AtomicBool,
) -> Result<Mended, DataError> {
    let (listing, plan, mut ready) = planned(source, listing, recipe)?;
    fit(&listing, &mut ready, stop)?;
    let read = |row: usize, m: usize| treat(&listing.rows[row].id, &listing.rows[row].raw[m], &ready[m]);
    mend(out, &plan, &read, progress, stop)
}

/// Finds out what some treatments take from the training part. Where it is told to stop it ends early, and no row may be
/// made, which whoever makes rows sees to by the same word.
fn fit(listing: &Listing, ready: &mut [Ready], stop: &AtomicBool) -> Result<(), DataError> {
    ready.iter_mut().enumerate().try_for_each(|(m, ready)| ready.fit(listing, m, stop))
}

/// What is to be written, and what makes it.
fn planned(
    source: Source,
    mut listing: Listing,
    recipe: &Recipe,
) -> Result<(Listing, Plan, Vec<Ready>), DataError> {
    if let Some(wanted) = &recipe.modalities {
        listing = choose(listing, wanted)?;
    }
    for name in recipe.inputs.keys() {
        if !listing.modalities.contains(name) {
            return Err(ConfigError::unknown("inputs", name, &listing.modalities).into());
        }
    }
    let (mut settings, mut modalities, mut ready) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (m, name) in listing.modalities.iter().enumerate() {
        let mut found = None;
        for first in listing.rows.iter().map(|row| &row.raw[m]).filter(|raw| **raw != Raw::Missing) {
            let treatment = match recipe.inputs.get(name) {
                Some(treatment) => treatment.clone(),
                None => Treatment::usual(first)?,
            };
            if let Some(made) = plan(name, first, &treatment)? {
                found = Some((treatment, made));
                break;
            }
        }
        let Some((treatment, (modality, made))) = found else {
            let rule = format!("no row has the modality `{name}`");
            return Err(DataError::invalid(&listing.name, rule, "leave it out of `modalities`"));
        };
        modalities.push(modality);
        ready.push(made);
        settings.insert(name.clone(), treatment);
    }
    let inputs = serde_json::to_value(&settings).map_err(|e| {
        DataError::invalid("recipe", format!("cannot be written ({e})"), "report this as a fault")
    })?;
    let mut preset = serde_json::json!({ "dataset": source.name(), "inputs": inputs });
    if let Some(labels) = recipe.labels {
        preset["labels"] = labels.name().into();
    }
    if ready.iter().any(Ready::is_noisy) {
        preset["noise_version"] = degrade::NOISE_VERSION.into();
    }
    if !listing.lists.is_empty() {
        preset["lists"] = serde_json::json!(listing.lists);
    }
    let plan = Plan {
        name: listing.name.clone(),
        preset,
        modalities,
        classes: listing.classes.clone(),
        ids: listing.rows.iter().map(|row| row.id.clone()).collect(),
        labels: listing.rows.iter().map(|row| row.label).collect(),
        columns: listing.columns.clone(),
        indices: listing.indices.clone(),
        rows_per_shard: 256,
    };
    Ok((listing, plan, ready))
}

/// The listing with some modalities alone.
fn choose(listing: Listing, wanted: &[String]) -> Result<Listing, DataError> {
    let mut places = Vec::new();
    for (at, name) in wanted.iter().enumerate() {
        if wanted[..at].contains(name) {
            return Err(ConfigError::new("modalities", format!("{name:?}"), "is named twice").into());
        }
        match listing.modalities.iter().position(|m| m == name) {
            Some(place) => places.push(place),
            None => return Err(ConfigError::unknown("modalities", name, &listing.modalities).into()),
        }
    }
    let rows = listing
        .rows
        .into_iter()
        .map(|row| ListedRow { raw: places.iter().map(|&m| row.raw[m].clone()).collect(), ..row });
    Ok(Listing { modalities: wanted.to_vec(), rows: rows.collect(), ..listing })
}
