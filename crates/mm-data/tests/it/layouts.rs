//! AVE, UCF101, Kinetics-Sounds, VGGSound: folders as they are published, with files that nobody has to decode.

use crate::support::says;
use mm_data::audio::Clip;
use mm_data::image::Frame;
use mm_data::pack::Pack;
use mm_data::prepare::{AVE_CLASSES, Listing, Raw, Recipe, Source, Span, check, prepare};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A folder with files that are made by hand.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A sound whose samples of each second are one number: 0.1, 0.2, …
    pub(crate) fn seconds(&self, name: &str, seconds: u16) {
        let path = self.file(name, "");
        let samples = (0..seconds * 1000).map(|t| 0.1 * f32::from(1 + t / 1000)).collect();
        Clip { samples, rate: 1000 }.write(path).unwrap();
    }

    pub(crate) fn frames(&self, name: &str, greys: &[u8]) {
        for (i, &grey) in greys.iter().enumerate() {
            let frame = Frame::filled(6, 8, &[grey, grey, grey]).unwrap();
            self.file(&format!("{name}/{i:05}.jpg"), frame.to_png().unwrap());
        }
    }
}

fn row<'a>(listing: &'a Listing, id: &str) -> (u32, &'a [Raw]) {
    let row = listing.rows.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("no row {id}"));
    (row.label, &row.raw)
}

fn ids<'a>(listing: &'a Listing, list: &str) -> Vec<&'a str> {
    listing.indices[list].iter().map(|&row| listing.rows[row].id.as_str()).collect()
}

const SHA_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn ave() -> Folder {
    let folder = Folder::new();
    // Carriage returns, an empty line, a video that is listed twice, one that is not there.
    let train = "Church bell&RUhOCu3LNXM&good&0&10\r\nMale speech, man speaking&aaaaaaaaaaa&good&2&5\r\n\r\n\
                 Church bell&RUhOCu3LNXM&good&3&4\r\nBark&goneaaaaaaa&good&0&10\r\n";
    folder.file("trainSet.txt", train);
    folder.file("valSet.txt", "Frying (food)&-b_bbbbbbbb&good&1&3\n");
    folder.file("testSet.txt", "\u{feff}Mandolin&ccccccccccc&good&0&7\n");
    for id in ["RUhOCu3LNXM", "aaaaaaaaaaa", "-b_bbbbbbbb"] {
        folder.file(&format!("AVE/{id}.mp4"), "\0\0\0\x18ftypmp42");
    }
    folder.seconds("Audios/aaaaaaaaaaa.wav", 10);
    folder.frames("Image-01-FPS/aaaaaaaaaaa", &[0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
    folder.frames("Image-01-FPS-SE/ccccccccccc", &[7, 8]);
    folder.seconds("Audios/ccccccccccc.wav", 10);
    folder
}

#[test]
fn ave_is_read_by_its_lists() {
    let folder = ave();
    let listing = Source::Ave.list(folder.path()).unwrap();
    assert_eq!((listing.classes.len(), listing.rows.len()), (28, 4));
    assert_eq!(listing.classes, AVE_CLASSES);
    assert_eq!(ids(&listing, "train_index"), ["RUhOCu3LNXM", "aaaaaaaaaaa"]);
    assert_eq!(ids(&listing, "val_index"), ["-b_bbbbbbbb"]);
    assert_eq!(ids(&listing, "test_index"), ["ccccccccccc"]);
    // The whole of a video, the event of another.
    let whole = Span { start: 0.0, end: 10.0 };
    let (label, raw) = row(&listing, "RUhOCu3LNXM");
    assert_eq!(label, 0);
    let video = folder.path().join("AVE/RUhOCu3LNXM.mp4");
    assert_eq!(raw, [Raw::Track(video.clone(), Some(whole)), Raw::Scene(video, whole)]);
    // Extracted sound and frames come first, and are cut to the event; what is cut already is taken as it is.
    let (label, raw) = row(&listing, "aaaaaaaaaaa");
    assert_eq!(label, 1);
    let sound = folder.path().join("Audios/aaaaaaaaaaa.wav");
    assert_eq!(raw[0], Raw::Track(sound, Some(Span { start: 2.0, end: 5.0 })));
    let Raw::Frames(frames) = &raw[1] else { panic!("{raw:?}") };
    let names: Vec<_> = frames.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["00002.jpg", "00003.jpg", "00004.jpg"]);
    let Raw::Frames(frames) = &row(&listing, "ccccccccccc").1[1] else { panic!() };
    assert_eq!((frames.len(), row(&listing, "ccccccccccc").0), (2, 27));
    assert_eq!(row(&listing, "-b_bbbbbbbb").0, 10);
    assert_eq!(
        listing.warnings,
        [
            "trainSet.txt has 4 lines, the published one 3339",
            "valSet.txt has 1 lines, the published one 402",
            "testSet.txt has 1 lines, the published one 402",
            "1 clips are listed more than once, such as RUhOCu3LNXM: the first line counts",
            "1 of 6 listed clips are not in the folder",
        ]
    );
    assert_eq!(listing.lists.keys().collect::<Vec<_>>(), ["testSet.txt", "trainSet.txt", "valSet.txt"]);
    let report = check(Source::Ave, folder.path(), None).unwrap();
    assert_eq!(report.modalities[1].kinds["MP4"], 2);
}

#[test]
fn lists_that_are_wrong_are_named_by_their_lines() {
    let folder = ave();
    for (line, rule) in [
        ("Bark&ddddddddddd&good&0", "4 cells between `&`, not five"),
        ("Barking&ddddddddddd&good&0&1", "\"Barking\" is none of the 28 classes"),
        ("Bark&../etc&good&0&1", "\"../etc\" is no video of YouTube"),
        ("Bark&ddddddddddd&good&-1&3", "are no seconds"),
        ("Bark&ddddddddddd&good&nan&3", "are no seconds"),
        ("Bark&ddddddddddd&good&4&4", "the event ends at 4, before it begins at 4"),
    ] {
        folder.file("valSet.txt", format!("Bark&-b_bbbbbbbb&good&1&3\n{line}\n"));
        says(
            &Source::Ave.list(folder.path()).unwrap_err(),
            &["valSet.txt, line 2", rule, "correct the line"],
        );
    }
    folder.file("valSet.txt", "Bark&ccccccccccc&good&1&3\n");
    let error = Source::Ave.list(folder.path()).unwrap_err();
    says(&error, &["`ccccccccccc` is in the parts val and test"]);
    std::fs::remove_file(folder.path().join("valSet.txt")).unwrap();
    says(&Source::Ave.list(folder.path()).unwrap_err(), &["there is no valSet.txt in it", "YapengTian"]);
    folder.file("valSet.txt", b"\x80\x04\x95");
    says(&Source::Ave.list(folder.path()).unwrap_err(), &["valSet.txt", "no text in UTF-8"]);
    let empty = Folder::new();
    for (list, text) in
        [("trainSet.txt", "Bark&ddddddddddd&good&0&1\n"), ("valSet.txt", ""), ("testSet.txt", "")]
    {
        empty.file(list, text);
    }
    says(&Source::Ave.list(empty.path()).unwrap_err(), &["none of the 1 clips of the lists is in it"]);
}

#[test]
fn events_are_cut_out_of_sound_and_frames() {
    let folder = ave();
    for id in ["RUhOCu3LNXM", "-b_bbbbbbbb"] {
        std::fs::remove_file(folder.path().join(format!("AVE/{id}.mp4"))).unwrap();
    }
    let recipe: Recipe = serde_json::from_str(
        r#"{ "inputs": {
            "audio": { "sound": { "front_end": { "kind": "waveform", "normalize": false,
                "input": { "rate": 1000, "samples": 4000, "short": "tile" } } } },
            "video": { "frames": { "count": 4 } } } }"#,
    )
    .unwrap();
    let out = folder.path().join("pack");
    prepare(Source::Ave, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false)).unwrap();
    let pack = Pack::open(&out).unwrap();
    assert_eq!(pack.index.ids, ["aaaaaaaaaaa", "ccccccccccc"]);
    let [audio, video] = &pack.index.modalities[..] else { panic!() };
    assert_eq!((&audio.dims[..], &video.dims[..]), (&[4000][..], &[4, 6, 8, 3][..]));
    // The third to the fifth second, then the third again; the frames of the same seconds, the last one again.
    let shard = std::fs::read(out.join("shard-00000.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&shard).unwrap();
    let bytes = tensors.tensor("x_audio").unwrap();
    let value = |i: usize| f32::from_le_bytes(bytes.data()[4 * i..4 * i + 4].try_into().unwrap());
    for (i, expected) in [(0, 0.3), (999, 0.3), (1000, 0.4), (2999, 0.5), (3000, 0.3), (3999, 0.3)] {
        assert!((value(i) - expected).abs() < 1e-4, "{i}: {}", value(i));
    }
    let frames = tensors.tensor("x_video").unwrap();
    let greys: Vec<u8> = frames.data().iter().copied().step_by(6 * 8 * 3).collect();
    assert_eq!(greys, [20, 30, 40, 40, 7, 8, 8, 8]);
    // The lists are part of what the pack says of itself.
    let lists = &pack.index.preset["settings"]["lists"];
    assert_eq!(lists.as_object().unwrap().len(), 3);
    assert_eq!(lists["valSet.txt"].as_str().unwrap().len(), 64);
    // A recording that ends before the event begins.
    folder.seconds("Audios/aaaaaaaaaaa.wav", 2);
    let again = folder.path().join("again");
    let error = prepare(Source::Ave, folder.path(), &recipe, &again, &|_| {}, &AtomicBool::new(false));
    says(
        &error.unwrap_err(),
        &["aaaaaaaaaaa.wav", "it has 2.00 seconds, but the part from 2 to 5 is wanted"],
    );
}

#[test]
fn checksums_of_lists_are_those_of_the_files() {
    let folder = Folder::new();
    folder.file("manifest.csv", "id,label,wav\na,abc,a.wav\n");
    folder.file("classes.txt", "abc");
    let listing = Source::Manifest.list(folder.path()).unwrap();
    assert_eq!(listing.lists["classes.txt"], SHA_OF_ABC);
}

#[test]
fn ucf101_is_restricted_to_the_classes_with_sound() {
    let folder = Folder::new();
    for class in ["Archery", "BabyCrawling", "HandstandPushups", "Basketball"] {
        for (group, clip) in [(1, 1), (1, 2), (8, 1), (9, 3)] {
            // The published names of one class differ from its folder in a letter's case.
            let own = class.replace("Handstand", "HandStand");
            folder.file(&format!("UCF-101/{class}/v_{own}_g{group:02}_c{clip:02}.avi"), "RIFF....AVI LIST");
        }
    }
    folder.file("UCF-101/Archery/notes.txt", "");
    folder.file("soundClasses.txt", "58 HandstandPushups\n3 Archery\nBabyCrawling\n");
    let list = |part: &str, groups: &[&str], number: bool| {
        let mut text = String::new();
        for class in ["Archery", "BabyCrawling", "Basketball", "HandstandPushups"] {
            for group in groups {
                let own = class.replace("Handstand", "HandStand");
                let number = if number { " 7" } else { "" };
                text += &[class, "/v_", &own, "_", group, ".avi", number, "\r\n"].concat();
            }
        }
        folder.file(&format!("ucfTrainTestlist/{part}"), text);
    };
    list("trainlist01.txt", &["g08_c01", "g09_c03", "g09_c04"], true);
    list("testlist01.txt", &["g01_c01", "g01_c02"], false);
    list("trainlist03.txt", &["g01_c01", "g01_c02"], true);
    let listing = Source::Ucf51.list(folder.path()).unwrap();
    assert_eq!(listing.classes, ["Archery", "BabyCrawling", "HandstandPushups"]);
    assert_eq!(listing.rows.len(), 12);
    assert_eq!(ids(&listing, "ucf1_train_index")[..2], ["v_Archery_g08_c01", "v_Archery_g09_c03"]);
    assert_eq!(ids(&listing, "ucf1_train_index").len(), 6);
    assert_eq!(ids(&listing, "ucf1_test_index")[5], "v_HandStandPushups_g01_c02");
    assert_eq!(
        listing.indices.keys().collect::<Vec<_>>(),
        ["ucf1_test_index", "ucf1_train_index", "ucf3_train_index"]
    );
    assert_eq!(listing.columns["group"], [1, 1, 8, 9, 101, 101, 108, 109, 201, 201, 208, 209]);
    let video = folder.path().join("UCF-101/BabyCrawling/v_BabyCrawling_g08_c01.avi");
    assert_eq!(
        row(&listing, "v_BabyCrawling_g08_c01"),
        (1, &[Raw::Track(video.clone(), None), Raw::Video(video)][..])
    );
    assert_eq!(
        listing.warnings,
        [
            "3 classes with sound, in the whole set 51",
            "3 clips of ucfTrainTestlist/trainlist01.txt are not in the folder",
        ]
    );
    folder.file("soundClasses.txt", "Archery\nArchery\n");
    says(
        &Source::Ucf51.list(folder.path()).unwrap_err(),
        &["soundClasses.txt, line 2", "`Archery` appears twice"],
    );
    folder.file("soundClasses.txt", "Archery\nArchry\n");
    says(&Source::Ucf51.list(folder.path()).unwrap_err(), &["line 2", "no clips of the class `Archry`"]);
    folder.file("soundClasses.txt", "Archery\n");
    std::fs::remove_dir_all(folder.path().join("ucfTrainTestlist")).unwrap();
    says(
        &Source::Ucf51.list(folder.path()).unwrap_err(),
        &["no ucfTrainTestlist/trainlist01.txt", "crcv.ucf.edu"],
    );
    says(&Source::Ucf51.list(Folder::new().path()).unwrap_err(), &["no clips like UCF-101/Archery"]);
}

#[test]
fn kinetics_sounds_finds_clips_by_video_and_second() {
    let folder = Folder::new();
    folder.file("my_train.txt", "ylp7Ckhdw4A_36,10,2\nymf9_Ve1onI_44,10,0\n-_bbbbbbbbb_0,10,1\n");
    folder.file("my_test.txt", "yufTv0OaerY_36_46,10,1\ngoneaaaaaaa_1,10,1\n");
    // Kinetics' own names, others' names, a clip of the same video that is not listed.
    folder.file("train/playing drums/ylp7Ckhdw4A_000036_000046.mp4", "");
    folder.file("train/x/ylp7Ckhdw4A_000050_000060.mp4", "");
    folder.file("val/ymf9_Ve1onI_44.mkv", "");
    folder.seconds("audio/ymf9_Ve1onI_44.wav", 1);
    folder.file("test/yufTv0OaerY.mp4", "");
    folder.frames("frames/-_bbbbbbbbb_000000_000010", &[1, 2]);
    folder.file("train/readme_of_the_folder.mp4", "");
    let listing = Source::KineticsSounds.list(folder.path()).unwrap();
    assert_eq!(listing.classes, ["0", "1", "2"]);
    assert_eq!(ids(&listing, "train_index"), ["ylp7Ckhdw4A_36", "ymf9_Ve1onI_44", "-_bbbbbbbbb_0"]);
    assert_eq!(ids(&listing, "test_index"), ["yufTv0OaerY_36"]);
    let video = folder.path().join("train/playing drums/ylp7Ckhdw4A_000036_000046.mp4");
    assert_eq!(
        row(&listing, "ylp7Ckhdw4A_36"),
        (2, &[Raw::Track(video.clone(), None), Raw::Video(video)][..])
    );
    assert!(matches!(row(&listing, "ymf9_Ve1onI_44").1, [Raw::Sound(_), Raw::Video(_)]));
    assert!(
        matches!(row(&listing, "-_bbbbbbbbb_0").1, [Raw::Missing, Raw::Frames(frames)] if frames.len() == 2)
    );
    assert!(listing.warnings.contains(&"1 clips have neither sound nor a video".to_owned()));
    folder.file("classes.txt", "drums\nflute\nharp\n");
    let named = Source::KineticsSounds.list(folder.path()).unwrap();
    assert_eq!(named.classes, ["drums", "flute", "harp"]);
    assert_eq!(named.lists.len(), 3);
    folder.file("classes.txt", "drums\nflute\n");
    says(
        &Source::KineticsSounds.list(folder.path()).unwrap_err(),
        &["classes.txt, line 2", "2 classes are named, but the lists count to 3"],
    );
    folder.file("my_test.txt", "yufTv0OaerY_36,10,-1\n");
    says(
        &Source::KineticsSounds.list(folder.path()).unwrap_err(),
        &["my_test.txt, line 1", "is no class from 0 on"],
    );
    folder.file("my_test.txt", "yufTv0OaerY,10,1\n");
    says(&Source::KineticsSounds.list(folder.path()).unwrap_err(), &["is no clip `<id>_<start>`"]);
    folder.file("my_test.txt", "yufTv0OaerY_4 10 1\n");
    says(&Source::KineticsSounds.list(folder.path()).unwrap_err(), &["1 cells between commas, not three"]);
    std::fs::remove_file(folder.path().join("my_test.txt")).unwrap();
    says(&Source::KineticsSounds.list(folder.path()).unwrap_err(), &["no my_test.txt", "OGM-GE_CVPR2022"]);
}

#[test]
fn vggsound_is_read_by_its_csv() {
    let folder = Folder::new();
    let text = "---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,\"bird chirping, tweeting\",train\n\
                --0PQM4-hqg,90,waterfall burbling,train\ngoneaaaaaaa,5,waterfall burbling,train\n";
    folder.file("vggsound.csv", text);
    folder.file("video/---g-f_I2yQ_000001.mp4", "");
    folder.file("video/--0PQM4-hqg_000030.mp4", "");
    folder.seconds("train-audios/--0PQM4-hqg_90.wav", 1);
    folder.frames("Image-01-FPS/--0PQM4-hqg_90.mp4", &[1]);
    let listing = Source::VggSound.list(folder.path()).unwrap();
    assert_eq!(listing.classes, ["bird chirping, tweeting", "people marching", "waterfall burbling"]);
    assert_eq!(ids(&listing, "train_index"), ["--0PQM4-hqg_30", "--0PQM4-hqg_90"]);
    assert_eq!(ids(&listing, "test_index"), ["---g-f_I2yQ_1"]);
    assert!(matches!(row(&listing, "--0PQM4-hqg_90"), (2, [Raw::Sound(_), Raw::Frames(_)])));
    assert!(matches!(row(&listing, "--0PQM4-hqg_30"), (0, [Raw::Track(..), Raw::Video(_)])));
    assert_eq!(
        listing.warnings,
        ["vggsound.csv has 3 classes, the published one 309", "1 of 4 listed clips are not in the folder"]
    );
    for (line, rule) in [
        ("---g-f_I2yQ,1,x", "3 cells, not four"),
        ("---g-f_I2yQ,one,x,train", "\"one\" is no second"),
        ("---g-f_I2yQ,1,x,val", "\"val\" is neither train nor test"),
        ("---g-f_I2yQ,1,,train", "the class is empty"),
        ("g-f_I2yQ,1,x,train", "is no video of YouTube"),
    ] {
        folder.file("vggsound.csv", format!("--0PQM4-hqg,30,x,train\n{line}\n"));
        says(&Source::VggSound.list(folder.path()).unwrap_err(), &["vggsound.csv, line 2", rule]);
    }
}

#[test]
fn a_file_called_by_its_video_alone_is_the_only_clip_of_it() {
    let folder = Folder::new();
    let text = "aaaaaaaaaaa,1,x,train\nbbbbbbbbbbb,2,x,train\nbbbbbbbbbbb,9,y,test\nccccccccccc,3,y,test\n";
    folder.file("vggsound.csv", text);
    let video = folder.file("aaaaaaaaaaa.mp4", "");
    // Sound under one name, the video under the other: both are the clip's.
    folder.seconds("audio/aaaaaaaaaaa_1.wav", 1);
    folder.file("bbbbbbbbbbb.mp4", "");
    folder.file("ccccccccccc_3.mp4", "");
    let listing = Source::VggSound.list(folder.path()).unwrap();
    let ids: Vec<&str> = listing.rows.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, ["aaaaaaaaaaa_1", "ccccccccccc_3"], "which part of bbbbbbbbbbb it is, nobody knows");
    assert_eq!(
        row(&listing, "aaaaaaaaaaa_1").1,
        [Raw::Sound(folder.path().join("audio/aaaaaaaaaaa_1.wav")), Raw::Video(video)]
    );
    let warning = "1 files are called by a video of which the lists have several clips, such as bbbbbbbbbbb";
    assert!(listing.warnings.iter().any(|w| w.starts_with(warning)), "{:?}", listing.warnings);
}
