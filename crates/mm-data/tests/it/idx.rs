//! IDX files, plain and packed.

use crate::support::says;
use flate2::{Compression, write::GzEncoder};
use mm_data::DataError;
use mm_data::idx;
use mm_data::npy::{Array, Values};
use std::io::Write;

fn read(bytes: &[u8]) -> Result<Array, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a-idx");
    std::fs::write(&path, bytes).unwrap();
    idx::read(&path)
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

fn file(kind: u8, axes: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, axes.len() as u8];
    bytes.extend(axes.iter().flat_map(|axis| axis.to_be_bytes()));
    bytes.extend(data);
    bytes
}

#[test]
fn every_type_plain_and_packed() {
    let cases = [
        (
            file(0x08, &[2, 1, 3], &[0, 1, 2, 253, 254, 255]),
            vec![2, 1, 3],
            Values::U8(vec![0, 1, 2, 253, 254, 255]),
        ),
        (file(0x09, &[2], &[1, 0xff]), vec![2], Values::I64(vec![1, -1])),
        (file(0x0b, &[2], &[1, 0, 0xff, 0xfe]), vec![2], Values::I64(vec![256, -2])),
        (file(0x0c, &[1], &[0xff, 0xff, 0xff, 0x00]), vec![1], Values::I64(vec![-256])),
        (
            file(0x0d, &[1, 2], &[0x3f, 0x80, 0, 0, 0xc0, 0x20, 0, 0]),
            vec![1, 2],
            Values::F32(vec![1.0, -2.5]),
        ),
        (file(0x0e, &[1], &0.1f64.to_be_bytes()), vec![1], Values::F64(vec![0.1])),
        (file(0x08, &[0, 28], &[]), vec![0, 28], Values::U8(vec![])),
        (file(0x08, &[], &[9]), vec![], Values::U8(vec![9])),
    ];
    for (bytes, shape, values) in cases {
        let expected = Array { shape, values };
        assert_eq!(read(&bytes).unwrap(), expected);
        assert_eq!(read(&packed(&bytes)).unwrap(), expected);
    }
    // Members of gzip one after the other are one file.
    let whole = file(0x08, &[4], &[1, 2, 3, 4]);
    let parts = [packed(&whole[..5]), packed(&whole[5..])].concat();
    assert_eq!(read(&parts).unwrap().values, Values::U8(vec![1, 2, 3, 4]));
}

#[test]
fn files_that_lie_are_refused() {
    let whole = file(0x08, &[2, 3], &[0; 6]);
    for length in 0..whole.len() {
        says(&read(&whole[..length]).unwrap_err(), &["a-idx", "truncated or damaged"]);
        says(&read(&packed(&whole[..length])).unwrap_err(), &["a-idx", "truncated or damaged"]);
    }
    let gz = packed(&whole);
    for length in 2..gz.len() {
        says(&read(&gz[..length]).unwrap_err(), &["a-idx", "truncated or damaged"]);
    }
    let mut wrong = gz;
    let sum = wrong.len() - 8;
    wrong[sum] ^= 1;
    says(&read(&wrong).unwrap_err(), &["cannot be unpacked"]);
    let longer = [whole, vec![0]].concat();
    says(&read(&longer).unwrap_err(), &["shape [2, 3] needs 6 bytes, but more follow"]);
    says(&read(&packed(&longer)).unwrap_err(), &["but more follow"]);
    says(&read(&file(0x0a, &[1], &[0])).unwrap_err(), &["unknown type 0x0a"]);
    says(&read(&file(0x08, &[1; 9], &[0])).unwrap_err(), &["9 axes"]);
    says(&read(b"\x89PNG....").unwrap_err(), &["does not start as an IDX file", "train-images-idx3-ubyte"]);
    says(&read(b"version https://git-lfs.example/spec/v1").unwrap_err(), &["git-LFS pointer"]);
}

#[test]
fn sizes_are_not_believed() {
    let huge = file(0x0e, &[u32::MAX; 8], &[0; 8]);
    says(&read(&huge).unwrap_err(), &["more than it can hold"]);
    says(&read(&packed(&huge)).unwrap_err(), &["more than it can hold"]);
    // More than deflate can make of these few bytes.
    says(&read(&packed(&file(0x08, &[1 << 28], &[0; 100]))).unwrap_err(), &["more than it can hold"]);
    // A megabyte of zeros in a kilobyte is what it can.
    let zeros = packed(&file(0x08, &[1 << 20], &vec![0; 1 << 20]));
    assert!(zeros.len() < 1200);
    assert_eq!(read(&zeros).unwrap().values.len(), 1 << 20);
}
