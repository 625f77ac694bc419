//! Calls of the program: its output in bounded memory, its time limited, its last words in the error.

use super::{MAX_BYTES, MAX_INDICES, REMEDY, VideoConfig, VideoInfo};
use crate::image::{Frame, MAX_PIXELS, check_pointer};
use crate::{DataError, safe_file};
use mm_core::ConfigError;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The program, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ffmpeg {
    program: PathBuf,
    timeout: Duration,
}

impl Ffmpeg {
    /// This program; [`VideoConfig::program`] looks for it.
    pub fn new(program: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { program: program.into(), timeout }
    }

    /// Size, rate and codec of a video.
    pub fn probe(&self, path: &Path) -> Result<VideoInfo, DataError> {
        let input = input(path)?;
        let info = if let Some(ffprobe) = self.ffprobe() {
            let wanted = "stream=codec_name,width,height,avg_frame_rate,r_frame_rate";
            let mut command = Command::new(&ffprobe);
            command.args(["-v", "error", "-protocol_whitelist", "file", "-select_streams", "v:0"]);
            command.args(["-show_entries", wanted, "-of", "default=noprint_wrappers=1"]).arg(&input);
            let done = self.run(path, command, 1 << 20)?;
            done.check(path, "ffprobe")?;
            VideoInfo::from_ffprobe(&String::from_utf8_lossy(&done.stdout))
        } else {
            let mut command = Command::new(&self.program);
            command.args(["-hide_banner", "-nostdin", "-protocol_whitelist", "file", "-i"]).arg(&input);
            // Without an output the program fails, but it has said what the input is.
            let done = self.run(path, command, 1 << 20)?;
            let info = VideoInfo::from_ffmpeg(&done.stderr);
            if info.is_none() && !done.stderr.contains("Input #0") {
                done.check(path, "ffmpeg")?;
            }
            info
        };
        let Some(info) = info else {
            let rule = "there is no video stream with a size and a rate in it";
            return Err(invalid(path, rule, "give a video, or convert it with ffmpeg"));
        };
        if info.width == 0
            || info.height == 0
            || (info.width as u64).saturating_mul(info.height as u64) > MAX_PIXELS
        {
            let rule = format!("frames of {} x {} pixels", info.height, info.width);
            return Err(invalid(
                path,
                rule,
                &format!("a frame has 1 to {MAX_PIXELS} pixels: scale the video"),
            ));
        }
        Ok(info)
    }

    /// The frames that the settings choose; at least one.
    pub fn clip(&self, path: &Path, config: &VideoConfig) -> Result<Vec<Frame>, DataError> {
        config.check()?;
        let info = self.probe(path)?;
        let (start, step) = (config.start, config.step.unwrap_or_else(|| info.whole_fps()));
        let select = format!("gte(n,{start})*not(mod(n-{start},{step}))");
        let frames = self.select(path, &info, &select, config.count)?;
        if frames.is_empty() {
            let rule = format!("it has no frame {start}");
            return Err(invalid(path, rule, "start earlier, or leave the video out"));
        }
        Ok(frames)
    }

    /// The frames with these numbers, counted from 0 as they are shown. They must grow.
    pub fn frames(&self, path: &Path, indices: &[usize]) -> Result<Vec<Frame>, DataError> {
        if indices.is_empty() || indices.len() > MAX_INDICES || !indices.is_sorted_by(|a, b| a < b) {
            let rule = format!("must be 1 to {MAX_INDICES} numbers, each above the one before");
            return Err(ConfigError::new("indices", format!("{indices:?}"), rule).into());
        }
        let info = self.probe(path)?;
        let terms: Vec<String> = indices.iter().map(|i| format!("eq(n,{i})")).collect();
        let frames = self.select(path, &info, &terms.join("+"), Some(indices.len()))?;
        if let Some(&first) = indices.get(frames.len()) {
            let rule =
                format!("it has no frame {first}: it ends after {} of the {}", frames.len(), indices.len());
            return Err(invalid(path, rule, "ask for earlier frames, or leave the video out"));
        }
        Ok(frames)
    }

    /// The sound as one channel of 16-bit samples at this rate.
    pub fn audio(&self, path: &Path, rate: u32) -> Result<Vec<i16>, DataError> {
        if !(1_000..=384_000).contains(&rate) {
            return Err(ConfigError::new("rate", rate, "must be an integer in [1000, 384000]").into());
        }
        let mut command = self.reader(path)?;
        command.args(["-map", "0:a:0", "-vn", "-ac", "1", "-ar", &rate.to_string()]);
        command.args(["-c:a", "pcm_s16le", "-f", "s16le", "pipe:1"]);
        let done = self.run(path, command, MAX_BYTES)?;
        done.check(path, "ffmpeg")?;
        let (samples, _) = done.stdout.as_chunks::<2>();
        Ok(samples.iter().map(|&b| i16::from_le_bytes(b)).collect())
    }

    /// The first `count` frames for which the expression of ffmpeg's filter `select` is not 0.
    fn select(
        &self,
        path: &Path,
        info: &VideoInfo,
        expression: &str,
        count: Option<usize>,
    ) -> Result<Vec<Frame>, DataError> {
        let mut command = self.reader(path)?;
        // Times become 0, 1, 2, … of an output that has as many frames per second: nothing is repeated or left out, and
        // no option is needed whose name differs between versions of ffmpeg.
        let filter = format!("select='{expression}',settb=1/25,setpts=N");
        command.args(["-map", "0:v:0", "-an", "-vf", &filter, "-r", "25"]);
        if let Some(count) = count {
            command.args(["-frames:v", &count.to_string()]);
        }
        command.args(["-c:v", "rawvideo", "-pix_fmt", "rgb24", "-f", "rawvideo", "pipe:1"]);
        let size = info.width * info.height * 3;
        let done = self.run(path, command, MAX_BYTES)?;
        done.check(path, "ffmpeg")?;
        if done.stdout.len() % size != 0 {
            let rule = format!(
                "ffmpeg gave {} bytes, which are no whole frames of {} x {} pixels",
                done.stdout.len(),
                info.height,
                info.width
            );
            return Err(invalid(path, rule, "the size changes within the video: convert it with ffmpeg"));
        }
        done.stdout.chunks_exact(size).map(|f| Frame::new(info.height, info.width, 3, f.to_vec())).collect()
    }

    /// Which program it is.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// The program with what all calls that decode have in common.
    pub(super) fn reader(&self, path: &Path) -> Result<Command, DataError> {
        let input = input(path)?;
        let mut command = Command::new(&self.program);
        command.args(["-hide_banner", "-nostdin", "-nostats", "-loglevel", "error", "-noautorotate"]);
        command.args(["-protocol_whitelist", "file", "-i"]).arg(input);
        Ok(command)
    }

    /// `ffprobe` beside the program, where it is.
    pub(super) fn ffprobe(&self) -> Option<PathBuf> {
        let name = self.program.file_name()?.to_str()?;
        let path = self.program.with_file_name(name.replace("ffmpeg", "ffprobe"));
        (name.contains("ffmpeg") && path.is_file()).then_some(path)
    }

    pub(super) fn run(&self, path: &Path, mut command: Command, limit: u64) -> Result<Done, DataError> {
        let end = Instant::now() + self.timeout;
        let name = command.get_program().display().to_string();
        let cannot = |e: std::io::Error| invalid(path, format!("{name} cannot be run ({e})"), REMEDY);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(command.spawn().map_err(cannot)?);
        let stdout = collect(child.0.stdout.take(), limit, false);
        let stderr = collect(child.0.stderr.take(), 1 << 16, true);
        let late = || {
            let rule = format!("{name} did not finish within {} seconds", self.timeout.as_secs_f64());
            invalid(path, rule, "raise `timeout`, or leave the video out")
        };
        let left = || end.saturating_duration_since(Instant::now());
        // Dropping `child` on an early return kills the program.
        let stdout = stdout.recv_timeout(left()).map_err(|_| late())?.map_err(cannot)?;
        if stdout.len() as u64 > limit {
            let rule = format!("ffmpeg gives more than the allowed {limit} bytes");
            return Err(invalid(path, rule, "take fewer frames (`count`), or a shorter or smaller video"));
        }
        let stderr = stderr.recv_timeout(left()).map_err(|_| late())?.map_err(cannot)?;
        let status = loop {
            match child.0.try_wait().map_err(cannot)? {
                Some(status) => break status,
                None if left().is_zero() => return Err(late()),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        Ok(Done { status, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }
}

/// A program that does not outlive its caller's interest.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only where it is over already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that ended.
pub(super) struct Done {
    status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl Done {
    pub(super) fn check(&self, path: &Path, program: &str) -> Result<(), DataError> {
        if self.status.success() {
            return Ok(());
        }
        let last = self.stderr.lines().map(str::trim).rfind(|line| !line.is_empty());
        let rule = format!("{program} failed with {}: {}", self.status, last.unwrap_or("it says nothing"));
        Err(invalid(path, rule, "the file is damaged, is no video, or lacks the stream: play it with ffplay"))
    }
}

/// Reads a pipe on a thread of its own up to one byte more than `limit`; with `rest` it goes on and drops what follows.
/// The thread ends when the pipe does.
fn collect<R: Read + Send + 'static>(
    pipe: Option<R>,
    limit: u64,
    rest: bool,
) -> Receiver<std::io::Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = match pipe {
            None => Ok(0),
            Some(pipe) if rest => keep_end(pipe, limit as usize, &mut bytes),
            Some(pipe) => pipe.take(limit + 1).read_to_end(&mut bytes),
        };
        // Nobody listens any more where the time was up.
        let _ = sender.send(result.map(|_| bytes));
    });
    receiver
}

/// Reads all, and keeps about the last `limit` bytes.
fn keep_end(mut pipe: impl Read, limit: usize, bytes: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut part = [0u8; 4096];
    loop {
        match pipe.read(&mut part) {
            Ok(0) => return Ok(bytes.len()),
            Ok(n) => bytes.extend(part.iter().take(n)),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if bytes.len() > 2 * limit {
            bytes.drain(..bytes.len() - limit);
        }
    }
}

/// The file as ffmpeg's own name for files: no other protocol, no option, whatever the name looks like.
pub(super) fn input(path: &Path) -> Result<OsString, DataError> {
    let mut head = Vec::new();
    let io = |source| DataError::Io { file: path.display().to_string(), source };
    safe_file::open(path)?.take(64).read_to_end(&mut head).map_err(io)?;
    check_pointer(&path.display().to_string(), &head)?;
    let mut input = OsString::from("file:");
    input.push(path);
    Ok(input)
}

pub(super) fn invalid(path: &Path, rule: impl Into<String>, remedy: &str) -> DataError {
    DataError::invalid(&path.display().to_string(), rule, remedy)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn run(script: &str, limit: u64) -> Result<Done, DataError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Ffmpeg::new("ffmpeg", Duration::from_secs(20)).run(Path::new("a.flv"), command, limit)
    }

    #[test]
    fn output_is_limited() {
        assert_eq!(run("printf 0123456789", 10).unwrap().stdout, b"0123456789");
        let error = run("exec yes", 1 << 16).map(|done| done.stdout.len()).unwrap_err().to_string();
        assert!(error.starts_with("a.flv: ffmpeg gives more than the allowed 65536 bytes;"), "{error}");
    }

    #[test]
    fn of_long_complaints_the_end_is_kept() {
        let done = run("yes complaint | head -n 100000 >&2; echo the last one >&2; exit 7", 10).unwrap();
        assert!(done.stderr.len() < 3 << 16, "{}", done.stderr.len());
        let error = done.check(Path::new("a.flv"), "ffmpeg").unwrap_err().to_string();
        assert!(error.starts_with("a.flv: ffmpeg failed with exit status: 7: the last one;"), "{error}");
    }
}
