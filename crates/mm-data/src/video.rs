//! Frames and sound of a video, by the program `ffmpeg`.
//!
//! ```text
//! frames   ffmpeg -i FILE -vf select=<indices>  -f rawvideo -pix_fmt rgb24  ->  height x width x 3 bytes per frame
//! sound    ffmpeg -i FILE -vn -ac 1 -ar RATE    -f s16le                    ->  samples of 16 bits
//!          ffmpeg -i FILE -vn -c:a pcm_s16le    -f wav                      ->  the same at the file's own rate, all channels
//! ```
//!
//! Shapes: (T frames of (H, W, 3)), (samples).
//!
//! | setting of [`VideoConfig`] | default | range | meaning |
//! |---|---|---|---|
//! | `ffmpeg` | found | | the program; without it the variable `MM_FFMPEG`, then the folders of `PATH` |
//! | `timeout` | 120 | 0.01 to 86400 | seconds for one call |
//! | `start` | 0 | | the first frame |
//! | `step` | int(fps) | at least 1 | frames from one to the next |
//! | `count` | all | at least 1 | how many frames at most |
//!
//! The defaults are the rule of OGM: the frames 0, int(fps), 2 int(fps), … with the rate cut to a whole number,
//! which makes them 0, 29, 58 for 29.97. MLB takes the first three of them, `count = 3`. Frames are counted as they
//! are shown, and come in the size of the source, without the rotation that a camera noted.
//!
//! Width, height and rate are asked of `ffprobe` where it lies beside `ffmpeg`, and are read from what `ffmpeg -i`
//! prints otherwise; that rounds the rate to two places. The rate is the mean one (`avg_frame_rate`), where the
//! file has it.
//!
//! Differences from the sources: OGM and MLB write the frames as JPEG with OpenCV and read them again, these are as
//! decoded. Sound of several channels becomes their mean.
//!
//! A video is a stranger: only a regular file is opened, ffmpeg may open nothing but files, what it gives is
//! limited to [`MAX_BYTES`], its time to `timeout`. Source: the documentation of ffmpeg 5.1; the recipe of
//! OGM-GE_CVPR2022 @343dc1d.
//!
//! ```no_run
//! use mm_data::video::VideoConfig;
//! # fn main() -> Result<(), mm_data::DataError> {
//! let config = VideoConfig { count: Some(3), ..VideoConfig::default() };
//! let ffmpeg = config.program()?;
//! let clip = ffmpeg.clip("1001_DFA_ANG_XX.flv".as_ref(), &config)?;
//! let sound = ffmpeg.audio("1001_DFA_ANG_XX.flv".as_ref(), 16_000)?;
//! # Ok(())
//! # }
//! ```

mod ffmpeg;
mod probe;
mod sound;

pub use ffmpeg::Ffmpeg;
pub use probe::VideoInfo;

use crate::DataError;
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most bytes that one call may give.
pub const MAX_BYTES: u64 = 2 << 30;
/// The most frames that can be named one by one.
pub const MAX_INDICES: usize = 1000;

/// The environment variable that names the program.
pub const VARIABLE: &str = "MM_FFMPEG";

/// Which program, and which frames; the table is in [its module](self).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VideoConfig {
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffmpeg: Option<PathBuf>,
    /// Seconds for one call.
    pub timeout: f64,
    /// The first frame.
    pub start: usize,
    /// Frames from one to the next; without it the frames of a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
    /// How many frames at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

impl Default for VideoConfig {
    fn default() -> Self {
        Self { ffmpeg: None, timeout: 120.0, start: 0, step: None, count: None }
    }
}

impl VideoConfig {
    /// Checks every range; looks for nothing.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::check_range("timeout", self.timeout, 0.01, 86_400.0)?;
        for (name, value) in [("step", self.step), ("count", self.count)] {
            if value == Some(0) {
                return Err(ConfigError::new(name, 0, "must be an integer of at least 1"));
            }
        }
        Ok(())
    }

    /// Finds the program.
    pub fn program(&self) -> Result<Ffmpeg, DataError> {
        self.check()?;
        let program = find(
            self.ffmpeg.as_deref(),
            std::env::var_os(VARIABLE).as_deref().map(Path::new),
            std::env::var_os("PATH").as_deref(),
        )?;
        Ok(Ffmpeg::new(program, Duration::from_secs_f64(self.timeout)))
    }
}

const REMEDY: &str = "apt-get install ffmpeg, or set MM_FFMPEG to the program";

fn find(
    setting: Option<&Path>,
    variable: Option<&Path>,
    folders: Option<&std::ffi::OsStr>,
) -> Result<PathBuf, DataError> {
    let named = setting.map(|path| ("the setting `ffmpeg`", path));
    let named = named.or(variable.filter(|path| !path.as_os_str().is_empty()).map(|path| (VARIABLE, path)));
    if let Some((who, path)) = named {
        if path.is_file() {
            // A bare name would be looked for on PATH when it is run.
            return Ok(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
        }
        let rule = format!("{who} names {}, where there is no file", path.display());
        return Err(DataError::invalid("video", rule, REMEDY));
    }
    let name = format!("ffmpeg{}", std::env::consts::EXE_SUFFIX);
    std::env::split_paths(folders.unwrap_or_default())
        .map(|folder| folder.join(&name))
        .find(|path| path.is_file())
        .ok_or_else(|| DataError::invalid("video", "ffmpeg is not on PATH", REMEDY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_comes_before_the_variable_and_both_before_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["ffmpeg", "a", "b"] {
            std::fs::write(path(name), "").unwrap();
        }
        let (a, b) = (path("a"), path("b"));
        let folders = std::env::join_paths([path("none"), folder.path().to_owned()]).unwrap();
        let found = |s: Option<&Path>, v: Option<&Path>| find(s, v, Some(&folders)).unwrap();
        assert_eq!(found(Some(&a), Some(&b)), a);
        assert_eq!(found(None, Some(&b)), b);
        assert_eq!(found(None, Some(Path::new(""))), path("ffmpeg"));
        assert_eq!(found(None, None), path("ffmpeg"));
        assert_eq!(
            find(None, None, None).unwrap_err().to_string(),
            "video: ffmpeg is not on PATH; apt-get install ffmpeg, or set MM_FFMPEG to the program"
        );
        let error = find(None, Some(&path("c")), Some(&folders)).unwrap_err().to_string();
        assert!(
            error.starts_with("video: MM_FFMPEG names ") && error.contains("where there is no file"),
            "{error}"
        );
    }
}
