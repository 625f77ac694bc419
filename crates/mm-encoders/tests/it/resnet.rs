//! The residual network.

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Gradients, Mode, Param, ParamStore, StepRng};
use mm_encoders::{Precision, ResNet, ResNetConfig, ResNetInit};
use mm_testkit::assert_close;
use mm_testkit::gradients::probe;

fn build(depth: usize, channels: usize, dtype: DType) -> (ResNet, ParamStore) {
    let mut store = ParamStore::new(3, dtype, &Device::Cpu);
    let config = ResNetConfig { depth, channels, ..ResNetConfig::default() };
    let encoder = config.build(store.root().at("encoder").at("video")).unwrap();
    (encoder, store)
}

fn normal(shape: &[usize], dtype: DType) -> Tensor {
    let mut draws = StepRng::new(2).stream("it").draws();
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draws.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn train() -> Mode {
    Mode::Train(StepRng::new(1).stream("it"))
}

/// The names of torchvision's network without its last layer: parameters, then buffers.
fn torchvision(blocks: [usize; 4], convolutions: usize) -> (Vec<String>, Vec<String>) {
    let (mut params, mut buffers) = (Vec::new(), Vec::new());
    let mut pair = |conv: String, norm: String| {
        params.extend([format!("{conv}.weight"), format!("{norm}.weight"), format!("{norm}.bias")]);
        buffers.extend([format!("{norm}.running_mean"), format!("{norm}.running_var")]);
    };
    pair("conv1".to_owned(), "bn1".to_owned());
    for (stage, count) in blocks.into_iter().enumerate() {
        for block in 0..count {
            let here = format!("layer{}.{block}", stage + 1);
            for c in 1..=convolutions {
                pair(format!("{here}.conv{c}"), format!("{here}.bn{c}"));
            }
            if block == 0 && (stage > 0 || convolutions == 3) {
                pair(format!("{here}.downsample.0"), format!("{here}.downsample.1"));
            }
        }
    }
    (params, buffers)
}

#[test]
fn parameters_and_buffers_have_torchvisions_names() {
    // Numbers of parameters: torchvision's documentation, less the 1000 x (width + 1) of its last layer.
    let cases = [
        (18, [2, 2, 2, 2], 2, 11_689_512 - 513_000),
        (34, [3, 4, 6, 3], 2, 21_797_672 - 513_000),
        (50, [3, 4, 6, 3], 3, 25_557_032 - 2_049_000),
    ];
    for (depth, blocks, convolutions, elements) in cases {
        let (encoder, store) = build(depth, 3, DType::F32);
        let names = |list: &[Param]| -> Vec<String> {
            let inside = |p: &Param| p.name().strip_prefix("encoder.video.").unwrap().to_owned();
            list.iter().map(inside).collect()
        };
        let (params, buffers) = torchvision(blocks, convolutions);
        assert_eq!(names(store.params()), params);
        assert_eq!(names(store.buffers()), buffers);
        assert_eq!(store.elements(), elements, "depth {depth}");
        assert_eq!(encoder.dim(), if depth == 50 { 2048 } else { 512 });
    }
    let (params, _) = torchvision([2, 2, 2, 2], 2);
    assert_eq!(params.len(), 60);
    for name in ["layer1.1.bn2.bias", "layer2.0.downsample.0.weight", "layer4.0.downsample.1.weight"] {
        assert!(params.contains(&name.to_owned()), "{name}");
    }
}

#[test]
fn weights_start_as_init_says() {
    for init in [ResNetInit::Torchvision, ResNetInit::Mlb, ResNetInit::Ogm] {
        let mut store = ParamStore::new(3, DType::F32, &Device::Cpu);
        let config = ResNetConfig { channels: 1, init, ..ResNetConfig::default() };
        config.build(store.root()).unwrap();
        let mut scales = Vec::new();
        for p in store.params() {
            let values = to_host(p.var()).unwrap();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let square = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
            if let [out, _, kh, kw] = p.var().dims()[..] {
                let wanted = 2.0 / (out * kh * kw) as f64;
                assert!((square / wanted - 1.0).abs() < 0.1, "{}: variance {square}, not {wanted}", p.name());
                assert!(mean.abs() < 0.05 * wanted.sqrt() + 0.002, "{}: mean {mean}", p.name());
            } else if p.name().ends_with("weight") {
                scales.extend(values);
            } else {
                assert!(values.iter().all(|&v| v == 0.0), "{}", p.name());
            }
        }
        // 4800 scales: their mean is known to 0.0003, their deviation to a hundredth of itself.
        assert_eq!(scales.len(), 4800);
        let mean = scales.iter().sum::<f64>() / 4800.0;
        let deviation = (scales.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 4800.0).sqrt();
        if init == ResNetInit::Mlb {
            assert!(
                (mean - 1.0).abs() < 1e-3 && (deviation / 0.02 - 1.0).abs() < 0.05,
                "{mean}, {deviation}"
            );
            // Normal: two thirds lie within one deviation.
            let inside = scales.iter().filter(|&&v| (v - 1.0).abs() < 0.02).count() as f64 / 4800.0;
            assert!((inside - 0.6827).abs() < 0.03, "{inside}");
        } else {
            assert!(scales.iter().all(|&v| v == 1.0));
        }
    }
}

#[test]
fn gradients_reach_every_parameter() {
    for depth in [18, 50] {
        let (encoder, store) = build(depth, 2, DType::F32);
        let y = encoder.forward(&normal(&[3, 2, 9, 7], DType::F32), train()).unwrap();
        assert_eq!(y.dims(), [3, encoder.dim()]);
        let gradients = Gradients::collect(&store, probe(&y).unwrap().backward().unwrap());
        gradients.check_reached(&store).unwrap();
        for id in store.ids() {
            let norm = gradients.norm([id]).unwrap();
            assert!(norm > 0.0, "the gradient of {} is zero", store.get(id).name());
        }
    }
}

#[test]
fn gradients_are_right_along_a_direction() {
    // 11 million single differences would take a day; along one direction through all parameters at once, two passes do.
    let (encoder, store) = build(18, 1, DType::F64);
    let x = Var::from_tensor(&normal(&[3, 1, 12, 9], DType::F64)).unwrap();
    let loss = || probe(&encoder.forward(&x, train()).unwrap()).unwrap();
    let grads = loss().backward().unwrap();
    let vars: Vec<Var> = store.params().iter().map(|p| p.var().clone()).chain([x.clone()]).collect();
    let (mut slope, mut directions) = (0.0, Vec::new());
    let mut draws = StepRng::new(7).stream("direction").draws();
    for var in &vars {
        let size = to_host(var).unwrap().iter().map(|v| v * v).sum::<f64>().sqrt().max(0.1);
        let step = size / (var.elem_count() as f64).sqrt();
        let values: Vec<f64> = (0..var.elem_count()).map(|_| step * draws.normal()).collect();
        let direction = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
        let part = (grads.get(var).unwrap() * &direction).unwrap().sum_all().unwrap();
        slope += part.to_scalar::<f64>().unwrap();
        directions.push((var.copy().unwrap(), direction));
    }
    let at = |shift: f64| {
        for (var, (start, direction)) in vars.iter().zip(&directions) {
            var.set(&(start + (direction * shift).unwrap()).unwrap()).unwrap();
        }
        loss().to_scalar::<f64>().unwrap()
    };
    let h = 1e-7;
    let difference = (at(h) - at(-h)) / (2.0 * h);
    assert!((difference / slope - 1.0).abs() < 1e-5, "difference {difference:e}, backward {slope:e}");
}

#[test]
fn evaluation_uses_running_statistics_and_moves_nothing() {
    let (encoder, store) = build(18, 1, DType::F64);
    let x = normal(&[3, 1, 9, 7], DType::F64);
    let run = |x: &Tensor, mode| encoder.forward(x, mode).unwrap();
    let buffers = || store.buffers().iter().map(|b| to_host(b.var()).unwrap()).collect::<Vec<_>>();
    let (start, before) = (buffers(), run(&x, Mode::Eval));
    assert_eq!(buffers(), start);

    // One pass moves every statistic; the first mean is a tenth of that of the first convolution.
    let trained = run(&x, train());
    let moved = buffers();
    for ((a, b), buffer) in start.iter().zip(&moved).zip(store.buffers()) {
        assert!(a.iter().zip(b).all(|(a, b)| a != b), "{} did not move", buffer.name());
    }
    let weight = store.find("encoder.video.conv1.weight").unwrap().var().as_tensor();
    let config =
        mm_kernels::Conv2dConfig { stride: (2, 2), padding: (3, 3), ..mm_kernels::Conv2dConfig::default() };
    let y = mm_kernels::conv2d(&x, weight, None, &config).unwrap();
    let rows = y.transpose(0, 1).unwrap().flatten_from(1).unwrap();
    let (mean, count) = (rows.mean_keepdim(1).unwrap(), rows.dim(1).unwrap() as f64);
    assert_close(store.buffers()[0].var(), &(mean.squeeze(1).unwrap() * 0.1).unwrap(), 1e-12);
    let var = (rows.broadcast_sub(&mean).unwrap().sqr().unwrap().sum(1).unwrap() / (count - 1.0)).unwrap();
    assert_close(store.buffers()[1].var(), &var.affine(0.1, 0.9).unwrap(), 1e-12);

    let after = run(&x, Mode::Eval);
    assert_eq!(buffers(), moved);
    let gap = |a: &Tensor, b: &Tensor| {
        let (a, b) = (to_host(a).unwrap(), to_host(b).unwrap());
        a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(gap(&before, &after) > 1e-3 && gap(&after, &trained) > 1e-3);
    // In evaluation an image does not see its batch.
    assert_close(&run(&x.narrow(0, 1, 1).unwrap(), Mode::Eval), &after.narrow(0, 1, 1).unwrap(), 1e-12);
}

#[test]
fn frames_are_encoded_one_by_one_and_averaged() {
    let (encoder, _) = build(18, 3, DType::F64);
    let x = normal(&[2, 3, 3, 8, 6], DType::F64);
    let frame =
        |t: usize| encoder.forward(&x.narrow(1, t, 1).unwrap().squeeze(1).unwrap(), Mode::Eval).unwrap();
    let mean = ((frame(0) + frame(1)).unwrap() + frame(2)).unwrap() / 3.0;
    assert_close(&encoder.forward(&x, Mode::Eval).unwrap(), &mean.unwrap(), 1e-12);
    let one = encoder.forward(&x.narrow(1, 2, 1).unwrap(), Mode::Eval).unwrap();
    assert_close(&one, &frame(2), 1e-12);
}

#[test]
fn places_come_frame_by_frame_and_their_mean_is_the_feature() {
    for (depth, dim) in [(18, 512), (50, 2048)] {
        let (encoder, _) = build(depth, 2, DType::F64);
        // 70 by 40 pixels leave 3 by 2 places.
        let x = normal(&[2, 3, 2, 70, 40], DType::F64);
        let places = encoder.places(&x, Mode::Eval).unwrap();
        assert_eq!(places.dims(), [2, 3 * 3 * 2, dim]);
        assert_close(&encoder.forward(&x, Mode::Eval).unwrap(), &places.mean(1).unwrap(), 1e-12);
        let frame = |t: usize| x.narrow(1, t, 1).unwrap().squeeze(1).unwrap();
        for t in 0..3 {
            let alone = encoder.places(&frame(t), Mode::Eval).unwrap();
            assert_eq!(alone.dims(), [2, 6, dim]);
            assert_close(&alone, &places.narrow(1, 6 * t, 6).unwrap(), 1e-12);
        }
    }
}

#[test]
fn settings_are_checked_and_kept_in_files() {
    let error = ResNetConfig { depth: 20, ..ResNetConfig::default() }.check().unwrap_err();
    assert_eq!((error.field.as_str(), error.rule.as_str()), ("depth", "must be 18, 34 or 50"));
    let error = ResNetConfig { channels: 4, ..ResNetConfig::default() }.check().unwrap_err();
    assert_eq!(error.field, "channels");
    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    let bad = ResNetConfig { channels: 0, ..ResNetConfig::default() };
    assert!(
        bad.build(store.root()).unwrap_err().to_string().contains("channels = 0: must be 1 (spectrogram)")
    );

    for (name, precision) in
        [("f32", Precision::F32), ("bf16", Precision::Bf16), ("bf16x3", Precision::Bf16x3)]
    {
        let config = ResNetConfig { depth: 34, channels: 2, precision, ..ResNetConfig::default() };
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains(&format!("precision = \"{name}\"")), "{text}");
        assert_eq!(toml::from_str::<ResNetConfig>(&text).unwrap(), config);
    }
    for (name, init) in
        [("torchvision", ResNetInit::Torchvision), ("mlb", ResNetInit::Mlb), ("ogm", ResNetInit::Ogm)]
    {
        let config =
            ResNetConfig { depth: 50, init, downsample_in_bottleneck: true, ..ResNetConfig::default() };
        config.check().unwrap();
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains(&format!("init = \"{name}\"")), "{text}");
        assert_eq!(toml::from_str::<ResNetConfig>(&text).unwrap(), config);
    }
    let error =
        ResNetConfig { downsample_in_bottleneck: true, ..ResNetConfig::default() }.check().unwrap_err();
    assert_eq!((error.field.as_str(), error.value.as_str()), ("downsample_in_bottleneck", "true"));
    assert!(error.rule.contains("must be false at depth 18"), "{error}");
    assert!(toml::from_str::<ResNetConfig>("width = 3").unwrap_err().to_string().contains("unknown field"));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (encoder, _) = build(18, 3, DType::F32);
    for shape in [&[2, 1, 8, 8][..], &[2, 3, 8], &[2, 4, 1, 8, 8]] {
        let error = encoder.forward(&normal(shape, DType::F32), Mode::Eval).unwrap_err().to_string();
        assert!(error.contains("images of 3 channels") && error.contains(&format!("{shape:?}")), "{error}");
    }
}
