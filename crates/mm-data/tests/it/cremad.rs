//! CREMA-D's folder: what is listed, what is left out, what becomes of frames, what the check finds.

use crate::support::says;
use mm_data::audio::Clip;
use mm_data::image::Frame;
use mm_data::pack::{Pack, PackedConfig, Written};
use mm_data::prepare::cremad::{ACTORS, Name, fold};
use mm_data::prepare::{LabelSource, Raw, Recipe, Source, Treatment, check, prepare};
use mm_data::{Input, PackedInputConfig, Picture};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A folder with files that are made by hand.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn sound(&self, clip: &str) {
        let path = self.file(&format!("AudioWAV/{clip}.wav"), "");
        let samples = (0..4000u16).map(|t| (f32::from(t) * 0.05).sin() * 0.1).collect();
        Clip { samples, rate: 16_000 }.write(path).unwrap();
    }

    /// Frames of one colour each, as PNG by another name: what the bytes say counts.
    fn frames(&self, clip: &str, greys: &[u8]) {
        for (i, &grey) in greys.iter().enumerate() {
            let frame = Frame::filled(6, 8, &[grey, grey, 255]).unwrap();
            self.file(&format!("Image-01-FPS/{clip}/{i:05}.jpg"), frame.to_png().unwrap());
        }
    }

    /// One clip of each class, two actors.
    fn whole() -> Self {
        let folder = Self::new();
        for (i, emotion) in ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"].iter().enumerate() {
            let clip = format!("{}_DFA_{emotion}_XX", 1001 + i % 2);
            folder.sound(&clip);
            folder.frames(&clip, &[10, 20, 30, 40][..=i % 4]);
        }
        folder
    }
}

#[test]
fn names_say_actor_sentence_emotion_and_intensity() {
    let name = Name::read("1064_IEO_DIS_MD").unwrap();
    assert_eq!(name, Name { actor: 1064, sentence: 1, emotion: 4, intensity: 2 });
    assert_eq!(name.to_string(), "1064_IEO_DIS_MD");
    assert_eq!(Name::read("1040_ITH_SAD_X"), Name::read("1040_ITH_SAD_XX"));
    for wrong in
        ["", "1001_DFA_ANG", "1000_DFA_ANG_XX", "01001_DFA_ANG_XX", "1001_XYZ_ANG_XX", "1001_DFA_ANG_XX_1"]
    {
        assert_eq!(Name::read(wrong), None, "{wrong}");
    }
}

#[test]
fn folds_are_fixed_for_ever_and_even_over_actors_in_a_row() {
    let folds: Vec<i64> = ACTORS.map(fold).collect();
    assert_eq!(folds[..10], FIRST, "packs that were made before must keep their folds");
    for five in folds.chunks_exact(5) {
        let mut five = five.to_vec();
        five.sort_unstable();
        assert_eq!(five, [0, 1, 2, 3, 4]);
    }
}

const FIRST: [i64; 10] = [0, 2, 3, 1, 4, 4, 1, 0, 2, 3];

#[test]
fn a_folder_is_listed_with_what_is_missing_and_what_is_odd() {
    let folder = Folder::whole();
    folder.sound("1040_ITH_SAD_X");
    folder.file("VideoFlash/1003_TIE_HAP_XX.flv", "FLV");
    folder.file("VideoFlash/1001_DFA_NEU_XX.flv", "FLV");
    folder.frames("1076_MTI_SAD_XX", &[1]);
    folder.sound("1064_IEO_DIS_MD");
    folder.sound("10O1_DFA_ANG_XX");
    folder.file("AudioWAV/notes.txt", "");
    folder.file("AudioWAV/.hidden", "");
    let listing = Source::CremaD.list(folder.path()).unwrap();
    let ids: Vec<&str> = listing.rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids.len(), 8);
    assert_eq!(ids[6..], ["1003_TIE_HAP_XX", "1040_ITH_SAD_X"]);
    let raw = |id: &str| &listing.rows[ids.iter().position(|i| *i == id).unwrap()].raw;
    assert!(
        matches!(&raw("1001_DFA_NEU_XX")[1], Raw::Frames(frames) if frames.len() == 1),
        "frames come first"
    );
    assert!(matches!(&raw("1003_TIE_HAP_XX")[..], [Raw::Missing, Raw::Video(_)]));
    assert!(matches!(&raw("1040_ITH_SAD_X")[..], [Raw::Sound(_), Raw::Missing]));
    let Raw::Frames(frames) = &raw("1002_DFA_FEA_XX")[1] else { panic!() };
    assert!(frames.is_sorted() && frames.len() == 4);
    assert_eq!(listing.columns["actor"], [1001, 1001, 1001, 1002, 1002, 1002, 1003, 1040]);
    assert_eq!(listing.columns["fold"][7], fold(1040));
    assert_eq!(
        listing.warnings,
        [
            "AudioWAV: 2 names are not read as clips, such as \"10O1_DFA_ANG_XX.wav\"",
            "1064_IEO_DIS_MD is left out: it is known to be bad (61 seconds of several emotions)",
            "1076_MTI_SAD_XX is left out: it is known to be bad (silent, and without a face)",
            "1 clips have no sound in AudioWAV",
            "1 clips have neither frames in Image-01-FPS nor a video in VideoFlash",
        ]
    );
    says(
        &Source::CremaD.list(Folder::new().path()).unwrap_err(),
        &["no clips like AudioWAV/1001_DFA_ANG_XX.wav"],
    );
    let other = Source::Manifest.list_by(folder.path(), Some(LabelSource::Intended)).unwrap_err();
    says(&other, &["labels", "intended", "manifest has one kind of labels only"]);
}

#[test]
fn published_splits_are_read_where_they_lie_in_the_folder() {
    let folder = Folder::whole();
    folder.file("train.csv", "\u{feff}1001_DFA_NEU_XX,NEU\r\n1002_DFA_HAP_XX,HAP\r\n1091_WSI_ANG_XX,ANG\r\n");
    folder.file("test.csv", "1001_DFA_SAD_XX,SAD\n");
    let splits = r#"{"1": {"train": ["1001_DFA_NEU_XX.wav-3", "1001_DFA_SAD_XX.wav-0"], "val": [], "test": ["1002_DFA_ANG_XX.wav-4"]}}"#;
    folder.file("data_splits_VALV.pkl", splits);
    let listing = Source::CremaD.list(folder.path()).unwrap();
    let names = |list: &str| -> Vec<&str> {
        listing.indices[list].iter().map(|&row| listing.rows[row].id.as_str()).collect()
    };
    assert_eq!(names("ogm_train_index"), ["1001_DFA_NEU_XX", "1002_DFA_HAP_XX"]);
    assert_eq!(names("ogm_test_index"), ["1001_DFA_SAD_XX"]);
    assert_eq!(names("mlb1_train_index"), ["1001_DFA_NEU_XX", "1001_DFA_SAD_XX"]);
    assert_eq!(names("mlb1_test_index"), ["1002_DFA_ANG_XX"]);
    assert_eq!(listing.indices.len(), 4);
    assert_eq!(listing.warnings, ["1 clips of the list ogm_train of train.csv are not among the rows"]);
    let report = check(Source::CremaD, folder.path(), None).unwrap();
    assert!(report.warnings.contains(&"1 actors are in both ogm_test_index and ogm_train_index".to_owned()));
    assert_eq!(report.faults, [""; 0]);

    folder.file("test.csv", "1001_DFA_NEU_XX,NEU\n");
    let report = check(Source::CremaD, folder.path(), None).unwrap();
    assert_eq!(report.faults, ["1 rows are in both ogm_test_index and ogm_train_index"]);
    folder.file("data_splits_VALV.pkl", b"\x80\x04\x95");
    says(&Source::CremaD.list(folder.path()).unwrap_err(), &["no text in UTF-8", "a pickle is never read"]);
    folder.file("data_splits_VALV.pkl", "[]");
    says(&Source::CremaD.list(folder.path()).unwrap_err(), &["is not the published list of splits"]);
}

#[test]
fn consensus_labels_are_those_of_the_votes() {
    let folder = Folder::whole();
    let labels = Some(LabelSource::Consensus);
    says(
        &Source::CremaD.list_by(folder.path(), labels).unwrap_err(),
        &["there is no summaryTable.csv", "or use the labels `intended`"],
    );
    let table = "\"\",\"FileName\",\"VoiceVote\",\"MultiModalVote\"\n1,1001_DFA_NEU_XX,N,S\n2,1002_DFA_HAP_XX,H,H\n\
                 3,1001_DFA_SAD_XX,S,S:N\n4,1002_DFA_FEA_XX,F,A\n";
    folder.file("processedResults/summaryTable.csv", table);
    let listing = Source::CremaD.list_by(folder.path(), labels).unwrap();
    let found: Vec<(&str, u32)> = listing.rows.iter().map(|row| (row.id.as_str(), row.label)).collect();
    assert_eq!(found, [("1001_DFA_NEU_XX", 2), ("1002_DFA_FEA_XX", 5), ("1002_DFA_HAP_XX", 1)]);
    assert_eq!(listing.columns["intended"], [0, 3, 1]);
    assert_eq!(listing.warnings, ["3 clips are left out: their votes are tied or missing"]);
}

fn prepared(folder: &Folder, count: usize) -> Pack {
    let out = folder.path().join(format!("pack{count}"));
    let frames = Treatment::Frames { size: None, count, channels: 3, step: None };
    let recipe = Recipe { inputs: [("video".to_owned(), frames)].into(), ..Recipe::default() };
    let written =
        prepare(Source::CremaD, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert!(matches!(written, Written::Done { made } if made > 0));
    Pack::open(&out).unwrap()
}

/// The grey values of the frames of a row.
fn greys(pack: &Pack, id: &str) -> Vec<u8> {
    let data = pack.dataset(&PackedConfig::new("unused")).unwrap();
    let row = data.ids.iter().position(|i| i == id).unwrap();
    let Picture::Frames(frames) = data.inputs.values()[1].picture(row).unwrap() else { panic!() };
    frames.iter().map(|frame| frame.pixels[0]).collect()
}

#[test]
fn short_clips_repeat_their_last_frame() {
    let folder = Folder::whole();
    let three = prepared(&folder, 3);
    assert_eq!(three.index.modalities[1].dims, [3, 6, 8, 3]);
    assert!(three.index.modalities[1].frames);
    assert_eq!(greys(&three, "1001_DFA_NEU_XX"), [10, 10, 10]);
    assert_eq!(greys(&three, "1002_DFA_HAP_XX"), [10, 20, 20]);
    assert_eq!(greys(&three, "1002_DFA_FEA_XX"), [10, 20, 30]);
    assert_eq!(greys(&prepared(&folder, 1), "1002_DFA_FEA_XX"), [10]);
    let config = PackedConfig {
        inputs: [("video".to_owned(), PackedInputConfig::default())].into(),
        ..PackedConfig::new("unused")
    };
    let data = three.dataset(&config).unwrap();
    assert_eq!(data.shapes()[1].1.dims, [3, 3, 6, 8], "frames, channels, height, width");
    assert!(matches!(data.inputs.values()[1], Input::Packed(_)));
    let none = Treatment::Frames { size: None, count: 0, channels: 3, step: None };
    let recipe = Recipe { inputs: [("video".to_owned(), none)].into(), ..Recipe::default() };
    let out = folder.path().join("none");
    let error = prepare(Source::CremaD, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false));
    says(&error.unwrap_err(), &["inputs.video.count", "[1, 1000]"]);
}

#[test]
fn the_check_names_every_file_that_is_not_right() {
    let folder = Folder::whole();
    assert_eq!(check(Source::CremaD, folder.path(), None).unwrap().faults, [""; 0]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:10dc\nsize 265922\n";
    folder.file("VideoFlash/1003_TIE_HAP_XX.flv", pointer);
    folder.file("AudioWAV/1001_DFA_NEU_XX.wav", pointer);
    folder.file("Image-01-FPS/1002_DFA_FEA_XX/00002.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF");
    // Header, previous length, a tag with sound, a tag with a key frame of VP6.
    let mut flash = b"FLV\x01\x05\0\0\0\x09\0\0\0\0\x08\0\0\x01\0\0\0\0\0\0\0\x2f\0\0\0\x0c".to_vec();
    flash.extend(b"\x09\0\0\x02\0\0\0\0\0\0\0\x14\0\0\0\0\x0d");
    folder.file("VideoFlash/1003_TIE_SAD_XX.flv", &flash);
    folder.file("AudioWAV/1002_DFA_ANG_XX.wav", "");
    let path = folder.path().join("AudioWAV/1002_DFA_ANG_XX.wav");
    Clip { samples: vec![0.0; 100], rate: 44_100 }.write(path).unwrap();
    let report = check(Source::CremaD, folder.path(), None).unwrap();
    assert_eq!(report.rows, 8);
    assert_eq!(report.classes.iter().map(|c| c.1).collect::<Vec<_>>(), [1, 2, 2, 1, 1, 1]);
    assert_eq!(report.faults.len(), 3, "{:?}", report.faults);
    for (fault, pieces) in report.faults.iter().zip([
        ["1001_DFA_NEU_XX.wav", "git-LFS pointer"],
        ["1002_DFA_FEA_XX/00002.jpg", "no end marker"],
        ["1003_TIE_HAP_XX.flv", "git-LFS pointer"],
    ]) {
        says(fault, &pieces);
    }
    let [audio, video] = &report.modalities[..] else { panic!() };
    assert_eq!((audio.rows, audio.kinds["16000 Hz"], audio.kinds["44100 Hz"]), (5, 4, 1));
    assert_eq!(audio.seconds, Some([100.0 / 44_100.0, 0.25]));
    assert_eq!((video.kinds["vp6"], video.kinds["6 x 8"]), (1, 5));
    assert!(report.warnings.contains(&"1002_DFA_ANG_XX, `audio`: every sample is zero".to_owned()));
}
