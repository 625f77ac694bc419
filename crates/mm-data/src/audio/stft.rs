//! The centred short-time Fourier transform of librosa, as magnitudes or powers.
//!
//! ```text
//! X[t, k] = sum_i w[i] x[t hop + i - n_fft / 2] exp(-2 pi j i k / n_fft)      w = Hann(window), periodic, centred
//! s = |X| or |X|^2                                                                 y = ln(s + 1e-7)
//! ```
//!
//! Shapes: T samples become (1 + T / hop, n_fft / 2 + 1) for an even `n_fft`.
//!
//! | setting | default | range |
//! |---|---|---|
//! | n_fft | 512 | 2 to 65536 |
//! | window | n_fft | 1 to n_fft samples |
//! | hop | 353 | 1 to 65536 samples |
//! | padding | `constant` | `constant` (zeros), `reflect` |
//! | spectrum | `magnitude` | `magnitude`, `power` |
//! | scale | `ln` with 1e-7 | see [`super::output`]; `db` needs `power` |
//! | input, output | 22050 Hz, the whole clip | see [`super::input`], [`super::output`] |
//!
//! Names: `kind = "stft"`, or one of these with their lengths and layouts, which any setting changes further:
//!
//! | name | who | input | shape |
//! |---|---|---|---|
//! | `ogm-stft` | CREMA-D of OGM-GE, MLB, ReconBoost, AGM | 22050 Hz, tiled to 66150, clamped | 257 x 188 |
//! | `lfm-stft` | CREMA-D of LFM | 22050 Hz, tiled to 441000 | 257 x 1250 |
//! | `ucf-stft` | UCF of MLB | 16 kHz, left channel, first 48000 | 257 x 136 |
//! | `vggsound-stft` | VGGSound of OGM-GE | 16 kHz, tiled, the middle 80000, clamped, n_fft 256, hop 128 | 129 x 626 |
//!
//! The rate is changed with `soxr-like`, which comes nearest to what librosa does when it loads a file.
//!
//! Differences: librosa pads with zeros since 0.9 and reflected before, which touches the first and the last frames;
//! the published numbers do not say which. The transform is in double precision; so is the logarithm where single
//! precision cannot hold the powers. VGGSound's crop is random in the
//! original, in tests as well; here it is the middle. The shape of `ucf-stft` holds for clips of three seconds:
//! shorter ones are tiled.
//!
//! Source: `librosa.stft` 0.11.

use super::input::{Input, Take};
use super::output::{Frames, Orientation, Output, Scale};
use super::spectrum::{Fourier, MAX_LENGTH, centred, hann_periodic};
use super::{Analysis, check_version};
use mm_core::ConfigError;
use mm_kernels::spectrum::{self, Spectra, Work};
use serde::{Deserialize, Serialize};

/// Counts the changes of what these settings give.
pub const VERSION: u32 = 1;

/// A short-time Fourier transform.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StftConfig {
    /// [`VERSION`] of the numbers.
    pub version: u32,
    /// Length of the transform. Default 512.
    pub n_fft: usize,
    /// Length of the window. Default: that of the transform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Samples between frames. Default 353.
    pub hop: usize,
    /// What lies before and after the clip. Default `constant`.
    pub padding: Padding,
    /// What is kept of a complex number. Default `magnitude`.
    pub spectrum: Spectrum,
    /// The scale. Default `ln` with eps 1e-7.
    pub scale: Scale,
    /// What happens to the clip. Default: 22050 Hz, the whole clip.
    pub input: Input,
    /// What happens to the numbers.
    pub output: Output,
}

/// What lies before and after a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// Zeros.
    Constant,
    /// The clip backwards, without repeating its border.
    Reflect,
}

/// What is kept of a complex number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spectrum {
    /// |X|.
    Magnitude,
    /// |X|^2.
    Power,
}

impl Default for StftConfig {
    fn default() -> Self {
        Self {
            version: VERSION,
            n_fft: 512,
            window: None,
            hop: 353,
            padding: Padding::Constant,
            spectrum: Spectrum::Magnitude,
            scale: Scale::LN,
            input: Input { rate: 22_050, ..Input::librosa() },
            output: Output::default(),
        }
    }
}

impl StftConfig {
    /// CREMA-D as OGM-GE prepares it.
    pub fn ogm() -> Self {
        let input = Input { rate: 22_050, samples: Some(66_150), clamp: true, ..Input::librosa() };
        let output = Output { orientation: Orientation::BinsTime, ..Output::default() };
        Self { input, output, ..Self::default() }
    }

    /// CREMA-D as LFM prepares it.
    pub fn lfm() -> Self {
        let ogm = Self::ogm();
        Self { input: Input { samples: Some(441_000), ..ogm.input.clone() }, ..ogm }
    }

    /// UCF as MLB prepares it.
    pub fn ucf() -> Self {
        let input = Input { samples: Some(48_000), channel: Some(0), ..Input::librosa() };
        Self { input, ..Self::ogm() }
    }

    /// VGGSound as OGM-GE prepares it.
    pub fn vggsound() -> Self {
        let input = Input { samples: Some(80_000), take: Take::Centre, clamp: true, ..Input::librosa() };
        Self { n_fft: 256, hop: 128, input, ..Self::ogm() }
    }

    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_version(self.version, VERSION)?;
        self.scale.check()?;
        if matches!((self.scale, self.spectrum), (Scale::Db { .. }, Spectrum::Magnitude)) {
            let rule = "needs spectrum = \"power\": decibels are of powers";
            return Err(ConfigError::new("scale.kind", "\"db\"", rule));
        }
        Framing::check(self.n_fft, self.window, self.hop)?;
        self.input.check().map_err(|e| e.within("input"))?;
        self.output.check().map_err(|e| e.within("output"))
    }

    pub(super) fn plan(&self) -> Stft {
        let framing = Framing::new(self.n_fft, self.window, self.hop, self.padding);
        Stft { framing, spectrum: self.spectrum, scale: self.scale }
    }
}

/// The planned transform of [`StftConfig`].
#[derive(Debug)]
pub(super) struct Stft {
    framing: Framing,
    spectrum: Spectrum,
    scale: Scale,
}

impl Analysis for Stft {
    fn shape(&self, samples: usize) -> Result<[usize; 2], String> {
        Ok([self.framing.frames(samples), self.framing.bins()])
    }

    fn run(&self, samples: &[f32]) -> Vec<f64> {
        let mut values = self.framing.powers(samples);
        if self.spectrum == Spectrum::Magnitude {
            for v in &mut values {
                *v = v.sqrt();
            }
        }
        self.scale.apply(&mut values);
        values
    }

    fn frames(&self, samples: &[f32], output: &Output, shape: [usize; 2]) -> Frames {
        let (Some(spectra), Scale::Ln { eps }) = (&self.framing.spectra, self.scale) else {
            return output.finish(self.run(samples), shape);
        };
        let ([time, bins], lanes) = (shape, spectra.lanes());
        let mut values = vec![0.0; time * bins];
        let mut logs = vec![0.0; lanes * bins];
        self.framing.batches(spectra, samples, |first, powers| {
            match self.spectrum {
                Spectrum::Magnitude => spectrum::ln_magnitude(powers, eps, &mut logs),
                Spectrum::Power => spectrum::ln_power(powers, eps, &mut logs),
            }
            let count = lanes.min(time - first);
            match output.orientation {
                Orientation::BinsTime => {
                    for (row, bin) in values.chunks_exact_mut(time).zip(logs.chunks_exact(lanes)) {
                        row[first..first + count].copy_from_slice(&bin[..count]);
                    }
                }
                Orientation::TimeBins => {
                    let rows = values[first * bins..].chunks_exact_mut(bins).take(count);
                    rows.enumerate().for_each(|(lane, row)| lane_of(&logs, lanes, lane, row));
                }
            }
        });
        output.normalise(&mut values);
        Frames { values, shape: output.shape(shape) }
    }
}

/// One frame of bins that hold `lanes` frames each.
fn lane_of<T: Copy>(bins: &[T], lanes: usize, lane: usize, to: &mut [T]) {
    for (to, bin) in to.iter_mut().zip(bins.chunks_exact(lanes)) {
        *to = bin[lane];
    }
}

/// Centred frames and their power spectra: what librosa's features are made of.
#[derive(Debug)]
pub(super) struct Framing {
    /// Several frames at a time, for the lengths that there is such a transform for.
    spectra: Option<Spectra>,
    fourier: Fourier,
    window: Vec<f64>,
    hop: usize,
    padding: Padding,
}

impl Framing {
    pub(super) fn check(n_fft: usize, window: Option<usize>, hop: usize) -> Result<(), ConfigError> {
        ConfigError::check_range("n_fft", n_fft as f64, 2.0, MAX_LENGTH as f64)?;
        ConfigError::check_range("window", window.unwrap_or(n_fft) as f64, 1.0, n_fft as f64)?;
        ConfigError::check_range("hop", hop as f64, 1.0, MAX_LENGTH as f64)
    }

    pub(super) fn new(n_fft: usize, window: Option<usize>, hop: usize, padding: Padding) -> Self {
        let window = centred(hann_periodic(window.unwrap_or(n_fft)), n_fft);
        Self { spectra: Spectra::new(&window), fourier: Fourier::new(n_fft), window, hop, padding }
    }

    pub(super) fn bins(&self) -> usize {
        self.fourier.bins()
    }

    /// An odd `n_fft` pads one sample less than it takes away.
    pub(super) fn frames(&self, samples: usize) -> usize {
        let n_fft = self.window.len();
        1 + (samples + 2 * (n_fft / 2)).saturating_sub(n_fft) / self.hop
    }

    /// (time, bins).
    pub(super) fn powers(&self, samples: &[f32]) -> Vec<f64> {
        let (frames, bins) = (self.frames(samples.len()), self.bins());
        if let Some(spectra) = &self.spectra {
            let mut values = vec![0.0; frames * bins];
            self.batches(spectra, samples, |first, powers| {
                let rows = values[first * bins..].chunks_exact_mut(bins).take(spectra.lanes());
                rows.enumerate().for_each(|(lane, row)| lane_of(powers, spectra.lanes(), lane, row));
            });
            return values;
        }
        let mut values = Vec::with_capacity(frames * bins);
        let mut scratch = self.fourier.scratch();
        let before = self.window.len() / 2;
        for frame in 0..frames {
            let start = (frame * self.hop) as isize - before as isize;
            let inside = usize::try_from(start).ok().and_then(|s| samples.get(s..s + self.window.len()));
            if let Some(inside) = inside {
                for ((to, &x), &w) in scratch.frame.iter_mut().zip(inside).zip(&self.window) {
                    *to = f64::from(x) * w;
                }
            } else {
                for (i, (to, &w)) in scratch.frame.iter_mut().zip(&self.window).enumerate() {
                    *to = f64::from(self.sample(samples, start + i as isize)) * w;
                }
            }
            values.extend(self.fourier.power(&mut scratch));
        }
        values
    }

    /// Calls `each` with the first of some frames and their powers: bin after bin, of each the frames. Those behind the
    /// last frame of the clip mean nothing.
    fn batches(&self, spectra: &Spectra, samples: &[f32], mut each: impl FnMut(usize, &[f64])) {
        let reach = (spectra.lanes() - 1) * self.hop + self.window.len();
        let before = (self.window.len() / 2) as isize;
        let (mut work, mut padded) = (Work::default(), Vec::new());
        for first in (0..self.frames(samples.len())).step_by(spectra.lanes()) {
            let start = (first * self.hop) as isize - before;
            let inside = usize::try_from(start).ok().and_then(|s| samples.get(s..s + reach));
            let samples = inside.unwrap_or_else(|| {
                padded.clear();
                padded.extend((0..reach).map(|i| self.sample(samples, start + i as isize)));
                &padded
            });
            each(first, spectra.powers(samples, self.hop, &mut work));
        }
    }

    fn sample(&self, samples: &[f32], place: isize) -> f32 {
        let place = match self.padding {
            Padding::Constant => usize::try_from(place).ok(),
            Padding::Reflect if samples.len() == 1 => Some(0),
            Padding::Reflect => {
                // A clip shorter than the padding is reflected again and again, as numpy.pad does.
                let period = 2 * (samples.len() as isize - 1);
                let place = place.rem_euclid(period);
                usize::try_from(place.min(period - place)).ok()
            }
        };
        place.and_then(|p| samples.get(p)).copied().unwrap_or(0.0)
    }
}
