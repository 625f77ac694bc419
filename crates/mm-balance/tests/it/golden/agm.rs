use crate::fixture::{Fixture, PRECISIONS, exact, rounded};
use crate::nets::{TanhEncoder, boxed, observed, one_step, set};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::agm::{self, AgmConfig, Running};
use mm_core::{
    Batch, Composite, Features, Fusion, Gradients, Init, Modal, Modalities, Mode, Multimodal, ParamStore,
    Presence, Scope,
};
use mm_kernels::cross_entropy;
use mm_kernels::linear::linear;
use mm_testkit::toy::Toy;
use std::collections::BTreeMap;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    key.contains(".param.")
        || key.contains(".hook.") && last == "k_av"
        || last.starts_with("x_")
        || matches!(last, "labels" | "logits_TMBC")
}

#[test]
fn agm() -> Result<()> {
    let golden = Fixture::open("agm", is_input);
    for (prefix, dtype) in PRECISIONS {
        for modalities in [2, 3] {
            trace(&golden, prefix, modalities, dtype)?;
        }
        hooks(&golden, prefix, dtype)?;
    }
    golden.finish();
    Ok(())
}

/// Coefficients of six steps from given contributions; a cap of 10 for two modalities and 7 for three.
fn trace(golden: &Fixture, prefix: &str, count: usize, dtype: DType) -> Result<()> {
    let logits = golden.input(&format!("{prefix}.logits_TMBC"), dtype);
    let labels = golden.labels("labels");
    let (steps, _, rows, _) = logits.dims4()?;
    let letters = &"avt"[..count];
    for alpha in golden.variants(&format!("{prefix}.m{count}."), "alpha") {
        let key = |what: &str| format!("{prefix}.m{count}.alpha{alpha}.{what}");
        let alpha = alpha.parse().expect("a number");
        let mut running = Running::new(count);
        let (mut k, mut means, mut scores) = (Vec::new(), Vec::new(), Vec::new());
        for t in 0..steps {
            let of = |m: usize| logits.get(t)?.get(m);
            let phi = Modal::try_from_fn(count, |m| of(m.index()))?;
            let batch = Batch::new(phi.clone(), labels[t * rows..(t + 1) * rows].to_vec())?;
            let losses = agm::log_losses(&phi, &batch)?;
            k.extend(agm::coefficients(&losses, running.means(), alpha, if count == 2 { 10.0 } else { 7.0 }));
            running.push(&losses);
            means.extend_from_slice(running.means());
            scores.extend(losses);
        }
        golden.compare(&key(&format!("k_{letters}")), &k, rounded(dtype));
        golden.compare(&key(&format!("running_score_{letters}_after")), &means, rounded(dtype));
        if golden.has(&key(&format!("score_{letters}"))) {
            golden.compare(&key(&format!("score_{letters}")), &scores, rounded(dtype));
        }
    }
    Ok(())
}

/// `z = W relu([h_a; h_v]) + b`.
#[derive(Debug)]
struct ReluHead {
    weight: Tensor,
    bias: Tensor,
}

impl ReluHead {
    fn boxed(mut scope: Scope<'_>, shape: &[usize]) -> Result<Box<dyn Fusion>> {
        let weight = scope.param("weight", shape, Init::linear(shape[1]))?;
        Ok(Box::new(Self { weight, bias: scope.param("bias", shape[0], Init::linear(shape[1]))? }))
    }
}

impl Fusion for ReluHead {
    fn fuse(&self, z: &Features, _: &Modal<Option<Presence>>, _: Mode) -> Result<Tensor> {
        linear(&mm_kernels::relu(&Tensor::cat(z.values(), 1)?)?, &self.weight, Some(&self.bias))
    }
}

fn ours(theirs: &str) -> String {
    theirs.replace("ea.", "encoder.audio.").replace("ev.", "encoder.visual.").replace("fc.", "fusion.")
}

fn net(golden: &Fixture, prefix: &str, dtype: DType) -> Result<Toy> {
    let key = |name: &str| format!("{prefix}.hook.param.{name}");
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = Modalities::new(["audio", "visual"]).expect("two names");
    let encoders = Modal::try_from_fn(2, |m| {
        let shape = golden.shape(&key(["ea.weight", "ev.weight"][m.index()]));
        boxed(TanhEncoder::new(store.root().at("encoder").at(names.name(m)), (shape[0], shape[1]), true))
    })?;
    let shape = golden.shape(&key("fc.weight"));
    let fusion = ReluHead::boxed(store.root().at("fusion"), shape)?;
    for name in golden.under(&key("")) {
        set(&store, &ours(&name), &golden.input(&key(&name), dtype))?;
    }
    Ok(Toy { model: Composite::new(names, shape[0], encoders, Some(fusion))?, store })
}

/// Gradients with the coefficients `k`, through coalitions that are made here.
fn modulated(toy: &Toy, batch: &Batch, k: &[f64]) -> Result<(f64, BTreeMap<String, Tensor>, Vec<Tensor>)> {
    let coalition = |set: u32| {
        let mut inputs = batch.inputs.clone();
        for (m, x) in inputs.iter_mut() {
            if set & (1 << m.index()) == 0 {
                *x = x.zeros_like()?;
            }
        }
        Ok(toy.model.forward(&Batch { inputs, ..batch.clone() }, Mode::Eval)?.fused)
    };
    let all = [0, 1, 2, 3].map(coalition).into_iter().collect::<Result<Vec<_>>>()?;
    let phi = agm::contributions(2, |set| Ok(all[set as usize].clone()))?;
    let whole = mm_core::model::sum(&phi)?;
    mm_testkit::assert_close(&whole, &all[3], exact(whole.dtype()));
    let term = agm::modulation(&phi, k, &all[3], &batch.labels)?;
    let loss = (cross_entropy(&all[3], &batch.labels, None)? + term)?;
    let found = Gradients::collect(&toy.store, loss.backward()?);
    let mut gradients = BTreeMap::new();
    for id in toy.store.ids() {
        if let Some(g) = found.get(id)? {
            gradients.insert(toy.store.get(id).name().to_owned(), g);
        }
    }
    Ok((mm_core::model::to_host(&loss)?[0], gradients, all))
}

fn hooks(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let tol = exact(dtype);
    let toy = net(golden, prefix, dtype)?;
    let inputs = ["x_a", "x_v"].iter().map(|x| golden.input(&format!("{prefix}.hook.{x}"), dtype)).collect();
    let batch = Batch::new(inputs, golden.labels("hook.labels"))?;
    for case in ["case0", "case1"] {
        let key = |what: &str| format!("{prefix}.hook.{case}.{what}");
        let k = golden.values(&key("k_av"));
        let (loss, gradients, all) = modulated(&toy, &batch, &k)?;
        golden.compare(&key("loss"), &loss, tol);
        let names =
            [("zero_out", 0), ("pad_visual_out", 1), ("pad_audio_out", 2), ("total_out", 3), ("out", 3)];
        for (name, set) in names {
            golden.compare(&key(name), &all[set], tol);
        }
        for name in golden.under(&key("grad.")) {
            golden.compare(&key(&format!("grad.{name}")), &gradients[&ours(&name)], tol);
        }
    }
    // The method itself, with the coefficients that it finds.
    let (report, found) = one_step(&toy, &batch, AgmConfig::default().build(2).expect("valid"))?;
    let k = observed(&report, "coefficient");
    assert!(k[0] != k[1], "{k:?}");
    let (loss, gradients, _) = modulated(&toy, &batch, &k)?;
    mm_testkit::close::difference(&report.loss, &loss, tol).expect("the same loss");
    for (name, gradient) in &gradients {
        mm_testkit::assert_close(&found.gradients[name], gradient, tol);
    }
    Ok(())
}
