//! A labelled set of rows with one input per modality.

use crate::matrix::Naming;
use crate::{DataError, Input, Matrix};
use mm_core::{ConfigError, Modal, Modalities, RowShape};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Rows with a label and one input per modality: a vector in memory, or an array of any shape in a pack.
///
/// Made by [`Dataset::new`], which checks everything, or by [`crate::DataConfig::load`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Dataset {
    /// Short name: the file's stem, or `synthetic`.
    pub name: String,
    /// What messages call it: the path of the file as it was given, or the name.
    pub origin: String,
    /// The modalities, in the order of `inputs`.
    pub modalities: Modalities,
    /// Number of classes, at least 2.
    pub classes: usize,
    /// Names of the classes where the source has them, else empty.
    pub class_names: Vec<String>,
    /// What each modality gives.
    pub inputs: Modal<Input>,
    /// The class of each row.
    pub labels: Vec<u32>,
    /// The name of each row where the source has them, else empty.
    pub ids: Vec<String>,
    /// Other integer columns, one value per row: actor, fold, `video_id`, …
    pub columns: BTreeMap<String, Vec<i64>>,
    /// Named lists of rows, such as `train_index`.
    pub indices: BTreeMap<String, Vec<usize>>,
    /// What the file has beyond that and was not read, such as extra float tensors.
    pub ignored: Vec<String>,
    /// SHA-256 in hexadecimal: of the bytes of the file, of the configuration of a synthetic set, else of the content.
    pub hash: String,
}

impl Dataset {
    /// Checks sizes, labels and numbers. Columns and index lists are added by [`Dataset::with_column`] and
    /// [`Dataset::with_index`]; the hash is that of the content.
    pub fn new(
        name: impl Into<String>,
        modalities: Modalities,
        classes: usize,
        inputs: Modal<Matrix>,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        let name = name.into();
        let mut set = Self::assemble(name.clone(), name, modalities, classes, inputs, labels)?;
        set.hash = set.content_hash();
        Ok(set)
    }

    pub(crate) fn assemble(
        name: String,
        origin: String,
        modalities: Modalities,
        classes: usize,
        inputs: Modal<Matrix>,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        let rows = labels.len();
        if inputs.len() != modalities.len() {
            let rule = format!("{} matrices for {} modalities", inputs.len(), modalities.len());
            return Err(DataError::invalid(&origin, rule, "give one matrix per modality"));
        }
        let inputs = modalities.iter().zip(inputs.into_values()).map(|(m, x)| {
            if x.rows != rows {
                return Ok(Input::Matrix(x)); // Refused below, with the others.
            }
            let naming = Naming::by_number(&origin, modalities.name(m));
            Matrix::checked(&naming, rows, x.dim, x.values, x.present).map(Input::Matrix)
        });
        let inputs = Modal::new(inputs.collect::<Result<_, DataError>>()?);
        Self::assemble_inputs(name, origin, modalities, classes, inputs, labels)
    }

    pub(crate) fn assemble_inputs(
        name: String,
        origin: String,
        modalities: Modalities,
        classes: usize,
        inputs: Modal<Input>,
        labels: Vec<u32>,
    ) -> Result<Self, DataError> {
        let rows = labels.len();
        if rows == 0 {
            return Err(DataError::invalid(&origin, "the data set is empty", "give it at least one row"));
        }
        if classes < 2 {
            let rule = format!("the labels have {classes} class only");
            return Err(DataError::invalid(&origin, rule, "a classifier needs at least 2 classes"));
        }
        if let Some((row, label)) = labels.iter().enumerate().find(|(_, y)| **y as usize >= classes) {
            let rule = format!("the label {label} is out of range for {classes} classes");
            let remedy = format!("labels go from 0 to {}", classes - 1);
            return Err(DataError::row(&origin, format!("row {row}"), rule, remedy));
        }
        for (m, x) in inputs.iter() {
            if x.rows() != rows {
                let rule = format!(
                    "modality `{}` has {} rows, but there are {rows} labels",
                    modalities.name(m),
                    x.rows()
                );
                return Err(DataError::invalid(&origin, rule, "give every modality one row per label"));
            }
        }
        Ok(Self {
            name,
            origin,
            modalities,
            classes,
            class_names: Vec::new(),
            inputs,
            labels,
            ids: Vec::new(),
            columns: BTreeMap::new(),
            indices: BTreeMap::new(),
            ignored: Vec::new(),
            hash: String::new(),
        })
    }

    /// Adds an integer column; it must have one value per row.
    pub fn with_column(mut self, name: impl Into<String>, values: Vec<i64>) -> Result<Self, DataError> {
        let name = name.into();
        if values.len() != self.rows() {
            let rule = format!("column `{name}` has {} values for {} rows", values.len(), self.rows());
            return Err(DataError::invalid(&self.origin, rule, "give one value per row"));
        }
        self.columns.insert(name, values);
        Ok(self)
    }

    /// Adds a named list of rows; each must be below the number of rows.
    pub fn with_index(mut self, name: impl Into<String>, rows: Vec<usize>) -> Result<Self, DataError> {
        let name = name.into();
        if let Some((position, row)) = rows.iter().enumerate().find(|(_, r)| **r >= self.rows()) {
            let rule = format!("index `{name}` names row {row}, but there are {} rows", self.rows());
            let remedy = format!("rows go from 0 to {}", self.rows() - 1);
            return Err(DataError::row(&self.origin, format!("entry {position}"), rule, remedy));
        }
        self.indices.insert(name, rows);
        Ok(self)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Name of each modality and what its rows look like, in order.
    pub fn shapes(&self) -> Vec<(String, RowShape)> {
        self.inputs.iter().map(|(m, x)| (self.modalities.name(m).to_owned(), x.shape())).collect()
    }

    /// The same set with these modalities only, in this order.
    pub fn select_modalities(&self, names: &[String]) -> Result<Self, DataError> {
        let modalities = Modalities::new(names.iter().cloned()).map_err(|e| e.within("data"))?;
        let inputs = modalities.names().iter().map(|name| {
            let m = self.modalities.require("data.modalities", name)?;
            Ok(self.inputs[m].clone())
        });
        let inputs = Modal::new(inputs.collect::<Result<_, ConfigError>>()?);
        Ok(Self {
            name: self.name.clone(),
            origin: self.origin.clone(),
            modalities,
            classes: self.classes,
            class_names: self.class_names.clone(),
            inputs,
            labels: self.labels.clone(),
            ids: self.ids.clone(),
            columns: self.columns.clone(),
            indices: self.indices.clone(),
            ignored: self.ignored.clone(),
            hash: self.hash.clone(),
        })
    }

    /// The column called `name`, or an error for `field` that lists the columns there are.
    pub fn column(&self, field: &str, name: &str) -> Result<&[i64], ConfigError> {
        if let Some(values) = self.columns.get(name) {
            return Ok(values);
        }
        if self.columns.is_empty() {
            let rule = format!("{} has no integer columns", self.origin);
            return Err(ConfigError::new(field, format!("\"{name}\""), rule));
        }
        Err(ConfigError::unknown(field, name, &self.columns.keys().collect::<Vec<_>>()))
    }

    /// The rows whose value in a column satisfies `keep`, in ascending order.
    pub fn rows_with(&self, column: &str, keep: impl Fn(i64) -> bool) -> Result<Vec<usize>, DataError> {
        let values = self.column("column", column)?;
        Ok(values.iter().enumerate().filter(|(_, v)| keep(**v)).map(|(row, _)| row).collect())
    }

    /// How many of `rows` have each class. Rows that do not exist are not counted.
    pub fn class_counts(&self, rows: &[usize]) -> Vec<usize> {
        let mut counts = vec![0; self.classes];
        for label in rows.iter().filter_map(|&r| self.labels.get(r)) {
            counts[*label as usize] += 1;
        }
        counts
    }

    fn content_hash(&self) -> String {
        let mut hasher = Sha256::new();
        for label in &self.labels {
            hasher.update(label.to_le_bytes());
        }
        for (m, x) in self.inputs.iter() {
            hasher.update(self.modalities.name(m).as_bytes());
            if let Input::Matrix(x) = x {
                hasher.update((x.dim as u64).to_le_bytes());
                for value in &x.values {
                    hasher.update(value.to_le_bytes());
                }
            }
            for row in 0..x.rows() {
                hasher.update([u8::from(x.is_present(row))]);
            }
        }
        hex(&hasher.finalize())
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |b: u8| char::from_digit(u32::from(b), 16).unwrap_or('?');
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}
