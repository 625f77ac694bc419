//! Wav2Vec2: padding, masks, what is left out in training, settings.

use candle_core::{D, DType, Device, Tensor, Var};
use mm_core::model::to_host;
use mm_core::{Encoder, Gradients, Mode, ParamStore, StepRng};
use mm_encoders::wav2vec2::{FeatureNorm, Pooling, SpanMask};
use mm_encoders::{Precision, Wav2Vec2, Wav2Vec2Config};
use mm_testkit::gradients::probe;
use mm_testkit::{assert_close, check_gradients};

/// Two frames for each nine samples or so; nothing is left out in training.
fn config(norm: FeatureNorm) -> Wav2Vec2Config {
    Wav2Vec2Config {
        conv_dim: vec![4, 6],
        conv_kernel: vec![5, 3],
        conv_stride: vec![2, 2],
        conv_bias: norm == FeatureNorm::Layer,
        feat_extract_norm: norm,
        hidden_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 10,
        do_stable_layer_norm: norm == FeatureNorm::Layer,
        num_conv_pos_embeddings: 4,
        num_conv_pos_embedding_groups: 2,
        hidden_dropout: 0.0,
        activation_dropout: 0.0,
        attention_dropout: 0.0,
        layerdrop: 0.0,
        apply_spec_augment: false,
        freeze_features: false,
        ..Wav2Vec2Config::default()
    }
}

const NORMS: [FeatureNorm; 2] = [FeatureNorm::Group, FeatureNorm::Layer];

/// Start values of the published size give a transformer that adds almost nothing: these ones are larger.
fn build(config: &Wav2Vec2Config) -> (Wav2Vec2, ParamStore) {
    let mut store = ParamStore::new(3, DType::F64, &Device::Cpu);
    let encoder = config.build(store.root().at("encoder").at("audio")).unwrap();
    for p in store.params().iter().filter(|p| p.var().rank() > 1) {
        let mut draws = StepRng::new(4).stream(p.name()).draws();
        let values: Vec<f64> = (0..p.var().elem_count()).map(|_| 0.4 * draws.normal()).collect();
        p.var().set(&Tensor::from_vec(values, p.var().shape(), &Device::Cpu).unwrap()).unwrap();
    }
    (encoder, store)
}

fn normal(shape: &[usize], seed: u64) -> Tensor {
    let mut draws = StepRng::new(seed).stream("it").draws();
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| draws.normal()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn train(seed: u64) -> Mode {
    Mode::Train(StepRng::new(seed).stream("it"))
}

#[test]
fn gradients_are_right_whatever_training_leaves_out() {
    for norm in NORMS {
        let mut config = Wav2Vec2Config {
            hidden_dropout: 0.1,
            activation_dropout: 0.1,
            attention_dropout: 0.2,
            feat_proj_dropout: 0.1,
            layerdrop: 0.4,
            apply_spec_augment: true,
            mask_time_prob: 0.4,
            mask_time_length: 2,
            mask_feature_prob: 0.3,
            mask_feature_length: 2,
            ..config(norm)
        };
        config.num_attention_heads = 4;
        let (encoder, store) = build(&config);
        let x = Var::from_tensor(&normal(&[2, 40], 2)).unwrap();
        for (seed, lengths) in [(1, None), (2, Some(&[40, 21][..]))] {
            let loss = || probe(&encoder.frames(&x, lengths, train(seed))?);
            let grads = Gradients::collect(&store, loss().unwrap().backward().unwrap());
            let layers = grads.norm(store.group("encoder.audio.encoder.layers")).unwrap();
            assert!(layers > 0.0, "every layer is left out: take another seed");
            check_gradients(&store, std::slice::from_ref(&x), 1e-5, loss).unwrap();
        }
    }
}

#[test]
fn gradients_reach_every_parameter_even_of_layers_that_are_left_out() {
    for norm in NORMS {
        let config = Wav2Vec2Config { layerdrop: 0.5, apply_spec_augment: true, ..config(norm) };
        let (encoder, store) = build(&config);
        let x = normal(&[2, 60], 2);
        let mut seen = [0, 0];
        for seed in 0..40 {
            let y = encoder.forward(&x, train(seed)).unwrap();
            let gradients = Gradients::collect(&store, probe(&y).unwrap().backward().unwrap());
            gradients.check_reached(&store).unwrap();
            let layer: Vec<_> = store.group("encoder.audio.encoder.layers.0").collect();
            assert_eq!(layer.len(), 16);
            seen[usize::from(gradients.norm(layer).unwrap() > 0.0)] += 1;
        }
        assert!(seen.iter().all(|&count| (10..=30).contains(&count)), "left out and not: {seen:?}");
    }
}

#[test]
fn a_layer_that_is_left_out_changes_nothing() {
    for norm in NORMS {
        let with = Wav2Vec2Config { num_hidden_layers: 1, layerdrop: 0.5, ..config(norm) };
        let (encoder, _) = build(&with);
        let x = normal(&[1, 30], 2);
        let full = encoder.frames(&x, None, Mode::Eval).unwrap();
        let outputs: Vec<Vec<f64>> =
            (0..20).map(|s| to_host(&encoder.frames(&x, None, train(s)).unwrap()).unwrap()).collect();
        let full = to_host(&full).unwrap();
        let left: Vec<&Vec<f64>> = outputs.iter().filter(|y| **y != full).collect();
        assert!((4..=16).contains(&left.len()), "{} of 20 steps leave the layer out", left.len());
        assert!(left.iter().all(|y| *y == left[0]));
        let zeroed = Wav2Vec2Config { layerdrop: 0.0, ..with };
        let (bare, store) = build(&zeroed);
        for p in store.group("encoder.audio.encoder.layers.0") {
            let p = store.get(p);
            // Without what its parts add, a pre-norm layer is the identity.
            if norm == FeatureNorm::Layer && p.name().contains("out") {
                p.var().set(&p.var().zeros_like().unwrap()).unwrap();
            }
        }
        if norm == FeatureNorm::Layer {
            assert_eq!(&to_host(&bare.frames(&x, None, Mode::Eval).unwrap()).unwrap(), left[0]);
        }
    }
}

#[test]
fn frozen_convolutions_are_buffers_and_get_no_gradient() {
    for norm in NORMS {
        let (free, free_store) = build(&config(norm));
        let (frozen, store) = build(&Wav2Vec2Config { freeze_features: true, ..config(norm) });
        store.load(&free_store.tensors()).unwrap();
        let x = Var::from_tensor(&normal(&[2, 30], 2)).unwrap();
        let y = frozen.forward(&x, Mode::Eval).unwrap();
        // Values that are loaded later arrive; only what is trained differs.
        assert_close(&y, &free.forward(&x, Mode::Eval).unwrap(), 0.0);
        let is_extractor = |name: &str| name.starts_with("encoder.audio.feature_extractor.");
        assert!(store.params().iter().all(|p| !is_extractor(p.name())));
        assert!(store.buffers().iter().all(|b| is_extractor(b.name())) && !store.buffers().is_empty());
        assert!(free_store.buffers().is_empty());
        let grads = probe(&y).unwrap().backward().unwrap();
        assert!(store.buffers().iter().all(|b| grads.get(b.var().as_tensor()).is_none()));
        let other = probe(&free.forward(&x, Mode::Eval).unwrap()).unwrap().backward().unwrap();
        assert_close(grads.get(&x).unwrap(), other.get(&x).unwrap(), 1e-12);
        for p in store.params() {
            let twin = free_store.find(p.name()).unwrap();
            assert_close(grads.get(p.var()).unwrap(), other.get(twin.var()).unwrap(), 1e-12);
        }
        Gradients::collect(&store, grads).check_reached(&store).unwrap();
    }
}

#[test]
fn a_clip_gives_in_a_padded_batch_what_it_gives_alone() {
    for norm in NORMS {
        let config = config(norm);
        let (encoder, _) = build(&config);
        let (lengths, samples) = ([50, 23, 37, 9], 50);
        assert_eq!(config.least_samples(), 9);
        let x = normal(&[4, samples], 2);
        let together = encoder.frames(&x, Some(&lengths), Mode::Eval).unwrap();
        let pooled = encoder.pooled(&x, Some(&lengths), Mode::Eval).unwrap();
        for (row, &length) in lengths.iter().enumerate() {
            let alone = x.narrow(0, row, 1).unwrap().narrow(1, 0, length).unwrap();
            let expected = encoder.frames(&alone, None, Mode::Eval).unwrap();
            assert_eq!(expected.dims(), [1, config.frames(length), 8]);
            let own = together.narrow(0, row, 1).unwrap().narrow(1, 0, config.frames(length)).unwrap();
            assert_close(&own, &expected, 1e-12);
            let mean = encoder.forward(&alone, Mode::Eval).unwrap();
            assert_close(&mean, &expected.mean(1).unwrap(), 1e-12);
            assert_close(&pooled.narrow(0, row, 1).unwrap(), &mean, 1e-12);
            // Unpadded, in a batch of its like.
            let twice = Tensor::cat(&[&alone, &alone], 0).unwrap();
            let twice = encoder.forward(&twice, Mode::Eval).unwrap();
            assert_close(&twice.narrow(0, 1, 1).unwrap(), &mean, 1e-12);
        }
        // What stands in the padding does not matter; without lengths it would.
        let noise = normal(&[4, samples], 5);
        let behind: Vec<u8> =
            lengths.iter().flat_map(|&l| (0..samples).map(move |s| u8::from(s >= l))).collect();
        let behind = Tensor::from_vec(behind, (4, samples), &Device::Cpu).unwrap();
        let other = behind.where_cond(&noise, &x).unwrap();
        assert_close(&encoder.pooled(&other, Some(&lengths), Mode::Eval).unwrap(), &pooled, 1e-12);
        let blind = (encoder.forward(&x, Mode::Eval).unwrap() - &pooled).unwrap().abs().unwrap();
        assert!(to_host(&blind.max(D::Minus1).unwrap()).unwrap()[1] > 1e-3);
    }
}

#[test]
fn fewer_layers_are_the_first_ones() {
    for norm in NORMS {
        let (cut, store) = build(&Wav2Vec2Config { layers: Some(1), ..config(norm) });
        let (short, other) = build(&Wav2Vec2Config { num_hidden_layers: 1, ..config(norm) });
        assert_eq!(
            store.tensors().into_keys().collect::<Vec<_>>(),
            other.tensors().into_keys().collect::<Vec<_>>()
        );
        let x = normal(&[2, 30], 2);
        let y = cut.forward(&x, Mode::Eval).unwrap();
        assert_close(&y, &short.forward(&x, Mode::Eval).unwrap(), 0.0);
        let (long, _) = build(&config(norm));
        let long = (long.forward(&x, Mode::Eval).unwrap() - y).unwrap().abs().unwrap();
        assert!(long.max_all().unwrap().to_scalar::<f64>().unwrap() > 1e-2);
    }
}

#[test]
fn tokens_are_frames_and_a_key_fixes_the_bits() {
    let config = Wav2Vec2Config {
        pooling: Pooling::None,
        hidden_dropout: 0.1,
        apply_spec_augment: true,
        ..config(FeatureNorm::Layer)
    };
    let (encoder, _) = build(&config);
    let x = normal(&[2, 60], 2);
    let host = |mode| to_host(&encoder.forward(&x, mode).unwrap()).unwrap();
    assert_eq!(encoder.forward(&x, Mode::Eval).unwrap().dims(), [2, config.frames(60), 8]);
    assert_eq!(host(Mode::Eval), to_host(&encoder.frames(&x, None, Mode::Eval).unwrap()).unwrap());
    assert_eq!(host(train(1)), host(train(1)));
    assert_ne!(host(train(1)), host(train(2)));
    assert_eq!(encoder.dim(), 8);
}

#[test]
fn spans_are_hidden_inside_the_clip() {
    let mut hidden = 0;
    for seed in 0..200 {
        let spans = SpanMask { probability: 0.3, length: 3, at_least: 1 };
        let (valid, places) = ([40, 25, 3, 2, 0], 40);
        let key = StepRng::new(seed);
        let mask = spans.draw(&valid, places, key);
        assert_eq!(mask, spans.draw(&valid, places, key));
        for (row, &valid) in mask.chunks_exact(places).zip(&valid) {
            assert!(row[valid..].iter().all(|&m| m == 0), "the padding of {valid} places is hidden: {row:?}");
            // Runs are of one span or more, and there are not too many of them.
            let runs: Vec<usize> =
                row.split(|&m| m == 0).filter(|run| !run.is_empty()).map(<[u8]>::len).collect();
            assert!(runs.iter().all(|&run| run >= 3), "{runs:?}");
            let count: usize = row.iter().map(|&m| usize::from(m)).sum();
            let most = spans.spans(valid, places, 0.999_999);
            assert!(count <= 3 * most && (count > 0) == (valid >= 3), "{count} of {valid} are hidden");
            assert!(runs.len() <= most);
        }
        hidden += mask[..places].iter().map(|&m| usize::from(m)).sum::<usize>();
    }
    // 12 of 40 places are asked for; spans that overlap hide fewer.
    let mean = hidden as f64 / 200.0;
    assert!((9.0..12.5).contains(&mean), "{mean} of 40 places");
    // The rounding is drawn: without it 0.4 spans would be none.
    let spans = SpanMask { probability: 0.1, length: 10, at_least: 0 };
    let drawn = (0..500).filter(|&seed| spans.draw(&[40], 40, StepRng::new(seed)).contains(&1)).count();
    assert!((160..240).contains(&drawn), "{drawn} of 500");
    // Every start is as likely as any other, the last one too.
    let spans = SpanMask { probability: 0.0, length: 2, at_least: 1 };
    let mut starts = [0; 4];
    for seed in 0..2000 {
        let mask = spans.draw(&[5], 6, StepRng::new(seed));
        starts[mask.iter().position(|&m| m == 1).unwrap()] += 1;
    }
    assert!(starts.iter().all(|&count| (430..570).contains(&count)), "{starts:?}");
    // A span that does not fit hides nothing; one that fits once hides all.
    let spans = SpanMask { probability: 1.0, length: 7, at_least: 3 };
    assert_eq!(spans.draw(&[6], 6, StepRng::new(0)), [0; 6]);
    assert_eq!(spans.draw(&[7], 7, StepRng::new(0)), [1; 7]);
    assert!(
        spans.draw(&[], 7, StepRng::new(0)).is_empty() && spans.draw(&[0], 0, StepRng::new(0)).is_empty()
    );
}

#[test]
fn bfloat16_in_three_products_is_close() {
    let x = normal(&[2, 60], 2).to_dtype(DType::F32).unwrap();
    let [plain, three] = [Precision::F32, Precision::Bf16x3].map(|precision| {
        let mut store = ParamStore::new(3, DType::F32, &Device::Cpu);
        let config = Wav2Vec2Config { precision, ..config(FeatureNorm::Layer) };
        config.build(store.root()).unwrap().forward(&x, Mode::Eval).unwrap()
    });
    assert_close(&three, &plain, 2e-3);
}

#[test]
fn frames_are_counted() {
    let published = Wav2Vec2Config::default();
    assert_eq!(published.least_samples(), 400);
    let frames = [0, 9, 399, 400, 719, 720, 16_000, 77_920].map(|samples| published.frames(samples));
    assert_eq!(frames, [0, 0, 0, 1, 1, 2, 49, 243]);
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (encoder, _) = build(&config(FeatureNorm::Group));
    let error = |shape: &[usize], lengths: Option<&[usize]>| {
        let x = Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
        encoder.frames(&x, lengths, Mode::Eval).unwrap_err().to_string()
    };
    for shape in [&[2, 8][..], &[30], &[2, 30, 1], &[0, 30]] {
        let error = error(shape, None);
        assert!(
            error.contains("waveforms (batch, samples) of at least 9")
                && error.contains(&format!("{shape:?}"))
        );
    }
    assert!(error(&[2, 30], Some(&[30])).contains("1 lengths for 2 clips"));
    for bad in [8, 31] {
        let error = error(&[2, 30], Some(&[30, bad]));
        assert!(error.contains(&format!("clip 1 has a length of {bad} samples")), "{error}");
    }
}
