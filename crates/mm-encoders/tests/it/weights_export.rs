//! Folders for other libraries: what is in them, that they load again bit by bit, and that they are whole or not there.

use crate::weights::{filled, says, values};
use candle_core::{DType, Device};
use mm_core::{Init, ParamStore};
use mm_encoders::weights::{Matching, Weights, export};
use mm_encoders::{Conformer, ConformerConfig};
use serde_json::json;

fn entries(dir: &std::path::Path) -> Vec<String> {
    let mut all: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    all.sort();
    all
}

#[test]
fn an_encoder_comes_back_bit_by_bit() {
    let config = ConformerConfig { layers: 1, dim: 8, heads: 2, ..ConformerConfig::default() };
    let build = |seed| {
        let mut store = ParamStore::new(seed, DType::F32, &Device::Cpu);
        let _: Conformer = config.build(store.root().at("encoder").at("audio"), 5).unwrap();
        store.root().at("head").param("weight", 2, Init::Const(1.0)).unwrap();
        store
    };
    let (trained, other) = (build(1), build(2));
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("new/audio");
    let theirs = |name: &str| Some(format!("conformer.{name}"));
    let settings = json!({"model_type": "conformer", "layers": 1});
    export::save_folder(&dir, &trained, "encoder.audio", theirs, &settings, "# Audio\n").unwrap();

    assert_eq!(entries(&dir), ["README.md", "config.json", "model.safetensors"]);
    assert_eq!(entries(&parent.path().join("new")), ["audio"]);
    assert_eq!(std::fs::read_to_string(dir.join("README.md")).unwrap(), "# Audio\n");
    let weights = Weights::from_dir(&dir).unwrap();
    assert_eq!(weights.config().unwrap(), settings);
    assert_eq!(weights.metadata("format"), Some("pt"));
    assert!(weights.names().all(|name| name.starts_with("conformer.")));

    let ours = |name: &str| name.strip_prefix("conformer.").map(str::to_owned);
    let report = weights.load_into(&other, "encoder.audio", ours, Matching::Strict).unwrap();
    assert_eq!(report.loaded.len(), weights.names().count());
    let a = trained.tensors();
    assert_eq!(a.len(), report.loaded.len() + 1);
    for name in a.keys() {
        assert_eq!(values(&trained, name), values(&other, name), "{name}");
    }
}

#[test]
fn what_cannot_be_saved_leaves_nothing_behind() {
    let store = filled(&[("e.a", 1), ("e.b", 1)]);
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("out");
    let same = |name: &str| Some(name.to_owned());
    let save = |prefix: &str, rename: &dyn Fn(&str) -> Option<String>, config| {
        export::save_folder(&dir, &store, prefix, rename, &config, "").unwrap_err()
    };
    says(&save("e", &|_| Some("x".to_owned()), json!({})), &["two parameters are renamed to `x`"]);
    says(&save("e", &|_| None, json!({})), &["nothing to save under `e`"]);
    says(&save("f", &same, json!({})), &["nothing to save under `f`"]);
    says(&save("e", &same, json!([1])), &["not a JSON object"]);
    assert_eq!(entries(parent.path()), [""; 0]);

    // An empty folder may be there already, a filled one not.
    std::fs::create_dir(&dir).unwrap();
    export::save_folder(&dir, &store, "e", same, &json!({}), "").unwrap();
    says(&save("e", &same, json!({})), &["not empty", "give a new folder"]);
    assert_eq!(entries(&dir), ["README.md", "config.json", "model.safetensors"]);
    assert_eq!(entries(parent.path()), ["out"]);
    std::fs::write(parent.path().join("file"), "").unwrap();
    let error =
        export::save_folder(parent.path().join("file"), &store, "e", same, &json!({}), "").unwrap_err();
    says(&error, &["cannot write", "file"]);
    assert_eq!(entries(parent.path()), ["file", "out"]);
}
