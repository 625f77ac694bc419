//! Sequence encoders: gradients, masks, settings, errors.

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Gradients, Mode, ParamStore, StepRng};
use mm_encoders::conformer::Padding;
use mm_encoders::sequence::Network;
use mm_encoders::{Mask, SequenceConfig, SequenceEncoder};
use mm_testkit::gradients::probe;
use mm_testkit::{assert_close, check_gradients};

fn both() -> [SequenceConfig; 2] {
    let lstm = SequenceConfig { dim: 4, layers: 2, heads: 2, ..SequenceConfig::default() };
    [lstm.clone(), SequenceConfig { network: Network::Transformer, feed_forward: Some(6), ..lstm }]
}

fn build(config: &SequenceConfig, dtype: DType) -> (SequenceEncoder, ParamStore) {
    let mut store = ParamStore::new(3, dtype, &Device::Cpu);
    let encoder = config.build(store.root().at("encoder").at("video"), 3).unwrap();
    (encoder, store)
}

fn normal(shape: &[usize]) -> Tensor {
    let mut draws = StepRng::new(2).stream("it").draws();
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draws.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn train(seed: u64) -> Mode {
    Mode::Train(StepRng::new(seed).stream("it"))
}

#[test]
fn gradients_are_right() {
    let x = Var::from_tensor(&normal(&[3, 4, 3])).unwrap();
    let lengths = Mask::from_lengths(&[4, 0, 2], 4).unwrap();
    // A hole: an LSTM steps over it.
    let holes = Tensor::new(&[[1u32, 0, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]], &Device::Cpu).unwrap();
    let holes = Mask::from_tensor(&holes).unwrap();
    for config in both() {
        let (encoder, store) = build(&config, DType::F64);
        for mask in [None, Some(&lengths), Some(&holes)] {
            let loss = || probe(&encoder.encode(&x, mask, train(1))?);
            check_gradients(&store, std::slice::from_ref(&x), 1e-6, loss).unwrap();
        }
    }
}

#[test]
fn gradients_reach_every_parameter_and_one_place_is_enough() {
    for config in both() {
        let (encoder, store) = build(&config, DType::F64);
        for places in [1, 5] {
            let y = encoder.forward(&normal(&[2, places, 3]), train(1)).unwrap();
            let gradients = Gradients::collect(&store, probe(&y).unwrap().backward().unwrap());
            gradients.check_reached(&store).unwrap();
        }
    }
}

#[test]
fn a_clip_in_a_padded_batch_is_the_clip_alone() {
    for config in both() {
        let (encoder, _) = build(&config, DType::F64);
        let (padded, _) = build(&SequenceConfig { padding: Padding::Zeros, ..config }, DType::F64);
        let (x, lengths) = (normal(&[4, 7, 3]), [7, 3, 0, 5]);
        let mask = Mask::from_lengths(&lengths, 7).unwrap();
        let keep = Tensor::from_iter((0..84).map(|i| u8::from(i / 3 % 7 < lengths[i / 21])), &Device::Cpu);
        let keep = keep.unwrap().reshape((4, 7, 3)).unwrap();
        let batch = encoder.encode(&x, Some(&mask), Mode::Eval).unwrap();
        for filling in [0.0, f64::NAN] {
            let filling = Tensor::full(filling, (4, 7, 3), &Device::Cpu).unwrap();
            let other = keep.where_cond(&x, &filling).unwrap();
            let other = encoder.encode(&other, Some(&mask), Mode::Eval).unwrap();
            assert_eq!(to_host(&other).unwrap(), to_host(&batch).unwrap());
        }
        let filled = keep.where_cond(&x, &x.zeros_like().unwrap()).unwrap();
        let found = padded.forward(&filled, Mode::Eval).unwrap();
        assert_eq!(to_host(&found).unwrap(), to_host(&batch).unwrap());
        for (b, &length) in lengths.iter().enumerate() {
            let row = batch.narrow(0, b, 1).unwrap();
            if length == 0 {
                assert_eq!(to_host(&row).unwrap(), [0.0; 4]);
                continue;
            }
            let alone = x.narrow(0, b, 1).unwrap().narrow(1, 0, length).unwrap();
            assert_close(&encoder.forward(&alone, Mode::Eval).unwrap(), &row, 1e-12);
        }
    }
}

#[test]
fn long_sequences_do_not_overflow_the_stack() {
    let config = SequenceConfig { layers: 1, ..both()[0].clone() };
    let (encoder, store) = build(&config, DType::F32);
    let x = normal(&[1, 4000, 3]).to_dtype(DType::F32).unwrap();
    let y = encoder.forward(&x, train(1)).unwrap();
    let gradients = Gradients::collect(&store, y.sum_all().unwrap().backward().unwrap());
    assert!(gradients.global_norm().unwrap().is_finite());
}

#[test]
fn dropout_follows_its_key() {
    for config in both() {
        let of = |dropout: f64, mode| {
            let (encoder, _) = build(&SequenceConfig { dropout, ..config.clone() }, DType::F64);
            to_host(&encoder.forward(&normal(&[2, 5, 3]), mode).unwrap()).unwrap()
        };
        assert_eq!(of(0.3, train(1)), of(0.3, train(1)));
        assert_ne!(of(0.3, train(1)), of(0.3, train(2)));
        assert_eq!(of(0.3, Mode::Eval), of(0.0, train(1)));
        let (rare, never) = (of(1e-13, train(1)), of(0.0, train(1)));
        assert!(rare.iter().zip(&never).all(|(a, b)| (a - b).abs() < 1e-11), "{rare:?} {never:?}");
    }
}

#[test]
fn parameters_have_pytorchs_names_and_starts() {
    let [lstm, transformer] = both();
    let (_, store) = build(&lstm, DType::F64);
    let names: Vec<&str> = store.params().iter().map(mm_core::Param::name).collect();
    let mut expected = Vec::new();
    for place in ["l0", "l0_reverse", "l1", "l1_reverse"] {
        let parts = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];
        expected.extend(parts.map(|part| format!("encoder.video.{part}_{place}")));
    }
    assert_eq!(names, expected);
    assert_eq!(store.find("encoder.video.weight_ih_l1_reverse").unwrap().var().dims(), [8, 4]);
    let bound = 0.5f64.sqrt();
    for p in store.params() {
        assert!(to_host(p.var()).unwrap().iter().all(|v| v.abs() < bound), "{}", p.name());
    }
    let (_, store) = build(&transformer, DType::F64);
    assert_eq!(store.len(), 2 + 2 * 12 + 2);
    for name in ["input.weight", "layers.1.self_attn.in_proj_weight", "layers.0.linear2.bias", "norm.bias"] {
        assert!(store.find(&format!("encoder.video.{name}")).is_some(), "{name}");
    }
}

#[test]
fn settings_are_checked_and_kept_in_files() {
    let [lstm, transformer] = both();
    let bad = [
        (SequenceConfig { dim: 5, ..lstm.clone() }, "dim", "must be even"),
        (SequenceConfig { layers: 0, ..lstm.clone() }, "layers", "at least 1"),
        (SequenceConfig { heads: 3, ..transformer.clone() }, "heads", "must divide dim = 4"),
        (SequenceConfig { feed_forward: Some(0), ..transformer.clone() }, "feed_forward", "at least 1"),
        (SequenceConfig { dropout: 1.0, ..lstm.clone() }, "dropout", "[0, 1)"),
    ];
    for (config, field, rule) in bad {
        let error = config.check().unwrap_err();
        assert!(error.field == field && error.rule.contains(rule), "{error}");
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        assert!(config.build(store.root(), 3).unwrap_err().to_string().contains(rule));
    }
    SequenceConfig { dim: 5, bidirectional: false, ..lstm.clone() }.check().unwrap();
    for config in [lstm, transformer] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<SequenceConfig>(&text).unwrap(), config);
    }
    assert!(toml::from_str::<SequenceConfig>("width = 3").unwrap_err().to_string().contains("unknown field"));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let padded = both().map(|config| SequenceConfig { padding: Padding::Zeros, ..config });
    for config in both().into_iter().chain(padded) {
        let (encoder, _) = build(&config, DType::F64);
        for shape in [&[2, 5, 4][..], &[2, 0, 3], &[2, 5, 0], &[2, 3]] {
            let x = Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
            let error = encoder.forward(&x, Mode::Eval).unwrap_err().to_string();
            assert!(error.contains("sequences (batch, places, 3)"), "{error}");
            assert!(error.contains(&format!("{shape:?}")), "{error}");
        }
    }
}
