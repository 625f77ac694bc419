//! CSV manifests: labels, splits and features in one text file.

use crate::config::{self, Summary};
use crate::labels::{classes, pick};
use crate::table::{Layout, Table};
use crate::{DataError, Dataset, Matrix, SplitConfig};
use mm_core::{ConfigError, Modal, Modalities, RowShape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A CSV file with a header line; commas, UTF-8, with or without a byte-order mark, any line ends.
///
/// | column | meaning |
/// |---|---|
/// | `y` | the class: an integer from 0, or a name; names are numbered in sorted order |
/// | `<modality>:<anything>`, `<modality>_<number>` | a feature of that modality, in the order of the columns |
/// | `split`, optional | `train`, `val` or `test`: becomes `train_index` and so on |
/// | `group`, optional | an integer or a name, numbered in sorted order |
/// | `id`, optional | the name of the row in predictions |
/// | other columns of integers | columns, such as `actor` or `fold` |
/// | anything else | ignored, but listed in [`Dataset::ignored`] |
///
/// A modality is missing in a row where all its cells are empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsvConfig {
    /// The file.
    pub path: PathBuf,
    /// Number of classes, at least 2. Default: one more than the largest label, or as many as there are names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Which modalities, in which order. Default: all, in order of appearance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modalities: Option<Vec<String>>,
    /// Whether features get zero mean and unit spread by the training rows. Default: yes.
    #[serde(default = "config::yes")]
    pub standardize: bool,
    /// Which rows train, validate and test. Default: the column `split`.
    #[serde(default)]
    pub split: SplitConfig,
}

const LAYOUT: &str = "features are columns called `<modality>:<anything>` or `<modality>_<number>`";

impl CsvConfig {
    /// The defaults for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let split = SplitConfig::default();
        Self { path: path.into(), classes: None, modalities: None, standardize: true, split }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        config::check_path(&self.path)?;
        config::check_common(self.classes, self.modalities.as_deref(), &self.split)
    }

    fn pick(&self, layout: &Layout) -> Result<Modalities, DataError> {
        pick(&layout.file, &layout.feature_names(), self.modalities.as_deref(), LAYOUT)
    }

    pub(crate) fn peek(&self) -> Result<Summary, DataError> {
        let layout = Layout::read(&self.path)?;
        let modalities = self.pick(&layout)?;
        let dims = modalities
            .names()
            .iter()
            .map(|name| (name.clone(), RowShape::fixed([layout.columns(name).len()])));
        Ok(Summary { modalities: dims.collect(), classes: self.classes, rows: None })
    }

    pub(crate) fn read(&self) -> Result<Dataset, DataError> {
        let mut table = Table::read(&self.path, |layout| self.pick(layout))?;
        let modalities = self.pick(&table.layout)?;
        let inputs = Modal::new(std::mem::take(&mut table.matrices));
        let file = table.layout.file.clone();
        let place = |column: &'static str| {
            let lines = &table.lines;
            move |row: usize| format!("line {}, column `{column}`", lines[row])
        };
        let Some(cells) = table.cells("y") else {
            return Err(DataError::invalid(
                &file,
                "there is no column `y`",
                "add the class of each row as `y`",
            ));
        };
        let (labels, names) = codes(&file, cells, &place("y"))?;
        let declared = self.classes.or((!names.is_empty()).then_some(names.len()));
        let (labels, count) = classes(&file, &labels, declared, &place("y"))?;
        let name = self.path.file_stem().map_or_else(|| file.clone(), |s| s.to_string_lossy().into_owned());
        let mut data = Dataset::assemble(name, file.clone(), modalities, count, inputs, labels)?;
        data.class_names = names;
        if let Some(cells) = table.cells("split") {
            let parts = parts(&file, cells, &place("split"))?;
            for (part, rows) in ["train_index", "val_index", "test_index"].into_iter().zip(parts) {
                if !rows.is_empty() {
                    data = data.with_index(part, rows)?;
                }
            }
        }
        for (name, cells) in &table.text {
            let integers: Option<Vec<i64>> = cells.iter().map(|cell| cell.parse().ok()).collect();
            match (name.as_str(), integers) {
                ("y" | "split", _) => {}
                ("group", None) => {
                    data = data.with_column("group", codes(&file, cells, &place("group"))?.0)?;
                }
                (_, Some(values)) => data = data.with_column(name.as_str(), values)?,
                (_, None) => data.ignored.push(name.clone()),
            }
        }
        for (modality, _) in &table.layout.modalities {
            if data.modalities.find(modality).is_none() {
                data.ignored.push(format!("{modality}:*"));
            }
        }
        data.hash = table.hash;
        Ok(data)
    }
}

/// Cells as integers, or as names numbered in sorted order; the names are empty for integers.
fn codes(
    file: &str,
    cells: &[String],
    place: &dyn Fn(usize) -> String,
) -> Result<(Vec<i64>, Vec<String>), DataError> {
    if let Some(row) = cells.iter().position(String::is_empty) {
        return Err(DataError::row(file, place(row), "the cell is empty", "fill it in or drop the line"));
    }
    let integers: Vec<Option<i64>> = cells.iter().map(|cell| cell.parse().ok()).collect();
    match (integers.iter().position(Option::is_some), integers.iter().position(Option::is_none)) {
        (_, None) => return Ok((integers.into_iter().flatten().collect(), Vec::new())),
        (Some(_), Some(row)) => {
            let rule = format!("{:?} is not an integer, but other cells are", shorten(&cells[row]));
            return Err(DataError::row(file, place(row), rule, "use integers only, or names only"));
        }
        (None, _) => {}
    }
    let names: Vec<String> = cells.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let values = cells.iter().map(|cell| names.binary_search(cell).map_or(0, |i| i as i64));
    Ok((values.collect(), names))
}

/// The rows of train, val and test.
fn parts(
    file: &str,
    cells: &[String],
    place: &dyn Fn(usize) -> String,
) -> Result<[Vec<usize>; 3], DataError> {
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    for (row, cell) in cells.iter().enumerate() {
        let Some(part) = ["train", "val", "test"].iter().position(|part| part == cell) else {
            let rule = format!("{:?} is not a part", shorten(cell));
            return Err(DataError::row(file, place(row), rule, "write train, val or test"));
        };
        parts[part].push(row);
    }
    Ok(parts)
}

fn shorten(cell: &str) -> String {
    cell.chars().take(40).collect()
}

/// Inputs without labels, for prediction; a modality that the file lacks is missing in every row.
pub(crate) fn inputs(
    path: &Path,
    modalities: &[(String, usize)],
) -> Result<(Modal<Matrix>, Vec<String>), DataError> {
    let mut chosen = Vec::new();
    let table = Table::read(path, |layout| {
        let there = layout.feature_names();
        chosen =
            modalities.iter().map(|(name, _)| name.clone()).filter(|name| there.contains(name)).collect();
        if chosen.is_empty() {
            let wanted: Vec<&str> = modalities.iter().map(|(name, _)| name.as_str()).collect();
            let rule = format!("none of the modalities {} is there: {LAYOUT}", wanted.join(", "));
            return Err(DataError::invalid(&layout.file, rule, "give at least one modality of the model"));
        }
        Ok(Modalities::new(chosen.iter().cloned())?)
    })?;
    let mut matrices: Vec<Option<Matrix>> = table.matrices.iter().cloned().map(Some).collect();
    let found = modalities
        .iter()
        .map(|(name, _)| chosen.iter().position(|c| c == name).and_then(|i| matrices[i].take()));
    let found: Vec<Option<Matrix>> = found.collect();
    let there = table.layout.feature_names();
    crate::inputs::complete(&table.layout.file, modalities, found, &there, |rows| match table.cells("id") {
        Some(cells) => cells.to_vec(),
        None => (0..rows).map(|row| row.to_string()).collect(),
    })
}
