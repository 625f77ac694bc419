//! Methods that act between steps or keep something: what they change, what they leave alone, what survives a checkpoint.

use crate::nets::{Capture, Descent, context, observed, one_step};
use candle_core::{DType, Result, Tensor};
use mm_balance::lfm::LfmLearnedConfig;
use mm_balance::mlb::MlbConfig;
use mm_balance::multi_loss::MultiLossConfig;
use mm_balance::ogm::OgmConfig;
use mm_balance::opm::OpmConfig;
use mm_balance::{Balancer, EpochCx, EpochReport, Joint, MethodConfig, TrainStep};
use mm_core::model::to_host;
use mm_core::{Batch, Modal, Mode, Multimodal, StepRng};
use mm_kernels::cross_entropy;
use mm_testkit::toy::{self, Options, Toy};
use mm_testkit::{assert_close, close};
use std::collections::BTreeMap;

const CLASSES: usize = 3;

fn options(heads: bool) -> Options {
    Options { seed: 4, dims: vec![4, 6], classes: CLASSES, dtype: DType::F64, heads, ..Options::default() }
}

fn setup(text: &str) -> Result<(Toy, Box<dyn Balancer>)> {
    let config: MethodConfig = toml::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let needs = config.check(2).map_err(candle_core::Error::wrap)?;
    let mut toy = options(needs.heads).build(toy::split)?;
    let method = config.build(toy.store.root(), &widths(), CLASSES)?;
    config.prepare(&mut toy.store)?;
    Ok((toy, method))
}

fn epoch<'a>(toy: &'a Toy, number: usize, train: &'a Vec<Batch>, held: &'a Batch) -> EpochCx<'a> {
    EpochCx {
        model: &toy.model,
        params: &toy.store,
        epoch: number,
        learning_rate: 0.05,
        batches: Some((&train[0], held)),
        train: Some(train),
        rng: StepRng::new(7).epoch(number),
    }
}

fn batches(count: u64) -> Result<(Vec<Batch>, Batch)> {
    let train = (0..count).map(|n| options(false).batch(n, 24)).collect::<Result<_>>()?;
    Ok((train, options(false).batch(1000, 60)?))
}

fn values(toy: &Toy) -> Result<Vec<(String, Tensor)>> {
    toy.store.params().iter().map(|p| Ok((p.name().to_owned(), p.var().as_tensor().copy()?))).collect()
}

#[test]
fn relearning_draws_encoders_and_nothing_else_back() -> Result<()> {
    let (toy, method) = setup("kind = \"relearning\"\nevery = 2\ntimes = 1\nheld_out = 60")?;
    let (train, held) = batches(10)?;
    let start = values(&toy)?;
    let mut step = Joint::new(method);
    let mut optimizer = Descent { params: &toy.store, rate: 0.05 };
    for number in 0..6 {
        let before = values(&toy)?;
        let cx = epoch(&toy, number, &train, &held);
        step.epoch_start(&cx)?;
        let mut shares = Vec::new();
        step.balancer()
            .observe(&mut |name, _, value| shares.extend((name == "reset_share").then_some(value)));
        if number < 2 {
            assert!(shares.is_empty());
        }
        for ((name, was), ((_, first), (_, is))) in before.iter().zip(start.iter().zip(values(&toy)?)) {
            let m = ["encoder.m0.", "encoder.m1."].iter().position(|prefix| name.starts_with(prefix));
            let share = if number == 2 { m.map_or(0.0, |m| shares[m]) } else { 0.0 };
            let expected = (first.affine(share, 0.0)? + was.affine(1.0 - share, 0.0)?)?;
            assert_close(&is, &expected, 1e-14);
        }
        for (n, batch) in train.iter().enumerate() {
            step.step(&context(&toy, batch, 10 * number + n), &mut optimizer)?;
        }
        step.epoch_end(&cx, &EpochReport::default())?;
        if number == 2 {
            assert!(shares.iter().all(|s| *s > 0.0 && *s < 1.0), "{shares:?}");
            let (_, mut other) = setup("kind = \"relearning\"\nevery = 2\ntimes = 1\nheld_out = 60")?;
            other.restore(&step.state())?;
            assert_eq!(other.state(), step.state());
        }
    }
    Ok(())
}

#[test]
fn methods_that_keep_copies_say_what_is_missing() -> Result<()> {
    let toy = options(true).build(toy::split)?;
    let (train, held) = batches(1)?;
    for (kind, buffer) in
        [("relearning", "balance.relearning.encoder.m0.weight"), ("info-reg", "balance.info-reg.")]
    {
        let config: MethodConfig = toml::from_str(&format!("kind = \"{kind}\"")).expect("well-formed");
        let mut store = mm_core::ParamStore::new(0, DType::F64, &candle_core::Device::Cpu);
        let mut method = config.build(store.root(), &widths(), CLASSES)?;
        let error = method.epoch_start(&epoch(&toy, 0, &train, &held)).err().map(|e| e.to_string());
        let error = error.unwrap_or_default();
        assert!(error.contains(buffer) && error.contains("MethodConfig::prepare"), "{error}");
    }
    Ok(())
}

#[test]
fn info_reg_pulls_a_leader_back_to_the_start_of_the_epoch() -> Result<()> {
    let (toy, mut method) = setup("kind = \"info-reg\"")?;
    let (train, held) = batches(2)?;
    let cx = epoch(&toy, 0, &train, &held);
    method.epoch_start(&cx)?;
    let start = values(&toy)?;
    // The parameters move on by something that the test knows.
    for p in toy.store.params() {
        p.var().set(&p.var().affine(1.5, 0.25)?)?;
    }
    let (report, found) = one_step(&toy, &train[0], method)?;
    let beta = observed(&report, "regulation");
    let (scores, growth) = (observed(&report, "score"), observed(&report, "information_growth"));
    assert_eq!(growth, [1.0, 1.0]);
    let leader = usize::from(scores[1] > scores[0]);
    assert_eq!(beta[1 - leader], 0.0);
    assert_eq!(beta[leader], 0.95 * (scores[leader] - scores[1 - leader]).tanh().exp());
    let config: MethodConfig = toml::from_str("kind = \"multi-loss\"").expect("well-formed");
    let mut spare = mm_core::ParamStore::new(0, DType::F64, &candle_core::Device::Cpu);
    let (_, plain) = one_step(&toy, &train[0], config.build(spare.root(), &widths(), CLASSES)?)?;
    for ((name, was), (_, is)) in start.iter().zip(values(&toy)?) {
        let k = if name.starts_with(&format!("encoder.m{leader}.")) { beta[leader] } else { 0.0 };
        let expected = (&plain.gradients[name] + (is - was)?.affine(k, 0.0)?)?;
        assert_close(&found.gradients[name], &expected, 1e-12);
    }
    Ok(())
}

/// Traces add up the mean squares of the weights' gradients, and an epoch ends them; a checkpoint keeps both.
#[test]
fn info_reg_adds_up_its_information() -> Result<()> {
    let (toy, mut method) = setup("kind = \"info-reg\"\nthreshold = 1e9\nwindow = 2")?;
    let (train, held) = batches(3)?;
    let mut traces: Vec<[f64; 2]> = Vec::new();
    for number in 0..5 {
        let cx = epoch(&toy, number, &train, &held);
        method.epoch_start(&cx)?;
        let mut step = Joint::new(method);
        let mut expected = [0.0; 2];
        for (n, batch) in train.iter().enumerate() {
            let mut capture = Capture::new(&toy.store);
            step.step(&context(&toy, batch, n), &mut capture)?;
            for (m, expected) in expected.iter_mut().enumerate() {
                let g = to_host(&capture.gradients[&format!("encoder.m{m}.weight")])?;
                *expected += g.iter().map(|g| g * g).sum::<f64>() / g.len() as f64;
            }
            step.step(&context(&toy, batch, n), &mut Descent { params: &toy.store, rate: 0.05 })?;
            // The second step of the batch counts, too.
            let g = capture.gradients;
            for (m, expected) in expected.iter_mut().enumerate() {
                let g = to_host(&g[&format!("encoder.m{m}.weight")])?;
                *expected += g.iter().map(|g| g * g).sum::<f64>() / g.len() as f64;
            }
        }
        close::difference(&step.state()["running"], &expected, 1e-12).expect("the same trace");
        step.epoch_end(&cx, &EpochReport::default())?;
        traces.push(expected);
        let state = step.state();
        assert_eq!(state["running"], [0.0, 0.0]);
        let kept: Vec<f64> = traces.iter().skip(traces.len().saturating_sub(3)).map(|t| t[1]).collect();
        close::difference(&state["past.1"], &kept, 1e-12).expect("the last traces");
        method = setup("kind = \"info-reg\"\nthreshold = 1e9\nwindow = 2")?.1;
        method.restore(&state)?;
    }
    Ok(())
}

#[test]
fn g_blend_measures_and_leaves_no_trace() -> Result<()> {
    let text = "kind = \"g-blend\"\nestimate_epochs = 2\nsuper_epoch = 2\nheld_out = 60";
    let (toy, mut method) = setup(text)?;
    let (train, held) = batches(5)?;
    let start = values(&toy)?;
    assert_eq!(method.state()["weights"], [1.0 / 3.0; 3]);
    method.epoch_start(&epoch(&toy, 0, &train, &held))?;
    let weights = method.state()["weights"].clone();
    assert!(weights[0] != weights[1] && (weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{weights:?}");
    for ((_, was), (_, is)) in start.iter().zip(values(&toy)?) {
        assert_close(&is, was, 0.0);
    }
    method.epoch_start(&epoch(&toy, 1, &train, &held))?;
    assert_eq!(method.state()["weights"], weights, "a super-epoch has two epochs");

    // The loss of a step is the blend.
    let forward = toy.model.forward(&train[0], Mode::Eval)?;
    let mut expected = weights[2] * to_host(&cross_entropy(&forward.fused, &train[0].labels, None)?)?[0];
    for (head, w) in forward.heads.expect("heads").values().iter().zip(&weights) {
        expected += w * to_host(&cross_entropy(head, &train[0].labels, None)?)?[0];
    }
    let (_, mut other) = setup(text)?;
    other.restore(&method.state())?;
    let (report, _) = one_step(&toy, &train[0], other)?;
    assert!((report.loss - expected).abs() < 1e-12, "{} {expected}", report.loss);

    // What is measured, step by step: each modality alone, by gradient descent.
    let measured = |fusion: bool, of: &dyn Fn(&Batch) -> Result<f64>| -> Result<f64> {
        let mean = || -> Result<f64> {
            Ok(train.iter().map(of).collect::<Result<Vec<f64>>>()?.iter().sum::<f64>() / train.len() as f64)
        };
        let (train_before, held_before) = (mean()?, of(&held)?);
        for _ in 0..2 {
            for batch in &train {
                let forward = toy.model.forward(batch, Mode::Eval)?;
                let loss = if fusion {
                    cross_entropy(&forward.fused, &batch.labels, None)?
                } else {
                    let heads = forward.heads.expect("heads");
                    mm_core::model::sum(
                        heads.try_map(|_, u| cross_entropy(u, &batch.labels, None))?.values(),
                    )?
                };
                let grads = loss.backward()?;
                for p in toy.store.params() {
                    if let Some(g) = grads.get(p.var().as_tensor()) {
                        p.var().set(&(p.var().as_tensor().detach() - g.affine(0.05, 0.0)?)?)?;
                    }
                }
            }
        }
        let m = mm_balance::g_blend::Measured {
            train_before,
            held_before,
            train_after: mean()?,
            held_after: of(&held)?,
        };
        for ((_, was), p) in start.iter().zip(toy.store.params()) {
            p.var().set(was)?;
        }
        Ok(m.raw(mm_balance::g_blend::Estimator::Paper, 0.1))
    };
    let head = |m: usize| {
        let toy = &toy;
        move |batch: &Batch| -> Result<f64> {
            let heads = toy.model.forward(batch, Mode::Eval)?.heads.expect("heads");
            Ok(to_host(&cross_entropy(&heads.values()[m], &batch.labels, None)?)?[0])
        }
    };
    let fused = |batch: &Batch| -> Result<f64> {
        Ok(to_host(&cross_entropy(&toy.model.forward(batch, Mode::Eval)?.fused, &batch.labels, None)?)?[0])
    };
    let raw = [measured(false, &head(0))?, measured(false, &head(1))?, measured(true, &fused)?];
    let expected = mm_balance::g_blend::raised(&mm_balance::g_blend::normalised(&raw), 0.05);
    close::difference(&weights, &expected, 1e-9).expect("the same weights");
    Ok(())
}

#[test]
fn a_loss_of_weight_zero_leaves_gradients_of_zero() -> Result<()> {
    let (train, _) = batches(1)?;
    for weights in [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]] {
        let (toy, mut method) = setup("kind = \"g-blend\"")?;
        method.restore(&mm_balance::State::from([("weights".to_owned(), weights.to_vec())]))?;
        let (_, found) = one_step(&toy, &train[0], method)?;
        assert_eq!(found.gradients.len(), toy.store.len());
        for (prefix, loss) in [("head.m0", 0), ("head.m1", 1), ("fusion", 2)] {
            for (name, gradient) in found.gradients.iter().filter(|(name, _)| name.starts_with(prefix)) {
                let some = to_host(gradient)?.iter().any(|g| *g != 0.0);
                assert_eq!(some, weights[loss] != 0.0, "{name} at {weights:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn mslr_scales_rates_and_asks_for_unimodal_predictions() -> Result<()> {
    let (toy, mut method) = setup("kind = \"mslr\"\nkeep = 1\nfactors = [0.5, 2.0]")?;
    let (train, held) = batches(1)?;
    let cx = epoch(&toy, 0, &train, &held);
    for accuracies in [[0.4, 0.5], [0.6, 0.25]] {
        let unimodal = Some(Modal::new(accuracies.to_vec()));
        method.epoch_end(&cx, &EpochReport { train_loss: 0.0, accuracy: Some(0.5), unimodal })?;
    }
    let seen = EpochReport { train_loss: 0.0, accuracy: Some(0.5), unimodal: None };
    let error = method.epoch_end(&cx, &seen).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("multi-loss+mslr") && error.contains("late-linear, concat, sum"), "{error}");
    // A protocol that shows nothing stops nothing.
    method.epoch_end(&cx, &EpochReport::default())?;
    let (report, found) = one_step(&toy, &train[0], method)?;
    let k = observed(&report, "coefficient");
    close::difference(&k, &[0.75, 1.0], 1e-12).expect("factor times ratio");
    for (name, scale) in &found.lr_scales {
        let m = ["m0", "m1"].iter().position(|m| name.split('.').any(|part| part == *m));
        assert_eq!(*scale, m.map_or(1.0, |m| k[m]), "{name}");
    }
    Ok(())
}

#[test]
fn classifiers_of_cggm_do_not_train_encoders() -> Result<()> {
    let (toy, method) = setup("kind = \"cggm\"\nlambda = 0.0")?;
    let (train, _) = batches(1)?;
    let (report, found) = one_step(&toy, &train[0], method)?;
    let k = observed(&report, "coefficient");
    // The same start without heads: values depend on names.
    let bare = options(false).build(toy::split)?;
    let plain = one_step(&bare, &train[0], ())?.1.gradients;
    for (name, gradient) in &plain {
        let m = ["encoder.m0.", "encoder.m1."].iter().position(|prefix| name.starts_with(prefix));
        assert_close(&found.gradients[name], &gradient.affine(m.map_or(1.0, |m| k[m]), 0.0)?, 1e-12);
    }
    assert!(found.gradients.contains_key("head.m0.weight") && !plain.contains_key("head.m0.weight"));
    let (_, outside) = setup("kind = \"cggm\"\nstart_epoch = 1")?;
    let (report, found) = one_step(&toy, &train[0], outside)?;
    assert!(observed(&report, "coefficient").is_empty());
    for (name, gradient) in plain.iter().filter(|(name, _)| name.starts_with("encoder.")) {
        assert_close(&found.gradients[name], gradient, 1e-12);
    }
    Ok(())
}

#[test]
fn agm_outside_of_its_epochs_is_joint_training() -> Result<()> {
    let (toy, method) = setup("kind = \"agm\"\nend_epoch = 0")?;
    let (train, _) = batches(1)?;
    let (report, found) = one_step(&toy, &train[0], method)?;
    assert!(observed(&report, "coefficient").is_empty());
    for (name, gradient) in &one_step(&toy, &train[0], ())?.1.gradients {
        assert_close(&found.gradients[name], gradient, 0.0);
    }
    Ok(())
}

/// Contributions of a game whose values are known: they add up to that of all, and equal members get equal shares.
#[test]
fn contributions_are_shapley_values_without_the_empty_coalition() -> Result<()> {
    let device = &candle_core::Device::Cpu;
    for modalities in 1..=5 {
        // Additive with a bonus for the pair (0, 1).
        let value = |set: u32| {
            let worth: f64 = (0..modalities).filter(|m| set & (1 << m) != 0).map(|m| 1.0 + m as f64).sum();
            Tensor::new(&[[worth + if set & 3 == 3 { 3.0 } else { 0.0 }]], device)
        };
        let phi: Vec<f64> = mm_balance::agm::contributions(modalities, value)?
            .iter()
            .map(|t| Ok(to_host(t)?[0]))
            .collect::<Result<_>>()?;
        let bonus = |m: usize| if modalities > 1 && m < 2 { 1.5 } else { 0.0 };
        let expected: Vec<f64> = (0..modalities).map(|m| 1.0 + m as f64 + bonus(m)).collect();
        close::difference(&phi, &expected, 1e-12).expect("Shapley values");
    }
    assert!(mm_balance::agm::contributions(0, |_| Tensor::new(&[[0.0]], device)).is_err());
    Ok(())
}

#[test]
fn the_states_of_composed_methods_come_back() -> Result<()> {
    let learned = || LfmLearnedConfig::default().build().map_err(candle_core::Error::wrap);
    let mut pair = ((), learned()?);
    let mut state = pair.state();
    assert_eq!(state["1.supervised"], [0.5]);
    state.insert("1.supervised".to_owned(), vec![0.25]);
    pair.restore(&state)?;
    assert_eq!(pair.state(), state);
    assert!(pair.restore(&mm_balance::State::new()).is_err());
    Ok(())
}

/// Steps of epoch 0, in which neither method acts yet or any more.
#[test]
fn methods_act_and_report_inside_their_window_only() -> Result<()> {
    let options = options(true);
    let batch = options.batch(0, 24)?;
    let same = |a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>| {
        assert_eq!(a.len(), b.len());
        for (name, gradient) in a {
            assert_close(gradient, &b[name], 0.0);
        }
    };
    let toy = options.build(toy::split)?;
    let plain =
        one_step(&toy, &batch, MultiLossConfig::default().build().map_err(candle_core::Error::wrap)?)?;
    let config = MlbConfig { start_epoch: 1, ..MlbConfig::default() };
    let (report, found) = one_step(&toy, &batch, config.build().map_err(candle_core::Error::wrap)?)?;
    same(&found.gradients, &plain.1.gradients);
    assert!(observed(&report, "coefficient").is_empty());
    let (a, b) = (observed(&report, "score"), observed(&plain.0, "score"));
    assert!(a.len() == 2 && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");

    let options = Options { heads: false, ..options };
    let toy = options.build(toy::split)?;
    let plain = one_step(&toy, &batch, ())?.1;
    let ogm = OgmConfig { end_epoch: Some(0), ..OgmConfig::default() }.build(2, true);
    let opm = OpmConfig { p_exe: 1.0, start_epoch: 1, ..OpmConfig::default() }.build();
    let pair = (opm.map_err(candle_core::Error::wrap)?, ogm.map_err(candle_core::Error::wrap)?);
    let (report, found) = one_step(&toy, &batch, pair)?;
    same(&found.gradients, &plain.gradients);
    assert_eq!((observed(&report, "score").len(), observed(&report, "ratio").len()), (2, 0));
    Ok(())
}

/// Widths of two modalities' features; no method here asks for them.
fn widths() -> mm_core::Modal<usize> {
    mm_core::Modal::from_fn(2, |_| 1)
}
