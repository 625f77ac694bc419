use crate::support::{labelled, matrix, says, vectors};
use mm_core::{Modal, Modalities};
use mm_data::{Dataset, Matrix};

fn set(labels: Vec<u32>, classes: usize, values: Vec<f32>) -> Result<Dataset, mm_data::DataError> {
    let x = Matrix { rows: labels.len(), dim: 2, values, present: None };
    Dataset::new("toy", Modalities::new(["audio"]).unwrap(), classes, Modal::new(vec![x]), labels)
}

#[test]
fn an_empty_set_is_refused() {
    says(&set(vec![], 2, vec![]).unwrap_err(), &["toy", "empty", "at least one row"]);
}

#[test]
fn one_class_is_refused() {
    says(&set(vec![0, 0], 1, vec![0.0; 4]).unwrap_err(), &["toy", "1 class only", "at least 2"]);
}

#[test]
fn a_label_out_of_range_is_refused() {
    let error = set(vec![0, 3], 3, vec![0.0; 4]).unwrap_err();
    says(&error, &["toy", "row 1", "label 3", "3 classes", "0 to 2"]);
}

#[test]
fn single_nan_and_infinity_are_refused_and_a_row_of_nan_is_missing() {
    let nan = f32::NAN;
    let error = set(vec![0, 1], 2, vec![0.0, 1.0, 2.0, nan]).unwrap_err();
    says(&error, &["toy", "row 1", "`audio`", "column 1", "NaN", "fill it in"]);
    let error = set(vec![0, 1], 2, vec![f32::INFINITY, 1.0, 2.0, 3.0]).unwrap_err();
    says(&error, &["toy", "row 0", "`audio`", "column 0", "inf", "repair"]);
    let data = set(vec![0, 1], 2, vec![nan, nan, 2.0, 3.0]).unwrap();
    let x = matrix(&data, 0);
    assert_eq!(x.present, Some(vec![false, true]));
    assert_eq!(x.values, [0.0, 0.0, 2.0, 3.0]);
    assert_eq!(x.present_count(), 1);
}

#[test]
fn flags_hide_values_and_must_not_affirm_missing_ones() {
    let nan = f32::NAN;
    let x = Matrix::new(2, 1, vec![nan, 7.0], Some(vec![false, false])).unwrap();
    assert_eq!(x.values, [0.0, 0.0]);
    let error = Matrix::new(2, 1, vec![1.0, nan], Some(vec![true, true])).unwrap_err();
    says(&error, &["row 1", "presence flag is 1"]);
}

#[test]
fn sizes_must_agree() {
    says(&set(vec![0, 1], 2, vec![0.0; 5]).unwrap_err(), &["`audio`", "5 values for 2 x 2"]);
    says(&Matrix::new(2, 0, vec![], None).unwrap_err(), &["no features"]);
    says(&Matrix::new(usize::MAX, 3, vec![], None).unwrap_err(), &["0 values"]);
    let data = labelled(&[0, 1], &[5, 6]);
    says(&data.clone().with_column("fold", vec![1]).unwrap_err(), &["`fold`", "1 values for 2 rows"]);
    says(
        &data.with_index("train_index", vec![0, 2]).unwrap_err(),
        &["toy", "`train_index`", "row 2", "2 rows", "0 to 1"],
    );
}

#[test]
fn modalities_are_selected_in_order_and_unknown_ones_suggested() {
    let x = |v: f32| Matrix::new(2, 1, vec![v; 2], None).unwrap();
    let names = Modalities::new(["audio", "video", "text"]).unwrap();
    let data = Dataset::new("toy", names, 2, Modal::new(vec![x(1.0), x(2.0), x(3.0)]), vec![0, 1]).unwrap();
    let two = data.select_modalities(&["text".to_owned(), "audio".to_owned()]).unwrap();
    assert_eq!(two.modalities.names(), ["text", "audio"]);
    assert_eq!(matrix(&two, 0).values, [3.0, 3.0]);
    assert_eq!(two.shapes(), vectors(&[("text", 1), ("audio", 1)]));
    let error = data.select_modalities(&["vidio".to_owned()]).unwrap_err();
    says(&error, &["data.modalities", "\"vidio\"", "audio, video, text", "did you mean `video`?"]);
    says(&data.select_modalities(&[]).unwrap_err(), &["data.modalities"]);
}

#[test]
fn rows_are_found_by_column() {
    let data = labelled(&[0, 1, 0], &[7, 8, 7]);
    assert_eq!(data.rows_with("group", |g| g == 7).unwrap(), [0, 2]);
    says(&data.rows_with("groop", |_| true).unwrap_err(), &["did you mean `group`?"]);
    assert_eq!(data.class_counts(&[0, 2, 1]), [2, 1]);
}

#[test]
fn the_hash_is_of_the_content() {
    let (a, b) = (labelled(&[0, 1, 0], &[1, 1, 1]), labelled(&[0, 1, 1], &[1, 1, 1]));
    assert_eq!(a.hash, labelled(&[0, 1, 0], &[1, 1, 1]).hash);
    assert_ne!(a.hash, b.hash);
    assert_eq!(a.hash.len(), 64);
}
