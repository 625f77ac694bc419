//! Settings of front-ends: defaults, names, ranges, and what a plan promises.

use crate::support::says;
use mm_data::audio::{Clip, FrontEnd};
use serde_json::{Value, json};

fn front_end(settings: Value) -> Result<FrontEnd, String> {
    serde_json::from_value::<FrontEnd>(settings).map_err(|e| e.to_string())
}

fn clip(samples: usize, rate: u32) -> Clip {
    Clip { samples: (0..samples).map(|t| (t as f32 * 0.11).sin() * 0.6).collect(), rate }
}

#[test]
fn every_name_is_checked_planned_and_written_in_full() {
    for name in FrontEnd::NAMES {
        let named = FrontEnd::named(name).unwrap();
        named.check().unwrap();
        assert_eq!(named.version(), 1);
        let written = serde_json::to_value(&named).unwrap();
        assert_eq!(front_end(written.clone()).unwrap(), named, "{name}");
        assert_eq!(front_end(json!({ "kind": name })).unwrap(), named, "{name}");
        let kind = written["kind"].as_str().unwrap();
        assert!(FrontEnd::NAMES[..6].contains(&kind), "{name} is written as {kind}");
        let frames = named.apply(&clip(24_000, 16_000)).unwrap();
        assert_eq!(frames.shape, named.shape(24_000, 16_000).unwrap(), "{name}");
        assert_eq!(frames.values.len(), frames.shape[0] * frames.shape[1], "{name}");
    }
}

#[test]
fn the_shapes_of_the_published_recipes() {
    let shape = |name| FrontEnd::named(name).unwrap().shape(40_001, 16_000).unwrap();
    assert_eq!(shape("ogm-stft"), [257, 188]);
    assert_eq!(shape("lfm-stft"), [257, 1250]);
    assert_eq!(shape("ucf-stft"), [257, 136]);
    assert_eq!(shape("vggsound-stft"), [129, 626]);
    assert_eq!(shape("scipy-psd"), [257, 1004]);
    assert_eq!(shape("pmr-psd"), [257, 1004]);
    assert_eq!(shape("mla-fbank"), [1024, 128]);
    assert_eq!(shape("log-mel"), [251, 80]);
    assert_eq!(shape("waveform"), [40_001, 1]);
}

#[test]
fn a_setting_changes_the_recipe_and_nothing_else() {
    let short = front_end(json!({ "kind": "ogm-stft", "input": { "samples": 22_050 } })).unwrap();
    assert_eq!(short.shape(9000, 22_050).unwrap(), [257, 63]);
    assert_eq!(short.input().rate, 22_050);
    assert!(short.input().clamp);
    let plain = front_end(json!({ "kind": "bb-fbank", "output": { "norm": { "kind": "none" } } })).unwrap();
    assert_eq!(serde_json::to_value(&plain).unwrap()["output"]["norm"], json!({ "kind": "none" }));
    let mfcc = front_end(json!({ "kind": "mfcc", "mel": { "hop": 256 } })).unwrap();
    let mel = &serde_json::to_value(&mfcc).unwrap()["mel"];
    assert_eq!(
        (&mel["hop"], &mel["n_fft"], &mel["input"]["rate"]),
        (&json!(256), &json!(2048), &json!(22_050))
    );
}

#[test]
fn slips_are_named() {
    let of = |settings| front_end(settings).unwrap_err();
    says(
        &of(json!({ "kind": "ogm_stft" })),
        &["kind", "\"ogm_stft\"", "allowed: stft, psd", "did you mean `ogm-stft`?"],
    );
    says(&of(json!({ "hop": 3 })), &["missing field `kind`"]);
    says(&of(json!({ "kind": 3 })), &["`kind` must be a name"]);
    says(&of(json!({ "kind": "stft", "hops": 3 })), &["unknown field `hops`"]);
    says(&of(json!({ "kind": "stft", "input": { "sample": 3 } })), &["unknown field `sample`"]);
    says(&of(json!({ "kind": "stft", "scale": { "kind": "ln", "top": 3 } })), &["unknown field `top`"]);
    says(&of(json!({ "kind": "stft", "hop": -3 })), &["invalid value", "-3"]);
}

#[test]
fn every_range_is_checked() {
    for (settings, pieces) in [
        (json!({ "kind": "stft", "version": 2 }), ["version", "must be 1"]),
        (json!({ "kind": "stft", "n_fft": 1 }), ["n_fft", "[2, 65536]"]),
        (json!({ "kind": "stft", "n_fft": 70_000 }), ["n_fft", "[2, 65536]"]),
        (json!({ "kind": "stft", "window": 513 }), ["window", "[1, 512]"]),
        (json!({ "kind": "stft", "hop": 0 }), ["hop", "[1, 65536]"]),
        (json!({ "kind": "stft", "scale": { "kind": "ln", "eps": 0.0 } }), ["scale.eps", "0"]),
        (
            json!({ "kind": "stft", "scale": { "kind": "db", "floor": 1e-10, "top": 80 } }),
            ["scale.kind", "spectrum = \"power\""],
        ),
        (json!({ "kind": "stft", "input": { "rate": 0 } }), ["input.rate", "[100, 768000]"]),
        (json!({ "kind": "stft", "input": { "samples": 0 } }), ["input.samples", "[1, 268435456]"]),
        (
            json!({ "kind": "stft", "output": { "norm": { "kind": "constant", "mean": 0, "std": 0 } } }),
            ["output.norm.std", "above 0"],
        ),
        (json!({ "kind": "psd", "overlap": 512 }), ["overlap", "[0, 511]"]),
        (json!({ "kind": "psd", "taper": 1.5 }), ["taper", "[0, 1]"]),
        (json!({ "kind": "psd", "segment": 0 }), ["segment", "[2, 65536]"]),
        (json!({ "kind": "log-mel", "bins": 0 }), ["bins", "[1, 1024]"]),
        (json!({ "kind": "log-mel", "bins": 400 }), ["bins", "leaves filter 0 without any frequency"]),
        (json!({ "kind": "log-mel", "high": 8001.0 }), ["high", "8000"]),
        (json!({ "kind": "log-mel", "low": 5000.0, "high": 4000.0 }), ["low", "below `high`, which is 4000"]),
        (json!({ "kind": "log-mel", "low": 8000.0 }), ["low", "below `high`, which is 8000"]),
        (json!({ "kind": "kaldi-fbank", "low": 4000.0, "high": 4000.0 }), ["low", "below `high`"]),
        (
            json!({ "kind": "kaldi-fbank", "shift": 1.0, "input": { "rate": 100 }, "length": 30.0, "low": 0.0 }),
            ["shift", "[10, 1000]"],
        ),
        (json!({ "kind": "kaldi-fbank", "bins": 3 }), ["bins", "[4, 1024]"]),
        (json!({ "kind": "kaldi-fbank", "shift": 0.0 }), ["shift", "[1, 1000]"]),
        (
            json!({ "kind": "kaldi-fbank", "length": 1000.0, "input": { "rate": 768_000 } }),
            ["length", "85.3"],
        ),
        (json!({ "kind": "kaldi-fbank", "preemphasis": -0.1 }), ["preemphasis", "[0, 1]"]),
        (json!({ "kind": "kaldi-fbank", "frames": 0 }), ["frames", "[1, 65536]"]),
        (json!({ "kind": "mfcc", "coefficients": 129 }), ["coefficients", "[1, 128]"]),
        (json!({ "kind": "mfcc", "mel": { "hop": 0 } }), ["mel.hop", "[1, 65536]"]),
        (
            json!({ "kind": "mfcc", "mel": { "output": { "norm": { "kind": "clip" } } } }),
            ["mel.output", "must be left out"],
        ),
        (json!({ "kind": "waveform", "version": 0 }), ["version", "must be 1"]),
    ] {
        let wrong = front_end(settings.clone()).unwrap();
        let error = wrong.check().unwrap_err();
        says(&error, &pieces);
        assert_eq!(wrong.plan().unwrap_err().to_string(), error.to_string(), "{settings}");
    }
}

#[test]
fn clips_that_do_not_fit_are_refused_before_memory_is_taken() {
    let of = |settings: Value, samples, rate| {
        front_end(settings).unwrap().apply(&clip(samples, rate)).unwrap_err()
    };
    let psd = json!({ "kind": "psd" });
    says(
        &of(psd.clone(), 511, 16_000),
        &["clip: 511 samples are too few for one segment of 512", "input.samples"],
    );
    says(&front_end(psd).unwrap().shape(0, 16_000).unwrap_err(), &["not a single sample"]);
    says(
        &of(json!({ "kind": "kaldi-fbank" }), 399, 16_000),
        &["399 samples are too few for one frame of 400"],
    );
    let huge = json!({ "kind": "stft", "n_fft": 65_536, "hop": 1, "input": { "samples": 1_000_000 } });
    says(&of(huge, 10, 22_050), &["1000001 x 32769 numbers are more than the allowed 268435456"]);
    says(
        &of(json!({ "kind": "waveform" }), 10, 767_999),
        &["16000 filters of", "convert the file to a common rate first"],
    );
    let slow = json!({ "kind": "waveform", "input": { "rate": 768_000 } });
    says(&of(slow, 40_000, 100), &["307200000 samples at the new rate are more than"]);
}

#[test]
fn silence_and_one_sample_are_finite() {
    for name in FrontEnd::NAMES {
        let front_end = FrontEnd::named(name).unwrap();
        let least = if ["psd", "kaldi-fbank", "mla-fbank", "bb-fbank"].contains(&name) { 800 } else { 1 };
        for value in [0.0, 1.0, -3e38] {
            let frames =
                front_end.apply(&Clip { samples: vec![value; least], rate: front_end.input().rate }).unwrap();
            let bad = frames.values.iter().filter(|v| !v.is_finite()).count();
            assert_eq!(bad, 0, "{name} of {value}");
        }
    }
}

#[test]
fn a_plan_gives_the_same_bits_whatever_it_met_before() {
    let planned = FrontEnd::named("ogm-stft").unwrap().plan().unwrap();
    let first = planned.apply(&clip(8000, 16_000)).unwrap();
    for rate in (1000..2700).step_by(100) {
        planned.apply(&clip(100, rate)).unwrap(); // more rates than banks are kept
    }
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(planned.apply(&clip(8000, 16_000)).unwrap(), first));
        }
    });
    let turned = first.transposed();
    assert_eq!(turned.shape, [188, 257]);
    assert_eq!(turned.values[3 * 257 + 5], first.values[5 * 188 + 3]);
    assert_eq!(turned.transposed(), first);
}
