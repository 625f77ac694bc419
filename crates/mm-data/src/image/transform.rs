//! From frames to what an encoder reads: crops and flips in training, a fixed view in evaluation, normalised numbers.
//!
//! ```text
//! training     area  = H W u,  u ~ U(scale)         ratio = exp(v),  v ~ U(log ratio)
//!              w = round(sqrt(area ratio))          h = round(sqrt(area / ratio))
//!              top ~ U{0 .. H-h}, left ~ U{0 .. W-w}   if h x w fits into H x W; else the next of ten tries;
//!              then the largest part in the middle whose ratio is allowed
//!              resize to size x size, mirror with probability `flip`
//! evaluation   resize to size x size, or shorter side to `shorter` and the size x size pixels in the middle
//! values       (pixel / 255 - mean_c) / std_c
//! ```
//!
//! Shapes: T frames of any sizes -> (T, size, size, C), channels last.
//!
//! | setting | default | range | meaning |
//! |---|---|---|---|
//! | `size` | 224 | 1 to 4096 | side of the result |
//! | `grey` | false | | one channel instead of three |
//! | `augment` | true | | false: training sees the view of evaluation |
//! | `scale` | [0.08, 1] | 0 < low <= high <= 1 | share of the picture that a crop keeps |
//! | `ratio` | [0.75, 1.3333333333333333] | 0 < low <= high | width by height of a crop |
//! | `flip` | 0.5 | 0 to 1 | probability of mirroring |
//! | `shared_crop` | false | | one crop and one flip for all frames of a clip, instead of one each |
//! | `evaluation` | `"resize"` | | or `"centre-crop"` |
//! | `shorter` | 256 | `size` to 8192 | shorter side before the centre crop |
//! | `filter` | `"bilinear"` | | or `"bicubic"` |
//! | `normalize` | `"imagenet"` | | `"none"`: pixel / 255; or `{ mean = […], std = […] }` |
//!
//! Differences between the sources: OGM and MLB resize to a square in evaluation, whatever the ratio of the
//! picture, and crop each frame of a clip on its own, both defaults here; BML shares the crop (`shared_crop`, with
//! `scale = [0.25, 1]` and `size = 112`); ImageNet's own evaluation is `"centre-crop"`. torchvision draws from its
//! global generator, this from a key; the distribution is the same, the numbers are not. For a given crop the
//! result is torchvision's in every bit.
//!
//! Source: torchvision 0.29 `RandomResizedCrop`, `RandomHorizontalFlip`, `Resize`, `CenterCrop`, `ToTensor`,
//! `Normalize` on Pillow images; the recipe of OGM-GE_CVPR2022 @343dc1d.
//!
//! ```
//! use mm_core::StepRng;
//! use mm_data::image::{Frame, FrameTransform};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transform = FrameTransform { size: 8, ..FrameTransform::default() };
//! transform.check()?;
//! let clip = [Frame::filled(20, 30, &[255, 0, 0])?, Frame::filled(20, 30, &[0, 0, 0])?];
//! let key = StepRng::new(0).stream("frames").epoch(1).sample(7);
//! let values = transform.train(&clip, key)?;
//! assert_eq!(values.len(), 2 * 8 * 8 * 3);
//! assert_eq!(values[0], (1.0 - 0.485) / 0.229);
//! # Ok(())
//! # }
//! ```

use super::{Filter, Frame};
use crate::DataError;
use mm_core::{ConfigError, StepRng};
use mm_kernels::rng::Draws;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Settings of a front-end for frames; the table is in [its module](self).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FrameTransform {
    /// Side of the result.
    pub size: usize,
    /// One channel instead of three.
    pub grey: bool,
    /// Whether training crops and flips.
    pub augment: bool,
    /// Share of the picture that a crop keeps.
    pub scale: [f64; 2],
    /// Width by height of a crop.
    pub ratio: [f64; 2],
    /// Probability of mirroring.
    pub flip: f64,
    /// One crop and one flip for all frames of a clip.
    pub shared_crop: bool,
    /// The view of evaluation.
    pub evaluation: Evaluation,
    /// Shorter side before the centre crop.
    pub shorter: usize,
    /// How pictures are resized.
    pub filter: Filter,
    /// What becomes of pixel / 255.
    pub normalize: Normalize,
}

impl Default for FrameTransform {
    fn default() -> Self {
        Self {
            size: 224,
            grey: false,
            augment: true,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            shared_crop: false,
            evaluation: Evaluation::Resize,
            shorter: 256,
            filter: Filter::Bilinear,
            normalize: Normalize::Imagenet,
        }
    }
}

/// The view of evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evaluation {
    /// The whole picture as a square.
    #[default]
    Resize,
    /// The middle of the picture in its own ratio.
    CentreCrop,
}

/// What becomes of pixel / 255.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Normalize {
    /// Mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225); of grey their means, 0.449 and 0.226.
    #[default]
    Imagenet,
    /// Nothing.
    None,
    /// Given statistics.
    #[serde(untagged)]
    Given {
        /// The mean of each channel.
        mean: Vec<f32>,
        /// The standard deviation of each channel.
        std: Vec<f32>,
    },
}

/// A part of a picture, and whether it is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Whether left and right are exchanged.
    pub mirror: bool,
}

impl FrameTransform {
    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=4096).contains(&self.size) {
            return Err(ConfigError::new("size", self.size, "must be an integer in [1, 4096]"));
        }
        let [low, high] = self.scale;
        if !(low > 0.0 && low <= high && high <= 1.0) {
            let rule = "must be [low, high] with 0 < low <= high <= 1";
            return Err(ConfigError::new("scale", format!("{:?}", self.scale), rule));
        }
        let [low, high] = self.ratio;
        if !(low > 0.0 && low <= high && high.is_finite()) {
            let rule = "must be [low, high] with 0 < low <= high";
            return Err(ConfigError::new("ratio", format!("{:?}", self.ratio), rule));
        }
        ConfigError::check_range("flip", self.flip, 0.0, 1.0)?;
        if self.evaluation == Evaluation::CentreCrop && !(self.size..=8192).contains(&self.shorter) {
            let rule = format!("must be an integer in [{}, 8192], at least `size`", self.size);
            return Err(ConfigError::new("shorter", self.shorter, rule));
        }
        if let Normalize::Given { mean, std } = &self.normalize {
            let channels = self.channels();
            for (name, values) in [("normalize.mean", mean), ("normalize.std", std)] {
                if values.len() != channels || values.iter().any(|v| !v.is_finite()) {
                    let rule = format!("must be {channels} finite numbers, one per channel");
                    return Err(ConfigError::new(name, format!("{values:?}"), rule));
                }
            }
            if std.iter().any(|&v| v <= 0.0) {
                return Err(ConfigError::new("normalize.std", format!("{std:?}"), "must be above 0"));
            }
        }
        Ok(())
    }

    /// Channels of the result.
    pub fn channels(&self) -> usize {
        if self.grey { 1 } else { 3 }
    }

    /// The shape of one frame of the result: (size, size, channels).
    pub fn shape(&self) -> [usize; 3] {
        [self.size, self.size, self.channels()]
    }

    /// A clip in training: (T, size, size, C). `key` stands for seed, epoch and sample; frame `t` draws from its
    /// step `t` of the stream `frame`, so that a frame does not depend on how many others there are.
    pub fn train(&self, clip: &[Frame], key: StepRng) -> Result<Vec<f32>, DataError> {
        self.values(&self.train_views(clip, key)?)
    }

    /// A clip in evaluation: (T, size, size, C).
    pub fn evaluate(&self, clip: &[Frame]) -> Result<Vec<f32>, DataError> {
        self.values(&self.evaluation_views(clip)?)
    }

    /// What [`FrameTransform::train`] sees, before it becomes numbers: to look at.
    pub fn train_views(&self, clip: &[Frame], key: StepRng) -> Result<Vec<Frame>, DataError> {
        self.check()?;
        if !self.augment {
            return self.evaluation_views(clip);
        }
        let key = key.stream("frame");
        let mut views = Vec::with_capacity(clip.len());
        for (t, frame) in clip.iter().enumerate() {
            // With one key for all, frames of one size get one crop; frames of other sizes the same share of theirs.
            let key = if self.shared_crop { key } else { key.step(t) };
            let crop = self.draw(frame.height, frame.width, &mut key.draws());
            views.push(self.view(frame, crop)?);
        }
        Ok(views)
    }

    /// What [`FrameTransform::evaluate`] sees, before it becomes numbers.
    pub fn evaluation_views(&self, clip: &[Frame]) -> Result<Vec<Frame>, DataError> {
        self.check()?;
        clip.iter().map(|frame| self.evaluation_view(frame)).collect()
    }

    /// Draws the crop of a training picture. Every try costs four draws, whether it fits or not, and the flip is drawn
    /// first: two pictures of different sizes under one key differ in nothing else.
    pub fn draw(&self, height: usize, width: usize, draws: &mut Draws) -> Crop {
        let mirror = draws.uniform() < self.flip;
        let between = |[low, high]: [f64; 2], u: f64| low + (high - low) * u;
        let logs = self.ratio.map(f64::ln);
        for _ in 0..10 {
            let area = (height * width) as f64 * between(self.scale, draws.uniform());
            let ratio = between(logs, draws.uniform()).exp();
            let (u, v) = (draws.uniform(), draws.uniform());
            // Ties to even, as Python's `round`.
            let w = (area * ratio).sqrt().round_ties_even() as usize;
            let h = (area / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let place = |free: usize, u: f64| ((u * (free + 1) as f64) as usize).min(free);
                return Crop {
                    top: place(height - h, u),
                    left: place(width - w, v),
                    height: h,
                    width: w,
                    mirror,
                };
            }
        }
        self.centre(height, width, mirror)
    }

    /// The largest part in the middle whose ratio is allowed.
    fn centre(&self, height: usize, width: usize, mirror: bool) -> Crop {
        let ratio = width as f64 / height as f64;
        let [low, high] = self.ratio;
        let whole = |x: f64, most: usize| (x.round_ties_even() as usize).clamp(1, most.max(1));
        let (h, w) = if ratio < low {
            (whole(width as f64 / low, height), width)
        } else if ratio > high {
            (height, whole(height as f64 * high, width))
        } else {
            (height, width)
        };
        Crop { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w, mirror }
    }

    /// The part of a picture as a square of `size`.
    pub fn view(&self, frame: &Frame, crop: Crop) -> Result<Frame, DataError> {
        let part = self.coloured(frame.crop(crop.top, crop.left, crop.height, crop.width)?);
        let mut view = part.resize(self.size, self.size, self.filter)?;
        if crop.mirror {
            view.mirror();
        }
        Ok(view)
    }

    /// Normalised numbers of frames that have the right size and channels already, one after the other.
    pub fn values(&self, views: &[Frame]) -> Result<Vec<f32>, DataError> {
        let channels = self.checked(views)?;
        let tables: Vec<[f32; 256]> = (0..channels).map(|c| self.table(c)).collect();
        let mut values = Vec::with_capacity(views.iter().map(|view| view.pixels.len()).sum());
        for view in views {
            for pixel in view.pixels.chunks_exact(channels) {
                values.extend(pixel.iter().zip(&tables).map(|(&v, table)| table[usize::from(v)]));
            }
        }
        Ok(values)
    }

    /// [`FrameTransform::values`] with the channels of a frame behind each other: (T, C, size, size), as a batch has it.
    pub fn planes(&self, views: &[Frame]) -> Result<Vec<f32>, DataError> {
        let channels = self.checked(views)?;
        let tables: Vec<[f32; 256]> = (0..channels).map(|c| self.table(c)).collect();
        let mut values = Vec::with_capacity(views.iter().map(|view| view.pixels.len()).sum());
        for view in views {
            for (channel, table) in tables.iter().enumerate() {
                // A loop over a known number of colours, which the compiler may unroll.
                if channels == 3 {
                    let pixels = view.pixels.as_chunks::<3>().0;
                    values.extend(pixels.iter().map(|pixel| table[usize::from(pixel[channel])]));
                } else {
                    let pixels = view.pixels.iter().skip(channel).step_by(channels);
                    values.extend(pixels.map(|&v| table[usize::from(v)]));
                }
            }
        }
        Ok(values)
    }

    /// The channels of views that have the right sizes.
    fn checked(&self, views: &[Frame]) -> Result<usize, DataError> {
        for view in views {
            view.check()?;
            if [view.height, view.width, view.channels] != self.shape() {
                let rule = format!("{} are not the {:?} of the settings", view.describe(), self.shape());
                return Err(DataError::invalid("frame", rule, "make a view of it first"));
            }
        }
        Ok(self.channels())
    }

    /// The number that each pixel value of a channel becomes.
    fn table(&self, channel: usize) -> [f32; 256] {
        const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
        const STD: [f32; 3] = [0.229, 0.224, 0.225];
        let of = |list: &[f32], or: f32| list.get(channel).copied().unwrap_or(or);
        let (mean, std) = match &self.normalize {
            Normalize::Imagenet if self.grey => (0.449, 0.226),
            Normalize::Imagenet => (of(&MEAN, 0.0), of(&STD, 1.0)),
            Normalize::None => (0.0, 1.0),
            Normalize::Given { mean, std } => (of(mean, 0.0), of(std, 1.0)),
        };
        std::array::from_fn(|v| (v as f32 / 255.0 - mean) / std)
    }

    fn evaluation_view(&self, frame: &Frame) -> Result<Frame, DataError> {
        frame.check()?;
        let coloured = frame.channels != self.channels();
        let frame = if coloured { Cow::Owned(self.coloured(frame.clone())) } else { Cow::Borrowed(frame) };
        if self.evaluation == Evaluation::Resize {
            return frame.resize(self.size, self.size, self.filter);
        }
        let (height, width) = (frame.height, frame.width);
        let longer = |short: usize, long: usize| (self.shorter as f64 * long as f64 / short as f64) as usize;
        let (h, w) = if width <= height {
            (longer(width, height), self.shorter)
        } else {
            (self.shorter, longer(height, width))
        };
        let half = |all: usize| ((all - self.size) as f64 / 2.0).round_ties_even() as usize;
        frame.resize(h, w, self.filter)?.crop(half(h), half(w), self.size, self.size)
    }

    fn coloured(&self, frame: Frame) -> Frame {
        if self.grey { frame.into_grey() } else { frame.into_rgb() }
    }
}
