//! What single methods do in a step and at the start of an epoch, by number.

use crate::nets::{Descent, context, observed, one_step};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::mla::{self, MlaConfig};
use mm_balance::mmcosine::MmCosineConfig;
use mm_balance::modality_dropout::ModalityDropoutConfig;
use mm_balance::ogm::OgmConfig;
use mm_balance::pmr::{self, PmrConfig, Prototypes};
use mm_balance::reconboost::{ReconBoostConfig, Variant};
use mm_balance::umt::{Teachers, UmtConfig, distillation};
use mm_balance::valuation::{Level, ValuationConfig, copies};
use mm_balance::{Balancer, EpochCx, Joint, Optimizer, StepCx, TrainStep};
use mm_core::model::{sum, to_host};
use mm_core::{Batch, Gradients, Modal, Mode, Multimodal, ParamStore, Presence, StepRng};
use mm_kernels::cross_entropy;
use mm_testkit::assert_close;
use mm_testkit::toy::{self, Options, Toy};
use std::collections::BTreeMap;

const ROWS: usize = 12;

fn valid<T>(built: mm_core::Checked<T>) -> Result<T> {
    built.map_err(candle_core::Error::wrap)
}

/// An optimiser that writes down the gradients of each of its steps and moves nothing.
struct Recorder<'a>(&'a ParamStore, Vec<BTreeMap<String, Tensor>>);

impl Optimizer for Recorder<'_> {
    fn step(&mut self, gradients: &mut Gradients) -> Result<Option<f64>> {
        let mut seen = BTreeMap::new();
        for id in self.0.ids() {
            if let Some(gradient) = gradients.get(id)? {
                seen.insert(self.0.get(id).name().to_owned(), gradient);
            }
        }
        self.1.push(seen);
        Ok(None)
    }
}

fn epoch<'a>(toy: &'a Toy, rows: &'a Vec<Batch>, epoch: usize) -> EpochCx<'a> {
    EpochCx {
        model: &toy.model,
        params: &toy.store,
        epoch,
        learning_rate: 0.1,
        batches: None,
        train: Some(rows),
        rng: StepRng::new(0),
    }
}

fn with_shared_head(options: &Options, config: &MlaConfig) -> Result<Toy> {
    options.build(|scope, _, widths, classes| Ok(Box::new(config.fusion(scope, widths, classes)?)))
}

#[test]
fn mla_steps_once_per_modality_and_projects_the_head() -> Result<()> {
    let options = Options { dims: vec![4, 6, 3], ..Options::default() };
    let batch = options.batch(0, ROWS)?;
    let steps = |config: MlaConfig, batch: &Batch| -> Result<(Toy, Vec<BTreeMap<String, Tensor>>)> {
        let toy = with_shared_head(&options, &config)?;
        let mut step = valid(config.build())?;
        step.epoch_start(&epoch(&toy, &vec![batch.clone(); 4], 0))?;
        let mut recorder = Recorder(&toy.store, Vec::new());
        let report = step.step(&context(&toy, batch, 0), &mut recorder)?;
        assert_eq!(observed(&report, "score").len(), 3);
        let seen = recorder.1;
        Ok((toy, seen))
    };
    let (toy, plain) = steps(MlaConfig { projector: false, ..MlaConfig::default() }, &batch)?;
    let (_, projected) = steps(MlaConfig::default(), &batch)?;
    assert_eq!((plain.len(), projected.len()), (3, 3));
    let width = options.width;
    let mut p: Vec<f64> = (0..width * width).map(|n| f64::from(u8::from(n / width == n % width))).collect();
    for (m, (plain, projected)) in toy.model.modalities().iter().zip(plain.iter().zip(&projected)) {
        for name in plain.keys() {
            let own = name.starts_with("fusion.") || name.starts_with(&format!("encoder.m{}.", m.index()));
            assert!(own, "modality {} moves {name}", m.index());
        }
        let expected = mla::project(&plain["fusion.weight"], &p)?;
        assert_close(&projected["fusion.weight"], &expected, 1e-12);
        assert_close(&projected["fusion.bias"], &plain["fusion.bias"], 0.0);
        let h = toy.model.encode(m, &batch, Mode::Eval)?;
        mla::absorb(&mut p, &to_host(&h.mean(0)?)?, 0.1);
    }
    // A modality that no row has takes no step.
    let mut gone = batch.clone();
    let m = mm_core::Modality::new(1);
    let nobody = Presence::new(vec![false; ROWS], DType::F64, &Device::Cpu)?;
    gone.inputs[m] = nobody.apply(&gone.inputs[m])?;
    gone.present[m] = Some(nobody);
    assert_eq!(steps(MlaConfig::default(), &gone)?.1.len(), 2);
    Ok(())
}

#[test]
fn mla_goes_on_where_it_stopped() -> Result<()> {
    let options = Options::default();
    let config = MlaConfig::default();
    let toy = with_shared_head(&options, &config)?;
    let rows: Vec<Batch> = (0..3).map(|n| options.batch(n, ROWS)).collect::<Result<_>>()?;
    let run = |step: &mut dyn TrainStep, n: usize| -> Result<Vec<BTreeMap<String, Tensor>>> {
        let mut recorder = Recorder(&toy.store, Vec::new());
        step.step(&context(&toy, &rows[n], n), &mut recorder)?;
        Ok(recorder.1)
    };
    let mut whole = valid(config.build())?;
    whole.epoch_start(&epoch(&toy, &rows, 0))?;
    run(&mut whole, 0)?;
    run(&mut whole, 1)?;
    let mut resumed = valid(config.build())?;
    resumed.restore(&whole.state())?;
    let (a, b) = (run(&mut whole, 2)?, run(&mut resumed, 2)?);
    for (a, b) in a.iter().zip(&b) {
        for (name, gradient) in a {
            assert_close(gradient, &b[name], 0.0);
        }
    }
    assert!(resumed.restore(&mm_balance::State::new()).is_err());
    Ok(())
}

#[test]
fn reconboost_moves_one_modality_at_a_time() -> Result<()> {
    let options = Options { dims: vec![4, 6, 3], heads: true, ..Options::default() };
    let toy = options.build_without_fusion()?;
    let batch = options.batch(0, ROWS)?;
    let steps = |config: &ReconBoostConfig, epoch: usize| -> Result<(f64, BTreeMap<String, Tensor>)> {
        let mut step = valid(config.build())?;
        let mut recorder = Recorder(&toy.store, Vec::new());
        let cx = StepCx::new(&toy.model, &toy.store, &batch, epoch, epoch, StepRng::new(5));
        let report = step.step(&cx, &mut recorder)?;
        Ok((report.loss, recorder.1.swap_remove(0)))
    };
    let config = ReconBoostConfig { boost_epochs: 1, joint_epochs: 1, ..ReconBoostConfig::default() };
    for at in 0..8 {
        let seen = steps(&config, at)?.1;
        let moved = |m: usize| seen.keys().any(|name| name.contains(&format!(".m{m}.")));
        for m in 0..3 {
            // Epochs 0, 2, 4, 6 boost modalities 0, 1, 2, 0; the others train all.
            assert_eq!(moved(m), at % 2 == 1 || m == (at / 2) % 3, "epoch {at}, modality {m}");
        }
    }
    // The reconciling term is there from the second stage on, unless the variant leaves it out.
    let released = ReconBoostConfig { variant: Variant::Released, ..config.clone() };
    assert_eq!(steps(&config, 0)?.0, steps(&released, 0)?.0);
    assert!(steps(&config, 2)?.0 > steps(&released, 2)?.0);
    let none = ReconBoostConfig { alpha: 0.0, ..config };
    assert_eq!(steps(&none, 2)?.0, steps(&released, 2)?.0);
    Ok(())
}

#[test]
fn pmr_keeps_class_means_and_says_what_it_adds() -> Result<()> {
    let options = Options::default();
    let toy = options.build(toy::split)?;
    let rows: Vec<Batch> = (0..20).map(|n| options.batch(n, ROWS)).collect::<Result<_>>()?;
    let config = PmrConfig { share: 0.1, momentum: 0.25, ..PmrConfig::default() };
    let mut method = valid(config.build())?;
    let means = || -> Result<Vec<Prototypes>> {
        let z = rows[..2].iter().map(|b| toy.model.encode_all(b, Mode::Eval)).collect::<Result<Vec<_>>>()?;
        let labels: Vec<u32> = rows[..2].iter().flat_map(|b| b.labels.to_vec()).collect();
        (0..2)
            .map(|m| {
                let h = z.iter().map(|z| to_host(&z.values()[m])).collect::<Result<Vec<_>>>()?.concat();
                Prototypes::new(&h, &labels, options.width, 3)
            })
            .collect()
    };
    method.epoch_start(&epoch(&toy, &rows, 0))?;
    let first = means()?;
    assert_eq!(method.state()["prototypes.1"], first[1].values());
    // The parameters move: the next epoch forgets, the one after that mixes.
    for p in toy.store.params() {
        p.var().set(&p.var().affine(1.5, 0.0)?)?;
    }
    let second = means()?;
    method.epoch_start(&epoch(&toy, &rows, 1))?;
    assert_eq!(method.state()["prototypes.0"], second[0].values());
    for p in toy.store.params() {
        p.var().set(&p.var().affine(0.5, 0.0)?)?;
    }
    let third: Vec<Prototypes> = means()?.into_iter().zip(&second).map(|(n, o)| n.after(o, 0.25)).collect();
    method.epoch_start(&epoch(&toy, &rows, 2))?;
    assert_eq!(method.state()["prototypes.0"], third[0].values());

    let mut restored = valid(config.build())?;
    restored.restore(&method.state())?;
    assert_eq!(restored.state(), method.state());
    let batch = &rows[5];
    let fwd = toy.model.forward(batch, Mode::Eval)?;
    let found = restored.auxiliary(&context(&toy, batch, 0), &fwd)?.expect("no tie");
    let logits: Vec<Tensor> =
        third.iter().zip(fwd.features.values()).map(|(p, h)| p.logits(h)).collect::<Result<_>>()?;
    let scores = mm_balance::score::true_class(&Modal::new(logits.clone()), batch)?.into_values();
    let (boost, entropy) = pmr::coefficients(&scores);
    let mut terms = Vec::new();
    for (m, u) in logits.iter().enumerate() {
        terms.push((cross_entropy(u, &batch.labels, None)? * boost[m])?);
        terms.push((pmr::mean_entropy(u, &[1.0; ROWS])? * (-0.01 * entropy[m]))?);
    }
    assert_close(&found, &sum(&terms)?, 1e-12);
    // After the first epochs the entropy is left out, and outside of the window all of it.
    let late = StepCx::new(&toy.model, &toy.store, batch, 10, 0, StepRng::new(5));
    let found = restored.auxiliary(&late, &fwd)?.expect("no tie");
    assert_close(&found, &(&terms[0] + &terms[2])?, 1e-12);
    let mut closed = valid(PmrConfig { end_epoch: Some(0), ..PmrConfig::default() }.build())?;
    closed.restore(&method.state())?;
    assert!(closed.auxiliary(&context(&toy, batch, 0), &fwd)?.is_none());
    Ok(())
}

#[test]
fn modality_dropout_zeroes_features_and_keeps_every_row() -> Result<()> {
    let options = Options { dims: vec![4, 6, 3], ..Options::default() };
    let toy = options.build(toy::split)?;
    let batch = options.batch(0, 600)?;
    let mut method = valid(ModalityDropoutConfig { rate: 0.4, ..ModalityDropoutConfig::default() }.build())?;
    let z = toy.model.encode_all(&batch, Mode::Eval)?;
    let edited = method.features(&context(&toy, &batch, 0), z.clone())?;
    assert!(edited.keep.is_none());
    let mut left = vec![0; 600];
    for (m, h) in edited.features.iter() {
        let (new, old) = (to_host(h)?, to_host(&z[m])?);
        let mut dropped = 0;
        for (row, (new, old)) in new.chunks(options.width).zip(old.chunks(options.width)).enumerate() {
            let gone = new.iter().all(|&x| x == 0.0);
            assert!(gone || new == old);
            dropped += usize::from(gone);
            left[row] += usize::from(!gone);
        }
        // 0.4, less a third of the rows that would have lost all: 0.4³/3.
        assert!((dropped as f64 / 600.0 - 0.379).abs() < 0.06, "{dropped}");
    }
    assert!(left.iter().all(|&n| n > 0));
    Ok(())
}

#[test]
fn valuation_adds_rows_with_the_weak_modality_alone() -> Result<()> {
    let options = Options::default();
    let toy = options.build(toy::opaque)?;
    let batch = options.batch(3, ROWS)?;
    let rows = vec![batch.clone()];
    let mut method = valid(ValuationConfig { start_epoch: 0, ..ValuationConfig::default() }.build(2))?;
    method.epoch_start(&epoch(&toy, &rows, 0))?;
    let state = method.state();
    let phi = &state["contributions"];
    assert_eq!(phi.len(), 2 * ROWS);
    let z = toy.model.encode_all(&batch, Mode::Eval)?;
    let edited = method.features(&context(&toy, &batch, 0), z.clone())?;
    let keep = edited.keep.expect("an untrained model is wrong somewhere");
    let expected: usize = phi.iter().map(|phi| copies(*phi)).sum();
    assert_eq!(keep.len(), ROWS + expected);
    let mut at = ROWS;
    for (row, phi) in phi.chunks(2).enumerate() {
        for (m, phi) in phi.iter().enumerate() {
            for _ in 0..copies(*phi) {
                assert_eq!(keep[at], row as u32);
                for (j, h) in edited.features.iter() {
                    let copy = h.get(at)?;
                    let wanted = if j.index() == m { z[j].get(row)? } else { copy.zeros_like()? };
                    assert_close(&copy, &wanted, 0.0);
                }
                at += 1;
            }
        }
    }
    let mut resumed = valid(ValuationConfig { start_epoch: 0, ..ValuationConfig::default() }.build(2))?;
    resumed.restore(&state)?;
    assert_eq!(resumed.state(), state);
    let config = ValuationConfig { level: Level::Modality, alpha: 1e9, start_epoch: 0, end_epoch: None };
    let mut method = valid(config.build(2))?;
    method.epoch_start(&epoch(&toy, &rows, 0))?;
    let means = method.state()["means"].clone();
    let edited = method.features(&context(&toy, &batch, 0), z)?;
    // With so large an alpha every row comes again with the weaker modality, unless the two are equal.
    let expected = if means[0] == means[1] { ROWS } else { 2 * ROWS };
    assert_eq!(edited.features.values()[0].dim(0)?, expected);
    Ok(())
}

/// The cosines are exact shares of the logits, so OGM reads them.
#[test]
fn ogm_reads_the_shares_of_mmcosine() -> Result<()> {
    let options = Options::default();
    let toy = options.build(|scope, names, widths, classes| {
        Ok(Box::new(MmCosineConfig::default().fusion(scope, names, widths, classes)?))
    })?;
    let batch = options.batch(0, ROWS)?;
    let (report, _) = one_step(&toy, &batch, valid(OgmConfig::default().build(2, false))?)?;
    let split = toy.model.forward(&batch, Mode::Eval)?.split.expect("a sum");
    let scores = mm_balance::score::true_class(&split, &batch)?.into_values();
    assert_eq!(observed(&report, "score"), scores);
    assert_eq!(observed(&report, "coefficient").iter().filter(|k| **k < 1.0).count(), 1);
    Ok(())
}

/// Encoders of another toy model as teachers.
#[derive(Debug)]
struct Others(Toy);

impl Teachers for Others {
    fn features(&mut self, m: mm_core::Modality, _: &str, batch: &Batch) -> Result<Tensor> {
        self.0.model.encode(m, batch, Mode::Eval)
    }
}

#[test]
fn umt_draws_features_to_those_of_the_teachers() -> Result<()> {
    let options = Options { dims: vec![4, 6, 3], ..Options::default() };
    let toy = options.build(toy::opaque)?;
    let teachers = || Options { seed: 9, ..options.clone() }.build(toy::opaque).map(Others);
    let mut batch = options.batch(0, ROWS)?;
    let m = mm_core::Modality::new(1);
    let some = Presence::new((0..ROWS).map(|row| row % 3 != 0).collect(), DType::F64, &Device::Cpu)?;
    batch.inputs[m] = some.apply(&batch.inputs[m])?;
    batch.present[m] = Some(some);
    let build = || -> Result<_> { valid(UmtConfig::default().build(Some(Box::new(teachers()?)))) };
    let (report, _) = one_step(&toy, &batch, build()?)?;
    let (z, mut other) = (toy.model.encode_all(&batch, Mode::Eval)?, teachers()?);
    let mut total =
        to_host(&cross_entropy(&toy.model.forward(&batch, Mode::Eval)?.fused, &batch.labels, None)?)?[0];
    for (m, h) in z.iter() {
        let (h, t) = (to_host(h)?, to_host(&other.features(m, "", &batch)?)?);
        // Rows without the modality are zero on both sides.
        let rows = batch.present[m].as_ref().map_or(ROWS, Presence::count);
        let square: f64 = h.iter().zip(&t).map(|(h, t)| (h - t) * (h - t)).sum();
        let expected = square / (rows * options.width) as f64;
        assert!((observed(&report, "distance")[m.index()] - expected).abs() < 1e-12);
        total += 10.0 * expected;
    }
    assert!((report.loss - total).abs() < 1e-10, "{} {total}", report.loss);

    let mut step = Joint::new(build()?);
    let mut optimizer = Descent { params: &toy.store, rate: 0.005 };
    let mut distances = Vec::new();
    for n in 0..30 {
        let batch = options.batch(n, ROWS)?;
        let report = step.step(&context(&toy, &batch, n as usize), &mut optimizer)?;
        distances.push(observed(&report, "distance").iter().sum::<f64>());
    }
    assert!(distances[29] < 0.2 * distances[0], "{distances:?}");

    let error = one_step(&toy, &batch, valid(UmtConfig::default().build(None))?).err().map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("needs a teacher for every modality")));
    let narrow = Tensor::zeros((ROWS, 2), DType::F64, &Device::Cpu)?;
    let error = distillation(&z.values()[0], &narrow, None).err().map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("the same encoder settings")));
    Ok(())
}
