//! Arrays in the IDX files of MNIST and its relatives, plain or packed by gzip.
//!
//! ```text
//! 0 0  type  number of axes  |  each axis as 4 bytes  |  the numbers          everything big-endian
//! ```
//!
//! | type | number | in memory |
//! |---|---|---|
//! | 0x08 | unsigned byte | [`Values::U8`] |
//! | 0x09, 0x0b, 0x0c | integers of 8, 16, 32 bits | [`Values::I64`] |
//! | 0x0d, 0x0e | floats of 32, 64 bits | [`Values::F32`], [`Values::F64`] |
//!
//! Gzip is known by its first bytes, not by the name. The sizes in the head must be exactly the bytes that follow.
//! Of a packed file these are known only when it is unpacked, so what is announced is limited to [`MAX_BYTES`] and
//! to the 1032 bytes that one packed byte can become, before it is allocated.
//!
//! Source: the description of the format on MNIST's page.

use crate::image::check_pointer;
use crate::npy::{Array, Values};
use crate::{DataError, safe_file};
use flate2::read::MultiGzDecoder;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

/// The most bytes of numbers that are read.
pub const MAX_BYTES: u64 = 8 << 30;
/// The best that deflate can do.
const MAX_RATIO: u64 = 1032;
const MAX_AXES: u8 = 8;

/// Reads an IDX file.
pub fn read(path: &Path) -> Result<Array, DataError> {
    let file = path.display().to_string();
    let io = |source| DataError::Io { file: file.clone(), source };
    let mut handle = safe_file::open(path)?;
    let length = handle.metadata().map_err(io)?.len();
    let mut head = Vec::new();
    handle.by_ref().take(64).read_to_end(&mut head).map_err(io)?;
    check_pointer(&file, &head)?;
    handle.rewind().map_err(io)?;
    let handle = BufReader::new(handle);
    if head.starts_with(&[0x1f, 0x8b]) {
        numbers(&file, MultiGzDecoder::new(handle), length.saturating_mul(MAX_RATIO))
    } else {
        numbers(&file, handle, length)
    }
}

/// `most` is what the source can hold at best.
fn numbers(file: &str, mut source: impl Read, most: u64) -> Result<Array, DataError> {
    const AGAIN: &str = "the file is truncated or damaged: make or fetch it again";
    let fault = |rule: String, remedy: &str| DataError::invalid(file, rule, remedy);
    let cannot = |e: std::io::Error| fault(format!("it ends too early or cannot be unpacked ({e})"), AGAIN);
    let mut magic = [0u8; 4];
    source.read_exact(&mut magic).map_err(cannot)?;
    let [0, 0, kind, axes] = magic else {
        let rule = format!("it does not start as an IDX file (the first bytes are {magic:02x?})");
        return Err(fault(rule, "give a file such as train-images-idx3-ubyte or its .gz"));
    };
    let width: u64 = match kind {
        0x08 | 0x09 => 1,
        0x0b => 2,
        0x0c | 0x0d => 4,
        0x0e => 8,
        _ => {
            let rule = format!("its numbers are of the unknown type {kind:#04x}");
            return Err(fault(rule, "known are 0x08, 0x09, 0x0b, 0x0c, 0x0d and 0x0e"));
        }
    };
    if axes > MAX_AXES {
        let rule = format!("it announces {axes} axes, more than the allowed {MAX_AXES}");
        return Err(fault(rule, AGAIN));
    }
    let mut shape = Vec::new();
    for _ in 0..axes {
        let mut axis = [0u8; 4];
        source.read_exact(&mut axis).map_err(cannot)?;
        shape.push(u32::from_be_bytes(axis) as usize);
    }
    let size = shape.iter().try_fold(width, |product, &axis| product.checked_mul(axis as u64));
    let Some(size) = size.filter(|&size| size <= MAX_BYTES.min(most)) else {
        let rule = format!("it announces shape {shape:?} with {width} bytes each, more than it can hold");
        return Err(fault(rule, AGAIN));
    };
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(size as usize + 1)
        .map_err(|_| fault(format!("{size} bytes do not fit into memory"), "split the file"))?;
    source.take(size + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 != size {
        let found = if bytes.len() as u64 > size {
            "more follow".to_owned()
        } else {
            format!("{} follow", bytes.len())
        };
        return Err(fault(format!("shape {shape:?} needs {size} bytes, but {found}"), AGAIN));
    }
    let values = match kind {
        0x08 => Values::U8(bytes),
        0x09 => Values::I64(bytes.into_iter().map(|b| i64::from(b.cast_signed())).collect()),
        0x0b => Values::I64(each(&bytes, |b| i16::from_be_bytes(b).into())),
        0x0c => Values::I64(each(&bytes, |b| i32::from_be_bytes(b).into())),
        0x0d => Values::F32(each(&bytes, f32::from_be_bytes)),
        _ => Values::F64(each(&bytes, f64::from_be_bytes)),
    };
    Ok(Array { shape, values })
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| read(chunk)).collect()
}
