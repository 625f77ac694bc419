//! The settings of a Wav2Vec2 and the files of checkpoints.

use candle_core::{DType, Device};
use mm_core::ParamStore;
use mm_encoders::Wav2Vec2Config;
use mm_encoders::wav2vec2::{FeatureNorm, Pooling, Preprocessor};
use serde::de::IntoDeserializer;
use serde::de::value::{Error, MapDeserializer};

/// The layout of `facebook/wav2vec2-base-960h`: a group norm, norms after the parts, some fields left out.
const BASE: &str = r#"
activation_dropout = 0.1
apply_spec_augment = true
architectures = ["Wav2Vec2ForCTC"]
attention_dropout = 0.1
conv_bias = false
conv_dim = [512, 512, 512, 512, 512, 512, 512]
conv_kernel = [10, 3, 3, 3, 3, 2, 2]
conv_stride = [5, 2, 2, 2, 2, 2, 2]
do_stable_layer_norm = false
feat_extract_activation = "gelu"
feat_extract_dropout = 0.0
feat_extract_norm = "group"
feat_proj_dropout = 0.1
final_dropout = 0.1
hidden_act = "gelu"
hidden_dropout = 0.1
hidden_dropout_prob = 0.1
hidden_size = 768
intermediate_size = 3072
layer_norm_eps = 1e-05
layerdrop = 0.1
model_type = "wav2vec2"
num_attention_heads = 12
num_conv_pos_embedding_groups = 16
num_conv_pos_embeddings = 128
num_feat_extract_layers = 7
num_hidden_layers = 12
vocab_size = 32
"#;

/// The layout of `facebook/wav2vec2-large-robust`: layer norms, norms before the parts.
const ROBUST: &str = r#"
activation_dropout = 0.0
apply_spec_augment = true
attention_dropout = 0.1
codevector_dim = 768
conv_bias = true
conv_dim = [512, 512, 512, 512, 512, 512, 512]
conv_kernel = [10, 3, 3, 3, 3, 2, 2]
conv_stride = [5, 2, 2, 2, 2, 2, 2]
do_stable_layer_norm = true
feat_extract_activation = "gelu"
feat_extract_norm = "layer"
feat_proj_dropout = 0.1
hidden_act = "gelu"
hidden_dropout = 0.1
hidden_size = 1024
intermediate_size = 4096
layer_norm_eps = 1e-05
layerdrop = 0.1
mask_channel_prob = 0.0
mask_feature_length = 10
mask_feature_prob = 0.0
mask_time_length = 10
mask_time_prob = 0.05
model_type = "wav2vec2"
num_attention_heads = 16
num_conv_pos_embedding_groups = 16
num_conv_pos_embeddings = 128
num_feat_extract_layers = 7
num_hidden_layers = 24
"#;

fn read(text: &str) -> Result<Wav2Vec2Config, mm_core::ConfigError> {
    Wav2Vec2Config::from_hugging_face(toml::from_str::<toml::Value>(text).unwrap())
}

#[test]
fn published_layouts_are_read() {
    let base = read(BASE).unwrap();
    assert_eq!(base, Wav2Vec2Config { feat_proj_dropout: 0.1, ..Wav2Vec2Config::default() });
    let robust = Wav2Vec2Config {
        conv_bias: true,
        feat_extract_norm: FeatureNorm::Layer,
        hidden_size: 1024,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        intermediate_size: 4096,
        do_stable_layer_norm: true,
        activation_dropout: 0.0,
        feat_proj_dropout: 0.1,
        ..Wav2Vec2Config::default()
    };
    assert_eq!(read(ROBUST).unwrap(), robust);
    // What a balanced model takes of it.
    let kept = Wav2Vec2Config { layers: Some(12), ..robust };
    assert_eq!(kept.tensor_name("encoder.layers.12.layer_norm.weight"), None);
    assert!(kept.tensor_name("encoder.layers.11.layer_norm.weight").is_some());
}

#[test]
fn null_is_a_default() {
    let fields = [("model_type", Some("wav2vec2")), ("adapter_attn_dim", None), ("hidden_size", None)];
    let fields: Vec<_> = fields.to_vec();
    let source = MapDeserializer::<_, Error>::new(fields.into_iter().map(|(key, v)| (key, Nullable(v))));
    assert_eq!(Wav2Vec2Config::from_hugging_face(source).unwrap(), Wav2Vec2Config::default());
}

/// A text or null, as JSON has it.
struct Nullable(Option<&'static str>);

impl IntoDeserializer<'_, Error> for Nullable {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> serde::Deserializer<'de> for Nullable {
    type Error = Error;
    fn deserialize_any<V: serde::de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Some(text) => visitor.visit_str(text),
            None => visitor.visit_unit(),
        }
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[test]
fn files_of_other_models_are_refused_by_field() {
    let cases = [
        (
            "model_type = \"wav2vec2\"",
            "model_type = \"hubert\"",
            "model_type = \"hubert\": allowed: wav2vec2",
        ),
        ("model_type = \"wav2vec2\"", "", "model_type = (missing): must be \"wav2vec2\""),
        ("hidden_act = \"gelu\"", "hidden_act = \"gelu_new\"", "hidden_act = \"gelu_new\": allowed: gelu"),
        ("feat_extract_norm = \"group\"", "feat_extract_norm = \"grup\"", "did you mean `group`?"),
        ("vocab_size = 32", "add_adapter = true", "add_adapter = true: adapters are not supported"),
        ("vocab_size = 32", "adapter_attn_dim = 16", "adapter_attn_dim = 16: adapters are not supported"),
        ("hidden_size = 768", "hidden_size = \"768\"", "hidden_size = \"768\": must be a whole number"),
        ("hidden_size = 768", "hidden_size = 768.5", "hidden_size = 768.5: must be a whole number"),
        ("hidden_size = 768", "hidden_size = 766", "num_attention_heads = 12: must divide hidden_size = 766"),
        ("conv_bias = false", "conv_bias = 0", "conv_bias = 0: must be true or false"),
        ("layerdrop = 0.1", "layerdrop = [0.1, true]", "layerdrop = [0.1, true]: must be a number"),
        (
            "num_feat_extract_layers = 7",
            "num_feat_extract_layers = 6",
            "the number of entries of conv_dim, 7",
        ),
        (
            "[10, 3, 3, 3, 3, 2, 2]",
            "[10, 3]",
            "conv_kernel = [10, 3]: must have one entry per convolution, 7",
        ),
        ("[10, 3, 3, 3, 3, 2, 2]", "[10, -3]", "conv_kernel = [10, -3]: must be a list of whole numbers"),
    ];
    for (old, new, expected) in cases {
        let error = read(&BASE.replace(old, new)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = Wav2Vec2Config::from_hugging_face(toml::Value::Integer(3)).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("must be a JSON object"), "{error}");
}

#[test]
fn settings_are_checked_and_kept_in_files() {
    let default = Wav2Vec2Config::default;
    let bad = [
        (Wav2Vec2Config { conv_dim: vec![], ..default() }, "conv_dim", "at least one entry"),
        (Wav2Vec2Config { conv_stride: vec![0; 7], ..default() }, "conv_stride", "at least 1"),
        (Wav2Vec2Config { conv_kernel: vec![3; 6], ..default() }, "conv_kernel", "per convolution, 7"),
        (Wav2Vec2Config { hidden_size: 0, ..default() }, "hidden_size", "at least 1"),
        (Wav2Vec2Config { num_attention_heads: 7, ..default() }, "num_attention_heads", "divide hidden_size"),
        (
            Wav2Vec2Config { num_conv_pos_embedding_groups: 5, ..default() },
            "num_conv_pos_embedding_groups",
            "divide hidden_size = 768",
        ),
        (Wav2Vec2Config { layers: Some(13), ..default() }, "layers", "from 1 to num_hidden_layers = 12"),
        (Wav2Vec2Config { layers: Some(0), ..default() }, "layers", "from 1 to"),
        (Wav2Vec2Config { layer_norm_eps: 0.0, ..default() }, "layer_norm_eps", "above 0"),
        (Wav2Vec2Config { layerdrop: 1.0, ..default() }, "layerdrop", "[0, 1)"),
        (Wav2Vec2Config { attention_dropout: f64::NAN, ..default() }, "attention_dropout", "[0, 1)"),
        (Wav2Vec2Config { mask_time_prob: 1.5, ..default() }, "mask_time_prob", "[0, 1]"),
        (Wav2Vec2Config { mask_feature_length: 0, ..default() }, "mask_feature_length", "at least 1"),
    ];
    for (config, field, rule) in bad {
        let error = config.check().unwrap_err();
        assert!(error.field == field && error.rule.contains(rule), "{error}");
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        assert!(config.build(store.root()).unwrap_err().to_string().contains(rule));
        assert!(store.is_empty());
    }
    let config = Wav2Vec2Config {
        layers: Some(3),
        pooling: Pooling::None,
        feat_extract_norm: FeatureNorm::Layer,
        freeze_features: false,
        ..default()
    };
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<Wav2Vec2Config>(&text).unwrap(), config);
    assert_eq!(toml::from_str::<Wav2Vec2Config>("").unwrap(), default());
    let error = toml::from_str::<Wav2Vec2Config>("hidden = 3").unwrap_err().to_string();
    assert!(error.contains("unknown field `hidden`"));
}

#[test]
fn waveforms_that_do_not_fit_are_named() {
    let read = |text: &str| Preprocessor::from_hugging_face(toml::from_str::<toml::Value>(text).unwrap());
    let published = read(
        "do_normalize = true\nfeature_size = 1\npadding_side = 'right'\npadding_value = 0.0\n\
         return_attention_mask = true\nsampling_rate = 16000",
    );
    let preprocessor = published.unwrap();
    assert_eq!(preprocessor, Preprocessor { return_attention_mask: true, ..Preprocessor::default() });
    for (text, expected) in [
        ("feature_size = 80", "feature_size = 80: must be 1"),
        ("padding_side = 'left'", "padding_side = \"left\": allowed: right"),
        ("feature_extractor_type = 'ASTFeatureExtractor'", "allowed: Wav2Vec2FeatureExtractor"),
        ("sampling_rate = 0", "sampling_rate = 0: must be at least 1"),
        ("padding_value = inf", "padding_value = inf: must be a finite number"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error =
        |clips: &[Vec<f32>], rate| preprocessor.batch(clips, rate, &Device::Cpu).unwrap_err().to_string();
    assert!(error(&[vec![1.0]], 8000).contains("8000 samples per second, the encoder needs 16000: resample"));
    assert!(error(&[vec![1.0], vec![]], 16_000).contains("clip 1 has no samples"));
    assert!(error(&[vec![1.0, f32::NAN]], 16_000).contains("clip 0 has NaN at sample 1"));
    // A clip of one value everywhere has no variance, and silence is silent.
    let made = preprocessor.batch(&[[0.5f32; 4]], 16_000, &Device::Cpu).unwrap();
    assert_eq!(made.values.to_vec2::<f32>().unwrap(), [[0.0; 4]]);
    let made = Preprocessor::default().batch(&[vec![1.0f32, -1.0], vec![2.0]], 16_000, &Device::Cpu).unwrap();
    assert!(made.lengths.is_none());
    assert_eq!(made.values.to_vec2::<f32>().unwrap(), [[0.999_999_94, -0.999_999_94], [0.0, 0.0]]);
}
