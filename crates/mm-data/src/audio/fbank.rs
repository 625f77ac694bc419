//! The filter bank features of Kaldi, as `torchaudio.compliance.kaldi.fbank` computes them.
//!
//! ```text
//! x_t[i] = x[t shift + i]                 i = 0 .. N - 1, N = rate length / 1000; minus its mean if `remove_dc`
//! e_t    = ln max(sum_i x_t[i]^2, 2^-23), at least ln(energy_floor)               before what follows if `raw_energy`
//! x_t[i] = (x_t[i] - a x_t[max(i - 1, 0)]) w[i], followed by zeros up to the next power of two P
//! s[t,b] = sum_k F[b, k] |X_t[k]|^2       F: triangles in mel (1127 ln(1 + f / 700)), even in mel, k < P / 2
//! y[t,b] = ln max(s, 2^-23)               with e_t before them (behind if `htk_compat`) if `energy`
//! ```
//!
//! Shapes: T samples become (1 + (T - N) / shift, bins + energy), or exactly `frames` rows.
//!
//! | setting | default | range |
//! |---|---|---|
//! | bins | 23 | 4 to 1024 |
//! | length, shift | 25, 10 | 1 to 1000 ms |
//! | window | `povey` | `povey`, `hanning`, `hamming`, `blackman`, `rectangular` |
//! | preemphasis | 0.97 | a, in [0, 1] |
//! | remove_dc | true | |
//! | low | 20 | 0 to half the rate, Hz |
//! | high | half the rate | `low` to half the rate, Hz |
//! | power | true | powers, else magnitudes |
//! | log | true | |
//! | energy | false | a number more per frame |
//! | raw_energy | true | |
//! | energy_floor | 1 | at least 0; 0 is none |
//! | htk_compat | false | where the energy goes |
//! | snip_edges | true | whole frames only; else (T + shift / 2) / shift frames, the clip reflected around them |
//! | frames | as many as there are | 1 to 65536; cut, or followed by zeros, before `output.norm` |
//! | input, output | 16 kHz, the whole clip | see [`super::input`], [`super::output`] |
//!
//! Names: `kind = "kaldi-fbank"`, or one of these, which any setting changes further:
//!
//! | name | who | shape | norm |
//! |---|---|---|---|
//! | `mla-fbank` | MLA: mean removed, 128 bins, `hanning`, `htk_compat` | 1024 x 128 | -5.081, 4.4849 |
//! | `bb-fbank` | Kinetics-Sounds of BalanceBenchmark: the same | 1024 x 128 | -4.503877, 10.282552 |
//!
//! Differences: double precision. There is no dither (it would make a clip's features random) and no vocal tract
//! warping. Samples are in [-1, 1], as torchaudio loads them; Kaldi itself reads 16-bit integers, which adds 20.8 (2
//! ln 32768) to everything above the floor. With `snip_edges` a clip shorter than a window is an error.
//!
//! Source: torchaudio 2.5.1, `compliance/kaldi.py`.

use super::input::Input;
use super::mel::{Filters, MAX_BINS, check_low};
use super::output::{Norm, Output};
use super::spectrum::{Fourier, MAX_LENGTH};
use super::{Analysis, check_version};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Counts the changes of what these settings give.
pub const VERSION: u32 = 1;
/// The smallest power, that of Kaldi: the spacing of single precision at 1.
const SMALLEST: f64 = f32::EPSILON as f64;

/// Kaldi's filter bank features.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FbankConfig {
    /// [`VERSION`] of the numbers.
    pub version: u32,
    /// Number of filters. Default 23.
    pub bins: usize,
    /// Length of a frame in ms. Default 25.
    pub length: f64,
    /// Time between frames in ms. Default 10.
    pub shift: f64,
    /// The window. Default `povey`.
    pub window: Window,
    /// How much of a sample is taken from the next. Default 0.97.
    pub preemphasis: f64,
    /// Whether every frame loses its mean. Default: yes.
    pub remove_dc: bool,
    /// Where the first filter begins, in Hz. Default 20.
    pub low: f64,
    /// Where the last filter ends, in Hz. Default: half the rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
    /// Powers or magnitudes. Default: powers.
    pub power: bool,
    /// Whether the logarithm is taken. Default: yes.
    pub log: bool,
    /// Whether a frame's energy is among its numbers. Default: no.
    pub energy: bool,
    /// Whether that energy is of the samples as they are. Default: yes.
    pub raw_energy: bool,
    /// The smallest energy. Default 1.
    pub energy_floor: f64,
    /// Whether the energy comes last. Default: no.
    pub htk_compat: bool,
    /// Whether only frames inside the clip count. Default: yes.
    pub snip_edges: bool,
    /// The number of frames. Default: as many as there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<usize>,
    /// What happens to the clip. Default: 16 kHz, the whole clip.
    pub input: Input,
    /// What happens to the numbers.
    pub output: Output,
}

/// A window of Kaldi; all but `rectangular` are symmetric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Window {
    /// Hann to the power of 0.85.
    Povey,
    /// Hann.
    Hanning,
    /// 0.54 - 0.46 cos.
    Hamming,
    /// 0.42 - 0.5 cos + 0.08 cos of the double angle.
    Blackman,
    /// Ones.
    Rectangular,
}

impl Default for FbankConfig {
    fn default() -> Self {
        Self {
            version: VERSION,
            bins: 23,
            length: 25.0,
            shift: 10.0,
            window: Window::Povey,
            preemphasis: 0.97,
            remove_dc: true,
            low: 20.0,
            high: None,
            power: true,
            log: true,
            energy: false,
            raw_energy: true,
            energy_floor: 1.0,
            htk_compat: false,
            snip_edges: true,
            frames: None,
            input: Input::default(),
            output: Output::default(),
        }
    }
}

impl FbankConfig {
    /// As MLA prepares it.
    pub fn mla() -> Self {
        Self {
            bins: 128,
            window: Window::Hanning,
            htk_compat: true,
            frames: Some(1024),
            input: Input { remove_mean: true, ..Input::default() },
            output: Output { norm: Norm::Constant { mean: -5.081, std: 4.4849 }, ..Output::default() },
            ..Self::default()
        }
    }

    /// Kinetics-Sounds as BalanceBenchmark prepares it.
    pub fn balance_benchmark() -> Self {
        let norm = Norm::Constant { mean: -4.503_877, std: 2.0 * 5.141_276 };
        Self { output: Output { norm, ..Output::default() }, ..Self::mla() }
    }

    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_version(self.version, VERSION)?;
        ConfigError::check_range("bins", self.bins as f64, 4.0, MAX_BINS as f64)?;
        for (field, value) in [("length", self.length), ("shift", self.shift)] {
            ConfigError::check_range(field, value, 1.0, 1000.0)?;
        }
        ConfigError::check_range("preemphasis", self.preemphasis, 0.0, 1.0)?;
        ConfigError::check_range("energy_floor", self.energy_floor, 0.0, f64::MAX)?;
        ConfigError::check_range("frames", self.frames.unwrap_or(1) as f64, 1.0, 65_536.0)?;
        self.input.check().map_err(|e| e.within("input"))?;
        self.output.check().map_err(|e| e.within("output"))?;
        let half = f64::from(self.input.rate) / 2.0;
        ConfigError::check_range("high", self.high.unwrap_or(half), f64::MIN_POSITIVE, half)?;
        check_low(self.low, self.high.unwrap_or(half))?;
        // A frame has at least two samples, and the next at least one more.
        let sample = 1000.0 / f64::from(self.input.rate);
        ConfigError::check_range("length", self.length, 2.0 * sample, MAX_LENGTH as f64 * sample)?;
        ConfigError::check_range("shift", self.shift, sample, 1000.0)
    }

    fn in_samples(&self, milliseconds: f64) -> usize {
        // In this order, because the result is cut to an integer and has to be cut where torchaudio cuts it.
        (f64::from(self.input.rate) * milliseconds * 0.001) as usize
    }

    pub(super) fn plan(&self) -> Fbank {
        let length = self.in_samples(self.length).max(2);
        let padded = length.next_power_of_two();
        let rate = f64::from(self.input.rate);
        let edges = (self.low, self.high.unwrap_or(rate / 2.0));
        Fbank {
            fourier: Fourier::new(padded),
            window: self.window.values(length),
            shift: self.in_samples(self.shift).max(1),
            filters: kaldi_filters(self.bins, edges, rate, padded),
            settings: self.clone(),
        }
    }
}

/// The planned analysis of [`FbankConfig`].
#[derive(Debug)]
pub(super) struct Fbank {
    fourier: Fourier,
    window: Vec<f64>,
    shift: usize,
    filters: Filters,
    settings: FbankConfig,
}

impl Fbank {
    fn width(&self) -> usize {
        self.filters.len() + usize::from(self.settings.energy)
    }

    /// The frames that the clip has, before they are cut or padded.
    fn own_frames(&self, samples: usize) -> Result<usize, String> {
        let length = self.window.len();
        // torchaudio refuses a clip shorter than a window in either case.
        match samples.checked_sub(length) {
            Some(rest) if self.settings.snip_edges => Ok(1 + rest / self.shift),
            Some(_) => Ok((samples + self.shift / 2) / self.shift),
            None => Err(format!("{samples} samples are too few for one frame of {length}")),
        }
    }

    fn log_energy(&self, frame: &[f64]) -> f64 {
        let energy = frame.iter().map(|x| x * x).sum::<f64>().max(SMALLEST).ln();
        if self.settings.energy_floor > 0.0 { energy.max(self.settings.energy_floor.ln()) } else { energy }
    }
}

impl Analysis for Fbank {
    fn shape(&self, samples: usize) -> Result<[usize; 2], String> {
        Ok([self.settings.frames.unwrap_or(self.own_frames(samples)?), self.width()])
    }

    fn run(&self, samples: &[f32]) -> Vec<f64> {
        let (settings, length) = (&self.settings, self.window.len());
        let own = self.own_frames(samples.len()).unwrap_or(0);
        let frames = settings.frames.unwrap_or(own);
        let before = if settings.snip_edges { 0 } else { (length / 2) as isize - (self.shift / 2) as isize };
        let mut values = Vec::with_capacity(frames * self.width());
        let mut scratch = self.fourier.scratch();
        let mut spectrum = Vec::with_capacity(self.fourier.bins());
        for frame in 0..own.min(frames) {
            scratch.frame.fill(0.0);
            let Some(x) = scratch.frame.get_mut(..length) else { break };
            let start = (frame * self.shift) as isize - before;
            for (i, x) in x.iter_mut().enumerate() {
                *x = mirrored(samples, start + i as isize);
            }
            if settings.remove_dc {
                let mean = x.iter().sum::<f64>() / length as f64;
                for x in &mut *x {
                    *x -= mean;
                }
            }
            let raw = self.log_energy(x);
            // From the end, so that every sample still finds the one before it as it was.
            for i in (0..length).rev() {
                x[i] -= settings.preemphasis * x[i.saturating_sub(1)];
            }
            x.iter_mut().zip(&self.window).for_each(|(x, w)| *x *= w);
            let energy = if settings.raw_energy { raw } else { self.log_energy(x) };
            spectrum.clear();
            let powers = self.fourier.power(&mut scratch);
            spectrum.extend(powers.map(|p| if settings.power { p } else { p.sqrt() }));
            if settings.energy && !settings.htk_compat {
                values.push(energy);
            }
            let first = values.len();
            self.filters.sums(&spectrum, &mut values);
            if settings.log {
                values.iter_mut().skip(first).for_each(|v| *v = v.max(SMALLEST).ln());
            }
            if settings.energy && settings.htk_compat {
                values.push(energy);
            }
        }
        values.resize(frames * self.width(), 0.0);
        values
    }
}

/// The sample at `place`; before and after the clip it is read backwards, beginning with the sample at the border.
fn mirrored(samples: &[f32], place: isize) -> f64 {
    let n = samples.len() as isize;
    let place = if place < 0 {
        -1 - place
    } else if place < n {
        place
    } else {
        2 * n - 1 - place
    };
    usize::try_from(place).ok().and_then(|p| samples.get(p)).map_or(0.0, |&x| f64::from(x))
}

impl Window {
    fn values(self, length: usize) -> Vec<f64> {
        let hann = |angle: f64| 0.5 - 0.5 * angle.cos();
        let value = |i: usize| {
            let angle = 2.0 * PI * i as f64 / (length - 1) as f64;
            match self {
                Self::Povey => hann(angle).powf(0.85),
                Self::Hanning => hann(angle),
                Self::Hamming => 0.54 - 0.46 * angle.cos(),
                Self::Blackman => 0.42 - 0.5 * angle.cos() + 0.08 * (2.0 * angle).cos(),
                Self::Rectangular => 1.0,
            }
        };
        (0..length).map(value).collect()
    }
}

/// Triangles in mel instead of in hertz; the bin at half the rate belongs to none.
fn kaldi_filters(bins: usize, (low, high): (f64, f64), rate: f64, padded: usize) -> Filters {
    let mel = |f: f64| 1127.0 * (1.0 + f / 700.0).ln();
    let delta = (mel(high) - mel(low)) / (bins + 1) as f64;
    let filter = |b: usize| {
        let place = |i: usize| mel(low) + (b + i) as f64 * delta;
        let (left, middle, right) = (place(0), place(1), place(2));
        let weight = |k: usize| {
            let m = mel(rate / padded as f64 * k as f64);
            ((m - left) / (middle - left)).min((right - m) / (right - middle)).max(0.0)
        };
        (0..padded / 2).map(weight).collect()
    };
    Filters::new((0..bins).map(filter))
}
