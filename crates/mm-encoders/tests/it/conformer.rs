//! The Conformer.

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Gradients, Mode, ParamStore, StepRng};
use mm_encoders::conformer::positions;
use mm_encoders::{Conformer, ConformerConfig};
use mm_testkit::gradients::probe;
use mm_testkit::{assert_close, check_gradients};

fn config() -> ConformerConfig {
    ConformerConfig { dim: 4, layers: 2, heads: 2, kernel: 3, dropout: 0.1 }
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
    let mut store = ParamStore::new(5, DType::F64, &Device::Cpu);
    let layer = config().build_layer(store.root()).unwrap();
    let table = positions(5, 4, DType::F64, &Device::Cpu).unwrap();
    let x = Var::from_tensor(&normal(&[2, 5, 4])).unwrap();
    for mode in [train(1), Mode::Eval] {
        let loss = || probe(&layer.forward(&x, &table, mode)?);
        check_gradients(&store, std::slice::from_ref(&x), 1e-6, loss).unwrap();
    }
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
    ];
    for (config, field, rule) in bad {
        let error = config.check().unwrap_err();
        assert!(error.field == field && error.rule.contains(rule), "{error}");
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        assert!(config.build(store.root(), 3).unwrap_err().to_string().contains(rule));
    }
    let text = toml::to_string(&config()).unwrap();
    assert_eq!(toml::from_str::<ConformerConfig>(&text).unwrap(), config());
    assert!(
        toml::from_str::<ConformerConfig>("widht = 3").unwrap_err().to_string().contains("unknown field")
    );
    let defaults = ConformerConfig::default();
    assert_eq!((defaults.dim, defaults.heads, defaults.kernel, defaults.layers), (512, 8, 31, 5));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (encoder, _) = build(&config(), 3);
    for shape in [&[2, 5, 4][..], &[2, 0, 3], &[2, 3]] {
        let x = Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
        let error = encoder.forward(&x, Mode::Eval).unwrap_err().to_string();
        assert!(
            error.contains("sequences (batch, places, 3)") && error.contains(&format!("{shape:?}")),
            "{error}"
        );
    }
}
