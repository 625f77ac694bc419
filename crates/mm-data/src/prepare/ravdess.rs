//! RAVDESS speech: 1440 clips of 24 actors, eight emotions, with facial action units.
//!
//! The name of a clip says everything: `MM-VV-EE-II-SS-RR-AA`, modality (03 audio alone), vocal channel (01 speech),
//! emotion (01 neutral … 08 surprised), intensity, statement, repetition, actor (odd numbers are male). The action units come
//! from `df_average_AUs_total.csv` of github.com/cristinalunaj/MMEmotionRecognition: one line per audio-visual clip
//! `01-…` of the same take, semicolons, 17 intensities `…_r` and 18 presences `…_c`.
//!
//! Folds are those of Luna-Jiménez et al. 2022 (Applied Sciences 12(1):327), disjoint by actor; column `fold`.
//!
//! Source: Livingstone & Russo 2018, PLoS ONE 13(5), zenodo.org/records/1188976, CC BY-NC-SA 4.0.

use super::{ListedRow, Listing, Raw};
use crate::DataError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CLASSES: [&str; 8] = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"];
/// The actors of each fold.
const FOLDS: [&[i64]; 5] =
    [&[2, 5, 14, 15, 16], &[3, 6, 7, 13, 18], &[10, 11, 12, 19, 20], &[8, 17, 21, 23, 24], &[1, 4, 9, 22]];
const UNITS: &str = "df_average_AUs_total.csv";

pub(super) fn list(raw: &Path) -> Result<Listing, DataError> {
    let place = raw.display().to_string();
    let mut files = Vec::new();
    walk(raw, 3, &mut files)?;
    files.sort();
    let Some(table) = files.iter().find(|f| f.file_name().is_some_and(|n| n == UNITS)) else {
        let rule = format!("there is no {UNITS} below it");
        let remedy = "fetch it from github.com/cristinalunaj/MMEmotionRecognition";
        return Err(DataError::invalid(&place, rule, remedy));
    };
    let units = action_units(table)?;
    let mut rows = Vec::new();
    let mut columns: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for path in files.into_iter().filter(|f| f.extension().is_some_and(|e| e.eq_ignore_ascii_case("wav"))) {
        let id = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let Some([emotion, intensity, statement, repetition, actor]) = fields(&id) else { continue };
        let video = units.get(id.get(2..).unwrap_or_default());
        rows.push(ListedRow {
            id,
            label: emotion as u32 - 1,
            raw: vec![Raw::Sound(path), video.map_or(Raw::Missing, |v| Raw::Vector(v.clone()))],
        });
        let fold = FOLDS.iter().position(|actors| actors.contains(&actor)).map_or(-1, |fold| fold as i64);
        let named = [
            ("actor", actor),
            ("fold", fold),
            ("intensity", intensity),
            ("repetition", repetition),
            ("statement", statement),
        ];
        for (name, value) in named {
            columns.entry(name.to_owned()).or_default().push(value);
        }
    }
    if rows.is_empty() {
        let rule = "there are no speech clips 03-01-….wav below it";
        return Err(DataError::invalid(&place, rule, "give the folder with Actor_01 to Actor_24"));
    }
    Ok(Listing {
        name: "ravdess".into(),
        classes: CLASSES.map(str::to_owned).to_vec(),
        modalities: vec!["audio".into(), "video".into()],
        rows,
        columns,
        indices: BTreeMap::new(),
        lists: BTreeMap::new(),
        warnings: Vec::new(),
    })
}

/// Emotion, intensity, statement, repetition and actor of a speech clip's name.
fn fields(id: &str) -> Option<[i64; 5]> {
    let parts: Option<Vec<i64>> = id.split('-').map(|p| p.parse().ok()).collect();
    match parts?[..] {
        [3, 1, emotion @ 1..=8, intensity, statement, repetition, actor @ 1..=24] => {
            Some([emotion, intensity, statement, repetition, actor])
        }
        _ => None,
    }
}

/// The action units by the part of the name that audio and video share, `-01-…`.
fn action_units(path: &Path) -> Result<BTreeMap<String, Vec<f32>>, DataError> {
    let file = path.display().to_string();
    let fault = |place: String, rule: String| {
        DataError::row(&file, place, rule, "fetch the file again: it is the published one that is read")
    };
    let mut reader = csv::ReaderBuilder::new().delimiter(b';').from_path(path).map_err(|e| {
        DataError::invalid(&file, format!("cannot be read as CSV ({e})"), "fetch the file again")
    })?;
    let head = reader.headers().map_err(|e| fault("line 1".into(), e.to_string()))?.clone();
    let units: Vec<usize> =
        (0..head.len()).filter(|&i| head[i].starts_with("AU") && !head[i].is_empty()).collect();
    let Some(name) = head.iter().position(|h| h == "name") else {
        return Err(fault("line 1".into(), "there is no column `name`".into()));
    };
    let mut found = BTreeMap::new();
    for (line, record) in reader.records().enumerate() {
        let place = || format!("line {}", line + 2);
        let record = record.map_err(|e| fault(place(), e.to_string()))?;
        let values: Option<Vec<f32>> = units.iter().map(|&i| record.get(i)?.trim().parse().ok()).collect();
        let (Some(values), Some(clip)) = (values, record.get(name)) else {
            return Err(fault(place(), "a value is no number".into()));
        };
        if let Some(take) = clip.get(2..) {
            found.insert(take.to_owned(), values);
        }
    }
    Ok(found)
}

/// All files down to a depth. Links are followed, but no deeper than that.
pub(super) fn walk(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let io = |source| DataError::Io { file: dir.display().to_string(), source };
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            if depth > 0 {
                walk(&path, depth - 1, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}
