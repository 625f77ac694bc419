//! `.npy` files of NumPy, and files that lie.

use crate::image::golden;
use crate::support::says;
use mm_data::DataError;
use mm_data::npy::{self, Values};
use proptest::prelude::*;

fn read(bytes: &[u8]) -> Result<npy::Array, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    std::fs::write(&path, bytes).unwrap();
    npy::read(&path)
}

/// A file of version 1 with this header.
fn with_header(header: &str, data: &[u8]) -> Result<npy::Array, DataError> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    read(&bytes)
}

#[test]
fn every_type_order_and_version_of_numpy() {
    let golden = golden(&["npy."]);
    let names: Vec<String> = golden
        .keys_with("npy.")
        .filter_map(|key| key.strip_prefix("npy.")?.strip_suffix(".out"))
        .map(str::to_owned)
        .collect();
    assert_eq!(names.len(), 26);
    for name in names {
        let key = format!("npy.{name}.out");
        let bytes: Vec<u8> =
            golden.values(&format!("npy.{name}.bytes")).into_iter().map(|v| v as u8).collect();
        let array = read(&bytes).unwrap();
        assert_eq!(array.shape, golden.shape(&key), "{name}");
        assert_eq!(array.values.len(), array.shape.iter().product::<usize>(), "{name}");
        let expected = golden.values(&key);
        let plain = name.strip_prefix("big_").or(name.strip_prefix("fortran_")).unwrap_or(&name);
        let (kind, values) = match array.values.clone() {
            Values::U8(v) => ("bytes", v.into_iter().map(f64::from).collect::<Vec<_>>()),
            Values::I64(v) => ("integers", v.into_iter().map(|v| v as f64).collect()),
            Values::F32(v) => ("floats", v.into_iter().map(f64::from).collect()),
            Values::F64(v) => ("doubles", v),
        };
        let wanted = match plain {
            "u1" | "flags" => "bytes",
            "f8" | "row" => "doubles",
            "f2" | "f4" | "scalar" | "empty" => "floats",
            _ => "integers",
        };
        assert_eq!((kind, &values), (wanted, &expected), "{name}");
        let narrow: Vec<f32> = expected.iter().map(|&v| v as f32).collect();
        assert_eq!(array.values.clone().into_f32(), narrow, "{name}");
        let whole = array.values.into_i64();
        assert_eq!(whole.is_some(), matches!(wanted, "bytes" | "integers"), "{name}");
    }
    golden.finish();
}

#[test]
fn headers_may_be_written_in_other_ways() {
    let array = with_header(r#"{"shape": (2L,), "fortran_order": False, "descr": "|u1"}"#, &[7, 8]).unwrap();
    assert_eq!((array.shape, array.values), (vec![2], Values::U8(vec![7, 8])));
}

#[test]
fn what_is_no_array_of_numbers_is_named() {
    let of = |descr: &str| {
        with_header(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,)}}"), &[0; 8])
    };
    says(
        &of("|O").unwrap_err(),
        &["a.npy: it holds Python objects, which are pickles", "save an array of numbers"],
    );
    says(&of("<U7").unwrap_err(), &["it holds texts (type `<U7`)"]);
    says(&of("<c8").unwrap_err(), &["complex numbers"]);
    says(&of("<f3").unwrap_err(), &["a type that is not known (type `<f3`)"]);
    says(&of("").unwrap_err(), &["a type that is not known"]);
    let records = "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}";
    says(&with_header(records, &[0; 4]).unwrap_err(), &["the array has records"]);
    says(&read(b"\x80\x04\x95").unwrap_err(), &["it is a pickle", "runs code"]);
    says(&read(b"PK\x03\x04....").unwrap_err(), &["it is a zip archive (.npz)"]);
    says(&read(b"version https://git-lfs.example/spec/v1").unwrap_err(), &["git-LFS pointer"]);
    says(&read(b"\x93NUMPY\x09\x00").unwrap_err(), &["version 9"]);
    says(&read(b"hello").unwrap_err(), &["does not start as a .npy file"]);
    says(&npy::read("none.npy".as_ref()).unwrap_err(), &["cannot read none.npy"]);
}

#[test]
fn headers_that_lie_are_refused_before_anything_is_allocated() {
    let shape = |shape: &str| {
        with_header(&format!("{{'descr': '<f8', 'fortran_order': True, 'shape': {shape}}}"), &[0; 8])
    };
    assert_eq!(shape("(1,)").unwrap().values, Values::F64(vec![0.0]));
    says(&shape("(2,)").unwrap_err(), &["shape [2] of `<f8`, but 8 bytes follow", "truncated"]);
    says(&shape("(0,)").unwrap_err(), &["but 8 bytes follow"]);
    for huge in [
        "(1152921504606846976,)",
        "(9223372036854775807, 9223372036854775807)",
        "(4294967296, 4294967296, 2)",
    ] {
        says(&shape(huge).unwrap_err(), &["but 8 bytes follow"]);
    }
    says(&shape("(99999999999999999999,)").unwrap_err(), &["is not the length of an axis"]);
    says(&shape("(-1,)").unwrap_err(), &["is not the length of an axis"]);
    says(&shape("(1").unwrap_err(), &["`)` expected"]);
    says(&shape(&format!("({})", "1,".repeat(99))).unwrap_err(), &["more than 64 axes"]);
    says(&shape("(1,)} x {").unwrap_err(), &["more after the dictionary"]);
    says(&with_header("{'descr': '<f8', 'shape': (1,)}", &[]).unwrap_err(), &["'fortran_order' is missing"]);
    says(
        &with_header("{'descr': '<f8', 'descr': '<f8'}", &[]).unwrap_err(),
        &["'descr' is not known or appears twice"],
    );
    says(&with_header("{'descr: 3}", &[]).unwrap_err(), &["a text does not end"]);
    says(&with_header("", &[]).unwrap_err(), &["`{` expected"]);
    says(&read(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{").unwrap_err(), &["claims 4294967295 bytes", "65536"]);
    let whole = {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}";
        let mut bytes = b"\x93NUMPY\x02\x00".to_vec();
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend([0; 24]);
        bytes
    };
    for length in 0..whole.len() {
        says(&read(&whole[..length]).unwrap_err(), &["a.npy", ";"]);
    }
    assert_eq!(read(&whole).unwrap().shape, [2, 3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_header_is_an_array_or_an_error(
        text in "(\\{|\\}|'descr'|'fortran_order'|'shape'|: |, |'<f4'|'|u1'|True|False|\\(|\\)|0|3|L|'|é){0,24}",
    ) {
        if let Ok(array) = with_header(&text, &[0; 12]) {
            prop_assert_eq!(array.values.len(), array.shape.iter().product::<usize>());
        }
    }
}
