//! The agreement table: when the unimodal models are right or wrong, is the multimodal model right?

use crate::MetricError;
use crate::error::{check_length, check_not_empty};

/// The largest number of modalities: the table has 2^M rows.
pub(crate) const MAX_MODALITIES: usize = 16;

/// Counts of multimodal right and wrong predictions for each pattern of right and wrong unimodal models ("ceu").
///
/// ```text
/// pattern_i  = sum over m of 2^m [unimodal model m is right on sample i]
/// right(s)   = #{ i : pattern_i = s and the multimodal model is right }
/// wrong(s)   = #{ i : pattern_i = s and the multimodal model is wrong }
/// ```
///
/// For two modalities A and B the rows are 0 = both wrong, 1 = only A right, 2 = only B right, 3 = both right.
/// The accuracies inside these rows are known as synergy, cue A, cue B and coexistence. The unimodal models are
/// separately trained ones in the published tables; a model's own unimodal heads give a different table, so say
/// which. Source: the evaluation code of Kontras et al. (MLB, Synergy).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreement {
    rows: Vec<AgreementRow>,
    samples: u64,
}

/// One row of an [`Agreement`] table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgreementRow {
    /// Which unimodal models are right: bit `m` is set when model `m` is.
    pub pattern: u32,
    /// The number of samples with this pattern on which the multimodal model is right.
    pub right: u64,
    /// The number of samples with this pattern on which it is wrong.
    pub wrong: u64,
}

impl Agreement {
    /// Counts the patterns of M unimodal models.
    ///
    /// Shapes: `unimodal` holds M slices of `n` (is model m right on sample i?), `multimodal` is `n`;
    /// [`correctness`](crate::correctness) makes them from labels and predictions. Errors: no modality or more
    /// than 16, no samples, different lengths.
    pub fn new(unimodal: &[&[bool]], multimodal: &[bool]) -> Result<Self, MetricError> {
        check_not_empty("unimodal", unimodal)?;
        if unimodal.len() > MAX_MODALITIES {
            return Err(MetricError::Parameter {
                name: "the number of modalities",
                value: unimodal.len() as f64,
                rule: "must be at most 16, for the table has 2^M rows; compare groups of modalities instead",
            });
        }
        check_not_empty("multimodal", multimodal)?;
        for correct in unimodal {
            check_length("unimodal", correct.len(), multimodal.len(), "one entry per multimodal entry")?;
        }
        let mut rows: Vec<AgreementRow> =
            (0..1 << unimodal.len()).map(|pattern| AgreementRow { pattern, right: 0, wrong: 0 }).collect();
        for (i, &right) in multimodal.iter().enumerate() {
            let pattern = unimodal.iter().rev().fold(0, |bits, correct| bits << 1 | usize::from(correct[i]));
            if right {
                rows[pattern].right += 1;
            } else {
                rows[pattern].wrong += 1;
            }
        }
        Ok(Self { rows, samples: multimodal.len() as u64 })
    }

    /// The table of two modalities; errors as in [`Agreement::new`].
    pub fn of_two(a: &[bool], b: &[bool], multimodal: &[bool]) -> Result<Self, MetricError> {
        Self::new(&[a, b], multimodal)
    }

    /// The 2^M rows in the order of their patterns.
    pub fn rows(&self) -> &[AgreementRow] {
        &self.rows
    }

    /// The number of samples, at least one.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The percentages of all samples, one `[right, wrong]` pair per row; they sum to 100.
    pub fn percentages(&self) -> Vec<[f64; 2]> {
        let percent = |count: u64| 100.0 * count as f64 / self.samples as f64;
        self.rows.iter().map(|row| [percent(row.right), percent(row.wrong)]).collect()
    }

    /// The multimodal accuracy over all samples.
    pub fn accuracy(&self) -> f64 {
        self.rows.iter().map(|row| row.right).sum::<u64>() as f64 / self.samples as f64
    }
}

impl AgreementRow {
    /// The number of samples with this pattern.
    pub fn samples(&self) -> u64 {
        self.right + self.wrong
    }

    /// The multimodal accuracy inside this row; `None` when no sample has this pattern.
    pub fn accuracy(&self) -> Option<f64> {
        (self.samples() > 0).then(|| self.right as f64 / self.samples() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: bool = true;
    const F: bool = false;

    #[test]
    fn two_modalities_make_four_rows() {
        let a = [F, T, T, F, F];
        let b = [F, F, F, T, F];
        let multimodal = [F, T, F, T, T];
        let table = Agreement::of_two(&a, &b, &multimodal).expect("valid");
        let counts: Vec<_> = table.rows().iter().map(|row| (row.pattern, row.right, row.wrong)).collect();
        assert_eq!(counts, [(0, 1, 1), (1, 1, 1), (2, 1, 0), (3, 0, 0)]);
        assert_eq!(table.percentages(), [[20.0, 20.0], [20.0, 20.0], [20.0, 0.0], [0.0, 0.0]]);
        let accuracies: Vec<_> = table.rows().iter().map(AgreementRow::accuracy).collect();
        assert_eq!(accuracies, [Some(0.5), Some(0.5), Some(1.0), None]);
        assert_eq!((table.accuracy(), table.samples()), (0.6, 5));
    }

    #[test]
    fn bit_m_is_modality_m() {
        let table = Agreement::new(&[&[F], &[F], &[T]], &[T]).expect("valid");
        assert_eq!(table.rows().len(), 8);
        assert_eq!(table.rows()[4], AgreementRow { pattern: 4, right: 1, wrong: 0 });
    }

    #[test]
    fn rejects_what_does_not_fit() {
        assert_eq!(Agreement::new(&[], &[T]), Err(MetricError::Empty { what: "unimodal" }));
        assert_eq!(Agreement::new(&[&[]], &[]), Err(MetricError::Empty { what: "multimodal" }));
        assert!(matches!(
            Agreement::of_two(&[T], &[T, F], &[T]),
            Err(MetricError::Length { expected: 1, actual: 2, .. })
        ));
        assert!(matches!(Agreement::new(&[&[T][..]; 17], &[T]), Err(MetricError::Parameter { .. })));
    }
}
