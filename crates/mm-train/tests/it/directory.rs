//! Run directories: whose they are, what is lost when, and what a resumed run makes of them.

use crate::support::{
    FRESH, ONE_STEP, RESUME, START, Set, assert_same, done, essence, go, latest, lines, on_features, says,
    small,
};
use mm_train::{Outcome, TrainError, checkpoint};
use std::fs;
use std::path::Path;

/// Stops a run of [`small`] after some steps.
fn stopped(sets: &[&str], dir: &Path, steps: usize) {
    for _ in 0..steps {
        assert!(matches!(go(&small(sets), dir, ONE_STEP).unwrap(), Outcome::Interrupted { .. }));
    }
}

#[test]
fn a_finished_run_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let result = done(&small(&[]), folder.path(), START);
    let stamp = |name: &str| fs::metadata(folder.path().join(name)).unwrap().modified().unwrap();
    let names = ["", "result.json", "config.toml", "metrics.jsonl", "run.log", "ckpt", "model", "env.json"];
    let before = names.map(stamp);
    for how in [START, RESUME, ONE_STEP] {
        assert_eq!(
            go(&small(&[]), folder.path(), how).unwrap(),
            Outcome::AlreadyDone(Box::new(result.clone()))
        );
    }
    assert_eq!(names.map(stamp), before);
}

#[test]
fn a_directory_belongs_to_one_configuration() {
    let folder = tempfile::tempdir().unwrap();
    stopped(&[], folder.path(), 2);
    let unfinished = go(&small(&[]), folder.path(), START).unwrap_err();
    says(&unfinished, &["unfinished run", "--resume", "--fresh"]);
    for how in [START, RESUME] {
        let other = go(&small(&["optim.lr=0.01"]), folder.path(), how).unwrap_err();
        says(&other, &["another configuration", "--out", "--fresh"]);
    }
    done(&small(&[]), folder.path(), RESUME);
    let other = go(&small(&["optim.lr=0.01"]), folder.path(), START).unwrap_err();
    says(&other, &["another configuration"]);
    assert_eq!(done(&small(&["train.epochs=1"]), folder.path(), FRESH).epochs, 1);
}

#[test]
fn files_that_no_run_wrote_are_never_replaced() {
    for how in [START, RESUME, FRESH] {
        for (name, content) in
            [("config.toml", "seed = 1"), ("env.json", "{}"), ("model/weights.bin", "mine")]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            let refused = go(&small(&[]), folder.path(), how).unwrap_err();
            says(&refused, &["not of a run", "--out"]);
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was added");
        }
    }
}

#[test]
fn rows_without_any_modality_do_not_train() {
    // Unimodal training on a source that 60 % of the rows lack: only the others can teach it anything.
    let missing = "data.sources=[{name=\"a\",dim=6,missing=0.6},{name=\"b\",dim=6}]";
    let folder = tempfile::tempdir().unwrap();
    let sets = [missing, "data.n_train=200", "train.epochs=1", "method.kind=unimodal", "method.modality=a"];
    done(&small(&sets), folder.path(), START);
    let rows: u64 = lines(folder.path(), "step").iter().map(|l| l["rows"].as_u64().unwrap()).sum();
    let data = small(&sets).data.prepare(0).unwrap();
    let with = data.splits.train.iter().filter(|&&r| data.dataset.inputs.values()[0].is_present(r)).count();
    assert!((60..100).contains(&with));
    assert_eq!(rows, with as u64);
}

#[test]
fn only_our_files_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    done(&small(&[]), folder.path(), START);
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    fs::create_dir(folder.path().join("plots")).unwrap();
    fs::write(folder.path().join("plots/a.svg"), "mine").unwrap();
    fs::write(folder.path().join("ckpt/step-9"), "ours").unwrap();
    fs::write(folder.path().join(".tmp-killed"), "ours").unwrap();
    done(&small(&["seed=8"]), folder.path(), FRESH);
    assert_eq!(fs::read_to_string(folder.path().join("notes.txt")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(folder.path().join("plots/a.svg")).unwrap(), "mine");
    assert!(!folder.path().join("ckpt/step-9").exists());
    assert!(!folder.path().join(".tmp-killed").exists());
}

#[test]
fn nothing_is_deleted_or_claimed_before_the_data_have_been_found_good() {
    let folder = tempfile::tempdir().unwrap();
    let (path, dir) = (folder.path().join("set.safetensors"), folder.path().join("run"));
    Set::new().write(&path);
    done(&on_features(&path, &[]), &dir, START);
    let before = essence(&dir);
    let mut broken = Set::new();
    broken.a[13] = f32::NAN;
    broken.write(&path);
    let error = go(&on_features(&path, &[]), &dir, FRESH).unwrap_err();
    says(&error, &["set.safetensors", "row 3, modality `a`, column 1", "fill it in"]);
    assert_same(&before, &essence(&dir));
    // A new directory is not even made, so that the next attempt may have other settings.
    let new = folder.path().join("new");
    assert!(go(&on_features(&path, &[]), &new, START).is_err());
    assert!(!new.exists());
}

#[test]
fn a_run_without_validation_rows_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("run");
    let error = go(&small(&["data.n_val=0"]), &dir, START).unwrap_err();
    says(&error, &["data.split = no validation rows", "data.split.val_fraction", "ogm-test-select"]);
    assert!(!dir.exists());
    let result = done(&small(&["data.n_val=0", "train.protocol=ogm-test-select"]), &dir, START);
    assert!(result.selected_on_test && result.val.is_none());
    assert_eq!(lines(&dir, "epoch")[0].get("val_accuracy"), None);
    assert_eq!(lines(&dir, "epoch")[result.selected_epoch]["test_accuracy"], result.test.accuracy);
}

#[test]
fn one_process_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    stopped(&[], folder.path(), 1);
    let lock = fs::File::options().write(true).open(folder.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    for how in [RESUME, FRESH] {
        let error = go(&small(&[]), folder.path(), how).unwrap_err();
        says(&error, &["another process is training in this directory", "--out"]);
    }
    assert!(folder.path().join("ckpt/latest").exists());
    drop(lock);
    done(&small(&[]), folder.path(), RESUME);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = go(&small(&[]), &folder.path().join("file/run"), START).unwrap_err();
    says(&error, &["file/run: cannot be a run directory", "choose another --out"]);
    fs::create_dir_all(folder.path().join("run/.lock")).unwrap();
    let error = go(&small(&[]), &folder.path().join("run"), START).unwrap_err();
    says(&error, &["cannot write", "run/.lock", "choose another --out"]);
}

#[test]
fn a_run_killed_between_its_last_checkpoint_and_its_result_finishes() {
    let folder = tempfile::tempdir().unwrap();
    done(&small(&[]), folder.path(), START);
    let before = essence(folder.path());
    for gone in [&["result.json"][..], &["result.json", "predictions.json", "model/model.safetensors"]] {
        for name in gone {
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        assert!(go(&small(&[]), folder.path(), START).is_err());
        done(&small(&[]), folder.path(), RESUME);
        assert_same(&before, &essence(folder.path()));
    }
}

#[test]
fn telemetry_beyond_the_checkpoint_is_cut_and_missing_telemetry_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, dir) = (folder.path().join("whole"), folder.path().join("run"));
    done(&small(&[]), &whole, START);
    stopped(&[], &dir, 7);
    let metrics = dir.join("metrics.jsonl");
    let kept = fs::read(&metrics).unwrap();
    fs::write(&metrics, [&kept[..], b"{\"kind\":\"step\",\"epo"].concat()).unwrap();
    stopped(&[], &dir, 1);
    fs::write(&metrics, &kept[..kept.len() - 1]).unwrap();
    let error = go(&small(&[]), &dir, RESUME).unwrap_err();
    says(&error, &["metrics.jsonl", "the checkpoint knows of", "--fresh"]);
    assert_eq!(fs::read(&metrics).unwrap().len(), kept.len() - 1);

    stopped(&["seed=1"], &folder.path().join("other"), 7);
    fs::write(&metrics, [&kept[..], &[b'x'; 5000]].concat()).unwrap();
    // The checkpoint knows of one step more than `kept` holds; give it back from the uninterrupted run.
    let full = fs::read(whole.join("metrics.jsonl")).unwrap();
    fs::write(&metrics, [&full[..], &[b'x'; 5000]].concat()).unwrap();
    done(&small(&[]), &dir, RESUME);
    assert_same(&essence(&whole), &essence(&dir));
}

#[test]
fn other_data_are_noticed_when_a_run_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, dir) = (folder.path().join("set.safetensors"), folder.path().join("run"));
    Set::new().write(&path);
    let config = on_features(&path, &[]);
    go(&config, &dir, ONE_STEP).unwrap();
    let mut changed = Set::new();
    changed.a[0] += 1.0;
    changed.write(&path);
    let error = go(&config, &dir, RESUME).unwrap_err();
    says(&error, &["other data than", "set.safetensors", "--fresh"]);
    Set::new().write(&path);
    done(&config, &dir, RESUME);
}

#[test]
fn time_is_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    stopped(&[], folder.path(), 3);
    // As if the first process had trained for 1000 seconds.
    let state = latest(folder.path()).join("state/trainer.json");
    let mut progress: checkpoint::Progress = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert!(progress.seconds > 0.0 && progress.seconds < 60.0);
    progress.seconds = 1000.0;
    fs::write(&state, serde_json::to_vec(&progress).unwrap()).unwrap();
    let result = done(&small(&[]), folder.path(), RESUME);
    assert!((1000.0..1060.0).contains(&result.seconds.train), "{:?}", result.seconds);
    assert!((result.seconds.train..1060.0).contains(&result.seconds.total), "{:?}", result.seconds);
    let one_go = done(&small(&[]), folder.path(), FRESH).seconds;
    assert!(one_go.total >= one_go.train && one_go.total < 60.0, "{one_go:?}");
}

#[test]
fn a_run_that_diverges_keeps_its_last_good_checkpoint_and_its_telemetry() {
    for (lr, what, step) in [
        ("1e25", "the loss is NaN at step 3 (epoch 0)", 3),
        ("1e39", "parameter `encoder.a.0.weight` is not finite at step 3 (epoch 0)", 2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let sets = ["train.checkpoint_steps=1", "model.encoder.norm=none"];
        stopped(&sets, folder.path(), 2);
        // The same run goes on with a rate that blows up.
        let lr = format!("optim.lr={lr}");
        let config = small(&[&sets[..], &[lr.as_str()]].concat());
        fs::write(folder.path().join("config.toml"), config.to_toml().unwrap()).unwrap();
        let error = go(&config, folder.path(), RESUME).unwrap_err();
        says(&error, &[what, "training has diverged", "lower optim.lr", "the last checkpoint is kept"]);
        assert!(matches!(error, TrainError::Diverged { .. }));
        let kept = checkpoint::load(&folder.path().join("ckpt")).unwrap().unwrap();
        for (name, tensor) in &kept.model {
            assert!(mm_core::gradients::square_sum(tensor).unwrap().is_finite(), "{name}");
        }
        assert_eq!((kept.progress.step, lines(folder.path(), "step").len()), (step, step));
        assert!(!folder.path().join("result.json").exists());
    }
    // One step an epoch: the parameters are finite, what they say of the validation rows is not.
    let folder = tempfile::tempdir().unwrap();
    let sets = ["train.batch_size=70", "model.encoder.norm=none", "optim.lr=1e25"];
    let error = go(&small(&sets), folder.path(), START).unwrap_err();
    says(&error, &["the val cross-entropy is NaN at step 1 (epoch 0)", "training has diverged"]);
}

#[test]
fn a_checkpoint_loads_from_whatever_moment_its_replacement_stopped_at() {
    let folder = tempfile::tempdir().unwrap();
    stopped(&[], folder.path(), 4);
    let ckpt = folder.path().join("ckpt");
    let read = || {
        let c = checkpoint::load(&ckpt).unwrap().unwrap();
        (c.progress.step, c.progress.batches, c.progress.epoch, c.model.len(), c.best.is_some())
    };
    let wanted = (4, 4, 0, 19, false);
    assert_eq!(read(), wanted);
    assert_eq!(fs::read_dir(&ckpt).unwrap().count(), 2, "one checkpoint and the pointer");

    // Half of a new checkpoint, and half of a new pointer.
    fs::create_dir_all(ckpt.join(".tmp-abc/state")).unwrap();
    fs::write(ckpt.join(".tmp-abc/model.safetensors"), "half").unwrap();
    fs::write(ckpt.join(".tmp-def"), "step-0000").unwrap();
    assert_eq!(read(), wanted);

    // A complete new checkpoint that `latest` does not name yet.
    fs::create_dir(ckpt.join("step-000000005")).unwrap();
    assert_eq!(read(), wanted);

    // Between the two renames of an overwrite.
    fs::rename(ckpt.join("step-000000004"), ckpt.join(".tmp-old-step-000000004")).unwrap();
    assert_eq!(read(), wanted);
    stopped(&[], folder.path(), 1);
    assert_eq!(read().0, 5);
    let left: Vec<_> = fs::read_dir(&ckpt).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "left-overs are removed: {left:?}");
}

#[test]
fn damaged_checkpoints_are_named() {
    let folder = tempfile::tempdir().unwrap();
    stopped(&[], folder.path(), 2);
    let file = latest(folder.path()).join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let error = go(&small(&[]), folder.path(), RESUME).unwrap_err();
    says(&error, &["step-000000002/model.safetensors", "is damaged", "--fresh"]);
    fs::write(&file, whole).unwrap();
    fs::write(folder.path().join("ckpt/latest"), "../../etc").unwrap();
    let error = go(&small(&[]), folder.path(), RESUME).unwrap_err();
    says(&error, &["ckpt/latest", "no checkpoint", "--fresh"]);
    fs::write(folder.path().join("ckpt/latest"), "step-000000002\n").unwrap();
    done(&small(&[]), folder.path(), RESUME);
}
