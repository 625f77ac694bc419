//! JPEG and PNG from strangers: the size is checked before it is allocated, and a file that ends too early is no frame.

use super::{Frame, check_pixels};
use crate::{DataError, safe_file};
use ::image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use ::image::{DynamicImage, ImageDecoder, ImageResult, Limits};
use std::io::{Cursor, Read};
use std::path::Path;

/// The largest file that is read, in bytes.
pub(super) const MAX_FILE: u64 = 256 << 20;
/// What a decoder may allocate beside its result, in bytes.
const MAX_WORK: u64 = 1 << 30;

const JPEG: &[u8] = &[0xff, 0xd8, 0xff];
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A whole regular file of at most `limit` bytes.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let file = path.display().to_string();
    let io = |source| DataError::Io { file: file.clone(), source };
    let handle = safe_file::open(path)?;
    let too_long = |length: u64| {
        let rule = format!("{length} bytes are more than the allowed {limit}");
        DataError::invalid(&file, rule, "give a smaller file")
    };
    let length = handle.metadata().map_err(io)?.len();
    if length > limit {
        return Err(too_long(length));
    }
    let mut bytes = Vec::with_capacity(length as usize + 1);
    handle.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    // The file may have grown since its length was asked.
    if bytes.len() as u64 > limit {
        return Err(too_long(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Refuses what git leaves in place of a large file that was not fetched.
pub(crate) fn check_pointer(file: &str, head: &[u8]) -> Result<(), DataError> {
    if head.starts_with(b"version https://git-lfs") {
        let rule = "it is a git-LFS pointer, not the file itself";
        return Err(DataError::invalid(
            file,
            rule,
            "run `git lfs pull` where it comes from, and copy it again",
        ));
    }
    Ok(())
}

pub(super) fn decode(bytes: &[u8], file: &str) -> Result<Frame, DataError> {
    check_pointer(file, bytes)?;
    let image = if bytes.starts_with(JPEG) {
        if !jpeg_ends(bytes) {
            let rule = "the JPEG has no end marker";
            return Err(DataError::invalid(
                file,
                rule,
                "the file is truncated or damaged: make or fetch it again",
            ));
        }
        read(file, JpegDecoder::new(Cursor::new(bytes)))?
    } else if bytes.starts_with(PNG) {
        read(file, PngDecoder::with_limits(Cursor::new(bytes), limits()))?
    } else {
        let head: Vec<String> = bytes.iter().take(4).map(|b| format!("{b:02x}")).collect();
        let rule = if head.is_empty() {
            "the file is empty".to_owned()
        } else {
            format!("neither JPEG nor PNG: the first bytes are {}", head.join(" "))
        };
        return Err(DataError::invalid(file, rule, "give a picture in one of these formats"));
    };
    let (height, width) = (image.height() as usize, image.width() as usize);
    let upper = |values: Vec<u16>| values.into_iter().map(|v| (v >> 8) as u8).collect();
    let (channels, pixels) = match image {
        DynamicImage::ImageLuma8(x) => (1, x.into_raw()),
        DynamicImage::ImageLumaA8(x) => (1, first(&x.into_raw(), 1)),
        DynamicImage::ImageRgb8(x) => (3, x.into_raw()),
        DynamicImage::ImageRgba8(x) => (3, first(&x.into_raw(), 3)),
        DynamicImage::ImageLuma16(x) => (1, upper(x.into_raw())),
        DynamicImage::ImageLumaA16(x) => (1, upper(first(&x.into_raw(), 1))),
        DynamicImage::ImageRgb16(x) => (3, upper(x.into_raw())),
        DynamicImage::ImageRgba16(x) => (3, upper(first(&x.into_raw(), 3))),
        other => {
            let rule = format!("pixels of type {:?}", other.color());
            return Err(DataError::invalid(file, rule, "save it as RGB or grey of 8 bits"));
        }
    };
    Frame::new(height, width, channels, pixels)
}

fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_WORK);
    limits
}

fn read(file: &str, decoder: ImageResult<impl ImageDecoder>) -> Result<DynamicImage, DataError> {
    let fault = |e: ::image::ImageError| {
        let rule = format!("the picture cannot be decoded ({e})");
        DataError::invalid(file, rule, "the file is truncated or damaged: make or fetch it again")
    };
    let mut decoder = decoder.map_err(fault)?;
    let (width, height) = decoder.dimensions();
    check_pixels(file, height.into(), width.into())?;
    decoder.set_limits(limits()).map_err(fault)?;
    DynamicImage::from_decoder(decoder).map_err(fault)
}

/// The first `keep` of each pixel's `keep + 1` values: all but the transparency.
fn first<T: Copy>(values: &[T], keep: usize) -> Vec<T> {
    values.chunks_exact(keep + 1).flat_map(|pixel| pixel.iter().take(keep).copied()).collect()
}

/// Whether the markers of a JPEG lead to its end marker; the decoder itself would fill what is missing with grey.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let byte = |at: usize| bytes.get(at).copied();
    let mut at = 2;
    while let (Some(0xff), Some(marker)) = (byte(at), byte(at + 1)) {
        match marker {
            0xd9 => return true,
            // A fill byte, and markers without a body.
            0xff => at += 1,
            0x01 | 0xd0..=0xd8 => at += 2,
            _ => {
                let (Some(high), Some(low)) = (byte(at + 2), byte(at + 3)) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if marker == 0xda {
                    // Compressed data: up to a marker that is neither a stuffed 0xff nor a restart.
                    loop {
                        let Some(rest) = bytes.get(at..) else { return false };
                        let Some(next) = rest.iter().position(|&b| b == 0xff) else { return false };
                        at += next;
                        match byte(at + 1) {
                            Some(0 | 0xff | 0xd0..=0xd7) => at += 1,
                            _ => break,
                        }
                    }
                }
            }
        }
    }
    false
}
