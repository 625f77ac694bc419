//! Digits, spoken and written, paired by class as AV-MNIST pairs them.
//!
//! `pairs.csv` has the columns `id, digit, speaker, split, wav, png`, with paths from the file's own folder; others are
//! ignored. `split` is `train` or `test`. The column `speaker` becomes numbers, by the alphabet.
//!
//! Sources: spoken digits from github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0), written ones from MNIST.

use super::manifest::{Folder, Sheet};
use super::{ListedRow, Listing, Raw};
use crate::DataError;
use std::collections::BTreeMap;
use std::path::Path;

pub(super) fn list(raw: &Path) -> Result<Listing, DataError> {
    let sheet = Sheet::read(&raw.join("pairs.csv"))?;
    sheet.unique("id")?;
    let (folder, mut rows) = (Folder::of(raw), Vec::new());
    for line in 0..sheet.lines() {
        let digit: u32 = match sheet.cell(line, "digit")?.parse() {
            Ok(digit @ 0..=9) => digit,
            _ => return Err(sheet.fault(line, "digit", "is no digit")),
        };
        rows.push(ListedRow {
            id: sheet.cell(line, "id")?.to_owned(),
            label: digit,
            raw: vec![
                Raw::Sound(folder.inside(&sheet, line, "wav")?),
                Raw::Image(folder.inside(&sheet, line, "png")?),
            ],
        });
    }
    Ok(Listing {
        name: "avmnist".into(),
        classes: (0..10).map(|d| d.to_string()).collect(),
        modalities: vec!["audio".into(), "image".into()],
        rows,
        columns: BTreeMap::from([("speaker".to_owned(), sheet.numbered("speaker")?.0)]),
        indices: sheet.parts("split")?,
        lists: BTreeMap::new(),
        warnings: Vec::new(),
    })
}
