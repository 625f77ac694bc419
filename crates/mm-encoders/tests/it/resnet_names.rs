//! Names of published ResNets, and their numbers; see `tests/golden/generate/resnet_names.py`.

use super::draws::uniform;
use candle_core::{DType, Device, Tensor};
use mm_core::{Encoder, Mode, ParamStore};
use mm_encoders::ResNetConfig;
use mm_encoders::resnet::{from_microsoft, from_torchvision};
use mm_testkit::Golden;
use std::collections::BTreeSet;

/// The value of a tensor of a checkpoint.
fn drawn(name: &str, shape: &[usize]) -> Tensor {
    let u = Tensor::from_vec(uniform(name, shape.iter().product()), shape, &Device::Cpu).unwrap();
    let (scale, shift) = match *shape {
        [out, _, kh, kw] => ((6.0 / (out * kh * kw) as f64).sqrt(), 0.0),
        _ if name.ends_with("running_var") => (0.5, 1.0),
        _ if name.ends_with("weight") => (0.2, 1.0),
        _ => (0.1, 0.0),
    };
    u.affine(scale, shift).unwrap()
}

/// Gives the encoder the weights that the library's model has, by the library's names: every tensor of the encoder once,
/// in its shape, and nothing left over but the head and the counts of batches.
fn load(golden: &Golden, case: &str, store: &ParamStore, name: impl Fn(&str) -> Option<String>) {
    let own = store.tensors();
    let mut found = BTreeSet::new();
    for line in golden.metadata(case).unwrap().lines() {
        let (theirs, shape) = line.split_once(' ').unwrap();
        let Some(ours) = name(theirs) else {
            let outside = ["fc.", "classifier."].iter().any(|head| theirs.starts_with(head));
            assert!(outside || theirs.ends_with("num_batches_tracked"), "{case}: {theirs} is left out");
            continue;
        };
        let value = own.get(&ours).unwrap_or_else(|| panic!("{case}: no `{ours}` for {theirs}"));
        let dims: Vec<usize> = shape.split(',').map(|d| d.parse().unwrap()).collect();
        assert_eq!(value.dims(), dims, "{case}: {theirs}");
        assert!(found.insert(ours.clone()), "{case}: `{ours}` twice");
        let var = store.params().iter().chain(store.buffers()).find(|p| p.name() == ours).unwrap().var();
        var.set(&drawn(theirs, &dims).to_dtype(var.dtype()).unwrap()).unwrap();
    }
    let missing: Vec<&String> = own.keys().filter(|name| !found.contains(*name)).collect();
    assert!(missing.is_empty(), "{case}: nothing for {missing:?}");
}

#[test]
fn published_networks_compute_the_same() {
    let golden = Golden::open("resnet_names");
    let cases = [
        ("torchvision.18", 18, false),
        ("torchvision.34", 34, false),
        ("torchvision.50", 50, false),
        ("microsoft.18", 18, false),
        ("microsoft.34", 34, false),
        ("microsoft.50", 50, false),
        ("microsoft.50.first", 50, true),
    ];
    for (case, depth, downsample_in_bottleneck) in cases {
        for (prefix, dtype, tolerance) in [("f64", DType::F64, 1e-11), ("f32", DType::F32, 1e-5)] {
            let key = format!("{case}.{prefix}");
            if !golden.has(&key) {
                continue;
            }
            let config = ResNetConfig { depth, downsample_in_bottleneck, ..ResNetConfig::default() };
            let mut store = ParamStore::new(0, dtype, &Device::Cpu);
            let encoder = config.build(store.root()).unwrap();
            let name = if case.starts_with("torchvision") { from_torchvision } else { from_microsoft };
            load(&golden, case, &store, name);
            let images = Tensor::from_vec(uniform("images", 2 * 3 * 70 * 40), (2, 3, 70, 40), &Device::Cpu);
            let images = images.unwrap().to_dtype(dtype).unwrap();
            golden.compare(&key, &encoder.forward(&images, Mode::Eval).unwrap(), tolerance);
            if key == "microsoft.18.f64" {
                let places = encoder.places(&images, Mode::Eval).unwrap();
                golden.compare("microsoft.18.places", &places, tolerance);
            }
        }
    }
    assert_eq!(golden.finish(), 10);
}

#[test]
fn names_of_other_models_are_not_taken() {
    for name in [
        "",
        "conv1",
        "conv1.bias",
        "conv2.weight",
        "bn1.num_batches_tracked",
        "layer0.0.conv1.weight",
        "layer5.0.conv1.weight",
        "layer1.x.conv1.weight",
        "layer1..conv1.weight",
        "layer1.0.conv4.weight",
        "layer1.0.bn1.mean",
        "layer1.0.downsample.2.weight",
        "layer1.0.downsample.0.bias",
        "module.conv1.weight",
        "fc.bias",
    ] {
        assert_eq!(from_torchvision(name), None, "{name}");
    }
    for name in [
        "",
        "weight",
        "convolution.weight",
        "resnet.embedder.convolution.weight",
        "resnet.embedder.embedder.convolution.bias",
        "embedder.embedder.normalization.num_batches_tracked",
        "resnet.encoder.stages.4.layers.0.layer.0.convolution.weight",
        "resnet.encoder.stages.0.layers.0.layer.3.convolution.weight",
        "resnet.encoder.stages.0.layers.a.layer.0.convolution.weight",
        "resnet.encoder.stages.0.layers.0.shortcut.0.convolution.weight",
        "classifier.1.bias",
    ] {
        assert_eq!(from_microsoft(name), None, "{name}");
    }
    let name = "encoder.stages.3.layers.11.layer.2.normalization.running_var";
    assert_eq!(from_microsoft(name).as_deref(), Some("layer4.11.bn3.running_var"));
}
