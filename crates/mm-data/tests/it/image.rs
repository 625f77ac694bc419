//! Frames themselves, and what the tests of pictures share.

use crate::support::says;
use mm_data::image::{Filter, Frame, MAX_PIXELS};
use mm_testkit::golden::Golden;

/// The fixture, limited to the keys that start with one of these.
pub(crate) fn golden(prefixes: &[&str]) -> Golden {
    let golden = Golden::open("image");
    let others: Vec<String> = golden
        .keys()
        .filter(|key| !prefixes.iter().any(|prefix| key.starts_with(prefix)))
        .map(str::to_owned)
        .collect();
    for key in &others {
        golden.skip(key, "another test reads it");
    }
    golden
}

/// The pictures of `generate/image.py`: `uniform` of `generate/resnet18.py` in 256 steps.
pub(crate) fn picture(name: &str) -> Frame {
    let (height, width, channels) = match name {
        "rgb" => (37, 53, 3),
        "grey" => (23, 41, 1),
        "wide" => (5, 200, 3),
        "tall" => (61, 30, 3),
        "dot" => (1, 1, 3),
        other => panic!("there is no picture {other}"),
    };
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let word = |i: u64| {
        let z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let pixels = (0..height * width * channels).map(|i| (word(i) >> 56) as u8).collect();
    Frame::new(height as usize, width as usize, channels as usize, pixels).unwrap()
}

/// A frame as numbers.
pub(crate) fn numbers(frame: &Frame) -> Vec<f64> {
    frame.pixels.iter().map(|&v| f64::from(v)).collect()
}

/// The largest difference.
pub(crate) fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn grey_and_rgb_become_each_other_as_in_pillow() {
    let golden = golden(&["grey."]);
    assert_eq!(numbers(&picture("rgb").into_grey()), golden.values("grey.rgb"));
    golden.finish();
    let grey = picture("grey");
    let rgb = grey.clone().into_rgb();
    assert_eq!((rgb.channels, &rgb.pixels[..3]), (3, [grey.pixels[0]; 3].as_slice()));
    assert_eq!(rgb.into_grey(), grey);
}

#[test]
fn crops_and_mirrors() {
    let frame = Frame::new(2, 3, 3, (0..18).collect()).unwrap();
    let part = frame.crop(1, 1, 1, 2).unwrap();
    assert_eq!(part.pixels, [12, 13, 14, 15, 16, 17]);
    let mut mirrored = frame.clone();
    mirrored.mirror();
    assert_eq!(mirrored.pixels, [6, 7, 8, 3, 4, 5, 0, 1, 2, 15, 16, 17, 12, 13, 14, 9, 10, 11]);
    mirrored.mirror();
    assert_eq!(mirrored, frame);
    let outside = [(0, 0, 3, 1), (0, 2, 1, 2), (0, 0, 0, 1), (usize::MAX, 0, 1, 1), (0, 1, 1, usize::MAX)];
    for (top, left, height, width) in outside {
        let error = frame.crop(top, left, height, width).unwrap_err();
        says(
            &error,
            &["crop:", "are not all in 2 x 3 pixels of 3 channels", "choose a part that lies inside"],
        );
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    says(&Frame::new(2, 2, 2, vec![0; 8]).unwrap_err(), &["frame: 2 channels; 1 is grey"]);
    says(&Frame::new(2, 0, 1, vec![]).unwrap_err(), &["2 x 0 pixels are none"]);
    says(&Frame::new(2, 2, 1, vec![0; 3]).unwrap_err(), &["3 values are not 2 x 2 pixels of 1 channels"]);
    says(
        &Frame::filled(1 << 16, 1 << 16, &[0]).unwrap_err(),
        &["65536 x 65536 pixels", &MAX_PIXELS.to_string()],
    );
    says(&Frame::filled(usize::MAX, 2, &[0; 3]).unwrap_err(), &["more than the allowed"]);
    let broken = Frame { height: 4, width: 4, channels: 3, pixels: vec![0; 5] };
    says(&broken.crop(0, 0, 1, 1).unwrap_err(), &["5 values are not"]);
    says(&broken.to_png().unwrap_err(), &["5 values are not"]);
    says(&broken.resize(2, 2, Filter::default()).unwrap_err(), &["5 values are not"]);
}
