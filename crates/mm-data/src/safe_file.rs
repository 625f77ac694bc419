//! Safetensors files from strangers: everything that the header claims is checked before it is believed.

use crate::DataError;
use crate::dataset::hex;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The largest header that is read.
const MAX_HEADER: u64 = 100_000_000;

/// A checked header: sizes, offsets and shapes agree with each other and with the length of the file.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) file: String,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    pub(crate) metadata: BTreeMap<String, String>,
    data_start: usize,
    length: u64,
}

/// Opens a regular file; a folder, a pipe or a device is refused before it can block.
pub(crate) fn open(path: &Path) -> Result<File, DataError> {
    let io = |source| DataError::Io { file: path.display().to_string(), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        let file = path.display().to_string();
        return Err(DataError::invalid(&file, "not a regular file", "give the path of a data file"));
    }
    File::open(path).map_err(io)
}

/// A whole file.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) header: Header,
    pub(crate) hash: String,
    bytes: Vec<u8>,
}

impl Header {
    /// Reads and checks the header only.
    pub(crate) fn read(path: &Path) -> Result<Self, DataError> {
        Self::from_file(path).map(|(header, ..)| header)
    }

    fn from_file(path: &Path) -> Result<(Self, Vec<u8>, File), DataError> {
        let file = path.display().to_string();
        let io = |source| DataError::Io { file: file.clone(), source };
        let fault = |rule: String, remedy: &str| DataError::invalid(&file, rule, remedy);
        let mut handle = open(path)?;
        let about = handle.metadata().map_err(io)?;
        let length = about.len();
        let mut bytes = vec![0u8; 8];
        if length < 8 {
            let rule = format!("{length} bytes are too few for a safetensors file");
            return Err(fault(rule, "the file is truncated or of another kind: make or fetch it again"));
        }
        handle.read_exact(&mut bytes).map_err(io)?;
        let size = u64::from_le_bytes(std::array::from_fn(|i| bytes[i]));
        if size > MAX_HEADER {
            let rule = format!("the header claims {size} bytes, more than the allowed {MAX_HEADER}");
            return Err(fault(rule, "the file is not safetensors or is damaged: make or fetch it again"));
        }
        if size + 8 > length {
            let rule = format!("the header claims {size} bytes, but the file has {length} in all");
            return Err(fault(rule, "the file is truncated or of another kind: make or fetch it again"));
        }
        bytes.resize(8 + size as usize, 0);
        handle.read_exact(&mut bytes[8..]).map_err(io)?;
        let text = std::str::from_utf8(&bytes[8..]).map_err(|e| {
            fault(format!("the header is not UTF-8 ({e})"), "the file is damaged: make it again")
        })?;
        let raw: RawHeader = serde_json::from_str(text).map_err(|e| {
            fault(format!("the header is not valid ({e})"), "the file is damaged: make it again")
        })?;
        let header = raw.checked(file, 8 + size as usize, length)?;
        Ok((header, bytes, handle))
    }

    /// Where the bytes of a tensor begin in the file.
    pub(crate) fn start_of(&self, info: &TensorInfo) -> u64 {
        (self.data_start + info.data_offsets.0) as u64
    }

    /// The modalities of the tensors `x_<modality>`.
    pub(crate) fn feature_names(&self) -> Vec<String> {
        self.tensors.keys().filter_map(|name| name.strip_prefix("x_")).map(str::to_owned).collect()
    }
}

impl Contents {
    /// Reads the whole file.
    pub(crate) fn read(path: &Path) -> Result<Self, DataError> {
        let (header, mut bytes, handle) = Header::from_file(path)?;
        let left = header.length - header.data_start as u64;
        let io = |source| DataError::Io { file: header.file.clone(), source };
        bytes.try_reserve_exact(left as usize).map_err(|_| {
            let rule = format!("{left} bytes do not fit into memory");
            DataError::invalid(&header.file, rule, "split the file")
        })?;
        handle.take(left).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 != header.length {
            let rule = "the file became shorter while it was read";
            return Err(DataError::invalid(&header.file, rule, "wait until it is written, then try again"));
        }
        let hash = hex(&Sha256::digest(&bytes));
        Ok(Self { header, hash, bytes })
    }

    /// The type, shape and bytes of a tensor.
    pub(crate) fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.header.tensors.get(name)?;
        let (start, end) = info.data_offsets;
        Some((info, self.bytes.get(self.header.data_start + start..self.header.data_start + end)?))
    }
}

/// The header as written, with repeated names refused, which a map would silently drop.
struct RawHeader {
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl RawHeader {
    fn checked(self, file: String, data_start: usize, length: u64) -> Result<Header, DataError> {
        let mut ordered: Vec<_> = self.tensors.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        ordered.sort_by_key(|(_, info)| info.data_offsets);
        let size = match Metadata::new(None, ordered) {
            Ok(metadata) => metadata.data_len() as u64,
            Err(e) => {
                let rule = format!("the header contradicts itself ({e})");
                let remedy =
                    "offsets must follow each other without gap and fit shape and type: make it again";
                return Err(DataError::invalid(&file, rule, remedy));
            }
        };
        let found = length - data_start as u64;
        if size != found {
            let rule = format!("the header announces {size} bytes of tensors, but {found} follow");
            let remedy = if size > found { "the file is truncated: fetch it again" } else { "make it again" };
            return Err(DataError::invalid(&file, rule, remedy));
        }
        Ok(Header { file, tensors: self.tensors, metadata: self.metadata, data_start, length })
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from names to tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: BTreeMap::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                        continue;
                    }
                    let info = map.next_value()?;
                    if header.tensors.insert(name.clone(), info).is_some() {
                        return Err(A::Error::custom(format!("the name `{name}` appears twice")));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
