use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::{TanhEncoder, boxed, set};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::functional_entropy::{Estimate, Form, evaluate, perturbed, statistics};
use mm_core::{Batch, Composite, Modal, Mode, Multimodal, ParamStore};
use mm_kernels::softmax_last;
use mm_testkit::toy;

const REPLICAS: usize = 3;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    matches!(last, "W1" | "W2" | "W3" | "x_a" | "x_v" | "unit_noise_a" | "unit_noise_v" | "labels" | "f")
}

#[test]
fn functional_entropy() -> Result<()> {
    let golden = Fixture::open("functional_entropy", is_input);
    for (prefix, dtype) in PRECISIONS {
        regulariser(&golden, prefix, dtype)?;
        let f = golden.input(&format!("{prefix}.stat.f"), dtype).to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let key = |name: &str| format!("{prefix}.stat.{name}");
        golden.compare(&key("var"), &statistics::variances(&f), exact(dtype));
        golden.compare(&key("functional_entropy"), &statistics::functional_entropy(&f), exact(dtype));
        golden.compare(&key("diff_entropy"), &statistics::differential_entropy(&f), exact(dtype));
    }
    golden.finish();
    Ok(())
}

fn regulariser(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
    let weights = ["W1", "W2", "W3"].map(|name| golden.input(&key(name), dtype));
    let (classes, names) = (weights[2].dim(0)?, toy::modalities(2)?);
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let encoders = Modal::try_from_fn(2, |m| {
        let scope = store.root().at("encoder").at(names.name(m));
        boxed(TanhEncoder::new(scope, weights[m.index()].dims2()?, false))
    })?;
    let widths = encoders.map(|_, e| e.dim());
    let fusion = toy::split(store.root().at("fusion"), &names, &widths, classes)?;
    let model = Composite::new(names, classes, encoders, Some(fusion))?;
    let width = widths.values()[0];
    set(&store, "encoder.m0.weight", &weights[0])?;
    set(&store, "encoder.m1.weight", &weights[1])?;
    set(&store, "fusion.m0.weight", &weights[2].narrow(1, 0, width)?.contiguous()?)?;
    set(&store, "fusion.m1.weight", &weights[2].narrow(1, width, widths.values()[1])?.contiguous()?)?;
    set(&store, "fusion.bias", &Tensor::zeros(classes, dtype, &Device::Cpu)?)?;

    let inputs = Modal::new(vec![golden.input(&key("x_a"), dtype), golden.input(&key("x_v"), dtype)]);
    let batch = Batch::new(inputs, golden.labels("labels"))?;
    let logits = model.forward(&batch, Mode::Eval)?.fused;
    golden.compare(&key("logits"), &logits, tol);
    let index: Vec<u32> = (0..batch.rows() * REPLICAS).map(|n| (n / REPLICAS) as u32).collect();
    let targets = softmax_last(&logits)?.index_select(&Tensor::new(index, &Device::Cpu)?, 0)?;
    golden.compare(&key("expanded_softmax"), &targets, tol);
    let copies = Modal::try_from_fn(2, |m| {
        let m = m.index();
        let noise = golden.input(&key(&format!("unit_noise_{}", ["a", "v"][m])), dtype);
        perturbed(&batch.inputs.values()[m], REPLICAS, &noise)
    })?;
    golden.compare(&key("pert_a"), &copies.values()[0], tol);
    golden.compare(&key("pert_v"), &copies.values()[1], tol);
    let labels = batch.labels.iter().flat_map(|&y| [y; REPLICAS]).collect();
    let copies = Batch::new(copies, labels)?;

    for (estimate, name) in [(Estimate::Entropy, "ent"), (Estimate::Variance, "var")] {
        let forms = [(Form::Inverse, "max_ent"), (Form::Margin, "max_ent_minus"), (Form::Minimum, "min_ent")];
        for (form, form_name) in forms {
            let found = evaluate(&model, &store, &batch, &copies, estimate, form)?;
            golden.compare(&key("inf_loss"), &found.loss, tol);
            golden.compare(&key("grad_pert_a"), &found.input_gradients.values()[0], tol);
            golden.compare(&key("grad_pert_v"), &found.input_gradients.values()[1], tol);
            golden.compare(&key(&format!("{name}.inf_scores")), &found.scores, tol);
            let key = |last: &str| key(&format!("{name}.{form_name}.{last}"));
            golden.compare(&key("reg"), &found.value, tol);
            let of = |name: &str| {
                let id = store.ids().find(|&id| store.get(id).name() == name).expect(name);
                found.gradients[id.index()].clone().expect("a gradient")
            };
            // Mixed second derivatives, by differences.
            let tol = if dtype == DType::F64 { 1e-9 } else { 1e-4 };
            golden.compare(&key("grad_W1"), &of("encoder.m0.weight"), tol);
            golden.compare(&key("grad_W2"), &of("encoder.m1.weight"), tol);
            let blocks = [of("fusion.m0.weight"), of("fusion.m1.weight")];
            golden.compare(&key("grad_W3"), &Tensor::cat(&blocks, 1)?, tol);
        }
    }
    Ok(())
}
