use crate::support::{labelled, says};
use candle_core::{DType, Device};
use mm_core::{Modal, Modalities, Modality, StepRng};
use mm_data::{DataError, Dataset, Loader, Matrix, Prefetch, Recipe};
use sha2::{Digest, Sha256};

fn plain(rows: usize) -> Dataset {
    let labels: Vec<u32> = (0..rows as u32).map(|i| i % 2).collect();
    labelled(&labels, &vec![0; rows])
}

#[test]
fn a_batch_size_of_zero_is_a_configuration_error() {
    let error = Loader::new(&plain(4), vec![0], 0).unwrap_err();
    assert!(matches!(&error, DataError::Config(e) if e.field == "batch_size"));
    says(&error, &["batch_size = 0", "at least 1"]);
    says(&Loader::new(&plain(4), vec![4], 2).unwrap_err(), &["row 4 does not exist", "4 rows"]);
}

#[test]
fn the_order_is_fixed_for_ever() {
    // A change here changes every training run that was ever published with a seed.
    let data = plain(100);
    let loader = Loader::new(&data, (0..100).collect(), 16).unwrap();
    let order = loader.epoch(Some(StepRng::new(7).stream("order").epoch(3))).concat();
    let mut hasher = Sha256::new();
    for row in &order {
        hasher.update((*row as u64).to_le_bytes());
    }
    let digest: Vec<String> = hasher.finalize()[..8].iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest.concat(), "1cdd924e98f2562c", "{order:?}");
}

#[test]
fn the_order_depends_on_the_key_and_the_set_of_rows_only() {
    let (data, larger) = (plain(50), plain(80));
    let rows: Vec<usize> = (0..40).collect();
    let key = StepRng::new(1).stream("order");
    let order = |data: &Dataset, rows: Vec<usize>, size, key| {
        Loader::new(data, rows, size).unwrap().epoch(Some(key)).concat()
    };
    let first = order(&data, rows.clone(), 8, key.epoch(1));
    assert_eq!(first, order(&larger, rows.iter().rev().copied().collect(), 13, key.epoch(1)));
    assert_ne!(first, order(&data, rows.clone(), 8, key.epoch(2)));
    let mut sorted = first;
    sorted.sort_unstable();
    assert_eq!(sorted, rows);
}

#[test]
fn the_last_batch_is_kept_or_merged() {
    let data = plain(20);
    let sizes = |rows: usize, size: usize, merge: bool| {
        let loader = Loader::new(&data, (0..rows).collect(), size).unwrap().merge_single(merge);
        let sizes: Vec<usize> = loader.epoch(None).iter().map(Vec::len).collect();
        assert_eq!(sizes.len(), loader.batches());
        sizes
    };
    assert_eq!(sizes(10, 4, false), [4, 4, 2]);
    assert_eq!(sizes(10, 4, true), [4, 4, 2]);
    assert_eq!(sizes(9, 4, false), [4, 4, 1]);
    assert_eq!(sizes(9, 4, true), [4, 5]);
    assert_eq!(sizes(1, 4, true), [1]);
    assert_eq!(sizes(3, 1, true), [1, 1, 1]);
    assert_eq!(sizes(8, 4, true), [4, 4]);
    assert_eq!(sizes(0, 4, true), [0usize; 0]);
    let order = Loader::new(&data, vec![5, 3, 9], 2).unwrap().epoch(None);
    assert_eq!(order, [vec![5, 3], vec![9]]);
}

#[test]
fn a_batch_holds_its_rows() {
    let audio = Matrix::new(4, 2, vec![0., 1., 2., 3., 4., 5., 6., 7.], None).unwrap();
    let video = Matrix::new(4, 1, vec![8., 9., 10., 11.], Some(vec![true, false, true, true])).unwrap();
    let names = Modalities::new(["audio", "video"]).unwrap();
    let data = Dataset::new("toy", names, 3, Modal::new(vec![audio, video]), vec![0, 1, 2, 0]).unwrap();
    let loader = Loader::new(&data, vec![0, 1, 2, 3], 2).unwrap();
    let (first, second) = (Modality::new(0), Modality::new(1));
    let batch = loader.batch(&[3, 1], DType::F64, &Device::Cpu).unwrap();
    assert_eq!(batch.inputs[first].to_vec2::<f64>().unwrap(), [[6., 7.], [2., 3.]]);
    assert_eq!(batch.inputs[second].to_vec2::<f64>().unwrap(), [[11.], [0.]]);
    assert_eq!((&batch.labels[..], &batch.ids[..]), (&[0, 1][..], &[3, 1][..]));
    assert!(batch.present[first].is_none());
    let present = batch.present[second].as_ref().unwrap();
    assert_eq!(present.rows(), [true, false]);
    assert_eq!(present.mask().dtype(), DType::F64);
    let batch = loader.batch(&[2, 0], DType::F32, &Device::Cpu).unwrap();
    assert!(batch.present[second].is_none());
    says(&loader.batch(&[], DType::F32, &Device::Cpu).unwrap_err(), &["at least one row"]);
    says(&loader.batch(&[9], DType::F32, &Device::Cpu).unwrap_err(), &["row 9 does not exist"]);
}

#[test]
fn workers_give_the_batches_that_the_loader_gives() {
    let data = plain(50);
    let loader = Loader::new(&data, (0..50).collect(), 7).unwrap();
    let order = loader.epoch(Some(StepRng::new(2)));
    let key = StepRng::new(3).stream("augment");
    let recipe = Recipe { key: Some(key), dtype: DType::F32, device: &Device::Cpu };
    for workers in [0, 1, 3] {
        let count = loader.with_batches(&order, recipe, Prefetch { workers, ahead: 2 }, |batches| {
            let mut count = 0;
            for (rows, batch) in order.iter().zip(batches) {
                let (batch, alone) =
                    (batch.unwrap(), loader.training_batch(rows, key, DType::F32, &Device::Cpu));
                let alone = alone.unwrap();
                assert_eq!((&batch.ids, &batch.labels), (&alone.ids, &alone.labels));
                for (m, x) in batch.inputs.iter() {
                    assert_eq!(x.to_vec2::<f32>().unwrap(), alone.inputs[m].to_vec2::<f32>().unwrap());
                }
                count += 1;
            }
            count
        });
        assert_eq!(count, 8);
    }
    let refused =
        loader.with_batches(&[vec![0], vec![99]], recipe, Prefetch { workers: 1, ahead: 2 }, |batches| {
            assert!(batches.next().unwrap().is_ok());
            let error = batches.next().unwrap().unwrap_err();
            assert!(batches.next().is_none());
            error
        });
    says(&refused, &["row 99 does not exist"]);
}
