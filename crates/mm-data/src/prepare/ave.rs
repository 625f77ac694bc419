//! AVE: 4143 videos of ten seconds in which one of 28 events is seen and heard.
//!
//! ```text
//! trainSet.txt, valSet.txt, testSet.txt       Category&VideoID&Quality&StartTime&EndTime, a clip per line
//! AVE/<id>.mp4                                the videos as they are published
//! Audios/<id>.wav                             optional: sound that was extracted before
//! Image-01-FPS/<id>/*.jpg, Image-01-FPS-SE/…  optional: frames, one per second; `-SE`: of the event alone
//! ```
//!
//! Files lie in any folder below, see [`super::clips`]. A row is the event, from its first to its last second: what comes
//! before and after is not read. Where a front-end fixes a length, a short event is repeated.
//!
//! Classes: [`CLASSES`]. The three lists are the official split, 3339 / 402 / 402 lines: `train_index`, `val_index`,
//! `test_index`. Some training videos are listed twice; their first line counts.
//!
//! Differences: MLB draws further frames at random for an event of fewer than ten; here the treatment repeats the last one.
//!
//! Source: Tian et al. 2018, ECCV, "Audio-Visual Event Localization in Unconstrained Videos", github.com/YapengTian/AVE-ECCV18;
//! names and use as by kkontras/MLB @68ad48d.

use super::clips::{self, Line};
use super::lists::Lists;
use super::{Listing, Span};
use crate::DataError;
use std::path::Path;

/// The classes, in the order of the published code.
pub const CLASSES: [&str; 28] = [
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
];
/// The lists and their published lengths.
const PARTS: [(&str, &str, usize); 3] =
    [("train", "trainSet.txt", 3339), ("val", "valSet.txt", 402), ("test", "testSet.txt", 402)];
const WHENCE: &str = "github.com/YapengTian/AVE-ECCV18";

pub(super) fn list(raw: &Path) -> Result<Listing, DataError> {
    let mut lists = Lists::of(raw);
    let (mut lines, mut warnings) = (Vec::new(), Vec::new());
    for (part, file, published) in PARTS {
        let (name, text) = lists.need(&[file], WHENCE)?;
        let before = lines.len();
        for (number, text) in Lists::lines(&text) {
            let cells: Vec<&str> = text.split('&').map(str::trim).collect();
            // The list of all videos has a head; these three have none.
            if cells.first() == Some(&"Category") {
                continue;
            }
            let line = line(&cells, part).map_err(|rule| lists.fault(&name, number, rule))?;
            lines.push(line);
        }
        clips::count(&mut warnings, file, lines.len() - before, published);
    }
    let classes = CLASSES.map(str::to_owned).to_vec();
    let sums = lists.sums;
    Ok(Listing { lists: sums, ..clips::listing(raw, "ave", classes, lines, warnings)? })
}

fn line(cells: &[&str], part: &'static str) -> Result<Line, String> {
    let [category, id, _, start, end] = cells[..] else {
        return Err(format!("{} cells between `&`, not five", cells.len()));
    };
    let Some(class) = CLASSES.iter().position(|known| *known == category) else {
        return Err(format!("{category:?} is none of the 28 classes"));
    };
    let Some((id, None)) = clips::key(id) else {
        return Err(format!("{id:?} is no video of YouTube"));
    };
    let seconds = |text: &str| text.parse().ok().filter(|s: &f64| (0.0..=600.0).contains(s));
    let (Some(start), Some(end)) = (seconds(start), seconds(end)) else {
        return Err(format!("{start:?} to {end:?} are no seconds"));
    };
    if start >= end {
        return Err(format!("the event ends at {end}, before it begins at {start}"));
    }
    let key = (id.clone(), None);
    Ok(Line { id, key, class: class as u32, span: Some(Span { start, end }), part })
}
