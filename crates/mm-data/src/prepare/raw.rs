//! What a row has before it is prepared: files, and parts of files.

use super::degrade;
use crate::DataError;
use crate::audio::{Clip, Frames, Planned};
use crate::video::{VideoConfig, VideoInfo};
use std::path::{Path, PathBuf};

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
    /// A part of a video.
    Scene(PathBuf, Span),
    /// The sound of a video or of a file with sound, or a part of it; a video without sound has nothing.
    Track(PathBuf, Option<Span>),
    /// A file with an array, `.npy`.
    Array(PathBuf),
    /// Numbers.
    Vector(Vec<f32>),
    /// Nothing.
    Missing,
}

/// A part of a recording, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Where it begins; at least 0.
    pub start: f64,
    /// Where it ends; above `start`.
    pub end: f64,
}

impl Span {
    /// The frames of a video that lie in it: the first one, and how many.
    pub(super) fn frames(self, info: &VideoInfo) -> (usize, usize) {
        let at = |seconds: f64| (seconds * info.fps()).floor() as usize;
        (at(self.start), at(self.end).saturating_sub(at(self.start)).max(1))
    }

    /// The samples that lie in it.
    fn cut(self, clip: &Clip, file: &Path) -> Result<Clip, DataError> {
        let at = |seconds: f64| ((seconds * f64::from(clip.rate)).round() as usize).min(clip.samples.len());
        let samples = clip.samples[at(self.start)..at(self.end).max(at(self.start))].to_vec();
        if samples.is_empty() {
            let rule = format!(
                "it has {:.2} seconds, but the part from {} to {} is wanted",
                clip.seconds(),
                self.start,
                self.end
            );
            let remedy = "fetch the clip again, or take its line out of the list";
            return Err(DataError::invalid(&file.display().to_string(), rule, remedy));
        }
        Ok(Clip { samples, rate: clip.rate })
    }
}

/// Whether a file is sound by its name; what is not is asked of ffmpeg.
pub(super) fn is_sound(path: &Path) -> bool {
    let known = ["wav", "flac", "mp3", "m4a", "aac", "ogg"];
    path.extension().is_some_and(|e| known.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// Noise that is added to a clip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise<'a> {
    pub(super) clip: &'a str,
    pub(super) modality: &'a str,
    /// Power of the clip over that of the noise.
    pub(super) decibels: f64,
}

/// The frames of a sound, or nothing where a video has none.
pub(super) fn sound(
    raw: &Raw,
    planned: &Planned,
    channel: Option<usize>,
    noise: Option<Noise<'_>>,
) -> Result<Option<Frames>, DataError> {
    let analysed = |path: &Path, mut clip: Clip| {
        if let Some(Noise { clip: id, modality, decibels }) = noise {
            degrade::add_noise(id, modality, &mut clip.samples, decibels);
        }
        planned.apply_named(&path.display().to_string(), &clip).map(Some)
    };
    match raw {
        Raw::Sound(path) => analysed(path, Clip::open_channel(path, channel)?),
        Raw::Track(path, span) => {
            let clip = if is_sound(path) {
                Some(Clip::open_channel(path, channel)?)
            } else {
                VideoConfig::default().program()?.sound(path, channel)?
            };
            let Some(clip) = clip else { return Ok(None) };
            let clip = match span {
                Some(span) => span.cut(&clip, path)?,
                None => clip,
            };
            analysed(path, clip)
        }
        _ => Ok(None),
    }
}
