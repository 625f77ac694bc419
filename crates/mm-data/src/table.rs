//! CSV tables: which columns are features, and the cells as numbers or text.

use crate::dataset::hex;
use crate::matrix::Naming;
use crate::safe_file::open;
use crate::{DataError, Matrix};
use csv::StringRecord;
use mm_core::Modalities;
use sha2::{Digest, Sha256};
use std::io::{BufReader, Read};
use std::path::Path;

/// The longest header line that is read.
const MAX_HEADER: u64 = 1 << 26;

/// The columns of a table by their role.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) file: String,
    header: Vec<String>,
    /// Columns of each modality, in order of appearance.
    pub(crate) modalities: Vec<(String, Vec<usize>)>,
    /// Every other column.
    plain: Vec<(String, usize)>,
}

/// A table whose features are parsed for the modalities asked for; other cells are text.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) layout: Layout,
    pub(crate) hash: String,
    /// The line of each row, from 1.
    pub(crate) lines: Vec<u64>,
    /// One matrix per modality asked for.
    pub(crate) matrices: Vec<Matrix>,
    /// The cells of each other column.
    pub(crate) text: Vec<(String, Vec<String>)>,
}

impl Layout {
    /// Reads the header line only.
    pub(crate) fn read(path: &Path) -> Result<Self, DataError> {
        let file = path.display().to_string();
        let handle = open(path)?;
        let mut reader = csv_reader(BufReader::new(handle.take(MAX_HEADER)));
        let mut record = StringRecord::new();
        let found = reader.read_record(&mut record).map_err(|e| broken(&file, &e))?;
        if reader.position().byte() >= MAX_HEADER {
            let rule = format!("the header line is longer than {MAX_HEADER} bytes");
            return Err(DataError::invalid(&file, rule, "give a CSV file with line breaks"));
        }
        Self::parse(file, found.then_some(&record))
    }

    fn parse(file: String, record: Option<&StringRecord>) -> Result<Self, DataError> {
        let Some(record) = record else {
            return Err(DataError::invalid(&file, "the file is empty", "start it with a header line"));
        };
        let header: Vec<String> =
            record.iter().map(|cell| cell.trim_start_matches('\u{feff}').trim().to_owned()).collect();
        let mut modalities: Vec<(String, Vec<usize>)> = Vec::new();
        let mut plain = Vec::new();
        for (column, name) in header.iter().enumerate() {
            let place = format!("line 1, column {}", column + 1);
            if name.is_empty() {
                return Err(DataError::row(&file, place, "the column has no name", "name every column"));
            }
            if header[..column].contains(name) {
                let rule = format!("the name `{name}` appears twice");
                return Err(DataError::row(&file, place, rule, "give every column a name of its own"));
            }
            match modality_of(name) {
                None => plain.push((name.clone(), column)),
                Some(modality) => match modalities.iter_mut().find(|(m, _)| m == modality) {
                    Some((_, columns)) => columns.push(column),
                    None => modalities.push((modality.to_owned(), vec![column])),
                },
            }
        }
        Ok(Self { file, header, modalities, plain })
    }

    /// The names of the modalities, in order of appearance.
    pub(crate) fn feature_names(&self) -> Vec<String> {
        self.modalities.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The columns of a modality; none where it is not there.
    pub(crate) fn columns(&self, modality: &str) -> &[usize] {
        self.modalities.iter().find(|(name, _)| name == modality).map_or(&[], |(_, columns)| columns)
    }
}

impl Table {
    /// Reads the table; `pick` says which modalities to parse.
    pub(crate) fn read(
        path: &Path,
        pick: impl FnOnce(&Layout) -> Result<Modalities, DataError>,
    ) -> Result<Self, DataError> {
        let file = path.display().to_string();
        let mut bytes = Vec::new();
        open(path)?.read_to_end(&mut bytes).map_err(|source| DataError::Io { file: file.clone(), source })?;
        let hash = hex(&Sha256::digest(&bytes));
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let line = bytes[..e.valid_up_to()].split(|&b| b == b'\n').count();
            DataError::row(&file, format!("line {line}"), "the text is not UTF-8", "save the file as UTF-8")
        })?;
        let mut reader = csv_reader(text.strip_prefix('\u{feff}').unwrap_or(text).as_bytes());
        let mut record = StringRecord::new();
        let found = reader.read_record(&mut record).map_err(|e| broken(&file, &e))?;
        let layout = Layout::parse(file, found.then_some(&record))?;
        let modalities = pick(&layout)?;
        let columns: Vec<&[usize]> = modalities.names().iter().map(|name| layout.columns(name)).collect();
        let mut values: Vec<Vec<f32>> = vec![Vec::new(); columns.len()];
        let mut text: Vec<(String, Vec<String>)> =
            layout.plain.iter().map(|(name, _)| (name.clone(), Vec::new())).collect();
        let mut lines = Vec::new();
        while reader.read_record(&mut record).map_err(|e| broken(&layout.file, &e))? {
            let line = record.position().map_or(0, csv::Position::line);
            layout.check_width(&record, line)?;
            for (columns, values) in columns.iter().zip(&mut values) {
                for &column in *columns {
                    values.push(layout.number(&record[column], column, line)?);
                }
            }
            for ((_, cells), (_, column)) in text.iter_mut().zip(&layout.plain) {
                cells.push(record[*column].trim().to_owned());
            }
            lines.push(line);
        }
        if lines.is_empty() {
            let remedy = "give it at least one line after the header";
            return Err(DataError::invalid(&layout.file, "the data set is empty", remedy));
        }
        let matrices =
            modalities.names().iter().zip(&columns).zip(values).map(|((name, columns), values)| {
                let naming = Naming {
                    file: &layout.file,
                    modality: name,
                    row: &|row| format!("line {}", lines[row]),
                    column: &|column| format!("`{}`", layout.header[columns[column]]),
                };
                Matrix::checked(&naming, lines.len(), columns.len(), values, None)
            });
        let matrices = matrices.collect::<Result<_, _>>()?;
        Ok(Self { layout, hash, lines, matrices, text })
    }

    /// The cells of a column that is not a feature.
    pub(crate) fn cells(&self, name: &str) -> Option<&[String]> {
        self.text.iter().find(|(n, _)| n == name).map(|(_, cells)| cells.as_slice())
    }
}

impl Layout {
    fn check_width(&self, record: &StringRecord, line: u64) -> Result<(), DataError> {
        let (found, wanted) = (record.len(), self.header.len());
        if found == wanted {
            return Ok(());
        }
        let (place, remedy) = if found < wanted {
            let remedy = "fill the line up; an empty cell between commas is a missing value";
            (format!("line {line}, column `{}`", self.header[found]), remedy)
        } else {
            (format!("line {line}"), "remove the extra cells, or quote cells that contain commas")
        };
        let rule = format!("the line has {found} cells, but the header has {wanted}");
        Err(DataError::row(&self.file, place, rule, remedy))
    }

    fn number(&self, cell: &str, column: usize, line: u64) -> Result<f32, DataError> {
        let cell = cell.trim();
        if cell.is_empty() {
            return Ok(f32::NAN);
        }
        cell.parse().map_err(|_| {
            let shown: String = cell.chars().take(40).collect();
            let place = format!("line {line}, column `{}`", self.header[column]);
            let rule = format!("{shown:?} is not a number");
            DataError::row(
                &self.file,
                place,
                rule,
                "write it as 1.5 or 1.5e3, or leave the cell empty if missing",
            )
        })
    }
}

/// The modality of a column called `<modality>:<anything>` or `<modality>_<number>`.
fn modality_of(name: &str) -> Option<&str> {
    if let Some((modality, _)) = name.split_once(':') {
        return Some(modality.trim()).filter(|m| !m.is_empty());
    }
    let (modality, number) = name.rsplit_once('_')?;
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (digits && !modality.is_empty()).then_some(modality)
}

fn csv_reader<R: Read>(source: R) -> csv::Reader<R> {
    csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(source)
}

fn broken(file: &str, error: &csv::Error) -> DataError {
    let line = error.position().map_or(1, csv::Position::line);
    DataError::row(file, format!("line {line}"), error.to_string(), "save the file as CSV in UTF-8")
}
