use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::{ConvEncoder, boxed, observed, one_step, set};
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_balance::ogm::{self, OgmConfig, Parameters, Variant};
use mm_balance::score;
use mm_core::{Batch, Composite, Modal, Modalities, Mode, Multimodal, ParamStore, StepRng};
use mm_kernels::cross_entropy;
use mm_testkit::toy::{self, Toy};
use std::collections::BTreeMap;

const NAMES: [&str; 2] = ["audio", "visual"];
const HEAD: &str = "fusion_module.fc_out.weight";

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    key.contains(".param.")
        || key.starts_with("unit_noise.")
        || last.starts_with("x_")
        || last.starts_with("logits")
        || last == "labels"
}

#[test]
fn ogm() -> Result<()> {
    let golden = Fixture::open("ogm", is_input);
    for (prefix, dtype) in PRECISIONS {
        two_modalities(&golden, prefix, dtype)?;
    }
    for boost in ["boostNone", "boost0", "boost1", "boost2"] {
        three_modalities(&golden, &format!("m3.{boost}"))?;
    }
    golden.finish();
    Ok(())
}

/// Our name of a parameter of the toy net; its head is one matrix there and one block per modality here.
fn ours(theirs: &str) -> String {
    match theirs.split_once("_net.") {
        Some((modality, rest)) => format!("encoder.{modality}.{rest}"),
        None => theirs.replace("fusion_module.fc_out", "fusion"),
    }
}

fn net(golden: &Fixture, prefix: &str, dtype: DType) -> Result<Toy> {
    let key = |name: &str| format!("{prefix}.param.{name}");
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = Modalities::new(NAMES).expect("two names");
    let encoders = Modal::try_from_fn(2, |m| {
        let kernel = golden.shape(&key(&format!("{}_net.0.weight", names.name(m))));
        boxed(ConvEncoder::new(store.root().at("encoder").at(names.name(m)), kernel))
    })?;
    let dims = encoders.map(|_, encoder| encoder.dim());
    let classes = golden.shape(&key(HEAD))[0];
    let fusion = toy::split(store.root().at("fusion"), &names, &dims, classes)?;
    for name in golden.under(&key("")) {
        let value = golden.input(&key(&name), dtype);
        if name == HEAD {
            let (first, second) = (dims.values()[0], dims.values()[1]);
            set(&store, "fusion.audio.weight", &value.narrow(1, 0, first)?)?;
            set(&store, "fusion.visual.weight", &value.narrow(1, first, second)?)?;
        } else {
            set(&store, &ours(&name), &value)?;
        }
    }
    Ok(Toy { model: Composite::new(names, classes, encoders, Some(fusion))?, store })
}

/// The gradient of one of their parameters out of ours.
fn gradient(all: &BTreeMap<String, Tensor>, theirs: &str) -> Result<Tensor> {
    if theirs == HEAD {
        return Tensor::cat(&[&all["fusion.audio.weight"], &all["fusion.visual.weight"]], 1);
    }
    Ok(all[&ours(theirs)].clone())
}

/// The bias of a convolution under a batch normalisation has gradient 0: only rounding is left of it, which is held
/// against the size of the kernel's gradient before damping.
fn compare_gradients(
    golden: &Fixture,
    prefix: &str,
    found: &BTreeMap<String, Tensor>,
    plain: &BTreeMap<String, Tensor>,
    dtype: DType,
) -> Result<()> {
    for name in golden.under(prefix) {
        let (key, gradient) = (format!("{prefix}{name}"), gradient(found, &name)?);
        match name.strip_suffix("_net.0.bias") {
            Some(modality) => {
                let kernel = &plain[&format!("encoder.{modality}.0.weight")];
                let largest = mm_core::model::to_host(&kernel.abs()?.max_all()?)?[0];
                golden.compare_zero(&key, &gradient, exact(dtype) * largest);
            }
            None => golden.compare(&key, &gradient, exact(dtype)),
        }
    }
    Ok(())
}

fn two_modalities(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
    let toy = net(golden, prefix, dtype)?;
    let inputs = NAMES.iter().map(|name| golden.input(&key(&format!("x_{name}")), dtype)).collect();
    let batch = Batch::new(inputs, golden.labels("labels"))?;

    let mode = Mode::Train(StepRng::new(0));
    let forward = toy.model.forward(&batch, mode)?;
    let split = forward.split.expect("the head is a sum");
    golden.compare(&key("out"), &forward.fused, tol);
    for (m, letter) in ["a", "v"].into_iter().enumerate() {
        golden.compare(&key(&format!("feat_{letter}")), &forward.features.values()[m], tol);
        golden.compare(&key(&format!("out_{letter}")), &split.values()[m], tol);
    }

    let leaves = forward.features.try_map(|_, h| Var::from_tensor(h))?;
    let features = leaves.map(|_, h| h.as_tensor().clone());
    let fused = toy.model.fuse(features, &batch.present, mode)?.fused;
    let through = cross_entropy(&fused, &batch.labels, None)?.backward()?;
    for (leaf, letter) in leaves.values().iter().zip(["a", "v"]) {
        let gradient = through.get(leaf.as_tensor()).expect("the loss depends on the features");
        golden.compare(&key(&format!("grad_feat_{letter}")), gradient, tol);
    }

    let (report, plain) = one_step(&toy, &batch, ())?;
    golden.compare(&key("loss"), &report.loss, tol);
    compare_gradients(golden, &key("grad_pre."), &plain.gradients, &plain.gradients, dtype)?;

    for alpha in golden.variants(&key(""), "alpha") {
        let key = |name: &str| key(&format!("alpha{alpha}.{name}"));
        let alpha = alpha.parse().expect("a number");
        let config = OgmConfig {
            alpha,
            variant: Variant::Released,
            parameters: Parameters::Conv,
            ..OgmConfig::default()
        };
        let (report, damped) = one_step(&toy, &batch, config.build(2, false).expect("valid"))?;
        let (scores, ratios) = (observed(&report, "score"), observed(&report, "ratio"));
        let k = observed(&report, "coefficient");
        let paper = ogm::coefficients(&scores, alpha); // without a tie the variants are one
        for (m, letter) in ["a", "v"].into_iter().enumerate() {
            golden.compare(&format!("{prefix}.score_{letter}"), &(scores[m] * batch.rows() as f64), tol);
            golden.compare(&format!("{prefix}.ratio_{letter}"), &ratios[m], tol);
            golden.compare(&key(&format!("k_{letter}")), &k[m], tol);
            golden.compare(&key(&format!("k_{letter}")), &paper[m], tol);
        }
        compare_gradients(golden, &key("grad_post."), &damped.gradients, &plain.gradients, dtype)?;
        for name in golden.under(&key("grad_post_ge.")) {
            let before = gradient(&plain.gradients, &name)?;
            let m = usize::from(name.starts_with(NAMES[1]));
            let noise = golden.input(&format!("unit_noise.{name}"), dtype);
            golden.compare(&format!("{prefix}.ge_std.{name}"), &ogm::noise_deviation(&before)?, tol);
            golden.compare(
                &key(&format!("grad_post_ge.{name}")),
                &ogm::enhanced(&before, k[m], &noise)?,
                tol,
            );
        }
    }
    Ok(())
}

/// The three-modality rule of the MLA repository, with α = 0.3 in every such file.
fn three_modalities(golden: &Fixture, prefix: &str) -> Result<()> {
    let key = |name: &str| format!("{prefix}.{name}");
    let logits = Modal::from_fn(3, |m| golden.input(&key(&format!("logits{}", m.index())), DType::F64));
    let batch = Batch::new(logits.clone(), golden.labels("m3.labels"))?;
    let scores: Vec<f64> =
        score::true_class(&logits, &batch)?.values().iter().map(|s| s * batch.rows() as f64).collect();
    golden.compare(&key("scores_avt"), &scores, exact(DType::F64));
    let scores = [scores[0], scores[1], scores[2]];
    golden.compare(&key("ratios_avt"), &ogm::ratios_released_m3(scores), exact(DType::F64));
    golden.compare(&key("mla_repo.k_avt"), &ogm::coefficients_released_m3(scores, 0.3), exact(DType::F64));
    Ok(())
}
