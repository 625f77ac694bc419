//! The rows of `cargo xtask bench peer`: what is trained, with `-forward` only evaluated, with `data-` read or analysed.

use crate::suggest::choose;
use anyhow::Result;

/// Every row, in the order of the table. `bf16` is autocast on the other side, which has no bf16x3 and computes in f32
/// there.
pub(super) const ROWS: [&str; 17] = [
    "resnet18-audio-f32",
    "resnet18-visual-f32",
    "resnet18-av-mlb-f32",
    "conformer-layer-f32",
    "conformer-f32",
    "wav2vec2-base-forward-f32",
    "wav2vec2-base-f32",
    "efficientnet-b2-forward-f32",
    "resnet18-audio-bf16",
    "resnet18-visual-bf16",
    "resnet18-av-mlb-bf16",
    "resnet18-audio-bf16x3",
    "resnet18-visual-bf16x3",
    "resnet18-av-mlb-bf16x3",
    "data-stft",
    "data-jpeg",
    "data-wav",
];

/// Whether `row` is about files and front-ends, which have programs of their own on both sides and run on one thread.
pub(super) fn is_data(row: &str) -> bool {
    family(row) == "data"
}

/// The rows of a batch where the definition of `row` fixes them.
pub(super) fn fixed_batch(row: &str) -> Option<usize> {
    match family(row) {
        "wav2vec2" => Some(4),
        "efficientnet" => Some(8),
        "data" => Some(16),
        _ => (row == "conformer-f32").then_some(8),
    }
}

/// The library that the other side of `row` needs: for its model beside torch, for data alone.
pub(super) fn library(row: &str) -> Option<&'static str> {
    match family(row) {
        "wav2vec2" => Some("transformers"),
        "efficientnet" => Some("torchvision"),
        _ => match row {
            "data-stft" => Some("librosa"),
            "data-jpeg" => Some("torchvision"),
            "data-wav" => Some("soundfile"),
            _ => None,
        },
    }
}

fn family(row: &str) -> &str {
    row.split('-').next().unwrap_or(row)
}

/// The rows that `wanted` names, in the order of the table; all of them if it is empty. A name may be the beginning of
/// several: `resnet18-audio`.
pub(super) fn select(wanted: &[String]) -> Result<Vec<&'static str>> {
    let begins = |row: &str, name: &str| row.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    for name in wanted {
        if !ROWS.iter().any(|row| begins(row, name)) {
            choose("row", name, &ROWS)?;
        }
    }
    let takes = |row: &&str| wanted.is_empty() || wanted.iter().any(|name| name == row || begins(row, name));
    Ok(ROWS.into_iter().filter(takes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(wanted: &[&str]) -> Result<Vec<&'static str>> {
        select(&wanted.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_name_is_a_row_or_the_beginning_of_several() {
        assert_eq!(names(&[]).expect("all").len(), ROWS.len());
        assert_eq!(
            names(&["resnet18-audio-bf16x3", "resnet18-audio-bf16"]).expect("known"),
            ["resnet18-audio-bf16", "resnet18-audio-bf16x3"]
        );
        assert_eq!(
            names(&["resnet18-visual", "conformer-layer"]).expect("known"),
            ["resnet18-visual-f32", "conformer-layer-f32", "resnet18-visual-bf16", "resnet18-visual-bf16x3"]
        );
        assert_eq!(names(&["conformer"]).expect("known"), ["conformer-layer-f32", "conformer-f32"]);
        assert_eq!(
            names(&["wav2vec2-base"]).expect("known"),
            ["wav2vec2-base-forward-f32", "wav2vec2-base-f32"]
        );
        assert_eq!(names(&["data", "conformer-f32"]).expect("known").len(), 4);
        assert!(is_data("data-wav") && !is_data("conformer-f32"));
        let error = names(&["resnet18-adio-f32"]).expect_err("unknown").to_string();
        assert!(error.starts_with("there is no row `resnet18-adio-f32`; did you mean `resnet18-audio-f32`?"));
    }

    #[test]
    fn some_rows_fix_their_batch_and_some_need_a_library() {
        let fixed: Vec<_> = ROWS.into_iter().filter_map(|row| Some((row, fixed_batch(row)?))).collect();
        assert_eq!(
            fixed,
            [
                ("conformer-f32", 8),
                ("wav2vec2-base-forward-f32", 4),
                ("wav2vec2-base-f32", 4),
                ("efficientnet-b2-forward-f32", 8),
                ("data-stft", 16),
                ("data-jpeg", 16),
                ("data-wav", 16)
            ]
        );
        assert_eq!(library("wav2vec2-base-f32"), Some("transformers"));
        assert_eq!(library("efficientnet-b2-forward-f32"), Some("torchvision"));
        assert_eq!(library("data-stft"), Some("librosa"));
        assert_eq!(library("conformer-f32"), None);
        assert_eq!(library("resnet18-audio-f32"), None);
    }
}
