//! One open safetensors file, whose tensors are read when they are asked for.

use super::error::{Result, WeightsError, shown};
use super::header::{Header, Info};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// How to turn a pickle into a file that can be loaded; the library never opens one.
const CONVERT: &str = "a pickle runs code when it is opened and is never loaded: convert it where you trust it, with \
    python -c \"import torch; from safetensors.torch import save_file; \
    w = torch.load('IN', map_location='cpu', weights_only=True); \
    save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors')\"; \
    docs/converting-checkpoints.md says how for whole pickled models";

/// An open file with its checked header.
#[derive(Debug)]
pub(super) struct TensorFile {
    pub(super) name: String,
    pub(super) header: Header,
    // One handle for as long as the weights live: a file put in its place later would not fit the header.
    handle: Mutex<File>,
}

impl TensorFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if is_pickle(path) {
            return Err(pickle(&name));
        }
        let mut handle = open(path)?;
        let length = handle.metadata().map_err(WeightsError::io("read", path))?.len();
        let mut first = [0u8; 8];
        if length >= 8 {
            handle.read_exact(&mut first).map_err(WeightsError::io("read", path))?;
            handle.rewind().map_err(WeightsError::io("read", path))?;
        }
        // PyTorch's archives are zip files, its older files bare pickles of protocol 2 and above. A size of a header that
        // begins with the same bytes ends in zeros.
        let zip = first.starts_with(b"PK\x03\x04");
        let bare = first[0] == 0x80 && (2..=5).contains(&first[1]);
        if (zip || bare) && first[4..] != [0; 4] {
            return Err(pickle(&name));
        }
        let header = Header::read(&mut handle, length, &name)?;
        Ok(Self { name, header, handle: Mutex::new(handle) })
    }

    /// A tensor of floats in the type of the file, on the CPU.
    pub(super) fn read(&self, tensor: &str, info: &Info) -> Result<Tensor> {
        let Some(dtype) = float(info.dtype) else {
            let rule = format!("tensor `{}` holds {}", shown(tensor), info.dtype);
            return Err(WeightsError::invalid(&self.name, rule, "save it as F16, BF16, F32 or F64"));
        };
        let fault = |rule: &str, remedy: &str| {
            let rule = format!("tensor `{}`, {} bytes at {}: {rule}", shown(tensor), info.len, info.begin);
            WeightsError::invalid(&self.name, rule, remedy)
        };
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(info.len).is_err() {
            return Err(fault("there is not enough memory", "use a machine with more"));
        }
        bytes.resize(info.len, 0);
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        handle
            .seek(SeekFrom::Start(info.begin))
            .and_then(|_| handle.read_exact(&mut bytes))
            .map_err(|e| fault(&format!("cannot be read ({e})"), "the file changed meanwhile: try again"))?;
        drop(handle);
        Ok(Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?)
    }
}

/// The types that parameters are loaded from.
pub(super) fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}

/// Opens a regular file; a folder, a pipe or a device is refused before it can block.
pub(super) fn open(path: &Path) -> Result<File> {
    let about = std::fs::metadata(path).map_err(WeightsError::io("read", path))?;
    if !about.is_file() {
        let file = path.display().to_string();
        return Err(WeightsError::invalid(
            &file,
            "not a regular file",
            "give the path of a safetensors file",
        ));
    }
    File::open(path).map_err(WeightsError::io("read", path))
}

/// A small text file, whole.
pub(super) fn read_text(path: &Path, most: u64) -> Result<String> {
    let file = path.display().to_string();
    let mut text = Vec::new();
    let io = WeightsError::io("read", path);
    open(path)?.take(most + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > most {
        let rule = format!("it has more than the allowed {most} bytes");
        return Err(WeightsError::invalid(&file, rule, "is it another kind of file?"));
    }
    String::from_utf8(text)
        .map_err(|e| WeightsError::invalid(&file, format!("it is not UTF-8 ({e})"), "make or fetch it again"))
}

/// The refusal of a pickled checkpoint.
pub(super) fn pickle(file: &str) -> WeightsError {
    WeightsError::invalid(file, "it is a pickled checkpoint", CONVERT)
}

/// Whether a name is one that pickled checkpoints have.
pub(super) fn is_pickle(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| {
        ["bin", "pt", "pth", "ckpt", "pkl", "pickle"].iter().any(|p| e.eq_ignore_ascii_case(p))
    })
}
