use crate::fixture::{Fixture, PRECISIONS, exact, rounded};
use crate::nets::{TanhEncoder, boxed, one_step, set};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::mmpareto::{self, MmParetoConfig};
use mm_core::{Batch, Composite, Gradients, Modal, Modalities, Mode, Multimodal, ParamStore};
use mm_kernels::cross_entropy;
use mm_testkit::toy::{self, Toy};
use std::collections::BTreeMap;

const NAMES: [&str; 2] = ["audio", "visual"];
const HEAD: &str = "head.weight";

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    key.contains(".param.") || last.starts_with("x_") || matches!(last, "labels" | "vectors" | "v11_v12_v22")
}

#[test]
fn mmpareto() -> Result<()> {
    let golden = Fixture::open("mmpareto", is_input);
    for (prefix, dtype) in PRECISIONS {
        for audio in ["agree", "conflict"] {
            for visual in ["agree", "conflict"] {
                case(&golden, prefix, &format!("audio_{audio}_visual_{visual}"), dtype)?;
            }
        }
    }
    for name in ["n2", "n3", "n3b"] {
        let key = |what: &str| format!("minnorm.{name}.{what}");
        let dim = golden.shape(&key("vectors"))[1];
        let values = golden.values(&key("vectors"));
        let vectors: Vec<&[f64]> = values.chunks(dim).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let products: Vec<Vec<f64>> =
            vectors.iter().map(|a| vectors.iter().map(|b| dot(a, b)).collect()).collect();
        let (weights, square) = mmpareto::min_norm(&products)?;
        // Theirs is an iteration that stops at 1e-5.
        golden.compare(&key("coef"), &weights, SOLVER);
        golden.compare(&key("norm2"), &square, SOLVER);
    }
    for case in golden.variants("minnorm.two.", "") {
        let key = |what: &str| format!("minnorm.two.{case}.{what}");
        let [aa, ab, bb] = golden.values(&key("v11_v12_v22"))[..] else { panic!("three products") };
        let (weight, square) = mmpareto::min_norm_pair(aa, ab, bb);
        golden.compare(&key("gamma_cost"), &[weight, square], exact(DType::F64));
    }
    golden.finish();
    Ok(())
}

const SOLVER: f64 = 1e-5;

fn ours(theirs: &str) -> String {
    let (layer, rest) = theirs.split_once('.').expect("layer.parameter");
    match (layer.strip_suffix("_net"), layer.strip_prefix("head_")) {
        (Some(m), _) => format!("encoder.{m}.{rest}"),
        (_, Some(m)) => format!("head.{m}.{rest}"),
        _ => format!("fusion.{rest}"),
    }
}

fn net(golden: &Fixture, prefix: &str, dtype: DType) -> Result<Toy> {
    let key = |name: &str| format!("{prefix}.param.{name}");
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = Modalities::new(NAMES).expect("two names");
    let encoders = Modal::try_from_fn(2, |m| {
        let shape = golden.shape(&key(&format!("{}_net.weight", names.name(m))));
        boxed(TanhEncoder::new(store.root().at("encoder").at(names.name(m)), (shape[0], shape[1]), true))
    })?;
    let dims = encoders.map(|_, encoder| encoder.dim());
    let classes = golden.shape(&key(HEAD))[0];
    let fusion = toy::split(store.root().at("fusion"), &names, &dims, classes)?;
    let model = Composite::new(names, classes, encoders, Some(fusion))?.with_heads(store.root())?;
    for name in golden.under(&key("")) {
        let value = golden.input(&key(&name), dtype);
        if name == HEAD {
            let (first, second) = (dims.values()[0], dims.values()[1]);
            set(&store, "fusion.audio.weight", &value.narrow(1, 0, first)?)?;
            set(&store, "fusion.visual.weight", &value.narrow(1, first, second)?)?;
        } else {
            set(&store, &ours(&name), &value)?;
        }
    }
    Ok(Toy { model, store })
}

fn gradient(all: &BTreeMap<String, Tensor>, theirs: &str) -> Result<Tensor> {
    if theirs == HEAD {
        return Tensor::cat(&[&all["fusion.audio.weight"], &all["fusion.visual.weight"]], 1);
    }
    Ok(all[&ours(theirs)].clone())
}

fn case(golden: &Fixture, precision: &str, name: &str, dtype: DType) -> Result<()> {
    let prefix = format!("{precision}.{name}");
    let (key, tol) = (|what: &str| format!("{prefix}.{what}"), exact(dtype));
    let toy = net(golden, &prefix, dtype)?;
    let inputs = ["x_a", "x_v"].iter().map(|x| golden.input(&key(x), dtype)).collect();
    let batch = Batch::new(inputs, golden.labels(&format!("{name}.labels")))?;

    let forward = toy.model.forward(&batch, Mode::Eval)?;
    let mut losses = vec![cross_entropy(&forward.fused, &batch.labels, None)?];
    for head in forward.heads.expect("heads").values() {
        losses.push(cross_entropy(head, &batch.labels, None)?);
    }
    golden.compare(&key("losses_mm_a_v"), &Tensor::stack(&losses, 0)?, tol);
    let of = |loss: &Tensor| -> Result<BTreeMap<String, Tensor>> {
        let found = Gradients::collect(&toy.store, loss.backward()?);
        let mut named = BTreeMap::new();
        for id in toy.store.ids() {
            if let Some(g) = found.get(id)? {
                named.insert(toy.store.get(id).name().to_owned(), g);
            }
        }
        Ok(named)
    };
    let (multimodal, unimodal) = (of(&losses[0])?, of(&(&losses[1] + &losses[2])?)?);
    for theirs in golden.under(&key("g_mm.")) {
        golden.compare(&key(&format!("g_mm.{theirs}")), &gradient(&multimodal, &theirs)?, tol);
        golden.compare(&key(&format!("g_uni.{theirs}")), &gradient(&unimodal, &theirs)?, tol);
    }

    let (report, found) = one_step(&toy, &batch, MmParetoConfig::default().build().expect("valid"))?;
    for theirs in golden.under(&key("grad_final.")) {
        golden.compare(
            &key(&format!("grad_final.{theirs}")),
            &gradient(&found.gradients, &theirs)?,
            rounded(dtype),
        );
    }
    for (m, modality) in NAMES.into_iter().enumerate() {
        let seen = |what: &str| crate::nets::observed(&report, what)[m];
        golden.compare(&key(&format!("cos_{modality}")), &seen("cosine"), tol);
        let own = seen("unimodal_weight");
        golden.compare(&key(&format!("{modality}_k_mm_uni")), &[1.0 - own, own], rounded(dtype));
    }
    Ok(())
}
