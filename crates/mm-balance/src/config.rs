//! Every method by name, with its settings: what a configuration file's `[method]` table means.

use crate::agm::AgmConfig;
use crate::amco::AmcoConfig;
use crate::arl::ArlConfig;
use crate::cggm::CggmConfig;
use crate::cml::CmlConfig;
use crate::functional_entropy::FunctionalEntropyConfig;
use crate::g_blend::GBlendConfig;
use crate::greedy::GreedyConfig;
use crate::info_reg::InfoRegConfig;
use crate::lfm::{LfmHeuristicConfig, LfmLearnedConfig};
use crate::mbsd::MbsdConfig;
use crate::mcr::McrConfig;
use crate::mla::MlaConfig;
use crate::mlb::MlbConfig;
use crate::mmcosine::MmCosineConfig;
use crate::mmpareto::MmParetoConfig;
use crate::modality_dropout::ModalityDropoutConfig;
use crate::mslr::MslrConfig;
use crate::multi_loss::MultiLossConfig;
use crate::multimodal_loss::MultiModalLossConfig;
use crate::ogm::OgmConfig;
use crate::opm::OpmConfig;
use crate::pmr::PmrConfig;
use crate::proxyanchor::ProxyAnchorConfig;
use crate::proxynca::ProxyNcaConfig;
use crate::reconboost::ReconBoostConfig;
use crate::relearning::RelearningConfig;
use crate::softtriple::SoftTripleConfig;
use crate::sum_ce::SumCe;
use crate::umt::UmtConfig;
use crate::valuation::ValuationConfig;
use crate::{Balancer, Joint, Needs, TrainStep, copies, info_reg, relearning};
use mm_core::{ConfigError, Fusion, Modal, Modalities, ParamStore, Scope};
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
    /// Masks for channels of the modality that the prediction depends on.
    Amco(AmcoConfig),
    /// Gradient factors that let the certain modality lead.
    Arl(ArlConfig),
    /// A ranking loss over confidences.
    Cml(CmlConfig),
    /// A regulariser over input gradients.
    FunctionalEntropy(FunctionalEntropyConfig),
    /// Gates held while a branch learns mostly from the others.
    Greedy(GreedyConfig),
    /// Self-distillation between modalities.
    Mbsd(MbsdConfig),
    /// A game over what the prediction loses without each modality.
    Mcr(McrConfig),
    /// Turns on one shared head.
    Mla(MlaConfig),
    /// A sum of cosines in the place of the fusion.
    Mmcosine(MmCosineConfig),
    /// Dropping modalities at one constant rate.
    ModalityDropout(ModalityDropoutConfig),
    /// A loss over prototypes for the modality that lags.
    Pmr(PmrConfig),
    /// A loss over proxies as anchors.
    Proxyanchor(ProxyAnchorConfig),
    /// A loss over one proxy per class.
    Proxynca(ProxyNcaConfig),
    /// Turns against what the others cannot explain.
    Reconboost(ReconBoostConfig),
    /// A loss over several centres per class.
    Softtriple(SoftTripleConfig),
    /// Distillation from encoders trained alone.
    Umt(UmtConfig),
    /// Copies of rows with the modality alone that contributes little.
    Valuation(ValuationConfig),
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
            Self::Amco(_) => "amco",
            Self::Arl(_) => "arl",
            Self::Cml(_) => "cml",
            Self::FunctionalEntropy(_) => "functional-entropy",
            Self::Greedy(_) => "greedy",
            Self::Mbsd(_) => "mbsd",
            Self::Mcr(_) => "mcr",
            Self::Mla(_) => "mla",
            Self::Mmcosine(_) => "mmcosine",
            Self::ModalityDropout(_) => "modality-dropout",
            Self::Pmr(_) => "pmr",
            Self::Proxyanchor(_) => "proxyanchor",
            Self::Proxynca(_) => "proxynca",
            Self::Reconboost(_) => "reconboost",
            Self::Softtriple(_) => "softtriple",
            Self::Umt(_) => "umt",
            Self::Valuation(_) => "valuation",
        }
    }

    /// Whether the method brings its own decision rule or its own fusion; two of those cannot be composed.
    pub fn decides(&self) -> bool {
        matches!(
            self,
            Self::MultimodalLoss(_) | Self::SumCe(_) | Self::Mla(_) | Self::Mmcosine(_) | Self::Reconboost(_)
        )
    }

    /// Whether the method does the whole step by itself: such a method cannot be composed.
    pub fn steps(&self) -> bool {
        matches!(self, Self::Mla(_) | Self::Reconboost(_))
    }

    /// Whether the method takes the fused logits themselves, so that none that decides otherwise can stand beside it.
    pub fn needs_fused_logits(&self) -> bool {
        matches!(
            self,
            Self::LfmLearned(_)
                | Self::Arl(_)
                | Self::Cml(_)
                | Self::FunctionalEntropy(_)
                | Self::Greedy(_)
                | Self::Mcr(_)
                | Self::Valuation(_)
        )
    }

    /// Whether the model's logits are a fusion's, be it the configured one or one that the method brings.
    pub fn has_fused_logits(&self) -> bool {
        !matches!(self, Self::MultimodalLoss(_) | Self::SumCe(_) | Self::Reconboost(_) | Self::Mla(_))
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
            Self::Amco(c) => c.build(modalities)?.needs(),
            Self::Arl(c) => c.build()?.needs(),
            Self::Cml(c) => c.build()?.needs(),
            Self::FunctionalEntropy(c) => c.build()?.needs(),
            Self::Greedy(c) => c.build(modalities)?.needs(),
            Self::Mbsd(c) => c.build()?.needs(),
            Self::Mcr(c) => c.check()?,
            Self::Mla(c) => c.build()?.needs(),
            Self::Mmcosine(c) => {
                c.check()?;
                Needs { fusion: false, ..Needs::default() }
            }
            Self::ModalityDropout(c) => c.build()?.needs(),
            Self::Pmr(c) => c.build()?.needs(),
            Self::Proxyanchor(c) => c.check().map(|()| Needs::default())?,
            Self::Proxynca(c) => c.check().map(|()| Needs::default())?,
            Self::Reconboost(c) => c.build()?.needs(),
            Self::Softtriple(c) => c.check().map(|()| Needs::default())?,
            Self::Umt(c) => c.check()?,
            Self::Valuation(c) => c.build(modalities)?.needs(),
        };
        if modalities < needs.modalities {
            let rule = format!("needs at least {} modalities, the model has {modalities}", needs.modalities);
            return Err(ConfigError::new("kind", format!("\"{}\"", self.name()), rule));
        }
        Ok(needs)
    }

    /// Makes the fusion that the method brings in the place of the configured one, if it does; its parameters go to
    /// `scope`.
    pub fn fusion(
        &self,
        scope: Scope<'_>,
        modalities: &Modalities,
        widths: &Modal<usize>,
        classes: usize,
    ) -> candle_core::Result<Option<Box<dyn Fusion>>> {
        Ok(match self {
            Self::Mla(c) => Some(Box::new(c.fusion(scope, widths, classes)?)),
            Self::Mmcosine(c) => Some(Box::new(c.fusion(scope, modalities, widths, classes)?)),
            _ => None,
        })
    }

    /// Makes the training step of the method alone; its own parameters go to `scope`, and `widths` are those of the
    /// features.
    pub fn step(
        &self,
        scope: Scope<'_>,
        widths: &Modal<usize>,
        classes: usize,
    ) -> candle_core::Result<Box<dyn TrainStep>> {
        Ok(match self {
            Self::Mla(c) => Box::new(c.build().map_err(candle_core::Error::wrap)?),
            Self::Reconboost(c) => Box::new(c.build().map_err(candle_core::Error::wrap)?),
            _ => Box::new(Joint::new(self.build(scope, widths, classes)?)),
        })
    }

    /// Makes the balancer; its own parameters go to `scope`, and `widths` are those of the features.
    pub fn build(
        &self,
        scope: Scope<'_>,
        widths: &Modal<usize>,
        classes: usize,
    ) -> candle_core::Result<Box<dyn Balancer>> {
        fn boxed<B: Balancer + 'static>(
            built: Result<B, ConfigError>,
        ) -> candle_core::Result<Box<dyn Balancer>> {
            built.map(|b| Box::new(b) as Box<dyn Balancer>).map_err(candle_core::Error::wrap)
        }
        let modalities = widths.len();
        match self {
            // A fusion is all that MMCosine brings.
            Self::Joint(_) | Self::Unimodal(_) | Self::Mmcosine(_) => Ok(Box::new(())),
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
            Self::Amco(c) => boxed(c.build(modalities)),
            Self::Arl(c) => boxed(c.build()),
            Self::Cml(c) => boxed(c.build()),
            Self::FunctionalEntropy(c) => boxed(c.build()),
            Self::Greedy(c) => boxed(c.build(modalities)),
            Self::Mbsd(c) => boxed(c.build()),
            Self::Mcr(c) => Ok(Box::new(c.build(scope.at("mcr"), widths, classes)?)),
            Self::ModalityDropout(c) => boxed(c.build()),
            Self::Pmr(c) => boxed(c.build()),
            // Who can open the teachers' runs calls `UmtConfig::build` with them.
            Self::Umt(c) => boxed(c.build(None)),
            Self::Valuation(c) => boxed(c.build(modalities)),
            Self::Proxyanchor(c) => {
                c.check().map_err(candle_core::Error::wrap)?;
                Ok(Box::new(c.build(scope.at("proxyanchor"), widths, classes)?))
            }
            Self::Proxynca(c) => {
                c.check().map_err(candle_core::Error::wrap)?;
                Ok(Box::new(c.build(scope.at("proxynca"), widths, classes)?))
            }
            Self::Softtriple(c) => {
                c.check().map_err(candle_core::Error::wrap)?;
                Ok(Box::new(c.build(scope.at("softtriple"), widths, classes)?))
            }
            Self::Mla(_) | Self::Reconboost(_) => candle_core::bail!(
                "`{}` does the whole step by itself: use `MethodConfig::step`, and compose it with nothing",
                self.name()
            ),
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
