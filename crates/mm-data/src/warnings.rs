//! What is allowed about a split but should be known.

use crate::{DataError, Dataset, Splits};
use std::collections::BTreeSet;

/// Columns that by their name say who or what a row comes from.
const GROUP_COLUMNS: [&str; 9] =
    ["actor", "group", "patient", "patient_id", "speaker", "subject", "user", "video", "video_id"];

impl Dataset {
    /// One sentence for each of `columns` whose values occur in two parts: a model may then recognise the actor, the
    /// speaker or the video instead of the class.
    pub fn group_overlap(&self, splits: &Splits, columns: &[&str]) -> Result<Vec<String>, DataError> {
        let mut found = Vec::new();
        for &name in columns {
            let values = self.column("group", name)?;
            let sets = splits.parts().map(|(part, rows)| {
                let set: BTreeSet<i64> = rows.iter().filter_map(|&r| values.get(r).copied()).collect();
                (part, set)
            });
            for (i, (part, set)) in sets.iter().enumerate() {
                for (other, later) in &sets[i + 1..] {
                    let shared = set.intersection(later).count();
                    if shared > 0 {
                        found.push(format!(
                            "{shared} values of `{name}` are in both {part} and {other} of {}: scores there may be \
                             optimistic for unseen ones",
                            self.origin
                        ));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Everything worth a warning: overlap of the columns that look like groups (`actor`, `group`, `patient`,
    /// `speaker`, `subject`, `user`, `video`, …), classes that are reported on but not trained on, and rows that have
    /// none of the modalities.
    pub fn warnings(&self, splits: &Splits) -> Vec<String> {
        let groups: Vec<&str> = GROUP_COLUMNS.into_iter().filter(|g| self.columns.contains_key(*g)).collect();
        let mut found = self.group_overlap(splits, &groups).unwrap_or_default();
        let trained = self.class_counts(&splits.train);
        for (part, rows) in &splits.parts()[1..] {
            let counts = self.class_counts(rows);
            let unseen: Vec<String> = (0..self.classes)
                .filter(|&c| counts[c] > 0 && trained[c] == 0)
                .map(|c| self.class_names.get(c).cloned().unwrap_or_else(|| c.to_string()))
                .collect();
            if !unseen.is_empty() {
                let classes = unseen.join(", ");
                found.push(format!("{part} has rows of classes that no training row has: {classes}"));
            }
        }
        for (part, rows) in splits.parts() {
            let without =
                |row: &&usize| **row < self.rows() && self.inputs.iter().all(|(_, x)| !x.is_present(**row));
            let count = rows.iter().filter(without).count();
            if count > 0 {
                found.push(format!("{count} rows of {part} have none of the modalities"));
            }
        }
        found
    }
}
