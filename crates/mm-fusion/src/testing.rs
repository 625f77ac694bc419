//! What the unit tests of the fusions share.

use candle_core::{DType, Device, Result, Tensor};
use mm_core::{Features, Modal, Modalities, ParamStore, Presence, Scope, StepRng};

/// A fusion in f64 over modalities `a`, `b`, … of these widths, made in the scope `fusion`, and its parameters.
pub(crate) fn fixture<F>(
    dims: &[usize],
    build: impl FnOnce(Scope<'_>, &Modalities, &Modal<usize>) -> Result<F>,
) -> (F, ParamStore) {
    let mut store = ParamStore::new(5, DType::F64, &Device::Cpu);
    let modalities = Modalities::new(["a", "b", "c"].into_iter().take(dims.len())).unwrap();
    let fusion = build(store.root().at("fusion"), &modalities, &dims.iter().copied().collect()).unwrap();
    (fusion, store)
}

/// Normal features (rows, D_m).
pub(crate) fn features(dims: &[usize], rows: usize) -> Features {
    let mut draws = StepRng::new(1).stream("features").draws();
    let normal = |&dim: &usize| {
        let values: Vec<f64> = (0..rows * dim).map(|_| draws.normal()).collect();
        Tensor::from_vec(values, (rows, dim), &Device::Cpu).unwrap()
    };
    dims.iter().map(normal).collect()
}

/// Modality `gone` is missing in every row.
pub(crate) fn missing(z: &Features, gone: usize) -> Modal<Option<Presence>> {
    z.map(|m, h| {
        let rows = vec![false; h.dim(0).unwrap()];
        (m.index() == gone).then(|| Presence::new(rows, DType::F64, &Device::Cpu).unwrap())
    })
}
