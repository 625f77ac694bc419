//! Safetensors files that lie. Each is refused with a message; none panics or is given the memory that it claims.

use crate::weights::{file, says, with_header};
use mm_encoders::weights::{Matching, Weights, WeightsError};
use proptest::prelude::*;

fn open(bytes: &[u8]) -> Result<Weights, WeightsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Weights::from_file(&path)
}

fn refused(bytes: &[u8], words: &[&str]) {
    let error = open(bytes).unwrap_err();
    says(&error, &["bad.safetensors"]);
    says(&error, words);
    assert!(error.to_string().len() < 2000, "{error}");
}

fn entry(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

fn one(dtype: &str, shape: &str, offsets: &str, data: usize, words: &[&str]) {
    let header = format!(r#"{{"w":{}}}"#, entry(dtype, shape, offsets));
    refused(&with_header(&header, &vec![0; data]), words);
}

#[test]
fn truncation_at_every_length_is_noticed() {
    let whole = file(&[("a", &[2, 3], &[0.0; 6]), ("b", &[1], &[0.0])]);
    assert!(open(&whole).is_ok());
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in 0..whole.len() {
        let rule = match length {
            0..8 => "too few",
            l if l < header => "the header claims",
            _ => "the header announces 28 bytes of tensors",
        };
        refused(&whole[..length], &[rule, "truncated"]);
    }
    refused(&[whole, vec![0; 4]].concat(), &["announces 28 bytes of tensors, but 32 follow", "damaged"]);
}

#[test]
fn the_length_of_the_header_is_not_believed() {
    refused(&u64::MAX.to_le_bytes(), &["claims 18446744073709551615 bytes", "allowed 100000000"]);
    refused(&100_000_001u64.to_le_bytes(), &["more than the allowed"]);
    refused(&99_999_999u64.to_le_bytes(), &["claims 99999999 bytes, but the file has 8 in all"]);
}

#[test]
fn the_header_must_be_a_table_of_tensors() {
    let mut bad = with_header("{} ", b"");
    bad[10] = 0xff;
    refused(&bad, &["not UTF-8 at byte 10"]);
    refused(&with_header("", b""), &["not valid"]);
    refused(&with_header("[1]", b""), &["not valid", "map from names to tensors"]);
    refused(&with_header("{\"a\":", b""), &["not valid"]);
    refused(&with_header(&"[".repeat(100_000), b""), &["not valid"]);
    refused(&with_header(&format!("{{\"a\":{}", "[".repeat(100_000)), b""), &["not valid"]);
    refused(&with_header(r#"{"w":{"dtype":"F32","shape":[1]}}"#, &[0; 4]), &["`w`", "data_offsets"]);
    refused(
        &with_header(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}"#, &[0; 4]),
        &["`w`", "`x`"],
    );
    refused(&with_header(r#"{"__metadata__":{"a":1}}"#, b""), &["`__metadata__`"]);
    // No tensors at all is a file, if a useless one.
    assert_eq!(open(&with_header("{}", b"")).unwrap().names().count(), 0);
}

#[test]
fn names_stand_once_and_are_short() {
    let w = entry("F32", "[1]", "[0,4]");
    refused(&with_header(&format!(r#"{{"w":{w},"w":{w}}}"#), &[0; 4]), &["`w` appears twice"]);
    refused(&with_header(r#"{"__metadata__":{},"__metadata__":{}}"#, b""), &["`__metadata__` appears twice"]);
    refused(&with_header(r#"{"__metadata__":{"a":"1","a":"2"}}"#, b""), &["`a` appears twice"]);
    let long = "x".repeat(1_000_000);
    refused(&with_header(&format!(r#"{{"{long}":{w}}}"#), &[0; 4]), &["more than 1024 bytes"]);
    refused(
        &with_header(&format!(r#"{{"a\u001b[31m\n":{}}}"#, entry("F9", "[1]", "[0,4]")), &[0; 4]),
        &["`a\\u{1b}"],
    );
}

#[test]
fn types_shapes_and_offsets_must_agree() {
    one("F99", "[1]", "[0,4]", 4, &["`w`", "dtype `F99` is unknown"]);
    one("F32", "[-1]", "[0,4]", 4, &["`w`", "-1"]);
    one("F32", "[1.5]", "[0,4]", 4, &["`w`", "1.5"]);
    one("F32", "[18446744073709551616]", "[0,4]", 4, &["`w`"]);
    one("F32", &format!("[{}]", ["1"; 17].join(",")), "[0,4]", 4, &["`w`", "more than 16 dimensions"]);
    one("F32", "[4,4]", "[0,4]", 4, &["`w`", "[0, 4] hold 4 bytes", "shape [4, 4] of F32 takes 64"]);
    one("F32", "[1]", "[0,8]", 8, &["hold 8 bytes", "takes 4"]);
    one("F4", "[3]", "[0,1]", 1, &["hold 1 bytes", "takes 2"]);
    one("F32", "[9223372036854775807,9]", "[0,4]", 4, &["`w`", "overflows"]);
    one("F32", "[4294967296,4294967296]", "[0,0]", 0, &["`w`", "overflows"]);
    one("F32", "[0,1099511627776,1099511627776]", "[0,0]", 0, &["`w`", "overflows"]);
    one("F32", "[1]", "[4,0]", 4, &["`w`", "[4, 0] end before they begin"]);
    one("F32", "[1]", "[4,8]", 8, &["`w`", "leave a gap: they must begin at 0"]);
    one("F32", "[1]", "[0,4]", 0, &["announces 4 bytes", "but 0 follow", "truncated"]);
    one("F32", "[250000000000]", "[0,1000000000000]", 4, &["announces 1000000000000 bytes", "but 4 follow"]);
    let top = u64::MAX - 3;
    one("F32", &format!("[{}]", top / 4), &format!("[0,{top}]"), 4, &["bad.safetensors"]);
    let two = |second: &str| {
        let (a, b) = (entry("F32", "[2]", "[0,8]"), entry("F32", "[1]", second));
        with_header(&format!(r#"{{"b":{b},"a":{a}}}"#), &[0; 12])
    };
    refused(&two("[4,8]"), &["tensor `b`", "[4, 8] overlap the tensor before: they must begin at 8"]);
    refused(&two("[0,4]"), &["`a`", "overlap"]);
    // The order in the header is free.
    assert!(open(&two("[8,12]")).is_ok());
    // Tensors without elements take no place.
    let none = format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[0,5]", "[0,0]"), entry("F32", "[]", "[0,4]"));
    let weights = open(&with_header(&none, &[0; 4])).unwrap();
    assert_eq!(weights.tensor("a").unwrap().dims(), [0, 5]);
    assert_eq!(weights.tensor("b").unwrap().dims(), [0usize; 0]);
}

#[test]
fn a_header_of_many_tensors_is_read_and_compared_in_time() {
    let names: Vec<String> = (0..20_000).map(|i| format!("layer.{i}.weight")).collect();
    let tensors: Vec<(&str, &[usize], &[f32])> =
        names.iter().map(|n| (n.as_str(), [0].as_slice(), [].as_slice())).collect();
    let weights = open(&file(&tensors)).unwrap();
    let store = crate::weights::filled(&[("layer.x.weight", 1)]);
    let error = weights.load_into(&store, "", |n| Some(n.to_owned()), Matching::Strict).unwrap_err();
    says(&error, &["20000 not part of the model", "and 19990 more", "(nearest: `layer."]);
    assert!(error.to_string().len() < 5000);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Any damage is refused or harmless: what opens can be read, and reads what the file holds.
    #[test]
    fn damaged_files_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file(&[("layer.weight", &[2, 3], &[0.5; 6]), ("layer.bias", &[2], &[0.25; 2])]);
        for (position, value) in damage {
            let position = position.index(bytes.len());
            bytes[position] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(weights) = open(&bytes) {
            let mut elements = 0;
            for name in weights.names() {
                if let Ok(tensor) = weights.tensor(name) {
                    elements += tensor.elem_count();
                }
            }
            prop_assert!(elements * 2 <= bytes.len());
        }
    }

    /// Headers that are JSON of the right kind with numbers of any size.
    #[test]
    fn any_numbers_are_checked(
        tensors in proptest::collection::vec((
            prop_oneof![Just("F32"), Just("F16"), Just("F64"), Just("BOOL"), Just("F4"), Just("F6_E2M3")],
            proptest::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..4),
            prop_oneof![0u64..40, any::<u64>()],
            prop_oneof![0u64..40, any::<u64>()],
        ), 0..4),
        data in 0usize..64,
    ) {
        let entries: Vec<String> = tensors
            .iter()
            .enumerate()
            .map(|(i, (dtype, shape, a, b))| format!("\"t{i}\":{}", entry(dtype, &format!("{shape:?}"), &format!("[{a},{b}]"))))
            .collect();
        if let Ok(weights) = open(&with_header(&format!("{{{}}}", entries.join(",")), &vec![0; data])) {
            for name in weights.names() {
                let size: usize = weights.shape(name).unwrap().iter().product();
                prop_assert!(size <= data * 2);
            }
        }
    }
}
