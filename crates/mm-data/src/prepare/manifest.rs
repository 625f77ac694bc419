//! Any data set, by a CSV file.
//!
//! `manifest.csv` in the folder of the raw files has a line for each row:
//!
//! | column | meaning |
//! |---|---|
//! | `id` | its name, unique |
//! | `label` | its class, a name; classes are numbered by the alphabet, or by number where all are numbers |
//! | `split` | optional: `train`, `val` or `test` |
//! | `group`, `actor`, `speaker`, `fold`, … | optional: any column that ends up as numbers: whole numbers stay, names are numbered by the alphabet |
//! | any other | a modality: a path from the folder, or nothing where the row lacks it |
//!
//! `classes.txt` beside it, optional: the name of a class per line. Then a label that is none of them is a fault, and classes are
//! numbered in that order.
//!
//! A manifest may come from somebody else, so a path is one from the folder: absolute ones, `..`, and links that lead out of
//! it are refused.
//!
//! A column is a modality if its first cell that is not empty ends in `.wav`, `.flac`, `.mp3`, `.m4a`, `.ogg`, `.png`, `.jpg`,
//! `.jpeg` or `.npy`.

use super::lists::Lists;
use super::{ListedRow, Listing, Raw};
use crate::DataError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

const SOUND: [&str; 6] = ["wav", "flac", "mp3", "m4a", "aac", "ogg"];
const IMAGE: [&str; 3] = ["png", "jpg", "jpeg"];

pub(super) fn list(raw: &Path) -> Result<Listing, DataError> {
    let sheet = Sheet::read(&raw.join("manifest.csv"))?;
    let fixed = ["id", "label", "split"];
    let names = || sheet.head.iter().filter(|name| !fixed.contains(&name.as_str()));
    let modalities: Vec<String> = names().filter(|name| sheet.is_path(name)).cloned().collect();
    if modalities.is_empty() {
        let rule = "no column holds paths of sounds, images or arrays";
        return Err(DataError::invalid(&sheet.file, rule, "add a column of paths for each modality"));
    }
    let mut lists = Lists::of(raw);
    let (labels, classes) = match lists.read("classes.txt")? {
        Some(text) => sheet.known("label", Lists::lines(&text).map(|(_, name)| name.to_owned()).collect())?,
        None => sheet.numbered("label")?,
    };
    sheet.unique("id")?;
    let folder = Folder::of(raw);
    let mut rows = Vec::new();
    for (line, label) in labels.into_iter().enumerate() {
        let mut files = Vec::new();
        for name in &modalities {
            let cell = sheet.cell(line, name)?;
            files.push(match kind(cell) {
                _ if cell.is_empty() => Raw::Missing,
                Some(make) => make(folder.inside(&sheet, line, name)?),
                None => return Err(sheet.fault(line, name, "is no path of a sound, an image or an array")),
            });
        }
        rows.push(ListedRow { id: sheet.cell(line, "id")?.to_owned(), label: label as u32, raw: files });
    }
    let mut columns = BTreeMap::new();
    for name in names().filter(|name| !modalities.contains(name)) {
        columns.insert(name.clone(), sheet.numbered(name)?.0);
    }
    let indices =
        if sheet.head.iter().any(|name| name == "split") { sheet.parts("split")? } else { BTreeMap::new() };
    let name = raw.file_name().map_or_else(|| "manifest".to_owned(), |n| n.to_string_lossy().into_owned());
    let lists = lists.sums;
    Ok(Listing { name, classes, modalities, rows, columns, indices, lists, warnings: Vec::new() })
}

fn kind(cell: &str) -> Option<fn(PathBuf) -> Raw> {
    let extension = Path::new(cell).extension()?.to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        e if SOUND.contains(&e) => Some(Raw::Sound),
        e if IMAGE.contains(&e) => Some(Raw::Image),
        "npy" => Some(Raw::Array),
        _ => None,
    }
}

/// The folder that paths of a sheet may not leave.
pub(super) struct Folder<'a> {
    raw: &'a Path,
    /// Where it really lies; unknown where the system does not say.
    real: Option<PathBuf>,
}

impl<'a> Folder<'a> {
    pub(super) fn of(raw: &'a Path) -> Self {
        Self { raw, real: raw.canonicalize().ok() }
    }

    /// The file that a cell names. Whether it is there is asked when it is read.
    pub(super) fn inside(&self, sheet: &Sheet, line: usize, column: &str) -> Result<PathBuf, DataError> {
        let cell = sheet.cell(line, column)?;
        // A drive's letter is a name on other systems than its own, but no name that anybody gives.
        let drive = cell.as_bytes().get(1) == Some(&b':') || cell.contains('\\');
        let plain = Path::new(cell).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || drive || cell.contains('\0') {
            let rule =
                "is no path inside the folder: `..`, `.`, drives and paths from the root are not followed";
            return Err(sheet.fault(line, column, rule));
        }
        let path = self.raw.join(cell);
        if let (Some(home), Ok(real)) = (&self.real, path.canonicalize())
            && !real.starts_with(home)
        {
            let rule = "leads out of the folder by a link: copy the file, or give the folder that holds both";
            return Err(sheet.fault(line, column, rule));
        }
        // `a//b` and `a/b` are one file.
        Ok(self.raw.join(Path::new(cell).components().collect::<PathBuf>()))
    }
}

/// A CSV file with a head, as text.
#[derive(Debug)]
pub(super) struct Sheet {
    pub(super) file: String,
    head: Vec<String>,
    lines: Vec<csv::StringRecord>,
}

impl Sheet {
    /// Reads the whole file; every line has as many cells as the head.
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let file = path.display().to_string();
        let bad = |e: csv::Error| {
            DataError::invalid(
                &file,
                format!("cannot be read as CSV ({e})"),
                "save it as CSV with commas in UTF-8",
            )
        };
        crate::safe_file::open(path)?;
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(bad)?;
        let head = reader.headers().map_err(bad)?.iter().map(|h| h.trim_start_matches('\u{feff}').to_owned());
        let head: Vec<String> = head.collect();
        if let Some(twice) =
            head.iter().enumerate().find_map(|(at, name)| head[..at].contains(name).then_some(name))
        {
            let rule = format!("the column `{}` stands twice in its head", twice.escape_debug());
            return Err(DataError::invalid(&file, rule, "give every column a name of its own"));
        }
        let lines: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().map_err(bad)?;
        if lines.is_empty() {
            return Err(DataError::invalid(&file, "the data set is empty", "give it at least one line"));
        }
        Ok(Self { file, head, lines })
    }

    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// A fault of a cell; lines count from 1, the head is the first.
    pub(super) fn fault(&self, line: usize, column: &str, rule: &str) -> DataError {
        let value: String = self.cell(line, column).unwrap_or_default().chars().take(80).collect();
        let place = format!("line {}, column `{column}`", line + 2);
        DataError::row(&self.file, place, format!("`{}` {rule}", value.escape_debug()), "correct the cell")
    }

    /// The text of a cell.
    pub(super) fn cell(&self, line: usize, column: &str) -> Result<&str, DataError> {
        let Some(place) = self.head.iter().position(|h| h == column) else {
            let rule = format!("there is no column `{column}`; there are {}", self.head.join(", "));
            return Err(DataError::invalid(&self.file, rule, "add or rename a column"));
        };
        Ok(self.lines.get(line).and_then(|l| l.get(place)).unwrap_or_default())
    }

    fn is_path(&self, column: &str) -> bool {
        let cells = (0..self.lines()).filter_map(|line| self.cell(line, column).ok());
        cells.into_iter().find(|cell| !cell.is_empty()).is_some_and(|cell| kind(cell).is_some())
    }

    /// A column as numbers, and the names that they stand for: whole numbers stay, names are numbered by the alphabet.
    /// As labels, numbers have to begin with 0 and need no names; then the names are the numbers.
    pub(super) fn numbered(&self, column: &str) -> Result<(Vec<i64>, Vec<String>), DataError> {
        let cells: Vec<&str> =
            (0..self.lines()).map(|line| self.cell(line, column)).collect::<Result<_, _>>()?;
        if let Some(line) = cells.iter().position(|cell| cell.is_empty()) {
            return Err(self.fault(line, column, "is empty"));
        }
        let numbers: Option<Vec<i64>> = cells.iter().map(|cell| cell.parse().ok()).collect();
        if let Some(numbers) = numbers {
            let most = numbers.iter().copied().max().unwrap_or(0);
            // A name is made for each class: a slip in one cell must not make a million.
            let last = self.lines().max(10_000) as i64 - 1;
            if column == "label"
                && let Some(line) = numbers.iter().position(|n| !(0..=last).contains(n))
            {
                return Err(self.fault(line, column, &format!("is no class from 0 to {last}")));
            }
            let names =
                if column == "label" { (0..=most).map(|n| n.to_string()).collect() } else { Vec::new() };
            return Ok((numbers, names));
        }
        let names: Vec<&str> = cells.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let number = |cell: &&str| names.binary_search(cell).map_or(0, |n| n as i64);
        Ok((cells.iter().map(number).collect(), names.iter().map(|&n| n.to_owned()).collect()))
    }

    /// A column of names that are numbered by a list.
    fn known(&self, column: &str, names: Vec<String>) -> Result<(Vec<i64>, Vec<String>), DataError> {
        let mut numbers = Vec::with_capacity(self.lines());
        for line in 0..self.lines() {
            let cell = self.cell(line, column)?;
            let Some(number) = names.iter().position(|name| name == cell) else {
                let near = mm_core::nearest(cell, &names.iter().map(String::as_str).collect::<Vec<_>>())
                    .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                let rule = format!("is none of the {} classes of classes.txt{near}", names.len());
                return Err(self.fault(line, column, &rule));
            };
            numbers.push(number as i64);
        }
        Ok((numbers, names))
    }

    /// Refuses a column in which a value is empty or stands twice.
    pub(super) fn unique(&self, column: &str) -> Result<(), DataError> {
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        for line in 0..self.lines() {
            let cell = self.cell(line, column)?;
            if cell.is_empty() {
                return Err(self.fault(line, column, "is empty"));
            }
            if let Some(earlier) = first.insert(cell, line) {
                let rule = format!("stands in line {} too; every row has a name of its own", earlier + 2);
                return Err(self.fault(line, column, &rule));
            }
        }
        Ok(())
    }

    /// The rows of each part that a column names.
    pub(super) fn parts(&self, column: &str) -> Result<BTreeMap<String, Vec<usize>>, DataError> {
        let mut parts: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for line in 0..self.lines() {
            let part = self.cell(line, column)?;
            if !["train", "val", "test"].contains(&part) {
                return Err(self.fault(line, column, "is none of train, val and test"));
            }
            parts.entry(format!("{part}_index")).or_default().push(line);
        }
        Ok(parts)
    }
}
