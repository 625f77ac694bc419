//! WAV files: what is written is read again, what lies is refused.

use crate::support::says;
use mm_data::DataError;
use mm_data::audio::wav::MAX_SAMPLES;
use mm_data::audio::{Clip, FrontEnd};
use proptest::prelude::*;
use std::path::PathBuf;

/// A file from its chunks.
fn riff(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WAVE".to_vec();
    for (name, bytes) in chunks {
        body.extend_from_slice(*name);
        body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        body.extend_from_slice(bytes);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    let mut file = b"RIFF".to_vec();
    file.extend_from_slice(&(body.len() as u32).to_le_bytes());
    file.extend(body);
    file
}

/// A `fmt ` chunk of 16 bytes.
fn format(tag: u16, channels: u16, rate: u32, bytes: u16, bits: u16) -> Vec<u8> {
    let align = channels.wrapping_mul(bytes);
    let mut chunk = Vec::new();
    chunk.extend_from_slice(&tag.to_le_bytes());
    chunk.extend_from_slice(&channels.to_le_bytes());
    chunk.extend_from_slice(&rate.to_le_bytes());
    chunk.extend_from_slice(&rate.wrapping_mul(u32::from(align)).to_le_bytes());
    chunk.extend_from_slice(&align.to_le_bytes());
    chunk.extend_from_slice(&bits.to_le_bytes());
    chunk
}

fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.wav");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn open(bytes: &[u8]) -> Result<Clip, DataError> {
    let (_folder, path) = file(bytes);
    Clip::open(path)
}

#[track_caller]
fn refused(bytes: &[u8], pieces: &[&str]) {
    let error = open(bytes).unwrap_err();
    says(&error, &["bad.wav"]);
    says(&error, pieces);
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.wav");
    let samples: Vec<f32> = (-32_768..=32_767).step_by(7).map(|i: i32| i as f32 / 32_768.0).collect();
    let clip = Clip { samples, rate: 22_050 };
    clip.write(&path).unwrap();
    assert_eq!(Clip::open(&path).unwrap(), clip);
    assert_eq!(clip.seconds(), 9363.0 / 22_050.0);
    let loud = Clip { samples: vec![-7.0, 1.0, 7.0], rate: 8000 };
    loud.write(&path).unwrap();
    assert_eq!(Clip::open(&path).unwrap().samples, [-1.0, 32_767.0 / 32_768.0, 32_767.0 / 32_768.0]);
    for (bad, rule) in [
        (Clip { samples: vec![], rate: 8000 }, "not a single sample"),
        (Clip { samples: vec![0.0, f32::NAN], rate: 8000 }, "sample 1 is NaN"),
        (Clip { samples: vec![0.0], rate: 0 }, "the sampling rate is 0 Hz, allowed 100 to 768000"),
    ] {
        says(&bad.write(&path).unwrap_err(), &[rule]);
        says(&FrontEnd::named("stft").unwrap().apply(&bad).unwrap_err(), &["clip: ", rule]);
    }
}

#[test]
fn odd_chunks_long_headers_and_what_follows_the_samples_are_passed_over() {
    let mut long = format(1, 1, 8000, 4, 32);
    long.extend_from_slice(&[0, 0]); // WAVEFORMATEX without an extension
    let data: Vec<u8> = [1 << 30, i32::MIN].iter().flat_map(|i: &i32| i.to_le_bytes()).collect();
    let clip = open(&riff(&[
        (b"LIST", b"odd"),
        (b"fmt ", &long),
        (b"fact", b"1234"),
        (b"data", &data),
        (b"id3 ", b"x"),
    ]));
    assert_eq!(clip.unwrap(), Clip { samples: vec![0.5, -1.0], rate: 8000 });
    // 20 bits in three bytes lie at their upper end.
    let twenty = open(&riff(&[(b"fmt ", &format(1, 1, 8000, 3, 20)), (b"data", &[0, 0, 0x40])]));
    assert_eq!(twenty.unwrap().samples, [0.5]);
}

#[test]
fn a_channel_can_be_chosen() {
    let data: Vec<u8> = [16_384i16, -8192, 0, 32_767].iter().flat_map(|i| i.to_le_bytes()).collect();
    let (_folder, path) = file(&riff(&[(b"fmt ", &format(1, 2, 8000, 2, 16)), (b"data", &data)]));
    assert_eq!(Clip::open(&path).unwrap().samples, [0.125, 32_767.0 / 65_536.0]);
    assert_eq!(Clip::open_channel(&path, Some(0)).unwrap().samples, [0.5, 0.0]);
    assert_eq!(Clip::open_channel(&path, Some(1)).unwrap().samples, [-0.25, 32_767.0 / 32_768.0]);
    let error = Clip::open_channel(&path, Some(2)).unwrap_err();
    says(&error, &["channel 2 was asked for, but there are 2 (counted from 0)", "choose another `channel`"]);
    let planned = FrontEnd::named("ucf-stft").unwrap().plan().unwrap();
    assert_eq!(planned.open(&path).unwrap().shape, [257, 136]);
}

#[test]
fn other_files_say_what_they_are() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n";
    refused(pointer, &["is a git-LFS pointer, not the sound itself; fetch it with `git lfs pull`"]);
    refused(b"", &["the file is empty"]);
    refused(b"hello, this is text", &["no sound file that is known", "ffmpeg"]);
    refused(b"RF64....WAVE", &["RF64 is not read"]);
    refused(b"RIFF....AVI LIST", &["no sound file that is known"]);
    let folder = tempfile::tempdir().unwrap();
    says(&Clip::open(folder.path()).unwrap_err(), &["not a regular file"]);
    says(&Clip::open(folder.path().join("none.wav")).unwrap_err(), &["cannot read", "none.wav"]);
}

#[test]
fn headers_that_lie_are_refused() {
    let data: &[u8] = &[0; 8];
    let of = |chunk: &[u8]| riff(&[(b"fmt ", chunk), (b"data", data)]);
    refused(&of(&format(1, 0, 8000, 2, 16)), &["0 channels in 0 bytes cannot be"]);
    refused(&of(&format(1, 1, 0, 2, 16)), &["the sampling rate is 0 Hz"]);
    refused(&of(&format(1, 1, u32::MAX, 2, 16)), &["the sampling rate is 4294967295 Hz"]);
    refused(&of(&format(1, 1, 8000, 5, 40)), &["samples of kind 1 in 5 bytes are not read"]);
    refused(&of(&format(2, 1, 8000, 1, 4)), &["samples of kind 2"]);
    refused(&of(&format(1, 1, 8000, 2, 0)), &["0 bits per sample do not fit"]);
    refused(&of(&format(1, 1, 8000, 2, 17)), &["17 bits per sample do not fit into its 2 bytes"]);
    refused(&of(&format(1, 3, 8000, 2, 16)), &["8 bytes of samples are no multiple of 6"]);
    refused(&of(&format(1, 1, 8000, 2, 16)[..14]), &["the `fmt ` chunk has 14 bytes"]);
    refused(
        &of(&format(0xfffe, 1, 8000, 2, 16)),
        &["WAVE_FORMAT_EXTENSIBLE needs a `fmt ` chunk of 40 bytes"],
    );
    let mut strange = format(0xfffe, 1, 8000, 2, 16);
    strange.resize(40, 9);
    refused(&of(&strange), &["unknown kind (SubFormat)"]);
    refused(&riff(&[(b"data", data)]), &["the samples come before their `fmt ` chunk"]);
    refused(&riff(&[(b"fmt ", &format(1, 1, 8000, 2, 16))]), &["there is no `data` chunk"]);
    refused(&riff(&[(b"fmt ", &format(1, 1, 8000, 2, 16)), (b"data", b"")]), &["not a single sample"]);
    refused(&riff(&[(b"none", b"".as_slice()); 5000]), &["4096 chunks and none of them is `data`"]);
    let infinite: Vec<u8> = [0.5, f32::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    refused(&riff(&[(b"fmt ", &format(3, 1, 8000, 4, 32)), (b"data", &infinite)]), &["sample 1 is inf"]);
    // Four gigabytes announced, eight bytes there: a file that was written to a pipe.
    let mut pipe = of(&format(1, 1, 8000, 2, 16));
    let place = pipe.len() - 12;
    pipe[place..place + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(&pipe, &["announces 4294967295 bytes of samples, but 8 follow", "rewrite it with ffmpeg"]);
    assert!(MAX_SAMPLES > 0);
}

#[test]
fn truncation_at_every_length_is_noticed() {
    let whole = riff(&[(b"LIST", b"odd"), (b"fmt ", &format(1, 2, 8000, 2, 16)), (b"data", &[7; 40])]);
    assert_eq!(open(&whole).unwrap().samples.len(), 10);
    for length in 0..whole.len() {
        says(&open(&whole[..length]).unwrap_err(), &["bad.wav"]);
    }
}

proptest! {
    #[test]
    fn no_file_panics(place in 0usize..60, byte in any::<u8>(), cut in 20usize..100) {
        let mut bytes = riff(&[(b"fmt ", &format(1, 2, 8000, 2, 16)), (b"data", &[7; 40])]);
        let last = bytes.len() - 1;
        bytes[place.min(last)] = byte;
        bytes.truncate(cut);
        if let Ok(clip) = open(&bytes) {
            prop_assert!(!clip.samples.is_empty() && clip.samples.len() <= 40);
        }
    }
}
