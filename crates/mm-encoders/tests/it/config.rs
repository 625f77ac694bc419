//! What a configuration may say.

use mm_encoders::{Activation, EncoderConfig, MlpConfig, Norm};

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
