//! Copies of the encoders' parameters that a method compares with or goes back to.
//!
//! They are buffers called `balance.<method>.<parameter>`, so that checkpoints hold them and no optimiser moves them.
//! [`make`] makes them after the model is built; the method fills them when it starts, or at each epoch.

use candle_core::{Result, Var, bail};
use mm_core::{Init, Modalities, Modality, ParamId, ParamStore};

/// Makes a copy of every parameter under `encoder.`, with its present value.
pub fn make(store: &mut ParamStore, method: &str) -> Result<()> {
    let found: Vec<_> = store
        .group("encoder")
        .map(|id| (store.get(id).name().to_owned(), store.get(id).var().as_tensor().copy()))
        .collect();
    for (name, value) in found {
        let value = value?;
        let mut scope = store.root().at("balance").at(method);
        scope.buffer(&name, value.shape(), Init::Const(0.0))?.set(&value)?;
    }
    Ok(())
}

/// A parameter, whose it is, and its copy.
#[derive(Debug, Clone)]
pub(crate) struct Copied {
    pub(crate) id: ParamId,
    pub(crate) of: Modality,
    pub(crate) copy: Var,
}

/// The copies that [`make`] made for `method`.
pub(crate) fn find(params: &ParamStore, modalities: &Modalities, method: &str) -> Result<Vec<Copied>> {
    let mut found = Vec::new();
    for of in modalities.iter() {
        for id in params.group(&format!("encoder.{}", modalities.name(of))) {
            let name = format!("balance.{method}.{}", params.get(id).name());
            let Some(copy) = params.buffers().iter().find(|b| b.name() == name) else {
                bail!("there is no buffer `{name}`: call `MethodConfig::prepare` after the model is built");
            };
            found.push(Copied { id, of, copy: copy.var().clone() });
        }
    }
    Ok(found)
}
