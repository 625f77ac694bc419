//! The Conformer.

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Gradients, Mode, ParamStore, StepRng};
use mm_encoders::conformer::{ConvolutionNorm, Input, Padding, positions, released_positions};
use mm_encoders::{Conformer, ConformerConfig, Mask};
use mm_testkit::gradients::probe;
use mm_testkit::{assert_close, check_gradients};

fn config() -> ConformerConfig {
    ConformerConfig { dim: 4, layers: 2, heads: 2, kernel: 3, ..ConformerConfig::default() }
}

fn build(config: &ConformerConfig, input: usize) -> (Conformer, ParamStore) {
    let mut store = ParamStore::new(3, DType::F64, &Device::Cpu);
    let encoder = config.build(store.root().at("encoder").at("audio"), input).unwrap();
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
fn gradients_of_a_layer_are_right() {
    let dropped = ConformerConfig { weights_dropout: 0.3, norm: ConvolutionNorm::Layer, ..config() };
    for config in [config(), dropped, ConformerConfig { released: true, ..config() }] {
        let mut store = ParamStore::new(5, DType::F64, &Device::Cpu);
        let layer = config.build_layer(store.root()).unwrap();
        let make = if config.released { released_positions } else { positions };
        let table = make(5, 4, DType::F64, &Device::Cpu).unwrap();
        let x = Var::from_tensor(&normal(&[2, 5, 4])).unwrap();
        for mode in [train(1), Mode::Eval] {
            let loss = || probe(&layer.forward(&x, &table, mode)?);
            check_gradients(&store, std::slice::from_ref(&x), 1e-6, loss).unwrap();
        }
    }
}

#[test]
fn gradients_with_lengths_are_right() {
    let config = ConformerConfig { layers: 1, final_norm: true, conv_bias: false, ..config() };
    let (encoder, store) = build(&config, 3);
    let x = Var::from_tensor(&normal(&[3, 5, 3])).unwrap();
    let mask = Mask::from_lengths(&[5, 0, 3], 5).unwrap();
    for mode in [train(1), Mode::Eval] {
        let loss = || probe(&encoder.encode(&x, Some(&mask), mode)?);
        check_gradients(&store, std::slice::from_ref(&x), 1e-6, loss).unwrap();
    }
}

#[test]
fn weights_that_are_hardly_ever_dropped_give_what_the_kernel_gives() {
    let plain = ConformerConfig { dropout: 0.0, ..config() };
    let x = normal(&[3, 6, 3]);
    let mask = Mask::from_lengths(&[6, 2, 4], 6).unwrap();
    let of = |p: f64| {
        let (encoder, _) = build(&ConformerConfig { weights_dropout: p, ..plain.clone() }, 3);
        encoder.encode(&x, Some(&mask), train(1)).unwrap()
    };
    assert_close(&of(1e-13), &of(0.0), 1e-11);
    let (rarely, often) = (to_host(&of(0.0)).unwrap(), to_host(&of(0.5)).unwrap());
    assert!(rarely.iter().zip(often).any(|(a, b)| (a - b).abs() > 1e-3));
}

#[test]
fn gradients_reach_every_parameter() {
    let (encoder, store) = build(&config(), 3);
    let y = encoder.forward(&normal(&[2, 6, 3]), train(1)).unwrap();
    assert_eq!(y.dims(), [2, 4]);
    let gradients = Gradients::collect(&store, probe(&y).unwrap().backward().unwrap());
    gradients.check_reached(&store).unwrap();
    for id in store.ids() {
        let name = store.get(id).name();
        let norm = gradients.norm([id]).unwrap();
        // The softmax does not see what is added to all scores of a query.
        let blind = name.ends_with("attention.key.bias");
        assert!(blind == (norm < 1e-12), "the gradient of {name} has norm {norm:e}");
    }
}

#[test]
fn parameters_and_buffers_have_their_names() {
    let (_, store) = build(&config(), 3);
    let names: Vec<&str> = store.params().iter().map(mm_core::Param::name).collect();
    let pair = |place: &str| ["weight", "bias"].map(|part| format!("encoder.audio.{place}.{part}"));
    let mut expected = pair("input").to_vec();
    for l in 0..2 {
        let affine = [
            "ff1.norm",
            "ff1.expand",
            "ff1.project",
            "attention.norm",
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.out",
            "conv.norm",
            "conv.expand",
            "conv.project",
            "conv.batch_norm",
            "ff2.norm",
            "ff2.expand",
            "ff2.project",
            "norm",
        ];
        expected.extend(affine.iter().flat_map(|place| pair(&format!("layers.{l}.{place}"))));
        let alone = [
            "attention.position.weight",
            "attention.content_bias",
            "attention.position_bias",
            "conv.depthwise.weight",
        ];
        expected.extend(alone.iter().map(|place| format!("encoder.audio.layers.{l}.{place}")));
    }
    let mut sorted = names.clone();
    sorted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(sorted, expected);
    let buffers: Vec<&str> = store.buffers().iter().map(mm_core::Param::name).collect();
    let running = ["running_mean", "running_var"];
    let expected = [0, 1]
        .map(|l| running.map(|part| format!("encoder.audio.layers.{l}.conv.batch_norm.{part}")))
        .concat();
    assert_eq!(buffers, expected);
}

#[test]
fn the_table_holds_sinusoids_of_the_offset() {
    let table = positions(3, 5, DType::F64, &Device::Cpu).unwrap();
    assert_eq!(table.dims(), [5, 5]);
    let table = table.to_vec2::<f64>().unwrap();
    for (row, offset) in table.iter().zip([2.0f64, 1.0, 0.0, -1.0, -2.0]) {
        let (fast, slow) = (offset, offset * 10000f64.powf(-0.4));
        let slowest = offset * 10000f64.powf(-0.8);
        let expected = [fast.sin(), fast.cos(), slow.sin(), slow.cos(), slowest.sin()];
        assert!(row.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{row:?}, not {expected:?}");
    }
}

#[test]
fn a_sequence_does_not_see_its_batch_in_evaluation() {
    let (encoder, store) = build(&config(), 3);
    let x = normal(&[3, 6, 3]);
    let before = encoder.forward(&x, Mode::Eval).unwrap();
    let one = encoder.forward(&x.narrow(0, 1, 1).unwrap(), Mode::Eval).unwrap();
    assert_close(&one, &before.narrow(0, 1, 1).unwrap(), 1e-12);
    // Lengths may change between batches; places are told apart by their distance.
    let short = x.narrow(1, 0, 4).unwrap();
    assert_eq!(encoder.forward(&short, Mode::Eval).unwrap().dims(), [3, 4]);
    assert_close(&encoder.forward(&x, Mode::Eval).unwrap(), &before, 0.0);
    let turned = x.index_select(&Tensor::new(&[5u32, 4, 3, 2, 1, 0], &Device::Cpu).unwrap(), 1).unwrap();
    let turned = to_host(&encoder.forward(&turned, Mode::Eval).unwrap()).unwrap();
    assert!(turned.iter().zip(to_host(&before).unwrap()).any(|(a, b)| (a - b).abs() > 1e-3));

    // Training moves the running statistics, evaluation does not.
    let buffers = || store.buffers().iter().map(|b| to_host(b.var()).unwrap()).collect::<Vec<_>>();
    let start = buffers();
    encoder.forward(&x, train(1)).unwrap();
    assert!(start.concat().iter().zip(buffers().concat()).all(|(a, b)| *a != b));
}

#[test]
fn a_key_fixes_the_bits() {
    let (encoder, _) = build(&config(), 3);
    let x = normal(&[2, 5, 3]);
    let host = |mode| to_host(&encoder.forward(&x, mode).unwrap()).unwrap();
    assert_eq!(host(train(1)), host(train(1)));
    assert_ne!(host(train(1)), host(train(2)));
    assert_eq!(host(Mode::Eval), host(Mode::Eval));
}

#[test]
fn settings_are_checked_and_kept_in_files() {
    let bad = [
        (ConformerConfig { dim: 0, ..config() }, "dim", "at least 1"),
        (ConformerConfig { layers: 0, ..config() }, "layers", "at least 1"),
        (ConformerConfig { heads: 3, ..config() }, "heads", "must divide dim = 4"),
        (ConformerConfig { kernel: 4, ..config() }, "kernel", "must be odd"),
        (ConformerConfig { dropout: 1.0, ..config() }, "dropout", "[0, 1)"),
        (ConformerConfig { conv_dropout: Some(-0.1), ..config() }, "conv_dropout", "[0, 1)"),
        (ConformerConfig { weights_dropout: f64::NAN, ..config() }, "weights_dropout", "[0, 1)"),
        (ConformerConfig { feed_forward: Some(0), ..config() }, "feed_forward", "at least 1"),
        (
            ConformerConfig { released: true, padding: Padding::Zeros, ..config() },
            "padding",
            "must be \"none\" with released = true",
        ),
    ];
    for (config, field, rule) in bad {
        let error = config.check().unwrap_err();
        assert!(error.field == field && error.rule.contains(rule), "{error}");
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        assert!(config.build(store.root(), 3).unwrap_err().to_string().contains(rule));
    }
    let other = ConformerConfig {
        norm: ConvolutionNorm::Layer,
        input: Input::None,
        padding: Padding::Zeros,
        conv_dropout: Some(0.2),
        ..config()
    };
    for config in [config(), other.clone()] {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<ConformerConfig>(&text).unwrap(), config);
    }
    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    let error = other.build(store.root(), 3).unwrap_err().to_string();
    assert!(error.contains("needs inputs of dim = 4 numbers, not 3: set input = \"linear\""), "{error}");
    assert!(
        toml::from_str::<ConformerConfig>("widht = 3").unwrap_err().to_string().contains("unknown field")
    );
    let defaults = ConformerConfig::default();
    assert_eq!((defaults.dim, defaults.heads, defaults.kernel, defaults.layers), (512, 8, 31, 5));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (encoder, _) = build(&config(), 3);
    let (padded, _) = build(&ConformerConfig { padding: Padding::Zeros, ..config() }, 3);
    for shape in [&[2, 5, 4][..], &[2, 0, 3], &[2, 5, 0], &[0, 5, 4], &[2, 3]] {
        let x = Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
        for encoder in [&encoder, &padded] {
            let error = encoder.forward(&x, Mode::Eval).unwrap_err().to_string();
            assert!(error.contains("sequences (batch, places, 3)"), "{error}");
            assert!(error.contains(&format!("{shape:?}")), "{error}");
        }
    }
}

#[test]
fn a_clip_in_a_padded_batch_is_the_clip_alone() {
    let layered = ConformerConfig { norm: ConvolutionNorm::Layer, final_norm: true, ..config() };
    for config in [config(), layered] {
        let zeros = ConformerConfig { padding: Padding::Zeros, ..config.clone() };
        let (encoder, store) = build(&config, 3);
        let (padded, _) = build(&zeros, 3);
        let (x, lengths) = (normal(&[4, 7, 3]), [7, 3, 0, 5]);
        let mask = Mask::from_lengths(&lengths, 7).unwrap();
        let batch = encoder.encode(&x, Some(&mask), Mode::Eval).unwrap();
        // Anything may stand where padding is.
        let keep =
            Tensor::from_iter((0..84).map(|i| u8::from(i / 3 % 7 < lengths[i / 21])), &Device::Cpu).unwrap();
        let keep = keep.reshape((4, 7, 3)).unwrap();
        for filling in [0.0, 1e3, f64::INFINITY, f64::NAN] {
            let filling = Tensor::full(filling, (4, 7, 3), &Device::Cpu).unwrap();
            let other = keep.where_cond(&x, &filling).unwrap();
            let other = encoder.encode(&other, Some(&mask), Mode::Eval).unwrap();
            assert_eq!(to_host(&other).unwrap(), to_host(&batch).unwrap());
        }
        let filled = keep.where_cond(&x, &x.zeros_like().unwrap()).unwrap();
        assert_eq!(
            to_host(&padded.forward(&filled, Mode::Eval).unwrap()).unwrap(),
            to_host(&batch).unwrap(),
            "zeros mark the padding"
        );
        for (b, &length) in lengths.iter().enumerate() {
            let row = batch.narrow(0, b, 1).unwrap();
            if length == 0 {
                assert_eq!(to_host(&row).unwrap(), [0.0; 4]);
                continue;
            }
            let alone = x.narrow(0, b, 1).unwrap().narrow(1, 0, length).unwrap();
            assert_close(&encoder.forward(&alone, Mode::Eval).unwrap(), &row, 1e-12);
        }
        // In training nothing of the padding reaches the statistics.
        let after = |x: &Tensor| {
            let before = store.snapshot().unwrap();
            let y = to_host(&encoder.encode(x, Some(&mask), train(1)).unwrap()).unwrap();
            let buffers = store.buffers().iter().flat_map(|b| to_host(b.var()).unwrap()).collect::<Vec<_>>();
            store.restore(&before).unwrap();
            (y, buffers)
        };
        assert_eq!(after(&x), after(&filled));
        let nobody = Mask::from_lengths(&[0; 4], 7).unwrap();
        let empty = encoder.encode(&x, Some(&nobody), train(1)).unwrap();
        assert_eq!(to_host(&empty).unwrap(), [0.0; 16]);
    }
}

#[test]
fn masks_come_from_lengths_tensors_and_zeros() {
    let lengths = Mask::from_lengths(&[2, 0, 3], 3).unwrap();
    let flags = [[1u32, 1, 0], [0, 0, 0], [1, 1, 1]];
    assert_eq!(Mask::from_tensor(&Tensor::new(&flags, &Device::Cpu).unwrap()).unwrap(), lengths);
    let x = Tensor::new(&[[[0f32], [-1.0], [0.0]], [[0.0]; 3], [[1.0], [0.0], [2.0]]], &Device::Cpu).unwrap();
    assert_eq!(Mask::trailing_zeros(&x).unwrap(), lengths);
    assert_eq!((lengths.counts(), lengths.is_full()), (vec![2, 0, 3], false));
    assert!(Mask::from_lengths(&[3, 3], 3).unwrap().is_full());

    let error = Mask::from_lengths(&[3, 4], 3).unwrap_err().to_string();
    assert!(error.contains("row 1 has length 4, but the batch has 3 places"), "{error}");
    let error =
        Mask::from_tensor(&Tensor::new(&[[1f32, 0.5]], &Device::Cpu).unwrap()).unwrap_err().to_string();
    assert!(error.contains("got 0.5 at row 0, place 1"), "{error}");
    assert!(Mask::from_tensor(&x).unwrap_err().to_string().contains("(batch, places)"));
    let error = lengths.mean(&x.narrow(1, 0, 2).unwrap()).unwrap_err().to_string();
    assert!(error.contains("3 rows and 3 places does not fit [3, 2, 1]"), "{error}");
    let (encoder, _) = build(&config(), 3);
    let error = encoder.encode(&normal(&[3, 4, 3]), Some(&lengths), Mode::Eval).unwrap_err().to_string();
    assert!(error.contains("does not fit [3, 4, 3]"), "{error}");
}

#[test]
fn released_mixes_the_clips_of_a_batch_and_the_default_does_not() {
    let x = normal(&[3, 6, 3]);
    let gap = |config: ConformerConfig| {
        let (encoder, _) = build(&config, 3);
        let batch = encoder.forward(&x, Mode::Eval).unwrap().narrow(0, 1, 1).unwrap();
        let alone = encoder.forward(&x.narrow(0, 1, 1).unwrap(), Mode::Eval).unwrap();
        (batch - alone).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap()
    };
    assert!(gap(config()) < 1e-12);
    assert!(gap(ConformerConfig { released: true, ..config() }) > 1e-3);

    let released = ConformerConfig::released();
    assert!(released.released && released.weights_dropout == 0.1 && !config().released);
    let (encoder, _) = build(&ConformerConfig { released: true, ..config() }, 3);
    let mask = Mask::from_lengths(&[6, 2, 6], 6).unwrap();
    let error = encoder.encode(&x, Some(&mask), Mode::Eval).unwrap_err().to_string();
    assert!(error.contains("has no masks: give sequences of one length"), "{error}");
    let table = released_positions(3, 4, DType::F64, &Device::Cpu).unwrap();
    let (own, all) = (to_host(&table).unwrap(), positions(3, 4, DType::F64, &Device::Cpu).unwrap());
    for (t, row) in own.chunks(4).enumerate() {
        assert_eq!(row, to_host(&all.get(2 - t).unwrap()).unwrap());
    }
}
