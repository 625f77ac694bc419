//! Configuration: nothing is lost on the way to a file and back, and what is wrong is refused by name.

use mm_balance::agm::{AgmConfig, Mask};
use mm_balance::arl::ArlConfig;
use mm_balance::cggm::CggmConfig;
use mm_balance::cml::CmlConfig;
use mm_balance::config::NoSettings;
use mm_balance::ensemble::{Average, average};
use mm_balance::functional_entropy::{Estimate, Form, FunctionalEntropyConfig};
use mm_balance::g_blend::{self, GBlendConfig};
use mm_balance::info_reg::{self, InfoRegConfig};
use mm_balance::lfm::{LfmHeuristicConfig, LfmLearnedConfig, Matching};
use mm_balance::lfm_weight::{self, Bilevel, Schedule};
use mm_balance::mbsd::MbsdConfig;
use mm_balance::mla::{Gate, MlaConfig};
use mm_balance::mlb::{self, MlbConfig};
use mm_balance::mmcosine::MmCosineConfig;
use mm_balance::mmpareto::MmParetoConfig;
use mm_balance::modality_dropout::ModalityDropoutConfig;
use mm_balance::mslr::{self, MslrConfig};
use mm_balance::multi_loss::MultiLossConfig;
use mm_balance::multimodal_loss::MultiModalLossConfig;
use mm_balance::ogm::{self, OgmConfig};
use mm_balance::opm::OpmConfig;
use mm_balance::pmr::{self, PmrConfig};
use mm_balance::proxyanchor::ProxyAnchorConfig;
use mm_balance::proxynca::{self, ProxyNcaConfig};
use mm_balance::reconboost::{self, ReconBoostConfig};
use mm_balance::relearning::RelearningConfig;
use mm_balance::softtriple::SoftTripleConfig;
use mm_balance::valuation::{Level, ValuationConfig};
use mm_balance::{MethodConfig, catalogue, check_composition};
use proptest::prelude::*;

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
        ("arl", "temperature = 0.0", "temperature"),
        ("arl", "weight = inf", "weight"),
        ("cml", "weight = 0.0", "weight"),
        ("functional-entropy", "weight = -1.0", "weight"),
        ("functional-entropy", "replicas = 0", "replicas"),
        ("mbsd", "weight = 0.0", "weight"),
        ("mbsd", "unimodal = -1.0", "unimodal"),
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
        "arl",
        "cml",
        "functional-entropy",
        "mbsd",
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
    let refused: [(&[&str], &str); 9] = [
        (&["multi-loss", "info-reg"], "`multi-loss` and `info-reg` both add the losses of the heads"),
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
    ];
    for (kinds, rule) in refused {
        let error = check_composition(&parse(kinds)).expect_err("no sense");
        assert_eq!(error.field, "method.kind");
        assert!(error.to_string().contains(rule), "{kinds:?}: {error}");
    }
    let masked = toml::from_str("kind = \"agm\"\nmask = \"features\"").expect("well-formed");
    assert!(check_composition(&[masked, parse(&["opm"]).remove(0)]).is_ok());
    let fine: [&[&str]; 7] = [
        &["opm", "ogm"],
        &["mmpareto", "ogm"],
        &["multi-loss", "mslr"],
        &["multi-loss", "mlb"],
        &["agm", "relearning"],
        &["mslr", "sum-ce"],
        &["lfm-heuristic", "info-reg"],
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

fn matching() -> impl Strategy<Value = Matching> {
    prop_oneof![Just(Matching::InfoNce), Just(Matching::Alignment), Just(Matching::Js)]
}

fn schedule() -> impl Strategy<Value = Schedule> {
    prop_oneof![
        Just(Schedule::Paper),
        Just(Schedule::Exponential),
        Just(Schedule::Polynomial),
        (0.0..=1.0f64).prop_map(|supervised| Schedule::Fixed { supervised }),
    ]
}

fn bilevel() -> impl Strategy<Value = Bilevel> {
    let variant = prop_oneof![Just(lfm_weight::Variant::Unrolled), Just(lfm_weight::Variant::ReleasedHvp)];
    (variant, 0.05..=0.95f64, 1e-6..10.0f64, prop::option::of(1e-4..1.0f64), 2usize..100).prop_map(
        |(variant, initial, rate, inner_rate, held_out)| Bilevel {
            variant,
            initial: Some(initial),
            rate: Some(rate),
            inner_rate,
            held_out,
        },
    )
}

fn window() -> impl Strategy<Value = (usize, Option<usize>)> {
    (0usize..50, prop::option::of(0usize..100))
}

fn ogm_config() -> impl Strategy<Value = OgmConfig> {
    let parameters =
        prop_oneof![Just(ogm::Parameters::All), Just(ogm::Parameters::Conv), Just(ogm::Parameters::Weights)];
    let variant = prop_oneof![Just(ogm::Variant::Paper), Just(ogm::Variant::Released)];
    (0.01..5.0f64, variant, parameters, window()).prop_map(
        |(alpha, variant, parameters, (start_epoch, end_epoch))| OgmConfig {
            alpha,
            variant,
            parameters,
            start_epoch,
            end_epoch,
        },
    )
}

fn gradient_methods() -> impl Strategy<Value = MethodConfig> {
    let agm = (0.01..5.0f64, prop::option::of(0.1..20.0f64), any::<bool>(), window()).prop_map(
        |(alpha, cap, features, (start_epoch, end_epoch))| {
            let mask = if features { Mask::Features } else { Mask::Inputs };
            MethodConfig::Agm(AgmConfig { alpha, cap, mask, start_epoch, end_epoch })
        },
    );
    let cggm = (0.1..5.0f64, 0.0..2.0f64, 1.0..20.0f64, window()).prop_map(
        |(rho, lambda, bound, (start_epoch, end_epoch))| {
            MethodConfig::Cggm(CggmConfig { rho, lambda, bound, start_epoch, end_epoch })
        },
    );
    let mslr = (prop::option::of(prop::collection::vec(0.1..2.0f64, 2)), 1usize..10, any::<[bool; 3]>())
        .prop_map(|(factors, keep, [fixed, encoder, gradient])| {
            MethodConfig::Mslr(MslrConfig {
                factors: factors.unwrap_or_default(),
                keep,
                strategy: if fixed { mslr::Strategy::Fixed } else { mslr::Strategy::Dynamic },
                parameters: if encoder { mslr::Parameters::Encoder } else { mslr::Parameters::Branch },
                apply: if gradient { mlb::Apply::Gradient } else { mlb::Apply::LearningRate },
            })
        });
    let info_reg = (0.1..5.0f64, 0.0..1.0f64, 1usize..20, any::<bool>()).prop_map(
        |(strength, threshold, window, released)| {
            let variant = if released { info_reg::Variant::Released } else { info_reg::Variant::Paper };
            MethodConfig::InfoReg(InfoRegConfig { strength, threshold, window, variant })
        },
    );
    prop_oneof![
        agm,
        cggm,
        mslr,
        info_reg,
        (0.1..5.0f64).prop_map(|boost| MethodConfig::Mmpareto(MmParetoConfig { boost })),
    ]
}

fn epoch_methods() -> impl Strategy<Value = MethodConfig> {
    let blend = (1usize..20, prop::option::of(1usize..20), 2usize..500, any::<[bool; 2]>(), 1e-6..1.0f64)
        .prop_map(|(super_epoch, estimate_epochs, held_out, [offline, bench], floor)| {
            MethodConfig::GBlend(GBlendConfig {
                super_epoch,
                estimate_epochs,
                held_out,
                schedule: if offline { g_blend::Schedule::Offline } else { g_blend::Schedule::Online },
                estimator: if bench { g_blend::Estimator::MultiBench } else { g_blend::Estimator::Paper },
                floor,
                least: floor / 4.0,
                rate: bench.then_some(floor),
            })
        });
    let relearning =
        (0.1..10.0f64, 1usize..50, 1usize..10, 2usize..500).prop_map(|(strength, every, times, held_out)| {
            MethodConfig::Relearning(RelearningConfig { strength, every, times, held_out })
        });
    prop_oneof![blend, relearning]
}

fn method() -> impl Strategy<Value = MethodConfig> {
    let mlb = (0.01..5.0f64, 1.0..20.0f64, 0.0..3.0f64, any::<[bool; 2]>(), window()).prop_map(
        |(alpha, beta_max, weight, [released, rate], (start_epoch, end_epoch))| MlbConfig {
            alpha,
            beta_max,
            weight,
            variant: if released { mlb::Variant::Released } else { mlb::Variant::Paper },
            apply: if rate { mlb::Apply::LearningRate } else { mlb::Apply::Gradient },
            start_epoch,
            end_epoch,
        },
    );
    let opm = (0.0..=1.0f64, 0.0..3.0f64, 0.0..=1.0f64, window()).prop_map(
        |(q_base, lambda, p_exe, (start_epoch, end_epoch))| OpmConfig {
            q_base,
            lambda,
            p_exe,
            start_epoch,
            end_epoch,
        },
    );
    let heuristic = (matching(), 0.01..2.0f64, 0.1..3.0f64, schedule()).prop_map(
        |(matching, temperature, loss_scale, schedule)| {
            MethodConfig::LfmHeuristic(LfmHeuristicConfig { matching, temperature, loss_scale, schedule })
        },
    );
    let learned = (matching(), 0.01..2.0f64, 0.1..3.0f64, bilevel()).prop_map(
        |(matching, temperature, loss_scale, bilevel)| {
            MethodConfig::LfmLearned(LfmLearnedConfig { matching, temperature, loss_scale, bilevel })
        },
    );
    let proxies = (1usize..50, 0.01..2.0f64).prop_map(|(proxies, temperature)| {
        MethodConfig::MultimodalLoss(MultiModalLossConfig { proxies, temperature })
    });
    prop_oneof![
        more(),
        Just(MethodConfig::Joint(NoSettings::default())),
        Just(MethodConfig::SumCe(NoSettings::default())),
        (0.0..3.0f64).prop_map(|weight| MethodConfig::MultiLoss(MultiLossConfig { weight })),
        mlb.prop_map(MethodConfig::Mlb),
        ogm_config().prop_map(MethodConfig::Ogm),
        ogm_config().prop_map(MethodConfig::OgmGe),
        opm.prop_map(MethodConfig::Opm),
        heuristic,
        learned,
        proxies,
        gradient_methods(),
        epoch_methods(),
    ]
}

/// Methods with one or two numbers each; the rest of their settings are defaults.
fn more() -> impl Strategy<Value = MethodConfig> {
    let numbers = (0.01..1.0f64, 0.01..1.0f64, 1usize..20, any::<bool>(), window());
    (0usize..13, numbers).prop_map(|(kind, (a, b, n, other, (start_epoch, end_epoch)))| match kind {
        12 => MethodConfig::Mbsd(MbsdConfig { weight: a, unimodal: b }),
        11 => MethodConfig::Arl(ArlConfig { temperature: a, weight: b, start_epoch, end_epoch }),
        0 => MethodConfig::Cml(CmlConfig { weight: a }),
        1 => MethodConfig::FunctionalEntropy(FunctionalEntropyConfig {
            weight: a,
            replicas: n,
            estimate: if other { Estimate::Variance } else { Estimate::Entropy },
            form: if other { Form::Margin } else { Form::Minimum },
            start_epoch,
            end_epoch,
        }),
        2 => MethodConfig::Mla(MlaConfig {
            gate: if other { Gate::Batch } else { Gate::Even },
            projector: other,
            alpha: a,
        }),
        3 => MethodConfig::Mmcosine(MmCosineConfig { scale: a }),
        4 => MethodConfig::ModalityDropout(ModalityDropoutConfig { rate: a, start_epoch, end_epoch }),
        5 => MethodConfig::Pmr(PmrConfig {
            alpha: a,
            variant: if other { pmr::Variant::Released } else { pmr::Variant::Paper },
            momentum: b,
            entropy_epochs: n,
            start_epoch,
            end_epoch,
            ..PmrConfig::default()
        }),
        6 => MethodConfig::Proxyanchor(ProxyAnchorConfig {
            alpha: a,
            margin: b,
            ..ProxyAnchorConfig::default()
        }),
        7 => MethodConfig::Proxynca(ProxyNcaConfig {
            variant: if other { proxynca::Variant::Released } else { proxynca::Variant::Paper },
            smoothing: a,
            scale_x: b,
            ..ProxyNcaConfig::default()
        }),
        8 => MethodConfig::Reconboost(ReconBoostConfig {
            boost: a,
            damp: b,
            variant: if other { reconboost::Variant::Released } else { reconboost::Variant::Paper },
            boost_epochs: n,
            ..ReconBoostConfig::default()
        }),
        9 => MethodConfig::Valuation(ValuationConfig {
            level: if other { Level::Sample } else { Level::Modality },
            alpha: a,
            start_epoch,
            end_epoch,
        }),
        _ => MethodConfig::Softtriple(SoftTripleConfig {
            gamma: a,
            tau: b,
            centers: n,
            ..SoftTripleConfig::default()
        }),
    })
}

proptest! {
    #[test]
    fn a_configuration_survives_its_file(config in method()) {
        prop_assert!(config.check(2).is_ok());
        let text = toml::to_string(&config).expect("a configuration is a table");
        prop_assert_eq!(toml::from_str::<MethodConfig>(&text).expect("what was written"), config);
    }
}
