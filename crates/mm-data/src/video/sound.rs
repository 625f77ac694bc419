//! The sound of a video as it is in the file: its own rate and channels, by way of a WAV file.

use super::MAX_BYTES;
use super::ffmpeg::{Ffmpeg, invalid};
use crate::DataError;
use crate::audio::Clip;
use std::path::Path;
use std::process::Command;

impl Ffmpeg {
    /// Whether a file has a track of sound.
    pub fn has_sound(&self, path: &Path) -> Result<bool, DataError> {
        let input = super::ffmpeg::input(path)?;
        if let Some(ffprobe) = self.ffprobe() {
            let mut command = Command::new(&ffprobe);
            command.args(["-v", "error", "-protocol_whitelist", "file", "-select_streams", "a:0"]);
            command
                .args(["-show_entries", "stream=codec_type", "-of", "default=noprint_wrappers=1"])
                .arg(&input);
            let done = self.run(path, command, 1 << 20)?;
            done.check(path, "ffprobe")?;
            return Ok(String::from_utf8_lossy(&done.stdout).contains("codec_type=audio"));
        }
        let mut command = Command::new(self.program());
        command.args(["-hide_banner", "-nostdin", "-protocol_whitelist", "file", "-i"]).arg(&input);
        // Without an output the program fails, but it has said what the input is.
        let done = self.run(path, command, 1 << 20)?;
        if !done.stderr.contains("Input #0") {
            done.check(path, "ffmpeg")?;
        }
        let streams = done.stderr.lines().map(str::trim_start).filter(|line| line.starts_with("Stream #"));
        Ok(streams.into_iter().any(|line| line.contains("Audio:")))
    }

    /// The sound at its own rate: one of its channels (from 0), or their mean; nothing where there is no sound.
    pub fn sound(&self, path: &Path, channel: Option<usize>) -> Result<Option<Clip>, DataError> {
        if !self.has_sound(path)? {
            return Ok(None);
        }
        // A file and not a pipe: what ffmpeg writes into a pipe has no length in its head.
        let folder = tempfile::tempdir().map_err(|source| DataError::Write {
            file: std::env::temp_dir().display().to_string(),
            source,
        })?;
        let wav = folder.path().join("sound.wav");
        let mut command = self.reader(path)?;
        command.args(["-map", "0:a:0", "-vn", "-c:a", "pcm_s16le", "-f", "wav", "-fs"]);
        command.arg(MAX_BYTES.to_string()).arg(&wav);
        let done = self.run(path, command, 1 << 20)?;
        done.check(path, "ffmpeg")?;
        let length = std::fs::metadata(&wav).map_or(0, |about| about.len());
        if length + (1 << 16) > MAX_BYTES {
            let rule = format!("its sound has more than the allowed {MAX_BYTES} bytes");
            return Err(invalid(path, rule, "cut the recording into pieces"));
        }
        // The file that is named is the video: nobody else knows of the other.
        Clip::open_channel(&wav, channel).map(Some).map_err(|error| match error {
            DataError::Invalid { rule, remedy, .. } => invalid(path, format!("its sound: {rule}"), &remedy),
            other => other,
        })
    }
}
