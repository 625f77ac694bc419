//! Front-ends, resampling and files against librosa, SciPy, torchaudio, transformers and libsndfile.

use mm_data::audio::resample::{Method, Resampler};
use mm_data::audio::{Clip, FrontEnd};
use mm_testkit::Golden;
use serde_json::Value;

/// Of the largest number; the fixture is in single precision, whose rounding is 6e-8.
const TOLERANCE: f64 = 2e-7;

fn floats(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// The largest difference relative to the largest number, after the comparison.
#[track_caller]
fn compare(golden: &Golden, key: &str, actual: &[f64]) -> f64 {
    golden.compare(key, actual, TOLERANCE);
    let expected = golden.values(key);
    let scale = expected.iter().fold(1e-6_f64, |s, v| s.max(v.abs()));
    actual.iter().zip(&expected).fold(0.0_f64, |worst, (a, e)| worst.max((a - e).abs() / scale))
}

/// The rest of the file, so that every test may finish.
fn finish(golden: Golden, used: &str) {
    for part in ["signal", "case.", "resample.", "soxr.", "wav.", "media."] {
        if part != used {
            golden.skip(part, "another test compares it");
        }
    }
    golden.finish();
}

#[test]
fn every_front_end_equals_its_library() {
    let golden = Golden::open("audio");
    let signal: Vec<f32> = golden.values("signal").iter().map(|&x| x as f32).collect();
    let cases: serde_json::Map<String, Value> =
        serde_json::from_str(golden.metadata("cases").unwrap()).unwrap();
    assert_eq!(cases.len(), golden.keys_with("case.").count());
    for (name, case) in &cases {
        let number = |value: &Value| value.as_i64().unwrap();
        let pair = |key: &str| [0, 1].map(|i| number(&case[key][i]) as usize);
        let front_end: FrontEnd = serde_json::from_value(case["settings"].clone()).unwrap();
        let count = number(&case["samples"]);
        let samples = if count > 0 { signal[..count as usize].to_vec() } else { vec![0.0; -count as usize] };
        let rate = number(&case["rate"]) as u32;
        let shape = front_end.shape(samples.len(), rate).unwrap();
        let frames = front_end.apply(&Clip { samples, rate }).unwrap();
        assert_eq!((frames.shape, shape), (pair("shape"), pair("shape")), "{name}");
        let [rows, columns] = pair("stride");
        let actual: Vec<f64> = frames
            .values
            .chunks(shape[1])
            .step_by(rows)
            .flat_map(|row| row.iter().step_by(columns).map(|&v| f64::from(v)))
            .collect();
        let worst = compare(&golden, &format!("case.{name}"), &actual);
        println!("{name}: {worst:.1e}");
    }
    finish(golden, "case.");
}

/// A name stands for the settings that the fixture spells out.
#[test]
fn names_are_the_settings_of_the_fixture() {
    let golden = Golden::open("audio");
    let cases: Value = serde_json::from_str(golden.metadata("cases").unwrap()).unwrap();
    for name in FrontEnd::NAMES.iter().filter(|name| !["stft", "psd"].contains(name)) {
        let spelled: FrontEnd = serde_json::from_value(cases[name]["settings"].clone()).unwrap();
        assert_eq!(FrontEnd::named(name).unwrap(), spelled, "{name}");
    }
}

#[test]
fn resampling_equals_torchaudio_and_scipy() {
    let golden = Golden::open("audio");
    let signal: Vec<f32> = golden.values("signal").iter().map(|&x| x as f32).collect();
    let mut worst: f64 = 0.0;
    for key in golden.keys_with("resample.") {
        let parts: Vec<&str> = key.split('.').collect();
        let method: Method = serde_json::from_value(Value::String(parts[1].to_owned())).unwrap();
        let number = |i: usize| parts[i].parse::<u32>().unwrap();
        let resampler = Resampler::new(method, number(2), number(3)).unwrap();
        let samples = &signal[..number(4) as usize];
        let actual = resampler.apply(samples).unwrap();
        assert_eq!(actual.len(), resampler.length(samples.len()));
        worst = worst.max(compare(&golden, key, &floats(&actual)));
    }
    println!("resampling: {worst:.1e}");
    finish(golden, "resample.");
}

/// The constants of `soxr-like` are fitted: the difference is not rounding. It is largest at the ends of short clips.
#[test]
fn soxr_like_is_nearly_what_librosa_does_by_default() {
    let golden = Golden::open("audio");
    let signal: Vec<f32> = golden.values("signal").iter().map(|&x| x as f32).collect();
    for key in golden.keys_with("soxr.") {
        let numbers: Vec<u32> = key.split('.').skip(1).map(|n| n.parse().unwrap()).collect();
        let resampler = Resampler::new(Method::SoxrLike, numbers[0], numbers[1]).unwrap();
        let mut actual = floats(&resampler.apply(&signal[..numbers[2] as usize]).unwrap());
        let mut expected = golden.values(key);
        assert_eq!(actual.len(), expected.len());
        // librosa puts a zero behind what soxr gave, where that is one sample short.
        actual.pop();
        expected.pop();
        let scale = expected.iter().fold(0.0_f64, |s, v| s.max(v.abs()));
        let gaps = || actual.iter().zip(&expected).map(|(a, e)| (a - e).abs() / scale);
        let mean = gaps().sum::<f64>() / expected.len() as f64;
        println!("{key}: largest {:.1e}, mean {mean:.1e}", gaps().fold(0.0, f64::max));
        assert!(mean < 1e-4, "{key}: {mean}");
        mm_testkit::close::difference(&actual, &expected, 1e-2).unwrap();
    }
    finish(golden, "soxr.");
}

/// Writes the bytes of a file and reads them back, channel by channel and as the mean, without the first `skip` samples.
fn read_back(golden: &Golden, folder: &tempfile::TempDir, name: &str, skip: usize, tolerance: f64) {
    let bytes: Vec<u8> = golden.values(&format!("{name}.bytes")).iter().map(|&b| b as u8).collect();
    let path = folder.path().join("no.ending");
    std::fs::write(&path, bytes).unwrap();
    let key = format!("{name}.samples");
    let expected = golden.values(&key);
    let samples = |channel| Clip::open_channel(&path, channel).unwrap().samples.split_off(skip);
    let (left, right) = (samples(Some(0)), samples(Some(1)));
    let both: Vec<f64> = left.iter().zip(&right).flat_map(|(&l, &r)| [f64::from(l), f64::from(r)]).collect();
    assert_eq!(both.len(), expected.len(), "{name}");
    golden.compare(&key, &both, tolerance);
    let mean: Vec<f64> = expected.chunks(2).map(|pair| f64::midpoint(pair[0], pair[1])).collect();
    mm_testkit::close::difference(&floats(&samples(None)), &mean, tolerance.max(1e-7)).unwrap();
}

#[test]
fn wav_files_are_read_as_libsndfile_reads_them() {
    let (golden, folder) = (Golden::open("audio"), tempfile::tempdir().unwrap());
    let names: Vec<String> =
        golden.keys_with("wav.").filter_map(|k| k.strip_suffix(".bytes")).map(str::to_owned).collect();
    assert_eq!(names.len(), 13);
    for name in names.iter().filter(|name| *name != "wav.ulaw") {
        read_back(&golden, &folder, name, 0, 0.0);
    }
    let path = folder.path().join("ulaw.wav");
    let bytes: Vec<u8> = golden.values("wav.ulaw.bytes").iter().map(|&b| b as u8).collect();
    std::fs::write(&path, bytes).unwrap();
    crate::support::says(
        &Clip::open(&path).unwrap_err(),
        &["ulaw.wav", "samples of kind 7 in 1 bytes are not read", "ffmpeg -i IN -c:a pcm_s16le OUT.wav"],
    );
    golden.skip("wav.ulaw.samples", "it is refused");
    finish(golden, "wav.");
}

#[cfg(feature = "media")]
#[test]
fn compressed_files_are_read_as_libsndfile_and_ffmpeg_read_them() {
    let (golden, folder) = (Golden::open("audio"), tempfile::tempdir().unwrap());
    read_back(&golden, &folder, "media.flac", 0, 0.0);
    read_back(&golden, &folder, "media.ogg", 0, 1e-5);
    read_back(&golden, &folder, "media.mp3", 0, 1e-4);
    read_back(&golden, &folder, "media.aac", 0, 1e-4);
    read_back(&golden, &folder, "media.m4a", 1024, 1e-4);
    finish(golden, "media.");
}

/// Cut anywhere, or with any byte changed, a file is an error or less sound, but never a panic.
#[cfg(feature = "media")]
#[test]
fn damaged_compressed_files_do_not_panic() {
    let (golden, folder) = (Golden::open("audio"), tempfile::tempdir().unwrap());
    let path = folder.path().join("bad");
    for name in ["flac", "ogg", "mp3", "aac", "m4a"] {
        let bytes: Vec<u8> = golden.values(&format!("media.{name}.bytes")).iter().map(|&b| b as u8).collect();
        for place in (0..bytes.len()).step_by(bytes.len() / 40) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x5a;
            for damaged in [&damaged[..], &bytes[..place]] {
                std::fs::write(&path, damaged).unwrap();
                let read = Clip::open(&path);
                assert!(read.is_err() || read.unwrap().samples.len() < 20_000, "{name} at {place}");
            }
        }
        if name == "flac" {
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            let error = Clip::open(&path).unwrap_err();
            assert!(error.to_string().contains("ffmpeg -i IN -c:a pcm_s16le OUT.wav"), "{error}");
        }
    }
}

#[cfg(not(feature = "media"))]
#[test]
fn compressed_files_say_what_is_missing() {
    let (golden, folder) = (Golden::open("audio"), tempfile::tempdir().unwrap());
    for (name, kind) in [("flac", "FLAC"), ("ogg", "Ogg"), ("mp3", "MP3"), ("aac", "AAC"), ("m4a", "MP4")] {
        let bytes: Vec<u8> = golden.values(&format!("media.{name}.bytes")).iter().map(|&b| b as u8).collect();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let rule = format!("the file is {kind}, and this program was built without the feature `media`");
        crate::support::says(&Clip::open(&path).unwrap_err(), &[&rule, "--features media"]);
    }
}
