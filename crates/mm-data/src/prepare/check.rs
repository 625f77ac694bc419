//! Looks at every raw file of a data set before hours are spent on it.

use super::raw::is_sound;
use super::{LabelSource, Listing, Raw, Source};
use crate::audio::Clip;
use crate::image::{Frame, check_pointer};
use crate::{DataError, npy, safe_file};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

/// What a folder of raw files holds, and what is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Rows.
    pub rows: usize,
    /// The classes and how many rows each has.
    pub classes: Vec<(String, usize)>,
    /// The modalities.
    pub modalities: Vec<Held>,
    /// Rows of each value of the column `fold`, where there is one.
    pub folds: BTreeMap<i64, usize>,
    /// Rows of each list.
    pub lists: BTreeMap<String, usize>,
    /// What is odd but allowed, a sentence each.
    pub warnings: Vec<String>,
    /// What has to be mended, a sentence each, in the order of the rows.
    pub faults: Vec<String>,
}

/// The files of one modality.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Rows that have it.
    pub rows: usize,
    /// Files.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// What was found how often: `16000 Hz`, `360 x 480`, `flv1`, …
    pub kinds: BTreeMap<String, usize>,
    /// Seconds of the shortest and the longest sound.
    pub seconds: Option<[f64; 2]>,
}

/// What one row has of one modality.
struct Found {
    files: usize,
    bytes: u64,
    kinds: Vec<String>,
    seconds: Option<f64>,
    silent: bool,
}

/// Opens and decodes every file; of videos only the head, as that needs no other program.
///
/// Faults are files that cannot be read or are git-LFS pointers, classes without rows, actors (column `actor`) in several
/// folds, and rows in two parts of one split.
pub fn check(source: Source, raw: &Path, labels: Option<LabelSource>) -> Result<Report, DataError> {
    let listing = source.list_by(raw, labels)?;
    let mut report = Report {
        rows: listing.rows.len(),
        classes: listing.classes.iter().map(|name| (name.clone(), 0)).collect(),
        modalities: Vec::new(),
        folds: BTreeMap::new(),
        lists: listing.indices.iter().map(|(name, rows)| (name.clone(), rows.len())).collect(),
        warnings: listing.warnings.clone(),
        faults: Vec::new(),
    };
    for row in &listing.rows {
        if let Some(class) = report.classes.get_mut(row.label as usize) {
            class.1 += 1;
        }
    }
    let empty: Vec<&str> = report.classes.iter().filter(|c| c.1 == 0).map(|c| c.0.as_str()).collect();
    if !empty.is_empty() {
        report.faults.push(format!("no row has the class {}", empty.join(", ")));
    }
    groups(&listing, &mut report);
    for (m, name) in listing.modalities.iter().enumerate() {
        let found: Vec<Result<Option<Found>, DataError>> =
            listing.rows.par_iter().map(|row| look(&row.raw[m])).collect();
        let mut held = Held { name: name.clone(), ..Held::default() };
        for (row, found) in listing.rows.iter().zip(found) {
            match found {
                Ok(None) => {}
                Ok(Some(found)) => {
                    if found.silent {
                        report.warnings.push(format!("{}, `{name}`: every sample is zero", row.id));
                    }
                    held.add(found);
                }
                Err(error) => report.faults.push(error.to_string()),
            }
        }
        report.modalities.push(held);
    }
    Ok(report)
}

impl Held {
    fn add(&mut self, found: Found) {
        self.rows += 1;
        self.files += found.files;
        self.bytes += found.bytes;
        for kind in found.kinds {
            *self.kinds.entry(kind).or_default() += 1;
        }
        if let Some(seconds) = found.seconds {
            let [low, high] = self.seconds.unwrap_or([seconds; 2]);
            self.seconds = Some([low.min(seconds), high.max(seconds)]);
        }
    }
}

/// Folds and lists: who is where.
fn groups(listing: &Listing, report: &mut Report) {
    if let Some(folds) = listing.columns.get("fold") {
        for &fold in folds {
            *report.folds.entry(fold).or_default() += 1;
        }
        let mut homes: BTreeMap<i64, i64> = BTreeMap::new();
        let mut torn: Vec<i64> = Vec::new();
        for (&actor, &fold) in listing.columns.get("actor").into_iter().flatten().zip(folds) {
            if *homes.entry(actor).or_insert(fold) != fold {
                torn.push(actor);
            }
        }
        torn.sort_unstable();
        torn.dedup();
        for actor in torn {
            report.faults.push(format!("actor {actor} is in several folds"));
        }
    }
    // Lists of one split share what stands before the part: `ogm_train_index` and `ogm_test_index`.
    let split = |name: &str| {
        let list = name.strip_suffix("_index").unwrap_or(name);
        let part = ["train", "val", "test"].into_iter().find(|part| list.ends_with(part))?;
        list.strip_suffix(part).map(str::to_owned)
    };
    let lists: Vec<(&String, &Vec<usize>)> = listing.indices.iter().collect();
    for (i, (name, rows)) in lists.iter().enumerate() {
        for (other, theirs) in &lists[i + 1..] {
            if split(name).is_none() || split(name) != split(other) {
                continue;
            }
            let shared = rows.iter().filter(|row| theirs.contains(row)).count();
            if shared > 0 {
                report.faults.push(format!("{shared} rows are in both {name} and {other}"));
            }
            let Some(actors) = listing.columns.get("actor") else { continue };
            let of = |rows: &[usize]| {
                rows.iter()
                    .filter_map(|&row| actors.get(row))
                    .copied()
                    .collect::<std::collections::BTreeSet<_>>()
            };
            let shared = of(rows).intersection(&of(theirs)).count();
            if shared > 0 {
                report.warnings.push(format!("{shared} actors are in both {name} and {other}"));
            }
        }
    }
}

fn look(raw: &Raw) -> Result<Option<Found>, DataError> {
    let mut found = Found { files: 1, bytes: 0, kinds: Vec::new(), seconds: None, silent: false };
    match raw {
        Raw::Missing => return Ok(None),
        Raw::Vector(_) => found.files = 0,
        Raw::Sound(path) => heard(path, &mut found)?,
        Raw::Image(path) => picture(path, &mut found)?,
        Raw::Frames(paths) => {
            found.files = paths.len();
            paths.iter().try_for_each(|path| picture(path, &mut found))?;
            found.kinds.dedup();
        }
        Raw::Track(path, _) if is_sound(path) => heard(path, &mut found)?,
        // The video is counted where it is one; whether it has sound is not asked here.
        Raw::Track(path, _) => {
            size(path)?;
            found.files = 0;
            found.kinds.push("the sound of the video".to_owned());
        }
        Raw::Video(path) | Raw::Scene(path, _) => {
            found.bytes = size(path)?;
            found.kinds.push(codec(path)?);
        }
        Raw::Array(path) => {
            found.bytes = size(path)?;
            found.kinds.push(format!("{:?}", npy::read(path)?.shape));
        }
    }
    Ok(Some(found))
}

fn size(path: &Path) -> Result<u64, DataError> {
    let io = |source| DataError::Io { file: path.display().to_string(), source };
    Ok(safe_file::open(path)?.metadata().map_err(io)?.len())
}

fn heard(path: &Path, found: &mut Found) -> Result<(), DataError> {
    found.bytes = size(path)?;
    let clip = Clip::open(path)?;
    found.kinds.push(format!("{} Hz", clip.rate));
    found.seconds = Some(clip.seconds());
    found.silent = clip.samples.iter().all(|&x| x == 0.0);
    Ok(())
}

fn picture(path: &Path, found: &mut Found) -> Result<(), DataError> {
    found.bytes += size(path)?;
    let frame = Frame::open(path)?;
    found.kinds.push(format!("{} x {}", frame.height, frame.width));
    Ok(())
}

/// The codec of a Flash video by the head of its first tag with pictures; other videos are told by their first bytes.
fn codec(path: &Path) -> Result<String, DataError> {
    let file = path.display().to_string();
    let io = |source| DataError::Io { file: file.clone(), source };
    let mut head = Vec::new();
    safe_file::open(path)?.take(1 << 18).read_to_end(&mut head).map_err(io)?;
    check_pointer(&file, &head)?;
    let fault = |rule: &str| Err(DataError::invalid(&file, rule, "fetch it again"));
    if !head.starts_with(b"FLV") {
        return match head.as_slice() {
            [] => fault("the file is empty"),
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => Ok("MP4".to_owned()),
            [0x1a, 0x45, 0xdf, 0xa3, ..] => Ok("Matroska or WebM".to_owned()),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', ..] => Ok("AVI".to_owned()),
            _ => Ok("no Flash video".to_owned()),
        };
    }
    let at = |place: usize| head.get(place).copied().map(usize::from);
    let number = |place: usize, bytes: usize| {
        (place..place + bytes).try_fold(0usize, |sum, place| Some((sum << 8) | at(place)?))
    };
    // The header says how long it is; each tag is preceded by the length of the one before.
    let mut place = number(5, 4).unwrap_or(9) + 4;
    while let (Some(kind), Some(length)) = (at(place), number(place + 1, 3)) {
        if kind & 0x1f == 9 {
            return match at(place + 11).map(|byte| byte & 0x0f) {
                Some(2) => Ok("flv1 (Sorenson)".to_owned()),
                Some(4 | 5) => Ok("vp6".to_owned()),
                Some(3 | 6) => Ok("screen video".to_owned()),
                Some(7) => Ok("h264".to_owned()),
                Some(other) => Ok(format!("codec {other}")),
                None => fault("it ends within its first frame"),
            };
        }
        place += 11 + length + 4;
    }
    fault("there is no picture at its beginning")
}
