//! BERT and DistilBERT: masks, dropouts, settings, errors.

use candle_core::{DType, Device, Tensor};
use mm_core::model::to_host;
use mm_core::{Encoder, Mode, ParamStore, StepRng};
use mm_encoders::bert::{Activation, Family, Pooling, from_bert, from_distilbert};
use mm_encoders::{Bert, BertConfig, Mask};
use mm_testkit::gradients::probe;
use mm_testkit::{assert_close, check_gradients};

fn config() -> BertConfig {
    BertConfig {
        vocab_size: 11,
        dim: 4,
        layers: 2,
        heads: 2,
        feed_forward: 6,
        max_positions: 7,
        ..BertConfig::default()
    }
}

fn build(config: &BertConfig) -> (Bert, ParamStore) {
    let mut store = ParamStore::new(3, DType::F64, &Device::Cpu);
    let encoder = config.build(store.root().at("encoder").at("text")).unwrap();
    // Weights of 0.02 leave all texts nearly alike.
    for p in store.params().iter().filter(|p| p.var().rank() == 2) {
        p.var().set(&(p.var().as_tensor() * 20.0).unwrap()).unwrap();
    }
    (encoder, store)
}

fn train(seed: u64) -> Mode {
    Mode::Train(StepRng::new(seed).stream("it"))
}

fn ids<const B: usize, const N: usize>(ids: [[u32; N]; B]) -> Tensor {
    Tensor::new(&ids, &Device::Cpu).unwrap()
}

#[test]
fn gradients_are_right_with_dropout_and_padding() {
    let distilled = BertConfig { family: Family::DistilBert, pooling: Pooling::Mean, ..config() };
    for config in [config(), distilled] {
        let config = BertConfig { layers: 1, activation: Activation::GeluTanh, ..config };
        let (encoder, store) = build(&config);
        let texts = ids([[2, 7, 9, 3], [2, 3, 0, 0]]);
        for mode in [train(1), Mode::Eval] {
            // The embedding of the padding token has no gradient, and none is due: no feature depends on it.
            check_gradients(&store, &[], 1e-6, || probe(&encoder.forward(&texts, mode)?)).unwrap();
        }
    }
}

#[test]
fn a_text_in_a_padded_batch_is_the_text_alone() {
    for pooling in [Pooling::First, Pooling::Mean] {
        let (encoder, _) = build(&BertConfig { pooling, ..config() });
        let batch = ids([[2, 7, 9, 5, 3, 0], [2, 3, 0, 0, 0, 0], [0; 6], [2, 4, 8, 8, 6, 3]]);
        let features = encoder.forward(&batch, Mode::Eval).unwrap();
        for (row, text) in [ids([[2, 7, 9, 5, 3]]), ids([[2, 3, 0, 0, 0]]), ids([[2, 4, 8, 8, 6, 3]])]
            .iter()
            .zip([0, 1, 3])
            .map(|(text, row)| (row, text))
        {
            let alone = encoder.forward(text, Mode::Eval).unwrap();
            assert_close(&alone, &features.narrow(0, row, 1).unwrap(), 1e-12);
        }
        // Without a token there is no feature, in training neither.
        for mode in [Mode::Eval, train(1)] {
            let empty = encoder.forward(&batch, mode).unwrap().get(2).unwrap();
            assert_eq!(to_host(&empty).unwrap(), [0.0; 4]);
        }
        // A mask of one's own: the token 9 is as if it were not there, but positions stay.
        let mask = Mask::from_tensor(&ids([[1, 1, 0, 1]])).unwrap();
        let with = |id: u32| encoder.encode(&ids([[2, 7, id, 3]]), Some(&mask), Mode::Eval).unwrap();
        assert_eq!(to_host(&with(9)).unwrap(), to_host(&with(5)).unwrap());
        let seen = |id: u32| encoder.forward(&ids([[2, 7, id, 3]]), Mode::Eval).unwrap();
        assert_ne!(to_host(&seen(9)).unwrap(), to_host(&seen(5)).unwrap());
    }
}

#[test]
fn dropout_follows_its_key_and_its_settings() {
    let texts = ids([[2, 7, 9, 3], [2, 3, 0, 0]]);
    let of = |dropout: f64, attention_dropout: f64, family: Family, mode: Mode| {
        let (encoder, _) = build(&BertConfig { dropout, attention_dropout, family, ..config() });
        to_host(&encoder.forward(&texts, mode).unwrap()).unwrap()
    };
    for family in [Family::Bert, Family::DistilBert] {
        let evaluated = of(0.1, 0.1, family, Mode::Eval);
        assert_eq!(of(0.0, 0.0, family, train(1)), evaluated);
        assert_eq!(of(0.1, 0.1, family, train(1)), of(0.1, 0.1, family, train(1)));
        assert_ne!(of(0.1, 0.1, family, train(1)), of(0.1, 0.1, family, train(2)));
        for (dropout, attention_dropout) in [(0.3, 0.0), (0.0, 0.3)] {
            assert_ne!(of(dropout, attention_dropout, family, train(1)), evaluated);
        }
        // Weights that are hardly ever dropped: the composition is the kernel.
        let rare = of(0.0, 1e-13, family, train(1));
        assert!(rare.iter().zip(&evaluated).all(|(a, b)| (a - b).abs() < 1e-11), "{rare:?} {evaluated:?}");
    }
}

#[test]
fn parameters_have_berts_names() {
    let (_, store) = build(&config());
    let names: Vec<&str> = store.params().iter().map(mm_core::Param::name).collect();
    assert_eq!(names.len(), 5 + 2 * 16);
    assert_eq!(names[0], "encoder.text.embeddings.word_embeddings.weight");
    assert!(names.contains(&"encoder.text.encoder.layer.1.attention.output.LayerNorm.bias"));
    for p in store.params() {
        let name = p.name().strip_prefix("encoder.text.").unwrap();
        assert_eq!(from_bert(&format!("bert.{name}")).as_deref(), Some(name));
    }
    let (_, store) = build(&BertConfig { family: Family::DistilBert, ..config() });
    assert_eq!(store.len(), 4 + 2 * 16);
    assert!(store.params().iter().all(|p| !p.name().contains("token_type")));

    let old = "bert.embeddings.LayerNorm.beta";
    assert_eq!(from_bert(old).as_deref(), Some("embeddings.LayerNorm.bias"));
    let unknown = [
        "",
        "weight",
        "bert.embeddings.position_ids",
        "bert.embeddings.word_embeddings.bias",
        "bert.encoder.layer.x.output.dense.weight",
        "bert.encoder.layer.0.output.dense.gamma",
        "bert.encoder.layer.0.crossattention.self.key.weight",
        "encoder.layer",
    ];
    for name in unknown {
        assert_eq!(from_bert(name), None, "{name}");
        assert_eq!(from_distilbert(name), None, "{name}");
    }
    assert_eq!(from_distilbert("distilbert.embeddings.token_type_embeddings.weight"), None);
    assert_eq!(from_distilbert("bert.encoder.layer.0.output.dense.weight"), None);
    assert_eq!(from_distilbert("transformer.layer.0.ffn.lin3.weight"), None);
}

#[test]
fn settings_are_checked_and_kept_in_files() {
    let bad = [
        (BertConfig { dim: 0, ..config() }, "dim", "at least 1"),
        (BertConfig { type_vocab_size: 0, ..config() }, "type_vocab_size", "at least 1"),
        (BertConfig { heads: 3, ..config() }, "heads", "must divide dim = 4"),
        (BertConfig { pad_token_id: 11, ..config() }, "pad_token_id", "below vocab_size = 11"),
        (BertConfig { eps: 0.0, ..config() }, "eps", "above 0"),
        (BertConfig { attention_dropout: 1.0, ..config() }, "attention_dropout", "[0, 1)"),
    ];
    for (config, field, rule) in bad {
        let error = config.check().unwrap_err();
        assert!(error.field == field && error.rule.contains(rule), "{error}");
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        assert!(config.build(store.root()).unwrap_err().to_string().contains(rule));
    }
    for (family, name) in [(Family::Bert, "bert"), (Family::DistilBert, "distilbert")] {
        let config =
            BertConfig { family, pooling: Pooling::Mean, activation: Activation::GeluTanh, ..config() };
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains(&format!("family = \"{name}\"")) && text.contains("gelu-tanh"), "{text}");
        assert_eq!(toml::from_str::<BertConfig>(&text).unwrap(), config);
    }
    assert!(toml::from_str::<BertConfig>("width = 3").unwrap_err().to_string().contains("unknown field"));
}

#[test]
fn configurations_of_checkpoints_are_read() {
    let read = |text: &str| BertConfig::from_hugging_face(toml::from_str::<toml::Table>(text).unwrap());
    let bert = "model_type = 'bert'\nhidden_size = 1024\nnum_hidden_layers = 24\nnum_attention_heads = 16\n\
                intermediate_size = 4096\nlayer_norm_eps = 1e-9\nposition_embedding_type = 'absolute'\n\
                architectures = ['BertForMaskedLM']\nattention_probs_dropout_prob = 0\nvocab_size = 28996";
    let expected = BertConfig {
        dim: 1024,
        layers: 24,
        heads: 16,
        feed_forward: 4096,
        eps: 1e-9,
        attention_dropout: 0.0,
        vocab_size: 28996,
        ..BertConfig::default()
    };
    assert_eq!(read(bert).unwrap(), expected);
    let distilled = BertConfig { family: Family::DistilBert, layers: 6, ..BertConfig::default() };
    let text = "model_type = 'distilbert'\nn_layers = 6\nn_heads = 12\ndim = 768\nhidden_dim = 3072\n\
                dropout = 0.1\nattention_dropout = 0.1\nactivation = 'gelu'\ntie_weights_ = true";
    assert_eq!(read(text).unwrap(), distilled);
    assert_eq!(read("model_type = 'distilbert'").unwrap(), distilled);

    let error = |text: &str| read(text).unwrap_err().to_string();
    assert!(
        error("model_type = 'roberta'")
            .contains("model_type = \"roberta\": must be \"bert\" or \"distilbert\"")
    );
    assert!(error("dim = 4").contains("model_type = null"));
    assert!(
        error("model_type = 'bert'\nhidden_act = 'mish'").contains("hidden_act = \"mish\": allowed: gelu")
    );
    assert!(error("model_type = 'bert'\nposition_embedding_type = 'relative_key'").contains("absolute"));
    assert!(error("model_type = 'bert'\nis_decoder = true").contains("is_decoder"));
    assert!(error("model_type = 'bert'\nnum_attention_heads = 7").contains("heads = 7"));
    assert!(error("model_type = 'bert'\nhidden_size = -1").contains("config.json"));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let (encoder, _) = build(&config());
    let error = |x: &Tensor| encoder.forward(x, Mode::Eval).unwrap_err().to_string();
    assert!(error(&ids([[2, 11]])).contains("row 0, place 1 holds 11, not a token id below vocab_size = 11"));
    for bad in [0.5f32, -1.0, f32::NAN, f32::INFINITY] {
        let x = Tensor::new(&[[2f32, 3.0], [2.0, bad]], &Device::Cpu).unwrap();
        assert!(error(&x).contains("row 1, place 1 holds"), "{}", error(&x));
    }
    assert!(error(&ids([[2; 8]])).contains("texts of 1 to max_positions = 7 tokens, not 8: cut the texts"));
    assert!(error(&Tensor::zeros((2, 0), DType::U32, &Device::Cpu).unwrap()).contains("not 0"));
    assert!(error(&Tensor::zeros(3, DType::U32, &Device::Cpu).unwrap()).contains("(batch, tokens)"));
    assert!(error(&Tensor::zeros((1, 2), DType::BF16, &Device::Cpu).unwrap()).contains("BF16"));
    let late = Mask::from_tensor(&ids([[1, 1], [0, 1]])).unwrap();
    let error = encoder.encode(&ids([[2, 3], [0, 2]]), Some(&late), Mode::Eval).unwrap_err().to_string();
    assert!(error.contains("row 1 begins with padding") && error.contains("pad on the right"), "{error}");
    let error = encoder.encode(&ids([[2, 3, 4]]), Some(&late), Mode::Eval).unwrap_err().to_string();
    assert!(error.contains("does not fit [1, 3]"), "{error}");
}
