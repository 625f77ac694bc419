//! `mm data prepare`: killed, on a full disk, with a preset, with a damaged pack.

use crate::support::{Place, failed, stderr};
use mm_core::StepRng;
use mm_data::audio::Clip;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// More rows than two shards have.
const ROWS: usize = 700;

const RECIPE: &str = r#"
[inputs.wav.sound]
element = "I16"
[inputs.wav.sound.front_end]
kind = "waveform"
normalize = false
input = { rate = 8000 }
"#;

const PREPARE: [&str; 9] =
    ["data", "prepare", "manifest", "--raw", "raw", "--recipe", "recipe.toml", "--quiet", "--out"];

/// A folder of short sounds of different lengths.
fn raw() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("raw")).unwrap();
    let mut manifest = "id,label,wav\n".to_owned();
    for row in 0..ROWS {
        let mut draws = StepRng::new(3).stream("sound").sample(row as u64).draws();
        let samples = (0..100 + draws.below(400)).map(|_| (0.1 * draws.normal()) as f32).collect();
        Clip { samples, rate: 8000 }.write(place.path(&format!("raw/{row}.wav"))).unwrap();
        manifest +=
            &["r", &row.to_string(), if row % 3 == 0 { ",x," } else { ",y," }, &row.to_string(), ".wav\n"]
                .concat();
    }
    place.file("raw/manifest.csv", manifest);
    place.file("recipe.toml", RECIPE);
    place
}

fn prepare(out: &str) -> Vec<&str> {
    PREPARE.into_iter().chain([out]).collect()
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[track_caller]
fn assert_equal(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        assert!(*bytes == b[name], "{name} differs");
    }
}

/// What is in the folder of a call that runs: complete shards, and files that are being written.
fn seen(dir: &Path) -> usize {
    std::fs::read_dir(dir).into_iter().flatten().count()
}

#[test]
fn a_killed_preparation_goes_on_to_the_same_bytes() {
    let place = raw();
    place.ok(&prepare("whole"));
    let whole = files(&place.path("whole"));
    assert_eq!(whole.len(), 5, "three shards, a table, an index: {:?}", whole.keys());
    let mut draws = StepRng::new(5).stream("kill").draws();
    let mut kills = 0;
    for round in 0..6 {
        let out = format!("killed{round}");
        let mut last = 0;
        for _ in 0..40 {
            let mut command = place.command(&prepare(&out));
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            // Until it has written something more, and a random while.
            let start = Instant::now();
            while seen(&place.path(&out)) <= last && child.try_wait().unwrap().is_none() {
                assert!(start.elapsed() < Duration::from_secs(60), "no progress beyond {last} files");
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(Duration::from_micros(draws.below(3000) as u64));
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
            if output.status.success() {
                break;
            }
            kills += 1;
            last = seen(&place.path(&out)).min(3);
            if !place.path(&out).join("index.json").exists() {
                place.fails(&["data", "verify", &out], 1, &["not finished", "mm data prepare"]);
            }
        }
        place.ok(&prepare(&out));
        place.ok(&["data", "verify", &out]);
        assert_equal(&whole, &files(&place.path(&out)));
    }
    assert!(kills >= 6, "{kills} kills");
}

#[test]
fn a_full_disk_stops_the_preparation_and_what_is_complete_stays() {
    let place = raw();
    place.ok(&prepare("whole"));
    let whole = files(&place.path("whole"));
    // A shard of 256 rows of some 300 samples does not fit.
    let limited = |kib: usize| {
        let args = prepare("pack").join(" ");
        place.shell(&format!("trap '' XFSZ; ulimit -f {kib}; exec \"$MM\" {args}"))
    };
    let named = [
        "cannot write pack/shard-00000.safetensors",
        "File too large",
        "free space",
        "what is complete stays",
    ];
    failed(&limited(100), 1, &named);
    assert!(!place.path("pack/index.json").exists());
    assert_eq!(files(&place.path("pack")).len(), 0, "nothing half written is left");
    place.ok(&prepare("pack"));
    assert_equal(&whole, &files(&place.path("pack")));
    let output =
        place.shell("trap '' XFSZ; ulimit -f 0; exec \"$MM\" data prepare manifest --raw raw --out none -q");
    failed(&output, 1, &["cannot write none/shard-00000.safetensors", "File too large"]);
}

#[test]
fn presets_are_recipes_that_can_be_changed() {
    let place = Place::new();
    place.ok(&[
        "data",
        "synth",
        "cremad",
        "--out",
        "raw",
        "--actors=1",
        "--clips=6",
        "--width=48",
        "--quiet",
    ]);
    let prepare = |args: &[&str]| {
        let base = ["data", "prepare", "cremad", "--raw", "raw"];
        base.into_iter().chain(args.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |args: &[&str]| {
        let args = prepare(args);
        place.ok(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let stats = run(&["--out", "ogm", "--preset", "ogm"]);
    assert!(
        stats.contains("audio        257 x 188") && stats.contains("video        3 x 36 x 48"),
        "{stats}"
    );
    let set = "inputs.video.frames.size=[16, 20]";
    let stats = run(&["--out", "mlb", "--preset", "mlb-resnet", "--set", set]);
    assert!(
        stats.contains("audio        257 x 188") && stats.contains("video        3 x 3 x 16 x 20"),
        "{stats}"
    );
    let index = place.json("mlb/index.json");
    let settings = &index["preset"]["settings"]["inputs"];
    assert_eq!(settings["audio"]["sound"]["front_end"]["kind"], "stft");
    assert_eq!(settings["audio"]["sound"]["front_end"]["input"]["samples"], 66_150);
    assert_eq!(
        settings["video"]["frames"],
        serde_json::json!({ "size": [16, 20], "count": 3, "channels": 3 })
    );
    // A recipe of the same settings is the same pack, another one is not.
    let frames = "size = [16, 20]\ncount = 3";
    place.file(
        "recipe.toml",
        format!(
            "modalities = [\"audio\", \"video\"]\n[inputs.audio.sound.front_end]\nkind = \"ogm-stft\"\n\
             [inputs.video.frames]\n{frames}\n"
        ),
    );
    let output = place.run(
        &prepare(&["--out", "mlb", "--recipe", "recipe.toml"]).iter().map(String::as_str).collect::<Vec<_>>(),
    );
    failed(&output, 0, &["this pack is complete already"]);
    let fails = |args: &[&str], code: i32, pieces: &[&str]| {
        let args = prepare(args);
        place.fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, pieces);
    };
    fails(&["--out", "mlb", "--preset", "ogm"], 1, &["another preset", "choose another folder"]);
    fails(&["--out", "x", "--preset", "mlb-conformr"], 2, &["--preset", "did you mean `mlb-conformer`?"]);
    fails(&["--out", "x", "--preset", "ogm", "--recipe", "recipe.toml"], 2, &["cannot be used with"]);
    fails(&["--out", "x", "--preset", "mlb-conformer"], 2, &["modalities", "faces", "allowed: audio, video"]);
}

#[test]
fn a_damaged_pack_is_mended() {
    let place = raw();
    place.ok(&prepare("pack"));
    let whole = files(&place.path("pack"));
    let shard = place.path("pack/shard-00001.safetensors");
    let mut bytes = whole["shard-00001.safetensors"].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    place.fails(&["data", "verify", "pack"], 1, &["pack/shard-00001.safetensors", "has SHA-256"]);
    // Without the flag a complete pack is left as it is.
    place.ok(&prepare("pack"));
    place.fails(&["data", "verify", "pack"], 1, &["shard-00001"]);
    let mut args = prepare("pack");
    args.push("--mend");
    let output = place.run(&args);
    failed(&output, 0, &["shard-00001.safetensors was damaged and is made again"]);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "pack: 4 files, 1 of them made again, all checksums right\n"
    );
    assert_equal(&whole, &files(&place.path("pack")));
    place.ok(&["data", "verify", "pack"]);
}
