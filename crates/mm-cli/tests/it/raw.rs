//! Raw files: generated, checked, prepared, trained on.

use crate::support::{Place, failed};

const RECIPE: &str = r#"
[inputs.audio.sound.front_end]
kind = "stft"
n_fft = 64
hop = 250
input = { rate = 4000 }
[inputs.video.frames]
size = [32, 32]
"#;

const TRAIN: &str = r#"
name = "raw"
[data]
kind = "packed"
path = "pack"
split = { fold_column = "fold", test_fold = 0, val_fold = 1 }
inputs.audio = { length = 32, normalize = "all" }
inputs.video = { frames = { size = 32 } }
[model]
encoders.audio = { kind = "resnet", channels = 1 }
encoders.video = { kind = "resnet", channels = 3 }
[method]
kind = "mlb"
[optim]
kind = "sgd"
lr = 0.01
[train]
epochs = 1
batch_size = 9
"#;

const SYNTH: [&str; 10] =
    ["data", "synth", "cremad", "--out", "raw", "--actors", "5", "--clips", "6", "--width=48"];

#[test]
fn from_generated_files_to_a_trained_model() {
    let place = Place::new();
    assert_eq!(place.ok(&SYNTH), "raw: 30 generated clips, 30 of them now\n");
    assert_eq!(place.ok(&SYNTH), "raw: 30 generated clips, 0 of them now\n");
    let checked = place.ok(&["data", "verify-raw", "cremad", "--raw", "raw"]);
    for piece in [
        "30 rows\n",
        "30 files, ",
        "16000 Hz: 30, 1.",
        "36 x 48: 30",
        "  ANG          5\n",
        "fold 4: 6 rows\n",
        "\n0 faults\n",
    ] {
        assert!(checked.contains(piece), "{piece:?} is not in {checked}");
    }
    place.file("recipe.toml", RECIPE);
    let prepare = ["data", "prepare", "cremad", "--raw", "raw", "--out", "pack", "--recipe", "recipe.toml"];
    let stats = place.ok(&prepare);
    for piece in
        ["cremad: 30 rows, 6 classes", "0 NEU                  5", "column actor: 5 values from 1001 to 1005"]
    {
        assert!(stats.contains(piece), "{piece:?} is not in {stats}");
    }
    place.ok(&["data", "verify", "pack"]);
    place.file("train.toml", TRAIN);
    place.ok(&["train", "train.toml", "--out", "run", "--quiet"]);
    let result = place.json("run/result.json");
    assert_eq!((result["steps"].as_u64(), result["dataset"]["train"].as_u64()), (Some(2), Some(18)));
}

#[test]
fn raw_files_that_are_not_right_are_named() {
    let place = Place::new();
    place.ok(&[
        "data",
        "synth",
        "cremad",
        "--out",
        "raw",
        "--actors=1",
        "--clips=6",
        "--width=32",
        "--quiet",
    ]);
    let sound = std::fs::read_dir(place.path("raw/AudioWAV")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&sound, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n").unwrap();
    let output = place.run(&["data", "verify-raw", "cremad", "--raw", "raw"]);
    failed(&output, 1, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("FAULT: ") && text.contains("git-LFS pointer") && text.ends_with("\n1 faults\n"),
        "{text}"
    );
    let name = sound.file_name().unwrap().to_str().unwrap();
    place.fails(
        &["data", "prepare", "cremad", "--raw", "raw", "--out", "pack"],
        1,
        &[name, "git-LFS pointer"],
    );
    place.fails(
        &["data", "verify-raw", "cremad", "--raw", "raw", "--labels", "concensus"],
        2,
        &["did you mean `consensus`?"],
    );
    place.fails(
        &["data", "synth", "cremad", "--out", "new", "--actors", "100"],
        2,
        &["actors = 100", "[1, 91]"],
    );
    place.fails(&["data", "synth", "ravdess", "--out", "new"], 2, &["dataset", "allowed: cremad"]);
    place.fails(
        &["data", "synth", "cremad", "--out", "raw", "--seed", "3"],
        1,
        &["generated with other settings"],
    );
}
