//! What the one-vs-rest ranking metrics share: the ranking of one class's scores and the mean over classes.

use crate::Scores;

/// A ranking metric for each class against all others, and its mean.
#[derive(Debug, Clone, PartialEq)]
pub struct OneVsRest {
    /// The metric of each class; `None` where it is undefined for lack of samples.
    pub per_class: Vec<Option<f64>>,
    /// The unweighted mean over the classes that have a value; `None` when no class has one.
    pub mean: Option<f64>,
    /// The number of classes that have a value. Below `per_class.len()`, the mean is over fewer classes than the
    /// dataset has: say so beside the number.
    pub counted: usize,
}

/// Computes `metric` for each class from its tie groups and averages.
pub(crate) fn one_vs_rest(scores: &Scores<'_>, metric: fn(&[TieGroup]) -> Option<f64>) -> OneVsRest {
    let mut ranked = Vec::with_capacity(scores.samples());
    let per_class: Vec<Option<f64>> = (0..scores.classes())
        .map(|class| {
            ranked.clear();
            let positive = scores.labels().iter().map(|&label| label as usize == class);
            ranked.extend(scores.column(class).zip(positive));
            metric(&tie_groups(&mut ranked))
        })
        .collect();
    let counted = per_class.iter().flatten().count();
    let mean = (counted > 0).then(|| per_class.iter().flatten().sum::<f64>() / counted as f64);
    OneVsRest { per_class, mean, counted }
}

/// The samples that share one score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TieGroup {
    pub(crate) positives: u64,
    pub(crate) negatives: u64,
}

/// Sorts by score, largest first, and counts positives and negatives among equal scores.
fn tie_groups(ranked: &mut [(f64, bool)]) -> Vec<TieGroup> {
    // No NaN gets here, and the two zeros, which total_cmp tells apart, still end up side by side.
    ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    ranked
        .chunk_by(|a, b| a.0 == b.0)
        .map(|group| {
            let positives = group.iter().filter(|(_, positive)| *positive).count() as u64;
            TieGroup { positives, negatives: group.len() as u64 - positives }
        })
        .collect()
}

/// The numbers of positives and negatives over all groups.
pub(crate) fn totals(groups: &[TieGroup]) -> (u64, u64) {
    groups.iter().fold((0, 0), |(p, n), group| (p + group.positives, n + group.negatives))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_equal_scores_largest_first() {
        let mut ranked = [(0.0, true), (0.5, false), (-0.0, false), (0.5, true), (f64::NEG_INFINITY, false)];
        let groups = tie_groups(&mut ranked);
        let group = |positives, negatives| TieGroup { positives, negatives };
        assert_eq!(groups, [group(1, 1), group(1, 1), group(0, 1)]);
        assert_eq!(totals(&groups), (2, 3));
    }
}
