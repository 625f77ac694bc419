//! Kinetics-Sounds: clips of ten seconds of Kinetics in the classes that can be heard, 31 in the lists of OGM-GE.
//!
//! ```text
//! my_train.txt, my_test.txt      <id>_<start>,10,<class>    a clip per line, class from 0 to 30
//! my_val.txt                     optional, the same
//! classes.txt                    optional: the name of a class per line, in their order
//! train/<class>/<id>_<start, 6 digits>_<end, 6 digits>.mp4      clips as Kinetics' own tools name them
//! ```
//!
//! Files lie in any folder below, see [`super::clips`]; an `<id>_<start>_<end>` in a list is read too. The lists are not
//! official: Kinetics has no such part, other authors use other lists and up to 34 classes. Here 14799 / 2597 lines are
//! `train_index` and `test_index`; without `my_val.txt`, a share of the training rows validates (`val_fraction`). Columns:
//! none.
//!
//! Source: Arandjelović & Zisserman 2017, ICCV, "Look, Listen and Learn"; lists as by OGM-GE_CVPR2022 @343dc1d,
//! `data/KineticSound`.

use super::Listing;
use super::clips::{self, Line};
use super::lists::Lists;
use crate::DataError;
use std::path::Path;

/// Parts, lists and their published lengths.
const PARTS: [(&str, &str, Option<usize>); 3] = [
    ("train", "my_train.txt", Some(14_799)),
    ("val", "my_val.txt", None),
    ("test", "my_test.txt", Some(2597)),
];
const WHENCE: &str = "github.com/GeWu-Lab/OGM-GE_CVPR2022, data/KineticSound";
const PUBLISHED_CLASSES: usize = 31;
const MOST_CLASSES: u32 = 10_000;

pub(super) fn list(raw: &Path) -> Result<Listing, DataError> {
    let mut lists = Lists::of(raw);
    let (mut lines, mut warnings) = (Vec::<Line>::new(), Vec::new());
    for (part, file, published) in PARTS {
        let text = match lists.read(file)? {
            None if part == "val" => continue,
            None => lists.need(&[file], WHENCE)?.1,
            Some(text) => text,
        };
        let before = lines.len();
        for (number, text) in Lists::lines(&text) {
            let line = line(text, part).map_err(|rule| lists.fault(file, number, rule))?;
            lines.push(line);
        }
        if let Some(published) = published {
            clips::count(&mut warnings, file, lines.len() - before, published);
        }
    }
    let count = lines.iter().map(|line| line.class as usize + 1).max().unwrap_or(0);
    let classes: Vec<String> = match lists.read("classes.txt")? {
        Some(text) => Lists::lines(&text).map(|(_, name)| name.to_owned()).collect(),
        None => (0..count).map(|class| class.to_string()).collect(),
    };
    if count > classes.len() {
        let rule = format!("{} classes are named, but the lists count to {count}", classes.len());
        return Err(lists.fault("classes.txt", classes.len(), rule));
    }
    if classes.len() != PUBLISHED_CLASSES {
        warnings.push(format!("{} classes, in the published lists {PUBLISHED_CLASSES}", classes.len()));
    }
    let sums = lists.sums;
    Ok(Listing { lists: sums, ..clips::listing(raw, "kinetics-sounds", classes, lines, warnings)? })
}

fn line(text: &str, part: &'static str) -> Result<Line, String> {
    let cells: Vec<&str> = text.split(',').map(str::trim).collect();
    let [clip, _, class] = cells[..] else {
        return Err(format!("{} cells between commas, not three", cells.len()));
    };
    let Some((id, Some(start))) = clips::key(clip) else {
        return Err(format!("{clip:?} is no clip `<id>_<start>`"));
    };
    let Some(class) = class.parse().ok().filter(|class| *class < MOST_CLASSES) else {
        return Err(format!("{class:?} is no class from 0 on"));
    };
    Ok(Line { id: format!("{id}_{start}"), key: (id, Some(start)), class, span: None, part })
}
