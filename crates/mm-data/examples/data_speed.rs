//! Measures the way of data from raw files to batches, on a generated folder with the layout of CREMA-D.
//!
//! ```text
//! data_speed raw DIR ACTORS CLIPS       generates the folder: so many clips of so many actors
//! data_speed prepare DIR PACK           prepares it as OGM does; seconds and the most memory
//! data_speed epochs DIR PACK            an epoch that decodes every file, and one that reads the pack
//! data_speed workers PACK MS            an epoch of batches that each are used for MS milliseconds, by workers
//! ```
//!
//! `RAYON_NUM_THREADS` says on how many threads. Times of the processor are those of all threads of the process.
//!
//! `cargo run --release -p mm-data --example data_speed -- raw target/speed/raw 24 42`

#![allow(clippy::print_stdout)] // its tables are its result

use candle_core::{DType, Device};
use mm_core::StepRng;
use mm_data::audio::FrontEnd;
use mm_data::image::{Filter, Frame};
use mm_data::pack::{Element, Pack};
use mm_data::prepare::{Raw, Recipe, Source, Treatment, prepare};
use mm_data::synth::{CremadConfig, cremad};
use mm_data::{Loader, PackedConfig, Prefetch, Recipe as BatchRecipe};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const SIDE: usize = 224;
const BATCH: usize = 32;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let never = AtomicBool::new(false);
    match arguments[..] {
        ["raw", raw, actors, clips] => {
            let config =
                CremadConfig { actors: actors.parse()?, clips: clips.parse()?, ..CremadConfig::default() };
            cremad(&config, Path::new(raw), &|_, _| {}, &never)?;
        }
        ["prepare", raw, pack] => {
            let began = (Instant::now(), processor());
            prepare(Source::CremaD, Path::new(raw), &recipe()?, Path::new(pack), &|_| {}, &never)?;
            show("prepare", began);
        }
        ["epochs", raw, pack] => epochs(Path::new(raw), Path::new(pack))?,
        ["workers", pack, ms] => workers(Path::new(pack), ms.parse()?)?,
        _ => return Err("usage: see the head of crates/mm-data/examples/data_speed.rs".into()),
    }
    Ok(())
}

fn recipe() -> Result<Recipe> {
    let sound =
        Treatment::Sound { front_end: FrontEnd::named("ogm-stft")?, element: Element::F32, noise_db: None };
    let frames = Treatment::Frames { size: Some([SIDE; 2]), count: 1, channels: 3, step: None };
    let inputs = BTreeMap::from([("audio".to_owned(), sound), ("video".to_owned(), frames)]);
    Ok(Recipe { inputs, ..Recipe::default() })
}

fn epochs(raw: &Path, pack: &Path) -> Result<()> {
    let listing = Source::CremaD.list(raw)?;
    let planned = FrontEnd::named("ogm-stft")?.plan()?;
    let data = Pack::open(pack)?.dataset(&PackedConfig::new(pack))?;
    let rows: Vec<usize> = (0..data.rows()).collect();
    let loader = Loader::new(&data, rows, BATCH)?;
    for round in 0..3 {
        let began = (Instant::now(), processor());
        let mut numbers = 0;
        for row in &listing.rows {
            for raw in &row.raw {
                numbers += match raw {
                    Raw::Sound(path) => planned.open(path)?.values.len(),
                    Raw::Frames(paths) => match paths.first() {
                        Some(path) => Frame::open(path)?.resize(SIDE, SIDE, Filter::Bilinear)?.pixels.len(),
                        None => 0,
                    },
                    _ => 0,
                };
            }
        }
        show(&format!("round {round}: {} rows decoded, {numbers} numbers", listing.rows.len()), began);
        let began = (Instant::now(), processor());
        let mut numbers = 0;
        for batch in loader.epoch(None) {
            let batch = loader.batch(&batch, DType::F32, &Device::Cpu)?;
            numbers += batch.inputs.values().iter().map(candle_core::Tensor::elem_count).sum::<usize>();
        }
        show(&format!("round {round}: {} rows from the pack, {numbers} numbers", data.rows()), began);
    }
    Ok(())
}

fn workers(pack: &Path, ms: u64) -> Result<()> {
    let data = Pack::open(pack)?.dataset(&PackedConfig::new(pack))?;
    let loader = Loader::new(&data, (0..data.rows()).collect(), BATCH)?;
    let recipe = BatchRecipe { key: Some(StepRng::new(0)), dtype: DType::F32, device: &Device::Cpu };
    for workers in [0, 1, 2, 4] {
        let began = (Instant::now(), processor());
        let epoch = loader.epoch(None);
        loader.with_batches(&epoch, recipe, Prefetch { workers, ahead: 4 }, |batches| {
            batches.try_for_each(|batch| {
                std::thread::sleep(Duration::from_millis(ms));
                batch.map(|_| ())
            })
        })?;
        show(&format!("{workers} workers, {} batches", epoch.len()), began);
    }
    Ok(())
}

fn show(what: &str, (began, cpu): (Instant, Option<f64>)) {
    let seconds = began.elapsed().as_secs_f64();
    let used =
        processor().zip(cpu).map_or_else(|| "?".to_owned(), |(now, then)| format!("{:.2}", now - then));
    let memory = status("VmHWM").map_or_else(|| "?".to_owned(), |kib| format!("{:.0}", kib / 1024.0));
    println!("{what}: {seconds:.2} s, {used} s of processors, at most {memory} MiB");
}

/// Seconds that the threads of this process have computed; on Linux only, where a tick is a hundredth.
fn processor() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn status(what: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}
