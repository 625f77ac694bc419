use crate::support::says;
use candle_core::Tensor;
use mm_core::{Modal, Modalities, Modality};
use mm_data::{Dataset, Matrix, Standardizer};
use std::collections::BTreeMap;

const M: Modality = Modality::new(0);

fn set(values: &[f32], present: Option<Vec<bool>>) -> Dataset {
    let rows = values.len() / 2;
    let x = Matrix::new(rows, 2, values.to_vec(), present).unwrap();
    let labels = (0..rows as u32).map(|i| i % 2).collect();
    Dataset::new("toy", Modalities::new(["audio"]).unwrap(), 2, Modal::new(vec![x]), labels).unwrap()
}

#[test]
fn mean_and_spread_are_those_of_the_present_training_rows() {
    let values = [1.0, 0.1, 3.0, 0.1, 100.0, 50.0, 5.0, 0.1, 7.0, 9.0];
    let mut data = set(&values, Some(vec![true, true, false, true, true]));
    let s = Standardizer::fit(&data, &[3, 2, 1, 0]).unwrap();
    assert_eq!(s.mean(M)[0], 3.0);
    assert!((s.std(M)[0] - (8.0f64 / 3.0).sqrt()).abs() < 1e-12);
    assert_eq!(s.std(M)[1], 1.0, "a constant feature");
    s.apply(&mut data).unwrap();
    let x = data.inputs[M].matrix().unwrap();
    assert_eq!(x.row(1)[0], 0.0);
    assert_eq!(x.row(2), [0.0, 0.0], "a missing row stays zero");
    assert_eq!(x.row(4)[0], (4.0 / (8.0f64 / 3.0).sqrt()) as f32);
    assert!(x.row(0)[1].abs() < 1e-7);
}

#[test]
fn other_rows_change_no_bit_of_the_statistics() {
    let values: Vec<f32> = (0..40u8).map(|v| (f32::from(v) * 0.7).sin()).collect();
    let mut other = values.clone();
    other[20..].iter_mut().for_each(|v| *v = *v * 1e6 + 3.0);
    let train: Vec<usize> = (0..10).collect();
    let reversed: Vec<usize> = (0..10).rev().collect();
    let a = Standardizer::fit(&set(&values, None), &train).unwrap();
    let b = Standardizer::fit(&set(&other, None), &reversed).unwrap();
    let bits = |v: &[f64]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(a.mean(M)), bits(b.mean(M)));
    assert_eq!(bits(a.std(M)), bits(b.std(M)));
    let c = Standardizer::fit(&set(&other, None), &[0, 1, 15]).unwrap();
    assert_ne!(bits(a.mean(M)), bits(c.mean(M)));
}

#[test]
fn it_survives_the_trip_through_tensors() {
    let s = Standardizer::fit(&set(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0], None), &[0, 1, 2]).unwrap();
    let mut tensors = s.to_tensors().unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["mean_audio", "std_audio"]);
    assert_eq!(Standardizer::from_tensors(s.modalities(), &tensors).unwrap(), s);
    let zero = Tensor::new(&[0f64, 1.0], &candle_core::Device::Cpu).unwrap();
    tensors.insert("std_audio".to_owned(), zero);
    let error = Standardizer::from_tensors(s.modalities(), &tensors).unwrap_err();
    says(&error, &["`std_audio`", "above 0"]);
    let error = Standardizer::from_tensors(s.modalities(), &BTreeMap::new()).unwrap_err();
    says(&error, &["no tensor `mean_audio`"]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let data = set(&[1.0, 2.0, 3.0, 4.0], Some(vec![true, false]));
    says(&Standardizer::fit(&data, &[1]).unwrap_err(), &["`audio` is missing in every training row"]);
    says(&Standardizer::fit(&data, &[7]).unwrap_err(), &["row 7"]);
    let s = Standardizer::fit(&set(&[1e-30, 1.0, 2e-30, 2.0], None), &[0, 1]).unwrap();
    let mut far = set(&[1e30, 1.0, 2.0, 2.0], None);
    says(&s.apply(&mut far).unwrap_err(), &["row 0", "`audio`", "column 0", "too far"]);
    let mut narrow = Modal::new(vec![Matrix::new(1, 1, vec![0.0], None).unwrap()]);
    says(&s.apply_inputs("new.csv", &mut narrow).unwrap_err(), &["new.csv", "1 features", "of 2"]);
    let mut renamed = set(&[1.0, 2.0, 3.0, 4.0], None);
    renamed.modalities = Modalities::new(["video"]).unwrap();
    says(&s.apply(&mut renamed).unwrap_err(), &["video", "audio", "same order"]);
}
