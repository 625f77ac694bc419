//! Resizing against Pillow.

use crate::image::{apart, golden, numbers, picture};
use crate::support::says;
use mm_data::image::{Filter, Frame};
use proptest::prelude::*;

#[test]
fn every_pixel_is_pillows() {
    let golden = golden(&["bilinear.", "bicubic."]);
    let keys: Vec<String> =
        golden.keys().filter_map(|key| key.strip_suffix(".out")).map(str::to_owned).collect();
    let mut cases = 0;
    for key in keys {
        let filter = match key.split_once('.') {
            Some(("bilinear", _)) => Filter::Bilinear,
            Some(("bicubic", _)) => Filter::Bicubic,
            _ => continue,
        };
        let frame = picture(key.split('.').nth(1).unwrap());
        let part = golden.values(&format!("{key}.part"));
        let out = format!("{key}.out");
        let (height, width) = (golden.shape(&out)[0], golden.shape(&out)[1]);
        let part: [f32; 4] = std::array::from_fn(|i| part[i] as f32);
        let ours = frame.resize_part(part, height, width, filter).unwrap();
        assert_eq!(apart(&numbers(&ours), &golden.values(&out)), 0.0, "{key}");
        if part == [0.0, 0.0, frame.width as f32, frame.height as f32] {
            assert_eq!(frame.resize(height, width, filter).unwrap(), ours);
        }
        cases += 1;
    }
    assert_eq!(cases, 46);
    golden.finish();
}

#[test]
fn parts_outside_are_refused() {
    let frame = picture("rgb");
    let wrong = [
        [-0.1, 0.0, 5.0, 5.0],
        [0.0, 0.0, 53.5, 5.0],
        [5.0, 0.0, 5.0, 5.0],
        [0.0, 5.0, 5.0, 4.0],
        [0.0, f32::NAN, 5.0, 5.0],
        [0.0, 0.0, f32::INFINITY, 5.0],
    ];
    for part in wrong {
        let error = frame.resize_part(part, 4, 4, Filter::Bilinear).unwrap_err();
        says(&error, &["resize: the part [", "is not inside 37 x 53 pixels", "left < right"]);
    }
    says(&frame.resize(0, 4, Filter::Bilinear).unwrap_err(), &["0 x 4 pixels are none"]);
    says(&frame.resize(1 << 20, 1 << 20, Filter::Bilinear).unwrap_err(), &["more than the allowed"]);
    let settings: Filter = serde_json::from_str("\"bicubic\"").unwrap();
    assert_eq!(settings, Filter::Bicubic);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_colour_stays_one_colour(
        (h, w, height, width) in (1..40usize, 1..40usize, 1..40usize, 1..40usize),
        colour in any::<[u8; 3]>(),
        a in 0.0..0.9f32,
        size in 0.05..1.0f32,
    ) {
        let frame = Frame::filled(h, w, &colour).unwrap();
        let end = (a + size).min(1.0);
        let part = [a * w as f32, a * h as f32, end * w as f32, end * h as f32];
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let out = frame.resize_part(part, height, width, filter).unwrap();
            prop_assert_eq!(out, Frame::filled(height, width, &colour).unwrap());
        }
    }

    #[test]
    fn a_mirrored_frame_gives_a_mirrored_result(height in 1..40usize, width in 1..60usize) {
        let frame = picture("rgb");
        let mut mirrored = frame.clone();
        mirrored.mirror();
        let mut out = frame.resize(height, width, Filter::Bilinear).unwrap();
        out.mirror();
        let other = mirrored.resize(height, width, Filter::Bilinear).unwrap();
        // Ties of the weights' rounding fall to the other side.
        prop_assert!(apart(&numbers(&out), &numbers(&other)) <= 1.0);
    }
}
