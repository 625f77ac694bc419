//! The header of a safetensors file, checked number by number before any of its numbers is used.
//!
//! ```text
//! file   = N (8 bytes, little endian), header (N bytes of JSON), data
//! header = {"__metadata__": {name: text}, name: {"dtype": …, "shape": […], "data_offsets": [begin, end]}, …}
//! ```
//!
//! The rules: N is at most 100 MB and inside the file; the header is UTF-8 and no name stands in it twice; every type is
//! known; shape times size of the type does not overflow and equals end - begin; the tensors, by begin, follow each
//! other without gap or overlap, from the first byte of the data to the last one of the file.

use super::error::{Result, WeightsError, shown, told};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::marker::PhantomData;

/// The largest header that is read.
const MAX_HEADER: u64 = 100_000_000;
/// The longest name of a tensor, in bytes: longer ones make messages and the search for near names slow.
const MAX_NAME: usize = 1024;
/// The most dimensions of a tensor.
const MAX_RANK: usize = 16;

const DAMAGED: &str = "the file is damaged or of another kind: make or fetch it again";
const TRUNCATED: &str = "the file is truncated or of another kind: make or fetch it again";

/// Where a tensor lies in its file, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Info {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    pub(super) begin: u64,
    pub(super) len: usize,
}

/// A checked header.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, Info>,
    pub(super) metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads the header of a file of `length` bytes; no more than the header is read, and no more memory is asked for
    /// than `length` and the largest header allow.
    pub(super) fn read(source: &mut impl Read, length: u64, file: &str) -> Result<Self> {
        let io = |source| WeightsError::Io { what: "read", file: file.to_owned(), source };
        if length < 8 {
            let rule = format!("{length} bytes are too few for a safetensors file");
            return Err(WeightsError::invalid(file, rule, TRUNCATED));
        }
        let mut first = [0u8; 8];
        source.read_exact(&mut first).map_err(io)?;
        let size = u64::from_le_bytes(first);
        if size > MAX_HEADER {
            let rule = format!("the header claims {size} bytes, more than the allowed {MAX_HEADER}");
            return Err(WeightsError::invalid(file, rule, DAMAGED));
        }
        if size + 8 > length {
            let rule = format!("the header claims {size} bytes, but the file has {length} in all");
            return Err(WeightsError::invalid(file, rule, TRUNCATED));
        }
        let mut text = vec![0u8; size as usize];
        source.read_exact(&mut text).map_err(io)?;
        let text = std::str::from_utf8(&text).map_err(|e| {
            let place = 8 + e.valid_up_to();
            WeightsError::invalid(file, format!("the header is not UTF-8 at byte {place}"), DAMAGED)
        })?;
        let raw: RawHeader = serde_json::from_str(text).map_err(|e| {
            WeightsError::invalid(file, format!("the header is not valid: {}", told(&e)), DAMAGED)
        })?;
        raw.checked(8 + size, length, file)
    }
}

/// What the JSON says.
#[derive(Debug, Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawInfo>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInfo {
    #[serde(deserialize_with = "dtype")]
    dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl RawHeader {
    fn checked(self, start: u64, length: u64, file: &str) -> Result<Header> {
        let fault = |name: &str, rule: String| {
            WeightsError::invalid(file, format!("tensor `{}`: {rule}", shown(name)), DAMAGED)
        };
        let mut order: Vec<_> = self.tensors.iter().map(|(name, info)| (info.data_offsets, name)).collect();
        order.sort_unstable();
        let mut next = 0;
        for ([begin, end], name) in order {
            if end < begin {
                return Err(fault(name, format!("data_offsets [{begin}, {end}] end before they begin")));
            }
            if begin != next {
                let what = if begin < next { "overlap the tensor before" } else { "leave a gap" };
                return Err(fault(
                    name,
                    format!("data_offsets [{begin}, {end}] {what}: they must begin at {next}"),
                ));
            }
            next = end;
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in self.tensors {
            let [begin, end] = info.data_offsets;
            // An empty tensor may have large sizes beside its 0; their product must fit too, for the strides.
            let sizes = || info.shape.iter().map(|n| (*n).max(1));
            let bits = sizes().try_fold(info.dtype.bitsize() as u64, u64::checked_mul);
            let Some(bits) = bits.filter(|bits| i64::try_from(*bits).is_ok()) else {
                let rule =
                    format!("shape {:?} of {} overflows the number of its bytes", info.shape, info.dtype);
                return Err(fault(&name, rule));
            };
            let bits = if info.shape.contains(&0) { 0 } else { bits };
            if bits % 8 != 0 || bits / 8 != end - begin {
                let (given, shape, dtype) = (end - begin, &info.shape, info.dtype);
                let rule = format!(
                    "data_offsets [{begin}, {end}] hold {given} bytes, but shape {shape:?} of {dtype} takes {}",
                    bits.div_ceil(8)
                );
                return Err(fault(&name, rule));
            }
            let shape: Option<Vec<usize>> = info.shape.iter().map(|n| usize::try_from(*n).ok()).collect();
            let (Some(shape), Ok(len)) = (shape, usize::try_from(end - begin)) else {
                return Err(fault(
                    &name,
                    format!("shape {:?} is too large for this machine's addresses", info.shape),
                ));
            };
            // begin <= next <= length - start is checked below; until then a sum may still be too large.
            let begin = start.saturating_add(begin);
            tensors.insert(name, Info { dtype: info.dtype, shape, begin, len });
        }
        let found = length - start;
        if next != found {
            let rule = format!("the header announces {next} bytes of tensors, but {found} follow");
            return Err(WeightsError::invalid(file, rule, if next > found { TRUNCATED } else { DAMAGED }));
        }
        Ok(Header { tensors, metadata: self.metadata })
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names to tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    let within = |e: A::Error| A::Error::custom(format!("`{}`: {e}", shown(&name)));
                    if name.len() > MAX_NAME {
                        let rule = format!("the name `{}` has more than {MAX_NAME} bytes", shown(&name));
                        return Err(A::Error::custom(rule));
                    }
                    let twice = if name == "__metadata__" {
                        metadata
                            .replace(map.next_value_seed(Unique::<String>::new()).map_err(within)?)
                            .is_some()
                    } else {
                        let info = map.next_value().map_err(within)?;
                        header.tensors.insert(name.clone(), info).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format!("the name `{}` appears twice", shown(&name))));
                    }
                }
                header.metadata = metadata.unwrap_or_default();
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A map in which no name stands twice, which serde's own maps would not notice.
pub(super) struct Unique<T>(PhantomData<T>);

impl<T> Unique<T> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Unique<T> {
    type Value = BTreeMap<String, T>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_map(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Unique<T> {
    type Value = BTreeMap<String, T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from names to text")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut all = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value()?;
            if all.contains_key(&name) {
                return Err(A::Error::custom(format!("the name `{}` appears twice", shown(&name))));
            }
            all.insert(name, value);
        }
        Ok(all)
    }
}

/// The crate's own list of types, with the value in the message.
fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Dtype, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known: std::result::Result<Dtype, serde::de::value::Error> =
        Dtype::deserialize(name.as_str().into_deserializer());
    known.map_err(|_| {
        D::Error::custom(format!("dtype `{}` is unknown; F16, BF16, F32 and F64 can be loaded", shown(&name)))
    })
}

/// A list of sizes that is refused where it grows past what any tensor has.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<u64>, D::Error> {
    struct Sizes;
    impl<'de> Visitor<'de> for Sizes {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of sizes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Vec<u64>, A::Error> {
            let mut sizes = Vec::new();
            while let Some(size) = list.next_element()? {
                if sizes.len() == MAX_RANK {
                    return Err(A::Error::custom(format!("shape has more than {MAX_RANK} dimensions")));
                }
                sizes.push(size);
            }
            Ok(sizes)
        }
    }
    deserializer.deserialize_seq(Sizes)
}
