//! From a configuration to parameters, a model and a training step.

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::optim::dtype;
use candle_core::Device;
use mm_balance::{Balancer, Joint, Needs, TrainStep};
use mm_core::{Composite, ConfigError, Encoder, Modal, Modalities, ParamStore};

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

/// Builds a run's model for inputs of these widths.
pub fn build(
    config: &RunConfig,
    modalities: &Modalities,
    widths: &Modal<usize>,
    classes: usize,
) -> Result<Built, TrainError> {
    let needs = config.check_model(modalities)?;
    let device = device(&config.train.device)?;
    let mut params = ParamStore::new(config.seed, dtype(config.train.precision), &device);
    let mut dims = Vec::with_capacity(modalities.len());
    let mut encoders: Vec<Box<dyn Encoder>> = Vec::with_capacity(modalities.len());
    for m in modalities.iter() {
        let name = modalities.name(m);
        let scope = params.root().at("encoder").at(name);
        let encoder = config.model.encoder(name).build(scope, widths[m])?;
        dims.push(encoder.dim());
        encoders.push(encoder);
    }
    let fusion = if needs.fusion {
        let scope = params.root().at("fusion");
        Some(config.model.fusion.build(scope, modalities, &Modal::new(dims), classes)?)
    } else {
        None
    };
    let mut model = Composite::new(modalities.clone(), classes, Modal::new(encoders), fusion)?;
    if needs.heads {
        model = model.with_heads(params.root())?;
    }
    let mut balancer: Option<Box<dyn Balancer>> = None;
    for method in &config.method {
        let next = method.build(params.root().at("balance"), modalities.len(), classes)?;
        balancer = Some(match balancer {
            None => next,
            Some(first) => Box::new((first, next)),
        });
    }
    for method in &config.method {
        method.prepare(&mut params)?;
    }
    let step: Box<dyn TrainStep> = Box::new(Joint::new(balancer.unwrap_or_else(|| Box::new(()))));
    Ok(Built { params, model, step, needs, device })
}
