//! Tensors of a safetensors file as plain numbers.

use crate::DataError;
use half::{f16, slice::HalfFloatSliceExt};
use safetensors::Dtype;

/// Whether a type is an integer or a flag.
pub(crate) fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | U8 | I8 | I16 | U16 | I32 | U32 | I64 | U64)
}

/// Whether a type is a float that features may have.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Little-endian floats as f32; numbers beyond f32 become infinite.
pub(crate) fn floats(file: &str, name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, DataError> {
    Ok(match dtype {
        Dtype::F16 => halves(bytes),
        Dtype::BF16 => each(bytes, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        other => {
            let rule = format!("tensor `{name}` holds {other}, not floats");
            return Err(DataError::invalid(file, rule, "save features as F16, BF16, F32 or F64"));
        }
    })
}

/// Little-endian integers or flags as i64.
pub(crate) fn integers(file: &str, name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<i64>, DataError> {
    Ok(match dtype {
        Dtype::BOOL => each(bytes, |[b]: [u8; 1]| i64::from(b != 0)),
        Dtype::U8 => each(bytes, |b| u8::from_le_bytes(b).into()),
        Dtype::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        Dtype::U16 => each(bytes, |b| u16::from_le_bytes(b).into()),
        Dtype::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        Dtype::U32 => each(bytes, |b| u32::from_le_bytes(b).into()),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        Dtype::I64 => each(bytes, i64::from_le_bytes),
        Dtype::U64 => {
            let values = each(bytes, |b| i64::try_from(u64::from_le_bytes(b)));
            values.into_iter().collect::<Result<_, _>>().map_err(|_| {
                let rule = format!("tensor `{name}` has a value above {}", i64::MAX);
                DataError::invalid(file, rule, "save it as I64")
            })?
        }
        other => {
            let rule = format!("tensor `{name}` holds {other}, not integers");
            return Err(DataError::invalid(file, rule, "save it as I64"));
        }
    })
}

fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| read(*chunk)).collect()
}

/// The same, into places that are there.
pub(crate) fn each_into<const N: usize>(bytes: &[u8], to: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    to.iter_mut().zip(bytes.as_chunks::<N>().0).for_each(|(to, chunk)| *to = read(*chunk));
}

/// IEEE 754 binary16: a sign, 5 bits of exponent, 10 of mantissa. Every value is exact in f32.
fn halves(bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / 2];
    halves_into(bytes, &mut values);
    values
}

/// The same, into places that are there.
pub(crate) fn halves_into(bytes: &[u8], to: &mut [f32]) {
    let mut some = [f16::ZERO; 256]; // Whole pieces are converted by instructions for many numbers.
    for (to, pairs) in to.chunks_mut(some.len()).zip(bytes.as_chunks::<2>().0.chunks(some.len())) {
        let some = &mut some[..pairs.len()];
        some.iter_mut().zip(pairs).for_each(|(half, pair)| *half = f16::from_le_bytes(*pair));
        some.convert_to_f32_slice(&mut to[..pairs.len()]);
    }
}

#[cfg(test)]
mod tests {
    fn half_to_f32(bits: u16) -> f32 {
        super::halves(&bits.to_le_bytes())[0]
    }

    #[test]
    fn half_precision_has_its_landmarks() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
            (0xfc00, f32::NEG_INFINITY),
            (0x0000, 0.0),
        ] {
            assert_eq!(half_to_f32(bits), value, "{bits:04x}");
        }
        assert!(half_to_f32(0x7e00).is_nan());
        let mut previous = f32::NEG_INFINITY;
        for bits in 0..0x7c00u16 {
            assert!(half_to_f32(bits) > previous, "{bits:04x}");
            previous = half_to_f32(bits);
        }
    }
}
