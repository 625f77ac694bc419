//! Configurations that are right: what is written reads back to itself.

use crate::support::{parse, small};
use mm_train::{Protocol, RunConfig};
use proptest::prelude::*;
use proptest::sample::select;

/// Every method and some compositions, with settings away from their defaults.
const METHODS: [&str; 34] = [
    r#"{ kind = "joint" }"#,
    r#"{ kind = "unimodal", modality = "b" }"#,
    r#"{ kind = "multi-loss", weight = 0.5 }"#,
    r#"{ kind = "mlb", alpha = 0.3, beta_max = 2.5, variant = "released", apply = "learning-rate", end_epoch = 7 }"#,
    r#"{ kind = "ogm", variant = "released", parameters = "weights", start_epoch = 2 }"#,
    r#"{ kind = "ogm-ge", alpha = 0.1 }"#,
    r#"{ kind = "opm", q_base = 0.25, lambda = 0, p_exe = 1 }"#,
    r#"{ kind = "lfm-heuristic", matching = "js", loss_scale = 2, schedule = { kind = "fixed", supervised = 0.25 } }"#,
    r#"{ kind = "lfm-heuristic", schedule = { kind = "polynomial" } }"#,
    r#"{ kind = "lfm-learned", bilevel = { variant = "released-hvp", inner_rate = 0.01, held_out = 8 } }"#,
    r#"{ kind = "multimodal-loss", proxies = 3, temperature = 0.2 }"#,
    r#"{ kind = "sum-ce" }"#,
    r#"{ kind = "cml", weight = 0.5 }"#,
    r#"{ kind = "functional-entropy", replicas = 3, form = "margin", estimate = "variance" }"#,
    r#"{ kind = "mla", gate = "batch", projector = false }"#,
    r#"{ kind = "mmcosine", scale = 15 }"#,
    r#"{ kind = "modality-dropout", rate = 0.5, end_epoch = 3 }"#,
    r#"{ kind = "pmr", variant = "released", share = 0.5 }"#,
    r#"{ kind = "proxyanchor", alpha = 8 }"#,
    r#"{ kind = "proxynca", variant = "released" }"#,
    r#"{ kind = "reconboost", variant = "released", joint_epochs = 0 }"#,
    r#"{ kind = "softtriple", centers = 2, tau = 0 }"#,
    r#"{ kind = "valuation", level = "modality" }"#,
    r#"{ kind = "mbsd", weight = 0.5 }"#,
    r#"{ kind = "arl", start_epoch = 0 }"#,
    r#"{ kind = "amco", threshold = 0.4, variant = "benchmark" }"#,
    r#"{ kind = "greedy", tolerance = 0.5, window = 2, start_epoch = 0 }"#,
    r#"{ kind = "mcr", strategy = "independent", samples = 4, bottleneck = 1, contrast = 0 }"#,
    r#"{ kind = "umt", weight = 3, teachers = { a = "runs/a", b = "runs/b" } }"#,
    r#"{ kind = "mmcosine+opm+ogm", mmcosine = { scale = 5 } }"#,
    r#"{ kind = "opm+ogm", opm = { p_exe = 0.5 }, ogm = { alpha = 0.4 } }"#,
    r#"{ kind = "opm + mlb" }"#,
    r#"{ kind = "multi-loss+ogm-ge+lfm-heuristic", lfm-heuristic = { schedule = { kind = "exponential" } } }"#,
    r#"{ kind = "multimodal-loss+opm", multimodal-loss = { proxies = 2 } }"#,
];

const ENCODERS: [&str; 3] = [
    "{}",
    r#"{ kind = "mlp", hidden = [], dim = 3, final_activation = false }"#,
    r#"{ hidden = [4, 5], dim = 3, dropout = 0.5, input_dropout = 0.1, norm = "layer", activation = "gelu" }"#,
];

const FUSIONS: [&str; 8] = [
    r#"{ kind = "late-linear" }"#,
    r#"{ kind = "concat" }"#,
    r#"{ kind = "sum" }"#,
    r#"{ kind = "mid-mlp" }"#,
    r#"{ kind = "film", conditioner = "b" }"#,
    r#"{ kind = "gated", gate = "b", width = 4 }"#,
    r#"{ kind = "mmtm", ratio = 2 }"#,
    r#"{ kind = "transformer" }"#,
];

const DATA: [&str; 4] = [
    r#"{ kind = "synthetic", n_train = 60, sources = [{ name = "a" }, { name = "b", weak = 0.5, missing = 0.1 }], seed = 9 }"#,
    r#"{ sources = [{ name = "a" }, { name = "b" }, { name = "c" }], modalities = ["b", "a"], standardize = false }"#,
    r#"{ kind = "features", path = "x/y.safetensors", classes = 4, split = { fold_column = "fold", test_fold = 1, val_fold = 2 } }"#,
    r#"{ kind = "csv", path = "é \"q\".csv", split = { val_fraction = 0.1, val_group = "actor", seed = 3 } }"#,
];

const OPTIMS: [&str; 4] = [
    "{}",
    r#"{ kind = "sgd", lr = 1, momentum = 0.5, nesterov = true, weight_decay = 1e-4 }"#,
    r#"{ kind = "adam", beta1 = 0.5, eps = 1e-6, missing_gradient = "zero" }"#,
    r#"{ kind = "adamw", lr = 3e-4, lr_scale = { "encoder.a" = 0.1, fusion = 0 } }"#,
];

const SCHEDULES: [&str; 4] = [
    "{}",
    r#"{ kind = "step", every = 3 }"#,
    r#"{ kind = "cosine", floor = 0.1, warmup_steps = 5, warmup = "constant" }"#,
    r#"{ kind = "cosine-restarts", period = 4, multiplier = 3 }"#,
];

const TRAINS: [&str; 3] = [
    "{}",
    r#"{ epochs = 1, batch_size = 2, patience = 3, select = "loss", clip_norm = 0.5, precision = "f64" }"#,
    r#"{ protocol = "ogm-test-select", checkpoint_steps = 3, checkpoint_seconds = 0, probe_rows = 10, device = "cuda:1" }"#,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_written_reads_back_to_itself(
        method in select(&METHODS), encoder in select(&ENCODERS), own in select(&ENCODERS), fusion in select(&FUSIONS),
        data in select(&DATA), optim in select(&OPTIMS), schedule in select(&SCHEDULES), train in select(&TRAINS),
        seed in 0..=i64::MAX as u64, number in 1e-300f64..1e300, name in "[A-Za-z0-9 _é'-]{1,12}",
    ) {
        let text = format!(
            "name = {name:?}\nseed = {seed}\ndata = {data}\noptim = {optim}\nschedule = {schedule}\ntrain = {train}\n\
             method = {method}\n[model]\nencoder = {encoder}\nencoders.b = {own}\nfusion = {fusion}\n"
        );
        let mut config = RunConfig::parse(&text, &[]).unwrap();
        config.optim.lr = number;
        let written = config.to_toml().unwrap();
        let read = RunConfig::parse(&written, &[]).unwrap();
        prop_assert_eq!(&read, &config, "{}", written);
        prop_assert_eq!(read.to_toml().unwrap(), written);
        prop_assert_eq!(read.hash8().unwrap(), config.hash8().unwrap());
    }

    #[test]
    fn any_text_is_a_configuration_or_an_error(
        text in "([a-z]{1,6}|\\[|\\]|=|\\.|\"|\n|\\{|\\}|[0-9]|data|method|kind|optim|train|,| ){0,40}",
        set in "[a-z.=0-9\"\\[\\] ]{0,20}",
    ) {
        let _ = RunConfig::parse(&text, &[]);
        let _ = RunConfig::parse("", &[set]);
    }
}

#[test]
fn an_empty_file_is_the_default() {
    let config = parse("", &[]);
    assert_eq!((config.name.as_str(), config.seed, config.method_name().as_str()), ("run", 0, "joint"));
    assert_eq!((config.optim.lr, config.train.epochs, config.train.batch_size), (0.05, 40, 64));
    assert_eq!(config.train.protocol, Protocol::ValidationSelect);
    assert_eq!(config.model.fusion.name(), "late-linear");
    assert_eq!(config, parse("[data]\nkind = \"synthetic\"", &[]));
}

#[test]
fn the_default_rate_depends_on_the_optimiser() {
    assert_eq!(small(&["optim.kind=adam"]).optim.lr, 1e-3);
    assert_eq!(small(&["optim.kind=adamw", "optim.lr=0.5"]).optim.lr, 0.5);
    assert_eq!(small(&["optim.kind=sgd"]).optim.lr, 0.05);
}

#[test]
fn every_setting_has_a_part_in_the_hash() {
    let hash = |sets: &[&str]| small(sets).hash8().unwrap();
    let mut hashes = vec![
        hash(&[]),
        hash(&["seed=1"]),
        hash(&["optim.lr=0.01"]),
        hash(&["train.epochs=4"]),
        hash(&["method.kind=mlb"]),
        hash(&["data.seed=1"]),
        hash(&["model.fusion.kind=sum"]),
    ];
    assert_eq!(hashes[0], small(&[]).hash8().unwrap());
    assert!(hashes.iter().all(|h| h.len() == 8 && h.bytes().all(|b| b.is_ascii_hexdigit())));
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 7);
}

#[test]
fn assignments_win_over_the_file_in_their_order() {
    let config =
        small(&["train.epochs=7", "optim.lr = 1e-2", "optim.lr=0.02", "name=x y", "train.clip_norm=1"]);
    assert_eq!((config.train.epochs, config.optim.lr, config.name.as_str()), (7, 0.02, "x y"));
    assert_eq!(config.train.clip_norm, Some(1.0));
    let config = small(&["method={kind = \"opm+ogm\", ogm = {alpha = 0.3}}", "method.opm.p_exe=0.1"]);
    assert_eq!(config.method_name(), "opm+ogm");
    assert!(config.to_toml().unwrap().contains("p_exe = 0.1"));
}

#[test]
fn unimodal_training_takes_what_concerns_its_modality() {
    let sets = [
        "method.kind=unimodal",
        "method.modality=b",
        "model.fusion={kind = \"gated\", gate = \"a\"}",
        "model.encoders.a.dim=3",
        "model.encoders.b.dim=4",
    ];
    let config = small(&sets);
    assert_eq!(config.data.modalities().unwrap(), ["b"]);
    assert_eq!(config.model.encoders.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(config.model.fusion.name(), "late-linear");
    let modalities = mm_core::Modalities::new(["b"]).unwrap();
    assert!(config.check_model(&modalities).unwrap().fusion);
}
