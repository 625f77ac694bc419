//! Any bytes as a WAV file: they are refused with a message, or become samples that the bytes account for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mm_data::audio::Clip;
use mm_fuzz::{FOLDER, readable};

fuzz_target!(|data: &[u8]| {
    let path = FOLDER.path().join("clip.wav");
    std::fs::write(&path, data).expect("the folder takes files");
    let mean = Clip::open(&path);
    let first = Clip::open_channel(&path, Some(0));
    match (&mean, &first) {
        (Ok(mean), Ok(first)) => {
            assert_eq!((mean.rate, mean.samples.len()), (first.rate, first.samples.len()));
        }
        // Finite channels may have a mean that is none: only then the two may differ.
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => {
            assert!(error.to_string().contains("every sample must be a finite number"), "{error}");
        }
        (Err(_), Err(_)) => {}
    }
    for clip in [mean, first] {
        match clip {
            Ok(clip) => {
                assert!(!clip.samples.is_empty() && clip.samples.len() <= data.len());
                assert!(clip.samples.iter().all(|x| x.is_finite()) && clip.seconds() > 0.0);
            }
            Err(error) => readable(&error),
        }
    }
});
