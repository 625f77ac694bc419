//! Safetensors files that lie. Every one must be refused with a message, none may panic or allocate what it claims.

use crate::support::{entries, says, write};
use mm_data::{CsvConfig, DataConfig, DataError, FeaturesConfig};
use proptest::prelude::*;
use std::path::Path;

fn open(path: &Path) -> DataError {
    let config = DataConfig::Features(FeaturesConfig::new(path));
    let peeked = config.peek().map(|_| ()).unwrap_err().to_string();
    let error = config.load(0).unwrap_err();
    assert_eq!(peeked, error.to_string());
    error
}

fn open_bytes(bytes: &[u8]) -> DataError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let error = open(&path);
    says(&error, &["bad.safetensors"]);
    error
}

fn with_header(header: &[u8], data: usize) -> DataError {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0);
    open_bytes(&bytes)
}

#[test]
fn a_file_that_is_not_there_or_not_a_file() {
    let folder = tempfile::tempdir().unwrap();
    says(
        &open(&folder.path().join("none.safetensors")),
        &["cannot read", "none.safetensors", "check the path"],
    );
    says(&open(folder.path()), &["not a regular file"]);
    let error = DataConfig::Csv(CsvConfig::new(folder.path())).load(0).unwrap_err();
    says(&error, &["not a regular file"]);
    assert!(matches!(error, DataError::Invalid { .. } | DataError::Io { .. }));
}

#[test]
fn truncation_at_every_length_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(write(folder.path(), &entries(), None)).unwrap();
    for length in 0..whole.len() {
        let rule = match length {
            0..8 => "too few",
            l if l < 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize => "the header claims",
            _ => "truncated",
        };
        says(&open_bytes(&whole[..length]), &[rule]);
    }
    let mut longer = whole;
    longer.extend([0; 4]);
    says(&open_bytes(&longer), &["announces", "make it again"]);
}

#[test]
fn the_header_length_is_not_believed() {
    says(&open_bytes(&u64::MAX.to_le_bytes()), &["claims 18446744073709551615 bytes", "100000000"]);
    says(&open_bytes(&100_000_001u64.to_le_bytes()), &["more than the allowed"]);
    says(&open_bytes(&99_999_999u64.to_le_bytes()), &["the file has 8 in all"]);
}

#[test]
fn the_header_must_be_a_table_of_tensors() {
    says(&with_header(b"\xff\xfe{}", 0), &["not UTF-8"]);
    says(&with_header(b"", 0), &["not valid"]);
    says(&with_header(b"[1]", 0), &["not valid", "map from names to tensors"]);
    says(&with_header(b"{\"a\":", 0), &["not valid"]);
    says(&with_header(&vec![b'['; 100_000], 0), &["not valid"]);
    says(&with_header(b"{}", 0), &["no modality"]);
    let dtype = br#"{"x_a":{"dtype":"F99","shape":[1,1],"data_offsets":[0,4]}}"#;
    says(&with_header(dtype, 4), &["not valid", "F99"]);
    let negative = br#"{"x_a":{"dtype":"F32","shape":[-1,1],"data_offsets":[0,4]}}"#;
    says(&with_header(negative, 4), &["not valid"]);
}

#[test]
fn shapes_and_offsets_must_agree() {
    let one = |shape: &str, offsets: &str, data: usize| {
        let header = format!(r#"{{"x_a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        with_header(header.as_bytes(), data)
    };
    says(&one("[4,4]", "[0,4]", 4), &["contradicts itself", "make it again"]);
    says(&one("[9223372036854775807,9]", "[0,4]", 4), &["contradicts itself", "overflow"]);
    says(&one("[4294967296,4294967296]", "[0,0]", 0), &["contradicts itself", "overflow"]);
    says(&one("[1,1]", "[4,0]", 4), &["contradicts itself", "x_a"]);
    says(&one("[1,1]", "[4,8]", 8), &["contradicts itself", "x_a"]);
    says(&one("[1,1]", "[0,4]", 0), &["announces 4 bytes", "0 follow", "truncated"]);
    says(&one("[1000000,1000000]", "[0,4000000000000]", 4), &["truncated"]);
    let overlap = br#"{"x_a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"x_b":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}"#;
    says(&with_header(overlap, 8), &["contradicts itself", "x_b"]);
}

#[test]
fn a_name_that_appears_twice_is_refused() {
    let twice = br#"{"x_a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"x_a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;
    says(&with_header(twice, 4), &["`x_a` appears twice"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn damaged_files_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &entries(), None);
        let mut bytes = std::fs::read(&path).unwrap();
        for (position, value) in damage {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        std::fs::write(&path, bytes).unwrap();
        let config = DataConfig::Features(FeaturesConfig::new(&path));
        if config.load(0).is_ok() {
            prop_assert!(config.peek().is_ok());
        }
    }

    #[test]
    fn any_text_is_a_table_or_an_error(text in "(y|a:1|b_2|split|,|\n|\r|\"|0|1|train|test|nan|\u{feff}|é){0,60}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any.csv");
        std::fs::write(&path, text).unwrap();
        let config = DataConfig::Csv(CsvConfig::new(&path));
        if config.load(0).is_ok() {
            prop_assert!(config.peek().is_ok());
        }
    }
}
