//! Where an encoder's first values come from, as a configuration file says it.
//!
//! | setting | default | meaning |
//! |---|---|---|
//! | `path` | | a safetensors file, or a folder in the Hugging Face layout |
//! | `repo` | | a repository of the hub, `owner/name` (feature `hub`); either this or `path` |
//! | `revision` | "main" | branch, tag or, so that a run can be repeated, commit; of `repo` alone |
//! | `prefix` | none | only tensors under this dotted prefix, under the names of this workspace: `encoder.audio` of the model of another run |
//! | `matching` | "strict" | "strict": every parameter and every tensor has its counterpart; "partial": what has none stays fresh |
//!
//! Without `prefix` the names are those of the published checkpoints: torchvision's or `microsoft/resnet-*`'s for
//! `resnet`, timm's or torchvision's (by `variant`) for `efficientnet`, transformers' for `wav2vec2`, `bert` and
//! `conformer` (Wav2Vec2-Conformer); what those have beyond the encoder (classifier heads) is left out. `mlp` and `sequence` have no
//! published family, and take tensors of their own names.

use crate::weights::{Matching, Report, Source, Weights, WeightsError};
use crate::{
    BertConfig, EfficientNetVariant, EncoderConfig, ResNetConfig, Wav2Vec2Config, bert, conformer,
    efficientnet, resnet,
};
use mm_core::{Checked, ConfigError, ParamStore};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A checkpoint to begin with; the table is in [the module](self).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainedConfig {
    /// A file or a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A repository of the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    /// Its revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Only tensors under this prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Whether everything must fit.
    pub matching: Matching,
}

impl PretrainedConfig {
    /// Checks the settings, not the files.
    pub fn check(&self) -> Checked<()> {
        match (&self.path, &self.repo) {
            (Some(path), Some(_)) => {
                let rule = "give either a path or a repo, not both";
                return Err(ConfigError::new("path", path.display(), rule));
            }
            (None, None) => {
                let rule = "give the path of a checkpoint, or the repo of the hub that has it";
                return Err(ConfigError::new("path", "nothing", rule));
            }
            (Some(_), None) => {
                if let Some(revision) = &self.revision {
                    let rule = "belongs to a repo of the hub; a path has no revisions";
                    return Err(ConfigError::new("revision", format!("\"{revision}\""), rule));
                }
            }
            (None, Some(repo)) => {
                if cfg!(not(feature = "hub")) {
                    let rule = "this build cannot reach a hub: build with the feature `hub`, or give the path of a \
                                downloaded folder";
                    return Err(ConfigError::new("repo", format!("\"{repo}\""), rule));
                }
            }
        }
        if self.prefix.as_deref() == Some("") {
            return Err(ConfigError::new("prefix", "\"\"", "leave it out to take all tensors"));
        }
        Ok(())
    }

    /// Opens the checkpoint.
    pub fn open(&self) -> Result<Weights, WeightsError> {
        match (&self.path, &self.repo) {
            (Some(path), _) if path.is_dir() => Weights::from_dir(path),
            (Some(path), _) => Weights::from_file(path),
            #[cfg(feature = "hub")]
            (None, Some(repo)) => Weights::from_hub(repo, self.revision.as_deref().unwrap_or("main")),
            _ => {
                let what = self.repo.as_deref().unwrap_or("pretrained");
                Err(WeightsError::invalid(
                    what,
                    "there is no path to a checkpoint",
                    "see PretrainedConfig::check",
                ))
            }
        }
    }

    /// Puts the checkpoint's values into the parameters of `encoder` under `scope`, such as `encoder.audio`, and says
    /// what was loaded and from where.
    pub fn load(
        &self,
        encoder: &EncoderConfig,
        store: &ParamStore,
        scope: &str,
    ) -> Result<(Report, Source), WeightsError> {
        let weights = self.open()?;
        let rename: Rename<'_> = match &self.prefix {
            Some(prefix) => Box::new(move |name: &str| {
                Some(name.strip_prefix(prefix.as_str())?.strip_prefix('.')?.to_owned())
            }),
            None => names(encoder, &weights),
        };
        let report = weights.load_into(store, scope, rename, self.matching)?;
        Ok((report, weights.source().clone()))
    }
}

/// From the names of a checkpoint to ours; `None` for what is no part of the encoder.
pub type Rename<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// From the names of the encoder's published checkpoints to ours.
pub fn names<'a>(encoder: &'a EncoderConfig, weights: &Weights) -> Rename<'a> {
    let any = |part: &str| weights.names().any(|name| name.contains(part));
    match encoder {
        EncoderConfig::ResNet(_) if any("embedder.embedder.") => Box::new(resnet::from_microsoft),
        EncoderConfig::ResNet(_) => Box::new(resnet::from_torchvision),
        EncoderConfig::EfficientNet(config) => match config.variant {
            EfficientNetVariant::Tf => Box::new(efficientnet::from_timm),
            EfficientNetVariant::Torchvision => Box::new(efficientnet::from_torchvision),
        },
        EncoderConfig::Wav2Vec2(config) => Box::new(|name: &str| config.tensor_name(name)),
        EncoderConfig::Bert(config) => match config.family {
            bert::Family::Bert => Box::new(bert::from_bert),
            bert::Family::DistilBert => Box::new(bert::from_distilbert),
        },
        EncoderConfig::Conformer(_) if any("conv_module.") => Box::new(conformer::from_wav2vec2_conformer),
        EncoderConfig::Conformer(_) | EncoderConfig::Mlp(_) | EncoderConfig::Sequence(_) => {
            Box::new(|name: &str| Some(name.to_owned()))
        }
    }
}

/// The encoder that a checkpoint's `config.json` describes, by its `model_type`: `wav2vec2`, `bert`, `distilbert`,
/// `resnet` (`microsoft/resnet-18`, -34 and -50). Others are an error that says to name the encoder.
pub fn describe(weights: &Weights) -> Result<EncoderConfig, DescribeError> {
    let config = weights.config()?;
    let kind = config.get("model_type").and_then(|kind| kind.as_str()).unwrap_or("(none)");
    Ok(match kind {
        "wav2vec2" => EncoderConfig::Wav2Vec2(Wav2Vec2Config::from_hugging_face(&config)?),
        "bert" | "distilbert" => EncoderConfig::Bert(BertConfig::from_hugging_face(&config)?),
        "resnet" => EncoderConfig::ResNet(resnet_config(&config)?),
        _ => {
            let rule = "config.json describes no encoder that is known: allowed are wav2vec2, bert, distilbert and \
                        resnet; name the encoder and its settings yourself";
            return Err(ConfigError::new("model_type", format!("\"{kind}\""), rule).into());
        }
    })
}

/// Why [`describe`] failed.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    /// There is no readable `config.json`.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It says something that no encoder here can do.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

fn resnet_config(config: &serde_json::Value) -> Checked<ResNetConfig> {
    let depths: Vec<u64> = config
        .get("depths")
        .and_then(|d| d.as_array())
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_u64)
        .collect();
    let basic = config.get("layer_type").and_then(|l| l.as_str()) == Some("basic");
    let depth = match (depths.as_slice(), basic) {
        ([2, 2, 2, 2], true) => 18,
        ([3, 4, 6, 3], true) => 34,
        ([3, 4, 6, 3], false) => 50,
        _ => {
            let rule = "are none of ResNet-18, 34 and 50";
            return Err(ConfigError::new("depths", format!("{depths:?}"), rule));
        }
    };
    let flag = |name: &str| config.get(name).and_then(serde_json::Value::as_bool).unwrap_or(false);
    if flag("downsample_in_first_stage") {
        let rule = "has no counterpart here";
        return Err(ConfigError::new("downsample_in_first_stage", true, rule));
    }
    let channels = config.get("num_channels").and_then(serde_json::Value::as_u64).unwrap_or(3) as usize;
    let made = ResNetConfig {
        depth,
        channels,
        downsample_in_bottleneck: depth == 50 && flag("downsample_in_bottleneck"),
        ..ResNetConfig::default()
    };
    made.check()?;
    Ok(made)
}
