//! Conformers against PyTorch and transformers; see `tests/golden/generate/conformer.py`.

use super::draws::uniform;
use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Gradients, Mode, ParamStore, StepRng};
use mm_encoders::conformer::{ConvolutionNorm, Input, from_wav2vec2_conformer};
use mm_encoders::{Conformer, ConformerConfig, Mask};
use mm_testkit::Golden;
use std::collections::BTreeMap;

fn drawn(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let values = uniform(name, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn compare_gradient(golden: &Golden, key: &str, gradient: &Tensor, tolerance: f64) {
    if key.ends_with("key.bias") || key.ends_with("linear_k.bias") {
        // The softmax does not see what a key's bias adds: the gradient is zero, and what is there is rounding.
        golden.skip(key, "rounding");
        assert!(to_host(gradient).unwrap().iter().all(|g| g.abs() < tolerance), "{key}: {gradient}");
    } else {
        golden.compare(key, gradient, tolerance);
    }
}

#[test]
fn a_layer_is_pytorchs() {
    let golden = Golden::open("conformer");
    let base = ConformerConfig {
        dim: 8,
        layers: 1,
        heads: 2,
        kernel: 3,
        dropout: 0.0,
        ..ConformerConfig::default()
    };
    let cases = [
        ("plain", base.clone(), None),
        ("layer_norm", ConformerConfig { norm: ConvolutionNorm::Layer, ..base.clone() }, None),
        ("lengths", base.clone(), Some(Mask::from_lengths(&[7, 4, 6], 7).unwrap())),
        ("released", ConformerConfig { released: true, ..base }, None),
    ];
    for (case, config, mask) in cases {
        let mut store = ParamStore::new(0, DType::F64, &Device::Cpu);
        let encoder = config.build(store.root(), 5).unwrap();
        for p in store.params() {
            p.var().set(&(drawn(p.name(), p.var().dims(), DType::F64) * 0.6).unwrap()).unwrap();
        }
        let x = Var::from_tensor(&drawn("x", &[3, 7, 5], DType::F64)).unwrap();
        let y = encoder.encode(&x, mask.as_ref(), Mode::Train(StepRng::new(0))).unwrap();
        golden.compare(&format!("{case}.train"), &y, 1e-9);
        let grads = (y * drawn("loss", &[3, 8], DType::F64)).unwrap().sum_all().unwrap().backward().unwrap();
        golden.compare(&format!("{case}.gradient.x"), grads.get(&x).unwrap(), 1e-9);
        for p in store.params() {
            let key = format!("{case}.gradient.{}", p.name());
            compare_gradient(&golden, &key, grads.get(p.var()).unwrap(), 1e-9);
        }
        for buffer in store.buffers() {
            golden.compare(&format!("{case}.{}", buffer.name()), buffer.var().as_tensor(), 1e-9);
        }
        let y = encoder.encode(&x, mask.as_ref(), Mode::Eval).unwrap();
        golden.compare(&format!("{case}.eval"), &y, 1e-9);
    }
    golden.finish();
}

/// The value with which a tensor of a checkpoint starts.
fn start(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let (scale, shift) = match shape.len() {
        1 if name.ends_with("weight") || name.ends_with("running_var") => (0.2, 1.0),
        1 => (0.2, 0.0),
        _ => (0.5, 0.0),
    };
    drawn(name, shape, DType::F64).affine(scale, shift).unwrap().to_dtype(dtype).unwrap()
}

/// The encoder of the fixture's configuration, loaded by the checkpoint's names, and these by ours.
fn wav2vec2(golden: &Golden, dtype: DType) -> (Conformer, ParamStore, BTreeMap<String, String>) {
    let config: toml::Table = toml::from_str(golden.metadata("config").unwrap()).unwrap();
    let config = ConformerConfig::from_hugging_face(config).unwrap();
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let encoder = config.build(store.root(), config.dim).unwrap();
    let own = store.tensors();
    let mut names = BTreeMap::new();
    for name in golden.metadata("names").unwrap().lines() {
        if let Some(ours) = from_wav2vec2_conformer(name) {
            assert!(own.contains_key(&ours), "{name} becomes {ours}, which the encoder does not have");
            assert!(names.insert(ours, name.to_owned()).is_none(), "{name}");
        } else {
            let part = ["feature_", "pos_conv_embed", "masked_spec_embed", "num_batches_tracked", "lm_head"];
            assert!(part.iter().any(|part| name.contains(part)), "{name} is left out");
        }
    }
    let values = names.iter().map(|(ours, name)| (ours.clone(), start(name, own[ours].dims(), dtype)));
    store.load(&values.collect()).unwrap(); // fails where a tensor of ours has no name there
    (encoder, store, names)
}

#[test]
fn a_wav2vec2_conformer_is_that_of_transformers() {
    let golden = Golden::open("conformer_wav2vec2");
    for (prefix, dtype, features, gradients) in
        [("f64", DType::F64, 1e-9, 1e-9), ("f32", DType::F32, 2e-5, 2e-5)]
    {
        let (encoder, store, names) = wav2vec2(&golden, dtype);
        let key = |name: &str| format!("{prefix}.{name}");
        let x = Var::from_tensor(&drawn("x", &[3, 9, 12], dtype)).unwrap();
        let y = encoder.places(&x, None, Mode::Train(StepRng::new(0))).unwrap();
        golden.compare(&key("train"), &y, features);
        let loss = (y * drawn("loss", &[3, 9, 12], dtype)).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        golden.compare(&key("gradient.x"), grads.get(&x).unwrap(), gradients);
        let collected = Gradients::collect(&store, grads);
        for id in store.ids() {
            let key = key(&format!("gradient.{}", names[store.get(id).name()]));
            compare_gradient(&golden, &key, &collected.get(id).unwrap().unwrap(), gradients);
        }
        for buffer in store.buffers() {
            golden.compare(&key(&names[buffer.name()]), buffer.var().as_tensor(), features);
        }
        golden.compare(&key("eval"), &encoder.places(&x, None, Mode::Eval).unwrap(), features);
        // One batch with lengths gives what the library gives clip by clip.
        let mask = Mask::from_lengths(&[9, 4, 7], 9).unwrap();
        let batch = encoder.encode(&x, Some(&mask), Mode::Eval).unwrap();
        for b in 0..3 {
            golden.compare(&key(&format!("clip.{b}")), &batch.narrow(0, b, 1).unwrap(), features);
        }
    }
    golden.finish();
}

#[test]
fn names_of_a_wav2vec2_checkpoint_are_found_and_others_are_not() {
    let layer = "layers.11.conv.batch_norm.running_var";
    let name = "wav2vec2_conformer.encoder.layers.11.conv_module.batch_norm.running_var";
    assert_eq!(from_wav2vec2_conformer(name).as_deref(), Some(layer));
    // As a file of the bare model has it.
    let name = "encoder.layers.0.final_layer_norm.bias";
    assert_eq!(from_wav2vec2_conformer(name).as_deref(), Some("layers.0.norm.bias"));
    let unknown = [
        "",
        "encoder.layers",
        "encoder.layers.x.ffn1.output_dense.weight",
        "encoder.layers.0.ffn3.weight",
        "encoder.layers.0.self_attn.linear_pos.bias",
        "encoder.layers.0.ffn1.output_dense.running_mean",
        "encoder.layer_norm.running_mean",
        "layers.0.norm.weight",
        "quantizer.codevectors",
    ];
    for name in unknown {
        assert_eq!(from_wav2vec2_conformer(name), None, "{name}");
    }
}

#[test]
fn configurations_of_other_models_are_refused() {
    let error = |text: &str| {
        let config: toml::Table = toml::from_str(text).unwrap();
        ConformerConfig::from_hugging_face(config).unwrap_err().to_string()
    };
    assert!(
        error("model_type = 'wav2vec2'")
            .contains("model_type = \"wav2vec2\": must be \"wav2vec2-conformer\"")
    );
    assert!(error("hidden_size = 3").contains("model_type"));
    let of = |line: &str| error(&format!("model_type = 'wav2vec2-conformer'\n{line}"));
    assert!(of("position_embeddings_type = 'rotary'").contains("use a checkpoint whose name has `rel-pos`"));
    assert!(of("hidden_act = 'gelu_new'").contains("hidden_act = \"gelu_new\": allowed: swish, silu, gelu"));
    assert!(of("layer_norm_eps = 1e-6").contains("layer_norm_eps"));
    assert!(of("num_attention_heads = 7").contains("heads = 7: must divide dim = 768"));
    assert!(of("hidden_size = 'wide'").contains("config.json"));

    let text = "model_type = 'wav2vec2-conformer'\nhidden_size = 1024\nnum_attention_heads = 16\n\
                intermediate_size = 4096\nnum_hidden_layers = 24\nhidden_act = 'swish'\nactivation_dropout = 0.0";
    let config: toml::Table = toml::from_str(text).unwrap();
    let config = ConformerConfig::from_hugging_face(config).unwrap();
    assert_eq!((config.dim, config.layers, config.heads, config.kernel), (1024, 24, 16, 31));
    assert_eq!((config.activation_dropout, config.weights_dropout), (Some(0.0), 0.1));
    assert_eq!((config.input, config.final_norm, config.conv_bias), (Input::None, true, false));
    assert_eq!(config.feed_forward, Some(4096));
}
