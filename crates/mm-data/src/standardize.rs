//! Zero mean and unit spread for every feature, by the training rows.

use crate::{DataError, Dataset, Input, Matrix, pack::PackedInput};
use candle_core::{DType, Device, Tensor};
use mm_core::{Modal, Modalities, Modality};
use std::collections::BTreeMap;

/// Mean and standard deviation of every feature over the training rows that have the modality.
///
/// $$ x' = (x - \mu) / \sigma $$
///
/// Sums run in f64 over the rows in ascending order, in two passes; sigma is the population's (divided by n), as in
/// scikit-learn. A feature that is constant over those rows has sigma 1. Missing rows stay zero, which after
/// standardisation is the mean. Rows outside of training change no statistic.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardizer {
    modalities: Modalities,
    mean: Modal<Vec<f64>>,
    std: Modal<Vec<f64>>,
}

impl Standardizer {
    /// Takes the statistics from `train_rows` of a data set.
    pub fn fit(data: &Dataset, train_rows: &[usize]) -> Result<Self, DataError> {
        let mut rows = train_rows.to_vec();
        rows.sort_unstable();
        if let Some(row) = rows.iter().find(|&&row| row >= data.rows()) {
            let rule = format!("train names row {row}, but there are {} rows", data.rows());
            return Err(DataError::split(&data.origin, rule, "rows count from 0"));
        }
        let stats = data.inputs.try_map(|m, x| {
            let found = match x {
                Input::Matrix(x) => statistics(x, &rows),
                Input::Packed(x) => packed_statistics(x, &rows)?,
            };
            found.ok_or_else(|| {
                let rule = format!("modality `{}` is missing in every training row", data.modalities.name(m));
                let remedy = "leave it out of `data.modalities`, or train on rows that have it";
                DataError::split(&data.origin, rule, remedy)
            })
        })?;
        let (mean, std) = stats.into_values().into_iter().unzip();
        Ok(Self { modalities: data.modalities.clone(), mean: Modal::new(mean), std: Modal::new(std) })
    }

    /// The modalities it was fitted on.
    pub fn modalities(&self) -> &Modalities {
        &self.modalities
    }

    /// The mean of each feature of a modality.
    pub fn mean(&self, m: Modality) -> &[f64] {
        &self.mean[m]
    }

    /// The standard deviation of each feature of a modality, never 0.
    pub fn std(&self, m: Modality) -> &[f64] {
        &self.std[m]
    }

    /// Standardises every row of a data set in place; the modalities must be those of the fit, in the same order.
    pub fn apply(&self, data: &mut Dataset) -> Result<(), DataError> {
        if data.modalities != self.modalities {
            let rule = format!(
                "modalities {} do not match the statistics, which are of {}",
                data.modalities.names().join(", "),
                self.modalities.names().join(", ")
            );
            return Err(DataError::invalid(&data.origin, rule, "name the same ones in the same order"));
        }
        let origin = data.origin.clone();
        for (m, x) in data.inputs.iter_mut() {
            match x {
                Input::Matrix(x) => self.apply_matrix(&origin, m, x)?,
                Input::Packed(x) => {
                    let (mean, std) = (&self.mean[m], &self.std[m]);
                    if x.statistics_width().unwrap_or(0) != mean.len() {
                        let rule = format!(
                            "modality `{}` needs {} means, but the statistics have {}",
                            self.modalities.name(m),
                            x.statistics_width().unwrap_or(0),
                            mean.len()
                        );
                        return Err(DataError::invalid(&origin, rule, "normalise as in training"));
                    }
                    if !mean.is_empty() {
                        x.set_statistics(mean.clone(), std.clone());
                    }
                }
            }
        }
        Ok(())
    }

    /// Standardises inputs such as those of [`crate::load_inputs`] in place; `origin` names them in messages.
    pub fn apply_inputs(&self, origin: &str, inputs: &mut Modal<Matrix>) -> Result<(), DataError> {
        if inputs.len() != self.modalities.len() {
            let rule =
                format!("{} modalities, but the statistics are of {}", inputs.len(), self.modalities.len());
            return Err(DataError::invalid(origin, rule, "give the modalities of the training set"));
        }
        for (m, x) in inputs.iter_mut() {
            self.apply_matrix(origin, m, x)?;
        }
        Ok(())
    }

    fn apply_matrix(&self, origin: &str, m: Modality, x: &mut Matrix) -> Result<(), DataError> {
        let (mean, std, name) = (&self.mean[m], &self.std[m], self.modalities.name(m));
        if x.dim != mean.len() {
            let rule =
                format!("modality `{name}` has {} features, but the statistics are of {}", x.dim, mean.len());
            return Err(DataError::invalid(origin, rule, "give the features of the training set"));
        }
        for row in 0..x.rows {
            if !x.is_present(row) {
                continue;
            }
            let values = &mut x.values[row * x.dim..(row + 1) * x.dim];
            for ((value, mean), std) in values.iter_mut().zip(mean).zip(std) {
                *value = ((f64::from(*value) - mean) / std) as f32;
            }
            if let Some(column) = values.iter().position(|v| !v.is_finite()) {
                let place = format!("row {row}, modality `{name}`, column {column}");
                let rule = "the value is too far from the training mean for 32-bit floats";
                return Err(DataError::row(origin, place, rule, "repair the value or drop the feature"));
            }
        }
        Ok(())
    }

    /// As f64 tensors `mean_<modality>` and `std_<modality>`, to save beside a model.
    pub fn to_tensors(&self) -> Result<BTreeMap<String, Tensor>, DataError> {
        let mut tensors = BTreeMap::new();
        for m in self.modalities.iter() {
            for (kind, values) in [("mean", &self.mean[m]), ("std", &self.std[m])] {
                let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                tensors.insert(format!("{kind}_{}", self.modalities.name(m)), tensor);
            }
        }
        Ok(tensors)
    }

    /// From the tensors of [`Standardizer::to_tensors`]; others among them are ignored.
    pub fn from_tensors(
        modalities: &Modalities,
        tensors: &BTreeMap<String, Tensor>,
    ) -> Result<Self, DataError> {
        let read = |kind: &str, m: Modality| -> Result<Vec<f64>, DataError> {
            let name = format!("{kind}_{}", modalities.name(m));
            let Some(tensor) = tensors.get(&name) else {
                let rule = format!("there is no tensor `{name}`");
                return Err(DataError::invalid("standardisation", rule, "save it with the model"));
            };
            let values = tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
            if values.iter().any(|v| !v.is_finite() || (kind == "std" && *v <= 0.0)) {
                let rule = format!("tensor `{name}` has a value that is not allowed");
                let remedy = "means are finite and standard deviations above 0: save it again";
                return Err(DataError::invalid("standardisation", rule, remedy));
            }
            Ok(values)
        };
        let mean = Modal::try_from_fn(modalities.len(), |m| read("mean", m))?;
        let std = Modal::try_from_fn(modalities.len(), |m| read("std", m))?;
        for m in modalities.iter() {
            if mean[m].len() != std[m].len() {
                let rule = format!("mean and std of `{}` differ in length", modalities.name(m));
                return Err(DataError::invalid("standardisation", rule, "save it again"));
            }
        }
        Ok(Self { modalities: modalities.clone(), mean, std })
    }
}

/// Mean and spread of each feature over those of `rows` that are present; `None` where none is.
fn statistics(x: &Matrix, rows: &[usize]) -> Option<(Vec<f64>, Vec<f64>)> {
    let rows = || rows.iter().filter(|&&row| x.is_present(row)).map(|&row| x.row(row));
    let first = rows().next()?;
    let count = rows().count() as f64;
    let mut mean = vec![0f64; x.dim];
    let mut constant = vec![true; x.dim];
    for row in rows() {
        for (j, &value) in row.iter().enumerate() {
            mean[j] += f64::from(value);
            constant[j] &= value == first[j];
        }
    }
    for m in &mut mean {
        *m /= count;
    }
    let mut square = vec![0f64; x.dim];
    for row in rows() {
        for ((s, m), &value) in square.iter_mut().zip(&mean).zip(row) {
            *s += (f64::from(value) - m).powi(2);
        }
    }
    // A constant feature is told by its values: the rounded mean of equal numbers need not equal them.
    let spread = square.iter().zip(&constant).map(|(s, constant)| {
        let std = (s / count).sqrt();
        if *constant || std == 0.0 { 1.0 } else { std }
    });
    let std = spread.collect();
    Some((mean, std))
}

/// Means and spreads.
type Statistics = (Vec<f64>, Vec<f64>);

/// Mean and spread for each value of the last axis (or in all) over all places of the rows that are present: `None` where
/// none is, and nothing to subtract where the rows are not normalised by statistics. Rows are read twice.
fn packed_statistics(x: &PackedInput, rows: &[usize]) -> Result<Option<Statistics>, DataError> {
    let present: Vec<usize> = rows.iter().copied().filter(|&row| x.is_present(row)).collect();
    if present.is_empty() {
        return Ok(None);
    }
    let Some(width) = x.statistics_width() else { return Ok(Some((Vec::new(), Vec::new()))) };
    let mut mean = vec![0f64; width];
    let mut count = 0f64;
    for &row in &present {
        let values = x.raw(row)?;
        count += (values.len() / width) as f64;
        for chunk in values.chunks_exact(width) {
            mean.iter_mut().zip(chunk).for_each(|(m, &v)| *m += f64::from(v));
        }
    }
    for m in &mut mean {
        *m /= count;
    }
    let mut square = vec![0f64; width];
    for &row in &present {
        for chunk in x.raw(row)?.chunks_exact(width) {
            square.iter_mut().zip(&mean).zip(chunk).for_each(|((s, m), &v)| *s += (f64::from(v) - m).powi(2));
        }
    }
    // The rounded mean of equal numbers need not equal them: a spread of rounding alone is none.
    let spread = |(s, m): (f64, &f64)| {
        let std = (s / count).sqrt();
        if std <= 1e-12 * m.abs().max(f64::MIN_POSITIVE) || std == 0.0 { 1.0 } else { std }
    };
    let std = square.into_iter().zip(&mean).map(spread).collect();
    Ok(Some((mean, std)))
}
