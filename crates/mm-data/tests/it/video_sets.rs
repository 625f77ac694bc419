//! Videos of data sets through ffmpeg, from the file to the pack. Without ffmpeg, or one that cannot write what is needed,
//! these tests say so and compare nothing.
#![cfg(unix)]
#![allow(clippy::print_stdout)] // what was not compared has to be seen

use crate::layouts::Folder;
use crate::support::says;
use mm_data::pack::{Pack, PackedConfig};
use mm_data::prepare::{Listing, Raw, Recipe, Source, check, prepare};
use mm_data::synth::{CremadConfig, cremad};
use mm_data::video::VideoConfig;
use mm_data::{Dataset, Picture};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

/// Runs ffmpeg; false where there is none or it cannot do this.
fn ffmpeg(args: &[&str], to: &Path) -> bool {
    if VideoConfig::default().program().is_err() {
        println!("no ffmpeg on this machine: nothing compared");
        return false;
    }
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    let program = std::env::var("MM_FFMPEG").unwrap_or("ffmpeg".to_owned());
    let mut command = Command::new(program);
    command.args(["-loglevel", "error", "-y"]).args(args).arg(format!("file:{}", to.display()));
    let made = command.status().is_ok_and(|status| status.success());
    if !made {
        println!("this ffmpeg cannot make {}: nothing compared", to.display());
    }
    made
}

/// Ten seconds: second s has a luma of 16 + 20 s in its pictures, and a tone of 200 (s + 1) Hz in its sound.
const GREY: &str = "nullsrc=s=32x24:r=25:d=10,geq=lum=16+20*floor(N/25):cb=128:cr=128,format=yuv420p";
const TONE: &str = "aevalsrc=0.5*sin(2*PI*200*(floor(t)+1)*t):s=16000:d=10";

fn film(to: &Path) -> bool {
    let args = [
        "-f",
        "lavfi",
        "-i",
        GREY,
        "-f",
        "lavfi",
        "-i",
        TONE,
        "-c:v",
        "mjpeg",
        "-q:v",
        "2",
        "-c:a",
        "pcm_s16le",
    ];
    ffmpeg(&[&args[..], &["-f", "avi"]].concat(), to)
}

fn packed(source: Source, folder: &Path, recipe: &str) -> Dataset {
    let recipe: Recipe = serde_json::from_str(recipe).unwrap();
    let out = folder.join("pack");
    prepare(source, folder, &recipe, &out, &|_| {}, &AtomicBool::new(false)).unwrap();
    Pack::open(&out).unwrap().dataset(&PackedConfig::new("unused")).unwrap()
}

/// The middle pixels of the frames of a row.
fn greys(data: &Dataset, m: usize, row: usize) -> Vec<u8> {
    let Picture::Frames(frames) = data.inputs.values()[m].picture(row).unwrap() else { panic!() };
    frames.iter().map(|frame| frame.pixels[(frame.height / 2 * frame.width + frame.width / 2) * 3]).collect()
}

/// Samples of a row as they lie in the pack, of the shard that holds all rows.
fn samples(pack: &Path, row: usize, of_each: usize) -> Vec<f32> {
    let shard = std::fs::read(pack.join("shard-00000.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&shard).unwrap();
    let view = tensors.tensor("x_audio").unwrap();
    let (values, _) = view.data().as_chunks::<4>();
    values[row * of_each..(row + 1) * of_each].iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// How often a wave goes up through zero.
fn ups(samples: &[f32]) -> usize {
    samples.windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count()
}

const SAMPLES: &str = r#"{ "inputs": {
    "audio": { "sound": { "front_end": { "kind": "waveform", "normalize": false,
        "input": { "rate": 16000, "samples": 64000, "short": "tile" } } } },
    "video": { "frames": { "count": 4 } } } }"#;

#[test]
fn the_event_of_a_video_is_read_and_nothing_else() {
    let folder = Folder::new();
    // The container is told by its content, so an AVI may be called as the published files are.
    if !film(&folder.path().join("AVE/aaaaaaaaaaa.mp4")) {
        return;
    }
    folder.file("trainSet.txt", "Bark&aaaaaaaaaaa&good&3&6\n");
    for list in ["valSet.txt", "testSet.txt"] {
        folder.file(list, "");
    }
    let data = packed(Source::Ave, folder.path(), SAMPLES);
    let expected: Vec<f64> = [3.0, 4.0, 5.0, 5.0].iter().map(|s| 20.0 * s * 255.0 / 219.0).collect();
    for (found, expected) in greys(&data, 1, 0).iter().zip(&expected) {
        assert!((f64::from(*found) - expected).abs() < 4.0, "{found} {expected}");
    }
    let sound = samples(&folder.path().join("pack"), 0, 64_000);
    for (second, hertz) in [(0, 800), (1, 1000), (2, 1200), (3, 800)] {
        let found = ups(&sound[second * 16_000..(second + 1) * 16_000]);
        assert!(found.abs_diff(hertz) <= 1, "second {second}: {found} Hz");
    }
}

#[test]
fn classes_without_sound_are_found_by_asking() {
    let folder = Folder::new();
    let clip = |class: &str, group: usize| {
        folder.path().join(format!("UCF-101/{class}/v_{class}_g{group:02}_c01.avi"))
    };
    if !film(&clip("Archery", 1)) || !film(&clip("Drumming", 1)) {
        return;
    }
    let silent = ["-f", "lavfi", "-i", GREY, "-c:v", "mjpeg", "-f", "avi"];
    assert!(ffmpeg(&silent, &clip("Archery", 2)) && ffmpeg(&silent, &clip("Surfing", 1)));
    let line = |class: &str, group: usize| format!("{class}/v_{class}_g{group:02}_c01.avi\n");
    folder.file("ucfTrainTestlist/trainlist01.txt", line("Archery", 2) + &line("Surfing", 1));
    folder.file("ucfTrainTestlist/testlist01.txt", line("Archery", 1) + &line("Drumming", 1));
    let listing: Listing = Source::Ucf51.list(folder.path()).unwrap();
    assert_eq!(listing.classes, ["Archery", "Drumming"]);
    assert!(matches!(&listing.rows[0].raw[..], [Raw::Track(..), Raw::Video(_)]));
    let data = packed(Source::Ucf51, folder.path(), SAMPLES);
    // A clip without sound lacks the modality, and has its frames.
    let present: Vec<bool> = (0..3).map(|row| data.inputs.values()[0].is_present(row)).collect();
    assert_eq!((data.ids[1].as_str(), present), ("v_Archery_g02_c01", vec![true, false, true]));
    assert_eq!(greys(&data, 1, 1), greys(&data, 1, 0));
    let found = ups(&samples(&folder.path().join("pack"), 2, 64_000)[..16_000]);
    assert!(found.abs_diff(200) <= 1, "{found} Hz");
}

#[test]
fn flash_videos_become_the_pack_that_their_frames_become() {
    let folder = Folder::new();
    let raw = folder.path().join("raw");
    let config = CremadConfig { actors: 1, clips: 6, width: 96, video: true, ..CremadConfig::default() };
    if VideoConfig::default().program().is_err() {
        println!("no ffmpeg on this machine: nothing compared");
        return;
    }
    if let Err(error) = cremad(&config, &raw, &|_, _| {}, &AtomicBool::new(false)) {
        println!("this ffmpeg cannot write Flash videos ({error}): nothing compared");
        return;
    }
    let recipe = Recipe::preset(Source::CremaD, "mlb-resnet").unwrap();
    let data = |out: &str| {
        let out = folder.path().join(out);
        prepare(Source::CremaD, &raw, &recipe, &out, &|_| {}, &AtomicBool::new(false)).unwrap();
        Pack::open(&out).unwrap().dataset(&PackedConfig::new("unused")).unwrap()
    };
    let from_frames = data("frames");
    let report = check(Source::CremaD, &raw, None).unwrap();
    assert_eq!((report.faults.len(), &report.modalities[1].kinds["72 x 96"]), (0, &6));
    std::fs::remove_dir_all(raw.join("Image-01-FPS")).unwrap();
    let report = check(Source::CremaD, &raw, None).unwrap();
    assert_eq!(report.modalities[1].kinds["flv1 (Sorenson)"], 6, "the codec is read from the file's head");
    let from_videos = data("videos");
    assert_eq!(from_frames.ids, from_videos.ids);
    assert_eq!(from_frames.shapes(), from_videos.shapes());
    let (mut worst, mut nearest) = (0.0f64, f64::INFINITY);
    for row in 0..from_frames.rows() {
        let pictures = |data: &Dataset| match data.inputs.values()[1].picture(row).unwrap() {
            Picture::Frames(frames) => frames,
            _ => panic!("row {row}"),
        };
        let (frames, videos) = (pictures(&from_frames), pictures(&from_videos));
        let apart = |a: &mm_data::image::Frame, b: &mm_data::image::Frame| {
            let sum: f64 = a.pixels.iter().zip(&b.pixels).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
            sum / a.pixels.len() as f64
        };
        for (k, (frame, video)) in frames.iter().zip(&videos).enumerate() {
            worst = worst.max(apart(frame, video));
            // Two lossy codecs of the same picture are nearer to each other than two pictures of a head that moves.
            for (j, other) in videos.iter().enumerate().filter(|(j, other)| *j != k && **other != *video) {
                let far = apart(frame, other);
                assert!(far > apart(frame, video), "row {row}: frame {k} is nearer to frame {j}");
                nearest = nearest.min(far);
            }
        }
    }
    println!(
        "levels between JPEG and Flash in the mean: at most {worst:.2}; between other frames at least {nearest:.2}"
    );
    assert!(worst < 4.0, "{worst}");
}

#[test]
fn a_flash_file_without_pictures_is_named() {
    let folder = Folder::new();
    let clip = "VideoFlash/1001_DFA_ANG_XX.flv";
    let args = ["-f", "lavfi", "-i", TONE, "-c:a", "pcm_s16le", "-ar", "44100", "-f", "flv"];
    let whole = ffmpeg(&args, &folder.path().join(clip));
    if !whole {
        // Header, length of nothing, one tag of sound.
        folder.file(clip, b"FLV\x01\x04\0\0\0\x09\0\0\0\0\x08\0\0\x01\0\0\0\0\0\0\0\x2f\0\0\0\x0c");
    }
    let report = check(Source::CremaD, folder.path(), None).unwrap();
    assert_eq!(report.faults.len(), 2, "{:?}", report.faults);
    says(&report.faults[1], &["1001_DFA_ANG_XX.flv", "there is no picture at its beginning"]);
    if whole {
        let recipe = Recipe { modalities: Some(vec!["video".into()]), ..Recipe::default() };
        let out = folder.path().join("pack");
        let error = prepare(Source::CremaD, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false));
        says(&error.unwrap_err(), &["1001_DFA_ANG_XX.flv", "no video stream", "give a video"]);
    }
}
