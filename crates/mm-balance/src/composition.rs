//! Which methods can be composed with which: what makes no sense is refused before anything runs.
//!
//! The rules, in the order in which they are looked at; `docs/composition.md` says what they come to for every pair.

use crate::MethodConfig;
use crate::agm::Mask;
use mm_core::{Checked, ConfigError};

/// Refuses methods that cannot act together, from left to right as they are applied.
pub fn check_composition(methods: &[MethodConfig]) -> Checked<()> {
    let names: Vec<&str> = methods.iter().map(MethodConfig::name).collect();
    match objection(methods) {
        None => Ok(()),
        Some((_, rule)) => Err(ConfigError::new("method.kind", format!("\"{}\"", names.join("+")), rule)),
    }
}

/// Why methods are refused, in a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// Unimodal training has one modality.
    OneModality,
    /// Two methods bring a decision rule or a fusion.
    TwoDecisions,
    /// A method does the whole step.
    WholeStep,
    /// Two methods add unimodal losses, which have a meaning of their own in one of them.
    UnimodalLosses,
    /// A method works on a fusion that another one does without.
    NoFusion,
    /// Two methods weigh the fused loss.
    TwoWeights,
    /// A method encodes anew and would not see changed features.
    UnseenFeatures,
    /// A method that sets gradients has to stand first.
    NotFirst,
}

/// The first rule that methods break, and what to say about it.
pub fn objection(methods: &[MethodConfig]) -> Option<(Refusal, String)> {
    if methods.len() < 2 {
        return None;
    }
    let find = |is: fn(&MethodConfig) -> bool| methods.iter().find(|m| is(m));
    let all = |is: fn(&MethodConfig) -> bool| -> Vec<&str> {
        methods.iter().filter(|m| is(m)).map(MethodConfig::name).collect()
    };
    if find(|m| matches!(m, MethodConfig::Unimodal(_))).is_some() {
        return Some((Refusal::OneModality, "`unimodal` stands alone".to_owned()));
    }
    if all(MethodConfig::decides).len() > 1 {
        let rule = "two methods that bring their own decision rule cannot be composed";
        return Some((Refusal::TwoDecisions, rule.to_owned()));
    }
    if let [first, .., last] = all(adds_unimodal_losses).as_slice()
        && find(weighs_unimodal_losses).is_some()
    {
        let rule = format!("`{first}` and `{last}` both add unimodal losses; keep one of them");
        return Some((Refusal::UnimodalLosses, rule));
    }
    if let Some(decider) = find(MethodConfig::decides) {
        if let Some(needy) = find(reads_fused_logits) {
            let rule = format!(
                "`{}` takes gradients of the fused logits, and `{}` decides without a fusion",
                needy.name(),
                decider.name()
            );
            return Some((Refusal::NoFusion, rule));
        }
        if let Some(holder) = find(|m| matches!(m, MethodConfig::Greedy(_))) {
            let rule = format!(
                "`{}` holds gates of the fusion `mmtm`, and `{}` decides without it",
                holder.name(),
                decider.name()
            );
            return Some((Refusal::NoFusion, rule));
        }
    }
    if let [first, second, ..] = all(weighs_fused_loss).as_slice() {
        let rule =
            format!("`{first}` and `{second}` both weigh the fused loss against others; keep one of them");
        return Some((Refusal::TwoWeights, rule));
    }
    if find(encodes_anew).is_some()
        && let Some(editor) = find(changes_features)
    {
        let rule = format!(
            "`agm` encodes anew and would not see what `{}` does to the features; set mask = \"features\" for it",
            editor.name()
        );
        return Some((Refusal::UnseenFeatures, rule));
    }
    if methods.iter().skip(1).any(|m| matches!(m, MethodConfig::Mmpareto(_))) {
        let rule = "`mmpareto` sets the gradients of the encoders, so it must stand first";
        return Some((Refusal::NotFirst, rule.to_owned()));
    }
    if let Some(alone) = find(MethodConfig::steps) {
        let rule = format!("`{}` does the whole training step by itself; it stands alone", alone.name());
        return Some((Refusal::WholeStep, rule));
    }
    if let Some(fused) = find(MethodConfig::needs_fused_logits)
        && methods.iter().any(|m| !m.has_fused_logits())
    {
        let rule = format!(
            "{} takes its gradient through the fused logits; it cannot be composed with a method that decides \
             otherwise",
            fused.name()
        );
        return Some((Refusal::NoFusion, rule));
    }
    None
}

/// The method adds a loss per modality.
fn adds_unimodal_losses(method: &MethodConfig) -> bool {
    match method {
        MethodConfig::Mcr(config) => config.unimodal > 0.0,
        _ => matches!(
            method,
            MethodConfig::MultiLoss(_)
                | MethodConfig::Mlb(_)
                | MethodConfig::Cggm(_)
                | MethodConfig::Mmpareto(_)
                | MethodConfig::GBlend(_)
                | MethodConfig::InfoReg(_)
                | MethodConfig::Amco(_)
        ),
    }
}

/// The unimodal losses have a meaning of their own in the method, which another one's would change.
fn weighs_unimodal_losses(method: &MethodConfig) -> bool {
    matches!(
        method,
        MethodConfig::Cggm(_)
            | MethodConfig::Mmpareto(_)
            | MethodConfig::GBlend(_)
            | MethodConfig::InfoReg(_)
    )
}

/// The method means the cross-entropy of the fused logits, not another decision's.
fn reads_fused_logits(method: &MethodConfig) -> bool {
    matches!(
        method,
        MethodConfig::Agm(_)
            | MethodConfig::Cggm(_)
            | MethodConfig::Mmpareto(_)
            | MethodConfig::GBlend(_)
            | MethodConfig::InfoReg(_)
    )
}

/// The method sets the weight of the fused loss.
fn weighs_fused_loss(method: &MethodConfig) -> bool {
    matches!(method, MethodConfig::LfmHeuristic(_) | MethodConfig::LfmLearned(_) | MethodConfig::GBlend(_))
}

/// The method compares the step's features with others that it encodes itself.
fn encodes_anew(method: &MethodConfig) -> bool {
    matches!(method, MethodConfig::Agm(config) if config.mask == Mask::Inputs)
}

/// The method changes or drops features on their way to the fusion.
fn changes_features(method: &MethodConfig) -> bool {
    matches!(
        method,
        MethodConfig::Opm(_)
            | MethodConfig::Amco(_)
            | MethodConfig::ModalityDropout(_)
            | MethodConfig::Valuation(_)
    )
}
