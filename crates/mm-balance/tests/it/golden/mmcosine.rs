use crate::fixture::{Fixture, PRECISIONS, exact};
use crate::nets::{Identity, set};
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_balance::mmcosine::{self, MmCosineConfig};
use mm_core::{Batch, Composite, Encoder, Modal, Mode, Multimodal, ParamStore};
use mm_kernels::cross_entropy;
use mm_testkit::toy;

fn is_input(key: &str) -> bool {
    matches!(key.rsplit('.').next().unwrap_or(key), "a" | "v" | "W" | "labels")
}

#[test]
fn mmcosine() -> Result<()> {
    let golden = Fixture::open("mmcosine", is_input);
    for (prefix, dtype) in PRECISIONS {
        let scales = golden.variants(&format!("{prefix}."), "s");
        assert_eq!(scales.len(), 3);
        for scale in scales {
            case(&golden, &format!("{prefix}.s{scale}"), scale.parse().expect("a number"), dtype)?;
        }
    }
    golden.finish();
    Ok(())
}

fn case(golden: &Fixture, prefix: &str, scale: f64, dtype: DType) -> Result<()> {
    let (key, tol) = (|name: &str| format!("{prefix}.{name}"), exact(dtype));
    let inputs = ["a", "v"].map(|name| Var::from_tensor(&golden.input(&key(name), dtype)));
    let [a, v] = inputs.map(|x| x.expect("a variable"));
    let both = golden.input(&key("W"), dtype);
    let (wide, classes) = (a.dim(1)?, both.dim(0)?);
    let blocks = [both.narrow(1, 0, wide)?, both.narrow(1, wide, v.dim(1)?)?];

    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = toy::modalities(2)?;
    let widths = Modal::new(vec![wide, v.dim(1)?]);
    let fusion = MmCosineConfig { scale }.fusion(store.root().at("fusion"), &names, &widths, classes)?;
    for (m, block) in blocks.iter().enumerate() {
        set(&store, &format!("fusion.m{m}.weight"), &block.contiguous()?)?;
    }
    let encoders = widths.map(|_, &w| Box::new(Identity(w)) as Box<dyn Encoder>);
    let model = Composite::new(names, classes, encoders, Some(Box::new(fusion)))?;
    let features = Modal::new(vec![a.as_tensor().clone(), v.as_tensor().clone()]);
    let batch = Batch::new(features, golden.labels("labels"))?;
    let forward = model.forward(&batch, Mode::Eval)?;
    golden.compare(&key("out"), &forward.fused, tol);
    let split = forward.split.expect("a sum over modalities");
    for (m, (name, block)) in ["out_a", "out_v"].into_iter().zip(&blocks).enumerate() {
        golden.compare(&key(name), &split.values()[m], tol);
        golden.compare(&key(name), &mmcosine::logits(&batch.inputs.values()[m], block, scale)?, tol);
    }
    let loss = cross_entropy(&forward.fused, &batch.labels, None)?;
    golden.compare(&key("loss"), &loss, tol);
    let gradients = loss.backward()?;
    let of = |x: &Var| gradients.get(x.as_tensor()).expect("a gradient").clone();
    golden.compare(&key("grad_a"), &of(&a), tol);
    golden.compare(&key("grad_v"), &of(&v), tol);
    let weights =
        ["fusion.m0.weight", "fusion.m1.weight"].map(|name| of(store.find(name).expect(name).var()));
    golden.compare(&key("grad_W"), &Tensor::cat(&weights, 1)?, tol);
    Ok(())
}
