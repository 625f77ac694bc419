//! Shapley values: the fair share of each modality in the value of all of them.

use crate::MetricError;
use crate::agreement::MAX_MODALITIES;
use crate::error::check_finite;

/// The exact Shapley value of each of M players.
///
/// ```text
/// phi_m = sum over S without m of |S|! (M - |S| - 1)! / M! * (v(S with m) - v(S))
/// ```
///
/// Shapes: `values` holds v(S) for the 2^M coalitions, and bit m of the index says whether player m is in S: for two
/// modalities v(none), v(A), v(B), v(A and B). Result: M values that sum to v(all) - v(none).
/// For a modality contribution v is usually the accuracy with the other modalities' inputs zeroed.
///
/// Errors: a length that is no 2^M with 1 <= M <= 16, a value that is not finite. Source: Shapley, "A value for
/// n-person games", 1953.
pub fn shapley(values: &[f64]) -> Result<Vec<f64>, MetricError> {
    let players = values.len().trailing_zeros() as usize;
    if !values.len().is_power_of_two() || players == 0 || players > MAX_MODALITIES {
        return Err(MetricError::Parameter {
            name: "the number of coalitions",
            value: values.len() as f64,
            rule: "must be 2^M for M = 1 to 16 players; pass the value of every subset, the empty one first",
        });
    }
    check_finite("values", values)?;

    // weights[s] = s! (M-s-1)! / M!, from 1/M by the ratio of neighbours.
    let mut weights = vec![1.0 / players as f64; players];
    for s in 1..players {
        weights[s] = weights[s - 1] * s as f64 / (players - s) as f64;
    }
    let mut shares = vec![0.0; players];
    for (coalition, value) in values.iter().enumerate() {
        let size = coalition.count_ones() as usize;
        for (player, share) in
            shares.iter_mut().enumerate().filter(|(player, _)| coalition >> player & 1 == 0)
        {
            *share += weights[size] * (values[coalition | 1 << player] - value);
        }
    }
    Ok(shares)
}

/// The Shapley values over their total, so that they sum to 1.
///
/// ```text
/// share_m = phi_m / (v(all) - v(none))
/// ```
///
/// `None` when the total is zero: there is nothing to share. A share is negative, or above 1, when a player
/// harms the others. Shapes and errors as in [`shapley`].
pub fn shapley_shares(values: &[f64]) -> Result<Option<Vec<f64>>, MetricError> {
    let mut shares = shapley(values)?;
    let total = values[values.len() - 1] - values[0];
    if total == 0.0 {
        return Ok(None);
    }
    for share in &mut shares {
        *share /= total;
    }
    Ok(Some(shares))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_players_share_the_surplus() {
        // phi_A = ((0.6 - 0.2) + (0.8 - 0.3)) / 2, phi_B = ((0.3 - 0.2) + (0.8 - 0.6)) / 2.
        let values = [0.2, 0.6, 0.3, 0.8];
        let phi = shapley(&values).expect("valid");
        assert!((phi[0] - 0.45).abs() < 1e-15 && (phi[1] - 0.15).abs() < 1e-15);
        let shares = shapley_shares(&values).expect("valid").expect("total is not zero");
        assert!((shares[0] - 0.75).abs() < 1e-15 && (shares[1] - 0.25).abs() < 1e-15);
    }

    #[test]
    fn the_glove_game() {
        // Player 0 has a left glove, 1 and 2 a right one; a pair is worth 1. Known values: 2/3, 1/6, 1/6.
        let phi = shapley(&[0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).expect("valid");
        for (value, expected) in phi.iter().zip([2.0 / 3.0, 1.0 / 6.0, 1.0 / 6.0]) {
            assert!((value - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn nothing_to_share_and_wrong_sizes() {
        assert_eq!(shapley_shares(&[0.5, 0.1, 0.9, 0.5]), Ok(None));
        assert_eq!(shapley(&[0.0, 2.0]), Ok(vec![2.0]));
        for wrong in [0, 1, 3, 6, 1 << 17] {
            assert!(matches!(shapley(&vec![0.0; wrong]), Err(MetricError::Parameter { .. })), "{wrong}");
        }
        assert!(shapley(&[0.0, f64::NAN]).is_err());
    }
}
