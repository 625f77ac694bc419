//! Labels from files: range, number of classes.

use crate::DataError;

/// Labels as class numbers, and how many classes there are: the declared number, else one more than the largest label.
pub(crate) fn classes(
    file: &str,
    labels: &[i64],
    declared: Option<usize>,
    place: &dyn Fn(usize) -> String,
) -> Result<(Vec<u32>, usize), DataError> {
    let largest = labels.iter().copied().max().unwrap_or(-1);
    let limit = declared.unwrap_or(labels.len().max(2)).min(u32::MAX as usize);
    if let Some((row, &label)) = labels.iter().enumerate().find(|(_, y)| !(0..limit as i64).contains(*y)) {
        let (rule, remedy) = if label < 0 {
            (format!("the label {label} is negative"), "number the classes from 0".to_owned())
        } else if declared.is_some() {
            let rule = format!("the label {label} is out of range for {limit} classes");
            (rule, format!("labels go from 0 to {}; correct it or declare more `classes`", limit as i64 - 1))
        } else {
            let rule = format!("the label {label} is out of range: there are only {} rows", labels.len());
            (rule, "number the classes from 0 without gaps, or declare `classes`".to_owned())
        };
        return Err(DataError::row(file, place(row), rule, remedy));
    }
    let count = declared.unwrap_or((largest + 1) as usize);
    Ok((labels.iter().map(|&y| y as u32).collect(), count))
}

/// Which modalities to read: those asked for, or all there are.
pub(crate) fn pick(
    file: &str,
    there: &[String],
    wanted: Option<&[String]>,
    layout: &str,
) -> Result<mm_core::Modalities, DataError> {
    if there.is_empty() {
        let rule = format!("no modality found: {layout}");
        return Err(DataError::invalid(file, rule, "rename the features"));
    }
    let names = wanted.unwrap_or(there);
    for name in names {
        if !there.contains(name) {
            return Err(mm_core::ConfigError::unknown("data.modalities", name, there).into());
        }
    }
    Ok(mm_core::Modalities::new(names.iter().cloned()).map_err(|e| e.within("data"))?)
}
