//! What single methods do to gradients and rates, and how exact their finite differences are.

use crate::methods::{CLASSES, DIMS, ROWS, options};
use crate::nets::{TanhEncoder, boxed, observed, one_step};
use candle_core::{DType, Device, Result, Tensor};
use mm_balance::amco::AmcoConfig;
use mm_balance::lfm::{LfmLearnedConfig, Matching};
use mm_balance::lfm_weight::{Bilevel, Variant};
use mm_balance::mcr::{McrConfig, Strategy};
use mm_balance::mlb::{Apply, MlbConfig};
use mm_balance::multi_loss::MultiLossConfig;
use mm_balance::ogm::{OgmConfig, Parameters};
use mm_balance::{Balancer, EpochCx, StepCx};
use mm_core::{Composite, Modal, Mode, Multimodal, ParamStore, StepRng};
use mm_testkit::toy::{self, Options, Toy};
use std::collections::BTreeMap;

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

/// The dependent modality of the last step loses channels, the same in every row; the others stay.
#[test]
fn amco_masks_channels_of_the_modality_that_decides() -> Result<()> {
    let options = Options { width: 10, ..options(2, 4, DType::F64) };
    let toy = options.build(toy::split)?;
    let batch = options.batch(0, ROWS)?;
    // The first modality alone has anything to say.
    let weight = toy.store.tensors()["fusion.m0.weight"].affine(30.0, 0.0)?;
    crate::nets::set(&toy.store, "fusion.m0.weight", &weight)?;
    let mut amco = AmcoConfig::default().build(2).map_err(candle_core::Error::wrap)?;
    let cx = |epoch| StepCx::new(&toy.model, &toy.store, &batch, epoch, 0, StepRng::new(5));
    let plain = toy.model.encode_all(&batch, Mode::Eval)?;
    // Nothing is known before the first step, and nothing is masked in the first epoch.
    let edited = amco.features(&cx(1), plain.clone())?.features;
    let forward = toy.model.fuse(edited, &batch.present, Mode::Eval)?;
    amco.auxiliary(&cx(1), &forward)?;
    for (epoch, masked) in [(0, 0), (1, 5), (2, 8), (40, 9)] {
        let edited = amco.features(&cx(epoch), plain.clone())?;
        assert!(edited.keep.is_none());
        let [first, second] = [0, 1].map(|m| &edited.features.values()[m]);
        mm_testkit::assert_close(second, &plain.values()[1], 0.0);
        let factor = 10.0 / (10 - masked) as f64;
        let ratio = (first / &plain.values()[0])?;
        for row in ratio.to_vec2::<f64>()? {
            let zeros = row.iter().filter(|x| **x == 0.0).count();
            assert_eq!(zeros, masked, "epoch {epoch}: {row:?}");
            assert!(row.iter().all(|x| *x == 0.0 || (x - factor).abs() < 1e-12), "{row:?}");
        }
        mm_testkit::assert_close(&ratio, &ratio.narrow(0, 0, 1)?.broadcast_as(ratio.shape())?, 1e-12);
    }
    let mut seen = Vec::new();
    amco.observe(&mut |name, m, value| seen.push((name, m, value)));
    assert!(seen.contains(&("masked_share", Some(0), 0.9)) && seen.contains(&("masked_share", Some(1), 0.0)));
    Ok(())
}

/// What two players of opposite will want of a fusion that is no sum cancels, and their encoders are pulled apart.
#[test]
fn mcr_moves_players_and_not_the_fusion_between_them() -> Result<()> {
    let options = options(2, 4, DType::F64);
    let toy = options.build(toy::opaque)?;
    let batch = options.batch(0, ROWS)?;
    let gradients = |strategy: Strategy| -> Result<BTreeMap<String, Tensor>> {
        let config = McrConfig { strategy, contrast: 0.0, unimodal: 0.0, ..McrConfig::default() };
        let widths = Modal::from_fn(2, |_| options.width);
        let mut unused = ParamStore::new(0, DType::F64, &Device::Cpu);
        let mut mcr = config.build(unused.root(), &widths, CLASSES)?;
        let cx = StepCx::new(&toy.model, &toy.store, &batch, 0, 0, StepRng::new(5));
        let forward = toy.model.forward(&batch, cx.mode)?;
        let loss = mcr.auxiliary(&cx, &forward)?.ok_or_else(|| candle_core::Error::Msg("no loss".into()))?;
        let mut store = loss.backward()?;
        let take = |p: &mm_core::Param| {
            let value = p.var().as_tensor();
            (p.name().to_owned(), store.remove(value).unwrap_or_else(|| value.zeros_like().expect("zeros")))
        };
        Ok(toy.store.params().iter().map(take).collect())
    };
    let [greedy, independent, collaborative] =
        [Strategy::Greedy, Strategy::Independent, Strategy::Collaborative].map(gradients);
    let (greedy, independent, collaborative) = (greedy?, independent?, collaborative?);
    let largest = |g: &Tensor| -> Result<f64> {
        Ok(mm_core::model::to_host(g)?.iter().fold(0.0, |a: f64, x| a.max(x.abs())))
    };
    for (name, gradient) in &greedy {
        let other = largest(&collaborative[name])?;
        if name.starts_with("fusion") {
            assert!(largest(gradient)? < 1e-12 * other.max(1e-6), "{name}: {gradient} {other}");
            assert!(other > 0.0 || name == "fusion.out.bias", "{name}");
        } else {
            assert!(largest(gradient)? > 1e-6 && largest(&independent[name])? > 1e-6, "{name}");
        }
    }
    Ok(())
}
