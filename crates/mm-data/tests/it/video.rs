//! Frames and sound by ffmpeg: a script in its place, and the program itself where it is installed.
#![cfg(unix)]

use crate::support::says;
use mm_data::video::{Ffmpeg, VideoConfig};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A folder with a video that is none and a program that runs this script.
struct Fake {
    folder: tempfile::TempDir,
    video: PathBuf,
}

impl Fake {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let video = folder.path().join("a b.flv");
        std::fs::write(&video, "FLV").unwrap();
        let fake = Self { folder, video };
        fake.program("ffmpeg", script);
        fake
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.folder.path().join(name);
        // Written by another process: one of our threads that starts a program just now would keep it open for
        // writing, and it could not be run.
        let text = format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\necho \"$@\" >> calls\n{script}\n");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("printf %s \"$1\" > \"$2\"").args(["sh", &text]).arg(&path);
        assert!(shell.status().unwrap().success());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn ffmpeg(&self) -> Ffmpeg {
        Ffmpeg::new(self.folder.path().join("ffmpeg"), Duration::from_secs(20))
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("calls")).unwrap()
    }
}

/// Frames of 2 x 3 pixels in which every value is `a`, `b`, …
const WORKS: &str = r#"
case "$*" in
*s16le*) printf '\001\000\377\377\000\200' ;;
*rawvideo*) printf aaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbcccccccccccccccccc ;;
*) echo "Input #0, flv, from 'a b.flv':" >&2
   echo "  Stream #0:0: Video: flv1, yuv420p, 3x2, 200 kb/s, 29.97 fps, 29.97 tbr, 1k tbn" >&2
   echo "At least one output file must be specified" >&2
   exit 1 ;;
esac"#;

#[test]
fn frames_have_the_size_of_the_source() {
    let fake = Fake::new(WORKS);
    let info = fake.ffmpeg().probe(&fake.video).unwrap();
    assert_eq!((info.width, info.height, info.codec.as_str(), info.whole_fps()), (3, 2, "flv1", 29));
    let frames = fake.ffmpeg().frames(&fake.video, &[0, 29, 58]).unwrap();
    assert_eq!(frames.len(), 3);
    for (frame, value) in frames.iter().zip(b"abc") {
        assert_eq!((frame.height, frame.width, frame.channels), (2, 3, 3));
        assert_eq!(frame.pixels, [*value; 18]);
    }
    let calls = fake.calls();
    let last = calls.lines().last().unwrap();
    for piece in [
        "-nostdin",
        "-protocol_whitelist file -i file:",
        "a b.flv",
        "select='eq(n,0)+eq(n,29)+eq(n,58)'",
        "-frames:v 3",
        "-pix_fmt rgb24",
    ] {
        assert!(last.contains(piece), "{last:?} has no {piece:?}");
    }
}

#[test]
fn clips_follow_the_rule() {
    let fake = Fake::new(WORKS);
    let clip = fake.ffmpeg().clip(&fake.video, &VideoConfig::default()).unwrap();
    assert_eq!(clip.len(), 3);
    assert!(
        fake.calls().contains("select='gte(n,0)*not(mod(n-0,29))'") && !fake.calls().contains("-frames:v")
    );
    let config = VideoConfig { start: 4, step: Some(7), count: Some(3), ..VideoConfig::default() };
    fake.ffmpeg().clip(&fake.video, &config).unwrap();
    let calls = fake.calls();
    assert!(calls.contains("select='gte(n,4)*not(mod(n-4,7))'") && calls.contains("-frames:v 3"), "{calls}");
}

#[test]
fn sound_is_16_bit() {
    let fake = Fake::new(WORKS);
    assert_eq!(fake.ffmpeg().audio(&fake.video, 16_000).unwrap(), [1, -1, i16::MIN]);
    assert!(fake.calls().contains("-ac 1 -ar 16000 -c:a pcm_s16le -f s16le"));
    let error = fake.ffmpeg().audio(&fake.video, 3).unwrap_err();
    says(&error, &["rate = 3: must be an integer in [1000, 384000]"]);
}

#[test]
fn ffprobe_is_asked_where_it_is() {
    let fake = Fake::new(WORKS);
    fake.program(
        "ffprobe",
        "echo codec_name=vp6f; echo width=3; echo height=2; echo r_frame_rate=25/1; echo avg_frame_rate=0/0",
    );
    let info = fake.ffmpeg().probe(&fake.video).unwrap();
    assert_eq!((info.codec.as_str(), info.rate), ("vp6f", (25, 1)));
    fake.program("ffprobe", "echo moov atom not found >&2; exit 1");
    let error = fake.ffmpeg().probe(&fake.video).unwrap_err();
    says(&error, &["a b.flv: ffprobe failed with exit status: 1: moov atom not found"]);
}

#[test]
fn failures_say_what_ffmpeg_said_last() {
    let probe = r#"echo "Stream #0:0: Video: h264, 3x2, 25 fps" >&2; echo "Input #0" >&2; exit 1"#;
    let decode = |what: &str| Fake::new(&format!("case \"$*\" in *pipe:1*) {what} ;; *) {probe} ;; esac"));
    let fake = decode("echo first >&2; echo 'Invalid data found' >&2; echo >&2; exit 69");
    let error = fake.ffmpeg().frames(&fake.video, &[0]).unwrap_err();
    says(&error, &["a b.flv: ffmpeg failed with exit status: 69: Invalid data found; the file is damaged"]);
    let fake = decode("printf aaaaaaaaaaaaaaaaaa");
    let error = fake.ffmpeg().frames(&fake.video, &[1, 5, 9]).unwrap_err();
    says(&error, &["it has no frame 5: it ends after 1 of the 3"]);
    let fake = decode("printf aaaaaaa");
    says(
        &fake.ffmpeg().frames(&fake.video, &[1]).unwrap_err(),
        &["7 bytes", "no whole frames of 2 x 3 pixels"],
    );
    let fake = decode(":");
    says(&fake.ffmpeg().clip(&fake.video, &VideoConfig::default()).unwrap_err(), &["it has no frame 0"]);
    let fake = Fake::new("echo 'a b.flv: Invalid data found when processing input' >&2; exit 1");
    says(&fake.ffmpeg().probe(&fake.video).unwrap_err(), &["Invalid data found when processing input"]);
    let fake = Fake::new("echo \"Input #0, mp3, from 'a b.flv':\" >&2; exit 1");
    says(&fake.ffmpeg().probe(&fake.video).unwrap_err(), &["no video stream"]);
    let fake = Fake::new("echo 'Stream #0:0: Video: h264, 100000x2000, 25 fps' >&2; exit 1");
    says(&fake.ffmpeg().probe(&fake.video).unwrap_err(), &["frames of 2000 x 100000 pixels"]);
}

#[test]
fn a_program_that_hangs_is_stopped() {
    let fake = Fake::new("exec sleep 30");
    let ffmpeg = Ffmpeg::new(fake.folder.path().join("ffmpeg"), Duration::from_millis(300));
    let start = Instant::now();
    says(
        &ffmpeg.audio(&fake.video, 16_000).unwrap_err(),
        &["did not finish within 0.3 seconds", "raise `timeout`"],
    );
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[test]
fn what_is_asked_is_checked_first() {
    let fake = Fake::new(WORKS);
    for indices in [vec![], vec![3, 3], vec![4, 1], (0..1001).collect()] {
        let error = fake.ffmpeg().frames(&fake.video, &indices).unwrap_err();
        says(&error, &["indices = [", "must be 1 to 1000 numbers, each above the one before"]);
    }
    says(
        &fake.ffmpeg().probe(Path::new("http://none/a.flv")).unwrap_err(),
        &["cannot read http://none/a.flv"],
    );
    std::fs::write(&fake.video, "version https://git-lfs.example/spec/v1\n").unwrap();
    says(&fake.ffmpeg().probe(&fake.video).unwrap_err(), &["git-LFS pointer"]);
    let missing = Ffmpeg::new("/none/ffmpeg", Duration::from_secs(1));
    std::fs::write(&fake.video, "FLV").unwrap();
    says(&missing.probe(&fake.video).unwrap_err(), &["/none/ffmpeg cannot be run", "apt-get install ffmpeg"]);
    let config = VideoConfig { ffmpeg: Some("/none/ffmpeg".into()), ..VideoConfig::default() };
    says(
        &config.program().unwrap_err(),
        &["the setting `ffmpeg` names /none/ffmpeg", "apt-get install ffmpeg"],
    );
}

#[test]
fn settings_are_read_and_checked() {
    let read = |text: &str| serde_json::from_str::<VideoConfig>(text);
    let config = read(r#"{ "count": 3, "step": 10, "timeout": 5 }"#).unwrap();
    assert_eq!(
        config,
        VideoConfig { count: Some(3), step: Some(10), timeout: 5.0, ..VideoConfig::default() }
    );
    assert!(read(r#"{ "steps": 3 }"#).is_err());
    for (text, says) in [
        (r#"{ "count": 0 }"#, "count = 0: must be an integer of at least 1"),
        (r#"{ "step": 0 }"#, "step = 0: must be an integer of at least 1"),
        (r#"{ "timeout": 0 }"#, "timeout = 0: must be a number in [0.01, 86400]"),
    ] {
        assert_eq!(read(text).unwrap().check().unwrap_err().to_string(), says);
    }
}

#[test]
fn the_program_itself_gives_the_frames_that_are_asked_for() {
    let Ok(ffmpeg) = VideoConfig::default().program() else {
        println!("no ffmpeg on this machine: nothing compared");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("-a: b'.avi");
    // Frame n is grey with a luma of 16 + 2 n; three seconds at 29.97 per second are 90 frames.
    let grey = "nullsrc=s=20x10:r=30000/1001:d=3,geq=lum=16+2*N:cb=128:cr=128,format=yuv420p";
    let tone = "sine=frequency=440:sample_rate=16000:duration=3";
    let program = std::env::var("MM_FFMPEG").unwrap_or("ffmpeg".to_owned());
    let mut make = Command::new(program);
    make.args(["-loglevel", "error", "-f", "lavfi", "-i", grey, "-f", "lavfi", "-i", tone]);
    make.args(["-c:v", "rawvideo", "-c:a", "pcm_s16le"]).arg(format!("file:{}", path.display()));
    if !make.status().is_ok_and(|status| status.success()) {
        println!("this ffmpeg cannot make a video: nothing compared");
        return;
    }
    let info = ffmpeg.probe(&path).unwrap();
    assert_eq!((info.height, info.width, info.whole_fps()), (10, 20, 29));
    let luma = |frame: &mm_data::image::Frame| {
        assert!(frame.pixels.iter().all(|v| *v == frame.pixels[0]));
        f64::from(frame.pixels[0])
    };
    let is = |frame: &mm_data::image::Frame, n: f64| (luma(frame) - 2.0 * n * 255.0 / 219.0).abs() < 1.1;
    for indices in [vec![0, 29, 58], vec![89], (0..90).collect(), vec![7, 8, 60]] {
        let frames = ffmpeg.frames(&path, &indices).unwrap();
        assert_eq!(frames.len(), indices.len());
        for (frame, &n) in frames.iter().zip(&indices) {
            assert!(is(frame, n as f64), "frame {n}: {}", luma(frame));
        }
    }
    says(&ffmpeg.frames(&path, &[3, 90]).unwrap_err(), &["it has no frame 90: it ends after 1 of the 2"]);
    let clip = ffmpeg.clip(&path, &VideoConfig::default()).unwrap();
    assert_eq!(clip.len(), 4);
    assert!(clip.iter().zip([0.0, 29.0, 58.0, 87.0]).all(|(frame, n)| is(frame, n)));
    let first = VideoConfig { count: Some(3), start: 1, step: Some(2), ..VideoConfig::default() };
    let clip = ffmpeg.clip(&path, &first).unwrap();
    assert_eq!(clip.len(), 3);
    assert!(clip.iter().zip([1.0, 3.0, 5.0]).all(|(frame, n)| is(frame, n)));
    let sound = ffmpeg.audio(&path, 16_000).unwrap();
    assert_eq!(sound.len(), 48_000);
    // 440 waves per second cross zero upwards as often.
    let ups = sound.windows(2).filter(|w| w[0] < 0 && w[1] >= 0).count();
    assert!((1318..=1320).contains(&ups), "{ups}");
    assert_eq!(ffmpeg.audio(&path, 8_000).unwrap().len(), 24_000);
    std::fs::write(&path, "no video at all").unwrap();
    says(
        &ffmpeg.probe(&path).unwrap_err(),
        &["-a: b'.avi: ff", "failed with exit status: 1", "Invalid data"],
    );
}
