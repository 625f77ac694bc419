use crate::fixture::{Fixture, PRECISIONS, exact, number, number_text};
use crate::nets::{Identity, MeanLogits, TanhEncoder, boxed, context, set};
use candle_core::{DType, Device, Result, Tensor, Var};
use mm_balance::lfm::{self, LfmHeuristicConfig, LfmLearnedConfig, Matcher, Matching};
use mm_balance::lfm_weight::{self, Bilevel, Schedule, Variant};
use mm_balance::{Balancer, EpochCx};
use mm_core::{
    Batch, Composite, Encoder, Gradients, Modal, Modalities, Mode, Multimodal, ParamStore, StepRng,
};
use mm_kernels::cross_entropy;
use mm_testkit::toy::{self, Toy};

/// Tolerance of what goes through a second derivative: finite differences here, exact there.
const SECOND: f64 = 1e-5;

fn is_input(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    matches!(key, "labels" | "learn.labels16" | "sched.epoch" | "sched.paper.t")
        || key.contains(".learn.param.")
        || last.starts_with("x_")
        || matches!(last, "logits_a" | "logits_v" | "feat_a" | "feat_v" | "epoch_lr_in_alpha_in")
}

#[test]
fn lfm() -> Result<()> {
    let golden = Fixture::open("lfm", is_input);
    schedules(&golden);
    for (prefix, dtype) in PRECISIONS {
        matching_losses(&golden, prefix, dtype)?;
        hazard(&golden, &format!("{prefix}.hazard_align_underflow"), dtype)?;
        first_derivatives(&golden, &format!("{prefix}.learn"), dtype)?;
        second_derivatives(&golden, &format!("{prefix}.learn"), dtype)?;
        unrolled(&golden, &format!("{prefix}.learn"), dtype)?;
    }
    golden.finish();
    Ok(())
}

fn schedules(golden: &Fixture) {
    let epochs: Vec<usize> = golden.values("sched.epoch").into_iter().map(|e| e as usize).collect();
    for (name, schedule) in [("exp03_clip", Schedule::Exponential), ("fitted", Schedule::Polynomial)] {
        let supervised: Vec<f64> = epochs.iter().map(|&e| schedule.supervised(e)).collect();
        let matching: Vec<f64> = supervised.iter().map(|w| 1.0 - w).collect();
        golden.compare(&format!("sched.{name}.cls_weight"), &supervised, 1e-9);
        golden.compare(&format!("sched.{name}.align_weight"), &matching, 1e-9);
    }
    let times = golden.values("sched.paper.t");
    let at: Vec<f64> = times.iter().map(|&t| lfm_weight::paper_matching(t)).collect();
    golden.compare("sched.paper.alpha_1_minus_exp_minus_inv_t", &at, 1e-9);
    let by_epoch: Vec<f64> =
        times.iter().map(|&t| 1.0 - Schedule::Paper.supervised(t as usize - 1)).collect();
    golden.compare("sched.paper.alpha_1_minus_exp_minus_inv_t", &by_epoch, 1e-9);
}

/// Value and both gradients of a loss of two tensors.
fn compare_pair(
    golden: &Fixture,
    prefix: &str,
    pair: &[Tensor; 2],
    tol: f64,
    loss: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    let leaves = [Var::from_tensor(&pair[0])?, Var::from_tensor(&pair[1])?];
    let loss = loss(leaves[0].as_tensor(), leaves[1].as_tensor())?;
    golden.compare(&format!("{prefix}.loss"), &loss, tol);
    let gradients = loss.backward()?;
    for (leaf, letter) in leaves.iter().zip(["a", "v"]) {
        let gradient = gradients.get(leaf.as_tensor()).expect("the loss depends on both");
        golden.compare(&format!("{prefix}.grad_{letter}"), gradient, tol);
    }
    Ok(())
}

fn matching_losses(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let tol = exact(dtype);
    let pair = |prefix: &str, what: &str| {
        ["a", "v"].map(|letter| golden.input(&format!("{prefix}.{what}_{letter}"), dtype))
    };
    for tau in golden.variants(&format!("{prefix}."), "infonce_tau") {
        let prefix = format!("{prefix}.infonce_tau{tau}");
        let temperature = tau.parse().expect("a number");
        compare_pair(golden, &prefix, &pair(&prefix, "feat"), tol, |a, b| lfm::info_nce(a, b, temperature))?;
    }
    let logits = pair(&format!("{prefix}.align_code"), "logits");
    compare_pair(golden, &format!("{prefix}.align_code"), &logits, tol, lfm::alignment)?;
    compare_pair(golden, &format!("{prefix}.jsd_true"), &logits, tol, lfm::jensen_shannon)?;

    // The whole released loss, 2 (w_c CE + w_a L_match), through the method.
    let classes = logits[0].dim(1)?;
    let store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = toy::modalities(2)?;
    let encoders = Modal::from_fn(2, |_| Box::new(Identity(classes)) as Box<dyn Encoder>);
    let model = Composite::new(names, classes, encoders, Some(MeanLogits::of_features()))?;
    let toy = Toy { model, store };
    let batch = Batch::new(Modal::new(logits.to_vec()), golden.labels("labels"))?;
    for weight in golden.variants(&format!("{prefix}."), "total_w") {
        let supervised = weight.parse().expect("a number");
        let config = LfmHeuristicConfig {
            matching: Matching::Alignment,
            loss_scale: 2.0,
            schedule: Schedule::Fixed { supervised },
            ..LfmHeuristicConfig::default()
        };
        let mut method = config.build().expect("valid");
        let group = golden.under(&format!("{prefix}.total_w{weight}_"));
        let matching: f64 = number_text(&group[0]).parse().expect("a number");
        assert!((supervised + matching - 1.0).abs() < 1e-12, "the weights of LFM add up to 1");
        let prefix = format!("{prefix}.total_w{weight}_{}", number_text(&group[0]));
        let leaves = batch.inputs.try_map(|_, x| Var::from_tensor(x))?;
        let features = leaves.map(|_, x| x.as_tensor().clone());
        let forward = toy.model.fuse(features, &batch.present, Mode::Eval)?;
        let task = cross_entropy(&forward.fused, &batch.labels, None)?;
        golden.compare(&format!("{prefix}.ce"), &task, tol);
        let cx = context(&toy, &batch, 0);
        let auxiliary = method.auxiliary(&cx, &forward)?.expect("a matching loss");
        let loss = ((task * method.task_weight())? + auxiliary)?;
        golden.compare(&format!("{prefix}.loss"), &loss, tol);
        let gradients = loss.backward()?;
        for (leaf, letter) in leaves.values().iter().zip(["a", "v"]) {
            let gradient = gradients.get(leaf.as_tensor()).expect("the loss depends on both");
            golden.compare(&format!("{prefix}.grad_{letter}"), gradient, tol);
        }
    }
    Ok(())
}

/// Logits so sure that the original's probabilities underflow.
fn hazard(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let input = |name: &str| Var::from_tensor(&golden.hazard(&format!("{prefix}.{name}"), dtype));
    let (a, v) = (input("logits_a")?, input("logits_v")?);
    for loss in [lfm::alignment(&a, &v)?, lfm::jensen_shannon(&a, &v)?] {
        assert_finite(&loss)?;
        let gradients = loss.backward()?;
        for leaf in [&a, &v] {
            assert_finite(gradients.get(leaf.as_tensor()).expect("a gradient"))?;
        }
    }
    Ok(())
}

fn assert_finite(x: &Tensor) -> Result<()> {
    let values = mm_core::model::to_host(x)?;
    assert!(values.iter().all(|v| v.is_finite()), "{values:?}");
    Ok(())
}

/// Our name of a parameter of the toy net.
fn ours(theirs: &str) -> String {
    theirs
        .replace("audio_encoder", "encoder.audio")
        .replace("video_encoder", "encoder.video")
        .replace("cls_a", "fusion.audio")
        .replace("cls_v", "fusion.video")
}

/// Two bias-free encoders and two heads, whose mean decides; with all its samples.
fn learner(golden: &Fixture, prefix: &str, given: DType, dtype: DType) -> Result<(Toy, Batch)> {
    let shape = |name: &str| golden.shape(&format!("{prefix}.param.{name}.weight"));
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = Modalities::new(["audio", "video"]).expect("two names");
    let encoders = Modal::try_from_fn(2, |m| {
        let shape = shape(&format!("{}_encoder", names.name(m)));
        boxed(TanhEncoder::new(store.root().at("encoder").at(names.name(m)), (shape[0], shape[1]), false))
    })?;
    let shapes = ["cls_a", "cls_v"].map(|name| [shape(name)[0], shape(name)[1]]);
    let fusion = MeanLogits::of_heads(store.root().at("fusion"), &names, &shapes)?;
    let input = |key: &str| golden.input(key, given).to_dtype(dtype);
    for name in golden.under(&format!("{prefix}.param.")) {
        set(&store, &ours(&name), &input(&format!("{prefix}.param.{name}"))?)?;
    }
    let inputs = names.names().iter().map(|name| input(&format!("{prefix}.x_{name}")));
    let batch = Batch::new(Modal::new(inputs.collect::<Result<_>>()?), golden.labels("learn.labels16"))?;
    Ok((Toy { model: Composite::new(names, shapes[0][0], encoders, Some(fusion))?, store }, batch))
}

/// The first half of the samples, and the other.
fn halves(batch: &Batch) -> Result<(Batch, Batch)> {
    let (rows, half) = (batch.rows() as u32, batch.rows() as u32 / 2);
    Ok((batch.select(&(0..half).collect::<Vec<_>>())?, batch.select(&(half..rows).collect::<Vec<_>>())?))
}

type ByParameter = Vec<Option<Tensor>>;

/// L_c and L_match on a batch, and their gradients.
fn losses(toy: &Toy, batch: &Batch) -> Result<[(Tensor, ByParameter); 2]> {
    let forward = toy.model.forward(batch, Mode::Eval)?;
    let matcher = Matcher::new(Matching::Alignment, 1.0);
    let supervised = cross_entropy(&forward.fused, &batch.labels, None)?;
    let matching = matcher.loss(&toy.model, batch, &forward, Mode::Eval)?.expect("two modalities");
    let gradients = |loss: Tensor| -> Result<(Tensor, ByParameter)> {
        let gradients = Gradients::collect(&toy.store, loss.backward()?);
        Ok((loss, toy.store.ids().map(|id| gradients.get(id)).collect::<Result<_>>()?))
    };
    Ok([gradients(supervised)?, gradients(matching)?])
}

fn compare_parameters(golden: &Fixture, prefix: &str, toy: &Toy, found: &ByParameter, tol: f64) {
    for name in golden.under(prefix) {
        let id = toy.store.group(&ours(&name)).next().expect("a parameter of this name");
        let found = found[id.index()].as_ref().expect("every parameter has a gradient");
        golden.compare(&format!("{prefix}{name}"), found, tol);
    }
}

fn first_derivatives(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let (toy, batch) = learner(golden, prefix, dtype, dtype)?;
    let [supervised, matching] = losses(&toy, &halves(&batch)?.0)?;
    for ((loss, gradients), name) in [supervised, matching].into_iter().zip(["cls", "align"]) {
        golden.compare(&format!("{prefix}.L_{name}"), &loss, exact(dtype));
        compare_parameters(golden, &format!("{prefix}.grad_{name}."), &toy, &gradients, exact(dtype));
    }
    Ok(())
}

/// Both precisions are computed in f64 from the file's numbers: a finite difference in f32 has not the digits.
fn second_derivatives(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let tol = SECOND.max(exact(dtype));
    let (toy, batch) = learner(golden, prefix, dtype, DType::F64)?;
    let (half, _) = halves(&batch)?;
    for weight in golden.variants(&format!("{prefix}."), "hvp.w") {
        let w: f64 = weight.parse().expect("a number");
        let direction = losses(&toy, &half)?[0].1.clone();
        let product = lfm_weight::hessian_vector_product(&toy.store, &direction, 1e-3, || {
            let [(_, supervised), (_, matching)] = losses(&toy, &half)?;
            let mix = |(s, m): (Option<Tensor>, Option<Tensor>)| -> Result<Option<Tensor>> {
                let (Some(s), Some(m)) = (s, m) else { return Ok(None) };
                (s.affine(w, 0.0)? + m.affine(1.0 - w, 0.0)?).map(Some)
            };
            supervised.into_iter().zip(matching).map(mix).collect()
        })?;
        compare_parameters(golden, &format!("{prefix}.hvp.w{weight}."), &toy, &product, tol);
    }

    // The released update of the weight, through the method: it takes the first half by itself.
    for case in golden.variants(&format!("{prefix}.official."), "case") {
        let key = |name: &str| format!("{prefix}.official.case{case}.{name}");
        let [epoch, rate, initial, matching] = golden.values(&key("epoch_lr_in_alpha_in"))[..] else {
            panic!("epoch, rate and two weights")
        };
        assert!((initial + matching - 1.0).abs() < 1e-12, "the weights of LFM add up to 1");
        let bilevel = Bilevel {
            variant: Variant::ReleasedHvp,
            initial: Some(initial),
            rate: Some(rate),
            ..Bilevel::default()
        };
        let mut method = learned(bilevel);
        let (supervised, statistic) = epoch_start(&mut method, &toy, epoch as usize, (&batch, &batch))?;
        golden.compare(&key("alpha_grad"), &statistic, tol);
        golden.compare(&key("alpha_out"), &[supervised, 1.0 - supervised], tol);
        golden.compare(&key("lr_out"), &method.state()["rate"], exact(dtype));
    }
    Ok(())
}

fn learned(bilevel: Bilevel) -> lfm::Lfm {
    let config = LfmLearnedConfig { matching: Matching::Alignment, bilevel, ..LfmLearnedConfig::default() };
    config.build().expect("valid")
}

/// Weight and statistic after the start of an epoch.
fn epoch_start(
    method: &mut lfm::Lfm,
    toy: &Toy,
    epoch: usize,
    batches: (&Batch, &Batch),
) -> Result<(f64, f64)> {
    let cx = EpochCx {
        model: &toy.model,
        params: &toy.store,
        epoch,
        learning_rate: f64::NAN, // the settings say η
        batches: Some(batches),
        train: None,
        rng: StepRng::new(0),
    };
    method.epoch_start(&cx)?;
    let mut found = (f64::NAN, f64::NAN);
    method.observe(&mut |name, _, value| match name {
        "supervised_weight" => found.0 = value,
        "hypergradient" => found.1 = value,
        _ => {}
    });
    Ok(found)
}

/// The exact bi-level gradient: inner step on the first half, outer loss on the second.
fn unrolled(golden: &Fixture, prefix: &str, dtype: DType) -> Result<()> {
    let mut found = 0;
    for name in golden.under(&format!("{prefix}.unrolled_own.")) {
        let Some(case) = name.strip_suffix(".outer_loss") else { continue };
        let (eta, w) = (number(case, "eta"), number(case, ".w"));
        let key = |name: &str| format!("{prefix}.unrolled_own.{case}.{name}");
        let (toy, batch) = learner(golden, prefix, dtype, dtype)?;
        let (inner, outer) = halves(&batch)?;
        let bilevel = Bilevel { initial: Some(w), inner_rate: Some(eta), ..Bilevel::default() };
        let (_, gradient) = epoch_start(&mut learned(bilevel), &toy, 3, (&inner, &outer))?;
        golden.compare(&key("dLouter_dw_cls"), &gradient, exact(dtype));

        let [(_, supervised), (_, matching)] = losses(&toy, &inner)?;
        for (id, pair) in toy.store.ids().zip(supervised.into_iter().zip(matching)) {
            let (Some(s), Some(m)) = pair else { panic!("every parameter has both gradients") };
            let step = (s.affine(eta * w, 0.0)? + m.affine(eta * (1.0 - w), 0.0)?)?;
            let var = toy.store.get(id).var();
            var.set(&(var.as_tensor().detach() - step)?)?;
        }
        golden.compare(&key("outer_loss"), &losses(&toy, &outer)?[0].0, exact(dtype));
        found += 1;
    }
    assert!(found > 0, "no unrolled case");
    Ok(())
}
