//! What becomes of the files of a modality: front-ends for sound, one size for pictures, numbers as they are.
//!
//! | treatment | of | in the pack |
//! |---|---|---|
//! | `sound` | wav files, and the sound of videos | what the front-end gives; rows of different lengths unless it fixes one |
//! | `image` | pictures | (1, height, width, channels), bytes |
//! | `frames` | folders of frames, videos | (count, height, width, channels), bytes |
//! | `vector` | numbers, `.npy` of one shape | that shape |
//! | `sequence` | `.npy` of (T, …) with any T | rows of different lengths, at most `most` |

use super::degrade::{self, Projection};
use super::raw::{Noise, sound};
use super::{Listing, Raw};
use crate::audio::{FrontEnd, Planned};
use crate::image::{Filter, Frame};
use crate::pack::{Element, PlannedModality, Row};
use crate::video::VideoConfig;
use crate::{DataError, npy};
use mm_core::ConfigError;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The largest height and width of frames in a pack.
const MAX_SIDE: usize = 8192;

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
        /// Height and width, each from 1 to 8192; images of another size are resized as Pillow does it (bilinear). Default:
        /// that of the files, which must be the same for all.
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
        /// Height and width, each from 1 to 8192; other sizes are resized as Pillow does it (bilinear). Default: that of the
        /// first clip.
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
    /// Arrays (T, …) of different lengths.
    Sequence {
        /// How many places of the first axis are kept, from the first on. Default: all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most: Option<usize>,
    },
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
    pub(super) fn usual(raw: &Raw) -> Result<Self, DataError> {
        Ok(match raw {
            Raw::Sound(_) | Raw::Track(..) => {
                Self::Sound { front_end: FrontEnd::named("log-mel")?, element: Element::F32, noise_db: None }
            }
            Raw::Image(path) => {
                let frame = Frame::open(path)?;
                Self::Image { size: None, channels: frame.channels, energy: None }
            }
            Raw::Frames(_) | Raw::Video(_) | Raw::Scene(..) => {
                Self::Frames { size: None, count: 1, channels: 3, step: None }
            }
            Raw::Array(_) | Raw::Vector(_) | Raw::Missing => Self::Vector,
        })
    }
}

/// A treatment with everything computed that does not depend on the clip.
pub(super) enum Ready {
    Sound { modality: String, planned: Planned, channel: Option<usize>, noise_db: Option<f64> },
    Image(Picture),
    Frames { height: usize, width: usize, channels: usize, video: VideoConfig, count: usize },
    Vector,
    Sequence { inner: Vec<usize>, most: usize },
}

/// What becomes of images.
pub(super) struct Picture {
    modality: String,
    height: usize,
    width: usize,
    channels: usize,
    /// Whether an image of another size is resized, not refused.
    resize: bool,
    energy: Option<f64>,
    /// What is kept of them, once that is known.
    kept: Option<Projection>,
}

/// What the pack holds of a modality, found out with its first clip; nothing where that is a video without sound.
pub(super) fn plan(
    name: &str,
    first: &Raw,
    treatment: &Treatment,
) -> Result<Option<(PlannedModality, Ready)>, DataError> {
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
    Ok(Some(match (treatment, first) {
        (Treatment::Sound { front_end, element, noise_db }, Raw::Sound(_) | Raw::Track(..)) => {
            noise_db.map_or(Ok(()), |decibels| degrade::check_noise(name, decibels))?;
            let planned = front_end.plan()?;
            let channel = front_end.input().channel;
            let Some(frames) = sound(first, &planned, channel, None)? else { return Ok(None) };
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
            let ready = Ready::Sound { modality: name.to_owned(), planned, channel, noise_db: *noise_db };
            (modality(dims, ragged, *element), ready)
        }
        (Treatment::Image { size, channels, energy }, Raw::Image(path)) => {
            check_channels(name, *channels)?;
            energy.map_or(Ok(()), |energy| degrade::check_energy(name, energy))?;
            let [height, width] = if let Some(size) = size {
                check_size(name, *size)?;
                *size
            } else {
                let frame = Frame::open(path)?;
                [frame.height, frame.width]
            };
            let planned = modality(vec![1, height, width, *channels], false, Element::U8);
            let picture = Picture {
                modality: name.to_owned(),
                height,
                width,
                channels: *channels,
                resize: size.is_some(),
                energy: *energy,
                kept: None,
            };
            (PlannedModality { frames: true, ..planned }, Ready::Image(picture))
        }
        (
            Treatment::Frames { size, count, channels, step },
            Raw::Frames(_) | Raw::Video(_) | Raw::Scene(..),
        ) => {
            check_channels(name, *channels)?;
            if !(1..=1000).contains(count) {
                let rule = "must be an integer in [1, 1000]";
                return Err(ConfigError::new(format!("inputs.{name}.count"), count, rule).into());
            }
            let mut video = VideoConfig { step: *step, count: Some(1), ..VideoConfig::default() };
            video.check().map_err(|e| e.within(&format!("inputs.{name}")))?;
            let [height, width] = match size {
                Some(size) => {
                    check_size(name, *size)?;
                    *size
                }
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
        (Treatment::Sequence { most }, Raw::Array(path)) => {
            if *most == Some(0) {
                let rule = "must be at least 1; leave it out for all";
                return Err(ConfigError::new(format!("inputs.{name}.most"), 0, rule).into());
            }
            let mut shape = npy::read(path)?.shape;
            if shape.len() < 2 || shape.contains(&0) {
                let rule = format!("has the shape {shape:?}, which is no sequence of vectors (T, width)");
                return Err(DataError::invalid(
                    &path.display().to_string(),
                    rule,
                    "use `vector`, or reshape it",
                ));
            }
            let most = most.unwrap_or(usize::MAX);
            shape[0] = shape[0].min(most);
            let inner = shape[1..].to_vec();
            (modality(shape, true, Element::F32), Ready::Sequence { inner, most })
        }
        (Treatment::Sound { .. }, _) => return Err(unfit("files with sound").into()),
        (Treatment::Image { .. }, _) => return Err(unfit("files with images").into()),
        (Treatment::Frames { .. }, _) => return Err(unfit("clips of frames").into()),
        (Treatment::Vector, _) => return Err(unfit("numbers").into()),
        (Treatment::Sequence { .. }, _) => return Err(unfit("`.npy` files").into()),
    }))
}

impl Ready {
    /// Whether noise is added.
    pub(super) fn is_noisy(&self) -> bool {
        matches!(self, Self::Sound { noise_db: Some(_), .. })
    }

    /// Finds out what images keep, by those of the training part, where the treatment of modality `m` asks for that.
    pub(super) fn fit(&mut self, listing: &Listing, m: usize, stop: &AtomicBool) -> Result<(), DataError> {
        /// Images that are decoded at once.
        const BLOCK: usize = 256;
        let Self::Image(picture) = self else { return Ok(()) };
        let Some(energy) = picture.energy else { return Ok(()) };
        let name = &picture.modality;
        let Some(train) = listing.indices.get("train_index") else {
            let rule = "needs a data set with a training part of its own: other rows must have no say in it";
            return Err(ConfigError::new(format!("inputs.{name}.energy"), energy, rule).into());
        };
        let decoded = |&row: &usize| match &listing.rows.get(row)?.raw[m] {
            Raw::Image(path) => Some(picture.open(path)),
            _ => None,
        };
        let blocks = train.chunks(BLOCK).take_while(|_| !stop.load(Ordering::Relaxed));
        let images = blocks.flat_map(|rows| rows.par_iter().filter_map(decoded).collect::<Vec<_>>());
        let size = picture.height * picture.width * picture.channels;
        let kept = Projection::fit(name, size, energy, images);
        if !stop.load(Ordering::Relaxed) {
            picture.kept = Some(kept?);
        }
        Ok(())
    }
}

impl Picture {
    /// The pixels of an image in the size of all.
    fn open(&self, path: &Path) -> Result<Vec<u8>, DataError> {
        let frame = Frame::open(path)?;
        if !self.resize && (frame.height, frame.width) != (self.height, self.width) {
            let rule = format!(
                "has {} x {} pixels, the first image of `{}` {} x {}",
                frame.height, frame.width, self.modality, self.height, self.width
            );
            let remedy =
                format!("give `size = [height, width]` in inputs.{}: then all are resized", self.modality);
            return Err(DataError::invalid(&path.display().to_string(), rule, remedy));
        }
        fitted(frame, self.height, self.width, self.channels)
    }
}

fn check_size(name: &str, size: [usize; 2]) -> Result<(), ConfigError> {
    if size.iter().all(|side| (1..=MAX_SIDE).contains(side)) {
        return Ok(());
    }
    let rule = format!("must be height and width, integers in [1, {MAX_SIDE}]");
    Err(ConfigError::new(format!("inputs.{name}.size"), format!("{size:?}"), rule))
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
        Raw::Scene(path, span) => {
            let ffmpeg = video.program()?;
            let info = ffmpeg.probe(path)?;
            let (start, within) = span.frames(&info);
            let step = video.step.unwrap_or_else(|| info.whole_fps());
            let count = within.div_ceil(step).min(video.count.unwrap_or(usize::MAX));
            ffmpeg.clip(path, &VideoConfig { start, step: Some(step), count: Some(count), ..video.clone() })
        }
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
pub(super) fn treat(id: &str, raw: &Raw, ready: &Ready) -> Result<Option<Row>, DataError> {
    Ok(Some(match (raw, ready) {
        (Raw::Missing, _) => return Ok(None),
        (Raw::Sound(_) | Raw::Track(..), Ready::Sound { modality, planned, channel, noise_db }) => {
            let noise = noise_db.map(|decibels| Noise { clip: id, modality, decibels });
            match sound(raw, planned, *channel, noise)? {
                Some(frames) => Row::Floats(frames.values),
                None => return Ok(None),
            }
        }
        (Raw::Image(path), Ready::Image(picture)) => {
            let pixels = picture.open(path)?;
            Row::Bytes(match &picture.kept {
                Some(kept) => kept.apply(&pixels),
                None => pixels,
            })
        }
        (
            Raw::Frames(_) | Raw::Video(_) | Raw::Scene(..),
            Ready::Frames { height, width, channels, video, count },
        ) => {
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
        (Raw::Array(path), Ready::Sequence { inner, most }) => {
            let array = npy::read(path)?;
            if array.shape.get(1..) != Some(inner.as_slice()) {
                let rule = format!("has the shape {:?}, the first row (T, …) of {inner:?}", array.shape);
                let remedy = "make all arrays of one kind";
                return Err(DataError::invalid(&path.display().to_string(), rule, remedy));
            }
            let mut values = array.values.into_f32();
            values.truncate(most.saturating_mul(inner.iter().product()));
            Row::Floats(values)
        }
        _ => {
            let rule = "is of another kind than the first row";
            return Err(DataError::invalid(id, rule, "give each modality files of one kind"));
        }
    }))
}
