//! Every method by name, with its settings: what a configuration file's `[method]` table means.

use crate::agm::AgmConfig;
use crate::cggm::CggmConfig;
use crate::g_blend::GBlendConfig;
use crate::info_reg::InfoRegConfig;
use crate::lfm::{LfmHeuristicConfig, LfmLearnedConfig};
use crate::mlb::MlbConfig;
use crate::mmpareto::MmParetoConfig;
use crate::mslr::MslrConfig;
use crate::multi_loss::MultiLossConfig;
use crate::multimodal_loss::MultiModalLossConfig;
use crate::ogm::OgmConfig;
use crate::opm::OpmConfig;
use crate::relearning::RelearningConfig;
use crate::sum_ce::SumCe;
use crate::{Balancer, Needs, copies, info_reg, relearning};
use mm_core::{ConfigError, ParamStore, Scope};
use serde::{Deserialize, Serialize};

/// A method without settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Training one modality alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnimodalConfig {
    /// Which one.
    pub modality: String,
}

/// A balancing method with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum MethodConfig {
    /// No balancing.
    Joint(NoSettings),
    /// One modality alone.
    Unimodal(UnimodalConfig),
    /// Unimodal losses beside the fused one.
    MultiLoss(MultiLossConfig),
    /// Multi-loss with gradient coefficients.
    Mlb(MlbConfig),
    /// Gradient damping.
    Ogm(OgmConfig),
    /// Gradient damping with noise.
    OgmGe(OgmConfig),
    /// Gradients scaled at each modality's contribution to the logits.
    Agm(AgmConfig),
    /// Gradients modulated in size and direction by classifiers on the side.
    Cggm(CggmConfig),
    /// Learning rates that follow validation accuracies.
    Mslr(MslrConfig),
    /// Gradients of two losses combined without conflict.
    Mmpareto(MmParetoConfig),
    /// Losses blended by how well each generalises.
    GBlend(GBlendConfig),
    /// A leader's encoder held back early in training.
    InfoReg(InfoRegConfig),
    /// Encoders drawn back to where they started.
    Relearning(RelearningConfig),
    /// Feature dropping.
    Opm(OpmConfig),
    /// Contrastive matching with a scheduled weight.
    LfmHeuristic(LfmHeuristicConfig),
    /// Contrastive matching with a learned weight.
    LfmLearned(LfmLearnedConfig),
    /// Proxy loss over unimodal predictions.
    MultimodalLoss(MultiModalLossConfig),
    /// Cross-entropy of summed unimodal probabilities.
    SumCe(NoSettings),
}

impl MethodConfig {
    /// The method's name, as in `kind`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Joint(_) => "joint",
            Self::Unimodal(_) => "unimodal",
            Self::MultiLoss(_) => "multi-loss",
            Self::Mlb(_) => "mlb",
            Self::Ogm(_) => "ogm",
            Self::OgmGe(_) => "ogm-ge",
            Self::Agm(_) => "agm",
            Self::Cggm(_) => "cggm",
            Self::Mslr(_) => "mslr",
            Self::Mmpareto(_) => "mmpareto",
            Self::GBlend(_) => "g-blend",
            Self::InfoReg(_) => "info-reg",
            Self::Relearning(_) => "relearning",
            Self::Opm(_) => "opm",
            Self::LfmHeuristic(_) => "lfm-heuristic",
            Self::LfmLearned(_) => "lfm-learned",
            Self::MultimodalLoss(_) => "multimodal-loss",
            Self::SumCe(_) => "sum-ce",
        }
    }

    /// Whether the method brings its own decision rule; two of those cannot be composed.
    pub fn decides(&self) -> bool {
        matches!(self, Self::MultimodalLoss(_) | Self::SumCe(_))
    }

    /// Checks the settings for a model with `modalities` modalities; says what the method needs of it.
    pub fn check(&self, modalities: usize) -> Result<Needs, ConfigError> {
        let needs = match self {
            Self::Joint(_) | Self::Unimodal(_) => Needs::default(),
            Self::MultiLoss(c) => c.build()?.needs(),
            Self::Mlb(c) => c.build()?.needs(),
            Self::Ogm(c) => c.build(modalities, false)?.needs(),
            Self::OgmGe(c) => c.build(modalities, true)?.needs(),
            Self::Agm(c) => c.build(modalities)?.needs(),
            Self::Cggm(c) => c.build(modalities)?.needs(),
            Self::Mslr(c) => c.build(modalities)?.needs(),
            Self::Mmpareto(c) => c.build()?.needs(),
            Self::GBlend(c) => c.build(modalities)?.needs(),
            Self::InfoReg(c) => c.build(modalities)?.needs(),
            Self::Relearning(c) => c.build()?.needs(),
            Self::Opm(c) => c.build()?.needs(),
            Self::LfmHeuristic(c) => c.build()?.needs(),
            Self::LfmLearned(c) => c.build()?.needs(),
            Self::MultimodalLoss(c) => {
                c.check()?;
                Needs { heads: true, fusion: false, ..Needs::default() }
            }
            Self::SumCe(_) => SumCe.needs(),
        };
        if modalities < needs.modalities {
            let rule = format!("needs at least {} modalities, the model has {modalities}", needs.modalities);
            return Err(ConfigError::new("kind", format!("\"{}\"", self.name()), rule));
        }
        Ok(needs)
    }

    /// Makes the balancer; its own parameters go to `scope`.
    pub fn build(
        &self,
        scope: Scope<'_>,
        modalities: usize,
        classes: usize,
    ) -> candle_core::Result<Box<dyn Balancer>> {
        fn boxed<B: Balancer + 'static>(
            built: Result<B, ConfigError>,
        ) -> candle_core::Result<Box<dyn Balancer>> {
            built.map(|b| Box::new(b) as Box<dyn Balancer>).map_err(candle_core::Error::wrap)
        }
        match self {
            Self::Joint(_) | Self::Unimodal(_) => Ok(Box::new(())),
            Self::MultiLoss(c) => boxed(c.build()),
            Self::Mlb(c) => boxed(c.build()),
            Self::Ogm(c) => boxed(c.build(modalities, false)),
            Self::OgmGe(c) => boxed(c.build(modalities, true)),
            Self::Agm(c) => boxed(c.build(modalities)),
            Self::Cggm(c) => boxed(c.build(modalities)),
            Self::Mslr(c) => boxed(c.build(modalities)),
            Self::Mmpareto(c) => boxed(c.build()),
            Self::GBlend(c) => boxed(c.build(modalities)),
            Self::InfoReg(c) => boxed(c.build(modalities)),
            Self::Relearning(c) => boxed(c.build()),
            Self::Opm(c) => boxed(c.build()),
            Self::LfmHeuristic(c) => boxed(c.build()),
            Self::LfmLearned(c) => boxed(c.build()),
            Self::MultimodalLoss(c) => {
                c.check().map_err(candle_core::Error::wrap)?;
                Ok(Box::new(c.build(scope.at("multimodal-loss"), modalities, classes)?))
            }
            Self::SumCe(_) => Ok(Box::new(SumCe)),
        }
    }

    /// Makes the buffers that the method keeps beside the model; to be called once, after model and methods are built.
    pub fn prepare(&self, store: &mut ParamStore) -> candle_core::Result<()> {
        match self {
            Self::InfoReg(_) => copies::make(store, info_reg::NAME),
            Self::Relearning(_) => copies::make(store, relearning::NAME),
            _ => Ok(()),
        }
    }
}

/// What `mm methods` prints of a method.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Name, as in `method.kind`.
    pub name: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Settings with defaults.
    pub settings: &'static str,
    /// Where it acts.
    pub acts_on: &'static str,
    /// Paper.
    pub paper: &'static str,
    /// What its numbers are pinned to.
    pub pinned_to: &'static str,
}

/// All methods, baselines first.
pub fn catalogue() -> &'static [Entry] {
    const MLB: &str = "Kontras et al. 2024, arXiv 2405.07930";
    const BML: &str = "Wei et al. 2024, arXiv 2410.11582";
    const LFM: &str = "Dynamically Learning Modality Gap, NeurIPS 2024";
    const MML: &str = "Deep Metric Loss for Multimodal Learning, arXiv 2308.10486";
    &[
        Entry {
            name: "joint",
            summary: "cross-entropy of the fused logits, nothing else",
            settings: "",
            acts_on: "nothing",
            paper: "",
            pinned_to: "own derivation",
        },
        Entry {
            name: "unimodal",
            summary: "one modality trained alone",
            settings: "modality (required)",
            acts_on: "the model",
            paper: "",
            pinned_to: "own derivation",
        },
        Entry {
            name: "ensemble",
            summary: "average of unimodal models trained apart (`mm ensemble`)",
            settings: "",
            acts_on: "predictions",
            paper: MLB,
            pinned_to: "own derivation",
        },
        Entry {
            name: "multi-loss",
            summary: "adds the cross-entropy of every modality's own head",
            settings: "weight = 1",
            acts_on: "loss",
            paper: MLB,
            pinned_to: "released code, paper",
        },
        Entry {
            name: "mlb",
            summary: "multi-loss, with a gradient coefficient per encoder that speeds up laggards and slows leaders",
            settings: "alpha = 0.8, beta_max = 5, weight = 1, variant = paper|released, \
                       apply = gradient|learning-rate, start_epoch = 0, end_epoch",
            acts_on: "loss, gradients of encoders, heads and linear fusion blocks",
            paper: MLB,
            pinned_to: "released code, paper eq. 2-7",
        },
        Entry {
            name: "ogm",
            summary: "damps the gradient of the leading modality's encoder",
            settings: "alpha = 0.8, variant = paper|released|released-m3, parameters = all|conv|weights, \
                       start_epoch = 0, end_epoch",
            acts_on: "gradients of encoders",
            paper: "Peng et al. CVPR 2022; Wei et al. 2024, arXiv 2410.11582",
            pinned_to: "released code",
        },
        Entry {
            name: "ogm-ge",
            summary: "ogm plus noise of the gradient's own deviation",
            settings: "as ogm",
            acts_on: "gradients of encoders",
            paper: "Peng et al. CVPR 2022",
            pinned_to: "released code",
        },
        Entry {
            name: "agm",
            summary: "splits the logits into contributions of the modalities and scales the gradient through each",
            settings: "alpha = 1, cap = 10 (M = 2) or 7, mask = inputs|features, start_epoch = 0, end_epoch",
            acts_on: "gradients at the logits",
            paper: "Li et al. ICCV 2023, arXiv 2308.07686",
            pinned_to: "released code",
        },
        Entry {
            name: "cggm",
            summary: "classifiers on the side modulate the gradients of encoders in size and direction",
            settings: "rho = 1.3, lambda = 0.2, bound = 5, start_epoch = 0, end_epoch",
            acts_on: "loss, gradients of encoders",
            paper: "Guo et al. NeurIPS 2024, arXiv 2411.01409",
            pinned_to: "own derivation",
        },
        Entry {
            name: "mslr",
            summary: "a learning rate for each modality, which follows its validation accuracy",
            settings: "factors = 1 each, keep = 5, strategy = dynamic|fixed, parameters = branch|encoder, \
                       apply = learning-rate|gradient",
            acts_on: "learning rates of encoders, heads and linear fusion blocks",
            paper: "Yao and Mihalcea, Findings of ACL 2022",
            pinned_to: "two published ports",
        },
        Entry {
            name: "mmpareto",
            summary: "combines the multimodal and the unimodal gradient of each encoder without conflict",
            settings: "boost = 1.5",
            acts_on: "loss, gradients of encoders",
            paper: "Wei and Hu, ICML 2024, arXiv 2405.17730",
            pinned_to: "released code",
        },
        Entry {
            name: "g-blend",
            summary: "weighs the unimodal losses and the fused one by how well each generalises to held-out rows",
            settings: "super_epoch = 10, estimate_epochs = super_epoch, held_out = 50, schedule = online|offline, \
                       estimator = paper|multi-bench, floor = 0.1, least = 0.05, rate",
            acts_on: "loss; the weights once per super-epoch",
            paper: "Wang et al. CVPR 2020, arXiv 1905.12681",
            pinned_to: "paper's formula; own derivation",
        },
        Entry {
            name: "info-reg",
            summary: "holds the encoder of a leading modality back while its information still grows",
            settings: "strength = 0.95, threshold = 0.04, window = 10, variant = paper|released",
            acts_on: "loss, gradients of encoders",
            paper: "Huang et al. CVPR 2025, arXiv 2503.18595",
            pinned_to: "own derivation (formulas of the released code)",
        },
        Entry {
            name: "relearning",
            summary: "draws every encoder back to its start by the gap of its purity on seen and unseen rows",
            settings: "strength = 3, every = 20, times = 3, held_out = 50",
            acts_on: "parameters of encoders, between epochs",
            paper: "Wei et al. ECCV 2024, arXiv 2407.09705",
            pinned_to: "released code's formula; own clustering",
        },
        Entry {
            name: "opm",
            summary: "drops features of the leading modality",
            settings: "q_base = 0.5, lambda = 0.5, p_exe = 0.7, start_epoch = 0, end_epoch",
            acts_on: "features",
            paper: BML,
            pinned_to: "released code",
        },
        Entry {
            name: "lfm-heuristic",
            summary: "contrastive matching that hands over to supervision on a schedule",
            settings: "matching = info-nce|alignment|js, temperature = 0.07, loss_scale = 1, \
                       schedule.kind = paper|exponential|polynomial|fixed",
            acts_on: "loss",
            paper: LFM,
            pinned_to: "released code; paper's schedule by a public summary",
        },
        Entry {
            name: "lfm-learned",
            summary: "the same with a weight learned by one-step bi-level optimisation on held-out training rows",
            settings: "matching, temperature, loss_scale, bilevel.{variant = unrolled|released-hvp, initial = 0.5|0.05, \
                       rate = 1|1e-4, inner_rate, held_out = 16}",
            acts_on: "loss",
            paper: LFM,
            pinned_to: "own derivation (exact gradient); released code (released-hvp)",
        },
        Entry {
            name: "multimodal-loss",
            summary: "proxies subgroup the instances by what each modality contributes; replaces the fusion",
            settings: "proxies = 20, temperature = 0.1",
            acts_on: "loss, decision rule",
            paper: MML,
            pinned_to: "released code",
        },
        Entry {
            name: "sum-ce",
            summary: "cross-entropy of the sum of unimodal probabilities; replaces the fusion",
            settings: "",
            acts_on: "loss, decision rule",
            paper: MML,
            pinned_to: "released notebooks",
        },
    ]
}
