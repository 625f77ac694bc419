//! Every method in training steps of toy models: with 2, 3 and 4 modalities, with modalities missing, and at the edges.

use crate::nets::{Descent, TanhEncoder, boxed, context, observed, one_step, one_step_of, over_features};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::lfm::{LfmLearnedConfig, Matching};
use mm_balance::lfm_weight::{Bilevel, Variant};
use mm_balance::mlb::{Apply, MlbConfig};
use mm_balance::multi_loss::MultiLossConfig;
use mm_balance::ogm::{OgmConfig, Parameters};
use mm_balance::opm::OpmConfig;
use mm_balance::sum_ce::SumCe;
use mm_balance::{Balancer, EpochCx, EpochReport, Joint, MethodConfig, StepReport, TrainStep, catalogue};
use mm_core::model::to_host;
use mm_core::{Batch, Composite, Init, Modal, Mode, Multimodal, ParamStore, Presence, StepRng};
use mm_kernels::cross_entropy;
use mm_testkit::toy::{self, Options, Toy};
use std::collections::BTreeMap;

const DIMS: [usize; 4] = [4, 6, 5, 3];
const CLASSES: usize = 3;
const ROWS: usize = 24;
const STEPS: usize = 30;
const STEPS_PER_EPOCH: usize = 10;

type Method = Box<dyn TrainStep>;

/// Every method that trains a fused model, with its defaults; then its variants. `umt` needs teachers, and has a test of
/// its own.
fn settings(modalities: usize) -> Vec<String> {
    let named =
        catalogue().iter().map(|entry| entry.name).filter(|n| !matches!(*n, "ensemble" | "unimodal" | "umt"));
    let mut all: Vec<String> = named.map(|name| format!("kind = \"{name}\"")).collect();
    all.extend(
        [
            "kind = \"mlb\"\nvariant = \"released\"\napply = \"learning-rate\"",
            "kind = \"ogm-ge\"\nparameters = \"weights\"",
            "kind = \"agm\"\nalpha = 0.3\nmask = \"features\"",
            "kind = \"mslr\"\nkeep = 1",
            "kind = \"mslr\"\nkeep = 1\nparameters = \"encoder\"\napply = \"gradient\"",
            "kind = \"g-blend\"\nestimate_epochs = 1\nsuper_epoch = 1\nfloor = 0.05",
            "kind = \"relearning\"\nevery = 1\ntimes = 1\nheld_out = 48",
            "kind = \"lfm-heuristic\"\nmatching = \"alignment\"\nschedule.kind = \"exponential\"",
            "kind = \"lfm-heuristic\"\nmatching = \"js\"\nschedule.kind = \"polynomial\"",
            "kind = \"lfm-learned\"\nmatching = \"js\"\nbilevel = { variant = \"released-hvp\", initial = 0.5, rate = 1.0 }",
            "kind = \"arl\"\nstart_epoch = 0",
            "kind = \"functional-entropy\"\nweight = 1e-6\nestimate = \"variance\"\nform = \"margin\"\nreplicas = 2",
            "kind = \"mla\"\ngate = \"batch\"",
            "kind = \"mla\"\ngate = \"even\"\nprojector = false",
            "kind = \"modality-dropout\"\nrate = 0.6",
            "kind = \"pmr\"\nvariant = \"released\"",
            "kind = \"proxynca\"\nvariant = \"released\"",
            "kind = \"reconboost\"\nvariant = \"released\"\nboost_epochs = 1\njoint_epochs = 1",
            "kind = \"reconboost\"\nboost_epochs = 1\njoint_epochs = 0",
            "kind = \"softtriple\"\ncenters = 1\nrate = 1.0",
            "kind = \"valuation\"\nstart_epoch = 0",
            "kind = \"valuation\"\nlevel = \"modality\"\nstart_epoch = 0",
        ]
        .map(str::to_owned),
    );
    match modalities {
        2 => {
            all.push("kind = \"ogm\"\nvariant = \"released\"".to_owned());
            all.push("kind = \"info-reg\"\nvariant = \"released\"".to_owned());
        }
        3 => all.push("kind = \"ogm\"\nvariant = \"released-m3\"".to_owned()),
        _ => {}
    }
    all
}

fn parse(text: &str) -> MethodConfig {
    toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn options(modalities: usize, seed: u64, dtype: DType) -> Options {
    Options { seed, dims: DIMS[..modalities].to_vec(), classes: CLASSES, dtype, ..Options::default() }
}

/// A toy model that has what the method needs, and the method. `split` chooses the fusion where there is one.
fn setup(text: &str, options: &Options, split: bool) -> Result<(Toy, Method)> {
    let config = parse(text);
    let modalities = options.dims.len();
    let needs = config.check(modalities).map_err(candle_core::Error::wrap)?;
    let options = Options { heads: needs.heads, ..options.clone() };
    let mut toy = match (needs.fusion, needs.heads, split) {
        (false, true, _) => options.build_without_fusion()?,
        (false, false, _) => options.build(|scope, names, widths, classes| {
            let own = config.fusion(scope, names, widths, classes)?;
            own.ok_or_else(|| candle_core::Error::Msg(format!("{text}: no fusion and no heads")))
        })?,
        (true, _, true) => options.build(toy::split)?,
        (true, _, false) => options.build(toy::opaque)?,
    };
    let widths = Modal::from_fn(modalities, |_| options.width);
    let method = config.step(toy.store.root().at("balance"), &widths, CLASSES)?;
    config.prepare(&mut toy.store)?;
    Ok((toy, method))
}

/// The start of an epoch whose training rows are these.
fn start(
    step: &mut dyn TrainStep,
    toy: &Toy,
    options: &Options,
    rows: &Vec<Batch>,
    epoch: usize,
) -> Result<()> {
    let held_out = step.needs().held_out;
    let outer = if held_out > 0 { Some(options.batch(1000, held_out)?) } else { None };
    step.epoch_start(&EpochCx {
        model: &toy.model,
        params: &toy.store,
        epoch,
        learning_rate: 0.05,
        batches: outer.as_ref().map(|outer| (&rows[0], outer)),
        train: Some(rows),
        rng: StepRng::new(7),
    })
}

/// The cross-entropy of the decision.
fn decision_loss(toy: &Toy, step: &dyn TrainStep, batch: &Batch) -> Result<f64> {
    let forward = toy.model.forward(batch, Mode::Eval)?;
    let decision = step.decide(&toy.model, batch, &forward)?;
    Ok(to_host(&cross_entropy(&decision, &batch.labels, None)?)?[0])
}

/// What an epoch's evaluation knows; nothing where the modalities have no prediction of their own.
fn report(toy: &Toy, seen: &Batch) -> Result<EpochReport> {
    let forward = toy.model.forward(seen, Mode::Eval)?;
    let Some(alone) = forward.heads.or(forward.split) else { return Ok(EpochReport::default()) };
    let unimodal = alone.try_map(|_, z| toy::accuracy(z, &seen.labels))?;
    Ok(EpochReport { train_loss: 0.0, accuracy: Some(0.0), unimodal: Some(unimodal) })
}

struct Run {
    losses: Vec<f64>,
    before: f64,
    after: f64,
    parameters: Vec<f64>,
}

fn train(text: &str, options: &Options, split: bool) -> Result<Run> {
    let (toy, mut step) = setup(text, options, split)?;
    let seen = options.batch(99, 3 * ROWS)?;
    let before = decision_loss(&toy, step.as_ref(), &seen)?;
    let held_out = step.needs().held_out;
    let mut optimizer = Descent { params: &toy.store, rate: 0.05 };
    let mut losses = Vec::new();
    for epoch in 0..STEPS / STEPS_PER_EPOCH {
        let first = epoch * STEPS_PER_EPOCH;
        let batches: Vec<Batch> =
            (first..first + STEPS_PER_EPOCH).map(|n| options.batch(n as u64, ROWS)).collect::<Result<_>>()?;
        let outer = if held_out > 0 { Some(options.batch(1000, held_out)?) } else { None };
        let cx = EpochCx {
            model: &toy.model,
            params: &toy.store,
            epoch,
            learning_rate: 0.05,
            batches: outer.as_ref().map(|outer| (&batches[0], outer)),
            train: Some(&batches),
            rng: StepRng::new(7).epoch(epoch),
        };
        step.epoch_start(&cx)?;
        for (n, batch) in batches.iter().enumerate() {
            losses.push(step.step(&context(&toy, batch, first + n), &mut optimizer)?.loss);
        }
        step.epoch_end(&cx, &report(&toy, &seen)?)?;
    }
    let after = decision_loss(&toy, step.as_ref(), &seen)?;
    let mut parameters = Vec::new();
    for p in toy.store.params() {
        parameters.extend(to_host(p.var().as_tensor())?);
    }
    Ok(Run { losses, before, after, parameters })
}

#[test]
fn thirty_steps_lower_the_loss_and_a_seed_fixes_the_bits() -> Result<()> {
    for modalities in 2..=4 {
        let options = options(modalities, 3, DType::F64);
        for text in settings(modalities) {
            for split in [true, false] {
                let name = format!("{text}, {modalities} modalities, split {split}");
                let run = train(&text, &options, split)?;
                // Unimodal probabilities as logits have a floor, LFM gives much of its weight to matching, and the
                // weights of G-Blend add up to 1 over all losses.
                let slow = parse(&text).decides() || text.contains("lfm") || text.contains("g-blend");
                let share = if slow { 0.9 } else { 0.7 };
                assert!(run.after < share * run.before, "{name}: {} -> {}", run.before, run.after);
                let trained = run.losses.iter().filter(|l| l.is_finite()).count();
                assert!(trained >= STEPS - 3, "{name}: {:?}", run.losses);
                let again = train(&text, &options, split)?;
                let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<u64>>();
                assert_eq!(bits(&run.losses), bits(&again.losses), "{name}");
                assert_eq!(bits(&run.parameters), bits(&again.parameters), "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_parameter_that_the_loss_does_not_reach_is_named_in_the_first_batch() -> Result<()> {
    for text in settings(2) {
        let options = options(2, 0, DType::F64);
        let (mut toy, mut method) = setup(&text, &options, true)?;
        toy.store.root().at("spare").param("weight", 3, Init::Const(1.0))?;
        let batch = options.batch(0, ROWS)?;
        let mut optimizer = Descent { params: &toy.store, rate: 0.1 };
        let error = method.step(&context(&toy, &batch, 0), &mut optimizer).err();
        let error = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("`spare.weight` receives no gradient"), "{text}: {error}");
    }
    Ok(())
}

#[test]
fn methods_compose_and_two_decisions_do_not() -> Result<()> {
    let options = options(3, 1, DType::F64);
    let toy = options.build(toy::split)?;
    let opm = OpmConfig { p_exe: 1.0, ..OpmConfig::default() }.build().map_err(candle_core::Error::wrap)?;
    let ogm = OgmConfig::default().build(3, false).map_err(candle_core::Error::wrap)?;
    let mut step = Joint::new((opm, ogm));
    assert_eq!(step.needs().modalities, 2);
    let mut optimizer = Descent { params: &toy.store, rate: 0.05 };
    let mut dropped = 0;
    let seen = options.batch(99, ROWS)?;
    let before = decision_loss(&toy, &step, &seen)?;
    for n in 0..STEPS {
        let batch = options.batch(n as u64, ROWS)?;
        let report = step.step(&context(&toy, &batch, n), &mut optimizer)?;
        dropped += ROWS - report.rows;
        assert!(
            observed(&report, "drop_probability").len() == 3 && observed(&report, "coefficient").len() == 3
        );
        let scores = observed(&report, "score");
        assert_eq!(scores[..3], scores[3..], "the two share one computation");
    }
    assert!(decision_loss(&toy, &step, &seen)? < 0.7 * before);
    assert_eq!(dropped, 0, "with three modalities nobody loses all of them in this run");

    let (toy, _) = setup("kind = \"sum-ce\"", &options, true)?;
    let mut optimizer = Descent { params: &toy.store, rate: 0.05 };
    let batch = options.batch(0, ROWS)?;
    let error = Joint::new((SumCe, SumCe)).step(&context(&toy, &batch, 0), &mut optimizer).err();
    let error = error.map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("two composed methods both bring their own decision rule"), "{error}");
    Ok(())
}

/// Everything that a step produced is finite, except scores and ratios of what is not there.
fn assert_finite(name: &str, report: &StepReport, gradients: &BTreeMap<String, Tensor>) -> Result<()> {
    assert!(report.loss.is_finite(), "{name}: loss {}", report.loss);
    assert!(!gradients.is_empty(), "{name}");
    for (parameter, gradient) in gradients {
        let values = to_host(gradient)?;
        assert!(values.iter().all(|g| g.is_finite()), "{name}: the gradient of {parameter} is {values:?}");
    }
    for (what, m, value) in &report.observations {
        assert!(
            value.is_finite() || what.ends_with("score") || *what == "ratio",
            "{name}: {what} {m:?} = {value}"
        );
    }
    Ok(())
}

/// One step of every method and both fusions; OPM and its kind always execute.
fn each_step(
    modalities: usize,
    dtype: DType,
    batch: &dyn Fn(&Options) -> Result<Batch>,
) -> Result<Vec<(String, StepReport)>> {
    let mut reports = Vec::new();
    for text in settings(modalities) {
        let text = if text == "kind = \"opm\"" { "kind = \"opm\"\np_exe = 1.0\nq_base = 0.9" } else { &text };
        for split in [true, false] {
            let options = options(modalities, 2, dtype);
            let (toy, mut method) = setup(text, &options, split)?;
            let name = format!("{text}, {modalities} modalities, split {split}, {dtype:?}");
            let batch = batch(&options)?;
            if method.needs().held_out == 0 {
                start(method.as_mut(), &toy, &options, &vec![batch.clone()], 0)?;
            }
            let (report, capture) = match one_step_of(&toy, &batch, method.as_mut()) {
                Ok(done) => done,
                Err(error) => panic!("{name}: {error}"),
            };
            if report.rows > 0 {
                assert_finite(&name, &report, &capture.gradients)?;
            }
            reports.push((name, report));
        }
    }
    Ok(reports)
}

/// `batch` with modality `m` missing in the rows that `gone` names.
fn without(mut batch: Batch, m: usize, gone: impl Fn(usize) -> bool) -> Result<Batch> {
    let m = mm_core::Modality::new(m);
    let rows = (0..batch.rows()).map(|row| !gone(row)).collect();
    let x = batch.inputs[m].clone();
    let presence = Presence::new(rows, x.dtype(), x.device())?;
    batch.inputs[m] = presence.apply(&x)?;
    batch.present[m] = Some(presence);
    Ok(batch)
}

#[test]
fn rows_without_a_modality_train() -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        for modalities in [2, 3] {
            each_step(modalities, dtype, &|o| without(o.batch(0, ROWS)?, 0, |row| row % 3 == 0))?;
            each_step(modalities, dtype, &|o| {
                // A row without anything at all, too.
                let first = without(o.batch(0, ROWS)?, 0, |row| row < 5)?;
                (1..modalities).try_fold(first, |batch, m| without(batch, m, |row| row == 3 || row > 20))
            })?;
        }
    }
    Ok(())
}

#[test]
fn a_modality_that_is_missing_everywhere_is_left_alone() -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        for modalities in [2, 3] {
            let reports = each_step(modalities, dtype, &|o| without(o.batch(0, ROWS)?, 1, |_| true))?;
            for (name, report) in reports {
                if let Some(score) = observed(&report, "score").get(1) {
                    assert!(score.is_nan(), "{name}: a score of {score} without evidence");
                }
                // The rules that were released know two or three modalities, all of them there.
                if let Some(k) = observed(&report, "coefficient").get(1)
                    && !name.contains("variant = \"released")
                {
                    assert_eq!(*k, 1.0, "{name}");
                }
                if let Some(q) = observed(&report, "drop_probability").get(1) {
                    assert_eq!(*q, 0.0, "{name}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_batch_of_one_row_trains() -> Result<()> {
    for modalities in 2..=4 {
        each_step(modalities, DType::F64, &|o| o.batch(0, 1))?;
    }
    Ok(())
}

#[test]
fn a_batch_of_one_class_trains() -> Result<()> {
    each_step(2, DType::F64, &|o| {
        let batch = o.batch(0, ROWS)?;
        Batch::new(batch.inputs, vec![1; ROWS])
    })?;
    Ok(())
}

#[test]
fn inputs_of_nothing_and_equal_modalities_train() -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        each_step(3, dtype, &|o| {
            let batch = o.batch(0, ROWS)?;
            Batch::new(batch.inputs.try_map(|_, x| x.zeros_like())?, batch.labels.to_vec())
        })?;
    }
    // An exact tie: both modalities are one tensor.
    let toy = over_features(&[4, 4], CLASSES, DType::F64)?;
    let block = toy.store.find("fusion.m0.weight").map(|p| p.var().copy()).transpose()?;
    crate::nets::set(
        &toy.store,
        "fusion.m1.weight",
        &block.ok_or_else(|| candle_core::Error::Msg("no block".into()))?,
    )?;
    let x = options(2, 0, DType::F64).batch(0, ROWS)?.inputs.into_values().swap_remove(0);
    let batch = Batch::new(Modal::new(vec![x.clone(), x]), vec![0; ROWS])?;
    let ogm = OgmConfig::default().build(2, true).map_err(candle_core::Error::wrap)?;
    let (report, _) = one_step(&toy, &batch, ogm)?;
    assert_eq!(observed(&report, "ratio"), [1.0, 1.0]);
    assert_eq!(observed(&report, "coefficient"), [1.0, 1.0]);
    let opm = OpmConfig { p_exe: 1.0, ..OpmConfig::default() }.build().map_err(candle_core::Error::wrap)?;
    let (report, _) = one_step(&toy, &batch, opm)?;
    assert_eq!(observed(&report, "drop_probability"), [0.0, 0.0]);
    Ok(())
}

#[test]
fn logits_of_thousands_train() -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        each_step(2, dtype, &|o| {
            let batch = o.batch(0, ROWS)?;
            let inputs = batch.inputs.try_map(|m, x| x.affine([1e3, -1e3][m.index()], 0.0))?;
            Batch::new(inputs, batch.labels.to_vec())
        })?;
    }
    // Scores of exactly 0 and 1.
    let certain = |label: u32| -> Result<Tensor> {
        let rows =
            vec![
                (0..CLASSES as u32).map(|c| if c == label { 1000.0 } else { -1000.0 }).collect::<Vec<f64>>();
                2
            ];
        Tensor::new(rows, &Device::Cpu)
    };
    let batch = Batch::new(Modal::new(vec![certain(0)?, certain(1)?]), vec![0, 0])?;
    let scores = mm_balance::score::true_class(&batch.inputs, &batch)?.into_values();
    assert_eq!(scores, [1.0, 0.0]);
    let k = mm_balance::mlb::coefficients(&scores, 0.8, 5.0);
    assert_eq!(k, [1.0 - 0.8f64.tanh(), 5.0]);
    assert_eq!(mm_balance::ogm::coefficients(&scores, 0.8), [0.0, 1.0]);
    Ok(())
}

/// Gradients and learning-rate factors of one MLB step.
#[test]
fn the_learning_rate_variant_scales_the_rate_and_not_the_gradient() -> Result<()> {
    let options = Options { heads: true, ..options(2, 4, DType::F64) };
    let toy = options.build(toy::split)?;
    let batch = options.batch(0, ROWS)?;
    let step = |apply: Apply| {
        let mlb = MlbConfig { apply, ..MlbConfig::default() }.build().map_err(candle_core::Error::wrap)?;
        one_step(&toy, &batch, mlb)
    };
    let plain =
        one_step(&toy, &batch, MultiLossConfig::default().build().map_err(candle_core::Error::wrap)?)?.1;
    let (report, by_rate) = step(Apply::LearningRate)?;
    let by_gradient = step(Apply::Gradient)?.1;
    let k = observed(&report, "coefficient");
    assert!(k[0].min(k[1]) < 1.0 && k[0].max(k[1]) > 1.0, "{k:?}");
    for (name, gradient) in &plain.gradients {
        let m = ["m0", "m1"].iter().position(|m| name.split('.').any(|part| part == *m));
        let expected = m.map_or(1.0, |m| k[m]);
        assert_eq!(name == "fusion.bias", m.is_none());
        mm_testkit::assert_close(&by_rate.gradients[name], gradient, 0.0);
        assert_eq!(by_rate.lr_scales[name], expected, "{name}");
        mm_testkit::assert_close(&by_gradient.gradients[name], &gradient.affine(expected, 0.0)?, 1e-15);
        assert_eq!(by_gradient.lr_scales[name], 1.0, "{name}");
    }
    Ok(())
}

/// A head of one matrix: its columns are scaled, which is the same as scaling the blocks of a split head.
#[test]
fn a_concatenating_head_is_modulated_by_columns() -> Result<()> {
    let options = Options { heads: true, ..options(2, 4, DType::F64) };
    let concat = options.build(|scope, names, dims, classes| {
        Ok(Box::new(mm_fusion::concat::ConcatConfig::default().build(scope, names, dims, classes)?))
    })?;
    let split = options.build(toy::split)?;
    for (name, value) in split.store.tensors() {
        if !name.starts_with("fusion") {
            crate::nets::set(&concat.store, &name, &value)?;
        }
    }
    let block = |name: &str| split.store.tensors()[name].clone();
    let weight = Tensor::cat(&[block("fusion.m0.weight"), block("fusion.m1.weight")], 1)?;
    crate::nets::set(&concat.store, "fusion.weight", &weight)?;
    crate::nets::set(&concat.store, "fusion.bias", &block("fusion.bias"))?;
    let batch = options.batch(0, ROWS)?;
    for apply in [Apply::Gradient, Apply::LearningRate] {
        let config = MlbConfig { apply, ..MlbConfig::default() };
        let run = |toy| one_step(toy, &batch, config.build().map_err(candle_core::Error::wrap)?);
        let (one, many) = (run(&concat)?.1, run(&split)?.1);
        let step = |name: &str| many.gradients[name].affine(many.lr_scales[name], 0.0);
        let expected = Tensor::cat(&[step("fusion.m0.weight")?, step("fusion.m1.weight")?], 1)?;
        let found = one.gradients["fusion.weight"].affine(one.lr_scales["fusion.weight"], 0.0)?;
        mm_testkit::assert_close(&found, &expected, 1e-12);
    }
    Ok(())
}

#[test]
fn ogm_touches_only_the_parameters_it_is_told_to() -> Result<()> {
    let options = options(2, 4, DType::F64);
    let toy = options.build(toy::split)?;
    let batch = options.batch(0, ROWS)?;
    let plain = one_step(&toy, &batch, ())?.1.gradients;
    for (parameters, touched) in [(Parameters::All, 2), (Parameters::Weights, 1), (Parameters::Conv, 0)] {
        for noise in [false, true] {
            let config = OgmConfig { parameters, ..OgmConfig::default() };
            let ogm = config.build(2, noise).map_err(candle_core::Error::wrap)?;
            let found = one_step(&toy, &batch, ogm)?.1.gradients;
            let changed: Vec<&str> = found
                .iter()
                .filter(|(name, g)| mm_testkit::close::difference(*g, &plain[*name], 0.0).is_err())
                .map(|(name, _)| name.as_str())
                .collect();
            // Without noise one of the two encoders leads; with noise both change.
            assert_eq!(
                changed.len(),
                touched * if noise { 2 } else { 1 },
                "{parameters:?} {noise}: {changed:?}"
            );
            assert!(changed.iter().all(|name| name.starts_with("encoder.")), "{changed:?}");
        }
    }
    Ok(())
}

/// The finite difference behind `released-hvp` has to be as good in f32 as f32 allows.
#[test]
fn the_released_statistic_is_the_same_in_both_precisions() -> Result<()> {
    let statistic = |dtype: DType| -> Result<f64> {
        let mut store = ParamStore::new(0, dtype, &Device::Cpu);
        let names = toy::modalities(2)?;
        let encoders = Modal::try_from_fn(2, |m| {
            boxed(TanhEncoder::new(store.root().at("encoder").at(names.name(m)), (5, DIMS[m.index()]), true))
        })?;
        let dims = encoders.map(|_, e| e.dim());
        let fusion = toy::split(store.root().at("fusion"), &names, &dims, CLASSES)?;
        let toy = Toy { model: Composite::new(names, CLASSES, encoders, Some(fusion))?, store };
        let batch = options(2, 0, dtype).batch(0, 16)?;
        let bilevel = Bilevel { variant: Variant::ReleasedHvp, ..Bilevel::default() };
        let config =
            LfmLearnedConfig { matching: Matching::Alignment, bilevel, ..LfmLearnedConfig::default() };
        let mut method = config.build().map_err(candle_core::Error::wrap)?;
        let before = toy.store.snapshot()?;
        method.epoch_start(&EpochCx {
            model: &toy.model,
            params: &toy.store,
            epoch: 0,
            learning_rate: 0.1,
            batches: Some((&batch, &batch)),
            train: None,
            rng: StepRng::new(0),
        })?;
        for id in toy.store.ids() {
            mm_testkit::assert_close(toy.store.get(id).var(), before.get(id), 0.0);
        }
        Ok(method.state()["hypergradient"][0])
    };
    let (wide, narrow) = (statistic(DType::F64)?, statistic(DType::F32)?);
    assert!((wide - narrow).abs() < 1e-3 * wide.abs(), "{wide} {narrow}");
    Ok(())
}
