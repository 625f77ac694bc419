//! Sequence encoders against PyTorch; see `tests/golden/generate/sequence.py`.

use super::draws::uniform;
use candle_core::{DType, Device, Tensor, Var};
use mm_core::{Mode, ParamStore, StepRng};
use mm_encoders::sequence::Network;
use mm_encoders::{Mask, SequenceConfig};
use mm_testkit::Golden;

fn drawn(name: &str, shape: &[usize]) -> Tensor {
    Tensor::from_vec(uniform(name, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

#[test]
fn lstms_and_transformers_are_pytorchs() {
    let golden = Golden::open("sequence");
    let lstm = SequenceConfig { dim: 8, dropout: 0.0, ..SequenceConfig::default() };
    let transformer = SequenceConfig {
        network: Network::Transformer,
        layers: 2,
        heads: 2,
        feed_forward: Some(12),
        ..lstm.clone()
    };
    let nets = [
        ("lstm", lstm.clone()),
        ("lstm2", SequenceConfig { layers: 2, ..lstm.clone() }),
        ("forwards", SequenceConfig { bidirectional: false, ..lstm }),
        ("transformer", transformer),
    ];
    let whole = Mask::from_lengths(&[6, 6, 6], 6).unwrap();
    let lengths = Mask::from_lengths(&[6, 2, 5], 6).unwrap();
    for (net, config) in nets {
        for (case, mask) in [("whole", None), ("whole", Some(&whole)), ("lengths", Some(&lengths))] {
            for (prefix, dtype, features, slopes) in
                [("f64", DType::F64, 1e-9, 1e-9), ("f32", DType::F32, 2e-5, 2e-5)]
            {
                let key = |name: &str| format!("{net}.{case}.{prefix}.{name}");
                let mut store = ParamStore::new(0, dtype, &Device::Cpu);
                let encoder = config.build(store.root(), 5).unwrap();
                for p in store.params() {
                    let scale = p.name().contains("norm") && p.name().ends_with("weight");
                    let value = drawn(p.name(), p.var().dims()).affine(0.6, f64::from(u8::from(scale)));
                    p.var().set(&value.unwrap().to_dtype(dtype).unwrap()).unwrap();
                }
                let x = Var::from_tensor(&drawn("x", &[3, 6, 5]).to_dtype(dtype).unwrap()).unwrap();
                let y = encoder.encode(&x, mask, Mode::Train(StepRng::new(0))).unwrap();
                golden.compare(&key("mean"), &y, features);
                golden.compare(&key("mean"), &encoder.encode(&x, mask, Mode::Eval).unwrap(), features);
                let weights = drawn("loss", &[3, 8]).to_dtype(dtype).unwrap();
                let grads = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
                golden.compare(&key("gradient.x"), grads.get(&x).unwrap(), slopes);
                for p in store.params() {
                    let key = key(&format!("gradient.{}", p.name()));
                    golden.compare(&key, grads.get(p.var()).unwrap(), slopes);
                }
            }
        }
    }
    golden.finish();
}
