//! Configurations that are wrong: the key, the value, the rule and the nearest name; before any data are read.

use crate::support::{SMALL, START, Set, go, on_features, says, small};
use mm_train::{RunConfig, TrainError};

fn refuse(sets: &[&str]) -> mm_core::ConfigError {
    let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
    RunConfig::parse(SMALL, &sets).unwrap_err()
}

#[test]
fn an_unknown_key_at_every_level() {
    let cases: [(&str, &str, &str, Option<&str>); 20] = [
        ("sede=1", "sede", "1", Some("seed")),
        ("methods.kind=mlb", "methods", "", Some("method")),
        ("data.n_trian=9", "data.n_trian", "9", Some("n_train")),
        ("data.split.valfraction=0.5", "data.split.valfraction", "0.5", Some("val_fraction")),
        // A key that is known one level up.
        ("data.split.classes=3", "data.split.classes", "3", None),
        ("data.sources=[{name=\"a\"},{name=\"b\",dims=3}]", "data.sources[1].dims", "3", Some("dim")),
        ("model.fuson.kind=sum", "model.fuson", "", Some("fusion")),
        ("model.encoder.droput=0.1", "model.encoder.droput", "0.1", Some("dropout")),
        ("model.encoders.a.hiden=[3]", "model.encoders.a.hiden", "[3]", Some("hidden")),
        ("model.fusion={kind=\"gated\",gates=\"a\"}", "model.fusion.gates", "\"a\"", Some("gate")),
        ("model.fusion.gate=a", "model.fusion.gate", "\"a\"", None),
        ("method={kind=\"mlb\",alhpa=1}", "method.alhpa", "1", Some("alpha")),
        ("method.alpha=1", "method.alpha", "1", None),
        (
            "method={kind=\"lfm-learned\",bilevel={held_ou=4}}",
            "method.bilevel.held_ou",
            "4",
            Some("held_out"),
        ),
        ("method={kind=\"opm+ogm\",alpha=1}", "method.alpha", "1", None),
        ("method={kind=\"opm+ogm\",ogmm={}}", "method.ogmm", "{}", Some("ogm")),
        ("method={kind=\"opm+ogm\",ogm={alfa=1}}", "method.ogm.alfa", "1", Some("alpha")),
        ("optim.momentun=0.1", "optim.momentun", "0.1", Some("momentum")),
        ("schedule={kind=\"step\",every=2,facto=1}", "schedule.facto", "1", Some("factor")),
        ("train.epoch=3", "train.epoch", "3", Some("epochs")),
    ];
    for (set, field, value, suggestion) in cases {
        let error = refuse(&[set]);
        assert_eq!(error.field, field, "{error}");
        assert!(error.value.contains(value), "{error}");
        assert_eq!(error.suggestion.as_deref(), suggestion, "{error}");
        assert!(error.rule.starts_with("unknown key; "), "{error}");
    }
}

#[test]
fn an_unknown_name() {
    for (set, field, allowed, suggestion) in [
        ("data.kind=featurs", "data.kind", "synthetic, features, csv", Some("features")),
        ("model.encoder.kind=mpl", "model.encoder.kind", "mlp", Some("mlp")),
        ("model.encoder.norm=bach", "model.encoder.norm", "none, layer, batch", Some("batch")),
        ("model.fusion.kind=late_linear", "model.fusion.kind", "late-linear, concat", Some("late-linear")),
        ("method.kind=mlp", "method.kind", "joint, unimodal", Some("mlb")),
        ("method.kind=opm+omg", "method.kind", "joint, unimodal", Some("ogm")),
        ("method={kind=\"mlb\",variant=\"papr\"}", "method.variant", "paper, released", Some("paper")),
        ("method={kind=\"opm+ogm\",ogm={variant=\"papr\"}}", "method.ogm.variant", "paper", Some("paper")),
        ("optim.kind=adan", "optim.kind", "sgd, adam, adamw", Some("adam")),
        ("optim.missing_gradient=skp", "optim.missing_gradient", "skip, zero", Some("skip")),
        ("schedule.kind=cosin", "schedule.kind", "constant, step", Some("cosine")),
        ("train.protocol=validation", "train.protocol", "validation-select, ogm-test-select", None),
        ("train.precision=f16", "train.precision", "f32, f64", None),
    ] {
        let error = refuse(&[set]);
        assert_eq!(error.field, field, "{error}");
        assert!(error.rule.contains(allowed), "{error}");
        if suggestion.is_some() {
            assert_eq!(error.suggestion.as_deref(), suggestion, "{error}");
        }
    }
}

#[test]
fn a_wrong_type() {
    for (set, field, value) in [
        ("name=3", "name", "3"),
        ("seed=-1", "seed", "-1"),
        ("seed=\"x\"", "seed", "\"x\""),
        ("data=3", "data", "3"),
        ("data.classes=\"three\"", "data.classes", "\"three\""),
        ("data.split.val_fraction=\"x\"", "data.split.val_fraction", "\"x\""),
        ("data.sources=[{name=\"a\",dim=\"3\"}]", "data.sources[0].dim", "\"3\""),
        ("data={kind=\"features\",path=5}", "data.path", "5"),
        ("model.encoder.hidden=[8,\"x\"]", "model.encoder.hidden[1]", "\"x\""),
        ("model.encoder.norm=5", "model.encoder.norm", "5"),
        ("model.encoders.a=5", "model.encoders.a", "5"),
        ("model.fusion=5", "model.fusion", "5"),
        ("method=mlb", "method", "\"mlb\""),
        ("method.kind=5", "method.kind", "5"),
        ("method={kind=\"mlb\",alpha=\"x\"}", "method.alpha", "\"x\""),
        ("method={kind=\"opm+ogm\",ogm={alpha=true}}", "method.ogm.alpha", "true"),
        ("method={kind=\"opm+ogm\",ogm=3}", "method.ogm", "3"),
        ("optim.lr=fast", "optim.lr", "\"fast\""),
        ("optim.nesterov=1", "optim.nesterov", "1"),
        ("optim.lr_scale={\"encoder.a\"=\"x\"}", "optim.lr_scale.encoder.a", "\"x\""),
        ("schedule={kind=\"step\",every=1.5}", "schedule.every", "1.5"),
        ("train.epochs=-3", "train.epochs", "-3"),
        ("train.batch_size=1.5", "train.batch_size", "1.5"),
        ("train.select=[]", "train.select", "[]"),
        ("train.protocol=3", "train.protocol", "3"),
    ] {
        let error = refuse(&[set]);
        assert_eq!(error.field, field, "{error}");
        assert_eq!(error.value, value, "{error}");
    }
}

#[test]
fn a_missing_key() {
    for (set, field) in [
        ("data={kind=\"csv\"}", "data.path"),
        ("method.kind=unimodal", "method.modality"),
        ("schedule.kind=step", "schedule.every"),
        ("method={kind=\"lfm-heuristic\",schedule={kind=\"fixed\"}}", "method.schedule.supervised"),
    ] {
        assert_eq!(refuse(&[set]).to_string(), format!("{field} = nothing: is required"));
    }
}

#[test]
fn a_value_out_of_range() {
    for (set, field, rule) in [
        ("name=\"\"", "name", "not empty"),
        ("name=a/b", "name", "no slash"),
        ("data.n_train=1", "data.n_train", "in [2, "),
        ("data.split.val_fraction=1.5", "data.split.val_fraction", "(0, 0.9]"),
        ("data.sources=[]", "data.sources", "at least one"),
        ("model.encoder.dropout=1", "model.encoder.dropout", "[0, 1)"),
        ("model.encoders.a.dim=0", "model.encoders.a.dim", "at least 1"),
        ("optim.lr=0", "optim.lr", "finite number above 0"),
        ("optim.lr=-0.1", "optim.lr", "finite number above 0"),
        ("optim.lr=nan", "optim.lr", "finite number above 0"),
        ("optim.lr=inf", "optim.lr", "finite number above 0"),
        ("optim.momentum=1.5", "optim.momentum", "[0, 1]"),
        ("optim.beta1=1", "optim.beta1", "[0, "),
        ("optim={nesterov=true,momentum=0}", "optim.nesterov", "needs a momentum"),
        ("optim.lr_scale={fusion=-1}", "optim.lr_scale.fusion", "at least 0"),
        ("schedule={kind=\"step\",every=0}", "schedule.every", "[1, "),
        ("schedule={kind=\"cosine-restarts\",period=0}", "schedule.period", "[1, "),
        ("schedule={kind=\"cosine\",floor=2}", "schedule.floor", "[0, 1]"),
        ("train.epochs=0", "train.epochs", "[1, "),
        ("train.batch_size=0", "train.batch_size", "[1, "),
        ("train.clip_norm=0", "train.clip_norm", "above 0"),
        ("train.patience=0", "train.patience", "leave it out"),
        ("train.checkpoint_steps=0", "train.checkpoint_steps", "leave it out"),
        ("train.checkpoint_seconds=-1", "train.checkpoint_seconds", "at least 0"),
        ("train.probe_rows=1", "train.probe_rows", "[2, "),
    ] {
        let error = refuse(&[set]);
        assert_eq!(error.field, field, "{error}");
        says(&error.rule, &[rule]);
    }
}

#[test]
fn methods_that_do_not_go_together() {
    for (set, rule) in [
        ("method.kind=multimodal-loss+sum-ce", "decision rule cannot be composed"),
        ("method.kind=mmcosine+multimodal-loss", "decision rule cannot be composed"),
        ("method.kind=mla+ogm", "`mla` does the whole training step by itself; it stands alone"),
        ("method.kind=opm+reconboost", "`reconboost` does the whole training step by itself"),
        ("method.kind=cml+sum-ce", "cml takes its gradient through the fused logits"),
        ("method.kind=multimodal-loss+functional-entropy", "functional-entropy takes its gradient"),
        (
            "method.kind=greedy+mmcosine",
            "holds gates of the fusion `mmtm`, and `mmcosine` decides without it",
        ),
        ("method.kind=unimodal+mlb", "`unimodal` stands alone"),
        ("method.kind=ogm+ogm", "`ogm` is named twice"),
        ("method.kind=ensemble", "`mm ensemble RUN RUN --out DIR`"),
        ("method.kind=opm+", "allowed: joint"),
        ("method={kind=\"unimodal\",modality=\"bb\"}", "did you mean `b`?"),
    ] {
        let error = refuse(&[set]);
        assert!(error.field.starts_with("method."), "{error}");
        says(&error, &[rule]);
    }
}

#[test]
fn methods_that_do_not_fit_the_modalities() {
    let names = mm_core::Modalities::new(["a", "b"]).unwrap();
    for (sets, field, rule) in [
        (
            &["method={kind=\"umt\",teachers={a=\"runs/a\"}}"][..],
            "method.teachers.b",
            "needs the folder of a finished run",
        ),
        (&["method={kind=\"umt\",teachers={aa=\"runs/a\"}}"][..], "method.teachers", "allowed: a, b"),
        (
            &["method.kind=mla", "model.encoders.b={dim=4}"][..],
            "model.encoders",
            "mla has one head for all modalities",
        ),
        (
            &["method.kind=mcr", "model.encoders.b={dim=4}"][..],
            "model.encoders",
            "or set method.contrast = 0",
        ),
        (&["method.kind=greedy"][..], "model.fusion.kind", "set model.fusion.kind = \"mmtm\""),
    ] {
        let error = small(sets).check_model(&names).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        says(&error, &[rule]);
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    let error = RunConfig::parse("name = \"x\"\n[data\n", &[]).unwrap_err();
    says(&error, &["configuration = line 2", "not valid TOML"]);
    let error = RunConfig::parse("a = 1\na = 2", &[]).unwrap_err();
    says(&error, &["line 2", "duplicate key"]);
}

#[test]
fn a_malformed_assignment_is_refused() {
    says(&refuse(&["train.epochs"]), &["--set = \"train.epochs\"", "key.path=value"]);
    says(&refuse(&["train..epochs=3"]), &["--set", "is empty"]);
    says(&refuse(&["=3"]), &["--set", "is empty"]);
    says(&refuse(&["name.x=3"]), &["--set name.x", "`name` is not a table"]);
}

/// Combinations that need the modalities of the data: their names stand in the head of the file, and nothing else of
/// it is read. The file here has no labels, so that reading on would fail in another way.
#[test]
fn what_does_not_fit_the_modalities_is_refused_before_data_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    let head = br#"{"x_a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"x_b":{"dtype":"F32","shape":[2,2],"data_offsets":[8,24]},"x_c":{"dtype":"F32","shape":[2,1],"data_offsets":[24,32]}}"#;
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(head);
    bytes.extend([0xff; 32]);
    std::fs::write(&path, bytes).unwrap();
    let out = folder.path().join("run");
    let cases: [(&[&str], &str, &str); 14] = [
        (&["data.modalities=[\"a\"]", "model.fusion.kind=film"], "model.fusion.kind", "at least two"),
        (&["data.modalities=[\"a\"]", "method.kind=mlb"], "method.kind", "needs at least 2 modalities"),
        (&["data.modalities=[\"a\"]", "method.kind=lfm-heuristic"], "method.kind", "needs at least 2"),
        (&["data.modalities=[\"a\"]", "method.kind=opm+mlb"], "method.kind", "needs at least 2"),
        (&["data.modalities=[\"a\",\"d\"]"], "data.modalities", "allowed: a, b, c"),
        (&["model.fusion={kind=\"gated\",gate=\"audio\"}"], "model.fusion.gate", "allowed: a, b, c"),
        (&["model.fusion={kind=\"film\",conditioner=\"x\"}"], "model.fusion.conditioner", "allowed: a, b, c"),
        (&["model.encoders.d.dim=3"], "model.encoders.d", "allowed: a, b, c"),
        (&["method={kind=\"ogm\",variant=\"released\"}"], "method.variant", "2 modalities only"),
        (
            &["method={kind=\"opm+ogm\",ogm={variant=\"released\"}}"],
            "method.ogm.variant",
            "2 modalities only",
        ),
        (&["method.kind=lfm-learned", "model.encoders.b.dim=3"], "model.encoders", "same `dim`"),
        (&["method={kind=\"mlb\",alpha=0}"], "method.alpha", "above 0"),
        (&["train.batch_size=1", "model.encoder.norm=batch"], "train.batch_size", "at least 2 rows"),
        (&["train.device=tpu"], "train.device", "allowed: cpu"),
    ];
    for (sets, field, rule) in cases {
        let error = go(&on_features(&path, sets), &out, START).unwrap_err();
        assert!(error.to_string().starts_with(&format!("{field} = ")), "{error}");
        says(&error, &[rule]);
    }
    // The same file goes on to the labels where nothing is wrong, and the folder was not touched in any case.
    let error = go(&on_features(&path, &[]), &out, START).unwrap_err();
    says(&error, &["no tensor `y`"]);
    assert!(!out.exists());
}

#[test]
fn no_file_is_needed_to_refuse_what_needs_none() {
    let missing = std::path::Path::new("no/such.safetensors");
    for set in ["method.kind=multimodal-loss+sum-ce", "method.kind=ensemble", "optim.lr=0", "train.epochs=0"]
    {
        let text = format!("[data]\nkind = \"features\"\npath = {:?}", missing.display().to_string());
        let error = RunConfig::parse(&text, &[set.to_owned()]).unwrap_err();
        assert!(!error.to_string().contains("no/such"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = go(&on_features(missing, &[]), folder.path(), START).unwrap_err();
    says(&error, &["cannot read no/such.safetensors", "check the path"]);
}

#[test]
fn settings_that_do_not_fit_the_built_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.safetensors");
    Set::new().write(&path);
    let out = folder.path().join("run");
    let config = on_features(&path, &["optim.lr_scale={\"encoder.aa\"=0.5}"]);
    let error = go(&config, &out, START).unwrap_err();
    says(&error, &["optim.lr_scale.encoder.aa = 0.5", "no parameter has this prefix"]);
    let config = on_features(&path, &["method={kind=\"lfm-learned\",bilevel={held_out=31}}"]);
    let error = go(&config, &folder.path().join("other"), START).unwrap_err();
    says(&error, &["method.bilevel.held_out = 31", "31 of 60 training rows", "a half at most"]);
    assert!(matches!(error, TrainError::Config(_)));
    assert!(!folder.path().join("other").exists());
    let error = small(&[]).check_model(&mm_core::Modalities::new(["a"]).unwrap());
    assert!(error.is_ok());
}
