//! What balancing costs: whole training steps of each method against those of joint training.
//!
//! A step is forward, backward, gradient hooks, telemetry and SGD with momentum, in the size of the default experiment:
//! widths, classes and batch size are read from `experiments/synthetic.toml`. Each method has a model of its own; joint
//! training has no unimodal heads. Steps of the two alternate, and who goes first alternates too, so that whatever else
//! the machine does hits both. The number is the median of the ratios of neighbouring steps, over several pairs of
//! models: where their tensors happen to lie in memory is worth a percent.
//!
//! It runs as `cargo xtask reproduce` runs a training: with one thread, and with an allocator that keeps what is freed.
//! `RAYON_NUM_THREADS` in the environment overrides the number of threads. (Without that variable candle asks the
//! machine for its number of cores in every matrix product, which costs more than a small product.)
//!
//! ```text
//! cargo bench -p mm-balance --bench step_overhead [-- [ROUNDS] [METHOD]…]
//! ```

use candle_core::{DType, Device, Result, Tensor, Var};
use mm_balance::{Balancer, Joint, MethodConfig, Optimizer, StepCx, TrainStep};
use mm_core::{Batch, Composite, Encoder, Gradients, Modal, Modalities, ParamStore, StepRng};
use mm_encoders::{EncoderConfig, MlpConfig};
use mm_fusion::LateLinearConfig;
use mm_kernels::optim::{SgdStep, sgd_step};
use std::time::{Duration, Instant};

const BAR: f64 = 1.05;
const ROUNDS: usize = 400;
const PAIRS: usize = 5;

/// The methods, and whether the bar is meant for them.
const METHODS: [(&str, bool); 7] = [
    ("joint", false),
    ("mlb", true),
    ("ogm", true),
    ("opm", true),
    ("mslr", true),
    ("multi-loss", false),
    ("ogm-ge", false),
];

/// The sizes of an experiment.
#[derive(Debug, Clone)]
struct Size {
    inputs: Vec<usize>,
    encoder: MlpConfig,
    classes: usize,
    rows: usize,
}

impl Size {
    /// That of the default experiment.
    fn default_experiment() -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Experiment {
            base: Base,
        }
        #[derive(serde::Deserialize)]
        struct Base {
            data: Data,
            model: Model,
            train: Train,
        }
        #[derive(serde::Deserialize)]
        struct Data {
            classes: usize,
            sources: Vec<Source>,
        }
        #[derive(serde::Deserialize)]
        struct Source {
            dim: usize,
        }
        #[derive(serde::Deserialize)]
        struct Model {
            encoder: EncoderConfig,
        }
        #[derive(serde::Deserialize)]
        struct Train {
            batch_size: usize,
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../experiments/synthetic.toml");
        let base = toml::from_str::<Experiment>(&std::fs::read_to_string(path)?)
            .map_err(|error| candle_core::Error::Msg(format!("{path}: {error}")))?
            .base;
        let EncoderConfig::Mlp(encoder) = base.model.encoder else {
            panic!("the default experiment trains multi-layer perceptrons");
        };
        let inputs = base.data.sources.iter().map(|source| source.dim).collect();
        Ok(Self { inputs, encoder, classes: base.data.classes, rows: base.train.batch_size })
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { inputs, encoder, classes, rows } = self;
        write!(f, "inputs {inputs:?}, hidden {:?}, dim {}, B{rows} C{classes}", encoder.hidden, encoder.dim)
    }
}

/// SGD with momentum 0.9 and weight decay.
struct Sgd {
    buffers: Vec<Var>,
    steps: usize,
}

impl Sgd {
    fn new(params: &ParamStore) -> Result<Self> {
        let buffers = params.params().iter().map(|p| Var::from_tensor(&p.var().zeros_like()?));
        Ok(Self { buffers: buffers.collect::<Result<_>>()?, steps: 0 })
    }
}

struct Stepper<'a>(&'a ParamStore, &'a mut Sgd);

impl Optimizer for Stepper<'_> {
    fn step(&mut self, gradients: &mut Gradients) -> Result<Option<f64>> {
        for (id, buffer) in self.0.ids().zip(&self.1.buffers) {
            if let Some((gradient, grad_scale)) = gradients.raw(id) {
                let config = SgdStep {
                    lr: 1e-3 * gradients.lr_scale(id),
                    momentum: 0.9,
                    weight_decay: 1e-4,
                    grad_scale,
                    first: self.1.steps == 0,
                    ..SgdStep::default()
                };
                sgd_step(self.0.get(id).var(), gradient, Some(buffer), &config)?;
            }
        }
        self.1.steps += 1;
        Ok(None)
    }
}

/// A run in progress.
struct Run {
    model: Composite,
    store: ParamStore,
    step: Joint<Box<dyn Balancer>>,
    sgd: Sgd,
}

impl Run {
    fn new(name: &str, size: &Size) -> Result<Self> {
        let count = size.inputs.len();
        let config: MethodConfig =
            toml::from_str(&format!("kind = \"{name}\"")).map_err(candle_core::Error::wrap)?;
        let needs = config.check(count).map_err(candle_core::Error::wrap)?;
        let mut store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let names = Modalities::new((0..count).map(|m| format!("m{m}"))).map_err(candle_core::Error::wrap)?;
        let encoders = Modal::try_from_fn(count, |m| {
            let scope = store.root().at("encoder").at(names.name(m));
            Result::Ok(Box::new(size.encoder.build(scope, size.inputs[m.index()])?) as Box<dyn Encoder>)
        })?;
        let dims = encoders.map(|_, encoder| encoder.dim());
        let fusion =
            LateLinearConfig::default().build(store.root().at("fusion"), &names, &dims, size.classes)?;
        let mut model = Composite::new(names, size.classes, encoders, Some(Box::new(fusion)))?;
        if needs.heads {
            model = model.with_heads(store.root())?;
        }
        let step = Joint::new(config.build(store.root(), &dims, size.classes)?);
        let sgd = Sgd::new(&store)?;
        Ok(Self { model, store, step, sgd })
    }

    fn time(&mut self, batch: &Batch, n: usize) -> Result<Duration> {
        let start = Instant::now();
        let cx = StepCx::new(&self.model, &self.store, batch, 0, n, StepRng::new(1));
        let report = self.step.step(&cx, &mut Stepper(&self.store, &mut self.sgd))?;
        std::hint::black_box(report);
        Ok(start.elapsed())
    }
}

/// Batches in which all modalities but the first are mostly noise, so that there is a leader.
fn batches(size: &Size) -> Result<Vec<Batch>> {
    let (rows, classes) = (size.rows, size.classes);
    let mut draws = StepRng::new(2).stream("overhead").draws();
    (0..8)
        .map(|_| {
            let labels: Vec<u32> = (0..rows).map(|_| draws.below(classes) as u32).collect();
            let inputs = Modal::try_from_fn(size.inputs.len(), |m| {
                let (width, strength) = (size.inputs[m.index()], if m.index() == 0 { 1.0 } else { 0.2 });
                let mut values = Vec::with_capacity(rows * width);
                for &label in &labels {
                    values.extend((0..width).map(|i| {
                        let centre = if i % classes == label as usize { strength } else { 0.0 };
                        (centre + draws.normal()) as f32
                    }));
                }
                Tensor::from_vec(values, (rows, width), &Device::Cpu)
            })?;
            Batch::new(inputs, labels)
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What a training run has around it; read once at the start of a process, so it takes a new one to set it.
const SURROUNDINGS: [(&str, &str); 3] = [
    ("RAYON_NUM_THREADS", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
];

fn main() -> Result<()> {
    let missing = SURROUNDINGS.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let missing: Vec<(&str, &str)> = missing.collect();
    if missing.is_empty() {
        return measure();
    }
    let mut again = std::process::Command::new(std::env::current_exe()?);
    let status = again.args(std::env::args_os().skip(1)).envs(missing).status()?;
    std::process::exit(status.code().unwrap_or(1))
}

#[allow(clippy::print_stdout)] // the lines are what the bench reports
fn measure() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let asked = arguments.iter().find_map(|a| a.parse::<usize>().ok());
    // `cargo test --benches` runs this too: then it only has to work.
    let measured = arguments.iter().any(|a| a == "--bench");
    let rounds = asked.unwrap_or(if measured { ROUNDS } else { 2 });
    let named = |name: &str| arguments.iter().any(|a| a == name);
    let any = METHODS.iter().any(|(name, _)| named(name));
    let size = Size::default_experiment()?;
    let batches = batches(&size)?;
    let threads = std::env::var("RAYON_NUM_THREADS").unwrap_or_default();
    println!(
        "training steps of the default experiment: {size}, f32 cpu, {threads} thread(s), {rounds} rounds"
    );
    for (name, judged) in METHODS.into_iter().filter(|(name, _)| !any || named(name)) {
        let (mut base, mut ratios) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        for _ in 0..PAIRS {
            let (mut joint, mut other) = (Run::new("joint", &size)?, Run::new(name, &size)?);
            let warm_up = 1 + rounds / PAIRS / 5;
            for n in 0..warm_up + rounds.div_ceil(PAIRS) {
                let batch = &batches[n % batches.len()];
                let (a, b) = if n % 2 == 0 {
                    let a = joint.time(batch, n)?;
                    (a, other.time(batch, n)?)
                } else {
                    let b = other.time(batch, n)?;
                    (joint.time(batch, n)?, b)
                };
                if n >= warm_up {
                    base.push(a.as_secs_f64() * 1e6);
                    ratios.push(b.as_secs_f64() / a.as_secs_f64());
                }
            }
        }
        let (ratio, base) = (median(ratios), median(base));
        let verdict = match (judged, ratio <= BAR) {
            (true, true) => format!("(bar {BAR})"),
            (true, false) => format!("(bar {BAR}, MISSED)"),
            (false, _) => "(no bar)".to_owned(),
        };
        println!("overhead {name}: {ratio:.3}x joint {verdict}, joint {base:.0} us");
    }
    Ok(())
}
