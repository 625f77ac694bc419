//! Sound under noise and images with a share of their variance, from files to a pack.

use crate::layouts::Folder;
use crate::support::says;
use mm_data::audio::Clip;
use mm_data::image::Frame;
use mm_data::pack::{Pack, PackedConfig, Written};
use mm_data::prepare::{Recipe, Source, Treatment, prepare};
use mm_data::{DataError, Input};
use std::fmt::Write as _;
use std::sync::atomic::AtomicBool;

/// Six training rows whose images vary by 100 in their first pixel and by 10 in their second, and one of the test part.
fn digits(test: [u8; 2]) -> Folder {
    let folder = Folder::new();
    let mut pairs = String::from("id,digit,speaker,split,wav,png\n");
    for row in 0..7u8 {
        let part = if row < 6 { "train" } else { "test" };
        let pixels = if row < 6 { [50 + 100 * (row % 2), 95 + 10 * (row / 2 % 2)] } else { test };
        let frame = Frame::new(1, 2, 1, pixels.to_vec()).unwrap();
        folder.file(&format!("{row}.png"), frame.to_png().unwrap());
        let path = folder.file(&format!("{row}.wav"), "");
        let samples = (0..800u16).map(|t| (f32::from(t) * 0.05).sin() * 0.1).collect();
        Clip { samples, rate: 8_000 }.write(path).unwrap();
        writeln!(pairs, "r{row},{},s,{part},{row}.wav,{row}.png", row % 2).unwrap();
    }
    folder.file("pairs.csv", pairs);
    folder
}

fn packed(folder: &Folder, energy: f64, noise_db: Option<f64>) -> Result<(Vec<Vec<u8>>, Pack), DataError> {
    let mut recipe = Recipe::default();
    let image = Treatment::Image { size: None, channels: 1, energy: Some(energy) };
    recipe.inputs.insert("image".into(), image);
    let front_end = mm_data::audio::FrontEnd::named("waveform").unwrap();
    let sound = Treatment::Sound { front_end, element: mm_data::pack::Element::F32, noise_db };
    recipe.inputs.insert("audio".into(), sound);
    let out = folder.path().join(format!("pack-{energy}-{}", noise_db.is_some()));
    prepare(Source::AvMnist, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false))?;
    let pack = Pack::open(&out)?;
    let data = pack.dataset(&PackedConfig::new(&out))?;
    let image = data.inputs.iter().nth(1).map(|(_, input)| input).unwrap();
    let pixels = |row| match Input::picture(image, row).unwrap() {
        mm_data::Picture::Frames(frames) => frames[0].pixels.clone(),
        other => panic!("no frames: {other:?}"),
    };
    Ok(((0..data.rows()).map(pixels).collect(), pack))
}

#[test]
fn images_keep_what_varies_in_the_training_part() {
    let (rows, _) = packed(&digits([0, 255]), 0.9, None).unwrap();
    // Nearly all variance is in the first pixel: of the second the mean stays, for the test row, too.
    for (row, pixels) in rows[..6].iter().enumerate() {
        assert_eq!(pixels[0], 50 + 100 * (row as u8 % 2), "{rows:?}");
        assert!(pixels[1].abs_diff(98) <= 1, "{rows:?}");
    }
    assert!(rows[6][0] <= 2 && rows[6][1].abs_diff(98) <= 4, "{rows:?}");
    // Another test row changes no training row.
    let (other, _) = packed(&digits([255, 0]), 0.9, None).unwrap();
    assert_eq!(rows[..6], other[..6]);
    assert_eq!(packed(&digits([0, 255]), 1.0, None).unwrap().0[6], [0, 255]);
}

#[test]
fn noise_changes_the_sound_and_is_the_same_each_time() {
    let shard = |noise| {
        let folder = digits([0, 255]);
        packed(&folder, 1.0, noise).unwrap();
        let name = format!("pack-1-{}/shard-00000.safetensors", noise.is_some());
        std::fs::read(folder.path().join(name)).unwrap()
    };
    assert_eq!(shard(Some(0.0)), shard(Some(0.0)));
    // What a pack says of itself changes with the noise's version, so packs of two versions are never mixed.
    let version = |noise| {
        packed(&digits([0, 255]), 1.0, noise).unwrap().1.index.preset["settings"]["noise_version"].clone()
    };
    assert_eq!((version(Some(0.0)), version(None)), (2.into(), serde_json::Value::Null));
    assert_ne!(shard(Some(0.0)), shard(None));
}

#[test]
fn a_complete_pack_is_noticed_before_images_are_read() {
    let folder = digits([0, 255]);
    packed(&folder, 0.9, None).unwrap();
    // Were they read again to find out what they keep, this would be an error.
    for row in 0..6 {
        std::fs::remove_file(folder.path().join(format!("{row}.png"))).unwrap();
    }
    // The first one tells the size.
    folder.file("0.png", Frame::new(1, 2, 1, vec![1, 2]).unwrap().to_png().unwrap());
    packed(&folder, 0.9, None).unwrap();
}

#[test]
fn who_stops_it_does_not_wait_for_the_images() {
    let folder = digits([0, 255]);
    std::fs::write(folder.path().join("5.png"), "no picture").unwrap();
    let mut recipe = Recipe::default();
    let image = Treatment::Image { size: None, channels: 1, energy: Some(0.9) };
    recipe.inputs.insert("image".into(), image);
    let out = folder.path().join("pack");
    let stopped = prepare(Source::AvMnist, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(true));
    assert_eq!(stopped.unwrap(), Written::Stopped { done: 0 });
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    says(&packed(&digits([0, 0]), 0.0, None).unwrap_err(), &["inputs.image.energy"]);
    says(&packed(&digits([0, 0]), 1.0, Some(500.0)).unwrap_err(), &["inputs.audio.noise_db"]);
}
