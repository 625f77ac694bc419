//! EfficientNets of torchvision and timm; see `tests/golden/generate/efficientnet.py`.

use super::draws::uniform;
use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Mode, ParamStore, StepRng};
use mm_encoders::efficientnet::{from_timm, from_torchvision};
use mm_encoders::{EfficientNetConfig, EfficientNetVariant};
use mm_testkit::Golden;
use std::collections::BTreeMap;

fn scaled(name: &str, shape: &[usize], scale: f64, shift: f64) -> Tensor {
    let u = Tensor::from_vec(uniform(name, shape.iter().product()), shape, &Device::Cpu).unwrap();
    u.affine(scale, shift).unwrap()
}

/// The value of a tensor of a checkpoint.
fn drawn(name: &str, shape: &[usize]) -> Tensor {
    let (scale, shift) = match *shape {
        [_, inputs, kh, kw] => ((6.0 / (inputs * kh * kw) as f64).sqrt(), 0.0),
        _ if name.ends_with("running_var") => (0.5, 1.0),
        _ if name.ends_with("weight") => (0.2, 1.0),
        _ => (0.1, 0.0),
    };
    scaled(name, shape, scale, shift)
}

/// Gives the encoder the weights that the library's model has, by the library's names: every tensor of the encoder once,
/// in its shape, and nothing left over but the classifier and the counts of batches. Returns the pairs of library's name
/// and ours in the library's order.
fn load(golden: &Golden, case: &str, store: &ParamStore) -> Vec<(String, String)> {
    let own = store.tensors();
    let vars: BTreeMap<&str, &Var> =
        store.params().iter().chain(store.buffers()).map(|p| (p.name(), p.var())).collect();
    let mut pairs: BTreeMap<String, String> = BTreeMap::new();
    let mut order = Vec::new();
    for line in golden.metadata(case).unwrap().lines() {
        let (theirs, shape) = line.split_once(' ').unwrap();
        let name = if case.starts_with("torchvision") { from_torchvision } else { from_timm };
        let Some(ours) = name(theirs) else {
            let outside = theirs.starts_with("classifier.") || theirs.ends_with("num_batches_tracked");
            assert!(outside, "{case}: {theirs} is left out");
            continue;
        };
        let var = vars.get(ours.as_str()).unwrap_or_else(|| panic!("{case}: no `{ours}` for {theirs}"));
        let dims: Vec<usize> = shape.split(',').map(|d| d.parse().unwrap()).collect();
        assert_eq!(var.dims(), dims, "{case}: {theirs}");
        var.set(&drawn(theirs, &dims).to_dtype(var.dtype()).unwrap()).unwrap();
        let before = pairs.insert(ours.clone(), theirs.to_owned());
        assert_eq!(before, None, "{case}: `{ours}` twice");
        order.push((theirs.to_owned(), ours));
    }
    let missing: Vec<&String> = own.keys().filter(|name| !pairs.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{case}: nothing for {missing:?}");
    order
}

fn variant(case: &str) -> EfficientNetVariant {
    // timm's network without `tf_` computes as torchvision's does.
    if case.starts_with("tf") { EfficientNetVariant::Tf } else { EfficientNetVariant::Torchvision }
}

fn whole(net: &str, (width, depth): (f64, f64), dim: usize, elements: usize) {
    let golden = Golden::open("efficientnet");
    for family in ["torchvision", "tf"] {
        let case = format!("{family}.{net}");
        for (prefix, dtype, tolerance) in [("f64", DType::F64, 1e-11), ("f32", DType::F32, 1e-5)] {
            let config = EfficientNetConfig {
                variant: variant(family),
                width,
                depth,
                ..EfficientNetConfig::default()
            };
            let mut store = ParamStore::new(0, dtype, &Device::Cpu);
            let encoder = config.build(store.root()).unwrap();
            load(&golden, &case, &store);
            assert_eq!((encoder.dim(), store.elements()), (dim, 0));
            let statistics = |name: &str| name.contains("running_");
            let weights = store.buffers().iter().filter(|b| !statistics(b.name()));
            assert_eq!(weights.map(|b| b.var().elem_count()).sum::<usize>(), elements);
            let images = scaled("images", &[2, 3, 64, 57], 1.0, 0.0).to_dtype(dtype).unwrap();
            let h = encoder.forward(&images, Mode::Eval).unwrap();
            golden.compare(&format!("{case}.{prefix}"), &h, tolerance);
        }
    }
}

#[test]
fn b0_is_torchvisions_and_timms() {
    // Numbers of parameters: torchvision's documentation, less the last layer's 1000 x (width + 1).
    whole("b0", (1.0, 1.0), 1280, 5_288_548 - 1_281_000);
}

#[test]
fn b2_is_torchvisions_and_timms() {
    whole("b2", (1.1, 1.2), 1408, 9_109_994 - 1_409_000);
}

#[test]
fn a_small_one_trains_as_theirs() {
    let golden = Golden::open("efficientnet");
    for case in ["torchvision.small", "tf.small", "plain.small"] {
        let config = EfficientNetConfig {
            variant: variant(case),
            width: 0.1,
            depth: 0.5,
            frozen: false,
            drop_path: 0.0,
            ..EfficientNetConfig::default()
        };
        let mut store = ParamStore::new(0, DType::F64, &Device::Cpu);
        let encoder = config.build(store.root()).unwrap();
        let pairs = load(&golden, case, &store);
        let x = Var::from_tensor(&scaled("images", &[3, 3, 37, 42], 1.0, 0.0)).unwrap();
        let y = encoder.forward(&x, Mode::Train(StepRng::new(0))).unwrap();
        golden.compare(&format!("{case}.train"), &y, 1e-10);
        let loss = (&y * scaled("loss", y.dims(), 1.0, 0.0)).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        golden.compare(&format!("{case}.gradient.x"), gradients.get(&x).unwrap(), 1e-9);
        let (mut of_parameters, mut of_statistics) = (Vec::new(), Vec::new());
        let norm = |t: &Tensor| to_host(t).unwrap().iter().map(|v| v * v).sum::<f64>().sqrt();
        for (theirs, ours) in &pairs {
            let Some(parameter) = store.find(ours) else {
                let buffer = store.buffers().iter().find(|b| b.name() == ours).unwrap();
                of_statistics.push(norm(buffer.var()));
                continue;
            };
            let gradient = gradients.get(parameter.var()).unwrap();
            of_parameters.push(norm(gradient));
            if case == "tf.small" {
                // The normalisation of the next layer takes these shifts out again: what is there is rounding.
                let blind = ours.ends_with("bn3.bias") || ours == "blocks.0.0.bn2.bias";
                let tolerance = if blind { 1e-5 } else { 1e-9 };
                golden.compare(&format!("{case}.gradient.{theirs}"), gradient, tolerance);
            }
        }
        golden.compare(&format!("{case}.gradients"), &of_parameters, 1e-9);
        golden.compare(&format!("{case}.statistics"), &of_statistics, 1e-10);
        golden.compare(&format!("{case}.eval"), &encoder.forward(&x, Mode::Eval).unwrap(), 1e-10);
    }
    for net in ["torchvision.b", "tf.b"] {
        golden.skip(net, "the other tests'");
    }
    golden.finish();
}

#[test]
fn names_of_other_models_are_not_taken() {
    for name in [
        "",
        "conv_stem.bias",
        "conv_head",
        "bn1.num_batches_tracked",
        "bn3.weight",
        "blocks.7.0.conv_pw.weight",
        "blocks.0.0.conv_pwl.weight",
        "blocks.0.0.bn3.bias",
        "blocks.1.x.conv_pw.weight",
        "blocks.1.0.conv_pw.bias",
        "blocks.1.0.conv_exp.weight",
        "blocks.1.0.se.fc1.weight",
        "blocks.1.0.se.conv_reduce.running_mean",
        "classifier.bias",
    ] {
        assert_eq!(from_timm(name), None, "{name}");
    }
    for name in [
        "",
        "features.0.0.bias",
        "features.9.0.weight",
        "features.8.2.weight",
        "features.1.0.block.3.0.weight",
        "features.1.0.block.1.0.weight",
        "features.2.0.block.2.fc3.weight",
        "features.2.0.block.2.fc1.running_mean",
        "features.2.0.block.4.0.weight",
        "features.2..block.0.0.weight",
        "features.2.0.block.0.1.num_batches_tracked",
        "classifier.1.bias",
    ] {
        assert_eq!(from_torchvision(name), None, "{name}");
    }
}
