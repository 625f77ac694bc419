//! Every method in steps over batches at the edges: modalities missing in rows or everywhere, one row, one class,
//! nothing in the inputs, exact ties, logits of thousands.

use crate::methods::{CLASSES, ROWS, options, settings, setup, start};
use crate::nets::{observed, one_step, one_step_of, over_features};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::StepReport;
use mm_balance::ogm::OgmConfig;
use mm_balance::opm::OpmConfig;
use mm_core::model::to_host;
use mm_core::{Batch, Modal, Presence};
use mm_testkit::toy::Options;
use std::collections::BTreeMap;

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
