//! Resizing with antialiasing, equal to the `Image.resize` of Pillow 13 in every bit.
//!
//! Each output pixel is a weighted mean of the input pixels under the filter f, which is stretched by the scale
//! when the picture shrinks. Along one axis, from the part `[a, b)` of `n` input pixels to `m` output pixels:
//!
//! ```text
//! s      = (b - a) / m              t = max(s, 1)           c_i = a + (i + 1/2) s
//! w_ij   = f((j + 1/2 - c_i) / t)   for j in [int(c_i - r t + 1/2), int(c_i + r t + 1/2)) within [0, n)
//! k_ij   = round(2^22 w_ij / sum_j w_ij)
//! out_i  = clip((2^21 + sum_j k_ij in_j) >> 22, 0, 255)
//! ```
//!
//! with the radius r = 1 and f(x) = 1 - |x| for bilinear, and r = 2 and the cubic of a = -1/2 for bicubic. First
//! along the rows, rounded to 8 bits, then down the columns; the other way round where the picture has more rows
//! than the result and loses more than twice as many of them as columns. An axis whose size and part stay the same
//! is not touched.
//!
//! Shapes: (H, W, C) -> (height, width, C).
//!
//! Pixels outside the part count where the filter reaches them, as with Pillow's `box=`. A crop that must not see its
//! surroundings, as torchvision's `resized_crop`, is [`Frame::crop`] first.
//!
//! Differences from Pillow: none known; `crates/mm-data/tests/it/image_resize.rs` compares with version 13.0.0. Older
//! versions always begin with the rows; where the order differs, so do some pixels, by one level for bilinear.
//!
//! Source: `Resample.c` of Pillow for formulas and rounding; the order of the passes from measurements.

use super::Frame;
use crate::DataError;
use mm_kernels::pixels::{BITS, Taps, across, down};
use serde::{Deserialize, Serialize};

/// The curve by which pixels are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// A triangle: Pillow's `BILINEAR`, torchvision's default.
    #[default]
    Bilinear,
    /// Keys' cubic with a = -1/2: Pillow's `BICUBIC`.
    Bicubic,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Left, top, right and bottom of a part of a picture, in pixels; corners of pixels are whole numbers.
pub type Part = [f32; 4];

impl Frame {
    /// The whole frame in another size.
    pub fn resize(&self, height: usize, width: usize, filter: Filter) -> Result<Self, DataError> {
        self.resize_part([0.0, 0.0, self.width as f32, self.height as f32], height, width, filter)
    }

    /// A part of the frame in another size, as Pillow's `resize((width, height), filter, box=part)`.
    pub fn resize_part(
        &self,
        part: Part,
        height: usize,
        width: usize,
        filter: Filter,
    ) -> Result<Self, DataError> {
        self.check()?;
        super::check_sizes(height, width, self.channels)?;
        let [left, top, right, bottom] = part;
        let inside = |a: f32, b: f32, all: usize| a >= 0.0 && a < b && b <= all as f32;
        if !inside(left, right, self.width) || !inside(top, bottom, self.height) {
            let rule = format!("the part {part:?} is not inside {}", self.describe());
            let remedy = "give left < right and top < bottom within the picture";
            return Err(DataError::invalid("resize", rule, remedy));
        }
        let untouched = |a: f32, b: f32, from: usize, to: usize| from == to && a == 0.0 && b == to as f32;
        let rows = (!untouched(top, bottom, self.height, height))
            .then(|| axis(self.height, top, bottom, height, filter));
        let columns = (!untouched(left, right, self.width, width))
            .then(|| axis(self.width, left, right, width, filter));
        let channels = self.channels;
        let pixels = match (rows, columns) {
            (None, None) => self.pixels.clone(),
            (Some(rows), None) => down(&self.pixels, 0, self.width * channels, &rows),
            (None, Some(columns)) => across(&self.pixels, self.width, channels, &columns),
            (Some(rows), Some(columns)) if vertical_first(self, height, width) => {
                let low = down(&self.pixels, 0, self.width * channels, &rows);
                across(&low, self.width, channels, &columns)
            }
            (Some(rows), Some(columns)) => {
                // No other rows than these are needed afterwards.
                let (start, end) = rows.reach();
                let stride = self.width * channels;
                let narrow =
                    across(&self.pixels[start * stride..end * stride], self.width, channels, &columns);
                down(&narrow, start, width * channels, &rows)
            }
        };
        Ok(Self { height, width, channels, pixels })
    }
}

/// Whether Pillow takes the columns first: where that leaves fewer numbers for the second pass. Since both passes
/// round, the order can be seen.
fn vertical_first(frame: &Frame, height: usize, width: usize) -> bool {
    frame.height > height && frame.height - height > 2 * frame.width.saturating_sub(width)
}

/// The weights of every output pixel along one axis.
fn axis(from: usize, start: f32, end: f32, to: usize, filter: Filter) -> Taps {
    let scale = f64::from(end - start) / to as f64;
    let stretch = scale.max(1.0);
    let radius = filter.radius() * stretch;
    let taps: Vec<(usize, Vec<i32>)> = (0..to)
        .map(|i| {
            let centre = f64::from(start) + (i as f64 + 0.5) * scale;
            // A cast cuts towards zero and maps negative numbers to 0, which is what is wanted at the left edge.
            let first = (centre - radius + 0.5) as usize;
            let last = ((centre + radius + 0.5) as usize).min(from);
            let weights: Vec<f64> =
                (first..last).map(|j| filter.at((j as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |w: f64| {
                let w = if sum == 0.0 { w } else { w / sum } * f64::from(1u32 << BITS);
                (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
            };
            (first, weights.into_iter().map(fixed).collect())
        })
        .collect();
    Taps::new(&taps, from)
}
