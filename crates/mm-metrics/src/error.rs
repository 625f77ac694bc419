//! What can be wrong with the input of a metric.

use std::fmt;

/// An input that a metric cannot be computed from.
///
/// Every message names the thing, the value that was found, the rule it breaks and what to do about it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MetricError {
    /// A slice that must hold something is empty.
    Empty {
        /// The name of the slice.
        what: &'static str,
    },
    /// A slice has another length than its companions demand.
    Length {
        /// The name of the slice.
        what: &'static str,
        /// The length that was expected.
        expected: usize,
        /// The length that was found.
        actual: usize,
        /// Where the expected length comes from.
        rule: &'static str,
    },
    /// A class index is not below the number of classes.
    ClassOutOfRange {
        /// The name of the slice.
        what: &'static str,
        /// The position in the slice.
        index: usize,
        /// The class index that was found.
        class: u32,
        /// The number of classes.
        classes: usize,
    },
    /// A number is NaN, or infinite where a finite number is needed.
    NotFinite {
        /// The name of the slice.
        what: &'static str,
        /// The position in the slice.
        index: usize,
        /// The number that was found.
        value: f64,
    },
    /// A row of scores is not a probability distribution.
    NotProbability {
        /// The sample.
        row: usize,
        /// The offending quantity: an entry of the row, or its sum.
        quantity: &'static str,
        /// The number that was found.
        value: f64,
    },
    /// A parameter of a metric is outside its range.
    Parameter {
        /// The name of the parameter.
        name: &'static str,
        /// The value that was found.
        value: f64,
        /// What is allowed, and what to use instead.
        rule: &'static str,
    },
    /// The labels hold a single class where a classifier has to tell classes apart.
    SingleClass {
        /// The class that all samples have.
        class: u32,
    },
}

impl fmt::Display for MetricError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty { what } => {
                write!(
                    f,
                    "{what} is empty, but at least one entry is needed; check the split or filter that produced it"
                )
            }
            Self::Length { what, expected, actual, rule } => write!(
                f,
                "{what} has length {actual}, but must have length {expected} ({rule}); \
                 check that all slices come from the same samples in the same order"
            ),
            Self::ClassOutOfRange { what, index, class, classes } => write!(
                f,
                "{what}[{index}] is class {class}, but must be below the number of classes, {classes}; \
                 pass the number of classes of the dataset or repair the label"
            ),
            Self::NotFinite { what, index, value } => write!(
                f,
                "{what}[{index}] is {value}, but must be a finite number; \
                 the model has probably diverged: look at the training loss before this evaluation"
            ),
            Self::NotProbability { row, quantity, value } => write!(
                f,
                "{quantity} of row {row} is {value}, but probabilities lie in [0, 1] and each row sums to 1; \
                 pass logits through softmax_rows first"
            ),
            Self::Parameter { name, value, rule } => write!(f, "{name} is {value}, but {rule}"),
            Self::SingleClass { class } => write!(
                f,
                "all labels are class {class}, but a classifier needs at least two different classes; \
                 check the split or filter that produced the labels"
            ),
        }
    }
}

impl std::error::Error for MetricError {}

/// Errors unless `actual` equals `expected`.
pub(crate) fn check_length(
    what: &'static str,
    actual: usize,
    expected: usize,
    rule: &'static str,
) -> Result<(), MetricError> {
    if actual == expected { Ok(()) } else { Err(MetricError::Length { what, expected, actual, rule }) }
}

/// Errors unless the slice has an entry.
pub(crate) fn check_not_empty<T>(what: &'static str, slice: &[T]) -> Result<(), MetricError> {
    if slice.is_empty() { Err(MetricError::Empty { what }) } else { Ok(()) }
}

/// Errors unless every class index is below `classes`.
pub(crate) fn check_classes(what: &'static str, slice: &[u32], classes: usize) -> Result<(), MetricError> {
    match slice.iter().position(|&class| class as usize >= classes) {
        None => Ok(()),
        Some(index) => Err(MetricError::ClassOutOfRange { what, index, class: slice[index], classes }),
    }
}

/// Errors unless every number is finite.
pub(crate) fn check_finite(what: &'static str, slice: &[f64]) -> Result<(), MetricError> {
    match slice.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(MetricError::NotFinite { what, index, value: slice[index] }),
    }
}

/// The largest number of classes: beyond this a wrong argument is likelier than a right one, and a confusion
/// matrix no longer fits into memory.
const MAX_CLASSES: usize = 1 << 16;

/// Errors unless the number of classes is plausible.
pub(crate) fn check_class_count(classes: usize) -> Result<(), MetricError> {
    if classes == 0 || classes > MAX_CLASSES {
        return Err(MetricError::Parameter {
            name: "classes",
            value: classes as f64,
            rule: "must be between 1 and 65536; pass the number of classes of the dataset",
        });
    }
    Ok(())
}

/// Errors unless `actual` is `rows * columns`, which may be too large for `usize`.
pub(crate) fn check_matrix(
    what: &'static str,
    actual: usize,
    rows: usize,
    columns: usize,
    rule: &'static str,
) -> Result<(), MetricError> {
    check_length(what, actual, rows.saturating_mul(columns), rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_thing_value_rule_and_remedy() {
        let error = MetricError::ClassOutOfRange { what: "labels", index: 3, class: 9, classes: 6 };
        assert_eq!(
            error.to_string(),
            "labels[3] is class 9, but must be below the number of classes, 6; \
             pass the number of classes of the dataset or repair the label"
        );
        let error =
            MetricError::Parameter { name: "bins", value: 0.0, rule: "must be at least 1; 15 is usual" };
        assert_eq!(error.to_string(), "bins is 0, but must be at least 1; 15 is usual");
    }

    #[test]
    fn checks_find_the_first_offender() {
        assert_eq!(check_length("a", 2, 2, "r"), Ok(()));
        assert_eq!(
            check_length("a", 2, 3, "r"),
            Err(MetricError::Length { what: "a", expected: 3, actual: 2, rule: "r" })
        );
        assert_eq!(
            check_classes("labels", &[0, 2, 7, 8], 3),
            Err(MetricError::ClassOutOfRange { what: "labels", index: 2, class: 7, classes: 3 })
        );
        assert_eq!(
            check_finite("x", &[0.0, f64::INFINITY]),
            Err(MetricError::NotFinite { what: "x", index: 1, value: f64::INFINITY })
        );
        assert!(check_matrix("x", 7, usize::MAX, 2, "r").is_err());
        assert!(check_class_count(0).is_err());
    }
}
