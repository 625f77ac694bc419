//! A Conformer of one layer against PyTorch; see `tests/golden/generate/conformer.py`.

use super::draws::uniform;
use candle_core::{DType, Device, Tensor, Var};
use mm_core::{Encoder, Mode, ParamStore, StepRng};
use mm_encoders::ConformerConfig;
use mm_testkit::Golden;

fn drawn(name: &str, shape: &[usize]) -> Tensor {
    Tensor::from_vec(uniform(name, shape.iter().product()), shape, &Device::Cpu).unwrap()
}

#[test]
fn a_layer_is_pytorchs() {
    let golden = Golden::open("conformer");
    let config = ConformerConfig { dim: 8, layers: 1, heads: 2, kernel: 3, dropout: 0.0 };
    let mut store = ParamStore::new(0, DType::F64, &Device::Cpu);
    let encoder = config.build(store.root(), 5).unwrap();
    for p in store.params() {
        p.var().set(&(drawn(p.name(), p.var().dims()) * 0.6).unwrap()).unwrap();
    }
    let x = Var::from_tensor(&drawn("x", &[3, 7, 5])).unwrap();
    let y = encoder.forward(&x, Mode::Train(StepRng::new(0))).unwrap();
    golden.compare("train", &y, 1e-9);
    let grads = (y * drawn("loss", &[3, 8])).unwrap().sum_all().unwrap().backward().unwrap();
    golden.compare("gradient.x", grads.get(&x).unwrap(), 1e-9);
    for p in store.params() {
        let key = format!("gradient.{}", p.name());
        // The softmax does not see this one: its gradient is zero, and what is there is rounding.
        let blind = p.name().ends_with("key.bias");
        let scale = if blind { 1e-3 } else { 1e-9 };
        golden.compare(&key, grads.get(p.var()).unwrap(), scale);
    }
    golden.compare("eval", &encoder.forward(&x, Mode::Eval).unwrap(), 1e-9);
    golden.finish();
}
