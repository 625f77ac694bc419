//! What all front-ends share: windows, and the power spectrum of one frame.

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};
use std::f64::consts::PI;
use std::fmt;
use std::sync::Arc;

/// The largest transform, and the largest window and hop, in samples.
pub(super) const MAX_LENGTH: usize = 1 << 16;

/// Hann: 0.5 - 0.5 cos(2 pi i / n), for which the period is the window's length.
pub(super) fn hann_periodic(length: usize) -> Vec<f64> {
    (0..length).map(|i| 0.5 - 0.5 * (2.0 * PI * i as f64 / length as f64).cos()).collect()
}

/// A window in the middle of `n_fft` zeros.
pub(super) fn centred(window: Vec<f64>, n_fft: usize) -> Vec<f64> {
    let before = (n_fft - window.len()) / 2;
    let mut padded = vec![0.0; n_fft];
    for (to, from) in padded.iter_mut().skip(before).zip(window) {
        *to = from;
    }
    padded
}

/// A planned transform of real numbers; sharing it between threads costs nothing.
#[derive(Clone)]
pub(super) struct Fourier {
    plan: Arc<dyn RealToComplex<f64>>,
}

impl fmt::Debug for Fourier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fourier").field("length", &self.plan.len()).finish()
    }
}

/// The working memory of one clip; `frame` holds the windowed samples.
pub(super) struct Scratch {
    pub(super) frame: Vec<f64>,
    spectrum: Vec<Complex<f64>>,
    work: Vec<Complex<f64>>,
}

impl Fourier {
    pub(super) fn new(length: usize) -> Self {
        Self { plan: RealFftPlanner::new().plan_fft_forward(length) }
    }

    pub(super) fn bins(&self) -> usize {
        self.plan.len() / 2 + 1
    }

    pub(super) fn scratch(&self) -> Scratch {
        let (frame, spectrum) = (self.plan.make_input_vec(), self.plan.make_output_vec());
        Scratch { frame, spectrum, work: self.plan.make_scratch_vec() }
    }

    /// |X[k]|^2 for k = 0 to n / 2 of `scratch.frame`, which is used up.
    pub(super) fn power(&self, scratch: &mut Scratch) -> impl Iterator<Item = f64> {
        let Scratch { frame, spectrum, work } = scratch;
        let done = self.plan.process_with_scratch(frame, spectrum, work);
        done.expect("buffers of the plan's own lengths");
        spectrum.iter().map(|c| c.re * c.re + c.im * c.im)
    }
}
