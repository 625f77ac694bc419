//! What a video is, from what `ffprobe` or `ffmpeg -i` print.

/// Size and rate of a video.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoInfo {
    /// Columns of a frame.
    pub width: usize,
    /// Rows of a frame.
    pub height: usize,
    /// Frames per second as a fraction.
    pub rate: (u64, u64),
    /// The name of the codec, such as `flv1`, `vp6f` or `h264`.
    pub codec: String,
}

impl VideoInfo {
    /// Frames per second.
    pub fn fps(&self) -> f64 {
        self.rate.0 as f64 / self.rate.1 as f64
    }

    /// Frames per second without what is behind the point, at least 1.
    pub fn whole_fps(&self) -> usize {
        ((self.rate.0 / self.rate.1.max(1)) as usize).max(1)
    }

    /// From `ffprobe -show_entries stream=… -of default=noprint_wrappers=1`: lines of key and value.
    pub(super) fn from_ffprobe(text: &str) -> Option<Self> {
        let value = |key: &str| {
            text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('=')).map(str::trim)
        };
        let rate = |key: &str| {
            let (over, under) = value(key)?.split_once('/')?;
            fraction(over.parse().ok()?, under.parse().ok()?)
        };
        Some(Self {
            width: value("width")?.parse().ok()?,
            height: value("height")?.parse().ok()?,
            rate: rate("avg_frame_rate").or_else(|| rate("r_frame_rate"))?,
            codec: value("codec_name").unwrap_or("unknown").to_owned(),
        })
    }

    /// From the line of the first video stream that `ffmpeg -i` prints, such as
    /// `Stream #0:0: Video: flv1, yuv420p, 480x360, 200 kb/s, 29.97 fps, 29.97 tbr, 1k tbn`.
    pub(super) fn from_ffmpeg(text: &str) -> Option<Self> {
        let line =
            text.lines().find(|line| line.trim_start().starts_with("Stream #") && line.contains("Video:"))?;
        let (_, about) = line.split_once("Video:")?;
        let codec = about.trim_start().split([' ', ',']).next()?.to_owned();
        let size = |word: &str| {
            let (w, h) = word.split_once('x')?;
            let size: (usize, usize) = (w.parse().ok()?, h.parse().ok()?);
            (size.0 > 0 && size.1 > 0).then_some(size)
        };
        let (width, height) = about.split([' ', ',', '[']).find_map(size)?;
        let rate = |unit: &str| {
            about.split(',').find_map(|part| part.trim().strip_suffix(unit)).and_then(|n| decimal(n.trim()))
        };
        let rate = rate(" fps").or_else(|| rate(" tbr"))?;
        Some(Self { width, height, rate, codec })
    }
}

/// A fraction that is a positive number.
fn fraction(over: u64, under: u64) -> Option<(u64, u64)> {
    (over > 0 && under > 0).then_some((over, under))
}

/// `29.97` as 2997 / 100, `12k` as 12000 / 1.
fn decimal(text: &str) -> Option<(u64, u64)> {
    let (digits, thousands) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1000));
    let (whole, behind) = digits.split_once('.').unwrap_or((digits, ""));
    let under = 10u64.checked_pow(u32::try_from(behind.len()).ok()?)?;
    let over: u64 = format!("{whole}{behind}").parse().ok()?;
    fraction(over.checked_mul(thousands)?, under)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ffmpeg_prints() {
        let text = "Input #0, flv, from 'a.flv':\n  Duration: 00:00:02.27, start: 0.000000, bitrate: 1 kb/s\n  \
                    Stream #0:0: Video: flv1, yuv420p, 480x360, 200 kb/s, 29.97 fps, 29.97 tbr, 1k tbn\n  \
                    Stream #0:1: Audio: mp3, 44100 Hz, mono, fltp, 64 kb/s\n";
        let info = VideoInfo::from_ffmpeg(text).unwrap();
        assert_eq!(
            (info.width, info.height, info.rate, info.codec.as_str()),
            (480, 360, (2997, 100), "flv1")
        );
        assert_eq!((info.whole_fps(), info.fps()), (29, 29.97));
        let text = "  Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, \
                    progressive), 1920x1080 [SAR 1:1 DAR 16:9], 5 kb/s, 25 fps, 25 tbr, 12800 tbn (default)";
        let info = VideoInfo::from_ffmpeg(text).unwrap();
        assert_eq!((info.width, info.height, info.rate, info.codec.as_str()), (1920, 1080, (25, 1), "h264"));
        let text = "Stream #0:0: Video: vp6f, yuv420p, 320x240, 1k tbr, 1k tbn";
        assert_eq!(VideoInfo::from_ffmpeg(text).unwrap().rate, (1000, 1));
        assert_eq!(VideoInfo::from_ffmpeg("Stream #0:0: Audio: mp3, 44100 Hz"), None);
        assert_eq!(VideoInfo::from_ffmpeg("Stream #0:0: Video: h264, 0x0, 25 fps"), None);
    }

    #[test]
    fn reads_what_ffprobe_prints() {
        let text = "codec_name=vp6f\nwidth=480\nheight=360\nr_frame_rate=30/1\navg_frame_rate=30000/1001\n";
        let info = VideoInfo::from_ffprobe(text).unwrap();
        assert_eq!(
            (info.width, info.height, info.rate, info.codec.as_str()),
            (480, 360, (30_000, 1001), "vp6f")
        );
        assert_eq!(info.whole_fps(), 29);
        let text = text.replace("30000/1001", "0/0");
        assert_eq!(VideoInfo::from_ffprobe(&text).unwrap().rate, (30, 1));
        assert_eq!(VideoInfo::from_ffprobe(&text.replace("r_frame_rate=30/1", "")), None);
        assert_eq!(VideoInfo::from_ffprobe(""), None);
    }
}
