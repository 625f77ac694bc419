//! CREMA-D: 7442 clips of 91 actors who speak twelve sentences in six emotions, with sound and face.
//!
//! ```text
//! AudioWAV/1001_DFA_ANG_XX.wav              sound, 16 kHz
//! Image-01-FPS/1001_DFA_ANG_XX/00000.jpg …  frames, one per second, in the order of their names
//! VideoFlash/1001_DFA_ANG_XX.flv            read by ffmpeg where a clip has no frames
//! Face_features/1001_DFA_ANG_XX.npy         optional: (T, width) of each face, the modality `faces`
//! summaryTable.csv                          votes of the raters; or below processedResults
//! train.csv, test.csv                       a published split: a clip at the start of each line
//! data_splits_VALV.pkl (or .json)           a published split: JSON, {"1": {"train": ["<clip>.wav-3", …], …}, …}
//! ```
//!
//! The name of a clip says actor (1001 to 1091), sentence, emotion and intensity. A row is a name that occurs in any of the
//! four folders; what it has not is missing. `X` in place of `XX`, which the published set has once, is read as `XX`.
//!
//! | `labels` | class of a clip |
//! |---|---|
//! | `intended` (default) | the emotion in its name |
//! | `consensus` | what most raters saw and heard, `MultiModalVote` of `summaryTable.csv`; clips with a tie or no vote are left out |
//!
//! Classes: NEU, HAP, SAD, FEA, DIS, ANG. Columns: `actor`; `sentence`, by the place in [`SENTENCES`]; `intensity`, 0 where
//! the name says none, else 1 (low) to 3 (high); `intended`, the class by the name; `fold`.
//!
//! | protocol | rows | how |
//! |---|---|---|
//! | `fold`, a column | all | five folds disjoint by actor: each five actors that follow each other are dealt to the five folds in an order that is drawn once and for all, see [`fold`] |
//! | `mlb<k>_{train,val,test}`, lists | 5820 clips | where `data_splits_VALV` lies in the folder; actors disjoint, 63 / 14 / 14 |
//! | `ogm_{train,test}`, lists | 6698 / 744 | where `train.csv` and `test.csv` lie in the folder; all actors in both |
//!
//! Frames whose names are numbers with a gap between them - a frame was lost, and the next one stands in its place - are
//! warned of. Four clips are known to be bad ([`BAD`]) and left out, of lists too.
//!
//! Differences: MLB fills clips of fewer than three frames with random ones of the same clip, here the last is repeated;
//! OGM takes the first frame that the file system lists, here it is the first by name. Both re-encode frames as JPEG with
//! OpenCV, so frames read from `VideoFlash` differ from theirs by a few levels. The number behind the dash in
//! `data_splits_VALV` is no label (it never says angry) and is ignored.
//!
//! Source: Cao et al. 2014, IEEE Transactions on Affective Computing 5(4), github.com/CheyneyComputerScience/CREMA-D (Open
//! Database License); frames as by OGM-GE_CVPR2022 @343dc1d, splits as by kkontras/MLB @357b5ce.

use super::lists::Lists;
use super::{LabelSource, ListedRow, Listing, Raw};
use crate::DataError;
use mm_core::StepRng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The classes, in their order.
pub const CLASSES: [&str; 6] = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"];
/// The sentences.
pub const SENTENCES: [&str; 12] =
    ["DFA", "IEO", "IOM", "ITH", "ITS", "IWL", "IWW", "MTI", "TAI", "TIE", "TSI", "WSI"];
/// Clips that are left out, and why.
pub const BAD: [(&str, &str); 4] = [
    ("1064_IEO_DIS_MD", "61 seconds of several emotions"),
    ("1064_TIE_SAD_XX", "has no duration"),
    ("1076_MTI_NEU_XX", "its sound cannot be played"),
    ("1076_MTI_SAD_XX", "silent, and without a face"),
];
/// The numbers of the actors.
pub const ACTORS: std::ops::RangeInclusive<i64> = 1001..=1091;
/// Intensities as a name has them; the second way to write the first is that of a single published file.
const INTENSITIES: [&str; 4] = ["XX", "LO", "MD", "HI"];
/// A vote's letters, in the order of the classes.
const VOTES: [&str; 6] = ["N", "H", "S", "F", "D", "A"];
const FOLDS: usize = 5;

/// What the name of a clip says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    /// 1001 to 1091.
    pub actor: i64,
    /// A place in [`SENTENCES`].
    pub sentence: usize,
    /// A place in [`CLASSES`].
    pub emotion: usize,
    /// 0 where it is not said, else 1 to 3.
    pub intensity: usize,
}

impl Name {
    /// Reads a name such as `1001_DFA_ANG_XX`.
    pub fn read(stem: &str) -> Option<Self> {
        let parts: Vec<&str> = stem.split('_').collect();
        let [actor, sentence, emotion, intensity] = parts[..] else { return None };
        let place = |list: &[&str], name: &str| list.iter().position(|&known| known == name);
        let intensity = if intensity == "X" { "XX" } else { intensity };
        Some(Self {
            actor: actor.parse().ok().filter(|number| actor.len() == 4 && ACTORS.contains(number))?,
            sentence: place(&SENTENCES, sentence)?,
            emotion: place(&CLASSES, emotion)?,
            intensity: place(&INTENSITIES, intensity)?,
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = |list: &[&'static str], place: usize| list.get(place).copied().unwrap_or("?");
        let (sentence, emotion) = (part(&SENTENCES, self.sentence), part(&CLASSES, self.emotion));
        write!(f, "{}_{sentence}_{emotion}_{}", self.actor, part(&INTENSITIES, self.intensity))
    }
}

/// The fold of an actor, 0 to 4: of five that follow each other, each is in another one.
pub fn fold(actor: i64) -> i64 {
    let place = usize::try_from(actor - ACTORS.start()).unwrap_or(0);
    let mut order: [i64; FOLDS] = std::array::from_fn(|fold| fold as i64);
    StepRng::new(0)
        .stream("cremad")
        .stream("folds")
        .sample((place / FOLDS) as u64)
        .draws()
        .shuffle(&mut order);
    order.get(place % FOLDS).copied().unwrap_or(0)
}

/// Clips by split and part.
type Splits = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The files of a clip.
#[derive(Default)]
struct Files {
    sound: Option<PathBuf>,
    frames: Vec<PathBuf>,
    video: Option<PathBuf>,
    faces: Option<PathBuf>,
}

pub(super) fn list(raw: &Path, labels: LabelSource) -> Result<Listing, DataError> {
    let place = raw.display().to_string();
    let mut warnings = Vec::new();
    let mut clips = clips(raw, &mut warnings)?;
    for (name, why) in BAD {
        if clips.remove(name).is_some() {
            warnings.push(format!("{name} is left out: it is known to be bad ({why})"));
        }
    }
    let mut lists = Lists::of(raw);
    let votes = match labels {
        LabelSource::Intended => None,
        LabelSource::Consensus => Some(votes(&mut lists)?),
    };
    let (mut rows, mut columns) = (Vec::new(), BTreeMap::<String, Vec<i64>>::new());
    let (mut unlabelled, mut lacking) = (0, [0; 3]);
    let faces = clips.values().any(|(_, files)| files.faces.is_some());
    for (id, (name, files)) in clips {
        let label = match &votes {
            None => Some(name.emotion),
            Some(votes) => votes.get(&name.to_string()).copied(),
        };
        let Some(label) = label else {
            unlabelled += 1;
            continue;
        };
        let sound = files.sound.map_or(Raw::Missing, Raw::Sound);
        let video = match (files.frames.is_empty(), files.video) {
            (false, _) => Raw::Frames(files.frames),
            (true, Some(video)) => Raw::Video(video),
            (true, None) => Raw::Missing,
        };
        lacking[0] += usize::from(sound == Raw::Missing);
        lacking[1] += usize::from(video == Raw::Missing);
        let mut inputs = vec![sound, video];
        if faces {
            lacking[2] += usize::from(files.faces.is_none());
            inputs.push(files.faces.map_or(Raw::Missing, Raw::Array));
        }
        rows.push(ListedRow { id, label: label as u32, raw: inputs });
        let named = [
            ("actor", name.actor),
            ("fold", fold(name.actor)),
            ("intended", name.emotion as i64),
            ("intensity", name.intensity as i64),
            ("sentence", name.sentence as i64),
        ];
        for (column, value) in named {
            columns.entry(column.to_owned()).or_default().push(value);
        }
    }
    if rows.is_empty() {
        let rule = "there are no clips like AudioWAV/1001_DFA_ANG_XX.wav in it";
        return Err(DataError::invalid(&place, rule, "give the folder that holds AudioWAV"));
    }
    if unlabelled > 0 {
        warnings.push(format!("{unlabelled} clips are left out: their votes are tied or missing"));
    }
    let have = [
        "have no sound in AudioWAV",
        "have neither frames in Image-01-FPS nor a video in VideoFlash",
        "have no array in Face_features",
    ];
    for (count, what) in lacking.into_iter().zip(have).filter(|(count, _)| *count > 0) {
        warnings.push(format!("{count} clips {what}"));
    }
    let indices = indices(&mut lists, &rows, &mut warnings)?;
    let mut modalities = vec!["audio".into(), "video".into()];
    if faces {
        modalities.push("faces".into());
    }
    let (classes, lists) = (CLASSES.map(str::to_owned).to_vec(), lists.sums);
    Ok(Listing { name: "cremad".into(), classes, modalities, rows, columns, indices, lists, warnings })
}

/// The clips of the folders by their names.
fn clips(raw: &Path, warnings: &mut Vec<String>) -> Result<BTreeMap<String, (Name, Files)>, DataError> {
    let mut clips: BTreeMap<String, (Name, Files)> = BTreeMap::new();
    let folders = [
        ("AudioWAV", Some("wav")),
        ("Image-01-FPS", None),
        ("VideoFlash", Some("flv")),
        ("Face_features", Some("npy")),
    ];
    for (folder, ending) in folders {
        let mut torn = BTreeSet::new();
        let mut strange = BTreeSet::new();
        for path in entries(&raw.join(folder))? {
            let text = |part: Option<&std::ffi::OsStr>| part.map(|s| s.to_string_lossy().into_owned());
            let fits = match ending {
                Some(ending) => path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending)),
                None => path.is_dir(),
            };
            let stem = if ending.is_some() { path.file_stem() } else { path.file_name() };
            let stem = text(stem).unwrap_or_default();
            let Some(name) = Name::read(&stem).filter(|_| fits) else {
                strange.insert(text(path.file_name()).unwrap_or_default());
                continue;
            };
            let files = &mut clips.entry(stem).or_insert_with(|| (name, Files::default())).1;
            match folder {
                "AudioWAV" => files.sound = Some(path),
                "VideoFlash" => files.video = Some(path),
                "Face_features" => files.faces = Some(path),
                _ => {
                    files.frames = pictures(&path)?;
                    if let Some(number) = gap(&files.frames) {
                        torn.insert(format!("{name} ({number} is not there)"));
                    }
                }
            }
        }
        if let Some(first) = torn.first() {
            let count = torn.len();
            warnings.push(format!(
                "{folder}: the numbers of the frames of {count} clips have gaps, such as {first}"
            ));
        }
        if let Some(first) = strange.first() {
            let count = strange.len();
            warnings.push(format!("{folder}: {count} names are not read as clips, such as {first:?}"));
        }
    }
    Ok(clips)
}

/// What a folder holds, by name; nothing where there is no such folder. What begins with a point is not looked at.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let io = |source| DataError::Io { file: folder.display().to_string(), source };
    let read = std::fs::read_dir(folder).map_err(io)?;
    let mut paths: Vec<PathBuf> =
        read.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>().map_err(io)?;
    paths.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    paths.sort();
    Ok(paths)
}

/// The pictures of a folder, by name.
pub(super) fn pictures(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    Ok(entries(folder)?.into_iter().filter(|path| is_picture(path)).collect())
}

/// The first number that lacks between the frames of a clip, whose names are numbers.
fn gap(frames: &[PathBuf]) -> Option<u64> {
    let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u64>().ok();
    let numbers: Option<Vec<u64>> = frames.iter().map(number).collect();
    let numbers = numbers?;
    numbers.iter().zip(numbers.iter().skip(1)).find(|(a, b)| *a + 1 < **b).map(|(a, _)| a + 1)
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// The class of each clip that most raters agree on.
fn votes(lists: &mut Lists<'_>) -> Result<BTreeMap<String, usize>, DataError> {
    let Some((name, _)) = lists.first(&["summaryTable.csv", "processedResults/summaryTable.csv"])? else {
        let rule = "there is no summaryTable.csv in it, nor below processedResults";
        let remedy = "fetch the table from where CREMA-D comes from, or use the labels `intended`";
        return Err(DataError::invalid(&lists.path("").display().to_string(), rule, remedy));
    };
    let sheet = super::manifest::Sheet::read(&lists.path(&name))?;
    let mut votes = BTreeMap::new();
    for line in 0..sheet.lines() {
        let name = Name::read(sheet.cell(line, "FileName")?);
        let vote = sheet.cell(line, "MultiModalVote")?;
        if let (Some(name), Some(class)) = (name, VOTES.iter().position(|&letter| letter == vote)) {
            votes.insert(name.to_string(), class);
        }
    }
    Ok(votes)
}

/// The lists of the published splits that lie in the folder.
fn indices(
    read: &mut Lists<'_>,
    rows: &[ListedRow],
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, Vec<usize>>, DataError> {
    let place: BTreeMap<String, usize> = rows
        .iter()
        .enumerate()
        .filter_map(|(row, listed)| Some((Name::read(&listed.id)?.to_string(), row)))
        .collect();
    let mut lists = BTreeMap::new();
    let mut add = |list: String, file: &str, clips: &mut dyn Iterator<Item = Name>| {
        let (mut found, mut absent) = (BTreeSet::new(), 0);
        for clip in clips {
            match place.get(&clip.to_string()) {
                Some(&row) => {
                    found.insert(row);
                }
                None => absent += 1,
            }
        }
        if absent > 0 {
            warnings.push(format!("{absent} clips of the list {list} of {file} are not among the rows"));
        }
        if !found.is_empty() {
            lists.insert(format!("{list}_index"), found.into_iter().collect());
        }
    };
    for part in ["train", "test"] {
        let file = format!("{part}.csv");
        if let Some(text) = read.read(&file)? {
            let clip = |line: &str| clip_of(line.split(',').next()?.trim());
            add(format!("ogm_{part}"), &file, &mut text.lines().filter_map(clip));
        }
    }
    for file in ["data_splits_VALV.json", "data_splits_VALV.pkl"] {
        let Some(text) = read.read(file)? else { continue };
        let splits: Splits = serde_json::from_str(&text).map_err(|e| {
            let rule = format!("is not the published list of splits ({e})");
            let remedy = "fetch it again, or take it out of the folder; a pickle is never read";
            DataError::invalid(&read.path(file).display().to_string(), rule, remedy)
        })?;
        for (number, parts) in splits {
            for part in ["train", "val", "test"] {
                let clips = parts.get(part).into_iter().flatten();
                let mut clips = clips.filter_map(|entry| clip_of(entry.split('-').next()?));
                add(format!("mlb{number}_{part}"), file, &mut clips);
            }
        }
        break;
    }
    Ok(lists)
}

/// The clip that a cell of a list names, with or without an ending.
fn clip_of(cell: &str) -> Option<Name> {
    Name::read(cell.split('.').next().unwrap_or_default())
}
