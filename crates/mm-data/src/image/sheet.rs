//! A contact sheet: one row per clip, its frames and its spectrograms side by side, so that wrong data can be seen.
//!
//! ```text
//! +--------------------------------------------------+
//! | 0 1001_DFA_ANG_XX  ANG                           |
//! | [frame] [frame] [frame] [   spectrogram   ]      |
//! | 1 1001_DFA_DIS_XX  DIS                           |
//! | [frame] [frame] [frame] [   spectrogram   ]      |
//! +--------------------------------------------------+
//! ```
//!
//! Shapes: frames (H, W, 1 or 3) fit into a cell x cell square in their own ratio; spectrograms (frequencies,
//! times) fill cell x 2 cell, the lowest frequency at the bottom, each from its own least to its own greatest
//! finite number in the colours of viridis, from dark blue to yellow; what is not finite is grey. The result has 3
//! channels.
//!
//! | setting | default | range | meaning |
//! |---|---|---|---|
//! | `cell` | 128 | 16 to 1024 | height of a picture |
//!
//! ```
//! use mm_data::image::{Frame, sheet::{Row, Spectrogram, draw}};
//! # fn main() -> Result<(), mm_data::DataError> {
//! let frames = [Frame::filled(30, 40, &[200, 40, 40])?];
//! let spectrograms = [Spectrogram::new(2, 3, vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0])?];
//! let row = Row { label: "0 ANG".to_owned(), frames: &frames, spectrograms: &spectrograms };
//! let picture = draw(&[row], 64)?;
//! assert_eq!((picture.height, picture.width), (81, 204));
//! # Ok(())
//! # }
//! ```

use super::{Filter, Frame, font};
use crate::DataError;
use mm_core::ConfigError;

/// Numbers over frequency and time.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrogram {
    /// Rows, the lowest frequency first.
    pub frequencies: usize,
    /// Columns.
    pub times: usize,
    /// `frequencies * times` numbers, row after row.
    pub values: Vec<f32>,
}

impl Spectrogram {
    /// Checks the sizes.
    pub fn new(frequencies: usize, times: usize, values: Vec<f32>) -> Result<Self, DataError> {
        let spectrogram = Self { frequencies, times, values };
        spectrogram.check()?;
        Ok(spectrogram)
    }

    fn check(&self) -> Result<(), DataError> {
        super::check_pixels("spectrogram", self.frequencies as u64, self.times as u64)?;
        if self.values.len() != self.frequencies * self.times {
            let rule = format!("{} values for {} x {}", self.values.len(), self.frequencies, self.times);
            return Err(DataError::invalid("spectrogram", rule, "give frequencies times times values"));
        }
        Ok(())
    }

    /// One pixel per number, the lowest frequency at the bottom.
    pub fn coloured(&self) -> Result<Frame, DataError> {
        self.check()?;
        let finite = || self.values.iter().copied().filter(|v| v.is_finite()).map(f64::from);
        let (low, high) =
            (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
        let mut pixels = Vec::with_capacity(self.values.len() * 3);
        for row in self.values.chunks_exact(self.times).rev() {
            for &value in row {
                let share = if high > low { (f64::from(value) - low) / (high - low) } else { 0.0 };
                pixels.extend(if value.is_finite() { viridis(share) } else { [128; 3] });
            }
        }
        Frame::new(self.frequencies, self.times, 3, pixels)
    }
}

/// A clip on the sheet.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// Written above it: digits, Latin letters, simple signs.
    pub label: String,
    /// Its frames.
    pub frames: &'a [Frame],
    /// Its spectrograms.
    pub spectrograms: &'a [Spectrogram],
}

const GAP: usize = 4;
const BACKGROUND: [u8; 3] = [24, 24, 28];
const TEXT: [u8; 3] = [235, 235, 235];

/// Draws the sheet with pictures of height `cell`.
pub fn draw(rows: &[Row<'_>], cell: usize) -> Result<Frame, DataError> {
    if !(16..=1024).contains(&cell) {
        return Err(ConfigError::new("cell", cell, "must be an integer in [16, 1024]").into());
    }
    if rows.is_empty() {
        return Err(DataError::invalid("sheet", "there is no clip to draw", "give at least one row"));
    }
    let enlarge = if cell < 96 { 1 } else { 2 };
    let line = font::LINE * enlarge;
    let content = |row: &Row<'_>| {
        let pictures = row.frames.len() * (cell + GAP) + row.spectrograms.len() * (2 * cell + GAP);
        pictures.max(row.label.chars().count() * font::ADVANCE * enlarge)
    };
    let width = GAP + rows.iter().map(content).max().unwrap_or(0);
    let height = GAP + rows.len() * (line + cell + GAP);
    let mut sheet = Frame::filled(height, width, &BACKGROUND)?;
    for (i, row) in rows.iter().enumerate() {
        let top = GAP + i * (line + cell + GAP);
        font::write(&mut sheet, top, GAP, enlarge, &TEXT, &row.label);
        let mut left = GAP;
        for frame in row.frames {
            frame.check()?;
            let (h, w) = fitted(frame, cell);
            let small = frame.resize(h, w, Filter::Bilinear)?.into_rgb();
            paste(&mut sheet, &small, top + line + (cell - h) / 2, left + (cell - w) / 2);
            left += cell + GAP;
        }
        for spectrogram in row.spectrograms {
            let picture = spectrogram.coloured()?.resize(cell, 2 * cell, Filter::Bilinear)?;
            paste(&mut sheet, &picture, top + line, left);
            left += 2 * cell + GAP;
        }
    }
    Ok(sheet)
}

/// The largest size of a frame's ratio in a square.
fn fitted(frame: &Frame, cell: usize) -> (usize, usize) {
    let longest = frame.height.max(frame.width) as f64;
    let side = |length: usize| ((length as f64 / longest * cell as f64).round() as usize).clamp(1, cell);
    (side(frame.height), side(frame.width))
}

/// Copies an RGB picture to where it wholly fits.
fn paste(sheet: &mut Frame, picture: &Frame, top: usize, left: usize) {
    let width = sheet.width * 3;
    let target = sheet.pixels.chunks_exact_mut(width).skip(top);
    for (into, row) in target.zip(picture.rows()) {
        into[left * 3..left * 3 + row.len()].copy_from_slice(row);
    }
}

/// The colour of a share in [0, 1]: viridis at every eighth, straight lines between.
fn viridis(share: f64) -> [u8; 3] {
    const STOPS: [[u8; 3]; 9] = [
        [68, 1, 84],
        [71, 45, 123],
        [59, 82, 139],
        [44, 114, 142],
        [33, 144, 140],
        [39, 173, 129],
        [93, 200, 99],
        [170, 220, 50],
        [253, 231, 37],
    ];
    let place = share.clamp(0.0, 1.0) * 8.0;
    let below = (place as usize).min(7);
    let part = place - below as f64;
    std::array::from_fn(|c| {
        let (a, b) = (f64::from(STOPS[below][c]), f64::from(STOPS[below + 1][c]));
        (a + (b - a) * part).round() as u8
    })
}
