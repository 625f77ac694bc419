//! Clips of YouTube: files by the video and the second that their names begin with, and rows from published lists.
//!
//! ```text
//! <id>.mp4    <id>_<start>.mp4    <id>_<start>_<end>.mp4        id: eleven letters, digits, `-` and `_`; start, end: seconds
//! ```
//!
//! In any folder down to a depth of four: `.wav` (and other sound) is the sound, `.mp4`, `.mkv`, `.webm`, `.avi` and `.flv` are
//! videos, a folder with such a name that holds pictures is a clip's frames, one per second, in the order of their names.
//! Zeros before a number say nothing: `_000013` is `_13`. A file called by its video alone is the clip of it, where the
//! lists have one clip of that video only; which of several it is, its name does not say.
//!
//! Videos on YouTube go away, so nobody has all clips of a list: lines whose clip is not in the folder are counted and
//! left out. A row's sound is read from its sound file, else by ffmpeg from the video; its frames from pictures, else from
//! the video.

use super::raw::is_sound;
use super::{ListedRow, Listing, Raw, Span};
use crate::DataError;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const VIDEO: [&str; 6] = ["mp4", "mkv", "webm", "avi", "flv", "mov"];
const DEPTH: usize = 4;

/// A video and the second where its clip begins, where its name says that.
pub(super) type Key = (String, Option<u64>);

/// What a name says, without its ending.
pub(super) fn key(stem: &str) -> Option<Key> {
    let (id, rest) = (stem.get(..11)?, stem.get(11..)?);
    if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        return None;
    }
    let Some(rest) = rest.strip_prefix('_') else {
        return rest.is_empty().then(|| (id.to_owned(), None));
    };
    let (start, end) = rest.split_once('_').map_or((rest, None), |(start, end)| (start, Some(end)));
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    if let Some(end) = end {
        number(end)?;
    }
    Some((id.to_owned(), Some(number(start)?)))
}

/// The files of a clip.
#[derive(Debug, Default)]
pub(super) struct Files {
    sound: Option<PathBuf>,
    video: Option<PathBuf>,
    frames: Vec<PathBuf>,
    /// Whether the frames are those of the wanted part alone (folders `…-SE`, as MLB calls them).
    cut: bool,
}

impl Files {
    /// What these files lack, of others.
    fn or(self, other: Self) -> Self {
        let (frames, cut) =
            if self.frames.is_empty() { (other.frames, other.cut) } else { (self.frames, self.cut) };
        Self { sound: self.sound.or(other.sound), video: self.video.or(other.video), frames, cut }
    }
}

/// All clips below a folder.
pub(super) fn below(raw: &Path) -> Result<BTreeMap<Key, Files>, DataError> {
    let mut clips = BTreeMap::new();
    visit(raw, DEPTH, &mut clips)?;
    Ok(clips)
}

fn visit(dir: &Path, depth: usize, clips: &mut BTreeMap<Key, Files>) -> Result<(), DataError> {
    for path in super::cremad::entries(dir)? {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let (stem, ending) = name.rsplit_once('.').unwrap_or((name.as_str(), ""));
        let video = VIDEO.iter().any(|known| ending.eq_ignore_ascii_case(known));
        if path.is_dir() {
            // Folders of frames are called like their video, with or without its ending.
            let stem = if video { stem } else { name.as_str() };
            let pictures = match key(stem) {
                Some(_) => super::cremad::pictures(&path)?,
                None => Vec::new(),
            };
            match key(stem) {
                Some(key) if !pictures.is_empty() => {
                    let files = clips.entry(key).or_default();
                    if files.frames.is_empty() {
                        files.cut = dir.to_string_lossy().ends_with("-SE");
                        files.frames = pictures;
                    }
                }
                _ if depth > 0 => visit(&path, depth - 1, clips)?,
                _ => {}
            }
        } else if let Some(key) = key(stem) {
            if is_sound(&path) {
                clips.entry(key).or_default().sound.get_or_insert(path);
            } else if video {
                clips.entry(key).or_default().video.get_or_insert(path);
            }
        }
    }
    Ok(())
}

/// A line of a published list.
#[derive(Debug)]
pub(super) struct Line {
    /// The row's name.
    pub(super) id: String,
    /// What its files are called.
    pub(super) key: Key,
    /// Its class.
    pub(super) class: u32,
    /// The part of the clip that is wanted.
    pub(super) span: Option<Span>,
    /// `train`, `val` or `test`.
    pub(super) part: &'static str,
}

/// The rows of lists whose clips are in the folder.
pub(super) fn listing(
    raw: &Path,
    name: &str,
    classes: Vec<String>,
    lines: Vec<Line>,
    mut warnings: Vec<String>,
) -> Result<Listing, DataError> {
    let mut clips = below(raw)?;
    let mut rows: Vec<ListedRow> = Vec::new();
    let mut indices: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let (mut absent, mut known, all) = (0, BTreeMap::new(), lines.len());
    let (mut again, mut open) = (BTreeSet::<String>::new(), BTreeSet::<String>::new());
    let mut of_video: BTreeMap<String, BTreeSet<Option<u64>>> = BTreeMap::new();
    for Line { key: (id, start), .. } in &lines {
        of_video.entry(id.clone()).or_default().insert(*start);
    }
    for line in lines {
        if let Some(part) = known.insert(line.id.clone(), line.part) {
            if part != line.part {
                let rule = format!("`{}` is in the parts {part} and {}", line.id, line.part);
                let remedy = "take it out of one of the lists";
                return Err(DataError::invalid(&raw.display().to_string(), rule, remedy));
            }
            again.insert(line.id);
            continue;
        }
        // Some name a file by the video alone.
        let bare = (line.key.0.clone(), None);
        let named = clips.remove(&line.key);
        let bare = if of_video.get(&bare.0).is_some_and(|clips| clips.len() == 1) {
            clips.remove(&bare)
        } else {
            open.extend(clips.contains_key(&bare).then_some(bare.0));
            None
        };
        let files = match (named, bare) {
            (Some(named), Some(bare)) => Some(named.or(bare)),
            (named, bare) => named.or(bare),
        };
        let Some(files) = files else {
            absent += 1;
            continue;
        };
        indices.entry(format!("{}_index", line.part)).or_default().push(rows.len());
        rows.push(ListedRow { raw: inputs(files, line.span), id: line.id, label: line.class });
    }
    if !again.is_empty() {
        let first = again.first().cloned().unwrap_or_default();
        warnings.push(format!(
            "{} clips are listed more than once, such as {first}: the first line counts",
            again.len()
        ));
    }
    if let Some(first) = open.first() {
        warnings.push(format!(
            "{} files are called by a video of which the lists have several clips, such as {first}: left out, since \
             their names do not say which; call them <id>_<start>",
            open.len()
        ));
    }
    if rows.is_empty() {
        let rule = format!("none of the {all} clips of the lists is in it");
        let remedy =
            "give the folder that holds lists and clips; names begin with the video's eleven characters";
        return Err(DataError::invalid(&raw.display().to_string(), rule, remedy));
    }
    if absent > 0 {
        warnings.push(format!("{absent} of {all} listed clips are not in the folder"));
    }
    for (m, what) in ["sound", "frames"].iter().enumerate() {
        let lacking = rows.iter().filter(|row| row.raw.get(m) == Some(&Raw::Missing)).count();
        if lacking > 0 {
            warnings.push(format!("{lacking} clips have neither {what} nor a video"));
        }
    }
    Ok(Listing {
        name: name.to_owned(),
        classes,
        modalities: vec!["audio".into(), "video".into()],
        rows,
        columns: BTreeMap::new(),
        indices,
        lists: BTreeMap::new(),
        warnings,
    })
}

/// Sound and frames of a clip.
fn inputs(files: Files, span: Option<Span>) -> Vec<Raw> {
    let sound = match (files.sound, &files.video, span) {
        (Some(sound), _, None) => Raw::Sound(sound),
        (Some(sound), ..) => Raw::Track(sound, span),
        (None, Some(video), _) => Raw::Track(video.clone(), span),
        (None, None, _) => Raw::Missing,
    };
    let frames = match (span, files.cut) {
        (Some(span), false) => {
            let (start, end) = (span.start as usize, span.end as usize);
            files.frames.into_iter().skip(start).take(end.saturating_sub(start).max(1)).collect()
        }
        _ => files.frames,
    };
    let video = match (frames.is_empty(), files.video, span) {
        (false, ..) => Raw::Frames(frames),
        (true, Some(video), Some(span)) => Raw::Scene(video, span),
        (true, Some(video), None) => Raw::Video(video),
        (true, None, _) => Raw::Missing,
    };
    vec![sound, video]
}

/// A warning where a list is not as long as the published one.
pub(super) fn count(warnings: &mut Vec<String>, file: &str, found: usize, published: usize) {
    if found != published {
        warnings.push(format!("{file} has {found} lines, the published one {published}"));
    }
}
