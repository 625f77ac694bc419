//! Concat and late-linear against PyTorch's linear layer over concatenated features.

use candle_core::{Device, Tensor, Var};
use mm_core::{Features, Mode, ParamStore};
use mm_fusion::FusionConfig;
use mm_kernels::cross_entropy::cross_entropy;
use mm_testkit::{Golden, tolerance, toy};
use std::collections::BTreeMap;

#[test]
fn joint_head() {
    let golden = Golden::open("baselines");
    let labels = golden.labels("labels");
    for precision in ["f64", "f32"] {
        let get = |name: &str| golden.tensor(&format!("{precision}.joint.{name}"));
        let (weight, bias) = (get("W"), get("b"));
        let inputs = ["a", "v"].map(|m| Var::from_tensor(&get(m)).unwrap());
        let limit = tolerance(weight.dtype());
        let compare = |name: &str, actual: &Tensor| {
            golden.compare(&format!("{precision}.joint.{name}"), actual, limit);
        };
        for kind in ["concat", "late-linear"] {
            let mut store = ParamStore::new(0, weight.dtype(), &Device::Cpu);
            let (modalities, widths) = (toy::modalities(2).unwrap(), [6, 6].into_iter().collect());
            let config = FusionConfig::named(kind).unwrap();
            let fusion = config.build(store.root().at("fusion"), &modalities, &widths, 5).unwrap();
            let half = |start: usize| weight.narrow(1, start, 6).unwrap();
            let values = if kind == "concat" {
                vec![("fusion.weight", weight.clone())]
            } else {
                vec![("fusion.m0.weight", half(0)), ("fusion.m1.weight", half(6))]
            };
            let values = values.into_iter().chain([("fusion.bias", bias.clone())]);
            let values: BTreeMap<_, _> = values.map(|(name, value)| (name.to_owned(), value)).collect();
            store.load(&values).unwrap();

            let z: Features = inputs.iter().map(|v| v.as_tensor().clone()).collect();
            let logits = fusion.fuse(&z, &z.map(|_, _| None), Mode::Eval).unwrap();
            compare("out", &logits);
            let loss = cross_entropy(&logits, &labels, None).unwrap();
            compare("loss", &loss);
            let grads = loss.backward().unwrap();
            let grad = |name: &str| grads.get(store.find(name).unwrap().var()).unwrap().clone();
            compare("grad_a", grads.get(&inputs[0]).unwrap());
            compare("grad_v", grads.get(&inputs[1]).unwrap());
            compare("grad_b", &grad("fusion.bias"));
            let grad_weight = if kind == "concat" {
                grad("fusion.weight")
            } else {
                Tensor::cat(&["fusion.m0.weight", "fusion.m1.weight"].map(grad), 1).unwrap()
            };
            compare("grad_W", &grad_weight);
        }
        for other in ["multi_loss", "sum_ce"] {
            golden.skip(&format!("{precision}.{other}."), "these losses are tested in mm-balance");
        }
    }
    assert_eq!(golden.finish(), 2 * 6);
}
