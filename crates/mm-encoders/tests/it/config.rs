//! What a configuration may say.

use candle_core::{DType, Device, Tensor};
use mm_core::{Mode, ParamStore, RowShape};
use mm_encoders::{Activation, EncoderConfig, MlpConfig, Norm, ResNetConfig};

#[test]
fn unknown_keys_and_values_are_refused() {
    let refused = |text: &str| toml::from_str::<EncoderConfig>(text).unwrap_err().to_string();
    assert!(refused("kind = \"mlp\"\nhiden = [3]").contains("unknown field `hiden`"));
    assert!(refused("kind = \"mpl\"").contains("unknown variant `mpl`"));
    assert!(refused("kind = \"mlp\"\nnorm = \"bach\"").contains("unknown variant `bach`"));
    assert!(refused("dim = 3").contains("missing field `kind`"));
    let error = EncoderConfig::named("mpl").unwrap_err();
    assert_eq!((error.field.as_str(), error.suggestion.as_deref()), ("kind", Some("mlp")));
}

#[test]
fn bad_settings_are_named() {
    let bad = [
        (MlpConfig { hidden: vec![3, 0], ..MlpConfig::default() }, "hidden"),
        (MlpConfig { dim: 0, ..MlpConfig::default() }, "dim"),
        (MlpConfig { dropout: 1.0, ..MlpConfig::default() }, "dropout"),
        (MlpConfig { input_dropout: f64::NAN, ..MlpConfig::default() }, "input_dropout"),
    ];
    for (config, field) in bad {
        let error = EncoderConfig::Mlp(config).check().unwrap_err();
        assert_eq!(error.within("model.encoder.audio").field, format!("model.encoder.audio.{field}"));
    }
    assert!(EncoderConfig::default().check().is_ok());
}

#[test]
fn nothing_is_lost_in_a_file() {
    for norm in [Norm::None, Norm::Layer, Norm::Batch] {
        for activation in [Activation::Relu, Activation::Gelu] {
            let config = EncoderConfig::Mlp(MlpConfig {
                hidden: vec![7, 5],
                dim: 3,
                dropout: 0.25,
                input_dropout: 0.5,
                norm,
                activation,
                final_activation: false,
            });
            let text = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<EncoderConfig>(&text).unwrap(), config);
        }
    }
}

#[test]
fn every_kind_has_its_name_its_file_and_its_rows() {
    for config in EncoderConfig::all() {
        assert_eq!(EncoderConfig::named(config.name()).unwrap(), config);
        let text = toml::to_string(&config).unwrap();
        assert!(text.starts_with(&format!("kind = \"{}\"", config.name())), "{text}");
        assert_eq!(toml::from_str::<EncoderConfig>(&text).unwrap(), config);
        assert!(config.check().is_ok());
    }
    let taken = |shape: RowShape| {
        let all = EncoderConfig::all();
        let fit = all.iter().filter(|c| c.check_input("m", &shape).is_ok());
        fit.map(EncoderConfig::name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(taken(RowShape::fixed([160])), "mlp bert");
    assert_eq!(taken(RowShape::fixed([16000])), "mlp wav2vec2");
    assert_eq!(taken(RowShape::ragged([64000])), "wav2vec2");
    assert_eq!(taken(RowShape::ragged([80, 64])), "conformer sequence");
    assert_eq!(taken(RowShape::fixed([3, 64, 64])), "resnet efficientnet");
    assert_eq!(taken(RowShape::fixed([2, 3, 64, 64])), "resnet efficientnet");
    assert_eq!(taken(RowShape::fixed([1, 1, 1, 1, 1])), "");
    let grey = EncoderConfig::ResNet(ResNetConfig { channels: 1, ..ResNetConfig::default() });
    assert!(grey.check_input("m", &RowShape::fixed([257, 188])).is_ok());
}

#[test]
fn an_encoder_made_by_kind_takes_rows_of_its_shape() {
    let cases = [
        ("kind = \"mlp\"\nhidden = []\ndim = 3", RowShape::fixed([5]), vec![2, 5]),
        ("kind = \"resnet\"\nchannels = 1", RowShape::fixed([9, 7]), vec![2, 9, 7]),
        ("kind = \"sequence\"\nnetwork = \"transformer\"\ndim = 4", RowShape::ragged([6, 5]), vec![2, 4, 5]),
        ("kind = \"conformer\"\ndim = 4\nheads = 2\nlayers = 1", RowShape::fixed([6, 5]), vec![2, 6, 5]),
    ];
    for (text, shape, input) in cases {
        let config: EncoderConfig = toml::from_str(text).unwrap();
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        let encoder = config.build(store.root().at("encoder").at("m"), &shape).unwrap();
        let x = Tensor::ones(input, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(encoder.forward(&x, Mode::Eval).unwrap().dims(), [2, config.dim()]);
        let padded = encoder.forward_padded(&x, &[x.dim(1).unwrap(), 1], Mode::Eval);
        assert_eq!(padded.is_ok(), matches!(config.name(), "sequence" | "conformer"), "{text}");
    }
}
