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
//! | `cremad` | `AudioWAV/*.wav`, `Image-01-FPS/<clip>/*.jpg`, `VideoFlash/*.flv` | `audio`, `video` (frames of the face) |
//! | `avmnist` | `pairs.csv` with `id, digit, speaker, split, wav, png` | `audio`, `image` |
//! | `manifest` | `manifest.csv` with `id`, `label`, optionally `split` and integer columns, and a column of paths for each modality | those columns |

mod avmnist;
mod check;
pub mod cremad;
mod degrade;
mod manifest;
mod ravdess;

pub use check::{Held, Report, check};
use degrade::Projection;

use crate::audio::{Clip, FrontEnd, Planned};
use crate::image::{Filter, Frame};
use crate::pack::{Element, Plan, PlannedModality, Row, WriteProgress, Written, write};
use crate::video::VideoConfig;
use crate::{DataError, npy};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A data set whose folder can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// RAVDESS speech with facial action units.
    Ravdess,
    /// CREMA-D: acted emotions, sound and frames.
    CremaD,
    /// Spoken and written digits, paired by class.
    AvMnist,
    /// Any set, by a CSV file.
    Manifest,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ravdess, Self::CremaD, Self::AvMnist, Self::Manifest];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ravdess => "ravdess",
            Self::CremaD => "cremad",
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

/// What a row has of a modality before it is prepared.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// A file with sound.
    Sound(PathBuf),
    /// A file with an image.
    Image(PathBuf),
    /// Files with the frames of a clip, in their order; at least one.
    Frames(Vec<PathBuf>),
    /// A file with a video.
    Video(PathBuf),
    /// A file with an array, `.npy`.
    Array(PathBuf),
    /// Numbers.
    Vector(Vec<f32>),
    /// Nothing.
    Missing,
}

/// What becomes of the files of one modality.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Treatment {
    /// Sound through a front-end.
    Sound {
        /// The front-end.
        front_end: FrontEnd,
        /// Type of the values in the pack.
        #[serde(default = "floats")]
        element: Element,
        /// Power of the clip over that of white noise that is added to it, in decibels, -60 to 120. Default: no noise.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        noise_db: Option<f64>,
    },
    /// Images as bytes, in one size.
    Image {
        /// Height and width; images of another size are resized as Pillow does it (bilinear). Default: that of the files, which must be
        /// the same for all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<[usize; 2]>,
        /// 1 for grey, 3 for colour.
        channels: usize,
        /// Share of their variance over the training part that images keep, above 0, to 1. Default: all of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        energy: Option<f64>,
    },
    /// The first frames of a clip as bytes, in one size.
    Frames {
        /// Height and width; other sizes are resized as Pillow does it (bilinear). Default: that of the first clip.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<[usize; 2]>,
        /// How many frames, from 1 to 1000; a clip that has fewer repeats its last one. Default: 1.
        #[serde(default = "one")]
        count: usize,
        /// 1 for grey, 3 for colour. Default: 3.
        #[serde(default = "three")]
        channels: usize,
        /// In a video, frames from one to the next. Default: as many as in a second, cut to a whole number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<usize>,
    },
    /// Numbers as they are.
    Vector,
}

fn one() -> usize {
    1
}

fn three() -> usize {
    3
}

fn floats() -> Element {
    Element::F32
}

impl Treatment {
    /// What is usual for the first file of a modality.
    fn usual(raw: &Raw) -> Result<Self, DataError> {
        Ok(match raw {
            Raw::Sound(_) => {
                Self::Sound { front_end: FrontEnd::named("log-mel")?, element: Element::F32, noise_db: None }
            }
            Raw::Image(path) => {
                let frame = Frame::open(path)?;
                Self::Image { size: None, channels: frame.channels, energy: None }
            }
            Raw::Frames(_) | Raw::Video(_) => Self::Frames { size: None, count: 1, channels: 3, step: None },
            Raw::Array(_) | Raw::Vector(_) | Raw::Missing => Self::Vector,
        })
    }
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

/// A treatment with everything computed that does not depend on the clip.
enum Ready {
    Sound { planned: Planned, channel: Option<usize>, noise_db: Option<f64> },
    Image { height: usize, width: usize, channels: usize, kept: Option<Projection> },
    Frames { height: usize, width: usize, channels: usize, video: VideoConfig, count: usize },
    Vector,
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
    mut listing: Listing,
    recipe: &Recipe,
    out: &Path,
    progress: &(dyn Fn(WriteProgress) + Sync),
    stop: &AtomicBool,
) -> Result<Written, DataError> {
    if let Some(wanted) = &recipe.modalities {
        listing = choose(listing, wanted)?;
    }
    for name in recipe.inputs.keys() {
        if !listing.modalities.contains(name) {
            return Err(ConfigError::unknown("inputs", name, &listing.modalities).into());
        }
    }
    let mut settings = BTreeMap::new();
    let mut planned = Vec::new();
    let mut ready = Vec::new();
    for (m, name) in listing.modalities.iter().enumerate() {
        let Some(first) = listing.rows.iter().map(|row| &row.raw[m]).find(|raw| **raw != Raw::Missing) else {
            let rule = format!("no row has the modality `{name}`");
            return Err(DataError::invalid(&listing.name, rule, "leave it out of `modalities`"));
        };
        let treatment = match recipe.inputs.get(name) {
            Some(treatment) => treatment.clone(),
            None => Treatment::usual(first)?,
        };
        let (plan, mut made) = plan(name, first, &treatment)?;
        if let (Treatment::Image { energy: Some(energy), .. }, Ready::Image { .. }) = (&treatment, &made) {
            let kept = projection(&listing, name, m, *energy, &made)?;
            if let Ready::Image { kept: place, .. } = &mut made {
                *place = Some(kept);
            }
        }
        planned.push(plan);
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
    let plan = Plan {
        name: listing.name.clone(),
        preset,
        modalities: planned,
        classes: listing.classes.clone(),
        ids: listing.rows.iter().map(|row| row.id.clone()).collect(),
        labels: listing.rows.iter().map(|row| row.label).collect(),
        columns: listing.columns.clone(),
        indices: listing.indices.clone(),
        rows_per_shard: 256,
    };
    let read = |row: usize, m: usize| {
        let listed = &listing.rows[row];
        treat(&listed.id, &listed.raw[m], &ready[m])
    };
    write(out, &plan, &read, progress, stop)
}

/// The listing with some modalities alone.
fn choose(listing: Listing, wanted: &[String]) -> Result<Listing, DataError> {
    let mut places = Vec::new();
    for name in wanted {
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

/// What the pack holds of a modality, found out with its first clip.
fn plan(name: &str, first: &Raw, treatment: &Treatment) -> Result<(PlannedModality, Ready), DataError> {
    let modality = |dims: Vec<usize>, ragged, element| PlannedModality {
        name: name.to_owned(),
        dims,
        ragged,
        frames: false,
        element,
    };
    let unfit = |what: &str| {
        let rule = format!("the rows of `{name}` are no {what}");
        ConfigError::new(format!("inputs.{name}"), "this treatment", rule)
    };
    Ok(match (treatment, first) {
        (Treatment::Sound { front_end, element, noise_db }, Raw::Sound(path)) => {
            noise_db.map_or(Ok(()), |decibels| degrade::check_noise(name, decibels))?;
            let planned = front_end.plan()?;
            let frames = planned.open(path)?;
            let [time, bins] = frames.shape;
            let samples = matches!(front_end, FrontEnd::Waveform(_));
            let ragged = front_end.input().samples.is_none();
            let dims = match (samples, ragged) {
                (true, _) => vec![time * bins],
                (false, true)
                    if front_end.output().orientation == crate::audio::output::Orientation::BinsTime =>
                {
                    let rule = "an image of bins x time needs one length for all clips: set input.samples";
                    return Err(
                        ConfigError::new(format!("inputs.{name}.orientation"), "bins-time", rule).into()
                    );
                }
                (false, _) => vec![time, bins],
            };
            let ready = Ready::Sound { planned, channel: front_end.input().channel, noise_db: *noise_db };
            (modality(dims, ragged, *element), ready)
        }
        (Treatment::Image { size, channels, energy }, Raw::Image(path)) => {
            check_channels(name, *channels)?;
            energy.map_or(Ok(()), |energy| degrade::check_energy(name, energy))?;
            let [height, width] = if let Some(size) = size {
                *size
            } else {
                let frame = Frame::open(path)?;
                [frame.height, frame.width]
            };
            let modality = modality(vec![1, height, width, *channels], false, Element::U8);
            (
                PlannedModality { frames: true, ..modality },
                Ready::Image { height, width, channels: *channels, kept: None },
            )
        }
        (Treatment::Frames { size, count, channels, step }, Raw::Frames(_) | Raw::Video(_)) => {
            check_channels(name, *channels)?;
            if !(1..=1000).contains(count) {
                let rule = "must be an integer in [1, 1000]";
                return Err(ConfigError::new(format!("inputs.{name}.count"), count, rule).into());
            }
            let mut video = VideoConfig { step: *step, count: Some(1), ..VideoConfig::default() };
            video.check().map_err(|e| e.within(&format!("inputs.{name}")))?;
            let [height, width] = match size {
                Some(size) => *size,
                None => clip_frames(first, &video)?.first().map_or([0, 0], |f| [f.height, f.width]),
            };
            video.count = Some(*count);
            let modality = modality(vec![*count, height, width, *channels], false, Element::U8);
            let ready = Ready::Frames { height, width, channels: *channels, video, count: *count };
            (PlannedModality { frames: true, ..modality }, ready)
        }
        (Treatment::Vector, Raw::Vector(values)) => {
            (modality(vec![values.len()], false, Element::F32), Ready::Vector)
        }
        (Treatment::Vector, Raw::Array(path)) => {
            let array = npy::read(path)?;
            (modality(array.shape.clone(), false, Element::F32), Ready::Vector)
        }
        (Treatment::Sound { .. }, _) => return Err(unfit("files with sound").into()),
        (Treatment::Image { .. }, _) => return Err(unfit("files with images").into()),
        (Treatment::Frames { .. }, _) => return Err(unfit("clips of frames").into()),
        (Treatment::Vector, _) => return Err(unfit("numbers").into()),
    })
}

/// What the images of a modality keep, by those of the training part.
fn projection(
    listing: &Listing,
    name: &str,
    m: usize,
    energy: f64,
    ready: &Ready,
) -> Result<Projection, DataError> {
    let Some(train) = listing.indices.get("train_index") else {
        let rule = "needs a data set with a training part of its own: other rows must have no say in it";
        return Err(ConfigError::new(format!("inputs.{name}.energy"), energy, rule).into());
    };
    let Ready::Image { height, width, channels, .. } = *ready else {
        return Err(ConfigError::new(format!("inputs.{name}.energy"), energy, "is for images").into());
    };
    let images = train.iter().filter_map(|&row| match &listing.rows.get(row)?.raw[m] {
        Raw::Image(path) => Some(Frame::open(path).and_then(|frame| fitted(frame, height, width, channels))),
        _ => None,
    });
    Projection::fit(name, height * width * channels, energy, images)
}

fn check_channels(name: &str, channels: usize) -> Result<(), ConfigError> {
    if [1, 3].contains(&channels) {
        return Ok(());
    }
    Err(ConfigError::new(format!("inputs.{name}.channels"), channels, "must be 1 (grey) or 3 (colour)"))
}

/// The first frames of a clip, at most as many as the settings say.
fn clip_frames(raw: &Raw, video: &VideoConfig) -> Result<Vec<Frame>, DataError> {
    match raw {
        Raw::Frames(paths) => {
            paths.iter().take(video.count.unwrap_or(usize::MAX)).map(|path| Frame::open(path)).collect()
        }
        Raw::Video(path) => video.program()?.clip(path, video),
        _ => Ok(Vec::new()),
    }
}

/// The pixels of a frame in one size.
fn fitted(frame: Frame, height: usize, width: usize, channels: usize) -> Result<Vec<u8>, DataError> {
    let frame = if channels == 1 { frame.into_grey() } else { frame.into_rgb() };
    if (frame.height, frame.width) == (height, width) {
        return Ok(frame.pixels);
    }
    Ok(frame.resize(height, width, Filter::Bilinear)?.pixels)
}

/// The values of one row of one modality.
fn treat(id: &str, raw: &Raw, ready: &Ready) -> Result<Option<Row>, DataError> {
    Ok(Some(match (raw, ready) {
        (Raw::Missing, _) => return Ok(None),
        (Raw::Sound(path), Ready::Sound { planned, noise_db: None, .. }) => {
            Row::Floats(planned.open(path)?.values)
        }
        (Raw::Sound(path), Ready::Sound { planned, channel, noise_db: Some(decibels) }) => {
            let mut clip = Clip::open_channel(path, *channel)?;
            degrade::add_noise(id, &mut clip.samples, *decibels);
            Row::Floats(planned.apply_named(&path.display().to_string(), &clip)?.values)
        }
        (Raw::Image(path), Ready::Image { height, width, channels, kept }) => {
            let pixels = fitted(Frame::open(path)?, *height, *width, *channels)?;
            Row::Bytes(match kept {
                Some(kept) => kept.apply(&pixels),
                None => pixels,
            })
        }
        (Raw::Frames(_) | Raw::Video(_), Ready::Frames { height, width, channels, video, count }) => {
            let mut pixels = Vec::with_capacity(count * height * width * channels);
            for frame in clip_frames(raw, video)? {
                pixels.extend(fitted(frame, *height, *width, *channels)?);
            }
            let size = height * width * channels;
            // A clip that is shorter than the others shows its last frame for the rest of the time.
            while pixels.len() >= size && pixels.len() < count * size {
                pixels.extend_from_within(pixels.len() - size..);
            }
            Row::Bytes(pixels)
        }
        (Raw::Vector(values), Ready::Vector) => Row::Floats(values.clone()),
        (Raw::Array(path), Ready::Vector) => Row::Floats(npy::read(path)?.values.into_f32()),
        _ => {
            let rule = "is of another kind than the first row";
            return Err(DataError::invalid(id, rule, "give each modality files of one kind"));
        }
    }))
}
