//! Front-ends of frames against torchvision, and the distribution of their crops.

use crate::image::{apart, golden, picture};
use crate::support::says;
use mm_core::StepRng;
use mm_data::image::transform::{Crop, Evaluation, Normalize};
use mm_data::image::{Filter, Frame, FrameTransform};

fn small() -> FrameTransform {
    FrameTransform { size: 24, ..FrameTransform::default() }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn given_crops_are_torchvisions() {
    let golden = golden(&["crop."]);
    let (transform, frame) = (small(), picture("rgb"));
    for case in 0..6 {
        let at = golden.labels(&format!("crop.{case}.box"));
        let [top, left, height, width, mirror] = std::array::from_fn(|i| at[i] as usize);
        let view = transform.view(&frame, Crop { top, left, height, width, mirror: mirror == 1 }).unwrap();
        let values = transform.values(&[view]).unwrap();
        let gap = apart(&wide(&values), &golden.values(&format!("crop.{case}.out")));
        assert_eq!(gap, 0.0, "case {case}");
    }
    golden.finish();
}

#[test]
fn evaluation_is_torchvisions() {
    let golden = golden(&["evaluation."]);
    let square = small();
    let centre = FrameTransform { evaluation: Evaluation::CentreCrop, shorter: 29, ..small() };
    for name in ["rgb", "grey", "tall"] {
        let clip = [picture(name)];
        for (kind, transform) in [("resize", &square), ("centre", &centre)] {
            let gap = apart(
                &wide(&transform.evaluate(&clip).unwrap()),
                &golden.values(&format!("evaluation.{name}.{kind}")),
            );
            assert_eq!(gap, 0.0, "{name}, {kind}");
        }
    }
    golden.finish();
}

#[test]
fn crops_are_distributed_as_torchvisions() {
    let golden = golden(&["moments."]);
    let transform = FrameTransform { flip: 0.3, ..small() };
    let draws = 100_000;
    for name in ["rgb", "wide"] {
        let frame = picture(name);
        let (h, w) = (frame.height, frame.width);
        let scale = [h, w, h, w].map(|v| v as f64);
        let (mut sum, mut square, mut whole, mut mirrored) = ([0.0; 4], [0.0; 4], [0.0; 2], 0.0);
        for sample in 0..draws {
            let crop = transform.draw(h, w, &mut StepRng::new(3).sample(sample).draws());
            let at = [crop.top, crop.left, crop.height, crop.width];
            assert!(
                crop.top + crop.height <= h && crop.left + crop.width <= w && crop.height * crop.width > 0
            );
            for i in 0..4 {
                let share = at[i] as f64 / scale[i];
                sum[i] += share;
                square[i] += share * share;
            }
            whole[0] += f64::from(u8::from(crop.height == h));
            whole[1] += f64::from(u8::from(crop.width == w));
            mirrored += f64::from(u8::from(crop.mirror));
        }
        let n = draws as f64;
        let (mean, spread) = (
            golden.values(&format!("moments.{name}.mean")),
            golden.values(&format!("moments.{name}.spread")),
        );
        for i in 0..4 {
            let ours = sum[i] / n;
            let deviation = (square[i] / n - ours * ours).max(0.0).sqrt();
            // Both are estimates from as many draws: five standard errors of their difference.
            let error = 5.0 * spread[i] * (2.0 / n).sqrt() + 1e-6;
            assert!((ours - mean[i]).abs() < error, "{name} {i}: mean {ours}, {}", mean[i]);
            assert!(
                (deviation - spread[i]).abs() < error + 1e-6,
                "{name} {i}: spread {deviation}, {}",
                spread[i]
            );
        }
        for (ours, theirs) in whole.iter().zip(golden.values(&format!("moments.{name}.whole"))) {
            let error = 5.0 * (theirs * (1.0 - theirs) * 2.0 / n).sqrt() + 1e-9;
            assert!((ours / n - theirs).abs() < error, "{name}: whole {}, {theirs}", ours / n);
        }
        assert!((mirrored / n - 0.3).abs() < 5.0 * (0.21 / n).sqrt(), "{name}: mirrored {}", mirrored / n);
    }
    golden.finish();
}

#[test]
fn a_crop_depends_on_its_key_and_its_frame_only() {
    let frame = picture("rgb");
    let clip = [frame.clone(), frame.clone(), frame];
    let each = 24 * 24 * 3;
    let key = StepRng::new(5).stream("frames").epoch(2).sample(11);
    let own = small();
    let values = own.train(&clip, key).unwrap();
    assert_eq!(values.len(), 3 * each);
    assert_eq!(values, own.train(&clip, key).unwrap());
    assert_ne!(values[..each], values[each..2 * each]);
    assert_eq!(values[..2 * each], own.train(&clip[..2], key).unwrap());
    assert_ne!(values, own.train(&clip, key.epoch(3)).unwrap());
    assert_ne!(values, own.train(&clip, key.sample(12)).unwrap());
    let shared = FrameTransform { shared_crop: true, ..small() }.train(&clip, key).unwrap();
    assert_eq!(shared[..each], shared[each..2 * each]);
    assert_eq!(shared[..each], shared[2 * each..]);
    let plain = FrameTransform { augment: false, ..small() };
    assert_eq!(plain.train(&clip, key).unwrap(), plain.evaluate(&clip).unwrap());
}

#[test]
fn colours_and_statistics() {
    let white = [Frame::filled(5, 9, &[255]).unwrap()];
    let first = |transform: FrameTransform| transform.evaluate(&white).unwrap()[..3].to_vec();
    assert_eq!(first(FrameTransform { normalize: Normalize::None, ..small() }), [1.0; 3]);
    assert_eq!(first(small()), [(1.0 - 0.485) / 0.229, (1.0 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]);
    let grey = FrameTransform { grey: true, ..small() };
    assert_eq!(grey.shape(), [24, 24, 1]);
    assert_eq!(grey.evaluate(&white).unwrap(), [(1.0 - 0.449) / 0.226; 24 * 24]);
    let given = Normalize::Given { mean: vec![0.5, 0.25, 0.0], std: vec![0.5, 0.25, 2.0] };
    assert_eq!(first(FrameTransform { normalize: given, ..small() }), [1.0, 3.0, 0.5]);
}

#[test]
fn settings_are_read_and_checked() {
    let read = |text: &str| serde_json::from_str::<FrameTransform>(text);
    assert_eq!(read("{}").unwrap(), FrameTransform::default());
    let given = read(
        r#"{ "size": 112, "scale": [0.25, 1], "shared_crop": true, "evaluation": "centre-crop",
        "filter": "bicubic", "normalize": { "mean": [0, 0, 0], "std": [1, 1, 1] } }"#,
    )
    .unwrap();
    assert_eq!((given.size, given.scale, given.filter), (112, [0.25, 1.0], Filter::Bicubic));
    assert_eq!(given.evaluation, Evaluation::CentreCrop);
    given.check().unwrap();
    assert_eq!(read(&serde_json::to_string(&given).unwrap()).unwrap(), given);
    assert_eq!(read(r#"{ "normalize": "none" }"#).unwrap().normalize, Normalize::None);
    assert!(read(r#"{ "siez": 3 }"#).is_err());
    assert!(read(r#"{ "normalize": "imagent" }"#).is_err());
    assert!(read(r#"{ "normalize": { "mean": [0, 0, 0], "std": [1, 1, 1], "more": 1 } }"#).is_err());
    let statistics = |mean: &[f32], std: &[f32]| Normalize::Given { mean: mean.to_vec(), std: std.to_vec() };
    let d = FrameTransform::default;
    for (transform, pieces) in [
        (FrameTransform { size: 0, ..d() }, "size = 0: must be an integer in [1, 4096]"),
        (FrameTransform { scale: [0.0, 1.0], ..d() }, "scale = [0.0, 1.0]: must be [low, high]"),
        (FrameTransform { scale: [0.5, 1.5], ..d() }, "scale = [0.5, 1.5]"),
        (FrameTransform { ratio: [2.0, 1.0], ..d() }, "ratio = [2.0, 1.0]"),
        (FrameTransform { ratio: [1.0, f64::INFINITY], ..d() }, "ratio = [1.0, inf]"),
        (FrameTransform { flip: f64::NAN, ..d() }, "flip = NaN: must be a number in [0, 1]"),
        (
            FrameTransform { evaluation: Evaluation::CentreCrop, shorter: 100, ..d() },
            "shorter = 100: must be an integer in [224, 8192], at least `size`",
        ),
        (
            FrameTransform { normalize: statistics(&[0.0; 2], &[1.0; 3]), ..d() },
            "normalize.mean = [0.0, 0.0]: must be 3 finite numbers",
        ),
        (
            FrameTransform { normalize: statistics(&[0.0; 3], &[1.0, 0.0, 1.0]), ..d() },
            "normalize.std = [1.0, 0.0, 1.0]: must be above 0",
        ),
    ] {
        says(&transform.check().unwrap_err(), &[pieces]);
        says(&transform.evaluate(&[]).unwrap_err(), &[pieces]);
    }
    says(
        &small().values(&[picture("rgb")]).unwrap_err(),
        &["37 x 53 pixels of 3 channels are not the [24, 24, 3]"],
    );
}

#[test]
fn planes_are_the_values_with_the_channels_first() {
    for grey in [false, true] {
        let transform = FrameTransform { size: 5, grey, ..FrameTransform::default() };
        let clip = [picture("rgb"), picture("grey")];
        let views = transform.evaluation_views(&clip).unwrap();
        let (values, planes) = (transform.values(&views).unwrap(), transform.planes(&views).unwrap());
        let channels = transform.channels();
        let expected: Vec<f32> = values
            .chunks(25 * channels)
            .flat_map(|frame| (0..channels).flat_map(|c| frame.iter().skip(c).step_by(channels).copied()))
            .collect();
        assert_eq!((planes.len(), &planes), (2 * 25 * channels, &expected));
    }
    let wrong = FrameTransform::default().planes(&[picture("dot")]).unwrap_err();
    says(&wrong, &["1 x 1 pixels", "224"]);
}
