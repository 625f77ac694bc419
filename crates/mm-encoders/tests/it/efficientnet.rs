//! The EfficientNet.

use candle_core::{DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Gradients, Mode, ParamStore, StepRng};
use mm_encoders::efficientnet::drop_images;
use mm_encoders::{EfficientNet, EfficientNetConfig, EfficientNetVariant, Precision};
use mm_testkit::assert_close;
use mm_testkit::gradients::probe;

const VARIANTS: [EfficientNetVariant; 2] = [EfficientNetVariant::Tf, EfficientNetVariant::Torchvision];

/// A tenth of the width, half of the depth: ten blocks, three with a way round.
fn small(variant: EfficientNetVariant, frozen: bool) -> EfficientNetConfig {
    EfficientNetConfig { variant, width: 0.1, depth: 0.5, frozen, ..EfficientNetConfig::default() }
}

fn build(config: &EfficientNetConfig) -> (EfficientNet, ParamStore) {
    let mut store = ParamStore::new(3, DType::F64, &Device::Cpu);
    let encoder = config.build(store.root().at("encoder").at("video")).unwrap();
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

fn gap(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (to_host(a).unwrap(), to_host(b).unwrap());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn buffers(store: &ParamStore) -> Vec<Vec<f64>> {
    store.buffers().iter().map(|b| to_host(b.var()).unwrap()).collect()
}

#[test]
fn a_frozen_one_is_not_trained() {
    for variant in VARIANTS {
        let (encoder, store) = build(&small(variant, true));
        let (_, trained) = build(&small(variant, false));
        assert!(store.is_empty());
        // The same tensors with the same start values, kept with the model.
        let (own, other) = (store.tensors(), trained.tensors());
        assert_eq!(own.len(), other.len());
        for (name, value) in &own {
            assert_close(value, &other[name], 0.0);
        }
        let x = Var::from_tensor(&normal(&[2, 3, 20, 17])).unwrap();
        let before = buffers(&store);
        let y = encoder.forward(&x, train(1)).unwrap();
        assert_eq!(buffers(&store), before);
        assert_close(&y, &encoder.forward(&x, Mode::Eval).unwrap(), 0.0);
        assert!(!y.track_op());
        let gradients = probe(&y).unwrap().backward().unwrap();
        assert!(gradients.get(&x).is_none());
        // It follows what is loaded after it was made.
        let stem = store.buffers().iter().find(|b| b.name() == "encoder.video.conv_stem.weight").unwrap();
        stem.var().set(&(stem.var().as_tensor() * 2.0).unwrap()).unwrap();
        let scale = gap(&y, &y.zeros_like().unwrap());
        assert!(gap(&encoder.forward(&x, Mode::Eval).unwrap(), &y) > 0.01 * scale);
    }
}

#[test]
fn gradients_are_right_along_a_direction() {
    for variant in VARIANTS {
        let config = EfficientNetConfig { drop_path: 0.5, ..small(variant, false) };
        let (encoder, store) = build(&config);
        let x = Var::from_tensor(&normal(&[3, 3, 24, 19])).unwrap();
        for mode in [train(4), Mode::Eval] {
            let loss = || probe(&encoder.forward(&x, mode).unwrap()).unwrap();
            let gradients = Gradients::collect(&store, loss().backward().unwrap());
            gradients.check_reached(&store).unwrap();
            let grads = loss().backward().unwrap();
            let vars: Vec<Var> = store.params().iter().map(|p| p.var().clone()).chain([x.clone()]).collect();
            let (mut slope, mut directions) = (0.0, Vec::new());
            let mut draws = StepRng::new(7).stream("direction").draws();
            for var in &vars {
                let values: Vec<f64> = (0..var.elem_count()).map(|_| 0.1 * draws.normal()).collect();
                let direction = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
                let part = (grads.get(var).unwrap() * &direction).unwrap().sum_all().unwrap();
                slope += part.to_scalar::<f64>().unwrap();
                directions.push((var.copy().unwrap(), direction));
            }
            let at = |shift: f64| {
                for (var, (start, direction)) in vars.iter().zip(&directions) {
                    var.set(&(start + (direction * shift).unwrap()).unwrap()).unwrap();
                }
                // Running statistics have moved by now, but a pass that uses them moves none.
                loss().to_scalar::<f64>().unwrap()
            };
            let h = 1e-7;
            let difference = (at(h) - at(-h)) / (2.0 * h);
            at(0.0);
            assert!((difference / slope - 1.0).abs() < 1e-6, "difference {difference:e}, backward {slope:e}");
        }
    }
}

#[test]
fn training_moves_the_running_statistics_and_evaluation_uses_them() {
    for variant in VARIANTS {
        let (encoder, store) = build(&small(variant, false));
        let x = normal(&[3, 3, 33, 20]);
        let run = |x: &Tensor, mode| encoder.forward(x, mode).unwrap();
        let (start, before) = (buffers(&store), run(&x, Mode::Eval));
        assert_eq!(buffers(&store), start);
        let trained = run(&x, train(1));
        let moved = buffers(&store);
        for ((a, b), buffer) in start.iter().zip(&moved).zip(store.buffers()) {
            // Behind a layer without shortcut the mean of a batch is zero up to rounding.
            let moving = buffer.name().ends_with("var") || buffer.name().ends_with("video.bn1.running_mean");
            let moved = a.iter().zip(b).all(|(a, b)| a != b);
            assert!(moved || !moving, "{} did not move", buffer.name());
        }
        let after = run(&x, Mode::Eval);
        assert_eq!(buffers(&store), moved);
        assert!(gap(&before, &after) > 1e-3 && gap(&after, &trained) > 1e-3);
        // In evaluation an image does not see its batch.
        assert_close(&run(&x.narrow(0, 1, 1).unwrap(), Mode::Eval), &after.narrow(0, 1, 1).unwrap(), 1e-12);
    }
}

#[test]
fn frames_are_encoded_one_by_one_and_averaged() {
    for frozen in [true, false] {
        let (encoder, _) = build(&small(EfficientNetVariant::Tf, frozen));
        // More frames than a frozen encoder computes at once.
        let x = normal(&[2, 17, 3, 9, 12]);
        let frames = encoder.frames(&x, Mode::Eval).unwrap();
        assert_eq!(frames.dims(), [2, 17, 128]);
        for (row, t) in [(0, 0), (1, 14), (1, 15), (1, 16)] {
            let one = x.narrow(0, row, 1).unwrap().narrow(1, t, 1).unwrap();
            let place = frames.narrow(0, row, 1).unwrap().narrow(1, t, 1).unwrap();
            assert_close(&encoder.frames(&one, Mode::Eval).unwrap(), &place, 1e-12);
            let image = one.squeeze(1).unwrap();
            assert_close(&encoder.forward(&image, Mode::Eval).unwrap(), &place.squeeze(1).unwrap(), 1e-12);
        }
        let mean = (frames.sum(1).unwrap() / 17.0).unwrap();
        assert_close(&encoder.forward(&x, Mode::Eval).unwrap(), &mean, 1e-12);
        assert_eq!(
            encoder.frames(&x.narrow(1, 0, 1).unwrap().squeeze(1).unwrap(), Mode::Eval).unwrap().dims(),
            [2, 1, 128]
        );
    }
}

#[test]
fn a_key_fixes_which_blocks_are_left_out() {
    let config = EfficientNetConfig { drop_path: 0.9, ..small(EfficientNetVariant::Tf, false) };
    let (encoder, _) = build(&config);
    let x = normal(&[4, 3, 16, 16]);
    let run = |encoder: &EfficientNet, seed| encoder.forward(&x, train(seed)).unwrap();
    assert_close(&run(&encoder, 1), &run(&encoder, 1), 0.0);
    assert!((2..8).any(|seed| gap(&run(&encoder, 1), &run(&encoder, seed)) > 1e-3));
    // Nothing else is left to chance.
    let (always, _) = build(&EfficientNetConfig { drop_path: 0.0, ..config });
    assert_close(&run(&always, 1), &run(&always, 2), 0.0);
}

#[test]
fn an_image_is_dropped_whole() {
    let (p, images) = (0.3, 2000);
    let y = (normal(&[images, 2, 1, 3]).abs().unwrap() + 0.1).unwrap();
    let dropped = drop_images(&y, p, StepRng::new(5).stream("it")).unwrap();
    let (whole, dropped) = (to_host(&y).unwrap(), to_host(&dropped).unwrap());
    let mut kept = 0.0;
    for (before, after) in whole.chunks(6).zip(dropped.chunks(6)) {
        if after.iter().all(|&v| v == 0.0) {
            continue;
        }
        kept += 1.0;
        assert!(
            before.iter().zip(after).all(|(b, a)| (b / (1.0 - p) - a).abs() < 1e-14),
            "{before:?}, {after:?}"
        );
    }
    // Four standard deviations of a share.
    let share = kept / images as f64;
    assert!((share - 0.7).abs() < 4.0 * (0.21 / images as f64).sqrt(), "{share}");
    assert_close(&drop_images(&y, 0.0, StepRng::new(5)).unwrap(), &y, 0.0);
    assert!(drop_images(&y, 1.0, StepRng::new(5)).unwrap_err().to_string().contains("p must be in [0, 1)"));
}

#[test]
fn products_of_fewer_bits_stay_near() {
    let x = normal(&[2, 3, 30, 31]).to_dtype(DType::F32).unwrap();
    let run = |precision| {
        let mut store = ParamStore::new(3, DType::F32, &Device::Cpu);
        let config = EfficientNetConfig { precision, ..small(EfficientNetVariant::Tf, true) };
        config.build(store.root()).unwrap().forward(&x, Mode::Eval).unwrap()
    };
    let exact = run(Precision::F32);
    assert_close(&run(Precision::Bf16x3), &exact, 1e-3);
    assert_close(&run(Precision::Bf16), &exact, 0.1);
}

#[test]
fn weights_start_as_the_variants_say() {
    for variant in VARIANTS {
        let config = EfficientNetConfig { width: 0.5, depth: 0.5, frozen: false, ..small(variant, false) };
        let (_, store) = build(&config);
        for p in store.params() {
            let values = to_host(p.var()).unwrap();
            let square = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
            let [out, inputs, kh, kw] = p.var().dims()[..] else {
                let scale = p.name().contains("bn") && p.name().ends_with("weight");
                let wanted = if scale { 1.0 } else { 0.0 };
                assert!(values.iter().all(|&v| v == wanted), "{}", p.name());
                continue;
            };
            let depthwise = p.name().ends_with("conv_dw.weight");
            assert_eq!(depthwise, inputs == 1);
            let fan = if depthwise && variant == EfficientNetVariant::Tf { kh * kw } else { out * kh * kw };
            let wanted = 2.0 / fan as f64;
            // Four standard deviations of a mean of squares of normal numbers.
            let room = 4.0 * (2.0 / values.len() as f64).sqrt();
            assert!((square / wanted - 1.0).abs() < room, "{}: {square}, not {wanted}", p.name());
        }
    }
}

#[test]
fn settings_are_checked_and_kept_in_files() {
    let default = EfficientNetConfig::default;
    let torchvision = EfficientNetVariant::Torchvision;
    let bad = [
        (EfficientNetConfig { width: 0.0, ..default() }, "width", "[0.05, 5]"),
        (EfficientNetConfig { width: 1.6, variant: torchvision, ..default() }, "width", "take \"tf\""),
        (EfficientNetConfig { depth: f64::NAN, ..default() }, "depth", "[0.05, 6]"),
        (EfficientNetConfig { drop_path: 1.0, ..default() }, "drop_path", "[0, 1)"),
        (EfficientNetConfig { drop_path: f64::NAN, ..default() }, "drop_path", "[0, 1)"),
    ];
    for (config, field, rule) in bad {
        let error = config.check().unwrap_err();
        assert!(error.field == field && error.rule.contains(rule), "{error}");
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        assert!(config.build(store.root()).unwrap_err().to_string().contains(rule));
    }
    for (name, variant) in [("tf", EfficientNetVariant::Tf), ("torchvision", torchvision)] {
        let precision = Precision::Bf16x3;
        let config =
            EfficientNetConfig { variant, width: 1.0, depth: 1.0, frozen: false, drop_path: 0.1, precision };
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains(&format!("variant = \"{name}\"")), "{text}");
        assert_eq!(toml::from_str::<EfficientNetConfig>(&text).unwrap(), config);
    }
    let unknown = toml::from_str::<EfficientNetConfig>("size = \"b2\"").unwrap_err().to_string();
    assert!(unknown.contains("unknown field"), "{unknown}");
    // B0 to B4 of the paper.
    let widths = [(1.0, 1280), (1.1, 1408), (1.2, 1536), (1.4, 1792)];
    for (variant, (width, dim)) in VARIANTS.iter().flat_map(|&v| widths.map(|w| (v, w))) {
        assert_eq!(EfficientNetConfig { variant, width, ..default() }.dim(), dim);
    }
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (encoder, _) = build(&small(EfficientNetVariant::Tf, true));
    for shape in [&[2, 1, 8, 8][..], &[2, 3, 8], &[2, 4, 1, 8, 8], &[2, 0, 3, 8, 8], &[2, 3, 0, 8]] {
        let x = Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
        let error = encoder.forward(&x, Mode::Eval).unwrap_err().to_string();
        assert!(error.contains("images of 3 channels") && error.contains(&format!("{shape:?}")), "{error}");
    }
}
