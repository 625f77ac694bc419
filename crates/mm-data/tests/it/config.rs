use crate::support::says;
use mm_data::{DataConfig, FeaturesConfig, Prepared};
use std::path::Path;

fn parse(json: &str) -> Result<DataConfig, serde_json::Error> {
    serde_json::from_str(json)
}

#[test]
fn the_kind_decides_and_unknown_fields_are_refused() {
    assert_eq!(parse(r#"{"kind":"synthetic"}"#).unwrap(), DataConfig::default());
    let features =
        parse(r#"{"kind":"features","path":"a.safetensors","split":{"val_fraction":0.1}}"#).unwrap();
    assert!(features.standardize());
    assert_eq!(features.split().val_fraction, Some(0.1));
    assert!(matches!(parse(r#"{"kind":"csv","path":"a.csv"}"#).unwrap(), DataConfig::Csv(_)));
    says(&parse(r#"{"kind":"parquet"}"#).unwrap_err(), &["unknown variant `parquet`", "synthetic"]);
    says(&parse(r#"{"kind":"csv"}"#).unwrap_err(), &["missing field `path`"]);
    for json in [
        r#"{"kind":"synthetic","noise_share":1}"#,
        r#"{"kind":"features","path":"a","noise_share":1}"#,
        r#"{"kind":"csv","path":"a","noise_share":1}"#,
        r#"{"kind":"csv","path":"a","split":{"noise_share":1}}"#,
        r#"{"kind":"synthetic","sources":[{"name":"a","noise_share":1}]}"#,
    ] {
        says(&parse(json).unwrap_err(), &["unknown field `noise_share`"]);
    }
}

#[test]
fn settings_survive_the_trip_through_json() {
    let mut config = DataConfig::default();
    config.set_modalities(Some(vec!["slow".to_owned()]));
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(parse(&text).unwrap(), config);
    let config = DataConfig::Features(FeaturesConfig::new("a.safetensors"));
    assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    assert_eq!(config.relative_to(Path::new("base")).path(), Some(Path::new("base/a.safetensors")));
}

#[test]
fn checks_touch_no_file_and_name_the_field() {
    let check = |json: &str| parse(json).unwrap().check();
    assert!(check(r#"{"kind":"features","path":"does/not/exist.safetensors"}"#).is_ok());
    says(&check(r#"{"kind":"features","path":""}"#).unwrap_err(), &["data.path", "name the file"]);
    says(&check(r#"{"kind":"csv","path":"a","classes":1}"#).unwrap_err(), &["data.classes = 1"]);
    says(&check(r#"{"kind":"csv","path":"a","modalities":[]}"#).unwrap_err(), &["data.modalities"]);
    let twice = r#"{"kind":"csv","path":"a","modalities":["b","b"]}"#;
    says(&check(twice).unwrap_err(), &["data.modalities", "named twice"]);
    let share = r#"{"kind":"csv","path":"a","split":{"val_fraction":2}}"#;
    says(&check(share).unwrap_err(), &["data.split.val_fraction = 2"]);
}

#[test]
fn prepare_standardises_by_the_training_rows() {
    let json = r#"{"kind":"synthetic","n_train":200,"n_val":20,"n_test":50,"modalities":["slow","fast"]}"#;
    let config = parse(json).unwrap();
    let Prepared { dataset, splits, standardizer } = config.prepare(0).unwrap();
    assert_eq!(dataset.shapes(), config.peek().unwrap().modalities);
    assert_eq!(config.peek().unwrap().rows, Some(dataset.rows()));
    assert!(standardizer.is_some());
    for (_, x) in dataset.inputs.iter() {
        let x = x.matrix().unwrap();
        for column in 0..x.dim {
            let of = |f: fn(f64) -> f64| {
                let sum: f64 = splits.train.iter().map(|&r| f(f64::from(x.row(r)[column]))).sum();
                sum / splits.train.len() as f64
            };
            assert!(of(|v| v).abs() < 1e-6 && (of(|v| v * v) - 1.0).abs() < 1e-5);
        }
    }
    let raw = parse(&json.replace("\"n_val\"", "\"standardize\":false,\"n_val\"")).unwrap();
    assert_eq!(raw.prepare(0).unwrap().dataset.inputs, config.load(0).unwrap().0.inputs);
}

#[test]
fn the_run_seed_draws_shares_only() {
    let json = r#"{"kind":"synthetic","n_train":60,"n_val":0,"n_test":6,"split":{"val_fraction":0.2}}"#;
    let config = parse(json).unwrap();
    let ((a, first), (b, second)) = (config.load(1).unwrap(), config.load(2).unwrap());
    assert_eq!(a.inputs, b.inputs);
    assert_eq!(first.test, second.test);
    assert_ne!(first.val, second.val);
    assert_eq!(first.val.len(), 12);
}
