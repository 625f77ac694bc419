//! What balancing costs: whole training steps of each method against those of joint training.
//!
//! A step is forward, backward, gradient hooks, telemetry and SGD with momentum. Two settings:
//!
//! | setting | encoders | inputs | rows | bars |
//! |---|---|---|---|---|
//! | `small`, the default | multi-layer perceptrons of `experiments/synthetic.toml` | those of its sources | its batch size | 1.05 |
//! | `resnet18` | two ResNet-18 | sound 1 x 257 x 188, images 3 x 224 x 224 | 16 | see `RESNET18` |
//!
//! Each method has a model of its own; joint training has no unimodal heads. Steps of the two alternate, and who goes first
//! alternates too, so that whatever else the machine does hits both. The number is the median of the ratios of neighbouring
//! steps; in the small setting over several pairs of models, since where their tensors happen to lie in memory is worth a
//! percent there.
//!
//! It runs as `cargo xtask reproduce` runs a training: with one thread, and with an allocator that keeps what is freed.
//! `RAYON_NUM_THREADS` in the environment overrides the number of threads. (Without that variable candle asks the
//! machine for its number of cores in every matrix product, which costs more than a small product.)
//!
//! ```text
//! cargo bench -p mm-balance --bench step_overhead [-- [resnet18] [ROUNDS] [METHOD]…]
//! ```

use candle_core::{DType, Device, Result, Tensor, Var};
use mm_balance::{EpochCx, MethodConfig, Optimizer, StepCx, TrainStep};
use mm_core::{Batch, Composite, Fusion, Gradients, Modal, Modalities, ParamStore, RowShape, StepRng};
use mm_encoders::EncoderConfig;
use mm_fusion::LateLinearConfig;
use mm_kernels::optim::{SgdStep, sgd_step};
use std::time::{Duration, Instant};

/// The methods of the small setting, and what they may cost.
const SMALL: [(&str, Option<f64>); 7] = [
    ("joint", None),
    ("mlb", Some(1.05)),
    ("ogm", Some(1.05)),
    ("opm", Some(1.05)),
    ("mslr", Some(1.05)),
    ("multi-loss", None),
    ("ogm-ge", None),
];

/// Those of two ResNet-18. MMPareto goes backwards twice; AGM encodes twice, and goes backwards through both.
const RESNET18: [(&str, Option<f64>); 11] = [
    ("joint", None),
    ("mlb", Some(1.05)),
    ("ogm", Some(1.05)),
    ("opm", Some(1.05)),
    ("mmcosine", Some(1.05)),
    ("pmr", Some(1.05)),
    ("mslr", Some(1.05)),
    ("multimodal-loss", Some(1.1)),
    ("lfm-heuristic", Some(1.1)),
    ("mmpareto", Some(1.6)),
    ("agm", Some(2.2)),
];

/// What is measured.
#[derive(Debug, Clone)]
struct Setting {
    encoders: Vec<EncoderConfig>,
    shapes: Vec<Vec<usize>>,
    classes: usize,
    rows: usize,
    methods: &'static [(&'static str, Option<f64>)],
    rounds: usize,
    /// How many pairs of models the rounds are spread over.
    pairs: usize,
    batches: usize,
}

impl Setting {
    /// The size of the default experiment.
    fn small() -> Result<Self> {
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
        let shapes: Vec<Vec<usize>> = base.data.sources.iter().map(|source| vec![source.dim]).collect();
        Ok(Self {
            encoders: vec![base.model.encoder; shapes.len()],
            shapes,
            classes: base.data.classes,
            rows: base.train.batch_size,
            methods: &SMALL,
            rounds: 400,
            pairs: 5,
            batches: 8,
        })
    }

    /// Spectrograms and images, small ones where nothing is measured.
    fn resnet18(measured: bool) -> Result<Self> {
        let encoder = |channels: usize| {
            let text = format!("kind = \"resnet\"\nchannels = {channels}");
            toml::from_str::<EncoderConfig>(&text).map_err(candle_core::Error::wrap)
        };
        Ok(Self {
            encoders: vec![encoder(1)?, encoder(3)?],
            shapes: if measured {
                vec![vec![1, 257, 188], vec![3, 224, 224]]
            } else {
                vec![vec![1, 65, 47], vec![3, 56, 56]]
            },
            classes: 6,
            rows: if measured { 16 } else { 4 },
            methods: &RESNET18,
            rounds: 10,
            pairs: 1,
            batches: 2,
        })
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds: Vec<&str> = self.encoders.iter().map(EncoderConfig::name).collect();
        write!(f, "{} on inputs {:?}, B{} C{}", kinds.join(" and "), self.shapes, self.rows, self.classes)
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
    step: Box<dyn TrainStep>,
    sgd: Sgd,
}

impl Run {
    fn new(name: &str, setting: &Setting, batches: &Vec<Batch>) -> Result<Self> {
        let count = setting.shapes.len();
        let config: MethodConfig =
            toml::from_str(&format!("kind = \"{name}\"")).map_err(candle_core::Error::wrap)?;
        let needs = config.check(count).map_err(candle_core::Error::wrap)?;
        let mut store = ParamStore::new(1, DType::F32, &Device::Cpu);
        let names = Modalities::new((0..count).map(|m| format!("m{m}"))).map_err(candle_core::Error::wrap)?;
        let encoders = Modal::try_from_fn(count, |m| {
            let scope = store.root().at("encoder").at(names.name(m));
            setting.encoders[m.index()].build(scope, &RowShape::fixed(setting.shapes[m.index()].clone()))
        })?;
        let dims = encoders.map(|_, encoder| encoder.dim());
        let mut fusion = config.fusion(store.root().at("fusion"), &names, &dims, setting.classes)?;
        if needs.fusion {
            let scope = store.root().at("fusion");
            let linear = LateLinearConfig::default().build(scope, &names, &dims, setting.classes)?;
            fusion = Some(Box::new(linear) as Box<dyn Fusion>);
        }
        let mut model = Composite::new(names, setting.classes, encoders, fusion)?;
        if needs.heads {
            model = model.with_heads(store.root())?;
        }
        let mut step = config.step(store.root().at("balance"), &dims, setting.classes)?;
        config.prepare(&mut store)?;
        step.epoch_start(&EpochCx {
            model: &model,
            params: &store,
            epoch: 0,
            learning_rate: 1e-3,
            batches: None,
            train: Some(batches),
            rng: StepRng::new(1),
        })?;
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
fn batches(setting: &Setting) -> Result<Vec<Batch>> {
    let (rows, classes) = (setting.rows, setting.classes);
    let mut draws = StepRng::new(2).stream("overhead").draws();
    (0..setting.batches)
        .map(|_| {
            let labels: Vec<u32> = (0..rows).map(|_| draws.below(classes) as u32).collect();
            let inputs = Modal::try_from_fn(setting.shapes.len(), |m| {
                let shape = &setting.shapes[m.index()];
                let strength = if m.index() == 0 { 1.0 } else { 0.2 };
                let mut values = Vec::with_capacity(rows * shape.iter().product::<usize>());
                for &label in &labels {
                    let noise = draws.normals_f32(shape.iter().product());
                    values.extend(
                        noise
                            .into_iter()
                            .enumerate()
                            .map(|(i, x)| if i % classes == label as usize { x + strength } else { x }),
                    );
                }
                let dims: Vec<usize> = std::iter::once(rows).chain(shape.iter().copied()).collect();
                Tensor::from_vec(values, dims, &Device::Cpu)
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
    let named = |name: &str| arguments.iter().any(|a| a == name);
    // `cargo test --benches` runs this too: then it only has to work.
    let measured = named("--bench");
    let setting = if named("resnet18") { Setting::resnet18(measured)? } else { Setting::small()? };
    let rounds = asked.unwrap_or(if measured { setting.rounds } else { 2 });
    let any = setting.methods.iter().any(|(name, _)| named(name));
    let batches = batches(&setting)?;
    let threads = std::env::var("RAYON_NUM_THREADS").unwrap_or_default();
    println!("training steps: {setting}, f32 cpu, {threads} thread(s), {rounds} rounds");
    for &(name, bar) in setting.methods.iter().filter(|(name, _)| !any || named(name)) {
        let (mut base, mut ratios) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        for _ in 0..setting.pairs {
            let mut joint = Run::new("joint", &setting, &batches)?;
            let mut other = Run::new(name, &setting, &batches)?;
            let warm_up = 1 + rounds / setting.pairs / 5;
            for n in 0..warm_up + rounds.div_ceil(setting.pairs) {
                let batch = &batches[n % batches.len()];
                let (a, b) = if n % 2 == 0 {
                    let a = joint.time(batch, n)?;
                    (a, other.time(batch, n)?)
                } else {
                    let b = other.time(batch, n)?;
                    (joint.time(batch, n)?, b)
                };
                if n >= warm_up {
                    base.push(a.as_secs_f64() * 1e3);
                    ratios.push(b.as_secs_f64() / a.as_secs_f64());
                }
            }
        }
        let (ratio, base) = (median(ratios), median(base));
        let verdict = match bar {
            Some(bar) if ratio <= bar => format!("(bar {bar})"),
            Some(bar) => format!("(bar {bar}, MISSED)"),
            None => "(no bar)".to_owned(),
        };
        println!("overhead {name}: {ratio:.3}x joint {verdict}, joint {base:.3} ms");
    }
    Ok(())
}
