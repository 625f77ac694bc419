//! JPEG and PNG against Pillow, and files that lie.

use crate::image::{apart, golden, numbers, picture};
use crate::support::says;
use mm_data::image::Frame;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// The bytes of a file of the fixture.
fn file(name: &str) -> Vec<u8> {
    static ALL: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    let read = || {
        let golden = mm_testkit::golden::Golden::open("image");
        let names = golden.keys_with("file.").filter_map(|key| key.strip_suffix(".bytes"));
        let bytes =
            |name: &str| golden.values(&format!("{name}.bytes")).into_iter().map(|v| v as u8).collect();
        names.map(|name| (name.to_owned(), bytes(name))).collect()
    };
    ALL.get_or_init(read)[&format!("file.{name}")].clone()
}

#[test]
fn files_are_read_as_pillow_reads_them() {
    let golden = golden(&["file."]);
    let names: Vec<String> = golden
        .keys_with("file.")
        .filter_map(|key| key.strip_prefix("file.")?.strip_suffix(".out"))
        .map(str::to_owned)
        .collect();
    assert_eq!(names.len(), 13);
    for name in names {
        let key = format!("file.{name}.out");
        let bytes: Vec<u8> =
            golden.values(&format!("file.{name}.bytes")).into_iter().map(|v| v as u8).collect();
        let frame = Frame::decode(&bytes, &name).unwrap();
        assert_eq!([frame.height, frame.width, frame.channels], golden.shape(&key), "{name}");
        let (ours, theirs) = (numbers(&frame), golden.values(&key));
        let worst = apart(&ours, &theirs);
        let mean = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).sum::<f64>() / ours.len() as f64;
        println!("{name}: at most {worst}, in the mean {mean:.4}");
        let allowed = if name.starts_with("jpeg") { (JPEG_WORST, JPEG_MEAN) } else { (0.0, 0.0) };
        assert!(worst <= allowed.0 && mean <= allowed.1, "{name}: {worst}, {mean}");
    }
    golden.finish();
}

/// Another transform and another interpolation of colours than libjpeg's.
const JPEG_WORST: f64 = 3.0;
const JPEG_MEAN: f64 = 0.5;

#[test]
fn a_png_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["rgb", "grey"] {
        let path = folder.path().join(format!("{name}.jpg")); // the name says nothing
        picture(name).write_png(&path).unwrap();
        assert_eq!(Frame::open(&path).unwrap(), picture(name));
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    let error = picture("rgb").write_png(&folder.path().join("none").join("a.png")).unwrap_err();
    says(&error, &["a.png", "check the path"]);
    says(&Frame::open(folder.path()).unwrap_err(), &["not a regular file"]);
    says(&Frame::open(&folder.path().join("b.png")).unwrap_err(), &["cannot read", "b.png"]);
}

#[test]
fn other_files_are_named() {
    says(&Frame::decode(b"", "a.png").unwrap_err(), &["a.png: the file is empty"]);
    says(
        &Frame::decode(b"GIF89a", "a.gif").unwrap_err(),
        &["neither JPEG nor PNG: the first bytes are 47 49 46 38"],
    );
    let pointer = b"version https://git-lfs.example/spec/v1\noid sha256:10dc\nsize 265922\n";
    says(&Frame::decode(pointer, "a.jpg").unwrap_err(), &["a.jpg: it is a git-LFS pointer", "git lfs pull"]);
}

#[test]
fn truncation_at_every_length_is_noticed() {
    for name in ["jpeg_420", "jpeg_422_progressive", "jpeg_grey", "jpeg_restarts", "png_rgb_16", "png_bits"] {
        let whole = file(name);
        // A PNG may lack its last chunk: its pixels are all there, and their checksum was right.
        let least = if name.starts_with("jpeg") { whole.len() } else { whole.len() - 12 };
        for length in (0..least).step_by(3).chain(least - 8..least) {
            let error = Frame::decode(&whole[..length], name).map(|f| f.pixels.len()).unwrap_err();
            says(&error, &[name, ";"]);
        }
    }
}

#[test]
fn bombs_do_not_go_off() {
    // A PNG that announces 60000 x 60000 pixels, with the right checksum.
    let mut bytes = picture("rgb").to_png().unwrap();
    bytes[16..20].copy_from_slice(&60_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000u32.to_be_bytes());
    let mut sum = flate2::Crc::new();
    sum.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.sum().to_be_bytes());
    says(
        &Frame::decode(&bytes, "bomb.png").unwrap_err(),
        &["bomb.png", "60000 x 60000 pixels are more than"],
    );
    // A JPEG that announces 65500 x 65500.
    let mut bytes = file("jpeg_420");
    let at = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
    bytes[at..at + 4].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    says(
        &Frame::decode(&bytes, "bomb.jpg").unwrap_err(),
        &["bomb.jpg", "65500 x 65500 pixels are more than"],
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn damaged_files_never_panic(
        which in 0..4usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let name = ["jpeg_420", "jpeg_422_progressive", "png_palette", "png_rgba"][which];
        let mut bytes = file(name);
        for (position, value) in damage {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        match Frame::decode(&bytes, name) {
            Ok(frame) => prop_assert_eq!(frame.pixels.len(), frame.height * frame.width * frame.channels),
            Err(error) => says(&error, &[name]),
        }
    }
}
