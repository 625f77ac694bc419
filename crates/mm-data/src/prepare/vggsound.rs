//! VGGSound: some 200000 clips of ten seconds in which a sound's source is seen, 309 classes.
//!
//! ```text
//! vggsound.csv                   <id>,<start>,<class>,<train or test>    no head; names with a comma stand in quotes
//! <id>_<start, 6 digits>.mp4     clips as the usual tools name them; zeros before the number may lack
//! <id>_<start>.wav               optional: sound that was extracted before
//! Image-01-FPS/<id>_<start>.mp4/*.jpg    optional: frames, one per second
//! ```
//!
//! Files lie in any folder below, see [`super::clips`]. Classes are those of the file, by the alphabet. The split is the
//! official one, `train_index` and `test_index`; it has no validation part, so a share of the training rows validates
//! (`val_fraction`).
//!
//! Differences: OGM-GE leaves clips of fewer than four frames out and crops the sound at random, in tests too; here a short
//! clip repeats its last frame, and the front-end takes the middle.
//!
//! Source: Chen et al. 2020, ICASSP, "VGGSound: a large-scale audio-visual dataset", www.robots.ox.ac.uk/~vgg/data/vggsound
//! (CC BY 4.0); use as by OGM-GE_CVPR2022 @343dc1d.

use super::Listing;
use super::clips::{self, Line};
use super::lists::Lists;
use crate::DataError;
use std::collections::BTreeSet;
use std::path::Path;

const FILE: &str = "vggsound.csv";
const WHENCE: &str = "www.robots.ox.ac.uk/~vgg/data/vggsound";
const PUBLISHED_CLASSES: usize = 309;

pub(super) fn list(raw: &Path) -> Result<Listing, DataError> {
    let mut lists = Lists::of(raw);
    let (_, text) = lists.need(&[FILE], WHENCE)?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut found: Vec<(String, Line)> = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|e| lists.fault(FILE, i + 1, format!("is no CSV ({e})")))?;
        let number = record.position().map_or(i + 1, |place| place.line() as usize);
        found.push(line(&record).map_err(|rule| lists.fault(FILE, number, rule))?);
    }
    let classes: Vec<String> =
        found.iter().map(|(class, _)| class.clone()).collect::<BTreeSet<_>>().into_iter().collect();
    let place = |name: &String| classes.binary_search(name).unwrap_or(0) as u32;
    let lines = found.into_iter().map(|(name, line)| Line { class: place(&name), ..line }).collect();
    let mut warnings = Vec::new();
    if classes.len() != PUBLISHED_CLASSES {
        warnings.push(format!("{FILE} has {} classes, the published one {PUBLISHED_CLASSES}", classes.len()));
    }
    let sums = lists.sums;
    Ok(Listing { lists: sums, ..clips::listing(raw, "vggsound", classes, lines, warnings)? })
}

/// The name of the class, and a line whose class is still open.
fn line(record: &csv::StringRecord) -> Result<(String, Line), String> {
    let cells: Vec<&str> = record.iter().collect();
    let [id, start, class, part] = cells[..] else {
        return Err(format!("{} cells, not four", cells.len()));
    };
    let Some((id, None)) = clips::key(id) else {
        return Err(format!("{id:?} is no video of YouTube"));
    };
    let Ok(start) = start.parse::<u64>() else {
        return Err(format!("{start:?} is no second"));
    };
    let Some(part) = ["train", "test"].into_iter().find(|known| *known == part) else {
        return Err(format!("{part:?} is neither train nor test"));
    };
    if class.is_empty() {
        return Err("the class is empty".to_owned());
    }
    let key = (id.clone(), Some(start));
    Ok((class.to_owned(), Line { id: format!("{id}_{start}"), key, class: 0, span: None, part }))
}
