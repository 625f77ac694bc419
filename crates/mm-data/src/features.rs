//! Feature sets: precomputed features, labels and splits in one safetensors file.

use crate::config::{self, Summary};
use crate::labels::{classes, pick};
use crate::matrix::Naming;
use crate::safe_file::{Contents, Header};
use crate::{DataError, Dataset, Matrix, SplitConfig, decode};
use mm_core::{ConfigError, Modal};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A safetensors file with features.
///
/// | tensor | type and shape | meaning |
/// |---|---|---|
/// | `x_<modality>` | F16, BF16, F32 or F64, (n, d) | features; a row of NaN only is missing |
/// | `y` | integers, (n) | classes from 0 |
/// | `present_<modality>` | integers or flags, (n), optional | 0 where the modality is missing; its values are ignored |
/// | `<name>_index` | integers, (any) | a named list of rows, such as `train_index` |
/// | other integers, (n) | | columns, such as `actor` or `fold` |
/// | anything else | | ignored, but listed in [`Dataset::ignored`] |
///
/// The metadata entry `classes` may hold the names of the classes, separated by commas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturesConfig {
    /// The file.
    pub path: PathBuf,
    /// Number of classes, at least 2. Default: as many as the file names, else one more than the largest label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Which modalities, in which order. Default: all, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modalities: Option<Vec<String>>,
    /// Whether features get zero mean and unit spread by the training rows. Default: yes.
    #[serde(default = "config::yes")]
    pub standardize: bool,
    /// Which rows train, validate and test. Default: the file's `train_index`, `val_index` and `test_index`.
    #[serde(default)]
    pub split: SplitConfig,
}

impl FeaturesConfig {
    /// The defaults for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let split = SplitConfig::default();
        Self { path: path.into(), classes: None, modalities: None, standardize: true, split }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        config::check_path(&self.path)?;
        config::check_common(self.classes, self.modalities.as_deref(), &self.split)
    }

    pub(crate) fn peek(&self) -> Result<Summary, DataError> {
        let header = Header::read(&self.path)?;
        let modalities = pick(&header.file, &header.feature_names(), self.modalities.as_deref(), LAYOUT)?;
        let mut rows = None;
        let mut dims = Vec::new();
        for name in modalities.names() {
            let (n, dim) = shape(&header, name)?;
            rows = rows.or(Some(n));
            dims.push((name.clone(), mm_core::RowShape::fixed([dim])));
        }
        let names = class_names(&header);
        let classes = self.classes.or((names.len() >= 2).then_some(names.len()));
        Ok(Summary { modalities: dims, classes, rows })
    }

    pub(crate) fn read(&self) -> Result<Dataset, DataError> {
        let contents = Contents::read(&self.path)?;
        let header = &contents.header;
        let file = header.file.clone();
        let modalities = pick(&file, &header.feature_names(), self.modalities.as_deref(), LAYOUT)?;
        let inputs = Modal::try_from_fn(modalities.len(), |m| {
            matrix(&contents, modalities.names()[m.index()].as_str())
        })?;
        let Some(labels) = vector(&contents, "y")? else {
            let there: Vec<&str> = header.tensors.keys().map(String::as_str).collect();
            let rule = format!("there is no tensor `y`; there are {}", there.join(", "));
            return Err(DataError::invalid(&file, rule, "save the labels as the integer tensor `y`"));
        };
        let names = class_names(header);
        let declared = self.classes.or((names.len() >= 2).then_some(names.len()));
        let (labels, count) = classes(&file, &labels, declared, &|row| format!("tensor `y`, row {row}"))?;
        let name = self.path.file_stem().map_or_else(|| file.clone(), |s| s.to_string_lossy().into_owned());
        let mut data = Dataset::assemble(name, file, modalities, count, inputs, labels)?;
        if names.len() == count {
            data.class_names = names;
        }
        data = side_tensors(&contents, data)?;
        data.hash = contents.hash;
        Ok(data)
    }
}

const LAYOUT: &str = "features are tensors called `x_<modality>`";

/// Columns, index lists, and the names of everything that is not read.
pub(crate) fn side_tensors(contents: &Contents, mut data: Dataset) -> Result<Dataset, DataError> {
    for (name, info) in &contents.header.tensors {
        let modality = name.strip_prefix("x_").or_else(|| name.strip_prefix("present_"));
        if name == "y" || modality.is_some_and(|m| data.modalities.find(m).is_some()) {
            continue;
        }
        let flat = info.shape.len() == 1 && decode::is_integer(info.dtype);
        if flat && name.ends_with("_index") {
            let Some(values) = vector(contents, name)? else {
                continue;
            };
            let mut rows = Vec::with_capacity(values.len());
            for (position, value) in values.into_iter().enumerate() {
                rows.push(usize::try_from(value).map_err(|_| {
                    let rule =
                        format!("index `{name}` names row {value}, but there are {} rows", data.rows());
                    let remedy = format!("rows go from 0 to {}", data.rows() - 1);
                    DataError::row(&data.origin, format!("entry {position}"), rule, remedy)
                })?);
            }
            data = data.with_index(name.as_str(), rows)?;
        } else if flat && info.shape[0] == data.rows() && !name.starts_with("present_") {
            let Some(values) = vector(contents, name)? else {
                continue;
            };
            data = data.with_column(name.as_str(), values)?;
        } else {
            data.ignored.push(name.clone());
        }
    }
    Ok(data)
}

/// The names of the classes in the metadata.
fn class_names(header: &Header) -> Vec<String> {
    let text = header.metadata.get("classes").map_or("", String::as_str);
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// Rows and columns of `x_<modality>`.
fn shape(header: &Header, modality: &str) -> Result<(usize, usize), DataError> {
    let name = format!("x_{modality}");
    let fault = |rule: String, remedy: &str| Err(DataError::invalid(&header.file, rule, remedy));
    let Some(info) = header.tensors.get(&name) else {
        return fault(format!("there is no tensor `{name}`"), LAYOUT);
    };
    if !decode::is_float(info.dtype) {
        let rule = format!("tensor `{name}` holds {}, not floats", info.dtype);
        return fault(rule, "save features as F16, BF16, F32 or F64");
    }
    match info.shape[..] {
        [0, _] => fault(format!("tensor `{name}` has no rows: the data set is empty"), "give it rows"),
        [_, 0] => fault(format!("tensor `{name}` has no features"), "leave it out, or give it columns"),
        [rows, dim] => Ok((rows, dim)),
        _ => {
            let rule = format!("tensor `{name}` has shape {:?}, not (rows, features)", info.shape);
            fault(rule, "flatten each row before saving")
        }
    }
}

/// The features of a modality, with the presence flags applied.
pub(crate) fn matrix(contents: &Contents, modality: &str) -> Result<Matrix, DataError> {
    let file = contents.header.file.as_str();
    let (rows, dim) = shape(&contents.header, modality)?;
    let name = format!("x_{modality}");
    let values = match contents.tensor(&name) {
        Some((info, bytes)) => decode::floats(file, &name, info.dtype, bytes)?,
        None => Vec::new(),
    };
    let flag_name = format!("present_{modality}");
    let flags = vector(contents, &flag_name)?;
    if let Some(flags) = &flags {
        if flags.len() != rows {
            let rule = format!("tensor `{flag_name}` has {} values for {rows} rows", flags.len());
            return Err(DataError::invalid(file, rule, "give one flag per row"));
        }
        if let Some((row, flag)) = flags.iter().enumerate().find(|(_, f)| !(0..=1).contains(*f)) {
            let place = format!("tensor `{flag_name}`, row {row}");
            return Err(DataError::row(file, place, format!("the flag is {flag}"), "flags are 0 or 1"));
        }
    }
    let flags: Option<Vec<bool>> = flags.map(|f| f.into_iter().map(|f| f == 1).collect());
    Matrix::checked(&Naming::by_number(file, modality), rows, dim, values, flags)
}

/// A one-dimensional integer tensor, if there is one of that name.
pub(crate) fn vector(contents: &Contents, name: &str) -> Result<Option<Vec<i64>>, DataError> {
    let file = contents.header.file.as_str();
    let Some((info, bytes)) = contents.tensor(name) else {
        return Ok(None);
    };
    if info.shape.len() != 1 {
        let rule = format!("tensor `{name}` has shape {:?}, not (rows)", info.shape);
        return Err(DataError::invalid(file, rule, "save it with one dimension"));
    }
    decode::integers(file, name, info.dtype, bytes).map(Some)
}

/// Inputs without labels, for prediction; a modality that the file lacks is missing in every row.
pub(crate) fn inputs(
    path: &Path,
    modalities: &[(String, usize)],
) -> Result<(Modal<Matrix>, Vec<String>), DataError> {
    let contents = Contents::read(path)?;
    let file = contents.header.file.as_str();
    let there = contents.header.feature_names();
    let found =
        modalities.iter().map(|(name, _)| there.contains(name).then(|| matrix(&contents, name)).transpose());
    let found: Vec<Option<Matrix>> = found.collect::<Result<_, _>>()?;
    let ids = vector(&contents, "id").ok().flatten();
    crate::inputs::complete(file, modalities, found, &there, |rows| match ids {
        Some(ids) if ids.len() == rows => ids.iter().map(ToString::to_string).collect(),
        _ => (0..rows).map(|row| row.to_string()).collect(),
    })
}
