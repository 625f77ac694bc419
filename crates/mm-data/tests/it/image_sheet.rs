//! The contact sheet.

use crate::support::says;
use mm_data::image::Frame;
use mm_data::image::sheet::{Row, Spectrogram, draw};

fn pixel(sheet: &Frame, row: usize, column: usize) -> [u8; 3] {
    let at = (row * sheet.width + column) * 3;
    [sheet.pixels[at], sheet.pixels[at + 1], sheet.pixels[at + 2]]
}

#[test]
fn a_spectrogram_has_its_lowest_frequency_at_the_bottom_and_viridis_for_its_range() {
    let values = vec![-10.0, 0.0, 10.0, f32::NAN, -5.0, f32::INFINITY];
    let picture = Spectrogram::new(2, 3, values).unwrap().coloured().unwrap();
    assert_eq!((picture.height, picture.width), (2, 3));
    let all: Vec<[u8; 3]> = (0..6).map(|i| pixel(&picture, i / 3, i % 3)).collect();
    // Above NaN, a quarter, infinity; below 0, a half, 1.
    let expected = [[128; 3], [59, 82, 139], [128; 3], [68, 1, 84], [33, 144, 140], [253, 231, 37]];
    assert_eq!(all, expected);
    let flat = Spectrogram::new(1, 2, vec![3.0; 2]).unwrap().coloured().unwrap();
    assert_eq!(flat.pixels, [68, 1, 84, 68, 1, 84]);
    let huge = Spectrogram::new(1, 3, vec![f32::MIN, 0.0, f32::MAX]).unwrap().coloured().unwrap();
    assert_eq!(huge.pixels, [68, 1, 84, 33, 144, 140, 253, 231, 37]);
}

#[test]
fn clips_lie_below_each_other_with_their_spectrograms_beside() {
    let clip = [Frame::filled(10, 20, &[250, 0, 0]).unwrap(), Frame::filled(20, 10, &[77]).unwrap()];
    let sound = [Spectrogram::new(1, 1, vec![1.0]).unwrap()];
    let first = Row { label: "I".to_owned(), frames: &clip, spectrograms: &sound };
    let second = Row { label: String::new(), frames: &[], spectrograms: &sound };
    let sheet = draw(&[first, second], 32).unwrap();
    // A line of text of 9, a cell of 32 and a gap of 4 per row; two frames and one spectrogram of double width.
    assert_eq!((sheet.height, sheet.width, sheet.channels), (4 + 2 * 45, 4 + 2 * 36 + 68, 3));
    let background = [24, 24, 28];
    assert_eq!(pixel(&sheet, 0, 0), background);
    // The wide frame has 16 rows in the middle of its cell, the tall one 16 columns.
    assert_eq!(pixel(&sheet, 13 + 8, 4), [250, 0, 0]);
    assert_eq!(pixel(&sheet, 13 + 7, 4), background);
    assert_eq!(pixel(&sheet, 13 + 23, 35), [250, 0, 0]);
    assert_eq!(pixel(&sheet, 13, 40 + 8), [77; 3]);
    assert_eq!(pixel(&sheet, 13, 40 + 7), background);
    assert_eq!(pixel(&sheet, 13 + 31, 76 + 63), [68, 1, 84]);
    assert_eq!(pixel(&sheet, 58, 4), [68, 1, 84]);
    // The letter I: a bar of three, five single pixels, a bar.
    let lit = |row: usize| (4..10).filter(|&x| pixel(&sheet, row, x) == [235; 3]).collect::<Vec<_>>();
    assert_eq!(
        (4..13).map(lit).collect::<Vec<_>>(),
        [vec![5, 6, 7], vec![6], vec![6], vec![6], vec![6], vec![6], vec![5, 6, 7], vec![], vec![]]
    );
}

#[test]
fn labels_are_never_cut_and_unknown_letters_are_boxes() {
    let row = |label: &str| Row { label: label.to_owned(), frames: &[], spectrograms: &[] };
    let sheet = draw(&[row("1001_dfa 7%"), row("é")], 16).unwrap();
    assert_eq!(sheet.width, 4 + 11 * 6);
    assert_eq!(draw(&[row("abc")], 16).unwrap(), draw(&[row("ABC")], 16).unwrap());
    // 5 + 5 + 2 * 5 pixels of a box.
    let lit = sheet.pixels.chunks_exact(3).skip(33 * sheet.width).filter(|p| **p == [235; 3]).count();
    assert_eq!(lit, 20);
}

#[test]
fn what_cannot_be_drawn_is_named() {
    says(&draw(&[], 64).unwrap_err(), &["sheet: there is no clip to draw"]);
    let row = Row { label: "a".repeat(40_000_000), frames: &[], spectrograms: &[] };
    says(&draw(std::slice::from_ref(&row), 8).unwrap_err(), &["cell = 8: must be an integer in [16, 1024]"]);
    says(&draw(&[row], 16).unwrap_err(), &["more than the allowed"]);
    says(&Spectrogram::new(2, 2, vec![0.0; 3]).unwrap_err(), &["spectrogram: 3 values for 2 x 2"]);
    let broken = [Frame { height: 1, width: 1, channels: 3, pixels: vec![] }];
    let row = Row { label: String::new(), frames: &broken, spectrograms: &[] };
    says(&draw(&[row], 16).unwrap_err(), &["0 values are not 1 x 1 pixels"]);
}
