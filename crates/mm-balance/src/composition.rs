//! Which methods can be composed with which: what makes no sense is refused before anything runs.

use crate::MethodConfig;
use crate::agm::Mask;
use mm_core::{Checked, ConfigError};

/// Refuses methods that cannot act together, from left to right as they are applied.
pub fn check_composition(methods: &[MethodConfig]) -> Checked<()> {
    let names: Vec<&str> = methods.iter().map(MethodConfig::name).collect();
    let refuse =
        |rule: String| Err(ConfigError::new("method.kind", format!("\"{}\"", names.join("+")), rule));

    let training_heads: Vec<&str> =
        methods.iter().filter(|m| trains_heads(m)).map(MethodConfig::name).collect();
    if let [first, .., last] = training_heads.as_slice()
        && methods.iter().any(weighs_unimodal_losses)
    {
        return refuse(format!("`{first}` and `{last}` both add the losses of the heads; keep one of them"));
    }
    if let Some(needy) = methods.iter().find(|m| reads_fused_logits(m))
        && let Some(decider) = methods.iter().find(|m| m.decides())
    {
        let rule = format!(
            "`{}` takes gradients of the fused logits, and `{}` decides without a fusion",
            needy.name(),
            decider.name()
        );
        return refuse(rule);
    }
    let weighing: Vec<&str> =
        methods.iter().filter(|m| weighs_fused_loss(m)).map(MethodConfig::name).collect();
    if let [first, second, ..] = weighing.as_slice() {
        return refuse(format!(
            "`{first}` and `{second}` both weigh the fused loss against others; keep one of them"
        ));
    }
    if methods.iter().any(encodes_anew)
        && let Some(editor) = methods.iter().find(|m| changes_features(m))
    {
        return refuse(format!(
            "`agm` encodes anew and would not see what `{}` does to the features; set mask = \"features\" for it",
            editor.name()
        ));
    }
    if names.iter().skip(1).any(|name| *name == "mmpareto") {
        return refuse("`mmpareto` sets the gradients of the encoders, so it must stand first".to_owned());
    }
    Ok(())
}

/// The loss of the method trains the heads.
fn trains_heads(method: &MethodConfig) -> bool {
    matches!(
        method,
        MethodConfig::MultiLoss(_)
            | MethodConfig::Mlb(_)
            | MethodConfig::Cggm(_)
            | MethodConfig::Mmpareto(_)
            | MethodConfig::GBlend(_)
            | MethodConfig::InfoReg(_)
    )
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
    matches!(method, MethodConfig::Opm(_))
}
