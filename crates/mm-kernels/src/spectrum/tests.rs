//! Transforms against their definition, logarithms against the standard library.

use super::*;
use crate::rng::StepRng;

fn signal(len: usize) -> Vec<f32> {
    let mut draws = StepRng::new(1).draws();
    (0..len).map(|_| draws.normal() as f32).collect()
}

fn hann(n: usize) -> Vec<f64> {
    (0..n).map(|i| 0.5 - 0.5 * (2.0 * PI * i as f64 / n as f64).cos()).collect()
}

#[test]
#[cfg_attr(miri, ignore = "too slow")]
fn powers_equal_the_definition() {
    for n in [16, 32, 64, 256, 512, 1024] {
        let window = hann(n);
        for isa in Isa::available() {
            let plan = Spectra::on(isa, &window).expect("a power of two");
            let (hop, lanes) = (n / 3, plan.lanes());
            let x = signal((lanes - 1) * hop + n);
            let mut work = Work::default();
            let powers = plan.powers(&x, hop, &mut work);
            assert_eq!(powers.len(), plan.bins() * lanes);
            for k in 0..=n / 2 {
                for lane in 0..lanes {
                    let term = |i: usize| {
                        let [c, s] = turn(i * k % n, n);
                        let v = f64::from(x[lane * hop + i]) * window[i];
                        (v * c, v * s)
                    };
                    let (re, im) = (0..n).map(term).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1));
                    let (found, expected) = (powers[k * lanes + lane], re * re + im * im);
                    let error = (found - expected).abs();
                    assert!(error < 1e-12 * n as f64, "{isa:?}, n {n}, bin {k}: {found} {expected}");
                }
            }
        }
    }
}

#[test]
fn other_lengths_are_not_planned() {
    for n in [0, 1, 8, 100, 384, 16384] {
        assert!(Spectra::new(&vec![1.0; n]).is_none(), "{n}");
    }
}

#[test]
fn logarithms_are_exact_to_the_stated_error() {
    let mut powers: Vec<f64> = (-400..=360).map(|e| 1.37 * 10f64.powf(f64::from(e) * 0.1)).collect();
    powers.extend((0..2000).map(|i| 0.25 + f64::from(i) * 1e-3));
    powers.push(0.0);
    let check = |powers: &[f64], eps: f64| {
        let mut out = vec![0.0; powers.len()];
        for root in [true, false] {
            let ln = if root { ln_magnitude } else { ln_power };
            ln(powers, eps, &mut out);
            for (y, p) in out.iter().zip(powers) {
                let expected = (if root { p.sqrt() } else { *p } + eps).ln();
                let error = (f64::from(*y) - expected).abs();
                assert!(error <= 5e-7 * expected.abs().max(1.0), "ln({p} + {eps}) is {y}: {expected}");
            }
        }
    };
    for eps in [1.0, 1e-3, 1e-7, 1e-12, 1e-30, f64::MIN_POSITIVE] {
        check(&powers, eps);
        // One number that f32 does not hold, and all are computed otherwise.
        check(&[&powers[..], &[1e90]].concat(), eps);
    }
    let mut places = vec![0.0; 37];
    ln_magnitude(&powers[300..337], 1e-7, &mut places);
    for (i, y) in places.iter().enumerate() {
        let mut one = [0.0];
        ln_magnitude(&powers[300 + i..=300 + i], 1e-7, &mut one);
        assert_eq!(one[0].to_bits(), y.to_bits(), "the place of a number changes its bits");
    }
}
