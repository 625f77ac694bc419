//! Raw files that are damaged or lie, and manifests from strangers: named by the check, refused by `prepare`, and nothing is
//! left that looks complete.

use crate::layouts::Folder;
use crate::support::says;
use ::image::ExtendedColorType;
use ::image::codecs::jpeg::JpegEncoder;
use mm_data::DataError;
use mm_data::audio::Clip;
use mm_data::image::Frame;
use mm_data::pack::{Pack, Written};
use mm_data::prepare::{Raw, Recipe, Source, Treatment, check, prepare};
use std::sync::atomic::AtomicBool;

/// Two good rows and one more, whose sound or picture are these bytes.
fn with(kind: &str, name: &str, bytes: &[u8]) -> Folder {
    let folder = Folder::new();
    for name in ["a", "b", "c"] {
        let path = folder.file(&format!("wav/{name}.wav"), "");
        let samples = (0..1600u16).map(|t| (f32::from(t) * 0.05).sin() * 0.1).collect();
        Clip { samples, rate: 16_000 }.write(path).unwrap();
        folder.file(&format!("jpg/{name}.jpg"), jpeg(8, 6));
    }
    let own = |column: &str| if column == kind { name.to_owned() } else { format!("c.{column}") };
    folder.file(
        "manifest.csv",
        format!(
            "id,label,wav,jpg\nr0,x,wav/a.wav,jpg/a.jpg\nr1,y,wav/b.wav,jpg/b.jpg\nr2,x,wav/{},jpg/{}\n",
            own("wav"),
            own("jpg")
        ),
    );
    folder.file(&format!("{kind}/{name}"), bytes);
    folder
}

fn jpeg(width: u32, height: u32) -> Vec<u8> {
    let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i % 251) as u8).collect();
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90)
        .encode(&pixels, width, height, ExtendedColorType::Rgb8)
        .unwrap();
    bytes
}

fn prepared(source: Source, folder: &Folder) -> Result<Written, DataError> {
    let out = folder.path().join("pack");
    prepare(source, folder.path(), &Recipe::default(), &out, &|_| {}, &AtomicBool::new(false))
}

/// The check finds this one fault, and `prepare` stops with the same words.
#[track_caller]
fn found(kind: &str, name: &str, bytes: &[u8], rule: &str) {
    let folder = with(kind, name, bytes);
    let report = check(Source::Manifest, folder.path(), None).unwrap();
    assert_eq!(report.faults.len(), 1, "{:?}", report.faults);
    says(&report.faults[0], &[name, rule]);
    says(&prepared(Source::Manifest, &folder).unwrap_err(), &[name, rule]);
    assert!(!folder.path().join("pack/index.json").exists());
    // The file is mended, and the same call ends well.
    let good = if kind == "wav" { "wav/a.wav" } else { "jpg/a.jpg" };
    std::fs::copy(folder.path().join(good), folder.path().join(kind).join(name)).unwrap();
    assert_eq!(prepared(Source::Manifest, &folder).unwrap(), Written::Done { made: 3 });
}

/// A WAV file of 32-bit floats.
fn floats(rate: u32, samples: &[f32], claimed: u32) -> Vec<u8> {
    let mut bytes = b"RIFF".to_vec();
    bytes.extend((36 + 4 * samples.len() as u32).to_le_bytes());
    bytes.extend(b"WAVEfmt \x10\0\0\0\x03\0\x01\0");
    bytes.extend(rate.to_le_bytes());
    bytes.extend((4 * rate).to_le_bytes());
    bytes.extend(b"\x04\0\x20\0data");
    bytes.extend(claimed.to_le_bytes());
    bytes.extend(samples.iter().flat_map(|x| x.to_le_bytes()));
    bytes
}

#[test]
fn sounds_that_are_not_right_are_named() {
    let samples = [0.25f32; 400];
    let good = floats(16_000, &samples, 1600);
    found("wav", "truncated.wav", &good[..1000], "announces 1600 bytes of samples, but 956 follow");
    found("wav", "head.wav", &good[..20], "the `fmt ` chunk has 0 bytes");
    found("wav", "empty.wav", b"", "the file is empty");
    found("wav", "none.wav", &floats(16_000, &[], 0), "not a single sample");
    found("wav", "zero-hertz.wav", &floats(0, &samples, 1600), "the sampling rate is 0 Hz");
    found("wav", "long.wav", &floats(16_000, &samples, u32::MAX - 3), "announces 4294967292 bytes");
    // Eight gigabytes can only be claimed in another format, whose sizes have 64 bits.
    let mut rf64 = b"RF64\xff\xff\xff\xffWAVEds64\x1c\0\0\0".to_vec();
    rf64.extend((8u64 << 30).to_le_bytes().repeat(2));
    rf64.extend([0; 12]);
    rf64.extend(&good[12..]);
    found("wav", "gigabytes.wav", &rf64, "RF64 is not read");
    let mut nan = samples;
    nan[7] = f32::NAN;
    found("wav", "nan.wav", &floats(16_000, &nan, 1600), "sample 7 is NaN");
    nan[7] = f32::NEG_INFINITY;
    found("wav", "inf.wav", &floats(16_000, &nan, 1600), "sample 7 is -inf");
}

#[test]
fn pictures_that_are_not_right_are_named() {
    let good = jpeg(8, 6);
    let mut bomb = good.clone();
    let at = bomb.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
    bomb[at..at + 4].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    found("jpg", "bomb.jpg", &bomb, "65500 x 65500 pixels are more than the allowed");
    found("jpg", "truncated.jpg", &good[..good.len() - 20], "no end marker");
    found("jpg", "empty.jpg", b"", "the file is empty");
    found("jpg", "text.jpg", b"<html>not found</html>", "neither JPEG nor PNG");
    // What the bytes say counts: a PNG by another name is a picture.
    let png = Frame::filled(6, 8, &[1, 2, 3]).unwrap().to_png().unwrap();
    let folder = with("jpg", "png.jpg", &png);
    assert_eq!(check(Source::Manifest, folder.path(), None).unwrap().faults, [""; 0]);
    prepared(Source::Manifest, &folder).unwrap();
}

#[test]
fn a_modality_is_chosen_once() {
    let folder = with("wav", "d.wav", b"");
    let recipe = Recipe { modalities: Some(vec!["jpg".into(), "jpg".into()]), ..Recipe::default() };
    let out = folder.path().join("pack");
    let error = prepare(Source::Manifest, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false));
    says(&error.unwrap_err(), &["modalities", "\"jpg\"", "is named twice"]);
}

#[test]
fn pictures_of_another_size_need_a_size_for_all() {
    let folder = with("jpg", "wide.jpg", &jpeg(16, 6));
    let rule = "has 6 x 16 pixels, the first image of `jpg` 6 x 8";
    says(&prepared(Source::Manifest, &folder).unwrap_err(), &["wide.jpg", rule, "inputs.jpg"]);
    let with_size = |size| {
        let image = Treatment::Image { size: Some(size), channels: 3, energy: None };
        let recipe = Recipe { inputs: [("jpg".to_owned(), image)].into(), ..Recipe::default() };
        let out = folder.path().join("pack");
        prepare(Source::Manifest, folder.path(), &recipe, &out, &|_| {}, &AtomicBool::new(false))
    };
    for size in [[0, 8], [6, 8193], [usize::MAX, usize::MAX]] {
        says(&with_size(size).unwrap_err(), &["inputs.jpg.size", "integers in [1, 8192]"]);
    }
    assert_eq!(with_size([6, 8]).unwrap(), Written::Done { made: 3 });
    let pack = Pack::open(&folder.path().join("pack")).unwrap();
    assert_eq!(pack.index.modalities[1].dims, [1, 6, 8, 3]);
}

#[test]
fn frames_with_gaps_are_warned_of() {
    let folder = Folder::new();
    folder.frames("Image-01-FPS/1001_DFA_ANG_XX", &[1, 2, 3, 4]);
    folder.frames("Image-01-FPS/1001_DFA_NEU_XX", &[1, 2, 3, 4]);
    folder.frames("Image-01-FPS/1001_DFA_SAD_XX", &[1, 2, 3, 4]);
    std::fs::remove_file(folder.path().join("Image-01-FPS/1001_DFA_NEU_XX/00001.jpg")).unwrap();
    // One that lacks at the end is no gap: clips have different lengths.
    std::fs::remove_file(folder.path().join("Image-01-FPS/1001_DFA_SAD_XX/00003.jpg")).unwrap();
    let listing = Source::CremaD.list(folder.path()).unwrap();
    let gap = "Image-01-FPS: the numbers of the frames of 1 clips have gaps, such as 1001_DFA_NEU_XX (1 is not there)";
    assert!(listing.warnings.contains(&gap.to_owned()), "{:?}", listing.warnings);
    assert!(check(Source::CremaD, folder.path(), None).unwrap().warnings.contains(&gap.to_owned()));
}

#[track_caller]
fn refused(manifest: &str, pieces: &[&str]) {
    let folder = with("wav", "c.wav", b"");
    folder.file("manifest.csv", manifest);
    says(&Source::Manifest.list(folder.path()).unwrap_err(), pieces);
}

#[test]
fn paths_stay_in_the_folder() {
    let rule = "is no path inside the folder";
    for path in
        ["../a.wav", "wav/../../a.wav", "/etc/a.wav", "./a.wav", "C:/a.wav", "C:\\a.wav", "wav\\..\\a.wav"]
    {
        let shown = path.escape_debug().to_string();
        refused(
            &format!("id,label,wav\nr0,x,wav/a.wav\nr1,y,{path}\n"),
            &["line 3, column `wav`", &shown, rule],
        );
    }
    let folder = with("wav", "c.wav", b"");
    folder.file("manifest.csv", "id,label,wav\nr0,x,wav/a.wav\nr1,y,wav//b.wav\n");
    let listing = Source::Manifest.list(folder.path()).unwrap();
    assert_eq!(listing.rows[1].raw, [Raw::Sound(folder.path().join("wav/b.wav"))]);
}

#[cfg(unix)]
#[test]
fn links_do_not_lead_out_of_the_folder() {
    use std::os::unix::fs::symlink;
    let (folder, other) = (with("wav", "c.wav", b""), with("wav", "c.wav", b""));
    let link = |to: &str| folder.path().join(to);
    symlink(other.path().join("wav/a.wav"), link("wav/out.wav")).unwrap();
    symlink(other.path().join("wav"), link("other")).unwrap();
    symlink("a.wav", link("wav/in.wav")).unwrap();
    symlink("loop.wav", link("wav/loop.wav")).unwrap();
    for path in ["wav/out.wav", "other/a.wav"] {
        folder.file("manifest.csv", format!("id,label,wav\nr0,x,wav/a.wav\nr1,y,{path}\n"));
        let error = Source::Manifest.list(folder.path()).unwrap_err();
        says(&error, &["line 3, column `wav`", path, "leads out of the folder by a link"]);
    }
    // Inside they are followed; one that leads nowhere is found when it is read.
    folder.file("manifest.csv", "id,label,wav\nr0,x,wav/a.wav\nr1,y,wav/in.wav\nr2,y,wav/loop.wav\n");
    let report = check(Source::Manifest, folder.path(), None).unwrap();
    assert_eq!((report.rows, report.faults.len()), (3, 1), "{:?}", report.faults);
    says(&report.faults[0], &["cannot read", "loop.wav"]);
    // The folder itself may be a link.
    let home = other.path().join("link");
    symlink(folder.path(), &home).unwrap();
    folder.file("manifest.csv", "id,label,wav\nr0,x,wav/a.wav\nr1,y,wav/in.wav\n");
    assert_eq!(Source::Manifest.list(&home).unwrap().rows.len(), 2);
}

#[test]
fn rows_have_names_of_their_own_and_labels_that_are_known() {
    refused(
        "id,label,wav\nr0,x,a.wav\nr1,x,a.wav\nr0,y,b.wav\n",
        &["line 4, column `id`", "`r0` stands in line 2 too"],
    );
    refused("id,label,wav,wav\nr0,x,a.wav,b.wav\n", &["the column `wav` stands twice in its head"]);
    refused("id,label,wav,id\nr0,x,a.wav,b\n", &["the column `id` stands twice in its head"]);
    refused("id,label,wav\nr0,x,a.wav\n,y,b.wav\n", &["line 3, column `id`", "is empty"]);
    refused("id,label,wav\nr0,x,a.wav\nr1,,b.wav\n", &["line 3, column `label`", "is empty"]);
    refused("id,label,wav\nr0,0,a.wav\nr1,-1,b.wav\n", &["line 3, column `label`", "is no class from 0"]);
    // A name is made for each class: one cell must not make a million of them.
    refused(
        "id,label,wav\nr0,0,a.wav\nr1,1000000,b.wav\n",
        &["line 3, column `label`", "is no class from 0 to 9999"],
    );
    let folder = with("wav", "c.wav", b"");
    folder.file("classes.txt", "\u{feff}yes\r\nno\r\nmaybe\r\n");
    folder.file("manifest.csv", "id,label,wav\nr0,no,wav/a.wav\nr1,yes,wav/b.wav\n");
    let listing = Source::Manifest.list(folder.path()).unwrap();
    assert_eq!(listing.classes, ["yes", "no", "maybe"]);
    assert_eq!(listing.rows.iter().map(|row| row.label).collect::<Vec<_>>(), [1, 0]);
    folder.file("manifest.csv", "id,label,wav\nr0,no,wav/a.wav\nr1,yess,wav/b.wav\n");
    says(
        &Source::Manifest.list(folder.path()).unwrap_err(),
        &["line 3, column `label`", "`yess` is none of the 3 classes of classes.txt", "did you mean `yes`?"],
    );
}

#[test]
fn byte_order_marks_and_carriage_returns_change_nothing() {
    let folder = with("wav", "c.wav", b"");
    let text = "id,label,split,wav\nr0,x,train,wav/a.wav\nr1,y,test,wav/b.wav\n";
    folder.file("manifest.csv", text);
    let plain = Source::Manifest.list(folder.path()).unwrap();
    for other in [
        text.replace('\n', "\r\n"),
        format!("\u{feff}{text}"),
        format!("\u{feff}{}", text.replace('\n', "\r\n")),
        text.trim_end().to_owned(),
        text.replace(',', " , "),
    ] {
        folder.file("manifest.csv", &other);
        assert_eq!(Source::Manifest.list(folder.path()).unwrap(), plain, "{other:?}");
    }
    // Messages show no control characters of strangers.
    refused("id,label,wav\nr0,x,a.wav\nr1,y,\u{1b}[2J.txt\n", &["line 3, column `wav`", "`\\u{1b}[2J.txt`"]);
}
