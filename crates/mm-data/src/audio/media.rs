//! Decodes FLAC, MP3, AAC (also in MP4) and Ogg Vorbis, with the crate symphonia.
//!
//! Shapes: a file of C channels with T samples each becomes T samples; what an encoder put before and behind the sound
//! is taken away in MP3 and Ogg.
//!
//! Setting: the channel, or the mean of all. Of several tracks the default one is read.
//!
//! Differences: libsndfile and ffmpeg go on after a packet that cannot be decoded, and stop where a file is cut short;
//! here that is an error, the second where the format says how long the sound is, as FLAC does. The edit list of MP4 is
//! not applied: what the encoder put before the sound, mostly 1024 samples, stays there, where ffmpeg takes it away.
//! Opus is not decoded.
//!
//! Source: the formats' own definitions, as symphonia 0.6 implements them.

use super::wav::{self, Clip, MAX_SAMPLES};
use crate::DataError;
use std::fs::File;
use std::io::{BufReader, Seek};
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

const CONVERT: &str = "convert it with `ffmpeg -i IN -c:a pcm_s16le OUT.wav`, or fetch it again";

/// Reads the whole file, whatever was read of it before.
pub(super) fn decode(reader: BufReader<File>, name: &str, channel: Option<usize>) -> Result<Clip, DataError> {
    let mut file = reader.into_inner();
    file.rewind().map_err(|source| DataError::Io { file: name.to_owned(), source })?;
    let clip = sound(file, channel).map_err(|rule| DataError::invalid(name, rule, CONVERT))?;
    wav::check(&clip).map_err(|(rule, remedy)| DataError::invalid(name, rule, remedy))?;
    Ok(clip)
}

fn sound(file: File, channel: Option<usize>) -> Result<Clip, String> {
    let undecodable = |error: Error| format!("the sound cannot be decoded ({error})");
    let stream = MediaSourceStream::new(Box::new(file), MediaSourceStreamOptions::default());
    let (formats, metadata) = (FormatOptions::default(), MetadataOptions::default());
    let probe = symphonia::default::get_probe();
    let mut format = probe.probe(&Hint::new(), stream, formats, metadata).map_err(undecodable)?;
    let track = format.default_track(TrackType::Audio).ok_or("there is no sound in the file")?;
    let codec = track.codec_params.as_ref().and_then(CodecParameters::audio);
    let codec = codec.ok_or("the sound is of an unknown kind")?;
    let codecs = symphonia::default::get_codecs();
    let mut decoder =
        codecs.make_audio_decoder(codec, &AudioDecoderOptions::default()).map_err(undecodable)?;
    // Only FLAC counts its samples; what other formats say may be an estimate.
    let announced = track.num_frames.filter(|_| format.format_info().short_name == "flac");
    let id = track.id;
    let (mut samples, mut known, mut values) = (Vec::new(), None, Vec::<f32>::new());
    while let Some(packet) = format.next_packet().map_err(undecodable)? {
        if packet.track_id != id {
            continue;
        }
        let buffer = decoder.decode(&packet).map_err(undecodable)?;
        let now = (buffer.spec().rate(), buffer.spec().channels().count());
        if *known.get_or_insert(now) != now {
            return Err("the sampling rate or the number of channels changes in the middle".to_owned());
        }
        let channels = now.1;
        if let Some(channel) = channel.filter(|&c| c >= channels) {
            return Err(format!(
                "channel {channel} was asked for, but there are {channels} (counted from 0)"
            ));
        }
        buffer.copy_to_vec_interleaved(&mut values);
        samples.extend(values.chunks_exact(channels.max(1)).map(|frame| match channel {
            Some(channel) => frame.get(channel).copied().unwrap_or(0.0),
            None => (frame.iter().copied().map(f64::from).sum::<f64>() / channels as f64) as f32,
        }));
        if samples.len() > MAX_SAMPLES {
            return Err(format!("there are more than the allowed {MAX_SAMPLES} samples"));
        }
    }
    if let Some(announced) = announced.filter(|&n| n > samples.len() as u64) {
        return Err(format!("the header announces {announced} samples, but {} follow", samples.len()));
    }
    Ok(Clip { samples, rate: known.map_or(0, |(rate, _)| rate) })
}
