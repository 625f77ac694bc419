//! Any configuration of a method comes back from its file as it was.

use mm_balance::MethodConfig;
use mm_balance::agm::{AgmConfig, Mask};
use mm_balance::amco::{self, AmcoConfig};
use mm_balance::arl::ArlConfig;
use mm_balance::cggm::CggmConfig;
use mm_balance::cml::CmlConfig;
use mm_balance::config::NoSettings;
use mm_balance::functional_entropy::{Estimate, Form, FunctionalEntropyConfig};
use mm_balance::g_blend::{self, GBlendConfig};
use mm_balance::greedy::GreedyConfig;
use mm_balance::info_reg::{self, InfoRegConfig};
use mm_balance::lfm::{LfmHeuristicConfig, LfmLearnedConfig, Matching};
use mm_balance::lfm_weight::{self, Bilevel, Schedule};
use mm_balance::mbsd::MbsdConfig;
use mm_balance::mcr::{McrConfig, Strategy as McrStrategy};
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
use proptest::prelude::*;

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
    (0usize..16, numbers).prop_map(|(kind, (a, b, n, other, (start_epoch, end_epoch)))| match kind {
        15 => MethodConfig::Amco(AmcoConfig {
            threshold: a,
            ramp: b,
            weight: a,
            variant: if other { amco::Variant::Steady } else { amco::Variant::Benchmark },
        }),
        14 => MethodConfig::Greedy(GreedyConfig { tolerance: a, window: n, start_epoch }),
        13 => MethodConfig::Mcr(McrConfig {
            strategy: if other { McrStrategy::Independent } else { McrStrategy::Collaborative },
            weight: a,
            samples: n,
            bottleneck: b,
            ..McrConfig::default()
        }),
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
