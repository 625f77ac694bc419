//! Pictures of 8 bits: read from JPEG and PNG, resized as Pillow does, turned into what an encoder reads, drawn on
//! a sheet.
//!
//! | module | what it does |
//! |---|---|
//! | [`resize`] | bilinear and bicubic with antialiasing, equal to Pillow's in every bit |
//! | [`transform`] | crops, flips and normalisation of training and evaluation, as torchvision's |
//! | [`sheet`] | clips and their spectrograms on one PNG, to look at |
//!
//! A [`Frame`] has the layout (height, width, channels): rows from the top, in each the pixels from the left, in
//! each the colours. Grey frames have 1 channel, all others 3.
//!
//! | file | frame |
//! |---|---|
//! | JPEG: grey, YCbCr, RGB | 1 channel, 3, 3 |
//! | PNG: 1, 2, 4 or 8 bits of grey; of 16 the upper 8 | 1 channel |
//! | PNG: palette, RGB of 8 bits; of 16 the upper 8 | 3 channels |
//! | PNG with transparency | the same without it, as by Pillow's `convert("RGB")`: nothing is composited |
//!
//! Differences from Pillow: a 16-bit grey PNG keeps its upper byte, where Pillow's `convert("L")` cuts everything
//! above 255 to white; JPEGs go through another decoder, so pixels differ by a few levels (PNGs by none). As in
//! Pillow and torchvision, the orientation that a camera noted is ignored.
//!
//! Refused, with the file and the remedy: other formats, a file that ends too early, a git-LFS pointer in place of the
//! file, more than [`MAX_PIXELS`] (Pillow's limit) before anything of that size is allocated.
//!
//! ```
//! use mm_data::image::{Filter, Frame};
//! # fn main() -> Result<(), mm_data::DataError> {
//! let ramp = Frame::new(1, 4, 1, vec![0, 80, 160, 240])?;
//! assert_eq!(ramp.resize(1, 2, Filter::Bilinear)?.pixels, [57, 183]);
//! let bytes = ramp.to_png()?;
//! assert_eq!(Frame::decode(&bytes, "ramp.png")?, ramp);
//! # Ok(())
//! # }
//! ```

mod decode;
mod font;
pub mod resize;
pub mod sheet;
pub mod transform;

pub use resize::Filter;
pub use transform::FrameTransform;

use crate::DataError;
use ::image::codecs::png::PngEncoder;
use ::image::{ExtendedColorType, ImageEncoder};
use std::path::Path;

pub(crate) use decode::{check_pointer, read_limited};

/// The most pixels of a frame.
pub const MAX_PIXELS: u64 = 89_478_485;

/// A picture of 8 bits per channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// 1 for grey, 3 for red, green and blue.
    pub channels: usize,
    /// `height * width * channels` values, row after row.
    pub pixels: Vec<u8>,
}

impl Frame {
    /// Checks the sizes.
    pub fn new(height: usize, width: usize, channels: usize, pixels: Vec<u8>) -> Result<Self, DataError> {
        let frame = Self { height, width, channels, pixels };
        frame.check()?;
        Ok(frame)
    }

    /// A frame of one colour; of grey where `colour` has one value.
    pub fn filled(height: usize, width: usize, colour: &[u8]) -> Result<Self, DataError> {
        check_sizes(height, width, colour.len())?;
        Self::new(height, width, colour.len(), colour.repeat(height * width))
    }

    /// Reads a JPEG or a PNG; what its first bytes say counts, not its name.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let bytes = read_limited(path, decode::MAX_FILE)?;
        Self::decode(&bytes, &path.display().to_string())
    }

    /// [`Frame::open`] for bytes in memory; messages call them `name`.
    pub fn decode(bytes: &[u8], name: &str) -> Result<Self, DataError> {
        decode::decode(bytes, name)
    }

    /// The same with three channels.
    #[must_use]
    pub fn into_rgb(self) -> Self {
        if self.channels == 3 {
            return self;
        }
        let pixels = self.pixels.iter().flat_map(|&v| [v; 3]).collect();
        Self { channels: 3, pixels, ..self }
    }

    /// The same with one channel: the luma of ITU-R 601-2 in Pillow's rounding.
    #[must_use]
    pub fn into_grey(self) -> Self {
        if self.channels == 1 {
            return self;
        }
        let (rgb, _) = self.pixels.as_chunks::<3>();
        let luma = |&[r, g, b]: &[u8; 3]| {
            let sum = 19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b);
            ((sum + 0x8000) >> 16) as u8
        };
        let pixels = rgb.iter().map(luma).collect();
        Self { channels: 1, pixels, ..self }
    }

    /// A part of the frame.
    pub fn crop(&self, top: usize, left: usize, height: usize, width: usize) -> Result<Self, DataError> {
        self.check()?;
        let inside = |start: usize, length: usize, all: usize| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= all)
        };
        if !inside(top, height, self.height) || !inside(left, width, self.width) {
            let rule =
                format!("{height} x {width} pixels from ({top}, {left}) are not all in {}", self.describe());
            return Err(DataError::invalid("crop", rule, "choose a part that lies inside"));
        }
        let mut pixels = Vec::with_capacity(height * width * self.channels);
        for row in self.rows().skip(top).take(height) {
            pixels.extend_from_slice(&row[left * self.channels..(left + width) * self.channels]);
        }
        Ok(Self { height, width, channels: self.channels, pixels })
    }

    /// Left and right exchanged.
    pub fn mirror(&mut self) {
        let channels = self.channels;
        for row in self.pixels.chunks_exact_mut((self.width * channels).max(1)) {
            row.reverse();
            row.chunks_exact_mut(channels.max(1)).for_each(<[u8]>::reverse);
        }
    }

    /// Writes a PNG. The file appears under its name when it is complete.
    pub fn write_png(&self, path: &Path) -> Result<(), DataError> {
        let io = |source| DataError::Io { file: path.display().to_string(), source };
        let bytes = self.to_png()?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let part = path.with_file_name(name);
        let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
        if written.is_err() {
            // What is left of it is of no use; that it cannot be removed is not what the caller has to know.
            let _ = std::fs::remove_file(&part);
        }
        written.map_err(io)
    }

    /// The bytes of a PNG.
    pub fn to_png(&self) -> Result<Vec<u8>, DataError> {
        self.check()?;
        let colour = if self.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes)
            .write_image(&self.pixels, self.width as u32, self.height as u32, colour)
            .map_err(|e| DataError::invalid("PNG", format!("it cannot be written ({e})"), "report this"))?;
        Ok(bytes)
    }

    /// The rows from the top.
    pub(crate) fn rows(&self) -> std::slice::ChunksExact<'_, u8> {
        self.pixels.chunks_exact((self.width * self.channels).max(1))
    }

    pub(crate) fn check(&self) -> Result<(), DataError> {
        check_sizes(self.height, self.width, self.channels)?;
        if self.pixels.len() != self.height * self.width * self.channels {
            let rule = format!("{} values are not {}", self.pixels.len(), self.describe());
            return Err(DataError::invalid("frame", rule, "give height times width times channels values"));
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("{} x {} pixels of {} channels", self.height, self.width, self.channels)
    }
}

fn check_sizes(height: usize, width: usize, channels: usize) -> Result<(), DataError> {
    if channels != 1 && channels != 3 {
        let rule = format!("{channels} channels");
        return Err(DataError::invalid("frame", rule, "1 is grey, 3 are red, green and blue"));
    }
    check_pixels("frame", height as u64, width as u64)
}

fn check_pixels(file: &str, height: u64, width: u64) -> Result<(), DataError> {
    if height == 0 || width == 0 {
        let rule = format!("{height} x {width} pixels are none");
        return Err(DataError::invalid(file, rule, "a picture has at least one pixel"));
    }
    if height.checked_mul(width).is_none_or(|pixels| pixels > MAX_PIXELS) {
        let rule = format!("{height} x {width} pixels are more than the allowed {MAX_PIXELS}");
        return Err(DataError::invalid(file, rule, "make the picture smaller"));
    }
    Ok(())
}
