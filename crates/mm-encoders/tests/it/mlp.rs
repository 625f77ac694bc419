//! The multi-layer perceptron.

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Mode, ParamStore, RowShape, StepRng};
use mm_encoders::{Activation, EncoderConfig, Mlp, MlpConfig, Norm};
use mm_testkit::gradients::probe;
use mm_testkit::{assert_close, check_gradients};

fn config(norm: Norm, activation: Activation) -> MlpConfig {
    MlpConfig { hidden: vec![5, 4], dim: 3, norm, activation, ..MlpConfig::default() }
}

fn build(config: &MlpConfig, input: usize) -> (Mlp, ParamStore) {
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

fn host(encoder: &Mlp, x: &Tensor, mode: Mode) -> Vec<f64> {
    to_host(&encoder.forward(x, mode).unwrap()).unwrap()
}

#[test]
fn gradients_are_right() {
    for norm in [Norm::None, Norm::Layer, Norm::Batch] {
        for activation in [Activation::Relu, Activation::Gelu] {
            let mut config = config(norm, activation);
            config.input_dropout = 0.1;
            let (encoder, store) = build(&config, 6);
            let x = Var::from_tensor(&normal(&[7, 6])).unwrap();
            for mode in [train(1), Mode::Eval] {
                let loss = || probe(&encoder.forward(&x, mode)?);
                check_gradients(&store, std::slice::from_ref(&x), 1e-6, loss).unwrap();
            }
        }
    }
}

#[test]
fn parameters_and_buffers_have_their_names() {
    let (_, store) = build(&config(Norm::Batch, Activation::Relu), 6);
    let names: Vec<&str> = store.params().iter().map(mm_core::Param::name).collect();
    let expected = [
        "0.weight",
        "0.bias",
        "0.norm.weight",
        "0.norm.bias",
        "1.weight",
        "1.bias",
        "1.norm.weight",
        "1.norm.bias",
        "2.weight",
        "2.bias",
    ];
    assert_eq!(names, expected.map(|n| format!("encoder.audio.{n}")));
    let buffers: Vec<&str> = store.buffers().iter().map(mm_core::Param::name).collect();
    assert_eq!(buffers.len(), 4);
    assert_eq!(buffers[1], "encoder.audio.0.norm.running_var");
}

#[test]
fn equals_its_equations() {
    let (encoder, store) = build(&config(Norm::None, Activation::Relu), 6);
    let value = |l: usize, name: &str| {
        store.find(&format!("encoder.audio.{l}.{name}")).unwrap().var().as_tensor().clone()
    };
    let x = normal(&[4, 6]);
    let expected = (0..3).fold(x.clone(), |a, l| {
        let a = a.matmul(&value(l, "weight").t().unwrap()).unwrap();
        a.broadcast_add(&value(l, "bias")).unwrap().relu().unwrap()
    });
    assert_close(&encoder.forward(&x, Mode::Eval).unwrap(), &expected, 1e-12);
    assert_eq!(encoder.dim(), 3);

    // Without the last activation features may be negative; rows of any rank are flattened.
    let linear = MlpConfig { final_activation: false, ..config(Norm::None, Activation::Relu) };
    let (encoder, _) = build(&linear, 6);
    let features = encoder.forward(&x, Mode::Eval).unwrap();
    assert_close(&features.relu().unwrap(), &expected, 1e-12);
    assert!(to_host(&features).unwrap().iter().any(|&v| v < 0.0));
    let deep = x.reshape((4, 3, 2)).unwrap();
    assert_close(&encoder.forward(&deep, Mode::Eval).unwrap(), &features, 0.0);
}

#[test]
fn no_hidden_layer_is_one_linear_map() {
    let (encoder, store) = build(&MlpConfig { hidden: vec![], dim: 2, ..MlpConfig::default() }, 6);
    assert_eq!(store.len(), 2);
    assert_eq!(encoder.forward(&normal(&[4, 6]), train(1)).unwrap().dims(), [4, 2]);
}

#[test]
fn batch_norm_trains_on_the_batch_and_evaluates_on_running_statistics() {
    let mut config = config(Norm::Batch, Activation::Relu);
    (config.hidden, config.dropout) = (vec![5], 0.0);
    let (encoder, store) = build(&config, 6);
    let x = normal(&[16, 6]);
    let buffer = |i: usize| to_host(store.buffers()[i].var()).unwrap();
    let before = host(&encoder, &x, Mode::Eval);
    assert_eq!(before, host(&encoder, &x, Mode::Eval), "evaluation moves nothing");
    assert_eq!((buffer(0), buffer(1)), (vec![0.0; 5], vec![1.0; 5]));

    // One pass moves the statistics by a tenth of the way, with the unbiased variance.
    let in_training = host(&encoder, &x, train(1));
    let value = |n: &str| store.find(&format!("encoder.audio.0.{n}")).unwrap().var().as_tensor().clone();
    let a = x.matmul(&value("weight").t().unwrap()).unwrap().broadcast_add(&value("bias")).unwrap();
    let mean = a.mean(0).unwrap();
    let var = (a.broadcast_sub(&mean).unwrap().sqr().unwrap().sum(0).unwrap() / 15.0).unwrap();
    assert_close(store.buffers()[0].var(), &(mean * 0.1).unwrap(), 1e-12);
    assert_close(store.buffers()[1].var(), &var.affine(0.1, 0.9).unwrap(), 1e-12);
    assert_ne!(host(&encoder, &x, Mode::Eval), before);

    // After many passes over one batch both modes agree, up to the biased variance of training.
    for _ in 0..300 {
        host(&encoder, &x, train(1));
    }
    let gap = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(gap(&host(&encoder, &x, Mode::Eval), &in_training) < 0.1);
    assert!(gap(&before, &in_training) > 0.1);

    // In evaluation a row does not see its batch.
    let all = encoder.forward(&x, Mode::Eval).unwrap();
    let one = encoder.forward(&x.narrow(0, 3, 1).unwrap(), Mode::Eval).unwrap();
    assert_close(&one, &all.narrow(0, 3, 1).unwrap(), 1e-12);
}

#[test]
fn a_key_fixes_the_bits() {
    for norm in [Norm::None, Norm::Layer, Norm::Batch] {
        let (encoder, _) = build(&config(norm, Activation::Gelu), 6);
        let x = normal(&[8, 6]);
        assert_eq!(host(&encoder, &x, train(1)), host(&encoder, &x, train(1)));
        assert_ne!(host(&encoder, &x, train(1)), host(&encoder, &x, train(2)));
        assert_eq!(host(&encoder, &x, Mode::Eval), host(&encoder, &x, Mode::Eval));
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (encoder, _) = build(&config(Norm::None, Activation::Relu), 6);
    let error = encoder.forward(&normal(&[4, 5]), Mode::Eval).unwrap_err().to_string();
    assert!(error.contains("rows of 6 numbers, got inputs [4, 5]"), "{error}");
    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    assert!(EncoderConfig::default().build(store.root(), &RowShape::fixed([0])).is_err());
    let bad = EncoderConfig::Mlp(MlpConfig { dim: 0, ..MlpConfig::default() });
    assert!(
        bad.build(store.root(), &RowShape::fixed([6]))
            .unwrap_err()
            .to_string()
            .contains("dim = 0: must be at least 1")
    );
}
