//! Recipes by name, with all settings that they stand for.

use crate::layouts::Folder;
use crate::support::says;
use mm_data::audio::Clip;
use mm_data::pack::{Element, Pack, PackedConfig, Written};
use mm_data::prepare::{Recipe, Source, prepare};
use std::sync::atomic::AtomicBool;

#[test]
fn presets_are_recipes_with_every_setting() {
    let written = |source, name: &str| serde_json::to_value(Recipe::preset(source, name).unwrap()).unwrap();
    let ogm = written(Source::CremaD, "ogm");
    let front_end = &ogm["inputs"]["audio"]["sound"]["front_end"];
    assert_eq!(
        (front_end["kind"].as_str(), front_end["n_fft"].as_u64(), front_end["hop"].as_u64()),
        (Some("stft"), Some(512), Some(353))
    );
    assert_eq!(
        (front_end["input"]["rate"].as_u64(), front_end["input"]["samples"].as_u64()),
        (Some(22_050), Some(66_150))
    );
    assert_eq!((front_end["input"]["clamp"].as_bool(), front_end["version"].as_u64()), (Some(true), Some(1)));
    assert_eq!(ogm["inputs"]["video"]["frames"]["count"], 1);
    let mlb = written(Source::CremaD, "mlb-resnet");
    assert_eq!(mlb["inputs"]["audio"], ogm["inputs"]["audio"], "both read CREMA-D's sound the same way");
    assert_eq!(mlb["inputs"]["video"]["frames"]["count"], 3);
    let ave = written(Source::Ave, "mlb-resnet");
    assert_eq!(ave["inputs"]["audio"]["sound"]["front_end"]["kind"], "psd");
    assert_eq!(ave["inputs"]["video"]["frames"]["count"], 4);
    assert_eq!(
        written(Source::Ucf51, "mlb-resnet")["inputs"]["audio"]["sound"]["front_end"]["input"]["samples"],
        48_000
    );
    assert_eq!(written(Source::VggSound, "ogm")["inputs"]["audio"]["sound"]["front_end"]["n_fft"], 256);
    let conformer = written(Source::CremaD, "mlb-conformer");
    assert_eq!(conformer["modalities"], serde_json::json!(["audio", "faces"]));
    assert_eq!(conformer["inputs"]["audio"]["sound"]["front_end"]["normalize"], false);
    // What is written is read again.
    for source in Source::ALL {
        for name in Recipe::presets(source) {
            let recipe = Recipe::preset(source, name).unwrap();
            let text = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe, "{name}");
        }
    }
    assert_eq!(Recipe::presets(Source::CremaD), ["ogm", "mlb-resnet", "mlb-conformer"]);
    says(
        &Recipe::preset(Source::CremaD, "mlb-resnt").unwrap_err(),
        &["--preset", "did you mean `mlb-resnet`?"],
    );
    says(&Recipe::preset(Source::Ave, "ogm").unwrap_err(), &["--preset", "allowed: mlb-resnet"]);
    says(&Recipe::preset(Source::Ravdess, "ogm").unwrap_err(), &["ravdess has no presets"]);
}

/// A `.npy` file of floats in rows of two.
fn npy(rows: &[[f32; 2]]) -> Vec<u8> {
    let mut head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, 2), }}", rows.len());
    while !(10 + head.len() + 1).is_multiple_of(64) {
        head.push(' ');
    }
    head.push('\n');
    let mut bytes = b"\x93NUMPY\x01\0".to_vec();
    bytes.extend((head.len() as u16).to_le_bytes());
    bytes.extend(head.as_bytes());
    bytes.extend(rows.iter().flatten().flat_map(|v| v.to_le_bytes()));
    bytes
}

/// Clips with sound of 0.2 s, two frames and three faces.
fn cremad() -> Folder {
    let folder = Folder::new();
    for (i, clip) in ["1001_DFA_ANG_XX", "1002_DFA_NEU_XX"].iter().enumerate() {
        let path = folder.file(&format!("AudioWAV/{clip}.wav"), "");
        let samples = (0..3200u16).map(|t| (f32::from(t) * 0.05).sin() * 0.1).collect();
        Clip { samples, rate: 16_000 }.write(path).unwrap();
        folder.frames(&format!("Image-01-FPS/{clip}"), &[10, 20]);
        let faces: Vec<[f32; 2]> = (0..3 + 200 * i).map(|t| [t as f32, -1.0]).collect();
        folder.file(&format!("Face_features/{clip}.npy"), npy(&faces));
    }
    folder
}

#[test]
fn presets_make_packs_of_the_published_shapes() {
    let folder = cremad();
    let made = |name: &str| {
        let out = folder.path().join(name);
        let recipe = Recipe::preset(Source::CremaD, name).unwrap();
        let written = prepare(Source::CremaD, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false));
        assert_eq!(written.unwrap(), Written::Done { made: 2 });
        Pack::open(&out).unwrap()
    };
    let shapes = |pack: &Pack| -> Vec<(String, Vec<usize>)> {
        pack.index.modalities.iter().map(|m| (m.name.clone(), m.dims.clone())).collect()
    };
    let (audio, video) = ("audio".to_owned(), "video".to_owned());
    assert_eq!(shapes(&made("ogm")), [(audio.clone(), vec![257, 188]), (video.clone(), vec![1, 6, 8, 3])]);
    assert_eq!(shapes(&made("mlb-resnet")), [(audio.clone(), vec![257, 188]), (video, vec![3, 6, 8, 3])]);
    let conformer = made("mlb-conformer");
    assert_eq!(shapes(&conformer), [(audio, vec![3200]), ("faces".to_owned(), vec![150, 2])]);
    assert!(conformer.index.modalities.iter().all(|m| m.ragged));
    assert_eq!(conformer.index.modalities[0].element, Element::I16);
    let data = conformer.dataset(&PackedConfig::new("unused")).unwrap();
    assert_eq!(data.shapes()[1].1.dims, [150, 2]);
}

#[test]
fn sequences_have_one_width_and_no_empty_array() {
    let folder = cremad();
    let recipe = Recipe::preset(Source::CremaD, "mlb-conformer").unwrap();
    let failed = |out: &str| {
        let stop = AtomicBool::new(false);
        prepare(Source::CremaD, folder.path(), &recipe, &folder.path().join(out), &|_| {}, &stop).unwrap_err()
    };
    folder.file("Face_features/1002_DFA_NEU_XX.npy", npy(&[]));
    says(&failed("a"), &["row 1 (`1002_DFA_NEU_XX`), modality `faces`", "0 values"]);
    folder.file("Face_features/1002_DFA_NEU_XX.npy", {
        let mut bytes = npy(&[[1.0, 2.0]]);
        let at = bytes.windows(6).position(|w| w == b"(1, 2)").unwrap();
        bytes[at..at + 6].copy_from_slice(b"(2, 1)");
        bytes
    });
    says(&failed("b"), &["1002_DFA_NEU_XX.npy", "has the shape [2, 1]", "[2]"]);
    folder.file("Face_features/1001_DFA_ANG_XX.npy", {
        let mut bytes = npy(&[[1.0, 2.0]]);
        let at = bytes.windows(6).position(|w| w == b"(1, 2)").unwrap();
        bytes[at..at + 6].copy_from_slice(b"(2,)  ");
        bytes
    });
    says(&failed("c"), &["1001_DFA_ANG_XX.npy", "no sequence of vectors"]);
}
