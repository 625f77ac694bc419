//! The configuration of a run: one TOML file.
//!
//! ```toml
//! name = "example"                     # default "run"
//! seed = 0                             # of initialisation, batch order, dropout and methods
//! [data]                               # see mm_data::DataConfig
//! kind = "synthetic"
//! [model]
//! encoder = { kind = "mlp" }           # for every modality
//! encoders.audio = { kind = "mlp" }    # for one of them
//! weights.audio = { path = "…" }       # a checkpoint to begin with, see mm_encoders::pretrained
//! fusion = { kind = "late-linear" }
//! [method]                             # see `mm methods`
//! kind = "mlb"                         # or a composition, "opm+ogm", with settings in [method.opm], [method.ogm]
//! [optim]                              # see optim::OptimConfig
//! [schedule]                           # see schedule::ScheduleConfig
//! [train]                              # see TrainConfig
//! ```

use crate::optim::OptimConfig;
use crate::parse::{refuse_rest, section, take_table};
use crate::schedule::ScheduleConfig;
pub use crate::train_config::TrainConfig;
use mm_balance::{MethodConfig, Needs, catalogue};
use mm_core::{Checked, ConfigError, Modal, Modalities, RowShape};
use mm_data::{DataConfig, DataError, Summary};
use mm_encoders::{EncoderConfig, PretrainedConfig};
use mm_fusion::FusionConfig;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use toml::{Table, Value};

/// Encoders and fusion.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The encoder of every modality that has none of its own.
    pub encoder: EncoderConfig,
    /// Encoders of single modalities.
    pub encoders: BTreeMap<String, EncoderConfig>,
    /// Checkpoints that encoders of single modalities begin with.
    pub weights: BTreeMap<String, PretrainedConfig>,
    /// The fusion.
    pub fusion: FusionConfig,
}

impl ModelConfig {
    /// The encoder of a modality.
    pub fn encoder(&self, modality: &str) -> &EncoderConfig {
        self.encoders.get(modality).unwrap_or(&self.encoder)
    }
}

/// How the epoch to report is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// By the validation part; the test part is evaluated once, at the end.
    #[default]
    ValidationSelect,
    /// By the *test* part, as the OGM family of papers does. Its numbers are too high by construction, and every
    /// result says so.
    OgmTestSelect,
}

impl Protocol {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidationSelect => "validation-select",
            Self::OgmTestSelect => "ogm-test-select",
        }
    }
}

/// What makes an epoch better than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// Higher accuracy; the earlier one of equals.
    #[default]
    Accuracy,
    /// Lower cross-entropy.
    Loss,
}

/// Element type of parameters and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 64 bits.
    F64,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunConfig {
    /// What it is called.
    pub name: String,
    /// Seed of everything random but the data.
    pub seed: u64,
    /// The data.
    pub data: DataConfig,
    /// The model.
    pub model: ModelConfig,
    /// The balancing methods, applied left to right; at least one.
    pub method: Vec<MethodConfig>,
    /// The optimiser.
    pub optim: OptimConfig,
    /// The learning-rate schedule.
    pub schedule: ScheduleConfig,
    /// The loop.
    pub train: TrainConfig,
}

const KEYS: [&str; 8] = ["name", "seed", "data", "model", "method", "optim", "schedule", "train"];

impl RunConfig {
    /// Reads a file's text with `--set` assignments on top. Unknown keys, wrong types and values out of range are
    /// refused; no data is read.
    pub fn parse(text: &str, sets: &[String]) -> Checked<Self> {
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
            let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = format!("line {}", before.matches('\n').count() + 1);
            ConfigError::new(
                "configuration",
                line,
                format!("is not valid TOML: {}; fix it there", e.message()),
            )
        })?;
        for assignment in sets {
            crate::parse::set(&mut table, assignment)?;
        }
        Self::from_table(table)
    }

    /// Reads a table.
    pub fn from_table(mut table: Table) -> Checked<Self> {
        let name = match table.remove("name") {
            None => "run".to_owned(),
            Some(Value::String(name)) => name,
            Some(other) => return Err(ConfigError::new("name", other, "must be a string")),
        };
        let seed = match table.remove("seed") {
            None => 0,
            Some(Value::Integer(seed)) if seed >= 0 => seed as u64,
            Some(other) => return Err(ConfigError::new("seed", other, "must be an integer of at least 0")),
        };
        let mut data = take_table(&mut table, "data", "data")?;
        data.entry("kind").or_insert_with(|| Value::from("synthetic"));
        let data = section::<DataConfig>(data, "data")?;
        let model = parse_model(take_table(&mut table, "model", "model")?)?;
        let method = parse_methods(take_table(&mut table, "method", "method")?)?;
        let optim = OptimConfig::from_table(take_table(&mut table, "optim", "optim")?)?;
        let mut schedule = take_table(&mut table, "schedule", "schedule")?;
        schedule.entry("kind").or_insert_with(|| Value::from("constant"));
        let schedule = section::<ScheduleConfig>(schedule, "schedule")?;
        let train = section::<TrainConfig>(take_table(&mut table, "train", "train")?, "train")?;
        refuse_rest(&table, "", &KEYS)?;
        let mut config = Self { name, seed, data, model, method, optim, schedule, train };
        if let [MethodConfig::Unimodal(unimodal)] = config.method.as_slice() {
            // What is configured for the other modalities has no meaning here, and need not be taken out by hand.
            config.data.set_modalities(Some(vec![unimodal.modality.clone()]));
            config.model.encoders.retain(|name, _| *name == unimodal.modality);
            config.model.weights.retain(|name, _| *name == unimodal.modality);
            config.model.fusion = FusionConfig::default();
        }
        config.check_values()?;
        Ok(config)
    }

    fn check_values(&self) -> Checked<()> {
        self.data.check().map_err(|e| self.by_method(e))?;
        self.model.encoder.check().map_err(|e| e.within("model.encoder"))?;
        for (name, encoder) in &self.model.encoders {
            encoder.check().map_err(|e| e.within(&format!("model.encoders.{name}")))?;
        }
        for (name, weights) in &self.model.weights {
            weights.check().map_err(|e| e.within(&format!("model.weights.{name}")))?;
        }
        self.optim.check().map_err(|e| e.within("optim"))?;
        self.schedule.check().map_err(|e| e.within("schedule"))?;
        self.train.check().map_err(|e| e.within("train"))?;
        if self.name.is_empty() || self.name.contains(['/', '\\', '\0']) || self.name.starts_with('.') {
            let rule = "becomes a folder's name: not empty, no slash, no leading dot";
            return Err(ConfigError::new("name", format!("{:?}", self.name), rule));
        }
        mm_balance::check_composition(&self.method)
    }

    /// Reads the head of the data: modalities and their widths.
    pub fn peek(&self) -> Result<Summary, DataError> {
        self.data.peek().map_err(|e| match e {
            DataError::Config(e) => DataError::Config(self.by_method(e)),
            other => other,
        })
    }

    /// The modality of unimodal training stands in `[method]`: an error about it must not name `[data]`.
    fn by_method(&self, mut error: ConfigError) -> ConfigError {
        if error.field == "data.modalities" && matches!(self.method[..], [MethodConfig::Unimodal(_)]) {
            "method.modality".clone_into(&mut error.field);
        }
        error
    }

    /// Checks that encoders, fusion and methods fit the modalities of the data; says what the methods need.
    pub fn check_model(&self, modalities: &Modalities) -> Checked<Needs> {
        for name in self.model.encoders.keys() {
            modalities.require(&format!("model.encoders.{name}"), name)?;
        }
        for name in self.model.weights.keys() {
            modalities.require(&format!("model.weights.{name}"), name)?;
        }
        let batch_norm = |m| self.model.encoder(modalities.name(m)).needs_two_rows();
        if self.train.batch_size == 1 && modalities.iter().any(batch_norm) {
            let rule = "batch normalisation needs at least 2 rows; choose norm = \"layer\" or a larger batch";
            return Err(ConfigError::new("train.batch_size", 1, rule));
        }
        self.model.fusion.check(modalities)?;
        let mut needs = Needs::default();
        for method in &self.method {
            let one = method.check(modalities.len()).map_err(|e| match self.method.len() {
                2.. if e.field != "kind" => e.within(&format!("method.{}", method.name())),
                _ => e.within("method"),
            })?;
            needs = needs.join(one);
            if let MethodConfig::Umt(umt) = method {
                let field = if self.method.len() > 1 { "method.umt.teachers" } else { "method.teachers" };
                for name in umt.teachers.keys() {
                    modalities.require(field, name)?;
                }
                if let Some(name) = modalities.names().iter().find(|name| !umt.teachers.contains_key(*name)) {
                    let rule = "needs the folder of a finished run of this modality alone (method.kind = \"unimodal\")";
                    return Err(ConfigError::new(format!("{field}.{name}"), "nothing", rule));
                }
            }
        }
        if needs.gates && !matches!(self.model.fusion, FusionConfig::Mmtm(_)) {
            let rule = "greedy holds gates between modalities, which only one fusion has: set model.fusion.kind = \
                        \"mmtm\"";
            return Err(ConfigError::new(
                "model.fusion.kind",
                format!("\"{}\"", self.model.fusion.name()),
                rule,
            ));
        }
        if needs.equal_widths {
            let width = |m| self.model.encoder(modalities.name(m)).dim();
            let widths: Vec<usize> = modalities.iter().map(width).collect();
            if widths.iter().any(|&w| w != widths[0]) {
                let rule = if self.method.iter().any(|m| matches!(m, MethodConfig::Mla(_))) {
                    "mla has one head for all modalities: give all encoders the same `dim`"
                } else if self.method.iter().any(|m| matches!(m, MethodConfig::Mcr(_))) {
                    "mcr compares features: give all encoders the same `dim`, or set method.contrast = 0"
                } else {
                    "info-nce compares features: give all encoders the same `dim`, or set method.matching = \
                     \"alignment\""
                };
                return Err(ConfigError::new("model.encoders", format!("widths {widths:?}"), rule));
            }
        }
        Ok(needs)
    }

    /// Checks that the encoders take rows of these shapes.
    pub fn check_inputs(&self, modalities: &Modalities, shapes: &Modal<RowShape>) -> Checked<()> {
        for (m, shape) in shapes.iter() {
            let name = modalities.name(m);
            let own = self.model.encoders.contains_key(name);
            let path = if own { format!("model.encoders.{name}") } else { "model.encoder".to_owned() };
            self.model.encoder(name).check_input(name, shape).map_err(|e| e.within(&path))?;
        }
        Ok(())
    }

    /// The method's name; a composition joins its parts with `+`.
    pub fn method_name(&self) -> String {
        self.method.iter().map(MethodConfig::name).collect::<Vec<_>>().join("+")
    }

    /// The complete configuration, defaults included, as TOML that parses back to itself.
    pub fn to_toml(&self) -> Checked<String> {
        fn value(x: &impl Serialize) -> Checked<Value> {
            Value::try_from(x).map_err(|e| ConfigError::new("configuration", e, "cannot be written as TOML"))
        }
        let mut model = Table::new();
        model.insert("encoder".into(), value(&self.model.encoder)?);
        if !self.model.encoders.is_empty() {
            model.insert("encoders".into(), value(&self.model.encoders)?);
        }
        if !self.model.weights.is_empty() {
            model.insert("weights".into(), value(&self.model.weights)?);
        }
        model.insert("fusion".into(), value(&self.model.fusion)?);
        let method = match self.method.as_slice() {
            [one] => value(one)?,
            many => {
                let mut table = Table::new();
                table.insert("kind".into(), self.method_name().into());
                for part in many {
                    let mut settings = value(part)?;
                    if let Some(t) = settings.as_table_mut() {
                        t.remove("kind");
                    }
                    table.insert(part.name().into(), settings);
                }
                Value::Table(table)
            }
        };
        let mut table = Table::new();
        table.insert("name".into(), self.name.clone().into());
        table.insert("seed".into(), Value::Integer(self.seed as i64));
        table.insert("data".into(), value(&self.data)?);
        table.insert("model".into(), Value::Table(model));
        table.insert("method".into(), method);
        table.insert("optim".into(), value(&self.optim)?);
        table.insert("schedule".into(), value(&self.schedule)?);
        table.insert("train".into(), value(&self.train)?);
        toml::to_string(&table).map_err(|e| ConfigError::new("configuration", e, "cannot be written as TOML"))
    }

    /// The first eight hex digits of the SHA-256 of [`RunConfig::to_toml`].
    pub fn hash8(&self) -> Checked<String> {
        let digest = Sha256::digest(self.to_toml()?.as_bytes());
        Ok(format!("{:08x}", u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])))
    }
}

fn parse_model(mut table: Table) -> Checked<ModelConfig> {
    fn with_kind(mut table: Table, kind: &str) -> Table {
        table.entry("kind").or_insert_with(|| Value::from(kind));
        table
    }
    let encoder = with_kind(take_table(&mut table, "encoder", "model.encoder")?, "mlp");
    let fusion = with_kind(take_table(&mut table, "fusion", "model.fusion")?, "late-linear");
    let mut encoders = BTreeMap::new();
    for (name, value) in take_table(&mut table, "encoders", "model.encoders")? {
        let path = format!("model.encoders.{name}");
        let Value::Table(inner) = value else {
            return Err(ConfigError::new(path, value, "must be a table with the encoder's settings"));
        };
        encoders.insert(name, section::<EncoderConfig>(with_kind(inner, "mlp"), &path)?);
    }
    let mut weights = BTreeMap::new();
    for (name, value) in take_table(&mut table, "weights", "model.weights")? {
        let path = format!("model.weights.{name}");
        let Value::Table(inner) = value else {
            return Err(ConfigError::new(path, value, "must be a table with a path or a repo"));
        };
        weights.insert(name, section::<PretrainedConfig>(inner, &path)?);
    }
    refuse_rest(&table, "model", &["encoder", "encoders", "weights", "fusion"])?;
    Ok(ModelConfig {
        encoder: section(encoder, "model.encoder")?,
        encoders,
        weights,
        fusion: section(fusion, "model.fusion")?,
    })
}

fn parse_methods(mut table: Table) -> Checked<Vec<MethodConfig>> {
    let kind = match table.remove("kind") {
        None => "joint".to_owned(),
        Some(Value::String(kind)) => kind,
        Some(other) => return Err(ConfigError::new("method.kind", other, "must be a string")),
    };
    let names: Vec<&str> = kind.split('+').map(str::trim).collect();
    let known: Vec<&str> = catalogue().iter().map(|e| e.name).collect();
    let refuse = |rule: String| Err(ConfigError::new("method.kind", format!("\"{kind}\""), rule));
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return refuse(format!("`{name}` is named twice"));
        }
        if *name == "unimodal" && names.len() > 1 {
            return refuse("`unimodal` stands alone".to_owned());
        }
        if *name == "ensemble" {
            let rule = "an ensemble is made of finished unimodal runs: `mm ensemble RUN RUN --out DIR`";
            return refuse(rule.to_owned());
        }
        if !known.contains(name) {
            return Err(ConfigError::unknown("method.kind", name, &known));
        }
    }
    let with_kind = |mut settings: Table, name: &str| {
        settings.insert("kind".into(), Value::from(name));
        settings
    };
    if let [name] = names.as_slice() {
        return Ok(vec![section(with_kind(table, name), "method")?]);
    }
    let mut parts = Vec::new();
    for name in &names {
        let path = format!("method.{name}");
        parts.push(section(with_kind(take_table(&mut table, name, &path)?, name), &path)?);
    }
    refuse_rest(&table, "method", &names)?;
    Ok(parts)
}
