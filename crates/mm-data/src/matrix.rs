//! The features of one modality: a row-major matrix whose rows may be missing.

use crate::DataError;

/// Features of one modality, row after row. Missing rows hold zeros.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Number of rows.
    pub rows: usize,
    /// Features of a row.
    pub dim: usize,
    /// `rows * dim` finite numbers.
    pub values: Vec<f32>,
    /// Which rows have the modality; `None` means all of them.
    pub present: Option<Vec<bool>>,
}

/// How messages name the places of a matrix.
pub(crate) struct Naming<'a> {
    pub(crate) file: &'a str,
    pub(crate) modality: &'a str,
    pub(crate) row: &'a dyn Fn(usize) -> String,
    pub(crate) column: &'a dyn Fn(usize) -> String,
}

impl<'a> Naming<'a> {
    /// Rows and columns by number, from 0.
    pub(crate) fn by_number(file: &'a str, modality: &'a str) -> Self {
        Self { file, modality, row: &|row| format!("row {row}"), column: &|column| column.to_string() }
    }
}

impl Matrix {
    /// Checks the sizes and the numbers. A row in which every value is NaN is missing; a row with some NaN or with an
    /// infinite value is an error. Where `present` is given, the values of rows that it denies are ignored, and rows
    /// that it affirms must be finite.
    pub fn new(
        rows: usize,
        dim: usize,
        values: Vec<f32>,
        present: Option<Vec<bool>>,
    ) -> Result<Self, DataError> {
        Self::checked(&Naming::by_number("matrix", "unnamed"), rows, dim, values, present)
    }

    /// A modality that no row has.
    pub fn missing(rows: usize, dim: usize) -> Self {
        Self { rows, dim, values: vec![0.0; rows * dim], present: Some(vec![false; rows]) }
    }

    pub(crate) fn checked(
        naming: &Naming<'_>,
        rows: usize,
        dim: usize,
        mut values: Vec<f32>,
        flags: Option<Vec<bool>>,
    ) -> Result<Self, DataError> {
        let Naming { file, modality, .. } = naming;
        if dim == 0 {
            let rule = format!("modality `{modality}` has no features");
            return Err(DataError::invalid(file, rule, "leave it out, or give it at least one column"));
        }
        if rows.checked_mul(dim) != Some(values.len()) {
            let rule = format!("modality `{modality}` has {} values for {rows} x {dim}", values.len());
            return Err(DataError::invalid(file, rule, "give rows times dim values"));
        }
        if let Some(flags) = &flags
            && flags.len() != rows
        {
            let rule = format!("modality `{modality}` has {} presence flags for {rows} rows", flags.len());
            return Err(DataError::invalid(file, rule, "give one flag per row"));
        }
        let flagged = flags.is_some();
        let mut present = flags.unwrap_or_else(|| vec![true; rows]);
        for (r, row) in values.chunks_exact_mut(dim).enumerate() {
            if present[r] && row.iter().all(|x| x.is_finite()) {
                continue;
            }
            if present[r] && (flagged || !row.iter().all(|x| x.is_nan())) {
                return Err(not_finite(naming, r, row, flagged));
            }
            present[r] = false;
            row.fill(0.0);
        }
        let present = present.contains(&false).then_some(present);
        Ok(Self { rows, dim, values, present })
    }

    /// The features of one row.
    ///
    /// # Panics
    /// Where `row` is not below `rows`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.dim..(row + 1) * self.dim]
    }

    /// Whether a row has the modality.
    ///
    /// # Panics
    /// Where `row` is not below `rows`.
    pub fn is_present(&self, row: usize) -> bool {
        self.present.as_ref().is_none_or(|p| p[row])
    }

    /// How many rows have the modality.
    pub fn present_count(&self) -> usize {
        self.present.as_ref().map_or(self.rows, |p| p.iter().filter(|&&p| p).count())
    }
}

fn not_finite(naming: &Naming<'_>, r: usize, row: &[f32], flagged: bool) -> DataError {
    let (column, value) =
        row.iter().enumerate().find(|(_, x)| !x.is_finite()).map_or((0, f32::NAN), |(c, &x)| (c, x));
    let place =
        format!("{}, modality `{}`, column {}", (naming.row)(r), naming.modality, (naming.column)(column));
    let rule = match (value.is_nan(), flagged) {
        (false, _) => format!("the value is {value}, or too large for 32-bit floats"),
        (true, true) => "the value is missing (NaN) although the presence flag is 1".to_owned(),
        (true, false) => "the value is missing (NaN) but others of the row are not".to_owned(),
    };
    let remedy = if value.is_nan() {
        "fill it in, or mark the whole row of this modality as missing (all NaN, or presence 0)"
    } else {
        "every feature must be a finite number: repair the value or drop the row"
    };
    DataError::row(naming.file, place, rule, remedy)
}
