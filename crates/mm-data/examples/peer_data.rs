//! Our side of the rows `data-…` of `cargo xtask bench peer`: files and front-ends, on one thread, when it is told to.
//!
//! The lines that it reads and writes are described in `xtask/src/bench/side.rs`; the other side is
//! `xtask/src/bench/peer_data.py`. Both work on the same files, which this program makes in the folder `--files`: clips
//! of three seconds at 22050 Hz and 16 bits, and pictures of 480 x 360.
//!
//! | row | a step, for each of `--batch` items |
//! |---|---|
//! | `data-stft` | samples in memory to the log-magnitudes of OGM's front-end (257 x 188) |
//! | `data-jpeg` | a JPEG file to 3 x 224 x 224 normalised numbers |
//! | `data-wav` | a WAV file to samples |
//!
//! `cargo run --release -p mm-data --example peer_data -- --row data-stft --batch 16 --files DIR`

#![allow(clippy::print_stdout)] // it talks to the program that started it

use ::image::ExtendedColorType;
use ::image::codecs::jpeg::JpegEncoder;
use mm_core::StepRng;
use mm_data::audio::{Clip, FrontEnd, Planned};
use mm_data::image::{Frame, FrameTransform};
use serde_json::{Value, json};
use std::error::Error;
use std::f64::consts::TAU;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

const RATE: u32 = 22_050;
const SIZES: [usize; 2] = [360, 480];

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)
    };
    let (Some(row), Some(batch), Some(files)) = (value("--row"), value("--batch"), value("--files")) else {
        return Err("usage: peer_data --row NAME --batch ITEMS --files DIR [--small]".into());
    };
    let small = arguments.iter().any(|argument| argument == "--small");
    let task = Task::new(row, batch.parse()?, Path::new(files), small)?;

    say(&json!({ "ready": concat!("mm-data ", env!("CARGO_PKG_VERSION")), "mib": memory("VmRSS") }))?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let Some(count) = line.strip_prefix("step ") else {
            return say(&json!({ "mib": memory("VmHWM") }));
        };
        let (mut ms, mut last) = (Vec::new(), Vec::new());
        for _ in 0..count.trim().parse()? {
            let began = Instant::now();
            last = task.step()?;
            ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
        // No loss, but a number that shows that something was computed.
        let mean = last.iter().copied().map(f64::from).sum::<f64>() / last.len() as f64;
        say(&json!({ "ms": ms, "loss": mean.is_finite().then_some(mean) }))?;
    }
    Ok(())
}

fn say(answer: &Value) -> Result<()> {
    println!("{answer}");
    Ok(std::io::stdout().flush()?)
}

/// The memory that this process holds (`VmRSS`) or held at most (`VmHWM`), in MiB; on Linux only.
fn memory(what: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

enum Task {
    Stft(Planned, Vec<Clip>),
    Jpeg(FrameTransform, Vec<PathBuf>),
    Wav(Vec<PathBuf>),
}

impl Task {
    fn new(row: &str, batch: usize, folder: &Path, small: bool) -> Result<Self> {
        let paths = |ending: &str| -> Vec<PathBuf> {
            (0..batch).map(|item| folder.join(format!("{item:04}.{ending}"))).collect()
        };
        let key = StepRng::new(0).stream("peer");
        let clips = || -> Result<Vec<PathBuf>> {
            let paths = paths("wav");
            for (item, path) in paths.iter().enumerate() {
                sound(key.sample(item as u64), if small { 2000 } else { 3 * RATE as usize }).write(path)?;
            }
            Ok(paths)
        };
        Ok(match row {
            "data-stft" => {
                let clips = clips()?.iter().map(Clip::open).collect::<std::result::Result<_, _>>()?;
                Self::Stft(FrontEnd::named("ogm-stft")?.plan()?, clips)
            }
            "data-jpeg" => {
                let paths = paths("jpg");
                for (item, path) in paths.iter().enumerate() {
                    let sizes = if small { [48, 64] } else { SIZES };
                    picture(key.sample(item as u64), sizes, path)?;
                }
                Self::Jpeg(FrameTransform::default(), paths)
            }
            "data-wav" => Self::Wav(clips()?),
            _ => return Err(format!("there is no row {row}").into()),
        })
    }

    /// All items once; what the last of them gave.
    fn step(&self) -> Result<Vec<f32>> {
        let mut last = Vec::new();
        match self {
            Self::Stft(planned, clips) => {
                for clip in clips {
                    last = planned.apply(clip)?.values;
                }
            }
            Self::Jpeg(transform, paths) => {
                for path in paths {
                    last = transform.planes(&transform.evaluation_views(&[Frame::open(path)?])?)?;
                }
            }
            Self::Wav(paths) => {
                for path in paths {
                    last = Clip::open(path)?.samples;
                }
            }
        }
        Ok(last)
    }
}

/// Tones that rise and fall, in noise.
fn sound(key: StepRng, samples: usize) -> Clip {
    let mut draws = key.stream("sound").draws();
    let tones: Vec<[f64; 3]> =
        (0..8).map(|_| [100.0 + 4000.0 * draws.uniform(), 5.0 * draws.uniform(), draws.uniform()]).collect();
    let sample = |t: usize| {
        let time = TAU * t as f64 / f64::from(RATE);
        let tone = |[pitch, wave, size]: &[f64; 3]| size * (pitch * time).sin() * (wave * time).cos();
        (0.05 * tones.iter().map(tone).sum::<f64>() + 0.02 * draws.normal()) as f32
    };
    Clip { samples: (0..samples).map(sample).collect(), rate: RATE }
}

/// Waves of several lengths in all colours and a little noise, as a photograph has them; quality 90.
fn picture(key: StepRng, [height, width]: [usize; 2], path: &Path) -> Result<()> {
    let mut draws = key.stream("picture").draws();
    let waves: Vec<[f64; 6]> = (0..12)
        .map(|i| {
            let fine = f64::from(1 << (i / 2)) / 100.0;
            let [x, y, phase] = [0, 1, 2].map(|_| draws.uniform() - 0.5);
            let [r, g, b] = [0, 1, 2].map(|_| draws.uniform());
            [fine * x, fine * y, 6.0 * phase, r / fine.sqrt(), g / fine.sqrt(), b / fine.sqrt()]
        })
        .collect();
    let mut pixels = Vec::with_capacity(3 * height * width);
    for y in 0..height {
        for x in 0..width {
            let noise = 3.0 * draws.normal();
            for c in 3..6 {
                let wave = |w: &[f64; 6]| w[c] * (w[0] * x as f64 + w[1] * y as f64 + w[2]).sin();
                let value = 128.0 + 3.0 * waves.iter().map(wave).sum::<f64>() + noise;
                pixels.push(value.clamp(0.0, 255.0) as u8);
            }
        }
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode(
        &pixels,
        width as u32,
        height as u32,
        ExtendedColorType::Rgb8,
    )?;
    Ok(std::fs::write(path, bytes)?)
}
