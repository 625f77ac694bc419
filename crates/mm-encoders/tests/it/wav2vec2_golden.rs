//! Wav2Vec2 against transformers; see `tests/golden/generate/wav2vec2.py`.

use super::draws::uniform;
use candle_core::{DType, Device, Tensor};
use mm_core::{Mode, ParamStore, StepRng};
use mm_encoders::wav2vec2::{Preprocessor, SpanMask, from_hugging_face_name};
use mm_encoders::{Wav2Vec2, Wav2Vec2Config};
use mm_testkit::Golden;
use std::collections::BTreeSet;

const BATCH: usize = 3;
const SAMPLES: usize = 400;
const LENGTHS: [usize; BATCH] = [400, 283, 150];

fn drawn(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let values = uniform(name, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The value with which a parameter starts, as `start` of the script has it.
fn start(name: &str, shape: &[usize]) -> Tensor {
    let u = drawn(name, shape, DType::F64);
    if name.ends_with("norm.weight") || name.ends_with("original0") {
        return u.affine(0.2, 1.0).unwrap();
    }
    let fan: usize = shape.iter().skip(1).product();
    (u * if shape.len() == 1 { 0.3 } else { (6.0 / fan as f64).sqrt() }).unwrap()
}

fn text(golden: &Golden, key: &str) -> toml::Value {
    toml::from_str(golden.metadata(key).unwrap()).unwrap()
}

fn config(golden: &Golden, case: &str) -> Wav2Vec2Config {
    let config = Wav2Vec2Config::from_hugging_face(text(golden, &format!("{case}.config"))).unwrap();
    Wav2Vec2Config { freeze_features: false, ..config }
}

/// The encoder with the reference's values, put in by the reference's names.
fn build(golden: &Golden, case: &str, dtype: DType) -> (Wav2Vec2, ParamStore) {
    let config = config(golden, case);
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let encoder = config.build(store.root()).unwrap();
    let mut left: BTreeSet<&str> = store.params().iter().map(mm_core::Param::name).collect();
    for name in golden.metadata(&format!("{case}.model")).unwrap().lines() {
        let Some(own) = config.tensor_name(name) else {
            assert_eq!(name, "masked_spec_embed");
            continue;
        };
        let var = store.find(&own).unwrap_or_else(|| panic!("there is no parameter `{own}`")).var();
        let value = start(&format!("{case}.{name}"), var.dims());
        var.set(&value.to_dtype(dtype).unwrap()).unwrap();
        assert!(left.remove(own.as_str()), "two tensors are called `{own}`");
    }
    assert!(left.is_empty(), "no tensor of the reference for {left:?}");
    (encoder, store)
}

fn input(case: &str, lengths: Option<&[usize]>, dtype: DType) -> Tensor {
    let mut values = uniform(&format!("{case}.x"), BATCH * SAMPLES);
    for (row, &length) in values.chunks_exact_mut(SAMPLES).zip(lengths.unwrap_or(&[])) {
        row[length..].fill(0.0);
    }
    Tensor::from_vec(values, (BATCH, SAMPLES), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn follows(golden: &Golden, case: &str, batch: &str, lengths: Option<&[usize]>) {
    let kinds = [(DType::F64, 1e-8, 1e-8, 1e-3), (DType::F32, 1e-4, 1e-3, 10.0)];
    for (dtype, frames, gradients, blind) in kinds {
        let (encoder, store) = build(golden, case, dtype);
        let key = |part: &str| format!("{case}.{batch}.{part}");
        let x = input(case, lengths, dtype);
        golden.compare(&key("eval"), &encoder.frames(&x, lengths, Mode::Eval).unwrap(), frames);
        let y = encoder.frames(&x, lengths, Mode::Train(StepRng::new(1))).unwrap();
        golden.compare(&key("train"), &y, frames);
        let loss = (&y * drawn("loss", y.dims(), dtype)).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        for name in golden.metadata(&format!("{case}.model")).unwrap().lines() {
            let Some(own) = encoder.config().tensor_name(name) else { continue };
            let grad = grads.get(store.find(&own).unwrap().var()).unwrap();
            // The softmax does not see this one: its gradient is zero, and what is there is rounding.
            let tolerance = if own.ends_with("k_proj.bias") { blind } else { gradients };
            golden.compare(&key(&format!("gradient.{name}")), grad, tolerance);
        }
    }
}

#[test]
fn frames_and_gradients_are_those_of_transformers() {
    let golden = Golden::open("wav2vec2");
    follows(&golden, "group", "whole", None);
    follows(&golden, "layer", "whole", None);
    follows(&golden, "layer", "padded", Some(&LENGTHS));
    for other in ["spans.", "preprocessor."] {
        golden.skip(other, "the other tests'");
    }
    golden.finish();
}

#[test]
fn lengths_of_whole_clips_change_nothing() {
    let golden = Golden::open("wav2vec2");
    for case in ["group", "layer"] {
        let (encoder, _) = build(&golden, case, DType::F64);
        let x = input(case, None, DType::F64);
        let y = encoder.frames(&x, Some(&[SAMPLES; BATCH]), Mode::Eval).unwrap();
        golden.compare(&format!("{case}.whole.eval"), &y, 1e-8);
    }
}

#[test]
fn spans_are_counted_as_in_transformers() {
    let golden = Golden::open("wav2vec2");
    let settings: Vec<SpanMask> = golden
        .values("spans.settings")
        .chunks_exact(3)
        .map(|s| SpanMask { probability: s[0], length: s[1] as usize, at_least: s[2] as usize })
        .collect();
    let (cases, counts) = (golden.labels("spans.cases"), golden.values("spans.counts"));
    assert_eq!(cases.len(), 3 * 450);
    for (case, count) in cases.chunks_exact(3).zip(counts.chunks_exact(2)) {
        let [setting, places, valid] = [case[0], case[1], case[2]].map(|x| x as usize);
        let spans = settings[setting].spans(valid, places, count[0]);
        assert_eq!(spans as f64, count[1], "{:?}, {valid} of {places}, r = {}", settings[setting], count[0]);
    }
}

#[test]
fn waveforms_are_prepared_as_in_transformers() {
    let golden = Golden::open("wav2vec2");
    let published = Preprocessor::from_hugging_face(text(&golden, "preprocessor")).unwrap();
    assert_eq!(published, Preprocessor::default());
    let clips: Vec<Vec<f32>> = [50usize, 33, 20]
        .map(|n| uniform(&format!("clip.{n}"), n).iter().map(|u| (3.0 * u + 0.5) as f32).collect())
        .to_vec();
    for (key, do_normalize) in [("preprocessor.normal", true), ("preprocessor.plain", false)] {
        let preprocessor = Preprocessor {
            do_normalize,
            padding_value: -0.25,
            return_attention_mask: true,
            ..published.clone()
        };
        let made = preprocessor.batch(&clips, 16_000, &Device::Cpu).unwrap();
        assert_eq!(made.values.dtype(), DType::F32);
        golden.compare(key, &made.values, 1e-6);
        let lengths: Vec<u32> = made.lengths.unwrap().iter().map(|&l| l as u32).collect();
        assert_eq!(lengths, golden.labels("preprocessor.lengths"));
    }
}

#[test]
fn names_of_checkpoints_are_understood() {
    let golden = Golden::open("wav2vec2");
    for case in ["group", "layer"] {
        let mut config = config(&golden, case);
        config.apply_spec_augment = true;
        for freeze_features in [false, true] {
            config.freeze_features = freeze_features;
            let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
            config.build(store.root()).unwrap();
            let own: BTreeSet<String> = store.tensors().into_keys().collect();
            for kind in ["model", "pretraining", "ctc"] {
                let names = golden.metadata(&format!("{case}.{kind}")).unwrap();
                let old = names
                    .replace("conv.parametrizations.weight.original0", "conv.weight_g")
                    .replace("conv.parametrizations.weight.original1", "conv.weight_v");
                assert_ne!(names, old);
                for names in [names, &old] {
                    let mapped: Vec<String> = names.lines().filter_map(from_hugging_face_name).collect();
                    assert_eq!(mapped.len(), own.len());
                    assert_eq!(mapped.into_iter().collect::<BTreeSet<_>>(), own);
                }
            }
        }
        // An encoder of fewer layers takes the names of those that it has.
        config.layers = Some(1);
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        config.build(store.root()).unwrap();
        let names = golden.metadata(&format!("{case}.ctc")).unwrap();
        let mapped: BTreeSet<String> = names.lines().filter_map(|name| config.tensor_name(name)).collect();
        assert_eq!(mapped, store.tensors().into_keys().collect());
    }
    for other in
        ["lm_head.bias", "classifier.weight", "adapter.proj.weight", "", "wav2vec2", "encoders.layers"]
    {
        assert_eq!(from_hugging_face_name(other), None, "{other}");
    }
    assert_eq!(from_hugging_face_name("encoder.layers.0.adapter_layer.norm.weight"), None);
}
