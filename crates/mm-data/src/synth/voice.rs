//! Voices that are made: a train of glottal pulses and breath through four resonators; pitch, loudness, tempo and
//! roughness carry the emotion, base pitch and vocal tract say who it is, the vowels which sentence.
//!
//! ```text
//! manner = neutral + strength (table[emotion] - neutral) + variation * noise
//! f0(t)  = pitch of the actor * 2^(pitch + slope (t/T - 1/2) + range * accent(t)),  each period times 1 + jitter * noise
//! source = pulse(phase) through a low-pass of first order (tilt) + breath * noise
//! y[n]   = A x[n] + B y[n-1] + C y[n-2]      C = -exp(-2 pi w / R)   B = 2 exp(-pi w / R) cos(2 pi f / R)   A = 1 - B - C
//! ```
//!
//! Four such resonators follow each other, with the frequencies f of the vowel and fixed widths w, at R = 16 kHz; their
//! coefficients change every 5 ms.

use crate::audio::Clip;
use mm_core::StepRng;
use mm_kernels::rng::Draws;

/// Samples per second.
pub(super) const RATE: u32 = 16_000;
/// Samples between two settings of the resonators.
const BLOCK: usize = 80;

/// How something is said: pitch (octaves), its range (octaves), its slope (octaves), syllables per second, loudness (dB),
/// jitter, breath, tilt (of the low-pass, 0 to 1).
pub(super) type Manner = [f64; 8];

/// In the order of the classes NEU, HAP, SAD, FEA, DIS, ANG.
pub(super) const MANNERS: [Manner; 6] = [
    [0.0, 0.10, -0.08, 4.5, 0.0, 0.006, 0.02, 0.80],
    [0.42, 0.42, 0.10, 5.2, 4.0, 0.008, 0.02, 0.65],
    [-0.18, 0.06, -0.22, 3.6, -6.0, 0.010, 0.09, 0.92],
    [0.60, 0.18, 0.25, 5.6, 1.0, 0.030, 0.08, 0.75],
    [-0.10, 0.22, -0.18, 3.8, -1.0, 0.025, 0.04, 0.72],
    [0.34, 0.34, -0.12, 5.0, 8.0, 0.018, 0.02, 0.45],
];
/// The noise of each part.
const SPREAD: Manner = [0.11, 0.08, 0.10, 0.40, 2.2, 0.005, 0.02, 0.07];

/// First three resonances in Hz of five vowels, of an adult man.
const VOWELS: [[f64; 3]; 5] = [
    [280.0, 2250.0, 2950.0],
    [450.0, 1950.0, 2600.0],
    [720.0, 1250.0, 2550.0],
    [460.0, 850.0, 2450.0],
    [320.0, 800.0, 2300.0],
];
const WIDTHS: [f64; 4] = [70.0, 95.0, 140.0, 220.0];

/// Who speaks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speaker {
    pitch: f64,
    tract: f64,
    pace: f64,
    gain: f64,
}

impl Speaker {
    pub(super) fn draw(key: StepRng, female: bool) -> Self {
        let mut d = key.stream("voice").draws();
        let mut between = |low: f64, high: f64| low + (high - low) * d.uniform();
        let (low, high, tract) = if female { (175.0, 225.0, 1.16) } else { (95.0, 130.0, 1.0) };
        Self {
            pitch: between(low, high),
            tract: tract * between(0.95, 1.05),
            pace: between(0.93, 1.07),
            gain: between(-2.0, 2.0),
        }
    }

    /// How a clip with this emotion is said.
    pub(super) fn manner(emotion: usize, strength: f64, variation: f64, d: &mut Draws) -> Manner {
        let target = MANNERS.get(emotion).unwrap_or(&MANNERS[0]);
        std::array::from_fn(|i| {
            let neutral = MANNERS[0][i];
            neutral + strength * (target[i] - neutral) + variation * SPREAD[i] * d.normal()
        })
    }

    /// Says a sentence, 1.5 to 3 seconds.
    pub(super) fn say(&self, sentence: usize, manner: &Manner, d: &mut Draws) -> Clip {
        let [pitch, range, slope, tempo, loud, jitter, breath, tilt] = *manner;
        let syllables = 6 + sentence % 4;
        let seconds = (0.35 + syllables as f64 / (tempo * self.pace).clamp(2.5, 8.0)).clamp(1.5, 3.0);
        let samples = (seconds * f64::from(RATE)) as usize;
        let (jitter, breath, tilt) = (jitter.clamp(0.0, 0.1), breath.max(0.0), tilt.clamp(0.1, 0.96));
        let mut voice = Vec::with_capacity(samples);
        let (mut phase, mut stretch, mut low) = (0.0, 1.0, 0.0);
        let mut resonators = [Resonator::default(); 4];
        let mut lift = 0.0;
        let mut step = 0.0;
        for n in 0..samples {
            if n % BLOCK == 0 {
                let at = n as f64 / samples as f64;
                // The first and the last twentieth are silence.
                let place = ((at - 0.05) / 0.9).clamp(0.0, 1.0) * syllables as f64;
                let now = (place as usize).min(syllables - 1);
                let within = place - now as f64;
                let bump = (std::f64::consts::PI * within).sin().max(0.0);
                let accent = bump * if (now + sentence).is_multiple_of(2) { 1.0 } else { -0.5 };
                let f0 = self.pitch * (pitch + slope * (at - 0.5) + range * accent).exp2();
                step = f0.clamp(50.0, 600.0) / f64::from(RATE);
                lift = if (0.05..0.95).contains(&at) { 0.15 + 0.85 * bump.sqrt() } else { 0.0 };
                let vowel = |k: usize| VOWELS[(sentence * 3 + k * (sentence % 3 + 1) + k / 3) % VOWELS.len()];
                let (from, to) = (vowel(now), vowel(now + 1));
                let share = ((within - 0.6) / 0.4).clamp(0.0, 1.0);
                for (i, resonator) in resonators.iter_mut().enumerate() {
                    let f = if i < 3 { from[i] + share * (to[i] - from[i]) } else { 3400.0 };
                    resonator.tune((f * self.tract).min(7000.0), WIDTHS[i]);
                }
            }
            phase += step * stretch;
            if phase >= 1.0 {
                phase -= 1.0;
                stretch = 1.0 + jitter * d.normal();
            }
            low = (1.0 - tilt) * pulse(phase) + tilt * low;
            let noise = breath * (d.uniform() - 0.5);
            let source = lift * (low + noise);
            voice.push(resonators.iter_mut().fold(source, |x, resonator| resonator.pass(x)));
        }
        let power = voice.iter().map(|x| x * x).sum::<f64>() / samples.max(1) as f64;
        let level = 0.03 * 10f64.powf((loud + self.gain).clamp(-24.0, 14.0) / 20.0) / power.sqrt().max(1e-12);
        let samples = voice.iter().map(|x| (level * x + 0.0012 * (d.uniform() - 0.5)) as f32).collect();
        Clip { samples, rate: RATE }
    }
}

/// The flow's derivative over one period: it rises, falls steeply where the glottis closes, and is zero behind.
fn pulse(phase: f64) -> f64 {
    const OPEN: f64 = 0.6;
    let u = phase / OPEN;
    if u < 1.0 { u * (2.0 - 3.0 * u) } else { 0.0 }
}

#[derive(Debug, Clone, Copy, Default)]
struct Resonator {
    a: f64,
    b: f64,
    c: f64,
    last: [f64; 2],
}

impl Resonator {
    fn tune(&mut self, frequency: f64, width: f64) {
        let rate = f64::from(RATE);
        self.c = -(-std::f64::consts::TAU * width / rate).exp();
        self.b = 2.0
            * (-std::f64::consts::PI * width / rate).exp()
            * (std::f64::consts::TAU * frequency / rate).cos();
        self.a = 1.0 - self.b - self.c;
    }

    fn pass(&mut self, x: f64) -> f64 {
        let y = self.a * x + self.b * self.last[0] + self.c * self.last[1];
        self.last = [y, self.last[0]];
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resonator_has_its_peak_where_it_is_tuned() {
        let gain = |frequency: f64| {
            let mut resonator = Resonator::default();
            resonator.tune(1000.0, 80.0);
            let wave = |n: u32| (std::f64::consts::TAU * frequency * f64::from(n) / f64::from(RATE)).sin();
            (0..8000).map(|n| resonator.pass(wave(n))).skip(4000).fold(0.0, |most: f64, y| most.max(y.abs()))
        };
        let peak = gain(1000.0);
        assert!(peak > 5.0 && gain(700.0) < 0.3 * peak && gain(1400.0) < 0.3 * peak, "{peak}");
        assert!((gain(5.0) - 1.0).abs() < 0.05, "low frequencies pass as they are");
    }

    #[test]
    fn a_voice_has_the_pitch_and_the_level_it_is_given() {
        let speaker = Speaker { pitch: 120.0, tract: 1.0, pace: 1.0, gain: 0.0 };
        let flat = [0.0, 0.0, 0.0, 4.5, 0.0, 0.0, 0.0, 0.8];
        let mut d = StepRng::new(3).draws();
        let clip = speaker.say(1, &flat, &mut d);
        let power =
            clip.samples.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / clip.samples.len() as f64;
        assert!((power.sqrt() - 0.03).abs() < 1e-3, "{}", power.sqrt());
        // The lag of the largest autocorrelation in the middle of the clip is the period.
        let middle = &clip.samples[clip.samples.len() / 2 - 2000..clip.samples.len() / 2 + 2000];
        let match_at = |lag: usize| -> f32 { middle[lag..].iter().zip(middle).map(|(a, b)| a * b).sum() };
        let best = (60..260).max_by(|&a, &b| match_at(a).total_cmp(&match_at(b))).unwrap_or(0);
        assert!((f64::from(RATE) / best as f64 - 120.0).abs() < 3.0, "{best}");
        let louder = speaker.say(1, &[0.0, 0.0, 0.0, 4.5, 6.0, 0.0, 0.0, 0.8], &mut d);
        assert!(louder.samples.iter().all(|x| x.abs() < 1.0), "6 dB more do not clip");
    }
}
