//! Reads a WAV file into one channel of 32-bit samples, scaled as libsndfile (and with it librosa) scales them.
//!
//! ```text
//! 8 bits    x = (b - 128) / 128        16 bits  x = i / 2^15
//! 24 bits   x = i / 2^23               32 bits  x = i / 2^31        IEEE float of 32 or 64 bits: as it is
//! channels  x[t] = mean over channels of x[c, t], or one of them
//! ```
//!
//! Shapes: a file of C channels with T samples each becomes T samples.
//!
//! | setting | default | range |
//! |---|---|---|
//! | channel | the mean | or a channel from 0 |
//!
//! Plain PCM, IEEE float and `WAVE_FORMAT_EXTENSIBLE` with either are read. Samples of fewer bits than their
//! container are scaled by the container, because the format puts them at its upper end. Compressed WAV (A-law,
//! ADPCM) and RF64 are refused by name. A file is never believed before it is checked: the samples that its header
//! announces must be there, every value must be finite, and memory grows with what was read, to at most
//! [`MAX_SAMPLES`].
//!
//! Other formats (FLAC, MP3, AAC, Ogg) need the feature `media`; [`Clip::open`] looks at the content, not at the
//! name.
//!
//! Differences: libsndfile reads what is there when a file is cut short; here that is an error. There is no reader of
//! a crate behind this: the usual one refuses 32-bit PCM with a long header and odd chunks, both of which occur.
//!
//! Source: "Multimedia Programming Interface and Data Specifications 1.0" (IBM, Microsoft 1991) and Microsoft's
//! `WAVEFORMATEXTENSIBLE`.

use crate::{DataError, safe_file};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

/// The most samples (of one channel) that a clip may have: one GiB, some three hours at 24 kHz.
pub const MAX_SAMPLES: usize = 1 << 28;
/// The sampling rates that are believed, in Hz.
pub const RATES: std::ops::RangeInclusive<u32> = 100..=768_000;

/// Sound of one channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Clip {
    /// The samples, usually in [-1, 1].
    pub samples: Vec<f32>,
    /// Samples per second.
    pub rate: u32,
}

impl Clip {
    /// Reads a file; channels are averaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        Self::open_channel(path, None)
    }

    /// Reads a file: one of its channels (from 0), or their mean with `None`.
    pub fn open_channel(path: impl AsRef<Path>, channel: Option<usize>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let io = |source| DataError::Io { file: name.clone(), source };
        let file = safe_file::open(path)?;
        let length = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut head = Vec::new();
        reader.by_ref().take(64).read_to_end(&mut head).map_err(io)?;
        if head.starts_with(b"version https://git-lfs") {
            let rule = "the file is a git-LFS pointer, not the sound itself";
            return Err(DataError::invalid(&name, rule, "fetch it with `git lfs pull`"));
        }
        if !head.starts_with(b"RIFF") || head.get(8..12) != Some(b"WAVE") {
            return other(reader, &name, &head, channel);
        }
        // Relative, so that what was read ahead stays.
        reader.seek_relative(12 - head.len() as i64).map_err(io)?;
        let mut wav = Wav { name: &name, reader, length, place: 12, at: 12 };
        let clip = wav.decode(channel)?;
        check(&clip).map_err(|(rule, remedy)| DataError::invalid(&name, rule, remedy))?;
        Ok(clip)
    }

    /// Writes a WAV file of one channel and 16 bits; samples outside [-1, 1] are clipped.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), DataError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        check(self).map_err(|(rule, remedy)| DataError::invalid(&name, rule, remedy))?;
        let io = |source| DataError::Io { file: name.clone(), source };
        let bytes = 2 * self.samples.len() as u32; // at most 2^29: `check` has bounded it
        let mut header = Vec::with_capacity(44);
        header.extend_from_slice(b"RIFF");
        header.extend_from_slice(&(36 + bytes).to_le_bytes());
        header.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
        header.extend_from_slice(&self.rate.to_le_bytes());
        header.extend_from_slice(&(2 * self.rate).to_le_bytes());
        header.extend_from_slice(b"\x02\0\x10\0data");
        header.extend_from_slice(&bytes.to_le_bytes());
        let mut file = BufWriter::new(File::create(path).map_err(io)?);
        file.write_all(&header).map_err(io)?;
        for &x in &self.samples {
            let sample = (f64::from(x) * 32768.0).round_ties_even().clamp(-32768.0, 32767.0) as i16;
            file.write_all(&sample.to_le_bytes()).map_err(io)?;
        }
        file.flush().map_err(io)
    }

    /// The length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(self.rate)
    }
}

/// What every clip must be, wherever it comes from: the broken rule and the remedy.
pub(super) fn check(clip: &Clip) -> Result<(), (String, &'static str)> {
    if !RATES.contains(&clip.rate) {
        let rule =
            format!("the sampling rate is {} Hz, allowed {} to {}", clip.rate, RATES.start(), RATES.end());
        return Err((rule, "the header is damaged, or this is not sound: make the file again"));
    }
    if clip.samples.is_empty() {
        return Err(("there is not a single sample".to_owned(), "take the clip out of the list"));
    }
    if clip.samples.len() > MAX_SAMPLES {
        let rule = format!("{} samples are more than the allowed {MAX_SAMPLES}", clip.samples.len());
        return Err((rule, "cut the recording into pieces"));
    }
    // Piece by piece without a way out of the middle, which can be done for many samples at once.
    let finite = |piece: &[f32]| piece.iter().fold(true, |all, x| all & x.is_finite());
    if !clip.samples.chunks(4096).all(finite)
        && let Some(place) = clip.samples.iter().position(|x| !x.is_finite())
    {
        let rule = format!("sample {place} is {}", clip.samples[place]);
        return Err((rule, "every sample must be a finite number: make the file again"));
    }
    Ok(())
}

/// How a file stores one sample of one channel.
#[derive(Debug, Clone, Copy)]
enum Coding {
    U8,
    I16,
    I24,
    I32,
    F32,
    F64,
}

impl Coding {
    fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 => 2,
            Self::I24 => 3,
            Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Appends one channel of whole frames, or their mean.
    fn append(self, bytes: &[u8], channels: usize, channel: Option<usize>, to: &mut Vec<f32>) {
        let take = (channels, channel);
        match self {
            Self::U8 => append(bytes, take, to, |[b]| (f64::from(b) - 128.0) / 128.0),
            Self::I16 => append(bytes, take, to, |b| f64::from(i16::from_le_bytes(b)) / 32_768.0),
            Self::I24 => append(bytes, take, to, |[a, b, c]| {
                f64::from(i32::from_le_bytes([0, a, b, c])) / 2_147_483_648.0
            }),
            Self::I32 => append(bytes, take, to, |b| f64::from(i32::from_le_bytes(b)) / 2_147_483_648.0),
            Self::F32 => append(bytes, take, to, |b| f64::from(f32::from_le_bytes(b))),
            Self::F64 => append(bytes, take, to, f64::from_le_bytes),
        }
    }
}

/// One loop for each way to read a number: what does not change within a file is not asked for at every sample.
fn append<const W: usize>(
    bytes: &[u8],
    (channels, channel): (usize, Option<usize>),
    to: &mut Vec<f32>,
    read: impl Fn([u8; W]) -> f64,
) {
    let (values, _) = bytes.as_chunks::<W>();
    match channel {
        _ if channels == 1 => to.extend(values.iter().map(|&b| read(b) as f32)),
        Some(channel) => {
            to.extend(values.iter().skip(channel).step_by(channels).map(|&b| read(b) as f32));
        }
        None => to.extend(values.chunks_exact(channels).map(|frame| {
            let sum: f64 = frame.iter().map(|&b| read(b)).sum();
            (sum / channels as f64) as f32
        })),
    }
}

#[derive(Debug)]
struct Format {
    coding: Coding,
    channels: usize,
    rate: u32,
}

/// A file that began as a WAV file does.
struct Wav<'a> {
    name: &'a str,
    reader: BufReader<File>,
    length: u64,
    /// Where the chunk begins that is looked at.
    place: u64,
    /// The next byte to read.
    at: u64,
}

impl Wav<'_> {
    fn fault<T>(&self, rule: impl Into<String>, remedy: &str) -> Result<T, DataError> {
        Err(DataError::invalid(self.name, rule, remedy))
    }

    fn decode(&mut self, channel: Option<usize>) -> Result<Clip, DataError> {
        let mut format = None;
        // A file of nothing but empty chunks would be walked for ever.
        for _ in 0..4096 {
            let left = self.length.saturating_sub(self.place);
            if left < 8 {
                return self.fault("there is no `data` chunk", "the file is truncated: fetch it again");
            }
            let head: [u8; 8] = self.bytes()?;
            let size = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
            let left = left - 8;
            match (&head[..4], &format) {
                (b"fmt ", _) => format = Some(self.format(size.min(left))?),
                (b"data", None) => {
                    return self.fault("the samples come before their `fmt ` chunk", "make the file again");
                }
                (b"data", Some(format)) => return self.samples(format, size, left, channel),
                _ => {}
            }
            if size > left {
                let chunk = String::from_utf8_lossy(&head[..4]).into_owned();
                let rule = format!("the chunk {chunk:?} claims {size} bytes, but only {left} follow");
                return self.fault(rule, "the file is truncated or damaged: fetch it again");
            }
            // Chunks begin at even places. Relative to what was read, so that what was read ahead stays.
            self.place += 8 + size + size % 2;
            let seek = self.reader.seek_relative(self.place as i64 - self.at as i64);
            seek.map_err(|source| DataError::Io { file: self.name.to_owned(), source })?;
            self.at = self.place;
        }
        self.fault("4096 chunks and none of them is `data`", "the file is damaged: make it again")
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], DataError> {
        let mut bytes = [0; N];
        let read = self.reader.read_exact(&mut bytes);
        read.map_err(|source| DataError::Io { file: self.name.to_owned(), source })?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn format(&mut self, size: u64) -> Result<Format, DataError> {
        const CONVERT: &str = "convert it with `ffmpeg -i IN -c:a pcm_s16le OUT.wav`";
        if size < 16 {
            return self.fault(format!("the `fmt ` chunk has {size} bytes, at least 16 are needed"), CONVERT);
        }
        let b: [u8; 16] = self.bytes()?;
        let short = |i: usize| u16::from_le_bytes([b[i], b[i + 1]]);
        let (mut tag, channels, align, bits) = (short(0), short(2), short(12), short(14));
        let rate = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        if tag == 0xfffe {
            if size < 40 {
                return self.fault("WAVE_FORMAT_EXTENSIBLE needs a `fmt ` chunk of 40 bytes", CONVERT);
            }
            let extension: [u8; 24] = self.bytes()?;
            if extension[10..] != *b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71" {
                return self.fault("the samples are of an unknown kind (SubFormat)", CONVERT);
            }
            tag = u16::from_le_bytes([extension[8], extension[9]]);
        }
        if channels == 0 || align == 0 || !align.is_multiple_of(channels) {
            let rule = format!("{channels} channels in {align} bytes cannot be");
            return self.fault(rule, "the header is damaged: make the file again");
        }
        if !RATES.contains(&rate) {
            let rule =
                format!("the sampling rate is {rate} Hz, allowed {} to {}", RATES.start(), RATES.end());
            return self.fault(rule, "the header is damaged: make the file again");
        }
        let bytes = align / channels;
        let coding = match (tag, bytes) {
            (1, 1) => Coding::U8,
            (1, 2) => Coding::I16,
            (1, 3) => Coding::I24,
            (1, 4) => Coding::I32,
            (3, 4) => Coding::F32,
            (3, 8) => Coding::F64,
            _ => {
                let rule = format!(
                    "samples of kind {tag} in {bytes} bytes are not read (PCM is 1, IEEE float is 3)"
                );
                return self.fault(rule, CONVERT);
            }
        };
        if bits == 0 || usize::from(bits) > 8 * coding.bytes() {
            let rule = format!("{bits} bits per sample do not fit into its {bytes} bytes");
            return self.fault(rule, "the header is damaged: make the file again");
        }
        Ok(Format { coding, channels: usize::from(channels), rate })
    }

    fn samples(
        &mut self,
        format: &Format,
        size: u64,
        left: u64,
        channel: Option<usize>,
    ) -> Result<Clip, DataError> {
        let (width, channels) = (format.coding.bytes(), format.channels);
        let frame = width * channels;
        if size > left {
            let rule = format!("the header announces {size} bytes of samples, but {left} follow");
            let remedy =
                "the file is truncated (fetch it again) or came out of a pipe (rewrite it with ffmpeg)";
            return self.fault(rule, remedy);
        }
        if !size.is_multiple_of(frame as u64) {
            let rule =
                format!("{size} bytes of samples are no multiple of {frame}, the bytes of all channels");
            return self.fault(rule, "the file is damaged: make it again");
        }
        let count = (size / frame as u64) as usize;
        if count > MAX_SAMPLES {
            let rule = format!("{count} samples are more than the allowed {MAX_SAMPLES}");
            return self.fault(rule, "cut the recording into pieces");
        }
        if let Some(channel) = channel
            && channel >= channels
        {
            let rule = format!("channel {channel} was asked for, but there are {channels} (counted from 0)");
            return self.fault(rule, "choose another `channel`, or leave it out for the mean");
        }
        let mut samples = Vec::with_capacity(count);
        let mut buffer = vec![0; frame * (65_536 / frame).max(1)];
        let mut open = count * frame;
        while open > 0 {
            let now = open.min(buffer.len());
            let read = self.reader.read_exact(&mut buffer[..now]);
            read.map_err(|source| DataError::Io { file: self.name.to_owned(), source })?;
            format.coding.append(&buffer[..now], channels, channel, &mut samples);
            open -= now;
        }
        Ok(Clip { samples, rate: format.rate })
    }
}

/// A file that is not WAV: its kind by its first bytes.
fn kind(head: &[u8]) -> Option<&'static str> {
    Some(match head {
        [b'f', b'L', b'a', b'C', ..] => "FLAC",
        [b'O', b'g', b'g', b'S', ..] => "Ogg",
        [b'I', b'D', b'3', ..] => "MP3",
        [0xff, second, ..] if second & 0xf6 == 0xf0 => "AAC",
        [0xff, second, ..] if second & 0xe0 == 0xe0 => "MP3",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "MP4",
        [0x1a, 0x45, 0xdf, 0xa3, ..] => "Matroska or WebM",
        _ => return None,
    })
}

#[cfg(feature = "media")]
fn other(
    reader: BufReader<File>,
    name: &str,
    head: &[u8],
    channel: Option<usize>,
) -> Result<Clip, DataError> {
    if kind(head).is_none() {
        return Err(unknown(name, head));
    }
    super::media::decode(reader, name, channel)
}

#[cfg(not(feature = "media"))]
fn other(_: BufReader<File>, name: &str, head: &[u8], _: Option<usize>) -> Result<Clip, DataError> {
    let Some(kind) = kind(head) else { return Err(unknown(name, head)) };
    let rule = format!("the file is {kind}, and this program was built without the feature `media`");
    Err(DataError::invalid(
        name,
        rule,
        "build with `--features media`, or convert it with `ffmpeg -i IN OUT.wav`",
    ))
}

fn unknown(name: &str, head: &[u8]) -> DataError {
    let rule = match head {
        [] => "the file is empty".to_owned(),
        [b'R', b'F', b'6', b'4', ..] | [b'B', b'W', b'6', b'4', ..] => "RF64 is not read".to_owned(),
        _ => "the content is no sound file that is known".to_owned(),
    };
    DataError::invalid(
        name,
        rule,
        "give a WAV file, or convert it with `ffmpeg -i IN -c:a pcm_s16le OUT.wav`",
    )
}
