//! Lists of labels and splits that lie in the folder of a data set: text of a reasonable size, with its checksum.

use crate::dataset::hex;
use crate::{DataError, image::read_limited};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The largest list that is read.
const MAX_LIST: u64 = 64 << 20;

/// What was read, and where.
#[derive(Debug)]
pub(super) struct Lists<'a> {
    raw: &'a Path,
    /// SHA-256 by the name in the folder.
    pub(super) sums: BTreeMap<String, String>,
}

impl<'a> Lists<'a> {
    pub(super) fn of(raw: &'a Path) -> Self {
        Self { raw, sums: BTreeMap::new() }
    }

    /// Where a list lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.raw.join(name)
    }

    /// A list without its byte-order mark; nothing where there is none of that name.
    pub(super) fn read(&mut self, name: &str) -> Result<Option<String>, DataError> {
        let path = self.path(name);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_limited(&path, MAX_LIST)?;
        let sum = hex(&Sha256::digest(&bytes));
        let text = String::from_utf8(bytes).map_err(|_| {
            let file = path.display().to_string();
            DataError::invalid(&file, "it is no text in UTF-8", "fetch it again; a pickle is never read")
        })?;
        self.sums.insert(name.to_owned(), sum);
        Ok(Some(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned)))
    }

    /// The first of these lists that is there, with its name.
    pub(super) fn first(&mut self, names: &[&str]) -> Result<Option<(String, String)>, DataError> {
        for name in names {
            if let Some(text) = self.read(name)? {
                return Ok(Some(((*name).to_owned(), text)));
            }
        }
        Ok(None)
    }

    /// A list that has to be there; `whence` says where it comes from.
    pub(super) fn need(&mut self, names: &[&str], whence: &str) -> Result<(String, String), DataError> {
        self.first(names)?.ok_or_else(|| {
            let rule = format!("there is no {} in it", names.join(" and no "));
            DataError::invalid(&self.raw.display().to_string(), rule, format!("fetch it from {whence}"))
        })
    }

    /// A fault of a line, counted from 1.
    pub(super) fn fault(&self, name: &str, line: usize, rule: impl Into<String>) -> DataError {
        let remedy = "correct the line, or fetch the list again";
        DataError::row(&self.path(name).display().to_string(), format!("line {line}"), rule, remedy)
    }

    /// Lines that are not empty, with their numbers from 1; ends of any kind.
    pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
        text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.is_empty())
    }
}
