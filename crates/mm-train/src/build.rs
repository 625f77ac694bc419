//! From a configuration to parameters, a model and a training step.

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optim::dtype;
use crate::predict::Predictor;
use candle_core::Device;
use candle_core::Tensor;
use mm_balance::umt::Teachers;
use mm_balance::{Balancer, Joint, MethodConfig, Needs, TrainStep};
use mm_core::{
    Batch, Composite, ConfigError, Encoder, Modal, Modalities, Modality, Mode, Multimodal, ParamStore,
    RowShape,
};
use mm_encoders::weights::Source;
use std::collections::BTreeMap;
use std::path::Path;

/// Everything that is trained.
#[derive(Debug)]
pub struct Built {
    /// Parameters and buffers.
    pub params: ParamStore,
    /// The model.
    pub model: Composite,
    /// The training step with its balancing methods.
    pub step: Box<dyn TrainStep>,
    /// What the methods ask for.
    pub needs: Needs,
    /// Where it all lies.
    pub device: Device,
}

/// The device called `name`: `cpu`, `cuda`, `cuda:N`, `metal`.
pub fn device(name: &str) -> Result<Device, ConfigError> {
    let (kind, index) = name.split_once(':').unwrap_or((name, "0"));
    let field = "train.device";
    let index: usize = index.parse().map_err(|_| {
        ConfigError::new(field, format!("\"{name}\""), "a device number is an integer, as in cuda:0")
    })?;
    let gone = |e: candle_core::Error| {
        let rule = format!("this build or this machine has no such device ({e}); use cpu");
        ConfigError::new(field, format!("\"{name}\""), rule)
    };
    match kind {
        "cpu" if name == "cpu" => Ok(Device::Cpu),
        "cuda" => Device::new_cuda(index).map_err(gone),
        "metal" => Device::new_metal(index).map_err(gone),
        _ => Err(ConfigError::unknown(field, name, &["cpu", "cuda", "cuda:0", "metal"])),
    }
}

/// Builds a run's model for rows of these shapes, with drawn start values: its values are to be loaded.
pub fn build(
    config: &RunConfig,
    modalities: &Modalities,
    shapes: &Modal<RowShape>,
    classes: usize,
) -> Result<Built, TrainError> {
    Ok(assemble(config, modalities, shapes, classes, false)?.0)
}

/// As [`build`], with the checkpoints of `[model.weights]` in the encoders, and where each came from.
pub fn begin(
    config: &RunConfig,
    modalities: &Modalities,
    shapes: &Modal<RowShape>,
    classes: usize,
) -> Result<(Built, BTreeMap<String, Source>), TrainError> {
    assemble(config, modalities, shapes, classes, true)
}

fn assemble(
    config: &RunConfig,
    modalities: &Modalities,
    shapes: &Modal<RowShape>,
    classes: usize,
    pretrained: bool,
) -> Result<(Built, BTreeMap<String, Source>), TrainError> {
    let needs = config.check_model(modalities)?;
    config.check_inputs(modalities, shapes)?;
    let device = device(&config.train.device)?;
    let mut params = ParamStore::new(config.seed, dtype(config.train.precision), &device);
    let mut dims = Vec::with_capacity(modalities.len());
    let mut encoders: Vec<Box<dyn Encoder>> = Vec::with_capacity(modalities.len());
    for m in modalities.iter() {
        let name = modalities.name(m);
        let scope = params.root().at("encoder").at(name);
        let encoder = config.model.encoder(name).build(scope, &shapes[m])?;
        dims.push(encoder.dim());
        encoders.push(encoder);
    }
    let dims = Modal::new(dims);
    let mut fusion = if needs.fusion {
        let scope = params.root().at("fusion");
        Some(config.model.fusion.build(scope, modalities, &dims, classes)?)
    } else {
        None
    };
    for method in &config.method {
        if let Some(own) = method.fusion(params.root().at("fusion"), modalities, &dims, classes)? {
            fusion = Some(own);
        }
    }
    let mut model = Composite::new(modalities.clone(), classes, Modal::new(encoders), fusion)?;
    if needs.heads {
        model = model.with_heads(params.root())?;
    }
    let sources = if pretrained { load_pretrained(config, &params)? } else { BTreeMap::new() };
    let step = step(config, &mut params, &dims, classes)?;
    // Methods that keep copies of encoders copy what training begins with.
    for method in &config.method {
        method.prepare(&mut params)?;
    }
    Ok((Built { params, model, step, needs, device }, sources))
}

/// The training step: one method's own, or one step for all balancers together.
fn step(
    config: &RunConfig,
    params: &mut ParamStore,
    dims: &Modal<usize>,
    classes: usize,
) -> Result<Box<dyn TrainStep>, TrainError> {
    if let [alone] = config.method.as_slice()
        && alone.steps()
    {
        return Ok(alone.step(params.root().at("balance"), dims, classes)?);
    }
    let mut all: Option<Box<dyn Balancer>> = None;
    for method in &config.method {
        let next = balancer(method, params, dims, classes)?;
        all = Some(match all {
            None => next,
            Some(first) => Box::new((first, next)),
        });
    }
    Ok(Box::new(Joint::new(all.unwrap_or_else(|| Box::new(())))))
}

fn balancer(
    method: &MethodConfig,
    params: &mut ParamStore,
    dims: &Modal<usize>,
    classes: usize,
) -> Result<Box<dyn Balancer>, TrainError> {
    match method {
        MethodConfig::Umt(umt) => {
            let runs = Runs { folders: umt.teachers.clone(), open: BTreeMap::new() };
            Ok(Box::new(umt.build(Some(Box::new(runs)))?))
        }
        _ => Ok(method.build(params.root().at("balance"), dims, classes)?),
    }
}

/// Finished unimodal runs as teachers, opened when they are asked first: a model that predicts needs none.
#[derive(Debug)]
struct Runs {
    folders: BTreeMap<String, String>,
    open: BTreeMap<String, Predictor>,
}

impl Teachers for Runs {
    fn features(&mut self, m: Modality, name: &str, batch: &Batch) -> candle_core::Result<Tensor> {
        if !self.open.contains_key(name) {
            let Some(folder) = self.folders.get(name) else {
                candle_core::bail!("UMT: `{name}` has no teacher; set method.teachers.{name}")
            };
            let teacher = Predictor::open(Path::new(folder)).map_err(candle_core::Error::wrap)?;
            let names = teacher.built().model.modalities().names();
            if names != [name] {
                candle_core::bail!(
                    "UMT: the teacher {folder} of `{name}` was trained on {}; give the folder of a run with method.kind \
                     = \"unimodal\" and method.modality = \"{name}\"",
                    names.join(", ")
                );
            }
            self.open.insert(name.to_owned(), teacher);
        }
        let Some(teacher) = self.open.get(name) else { candle_core::bail!("UMT: no teacher for `{name}`") };
        let alone = Batch {
            inputs: Modal::new(vec![batch.inputs[m].detach()]),
            lengths: Modal::new(vec![batch.lengths[m].clone()]),
            present: Modal::new(vec![batch.present[m].clone()]),
            ..batch.clone()
        };
        teacher.built().model.encode(Modality::new(0), &alone, Mode::Eval)
    }
}

/// Puts the values of `[model.weights]` into the encoders, and says where each came from.
fn load_pretrained(config: &RunConfig, params: &ParamStore) -> Result<BTreeMap<String, Source>, TrainError> {
    let mut sources = BTreeMap::new();
    for (name, weights) in &config.model.weights {
        let (_, source) = weights.load(config.model.encoder(name), params, &format!("encoder.{name}"))?;
        sources.insert(name.clone(), source);
    }
    Ok(sources)
}
