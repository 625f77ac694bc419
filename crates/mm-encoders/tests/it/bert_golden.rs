//! BERT and DistilBERT against transformers; see `tests/golden/generate/bert.py`.

use super::draws::uniform;
use candle_core::{DType, Device, Tensor};
use mm_core::model::to_host;
use mm_core::{Encoder, Gradients, Mode, ParamStore, StepRng};
use mm_encoders::bert::{Family, Pooling, from_bert, from_distilbert};
use mm_encoders::{Bert, BertConfig, Mask};
use mm_testkit::Golden;
use std::collections::BTreeMap;

fn drawn(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let values = uniform(name, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// The value with which a tensor of a checkpoint starts.
fn start(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let (scale, shift) = match shape.len() {
        1 if name.ends_with("weight") => (0.2, 1.0),
        1 => (0.2, 0.0),
        _ => (0.5, 0.0),
    };
    drawn(name, shape, DType::F64).affine(scale, shift).unwrap().to_dtype(dtype).unwrap()
}

/// Our names and those of the checkpoint; every tensor of ours must have one there.
fn names(golden: &Golden, family: &str, store: &ParamStore) -> BTreeMap<String, String> {
    let own = store.tensors();
    let from = if family == "bert" { from_bert } else { from_distilbert };
    let heads = ["bert.pooler.", "cls.", "vocab_"];
    let mut names = BTreeMap::new();
    for name in golden.metadata(&format!("{family}.names")).unwrap().lines() {
        match from(name) {
            Some(ours) => {
                assert!(own.contains_key(&ours), "{name} becomes {ours}, which the encoder does not have");
                assert!(names.insert(ours, name.to_owned()).is_none(), "{name}");
                // The same from a file of the bare model.
                let bare = name.strip_prefix(&format!("{family}.")).unwrap();
                assert_eq!(from(bare), from(name));
            }
            None => assert!(heads.iter().any(|part| name.starts_with(part)), "{name} is left out"),
        }
    }
    names
}

fn config(golden: &Golden, family: &str) -> BertConfig {
    let text = golden.metadata(&format!("{family}.config")).unwrap();
    BertConfig::from_hugging_face(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
}

fn load(config: &BertConfig, names: &BTreeMap<String, String>, dtype: DType) -> (Bert, ParamStore) {
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let encoder = config.build(store.root()).unwrap();
    let values = store.tensors().into_iter().map(|(ours, own)| {
        let value = start(&names[&ours], own.dims(), dtype);
        (ours, value)
    });
    store.load(&values.collect()).unwrap();
    (encoder, store)
}

#[test]
fn a_padded_batch_is_that_of_transformers() {
    let golden = Golden::open("bert");
    let ids = golden.tensor("ids");
    let floats = ids.to_dtype(DType::F32).unwrap();
    let mask = Mask::from_tensor(&ids.ne(0i64).unwrap()).unwrap();
    for family in ["bert", "distilbert"] {
        let first = config(&golden, family);
        assert_eq!(first.family == Family::Bert, family == "bert");
        let mean = BertConfig { pooling: Pooling::Mean, ..first.clone() };
        for (prefix, dtype, features, slopes) in
            [("f64", DType::F64, 1e-9, 1e-9), ("f32", DType::F32, 2e-5, 2e-5)]
        {
            let key = |name: &str| format!("{family}.{prefix}.{name}");
            let mut store = ParamStore::new(0, dtype, &Device::Cpu);
            first.build(store.root()).unwrap();
            let names = names(&golden, family, &store);
            let (encoder, store) = load(&first, &names, dtype);
            let (averaging, _) = load(&mean, &names, dtype);
            for (name, mode) in [("train", Mode::Train(StepRng::new(0))), ("eval", Mode::Eval)] {
                let hidden = encoder.tokens(&ids, Some(&mask), mode).unwrap();
                let keep = ids.ne(0i64).unwrap().unsqueeze(2).unwrap().to_dtype(dtype).unwrap();
                let hidden = hidden.broadcast_mul(&keep).unwrap();
                golden.compare(&key(&format!("{name}.hidden")), &hidden, features);
                // Through the trait, as integers and as floats: padding is found by its id.
                for ids in [&ids, &floats, &ids.to_dtype(DType::U32).unwrap()] {
                    let y = encoder.forward(ids, mode).unwrap();
                    golden.compare(&key(&format!("{name}.first")), &y, features);
                    let y = averaging.forward(ids, mode).unwrap();
                    golden.compare(&key(&format!("{name}.mean")), &y, features);
                }
            }

            let mode = Mode::Train(StepRng::new(0));
            let hidden = encoder.tokens(&ids, Some(&mask), mode).unwrap();
            let parts = [("first", hidden.narrow(1, 0, 1).unwrap().squeeze(1)), ("mean", mask.mean(&hidden))];
            let [first, mean] = parts
                .map(|(name, y)| (y.unwrap() * drawn(name, &[3, 12], dtype)).unwrap().sum_all().unwrap());
            let loss = (first + mean).unwrap();
            let gradients = Gradients::collect(&store, loss.backward().unwrap());
            gradients.check_reached(&store).unwrap();
            for id in store.ids() {
                let name = store.get(id).name();
                let key = key(&format!("gradient.{}", names[name]));
                let gradient = gradients.get(id).unwrap().unwrap();
                if name.ends_with("self.key.bias") {
                    golden.skip(
                        &key,
                        "the softmax does not see it: the gradient is zero, and this is rounding",
                    );
                    assert!(
                        to_host(&gradient).unwrap().iter().all(|g| g.abs() < slopes),
                        "{name}: {gradient}"
                    );
                } else {
                    golden.compare(&key, &gradient, slopes);
                }
            }
        }
    }
    golden.finish();
}

#[test]
fn the_first_layers_of_a_checkpoint_are_a_shorter_network() {
    let golden = Golden::open("bert");
    let whole = config(&golden, "bert");
    let mut store = ParamStore::new(0, DType::F64, &Device::Cpu);
    whole.build(store.root()).unwrap();
    let names = names(&golden, "bert", &store);
    let (short, store) = load(&BertConfig { layers: 1, ..whole.clone() }, &names, DType::F64);
    assert!(store.params().iter().all(|p| !p.name().contains("layer.1.")));
    // With the second layer's maps at zero, that layer only normalises.
    let (long, all) = load(&whole, &names, DType::F64);
    for p in all.params().iter().filter(|p| p.name().contains("layer.1.")) {
        let value = if p.name().ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
        p.var().set(&Tensor::full(value, p.var().shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let ids = Tensor::new(&[[2u32, 7, 5, 3]], &Device::Cpu).unwrap();
    let of = |encoder: &Bert| encoder.forward(&ids, Mode::Eval).unwrap();
    let normal = |x: &Tensor| mm_kernels::layer_norm(x, None, None, 1e-12).unwrap();
    mm_testkit::assert_close(&of(&long), &normal(&normal(&of(&short))), 1e-10);
}
