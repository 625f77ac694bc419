//! Changes the sampling rate by a ratio of integers: a bank of filters, one for each phase.
//!
//! ```text
//! y[m] = sum_k x[k] h(k / from - m / to)                     from, to: the rates divided by what divides both
//! sinc         h(t) = c/from sinc(c t) cos^2(pi c t / (2 L)) for |c t| < L         L = 6, c = 0.99 min(from, to)
//! sinc-kaiser  for cos^2: I0(b sqrt(1 - (c t / L)^2)) / I0(b)           L = 64, c = 0.9476 min(from, to), b = 14.77
//! soxr-like    the same with L = 105.2, c = 0.95684 min(from, to), b = 15.92
//! polyphase    h: sinc of half-width 10 max(from, to) at the rate from * to, times a Kaiser window (b = 5),
//!              scaled so that its sum is `to`
//! ```
//!
//! Shapes: T samples become ceil(T to / from).
//!
//! | method | the same as |
//! |---|---|
//! | `sinc` | `torchaudio.functional.resample` with its defaults |
//! | `sinc-kaiser` | the same, "kaiser_best": `sinc_interp_kaiser`, 64, 0.9475937167399596, 14.769656459379492 |
//! | `soxr-like` | `librosa.resample` with its default `soxr_hq`, nearly |
//! | `polyphase` | `scipy.signal.resample_poly`, which is `res_type="polyphase"` of librosa |
//!
//! Differences: librosa's default, `soxr_hq`, belongs to a C library and cannot be had bit for bit. The constants of
//! `soxr-like` are fitted to it. For speech from 16 to 22.05 kHz its samples differ from `soxr_hq` by 5e-4 of the
//! largest at most and by 3e-6 on average; those of `sinc-kaiser` by 5e-3 and 5e-4, those of `sinc` and `polyphase` by
//! 3e-2 and 2e-3. Of the largest value of `ogm-stft` that is 0.003, 0.006, 0.14 and 0.11 on average, nearly all of it
//! above 7.2 kHz, where little but the filters' own leakage is left and a logarithm shows it. librosa may end with a
//! zero, where soxr gave one sample less than the ratio promises.
//! torchaudio rounds the length of the result to single precision first, which can lose the last sample; here it is
//! exact. Filters and sums are in double precision.
//!
//! Source: torchaudio 2.5.1, `functional/functional.py`; SciPy 1.17, `signal/_signaltools.py` and
//! `signal/_fir_filter_design.py`.

use super::wav::MAX_SAMPLES;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The most weights of a bank: two rates without a common divisor would fill the memory.
const MAX_WEIGHTS: usize = 1 << 22;

/// How a sampling rate is changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Twelve zero crossings of a sinc under a Hann window: torchaudio's default.
    #[default]
    Sinc,
    /// 128 zero crossings under a Kaiser window: slower, and flat up to 0.93 of the band.
    SincKaiser,
    /// 210 zero crossings under a Kaiser window: what librosa does by default, nearly.
    SoxrLike,
    /// SciPy's.
    Polyphase,
}

/// The filters from one rate to another.
#[derive(Debug, Clone)]
pub struct Resampler {
    from: usize,
    to: usize,
    /// Weights of one phase.
    taps: usize,
    /// Phase by phase.
    weights: Vec<f64>,
    /// The sample of the first weight of each phase, beside that of its block.
    first: Vec<isize>,
}

impl Resampler {
    /// Plans a change of rate. `Err` holds the broken rule: a rate of zero, or rates whose bank would be too large.
    pub fn new(method: Method, from: u32, to: u32) -> Result<Self, String> {
        if from == 0 || to == 0 {
            return Err(format!("a sampling rate is 0 Hz (from {from} to {to})"));
        }
        let divisor = gcd(from, to);
        let (from, to) = ((from / divisor) as usize, (to / divisor) as usize);
        // The reach of a filter on either side, in samples of the source.
        let reach = match method {
            Method::Sinc => Shape::SINC.reach(from, to),
            Method::SincKaiser => Shape::KAISER.reach(from, to),
            Method::SoxrLike => Shape::SOXR.reach(from, to),
            Method::Polyphase => 10.0 * from.max(to) as f64 / to as f64,
        };
        let taps = 2 * reach.floor() as usize + 2;
        let bank = taps.checked_mul(to).filter(|&n| n <= MAX_WEIGHTS && from <= MAX_WEIGHTS);
        if bank.is_none() {
            return Err(format!(
                "from {} to {} Hz needs {to} filters of {taps} weights, more than {MAX_WEIGHTS} in all; \
                 convert the file to a common rate first",
                from * divisor as usize,
                to * divisor as usize
            ));
        }
        // Phase j is at j from / to samples of the source; its weights begin with the first sample within reach.
        let start = |j: usize| (j as f64 * from as f64 / to as f64 - reach).ceil() as isize;
        let first: Vec<isize> = (0..to).map(start).collect();
        // In units of 1 / (from * to) seconds all places are integers.
        let tick = |j: usize, tap: usize| {
            (first[j] + tap as isize) as i64 * to as i64 - (j as u64 * from as u64) as i64
        };
        let weigh: Box<dyn Fn(i64) -> f64> = match method {
            Method::Sinc => Box::new(move |tick| Shape::SINC.weight(tick, from, to)),
            Method::SincKaiser => Box::new(move |tick| Shape::KAISER.weight(tick, from, to)),
            Method::SoxrLike => Box::new(move |tick| Shape::SOXR.weight(tick, from, to)),
            Method::Polyphase => {
                let half = 10 * from.max(to) as i64;
                let sum: f64 = (-half..=half).map(|tick| poly(tick, from, to)).sum();
                let scale = to as f64 / sum;
                Box::new(move |tick| if tick.abs() > half { 0.0 } else { poly(tick, from, to) * scale })
            }
        };
        let places = (0..to).flat_map(|j| (0..taps).map(move |tap| (j, tap)));
        let weights = places.map(|(j, tap)| weigh(tick(j, tap))).collect();
        Ok(Self { from, to, taps, weights, first })
    }

    /// How many samples come of `samples`.
    pub fn length(&self, samples: usize) -> usize {
        (samples as u128 * self.to as u128).div_ceil(self.from as u128).try_into().unwrap_or(usize::MAX)
    }

    /// The clip at the new rate. `Err` holds the broken rule: more than [`MAX_SAMPLES`] samples.
    pub fn apply(&self, x: &[f32]) -> Result<Vec<f32>, String> {
        let length = self.length(x.len());
        if length > MAX_SAMPLES {
            return Err(format!("{length} samples at the new rate are more than the allowed {MAX_SAMPLES}"));
        }
        if self.from == self.to {
            return Ok(x.to_vec());
        }
        let mut y = Vec::with_capacity(length);
        let phases = || self.weights.chunks_exact(self.taps).zip(&self.first);
        let mut block = 0;
        while y.len() < length {
            for (weights, first) in phases().take(length - y.len()) {
                let start = block + first;
                let end = start + self.taps as isize;
                // Outside of the clip there are zeros.
                let skip = (-start).max(0) as usize;
                let from = start.max(0) as usize;
                let until = (end.max(0) as usize).min(x.len());
                let samples = x.get(from..until).unwrap_or(&[]);
                y.push(dot(weights.get(skip..).unwrap_or(&[]), samples) as f32);
            }
            block += self.from as isize;
        }
        Ok(y)
    }
}

/// As far as the shorter one goes. Eight sums side by side fill the vector units, and their order is fixed.
fn dot(weights: &[f64], samples: &[f32]) -> f64 {
    let n = weights.len().min(samples.len());
    let (weights, last_weights) = weights[..n].as_chunks::<8>();
    let (samples, last_samples) = samples[..n].as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (w, x) in weights.iter().zip(samples) {
        for ((sum, w), &x) in sums.iter_mut().zip(w).zip(x) {
            *sum += w * f64::from(x);
        }
    }
    let last = last_weights.iter().zip(last_samples).map(|(w, &x)| w * f64::from(x));
    sums.iter().sum::<f64>() + last.sum::<f64>()
}

/// A windowed sinc of torchaudio.
struct Shape {
    zeros: f64,
    rolloff: f64,
    /// Beta of a Kaiser window; Hann without.
    kaiser: Option<f64>,
}

impl Shape {
    const SINC: Self = Self { zeros: 6.0, rolloff: 0.99, kaiser: None };
    const KAISER: Self =
        Self { zeros: 64.0, rolloff: 0.947_593_716_739_959_6, kaiser: Some(14.769_656_459_379_492) };

    /// Fitted to what librosa's `soxr_hq` makes of white noise, for three pairs of rates with one result.
    const SOXR: Self = Self { zeros: 105.2, rolloff: 0.956_84, kaiser: Some(15.92) };

    fn reach(&self, from: usize, to: usize) -> f64 {
        self.zeros * from as f64 / (self.rolloff * from.min(to) as f64)
    }

    fn weight(&self, tick: i64, from: usize, to: usize) -> f64 {
        let base = self.rolloff * from.min(to) as f64;
        let t = tick as f64 * base / (from as f64 * to as f64);
        if t.abs() >= self.zeros {
            return 0.0;
        }
        let window = match self.kaiser {
            None => (t * PI / self.zeros / 2.0).cos().powi(2),
            Some(beta) => bessel(beta * (1.0 - (t / self.zeros).powi(2)).sqrt()) / bessel(beta),
        };
        sinc(t) * window * base / from as f64
    }
}

/// The filter of `resample_poly` before it is scaled; |tick| must be within its half-width.
fn poly(tick: i64, from: usize, to: usize) -> f64 {
    let slow = from.max(to) as f64;
    let (t, half) = (tick as f64 / slow, 10.0);
    sinc(t) * bessel(5.0 * (1.0 - (t / half).powi(2)).max(0.0).sqrt()) / bessel(5.0)
}

fn sinc(t: f64) -> f64 {
    if t == 0.0 { 1.0 } else { (PI * t).sin() / (PI * t) }
}

/// The modified Bessel function of order 0, by its series: all terms are positive, so that nothing cancels.
fn bessel(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let (mut term, mut sum, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-17 {
        term *= quarter / (k * k);
        sum += term;
        k += 1.0;
    }
    sum
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
