//! "Did you mean …?" for names on the command line.

use crate::error::usage;
use anyhow::Result;

/// The entry of `allowed` that is called `name`, or an error that lists them and names the nearest.
pub(crate) fn choose<'a>(what: &str, name: &str, allowed: &[&'a str]) -> Result<&'a str> {
    if let Some(found) = allowed.iter().find(|candidate| **candidate == name) {
        return Ok(found);
    }
    let guess = nearest(name, allowed).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
    Err(usage(format!("there is no {what} `{name}`{guess}\nallowed: {}", allowed.join(", "))))
}

/// The nearest name, if it is near enough to be a slip.
fn nearest<'a>(name: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let fold = |text: &str| text.to_lowercase().replace(['_', ' '], "-");
    let name = fold(name);
    let close = |candidate: &&str| name.len() >= 3 && fold(candidate).starts_with(&name);
    if let Some(found) = allowed.iter().find(|candidate| close(candidate)) {
        return Some(found);
    }
    allowed
        .iter()
        .map(|candidate| (edit_distance(&name, &fold(candidate)), *candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// How many letters must be inserted, deleted, replaced or swapped with the next.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut table = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let one_more = table[i - 1][j].min(table[i][j - 1]) + 1;
                let swaps = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swapped = if swaps { table[i - 2][j - 2] + 1 } else { usize::MAX };
                replaced.min(one_more).min(swapped)
            };
        }
    }
    table[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["synthetic", "cremad-perception", "mosi", "ogm-ge", "mlb"];

    #[test]
    fn finds_slips_and_beginnings() {
        assert_eq!(nearest("sythetic", &NAMES), Some("synthetic"));
        assert_eq!(nearest("Cremad_Percepton", &NAMES), Some("cremad-perception"));
        assert_eq!(nearest("cremad", &NAMES), Some("cremad-perception"));
        assert_eq!(nearest("mosei", &NAMES), Some("mosi"));
        assert_eq!(nearest("mbl", &NAMES), Some("mlb"));
        assert_eq!(nearest("blm", &NAMES), None);
        assert_eq!(nearest("resnet", &NAMES), None);
    }

    #[test]
    fn the_error_lists_what_is_allowed() {
        let error = choose("method", "ogmge", &NAMES).expect_err("unknown").to_string();
        assert_eq!(
            error,
            "there is no method `ogmge`; did you mean `ogm-ge`?\n\
             allowed: synthetic, cremad-perception, mosi, ogm-ge, mlb"
        );
        assert_eq!(choose("method", "mlb", &NAMES).expect("known"), "mlb");
    }

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abcd", "acbd"), 1);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
