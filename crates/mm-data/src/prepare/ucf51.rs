//! UCF101 restricted to the 51 classes whose videos have sound.
//!
//! ```text
//! UCF-101/<class>/v_<class>_g08_c01.avi       the published videos: 25 groups of each class, 4 to 7 clips each
//! ucfTrainTestlist/classInd.txt               <number> <class>
//! ucfTrainTestlist/trainlist01.txt, …03.txt   <class>/v_<class>_g08_c01.avi <number>
//! ucfTrainTestlist/testlist01.txt, …03.txt    <class>/v_<class>_g01_c01.avi
//! soundClasses.txt                            optional: the classes with sound, one per line
//! ```
//!
//! Folders and lists may also lie in the folder itself. Which classes have sound was never published as a list: without
//! `soundClasses.txt`, ffmpeg is asked whether the first clip of each class has a track, and the answer is written into the
//! pack as its classes. Single clips without sound lack the modality.
//!
//! Classes: by the alphabet, among those with sound. The three splits are official: `ucf<k>_train_index` and
//! `ucf<k>_test_index`; clips of one group are never in both. Column `group`, 100 x class + group: validate with
//! `val_fraction = 0.1` and `val_group = "group"`.
//!
//! Differences: MLB leaves clips of fewer than four frames out, here the last frame is repeated; and it hands on frames as
//! blue, green, red in 0 to 255, which the statistics it takes off do not fit.
//!
//! Source: Soomro et al. 2012, CRCV-TR-12-01; the restriction as by kkontras/MLB @68ad48d.

use super::lists::Lists;
use super::{ListedRow, Listing, Raw, cremad::entries};
use crate::DataError;
use crate::video::VideoConfig;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const WHENCE: &str = "www.crcv.ucf.edu/data/UCF101.php";
const PUBLISHED_CLASSES: usize = 51;
const SOUND: &str = "soundClasses.txt";

pub(super) fn list(raw: &Path) -> Result<Listing, DataError> {
    let mut lists = Lists::of(raw);
    let home = raw.join("UCF-101");
    let home = if home.is_dir() { home } else { raw.to_owned() };
    let mut clips = BTreeMap::new();
    for folder in entries(&home)?.into_iter().filter(|path| path.is_dir()) {
        let videos: Vec<PathBuf> =
            entries(&folder)?.into_iter().filter(|path| group(path).is_some()).collect();
        if !videos.is_empty() {
            clips.insert(name(&folder), videos);
        }
    }
    if clips.is_empty() {
        let rule = "there are no clips like UCF-101/Archery/v_Archery_g01_c01.avi in it";
        let remedy = format!("give the folder that holds UCF-101 and ucfTrainTestlist, from {WHENCE}");
        return Err(DataError::invalid(&raw.display().to_string(), rule, remedy));
    }
    let classes = with_sound(&mut lists, &clips)?;
    let mut warnings = Vec::new();
    if classes.len() != PUBLISHED_CLASSES {
        warnings.push(format!("{} classes with sound, in the whole set {PUBLISHED_CLASSES}", classes.len()));
    }
    let (mut rows, mut groups, mut places) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (class, folder) in classes.iter().enumerate() {
        for video in clips.get(folder).into_iter().flatten() {
            let id = name(&video.with_extension(""));
            places.insert(format!("{folder}/{id}"), rows.len());
            groups.push(100 * class as i64 + group(video).unwrap_or(0));
            let raw = vec![Raw::Track(video.clone(), None), Raw::Video(video.clone())];
            rows.push(ListedRow { id, label: class as u32, raw });
        }
    }
    let indices = splits(&mut lists, &places, &classes, &mut warnings)?;
    let columns = BTreeMap::from([("group".to_owned(), groups)]);
    let modalities = vec!["audio".into(), "video".into()];
    Ok(Listing {
        name: "ucf51".into(),
        classes,
        modalities,
        rows,
        columns,
        indices,
        lists: lists.sums,
        warnings,
    })
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The group in a name such as `v_Archery_g01_c01.avi`.
fn group(path: &Path) -> Option<i64> {
    let name = name(path);
    let (stem, ending) = name.rsplit_once('.')?;
    let (before, clip) = stem.strip_prefix("v_")?.rsplit_once("_c")?;
    let (_, group) = before.rsplit_once("_g")?;
    clip.parse::<u32>().ok().filter(|_| ending.eq_ignore_ascii_case("avi"))?;
    group.parse().ok().filter(|group| (0..100).contains(group))
}

/// The classes that have sound, by the alphabet.
fn with_sound(
    lists: &mut Lists<'_>,
    clips: &BTreeMap<String, Vec<PathBuf>>,
) -> Result<Vec<String>, DataError> {
    let Some(text) = lists.read(SOUND)? else {
        let ffmpeg = VideoConfig::default().program().map_err(|e| {
            let rule = format!(
                "there is no {SOUND} in the folder, and without it every class has to be asked ({e})"
            );
            DataError::invalid(
                "ucf51",
                rule,
                format!("write the classes with sound into {SOUND}, or install ffmpeg"),
            )
        })?;
        let mut classes = Vec::new();
        for (class, videos) in clips {
            if let Some(first) = videos.first()
                && ffmpeg.has_sound(first)?
            {
                classes.push(class.clone());
            }
        }
        if classes.is_empty() {
            let rule = "no class has sound: the first clip of each was asked";
            return Err(DataError::invalid("ucf51", rule, format!("fetch the videos from {WHENCE}")));
        }
        return Ok(classes);
    };
    let mut classes: Vec<String> = Vec::new();
    for (number, line) in Lists::lines(&text) {
        // With or without the number that `classInd.txt` has.
        let class = line.rsplit(' ').next().unwrap_or(line);
        if !clips.contains_key(class) {
            return Err(lists.fault(SOUND, number, format!("there are no clips of the class `{class}`")));
        }
        if classes.iter().any(|known| known == class) {
            return Err(lists.fault(SOUND, number, format!("the class `{class}` appears twice")));
        }
        classes.push(class.to_owned());
    }
    classes.sort();
    Ok(classes)
}

/// The official splits that lie in the folder; at least one.
fn splits(
    lists: &mut Lists<'_>,
    places: &BTreeMap<String, usize>,
    classes: &[String],
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, Vec<usize>>, DataError> {
    let mut indices = BTreeMap::new();
    for split in 1..=3 {
        for part in ["train", "test"] {
            let file = format!("{part}list{split:02}.txt");
            let below = format!("ucfTrainTestlist/{file}");
            let Some((file, text)) = lists.first(&[&below, &file])? else { continue };
            let (mut rows, mut absent) = (Vec::new(), 0);
            for (number, line) in Lists::lines(&text) {
                let clip = line.split_whitespace().next().unwrap_or(line);
                let Some((class, _)) = clip.split_once('/') else {
                    return Err(lists.fault(&file, number, format!("`{clip}` is no <class>/<clip>.avi")));
                };
                match places.get(clip.strip_suffix(".avi").unwrap_or(clip)) {
                    Some(&row) => rows.push(row),
                    None => absent += usize::from(classes.iter().any(|known| known == class)),
                }
            }
            if absent > 0 {
                warnings.push(format!("{absent} clips of {file} are not in the folder"));
            }
            rows.sort_unstable();
            rows.dedup();
            if !rows.is_empty() {
                indices.insert(format!("ucf{split}_{part}_index"), rows);
            }
        }
    }
    if indices.is_empty() {
        lists.need(&["ucfTrainTestlist/trainlist01.txt", "trainlist01.txt"], WHENCE)?;
    }
    Ok(indices)
}
