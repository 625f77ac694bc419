//! One seed gives the same bytes, in one go or stopped after every step; another seed gives others.

use crate::support::{ONE_STEP, START, assert_same, done, essence, go, lines, small};
use mm_train::{Outcome, RunConfig};

/// Methods with state, noise, held-out rows or a decision rule of their own; optimisers, fusions and schedules vary too.
const RUNS: [(&str, &[&str]); 24] = [
    ("joint", &[]),
    ("mlb", &["model.fusion.kind=gated", "optim={lr=0.05,nesterov=true,weight_decay=1e-3}"]),
    ("ogm-ge", &["optim.missing_gradient=zero", "schedule={kind=\"cosine\",warmup_steps=4}"]),
    ("opm+ogm", &["optim.kind=adam", "model.fusion.kind=transformer"]),
    ("lfm-learned", &["method.bilevel.held_out=12", "optim.kind=adamw", "train.clip_norm=1.0"]),
    (
        "lfm-learned",
        &["method.bilevel={held_out=12,variant=\"released-hvp\",rate=50}", "train.precision=f64"],
    ),
    ("lfm-heuristic+opm", &["schedule={kind=\"step\",every=1}"]),
    ("multimodal-loss", &["method.proxies=3"]),
    ("amco", &["method={kind=\"amco\",variant=\"benchmark\",threshold=0.3}"]),
    ("arl+mlb", &["method.arl.start_epoch=1"]),
    ("cml", &["model.fusion.kind=gated"]),
    ("functional-entropy", &["method.replicas=2"]),
    (
        "greedy",
        &[
            "method={kind=\"greedy\",tolerance=0,window=2,start_epoch=0}",
            "model.fusion.kind=mmtm",
            "optim.missing_gradient=zero",
        ],
    ),
    ("mbsd+opm", &[]),
    ("mcr", &["method={kind=\"mcr\",samples=4,bottleneck=1}"]),
    ("mla", &["optim.kind=adam"]),
    ("mmcosine+ogm", &[]),
    ("modality-dropout+proxyanchor", &[]),
    ("pmr", &["method.share=0.5"]),
    ("reconboost", &["method.boost_epochs=1", "method.joint_epochs=1"]),
    ("softtriple+proxynca", &[]),
    ("valuation", &["method.start_epoch=1"]),
    ("sum-ce", &["train.select=loss"]),
    ("opm", &["method={kind=\"opm\",q_base=0.9,p_exe=1}", "model.fusion.kind=film"]),
];

fn config(method: &str, more: &[&str], seed: &str) -> RunConfig {
    let kind = format!("method.kind={method}");
    small(&[&[kind.as_str(), seed], more].concat())
}

#[test]
fn two_runs_with_one_seed_are_equal_and_with_another_are_not() {
    for (method, more) in RUNS {
        let folder = tempfile::tempdir().unwrap();
        let runs = ["a", "b", "c"].map(|name| folder.path().join(name));
        let one = config(method, more, "seed=3");
        for dir in &runs[..2] {
            done(&one, dir, START);
        }
        done(&config(method, more, "seed=4"), &runs[2], START);
        let [a, b, c] = runs.map(|dir| essence(&dir));
        assert_same(&a, &b);
        for file in ["metrics.jsonl", "model/model.safetensors", "predictions.json"] {
            assert!(a[file] != c[file], "{method}: {file} does not depend on the seed");
        }
    }
}

#[test]
fn a_run_that_is_stopped_after_every_step_is_equal_too() {
    for (method, more) in RUNS {
        let folder = tempfile::tempdir().unwrap();
        let (whole, pieces) = (folder.path().join("whole"), folder.path().join("pieces"));
        let config = config(method, more, "seed=3");
        let steps = done(&config, &whole, START).steps;
        let mut stops = 0;
        while let Outcome::Interrupted { step } = go(&config, &pieces, ONE_STEP).unwrap() {
            stops += 1;
            assert_eq!(step, stops, "{method}");
        }
        // The last call finds the last epoch's steps done, evaluates it and finishes.
        assert_eq!(stops, steps, "{method}");
        assert_same(&essence(&whole), &essence(&pieces));
    }
}

#[test]
fn telemetry_is_complete_and_holds_no_times() {
    let folder = tempfile::tempdir().unwrap();
    done(&config("mlb", &["train.clip_norm=5.0"], "seed=3"), folder.path(), START);
    let steps = lines(folder.path(), "step");
    assert_eq!(steps.len(), 15);
    let keys: Vec<&str> = steps[0].as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = [
        "kind",
        "epoch",
        "step",
        "rows",
        "lr",
        "loss",
        "score.a",
        "score.b",
        "ratio.a",
        "ratio.b",
        "coefficient.a",
        "coefficient.b",
        "grad_norm.a",
        "grad_norm.b",
        "grad_norm",
    ];
    assert_eq!(keys, wanted);
    for (i, line) in steps.iter().enumerate() {
        assert_eq!((line["epoch"].as_u64(), line["step"].as_u64()), (Some(i as u64 / 5), Some(i as u64)));
        assert_eq!(line["rows"], if i % 5 == 4 { 6 } else { 16 });
        assert_eq!(line["lr"], 0.05);
        assert!(line["grad_norm"].as_f64().unwrap() > 0.0);
    }
    let epochs = lines(folder.path(), "epoch");
    let keys: Vec<&str> = epochs[0].as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = [
        "kind",
        "epoch",
        "step",
        "train_loss",
        "val_loss",
        "val_accuracy",
        "val_accuracy.a",
        "val_accuracy.b",
    ];
    assert_eq!(keys, wanted);
    assert_eq!(epochs.len(), 3);
    // The epoch's loss is the mean over its rows.
    let of_first = &steps[..5];
    let sum: f64 = of_first.iter().map(|l| l["loss"].as_f64().unwrap() * l["rows"].as_f64().unwrap()).sum();
    assert!((epochs[0]["train_loss"].as_f64().unwrap() - sum / 70.0).abs() < 1e-12);
}

#[test]
fn the_schedule_reaches_the_optimiser() {
    let folder = tempfile::tempdir().unwrap();
    done(&small(&["schedule={kind=\"cosine\",warmup_steps=5}"]), folder.path(), START);
    let rates: Vec<f64> = lines(folder.path(), "step").iter().map(|l| l["lr"].as_f64().unwrap()).collect();
    for (t, rate) in rates.iter().enumerate() {
        let factor = if t < 5 {
            (t + 1) as f64 / 5.0
        } else {
            0.5 * (1.0 + (std::f64::consts::PI * (t - 5) as f64 / 10.0).cos())
        };
        assert!((rate - 0.05 * factor).abs() < 1e-15, "step {t}: {rate}");
    }
}

#[test]
fn the_name_of_a_run_and_its_checkpoints_change_no_number() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    done(&small(&[]), &a, START);
    done(&small(&["name=other", "train.checkpoint_steps=2", "train.probe_rows=50"]), &b, START);
    for file in ["metrics.jsonl", "model/model.safetensors", "predictions.json"] {
        assert!(std::fs::read(a.join(file)).unwrap() == std::fs::read(b.join(file)).unwrap(), "{file}");
    }
}

#[test]
fn umt_learns_from_finished_unimodal_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for m in ["a", "b"] {
        done(&small(&[&format!("method={{kind=\"unimodal\",modality=\"{m}\"}}")]), &path(m), START);
    }
    let umt = |b: &str| {
        let (a, b) = (path("a").display().to_string(), path(b).display().to_string());
        small(&[&format!("method={{kind=\"umt\",weight=0.5,teachers={{a={a:?},b={b:?}}}}}")])
    };
    for name in ["one", "two"] {
        done(&umt("b"), &path(name), START);
    }
    assert_same(&essence(&path("one")), &essence(&path("two")));
    let distance = |line: &serde_json::Value| line["distance.a"].as_f64().unwrap();
    let steps = lines(&path("one"), "step");
    assert!(distance(&steps[steps.len() - 1]) < distance(&steps[0]));
    // The teacher of another modality is refused when it is first asked.
    let error = go(&umt("a"), &path("wrong"), START).unwrap_err().to_string();
    assert!(error.contains("was trained on a"), "{error}");
    let error = go(&umt("nowhere"), &path("gone"), START).unwrap_err().to_string();
    assert!(error.contains("holds no finished model"), "{error}");
}
