//! The generated CREMA-D: layout, determinism, and emotions that can be told in proportion to the reliability.

use crate::support::says;
use mm_data::audio::Clip;
use mm_data::image::Frame;
use mm_data::prepare::cremad::{CLASSES, Name};
use mm_data::prepare::{LabelSource, Raw, Source, check};
use mm_data::synth::{CremadConfig, Generated, cremad};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

fn make(config: &CremadConfig, out: &Path) -> Generated {
    cremad(config, out, &|_, _| {}, &AtomicBool::new(false)).unwrap()
}

fn small() -> CremadConfig {
    CremadConfig { actors: 2, clips: 7, width: 64, ..CremadConfig::default() }
}

/// Every file below a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            }
        }
    }
    found
}

#[test]
fn the_folder_is_laid_out_as_the_published_one() {
    let out = tempfile::tempdir().unwrap();
    assert_eq!(make(&small(), out.path()), Generated::Done { clips: 14, made: 14 });
    let listing = Source::CremaD.list(out.path()).unwrap();
    assert_eq!((listing.rows.len(), listing.warnings.len()), (14, 0));
    assert_eq!(listing.modalities, ["audio", "video"]);
    for (row, &actor) in listing.rows.iter().zip(&listing.columns["actor"]) {
        let name = Name::read(&row.id).unwrap();
        assert_eq!((name.emotion as u32, name.actor, name.to_string()), (row.label, actor, row.id.clone()));
        let [Raw::Sound(sound), Raw::Frames(frames)] = &row.raw[..] else { panic!("{:?}", row.raw) };
        let clip = Clip::open(sound).unwrap();
        assert_eq!(clip.rate, 16_000);
        assert!((1.5..=3.0).contains(&clip.seconds()), "{}", clip.seconds());
        // One of every 29 frames at 29.97 per second.
        let expected = (clip.seconds() * 30_000.0 / 1001.0).floor();
        assert_eq!(frames.len(), (expected / 29.0).ceil() as usize);
        assert!(frames[0].ends_with(format!("Image-01-FPS/{}/00000.jpg", row.id)));
        let frame = Frame::open(&frames[0]).unwrap();
        assert_eq!((frame.height, frame.width, frame.channels), (48, 64, 3));
    }
    // Seven clips of an actor are one of each emotion, and the first again.
    let of_class = |class: u32| listing.rows.iter().filter(|row| row.label == class).count();
    assert_eq!([0, 1, 5].map(of_class), [4, 2, 2]);
    let readme = std::fs::read_to_string(out.path().join("README.md")).unwrap();
    assert!(readme.contains("nothing in it was recorded"), "{readme}");
}

#[test]
fn the_names_are_those_of_the_published_set() {
    let all = CremadConfig { actors: 91, ..CremadConfig::default() }.names();
    assert_eq!(all.len(), 91 * 82 - 4, "all but the clips that are known to be bad");
    let of_actor = |actor: i64| all.iter().filter(move |name| name.actor == actor);
    assert_eq!(of_actor(1003).count(), 82);
    let counts: Vec<usize> =
        (0..CLASSES.len()).map(|class| of_actor(1003).filter(|n| n.emotion == class).count()).collect();
    assert_eq!(counts, [12, 14, 14, 14, 14, 14]);
    assert_eq!(of_actor(1003).filter(|n| n.intensity > 0).count(), 15);
}

#[test]
fn a_file_depends_on_seed_and_clip_alone() {
    let [a, b, c] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let config = CremadConfig { actors: 1, clips: 2, ..small() };
    make(&config, a.path());
    // More clips, more actors, and begun by a call that was stopped at once.
    let larger = CremadConfig { actors: 2, clips: 3, ..config.clone() };
    let stopped = cremad(&larger, b.path(), &|_, _| {}, &AtomicBool::new(true)).unwrap();
    assert_eq!(stopped, Generated::Stopped { done: 0 });
    make(&larger, b.path());
    let (small, large) = (files(a.path()), files(b.path()));
    let own = |path: &Path| path.extension().is_some_and(|e| e == "wav" || e == "jpg");
    let clips: Vec<_> = small.iter().filter(|(path, _)| own(path)).collect();
    assert!(clips.len() >= 6, "{}", clips.len());
    for (path, bytes) in clips {
        assert!(large[path] == *bytes, "{} differs", path.display());
    }
    // A lost file comes back as it was; nothing else is touched.
    let lost = b.path().join(large.keys().find(|path| own(path)).unwrap());
    std::fs::remove_file(&lost).unwrap();
    assert_eq!(make(&larger, b.path()), Generated::Done { clips: 6, made: 1 });
    assert!(files(b.path()) == large);
    make(&CremadConfig { seed: 1, ..config }, c.path());
    let other = files(c.path());
    assert!(small.iter().filter(|(path, _)| own(path)).all(|(path, bytes)| other.get(path) != Some(bytes)));
}

#[test]
fn other_settings_and_other_peoples_folders_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let refused = |config: &CremadConfig, pieces: &[&str]| {
        let stop = AtomicBool::new(true);
        says(&cremad(config, out.path(), &|_, _| {}, &stop).unwrap_err(), pieces);
    };
    refused(&CremadConfig { actors: 92, ..small() }, &["actors", "92", "[1, 91]"]);
    refused(&CremadConfig { visual_reliability: 1.5, ..small() }, &["visual_reliability", "1.5"]);
    std::fs::write(out.path().join("mine"), "").unwrap();
    refused(&small(), &["is not empty, and what it holds was not generated"]);
    std::fs::remove_file(out.path().join("mine")).unwrap();
    cremad(&small(), out.path(), &|_, _| {}, &AtomicBool::new(true)).unwrap();
    refused(&CremadConfig { seed: 5, ..small() }, &["generated with other settings"]);
}

#[test]
fn reliability_is_the_share_of_clips_that_show_their_own_emotion() {
    for (audio, visual) in [(0.9, 0.6), (0.5, 1.0)] {
        let config = CremadConfig {
            actors: 91,
            audio_reliability: audio,
            visual_reliability: visual,
            ..CremadConfig::default()
        };
        let names = config.names();
        for (part, reliability) in [audio, visual].into_iter().enumerate() {
            let right = names.iter().filter(|name| config.shown(name)[part] == name.emotion).count();
            let share = right as f64 / names.len() as f64;
            // Four standard errors of 7458 draws.
            assert!((share - reliability).abs() < 4.0 * (0.25f64 / 7458.0).sqrt(), "{share} {reliability}");
        }
    }
}

/// Loudness, pitch, its spread, length, and how much of the power lies in the differences.
fn heard(path: &Path) -> Vec<f64> {
    let clip = Clip::open(path).unwrap();
    let x: Vec<f64> = clip.samples.iter().map(|&v| f64::from(v)).collect();
    let power = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    let rough = x.windows(2).map(|w| (w[1] - w[0]).powi(2)).sum::<f64>() / x.len() as f64;
    // Every fourth sample is enough for the pitch: 67 to 400 Hz at 4 kHz.
    let low: Vec<f64> = x.iter().step_by(4).copied().collect();
    let mut pitches: Vec<f64> = low
        .chunks_exact(240)
        .filter(|w| w.iter().map(|v| v * v).sum::<f64>() / 240.0 > 0.3 * power)
        .map(|w| {
            let at = |lag: usize| -> f64 {
                w[lag..].iter().zip(w).map(|(a, b)| a * b).sum::<f64>() / (240 - lag) as f64
            };
            let best = (10..60).max_by(|&a, &b| at(a).total_cmp(&at(b))).unwrap();
            (4000.0 / best as f64).log2()
        })
        .collect();
    pitches.sort_by(f64::total_cmp);
    let quantile = |q: f64| pitches.get((q * pitches.len() as f64) as usize).copied().unwrap_or(7.0);
    vec![power.ln(), quantile(0.5), quantile(0.85) - quantile(0.15), clip.seconds(), (rough / power).ln()]
}

/// Where brows and mouth are, and how dark: their slopes, how open eyes and mouth are, wrinkles of the nose.
fn seen(path: &Path) -> Vec<f64> {
    let frame = Frame::open(path).unwrap().into_grey();
    let scale = frame.height as f64;
    // Centre of what is dark, and how dark it is, in a part of both halves: distance from the middle, height.
    let dark = |x: [f64; 2], y: [f64; 2]| {
        let place = |v: f64| (v * scale).round() as isize;
        let (middle, level) = ((frame.width / 2) as isize, (frame.height / 2) as isize);
        let mut found: Vec<(f64, f64)> = Vec::new();
        for row in place(y[0])..=place(y[1]) {
            for column in place(x[0])..=place(x[1]) {
                for column in [middle + column, middle - column] {
                    let at = (level + row) as usize * frame.width + column as usize;
                    found.push((row as f64 / scale, f64::from(frame.pixels[at])));
                }
            }
        }
        let most = found.iter().map(|f| f.1).fold(0.0, f64::max);
        let weights: Vec<f64> = found.iter().map(|f| (most - f.1).powi(2)).collect();
        let centre =
            found.iter().zip(&weights).map(|(f, w)| f.0 * w).sum::<f64>() / weights.iter().sum::<f64>();
        (centre, found.iter().map(|f| most - f.1).sum::<f64>() / found.len() as f64)
    };
    let (inner, outer) = (dark([0.045, 0.085], [-0.19, -0.075]), dark([0.115, 0.15], [-0.19, -0.075]));
    let (corner, centre) = (dark([0.045, 0.09], [0.085, 0.215]), dark([0.0, 0.02], [0.085, 0.215]));
    let eye = dark([0.075, 0.115], [-0.075, -0.02]);
    let nose = dark([0.0, 0.02], [-0.03, 0.02]);
    vec![inner.0 - outer.0, inner.0, corner.0 - centre.0, centre.1, corner.1, eye.1, nose.1]
}

/// The share of clips that are nearest to the mean of their class, which is taken from the other clips; features are
/// measured from the mean of their actor in units of their spread.
fn nearest_mean(features: &[Vec<f64>], labels: &[usize], actors: &[i64]) -> f64 {
    let width = features[0].len();
    let mean = |rows: &[usize]| -> Vec<f64> {
        (0..width).map(|k| rows.iter().map(|&r| features[r][k]).sum::<f64>() / rows.len() as f64).collect()
    };
    let rows = |keep: &dyn Fn(usize) -> bool| (0..labels.len()).filter(|&r| keep(r)).collect::<Vec<_>>();
    let homes: BTreeMap<i64, Vec<f64>> =
        actors.iter().map(|&a| (a, mean(&rows(&|r| actors[r] == a)))).collect();
    let centred: Vec<Vec<f64>> = features
        .iter()
        .zip(actors)
        .map(|(f, a)| f.iter().zip(&homes[a]).map(|(x, m)| x - m).collect())
        .collect();
    let spread: Vec<f64> = (0..width)
        .map(|k| (centred.iter().map(|f| f[k] * f[k]).sum::<f64>() / labels.len() as f64).sqrt())
        .map(|spread: f64| spread.max(1e-9))
        .collect();
    let right = (0..labels.len()).filter(|&row| {
        let distance = |class: usize| -> f64 {
            let others = rows(&|r| r != row && labels[r] == class);
            (0..width)
                .map(|k| {
                    let centre = others.iter().map(|&r| centred[r][k]).sum::<f64>() / others.len() as f64;
                    ((centred[row][k] - centre) / spread[k]).powi(2)
                })
                .sum()
        };
        let classes = 0..CLASSES.len();
        classes.min_by(|&a, &b| distance(a).total_cmp(&distance(b))) == Some(labels[row])
    });
    right.count() as f64 / labels.len() as f64
}

/// How often simple features of sound and face tell the emotion of the name.
fn told(audio: f64, visual: f64) -> [f64; 2] {
    let out = tempfile::tempdir().unwrap();
    let config = CremadConfig {
        actors: 4,
        clips: 30,
        width: 96,
        audio_reliability: audio,
        visual_reliability: visual,
        ..CremadConfig::default()
    };
    make(&config, out.path());
    let listing = Source::CremaD.list(out.path()).unwrap();
    let labels: Vec<usize> = listing.rows.iter().map(|row| row.label as usize).collect();
    let (mut sounds, mut faces) = (Vec::new(), Vec::new());
    for row in &listing.rows {
        let [Raw::Sound(sound), Raw::Frames(frames)] = &row.raw[..] else { panic!("{:?}", row.raw) };
        sounds.push(heard(sound));
        let looks: Vec<Vec<f64>> = frames.iter().map(|frame| seen(frame)).collect();
        faces.push(
            (0..looks[0].len())
                .map(|k| looks.iter().map(|l| l[k]).sum::<f64>() / looks.len() as f64)
                .collect(),
        );
    }
    let actors = &listing.columns["actor"];
    [nearest_mean(&sounds, &labels, actors), nearest_mean(&faces, &labels, actors)]
}

#[test]
fn simple_features_tell_the_emotion_as_often_as_the_reliability_allows() {
    let [clear_audio, clear_visual] = told(1.0, 1.0);
    let [weak_audio, weak_visual] = told(0.6, 0.5);
    println!("reliable: {clear_audio:.3} {clear_visual:.3}; 0.6, 0.5: {weak_audio:.3} {weak_visual:.3}");
    // 120 clips: a standard error is at most 0.046, and chance is 1/6.
    assert!(clear_audio > 0.6 && clear_visual > 0.6, "{clear_audio} {clear_visual}");
    assert!((weak_audio - 0.6 * clear_audio).abs() < 0.15, "{clear_audio} {weak_audio}");
    assert!((weak_visual - 0.5 * clear_visual).abs() < 0.15, "{clear_visual} {weak_visual}");
    assert!(weak_visual < weak_audio);
}

#[test]
fn raters_vote_for_what_is_shown() {
    let out = tempfile::tempdir().unwrap();
    let config = CremadConfig { actors: 3, clips: 12, width: 32, ..CremadConfig::default() };
    make(&config, out.path());
    let listing = Source::CremaD.list_by(out.path(), Some(LabelSource::Consensus)).unwrap();
    let agreed: Vec<Name> =
        config.names().into_iter().filter(|name| config.shown(name)[0] == config.shown(name)[1]).collect();
    assert!(agreed.len() < 36 && agreed.len() > 10, "{}", agreed.len());
    let expected: Vec<(String, u32)> =
        agreed.iter().map(|name| (name.to_string(), config.shown(name)[0] as u32)).collect();
    let found: Vec<(String, u32)> = listing.rows.iter().map(|row| (row.id.clone(), row.label)).collect();
    assert_eq!(found, expected);
    assert_eq!(
        listing.warnings,
        [format!("{} clips are left out: their votes are tied or missing", 36 - agreed.len())]
    );
    let report = check(Source::CremaD, out.path(), None).unwrap();
    assert_eq!((report.rows, report.faults.len()), (36, 0), "{:?}", report.faults);
    assert_eq!(report.modalities[0].kinds, BTreeMap::from([("16000 Hz".to_owned(), 36)]));
    assert_eq!(report.modalities[1].kinds, BTreeMap::from([("24 x 32".to_owned(), 36)]));
}
