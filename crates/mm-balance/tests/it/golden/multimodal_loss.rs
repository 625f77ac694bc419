use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::set;
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_balance::Balancer;
use mm_balance::multimodal_loss::{self, MultiModalLossConfig};
use mm_core::model::{sum, to_host};
use mm_core::{Batch, Composite, Encoder, Forward, Modal, ParamStore};
use mm_kernels::cross_entropy;
use mm_testkit::toy;

/// 1/γ of every such file; the default.
const TEMPERATURE: f64 = 0.1;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    last == "labels" || last == "fc" || last == "uni_logits"
}

#[test]
fn multimodal_loss() -> Result<()> {
    let golden = Fixture::open("multimodal_loss", is_input);
    for (prefix, dtype) in PRECISIONS {
        let cases: Vec<String> = golden
            .under(&format!("{prefix}."))
            .iter()
            .filter_map(|k| k.strip_suffix(".fc").map(str::to_owned))
            .collect();
        let plain: Vec<&String> = cases.iter().filter(|case| !case.contains('.')).collect();
        assert!(!plain.is_empty());
        for case in plain {
            by_parts(&golden, prefix, case, dtype)?;
            by_method(&golden, prefix, case, dtype)?;
        }
        for hazard in cases.iter().filter(|case| case.contains("hazard_dead_proxy")) {
            dead_proxy(&golden, prefix, hazard, dtype)?;
        }
    }
    golden.finish();
    Ok(())
}

/// The kernel: embeddings and proxies in, everything on the way to the logits out.
fn by_parts(golden: &Fixture, prefix: &str, case: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{case}.{name}"), exact(dtype));
    let uni = golden.input(&key("uni_logits"), dtype);
    let (rows, modalities, classes) = uni.dims3()?;
    let labels = golden.labels(&format!("{case}.labels"));
    let embeddings = mm_kernels::softmax_last(&uni)?.reshape((rows, modalities * classes))?;
    golden.compare(&key("embeddings"), &embeddings, tol);
    let (e, fc) = (Var::from_tensor(&embeddings)?, Var::from_tensor(&golden.input(&key("fc"), dtype))?);
    let parts = multimodal_loss::logits(e.as_tensor(), fc.as_tensor(), classes, 1.0 / TEMPERATURE)?;
    golden.compare(&key("mid.proxies_normalized"), &parts.proxies, tol);
    golden.compare(&key("mid.sim"), &parts.similarity, tol);
    golden.compare(&key("mid.attention"), &parts.attention, tol);
    golden.compare(&key("mid.attended_output"), &parts.attended, tol);
    golden.compare(&key("mid.normalized_sim"), &parts.class_similarity, tol);
    golden.compare(&key("pred_logits"), &parts.logits, tol);
    let each = (0..rows).map(|i| cross_entropy(&parts.logits.narrow(0, i, 1)?, &labels[i..=i], None));
    golden.compare(&key("per_sample_loss"), &Tensor::stack(&each.collect::<Result<Vec<_>>>()?, 0)?, tol);
    let gradients = cross_entropy(&parts.logits, &labels, None)?.backward()?;
    golden.compare(&key("grad_embeddings"), gradients.get(e.as_tensor()).expect("a gradient"), tol);
    golden.compare(&key("grad_fc"), gradients.get(fc.as_tensor()).expect("a gradient"), tol);
    Ok(())
}

/// The method: unimodal logits in, decision out.
fn by_method(golden: &Fixture, prefix: &str, case: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{case}.{name}"), exact(dtype));
    let uni = Var::from_tensor(&golden.input(&key("uni_logits"), dtype))?;
    let (_, modalities, classes) = uni.dims3()?;
    let fc = golden.input(&key("fc"), dtype);
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let config = MultiModalLossConfig { proxies: fc.dim(1)? / classes, temperature: TEMPERATURE };
    let method = config.build(store.root(), modalities, classes)?;
    set(&store, "proxies", &fc)?;

    let heads = Modal::try_from_fn(modalities, |m| uni.narrow(1, m.index(), 1)?.squeeze(1))?;
    let batch = Batch::new(heads.map(|_, h| h.detach()), golden.labels(&format!("{case}.labels")))?;
    let encoders =
        Modal::from_fn(modalities, |_| Box::new(crate::nets::Identity(classes)) as Box<dyn Encoder>);
    let model = Composite::new(toy::modalities(modalities)?, classes, encoders, None)?;
    let fused = sum(heads.values())?;
    let forward = Forward { features: heads.clone(), fused, heads: Some(heads), split: None };
    let logits = method.logits(&model, &batch, &forward)?.expect("the method decides");
    golden.compare(&key("pred_logits"), &logits, tol);
    let loss = cross_entropy(&logits, &batch.labels, None)?;
    golden.compare(&key("loss"), &loss, tol);
    let gradients = loss.backward()?;
    golden.compare(&key("grad_uni_logits"), gradients.get(uni.as_tensor()).expect("a gradient"), tol);
    let proxies = store.find("proxies").expect("the proxies").var().as_tensor();
    golden.compare(&key("grad_fc"), gradients.get(proxies).expect("a gradient"), tol);
    Ok(())
}

/// Proxies without a positive entry: finite, and without gradient for ever.
fn dead_proxy(golden: &Fixture, prefix: &str, hazard: &str, dtype: DType) -> Result<()> {
    let case = hazard.split('.').next().unwrap_or(hazard);
    let uni = golden.input(&format!("{prefix}.{case}.uni_logits"), dtype);
    let (rows, modalities, classes) = uni.dims3()?;
    let labels = golden.labels(&format!("{case}.labels"));
    let e = mm_kernels::softmax_last(&uni)?.reshape((rows, modalities * classes))?;
    let fc = Var::from_tensor(&golden.hazard(&format!("{prefix}.{hazard}.fc"), dtype))?;
    let parts = multimodal_loss::logits(&e, fc.as_tensor(), classes, 1.0 / TEMPERATURE)?;
    let loss = cross_entropy(&parts.logits, &labels, None)?;
    assert!(to_host(&loss)?[0].is_finite());
    let gradients = loss.backward()?;
    let gradient = to_host(&gradients.get(fc.as_tensor()).expect("a gradient").t()?.contiguous()?)?;
    assert!(gradient.iter().all(|g| g.is_finite()), "{gradient:?}");
    let columns = to_host(&fc.t()?.contiguous()?)?;
    let width = modalities * classes;
    let mut dead = 0;
    for (column, gradient) in columns.chunks(width).zip(gradient.chunks(width)) {
        if column.iter().all(|&v| v < 0.0) {
            assert!(gradient.iter().all(|&g| g == 0.0), "{gradient:?}");
            dead += 1;
        }
    }
    assert!(dead > 0, "the hazard is a dead proxy");
    Ok(())
}
