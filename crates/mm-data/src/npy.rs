//! Arrays in NumPy's `.npy` files, such as spectrograms, face features or labels.
//!
//! ```text
//! "\x93NUMPY"  major minor  length of the header (2 bytes; 4 from version 2 on)
//! {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }        then the numbers
//! ```
//!
//! Versions 1, 2 and 3, both byte orders, both orders of the axes (the result is always row-major). Types:
//!
//! | in the file | in memory |
//! |---|---|
//! | `f2`, `f4` | [`Values::F32`] |
//! | `f8` | [`Values::F64`] |
//! | `u1`, `b1` (bool) | [`Values::U8`] |
//! | `i1`, `i2`, `i4`, `i8`, `u2`, `u4`, `u8` | [`Values::I64`] |
//!
//! Refused by name: arrays of Python objects (`|O`: they are pickles, and a pickle runs code when it is opened),
//! records, texts, complex numbers, `.npz` archives, git-LFS pointers. The header is limited to 64 KiB, and shape
//! times type must be exactly the bytes that follow, before anything of that size is allocated.
//!
//! Source: NumPy's documentation of the format, NEP 1.

use crate::image::check_pointer;
use crate::{DataError, decode, safe_file};
use safetensors::Dtype;
use std::io::Read;
use std::path::Path;

/// The largest header that is read.
const MAX_HEADER: usize = 1 << 16;
/// NumPy's own limit.
const MAX_AXES: usize = 64;

/// Numbers with a shape, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The length of each axis; empty for a single number.
    pub shape: Vec<usize>,
    /// As many numbers as the product of the shape.
    pub values: Values,
}

/// The numbers of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Bytes and flags.
    U8(Vec<u8>),
    /// All other integers.
    I64(Vec<i64>),
    /// Floats of 16 and 32 bits.
    F32(Vec<f32>),
    /// Floats of 64 bits.
    F64(Vec<f64>),
}

impl Values {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As floats of 32 bits; integers beyond 2²⁴ are rounded, floats beyond the range become infinite.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::U8(v) => v.into_iter().map(f32::from).collect(),
            Self::I64(v) => v.into_iter().map(|v| v as f32).collect(),
            Self::F32(v) => v,
            Self::F64(v) => v.into_iter().map(|v| v as f32).collect(),
        }
    }

    /// As integers, where they are.
    pub fn into_i64(self) -> Option<Vec<i64>> {
        match self {
            Self::U8(v) => Some(v.into_iter().map(i64::from).collect()),
            Self::I64(v) => Some(v),
            Self::F32(_) | Self::F64(_) => None,
        }
    }
}

/// Reads a `.npy` file.
pub fn read(path: &Path) -> Result<Array, DataError> {
    let file = path.display().to_string();
    let io = |source| DataError::Io { file: file.clone(), source };
    let fault = |rule: String, remedy: &str| DataError::invalid(&file, rule, remedy);
    let mut handle = safe_file::open(path)?;
    let length = handle.metadata().map_err(io)?.len();
    let mut head = Vec::new();
    handle.by_ref().take(MAX_HEADER as u64 + 12).read_to_end(&mut head).map_err(io)?;
    let (start, text) = header(&file, &head)?;
    let Header { descr, fortran, shape } = Header::parse(text)
        .map_err(|what| fault(format!("the header is not valid ({what})"), "save the array again"))?;
    let kind = Kind::parse(&descr)
        .map_err(|(what, remedy)| fault(format!("it holds {what} (type `{descr}`)"), remedy))?;
    let expected = shape
        .iter()
        .try_fold(kind.width as u64, |product, &axis| product.checked_mul(axis as u64))
        .filter(|&bytes| isize::try_from(bytes).is_ok());
    let found = length.saturating_sub(start as u64);
    if expected != Some(found) {
        let rule = format!("the header announces shape {shape:?} of `{descr}`, but {found} bytes follow it");
        return Err(fault(rule, "the file is truncated or damaged: make or fetch it again"));
    }
    let mut bytes = head.split_off(start);
    bytes
        .try_reserve_exact((found as usize).saturating_sub(bytes.len()))
        .map_err(|_| fault(format!("{found} bytes do not fit into memory"), "split the array"))?;
    handle.take(found.saturating_sub(bytes.len() as u64)).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 != found {
        let rule = "the file became shorter while it was read".to_owned();
        return Err(fault(rule, "wait until it is written, then try again"));
    }
    let values = kind.values(&file, bytes)?;
    let values = if fortran { row_major(&shape, values) } else { values };
    Ok(Array { shape, values })
}

/// Where the numbers start, and the text of the header.
fn header<'a>(file: &str, head: &'a [u8]) -> Result<(usize, &'a str), DataError> {
    let fault = |rule: String, remedy: &str| DataError::invalid(file, rule, remedy);
    check_pointer(file, head)?;
    if head.starts_with(b"PK\x03\x04") {
        let rule = "it is a zip archive (.npz), not a single array".to_owned();
        return Err(fault(rule, "save each array with `numpy.save`"));
    }
    if head.starts_with(b"\x80") {
        let rule = "it is a pickle, not an array".to_owned();
        return Err(fault(rule, "a pickle runs code when it is opened: save the numbers with `numpy.save`"));
    }
    let Some(rest) = head.strip_prefix(b"\x93NUMPY") else {
        return Err(fault("it does not start as a .npy file".to_owned(), "save the array with `numpy.save`"));
    };
    let truncated = || fault("the header is truncated".to_owned(), "make or fetch the file again");
    let (start, size) = match *rest {
        [1, _, a, b, ..] => (10, usize::from(u16::from_le_bytes([a, b]))),
        [2 | 3, _, a, b, c, d, ..] => (12, u32::from_le_bytes([a, b, c, d]) as usize),
        [1..=3, ..] | [] => return Err(truncated()),
        [version, ..] => {
            let rule = format!("version {version} of the format is not known");
            return Err(fault(rule, "save the array with `numpy.save`, which writes versions 1 to 3"));
        }
    };
    if size > MAX_HEADER {
        let rule = format!("the header claims {size} bytes, more than the allowed {MAX_HEADER}");
        return Err(fault(rule, "save a plain array of numbers"));
    }
    let bytes = head.get(start..start + size).ok_or_else(truncated)?;
    let text = std::str::from_utf8(bytes)
        .map_err(|e| fault(format!("the header is not UTF-8 ({e})"), "save the array again"))?;
    Ok((start + size, text))
}

/// What the header says.
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    /// A dictionary of Python with exactly these three keys; numbers of Python 2 may end in `L`.
    fn parse(text: &str) -> Result<Self, String> {
        let mut rest = Text(text);
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        rest.expect("{")?;
        while !rest.eat("}") {
            let key = rest.quoted()?;
            rest.expect(":")?;
            match key {
                "descr" if descr.is_none() => descr = Some(rest.descr()?),
                "fortran_order" if fortran.is_none() => fortran = Some(rest.flag()?),
                "shape" if shape.is_none() => shape = Some(rest.shape()?),
                other => return Err(format!("the key '{other}' is not known or appears twice")),
            }
            if !rest.eat(",") {
                rest.expect("}")?;
                break;
            }
        }
        if !rest.0.trim().is_empty() {
            return Err("there is more after the dictionary".to_owned());
        }
        let missing = |key: &str| format!("the key '{key}' is missing");
        Ok(Self {
            descr: descr.ok_or_else(|| missing("descr"))?,
            fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }
}

/// The rest of a header.
struct Text<'a>(&'a str);

impl<'a> Text<'a> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        let next: String = self.0.trim_start().chars().take(12).collect();
        if self.eat(token) { Ok(()) } else { Err(format!("`{token}` expected, found `{next}`")) }
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        let quote = if self.eat("'") {
            '\''
        } else {
            self.expect("\"")?;
            '"'
        };
        let (inside, rest) = self.0.split_once(quote).ok_or("a text does not end")?;
        self.0 = rest;
        Ok(inside)
    }

    /// A type: a text, or for records a list, of which only the first letters matter for the message.
    fn descr(&mut self) -> Result<String, String> {
        if self.0.trim_start().starts_with('[') {
            return Err("the array has records: save its fields as arrays of their own".to_owned());
        }
        self.quoted().map(str::to_owned)
    }

    fn flag(&mut self) -> Result<bool, String> {
        if self.eat("True") {
            return Ok(true);
        }
        self.expect("False").map(|()| false)
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        let mut axes = Vec::new();
        self.expect("(")?;
        while !self.eat(")") {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (digits, rest) = text.split_at(end);
            axes.push(digits.parse().map_err(|_| format!("`{digits}` is not the length of an axis"))?);
            self.0 = rest;
            self.eat("L");
            if axes.len() > MAX_AXES {
                return Err(format!("more than {MAX_AXES} axes"));
            }
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(axes)
    }
}

/// The type of a number in the file.
struct Kind {
    letter: u8,
    width: usize,
    big: bool,
}

impl Kind {
    /// `Err` says what it is instead, and what to do.
    fn parse(descr: &str) -> Result<Self, (&'static str, &'static str)> {
        let unknown = ("a type that is not known", "save it as f2, f4, f8, an integer or a flag");
        let (big, rest) = match descr.as_bytes() {
            [b'>', rest @ ..] => (true, rest),
            [b'<' | b'|' | b'=', rest @ ..] | rest => (false, rest),
        };
        match *rest {
            [b'O', ..] => Err((
                "Python objects, which are pickles, and a pickle runs code when it is opened",
                "save an array of numbers, padded where rows differ in length",
            )),
            [b'U' | b'S' | b'a', ..] => Err(("texts", "save numbers, such as class indices")),
            [b'c', ..] => Err(("complex numbers", "save their magnitudes")),
            [b'V', ..] => Err(("records", "save their fields as arrays of their own")),
            [b'M' | b'm', ..] => Err(("times", "save them as numbers")),
            [b'b', b'1'] => Ok(Self { letter: b'u', width: 1, big }),
            [letter @ (b'u' | b'i'), width @ (b'1' | b'2' | b'4' | b'8')]
            | [letter @ b'f', width @ (b'2' | b'4' | b'8')] => {
                Ok(Self { letter, width: usize::from(width - b'0'), big })
            }
            _ => Err(unknown),
        }
    }

    fn values(&self, file: &str, mut bytes: Vec<u8>) -> Result<Values, DataError> {
        if self.big {
            bytes.chunks_exact_mut(self.width).for_each(<[u8]>::reverse);
        }
        let floats = |dtype| decode::floats(file, "array", dtype, &bytes).map(Values::F32);
        let integers = |dtype| decode::integers(file, "array", dtype, &bytes).map(Values::I64);
        match (self.letter, self.width) {
            (b'f', 2) => floats(Dtype::F16),
            (b'f', 4) => floats(Dtype::F32),
            (b'f', _) => {
                let (numbers, _) = bytes.as_chunks::<8>();
                Ok(Values::F64(numbers.iter().map(|&b| f64::from_le_bytes(b)).collect()))
            }
            (b'u', 1) => Ok(Values::U8(bytes)),
            (b'u', 2) => integers(Dtype::U16),
            (b'u', 4) => integers(Dtype::U32),
            (b'u', _) => integers(Dtype::U64),
            (_, 1) => integers(Dtype::I8),
            (_, 2) => integers(Dtype::I16),
            (_, 4) => integers(Dtype::I32),
            _ => integers(Dtype::I64),
        }
    }
}

/// The same numbers with the last axis running fastest, where it was the first.
fn row_major(shape: &[usize], values: Values) -> Values {
    match values {
        Values::U8(v) => Values::U8(transposed(shape, &v)),
        Values::I64(v) => Values::I64(transposed(shape, &v)),
        Values::F32(v) => Values::F32(transposed(shape, &v)),
        Values::F64(v) => Values::F64(transposed(shape, &v)),
    }
}

fn transposed<T: Copy>(shape: &[usize], values: &[T]) -> Vec<T> {
    let mut index = vec![0; shape.len()];
    let mut steps = vec![1; shape.len()];
    for axis in 1..shape.len() {
        steps[axis] = steps[axis - 1] * shape[axis - 1];
    }
    let mut out = Vec::with_capacity(values.len());
    let mut at = 0;
    while out.len() < values.len() {
        out.push(values[at]);
        // The next index, as an odometer: the last axis first.
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += steps[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= steps[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}
