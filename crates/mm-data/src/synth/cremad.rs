//! A folder like CREMA-D's, generated: a formant synthesiser speaks, faces are drawn.
//!
//! ```text
//! shown_m = emotion of the name with probability reliability_m, else one of the other five      m: voice, face
//! file    = function of (seed, clip, settings)
//! ```
//!
//! No classifier of one modality can be right more often than its reliability, and none is as good as that, because
//! actors differ and every clip varies (`variation`). `LO` in a name shows half of the emotion, `MD` four fifths, `HI` and
//! `XX` all of it and a tenth more.
//!
//! | setting | default | range | meaning |
//! |---|---|---|---|
//! | `actors` | 24 | 1 to 91 | actors from 1001 on; every second is female |
//! | `clips` | 82 | 1 to 82 | clips of an actor, spread over the emotions; 82 is all that the real set has |
//! | `seed` | 0 | | other seeds are other actors and other clips |
//! | `audio_reliability` | 0.9 | 0 to 1 | how often the voice shows the emotion of the name |
//! | `visual_reliability` | 0.6 | 0 to 1 | how often the face does |
//! | `variation` | 1 | 0 to 10 | spread of the clips of one actor and emotion |
//! | `width` | 480 | 32 to 1920 | of a frame; the height is three quarters of it |
//! | `video` | false | | `VideoFlash` too, by ffmpeg: slow |
//!
//! What is written: `AudioWAV/*.wav` (16 kHz, 16 bits, 1.5 to 3 s); `Image-01-FPS/<clip>/*.jpg`, the frames 0, 29, 58, … of
//! 29.97 per second with a head that moves a little; `processedResults/summaryTable.csv`, in which the raters vote for
//! what is shown (voice and face; both, where they agree, else a tie); `README.md`, which says what this is, last;
//! `synth.json`, the settings, first. A second call with the same settings goes on where the first was stopped; other
//! settings are refused. The clips that are known to be bad in the real set are not made.
//!
//! Source: own. Resonators as in Klatt 1980, Journal of the Acoustical Society of America 67(3); what emotions do to voices
//! and faces roughly as in Banse & Scherer 1996 and Ekman & Friesen 1978.

use super::face::Person;
use super::raster::Pose;
use super::voice::Speaker;
use crate::prepare::cremad::{ACTORS, BAD, CLASSES, Name, SENTENCES};
use crate::{DataError, video};
use ::image::codecs::jpeg::JpegEncoder;
use mm_core::{ConfigError, StepRng};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Counts the changes of what these settings give.
const VERSION: u32 = 1;
/// Frames per second, as a fraction.
const FRAME_RATE: (usize, usize) = (30_000, 1001);

/// What is generated; the table is in [the module](self).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CremadConfig {
    /// How many actors.
    pub actors: usize,
    /// Clips of an actor.
    pub clips: usize,
    /// Which actors and clips.
    pub seed: u64,
    /// How often the voice shows the emotion of the name.
    pub audio_reliability: f64,
    /// How often the face does.
    pub visual_reliability: f64,
    /// Spread of the clips of one actor and emotion.
    pub variation: f64,
    /// Width of a frame.
    pub width: usize,
    /// Whether videos are written too.
    pub video: bool,
}

impl Default for CremadConfig {
    fn default() -> Self {
        Self {
            actors: 24,
            clips: 82,
            seed: 0,
            audio_reliability: 0.9,
            visual_reliability: 0.6,
            variation: 1.0,
            width: 480,
            video: false,
        }
    }
}

/// How [`cremad()`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generated {
    /// The folder is complete.
    Done {
        /// Clips in it.
        clips: usize,
        /// Clips that this call made.
        made: usize,
    },
    /// It was stopped, and the same call goes on where it was.
    Stopped {
        /// Clips that are complete.
        done: usize,
    },
}

impl CremadConfig {
    /// Checks every range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let counts =
            [("actors", self.actors, 1, 91), ("clips", self.clips, 1, 82), ("width", self.width, 32, 1920)];
        for (field, value, low, high) in counts {
            if !(low..=high).contains(&value) {
                return Err(ConfigError::new(field, value, format!("must be an integer in [{low}, {high}]")));
            }
        }
        ConfigError::check_range("audio_reliability", self.audio_reliability, 0.0, 1.0)?;
        ConfigError::check_range("visual_reliability", self.visual_reliability, 0.0, 1.0)?;
        ConfigError::check_range("variation", self.variation, 0.0, 10.0)
    }

    /// The names of the clips, in their order.
    pub fn names(&self) -> Vec<Name> {
        let mut names: Vec<Name> = ACTORS.take(self.actors).flat_map(|actor| self.names_of(actor)).collect();
        names.retain(|name| !BAD.iter().any(|(bad, _)| *bad == name.to_string()));
        names.sort_by_key(Name::to_string);
        names
    }

    /// As many clips of an actor as are wanted: one of each emotion in turn, sentences in an order of the actor's own.
    fn names_of(&self, actor: i64) -> Vec<Name> {
        let all = takes(actor);
        let mut of_each: Vec<Vec<Name>> = (0..CLASSES.len())
            .map(|emotion| all.iter().copied().filter(|name| name.emotion == emotion).collect())
            .collect();
        for (emotion, names) in of_each.iter_mut().enumerate() {
            self.key("choice").sample(actor as u64).step(emotion).draws().shuffle(names);
        }
        let longest = of_each.iter().map(Vec::len).max().unwrap_or(0);
        let turns =
            (0..longest).flat_map(|turn| of_each.iter().filter_map(move |names| names.get(turn).copied()));
        turns.take(self.clips).collect()
    }

    fn key(&self, stream: &str) -> StepRng {
        StepRng::new(self.seed).stream("synth").stream("cremad").stream(stream)
    }

    /// What voice and face of a clip show, by the place of the emotion in the classes.
    pub fn shown(&self, name: &Name) -> [usize; 2] {
        let parts = [("voice", self.audio_reliability), ("face", self.visual_reliability)];
        parts.map(|(part, reliability)| {
            let mut d = self.key("shown").stream(part).sample(number(name)).draws();
            let other = (name.emotion + 1 + d.below(CLASSES.len() - 1)) % CLASSES.len();
            if d.uniform() < reliability { name.emotion } else { other }
        })
    }
}

/// The 82 clips of an actor: one sentence (`IEO`) in three intensities, eleven without, as in the real set.
fn takes(actor: i64) -> Vec<Name> {
    let mut names = Vec::new();
    for (sentence, code) in SENTENCES.iter().enumerate() {
        for emotion in 0..CLASSES.len() {
            let graded = *code == "IEO" && emotion != 0;
            let intensities = if graded { 1..=3 } else { 0..=0 };
            names.extend(intensities.map(|intensity| Name { actor, sentence, emotion, intensity }));
        }
    }
    names
}

/// A number of its own for every name that can be.
fn number(name: &Name) -> u64 {
    let [sentence, emotion, intensity] =
        [name.sentence, name.emotion, name.intensity].map(|part| part as u64);
    ((name.actor as u64 * 16 + sentence) * 8 + emotion) * 4 + intensity
}

/// Generates the folder `out`.
pub fn cremad(
    config: &CremadConfig,
    out: &Path,
    progress: &(dyn Fn(usize, usize) + Sync),
    stop: &AtomicBool,
) -> Result<Generated, DataError> {
    config.check()?;
    let names = config.names();
    begin(config, out)?;
    let (count, made) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let one = |name: &Name| -> Result<(), DataError> {
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        if clip(config, name, out)? {
            made.fetch_add(1, Ordering::Relaxed);
        }
        progress(count.fetch_add(1, Ordering::Relaxed) + 1, names.len());
        Ok(())
    };
    names.par_iter().map(one).collect::<Result<Vec<()>, _>>()?;
    let done = count.into_inner();
    if done < names.len() {
        return Ok(Generated::Stopped { done });
    }
    put(&out.join("processedResults").join("summaryTable.csv"), votes(config, &names).as_bytes())?;
    put(&out.join("README.md"), readme(config, names.len()).as_bytes())?;
    Ok(Generated::Done { clips: names.len(), made: made.into_inner() })
}

/// Makes the folders, and refuses one that holds anything else.
fn begin(config: &CremadConfig, out: &Path) -> Result<(), DataError> {
    let place = out.display().to_string();
    let fault =
        |rule: &str| Err(DataError::invalid(&place, rule, "choose another folder, or delete this one"));
    let settings = serde_json::json!({ "generator": "cremad", "version": VERSION, "settings": config });
    let settings = format!("{settings:#}\n");
    let file = out.join("synth.json");
    match std::fs::read_to_string(&file) {
        Ok(text) if text == settings => return Ok(()),
        Ok(_) => return fault("holds a data set that was generated with other settings"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(DataError::Io { file: file.display().to_string(), source }),
    }
    if std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return fault("is not empty, and what it holds was not generated");
    }
    put(&file, settings.as_bytes())
}

/// The files of one clip; false if all were there.
fn clip(config: &CremadConfig, name: &Name, out: &Path) -> Result<bool, DataError> {
    let actor = config.key("actor").sample(name.actor as u64);
    let key = |part: &str| config.key("clip").stream(part).sample(number(name)).draws();
    let female = name.actor % 2 == 0;
    let strength = [1.1, 0.5, 0.8, 1.1].get(name.intensity).copied().unwrap_or(1.0);
    let [heard, seen] = config.shown(name);
    let mut made = false;

    let sound = out.join("AudioWAV").join(format!("{name}.wav"));
    let mut d = key("voice");
    let manner = Speaker::manner(heard, strength, config.variation, &mut d);
    let spoken = Speaker::draw(actor, female).say(name.sentence, &manner, &mut d);
    if !sound.is_file() {
        put_by(&sound, |part| spoken.write(part))?;
        made = true;
    }

    // As many frames as the sound lasts, and of these every 29th.
    let frames = (spoken.seconds() * FRAME_RATE.0 as f64 / FRAME_RATE.1 as f64) as usize;
    let folder = out.join("Image-01-FPS").join(name.to_string());
    let person = Person::draw(actor, female);
    let mut d = key("face");
    let look = person.look(seen, strength, config.variation, &mut d);
    let sway: [f64; 6] = std::array::from_fn(|_| d.normal());
    let size = [config.width * 3 / 4, config.width];
    let paint = |frame: usize| {
        let time = frame as f64 / 30.0;
        let wave = |speed: f64, phase: f64| (std::f64::consts::TAU * (speed * time + phase)).sin();
        let pose = Pose {
            middle: [0.012 * (sway[0] + wave(0.3, sway[1])), 0.01 * (sway[2] + wave(0.4, sway[3]))],
            turn: 0.02 * (sway[4] + wave(0.25, sway[0])),
            zoom: 1.0 + 0.02 * sway[5],
        };
        let open = (0.5 + 0.5 * wave(3.1, sway[1])) * f64::from(u8::from(frame > 0));
        let mut grain = config.key("grain").sample(number(name)).step(frame).draws();
        person.paint(size, &look, open, pose, &mut grain)
    };
    for (number, frame) in (0..frames.max(1)).step_by(29).enumerate() {
        let file = folder.join(format!("{number:05}.jpg"));
        if !file.is_file() {
            let picture = paint(frame)?;
            let mut bytes = Vec::new();
            JpegEncoder::new_with_quality(&mut bytes, 90)
                .encode(&picture.pixels, size[1] as u32, size[0] as u32, ::image::ExtendedColorType::Rgb8)
                .map_err(|e| {
                    DataError::invalid("JPEG", format!("it cannot be written ({e})"), "report this")
                })?;
            put(&file, &bytes)?;
            made = true;
        }
    }
    let flash = out.join("VideoFlash").join(format!("{name}.flv"));
    if config.video && !flash.is_file() {
        put_by(&flash, |part| film(part, size, (0..frames.max(1)).map(paint)))?;
        made = true;
    }
    Ok(made)
}

/// Frames as a Flash video with Sorenson's codec.
fn film(
    file: &Path,
    [height, width]: [usize; 2],
    frames: impl Iterator<Item = Result<crate::image::Frame, DataError>>,
) -> Result<(), DataError> {
    let program =
        std::env::var_os(video::VARIABLE).filter(|v| !v.is_empty()).unwrap_or_else(|| "ffmpeg".into());
    let fail = |e: std::io::Error| {
        let rule = format!("{} cannot write it ({e})", program.display());
        let remedy = "apt-get install ffmpeg, set MM_FFMPEG to the program, or leave `video` out";
        DataError::invalid(&file.display().to_string(), rule, remedy)
    };
    let mut command = Command::new(&program);
    command.args(["-hide_banner", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s"]);
    command.arg(format!("{width}x{height}")).args(["-r", &format!("{}/{}", FRAME_RATE.0, FRAME_RATE.1)]);
    command.args([
        "-i",
        "pipe:0",
        "-an",
        "-c:v",
        "flv1",
        "-q:v",
        "4",
        "-threads",
        "1",
        "-bitexact",
        "-f",
        "flv",
        "-y",
    ]);
    let mut child = command.arg(file).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().map_err(fail)?;
    let mut written = Ok(());
    if let Some(mut pipe) = child.stdin.take() {
        for frame in frames {
            written = frame.and_then(|frame| pipe.write_all(&frame.pixels).map_err(fail));
            if written.is_err() {
                break;
            }
        }
    }
    let status = child.wait().map_err(fail)?;
    written?;
    if status.success() { Ok(()) } else { Err(fail(std::io::Error::other(status.to_string()))) }
}

/// The votes of raters who see and hear what is shown.
fn votes(config: &CremadConfig, names: &[Name]) -> String {
    let letter = |emotion: usize| CLASSES.get(emotion).and_then(|class| class.get(..1)).unwrap_or("X");
    let head = [
        "",
        "FileName",
        "VoiceVote",
        "VoiceLevel",
        "FaceVote",
        "FaceLevel",
        "MultiModalVote",
        "MultiModalLevel",
    ];
    let mut text = head.map(|column| format!("\"{column}\"")).join(",") + "\n";
    for (line, name) in names.iter().enumerate() {
        let [voice, face] = config.shown(name).map(letter);
        let both = if voice == face { voice.to_owned() } else { format!("{voice}:{face}") };
        // Writing into a string cannot fail.
        let _ = writeln!(text, "\"{}\",\"{name}\",\"{voice}\",70,\"{face}\",70,\"{both}\",70", line + 1);
    }
    text
}

fn readme(config: &CremadConfig, clips: usize) -> String {
    format!(
        "# Generated data\n\n\
         This folder has the layout of CREMA-D, but nothing in it was recorded: `mm data synth cremad` (mm-data {}) made\n\
         the voices with a formant synthesiser and drew the faces. Figures on it say nothing about CREMA-D.\n\n\
         {clips} clips of {} actors, seed {}. The voice shows the emotion of the name with probability {}, the face with\n\
         probability {}; else another one. All settings: `synth.json`. No licence of CREMA-D applies to these files.\n",
        env!("CARGO_PKG_VERSION"),
        config.actors,
        config.seed,
        config.audio_reliability,
        config.visual_reliability,
    )
}

/// A file that appears under its name when it is complete.
fn put(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let fail = |source| DataError::Write { file: path.display().to_string(), source };
    put_by(path, |part| std::fs::write(part, bytes).map_err(fail))
}

fn put_by(path: &Path, write: impl FnOnce(&Path) -> Result<(), DataError>) -> Result<(), DataError> {
    let fail = |source| DataError::Write { file: path.display().to_string(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    let part: PathBuf = path.with_file_name(format!(
        ".{}.{}.part",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let written = write(&part).and_then(|()| std::fs::rename(&part, path).map_err(fail));
    if written.is_err() {
        // What is left of it is of no use; that it cannot be removed is not what the caller has to know.
        let _ = std::fs::remove_file(&part);
    }
    written
}
