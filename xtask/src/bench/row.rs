//! The rows of `cargo xtask bench peer`: what is trained.

use crate::suggest::choose;
use anyhow::Result;

/// Every row, in the order of the table. `bf16` is autocast on the other side, which has no bf16x3 and computes in f32
/// there.
pub(super) const ROWS: [&str; 10] = [
    "resnet18-audio-f32",
    "resnet18-visual-f32",
    "resnet18-av-mlb-f32",
    "conformer-layer-f32",
    "resnet18-audio-bf16",
    "resnet18-visual-bf16",
    "resnet18-av-mlb-bf16",
    "resnet18-audio-bf16x3",
    "resnet18-visual-bf16x3",
    "resnet18-av-mlb-bf16x3",
];

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
            names(&["resnet18-visual", "conformer"]).expect("known"),
            ["resnet18-visual-f32", "conformer-layer-f32", "resnet18-visual-bf16", "resnet18-visual-bf16x3"]
        );
        let error = names(&["resnet18-adio-f32"]).expect_err("unknown").to_string();
        assert!(error.starts_with("there is no row `resnet18-adio-f32`; did you mean `resnet18-audio-f32`?"));
    }
}
