//! Configuration: what is refused, how it is said, and that nothing is lost on the way to a file and back.

use candle_core::{DType, Device};
use mm_core::{Modalities, ParamStore};
use mm_fusion::{
    FilmConfig, FusionConfig, GatedConfig, MidMlpConfig, MmtmConfig, TransformerConfig, catalogue, film,
    gated, mmtm,
};
use proptest::prelude::*;

fn refused(text: &str) -> String {
    toml::from_str::<FusionConfig>(text).unwrap_err().to_string()
}

fn pair() -> Modalities {
    Modalities::new(["audio", "video"]).unwrap()
}

#[test]
fn unknown_keys_and_kinds_are_named() {
    for info in catalogue() {
        let text = refused(&format!("kind = \"{}\"\nwidht = 3", info.name));
        assert!(text.contains("unknown field `widht`"), "{}: {text}", info.name);
        let plain: FusionConfig = toml::from_str(&format!("kind = \"{}\"", info.name)).unwrap();
        assert_eq!(plain, FusionConfig::named(info.name).unwrap());
        assert_eq!(plain.info(), info);
    }
    assert!(refused("kind = \"flim\"").contains("unknown variant `flim`"));
    assert!(refused("gate = \"audio\"").contains("missing field `kind`"));
    let error = FusionConfig::named("late_liner").unwrap_err();
    assert_eq!(error.suggestion.as_deref(), Some("late-linear"));
    assert_eq!(error.field, "model.fusion.kind");
}

#[test]
fn errors_name_field_and_remedy() {
    let gate = FusionConfig::Gated(GatedConfig { gate: Some("adio".to_owned()), width: None });
    assert_eq!(
        gate.check(&pair()).unwrap_err().to_string(),
        "model.fusion.gate = \"adio\": allowed: audio, video; did you mean `audio`?"
    );
    let film = FusionConfig::Film(FilmConfig { conditioner: Some("text".to_owned()) });
    assert_eq!(film.check(&pair()).unwrap_err().field, "model.fusion.conditioner");
    let one = Modalities::new(["audio"]).unwrap();
    for name in [film::INFO.name, gated::INFO.name, mmtm::INFO.name] {
        let error = FusionConfig::named(name).unwrap().check(&one).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("model.fusion.kind = \"{name}\": needs at least two modalities, there is one")
        );
    }
    let bad = [
        ("mid-mlp\"\nlayers = 1", "model.fusion.layers"),
        ("mid-mlp\"\nwidth = 0", "model.fusion.width"),
        ("mid-mlp\"\ndropout = 1.0", "model.fusion.dropout"),
        ("gated\"\nwidth = 0", "model.fusion.width"),
        ("mmtm\"\nratio = 0.0", "model.fusion.ratio"),
        ("transformer\"\nheads = 0", "model.fusion.heads"),
        ("transformer\"\nlayers = 0", "model.fusion.layers"),
        ("transformer\"\ndim = 12", "model.fusion.dim"),
        ("transformer\"\nfeed_forward = 0", "model.fusion.feed_forward"),
        ("transformer\"\ndropout = nan", "model.fusion.dropout"),
        ("transformer\"\ntoken_std = -1.0", "model.fusion.token_std"),
    ];
    for (text, field) in bad {
        let config: FusionConfig = toml::from_str(&format!("kind = \"{text}")).unwrap();
        assert_eq!(config.check(&pair()).unwrap_err().field, field, "{text}");
    }
}

#[test]
fn build_checks_too() {
    let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
    let config = FusionConfig::MidMlp(MidMlpConfig { layers: 0, ..MidMlpConfig::default() });
    let widths = [3, 4].into_iter().collect();
    let error = config.build(store.root(), &pair(), &widths, 2).unwrap_err().to_string();
    assert!(error.contains("model.fusion.layers = 0"), "{error}");
    let good = FusionConfig::default();
    let three = [3, 4, 5].into_iter().collect();
    assert!(good.build(store.root(), &pair(), &three, 2).is_err());
    assert!(good.build(store.root(), &pair(), &widths, 0).is_err());
    assert!(store.is_empty());
}

#[test]
fn names_of_the_catalogue_are_the_parameters_names() {
    for info in catalogue() {
        let mut store = ParamStore::new(0, DType::F32, &Device::Cpu);
        let widths = [3, 4].into_iter().collect();
        let config = FusionConfig::named(info.name).unwrap();
        config.build(store.root().at("fusion"), &pair(), &widths, 2).unwrap();
        for p in store.params() {
            let known = info.parameters.iter().any(|pattern| matches(pattern, p.name()));
            assert!(known, "{}: {} is not in the catalogue", info.name, p.name());
        }
        for pattern in info.parameters {
            let used = store.params().iter().any(|p| matches(pattern, p.name()));
            assert!(used, "{}: no parameter is called {pattern}", info.name);
        }
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    if let Some(prefix) = pattern.strip_suffix('…') {
        return match prefix.split_once("<l>") {
            Some((head, tail)) => name.starts_with(head) && name.contains(tail),
            None => name.starts_with(prefix),
        };
    }
    let (pattern, name): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), name.split('.').collect());
    pattern.len() == name.len()
        && pattern.iter().zip(&name).all(|(p, n)| match *p {
            "<modality>" => ["audio", "video"].contains(n),
            "<l>" => n.parse::<usize>().is_ok(),
            "{weight,bias}" => ["weight", "bias"].contains(n),
            p => p == *n,
        })
}

fn any_config() -> impl Strategy<Value = FusionConfig> {
    let name = || proptest::option::of("[a-z]{1,8}");
    prop_oneof![
        Just(FusionConfig::default()),
        name().prop_map(|conditioner| FusionConfig::Film(FilmConfig { conditioner })),
        (name(), proptest::option::of(1usize..99))
            .prop_map(|(gate, width)| FusionConfig::Gated(GatedConfig { gate, width })),
        (0.1..99.0f64).prop_map(|ratio| FusionConfig::Mmtm(MmtmConfig { ratio })),
        (2usize..6, 1usize..99, 0.0..1.0f64).prop_map(|(layers, width, dropout)| FusionConfig::MidMlp(
            MidMlpConfig { layers, width, dropout }
        )),
        (proptest::option::of(1usize..9), 1usize..9, 1usize..9, 0.0..1.0f64, 0.0..9.0f64).prop_map(
            |(dim, heads, layers, dropout, token_std)| {
                let dim = dim.map(|d| d * heads);
                let feed_forward = layers;
                FusionConfig::Transformer(TransformerConfig {
                    dim,
                    layers,
                    heads,
                    feed_forward,
                    dropout,
                    token_std,
                })
            }
        ),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_in_a_file(config in any_config()) {
        let text = toml::to_string(&config).unwrap();
        prop_assert_eq!(toml::from_str::<FusionConfig>(&text).unwrap(), config);
    }
}
