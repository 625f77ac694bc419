//! Configuration: what is wrong is refused by name. `round_trip.rs` has the way to a file and back.

use mm_balance::ensemble::{Average, average};
use mm_balance::{MethodConfig, catalogue, check_composition};

fn refused(text: &str) -> String {
    match toml::from_str::<MethodConfig>(text) {
        Ok(config) => panic!("{text} was taken as {config:?}"),
        Err(error) => error.to_string(),
    }
}

/// The kinds that a configuration may name, with what they cannot do without.
fn kinds() -> impl Iterator<Item = (&'static str, String)> {
    catalogue().iter().map(|entry| entry.name).filter(|name| *name != "ensemble").map(|name| {
        let needed = if name == "unimodal" { "modality = \"audio\"\n" } else { "" };
        (name, format!("kind = \"{name}\"\n{needed}"))
    })
}

#[test]
fn every_method_has_defaults_that_are_valid() {
    for (name, text) in kinds() {
        let config: MethodConfig = toml::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(config.name(), name);
        let needs = config.check(2).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(config.decides(), !needs.fusion, "{name}: a decision rule takes the place of the fusion");
    }
}

#[test]
fn unknown_keys_are_refused_and_named() {
    for (name, text) in kinds() {
        let error = refused(&format!("{text}alhpa = 0.3"));
        assert!(error.contains("unknown field `alhpa`"), "{name}: {error}");
    }
    let error = refused("kind = \"lfm-learned\"\n[bilevel]\nrat = 1.0");
    assert!(error.contains("unknown field `rat`"), "{error}");
    for kind in ["paper", "exponential", "polynomial", "fixed"] {
        let needed = if kind == "fixed" { "supervised = 0.5\n" } else { "" };
        let error = refused(&format!(
            "kind = \"lfm-heuristic\"\n[schedule]\nkind = \"{kind}\"\n{needed}weight = 0.3"
        ));
        assert!(error.contains("unknown field `weight`"), "{kind}: {error}");
    }
    assert!(refused("kind = \"mbl\"").contains("unknown variant `mbl`"));
    assert!(refused("alpha = 0.8").contains("missing field `kind`"));
    assert!(refused("kind = \"unimodal\"").contains("missing field `modality`"));
    assert!(refused("kind = \"mlb\"\nvariant = \"code\"").contains("unknown variant `code`"));
    assert!(refused("kind = \"mlb\"\nalpha = \"high\"").contains("invalid type: string"));
}

#[test]
fn values_out_of_range_are_refused_by_field() {
    let bad = [
        ("mlb", "alpha = 0.0", "alpha"),
        ("mlb", "alpha = nan", "alpha"),
        ("mlb", "beta_max = 0.9", "beta_max"),
        ("mlb", "weight = -1.0", "weight"),
        ("multi-loss", "weight = inf", "weight"),
        ("ogm", "alpha = -0.1", "alpha"),
        ("ogm-ge", "variant = \"released-m3\"", "variant"),
        ("agm", "alpha = 0.0", "alpha"),
        ("agm", "cap = -1.0", "cap"),
        ("cggm", "rho = 0.0", "rho"),
        ("cggm", "lambda = -0.1", "lambda"),
        ("cggm", "bound = 0.5", "bound"),
        ("mslr", "keep = 0", "keep"),
        ("mslr", "factors = [1.0, -1.0]", "factors"),
        ("mslr", "factors = [1.0, 1.0, 1.0]", "factors"),
        ("mmpareto", "boost = 0.0", "boost"),
        ("g-blend", "super_epoch = 0", "super_epoch"),
        ("g-blend", "estimate_epochs = 0", "estimate_epochs"),
        ("g-blend", "held_out = 1", "held_out"),
        ("g-blend", "floor = 0.0", "floor"),
        ("g-blend", "least = 0.34", "least"),
        ("g-blend", "rate = nan", "rate"),
        ("info-reg", "strength = 0.0", "strength"),
        ("info-reg", "threshold = -0.1", "threshold"),
        ("info-reg", "window = 0", "window"),
        ("relearning", "strength = inf", "strength"),
        ("relearning", "every = 0", "every"),
        ("relearning", "times = 0", "times"),
        ("relearning", "held_out = 0", "held_out"),
        ("opm", "q_base = 1.5", "q_base"),
        ("opm", "lambda = -1.0", "lambda"),
        ("opm", "p_exe = -0.1", "p_exe"),
        ("lfm-heuristic", "temperature = 0.0", "temperature"),
        ("lfm-heuristic", "loss_scale = 0.0", "loss_scale"),
        ("lfm-heuristic", "schedule = { kind = \"fixed\", supervised = 1.5 }", "schedule.supervised"),
        ("lfm-learned", "bilevel = { initial = 1.0 }", "bilevel.initial"),
        ("lfm-learned", "bilevel = { rate = 0.0 }", "bilevel.rate"),
        ("lfm-learned", "bilevel = { inner_rate = -1.0 }", "bilevel.inner_rate"),
        ("lfm-learned", "bilevel = { held_out = 1 }", "bilevel.held_out"),
        ("amco", "threshold = 1.5", "threshold"),
        ("amco", "ramp = 0.0", "ramp"),
        ("amco", "weight = 0.0", "weight"),
        ("arl", "temperature = 0.0", "temperature"),
        ("arl", "weight = inf", "weight"),
        ("cml", "weight = 0.0", "weight"),
        ("functional-entropy", "weight = -1.0", "weight"),
        ("functional-entropy", "replicas = 0", "replicas"),
        ("greedy", "tolerance = -0.1", "tolerance"),
        ("greedy", "window = 0", "window"),
        ("mbsd", "weight = 0.0", "weight"),
        ("mbsd", "unimodal = -1.0", "unimodal"),
        ("mcr", "weight = 0.0", "weight"),
        ("mcr", "samples = 0", "samples"),
        ("mcr", "contrast = -1.0", "contrast"),
        ("mcr", "temperature = 0.0", "temperature"),
        ("mcr", "bottleneck = nan", "bottleneck"),
        ("mcr", "unimodal = -0.1", "unimodal"),
        ("mla", "alpha = 0.0", "alpha"),
        ("mla", "alpha = 1.5", "alpha"),
        ("mmcosine", "scale = 0.0", "scale"),
        ("modality-dropout", "rate = 1.5", "rate"),
        ("pmr", "alpha = 0.0", "alpha"),
        ("pmr", "entropy_weight = -1.0", "entropy_weight"),
        ("pmr", "momentum = 1.1", "momentum"),
        ("pmr", "share = 0.0", "share"),
        ("proxyanchor", "alpha = inf", "alpha"),
        ("proxyanchor", "margin = -0.1", "margin"),
        ("proxyanchor", "rate = 0.0", "rate"),
        ("proxynca", "smoothing = 1.0", "smoothing"),
        ("proxynca", "scale_x = 0.0", "scale_x"),
        ("proxynca", "scale_proxy = nan", "scale_proxy"),
        ("reconboost", "boost = 0.0", "boost"),
        ("reconboost", "damp = -1.0", "damp"),
        ("reconboost", "boost_epochs = 0", "boost_epochs"),
        ("softtriple", "centers = 0", "centers"),
        ("softtriple", "gamma = 0.0", "gamma"),
        ("softtriple", "tau = -0.1", "tau"),
        ("umt", "weight = 0.0", "weight"),
        ("valuation", "alpha = 0.0", "alpha"),
        ("multimodal-loss", "proxies = 0", "proxies"),
        ("multimodal-loss", "temperature = -0.1", "temperature"),
    ];
    for (kind, line, field) in bad {
        let config: MethodConfig =
            toml::from_str(&format!("kind = \"{kind}\"\n{line}")).expect("well-formed");
        let error = config.check(2).expect_err(line);
        assert_eq!(error.field, field, "{kind}: {line}: {error}");
    }
    for (kind, modalities, field) in [("agm", 9, "kind"), ("info-reg", 3, "variant")] {
        let more = if kind == "info-reg" { "\nvariant = \"released\"" } else { "" };
        let config: MethodConfig = toml::from_str(&format!("kind = \"{kind}\"{more}")).expect("well-formed");
        assert_eq!(config.check(modalities).expect_err(kind).field, field);
    }
    let pairs = [
        "amco",
        "arl",
        "cml",
        "functional-entropy",
        "greedy",
        "mbsd",
        "mcr",
        "mla",
        "modality-dropout",
        "pmr",
        "reconboost",
        "valuation",
    ];
    let new = ["agm", "cggm", "mslr", "mmpareto", "g-blend", "info-reg", "relearning"];
    let old = ["mlb", "ogm", "ogm-ge", "opm", "lfm-heuristic", "lfm-learned"];
    for kind in old.into_iter().chain(pairs).chain(new) {
        let config: MethodConfig = toml::from_str(&format!("kind = \"{kind}\"")).expect("well-formed");
        let error = config.check(1).expect_err(kind).to_string();
        assert!(error.contains("needs at least 2 modalities, the model has 1"), "{error}");
    }
}

#[test]
fn a_valuation_of_many_modalities_is_refused() {
    let config: MethodConfig = toml::from_str("kind = \"valuation\"").expect("well-formed");
    assert!(config.check(6).is_ok());
    let error = config.check(7).expect_err("2^7 fusions").to_string();
    assert!(error.contains("at most 6 modalities, the model has 7"), "{error}");
}

#[test]
fn compositions_that_make_no_sense_are_refused() {
    let parse = |kinds: &[&str]| -> Vec<MethodConfig> {
        kinds.iter().map(|kind| toml::from_str(&format!("kind = \"{kind}\"")).expect("well-formed")).collect()
    };
    let refused: [(&[&str], &str); 14] = [
        (&["multi-loss", "info-reg"], "`multi-loss` and `info-reg` both add unimodal losses"),
        (&["g-blend", "mlb"], "`g-blend` and `mlb` both add"),
        (&["cggm", "ogm", "multi-loss"], "`cggm` and `multi-loss` both add"),
        (
            &["agm", "sum-ce"],
            "`agm` takes gradients of the fused logits, and `sum-ce` decides without a fusion",
        ),
        (&["multimodal-loss", "mmpareto"], "`multimodal-loss` decides without a fusion"),
        (&["ogm", "mmpareto"], "`mmpareto` sets the gradients of the encoders, so it must stand first"),
        (&["agm", "opm"], "would not see what `opm` does to the features; set mask = \"features\""),
        (&["g-blend", "lfm-heuristic"], "both weigh the fused loss"),
        (&["lfm-learned", "lfm-heuristic"], "both weigh the fused loss"),
        (&["agm", "modality-dropout"], "would not see what `modality-dropout` does to the features"),
        (&["amco", "mmpareto"], "`amco` and `mmpareto` both add unimodal losses"),
        (&["mcr", "info-reg"], "`mcr` and `info-reg` both add unimodal losses"),
        (
            &["mmcosine", "greedy"],
            "`greedy` holds gates of the fusion `mmtm`, and `mmcosine` decides without it",
        ),
        (&["mla", "ogm"], "`mla` does the whole training step by itself; it stands alone"),
    ];
    for (kinds, rule) in refused {
        let error = check_composition(&parse(kinds)).expect_err("no sense");
        assert_eq!(error.field, "method.kind");
        assert!(error.to_string().contains(rule), "{kinds:?}: {error}");
    }
    let masked = toml::from_str("kind = \"agm\"\nmask = \"features\"").expect("well-formed");
    assert!(check_composition(&[masked, parse(&["opm"]).remove(0)]).is_ok());
    let fine: [&[&str]; 9] = [
        &["opm", "ogm"],
        &["mmpareto", "ogm"],
        &["multi-loss", "mslr"],
        &["multi-loss", "mlb"],
        &["agm", "relearning"],
        &["mslr", "sum-ce"],
        &["lfm-heuristic", "info-reg"],
        &["greedy", "multi-loss"],
        &["amco", "mcr", "mmcosine"],
    ];
    for kinds in fine {
        assert!(check_composition(&parse(kinds)).is_ok(), "{kinds:?}");
    }
}

#[test]
fn ensembles_refuse_what_does_not_fit() {
    assert!(average(&[], Average::Mean).is_err());
    let error = average(&[&[0.0, 1.0], &[0.0]], Average::Mean).expect_err("odd sizes").to_string();
    assert!(error.contains("every member must have 2 classes"), "{error}");
    let sure = average(&[&[1000.0, -1000.0], &[-1000.0, 1000.0]], Average::Mean).expect("two members");
    assert!(sure.iter().all(|z| (z.exp() - 0.5).abs() < 1e-12), "{sure:?}");
    let log = average(&[&[2f64.ln(), 0.0], &[0.0, 2f64.ln()]], Average::LogMean).expect("two members");
    assert!((log[0] - log[1]).abs() < 1e-15);
}
