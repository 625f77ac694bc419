//! Inputs without labels, for prediction.

use crate::{DataError, Matrix, features, manifest};
use mm_core::Modal;
use std::path::Path;

/// Reads inputs for a model whose modalities have these names and feature counts, from a `.safetensors` file or a
/// `.csv` manifest (layouts: [`crate::FeaturesConfig`], [`crate::CsvConfig`]); labels are not needed.
///
/// A modality that the file lacks is missing in every row; a row that has no modality at all is an error. The second
/// value is the id of each row: the column `id` if there is one, else the row's number from 0.
pub fn load_inputs(
    path: impl AsRef<Path>,
    modalities: &[(String, usize)],
) -> Result<(Modal<Matrix>, Vec<String>), DataError> {
    let path = path.as_ref();
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some("safetensors") => features::inputs(path, modalities),
        Some("csv") => manifest::inputs(path, modalities),
        _ => {
            let rule = "the kind of file is not known";
            let remedy = "give a file that ends in .safetensors or .csv";
            Err(DataError::invalid(&path.display().to_string(), rule, remedy))
        }
    }
}

/// Checks sizes and fills in what is missing.
pub(crate) fn complete(
    file: &str,
    modalities: &[(String, usize)],
    found: Vec<Option<Matrix>>,
    there: &[String],
    ids: impl FnOnce(usize) -> Vec<String>,
) -> Result<(Modal<Matrix>, Vec<String>), DataError> {
    let wanted: Vec<&str> = modalities.iter().map(|(name, _)| name.as_str()).collect();
    let Some(rows) = found.iter().flatten().map(|x| x.rows).next() else {
        let list = |names: &[&str]| {
            if names.is_empty() { "none".to_owned() } else { names.join(", ") }
        };
        let there: Vec<&str> = there.iter().map(String::as_str).collect();
        let rule = format!("none of the modalities {} is there; found: {}", list(&wanted), list(&there));
        return Err(DataError::invalid(file, rule, "give at least one modality of the model"));
    };
    if rows == 0 {
        return Err(DataError::invalid(file, "the data set is empty", "give it at least one row"));
    }
    for ((name, dim), x) in modalities.iter().zip(&found) {
        let Some(x) = x else { continue };
        if x.dim != *dim {
            let rule = format!("modality `{name}` has {} features, but the model was made for {dim}", x.dim);
            return Err(DataError::invalid(file, rule, "give the features that the model was trained on"));
        }
        if x.rows != rows {
            let rule = format!("modality `{name}` has {} rows, others have {rows}", x.rows);
            return Err(DataError::invalid(file, rule, "give every modality the same rows"));
        }
    }
    let inputs: Modal<Matrix> = found
        .into_iter()
        .zip(modalities)
        .map(|(x, (_, dim))| x.unwrap_or_else(|| Matrix::missing(rows, *dim)))
        .collect();
    let ids = ids(rows);
    if let Some(row) = (0..rows).find(|&row| inputs.iter().all(|(_, x)| !x.is_present(row))) {
        let place = format!("row {row} (id {})", ids.get(row).map_or("?", String::as_str));
        return Err(DataError::row(
            file,
            place,
            "the row has none of the modalities",
            "drop it or fill one in",
        ));
    }
    Ok((inputs, ids))
}
