//! Trajectories of the optimiser beside numbers worked out by hand.

use crate::support::says;
use candle_core::{DType, Device, Tensor};
use mm_balance::Optimizer;
use mm_core::{Gradients, Init, ParamStore};
use mm_train::optim::{Kind, MissingGradient, Optim, OptimConfig};

/// Parameters `encoder.a.w`, `encoder.b.w` and `fusion.w`, one number each, all 1.
fn store() -> ParamStore {
    let mut store = ParamStore::new(0, DType::F64, &Device::Cpu);
    for name in ["encoder.a", "encoder.b", "fusion"] {
        store.root().at(name).param("w", 1, Init::Const(1.0)).unwrap();
    }
    store
}

/// Gradients of the three parameters; `None` is none at all.
fn gradients(store: &ParamStore, values: [Option<f64>; 3]) -> Gradients {
    let mut g = Gradients::empty(store);
    for (id, value) in store.ids().zip(values) {
        g.set(id, value.map(|v| Tensor::new(&[v], &Device::Cpu).unwrap()));
    }
    g
}

fn values(store: &ParamStore) -> Vec<f64> {
    store.params().iter().map(|p| p.var().to_vec1::<f64>().unwrap()[0]).collect()
}

#[track_caller]
fn close(found: &[f64], wanted: &[f64]) {
    let near = found.iter().zip(wanted).all(|(f, w)| (f - w).abs() <= 1e-12 * w.abs().max(1.0));
    assert!(near && found.len() == wanted.len(), "{found:?} is not {wanted:?}");
}

fn sgd(lr: f64, momentum: f64, weight_decay: f64) -> OptimConfig {
    OptimConfig { lr, momentum, weight_decay, ..OptimConfig::default() }
}

#[test]
fn groups_and_steps_scale_the_rate_and_the_factors_multiply() {
    let store = store();
    let mut config = sgd(0.1, 0.0, 0.0);
    config.lr_scale = [("encoder".to_owned(), 0.5), ("encoder.a".to_owned(), 0.1)].into();
    let mut optim = Optim::new(config, &store, None).unwrap();
    let mut g = gradients(&store, [Some(2.0); 3]);
    assert_eq!(optim.step(&mut g).unwrap(), None);
    close(&values(&store), &[1.0 - 0.1 * 0.05 * 2.0, 1.0 - 0.1 * 0.5 * 2.0, 1.0 - 0.1 * 2.0]);

    // A factor of one step, and a rate that the schedule moves, come on top.
    optim.learning_rate = 0.2;
    let mut g = gradients(&store, [Some(1.0); 3]);
    g.scale_lr(&store, "encoder.b", 3.0);
    g.scale(&store, "fusion", 0.25);
    optim.step(&mut g).unwrap();
    close(&values(&store), &[0.99 - 0.2 * 0.05, 0.9 - 0.2 * 0.5 * 3.0, 0.8 - 0.2 * 0.25]);

    // It was for one step only.
    optim.step(&mut gradients(&store, [Some(1.0); 3])).unwrap();
    close(&values(&store), &[0.98 - 0.01, 0.6 - 0.1, 0.75 - 0.2]);
}

#[test]
fn a_missing_gradient_is_skipped_or_zero_under_momentum_and_decay() {
    // d = g + 0.1 p, b = 0.9 b + d, p = p - 0.5 b; gradients 2, none, 1.
    for (policy, trajectory) in [
        (MissingGradient::Skip, [-0.05, -0.05, -1.4925]),
        (MissingGradient::Zero, [-0.05, -0.9925, -2.291_125]),
    ] {
        let store = store();
        let config = OptimConfig { missing_gradient: policy, ..sgd(0.5, 0.9, 0.1) };
        let mut optim = Optim::new(config, &store, None).unwrap();
        for (gradient, wanted) in [Some(2.0), None, Some(1.0)].into_iter().zip(trajectory) {
            optim.step(&mut gradients(&store, [gradient; 3])).unwrap();
            close(&values(&store), &[wanted; 3]);
        }
        let steps = if policy == MissingGradient::Skip { 2 } else { 3 };
        assert_eq!(optim.state().1, [steps; 3]);
    }
}

#[test]
fn nesterov_looks_ahead() {
    // b1 = d1 = 2, p1 = 1 - 0.1 (2 + 0.9 · 2); b2 = 0.9 · 2 + 1 = 2.8, p2 = p1 - 0.1 (1 + 0.9 · 2.8).
    let store = store();
    let mut optim = Optim::new(OptimConfig { nesterov: true, ..sgd(0.1, 0.9, 0.0) }, &store, None).unwrap();
    optim.step(&mut gradients(&store, [Some(2.0); 3])).unwrap();
    close(&values(&store), &[0.62; 3]);
    optim.step(&mut gradients(&store, [Some(1.0); 3])).unwrap();
    close(&values(&store), &[0.268; 3]);
}

/// Adam written out; `decay` is (coupled, decoupled).
fn adam_by_hand(gradients: &[Option<f64>], decay: (f64, f64), zero: bool) -> f64 {
    let (mut p, mut m, mut v, mut t) = (1.0, 0.0, 0.0, 0);
    for g in gradients {
        if g.is_none() && !zero {
            continue;
        }
        t += 1;
        p *= 1.0 - 0.01 * decay.1;
        let d = g.unwrap_or(0.0) + decay.0 * p;
        m = 0.9 * m + 0.1 * d;
        v = 0.999 * v + 0.001 * d * d;
        let root = (v / (1.0 - 0.999f64.powi(t))).sqrt();
        p -= 0.01 * (m / (1.0 - 0.9f64.powi(t))) / (root + 1e-8);
    }
    p
}

#[test]
fn adam_and_adamw_with_their_decays_and_missing_gradients() {
    let steps = [Some(2.0), None, Some(-1.0), Some(0.5)];
    for (kind, decay) in [(Kind::Adam, (0.3, 0.0)), (Kind::Adamw, (0.0, 0.3))] {
        for (policy, zero) in [(MissingGradient::Skip, false), (MissingGradient::Zero, true)] {
            let store = store();
            let config = OptimConfig {
                kind,
                lr: 0.01,
                weight_decay: 0.3,
                missing_gradient: policy,
                ..OptimConfig::default()
            };
            let mut optim = Optim::new(config, &store, None).unwrap();
            for g in steps {
                optim.step(&mut gradients(&store, [g; 3])).unwrap();
            }
            close(&values(&store), &[adam_by_hand(&steps, decay, zero); 3]);
        }
    }
    // The two decays and the two policies do differ.
    let all = [(0.3, 0.0), (0.0, 0.3)].map(|d| [false, true].map(|zero| adam_by_hand(&steps, d, zero)));
    assert!((all[0][0] - all[1][0]).abs() > 1e-3 && (all[0][0] - all[0][1]).abs() > 1e-3);
}

#[test]
fn under_adam_a_constant_gradient_factor_cancels_but_a_rate_factor_does_not() {
    let run = |scale: &dyn Fn(&mut Gradients, &ParamStore)| {
        let store = store();
        let config = OptimConfig { kind: Kind::Adam, lr: 0.01, eps: 1e-300, ..OptimConfig::default() };
        let mut optim = Optim::new(config, &store, None).unwrap();
        for value in [2.0, -1.0, 3.0] {
            let mut g = gradients(&store, [Some(value); 3]);
            scale(&mut g, &store);
            optim.step(&mut g).unwrap();
        }
        1.0 - values(&store)[0]
    };
    let plain = run(&|_, _| {});
    close(&[run(&|g, store| g.scale(store, "encoder.a", 0.25))], &[plain]);
    close(&[run(&|g, store| g.scale_lr(store, "encoder.a", 0.25))], &[0.25 * plain]);
}

#[test]
fn modulation_comes_before_the_clip_and_the_clip_before_the_step() {
    let store = store();
    let mut optim = Optim::new(sgd(0.1, 0.0, 0.0), &store, Some(1.0)).unwrap();
    let mut g = gradients(&store, [Some(3.0), Some(40.0), None]);
    g.scale(&store, "encoder.b", 0.1);
    // The norm is that of (3, 4), not of (3, 40), and it is reported as it was before the clip.
    close(&[optim.step(&mut g).unwrap().unwrap()], &[5.0]);
    let k = 1.0 / (5.0 + 1e-6);
    close(&values(&store), &[1.0 - 0.1 * 3.0 * k, 1.0 - 0.1 * 4.0 * k, 1.0]);

    // A factor of the rate is no part of the gradient: it neither is clipped nor counts in the norm.
    let mut g = gradients(&store, [Some(0.3), Some(0.4), None]);
    g.scale_lr(&store, "encoder.b", 100.0);
    let before = values(&store);
    close(&[optim.step(&mut g).unwrap().unwrap()], &[0.5]);
    close(&values(&store), &[before[0] - 0.03, before[1] - 4.0, before[2]]);
}

#[test]
fn the_state_is_named_and_goes_on_where_it_was() {
    for kind in [Kind::Sgd, Kind::Adam, Kind::Adamw] {
        let config = OptimConfig { kind, lr: 0.1, weight_decay: 0.01, ..OptimConfig::default() };
        let (whole, halved) = (store(), store());
        let mut optim = Optim::new(config.clone(), &whole, None).unwrap();
        let mut first = Optim::new(config.clone(), &halved, None).unwrap();
        for value in [2.0, -1.0] {
            optim.step(&mut gradients(&whole, [Some(value), None, Some(1.0)])).unwrap();
            first.step(&mut gradients(&halved, [Some(value), None, Some(1.0)])).unwrap();
        }
        let (tensors, steps) = first.state();
        let names: Vec<&str> = tensors.keys().map(String::as_str).collect();
        if kind == Kind::Sgd {
            assert_eq!(names, ["encoder.a.w.first", "fusion.w.first"]);
        } else {
            let wanted = ["encoder.a.w.first", "encoder.a.w.second", "fusion.w.first", "fusion.w.second"];
            assert_eq!(names, wanted);
        }
        assert_eq!(steps, [2, 0, 2]);
        let mut second = Optim::new(config.clone(), &halved, None).unwrap();
        second.restore(&tensors, &steps).unwrap();
        for value in [0.5, 4.0] {
            optim.step(&mut gradients(&whole, [Some(value); 3])).unwrap();
            second.step(&mut gradients(&halved, [Some(value); 3])).unwrap();
        }
        assert_eq!(values(&whole), values(&halved));
        let error = second.restore(&tensors, &steps[..2]).unwrap_err();
        says(&error, &["for 2 parameters, the model has 3"]);
    }
}
