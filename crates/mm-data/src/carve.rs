//! Draws a share of rows, class by class or group by group.

use mm_core::StepRng;
use std::collections::BTreeMap;

/// Takes about `fraction` of `rows` out; returns what is left and what was taken, both ascending.
///
/// Without groups every class gives its share, rounded, and keeps at least one row. With groups, whole groups are
/// taken in random order where that brings the count nearer to the share; of two groups or more, at least one is
/// taken and at least one is left.
pub(crate) fn carve(
    rows: &[usize],
    fraction: f64,
    labels: &[u32],
    groups: Option<&[i64]>,
    rng: StepRng,
) -> (Vec<usize>, Vec<usize>) {
    let (mut rest, mut taken) = match groups {
        None => by_class(rows, fraction, labels, rng),
        Some(groups) => by_group(rows, fraction, groups, rng),
    };
    rest.sort_unstable();
    taken.sort_unstable();
    (rest, taken)
}

fn by_class(rows: &[usize], fraction: f64, labels: &[u32], rng: StepRng) -> (Vec<usize>, Vec<usize>) {
    let (mut rest, mut taken) = (Vec::new(), Vec::new());
    for (class, mut members) in buckets(rows, |row| labels[row]) {
        let share = (fraction * members.len() as f64).round() as usize;
        let share = share.min(members.len() - 1);
        rng.sample(u64::from(class)).draws().shuffle(&mut members);
        taken.extend_from_slice(&members[..share]);
        rest.extend_from_slice(&members[share..]);
    }
    (rest, taken)
}

fn by_group(rows: &[usize], fraction: f64, groups: &[i64], rng: StepRng) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<Vec<usize>> = buckets(rows, |row| groups[row]).into_values().collect();
    rng.draws().shuffle(&mut order);
    let target = fraction * rows.len() as f64;
    let (mut rest, mut taken, mut count) = (Vec::new(), Vec::new(), 0usize);
    for members in order {
        let after = count + members.len();
        if (after as f64 - target).abs() < (count as f64 - target).abs() {
            count = after;
            taken.push(members);
        } else {
            rest.push(members);
        }
    }
    if taken.is_empty() && rest.len() > 1 {
        let smallest = rest.iter().enumerate().min_by_key(|(_, g)| g.len()).map_or(0, |(i, _)| i);
        taken.push(rest.remove(smallest));
    } else if rest.is_empty() && taken.len() > 1 {
        rest.extend(taken.pop());
    }
    (rest.concat(), taken.concat())
}

/// The rows by key, each list ascending, so that the order of `rows` does not matter.
fn buckets<K: Ord>(rows: &[usize], key: impl Fn(usize) -> K) -> BTreeMap<K, Vec<usize>> {
    let mut buckets: BTreeMap<K, Vec<usize>> = BTreeMap::new();
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    for row in rows {
        buckets.entry(key(row)).or_default().push(row);
    }
    buckets
}
