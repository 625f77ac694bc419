//! One body of checks for all fusions.

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::{sum, to_host};
use mm_core::{
    Features, Fusion, Modal, Modalities, Modality, Mode, Multimodal, ParamStore, Presence, StepRng,
};
use mm_fusion::{FusionConfig, catalogue};
use mm_testkit::gradients::probe;
use mm_testkit::{assert_close, check_gradients, toy};

const CLASSES: usize = 3;
const WIDTHS: [&[usize]; 4] = [&[4], &[4, 4], &[4, 6], &[3, 5, 2]];

struct Case {
    name: &'static str,
    fusion: Box<dyn Fusion>,
    store: ParamStore,
    dims: &'static [usize],
}

/// Small enough for finite differences, with every setting that has an effect away from its default.
fn config(name: &str) -> FusionConfig {
    let text = match name {
        "mid-mlp" => "kind = \"mid-mlp\"\nwidth = 5\ndropout = 0.3",
        "gated" => "kind = \"gated\"\nwidth = 3",
        "transformer" => "kind = \"transformer\"\nheads = 2\nfeed_forward = 1\ndropout = 0.3",
        _ => return FusionConfig::named(name).unwrap(),
    };
    toml::from_str(text).unwrap()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for info in catalogue() {
        for dims in WIDTHS {
            let modalities = toy::modalities(dims.len()).unwrap();
            let config = config(info.name);
            if config.check(&modalities).is_err() {
                assert_eq!(
                    (dims.len(), matches!(info.name, "film" | "gated" | "mmtm")),
                    (1, true),
                    "{}",
                    info.name
                );
                continue;
            }
            let mut store = ParamStore::new(7, DType::F64, &Device::Cpu);
            let widths = dims.iter().copied().collect();
            let fusion = config.build(store.root().at("fusion"), &modalities, &widths, CLASSES).unwrap();
            cases.push(Case { name: info.name, fusion, store, dims });
        }
    }
    assert_eq!(cases.len(), 8 * 4 - 3);
    cases
}

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut draws = StepRng::new(seed).stream("it").draws();
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draws.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn features(dims: &[usize], rows: usize) -> Features {
    dims.iter().enumerate().map(|(m, &dim)| normal(m as u64, &[rows, dim])).collect()
}

fn everywhere(dims: &[usize]) -> Modal<Option<Presence>> {
    dims.iter().map(|_| None).collect()
}

/// Row r lacks modality r mod M, and the last row everything but the first modality.
fn gaps(dims: &[usize], rows: usize) -> Modal<Option<Presence>> {
    let there =
        |m: usize| (0..rows).map(|r| if r + 1 == rows { m == 0 } else { r % dims.len() != m }).collect();
    (0..dims.len()).map(|m| Some(Presence::new(there(m), DType::F64, &Device::Cpu).unwrap())).collect()
}

fn train(seed: u64) -> Mode {
    Mode::Train(StepRng::new(seed).stream("it"))
}

#[test]
fn gradients_of_parameters_and_features_are_right() {
    let rows = 4;
    for case in cases() {
        let inputs: Vec<Var> =
            features(case.dims, rows).values().iter().map(|x| Var::from_tensor(x).unwrap()).collect();
        for (mode, gappy) in [(Mode::Eval, false), (train(1), true)] {
            let present = if gappy { gaps(case.dims, rows) } else { everywhere(case.dims) };
            let loss = || {
                let z: Features = inputs.iter().map(|v| v.as_tensor().clone()).collect();
                let z = z.try_map(|m, h| present[m].as_ref().map_or(Ok(h.clone()), |p| p.apply(h)))?;
                probe(&case.fusion.fuse(&z, &present, mode)?)
            };
            check_gradients(&case.store, &inputs, 1e-6, loss).unwrap();
        }
    }
}

#[test]
fn gradients_through_tokens_are_right() {
    for case in cases().iter().filter(|case| case.dims == [4, 6]) {
        let inputs = [normal(1, &[2, 3, 4]), normal(2, &[2, 2, 6])].map(|x| Var::from_tensor(&x).unwrap());
        let loss = || {
            let z: Features = inputs.iter().map(|v| v.as_tensor().clone()).collect();
            probe(&case.fusion.fuse(&z, &everywhere(case.dims), Mode::Eval)?)
        };
        check_gradients(&case.store, &inputs, 1e-6, loss).unwrap();
    }
}

#[test]
fn shares_add_up_to_the_logits() {
    for case in cases() {
        let z = features(case.dims, 5);
        let fused = case.fusion.fuse(&z, &everywhere(case.dims), Mode::Eval).unwrap();
        assert_eq!(fused.dims(), [5, CLASSES]);
        match case.fusion.split_logits(&z).unwrap() {
            Some(parts) => {
                assert!(matches!(case.name, "late-linear" | "concat" | "sum"), "{}", case.name);
                assert_eq!(to_host(&sum(parts.values()).unwrap()).unwrap(), to_host(&fused).unwrap());
            }
            None => assert!(!matches!(case.name, "late-linear" | "concat" | "sum"), "{}", case.name),
        }
    }
}

#[test]
fn a_row_alone_is_the_row_in_its_batch() {
    for case in cases() {
        let z = features(case.dims, 6);
        for present in [everywhere(case.dims), gaps(case.dims, 6)] {
            let zeroed = z.map(|m, h| present[m].as_ref().map_or(h.clone(), |p| p.apply(h).unwrap()));
            let all = case.fusion.fuse(&zeroed, &present, Mode::Eval).unwrap();
            for row in 0..6 {
                let one = zeroed.map(|_, h| h.narrow(0, row, 1).unwrap());
                let there = present.map(|_, p| {
                    p.as_ref().map(|p| Presence::new(vec![p.rows()[row]], DType::F64, &Device::Cpu).unwrap())
                });
                let alone = case.fusion.fuse(&one, &there, Mode::Eval).unwrap();
                assert_close(&alone, &all.narrow(0, row, 1).unwrap(), 1e-12);
            }
        }
    }
}

#[test]
fn what_stands_in_a_missing_row_does_not_matter() {
    for info in catalogue() {
        let options = toy::Options { dims: vec![4, 6, 3], heads: true, ..toy::Options::default() };
        let made = options
            .build(|scope, modalities, dims, classes| {
                config(info.name).build(scope, modalities, dims, classes)
            })
            .unwrap();
        let mut batch = options.batch(1, 6).unwrap();
        batch.present = gaps(&options.dims, 6);
        let first = made.model.forward(&batch, Mode::Eval).unwrap().fused;
        for (m, x) in batch.inputs.iter_mut() {
            let p = batch.present[m].as_ref().unwrap();
            let garbage = normal(9, x.dims()).affine(100.0, 3.0).unwrap();
            let missing =
                (garbage.ones_like().unwrap() - p.apply(&garbage.ones_like().unwrap()).unwrap()).unwrap();
            *x = (&*x + (garbage * missing).unwrap()).unwrap();
        }
        let second = made.model.forward(&batch, Mode::Eval).unwrap().fused;
        assert_eq!(to_host(&first).unwrap(), to_host(&second).unwrap(), "{}", info.name);
        assert!(to_host(&first).unwrap().iter().all(|v| v.is_finite()));

        // One modality by masking, as unimodal predictions arise: finite, and blind to the others.
        let z = made.model.encode_all(&batch, Mode::Eval).unwrap();
        let alone = |z: &Features| {
            let logits =
                made.model.masked_logits(Modality::new(1), z, &everywhere(&options.dims), Mode::Eval);
            to_host(&logits.unwrap()).unwrap()
        };
        let other = z.map(|m, h| if m.index() == 1 { h.clone() } else { h.affine(3.0, 1.0).unwrap() });
        assert_eq!(alone(&z), alone(&other), "{}", info.name);
        assert!(alone(&z).iter().all(|v| v.is_finite()));
    }
}

#[test]
fn masked_tokens_are_unseen_even_where_they_are_not_zero() {
    let case = cases().into_iter().find(|c| c.name == "transformer" && c.dims == [4, 6]).unwrap();
    let (z, present) = (features(case.dims, 4), gaps(case.dims, 4));
    let zeroed = z.map(|m, h| present[m].as_ref().unwrap().apply(h).unwrap());
    let logits = |z: &Features| to_host(&case.fusion.fuse(z, &present, Mode::Eval).unwrap()).unwrap();
    assert_eq!(logits(&z), logits(&zeroed));
}

#[test]
fn the_order_of_the_modalities_does_not_matter() {
    for name in ["late-linear", "sum", "mid-mlp", "film", "gated", "mmtm", "transformer"] {
        let mut config = config(name);
        match &mut config {
            FusionConfig::Film(film) => film.conditioner = Some("b".to_owned()),
            FusionConfig::Gated(gated) => gated.gate = Some("b".to_owned()),
            _ => {}
        }
        let logits = |order: [usize; 3]| {
            let (names, dims) = (["a", "b", "c"], [3, 5, 2]);
            let modalities = Modalities::new(order.map(|i| names[i])).unwrap();
            let mut store = ParamStore::new(7, DType::F64, &Device::Cpu);
            let widths = order.iter().map(|&i| dims[i]).collect();
            let fusion = config.build(store.root().at("fusion"), &modalities, &widths, CLASSES).unwrap();
            let z = features(&dims, 4);
            let z = order.iter().map(|&i| z.values()[i].clone()).collect();
            fusion.fuse(&z, &everywhere(&dims), Mode::Eval).unwrap()
        };
        assert_close(&logits([2, 0, 1]), &logits([0, 1, 2]), 1e-12);
    }
}

#[test]
fn dropout_is_for_training_only_and_follows_its_key() {
    for case in cases() {
        let z = features(case.dims, 5);
        let bits = |mode| to_host(&case.fusion.fuse(&z, &everywhere(case.dims), mode).unwrap()).unwrap();
        assert_eq!(bits(train(1)), bits(train(1)), "{}", case.name);
        assert_eq!(bits(Mode::Eval), bits(Mode::Eval), "{}", case.name);
        let drops = matches!(case.name, "mid-mlp" | "transformer");
        assert_eq!(bits(train(1)) != bits(train(2)), drops, "{}", case.name);
        assert_eq!(bits(train(1)) != bits(Mode::Eval), drops, "{}", case.name);
    }
}

#[test]
fn tokens_are_averaged_except_by_the_transformer() {
    for case in cases().iter().filter(|case| case.dims == [4, 6] && case.name != "transformer") {
        let tokens: Features = [normal(1, &[2, 3, 4]), normal(2, &[2, 2, 6])].into_iter().collect();
        let means = tokens.map(|_, h| h.mean(1).unwrap());
        let logits = |z: &Features| case.fusion.fuse(z, &everywhere(case.dims), Mode::Eval).unwrap();
        assert_close(&logits(&tokens), &logits(&means), 1e-12);
    }
}

#[test]
fn every_fusion_learns_and_reaches_every_parameter() {
    let options = toy::Options { dims: vec![4, 6, 3], ..toy::Options::default() };
    let (train, test) = (options.batch(1, 60).unwrap(), options.batch(2, 60).unwrap());
    for info in catalogue() {
        let build = || {
            options.build(|scope, modalities, dims, classes| {
                FusionConfig::named(info.name)
                    .map_err(candle_core::Error::wrap)?
                    .build(scope, modalities, dims, classes)
            })
        };
        let runs = [build().unwrap(), build().unwrap()].map(|made| {
            // The class token starts far from the features: plain gradient descent needs longer steps there.
            let rate = if info.name == "transformer" { 0.2 } else { 0.05 };
            let losses = toy::descend(&made, &train, 60, rate).unwrap();
            let logits = made.model.forward(&test, Mode::Eval).unwrap().fused;
            (losses, toy::accuracy(&logits, &test.labels).unwrap())
        });
        assert_eq!(runs[0], runs[1], "{}: two runs with one seed", info.name);
        let (losses, accuracy) = &runs[0];
        assert!(losses[59] < 0.5 * losses[0], "{}: {losses:?}", info.name);
        assert!(*accuracy > 0.75, "{}: {accuracy}, by chance 0.33", info.name);
    }
}

#[test]
fn f32_agrees_with_f64() {
    for case in cases() {
        let mut store = ParamStore::new(7, DType::F32, &Device::Cpu);
        let modalities = toy::modalities(case.dims.len()).unwrap();
        let widths = case.dims.iter().copied().collect();
        let single =
            config(case.name).build(store.root().at("fusion"), &modalities, &widths, CLASSES).unwrap();
        let z = features(case.dims, 5);
        let present = gaps(case.dims, 5);
        let zeroed = z.map(|m, h| present[m].as_ref().unwrap().apply(h).unwrap());
        let narrow = zeroed.map(|_, h| h.to_dtype(DType::F32).unwrap());
        let expected = case.fusion.fuse(&zeroed, &present, train(1)).unwrap();
        assert_close(&single.fuse(&narrow, &present, train(1)).unwrap(), &expected, 2e-5);
    }
}
