//! Which rows train, select and test a model.

use crate::carve::carve;
use crate::{DataError, Dataset};
use mm_core::{ConfigError, StepRng};
use serde::{Deserialize, Serialize};

/// Rows for training, for choosing a model, and for testing it; no row is in two parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splits {
    /// Rows to train on.
    pub train: Vec<usize>,
    /// Rows to choose a model by; may be empty.
    pub val: Vec<usize>,
    /// Rows to report on.
    pub test: Vec<usize>,
}

/// How to split a data set. Everything is optional: an empty table means the set's own parts.
///
/// | field | default | meaning |
/// |---|---|---|
/// | `train`, `test` | `train_index`, `test_index` | names of index lists; the suffix `_index` may be left out |
/// | `val` | `val_index` if there is one | the same for validation |
/// | `fold_column` | none | instead of names: the column that numbers the folds |
/// | `test_fold` | none | the fold to test on; required with `fold_column` |
/// | `val_fold` | none | the fold to validate on; all other folds train |
/// | `test_fraction` | none | instead of names: share of all rows to test on, in (0, 0.9] |
/// | `test_group` | none | column whose groups `test_fraction` keeps together |
/// | `val_fraction` | none | share of the training rows to validate on, in (0, 0.9], instead of `val` |
/// | `val_group` | none | column whose groups `val_fraction` keeps together |
/// | `seed` | the run's | seed of the fractions |
///
/// Fractions are drawn class by class unless a group column is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitConfig {
    /// Name of the index list to train on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<String>,
    /// Name of the index list to validate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<String>,
    /// Name of the index list to test on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<String>,
    /// Name of the column that numbers the folds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fold_column: Option<String>,
    /// The fold to test on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_fold: Option<i64>,
    /// The fold to validate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_fold: Option<i64>,
    /// Share of all rows to test on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_fraction: Option<f64>,
    /// Column whose groups `test_fraction` keeps together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_group: Option<String>,
    /// Share of the training rows to validate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// Column whose groups `val_fraction` keeps together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_group: Option<String>,
    /// Seed of the fractions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SplitConfig {
    /// Checks what can be checked without data: ranges, and settings that exclude or need each other.
    pub fn check(&self) -> Result<(), ConfigError> {
        let named = self.train.is_some() || self.test.is_some();
        let rules = [
            (
                named && self.fold_column.is_some(),
                "fold_column",
                "name index lists or a fold column, not both",
            ),
            (
                named && self.test_fraction.is_some(),
                "test_fraction",
                "name index lists or a fraction, not both",
            ),
            (
                self.fold_column.is_some() && self.test_fraction.is_some(),
                "test_fraction",
                "give a fold column or a fraction, not both",
            ),
            (
                self.train.is_some() != self.test.is_some(),
                if self.train.is_some() { "test" } else { "train" },
                "`train` and `test` go together",
            ),
            (
                self.fold_column.is_some() && self.test_fold.is_none(),
                "test_fold",
                "say which fold to test on",
            ),
            (
                self.fold_column.is_none() && (self.test_fold.is_some() || self.val_fold.is_some()),
                "fold_column",
                "name the column that numbers the folds",
            ),
            (
                self.val_fold.is_some() && self.val_fold == self.test_fold,
                "val_fold",
                "must differ from `test_fold`",
            ),
            (
                self.val.is_some() && (self.fold_column.is_some() || self.test_fraction.is_some()),
                "val",
                "goes with `train` and `test`",
            ),
            (
                self.val_fraction.is_some() && (self.val.is_some() || self.val_fold.is_some()),
                "val_fraction",
                "give `val`, `val_fold` or `val_fraction`, not two of them",
            ),
            (
                self.val_group.is_some() && self.val_fraction.is_none(),
                "val_group",
                "goes with `val_fraction`",
            ),
            (
                self.test_group.is_some() && self.test_fraction.is_none(),
                "test_group",
                "goes with `test_fraction`",
            ),
        ];
        if let Some((_, field, rule)) = rules.iter().find(|(broken, ..)| *broken) {
            return Err(ConfigError::new(format!("split.{field}"), self.shown(field), *rule));
        }
        for (field, value) in [("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)] {
            let good = |f: f64| f > 0.0 && f <= 0.9;
            if let Some(value) = value
                && !good(value)
            {
                return Err(ConfigError::new(format!("split.{field}"), value, "must be a share in (0, 0.9]"));
            }
        }
        Ok(())
    }

    fn shown(&self, field: &str) -> String {
        let json = serde_json::to_value(self).unwrap_or_default();
        json.get(field).map_or("(not set)".to_owned(), ToString::to_string)
    }
}

impl Splits {
    /// The parts with their names.
    pub fn parts(&self) -> [(&'static str, &[usize]); 3] {
        [("train", &self.train), ("val", &self.val), ("test", &self.test)]
    }

    /// Checks the parts against a data set: rows exist, none twice or in two parts, training and test are not empty,
    /// training has at least two classes and every modality in at least one row.
    pub fn check(&self, data: &Dataset) -> Result<(), DataError> {
        let fault = |rule: String, remedy: &str| Err(DataError::split(&data.origin, rule, remedy));
        let mut owner: Vec<Option<&str>> = vec![None; data.rows()];
        for (part, rows) in self.parts() {
            if rows.is_empty() && part != "val" {
                return fault(format!("the {part} part is empty"), "give it at least one row");
            }
            for &row in rows {
                match owner.get(row) {
                    None => {
                        let rule = format!("{part} names row {row}, but there are {} rows", data.rows());
                        return fault(rule, "rows count from 0");
                    }
                    Some(Some(other)) if *other == part => {
                        return fault(format!("row {row} is in {part} twice"), "list every row once");
                    }
                    Some(Some(other)) => {
                        let rule = format!("row {row} is in both {other} and {part}");
                        return fault(rule, "a row that trains must not test: make the parts disjoint");
                    }
                    Some(None) => owner[row] = Some(part),
                }
            }
        }
        let seen = data.class_counts(&self.train).iter().filter(|&&n| n > 0).count();
        if seen < 2 {
            let rule = format!("the training rows have {seen} class only");
            return fault(rule, "training needs rows of at least 2 classes");
        }
        for (m, x) in data.inputs.iter() {
            if !self.train.iter().any(|&row| x.is_present(row)) {
                let rule = format!("modality `{}` is missing in every training row", data.modalities.name(m));
                return fault(rule, "leave it out of `data.modalities`, or train on rows that have it");
            }
        }
        Ok(())
    }
}

impl Dataset {
    /// Splits the set and checks the parts ([`Splits::check`]). Fractions use `config.seed`, or 0.
    pub fn split(&self, config: &SplitConfig) -> Result<Splits, DataError> {
        self.split_seeded(config, 0)
    }

    pub(crate) fn split_seeded(&self, config: &SplitConfig, run_seed: u64) -> Result<Splits, DataError> {
        config.check().map_err(|e| e.within("data"))?;
        let rng = StepRng::new(config.seed.unwrap_or(run_seed)).stream("split");
        let mut splits = if let (Some(column), Some(test_fold)) = (&config.fold_column, config.test_fold) {
            self.by_fold(column, test_fold, config.val_fold)?
        } else if let Some(fraction) = config.test_fraction {
            let all: Vec<usize> = (0..self.rows()).collect();
            let group = self.group("test", config.test_group.as_deref())?;
            let (train, test) = carve(&all, fraction, &self.labels, group, rng.stream("test"));
            Splits { train, val: Vec::new(), test }
        } else {
            self.by_name(config)?
        };
        if let Some(fraction) = config.val_fraction {
            let inside = |rows: &[usize]| rows.iter().all(|&row| row < self.rows());
            if inside(&splits.train) {
                let group = self.group("val", config.val_group.as_deref())?;
                (splits.train, splits.val) =
                    carve(&splits.train, fraction, &self.labels, group, rng.stream("val"));
            }
        }
        splits.check(self)?;
        let wanted = config.val.is_some() || config.val_fold.is_some() || config.val_fraction.is_some();
        if wanted && splits.val.is_empty() {
            let remedy = "ask for a larger share, more groups or a list with rows, or leave validation out";
            return Err(DataError::split(&self.origin, "the val part is empty", remedy));
        }
        Ok(splits)
    }

    fn group(&self, part: &str, column: Option<&str>) -> Result<Option<&[i64]>, ConfigError> {
        column.map(|name| self.column(&format!("data.split.{part}_group"), name)).transpose()
    }

    fn by_name(&self, config: &SplitConfig) -> Result<Splits, DataError> {
        let find = |name: &str| self.indices.get(name).or_else(|| self.indices.get(&format!("{name}_index")));
        let list = |field: &str, name: Option<&str>| {
            let wanted = name.map_or_else(|| format!("{field}_index"), str::to_owned);
            if let Some(rows) = find(&wanted) {
                return Ok(rows.clone());
            }
            let field = format!("data.split.{field}");
            if self.indices.is_empty() || name.is_none() {
                let rule = format!(
                    "{} has no index list `{wanted}`: name the lists (`train`, `test`), the folds (`fold_column`, \
                     `test_fold`) or a share (`test_fraction`)",
                    self.origin
                );
                return Err(ConfigError::new(field, "(not set)", rule));
            }
            Err(ConfigError::unknown(field, &wanted, &self.indices.keys().collect::<Vec<_>>()))
        };
        let train = list("train", config.train.as_deref())?;
        let test = list("test", config.test.as_deref())?;
        let own_val = config.train.is_none() && config.val_fraction.is_none() && find("val_index").is_some();
        let val =
            if config.val.is_some() || own_val { list("val", config.val.as_deref())? } else { Vec::new() };
        Ok(Splits { train, val, test })
    }

    fn by_fold(&self, column: &str, test_fold: i64, val_fold: Option<i64>) -> Result<Splits, DataError> {
        let folds = self.column("data.split.fold_column", column)?;
        for (field, fold) in [("test_fold", Some(test_fold)), ("val_fold", val_fold)] {
            if let Some(fold) = fold
                && !folds.contains(&fold)
            {
                let there: std::collections::BTreeSet<i64> = folds.iter().copied().collect();
                let there: Vec<String> = there.iter().take(20).map(ToString::to_string).collect();
                let rule = format!("no row has this fold; column `{column}` has {}", there.join(", "));
                return Err(ConfigError::new(format!("data.split.{field}"), fold, rule).into());
            }
        }
        let mut splits = Splits { train: Vec::new(), val: Vec::new(), test: Vec::new() };
        for (row, &fold) in folds.iter().enumerate() {
            if fold == test_fold {
                splits.test.push(row);
            } else if Some(fold) == val_fold {
                splits.val.push(row);
            } else {
                splits.train.push(row);
            }
        }
        Ok(splits)
    }
}
