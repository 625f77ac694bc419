use crate::support::{labelled, says};
use mm_core::{Modal, Modalities};
use mm_data::{Dataset, Matrix, SplitConfig, Splits};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn by_name() -> SplitConfig {
    SplitConfig { train: Some("a".to_owned()), test: Some("b_index".to_owned()), ..SplitConfig::default() }
}

fn share(val_fraction: f64) -> SplitConfig {
    SplitConfig { test_fraction: Some(0.25), val_fraction: Some(val_fraction), ..SplitConfig::default() }
}

fn named(train: &[usize], test: &[usize]) -> Dataset {
    labelled(&[0, 1, 0, 1, 0, 1], &[0, 0, 1, 1, 2, 2])
        .with_index("a_index", train.to_vec())
        .unwrap()
        .with_index("b_index", test.to_vec())
        .unwrap()
}

#[test]
fn lists_are_found_by_name_with_or_without_suffix() {
    let splits = named(&[0, 1, 2], &[4, 5]).split(&by_name()).unwrap();
    assert_eq!(splits, Splits { train: vec![0, 1, 2], val: vec![], test: vec![4, 5] });
    let config = SplitConfig { test: Some("bb_index".to_owned()), ..by_name() };
    let error = named(&[0, 1], &[4]).split(&config).unwrap_err();
    says(&error, &["data.split.test", "bb_index", "a_index, b_index", "did you mean `b_index`?"]);
}

#[test]
fn parts_that_overlap_repeat_or_are_empty() {
    let fault = |train: &[usize], test: &[usize]| named(train, test).split(&by_name()).unwrap_err();
    says(&fault(&[0, 1, 4], &[4, 5]), &["split of toy", "row 4 is in both train and test", "disjoint"]);
    says(&fault(&[0, 1, 0], &[4]), &["row 0 is in train twice", "every row once"]);
    says(&fault(&[0, 1], &[]), &["the test part is empty"]);
    says(&fault(&[], &[1]), &["the train part is empty"]);
    says(&fault(&[0, 2, 4], &[1]), &["the training rows have 1 class only", "at least 2"]);
    let outside = Splits { train: vec![0, 1], val: vec![], test: vec![6] };
    says(&outside.check(&named(&[0], &[1])).unwrap_err(), &["test names row 6", "6 rows"]);
    let mut broken = named(&[0, 1], &[2]);
    broken.indices.insert("a_index".to_owned(), vec![0, usize::MAX]);
    let config = SplitConfig { val_fraction: Some(0.5), ..by_name() };
    says(&broken.split(&config).unwrap_err(), &["train names row", "6 rows"]);
}

#[test]
fn a_modality_missing_everywhere_in_training_is_named() {
    let full = Matrix::new(4, 1, vec![1.0; 4], None).unwrap();
    let holes = Matrix::new(4, 1, vec![1.0; 4], Some(vec![false, false, true, true])).unwrap();
    let names = Modalities::new(["audio", "video"]).unwrap();
    let data = Dataset::new("toy", names, 2, Modal::new(vec![full, holes]), vec![0, 1, 0, 1]).unwrap();
    let splits = Splits { train: vec![0, 1], val: vec![], test: vec![2, 3] };
    says(&splits.check(&data).unwrap_err(), &["`video` is missing in every training row", "data.modalities"]);
}

#[test]
fn folds() {
    let data = named(&[0], &[1]);
    let config = SplitConfig {
        fold_column: Some("group".to_owned()),
        test_fold: Some(0),
        val_fold: Some(1),
        ..SplitConfig::default()
    };
    let splits = data.split(&config).unwrap();
    assert_eq!(splits, Splits { train: vec![4, 5], val: vec![2, 3], test: vec![0, 1] });
    let error = data.split(&SplitConfig { test_fold: Some(9), ..config.clone() }).unwrap_err();
    says(&error, &["data.split.test_fold = 9", "`group` has 0, 1, 2"]);
    let error = data.split(&SplitConfig { fold_column: Some("grup".to_owned()), ..config }).unwrap_err();
    says(&error, &["data.split.fold_column", "did you mean `group`?"]);
}

#[test]
fn settings_that_exclude_each_other() {
    let fault = |json: &str| serde_json::from_str::<SplitConfig>(json).unwrap().check().unwrap_err();
    says(&fault(r#"{"train":"a"}"#), &["split.test = (not set)", "go together"]);
    says(&fault(r#"{"fold_column":"f"}"#), &["split.test_fold", "which fold"]);
    says(&fault(r#"{"test_fold":1}"#), &["split.fold_column"]);
    says(&fault(r#"{"fold_column":"f","test_fold":1,"val_fold":1}"#), &["split.val_fold = 1", "differ"]);
    says(&fault(r#"{"train":"a","test":"b","fold_column":"f","test_fold":1}"#), &["not both"]);
    says(&fault(r#"{"val":"v","val_fraction":0.1}"#), &["split.val_fraction = 0.1", "not two"]);
    says(&fault(r#"{"val_group":"g"}"#), &["split.val_group = \"g\"", "val_fraction"]);
    says(&fault(r#"{"val_fraction":0}"#), &["split.val_fraction = 0", "(0, 0.9]"]);
    says(&fault(r#"{"test_fraction":1.5}"#), &["split.test_fraction = 1.5"]);
    let unknown = serde_json::from_str::<SplitConfig>(r#"{"val_share":0.1}"#).unwrap_err();
    says(&unknown, &["unknown field `val_share`"]);
}

#[test]
fn a_stratified_share_keeps_the_class_shares() {
    let labels: Vec<u32> = (0..1000).map(|i| u32::from(i % 10 == 0)).collect();
    let splits = labelled(&labels, &vec![0; 1000]).split(&share(0.2)).unwrap();
    let ones = |rows: &[usize]| rows.iter().filter(|&&r| labels[r] == 1).count();
    assert_eq!((splits.test.len(), ones(&splits.test)), (250, 25));
    assert_eq!((splits.val.len(), ones(&splits.val)), (150, 15));
    assert_eq!((splits.train.len(), ones(&splits.train)), (600, 60));
}

#[test]
fn the_seed_decides_and_only_the_seed() {
    let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
    let data = labelled(&labels, &[0; 60]);
    let with = |seed| data.split(&SplitConfig { seed: Some(seed), ..share(0.2) }).unwrap();
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
    assert_eq!(data.split(&share(0.2)).unwrap(), with(0));
}

#[test]
fn overlap_of_groups_is_a_warning() {
    let splits = named(&[0, 1, 2], &[3, 5]).split(&by_name()).unwrap();
    let data = named(&[0], &[1]);
    let warnings = data.group_overlap(&splits, &["group"]).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("1 values of `group` are in both train and test"), "{warnings:?}");
    assert_eq!(data.warnings(&splits), warnings);
    says(&data.group_overlap(&splits, &["gruop"]).unwrap_err(), &["did you mean `group`?"]);
    let data = labelled(&[0, 1, 2, 0], &[0, 1, 2, 3]);
    let splits = Splits { train: vec![0, 1], val: vec![], test: vec![2, 3] };
    assert_eq!(data.warnings(&splits), ["test has rows of classes that no training row has: 2"]);
}

#[test]
fn an_impossible_validation_part_is_an_error() {
    let config = SplitConfig { val_fraction: Some(0.5), val_group: Some("group".to_owned()), ..by_name() };
    let error = named(&[0, 1], &[4, 5]).split(&config).unwrap_err();
    says(&error, &["the val part is empty", "more groups"]);
}

proptest! {
    #[test]
    fn shares_are_disjoint_and_complete(
        labels in proptest::collection::vec(0u32..4, 12..200), fraction in 0.05f64..0.9, seed in 0u64..1000,
    ) {
        let data = labelled(&labels, &vec![0; labels.len()]);
        let config = SplitConfig { seed: Some(seed), ..share(fraction) };
        if let Ok(splits) = data.split(&config) {
            let mut all = [&splits.train[..], &splits.val, &splits.test].concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
            for class in 0..4u32 {
                let count = |rows: &[usize]| rows.iter().filter(|&&r| labels[r] == class).count();
                let kept = count(&splits.train) + count(&splits.val);
                if kept > 0 {
                    prop_assert!(count(&splits.train) >= 1);
                    prop_assert!((count(&splits.val) as f64 - fraction * kept as f64).abs() <= 1.0);
                }
            }
        }
    }

    #[test]
    fn groups_are_never_shared(
        groups in proptest::collection::vec(0i64..15, 30..200), fraction in 0.05f64..0.9, seed in 0u64..1000,
    ) {
        let labels: Vec<u32> = (0..groups.len() as u32).map(|i| i % 2).collect();
        let data = labelled(&labels, &groups);
        let config = SplitConfig {
            seed: Some(seed),
            test_group: Some("group".to_owned()),
            val_group: Some("group".to_owned()),
            ..share(fraction)
        };
        if let Ok(splits) = data.split(&config) {
            let set = |rows: &[usize]| rows.iter().map(|&r| groups[r]).collect::<BTreeSet<i64>>();
            let (train, val, test) = (set(&splits.train), set(&splits.val), set(&splits.test));
            prop_assert!(train.is_disjoint(&val) && train.is_disjoint(&test) && val.is_disjoint(&test));
            prop_assert!(!val.is_empty());
            prop_assert!(data.warnings(&splits).is_empty());
        }
    }
}
